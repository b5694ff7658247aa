"""What a run has claimed for as long as it lives, so that no other works on the same.

A claim is a file that lists what is claimed, and on which the kernel holds a lock: it is void as
soon as the run has ended, however it ends, also on another machine that shares the disk.
"""

import fcntl
import os
import socket
from collections.abc import Collection, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import TextIO
from uuid import uuid4

from bids_app.errors import CannotCreateError, Mri2petError, name_some
from bids_app.files import NO_LOCKS, locked, read_json, write_json
from bids_app.lifeline import last_act

FOLDER = ".mri2pet-runs"
NAMED_AT_MOST = 3  # claims in a message


@contextmanager
def claimed(folder: Path, names: Collection[str], *, command: str, date: str) -> Iterator[bool]:
    """Claim parts of a folder for as long as the block lasts; other parts are others' to claim.

    Parameters
    ----------
    folder : Path
        Writable.
    names : collection of str
        What is claimed: visits, rows of Table 1, a level.
    command, date : str
        Of the run, for those who are refused.

    Yields
    ------
    bool
        Whether the claims are held: False where the disk knows no locks.

    Raises
    ------
    CannotCreateError
        If another run that is alive has claimed one of these; it is named.
    ReadWriteError
        If the folder cannot be written to.
    """
    claims_folder = folder / FOLDER
    path = claims_folder / f"{uuid4().hex}.json"
    claim = {
        "claims": sorted(names),
        "host": socket.gethostname(),
        "process": os.getpid(),
        "command": command,
        "date": date,
    }
    with locked(folder):
        for other in sorted(claims_folder.glob("*.json")):
            _refuse_overlap(folder, other, names)
        write_json(path, claim)
        handle = path.open()
        is_locked = _is_locked_by(handle, fcntl.LOCK_EX)
    try:
        with handle, last_act(partial(path.unlink, missing_ok=True)):
            yield is_locked
    finally:
        with suppress(OSError, Mri2petError), locked(folder):
            path.unlink(missing_ok=True)
            claims_folder.rmdir()  # unless other runs have claims here


def _is_locked_by(handle: TextIO, operation: int) -> bool:
    """Lock a file if nobody else has; tell whether it is locked now.

    Raises
    ------
    BlockingIOError
        If somebody else has.
    """
    try:
        fcntl.flock(handle, operation | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno not in NO_LOCKS:
            raise
        return False
    return True


def _refuse_overlap(folder: Path, other: Path, names: Collection[str]) -> None:
    """Refuse what a run that is alive has claimed; remove the claims of one that is not."""
    try:
        with other.open() as handle:
            _is_locked_by(handle, fcntl.LOCK_SH)
    except BlockingIOError:
        _refuse(folder, other, names)
    except OSError:  # it has just ended
        return
    else:
        with suppress(OSError):
            other.unlink()


def _refuse(folder: Path, other: Path, names: Collection[str]) -> None:
    try:
        claim = read_json(other)
    except Mri2petError:  # it has just ended
        return
    claims = claim.get("claims")
    both = sorted(set(names) & set(claims if isinstance(claims, list) else []))
    if both:
        raise CannotCreateError(
            f"{folder}: another run is working on {name_some(both, NAMED_AT_MOST)}: process "
            f"{claim.get('process')} on {claim.get('host')}, begun at {claim.get('date')} as "
            f"{claim.get('command')!r}; wait until it has ended, or stop it"
        )
