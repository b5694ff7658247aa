"""A figure of columns: one image each, the same slices below one another."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from bids_app.nifti import Image
from bids_app.report.charts import WIDTH
from bids_app.report.colours import paint
from bids_app.report.reportlets import Figure, Frame, Layer, Spot, Text, Tile, bars_of, place_of
from bids_app.report.slices import LETTERS_OF, Section, cut, size_of

WIDEST: Final = 210.0  # px of a column, where there are few (our choice)
MARGIN, GAP = 18.0, 4.0  # px on the left, for the name of a row; between columns and rows
LINE, HEADER = 14.0, 20.0  # px of a line of words; above a slice, for its letters and place


@dataclass(frozen=True)
class Column:
    """What stands below one another.

    Parameters
    ----------
    words : tuple of str
        Above it, the name in the middle.
    layer : Layer or None
        An image on the grid of all; None if it is missing.
    difference : Layer or None
        Drawn below the image; None if there is none.
    """

    words: tuple[str, str, str]
    layer: Layer | None
    difference: Layer | None = None


@dataclass(frozen=True)
class _Row:
    name: str
    layers: tuple[Layer | None, ...]
    spots: tuple[Spot, ...]
    empty: str  # said where there is no image


def montage(
    title: str, columns: Sequence[Column], sections: Sequence[Section], grid: Image
) -> Figure:
    """Draw, for each slice, a row of images and a row of differences.

    Parameters
    ----------
    title : str
        A heading.
    columns : sequence of Column
        From left to right.
    sections : sequence of Section
        From top to bottom. Each fills the width of a column, so that views differ in scale.
    grid : Image
        Any image on the grid of all, RAS+.

    Returns
    -------
    Figure
        One frame, laid out in px.
    """
    side = min(WIDEST, (WIDTH - MARGIN) / len(columns) - GAP)
    lefts = [MARGIN + place * (side + GAP) for place in range(len(columns))]
    rows = _rows(columns, sections, grid, lefts, side)
    layers = [one for row in rows for one in row.layers if one is not None]
    texts = [
        Text(words, x + side / 2, LINE * (n + 0.8), strong=n == 1)
        for x, column in zip(lefts, columns, strict=True)
        for n, words in enumerate(column.words)
    ]
    names = ", ".join(" ".join(column.words[:2]).strip() for column in columns)
    places = ", ".join(place_of(grid, section) for section in sections)
    last = rows[-1].spots[-1]
    return Figure(
        title=title,
        description=f"{names}. Slices at {places}. Left of the participant is on the left.",
        width=last.x + last.width + GAP,
        height=last.y + last.height + GAP,
        frames=(Frame("", tuple(tile for row in rows for tile in _tiles(row))),),
        texts=(*texts, *(text for row in rows for text in _texts(row, grid))),
        bars=bars_of([layer for layer in layers if layer.scale.colours != "gray"]),
    )


def _rows(
    columns: Sequence[Column],
    sections: Sequence[Section],
    grid: Image,
    lefts: Sequence[float],
    side: float,
) -> list[_Row]:
    images = tuple(column.layer for column in columns)
    differences = tuple(column.difference for column in columns)
    rows, y = list[_Row](), 3 * LINE
    for section in sections:
        width, height = size_of(grid, section.plane)
        tall = side * height / width
        y += HEADER
        for name, layers, empty in (
            (section.plane.capitalize(), images, "no image"),
            ("Difference", differences, ""),
        ):
            if any(layers):
                spots = tuple(Spot(section, x, y, side, tall) for x in lefts)
                rows.append(_Row(name, layers, spots, empty))
                y += tall + GAP
    return rows


def _tiles(row: _Row) -> list[Tile]:
    return [
        Tile(paint(cut(layer.image.data, spot.section), layer.scale), spot)
        for layer, spot in zip(row.layers, row.spots, strict=True)
        if layer is not None
    ]


def _texts(row: _Row, grid: Image) -> list[Text]:
    """Name a row; give letters and places above images, and say where one is missing."""
    first = row.spots[0]
    texts = [Text(row.name, MARGIN - 6, first.y + first.height / 2, turned=True)]
    for layer, spot in zip(row.layers, row.spots, strict=True):
        middle, y = spot.x + spot.width / 2, spot.y - 5
        if layer is None and row.empty:
            texts.append(Text(row.empty, middle, spot.y + spot.height / 2))
        elif row.empty:
            one, other = LETTERS_OF[spot.section.plane]
            texts += [
                Text(one, spot.x + 1, y, "start"),
                Text(place_of(grid, spot.section), middle, y),
                Text(other, spot.x + spot.width - 1, y, "end"),
            ]
    return texts
