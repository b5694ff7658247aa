"""Self-test, ``mri2pet --self-test``, of the installation, in processes started as by users.

Packages that may be broken are imported by the check that needs them, so that the other checks are
not affected.
"""

import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable
from importlib.metadata import packages_distributions, requires, version
from pathlib import Path

from bids_app.errors import Mri2petError, UnusableDataError
from bids_app.resources import choose_device, find_limits, limit_threads, threads_per_node
from bids_app.settings import LPIPS_VARIABLE

TOLERANCE = 1e-4  # of decision values; with few samples and features, the last steps matter
LEAST_LIKENESS = 0.7  # correlation; our choice, 0.96 was observed
TIMEOUT = 600.0  # s
LAST_LINES = 3
Check = Callable[[], str]
# Imports modules in turn; prints a line before each, in case it crashes Python, and one after.
IMPORTS = """
import importlib, sys
for name in sys.argv[1:]:
    print(name, "crashes Python", sep="\\t", flush=True)
    try:
        importlib.import_module(name)
        said = ""
    except Exception as error:
        said = f"{type(error).__name__}: {' '.join(str(error).split())}"
    print(name, said, sep="\\t", flush=True)
"""
# Print the number of threads of a library, in a process that only imports that library.
THREADS = {
    "torch": "import torch; print(torch.get_num_threads())",
    "ITK": "import SimpleITK as s; print(s.ProcessObject.GetGlobalDefaultNumberOfThreads())",
}


def check_packages() -> str:
    """Import all requirements of mri2pet; return their versions."""
    required = [
        re.split(r"[^\w.-]", line)[0]
        for line in requires("mri2pet") or []
        if "extra ==" not in line
    ]
    modules = {
        distribution.lower().replace("_", "-"): module
        for module, names in packages_distributions().items()
        for distribution in names
        if module.isidentifier() and not module.startswith("_")
    }
    names = {modules.get(name, name): name for name in required}
    run = _run("-c", IMPORTS, *names)
    failures = dict(line.split("\t") for line in run.stdout.splitlines() if line.count("\t") == 1)
    broken = [
        f"{name} ({failures[module]})" for module, name in names.items() if failures.get(module)
    ]
    if broken:
        raise UnusableDataError(
            f"cannot be imported: {', '.join(broken)}; install mri2pet with constraints.txt again"
        )
    _refuse_failure("importing", run)
    return ", ".join(f"{name} {version(name)}" for name in required)


def check_machine() -> str:
    """Describe the resources that a run may use."""
    limits = find_limits(os.environ)
    device = choose_device("auto")
    return f"{limits.cpus} CPUs, {limits.mem_gb:g} GiB of memory, device {device}"


def check_threads() -> str:
    """Check that torch and ITK use no more threads than a run allows for a step."""
    limit = threads_per_node(find_limits(os.environ).cpus, visits=1)
    environment = dict(os.environ)
    limit_threads(environment, limit)
    counts = {library: _threads(library, environment) for library in THREADS}
    sentence = " and ".join(f"{count} of {library}" for library, count in counts.items())
    if max(counts.values()) > limit:
        raise UnusableDataError(
            f"{sentence}, but a step may use {limit}: they do not respect the limit"
        )
    return f"{sentence}; a step may use {limit}"


def check_generators() -> str:
    """Compare the weights of the generators that come with the app with their cards."""
    from bids_app.generators import SHIPPED
    from bids_app.synthesis.card import check_weights, read_card

    folders = sorted(path.parent for path in SHIPPED.glob("*/card.json"))
    if not folders:
        raise UnusableDataError(f"{SHIPPED}: contains no generator; install mri2pet again")
    for folder in folders:
        check_weights(folder, read_card(folder))
    return f"weights of {', '.join(folder.name for folder in folders)} match their cards"


def check_lpips() -> str:
    """Compare the weights of LPIPS, if there are any, with those published."""
    place = os.environ.get(LPIPS_VARIABLE)
    if not place or not Path(place).is_file():
        return f"${LPIPS_VARIABLE} names no file; LPIPS will be n/a"
    from bids_app.synthesis.scoring import load_lpips

    if not load_lpips(Path(place)).is_published:
        raise UnusableDataError(
            f"{place}: does not have the checksum of the published weights, so LPIPS would not be "
            "comparable; get them with mri2pet-fetch --lpips"
        )
    return f"{place} has the published checksum"


