import errno
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from bids_app import nifti
from bids_app.errors import MissingInputError, ReadWriteError, UnusableDataError

SHAPE = (17, 14, 11)
HEAD = np.diag([5.0, 5.0, 6.0, 1.0])


@pytest.fixture
def image(rng, head_affine):
    return nifti.Image(rng.normal(size=SHAPE).astype(np.float32), head_affine)


def save_raw(path, data, affine=HEAD):
    """Write an image with an arbitrary sform, as other programs may."""
    content = bytearray(nib.Nifti1Image(data, HEAD).to_bytes())
    content[280:328] = np.asarray(affine[:3], "<f4").tobytes()
    content[252:254] = bytes(2)  # qform_code
    path.write_bytes(content)
    return path


@pytest.mark.parametrize("name", ["t1w.nii.gz", "t1w.nii"])
def test_what_is_saved_is_loaded(tmp_path, image, name):
    nifti.save(image, tmp_path / name)
    again = nifti.load(tmp_path / name)
    assert np.array_equal(again.data, image.data)
    assert again.data.dtype == np.float32
    assert again.affine == pytest.approx(image.affine, abs=1e-5)
    assert again.zooms == pytest.approx((4, 5, 6), abs=1e-5)
    assert again.grid.shape == SHAPE


def test_sform_and_qform_say_the_same(tmp_path, image):
    nifti.save(image, tmp_path / "t1w.nii.gz", description="SYNTHETIC")
    header = nib.load(tmp_path / "t1w.nii.gz").header
    assert header.get_qform() == pytest.approx(header.get_sform(), abs=1e-4)
    assert (int(header["sform_code"]), int(header["qform_code"])) == (1, 1)
    assert header.get_xyzt_units()[0] == "mm"
    assert header["descrip"].item() == b"SYNTHETIC"


def test_equal_data_give_equal_bytes(tmp_path, image):
    for name in ("one.nii.gz", "other.nii.gz"):
        nifti.save(image, tmp_path / name)
    content = (tmp_path / "one.nii.gz").read_bytes()
    assert content == (tmp_path / "other.nii.gz").read_bytes()
    assert content[3:8] == bytes(5)  # no file name and no time in the gzip header


@pytest.mark.parametrize(("kind", "kept"), [(bool, np.uint8), (np.int16, np.int16)])
def test_masks_and_labels_keep_their_kind(tmp_path, image, kind, kept):
    data = (image.data > 0).astype(kind)
    nifti.save(nifti.Image(data, image.affine), tmp_path / "mask.nii.gz")
    assert nib.load(tmp_path / "mask.nii.gz").get_data_dtype() == kept
    assert np.array_equal(nifti.load(tmp_path / "mask.nii.gz").data, data)


