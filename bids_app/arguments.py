"""What the command lines of all programs have in common; light, so that --help is quick."""

import argparse
import sys
from collections.abc import Callable
from typing import NoReturn

from bids_app.errors import Mri2petError, ReadWriteError, UsageError
from bids_app.lifeline import ended_by_signals

INTERRUPTED = 130  # a shell's code for SIGINT


class Parser(argparse.ArgumentParser):
    """argparse, but the exit code of a wrong command line is 64."""

    def error(self, message: str) -> NoReturn:
        self.print_usage(sys.stderr)
        self.exit(UsageError.exit_code, f"error: {message}; see {self.prog} --help\n")


def exit_code_of(run: Callable[[], int], *, interrupted: str) -> int:
    """Run a program; say in one sentence what goes wrong, and give the exit code of BEP027.

    Parameters
    ----------
    run : callable
        Gives an exit code.
    interrupted : str
        What to do after Ctrl-C or another signal to end, a sentence.
    """
    try:
        with ended_by_signals(interrupted):
            return run()
    except Mri2petError as error:
        sys.stderr.write(f"error: {error}\n")
        return error.exit_code
    except OSError as error:
        place = "" if error.filename is None else f"{error.filename}: "
        sys.stderr.write(f"error: {place}{error.strerror or error}\n")
        return ReadWriteError.exit_code
    except KeyboardInterrupt:
        sys.stderr.write(f"{interrupted}\n")
        return INTERRUPTED