def check_machines() -> str:
    """Compare one-class SVMs with scikit-learn's; compiles them unless they are cached."""
    import numpy as np
    from sklearn.svm import OneClassSVM

    from bids_app.detection.oneclass import VoxelwiseOneClassSVM

    random = np.random.default_rng(0)
    train, test = (random.normal(size=(3, n, 8)).astype(np.float32) for n in (30, 5))
    scores = VoxelwiseOneClassSVM(nu=0.1).fit(train).decision_function(test)
    expected = [
        OneClassSVM(nu=0.1, tol=1e-6).fit(a.astype(float)).decision_function(b.astype(float))
        for a, b in zip(train, test, strict=True)
    ]
    apart = float(np.abs(scores - expected).max())
    if apart > TOLERANCE:
        raise UnusableDataError(f"one-class SVMs differ from scikit-learn's by {apart:.1e}")
    return f"differ from scikit-learn's by {apart:.0e}"


def check_participant() -> str:
    """Run ``participant --sloppy`` on a simulated subject, and compare synthetic with real PET."""
    import numpy as np

    from bids_app import nifti
    from bids_app.derivatives.paths import sidecar_path
    from bids_app.files import read_json

    with tempfile.TemporaryDirectory(prefix="mri2pet-self-test-") as folder:
        bids, out = Path(folder, "bids"), Path(folder, "out")
        _call("bids_app.simulate", str(bids), "--paired", "1", "--resolution", "3")
        _call("bids_app.cli", str(bids), str(out), "participant", "--sloppy")
        (made_pet,) = out.glob("sub-control01/pet/*_space-MNI*_desc-synth_pet.nii.gz")
        (real_pet,) = out.glob("sub-control01/pet/*_space-MNI*_desc-preproc_pet.nii.gz")
        one, other = (nifti.load(path).data.ravel() for path in (made_pet, real_pet))
        likeness = float(np.corrcoef(one, other)[0, 1])
        metadata = read_json(sidecar_path(made_pet))
        if not (
            likeness > LEAST_LIKENESS and metadata and out.joinpath("sub-control01.html").exists()
        ):
            raise UnusableDataError(
                f"the synthetic PET of a simulated subject correlates with the real one by only "
                f"{likeness:.2f}"
            )
    return f"a simulated subject's synthetic PET correlates with the real one by {likeness:.2f}"


def _run(
    *words: str, environment: dict[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    """Run Python in a new process, with the same isolation flags as this one."""
    flags = [
        f for f, on in (("-E", sys.flags.ignore_environment), ("-s", sys.flags.no_user_site)) if on
    ]
    try:
        return subprocess.run(
            [sys.executable, "-P", *flags, *words],
            capture_output=True,
            text=True,
            check=False,
            timeout=TIMEOUT,
            env=environment,
        )
    except subprocess.TimeoutExpired as error:
        raise UnusableDataError(
            f"not done after {TIMEOUT / 60:.0f} minutes; if other work keeps this machine busy, "
            "run the self-test again when it is done"
        ) from error


def _refuse_failure(name: str, run: subprocess.CompletedProcess[str]) -> None:
    if run.returncode:
        last = " ".join(run.stderr.split("\n")[-LAST_LINES - 1 :]).strip()
        raise UnusableDataError(f"{name} ended with exit code {run.returncode}: {last}")


def _call(module: str, *words: str) -> None:
    """Run one of the commands."""
    _refuse_failure(f"{module} {words[-2]}", _run("-m", module, *words))


def _threads(library: str, environment: dict[str, str]) -> int:
    """Count the threads that a library uses in an environment."""
    run = _run("-c", THREADS[library], environment=environment)
    _refuse_failure(f"starting {library}", run)
    return int(run.stdout)


def _sentence(error: Exception) -> str:
    """Describe an error in one line, with its type if it is not one of the app's errors."""
    message = " ".join(str(error).split())
    return message if isinstance(error, Mri2petError) else f"{type(error).__name__}: {message}"


CHECKS: dict[str, Check] = {
    "packages": check_packages,
    "machine": check_machine,
    "threads": check_threads,
    "generators": check_generators,
    "LPIPS": check_lpips,
    "one-class SVMs": check_machines,
    "participant": check_participant,
}


def self_test() -> int:
    """Run all checks, and print a line on each.

    Returns
    -------
    int
        0 if all checks pass, 1 otherwise.
    """
    failed = 0
    for name, check in CHECKS.items():
        try:
            word, message = "ok", check()
        except Exception as error:  # of any kind: a broken installation may raise anything
            word, message = "FAILED", _sentence(error)
            failed += 1
        sys.stdout.write(f"{word:7} {name}: {message}\n")
        sys.stdout.flush()
    sys.stdout.write(f"mri2pet {version('mri2pet')}: {failed or 'no'} checks failed\n")
    return int(failed > 0)
