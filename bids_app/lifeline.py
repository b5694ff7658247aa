"""Lifetime of processes: children end with their parent, and a run ends when it receives a signal.

A killed run must not leave nodes behind that continue to write beside the next run. Workers keep
the fork server alive, and native code holds Python's lock, so that only the kernel can end them.
If memory runs out, on the other hand, the kernel should kill a worker and not the run, which
reports it.

Ctrl-C, SIGTERM and SIGHUP end a run at once: a thread, which no computation in the main thread can
block, kills all processes of the run, prints a sentence and exits.
"""

import ctypes
import os
import select
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, MutableMapping, Sequence
from contextlib import contextmanager, suppress
from multiprocessing import forkserver, resource_tracker
from pathlib import Path
from types import FrameType
from typing import NoReturn

PR_SET_PDEATHSIG = 1  # linux/prctl.h
OUR_SCORE = Path("/proc/self/oom_score_adj")
WORKER_SCORE = 500  # -1000 to 1000, proc(5): as if it used half of all memory; our choice
FORK_SERVER = "bids_app.workflows.forkserver"  # module that the server preloads
OWNER = "MRI2PET_PROCESS"  # environment variable of the fork server: process id of its owner
SAFE_PATH = "PYTHONSAFEPATH"  # keeps the current folder out of Python's search path
STOPPING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
FROM_TERMINALS = (signal.SIGINT, signal.SIGHUP)  # sent to all processes of a terminal
CODE_OF_SIGNAL = 128  # plus the number of the signal: exit code by convention of shells
VANISHING = 2.0  # s for killed processes to end, of the 5 s that a run has; our choice
SAYING = 1.0  # s for a full pipe to accept the sentence; our choice
TIED = """
import ctypes, os, signal, sys
ctypes.CDLL(None).prctl({option}, signal.SIGKILL)
if os.getppid() == int(sys.argv[1]):
    os.execv(sys.argv[2], sys.argv[2:])
"""
TRACKER = "ignore:resource_tracker:UserWarning"  # warns when it cleans up after a killed run

_last_acts: list[Callable[[], object]] = []


def die_with_parent(parent: int) -> None:
    """Ask Linux to kill this process when its parent ends; end at once if it has ended already.

    Parameters
    ----------
    parent : int
        Process id of the parent, determined before this process was started.
    """
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(CODE_OF_SIGNAL + signal.SIGKILL)


def die_before_others() -> None:
    """Ask Linux to kill this process rather than the run if memory runs out."""
    with suppress(OSError):
        if int(OUR_SCORE.read_text()) < WORKER_SCORE:
            OUR_SCORE.write_text(str(WORKER_SCORE))


def tied(command: Sequence[str]) -> list[str]:
    """Wrap a command so that it ends when the thread that starts it ends.

    Parameters
    ----------
    command : sequence of str
        Path of a program, and its arguments.
    """
    program = TIED.format(option=PR_SET_PDEATHSIG)
    return [sys.executable, "-I", "-S", "-c", program, str(os.getpid()), *command]


@contextmanager
def restored(environment: MutableMapping[str, str], names: Iterable[str]) -> Iterator[None]:
    """Restore variables of an environment when the block ends."""
    before = {name: environment.get(name) for name in names}
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                environment.pop(name, None)
            else:
                environment[name] = value


def start_fork_server() -> None:
    """Start the server that forks worker processes, unless it runs; it ends with this process.

    It imports nothing from the current folder, where a user's ``random.py`` would come before
    Python's. Neither the server nor its workers receive the signals of Ctrl-C or of a closed
    terminal: this process does, and ends them.
    """
    os.environ[OWNER] = str(os.getpid())
    forkserver.set_forkserver_preload([FORK_SERVER])
    before = signal.pthread_sigmask(signal.SIG_BLOCK, FROM_TERMINALS)
    try:
        with restored(os.environ, [SAFE_PATH]):
            os.environ[SAFE_PATH] = "1"
            forkserver.ensure_running()
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


