"""How much FDG each part of a brain takes up: by tissue, by region, and by person."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from bids_app.imaging.smoothing import SIGMA_OF_FWHM, smooth
from bids_app.imaging.volume import Grid, Volume, grid_of_box
from bids_app.simulation.anatomy import Anatomy, coordinates
from bids_app.simulation.aseg import NAMES, is_in_skull, table_of
from bids_app.simulation.deformation import random_field, sample, to_indices

# Uptake by tissue; cortex is 1. Ratios as FDG is known to show them, numbers our choice. After the
# scanner's blur nuclei are the brighter ones: the cortex, 2–3 mm thin, loses more to it.
TISSUE = {
    "cortex": 1.0, "cerebellar_cortex": 0.86, "thalamus": 0.92, "caudate": 1.00, "putamen": 1.00,
    "accumbens": 1.00, "pallidum": 0.70, "hippocampus": 0.68, "amygdala": 0.68,
    "ventral_dc": 0.60, "brainstem": 0.48, "cerebellar_white": 0.34, "fluid": 0.04,
    "plexus": 0.04, "cord": 0.30, "muscle": 0.12, "skin": 0.08, "mucosa": 0.20, "eye": 0.12,
    "vessel": 0.15, "bone": 0.05, "marrow": 0.12,
}  # fmt: skip
WHITE = (0.22, 0.29)  # range among people: cortex is about four times as bright; our choice
TISSUE_SD = 0.05  # among people, of each tissue; our choice
SIDE_SD = 0.015  # between the sides of a person; our choice

# Centre (x > 0, MNI mm), sigma (mm) and change of uptake, alike on both sides (our choice):
REGIONS = (
    ((6.0, -50.0, 28.0), 15.0, 0.20),  # posterior cingulate, precuneus
    ((10.0, -84.0, 4.0), 18.0, 0.16),  # occipital
    ((32.0, 38.0, 22.0), 24.0, 0.10),  # frontal
    ((23.0, 6.0, 2.0), 10.0, 0.08),  # striatum
    ((11.0, -18.0, 7.0), 9.0, 0.06),  # thalamus
    ((26.0, -18.0, -20.0), 14.0, -0.20),  # medial temporal
    ((36.0, 10.0, -36.0), 16.0, -0.16),  # temporal pole
    ((20.0, -65.0, -38.0), 22.0, -0.10),  # cerebellum
)
PATTERN_ZOOM = 4.0  # mm
PATTERN_GRID = grid_of_box(
    (-92, -128, -76, 92, 92, 108), PATTERN_ZOOM
)  # beyond any brain in MNI space
VARIATION_SD = 0.05  # of a person's own pattern; our choice
VARIATION = ((40.0, 0.90), (30.0, 0.35))  # (FWHM in mm, weight): mirrored, then one-sided
RANGE = (0.6, 1.5)  # of a template's pattern; our choice


@dataclass(frozen=True)
class Uptake:
    """How one person's brain takes up FDG.

    Parameters
    ----------
    tissue : ndarray of float32, (1024,)
        By label; cortex is about 1.
    region : ndarray of float32
        A factor about 1, on ``PATTERN_GRID`` in MNI space.
    """

    tissue: NDArray[np.float32]
    region: Volume


def usual_pattern() -> Volume:
    """Give the regional pattern that FDG shows in health, as a factor about 1.

    Posterior cingulate, occipital and frontal cortex, striatum and thalamus are high; medial
    temporal lobe and cerebellum are low.

    Returns
    -------
    ndarray
        On ``PATTERN_GRID``, left and right alike.
    """
    points = np.abs(coordinates(PATTERN_GRID)) * [1, 0, 0] + coordinates(PATTERN_GRID) * [0, 1, 1]
    pattern = np.ones(PATTERN_GRID.shape)
    for centre, sigma, change in REGIONS:
        distance = np.linalg.norm(points - np.array(centre), axis=-1)
        pattern += change * np.exp(-0.5 * (distance / sigma) ** 2)
    return pattern.astype(np.float32)


def pattern_of_template(template: Volume, grid: Grid, anatomy: Anatomy) -> Volume:
    """Give the regional pattern of a mean FDG PET: what tissue alone does not explain of it.

    Parameters
    ----------
    template : ndarray, (I, J, K)
        A mean PET in MNI space, any unit, not negative.
    grid : Grid
        Of the template.
    anatomy : Anatomy
        A head in MNI space: its world coordinates are MNI coordinates.

    Returns
    -------
    ndarray
        On ``PATTERN_GRID``, left and right alike, 0.6 to 1.5; 1 outside the brain.
    """
    points, zooms = coordinates(PATTERN_GRID), (PATTERN_ZOOM,) * 3
    pet = smooth(sample(template, to_indices(points, grid.affine)), 10.0, zooms)
    expected = smooth(_mean_tissue()[anatomy.labels], 14.0, anatomy.zooms)
    brain = smooth(_is_brain_tissue()[anatomy.labels], 4.0, anatomy.zooms)
    where = to_indices(points, anatomy.affine)
    expected, inside = sample(expected, where), sample(brain, where) > 0.5  # noqa: PLR2004
    ratio = pet / np.maximum(expected, 0.12)
    ratio = np.clip(ratio / np.median(ratio[inside]), *RANGE)
    ratio = np.where(inside, ratio, 1.0).astype(np.float32)
    return smooth((ratio + ratio[::-1]) / 2, 8.0, zooms)  # the grid is even about x = 0


def _mean_tissue() -> NDArray[np.float32]:
    return table_of({**TISSUE, "white": float(np.mean(WHITE))})


def _is_brain_tissue() -> NDArray[np.float32]:
    table = (np.arange(1024) < 500).astype(np.float32)  # noqa: PLR2004
    table[[0, 24]] = 0
    return table


def _unit_field(fwhm: float, rng: np.random.Generator) -> Volume:
    return random_field(PATTERN_GRID.shape, fwhm * SIGMA_OF_FWHM / PATTERN_ZOOM, rng)


def draw_uptake(pattern: Volume, rng: np.random.Generator) -> Uptake:
    """Draw how one person's brain takes up FDG.

    Parameters
    ----------
    pattern : ndarray
        What people share, as :func:`usual_pattern` gives it.
    rng : numpy.random.Generator
        Where chance comes from.

    Returns
    -------
    Uptake
        Tissues differ by 5 %, sides by 1.5 %, and regions by 5 %, smoothly and mostly alike on
        both sides (our choice).
    """
    values = {**TISSUE, "white": float(rng.uniform(*WHITE))}
    table = table_of(values)
    for name, labels in NAMES.items():
        own = 1.0 if name in ("cortex", "white") else 1 + TISSUE_SD * rng.standard_normal()
        table[list(labels)] *= own * (1 + SIDE_SD * rng.standard_normal(len(labels)))
    (wide, shared), (fine, own_side) = VARIATION
    both = _unit_field(wide, rng)
    mirrored = both + both[::-1]
    variation = shared * mirrored / mirrored.std() + own_side * _unit_field(fine, rng)
    region = pattern * np.exp(VARIATION_SD * variation)
    return Uptake(np.maximum(table, 0).astype(np.float32), region.astype(np.float32))


def activity(anatomy: Anatomy, uptake: Uptake) -> Volume:
    """Lay uptake out over a head, as a perfect scanner would see it.

    Returns
    -------
    ndarray, (I, J, K)
        Cortex is about 1; the head around the brain is faint.
    """
    volume = uptake.tissue[anatomy.labels]
    brain = is_in_skull(anatomy.labels)
    where = to_indices(anatomy.mni[brain], PATTERN_GRID.affine)
    volume[brain] *= sample(uptake.region, where)
    return volume
