"""What healthy controls have: the highest cluster of each, scored by folds that left it out.

Detection curves: sensitivity against clusters a patient, as Figure 4 of Zotova et al. (2021).

And free-response curves: sensitivity against the false clusters of a healthy control.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from math import ceil, floor, isfinite
from statistics import mean, median
from typing import Final

from bids_app.detection.detectors import detector_of
from bids_app.report.anomalies import Detected, format_score
from bids_app.report.charts import (
    FAINT,
    INK,
    WIDTH,
    Axis,
    Chart,
    Dot,
    Key,
    Stroke,
    frame,
    line,
    show_tick,
)
from bids_app.report.detectors import (
    UNITS,
    DetectionPoint,
    DetectorKey,
    FreeResponse,
    colour_of,
    name_visit,
    title_of,
)
from bids_app.report.figures import Text
from bids_app.report.table1 import GREY

NAME, END = 250.0, 230.0  # px on the left for the detector; on the right for what was counted
ROW, TOP = 66.0, 8.0  # px: height of a row; above the first
HEADROOM: Final = 1.06  # of the highest value, at the right end of an axis (our choice)


@dataclass(frozen=True)
class Calibration:
    """The summed scores of the first clusters of one detector.

    Parameters
    ----------
    which : Which
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
    return [_calibration(detected, one) for one in detected.detectors]


def calibration_lines(calibrations: Sequence[Calibration]) -> list[CalibrationLine]:
    """Lay out what controls have, and how many patients have more."""
    return [_line(one) for one in calibrations if one.controls]


def draw_calibration(calibrations: Sequence[Calibration], sets: Sequence[str]) -> Chart | None:
    """Draw, a detector a row, a dot a person: patients above, held-out controls below.

    Returns
    -------
    Chart or None
        None if no control was held out.
    """
    shown = [one for one in calibrations if one.controls]
    if not shown:
        return None
    strokes, dots, texts = list[Stroke](), list[Dot](), list[Text]()
    for place, one in enumerate(shown):
        top = TOP + place * ROW
        highest = max([*one.controls.values(), *one.patients.values(), 1e-9])
        across = Axis(0, HEADROOM * highest, NAME, WIDTH - END)
        lines, words = _row(one, across, top)
        strokes += lines
        texts += words
        colour = colour_of(one.which.training_set, sets)
        dots += [Dot(across.place(v), top + 30, 4, GREY) for v in one.controls.values()]
        dots += [Dot(across.place(v), top + 14, 4.5, colour) for v in one.patients.values()]
    keys = [Key("held-out controls", GREY)]
    keys += [
        Key(f"patients, detectors trained on {name}", colour_of(name, sets))
        for name in dict.fromkeys(one.which.training_set for one in shown)
    ]
    return Chart(
        title="First clusters of patients and of held-out controls",
        description=" ".join(f"{name_of(one)}: {_tell_beyond(one)}." for one in shown),
        width=WIDTH,
        height=TOP + len(shown) * ROW,
        strokes=tuple(strokes),
        dots=tuple(dots),
        texts=tuple(texts),
        keys=tuple(keys),
    )


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
    for one in detected.clusters:
        score = one.cluster.sum_score
        if one.which == which and score is not None:
            highest[one.visit] = max(highest.get(one.visit, 0.0), score)
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


def _row(calibration: Calibration, across: Axis, top: float) -> tuple[list[Stroke], list[Text]]:
    bottom, limit = top + 40, across.place(max(calibration.controls.values()))
    strokes = [
        Stroke(line([(across.start, bottom), (across.end, bottom)]), INK),
        Stroke(line([(limit, top + 4), (limit, bottom)]), FAINT, 1.5, "3 3"),
    ]
    texts = [Text(show_tick(tick), across.place(tick), bottom + 14) for tick in across.ticks()]
    texts += [
        Text(name_of(calibration), 0, top + 25, "start", strong=True),
        Text(_tell_beyond(calibration), across.end + 12, top + 25, "start"),
    ]
    return strokes, texts


SIDE, LEFT, GAP = 510.0, 50.0, 76.0  # px: width of a panel, before the first, between two
ABOVE, PANEL, BELOW = 30.0, 260.0, 42.0  # px: over the panels, their height, under them
ASIDE: Final = 0.05  # clusters by which lines are moved apart, so that equal ones are seen
MOST_FALSE: Final = 10.0  # false clusters a control up to which a curve is drawn (our choice)
UNIT_NAMES: Final = {"lesion": "Lesions", "patient": "Patients with a lesion"}
ACROSS: Final = "clusters kept a patient"
FALSE: Final = "false clusters of at least that score a healthy control"


class CountAxis(Axis):
    """An axis that counts: every whole number is written."""

    def ticks(self) -> list[float]:
        """List the whole numbers between its ends."""
        return [float(count) for count in range(ceil(self.low), floor(self.high) + 1)]


@dataclass(frozen=True)
class Drawing:
    """What is drawn, while it becomes more."""

    strokes: list[Stroke] = field(default_factory=list)
    dots: list[Dot] = field(default_factory=list)
    texts: list[Text] = field(default_factory=list)


@dataclass(frozen=True)
class Style:
    """How the line of a detector is drawn; ``aside`` in clusters."""

    name: str
    colour: str
    dash: str
    aside: float


