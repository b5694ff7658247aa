"""Slabs of transverse slices, which can be processed in any order, and packed controls.

The values of a slab are those of the brain's voxels, slice by slice, with the last axis of a slice
varying fastest. A detector stores its controls with 16 bits per voxel, in one file: for one-class
SVMs, only the indices and coefficients of the supporting controls are stored, and their latents
are recomputed from these images. That takes a tenth of the space of the latents, and reproduces
them exactly.
"""

import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from safetensors import safe_open

from bids_app.errors import MissingInputError, ReadWriteError, UnusableDataError
from bids_app.files import replacing
from bids_app.imaging.volume import Mask, Volume
from bids_app.strict import HEADER_SIZE, shapes_of

THICKNESS = 8  # slices at 1 mm; our choice: a minute or two of work per slab, and 17 slabs


@dataclass(frozen=True)
class Slab:
    """Slices ``first`` to ``last`` - 1 of a volume, along its third axis."""

    first: int
    last: int

    def slices(self) -> Iterator[int]:
        """Iterate over the slices in order."""
        return iter(range(self.first, self.last))


def thickness_of(resolution: float) -> int:
    """Return the number of slices per slab at a resolution in mm, with as many voxels as at 1 mm.

    Examples
    --------
    >>> thickness_of(1.0), thickness_of(2.0), thickness_of(4.0)
    (8, 32, 128)
    """
    return max(round(THICKNESS * resolution**2), 1)


def cut_slabs(depth: int, thickness: int) -> list[Slab]:
    """Divide the slices of a volume into slabs.

    Parameters
    ----------
    depth : int
        Number of slices of the volume.
    thickness : int
        Number of slices per slab; the last slab may have fewer.

    Returns
    -------
    list of Slab
        Disjoint slabs, in order, that cover all slices.

    Examples
    --------
    >>> cut_slabs(20, 8)
    [Slab(first=0, last=8), Slab(first=8, last=16), Slab(first=16, last=20)]
    """
    return [Slab(k, min(k + thickness, depth)) for k in range(0, depth, thickness)]


def count_voxels(brain: Mask, slab: Slab) -> int:
    """Count the brain voxels in a slab."""
    return int(brain[:, :, slab.first : slab.last].sum())


def values_of(volume: Volume, brain: Mask, slab: Slab) -> NDArray[np.float32]:
    """Extract the values of a slab from a volume, (voxels,)."""
    return np.concatenate([volume[..., k][brain[..., k]] for k in slab.slices()])


def _runs(brain: Mask, slab: Slab) -> Iterator[tuple[int, slice]]:
    """Yield each slice of a slab with the range of its values among those of the slab."""
    start = 0
    for k in slab.slices():
        end = start + int(brain[..., k].sum())
        yield k, slice(start, end)
        start = end


def mean_map(pieces: Iterable[tuple[Slab, NDArray[np.float32]]], brain: Mask, folds: int) -> Volume:
    """Assemble the slabs of several folds into a map of the mean over folds.

    Parameters
    ----------
    pieces : iterable of (Slab, ndarray)
        Values of every slab of every fold, in any order.
    brain : ndarray of bool, (I, J, K)
        Mask of the analysed brain.
    folds : int
        Number of folds.

    Returns
    -------
    ndarray of float32, (I, J, K)
        Mean map; 0 outside the brain.

    Raises
    ------
    ValueError
        If the number of values of a slab differs from its number of voxels.
    """
    total = np.zeros(brain.shape, np.float64)
    for slab, values in pieces:
        expected = count_voxels(brain, slab)
        if values.shape != (expected,):
            raise ValueError(f"{values.shape} values do not fill {expected} voxels")
        for k, run in _runs(brain, slab):
            total[..., k][brain[..., k]] += values[run]
    return (total / folds).astype(np.float32)


LEVELS = 65535  # largest value of 16 bits
AXES = (3, 4)  # number of axes of a volume, without and with channels
BYTES = {"U16": 2, "U8": 1}  # per value, by safetensors type
HOLE = "{}.hole"  # name of the mask of what a control's PET does not cover; absent if it covers all


def _quantize(volume: Volume) -> NDArray[np.uint16]:
    """Convert a volume, (I, J, K), in [0, 1] to 16 bits, (K, I, J); any channels stay before I."""
    if not np.isfinite(volume).all():
        raise UnusableDataError(
            "a control's PET contains NaN or infinity, so no detector can be trained on it; "
            "exclude the control"
        )
    levels = np.rint(np.clip(volume, 0, 1) * LEVELS).astype(np.uint16)
    return np.ascontiguousarray(np.moveaxis(levels, -1, 0))


