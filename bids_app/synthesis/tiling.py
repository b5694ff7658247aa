"""Conversion between volumes and sequences of tiles, which are the inputs of a network.

This module does not import torch, because specs are read before anything is computed.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from itertools import product
from math import ceil, prod
from typing import TYPE_CHECKING, ClassVar, Protocol, TypeAlias

if TYPE_CHECKING:
    from torch import Tensor

Shape: TypeAlias = tuple[int, ...]
OWN_AXES = "RA"  # of a slice: the first axis points right, the second anterior
AXES = tuple(map("".join, [*product("RL", "AP"), *product("AP", "RL")]))
NO_TILES = "a volume without voxels has no tiles"


class Tiling(Protocol):
    """Conversion between a volume and a sequence of tiles."""

    spatial_dims: ClassVar[int]
    channels: ClassVar[int]

    def count(self, shape: Shape) -> int:
        """Return the number of tiles of a volume of this shape."""

    def cut(self, volume: Tensor, index: int) -> Tensor:
        """Cut one tile, (channels, *size), out of (I, J, K)."""

    def centre(self, volume: Tensor, index: int) -> Tensor:
        """Cut out the part of one tile that is kept when tiles are merged."""

    def merge(self, tiles: Iterable[Tensor], shape: Shape) -> Tensor:
        """Merge all tiles, in order, to a volume of this shape."""


def reorient(tile: Tensor, axes: str) -> Tensor:
    """Reorient slices, (…, I, J), for a network that was trained on another program's images.

    Parameters
    ----------
    tile : Tensor, (…, I, J)
        Slices whose first axis points right, and the second anterior.
    axes : str
        Directions of the axes of the result, one of ``AXES``: ``PR`` is a slice as displayed, rows
        from anterior to posterior, left on the left.

    Examples
    --------
    >>> import torch
    >>> reorient(torch.tensor([[0, 1, 2], [3, 4, 5]]), "PR").tolist()
    [[2, 5], [1, 4], [0, 3]]
    """
    if axes == OWN_AXES:
        return tile
    laid = tile.transpose(-2, -1) if axes[0] in "AP" else tile
    return laid.flip(_mirrored(axes))


def reorient_back(tile: Tensor, axes: str) -> Tensor:
    """Undo :func:`reorient`."""
    if axes == OWN_AXES:
        return tile
    laid = tile.flip(_mirrored(axes))
    return laid.transpose(-2, -1) if axes[0] in "AP" else laid


def _mirrored(axes: str) -> list[int]:
    return [place - 2 for place, letter in enumerate(axes) if letter in "LP"]


@dataclass(frozen=True)
class SliceTriplets:
    """Triplets of adjacent transverse slices, one slice per channel (semi-3D).

    Zotova et al. (2021), section 2.1, "Implementation details". Tiles are (3, I, J). The last
    triplet repeats the last slice if needed.

    Parameters
    ----------
    step : int
        Number of slices between the starts of neighbouring triplets: 3, as in the paper, is
        without overlap; with 1 or 2, a slice is in several triplets, and their predictions are
        averaged.
    axes : str
        Directions of the axes of a slice, see :func:`reorient`. If not ``RA``, tiles are turned
        for a generator that was trained elsewhere.

    Examples
    --------
    46 triplets per subject, as in section 3.2; one starting at every slice except the last two:

    >>> SliceTriplets().count((157, 189, 136)), SliceTriplets(step=1).count((157, 189, 136))
    (46, 134)
    """

    spatial_dims: ClassVar[int] = 2
    channels: ClassVar[int] = 3
    step: int = 3
    axes: str = OWN_AXES

    def __post_init__(self) -> None:
        if not 1 <= self.step <= self.channels:
            raise ValueError(f"triplets begin every 1 to {self.channels} slices, not {self.step}")
        _refuse_axes(self.axes)

    def count(self, shape: Shape) -> int:
        slices = shape[-1]
        return 1 + ceil(max(slices - self.channels, 0) / self.step) if slices else 0

    def cut(self, volume: Tensor, index: int) -> Tensor:
        first = self.step * index
        last = volume.shape[-1] - 1
        slices = [min(first + channel, last) for channel in range(self.channels)]
        return reorient(volume[..., slices].movedim(-1, 0), self.axes)

    def centre(self, volume: Tensor, index: int) -> Tensor:
        return self.cut(volume, index)

    def merge(self, tiles: Iterable[Tensor], shape: Shape) -> Tensor:
        volume: Tensor | None = None
        times = [0] * shape[-1]
        for index, turned in zip(range(self.count(shape)), tiles, strict=True):
            tile = reorient_back(turned, self.axes)
            volume = tile.new_zeros(shape) if volume is None else volume
            first = self.step * index
            for number, plane in zip(range(first, shape[-1]), tile, strict=False):
                volume[..., number] += plane
                times[number] += 1
        if volume is None:
            raise ValueError(NO_TILES)
        return volume.div_(volume.new_tensor(times))


def _refuse_axes(axes: str) -> None:
    if axes not in AXES:
        raise ValueError(f"the axes of a slice are one of {', '.join(AXES)}, not {axes!r:.20}")


@dataclass(frozen=True)
class SingleSlices:
    """Single transverse slices, each of them a tile, (1, I, J).

    Not in the paper; for generators that were trained elsewhere.

    Parameters
    ----------
    axes : str
        Directions of the axes of a slice; see :class:`SliceTriplets`.
    """

    spatial_dims: ClassVar[int] = 2
    channels: ClassVar[int] = 1
    axes: str = OWN_AXES

    def __post_init__(self) -> None:
        _refuse_axes(self.axes)

    def count(self, shape: Shape) -> int:
        return shape[-1]

    def cut(self, volume: Tensor, index: int) -> Tensor:
        return reorient(volume[..., index].unsqueeze(0), self.axes)

    def centre(self, volume: Tensor, index: int) -> Tensor:
        return self.cut(volume, index)

    def merge(self, tiles: Iterable[Tensor], shape: Shape) -> Tensor:
        volume: Tensor | None = None
        for index, turned in zip(range(shape[-1]), tiles, strict=True):
            tile = reorient_back(turned, self.axes)
            volume = tile.new_empty(shape) if volume is None else volume
            volume[..., index] = tile[0]
        if volume is None:
            raise ValueError(NO_TILES)
        return volume


def overlap(tiling: Tiling) -> SliceTriplets:
    """Return a tiling with a triplet starting at every slice, whose predictions are averaged.

    Raises
    ------
    ValueError
        If tiles are not triplets: cubes overlap already, single slices and a whole volume cannot.
    """
    if not isinstance(tiling, SliceTriplets):
        raise ValueError("only triplets of slices can be made to overlap")
    return replace(tiling, step=1)


@dataclass(frozen=True)
class CubicPatches:
    """Overlapping cubes, of which only the centre is kept (3D-patch).

    Zotova et al. (2021), sections 2.1 and 3.2. Tiles are (1, size, size, size), smaller if the
    volume is. The last cube along an axis is shifted back to end with the volume.

    Parameters
    ----------
    size : int
        Edge of a cube in voxels.
    stride : int
        Number of voxels between the starts of neighbouring cubes; the margins of a cube are
        ``size - stride`` voxels wide in total, half of that at either end.

    Examples
    --------
    The count of section 3.2 fits a volume of 156 slices, not the 136 that section 3.1 gives:

    >>> CubicPatches().count((157, 189, 156)), CubicPatches().count((157, 189, 136))
    (6069, 4998)
    """

    spatial_dims: ClassVar[int] = 3
    channels: ClassVar[int] = 1
    size: int = 32
    stride: int = 8

    def _starts(self, side: int) -> list[int]:
        last = max(side - self.size, 0)
        return [*range(0, last, self.stride), last]

    def _corners(self, shape: Shape) -> Iterator[Shape]:
        return product(*(self._starts(side) for side in shape))

    def count(self, shape: Shape) -> int:
        return prod(len(self._starts(side)) for side in shape)

    def _corner(self, shape: Shape, index: int) -> Shape:
        corner = []
        for side in reversed(shape):
            starts = self._starts(side)
            index, place = divmod(index, len(starts))
            corner.append(starts[place])
        return tuple(reversed(corner))

    def cut(self, volume: Tensor, index: int) -> Tensor:
        corner = self._corner(tuple(volume.shape), index)
        return volume[tuple(slice(start, start + self.size) for start in corner)].unsqueeze(0)

    def centre(self, volume: Tensor, index: int) -> Tensor:
        shape = tuple(volume.shape)
        return volume[
            tuple(map(self._centre_of_cube, self._corner(shape, index), shape))
        ].unsqueeze(0)

    def _centre_of_cube(self, start: int, side: int) -> slice:
        """Return the voxels along an axis that are kept of the cube that starts there."""
        margin = (self.size - self.stride) // 2
        last = start + self.size >= side
        return slice(start + margin if start else 0, side if last else start + margin + self.stride)

    def merge(self, tiles: Iterable[Tensor], shape: Shape) -> Tensor:
        # Each cube leaves out its leading margin and overwrites the trailing margins of earlier
        # cubes, so that the centre of every cube remains.
        margin = (self.size - self.stride) // 2
        volume: Tensor | None = None
        for corner, tile in zip(self._corners(shape), tiles, strict=True):
            if volume is None:
                volume = tile.new_empty(shape)
            margins = [margin if start else 0 for start in corner]
            target = tuple(
                slice(s + k, s + self.size) for s, k in zip(corner, margins, strict=True)
            )
            volume[target] = tile[0][tuple(slice(k, None) for k in margins)]
        if volume is None:
            raise ValueError(NO_TILES)
        return volume


@dataclass(frozen=True)
class WholeVolume:
    """The whole volume as one tile, (1, I, J, K), for the tissue model."""

    spatial_dims: ClassVar[int] = 3
    channels: ClassVar[int] = 1

    def count(self, shape: Shape) -> int:
        return int(prod(shape) > 0)

    def cut(self, volume: Tensor, index: int) -> Tensor:
        if index:
            raise IndexError("a whole volume is one tile")
        return volume.unsqueeze(0)

    def centre(self, volume: Tensor, index: int) -> Tensor:
        return self.cut(volume, index)

    def merge(self, tiles: Iterable[Tensor], shape: Shape) -> Tensor:
        if not self.count(shape):
            raise ValueError(NO_TILES)
        (tile,) = tiles
        return tile[0].clone()
