"""Figures of slices: colours, slices, outlines, and their layout in mm.

MRI is grey and PET is in colour, so that one is never taken for the other. PET is shown in
matplotlib's inferno, whose lightness rises evenly, and how uncertain it is in viridis, likewise;
differences in RdBu_r, white at zero.

A volume is turned so that its axes point right, anterior and superior, without resampling. Axial
and coronal slices then have the participant's left on the left (neurological convention), and
sagittal slices have posterior on the left. Row 0 of a slice is its top. A figure is written as SVG
by the page's template.
"""

import base64
import io
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import permutations
from typing import Final, Literal, TypeAlias

import contourpy
import matplotlib as mpl
import numpy as np
from contourpy import LineType
from numpy.typing import NDArray
from PIL import Image as Pillow
from scipy import ndimage

from bids_app.imaging.volume import Mask, Volume
from bids_app.nifti import Image

Colours: TypeAlias = Literal["gray", "inferno", "viridis", "RdBu_r"]

QUALITY: Final = 75  # of lossy WebP; our choice: nothing of it is seen at twice the size
EFFORT: Final = 4  # of WebP's coder, 0 to 6; more takes longer than it saves (our choice)
LOSSY: Final = ("gray", "inferno", "viridis")  # T1w, PET and its error: noise takes room


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
        A ``data:`` address: lossy WebP for images, PNG with a palette for differences.
    """
    pixels, palette = to_bytes(values, scale), _palette(scale.colours)
    if scale.colours in LOSSY:
        return encode(pixels, "WebP", palette, quality=QUALITY, method=EFFORT)
    return encode(pixels, "PNG", palette)


def encode(pixels: NDArray[np.uint8], kind: str, palette: bytes = b"", **options: int) -> str:
    """Write a picture as a ``data:`` address; ``options`` are Pillow's."""
    picture, content = Pillow.fromarray(np.ascontiguousarray(pixels)), io.BytesIO()
    if palette:
        picture.putpalette(palette)
    picture.save(content, kind, **options)
    text = base64.b64encode(content.getvalue()).decode("ascii")
    return f"data:image/{kind.lower()};base64,{text}"


def paint_bar(scale: Scale) -> str:
    """Draw the colours of a scale from its low end to its high end, as a ``data:`` address."""
    values = np.linspace(scale.low, scale.high, 256, dtype=np.float32)[np.newaxis]
    return encode(to_bytes(values, scale), "PNG", _palette(scale.colours))


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
        other_axes = tuple({0, 1, 2} - {axis})
        inside = np.flatnonzero(mask.any(axis=other_axes))
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
    other_axes = tuple({0, 1, 2} - {AXIS_OF[plane]})
    inside = np.flatnonzero(mask.any(axis=other_axes))
    last = mask.shape[AXIS_OF[plane]] - 1
    first, last = (int(inside[0]), int(inside[-1])) if inside.size else (0, last)
    indices = np.floor(np.linspace(first, last, count + 2)[1:-1] + 0.5).astype(int)
    return tuple(Section(plane, index) for index in indices.tolist())


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


SMOOTHING: Final = 0.7  # voxels; our choice: enough to calm the noise of a T1w
FEWEST_POINTS: Final = 12  # our choice: shorter lines are specks


# A line where a volume, RAS+, crosses a level: what it follows, its colour, the volume, the level.
Outline: TypeAlias = tuple[str, str, Volume, float]


def tissue_levels(t1w: Volume, brain: Mask) -> tuple[float, float]:
    """Find two intensities that part CSF from grey, and grey from white matter.

    Three means on the intensities of the brain (Lloyd's algorithm), started at the 10th, 45th and
    80th percentile (our choice). Meant for drawing only.

    Returns
    -------
    tuple of float
        CSF | grey and grey | white, in the unit of the T1w; zeros where the brain is empty.
    """
    values = t1w[brain][::5]  # a fifth of the voxels tells as much
    if not values.size:
        return 0.0, 0.0
    means = np.percentile(values, [10, 45, 80])
    for _ in range(12):
        borders = (means[1:] + means[:-1]) / 2
        group = np.digitize(values, borders)
        counts = np.bincount(group, minlength=3)
        sums = np.bincount(group, weights=values, minlength=3)
        means = np.where(counts > 0, sums / np.maximum(counts, 1), means)
    lower, upper = ((means[1:] + means[:-1]) / 2).tolist()
    return lower, upper


