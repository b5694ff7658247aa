"""Charts of numbers, drawn by matplotlib and written as SVG into a page.

Learning curves: losses and validation SSIM of every fold, with the epoch that was kept.

Effect of smoothing on SSIM: mean over controls against the FWHM of the Gaussian.

Violin plots: distribution of a metric over controls for each row of Table 1.

Calibration: the highest cluster of each healthy control, scored by folds that left it out.

Detection curves: sensitivity against clusters per patient, as in Figure 4 of Zotova et al. (2021);
free-response curves: sensitivity against false clusters per healthy control.
"""

from __future__ import annotations

import io
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from math import isfinite, isnan
from operator import attrgetter
from statistics import fmean, mean, median, stdev
from typing import TYPE_CHECKING, Final

import matplotlib as mpl
import numpy as np
from markupsafe import Markup
from matplotlib.ticker import LogLocator, MaxNLocator, NullLocator
from scipy.stats import gaussian_kde

from bids_app.derivatives.table1 import ALL, HistoryEpoch, rank
from bids_app.detection.detectors import TRAINING_SETS, detector_of
from bids_app.detection.evaluation import CurvePoint, FreePoint
from bids_app.report.anomalies import (
    UNITS,
    Detected,
    DetectorKey,
    format_score,
    in_order,
    in_rank,
    key_of,
    title_of,
)
from bids_app.report.cards import folds_of, kept_epoch
from bids_app.report.page import TEMPLATES, name_visit
from bids_app.report.table1 import GREY, colour_of, dash_of, full_name_of, values_of
from bids_app.report.table1 import in_order as in_paper_order
from bids_app.synthesis.evaluation import ScoreRecord
from bids_app.synthesis.models import OVERLAPPING

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.axis import XAxis, YAxis
    from matplotlib.figure import Figure

WIDTH: Final = 1160.0  # px; the width of the page
PALETTE: Final = ("#0072b2", "#e69f00", "#009e73", "#cc79a7", "#56b4e9", "#d55e00")  # Okabe, Ito
INK: Final = "#1b1f24"
CLIPS_AND_IDS: Final = re.compile(
    r' id="[\w.]+_\d+"| clip-path="[^"]*"|<clipPath.*?</clipPath>', re.DOTALL
)
MOST_TICKS: Final = 6
TWO_DECADES: Final = 200.0  # ratio, with room at both ends; below it 2 and 5 are labelled, too
SPARE: Final = 0.06  # fraction of the range left free at either end of an axis (our choice)
ALIKE: Final = 1e-9  # relative to the largest value; smaller ranges count as none (our choice)
SMALLEST: Final = 1e-12  # on a logarithmic axis; smaller losses are rounding errors (our choice)
LARGEST: Final = 1e300  # larger values are left off an axis, as infinity is
LOGARITHMIC: Final = 20.0  # ratio of extremes above which an axis is logarithmic (our choice)


@contextmanager
def plain_style() -> Iterator[None]:
    """Draw in a fixed style, whatever the user's ``matplotlibrc`` says."""
    with mpl.rc_context(fname=TEMPLATES / "charts.mplstyle"):  # and the defaults of matplotlib
        yield


@dataclass(frozen=True)
class Key:
    """Legend entry for the colour and dashes of a line; dashes in px, in SVG notation."""

    name: str
    colour: str
    dash: str = ""

    @property
    def linestyle(self) -> str | tuple[int, tuple[float, ...]]:
        """Line style in matplotlib's notation."""
        return (0, tuple(map(float, self.dash.split()))) if self.dash else "-"


@dataclass(frozen=True)
class Chart:
    """Figure with its description in words and its legend."""

    title: str
    description: str
    figure: Figure
    keys: tuple[Key, ...] = ()

    @property
    def size(self) -> tuple[float, float]:
        """Width and height in px."""
        width, height = 72 * self.figure.get_size_inches()
        return float(width), float(height)

    @cached_property
    def svg(self) -> Markup:
        """Content of the ``<svg>`` element, identical to the byte each time.

        It is drawn once because the layout shifts slightly each time the same figure is drawn.

        Ids of groups and clip paths are left out because a page contains several charts, in which
        they would clash. The other ids are salted with the title.
        """
        content = io.StringIO()
        nothing = dict.fromkeys(("Creator", "Date", "Format", "Type"))
        with plain_style():
            mpl.rcParams["svg.hashsalt"] = self.title
            self.figure.savefig(content, format="svg", metadata=nothing)
        drawn = content.getvalue().partition("</defs>")[2].rpartition("</svg>")[0]
        return Markup(CLIPS_AND_IDS.sub("", drawn))


