"""Small files, written so that they are whole or absent, also when many processes write."""

import errno
import fcntl
import json
import os
import re
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from uuid import uuid4

from bids_app.errors import ReadWriteError, UnusableDataError

PARTIAL = re.compile(r"\.[0-9a-f]{32}\.")  # names of files that are being written
MISSING = "n/a"  # BIDS, "Tabular files"
NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL)  # as some shared disks say


def write_text(path: Path, text: str) -> None:
    """Write UTF-8 text to a name of its own, then rename it; folders are made.

    Raises
    ------
    ReadWriteError
        If it cannot be written: no space, no permission. What was there before stays.
    """
    partial = path.with_name(f".{uuid4().hex}.{path.name}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        partial.write_text(_showable(text), encoding="utf-8")
        partial.replace(path)
    except OSError as error:
        _remove(partial)
        raise ReadWriteError(f"{path}: cannot be written ({error.strerror})") from error


def _showable(text: str) -> str:
    """Spell bytes of file names that are no text as JSON does, which gives them back."""
    return text.encode("utf-8", "backslashreplace").decode()


def write_bytes(path: Path, content: bytes) -> None:
    """Write a small binary file, as :func:`write_text` does text.

    Raises
    ------
    ReadWriteError
        As :func:`write_text`.
    """
    partial = path.with_name(f".{uuid4().hex}.{path.name}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        partial.write_bytes(content)
        partial.replace(path)
    except OSError as error:
        _remove(partial)
        raise ReadWriteError(f"{path}: cannot be written ({error.strerror})") from error


def _remove(path: Path) -> None:
    try:
        path.unlink(missing_ok=True)
    except OSError:
        return  # the disk has gone; the first error tells


def write_json(path: Path, content: Mapping[str, object]) -> None:
    """Write a JSON object.

    Raises
    ------
    ReadWriteError
        As :func:`write_text`.
    ValueError
        If a number is not finite: JSON has no word for it.
    """
    text = json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False)
    write_text(path, text + "\n")


def read_json(path: Path) -> dict[str, object]:
    """Read a JSON object.

    Raises
    ------
    ReadWriteError
        If it cannot be read.
    UnusableDataError
        If it is not a JSON object.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8-sig"))
    except OSError as error:
        raise ReadWriteError(f"{path}: cannot be read ({error.strerror})") from error
    except ValueError as error:
        raise UnusableDataError(f"{path}: not valid JSON ({error}); correct it") from error
    if not isinstance(content, dict):
        raise UnusableDataError(f"{path}: not a JSON object; correct it")
    return content


def _cell(value: object) -> str:
    if value is None or value == "":
        return MISSING
    if isinstance(value, float):
        return f"{value:.6g}"
    return " ".join(str(value).split())  # no tab or line break inside a cell


def write_tsv(path: Path, columns: Sequence[str], rows: Sequence[Mapping[str, object]]) -> None:
    """Write a table; cells that a row lacks, or that are None, are ``n/a``.

    Raises
    ------
    ReadWriteError
        As :func:`write_text`.
    """
    lines = [list(columns), *([_cell(row.get(name)) for name in columns] for row in rows)]
    write_text(path, "".join("\t".join(cells) + "\n" for cells in lines))


def read_tsv(path: Path) -> list[dict[str, str]]:
    """Read a table as :func:`write_tsv` writes it; an absent one is empty.

    Raises
    ------
    ReadWriteError
        If it cannot be read.
    """
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except FileNotFoundError:
        return []
    except (OSError, UnicodeDecodeError) as error:
        raise ReadWriteError(f"{path}: cannot be read ({error}); remove it") from error
    cells = [line.split("\t") for line in lines if line]
    return [dict(zip(cells[0], row, strict=False)) for row in cells[1:]]


def place_in(folder: Path, path: Path) -> tuple[str, ...] | None:
    """Say where a path lies in a folder, whatever way they are written.

    Links and ``..`` are followed, and what the disk takes for one folder is one: of names that
    differ in case only, or of one place that is mounted twice.

    Parameters
    ----------
    folder, path : Path
        Need not be there.

    Returns
    -------
    tuple of str or None
        The names that lead from the folder to the path, none where they are the same; None if it
        does not lie in the folder.
    """
    root, inner = (Path(os.path.realpath(one)) for one in (folder, path))
    for outer in (inner, *inner.parents):
        if _is_same(outer, root):
            return inner.relative_to(outer).parts
    return None


def _is_same(one: Path, other: Path) -> bool:
    try:
        return one.samefile(other)
    except OSError:  # one of them is not there
        return one == other


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Let one process at a time read and rewrite what belongs to a whole folder.

    Where the disk knows no locks, all go on: files are then still whole, and the last writer,
    who sees the most, wins.

    Raises
    ------
    ReadWriteError
        If the lock's file cannot be made.
    """
    try:
        handle = (folder / ".mri2pet.lock").open("w")
    except OSError as error:
        raise ReadWriteError(f"{folder}: cannot be written to ({error.strerror})") from error
    with handle:  # closing it gives the lock back
        try:
            fcntl.lockf(handle, fcntl.LOCK_EX)
        except OSError as error:
            if error.errno not in NO_LOCKS:
                raise ReadWriteError(f"{folder}: cannot be locked ({error.strerror})") from error
        yield


def copy_file(source: Path, target: Path) -> None:
    """Copy a file to a name of its own, then rename it; folders are made.

    Raises
    ------
    ReadWriteError
        If it cannot be read or written. What was there before stays.
    """
    partial = target.with_name(f".{uuid4().hex}.{target.name}")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source, partial)
        partial.replace(target)
    except OSError as error:
        _remove(partial)
        raise ReadWriteError(f"{target}: cannot be written ({error.strerror})") from error


def remove_partials(folder: Path) -> None:
    """Remove what writes that were killed have left in a folder, where no one else writes."""
    for path in folder.glob(".*"):
        if PARTIAL.match(path.name):
            path.unlink(missing_ok=True)