def trace(values: Volume, level: float, size: tuple[float, float]) -> str:
    """Follow a level through a slice.

    Parameters
    ----------
    values : ndarray, (rows, columns)
        A slice, the top row first.
    level : float
        In the unit of the values.
    size : tuple of float
        Width and height of the slice in mm.

    Returns
    -------
    str
        A path as SVG writes it, in mm from the slice's upper left corner.
    """
    rows, columns = values.shape
    if min(rows, columns) < 2:  # a line needs two neighbours on each side
        return ""
    step = np.array([size[0] / columns, size[1] / rows])
    calm = ndimage.gaussian_filter(values.astype(np.float32), SMOOTHING)
    lines = contourpy.contour_generator(z=calm, line_type=LineType.Separate).lines(level)
    points = (np.asarray(line, dtype=np.float64) for line in lines)
    return "".join(_path((line + 0.5) * step) for line in points if len(line) >= FEWEST_POINTS)


def _path(points: NDArray[np.float64]) -> str:
    """Write one line as a path, in steps of a tenth of a mm from point to point."""
    tenths = np.round(points * 10).astype(int)
    first, moves = tenths[0], np.diff(tenths, axis=0)
    steps = " ".join(f"{x / 10:g} {y / 10:g}" for x, y in moves[moves.any(axis=1)].tolist())
    return f"M{first[0] / 10:g} {first[1] / 10:g}l{steps}"


GAP: Final = 4.0  # mm between slices
MARGIN: Final = 16.0  # mm on the left, for the name of a row
HEADER: Final = 15.0  # mm above a slice, for its letters and place
AXIS_NAMES: Final[dict[Plane, str]] = {"sagittal": "x", "coronal": "y", "axial": "z"}
FLICKER_COUNTS: Final[dict[Plane, int]] = {"axial": 6, "coronal": 6, "sagittal": 5}


@dataclass(frozen=True)
class Layer:
    """A volume on the figure's grid, and how it is coloured."""

    name: str
    image: Image
    scale: Scale


@dataclass(frozen=True)
class Spot:
    """Where a slice lies in a figure: its upper left corner and its size, in mm."""

    section: Section
    x: float
    y: float
    width: float
    height: float


@dataclass(frozen=True)
class Tile:
    """A picture in its place."""

    href: str
    spot: Spot


@dataclass(frozen=True)
class Text:
    """Words in their place; ``turned`` words are read from below, ``strong`` ones are heavier."""

    words: str
    x: float
    y: float
    anchor: str = "middle"
    turned: bool = False
    strong: bool = False


Paths: TypeAlias = tuple[tuple[str, Spot], ...]  # as SVG writes them, each in the place of a slice


@dataclass(frozen=True)
class Figure:
    """A drawing of ``width`` × ``height`` mm, or px.

    Parameters
    ----------
    title, description : str
        A heading, and words for those who do not see it.
    frames : tuple of (str, tuple of Tile)
        What is seen at one moment, and its name; two frames are shown in turn.
    texts : tuple of Text
        Over all frames.
    lines : tuple of (str, str, tuple)
        Their meaning, their colour, and their paths.
    bars : tuple of (str, str, str, str)
        The colours of a scale: their meaning, a picture of them, and what its ends mean.
    """

    title: str
    description: str
    width: float
    height: float
    frames: tuple[tuple[str, tuple[Tile, ...]], ...]
    texts: tuple[Text, ...]
    lines: tuple[tuple[str, str, Paths], ...] = ()
    bars: tuple[tuple[str, str, str, str], ...] = ()


def place_of(image: Image, section: Section) -> str:
    """Say where a slice is.

    Examples
    --------
    >>> import numpy as np
    >>> shifted = np.eye(4)
    >>> shifted[2, 3] = -7
    >>> place_of(Image(np.zeros((3, 3, 9), np.float32), shifted), Section("axial", 2))
    'z = −5 mm'
    """
    value = round(position_of(image, section))
    return f"{AXIS_NAMES[section.plane]} = {value} mm".replace("-", "−")


def show_end(value: float) -> str:
    """Write the end of a scale to three digits, without powers of ten.

    Examples
    --------
    >>> show_end(18543.2), show_end(-0.5)
    ('18 500', '−0.5')
    """
    rounded = float(f"{value:.3g}")
    words = f"{rounded:,.0f}" if abs(rounded) >= 100 else f"{rounded:g}"
    return words.replace(",", " ").replace("-", "−")


def _spots_in_row(image: Image, sections: Sequence[Section], y: float) -> list[Spot]:
    spots, x = list[Spot](), MARGIN
    for section in sections:
        width, height = size_of(image, section.plane)
        spots.append(Spot(section, x, y, width, height))
        x += width + GAP
    return spots


def head(image: Image, spot: Spot, above: float = 3.5) -> list[Text]:
    """Write the letters and the place of a slice above it."""
    first, last = LETTERS_OF[spot.section.plane]
    y, right = spot.y - above, spot.x + spot.width
    return [
        Text(first, spot.x + 1, y, "start"),
        Text(place_of(image, spot.section), spot.x + spot.width / 2, y),
        Text(last, right - 1, y, "end"),
    ]


