"""Voxelwise detector on a slab: latents of controls, one one-class SVM per voxel, and scores.

Slabs are processed slice by slice: only the dense maps of one slice are in memory, whatever the
size of the volume, and the latents of a piece of it in each thread.

Latents are centred on the mean of the controls at each voxel (our choice). The kernel itself does
not change, but gamma, 1 / (features × variance of all entries), would otherwise include the
differences between the means of latents in the variance, and the kernel would be too wide to be
informative (docs/results/detection.md).

A PET may not cover part of the brain: a *hole*. A control is used at a voxel if its patch there
does not touch a hole; a voxel with too few such controls has no model, and a score from a patch
that touches a hole is NaN. The coefficients of a one-class SVM sum to nu times its number of
samples, so those of a voxel with fewer controls are scaled up, to keep the scores of all voxels on
one scale. The indices and coefficients of the controls that support each voxel's SVM are stored on
disk.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load, save

from bids_app.detection.autoencoder import (
    SiameseAutoencoder,
    gather,
    latent_maps,
    latent_places,
    whole_patches,
)
from bids_app.detection.covariates import adjust, fit_slopes
from bids_app.detection.evaluation import least_controls
from bids_app.detection.oneclass import VoxelwiseOneClassSVM, share
from bids_app.detection.slabs import PackedControls, Slab, count_voxels
from bids_app.errors import MissingInputError, ReadWriteError, UnusableDataError
from bids_app.files import write_bytes
from bids_app.imaging.volume import Mask, Volume
from bids_app.strict import shapes_of

KINDS: dict[str, type[np.generic]] = {
    "n_support": np.uint16,
    "support": np.uint16,
    "dual_coef": np.float32,
    "gamma": np.float32,
    "offset": np.float64,
}
NAMES = tuple(KINDS)
SLICES = 3  # number of axes of slices without channels


@dataclass(frozen=True)
class VoxelModels:
    """One-class SVMs of the voxels of a slab.

    Parameters
    ----------
    n_support : ndarray of uint16, (voxels,)
        Number of controls that support each voxel.
    support : ndarray of uint16, (total,)
        Indices of these controls among those of the fold, voxel by voxel.
    dual_coef : ndarray of float32, (total,)
        Coefficients of these controls.
    gamma : ndarray of float32, (voxels,)
        Gamma of the kernel.
    offset : ndarray of float64, (voxels,)
        Score on the boundary.
    """

    n_support: NDArray[np.uint16]
    support: NDArray[np.uint16]
    dual_coef: NDArray[np.float32]
    gamma: NDArray[np.float32]
    offset: NDArray[np.float64]

    def part(self, voxels: slice, latents: NDArray[np.float32]) -> VoxelwiseOneClassSVM:
        """Create the estimator of some of the voxels, which uses one thread.

        Parameters
        ----------
        voxels : slice
            Range of the voxels.
        latents : ndarray, (voxels, controls, features)
            Latents of the fold's controls at these voxels, as used for fitting.
        """
        counts = self.n_support[voxels].astype(np.int64)
        begin = int(self.n_support[: voxels.start].sum(dtype=np.int64))
        entries = slice(begin, begin + int(counts.sum()))
        owners = np.repeat(np.arange(len(counts)), counts)
        return VoxelwiseOneClassSVM.from_support(
            latents[owners, self.support[entries]],
            self.dual_coef[entries],
            counts,
            gamma=self.gamma[voxels],
            offset=self.offset[voxels],
            threads=1,
        )


def models_of(estimator: VoxelwiseOneClassSVM) -> VoxelModels:
    """Return what is stored of an estimator; with the controls' latents, it can be recreated."""
    return VoxelModels(
        n_support=estimator.n_support_.astype(np.uint16),
        support=estimator.support_.astype(np.uint16),
        dual_coef=estimator.dual_coef_.astype(np.float32),
        gamma=estimator.gamma_.astype(np.float32),
        offset=estimator.offset_.astype(np.float64),
    )


