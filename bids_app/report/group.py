"""The report of the group level, ``group.html``, from files on disk only."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Unpack

from bids_app.detection.detectors import needing_synthetic
from bids_app.files import write_text
from bids_app.report.anomalies import (
    Anomaly,
    Detected,
    Found,
    ListedCluster,
    find_anomalies,
    find_detected,
    format_expected,
    format_score,
)
from bids_app.report.cards import enumerate_words
from bids_app.report.detection_charts import (
    Calibration,
    calibration_lines,
    calibrations_of,
    draw_calibration,
    draw_detection,
    draw_responses,
)
from bids_app.report.detectors import (
    UNITS,
    DetectionPoint,
    DetectorCardSummary,
    DetectorComparison,
    DetectorKey,
    name_of,
    name_visit,
    title_of,
)
from bids_app.report.gallery import space_label
from bids_app.report.maps import draw_cluster_maps
from bids_app.report.methods import group_boilerplate_of
from bids_app.report.page import (
    RecordSection,
    RunSummary,
    describe_duration,
    describe_settings,
    read_record,
    render,
    renew,
)
from bids_app.report.participant import is_demonstration
from bids_app.report.results import IMAGE, show

SHOWN: Final = (1, 5, 10)  # clusters a patient at which detectors are compared (our choice)
SIGNIFICANT: Final = 0.05  # our choice, as that of most of the field
SMALLEST: Final = 0.001  # p below it are not written out
NOTHING: Final = ("", "", "")


@dataclass(frozen=True)
class McNemarCell:
    """At one number of clusters: found by the one alone, by the other alone, and p after Holm."""

    only_one: str
    only_other: str
    p: str
    significant: bool = False


@dataclass(frozen=True)
class McNemarPair:
    """Two detectors."""

    one: str
    other: str
    cells: tuple[McNemarCell, ...]


@dataclass(frozen=True)
class McNemarTests:
    """All pairs on one unit: ``lesion`` or ``patient``."""

    unit: str
    n: str
    clusters: tuple[int, ...]
    pairs: tuple[McNemarPair, ...]


def matches_of(detected: Detected) -> list[McNemarTests]:
    """Lay out the tests, a unit a table; pairs in the order of the detectors."""
    tables = (_matches([o for o in detected.comparisons if o.unit == unit], unit) for unit in UNITS)
    return [table for table in tables if table.pairs]


def show_p(p: float | None) -> str:
    """Write a p-value.

    Examples
    --------
    >>> show_p(0.0312), show_p(0.00001), show_p(1.0), show_p(None)
    ('0.031', '< 0.001', '1.000', 'n/a')
    """
    return f"< {SMALLEST:g}" if p is not None and p < SMALLEST else show(p, 3)


def _matches(comparisons: Sequence[DetectorComparison], unit: str) -> McNemarTests:
    clusters = tuple(
        n for n in SHOWN if any(comparison.clusters == n for comparison in comparisons)
    )
    known = {
        (comparison.one, comparison.other, comparison.clusters): comparison
        for comparison in comparisons
    }
    pairs = sorted(
        {
            (comparison.one, comparison.other)
            for comparison in comparisons
            if comparison.clusters in clusters
        }
    )
    counts = sorted({comparison.n for comparison in comparisons if comparison.n is not None})
    return McNemarTests(
        unit=unit,
        n=" or ".join(map(str, counts)),
        clusters=clusters,
        pairs=tuple(
            McNemarPair(
                title_of(pair.training_set, pair.detector),
                title_of(other.training_set, other.detector),
                tuple(_cell(known.get((pair, other, n))) for n in clusters),
            )
            for pair, other in pairs
        ),
    )


def _cell(comparison: DetectorComparison | None) -> McNemarCell:
    if comparison is None:
        return McNemarCell("n/a", "n/a", "n/a")
    p = comparison.p_holm
    return McNemarCell(
        only_one=_count_disagreements(comparison.only_one),
        only_other=_count_disagreements(comparison.only_other),
        p=show_p(p),
        significant=p is not None and p < SIGNIFICANT,
    )


def _count_disagreements(value: int | None) -> str:
    return "n/a" if value is None else str(value)


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
class ClusterRow:
    """A line of the table of clusters."""

    visit: str
    page: str
    cluster: ListedCluster
    score: str
    volume: str
    expected: str


@dataclass(frozen=True)
class ClusterTable:
    """The first clusters of all patients by one detector."""

    title: str
    lines: tuple[ClusterRow, ...]
    none: tuple[str, ...]
    regions: bool
    lesions: bool


def describe_training(card: DetectorCardSummary) -> str:
    """Tell whom a detector was trained on.

    Examples
    --------
    >>> describe_training(DetectorCardSummary("real", "detectors/real", ("ocsvm",), (), {}))
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


