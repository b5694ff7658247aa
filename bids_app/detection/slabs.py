"""Slabs of transverse slices: a brain is computed on slab by slab, in any order, anywhere.

Values of a slab are those of the brain's voxels, slice by slice, the last axis of a slice fastest.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from bids_app.imaging.volume import Mask, Volume

THICKNESS = 8  # slices at 1 mm; our choice: a minute or two of work, and 17 to share out


@dataclass(frozen=True)
class Slab:
    """Slices ``first`` to ``last`` - 1 of a volume, along its third axis."""

    first: int
    last: int

    def slices(self) -> Iterator[int]:
        """Give the slices in order."""
        return iter(range(self.first, self.last))


def thickness_of(resolution: float) -> int:
    """Say how many slices a slab has at a resolution in mm: as many voxels as at 1 mm.

    Examples
    --------
    >>> thickness_of(1.0), thickness_of(2.0), thickness_of(4.0)
    (8, 32, 128)
    """
    return max(round(THICKNESS * resolution**2), 1)


def cut_slabs(depth: int, thickness: int) -> list[Slab]:
    """Cut the slices of a volume into slabs.

    Parameters
    ----------
    depth : int
        Slices of the volume.
    thickness : int
        Slices of a slab; the last may have fewer.

    Returns
    -------
    list of Slab
        Disjoint and in order; together all slices.

    Examples
    --------
    >>> cut_slabs(20, 8)
    [Slab(first=0, last=8), Slab(first=8, last=16), Slab(first=16, last=20)]
    """
    return [Slab(k, min(k + thickness, depth)) for k in range(0, depth, thickness)]


def count_voxels(brain: Mask, slab: Slab) -> int:
    """Count the brain's voxels in a slab."""
    return int(brain[:, :, slab.first : slab.last].sum())


def values_of(volume: Volume, brain: Mask, slab: Slab) -> NDArray[np.float32]:
    """Take the values of a slab out of a volume, (voxels,)."""
    return np.concatenate([volume[..., k][brain[..., k]] for k in slab.slices()])


def _runs(brain: Mask, slab: Slab) -> Iterator[tuple[int, slice]]:
    """Tell which of a slab's values belong to each of its slices."""
    start = 0
    for k in slab.slices():
        end = start + int(brain[..., k].sum())
        yield k, slice(start, end)
        start = end


def mean_map(pieces: Iterable[tuple[Slab, NDArray[np.float32]]], brain: Mask, folds: int) -> Volume:
    """Lay slabs of several folds out as the mean over folds.

    Parameters
    ----------
    pieces : iterable of (Slab, ndarray)
        Every slab of every fold, in any order.
    brain : ndarray of bool, (I, J, K)
        What was computed on.
    folds : int
        How many.

    Returns
    -------
    ndarray of float32, (I, J, K)
        0 outside the brain.

    Raises
    ------
    ValueError
        If the values of a slab are not as many as it has voxels.
    """
    total = np.zeros(brain.shape, np.float64)
    for slab, values in pieces:
        expected = count_voxels(brain, slab)
        if values.shape != (expected,):
            raise ValueError(f"{values.shape} values do not fill {expected} voxels")
        for k, run in _runs(brain, slab):
            total[..., k][brain[..., k]] += values[run]
    return (total / folds).astype(np.float32)
