"""Intensities of volumes: smoothing, averaging of frames, and scaling to [0, 1]."""

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from bids_app.imaging.volume import Mask, Volume

SIGMA_OF_FWHM = 1 / math.sqrt(8 * math.log(2))
PERCENTILE = 99.9  # of the brain's intensities, scaled to 1; our choice, see scale_to_unit
TIMES_MEAN = 2.5  # multiple of the brain's mean in PET, scaled to 1; our choice: few exceed it


def check_fwhm(fwhm: float) -> None:
    """Check the width of a Gaussian, because scipy takes NaN or a negative width as 0.

    Raises
    ------
    ValueError
        If it is not a finite number of 0 or more.
    """
    if not 0 <= fwhm < np.inf:
        raise ValueError(f"fwhm must be 0 mm or more, not {fwhm}")


def smooth(volume: Volume, fwhm: float, zooms: tuple[float, float, float]) -> Volume:
    """Smooth a volume with an isotropic Gaussian.

    Parameters
    ----------
    volume : ndarray, (I, J, K)
        Intensities in any unit, which is kept.
    fwhm : float
        Full width at half maximum of the Gaussian, in mm; 0 leaves the volume unchanged.
    zooms : tuple of float
        Voxel size in mm along each axis.

    Returns
    -------
    ndarray, (I, J, K)
        Smoothed volume in float32. Outside the volume, the nearest values are repeated.

    Raises
    ------
    ValueError
        See :func:`check_fwhm`.
    """
    check_fwhm(fwhm)
    sigmas = [fwhm * SIGMA_OF_FWHM / zoom for zoom in zooms]
    return ndimage.gaussian_filter(volume.astype(np.float32), sigmas, mode="nearest")


def average_frames(
    frames: NDArray[np.float32], durations: NDArray[np.float64], chosen: Sequence[int] = ()
) -> Volume:
    """Average PET frames, weighted by their durations.

    Frames are read one by one, because a copy of the chosen ones may take gigabytes.

    Parameters
    ----------
    frames : ndarray, (I, J, K, T)
        Activity concentration in any unit, which is kept.
    durations : ndarray, (T,)
        Duration of each frame in seconds.
    chosen : sequence of int
        Frames to average, counted from 0; all by default.

    Returns
    -------
    ndarray, (I, J, K)
        Average in float32, not finite in voxels that are not finite in one of the frames.

    Raises
    ------
    ValueError
        If there is not one duration per frame, or that of a chosen frame is not positive.

    Examples
    --------
    >>> average_frames(np.array([[[[1, 4]]]], np.float32), np.array([200.0, 100.0]))
    array([[[2.]]], dtype=float32)
    """
    if durations.shape != frames.shape[3:]:
        raise ValueError(f"{frames.shape[3]} frames but {durations.size} durations")
    used = list(chosen) if chosen else list(range(durations.size))
    weights = durations[used]
    if not (weights > 0).all():
        raise ValueError("a frame has a duration that is not above 0")
    total = np.zeros(frames.shape[:3], np.float64)
    for frame, share in zip(used, weights / weights.sum(), strict=True):
        total += share * frames[..., frame]
    return total.astype(np.float32)


def intensity_of_one(
    volume: Volume, brain: Mask, *, percentile: float = PERCENTILE, times_mean: float = 0.0
) -> float:
    """Return the intensity that is scaled to 1, with the parameters of :func:`scale_to_unit`."""
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
    """Describe which intensity was scaled to 1, for ``IntensityScaling`` in sidecars."""
    return {"TimesBrainMean": times_mean} if times_mean else {"Percentile": percentile}


SPIKE, TISSUE = 10.0, 99.9  # no tissue exceeds this multiple of this percentile; our choice


