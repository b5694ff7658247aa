"""The tissue model: a generator without a network, fitted to a few controls in closed form.

It is ours, not of Zotova et al. (2021): what a network must beat to be worth its training. At each
place ``x`` of the template,

    PET(x) = a(x) · grey(x) + b(x) · white(x) + c(x),

where ``grey`` and ``white`` are the shares of grey and of white matter that the T1w shows, blurred
as the scanner blurs, and ``a``, ``b`` and ``c`` are the uptake of the training controls around
``x``.
"""

from collections.abc import Sequence
from functools import reduce

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import ndimage
from torch import Tensor, nn

from bids_app.imaging.intensity import SIGMA_OF_FWHM, smooth
from bids_app.imaging.tissues import tissue_shares
from bids_app.imaging.volume import (
    Affine,
    Grid,
    Volume,
    count_cubes,
    cube_sides,
    spread_cubes,
    zooms_of,
)
from bids_app.synthesis.models import FEWEST, TissueSpec
from bids_app.synthesis.pairs import Volumes

PSF_FWHM = (2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0)  # mm; tried; PET scanners have 4 to 8
KERNEL_FWHM = (6.0, 9.0, 13.0, 20.0)  # mm; tried; the more controls, the narrower the best
USUAL_KERNEL = 9.0  # mm; while the blur is chosen, which hardly depends on it
RIDGE = 1e-3  # pull towards the coefficients of the whole brain; our choice
PULLS = (1e-3, 1e-2, 0.1, 1.0, 10.0)  # towards the coefficients of an initial model; tried
PSF_CONTROLS = 8  # whose PET the blur is chosen with, at most; our choice
GROUPS = 8  # of controls left out in turn, at most; our choice
SAME_MEAN = 1e-3  # of the mean: by rounding and clipping it differs by less; our choice
TERMS = 3  # grey, white, 1
Moments = NDArray[np.float64]
Coefficients = NDArray[np.float64]


class TissueModel(nn.Module):
    """A tissue model, which takes the place of a network.

    ``forward`` maps T1w, (N, 1, I, J, K), with intensities in [0, 1] and 0 outside the brain, to
    the PET predicted for them, in the same shape and range, 0 where the T1w is 0. It is computed
    on a CPU.

    Parameters
    ----------
    spec : TissueSpec
        Cubes of its grid.

    Attributes
    ----------
    coefficients : Parameter, (3, I', J', K')
        Uptake of grey and of white matter, and what both leave, in each cube; in the unit of the
        PET they were fitted to.
    psf_sigma : Parameter, (3,)
        Blur of tissue along each axis, in voxels: the standard deviation of a Gaussian.
    brain_mean : Parameter, ()
        What the mean of each PET in its brain is by its scale, and of what is predicted therefore;
        0 where PET are scaled otherwise.
    """

    def __init__(self, spec: TissueSpec) -> None:
        super().__init__()
        self.spec = spec
        self.coefficients = nn.Parameter(torch.zeros(TERMS, *spec.cubes), requires_grad=False)
        self.psf_sigma = nn.Parameter(torch.zeros(3), requires_grad=False)
        self.brain_mean = nn.Parameter(torch.zeros(()), requires_grad=False)

    def forward(self, t1w: Tensor) -> Tensor:
        predicted = [self._predict(volume[0].cpu().numpy()) for volume in t1w]
        return torch.from_numpy(np.stack(predicted))[:, None].to(t1w.device)

    def _predict(self, t1w: Volume) -> Volume:
        if count_cubes(t1w.shape, self.spec.sides) != self.spec.cubes:
            raise ValueError(f"{t1w.shape} voxels are not the grid of the tissue model")
        sigma, sides = self.psf_sigma.tolist(), self.spec.sides
        shares = tissue_shares(t1w)
        grey, white = (ndimage.gaussian_filter(share, sigma, mode="nearest") for share in shares)
        a, b, c = (
            spread_cubes(cubes, sides, t1w.shape) for cubes in self.coefficients.cpu().numpy()
        )
        pet = np.where(t1w > 0, np.maximum(a * grey + b * white + c, 0), 0)
        mean, brain_mean = float(pet.sum() / max(np.count_nonzero(t1w), 1)), float(self.brain_mean)
        factor = brain_mean / mean if brain_mean and mean else 1.0
        return np.clip(factor * pet, 0, 1).astype(np.float32)


