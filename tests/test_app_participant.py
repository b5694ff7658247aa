"""The participant level end to end, with --sloppy, on coarse brains."""

import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import nibabel as nib
import numpy as np
import pytest
import torch
from cohorts import running_with, write_controls
from foreign import drawn, in_volume
from phantoms import add_pet, add_t1w, write_dataset

from bids_app import nifti
from bids_app.app.participant import describe_outrun, describe_replaced, describe_resynthesized
from bids_app.cli import main
from bids_app.dataset.validation import find_validator
from bids_app.derivatives.find import SourceDigests, digest_of
from bids_app.derivatives.paths import sidecar_path
from bids_app.files import file_sha256, read_tsv, write_json
from bids_app.imaging.similarity import correlation
from bids_app.importing import main as import_main
from bids_app.synthesis.card import REFERENCE, Card
from bids_app.synthesis.inference import save_generator
from bids_app.synthesis.losses import build_translator
from bids_app.synthesis.models import MODELS
from bids_app.synthesis.networks import has_bfloat16
from bids_app.synthesis.pairs import Owner, Volumes
from bids_app.synthesis.reference import gather_reference, write_reference

pytestmark = pytest.mark.slow

SPACE = "space-MNI152NLin2009aSym_res-4"
XFM = "mode-image_xfm"
FILES = {
    "sub-01/ses-a/anat": (
        "sub-01_ses-a_desc-preproc_T1w",
        "sub-01_ses-a_desc-brain_mask",
        f"sub-01_ses-a_{SPACE}_desc-preproc_T1w",
        f"sub-01_ses-a_{SPACE}_desc-brain_mask",
    ),
    "sub-01/ses-a/pet": (
        f"sub-01_ses-a_trc-18FFDG_{SPACE}_desc-synth_pet",
        "sub-01_ses-a_trc-18FFDG_space-T1w_desc-synth_pet",
    ),
    "sub-01/ses-b/pet": (
        f"sub-01_ses-b_trc-18FFDG_{SPACE}_desc-preproc_pet",
        "sub-01_ses-b_trc-18FFDG_space-T1w_desc-preproc_pet",
        f"sub-01_ses-b_trc-18FFDG_{SPACE}_desc-coverage_mask",
        "sub-01_ses-b_trc-18FFDG_space-T1w_desc-coverage_mask",
        "sub-01_ses-b_trc-18FFDG_space-T1w_desc-synthscaled_pet",
        "sub-01_ses-b_trc-18FFDG_space-T1w_desc-difference_pet",
    ),
    "sub-02/anat": ("sub-02_desc-preproc_T1w", f"sub-02_{SPACE}_desc-preproc_T1w"),
    "sub-02/pet": (
        f"sub-02_trc-18FFDG_{SPACE}_desc-synth_pet",
        "sub-02_trc-18FFDG_space-T1w_desc-synth_pet",
    ),
}
OF_THE_DATASET = (
    "sub-01.html",
    "sub-02.html",
    "participants.tsv",
    "descriptions.tsv",
    "README.md",
    "dataset_description.json",
    ".bidsignore",
    "desc-registration_metrics.tsv",
)
TRANSFORMS = (
    f"sub-01/ses-a/anat/sub-01_ses-a_from-T1w_to-MNI152NLin2009aSym_{XFM}.h5",
    f"sub-01/ses-a/anat/sub-01_ses-a_from-MNI152NLin2009aSym_to-T1w_{XFM}.h5",
    f"sub-01/ses-b/pet/sub-01_ses-b_trc-18FFDG_from-pet_to-T1w_{XFM}.txt",
)


