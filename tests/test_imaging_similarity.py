import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torchmetrics.functional import mean_absolute_error as reference

from bids_app.imaging.similarity import (
    correlation,
    mean_absolute_error,
    measure,
    pseudo_normal,
    psnr,
    ssim,
)


def draw(rng, shape=(9, 8, 7)):
    return rng.random(shape).astype(np.float32)


@given(factor=st.floats(0, 10), seed=st.integers(0, 5))
def test_the_absolute_error_is_a_distance(factor, seed):
    one, other, third = draw(np.random.default_rng(seed), (3, 4, 5, 6))
    between = mean_absolute_error(one, other)
    assert mean_absolute_error(one, one) == 0
    assert mean_absolute_error(other, one) == between
    assert between <= mean_absolute_error(one, third) + mean_absolute_error(third, other)
    scaled = mean_absolute_error(np.float32(factor) * one, np.float32(factor) * other)
    assert scaled == pytest.approx(factor * between, rel=1e-5)


def test_the_absolute_error_is_that_of_torchmetrics(rng):
    one, other = draw(rng), draw(rng)
    tensors = [torch.from_numpy(volume).double() for volume in (one, other)]
    assert mean_absolute_error(one, other) == pytest.approx(float(reference(*tensors)), rel=1e-6)


def test_the_absolute_error_sees_only_the_voxels_that_count(rng):
    one = draw(rng)
    where = np.zeros(one.shape, bool)
    where[2:4, 1:5] = True
    other = np.where(where, one - np.float32(0.125), 3).astype(np.float32)
    assert mean_absolute_error(one, other, where) == pytest.approx(0.125, abs=1e-7)


def test_the_absolute_error_of_a_large_volume_does_not_drift():
    """Summed in float32, 0.1 over 8 million voxels would have an error in the fourth digit."""
    one = np.full((200, 200, 200), 0.1, np.float32)
    assert mean_absolute_error(one, np.zeros_like(one)) == pytest.approx(0.1, rel=1e-6)


def test_the_correlation_is_of_all_voxels_unless_some_are_chosen(rng):
    one, other = draw(rng), draw(rng)
    assert correlation(one, other) == correlation(one, other, np.ones(one.shape, bool)) != 0
    where = one > 0.5
    assert correlation(one, other, where) == correlation(one[where], other[where])
    for value in np.linspace(0.1, 0.9, 9):  # whose mean may differ in the last digit
        assert correlation(one, np.full(one.shape, value)) == 0


def test_measures_are_those_of_each_measure_alone(rng):
    one, other = draw(rng, (14, 13, 12)), draw(rng, (14, 13, 12))
    brain = draw(rng, one.shape) > 0.6
    found = measure(one, other, brain)
    assert found.ssim == ssim(one, other)
    assert found.ssim_brain == ssim(one, other, brain)
    assert (found.psnr, found.psnr_brain) == (psnr(one, other), psnr(one, other, brain))
    assert found.ssim != found.ssim_brain


def test_a_pseudo_normal_pet_shows_the_lesion_alone_in_any_unit(rng):
    synthetic = rng.uniform(0.5, 1, (12, 12, 12)).astype(np.float32)
    brain = np.zeros(synthetic.shape, bool)
    brain[1:-1, 1:-1, 1:-1] = True
    synthetic[~brain] = 0
    lesion = np.zeros_like(brain)
    lesion[3:6, 3:6, 3:6] = True
    real = 7000 * synthetic * np.where(lesion, 0.7, 1)
    scaled, difference, factor = pseudo_normal(real, synthetic, brain)
    assert factor == pytest.approx(7000)
    assert scaled == pytest.approx(7000 * synthetic)
    assert np.abs(difference[~lesion]).max() < 0.01
    expected = -30 * synthetic[lesion] / synthetic[brain].mean()
    assert difference[lesion] == pytest.approx(expected, rel=1e-4)


def test_what_a_real_pet_does_not_cover_has_no_difference(rng):
    synthetic = rng.uniform(0.5, 1, (6, 6, 6)).astype(np.float32)
    covered = np.arange(6)[:, None, None] + np.zeros((6, 6, 6)) > 1
    _, difference, factor = pseudo_normal(3 * synthetic * covered, synthetic, covered)
    assert factor == pytest.approx(3)
    assert np.abs(difference).max() < 1e-3


def test_where_nothing_was_predicted_there_is_no_difference(rng):
    real = rng.uniform(0.5, 1, (6, 6, 6)).astype(np.float32)
    synthetic = np.where(np.arange(6) > 1, real / 3, 0)  # the grid ends above two planes
    _, difference, factor = pseudo_normal(real, synthetic, np.ones(real.shape, bool))
    assert factor == pytest.approx(3)
    assert np.abs(difference).max() < 1e-3


@pytest.mark.parametrize("which", ["real", "synthetic", "brain"])
def test_a_pet_without_uptake_has_no_pseudo_normal(which):
    images = {"real": np.ones((3, 3, 3)), "synthetic": np.ones((3, 3, 3))}
    images["brain"] = np.ones((3, 3, 3), bool)
    images[which] = 0 * images[which]
    with pytest.raises(ValueError, match="no uptake"):
        pseudo_normal(images["real"], images["synthetic"], images["brain"] > 0)
