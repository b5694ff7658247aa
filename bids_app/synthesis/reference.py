"""Reference of a generator: a small file beside its weights that describes the training images.

It provides the quantiles that a synthetic PET can be matched to, and a measure of how unlike the
training T1w another T1w is. Neither is in Zotova et al. (2021). This module does not import torch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import save
from scipy import ndimage

from bids_app.errors import UnusableDataError
from bids_app.files import write_bytes
from bids_app.imaging.intensity import smooth
from bids_app.imaging.similarity import correlation
from bids_app.imaging.tissues import find_tissue_means, shares_between
from bids_app.imaging.volume import Mask, Volume, average_cubes, cube_sides
from bids_app.synthesis.card import read_parts

if TYPE_CHECKING:
    from bids_app.synthesis.pairs import Volumes

QUANTILES = 1001  # of the mean PET; our choice
CUBE = 8.0  # mm; our choice: smaller cubes would compare gyri, which differ in place
LEAST_SD = 0.02  # of intensities in [0, 1]; our choice, because few images may agree by chance
HALF = 0.5  # share of the training images that must have brain where a mean is taken
Looks = NDArray[np.float32]
Traits = NDArray[np.floating]
Table = NDArray[np.floating]
TRAITS = {
    "sharpness": ("blurred", "sharper, or noisy"),
    "noise": ("smoother in white matter", "noisier in white matter"),
    "fluid": ("less fluid", "more fluid, as in atrophy"),
    "ventricles": ("less fluid in the middle", "larger ventricles"),
    "white": (
        "vessels or other structures outshine tissue, as with a contrast agent",
        "white matter too bright",
    ),
    "grey": ("grey matter too dark", "grey matter too bright"),
    "bright": ("no bright voxels", "bright voxels, as with a contrast agent"),
    "rough_x": ("smoother from left to right", "stripes or ghosts from left to right"),
    "rough_z": ("smoother from foot to head", "stripes or ghosts from foot to head"),
    "pattern": ("a different contrast or position", "closer to the average than any of them"),
    "places": ("closer to the average than any of them", "different in many places"),
}  # trait → meaning of low and of high values
SLOPES = (1.0, 3.0)  # mm, sigma; our choice
GRAIN = 3.0  # mm, FWHM; finer detail in pure white matter is noise; our choice
DEEP = 60.0  # mm, FWHM of the neighbourhood by which the middle is defined; our choice
INNER = 0.9  # share of brain, or of white matter, in a neighbourhood; our choice
BRIGHT = 1.25  # times the mean of white matter; our choice
DARK = (0.1, 0.5, 0.9)  # quantiles that replace tissue means if there are not three tissues
FEWEST_PURE = 50  # voxels of pure white matter; our choice
LITTLE = 1e-4  # added before taking logarithms; our choice
SOME = 0.01  # added to the share of bright voxels, so that a few matter little; our choice
LEAST_TRAIT = 0.03  # SD of a logarithm; our choice, because few images may agree by chance


@dataclass(frozen=True)
class Reference:
    """Summary of training images.

    Parameters
    ----------
    pet_quantiles : ndarray, (1001,)
        Quantiles of the mean PET in the brain, from its minimum to its maximum, in [0, 1].
    t1w_mean, t1w_sd : ndarray, (2, I', J', K')
        Mean and standard deviation over T1w of the coarse images returned by :func:`measure_cubes`.
    brain : ndarray of bool, (I', J', K')
        Cubes to compare.
    novelties : ndarray, (N,)
        :func:`novelty` of each training T1w relative to those of the other participants.
    trait_mean, trait_sd : ndarray, (11,)
        Mean and standard deviation of ``TRAITS`` over T1w, each computed relative to the other
        participants; empty in files from before version 0.2, and if there is one participant.
    """

    pet_quantiles: NDArray[np.float32]
    t1w_mean: Looks
    t1w_sd: Looks
    brain: Mask
    novelties: NDArray[np.float32]
    trait_mean: Traits = field(default_factory=lambda: np.zeros(0, np.float32))
    trait_sd: Traits = field(default_factory=lambda: np.zeros(0, np.float32))


def measure_cubes(t1w: Volume, zooms: tuple[float, float, float]) -> Looks:
    """Compute the mean and the spread of a T1w in each cube of 8 mm.

    The mean depends on contrast and position; the spread, the standard deviation over the cube's
    voxels, on the sharpness of the image.

    Parameters
    ----------
    t1w : ndarray, (I, J, K)
        Intensities in [0, 1], 0 outside the brain.
    zooms : tuple of float
        Voxel size in mm along each axis.

    Returns
    -------
    ndarray, (2, I', J', K')
        float32: mean, then spread.
    """
    sides = cube_sides(CUBE, zooms)
    mean = average_cubes(t1w, sides)
    variance = average_cubes(np.square(t1w, dtype=np.float64), sides) - mean**2
    return np.stack([mean, np.sqrt(np.maximum(variance, 0))]).astype(np.float32)


def _summarize(looks: Looks) -> tuple[Looks, Looks]:
    """Return the mean and standard deviation over images; the latter is 0 for one image."""
    spread = looks.std(axis=0, ddof=1) if len(looks) > 1 else np.zeros_like(looks[0])
    return looks.mean(axis=0), spread


def _distance(look: Looks, mean: Looks, spread: Looks, brain: Mask) -> float:
    scores = (look - mean) / np.maximum(spread, LEAST_SD)
    return float(np.sqrt(np.mean(scores[:, brain] ** 2)))


def measure_traits(t1w: Volume, zooms: tuple[float, float, float]) -> NDArray[np.float64]:
    """Compute the traits of a T1w as a whole: ``TRAITS`` without the last two.

    Parameters
    ----------
    t1w : ndarray, (I, J, K)
        Intensities in [0, 1], 0 outside the brain, which must not be empty.
    zooms : tuple of float
        Voxel size in mm along each axis.

    Returns
    -------
    ndarray, (9,)
        Logarithms of: the ratio of gradients at a fine to those at a coarse scale; the spread of
        detail finer than 3 mm in pure white matter, over the range of tissue; the share of fluid
        in the brain and in its middle; the intensity of white matter; the position of grey matter
        between fluid and white matter (not its logarithm); the share of voxels far brighter than
        white matter; the roughness along the first and along the third axis, relative to the
        second.
    """
    brain = t1w > 0
    values = t1w[brain]
    try:
        fluid, grey, white = find_tissue_means(t1w)
        shares = shares_between(t1w, fluid, grey, white)
    except ValueError:  # not three tissues, which shows in the traits
        fluid, grey, white = (
            float(v) + n * LITTLE for n, v in enumerate(np.quantile(values, DARK))
        )
        shares = (brain - 0.0).astype(np.float32), np.zeros_like(t1w)
    wet = brain * (1 - shares[0] - shares[1])
    depth = smooth(brain.astype(np.float32), DEEP, zooms)
    inner = smooth(brain.astype(np.float32), CUBE, zooms) > INNER
    inner, middle = (part if part.any() else brain for part in (inner, depth > INNER))
    pure = inner & (smooth(shares[1], GRAIN, zooms) > INNER)
    grain = (t1w - smooth(t1w, GRAIN, zooms))[pure if pure.sum() > FEWEST_PURE else inner]
    slopes = [
        ndimage.gaussian_gradient_magnitude(t1w, [sigma / zoom for zoom in zooms])[inner].mean()
        for sigma in SLOPES
    ]
    rough = [np.abs(np.diff(t1w, 2, axis=n, prepend=0, append=0))[inner].mean() for n in range(3)]
    measures = (
        slopes[0] / (slopes[1] + LITTLE),
        np.median(np.abs(grain)) / (white - fluid),
        wet[brain].mean(),
        wet[middle].mean(),
        white,
        np.exp((grey - fluid) / (white - fluid)),
        np.mean(values > BRIGHT * white) + SOME,
        rough[0] / (rough[1] + LITTLE),
        rough[2] / (rough[1] + LITTLE),
    )
    return np.log(np.array(measures, np.float64) + LITTLE)


def _with_places(traits: Traits, look: Looks, others: tuple[Looks, Looks], brain: Mask) -> Traits:
    """Append the correlation with, and the distance from, the cubes of other images."""
    mean, spread = others
    likeness = correlation(look[0], mean[0], brain)
    distance = _distance(look, mean, spread, brain)
    return np.append(traits, [np.arctanh(0.999 * likeness), np.log(distance + LITTLE)])


def _scores(traits: Traits, mean: Traits, spread: Traits) -> Traits:
    return (traits - mean) / np.maximum(spread, LEAST_TRAIT)


def novelty(
    t1w: Volume, zooms: tuple[float, float, float], reference: Reference
) -> tuple[float, dict[str, float]]:
    """Compute how unlike the training T1w a T1w is.

    The novelty is the largest distance of a trait from the mean of the training T1w, in units of
    their standard deviation. The traits are those of :func:`measure_traits`, the correlation with
    the mean training T1w over cubes of 8 mm, and the root mean square over these cubes of the
    distance from that mean, in units of the standard deviation, which is taken to be at least
    0.02. For references from before version 0.2, which hold no traits, the novelty is that root
    mean square itself. Small lesions do not change it.

    Parameters
    ----------
    t1w : ndarray, (I, J, K)
        Intensities in [0, 1], 0 outside the brain, on the generator's grid.
    zooms : tuple of float
        Voxel size in mm along each axis.
    reference : Reference
        Reference of the generator.

    Returns
    -------
    float
        Novelty, to be compared with those of the training controls.
    dict
        Trait → signed distance; empty if the reference holds no traits.

    Raises
    ------
    ValueError
        If the T1w is on another grid, or is 0 everywhere.
    """
    look = measure_cubes(t1w, zooms)
    if look.shape != reference.t1w_mean.shape:
        raise ValueError(f"{look.shape[1:]} cubes, not {reference.t1w_mean.shape[1:]}")
    if not t1w.any():
        raise ValueError("the T1w is 0 everywhere")
    others = reference.t1w_mean, reference.t1w_sd
    if not reference.trait_mean.size:
        return _distance(look, *others, reference.brain), {}
    traits = _with_places(measure_traits(t1w, zooms), look, others, reference.brain)
    scores = _scores(traits, reference.trait_mean, reference.trait_sd)
    return float(np.abs(scores).max()), dict(zip(TRAITS, scores.tolist(), strict=True))


def describe_novelty(
    value: float, traits: dict[str, float], reference: Reference
) -> dict[str, object]:
    """Describe the novelty of a T1w relative to those of the training T1w, for a sidecar."""
    controls = reference.novelties
    highest = float(controls.max()) if controls.size else None
    beyond = [
        TRAITS[name][score > 0]
        for name, score in sorted(traits.items(), key=lambda item: -abs(item[1]))
        if highest is not None and abs(score) > highest
    ]
    return {
        "Description": "How unlike the T1w of the generator's training controls this T1w is: "
        + (
            "the largest distance of any trait of the image from their mean, in units of their "
            "standard deviation"
            if traits
            else f"root mean square, over cubes of {CUBE:g} mm in the brain, of the difference of "
            "mean and spread from theirs, in units of their standard deviation"
        ),
        "Value": round(value, 3),
        "TrainingControls": len(controls),
        "TrainingControlsLowest": round(float(controls.min()), 3) if controls.size else None,
        "TrainingControlsHighest": None if highest is None else round(highest, 3),
        "BeyondTrainingControls": highest is not None and value > highest,
        **({"Traits": {k: round(v, 2) for k, v in traits.items()}} if traits else {}),
        **({"Beyond": beyond} if beyond else {}),
    }


def _compare_all(
    traits: Sequence[Traits], looks: Looks, participants: Sequence[str], brain: Mask
) -> tuple[Table, NDArray[np.float32]]:
    """Return all traits and the novelty of each image, relative to all other participants."""
    owners = np.array(participants)
    if len(set(participants)) < 2:
        return np.zeros((0, 0)), np.zeros(0, np.float32)
    table = np.array(
        [
            _with_places(image_traits, look, _summarize(looks[owners != owner]), brain)
            for image_traits, look, owner in zip(traits, looks, owners, strict=True)
        ]
    )
    values = [
        np.abs(_scores(image_traits, *_summarize(table[owners != owner]))).max()
        for image_traits, owner in zip(table, owners, strict=True)
    ]
    return table, np.array(values, np.float32)


def _mean_quantiles(visits: Sequence[Volumes]) -> NDArray[np.float32]:
    total = np.zeros_like(visits[0].pet, dtype=np.float64)
    count = np.zeros_like(visits[0].brain, dtype=np.int32)
    for visit in visits:
        known = visit.brain & visit.covered
        total += np.where(known, visit.pet, 0)
        count += known
    shared = count >= HALF * len(visits)
    levels = np.linspace(0, 1, QUANTILES)
    return np.quantile(total[shared] / count[shared], levels).astype(np.float32)


def gather_reference(
    visits: Sequence[Volumes], traits: Sequence[Traits] | None = None
) -> Reference:
    """Compute the reference of training images.

    The mean PET is computed at each voxel that is in the brain and covered by the PET in at least
    half of the visits, over these visits.

    Parameters
    ----------
    visits : sequence of Volumes
        Visits on one grid; at least one.
    traits : sequence of ndarray, (9,), optional
        Traits of each T1w, if they are known; see :func:`measure_traits`, which takes 2 s at 1 mm.
    """
    zooms = visits[0].owner.zooms
    looks = np.stack([measure_cubes(visit.t1w, zooms) for visit in visits])
    brains = [average_cubes(visit.brain, cube_sides(CUBE, zooms)) for visit in visits]
    brain: Mask = np.mean(brains, axis=0) >= HALF
    mean, spread = _summarize(looks)
    participants = [visit.owner.participant for visit in visits]
    if traits is None:
        traits = [measure_traits(np.asarray(visit.t1w), zooms) for visit in visits]
    table, novelties = _compare_all(traits, looks, participants, brain)
    known = [part.astype(np.float32) for part in _summarize(table)] if table.size else []
    return Reference(_mean_quantiles(visits), mean, spread, brain, novelties, *known)


def write_reference(reference: Reference, path: Path) -> None:
    """Write a reference atomically.

    Raises
    ------
    ReadWriteError
        If it cannot be written.
    UnusableDataError
        If it holds a number that is not finite; nothing is written then.
    """
    for array in asdict(reference).values():
        if not np.isfinite(array).all():
            raise UnusableDataError(
                f"{path.name}: a training image is not finite; leave out images that are not "
                "within 0..1"
            )
    write_bytes(path, save({k: np.ascontiguousarray(v) for k, v in asdict(reference).items()}))


def _refuse_odd(reference: Reference) -> None:
    looks = (reference.t1w_mean, reference.t1w_sd)
    shapes = {look.shape for look in looks} | {(2, *reference.brain.shape)}
    if reference.brain.dtype != bool or len(shapes) > 1 or looks[0].ndim != 4:
        raise ValueError("its parts do not match")
    if reference.pet_quantiles.shape != (QUANTILES,) or reference.novelties.ndim != 1:
        raise ValueError(f"it has {reference.pet_quantiles.shape} quantiles")
    traits = (reference.trait_mean, reference.trait_sd)
    if {trait.shape for trait in traits} not in ({(0,)}, {(len(TRAITS),)}):
        raise ValueError("its traits are not the known ones")
    for array in (*looks, *traits, reference.pet_quantiles, reference.novelties):
        if array.dtype.kind != "f" or not np.isfinite(array).all():
            raise ValueError("it contains a value that is not a finite number")


def read_reference(path: Path) -> Reference:
    """Read a reference.

    Raises
    ------
    ReadWriteError
        If the file cannot be read.
    UnusableDataError
        If it is not a reference.
    """
    return read_parts(path, Reference, _refuse_odd, "not a reference")
