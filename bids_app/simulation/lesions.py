"""Lesions that take up too little FDG, and that T1w does not show."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from bids_app.imaging.volume import Mask, Volume, zooms_of
from bids_app.simulation.anatomy import Anatomy
from bids_app.simulation.aseg import belongs

GREY = {"L": (3, 17, 18), "R": (42, 53, 54)}  # cortex, hippocampus, amygdala
VOLUME = (1200.0, 7000.0)  # mm³; within 1–8 cm³ also after the head was moved onto another grid
DEPTH = (0.10, 0.40)
EDGE = 4.0  # mm over which a lesion fades; our choice
APART = 35.0  # mm between the centres of two lesions; our choice
MIDLINE = 8.0  # mm of MNI space that centres keep off; our choice
TRIES = 200


@dataclass(frozen=True)
class Lesion:
    """A ball of grey matter on one side that takes up less FDG.

    Parameters
    ----------
    centre : tuple of float
        World coordinates of the head it was drawn on, in mm.
    mni : tuple of float
        The same in MNI space, in mm.
    radius : float
        In mm; there the loss is half of what it is inside.
    depth : float
        Share of uptake that is lost inside, 0.1 to 0.4.
    side : {"L", "R"}
        Left or right.
    """

    centre: tuple[float, float, float]
    mni: tuple[float, float, float]
    radius: float
    depth: float
    side: str


def _distances(anatomy: Anatomy, indices: NDArray[np.int_], centre: NDArray[np.float64]) -> Volume:
    """Give the distance in mm from voxels, as (N, 3) indices, to a point."""
    points = indices @ anatomy.affine[:3, :3].T + anatomy.affine[:3, 3]
    return np.linalg.norm(points - centre, axis=-1).astype(np.float32)


def _draw_lesion(
    anatomy: Anatomy, others: list[Lesion], rng: np.random.Generator
) -> Lesion | None:
    side = str(rng.choice(["L", "R"]))
    volume, depth = float(rng.uniform(*VOLUME)), float(rng.uniform(*DEPTH))
    grey = np.argwhere(belongs(anatomy.labels, GREY[side]))
    index = grey[rng.integers(len(grey))]
    mni = anatomy.mni[tuple(index)]
    centre = anatomy.affine[:3, :3] @ index + anatomy.affine[:3, 3]
    near = any(np.linalg.norm(centre - other.centre) < APART for other in others)
    if near or abs(mni[0]) < MIDLINE:
        return None
    wanted = max(round(volume / float(np.prod(zooms_of(anatomy.affine)))), 1)
    distances = _distances(anatomy, grey, centre)
    if len(distances) <= wanted:
        return None
    radius = float(np.partition(distances, wanted)[wanted])
    x, y, z = (float(c) for c in centre)
    right, front, up = (float(c) for c in mni)
    return Lesion((x, y, z), (right, front, up), radius, depth, side)


def draw_lesions(anatomy: Anatomy, count: int, rng: np.random.Generator) -> tuple[Lesion, ...]:
    """Draw lesions in the cortex, the hippocampus or the amygdala.

    Parameters
    ----------
    anatomy : Anatomy
        The patient's head.
    count : int
        How many.
    rng : numpy.random.Generator
        Where chance comes from.

    Returns
    -------
    tuple of Lesion
        1.2 to 7 cm³ of grey matter on one side each, 35 mm apart.

    Raises
    ------
    ValueError
        If the head has no grey matter to place them in.
    """
    if not all(belongs(anatomy.labels, grey).any() for grey in GREY.values()):
        raise ValueError("a side of the head has no grey matter")
    lesions: list[Lesion] = []
    for _ in range(TRIES):
        if len(lesions) == count:
            return tuple(lesions)
        lesion = _draw_lesion(anatomy, lesions, rng)
        if lesion is not None:
            lesions.append(lesion)
    raise ValueError(f"no room for {count} lesions")


def _reach(anatomy: Anatomy, lesion: Lesion, radius: float) -> tuple[NDArray[np.int_], Volume]:
    """Find the grey matter within a radius: indices (N, 3), and distances from the centre."""
    grey = np.argwhere(belongs(anatomy.labels, GREY[lesion.side]))
    distances = _distances(anatomy, grey, np.array(lesion.centre))
    near = distances < radius
    return grey[near], distances[near]


def lesion_mask(anatomy: Anatomy, lesion: Lesion) -> Mask:
    """Mark a lesion: the grey matter that loses at least half of its depth."""
    mask = np.zeros(anatomy.labels.shape, bool)
    indices, _ = _reach(anatomy, lesion, lesion.radius)
    mask[tuple(indices.T)] = True
    return mask


def apply_lesion(activity: Volume, anatomy: Anatomy, lesion: Lesion) -> Volume:
    """Take uptake away where a lesion is.

    Parameters
    ----------
    activity : ndarray, (I, J, K)
        Uptake before the scanner's blur.
    anatomy : Anatomy
        The head, on the same grid.
    lesion : Lesion
        In world coordinates of ``anatomy``.

    Returns
    -------
    ndarray, (I, J, K)
        Lower by ``depth`` inside; the loss fades over 4 mm around the radius.
    """
    indices, distances = _reach(anatomy, lesion, lesion.radius + EDGE / 2)
    share = np.clip((lesion.radius + EDGE / 2 - distances) / EDGE, 0, 1)
    fading = share * share * (3 - 2 * share)
    poorer = activity.copy()
    poorer[tuple(indices.T)] *= 1 - lesion.depth * fading
    return poorer
