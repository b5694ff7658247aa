"""Grey and white matter from the intensities of a T1w alone, and the FDG uptake they let expect."""

import numpy as np
from numpy.typing import NDArray

from bids_app.imaging.volume import Mask, Volume

OUTSIDE, FLUID, GREY, WHITE = range(4)
BINS, ROUNDS = 256, 50  # of the histogram, and of Lloyd's iteration, which ends sooner
START = (0.05, 0.5, 0.9)  # quantiles of the brain: fluid is the least of it, white matter a third
UPTAKE = (0.0, 0.05, 1.0, 0.3)  # outside, fluid, grey, white, of grey's; our choice, after
# "The brain's FDG uptake": Heiss et al. (2004), J Nucl Med 45:1811 give white 0.25 to 0.4 of grey


def winsorize(
    volume: Volume, where: Mask | None = None, *, least: float = 0.1, most: float = 99.9
) -> Volume:
    """Replace the most extreme intensities by percentiles.

    One hot voxel, 4e4 times the maximum, moved a registration by 10 mm. PETPrep and fMRIPrep
    winsorize too, by ``--winsorize-image-intensities`` of antsRegistration.

    Parameters
    ----------
    volume : ndarray, (I, J, K)
        Any unit.
    where : ndarray of bool, (I, J, K), optional
        Voxels whose percentiles are meant, and which alone are changed; all by default.
    least, most : float
        Percentiles of finite voxels; our choice.

    Returns
    -------
    ndarray, (I, J, K)
        float32, in the same unit.

    Examples
    --------
    >>> winsorize(np.array([[[0, 1, 2, 900]]], np.float32), least=0, most=200 / 3)
    array([[[0., 1., 2., 2.]]], dtype=float32)
    """
    chosen = np.isfinite(volume) if where is None else where & np.isfinite(volume)
    if not chosen.any():
        return np.nan_to_num(volume).astype(np.float32)
    low, high = np.percentile(volume[chosen], (least, most))
    changed = np.where(chosen, np.clip(np.nan_to_num(volume), low, high), np.nan_to_num(volume))
    return changed.astype(np.float32)


def classify(t1w: Volume, brain: Mask) -> NDArray[np.uint8]:
    """Sort the voxels of a brain into fluid, grey and white matter: k-means of intensities.

    Lloyd (1982), IEEE Trans. Information Theory 28:129-137, in one dimension, on a histogram. It
    knows nothing of place, and is meant for means over many voxels only.

    Parameters
    ----------
    t1w : ndarray, (I, J, K)
        Any unit, without bias field.
    brain : ndarray of bool, (I, J, K)
        The voxels that are sorted.

    Returns
    -------
    ndarray, (I, J, K)
        ``OUTSIDE``, ``FLUID``, ``GREY`` or ``WHITE``.

    Raises
    ------
    ValueError
        If the brain is empty or of one intensity.
    """
    if not brain.any():
        raise ValueError("the brain mask is empty")
    low, high = np.percentile(t1w[brain], (1, 99))
    if not high > low:
        raise ValueError("the brain is of one intensity")
    counts, edges = np.histogram(np.clip(t1w[brain], low, high), bins=BINS)
    middles = (edges[:-1] + edges[1:]) / 2
    means = np.quantile(t1w[brain], START)
    for _ in range(ROUNDS):
        nearest = np.abs(middles[:, None] - means).argmin(axis=1)
        total = np.bincount(nearest, counts, minlength=3)
        moved = np.bincount(nearest, counts * middles, minlength=3) / np.maximum(total, 1)
        moved = np.where(total > 0, moved, means)
        if np.allclose(moved, means):
            break
        means = np.sort(moved)
    bounds = (means[:-1] + means[1:]) / 2
    classes = np.digitize(t1w, bounds).astype(np.uint8) + np.uint8(FLUID)
    return np.where(brain, classes, np.uint8(OUTSIDE))


def expected_uptake(classes: NDArray[np.uint8]) -> Volume:
    """Give the FDG uptake that tissue alone lets expect, 1 in grey matter; as sharp as the T1w."""
    return np.array(UPTAKE, np.float32)[classes]
