"""Volumes, grids (shape and affine, voxel → world in mm, RAS+), and averages over cubes."""

from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

Volume: TypeAlias = NDArray[np.float32]
Mask: TypeAlias = NDArray[np.bool_]
Affine: TypeAlias = NDArray[np.float64]
Box: TypeAlias = tuple[float, float, float, float, float, float]


@dataclass(frozen=True)
class Grid:
    """Grid of voxels in space.

    Parameters
    ----------
    shape : tuple of int
        Number of voxels along each axis.
    affine : ndarray, (4, 4)
        Voxel indices → world coordinates in mm, RAS+.
    """

    shape: tuple[int, int, int]
    affine: Affine


def zooms_of(affine: Affine) -> tuple[float, float, float]:
    """Return the voxel size in mm along each axis of an array.

    Examples
    --------
    >>> zooms_of(np.diag([2.0, 2.0, 3.0, 1.0]))
    (2.0, 2.0, 3.0)
    """
    x, y, z = np.linalg.norm(affine[:3, :3], axis=0).tolist()
    return x, y, z


def grid_of_box(box: Box, resolution: float) -> Grid:
    """Create a grid of isotropic voxels over a box, including its faces.

    Parameters
    ----------
    box : tuple of float
        ``(x0, y0, z0, x1, y1, z1)``: centres of the first and the last voxel in mm, RAS+. The last
        voxel lies inside the box if its sides are not multiples of the resolution.
    resolution : float
        Voxel size in mm.

    Returns
    -------
    Grid
        Grid in RAS+ orientation, with the first voxel at ``(x0, y0, z0)``.

    Raises
    ------
    ValueError
        If the resolution is not above 0.

    Examples
    --------
    The volume of Zotova et al. (2021), section 3.1:

    >>> grid_of_box((-78, -112, -50, 78, 76, 85), 1.0).shape
    (157, 189, 136)
    """
    if not 0 < resolution < np.inf:
        raise ValueError(f"resolution must be above 0 mm, not {resolution}")
    low, high = np.array(box[:3], float), np.array(box[3:], float)
    x, y, z = (np.floor((high - low) / resolution + 1e-6).astype(int) + 1).tolist()
    affine = np.diag([resolution, resolution, resolution, 1.0])
    affine[:3, 3] = low
    return Grid((x, y, z), affine)


