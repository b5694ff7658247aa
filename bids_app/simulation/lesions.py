"""Lesions of grey matter with reduced FDG uptake, invisible on T1w; and grids of the scans."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from bids_app.imaging.volume import Affine, Grid, Mask, Volume, zooms_of
from bids_app.simulation.anatomy import CORTEX, HIPPOCAMPUS, Anatomy, Labels
from bids_app.simulation.geometry import ORIENTATIONS, corners, draw_rotation, grid_over_box

TILT = 4.0  # degrees; largest tilt of a T1w grid about each axis; our choice
MARGIN = 8.0  # mm kept around a head
PET_ZOOMS = (2.0, 2.5, 3.0)  # mm; voxel sizes among scanners; our choice
PET_SIZE = (224.0, 256.0, 184.0)  # mm along right, front and, at least, up; our choice
PET_LONGEST = 240.0  # mm; largest extent along up among scanners; our choice


def head_box(anatomy: Anatomy) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return the bounding box of a head with a margin: two corners in mm, RAS+."""
    filled = np.argwhere((anatomy.labels > 0)[::2, ::2, ::2]) * 2
    first, last = filled.min(axis=0), filled.max(axis=0) + 1
    affine = anatomy.affine.copy()
    affine[:3, 3] += affine[:3, :3] @ first
    i, j, k = (int(n) for n in last - first + 1)
    ends = corners(Grid((i, j, k), affine))
    return ends.min(axis=0) - MARGIN, ends.max(axis=0) + MARGIN


def draw_t1w_grid(
    box: tuple[NDArray[np.float64], NDArray[np.float64]],
    zoom: float,
    rng: np.random.Generator,
    *,
    vary: bool,
) -> Grid:
    """Draw the slightly oblique grid of a T1w: RAS or, if ``vary``, any of ``ORIENTATIONS``."""
    orientation, tilt = str(rng.choice(ORIENTATIONS)), draw_rotation(TILT, rng)
    return grid_over_box(*box, zoom, orientation=orientation if vary else "RAS", tilt=tilt)


def draw_pet_grid(centre: NDArray[np.float64], rng: np.random.Generator, *, vary: bool) -> Grid:
    """Draw the grid of a PET: 2 to 3 mm, not oblique, around the brain's centre in the T1w."""
    orientation, zoom = str(rng.choice(ORIENTATIONS)), float(rng.choice(PET_ZOOMS))
    half = np.array(PET_SIZE) / 2
    half[2] = rng.uniform(half[2], PET_LONGEST / 2)
    return grid_over_box(
        centre - half, centre + half, zoom, orientation=orientation if vary else "RAS"
    )


# Issue 2, item 5: 1 to 8 cm³, -10 to -40 %. Volumes are drawn from a slightly smaller range,
# because they differ by a few voxels on the grid of another session.
VOLUMES = (1_150.0, 7_000.0)  # mm³
DEPTHS = (0.10, 0.40)  # share of uptake lost
EDGE = 3.0  # mm from full to half loss, and from half to no loss; our choice
APART = 15.0  # mm between the edges of two lesions of one person; our choice
SIDES = ("left", "right")


@dataclass(frozen=True)
class Lesion:
    """Ball in which the grey matter of one side is affected.

    Parameters
    ----------
    side : {"left", "right"}
        Side of the person.
    centre : tuple of float
        World coordinates of a voxel of grey matter, in mm.
    mni : tuple of float
        The same in MNI space.
    radius : float
        Distance from the centre, in mm, at which the loss is half.
    depth : float
        Share of uptake lost at the centre.
    """

    side: str
    centre: tuple[float, float, float]
    mni: tuple[float, float, float]
    radius: float
    depth: float


def grey_of(labels: Labels, side: str) -> Mask:
    """Return a mask of the cortex and hippocampus of one side."""
    column = SIDES.index(side)
    return (labels == CORTEX[column]) | (labels == HIPPOCAMPUS[column])


def _distances(
    indices: tuple[NDArray[np.intp], ...], affine: Affine, centre: tuple[float, float, float]
) -> NDArray[np.float64]:
    points = np.stack(indices, axis=-1) @ affine[:3, :3].T + affine[:3, 3]
    return np.linalg.norm(points - np.array(centre), axis=-1)


def mask_of(lesion: Lesion, labels: Labels, affine: Affine) -> Mask:
    """Return a mask, (I, J, K), of the voxels with at least half of the loss at the centre."""
    indices = np.nonzero(grey_of(labels, lesion.side))
    mask = np.zeros(labels.shape, bool)
    mask[indices] = _distances(indices, affine, lesion.centre) <= lesion.radius
    return mask


def factor_of(lesion: Lesion, labels: Labels, affine: Affine) -> Volume:
    """Return the factor of uptake, (I, J, K): 1 - depth inside, 1 outside, smooth in between."""
    indices = np.nonzero(grey_of(labels, lesion.side))
    beyond = (_distances(indices, affine, lesion.centre) - lesion.radius) / EDGE
    loss = (1 - np.sin(np.pi / 2 * np.clip(beyond, -1, 1))) / 2
    factor = np.ones(labels.shape, np.float32)
    factor[indices] = 1 - lesion.depth * loss
    return factor


def draw_lesion(
    anatomy: Anatomy,
    rng: np.random.Generator,
    depths: tuple[float, float] = DEPTHS,
    others: tuple[Lesion, ...] = (),
) -> Lesion:
    """Draw one lesion, at a distance from others.

    Parameters
    ----------
    anatomy : Anatomy
        Head of the patient.
    rng : numpy.random.Generator
        Source of randomness for side, position, volume and depth.
    depths : tuple of float
        Smallest and largest share of uptake lost.
    others : tuple of Lesion
        Lesions that the patient already has.

    Raises
    ------
    ValueError
        If the side has too little grey matter.
    """
    side = SIDES[int(rng.integers(2))]
    indices = np.nonzero(grey_of(anatomy.labels, side))
    target = float(np.exp(rng.uniform(*np.log(VOLUMES))))
    count = round(target / float(np.prod(zooms_of(anatomy.affine))))
    free = np.ones(indices[0].size, bool)
    for other in others:
        room = other.radius + APART + 2 * EDGE + np.cbrt(target)  # a ball with gaps is larger
        free &= _distances(indices, anatomy.affine, other.centre) > room
    if free.sum() < max(count, 1):
        raise ValueError(f"the {side} side has too little grey matter for a lesion")
    place = int(rng.choice(np.flatnonzero(free)))
    voxel = tuple(int(axis[place]) for axis in indices)
    x, y, z = (anatomy.affine[:3, :3] @ voxel + anatomy.affine[:3, 3]).tolist()
    distances = _distances(indices, anatomy.affine, (x, y, z))
    radius = float(np.partition(distances, count - 1)[count - 1])
    mx, my, mz = (float(c) for c in anatomy.mni[voxel])
    return Lesion(side, (x, y, z), (mx, my, mz), radius, float(rng.uniform(*depths)))


def draw_lesions(
    anatomy: Anatomy, rng: np.random.Generator, depths: tuple[float, float] = DEPTHS
) -> tuple[Lesion, ...]:
    """Draw the one or two lesions of a patient."""
    lesions: tuple[Lesion, ...] = ()
    for _ in range(int(rng.integers(1, 3))):
        lesions += (draw_lesion(anatomy, rng, depths, lesions),)
    return lesions
