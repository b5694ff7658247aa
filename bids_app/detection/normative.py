"""Detectors that do not learn: maps of how far a person is from controls, voxel by voxel.

``zscore`` compares PET smoothed within the brain; ``pseudonormal`` compares what a synthetic PET
has over the real one, ``asymmetry`` what one side has over the other. A norm is the mean and
deviation of controls, and their number.
"""

import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from bids_app.detection.evaluation import least_controls
from bids_app.errors import MissingInputError, UnusableDataError
from bids_app.files import write_bytes
from bids_app.imaging.intensity import smooth
from bids_app.imaging.volume import Affine, Mask, Volume, mirror, zooms_of
from bids_app.strict import parse_object, shapes_of

FEWEST = 2  # controls: below, nothing varies
LEAST_SD = 0.1  # of the median over the brain; our choice
# Of a smoothed voxel's weight, what may lie where nothing is known. Our choice, measured beside a
# plane through simulated PET, at 8 mm: up to 5 % (about 6 mm from it) z is off by 0.27 at most;
# with 10 to 20 % (4 mm) by up to 1.1, with more (2 mm) by up to 1.5.
REACH = 0.05
Number = TypeVar("Number", np.float32, np.uint16)


@dataclass(frozen=True)
class Norm:
    """What controls are like, voxel by voxel.

    Parameters
    ----------
    mean, sd : ndarray, (I, J, K)
        Mean and standard deviation (n - 1) over controls, float32, in the unit of their volumes.
        Where ``sd`` is 0 nothing is judged: outside the brain, and where controls are copies. NaN
        where too few controls are known.
    n : int
        Controls; 2 or more.
    counts : ndarray of uint16, (I, J, K), optional
        How many of them are known at each voxel; by default all everywhere.
    """

    mean: Volume
    sd: Volume
    n: int
    counts: NDArray[np.uint16] | None = None

    def excess(self, volume: Volume) -> Volume:
        """Give t of how much more a person has than controls.

        Crawford & Howell (1998), The Clinical Neuropsychologist 12:482-486:
        (x - mean) / (sd sqrt((n + 1) / n)). In one more control it has Student's t distribution
        with n - 1 degrees of freedom. A z score would call too many healthy people ill, as it
        takes the mean and sd of few controls for those of all.

        Parameters
        ----------
        volume : ndarray, (I, J, K)
            In the unit of the controls' volumes, and treated as they were; NaN where nothing is
            known.

        Returns
        -------
        ndarray, (I, J, K)
            float32; 0 where ``sd`` is 0, NaN where the volume or the norm is.

        Raises
        ------
        ValueError
            If shapes differ.
        """
        if volume.shape != self.mean.shape:
            raise ValueError(f"{volume.shape} voxels differ from the norm's {self.mean.shape}")
        judged = (self.sd > 0) | np.isnan(self.sd)
        score = np.zeros(volume.shape, np.float32)
        n = self.n if self.counts is None else self.counts[judged].astype(np.float64)
        wide = self.sd[judged] * np.sqrt((n + 1) / np.maximum(n, 1))
        score[judged] = (volume[judged].astype(np.float64) - self.mean[judged]) / wide
        return score

    def deficit(self, volume: Volume) -> Volume:
        """Give t of how much less a person has than controls: minus :meth:`excess`."""
        return 0 - self.excess(volume)  # no negative zeros


