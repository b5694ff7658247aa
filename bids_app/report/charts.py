"""Charts of numbers, drawn by matplotlib and written as SVG into a page.

Learning curves: losses and validation SSIM of every fold, and which epoch was kept.

What smoothing does to SSIM: the mean over controls against the FWHM of the Gaussian.

Violin plots: how a metric is spread over controls, a row of Table 1 beside the others.
"""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from math import isfinite
from statistics import fmean, stdev
from typing import TYPE_CHECKING, Any, Final

import matplotlib as mpl
import numpy as np
from markupsafe import Markup
from matplotlib.ticker import LogLocator, MaxNLocator, NullLocator
from scipy.stats import gaussian_kde

from bids_app.report.cards import ALL, HistoryEpoch, folds_of, kept_epoch, rank
from bids_app.report.table1 import Score, colour_of, dash_of, full_name_of, in_order, values_of

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.axis import XAxis, YAxis
    from matplotlib.figure import Figure

WIDTH: Final = 1160.0  # px; the width of the page
PALETTE: Final = ("#0072b2", "#e69f00", "#009e73", "#cc79a7", "#56b4e9", "#d55e00")  # Okabe, Ito
FAINT: Final = "#d0d7de"
INK: Final = "#1b1f24"
STYLE: Final[Mapping[Any, object]] = {
    "svg.fonttype": "none",  # text stays text
    "text.parse_math": False,  # a "$" in a name is one
    "text.color": INK,
    "font.family": "DejaVu Sans",  # matplotlib brings it; the page puts its own in its place
    "font.size": 11.0,
    "figure.facecolor": "none",
    "figure.constrained_layout.w_pad": 0.12,
    "figure.constrained_layout.h_pad": 0.06,
    "axes.facecolor": "none",
    "axes.edgecolor": INK,
    "axes.labelcolor": INK,
    "axes.titlelocation": "left",
    "axes.titlesize": "medium",
    "axes.spines.left": False,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.axisbelow": True,
    "axes.grid": True,
    "axes.grid.axis": "y",
    "grid.color": FAINT,
    "xtick.color": INK,
    "xtick.major.size": 0,
    "ytick.color": INK,
    "ytick.major.size": 0,
    "lines.scale_dashes": False,
    "lines.markeredgecolor": "white",
    "lines.markeredgewidth": 0.6,
}
CLIPS_AND_IDS: Final = re.compile(
    r' id="[\w.]+_\d+"| clip-path="[^"]*"|<clipPath.*?</clipPath>', re.DOTALL
)
MOST_TICKS: Final = 6
TWO_DECADES: Final = 200.0  # with room at both ends; up to there 2 and 5 are written, too
SPARE: Final = 0.06  # of the range, left free at either end of an axis (our choice)
ALIKE: Final = 1e-9  # of the largest value: what differs by less is drawn as equal (our choice)
SMALLEST: Final = 1e-12  # on a logarithmic axis; below it a loss is rounding (our choice)
LARGEST: Final = 1e300  # beyond it a value has no place on an axis, as infinity has none
LOGARITHMIC: Final = 20.0  # largest over smallest value beyond which an axis is (our choice)


@contextmanager
def plain_style() -> Iterator[None]:
    """Draw in one style, whatever the reader's own ``matplotlibrc`` says."""
    with mpl.rc_context():
        mpl.rcdefaults()
        mpl.rcParams.update(STYLE)
        yield


@dataclass(frozen=True)
class Key:
    """What the colour and the dashes of a line mean; dashes in px, as SVG writes them."""

    name: str
    colour: str
    dash: str = ""

    @property
    def linestyle(self) -> str | tuple[int, tuple[float, ...]]:
        """The dashes as matplotlib has them."""
        return (0, tuple(map(float, self.dash.split()))) if self.dash else "-"


