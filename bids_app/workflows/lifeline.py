"""Processes that end when the one that started them ends, however it does.

A run that was killed must not leave nodes behind that go on writing beside its successor. Workers
hold on to the fork server, and ANTs to Python's lock, so that only the kernel can end them. Where
memory runs out, on the other hand, the kernel is to end a worker, not the run, which tells of it.
"""

import ctypes
import signal
from contextlib import suppress
from pathlib import Path

PR_SET_PDEATHSIG = 1  # linux/prctl.h
OUR_SCORE = Path("/proc/self/oom_score_adj")
WORKER_SCORE = 500  # as if half of all memory were its own: proc(5), from -1000 to 1000; our choice


def die_with_parent() -> None:
    """Ask Linux to kill this process when its parent ends."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


def die_before_others() -> None:
    """Ask Linux to kill this process, and not the run, when memory runs out."""
    with suppress(OSError):
        if int(OUR_SCORE.read_text()) < WORKER_SCORE:
            OUR_SCORE.write_text(str(WORKER_SCORE))
