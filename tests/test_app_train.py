"""The train level end to end, with --sloppy, on simulated controls without registration."""

import math
import os
import shutil
import signal
import subprocess
import sys
import time

import nibabel as nib
import numpy as np
import pytest
import torch
from cohorts import (
    GRID,
    TEMPLATE,
    copy_of,
    files,
    images,
    running_with,
    tell,
    write_control,
    write_controls,
)

from bids_app import nifti
from bids_app.app import train as training
from bids_app.app.run import RELEASE
from bids_app.cli import main, parse
from bids_app.console import Console
from bids_app.dataset.validation import find_validator
from bids_app.derivatives.find import find_preprocessed
from bids_app.errors import UnusableDataError
from bids_app.files import read_json, read_tsv, write_json
from bids_app.generators import choose_generator
from bids_app.synthesis.evaluation import METRICS
from bids_app.synthesis.inference import load_generator

pytestmark = pytest.mark.slow

SEMI3D, PATCH3D = "semi3d-cyclegan-mse", "patch3d-gan-mse"
CONDITIONED = f"{SEMI3D}-tissue"
CONTROLS = ("01", "02", "03", "04")
MADE = ("generators", "crossvalidation", ".work", "logs", "table1*", "train.html")
UNMEASURED = ("lpips", "lpips_brain")
ALONE = ("--nprocs", "1")  # each process imports torch, which takes longer than training here


def arguments(out, *options, models=(SEMI3D,)):
    small = ("--sloppy", "--folds", "2", "--epochs", "2", "--width", "2")
    machine = ("--nprocs", "2", "--omp-nthreads", "1")
    return [
        str(out.parent / "raw"),
        str(out),
        "train",
        "--models",
        *models,
        *small,
        *machine,
        *options,
    ]


def trained(out):
    """Return when each fit of the semi-3D row was computed."""
    graph = out / ".work" / RELEASE / "mri2pet_train" / "semi3d_cyclegan_mse_wf"
    fits = graph.glob("train_*/kept.safetensors")
    return {path.parent.name: path.stat().st_mtime_ns for path in fits}


