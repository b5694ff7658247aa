"""Segmentation of fluid, grey and white matter by the intensities of a T1w."""

import warnings

import numpy as np
from sklearn.cluster import KMeans
from sklearn.exceptions import ConvergenceWarning
from threadpoolctl import threadpool_limits

from bids_app.imaging.volume import Volume

BINS = 256  # of the histogram for the tissue means; our choice
STARTS = (0.10, 0.45, 0.85)  # quantiles for the initial means of the tissues; our choice
TISSUES = len(STARTS)
NO_TISSUES = "the T1w shows fewer than three tissues in the brain"


def find_tissue_means(t1w: Volume) -> tuple[float, float, float]:
    """Find the mean intensities of fluid, grey and white matter by k-means.

    Parameters
    ----------
    t1w : ndarray, (I, J, K)
        Intensities in [0, 1], 0 outside the brain.

    Returns
    -------
    tuple of float
        Means in ascending order.

    Raises
    ------
    ValueError
        If the brain has fewer than three intensities, or they form fewer than three clusters.
    """
    values = t1w[t1w > 0]
    counts, edges = np.histogram(values, bins=BINS) if values.size else (np.zeros(1), np.zeros(2))
    if np.count_nonzero(counts) < TISSUES:
        raise ValueError(NO_TISSUES)
    centres = (edges[:-1] + edges[1:])[:, np.newaxis] / 2
    starts = np.quantile(values, STARTS)[:, np.newaxis]
    with (
        warnings.catch_warnings(category=ConvergenceWarning, action="ignore"),  # checked below
        threadpool_limits(1, "openmp"),  # in a fork of a process that used more, k-means would hang
    ):
        clustering = KMeans(TISSUES, init=starts, n_init=1).fit(centres, sample_weight=counts)
    fluid, grey, white = np.sort(clustering.cluster_centers_[:, 0]).tolist()
    if not fluid < grey < white:
        raise ValueError(NO_TISSUES)
    return fluid, grey, white


def tissue_shares(t1w: Volume) -> tuple[Volume, Volume]:
    """Compute the shares of grey and white matter in each voxel.

    A voxel between the means of two tissues is considered a mixture of both.

    Parameters
    ----------
    t1w : ndarray, (I, J, K)
        Intensities in [0, 1], 0 outside the brain.

    Returns
    -------
    tuple of ndarray, (I, J, K)
        Shares of grey and of white matter, float32 in [0, 1]; 0 outside the brain.
    """
    return shares_between(t1w, *find_tissue_means(t1w))


def shares_between(t1w: Volume, fluid: float, grey: float, white: float) -> tuple[Volume, Volume]:
    """Compute the shares of :func:`tissue_shares` from given means."""
    upwards = np.clip((t1w - fluid) / (grey - fluid), 0, 1)
    white_share = np.clip((t1w - grey) / (white - grey), 0, 1)
    return upwards - white_share, white_share
