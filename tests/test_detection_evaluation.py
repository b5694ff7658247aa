import math
import random
from dataclasses import replace
from itertools import combinations, pairwise, product

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binomtest

from bids_app.detection.clusters import find_clusters, overlaps, separate_lesions
from bids_app.detection.evaluation import (
    UNITS,
    Finding,
    Mark,
    compare,
    detection_curve,
    free_response,
    marks_of,
    point_at,
)

ROWS = [("real", "ocsvm"), ("hybrid", "ocsvm"), ("real", "zscore")]
REAL, HYBRID, ZSCORE = ROWS


def finding(row, participant, hits, *, lesions=1, session=None, scores=None):
    """Return a finding with the lesions that each cluster hits, by rank."""
    scores = range(100, 100 - len(hits), -1) if scores is None else scores
    marks = [
        Mark(rank, float(score), frozenset(hit))
        for rank, (hit, score) in enumerate(zip(hits, scores, strict=True), 1)
    ]
    return Finding(*row, participant, session, lesions, tuple(marks))


def control(row, participant, scores, session=None):
    return finding(row, participant, [()] * len(scores), lesions=0, scores=scores, session=session)


def draw_patient(rng, row, participant, lesions, session=None):
    count = int(rng.integers(0, 14))
    hits = [[n for n in range(1, lesions + 1) if rng.random() < 0.15] for _ in range(count)]
    scores = np.sort(rng.integers(1, 30, count))[::-1].tolist()
    return finding(row, participant, hits, lesions=lesions, scores=scores, session=session)


def draw_study(seed, rows=ROWS):
    rng = np.random.default_rng(seed)
    lesions = [int(rng.integers(1, 4)) for _ in range(int(rng.integers(1, 7)))]
    patients = [
        draw_patient(rng, row, f"p{n}", count) for row in rows for n, count in enumerate(lesions)
    ]
    controls = [
        control(row, f"c{n}", np.sort(rng.integers(1, 30, rng.integers(0, 12)))[::-1].tolist())
        for row in rows
        for n in range(int(rng.integers(1, 6)))
    ]
    return patients, controls


def of(points, unit, row=REAL):
    return [
        point
        for point in points
        if point.unit == unit and (point.training_set, point.detector) == row
    ]


seeds = st.integers(0, 100_000)


# Curve


@given(seeds)
def test_more_clusters_find_no_less_and_err_no_less(seed):
    points = detection_curve(*draw_study(seed))
    for unit, row in product(UNITS, ROWS):
        curve = of(points, unit, row)
        assert [point.clusters for point in curve] == [*range(1, 11)]
        for one, more in pairwise(curve):
            assert one.sensitivity <= more.sensitivity
            assert one.false_clusters_per_patient <= more.false_clusters_per_patient
            assert one.false_clusters_per_control <= more.false_clusters_per_control <= 10
            assert more.clusters - one.clusters == 1


@given(seeds)
def test_numbers_of_a_curve_fit_one_another(seed):
    for point in detection_curve(*draw_study(seed)):
        assert 0 <= point.found <= point.n
        assert point.sensitivity == point.found / point.n
        assert 0 <= point.low <= point.sensitivity + 1e-12
        assert point.sensitivity - 1e-12 <= point.high <= 1
        assert point.low < point.high


@given(seeds)
def test_intervals_are_wilsons_formula(seed):
    z = 1.959963984540054
    for point in detection_curve(*draw_study(seed)):
        n, p = point.n, point.sensitivity
        centre = (p + z * z / (2 * n)) / (1 + z * z / n)
        half = z / (1 + z * z / n) * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
        assert (point.low, point.high) == pytest.approx((centre - half, centre + half), abs=1e-9)


@given(seeds)
def test_the_order_of_findings_does_not_matter(seed):
    patients, controls = draw_study(seed, [REAL])
    shuffled = [random.Random(seed).sample(some, len(some)) for some in (patients, controls)]
    assert detection_curve(*shuffled) == detection_curve(patients, controls)
    assert free_response(*shuffled) == free_response(patients, controls)


@given(seeds)
def test_a_patient_is_found_when_a_lesion_is(seed):
    patients, _ = draw_study(seed, [REAL])
    points = detection_curve(patients)
    for lesion, patient in zip(of(points, "lesion"), of(points, "patient"), strict=True):
        assert patient.n == len(patients)
        assert lesion.n == sum(one.lesions for one in patients)
        assert patient.found <= lesion.found
        assert lesion.found - patient.found <= lesion.n - patient.n
        assert lesion.false_clusters_per_patient == patient.false_clusters_per_patient


