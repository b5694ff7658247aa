"""Input from disk is read correctly or refused at once, and output is written completely."""

import gzip
import json
import os
import socket
import time
from itertools import permutations, product

import nibabel as nib
import numpy as np
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from nibabel.orientations import axcodes2ornt, inv_ornt_aff, ornt_transform

from bids_app import files, nifti
from bids_app.errors import MissingInputError, Mri2petError, ReadWriteError, UnusableDataError
from bids_app.imaging.coverage import enclosed, fill, gaps_in
from bids_app.imaging.intensity import clip_spikes
from bids_app.interfaces.imaging import ReadPET, ReadT1w

SHAPE = (17, 14, 11)
MANY = max(300, settings.default.max_examples)  # more in the profile "long"
CODES = ["".join(c) for order in permutations(["RL", "AP", "SI"]) for c in product(*order)]
FIELDS = nib.Nifti1Header().template_dtype.fields


@pytest.fixture(scope="module")
def head():
    """Return a head of integers, so that any data type can store it, on an oblique grid."""
    rng = np.random.default_rng(3)
    affine = nib.affines.from_matvec(
        nib.eulerangles.euler2mat(0.1, -0.2, 0.05) @ np.diag([4.0, 5, 6]), (-30, 41, -22)
    )
    return rng.integers(0, 120, SHAPE).astype(np.int16), affine


def node(interface, tmp_path, **inputs):
    """Run a node in its own folder; return its outputs."""
    cwd = tmp_path / f"node_{interface.__name__}"
    cwd.mkdir(exist_ok=True)
    return interface(**inputs).run(cwd=str(cwd)).outputs


def reoriented(data, affine, code):
    """Reorder the voxels of an image without changing world coordinates, by nibabel."""
    turn = ornt_transform(nib.io_orientation(affine), axcodes2ornt(code))
    return nib.apply_orientation(data, turn), affine @ inv_ornt_aff(turn, data.shape)


def in_ras(image):
    """Return the voxels in RAS order, and their affine, by nibabel."""
    return reoriented(image.data, image.affine, "RAS")


def write(path, content):
    path.write_bytes(gzip.compress(content, 1) if path.suffix == ".gz" else content)
    return path


def coded(data, affine, cls=nib.Nifti1Image, *, sform=1, qform=1, order="<"):
    header = cls.header_class(endianness=order)
    header.set_data_dtype(data.dtype)
    image = cls(data, affine, header)
    image.set_sform(affine, sform)
    image.set_qform(affine, qform)
    return image


def patched(image, **fields):
    """Set fields of a header to values that nibabel would not write."""
    content = bytearray(image.to_bytes())
    size = image.header.sizeof_hdr
    header = type(image.header)(
        bytes(content[:size]), endianness=image.header.endianness, check=False
    )
    for name, value in fields.items():
        header[name] = value
    content[:size] = header.binaryblock
    return bytes(content)


# Properties: the head is the same however it is stored


