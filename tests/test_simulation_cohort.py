"""Datasets written by mri2pet-simulate, and its command line, at 4 mm."""

import hashlib
import json
import shutil
import subprocess
import sys
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from scipy import ndimage

from bids_app.files import read_tsv
from bids_app.simulate import main
from bids_app.simulation.anatomy import CORTEX, HIPPOCAMPUS, labels_in
from bids_app.simulation.cohort import template_anatomy
from bids_app.simulation.lesions import PET_ZOOMS

pytestmark = pytest.mark.slow

VALIDATOR = shutil.which("bids-validator-deno") or shutil.which(
    "bids-validator-deno", path=str(Path(sys.executable).parent)
)
LPS = np.diag([-1.0, -1.0, 1.0, 1.0])


def simulate(folder, *options):
    return main([str(folder), "--resolution", "4", *map(str, options)])


def digests(folder):
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in files
    }


def data_of(path):
    return np.asarray(nib.load(path).dataobj)


def read_itk(path):
    """Read an ITK text transform by hand as a matrix for points in RAS+."""
    lines = dict(line.split(": ") for line in path.read_text().splitlines() if ": " in line)
    numbers = [float(number) for number in lines["Parameters"].split()]
    matrix = np.eye(4)
    matrix[:3, :3] = np.reshape(numbers[:9], (3, 3))
    matrix[:3, 3] = numbers[9:]
    return LPS @ matrix @ LPS


@pytest.fixture(scope="module")
def cohort(tmp_path_factory):
    folder = tmp_path_factory.mktemp("simulated") / "raw"
    code = simulate(folder, "--paired", 1, "--t1w-only", 1, "--patients", 1, "--seed", 3)
    assert code == 0
    return folder


@pytest.fixture(scope="module")
def long_cohort(tmp_path_factory):
    folder = tmp_path_factory.mktemp("simulated") / "raw"
    options = ("--paired", 0, "--patients", 1, "--sessions", 2, "--frames", 3)
    options += ("--lesion-depth", 50, 60)
    assert simulate(folder, *options, "--vary_orientation", "--t1w_only", 1) == 0
    return folder


def test_members_and_their_images(cohort):
    rows = read_tsv(cohort / "participants.tsv")
    assert [(row["participant_id"], row["group"]) for row in rows] == [
        ("sub-control01", "control"),
        ("sub-control02", "control"),
        ("sub-patient01", "patient"),
    ]
    assert all(18 <= int(row["age"]) <= 90 and row["sex"] in ("F", "M") for row in rows)
    with_pet = {path.parent.parent.name for path in cohort.glob("sub-*/pet/*_pet.nii.gz")}
    assert with_pet == {"sub-control01", "sub-patient01"}
    assert len(list(cohort.glob("sub-*/anat/*_T1w.nii.gz"))) == 3
    masks = {path.name for path in (cohort / "derivatives/truth").glob("sub-*/anat/*_mask.nii.gz")}
    assert masks == {"sub-patient01_space-T1w_label-L_mask.nii.gz"}