def test_a_curve_by_hand():
    patients = [
        finding(REAL, "01", [(), (2,), (1, 2)], lesions=2),
        finding(REAL, "02", [(1,), (), ()]),
        finding(REAL, "03", [(), ()]),
        finding(REAL, "04", [(), ()], lesions=0),  # lesions unknown
    ]
    controls = [control(REAL, "c1", [9, 8, 7]), control(REAL, "c2", [])]
    lesion = of(detection_curve(patients, controls), "lesion")
    assert [one.found for one in lesion] == [1, 2, 3, *[3] * 7]
    assert {one.n for one in lesion} == {4}
    assert [one.false_clusters_per_patient for one in lesion[:4]] == [2 / 3, 4 / 3, 5 / 3, 5 / 3]
    assert [one.false_clusters_per_control for one in lesion[:4]] == [0.5, 1, 1.5, 1.5]
    patient = of(detection_curve(patients, controls), "patient")
    assert [(one.found, one.n) for one in patient[:3]] == [(1, 3), (2, 3), (2, 3)]


def test_the_papers_numbers():
    """Section 3.3: 64.7 % and 53 % of 17 patients are 11 and 9; Wilson's intervals by hand."""
    patients = [finding(REAL, f"{n}", [(1,)] if n < 11 else [()]) for n in range(17)]
    patients += [finding(HYBRID, f"{n}", [(1,)] if n < 9 else []) for n in range(17)]
    points = detection_curve(patients, most=1)
    real, hybrid = of(points, "patient")[0], of(points, "patient", HYBRID)[0]
    assert (round(real.sensitivity, 3), round(hybrid.sensitivity, 2)) == (0.647, 0.53)
    assert (real.low, real.high) == pytest.approx((0.4130, 0.8269), abs=5e-5)
    assert (hybrid.low, hybrid.high) == pytest.approx((0.3096, 0.7383), abs=5e-5)


def test_without_controls_their_false_clusters_are_unknown():
    patients = [finding(row, "01", [(1,)]) for row in (REAL, ZSCORE)]
    points = detection_curve(patients, [control(ZSCORE, "c1", [1])])
    assert {one.false_clusters_per_control for one in of(points, "lesion")} == {None}
    assert {one.false_clusters_per_control for one in of(points, "lesion", ZSCORE)} == {1}


def test_without_known_lesions_there_is_nothing():
    patients = [finding(REAL, "01", [()], lesions=0)]
    assert detection_curve(patients) == []
    assert compare(patients) == []
    assert free_response(patients, [control(REAL, "c1", [1])]) == []


def test_of_several_visits_the_first_counts():
    patients = [
        finding(REAL, "01", [()], session="2"),
        finding(REAL, "01", [(1,)], session="1"),
        finding(REAL, "02", [()]),
    ]
    controls = [control(REAL, "c1", [3, 2], "b"), control(REAL, "c1", [9], "a")]
    point = detection_curve(patients, controls, most=2)[1]
    assert (point.n, point.found, point.false_clusters_per_control) == (2, 1, 1)
    unknown = [replace(patients[1], lesions=0, marks=()), *patients[::2]]
    assert detection_curve(unknown)[0].found == 0  # then the first visit with known lesions counts


def test_one_visit_is_found_once():
    twice = [finding(REAL, "01", [(1,)])] * 2
    with pytest.raises(ValueError, match="two findings of"):
        detection_curve(twice)
    with pytest.raises(ValueError, match="two findings of"):
        detection_curve(twice[:1], [control(REAL, "c1", [])] * 2)


def test_a_lesion_that_is_not_there_cannot_be_hit():
    with pytest.raises(ValueError, match="01 has 1 lesions, none with number 2"):
        finding(REAL, "01", [(1, 2)])


# Tests


def mcnemar(one, other):
    """Count the possible splits of the discordant units that are at least as uneven."""
    differing = one + other
    ways = [abs(2 * sum(way) - differing) for way in product((0, 1), repeat=differing)]
    return sum(way >= abs(one - other) for way in ways) / len(ways)


