"""From numbers to pictures: which grey or colour a value has.

MRI is grey and PET is in colour, so that one is never taken for the other. PET is shown in
matplotlib's inferno, whose lightness rises evenly, and how uncertain it is in viridis, likewise;
differences in RdBu_r, white at zero.
"""

import base64
import io
from dataclasses import dataclass
from functools import cache
from typing import Final, Literal, TypeAlias

import matplotlib as mpl
import numpy as np
from numpy.typing import NDArray
from PIL import Image as Pillow

from bids_app.imaging.volume import Volume

Colours: TypeAlias = Literal["gray", "inferno", "viridis", "RdBu_r"]

JPEG_QUALITY: Final = 88  # our choice: no block is seen at twice the size


@dataclass(frozen=True)
class Scale:
    """What is drawn darkest and brightest, and in which colours.

    Parameters
    ----------
    colours : str
        A colour map of matplotlib.
    low, high : float
        Values at its two ends; beyond them the ends go on.
    name, unit : str
        What the values are; the unit may be empty.
    """

    colours: Colours
    low: float
    high: float
    name: str
    unit: str = ""


@cache
def _palette(colours: Colours) -> bytes:
    table = mpl.colormaps[colours](np.arange(256), bytes=True)
    return np.ascontiguousarray(table[:, :3]).tobytes()


def to_bytes(values: Volume, scale: Scale) -> NDArray[np.uint8]:
    """Bring values to 0..255; what is not a number counts as zero."""
    width = scale.high - scale.low
    finite = np.nan_to_num(values.astype(np.float32), posinf=scale.high, neginf=scale.low)
    unit = (finite - scale.low) / (width if width > 0 else 1)
    return (np.clip(unit, 0, 1) * 255).round().astype(np.uint8)


def paint(values: Volume, scale: Scale) -> str:
    """Draw a slice, one pixel a voxel.

    Parameters
    ----------
    values : ndarray, (rows, columns)
        The top row first.
    scale : Scale
        How they are coloured.

    Returns
    -------
    str
        A ``data:`` address: JPEG for grey, PNG with a palette for colours.
    """
    picture = Pillow.fromarray(np.ascontiguousarray(to_bytes(values, scale)))
    content = io.BytesIO()
    if scale.colours == "gray":
        picture.save(content, "JPEG", quality=JPEG_QUALITY)
        kind = "jpeg"
    else:
        picture.putpalette(_palette(scale.colours))
        picture.save(content, "PNG")
        kind = "png"
    return f"data:image/{kind};base64,{base64.b64encode(content.getvalue()).decode('ascii')}"


def paint_bar(scale: Scale) -> str:
    """Draw the colours of a scale from its low end to its high end, as a ``data:`` address."""
    return paint(np.linspace(scale.low, scale.high, 256, dtype=np.float32)[np.newaxis], scale)