def digests(root, pattern="sub-*/**/*"):
    """Return the digests of files."""
    return {
        str(path.relative_to(root)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(root.glob(pattern))
        if path.is_file()
    }


def command_of(process):
    """Return the command line of a process, or nothing if it has ended."""
    try:
        return Path("/proc", process, "cmdline").read_bytes().decode()
    except OSError:
        return ""


def arguments(raw, out, *options):
    return [str(raw), str(out), "participant", "--sloppy", "--nprocs", "1", *options]


@pytest.fixture(scope="module")
def raw(tmp_path_factory):
    """Two people: one with T1w and PET in different sessions, the other with only a T1w."""
    rng = np.random.default_rng(1)
    root = write_dataset(tmp_path_factory.mktemp("app") / "raw")
    add_t1w(root, "01", rng, session="a")
    add_pet(root, "01", rng, session="b")
    add_t1w(root, "02", rng)
    (root / "participants.tsv").write_text("participant_id\tgroup\nsub-01\tcontrol\n")
    return root


@pytest.fixture(scope="module")
def out(raw, tmp_path_factory):
    out = tmp_path_factory.mktemp("app") / "out"
    before = digests(raw, "**/*")
    options = ("--omp-nthreads", "1", "--skip-bids-validation")
    assert main(arguments(raw, out, *options)) == 0
    assert digests(raw, "**/*") == before  # the input is never written to
    return out


def test_all_files_of_the_contract_are_there(out):
    for folder, names in FILES.items():
        for name in names:
            assert (out / folder / f"{name}.nii.gz").is_file(), name
            assert (out / folder / f"{name}.json").is_file(), name
    for name in TRANSFORMS:
        assert (out / name).is_file(), name
    for name in OF_THE_DATASET:
        assert (out / name).is_file(), name
    rows = (out / "participants.tsv").read_text().splitlines()
    assert rows == ["participant_id\tgroup", "sub-01\tcontrol", "sub-02\tn/a"]


def test_the_grid_is_that_of_the_box(out):
    for path in out.glob(f"sub-*/**/*_{SPACE}_*.nii.gz"):
        image = nib.load(path)
        assert image.shape == (40, 48, 34), path
        assert np.allclose(image.affine[:3, 3], (-78, -112, -50)), path
        assert nib.aff2axcodes(image.affine) == ("R", "A", "S"), path


def test_intensities_lie_between_0_and_1_and_in_the_brain(out):
    for path in out.glob(f"sub-*/**/*_{SPACE}_desc-*_*.nii.gz"):
        data = nifti.load(path).data
        assert data.min() >= 0
        assert data.max() <= 1
        assert 0.05 < (data > 0).mean() < 0.6, path


def test_a_synthetic_pet_says_that_it_is_one(out):
    paths = list(out.glob("sub-*/**/*_desc-synth_pet.nii.gz"))
    assert len(paths) == 2 * 2
    for path in paths:
        sidecar = json.loads(path.with_name(path.name.replace(".nii.gz", ".json")).read_text())
        assert sidecar["Synthetic"] is True
        assert len(sidecar["Generator"]["SHA256"]) == 64
        assert b"SYNTHETIC" in nib.load(path).header["descrip"].item()
        assert not {"InjectedRadioactivity", "TimeZero", "ScanStart"} & set(sidecar)
    compared = out / "sub-01/ses-a/pet" / f"{FILES['sub-01/ses-a/pet'][0]}.json"
    assert set(json.loads(compared.read_text())["Measures"]) == {
        "SSIM",
        "PSNR",
        "SSIMBrain",
        "PSNRBrain",
    }


def test_the_synthetic_pet_is_carried_to_the_t1w_of_the_participant(out):
    """On the T1w's grid, by the transform next to it."""
    own = out / "sub-02"
    path = own / "pet/sub-02_trc-18FFDG_space-T1w_desc-synth_pet.nii.gz"
    image, t1w = nifti.load(path), nifti.load(own / "anat/sub-02_desc-preproc_T1w.nii.gz")
    assert image.data.shape == t1w.data.shape
    np.testing.assert_allclose(image.affine, t1w.affine, atol=1e-4)
    brain = nifti.load(own / "anat/sub-02_desc-brain_mask.nii.gz").data > 0
    assert (image.data[brain] > 0.05).mean() > 0.9
    assert (image.data[~brain] > 0.05).mean() < 0.05
    told = json.loads((path.with_name(path.name.replace(".nii.gz", ".json"))).read_text())
    assert told["SpatialReference"] == "bids::sub-02/anat/sub-02_desc-preproc_T1w.nii.gz"
    assert "Resolution" not in told
    assert any("to-T1w_mode-image_xfm.h5" in source for source in told["Sources"])


def test_the_citation_tells_what_sidecars_tell(out):
    text = (out / "logs/CITATION.md").read_text()
    told = [json.loads(path.read_text()) for path in out.glob("sub-*/**/*_desc-synth_pet.json")]
    assert ("Triplets of slices" in text) == any("OverlappingTripletsAveraged" in t for t in told)
    assert ("Synthetic and real PET were compared" in text) == any("Measures" in t for t in told)


def test_the_difference_on_the_t1w_is_real_minus_scaled_synthetic_pet(out):
    own = out / "sub-01"
    stem = own / "ses-b/pet/sub-01_ses-b_trc-18FFDG_space-T1w_desc-"
    real, scaled, difference, covered = (
        nifti.load(f"{stem}{name}.nii.gz").data
        for name in ("preproc_pet", "synthscaled_pet", "difference_pet", "coverage_mask")
    )
    synthetic = nifti.load(
        own / "ses-a/pet/sub-01_ses-a_trc-18FFDG_space-T1w_desc-synth_pet.nii.gz"
    )
    told = json.loads(Path(f"{stem}synthscaled_pet.json").read_text())
    assert scaled == pytest.approx(told["ScaledBy"] * synthetic.data, rel=1e-4)
    brain = nifti.load(own / "ses-a/anat/sub-01_ses-a_desc-brain_mask.nii.gz").data > 0
    assert 0.005 < (synthetic.data[brain] == 0).mean() < 0.1  # below the template's grid
    brain &= (covered > 0) & (synthetic.data > 0)
    expected = np.where(brain, 100 * (real - scaled) / scaled[brain].mean(), 0)
    assert difference == pytest.approx(expected, abs=0.05)
    assert abs(np.median(difference[brain])) < 10
    assert json.loads(Path(f"{stem}difference_pet.json").read_text())["Synthetic"] is True


def test_a_pet_tells_what_it_covers(out):
    """In its sidecar, in the table, and as a mask, for the brain on each grid."""
    brains = {
        SPACE: f"sub-01_ses-a_{SPACE}_desc-brain_mask.nii.gz",
        "space-T1w": "sub-01_ses-a_desc-brain_mask.nii.gz",
    }
    for space, name in brains.items():
        own = out / "sub-01/ses-b/pet" / f"sub-01_ses-b_trc-18FFDG_{space}_desc"
        mask = nib.load(f"{own}-coverage_mask.nii.gz")
        pet = nib.load(f"{own}-preproc_pet.nii.gz")
        brain = np.asarray(nib.load(out / "sub-01/ses-a/anat" / name).dataobj) > 0
        covered = np.asarray(mask.dataobj)
        assert (mask.get_data_dtype(), set(np.unique(covered)) - {0, 1}) == (np.uint8, set())
        np.testing.assert_allclose(mask.affine, pet.affine)
        assert not np.asarray(pet.dataobj)[covered == 0].any()
        share = json.loads(Path(f"{own}-preproc_pet.json").read_text())["BrainCoverage"]
        assert share == pytest.approx((brain & (covered > 0)).sum() / brain.sum(), abs=1e-4)
        assert share > 0.99
        assert "SpatialReference" in json.loads(Path(f"{own}-coverage_mask.json").read_text())
    rows = read_tsv(out / "desc-registration_metrics.tsv")
    told = [float(row["coverage"]) for row in rows if row["file"].endswith("_pet.nii.gz")]
    sidecar = out / f"sub-01/ses-b/pet/{FILES['sub-01/ses-b/pet'][0]}.json"
    assert told == [json.loads(sidecar.read_text())["BrainCoverage"]]


def test_the_report_begins_with_the_warning(out):
    text = (out / "sub-01.html").read_text()
    assert "SYNTHETIC" in text[text.index("<body") :][:600]
    assert "T1w of ses-a is used" in text  # the session of the PET has none


@pytest.mark.skipif(find_validator() is None, reason="bids-validator-deno is not installed")
def test_the_validator_accepts_the_output(out):
    assert subprocess.run([find_validator(), str(out)], check=False).returncode == 0


def test_a_second_run_skips_what_is_complete_and_redoes_what_is_not(raw, out, tmp_path):
    copy = shutil.copytree(out, tmp_path / "out", ignore=shutil.ignore_patterns(".work"))
    lost = copy / "sub-02" / "anat" / f"sub-02_{SPACE}_desc-preproc_T1w.nii.gz"
    lost.unlink()
    times = {path: path.stat().st_mtime_ns for path in copy.glob("sub-01/**/*.nii.gz")}
    options = ("--omp-nthreads", "1", "--skip-bids-validation", "-w", str(out / ".work"))
    assert main(arguments(raw, copy, *options)) == 0
    assert {path: path.stat().st_mtime_ns for path in times} == times
    assert digests(copy) == digests(out)
    pages = [copy / f"sub-{label}.html" for label in ("01", "02")]
    before = [page.stat().st_ino for page in pages]
    sidecar = copy / "sub-02" / "anat" / f"sub-02_{SPACE}_desc-preproc_T1w.json"
    os.utime(sidecar)
    assert main(arguments(raw, copy, *options)) == 0
    same = [page.stat().st_ino == inode for page, inode in zip(pages, before, strict=True)]
    assert same == [True, False]


def test_reports_can_be_written_again_from_disk(raw, out):
    before = (out / "sub-01.html").read_text()
    (out / "sub-01.html").unlink()
    assert main(arguments(raw, out, "--reports-only", "--skip-bids-validation")) == 0
    assert (out / "sub-01.html").read_text() == before


def test_stages_one_after_the_other_give_what_one_run_gives(raw, out, tmp_path):
    one = ("--omp-nthreads", "1", "--skip-bids-validation", "--participant-label", "02")
    work = ("-w", str(out / ".work"))
    there = tmp_path / "out"
    assert main(arguments(raw, there, *one, "--stage", "synthesize")) == 66
    assert main(arguments(raw, there, *one, *work, "--stage", "preprocess")) == 0
    assert not list(there.rglob("*desc-synth*"))
    assert main(arguments(raw, there, *one, "--stage", "synthesize")) == 0
    mine, whole = digests(there, "sub-02/**/*.nii.gz"), digests(out, "sub-02/**/*.nii.gz")
    assert mine == whole


def add_generator(out, folder, seed):
    """Write a small generator whose card says it was trained on the two people of this cohort."""
    spec = replace(MODELS["semi3d-gan-mse"], n_blocks=0, width=2)
    visits = []
    for path in sorted(out.glob(f"sub-*/**/*_{SPACE}_desc-preproc_T1w.nii.gz")):
        t1w = nifti.load(path)
        affine = tuple(map(tuple, t1w.affine.tolist()))
        visits.append(Volumes(Owner(path.name, None, affine), t1w.data, t1w.data, t1w.data > 0))
    write_reference(gather_reference(visits), folder / REFERENCE)
    card = Card(
        "small",
        "0",
        spec,
        "MNI152NLin2009aSym",
        visits[0].t1w.shape,
        affine,
        "",
        "noise",
        "tests",
        (),
        "none",
        seed,
        reference_sha256=file_sha256(folder / REFERENCE),
    )
    random = torch.Generator().manual_seed(seed)
    save_generator(build_translator(spec, random).generator, card, folder)


def sidecar_of(path):
    return json.loads(path.with_name(path.name.replace(".nii.gz", ".json")).read_text())


def test_how_sure_and_how_odd_is_told_when_asked_for(raw, out, tmp_path):
    copy = shutil.copytree(out, tmp_path / "out", ignore=shutil.ignore_patterns(".work"))
    options = ("--stage", "synthesize", "--skip-bids-validation", "--uncertainty", "--novelty")
    assert main(arguments(raw, copy, *options)) == 0
    made = sorted(copy.glob("sub-*/**/*_desc-synth_std.nii.gz"))
    assert len(made) == 2
    for path in made:
        image = path.with_name(path.name.replace("_std", "_pet"))
        spread, pet = (nifti.load(one).data for one in (path, image))
        assert (spread[pet == 0] == 0).all()
        assert 0 < spread.max() < 1
        novelty = sidecar_of(image)["Novelty"]
        assert novelty["TrainingControls"] == 24
        assert novelty["BeyondTrainingControls"] == ("Beyond" in novelty)
    assert "Uncertainty of the SYNTHETIC PET" in (copy / "sub-02.html").read_text()
    times = {path: path.stat().st_mtime_ns for path in copy.glob("sub-*/**/*.nii.gz")}
    assert main(arguments(raw, copy, *options)) == 0
    assert {path: path.stat().st_mtime_ns for path in times} == times
    if find_validator() is not None:
        assert subprocess.run([find_validator(), str(copy)], check=False).returncode == 0


def test_a_generator_that_was_trained_elsewhere_predicts(raw, out, tmp_path, capsys):
    copy = shutil.copytree(out, tmp_path / "out", ignore=shutil.ignore_patterns(".work"))
    network, folder = drawn(blocks=1), copy / "generators" / "theirs"
    torch.save(network.state_dict(), tmp_path / "latest_net_G.pth")
    told = ("--trained-on", "nobody", "--resolution", "4", "--pet-times-mean", "2.5")
    assert import_main([str(tmp_path / "latest_net_G.pth"), str(folder), *told]) == 0
    options = ("--stage", "synthesize", "--skip-bids-validation", "--smoothing-fwhm", "0")
    run = arguments(raw, copy, *options, "--generator", "theirs")
    assert main(run) == 0
    made = sorted(copy.glob(f"sub-*/**/*_{SPACE}_desc-synth_pet.nii.gz"))
    assert len(made) == 2
    for path in made:
        (t1w,) = path.parents[1].glob(f"anat/*_{SPACE}_desc-preproc_T1w.nii.gz")
        (mask,) = path.parents[1].glob(f"anat/*_{SPACE}_desc-brain_mask.nii.gz")
        brain = nifti.load(mask).data > 0
        expected = np.where(brain, in_volume(network, nifti.load(t1w).data), 0)
        half = has_bfloat16("cpu")  # initial weights amplify its rounding errors
        close = 0.05 if half else 1e-4  # precision of the stored values
        np.testing.assert_allclose(nifti.load(path).data, expected, atol=close)
        assert correlation(nifti.load(path).data, expected, brain) > 0.999
        assert sidecar_of(path)["Precision"] == ("bfloat16" if half else "float32")
        said = sidecar_of(path)["Generator"]["TrainedOn"]
        assert said.startswith("nobody (imported from latest_net_G.pth, SHA-256 ")
    assert "imported from latest_net_G.pth" in (copy / "sub-02.html").read_text()
    capsys.readouterr()
    for option in ("--uncertainty", "--novelty"):
        assert main([*run, option]) == 65
        assert f"{option}: generator theirs: its card names no" in capsys.readouterr().err


def test_what_is_beyond_the_paper_is_done_when_asked_for(raw, out, tmp_path, capsys):
    copy = shutil.copytree(out, tmp_path / "out", ignore=shutil.ignore_patterns(".work"))
    add_generator(out, copy / "generators" / "small", 0)
    options = ("--stage", "synthesize", "--generator", "small", "--skip-bids-validation")
    beyond = ("--overlap", "--match-histogram", "--novelty")
    assert main(arguments(raw, copy, *options, *beyond)) == 0
    for path in copy.glob(f"sub-*/**/*_{SPACE}_desc-synth_pet.nii.gz"):
        sidecar = sidecar_of(path)
        assert sidecar["Novelty"]["TrainingControls"] == 2
        assert sidecar["OverlappingTripletsAveraged"] is True
    capsys.readouterr()
    assert main(arguments(raw, copy, *options, "--uncertainty")) == 65
    assert "train it with this version of mri2pet" in capsys.readouterr().err


def kill_at(moment, command, folder):
    """Send SIGKILL to a run's main process only, soon after a step; return whether it was in time.

    Its workers must not outlive it. Python's resource tracker may, to clean up after them; it
    writes nothing.
    """
    mark = f"MRI2PET_TEST={folder}"
    environment = {**os.environ, "MRI2PET_TEST": str(folder)}
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment)
    for line in process.stderr:
        if moment in line:
            break
    time.sleep(0.3)
    process.send_signal(signal.SIGKILL)
    killed = process.wait() == -signal.SIGKILL
    time.sleep(1)
    assert not [one for one in running_with(mark) if "resource_tracker" not in command_of(one)]
    end = time.monotonic() + 20  # Python's cleanup may start late on a busy machine
    while running_with(mark) and time.monotonic() < end:
        time.sleep(0.1)
    assert not running_with(mark)
    return killed


