"""CPUs, memory and device available to a run, resource usage of steps, and folders for caches."""

import os
import re
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator, Mapping, MutableMapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from threading import Event, Thread

import psutil

from bids_app.errors import UsageError
from bids_app.lifeline import call_on_signal, restored

CGROUP = Path("/sys/fs/cgroup")
OWN_CGROUP = Path("/proc/self/cgroup")
UNLIMITED = 1 << 60  # bytes; cgroup v1 uses a larger number for "no limit"
GIB = 1 << 30
SHARE_OF_MEMORY = 0.9  # of the memory available; our choice, as in nipype
MOST_THREADS = 8  # as in fMRIPrep; ITK gains little beyond
THREADS_OF_JOB = 4  # at most, for a step submitted to a queue; our choice
THREAD_VARIABLES = (
    "ITK_GLOBAL_DEFAULT_NUMBER_OF_THREADS",
    "OMP_NUM_THREADS",
    "MKL_NUM_THREADS",
    "OPENBLAS_NUM_THREADS",
    "NUMEXPR_NUM_THREADS",
    "NUMBA_NUM_THREADS",
)


@dataclass(frozen=True)
class Resources:
    """Number of CPUs, and memory in GiB, that this process or a run may use on this machine."""

    cpus: int
    mem_gb: float


def _read(path: Path) -> str | None:
    try:
        return path.read_text().strip()
    except OSError:
        return None


def _cgroup_cpus(group: Path) -> float | None:
    line = _read(group / "cpu.max")
    if line is None:  # version 1
        names = ("cpu.cfs_quota_us", "cpu.cfs_period_us")
        line = " ".join(f"{_read(group / name)}" for name in names)
    quota, period = line.split()
    if not (quota.isdecimal() and period.isdecimal()):  # "max", -1, or no such file
        return None
    return int(quota) / int(period)


def _cgroup_memory(group: Path) -> int | None:
    for name in ("memory.max", "memory.limit_in_bytes"):
        line = _read(group / name)
        if line is not None and line != "max" and int(line) < UNLIMITED:
            return int(line)
    return None


def own_groups(root: Path, listing: Path = OWN_CGROUP) -> list[Path]:
    """List the control groups of this process, each hierarchy from its root down to its own group.

    Version 2 has one hierarchy at ``root``; version 1 has one per controller, in a folder of its
    name.
    """
    paths = {"": "/", "cpu": "/", "memory": "/"}
    for line in (_read(listing) or "").splitlines():
        _, controllers, path = line.split(":", 2)
        paths |= dict.fromkeys(paths.keys() & set(controllers.split(",")), path)
    groups = []
    for controller, path in paths.items():
        groups.append(root / controller)
        for part in Path(path).parts[1:]:
            groups.append(groups[-1] / part)
    return groups


def _slurm_memory(environment: Mapping[str, str], cpus: int) -> int | None:
    if environment.get("SLURM_MEM_PER_NODE", "").isdecimal():
        return int(environment["SLURM_MEM_PER_NODE"]) << 20
    if environment.get("SLURM_MEM_PER_CPU", "").isdecimal():
        return (int(environment["SLURM_MEM_PER_CPU"]) << 20) * cpus
    return None


