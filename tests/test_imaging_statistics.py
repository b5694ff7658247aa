import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bids_app.imaging.statistics import holm


def test_holm_by_hand():
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.9, 0.6]) == [1, 1]
    assert holm([]) == []


def test_holm_does_not_count_what_is_not_a_number():
    corrected = holm([math.nan, 0.01, 0.02])
    assert math.isnan(corrected[0])
    assert corrected[1:] == pytest.approx([0.02, 0.02])


@given(st.lists(st.floats(0, 1), max_size=9))
def test_holm_rejects_what_its_steps_reject(p_values):
    """Holm's own words: go up the ordered values while p <= alpha / (m - k)."""
    corrected, alpha = holm(p_values), 0.05
    order = sorted(range(len(p_values)), key=p_values.__getitem__)
    rejected = set()
    for rank, place in enumerate(order):
        if p_values[place] * (len(order) - rank) > alpha:
            break
        rejected.add(place)
    assert {place for place, p in enumerate(corrected) if p <= alpha} == rejected
    assert all(p <= q <= 1 for p, q in zip(p_values, corrected, strict=True))
