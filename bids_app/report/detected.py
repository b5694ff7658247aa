"""All that the group level has written as tables.

What is missing or cannot be understood is left out, and a sentence says so.
"""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, TypeVar

from bids_app.report.cells import Cells, read_lines
from bids_app.report.clusters import NEEDED, Cluster, cluster_of
from bids_app.report.control_maps import control_scores, control_shares
from bids_app.report.detector_cards import Card, find_cards, folders_of
from bids_app.report.detectors import FOLDER, Which, label_of, name_visit, which
from bids_app.report.evaluated import (
    Comparison,
    Point,
    Response,
    comparison_of,
    point_of,
    response_of,
)
from bids_app.report.scored import NAME, Scored, maps_on_disk, read_run

Line = TypeVar("Line")

ABSENT: Final = "is missing."  # how a sentence on a table that is not there ends
EMPTY: Final = "is empty."  # and on one without lines: nothing was found


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
class Detected:
    """What the last run has made: its maps, tables and cards.

    Parameters
    ----------
    dataset : str
        Name or DOI of the raw dataset that was scored; empty if not told.
    cards : dict
        Training set → card.
    maps : sequence of Scored
        All that it has scored: patients, and held-out controls.
    clusters : sequence of Found
        Of patients.
    control_scores : dict
        Detector → held-out control → ``sum_score`` of each of its clusters; there may be none.
    control_shares : dict
        Detector → held-out control → share of its brain that scores above 0.
    curve, responses, comparisons : sequence
        The lines of ``detection_curve.tsv``, ``detection_froc.tsv`` and ``detection_tests.tsv``;
        none where no lesion is known.
    stale_maps : sequence of Scored
        Those that an earlier run has left.
    stale_folders : sequence of str
        Folders of detectors that it has left, inside the derivative dataset.
    faults : sequence of str
        What is missing or damaged, a sentence each.
    """

    dataset: str
    cards: Mapping[str, Card]
    maps: Sequence[Scored]
    clusters: Sequence[Found]
    control_scores: Mapping[Which, Mapping[str, Sequence[float]]]
    control_shares: Mapping[Which, Mapping[str, float]]
    curve: Sequence[Point]
    responses: Sequence[Response]
    comparisons: Sequence[Comparison]
    stale_maps: Sequence[Scored]
    stale_folders: Sequence[str]
    faults: Sequence[str]

    @property
    def detectors(self) -> list[Which]:
        """All that have scored someone, or have found something."""
        scored = {one.which for one in self.maps}
        found = {one.which for one in self.clusters} | {one.which for one in self.curve}
        return sorted(scored | found)

    @property
    def participants(self) -> list[str]:
        """The labels of all patients who were scored."""
        return sorted({one.participant for one in self.maps if not one.control})

    def patients_of(self, detector: Which) -> list[tuple[str, str]]:
        """List whom a detector has scored: participant and session of each patient's visit."""
        return sorted({one.visit for one in self.maps if one.which == detector and not one.control})

    @property
    def training_sets(self) -> tuple[str, ...]:
        """All training sets, in the order in which they are shown."""
        return tuple(dict.fromkeys(one.training_set for one in self.detectors))


def find_detected(output_dir: Path, applied: str = "") -> Detected:
    """Read all that the last run of the group level has written into a derivative dataset.

    Where no record tells which maps are of that run, all that are there are taken for it.

    Parameters
    ----------
    output_dir : Path
        The derivative dataset.
    applied : str
        The folder of detectors that were trained before and were applied; empty if there is none.
    """
    run, there = read_run(output_dir), maps_on_disk(output_dir)
    maps = there if run is None else run.maps
    untold = [f"{NAME} cannot be read: some of the maps may be of earlier runs."] * (
        run is None and bool(there)
    )
    sets = {one.training_set for one in maps}
    cards, no_cards = find_cards(output_dir, sets, applied)
    needed = ("participant_id", "training_set", "detector", *NEEDED)
    clusters, no_clusters = _read(output_dir, "clusters.tsv", needed, _found)
    scores, no_scores = control_scores(output_dir, cards)
    shares, no_shares = control_shares(output_dir, cards)
    known = ("training_set", "detector", "unit")
    curve, no_curve = _read(output_dir, "detection_curve.tsv", (*known, "clusters"), point_of)
    responses, no_responses = _read(output_dir, "detection_froc.tsv", known, response_of)
    tests, no_tests = _read(output_dir, "detection_tests.tsv", ("unit", "clusters"), comparison_of)
    evaluated = [*no_curve, *no_responses, *no_tests]
    if not (curve or responses or tests):  # then no lesion is known, and nothing could be
        evaluated = [fault for fault in evaluated if not fault.endswith(ABSENT)]
    faults = (*untold, *no_cards, *no_clusters, *no_scores, *no_shares, *evaluated)
    own = {one.path for one in maps}
    return Detected(
        dataset="" if run is None else run.dataset,
        cards=cards,
        maps=maps,
        clusters=clusters,
        control_scores=scores,
        control_shares=shares,
        curve=curve,
        responses=responses,
        comparisons=tests,
        stale_maps=[one for one in there if one.path not in own],
        stale_folders=_unused(output_dir, folders_of(output_dir, sets, applied)),
        faults=[fault for fault in faults if not fault.endswith(EMPTY)],
    )


def _unused(output_dir: Path, used: Collection[Path]) -> list[str]:
    there = sorted(path for path in (output_dir / FOLDER).glob("*") if path.is_dir())
    return [path.relative_to(output_dir).as_posix() for path in there if path not in used]


def _read(
    output_dir: Path, table: str, needed: Sequence[str], read: Callable[[Cells], Line | None]
) -> tuple[list[Line], list[str]]:
    lines, faults = read_lines(output_dir, table, needed)
    understood = [read(line) for line in lines]
    kept = [one for one in understood if one is not None]
    lost = len(lines) - len(kept)
    told = [f"{table}: {lost} of its lines cannot be understood and are left out."] * (lost > 0)
    return kept, [*faults, *told]


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
