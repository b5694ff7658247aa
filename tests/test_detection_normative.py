import weakref

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from bids_app.detection.normative import (
    MEASURES,
    fit_norm,
    measure_asymmetry,
    measure_difference,
    score_against,
    smooth_within,
)
from bids_app.imaging.intensity import smooth
from bids_app.imaging.volume import mirror

SHAPE = (9, 8, 7)
seeds = st.integers(0, 10_000)
ZOOMS = (2.0, 2.5, 3.0)


def draw(seed, count=None):
    rng = np.random.default_rng(seed)
    return rng.random(SHAPE if count is None else (count, *SHAPE)).astype(np.float32)


def ball(radius=0.85):
    half = np.array(SHAPE).reshape(3, 1, 1, 1) / 2
    return (((np.indices(SHAPE) + 0.5 - half) / (radius * half)) ** 2).sum(0) < 1


BRAIN = ball()


# Norm


@given(seeds, st.integers(2, 9))
def test_mean_and_sd_are_those_of_numpy(seed, count):
    controls = draw(seed, count)
    norm = fit_norm(iter(controls), BRAIN, least_sd=0)
    assert norm.n == count
    assert norm.mean.dtype == norm.sd.dtype == np.float32
    exact = controls.astype(float)
    assert norm.mean[BRAIN] == pytest.approx(exact.mean(0)[BRAIN], rel=1e-6)
    assert norm.sd[BRAIN] == pytest.approx(exact.std(0, ddof=1)[BRAIN], rel=1e-5, abs=1.1e-6)
    assert not norm.mean[~BRAIN].any()
    assert not norm.sd[~BRAIN].any()


def test_a_large_offset_does_not_spoil_the_sd():
    controls = draw(1, 6).astype(float)
    far = fit_norm(controls + 1e6, BRAIN)
    assert far.sd[BRAIN] == pytest.approx(fit_norm(controls, BRAIN).sd[BRAIN], rel=1e-4)


def test_volumes_are_not_gathered():
    """While the next volume is created, at most the previous one is still in memory."""
    held = []

    def volumes():
        for seed in range(6):
            assert sum(one() is not None for one in held) <= 1
            volume = draw(seed)
            held.append(weakref.ref(volume))
            yield volume

    assert fit_norm(volumes(), BRAIN).n == 6


# Scores


@given(seeds, st.integers(2, 20))
def test_t_is_that_of_a_sample_of_one_against_the_controls(seed, count):
    """Crawford and Howell's is the two-sample t test with one person on one side."""
    controls, person = draw(seed, count), draw(seed + 1)
    norm = fit_norm(controls, BRAIN, least_sd=0)
    exact = controls.astype(float)
    t, p = stats.ttest_ind_from_stats(
        person.astype(float), 0.0, 1, exact.mean(0), exact.std(0, ddof=1), count, equal_var=True
    )
    found = norm.excess(person)
    assert found.dtype == np.float32
    assert found[BRAIN] == pytest.approx(t[BRAIN], rel=1e-3, abs=1e-4)
    assert 2 * stats.t.sf(abs(found[BRAIN]), count - 1) == pytest.approx(p[BRAIN], abs=1e-3)


@pytest.mark.parametrize("count", [3, 6, 20])
def test_as_many_healthy_people_are_called_ill_as_t_says(count):
    """20 000 voxels as 20 000 studies: 5 % of new controls exceed the 95th percentile of t."""
    rng = np.random.default_rng(count)
    shape = (20, 25, 40)
    brain = np.ones(shape, bool)
    controls = (rng.normal(3, 2, shape).astype(np.float32) for _ in range(count))
    score = fit_norm(controls, brain, least_sd=0).deficit(rng.normal(3, 2, shape))
    for share in (0.05, 0.01):
        beyond = (score > stats.t.isf(share, count - 1)).mean()
        assert abs(beyond - share) < 4 * np.sqrt(share * (1 - share) / score.size)
    too_many = (score > stats.norm.isf(0.01)).mean()
    assert too_many > 0.01 + 4 * np.sqrt(0.01 / score.size)  # as a z score would
    assert stats.kstest(score.ravel(), stats.t(count - 1).cdf).pvalue > 0.001