def carry_tissue_model(model: TissueModel, affine: Affine, grid: Grid) -> TissueModel:
    """Bring a tissue model to another grid of its space: coefficients are smooth maps.

    Parameters
    ----------
    model : TissueModel
        On the grid it was fitted on.
    affine : ndarray, (4, 4)
        Voxel indices of that grid → mm.
    grid : Grid
        The other one; beyond the first, coefficients go on as at its edge.

    Returns
    -------
    TissueModel
        With cubes of about the same edges in mm.
    """
    zooms, old_zooms = zooms_of(grid.affine), np.array(zooms_of(affine))
    edges = np.array(model.spec.sides) * old_zooms
    sides = cube_sides(float(edges.min()), zooms)
    spec = TissueSpec(sides, count_cubes(grid.shape, sides))
    steps = np.linalg.inv(_centres(affine, model.spec.sides)) @ _centres(grid.affine, sides)
    carried = TissueModel(spec)
    for number, cubes in enumerate(model.coefficients.numpy()):
        moved = ndimage.affine_transform(
            cubes, steps[:3, :3], steps[:3, 3], spec.cubes, order=1, mode="nearest"
        )
        carried.coefficients[number].copy_(torch.from_numpy(moved))
    blur = model.psf_sigma.numpy() * old_zooms / np.array(zooms)
    carried.psf_sigma.copy_(torch.from_numpy(blur.astype(np.float32)))
    carried.brain_mean.copy_(model.brain_mean)
    return carried.eval()


def _centres(affine: Affine, sides: tuple[int, int, int]) -> Affine:
    """Give the affine of cubes, from those of voxels: indices of a cube → its centre in mm."""
    scale = np.diag([*sides, 1.0])
    scale[:3, 3] = (np.array(sides) - 1) / 2
    centres: Affine = affine @ scale
    return centres


def _cut(volume: NDArray[np.float32], sides: tuple[int, int, int]) -> NDArray[np.float32]:
    """Cut a volume into cubes, (I', J', K', voxels of a cube); it goes on with 0."""
    short = [-voxels % side for voxels, side in zip(volume.shape, sides, strict=True)]
    filled = np.pad(volume, [(0, voxels) for voxels in short])
    i, j, k = count_cubes(volume.shape, sides)
    a, b, c = sides
    return filled.reshape(i, a, j, b, k, c).transpose(0, 2, 4, 1, 3, 5).reshape(i, j, k, -1)


def _moments(visit: Volumes, sides: tuple[int, int, int], blurs: Sequence[float]) -> list[Moments]:
    """Sum, in each cube, the products that least squares needs of one control, for each blur.

    Returns
    -------
    list of ndarray, (I', J', K', 4, 4)
        Of each two of grey, white, 1 and the PET. What is not brain, or not covered by the PET, is
        0 in all.
    """
    zooms = visit.owner.zooms
    known = _cut((visit.brain & visit.covered & (visit.t1w > 0)).astype(np.float32), sides)
    brain = known.any(axis=-1)
    known = known[brain]
    pet = _cut(visit.pet, sides)[brain] * known
    try:
        shares = tissue_shares(visit.t1w)
    except ValueError as error:
        label = visit.owner.participant
        raise ValueError(
            f"sub-{label}: {error}; look at it, or give --exclude-participant-label {label}"
        ) from error
    by_blur = []
    for fwhm in blurs:
        blurred = [_cut(smooth(share, fwhm, zooms), sides)[brain] * known for share in shares]
        terms = np.stack([*blurred, known, pet], axis=-1)
        moments = np.zeros((*brain.shape, TERMS + 1, TERMS + 1))
        moments[brain] = np.matmul(terms.transpose(0, 2, 1), terms)
        by_blur.append(moments)
    return by_blur


def _solve(
    moments: Moments,
    kernel_fwhm: float,
    edges: Sequence[float],
    initial: Coefficients | None = None,
    pull: float = RIDGE,
) -> Coefficients:
    """Solve for the coefficients of each cube, (I', J', K', 3), from the cubes around it.

    ``edges`` are those of a cube, in mm. A ridge draws them to those of the whole brain, or to the
    initial ones, where cubes say little.
    """
    sigmas = (kernel_fwhm * SIGMA_OF_FWHM / edge for edge in edges)
    near = ndimage.gaussian_filter(moments, (*sigmas, 0, 0), mode="constant")
    whole = moments.mean(axis=(0, 1, 2))
    prior = (
        np.linalg.solve(whole[:TERMS, :TERMS], whole[:TERMS, TERMS])
        if initial is None
        else _rescaled(initial, moments)
    )
    ridge = pull * np.diag(np.diag(whole[:TERMS, :TERMS]))
    coefficients = np.broadcast_to(prior, (*near.shape[:3], TERMS)).copy()
    informed = near[..., TERMS - 1, TERMS - 1] > 0  # beyond the kernel's reach nothing is known
    sums = near[informed, :TERMS, TERMS] + coefficients[informed] @ ridge
    matrices = near[informed, :TERMS, :TERMS] + ridge
    coefficients[informed] = np.linalg.solve(matrices, sums[..., np.newaxis])[..., 0]
    return coefficients


