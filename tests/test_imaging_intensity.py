import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torchmetrics.functional.image import structural_similarity_index_measure

from bids_app.imaging.intensity import (
    average_frames,
    match_quantiles,
    raise_above_zero,
    scale_to_unit,
    smooth,
    subtract_air,
)
from bids_app.imaging.similarity import (
    dice,
    measure,
    normalized_mutual_information,
    psnr,
    ssim,
    ssim_map,
)
from bids_app.imaging.volume import average_cubes, cube_sides, grid_of_box, zooms_of

EVERYWHERE = np.ones((9, 9, 9), bool)


def draw(rng, shape=(9, 9, 9)):
    return rng.random(shape).astype(np.float32)


# Grids


@pytest.mark.parametrize(
    ("bottom", "resolution", "shape"),
    [
        (-50, 1.0, (157, 189, 136)),
        (-70, 1.0, (157, 189, 156)),
        (-50, 4.0, (40, 48, 34)),
        (-50, 1.5, (105, 126, 91)),
        (-50, 0.5, (313, 377, 271)),
    ],
)
def test_grid_of_the_contract(bottom, resolution, shape):
    grid = grid_of_box((-78, -112, bottom, 78, 76, 85), resolution)
    assert grid.shape == shape
    assert grid.affine[:3, 3].tolist() == [-78, -112, bottom]
    assert grid.affine[:3, :3].tolist() == (resolution * np.eye(3)).tolist()


@given(
    low=st.tuples(*[st.floats(-200, 0)] * 3),
    sides=st.tuples(*[st.floats(1, 250)] * 3),
    resolution=st.floats(0.3, 8),
)
def test_a_grid_begins_at_the_low_corner_and_fills_the_box(low, sides, resolution):
    high = np.add(low, sides)
    grid = grid_of_box((*low, *high), resolution)
    last = (grid.affine @ [*np.subtract(grid.shape, 1), 1])[:3]
    assert (grid.affine[:3, 3] == low).all()
    assert (last <= high + 1e-5 * resolution).all()
    assert (last + resolution > high - 1e-5 * resolution).all()


@given(steps=st.tuples(*[st.integers(1, 300)] * 3), resolution=st.floats(0.3, 8))
def test_a_box_that_voxels_divide_ends_with_one(steps, resolution):
    high = tuple(float(step * resolution) for step in steps)
    assert grid_of_box((0, 0, 0, *high), resolution).shape == tuple(step + 1 for step in steps)


def test_zooms_of_an_oblique_affine_are_its_voxel_sizes(head_affine):
    assert zooms_of(head_affine) == pytest.approx((4, 5, 6))


# Intensities


def test_scaled_intensities_lie_between_0_and_1_and_are_0_outside(rng):
    volume, brain = 900 * draw(rng) - 50, draw(rng) > 0.4
    scaled = scale_to_unit(volume, brain)
    assert scaled.dtype == np.float32
    assert scaled.min() == 0
    assert scaled.max() == 1
    assert (scaled[~brain] == 0).all()


def test_the_percentile_of_the_brain_alone_becomes_1():
    volume = np.arange(1, 103, dtype=np.float32).reshape(1, 1, 102)
    brain = volume <= 101  # its 90th percentile is 91; the voxel of 102 is outside
    scaled = scale_to_unit(volume, brain, percentile=90.0)
    assert scaled[0, 0, :91] == pytest.approx(volume[0, 0, :91] / 91)
    assert (scaled[0, 0, 90:101] == 1).all()
    assert scaled[0, 0, 101] == 0


@given(factor=st.floats(0.01, 1000))
def test_scaling_forgets_the_unit(factor):
    volume = draw(np.random.default_rng(3), (4, 5, 6))
    brain = volume > 0.2
    again = scale_to_unit((factor * volume).astype(np.float32), brain)
    assert again == pytest.approx(scale_to_unit(volume, brain), abs=1e-5)


