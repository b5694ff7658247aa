"""Entry points of the programs. They import little, so that signals are handled at once."""

import signal
import sys
from importlib import import_module
from typing import NoReturn

if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # no traceback on Ctrl-C during imports

from bids_app.lifeline import ended_by_signals, exit_with

SENTENCE = "stopped before anything was started"


def begin(program: str) -> NoReturn:
    """Import a program, run it, and exit with its code.

    Parameters
    ----------
    program : str
        Name of a module with a function ``main``, which handles signals itself.
    """
    with ended_by_signals(SENTENCE):
        module = import_module(program)
    exit_with(module.main())


def mri2pet() -> NoReturn:
    """Run ``mri2pet`` or ``mri2pet quick``."""
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