@pytest.mark.parametrize("code", CODES)
@pytest.mark.parametrize("cls", [nib.Nifti1Image, nib.Nifti2Image])
def test_any_order_of_voxels_reads_to_the_same_world(tmp_path, head, code, cls):
    path = write(tmp_path / "a.nii", coded(*reoriented(*head, code), cls).to_bytes())
    image = nifti.load(path)
    data, affine = in_ras(image)
    assert np.array_equal(data, head[0])
    assert affine == pytest.approx(head[1], abs=1e-4)
    assert image.notes == ()


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    kind=st.sampled_from(["u1", "i1", "i2", "u2", "i4", "u4", "i8", "u8", "f4", "f8"]),
    order=st.sampled_from("<>"),
    cls=st.sampled_from([nib.Nifti1Image, nib.Nifti2Image]),
    name=st.sampled_from(["a.nii", "a.nii.gz", "plain.nii.gz", "packed.nii"]),
    forms=st.sampled_from([(1, 1), (2, 0), (0, 1), (4, 1), (0, 3)]),
    extension=st.sampled_from([0, 40, 5000]),
    axes=st.integers(0, 3),
    scaling=st.sampled_from([(0, 0), (float("nan"), 5), (1, 0), (0.5, -7), (-2, 3)]),
)
def test_any_way_to_store_reads_to_the_same_world(
    tmp_path, head, kind, order, cls, name, forms, extension, axes, scaling
):
    data, affine = head
    stored = data.reshape(*SHAPE, *[1] * axes).astype(np.dtype(kind).newbyteorder(order))
    image = coded(stored, affine, cls, sform=forms[0], qform=forms[1], order=order)
    if extension:
        image.header.extensions.append(nib.nifti1.Nifti1Extension("comment", b"x" * extension))
    content = patched(image, scl_slope=scaling[0], scl_inter=scaling[1])
    packed = name in ("a.nii.gz", "packed.nii")
    path = tmp_path / name
    path.write_bytes(gzip.compress(content, 1) if packed else content)
    read = nifti.load(path)
    slope, inter = scaling if scaling[0] and np.isfinite(scaling[0]) else (1, 0)
    assert np.array_equal(read.data, (slope * data.astype(float) + inter).astype(np.float32))
    assert read.affine == pytest.approx(affine, abs=1e-4)


@pytest.mark.parametrize("unit", [1e37, 1e-42, 1e300, 1e-300])
def test_what_float32_cannot_hold_is_divided_and_told(tmp_path, head, unit):
    data, affine = head
    path = write(tmp_path / "a.nii", coded(data * unit, affine).to_bytes())
    image = nifti.load_scan(path)
    assert image.data == pytest.approx(data / data.max(), rel=1e-5)
    (note,) = image.notes
    assert "a.nii" in note
    assert "divided" in note


@pytest.mark.parametrize("field", ["srow_x", "srow_z", "quatern_b", "qoffset_x", "scl_slope"])
@pytest.mark.filterwarnings("error::RuntimeWarning")
def test_a_nan_of_a_header_that_signals_gives_no_warning(tmp_path, head, field):
    """Damaged bytes may hold one; numpy warns when it converts such a NaN."""
    place = nib.Nifti1Header.template_dtype.fields[field][1]
    content = bytearray(coded(*head).to_bytes())
    content[place : place + 4] = bytes.fromhex("0100a07f")
    image = nifti.load_scan(write(tmp_path / "a.nii", bytes(content)))
    assert np.array_equal(image.data, head[0])


@pytest.mark.parametrize("value", [1e300, -1e39])
def test_a_broken_voxel_beyond_float32_does_not_scale_the_others(tmp_path, head, value):
    """Otherwise, dividing by it would make all tissue 0."""
    data = head[0].astype(np.float64)
    data[3, 4, 5] = value
    image = nifti.load_scan(write(tmp_path / "a.nii", coded(data, head[1]).to_bytes()))
    data[3, 4, 5] = np.copysign(float(np.finfo(np.float32).max), value)
    assert np.array_equal(image.data, data.astype(np.float32))
    (note,) = image.notes
    assert "voxels that were clipped: 1" in note


@pytest.mark.parametrize("value", [np.inf, -np.inf, np.nan])
def test_a_voxel_without_a_number_leaves_the_others_as_they_are(tmp_path, head, value):
    data = head[0].astype(np.float32)
    data[3, 4, 5] = value
    image = nifti.load_scan(write(tmp_path / "a.nii", coded(data, head[1]).to_bytes()), gaps=True)
    assert np.array_equal(image.data, data, equal_nan=True)


@pytest.mark.parametrize("unit", [1e-12, 1e9])
def test_usual_units_are_kept(tmp_path, head, unit):
    path = write(tmp_path / "a.nii", coded(head[0] * unit, head[1]).to_bytes())
    image = nifti.load(path)
    assert image.data == pytest.approx(head[0] * unit, rel=1e-6)
    assert image.notes == ()


