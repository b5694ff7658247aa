"""Volumes seen in cubes: what they hold, without where in the cube."""

import numpy as np
from numpy.typing import NDArray

from bids_app.imaging.volume import Mask, Volume


def cube_sides(edge: float, zooms: tuple[float, float, float]) -> tuple[int, int, int]:
    """Say how many voxels fit best along the edges of a cube; one at least.

    Parameters
    ----------
    edge : float
        In mm.
    zooms : tuple of float
        Voxel size in mm along each axis.

    Examples
    --------
    >>> cube_sides(8.0, (1.0, 3.0, 20.0))
    (8, 3, 1)
    """
    i, j, k = (max(round(edge / zoom), 1) for zoom in zooms)
    return i, j, k


def average_cubes(
    volume: Volume | NDArray[np.float64] | Mask, sides: tuple[int, int, int]
) -> NDArray[np.float64]:
    """Average a volume over the cubes that it can be cut into.

    Parameters
    ----------
    volume : ndarray, (I, J, K)
        Any unit; kept. Of a mask, its share of each cube.
    sides : tuple of int
        Voxels along the edges of a cube. The last cubes of an axis are smaller where they do not
        divide it.

    Returns
    -------
    ndarray, (⌈I/sides⌉, …)
        The mean of each cube.

    Examples
    --------
    >>> average_cubes(np.array([[[1, 3, 5, 7, 9]]], np.float32), (1, 1, 2))
    array([[[2., 6., 9.]]])
    """
    means: NDArray[np.float64] = volume.astype(np.float64)
    for axis, side in enumerate(sides):
        starts = np.arange(0, means.shape[axis], side)
        counts = np.diff(starts, append=means.shape[axis])
        sums = np.add.reduceat(means, starts, axis=axis)
        means = sums / counts.reshape([-1 if a == axis else 1 for a in range(means.ndim)])
    return means