@pytest.fixture(scope="module", autouse=True)
def _without_lpips():
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("MRI2PET_LPIPS_WEIGHTS", raising=False)
        yield


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Train one row, then three, then a conditioned one, into one dataset.

    Return the times of the fits and the table after each of the first two runs.
    """
    out = tmp_path_factory.mktemp("train") / "out"
    rng = np.random.default_rng(4)
    write_controls(out, CONTROLS, rng)
    for label, pet in (("05", False), ("p1", True)):
        write_control(out, label, rng, pet=pet)
    groups = {**dict.fromkeys((*CONTROLS, "05"), "control"), "p1": "patient"}
    tell(out, groups)
    seen = []
    for models in ((SEMI3D,), (SEMI3D, PATCH3D, "tissue")):
        assert main(arguments(out, *ALONE, models=models)) == 0
        seen.append((trained(out), read_tsv(out / "table1.tsv")))
    assert main(arguments(out, *ALONE, "--condition", "tissue")) == 0
    return out, seen


@pytest.fixture
def out(runs):
    return runs[0]


# Files that a run leaves


def test_rows_that_were_trained_one_after_the_other_stand_in_one_table(runs):
    first, both = (table for _, table in runs[1])
    baselines = ["baseline-mean-pet", "baseline-t1w"]
    semi3d = [SEMI3D, f"{SEMI3D}-overlap"]
    assert [row["model"] for row in first] == [*semi3d, *baselines]
    assert [row["model"] for row in both] == [*semi3d, PATCH3D, "tissue", *baselines]
    assert both[:2] == first[:2]
    assert both[4:] == first[2:]


def test_a_variable_that_names_no_file_is_told_and_lpips_is_left_out(out, monkeypatch, capsys):
    """As in a container that was built without a network."""
    monkeypatch.setenv("MRI2PET_LPIPS_WEIGHTS", "/nowhere.safetensors")
    settings = parse(arguments(out))
    assert training._lpips_weights(settings, Console()) is None
    assert "/nowhere.safetensors: no such file, though $MRI2PET" in capsys.readouterr().err


def test_the_table_is_filled_but_for_lpips_without_weights(out):
    for row in read_tsv(out / "table1.tsv"):
        assert row["n"] == "4"
        for metric in METRICS:
            for end in ("mean", "sd"):
                cell = row[f"{metric}_{end}"]
                assert cell == "n/a" if metric in UNMEASURED else math.isfinite(float(cell)), row
        swept = not (row["model"].startswith("baseline") or row["model"].endswith("-overlap"))
        assert (row["fwhm_best"] != "n/a") is swept


def test_the_mean_of_the_table_is_that_of_its_subjects(out):
    subjects = read_tsv(out / "table1_subjects.tsv")
    for row in read_tsv(out / "table1.tsv"):
        values = [
            float(subject["ssim"]) for subject in subjects if subject["model"] == row["model"]
        ]
        assert float(row["ssim_mean"]) == pytest.approx(np.mean(values), rel=1e-4)


def test_a_fit_is_not_computed_twice(runs):
    before, after = (times for times, _ in runs[1])
    assert set(before) == {"train_1", "train_2", "train_all"}
    assert after == before


def test_a_tissue_model_is_a_generator_too(out):
    choice = choose_generator("tissue", out, GRID, TEMPLATE, sloppy=True)
    generator, card = load_generator(choice.folder, "cpu")
    assert card.participants == CONTROLS
    assert choice.description()["Configuration"] == "tissue model"
    assert generator.coefficients.any()
    assert math.isfinite(card.metrics["ssim_brain"])
    history = read_tsv(choice.folder / "history.tsv")
    assert [(row["fold"], row["kept"]) for row in history] == [("1", "1"), ("2", "1"), ("all", "1")]
    page = (out / "train.html").read_text()
    assert "least squares" in page
    assert "A tissue model, which is not a network, was fitted as well" in page


def test_a_conditioned_row_stands_beside_the_one_it_is_made_of(runs):
    out, (_, (_, both)) = runs
    rows = read_tsv(out / "table1.tsv")
    assert [row["model"] for row in rows] == [
        *(SEMI3D, f"{SEMI3D}-overlap", PATCH3D, CONDITIONED, f"{CONDITIONED}-overlap"),
        *("tissue", "baseline-mean-pet", "baseline-t1w"),
    ]
    assert [row for row in rows if not row["model"].startswith(CONDITIONED)] == both
    card = read_json(out / "generators" / CONDITIONED / "card.json")
    plain = read_json(out / "generators" / SEMI3D / "card.json")
    assert {**plain["spec"], "condition": card["spec"]["condition"]} == card["spec"]
    page = " ".join((out / "train.html").read_text().split())
    assert "of conditioned semi-3D Cycle-GAN with MSE loss also received the PET" in page


def test_the_tissue_model_of_a_fold_has_not_seen_those_it_leaves_out(out):
    for fold in ("fold-1", "fold-2"):
        places = [out / "generators" / row / "folds" / fold for row in (CONDITIONED, "tissue")]
        conditioned, tissue = (load_generator(place, "cpu")[0] for place in places)
        assert torch.equal(conditioned.tissue.coefficients, tissue.coefficients)


@pytest.mark.parametrize("model", [SEMI3D, PATCH3D, CONDITIONED])
def test_generators_can_be_used(out, model):
    choice = choose_generator(model, out, GRID, TEMPLATE, sloppy=True)
    generator, card = load_generator(choice.folder, "cpu")
    assert card.participants == CONTROLS  # without prefix, as the participant level looks them up
    assert card.spec.width == 2
    assert generator.training is False
    assert math.isfinite(card.metrics["ssim_brain"])
    folds = [row["fold"] for row in read_tsv(choice.folder / "history.tsv")]
    assert folds[:4] == ["1", "1", "2", "2"]
    assert set(folds[4:]) == {"all"}


@pytest.mark.parametrize("model", [SEMI3D, PATCH3D, CONDITIONED])
def test_nobody_is_scored_by_a_generator_that_saw_them(out, model):
    cards = {
        number: load_generator(out / "generators" / model / "folds" / f"fold-{number}", "cpu")[1]
        for number in (1, 2)
    }
    scored = [one for one in read_tsv(out / "table1_subjects.tsv") if one["model"] == model]
    assert [one["participant_id"] for one in scored] == [f"sub-{label}" for label in CONTROLS]
    for one in scored:
        label, fold = one["participant_id"].removeprefix("sub-"), int(one["fold"])
        assert set(cards[fold].participants) | {label} <= set(CONTROLS)
        assert label not in cards[fold].participants
        pet = pet_of(out, model, label)
        sidecar = read_json(pet.with_name(pet.name.replace(".nii.gz", ".json")))
        assert (sidecar["Fold"], sidecar["Folds"]) == (fold, 2)
        assert sidecar["TrainedOnThisParticipant"] is False
        assert sidecar["GeneratorSHA256"] == cards[fold].sha256


def pet_of(out, model, label):
    (path,) = (out / "crossvalidation" / model).glob(f"sub-{label}/pet/*_desc-synth_pet.nii.gz")
    return path


@pytest.mark.parametrize("model", [SEMI3D, PATCH3D, CONDITIONED])
def test_a_synthetic_pet_lies_in_the_brain_and_says_that_it_is_one(out, model):
    for control in find_preprocessed(out, TEMPLATE, 4.0, CONTROLS):
        image = nib.load(pet_of(out, model, control.subject))
        pet = image.get_fdata()
        assert image.shape == GRID.shape
        np.testing.assert_allclose(image.affine, GRID.affine)
        assert 0 <= pet.min() < pet.max() <= 1
        assert not pet[nifti.load(control.brain_mask).data == 0].any()
        assert b"SYNTHETIC" in image.header["descrip"].item()


def test_the_report_tells_of_those_who_were_not_used(out):
    text = (out / "train.html").read_text()
    assert "sub-05: not used, no real PET" in text
    assert "p1" not in {one["participant_id"] for one in read_tsv(out / "table1_subjects.tsv")}


def test_nothing_unfinished_is_left(out):
    assert not [path for path in out.rglob(".*") if path.name.endswith((".npy", ".safetensors"))]
    assert not list((out / ".work" / RELEASE / "checkpoints").rglob("*.safetensors"))


@pytest.mark.skipif(find_validator() is None, reason="bids-validator-deno is not installed")
def test_the_validator_accepts_the_output(out, tmp_path):
    written = copy_of(out, tmp_path)
    told = subprocess.run([find_validator(), str(written)], check=False, capture_output=True)
    assert told.returncode == 0, told.stdout.decode()


def test_a_run_goes_on_from_a_generator_of_another_dataset(out, tmp_path, capsys):
    there = copy_of(out, tmp_path, *MADE)
    before = tmp_path / "before"
    shutil.copytree(out / "generators" / CONDITIONED, before)
    told = ("--init", str(before), "--condition", "tissue", *ALONE)
    assert main(arguments(there, *told, "--dry-run")) == 65  # its card names this dataset
    said = " ".join(capsys.readouterr().err.split())
    assert "was trained on sub-01, sub-02, sub-03, sub-04, whose scores would" in said
    card = read_json(before / "card.json")
    write_json(before / "card.json", {**card, "dataset": "elsewhere"})
    assert main(arguments(there, *told, models=(SEMI3D, "tissue"))) == 0
    for row in (CONDITIONED, "tissue"):
        for folder in (".", "folds/fold-2"):
            made = read_json(there / "generators" / row / folder / "card.json")
            assert [one["sha256"] for one in made["initialized_from"]] == [card["sha256"]]
            assert made["initialized_from"][0]["participants"] == list(CONTROLS)
    page = " ".join((there / "train.html").read_text().split())
    assert f"Training started from {CONDITIONED}, which had not been trained on any of" in page


def test_an_initial_generator_may_have_seen_a_control_who_is_not_used(out, tmp_path):
    there, before = copy_of(out, tmp_path, *MADE), tmp_path / "before"
    shutil.copytree(out / "generators" / "tissue", before)
    card = read_json(before / "card.json")
    write_json(before / "card.json", {**card, "participants": ["05"]})
    control = write_control(there, "05", np.random.default_rng(5))
    other = nifti.Image(images(np.random.default_rng(5), (9, 9, 9))[0], 5 * GRID.affine)
    nifti.save(other, control.brain_mask_in_template)
    assert main(arguments(there, "--init", str(before), *ALONE, models=("tissue",))) == 1
    made = read_json(there / "generators" / "tissue" / "card.json")
    assert made["participants"] == list(CONTROLS)
    assert made["initialized_from"][0]["participants"] == ["05"]


# Failures and interruptions


def results(out):
    """Return all results of a row's training except for durations."""
    folder = out / "generators" / SEMI3D
    weights = {
        path.relative_to(folder): path.read_bytes() for path in folder.rglob("*.safetensors")
    }
    history = [{**row, "seconds": ""} for row in read_tsv(folder / "history.tsv")]
    scores = [row for row in read_tsv(out / "table1_subjects.tsv") if row["model"] == SEMI3D]
    pets = {label: pet_of(out, SEMI3D, label).read_bytes() for label in CONTROLS}
    return weights, history, scores, pets


