"""PET that does not cover the brain: voxels outside the field of view are ignored."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.spatial.transform import Rotation

from bids_app import nifti
from bids_app.imaging.coverage import brain_coverage, field_of_view, missing_parts, near
from bids_app.imaging.similarity import measure
from bids_app.interfaces.imaging import FindFieldOfView, MeasureCoverage, ScaleIntensity

SHAPE = (30, 36, 40)
AFFINE = np.diag([4.0, 4, 4, 1])
AFFINE[:3, 3] = -58, -70, -60


def ball(shape=SHAPE):
    """Return an ellipsoid brain at least 3 voxels from the border."""
    x = np.indices(shape).astype(float)
    half = (np.array(shape).reshape(3, 1, 1, 1) - 1) / 2
    return (((x - half) / (half - 3)) ** 2).sum(0) <= 1


def without_top(voxels, shape=SHAPE):
    """Return the coverage of a PET that lacks the top slices of the brain."""
    top = int(np.where(ball(shape).any((0, 1)))[0].max())
    return np.broadcast_to(np.arange(shape[2]) <= top - voxels, shape)


@given(st.integers(0, 5), st.integers(0, 5), st.integers(0, 2), st.sampled_from([0.0, -1.0, 7.5]))
def test_planes_that_only_fill_a_scan_up_are_no_field_of_view(before, after, axis, filling):
    data = np.random.default_rng(before).random((7, 8, 9)).astype(np.float32)
    margins = [(0, 0)] * 3
    margins[axis] = (before, after)
    filled = np.pad(data, margins, constant_values=filling)
    expected = np.pad(np.ones(data.shape, bool), margins)
    assert np.array_equal(field_of_view(filled), expected)


@pytest.mark.parametrize("filling", [0.0, -3.0])
def test_a_gap_between_beds_and_a_wedge_are_no_field_of_view(rng, filling):
    """Voxels of one value that extend to a face of the scan were not measured, anywhere."""
    data = rng.random((16, 18, 20)).astype(np.float32) + 1
    x, y, z = np.indices(data.shape)
    for gap in ((z >= 9) & (z < 12), z == 9, 0.7 * y + z > 22, x + y + z > 40):
        held = field_of_view(np.where(gap, np.float32(filling), data))
        assert np.array_equal(held, ~gap)


def test_dead_tissue_a_few_dark_voxels_and_an_even_scan_are_data(rng):
    """A cyst is surrounded by the head, and noise that happens to be 0 is a measurement."""
    data = rng.random((16, 18, 20)).astype(np.float32) + 1
    data[5:10, 6:11, 7:12] = 0
    data[0, 3, 4] = data[0, 9, 4] = data[7, 0, 0] = 0
    assert field_of_view(data).all()
    assert field_of_view(np.zeros((3, 3, 3), np.float32)).all()


@pytest.mark.parametrize(
    ("axis", "sign", "words"),
    [
        (2, 1, "the top 2.4 cm"),
        (2, -1, "the bottom 2.4 cm (cerebellum side)"),
        (1, 1, "the front 2.4 cm"),
        (1, -1, "the back 2.4 cm (occipital)"),
        (0, -1, "the left 2.4 cm"),
        (0, 1, "the right 2.4 cm"),
    ],
)
@pytest.mark.parametrize("order", ["RAS", "LPI", "PSR"])
def test_what_is_missing_is_named_by_its_end_whatever_the_order_of_voxels(axis, sign, words, order):
    """Six slices of 4 mm are missing; voxels are stored in another order and direction."""
    brain = ball()
    place = np.arange(SHAPE[axis])
    inside = np.where(brain.any(tuple({0, 1, 2} - {axis})))[0]
    kept = place <= inside.max() - 6 if sign > 0 else place >= inside.min() + 6
    covered = np.broadcast_to(np.moveaxis(kept[:, None, None], 0, axis), SHAPE)
    axes = ["RL", "AP", "SI"]
    source = [next(i for i, pair in enumerate(axes) if letter in pair) for letter in order]
    flips = [axes[i].index(letter) == 1 for i, letter in zip(source, order, strict=True)]
    turn = np.zeros((4, 4))
    turn[3, 3] = 1
    for new, (old, flip) in enumerate(zip(source, flips, strict=True)):
        turn[old, new], turn[old, 3] = (-1, SHAPE[old] - 1) if flip else (1, 0)
    steps = tuple(slice(None, None, -1 if flip else 1) for flip in flips)
    stored = [volume.transpose(source)[steps] for volume in (brain, covered)]
    assert missing_parts(*stored, AFFINE @ turn) == [words]


@pytest.mark.parametrize("zooms", [(1, 1, 1.2), (1, 1, 1.5), (0.5, 0.5, 1), (1, 1, 3), (3, 1, 1)])
def test_what_is_missing_is_measured_in_mm_whatever_the_shape_of_voxels(zooms):
    shape = tuple(round(60 / zoom) for zoom in zooms)
    brain = np.ones(shape, bool)
    covered = np.broadcast_to(np.arange(shape[2]) * zooms[2] < 36, shape)
    assert missing_parts(brain, covered, np.diag([*zooms, 1.0])) == ["the top 2.4 cm"]


def test_a_whole_brain_lacks_nothing_and_scattered_holes_are_called_so(rng):
    brain = ball()
    assert missing_parts(brain, np.ones(SHAPE, bool), AFFINE) == []
    assert missing_parts(brain, rng.random(SHAPE) > 0.02, AFFINE) == ["small parts at its surface"]
    assert brain_coverage(np.zeros(SHAPE, bool), brain) == 0


@pytest.mark.parametrize("top", [0, 3])
def test_a_gap_between_beds_is_no_surface(top):
    brain = ball()
    kept = np.ones(SHAPE[2], bool)
    inside = np.flatnonzero(brain.any((0, 1)))
    kept[inside[inside.size // 2] - 1 : inside[inside.size // 2] + 2] = False
    share = (brain & ~kept).sum() / brain.sum()
    kept[inside.max() + 1 - top :] = False
    ends = [f"the top {0.4 * top:.1f} cm"] if top else []
    found = missing_parts(brain, np.broadcast_to(kept, SHAPE), AFFINE)
    assert found == [*ends, f"a part between the ends ({100 * share:.1f} %)"]


def test_identical_images_with_other_gaps_are_alike(rng):
    """The synthetic PET covers the brain, the real one has a gap; this is no difference."""
    brain, covered = ball(), without_top(8)
    image = np.where(brain, rng.random(SHAPE), 0).astype(np.float32)
    gap = np.where(covered, image, 0).astype(np.float32)
    told = measure(image, gap, brain, covered)
    assert (told.ssim, told.ssim_brain) == (pytest.approx(1), pytest.approx(1))
    assert (told.psnr, told.psnr_brain) == (math.inf, math.inf)
    blind = measure(image, gap, brain)
    assert blind.ssim_brain < 0.95
    assert blind.psnr_brain < 30


def test_a_gap_changes_no_measure_of_what_is_left(rng):
    """SSIM is the mean over windows that touch no gap; values in the gap do not matter."""
    brain, covered = ball(), without_top(8)
    one, other = (np.where(brain, rng.random(SHAPE), 0).astype(np.float32) for _ in range(2))
    hole = brain & ~covered
    first = measure(one, other, brain, covered)
    for filling in (0, 0.5, 1):
        filled = np.where(hole, filling, other).astype(np.float32)
        assert measure(one, filled, brain, covered) == pytest.approx(first)
    assert np.isnan(measure(one, other, brain, ~brain).ssim_brain)
    assert measure(one, other, brain) == measure(one, other, brain, np.ones(SHAPE, bool))


def test_a_box_that_touches_a_hole_is_near_it():
    hole = np.zeros((9, 9, 9), bool)
    hole[4, 4, 4] = True
    found = near(hole, (3, 5, 1))
    assert found.sum() == 15
    assert found[3:6, 2:7, 4].all()


@pytest.fixture
def saved(tmp_path):
    """Write a volume on a grid; return its path."""

    def save(name, data, affine=AFFINE):
        nifti.save(nifti.Image(data, affine), tmp_path / f"{name}.nii.gz")
        return str(tmp_path / f"{name}.nii.gz")

    return save


def run(interface, folder):
    return interface.run(cwd=str(folder)).outputs.get()


def test_the_scale_of_a_pet_is_that_of_the_brain_it_covers(saved, tmp_path, rng):
    """The percentile is over covered voxels: neither the gap nor its fill value changes it."""
    brain, covered = ball(), without_top(10)
    pet = rng.random(SHAPE).astype(np.float32) * 5
    field = saved("field", covered.astype(np.float32))
    values = []
    for number, filling in enumerate((0, 40)):
        image = saved(f"pet{number}", np.where(covered, pet, filling).astype(np.float32))
        node = MeasureCoverage(image=image, field_of_view=field, mask=saved("brain", brain))
        found = run(node, tmp_path)
        scale = ScaleIntensity(
            image=found["image"], mask=found["covered_brain"], percentile=95.0, times_mean=0.0
        )
        values.append(run(scale, tmp_path)["sidecar"]["IntensityScaling"]["Value"])
    expected = np.percentile(pet[brain & covered], 95)
    assert values == [pytest.approx(expected, rel=1e-5)] * 2
    assert found["sidecar"]["BrainCoverage"] == round((brain & covered).sum() / brain.sum(), 4)
    assert found["sidecar"]["BrainNotCovered"] == ["the top 4.0 cm"]
    assert not nifti.load(found["image"]).data[~covered].any()
    assert np.array_equal(nifti.load(found["coverage"]).data > 0, covered)


def test_voxels_that_need_what_was_not_measured_are_not_covered(saved, tmp_path):
    field = np.ones(SHAPE, np.float32)
    field[:, :, 20] = 0.99  # a hundredth of the interpolated value comes from outside
    node = MeasureCoverage(
        image=saved("pet", field), field_of_view=saved("field", field), mask=saved("brain", ball())
    )
    covered = nifti.load(run(node, tmp_path)["coverage"]).data > 0
    assert np.array_equal(covered, field == 1)


def test_the_field_of_view_leaves_out_empty_planes_and_what_is_known_not_to_be_valid(
    saved, tmp_path, rng
):
    data = np.pad(rng.random((20, 20, 20)), ((0, 0), (0, 0), (0, 3))).astype(np.float32)
    valid = np.ones(data.shape, bool)
    valid[:2] = False
    node = FindFieldOfView(pet=saved("pet", data), valid=saved("valid", valid))
    found = nifti.load(run(node, tmp_path)["field_of_view"]).data > 0
    expected = valid.copy()
    expected[:, :, 20:] = False
    assert np.array_equal(found, expected)


@pytest.mark.itk
@pytest.mark.parametrize("padded", [False, True])
def test_a_field_of_view_that_ends_in_the_brain_is_carried_with_its_pet(
    run_itk, saved, tmp_path, rng, padded
):
    """Known by geometry: the PET is tilted and ends at a plane.

    The plane is the last one with data if padded, and half a voxel beyond it otherwise.
    """
    brain, zoom = ball(), 5.0
    affine = np.diag([zoom, zoom, zoom, 1])
    affine[:3, :3] = Rotation.from_euler("x", 12, degrees=True).as_matrix() @ affine[:3, :3]
    affine[:3, 3] = AFFINE[:3, :3] @ (np.array(SHAPE) - 1) / 2 + AFFINE[:3, 3]
    affine[:3, 3] -= affine[:3, :3] @ [25, 25, 20]
    data = rng.random((50, 50, 26)).astype(np.float32) + 1
    if padded:
        data = np.pad(data, ((0, 0), (0, 0), (0, 9)))
    pet, reference = saved("pet", data, affine), saved("brain", brain)
    field = run(FindFieldOfView(pet=pet), tmp_path)["field_of_view"]
    carried = [
        run_itk("Resample", image=image, reference=reference, interpolation="linear")["image"]
        for image in (pet, field)
    ]
    node = MeasureCoverage(image=carried[0], field_of_view=carried[1], mask=reference)
    found = run(node, tmp_path)
    places = np.moveaxis(np.indices(SHAPE), 0, -1) @ AFFINE[:3, :3].T + AFFINE[:3, 3]
    height = ((places - affine[:3, 3]) @ np.linalg.inv(affine[:3, :3]).T)[..., 2]
    expected = height <= (25 if padded else 25.5)
    covered = nifti.load(found["coverage"]).data > 0
    assert (covered ^ expected)[brain].mean() < 0.002  # rounding at the plane itself
    assert abs(found["sidecar"]["BrainCoverage"] - expected[brain].mean()) < 0.002
    assert 0.5 < expected[brain].mean() < 0.95
    inside = nifti.load(found["image"]).data
    assert inside[brain & covered].min() > 0.99  # no fill values are mixed in
    assert not inside[~covered].any()