def downsample(volume: Volume, affine: Affine, zoom: float) -> tuple[Volume, Affine]:
    """Downsample a volume by averaging blocks of voxels.

    Parameters
    ----------
    volume : ndarray, (I, J, K)
        Intensities in any unit, which is kept.
    affine : ndarray, (4, 4)
        Voxel indices → world coordinates in mm, RAS+.
    zoom : float
        Approximate voxel size in mm of the result; axes with larger voxels are left unchanged.

    Returns
    -------
    ndarray, (I', J', K')
        Downsampled volume in float32. Incomplete blocks at the end of an axis are left out.
    ndarray, (4, 4)
        Affine of the downsampled volume.

    Examples
    --------
    >>> downsample(np.array([[[1, 3, 5, 9, 100]]], np.float32), np.eye(4), 2.0)[0]
    array([[[2., 7.]]], dtype=float32)
    """
    steps = [
        min(max(round(zoom / size), 1), side)
        for size, side in zip(zooms_of(affine), volume.shape, strict=True)
    ]
    i, j, k = (side // step for side, step in zip(volume.shape, steps, strict=True))
    a, b, c = steps
    blocks = volume[: i * a, : j * b, : k * c].reshape(i, a, j, b, k, c)
    coarse = affine @ np.diag([*steps, 1.0])
    coarse[:3, 3] = affine[:3, 3] + affine[:3, :3] @ ((np.array(steps) - 1) / 2)
    return blocks.mean(axis=(1, 3, 5), dtype=np.float64).astype(np.float32), coarse


def box_of_data(volume: Volume) -> tuple[slice, ...]:
    """Find the bounding box of the data, without constant planes at the ends of a volume.

    Parameters
    ----------
    volume : ndarray, (I, J, K)
        Intensities in any unit; finite.

    Returns
    -------
    tuple of slice
        One slice per axis; the whole axis if all planes along it are constant.

    Examples
    --------
    >>> box_of_data(np.array([[[0, 1, 0, 3, 0, 0]], [[0, 2, 0, 5, 0, 0]]]))
    (slice(0, 2, None), slice(0, 1, None), slice(1, 4, None))
    """
    box = []
    for axis in range(volume.ndim):
        others = tuple(other for other in range(volume.ndim) if other != axis)
        varied = np.flatnonzero(volume.max(axis=others) != volume.min(axis=others))
        box.append(slice(int(varied[0]), int(varied[-1]) + 1) if varied.size else slice(None))
    return tuple(box)


def box_of_grid(grid: Grid) -> Box | None:
    """Return the box of a grid made by :func:`grid_of_box`; None for other grids.

    Examples
    --------
    >>> box_of_grid(grid_of_box((-78, -112, -50, 78, 76, 85), 4.0))
    (-78.0, -112.0, -50.0, 78.0, 76.0, 82.0)
    """
    resolution = float(grid.affine[0, 0])
    low = grid.affine[:3, 3]
    x, y, z = (low + (np.array(grid.shape) - 1) * resolution).tolist()
    box = (float(low[0]), float(low[1]), float(low[2]), x, y, z)
    if resolution <= 0 or not np.allclose(grid_of_box(box, resolution).affine, grid.affine):
        return None
    return box


def mirror(volume: Volume, affine: Affine) -> Volume:
    """Mirror a volume in template space at the plane x = 0.

    Parameters
    ----------
    volume : ndarray, (I, J, K)
        Intensities in any unit.
    affine : ndarray, (4, 4)
        Voxel indices → world coordinates in mm, RAS+; the first axis points to the right.

    Returns
    -------
    ndarray, (I, J, K)
        Mirrored volume in float32. It is interpolated linearly unless x = 0 lies at the centre of a
        voxel or halfway between two, and NaN if the mirrored position is outside the grid.

    Examples
    --------
    >>> volume = np.arange(3, dtype=np.float32).reshape(3, 1, 1)
    >>> affine = np.diag([1.0, 1.0, 1.0, 1.0])
    >>> affine[0, 3] = -1
    >>> mirror(volume, affine).ravel()
    array([2., 1., 0.], dtype=float32)
    """
    indices = np.arange(len(volume))
    mirrored = -2 * affine[0, 3] / affine[0, 0] - indices
    below = np.floor(mirrored).astype(int)
    share = (mirrored - below).astype(np.float32)[:, np.newaxis, np.newaxis]
    above = np.where(share.ravel() > 0, below + 1, below)
    last = len(volume) - 1
    lower, upper = volume[below.clip(0, last)], volume[above.clip(0, last)]
    beyond = (below < 0) | (above > last)
    return np.where(
        beyond[:, np.newaxis, np.newaxis], np.nan, (1 - share) * lower + share * upper
    ).astype(np.float32)


def resample_labels(labels: NDArray[np.integer], affine: Affine, grid: Grid) -> NDArray[np.integer]:
    """Resample a label image to a grid of the same space by nearest neighbour.

    Parameters
    ----------
    labels, affine : ndarray, (I, J, K) and (4, 4)
        Label image, and its affine, voxel indices → world coordinates in mm.
    grid : Grid
        Grid of the result.

    Returns
    -------
    ndarray
        Labels on the grid; 0 outside the image.
    """
    to_labels = np.linalg.inv(affine) @ grid.affine
    return ndimage.affine_transform(
        labels, to_labels[:3, :3], to_labels[:3, 3], grid.shape, order=0, cval=0
    )


def cube_sides(edge: float, zooms: tuple[float, float, float]) -> tuple[int, int, int]:
    """Return the number of voxels closest to the edge of a cube along each axis, at least one.

    Parameters
    ----------
    edge : float
        Edge length of the cube in mm.
    zooms : tuple of float
        Voxel size in mm along each axis.

    Examples
    --------
    >>> cube_sides(8.0, (1.0, 3.0, 20.0))
    (8, 3, 1)
    """
    i, j, k = (max(round(edge / zoom), 1) for zoom in zooms)
    return i, j, k


def count_cubes(shape: tuple[int, int, int], sides: tuple[int, int, int]) -> tuple[int, int, int]:
    """Return the number of cubes that a volume is divided into per axis; the last may be smaller.

    Examples
    --------
    >>> count_cubes((157, 189, 136), (3, 3, 3))
    (53, 63, 46)
    """
    i, j, k = (-(-voxels // side) for voxels, side in zip(shape, sides, strict=True))
    return i, j, k


def average_cubes(
    volume: Volume | NDArray[np.float64] | Mask, sides: tuple[int, int, int]
) -> NDArray[np.float64]:
    """Average a volume over the cubes that it is divided into.

    Parameters
    ----------
    volume : ndarray, (I, J, K)
        Intensities in any unit, which is kept; or a mask, for its share of each cube.
    sides : tuple of int
        Number of voxels along the edges of a cube. The last cubes of an axis are smaller if its
        length is not a multiple.

    Returns
    -------
    ndarray, (⌈I/sides⌉, …)
        Mean of each cube.

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


def spread_cubes(
    cubes: NDArray[np.floating], sides: tuple[int, int, int], shape: tuple[int, int, int]
) -> Volume:
    """Interpolate linearly between the centres of cubes to obtain a value for each voxel.

    Parameters
    ----------
    cubes : ndarray, (⌈I/sides⌉, …)
        Value of each cube, see :func:`average_cubes`.
    sides : tuple of int
        Number of voxels along the edges of a cube.
    shape : tuple of int
        Shape (I, J, K) of the result; outside the outermost centres, the nearest values are used.

    Examples
    --------
    >>> spread_cubes(np.array([[[1.0, 3.0]]]), (1, 1, 2), (1, 1, 4))
    array([[[1. , 1.5, 2.5, 3. ]]])
    """
    edges = np.array(sides)
    return ndimage.affine_transform(
        cubes, np.diag(1 / edges), (1 - edges) / 2 / edges, shape, order=1, mode="nearest"
    )