@given(seeds)
def test_p_is_what_counting_all_ways_gives(seed):
    patients, _ = draw_study(seed)
    for one in compare(patients, most=3):
        if one.only_1 + one.only_2 <= 10:
            assert one.p == pytest.approx(mcnemar(one.only_1, one.only_2))


@given(seeds)
def test_what_one_finds_more_of_is_what_tests_count(seed):
    patients, _ = draw_study(seed)
    curve = {
        (point.training_set, point.detector, point.unit, point.clusters): point
        for point in detection_curve(patients)
    }
    for test in compare(patients):
        one, other = (
            curve[set_, detector, test.unit, test.clusters]
            for set_, detector in (
                (test.training_set_1, test.detector_1),
                (test.training_set_2, test.detector_2),
            )
        )
        assert test.n == one.n == other.n
        assert test.only_1 - test.only_2 == one.found - other.found
        assert test.p <= test.p_holm <= 1


@given(seeds)
def test_whichever_comes_first_the_test_is_the_same(seed):
    patients, _ = draw_study(seed, ROWS[:2])
    back = [one for row in (HYBRID, REAL) for one in patients if one.training_set == row[0]]
    for one, other in zip(compare(patients), compare(back), strict=True):
        assert (one.only_1, one.only_2, one.p) == (other.only_2, other.only_1, other.p)


def test_every_two_are_compared_once_at_each_number_and_unit():
    patients, _ = draw_study(1)
    found = compare(patients)
    pairs = [
        (one.training_set_1, one.detector_1, one.training_set_2, one.detector_2) for one in found
    ]
    expected = [(*one, *other) for one, other in combinations(ROWS, 2)]
    assert pairs == expected * 20
    assert [(one.unit, one.clusters) for one in found[::3]] == [*product(UNITS, range(1, 11))]


def test_a_test_by_hand():
    """Of 8 lesions, one detector finds 6 alone, and both find 1: 2 × 1/64."""
    patients = [finding(REAL, f"{n}", [(1,)] if n < 7 else [()]) for n in range(8)]
    patients += [finding(HYBRID, f"{n}", [(), (1,)] if n else [(1,)]) for n in range(8)]
    one, two = (test for test in compare(patients, most=2) if test.unit == "lesion")
    assert (one.n, one.only_1, one.only_2) == (8, 6, 0)
    assert (one.p, one.p_holm) == pytest.approx((2 / 64, 2 / 64))
    assert (two.only_1, two.only_2, two.p) == (0, 1, 1)
    assert {test.p for test in compare([*patients[:8], *copies(patients[:8], HYBRID)])} == {1}


def copies(findings, row):
    return [replace(one, training_set=row[0], detector=row[1]) for one in findings]


def test_holm_is_over_the_pairs_at_one_number_and_unit():
    patients = [finding(REAL, f"{n}", [(1,)]) for n in range(6)]
    for row in (HYBRID, ZSCORE):
        patients += [finding(row, f"{n}", [(), (1,)]) for n in range(6)]
    for test in compare(patients, most=2):
        known = test.clusters == 1 and (test.training_set_1, test.detector_1) == REAL
        expected = (2 / 64, 6 / 64) if known else (1, 1)
        assert (test.p, test.p_holm) == pytest.approx(expected)


def test_only_what_both_tried_is_compared():
    patients = [finding(REAL, name, [(1,)]) for name in ("01", "02", "03")]
    patients += [finding(HYBRID, name, [()]) for name in ("02", "03", "04")]
    patients += [finding(ZSCORE, "05", [(1,)])]
    one, nobody, _ = compare(patients, most=1)[:3]
    assert (one.n, one.only_1, one.p, one.p_holm) == (2, 2, 0.5, 0.5)
    assert (nobody.n, nobody.only_1, nobody.p, nobody.p_holm) == (0, 0, None, None)


def test_visits_are_paired():
    """One has visits a and b, the other only b, so b is compared."""
    patients = [
        finding(REAL, "01", [()], session="a"),
        finding(REAL, "01", [(1,)], session="b"),
        finding(HYBRID, "01", [()], session="b"),
        finding(HYBRID, "01", [()], session="c"),
    ]
    test = compare(patients, most=1)[0]
    assert (test.n, test.only_1, test.only_2) == (1, 1, 0)


def test_two_who_know_different_lesions_are_not_compared():
    patients = [finding(REAL, "01", [()], lesions=2), finding(HYBRID, "01", [()])]
    with pytest.raises(ValueError, match="differ in the number of lesions of 01"):
        compare(patients)


