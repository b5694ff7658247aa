"""All that the group level has written as tables.

What is missing or cannot be understood is left out, and a sentence says so.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal, TypeAlias, TypeVar

from bids_app.report.anomalies import scored_visits
from bids_app.report.cells import Cells, as_count, as_label, as_value, read_lines
from bids_app.report.clusters import NEEDED, Cluster, cluster_of
from bids_app.report.detectors import (
    FOLDER,
    Card,
    find_cards,
    label_of,
    name_visit,
    rank_of,
)

Unit: TypeAlias = Literal["lesion", "patient"]
Line = TypeVar("Line")

UNITS: Final[tuple[Unit, ...]] = ("lesion", "patient")
ABSENT: Final = "is missing."  # how a sentence on a table that is not there ends
EMPTY: Final = "is empty."  # and on one without lines: nothing was found


@dataclass(frozen=True, order=True)
class Which:
    """A detector, and what it was trained on; sorted as they are shown."""

    place: tuple[int, str, int, str]
    training_set: str
    detector: str


@dataclass(frozen=True)
class Found:
    """A cluster of a visit; labels without ``sub-`` and ``ses-``."""

    which: Which
    participant: str
    session: str
    cluster: Cluster

    @property
    def visit(self) -> str:
        """Who it is: ``"sub-01"``, or ``"sub-01, ses-02"``."""
        return name_visit(self.participant, self.session)


@dataclass(frozen=True)
class Point:
    """A line of ``detection_curve.tsv``."""

    which: Which
    unit: str
    clusters: int
    n: int | None
    found: int | None
    sensitivity: float
    low: float | None
    high: float | None
    per_patient: float | None
    per_control: float | None


@dataclass(frozen=True)
class Response:
    """A line of ``detection_froc.tsv``."""

    which: Which
    unit: str
    per_control: float
    sensitivity: float


@dataclass(frozen=True)
class Comparison:
    """A line of ``detection_tests.tsv``: McNemar's test between two detectors."""

    unit: str
    clusters: int
    one: Which
    other: Which
    n: int | None
    only_one: int | None
    only_other: int | None
    p: float | None
    p_holm: float | None


@dataclass(frozen=True)
class Detected:
    """The tables and cards of a derivative dataset.

    Parameters
    ----------
    cards : dict
        Training set → card.
    patients : sequence of (str, str)
        Who was scored: participant and session, labels, the latter empty where there is none.
    clusters : sequence of Found
        Of patients.
    control_scores : dict
        Detector → held-out control → ``sum_score`` of each of its clusters; there may be none.
    curve, responses, comparisons : sequence
        The lines of ``detection_curve.tsv``, ``detection_froc.tsv`` and ``detection_tests.tsv``;
        none where no lesion is known.
    faults : sequence of str
        What is missing or damaged, a sentence each.
    """

    cards: Mapping[str, Card]
    patients: Sequence[tuple[str, str]]
    clusters: Sequence[Found]
    control_scores: Mapping[Which, Mapping[str, Sequence[float]]]
    curve: Sequence[Point]
    responses: Sequence[Response]
    comparisons: Sequence[Comparison]
    faults: Sequence[str]

    @property
    def detectors(self) -> list[Which]:
        """All that were trained or have found something."""
        trained = {
            which(card.training_set, detector)
            for card in self.cards.values()
            for detector in card.detectors
        }
        seen = {one.which for one in self.clusters} | {one.which for one in self.curve}
        return sorted(trained | seen)

    @property
    def participants(self) -> list[str]:
        """The labels of all patients who were scored."""
        return list(dict.fromkeys(participant for participant, _ in self.patients))

    @property
    def training_sets(self) -> tuple[str, ...]:
        """All training sets, in the order in which they are shown."""
        return tuple(dict.fromkeys(one.training_set for one in self.detectors))


def which(training_set: str, detector: str) -> Which:
    """Name a detector and what it was trained on."""
    return Which(rank_of(training_set, detector), training_set, detector)


