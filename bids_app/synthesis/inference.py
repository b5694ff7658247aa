"""From a T1w volume to the PET that a generator predicts."""

from collections.abc import Iterator

import torch
from torch import nn

from bids_app.imaging.smoothing import smooth
from bids_app.imaging.volume import Volume
from bids_app.synthesis.tiling import Tiling


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

    return tiling.merge(answers(), t1w.shape).numpy()


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
    """
    return smooth(predict(t1w, generator, tiling, batch_size=batch_size), fwhm, zooms)