@dataclass(frozen=True)
class Chart:
    """A figure, what it shows in words, and what its lines mean."""

    title: str
    description: str
    figure: Figure
    keys: tuple[Key, ...] = ()

    @property
    def size(self) -> tuple[float, float]:
        """Width and height in px."""
        width, height = 72 * self.figure.get_size_inches()
        return float(width), float(height)

    @property
    def svg(self) -> Markup:
        """What stands between ``<svg>`` and ``</svg>``; the same each time, to the byte.

        Ids of groups and clip paths are left out: a page has several charts, and addresses of
        nothing but itself. The other ids are salted with the title.
        """
        content = io.StringIO()
        nothing = dict.fromkeys(("Creator", "Date", "Format", "Type"))
        with plain_style():
            mpl.rcParams["svg.hashsalt"] = self.title
            self.figure.savefig(content, format="svg", metadata=nothing)
        drawn = content.getvalue().partition("</defs>")[2].rpartition("</svg>")[0]
        return Markup(CLIPS_AND_IDS.sub("", drawn))


def new_figure(width: float, height: float) -> Figure:
    """Make an empty figure, its size in px; matplotlib is loaded where something is drawn."""
    from matplotlib.figure import Figure

    return Figure(figsize=(width / 72, height / 72), layout="constrained")


def limits_around(values: Iterable[float], *, logarithmic: bool = False) -> tuple[float, float]:
    """Give the ends of an axis on which all values have room; there may be none."""
    found = [value for value in values if abs(value) < LARGEST]
    low, high = (min(found), max(found)) if found else (0.0, 1.0)
    if logarithmic:
        factor = (high / low) ** SPARE
        return low / factor, high * factor
    largest = max(abs(low), abs(high))
    alike = high - low <= max(ALIKE * largest, SMALLEST)
    spare = SPARE * (max(largest, 1.0) if alike else high - low)
    return low - spare, high + spare


def is_steep(values: Sequence[float]) -> bool:
    """Tell whether values are positive and differ by so large factors that logarithms show more.

    Examples
    --------
    >>> is_steep([0.1, 50]), is_steep([1, 19]), is_steep([0, 50]), is_steep([])
    (True, False, False, False)
    """
    return bool(values) and min(values) > SMALLEST and max(values) / min(values) > LOGARITHMIC


def set_axis(
    axis: XAxis | YAxis,
    limits: tuple[float, float],
    *,
    logarithmic: bool = False,
    whole: bool = False,
    most: int = MOST_TICKS,
) -> None:
    """Set the ends of an axis, and round values between them."""
    name = axis.axis_name
    axis.axes.set(**{f"{name}scale": "log" if logarithmic else "linear", f"{name}lim": limits})
    if logarithmic:
        few = limits[1] / limits[0] < TWO_DECADES
        axis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0) if few else (1.0,), numticks=most))
    else:
        axis.set_major_locator(MaxNLocator(most, steps=[1, 2, 5, 10], integer=whole))
    axis.set_minor_locator(NullLocator())
    axis.set_major_formatter(lambda value, _: show_tick(value))


def show_tick(value: float) -> str:
    """Write a value on an axis.

    Examples
    --------
    >>> show_tick(-0.25), show_tick(200.0), show_tick(0.30000000000000004)
    ('−0.25', '200', '0.3')
    """
    return f"{value:.4g}".replace("-", "−")


def describe_range(values: Sequence[float], digits: int) -> str:
    """Tell values to those who do not see the chart: ``"0.81 to 0.88"``."""
    return f"{min(values):.{digits}f} to {max(values):.{digits}f}".replace("-", "−")


CURVES: Final = 184.0  # px: height of a row of learning curves
FOLD_DASHES: Final = ("", "6 3", "2 3")  # when there are more folds than colours
SSIM: Final = "SSIM, validation"
SERIES: Final[dict[str, Callable[[HistoryEpoch], float | None]]] = {
    "Loss of the generators": lambda epoch: epoch.generator_loss,
    "Loss of the discriminators": lambda epoch: epoch.discriminator_loss,
    SSIM: lambda epoch: epoch.ssim,
}


