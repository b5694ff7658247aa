"""Intensities between 0 and 1, as the networks want them."""

import numpy as np
from numpy.typing import NDArray

from bids_app.imaging.volume import Mask, Volume

SPIKE, TISSUE = 10.0, 99.9  # times this percentile of a T1w, no tissue is so bright; our choice


def scale_to_unit(volume: Volume, brain: Mask, *, percentile: float = 99.9) -> Volume:
    """Bring the intensities of a brain into [0, 1].

    Zotova et al. (2021), section 3.1, scale "between 0 and 1" and do not say how. Ours: divide by
    a high percentile of the brain, so that single bright voxels do not darken all others, and
    clip.

    Parameters
    ----------
    volume : ndarray, (I, J, K)
        Intensities in any unit; zero means none.
    brain : ndarray of bool, (I, J, K)
        The voxels that count.
    percentile : float
        Of the brain's intensities, the one that becomes 1.

    Returns
    -------
    ndarray, (I, J, K)
        float32 in [0, 1]; 0 outside the brain.

    Raises
    ------
    ValueError
        If the brain is empty, or nothing in it is brighter than zero.

    Examples
    --------
    >>> volume = np.array([[[0, 50, 100, 70]]], np.float32)
    >>> scale_to_unit(volume, volume < 100, percentile=100.0)
    array([[[0.        , 0.71428573, 0.        , 1.        ]]], dtype=float32)
    """
    if not brain.any():
        raise ValueError("the brain mask is empty")
    top = float(np.percentile(volume[brain], percentile))
    if not top > 0:
        raise ValueError("no intensity in the brain is above zero")
    return np.where(brain, np.clip(volume / top, 0, 1), 0).astype(np.float32)


def clip_spikes(volume: Volume) -> tuple[Volume, int]:
    """Cut off what is brighter than any tissue by far: a broken voxel, or a few.

    One of them would make bins of histograms so wide that all tissue falls into the first (N4),
    and rings for many voxels around it where a spline interpolates.

    Parameters
    ----------
    volume : ndarray, (I, J, K)
        Intensities of a T1w in any unit, finite; 0 is background.

    Returns
    -------
    ndarray, (I, J, K)
        At most SPIKE times the 99.9th percentile of all magnitudes that are not 0.
    int
        How many voxels were cut off.

    Examples
    --------
    >>> clip_spikes(np.array([[[0, 1, 2, 3]]], np.float32))[1]
    0
    """
    size = np.abs(volume)
    most = SPIKE * float(np.percentile(size[size > 0], TISSUE)) if size.any() else 0.0
    count = int((size > most).sum())
    return (np.clip(volume, -most, most) if count else volume), count


def match_quantiles(volume: Volume, brain: Mask, quantiles: NDArray[np.float32]) -> Volume:
    """Give the intensities of a brain a distribution that is known by its quantiles.

    Ranks stay: what was brighter is not darker afterwards, and what was equal is equal.

    Parameters
    ----------
    volume : ndarray, (I, J, K)
        Intensities in any unit.
    brain : ndarray of bool, (I, J, K)
        The voxels that count.
    quantiles : ndarray, (Q,)
        Of the distribution, evenly spaced from its least to its greatest value, as
        :func:`numpy.quantile` gives them.

    Returns
    -------
    ndarray, (I, J, K)
        float32, in the unit of the quantiles; 0 outside the brain.

    Examples
    --------
    >>> volume = np.array([[[3, 1, 2, 9]]], np.float32)
    >>> match_quantiles(volume, volume < 9, np.array([0.5, 0.625, 1.0], np.float32))
    array([[[1.   , 0.5  , 0.625, 0.   ]]], dtype=float32)
    """
    matched = np.zeros_like(volume, dtype=np.float32)
    _, place, counts = np.unique(volume[brain], return_inverse=True, return_counts=True)
    ranks = np.cumsum(counts) - (counts + 1) / 2  # from 0; equal values share their mean rank
    levels = ranks / max(len(place) - 1, 1)
    matched[brain] = np.interp(levels, np.linspace(0, 1, len(quantiles)), quantiles)[place]
    return matched
