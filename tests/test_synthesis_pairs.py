import json
import resource
from contextlib import contextmanager
from dataclasses import replace

import numpy as np
import pytest
import torch
from cohorts import images, store
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from bids_app.errors import ReadWriteError
from bids_app.synthesis.models import MODELS
from bids_app.synthesis.pairs import (
    Owner,
    brain_tiles,
    open_volumes,
    pair_of,
    store_volumes,
    tensor_of,
)
from bids_app.synthesis.tiling import CubicPatches, SliceTriplets

AFFINE = ((-4.0, 0.0, 0.5, 7.0), (0.0, 5.0, 0.0, -3.0), (0.0, 1.5, 6.0, 0.0), (0.0, 0.0, 0.0, 1.0))
SHAPE = (7, 6, 5)
OWNER = Owner("01", "b", AFFINE)
volumes = arrays(np.float32, SHAPE, elements=st.floats(0, 1, width=32))


@pytest.fixture
def cohort(rng):
    t1w, pet, brain = images(rng, SHAPE)
    return {"t1w": t1w, "pet": pet, "brain": brain}


@contextmanager
def disk_for(size):
    """Limit the size of files, as on a full disk."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


@given(t1w=volumes, pet=volumes, brain=arrays(bool, SHAPE))
def test_what_was_stored_is_opened(tmp_path_factory, t1w, pet, brain):
    folder = tmp_path_factory.mktemp("volumes") / "sub-01"
    store_volumes(folder, OWNER, t1w=t1w, pet=pet, brain=brain)
    opened = open_volumes(folder)
    assert opened.owner == OWNER
    for one, other in ((opened.t1w, t1w), (opened.pet, pet), (opened.brain, brain)):
        assert one.dtype == other.dtype
        np.testing.assert_array_equal(one, other)


def test_a_visit_without_session_has_none(tmp_path, cohort):
    store_volumes(tmp_path, Owner("01", None, AFFINE), **cohort)
    assert open_volumes(tmp_path).owner.session is None


def test_voxel_sizes_come_from_the_affine():
    assert OWNER.zooms == pytest.approx((4.0, np.hypot(5, 1.5), np.hypot(0.5, 6)))


def test_volumes_are_mapped_and_not_read(tmp_path, cohort):
    store_volumes(tmp_path, OWNER, **cohort)
    opened = open_volumes(tmp_path)
    for volume in (opened.t1w, opened.pet, opened.brain):
        assert isinstance(volume, np.memmap)
    pair = pair_of(opened, MODELS["semi3d-gan"])
    for tensor, volume in ((pair.mri, opened.t1w), (pair.pet, opened.pet)):
        assert tensor.data_ptr() == volume.ctypes.data
    assert tensor_of(opened.t1w).data_ptr() == opened.t1w.ctypes.data


def test_a_transverse_slice_lies_in_one_piece(tmp_path, cohort):
    store_volumes(tmp_path, OWNER, **cohort)
    for volume in (open_volumes(tmp_path).t1w, open_volumes(tmp_path).pet):
        assert volume[..., 2].flags.f_contiguous


def test_what_is_written_to_a_mapped_volume_does_not_reach_the_disk(tmp_path, cohort):
    store_volumes(tmp_path, OWNER, **cohort)
    open_volumes(tmp_path).t1w[:] = 9
    np.testing.assert_array_equal(open_volumes(tmp_path).t1w, cohort["t1w"])


def test_volumes_that_are_stored_again_do_not_change_what_is_mapped(tmp_path, cohort):
    """A run that starts in parallel must not change the training data of another one."""
    store_volumes(tmp_path, OWNER, **cohort)
    mapped = open_volumes(tmp_path)
    store_volumes(tmp_path, OWNER, **{**cohort, "t1w": 1 - cohort["t1w"]})
    np.testing.assert_array_equal(mapped.t1w, cohort["t1w"])
    np.testing.assert_array_equal(open_volumes(tmp_path).t1w, 1 - cohort["t1w"])


def test_the_digest_depends_on_the_content_alone(tmp_path, cohort):
    first = store_volumes(tmp_path / "a", OWNER, **cohort)
    other = Owner("02", None, AFFINE)
    fortran = {name: np.asfortranarray(volume) for name, volume in cohort.items()}
    assert store_volumes(tmp_path / "b", other, **fortran) == first
    assert json.loads((tmp_path / "b" / "about.json").read_text())["sha256"] == first


@pytest.mark.parametrize("changed", ["t1w", "pet", "brain", "affine", "swapped"])
def test_the_digest_changes_with_the_content(tmp_path, cohort, changed):
    first, owner = store_volumes(tmp_path, OWNER, **cohort), OWNER
    if changed == "affine":
        owner = replace(OWNER, affine=((-4.0, 0.0, 0.5, 7.5), *AFFINE[1:]))
    elif changed == "swapped":
        cohort["t1w"], cohort["pet"] = cohort["pet"], cohort["t1w"]
    else:
        cohort[changed] = cohort[changed].copy()
        cohort[changed][3, 3, 2] = not cohort[changed][3, 3, 2]
    assert store_volumes(tmp_path, owner, **cohort) != first


@pytest.mark.parametrize("tiles", [0, 256])
def test_tiles_are_those_whose_t1w_has_brain_in_their_centre(tmp_path, rng, tiles):
    opened = open_volumes(store(tmp_path, rng, "01", shape=(24, 25, 12)))
    t1w = np.array(opened.t1w)
    t1w[..., 9:] = 0  # dark fluid that is still in the mask
    opened = replace(opened, t1w=t1w)
    for tiling in (CubicPatches(6, 3), SliceTriplets()):
        spec = replace(MODELS["patch3d-gan-mse"], tiling=tiling, tiles_per_volume=tiles)
        places = pair_of(opened, spec).places
        assert places == brain_tiles(tiling, torch.from_numpy(t1w > 0))
        assert 0 < len(places) < tiling.count(t1w.shape)
    assert places == (0, 1, 2)


def test_a_full_disk_is_told_and_what_was_stored_stays(tmp_path, cohort):
    store_volumes(tmp_path, OWNER, **cohort)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    changed = {**cohort, "t1w": 1 - cohort["t1w"]}
    with (
        disk_for(300),
        pytest.raises(ReadWriteError, match=r"t1w\.npy: cannot be written \(File too large\)"),
    ):
        store_volumes(tmp_path, OWNER, **changed)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_a_folder_that_cannot_be_made_is_told(tmp_path, cohort):
    (tmp_path / "file").touch()
    with pytest.raises(ReadWriteError, match=r"t1w\.npy: cannot be written"):
        store_volumes(tmp_path / "file" / "sub-01", OWNER, **cohort)


@pytest.mark.parametrize("damage", ["cut", "gone", "text"])
def test_volumes_that_are_damaged_are_told(tmp_path, cohort, damage):
    store_volumes(tmp_path, OWNER, **cohort)
    path = tmp_path / "pet.npy"
    if damage == "gone":
        path.unlink()
    else:
        path.write_bytes(path.read_bytes()[:-50] if damage == "cut" else b"no array")
    with pytest.raises(ReadWriteError, match=rf"{tmp_path.name}: cannot be read \(.*\); delete it"):
        open_volumes(tmp_path)


def test_volumes_of_nobody_are_told(tmp_path, cohort):
    store_volumes(tmp_path, OWNER, **cohort)
    (tmp_path / "about.json").unlink()
    with pytest.raises(ReadWriteError, match=r"about\.json: cannot be read"):
        open_volumes(tmp_path)
