"""T1w, PET and brain of a visit on disk, as training maps them."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from bids_app.imaging.volume import Mask, Volume
from bids_app.mapped import Owner, open_arrays, read_owner, store_arrays
from bids_app.synthesis.models import ModelSpec
from bids_app.synthesis.pairs import Pair, brain_tiles

NAMES = ("t1w", "pet", "brain")


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
    return store_arrays(folder, owner, dict(zip(NAMES, (t1w, pet, brain), strict=True)))


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
    return Volumes(read_owner(folder), *open_arrays(folder, NAMES))


def pair_of(volumes: Volumes, spec: ModelSpec) -> Pair:
    """Give volumes as training sees them, with the tiles that have brain where only they count."""
    brain = torch.from_numpy(volumes.brain)
    places = brain_tiles(spec.tiling, brain) if spec.tiles_per_volume else ()
    return Pair(tensor_of(volumes.t1w), tensor_of(volumes.pet), places)


def tensor_of(volume: Volume) -> Tensor:
    """Give a mapped volume as a tensor, without reading it."""
    return torch.from_numpy(np.asarray(volume))