@plain_style()
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
    keys = {fold: _fold_key(fold, place) for place, fold in enumerate(folds)}
    similarities = [ssim for epochs in shown.values() for ssim in _values(epochs, SERIES[SSIM])]
    figure = new_figure(WIDTH, CURVES * len(shown))
    parts = figure.subfigures(len(shown), squeeze=False)[:, 0]
    for part, (model, epochs) in zip(parts, shown.items(), strict=True):
        part.suptitle(full_name_of(model), x=0, ha="left", size="medium", weight="bold")
        for axes, (title, series) in zip(part.subplots(1, 3), SERIES.items(), strict=True):
            values = similarities if title == SSIM else _values(epochs, series)
            steep = title != SSIM and is_steep(values)
            set_axis(axes.xaxis, limits_around(e.number for e in epochs), whole=True)
            set_axis(axes.yaxis, limits_around(values, logarithmic=steep), logarithmic=steep)
            axes.set_title(title + " (logarithmic)" * steep)
            _draw_folds(axes, epochs, series, keys, marked=title == SSIM)
    return Chart("Learning curves", _describe_curves(shown), figure, tuple(keys.values()))


def _fold_key(fold: str, place: int) -> Key:
    if fold == ALL:
        return Key("final generator, all controls", INK, "5 3")
    dash = FOLD_DASHES[place // len(PALETTE) % len(FOLD_DASHES)]
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


def _draw_folds(
    axes: Axes,
    epochs: Sequence[HistoryEpoch],
    series: Callable[[HistoryEpoch], float | None],
    keys: Mapping[str, Key],
    *,
    marked: bool,
) -> None:
    for fold, key in keys.items():
        points = {
            epoch.number: value
            for epoch in epochs
            if epoch.fold == fold and (value := series(epoch)) is not None and isfinite(value)
        }
        if points:
            numbers, values = list(points), list(points.values())
            axes.plot(numbers, values, color=key.colour, lw=1.4, ls=key.linestyle)
        kept = [e.number for e in epochs if e.fold == fold and e.kept and e.number in points]
        if kept and marked:
            axes.plot(kept, [points[number] for number in kept], "o", ms=8, color=key.colour)


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
    edge = [full_name_of(sweep.model) for sweep in sweeps if sweep.best == max(sweep.means)]
    if edge:
        told.append(
            f"{', '.join(edge)}: the widest Gaussian that was tried is the best; a wider one might "
            "be better still."
        )
    if sweeps and min(sweep.best for sweep in sweeps) < resolution:
        told.append(
            f"A voxel is {resolution:g} mm wide: narrower Gaussians hardly change the images."
        )
    return told


@plain_style()
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
    figure = new_figure(760, 330)
    axes = figure.subplots()
    low, high = limits_around(width for sweep in sweeps for width in sweep.means)
    set_axis(axes.xaxis, (low, high))
    set_axis(axes.yaxis, limits_around(v for sweep in sweeps for v in sweep.means.values()))
    axes.set_title("SSIM, whole volume", weight="bold")
    axes.set_xlabel("FWHM of the Gaussian (mm)")
    if fwhm is not None and low <= fwhm <= high:
        axes.axvline(fwhm, color=INK, lw=1, ls=(0, (3, 3)))
        axes.annotate(
            f"this run: {fwhm:g} mm",
            (fwhm, 1),
            xycoords=axes.get_xaxis_transform(),
            xytext=(5, -10),
            textcoords="offset points",
        )
    keys = []
    for sweep in sweeps:
        key = Key(full_name_of(sweep.model), colour_of(sweep.model), dash_of(sweep.model))
        widths, means = list(sweep.means), list(sweep.means.values())
        axes.plot(widths, means, color=key.colour, lw=1.6, ls=key.linestyle, marker="o", ms=4.4)
        axes.plot(sweep.best, max(means), "o", color=key.colour, ms=9)
        keys.append(key)
    told = "; ".join(
        f"{full_name_of(sweep.model)}: best at {sweep.best:g} mm, "
        f"{describe_range(list(sweep.means.values()), 3)}"
        for sweep in sweeps
    )
    return Chart("SSIM against smoothing", f"{told}.", figure, tuple(keys))


METRIC_NAMES: Final = {"ssim": "SSIM ↑", "psnr": "PSNR (dB) ↑", "lpips": "LPIPS ↓"}
HALF: Final = 0.4  # of the height of a row, from the middle of a violin to its widest place
POINTS: Final = 60  # of an outline, our choice
FEWEST: Final = 3  # values below which a density says nothing (our choice)
VIOLIN_ALIKE: Final = 1e-9  # of a value: differences below it are rounding
GOLDEN: Final = 0.618034  # multiples of it fill 0..1 evenly: dots beside one another, not random


@plain_style()
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
        metric: {model: values_of(scores, model, metric) for model in models}
        for metric in METRIC_NAMES
    }
    panels = {metric: found for metric, found in measured.items() if any(found.values())}
    if not panels:
        return None
    figure = new_figure(WIDTH, 50 + 38 * len(models))
    columns = figure.subplots(1, len(panels), sharey=True, squeeze=False)[0]
    for axes, (metric, found) in zip(columns, panels.items(), strict=True):
        axes.set_title(METRIC_NAMES[metric], weight="bold")
        axes.grid(visible=True, axis="x")
        set_axis(axes.xaxis, limits_around(v for own in found.values() for v in own.values()))
        for place, (model, values) in enumerate(found.items()):
            if values:
                _draw_violin(axes, place, list(values.values()), colour_of(model))
    columns[0].set(ylim=(len(models) - 0.5, -0.5), yticks=range(len(models)))
    columns[0].set_yticklabels(map(full_name_of, models))
    title = "Violin plots of " + ", ".join(metric.upper() for metric in panels)
    return Chart(title, _describe_violins(panels), figure)


