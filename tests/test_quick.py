"""``mri2pet quick``: from image files to a synthetic PET."""

import gzip
import json
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from phantoms import add_pet, add_t1w, write_dataset

import bids_app.files
from bids_app import nifti, quick
from bids_app.errors import UnusableDataError, UsageError
from bids_app.files import PARTIAL, read_json, replacing


@pytest.fixture
def files(tmp_path):
    """A T1w, and an uncompressed PET without sidecar."""
    rng, raw = np.random.default_rng(4), write_dataset(tmp_path / "raw")
    t1w, pet = add_t1w(raw, "x", rng), add_pet(raw, "x", rng)
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "Ann B.nii.gz").write_bytes(t1w.read_bytes())
    (mine / "pet.nii").write_bytes(gzip.decompress(pet.read_bytes()))
    return mine


def lay_out(t1w, pet, root):
    quick.make_dataset(t1w, pet, root, quick.label_of(t1w))


def test_images_are_laid_out_as_bids(files, tmp_path):
    root = tmp_path / "out" / "sourcedata"
    lay_out(files / "Ann B.nii.gz", files / "pet.nii", root)
    for name, source in (
        ("anat/sub-AnnB_T1w", "Ann B.nii.gz"),
        ("pet/sub-AnnB_trc-18FFDG_pet", "pet.nii"),
    ):
        made, given = nifti.load(root / "sub-AnnB" / f"{name}.nii.gz"), nifti.load(files / source)
        np.testing.assert_array_equal(made.data, given.data)
        np.testing.assert_array_equal(made.affine, given.affine)
    told = read_json(root / "sub-AnnB/pet/sub-AnnB_trc-18FFDG_pet.json")
    assert told["TracerName"] == "FDG"
    assert not (root / "sub-AnnB/anat/sub-AnnB_T1w.json").exists()


def test_sidecars_beside_images_are_used(files, tmp_path):
    (files / "pet.json").write_text('{"FrameTimesStart": [0], "TracerName": "FDG"}')
    lay_out(files / "Ann B.nii.gz", files / "pet.nii", tmp_path / "raw2")
    told = read_json(tmp_path / "raw2/sub-AnnB/pet/sub-AnnB_trc-18FFDG_pet.json")
    assert told == {"FrameTimesStart": [0], "TracerName": "FDG"}


def test_people_of_earlier_calls_stay_and_a_pet_that_is_not_given_again_goes(files, tmp_path):
    root = tmp_path / "raw2"
    lay_out(files / "Ann B.nii.gz", files / "pet.nii", root)
    (files / "sub-02_T1w.nii.gz").write_bytes((files / "Ann B.nii.gz").read_bytes())
    lay_out(files / "sub-02_T1w.nii.gz", None, root)
    lay_out(files / "Ann B.nii.gz", None, root)
    found = sorted(str(path.relative_to(root)) for path in root.rglob("*.nii.gz"))
    assert found == ["sub-02/anat/sub-02_T1w.nii.gz", "sub-AnnB/anat/sub-AnnB_T1w.nii.gz"]


@pytest.mark.parametrize(
    ("words", "code", "told"),
    [
        (["a.nii"], 64, "1 path given; use T1W OUT or T1W PET OUT, and options after"),
        (["a.nii", "b.nii", "c", "d"], 64, "4 paths given"),
        (["--sloppy", "a.nii", "out"], 64, "0 paths given"),
        (["-a.nii", "out"], 64, "a name that begins with - is written ./-NAME"),
        (["{mine}/none.nii.gz", "{mine}/out"], 66, "none.nii.gz: no such file"),
        (["{mine}/scan.dcm", "{mine}/out"], 65, "convert it to one of them (DICOM"),
        (["{mine}", "{mine}/out"], 65, "is a folder; give the image in it"),
        (["{mine}/pet.nii", "{mine}/pet.nii", "{mine}/out"], 64, "as T1w and as PET"),
        (["{mine}/pet.nii", "{mine}/scan.dcm"], 73, "scan.dcm: is a file"),
        (["{mine}/pet.nii", "{mine}/foreign"], 64, "not made by mri2pet"),
        (["{mine}/pet.nii", "{mine}/originals"], 64, "was not made by mri2pet quick"),
        (["{mine}/pet.nii", "{mine}/dicom"], 64, "contains other files (IM1, for example)"),
        (["{mine}/text.nii.gz", "{mine}/out"], 65, "mine/text.nii.gz: not a NIfTI image"),
        (["{mine}/pet.nii", "{mine}/unknown.nii", "{mine}/out"], 65, "define left and right"),
        (["{mine}/frames.nii", "{mine}/pet.nii", "{mine}/out"], 65, "give the T1w first"),
        (["{mine}/pet.nii", "{mine}/out", "--participant-label", "1", "2"], 64, "one label"),
        (["{mine}/pet.nii", "{mine}/out", "--participant-label", "pet", "2"], 64, "one label"),
        (["{mine}/own/sourcedata/sub-1_T1w.nii", "{mine}/own"], 64, "participant instead"),
        (["{mine}/pet.nii", "{mine}/out", "--slopy"], 64, "did you mean --sloppy?"),
        (["{mine}/pet.nii", "/proc/out"], 73, "/proc/out: cannot be written to"),
    ],
)
def test_what_cannot_be_used_is_answered_in_one_sentence(
    files, words, code, told, capsys, monkeypatch
):
    monkeypatch.setattr(quick, "run_level", lambda _: 0)
    (files / "scan.dcm").write_bytes(b"DICM")
    (files / "dicom").mkdir()
    (files / "dicom/IM1").write_bytes(b"DICM")
    (files / "text.nii.gz").write_bytes(b"text")
    image = nib.load(files / "pet.nii")
    image.set_sform(None, 0)
    image.set_qform(None, 0)
    image.to_filename(files / "unknown.nii")
    frames = np.stack([image.get_fdata(dtype=np.float32)] * 2, axis=-1)
    nib.Nifti1Image(frames, image.affine).to_filename(files / "frames.nii")
    (files / "foreign").mkdir()
    (files / "foreign/dataset_description.json").write_text('{"Name": "mine"}')
    (files / "originals/sourcedata/sub-pet").mkdir(parents=True)
    (files / "originals/sourcedata/sub-pet/1.dcm").write_bytes(b"DICM")
    lay_out(files / "pet.nii", None, files / "own/sourcedata")
    (files / "own/sourcedata/sub-1_T1w.nii").write_bytes(b"mine")
    before = {path: path.read_bytes() for path in files.rglob("*") if path.is_file()}
    for more in ([], ["--dry-run"]):
        assert quick.main([word.format(mine=files) for word in [*words, *more]]) == code
        said = capsys.readouterr().err
        assert told in said
        assert said.count("\n") == 1
        assert {path: path.read_bytes() for path in files.rglob("*") if path.is_file()} == before


