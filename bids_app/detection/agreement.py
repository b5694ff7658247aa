"""Where the brains of many people agree."""

from collections.abc import Iterable
from math import ceil

import numpy as np

from bids_app.imaging.volume import Mask

ENOUGH = 10  # controls that know a voxel; our choice
MOST = 0.75  # of the controls, where there are few; our choice


def least_controls(controls: int) -> int:
    """Say how many of the controls must know a voxel for it to be analysed.

    Some do not where their PET does not cover the brain. Ten are enough, or three in four where
    there are fewer than 14 controls, but two at least: our choice.

    Examples
    --------
    >>> [least_controls(n) for n in (2, 3, 4, 8, 13, 14, 100)]
    [2, 3, 3, 6, 10, 10, 10]
    """
    return max(min(ENOUGH, ceil(MOST * controls)), 2)


def common_brain(masks: Iterable[Mask], share: float = 0.9) -> Mask:
    """Mark the voxels that are brain in at least a share of people, holding one mask at a time.

    Parameters
    ----------
    masks : iterable of ndarray of bool, (I, J, K)
        One or more brains on one grid.
    share : float
        Above 0, up to 1. Nine in ten is our choice: one mask that is too small does not cut all
        others.

    Returns
    -------
    ndarray of bool, (I, J, K)

    Raises
    ------
    ValueError
        If there is no mask, shapes differ, or no such share exists.

    Examples
    --------
    >>> masks = [np.array([True, True, False]), np.array([True, False, False])]
    >>> common_brain(masks), common_brain(masks, 0.5)
    (array([ True, False, False]), array([ True,  True, False]))
    """
    if not 0 < share <= 1:
        raise ValueError(f"a share of people is above 0 and up to 1, not {share}")
    count, times = 0, np.zeros((), np.int32)
    for mask in masks:
        if count and mask.shape != times.shape:
            raise ValueError(f"brains of {times.shape} and of {mask.shape} voxels differ")
        times = times + mask
        count += 1
    if not count:
        raise ValueError("without brains there is nothing that they have in common")
    return times >= share * count * (1 - 1e-9)  # 0.28 of 25 is 7.000000000000001
