import os
import subprocess
import sys
from importlib.util import spec_from_file_location

import pytest

from bids_app import resources
from bids_app.errors import UsageError
from bids_app.resources import (
    THREAD_VARIABLES,
    choose_device,
    find_limits,
    limit_threads,
    threads_of_job,
    threads_per_node,
)

GIB = 1 << 30


@pytest.fixture(autouse=True)
def machine(monkeypatch):
    """Machine with 16 CPUs and 64 GiB."""
    pages = {"SC_PAGE_SIZE": 4096, "SC_PHYS_PAGES": 64 * GIB // 4096}
    monkeypatch.setattr(os, "sched_getaffinity", lambda _process: set(range(16)))
    monkeypatch.setattr(os, "sysconf", pages.__getitem__)


@pytest.fixture
def cgroup(tmp_path):
    """Write the files of a control group; return its root."""

    def write(**files):
        for name, text in files.items():
            path = tmp_path / name.replace("__", "/").replace("_dot_", ".")
            path.parent.mkdir(exist_ok=True)
            path.write_text(text + "\n")
        return tmp_path

    return write


def limits(environment, root):
    found = find_limits(environment, root)
    return found.cpus, found.mem_gb


def test_a_machine_without_control_groups_is_all_ours(tmp_path):
    assert limits({}, tmp_path) == (16, 57.6)  # nine tenths of 64 GiB


@pytest.mark.parametrize(
    ("cpu", "memory", "expected"),
    [
        ("400000 100000", str(10 * GIB), (4, 9.0)),
        ("250000 100000", "max", (2, 57.6)),
        ("50000 100000", str(20 * GIB), (1, 18.0)),
        ("max 100000", str(128 * GIB), (16, 57.6)),
    ],
)
def test_control_groups_of_version_2(cgroup, cpu, memory, expected):
    assert limits({}, cgroup(cpu_dot_max=cpu, memory_dot_max=memory)) == expected


@pytest.mark.parametrize(
    ("quota", "memory", "expected"),
    [("300000", str(8 * GIB), (3, 7.2)), ("-1", str(0x7FFFFFFFFFFFF000), (16, 57.6))],
)
def test_control_groups_of_version_1(cgroup, quota, memory, expected):
    root = cgroup(
        cpu__cpu_dot_cfs_quota_us=quota,
        cpu__cpu_dot_cfs_period_us="100000",
        memory__memory_dot_limit_in_bytes=memory,
    )
    assert limits({}, root) == expected


@pytest.mark.parametrize(
    ("listing", "cpu", "memory"),
    [
        ("0::/job/step", "job/cpu.max", "job/step/memory.max"),
        (
            "5:cpu,cpuacct:/job\n4:memory:/job/step\n0::/",
            "cpu/job/cpu.cfs_quota_us",
            "memory/job/step/memory.limit_in_bytes",
        ),
    ],
)
def test_a_group_within_another_counts(tmp_path, listing, cpu, memory):
    """A SLURM job is in a group below the root, and Apptainer leaves it there."""
    for name, text in ((cpu, "200000 100000"), (memory, str(3 * GIB))):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    if "quota" in cpu:
        (tmp_path / cpu).write_text("200000")
        (tmp_path / cpu).with_name("cpu.cfs_period_us").write_text("100000")
    (tmp_path / "own").write_text(listing + "\n")
    found = find_limits({}, tmp_path, tmp_path / "own")
    assert (found.cpus, found.mem_gb) == (2, 2.7)


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({"SLURM_CPUS_PER_TASK": "4", "SLURM_MEM_PER_NODE": "10240"}, (4, 9.0)),
        ({"SLURM_CPUS_PER_TASK": "4", "SLURM_MEM_PER_CPU": "2048"}, (4, 7.2)),
        ({"SLURM_CPUS_PER_TASK": "all", "SLURM_MEM_PER_NODE": ""}, (16, 57.6)),
        ({"SLURM_CPUS_PER_TASK": "99", "SLURM_MEM_PER_NODE": "9999999"}, (16, 57.6)),
    ],
)
def test_slurm_says_what_it_has_granted(tmp_path, environment, expected):
    assert limits(environment, tmp_path) == expected


def test_the_least_counts(cgroup):
    root = cgroup(cpu_dot_max="800000 100000", memory_dot_max=str(20 * GIB))
    environment = {"SLURM_CPUS_PER_TASK": "5", "SLURM_MEM_PER_NODE": str(40 * 1024)}
    assert limits(environment, root) == (5, 18.0)


@pytest.mark.parametrize(
    ("nprocs", "visits", "expected"),
    [(1, 1, 1), (4, 1, 4), (4, 2, 2), (4, 3, 1), (2, 100, 1), (64, 1, 8), (64, 4, 8), (5, 0, 5)],
)
def test_cpus_are_shared_among_visits(nprocs, visits, expected):
    assert threads_per_node(nprocs, visits) == expected


@pytest.mark.parametrize(("cpus", "expected"), [(1, 1), (2, 2), (4, 4), (128, 4), (None, 1)])
def test_a_job_wants_no_more_than_a_machine_like_this_has(monkeypatch, cpus, expected):
    monkeypatch.setattr(os, "cpu_count", lambda: cpus)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _process: {0})  # of the waiting run
    assert threads_of_job() == expected