def test_an_empty_brain_cannot_be_scaled():
    with pytest.raises(ValueError, match="empty"):
        scale_to_unit(np.ones((2, 2, 2), np.float32), np.zeros((2, 2, 2), bool))


@pytest.mark.parametrize("value", [0, -3])
def test_a_brain_without_signal_cannot_be_scaled(value):
    volume = np.full((2, 2, 2), value, np.float32)
    with pytest.raises(ValueError, match="above zero"):
        scale_to_unit(volume, volume == value)


# Smoothing


def test_smoothing_by_nothing_changes_nothing(rng):
    volume = draw(rng)
    assert np.array_equal(smooth(volume, 0, (1, 2, 3)), volume)


def test_smoothing_keeps_the_sum_of_what_lies_inside(rng):
    volume = np.zeros((30, 31, 32), np.float32)
    volume[13:17, 13:17, 13:17] = draw(rng, (4, 4, 4))
    smoothed = smooth(volume, 4, (1, 1, 1))
    assert smoothed.dtype == np.float32
    assert smoothed.sum() == pytest.approx(volume.sum(), rel=1e-4)
    assert smoothed.max() < volume.max()


def test_smoothing_keeps_a_constant_up_to_the_faces():
    volume = np.full((5, 6, 7), 0.3, np.float32)
    assert smooth(volume, 6, (1, 2, 1)) == pytest.approx(volume)


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_an_impulse_becomes_as_wide_as_the_fwhm_says_in_mm(axis):
    zooms = (1.0, 2.0, 1.5)
    volume = np.zeros((41, 41, 41), np.float32)
    volume[20, 20, 20] = 1
    others = tuple({0, 1, 2} - {axis})
    profile = smooth(volume, 8.0, zooms).sum(axis=others)
    there = zooms[axis] * (np.arange(41) - 20)
    half = np.interp(profile.max() / 2, profile[20:][::-1], there[20:][::-1])
    assert 2 * half == pytest.approx(8.0, rel=0.02)


# Frames


def test_frames_are_weighted_by_how_long_they_lasted():
    frames = np.array([1, 2, 10], np.float32) * np.ones((2, 3, 4, 1), np.float32)
    average = average_frames(frames, np.array([60.0, 120.0, 20.0]))
    assert average.dtype == np.float32
    assert average == pytest.approx(np.full((2, 3, 4), 2.5))  # (60 + 240 + 200) / 200


def test_frames_that_are_not_chosen_do_not_count(rng):
    frames, durations = draw(rng, (2, 3, 2, 4)), np.array([5.0, 0.0, 2.0, 8.0])
    expected = average_frames(frames[..., [3, 0]], durations[[3, 0]])
    assert np.array_equal(average_frames(frames, durations, [3, 0]), expected)
    with pytest.raises(ValueError, match="a frame has a duration that is not above 0"):
        average_frames(frames, durations, [0, 1])


@given(factor=st.floats(0.1, 100))
def test_only_the_ratio_of_durations_counts(factor):
    frames, durations = draw(np.random.default_rng(1), (2, 3, 2, 4)), np.array([5.0, 1, 2, 8])
    expected = average_frames(frames, durations)
    assert average_frames(frames, factor * durations) == pytest.approx(expected)


@pytest.mark.parametrize("durations", [[1.0, 2.0], [1.0, 0.0, 2.0], [1.0, -1.0, 3.0]])
def test_frames_without_a_positive_duration_each_are_refused(durations):
    with pytest.raises(ValueError, match=r"frame"):
        average_frames(np.ones((2, 2, 2, 3), np.float32), np.array(durations))


# Similarity


def test_psnr_by_hand(rng):
    one = draw(rng)
    other = one + np.float32(0.05)
    assert psnr(one, other) == pytest.approx(-20 * np.log10(0.05), abs=1e-3)
    assert psnr(one, one) == float("inf")


def test_psnr_sees_only_the_voxels_that_count():
    one, other = np.zeros((4, 4, 4), np.float32), np.zeros((4, 4, 4), np.float32)
    other[0], other[1] = 0.9, 0.01
    where = np.zeros((4, 4, 4), bool)
    where[1] = True
    assert psnr(one, other, where) == pytest.approx(40, abs=1e-3)