@contextmanager
def call_on_signal(act: Callable[[], object]) -> Iterator[None]:
    """Call a function if a signal ends the run during the block, after its processes have ended.

    Parameters
    ----------
    act : callable
        Function that returns quickly; errors of the operating system are ignored.
    """
    _last_acts.append(act)
    try:
        yield
    finally:
        _last_acts.remove(act)


@contextmanager
def ended_by_signals(sentence: str) -> Iterator[None]:
    """End the run within seconds of a signal, with 128 plus its number as exit code.

    The signals are Ctrl-C (130), SIGTERM (143), sent by ``docker stop`` or SLURM, and SIGHUP (129),
    sent when a terminal is closed, unless ``nohup`` has set it to be ignored. A second signal
    changes nothing. Outside the main thread, Python cannot set handlers, and signals act as before.

    Parameters
    ----------
    sentence : str
        Sentence for standard error: what to do next.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    _silence_tracker()
    ours = [s for s in STOPPING if s != signal.SIGHUP or signal.getsignal(s) != signal.SIG_IGN]
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    watcher = threading.Thread(target=_watch, args=(reader, sentence), daemon=True)
    watcher.start()
    wakeup = signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
    before = {number: signal.signal(number, _wait) for number in ours}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        signal.set_wakeup_fd(wakeup)
        os.close(writer)
        watcher.join()
        os.close(reader)


def exit_with(code: int) -> NoReturn:
    """Exit after the work is done, ignoring signals so that they cannot change the exit code.

    Python removes its signal handlers while it exits, so that a SIGTERM would otherwise end the
    process by its default action.
    """
    for number in STOPPING:
        signal.signal(number, signal.SIG_IGN)
    sys.exit(code)


def _silence_tracker() -> None:
    warned = os.environ.get("PYTHONWARNINGS", "")
    if TRACKER not in warned:
        os.environ["PYTHONWARNINGS"] = f"{warned},{TRACKER}" if warned else TRACKER


def _wait(_number: int, _frame: FrameType | None) -> None:
    """Block the main thread, so that it does not report processes that are being killed."""
    while True:
        time.sleep(1)


def _watch(reader: int, sentence: str) -> None:
    """End the run at the first signal; return when the other end of the pipe is closed."""
    while numbers := os.read(reader, 1):
        if numbers[0] in STOPPING:
            _end(numbers[0], sentence)


def _end(number: int, sentence: str) -> None:
    deadline = time.monotonic() + VANISHING
    while (processes := _descendants()) and time.monotonic() < deadline:
        for process in processes:
            with suppress(OSError):
                os.kill(process, signal.SIGKILL)
        time.sleep(0.01)
    for act in reversed(_last_acts):
        with suppress(OSError):
            act()
    _write_sentence(sentence)
    os._exit(CODE_OF_SIGNAL + number)


def _write_sentence(sentence: str) -> None:
    """Write to standard error without Python's stream, whose lock the main thread may hold."""
    with suppress(OSError, ValueError):
        cursor = "\r\x1b[K\x1b[?25h" if os.isatty(2) else ""  # progress bars hide it
        if select.select([], [2], [], SAYING)[1]:
            os.write(2, f"{cursor}{sentence}\n".encode())


def _descendants() -> set[int]:
    """List the running descendants of this process.

    Python's resource tracker is left out: it cleans up and ends by itself after all others.
    """
    parents = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError, ValueError, IndexError):
            state, parent = stat.read_text(errors="replace").rpartition(")")[2].split()[:2]
            if state not in "ZX":
                parents[int(stat.parent.name)] = int(parent)
    family, more = {os.getpid()}, {os.getpid()}
    while more:
        more = {child for child, parent in parents.items() if parent in more}
        family |= more
    return family - {os.getpid(), getattr(resource_tracker._resource_tracker, "_pid", None)}