def join(parts: Sequence[VoxelModels]) -> VoxelModels:
    """Concatenate the models of consecutive voxels; without parts, return models of no voxels."""
    integers, singles = np.zeros(0, np.uint16), np.zeros(0, np.float32)
    every = [VoxelModels(integers, integers, singles, singles, np.zeros(0)), *parts]
    return VoxelModels(
        *(np.concatenate([getattr(models, name) for models in every]) for name in NAMES)
    )


def save_models(path: Path, models: VoxelModels) -> None:
    """Write models atomically.

    Raises
    ------
    ReadWriteError
        If the file cannot be written.
    UnusableDataError
        If the models contain a number that is not finite; nothing is written.
    """
    try:
        _refuse_odd(models)
    except ValueError as error:
        raise UnusableDataError(
            f"{path.name}: {error}, so these one-class SVMs have failed; look for controls whose "
            "PET is not within 0..1, and leave them out"
        ) from error
    write_bytes(path, save({name: getattr(models, name) for name in NAMES}))


def _refuse_odd(models: VoxelModels) -> None:
    for name, kind in KINDS.items():
        array = getattr(models, name)
        if array.dtype != kind or array.ndim != 1:
            raise ValueError(f"{name} is {array.dtype} of {array.ndim} axes, not {kind.__name__}")
        finite = np.isfinite(array)
        if (
            name == "offset" and array.shape == models.n_support.shape
        ):  # NaN, without support, where too few controls cover the voxel
            finite |= np.isnan(array) & (models.n_support == 0)
        if not finite.all():
            raise ValueError(f"{name} contains NaN or infinity")
    if (models.gamma < 0).any():
        raise ValueError("gamma is below 0")


def load_models(path: Path) -> VoxelModels:
    """Read models.

    Raises
    ------
    MissingInputError
        If the file does not exist.
    ReadWriteError
        If the file cannot be read.
    UnusableDataError
        If the file does not contain models.
    """
    if not path.is_file():
        raise MissingInputError(f"{path}: no such file; fit the detector again, or fetch it again")
    try:
        shapes_of(path)
        models = VoxelModels(**load(path.read_bytes()))
        _refuse_odd(models)
        total = {int(models.n_support.sum(dtype=np.int64)), len(models.support)}
        voxels = {len(models.n_support), len(models.gamma), len(models.offset)}
        if len(total | {len(models.dual_coef)}) > 1 or len(voxels) > 1:
            raise ValueError("the lengths of its arrays do not match")
    except OSError as error:
        raise ReadWriteError(f"{path}: cannot be read ({error.strerror})") from error
    except (SafetensorError, TypeError, ValueError) as error:
        raise UnusableDataError(
            f"{path}: not the one-class SVMs of a detector ({error}); fit the detector again, or "
            "fetch it again"
        ) from error
    return models


Fit: TypeAlias = Callable[
    [slice, NDArray[np.float32], NDArray[np.bool_] | None], tuple[VoxelModels, VoxelwiseOneClassSVM]
]


