"""Controls as a detector keeps them: 16 bits a voxel, slice by slice, in one file.

A one-class SVM is told by which controls support it, and how much; their latents are computed
again from these images. That is a tenth of the latents, and the same to the last bit.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from bids_app.errors import MissingInputError, ReadWriteError, UnusableDataError
from bids_app.imaging.volume import Mask, Volume
from bids_app.strict import shapes_of

LEVELS = 65535  # of 16 bits
AXES = 3
HOLE = "{}.hole"  # name of what a control's PET lacks; there for those alone that lack something


def _quantize(volume: Volume) -> NDArray[np.uint16]:
    """Turn (I, J, K) in [0, 1] into (K, I, J) of 16 bits."""
    if not np.isfinite(volume).all():
        raise UnusableDataError(
            "a control's PET holds NaN or infinity, so no detector can be trained on it; exclude it"
        )
    levels = np.rint(np.clip(volume, 0, 1) * LEVELS).astype(np.uint16)
    return np.ascontiguousarray(np.moveaxis(levels, 2, 0))


def pack_controls(volumes: Sequence[Volume], path: Path, holes: Sequence[Mask | None] = ()) -> None:
    """Write the PETs of controls, so that slices of them can be read.

    Parameters
    ----------
    volumes : sequence of ndarray, (I, J, K)
        In [0, 1], on one grid; known from here on by their place in this sequence.
    path : Path
        Gets them; rounded to 1/65535.
    holes : sequence of ndarray of bool or None
        What each PET lacks of the brain, (I, J, K); None for nothing. By default nobody's lacks
        anything.

    Raises
    ------
    ReadWriteError
        If it cannot be written.
    """
    arrays: dict[str, np.ndarray] = {
        f"{place}": _quantize(one) for place, one in enumerate(volumes)
    }
    for place, hole in enumerate(holes):
        if hole is not None:
            slices = np.moveaxis(hole, 2, 0).astype(np.uint8)
            arrays[HOLE.format(place)] = np.ascontiguousarray(slices)
    try:
        save_file(arrays, path)
    except (OSError, SafetensorError) as error:
        raise ReadWriteError(f"{path}: cannot be written ({error})") from error


class PackedControls:
    """PETs of controls in a file of :func:`pack_controls`, read slice by slice.

    Parameters
    ----------
    path : Path
        The file.
    members : sequence of int
        Which of its controls, in order.

    Raises
    ------
    MissingInputError
        If it is not there.
    UnusableDataError
        If it is not such a file, or lacks one of these controls.
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
                f"{path}: holds no control {', '.join(lost)}; it belongs to another detector"
            )
        kinds = {shapes[member] for member in self._members}
        if len(kinds) > 1 or any(kind != "U16" or len(shape) != AXES for kind, shape in kinds):
            raise UnusableDataError(
                f"{path}: its controls are no volumes of 16 bits on one grid; fetch it again"
            )

    def __len__(self) -> int:
        return len(self._members)

    def slices(self, k: int) -> NDArray[np.float32]:
        """Read slice ``k`` of all members, (members, I, J), in [0, 1]."""
        with safe_open(self._path, framework="numpy") as file:
            levels = np.stack([file.get_slice(member)[k] for member in self._members])
        return levels.astype(np.float32) / np.float32(LEVELS)

    def holes(self, k: int) -> dict[int, Mask]:
        """Read what members lack in slice ``k``, (I, J), by their place; those who do alone."""
        if not self._holes:
            return {}
        with safe_open(self._path, framework="numpy") as file:
            found = {place: file.get_slice(name)[k] > 0 for place, name in self._holes.items()}
        return {place: hole for place, hole in found.items() if hole.any()}