def test_a_killed_run_goes_on_to_the_same_results(out, tmp_path):
    """SIGKILL of the main process once a fold has its first checkpoint."""
    there = copy_of(out, tmp_path, *MADE)
    command = [sys.executable, "-m", "bids_app.cli", *arguments(there, *ALONE)]
    mark = f"MRI2PET_TEST={tmp_path}"
    environment = {**os.environ, "MRI2PET_TEST": str(tmp_path)}
    process = subprocess.Popen(command, stderr=subprocess.DEVNULL, env=environment)
    checkpoints, ends = there / ".work" / RELEASE / "checkpoints" / SEMI3D, time.monotonic() + 120
    while not list(checkpoints.glob("fold-*/checkpoint.safetensors")):
        assert process.poll() is None
        assert time.monotonic() < ends
        time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    process.wait()
    time.sleep(1)
    assert not running_with(mark)
    assert not (there / "table1.tsv").exists()
    assert main(arguments(there)) == 0
    assert results(there) == results(out)


def test_one_control_without_counts_is_left_out_and_named(out, tmp_path, capsys):
    there = copy_of(out, tmp_path, *MADE)
    write_control(there, "05", np.random.default_rng(5))
    (pet,) = there.glob("sub-02/pet/*_desc-preproc_pet.nii.gz")
    nifti.save(nifti.Image(np.zeros(GRID.shape, np.float32), GRID.affine), pet)
    assert main(arguments(there, "--epochs", "1", *ALONE)) == 1
    said = " ".join(capsys.readouterr().err.split())
    assert f"sub-02: {pet}: all voxels are equal" in said
    assert {row["n"] for row in read_tsv(there / "table1.tsv")} == {"4"}
    _, card = load_generator(there / "generators" / SEMI3D, "cpu")
    assert card.participants == ("01", "03", "04", "05")
    assert "all voxels are equal" in (there / "train.html").read_text()