@dataclass(frozen=True)
class FoldOnSlab:
    """Encoder and controls of a fold, applied to a slab.

    Parameters
    ----------
    encoder : SiameseAutoencoder
        Encoder trained on the fold's controls.
    controls : PackedControls
        PET of these controls.
    brain : ndarray of bool, (I, J, K)
        Mask of the analysed brain.
    slab : Slab
        Slices to process.
    threads : int
        Number of threads that share the voxels.
    direction : {"hypo", "hyper", "both"}
        Whether uptake below the mean of controls, above it, or both score higher.
    rows : ndarray, (controls, numbers), optional
        Covariates of the controls, for which all PETs are adjusted before they are encoded; see
        :mod:`bids_app.detection.covariates`.
    """

    encoder: SiameseAutoencoder
    controls: PackedControls
    brain: Mask
    slab: Slab
    threads: int
    direction: str
    rows: NDArray[np.float64] | None = None

    def slices(self) -> list[int]:
        """List the slices that contain brain."""
        return [k for k in self.slab.slices() if self.brain[..., k].any()]

    def known(self, k: int) -> NDArray[np.bool_] | None:
        """Return a mask of the controls used at each voxel of a slice, or None if all are.

        Its shape is (voxels, controls).
        """
        holes = self.controls.holes(k)
        if not holes:
            return None
        brain = self.brain[..., k]
        known = np.ones((int(brain.sum()), len(self.controls)), bool)
        for place, hole in holes.items():
            known[:, place] = self._whole(hole)[brain]
        return known

    def read(self, k: int) -> tuple[NDArray[np.float32], NDArray[np.float32] | None]:
        """Read slice ``k`` of all controls, (controls, I, J), adjusted for covariates.

        A T1w beside the PET is left unchanged; channels, if any, are before I.

        The change of uptake with covariates, (numbers, I, J), is returned as well; None without
        covariates.
        """
        slices = self.controls.slices(k)
        if self.rows is None:
            return slices, None
        pets = pets_of(slices).copy()
        for place, hole in self.controls.holes(k).items():
            pets[place][hole] = np.nan
        slopes = fit_slopes((pet.ravel() for pet in pets), self.rows)
        slopes = slopes.reshape(-1, *pets.shape[1:])
        _adjust_all(slices, self.rows, slopes)
        return slices, slopes

    def _mean_uptake(self, slices: NDArray[np.float32], k: int) -> NDArray[np.float32]:
        """Average the controls whose PET covers each voxel of a slice, (I, J)."""
        pets = pets_of(slices)
        known = np.ones(pets.shape, bool)
        for place, hole in self.controls.holes(k).items():
            known[place] = ~hole
        counts = np.maximum(known.sum(axis=0), 1).astype(np.float32)
        return np.asarray(np.sum(pets, axis=0, where=known) / counts)  # 0 where none does

    def _whole(self, hole: NDArray[np.bool_]) -> NDArray[np.bool_]:
        return whole_patches(hole[..., np.newaxis], self.encoder.patch)[..., 0]

    def encode(self, slices: NDArray[np.float32], k: int) -> NDArray[np.float32]:
        """Return dense maps of the latents of slice ``k`` of several people.

        Raises
        ------
        UnusableDataError
            If the latents are not finite.
        """
        maps = latent_maps(self.encoder, slices)
        if not np.isfinite(maps).all():
            raise UnusableDataError(
                f"latents of controls in slice {k} are not finite, so no one-class SVM can be "
                "fitted; train the encoder again"
            )
        return maps

    def score(
        self,
        fit: Fit,
        scored: Sequence[Volume],
        holes: Sequence[Mask | None],
        k: int,
        *,
        rows: Sequence[Sequence[float]],
    ) -> tuple[list[VoxelModels], NDArray[np.float32]]:
        """Fit the models of a slice, piece by piece in threads, and score other images with them.

        Parameters
        ----------
        fit : callable
            Function that returns the models of a piece and their estimator, given the range of its
            voxels in the slice, the controls' centred latents, and a mask of the controls used, or
            None for all.
        scored, holes, rows
            See :func:`fit_slab`.
        k : int
            Index of the slice.

        Returns
        -------
        list of VoxelModels
            Models of the pieces, in order.
        ndarray of float32, (scored, voxels)
            Scores; NaN where unknown.
        """
        brain, known = self.brain[..., k], self.known(k)
        controls, slopes = self.read(k)
        slices = np.stack([np.asarray(volume[..., k]) for volume in scored])
        if slopes is not None:
            _adjust_all(slices, rows, slopes)
        control_maps = self.encode(controls, k)
        scored_maps = latent_maps(self.encoder, slices)
        places = latent_places(brain, self.encoder.side)

        def work(part: slice) -> tuple[VoxelModels, NDArray[np.float32]]:
            latents = gather(control_maps, places[part])
            counted = None if known is None else known[part]
            mean = _centre(latents, counted)
            models, fitted = fit(part, latents, counted)
            scored_latents = gather(scored_maps, places[part])
            scored_latents -= mean
            return models, -fitted.decision_function(scored_latents).T.astype(np.float32)

        parts = share(work, len(places), self.threads)
        scores = np.concatenate([piece for _, piece in parts], axis=1)
        if self.direction != "both":
            excess = pets_of(slices)[:, brain] - self._mean_uptake(controls, k)[brain]
            scores = sign_scores(scores, excess if self.direction == "hyper" else -excess)
        for row, hole in enumerate(holes):
            if hole is not None and hole[..., k].any():
                scores[row, ~self._whole(hole[..., k])[brain]] = np.nan
        return [models for models, _ in parts], scores


