"""Detection curves: sensitivity against clusters a patient, as Figure 4 of Zotova et al. (2021).

And free-response curves: sensitivity against the false clusters of a healthy control.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from math import ceil, floor, isfinite
from typing import Final

from bids_app.report.charts import WIDTH, Axis, Chart, Dot, Key, Stroke, frame, line
from bids_app.report.detected import Detected
from bids_app.report.detectors import DASHES, Which, colour_of, title_of
from bids_app.report.evaluated import UNITS, Point, Response
from bids_app.report.reportlets import Text

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


def styles_of(detectors: Sequence[Which], sets: Sequence[str]) -> dict[Which, Style]:
    """Give each detector its line: the colour tells the training set, the dashes the detector."""
    middle = (len(detectors) - 1) / 2
    return {
        one: Style(
            name=title_of(one.training_set, one.detector),
            colour=colour_of(one.training_set, sets),
            dash=DASHES.get(one.detector, "1 3"),
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


def follow(responses: Sequence[Response], end: float) -> list[tuple[float, float]]:
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


def _lines_of(lines: Sequence[Point] | Sequence[Response]) -> tuple[list[Which], list[str]]:
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
    points: Sequence[Point], across: Axis, up: Axis, styles: Mapping[Which, Style]
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


def _keys(styles: Mapping[Which, Style]) -> tuple[Key, ...]:
    return tuple(Key(style.name, style.colour, style.dash) for style in styles.values())


def _describe(points: Sequence[Point], styles: Mapping[Which, Style]) -> str:
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
