"""After detectors: clusters of everyone become tables, and controls give them their meaning."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from bids_app.app.detectors import Sighting
from bids_app.derivatives.anomalies import DETECTORS, sign
from bids_app.derivatives.detections import (
    ControlCluster,
    Listed,
    control_findings,
    control_sum_scores,
    read_control_clusters,
    write_all_clusters,
    write_clusters_in_t1w,
    write_clusters_table,
    write_control_clusters,
    write_control_maps,
    write_curve,
    write_froc,
    write_tests,
)
from bids_app.detection.calibration import expected_in_control
from bids_app.detection.card import complete_card
from bids_app.detection.clusters import Cluster
from bids_app.detection.evaluation import (
    Finding,
    compare,
    detection_curve,
    free_response,
    marks_of,
)
from bids_app.detection.places import Place
from bids_app.errors import UnusableDataError
from bids_app.files import read_json
from bids_app.report.scored import Run, Scored

CURVES = ("detection_curve", "detection_tests", "detection_froc")


@dataclass(frozen=True)
class Seen:
    """What a detector saw in one image: all clusters by rank, lesions that are known, overlaps.

    Parameters
    ----------
    sighting : Sighting
        Who and which.
    clusters : tuple of Cluster
        All of them.
    lesions : int or None
        How many are known; None if that is not known.
    shared : ndarray, (clusters, lesions)
        In mm³.
    places : tuple of Place or None
        Where the first clusters lie on the T1w; None if they were not carried to it.
    above_zero : float or None
        Share of the brain that scores above 0.
    not_covered : int
        Lesions that the PET does not cover; they are not among ``lesions``.
    """

    sighting: Sighting
    clusters: tuple[Cluster, ...]
    lesions: int | None
    shared: np.ndarray
    places: tuple[Place, ...] | None = None
    above_zero: float | None = None
    not_covered: int = 0

    @property
    def row(self) -> tuple[str, str]:
        """Training set and detector."""
        return self.sighting.training_set, self.sighting.detector

    def listed(self, most: int | None = None) -> Listed:
        """Give the clusters, or the first ones, as tables list them."""
        sighting, who = self.sighting, self.sighting.who.who
        return Listed(
            who.label, who.session, sighting.training_set, sighting.detector, self.clusters[:most],
            self.above_zero,
        )  # fmt: skip

    def finding(self) -> Finding:
        """Give what evaluation needs."""
        sighting, who = self.sighting, self.sighting.who.who
        return Finding(
            sighting.training_set, sighting.detector, who.label, who.session,
            0 if self.lesions is None else self.lesions, marks_of(self.clusters, self.shared),
        )  # fmt: skip


def read_seen(sighting: Sighting) -> Seen | None:
    """Read what a detector saw in one image; None if that failed.

    Raises
    ------
    UnusableDataError
        If the file is not what this app writes.
    """
    if not sighting.clusters.is_file():
        return None
    told = read_json(sighting.clusters)
    try:
        clusters = [Cluster(**one) for one in told["clusters"]]  # type: ignore[attr-defined]
        lesions = told["lesions"]
        count = 0 if lesions is None else int(lesions)  # type: ignore[call-overload]
        shared = np.array(told["overlaps"] if count else [], float).reshape(len(clusters), count)
        not_covered = int(told.get("lesions_not_covered", 0))  # type: ignore[call-overload]
        share = told.get("above_zero")
        above_zero = None if share is None else float(share)  # type: ignore[arg-type]
        regions = told["regions"] if told["regions"] else [None] * len(clusters)
        known = [
            replace(one, region=region, overlap=None if lesions is None else float(row.sum()))
            for one, region, row in zip(clusters, regions, shared, strict=True)  # type: ignore[call-overload]
        ]
    except (KeyError, TypeError, ValueError) as error:
        raise UnusableDataError(
            f"{sighting.clusters}: not the clusters of an image ({error}); delete it, and run again"
        ) from error
    return Seen(
        sighting, tuple(known), None if lesions is None else count, shared,
        _read_places(sighting), above_zero, not_covered,
    )  # fmt: skip


def _read_places(sighting: Sighting) -> tuple[Place, ...] | None:
    path = sighting.places
    if path is None or not path.is_file():
        return None
    try:
        return tuple(Place(**one) for one in read_json(path)["places"])  # type: ignore[attr-defined]
    except (KeyError, TypeError) as error:
        raise UnusableDataError(
            f"{path}: not the places of clusters ({error}); delete it, and run again"
        ) from error


def scored_in(output_dir: Path, dataset: str, seen: Iterable[Seen]) -> Run:
    """Tell reports what a run has scored.

    Parameters
    ----------
    output_dir : Path
        Root of the derivative dataset.
    dataset : str
        Name or DOI of the raw one.
    seen : iterable of Seen
        Controls and patients.
    """
    return Run(dataset, [_scored(output_dir, one.sighting) for one in seen])


def _scored(output_dir: Path, one: Sighting) -> Scored:
    who = one.who.who
    return Scored(
        who.label, who.session if who.session else "", one.training_set, one.detector, one.control,
        one.paths.statmap.relative_to(output_dir).as_posix(),
    )  # fmt: skip


def write_detections(
    output_dir: Path, seen: Sequence[Seen], *, most: int, applied: Path | None
) -> None:
    """Write all tables: of each patient, of all, of controls, and curves where lesions are known.

    Of several PETs of a session, tables of all patients, and curves, tell of the first.

    Parameters
    ----------
    output_dir : Path
        Root of the derivative dataset.
    seen : sequence of Seen
        Controls and patients, in any order.
    most : int
        Clusters that are kept of a patient.
    applied : Path or None
        Folder of detectors that were trained before: their controls calibrate.
    """
    controls: dict[str, list[ControlCluster]] = {}
    for name in dict.fromkeys(one.sighting.training_set for one in seen):
        folder = output_dir / DETECTORS / name if applied is None else applied
        if applied is None:
            _complete(folder, [one for one in seen if one.sighting.training_set == name])
        controls[name] = read_control_clusters(folder)
    scores = {
        row: control_sum_scores(controls[row[0]], row[1])
        for row in dict.fromkeys(one.row for one in seen)
    }
    counts = {row: len(own) for row, own in scores.items()}
    patients = [_calibrated(one, scores[one.row]) for one in seen if not one.sighting.control]
    for one in patients:
        _write_table(one, most, counts[one.row])
    first = _first_pets(patients)
    write_all_clusters(output_dir, [one.listed(most) for one in first], counts)
    healthy = [one for name in controls for one in control_findings(controls[name], name)]
    _write_curves(output_dir, first, healthy, most)


def _complete(folder: Path, seen: Iterable[Seen]) -> None:
    """Write what controls have beside their detector, and let maps know its card: it is whole."""
    controls = [one.listed() for one in seen if one.sighting.control]
    write_control_clusters(folder, controls)
    write_control_maps(folder, controls)
    sha256 = complete_card(folder)
    made = [path for one in seen for path in one.sighting.sidecars if path.is_file()]
    for path in made if sha256 else ():
        sign(path, sha256)


def _first_pets(seen: Iterable[Seen]) -> list[Seen]:
    first: dict[tuple[str, str, str, str | None], Seen] = {}
    for one in seen:
        listed = one.listed()
        visit = listed.training_set, listed.detector, listed.participant, listed.session
        first.setdefault(visit, one)
    return list(first.values())


def _write_table(one: Seen, most: int, controls: int) -> None:
    write_clusters_table(one.sighting.paths.table, one.clusters[:most], controls)
    if one.places is not None:
        table = one.sighting.paths.table_in_t1w
        write_clusters_in_t1w(table, one.clusters[:most], one.places, controls)


def _calibrated(one: Seen, controls: Sequence[Sequence[float]]) -> Seen:
    clusters = tuple(
        replace(cluster, expected_in_control=expected_in_control(cluster.sum_score, controls))
        for cluster in one.clusters
    )
    return replace(one, clusters=clusters)


def _write_curves(
    output_dir: Path, patients: Iterable[Seen], healthy: Sequence[Finding], most: int
) -> None:
    told = [one.finding() for one in patients if one.lesions]
    if not told:
        for name in CURVES:  # of an earlier run that knew lesions
            for ending in (".tsv", ".json"):
                (output_dir / f"{name}{ending}").unlink(missing_ok=True)
        return
    write_curve(output_dir, detection_curve(told, healthy, most=most))
    write_tests(output_dir, compare(told, most=most))
    write_froc(output_dir, free_response(told, healthy))


def top_clusters(seen: Iterable[Seen]) -> Mapping[str, list[str]]:
    """Tell the first cluster of each patient in a line, by training set and detector."""
    lines: dict[str, list[str]] = {}
    for one in seen:
        sighting = one.sighting
        if sighting.control:
            continue
        who = f"sub-{sighting.who.who.label}"
        lines.setdefault(f"{sighting.training_set} {sighting.detector}", []).append(
            f"{who}: {_tell_first(one)}"
        )
    return lines


def _tell_first(one: Seen) -> str:
    if not one.clusters:
        return "no cluster"
    first = one.clusters[0]
    place = f"{first.side}, ({first.x:z.0f}, {first.y:z.0f}, {first.z:z.0f}) mm"
    size = f"{first.volume / 1000:.1f} cm³"
    if first.overlap is None:
        return f"{place}, {size}"
    hit = f"{first.overlap / 1000:.1f} cm³ of it lesion" if first.overlap else "not in a lesion"
    return f"{place}, {size}, {hit}"