def test_scores_by_hand():
    """Controls 1, 2, 3 have mean 2 and SD 1; a person at 0 is 2 / sqrt(4 / 3) below."""
    ones, brain = np.ones((2, 2, 2), np.float32), np.ones((2, 2, 2), bool)
    brain[0, 0, 0] = False
    norm = fit_norm([ones, 2 * ones, 3 * ones], brain)
    assert norm.deficit(0 * ones)[brain] == pytest.approx(np.sqrt(3))
    assert norm.excess(0 * ones)[brain] == pytest.approx(-np.sqrt(3))
    assert norm.deficit(2 * ones).tolist() == (0 * ones).tolist()
    assert norm.deficit(0 * ones)[0, 0, 0] == 0


@given(seeds, st.floats(0.5, 50), st.floats(-5, 5))
def test_the_unit_does_not_matter(seed, factor, shift):
    controls, person = draw(seed, 5), draw(seed + 1)
    expected = fit_norm(controls, BRAIN).deficit(person)
    norm = fit_norm((factor * control.astype(float) + shift for control in controls), BRAIN)
    found = norm.deficit(factor * person.astype(float) + shift)
    assert found == pytest.approx(expected, rel=1e-3, abs=1e-3)


def test_less_than_controls_is_positive():
    norm = fit_norm(draw(2, 6), BRAIN)
    lower, person = draw(3), draw(3)
    lower[4, 4, 3] -= 0.5
    change = norm.deficit(lower) - norm.deficit(person)
    assert change[4, 4, 3] > 0
    assert np.count_nonzero(change) == 1
    assert np.array_equal(norm.deficit(person), -norm.excess(person))


def test_where_controls_hardly_vary_nothing_explodes():
    controls = draw(4, 6)
    controls[:, 4, 4, 3] = 0.7
    norm = fit_norm(controls, BRAIN)
    median = np.median(controls.astype(float).std(0, ddof=1)[BRAIN])
    assert norm.sd[BRAIN].min() == norm.sd[4, 4, 3] == pytest.approx(0.1 * median, rel=1e-3)
    mean = controls.astype(float).mean(0).astype(np.float32)
    assert norm.deficit(mean)[4, 4, 3] == 0
    person = mean.copy()
    person[4, 4, 3] -= 0.01
    assert 0 < norm.deficit(person)[4, 4, 3] < 1
    assert np.isfinite(norm.deficit(np.zeros(SHAPE, np.float32))).all()


def test_copies_of_one_image_judge_nobody():
    one = draw(5)
    norm = fit_norm([one] * 4, BRAIN)
    assert not norm.deficit(one).any()
    assert not norm.deficit(one + 1).any()  # voxels without variance have no score


@pytest.mark.parametrize(
    ("volumes", "brain", "sentence"),
    [
        ([], BRAIN, "0 control"),
        ([draw(1)], BRAIN, "1 control"),
        ([draw(1), draw(2)[1:]], BRAIN, "differ"),
        ([draw(1)] * 2, ~(BRAIN | True), "empty"),
    ],
)
def test_what_makes_no_norm_is_refused(volumes, brain, sentence):
    with pytest.raises(ValueError, match=sentence):
        fit_norm(volumes, brain)


def test_a_person_on_another_grid_is_refused():
    with pytest.raises(ValueError, match="differ"):
        fit_norm(draw(1, 3), BRAIN).deficit(draw(1)[1:])


# Smoothing within the brain


@given(st.floats(0, 12), st.floats(-3, 3))
def test_an_even_brain_stays_even_to_its_edge(fwhm, value):
    smoothed = smooth_within(np.full(SHAPE, value, np.float32), BRAIN, fwhm=fwhm, zooms=ZOOMS)
    assert smoothed[BRAIN] == pytest.approx(value, rel=1e-5, abs=1e-6)
    assert not smoothed[~BRAIN].any()
    plain = smooth(np.where(BRAIN, 1, 0).astype(np.float32), 8.0, ZOOMS)
    assert plain[BRAIN].min() < 0.7  # the effect that normalisation avoids


