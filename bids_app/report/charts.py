"""Charts of numbers: lines, dots and words, each with its place in px.

A chart is laid out here and written as SVG by the page's template, as figures of slices are.

Learning curves: losses and validation SSIM of every fold, and which epoch was kept.

What smoothing does to SSIM: the mean over controls against the FWHM of the Gaussian.

Violin plots: how a metric is spread over controls, a row of Table 1 beside the others.
"""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from math import isfinite
from statistics import fmean, stdev
from typing import Final

import numpy as np
from matplotlib.ticker import LogLocator, MaxNLocator
from scipy.stats import gaussian_kde

from bids_app.report.cards import ALL, HistoryEpoch, folds_of, kept_epoch, rank
from bids_app.report.figures import Text
from bids_app.report.table1 import Score, colour_of, dash_of, full_name_of, in_order, values_of

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


SIDE, CURVE_LEFT, CURVE_GAP = (
    320.0,
    50.0,
    62.0,
)  # px: width of a panel, before the first, between two
ABOVE, PANEL, BELOW = 40.0, 118.0, 26.0  # px: over a row of panels, its height, under it
PALETTE: Final = ("#0072b2", "#e69f00", "#009e73", "#cc79a7", "#56b4e9", "#d55e00")  # Okabe, Ito
DASHES: Final = ("", "6 3", "2 3")  # when there are more folds than colours
SSIM: Final = "SSIM, validation"
SERIES: Final[dict[str, Callable[[HistoryEpoch], float | None]]] = {
    "Loss of the generators": lambda epoch: epoch.generator_loss,
    "Loss of the discriminators": lambda epoch: epoch.discriminator_loss,
    SSIM: lambda epoch: epoch.ssim,
}


@dataclass(frozen=True)
class CurvePanel:
    """The lines of one quantity of one model, and marks where an epoch was kept."""

    strokes: list[Stroke]
    dots: list[Dot]
    texts: list[Text]


def draw_curves(histories: Mapping[str, Sequence[HistoryEpoch]]) -> Chart | None:
    """Draw a row of three panels a model, with a line a fold.

    Parameters
    ----------
    histories : dict
        Model → its epochs, in the order in which the models are drawn.

    Returns
    -------
    Chart or None
        None if no model has an epoch.
    """
    shown = {model: epochs for model, epochs in histories.items() if epochs}
    if not shown:
        return None
    folds = sorted({fold for epochs in shown.values() for fold in folds_of(epochs)}, key=rank)
    styles = {fold: _key(fold, place) for place, fold in enumerate(folds)}
    similarities = [ssim for epochs in shown.values() for ssim in _values(epochs, SERIES[SSIM])]
    panels, texts = list[CurvePanel](), list[Text]()
    for place, (model, epochs) in enumerate(shown.items()):
        top = place * (ABOVE + PANEL + BELOW) + ABOVE
        texts.append(Text(full_name_of(model), 0, top - 24, "start", strong=True))
        for column, (title, series) in enumerate(SERIES.items()):
            start = CURVE_LEFT + column * (SIDE + CURVE_GAP)
            across = axis_around([e.number for e in epochs], start, start + SIDE, whole=True)
            values = similarities if title == SSIM else _values(epochs, series)
            up = axis_around(values, top + PANEL, top, steep=title != SSIM)
            panels.append(_panel(epochs, series, across, up, styles, marked=title == SSIM))
            logarithmic = " (logarithmic)" * up.logarithmic
            texts.append(Text(title + logarithmic, start, top - 7, "start"))
    return Chart(
        title="Learning curves",
        description=_describe_curves(shown),
        width=WIDTH,
        height=len(shown) * (ABOVE + PANEL + BELOW),
        strokes=tuple(stroke for panel in panels for stroke in panel.strokes),
        dots=tuple(dot for panel in panels for dot in panel.dots),
        texts=(*texts, *(text for panel in panels for text in panel.texts)),
        keys=tuple(styles.values()),
    )