def test_a_killed_run_goes_on_to_the_same_files(raw, out, tmp_path):
    """Repeatedly: early, during both registrations, and during the prediction of a PET."""
    there = tmp_path / "out"
    options = ("--omp-nthreads", "1", "--skip-bids-validation", "--participant-label", "01")
    begun = arguments(raw, there, *options, "--nprocs", "2")
    command = [sys.executable, "-m", "bids_app.cli", *begun]
    killed = []
    for moment in ("bias field started", "T1w to template done", "synthetic PET started"):
        killed.append(kill_at(moment, command, tmp_path))
        assert not [path for path in there.glob("sub-*/**/*") if path.name.startswith(".")]
    assert killed[0]  # on a busy machine, the run may end before the signal comes
    assert main(arguments(raw, there, *options)) == 0
    assert digests(there) == digests(out, "sub-01/**/*")


def test_a_dry_run_tells_and_writes_nothing(raw, tmp_path, capsys):
    assert main(arguments(raw, tmp_path / "out", "--dry-run", "--skip-bids-validation")) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "Used" in said
    assert "disk 0.0 GB for results" in said  # images on the grid of a T1w of 4 mm are small
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("dry", [["--dry-run"], []])
def test_a_sloppy_run_replaces_no_results_of_a_full_one(raw, out, tmp_path, capsys, dry):
    """Even if it is on another grid: images and transforms of the T1w have the same names."""
    there = shutil.copytree(out, tmp_path / "out", ignore=shutil.ignore_patterns(".work"))
    options = ("--skip-bids-validation", "--resolution", "5", "--participant-label", "01")
    assert main(arguments(raw, there, *options, "--dry-run")) == 0  # of another sloppy run
    said = " ".join(capsys.readouterr().err.split())
    assert "results of sub-01" in said
    assert "exist on another grid: those in template space are kept, but images on" in said
    for path in there.glob("sub-01/**/anat/*_desc-preproc_T1w.json"):
        told = json.loads(path.read_text())
        assert told.pop("Sloppy") is True
        path.write_text(json.dumps(told))
    before = digests(there)
    assert main(arguments(raw, there, *options, *dry)) == 64
    said = " ".join(capsys.readouterr().err.split())
    assert "--sloppy: would replace results of sub-01" in said
    assert digests(there) == before


