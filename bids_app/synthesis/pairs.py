"""T1w and PET of one person, mapped from disk, and batches of their tiles."""

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
        float32 in [0, 1], 0 outside the brain; may lie on disk, mapped.
    places : tuple of int
        Tiles that count: with brain, and covered by the PET; empty where all tiles are used.
    condition : Tensor, (I, J, K), or None
        PET that a tissue model predicts, where the generator sees that, too.
    """

    mri: Tensor
    pet: Tensor
    places: tuple[int, ...] = ()
    condition: Tensor | None = None


@dataclass(frozen=True)
class Batch:
    """Tiles of true pairs: all of a batch, or one process's share of it.

    Parameters
    ----------
    mri, pet : Tensor, (N, channels, *size)
        In [0, 1].
    total : int
        Samples of the whole batch.
    condition : Tensor, (N, channels, *size), or None
        PET that a tissue model predicts, where the generator sees that, too.
    """

    mri: Tensor
    pet: Tensor
    total: int
    condition: Tensor | None = None

    def to(self, device: torch.device) -> "Batch":
        """Move it to a device, channels innermost, where networks expect them."""
        layout = torch.channels_last if self.mri.ndim == 4 else torch.channels_last_3d
        mri, pet = (tiles.to(device, memory_format=layout) for tiles in (self.mri, self.pet))
        if self.condition is None:
            return Batch(mri, pet, self.total)
        return Batch(mri, pet, self.total, self.condition.to(device, memory_format=layout))


def brain_tiles(tiling: Tiling, brain: Tensor) -> tuple[int, ...]:
    """List the tiles whose centre, the part that is kept of them, has brain.

    Parameters
    ----------
    tiling : Tiling
        How a volume is cut.
    brain : Tensor of bool, (I, J, K)
        The brain.
    """
    shape = tuple(brain.shape)
    return tuple(index for index in range(tiling.count(shape)) if tiling.centre(brain, index).any())


def whole_tiles(tiling: Tiling, hole: Tensor) -> tuple[int, ...]:
    """List the tiles that hold nothing of a hole.

    Parameters
    ----------
    tiling : Tiling
        How a volume is cut.
    hole : Tensor of bool, (I, J, K)
        What is brain, but was not covered by the PET.
    """
    shape = tuple(hole.shape)
    return tuple(index for index in range(tiling.count(shape)) if not tiling.cut(hole, index).any())


NAMES = ("t1w", "pet", "brain")


def store_volumes(
    folder: Path, owner: Owner, *, t1w: Volume, pet: Volume, brain: Mask, hole: Mask | None = None
) -> str:
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
    hole : ndarray of bool, (I, J, K), optional
        What the PET lacks of it; nothing by default.

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
    """Volumes of one visit, mapped; those of :func:`store_volumes`.

    ``condition``, (I, J, K), is the PET that a tissue model predicts, where that was stored, too.
    """

    owner: Owner
    t1w: Volume
    pet: Volume
    brain: Mask
    hole: Mask | None = None
    condition: Volume | None = None

    @property
    def covered(self) -> Mask:
        """All but what the PET lacks of the brain, (I, J, K)."""
        return np.ones(self.brain.shape, bool) if self.hole is None else ~self.hole


def open_volumes(folder: Path) -> Volumes:
    """Map the volumes of one visit.

    Raises
    ------
    ReadWriteError
        If they cannot be read.
    """
    owner = read_owner(folder)
    t1w, pet, brain = open_arrays(folder, NAMES)
    return Volumes(owner, t1w, pet, brain, open_hole(folder))


def pair_of(volumes: Volumes, spec: ModelSpec) -> Pair:
    """Give volumes as training sees them, with the tiles that count.

    Those are the tiles that the T1w shows brain in, and that hold nothing that the PET does not
    cover: no network sees the edge of a field of view. Where the T1w is 0 throughout, nothing is
    predicted, and nothing may be learned: instance norms of what does not vary multiply gradients
    by hundreds each (docs/results/training.md).

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
    """Give the pairs of visits, but for those of which the PET covers no tile."""
    pairs = []
    for visit in visits:
        with suppress(ValueError):
            pairs.append(pair_of(visit, spec))
    return pairs


def tensor_of(volume: Volume) -> Tensor:
    """Give a mapped volume as a tensor, without reading it."""
    return torch.from_numpy(np.asarray(volume))