def _key(fold: str, place: int) -> Key:
    if fold == ALL:
        return Key("final generator, all controls", INK, "5 3")
    dash = DASHES[place // len(PALETTE) % len(DASHES)]
    return Key(f"fold {fold}", PALETTE[place % len(PALETTE)], dash)


def _values(
    epochs: Sequence[HistoryEpoch], series: Callable[[HistoryEpoch], float | None]
) -> list[float]:
    return [value for value in map(series, epochs) if value is not None and isfinite(value)]


def _describe_curves(histories: Mapping[str, Sequence[HistoryEpoch]]) -> str:
    told = [
        f"{full_name_of(model)}, fold {fold}: epoch {kept_epoch(epochs, fold)}"
        for model, epochs in histories.items()
        for fold in folds_of(epochs)
    ]
    return f"Epochs that were kept: {'; '.join(told)}."


def _panel(
    epochs: Sequence[HistoryEpoch],
    series: Callable[[HistoryEpoch], float | None],
    across: Axis,
    up: Axis,
    styles: Mapping[str, Key],
    *,
    marked: bool,
) -> CurvePanel:
    strokes, texts = frame(across, up)
    dots = []
    for fold, style in styles.items():
        points = {
            epoch.number: (across.place(epoch.number), up.place(value))
            for epoch in epochs
            if epoch.fold == fold and (value := series(epoch)) is not None and isfinite(value)
        }
        if points:
            strokes.append(Stroke(line(list(points.values())), style.colour, 1.4, style.dash))
        kept = [e.number for e in epochs if e.fold == fold and e.kept and e.number in points]
        dots += [Dot(*points[number], 4, style.colour) for number in kept if marked]
    return CurvePanel(strokes, dots, texts)


SWEEP_WIDTH, HEIGHT = 760.0, 330.0  # px
SWEEP_LEFT, SWEEP_TOP, SWEEP_BOTTOM = 56.0, 24.0, 40.0  # px left of, above and below the panel


@dataclass(frozen=True)
class Sweep:
    """SSIM of one model, mean over controls, by FWHM in mm."""

    model: str
    means: dict[float, float]

    @property
    def best(self) -> float:
        """The FWHM of the highest SSIM; the least of equals."""
        return max(self.means, key=lambda fwhm: (self.means[fwhm], -fwhm))


def sweeps_of(scores: Sequence[Score]) -> list[Sweep]:
    """Average over visits, for each model, the SSIM of every FWHM."""
    swept = []
    for model in in_order(score.model for score in scores if score.sweep):
        own = [score.sweep for score in scores if score.model == model]
        widths = sorted({fwhm for one in own for fwhm in one})
        means = {fwhm: fmean(one[fwhm] for one in own if fwhm in one) for fwhm in widths}
        swept.append(Sweep(model, means))
    return swept


def cautions_of(sweeps: Sequence[Sweep], resolution: float) -> list[str]:
    """Say where the best smoothing tells less than it seems to.

    Parameters
    ----------
    sweeps : sequence of Sweep
        What was measured.
    resolution : float
        Size of a voxel in mm.
    """
    told = []
    edge = [full_name_of(one.model) for one in sweeps if one.best == max(one.means)]
    if edge:
        told.append(
            f"{', '.join(edge)}: the widest Gaussian that was tried is the best; a wider one might "
            "be better still."
        )
    if sweeps and min(one.best for one in sweeps) < resolution:
        told.append(
            f"A voxel is {resolution:g} mm wide: narrower Gaussians hardly change the images."
        )
    return told


def draw_sweeps(sweeps: Sequence[Sweep], fwhm: float | None) -> Chart | None:
    """Draw a line a model.

    Parameters
    ----------
    sweeps : sequence of Sweep
        What was measured.
    fwhm : float or None
        By which the run smoothed what it wrote, in mm; None if unknown.

    Returns
    -------
    Chart or None
        None if nothing was measured.
    """
    if not sweeps:
        return None
    across = axis_around([w for one in sweeps for w in one.means], SWEEP_LEFT, SWEEP_WIDTH - 8)
    values = [ssim for one in sweeps for ssim in one.means.values()]
    up = axis_around(values, HEIGHT - SWEEP_BOTTOM, SWEEP_TOP)
    strokes, texts = frame(across, up)
    if fwhm is not None and across.low <= fwhm <= across.high:
        x = across.place(fwhm)
        strokes.append(Stroke(line([(x, SWEEP_TOP), (x, HEIGHT - SWEEP_BOTTOM)]), INK, 1, "3 3"))
        texts.append(Text(f"this run: {fwhm:g} mm", x + 5, SWEEP_TOP + 8, "start"))
    texts.append(Text("SSIM, whole volume", 0, 12, "start", strong=True))
    texts.append(Text("FWHM of the Gaussian (mm)", (SWEEP_LEFT + SWEEP_WIDTH) / 2, HEIGHT - 6))
    curves = [_curve(one, across, up) for one in sweeps]
    told = [
        f"{full_name_of(one.model)}: best at {one.best:g} mm, "
        f"{describe_range(list(one.means.values()), 3)}"
        for one in sweeps
    ]
    return Chart(
        title="SSIM against smoothing",
        description="; ".join(told) + ".",
        width=SWEEP_WIDTH,
        height=HEIGHT,
        strokes=(*strokes, *(stroke for stroke, _ in curves)),
        dots=tuple(dot for _, dots in curves for dot in dots),
        texts=tuple(texts),
        keys=tuple(
            Key(full_name_of(one.model), colour_of(one.model), dash_of(one.model)) for one in sweeps
        ),
    )


def _curve(sweep: Sweep, across: Axis, up: Axis) -> tuple[Stroke, list[Dot]]:
    colour, best = colour_of(sweep.model), sweep.best
    points = [(across.place(fwhm), up.place(ssim)) for fwhm, ssim in sweep.means.items()]
    dots = [
        Dot(x, y, 4.5 if fwhm == best else 2.2, colour)
        for fwhm, (x, y) in zip(sweep.means, points, strict=True)
    ]
    return Stroke(line(points), colour, 1.6, dash_of(sweep.model)), dots


SHOWN: Final = {"ssim": "SSIM ↑", "psnr": "PSNR (dB) ↑", "lpips": "LPIPS ↓"}
NAMES: Final = 235.0  # px on the left for the names of the rows
VIOLIN_TOP, ROW, VIOLIN_BOTTOM = 26.0, 38.0, 24.0  # px above, for each row, and below
VIOLIN_GAP: Final = 26.0  # px between panels
HALF: Final = 15.0  # px from the middle of a violin to its widest place
POINTS: Final = 60  # of an outline, our choice
FEWEST: Final = 3  # values below which a density says nothing (our choice)
VIOLIN_ALIKE: Final = 1e-9  # of a value: differences below it are rounding
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
    middles = {model: VIOLIN_TOP + ROW * (place + 0.5) for place, model in enumerate(models)}
    side = (WIDTH - NAMES - VIOLIN_GAP * len(panels)) / len(panels)
    strokes, dots = list[Stroke](), list[Dot]()
    texts = [Text(full_name_of(model), NAMES - 12, y + 4, "end") for model, y in middles.items()]
    for place, (metric, found) in enumerate(panels.items()):
        left = NAMES + place * (side + VIOLIN_GAP)
        all_values = [value for values in found.values() for value in values.values()]
        axis = axis_around(all_values, left, left + side)
        rules, words = _frame(SHOWN[metric], axis, middles)
        violins = [_violin(m, list(found[m].values()), axis, y) for m, y in middles.items()]
        strokes += [*rules, *(stroke for violin in violins for stroke in violin.strokes)]
        dots += [dot for violin in violins for dot in violin.dots]
        texts += words
    return Chart(
        title="Violin plots of " + ", ".join(metric.upper() for metric in panels),
        description=_describe_violins(panels),
        width=WIDTH,
        height=VIOLIN_TOP + ROW * len(models) + VIOLIN_BOTTOM,
        strokes=tuple(strokes),
        dots=tuple(dots),
        texts=tuple(texts),
    )


def _describe_violins(panels: Mapping[str, Mapping[str, Mapping[str, float]]]) -> str:
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
        Stroke(line([(axis.place(tick), VIOLIN_TOP), (axis.place(tick), bottom)]), FAINT)
        for tick in ticks
    ]
    texts = [Text(show_tick(tick), axis.place(tick), bottom + 16) for tick in ticks]
    return strokes, [Text(title, axis.start, VIOLIN_TOP - 10, "start", strong=True), *texts]


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
    if len(values) < FEWEST or np.ptp(values) <= VIOLIN_ALIKE * np.abs(values).max():
        return [0.0] * len(places)
    density = gaussian_kde(values)
    peak = density(np.linspace(min(values), max(values), POINTS)).max()
    widths: list[float] = (HALF * density(places) / peak).tolist()
    return widths