def _name_row(words: str, spots: Sequence[Spot]) -> Text:
    middle = spots[0].y + max(spot.height for spot in spots) / 2
    return Text(words, MARGIN - 6, middle, turned=True)


def tile_of(layer: Layer, spot: Spot) -> Tile:
    """Paint the slice of a layer that lies in a place."""
    return Tile(paint(cut(layer.image.data, spot.section), layer.scale), spot)


def draw_line(outline: Outline, spots: Iterable[Spot]) -> tuple[str, str, Paths]:
    """Draw an outline on all slices."""
    name, colour, volume, level = outline
    sizes = ((spot, (spot.width, spot.height)) for spot in spots)
    paths = ((trace(cut(volume, spot.section), level, size), spot) for spot, size in sizes)
    return name, colour, tuple((path, spot) for path, spot in paths if path)


def bars_of(layers: Sequence[Layer]) -> tuple[tuple[str, str, str, str], ...]:
    """Give the colours of each scale once; grey needs no explanation."""
    scales = dict.fromkeys(layer.scale for layer in layers if layer.scale.colours != "gray")
    ends = {scale: f"{show_end(scale.high)} {scale.unit}".strip() for scale in scales}
    return tuple((s.name, paint_bar(s), show_end(s.low), high) for s, high in ends.items())


def describe_slices(names: str, image: Image, sections: Sequence[Section]) -> str:
    """Tell what is shown, and where, to those who do not see it."""
    places = ", ".join(place_of(image, section) for section in sections)
    return f"{names}. Slices at {places}. Left of the participant is on the left."


def flicker(
    title: str, layers: Sequence[Layer], outlines: Sequence[Outline], brain: Mask
) -> Figure:
    """Draw volumes of one grid in the same place, to be shown in turn, under the same lines.

    Parameters
    ----------
    title : str
        A heading.
    layers : sequence of Layer
        One or two volumes, RAS+.
    outlines : sequence of Outline
        Lines over both.
    brain : ndarray of bool, (I, J, K)
        Slices are spread over it.

    Returns
    -------
    Figure
        A row of slices a plane.
    """
    image = layers[0].image
    y = HEADER * len(layers)  # two layers: a line above all for the name of the one in sight
    spots, texts = list[Spot](), list[Text]()
    for plane, count in FLICKER_COUNTS.items():
        row = _spots_in_row(image, spread(brain, plane, count), y)
        spots += row
        texts += [text for spot in row for text in head(image, spot)]
        texts.append(_name_row(plane.capitalize(), row))
        y += max(spot.height for spot in row) + HEADER
    return Figure(
        title=title,
        description=describe_slices(
            " and ".join(layer.name for layer in layers), image, [spot.section for spot in spots]
        ),
        width=max(spot.x + spot.width for spot in spots),
        height=y - HEADER + GAP,
        frames=tuple(
            (layer.name, tuple(tile_of(layer, spot) for spot in spots)) for layer in layers
        ),
        texts=tuple(texts),
        lines=tuple(draw_line(outline, spots) for outline in outlines),
        bars=bars_of(layers),
    )


def mosaic(title: str, layers: Sequence[Layer], sections: Sequence[Section]) -> Figure:
    """Draw the same slices of several volumes of one grid, a row a volume.

    Parameters
    ----------
    title : str
        A heading.
    layers : sequence of Layer
        Volumes, RAS+, from the top row to the bottom row.
    sections : sequence of Section
        From the left column to the right column.

    Returns
    -------
    Figure
        One frame.
    """
    image = layers[0].image
    y, tiles, texts = HEADER, list[Tile](), list[Text]()
    for layer in layers:
        row = _spots_in_row(image, sections, y)
        texts.append(_name_row(layer.name, row))
        texts += [text for spot in row for text in head(image, spot) if y == HEADER]
        tiles += [tile_of(layer, spot) for spot in row]
        y += max(spot.height for spot in row) + GAP
    names = " and ".join(layer.name for layer in layers)
    return Figure(
        title=title,
        description=describe_slices(names, image, sections),
        width=max(spot.x + spot.width for spot in row),
        height=y,
        frames=(("", tuple(tiles)),),
        texts=tuple(texts),
        bars=bars_of(layers),
    )


def blocks_of(brain: Mask) -> tuple[tuple[Section, ...], ...]:
    """Choose slices through all of a brain: two rows of axial ones, and one of the others."""
    axial = spread(brain, "axial", 12)
    return axial[:6], axial[6:], (*spread(brain, "coronal", 3), *spread(brain, "sagittal", 3))