# Left and right


@pytest.fixture
def unknown(tmp_path, head):
    """Image whose header has no orientation; its voxels are stored as LPS."""
    data, affine = reoriented(head[0], np.diag([4.0, 5, 6, 1]), "LPS")
    return write(tmp_path / "u.nii.gz", coded(data, affine, sform=0, qform=0).to_bytes())


@pytest.mark.parametrize("read", [nifti.inspect, nifti.load, nifti.check_labels])
def test_what_cannot_tell_left_from_right_is_refused(unknown, read):
    with pytest.raises(UnusableDataError, match=r"u\.nii\.gz: .*left and right.*--assume-orient"):
        read(unknown)


@pytest.mark.parametrize("code", CODES)
def test_an_orientation_that_is_vouched_for_is_used_and_told(tmp_path, head, code):
    data, _ = reoriented(head[0], np.diag([4.0, 5, 6, 1]), code)
    zooms = [dict(zip("RLAPSI", (4, 4, 5, 5, 6, 6), strict=True))[letter] for letter in code]
    image = coded(data, np.diag([*zooms, 1.0]), sform=0, qform=0)
    image.header.set_zooms(zooms)
    image = nifti.load(write(tmp_path / "u.nii", image.to_bytes()), orientation=code)
    again, affine = in_ras(image)
    assert np.array_equal(again, head[0])
    assert affine[:3, :3] == pytest.approx(np.diag([4, 5, 6]))
    assert affine @ [*(np.array(SHAPE) - 1) / 2, 1] == pytest.approx([0, 0, 0, 1])  # the centre
    assert code in " ".join(image.notes)


def test_las_is_what_nibabel_takes_it_for(unknown):
    assert nifti.load(unknown, orientation="LAS").affine == pytest.approx(nib.load(unknown).affine)


@pytest.mark.parametrize("code", [6, 77, -1])
def test_codes_that_mean_nothing_tell_nothing(tmp_path, head, code):
    content = patched(coded(*head), sform_code=code, qform_code=code)
    with pytest.raises(UnusableDataError, match="does not define left and right"):
        nifti.inspect(write(tmp_path / "a.nii", content))


def test_vouching_changes_nothing_where_the_header_knows(tmp_path, head):
    path = write(tmp_path / "a.nii", coded(*head).to_bytes())
    image = nifti.load(path, orientation="LAS")
    assert image.affine == pytest.approx(head[1], abs=1e-4)
    assert image.notes == ()


@pytest.mark.parametrize(
    ("turn", "words"),
    [
        (np.diag([-1, 1, 1, 1]), "left and right"),
        (np.diag([-1, -1, 1, 1]), "left and right"),  # same handedness as before
        (np.diag([1, -1, 1, 1]), "differ by up to"),
        (nib.affines.from_matvec(np.eye(3), (9, 0, 0)), "by up to 9 mm"),
        (nib.affines.from_matvec(nib.eulerangles.euler2mat(0.3), (0, 0, 0)), "differ by up to"),
    ],
)
def test_forms_that_disagree_are_told_and_the_sform_counts(tmp_path, head, turn, words):
    image = coded(*head)
    image.set_qform(turn @ head[1], 1)
    image = nifti.load(write(tmp_path / "a.nii", image.to_bytes()))
    assert image.affine == pytest.approx(head[1], abs=1e-4)
    (note,) = image.notes
    assert words in note
    assert "sform was used" in note


@pytest.mark.parametrize(("shear", "notes"), [(0.005, 0), (0.03, 1)])
def test_a_slight_shear_is_named(tmp_path, head, shear, notes):
    image = coded(*head)
    image.set_sform(head[1] @ [[1, shear, 0, 0], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]], 1)
    image = nifti.load(write(tmp_path / "a.nii", image.to_bytes()))
    assert len(image.notes) == notes
    assert all("is sheared by" in note for note in image.notes)


