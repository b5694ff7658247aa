"""Normative detectors: maps of a person's deviation from controls at each voxel.

``zscore`` compares PET smoothed within the brain; ``pseudonormal`` compares the difference between
synthetic and real PET, and ``asymmetry`` the difference between the two sides; ``combined`` is the
mean of ``zscore`` and ``asymmetry``. A norm consists of the mean and deviation of controls, and
their number.
"""

import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from bids_app.detection.covariates import FEWEST_BESIDE, adjust, fit_slopes, leverage_of
from bids_app.detection.evaluation import least_controls
from bids_app.errors import MissingInputError, UnusableDataError
from bids_app.files import write_bytes
from bids_app.imaging.intensity import smooth
from bids_app.imaging.volume import Affine, Mask, Volume, mirror, zooms_of
from bids_app.strict import parse_object, shapes_of

FEWEST = 2  # controls; fewer have no deviation
AXES = 3
LEAST_SD = 0.1  # share of the median over the brain; our choice
# Share of a smoothed voxel's weight that may be missing. Our choice, measured beside a plane that
# cuts simulated PET, at 8 mm: with up to 5 % (about 6 mm from the plane), z is off by 0.27 at most;
# with 10 to 20 % (4 mm) by up to 1.1, and with more (2 mm) by up to 1.5.
REACH = 0.05
Number = TypeVar("Number", np.float32, np.uint16)


@dataclass(frozen=True)
class Norm:
    """Norm of controls at each voxel.

    Parameters
    ----------
    mean, sd : ndarray, (I, J, K)
        Mean and standard deviation (n - 1) over controls, float32, in the unit of their volumes.
        Voxels where ``sd`` is 0 are not scored: outside the brain, and if controls are copies. NaN
        where too few controls have a value.
    n : int
        Number of controls; 2 or more.
    counts : ndarray of uint16, (I, J, K), optional
        Number of controls with a value at each voxel; by default all, everywhere.
    slopes : ndarray, (numbers, I, J, K), optional
        Change with covariates, float32, if volumes are adjusted for them first; see
        :mod:`bids_app.detection.covariates`.
    rows : ndarray, (n, numbers), optional
        Covariates of the controls.
    """

    mean: Volume
    sd: Volume
    n: int
    counts: NDArray[np.uint16] | None = None
    slopes: NDArray[np.float32] | None = None
    rows: NDArray[np.float64] | None = None

    def excess(self, volume: Volume, row: Sequence[float] = ()) -> Volume:
        """Return t for how much higher a person's values are than those of controls.

        See Crawford & Howell (1998), The Clinical Neuropsychologist 12:482-486:
        (x - mean) / (sd sqrt((n + 1) / n)). For one more control, it follows Student's t
        distribution with n - 1 degrees of freedom. A z score would classify too many healthy
        people as abnormal, because it takes the mean and sd of a few controls for those of the
        population.

        Parameters
        ----------
        volume : ndarray, (I, J, K)
            Volume in the unit of the controls' volumes, processed in the same way; NaN where
            unknown.
        row : sequence of float
            Covariates of the person, if the norm has any. Their distance from those of controls
            widens the prediction interval, as in any regression.

        Returns
        -------
        ndarray, (I, J, K)
            float32; 0 where ``sd`` is 0, NaN where the volume or the norm is NaN.

        Raises
        ------
        ValueError
            If shapes differ.
        """
        if volume.shape != self.mean.shape:
            raise ValueError(f"{volume.shape} voxels differ from the norm's {self.mean.shape}")
        leverage = 0.0
        if self.slopes is not None and self.rows is not None:
            volume, leverage = adjust(volume, row, self.slopes), leverage_of(row, self.rows)
        judged = (self.sd > 0) | np.isnan(self.sd)
        score = np.zeros(volume.shape, np.float32)
        n = self.n if self.counts is None else self.counts[judged].astype(np.float64)
        wide = self.sd[judged] * np.sqrt((n + 1) / np.maximum(n, 1) + leverage)
        score[judged] = (volume[judged].astype(np.float64) - self.mean[judged]) / wide
        return score

    def deficit(self, volume: Volume, row: Sequence[float] = ()) -> Volume:
        """Return t for how much lower a person's values are than those of controls.

        This is minus :meth:`excess`.
        """
        return 0 - self.excess(volume, row)  # avoids negative zeros