def test_a_full_disk_leaves_the_old_file_and_no_other(tmp_path, image, monkeypatch):
    path = tmp_path / "t1w.nii.gz"
    nifti.save(image, path)
    before = path.read_bytes()

    def write_half(self, content):
        with self.open("wb") as file:
            file.write(content[: len(content) // 2])
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", write_half)
    with pytest.raises(ReadWriteError, match=r"t1w\.nii\.gz: .*No space left"):
        nifti.save(nifti.Image(2 * image.data, image.affine), path)
    assert [file.name for file in tmp_path.iterdir()] == ["t1w.nii.gz"]
    assert path.read_bytes() == before


@pytest.mark.parametrize("more", [(1,), (1, 1)])
def test_axes_of_length_one_at_the_end_are_dropped(tmp_path, image, more):
    nifti.save(nifti.Image(image.data.reshape(*SHAPE, *more), image.affine), tmp_path / "a.nii")
    assert nifti.inspect(tmp_path / "a.nii").shape == SHAPE
    assert np.array_equal(nifti.load(tmp_path / "a.nii").data, image.data)


def test_frames_stay_a_fourth_axis(tmp_path, image):
    frames = np.stack([image.data, 2 * image.data], axis=-1)
    nifti.save(nifti.Image(frames, image.affine), tmp_path / "pet.nii.gz")
    assert np.array_equal(nifti.load(tmp_path / "pet.nii.gz").data, frames)


def test_the_scaling_of_the_header_is_applied(tmp_path, rng):
    data, path = rng.integers(0, 99, SHAPE).astype(np.int16), tmp_path / "a.nii"
    content = bytearray(nib.Nifti1Image(data, HEAD).to_bytes())
    content[112:120] = np.array([0.5, 3.0], "<f4").tobytes()  # scl_slope, scl_inter
    path.write_bytes(content)
    assert np.array_equal(nifti.load(path).data, (0.5 * data + 3).astype(np.float32))


@pytest.mark.parametrize("name", ["t1w.nii.gz", "t1w.nii"])
@pytest.mark.parametrize("kept", [0.02, 0.5, 0.98])
def test_a_truncated_image_is_named(tmp_path, image, name, kept):
    path = tmp_path / name
    nifti.save(image, path)
    content = path.read_bytes()
    path.write_bytes(content[: int(kept * len(content))])
    with pytest.raises(UnusableDataError, match=rf"{name}: .*copy"):
        nifti.load(path)


def test_damage_in_the_middle_is_named(tmp_path, image):
    path = tmp_path / "t1w.nii.gz"
    nifti.save(image, path)
    content = bytearray(path.read_bytes())
    content[len(content) // 2 : len(content) // 2 + 40] = bytes(40)
    path.write_bytes(content)
    with pytest.raises(UnusableDataError, match=r"t1w\.nii\.gz: truncated or damaged"):
        nifti.load_scan(path)


@pytest.mark.parametrize("content", [b"", b"this is no image", bytes(400)])
@pytest.mark.parametrize("name", ["t1w.nii.gz", "t1w.nii"])
def test_what_is_no_image_is_named(tmp_path, name, content):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UnusableDataError, match=f"{name}: not a "):
        nifti.load(tmp_path / name)


def test_an_image_that_is_not_nifti_is_refused(tmp_path, image):
    nib.save(nib.MGHImage(image.data, image.affine), tmp_path / "t1w.mgz")
    with pytest.raises(UnusableDataError, match=r"t1w\.mgz: not a NIfTI image"):
        nifti.load(tmp_path / "t1w.mgz")


def test_a_missing_image_is_named(tmp_path):
    (tmp_path / "annexed.nii.gz").symlink_to(tmp_path / "elsewhere")
    for name in ("absent.nii.gz", "annexed.nii.gz"):
        with pytest.raises(MissingInputError, match=f"{name}: no such file"):
            nifti.load(tmp_path / name)


def test_an_image_that_may_not_be_read_is_named(tmp_path, image, monkeypatch):
    nifti.save(image, tmp_path / "t1w.nii.gz")

    def refuse(path, *_):
        raise PermissionError(errno.EACCES, "Permission denied", str(path))

    monkeypatch.setattr(Path, "open", refuse)  # because root may read all files
    with pytest.raises(ReadWriteError, match=r"t1w\.nii\.gz: no permission"):
        nifti.load(tmp_path / "t1w.nii.gz")


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_scan_with_values_that_are_no_numbers_is_refused(tmp_path, image, value):
    image.data[3, 4, 5:7] = value
    nifti.to_nibabel(image).to_filename(tmp_path / "t1w.nii.gz")
    with pytest.raises(UnusableDataError, match=r"t1w\.nii\.gz: 2 voxels are NaN"):
        nifti.load_scan(tmp_path / "t1w.nii.gz")


def test_a_constant_scan_is_refused(tmp_path, image):
    nifti.save(nifti.Image(np.full(SHAPE, 7, np.float32), image.affine), tmp_path / "t1w.nii.gz")
    with pytest.raises(UnusableDataError, match=r"t1w\.nii\.gz: all voxels are equal"):
        nifti.load_scan(tmp_path / "t1w.nii.gz")


def test_a_scan_is_loaded_as_any_image(tmp_path, image):
    nifti.save(image, tmp_path / "t1w.nii.gz")
    assert np.array_equal(nifti.load_scan(tmp_path / "t1w.nii.gz").data, image.data)


@pytest.mark.parametrize(
    ("linear", "problem"),
    [
        (np.zeros((3, 3)), "no inverse"),
        (np.diag([5, 5, np.nan]), "no inverse"),
        ([[5, 5, 0], [5, 5, 0], [0, 0, 6]], "no inverse"),
        ([[5, 2, 0], [0, 5, 0], [0, 0, 6]], "sheared"),
        (np.diag([5, 5, 0.01]), r"voxels of 5 × 5 × 0\.01 mm"),
        (np.diag([5, 25, 6]), "voxels of 5 × 25 × 6 mm"),
        (np.diag([2, 5, 6]), "field of view is 34 × 70 × 66 mm"),
    ],
)
def test_an_affine_that_no_head_has_is_refused(tmp_path, rng, linear, problem):
    affine = np.eye(4)
    affine[:3, :3] = linear
    path = save_raw(tmp_path / "a.nii", rng.random(SHAPE).astype(np.float32), affine)
    with pytest.raises(UnusableDataError, match=rf"a\.nii: .*{problem}"):
        nifti.inspect(path)


def test_a_field_of_view_of_metres_is_refused(tmp_path, rng):
    path = save_raw(tmp_path / "a.nii", rng.random((101, 9, 9)), np.diag([10.0, 10, 10, 1]))
    with pytest.raises(UnusableDataError, match="field of view is 1010 × 90 × 90 mm"):
        nifti.inspect(path)


@pytest.mark.parametrize("shape", [(17, 14), (17, 14, 1)])
def test_a_slice_is_no_volume(tmp_path, rng, shape):
    path = save_raw(tmp_path / "a.nii", rng.random(shape))
    with pytest.raises(UnusableDataError, match=r"a\.nii: its shape is .* not a volume"):
        nifti.inspect(path)


@pytest.mark.parametrize(
    ("name", "code", "kind"),
    [
        ("tpl-MNI152NLin2009aSym_res-1_desc-controlsmean_pet.nii.gz", 4, np.float32),
        ("sub-1_desc-preproc_T1w.nii.gz", 1, np.float32),
        ("sub-1_desc-brain_mask.nii", 1, np.uint8),
        ("sub-1_space-T1w_desc-preproc_pet.nii.gz", 2, np.float32),
        ("sub-1_space-T1w_desc-ocsvm_dseg.nii.gz", 2, np.int16),
        ("sub-1_space-MNI152NLin2009aSym_res-1_desc-brain_mask.nii.gz", 4, np.uint8),
        ("sub-1_space-MNI152NLin2009aSym_res-1_label-L_mask.nii.gz", 4, np.uint8),
    ],
)
def test_a_header_says_what_the_name_says(tmp_path, rng, name, code, kind):
    affine = np.array([[-2, 0.1, 0, 5], [0, 2, 0, 6], [0, 0, 2, 7], [0, 0, 0, 1.0]])
    affine[:3, :3] = 2 * np.linalg.qr(affine[:3, :3])[0]
    data = rng.integers(0, 9, (3, 4, 5)).astype(np.float32)
    nifti.save(nifti.Image(data, affine), tmp_path / "in.nii.gz", description="SYNTHETIC")
    for _ in range(2):
        nifti.place(tmp_path / "in.nii.gz", tmp_path / name)
    placed = nib.load(tmp_path / name)
    assert (placed.header["sform_code"], placed.header["qform_code"]) == (code, code)
    assert placed.get_data_dtype() == kind
    assert np.array_equal(placed.get_fdata(), data)
    assert placed.get_qform() == pytest.approx(affine, abs=1e-5)
    assert placed.get_sform() == pytest.approx(affine, abs=1e-5)
    assert placed.header["descrip"].item() == b"SYNTHETIC"


def test_equal_images_are_placed_as_equal_bytes_and_tables_as_they_are(tmp_path, rng):
    nifti.save(nifti.Image(rng.random((3, 4, 5)), np.eye(4)), tmp_path / "in.nii.gz")
    for name in ("one_pet.nii.gz", "two_pet.nii.gz"):
        nifti.place(tmp_path / "in.nii.gz", tmp_path / name)
    assert (tmp_path / "one_pet.nii.gz").read_bytes() == (tmp_path / "two_pet.nii.gz").read_bytes()
    (tmp_path / "in.tsv").write_text("a\n")
    nifti.place(tmp_path / "in.tsv", tmp_path / "out.tsv")
    assert (tmp_path / "out.tsv").read_text() == "a\n"


def test_what_is_no_image_gets_no_place_of_one(tmp_path):
    (tmp_path / "in.nii.gz").write_text("no image")
    with pytest.raises(UnusableDataError, match=r"in\.nii\.gz: cannot be read as an image"):
        nifti.place(tmp_path / "in.nii.gz", tmp_path / "a_pet.nii.gz")
    assert not (tmp_path / "a_pet.nii.gz").exists()