def _slices_of(hole: Mask) -> NDArray[np.uint8]:
    """Convert a mask (I, J, K) to uint8, (K, I, J)."""
    return np.ascontiguousarray(np.moveaxis(hole, -1, 0).astype(np.uint8))


def pack_controls(volumes: Sequence[Volume], path: Path, holes: Sequence[Mask | None] = ()) -> None:
    """Write the PETs of controls to a file from which single slices can be read.

    The file is byte-identical to that of safetensors, but images are written one at a time, because
    500 at 1 mm take 4 GB.

    Parameters
    ----------
    volumes : sequence of ndarray, (I, J, K) or (channels, I, J, K)
        Images in [0, 1], on one grid; identified from here on by their index in this sequence.
    path : Path
        Path of the file; values are rounded to 1/65535.
    holes : sequence of ndarray of bool or None
        Brain voxels that each PET does not cover, (I, J, K), or None if it covers all. By default,
        every PET covers the brain.

    Raises
    ------
    ReadWriteError
        If the file cannot be written.
    """
    images = {f"{place}": volume for place, volume in enumerate(volumes)}
    masks = {HOLE.format(place): hole for place, hole in enumerate(holes) if hole is not None}
    parts: list[tuple[str, str, np.ndarray, Callable[..., np.ndarray]]]
    parts = [(name, "U16", images[name], _quantize) for name in sorted(images)]
    parts += [(name, "U8", masks[name], _slices_of) for name in sorted(masks)]
    header, end = {}, 0
    for name, kind, volume, _ in parts:
        *sides, depth = volume.shape
        begin, end = end, end + volume.size * BYTES[kind]
        header[name] = {"dtype": kind, "shape": [depth, *sides], "data_offsets": [begin, end]}
    header_bytes = json.dumps(header, separators=(",", ":")).encode()
    header_bytes += b" " * (-len(header_bytes) % HEADER_SIZE)
    try:
        with replacing(path) as partial, partial.open("wb") as file:
            file.write(len(header_bytes).to_bytes(HEADER_SIZE, "little") + header_bytes)
            for _, _, volume, convert in parts:
                file.write(convert(volume).data)
    except OSError as error:
        raise ReadWriteError(f"{path}: cannot be written ({error.strerror})") from error


class PackedControls:
    """PETs of controls in a file of :func:`pack_controls`, read slice by slice.

    Parameters
    ----------
    path : Path
        Path of the file.
    members : sequence of int
        Indices of the controls to use, in order.

    Raises
    ------
    MissingInputError
        If the file does not exist.
    UnusableDataError
        If the file is not of this kind, or lacks one of these controls.
    """

    def __init__(self, path: Path, members: Sequence[int]) -> None:
        if not path.is_file():
            raise MissingInputError(f"{path}: no such file; fit the detector again")
        self._path, self._members = path, [f"{member}" for member in members]
        try:
            shapes = shapes_of(path)
        except (OSError, ValueError) as error:
            raise UnusableDataError(
                f"{path}: not the controls of a detector ({error}); fit the detector again, or "
                "fetch it again"
            ) from error
        names = [HOLE.format(member) for member in self._members]
        self._holes = {place: name for place, name in enumerate(names) if name in shapes}
        lost = [member for member in self._members if member not in shapes]
        if lost:
            raise UnusableDataError(
                f"{path}: does not contain control {', '.join(lost)}; it belongs to another "
                "detector"
            )
        kinds = {shapes[member] for member in self._members}
        if len(kinds) > 1 or any(kind != "U16" or len(shape) not in AXES for kind, shape in kinds):
            raise UnusableDataError(
                f"{path}: its controls are not 16-bit volumes on one grid; fetch it again"
            )

    def __len__(self) -> int:
        return len(self._members)

    def slices(self, k: int) -> NDArray[np.float32]:
        """Read slice ``k`` of all members, (members, I, J), in [0, 1]; channels are before I."""
        with safe_open(self._path, framework="numpy") as file:
            levels = np.stack([file.get_slice(member)[k] for member in self._members])
        return levels.astype(np.float32) / np.float32(LEVELS)

    def holes(self, k: int) -> dict[int, Mask]:
        """Read the holes in slice ``k``, (I, J), keyed by the index of each member that has one."""
        if not self._holes:
            return {}
        with safe_open(self._path, framework="numpy") as file:
            holes = {place: file.get_slice(name)[k] > 0 for place, name in self._holes.items()}
        return {place: hole for place, hole in holes.items() if hole.any()}