def scale_to_unit(
    volume: Volume, brain: Mask, *, percentile: float = PERCENTILE, times_mean: float = 0.0
) -> Volume:
    """Scale the intensities of a brain to [0, 1].

    Zotova et al. (2021), section 3.1, scale "between 0 and 1" and do not say how. Our choice for
    T1w, and for PET with ``--paper``, is to divide by a high percentile of the brain, so that
    single bright voxels do not darken all others, and clip. PET are otherwise divided by a multiple
    of the brain's mean and clipped, because that varies less with noise, scanner and person
    (docs/results/participant.md, "Scale of PET").

    Parameters
    ----------
    volume : ndarray, (I, J, K)
        Intensities in any unit, on a scale whose 0 means none.
    brain : ndarray of bool, (I, J, K)
        Brain mask.
    percentile : float
        Percentile of the brain's intensities that is scaled to 1.
    times_mean : float
        Multiple of the brain's mean that is scaled to 1 instead, if it is not 0.

    Returns
    -------
    ndarray, (I, J, K)
        Scaled volume, float32 in [0, 1]; 0 outside the brain.

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
    """Clip broken voxels that are far brighter than any tissue.

    In a T1w, a single one would widen the bins of a histogram so that all tissue falls into the
    first (N4), and cause ringing over many voxels in spline interpolation. In a PET, it would raise
    the mean of the brain, by which all others are divided.

    Parameters
    ----------
    volume : ndarray, (I, J, K)
        Finite intensities of a T1w or PET in any unit, 0 in the background.

    Returns
    -------
    ndarray, (I, J, K)
        Volume clipped at SPIKE times the 99.9th percentile of all magnitudes that are not 0.
    int
        Number of clipped voxels.

    Examples
    --------
    >>> clip_spikes(np.array([[[0, 1, 2, 3]]], np.float32))[1]
    0
    """
    size = np.abs(volume)
    limit = SPIKE * float(np.percentile(size[size > 0], TISSUE)) if size.any() else 0.0
    count = int((size > limit).sum())
    return (np.clip(volume, -limit, limit) if count else volume), count


FLOOR = 0.05  # share of the brightest tissue; no air is as bright; our choice


def subtract_floor(volume: Volume) -> tuple[Volume, float]:
    """Subtract the least intensity of a T1w if it is so high that a constant was added.

    Later steps take 0 for background, and ratios of the other intensities.

    Parameters
    ----------
    volume : ndarray, (I, J, K)
        Intensities of a T1w in any unit; NaN or infinite in gaps.

    Returns
    -------
    ndarray, (I, J, K)
        Volume, from which the floor is subtracted if it is above FLOOR of the 99.9th percentile.
    float
        What was subtracted; 0 if nothing was.

    Examples
    --------
    >>> subtract_floor(np.array([[[7, 9, 12]]], np.float32))
    (array([[[0., 2., 5.]]], dtype=float32), 7.0)
    """
    values = volume[np.isfinite(volume)]
    floor = float(values.min(initial=np.inf))
    if floor <= 0 or floor <= FLOOR * float(np.percentile(values, TISSUE)):
        return volume, 0.0
    return volume - np.float32(floor), floor


BRIGHT, LEAST_BRIGHT = 0.5, 0.002  # of the largest intensity; of all voxels, or else they are few
# hot ones, which are not tissue; our choice


def saturation(volume: Volume) -> float:
    """Return the share of the bright voxels that have the largest intensity.

    It is near 0 unless brighter intensities were cut off, as by a type of integers that does not
    hold them.

    Parameters
    ----------
    volume : ndarray, (I, J, K)
        Intensities in any unit; NaN or infinite in gaps.

    Returns
    -------
    float
        Share of the voxels above half of the largest intensity, 0 to 1; 0 if these are very few.

    Examples
    --------
    >>> saturation(np.array([[[0, 1, 7, 8, 9, 9]]], np.float32))
    0.5
    """
    values = volume[np.isfinite(volume)]
    largest = values.max(initial=0)
    bright = values[values > BRIGHT * largest]
    if bright.size <= LEAST_BRIGHT * values.size:
        return 0.0
    return float((bright == largest).mean())


FACES = 0.25  # share of the faces of a PET that shows air, or else its level is unknown; our choice
LOWEST = 1  # percentile of a PET that represents its least intensities; our choice
# The most that they may be below the air, as a share of its level and of the range; our choice
OF_LEVEL, OF_RANGE = 0.5, 0.2


def subtract_air(volume: Volume) -> tuple[Volume, float]:
    """Subtract the level of the air around the head from a PET if a constant was added to all.

    There is no tracer in air. A constant, such as an intercept that was lost, makes all tissues
    more alike. The level of the air is the median of the faces of the volume, if it is near the
    least intensities: the faces of a volume that was cropped inside the head show tissue. The least
    intensity alone would not do, because noise of air may be negative.

    Parameters
    ----------
    volume : ndarray, (I, J, K)
        Intensities of a PET in any unit; NaN or infinite in gaps. 0, and a negative minimum, may be
        padding; neither counts as air.

    Returns
    -------
    ndarray, (I, J, K)
        Volume, from which the level is subtracted, except where it is 0, if it is further from 0
        than FLOOR of the 99.9th percentile above the level.
    float
        What was subtracted; 0 if nothing was.

    Examples
    --------
    >>> pet = np.full((3, 3, 3), 7, np.float32)
    >>> pet[1, 1, 1] = 20
    >>> shifted, level = subtract_air(pet)
    >>> level, float(shifted.max())
    (7.0, 13.0)
    """
    known = np.isfinite(volume) & (volume != 0)
    least = float(volume[known].min(initial=0))
    if least < 0:
        known &= volume != least
    shown, faces = (
        np.concatenate([part.take(end, axis).ravel() for axis in range(3) for end in (0, -1)])
        for part in (known, volume)
    )
    if shown.mean() < FACES:
        return volume, 0.0
    level = float(np.median(faces[shown]))
    lowest, top = np.percentile(volume[known], (LOWEST, TISSUE))
    below, size = level - lowest, abs(level)
    if size <= FLOOR * (top - level) or below > min(OF_LEVEL * size, OF_RANGE * (top - level)):
        return volume, 0.0
    return np.where(volume == 0, 0, volume - np.float32(level)), level


LEAST = 0.1  # percentile of the brain raised to 0 if it is negative; our choice, as in winsorize
FAR_OUT = (
    3.0  # interquartile ranges below the first quartile: Tukey (1977), Exploratory data analysis
)


def raise_above_zero(volume: Volume, brain: Mask) -> Volume:
    """Shift a T1w upwards if part of the brain is negative, as in a z-scored image.

    Later steps take 0 for background, and ratios and logarithms of the other intensities.

    Parameters
    ----------
    volume : ndarray, (I, J, K)
        Intensities of a T1w in any unit, finite.
    brain : ndarray of bool, (I, J, K)
        Brain mask, not empty.

    Returns
    -------
    ndarray, (I, J, K)
        float32, not negative: intensities that are still negative, such as a fill value of the
        air, become 0. Air that the mask includes does not count: the least value of the volume, and
        values far below those of the brain.

    Examples
    --------
    >>> volume = np.array([[[-9, -1, 0, 2]]], np.float32)
    >>> raise_above_zero(volume, volume > -9).round(1)
    array([[[0., 0., 1., 3.]]], dtype=float32)
    """
    if volume.min() >= 0:
        return volume
    values = volume[brain & (volume > volume.min())]
    if not values.size:
        return np.maximum(volume, 0)
    first, third = np.percentile(values, (25, 75))
    values = values[values >= first - FAR_OUT * (third - first)]
    least = float(np.percentile(values, LEAST))
    return np.maximum(volume - min(least, 0.0), 0).astype(np.float32)


HOLE = 0.001  # quantile of the intensities above 0 in a brain that fills holes; our choice


def fill_holes(t1w: Volume, brain: Mask) -> Volume:
    """Raise intensities of 0 in a brain, such as fluid below a threshold, to the least above 0.

    Generators take 0 for the outside of the brain. They would predict no uptake there and, if they
    scale the brain's mean, less everywhere else.

    Parameters
    ----------
    t1w : ndarray, (I, J, K)
        Intensities in [0, 1].
    brain : ndarray of bool, (I, J, K)
        Brain mask.

    Returns
    -------
    ndarray, (I, J, K)
        Volume in float32, unchanged outside the brain.

    Examples
    --------
    >>> volume = np.array([[[0, 0, 0.5, 0.5]]], np.float32)
    >>> fill_holes(volume, np.array([[[False, True, True, True]]]))
    array([[[0. , 0.5, 0.5, 0.5]]], dtype=float32)
    """
    values = t1w[brain & (t1w > 0)]
    if not values.size:
        return t1w
    return np.where(brain & (t1w <= 0), np.quantile(values, HOLE), t1w).astype(np.float32)


def match_quantiles(volume: Volume, brain: Mask, quantiles: NDArray[np.float32]) -> Volume:
    """Match the intensities of a brain to a distribution given by its quantiles.

    The order of intensities is preserved, and equal intensities stay equal.

    Parameters
    ----------
    volume : ndarray, (I, J, K)
        Intensities in any unit.
    brain : ndarray of bool, (I, J, K)
        Brain mask.
    quantiles : ndarray, (Q,)
        Evenly spaced quantiles of the distribution from its minimum to its maximum, as computed by
        :func:`numpy.quantile`.

    Returns
    -------
    ndarray, (I, J, K)
        Matched volume in float32, in the unit of the quantiles; 0 outside the brain.

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
