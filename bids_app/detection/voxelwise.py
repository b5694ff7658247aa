"""The voxelwise detector on a slab: latents of controls, one one-class SVM a voxel, scores.

Slice by slice: what is held is the latents of one slice, whatever the volume's size.

Latents are centred on the mean of the controls at each voxel (our choice). The kernel would not
notice; but gamma, 1 / (features × variance of all entries), would take the differences between
the means of latents for spread, and the kernel would be so wide that it sees next to nothing
(docs/results/detection.md).
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from bids_app.detection.encoding import latents_at
from bids_app.detection.networks import SiameseAutoencoder
from bids_app.detection.oneclass import VoxelwiseOneClassSVM
from bids_app.detection.packed import PackedControls
from bids_app.detection.slabs import Slab, count_voxels
from bids_app.detection.voxelmodels import VoxelModels, join, keep
from bids_app.errors import UnusableDataError
from bids_app.imaging.volume import Mask, Volume


@dataclass(frozen=True)
class FoldOnSlab:
    """A fold's part in a slab.

    Parameters
    ----------
    encoder : SiameseAutoencoder
        Trained on the fold's controls.
    controls : PackedControls
        PET of those.
    brain : ndarray of bool, (I, J, K)
        What is analysed.
    slab : Slab
        Which slices.
    threads : int
        That share the voxels.
    """

    encoder: SiameseAutoencoder
    controls: PackedControls
    brain: Mask
    slab: Slab
    threads: int

    def slices(self) -> list[int]:
        """List the slices that have brain."""
        return [k for k in self.slab.slices() if self.brain[..., k].any()]

    def latents(self, k: int) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Give latents of controls in a slice, centred, (voxels, controls, latents), and means."""
        found = latents_at(self.encoder, self.controls.slices(k), self.brain[..., k])
        if not np.isfinite(found).all():
            raise UnusableDataError(
                f"latents of controls in slice {k} are not finite, so no one-class SVM can be "
                "fitted; train the encoder again"
            )
        mean = found.mean(axis=1, keepdims=True)
        return found - mean, mean

    def score(
        self, fitted: VoxelwiseOneClassSVM, volumes: Sequence[Volume], k: int, mean: np.ndarray
    ) -> NDArray[np.float32]:
        """Score others in a slice, (volumes, voxels)."""
        slices = np.stack([np.asarray(volume[..., k]) for volume in volumes])
        latents = latents_at(self.encoder, slices, self.brain[..., k]) - mean
        return -fitted.decision_function(latents).T.astype(np.float32)


def fit_slab(
    fold: FoldOnSlab, scored: Sequence[Volume], *, nu: float
) -> tuple[VoxelModels, NDArray[np.float32]]:
    """Fit one one-class SVM to each of the brain's voxels in a slab, and score others with them.

    Parameters
    ----------
    fold : FoldOnSlab
        Controls, and where.
    scored : sequence of ndarray, (I, J, K)
        PET in [0, 1] of those who are scored; mapped from disk, they are read slice by slice.
    nu : float
        Of the one-class SVM: 0.03, DESIGN, section 4.

    Returns
    -------
    VoxelModels
        Voxel by voxel.
    ndarray of float32, (scored, voxels)
        Minus the decision function: above 0 lies outside the boundary of the controls of the fold,
        as much of the brain of others does, too. Voxels are in the order of
        :mod:`bids_app.detection.slabs`.
    """
    models, scores = [], [np.zeros((len(scored), 0), np.float32)]
    for k in fold.slices():
        latents, mean = fold.latents(k)
        fitted = VoxelwiseOneClassSVM(nu=nu, threads=fold.threads).fit(latents)
        models.append(keep(fitted))
        scores.append(fold.score(fitted, scored, k, mean))
    return join(models), np.concatenate(scores, axis=1)


def score_slab(
    fold: FoldOnSlab, models: VoxelModels, scored: Sequence[Volume]
) -> NDArray[np.float32]:
    """Score the brain's voxels in a slab with models that were fitted before.

    Parameters
    ----------
    fold : FoldOnSlab
        As it was fitted.
    models : VoxelModels
        Of this fold and slab.
    scored : sequence of ndarray, (I, J, K)
        As in :func:`fit_slab`; scores are those it gives, but for rounding.

    Raises
    ------
    ValueError
        If the models are not those of the slab's voxels.
    """
    voxels = count_voxels(fold.brain, fold.slab)
    if voxels != len(models.n_support):
        raise ValueError(f"{len(models.n_support)} models do not fit the {voxels} voxels of a slab")
    scores = [np.zeros((len(scored), 0), np.float32)]
    start = 0
    for k in fold.slices():
        run = slice(start, start + int(fold.brain[..., k].sum()))
        latents, mean = fold.latents(k)
        fitted = models.part(run, latents, threads=fold.threads)
        scores.append(fold.score(fitted, scored, k, mean))
        start = run.stop
    return np.concatenate(scores, axis=1)
