"""Volumes of a cohort on disk, mapped into memory page by page: a cohort of any size can be used.

Arrays lie with the last axis outermost, so that the voxels of a transverse slice lie together.
"""

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path

import numpy as np
from numpy.lib.format import open_memmap

from bids_app.errors import ReadWriteError
from bids_app.files import read_json, write_bytes, write_json
from bids_app.imaging.volume import Mask, zooms_of

ABOUT = "about.json"
HOLE = "hole"  # what is brain, but was not covered by the PET; no such array: nothing


@dataclass(frozen=True)
class Owner:
    """Whose volumes they are.

    Parameters
    ----------
    participant, session : str, str or None
        Labels.
    affine : tuple
        Voxel indices → mm, RAS+, row by row.
    """

    participant: str
    session: str | None
    affine: tuple[tuple[float, ...], ...]

    @property
    def zooms(self) -> tuple[float, float, float]:
        """Voxel size in mm along each axis."""
        return zooms_of(np.array(self.affine))


def store_arrays(folder: Path, owner: Owner, arrays: Mapping[str, np.ndarray]) -> str:
    """Write the volumes of one visit, (I, J, K) each, so that they can be mapped.

    Parameters
    ----------
    folder : Path
        Is made; arrays in it are replaced.
    owner : Owner
        Whose they are.
    arrays : mapping
        Name → volume.

    Returns
    -------
    str
        SHA-256 of names, affine and content.

    Raises
    ------
    ReadWriteError
        If they cannot be written.
    """
    digest = hashlib.sha256(json.dumps([owner.affine, list(arrays)]).encode())
    for path in {*folder.glob("*.npy")} - {folder / f"{name}.npy" for name in arrays}:
        path.unlink()  # of an earlier run; what is mapped elsewhere stays
    for name, array in arrays.items():
        digest.update(np.ascontiguousarray(array).tobytes())
        _save(np.asfortranarray(array), folder / f"{name}.npy")
    about = {"participant": owner.participant, "session": owner.session, "affine": owner.affine}
    write_json(folder / ABOUT, {**about, "sha256": digest.hexdigest()})
    return digest.hexdigest()


def _save(array: np.ndarray, path: Path) -> None:
    content = BytesIO()
    np.save(content, array)
    write_bytes(path, content.getvalue())


def read_owner(folder: Path) -> Owner:
    """Read whose volumes lie in a folder.

    Raises
    ------
    ReadWriteError
        If it cannot be read.
    """
    about = read_json(folder / ABOUT)
    affine = tuple(tuple(float(x) for x in row) for row in about["affine"])  # type: ignore[attr-defined]
    session = about["session"]
    return Owner(str(about["participant"]), None if session is None else str(session), affine)


def read_digest(folder: Path) -> str:
    """Read the SHA-256 that :func:`store_arrays` gave.

    Raises
    ------
    ReadWriteError
        If it cannot be read.
    """
    return str(read_json(folder / ABOUT)["sha256"])


def open_arrays(folder: Path, names: Iterable[str]) -> list[np.ndarray]:
    """Map volumes of one visit; what is written to them stays in memory.

    Raises
    ------
    ReadWriteError
        If they cannot be read.
    """
    try:  # a private mapping: torch warns of arrays that may not be written to
        return [open_memmap(folder / f"{name}.npy", mode="c") for name in names]
    except (OSError, ValueError) as error:
        raise ReadWriteError(f"{folder}: cannot be read ({error}); delete it") from error


def open_hole(folder: Path) -> Mask | None:
    """Map what is brain in a visit, but was not covered by its PET; None if that is nothing.

    Raises
    ------
    ReadWriteError
        If it cannot be read.
    """
    return open_arrays(folder, [HOLE])[0] if (folder / f"{HOLE}.npy").exists() else None