def find_detected(output_dir: Path) -> Detected:
    """Read all tables that the group level has written into a derivative dataset.

    Parameters
    ----------
    output_dir : Path
        The derivative dataset.
    """
    cards, no_cards = find_cards(output_dir)
    needed = ("participant_id", "training_set", "detector", *NEEDED)
    clusters, no_clusters = _read(output_dir, "clusters.tsv", needed, _found)
    scores, no_scores = _control_scores(output_dir, cards)
    known = ("training_set", "detector", "unit")
    curve, no_curve = _read(output_dir, "detection_curve.tsv", (*known, "clusters"), _point)
    responses, no_responses = _read(output_dir, "detection_froc.tsv", known, _response)
    tests, no_tests = _read(output_dir, "detection_tests.tsv", ("unit", "clusters"), _comparison)
    controls = {one.participant for card in cards.values() for one in card.members}
    scored = {*scored_visits(output_dir), *((one.participant, one.session) for one in clusters)}
    evaluated = [*no_curve, *no_responses, *no_tests]
    if not (curve or responses or tests):  # then no lesion is known, and nothing could be
        evaluated = [fault for fault in evaluated if not fault.endswith(ABSENT)]
    faults = (*no_cards, *no_clusters, *no_scores, *evaluated)
    return Detected(
        cards=cards,
        patients=sorted(one for one in scored if one[0] not in controls),
        clusters=clusters,
        control_scores=scores,
        curve=curve,
        responses=responses,
        comparisons=tests,
        faults=[fault for fault in faults if not fault.endswith(EMPTY)],
    )


def _read(
    output_dir: Path, table: str, needed: Sequence[str], read: Callable[[Cells], Line | None]
) -> tuple[list[Line], list[str]]:
    lines, faults = read_lines(output_dir, table, needed)
    understood = [read(line) for line in lines]
    kept = [one for one in understood if one is not None]
    lost = len(lines) - len(kept)
    told = [f"{table}: {lost} of its lines cannot be understood and are left out."] * (lost > 0)
    return kept, [*faults, *told]


def _control_scores(
    output_dir: Path, cards: Mapping[str, Card]
) -> tuple[dict[Which, dict[str, list[float]]], list[str]]:
    """Read what held-out controls have; those without clusters have a line without numbers."""
    scores, faults = dict[Which, dict[str, list[float]]](), list[str]()
    for name in cards:
        table = f"{FOLDER}/{name}/control_clusters.tsv"
        lines, lost = read_lines(output_dir, table, ("participant_id", "detector"))
        faults += lost
        for cells in lines:
            visit = name_visit(
                label_of(cells["participant_id"], "sub-"), label_of(cells.get("session_id"), "ses-")
            )
            own = scores.setdefault(which(name, cells["detector"]), {}).setdefault(visit, [])
            score = as_value(cells.get("sum_score"))
            own += [] if score is None else [score]
    return scores, faults


def _found(cells: Cells) -> Found | None:
    cluster = cluster_of(cells)
    if cluster is None:
        return None
    return Found(
        which=which(cells["training_set"], cells["detector"]),
        participant=label_of(cells["participant_id"], "sub-"),
        session=label_of(cells.get("session_id"), "ses-"),
        cluster=cluster,
    )


def _point(cells: Cells) -> Point | None:
    clusters, sensitivity = as_count(cells["clusters"]), as_value(cells.get("sensitivity"))
    if clusters is None or sensitivity is None:
        return None
    return Point(
        which=which(cells["training_set"], cells["detector"]),
        unit=cells["unit"],
        clusters=clusters,
        n=as_count(cells.get("n")),
        found=as_count(cells.get("found")),
        sensitivity=sensitivity,
        low=as_value(cells.get("low")),
        high=as_value(cells.get("high")),
        per_patient=as_value(cells.get("false_clusters_per_patient")),
        per_control=as_value(cells.get("false_clusters_per_control")),
    )


def _response(cells: Cells) -> Response | None:
    per_control = as_value(cells.get("false_clusters_per_control"))
    sensitivity = as_value(cells.get("sensitivity"))
    if per_control is None or sensitivity is None:
        return None
    return Response(
        which(cells["training_set"], cells["detector"]), cells["unit"], per_control, sensitivity
    )


def _comparison(cells: Cells) -> Comparison | None:
    clusters = as_count(cells["clusters"])
    one, other = (
        which(as_label(cells.get(f"training_set_{n}")), as_label(cells.get(f"detector_{n}")))
        for n in (1, 2)
    )
    if clusters is None or not one.detector or not other.detector:
        return None
    return Comparison(
        unit=cells["unit"],
        clusters=clusters,
        one=one,
        other=other,
        n=as_count(cells.get("n")),
        only_one=as_count(cells.get("only_1")),
        only_other=as_count(cells.get("only_2")),
        p=as_value(cells.get("p")),
        p_holm=as_value(cells.get("p_holm")),
    )