@pytest.mark.skipif(VALIDATOR is None, reason="bids-validator-deno is not installed")
@pytest.mark.parametrize("part", [".", "derivatives/truth"])
@pytest.mark.parametrize("name", ["cohort", "long_cohort"])
def test_validator_finds_no_error(request, name, part):
    folder = request.getfixturevalue(name) / part
    run = subprocess.run([VALIDATOR, str(folder)], capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stdout[:3000]


def test_lesions_are_as_deep_as_asked(cohort, long_cohort):
    for folder, (least, most) in ((cohort, (10, 40)), (long_cohort, (50, 60))):
        rows = read_tsv(folder / "derivatives/truth/lesions.tsv")
        assert rows
        assert all(least <= float(row["depth"]) <= most for row in rows)
        assert f"--lesion-depth {least} {most}" in (folder / "README.md").read_text()


def test_truth_is_ignored_by_nothing_but_its_own_rules(cohort):
    about = json.loads((cohort / "derivatives/truth/dataset_description.json").read_text())
    assert about["DatasetType"] == "derivative"
    assert about["GeneratedBy"][0]["Name"] == "mri2pet-simulate"
    assert not (cohort / ".bidsignore").exists()


def test_true_transform_carries_pet_onto_t1w(cohort):
    truth = cohort / "derivatives/truth/sub-control01/pet"
    noisefree = nib.load(truth / "sub-control01_space-T1w_desc-noisefree_pet.nii.gz")
    pet = nib.load(cohort / "sub-control01/pet/sub-control01_trc-18FFDG_pet.nii.gz")
    t1w_to_pet = read_itk(truth / "sub-control01_trc-18FFDG_from-pet_to-T1w_mode-image_xfm.txt")
    wanted = np.asarray(noisefree.dataobj)
    brain = wanted > 0.3 * np.percentile(wanted, 99)

    def correlation(t1w_to_pet):
        index = np.linalg.inv(pet.affine) @ t1w_to_pet @ noisefree.affine
        onto = ndimage.affine_transform(
            np.asarray(pet.dataobj), index[:3, :3], index[:3, 3], wanted.shape, order=1
        )
        one, other = (ndimage.gaussian_filter(volume, 0.85) for volume in (onto, wanted))
        return np.corrcoef(one[brain], other[brain])[0, 1]

    best = correlation(t1w_to_pet)
    assert best > 0.98
    for shift in 3.0 * np.vstack([np.eye(3), -np.eye(3)]):  # accurate to one or two millimetres
        moved = t1w_to_pet.copy()
        moved[:3, 3] += shift
        assert correlation(moved) < best
    assert correlation(t1w_to_pet) > correlation(np.linalg.inv(t1w_to_pet)) + 0.1
    assert correlation(t1w_to_pet) > correlation(np.eye(4)) + 0.1


def test_pet_is_on_its_own_grid_in_becquerels(cohort):
    path = cohort / "sub-patient01/pet/sub-patient01_trc-18FFDG_pet.nii.gz"
    image, about = nib.load(path), json.loads(path.with_suffix("").with_suffix(".json").read_text())
    assert image.header.get_zooms()[0] in PET_ZOOMS
    assert image.ndim == 3
    assert about["Units"] == "Bq/mL"
    assert 5e3 < np.percentile(np.asarray(image.dataobj), 99) < 60e3
    t1w = nib.load(cohort / "sub-patient01/anat/sub-patient01_T1w.nii.gz")
    assert "".join(nib.aff2axcodes(t1w.affine)) == "RAS"
    off_axis = t1w.affine[:3, :3] - np.diag(np.diag(t1w.affine[:3, :3]))
    assert np.abs(off_axis).max() > 1e-3  # oblique


def test_lesion_table_tells_what_the_masks_hold(cohort):
    truth = cohort / "derivatives/truth"
    rows = read_tsv(truth / "lesions.tsv")
    assert {row["participant_id"] for row in rows} == {"sub-patient01"}
    for subject in {row["participant_id"] for row in rows}:
        stem = truth / subject / "anat" / f"{subject}_space-T1w_"
        mask = nib.load(f"{stem}label-L_mask.nii.gz")
        labels = data_of(f"{stem}desc-aseg_dseg.nii.gz")
        inside = np.asarray(mask.dataobj) > 0
        own = [row for row in rows if row["participant_id"] == subject]
        volume = inside.sum() * np.abs(np.linalg.det(mask.affine[:3, :3]))
        assert sum(float(row["volume"]) for row in own) == pytest.approx(volume, rel=1e-3)
        assert np.isin(labels[inside], (3, 42, 17, 53)).all()
        for row in own:
            assert 1000 <= float(row["volume"]) <= 8000
            assert 10 <= float(row["depth"]) <= 40
            assert (row["side"] == "left") == (float(row["mni_x"]) < 0)
            centre = [float(row[axis]) for axis in "xyz"]
            points = np.argwhere(inside) @ mask.affine[:3, :3].T + mask.affine[:3, 3]
            assert np.linalg.norm(points - centre, axis=1).min() < 8


def test_coordinates_are_near_the_world_of_a_head_from_the_template(cohort):
    path = next((cohort / "derivatives/truth/sub-control01/anat").glob("*_coordinates.nii.gz"))
    image = nib.load(path)
    mni = np.asarray(image.dataobj) / 10
    world = np.moveaxis(np.indices(mni.shape[:3]), 0, -1) @ image.affine[:3, :3].T
    error = np.linalg.norm(mni - world - image.affine[:3, 3], axis=-1)
    assert np.median(error) < 15  # the warp moves voxels by some mm


def test_sessions_and_frames(long_cohort):
    names = sorted(str(p.relative_to(long_cohort)) for p in long_cohort.glob("sub-*/*/*/*.nii.gz"))
    assert [name for name in names if "patient" in name] == [
        f"sub-patient01/ses-{n}/{kind}/sub-patient01_ses-{n}_{rest}.nii.gz"
        for n in ("01", "02")
        for kind, rest in (("anat", "T1w"), ("pet", "trc-18FFDG_pet"))
    ]
    for n in ("01", "02"):
        stem = f"sub-patient01_ses-{n}_trc-18FFDG_pet"
        folder = long_cohort / f"sub-patient01/ses-{n}/pet"
        assert data_of(folder / f"{stem}.nii.gz").shape[3] == 3
        about = json.loads((folder / f"{stem}.json").read_text())
        assert about["FrameTimesStart"] == [2400, 2800, 3200]
        assert about["FrameDuration"] == [400] * 3
    rows = read_tsv(long_cohort / "derivatives/truth/lesions.tsv")
    by_session = {n: [r for r in rows if r["session_id"] == f"ses-{n}"] for n in ("01", "02")}
    for one, other in zip(by_session["01"], by_session["02"], strict=True):
        assert [one[c] for c in ("side", "depth", "mni_x")] == [
            other[c] for c in ("side", "depth", "mni_x")
        ]
        assert float(one["volume"]) == pytest.approx(float(other["volume"]), rel=0.4)


def test_sessions_share_the_head_but_not_noise_or_position(long_cohort):
    scans = [
        nib.load(long_cohort / f"sub-patient01/ses-{n}/anat/sub-patient01_ses-{n}_T1w.nii.gz")
        for n in ("01", "02")
    ]
    assert not np.allclose(scans[0].affine, scans[1].affine)
    truth = long_cohort / "derivatives/truth/sub-patient01"
    volumes = [
        np.isin(data_of(next((truth / f"ses-{n}/anat").glob("*dseg.nii.gz"))), (3, 42)).sum()
        for n in ("01", "02")
    ]
    assert volumes[0] == pytest.approx(volumes[1], rel=0.03)


@pytest.mark.slow
def test_equal_seeds_give_equal_bytes_on_any_number_of_processes(tmp_path, cohort):
    options = ("--paired", 1, "--t1w-only", 1, "--patients", 1, "--nprocs", 2)
    assert simulate(tmp_path / "again", *options, "--seed", 3) == 0
    assert digests(tmp_path / "again") == digests(cohort)
    assert simulate(tmp_path / "other", "--paired", 0, "--t1w-only", 1, "--seed", 4) == 0
    name = "sub-control01/anat/sub-control01_T1w.nii.gz"
    assert digests(tmp_path / "other")[name] != digests(cohort)[name]


def test_people_differ(cohort):
    shapes = [
        data_of(path) for path in sorted(cohort.glob("derivatives/truth/sub-*/anat/*dseg.nii.gz"))
    ]
    volumes = {int(np.isin(labels, (3, 42)).sum()) for labels in shapes}
    assert len(volumes) == 3


@pytest.fixture(scope="module")
def label_maps(cohort, tmp_path_factory):
    folder = tmp_path_factory.mktemp("maps")
    for n, path in enumerate(sorted(cohort.glob("derivatives/truth/sub-*/anat/*dseg.nii.gz"))[:2]):
        shutil.copy(path, folder / f"map{n}.nii.gz")
    return folder


def test_anatomies_and_uptake_template(tmp_path, cohort, label_maps):
    mean = next(cohort.glob("derivatives/truth/sub-control01/pet/*noisefree_pet.nii.gz"))
    options = ("--paired", 2, "--anatomies", label_maps, "--uptake_template", mean)
    assert simulate(tmp_path / "raw", *options) == 0
    for subject in ("control01", "control02"):
        stem = tmp_path / f"raw/derivatives/truth/sub-{subject}"
        labels = data_of(next(stem.glob("anat/*dseg.nii.gz")))
        pet = data_of(next(stem.glob("pet/*noisefree_pet.nii.gz")))
        assert pet[np.isin(labels, (3, 42))].mean() > 1.2 * pet[np.isin(labels, (2, 41))].mean()


@pytest.mark.parametrize(
    ("options", "answer"),
    [
        (["--paired", "-1"], (64, "--paired")),
        (["--resolution", "0"], (64, "--resolution")),
        (["--resolution", "nan"], (64, "--resolution")),
        (["--frames", "0"], (64, "--frames")),
        (["--seed", "x"], (64, "not a whole number")),
        (["--nonsense"], (64, "--nonsense")),
        (["--paired", "0"], (64, "nobody")),
        (["--lesion-depth", "40", "10"], (64, "smaller number first")),
        (["--anatomies", "absent"], (66, "absent")),
        (["--anatomies", "empty"], (66, "no NIfTI")),
        (["--anatomies", "wrong"], (65, "label map")),
        (["--uptake-template", "absent.nii.gz"], (66, "absent.nii.gz")),
    ],
)
def test_wrong_command_lines(tmp_path, monkeypatch, capsys, options, answer):
    code, words = answer
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    (tmp_path / "wrong").mkdir()
    image = nib.Nifti1Image(np.ones((40, 40, 40), np.float32) / 3, np.diag([4.0, 4, 4, 1]))
    nib.save(image, tmp_path / "wrong/a.nii.gz")
    assert main(["out", "--resolution", "4", *options]) == code
    error = capsys.readouterr().err
    assert words in error
    assert "Traceback" not in error


def test_a_label_map_without_grey_matter_for_a_lesion_is_named(tmp_path, capsys):
    head = template_anatomy(2)
    labels = np.where(labels_in(head.labels, CORTEX, HIPPOCAMPUS), 2, head.labels)
    (tmp_path / "maps").mkdir()
    nib.save(nib.Nifti1Image(labels.astype(np.int16), head.affine), tmp_path / "maps/bare.nii.gz")
    options = ("--paired", 0, "--patients", 1, "--anatomies", tmp_path / "maps")
    assert simulate(tmp_path / "raw", *options) == 65
    error = capsys.readouterr().err
    assert "bare.nii.gz: the " in error
    assert "too little grey matter for a lesion; give a map with cortex" in error


def test_the_command_in_the_readme_makes_the_same_images(tmp_path):
    first, second = tmp_path / "first", tmp_path / "second"
    odd = ["--seed", 1234567, "--lesion-depth", 10.1234567, 40]
    assert simulate(first, "--paired", 1, "--resolution", 5.1234567, *odd) == 0
    readme = (first / "README.md").read_text()
    (line,) = (line for line in readme.splitlines() if "mri2pet-simulate BIDS_DIR" in line)
    assert main([str(second), *line.split()[2:]]) == 0
    assert digests(second) == digests(first)


def test_folder_that_is_not_empty_is_left_alone(tmp_path, capsys):
    (tmp_path / "mine.txt").write_text("mine")
    assert simulate(tmp_path) == 73
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]
    assert "not empty" in capsys.readouterr().err
    assert simulate(tmp_path / "mine.txt") == 73
    assert simulate(tmp_path / "mine.txt" / "below") == 73


def test_help_imports_nothing_heavy():
    code = "import sys, bids_app.simulate; print({'numpy', 'scipy', 'nilearn'} & set(sys.modules))"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "set()"


def test_closing_line(tmp_path, capsys):
    assert simulate(tmp_path / "raw", "--paired", 0, "--t1w-only", 1) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 1
    assert lines[0].startswith("1 participant (0 paired")
    assert str(tmp_path / "raw") in lines[0]
