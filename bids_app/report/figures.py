"""Figures of slices: colours, slices, outlines, and their layout in mm.

MRI is grey and PET is in colour, so that they are never confused. PET is shown in matplotlib's
inferno and its uncertainty in viridis, both of which increase evenly in lightness; differences are
shown in RdBu_r, white at zero.

The axes of a volume are permuted and flipped to point right, anterior and superior, without
resampling. Axial and coronal slices then have the participant's left on the left (neurological
convention), and sagittal slices have posterior on the left. Row 0 of a slice is its top. The page's
template writes a figure as SVG.
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

QUALITY: Final = 75  # of lossy WebP; our choice: no artefacts are visible at twice the size
EFFORT: Final = 4  # of the WebP encoder, 0 to 6; more is not worth its time (our choice)
LOSSY: Final = ("gray", "inferno", "viridis")  # T1w, PET and its error: noise compresses badly


@dataclass(frozen=True)
class Scale:
    """Colour map and the range of values that it covers.

    Parameters
    ----------
    colours : str
        Name of a matplotlib colour map.
    low, high : float
        Values at its two ends; values beyond them are clipped.
    name, unit : str
        Quantity that is shown, and its unit, which may be empty.
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
    """Scale values to 0..255; NaN counts as zero."""
    width = scale.high - scale.low
    finite = np.nan_to_num(values.astype(np.float32), posinf=scale.high, neginf=scale.low)
    unit = (finite - scale.low) / (width if width > 0 else 1)
    return (np.clip(unit, 0, 1) * 255).round().astype(np.uint8)


def paint(values: Volume, scale: Scale) -> str:
    """Draw a slice with one pixel per voxel.

    Parameters
    ----------
    values : ndarray, (rows, columns)
        Values of the slice, top row first.
    scale : Scale
        Colours of the values.

    Returns
    -------
    str
        ``data:`` URL: lossy WebP for images, PNG with a palette for differences.
    """
    pixels, palette = to_bytes(values, scale), _palette(scale.colours)
    if scale.colours in LOSSY:
        return encode(pixels, "WebP", palette, quality=QUALITY, method=EFFORT)
    return encode(pixels, "PNG", palette)


def encode(pixels: NDArray[np.uint8], kind: str, palette: bytes = b"", **options: int) -> str:
    """Encode a picture as a ``data:`` URL; ``options`` are passed to Pillow."""
    picture, content = Pillow.fromarray(np.ascontiguousarray(pixels)), io.BytesIO()
    if palette:
        picture.putpalette(palette)
    picture.save(content, kind, **options)
    text = base64.b64encode(content.getvalue()).decode("ascii")
    return f"data:image/{kind.lower()};base64,{text}"


def paint_bar(scale: Scale) -> str:
    """Draw the colours of a scale from its low end to its high end, as a ``data:`` URL."""
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
    """Slice of a RAS+ volume: its plane, and its index along the axis across it."""

    plane: Plane
    index: int


