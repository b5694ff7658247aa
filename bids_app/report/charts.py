"""Charts of numbers: lines, dots and words, each with its place in px.

A chart is laid out here and written as SVG by the page's template, as figures of slices are.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Final

from matplotlib.ticker import LogLocator, MaxNLocator

from bids_app.report.reportlets import Text

WIDTH: Final = 1160.0  # px; the width of the page
FAINT: Final = "#d0d7de"
INK: Final = "#1b1f24"
MOST_TICKS: Final = 6
SPARE: Final = 0.06  # of the range, left free at either end of an axis (our choice)
ALIKE: Final = 1e-9  # of the largest value: what differs by less is drawn as equal (our choice)
SMALLEST: Final = 1e-12  # on a logarithmic axis; below it a loss is rounding (our choice)
LOGARITHMIC: Final = 20.0  # largest over smallest value beyond which an axis is (our choice)


@dataclass(frozen=True)
class Stroke:
    """A line, or the edge of a filled shape, as SVG writes paths; ``fill`` may be ``none``."""

    path: str
    colour: str
    width: float = 1.0
    dash: str = ""
    fill: str = "none"


@dataclass(frozen=True)
class Dot:
    """A filled circle with a white edge."""

    x: float
    y: float
    radius: float
    colour: str


@dataclass(frozen=True)
class Key:
    """What a colour means."""

    name: str
    colour: str
    dash: str = ""


@dataclass(frozen=True)
class Chart:
    """A drawing of ``width`` × ``height`` px."""

    title: str
    description: str
    width: float
    height: float
    strokes: tuple[Stroke, ...]
    dots: tuple[Dot, ...]
    texts: tuple[Text, ...]
    keys: tuple[Key, ...] = field(default=())


@dataclass(frozen=True)
class Axis:
    """Where values lie along a side of a chart.

    Parameters
    ----------
    low, high : float
        The values at its ends.
    start, end : float
        The places of those in px; ``start`` may be the larger one, as on an axis that goes up.
    logarithmic : bool
        Equal steps are equal factors; both values are then above 0.
    whole : bool
        Only whole numbers mean something.

    Examples
    --------
    >>> Axis(0, 10, 100, 0).place(2.5), Axis(1, 100, 0, 200, logarithmic=True).place(10)
    (75.0, 100.0)
    """

    low: float
    high: float
    start: float
    end: float
    logarithmic: bool = False
    whole: bool = False

    def place(self, value: float) -> float:
        """Say where a value lies, in px."""
        low, high, here = self.low, self.high, value
        if self.logarithmic:
            low, high, here = math.log(low), math.log(high), math.log(here)
        return self.start + (here - low) / (high - low) * (self.end - self.start)

    def ticks(self) -> list[float]:
        """Choose round values between its ends."""
        locator = (
            LogLocator(subs=(1.0, 2.0, 5.0), numticks=20)
            if self.logarithmic
            else MaxNLocator(MOST_TICKS, steps=[1, 2, 5, 10], integer=self.whole)
        )
        inside = [
            float(tick)
            for tick in locator.tick_values(self.low, self.high)
            if self.low <= tick <= self.high
        ]
        return inside[:: math.ceil(len(inside) / (MOST_TICKS + 1))]


def axis_around(
    values: Iterable[float],
    start: float,
    end: float,
    *,
    steep: bool = False,
    whole: bool = False,
) -> Axis:
    """Lay an axis out so that all values have room.

    Parameters
    ----------
    values : iterable of float
        Finite; there may be none.
    start, end : float
        Places of its ends in px.
    steep : bool
        The axis becomes logarithmic where positive values differ by large factors.
    whole : bool
        Only whole numbers mean something.
    """
    found = list(values)
    low, high = (min(found), max(found)) if found else (0.0, 1.0)
    if steep and low > SMALLEST and high / low > LOGARITHMIC:
        factor = (high / low) ** SPARE
        return Axis(low / factor, high * factor, start, end, logarithmic=True)
    largest = max(abs(low), abs(high))
    alike = high - low <= max(ALIKE * largest, SMALLEST)
    spare = SPARE * (max(largest, 1.0) if alike else high - low)
    return Axis(low - spare, high + spare, start, end, whole=whole)


def show_tick(value: float) -> str:
    """Write a value on an axis.

    Examples
    --------
    >>> show_tick(-0.25), show_tick(200.0), show_tick(0.30000000000000004)
    ('−0.25', '200', '0.3')
    """
    return f"{value:.4g}".replace("-", "−")


def line(points: Sequence[tuple[float, float]], *, closed: bool = False) -> str:
    """Write a path through points in px.

    Examples
    --------
    >>> line([(0, 1), (2.25, 3)])
    'M0.0 1.0L2.2 3.0'
    """
    return "M" + "L".join(f"{x:.1f} {y:.1f}" for x, y in points) + "Z" * closed


def frame(across: Axis, up: Axis) -> tuple[list[Stroke], list[Text]]:
    """Draw the axes of a panel: faint lines at round values of ``up``, words at both axes."""
    left, right, bottom = across.start, across.end, up.start
    strokes = [
        Stroke(line([(left, up.place(tick)), (right, up.place(tick))]), FAINT)
        for tick in up.ticks()
    ]
    strokes.append(Stroke(line([(left, bottom), (right, bottom)]), INK))
    texts = [Text(show_tick(tick), left - 5, up.place(tick) + 4, "end") for tick in up.ticks()]
    texts += [Text(show_tick(tick), across.place(tick), bottom + 15) for tick in across.ticks()]
    return strokes, texts


def describe_range(values: Sequence[float], digits: int) -> str:
    """Tell values to those who do not see the chart: ``"0.81 to 0.88"``."""
    return f"{min(values):.{digits}f} to {max(values):.{digits}f}".replace("-", "−")