def test_controls_that_are_all_unusable_end_the_run(out, tmp_path, capsys):
    there = copy_of(out, tmp_path, *MADE)
    for path in there.glob("sub-*/anat/*_desc-preproc_T1w.nii.gz"):
        other = images(np.random.default_rng(1), (40, 48, 30))[0]
        nifti.save(nifti.Image(other, GRID.affine), path)
    assert main(arguments(there, *ALONE)) == 65
    said = " ".join(capsys.readouterr().err.split())
    for label in CONTROLS:
        # the grid is that of the existing T1w, so it is the PET that is on another grid
        pet = f"sub-{label}_trc-18FFDG_space-{TEMPLATE}_res-4_desc-preproc_pet.nii.gz"
        assert f"{pet}: its grid is not that of" in said
    assert "0 subject(s)" not in said
    assert "Traceback" not in said
    assert not (there / "table1.tsv").exists()


def test_fewer_controls_than_folds(out, tmp_path, capsys):
    there = copy_of(out, tmp_path, *MADE)
    assert main(arguments(there, "--folds", "5", *ALONE)) == 65
    assert "4 subject(s) with T1w and PET are fewer than --folds 5" in capsys.readouterr().err
    assert not (there / "table1.tsv").exists()


def test_two_labels_with_the_same_images(out, tmp_path, capsys):
    there = copy_of(out, tmp_path, *MADE)
    for one in there.glob("sub-01/*/*space-*"):
        shutil.copy(one, str(one).replace("sub-01", "sub-03"))
    assert main(arguments(there, *ALONE)) == 65
    said = " ".join(capsys.readouterr().err.split())
    assert "sub-01 and sub-03 have the same images, voxel by voxel" in said
    assert "--exclude-participant-label 03" in said
    assert not (there / "table1.tsv").exists()


