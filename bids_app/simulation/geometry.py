"""How a head lies in a scanner, rigidly, and another person's head out of one, by smooth warps."""

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
    belongs,
    coordinates,
    fit_affine,
    is_in_skull,
)

ORIENTATIONS = ("RAS", "LAS", "LIA", "PSR", "LPS", "ASR")
DIRECTIONS = {"R": (0, 1), "L": (0, -1), "A": (1, 1), "P": (1, -1), "S": (2, 1), "I": (2, -1)}
LPS_OF_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])


def lay_grid(
    low: NDArray[np.float64],
    high: NDArray[np.float64],
    zoom: float,
    *,
    orientation: str = "RAS",
    tilt: NDArray[np.float64] | None = None,
) -> Grid:
    """Lay isotropic voxels over a box.

    Parameters
    ----------
    low, high : ndarray, (3,)
        Corners of the box in mm, RAS+.
    zoom : float
        Edge of a voxel in mm.
    orientation : str
        Where the array's axes point to, as nibabel spells it: ``RAS``, ``LIA``, ….
    tilt : ndarray, (3, 3), optional
        Rotation of the grid about the middle of the box.

    Returns
    -------
    Grid

    Examples
    --------
    >>> lay_grid(np.zeros(3), np.array([4.0, 6.0, 8.0]), 2.0, orientation="LIA").shape
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
    """Draw a rotation, (3, 3), of up to some degrees about each axis."""
    return Rotation.from_euler("xyz", rng.uniform(-degrees, degrees, 3), degrees=True).as_matrix()


def draw_rigid(
    centre: NDArray[np.float64], rng: np.random.Generator, *, degrees: float, shift: float
) -> Affine:
    """Draw a rigid transform: a rotation about a point, then a shift.

    Parameters
    ----------
    centre : ndarray, (3,)
        In mm.
    rng : numpy.random.Generator
        Where chance comes from.
    degrees, shift : float
        The most of each, about or along each axis; mm for the shift.

    Returns
    -------
    ndarray, (4, 4)
        Of points, in mm, RAS+.
    """
    rigid = np.eye(4)
    rigid[:3, :3] = draw_rotation(degrees, rng)
    rigid[:3, 3] = centre - rigid[:3, :3] @ centre + rng.uniform(-shift, shift, 3)
    return rigid


def itk_text(points: Affine) -> str:
    """Write an affine transform of points as ITK's text format.

    ITK and ANTs resample by asking, for a point of the fixed image, where it is in the moving one.
    So the file that "moves PET onto T1w" holds the transform of points of T1w to points of PET.

    Parameters
    ----------
    points : ndarray, (4, 4)
        From points of the fixed image to those of the moving one, in mm, RAS+. The text has them
        in LPS+.

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
HALF = 0.5  # voxel: how far an image reaches beyond the centres of its outermost voxels
SQUARINGS = 6  # of the velocity field; steps of 1/64
STEP = 4.0  # mm; the grid of the velocity field
# (sigma, size) in mm: lobes, gyri, their folds; our choice
SCALES = ((36.0, 3.0), (12.0, 1.8), (6.0, 1.0))
VENTRICLES = (4, 5, 14, 43, 44)
WIDENING = 4.0  # mm by which the walls of ventricles move apart at most, each; our choice
WALL = 12.0  # mm; FWHM of the ventricles' blurred outline, down which their walls move; our choice
THINNING = 0.7  # mm by which the cortex becomes thinner at most; our choice
RIM = 2.4  # FWHM in mm, or in voxels where those are wider, that fluid is blurred by to find what
# of the cortex is lost; our choice
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


