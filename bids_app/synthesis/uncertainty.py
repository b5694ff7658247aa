"""Uncertainty of a synthetic PET: the standard deviation of its error at each voxel.

Ours, not from Zotova et al. (2021). The error model is fitted to the errors of a generator on
held-out controls, and stored beside its weights. At each position ``x`` of the template,

    SD(x) = m · place(x) · f(x)ᵀ W f(x),

where ``m`` is the mean of the synthetic PET in the brain, ``f`` are features of the PET and the T1w
around ``x``, ``W`` holds the weights of their products, and ``place`` is the ratio of the controls'
errors there to those predicted from the features. This module does not import torch.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import save
from scipy import ndimage

from bids_app.errors import UnusableDataError
from bids_app.files import write_bytes
from bids_app.imaging.intensity import SIGMA_OF_FWHM, smooth
from bids_app.imaging.similarity import correlation
from bids_app.imaging.tissues import tissue_shares
from bids_app.imaging.volume import Mask, Volume, count_cubes, cube_sides, spread_cubes
from bids_app.synthesis.card import read_parts

if TYPE_CHECKING:
    from bids_app.synthesis.pairs import Volumes

INTERVALS = (50, 80, 95)  # nominal coverage of the central intervals, in %
FEATURES = 13
FEWEST = 4  # controls; our choice: of three, two predict next to nothing about the third
AROUND = (4.0, 8.0, 16.0)  # mm, FWHM; neighbourhoods of a voxel; our choice
FINE = 2.0  # mm, sigma of the derivatives; our choice
RIDGE = 1e-4  # of the mean square of a product of features; our choice
CUBE = 4.0  # mm; edge of the cubes of ``place``; our choice
KERNEL_FWHM = 12.0  # mm; neighbourhood that a cube is fitted to; our choice
PULL = 3.0  # weight of the prior that ``place`` is 1, in controls; our choice
LEAST = 0.2  # lower bound of the SD, relative to its mean in the brain; our choice
APART = 3.0  # mm between the voxels whose errors are sampled; our choice
UPPER = np.triu_indices(FEATURES)
Table = NDArray[np.floating]


@dataclass(frozen=True)
class ErrorModel:
    """Model of a generator's errors.

    Parameters
    ----------
    weights : ndarray, (13, 13)
        Weights of the products of features, see :func:`describe_voxels`; 0 below the diagonal.
    places : ndarray, (I', J', K')
        Factor for each cube of 4 mm, about 1.
    factors : ndarray, (3,)
        Half-widths of the central intervals of 50, 80 and 95 %, in standard deviations.
    """

    weights: NDArray[np.floating]
    places: NDArray[np.floating]
    factors: NDArray[np.floating]


@dataclass(frozen=True)
class Errors:
    """Errors of one synthetic PET at voxels 3 mm apart, relative to its mean in the brain.

    Parameters
    ----------
    features : ndarray, (N, 13)
        Features returned by :func:`describe_voxels`.
    size, smoothed : ndarray, (N,)
        Magnitude of the error, and the same smoothed by 8 mm.
    cube : ndarray of int, (N,)
        Flat index, in C order, of the cube that contains the voxel.
    cubes : tuple of int
        Number of cubes along each axis.
    sigmas : tuple of float
        Standard deviations of the neighbourhood that a cube is fitted to, in cubes.
    """

    features: Table
    size: NDArray[np.float64]
    smoothed: NDArray[np.float64]
    cube: NDArray[np.intp]
    cubes: tuple[int, int, int]
    sigmas: tuple[float, ...]


def describe_voxels(
    pet: Volume, t1w: Volume, brain: Mask, chosen: Mask, zooms: tuple[float, float, float]
) -> NDArray[np.float32]:
    """Compute the features of voxels from which their error is predicted.

    Parameters
    ----------
    pet : ndarray, (I, J, K)
        Synthetic PET as written, in any unit, 0 outside the brain.
    t1w : ndarray, (I, J, K)
        Intensities in [0, 1], 0 outside the brain.
    brain, chosen : ndarray of bool, (I, J, K)
        Brain mask, and mask of the brain voxels to describe.
    zooms : tuple of float
        Voxel size in mm along each axis.

    Returns
    -------
    ndarray, (N, 13)
        1; the PET relative to its mean, its gradient magnitude and its second derivative; the share
        of voxels outside the brain within 8 mm; the shares of grey and white matter within 4, 8 and
        16 mm, and the PET within 8 and 16 mm.

    Raises
    ------
    ValueError
        If the T1w does not show three tissues, or the PET is 0.
    """
    mean = float(pet[brain].mean()) if brain.any() else 0.0
    if not mean > 0:
        raise ValueError("the synthetic PET is 0 in the brain")
    uptake = pet / np.float32(mean)
    sigmas = [FINE / zoom for zoom in zooms]
    features = [
        brain[chosen],
        uptake[chosen],
        ndimage.gaussian_gradient_magnitude(uptake, sigmas, mode="nearest")[chosen],
        ndimage.gaussian_laplace(uptake, sigmas, mode="nearest")[chosen],
    ]
    grey, white = tissue_shares(t1w)
    for fwhm in AROUND:
        inside = smooth(brain.astype(np.float32), fwhm, zooms)[chosen]
        near = [grey, white] if fwhm == AROUND[0] else [grey, white, uptake]
        features += [
            smooth(volume, fwhm, zooms)[chosen] / np.maximum(inside, 1e-3) for volume in near
        ]
        if fwhm == AROUND[1]:
            features.append(1 - inside)
    return np.stack(features, axis=1, dtype=np.float32)


def predict_sd(
    pet: Volume, t1w: Volume, brain: Mask, zooms: tuple[float, float, float], model: ErrorModel
) -> Volume:
    """Predict the standard deviation of the error of a synthetic PET.

    Parameters
    ----------
    pet, t1w, brain, zooms
        See :func:`describe_voxels`.
    model : ErrorModel
        Error model of the generator.

    Returns
    -------
    ndarray, (I, J, K)
        float32, in the unit of ``pet``, above 0 in the brain and 0 outside.

    Raises
    ------
    ValueError
        If the model belongs to another grid; see also :func:`describe_voxels`.
    """
    sides = cube_sides(CUBE, zooms)
    if count_cubes(pet.shape, sides) != model.places.shape:
        raise ValueError(f"{model.places.shape} cubes are not those of {pet.shape} voxels")
    features = describe_voxels(pet, t1w, brain, brain, zooms)
    level = ((features @ model.weights) * features).sum(axis=1)
    level *= spread_cubes(model.places, sides, pet.shape)[brain]
    deviation = np.zeros(pet.shape, np.float32)
    deviation[brain] = float(pet[brain].mean()) * np.maximum(level, LEAST * level.mean())
    return deviation


def sample_errors(visit: Volumes, synthetic: Volume) -> Errors:
    """Sample the errors of a synthetic PET where the real one covers the brain.

    Parameters
    ----------
    visit : Volumes
        T1w and real PET of a participant whom the generator was not trained on.
    synthetic : ndarray, (I, J, K)
        Synthetic PET as written, in the unit of the real one.

    Raises
    ------
    ValueError
        See :func:`describe_voxels`.
    """
    zooms, shape, brain = visit.owner.zooms, synthetic.shape, np.asarray(visit.brain)
    known = brain & visit.covered
    chosen = np.zeros(shape, bool)
    chosen[tuple(slice(None, None, max(round(APART / zoom), 1)) for zoom in zooms)] = True
    chosen &= known
    features = describe_voxels(synthetic, np.asarray(visit.t1w), brain, chosen, zooms)
    size = np.where(known, np.abs(synthetic - visit.pet), 0) / synthetic[brain].mean()
    share = smooth(known.astype(np.float32), AROUND[1], zooms)
    near = smooth(size, AROUND[1], zooms) / np.maximum(share, 1e-3)
    sides = cube_sides(CUBE, zooms)
    cubes = count_cubes(shape, sides)
    indices = [axis // side for axis, side in zip(np.nonzero(chosen), sides, strict=True)]
    return Errors(
        features.astype(np.float64),
        size[chosen].astype(np.float64),
        near[chosen].astype(np.float64),
        np.ravel_multi_index(indices, cubes),
        cubes,
        tuple(KERNEL_FWHM * SIGMA_OF_FWHM / s / z for s, z in zip(sides, zooms, strict=True)),
    )


def _multiply(features: Table) -> Table:
    """Return the products of all pairs of features, (N, 91)."""
    return features[:, UPPER[0]] * features[:, UPPER[1]]


def _fit(people: Sequence[Errors]) -> ErrorModel:
    """Fit mean absolute errors, first to products of features by least squares, then to places."""
    matrix, sums = np.zeros((len(UPPER[0]),) * 2), np.zeros(len(UPPER[0]))
    for errors in people:
        products = _multiply(errors.features)
        matrix += products.T @ products
        sums += products.T @ errors.size
    weights = np.zeros((FEATURES, FEATURES))
    pull = RIDGE * np.diag(matrix) + RIDGE * matrix[0, 0] * 1e-6  # a feature may be 0 everywhere
    weights[UPPER] = np.linalg.solve(matrix + np.diag(pull), sums)
    ones = np.ones(people[0].cubes)
    model = ErrorModel(weights, ones, np.ones(len(INTERVALS)))
    sizes, forecasts = np.zeros(ones.size), np.zeros(ones.size)
    for errors in people:
        sizes += np.bincount(errors.cube, errors.size, ones.size)
        forecasts += np.bincount(errors.cube, _predict(errors, model), ones.size)
    around, expected = (
        ndimage.gaussian_filter(total.reshape(ones.shape), people[0].sigmas, mode="constant")
        for total in (sizes, forecasts)
    )
    ratio = np.divide(around, expected, out=ones, where=expected > 1e-6 * expected.max())
    places = (ratio * len(people) + PULL) / (len(people) + PULL)
    return ErrorModel(weights, places, model.factors)


def _predict(errors: Errors, model: ErrorModel) -> NDArray[np.float64]:
    """Predict standard deviations at sampled voxels, relative to the mean of the PET.

    See :func:`predict_sd`.
    """
    level = ((errors.features @ model.weights) * errors.features).sum(axis=1)
    level *= model.places.ravel()[errors.cube]
    return np.maximum(level, LEAST * level.mean())


def fit_error_model(
    people: Sequence[Errors], groups: Sequence[int]
) -> tuple[ErrorModel, dict[str, float]]:
    """Fit an error model of a generator, and evaluate it by cross-validation.

    Each group of people is left out in turn. The half-widths of intervals, in standard deviations,
    are quantiles of the ratios of left-out errors to the standard deviations predicted by a model
    fitted to the others. Coverage is measured in each group with the half-widths from the other
    groups.

    Parameters
    ----------
    people : sequence of Errors
        Errors in people whom the generator, or one trained like it, was not trained on.
    groups : sequence of int
        Group of each; the same for people who are left out together.

    Returns
    -------
    ErrorModel
        Error model fitted to all people.
    dict
        See :func:`measure_errors`.

    Raises
    ------
    ValueError
        If there are fewer than 4 people, or all belong to one group.
    """
    names = sorted(set(groups))
    if len(people) < FEWEST or len(names) < 2:
        raise ValueError(f"{len(people)} people in {len(names)} group(s) are too few")
    left_out = [
        [errors for errors, group in zip(people, groups, strict=True) if group == name]
        for name in names
    ]
    predicted = []
    for held_out in left_out:
        model = _fit([errors for fold in left_out if fold is not held_out for errors in fold])
        predicted.append([_predict(errors, model) for errors in held_out])
    scores = [
        np.concatenate([errors.size / sd for errors, sd in zip(*pair, strict=True)])
        for pair in zip(left_out, predicted, strict=True)
    ]
    measures = []
    for number, (held_out, deviations) in enumerate(zip(left_out, predicted, strict=True)):
        reach = _reach(np.concatenate(scores[:number] + scores[number + 1 :]))
        measures += [
            _measure(errors, sd, reach) for errors, sd in zip(held_out, deviations, strict=True)
        ]
    every = np.concatenate(scores)
    unit = float(np.sqrt(np.mean(every**2)))
    model = _fit(people)
    arrays = (unit * model.weights, model.places, _reach(every / unit))
    return ErrorModel(*(array.astype(np.float32) for array in arrays)), _average(measures)


def measure_errors(people: Sequence[Errors], model: ErrorModel) -> dict[str, float]:
    """Evaluate an error model on people whom it was not fitted to.

    Returns
    -------
    dict
        ``coverage_50``, ``coverage_80`` and ``coverage_95``: share of voxels whose error is in the
        central interval; ``correlation`` and ``correlation_8mm``: correlation of the standard
        deviation with the absolute error, and with the absolute error smoothed by 8 mm, over the
        voxels of a person. All are means over people.
    """
    return _average([_measure(errors, _predict(errors, model), model.factors) for errors in people])


def _reach(scores: NDArray[np.floating]) -> NDArray[np.floating]:
    return np.quantile(scores, [percent / 100 for percent in INTERVALS])


def _measure(
    errors: Errors, deviation: NDArray[np.float64], reach: NDArray[np.floating]
) -> dict[str, float]:
    covered = {
        f"coverage_{percent}": float((errors.size <= factor * deviation).mean())
        for percent, factor in zip(INTERVALS, reach, strict=True)
    }
    return {
        **covered,
        "correlation": correlation(deviation, errors.size),
        "correlation_8mm": correlation(deviation, errors.smoothed),
    }


def _average(measures: Sequence[dict[str, float]]) -> dict[str, float]:
    return {key: float(np.mean([measure[key] for measure in measures])) for key in measures[0]}


def describe_error_model(model: ErrorModel, metrics: Mapping[str, float]) -> dict[str, object]:
    """Describe the standard deviation and its measured validity, for a sidecar.

    Parameters
    ----------
    model : ErrorModel
        Error model of the generator.
    metrics : mapping
        Metrics of its card: those of :func:`measure_errors` are prefixed with ``uncertainty_``.
    """

    def measured(name: str) -> float | None:
        return metrics.get(f"uncertainty_{name}")

    return {
        "Description": "Central intervals extend to either side of the synthetic PET by the "
        "standard deviation times IntervalFactors. MeasuredCoverage is the share of brain voxels "
        "whose real PET was within them, and CorrelationWithAbsoluteError the correlation over the "
        "voxels of a person, both in people on whom neither the generator nor the error model was "
        "trained",
        "IntervalFactors": {
            f"{percent}": round(float(factor), 3)
            for percent, factor in zip(INTERVALS, model.factors, strict=True)
        },
        "MeasuredCoverage": {f"{p}": measured(f"coverage_{p}") for p in INTERVALS},
        "CorrelationWithAbsoluteError": measured("correlation"),
    }


def write_error_model(model: ErrorModel, path: Path) -> None:
    """Write an error model atomically.

    Raises
    ------
    ReadWriteError
        If it cannot be written.
    UnusableDataError
        If it holds a number that is not finite; nothing is written then.
    """
    if not all(np.isfinite(array).all() for array in asdict(model).values()):
        raise UnusableDataError(f"{path.name}: errors of a synthetic PET are not finite")
    write_bytes(path, save({k: np.ascontiguousarray(v) for k, v in asdict(model).items()}))


def _refuse_odd(model: ErrorModel) -> None:
    shapes = (model.weights.shape, model.places.ndim, model.factors.shape)
    if shapes != ((FEATURES, FEATURES), 3, (len(INTERVALS),)):
        raise ValueError("its parts do not match")
    for array in asdict(model).values():
        if array.dtype.kind != "f" or not np.isfinite(array).all():
            raise ValueError("it contains a value that is not a finite number")
    if (model.places.size and model.places.min() < 0) or model.factors.min() < 0:
        raise ValueError("it contains a negative value")


def read_error_model(path: Path) -> ErrorModel:
    """Read an error model.

    Raises
    ------
    ReadWriteError
        If the file cannot be read.
    UnusableDataError
        If it is not an error model.
    """
    return read_parts(path, ErrorModel, _refuse_odd, "not an error model")