def test_dice_by_hand():
    one, other = np.zeros(10, bool), np.zeros(10, bool)
    one[:6], other[4:8] = True, True
    assert dice(one, other) == pytest.approx(0.4)  # 2 × 2 / (6 + 4)
    assert dice(one, one) == 1
    assert dice(one, ~one) == 0
    assert dice(one & ~one, one & ~one) == 1


def test_a_volume_tells_most_about_itself(rng):
    one = draw(rng)
    near = one + 0.1 * draw(rng)
    itself, similar, stranger = (
        normalized_mutual_information(one, other, EVERYWHERE) for other in (one, near, draw(rng))
    )
    assert itself == pytest.approx(2)
    assert itself > similar > stranger


def test_similarity_does_not_care_what_tissues_are_called(rng):
    one, other = rng.integers(0, 4, (2, 9, 9, 9)).astype(np.float32)
    other = np.where(rng.random(one.shape) < 0.6, one, other)
    expected = normalized_mutual_information(one, other, EVERYWHERE)
    renamed = np.array([60, 10, 1, 0], np.float32)[other.astype(int)]
    assert normalized_mutual_information(one, renamed, EVERYWHERE) == pytest.approx(expected)
    assert normalized_mutual_information(5 * one - 2, other, EVERYWHERE) == pytest.approx(expected)
    assert 1.05 < expected < 1.9


def test_similarity_of_independent_volumes_is_1(rng):
    one, other = rng.integers(0, 4, (2, 40, 40, 40)).astype(np.float32)
    everywhere = np.ones(one.shape, bool)
    assert normalized_mutual_information(one, other, everywhere) == pytest.approx(1, abs=1e-3)


def test_similarity_by_hand():
    """X and Y share one of two bits: H(X) = H(Y) = 2 bits, H(X, Y) = 3 bits."""
    one, other = np.zeros((2, 2, 2), np.float32), np.zeros((2, 2, 2), np.float32)
    for i, j, k in np.ndindex(2, 2, 2):
        one[i, j, k], other[i, j, k] = 2 * i + j, 2 * i + k
    everywhere = np.ones(one.shape, bool)
    assert normalized_mutual_information(one, other, everywhere) == pytest.approx(4 / 3)


def test_similarity_sees_only_the_voxels_that_count(rng):
    one, where = draw(rng), draw(rng) > 0.5
    other = np.where(where, one, draw(rng))
    assert normalized_mutual_information(one, other, where) == pytest.approx(2)


def head_with_uptake(rng, background=0.0):
    """Make a PET of a head: brain 100, scalp 10, and noise of air."""
    away = np.linalg.norm(np.indices((40, 40, 40)) - 19.5, axis=0)
    pet = np.select([away < 10, away < 13], [100, 10], background).astype(np.float32)
    return pet + rng.standard_normal(pet.shape).astype(np.float32), away


def test_what_was_added_to_a_pet_is_found(rng):
    pet, away = head_with_uptake(rng)
    for added in (30, 1000, -30):
        shifted, level = subtract_air(pet + np.float32(added))
        assert level == pytest.approx(added, abs=0.1)
        assert shifted == pytest.approx(pet, abs=0.1)
    stripped = np.where(away < 10, pet, 0) + np.float32(30)
    assert subtract_air(stripped)[1] == 30
    padded = np.where(np.indices(pet.shape)[0] < 5, 0, pet + np.float32(30))
    shifted, level = subtract_air(padded)
    assert level == pytest.approx(30, abs=0.1)
    assert not shifted[:5].any()


