"""Covariates: their effects are estimated in controls and removed from everyone."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats
from sklearn.linear_model import Ridge

from bids_app.detection.covariates import (
    RIDGE,
    adjust,
    beyond_controls,
    describe_covariates,
    describe_doubtful_numbers,
    describe_single_levels,
    encode,
    fit_slopes,
    leverage_of,
    unseen_levels,
)
from bids_app.detection.normative import fit_adjusted_norm, fit_norm, load_norms, save_norms

SHAPE = (5, 6, 7)
BRAIN = np.ones(SHAPE, bool)
AGES = [20.0, 30.0, 45.0, 60.0, 70.0, 50.0, 40.0]
CELLS = {"age": AGES, "scanner": ["b", "a", "a", "b", "c", "a", "c"]}


def rows_of(cells):
    description = describe_covariates(cells)
    people = [dict(zip(cells, own, strict=True)) for own in zip(*cells.values(), strict=True)]
    return np.array([encode(person, description) for person in people]), description


def test_numbers_of_controls_have_mean_0_and_ages_an_sd_of_1():
    rows, _ = rows_of(CELLS)
    assert rows.shape == (7, 3)
    np.testing.assert_allclose(rows.mean(axis=0), 0, atol=1e-12)
    assert rows[:, 0].std(ddof=1) == pytest.approx(1)
    assert rows[3, 1] - rows[1, 1] == 1  # b against a


def test_what_is_the_same_in_all_controls_is_no_covariate():
    with pytest.raises(ValueError, match="sex is the same in all controls"):
        describe_covariates({"age": [1.0, 2.0], "sex": ["F", "F"]})
    with pytest.raises(ValueError, match="no usable control has a value of age"):
        describe_covariates({"age": []})


@pytest.mark.parametrize(
    ("cells", "sentence"),
    [
        ([45.0, 60.0, "90+", 45.0], "x is '90[+]' in some controls, and a number in others"),
        (["M", "F", "m", "F"], "x is 'M' and 'm'"),
        (["45,5", "38,1", "60,2", "45,5", "7,0"], "4 different texts in 5 controls, such as"),
        (["045Y", "038Y", "060Y", "051Y"], "4 different texts in 4 controls, such as '038Y'"),
    ],
)
def test_numbers_written_in_other_ways_are_no_levels(cells, sentence):
    """Each age would be a level of its own, and nothing would be adjusted for age."""
    with pytest.raises(ValueError, match=sentence):
        describe_covariates({"x": cells})


def test_numbers_of_a_person_may_be_levels():
    description = describe_covariates({"site": ["1", "2", "2", "1"]})
    assert encode({"site": 2.0}, description) == encode({"site": "2"}, description)


def test_a_level_or_a_text_that_no_control_has_is_refused():
    _, description = rows_of(CELLS)
    with pytest.raises(ValueError, match="no control has scanner 'd'"):
        encode({"age": 50.0, "scanner": "d"}, description)
    with pytest.raises(ValueError, match="age is 'old', but"):
        encode({"age": "old", "scanner": "a"}, description)


def test_levels_that_nobody_has_are_told_of_also_the_first():
    rows, description = rows_of(CELLS)  # an age, and scanners a, b and c
    scanners = np.array(CELLS["scanner"])
    for seen in ("a", "b", "c", "ab", "bc", "abc"):
        unseen = unseen_levels(rows[np.isin(scanners, [*seen])], description)
        assert unseen == [f"scanner {level!r}" for level in "abc" if level not in seen]


def test_a_quantity_that_is_the_same_in_all_is_named():
    rows, description = rows_of({"site": [0.0, 1.0, 0.0, 0.0], "age": [20.0, 30.0, 40.0, 50.0]})
    assert unseen_levels(rows, description) == []
    assert unseen_levels(rows[[0, 2, 3]], description) == ["another site than 0"]
    assert not fit_slopes([*np.ones((3, 2))], rows[[0, 2, 3]])[0].any()


@pytest.mark.parametrize(
    ("cells", "single"),
    [
        (["b", "a", "c", "b", "c"], ["scanner is 'a' in only one control"]),
        (["b", "a", "a", "b", "c"], ["scanner is 'c' in only one control"]),
        (["b", "a", "b", "c"], ["scanner is 'a' or 'c' in only one control each"]),
        (["b", "a", "b", "a"], []),
        ([0.0, 1.0, 0.0, 0.0], ["scanner is 1 in only one control"]),
        ([1.0, 2.0, 3.0, 3.0], []),  # a quantity
    ],
)
def test_a_level_of_one_control_is_named(cells, single):
    assert describe_single_levels({"scanner": cells}) == single


def test_about_half_of_an_effect_known_from_one_control_is_removed():
    for number in (5, 40):
        rows, _ = rows_of({"scanner": ["a"] * (number - 1) + ["b"]})
        pets = [*np.zeros((number - 1, 1)), np.ones(1)]
        assert fit_slopes(pets, rows).item() == pytest.approx(0.5, abs=0.06)


@pytest.mark.parametrize(
    ("cells", "doubtful"),
    [
        ([1.0, 2.0, 3.0, 1.0], True),
        ([1.0, 2.0, 1.0, 2.0], False),  # two levels count alike either way
        ([1.0, 2.5, 3.0, 1.0], False),
        ([31.0, 42.0, 53.0, 64.0], False),
        ([1.0, 2.0, 3.0, 4.0] * 4, True),
        (["A", "B", "C", "A"], False),
    ],
)
def test_a_few_whole_numbers_may_be_codes(cells, doubtful):
    assert bool(describe_doubtful_numbers({"site": cells})) == doubtful


def test_who_is_outside_the_controls_is_told_of():
    _, description = rows_of(CELLS)
    assert beyond_controls({"age": 20.0, "scanner": "d"}, description) == []
    (told,) = beyond_controls({"age": 81.0, "scanner": "a"}, description)
    assert told == "age 81 is outside the range of the controls, 20 to 70"


@given(st.integers(0, 1000))
def test_slopes_are_those_of_scikit_learns_ridge(seed):
    rng = np.random.default_rng(seed)
    rows, values = rng.normal(size=(9, 2)), rng.normal(size=(9, 40))
    exact = Ridge(alpha=RIDGE).fit(rows, values).coef_.T
    np.testing.assert_allclose(fit_slopes(iter(values), rows), exact, atol=1e-5)


def test_slopes_at_a_place_rest_on_whom_it_knows():
    rng = np.random.default_rng(1)
    rows, values = rng.normal(size=(9, 2)), rng.normal(size=(9, 4))
    values[2:5, 1] = np.nan
    values[:, 3] = np.nan
    found = fit_slopes(iter(values), rows)
    kept = [0, 1, 5, 6, 7, 8]
    exact = Ridge(alpha=RIDGE).fit(rows[kept], values[kept, 1]).coef_
    np.testing.assert_allclose(found[:, 1], exact, atol=1e-5)
    np.testing.assert_allclose(
        found[:, 0], Ridge(alpha=RIDGE).fit(rows, values[:, 0]).coef_, atol=1e-5
    )
    assert (found[:, 3] == 0).all()


def volumes_of(rng, ages, slope, noise=0.02):
    pattern = 0.5 + 0.2 * rng.random(SHAPE)
    for age in ages:
        yield (pattern - slope * (age - 50) + noise * rng.standard_normal(SHAPE)).astype(np.float32)


def test_age_makes_no_one_ill_once_it_is_taken_out():
    """Uptake decreases with age; an old person is compared with controls of that age."""
    rng = np.random.default_rng(3)
    ages = rng.uniform(20, 80, 30)
    rows, description = rows_of({"age": list(map(float, ages))})
    controls = list(volumes_of(np.random.default_rng(5), ages, 0.004))
    (old,) = volumes_of(np.random.default_rng(5), [78.0], 0.004)
    row = encode({"age": 78.0}, description)
    plain = fit_norm(iter(controls), BRAIN).deficit(old)
    norm = fit_adjusted_norm(lambda: iter(controls), BRAIN, rows)
    adjusted = norm.deficit(old, row)
    assert np.median(plain) > 1.2
    assert abs(np.median(adjusted)) < 0.5
    assert norm.sd.mean() < 0.5 * fit_norm(iter(controls), BRAIN).sd.mean()


def test_scores_of_new_healthy_people_have_the_t_distribution_that_regression_says():
    """30 controls, two covariates: t with 27 degrees of freedom wherever the covariates lie."""
    rng = np.random.default_rng(7)
    shape, n = (12, 14, 16), 30
    brain, rows = np.ones(shape, bool), rng.normal(size=(n, 2))
    effect = 0.5 * rng.normal(size=(2, *shape))
    controls = [np.tensordot(row, effect, 1) + rng.normal(size=shape) for row in rows]
    norm = fit_adjusted_norm(lambda: iter(controls), brain, rows)
    for row in ([0.0, 0.0], [2.0, -1.0]):
        scores = norm.deficit(np.tensordot(row, effect, 1) + rng.normal(size=shape), row)
        share = (scores > stats.t.isf(0.05, n - 3)).mean()
        assert share == pytest.approx(0.05, abs=0.015)
    assert leverage_of([2.0, -1.0], rows) > leverage_of([0.0, 0.0], rows) > 0


def test_where_few_controls_are_known_their_deviation_has_as_few_degrees_of_freedom():
    rng = np.random.default_rng(8)
    shape, n, known = (20, 20, 20), 20, 10
    brain, rows = np.ones(shape, bool), rng.normal(size=(n, 3))
    controls = rng.normal(size=(n, *shape)).astype(np.float32)
    controls[known:, :10] = np.nan
    norm = fit_adjusted_norm(lambda: iter(controls), brain, rows)
    variances = norm.sd.astype(np.float64) ** 2  # noise of SD 1, at voxels with the same coverage
    assert variances[10:].mean() == pytest.approx(1, abs=0.05)
    assert variances[:10].mean() == pytest.approx(1, abs=0.2)  # 0.73 if all 20 were counted


def test_a_norm_with_covariates_is_read_as_it_was_written(tmp_path):
    rng = np.random.default_rng(2)
    rows = rng.normal(size=(8, 2))
    controls = rng.random((8, *SHAPE)).astype(np.float32)
    norm = fit_adjusted_norm(lambda: iter(controls), BRAIN, rows)
    save_norms(tmp_path / "norm.safetensors", [norm])
    (read,) = load_norms(tmp_path / "norm.safetensors")
    person, row = rng.random(SHAPE).astype(np.float32), [0.5, 1.0]
    np.testing.assert_array_equal(read.deficit(person, row), norm.deficit(person, row))


def test_too_few_controls_for_so_many_covariates_are_refused():
    controls = np.random.default_rng(2).random((4, *SHAPE)).astype(np.float32)
    with pytest.raises(ValueError, match=r"4 controls are too few to adjust for 2 number\(s\)"):
        fit_adjusted_norm(lambda: iter(controls), BRAIN, np.ones((4, 2)))


def test_nothing_is_taken_out_of_the_mean_person():
    slopes = np.random.default_rng(0).random((2, *SHAPE)).astype(np.float32)
    volume = np.random.default_rng(1).random(SHAPE).astype(np.float32)
    np.testing.assert_array_equal(adjust(volume, [0.0, 0.0], slopes), volume)