def reorient_to_ras(image: Image) -> Image:
    """Permute and flip the axes of an image so that they point right, anterior and superior.

    Each axis is matched to the nearest world axis; an oblique image stays oblique.

    Examples
    --------
    >>> voxels = np.arange(2, dtype=np.float32).reshape(2, 1, 1)
    >>> to_the_left = np.diag([-1.0, 1.0, 1.0, 1.0])
    >>> turned = reorient_to_ras(Image(voxels, to_the_left))
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
    """Return the bounding box of a mask plus a margin in mm; the whole volume if it is empty."""
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
    """Crop an image to a field of view, keeping world coordinates."""
    affine = image.affine.copy()
    affine[:3, 3] += affine[:3, :3] @ [part.start or 0 for part in field]
    return Image(image.data[field], affine)


def spread(mask: Mask, plane: Plane, count: int) -> tuple[Section, ...]:
    """Choose equally spaced slices through a mask, excluding its ends."""
    other_axes = tuple({0, 1, 2} - {AXIS_OF[plane]})
    inside = np.flatnonzero(mask.any(axis=other_axes))
    last = mask.shape[AXIS_OF[plane]] - 1
    first, last = (int(inside[0]), int(inside[-1])) if inside.size else (0, last)
    indices = np.floor(np.linspace(first, last, count + 2)[1:-1] + 0.5).astype(int)
    return tuple(Section(plane, index) for index in indices.tolist())


def cut(volume: Volume, section: Section) -> Volume:
    """Return a slice of a RAS+ volume.

    Returns
    -------
    ndarray, (rows, columns)
        Slice as displayed: left (or posterior) first in a row, top row first.
    """
    across = np.moveaxis(volume, AXIS_OF[section.plane], 0)[section.index]
    return across.T[::-1]


def size_of(image: Image, plane: Plane) -> tuple[float, float]:
    """Return the width and height of a slice in mm."""
    across, up = (axis for axis in range(3) if axis != AXIS_OF[plane])
    shape, zooms = image.data.shape, image.zooms
    return shape[across] * zooms[across], shape[up] * zooms[up]


def position_of(image: Image, section: Section) -> float:
    """Return the world coordinate, in mm, of the middle of a slice along the axis across it."""
    axis = AXIS_OF[section.plane]
    middle = (np.array(image.data.shape[:3]) - 1) / 2
    middle[axis] = section.index
    return float(image.affine[axis, :3] @ middle + image.affine[axis, 3])


SMOOTHING: Final = 0.7  # voxels; our choice: enough to suppress the noise of a T1w
FEWEST_POINTS: Final = 12  # our choice: shorter lines are specks


# Contour of a RAS+ volume at a level: what it follows, its colour, the volume, and the level.
Outline: TypeAlias = tuple[str, str, Volume, float]


def tissue_levels(t1w: Volume, brain: Mask) -> tuple[float, float]:
    """Find the two intensities that separate CSF from grey, and grey from white matter.

    Three-means clustering of the intensities in the brain (Lloyd's algorithm), started at the 10th,
    45th and 80th percentiles (our choice). Meant for drawing only.

    Returns
    -------
    tuple of float
        CSF/grey and grey/white thresholds, in the unit of the T1w; zeros if the brain is empty.
    """
    values = t1w[brain][::5]  # a fifth of the voxels is enough
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
    """Trace the contour of a slice at a level.

    Parameters
    ----------
    values : ndarray, (rows, columns)
        Slice, top row first.
    level : float
        Level in the unit of the values.
    size : tuple of float
        Width and height of the slice in mm.

    Returns
    -------
    str
        Path in SVG notation, in mm from the upper left corner of the slice.
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
    """Write one line as an SVG path of relative moves, rounded to a tenth of a mm."""
    tenths = np.round(points * 10).astype(int)
    first, moves = tenths[0], np.diff(tenths, axis=0)
    steps = " ".join(f"{x / 10:g} {y / 10:g}" for x, y in moves[moves.any(axis=1)].tolist())
    return f"M{first[0] / 10:g} {first[1] / 10:g}l{steps}"


GAP: Final = 4.0  # mm between slices
MARGIN: Final = 16.0  # mm on the left, for the name of a row
HEADER: Final = 15.0  # mm above a slice, for its side letters and position
AXIS_NAMES: Final[dict[Plane, str]] = {"sagittal": "x", "coronal": "y", "axial": "z"}
FLICKER_COUNTS: Final[dict[Plane, int]] = {"axial": 6, "coronal": 6, "sagittal": 5}


@dataclass(frozen=True)
class Layer:
    """Volume on the grid of the figure, with its colours."""

    name: str
    image: Image
    scale: Scale


@dataclass(frozen=True)
class Spot:
    """Position of a slice in a figure: its upper left corner and its size, in mm."""

    section: Section
    x: float
    y: float
    width: float
    height: float


@dataclass(frozen=True)
class Tile:
    """Picture at its position."""

    href: str
    spot: Spot


@dataclass(frozen=True)
class Text:
    """Text at its position; ``turned`` text reads upwards, ``strong`` text is bold."""

    words: str
    x: float
    y: float
    anchor: str = "middle"
    turned: bool = False
    strong: bool = False


Paths: TypeAlias = tuple[tuple[str, Spot], ...]  # in SVG notation, each at the spot of a slice


@dataclass(frozen=True)
class Figure:
    """Drawing of ``width`` × ``height`` mm, or px.

    Parameters
    ----------
    title, description : str
        Heading, and text alternative.
    frames : tuple of (str, tuple of Tile)
        Tiles shown at one moment, preceded by their name; two frames are shown in turn.
    texts : tuple of Text
        Texts over all frames.
    lines : tuple of (str, str, tuple)
        Meaning, colour and paths of each line.
    bars : tuple of (str, str, str, str)
        Meaning, picture, and labels of the low and high ends of each colour bar.
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
    """Format the position of a slice.

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
    """Format the end of a scale to three significant digits, without powers of ten.

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
    """Place the side letters and the position of a slice above it."""
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
    """Paint the slice of a layer at a spot."""
    return Tile(paint(cut(layer.image.data, spot.section), layer.scale), spot)


def draw_line(outline: Outline, spots: Iterable[Spot]) -> tuple[str, str, Paths]:
    """Draw an outline on all slices."""
    name, colour, volume, level = outline
    sizes = ((spot, (spot.width, spot.height)) for spot in spots)
    paths = ((trace(cut(volume, spot.section), level, size), spot) for spot, size in sizes)
    return name, colour, tuple((path, spot) for path, spot in paths if path)


def bars_of(layers: Sequence[Layer]) -> tuple[tuple[str, str, str, str], ...]:
    """Return a colour bar for each distinct scale; grey needs no explanation."""
    scales = dict.fromkeys(layer.scale for layer in layers if layer.scale.colours != "gray")
    ends = {scale: f"{show_end(scale.high)} {scale.unit}".strip() for scale in scales}
    return tuple((s.name, paint_bar(s), show_end(s.low), high) for s, high in ends.items())


def describe_slices(names: str, image: Image, sections: Sequence[Section]) -> str:
    """Describe the content and the positions of slices for the text alternative of a figure."""
    places = ", ".join(place_of(image, section) for section in sections)
    return f"{names}. Slices at {places}. Left of the participant is on the left."


def flicker(
    title: str, layers: Sequence[Layer], outlines: Sequence[Outline], brain: Mask
) -> Figure:
    """Draw volumes of one grid in the same place, shown in turn under the same outlines.

    Parameters
    ----------
    title : str
        Heading.
    layers : sequence of Layer
        One or two volumes, RAS+.
    outlines : sequence of Outline
        Outlines over all volumes.
    brain : ndarray of bool, (I, J, K)
        Brain mask over which slices are spread.

    Returns
    -------
    Figure
        Figure with a row of slices per plane.
    """
    image = layers[0].image
    y = HEADER * len(layers)  # with two layers, a line on top names the visible one
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
    """Draw the same slices of several volumes of one grid, with a row per volume.

    Parameters
    ----------
    title : str
        Heading.
    layers : sequence of Layer
        Volumes, RAS+, from the top row to the bottom row.
    sections : sequence of Section
        Slices, from the left column to the right column.

    Returns
    -------
    Figure
        Figure with one frame.
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
    """Choose slices through the whole brain: two rows of axial ones, and one of the others."""
    axial = spread(brain, "axial", 12)
    return axial[:6], axial[6:], (*spread(brain, "coronal", 3), *spread(brain, "sagittal", 3))
