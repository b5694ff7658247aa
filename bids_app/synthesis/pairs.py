"""T1w and PET of one person, and batches of their tiles."""

from dataclasses import dataclass

import torch
from torch import Tensor

from bids_app.synthesis.tiling import Tiling


@dataclass(frozen=True)
class Pair:
    """T1w and PET of one person on one grid.

    Parameters
    ----------
    mri, pet : Tensor, (I, J, K)
        float32 in [0, 1], 0 outside the brain; may lie on disk, mapped.
    places : tuple of int
        Tiles that count: with brain, and covered by the PET; empty where all tiles are used.
    """

    mri: Tensor
    pet: Tensor
    places: tuple[int, ...] = ()


@dataclass(frozen=True)
class Batch:
    """Tiles of true pairs: all of a batch, or one process's share of it.

    Parameters
    ----------
    mri, pet : Tensor, (N, channels, *size)
        In [0, 1].
    total : int
        Samples of the whole batch.
    """

    mri: Tensor
    pet: Tensor
    total: int

    def to(self, device: torch.device) -> "Batch":
        """Move it to a device, channels innermost, where networks expect them."""
        layout = torch.channels_last if self.mri.ndim == 4 else torch.channels_last_3d  # noqa: PLR2004
        move = {"device": device, "memory_format": layout}
        return Batch(self.mri.to(**move), self.pet.to(**move), self.total)  # type: ignore[call-overload]


def brain_tiles(tiling: Tiling, brain: Tensor) -> tuple[int, ...]:
    """List the tiles whose centre, the part that is kept of them, has brain.

    Parameters
    ----------
    tiling : Tiling
        How a volume is cut.
    brain : Tensor of bool, (I, J, K)
        The brain.
    """
    shape = tuple(brain.shape)
    return tuple(index for index in range(tiling.count(shape)) if tiling.centre(brain, index).any())


def whole_tiles(tiling: Tiling, hole: Tensor) -> tuple[int, ...]:
    """List the tiles that hold nothing of a hole.

    Parameters
    ----------
    tiling : Tiling
        How a volume is cut.
    hole : Tensor of bool, (I, J, K)
        What is brain, but was not covered by the PET.
    """
    shape = tuple(hole.shape)
    return tuple(index for index in range(tiling.count(shape)) if not tiling.cut(hole, index).any())
