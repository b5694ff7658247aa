import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bids_app.detection.clusters import expected_in_control

scores = st.floats(0, 100)
controls = st.lists(st.lists(scores, max_size=8), min_size=1, max_size=8)


@given(controls, scores, scores)
def test_a_higher_score_is_never_expected_more_often(some, one, other):
    low, high = sorted((one, other))
    assert expected_in_control(low, some) >= expected_in_control(high, some)


@given(controls, scores)
def test_it_is_the_mean_of_what_each_control_has(some, score):
    each = [expected_in_control(score, [one]) for one in some]
    assert expected_in_control(score, some) == pytest.approx(np.mean(each))


@given(controls, scores)
def test_their_order_does_not_matter_nor_that_all_are_there_twice(some, score):
    expected = expected_in_control(score, some)
    assert expected_in_control(score, [sorted(one) for one in reversed(some)]) == expected
    assert expected_in_control(score, some * 2) == pytest.approx(expected)


@given(controls, scores)
def test_a_control_without_clusters_counts(some, score):
    expected = expected_in_control(score, some) * len(some) / (len(some) + 1)
    assert expected_in_control(score, [*some, []]) == pytest.approx(expected)


@given(controls)
def test_of_the_lowest_score_all_clusters_are_expected(some):
    assert expected_in_control(0, some) == pytest.approx(np.mean([len(one) for one in some]))
    assert expected_in_control(101, some) == 0


def test_values_by_hand():
    some = [[5.0, 3.0, 1.0], [4.0], [3.0, 3.0], []]
    assert expected_in_control(3.0, some) == 1.25  # an equal score counts as at least that score
    assert expected_in_control(3.1, some) == 0.5
    assert expected_in_control(9.0, some) == 0


def test_without_controls_nothing_is_said():
    assert expected_in_control(1.0, []) is None
    assert expected_in_control(1.0, [[], []]) == 0
