"""Files: written so that they are whole or absent, read only if they are files, and not endless."""

import errno
import fcntl
import json
import os
import re
import shutil
import stat
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any
from uuid import uuid4

from bids_app.errors import MissingInputError, ReadWriteError, UnusableDataError

Json = dict[str, Any]  # an object; what it holds is checked where it is read
PARTIAL = re.compile(r"\.[0-9a-f]{32}\.")  # names of files that are being written
MISSING = "n/a"  # BIDS, "Tabular files"
LARGEST_TEXT = 1 << 25  # bytes of a sidecar, table or list that is read; our choice
SPECIAL = {
    stat.S_IFDIR: "a folder",
    stat.S_IFIFO: "a named pipe",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}
NOWHERE = "a link that leads nowhere; fetch what it points to"
ABSENT = (errno.ENOENT, errno.ENOTDIR, errno.ELOOP)
NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL)  # as some shared disks say


def why_no_file(path: Path) -> str | None:
    """Say what stands in place of a file (a folder, a named pipe …), and what to do, or None.

    Nothing is opened. A link that leads nowhere is no file, either; where nothing stands, or it
    cannot be looked at, whoever opens it tells.
    """
    try:
        mode = path.stat().st_mode
    except PermissionError:
        return None
    except OSError:
        return NOWHERE if path.is_symlink() else None
    if stat.S_ISREG(mode):
        return None
    kind = SPECIAL.get(stat.S_IFMT(mode), "something else")
    return f"{kind}, not a file; replace or remove it"


def size_of(path: Path) -> int:
    """Give the bytes of a file, which is not opened: to open a named pipe may take for ever.

    Raises
    ------
    MissingInputError
        If there is none.
    UnusableDataError
        If it is a folder, a named pipe, a socket or a device.
    ReadWriteError
        If it cannot be looked at.
    """
    try:
        found = path.stat()
    except OSError as error:
        if error.errno in ABSENT:
            raise MissingInputError(
                f"{path}: no such file; check the dataset, or fetch its content"
            ) from error
        raise ReadWriteError(f"{path}: cannot be looked at ({error.strerror})") from error
    fault = why_no_file(path)
    if fault is not None:
        raise UnusableDataError(f"{path}: is {fault}")
    return found.st_size


def _megabytes(size: int) -> str:
    return f"{size / 1e6:.0f}" if size >= 1e6 else f"{size / 1e6:.2g}"


def read_text(path: Path, largest: int = LARGEST_TEXT) -> str:
    """Read a small file of UTF-8 text, with or without a byte order mark.

    Parameters
    ----------
    path : Path
        Of a file: what would never end, such as a named pipe, is not opened.
    largest : int
        Bytes that such a file may have.

    Raises
    ------
    ReadWriteError
        If it is not there, or cannot be read.
    UnusableDataError
        If it is no file, larger than any such file ought to be, or no UTF-8.
    """
    try:
        size = size_of(path)
        with path.open("rb") as file:
            content = file.read(largest + 1)
    except MissingInputError as error:
        raise ReadWriteError(f"{path}: cannot be read (no such file)") from error
    except OSError as error:
        raise ReadWriteError(f"{path}: cannot be read ({error.strerror})") from error
    if len(content) > largest:
        raise UnusableDataError(
            f"{path}: has {_megabytes(size)} MB, and no such file has more than "
            f"{_megabytes(largest)}; correct it"
        )
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UnusableDataError(f"{path}: not UTF-8 text; save it again as UTF-8") from error


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Give a name to write a file to; then bring it to the disk, and rename it.

    After a crash of the machine, too, there is the file that was there before, or the new one,
    whole: a rename may reach the disk before what was written does. It is locked while it is
    written, so that :func:`remove_partials` spares it.

    Yields
    ------
    Path
        In the folder of ``path``, which is made.

    Raises
    ------
    OSError
        If it cannot be written. What was there before stays, and nothing else.
    """
    partial = path.with_name(f".{uuid4().hex}.{path.name}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with partial.open("wb") as file:
            with suppress(OSError):  # some disks know no locks
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            yield partial
            _flush(partial)
            partial.replace(path)
    except BaseException:
        with suppress(OSError):  # the disk has gone; the first error tells
            partial.unlink(missing_ok=True)
        raise
    with suppress(OSError):  # the file is there; some disks do not let folders be flushed
        _flush(path.parent)


def _flush(path: Path) -> None:
    """Have what was written to a file, or the names in a folder, brought to the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def write_text(path: Path, text: str) -> None:
    """Write UTF-8 text to a name of its own, then rename it; folders are made.

    Raises
    ------
    ReadWriteError
        If it cannot be written: no space, no permission. What was there before stays.
    """
    # Bytes of file names that are no text are spelt as JSON does, which gives them back.
    write_bytes(path, text.encode("utf-8", "backslashreplace"))


