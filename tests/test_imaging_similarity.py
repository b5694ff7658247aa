import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torchmetrics.functional import mean_absolute_error as reference

from bids_app.imaging.similarity import mean_absolute_error, measure, psnr, ssim


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
    """Summed in float32, 0.1 over 8 million voxels would be off in the fourth digit."""
    one = np.full((200, 200, 200), 0.1, np.float32)
    assert mean_absolute_error(one, np.zeros_like(one)) == pytest.approx(0.1, rel=1e-6)


def test_measures_are_those_of_each_measure_alone(rng):
    one, other = draw(rng, (14, 13, 12)), draw(rng, (14, 13, 12))
    brain = draw(rng, one.shape) > 0.6
    found = measure(one, other, brain)
    assert found.ssim == ssim(one, other)
    assert found.ssim_brain == ssim(one, other, brain)
    assert (found.psnr, found.psnr_brain) == (psnr(one, other), psnr(one, other, brain))
    assert found.ssim != found.ssim_brain
