"""What the training images of a generator look like: a small file beside its weights.

From it come the quantiles that a synthetic PET can be matched to, and how unlike the training T1w
another T1w is. Neither is in Zotova et al. (2021). No torch here.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load, save

from bids_app.errors import ReadWriteError, UnusableDataError
from bids_app.files import write_bytes
from bids_app.imaging.volume import Mask, Volume, average_cubes, cube_sides
from bids_app.strict import shapes_of

if TYPE_CHECKING:
    from bids_app.synthesis.pairs import Volumes

QUANTILES = 1001  # of the mean PET; our choice
CUBE = 8.0  # mm; our choice: gyri of two brains do not meet, so less would count them as unlike
LEAST_SD = 0.02  # of intensities in [0, 1]; our choice: few images may agree by chance
HALF = 0.5  # of the training images: so many have brain where a mean is taken
Looks = NDArray[np.float32]


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
    """

    pet_quantiles: NDArray[np.float32]
    t1w_mean: Looks
    t1w_sd: Looks
    brain: Mask
    novelties: NDArray[np.float32]


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


def novelty(t1w: Volume, zooms: tuple[float, float, float], reference: Reference) -> float:
    """Tell how unlike the training T1w a T1w is.

    The root mean square, over the cubes of the brain, of its distance from the mean of the
    training T1w in units of their standard deviation, taken to be 0.02 at least. Where that is
    known well, about 1 for a T1w like theirs; it grows with another contrast, another place,
    or another sharpness. Small lesions do not change it. With few training controls, each of
    them is compared with fewer still, so that their own numbers come out too high.

    Parameters
    ----------
    t1w : ndarray, (I, J, K)
        Intensities in [0, 1], 0 outside the brain, on the generator's grid.
    zooms : tuple of float
        Voxel size in mm along each axis.
    reference : Reference
        Of the generator.

    Raises
    ------
    ValueError
        If the T1w lies on another grid.
    """
    look = look_at(t1w, zooms)
    if look.shape != reference.t1w_mean.shape:
        raise ValueError(f"{look.shape[1:]} cubes, not {reference.t1w_mean.shape[1:]}")
    return _distance(look, reference.t1w_mean, reference.t1w_sd, reference.brain)


def describe_novelty(value: float, reference: Reference) -> dict[str, object]:
    """Put the novelty of a T1w beside those of the training T1w, as a sidecar tells it."""
    others = reference.novelties
    known = bool(others.size)
    return {
        "Description": "How unlike the T1w of the generator's training controls this T1w is: root "
        f"mean square, over cubes of {CUBE:g} mm in the brain, of the difference of mean and "
        "spread from theirs, in units of their standard deviation",
        "Value": round(value, 3),
        "TrainingControls": len(others),
        "TrainingControlsLowest": round(float(others.min()), 3) if known else None,
        "TrainingControlsHighest": round(float(others.max()), 3) if known else None,
        "BeyondTrainingControls": known and value > float(others.max()),
    }


def _novelties(looks: Looks, participants: Sequence[str], brain: Mask) -> NDArray[np.float32]:
    """Compare each image with those of all other participants."""
    owners = np.array(participants)
    if len(set(participants)) < 2:
        return np.zeros(0, np.float32)
    values = [
        _distance(look, *_summarize(looks[owners != owner]), brain)
        for look, owner in zip(looks, owners, strict=True)
    ]
    return np.array(values, np.float32)


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
    return Reference(
        _mean_quantiles(visits), mean, spread, brain, _novelties(looks, participants, brain)
    )


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
    for array in (*looks, reference.pet_quantiles, reference.novelties):
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
    try:
        shapes_of(path)
        reference = Reference(**load(path.read_bytes()))
        _refuse_odd(reference)
        return reference
    except OSError as error:
        raise ReadWriteError(f"{path}: cannot be read ({error.strerror})") from error
    except (SafetensorError, TypeError, ValueError) as error:
        raise UnusableDataError(f"{path}: tells no reference ({error}); fetch it again") from error
