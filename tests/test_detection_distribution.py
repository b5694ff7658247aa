"""Comparison of synthetic with held-out real PET: measures and verdict."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bids_app.detection.distribution import (
    PATCHES,
    REAL,
    SYNTHETIC,
    WHOLE,
    CheckedPet,
    compare_kinds,
    draw_centres,
    measure_regions,
)

ROW = CheckedPet("sub-1", None, REAL, 1, WHOLE, 0.25, 0.5, 0.75)
scores = st.lists(st.floats(-1, 1, allow_subnormal=False), min_size=1, max_size=8)


def rows_of(kind, values, region=WHOLE):
    return [
        replace(ROW, participant_id=f"sub-{kind}{n}", kind=kind, mean_score=value, region=region)
        for n, value in enumerate(values)
    ]


@given(real=scores, made=scores)
def test_the_area_is_the_share_of_pairs_in_which_synthetic_scores_higher(real, made):
    (found,) = compare_kinds(rows_of(REAL, real) + rows_of(SYNTHETIC, made))
    pairs = [(m > r) + 0.5 * (m == r) for m in made for r in real]
    assert found.score_area == pytest.approx(np.mean(pairs))
    assert (found.real, found.synthetic) == (len(real), len(made))
    assert found.error_area == 0.5  # errors are all equal
    if found.score_area < 0.2:
        assert found.verdict == "too typical"
    elif found.score_area > 0.8:
        assert found.verdict == "too unusual"
    else:
        assert found.verdict == "alike"


def test_a_participant_whom_several_folds_have_seen_counts_once():
    seen = [replace(ROW, kind=SYNTHETIC, fold=fold, mean_score=fold / 4) for fold in (1, 2, 3)]
    (found,) = compare_kinds([*rows_of(REAL, [0.25, 0.75]), *seen])
    assert (found.synthetic, found.score_synthetic, found.score_area) == (1, 0.5, 0.5)


def test_regions_are_compared_each_and_one_kind_alone_is_not():
    rows = rows_of(REAL, [0, 1]) + rows_of(SYNTHETIC, [2]) + rows_of(REAL, [1], "Left")
    rows += rows_of(REAL, [1, 2], "Right") + rows_of(SYNTHETIC, [0], "Right")
    assert [(one.region, one.score_area) for one in compare_kinds(rows)] == [
        (WHOLE, 1.0),
        ("Right", 0.0),
    ]


def test_where_no_patch_was_drawn_errors_are_not_known():
    rows = rows_of(REAL, [0, 1]) + rows_of(SYNTHETIC, [2])
    (found,) = compare_kinds([replace(row, reconstruction_error=None) for row in rows])
    assert np.isnan([found.error_real, found.error_synthetic, found.error_area]).all()
    assert found.score_area == 1


def test_a_region_is_measured_by_its_own_voxels_and_patches(rng):
    brain, regions = np.ones((6, 6, 2), bool), np.zeros((6, 6, 2), int)
    brain[0] = False
    regions[:3], regions[3:5], regions[5, 5, 0] = 1, 2, 3
    volume = rng.normal(size=brain.shape)
    volume[1, 0, 0] = np.nan
    centres = np.argwhere(brain & (regions == 1))
    errors = rng.random(len(centres))
    names = {1: "first", 2: "second", 3: "tiny"}
    found = measure_regions(volume, errors, centres, brain, regions=regions, names=names)
    assert [name for name, *_ in found] == [WHOLE, "first", "second"]
    first, second = volume[1:3], volume[3:5]
    assert found[1][1:] == pytest.approx(
        (errors.mean(), np.nanmean(first), np.mean(first[np.isfinite(first)] > 0))
    )
    assert found[2][1] is None
    assert found[2][2:] == pytest.approx((second.mean(), (second > 0).mean()))
    known = volume[brain & np.isfinite(volume)]
    assert found[0][1:] == pytest.approx((errors.mean(), known.mean(), (known > 0).mean()))


def test_centres_of_patches_are_brain_and_always_the_same():
    small, large = np.zeros((5, 5, 5), bool), np.ones((30, 30, 30), bool)
    small[1:3] = True
    large[:5] = False
    np.testing.assert_array_equal(draw_centres(small), np.argwhere(small))
    drawn = draw_centres(large)
    assert len(drawn) == len(np.unique(drawn, axis=0)) == PATCHES
    assert large[tuple(drawn.T)].all()
    np.testing.assert_array_equal(drawn, draw_centres(large))