def test_all_libraries_are_told_how_many_threads_they_may_start():
    environment = {"HOME": "/root", "OMP_NUM_THREADS": "64"}
    limit_threads(environment, 3)
    assert environment == {"HOME": "/root", **dict.fromkeys(THREAD_VARIABLES, "3")}
    assert {"ITK_GLOBAL_DEFAULT_NUMBER_OF_THREADS", "OMP_NUM_THREADS"} < set(THREAD_VARIABLES)


@pytest.fixture
def driver(tmp_path, monkeypatch):
    """Put an nvidia-smi on the path that prints and returns given values."""

    def install(says, code=0):
        program = tmp_path / "nvidia-smi"
        program.write_text(f"#!/bin/sh\n[ \"$1\" = -L ] && echo '{says}'\nexit {code}\n")
        program.chmod(0o755)

    monkeypatch.setattr(resources.shutil, "which", lambda name: _which(tmp_path / name))
    return install


def _which(path):
    return str(path) if path.exists() else None


@pytest.fixture
def torch_of(tmp_path, monkeypatch):
    """Put a torch on the path that was built with this CUDA version, or without CUDA."""

    def install(cuda):
        folder = tmp_path / "site" / "torch"
        folder.mkdir(parents=True)
        (folder / "__init__.py").write_text("raise RuntimeError('loaded')\n")
        (folder / "version.py").write_text(f"cuda: Optional[str] = {cuda!r}\nhip = 'x'\n")
        spec = spec_from_file_location("torch", folder / "__init__.py")
        monkeypatch.setattr(resources, "find_spec", {"torch": spec}.get)

    return install


@pytest.mark.parametrize("wanted", ["cpu", "cuda", "cuda:3"])
def test_a_device_that_is_named_is_taken(driver, torch_of, wanted):
    torch_of("13.0")
    driver("GPU 0: NVIDIA A100")
    assert choose_device(wanted) == wanted


def test_without_a_driver_it_is_the_cpu(driver, torch_of):
    torch_of("13.0")
    assert choose_device("auto") == "cpu"


@pytest.mark.parametrize(
    ("says", "code", "expected"),
    [
        ("GPU 0: NVIDIA A100 (UUID: GPU-1)", 0, "cuda:0"),
        ("No devices were found", 0, "cpu"),
        ("GPU 0: lost", 9, "cpu"),
    ],
)
def test_the_driver_says_whether_there_is_a_gpu(driver, torch_of, says, code, expected):
    torch_of("13.0")
    driver(says, code)
    assert choose_device("auto") == expected


def test_torch_without_cuda_computes_on_the_cpu_though_there_is_a_gpu(driver, torch_of):
    """The README says that torch for CPUs is sufficient, also on a machine with a GPU."""
    torch_of(None)
    driver("GPU 0: NVIDIA A100")
    assert choose_device("auto") == "cpu"
    assert choose_device("cpu") == "cpu"
    with pytest.raises(UsageError, match="--device cuda:1: PyTorch is installed without CUDA"):
        choose_device("cuda:1")


def test_what_is_read_of_torch_is_what_torch_says():
    torch = pytest.importorskip("torch")
    assert resources._torch_uses_cuda() == (torch.version.cuda is not None)


@pytest.mark.parametrize(
    ("flags", "environment", "changed"),
    [
        ("fpu sse2 avx avx2 bmi1 bmi2 f16c fma abm movbe avx512f", {}, True),
        ("fpu sse2 avx", {}, False),
        ("", {}, False),
        ("avx2 bmi1 bmi2 f16c fma abm movbe", {"NUMBA_CPU_NAME": "host"}, False),
    ],
)
def test_numba_compiles_for_all_cpus_like_this_one(tmp_path, flags, environment, changed):
    cpuinfo = tmp_path / "cpuinfo"
    cpuinfo.write_text(f"processor\t: 0\nflags\t\t: {flags}\nbugs\t\t: none\n")
    now = dict(environment)
    resources.compile_for_all(now, cpuinfo)
    expected = {"NUMBA_CPU_NAME": "x86-64-v3", "NUMBA_CPU_FEATURES": ""} if changed else environment
    assert now == expected


@pytest.mark.parametrize(
    ("environment", "cache"),
    [
        ({"HOME": "/home/a"}, "/home/a/.cache/mri2pet/numba"),
        ({"HOME": "/home/a", "XDG_CACHE_HOME": "/scratch"}, "/scratch/mri2pet/numba"),
        ({"HOME": "/home/a", "NUMBA_CACHE_DIR": "/own"}, "/own"),
        ({}, None),
    ],
)
def test_machine_code_is_kept_in_the_cache_of_the_user(environment, cache):
    resources.keep_code_below_home(environment)
    assert environment.get("NUMBA_CACHE_DIR") == cache


def test_numba_is_told_before_it_is_imported():
    code = (
        "import os; import bids_app.detection.smo; from numba import config;"
        "print(config.CPU_NAME == os.environ.get('NUMBA_CPU_NAME'), config.CPU_FEATURES)"
    )
    environment = {k: v for k, v in os.environ.items() if not k.startswith("NUMBA_CPU")}
    said = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True
    )
    assert said.stdout.split()[0] == "True"
