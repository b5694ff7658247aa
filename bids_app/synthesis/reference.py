"""What the training images of a generator look like: a small file beside its weights.

From it come the quantiles that a synthetic PET can be matched to, and how unlike the training T1w
another T1w is. Neither is in Zotova et al. (2021). No torch here.
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
CUBE = 8.0  # mm; our choice: gyri of two brains do not meet, so less would count them as unlike
LEAST_SD = 0.02  # of intensities in [0, 1]; our choice: few images may agree by chance
HALF = 0.5  # of the training images: so many have brain where a mean is taken
Looks = NDArray[np.float32]
Traits = NDArray[np.floating]
Table = NDArray[np.floating]
TRAITS = {
    "sharpness": ("blurred", "sharper, or noisy"),
    "noise": ("smoother in white matter", "noisier in white matter"),
    "fluid": ("less fluid", "more fluid, as in atrophy"),
    "ventricles": ("less fluid in the middle", "larger ventricles"),
    "white": ("vessels or others outshine tissue, as with a contrast agent", "white too bright"),
    "grey": ("grey matter too dark", "grey matter too bright"),
    "bright": ("no bright voxels", "bright voxels, as of a contrast agent"),
    "rough_x": ("smoother from left to right", "stripes or ghosts from left to right"),
    "rough_z": ("smoother from foot to head", "stripes or ghosts from foot to head"),
    "pattern": ("another contrast or another place", "closer to the average than any of them"),
    "places": ("closer to the average than any of them", "different in many places"),
}  # what is looked at, and what too little and too much of it mean
SLOPES = (1.0, 3.0)  # mm, sigma; our choice
GRAIN = 3.0  # mm; what is finer is noise in pure white matter; our choice
DEEP = 60.0  # mm; our choice: what has brain all around at this width is the middle
INNER = 0.9  # of a neighbourhood is brain, or white matter; our choice
BRIGHT = 1.25  # of the mean of white matter; our choice
DARK = (0.1, 0.5, 0.9)  # quantiles that stand for tissues where there are not three
FEWEST_PURE = 50  # voxels; our choice
LITTLE = 1e-4  # is added before logarithms are taken; our choice
SOME = 0.01  # of voxels may be bright and count little; our choice
LEAST_TRAIT = 0.03  # of a logarithm; our choice: few images may agree by chance


@dataclass(frozen=True)
class Reference:
    """What is kept of some training images.

    Parameters
    ----------
    pet_quantiles : ndarray, (1001,)
        Of the mean PET, in the brain, from its least to its greatest intensity, in [0, 1].
    t1w_mean, t1w_sd : ndarray, (2, I', J', K')
        Mean and standard deviation over T1w of what :func:`look_at` sees of each.
    brain : ndarray of bool, (I', J', K')
        Cubes that count.
    novelties : ndarray, (N,)
        The :func:`novelty` of each training T1w among those of the other participants.
    trait_mean, trait_sd : ndarray, (11,)
        Mean and standard deviation over T1w of ``TRAITS``, each told among the other participants;
        empty in files before 0.2, and where there is one participant.
    """

    pet_quantiles: NDArray[np.float32]
    t1w_mean: Looks
    t1w_sd: Looks
    brain: Mask
    novelties: NDArray[np.float32]
    trait_mean: Traits = field(default_factory=lambda: np.zeros(0, np.float32))
    trait_sd: Traits = field(default_factory=lambda: np.zeros(0, np.float32))


def look_at(t1w: Volume, zooms: tuple[float, float, float]) -> Looks:
    """See a T1w coarsely: its mean and its spread within each cube of 8 mm.

    The mean tells contrast and place; the spread, the standard deviation over the cube's voxels,
    tells how sharp the image is.

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
    """Give mean and standard deviation over images; one image alone has no deviation."""
    spread = looks.std(axis=0, ddof=1) if len(looks) > 1 else np.zeros_like(looks[0])
    return looks.mean(axis=0), spread


def _distance(look: Looks, mean: Looks, spread: Looks, brain: Mask) -> float:
    scores = (look - mean) / np.maximum(spread, LEAST_SD)
    return float(np.sqrt(np.mean(scores[:, brain] ** 2)))


def measure_traits(t1w: Volume, zooms: tuple[float, float, float]) -> NDArray[np.float64]:
    """Measure what a T1w is like as a whole, as ``TRAITS`` name it, but for the last two.

    Parameters
    ----------
    t1w : ndarray, (I, J, K)
        Intensities in [0, 1], 0 outside the brain, which is not empty.
    zooms : tuple of float
        Voxel size in mm along each axis.

    Returns
    -------
    ndarray, (9,)
        Logarithms of: slopes seen finely over slopes seen coarsely; the spread of what is finer
        than 3 mm in pure white matter, over the range of tissue; the share of fluid in the brain
        and in the middle of it; how bright white matter is; where grey matter lies between fluid
        and white matter, no logarithm; the share of voxels far brighter than white matter; how
        rough the image is along the first and along the third axis, against the second.
    """
    brain = t1w > 0
    values = t1w[brain]
    try:
        fluid, grey, white = find_tissue_means(t1w)
        shares = shares_between(t1w, fluid, grey, white)
    except ValueError:  # no three tissues: a trait in itself
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
    """Add how its cubes go with those of others, and how far they are from them."""
    mean, spread = others
    likeness = correlation(look[0], mean[0], brain)
    distance = _distance(look, mean, spread, brain)
    return np.append(traits, [np.arctanh(0.999 * likeness), np.log(distance + LITTLE)])


def _scores(traits: Traits, mean: Traits, spread: Traits) -> Traits:
    return (traits - mean) / np.maximum(spread, LEAST_TRAIT)


def novelty(
    t1w: Volume, zooms: tuple[float, float, float], reference: Reference
) -> tuple[float, dict[str, float]]:
    """Tell how unlike the training T1w a T1w is.

    It is the largest distance of a trait from the mean of the training T1w, in units of their
    standard deviation. The traits are those of :func:`measure_traits`, the correlation with the
    mean training T1w over cubes of 8 mm, and the root mean square, over these, of the distance
    from it in units of their standard deviation, taken to be 0.02 at least. Of references before
    0.2, which know no traits, it is that root mean square itself. Small lesions do not change it.

    Parameters
    ----------
    t1w : ndarray, (I, J, K)
        Intensities in [0, 1], 0 outside the brain, on the generator's grid.
    zooms : tuple of float
        Voxel size in mm along each axis.
    reference : Reference
        Of the generator.

    Returns
    -------
    float
        The novelty; compare it with those of the training controls.
    dict
        Trait → its distance, with its sign; empty where the reference knows none.

    Raises
    ------
    ValueError
        If the T1w lies on another grid, or is 0.
    """
    look = look_at(t1w, zooms)
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
    """Put the novelty of a T1w beside those of the training T1w, as a sidecar tells it."""
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
            "the largest distance of a trait of the image from their mean, in units of their "
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
    """Give all traits of each image, and its novelty, among those of all other participants."""
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


def gather_reference(visits: Sequence[Volumes]) -> Reference:
    """Gather the reference from training images.

    The mean PET is taken, at each voxel, over those whose brain has it and whose PET covers it,
    where that is at least half of them.

    Parameters
    ----------
    visits : sequence of Volumes
        All on one grid; one at least.
    """
    zooms = visits[0].owner.zooms
    looks = np.stack([look_at(visit.t1w, zooms) for visit in visits])
    brains = [average_cubes(visit.brain, cube_sides(CUBE, zooms)) for visit in visits]
    brain: Mask = np.mean(brains, axis=0) >= HALF
    mean, spread = _summarize(looks)
    participants = [visit.owner.participant for visit in visits]
    traits = [measure_traits(np.asarray(visit.t1w), zooms) for visit in visits]
    table, novelties = _compare_all(traits, looks, participants, brain)
    known = [part.astype(np.float32) for part in _summarize(table)] if table.size else []
    return Reference(_mean_quantiles(visits), mean, spread, brain, novelties, *known)


def write_reference(reference: Reference, path: Path) -> None:
    """Write a reference, whole or not at all.

    Raises
    ------
    ReadWriteError
        If it cannot be written.
    UnusableDataError
        If it holds a number that is not finite: nothing is written.
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
        raise ValueError("its parts do not belong together")
    if reference.pet_quantiles.shape != (QUANTILES,) or reference.novelties.ndim != 1:
        raise ValueError(f"it has {reference.pet_quantiles.shape} quantiles")
    traits = (reference.trait_mean, reference.trait_sd)
    if {trait.shape for trait in traits} not in ({(0,)}, {(len(TRAITS),)}):
        raise ValueError("its traits are not those that are known")
    for array in (*looks, *traits, reference.pet_quantiles, reference.novelties):
        if array.dtype.kind != "f" or not np.isfinite(array).all():
            raise ValueError("it holds what is not a finite number")


def read_reference(path: Path) -> Reference:
    """Read a reference.

    Raises
    ------
    ReadWriteError
        If it cannot be read.
    UnusableDataError
        If it is none.
    """
    return read_parts(path, Reference, _refuse_odd, "tells no reference")