def learn_norm(volumes: Iterable[Volume], brain: Mask, *, least_sd: float = LEAST_SD) -> Norm:
    """Learn from controls, holding one volume at a time.

    Welford (1962), Technometrics 4:419-420. A control counts where it is known; a voxel that too
    few know (:func:`~bids_app.detection.evaluation.least_controls`) has no norm.

    Parameters
    ----------
    volumes : iterable of ndarray, (I, J, K)
        Two controls or more, on one grid, in one unit; NaN where nothing is known.
    brain : ndarray of bool, (I, J, K)
        Where a norm is wanted; mean and sd are 0 elsewhere.
    least_sd : float
        No voxel's sd is taken for less than this share of the median sd in the brain: a few
        controls agree by chance somewhere, and where all are clipped; a hair would be abnormal.

    Raises
    ------
    ValueError
        If there are fewer than two controls, the brain is empty, or shapes differ.
    """
    if not brain.any():
        raise ValueError("the brain of a norm is empty")
    n, counts = 0, np.zeros(int(brain.sum()), np.uint16)
    mean, squares = np.zeros(len(counts)), np.zeros(len(counts))
    for volume in volumes:
        if volume.shape != brain.shape:
            raise ValueError(f"{volume.shape} voxels differ from the brain's {brain.shape}")
        n += 1
        values = volume[brain]
        known = ~np.isnan(values)
        counts += known
        change = np.where(known, values - mean, 0)
        mean += change / np.maximum(counts, 1)
        squares += change * np.where(known, values - mean, 0)
    if n < FEWEST:
        raise ValueError(f"{n} control(s) are too few for a norm; {FEWEST} are needed")
    enough = counts >= least_controls(n)
    sd = np.sqrt(squares / np.maximum(counts.astype(np.int64) - 1, 1))
    middle = float(np.median(sd[enough])) if enough.any() else 0.0
    mean, sd = (
        np.where(enough, array, np.nan) for array in (mean, np.maximum(sd, least_sd * middle))
    )
    told = None if (counts == n).all() else _lay_out(counts, brain, np.uint16)
    return Norm(_lay_out(mean, brain, np.float32), _lay_out(sd, brain, np.float32), n, told)


def _lay_out(values: np.ndarray, brain: Mask, kind: type[Number]) -> NDArray[Number]:
    volume = np.zeros(brain.shape, kind)
    volume[brain] = values
    return volume


def smooth_within(
    volume: Volume,
    brain: Mask,
    *,
    fwhm: float,
    zooms: tuple[float, float, float],
    hole: Mask | None = None,
) -> Volume:
    """Smooth a volume with what the brain holds alone.

    Each voxel is the weighted mean of the brain's voxels around it: the smoothed volume, 0 outside
    the brain, over the smoothed mask. Without that, the cortex would darken as much as the brain
    around a voxel is missing, and people whose brains end a little earlier would seem ill. Our
    choice.

    Parameters
    ----------
    volume : ndarray, (I, J, K)
        Any unit; what is outside the brain does not count.
    brain : ndarray of bool, (I, J, K)
        Best the same for all people that are compared.
    fwhm : float
        Full width of the Gaussian at half of its maximum, in mm.
    zooms : tuple of float
        Voxel size in mm.
    hole : ndarray of bool, (I, J, K), optional
        What the volume lacks of the brain; nothing by default. It does not count either, and where
        more than ``REACH`` of the weight would lie in it, the mean is not known.

    Returns
    -------
    ndarray, (I, J, K)
        float32; 0 outside the brain, NaN in a hole and within its reach.
    """
    known = brain if hole is None else brain & ~hole
    amount = smooth(np.where(known, volume, 0).astype(np.float32), fwhm, zooms)
    weight = smooth(known.astype(np.float32), fwhm, zooms)
    means = np.divide(amount, weight, out=np.zeros_like(amount), where=known)
    if hole is not None and (brain & hole).any():
        whole = smooth(brain.astype(np.float32), fwhm, zooms)
        means[brain & ((weight < (1 - REACH) * whole) | hole)] = np.nan
    return means


def pseudonormal_difference(synthetic: Volume, real: Volume) -> Volume:
    """Give what a person's synthetic PET, normal by its making, has over the real one.

    :meth:`Norm.excess` of it, against that of controls, is the ``pseudonormal`` score map: above 0
    where the real PET is further below the synthetic one than in controls.

    Parameters
    ----------
    synthetic, real : ndarray, (I, J, K)
        Scaled to 0..1.

    Returns
    -------
    ndarray, (I, J, K)
        float32, -1 to 1.
    """
    return synthetic.astype(np.float32) - real.astype(np.float32)


ZSCORE_FWHM = 8.0  # mm; DESIGN, section 4


def measure_uptake(
    pet: Volume, brain: Mask, *, fwhm: float, affine: Affine, hole: Mask | None = None
) -> Volume:
    """Give what ``zscore`` compares: PET smoothed within the brain, (I, J, K); NaN near a hole."""
    return smooth_within(pet, brain, fwhm=fwhm, zooms=zooms_of(affine), hole=hole)