@pytest.mark.parametrize("value", [0, np.nan, np.inf])
def test_a_qform_stands_in_for_a_broken_sform(tmp_path, head, value):
    rows = {f"srow_{axis}": value for axis in "xyz"}
    image = nifti.load(write(tmp_path / "a.nii", patched(coded(*head), **rows)))
    assert image.affine == pytest.approx(head[1], abs=1e-4)
    assert "qform was used" in " ".join(image.notes)


# Files that are no image of a head are refused at once


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        ("c8", "complex"),
        ("c16", "complex"),
        ([("R", "u1"), ("G", "u1"), ("B", "u1")], "colours"),
        ([("R", "u1"), ("G", "u1"), ("B", "u1"), ("A", "u1")], "colours"),
    ],
)
def test_what_is_not_one_number_a_voxel_is_refused(tmp_path, head, kind, words):
    data = np.zeros(SHAPE, kind)
    path = tmp_path / "a.nii.gz"
    nib.save(nib.Nifti1Image(data, head[1]), path)
    with pytest.raises(UnusableDataError, match=rf"a\.nii\.gz: contains {words}"):
        nifti.inspect(path)


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"vox_offset": -16}, "begin at byte -16"),
        ({"vox_offset": 100}, "begin at byte 100"),
        ({"vox_offset": 3e38}, "begin at byte 3e"),
        ({"vox_offset": 400.5}, "begin at byte 400.5"),
        ({"vox_offset": np.nan}, "begin at byte nan"),
        ({"vox_offset": 1 << 20}, "truncated"),
        ({"dim": [3, -17, 14, 11, 1, 1, 1, 1]}, "axes of length"),
        ({"dim": [0] * 8}, "axes of length"),
        ({"dim": [9, 17, 14, 11, 1, 1, 1, 1]}, "axes of length"),
        ({"dim": [3, 30000, 30000, 30000, 1, 1, 1, 1]}, "field of view"),
        ({"dim": [4, 17, 14, 11, 32767, 1, 1, 1]}, "truncated"),
        ({"dim": [5, 17, 14, 11, 2, 3, 1, 1]}, "not a volume"),
        ({"datatype": 99}, "type 99"),
        ({"bitpix": 64}, "64 bits per voxel"),
        ({"datatype": 2}, "bits per voxel"),
        ({"datatype": 1536}, "contains data"),
        ({"scl_slope": 1, "scl_inter": np.inf}, "scl_inter"),
        ({"magic": b"abc"}, "not a NIfTI"),
    ],
)
@pytest.mark.parametrize("name", ["a.nii", "a.nii.gz"])
def test_headers_that_cannot_be_true_are_refused(tmp_path, head, name, fields, words):
    path = write(tmp_path / name, patched(coded(*head), **fields))
    with pytest.raises(UnusableDataError, match=rf"{name}: .*{words}"):
        nifti.load(path)


def test_a_stream_that_is_no_gzip_is_named(tmp_path, head):
    packed = gzip.compress(coded(*head).to_bytes())
    (tmp_path / "a.nii.gz").write_bytes(packed[:10] + b"\xff" * 100)
    with pytest.raises(UnusableDataError, match=r"a\.nii\.gz: truncated or damaged \(Error -3"):
        nifti.inspect(tmp_path / "a.nii.gz")


@pytest.mark.parametrize(
    ("name", "frames"), [("a.nii", 2), ("a.nii.gz", 32767)], ids=["plain", "compressed"]
)
def test_a_file_that_cannot_hold_what_it_says_is_refused_by_its_header(
    tmp_path, head, name, frames
):
    content = patched(coded(*head), dim=[4, 17, 14, 11, frames, 1, 1, 1])
    path = write(tmp_path / name, content)
    with pytest.raises(UnusableDataError, match=rf"{name}: truncated .*its header claims"):
        nifti.inspect(path)


