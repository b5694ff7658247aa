"""Whether a result is there already, made from the same files with the same settings."""

import hashlib
import json
from collections.abc import Iterable, Mapping
from pathlib import Path

from bids_app.derivatives.paths import sidecar_path
from bids_app.errors import MissingInputError, ReadWriteError, UnusableDataError
from bids_app.files import read_json


def _content(path: Path) -> str:
    """Digest all of a file: what gzip's last checksum covers may be the last of many pieces."""
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except FileNotFoundError as error:
        raise MissingInputError(f"{path}: no such file; fetch its content") from error
    except OSError as error:
        raise ReadWriteError(f"{path}: cannot be read ({error.strerror})") from error


def fingerprint(
    parameters: Mapping[str, object],
    sources: Iterable[Path],
    *,
    bids_dir: Path,
    generator_sha256: str | None = None,
) -> str:
    """Digest what decides about a result.

    Parameters
    ----------
    parameters : mapping
        Settings by name, as JSON can hold them: those that change the result, no others.
    sources : iterable of Path
        Raw images; their names inside the dataset and their content count, in any order.
    bids_dir : Path
        Root of the raw dataset, which may move.
    generator_sha256 : str, optional
        Of the generator's weights; None for what no generator makes.

    Returns
    -------
    str
        SHA-256, in hexadecimal.

    Raises
    ------
    MissingInputError, ReadWriteError
        If a source is not there, or cannot be looked at.
    """
    root = bids_dir.absolute()
    files = sorted((path.relative_to(root).as_posix(), _content(path)) for path in sources)
    content = {"parameters": parameters, "sources": files, "generator": generator_sha256}
    canonical = json.dumps(content, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(canonical.encode()).hexdigest()


def stored_fingerprint(path: Path) -> str:
    """Give the fingerprint that a result carries; empty if there is none."""
    try:
        return str(read_json(sidecar_path(path)).get("Fingerprint", ""))
    except (ReadWriteError, UnusableDataError):
        return ""


def is_complete(files: Iterable[Path], fingerprint: str) -> bool:
    """Whether all files are there, not empty, and their sidecars carry the fingerprint.

    Parameters
    ----------
    files : iterable of Path
        Results that have sidecars.
    fingerprint : str
        As :func:`fingerprint` gives it.
    """
    return all(_is_made(path, fingerprint) for path in files)


def _is_made(path: Path, fingerprint: str) -> bool:
    try:
        made = path.stat().st_size > 0
        return made and read_json(sidecar_path(path)).get("Fingerprint") == fingerprint
    except (OSError, ReadWriteError, UnusableDataError):
        return False