@pytest.mark.parametrize("fill", [0, np.nan, -1000])
@pytest.mark.parametrize("radius", [10, 16, 99])  # brain alone; a field of view; all
@pytest.mark.parametrize(
    "box",
    [
        np.s_[:],
        np.s_[10:30, 10:30, 10:30],  # the faces show scalp
        np.s_[14:26, 14:26, 14:26],  # and here brain
        np.s_[:, :, :20],
        np.s_[:, :, 20:],
    ],
    ids=str,
)
def test_nothing_is_subtracted_from_a_good_pet(rng, fill, radius, box):
    pet, away = head_with_uptake(rng)
    for seen in (pet, np.maximum(pet, 0)):
        cut = np.where(away < radius, seen, fill).astype(np.float32)[box]
        same, level = subtract_air(cut)
        assert level == 0
        np.testing.assert_array_equal(same, cut)
    assert subtract_air(np.full_like(pet, np.nan))[1] == 0


def test_similarity_of_constants_is_1():
    constant = np.ones((9, 9, 9), np.float32)
    assert normalized_mutual_information(constant, 2 * constant, EVERYWHERE) == 1


def test_ssim_is_that_of_torchmetrics(rng):
    one = smooth(draw(rng, (15, 17, 14)), 1, (1, 1, 1))
    other = np.clip(one + 0.5 * smooth(draw(rng, one.shape), 1, (1, 1, 1)) - 0.2, 0, 1)
    tensors = [torch.from_numpy(volume).double()[None, None] for volume in (one, other)]
    mean, full = structural_similarity_index_measure(
        *tensors, data_range=1.0, sigma=1.5, kernel_size=11, return_full_image=True
    )
    assert ssim_map(one, other) == pytest.approx(full[0, 0].numpy(), abs=1e-4)
    assert ssim(one, other) == pytest.approx(float(mean), abs=1e-4)
    assert 0.1 < float(mean) < 0.95


def test_ssim_of_equal_volumes_is_1(rng):
    one = draw(rng, (12, 7, 13))
    assert ssim(one, one) == pytest.approx(1, abs=1e-5)


def test_ssim_of_a_constant_pair_by_hand():
    """Without variance, only the luminance term is left: (2·0.2·0.6 + C1) / (0.2² + 0.6² + C1)."""
    dark, bright = np.full((8, 8, 8), 0.2, np.float32), np.full((8, 8, 8), 0.6, np.float32)
    assert ssim(dark, bright) == pytest.approx(0.2401 / 0.4001, abs=1e-4)


def test_measures_tell_the_brain_from_the_whole(rng):
    real = np.zeros((40, 8, 8), np.float32)
    real[:20] = draw(rng, (20, 8, 8))
    synthetic = real.copy()
    synthetic[30:] = 0.5
    brain = np.zeros(real.shape, bool)
    brain[:20] = True
    found = measure(synthetic, real, brain)
    assert found.psnr_brain == float("inf")
    assert found.ssim_brain == pytest.approx(1, abs=1e-4)
    assert found.psnr == pytest.approx(-10 * np.log10(0.25 / 4), abs=1e-3)
    assert found.ssim == pytest.approx(ssim(synthetic, real))
    assert found.ssim < 0.9


# Matching


brightness = st.lists(st.sampled_from([0.0, 0.1, 0.25, 0.5, 0.5001, 0.9, 1.0]), min_size=1)


def line(values):
    volume = np.array(values, np.float32).reshape(1, 1, -1)
    return volume, np.ones(volume.shape, bool)


def quantiles_of(values, count=1001):
    return np.quantile(values, np.linspace(0, 1, count)).astype(np.float32)


@given(values=brightness, other=brightness)
def test_matching_keeps_ranks(values, other):
    matched = match_quantiles(*line(values), quantiles_of(other)).ravel()
    for index, two in zip(*np.triu_indices(len(values), 1), strict=True):
        order = np.sign(values[index] - values[two])
        assert np.sign(matched[index] - matched[two]) in (0, order)
    assert min(other) - 1e-6 <= matched.min() <= matched.max() <= max(other) + 1e-6