def test_five_axes_with_a_single_fourth_are_frames(tmp_path, head):
    frames = np.stack([head[0], 2 * head[0]], axis=-1)[:, :, :, None, :]
    path = write(tmp_path / "a.nii", coded(frames, head[1]).to_bytes())
    assert nifti.inspect(path).shape == (*SHAPE, 2)
    assert np.array_equal(nifti.load(path).data, frames[:, :, :, 0])


def zeros(path, head, count, **fields):
    """Write a header and zeros, with maximum compression."""
    with gzip.open(path, "wb", compresslevel=9) as file:
        file.write(patched(coded(*head), **fields)[:352])
        for _ in range(count):
            file.write(bytes(1 << 24))
    return path


def test_a_bomb_is_not_unpacked(tmp_path, head, monkeypatch):
    monkeypatch.setattr(nifti, "LARGE", 1 << 24)
    path = zeros(tmp_path / "a.nii.gz", head, 2, dim=[4, 17, 14, 11, 6000, 1, 1, 1])
    before = time.process_time()
    with pytest.raises(UnusableDataError, match=r"a\.nii\.gz: .*compressed that much"):
        nifti.load(path)
    assert time.process_time() - before < 1


def test_a_bomb_behind_an_image_is_not_unpacked(tmp_path, head, monkeypatch):
    monkeypatch.setattr(nifti, "LARGEST_TAIL", 1 << 24)
    path = zeros(tmp_path / "a.nii.gz", head, 2)
    with pytest.raises(UnusableDataError, match=r"a\.nii\.gz: more than"):
        nifti.load(path)


def test_what_memory_cannot_hold_is_not_begun(tmp_path, head, monkeypatch):
    monkeypatch.setattr(nifti, "_memory", lambda: 10_000)
    path = write(tmp_path / "a.nii", coded(*head).to_bytes())
    with pytest.raises(UnusableDataError, match=r"a\.nii: reading it requires 15\.7 kB of memory"):
        nifti.inspect(path)


def test_memory_that_runs_out_is_told(tmp_path, head, monkeypatch):
    def run_out(*_):
        raise MemoryError

    path = write(tmp_path / "a.nii", coded(*head).to_bytes())
    monkeypatch.setattr(nifti, "_scale", run_out)
    with pytest.raises(UnusableDataError, match=r"a\.nii: memory ran out"):
        nifti.load(path)


@pytest.mark.parametrize(
    "text", ["version https://git-lfs.github.com/spec/v1\n", "/annex/objects/MD5E-s1--0.nii.gz\n"]
)
def test_a_pointer_is_a_missing_image(tmp_path, text):
    (tmp_path / "a.nii.gz").write_text(text)
    with pytest.raises(MissingInputError, match=r"a\.nii\.gz: .*fetch"):
        nifti.inspect(tmp_path / "a.nii.gz")


def make_special(path, kind):
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "folder":
        path.mkdir()
    elif kind == "device":
        path.symlink_to("/dev/zero")
    else:
        with socket.socket(socket.AF_UNIX) as one:
            here = os.open(path.parent, os.O_RDONLY)
            one.bind(f"/proc/self/fd/{here}/{path.name}")  # names of sockets must be short
            os.close(here)


@pytest.mark.parametrize("kind", ["pipe", "folder", "device", "socket"])
@pytest.mark.parametrize(
    "read", [nifti.inspect, nifti.load, nifti.check_labels, files.read_json, files.read_text]
)
def test_what_is_no_file_is_not_opened(tmp_path, kind, read):
    path = tmp_path / "a.nii.gz"
    make_special(path, kind)
    with pytest.raises(UnusableDataError, match=rf"a\.nii\.gz: is a .*{kind}, not a file"):
        read(path)


def test_a_link_that_leads_to_itself_is_missing(tmp_path):
    path = tmp_path / "a.nii"
    path.symlink_to(path)
    with pytest.raises(MissingInputError, match=r"a\.nii: no such file"):
        nifti.load(path)