@pytest.mark.parametrize(
    ("dataset", "name", "told"),
    [("ellipsoids", "T1w.nii", False), ("spheres", "T1w.nii", True), ("spheres", "none", False)],
)
def test_results_of_another_dataset_that_are_replaced_are_told_of(
    tmp_path, rng, dataset, name, told
):
    """Most datasets have a sub-01; two in one output folder replace each other's."""
    out, raw, t1w = tmp_path / "out", tmp_path / "other", tmp_path / "T1w.nii"
    write_controls(out, ["01"], rng)
    raw.mkdir()
    (raw / "dataset_description.json").write_text(json.dumps({"Name": dataset}))
    t1w.touch()
    paths = SimpleNamespace(t1w_in_template=tmp_path / name)
    plan = SimpleNamespace(visit=SimpleNamespace(subject="01"), paths=paths)
    run = SimpleNamespace(output_dir=out, bids_dir=raw)
    sentence = describe_replaced([plan], run)
    expected = "results of sub-01 from the dataset 'ellipsoids', which this run replaces by those"
    assert (expected in sentence) is told
    assert bool(sentence) is told
    (out / "dataset_description.json").unlink()  # the run writes it again
    assert not describe_replaced([plan], run)


@pytest.mark.parametrize(
    ("made_by", "name", "told"),
    [("tissue", "tissue", False), ("tissue", "default", True), (None, "default", False)],
)
def test_synthetic_pet_of_another_generator_that_is_replaced_is_told_of(
    tmp_path, made_by, name, told
):
    image = tmp_path / "pet.nii.gz"
    if made_by:
        image.touch()
        write_json(sidecar_path(image), {"Synthetic": True, "Generator": {"Name": made_by}})
    plan = SimpleNamespace(label="sub-01", paths=SimpleNamespace(synthetic_pet=image))
    run = SimpleNamespace(generator=SimpleNamespace(card=SimpleNamespace(name=name)))
    sentence = describe_resynthesized([plan], run)
    assert sentence.startswith("synthetic PET of sub-01, made by generator tissue, is") is told
    assert bool(sentence) is told
    assert not describe_resynthesized([plan], SimpleNamespace(generator=None))  # only preprocesses


