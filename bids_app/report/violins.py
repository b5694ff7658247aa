"""Violin plots: how a metric is spread over controls, a row of Table 1 beside the others."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean, stdev
from typing import Final

import numpy as np
from scipy.stats import gaussian_kde

from bids_app.report.charts import (
    FAINT,
    INK,
    WIDTH,
    Axis,
    Chart,
    Dot,
    Stroke,
    axis_around,
    describe_range,
    line,
    show_tick,
)
from bids_app.report.paper import colour_of, full_name_of, in_order
from bids_app.report.reportlets import Text
from bids_app.report.scores import Score, values_of

SHOWN: Final = {"ssim": "SSIM ↑", "psnr": "PSNR (dB) ↑", "lpips": "LPIPS ↓"}
NAMES: Final = 235.0  # px on the left for the names of the rows
TOP, ROW, BOTTOM = 26.0, 38.0, 24.0  # px above, for each row, and below
GAP: Final = 26.0  # px between panels
HALF: Final = 15.0  # px from the middle of a violin to its widest place
POINTS: Final = 60  # of an outline, our choice
FEWEST: Final = 3  # values below which a density says nothing (our choice)
ALIKE: Final = 1e-9  # of a value: differences below it are rounding
GOLDEN: Final = 0.618034  # multiples of it fill 0..1 evenly: dots beside one another, not random


@dataclass(frozen=True)
class Violin:
    """The marks of one row in one panel."""

    strokes: tuple[Stroke, ...]
    dots: tuple[Dot, ...]


def draw_violins(scores: Sequence[Score]) -> Chart | None:
    """Draw SSIM, PSNR and LPIPS of every row, with a dot a control.

    Parameters
    ----------
    scores : sequence of Score
        Of all models and baselines. A control with several visits is one dot, at their mean.

    Returns
    -------
    Chart or None
        A panel for each metric that was measured; None if there is none.
    """
    models = in_order(score.model for score in scores)
    measured = {
        metric: {model: values_of(scores, model, metric) for model in models} for metric in SHOWN
    }
    panels = {metric: found for metric, found in measured.items() if any(found.values())}
    if not panels:
        return None
    middles = {model: TOP + ROW * (place + 0.5) for place, model in enumerate(models)}
    side = (WIDTH - NAMES - GAP * len(panels)) / len(panels)
    strokes, dots = list[Stroke](), list[Dot]()
    texts = [Text(full_name_of(model), NAMES - 12, y + 4, "end") for model, y in middles.items()]
    for place, (metric, found) in enumerate(panels.items()):
        left = NAMES + place * (side + GAP)
        all_values = [value for values in found.values() for value in values.values()]
        axis = axis_around(all_values, left, left + side)
        rules, words = _frame(SHOWN[metric], axis, middles)
        violins = [_violin(m, list(found[m].values()), axis, y) for m, y in middles.items()]
        strokes += [*rules, *(stroke for violin in violins for stroke in violin.strokes)]
        dots += [dot for violin in violins for dot in violin.dots]
        texts += words
    return Chart(
        title="Violin plots of " + ", ".join(metric.upper() for metric in panels),
        description=_describe(panels),
        width=WIDTH,
        height=TOP + ROW * len(models) + BOTTOM,
        strokes=tuple(strokes),
        dots=tuple(dots),
        texts=tuple(texts),
    )


def _describe(panels: Mapping[str, Mapping[str, Mapping[str, float]]]) -> str:
    told = [
        f"{full_name_of(model)}: {metric.upper()} "
        + describe_range(list(values.values()), 2 if metric == "psnr" else 3)
        for metric, found in panels.items()
        for model, values in found.items()
        if values
    ]
    return "; ".join(told) + "."


def _frame(title: str, axis: Axis, middles: Mapping[str, float]) -> tuple[list[Stroke], list[Text]]:
    """Draw a panel's ticks, and a faint line along each row."""
    bottom = max(middles.values()) + ROW / 2
    ticks = axis.ticks()
    strokes = [Stroke(line([(axis.start, y), (axis.end, y)]), FAINT) for y in middles.values()]
    strokes += [
        Stroke(line([(axis.place(tick), TOP), (axis.place(tick), bottom)]), FAINT) for tick in ticks
    ]
    texts = [Text(show_tick(tick), axis.place(tick), bottom + 16) for tick in ticks]
    return strokes, [Text(title, axis.start, TOP - 10, "start", strong=True), *texts]


def _violin(model: str, values: Sequence[float], axis: Axis, y: float) -> Violin:
    """Draw the density between the extremes, mean ± SD, and a dot a value."""
    if not values:
        return Violin((), ())
    colour, mean = colour_of(model), fmean(values)
    grid = np.linspace(min(values), max(values), POINTS).tolist()
    edge = list(zip(map(axis.place, grid), half_widths(values, grid), strict=True))
    outline = [(x, y - half) for x, half in edge] + [(x, y + half) for x, half in reversed(edge)]
    middle = axis.place(mean)
    strokes = [Stroke(line(outline, closed=True), colour, fill=colour)]
    if len(values) > 1:
        ends = [(axis.place(mean + side * stdev(values)), y) for side in (-1, 1)]
        strokes.append(Stroke(line(ends), INK, 1.5))
    strokes.append(Stroke(line([(middle, y - HALF), (middle, y + HALF)]), INK, 2.5))
    dots = tuple(
        Dot(axis.place(value), y + ((place * GOLDEN) % 1 - 0.5) * (half + 2), 2.6, colour)
        for place, (value, half) in enumerate(zip(values, half_widths(values, values), strict=True))
    )
    return Violin(tuple(strokes), dots)


def half_widths(values: Sequence[float], places: Sequence[float]) -> list[float]:
    """Say how wide a violin is at some places.

    Gaussian kernel density, bandwidth by Scott's rule (scipy's choice).

    Parameters
    ----------
    values, places : sequence of float
        What is shown, and where the width is wanted; in the unit of the metric.

    Returns
    -------
    list of float
        From the middle to the edge, in px; 0 where there are too few values, or all are equal.
    """
    if len(values) < FEWEST or np.ptp(values) <= ALIKE * np.abs(values).max():
        return [0.0] * len(places)
    density = gaussian_kde(values)
    peak = density(np.linspace(min(values), max(values), POINTS)).max()
    widths: list[float] = (HALF * density(places) / peak).tolist()
    return widths
