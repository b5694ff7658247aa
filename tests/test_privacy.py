"""Nothing is ever sent: the watch over all tests (conftest.py) detects what it has to."""

import os
import subprocess
import sys
from pathlib import Path

import lookups
import pytest

ROOT = Path(__file__).parents[1]
PRELOADED = pytest.mark.skipif("LD_PRELOAD" not in os.environ, reason="there is no C compiler")
LOOK_UP = "import socket\ntry: socket.getaddrinfo('example.org', 80)\nexcept OSError: pass"
CONNECT = (
    "import socket\nwith socket.socket() as one:\n"
    " try: one.connect(('192.0.2.1', 80))\n except OSError: pass"
)
NEAR = (
    "import socket\nsocket.getaddrinfo('localhost', 80); socket.getaddrinfo('127.0.0.1', 80)\n"
    "with socket.create_server(('127.0.0.1', 0)) as one:\n"
    " socket.create_connection(one.getsockname()).close()"
)
NIPYPE = "from nipype.interfaces.utility import Merge; Merge(2)"
POOL = f"""
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from bids_app.lifeline import start_fork_server
if __name__ == "__main__":
    start_fork_server()
    with ProcessPoolExecutor(1, mp_context=get_context("forkserver")) as pool:
        pool.submit(exec, {LOOK_UP!r}).result()
"""
TELEMETRY = ("NIPYPE_NO_ET", "NO_ET")


@pytest.fixture
def watched(tmp_path):
    """Run a program without settings about telemetry; return the look-ups it made."""

    def run(program):
        script, log = tmp_path / "program.py", tmp_path / "log"
        script.write_text(program)
        log.unlink(missing_ok=True)
        known = {name: value for name, value in os.environ.items() if name not in TELEMETRY}
        command = [sys.executable, script]
        subprocess.run(command, check=True, env={**known, lookups.LOG: str(log)}, timeout=120)
        return log.read_text() if log.exists() else ""

    return run


@PRELOADED
@pytest.mark.parametrize(
    ("program", "expected"),
    [
        (LOOK_UP, "look-up example.org"),
        (CONNECT, "connect 192.0.2.1"),
        (NEAR, ""),
        (POOL, "look-up example.org"),
    ],
    ids=["look-up", "connection", "this machine", "worker"],
)
def test_what_leaves_a_process_is_seen(watched, program, expected):
    seen = watched(program)
    assert seen.startswith(expected)
    assert bool(seen) == bool(expected)


@PRELOADED
def test_nipype_alone_looks_for_its_newest_version_and_within_mri2pet_does_not(watched):
    """It does so when the first node is created; if it stops, drop the first assertion."""
    assert "look-up" in watched(NIPYPE)
    assert watched(f"import bids_app.workflows.execution\n{NIPYPE}") == ""


def test_what_leaves_this_process_is_seen(tmp_path, monkeypatch):
    monkeypatch.setenv(lookups.LOG, str(tmp_path / "log"))
    exec(LOOK_UP)
    exec(CONNECT)
    exec(NEAR)
    names = [line.split()[1] for line in lookups.seen()]
    assert names == ["example.org", "192.0.2.1"]


@pytest.mark.parametrize("name", ["Dockerfile", "singularity.def"])
def test_images_switch_telemetry_off(name):
    assert "NIPYPE_NO_ET=1" in (ROOT / name).read_text()