@pytest.mark.parametrize("image", ["t1w", "pet"])
def test_results_of_raw_images_replaced_since_are_told_of_if_only_synthesized(tmp_path, image):
    raw, files = tmp_path / "raw", {}
    for name in ("t1w", "pet"):
        files[name] = raw / f"{name}.nii.gz", tmp_path / "out" / f"{name}.nii.gz"
        for path in files[name]:
            path.parent.mkdir(exist_ok=True)
            path.write_text(name)
        write_json(sidecar_path(files[name][1]), {"SourceSHA256": digest_of(files[name][0])})
    scans = {name: SimpleNamespace(path=path) for name, (path, _) in files.items()}
    plan = SimpleNamespace(
        label="sub-01",
        preprocessed="f",
        visit=SimpleNamespace(t1w=scans["t1w"], pets=(scans["pet"],)),
        paths=SimpleNamespace(
            t1w_in_template=files["t1w"][1], pets=(SimpleNamespace(in_template=files["pet"][1]),)
        ),
    )
    digests = SourceDigests(raw, tmp_path / "digests.json")
    run = SimpleNamespace(stage="synthesize", digests=digests)
    assert not describe_outrun([plan], run)
    files[image][0].write_text("another image")
    assert describe_outrun([plan], run).startswith("raw images of sub-01 were replaced since")
    assert not describe_outrun([plan], SimpleNamespace(stage="all", digests=digests))
