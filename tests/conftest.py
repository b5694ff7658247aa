import os
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import forkserver, get_context

import lookups
import numpy as np
import pytest
from hypothesis import HealthCheck, Phase, settings
from scipy.spatial.transform import Rotation

# Volumes in tests are tiny, so more threads would only be slower.
for variable in ("OMP_NUM_THREADS", "ITK_GLOBAL_DEFAULT_NUMBER_OF_THREADS"):
    os.environ.setdefault(variable, "1")
os.environ["DENO_NO_UPDATE_CHECK"] = "1"  # for the validator, if a test runs it directly

NETWORK = lookups.guard()  # before any process is started, so that all are watched

# All runs in one test process share a fork server, which imports these modules once instead of in
# each worker. None of them starts threads when imported, and none imports numba.
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
# Preloaded as well if tests run the app: torch and ITK, with one thread each. Tests that start the
# app in its own process, as users do, check that the two do not compute in the same process.
OF_RUNS = (
    "bids_app.anatomy.brain",
    "bids_app.anatomy.registration",
    "bids_app.detection.autoencoder",
    "bids_app.synthesis.scoring",
    "lightning_fabric",  # imports torch's compiler, which training of encoders needs as well
)
preload = forkserver.set_forkserver_preload
forkserver.set_forkserver_preload = lambda names: preload([*names, *PRELOADED])

# Examples are the same in each run; random ones could fail for reasons unrelated to a change.
settings.register_profile("mri2pet", deadline=None, max_examples=50, derandomize=True)
settings.register_profile(  # takes hours: CONTRIBUTING.md, "Tests"; without shrinking
    "long",
    deadline=None,
    max_examples=int(os.environ.get("HYPOTHESIS_EXAMPLES", "20000")),
    suppress_health_check=list(HealthCheck),
    print_blob=True,
    phases=[Phase.explicit, Phase.reuse, Phase.generate],
)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "mri2pet"))


def pytest_collection_modifyitems(items):
    """Run the files with slow tests first, so that test processes end at about the same time."""
    long = {item.path for item in items if item.get_closest_marker("slow")}
    if long:
        PRELOADED.extend(OF_RUNS)
    items.sort(key=lambda item: item.path not in long)


@pytest.fixture(autouse=True)
def _nothing_is_looked_up():
    """Fail any test in which a process looks up a host or connects to another machine."""
    before = len(lookups.seen())
    yield
    new = lookups.seen()[before:]
    assert not new, f"nothing is ever sent, but: {new}"


@pytest.fixture
def rng():
    return np.random.default_rng(7)


@pytest.fixture(scope="session")
def pairs():
    """Pairs of two people to train on, of 24×25×7 voxels."""
    from trainings import two_people  # not at the top, because it imports torch

    return two_people()


@pytest.fixture(scope="module")
def itk_process():
    """Executor with a fresh process, so that ITK never computes in a process with torch."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        yield pool


@pytest.fixture
def run_itk(itk_process, tmp_path):
    """Run an interface of registration by its name; return its outputs."""
    from nodes import run_interface  # not at the top, because it imports nipype

    def run(name, **inputs):
        module = "bids_app.interfaces.anatomy"
        return itk_process.submit(run_interface, module, name, inputs, tmp_path).result()

    return run


@pytest.fixture
def head_affine():
    """Oblique, anisotropic, left-handed affine; about 17×14×11 voxels are as large as a head."""
    affine = np.eye(4)
    turn = Rotation.from_euler("xyz", (12, -7, 5), degrees=True).as_matrix()
    affine[:3, :3] = turn @ np.diag([-4.0, 5.0, 6.0])
    affine[:3, 3] = 41.5, -33.25, -20.75
    return affine
