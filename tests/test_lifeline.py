"""Runs that are killed or told to end: no process outlives them, and they end soon."""

import os
import signal
import subprocess
import sys
import time
import tomllib
from pathlib import Path

import pytest

from bids_app import lifeline

pytestmark = pytest.mark.slow

HERE = Path(__file__).parent
GRAPH = """
import sys
from pathlib import Path
from nodes import SleepInC
from test_workflows_execution import Run
from bids_app.arguments import run_program

def go():
    run = Run(Path(sys.argv[1]))
    for word in "abcd":
        run.node(SleepInC, word)
    run.go(nprocs=4)
    return 0

if __name__ == "__main__":
    sys.exit(run_program(go, interrupted="run it again"))
"""
VALIDATION = """
import sys, threading, time
from pathlib import Path
from bids_app.arguments import run_program
from bids_app.dataset import validation

validation.find_validator = lambda: sys.argv[1]

def go():
    thread = threading.Thread(target=validation.validate_bids, args=[Path()])
    thread.start()
    thread.join()

run_program(go, interrupted="run it again")
"""
SOON = 5.0  # s, of the contract


def family(mark):
    """List the running processes with a mark in their environment."""
    found = []
    for place in Path("/proc").glob("[0-9]*"):
        try:
            environment = (place / "environ").read_bytes()
            state = (place / "stat").read_text().rpartition(")")[2].split()[0]
        except OSError:  # it has just ended, or belongs to another user
            continue
        found += [place.name] if mark.encode() in environment and state not in "ZX" else []
    return found


def wait_until(condition, seconds=240.0):  # for a machine that is busy
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "nothing happened"
        time.sleep(0.02)


@pytest.fixture
def begin(tmp_path):
    """Start a Python program in its own process group; return the process and its mark."""
    begun = []

    def start(*words):
        mark = f"MRI2PET_TEST={tmp_path}"
        run = subprocess.Popen(
            # under nohup, SIGHUP is ignored, also in child processes
            ["env", "--default-signal=HUP", sys.executable, *map(str, words)],
            cwd=tmp_path,
            text=True,
            start_new_session=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env={**os.environ, "MRI2PET_TEST": str(tmp_path), "PYTHONPATH": str(HERE)},
        )
        begun.append(run)
        return run, mark

    yield start
    for run in begun:
        try:
            os.killpg(run.pid, signal.SIGKILL)
        except ProcessLookupError:
            continue
        run.communicate()


@pytest.fixture
def graph(begin, tmp_path):
    """Start a run whose four nodes compute in C."""
    script = tmp_path / "graph.py"
    script.write_text(GRAPH)
    return lambda: begin(script, tmp_path)


def computing(folder):
    log = folder / "log"
    return lambda: log.exists() and len(log.read_text().splitlines()) == 4


def ended(run, code):
    """Wait for the end; return the output."""
    start = time.monotonic()
    said = run.communicate(timeout=30)[1]
    assert time.monotonic() - start < SOON
    assert run.returncode == code, said
    return said


@pytest.mark.parametrize(
    ("number", "code", "to_all"),
    [
        (signal.SIGINT, 130, True),
        (signal.SIGINT, 130, False),
        (signal.SIGTERM, 143, True),
        (signal.SIGTERM, 143, False),
        (signal.SIGHUP, 129, True),
    ],
)
def test_a_run_that_is_told_to_end_ends_soon_and_whole(graph, tmp_path, number, code, to_all):
    """``docker stop`` signals only the first process, a terminal all of them."""
    run, mark = graph()
    wait_until(computing(tmp_path))
    (os.killpg if to_all else os.kill)(run.pid, number)
    assert ended(run, code) == "run it again\n"
    assert not family(mark)


@pytest.mark.parametrize("seconds", [0.3, 1.0, 2.0])
def test_ctrl_c_at_any_moment_is_answered_with_one_sentence(graph, tmp_path, seconds):
    """At first, workers are starting; a second Ctrl-C changes nothing."""
    run, mark = graph()
    wait_until(lambda: handles(run.pid, signal.SIGINT))
    time.sleep(seconds)
    os.killpg(run.pid, signal.SIGINT)
    os.killpg(run.pid, signal.SIGINT)
    assert ended(run, 130) == "run it again\n"
    wait_until(lambda: not family(mark), 2)