@pytest.mark.parametrize("content", ["[" * 100_000, '{"a":' * 50_000 + "1" + "}" * 50_000])
def test_json_as_deep_as_a_well_is_refused(tmp_path, content):
    (tmp_path / "a.json").write_text(content)
    with pytest.raises(UnusableDataError, match=r"a\.json: "):
        files.read_json(tmp_path / "a.json")


def test_an_endless_sidecar_is_not_read(tmp_path):
    path = tmp_path / "a.json"
    with path.open("wb") as file:
        file.truncate(1 << 40)  # sparse, so it takes no room on the disk
    with pytest.raises(UnusableDataError, match=r"a\.json: has 1099512 MB"):
        files.read_json(path)


numbers = st.one_of(
    st.integers(-(2**31), 2**31 - 1), st.floats(width=32), st.sampled_from([0, 1, 2, 3, 4, 348])
)


@pytest.fixture(scope="module")
def stored(tmp_path_factory):
    return tmp_path_factory.mktemp("fuzz") / "a.nii"


def survives(path, content):
    path.write_bytes(content)
    before = time.process_time()
    try:
        image = nifti.load(path)
    except Mri2petError as error:
        told = str(error)
    else:
        told = str(path)
        assert image.data.dtype == np.float32
        assert np.isfinite(image.affine).all()
    assert str(path) in told
    assert len(told.splitlines()) == 1
    assert time.process_time() - before < 1


@settings(max_examples=MANY, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    changes=st.dictionaries(st.sampled_from(sorted(FIELDS)), st.lists(numbers, min_size=1)),
    cls=st.sampled_from([nib.Nifti1Image, nib.Nifti2Image]),
    order=st.sampled_from("<>"),
)
@example(changes={"dim": [7] + [2] * 7}, cls=nib.Nifti1Image, order="<")
@example(changes={"pixdim": [float("nan")]}, cls=nib.Nifti1Image, order="<")
@example(changes={"srow_x": [3e38]}, cls=nib.Nifti2Image, order=">")
@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_any_field_of_a_header_gives_an_image_or_a_sentence(stored, head, changes, cls, order):
    image = coded(*head, cls, order=order)
    content = bytearray(image.to_bytes())
    dtype = image.header.template_dtype.newbyteorder(order)
    header = np.frombuffer(bytes(content[: dtype.itemsize]), dtype).copy()
    for name, values in changes.items():
        if name in dtype.fields and dtype[name].base.kind in "iuf":
            target = header[name].reshape(-1)
            with np.errstate(all="ignore"):
                wide = np.resize(np.array(values, np.float64), target.size)
                target[:] = (
                    np.nan_to_num(wide).astype(np.int64).astype(target.dtype)
                    if (target.dtype.kind in "iu")
                    else wide.astype(target.dtype)
                )
    content[: dtype.itemsize] = header.tobytes()
    survives(stored, bytes(content))


@settings(max_examples=MANY, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    places=st.dictionaries(st.integers(0, 551), st.integers(0, 255), max_size=40),
    cls=st.sampled_from([nib.Nifti1Image, nib.Nifti2Image]),
    kept=st.one_of(st.just(None), st.integers(0, 6000)),
    packed=st.booleans(),
)
def test_any_bytes_give_an_image_or_a_sentence(stored, head, places, cls, kept, packed):
    content = bytearray(coded(*head, cls).to_bytes())
    if packed:
        content = bytearray(gzip.compress(bytes(content), 1))
    for place, byte in places.items():
        if place < len(content):
            content[place] = byte
    survives(stored, bytes(content[:kept]))


# Gaps


def test_gaps_are_filled_and_marked():
    volume = np.array([[[1, np.nan], [np.inf, -2]]], np.float32)
    data, valid = fill(volume)
    assert data.tolist() == [[[1, 0], [0, -2]]]
    assert valid.tolist() == [[[True, False], [False, True]]]