def _rescaled(initial: Coefficients, moments: Moments) -> Coefficients:
    """Multiply initial maps of a, b and c by a number each, those that fit the whole brain best."""
    maps, cubes = initial.reshape(-1, TERMS), moments.reshape(-1, TERMS + 1, TERMS + 1)
    matrix = np.einsum("ni,nij,nj->ij", maps, cubes[:, :TERMS, :TERMS], maps)
    sums = np.einsum("ni,ni->i", maps, cubes[:, :TERMS, TERMS])
    return initial * (1 + np.linalg.lstsq(matrix, sums - matrix.sum(axis=1))[0])


def _squared_error(coefficients: Coefficients, moments: Moments) -> float:
    """Sum the squared errors of coefficients, from moments alone: θᵀMθ with θ = (a, b, c, −1)."""
    theta = np.concatenate([coefficients, -np.ones((*coefficients.shape[:3], 1))], axis=-1)
    return float(np.einsum("...i,...ij,...j", theta, moments, theta, optimize=True).sum())


def _left_out_error(
    groups: Sequence[Moments],
    kernel_fwhm: float,
    edges: Sequence[float],
    initial: Coefficients | None = None,
    pull: float = RIDGE,
) -> float:
    """Sum the squared errors on each group of controls of what the others predict."""
    total = np.sum(groups, axis=0)
    return sum(
        _squared_error(_solve(total - group, kernel_fwhm, edges, initial, pull), group)
        for group in groups
    )


def _common_mean(visits: Sequence[Volumes]) -> float:
    """Give the mean that all PET have in the brain; 0 if they are not scaled so."""
    means = [float(np.mean(visit.pet[visit.brain & visit.covered])) for visit in visits]
    return means[0] if np.ptp(means) <= SAME_MEAN * max(means) else 0.0


def fit_tissue_model(
    spec: TissueSpec, visits: Sequence[Volumes], initial: TissueModel | None = None
) -> TissueModel:
    """Fit a tissue model to controls.

    The blur and the width of the neighbourhood are those that predict controls best who were left
    out of the fit; so is the pull towards an initial model.

    Parameters
    ----------
    spec : TissueSpec
        Cubes of the controls' grid.
    visits : sequence of Volumes
        T1w and PET in [0, 1] on one grid; two participants or more.
    initial : TissueModel, optional
        Of the same cubes, fitted to other people. Where the controls say little, its coefficients
        stand, its maps of grey, white and rest times a number each for all of the brain, since
        scanners differ. Without, those of the whole brain stand.

    Raises
    ------
    ValueError
        If there are fewer participants, or one's T1w has no three tissues.
    """
    people: dict[str, list[Volumes]] = {}
    for visit in visits:
        people.setdefault(visit.owner.participant, []).append(visit)
    if len(people) < FEWEST:
        raise ValueError(f"{len(people)} participant is too few, {FEWEST} are needed; add controls")
    controls = list(people.values())
    zooms = visits[0].owner.zooms
    edges = [side * zoom for side, zoom in zip(spec.sides, zooms, strict=True)]

    def measure(members: Sequence[list[Volumes]], blurs: Sequence[float]) -> list[Moments]:
        """Sum the moments of some controls, a blur each."""
        moments = (_moments(visit, spec.sides, blurs) for control in members for visit in control)
        return reduce(lambda one, other: list(map(np.add, one, other)), moments)

    by_control = [measure([control], PSF_FWHM) for control in controls[:PSF_CONTROLS]]
    errors = [
        _left_out_error(groups, USUAL_KERNEL, edges) for groups in zip(*by_control, strict=True)
    ]
    psf_fwhm = PSF_FWHM[int(np.argmin(errors))]
    number = min(GROUPS, len(controls))
    groups = [measure(controls[start::number], [psf_fwhm])[0] for start in range(number)]
    prior = None if initial is None else np.moveaxis(initial.coefficients.double().numpy(), 0, -1)

    def error(kernel_fwhm: float, pull: float) -> float:
        return _left_out_error(groups, kernel_fwhm, edges, prior, pull)

    pull = RIDGE
    if initial is not None:
        pull = min(PULLS, key=lambda weight: error(USUAL_KERNEL, weight))
    kernel = min(KERNEL_FWHM, key=lambda fwhm: error(fwhm, pull))
    solution = _solve(np.sum(groups, axis=0), kernel, edges, prior, pull)
    coefficients = np.moveaxis(solution, -1, 0)
    model = TissueModel(spec)
    model.coefficients.copy_(torch.from_numpy(coefficients))
    model.brain_mean.copy_(torch.tensor(_common_mean(visits)))
    model.psf_sigma.copy_(torch.tensor([psf_fwhm * SIGMA_OF_FWHM / zoom for zoom in zooms]))
    return model.eval()
