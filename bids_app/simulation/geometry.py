"""Geometry of heads: grids, rigid transforms, and smooth warps that create new heads."""

from dataclasses import dataclass, replace
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage
from scipy.spatial.transform import Rotation
from scipy.special import ndtr

from bids_app.imaging.intensity import SIGMA_OF_FWHM
from bids_app.imaging.volume import Affine, Grid, Volume
from bids_app.simulation.anatomy import (
    CORTEX,
    SURROUNDINGS,
    Anatomy,
    coordinates,
    fit_affine,
    is_in_skull,
    labels_in,
)

ORIENTATIONS = ("RAS", "LAS", "LIA", "PSR", "LPS", "ASR")
DIRECTIONS = {"R": (0, 1), "L": (0, -1), "A": (1, 1), "P": (1, -1), "S": (2, 1), "I": (2, -1)}
ROTATION, SHIFT = 6.0, 9.0  # degrees and mm per axis at most: about 10° and 15 mm in all
LPS_OF_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])


def grid_over_box(
    low: NDArray[np.float64],
    high: NDArray[np.float64],
    zoom: float,
    *,
    orientation: str = "RAS",
    tilt: NDArray[np.float64] | None = None,
) -> Grid:
    """Create a grid of isotropic voxels over a box.

    Parameters
    ----------
    low, high : ndarray, (3,)
        Corners of the box in mm, RAS+.
    zoom : float
        Edge of a voxel in mm.
    orientation : str
        Directions of the array's axes, in nibabel's notation: ``RAS``, ``LIA``, ….
    tilt : ndarray, (3, 3), optional
        Rotation of the grid about the centre of the box.

    Returns
    -------
    Grid
        Grid that covers the box.

    Examples
    --------
    >>> grid_over_box(np.zeros(3), np.array([4.0, 6.0, 8.0]), 2.0, orientation="LIA").shape
    (3, 5, 4)
    """
    axes = [DIRECTIONS[letter] for letter in orientation]
    counts = np.ceil((high - low) / zoom).astype(int) + 1
    x, y, z = (int(counts[axis]) for axis, _ in axes)
    steps = np.zeros((3, 3))
    for column, (axis, sign) in enumerate(axes):
        steps[axis, column] = sign * zoom
    if tilt is not None:
        steps = tilt @ steps
    affine = np.eye(4)
    affine[:3, :3] = steps
    affine[:3, 3] = (low + high) / 2 - steps @ ((np.array([x, y, z]) - 1) / 2)
    return Grid((x, y, z), affine)


def draw_rotation(degrees: float, rng: np.random.Generator) -> NDArray[np.float64]:
    """Draw a rotation matrix, (3, 3), of at most ``degrees`` about each axis."""
    return Rotation.from_euler("xyz", rng.uniform(-degrees, degrees, 3), degrees=True).as_matrix()


def draw_motion(centre: NDArray[np.float64], rng: np.random.Generator) -> Affine:
    """Draw a head's rigid transform from T1w to PET: a rotation about a point, then a shift.

    Parameters
    ----------
    centre : ndarray, (3,)
        Centre of the rotation, in mm.
    rng : numpy.random.Generator
        Source of randomness.

    Returns
    -------
    ndarray, (4, 4)
        Transform of world coordinates in mm, RAS+.
    """
    rigid = np.eye(4)
    rigid[:3, :3] = draw_rotation(ROTATION, rng)
    rigid[:3, 3] = centre - rigid[:3, :3] @ centre + rng.uniform(-SHIFT, SHIFT, 3)
    return rigid


def itk_text(points: Affine) -> str:
    """Return an affine transform of points in ITK's text format.

    To resample, ITK and ANTs map points of the fixed image to points of the moving one. Therefore,
    the file for resampling PET to T1w holds the transform of points of T1w to points of PET.

    Parameters
    ----------
    points : ndarray, (4, 4)
        Transform from points of the fixed image to those of the moving one, in mm, RAS+. The text
        is in LPS+.

    Examples
    --------
    >>> print(itk_text(np.diag([1.0, 1.0, 1.0, 1.0])).splitlines()[3])
    Parameters: 1.0 0.0 0.0 0.0 1.0 0.0 0.0 0.0 1.0 0.0 0.0 0.0
    """
    lps = LPS_OF_RAS @ points @ LPS_OF_RAS + 0.0  # + 0.0: no "-0.0" in the text
    numbers = [*lps[:3, :3].ravel().tolist(), *lps[:3, 3].tolist()]
    return (
        "#Insight Transform File V1.0\n#Transform 0\nTransform: AffineTransform_double_3_3\n"
        f"Parameters: {' '.join(map(repr, numbers))}\nFixedParameters: 0.0 0.0 0.0\n"
    )


