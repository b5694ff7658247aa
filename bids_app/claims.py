"""Claims of a run on parts of a folder, so that no other run works on the same parts.

A claim is a locked file that lists what is claimed. The kernel holds the lock, so that the claim
becomes void as soon as the run ends, however it ends, also for other machines that share the disk.
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
from bids_app.lifeline import call_on_signal

FOLDER = ".mri2pet-runs"
NAMED_AT_MOST = 3  # claims listed in a message


@contextmanager
def claimed(folder: Path, names: Collection[str], *, command: str, date: str) -> Iterator[bool]:
    """Claim parts of a folder until the block ends; other runs may claim other parts.

    Parameters
    ----------
    folder : Path
        Writable folder.
    names : collection of str
        Names of the claimed parts: visits, rows of Table 1, a level.
    command, date : str
        Command and start of the run, for the message to runs that are refused.

    Yields
    ------
    bool
        True if the claims are locked; False if the disk does not support locks.

    Raises
    ------
    CannotCreateError
        If a running process has claimed one of these parts; the message names it. Also if the claim
        of another user's run cannot be read.
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
        handle = path.open("r+")  # NFS locks only what is open for writing
        is_locked = _is_locked_by(handle, fcntl.LOCK_EX)
    try:
        with handle, call_on_signal(partial(path.unlink, missing_ok=True)):
            yield is_locked
    finally:
        with suppress(OSError, Mri2petError), locked(folder):
            path.unlink(missing_ok=True)
            claims_folder.rmdir()  # fails if other runs have claims here


def _is_locked_by(handle: TextIO, operation: int) -> bool:
    """Lock a file, and return whether it is locked, which some disks do not support.

    Raises
    ------
    BlockingIOError
        If another process holds a lock on it.
    """
    try:
        fcntl.flock(handle, operation | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno not in NO_LOCKS:
            raise
        return False
    return True


def _refuse_overlap(folder: Path, other: Path, names: Collection[str]) -> None:
    """Refuse names that a running process has claimed; remove claims of runs that have ended."""
    try:
        with other.open() as handle:
            _is_locked_by(handle, fcntl.LOCK_SH)
    except BlockingIOError:
        _refuse(folder, other, names)
    except PermissionError as error:
        raise CannotCreateError(
            f"{other}: no permission to read which participants a run of another user is working "
            "on; wait until it has ended, or, if it was killed, delete this file"
        ) from error
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
            f"{claim.get('process')} on {claim.get('host')}, started at {claim.get('date')} as "
            f"{claim.get('command')!r}; wait until it has ended, or stop it"
        )
