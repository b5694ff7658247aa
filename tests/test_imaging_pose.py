import numpy as np
import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from phantoms import brain, head_affine
from scipy import ndimage
from scipy.spatial.transform import Rotation

from bids_app.imaging.pose import NEAR, Pose, PoseSearch, axis_aligned, directions
from bids_app.imaging.verdict import classify, expected_uptake

pytestmark = pytest.mark.slow


def degrees_between(one, other):
    return np.degrees(Rotation.from_matrix(one.T @ other).magnitude())


def moved(affine, turn, shift=(0.0, 0.0, 0.0)):
    """Rotate and shift the affine of a head; return the affine and the transform."""
    pose = np.eye(4)
    pose[:3, :3], pose[:3, 3] = turn, shift
    return pose @ affine, pose


@pytest.fixture(scope="module")
def head():
    """Return T1w, PET and mask of one brain."""
    rng = np.random.default_rng(3)
    t1w, pet = brain(rng), brain(rng, inverted=True)
    return t1w, pet, t1w > 0


@pytest.fixture(scope="module")
def template():
    return brain(np.random.default_rng(4))


def search(template, t1w, affine):
    where = ndimage.binary_dilation(template > 0, iterations=2)
    return PoseSearch(template, head_affine(), where, t1w, affine, bounded=False)


def error_of(pose, true, inside):
    """Return the mean distance over the brain, in mm."""
    voxels = np.argwhere(inside)[::50]
    points = np.c_[voxels, np.ones(len(voxels))] @ head_affine().T
    return np.linalg.norm((points @ (pose - true).T)[:, :3], axis=1).mean()


def test_there_are_24_ways_to_lay_axes_on_axes():
    turns = axis_aligned()
    assert len({tuple(turn.astype(int).ravel()) for turn in turns}) == 24
    for turn in turns:
        assert np.linalg.det(turn) == pytest.approx(1)
        assert (turn @ turn.T == np.eye(3)).all()


@given(seed=st.integers(0, 10**6))
def test_no_direction_is_far_from_all_that_are_tried(seed):
    wanted = Rotation.random(random_state=seed).as_matrix()
    assert min(degrees_between(wanted, one) for one in directions()) < 40


@pytest.mark.parametrize("turn", ["x 180", "y 180", "z 180", "z 90", "x -70", "y 40", "z 130"])
def test_a_turned_head_is_found(head, template, turn):
    axis, angle = turn.split()
    turn = Rotation.from_euler(axis, float(angle), degrees=True).as_matrix()
    affine, true = moved(head_affine(), turn, (25.0, -30.0, 40.0))
    found = search(template, head[0], affine).find()
    assert found.is_better
    assert error_of(found.matrix, true, head[2]) < 4


@hypothesis_settings(max_examples=5)
@given(seed=st.integers(0, 10**6), bounded=st.booleans())
def test_any_direction_is_found(head, seed, bounded):
    """Also of a PET, by the uptake that tissue lets expect."""
    t1w, pet, inside = head
    uptake = expected_uptake(classify(t1w, inside))
    affine, true = moved(head_affine(), Rotation.random(random_state=seed).as_matrix(), (9, 9, 9))
    where = ndimage.binary_dilation(inside, iterations=2)
    moving = pet if bounded else uptake
    found = PoseSearch(uptake, head_affine(), where, moving, affine, bounded=bounded).find()
    assert error_of(found.matrix, true, inside) < 4


@pytest.mark.parametrize("tilt", [0, 10, 20])
def test_a_good_header_is_kept(head, template, tilt):
    """A brain resembles its mirror image, and slightly itself turned by 180°."""
    turn = Rotation.from_euler("xyz", (tilt, tilt / 2, -tilt / 2), degrees=True).as_matrix()
    affine, _ = moved(head_affine(), turn, (0, 10.0, -10.0))
    found = search(template, head[0], affine).find()
    assert found.degrees < NEAR
    assert not found.is_better
    assert found.header_score == pytest.approx(found.score, abs=0.01)


@pytest.mark.parametrize("unit", [1e-28, 1e35])
@pytest.mark.filterwarnings("error::RuntimeWarning")
def test_the_unit_of_an_image_changes_no_score(head, template, unit):
    """Squares of 32-bit floats range from 1e-45 to 1e38."""
    scores = [
        search(template, (head[0] * factor).astype(np.float32), head_affine()).score(np.eye(4))
        for factor in (1, unit)
    ]
    assert scores[1] == pytest.approx(scores[0], abs=1e-3)


def test_noise_does_not_overrule_the_header(template):
    noise = np.random.default_rng(5).random(template.shape).astype(np.float32)
    assert not search(template, noise, head_affine()).find().is_better


def test_a_pose_is_better_only_if_it_is_far_and_clearly_more_alike():
    far, near = np.eye(4), np.eye(4)
    far[:3, :3] = Rotation.from_euler("z", 50, degrees=True).as_matrix()
    near[:3, :3] = Rotation.from_euler("z", 20, degrees=True).as_matrix()
    assert Pose(far, 0.8, 0.6).is_better
    assert not Pose(far, 0.4, 0.1).is_better
    assert not Pose(far, 0.61, 0.6).is_better
    assert not Pose(near, 0.8, 0.6).is_better


def test_what_a_pet_does_not_reach_does_not_count(head):
    """The lowest fifth of the brain is missing; the rest is unchanged."""
    t1w, pet, inside = head
    uptake = expected_uptake(classify(t1w, inside))
    where = ndimage.binary_dilation(inside, iterations=2)
    lowest = int(np.argwhere(inside)[:, 2].min())
    cut = lowest + int(0.2 * np.ptp(np.argwhere(inside)[:, 2]))
    affine = head_affine()
    affine[:3, 3] += affine[:3, 2] * cut
    turn = Rotation.from_euler("x", 180, degrees=True).as_matrix()
    affine, true = moved(affine, turn, (0, 20.0, 0))
    search = PoseSearch(uptake, head_affine(), where, pet[..., cut:], affine, bounded=True)
    assert search.score(true) > 0.85
    assert error_of(search.find().matrix, true, inside) < 4
    away = np.eye(4)
    away[:3, 3] = 120, 0, 0
    assert search.score(true @ away) == -1  # less than half of the brain is inside


@pytest.mark.parametrize("factor", [0.94, 1.0, 1.03, 1.06])
def test_the_size_of_a_brain_in_a_pet_is_found(head, factor):
    t1w, pet, inside = head
    uptake = expected_uptake(classify(t1w, inside))
    turn = Rotation.from_euler("z", 20, degrees=True).as_matrix()
    affine, pose = moved(head_affine(), factor * turn, (9.0, -4.0, 3.0))
    where = ndimage.binary_dilation(inside, iterations=2)
    found = PoseSearch(uptake, head_affine(), where, pet, affine, bounded=True)
    pose[:3, :3] /= factor
    assert found.size(pose) == pytest.approx(factor, abs=0.01)
