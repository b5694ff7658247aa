"""Where the programs begin. It loads little: from its first moment on, a run can be told to end."""

import signal
import sys
from importlib import import_module
from typing import NoReturn

if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # no traceback, should Ctrl-C come before the rest

from bids_app.lifeline import ended_by_signals, exit_with

SENTENCE = "stopped before anything was begun"


def begin(program: str) -> NoReturn:
    """Load a program, run it, and exit with its code.

    Parameters
    ----------
    program : str
        A module that has a ``main``, which listens to signals itself.
    """
    with ended_by_signals(SENTENCE):
        module = import_module(program)
    exit_with(module.main())


def mri2pet() -> NoReturn:
    """Run ``mri2pet``, or ``mri2pet quick``."""
    begin("bids_app.quick" if sys.argv[1:2] == ["quick"] else "bids_app.cli")


def simulate() -> NoReturn:
    """Run ``mri2pet-simulate``."""
    begin("bids_app.simulate")


def fetch() -> NoReturn:
    """Run ``mri2pet-fetch``."""
    begin("bids_app.fetch")


def import_generator() -> NoReturn:
    """Run ``mri2pet-import``."""
    begin("bids_app.importing")
