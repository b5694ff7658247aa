"""Ties the fork server to the run, and what it forks to itself. The server alone imports this."""

import os
import signal

from bids_app.lifeline import OWNER, die_with_parent


def tie_forks() -> None:
    """Have every process that this one forks end with it, from its first moment on."""
    server = os.getpid()
    forking = [server]

    def note() -> None:
        forking[:] = [os.getpid()]

    def tie() -> None:
        if forking == [server]:  # what a worker forks is that worker's business
            die_with_parent(server)

    os.register_at_fork(before=note, after_in_child=tie)


signal.signal(signal.SIGINT, signal.SIG_IGN)  # workers inherit this
if OWNER in os.environ:
    die_with_parent(int(os.environ[OWNER]))
tie_forks()
