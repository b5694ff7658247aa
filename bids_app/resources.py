"""CPUs, memory and device that a run may use, what a step used, and where caches are kept."""

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
from bids_app.lifeline import last_act

CGROUP = Path("/sys/fs/cgroup")
OWN_CGROUP = Path("/proc/self/cgroup")
UNLIMITED = 1 << 60  # bytes; cgroup v1 says something beyond for "no limit"
GIB = 1 << 30
SHARE_OF_MEMORY = 0.9  # of what is there; our choice, nipype's too
MOST_THREADS = 8  # ITK gains little beyond; fMRIPrep's bound
THREADS_OF_JOB = 4  # at most, of a step that is a job of a queue; our choice
THREAD_VARIABLES = (
    "ITK_GLOBAL_DEFAULT_NUMBER_OF_THREADS",
    "OMP_NUM_THREADS",
    "MKL_NUM_THREADS",
    "OPENBLAS_NUM_THREADS",
    "NUMEXPR_NUM_THREADS",
    "NUMBA_NUM_THREADS",
)


@dataclass(frozen=True)
class Limits:
    """CPUs, and memory in GiB, that this process is allowed."""

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
    """List the control groups of this process, each from its root down to its own.

    Version 2 has one tree at ``root``; version 1 one for each controller, in a folder of its name.
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
) -> Limits:
    """Find what the machine, its control group and SLURM allow; the least counts.

    Parameters
    ----------
    environment : mapping
        Where SLURM says what it has granted.
    cgroup : Path
        Root of the control groups, version 1 or 2.
    listing : Path
        Where Linux says in which of them this process is.
    """
    cpus: list[float] = [len(os.sched_getaffinity(0))]
    groups = own_groups(cgroup, listing)
    cpus += [max(quota, 1) for quota in map(_cgroup_cpus, groups) if quota is not None]
    if environment.get("SLURM_CPUS_PER_TASK", "").isdecimal():
        cpus.append(int(environment["SLURM_CPUS_PER_TASK"]))
    count = max(int(min(cpus)), 1)
    memory = [os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")]
    memory += [m for m in (*map(_cgroup_memory, groups), _slurm_memory(environment, count)) if m]
    return Limits(count, round(min(memory) * SHARE_OF_MEMORY / GIB, 1))


def threads_per_node(nprocs: int, visits: int) -> int:
    """Share CPUs among visits: several visits at once beat several threads for one.

    Examples
    --------
    >>> threads_per_node(8, visits=1), threads_per_node(8, visits=3), threads_per_node(2, visits=9)
    (8, 2, 1)
    """
    return max(1, min(nprocs // max(visits, 1), MOST_THREADS))


def threads_of_job() -> int:
    """Choose the threads of a step that is a job of a queue.

    Its node is not known; it is taken to have as many CPUs as this machine, however few of them
    this process may use. No node could ever run a job that wants more than it has.
    """
    return min(os.cpu_count() or 1, THREADS_OF_JOB)


def limit_threads(environment: MutableMapping[str, str], threads: int) -> None:
    """Say in an environment how many threads ITK, OpenMP, BLAS and numba may start."""
    environment.update(dict.fromkeys(THREAD_VARIABLES, str(threads)))


BASELINE = "x86-64-v3"  # AVX2 and FMA: nearly all CPUs since 2013
OF_BASELINE = frozenset({"avx2", "bmi1", "bmi2", "f16c", "fma", "abm", "movbe"})
NUMBA_CPU = "NUMBA_CPU_NAME", "NUMBA_CPU_FEATURES"


def compile_for_all(
    environment: MutableMapping[str, str], cpuinfo: Path = Path("/proc/cpuinfo")
) -> None:
    """Let numba compile for all CPUs with AVX2, if this is one, and not for this one alone.

    Machine code that an image brings is then valid where it runs, and numbers are the same there.
    It is as fast as code for an AVX-512 CPU alone (docs/results/performance.md). Nothing is changed
    where the environment says already what numba is to compile for. Has to be called before numba
    is imported.
    """
    found = re.search(r"^flags\s*:(.*)$", _read(cpuinfo) or "", re.MULTILINE)
    if found and set(found[1].split()) >= OF_BASELINE and not any(map(environment.get, NUMBA_CPU)):
        environment.update(zip(NUMBA_CPU, (BASELINE, ""), strict=True))


def _torch_uses_cuda() -> bool:
    """Read from torch's own files whether it was built with CUDA; to load it takes seconds."""
    spec = find_spec("torch")
    if spec is None or spec.origin is None:
        return False
    version_text = _read(Path(spec.origin).with_name("version.py")) or ""
    return re.search(r"^cuda\b.*=\s*['\"]", version_text, re.MULTILINE) is not None


