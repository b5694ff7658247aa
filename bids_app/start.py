"""Where the programs begin. It loads little: from its first moment on, a run can be told to end."""

import signal
from importlib import import_module

if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # no traceback, should Ctrl-C come before the rest

from bids_app.lifeline import ended_by_signals

SENTENCE = "stopped before anything was begun"


def begin(program: str) -> int:
    """Load a program and run it; return its exit code.

    Parameters
    ----------
    program : str
        A module that has a ``main``, which listens to signals itself.
    """
    with ended_by_signals(SENTENCE):
        module = import_module(program)
    code: int = module.main()
    return code


def mri2pet() -> int:
    """Run ``mri2pet``."""
    return begin("bids_app.cli")


def simulate() -> int:
    """Run ``mri2pet-simulate``."""
    return begin("bids_app.simulate")


def fetch() -> int:
    """Run ``mri2pet-fetch``."""
    return begin("bids_app.fetch")
