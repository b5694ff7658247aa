import math
from dataclasses import replace
from itertools import product

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import rankdata

from bids_app.synthesis.evaluation import METRICS, ROWS, ScoreRecord, Scores
from bids_app.synthesis.statistics import (
    compare_rows,
    mean_and_sd,
    participants_of,
    rows_of,
    signed_rank,
)

GAN, MSE, CYCLE, T1W = "semi3d-gan", "semi3d-gan-mse", "semi3d-cyclegan", "baseline-t1w"


def record(model, participant, value, session=None, lpips=math.nan):
    scores = Scores(*[float(value)] * len(METRICS))
    return ScoreRecord(
        model, participant, session, 1, replace(scores, lpips=lpips, lpips_brain=lpips), {}
    )


def of(model, values, **more):
    return [record(model, f"{n:02}", value, **more) for n, value in enumerate(values)]


def one_of(comparisons, metric, *pair):
    (found,) = (c for c in comparisons if (c.metric, c.model_1, c.model_2) == (metric, *pair))
    return found


# Rows


def test_rows_stand_in_the_order_of_the_table():
    some = [record(model, "01", 1) for model in reversed(ROWS)]
    assert rows_of(some) == list(ROWS)
    assert rows_of(some[:3] + some[:3]) == list(ROWS)[-3:]


def test_a_model_that_is_no_row():
    with pytest.raises(ValueError, match="pix2pix"):
        rows_of([record("pix2pix", "01", 1)])


# Mean and deviation


def test_mean_and_deviation_by_hand():
    some = of(GAN, [1, 2, 3, 6]) + of(MSE, [9])
    assert mean_and_sd(some, GAN, "ssim") == (3, pytest.approx(math.sqrt(14 / 3)))
    assert participants_of(some, GAN) == 4


@pytest.mark.filterwarnings("error")
def test_of_one_participant_there_is_a_mean_and_no_deviation():
    mean, sd = mean_and_sd(of(GAN, [0.5]), GAN, "psnr")
    assert mean == 0.5
    assert math.isnan(sd)


@pytest.mark.filterwarnings("error")
def test_what_nobody_has_is_not_a_number():
    assert all(map(math.isnan, mean_and_sd(of(GAN, [1, 2, 3]), GAN, "lpips")))
    assert all(map(math.isnan, mean_and_sd([], GAN, "ssim")))


def test_a_value_that_one_lacks_is_left_out():
    some = [*of(GAN, [1, 2], lpips=0.5), record(GAN, "77", 3)]
    assert mean_and_sd(some, GAN, "lpips") == (0.5, 0)
    assert mean_and_sd(some, GAN, "ssim")[0] == 2


@pytest.mark.filterwarnings("error")
def test_infinite_values_have_an_infinite_mean():
    mean, sd = mean_and_sd(of(GAN, [20, math.inf]), GAN, "psnr")
    assert mean == math.inf
    assert math.isnan(sd)


def test_a_participant_with_two_visits_counts_once():
    some = [record(GAN, "01", 1, "a"), record(GAN, "01", 3, "b"), record(GAN, "02", 4)]
    assert mean_and_sd(some, GAN, "ssim") == (3, pytest.approx(math.sqrt(2)))
    assert participants_of(some, GAN) == 2


# Wilcoxon


def enumerate_signs(differences):
    """Count the sign patterns of the ranks that are at least as one-sided."""
    moved = np.array([d for d in differences if d != 0])
    ranks = rankdata(np.abs(moved))
    seen = min(ranks[moved > 0].sum(), ranks[moved < 0].sum())
    sums = np.array(
        [ranks[np.array(signs)].sum() for signs in product([True, False], repeat=len(ranks))]
    )
    return seen, min(1.0, 2 * float(np.mean(sums <= seen)))


@given(
    st.lists(st.integers(-9, 9).filter(bool), min_size=2, max_size=8, unique_by=abs),
    st.integers(0, 2),
)
def test_signed_rank_is_what_counting_all_signs_gives(differences, zeros):
    statistic, p = signed_rank([*map(float, differences), *[0.0] * zeros])
    assert (statistic, p) == pytest.approx(enumerate_signs(differences))


def test_signed_rank_of_a_textbook():
    """Darwin's plants, in 1/8 inch: Fisher (1935), The Design of Experiments, chapter III.

    The differences of opposite sign have ranks 14 and 10.
    """
    darwin = [49, -67, 8, 16, 6, 23, 28, 41, 14, 29, 56, 24, 75, 60, -48]
    statistic, p = signed_rank([float(d) for d in darwin])
    assert (statistic, p) == pytest.approx(enumerate_signs(darwin))
    assert statistic == 24
    assert p == pytest.approx(0.0413, abs=1e-4)
    assert signed_rank([0.0, *map(float, darwin)]) == (statistic, p)  # the p value is still exact


