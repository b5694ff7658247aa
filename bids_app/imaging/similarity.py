"""Similarity of volumes and of masks.

The measures are those of Zotova et al. (2021), section 3.2, and those used to judge registration.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from bids_app.imaging.coverage import near
from bids_app.imaging.volume import Mask, Volume


def psnr(one: Volume, other: Volume, mask: Mask | None = None) -> float:
    """Compute the peak signal-to-noise ratio of two volumes in [0, 1], in dB.

    Parameters
    ----------
    one, other : ndarray, (I, J, K)
        Intensities in [0, 1]; the peak is 1.
    mask : ndarray of bool, (I, J, K), optional
        Mask of the voxels to compare; all by default.

    Returns
    -------
    float
        Ratio in dB; infinite if the volumes are equal, NaN if the mask is empty.

    Examples
    --------
    >>> round(psnr(np.zeros((2, 2, 2), np.float32), np.full((2, 2, 2), 0.1, np.float32)), 3)
    20.0
    """
    x, y = _chosen(one, mask), _chosen(other, mask)
    error = _average((x - y) ** 2)
    return float("inf") if error == 0 else float(-10 * np.log10(error))


def mean_absolute_error(one: Volume, other: Volume, mask: Mask | None = None) -> float:
    """Compute the mean absolute difference of two volumes, in their unit.

    Parameters
    ----------
    one, other : ndarray, (I, J, K)
        Intensities, both in the same unit.
    mask : ndarray of bool, (I, J, K), optional
        Mask of the voxels to compare; all by default.

    Examples
    --------
    >>> mean_absolute_error(np.zeros((1, 1, 2), np.float32), np.array([[[0.5, -1.0]]], np.float32))
    0.75
    """
    return _average(np.abs(_chosen(one, mask) - _chosen(other, mask)))


def _chosen(volume: np.ndarray, mask: Mask | None) -> NDArray[np.float64]:
    """Return the voxels inside a mask, or all without one, in float64."""
    return (volume if mask is None else volume[mask]).astype(np.float64)


def _average(values: NDArray[np.float64]) -> float:
    return float(values.mean()) if values.size else float("nan")


def correlation(one: np.ndarray, other: np.ndarray, mask: Mask | None = None) -> float:
    """Compute Pearson's correlation of two arrays, -1 to 1; 0 if either is constant.

    Parameters
    ----------
    one, other : ndarray
        Arrays of the same shape, in any unit.
    mask : ndarray of bool, optional
        Mask of the voxels to compare; all by default.

    Examples
    --------
    >>> one = np.array([[[0.0, 1.0, 2.0, 5.0]]], np.float32)
    >>> round(correlation(one, 3 - one, one < 5), 3)
    -1.0
    """
    x, y = _chosen(one, mask), _chosen(other, mask)
    if x.size == 0 or np.ptp(x) == 0 or np.ptp(y) == 0:
        return 0.0
    return float(np.corrcoef(x.ravel(), y.ravel())[0, 1])


def dice(one: Mask, other: Mask) -> float:
    """Compute the Dice coefficient of two masks, 0 to 1; 1 if both are empty.

    Examples
    --------
    >>> round(dice(np.array([True, True, False]), np.array([False, True, False])), 3)
    0.667
    """
    total = int(one.sum()) + int(other.sum())
    return 2 * int((one & other).sum()) / total if total else 1.0


def normalized_mutual_information(
    one: Volume, other: Volume, mask: Mask, *, bins: int = 64
) -> float:
    """Compute the normalized mutual information over a mask: (H(X) + H(Y)) / H(X, Y).

    See Studholme, Hill & Hawkes (1999), Pattern Recognition 32:71-86. It is 1 for independent
    volumes, and 2 for volumes that determine each other.

    Parameters
    ----------
    one, other : ndarray, (I, J, K)
        Intensities in any units, which may differ.
    mask : ndarray of bool, (I, J, K)
        Mask of the voxels to compare.
    bins : int
        Number of bins of the joint histogram along each axis; our choice.
    """
    counts, _, _ = np.histogram2d(one[mask], other[mask], bins=bins)
    joint = counts / max(counts.sum(), 1)

    def entropy(probabilities: np.ndarray) -> float:
        positive = probabilities[probabilities > 0]
        return float(-(positive * np.log(positive)).sum())

    together = entropy(joint)
    if together == 0:
        return 1.0
    return (entropy(joint.sum(axis=0)) + entropy(joint.sum(axis=1))) / together


SIGMA, RADIUS = 1.5, 5  # voxels, for the window of SSIM


def ssim_map(one: Volume, other: Volume) -> Volume:
    """Compute the structural similarity at every voxel of two volumes in [0, 1].

    The parameters are those of Wang et al. (2004), section III.C: a Gaussian window of 11 voxels
    per axis, sigma 1.5 voxels, K1 0.01, K2 0.03, range 1; here the window is three-dimensional. A
    test checks agreement with torchmetrics, which takes ten times longer because its window is not
    separated into axes.

    Parameters
    ----------
    one, other : ndarray, (I, J, K)
        Intensities in [0, 1].

    Returns
    -------
    ndarray, (I, J, K)
        Similarity, float32 from -1 to 1. Volumes are mirrored at their faces.
    """

    def local_mean(volume: np.ndarray) -> np.ndarray:
        return ndimage.gaussian_filter(volume, SIGMA, radius=RADIUS, mode="mirror")

    x, y = one.astype(np.float32), other.astype(np.float32)
    mean_x, mean_y = local_mean(x), local_mean(y)
    products = mean_x * mean_y
    squares = mean_x**2 + mean_y**2
    variances = local_mean(x * x + y * y) - squares
    covariance = local_mean(x * y) - products
    c1, c2 = 0.01**2, 0.03**2
    return ((2 * products + c1) * (2 * covariance + c2)) / ((squares + c1) * (variances + c2))


def ssim(one: Volume, other: Volume, mask: Mask | None = None) -> float:
    """Compute the mean structural similarity of two volumes in [0, 1]; see :func:`ssim_map`.

    Parameters
    ----------
    one, other : ndarray, (I, J, K)
        Intensities in [0, 1].
    mask : ndarray of bool, (I, J, K), optional
        Mask of the voxels to average over; all by default, as in torchmetrics.

    Returns
    -------
    float
        Similarity from -1 to 1; 1 if the volumes are equal.
    """
    return _average(_chosen(ssim_map(one, other), mask))


@dataclass(frozen=True)
class Measures:
    """SSIM (unitless) and PSNR (dB) over the whole volume, as in the paper, and in the brain."""

    ssim: float
    psnr: float
    ssim_brain: float
    psnr_brain: float


def judged(brain: Mask, covered: Mask) -> tuple[Mask, Mask]:
    """Find the voxels to compare with a PET that may not cover the whole brain.

    Parameters
    ----------
    brain, covered : ndarray of bool, (I, J, K)
        Brain mask, and voxels that the PET covers. Outside the brain, both images are 0, covered or
        not.

    Returns
    -------
    ndarray of bool, (I, J, K)
        Mask for voxelwise measures: voxels that are not in a hole.
    ndarray of bool, (I, J, K)
        Mask for SSIM: voxels whose window does not touch a hole; none if none of them is brain.
    """
    hole = brain & ~covered
    width = 2 * RADIUS + 1
    windows = ~near(hole, (width, width, width))
    return ~hole, windows & (windows & brain).any()


def measure(synthetic: Volume, real: Volume, brain: Mask, covered: Mask | None = None) -> Measures:
    """Compare a synthetic PET with the real one.

    Parameters
    ----------
    synthetic, real : ndarray, (I, J, K)
        PET in [0, 1] on one grid, 0 outside the brain.
    brain : ndarray of bool, (I, J, K)
        Brain mask.
    covered : ndarray of bool, (I, J, K), optional
        Voxels that the real PET covers; all by default. Brain that is not covered is excluded from
        all measures.

    Returns
    -------
    Measures
        Similarity of the two; NaN if there are no voxels to compare.
    """
    similarity = ssim_map(synthetic, real)
    voxels, windows = judged(brain, np.ones_like(brain) if covered is None else covered)
    return Measures(
        _average(_chosen(similarity, windows)),
        psnr(synthetic, real, voxels),
        _average(_chosen(similarity, windows & brain)),
        psnr(synthetic, real, voxels & brain),
    )


LEAST_UPTAKE = 0.5  # of the brain's median; below, ratios of two PET are unreliable; our choice


def pseudo_normal(real: Volume, synthetic: Volume, brain: Mask) -> tuple[Volume, Volume, float]:
    """Scale a synthetic PET to the intensities of a real one, and subtract it.

    The factor is the median ratio of the two over the brain's voxels with uptake, which a lesion
    smaller than half of the brain changes little; our choice.

    Parameters
    ----------
    real, synthetic : ndarray, (I, J, K)
        PET on one grid, each in its own unit.
    brain : ndarray of bool, (I, J, K)
        Part of the brain that the real PET covers.

    Returns
    -------
    scaled : ndarray, (I, J, K)
        Synthetic PET in the unit of the real one.
    difference : ndarray, (I, J, K)
        Real minus scaled, in percent of the scaled PET's mean over the brain; 0 outside, and where
        the synthetic PET is 0 because it was not predicted, such as below the template's grid.
    factor : float
        Ratio of scaled to synthetic intensities.

    Raises
    ------
    ValueError
        If one of them has no uptake in the brain.

    Examples
    --------
    >>> synthetic = np.array([[[2.0, 2.0, 2.0, 3.0, 0.0]]])
    >>> real = 10 * synthetic - [0, 0, 0, 9, 0]
    >>> _, difference, factor = pseudo_normal(real, synthetic, synthetic > 0)
    >>> difference.tolist(), factor
    ([[[0.0, 0.0, 0.0, -40.0, 0.0]]], 10.0)
    """
    predicted = brain & (synthetic > 0)
    uptake = predicted
    if uptake.any():
        uptake = uptake & (synthetic > LEAST_UPTAKE * np.median(synthetic[uptake]))
    factor = float(np.median(real[uptake] / synthetic[uptake])) if uptake.any() else 0.0
    if not (np.isfinite(factor) and factor > 0):
        raise ValueError("no uptake in the brain")
    scaled = (factor * synthetic).astype(np.float32)
    mean = float(scaled[predicted].mean())
    difference = np.where(predicted, 100 * (real - scaled) / mean, 0).astype(np.float32)
    return scaled, difference, factor
