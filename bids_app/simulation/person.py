"""A simulated person, and the scans of one visit with their truth."""

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from bids_app.imaging.volume import Affine, Grid, Mask, Volume, zooms_of
from bids_app.simulation import images
from bids_app.simulation.anatomy import Anatomy, is_brain, is_in_skull
from bids_app.simulation.geometry import (
    Displacement,
    draw_displacement,
    draw_motion,
    grid_over_box,
    thin_cortex,
    warp_head,
    widen_ventricles,
)
from bids_app.simulation.lesions import (
    Lesion,
    draw_lesions,
    draw_pet_grid,
    draw_t1w_grid,
    factor_of,
    head_box,
    mask_of,
)

LARGEST_SKULL = 2.13  # litres inside, fluid included; our choice: few people have more
TRIES = 20  # warps at most; the last one is kept, as a source may itself be larger
LESION_GRID = 2.0  # mm; for the placement of lesions, at any resolution of T1w; our choice


@dataclass(frozen=True)
class Person:
    """Properties of a person that are the same at all visits.

    Parameters
    ----------
    source : Anatomy
        Head from which the person's own is warped.
    displacement : Displacement
        Displacement from the person's head to ``source``.
    uptake, expected : Uptake
        The person's own FDG uptake, and the uptake that people share.
    contrast : Contrast
        Contrast of the T1w.
    lesions : tuple of Lesion
        Lesions, in world coordinates of the person's head.
    """

    source: Anatomy
    displacement: Displacement
    uptake: images.Uptake
    expected: images.Uptake
    contrast: images.Contrast
    lesions: tuple[Lesion, ...] = ()


@dataclass(frozen=True)
class PetScan:
    """PET scan of a visit, and its truth.

    Parameters
    ----------
    data : ndarray of float32, (I, J, K, T)
        Activity concentration in Bq/mL.
    grid : Grid
        Grid of ``data``.
    noisefree, expected : ndarray of float32
        This scan without noise, and a noise-free scan of the same anatomy with the uptake that
        people share, at a resolution of 6 mm; in Bq/mL, on the grid of the T1w. No prediction from
        T1w can be expected to come closer to the scan than the latter.
    t1w_to_pet : ndarray, (4, 4)
        World coordinates of T1w → world coordinates of PET, in mm, RAS+.
    scanner : Scanner
        Properties of the scanner.
    """

    data: NDArray[np.float32]
    grid: Grid
    noisefree: Volume
    expected: Volume
    t1w_to_pet: Affine
    scanner: images.Scanner


def _draw_displacement(source: Anatomy, rng: np.random.Generator, strength: float) -> Displacement:
    """Draw warps until the inside of the skull is not larger than ``LARGEST_SKULL``."""
    grid = grid_over_box(*head_box(source), LESION_GRID)
    for _ in range(TRIES):
        displacement = draw_displacement(source.grid, rng, strength=strength)
        labels = warp_head(source, displacement, grid).labels
        inside = np.count_nonzero(is_in_skull(labels)) * LESION_GRID**3 * 1e-6
        if inside <= LARGEST_SKULL:
            break
    return displacement


def draw_person(
    source: Anatomy,
    pattern: Volume,
    rng: np.random.Generator,
    *,
    depths: tuple[float, float] | None,
    strength: float,
    atrophy: float = 0.0,
) -> Person:
    """Draw a person.

    Parameters
    ----------
    source : Anatomy
        Head to warp.
    pattern : ndarray
        Regional uptake that people share; see :func:`~bids_app.simulation.images.usual_pattern`.
    rng : numpy.random.Generator
        Source of randomness.
    depths : tuple of float or None
        Smallest and largest share of uptake lost in lesions; None for no lesions.
    strength : float
        Strength of the warp; see :func:`~bids_app.simulation.geometry.draw_displacement`.
    atrophy : float
        Degree of atrophy, from 0 to 1, by which the ventricles are wider and the cortex is thinner
        than in ``source``.
    """
    displacement = _draw_displacement(source, rng, strength)
    displacement = widen_ventricles(source, displacement, atrophy)
    source = thin_cortex(source, atrophy)
    uptake, contrast = images.draw_uptake(pattern, rng), images.random_contrast(rng)
    expected = images.expect_uptake(pattern)
    person = Person(source, displacement, uptake, expected, contrast)
    if depths is None:
        return person
    head = warp_head(source, displacement, grid_over_box(*head_box(source), LESION_GRID))
    return replace(person, lesions=draw_lesions(head, rng, depths))


def draw_atrophy(age: float, rng: np.random.Generator) -> float:
    """Draw the degree of atrophy, from 0 to 1, at an age in years.

    It is about 0 until 40 and 0.7 at 76, with a standard deviation of 0.15 among people (our
    choice).
    """
    return float(np.clip((age - 40) / 50 + rng.normal(0, 0.15), 0, 1))


def place_head(
    person: Person, resolution: float, rng: np.random.Generator, *, vary: bool
) -> Anatomy:
    """Resample a person's head to a T1w grid drawn at a ``resolution`` in mm."""
    grid = draw_t1w_grid(head_box(person.source), resolution, rng, vary=vary)
    return warp_head(person.source, person.displacement, grid)


def scan_t1w(person: Person, head: Anatomy, rng: np.random.Generator) -> Volume:
    """Simulate a T1w, on which lesions are invisible.

    Returns
    -------
    ndarray, (I, J, K)
        T1w on the grid of ``head``; white matter is about 1.
    """
    return images.paint_t1w(head.labels, person.contrast, rng, head.zooms)


def scan_pet(
    person: Person,
    head: Anatomy,
    durations: NDArray[np.float64],
    rng: np.random.Generator,
    *,
    vary: bool,
) -> PetScan:
    """Simulate an FDG PET.

    Parameters
    ----------
    person : Person
        Person to scan.
    head : Anatomy
        The person's head on the grid of the T1w.
    durations : ndarray, (T,)
        Durations of the frames, in seconds.
    rng : numpy.random.Generator
        Source of randomness.
    vary : bool
        Whether the array may have an orientation other than RAS.
    """
    centre = head.affine[:3, :3] @ np.argwhere(is_brain(head.labels)).mean(0) + head.affine[:3, 3]
    t1w_to_pet = draw_motion(centre, rng)
    grid, scanner = draw_pet_grid(centre, rng, vary=vary), images.draw_scanner(rng)
    volume = images.activity(head, person.uptake)
    for lesion in person.lesions:
        volume *= factor_of(lesion, head.labels, head.affine)
    noisefree = images.blur(volume, scanner, head.zooms)
    on_pet_grid = images.resample_to_scanner(
        noisefree, head.affine, grid, np.linalg.inv(t1w_to_pet).astype(np.float64)
    )
    data = images.acquire(on_pet_grid, scanner, durations, zooms_of(grid.affine), rng)
    usual = images.Scanner(images.USUAL_PSF, scanner.scale, 0.0)
    expected = images.blur(images.activity(head, person.expected), usual, head.zooms)
    return PetScan(data, grid, noisefree, expected, t1w_to_pet, scanner)


def mark_lesions(person: Person, head: Anatomy) -> Mask:
    """Return a mask of all lesions of a person on the grid of ``head``."""
    masks = [mask_of(lesion, head.labels, head.affine) for lesion in person.lesions]
    return np.logical_or.reduce([np.zeros(head.labels.shape, bool), *masks])