@given(seeds, st.floats(0, 12))
def test_what_is_outside_the_brain_does_not_count(seed, fwhm):
    volume, noisy = draw(seed), draw(seed)
    noisy[~BRAIN] = np.nan
    one, other = (smooth_within(v, BRAIN, fwhm=fwhm, zooms=ZOOMS) for v in (volume, noisy))
    assert one.dtype == np.float32
    assert np.array_equal(one, other)


@given(seeds, st.floats(2, 12))
def test_smoothing_within_is_a_weighted_mean_of_the_brain(seed, fwhm):
    volume = draw(seed)
    smoothed = smooth_within(volume, BRAIN, fwhm=fwhm, zooms=ZOOMS)[BRAIN]
    assert volume[BRAIN].min() - 1e-5 <= smoothed.min() <= smoothed.max()
    assert smoothed.max() <= volume[BRAIN].max() + 1e-5
    assert smoothed.std() < volume[BRAIN].std()


def test_where_all_is_brain_it_is_plain_smoothing():
    volume, brain = draw(6), np.ones(SHAPE, bool)
    found = smooth_within(volume, brain, fwhm=6.0, zooms=ZOOMS)
    assert found == pytest.approx(smooth(volume, 6.0, ZOOMS), abs=1e-6)
    assert np.array_equal(smooth_within(volume, BRAIN, fwhm=0, zooms=ZOOMS)[BRAIN], volume[BRAIN])


# Pseudo-normal


def test_a_real_pet_below_its_pseudo_normal_one_stands_out():
    rng = np.random.default_rng(8)
    differences = []
    for _ in range(6):
        synthetic = rng.random(SHAPE).astype(np.float32)
        real = synthetic - 0.1 + 0.02 * rng.standard_normal(SHAPE).astype(np.float32)
        differences.append(synthetic - real)
    norm = fit_norm(differences, BRAIN)
    synthetic = rng.random(SHAPE).astype(np.float32)
    real = synthetic - np.float32(0.1)
    real[4, 4, 3] -= 0.3
    score = norm.excess(synthetic - real)
    assert np.unravel_index(score.argmax(), SHAPE) == (4, 4, 3)
    assert score[4, 4, 3] > 5
    assert abs(np.median(score[BRAIN])) < 1


def test_pseudo_normal_differences_by_hand():
    synthetic, real = np.array([[[0.5, 0.25]]]), np.array([[[0.25, 1.0]]])
    whole = np.ones((1, 1, 2), bool)
    found = measure_difference(real, synthetic, whole, fwhm=0.0, affine=np.eye(4))
    assert found.dtype == np.float32
    assert found.tolist() == [[[0.25, -0.75]]]


# Left against right

SYMMETRIC = np.diag([2.0, 2.0, 2.0, 1.0])
SYMMETRIC[:3, 3] = -9, 0, 0  # ten voxels: x = 0 lies between two of them


@pytest.mark.parametrize("shift", [0.0, 1.0, 0.4])
def test_a_mirror_twice_gives_the_volume_back_where_both_sides_are_known(shift):
    affine = SYMMETRIC.copy()
    affine[0, 3] += shift
    x = affine[0, 0] * np.arange(10) + affine[0, 3]
    volume = np.broadcast_to(x[:, np.newaxis, np.newaxis], (10, 4, 3)).astype(np.float32)
    mirrored = mirror(volume, affine)
    known = ~np.isnan(mirrored[:, 0, 0])
    np.testing.assert_allclose(mirrored[known, 0, 0], -x[known], atol=1e-5)
    assert known.sum() >= 10 - np.ceil(shift)
    assert (np.abs(x[~known]) > 7.9).all()


