"""Claims: two runs never work on the same visit at once, but may share a folder otherwise."""

import errno
import fcntl
import os
import signal
import socket
import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import pytest
from cohorts import tell, write_controls, write_screened
from phantoms import add_t1w

from bids_app.app import group as group_level
from bids_app.app.run import RELEASE, hold
from bids_app.claims import FOLDER, claimed
from bids_app.cli import main
from bids_app.console import Console
from bids_app.derivatives.description import RunRecord
from bids_app.errors import CannotCreateError
from bids_app.files import remove_partials
from bids_app.settings import Settings

HOLD = """
import sys, time
from pathlib import Path
from bids_app.claims import claimed
with claimed(Path(sys.argv[1]), sys.argv[2:], command="mri2pet first", date="yesterday"):
    print("held", flush=True)
    time.sleep(60)
"""


def claim(folder, *names):
    return claimed(folder, names, command="mri2pet second", date="today")


@pytest.fixture
def first(tmp_path):
    """A run that holds claims on two visits of the folder until it is killed."""
    command = [sys.executable, "-c", HOLD, tmp_path, "sub-01", "sub-02 ses-a"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as run:
        assert run.stdout.readline() == "held\n"
        yield run
        run.kill()


def test_the_second_is_refused_and_told_of_the_first(first, tmp_path):
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(CannotCreateError) as refused, claim(tmp_path, "sub-03", "sub-02 ses-a"):
        pass
    said = str(refused.value)
    for word in (
        str(tmp_path),
        "sub-02 ses-a",
        str(first.pid),
        socket.gethostname(),
        "yesterday",
        "mri2pet first",
    ):
        assert word in said
    assert "sub-01" not in said
    assert "sub-03" not in said
    assert sorted(tmp_path.rglob("*")) == before


def test_other_visits_are_free(first, tmp_path):
    with claim(tmp_path, "sub-02", "sub-02 ses-b") as held:
        assert held
        assert len(list((tmp_path / FOLDER).iterdir())) == 2
    assert len(list((tmp_path / FOLDER).iterdir())) == 1


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_claims_of_a_killed_run_are_void(first, tmp_path, number):
    first.send_signal(number)
    first.wait()
    with claim(tmp_path, "sub-01") as held:
        assert held
        assert len(list((tmp_path / FOLDER).iterdir())) == 1  # the old claim is gone
    assert not (tmp_path / FOLDER).exists()


def test_claims_end_with_the_block_also_in_an_error(tmp_path):
    with pytest.raises(ZeroDivisionError), claim(tmp_path, "sub-01"):
        raise ZeroDivisionError
    with claim(tmp_path, "sub-01"), pytest.raises(CannotCreateError), claim(tmp_path, "sub-01"):
        pass
    with claim(tmp_path, "sub-01"):
        pass


def test_a_process_that_a_run_begins_does_not_hold_its_claims(tmp_path):
    with ExitStack() as stack:
        stack.enter_context(claim(tmp_path, "sub-01"))
        sleeper = subprocess.Popen(["sleep", "60"])
    try:
        with claim(tmp_path, "sub-01") as held:
            assert held
    finally:
        sleeper.kill()
        sleeper.wait()


def test_a_disk_without_locks_is_told_of(tmp_path, monkeypatch, capsys):
    def refuse(*_):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", refuse)
    settings = Settings(Path("/bids"), tmp_path, "participant", work_dir=tmp_path / "work")
    (tmp_path / "work" / RELEASE).mkdir(parents=True)
    run_record = RunRecord(date="d", command="c", versions={})
    with hold(settings, run_record, Console(), results=["sub-01"], intermediate=["sub-01"]):
        pass
    assert capsys.readouterr().err.count("locks; do not start a second run") == 2


def test_claims_are_locked_on_nfs(tmp_path, monkeypatch):
    """NFS locks exclusively only what is open for writing: flock(2)."""
    real = fcntl.flock

    def nfs(handle, operation):
        if operation & fcntl.LOCK_EX and fcntl.fcntl(handle, fcntl.F_GETFL) & os.O_ACCMODE == 0:
            raise OSError(errno.EBADF, "Bad file descriptor")
        real(handle, operation)

    monkeypatch.setattr(fcntl, "flock", nfs)
    left = tmp_path / f".{'0' * 32}.sub-01_T1w.nii.gz"
    left.touch()
    with claim(tmp_path, "sub-01") as held:
        assert held
        with pytest.raises(CannotCreateError), claim(tmp_path, "sub-01"):
            pass
    remove_partials(tmp_path)
    assert not left.exists()


def test_a_claim_of_another_user_that_cannot_be_read_is_no_free_place(tmp_path, monkeypatch):
    """With umask 077: what that run is working on is unknown, and might be the same visit."""
    real = Path.open

    def shut(path, mode="r", **words):
        if path.name.startswith("other"):
            raise PermissionError(errno.EACCES, "Permission denied")
        return real(path, mode, **words)

    (tmp_path / FOLDER).mkdir()
    other = tmp_path / FOLDER / "other.json"
    other.touch()
    monkeypatch.setattr(Path, "open", shut)
    with pytest.raises(CannotCreateError, match="no permission to read"), claim(tmp_path, "sub-01"):
        pass
    assert other.exists()


@pytest.mark.parametrize("shared", ["output_dir", "work_dir"])
def test_neither_the_output_nor_the_work_folder_is_shared_for_the_same_visit(tmp_path, shared):
    """Two outputs with one work folder would also destroy each other's nodes."""
    run_record = RunRecord(date="d", command="c", versions={})

    def run(number, *visits):
        places = {name: tmp_path / f"{name}{number}" for name in ("output_dir", "work_dir")}
        places[shared] = tmp_path / shared
        for place in places.values():
            (place / RELEASE).mkdir(parents=True, exist_ok=True)
        settings = Settings(Path("/bids"), level="participant", **places)
        return hold(settings, run_record, Console(), results=visits, intermediate=visits)

    with (
        run(1, "sub-01"),
        run(2, "sub-02"),
        pytest.raises(CannotCreateError, match=shared),
        run(3, "sub-02"),
    ):
        pass
    assert not list(tmp_path.rglob("*.json"))


def contents(folder):
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize(
    ("level", "claims"),
    [
        ("participant", "sub-01"),
        ("train", "train semi3d-gan"),
        ("train", "train"),
        ("group", "group"),
    ],
)
def test_each_level_is_refused_before_it_touches_anything(
    tmp_path, monkeypatch, capsys, level, claims
):
    rng, out = np.random.default_rng(1), tmp_path / "out"
    controls = ("01", "02", "03", "04")
    write_controls(out, controls, rng)
    write_screened(out, "p1", rng)
    groups = {**dict.fromkeys(controls, "control"), "p1": "patient"}
    tell(out, groups)
    add_t1w(tmp_path / "raw", "01", rng)
    monkeypatch.setattr(group_level, "_refuse", lambda *_: ([], []))  # tested elsewhere
    work = tmp_path / "work" / RELEASE
    held = work if claims == "train" else out
    work.mkdir(parents=True)
    (work / "node").touch()
    words = ["--sloppy", "--folds", "2", "--models", "semi3d-gan", "-w", str(tmp_path / "work")]
    with claim(held, claims):
        before = contents(tmp_path)
        assert main([str(tmp_path / "raw"), str(out), level, *words]) == 73
        after = contents(tmp_path)
        assert after.keys() - before.keys() <= {
            out / ".mri2pet.lock",
            work / ".mri2pet.lock",
            out / ".bidsignore",
        }
        assert {path: after[path] for path in before if path.name != ".bidsignore"} == {
            path: text for path, text in before.items() if path.name != ".bidsignore"
        }
    assert f"another run is working on {claims}: process" in capsys.readouterr().err