def choose_device(device: str) -> str:
    """Name the torch device of a run; torch is not loaded for it.

    ``auto`` is the first NVIDIA GPU if its driver says that there is one and torch was built
    with CUDA, else the CPU.

    Raises
    ------
    UsageError
        If CUDA is asked for, and torch was built without.
    """
    if device == "cpu":
        return device
    if not _torch_uses_cuda():
        if device == "auto":
            return "cpu"
        raise UsageError(
            f"--device {device}: PyTorch is installed without CUDA; install its build with CUDA, "
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
    """Say on which disk a folder is, or would be made, and how many bytes are free there.

    Returns
    -------
    tuple
        Number of the disk, and bytes.
    """
    existing = next(place for place in (folder, *folder.absolute().parents) if place.exists())
    return existing.stat().st_dev, shutil.disk_usage(existing).free


SAMPLING = 0.5  # s between two looks at the memory of a step's programs; our choice
OWN_STATUS, CLEAR_REFS = Path("/proc/self/status"), Path("/proc/self/clear_refs")


@contextmanager
def measured() -> Iterator[dict[str, float]]:
    """Measure what this process uses in the block; nothing else may work in it meanwhile.

    The kernel is asked for the peak of the process itself, and told to forget the one before
    (proc(5): VmHWM, clear_refs), since compiled code that holds Python's lock keeps a thread from
    looking. Where it does not forget, and for the programs that the process has begun, a thread
    looks every ``SAMPLING``.

    Yields
    ------
    dict
        Behind the block: ``wall_seconds``, ``cpu_seconds`` of all threads and of programs that
        have ended, ``peak_rss_gb`` in GiB.
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
    """Have the kernel count the peak of this process anew; tell whether it does."""
    try:
        CLEAR_REFS.write_text("5")
    except OSError:  # not Linux, or a sandbox
        return False
    return True


def _peak() -> int:
    found = re.search(r"^VmHWM:\s*(\d+) kB", _read(OWN_STATUS) or "", re.MULTILINE)
    return int(found[1]) << 10 if found else 0


def _resident(process: psutil.Process) -> int:
    """Add up the memory of a process and of all that it has begun, in bytes."""
    total = 0
    with suppress(psutil.Error):
        for member in (process, *process.children(recursive=True)):
            with suppress(psutil.Error):  # it has just ended
                total += member.memory_info().rss
    return total


VARIABLES = ("MPLCONFIGDIR", "NIPYPE_CONFIG_DIR", "NUMBA_CACHE_DIR")  # without: below HOME


def is_writable(folder: Path) -> bool:
    """Tell whether a file can be made in a folder."""
    try:
        with tempfile.TemporaryFile(dir=folder):
            return True
    except OSError:
        return False


@contextmanager
def settled(environment: MutableMapping[str, str]) -> Iterator[Path | None]:
    """Give libraries places that can be written to, for as long as this lasts.

    A container brings its caches filled, but read-only; numba and matplotlib then do without
    them, and take seconds in each process. So they get copies, in a temporary folder. Places that
    can be written to stay.

    Parameters
    ----------
    environment : mapping
        What this process and those it starts read; is changed, and changed back.

    Yields
    ------
    Path or None
        The temporary folder, None where none was needed.
    """
    home = environment.get("HOME") or os.devnull  # no folder
    places = {name: Path(environment.get(name) or home) for name in VARIABLES}
    barred = {name: place for name, place in places.items() if not is_writable(place)}
    if Path(home).is_dir() and not os.access(home, os.R_OK | os.X_OK):  # pybids looks into it
        barred["HOME"] = Path(home)
    if not barred:
        yield None
        return
    before = {name: environment.get(name) for name in barred}
    with (
        tempfile.TemporaryDirectory(prefix="mri2pet-", ignore_cleanup_errors=True) as root,
        last_act(partial(shutil.rmtree, root, ignore_errors=True)),
    ):
        for name, place in barred.items():
            replacement = Path(root) / name.lower()
            replacement.mkdir()
            if environment.get(name) and name != "HOME":
                _copy(place, replacement)
            environment[name] = str(replacement)
        try:
            yield Path(root)
        finally:
            for name, value in before.items():
                if value is None:
                    environment.pop(name, None)
                else:
                    environment[name] = value


def _copy(place: Path, target: Path) -> None:
    """Copy what a place holds, as far as it can be read; without it, work is only slower."""
    with suppress(OSError):  # shutil.Error is one
        shutil.copytree(place, target, dirs_exist_ok=True, copy_function=shutil.copyfile)