def handles(process, number):
    """Return whether our handlers are installed; that for SIGHUP is the last one."""
    for line in Path(f"/proc/{process}/status").read_text().splitlines():
        if line.startswith("SigCgt:"):
            caught = int(line.split()[1], 16)
            return bool(caught >> (signal.SIGHUP - 1) & 1 and caught >> (number - 1) & 1)
    return False


@pytest.mark.parametrize("moment", ["server", "worker", "node"])
def test_nothing_outlives_a_killed_run(graph, tmp_path, moment):
    """SIGKILL of only the main process, while the server and the workers start, and later."""
    run, mark = graph()
    least = {"server": 2, "worker": 4, "node": 7}[moment]
    wait_until(lambda: len(family(mark)) >= least)
    if moment == "node":
        wait_until(computing(tmp_path))
    run.kill()
    run.wait()
    wait_until(lambda: not family(mark), 2)


def test_the_first_process_of_a_container_is_told_as_well(tmp_path):
    """It has no default signal handlers: Linux drops signals that it does not handle."""
    unshare = ["unshare", "--map-root-user", "--pid", "--fork", "--kill-child", "--mount-proc"]
    if subprocess.run([*unshare, "true"], check=False, capture_output=True).returncode:
        pytest.skip("no name spaces for processes here")
    script = tmp_path / "graph.py"
    script.write_text(GRAPH)
    run = subprocess.Popen(
        [*unshare, sys.executable, script, tmp_path],
        stderr=subprocess.PIPE,
        text=True,
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(HERE)},
    )
    wait_until(computing(tmp_path))
    children = Path(f"/proc/{run.pid}/task/{run.pid}/children").read_text().split()
    os.kill(int(children[0]), signal.SIGTERM)
    assert ended(run, 143) == "run it again\n"


def test_what_is_begun_by_a_tied_command_ends_with_the_run(begin, tmp_path):
    program = (
        "import subprocess; from bids_app.lifeline import tied; "
        "subprocess.run(tied(['/bin/sleep', '60']))"
    )
    run, mark = begin("-c", program)
    wait_until(lambda: any(b"60" in cmdline(one) for one in family(mark) if one != str(run.pid)))
    run.kill()
    run.wait()
    wait_until(lambda: not family(mark), 2)


def cmdline(process):
    try:
        return Path("/proc", process, "cmdline").read_bytes().split(b"\0")
    except OSError:
        return []


def test_the_validator_ends_with_the_run(begin, tmp_path):
    (tmp_path / "program.py").write_text(VALIDATION)
    validator = tmp_path / "validator"
    validator.write_text("#!/bin/sh\ntouch ready\necho $DENO_DIR > place\nsleep 60; sleep 60\n")
    validator.chmod(0o755)
    run, mark = begin("program.py", validator)
    wait_until((tmp_path / "ready").exists)
    time.sleep(0.1)
    os.killpg(run.pid, signal.SIGINT)
    assert ended(run, 130) == "run it again\n"
    assert not family(mark)
    assert not Path((tmp_path / "place").read_text().strip()).exists()


@pytest.mark.parametrize("nprocs", [1, 2])
def test_a_simulation_that_is_told_to_end_ends_soon(begin, tmp_path, nprocs):
    words = (tmp_path / "bids", "--paired", 2, "--nprocs", nprocs)
    run, mark = begin("-m", "bids_app.simulate", *words)
    wait_until((tmp_path / "bids" / "README.md").exists)
    time.sleep(1)
    os.killpg(run.pid, signal.SIGINT)
    assert ended(run, 130).startswith("stopped; the folder is not complete")
    assert not family(mark)