@pytest.mark.parametrize(
    ("names", "number", "folds", "sentence"),
    [
        (["tissue"], 2, 2, "2 control(s) with T1w and PET are too few to train any generator"),
        ([SEMI3D, "tissue"], 3, 3, f"too few to train {SEMI3D}; give --models tissue --folds 3"),
        (["tissue"], 3, 2, "leave a fold fewer than 2 to train on; give --folds 3"),
        (["tissue"], 3, 3, ""),
        ([SEMI3D, CONDITIONED], 4, 2, ""),
    ],
)
def test_few_controls(names, number, folds, sentence):
    people = [f"{n}" for n in range(number)] * 2  # one visit each
    if not sentence:
        training.refuse_few(names, people, folds)
        return
    with pytest.raises(UnusableDataError) as refusal:
        training.refuse_few(names, people, folds)
    assert sentence in f"{refusal.value}"


# Runs in which nothing needs to be trained


def test_a_dry_run_tells_and_writes_nothing(out, capsys):
    before = files(out)
    assert main(arguments(out, "--dry-run")) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert all(f"sub-{label}_trc-18FFDG" in said for label in CONTROLS)
    assert "sub-05: not used, no real PET" in said
    assert "sub-p1" not in said
    assert files(out) == before


def test_the_report_can_be_written_again_from_disk(out, tmp_path, capsys):
    there = copy_of(out, tmp_path, ".work")
    before = (there / "train.html").read_text()
    (there / "train.html").unlink()
    assert main(arguments(there, "--reports-only")) == 0
    assert (there / "train.html").read_text() == before
    (there / "table1.tsv").unlink()
    assert main(arguments(there, "--reports-only")) == 66
    assert "contains no results of the train level" in capsys.readouterr().err


def test_the_methods_paragraph_tells_what_was_done(out, tmp_path, capsys):
    assert main(arguments(out, "--boilerplate-only")) == 0
    assert "Generators of synthetic FDG PET were trained with" in capsys.readouterr().out
    assert main(arguments(tmp_path, "--boilerplate-only")) == 66
    assert "contains no results of the train level" in capsys.readouterr().err


def test_a_model_that_is_not_known(out, capsys):
    assert main(arguments(out, models=["semi3d-gan-mae"])) == 64
    assert "semi3d-gan-mae" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "code", "words"),
    [
        (("--participant-label", "p1"), 18, "no control is left"),
        (("--participant-label", "05"), 66, "sub-05: not used, no real PET"),
        (("--control-query", "group == 'nobody'"), 65, "group holds 'control', 'patient'"),
        (("--resolution", "2"), 66, "at 2 mm; run the participant level first"),
        (("--lpips-weights", "/nowhere.pth"), 66, "/nowhere.pth: no such file"),
    ],
)
def test_what_cannot_begin_says_why_and_writes_nothing(out, capsys, options, code, words):
    before = files(out)
    assert main(arguments(out, *options)) == code
    assert words in capsys.readouterr().err
    assert files(out) == before


@pytest.mark.parametrize(
    ("model", "epochs", "interval"),
    [
        ("patch3d-gan-mse", None, 5),
        ("patch3d-gan-mse", "100", 5),
        ("patch3d-gan-mse", "30", 3),
        ("patch3d-gan-mse", "5", 1),
        ("semi3d-gan", "5", 1),
    ],
)
def test_a_training_of_few_epochs_is_validated_often_enough_to_choose_one(
    tmp_path, model, epochs, interval
):
    told = () if epochs is None else ("--epochs", epochs)
    settings = parse([str(tmp_path), str(tmp_path / "out"), "train", *told])
    assert training.spec_of(model, settings).validation_interval == interval
