"""T1w and PET of one person, memory-mapped from disk, and batches of their tiles."""

from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from bids_app.imaging.volume import Mask, Volume
from bids_app.nifti import HOLE, Owner, open_arrays, open_hole, read_owner, store_arrays
from bids_app.synthesis.models import ModelSpec
from bids_app.synthesis.tiling import Tiling


@dataclass(frozen=True)
class Pair:
    """T1w and PET of one person on one grid.

    Parameters
    ----------
    mri, pet : Tensor, (I, J, K)
        float32 in [0, 1], 0 outside the brain; may be memory-mapped.
    places : tuple of int
        Indices of the tiles to use: with brain, and covered by the PET; empty to use all tiles.
    condition : Tensor, (I, J, K), or None
        PET predicted by a tissue model, for a conditioned generator.
    """

    mri: Tensor
    pet: Tensor
    places: tuple[int, ...] = ()
    condition: Tensor | None = None


@dataclass(frozen=True)
class Batch:
    """Tiles of true pairs: a whole batch, or one process's share of it.

    Parameters
    ----------
    mri, pet : Tensor, (N, channels, *size)
        Tiles in [0, 1].
    total : int
        Number of samples in the whole batch.
    condition : Tensor, (N, channels, *size), or None
        PET predicted by a tissue model, for a conditioned generator.
    """

    mri: Tensor
    pet: Tensor
    total: int
    condition: Tensor | None = None

    def to(self, device: torch.device) -> "Batch":
        """Move the batch to a device, with channels innermost, as the networks expect."""
        layout = torch.channels_last if self.mri.ndim == 4 else torch.channels_last_3d
        mri, pet = (tiles.to(device, memory_format=layout) for tiles in (self.mri, self.pet))
        if self.condition is None:
            return Batch(mri, pet, self.total)
        return Batch(mri, pet, self.total, self.condition.to(device, memory_format=layout))


def brain_tiles(tiling: Tiling, brain: Tensor) -> tuple[int, ...]:
    """List the tiles whose centre, the part kept when merging, contains brain.

    Parameters
    ----------
    tiling : Tiling
        Division of the volume into tiles.
    brain : Tensor of bool, (I, J, K)
        Brain mask.
    """
    shape = tuple(brain.shape)
    return tuple(index for index in range(tiling.count(shape)) if tiling.centre(brain, index).any())


def whole_tiles(tiling: Tiling, hole: Tensor) -> tuple[int, ...]:
    """List the tiles without any voxel of a hole.

    Parameters
    ----------
    tiling : Tiling
        Division of the volume into tiles.
    hole : Tensor of bool, (I, J, K)
        Brain voxels that the PET does not cover.
    """
    shape = tuple(hole.shape)
    return tuple(index for index in range(tiling.count(shape)) if not tiling.cut(hole, index).any())


NAMES = ("t1w", "pet", "brain")


def store_volumes(
    folder: Path, owner: Owner, *, t1w: Volume, pet: Volume, brain: Mask, hole: Mask | None = None
) -> str:
    """Write the volumes of one visit, (I, J, K) each, as files that can be memory-mapped.

    Parameters
    ----------
    folder : Path
        Folder to write to, created if needed; files in it are replaced.
    owner : Owner
        Participant, session and grid of the volumes.
    t1w, pet : ndarray, (I, J, K)
        Intensities in [0, 1], 0 outside the brain.
    brain : ndarray of bool, (I, J, K)
        Brain mask.
    hole : ndarray of bool, (I, J, K), optional
        Brain voxels that the PET does not cover; none by default.

    Returns
    -------
    str
        SHA-256 of the content.

    Raises
    ------
    ReadWriteError
        If they cannot be written.
    """
    arrays = dict(zip(NAMES, (t1w, pet, brain), strict=True))
    return store_arrays(folder, owner, arrays if hole is None else {**arrays, HOLE: hole})


@dataclass(frozen=True)
class Volumes:
    """Memory-mapped volumes of one visit, written by :func:`store_volumes`.

    ``condition``, (I, J, K), is the PET predicted by a tissue model, if that was stored.
    """

    owner: Owner
    t1w: Volume
    pet: Volume
    brain: Mask
    hole: Mask | None = None
    condition: Volume | None = None

    @property
    def covered(self) -> Mask:
        """Mask, (I, J, K), of all voxels except the brain voxels that the PET does not cover."""
        return np.ones(self.brain.shape, bool) if self.hole is None else ~self.hole


def open_volumes(folder: Path) -> Volumes:
    """Memory-map the volumes of one visit.

    Raises
    ------
    ReadWriteError
        If they cannot be read.
    """
    owner = read_owner(folder)
    t1w, pet, brain = open_arrays(folder, NAMES)
    return Volumes(owner, t1w, pet, brain, open_hole(folder))


def pair_of(volumes: Volumes, spec: ModelSpec) -> Pair:
    """Return the volumes of a visit for training, with the tiles to use.

    These are the tiles in which the T1w shows brain and that contain no brain voxel outside the
    PET, so that no network sees the edge of a field of view. Tiles whose T1w is 0 throughout are
    not predicted, and must not be learned from either: each instance norm of a constant input
    multiplies gradients by hundreds (docs/results/training.md).

    Raises
    ------
    ValueError
        If there is no such tile.
    """
    places = brain_tiles(spec.tiling, tensor_of(volumes.t1w) > 0)
    if volumes.hole is not None:
        whole = set(whole_tiles(spec.tiling, torch.from_numpy(volumes.hole)))
        places = tuple(place for place in places if place in whole)
    if not places:
        raise ValueError("no tile of it is covered by the PET")
    condition = None if volumes.condition is None else tensor_of(volumes.condition)
    return Pair(tensor_of(volumes.t1w), tensor_of(volumes.pet), places, condition)


def usable_pairs(visits: Iterable[Volumes], spec: ModelSpec) -> list[Pair]:
    """Return the pairs of visits, without visits in which the PET covers no tile."""
    pairs = []
    for visit in visits:
        with suppress(ValueError):
            pairs.append(pair_of(visit, spec))
    return pairs


def tensor_of(volume: Volume) -> Tensor:
    """Return a memory-mapped volume as a tensor, without reading it."""
    return torch.from_numpy(np.asarray(volume))
