"""Which grids a T1w and a PET of a head are taken on, and how it moved between the two."""

import numpy as np
from numpy.typing import NDArray

from bids_app.imaging.volume import Affine, Grid
from bids_app.simulation.anatomy import Anatomy
from bids_app.simulation.deformation import corners
from bids_app.simulation.positioning import (
    ORIENTATIONS,
    draw_rigid,
    draw_rotation,
    lay_grid,
)

TILT = 4.0  # degrees about each axis by which a T1w grid is oblique at most; our choice
MARGIN = 8.0  # mm kept around a head
PET_ZOOM = 2.0  # mm
PET_SHAPE = (112, 128, 92)  # voxels along right, front, up: 224 × 256 × 184 mm; our choice
ROTATION, SHIFT = 6.0, 9.0  # degrees and mm along each axis at most: some 10° and 15 mm in all


def head_box(anatomy: Anatomy) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Give the box around a head and its margin: two corners in mm, RAS+."""
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
    """Draw the grid of a T1w: a little oblique; RAS, or any of ``ORIENTATIONS`` with ``vary``."""
    orientation, tilt = str(rng.choice(ORIENTATIONS)), draw_rotation(TILT, rng)
    return lay_grid(*box, zoom, orientation=orientation if vary else "RAS", tilt=tilt)


def draw_pet_grid(centre: NDArray[np.float64], rng: np.random.Generator, *, vary: bool) -> Grid:
    """Draw the grid of a PET: 2 mm, not oblique, around where the brain lies in the T1w."""
    half = (np.array(PET_SHAPE) - 1) * PET_ZOOM / 2
    orientation = str(rng.choice(ORIENTATIONS))
    return lay_grid(
        centre - half, centre + half, PET_ZOOM, orientation=orientation if vary else "RAS"
    )


def draw_motion(centre: NDArray[np.float64], rng: np.random.Generator) -> Affine:
    """Draw how a head lies in the PET, against the T1w: world coordinates → the other's, RAS+."""
    return draw_rigid(centre, rng, degrees=ROTATION, shift=SHIFT)