def fit_norm(volumes: Iterable[Volume], brain: Mask, *, least_sd: float = LEAST_SD) -> Norm:
    """Compute a norm from controls, with one volume in memory at a time.

    See Welford (1962), Technometrics 4:419-420. Each control counts where it has a value; a voxel
    where too few do (:func:`~bids_app.detection.evaluation.least_controls`) has no norm.

    Parameters
    ----------
    volumes : iterable of ndarray, (I, J, K)
        Volumes of two or more controls, on one grid, in one unit; NaN where unknown.
    brain : ndarray of bool, (I, J, K)
        Mask of the voxels to compute a norm for; mean and sd are 0 elsewhere.
    least_sd : float
        Lower limit of the sd of each voxel, as a share of the median sd in the brain. A few
        controls may agree at a voxel by chance, or because all are clipped there; without a
        limit, the slightest difference would be abnormal.

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
    median = float(np.median(sd[enough])) if enough.any() else 0.0
    mean = np.where(enough, mean, np.nan)
    sd = np.where(enough, np.maximum(sd, least_sd * median), np.nan)
    partial_counts = None if (counts == n).all() else _to_volume(counts, brain, np.uint16)
    return Norm(
        _to_volume(mean, brain, np.float32), _to_volume(sd, brain, np.float32), n, partial_counts
    )


def fit_adjusted_norm(
    volumes: Callable[[], Iterable[Volume]],
    brain: Mask,
    rows: NDArray[np.float64],
    *,
    least_sd: float = LEAST_SD,
) -> Norm:
    """Compute a norm from controls after adjusting their volumes for covariates.

    The deviation is that around the regression, each slope of which costs a degree of freedom.

    Parameters
    ----------
    volumes : callable
        Function that returns the controls' volumes anew each time; see :func:`fit_norm`.
    brain : ndarray of bool, (I, J, K)
        Mask of the voxels to compute a norm for.
    rows : ndarray, (controls, numbers)
        Covariates of the controls.
    least_sd : float
        See :func:`fit_norm`.

    Raises
    ------
    ValueError
        See :func:`fit_norm`; also if there are fewer than three controls beyond the number of
        slopes.
    """
    n, size = rows.shape
    if n < size + FEWEST_BESIDE:
        raise ValueError(f"{n} controls are too few to adjust for {size} number(s) of covariates")
    slopes = np.zeros((size, *brain.shape), np.float32)
    slopes[:, brain] = fit_slopes((volume[brain] for volume in volumes()), rows)
    adjusted = (adjust(volume, row, slopes) for volume, row in zip(volumes(), rows, strict=True))
    norm = fit_norm(adjusted, brain, least_sd=least_sd)
    counts = np.float32(n) if norm.counts is None else norm.counts.astype(np.float32)
    degrees = np.where(counts - 1 - size >= 1, counts - 1 - size, np.nan)
    sd = np.where(brain, np.sqrt((counts - 1) / degrees) * norm.sd, 0).astype(np.float32)
    return replace(norm, sd=sd, slopes=slopes, rows=rows)


def _to_volume(values: np.ndarray, brain: Mask, kind: type[Number]) -> NDArray[Number]:
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
    """Smooth a volume using only voxels within the brain.

    Each voxel becomes the weighted mean of the brain voxels around it: the smoothed volume, with 0
    outside the brain, divided by the smoothed mask. Without this, the cortex would darken in
    proportion to the missing surroundings, and people whose brains end a little earlier would seem
    abnormal. Our choice.

    Parameters
    ----------
    volume : ndarray, (I, J, K)
        Volume in any unit; values outside the brain are ignored.
    brain : ndarray of bool, (I, J, K)
        Brain mask of the person; where it differs from that of others, it is better to have no
        value than to count what is outside as 0.
    fwhm : float
        Full width at half maximum of the Gaussian, in mm.
    zooms : tuple of float
        Voxel size in mm.
    hole : ndarray of bool, (I, J, K), optional
        Brain voxels that the volume does not cover; none by default. They are ignored as well, and
        if more than ``REACH`` of a voxel's weight would lie in them, its mean is unknown.

    Returns
    -------
    ndarray, (I, J, K)
        float32; 0 outside the brain, NaN in a hole and close to it.
    """
    known = brain if hole is None else brain & ~hole
    amount = smooth(np.where(known, volume, 0).astype(np.float32), fwhm, zooms)
    weight = smooth(known.astype(np.float32), fwhm, zooms)
    means = np.divide(amount, weight, out=np.zeros_like(amount), where=known)
    if hole is not None and (brain & hole).any():
        whole = smooth(brain.astype(np.float32), fwhm, zooms)
        means[brain & ((weight < (1 - REACH) * whole) | hole)] = np.nan
    return means


ZSCORE_FWHM = 8.0  # mm; our choice


def measure_uptake(
    pet: Volume, brain: Mask, *, fwhm: float, affine: Affine, hole: Mask | None = None
) -> Volume:
    """Compute the measure of ``zscore``: PET smoothed in the brain, (I, J, K); NaN near a hole."""
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
    """Compute the measure of ``pseudonormal``: smoothed synthetic minus real PET.

    The result is (I, J, K), -1 to 1. It is above that of controls where the real PET is further
    below the synthetic one. It is smoothed as for ``zscore``, our choice: otherwise the noise of
    the scan would dominate.
    """
    difference = synthetic.astype(np.float32) - pet.astype(np.float32)
    return smooth_within(difference, brain, fwhm=fwhm, zooms=zooms_of(affine), hole=hole)


def measure_asymmetry(
    pet: Volume, brain: Mask, *, fwhm: float, affine: Affine, hole: Mask | None = None
) -> Volume:
    """Compute the measure of ``asymmetry``: how much higher uptake is than on the other side.

    It is (this side - other side) / mean of both, of PET smoothed within the brain, (I, J, K), -2
    to 2: the usual asymmetry index, without the factor of 100 %. The template must be symmetric.
    Values are NaN where the other side is not brain, near a hole, and opposite one.
    """
    this_side = smooth_within(pet, brain, fwhm=fwhm, zooms=zooms_of(affine), hole=hole)
    other_side = mirror(np.where(brain, this_side, np.nan), affine)
    total = this_side + other_side
    asymmetry = np.divide(
        2 * (this_side - other_side), total, out=np.zeros_like(this_side), where=total != 0
    )
    return np.where(brain, asymmetry, 0).astype(np.float32)


# Detector → functions that compute its measures from a PET, and the synthetic one if needed
MEASURES: dict[str, tuple[Callable[..., Volume], ...]] = {
    "zscore": (measure_uptake,),
    "pseudonormal": (measure_difference,),
    "asymmetry": (measure_asymmetry,),
    "combined": (measure_uptake, measure_asymmetry),
}
INVERTED = ("pseudonormal",)  # detectors whose measure is higher where uptake is lower


def score_against(
    norms: Sequence[Norm],
    volumes: Sequence[Volume],
    detector: str,
    direction: str,
    row: Sequence[float] = (),
) -> Volume:
    """Compute the score map of a person: the mean over a detector's measures.

    Parameters
    ----------
    norms : sequence of Norm
        Norm of controls for each measure.
    volumes : sequence of ndarray, (I, J, K)
        Measures of the person, in the same order.
    detector : str
        A key of ``MEASURES``.
    direction : {"hypo", "hyper", "both"}
        Whether less uptake, more uptake, or both score higher.
    row : sequence of float
        Covariates of the person, if the norms have any.

    Returns
    -------
    ndarray, (I, J, K)
        float32, t; 0 where there is no norm, NaN where the first measure is unknown. Other measures
        count as 0 where they are unknown: there, ``combined`` is half of the z score.
    """
    deficits = [norm.deficit(volume, row) for norm, volume in zip(norms, volumes, strict=True)]
    deficits[1:] = map(np.nan_to_num, deficits[1:])
    less: Volume = np.mean(np.stack(deficits), axis=0)
    less = 0 - less if detector in INVERTED else less
    # 0 - less avoids negative zeros.
    return {"hypo": less, "hyper": 0 - less, "both": np.abs(less)}[direction]


_KINDS = ("mean", "sd", "counts", "slopes", "rows")


def save_norms(path: Path, norms: Sequence[Norm]) -> None:
    """Write the norms of a detector, one per measure.

    Raises
    ------
    ReadWriteError
        If the file cannot be written.
    UnusableDataError
        If a norm contains a number that is not finite; nothing is written.
    """
    arrays: dict[str, np.ndarray] = {}
    for place, norm in enumerate(norms):
        try:
            _refuse_infinite(norm)
        except ValueError as error:
            raise UnusableDataError(
                f"{path.name}: {error}; look for controls whose PET is not finite, and leave them "
                "out"
            ) from error
        arrays |= {
            _name_of(kind, place): np.ascontiguousarray(array)
            for kind in _KINDS
            if (array := getattr(norm, kind)) is not None
        }
    metadata = {"norm": json.dumps({"controls": [norm.n for norm in norms]})}
    write_bytes(path, save(arrays, metadata=metadata))


def _name_of(kind: str, place: int) -> str:
    return f"{kind}_{place}"


def _refuse_infinite(norm: Norm) -> None:
    """Check that a norm is finite, except for NaN where some controls have no value."""
    numbers = np.isfinite(norm.mean) & np.isfinite(norm.sd) & (norm.sd >= 0)
    unknown = np.isnan(norm.sd) & (False if norm.counts is None else norm.counts < norm.n)
    if not (numbers | unknown).all():
        raise ValueError("mean or SD of controls is not finite")


def load_norms(path: Path) -> list[Norm]:
    """Read the norms of a detector.

    Raises
    ------
    MissingInputError
        If the file does not exist.
    UnusableDataError
        If the file does not contain norms.
    """
    if not path.is_file():
        raise MissingInputError(f"{path}: no such file; fit the detector again")
    try:
        shapes_of(path)
        with safe_open(path, framework="numpy") as file:
            numbers = parse_object(file.metadata()["norm"])["controls"]
            names = set(file.keys())
            norms = [
                Norm(
                    n=n,
                    **{
                        kind: file.get_tensor(name)
                        for kind in _KINDS
                        if (name := _name_of(kind, place)) in names
                    },
                )
                for place, n in enumerate(numbers)
            ]
        if not norms:
            raise ValueError("it describes no controls")
        for norm in norms:
            _refuse_odd(norm, norms[0].mean.shape)
        return norms
    except (OSError, SafetensorError, KeyError, TypeError, ValueError) as error:
        raise UnusableDataError(
            f"{path}: not the norm of a detector ({error}); fit the detector again"
        ) from error


def _refuse_odd(norm: Norm, shape: tuple[int, ...]) -> None:
    slopes, rows = norm.slopes, norm.rows
    if (slopes is None) != (rows is None):
        raise ValueError("it contains only one of slopes and covariates")
    if slopes is not None and rows is not None:
        if rows.shape != (norm.n, len(slopes)) or not np.isfinite(rows).all():
            raise ValueError(
                f"its covariates, {rows.shape} for {norm.n} controls, do not fit or are not finite"
            )
        if slopes.shape[1:] != shape or not np.isfinite(slopes).all():
            raise ValueError("its slopes are not finite, or on another grid")
    arrays = [array for array in (norm.mean, norm.sd, norm.counts) if array is not None]
    shapes = {array.shape for array in arrays} | {shape}
    if not isinstance(norm.n, int) or norm.n < FEWEST or len(shapes) > 1 or len(shape) != AXES:
        raise ValueError(f"it describes {norm.n} controls, and volumes of {shapes}")
    _refuse_infinite(norm)
