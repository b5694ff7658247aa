"""What healthy controls have: the highest cluster of each, scored by folds that left it out.

Detection curves: sensitivity against clusters a patient, as Figure 4 of Zotova et al. (2021).

And free-response curves: sensitivity against the false clusters of a healthy control.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from math import isfinite
from statistics import mean, median
from typing import TYPE_CHECKING, Final

from bids_app.detection.detectors import detector_of
from bids_app.report.anomalies import Detected, format_score
from bids_app.report.charts import LARGEST, WIDTH, Chart, Key, new_figure, plain_style, set_axis
from bids_app.report.detectors import (
    UNITS,
    DetectionPoint,
    DetectorKey,
    FreeResponse,
    colour_of,
    name_visit,
    title_of,
)
from bids_app.report.table1 import GREY

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

HEADROOM: Final = 1.06  # of the highest value, at the right end of an axis (our choice)


@dataclass(frozen=True)
class Calibration:
    """The summed scores of the first clusters of one detector.

    Parameters
    ----------
    which : DetectorKey
        The detector.
    controls : dict
        Held-out control → its highest ``sum_score``; 0 where it has no cluster.
    counts : sequence of int
        Clusters of each of those controls.
    patients : dict
        Patient → its highest ``sum_score``; 0 where it has no cluster.
    shares : sequence of float
        Of the brain of controls, what scores above 0; of those of whom it is told.
    """

    which: DetectorKey
    controls: Mapping[str, float]
    counts: Sequence[int]
    patients: Mapping[str, float]
    shares: Sequence[float] = ()

    @property
    def beyond(self) -> list[str]:
        """Patients whose first cluster is above those of all controls; none without controls."""
        if not self.controls:
            return []
        highest = max(self.controls.values())
        return [name for name, value in self.patients.items() if value > highest]


@dataclass(frozen=True)
class CalibrationLine:
    """A line of the table of controls, as it is written."""

    name: str
    controls: int
    counts: str
    usual: str
    highest: str
    above_zero: str
    beyond: str


def calibrations_of(detected: Detected) -> list[Calibration]:
    """Compare patients with held-out controls, a detector each."""
    return [_calibration(detected, detector) for detector in detected.detectors]


def calibration_lines(calibrations: Sequence[Calibration]) -> list[CalibrationLine]:
    """Lay out what controls have, and how many patients have more."""
    return [_line(calibration) for calibration in calibrations if calibration.controls]


@plain_style()
def draw_calibration(calibrations: Sequence[Calibration], sets: Sequence[str]) -> Chart | None:
    """Draw, a detector a row, a dot a person: patients above, held-out controls below.

    Returns
    -------
    Chart or None
        None if no control was held out.
    """
    shown = [calibration for calibration in calibrations if calibration.controls]
    if not shown:
        return None
    figure = new_figure(WIDTH, 66 * len(shown))
    rows = figure.subplots(len(shown), squeeze=False)[:, 0]
    for axes, calibration in zip(rows, shown, strict=True):
        _draw_people(axes, calibration, colour_of(calibration.which.training_set, sets))
    trained = dict.fromkeys(calibration.which.training_set for calibration in shown)
    return Chart(
        "First clusters of patients and of held-out controls",
        " ".join(f"{name_of(calibration)}: {_tell_beyond(calibration)}." for calibration in shown),
        figure,
        (
            Key("held-out controls", GREY),
            *(
                Key(f"patients, detectors trained on {name}", colour_of(name, sets))
                for name in trained
            ),
        ),
    )


def _draw_people(axes: Axes, calibration: Calibration, colour: str) -> None:
    controls, patients = list(calibration.controls.values()), list(calibration.patients.values())
    highest = max(value for value in [*controls, *patients, 1e-9] if value < LARGEST)
    set_axis(axes.xaxis, (0.0, HEADROOM * highest))
    axes.set_ylim(-0.8, 1.6)
    axes.set_yticks([0.5], [name_of(calibration)], weight="bold")
    axes.grid(visible=False)
    axes.axvline(max(controls), color=GREY, lw=1, ls=(0, (3, 3)))
    axes.plot(controls, [0] * len(controls), "o", ms=8, color=GREY)
    axes.plot(patients, [1] * len(patients), "o", ms=9, color=colour)
    axes.text(1.01, 0.5, _tell_beyond(calibration), va="center", transform=axes.transAxes)


def name_of(calibration: Calibration) -> str:
    """Name the detector."""
    return title_of(calibration.which.training_set, calibration.which.detector)


def _calibration(detected: Detected, which: DetectorKey) -> Calibration:
    own = detected.control_scores.get(which, {})
    names = sorted(own)
    return Calibration(
        which=which,
        controls={name: max(own[name], default=0.0) for name in names},
        counts=[len(own[name]) for name in names],
        patients=_patients(detected, which),
        shares=list(detected.control_shares.get(which, {}).values()),
    )


def _patients(detected: Detected, which: DetectorKey) -> dict[str, float]:
    highest = {name_visit(*one): 0.0 for one in detected.patients_of(which)}
    for cluster in detected.clusters:
        score = cluster.cluster.sum_score
        if cluster.which == which and score is not None:
            highest[cluster.visit] = max(highest.get(cluster.visit, 0.0), score)
    return dict(sorted(highest.items()))


def _line(calibration: Calibration) -> CalibrationLine:
    counts, tops = calibration.counts, list(calibration.controls.values())
    return CalibrationLine(
        name=name_of(calibration),
        controls=len(tops),
        counts=f"{median(counts):g} ({min(counts)} to {max(counts)})",
        usual=format_score(median(tops)),
        highest=format_score(max(tops)),
        above_zero=f"{100 * mean(calibration.shares):.0f} %" if calibration.shares else "n/a",
        beyond=f"{len(calibration.beyond)} of {len(calibration.patients)}",
    )


def _tell_beyond(calibration: Calibration) -> str:
    patients, controls = len(calibration.patients), len(calibration.controls)
    return f"{len(calibration.beyond)} of {patients} patients above all {controls} controls"


PANEL: Final = 332.0  # px: height of a chart of sensitivities
ASIDE: Final = 0.05  # clusters by which lines are moved apart, so that equal ones are seen
MOST_FALSE: Final = 10.0  # false clusters a control up to which a curve is drawn (our choice)
MOST_CLUSTERS: Final = 12  # up to which every whole number is written
UNIT_NAMES: Final = {"lesion": "Lesions", "patient": "Patients with a lesion"}
ACROSS: Final = "clusters kept a patient"
FALSE: Final = "false clusters of at least that score a healthy control"


@plain_style()
def draw_detection(detected: Detected) -> Chart | None:
    """Draw sensitivity against clusters: lesions on the left, patients on the right.

    Returns
    -------
    Chart or None
        None where no lesion is known.
    """
    shown = [unit for unit in UNITS if any(point.unit == unit for point in detected.curve)]
    if not shown:
        return None
    keys = _keys_of(detected.curve)
    figure, panels = _draw_panels(shown, ACROSS)
    most = max(point.clusters for point in detected.curve)
    for unit, axes in panels.items():
        limits = (0.6, max(most, 2) + 0.4)
        set_axis(axes.xaxis, limits, whole=True, most=MOST_CLUSTERS)
        for place, (which, key) in enumerate(keys.items()):
            own = [p for p in detected.curve if p.unit == unit and p.which == which]
            aside = ASIDE * (place - (len(keys) - 1) / 2)
            _draw_curve(axes, sorted(own, key=lambda p: p.clusters), key, aside)
    told = _describe(detected.curve, keys)
    return Chart("Detection curves", told, figure, tuple(keys.values()))


@plain_style()
def draw_responses(detected: Detected) -> Chart | None:
    """Draw sensitivity against false clusters a control; None where it is not known."""
    shown = [
        unit for unit in UNITS if any(response.unit == unit for response in detected.responses)
    ]
    if not shown:
        return None
    keys = _keys_of(detected.responses)
    figure, panels = _draw_panels(shown, FALSE)
    finite = [r.per_control for r in detected.responses if isfinite(r.per_control)]
    end = min(MOST_FALSE, 1.05 * max([0.5, *finite]))
    for unit, axes in panels.items():
        set_axis(axes.xaxis, (0.0, end))
        for which, key in keys.items():
            own = [r for r in detected.responses if r.unit == unit and r.which == which]
            if own:
                false, sensitivity = zip(*follow(own, end), strict=True)
                axes.plot(false, sensitivity, lw=2, color=key.colour, ls=key.linestyle)
    told = f"Sensitivity at up to {end:g} false clusters a healthy control."
    return Chart("Free-response curves", told, figure, tuple(keys.values()))


def follow(responses: Sequence[FreeResponse], end: float) -> list[tuple[float, float]]:
    """Follow a curve from no false cluster on: the best sensitivity at up to so many of them.

    Examples
    --------
    >>> own = DetectorKey((0, "", 0, ""), "real", "ocsvm")
    >>> pairs = ((2.0, 0.5), (0.5, 0.25), (1.0, 0.25))
    >>> follow([FreeResponse(own, "lesion", *pair) for pair in pairs], 1.5)
    [(0.0, 0.0), (0.5, 0.0), (0.5, 0.25), (1.5, 0.25)]
    """
    known = sorted((o.per_control, o.sensitivity) for o in responses if o.per_control <= end)
    if not responses:
        return []
    places = [(0.0, 0.0)]
    for false, sensitivity in known:
        if sensitivity > places[-1][1]:
            places += [(false, places[-1][1]), (false, sensitivity)]
    return [*places, (end, places[-1][1])]


def _keys_of(lines: Sequence[DetectionPoint] | Sequence[FreeResponse]) -> dict[DetectorKey, Key]:
    """Give each detector its line: the colour tells the training set, the dashes the detector."""
    detectors = sorted({line.which for line in lines})
    sets = list(dict.fromkeys(which.training_set for which in detectors))
    return {
        which: Key(
            title_of(which.training_set, which.detector),
            colour_of(which.training_set, sets),
            detector_of(which.detector).dash,
        )
        for which in detectors
    }


def _draw_panels(units: Sequence[str], across: str) -> tuple[Figure, dict[str, Axes]]:
    """Make a panel for each unit."""
    figure = new_figure(WIDTH / len(UNITS) * len(units), PANEL)
    panels = dict(zip(units, figure.subplots(1, len(units), squeeze=False)[0], strict=True))
    for unit, axes in panels.items():
        axes.set_title(f"{UNIT_NAMES[unit]}: sensitivity", weight="bold")
        axes.set_xlabel(across)
        set_axis(axes.yaxis, (0.0, 1.0))
    return figure, panels


def _draw_curve(axes: Axes, points: Sequence[DetectionPoint], key: Key, aside: float) -> None:
    """Draw a line, and its intervals where more than one is known."""
    known = [
        (p.clusters + aside, p.low, p.high)
        for p in points
        if p.low is not None and p.high is not None
    ]
    if len(known) > 1:
        x, low, high = zip(*known, strict=True)
        axes.fill([*x, *x[::-1]], [*low, *high[::-1]], color=key.colour, alpha=0.07, lw=0)
    if points:
        across = [point.clusters + aside for point in points]
        sensitivities = [point.sensitivity for point in points]
        axes.plot(across, sensitivities, marker="o", ms=6, lw=2, color=key.colour, ls=key.linestyle)


def _describe(points: Sequence[DetectionPoint], keys: Mapping[DetectorKey, Key]) -> str:
    """Tell the ends of the lines to those who do not see them."""
    told = []
    for (which, unit), members in groupby(
        sorted(points, key=lambda p: (p.which, p.unit, p.clusters)), key=lambda p: (p.which, p.unit)
    ):
        last = list(members)[-1]
        told.append(
            f"{keys[which].name}, {unit}s: {last.sensitivity:.2f} at {last.clusters} clusters"
        )
    return f"{'; '.join(told)}."