def measure_difference(
    pet: Volume,
    synthetic: Volume,
    brain: Mask,
    *,
    fwhm: float,
    affine: Affine,
    hole: Mask | None = None,
) -> Volume:
    """Give what ``pseudonormal`` compares: synthetic minus real PET, smoothed, (I, J, K).

    Smoothed as for ``zscore``, our choice: else the noise of the scan would drown the rest.
    """
    difference = pseudonormal_difference(synthetic, pet)
    return smooth_within(difference, brain, fwhm=fwhm, zooms=zooms_of(affine), hole=hole)


def measure_asymmetry(
    pet: Volume, brain: Mask, *, fwhm: float, affine: Affine, hole: Mask | None = None
) -> Volume:
    """Give what ``asymmetry`` compares: how much more uptake is here than on the other side.

    (here - there) / mean of both, of PET smoothed within the brain, (I, J, K), -2 to 2: the
    asymmetry index of the field, without its 100 %. The template has to be symmetric. NaN where the
    other side is no brain, near a hole, and on the other side of one.
    """
    here = smooth_within(pet, brain, fwhm=fwhm, zooms=zooms_of(affine), hole=hole)
    there = mirror(np.where(brain, here, np.nan), affine)
    both = here + there
    asymmetry = np.divide(2 * (here - there), both, out=np.zeros_like(here), where=both != 0)
    return np.where(brain, asymmetry, 0).astype(np.float32)


# Detector → what it compares, of a PET and its synthetic one if it needs that; its score
MEASURES: dict[str, Callable[..., Volume]] = {
    "zscore": measure_uptake,
    "pseudonormal": measure_difference,
    "asymmetry": measure_asymmetry,
}
SCORES: dict[str, Callable[[Norm, Volume], Volume]] = {
    "zscore": Norm.deficit,
    "pseudonormal": Norm.excess,
    "asymmetry": Norm.deficit,
}


def save_norm(path: Path, norm: Norm) -> None:
    """Write a norm.

    Raises
    ------
    ReadWriteError
        If it cannot be written.
    UnusableDataError
        If it holds a number that is not finite: nothing is written.
    """
    try:
        _refuse_infinite(norm)
    except ValueError as error:
        raise UnusableDataError(
            f"{path.name}: {error}; look for controls whose PET is not finite, and leave them out"
        ) from error
    volumes = {"mean": norm.mean, "sd": norm.sd, "counts": norm.counts}
    arrays = {
        k: np.ascontiguousarray(volume) for k, volume in volumes.items() if volume is not None
    }
    write_bytes(path, save(arrays, metadata={"norm": json.dumps({"controls": norm.n})}))


def _refuse_infinite(norm: Norm) -> None:
    """Refuse what is no number, but for NaN where not all controls are known."""
    numbers = np.isfinite(norm.mean) & np.isfinite(norm.sd) & (norm.sd >= 0)
    unknown = np.isnan(norm.sd) & (False if norm.counts is None else norm.counts < norm.n)
    if not (numbers | unknown).all():
        raise ValueError("mean or SD of controls is not finite")


def load_norm(path: Path) -> Norm:
    """Read a norm.

    Raises
    ------
    MissingInputError
        If there is no such file.
    UnusableDataError
        If it holds no norm.
    """
    if not path.is_file():
        raise MissingInputError(f"{path}: no such file; fit the detector again")
    try:
        shapes_of(path)
        with safe_open(path, framework="numpy") as file:
            n = parse_object(file.metadata()["norm"])["controls"]
            mean, sd = (file.get_tensor(name) for name in ("mean", "sd"))
            counts = file.get_tensor("counts") if "counts" in file.keys() else None  # noqa: SIM118 - it is no mapping
        shapes = {array.shape for array in (mean, sd, counts) if array is not None}
        if not isinstance(n, int) or n < 2 or len(shapes) > 1 or mean.ndim != 3:
            raise ValueError(f"it tells of {n} controls, and of volumes of {shapes}")
        norm = Norm(mean, sd, n, counts)
        _refuse_infinite(norm)
        return norm
    except (OSError, SafetensorError, KeyError, TypeError, ValueError) as error:
        raise UnusableDataError(
            f"{path}: not the norm of a detector ({error}); fit the detector again"
        ) from error