def describe_scoring(detected: Detected) -> list[str]:
    """Tell who was scored by what, and which controls stand beside them."""
    kinds = dict.fromkeys(name_of(detector.detector) for detector in detected.detectors)
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
    return [_summary(detected, calibration) for calibration in calibrations]


def cluster_tables(detected: Detected) -> list[ClusterTable]:
    """List the first clusters of each patient, a detector a table."""
    return [_table(detected, which) for which in detected.detectors]


def describe_interval(point: DetectionPoint | None) -> str:
    """Tell a sensitivity with its interval.

    Examples
    --------
    >>> which = DetectorKey((0, "", 0, ""), "real", "ocsvm")
    >>> describe_interval(
    ...     DetectionPoint(which, "lesion", 1, 17, 9, 9 / 17, 0.31, 0.74, None, None)
    ... )
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
        (point for point in detected.curve if point.which == which and point.unit == "lesion"),
        key=lambda one: one.clusters,
    )
    beyond = f"{len(calibration.beyond)} of {len(calibration.patients)}"
    if calibration.beyond:
        beyond += f": {'; '.join(calibration.beyond)}"
    first, last = (points[0], points[-1]) if points else (None, None)
    return Summary(
        name=title_of(which.training_set, which.detector),
        clusters=show(sum(cluster.which == which for cluster in detected.clusters), 0),
        beyond=beyond if calibration.controls else "n/a",
        lesions_first=describe_interval(first),
        lesions_last=describe_interval(last),
    )


def _table(detected: Detected, which: DetectorKey) -> ClusterTable:
    own = [cluster for cluster in detected.clusters if cluster.which == which]
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
        regions=any(cluster.region for cluster in clusters),
        lesions=any(cluster.overlap is not None for cluster in clusters),
    )


def _line(found: Found) -> ClusterRow:
    return ClusterRow(
        visit=found.visit,
        page=f"sub-{found.participant}.html",
        cluster=found.cluster,
        score=format_score(found.cluster.sum_score),
        volume=show(found.cluster.volume, 0),
        expected=format_expected(found.cluster.expected),
    )


FEW: Final = 20  # held-out controls; with fewer, what to expect of them is coarse (our choice)


def doubts_of(output_dir: Path, detected: Detected) -> list[str]:
    """List what is missing, who took part twice, and what too few controls cannot tell.

    Parameters
    ----------
    output_dir : Path
        The derivative dataset.
    detected : Detected
        Its tables and cards.
    """
    return [
        *detected.faults,
        *_trained_on_patients(detected),
        *_synthetic_controls(output_dir, detected),
        *_calibration(detected),
        *_flat_maps(detected),
        *_left_over(detected),
    ]


def current(output_dir: Path, anomalies: Sequence[Anomaly], detected: Detected) -> list[Anomaly]:
    """Leave out maps that an earlier run has left."""
    own = {one.path for one in detected.maps}
    return [anomaly for anomaly in anomalies if anomaly.path_in(output_dir) in own]


def _left_over(detected: Detected) -> list[str]:
    """Name what lies in the dataset and is not of this run, in one sentence."""
    scored = {one.participant for one in detected.maps}
    people, others = set[str](), dict[str, set[str]]()
    for one in detected.stale_maps:
        if one.path.startswith(tuple(f"{folder}/" for folder in detected.stale_folders)):
            continue
        if one.participant in scored:
            title = title_of(one.training_set, one.detector)
            others.setdefault(title, set()).add(one.participant)
        else:
            people.add(one.participant)
    parts = [f"all maps of {_list(people)}"] if people else []
    parts += [f"maps of {title} of {_list(own)}" for title, own in sorted(others.items())]
    if detected.stale_folders:
        parts.append(f"all of {enumerate_words(detected.stale_folders)}")
    if not parts:
        return []
    return [f"Left over from an earlier run, and no part of this report: {'; '.join(parts)}."]


def _own_cards(detected: Detected) -> Mapping[str, DetectorCardSummary]:
    """Keep cards whose controls are people of this dataset: sub-01 of another is somebody else."""
    return {
        name: card
        for name, card in detected.cards.items()
        if not detected.dataset or card.dataset == detected.dataset
    }


def _trained_on_patients(detected: Detected) -> list[str]:
    """Find patients that a detector was trained on, so that it takes them for healthy."""
    patients = set(detected.participants)
    both = {
        name: patients & {member.participant for member in card.members}
        for name, card in _own_cards(detected).items()
    }
    return [
        f"The detectors of {name} were trained on people who are scored as patients: "
        f"{_list(people)}. Their maps show too little."
        for name, people in both.items()
        if people
    ]


def _synthetic_controls(output_dir: Path, detected: Detected) -> list[str]:
    """Find controls that were scored although only synthetic PET of them is there."""
    sentences = []
    for name, card in _own_cards(detected).items():
        scored = {
            visit
            for which, scores in detected.control_scores.items()
            if which.training_set == name
            for visit in scores
        }
        lacking = {one for one in _made_up(card, scored) if not _has_pet(output_dir, one)}
        if lacking:
            sentences.append(
                f"Controls of {name} were scored, but no real PET of them is in this dataset: "
                f"{_list(lacking)}. Synthetic PET must not stand for healthy people."
            )
    return sentences


def _made_up(card: DetectorCardSummary, scored: Iterable[str]) -> set[str]:
    visits = set(scored)
    return {
        member.participant for member in card.members if member.synthetic and member.visit in visits
    }


def _has_pet(output_dir: Path, participant: str) -> bool:
    """Tell whether someone has a real PET; of those whose folder is gone it is taken on trust."""
    folder = output_dir / f"sub-{participant}"
    return not folder.exists() or any(folder.glob(f"**/pet/*_desc-preproc_pet{IMAGE}"))


def _calibration(detected: Detected) -> list[str]:
    sentences = []
    for name in detected.cards:
        counts = {
            len(scores)
            for which, scores in detected.control_scores.items()
            if which.training_set == name and scores
        }
        if not counts:
            sentences.append(
                f"No control was held out for {name}: nothing tells how many such clusters healthy "
                "people have."
            )
        elif min(counts) < FEW:
            few = min(counts)
            sentences.append(
                f"Only {few} control{'s' * (few != 1)} held out for {name}: what is "
                f"expected in a healthy control is coarse, in steps of {1 / few:.2g}."
            )
    return sentences


def _flat_maps(detected: Detected) -> list[str]:
    """Find detectors by which a control has no cluster: then patients seem to have too many."""
    sentences = []
    for which, scores in detected.control_scores.items():
        without = sum(not own for own in scores.values())
        if without:
            sentences.append(
                f"{without} of {len(scores)} held-out controls have no cluster by "
                f"{title_of(which.training_set, which.detector)}. Where that is because many of "
                "their voxels score alike, as with very few controls to train on, too little is "
                "expected of a healthy control."
            )
    return sentences


def _list(people: Iterable[str]) -> str:
    return enumerate_words([f"sub-{label}" for label in sorted(people)])


NAME: Final = "group"  # of the report, and of its record
MOST_PICTURED: Final = 40  # patients; the others are pictured in their own reports (our choice)


def write_group_report(
    output_dir: Path, *, template: str, resolution: float, **told: Unpack[RunSummary]
) -> Path:
    """Write ``group.html``.

    What is not told is taken from the last run's record, ``logs/group_report.json``; what is
    told is kept there. It is about what that run has scored, as
    :func:`bids_app.report.anomalies.write_run` has recorded it.

    Parameters
    ----------
    output_dir : Path
        The derivative dataset.
    template : str
        Its name, as a ``space-`` label.
    resolution : float
        Of the images in its space, in mm.
    **told
        What the run tells of itself, see :class:`bids_app.report.page.RunSummary`.

    Returns
    -------
    Path
        The report.

    Raises
    ------
    ReadWriteError
        If report or record cannot be written. A missing file is no error: the report says so.
    """
    record = renew(output_dir, NAME, told)
    detected = find_detected(output_dir, record.detector)
    space = space_label(template, resolution)
    page = render("group.html", _values(output_dir, detected, record, space))
    path = output_dir / f"{NAME}.html"
    write_text(path, page)
    return path


def write_group_methods(output_dir: Path) -> str:
    """Write the methods paragraph of what the last run did, as plain text."""
    record = read_record(output_dir, NAME)
    return _methods(find_detected(output_dir, record.detector), record)


def _methods(detected: Detected, record: RecordSection) -> str:
    settings = describe_settings(record.settings)
    return group_boilerplate_of(detected, record.versions, settings)


def _values(
    output_dir: Path, detected: Detected, record: RecordSection, space: str
) -> dict[str, object]:
    pictured, others = detected.participants[:MOST_PICTURED], detected.participants[MOST_PICTURED:]
    return {
        "record": record,
        "duration": describe_duration(record.duration),
        "space": space,
        "doubts": doubts_of(output_dir, detected),
        "maps": [
            (_page(label), panel)
            for label in pictured
            for panel in draw_cluster_maps(output_dir, _maps(output_dir, label, detected, space))
        ],
        "unpictured": [(_page(label), name_visit(label, "")) for label in others],
        "methods": _methods(detected, record),
        **_detectors(detected),
        **_results(detected),
    }


def _maps(output_dir: Path, label: str, detected: Detected, space: str) -> list[Anomaly]:
    return current(output_dir, find_anomalies(output_dir, label, spaces=(space,)), detected)


def _page(label: str) -> str:
    return f"sub-{label}.html"


def _detectors(detected: Detected) -> dict[str, object]:
    """Gather what was trained on what."""
    cards = list(detected.cards.values())
    makers = sorted(
        {
            one.name
            for card in cards
            for one in card.makers
            if is_demonstration(one.intended_use, one.trained_on)
        }
    )
    return {
        "cards": cards,
        "demonstration": any(is_demonstration(c.intended_use, c.dataset) for c in cards),
        "makers": enumerate_words(makers) if makers else "",
        "comparing": _comparing(detected),
        "synthetic": _tell_synthetic(detected),
        "training": [describe_training(card) for card in cards],
        "scoring": describe_scoring(detected),
    }


def _results(detected: Detected) -> dict[str, object]:
    """Lay out tables and charts."""
    calibrations = calibrations_of(detected)
    return {
        "evaluated": bool(detected.curve),
        "summaries": summaries_of(detected, calibrations),
        "tables": cluster_tables(detected),
        "curve": draw_detection(detected),
        "free": draw_responses(detected),
        "matches": matches_of(detected),
        "calibration": draw_calibration(calibrations, detected.training_sets),
        "calibration_lines": calibration_lines(calibrations),
    }


def _tell_synthetic(detected: Detected) -> str:
    """Say which detectors know synthetic PET; empty if none does."""
    sets = [name for name, card in detected.cards.items() if card.synthetic]
    told = []
    if sets:
        told.append(f"detectors of {enumerate_words(sets)} were trained on synthetic PET")
    told += [
        f"the detector “{label}” compares real with synthetic PET" for label in _comparing(detected)
    ]
    return "; ".join(told)


def _comparing(detected: Detected) -> list[str]:
    """Name the detectors that compare real with synthetic PET."""
    names = dict.fromkeys(key.detector for key in detected.detectors)
    return [name_of(name) for name in needing_synthetic(names)]
