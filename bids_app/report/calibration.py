"""What healthy controls have: the highest cluster of each, scored by folds that left it out."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import mean, median
from typing import Final

from bids_app.report.charts import FAINT, INK, WIDTH, Axis, Chart, Dot, Key, Stroke, line, show_tick
from bids_app.report.clusters import tell_score
from bids_app.report.detected import Detected
from bids_app.report.detectors import Which, colour_of, name_visit, title_of
from bids_app.report.paper import GREY
from bids_app.report.reportlets import Text

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

    which: Which
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
class Line:
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


def calibration_lines(calibrations: Sequence[Calibration]) -> list[Line]:
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


def _calibration(detected: Detected, which: Which) -> Calibration:
    own = detected.control_scores.get(which, {})
    names = sorted(own)
    return Calibration(
        which=which,
        controls={name: max(own[name], default=0.0) for name in names},
        counts=[len(own[name]) for name in names],
        patients=_patients(detected, which),
        shares=list(detected.control_shares.get(which, {}).values()),
    )


def _patients(detected: Detected, which: Which) -> dict[str, float]:
    highest = {name_visit(*one): 0.0 for one in detected.patients_of(which)}
    for one in detected.clusters:
        score = one.cluster.sum_score
        if one.which == which and score is not None:
            highest[one.visit] = max(highest.get(one.visit, 0.0), score)
    return dict(sorted(highest.items()))


def _line(calibration: Calibration) -> Line:
    counts, tops = calibration.counts, list(calibration.controls.values())
    return Line(
        name=name_of(calibration),
        controls=len(tops),
        counts=f"{median(counts):g} ({min(counts)} to {max(counts)})",
        usual=tell_score(median(tops)),
        highest=tell_score(max(tops)),
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