Number = TypeVar("Number", bound=np.generic)
HALF = 0.5  # voxel; extent of an image beyond the centres of its outermost voxels
SQUARINGS = 6  # of the velocity field: steps of 1/64
STEP = 4.0  # mm; grid of the velocity field
# (sigma, size) in mm: lobes, gyri, and their folds; our choice
SCALES = ((36.0, 3.0), (12.0, 1.8), (6.0, 1.0))
VENTRICLES = (4, 5, 14, 43, 44)
WIDENING = 4.0  # mm; largest outward shift of each wall of the ventricles; our choice
WALL = 12.0  # mm; FWHM of the blurred ventricles, along whose gradient walls move; our choice
THINNING = 0.7  # mm; largest thinning of the cortex; our choice
# FWHM, in mm or in voxels if those are wider, of the blurred fluid that determines the part of the
# cortex to remove; our choice
RIM = 2.4
SIZE_CHANGE = 0.04  # standard deviation of the size along each axis; our choice


@dataclass(frozen=True)
class Displacement:
    """Displacement of each point of a new head to its position in the old one.

    Parameters
    ----------
    field : ndarray of float32, (I, J, K, 3)
        Displacement to add to a point's world coordinates, in mm.
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
        Standard deviation, in voxels, of the Gaussian that smooths white noise.
    rng : numpy.random.Generator
        Source of randomness.
    """
    field = rng.standard_normal(shape, dtype=np.float32)
    field = ndimage.gaussian_filter(field, sigma, mode="wrap", truncate=3)
    return (field - field.mean()) / field.std()


def sample(volume: NDArray[Number], indices: Volume, *, order: int = 1) -> NDArray[Number]:
    """Interpolate a volume, or the components of a field, at fractional voxel indices.

    Parameters
    ----------
    volume : ndarray, (I, J, K) or (I, J, K, C)
        Volume or field; outside, values are those at the nearest face.
    indices : ndarray, (..., 3)
        Voxel indices.
    order : {0, 1, 3}
        Nearest-neighbour, linear or cubic interpolation.

    Returns
    -------
    ndarray, (...) or (..., C)
        Interpolated values, of the type of ``volume``.
    """
    positions = np.moveaxis(indices, -1, 0)
    if volume.ndim == 3:
        return ndimage.map_coordinates(volume, positions, order=order, mode="nearest")
    parts = [
        ndimage.map_coordinates(volume[..., c], positions, order=order, mode="nearest")
        for c in range(volume.shape[-1])
    ]
    return np.stack(parts, axis=-1)


def to_indices(points: Volume, affine: Affine) -> Volume:
    """Convert world coordinates in mm, (..., 3), to voxel indices."""
    inverse = np.linalg.inv(affine).astype(np.float32)
    return points @ inverse[:3, :3].T + inverse[:3, 3]


def exponentiate(velocity: Volume) -> Volume:
    """Integrate a stationary velocity field by scaling and squaring (Arsigny et al., 2006).

    Parameters
    ----------
    velocity : ndarray, (I, J, K, 3)
        Velocity in mm per unit time, on a grid of ``STEP``.

    Returns
    -------
    ndarray, (I, J, K, 3)
        Displacement after unit time, in mm.
    """
    i, j, k, _ = velocity.shape
    lattice = coordinates(Grid((i, j, k), np.eye(4)))
    field = velocity / (STEP * 2**SQUARINGS)
    for _ in range(SQUARINGS):
        field = field + sample(field, lattice + field)
    return field * STEP


def corners(grid: Grid) -> NDArray[np.float64]:
    """Return the world coordinates of the eight corner voxels, (8, 3), in mm."""
    ends = np.stack(np.meshgrid(*([0, n - 1] for n in grid.shape), indexing="ij"), -1)
    return ends.reshape(8, 3) @ grid.affine[:3, :3].T + grid.affine[:3, 3]


def _coarse(grid: Grid) -> Grid:
    """Create a RAS+ grid of 4 mm that covers another grid, for displacements."""
    low, high = corners(grid).min(axis=0), corners(grid).max(axis=0)
    x, y, z = (int(n) for n in np.ceil((high - low) / STEP) + 1)
    affine = np.diag([STEP, STEP, STEP, 1.0])
    affine[:3, 3] = low
    return Grid((x, y, z), affine)