def test_a_dry_run_says_who_would_be_made_of_what_and_writes_nothing(files, capsys):
    words = [str(files / "Ann B.nii.gz"), str(files / "pet.nii"), str(files / "out")]
    assert quick.main([*words, "--dry-run"]) == 0
    said = capsys.readouterr().out
    assert f"sub-AnnB: would be made from {words[0]} and {words[1]} in {words[2]}" in said
    assert not (files / "out").exists()


def test_a_label_can_be_given(files, monkeypatch):
    """Files of several people are often called T1w.nii.gz."""
    ran = []
    monkeypatch.setattr(quick, "run_level", lambda settings: ran.append(settings) or 0)
    out = files / "out"
    words = [str(files / "Ann B.nii.gz"), str(out), "--participant-label", "sub-05"]
    assert quick.main(words) == 0
    assert [settings.participant_label for settings in ran] == [("05",)]
    assert [path.name for path in (out / "sourcedata").glob("sub-*")] == ["sub-05"]


def test_labels_do_not_depend_on_how_a_system_spells_accents():
    composed, decomposed = "J\u00fcrgen.nii", "Ju\u0308rgen.nii"
    assert quick.label_of(Path(composed)) == quick.label_of(Path(decomposed)) == "Jurgen"


def test_what_the_level_does_not_use_is_said_once(files, monkeypatch, capsys):
    monkeypatch.setattr(quick, "run_level", lambda _: 0)
    assert quick.main([str(files / "pet.nii"), str(files / "out"), "--folds", "3"]) == 0
    assert capsys.readouterr().err.count("does not use --folds") == 1


def test_another_image_of_the_same_label_replaces_nothing(files, tmp_path):
    root = tmp_path / "raw2"
    lay_out(files / "Ann B.nii.gz", None, root)
    copy = root / "sub-AnnB/anat/sub-AnnB_T1w.nii.gz"
    before = copy.read_bytes()
    other = files / "other"
    other.mkdir()
    (other / "AnnB.nii").write_bytes((files / "pet.nii").read_bytes())
    with pytest.raises(UsageError, match=r"AnnB\.nii: its label is that of another image"):
        lay_out(other / "AnnB.nii", None, root)
    assert copy.read_bytes() == before
    (other / "AnnB.nii").write_bytes(gzip.decompress((files / "Ann B.nii.gz").read_bytes()))
    lay_out(other / "AnnB.nii", None, root)  # the same, uncompressed


@pytest.mark.parametrize("name", ["Ann.nii", "Ann.nii.gz"])
def test_images_are_read_by_content_if_their_names_are_wrong_about_compression(files, name):
    packed, root = (files / "Ann B.nii.gz").read_bytes(), files / "raw2"
    given = files / name
    given.write_bytes(packed if name.endswith("nii") else gzip.decompress(packed))
    lay_out(given, None, root)
    copy = root / "sub-Ann/anat/sub-Ann_T1w.nii.gz"
    assert gzip.decompress(copy.read_bytes()) == gzip.decompress(packed)
    lay_out(given, None, root)
    other = (files / "pet.nii").read_bytes()
    given.write_bytes(gzip.compress(other) if name.endswith("nii") else other)
    with pytest.raises(UsageError, match="its label is that of another image"):
        lay_out(given, None, root)


