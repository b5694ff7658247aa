"""Volumes on disk are read as they were written, page by page, and have unique digests."""

import hashlib
import json
import mmap
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from bids_app import files
from bids_app.errors import ReadWriteError, UnusableDataError
from bids_app.nifti import ABOUT, Owner, open_arrays, read_digest, read_owner, store_arrays

AFFINE = ((-4.0, 0.0, 0.5, 7.0), (0.0, 5.0, 0.0, -3.0), (0.0, 1.5, 6.0, 0.0), (0.0, 0.0, 0.0, 1.0))
OWNER = Owner("01", "b", AFFINE)
SHAPE = (7, 6, 5)
volumes = arrays(np.float32, SHAPE, elements=st.floats(0, 1, width=32))
masks = arrays(bool, SHAPE)


def pet(seed=0, shape=SHAPE):
    return np.random.default_rng(seed).random(shape, np.float32)


@given(pet=volumes, brain=masks)
def test_what_was_stored_is_opened_by_name(tmp_path_factory, pet, brain):
    folder = tmp_path_factory.mktemp("volumes") / "new" / "folder"
    digest = store_arrays(folder, OWNER, {"pet": pet, "brain": brain})
    opened = open_arrays(folder, ["brain", "pet"])
    for one, other in zip(opened, (brain, pet), strict=True):
        assert one.dtype == other.dtype
        np.testing.assert_array_equal(one, other)
    assert read_owner(folder) == OWNER
    assert read_digest(folder) == digest


@pytest.mark.parametrize("session", [None, "b"])
def test_whose_they_are_is_told(tmp_path, session):
    owner = Owner("01", session, AFFINE)
    store_arrays(tmp_path, owner, {"pet": pet()})
    assert read_owner(tmp_path) == owner
    assert owner.zooms == pytest.approx((4.0, np.hypot(5, 1.5), np.hypot(0.5, 6)))


@pytest.mark.parametrize("order", "CF")
def test_a_transverse_slice_lies_together(tmp_path, order):
    """Whatever the order of the array in memory."""
    store_arrays(tmp_path, OWNER, {"pet": np.array(pet(), order=order)})
    (opened,) = open_arrays(tmp_path, ["pet"])
    assert isinstance(opened.base, mmap.mmap)
    assert opened[..., 2].flags.f_contiguous
    assert opened.strides[0] == opened.itemsize


def test_what_is_written_to_a_mapping_stays_in_memory(tmp_path):
    store_arrays(tmp_path, OWNER, {"pet": pet()})
    (opened,) = open_arrays(tmp_path, ["pet"])
    opened[...] = 0  # torch requires writable arrays
    np.testing.assert_array_equal(open_arrays(tmp_path, ["pet"])[0], pet())


def test_volumes_are_mapped_not_read(tmp_path):
    """Opening a cohort of 64 volumes, 1 GB, takes the memory of a few slices."""
    shape = (128, 128, 256)
    store_arrays(tmp_path, OWNER, {"pet": np.ones(shape, np.float32)})
    code = (
        "import resource, sys; from pathlib import Path; from bids_app.nifti import open_arrays;"
        "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss;"
        "held = [open_arrays(Path(sys.argv[1]), ['pet'])[0] for _ in range(64)];"
        "total = sum(float(one[..., 7].sum()) for one in held);"
        "print(total, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)"
    )
    told = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)], check=True, capture_output=True, text=True
    )
    total, kilobytes = map(float, told.stdout.split())
    assert total == 64 * 128 * 128
    assert kilobytes < 64_000


# Digest


def test_the_digest_is_of_names_affine_and_content(tmp_path):
    stored = {"pet": pet(), "brain": pet() > 0.5}
    expected = hashlib.sha256(json.dumps([AFFINE, ["pet", "brain"]]).encode())
    for volume in stored.values():
        expected.update(volume.tobytes())
    assert store_arrays(tmp_path, OWNER, stored) == expected.hexdigest()


def test_the_digest_does_not_tell_how_an_array_lay_in_memory_or_whose_it_is(tmp_path):
    digest = store_arrays(tmp_path, OWNER, {"pet": pet()})
    assert store_arrays(tmp_path, OWNER, {"pet": np.asfortranarray(pet())}) == digest
    assert store_arrays(tmp_path, Owner("02", None, AFFINE), {"pet": pet()}) == digest


def test_whatever_differs_has_another_digest(tmp_path):
    changed, other = pet(), ((1.0, 0.0, 0.0, 0.0), *AFFINE[1:])
    changed[3, 2, 1] += 1e-6
    digests = [
        store_arrays(tmp_path, OWNER, {"pet": pet()}),
        store_arrays(tmp_path, OWNER, {"pet": changed}),
        store_arrays(tmp_path, OWNER, {"t1w": pet()}),
        store_arrays(tmp_path, OWNER, {"pet": pet(), "brain": pet() > 0.5}),
        store_arrays(tmp_path, OWNER, {"pet": pet(), "brain": pet() > 0.4}),
        store_arrays(tmp_path, Owner("01", "b", other), {"pet": pet()}),
    ]
    assert len(set(digests)) == len(digests)


# Failures


def test_what_is_stored_again_is_replaced_even_while_it_is_mapped(tmp_path):
    store_arrays(tmp_path, OWNER, {"pet": pet(0)})
    (before,) = open_arrays(tmp_path, ["pet"])
    store_arrays(tmp_path, OWNER, {"pet": pet(1)})
    np.testing.assert_array_equal(before, pet(0))
    np.testing.assert_array_equal(open_arrays(tmp_path, ["pet"])[0], pet(1))


def test_a_disk_that_is_full_leaves_what_was_there(tmp_path, monkeypatch):
    digest = store_arrays(tmp_path, OWNER, {"pet": pet(0)})

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(files.Path, "replace", full)
    with pytest.raises(ReadWriteError, match=r"pet\.npy: cannot be written \(No space left"):
        store_arrays(tmp_path, OWNER, {"pet": pet(1)})
    monkeypatch.undo()
    np.testing.assert_array_equal(open_arrays(tmp_path, ["pet"])[0], pet(0))
    assert read_digest(tmp_path) == digest
    assert sorted(path.name for path in tmp_path.iterdir()) == [ABOUT, "pet.npy"]


@pytest.mark.parametrize("kind", ["missing", "emptied", "truncated", "something else", "pickled"])
def test_volumes_that_cannot_be_read_are_told(tmp_path, kind):
    store_arrays(tmp_path, OWNER, {"pet": pet()})
    path = tmp_path / "pet.npy"
    if kind == "missing":
        path.unlink()
    elif kind == "emptied":
        path.write_bytes(b"")
    elif kind == "truncated":
        path.write_bytes(path.read_bytes()[:-100])
    elif kind == "something else":
        path.write_bytes(b"PK\3\4" + path.read_bytes())
    else:
        np.save(path, np.array([{}], object), allow_pickle=True)
    with pytest.raises(ReadWriteError) as told:
        open_arrays(tmp_path, ["pet"])
    assert f"{told.value}".startswith(f"{tmp_path}: cannot be read (")
    assert f"{told.value}".endswith("; delete it")


@pytest.mark.parametrize("read", [read_owner, read_digest])
def test_whose_volumes_they_are_has_to_be_told(tmp_path, read):
    with pytest.raises(ReadWriteError, match=r"about\.json: cannot be read"):
        read(tmp_path)
    (tmp_path / ABOUT).write_text("[1]")
    with pytest.raises(UnusableDataError, match=r"about\.json: not a JSON object"):
        read(tmp_path)