def styles_of(detectors: Sequence[DetectorKey], sets: Sequence[str]) -> dict[DetectorKey, Style]:
    """Give each detector its line: the colour tells the training set, the dashes the detector."""
    middle = (len(detectors) - 1) / 2
    return {
        one: Style(
            name=title_of(one.training_set, one.detector),
            colour=colour_of(one.training_set, sets),
            dash=detector_of(one.detector).dash,
            aside=ASIDE * (place - middle),
        )
        for place, one in enumerate(detectors)
    }


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
    styles, drawing = styles_of(*_lines_of(detected.curve)), Drawing()
    most = max(point.clusters for point in detected.curve)
    for column, unit in enumerate(shown):
        across, up = _axes(column, 0.6, max(most, 2) + 0.4, CountAxis)
        points = [point for point in detected.curve if point.unit == unit]
        _draw_panel(drawing, across, up, UNIT_NAMES[unit], ACROSS)
        drawing.strokes.extend(_bands(points, across, up, styles))
        for which, style in styles.items():
            own = sorted((p for p in points if p.which == which), key=lambda p: p.clusters)
            places = [
                (across.place(p.clusters + style.aside), up.place(p.sensitivity)) for p in own
            ]
            if places:
                drawing.strokes.append(Stroke(line(places), style.colour, 2, style.dash))
            drawing.dots.extend(Dot(x, y, 3, style.colour) for x, y in places)
    return _chart("Detection curves", _describe(detected.curve, styles), drawing, _keys(styles))


def draw_responses(detected: Detected) -> Chart | None:
    """Draw sensitivity against false clusters a control; None where it is not known."""
    shown = [unit for unit in UNITS if any(one.unit == unit for one in detected.responses)]
    if not shown:
        return None
    styles, drawing = styles_of(*_lines_of(detected.responses)), Drawing()
    finite = [one.per_control for one in detected.responses if isfinite(one.per_control)]
    end = min(MOST_FALSE, 1.05 * max([0.5, *finite]))
    for column, unit in enumerate(shown):
        across, up = _axes(column, 0.0, end)
        _draw_panel(drawing, across, up, UNIT_NAMES[unit], FALSE)
        for which, style in styles.items():
            own = [o for o in detected.responses if o.unit == unit and o.which == which]
            places = [(across.place(x), up.place(y)) for x, y in follow(own, end)]
            if places:
                drawing.strokes.append(Stroke(line(places), style.colour, 2, style.dash))
    told = f"Sensitivity at up to {end:g} false clusters a healthy control."
    return _chart("Free-response curves", told, drawing, _keys(styles))


def follow(responses: Sequence[FreeResponse], end: float) -> list[tuple[float, float]]:
    """Follow a curve from no false cluster on: the best sensitivity at up to so many of them.

    Examples
    --------
    >>> one = Which((0, "", 0, ""), "real", "ocsvm")
    >>> found = [Response(one, "lesion", x, y) for x, y in ((2.0, 0.5), (0.5, 0.25), (1.0, 0.25))]
    >>> follow(found, 1.5)
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


def _lines_of(
    lines: Sequence[DetectionPoint] | Sequence[FreeResponse],
) -> tuple[list[DetectorKey], list[str]]:
    detectors = sorted({one.which for one in lines})
    return detectors, list(dict.fromkeys(one.training_set for one in detectors))


def _axes(column: int, low: float, high: float, kind: type[Axis] = Axis) -> tuple[Axis, Axis]:
    start = LEFT + column * (SIDE + GAP)
    return kind(low, high, start, start + SIDE), Axis(0, 1, ABOVE + PANEL, ABOVE)


def _draw_panel(drawing: Drawing, across: Axis, up: Axis, title: str, below: str) -> None:
    strokes, texts = frame(across, up)
    drawing.strokes.extend(strokes)
    drawing.texts.extend(texts)
    drawing.texts.extend(
        [
            Text(f"{title}: sensitivity", across.start, ABOVE - 12, "start", strong=True),
            Text(below, (across.start + across.end) / 2, ABOVE + PANEL + 32),
        ]
    )


def _bands(
    points: Sequence[DetectionPoint], across: Axis, up: Axis, styles: Mapping[DetectorKey, Style]
) -> list[Stroke]:
    """Fill the intervals of each line, its edges left open."""
    strokes = []
    ordered = sorted(points, key=lambda point: (point.which, point.clusters))
    for which, members in groupby(ordered, key=lambda point: point.which):
        style = styles[which]
        known = [
            (across.place(p.clusters + style.aside), up.place(p.low), up.place(p.high))
            for p in members
            if p.low is not None and p.high is not None
        ]
        if len(known) > 1:
            edge = [(x, low) for x, low, _ in known] + [(x, high) for x, _, high in known[::-1]]
            strokes.append(Stroke(line(edge, closed=True), "none", 0, fill=style.colour))
    return strokes


def _keys(styles: Mapping[DetectorKey, Style]) -> tuple[Key, ...]:
    return tuple(Key(style.name, style.colour, style.dash) for style in styles.values())


def _describe(points: Sequence[DetectionPoint], styles: Mapping[DetectorKey, Style]) -> str:
    """Tell the ends of the lines to those who do not see them."""
    told = []
    for (which, unit), members in groupby(
        sorted(points, key=lambda p: (p.which, p.unit, p.clusters)), key=lambda p: (p.which, p.unit)
    ):
        last = list(members)[-1]
        told.append(
            f"{styles[which].name}, {unit}s: {last.sensitivity:.2f} at {last.clusters} clusters"
        )
    return f"{'; '.join(told)}."


def _chart(title: str, description: str, drawing: Drawing, keys: tuple[Key, ...]) -> Chart:
    return Chart(
        title=title,
        description=description,
        width=WIDTH,
        height=ABOVE + PANEL + BELOW,
        strokes=tuple(drawing.strokes),
        dots=tuple(drawing.dots),
        texts=tuple(drawing.texts),
        keys=keys,
    )