@pytest.mark.parametrize("told", [None, {"Units": "Bq/mL"}], ids=["without", "with"])
@pytest.mark.parametrize("step", range(6))
def test_the_same_command_goes_on_wherever_it_was_stopped(files, monkeypatch, step, told):
    """Interrupted while writing: description, README, then sidecar and copy of each image."""
    out, written = files / "out", []
    (files / "Ann B.json").write_text("{}")
    if told is not None:
        (files / "pet.json").write_text(json.dumps(told))
    words = [str(files / "Ann B.nii.gz"), str(files / "pet.nii"), str(out)]

    @contextmanager
    def stopped(path):
        with replacing(path) as partial:
            yield partial
            written.append(path)
            if len(written) == step + 1:
                raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        for module in (bids_app.files, quick):
            patched.setattr(module, "replacing", stopped)
        with pytest.raises(KeyboardInterrupt):
            lay_out(*map(Path, words[:2]), out / "sourcedata")
    monkeypatch.setattr(quick, "run_level", lambda _: 0)
    assert quick.main(words) == 0
    raw = out / "sourcedata" / "sub-AnnB"
    assert read_json(raw / "pet/sub-AnnB_trc-18FFDG_pet.json") == (
        quick.FDG if told is None else told
    )
    for path in (raw / "anat/sub-AnnB_T1w.nii.gz", raw / "pet/sub-AnnB_trc-18FFDG_pet.nii.gz"):
        nifti.load(path)
    assert [path for path in out.rglob(".*") if PARTIAL.match(path.name)] == []


@pytest.mark.parametrize("left", [0, 9, 5000])
def test_what_an_unfinished_copy_has_left_is_replaced(files, tmp_path, left):
    root, given = tmp_path / "raw2", (files / "Ann B.nii.gz", files / "pet.nii")
    lay_out(*given, root)
    copies = {path: nifti.load(path).data for path in root.rglob("*.nii.gz")}
    for path in copies:
        path.write_bytes(path.read_bytes()[:left])
        (path.parent / f".{'0' * 32}.{path.name}").write_bytes(b"killed")
    lay_out(*given, root)
    for path, data in copies.items():
        np.testing.assert_array_equal(nifti.load(path).data, data)
    assert len([path for path in root.rglob("*") if path.is_file()]) == 5


def test_a_sidecar_that_was_mended_is_used_although_its_image_is_there(files, tmp_path):
    given, root = (files / "Ann B.nii.gz", files / "pet.nii"), tmp_path / "raw2"
    lay_out(*given, root)
    own = root / "sub-AnnB/pet/sub-AnnB_trc-18FFDG_pet.json"
    own.write_text('{"Units": "mine"}')  # in the copy itself, if none is given
    lay_out(*given, root)
    assert read_json(own) == {"Units": "mine"}
    (files / "pet.json").write_text('{"Units": "given"}')
    lay_out(*given, root)
    assert read_json(own) == {"Units": "given"}


@pytest.mark.parametrize("damaged", ["t1w", "pet"])
@pytest.mark.parametrize("left", [slice(None, -99), slice(50, None)], ids=["cut", "no gzip"])
def test_the_image_that_is_damaged_is_the_one_that_is_told(files, tmp_path, damaged, left):
    """Whichever it is, and not its copy of an earlier call."""
    given = {"t1w": files / "Ann B.nii.gz", "pet": files / "pet.nii.gz"}
    given["pet"].write_bytes(gzip.compress((files / "pet.nii").read_bytes()))
    lay_out(*given.values(), tmp_path / "raw2")
    given[damaged].write_bytes(given[damaged].read_bytes()[left])
    with pytest.raises(UnusableDataError, match=rf"^{given[damaged]}: cannot be read .*copy it"):
        lay_out(*given.values(), tmp_path / "raw2")


def test_help_is_told_without_files(capsys):
    with pytest.raises(SystemExit) as stop:
        quick.main(["--help"])
    assert stop.value.code == 0
    assert "mri2pet quick T1W [PET] OUT" in capsys.readouterr().out


@pytest.mark.slow
@pytest.mark.itk
def test_one_command_makes_a_synthetic_pet_of_two_files(files, tmp_path):
    out = tmp_path / "out"
    words = ["quick", str(files / "Ann B.nii.gz"), str(files / "pet.nii"), str(out)]
    done = subprocess.run(
        [sys.executable, "-m", "mri2pet", *words, "--sloppy", "--omp-nthreads", "1"],
        capture_output=True,
        text=True,
        check=False,
        cwd=tmp_path,
    )
    assert done.returncode == 0, done.stderr
    made = sorted(out.glob("sub-AnnB/pet/*_desc-synth_pet.nii.gz"))
    assert [f"synthetic PET: {path}" for path in made] == done.stdout.splitlines()[-2:]
    measured = next(path for path in made if "space-MNI" in path.name)
    told = json.loads(measured.with_name(measured.name.replace(".nii.gz", ".json")).read_text())
    assert "Measures" in told  # comparison with the real PET
    assert (out / "sub-AnnB.html").is_file()
