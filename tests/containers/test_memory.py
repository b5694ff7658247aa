"""Runs in a control group with less memory than a step needs, as in a container or a job."""

import errno
import os
import time
from pathlib import Path

import pytest
from engines import call

from bids_app import resources

pytestmark = pytest.mark.slow
LIMIT = 800 << 20  # bytes; less than brain extraction needs, enough for all other steps


def remove(folder):
    """Remove a control group once its last process has left it."""
    for _ in range(100):
        try:
            return folder.rmdir()
        except OSError as error:
            if error.errno != errno.EBUSY:
                raise
            time.sleep(0.1)
    pytest.fail(f"{folder}: processes are left in it: {(folder / 'cgroup.procs').read_text()}")


@pytest.fixture
def group():
    """Folder of a control group with this memory limit, of version 1 or 2."""
    own = [path for path in resources.own_groups(resources.CGROUP) if path.is_dir()]
    limits = ("memory.max", "memory.limit_in_bytes")
    for parent in reversed(own):
        found = [parent / name for name in limits if (parent / name).exists()]
        if found and os.access(parent, os.W_OK):
            folder = parent / f"mri2pet-{os.getpid()}"
            try:
                folder.mkdir()
                (folder / found[0].name).write_text(str(LIMIT))
            except OSError:
                continue
            yield folder
            remove(folder)
            return
    pytest.skip("no control group with a limit of memory may be made here")


def test_a_kill_by_the_control_group_is_told_as_memory_that_ran_out(group, bids, tmp_path):
    enter = f'echo $$ > "{group}/cgroup.procs"; exec "$@"'
    words = ("mri2pet", bids, tmp_path / "out", "participant", "--sloppy", "--mem-gb", 8)
    run = call("sh", "-c", enter, "sh", *words, check=False)
    assert run.returncode == 1
    (line,) = (line for line in run.stderr.splitlines() if line.startswith("error: "))
    assert line.startswith("error: sub-control01: ")
    assert "because memory ran out; lower --nprocs, or give the run more memory" in line
    assert "Traceback" not in run.stderr
    assert Path(tmp_path / "out" / "dataset_description.json").exists()
