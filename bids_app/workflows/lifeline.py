"""Processes that end when the one that started them ends, however it does.

A run that was killed must not leave nodes behind that go on writing beside its successor. Workers
hold on to the fork server, and ANTs to Python's lock, so that only the kernel can end them.
"""

import ctypes
import signal

PR_SET_PDEATHSIG = 1  # linux/prctl.h


def die_with_parent() -> None:
    """Ask Linux to kill this process when its parent ends."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
