"""From a T1w volume to the PET that a generator predicts."""

from collections.abc import Iterator

import numpy as np
import torch
from torch import nn

from bids_app.imaging.smoothing import smooth
from bids_app.imaging.volume import Volume
from bids_app.synthesis.tiling import Tiling

ROUNDING = 1e-3  # of intensities, by which bfloat16 may leave [0, 1]; our choice
FLAT = 1e-4


@torch.inference_mode()
def predict(t1w: Volume, generator: nn.Module, tiling: Tiling, *, batch_size: int = 4) -> Volume:
    """Predict the PET of a T1w volume, tile by tile, and lay the tiles out as a volume.

    3D-patch generators see cubes, too, not the whole volume at once: their instance norm takes
    its means over what it sees, so that a whole volume would give another result than the cubes
    they were trained on.

    Parameters
    ----------
    t1w : ndarray, (I, J, K)
        Intensities in [0, 1], 0 outside the brain, on the grid the generator was trained on.
    generator : nn.Module
        As :func:`bids_app.synthesis.weights.load_generator` returns it.
    tiling : Tiling
        How the generator sees a volume.
    batch_size : int
        Tiles the network sees at once; changes the memory needed, not the result.

    Returns
    -------
    ndarray, (I, J, K)
        float32 in [0, 1]. Tiles without brain are 0, unseen by the generator.

    Raises
    ------
    FloatingPointError
        If a voxel is not finite, or beyond [0, 1] by more than rounding.
    """
    device = next(generator.parameters()).device
    volume = torch.from_numpy(t1w)

    def answers() -> Iterator[torch.Tensor]:
        for indices in torch.arange(tiling.count(t1w.shape)).split(batch_size):
            tiles = torch.stack([tiling.cut(volume, int(index)) for index in indices])
            seen = tiles.flatten(1).any(1)
            made = torch.zeros_like(tiles)
            if seen.any():
                made[seen] = generator(tiles[seen].to(device)).float().cpu()
            yield from made

    made = tiling.merge(answers(), t1w.shape).numpy()
    if not np.isfinite(made).all():
        raise FloatingPointError("the generator predicts what is not finite")
    if made.min() < -ROUNDING or made.max() > 1 + ROUNDING:
        raise FloatingPointError(
            f"the generator predicts {made.min():.3g} to {made.max():.3g}, where PET is 0 to 1"
        )
    return made


def refuse_flat(pet: Volume, t1w: Volume) -> None:
    """Refuse what a dead network predicts: the same in all of the brain, whatever the T1w is.

    Parameters
    ----------
    pet : ndarray, (I, J, K)
        Predicted, in [0, 1], not smoothed.
    t1w : ndarray, (I, J, K)
        That it was predicted from; 0 outside the brain.

    Raises
    ------
    FloatingPointError
        If intensities in the brain span no more than 1e-4, our choice: a PET spans most of 1.
    """
    brain = t1w > 0
    if brain.any() and np.ptp(t1w[brain]) > FLAT and np.ptp(pet[brain]) <= FLAT:
        raise FloatingPointError(
            f"the generator predicts {pet[brain].max():.4g} everywhere in the brain"
        )


def synthesize(
    t1w: Volume,
    generator: nn.Module,
    tiling: Tiling,
    *,
    fwhm: float,
    zooms: tuple[float, float, float],
    batch_size: int = 4,
) -> Volume:
    """Predict the PET of a T1w volume, and smooth it.

    Parameters
    ----------
    t1w, generator, tiling, batch_size
        As :func:`predict`.
    fwhm : float
        Smoothing of the result, in mm: Zotova et al. (2021), section 2.1, last paragraph.
    zooms : tuple of float
        Voxel size in mm along each axis.

    Returns
    -------
    ndarray, (I, J, K)
        float32 in [0, 1], not masked: smoothing carries some of it out of the brain.

    Raises
    ------
    FloatingPointError
        As :func:`predict` and :func:`refuse_flat`.
    """
    made = predict(t1w, generator, tiling, batch_size=batch_size)
    refuse_flat(made, t1w)
    return smooth(made, fwhm, zooms)
