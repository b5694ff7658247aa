import os
from multiprocessing import forkserver

import lookups
import numpy as np
import pytest
from hypothesis import HealthCheck, Phase, settings
from scipy.spatial.transform import Rotation

# Volumes in tests are tiny: threads would only wait for one another.
for variable in ("OMP_NUM_THREADS", "ITK_GLOBAL_DEFAULT_NUMBER_OF_THREADS"):
    os.environ.setdefault(variable, "1")
os.environ["DENO_NO_UPDATE_CHECK"] = "1"  # of the validator, where a test runs it itself

NETWORK = lookups.guard()  # before anything is started, so that everything is watched

# Runs in one process of tests share the server that forks their workers: it imports, once, what
# workers would import again and again. None of it starts threads at its import, or is numba.
PRELOADED = [
    "matplotlib.pyplot",
    "sklearn.decomposition",
    "sklearn.linear_model",
    "sympy",
    *(
        f"bids_app.interfaces.{name}"
        for name in ("anatomy", "detection", "imaging", "synthesis", "training")
    ),
]
# Where the app is run, torch and ITK as well, with a thread each: that they do not compute in one
# process is shown by tests that start the app as its users do.
OF_RUNS = (
    "bids_app.anatomy.brain",
    "bids_app.anatomy.registration",
    "bids_app.detection.autoencoder",
    "bids_app.synthesis.scoring",
    "lightning_fabric",  # brings torch's compiler, which training of encoders loads, too
)
preload = forkserver.set_forkserver_preload
forkserver.set_forkserver_preload = lambda names: preload([*names, *PRELOADED])

# Drawn anew by each run, examples that no change touched would fail it now and then.
settings.register_profile("mri2pet", deadline=None, max_examples=50, derandomize=True)
settings.register_profile(  # hours: CONTRIBUTING.md, "Tests"; nothing is made smaller
    "long",
    deadline=None,
    max_examples=int(os.environ.get("HYPOTHESIS_EXAMPLES", "20000")),
    suppress_health_check=list(HealthCheck),
    print_blob=True,
    phases=[Phase.explicit, Phase.reuse, Phase.generate],
)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "mri2pet"))


def pytest_collection_modifyitems(items):
    """Begin with files that run the app: what is left for the end is short, for all processes."""
    long = {item.path for item in items if item.get_closest_marker("slow")}
    if long:
        PRELOADED.extend(OF_RUNS)
    items.sort(key=lambda item: item.path not in long)


@pytest.fixture(autouse=True)
def _nothing_is_looked_up():
    """Fail whatever has a host looked up, or connects to one: of all levels, in all processes."""
    before = len(lookups.seen())
    yield
    new = lookups.seen()[before:]
    assert not new, f"nothing is ever sent, but: {new}"


@pytest.fixture
def rng():
    return np.random.default_rng(7)


@pytest.fixture(scope="session")
def pairs():
    """Two people to train on, of 24×25×7 voxels."""
    from trainings import two_people  # not on top: it loads torch

    return two_people()


@pytest.fixture
def head_affine():
    """Oblique, anisotropic, left-handed; with 17×14×11 voxels or so, as large as a head."""
    affine = np.eye(4)
    turn = Rotation.from_euler("xyz", (12, -7, 5), degrees=True).as_matrix()
    affine[:3, :3] = turn @ np.diag([-4.0, 5.0, 6.0])
    affine[:3, 3] = 41.5, -33.25, -20.75
    return affine