def _centre(latents: NDArray[np.float32], known: NDArray[np.bool_] | None) -> NDArray[np.float32]:
    """Centre the controls' latents at each voxel, in place, and return their mean.

    ``known`` is a mask of the controls used, (voxels, controls), or None for all.
    """
    if known is None:
        mean = latents.mean(axis=1, keepdims=True)
    else:
        counts = np.maximum(known.sum(axis=1), 1).astype(np.float32)
        mean = (latents * known[..., np.newaxis]).sum(axis=1) / counts[:, np.newaxis]
        mean = mean[:, np.newaxis]
    latents -= mean
    return mean


def pets_of(slices: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return a view of the PET, the first channel, of slices with or without channels.

    Parameters
    ----------
    slices : ndarray, (S, I, J) or (S, channels, I, J)
        Slices of S people.

    Returns
    -------
    ndarray, (S, I, J)
    """
    return slices if slices.ndim == SLICES else slices[:, 0]


def _adjust_all(
    slices: NDArray[np.float32],
    rows: Sequence[Sequence[float]] | NDArray[np.float64],
    slopes: NDArray[np.float32],
) -> None:
    """Adjust PETs for covariates, in place."""
    for pet, row in zip(pets_of(slices), rows, strict=True):
        pet[:] = adjust(pet, row, slopes)


def sign_scores(scores: NDArray[np.float32], agreement: NDArray[np.float32]) -> NDArray[np.float32]:
    """Convert scores of one-class SVMs, which have no direction, to scores of one direction.

    Our choice: where uptake differs from the controls' mean in the other direction, nothing is
    abnormal, and the score is minus its absolute value, so that noise in both directions cancels
    when maps are smoothed.

    Parameters
    ----------
    scores : ndarray, (scored, voxels)
        Scores; above 0 is outside the boundary.
    agreement : ndarray, (scored, voxels)
        Above 0 where uptake differs in the direction of interest.

    Examples
    --------
    >>> scores = np.array([0.5, -0.25, 0.5, -0.25], np.float32)
    >>> sign_scores(scores, np.array([1, 1, -1, -1], np.float32)).tolist()
    [0.5, -0.25, -0.5, -0.25]
    """
    return np.where(agreement > 0, scores, -np.abs(scores))


def _fit_by_pattern(
    latents: NDArray[np.float32], known: NDArray[np.bool_], nu: float
) -> VoxelModels:
    """Fit voxels where not all controls are used, together with others that have the same controls.

    Parameters
    ----------
    latents : ndarray, (voxels, controls, latents)
        Centred latents.
    known : ndarray of bool, (voxels, controls)
        Mask of the controls used at each voxel.
    nu : float
        Nu of the one-class SVM.

    Returns
    -------
    VoxelModels
        Models; voxels with too few controls have no support and an offset of NaN.
    """
    n_voxels, n_controls = known.shape
    alphas = np.zeros((n_voxels, n_controls), np.float32)
    gamma, offset = np.ones(n_voxels, np.float32), np.full(n_voxels, np.nan)
    patterns, inverse = np.unique(known, axis=0, return_inverse=True)
    for number, pattern in enumerate(patterns):
        members = np.flatnonzero(pattern)
        if len(members) < least_controls(n_controls):
            continue
        voxels = np.flatnonzero(inverse.ravel() == number)
        models = models_of(VoxelwiseOneClassSVM(nu=nu, threads=1).fit(latents[voxels][:, members]))
        scale = n_controls / len(members)
        owners = np.repeat(voxels, models.n_support)
        alphas[owners, members[models.support]] = scale * models.dual_coef
        gamma[voxels], offset[voxels] = models.gamma, scale * models.offset
    supporting = alphas > 0
    return VoxelModels(
        n_support=supporting.sum(axis=1).astype(np.uint16),
        support=np.nonzero(supporting)[1].astype(np.uint16),
        dual_coef=alphas[supporting],
        gamma=gamma,
        offset=offset,
    )


def fit_slab(
    fold: FoldOnSlab,
    scored: Sequence[Volume],
    *,
    nu: float,
    holes: Sequence[Mask | None] = (),
    rows: Sequence[Sequence[float]] = (),
) -> tuple[VoxelModels, NDArray[np.float32]]:
    """Fit a one-class SVM to each brain voxel in a slab, and score other images with them.

    Parameters
    ----------
    fold : FoldOnSlab
        Controls and slab.
    scored : sequence of ndarray, (I, J, K) or (channels, I, J, K)
        PET in [0, 1] of the people to score, with T1w if the encoder uses it; memory-mapped volumes
        are read slice by slice.
    nu : float
        Nu of the one-class SVM.
    holes : sequence of ndarray of bool or None
        Brain voxels that each scored PET does not cover, (I, J, K), or None if it covers all. By
        default, every PET covers the brain.
    rows : sequence of sequence of float
        Covariates of the people to score, if the fold has those of its controls.

    Returns
    -------
    VoxelModels
        Models of the voxels.
    ndarray of float32, (scored, voxels)
        Minus the decision function: above 0 lies outside the boundary of the fold's controls, as
        does much of the brain of other people. NaN where the patch touches a hole, or too
        few controls cover the voxel. Voxels are in the order of :mod:`bids_app.detection.slabs`.
    """

    def fit(
        part: slice,  # noqa: ARG001 - see Fit
        latents: NDArray[np.float32],
        known: NDArray[np.bool_] | None,
    ) -> tuple[VoxelModels, VoxelwiseOneClassSVM]:
        if known is None:
            fitted = VoxelwiseOneClassSVM(nu=nu, threads=1).fit(latents)
            return models_of(fitted), fitted
        models = _fit_by_pattern(latents, known, nu)
        return models, models.part(slice(0, len(latents)), latents)

    models, scores = [], [np.zeros((len(scored), 0), np.float32)]
    for k in fold.slices():
        slice_models, slice_scores = fold.score(fit, scored, holes, k, rows=rows)
        models.extend(slice_models)
        scores.append(slice_scores)
    return join(models), np.concatenate(scores, axis=1)


def score_slab(
    fold: FoldOnSlab,
    models: VoxelModels,
    scored: Sequence[Volume],
    holes: Sequence[Mask | None] = (),
    rows: Sequence[Sequence[float]] = (),
) -> NDArray[np.float32]:
    """Score the brain voxels in a slab with models fitted before.

    Parameters
    ----------
    fold : FoldOnSlab
        The same fold and slab as in fitting.
    models : VoxelModels
        Models of this fold and slab.
    scored, holes, rows
        See :func:`fit_slab`; scores are the same, except for rounding.

    Raises
    ------
    ValueError
        If the number of models differs from the number of voxels of the slab.
    """
    voxels = count_voxels(fold.brain, fold.slab)
    if voxels != len(models.n_support):
        raise ValueError(f"{len(models.n_support)} models do not fit the {voxels} voxels of a slab")
    scores = [np.zeros((len(scored), 0), np.float32)]
    start = 0
    for k in fold.slices():

        def reuse(
            part: slice,
            latents: NDArray[np.float32],
            known: NDArray[np.bool_] | None,  # noqa: ARG001 - see Fit
            first: int = start,
        ) -> tuple[VoxelModels, VoxelwiseOneClassSVM]:
            voxels = slice(first + part.start, first + part.stop)
            return models, models.part(voxels, latents)

        scores.append(fold.score(reuse, scored, holes, k, rows=rows)[1])
        start += int(fold.brain[..., k].sum())
    return np.concatenate(scores, axis=1)
