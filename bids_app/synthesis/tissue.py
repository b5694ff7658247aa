"""The tissue model: a generator without a network, fitted to a few controls in closed form.

It is ours, not of Zotova et al. (2021): what a network must beat to be worth its training. At each
place ``x`` of the template,

    PET(x) = a(x) · grey(x) + b(x) · white(x) + c(x),

where ``grey`` and ``white`` are the shares of grey and of white matter that the T1w shows, blurred
as the scanner blurs, and ``a``, ``b`` and ``c`` are the uptake of the training controls around
``x``. No torch here.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations_with_replacement
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file
from scipy import ndimage
from sklearn.cluster import KMeans

from bids_app.errors import ReadWriteError, UnusableDataError
from bids_app.files import replacing
from bids_app.imaging.intensity import SIGMA_OF_FWHM, smooth
from bids_app.imaging.volume import Volume, average_cubes, cube_sides

if TYPE_CHECKING:
    from bids_app.synthesis.pairs import Volumes

BINS = 256  # of the histogram that tissue means are found in; our choice
STARTS = (0.10, 0.45, 0.85)  # quantiles that fluid, grey and white matter start at; our choice
CUBE = 3.0  # mm; coefficients are stored once a cube: they are smoother than that
PSF_FWHM = (2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0)  # mm; tried; PET scanners have 4 to 8
KERNEL_FWHM = (6.0, 9.0, 13.0, 20.0)  # mm; tried; the more controls, the narrower the best
USUAL_KERNEL = 9.0  # mm; while the blur is chosen, which hardly depends on it
RIDGE = 1e-3  # pull towards the coefficients of the whole brain; our choice
PSF_CONTROLS = 6  # whose PET the blur is chosen with: all tell nearly the same; our choice
GROUPS = 8  # of controls left out in turn, at most; our choice
FEWEST = 2  # controls: one is left out, one is fitted
TERMS = 3  # grey, white, 1
PRODUCTS = tuple(combinations_with_replacement(range(TERMS), 2))
Moments = NDArray[np.float64]


def find_tissue_means(t1w: Volume) -> tuple[float, float, float]:
    """Find the mean intensities of fluid, grey and white matter by k-means.

    Parameters
    ----------
    t1w : ndarray, (I, J, K)
        Intensities in [0, 1], 0 outside the brain.

    Returns
    -------
    tuple of float
        Ascending.

    Raises
    ------
    ValueError
        If the brain has fewer than three intensities.
    """
    values = t1w[t1w > 0]
    counts, edges = np.histogram(values, bins=BINS) if values.size else (np.zeros(1), np.zeros(2))
    if np.count_nonzero(counts) < TERMS:
        raise ValueError("the T1w has fewer than three intensities")
    centres = (edges[:-1] + edges[1:])[:, np.newaxis] / 2
    starts = np.quantile(values, STARTS)[:, np.newaxis]
    found = KMeans(TERMS, init=starts, n_init=1).fit(centres, sample_weight=counts)
    fluid, grey, white = np.sort(found.cluster_centers_[:, 0]).tolist()
    return fluid, grey, white


def tissue_shares(
    t1w: Volume, zooms: tuple[float, float, float], psf_fwhm: float
) -> tuple[Volume, Volume]:
    """Give the shares of grey and of white matter in each voxel, as a scanner blurs them.

    Between the means of two tissues, a voxel is a mixture of both.

    Parameters
    ----------
    t1w : ndarray, (I, J, K)
        Intensities in [0, 1], 0 outside the brain.
    zooms : tuple of float
        Voxel size in mm along each axis.
    psf_fwhm : float
        Of the blur, in mm.

    Returns
    -------
    tuple of ndarray, (I, J, K)
        float32 in [0, 1]: grey, then white.
    """
    means = find_tissue_means(t1w)
    inside = t1w > 0
    grey = np.where(inside, np.interp(t1w, means, (0, 1, 0)), 0)
    white = np.where(inside, np.interp(t1w, means, (0, 0, 1)), 0)
    return smooth(grey, psf_fwhm, zooms), smooth(white, psf_fwhm, zooms)


@dataclass(frozen=True)
class TissueModel:
    """A fitted tissue model.

    Parameters
    ----------
    coefficients : ndarray of float32, (3, I', J', K')
        Uptake of grey and of white matter, and what both leave, in each cube of 3 mm; in the unit
        of the PET it was fitted to.
    psf_fwhm : float
        Blur of tissue, in mm.
    """

    coefficients: NDArray[np.float32]
    psf_fwhm: float

    def predict(self, t1w: Volume, zooms: tuple[float, float, float]) -> Volume:
        """Predict the PET of a T1w.

        Parameters
        ----------
        t1w : ndarray, (I, J, K)
            Intensities in [0, 1], 0 outside the brain, on the grid of the controls.
        zooms : tuple of float
            Voxel size in mm along each axis.

        Returns
        -------
        ndarray, (I, J, K)
            float32 in [0, 1], 0 where the T1w is 0.

        Raises
        ------
        ValueError
            If the T1w lies on another grid, or has fewer than three intensities.
        """
        sides = cube_sides(CUBE, zooms)
        if count_cubes(t1w.shape, sides) != self.coefficients.shape[1:]:
            raise ValueError(f"{t1w.shape} voxels are not the grid of the tissue model")
        grey, white = tissue_shares(t1w, zooms, self.psf_fwhm)
        a, b, c = (_spread(one, sides, t1w.shape) for one in self.coefficients)
        return np.where(t1w > 0, np.clip(a * grey + b * white + c, 0, 1), 0).astype(np.float32)


def count_cubes(shape: tuple[int, ...], sides: tuple[int, ...]) -> tuple[int, ...]:
    """Count the cubes that a volume is cut into, along each axis."""
    return tuple(-(-voxels // side) for voxels, side in zip(shape, sides, strict=True))


def _spread(cubes: Volume, sides: tuple[int, ...], shape: tuple[int, ...]) -> Volume:
    """Interpolate between the centres of cubes, linearly."""
    edges = np.array(sides)
    to_cubes, first = np.diag(1 / edges), (1 - edges) / 2 / edges
    return ndimage.affine_transform(cubes, to_cubes, first, shape, order=1, mode="nearest")


def _moments(visit: Volumes, psf_fwhm: float) -> Moments:
    """Average, in each cube, the products that least squares needs of one control.

    Returns
    -------
    ndarray, (10, I', J', K')
        Of each two of grey, white and 1; of each with the PET; of the PET with itself. What is not
        brain, or not covered by the PET, is 0 in all.
    """
    zooms = visit.owner.zooms
    known = (visit.brain & visit.covered & (visit.t1w > 0)).astype(np.float32)
    terms = [share * known for share in tissue_shares(visit.t1w, zooms, psf_fwhm)] + [known]
    pet = visit.pet * known
    products = [terms[i] * terms[j] for i, j in PRODUCTS]
    products += [*(term * pet for term in terms), pet * pet]
    return np.stack([average_cubes(product, cube_sides(CUBE, zooms)) for product in products])


def _normal_equations(moments: Moments) -> tuple[Moments, Moments]:
    """Arrange moments as the matrices, (…, 3, 3), and right-hand sides, (…, 3), of cubes."""
    matrix = np.empty((*moments.shape[1:], TERMS, TERMS))
    for product, (i, j) in zip(moments, PRODUCTS, strict=False):
        matrix[..., i, j] = matrix[..., j, i] = product
    return matrix, np.moveaxis(moments[len(PRODUCTS) : -1], 0, -1)


def _solve(moments: Moments, kernel_fwhm: float) -> Moments:
    """Solve for the coefficients of each cube from the cubes around it; (…, 3).

    A ridge draws them to those of the whole brain where cubes say little.
    """
    sigma = kernel_fwhm / CUBE * SIGMA_OF_FWHM
    near = np.stack([ndimage.gaussian_filter(m, sigma, mode="constant") for m in moments])
    matrix, right = _normal_equations(near)
    whole, whole_right = _normal_equations(moments.mean(axis=(1, 2, 3)))
    usual = np.linalg.solve(whole, whole_right)
    ridge = RIDGE * np.diag(np.diag(whole)) + 1e-12 * np.eye(TERMS)
    coefficients = np.broadcast_to(usual, right.shape).copy()
    told = matrix[..., -1, -1] > 0  # beyond the kernel's reach of the brain nothing is told
    sums = (right[told] + ridge @ usual)[..., np.newaxis]
    coefficients[told] = np.linalg.solve(matrix[told] + ridge, sums)[..., 0]
    return coefficients


def _squared_error(coefficients: Moments, moments: Moments) -> float:
    """Sum the squared errors of coefficients, from moments alone."""
    matrix, right = _normal_equations(moments)
    predicted = np.einsum("...i,...ij,...j", coefficients, matrix, coefficients)
    return float((moments[-1] - 2 * np.einsum("...i,...i", coefficients, right) + predicted).sum())


def _left_out_error(groups: Sequence[Moments], kernel_fwhm: float) -> float:
    """Sum the squared errors on each group of controls of what the others predict."""
    total = np.sum(groups, axis=0)
    return sum(_squared_error(_solve(total - group, kernel_fwhm), group) for group in groups)


def fit_tissue_model(visits: Sequence[Volumes]) -> TissueModel:
    """Fit a tissue model to controls.

    The blur and the width of the neighbourhood are those that predict controls best who were left
    out of the fit.

    Parameters
    ----------
    visits : sequence of Volumes
        T1w and PET in [0, 1] on one grid; two participants or more.

    Raises
    ------
    ValueError
        If there are fewer participants.
    """
    people: dict[str, list[Volumes]] = {}
    for visit in visits:
        people.setdefault(visit.owner.participant, []).append(visit)
    if len(people) < FEWEST:
        raise ValueError(f"a tissue model needs {FEWEST} participants, not {len(people)}")

    def measure(psf_fwhm: float, count: int, number: int) -> list[Moments]:
        chosen = list(people.values())[:count]
        return [
            np.sum([_moments(visit, psf_fwhm) for own in chosen[start::number] for visit in own], 0)
            for start in range(min(number, len(chosen)))
        ]

    def error_of_psf(psf_fwhm: float) -> float:
        return _left_out_error(measure(psf_fwhm, PSF_CONTROLS, PSF_CONTROLS), USUAL_KERNEL)

    psf_fwhm = min(PSF_FWHM, key=error_of_psf)
    groups = measure(psf_fwhm, len(people), GROUPS)
    kernel = min(KERNEL_FWHM, key=lambda width: _left_out_error(groups, width))
    coefficients = np.moveaxis(_solve(np.sum(groups, axis=0), kernel), -1, 0)
    return TissueModel(coefficients.astype(np.float32), psf_fwhm)


def save_tissue_model(model: TissueModel, path: Path) -> None:
    """Write a tissue model as safetensors.

    Raises
    ------
    ReadWriteError
        If it cannot be written.
    """
    tensors = {
        "coefficients": np.ascontiguousarray(model.coefficients),
        "psf_fwhm": np.array([model.psf_fwhm], np.float32),
    }
    try:
        with replacing(path) as partial:
            save_file(tensors, partial)
            partial.chmod(0o644)  # safetensors lets only the owner read
    except (OSError, SafetensorError) as error:
        raise ReadWriteError(f"{path}: cannot be written ({error})") from error


def load_tissue_model(path: Path) -> TissueModel:
    """Read a tissue model.

    Raises
    ------
    UnusableDataError
        If the file holds none, or one that is not finite.
    """
    try:
        tensors = load_file(path)
        coefficients, psf_fwhm = tensors["coefficients"], float(tensors["psf_fwhm"][0])
        if coefficients.ndim != 4 or len(coefficients) != TERMS:
            raise ValueError(f"coefficients of shape {coefficients.shape}")
        if not (np.isfinite(coefficients).all() and 0 <= psf_fwhm <= max(PSF_FWHM)):
            raise ValueError("values that are not finite, or a blur that is out of range")
    except (SafetensorError, OSError, KeyError, IndexError, ValueError) as error:
        raise UnusableDataError(f"{path}: not a tissue model ({error}); fit it again") from error
    return TissueModel(coefficients.astype(np.float32), psf_fwhm)