def draw_displacement(
    grid: Grid, rng: np.random.Generator, *, strength: float = 1.0
) -> Displacement:
    """Draw a smooth warp without folds, with a change of size.

    Parameters
    ----------
    grid : Grid
        Grid of the new head, of any orientation.
    rng : numpy.random.Generator
        Source of randomness.
    strength : float
        Strength of the warp: 1 for the variation among people (our choice), 0 for none.

    Returns
    -------
    Displacement
        Displacement on a RAS+ grid of 4 mm that covers the head's grid.
    """
    coarse = _coarse(grid)
    velocity = np.zeros((*coarse.shape, 3), np.float32)
    for sigma, size in SCALES:
        for component in range(3):
            velocity[..., component] += size * random_field(coarse.shape, sigma / STEP, rng)
    field = exponentiate(strength * velocity)
    growth = np.clip(rng.normal(0, SIZE_CHANGE, 3), -2 * SIZE_CHANGE, 2 * SIZE_CHANGE) * strength
    new = coordinates(coarse) - corners(coarse).mean(axis=0).astype(np.float32)
    field = field - growth.astype(np.float32) * (new + field)
    return Displacement(field.astype(np.float32), coarse.affine)


def widen_ventricles(anatomy: Anatomy, displacement: Displacement, atrophy: float) -> Displacement:
    """Widen the ventricles of a head before it is displaced.

    Parameters
    ----------
    anatomy : Anatomy
        Old head.
    displacement : Displacement
        Displacement from the new head to the old one.
    atrophy : float
        Degree of atrophy, from 0, which changes nothing, to 1, at which walls move outwards by up
        to 4 mm (our choice).

    Returns
    -------
    Displacement
        Displacement from the new head to the old one, on the grid of ``displacement``.
    """
    grid = _coarse(anatomy.grid)
    indices = to_indices(coordinates(grid), anatomy.affine)
    inside = labels_in(sample(anatomy.labels, indices, order=0), VENTRICLES).astype(np.float32)
    outline = ndimage.gaussian_filter(inside, WALL * SIGMA_OF_FWHM / STEP)
    inwards = np.stack(np.gradient(outline), axis=-1)
    steepest = np.linalg.norm(inwards, axis=-1).max()
    if atrophy == 0 or steepest == 0:
        return displacement
    moved = exponentiate(np.float32(atrophy * WIDENING / steepest) * inwards)
    i, j, k, _ = displacement.field.shape
    points = coordinates(Grid((i, j, k), displacement.affine)) + displacement.field
    return replace(
        displacement, field=displacement.field + sample(moved, to_indices(points, grid.affine))
    )


def thin_cortex(head: Anatomy, atrophy: float) -> Anatomy:
    """Replace the outer rim of the cortex with fluid.

    Parameters
    ----------
    head : Anatomy
        Head to thin.
    atrophy : float
        Degree of atrophy, from 0, which changes nothing, to 1, at which 0.7 mm are lost (our
        choice).
    """
    if atrophy == 0:
        return head
    fluid = (~is_in_skull(head.labels) | labels_in(head.labels, (SURROUNDINGS,))).astype(np.float32)
    sigma = RIM * SIGMA_OF_FWHM * max(1.0, *head.zooms)
    near = ndimage.gaussian_filter(fluid, [sigma / zoom for zoom in head.zooms])
    lost = near > ndtr(-atrophy * THINNING / sigma)
    labels = np.where(lost & labels_in(head.labels, CORTEX), SURROUNDINGS, head.labels)
    return replace(head, labels=labels.astype(np.int16))


def warp_head(anatomy: Anatomy, displacement: Displacement, grid: Grid) -> Anatomy:
    """Warp a head and resample it to a grid.

    Parameters
    ----------
    anatomy : Anatomy
        Old head.
    displacement : Displacement
        Displacement from the new head to the old one.
    grid : Grid
        Grid in the world coordinates of the new head, of any orientation.

    Returns
    -------
    Anatomy
        New head. Labels are resampled once by nearest neighbour, MNI coordinates linearly.
    """
    points = coordinates(grid)
    points += sample(displacement.field, to_indices(points, displacement.affine))
    indices = to_indices(points, anatomy.affine)
    inside = ((indices > -HALF) & (indices < np.array(anatomy.labels.shape) - HALF)).all(axis=-1)
    labels = np.where(inside, sample(anatomy.labels, indices, order=0), 0)
    return Anatomy(labels.astype(np.int16), grid.affine, _mni_at(anatomy, points, indices))


def _mni_at(anatomy: Anatomy, points: Volume, indices: Volume) -> Volume:
    """Interpolate MNI coordinates at points, extrapolating beyond the old grid by an affine."""
    ends = np.array([0, -1])
    sample_points = anatomy.mni[np.ix_(ends, ends, ends)].reshape(8, 3).astype(np.float64)
    i, j, k = anatomy.labels.shape
    outline = fit_affine(corners(Grid((i, j, k), anatomy.affine)), sample_points)
    linear = points @ outline[:3, :3].T.astype(np.float32) + outline[:3, 3].astype(np.float32)
    expected = coordinates(Grid((i, j, k), outline @ anatomy.affine))
    deviation = anatomy.mni - expected
    if np.abs(deviation).max() < 0.01:  # usually, they are affine
        return linear
    return linear + sample(deviation, indices)
