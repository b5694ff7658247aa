"""Runs on a real one-node SLURM: same results as on one machine, and cancellation of a job."""

import os
import re
import shutil
import subprocess
import time
from pathlib import Path

import numpy as np
import pytest
from cohorts import tell, write_controls, write_native, write_screened
from engines import PROJECT, TOOLS, call

pytestmark = pytest.mark.slow
STAMPED = (".h5", ".html")  # files that contain the time at which they were written
PARTICIPANT = ("participant", "--sloppy", "--omp-nthreads", "1")


@pytest.fixture(scope="module")
def slurm(tmp_path_factory):
    """Environment in which sbatch works; the cluster is started, and stopped at the end."""
    if shutil.which("sbatch") is None or shutil.which("slurmctld") is None:
        pytest.skip("SLURM is not installed")
    if os.geteuid() != 0 or not (TOOLS / "slurm" / "up.sh").is_file():
        pytest.skip("no script that starts SLURM, or not root; name its folder in MRI2PET_TOOLS")
    folder = Path("/tmp/mri2pet-slurm")
    environment = {**os.environ, "SLURM_CONF": str(folder / "slurm.conf"), "LOGNAME": "root"}
    running = call("sinfo", "-h", env=environment, check=False).returncode == 0
    if not running:
        with (tmp_path_factory.mktemp("slurm") / "log").open(
            "w"
        ) as log:  # its daemons keep the file open
            subprocess.run(["bash", TOOLS / "slurm" / "up.sh"], stdout=log, stderr=log, check=True)
    yield environment
    if not running:
        call("bash", TOOLS / "slurm" / "down.sh", check=False)


@pytest.fixture(scope="module")
def bids(tmp_path_factory):
    folder = tmp_path_factory.mktemp("cohort") / "bids"
    call("mri2pet-simulate", folder, "--paired", 2, "--resolution", 4, "--seed", 3)
    return folder


@pytest.fixture(scope="module")
def alone(bids, tmp_path_factory):
    """Results of a run on one machine without SLURM."""
    out = tmp_path_factory.mktemp("alone") / "out"
    call("mri2pet", bids, out, *PARTICIPANT)
    return out


def contents(out):
    """Return the bytes of each file, or None if it contains a time."""
    paths = [
        p
        for p in out.rglob("*")
        if p.is_file() and p.relative_to(out).parts[0] not in (".work", "logs")
    ]
    return {
        str(path.relative_to(out)): None if path.suffix in STAMPED else path.read_bytes()
        for path in paths
    }


def test_steps_as_jobs_give_the_same_files(slurm, bids, alone, tmp_path):
    out = tmp_path / "out"
    plugin = PROJECT / "containers" / "slurm.yaml"
    call("mri2pet", bids, out, *PARTICIPANT, "--use-plugin", plugin, env=slurm)
    assert contents(out) == contents(alone)


def submit(slurm, tasks, bids, out, *options, wait=()):
    """Submit the array job; the logs of its tasks are written next to their output folder."""
    script, logs = PROJECT / "containers" / "slurm-array.sh", out.parent
    return call(
        "sbatch",
        *wait,
        "--parsable",
        f"--array={tasks}",
        "--cpus-per-task=1",
        "--mem=4G",
        f"--output={logs}/%A_%a.log",
        script,
        bids,
        out,
        *PARTICIPANT[1:],
        *options,
        env={**slurm, "COMMAND": "mri2pet"},
        check=False,
    )


def test_an_array_job_gives_the_same_files(slurm, bids, alone, tmp_path):
    out = tmp_path / "out"
    job = submit(slurm, "1-2", bids, out, wait=["--wait"])
    assert job.returncode == 0, "".join(log.read_text() for log in tmp_path.glob("*.log"))
    assert contents(out) == contents(alone)


def test_a_task_that_was_killed_goes_on_when_it_is_submitted_again(slurm, bids, alone, tmp_path):
    out = tmp_path / "out"
    first = submit(slurm, "1", bids, out).stdout.strip()
    begun = []
    while not begun and call("squeue", "-h", "-j", first, env=slurm, check=False).stdout:
        time.sleep(0.2)
        begun = list((out / ".work").glob("*/mri2pet/**/register_to_template"))
    call("scancel", first, env=slurm)
    while call("squeue", "-h", "-j", first, env=slurm, check=False).stdout:
        time.sleep(0.2)
    assert begun
    assert not list(out.glob("sub-*/pet/*"))
    job = submit(slurm, "1-2", bids, out, "-vv", wait=["--wait"])
    said = next(tmp_path.glob(f"{job.stdout.strip()}_1.log")).read_text()
    assert job.returncode == 0, said
    assert "Cached" in said
    assert contents(out) == contents(alone)
    assert not begun[0].exists()


def test_a_job_that_is_cancelled_is_told_and_another_run_finishes(slurm, bids, alone, tmp_path):
    out = tmp_path / "out"
    words = [
        "mri2pet",
        str(bids),
        str(out),
        *PARTICIPANT,
        "--use-plugin",
        str(PROJECT / "containers" / "slurm.yaml"),
    ]
    with subprocess.Popen(
        words, env=slurm, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as run:
        wanted = re.compile(r"^(\d+) \S*register_to_template\S* R", re.MULTILINE)
        found = None
        while found is None and run.poll() is None:
            time.sleep(0.2)
            found = wanted.search(call("squeue", "-h", "-o", "%i %j %t", env=slurm).stdout)
        assert found, run.communicate()
        call("scancel", found[1], env=slurm)
        said = run.communicate()[1]
    assert run.returncode == 1
    (line,) = (line for line in said.splitlines() if f"job {found[1]} ended" in line)
    assert "register_to_template" in line
    assert "CANCELLED" in line
    call(*words, env=slurm)
    assert contents(out) == contents(alone)


@pytest.fixture(scope="module")
def screened(tmp_path_factory):
    """Derivatives of four controls and a patient, simulated rather than registered."""
    out, rng = tmp_path_factory.mktemp("group") / "out", np.random.default_rng(5)
    groups = {**dict.fromkeys(("c1", "c2", "c3", "c4"), "control"), "p1": "patient"}
    write_controls(out, [], rng)
    for label, group in groups.items():
        paths = write_screened(out, label, rng, lesion=group == "patient")
    write_native(paths, flipped=False)
    tell(out, groups)
    return out


def test_the_group_level_as_jobs_gives_the_same_files(slurm, screened, tmp_path):
    words = (
        "group",
        "--sloppy",
        "--folds",
        "2",
        "--omp-nthreads",
        "1",
        "--detectors",
        "ocsvm",
        "zscore",
    )
    found = []
    for plugin in ((), ("--use-plugin", PROJECT / "containers" / "slurm.yaml")):
        folder = tmp_path / str(len(found))
        folder.mkdir()
        (folder / "raw").symlink_to(screened.parent / "raw")
        out = shutil.copytree(screened, folder / "out")
        call("mri2pet", folder / "raw", out, *words, *plugin, env=slurm)
        found.append(contents(out))
    alone, jobs = found
    assert alone.keys() == jobs.keys()
    assert any(name.endswith("stat-t_desc-ocsvm_statmap.nii.gz") for name in alone)
    assert [name for name in alone if alone[name] != jobs[name] and not told_of_run(name)] == []


def told_of_run(name):
    """Return whether a file records when it was made, or by which command."""
    return name.endswith(("card.json", "dataset_description.json"))