def test_a_tied_command_does_what_it_did():
    run = subprocess.run(
        lifeline.tied(["/bin/sh", "-c", 'echo "$0"; exit 3', "a b"]),
        check=False,
        capture_output=True,
        text=True,
    )
    assert (run.stdout, run.returncode) == ("a b\n", 3)


def test_last_acts_are_done_when_a_run_is_told_to_end(begin, tmp_path):
    program = (
        "import time; from pathlib import Path; from bids_app.lifeline import *\n"
        "with ended_by_signals('gone'), call_on_signal(Path('done').touch):\n"
        "    with call_on_signal(Path('over').touch): pass\n"
        "    Path('ready').touch(); time.sleep(60)"
    )
    run, _ = begin("-c", program)
    wait_until((tmp_path / "ready").exists)
    run.send_signal(signal.SIGTERM)
    assert ended(run, 143) == "gone\n"
    assert (tmp_path / "done").exists()
    assert not (tmp_path / "over").exists()


def test_workers_import_nothing_from_the_current_folder(tmp_path):
    for name in ("random", "bids_app"):  # a user's file, and the checkout of another version
        (tmp_path / f"{name}.py").write_text("raise RuntimeError(__file__)")
    script = tmp_path / "elsewhere" / "script.py"
    script.parent.mkdir()
    script.write_text(
        "from multiprocessing import get_context\n"
        "from bids_app.lifeline import start_fork_server\n"
        "if __name__ == '__main__':\n"
        "    start_fork_server()\n"
        "    worker = get_context('forkserver').Process(target=print, args=('worked',))\n"
        "    worker.start()\n"
        "    worker.join()\n"
        "    import os; assert 'PYTHONSAFEPATH' not in os.environ\n"  # of programs of the caller
    )
    run = subprocess.run(
        [sys.executable, script], check=False, capture_output=True, text=True, cwd=tmp_path
    )
    assert (run.stdout, run.stderr) == ("worked\n", "")


def test_handlers_are_as_before_when_the_block_ends():
    before = [signal.getsignal(number) for number in lifeline.STOPPING]
    with lifeline.ended_by_signals("gone"):
        assert signal.getsignal(signal.SIGTERM) is lifeline._wait
    assert [signal.getsignal(number) for number in lifeline.STOPPING] == before


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_program_can_be_told_to_end_while_it_is_loaded(begin, tmp_path, number, code):
    (tmp_path / "heavy.py").write_text(
        "import pathlib, time; pathlib.Path('loading').touch(); time.sleep(60)"
    )
    words = "import sys; sys.path.insert(0, '.'); from bids_app.start import begin; begin('heavy')"
    run, mark = begin("-c", words)
    wait_until((tmp_path / "loading").exists)
    run.send_signal(number)
    _, said = run.communicate(timeout=SOON)
    assert (run.returncode, said) == (code, "stopped before anything was started\n")
    assert not family(mark)


@pytest.mark.parametrize("name", ["mri2pet", "mri2pet-simulate", "mri2pet-fetch", "mri2pet-import"])
def test_programs_begin_where_they_can_be_told_to_end(name):
    program = tomllib.loads((HERE.parent / "pyproject.toml").read_text())["project"]["scripts"][
        name
    ]
    module, _, function = program.partition(":")
    assert module == "bids_app.start"
    words = f"from {module} import {function}; {function}()"
    done = subprocess.run(
        [sys.executable, "-c", words, "--help"], check=True, capture_output=True, text=True
    )
    assert done.stdout.startswith(f"usage: {name} ")


ENDING = """
import atexit, sys, time
from bids_app.lifeline import ended_by_signals, exit_with

def slow():
    print("ending", flush=True)
    time.sleep(2)

with ended_by_signals("told to end"):
    atexit.register(slow)
exit_with(int(sys.argv[1]))
"""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
@pytest.mark.parametrize("code", [0, 66])
def test_a_run_whose_work_is_done_keeps_its_exit_code(begin, number, code):
    run, _ = begin("-c", ENDING, code)
    assert run.stdout.readline() == "ending\n"
    os.kill(run.pid, number)
    assert run.communicate(timeout=30)[1] == ""
    assert run.returncode == code