def test_what_is_alike_on_both_sides_has_no_asymmetry_and_a_one_sided_loss_is_found_there():
    rng = np.random.default_rng(4)
    brain = np.zeros((10, 12, 8), bool)
    brain[1:9, 1:11, 1:7] = True

    def scan(loss=0.0):
        half = 1 + 0.1 * rng.random((5, 12, 8))
        pet = np.concatenate([half, half[::-1]]) + 0.01 * rng.random(brain.shape)
        pet[2:4, 4:7, 3:5] *= 1 - loss
        return np.where(brain, pet, 0).astype(np.float32)

    def measured(pet):
        return measure_asymmetry(pet, brain, fwhm=2.0, affine=SYMMETRIC)

    halves = np.concatenate([np.ones((5, 12, 8)), np.ones((5, 12, 8))]).astype(np.float32)
    assert measured(np.where(brain, 3 * halves, 0)) == pytest.approx(
        np.zeros(brain.shape), abs=1e-6
    )
    norm = fit_norm([measured(scan()) for _ in range(8)], brain)
    score = score_against([norm], [measured(scan(loss=0.3))], "asymmetry", "hypo")
    assert np.unravel_index(np.nanargmax(score), score.shape)[0] in (2, 3)
    assert score[2:4, 4:7, 3:5].min() > 5
    np.testing.assert_allclose(score, -mirror(score, SYMMETRIC), atol=0.5 * np.nanmax(score))


def test_asymmetry_is_not_known_beside_a_hole_on_either_side():
    brain = np.ones((10, 12, 8), bool)
    hole = np.zeros_like(brain)
    hole[:2] = True
    found = measure_asymmetry(
        np.ones(brain.shape, np.float32), brain, fwhm=0.0, affine=SYMMETRIC, hole=hole
    )
    assert np.isnan(found[:2]).all()
    assert np.isnan(found[-2:]).all()
    assert (found[2:-2] == 0).all()


def test_combined_is_half_the_z_score_opposite_a_hole_whatever_the_controls_asymmetry():
    rng = np.random.default_rng(9)
    brain, hole = np.ones((10, 12, 8), bool), np.zeros((10, 12, 8), bool)
    hole[:3] = True
    lopsided = np.where(np.arange(10) < 5, 1.08, 1.0)[:, np.newaxis, np.newaxis]

    def measured(lost=None):
        pet = (lopsided + 0.01 * rng.standard_normal(brain.shape)).astype(np.float32)
        how = {"fwhm": 0.0, "affine": SYMMETRIC, "hole": lost}
        return [measure(pet, brain, **how) for measure in MEASURES["combined"]]

    controls = [measured(lost) for lost in [None] * 7 + [hole]]
    norms = [fit_norm(list(volumes), brain) for volumes in zip(*controls, strict=True)]
    person = measured(hole)
    score = score_against(norms, person, "combined", "hypo")
    alone = score_against(norms[:1], person[:1], "zscore", "hypo")
    assert np.isnan(score[:3]).all()
    np.testing.assert_allclose(score[-3:], alone[-3:] / 2, atol=1e-5)
    assert not np.isnan(score[3:]).any()
    assert (norms[1].counts[-3:] == 7).all()


@pytest.mark.parametrize("detector", ["asymmetry", "combined"])
def test_opposite_low_uptake_healthy_tissue_scores_high_for_hyper_but_not_in_the_z_score(detector):
    """The documents say so: what compares sides cannot tell which of them has changed."""
    affine = np.diag([8.0, 8.0, 8.0, 1.0])
    affine[0, 3] = -28.0  # 8 voxels, symmetric about 0
    rng = np.random.default_rng(0)
    people = [1 + 0.02 * rng.standard_normal((8, 6, 6)) for _ in range(9)]
    people[-1][1, 3, 3] = 0.7
    brain = np.ones((8, 6, 6), bool)

    def score(name):
        measured = [
            [measure(pet, brain, fwhm=0, affine=affine) for pet in people]
            for measure in MEASURES[name]
        ]
        norms = [fit_norm(volumes[:-1], brain) for volumes in measured]
        values = [volumes[-1] for volumes in measured]
        return score_against(norms, values, name, "hyper")

    assert np.unravel_index(score(detector).argmax(), brain.shape) == (6, 3, 3)
    assert score("zscore")[6, 3, 3] < 3
