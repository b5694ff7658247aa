"""The voxelwise detector on a slab: latents of controls, one one-class SVM a voxel, scores.

Slice by slice: what is held is the latents of one slice, whatever the volume's size.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from bids_app.detection.encoding import latents_at
from bids_app.detection.networks import SiameseAutoencoder
from bids_app.detection.oneclass import VoxelwiseOneClassSVM
from bids_app.detection.slabs import Slab, count_voxels
from bids_app.detection.voxelmodels import VoxelModels, join, keep
from bids_app.imaging.volume import Mask, Volume


def _latents(
    encoder: SiameseAutoencoder, volumes: Sequence[Volume], brain: Mask, k: int
) -> NDArray[np.float32]:
    """Give the latents of one slice of many volumes, (voxels, volumes, latents)."""
    slices = np.stack([np.asarray(volume[..., k]) for volume in volumes])
    return latents_at(encoder, slices, brain[..., k])


def fit_slab(
    encoder: SiameseAutoencoder,
    controls: Sequence[Volume],
    brain: Mask,
    slab: Slab,
    *,
    nu: float,
    threads: int,
) -> VoxelModels:
    """Fit one one-class SVM to each of the brain's voxels in a slab.

    Parameters
    ----------
    encoder : SiameseAutoencoder
        Trained on these controls.
    controls : sequence of ndarray, (I, J, K)
        PET in [0, 1], on one grid; mapped from disk, they are read slice by slice.
    brain : ndarray of bool, (I, J, K)
        What is analysed.
    slab : Slab
        Which slices.
    nu : float
        Of the one-class SVM: 0.03, DESIGN, section 4.
    threads : int
        That share the voxels.
    """
    fitted = []
    for k in slab.slices():
        if brain[..., k].any():
            latents = _latents(encoder, controls, brain, k)
            fitted.append(keep(VoxelwiseOneClassSVM(nu=nu, threads=threads).fit(latents)))
    return join(fitted, encoder.latents)


def score_slab(
    encoder: SiameseAutoencoder,
    models: VoxelModels,
    volumes: Sequence[Volume],
    brain: Mask,
    slab: Slab,
    *,
    threads: int,
) -> NDArray[np.float32]:
    """Score the brain's voxels in a slab with models that were fitted to controls.

    Parameters
    ----------
    encoder, models : SiameseAutoencoder, VoxelModels
        Of one fold, and of this slab.
    volumes : sequence of ndarray, (I, J, K)
        PET in [0, 1] of those who are scored.
    brain, slab, threads
        As in :func:`fit_slab`.

    Returns
    -------
    ndarray of float32, (volumes, voxels)
        Minus the decision function: above 0 lies outside the boundary of controls. Voxels are in
        the order of :mod:`bids_app.detection.slabs`.

    Raises
    ------
    ValueError
        If the models are not those of the slab's voxels.
    """
    voxels = count_voxels(brain, slab)
    if voxels != len(models.n_support):
        raise ValueError(f"{len(models.n_support)} models do not fit the {voxels} voxels of a slab")
    scores = np.empty((len(volumes), voxels), np.float32)
    start = 0
    for k in slab.slices():
        run = slice(start, start + int(brain[..., k].sum()))
        if run.stop > run.start:
            latents = _latents(encoder, volumes, brain, k)
            estimator = models.part(run, threads=threads)
            scores[:, run] = -estimator.decision_function(latents).T
        start = run.stop
    return scores
