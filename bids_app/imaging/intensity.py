"""Intensities of volumes: smoothing, averages of frames, and scaling to 0..1."""

import math

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from bids_app.imaging.volume import Mask, Volume

SIGMA_OF_FWHM = 1 / math.sqrt(8 * math.log(2))
PERCENTILE = 99.9  # of a brain's intensities, becomes 1; our choice, see scale_to_unit
TIMES_MEAN = 2.5  # the mean of a brain in a PET, times this, becomes 1; ours: next to none is above


def smooth(volume: Volume, fwhm: float, zooms: tuple[float, float, float]) -> Volume:
    """Smooth a volume with an isotropic Gaussian.

    Parameters
    ----------
    volume : ndarray, (I, J, K)
        Any unit; kept.
    fwhm : float
        Full width of the Gaussian at half of its maximum, in mm; 0 leaves the volume as it is.
    zooms : tuple of float
        Voxel size in mm along each axis.

    Returns
    -------
    ndarray, (I, J, K)
        float32. Beyond its faces the volume goes on with the value at the face.
    """
    sigmas = [fwhm * SIGMA_OF_FWHM / zoom for zoom in zooms]
    return ndimage.gaussian_filter(volume.astype(np.float32), sigmas, mode="nearest")


def average_frames(frames: NDArray[np.float32], durations: NDArray[np.float64]) -> Volume:
    """Average PET frames, each weighted by how long it lasted.

    Parameters
    ----------
    frames : ndarray, (I, J, K, T)
        Activity concentration, any unit; kept.
    durations : ndarray, (T,)
        Length of each frame in seconds.

    Returns
    -------
    ndarray, (I, J, K)
        float32; a voxel that holds no number in one of the frames holds none on average.

    Raises
    ------
    ValueError
        If there is not one positive duration a frame.

    Examples
    --------
    >>> average_frames(np.array([[[[1, 4]]]], np.float32), np.array([200.0, 100.0]))
    array([[[2.]]], dtype=float32)
    """
    if durations.shape != frames.shape[3:]:
        raise ValueError(f"{frames.shape[3]} frames but {durations.size} durations")
    if not (durations > 0).all():
        raise ValueError("a frame lasts no time")
    total = np.zeros(frames.shape[:3], np.float64)
    for number, share in enumerate(durations / durations.sum()):  # all at once takes memory
        total += share * frames[..., number]
    return total.astype(np.float32)


def intensity_of_one(
    volume: Volume, brain: Mask, *, percentile: float = PERCENTILE, times_mean: float = 0.0
) -> float:
    """Give the intensity that becomes 1; arguments and errors as of :func:`scale_to_unit`."""
    if not brain.any():
        raise ValueError("the brain mask is empty")
    values = volume[brain]
    top = times_mean * float(values.mean(dtype=np.float64))
    if not times_mean:
        top = float(np.percentile(values, percentile))
    if not top > 0:
        raise ValueError("no intensity in the brain is above zero")
    return top


def describe_scaling(*, percentile: float = PERCENTILE, times_mean: float) -> dict[str, float]:
    """Say what became 1, as ``IntensityScaling`` in sidecars has it."""
    return {"TimesBrainMean": times_mean} if times_mean else {"Percentile": percentile}


SPIKE, TISSUE = 10.0, 99.9  # times this percentile of a T1w, no tissue is so bright; our choice


def scale_to_unit(
    volume: Volume, brain: Mask, *, percentile: float = PERCENTILE, times_mean: float = 0.0
) -> Volume:
    """Bring the intensities of a brain into [0, 1].

    Zotova et al. (2021), section 3.1, scale "between 0 and 1" and do not say how. Ours for T1w, and
    for PET with ``--paper``: divide by a high percentile of the brain, so that single bright voxels
    do not darken all others, and clip. For PET otherwise: divide by a multiple of the brain's mean,
    and clip, since that varies less with noise, scanner and person (docs/results/participant.md,
    "Scale of PET").

    Parameters
    ----------
    volume : ndarray, (I, J, K)
        Intensities in any unit; zero means none.
    brain : ndarray of bool, (I, J, K)
        The voxels that count.
    percentile : float
        Of the brain's intensities, the one that becomes 1.
    times_mean : float
        If it is not 0, the brain's mean times this becomes 1 instead.

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
    >>> scale_to_unit(volume, volume > 0, times_mean=1.25).round(2)
    array([[[0.  , 0.55, 1.  , 0.76]]], dtype=float32)
    """
    top = intensity_of_one(volume, brain, percentile=percentile, times_mean=times_mean)
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
    limit = SPIKE * float(np.percentile(size[size > 0], TISSUE)) if size.any() else 0.0
    count = int((size > limit).sum())
    return (np.clip(volume, -limit, limit) if count else volume), count


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