def new_figure(width: float, height: float) -> Figure:
    """Create an empty figure, sized in px; ``matplotlib.figure`` is imported only when needed."""
    from matplotlib.figure import Figure

    return Figure(figsize=(width / 72, height / 72), layout="constrained")


def limits_around(values: Iterable[float], *, logarithmic: bool = False) -> tuple[float, float]:
    """Return limits of an axis that leave room around all values; there may be no values."""
    finite = [value for value in values if abs(value) < LARGEST]
    low, high = (min(finite), max(finite)) if finite else (0.0, 1.0)
    if logarithmic:
        factor = (high / low) ** SPARE
        return low / factor, high * factor
    largest = max(abs(low), abs(high))
    alike = high - low <= max(ALIKE * largest, SMALLEST)
    spare = SPARE * (max(largest, 1.0) if alike else high - low)
    return low - spare, high + spare


def is_steep(values: Sequence[float]) -> bool:
    """Return whether values are positive and differ by factors that call for a logarithmic axis.

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
    max_ticks: int = MOST_TICKS,
) -> None:
    """Set the limits of an axis, with ticks at round values."""
    name = axis.axis_name
    axis.axes.set(**{f"{name}scale": "log" if logarithmic else "linear", f"{name}lim": limits})
    if logarithmic:
        narrow = limits[1] / limits[0] < TWO_DECADES
        axis.set_major_locator(
            LogLocator(subs=(1.0, 2.0, 5.0) if narrow else (1.0,), numticks=max_ticks)
        )
    else:
        axis.set_major_locator(MaxNLocator(max_ticks, steps=[1, 2, 5, 10], integer=whole))
    axis.set_minor_locator(NullLocator())
    axis.set_major_formatter(lambda value, _: show_tick(value))


def show_tick(value: float) -> str:
    """Format the label of a tick.

    Examples
    --------
    >>> show_tick(-0.25), show_tick(20000.0), show_tick(0.30000000000000004)
    ('−0.25', '20000', '0.3')
    """
    return f"{value:.{8 if abs(value) >= 1 else 4}g}".replace("-", "−")


def describe_range(values: Sequence[float], digits: int) -> str:
    """Describe the range of values for the text alternative of a chart: ``"0.81 to 0.88"``."""
    return f"{min(values):.{digits}f} to {max(values):.{digits}f}".replace("-", "−")


CURVES: Final = 200.0  # px; height of a row of learning curves
FOLD_DASHES: Final = ("", "6 3", "2 3")  # used in turn if there are more folds than colours
SSIM: Final = "SSIM, validation"
SERIES: Final = {
    "Loss of the generators": "generator_loss",
    "Loss of the discriminators": "discriminator_loss",
    SSIM: "ssim_validation",
}


@plain_style()
def draw_curves(histories: Mapping[str, Sequence[HistoryEpoch]]) -> Chart | None:
    """Draw a row of three panels per model, with a line per fold.

    Parameters
    ----------
    histories : dict
        Epochs of each model, in the order in which the models are drawn.

    Returns
    -------
    Chart or None
        Learning curves; None if no model has an epoch.
    """
    shown = {model: epochs for model, epochs in histories.items() if epochs}
    if not shown:
        return None
    folds = sorted({fold for epochs in shown.values() for fold in folds_of(epochs)}, key=rank)
    keys = {fold: _fold_key(fold, index) for index, fold in enumerate(folds)}
    similarities = [ssim for epochs in shown.values() for ssim in _values(epochs, SERIES[SSIM])]
    figure = new_figure(WIDTH, CURVES * len(shown))
    parts = figure.subfigures(len(shown), squeeze=False)[:, 0]
    for part, (model, epochs) in zip(parts, shown.items(), strict=True):
        part.suptitle(full_name_of(model), x=0, ha="left", size="medium", weight="bold")
        for axes, (title, series) in zip(part.subplots(1, 3), SERIES.items(), strict=True):
            values = similarities if title == SSIM else _values(epochs, series)
            steep = title != SSIM and is_steep(values)
            set_axis(axes.xaxis, limits_around(e.epoch for e in epochs), whole=True)
            set_axis(axes.yaxis, limits_around(values, logarithmic=steep), logarithmic=steep)
            axes.set_title(title + " (logarithmic)" * steep)
            axes.set_xlabel("epoch")
            _draw_folds(axes, epochs, series, keys, marked=title == SSIM)
    return Chart("Learning curves", _describe_curves(shown), figure, tuple(keys.values()))


def _fold_key(fold: str, index: int) -> Key:
    if fold == ALL:
        return Key("final generator, all controls", INK, "5 3")
    dash = FOLD_DASHES[index // len(PALETTE) % len(FOLD_DASHES)]
    return Key(f"fold {fold}", PALETTE[index % len(PALETTE)], dash)


def _values(epochs: Sequence[HistoryEpoch], series: str) -> list[float]:
    return [value for epoch in epochs if isfinite(value := getattr(epoch, series))]


def _describe_curves(histories: Mapping[str, Sequence[HistoryEpoch]]) -> str:
    epochs_kept = [
        f"{full_name_of(model)}, fold {fold}: epoch {kept_epoch(epochs, fold)}"
        for model, epochs in histories.items()
        for fold in folds_of(epochs)
    ]
    return f"Epochs that were kept: {'; '.join(epochs_kept)}."


def _draw_folds(
    axes: Axes,
    epochs: Sequence[HistoryEpoch],
    series: str,
    keys: Mapping[str, Key],
    *,
    marked: bool,
) -> None:
    for fold, key in keys.items():
        fold_epochs = [e for e in epochs if e.fold == fold and isfinite(getattr(e, series))]
        points = {epoch.epoch: getattr(epoch, series) for epoch in fold_epochs}
        if points:
            numbers, values = list(points), list(points.values())
            axes.plot(numbers, values, color=key.colour, lw=1.4, ls=key.linestyle)
        kept = [epoch.epoch for epoch in fold_epochs if epoch.kept == 1]
        if kept and marked:
            axes.plot(kept, [points[number] for number in kept], "o", ms=8, color=key.colour)


def sweeps_of(scores: Sequence[ScoreRecord]) -> dict[str, dict[float, float]]:
    """Average the SSIM over visits, for each model and each FWHM in mm."""
    swept = {}
    for model in in_paper_order(score.model for score in scores if score.sweep):
        sweeps = [score.sweep for score in scores if score.model == model]
        widths = sorted({fwhm for sweep in sweeps for fwhm in sweep})
        swept[model] = {w: fmean(sweep[w] for sweep in sweeps if w in sweep) for w in widths}
    return swept


def best_of(means: Mapping[float, float]) -> float:
    """Return the FWHM of the highest SSIM, the smallest one in a tie."""
    return max(means, key=lambda fwhm: (means[fwhm], -fwhm))


def cautions_of(sweeps: Mapping[str, Mapping[float, float]], resolution: float) -> list[str]:
    """List reasons to interpret the best smoothing with caution.

    Parameters
    ----------
    sweeps : dict
        Mean SSIM by FWHM in mm, for each model.
    resolution : float
        Voxel size in mm.
    """
    cautions = []
    edge = [full_name_of(model) for model, means in sweeps.items() if best_of(means) == max(means)]
    if edge:
        cautions.append(
            f"{', '.join(edge)}: the widest Gaussian that was tried is the best; a wider one might "
            "be better still."
        )
    if sweeps and min(map(best_of, sweeps.values())) < resolution:
        cautions.append(
            f"A voxel is {resolution:g} mm wide: narrower Gaussians hardly change the images."
        )
    return cautions


@plain_style()
def draw_sweeps(sweeps: Mapping[str, Mapping[float, float]], fwhm: float | None) -> Chart | None:
    """Draw SSIM against smoothing, with a line per model.

    Parameters
    ----------
    sweeps : dict
        Mean SSIM by FWHM in mm, for each model.
    fwhm : float or None
        FWHM in mm with which the run smoothed its output; None if unknown.

    Returns
    -------
    Chart or None
        Curves of SSIM; None if nothing was measured.
    """
    if not sweeps:
        return None
    figure = new_figure(760, 330)
    axes = figure.subplots()
    low, high = limits_around(width for means in sweeps.values() for width in means)
    set_axis(axes.xaxis, (low, high))
    set_axis(axes.yaxis, limits_around(v for means in sweeps.values() for v in means.values()))
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
    keys, descriptions = [], []
    for model, means in sweeps.items():
        key, best = Key(full_name_of(model), colour_of(model), dash_of(model)), best_of(means)
        widths, values = list(means), list(means.values())
        axes.plot(widths, values, color=key.colour, lw=1.6, ls=key.linestyle, marker="o", ms=4.4)
        axes.plot(best, means[best], "o", color=key.colour, ms=9)
        keys.append(key)
        descriptions.append(f"{key.name}: best at {best:g} mm, {describe_range(values, 3)}")
    return Chart("SSIM against smoothing", f"{'; '.join(descriptions)}.", figure, tuple(keys))


METRIC_NAMES: Final = {"ssim": "SSIM ↑", "psnr": "PSNR (dB) ↑", "lpips": "LPIPS ↓"}
HALF: Final = 0.4  # half-width of a violin at its widest point, in rows
POINTS: Final = 60  # per side of an outline (our choice)
FEWEST: Final = 3  # values; a density of fewer is meaningless (our choice)
VIOLIN_ALIKE: Final = 1e-9  # relative; smaller differences are rounding errors
GOLDEN: Final = 0.618034  # its multiples modulo 1 fill 0..1 evenly: jitter that is not random


@plain_style()
def draw_violins(scores: Sequence[ScoreRecord]) -> Chart | None:
    """Draw violins of SSIM, PSNR and LPIPS for each row of Table 1, with a dot per control.

    Parameters
    ----------
    scores : sequence of ScoreRecord
        Scores of all models and baselines; a model's second line in the table is not drawn. A
        control with several visits is one dot, at their mean.

    Returns
    -------
    Chart or None
        Chart with a panel for each metric that was measured; None if there is none.
    """
    models = in_paper_order(score.model for score in scores if score.model not in OVERLAPPING)
    measured = {
        metric: {model: values_of(scores, model, metric) for model in models}
        for metric in METRIC_NAMES
    }
    panels = {metric: by_model for metric, by_model in measured.items() if any(by_model.values())}
    if not panels:
        return None
    figure = new_figure(WIDTH, 50 + 38 * len(models))
    columns = figure.subplots(1, len(panels), sharey=True, squeeze=False)[0]
    for axes, (metric, by_model) in zip(columns, panels.items(), strict=True):
        axes.set_title(METRIC_NAMES[metric], weight="bold")
        axes.grid(visible=True, axis="x")
        values_shown = [value for values in by_model.values() for value in values.values()]
        set_axis(axes.xaxis, limits_around(values_shown))
        for row, (model, values) in enumerate(by_model.items()):
            if values:
                _draw_violin(axes, row, list(values.values()), colour_of(model))
    columns[0].set(ylim=(len(models) - 0.5, -0.5), yticks=range(len(models)))
    columns[0].set_yticklabels(map(full_name_of, models))
    title = "Violin plots of " + ", ".join(metric.upper() for metric in panels)
    return Chart(title, _describe_violins(panels), figure)


def _describe_violins(panels: Mapping[str, Mapping[str, Mapping[str, float]]]) -> str:
    descriptions = [
        f"{full_name_of(model)}: {metric.upper()} "
        + describe_range(list(values.values()), 2 if metric == "psnr" else 3)
        for metric, by_model in panels.items()
        for model, values in by_model.items()
        if values
    ]
    return "; ".join(descriptions) + "."


def _draw_violin(axes: Axes, row: int, values: Sequence[float], colour: str) -> None:
    """Draw the density between the extremes, mean ± SD, and a dot per value."""
    grid = np.linspace(min(values), max(values), POINTS)
    half = np.array(half_widths(values, grid.tolist()))
    outline = np.concatenate([row - half, row + half[::-1]])
    axes.fill([*grid, *grid[::-1]], outline, facecolor=(colour, 0.35), edgecolor=colour)
    middle, offsets = fmean(values), np.arange(len(values)) * GOLDEN % 1 - 0.5
    if len(values) > 1:
        spread = stdev(values)
        axes.plot([middle - spread, middle + spread], [row, row], color=INK, lw=1.5)
    axes.plot([middle, middle], [row - HALF, row + HALF], color=INK, lw=2.5)
    beside = row + offsets * (np.array(half_widths(values, values)) + 0.05)
    axes.plot(values, beside, "o", ms=5.2, color=colour)


def half_widths(values: Sequence[float], places: Sequence[float]) -> list[float]:
    """Compute the half-width of a violin at given positions.

    The density is estimated with a Gaussian kernel and Scott's rule (scipy's default).

    Parameters
    ----------
    values, places : sequence of float
        Values shown, and positions at which to compute the width, in the unit of the metric.

    Returns
    -------
    list of float
        Distances from the middle to the edge, in rows; 0 if there are too few values or all are
        equal.
    """
    if len(values) < FEWEST or np.ptp(values) <= VIOLIN_ALIKE * np.abs(values).max():
        return [0.0] * len(places)
    density = gaussian_kde(values)
    peak = density(np.linspace(min(values), max(values), POINTS)).max()
    widths: list[float] = (HALF * density(places) / peak).tolist()
    return widths


HEADROOM: Final = 1.06  # right end of an axis over the highest value (our choice)


@dataclass(frozen=True)
class Calibration:
    """Summed scores of the first clusters of one detector.

    Parameters
    ----------
    detector : DetectorKey
        Training set and detector.
    controls : dict
        Highest ``sum_score`` of each held-out control; 0 if it has no cluster.
    counts : sequence of int
        Number of clusters of each of those controls.
    patients : dict
        Highest ``sum_score`` of each patient's visit; 0 if it has no cluster.
    shares : sequence of float
        Share of the brain that scores above 0, for those controls in which it is known.
    visits : bool
        Whether a patient has several visits, so that visits are counted instead of patients.
    """

    detector: DetectorKey
    controls: Mapping[str, float]
    counts: Sequence[int]
    patients: Mapping[str, float]
    shares: Sequence[float] = ()
    visits: bool = False

    @property
    def beyond(self) -> list[str]:
        """Patients with a higher first cluster than every control; empty without controls."""
        if not self.controls:
            return []
        highest = max(self.controls.values())
        return [name for name, value in self.patients.items() if value > highest]


def calibrations_of(detected: Detected) -> list[Calibration]:
    """Compare patients with held-out controls for each detector."""
    return [_calibration(detected, detector) for detector in detected.detectors]


def calibration_lines(calibrations: Sequence[Calibration]) -> list[tuple[str, ...]]:
    """Format the rows of the table of controls and of patients above them: a name and six cells."""
    return [_line(calibration) for calibration in calibrations if calibration.controls]


@plain_style()
def draw_calibration(calibrations: Sequence[Calibration], sets: Sequence[str]) -> Chart | None:
    """Draw a row per detector with a dot per visit: patients above, held-out controls below.

    Returns
    -------
    Chart or None
        Chart of first clusters; None if no control was held out.
    """
    shown = [calibration for calibration in calibrations if calibration.controls]
    if not shown:
        return None
    figure = new_figure(WIDTH, 66 * len(shown))
    rows = figure.subplots(len(shown), squeeze=False)[:, 0]
    for axes, calibration in zip(rows, shown, strict=True):
        _draw_subjects(axes, calibration, colour_of_set(calibration.detector[0], sets))
    trained = dict.fromkeys(calibration.detector[0] for calibration in shown)
    return Chart(
        "First clusters of patients and of held-out controls",
        " ".join(f"{name_of(calibration)}: {_count_beyond(calibration)}." for calibration in shown),
        figure,
        (
            Key("held-out controls", GREY),
            *(Key(f"patients, training set {name}", colour_of_set(name, sets)) for name in trained),
        ),
    )


def _draw_subjects(axes: Axes, calibration: Calibration, colour: str) -> None:
    controls, patients = list(calibration.controls.values()), list(calibration.patients.values())
    highest = max(value for value in [*controls, *patients, 1e-9] if value < LARGEST)
    set_axis(axes.xaxis, (0.0, HEADROOM * highest))
    axes.set_ylim(-0.8, 1.6)
    axes.set_yticks([0.5], [name_of(calibration)], weight="bold")
    axes.grid(visible=False)
    axes.axvline(max(controls), color=GREY, lw=1, ls=(0, (3, 3)))
    axes.plot(controls, [0] * len(controls), "o", ms=8, color=GREY)
    axes.plot(patients, [1] * len(patients), "o", ms=9, color=colour)
    axes.text(1.01, 0.5, _count_beyond(calibration), va="center", transform=axes.transAxes)


def name_of(calibration: Calibration) -> str:
    """Return the label of the detector with its training set."""
    return title_of(*calibration.detector)


def colour_of_set(training_set: str, sets: Sequence[str]) -> str:
    """Return the colour of a training set, from the palette of Okabe and Ito."""
    return CONTRASTS[in_order([*TRAINING_SETS, *sets]).index(training_set) % len(CONTRASTS)]


def _calibration(detected: Detected, detector: DetectorKey) -> Calibration:
    scores = detected.control_scores.get(detector, {})
    names = sorted(scores)
    labels = [participant for participant, _ in detected.patients_of(detector)]
    return Calibration(
        detector=detector,
        controls={name: max(scores[name], default=0.0) for name in names},
        counts=[len(scores[name]) for name in names],
        patients=_patients(detected, detector),
        shares=list(detected.control_shares.get(detector, {}).values()),
        visits=len(set(labels)) < len(labels),
    )


def _patients(detected: Detected, detector: DetectorKey) -> dict[str, float]:
    highest = {name_visit(*visit): 0.0 for visit in detected.patients_of(detector)}
    for listed in detected.clusters:
        if key_of(listed) == detector:
            visit = name_visit(listed.participant, listed.session)
            scores = [
                cluster.sum_score for cluster in listed.clusters if not isnan(cluster.sum_score)
            ]
            highest[visit] = max([highest.get(visit, 0.0), *scores])
    return dict(sorted(highest.items()))


def _line(calibration: Calibration) -> tuple[str, ...]:
    counts, tops = calibration.counts, list(calibration.controls.values())
    return (
        name_of(calibration),
        f"{len(tops)}",
        f"{median(counts):g} ({min(counts)} to {max(counts)})",
        format_score(median(tops)),
        format_score(max(tops)),
        f"{100 * mean(calibration.shares):.0f} %" if calibration.shares else "n/a",
        tally_of(calibration),
    )


def _count_beyond(calibration: Calibration) -> str:
    of = " of" if calibration.visits else ""
    return f"{tally_of(calibration)}{of} patients above all {len(calibration.controls)} controls"


def tally_of(calibration: Calibration) -> str:
    """Count the patients, or the visits of patients, beyond all controls."""
    visits = " visits" if calibration.visits else ""
    return f"{len(calibration.beyond)} of {len(calibration.patients)}{visits}"


CONTRASTS: Final = (PALETTE[0], PALETTE[5], PALETTE[2], *PALETTE)  # the first three differ most
PANEL: Final = 332.0  # px; height of a chart of sensitivities
ASIDE: Final = 0.05  # clusters; sideways shift that keeps coinciding lines apart
MOST_FALSE: Final = 10.0  # false clusters per control up to which a curve is drawn (our choice)
MOST_CLUSTERS: Final = 12  # up to which every whole number is labelled
UNIT_NAMES: Final = {"lesion": "Lesions", "patient": "Patients with a lesion"}
ACROSS: Final = "first clusters per patient"
FALSE: Final = "false clusters per held-out control"
MOST_BANDS: Final = 4  # lines with confidence bands; more bands hide each other (our choice)


@plain_style()
def draw_detection(detected: Detected) -> Chart | None:
    """Draw sensitivity by number of first clusters: lesions on the left, patients on the right.

    Returns
    -------
    Chart or None
        Detection curves; None if no lesion is known.
    """
    shown = [unit for unit in UNITS if any(point.unit == unit for point in detected.curve)]
    if not shown:
        return None
    keys = _keys_of(detected.curve)
    figure, panels = _draw_panels(shown, ACROSS)
    max_clusters = max(point.clusters for point in detected.curve)
    for unit, axes in panels.items():
        limits = (0.6, max(max_clusters, 2) + 0.4)
        set_axis(axes.xaxis, limits, whole=True, max_ticks=MOST_CLUSTERS)
        for index, (detector, key) in enumerate(keys.items()):
            points = [p for p in detected.curve if p.unit == unit and key_of(p) == detector]
            aside = ASIDE * (index - (len(keys) - 1) / 2)
            points.sort(key=attrgetter("clusters"))
            _draw_curve(axes, points, key, aside, with_band=len(keys) <= MOST_BANDS)
    description = _describe(detected.curve, keys)
    return Chart("Detection curves", description, figure, tuple(keys.values()))


@plain_style()
def draw_responses(detected: Detected) -> Chart | None:
    """Draw sensitivity against false clusters per control; return None if it is unknown."""
    shown = [
        unit for unit in UNITS if any(response.unit == unit for response in detected.responses)
    ]
    if not shown:
        return None
    keys = _keys_of(detected.responses)
    figure, panels = _draw_panels(shown, FALSE)
    false = [r.false_clusters_per_control for r in detected.responses]
    end = min(MOST_FALSE, 1.05 * max([0.5, *filter(isfinite, false)]))
    for unit, axes in panels.items():
        set_axis(axes.xaxis, (0.0, end))
        for detector, key in keys.items():
            responses = [r for r in detected.responses if r.unit == unit and key_of(r) == detector]
            if responses:
                rates, sensitivities = zip(*follow(responses, end), strict=True)
                axes.plot(rates, sensitivities, lw=2, color=key.colour, ls=key.linestyle)
    description = f"Sensitivity at up to {end:g} false clusters per held-out control."
    return Chart("Free-response curves", description, figure, tuple(keys.values()))


def follow(responses: Sequence[FreePoint], end: float) -> list[tuple[float, float]]:
    """Return the corners of the curve of best sensitivity at up to each rate of false clusters.

    Examples
    --------
    >>> pairs = ((2.0, 0.5), (0.5, 0.25), (1.0, 0.25))
    >>> follow([FreePoint("real", "ocsvm", "lesion", 9.0, *pair) for pair in pairs], 1.5)
    [(0.0, 0.0), (0.5, 0.0), (0.5, 0.25), (1.5, 0.25)]
    """
    pairs = sorted((r.false_clusters_per_control, r.sensitivity) for r in responses)
    if not responses:
        return []
    corners = [(0.0, 0.0)]
    for false, sensitivity in pairs:
        if false <= end and sensitivity > corners[-1][1]:
            corners += [(false, corners[-1][1]), (false, sensitivity)]
    return [*corners, (end, corners[-1][1])]


def _keys_of(lines: Sequence[CurvePoint] | Sequence[FreePoint]) -> dict[DetectorKey, Key]:
    """Assign a line to each detector: dashes by detector, colour by training set.

    If there is one training set, colours also differ by detector.
    """
    detectors = in_rank(map(key_of, lines))
    sets = list(dict.fromkeys(training_set for training_set, _ in detectors))
    colours = [colour_of_set(training_set, sets) for training_set, _ in detectors]
    if len(sets) == 1:
        colours = [CONTRASTS[index % len(CONTRASTS)] for index in range(len(detectors))]
    return {
        detector: Key(title_of(*detector), colour, detector_of(detector[1]).dash)
        for detector, colour in zip(detectors, colours, strict=True)
    }


def _draw_panels(units: Sequence[str], across: str) -> tuple[Figure, dict[str, Axes]]:
    """Create a panel for each unit."""
    figure = new_figure(WIDTH / len(UNITS) * len(units), PANEL)
    panels = dict(zip(units, figure.subplots(1, len(units), squeeze=False)[0], strict=True))
    for unit, axes in panels.items():
        axes.set_title(f"{UNIT_NAMES[unit]}: sensitivity", weight="bold")
        axes.set_xlabel(across)
        set_axis(axes.yaxis, (0.0, 1.0))
    return figure, panels


def _draw_curve(
    axes: Axes, points: Sequence[CurvePoint], key: Key, aside: float, *, with_band: bool
) -> None:
    """Draw a line, with its confidence band if that is wanted and two intervals are known."""
    bounded = [p for p in points if not isnan(p.low) and not isnan(p.high)]
    if with_band and len(bounded) > 1:
        x = [point.clusters + aside for point in bounded]
        edges = [point.low for point in bounded] + [point.high for point in bounded[::-1]]
        axes.fill([*x, *x[::-1]], edges, color=key.colour, alpha=0.07, lw=0)
    if points:
        across = [point.clusters + aside for point in points]
        sensitivities = [point.sensitivity for point in points]
        axes.plot(across, sensitivities, marker="o", ms=6, lw=2, color=key.colour, ls=key.linestyle)


def _describe(points: Sequence[CurvePoint], keys: Mapping[DetectorKey, Key]) -> str:
    """Describe the last point of each line for the text alternative of the chart."""
    ends = {
        (detector, unit): max(
            (p for p in points if key_of(p) == detector and p.unit == unit),
            key=attrgetter("clusters"),
        )
        for detector in keys
        for unit in sorted({p.unit for p in points if key_of(p) == detector})
    }
    sentences = [
        f"{keys[detector].name}, {unit}s: {last.sensitivity:.2f} at {last.clusters} clusters"
        for (detector, unit), last in ends.items()
    ]
    return f"{'; '.join(sentences)}."
