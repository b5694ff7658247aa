"""Slices of a volume, as they are laid before a reader.

A volume is turned so that its axes point right, anterior and superior, without resampling. Axial
and coronal slices then have the participant's left on the left (neurological convention), and
sagittal slices have posterior on the left. Row 0 of a slice is its top.
"""

from dataclasses import dataclass
from itertools import permutations
from typing import Final, Literal, TypeAlias

import numpy as np

from bids_app.imaging.volume import Mask, Volume
from bids_app.nifti import Image

Plane: TypeAlias = Literal["axial", "coronal", "sagittal"]
Field: TypeAlias = tuple[slice, slice, slice]

PLANES: Final[tuple[Plane, ...]] = ("axial", "coronal", "sagittal")
AXIS_OF: Final[dict[Plane, int]] = {"sagittal": 0, "coronal": 1, "axial": 2}
LETTERS_OF: Final[dict[Plane, tuple[str, str]]] = {
    "axial": ("L", "R"),
    "coronal": ("L", "R"),
    "sagittal": ("P", "A"),
}


@dataclass(frozen=True)
class Section:
    """One slice of a volume: across which axis, and where (an index of a RAS+ volume)."""

    plane: Plane
    index: int


def turn_to_ras(image: Image) -> Image:
    """Permute and flip the axes of an image so that they point right, anterior and superior.

    Each axis goes to the world axis it is nearest to; an oblique image stays oblique.

    Examples
    --------
    >>> voxels = np.arange(2, dtype=np.float32).reshape(2, 1, 1)
    >>> to_the_left = np.diag([-1.0, 1.0, 1.0, 1.0])
    >>> turned = turn_to_ras(Image(voxels, to_the_left))
    >>> turned.data.ravel().tolist(), turned.affine[0].tolist()
    ([1.0, 0.0], [1.0, 0.0, 0.0, -1.0])
    """
    axes = np.abs(image.affine[:3, :3] / image.zooms)
    order = max(permutations(range(3)), key=lambda chosen: sum(axes[range(3), chosen]))
    data = image.data.transpose(order)
    affine = image.affine[:, [*order, 3]].copy()
    for axis in range(3):
        if affine[axis, axis] < 0:
            data = np.flip(data, axis)
            affine[:, 3] += affine[:, axis] * (data.shape[axis] - 1)
            affine[:, axis] *= -1
    return Image(data, affine)


def field_around(mask: Mask, zooms: tuple[float, float, float], margin: float) -> Field:
    """Find the smallest box around a mask, widened by a margin in mm; all where it is empty."""
    box = []
    for axis, zoom in enumerate(zooms):
        others = tuple({0, 1, 2} - {axis})
        inside = np.flatnonzero(mask.any(axis=others))
        if not inside.size:
            return (slice(None),) * 3
        extra = round(margin / zoom)
        box.append(slice(max(int(inside[0]) - extra, 0), int(inside[-1]) + extra + 1))
    i, j, k = box
    return i, j, k


def crop(image: Image, field: Field) -> Image:
    """Keep a part of an image; what is kept stays where it is in the world."""
    affine = image.affine.copy()
    affine[:3, 3] += affine[:3, :3] @ [part.start or 0 for part in field]
    return Image(image.data[field], affine)


def spread(mask: Mask, plane: Plane, count: int) -> tuple[Section, ...]:
    """Choose slices at equal distances through a mask, its ends left out."""
    others = tuple({0, 1, 2} - {AXIS_OF[plane]})
    inside = np.flatnonzero(mask.any(axis=others))
    last = mask.shape[AXIS_OF[plane]] - 1
    first, last = (int(inside[0]), int(inside[-1])) if inside.size else (0, last)
    places = np.floor(np.linspace(first, last, count + 2)[1:-1] + 0.5).astype(int)
    return tuple(Section(plane, index) for index in places.tolist())


def cut(volume: Volume, section: Section) -> Volume:
    """Cut a slice out of a RAS+ volume.

    Returns
    -------
    ndarray, (rows, columns)
        As it is shown: left (or posterior) first in a row, the top row first.
    """
    across = np.moveaxis(volume, AXIS_OF[section.plane], 0)[section.index]
    return across.T[::-1]


def size_of(image: Image, plane: Plane) -> tuple[float, float]:
    """Give width and height of a slice in mm."""
    across, up = (axis for axis in range(3) if axis != AXIS_OF[plane])
    shape, zooms = image.data.shape, image.zooms
    return shape[across] * zooms[across], shape[up] * zooms[up]


def position_of(image: Image, section: Section) -> float:
    """Give the world coordinate, in mm, of the middle of a slice along the axis it is across."""
    axis = AXIS_OF[section.plane]
    middle = (np.array(image.data.shape[:3]) - 1) / 2
    middle[axis] = section.index
    return float(image.affine[axis, :3] @ middle + image.affine[axis, 3])
