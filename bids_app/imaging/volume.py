"""Volumes and the grids they lie on: shape, and voxel → world affine in mm, RAS+."""

from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

Volume: TypeAlias = NDArray[np.float32]
Mask: TypeAlias = NDArray[np.bool_]
Affine: TypeAlias = NDArray[np.float64]
Box: TypeAlias = tuple[float, float, float, float, float, float]


@dataclass(frozen=True)
class Grid:
    """A lattice of voxels in space.

    Parameters
    ----------
    shape : tuple of int
        Voxels along each axis.
    affine : ndarray, (4, 4)
        Voxel indices → world coordinates in mm, RAS+.
    """

    shape: tuple[int, int, int]
    affine: Affine


def zooms_of(affine: Affine) -> tuple[float, float, float]:
    """Give the voxel size in mm along each axis of an array.

    Examples
    --------
    >>> zooms_of(np.diag([2.0, 2.0, 3.0, 1.0]))
    (2.0, 2.0, 3.0)
    """
    x, y, z = np.linalg.norm(affine[:3, :3], axis=0).tolist()
    return x, y, z


def grid_of_box(box: Box, resolution: float) -> Grid:
    """Lay a grid of isotropic voxels over a box, both of its faces included.

    Parameters
    ----------
    box : tuple of float
        ``(x0, y0, z0, x1, y1, z1)``: centres of the first and of the last voxel in mm, RAS+. The
        last voxel lies inside the box where the resolution does not divide it.
    resolution : float
        Edge of a voxel in mm.

    Returns
    -------
    Grid
        RAS+, the first voxel at ``(x0, y0, z0)``.

    Examples
    --------
    The volume of Zotova et al. (2021), section 3.1:

    >>> grid_of_box((-78, -112, -50, 78, 76, 85), 1.0).shape
    (157, 189, 136)
    """
    low, high = np.array(box[:3], float), np.array(box[3:], float)
    x, y, z = (np.floor((high - low) / resolution + 1e-6).astype(int) + 1).tolist()
    affine = np.diag([resolution, resolution, resolution, 1.0])
    affine[:3, 3] = low
    return Grid((x, y, z), affine)


def thin(volume: Volume, affine: Affine, zoom: float) -> tuple[Volume, Affine]:
    """Average blocks of voxels, so that voxels become about as large as wanted, not smaller.

    Parameters
    ----------
    volume : ndarray, (I, J, K)
        Any unit; kept.
    affine : ndarray, (4, 4)
        Voxel indices → world coordinates in mm, RAS+.
    zoom : float
        Voxel size in mm that is wanted; axes with larger voxels stay as they are.

    Returns
    -------
    ndarray, (I', J', K')
        float32. Voxels that fill no block at the end of an axis are left out.
    ndarray, (4, 4)
        Its affine.

    Examples
    --------
    >>> thin(np.array([[[1, 3, 5, 9, 100]]], np.float32), np.eye(4), 2.0)[0]
    array([[[2., 7.]]], dtype=float32)
    """
    steps = [
        min(max(round(zoom / own), 1), side)
        for own, side in zip(zooms_of(affine), volume.shape, strict=True)
    ]
    i, j, k = (side // step for side, step in zip(volume.shape, steps, strict=True))
    a, b, c = steps
    blocks = volume[: i * a, : j * b, : k * c].reshape(i, a, j, b, k, c)
    coarse = affine @ np.diag([*steps, 1.0])
    coarse[:3, 3] = affine[:3, 3] + affine[:3, :3] @ ((np.array(steps) - 1) / 2)
    return blocks.mean(axis=(1, 3, 5), dtype=np.float64).astype(np.float32), coarse


def box_of_grid(grid: Grid) -> Box | None:
    """Give the box of a grid that :func:`grid_of_box` laid; None if it is of another kind.

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
