"""Pairs of axial patches at one place of the brain, in two different controls."""

from collections.abc import Mapping, Sequence
from types import MappingProxyType

import numpy as np
from numpy.typing import NDArray

from bids_app.imaging.coverage import near
from bids_app.imaging.volume import Mask, Volume

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


def whole_patches(hole: Mask, size: int) -> Mask:
    """Mark the voxels whose axial patch touches no hole, (I, J, K) or one slice of it, (I, J, 1).

    Parameters
    ----------
    hole : ndarray of bool, (I, J, K)
        What is brain, but was not covered by the PET.
    size : int
        Edge of a patch in voxels; odd.
    """
    return ~near(hole, (size, size, 1))


def shared_places(brain: Mask, whole: Mapping[int, Mask], people: int) -> NDArray[np.intp]:
    """List the voxels of a brain where two controls or more have a whole patch, (voxels, 3).

    Parameters
    ----------
    brain : ndarray of bool, (I, J, K)
        What is analysed.
    whole : mapping
        As :func:`draw_pairs` wants it.
    people : int
        How many controls there are.
    """
    known = np.full(brain.shape, people - len(whole))
    for one in whole.values():
        known += one
    return np.argwhere(brain & (known >= PEOPLE))


def draw_pairs(
    volumes: Sequence[Volume],
    places: NDArray[np.intp],
    count: int,
    random: np.random.Generator,
    *,
    size: int,
    whole: Mapping[int, Mask] = MappingProxyType({}),
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
    whole : mapping
        Place of a control → ndarray of bool, (I, J, K): where its patches are whole. Those of
        controls that are not named are whole everywhere. Every place has two such controls.

    Returns
    -------
    ndarray of float32, (count, 2, size, size)
        In [0, 1]; whole.

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
    known = np.ones((count, people), bool)
    for person, mask in whole.items():
        known[:, person] = mask[tuple(centres.T)]
    one, other = _draw_two(known, random)
    pairs = np.empty((count, 2, size, size), np.float32)
    for person, volume in enumerate(volumes):
        for twin, chosen in enumerate((one == person, other == person)):
            pairs[chosen, twin] = cut_patches(volume, centres[chosen], size)
    return pairs


def _draw_two(
    known: NDArray[np.bool_], random: np.random.Generator
) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """Draw two different ones of those that each row, (count, people), knows."""
    count, people = known.shape
    number = people if known.all() else known.sum(axis=1)
    one = random.integers(number, size=count)
    other = (one + random.integers(1, number, size=count)) % number
    order = np.argsort(~known, axis=1, kind="stable")  # those that are known come first
    rows = np.arange(count)
    return order[rows, one], order[rows, other]
