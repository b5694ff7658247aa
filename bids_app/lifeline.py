"""Processes that end when the one that started them ends, and a run that ends when it is told to.

A run that was killed must not leave nodes behind that go on writing beside its successor. Workers
hold on to the fork server, and native code to Python's lock, so that only the kernel can end them.
Where memory runs out, on the other hand, the kernel is to end a worker, not the run, which tells of
it.

Ctrl-C, SIGTERM and SIGHUP end a run at once: a thread, which no computation in the main thread
holds up, kills all processes of the run, says a sentence, and exits.
"""

import ctypes
import os
import select
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from multiprocessing import forkserver, resource_tracker
from pathlib import Path
from types import FrameType
from typing import NoReturn

PR_SET_PDEATHSIG = 1  # linux/prctl.h
OUR_SCORE = Path("/proc/self/oom_score_adj")
WORKER_SCORE = 500  # as if half of all memory were its own: proc(5), from -1000 to 1000; our choice
FORK_SERVER = "bids_app.workflows.forkserver"  # what it imports before it starts anything
OWNER = "MRI2PET_PROCESS"  # the process whose fork server it is, in the server's environment
STOPPING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
FROM_TERMINALS = (signal.SIGINT, signal.SIGHUP)  # which tell all processes, not the first alone
CODE_OF_SIGNAL = 128  # and the signal's number: what shells make of a program that a signal ended
VANISHING = 2.0  # s that killed processes have to be gone, of the 5 s that a run has; our choice
SAYING = 1.0  # s that a full pipe has to take the sentence; our choice
TIED = """
import ctypes, os, signal, sys
ctypes.CDLL(None).prctl({option}, signal.SIGKILL)
if os.getppid() == int(sys.argv[1]):
    os.execv(sys.argv[2], sys.argv[2:])
"""
TRACKER = "ignore:resource_tracker:UserWarning"  # it clears away what a killed run has left

_last_acts: list[Callable[[], object]] = []


def die_with_parent(parent: int) -> None:
    """Ask Linux to kill this process when its parent ends; end at once if it has ended already.

    Parameters
    ----------
    parent : int
        The parent's process id, from before there was this process.
    """
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(CODE_OF_SIGNAL + signal.SIGKILL)


def die_before_others() -> None:
    """Ask Linux to kill this process, and not the run, when memory runs out."""
    with suppress(OSError):
        if int(OUR_SCORE.read_text()) < WORKER_SCORE:
            OUR_SCORE.write_text(str(WORKER_SCORE))


def tied(command: Sequence[str]) -> list[str]:
    """Give a command that does the same, but ends when the thread that starts it ends.

    Parameters
    ----------
    command : sequence of str
        The path of a program, and its arguments.
    """
    program = TIED.format(option=PR_SET_PDEATHSIG)
    return [sys.executable, "-I", "-S", "-c", program, str(os.getpid()), *command]


def start_fork_server() -> None:
    """Start the server that forks worker processes, if there is none; it ends with this process.

    Neither it nor workers hear of Ctrl-C, or of a terminal that is closed: this process does, and
    ends them.
    """
    os.environ[OWNER] = str(os.getpid())
    forkserver.set_forkserver_preload([FORK_SERVER])
    before = signal.pthread_sigmask(signal.SIG_BLOCK, FROM_TERMINALS)
    try:
        forkserver.ensure_running()
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


@contextmanager
def last_act(act: Callable[[], object]) -> Iterator[None]:
    """Do something if the run is told to end while the block lasts, when its processes are gone.

    Parameters
    ----------
    act : callable
        Quick; errors of the operating system are passed over.
    """
    _last_acts.append(act)
    try:
        yield
    finally:
        _last_acts.remove(act)


@contextmanager
def ended_by_signals(sentence: str) -> Iterator[None]:
    """End the run within seconds when it is told to, with 128 and the signal's number.

    Ctrl-C (130), SIGTERM (143), as from ``docker stop`` or SLURM, and SIGHUP (129), as from a
    terminal that is closed, unless ``nohup`` has it ignored. A second one changes nothing. In
    another thread than the main one, Python cannot do this, and signals do what they did.

    Parameters
    ----------
    sentence : str
        What to do now, for standard error.
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
    """End this process, whose work is done: what it is told from now on changes no exit code.

    Python takes its handlers of signals away while it ends, and a SIGTERM would end it as it ends
    a program that has none.
    """
    for number in STOPPING:
        signal.signal(number, signal.SIG_IGN)
    sys.exit(code)


def _silence_tracker() -> None:
    warned = os.environ.get("PYTHONWARNINGS", "")
    if TRACKER not in warned:
        os.environ["PYTHONWARNINGS"] = f"{warned},{TRACKER}" if warned else TRACKER


def _wait(_number: int, _frame: FrameType | None) -> None:
    """Keep the main thread from telling of processes that are being killed."""
    while True:
        time.sleep(1)


def _watch(reader: int, sentence: str) -> None:
    """End the run at the first signal; return when nobody can tell of one any more."""
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
    """Write to standard error past Python, whose lock the main thread may hold."""
    with suppress(OSError, ValueError):
        cursor = "\r\x1b[K\x1b[?25h" if os.isatty(2) else ""  # bars of progress hide it
        if select.select([], [2], [], SAYING)[1]:
            os.write(2, f"{cursor}{sentence}\n".encode())


def _descendants() -> set[int]:
    """List processes that this one has started, and those have, which have not ended yet.

    Python's resource tracker is left out: it ends by itself when all others have, and clears away.
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
