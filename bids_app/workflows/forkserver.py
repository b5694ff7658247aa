"""Setup of the fork server, which alone imports this: it and its workers end with the run."""

import os
import signal

from bids_app.lifeline import OWNER, die_with_parent


def tie_forks() -> None:
    """Make every process forked by this one end with it, from the moment it starts."""
    server = os.getpid()
    forking = [server]

    def note() -> None:
        forking[:] = [os.getpid()]

    def tie() -> None:
        if forking == [server]:  # not for processes that a worker forks
            die_with_parent(server)

    os.register_at_fork(before=note, after_in_child=tie)


signal.signal(signal.SIGINT, signal.SIG_IGN)  # workers inherit this
if OWNER in os.environ:
    die_with_parent(int(os.environ[OWNER]))
tie_forks()
