"""The tissue model: a generator without a network, fitted to a few controls in closed form.

It is ours, not from Zotova et al. (2021), and serves as the baseline that a network must beat to be
worth its training. At each position ``x`` of the template,

    PET(x) = a(x) · grey(x) + b(x) · white(x) + c(x),

where ``grey`` and ``white`` are the shares of grey and white matter in the T1w, blurred like the
scanner blurs, and ``a``, ``b`` and ``c`` are the uptake of the training controls around ``x``.
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
from bids_app.synthesis.models import CUBE, FEWEST, TissueSpec
from bids_app.synthesis.pairs import Volumes

PSF_FWHM = (2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0)  # mm; candidates; PET scanners have 4 to 8
KERNEL_FWHM = (6.0, 9.0, 13.0, 20.0)  # mm; candidates; more controls favour a narrower one
USUAL_KERNEL = 9.0  # mm; used to choose the blur, which hardly depends on it
RIDGE = 1e-3  # penalty towards the coefficients of the whole brain; our choice
PULLS = (1e-3, 1e-2, 0.1, 1.0, 10.0)  # penalties towards an initial model; candidates
PSF_CONTROLS = 8  # controls used to choose the blur, at most; our choice
GROUPS = 8  # of controls left out in turn, at most; our choice
TERMS = 3  # grey, white, 1
Moments = NDArray[np.float64]
Coefficients = NDArray[np.float64]


class TissueModel(nn.Module):
    """Tissue model, which takes the place of a network.

    ``forward`` maps T1w, (N, 1, I, J, K), with intensities in [0, 1] and 0 outside the brain, to
    predicted PET of the same shape and range, 0 where the T1w is 0. It is computed on the CPU.

    Parameters
    ----------
    spec : TissueSpec
        Cubes of its grid.

    Attributes
    ----------
    coefficients : Parameter, (3, I', J', K')
        Uptake of grey matter and of white matter, and the remainder, in each cube; in the unit of
        the PET they were fitted to.
    psf_sigma : Parameter, (3,)
        Blur of tissue along each axis, in voxels: the standard deviation of a Gaussian.
    brain_mean : Parameter, ()
        Mean in the brain that all training PET are scaled to, and therefore predictions, too; 0 if
        PET are scaled otherwise.
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


def resample_tissue_model(model: TissueModel, affine: Affine, grid: Grid) -> TissueModel:
    """Resample a tissue model to another grid of its space; its coefficients are smooth maps.

    Parameters
    ----------
    model : TissueModel
        Model on the grid it was fitted on.
    affine : ndarray, (4, 4)
        Voxel indices of that grid → mm.
    grid : Grid
        Target grid; outside the original grid, coefficients are those at its edge.

    Returns
    -------
    TissueModel
        Model with the cubes of one that is fitted on that grid.
    """
    zooms, old_zooms = zooms_of(grid.affine), np.array(zooms_of(affine))
    sides = cube_sides(CUBE, zooms)
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
    """Return the affine of cubes, given that of voxels: indices of a cube → its centre in mm."""
    scale = np.diag([*sides, 1.0])
    scale[:3, 3] = (np.array(sides) - 1) / 2
    centres: Affine = affine @ scale
    return centres


def _cut(volume: NDArray[np.float32], sides: tuple[int, int, int]) -> NDArray[np.float32]:
    """Cut a volume, padded with 0, into cubes, (I', J', K', voxels of a cube)."""
    short = [-voxels % side for voxels, side in zip(volume.shape, sides, strict=True)]
    filled = np.pad(volume, [(0, voxels) for voxels in short])
    i, j, k = count_cubes(volume.shape, sides)
    a, b, c = sides
    return filled.reshape(i, a, j, b, k, c).transpose(0, 2, 4, 1, 3, 5).reshape(i, j, k, -1)


def _moments(visit: Volumes, sides: tuple[int, int, int], blurs: Sequence[float]) -> list[Moments]:
    """Sum the products needed for least squares in each cube of one visit, for each blur.

    Returns
    -------
    list of ndarray, (I', J', K', 4, 4)
        Sums of the products of any two of grey, white, 1 and the PET. Voxels outside the brain, or
        not covered by the PET, are ignored.
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
            f"sub-{label}: {error}; look at its T1w, or give --exclude-participant-label {label}"
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

    ``edges`` are those of a cube, in mm. A ridge penalty shrinks the coefficients towards those of
    the whole brain, or towards the initial ones, where cubes contain little information.
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
    informed = near[..., TERMS - 1, TERMS - 1] > 0  # cubes within the kernel's reach
    sums = near[informed, :TERMS, TERMS] + coefficients[informed] @ ridge
    matrices = near[informed, :TERMS, :TERMS] + ridge
    coefficients[informed] = np.linalg.solve(matrices, sums[..., np.newaxis])[..., 0]
    return coefficients


def _rescaled(initial: Coefficients, moments: Moments) -> Coefficients:
    """Multiply the initial maps of a, b and c by the factors that fit the whole brain best."""
    maps, cubes = initial.reshape(-1, TERMS), moments.reshape(-1, TERMS + 1, TERMS + 1)
    matrix = np.einsum("ni,nij,nj->ij", maps, cubes[:, :TERMS, :TERMS], maps)
    sums = np.einsum("ni,ni->i", maps, cubes[:, :TERMS, TERMS])
    return initial * (1 + np.linalg.lstsq(matrix, sums - matrix.sum(axis=1))[0])


def _squared_error(coefficients: Coefficients, moments: Moments) -> float:
    """Sum the squared errors of coefficients from moments: θᵀMθ with θ = (a, b, c, −1)."""
    theta = np.concatenate([coefficients, -np.ones((*coefficients.shape[:3], 1))], axis=-1)
    return float(np.einsum("...i,...ij,...j", theta, moments, theta, optimize=True).sum())


def _left_out_error(
    groups: Sequence[Moments],
    kernel_fwhm: float,
    edges: Sequence[float],
    initial: Coefficients | None = None,
    pull: float = RIDGE,
) -> float:
    """Sum the squared errors on each group of controls of the model fitted to the others."""
    total = np.sum(groups, axis=0)
    return sum(
        _squared_error(_solve(total - group, kernel_fwhm, edges, initial, pull), group)
        for group in groups
    )


def fit_tissue_model(
    spec: TissueSpec,
    visits: Sequence[Volumes],
    initial: TissueModel | None = None,
    *,
    times_mean: float = 0.0,
) -> TissueModel:
    """Fit a tissue model to controls.

    The blur, the width of the neighbourhood and the strength of the penalty towards an initial
    model are chosen by cross-validation: those that best predict controls left out of the fit.

    Parameters
    ----------
    spec : TissueSpec
        Cubes of the controls' grid.
    visits : sequence of Volumes
        T1w and PET in [0, 1] on one grid, of at least two participants.
    initial : TissueModel, optional
        Model with the same cubes, fitted to other people. Where the controls provide little
        information, coefficients are close to its maps of grey matter, white matter and remainder,
        each multiplied by one factor for the whole brain, because scanners differ. By default they
        are close to the coefficients of the whole brain there.
    times_mean : float
        Scale of the PET: see :func:`bids_app.imaging.intensity.scale_to_unit`. Unless it is 0, the
        mean of every PET in the brain is the reciprocal, and predictions are scaled to it.

    Raises
    ------
    ValueError
        If there are fewer participants, or a T1w does not show three tissues.
    """
    by_participant: dict[str, list[Volumes]] = {}
    for visit in visits:
        by_participant.setdefault(visit.owner.participant, []).append(visit)
    if len(by_participant) < FEWEST:
        raise ValueError(
            f"{len(by_participant)} participant is too few, {FEWEST} are needed; add controls"
        )
    controls = list(by_participant.values())
    zooms = visits[0].owner.zooms
    edges = [side * zoom for side, zoom in zip(spec.sides, zooms, strict=True)]

    def measure(members: Sequence[list[Volumes]], blurs: Sequence[float]) -> list[Moments]:
        """Sum the moments of some controls for each blur."""
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
    model.brain_mean.copy_(torch.tensor(1 / times_mean if times_mean else 0.0))
    model.psf_sigma.copy_(torch.tensor([psf_fwhm * SIGMA_OF_FWHM / zoom for zoom in zooms]))
    return model.eval()
