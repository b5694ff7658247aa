"""Evaluation of detection where lesions are known: Figure 4 of Zotova et al. (2021), and more.

A unit is a lesion or a patient: a patient is found if any of its lesions is. Only one visit of
each participant is used, the first by label, because a lesion that is scanned twice is not two
lesions. The lesions of one patient are not independent either: intervals and tests over lesions
are too narrow (anti-conservative), whereas those over patients are not.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from math import ceil
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from bids_app.detection.clusters import Cluster
from bids_app.imaging.statistics import holm
from bids_app.imaging.volume import Mask

ENOUGH = 10  # controls whose PET covers a voxel; our choice
MOST = 0.75  # share of the controls that is enough if there are few; our choice


def least_controls(controls: int) -> int:
    """Return the number of controls whose PET must cover a voxel for it to be analysed.

    The PET of a control may not cover the whole brain. Ten controls are enough, or three in four if
    there are fewer than 14, but at least two: our choice.

    Examples
    --------
    >>> [least_controls(n) for n in (2, 3, 4, 8, 13, 14, 100)]
    [2, 3, 3, 6, 10, 10, 10]
    """
    return max(min(ENOUGH, ceil(MOST * controls)), 2)


def common_brain(masks: Iterable[Mask], share: float = 0.9) -> Mask:
    """Return a mask of the voxels that are brain in at least a share of people.

    Only one mask is in memory at a time.

    Parameters
    ----------
    masks : iterable of ndarray of bool, (I, J, K)
        One or more brain masks on one grid.
    share : float
        Share of people, above 0, up to 1. Nine in ten is our choice: one mask that is too small
        does not restrict all others.

    Returns
    -------
    ndarray of bool, (I, J, K)

    Raises
    ------
    ValueError
        If there are no masks, shapes differ, or the share is out of range.

    Examples
    --------
    >>> masks = [np.array([True, True, False]), np.array([True, False, False])]
    >>> common_brain(masks), common_brain(masks, 0.5)
    (array([ True, False, False]), array([ True,  True, False]))
    """
    if not 0 < share <= 1:
        raise ValueError(f"the share of people must be above 0 and at most 1, not {share}")
    count, times = 0, np.zeros((), np.int32)
    for mask in masks:
        if count and mask.shape != times.shape:
            raise ValueError(f"brains of {times.shape} and of {mask.shape} voxels differ")
        times = times + mask
        count += 1
    if not count:
        raise ValueError("at least one brain is needed")
    return times >= share * count * (1 - 1e-9)  # 0.28 of 25 is 7.000000000000001


UNITS = ("lesion", "patient")
MOST_CLUSTERS = 10  # kept per patient: Figure 4 shows one to ten

Row: TypeAlias = tuple[str, str]  # training set and detector
Visit: TypeAlias = tuple[str, str | None]


@dataclass(frozen=True)
class Mark:
    """Cluster as used in evaluation.

    Parameters
    ----------
    rank : int
        Rank of the cluster, from 1.
    sum_score : float
        Sum of its scores.
    lesions : frozenset of int
        Lesions, numbered from 1, that share at least one voxel with the cluster; a false cluster
        has none.
    """

    rank: int
    sum_score: float
    lesions: frozenset[int] = frozenset()


@dataclass(frozen=True)
class Finding:
    """Clusters that one detector found in one visit.

    Parameters
    ----------
    training_set, detector : str
        For example, ``"hybrid"`` and ``"ocsvm"``.
    participant : str
        Label, without ``sub-``.
    session : str or None
        Label, without ``ses-``.
    lesions : int
        Number of known lesions; 0 for a control, and for a patient without a lesion mask.
    marks : tuple of Mark
        All clusters, or the first ones by rank.
    """

    training_set: str
    detector: str
    participant: str
    session: str | None
    lesions: int
    marks: tuple[Mark, ...]

    def __post_init__(self) -> None:
        odd = {lesion for mark in self.marks for lesion in mark.lesions} - {
            *range(1, self.lesions + 1)
        }
        if odd:
            raise ValueError(
                f"{self.participant} has {self.lesions} lesions, none with number {min(odd)}"
            )


@dataclass(frozen=True)
class CurvePoint:
    """Detection performance when at most a given number of ``clusters`` is kept per patient.

    A kept cluster overlaps ``found`` of the ``n`` units; ``sensitivity`` is their share, with a
    Wilson 95 % interval from ``low`` to ``high``. ``false_clusters_per_patient`` is the mean number
    of kept clusters that overlap no lesion, over patients; ``false_clusters_per_control`` is the
    mean number of kept clusters, over held-out controls (None without any).
    """

    training_set: str
    detector: str
    unit: str
    clusters: int
    n: int
    found: int
    sensitivity: float
    low: float
    high: float
    false_clusters_per_patient: float
    false_clusters_per_control: float | None


@dataclass(frozen=True)
class McNemarTest:
    """Comparison of two detectors at one number of ``clusters`` kept per patient.

    Both were applied to ``n`` units; ``only_1`` and ``only_2`` of them were found by one detector
    alone. ``p`` is two-tailed, and ``p_holm`` is corrected over all pairs at this number of
    clusters and for this unit; both are None if nothing can be compared.
    """

    unit: str
    clusters: int
    training_set_1: str
    detector_1: str
    training_set_2: str
    detector_2: str
    n: int
    only_1: int
    only_2: int
    p: float | None
    p_holm: float | None = None


@dataclass(frozen=True)
class FreePoint:
    """Corner of a free-response curve, where clusters of at least ``sum_score`` are kept.

    ``sensitivity`` is the share of units that a kept cluster overlaps, with a Wilson 95 % interval
    from ``low`` to ``high``; ``false_clusters_per_control`` is the mean number of kept clusters in
    held-out controls.
    """

    training_set: str
    detector: str
    unit: str
    sum_score: float
    false_clusters_per_control: float
    sensitivity: float
    low: float = math.nan
    high: float = math.nan


def marks_of(clusters: Sequence[Cluster], shared: NDArray[np.float64]) -> tuple[Mark, ...]:
    """Determine which lesions each cluster hits.

    Parameters
    ----------
    clusters : sequence of Cluster
        Clusters by rank.
    shared : ndarray, (clusters, lesions)
        Shared volumes in mm³, from :func:`~bids_app.detection.clusters.overlaps`. Any shared volume
        is a hit: our reading of the paper, which requires no more.
    """
    return tuple(
        Mark(cluster.rank, cluster.sum_score, frozenset((np.flatnonzero(row) + 1).tolist()))
        for cluster, row in zip(clusters, shared, strict=True)
    )


def detection_curve(
    patients: Iterable[Finding], controls: Iterable[Finding] = (), *, most: int = MOST_CLUSTERS
) -> list[CurvePoint]:
    """Compute sensitivity against clusters per patient, with Wilson's 95 % interval.

    See Wilson (1927), Journal of the American Statistical Association 22:209-212.

    Parameters
    ----------
    patients : iterable of Finding
        Findings of patients; those without a known lesion are left out.
    controls : iterable of Finding
        Findings of controls, including those without clusters, by detectors not trained on them.
    most : int
        Largest number of clusters; the curve begins with one.

    Returns
    -------
    list of CurvePoint
        Points by training set and detector, in their original order, then by unit, then by number
        of clusters.

    Raises
    ------
    ValueError
        If a detector has two findings of one visit.
    """
    ill, healthy = _by_row(_with_lesions(patients)), _by_row(controls)
    return [
        _curve_point(
            row, unit, clusters, _first_visits(ill[row]), _first_visits(healthy.get(row, {}))
        )
        for row in ill
        for unit in UNITS
        for clusters in range(1, most + 1)
    ]


def compare(patients: Iterable[Finding], *, most: int = MOST_CLUSTERS) -> list[McNemarTest]:
    """Test whether detectors differ in the units they find, with the exact McNemar test.

    All pairs of training set and detector are compared with each other, on the visits analysed by
    both. If the two detectors are equally good, a unit found by only one of them is equally likely
    to be found by either: a binomial test. See McNemar (1947), Psychometrika 12:153-157. P-values
    are corrected over the pairs as in Holm (1979), Scandinavian Journal of Statistics 6:65-70.

    Parameters
    ----------
    patients : iterable of Finding
        Findings of patients; those without a known lesion are left out.
    most : int
        Largest number of clusters kept per patient; there is a test for each number from one.

    Raises
    ------
    ValueError
        If a detector has two findings of one visit, or if two detectors differ in the number of
        lesions of a visit.
    """
    ill = _by_row(_with_lesions(patients))
    comparisons = []
    for unit in UNITS:
        for clusters in range(1, most + 1):
            tests = [_compare_two(ill, pair, unit, clusters) for pair in combinations(ill, 2)]
            corrected = holm([math.nan if test.p is None else test.p for test in tests])
            comparisons += [
                test if test.p is None else replace(test, p_holm=p)
                for test, p in zip(tests, corrected, strict=True)
            ]
    return comparisons


def free_response(patients: Iterable[Finding], controls: Iterable[Finding]) -> list[FreePoint]:
    """Compute sensitivity against false clusters per control, as the score threshold falls.

    This follows Chakraborty (1989), Medical Physics 16:561-568, except that false clusters are
    counted in controls, who have no lesions. Marks should include all clusters of a visit, not only
    the first ones; otherwise low scores are missing.

    Returns
    -------
    list of FreePoint
        Corners of the staircase by falling score: where sensitivity rises, and its end at the
        lowest score. Detectors without controls are left out.

    Raises
    ------
    ValueError
        If a detector has two findings of one visit.
    """
    ill, healthy = _by_row(_with_lesions(patients)), _by_row(controls)
    return [
        point
        for row in ill
        if row in healthy
        for unit in UNITS
        for point in _corners(row, unit, _first_visits(ill[row]), _first_visits(healthy[row]))
    ]


def _with_lesions(patients: Iterable[Finding]) -> list[Finding]:
    return [patient for patient in patients if patient.lesions]


def _by_row(findings: Iterable[Finding]) -> dict[Row, dict[Visit, Finding]]:
    rows: dict[Row, dict[Visit, Finding]] = {}
    for finding in findings:
        row, visit = (
            (finding.training_set, finding.detector),
            (finding.participant, finding.session),
        )
        if visit in rows.setdefault(row, {}):
            raise ValueError(f"{' '.join(row)} has two findings of {visit}")
        rows[row][visit] = finding
    return rows


def _first_visits(findings: dict[Visit, Finding]) -> list[Finding]:
    first: dict[str, Finding] = {}
    for participant, session in sorted(findings, key=lambda visit: (visit[0], visit[1] or "")):
        first.setdefault(participant, findings[participant, session])
    return list(first.values())


def _found_units(finding: Finding, unit: str, clusters: int) -> list[bool]:
    """Return, for each unit of a visit, whether one of the first clusters finds it."""
    hits = {lesion for mark in _first_marks(finding, clusters) for lesion in mark.lesions}
    if unit == "patient":
        return [bool(hits)]
    return [lesion in hits for lesion in range(1, finding.lesions + 1)]


def _first_marks(finding: Finding, clusters: int) -> list[Mark]:
    return [mark for mark in finding.marks if mark.rank <= clusters]


def _curve_point(
    row: Row, unit: str, clusters: int, patients: list[Finding], controls: list[Finding]
) -> CurvePoint:
    hits = [found for patient in patients for found in _found_units(patient, unit, clusters)]
    interval = stats.binomtest(sum(hits), len(hits)).proportion_ci(method="wilson")
    false = sum(
        not mark.lesions for patient in patients for mark in _first_marks(patient, clusters)
    )
    healthy = sum(len(_first_marks(control, clusters)) for control in controls)
    return CurvePoint(
        *row,
        unit=unit,
        clusters=clusters,
        n=len(hits),
        found=sum(hits),
        sensitivity=sum(hits) / len(hits),
        low=float(interval.low),
        high=float(interval.high),
        false_clusters_per_patient=false / len(patients),
        false_clusters_per_control=healthy / len(controls) if controls else None,
    )


def _compare_two(
    ill: dict[Row, dict[Visit, Finding]], pair: tuple[Row, Row], unit: str, clusters: int
) -> McNemarTest:
    one, other = (ill[row] for row in pair)
    outcomes: list[tuple[bool, bool]] = []
    for first in _first_visits({visit: one[visit] for visit in one if visit in other}):
        second = other[first.participant, first.session]
        if first.lesions != second.lesions:
            raise ValueError(f"{pair} differ in the number of lesions of {first.participant}")
        outcomes += zip(
            _found_units(first, unit, clusters), _found_units(second, unit, clusters), strict=True
        )
    only_1, only_2 = outcomes.count((True, False)), outcomes.count((False, True))
    differing = only_1 + only_2
    p = float(stats.binomtest(only_1, differing).pvalue) if differing else 1.0
    return McNemarTest(
        unit, clusters, *pair[0], *pair[1], len(outcomes), only_1, only_2, p if outcomes else None
    )


def _best_scores(finding: Finding, unit: str) -> list[float]:
    """Return, for each unit that is found at all, the highest score that finds it."""
    best: dict[int, float] = {}
    for mark in finding.marks:
        for lesion in mark.lesions:
            best[lesion] = max(best.get(lesion, mark.sum_score), mark.sum_score)
    return [max(best.values())] if unit == "patient" and best else list(best.values())


def _corners(
    row: Row, unit: str, patients: list[Finding], controls: list[Finding]
) -> list[FreePoint]:
    best = [score for patient in patients for score in _best_scores(patient, unit)]
    false = [mark.sum_score for control in controls for mark in control.marks]
    n = len(patients) if unit == "patient" else sum(patient.lesions for patient in patients)
    lowest = [min(best + false)] if best or false else []
    points = []
    for score in sorted({*best, *lowest}, reverse=True):
        found = sum(other >= score for other in best)
        interval = stats.binomtest(found, n).proportion_ci(method="wilson")
        points.append(
            FreePoint(
                *row,
                unit=unit,
                sum_score=score,
                false_clusters_per_control=sum(other >= score for other in false) / len(controls),
                sensitivity=found / n,
                low=float(interval.low),
                high=float(interval.high),
            )
        )
    return points


FALSE_RATES = (0.5, 1.0, 2.0)  # mean numbers of clusters per held-out control; our choice


def point_at(responses: Iterable[FreePoint], rate: float) -> FreePoint | None:
    """Return the most sensitive point of a free-response curve at up to a given false-cluster rate.

    Parameters
    ----------
    responses : iterable of FreePoint
        Points of one training set, detector and unit.
    rate : float
        Maximum of the mean number of clusters per held-out control.

    Returns
    -------
    FreePoint or None
        Most sensitive point; None if even the highest score has more false clusters.
    """
    allowed = [point for point in responses if point.false_clusters_per_control <= rate]
    return max(allowed, key=lambda point: point.sensitivity, default=None)
