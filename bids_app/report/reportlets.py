"""Figures of slices: pictures, lines and words, each with its place in mm.

A figure is laid out here and written as SVG by the page's template.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

from bids_app.imaging.volume import Mask
from bids_app.nifti import Image
from bids_app.report.colours import Scale, paint, paint_bar
from bids_app.report.outlines import Outline, trace
from bids_app.report.slices import (
    LETTERS_OF,
    Plane,
    Section,
    cut,
    position_of,
    size_of,
    spread,
)

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


@dataclass(frozen=True)
class Line:
    """Paths of one colour, each in the place of its slice."""

    name: str
    colour: str
    paths: tuple[tuple[str, Spot], ...]


@dataclass(frozen=True)
class Frame:
    """What is seen at one moment."""

    name: str
    tiles: tuple[Tile, ...]


@dataclass(frozen=True)
class Bar:
    """The colours of a scale, and what its ends mean."""

    name: str
    href: str
    low: str
    high: str


@dataclass(frozen=True)
class Figure:
    """A drawing of ``width`` × ``height`` mm; two frames are shown in turn."""

    title: str
    description: str
    width: float
    height: float
    frames: tuple[Frame, ...]
    texts: tuple[Text, ...]
    lines: tuple[Line, ...] = ()
    bars: tuple[Bar, ...] = field(default=())


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
    words = f"{rounded:,.0f}" if abs(rounded) >= 100 else f"{rounded:g}"  # noqa: PLR2004
    return words.replace(",", " ").replace("-", "−")


def _lay_row(image: Image, sections: Sequence[Section], y: float) -> tuple[Spot, ...]:
    spots, x = [], MARGIN
    for section in sections:
        width, height = size_of(image, section.plane)
        spots.append(Spot(section, x, y, width, height))
        x += width + GAP
    return tuple(spots)


def _headers(image: Image, spots: Sequence[Spot]) -> list[Text]:
    texts = []
    for spot in spots:
        first, last = LETTERS_OF[spot.section.plane]
        y, right = spot.y - 3.5, spot.x + spot.width
        texts += [
            Text(first, spot.x + 1, y, "start"),
            Text(place_of(image, spot.section), spot.x + spot.width / 2, y),
            Text(last, right - 1, y, "end"),
        ]
    return texts


def _name_row(words: str, spots: Sequence[Spot]) -> Text:
    middle = spots[0].y + max(spot.height for spot in spots) / 2
    return Text(words, MARGIN - 6, middle, turned=True)


def _tiles(layer: Layer, spots: Sequence[Spot]) -> tuple[Tile, ...]:
    return tuple(
        Tile(paint(cut(layer.image.data, spot.section), layer.scale), spot) for spot in spots
    )


def _draw(outline: Outline, spots: Sequence[Spot]) -> Line:
    paths = (
        (trace(cut(outline.volume, spot.section), outline.level, (spot.width, spot.height)), spot)
        for spot in spots
    )
    return Line(outline.name, outline.colour, tuple((path, spot) for path, spot in paths if path))


def bars_of(layers: Sequence[Layer]) -> tuple[Bar, ...]:
    """Give the colours of each scale once."""
    scales: Mapping[Scale, None] = dict.fromkeys(layer.scale for layer in layers)
    return tuple(
        Bar(
            name=scale.name,
            href=paint_bar(scale),
            low=show_end(scale.low),
            high=f"{show_end(scale.high)} {scale.unit}".strip(),
        )
        for scale in scales
    )


def _describe(names: Sequence[str], image: Image, sections: Sequence[Section]) -> str:
    places = ", ".join(place_of(image, section) for section in sections)
    return f"{' and '.join(names)}. Slices at {places}. Left of the participant is on the left."


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
        row = _lay_row(image, spread(brain, plane, count), y)
        spots += row
        texts += [*_headers(image, row), _name_row(plane.capitalize(), row)]
        y += max(spot.height for spot in row) + HEADER
    return Figure(
        title=title,
        description=_describe(
            [layer.name for layer in layers], image, [spot.section for spot in spots]
        ),
        width=max(spot.x + spot.width for spot in spots),
        height=y - HEADER + GAP,
        frames=tuple(Frame(layer.name, _tiles(layer, spots)) for layer in layers),
        texts=tuple(texts),
        lines=tuple(_draw(outline, spots) for outline in outlines),
        bars=bars_of([layer for layer in layers if layer.scale.colours != "gray"]),
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
        row = _lay_row(image, sections, y)
        texts += [_name_row(layer.name, row)] + (_headers(image, row) if y == HEADER else [])
        tiles += _tiles(layer, row)
        y += max(spot.height for spot in row) + GAP
    return Figure(
        title=title,
        description=_describe([layer.name for layer in layers], image, sections),
        width=max(spot.x + spot.width for spot in row),
        height=y,
        frames=(Frame("", tuple(tiles)),),
        texts=tuple(texts),
        bars=bars_of([layer for layer in layers if layer.scale.colours != "gray"]),
    )
