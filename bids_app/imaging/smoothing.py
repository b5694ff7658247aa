"""Gaussian smoothing, told in mm."""

import math

import numpy as np
from scipy import ndimage

from bids_app.imaging.volume import Volume

SIGMA_OF_FWHM = 1 / math.sqrt(8 * math.log(2))


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
