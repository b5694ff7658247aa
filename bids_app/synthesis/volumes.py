"""Volumes of a cohort on disk, mapped into memory page by page: a cohort of any size can be used.

Arrays lie with the last axis outermost, so that the transverse slices of a tile are read together.
"""

import hashlib
import json
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from bids_app.errors import ReadWriteError
from bids_app.files import read_json, write_bytes, write_json
from bids_app.imaging.volume import Mask, Volume, zooms_of
from bids_app.synthesis.models import ModelSpec
from bids_app.synthesis.pairs import Pair, brain_tiles

NAMES = ("t1w", "pet", "brain")
ABOUT = "about.json"


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


def store_volumes(folder: Path, owner: Owner, *, t1w: Volume, pet: Volume, brain: Mask) -> str:
    """Write the volumes of one visit, (I, J, K) each, so that they can be mapped.

    Parameters
    ----------
    folder : Path
        Is made; files in it are replaced.
    owner : Owner
        Whose they are.
    t1w, pet : ndarray, (I, J, K)
        Intensities in [0, 1], 0 outside the brain.
    brain : ndarray of bool, (I, J, K)
        The brain.

    Returns
    -------
    str
        SHA-256 of the content.

    Raises
    ------
    ReadWriteError
        If they cannot be written.
    """
    digest = hashlib.sha256(json.dumps(owner.affine).encode())
    for name, volume in zip(NAMES, (t1w, pet, brain), strict=True):
        digest.update(np.ascontiguousarray(volume).tobytes())
        _save(np.asfortranarray(volume), folder / f"{name}.npy")
    about = {"participant": owner.participant, "session": owner.session, "affine": owner.affine}
    write_json(folder / ABOUT, {**about, "sha256": digest.hexdigest()})
    return digest.hexdigest()


def _save(volume: np.ndarray, path: Path) -> None:
    content = BytesIO()
    np.save(content, volume)
    write_bytes(path, content.getvalue())


@dataclass(frozen=True)
class Volumes:
    """Volumes of one visit, mapped; those of :func:`store_volumes`."""

    owner: Owner
    t1w: Volume
    pet: Volume
    brain: Mask


def open_volumes(folder: Path) -> Volumes:
    """Map the volumes of one visit.

    Raises
    ------
    ReadWriteError
        If they cannot be read.
    """
    about = read_json(folder / ABOUT)
    affine = tuple(tuple(float(x) for x in row) for row in about["affine"])  # type: ignore[attr-defined]
    session = about["session"]
    owner = Owner(str(about["participant"]), None if session is None else str(session), affine)
    try:  # a private mapping: torch warns of arrays that may not be written to
        t1w, pet, brain = (np.load(folder / f"{name}.npy", mmap_mode="c") for name in NAMES)
    except (OSError, ValueError) as error:
        raise ReadWriteError(f"{folder}: cannot be read ({error}); delete it") from error
    return Volumes(owner, t1w, pet, brain)


def pair_of(volumes: Volumes, spec: ModelSpec) -> Pair:
    """Give volumes as training sees them, with the tiles that have brain where only they count."""
    brain = torch.from_numpy(volumes.brain)
    places = brain_tiles(spec.tiling, brain) if spec.tiles_per_volume else ()
    return Pair(tensor_of(volumes.t1w), tensor_of(volumes.pet), places)


def tensor_of(volume: Volume) -> Tensor:
    """Give a mapped volume as a tensor, without reading it."""
    return torch.from_numpy(np.asarray(volume))
