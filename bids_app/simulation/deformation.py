"""Another person's head out of one: a random smooth diffeomorphic warp."""

from dataclasses import dataclass

import numpy as np
from scipy import ndimage

from bids_app.imaging.volume import Affine, Grid, Volume, zooms_of
from bids_app.simulation.anatomy import Anatomy, coordinates

SQUARINGS = 6  # of the velocity field; steps of 1/64
STEP = 4.0  # mm; the grid of the velocity field
SCALES = ((30.0, 5.0), (12.0, 2.0))  # (sigma, size) in mm: lobes, then gyri; our choice
SIZE_CHANGE = 0.04  # standard deviation of the size along each axis; our choice


@dataclass(frozen=True)
class Displacement:
    """Where each point of a new head lay in the old one.

    Parameters
    ----------
    field : ndarray of float32, (I, J, K, 3)
        To be added to a point's world coordinates, in mm.
    affine : ndarray, (4, 4)
        Voxel indices of ``field`` → world coordinates of the new head, in mm.
    """

    field: Volume
    affine: Affine


def random_field(shape: tuple[int, int, int], sigma: float, rng: np.random.Generator) -> Volume:
    """Draw a smooth random field with mean 0 and standard deviation 1.

    Parameters
    ----------
    shape : tuple of int
        (I, J, K).
    sigma : float
        Of the Gaussian that smooths white noise, in voxels.
    rng : numpy.random.Generator
        Where chance comes from.
    """
    field = rng.standard_normal(shape, dtype=np.float32)
    field = ndimage.gaussian_filter(field, sigma, mode="wrap", truncate=3)
    return (field - field.mean()) / field.std()


def sample(volume: Volume, indices: Volume, *, order: int = 1) -> Volume:
    """Read a volume, or the components of a field, at fractional voxel indices.

    Parameters
    ----------
    volume : ndarray, (I, J, K) or (I, J, K, C)
        Goes on with the value at its face.
    indices : ndarray, (..., 3)
        Voxel indices.
    order : {0, 1, 3}
        Nearest, linear or cubic.

    Returns
    -------
    ndarray, (...) or (..., C)
        Of the kind of ``volume``.
    """
    where = np.moveaxis(indices, -1, 0)
    if volume.ndim == 3:  # noqa: PLR2004
        return ndimage.map_coordinates(volume, where, order=order, mode="nearest")
    parts = [
        ndimage.map_coordinates(volume[..., c], where, order=order, mode="nearest")
        for c in range(volume.shape[-1])
    ]
    return np.stack(parts, axis=-1)


def to_indices(points: Volume, affine: Affine) -> Volume:
    """Turn world coordinates in mm, (..., 3), into voxel indices."""
    inverse = np.linalg.inv(affine).astype(np.float32)
    return points @ inverse[:3, :3].T + inverse[:3, 3]


def exponentiate(velocity: Volume, step: float) -> Volume:
    """Integrate a stationary velocity field by scaling and squaring (Arsigny et al., 2006).

    Parameters
    ----------
    velocity, returned : ndarray, (I, J, K, 3)
        In mm; the displacement after unit time.
    step : float
        Voxel size in mm.
    """
    i, j, k, _ = velocity.shape
    lattice = coordinates(Grid((i, j, k), np.eye(4)))
    field = velocity / (step * 2**SQUARINGS)
    for _ in range(SQUARINGS):
        field = field + sample(field, lattice + field)
    return field * step


def jacobian(displacement: Displacement) -> Volume:
    """Give the determinant of the derivative of a warp: above 0 where it folds nothing.

    Returns
    -------
    ndarray, (I, J, K)
        Volume of the old head over volume of the new one.
    """
    zooms = zooms_of(displacement.affine)
    rows = [np.stack(np.gradient(displacement.field[..., c], *zooms), axis=-1) for c in range(3)]
    return np.linalg.det(np.stack(rows, axis=-2) + np.eye(3, dtype=np.float32))


def draw_displacement(
    grid: Grid, rng: np.random.Generator, *, strength: float = 1.0
) -> Displacement:
    """Draw a warp: smooth, without folds, with a change of size.

    Parameters
    ----------
    grid : Grid
        Of the new head; axis-aligned or nearly so.
    rng : numpy.random.Generator
        Where chance comes from.
    strength : float
        1 for as much as people differ (our choice); 0 for none.

    Returns
    -------
    Displacement
        On a grid of 4 mm over that of the head.
    """
    zooms = np.array(zooms_of(grid.affine))
    shape = tuple(int(n) for n in np.ceil(np.array(grid.shape) * zooms / STEP) + 1)
    affine = grid.affine @ np.diag([*(STEP / zooms), 1.0])
    velocity = np.zeros((*shape, 3), np.float32)
    for sigma, size in SCALES:
        for component in range(3):
            field = random_field((shape[0], shape[1], shape[2]), sigma / STEP, rng)
            velocity[..., component] += strength * size * field
    voxels = Affine_free(velocity, affine)
    warp = exponentiate(voxels, STEP)
    return Displacement(warp, affine)
