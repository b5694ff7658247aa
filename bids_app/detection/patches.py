"""Pairs of axial patches at one place of the brain, in two different controls."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from bids_app.imaging.volume import Volume

PEOPLE = 2  # that a pair needs, at least


def cut_patches(volume: Volume, centres: NDArray[np.intp], size: int) -> NDArray[np.float32]:
    """Cut axial patches around voxels out of a volume, which may lie on disk, mapped.

    Only the patches are read.

    Parameters
    ----------
    volume : ndarray, (I, J, K)
        Any unit.
    centres : ndarray of int, (N, 3)
        Voxels inside the volume.
    size : int
        Edge in voxels; odd.

    Returns
    -------
    ndarray of float32, (N, size, size)
        In the volume's unit; 0 beyond its border, as outside the brain.
    """
    steps = np.arange(size) - size // 2
    rows = centres[:, 0, None, None] + steps[:, None]
    columns = centres[:, 1, None, None] + steps
    inside = (rows >= 0) & (rows < volume.shape[0]) & (columns >= 0) & (columns < volume.shape[1])
    last_row, last_column = volume.shape[0] - 1, volume.shape[1] - 1
    found = volume[rows.clip(0, last_row), columns.clip(0, last_column), centres[:, 2, None, None]]
    return np.where(inside, found, 0).astype(np.float32, copy=False)


def draw_pairs(
    volumes: Sequence[Volume],
    places: NDArray[np.intp],
    count: int,
    random: np.random.Generator,
    *,
    size: int,
) -> NDArray[np.float32]:
    """Draw pairs of patches: two different controls, one place, all equally likely.

    Parameters
    ----------
    volumes : sequence of ndarray, (I, J, K)
        One a control, on one grid, in [0, 1]; may lie on disk, mapped.
    places : ndarray of int, (voxels, 3)
        Where a patch may have its centre, as ``np.argwhere`` of the analysed brain gives it.
    count : int
        Pairs.
    random : numpy.random.Generator
        Where chance comes from.
    size : int
        Edge of a patch in voxels; odd.

    Returns
    -------
    ndarray of float32, (count, 2, size, size)
        In [0, 1].

    Raises
    ------
    ValueError
        If there are fewer than two controls, or no place.
    """
    people = len(volumes)
    if people < PEOPLE:
        raise ValueError(f"a pair needs {PEOPLE} controls, not {people}")
    if not len(places):
        raise ValueError("the analysed brain has no voxel")
    centres = places[random.integers(len(places), size=count)]
    one = random.integers(people, size=count)
    other = (one + random.integers(1, people, size=count)) % people
    pairs = np.empty((count, 2, size, size), np.float32)
    for person, volume in enumerate(volumes):
        for twin, chosen in enumerate((one == person, other == person)):
            pairs[chosen, twin] = cut_patches(volume, centres[chosen], size)
    return pairs