@given(st.lists(st.floats(-5, 5), min_size=2, max_size=7))
def test_whichever_comes_first_the_test_is_the_same(differences):
    assert signed_rank(differences) == signed_rank([-d for d in differences])


def test_equal_rows_do_not_differ():
    assert signed_rank([0.0] * 7) == (0, 1)


def test_of_one_participant_nothing_is_said():
    assert all(map(math.isnan, signed_rank([1.0])))
    assert all(map(math.isnan, signed_rank([])))


def test_infinite_differences_rank_highest():
    assert signed_rank([1.0, 2.0, math.inf]) == signed_rank([1.0, 2.0, 3.0])


# All statistics


def test_every_two_rows_are_compared_once_in_each_metric():
    some = of(T1W, range(6)) + of(MSE, range(6)) + of(GAN, range(6))
    found = compare_rows(some)
    pairs = [(GAN, MSE), (GAN, T1W), (MSE, T1W)]
    assert [(c.metric, c.model_1, c.model_2) for c in found] == [
        (metric, *pair) for metric in METRICS for pair in pairs
    ]


def test_second_lines_are_not_tested():
    rows = of(GAN, range(6)) + of(MSE, range(1, 7))
    assert compare_rows(rows + of(f"{GAN}-overlap", range(6))) == compare_rows(rows)


def test_a_comparison_by_hand():
    differences = [1.0, 2.0, 3.0, 4.0, -5.0]  # 5 against 10: 10 of 32 patterns as one-sided, twice
    base = [10.0, 30.0, 20.0, 50.0, 40.0]
    some = of(GAN, [b + d for b, d in zip(base, differences, strict=True)])
    some += list(reversed(of(MSE, base)))  # the order of records does not matter
    found = one_of(compare_rows(some), "psnr", GAN, MSE)
    assert (found.n, found.median_difference, found.statistic) == (5, 2, 5)
    assert (found.p, found.p_holm) == (pytest.approx(0.625), pytest.approx(0.625))


def test_holm_corrects_within_a_metric():
    some = of(GAN, np.arange(6) + 1.0) + of(MSE, 2 * np.arange(6) + 3.0) + of(T1W, np.zeros(6))
    some = [replace(r, scores=replace(r.scores, psnr=1.0)) for r in some]
    found = compare_rows(some)
    assert {c.p for c in found if c.metric == "ssim"} == {2 / 64}
    assert {c.p_holm for c in found if c.metric == "ssim"} == {6 / 64}
    assert {(c.p, c.p_holm) for c in found if c.metric == "psnr"} == {(1, 1)}


def test_only_those_with_both_numbers_are_compared():
    some = of(GAN, [1, 2, 3, 4]) + of(MSE, [0, 0, 0])
    some += [record(CYCLE, "90", 5), record(CYCLE, "91", 5)]
    found = compare_rows(some)
    assert one_of(found, "mae", GAN, MSE).n == 3
    nobody = one_of(found, "mae", GAN, CYCLE)
    assert nobody.n == 0
    numbers = (nobody.median_difference, nobody.statistic, nobody.p, nobody.p_holm)
    assert all(map(math.isnan, numbers))
    assert one_of(found, "lpips", GAN, MSE).n == 0
    assert one_of(found, "mae", GAN, MSE).p_holm == one_of(found, "mae", GAN, MSE).p


def test_visits_pair_and_participants_count():
    """For 01, both rows have visit a; for 02, the differences of visits, 1 and 3, average to 2."""
    some = [record(GAN, "01", 5, "a"), record(GAN, "01", 99, "b"), record(MSE, "01", 1, "a")]
    for session, difference in (("a", 1), ("b", 3)):
        some += [record(GAN, "02", 7 + difference, session), record(MSE, "02", 7, session)]
    found = one_of(compare_rows(some), "ssim", GAN, MSE)
    assert (found.n, found.median_difference) == (2, 3)


def test_equal_infinities_differ_by_nothing():
    some = of(GAN, [math.inf, 3, 4]) + of(MSE, [math.inf, 1, 1])
    assert one_of(compare_rows(some), "psnr", GAN, MSE).median_difference == 2


def test_a_visit_scored_twice_is_refused():
    with pytest.raises(ValueError, match="twice"):
        compare_rows([*of(GAN, [1, 2]), *of(GAN, [1]), *of(MSE, [1, 2])])