def write_bytes(path: Path, content: bytes) -> None:
    """Write a small binary file, as :func:`write_text` does text.

    Raises
    ------
    ReadWriteError
        As :func:`write_text`.
    """
    try:
        with replacing(path) as partial:
            partial.write_bytes(content)
    except OSError as error:
        raise ReadWriteError(f"{path}: cannot be written ({error.strerror})") from error


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


def read_json(path: Path) -> Json:
    """Read a JSON object.

    Raises
    ------
    ReadWriteError
        If it cannot be read.
    UnusableDataError
        If it is not a JSON object, or as :func:`read_text`.
    """
    text = read_text(path)
    try:
        content = json.loads(text)
    except ValueError as error:
        raise UnusableDataError(f"{path}: not valid JSON ({error}); correct it") from error
    except RecursionError as error:
        raise UnusableDataError(f"{path}: JSON nested too deeply; correct it") from error
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


def append_tsv(path: Path, columns: Sequence[str], row: Mapping[str, object]) -> None:
    """Add a line to a table, as :func:`write_tsv` writes it.

    Raises
    ------
    ReadWriteError
        If it cannot be written.
    """
    try:
        with path.open("a", encoding="utf-8") as table:
            table.write("\t".join(_cell(row.get(name)) for name in columns) + "\n")
    except OSError as error:
        raise ReadWriteError(f"{path}: cannot be written ({error.strerror})") from error


def split_lines(text: str) -> list[str]:
    r"""Split text where its lines end: other than ``str.splitlines``, not inside a cell.

    Examples
    --------
    >>> split_lines("a\u2028b\x0bc\r\nd")
    ['a\u2028b\x0bc', 'd']
    """
    return re.split(r"\r\n|\r|\n", text)


def read_tsv(path: Path) -> list[dict[str, str]]:
    """Read a table as :func:`write_tsv` writes it; an absent one is empty.

    Raises
    ------
    ReadWriteError
        If it cannot be read.
    """
    if not path.exists():
        return []
    try:
        lines = split_lines(read_text(path))
    except UnusableDataError as error:
        raise ReadWriteError(f"{error}, or remove it") from error
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
    root, inner = (Path(os.path.realpath(place)) for place in (folder, path))
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
    try:
        with replacing(target) as partial:
            shutil.copyfile(source, partial)
    except OSError as error:
        raise ReadWriteError(f"{target}: cannot be written ({error.strerror})") from error


def remove_partials(folder: Path, *, below: bool = False) -> None:
    """Remove what writes that were killed have left in a folder, and, if asked, in those below it.

    What another process is writing is locked, and stays; where the disk knows no locks, all does.
    """
    for path in folder.rglob(".*") if below else folder.glob(".*"):
        if PARTIAL.match(path.name):
            with suppress(OSError), path.open("rb") as partial:
                fcntl.flock(partial, fcntl.LOCK_EX | fcntl.LOCK_NB)
                path.unlink()