def find_limits(
    environment: Mapping[str, str], cgroup: Path = CGROUP, listing: Path = OWN_CGROUP
) -> Resources:
    """Find the smallest limits set by the machine, its control groups and SLURM.

    Parameters
    ----------
    environment : mapping
        Environment variables, which hold SLURM's limits.
    cgroup : Path
        Root of the control groups, version 1 or 2.
    listing : Path
        File in which Linux lists the groups of this process.

    Returns
    -------
    Resources
        CPUs, and nine tenths of the memory.
    """
    cpus: list[float] = [len(os.sched_getaffinity(0))]
    groups = own_groups(cgroup, listing)
    cpus += [max(quota, 1) for quota in map(_cgroup_cpus, groups) if quota is not None]
    if environment.get("SLURM_CPUS_PER_TASK", "").isdecimal():
        cpus.append(int(environment["SLURM_CPUS_PER_TASK"]))
    count = max(int(min(cpus)), 1)
    memory = [os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")]
    memory += [m for m in (*map(_cgroup_memory, groups), _slurm_memory(environment, count)) if m]
    return Resources(count, round(min(memory) * SHARE_OF_MEMORY / GIB, 1))


def threads_per_node(nprocs: int, visits: int) -> int:
    """Share CPUs among visits, because visits in parallel are faster than threads within one.

    Examples
    --------
    >>> threads_per_node(8, visits=1), threads_per_node(8, visits=3), threads_per_node(2, visits=9)
    (8, 2, 1)
    """
    return max(1, min(nprocs // max(visits, 1), MOST_THREADS))


def threads_of_job() -> int:
    """Choose the number of threads for a step that is submitted to a queue.

    Its node is unknown, and is assumed to have as many CPUs as this machine, however few of them
    this process may use. A job that requests more than any node has would never run.
    """
    return min(os.cpu_count() or 1, THREADS_OF_JOB)


def limit_threads(environment: MutableMapping[str, str], threads: int) -> None:
    """Set the number of threads for ITK, OpenMP, BLAS and numba in an environment."""
    environment.update(dict.fromkeys(THREAD_VARIABLES, str(threads)))


BASELINE = "x86-64-v3"  # AVX2 and FMA: nearly all CPUs since 2013
OF_BASELINE = frozenset({"avx2", "bmi1", "bmi2", "f16c", "fma", "abm", "movbe"})
NUMBA_CPU = "NUMBA_CPU_NAME", "NUMBA_CPU_FEATURES"


def compile_for_all(
    environment: MutableMapping[str, str], cpuinfo: Path = Path("/proc/cpuinfo")
) -> None:
    """Make numba compile for any CPU with AVX2, rather than for this CPU alone, if it has AVX2.

    The compiled code in a container image is then valid on the machine that runs it, and gives the
    same numbers. It is as fast as code specific to an AVX-512 CPU (docs/results/performance.md).
    Nothing changes if the environment already sets numba's target. Call this before numba is
    imported.
    """
    found = re.search(r"^flags\s*:(.*)$", _read(cpuinfo) or "", re.MULTILINE)
    if found and set(found[1].split()) >= OF_BASELINE and not any(map(environment.get, NUMBA_CPU)):
        environment.update(zip(NUMBA_CPU, (BASELINE, ""), strict=True))


def keep_code_below_home(environment: MutableMapping[str, str]) -> None:
    """Make numba keep machine code in the user's cache rather than beside the package.

    There, it would outlive an uninstalled package, and hide one that is installed with ``pip
    install --editable`` afterwards. Nothing changes if the environment already sets numba's cache,
    or has no home directory. Call this before numba is imported.
    """
    cache = environment.get("XDG_CACHE_HOME", "")
    if not cache and environment.get("HOME"):
        cache = f"{environment['HOME']}/.cache"
    if cache:
        environment.setdefault("NUMBA_CACHE_DIR", f"{cache}/mri2pet/numba")


def _torch_uses_cuda() -> bool:
    """Check from torch's files whether it was built with CUDA, as importing it takes seconds."""
    spec = find_spec("torch")
    if spec is None or spec.origin is None:
        return False
    version_text = _read(Path(spec.origin).with_name("version.py")) or ""
    return re.search(r"^cuda\b.*=\s*['\"]", version_text, re.MULTILINE) is not None


DEVICE = re.compile(r"auto|cpu|cuda(:\d+)?")


def choose_device(device: str) -> str:
    """Choose the torch device of a run without importing torch.

    ``auto`` means the first NVIDIA GPU if the driver finds one and torch was built with CUDA,
    otherwise the CPU.

    Raises
    ------
    UsageError
        If there is no such device, or CUDA is requested, but torch was built without it.
    """
    if device == "cpu":
        return device
    if not DEVICE.fullmatch(device):
        raise UsageError(f"--device {device}: use auto, cpu, cuda or cuda:N")
    if not _torch_uses_cuda():
        if device == "auto":
            return "cpu"
        raise UsageError(
            f"--device {device}: PyTorch is installed without CUDA; install a build with CUDA, "
            "or leave --device out"
        )
    if device != "auto":
        return device
    driver = shutil.which("nvidia-smi")
    if driver is None:
        return "cpu"
    found = subprocess.run([driver, "-L"], capture_output=True, text=True, check=False)
    return "cuda:0" if found.returncode == 0 and "GPU 0" in found.stdout else "cpu"


def find_space(folder: Path) -> tuple[int, int]:
    """Find the disk of a folder, which need not exist yet, and the free space there.

    Returns
    -------
    tuple
        Device number of the disk, and free space in bytes.
    """
    existing = next(place for place in (folder, *folder.absolute().parents) if place.exists())
    return existing.stat().st_dev, shutil.disk_usage(existing).free


SAMPLING = 0.5  # s between measurements of the memory of a step's programs; our choice
OWN_STATUS, CLEAR_REFS = Path("/proc/self/status"), Path("/proc/self/clear_refs")


@contextmanager
def measured() -> Iterator[dict[str, float]]:
    """Measure the resources that this process uses in the block; it may do nothing else meanwhile.

    The peak memory of the process itself comes from the kernel, after resetting the previous peak
    (proc(5): VmHWM, clear_refs), because compiled code that holds Python's lock would block a
    sampling thread. If the peak cannot be reset, and for child processes, a thread samples the
    memory every ``SAMPLING`` seconds.

    Yields
    ------
    dict
        Filled when the block ends: ``wall_seconds``, ``cpu_seconds`` of all threads and of child
        processes that have ended, ``peak_rss_gb`` in GiB.
    """
    used: dict[str, float] = {}
    process, ended, seen = psutil.Process(), Event(), [0]

    def look() -> None:
        while True:
            seen.append(max(seen.pop(), _resident(process)))
            if ended.wait(SAMPLING):
                return

    forgets = _forget_peak()
    thread = Thread(target=look, daemon=True)
    began, before = time.monotonic(), sum(os.times()[:4])
    thread.start()
    try:
        yield used
    finally:
        used["wall_seconds"] = time.monotonic() - began
        used["cpu_seconds"] = sum(os.times()[:4]) - before
        ended.set()
        thread.join()
        used["peak_rss_gb"] = max(seen[0], _peak() if forgets else 0) / GIB


def _forget_peak() -> bool:
    """Reset the kernel's record of this process's peak memory, and return whether that worked."""
    try:
        CLEAR_REFS.write_text("5")
    except OSError:  # not Linux, or a sandbox
        return False
    return True


def _peak() -> int:
    found = re.search(r"^VmHWM:\s*(\d+) kB", _read(OWN_STATUS) or "", re.MULTILINE)
    return int(found[1]) << 10 if found else 0


def _resident(process: psutil.Process) -> int:
    """Return the memory of a process and all its descendants, in bytes."""
    total = 0
    with suppress(psutil.Error):
        for member in (process, *process.children(recursive=True)):
            with suppress(psutil.Error):  # it has just ended
                total += member.memory_info().rss
    return total


VARIABLES = ("MPLCONFIGDIR", "NUMBA_CACHE_DIR")  # by default, below HOME
# Where a user's nipype.cfg and matplotlibrc lie
CONFIGURATIONS = ("NIPYPE_CONFIG_DIR", "MATPLOTLIBRC")


def is_writable(folder: Path) -> bool:
    """Check whether a file can be created in a folder."""
    try:
        with tempfile.TemporaryFile(dir=folder):
            return True
    except OSError:
        return False


@contextmanager
def writable_caches(environment: MutableMapping[str, str]) -> Iterator[Path | None]:
    """Provide libraries with writable folders until the block ends.

    In a container, caches are filled but read-only; numba and matplotlib then do not use them, and
    take seconds longer in each process. They are given copies in a temporary folder instead.
    Writable folders are left as they are. A user's ``nipype.cfg`` and ``matplotlibrc`` are hidden,
    because their settings decide which steps are repeated, change the locale, and may end a run.

    Parameters
    ----------
    environment : mapping
        Environment of this process and its children; changed, and restored at the end.

    Yields
    ------
    Path or None
        Temporary folder; None if none was needed.
    """
    home = environment.get("HOME") or os.devnull  # not a folder
    places = {name: Path(environment.get(name) or home) for name in VARIABLES}
    # Libraries create their folders below HOME when they need them
    owners = {
        name: Path(home) if place.is_relative_to(home) and not place.exists() else place
        for name, place in places.items()
    }
    barred = {name: place for name, place in places.items() if not is_writable(owners[name])}
    if Path(home).is_dir() and not os.access(home, os.R_OK | os.X_OK):  # pybids reads it
        barred["HOME"] = Path(home)
    with restored(environment, [*CONFIGURATIONS, *barred]):
        environment.update(dict.fromkeys(CONFIGURATIONS, os.devnull))
        if not barred:
            yield None
            return
        with (
            tempfile.TemporaryDirectory(prefix="mri2pet-", ignore_cleanup_errors=True) as root,
            call_on_signal(partial(shutil.rmtree, root, ignore_errors=True)),
        ):
            for name, place in barred.items():
                replacement = Path(root) / name.lower()
                replacement.mkdir()
                if environment.get(name) and name != "HOME":
                    _copy(place, replacement)
                environment[name] = str(replacement)
            yield Path(root)


def _copy(place: Path, target: Path) -> None:
    """Copy the readable content of a folder; without it, work is only slower."""
    with suppress(OSError):  # includes shutil.Error
        shutil.copytree(place, target, dirs_exist_ok=True, copy_function=shutil.copyfile)