def test_a_gap_at_the_border_is_not_enclosed():
    valid = np.ones((9, 9, 9), bool)
    valid[:, :, :3] = False  # beyond the edge of the image
    valid[4, 4, 6] = False
    expected = np.zeros((9, 9, 9), bool)
    expected[4, 4, 6] = True
    assert np.array_equal(enclosed(valid), expected)


BALL = (np.indices((41, 41, 41)) - 20).astype(float)
BALL = np.sqrt((BALL**2).sum(0)) < 15


@pytest.mark.parametrize(
    ("where", "count"),
    [
        ((20, 20, 20), 1),  # in the centre of the brain
        ((20, 20, 5 + 1), 0),  # in its outermost voxels
        ((20, 20, 2), 0),  # outside
        ((slice(None), slice(None), slice(0, 9)), int(BALL[:, :, :9].sum())),  # shallow, but large
    ],
)
def test_gaps_that_make_a_brain_unusable_are_counted(where, count):
    gaps = np.zeros(BALL.shape, bool)
    gaps[where] = True
    assert gaps_in(BALL, gaps, (1.0, 1.0, 1.0)) == count


def save_scan(path, data, affine):
    nib.save(coded(data.astype(np.float32), affine), path)
    return str(path)


@pytest.mark.parametrize(
    ("interface", "name"), [(ReadT1w, "t1w"), (ReadPET, "pet")], ids=["t1w", "pet"]
)
def test_scans_with_gaps_are_read_and_the_gaps_told(tmp_path, head, interface, name):
    data = head[0].astype(np.float32) + 1
    data[:, :, :2] = np.nan
    given_ = {name: save_scan(tmp_path / "a.nii.gz", data, head[1])}
    more = {"durations": [], "frames": []} if name == "pet" else {}
    out = node(interface, tmp_path, **given_, **more)
    assert np.array_equal(nifti.load(getattr(out, name)).data, np.nan_to_num(data))
    assert np.array_equal(nifti.load(out.valid).data > 0, np.isfinite(data))
    (note,) = out.sidecar["ReadingNotes"]
    assert f"{17 * 14 * 2} of its {17 * 14 * 11} voxels" in note


def test_a_voxel_that_one_frame_lacks_is_a_gap(tmp_path, head):
    frames = np.stack([head[0], head[0] + 2], axis=-1).astype(np.float32)
    frames[3, 4, 5, 0] = np.nan
    path = save_scan(tmp_path / "a.nii.gz", frames, head[1])
    out = node(ReadPET, tmp_path, pet=path, durations=[60.0, 60.0], frames=[])
    assert np.argwhere(nifti.load(out.valid).data == 0).tolist() == [[3, 4, 5]]
    out = node(ReadPET, tmp_path, pet=path, durations=[60.0, 60.0], frames=[1])
    assert nifti.load(out.valid).data.all()


def test_a_frame_of_nothing_is_named(tmp_path, head):
    frames = np.stack([head[0] * np.nan, head[0]], axis=-1).astype(np.float32)
    path = save_scan(tmp_path / "a.nii.gz", frames, head[1])
    with pytest.raises(UnusableDataError, match=r"frames \[0\] are NaN .*--pet-frames"):
        node(ReadPET, tmp_path, pet=path, durations=[60.0, 60.0], frames=[])


@pytest.mark.parametrize(
    ("interface", "name", "more"),
    [(ReadT1w, "t1w", {}), (ReadPET, "pet", {"durations": [], "frames": []})],
)
def test_a_broken_voxel_is_cut_off_and_told(tmp_path, head, interface, name, more):
    """It would darken all others: in the histogram of a T1w, and by the mean of a PET."""
    data = head[0].astype(np.float32)
    data[3, 4, 5] = 4e9
    path = save_scan(tmp_path / "a.nii.gz", data, head[1])
    out = node(interface, tmp_path, **{name: path}, **more)
    read = nifti.load(getattr(out, name)).data
    others = np.arange(data.size).reshape(SHAPE) != np.ravel_multi_index((3, 4, 5), SHAPE)
    assert np.array_equal(read[others], data[others])
    assert 119 < read[3, 4, 5] < 4e9
    assert "1 of its" in out.sidecar["ReadingNotes"][0]