@given(values=brightness)
def test_matching_with_its_own_quantiles_changes_nothing(values):
    volume, everywhere = line(values)
    levels = 6 * len(values) - 5  # the quantiles at all ranks and half ranks of ties are known
    matched = match_quantiles(volume, everywhere, quantiles_of(values, levels))
    assert matched == pytest.approx(volume, abs=1e-6)


@given(values=st.lists(st.floats(0, 1, width=32), min_size=2, unique=True))
def test_matching_twice_is_matching_once(values):
    volume, everywhere = line(values)
    wanted = np.linspace(0.1, 0.7, 1001, dtype=np.float32) ** 2
    once = match_quantiles(volume, everywhere, wanted)
    assert match_quantiles(once, everywhere, wanted) == pytest.approx(once, abs=1e-6)


def test_equal_intensities_are_matched_to_the_middle_of_their_ranks():
    matched = match_quantiles(*line([1, 3, 1]), np.array([0, 0.5, 1], np.float32))
    assert matched.ravel() == pytest.approx([0.25, 1, 0.25])


def test_a_matched_brain_has_the_quantiles_it_was_matched_to(rng):
    brain = rng.random((20, 20, 20)) > 0.4
    wanted = quantiles_of(rng.random(5000) ** 3)
    matched = match_quantiles(draw(rng, brain.shape), brain, wanted)
    assert matched.dtype == np.float32
    assert quantiles_of(matched[brain]) == pytest.approx(wanted, abs=2e-3)
    assert (matched[~brain] == 0).all()


def test_matching_an_empty_brain_gives_nothing(rng):
    volume = draw(rng)
    assert not match_quantiles(volume, ~EVERYWHERE, quantiles_of([0.2, 0.9])).any()


# Cubes


@given(
    shape=st.tuples(*[st.integers(1, 9)] * 3),
    sides=st.tuples(*[st.integers(1, 5)] * 3),
    seed=st.integers(0, 99),
)
def test_each_cube_has_the_mean_of_its_voxels(shape, sides, seed):
    volume = np.random.default_rng(seed).random(shape).astype(np.float32)
    means = average_cubes(volume, sides)
    assert means.shape == tuple(-(-n // side) for n, side in zip(shape, sides, strict=True))
    for index, mean in np.ndenumerate(means):
        corners = (slice(i * side, (i + 1) * side) for i, side in zip(index, sides, strict=True))
        assert mean == pytest.approx(volume[tuple(corners)].mean(), rel=1e-5)


@pytest.mark.parametrize(
    ("zoom", "side"), [(0.7, 11), (1.0, 8), (1.5, 5), (2.0, 4), (4.0, 2), (8.0, 1), (30.0, 1)]
)
def test_cubes_are_as_near_8_mm_as_voxels_allow(zoom, side):
    assert cube_sides(8.0, (zoom, 1.0, 4.0)) == (side, 8, 2)


@pytest.mark.parametrize("noise", [0, 100])
def test_negative_air_in_the_brain_mask_shifts_no_tissue(rng, noise):
    """An extracted brain seldom ends exactly where the air begins."""
    t1w = rng.normal(600, 100, (20, 20, 20)).clip(50).astype(np.float32)
    t1w[:10] = -1024 + noise * rng.standard_normal((10, 20, 20))
    brain = np.zeros(t1w.shape, bool)
    brain[9:] = True
    np.testing.assert_array_equal(raise_above_zero(t1w, brain), np.maximum(t1w, 0))


def test_a_z_scored_brain_keeps_its_contrast(rng):
    """Fluid, grey and white matter, of which most is negative, and fluid is 3 SD below the mean."""
    tissue = rng.choice([-3, -0.3, 0.9], 5000, p=[0.1, 0.5, 0.4]) + 0.1 * rng.standard_normal(5000)
    t1w = np.concatenate([tissue, np.full(3000, -9)]).astype(np.float32)[:, None, None]
    raised = raise_above_zero(t1w, t1w > -9)
    np.testing.assert_allclose(np.diff(raised[:5000, 0, 0]), np.diff(tissue), atol=0.2)
    assert (raised[5000:] == 0).all()
