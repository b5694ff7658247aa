"""Colours laid over a grey T1w: scores above a threshold, and clusters by rank.

What is not shown is transparent. Scores are drawn in matplotlib's plasma, which has no dark end and
no grey, so that they are seen on a T1w and are not taken for PET.
"""

import base64
import io
from collections.abc import Callable, Collection
from dataclasses import dataclass, replace
from typing import Final, TypeAlias

import matplotlib as mpl
import numpy as np
from numpy.typing import NDArray
from PIL import Image as Pillow

from bids_app.imaging.volume import Volume
from bids_app.report.reportlets import Bar, Figure, Frame, Spot, Tile, show_end
from bids_app.report.slices import cut

Painter: TypeAlias = Callable[[int, Spot], str]

COLOURS: Final = "plasma"
HIT: Final = (70, 225, 150)  # of rank 1: a cluster that overlaps a known lesion
OTHER: Final = (255, 140, 40)  # and all others
FAINTEST: Final = 0.45  # brightness of the last rank, of that of the first (our choice)
LAST_RANK: Final = 10  # and all beyond it


@dataclass(frozen=True)
class Heat:
    """Which scores are shown, and how.

    Parameters
    ----------
    threshold : float
        Not below 0; scores below it are transparent.
    high : float
        The score that is drawn brightest, above the threshold; the other end of the colours is 0.
    """

    threshold: float
    high: float


def paint_scores(scores: Volume, heat: Heat) -> str:
    """Draw a slice of a score map, one pixel a voxel, as a ``data:`` address.

    Parameters
    ----------
    scores : ndarray, (rows, columns)
        The top row first; higher is more abnormal.
    heat : Heat
        How they are coloured.
    """
    finite = np.nan_to_num(scores.astype(np.float32), nan=-1.0)
    unit = np.clip(finite / heat.high, 0, 1)
    indices = np.where(finite >= heat.threshold, 1 + (unit * 254).round(), 0).astype(np.uint8)
    table = mpl.colormaps[COLOURS](np.linspace(0, 1, 255), bytes=True)[:, :3]
    return _encode(indices, np.vstack([np.zeros((1, 3)), table]).astype(np.uint8))


def paint_ranks(labels: Volume, hits: Collection[int]) -> str:
    """Draw a slice of a label image, one pixel a voxel, as a ``data:`` address.

    Parameters
    ----------
    labels : ndarray, (rows, columns)
        Ranks, 0 elsewhere; the top row first.
    hits : collection of int
        Ranks of clusters that overlap a lesion.
    """
    indices = np.clip(np.nan_to_num(labels).round(), 0, 255).astype(np.uint8)
    table = np.zeros((256, 3))
    for rank in range(1, 256):
        table[rank] = np.array(HIT if rank in hits else OTHER) * brightness(rank)
    return _encode(indices, table.round().astype(np.uint8))


def brightness(rank: int) -> float:
    """Give the brightness of a rank, from 1 for the first.

    Examples
    --------
    >>> brightness(1), round(brightness(10), 2)
    (1.0, 0.45)
    """
    return 1 - (1 - FAINTEST) * (min(rank, LAST_RANK) - 1) / (LAST_RANK - 1)


def _encode(indices: NDArray[np.uint8], table: NDArray[np.uint8]) -> str:
    picture = Pillow.fromarray(np.ascontiguousarray(indices))
    picture.putpalette(table.tobytes())
    content = io.BytesIO()
    picture.save(content, "PNG", transparency=0)
    return f"data:image/png;base64,{base64.b64encode(content.getvalue()).decode('ascii')}"


def lay_over(figure: Figure, paint: Painter, bars: tuple[Bar, ...]) -> Figure:
    """Lay pictures over those of a figure that is still.

    Parameters
    ----------
    figure : Figure
        One frame.
    paint : callable
        Gives the picture over one of its tiles: by the tile's number, and its place.
    bars : tuple of Bar
        What the colours mean.
    """
    (frame,) = figure.frames
    over = tuple(Tile(paint(n, tile.spot), tile.spot) for n, tile in enumerate(frame.tiles))
    return replace(figure, frames=(Frame(frame.name, (*frame.tiles, *over)),), bars=bars)


def bar_of_scores(heat: Heat) -> Bar:
    """Show the colours of scores; those that are not drawn are left out."""
    row = np.linspace(heat.threshold, heat.high, 256, dtype=np.float32)[np.newaxis]
    low, high = show_end(heat.threshold), show_end(heat.high)
    return Bar("anomaly score", paint_scores(row, heat), low, high)


def bars_of_ranks(*, lesions: bool) -> tuple[Bar, ...]:
    """Show the colours of clusters; where lesions are known, those of hits and of others."""
    row = np.repeat(np.arange(1, LAST_RANK + 1), 16).astype(np.float32)[np.newaxis]
    last = f"rank {LAST_RANK}"
    other = Bar("clusters", paint_ranks(row, ()), "rank 1", last)
    if not lesions:
        return (other,)
    hit = Bar("on a lesion", paint_ranks(row, range(1, 256)), "rank 1", last)
    return (hit, replace(other, name="elsewhere"))


def painter_of(volumes: list[Volume], paint: Callable[[int, Volume], str]) -> Painter:
    """Paint the slices of volumes that take turns from tile to tile."""

    def painted(number: int, spot: Spot) -> str:
        place = number % len(volumes)
        return paint(place, cut(volumes[place], spot.section))

    return painted
