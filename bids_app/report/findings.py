"""What the group level has found, in plain words and one table."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from bids_app.report.calibration import Calibration
from bids_app.report.cards import enumerate_words
from bids_app.report.clusters import Cluster, tell_expected, tell_score
from bids_app.report.detected import Detected, Found
from bids_app.report.detector_cards import Card
from bids_app.report.detectors import Which, name_of, title_of
from bids_app.report.evaluated import Point
from bids_app.report.tables import show

FIRST: Final = 3  # ranks that the table of clusters shows of each patient


@dataclass(frozen=True)
class Summary:
    """A line of the summary: what one detector has found."""

    name: str
    clusters: str
    beyond: str
    lesions_first: str
    lesions_last: str


@dataclass(frozen=True)
class ClusterLine:
    """A line of the table of clusters."""

    visit: str
    page: str
    cluster: Cluster
    score: str
    volume: str
    expected: str


@dataclass(frozen=True)
class ClusterTable:
    """The first clusters of all patients by one detector."""

    title: str
    lines: tuple[ClusterLine, ...]
    none: tuple[str, ...]
    regions: bool
    lesions: bool


def tell_training(card: Card) -> str:
    """Tell whom a detector was trained on.

    Examples
    --------
    >>> tell_training(Card("real", "detectors/real", ("ocsvm",), (), {}))
    'real: its card names no controls.'
    """
    total = len(card.members)
    if not total:
        return f"{card.training_set}: its card names no controls."
    if card.real == total:
        return f"{card.training_set}: {_count(total, 'control')}, all with real PET."
    made = f" by {enumerate_words(card.generators)}" if card.generators else ""
    parts = [f"{card.real} with real PET"] * bool(card.real)
    parts += [f"{card.synthetic} with SYNTHETIC PET{made}"] * bool(card.synthetic)
    return f"{card.training_set}: {_count(total, 'control')}, {enumerate_words(parts)}."


def tell_scoring(detected: Detected) -> list[str]:
    """Tell who was scored by what, and which controls stand beside them."""
    kinds = dict.fromkeys(name_of(one.detector) for one in detected.detectors)
    by = f" by {enumerate_words(list(kinds))}" if kinds else ""
    told = [f"{_count(len(detected.participants), 'patient')}, scored{by}."]
    controls = {name for scores in detected.control_scores.values() for name in scores}
    if controls:
        told.append(
            f"{_count(len(controls), 'control')}, for comparison: each with real PET, and only by "
            "folds that had not been trained on it."
        )
    return told


def summaries_of(detected: Detected, calibrations: Sequence[Calibration]) -> list[Summary]:
    """Sum up, a detector a line."""
    return [_summary(detected, one) for one in calibrations]


def cluster_tables(detected: Detected) -> list[ClusterTable]:
    """List the first clusters of each patient, a detector a table."""
    return [_table(detected, which) for which in detected.detectors]


def tell_interval(point: Point | None) -> str:
    """Tell a sensitivity with its interval.

    Examples
    --------
    >>> which = Which((0, "", 0, ""), "real", "ocsvm")
    >>> tell_interval(Point(which, "lesion", 1, 17, 9, 9 / 17, 0.31, 0.74, None, None))
    '9 of 17 (53 %; 31 to 74 %)'
    """
    if point is None or point.n is None or point.found is None:
        return "n/a"
    interval = ""
    if point.low is not None and point.high is not None:
        interval = f"; {100 * point.low:.0f} to {100 * point.high:.0f} %"
    return f"{point.found} of {point.n} ({100 * point.sensitivity:.0f} %{interval})"


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'s' * (number != 1)}"


def _summary(detected: Detected, calibration: Calibration) -> Summary:
    which = calibration.which
    points = sorted(
        (one for one in detected.curve if one.which == which and one.unit == "lesion"),
        key=lambda one: one.clusters,
    )
    beyond = f"{len(calibration.beyond)} of {len(calibration.patients)}"
    if calibration.beyond:
        beyond += f": {'; '.join(calibration.beyond)}"
    first, last = (points[0], points[-1]) if points else (None, None)
    return Summary(
        name=title_of(which.training_set, which.detector),
        clusters=show(sum(one.which == which for one in detected.clusters), 0),
        beyond=beyond if calibration.controls else "n/a",
        lesions_first=tell_interval(first),
        lesions_last=tell_interval(last),
    )


def _table(detected: Detected, which: Which) -> ClusterTable:
    own = [one for one in detected.clusters if one.which == which]
    first = sorted(
        (one for one in own if one.cluster.rank <= FIRST),
        key=lambda one: (one.participant, one.session, one.cluster.rank),
    )
    marked = {(one.participant, one.session) for one in own}
    without = [one for one in detected.patients_of(which) if one not in marked]
    clusters = [one.cluster for one in first]
    return ClusterTable(
        title=title_of(which.training_set, which.detector),
        lines=tuple(map(_line, first)),
        none=tuple(f"sub-{participant}" for participant, _ in without),
        regions=any(one.region for one in clusters),
        lesions=any(one.overlap is not None for one in clusters),
    )


def _line(found: Found) -> ClusterLine:
    return ClusterLine(
        visit=found.visit,
        page=f"sub-{found.participant}.html",
        cluster=found.cluster,
        score=tell_score(found.cluster.sum_score),
        volume=show(found.cluster.volume, 0),
        expected=tell_expected(found.cluster.expected),
    )