def test_bright_vessels_are_no_broken_voxels(rng):
    volume = rng.normal(500, 100, (20, 20, 20)).astype(np.float32)
    volume[3:6, 3, 3] = 3000
    same, count = clip_spikes(volume)
    assert count == 0
    assert same is volume


@pytest.mark.parametrize("code", ["LAS", "RAS"])
def test_orientation_reaches_the_nodes(tmp_path, unknown, code):
    expected = nifti.load(unknown, orientation=code)
    for interface, name, more in (
        (ReadT1w, "t1w", {}),
        (ReadPET, "pet", {"durations": [], "frames": []}),
    ):
        out = node(interface, tmp_path, **{name: str(unknown)}, **more, orientation=code)
        read = nifti.load(getattr(out, name))
        assert read.affine == pytest.approx(expected.affine, abs=1e-4)
        assert np.array_equal(read.data, expected.data)


# Output


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_no_image_is_written_that_holds_no_numbers(tmp_path, head, value):
    data = head[0].astype(np.float32)
    data[0, 0, 0] = value
    with pytest.raises(UnusableDataError, match=r"a\.nii\.gz: was not written, because 1 of its"):
        nifti.save(nifti.Image(data, head[1]), tmp_path / "a.nii.gz")
    assert not list(tmp_path.iterdir())
    nifti.to_nibabel(nifti.Image(data, head[1])).to_filename(tmp_path / "a.nii.gz")


WRITERS = {
    "text": lambda path: files.write_text(path, "new"),
    "bytes": lambda path: files.write_bytes(path, b"new"),
    "json": lambda path: files.write_json(path, {"new": 1}),
    "copy": lambda path: files.copy_file(path.with_name("source"), path),
    "image": lambda path: nifti.save(nifti.Image(np.ones(SHAPE), np.eye(4)), path),
}


@pytest.mark.parametrize("name", WRITERS)
def test_what_is_written_is_on_the_disk_before_it_has_its_name(tmp_path, monkeypatch, name):
    """Checked by the order of system calls, since a test cannot cause a power failure."""
    (tmp_path / "source").write_text("new")
    target, done = tmp_path / "target.nii", []
    target.write_text("old")
    sync = os.fsync

    def watch(handle):
        inode = os.fstat(handle).st_ino
        done.append(("folder" if inode == tmp_path.stat().st_ino else inode, target.stat().st_ino))
        sync(handle)

    monkeypatch.setattr(os, "fsync", watch)
    old = target.stat().st_ino
    WRITERS[name](target)
    new = target.stat().st_ino
    assert done == [(new, old), ("folder", new)]


@pytest.mark.parametrize("name", WRITERS)
def test_what_cannot_be_written_leaves_the_old_file_alone(tmp_path, monkeypatch, name):
    (tmp_path / "source").write_text("new")
    target = tmp_path / "target.nii"
    target.write_text("old")

    def fail(_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", fail)  # some disks report errors only then
    with pytest.raises(ReadWriteError, match=r"target\.nii: .*No space left"):
        WRITERS[name](target)
    assert target.read_text() == "old"
    assert {path.name for path in tmp_path.iterdir()} == {"source", "target.nii"}


def test_a_table_that_is_no_file_is_named(tmp_path):
    (tmp_path / "a.tsv").mkdir()
    with pytest.raises(ReadWriteError, match=r"a\.tsv: is a folder"):
        files.read_tsv(tmp_path / "a.tsv")
    assert files.read_tsv(tmp_path / "absent.tsv") == []


def test_json_that_is_small_is_read(tmp_path):
    (tmp_path / "a.json").write_text("\ufeff" + json.dumps({"a": [1, "é"]}))
    assert files.read_json(tmp_path / "a.json") == {"a": [1, "é"]}