def _describe_violins(panels: Mapping[str, Mapping[str, Mapping[str, float]]]) -> str:
    told = [
        f"{full_name_of(model)}: {metric.upper()} "
        + describe_range(list(values.values()), 2 if metric == "psnr" else 3)
        for metric, found in panels.items()
        for model, values in found.items()
        if values
    ]
    return "; ".join(told) + "."


def _draw_violin(axes: Axes, place: int, values: Sequence[float], colour: str) -> None:
    """Draw the density between the extremes, mean ± SD, and a dot a value."""
    grid = np.linspace(min(values), max(values), POINTS)
    half = np.array(half_widths(values, grid.tolist()))
    outline = np.concatenate([place - half, place + half[::-1]])
    axes.fill([*grid, *grid[::-1]], outline, facecolor=(colour, 0.35), edgecolor=colour)
    middle, offsets = fmean(values), np.arange(len(values)) * GOLDEN % 1 - 0.5
    if len(values) > 1:
        spread = stdev(values)
        axes.plot([middle - spread, middle + spread], [place, place], color=INK, lw=1.5)
    axes.plot([middle, middle], [place - HALF, place + HALF], color=INK, lw=2.5)
    beside = place + offsets * (np.array(half_widths(values, values)) + 0.05)
    axes.plot(values, beside, "o", ms=5.2, color=colour)


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
        From the middle to the edge, in rows; 0 where there are too few values, or all are equal.
    """
    if len(values) < FEWEST or np.ptp(values) <= VIOLIN_ALIKE * np.abs(values).max():
        return [0.0] * len(places)
    density = gaussian_kde(values)
    peak = density(np.linspace(min(values), max(values), POINTS)).max()
    widths: list[float] = (HALF * density(places) / peak).tolist()
    return widths