def sample(volume: NDArray[Number], indices: Volume, *, order: int = 1) -> NDArray[Number]:
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
    positions = np.moveaxis(indices, -1, 0)
    if volume.ndim == 3:
        return ndimage.map_coordinates(volume, positions, order=order, mode="nearest")
    parts = [
        ndimage.map_coordinates(volume[..., c], positions, order=order, mode="nearest")
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


def corners(grid: Grid) -> NDArray[np.float64]:
    """Give the world coordinates of the eight outermost voxels, (8, 3), in mm."""
    ends = np.stack(np.meshgrid(*([0, n - 1] for n in grid.shape), indexing="ij"), -1)
    return ends.reshape(8, 3) @ grid.affine[:3, :3].T + grid.affine[:3, 3]


def _coarse(grid: Grid) -> Grid:
    """Lay a RAS+ grid of 4 mm over another, for displacements."""
    low, high = corners(grid).min(axis=0), corners(grid).max(axis=0)
    x, y, z = (int(n) for n in np.ceil((high - low) / STEP) + 1)
    affine = np.diag([STEP, STEP, STEP, 1.0])
    affine[:3, 3] = low
    return Grid((x, y, z), affine)


def draw_displacement(
    grid: Grid, rng: np.random.Generator, *, strength: float = 1.0
) -> Displacement:
    """Draw a warp: smooth, without folds, with a change of size.

    Parameters
    ----------
    grid : Grid
        Of the new head, of any orientation.
    rng : numpy.random.Generator
        Where chance comes from.
    strength : float
        1 for as much as people differ (our choice); 0 for none.

    Returns
    -------
    Displacement
        On a RAS+ grid of 4 mm that covers the head's.
    """
    coarse = _coarse(grid)
    velocity = np.zeros((*coarse.shape, 3), np.float32)
    for sigma, size in SCALES:
        for component in range(3):
            velocity[..., component] += size * random_field(coarse.shape, sigma / STEP, rng)
    field = exponentiate(strength * velocity, STEP)
    growth = np.clip(rng.normal(0, SIZE_CHANGE, 3), -2 * SIZE_CHANGE, 2 * SIZE_CHANGE) * strength
    new = coordinates(coarse) - corners(coarse).mean(axis=0).astype(np.float32)
    field = field - growth.astype(np.float32) * (new + field)
    return Displacement(field.astype(np.float32), coarse.affine)


def widen_ventricles(anatomy: Anatomy, displacement: Displacement, atrophy: float) -> Displacement:
    """Widen the ventricles of a head before it is displaced.

    Parameters
    ----------
    anatomy : Anatomy
        The old head.
    displacement : Displacement
        From the new head to the old one.
    atrophy : float
        From 0, which changes nothing, to 1, where walls move outwards by up to 4 mm (our choice).

    Returns
    -------
    Displacement
        From the new head to the old one, on the grid of ``displacement``.
    """
    grid = _coarse(anatomy.grid)
    indices = to_indices(coordinates(grid), anatomy.affine)
    inside = belongs(sample(anatomy.labels, indices, order=0), VENTRICLES).astype(np.float32)
    outline = ndimage.gaussian_filter(inside, WALL * SIGMA_OF_FWHM / STEP)
    inwards = np.stack(np.gradient(outline), axis=-1)
    steepest = np.linalg.norm(inwards, axis=-1).max()
    if atrophy == 0 or steepest == 0:
        return displacement
    moved = exponentiate(np.float32(atrophy * WIDENING / steepest) * inwards, STEP)
    i, j, k, _ = displacement.field.shape
    points = coordinates(Grid((i, j, k), displacement.affine)) + displacement.field
    return replace(
        displacement, field=displacement.field + sample(moved, to_indices(points, grid.affine))
    )


def thin_cortex(head: Anatomy, atrophy: float) -> Anatomy:
    """Turn the rim of the cortex into fluid.

    Parameters
    ----------
    head : Anatomy
        A head.
    atrophy : float
        From 0, which changes nothing, to 1, where 0.7 mm are lost (our choice).
    """
    if atrophy == 0:
        return head
    fluid = (~is_in_skull(head.labels) | belongs(head.labels, (SURROUNDINGS,))).astype(np.float32)
    sigma = RIM * SIGMA_OF_FWHM * max(1.0, *head.zooms)
    near = ndimage.gaussian_filter(fluid, [sigma / zoom for zoom in head.zooms])
    lost = near > ndtr(-atrophy * THINNING / sigma)
    labels = np.where(lost & belongs(head.labels, CORTEX), SURROUNDINGS, head.labels)
    return replace(head, labels=labels.astype(np.int16))


def carry(anatomy: Anatomy, displacement: Displacement, grid: Grid) -> Anatomy:
    """Lay a warped head on a grid.

    Parameters
    ----------
    anatomy : Anatomy
        The old head.
    displacement : Displacement
        From the new head to the old one.
    grid : Grid
        In the world of the new head; of any orientation.

    Returns
    -------
    Anatomy
        Labels by nearest neighbour, resampled once; MNI coordinates linearly.
    """
    points = coordinates(grid)
    points += sample(displacement.field, to_indices(points, displacement.affine))
    indices = to_indices(points, anatomy.affine)
    inside = ((indices > -HALF) & (indices < np.array(anatomy.labels.shape) - HALF)).all(axis=-1)
    labels = np.where(inside, sample(anatomy.labels, indices, order=0), 0)
    return Anatomy(labels.astype(np.int16), grid.affine, _mni_at(anatomy, points, indices))


def _mni_at(anatomy: Anatomy, points: Volume, indices: Volume) -> Volume:
    """Read MNI coordinates at points; also beyond the old grid, where it goes on as an affine."""
    ends = np.array([0, -1])
    sample_points = anatomy.mni[np.ix_(ends, ends, ends)].reshape(8, 3).astype(np.float64)
    i, j, k = anatomy.labels.shape
    outline = fit_affine(corners(Grid((i, j, k), anatomy.affine)), sample_points)
    linear = points @ outline[:3, :3].T.astype(np.float32) + outline[:3, 3].astype(np.float32)
    expected = coordinates(Grid((i, j, k), outline @ anatomy.affine))
    deviation = anatomy.mni - expected
    if np.abs(deviation).max() < 0.01:  # an affine is all there is: the usual case
        return linear
    return linear + sample(deviation, indices)
