"""Safe reading and writing of files.

Files are written so that they are either complete or absent. Only regular files of a limited size
are read.
"""

import errno
import fcntl
import hashlib
import json
import os
import re
import shutil
import stat
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any
from uuid import uuid4

from bids_app.errors import CannotCreateError, MissingInputError, ReadWriteError, UnusableDataError

Json = dict[str, Any]  # a JSON object; its users check its content
PARTIAL = re.compile(r"\.[0-9a-f]{32}\.")  # names of files that are being written
GZIP = b"\x1f\x8b"  # first bytes of compressed files (RFC 1952)
MISSING = "n/a"  # BIDS, "Tabular files"
LARGEST_TEXT = 1 << 25  # bytes of a sidecar, table or list, at most; our choice
SPECIAL = {
    stat.S_IFDIR: "a folder",
    stat.S_IFIFO: "a named pipe",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}
NOWHERE = "a broken link; fetch its target"
ABSENT = (errno.ENOENT, errno.ENOTDIR, errno.ELOOP)
NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL)  # on some shared disks


def why_no_file(path: Path) -> str | None:
    """Describe what a path is if not a file (a folder, a named pipe …), and what to do, or None.

    Nothing is opened. A broken link is not a file, either. If nothing exists at the path, or it is
    not accessible, the result is None: opening it raises the error.
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
    return f"{kind}, not a file; correct the path, or put a file there"


def size_of(path: Path) -> int:
    """Return the size of a file in bytes without opening it, because a named pipe may block.

    Raises
    ------
    MissingInputError
        If the file does not exist.
    UnusableDataError
        If it is a folder, a named pipe, a socket or a device.
    ReadWriteError
        If it is not accessible.
    """
    try:
        found = path.stat()
    except OSError as error:
        if error.errno in ABSENT:
            raise MissingInputError(
                f"{path}: no such file; check the dataset, or fetch its content"
            ) from error
        raise ReadWriteError(f"{path}: is not accessible ({error.strerror})") from error
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
        Path of a file. Anything else, such as a named pipe, is not opened.
    largest : int
        Maximum size of the file, in bytes.

    Raises
    ------
    ReadWriteError
        If the file does not exist or cannot be read.
    UnusableDataError
        If it is not a file, is too large, or is not UTF-8.
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
            f"{path}: has {_megabytes(size)} MB, but such files have at most "
            f"{_megabytes(largest)} MB; correct it"
        )
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UnusableDataError(f"{path}: not UTF-8 text; save it again as UTF-8") from error


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Write a file under a temporary name, then flush it to the disk and rename it.

    Flushing first ensures that even after a crash of the machine, either the previous or the
    complete new file exists, because a rename may reach the disk before the content does. The file
    is locked while it is written, so that :func:`remove_partials` keeps it.

    Yields
    ------
    Path
        Temporary path in the folder of ``path``; the folder is created.

    Raises
    ------
    OSError
        If the file cannot be written. The previous file remains, and nothing else.
    """
    partial = path.with_name(f".{uuid4().hex}.{path.name}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with partial.open("wb") as file:
            with suppress(OSError):  # some disks do not support locks
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            yield partial
            _flush(partial)
            partial.replace(path)
    except BaseException:
        with suppress(OSError):  # the first error is the one to report
            partial.unlink(missing_ok=True)
        raise
    with suppress(OSError):  # the file is written; some disks cannot flush folders
        _flush(path.parent)


def _flush(path: Path) -> None:
    """Flush the content of a file, or the entries of a folder, to the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def write_text(path: Path, text: str) -> None:
    """Write UTF-8 text under a temporary name, then rename it; folders are created.

    Raises
    ------
    ReadWriteError
        If it cannot be written: no space, no permission. The previous file remains.
    """
    # Undecodable bytes of file names are escaped as in JSON, which restores them.
    write_bytes(path, text.encode("utf-8", "backslashreplace"))


def write_bytes(path: Path, content: bytes) -> None:
    """Write a small binary file in the way of :func:`write_text`.

    Raises
    ------
    ReadWriteError
        If it cannot be written. The previous file remains.
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
        If it cannot be written. The previous file remains.
    ValueError
        If a number is not finite, which JSON cannot represent.
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
        If it is not a JSON object, or for the reasons in :func:`read_text`.
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


def object_at(content: Mapping[str, Any], key: str) -> Json:
    """Return the JSON object at a key of another one; empty if there is none."""
    value = content.get(key)
    return value if isinstance(value, dict) else {}


def _cell(value: object) -> str:
    if value is None or value == "":
        return MISSING
    if isinstance(value, float):
        return f"{value:.6g}"
    return " ".join(str(value).split())  # no tab or line break inside a cell


def write_tsv(path: Path, columns: Sequence[str], rows: Sequence[Mapping[str, object]]) -> None:
    """Write a table; cells that are missing from a row, or None, become ``n/a``.

    Raises
    ------
    ReadWriteError
        If it cannot be written. The previous file remains.
    """
    lines = [list(columns), *([_cell(row.get(name)) for name in columns] for row in rows)]
    write_text(path, "".join("\t".join(cells) + "\n" for cells in lines))


def append_tsv(path: Path, columns: Sequence[str], row: Mapping[str, object]) -> None:
    """Append a row to a table, in the format of :func:`write_tsv`.

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
    r"""Split text at line ends only: unlike ``str.splitlines``, never inside a cell.

    Examples
    --------
    >>> split_lines("a\u2028b\x0bc\r\nd")
    ['a\u2028b\x0bc', 'd']
    """
    return re.split(r"\r\n|\r|\n", text)


def read_tsv(path: Path) -> list[dict[str, str]]:
    """Read a table written by :func:`write_tsv`; a missing file gives an empty table.

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


def file_sha256(path: Path) -> str:
    """Return the SHA-256 of a file, in hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def place_in(folder: Path, path: Path) -> tuple[str, ...] | None:
    """Return the location of a path inside a folder, regardless of how both are written.

    Links and ``..`` are resolved. Folders that the disk considers the same are the same: names that
    differ only in case, or a place that is mounted twice.

    Parameters
    ----------
    folder, path : Path
        Paths that need not exist.

    Returns
    -------
    tuple of str or None
        Parts of the path relative to the folder, empty if both are the same; None if the path does
        not lie in the folder.
    """
    root, inner = (Path(os.path.realpath(place)) for place in (folder, path))
    for outer in (inner, *inner.parents):
        if _is_same(outer, root):
            return inner.relative_to(outer).parts
    return None


def _is_same(one: Path, other: Path) -> bool:
    try:
        return one.samefile(other)
    except OSError:  # one of them does not exist
        return one == other


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Allow only one process at a time to read and rewrite the shared files of a folder.

    If the disk does not support locks, all processes continue: files are still complete, and the
    last writer, who has read the most, wins.

    Raises
    ------
    ReadWriteError
        If the lock file cannot be created.
    """
    path = folder / ".mri2pet.lock"
    try:
        handle = path.open("w")
    except OSError as error:
        raise ReadWriteError(f"{path}: cannot be written to ({error.strerror})") from error
    with handle:  # closing it releases the lock
        try:
            fcntl.lockf(handle, fcntl.LOCK_EX)
        except OSError as error:
            if error.errno not in NO_LOCKS:
                raise ReadWriteError(f"{folder}: cannot be locked ({error.strerror})") from error
        yield


def copy_file(source: Path, target: Path) -> None:
    """Copy a file under a temporary name, then rename it; folders are created.

    Raises
    ------
    ReadWriteError
        If it cannot be read or written. The previous file remains.
    """
    try:
        with replacing(target) as partial:
            shutil.copyfile(source, partial)
    except OSError as error:
        raise ReadWriteError(f"{target}: cannot be written ({error.strerror})") from error


def remove_partials(folder: Path, *, below: bool = False) -> None:
    """Remove partial files that killed processes left in a folder, or also in those ``below`` it.

    Files that another process is writing are locked and remain; if the disk does not support locks,
    all remain.
    """
    for path in folder.rglob(".*") if below else folder.glob(".*"):
        if PARTIAL.match(path.name):
            with suppress(OSError), path.open("r+b") as partial:  # as NFS needs for a lock
                fcntl.flock(partial, fcntl.LOCK_EX | fcntl.LOCK_NB)
                path.unlink()


def refuse_unwritable(folder: Path) -> None:
    """Check that a folder, or its nearest existing parent, can be written to.

    Raises
    ------
    CannotCreateError
        If it cannot.
    """
    try:
        existing = next(
            place for place in (folder, *folder.parents) if place.is_symlink() or place.exists()
        )
        with tempfile.TemporaryFile(dir=existing) as file:  # nameless on most file systems
            file.write(b"mri2pet")
    except OSError as error:
        raise CannotCreateError(
            f"{folder}: cannot be written to ({error.strerror}); choose another folder"
        ) from error
