"""From a T1w volume to the PET that a generator predicts."""

from collections.abc import Iterator

import torch
from torch import nn

from bids_app.imaging.smoothing import smooth
from bids_app.imaging.volume import Volume
from bids_app.synthesis.tiling import Tiling


@torch.inference_mode()
def synthesize(
    t1w: Volume,
    generator: nn.Module,
    tiling: Tiling,
    *,
    fwhm: float,
    zooms: tuple[float, float, float],
    batch_size: int = 4,
) -> Volume:
    """Predict the PET of a T1w volume, tile by tile.

    Parameters
    ----------
    t1w : ndarray, (I, J, K)
        Intensities in [0, 1], 0 outside the brain, on the grid the generator was trained on.
    generator : nn.Module
        As :func:`bids_app.synthesis.weights.load_generator` returns it.
    tiling : Tiling
        How the generator sees a volume.
    fwhm : float
        Smoothing of the result, in mm: Zotova et al. (2021), section 2.1, last paragraph.
    zooms : tuple of float
        Voxel size in mm along each axis.
    batch_size : int
        Tiles the network sees at once; changes the memory needed, not the result.

    Returns
    -------
    ndarray, (I, J, K)
        float32 in [0, 1], not masked: smoothing carries some of it out of the brain.
    """
    device = next(generator.parameters()).device
    volume = torch.from_numpy(t1w)

    def answers() -> Iterator[torch.Tensor]:
        for indices in torch.arange(tiling.count(t1w.shape)).split(batch_size):
            tiles = torch.stack([tiling.cut(volume, int(index)) for index in indices])
            yield from generator(tiles.to(device)).float().cpu()

    return smooth(tiling.merge(answers(), t1w.shape).numpy(), fwhm, zooms)
