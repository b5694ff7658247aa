"""Gaps: voxels that hold no number, as SPM writes them where an image does not reach."""

import numpy as np
from scipy import ndimage

from bids_app.imaging.volume import Mask, Volume

DEEP = 5.0  # mm below the surface of a brain; our choice: masks and registration err by less
LARGEST_SHARE = 0.01  # of a brain that gaps near its surface may take; our choice
# Of a brain that gaps of a PET may take anywhere, as where ventricles hold next to no tracer; our
# choice: they are not covered, and told of
LARGEST_SHARE_OF_PET = 0.0005


def fill(volume: Volume) -> tuple[Volume, Mask]:
    """Put 0 where there is no number.

    Parameters
    ----------
    volume : ndarray, (I, J, K)
        Any unit; NaN or infinite in gaps.

    Returns
    -------
    ndarray, (I, J, K)
        The same without gaps.
    ndarray of bool, (I, J, K)
        Where there is a number.

    Examples
    --------
    >>> fill(np.array([[[1, np.nan, 3]]], np.float32))
    (array([[[1., 0., 3.]]], dtype=float32), array([[[ True, False,  True]]]))
    """
    valid = np.isfinite(volume)
    return np.where(valid, volume, 0).astype(np.float32), valid


def enclosed(valid: Mask) -> Mask:
    """Find the gaps that numbers enclose: beyond others, the image may just not reach.

    Parameters
    ----------
    valid : ndarray of bool, (I, J, K)
        Where there is a number.
    """
    return ndimage.binary_fill_holes(valid) & ~valid


def gaps_in(brain: Mask, gaps: Mask, zooms: tuple[float, float, float]) -> int:
    """Count the gaps in a brain that make an image of it unusable.

    Those near its surface do not, as long as they are few: the mask may be wrong there by more.

    Parameters
    ----------
    brain, gaps : ndarray of bool, (I, J, K)
        The brain, and voxels without a number.
    zooms : tuple of float
        Voxel size in mm.

    Returns
    -------
    int
        0 if the image can be used.
    """
    inside = brain & gaps
    count = int(inside.sum())
    if not count or count > LARGEST_SHARE * brain.sum():
        return count
    depth = ndimage.distance_transform_edt(np.pad(brain, 1), sampling=zooms)[1:-1, 1:-1, 1:-1]
    return count if bool((depth[inside] > DEEP).any()) else 0
