"""What the command lines of both programs have in common; light, so that --help is quick."""

import argparse
import sys
from typing import NoReturn

from bids_app.errors import UsageError


class Parser(argparse.ArgumentParser):
    """argparse, but the exit code of a wrong command line is 64."""

    def error(self, message: str) -> NoReturn:
        self.print_usage(sys.stderr)
        self.exit(UsageError.exit_code, f"error: {message}; see {self.prog} --help\n")