# Free response


@given(seeds)
def test_the_staircase_is_what_trying_every_score_gives(seed):
    patients, controls = draw_study(seed, [REAL])
    points = free_response(patients, controls)
    for unit in UNITS:
        corners = of(points, unit)
        for score in range(31):
            sensitivity, false = at(score, unit, patients, controls)
            reached = [one.sensitivity for one in corners if one.sum_score >= score]
            assert max(reached, default=0) == pytest.approx(sensitivity)
            within = [one.sensitivity for one in corners if one.false_clusters_per_control <= false]
            assert max(within, default=0) >= sensitivity - 1e-12
        for one in corners:
            assert (one.sensitivity, one.false_clusters_per_control) == pytest.approx(
                at(one.sum_score, unit, patients, controls)
            )


def at(score, unit, patients, controls):
    tried = []
    for patient in patients:
        hit = {n for mark in patient.marks if mark.sum_score >= score for n in mark.lesions}
        tried += (
            [bool(hit)] if unit == "patient" else [n in hit for n in range(1, patient.lesions + 1)]
        )
    false = [sum(mark.sum_score >= score for mark in one.marks) for one in controls]
    return np.mean(tried), np.mean(false)


@given(seeds)
def test_scores_fall_while_both_coordinates_rise(seed):
    points = free_response(*draw_study(seed))
    for unit, row in product(UNITS, ROWS):
        for one, more in pairwise(of(points, unit, row)):
            assert one.sum_score > more.sum_score
            assert one.sensitivity <= more.sensitivity
            assert one.false_clusters_per_control <= more.false_clusters_per_control


def test_a_free_response_by_hand():
    patients = [
        finding(REAL, "01", [(), (1,), (1, 2)], lesions=2, scores=[9, 7, 4]),
        finding(REAL, "02", [()], scores=[8]),
    ]
    controls = [control(REAL, "c1", [8, 7, 3]), control(REAL, "c2", [5])]
    points = [
        (one.sum_score, one.false_clusters_per_control, one.sensitivity)
        for one in of(free_response(patients, controls), "lesion")
    ]
    assert points == [(7, 1, 1 / 3), (4, 1.5, 2 / 3), (3, 2, 2 / 3)]
    lesions = of(free_response(patients, controls), "lesion")
    assert point_at(lesions, 0.9) is None
    assert point_at(lesions, 1.2) == lesions[0]
    assert point_at(lesions, 5) == lesions[1]  # as sensitive as the last point, with fewer clusters
    interval = binomtest(1, 3).proportion_ci(method="wilson")
    assert (lesions[0].low, lesions[0].high) == (interval.low, interval.high)
    points = of(free_response(patients, controls), "patient")
    assert [(point.sum_score, point.sensitivity) for point in points] == [(7, 0.5), (3, 0.5)]


def test_without_controls_there_is_no_free_response():
    patients = [finding(row, "01", [(1,)]) for row in (REAL, ZSCORE)]
    points = free_response(patients, [control(ZSCORE, "c1", [])])
    assert {(point.training_set, point.detector) for point in points} == {ZSCORE}
    assert [(point.false_clusters_per_control, point.sensitivity) for point in points] == [
        (0, 1)
    ] * 2


# From maps to findings


def test_what_a_map_shows_is_what_is_evaluated():
    """The second cluster shares one voxel with the first lesion; the first cluster hits none."""
    score = np.zeros((20, 10, 10), np.float32)
    score[2:4, 2:4, 2:4], score[10:12, 5, 5] = 2, 3
    lesions = np.zeros(score.shape, bool)
    lesions[11:13, 5, 5] = lesions[18, 9, 9] = True
    clusters, labels = find_clusters(
        score, score >= 0, np.diag([2.0, 2, 2, 1]), extent=0.5, minimum_volume=0
    )
    known = separate_lesions(lesions, np.diag([2.0, 2, 2, 1]))
    marks = marks_of(clusters, overlaps(labels, known, 8.0))
    assert marks == (Mark(1, 16.0), Mark(2, 6.0, frozenset({1})))
    points = detection_curve([Finding(*REAL, "01", None, int(known.max()), marks)])
    assert [one.found for one in of(points, "lesion")[:2]] == [0, 1]
    assert points[0].n == 2
    with pytest.raises(ValueError, match="shorter"):
        marks_of(clusters, overlaps(labels, known, 8.0)[:1])
