import json
from dataclasses import replace
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from cohorts import images, store
from safetensors.torch import load_file, save_file
from trainings import small

from bids_app.errors import MissingInputError, Mri2petError, ReadWriteError, UnusableDataError
from bids_app.files import file_sha256, read_json, read_tsv
from bids_app.interfaces.derivatives import SaveDerivatives, SaveFile
from bids_app.interfaces.training import (
    PublishGenerator,
    ScoreBaselines,
    ScoreGenerator,
    StoreVolumes,
    TrainGenerator,
)
from bids_app.synthesis.card import Card, card_values
from bids_app.synthesis.evaluation import BASELINES, basis_from_json, records_from_json
from bids_app.synthesis.inference import load_generator
from bids_app.synthesis.job import HISTORY, KEPT, Job, choose_precision, launch_job, make_fabric
from bids_app.synthesis.losses import build_translator
from bids_app.synthesis.models import TissueSpec, spec_to_dict
from bids_app.synthesis.pairs import open_volumes
from bids_app.synthesis.training import Training

SHAPE = (24, 25, 9)
AFFINE = np.array([[4.0, 0, 0, -48], [0, 4, 0, -50], [0, 0, 8, -36], [0, 0, 0, 1]])
SPEC = small("semi3d-gan-mse", epochs=3, constant_epochs=3, batch_size=3, pool_size=2)
MEANS = {"device": "cpu", "threads": 1, "use_gpu": False}
NO_LPIPS = {"lpips_weights": "", "lpips_sha256": "", "atlas": "", "basis": "b"}


def run(interface, cwd, **inputs):
    cwd.mkdir(exist_ok=True)
    return interface(**inputs).run(cwd=str(cwd)).outputs


# Storing


@pytest.fixture
def visit(tmp_path, rng):
    """Images of one visit by name, with their sidecars."""
    t1w, pet, brain = images(rng, SHAPE)

    def write(name, data, affine=AFFINE):
        nib.save(nib.Nifti1Image(data, affine), tmp_path / f"{name}.nii.gz")
        return str(tmp_path / f"{name}.nii.gz")

    inputs = {
        "volumes": {"t1w": write("t1w", t1w), "pet": write("pet", pet)},
        "real": ["t1w", "pet"],
        "brain_mask": write("mask", brain.astype(np.uint8)),
        "participant": "01",
        "session": "",
        "shape": SHAPE,
        "affine": AFFINE.tolist(),
        "folder": str(tmp_path / "stored"),
    }
    return inputs, write, {"t1w": t1w, "pet": pet, "brain": brain}


@pytest.mark.parametrize("session", [None, "b"])
def test_images_are_stored_as_they_are(tmp_path, visit, session):
    inputs, _, data = visit
    inputs["session"] = "" if session is None else session
    out = run(StoreVolumes, tmp_path / "node", **inputs)
    opened = open_volumes(tmp_path / "stored")
    assert out.folder == inputs["folder"]
    for name, volume in data.items():
        np.testing.assert_array_equal(getattr(opened, name), volume)
    assert (opened.owner.participant, opened.owner.session) == ("01", session)
    np.testing.assert_allclose(opened.owner.affine, AFFINE)


def put(inputs, name, path):
    (inputs if name in inputs else inputs["volumes"])[name] = path


def shifted(by):
    affine = AFFINE.copy()
    affine[0, 3] += by
    return affine


@pytest.mark.parametrize("name", ["t1w", "pet", "brain_mask"])
@pytest.mark.parametrize(
    "grid",
    [((24, 25, 10), AFFINE), (SHAPE, shifted(0.5)), (SHAPE, AFFINE @ np.diag([1, 1, 1.5, 1]))],
    ids=["shape", "place", "voxels"],
)
def test_an_image_on_another_grid_is_refused(tmp_path, rng, visit, name, grid):
    inputs, write, _ = visit
    shape, affine = grid
    other = images(rng, shape)[0]
    put(inputs, name, write("other", other, affine))
    with pytest.raises(UnusableDataError, match=r"other\.nii\.gz: its grid is not that of"):
        run(StoreVolumes, tmp_path / "node", **inputs)
    assert not (tmp_path / "stored").exists()


def test_a_grid_that_differs_by_rounding_is_the_same(tmp_path, visit):
    inputs, write, data = visit
    put(inputs, "pet", write("pet", data["pet"], shifted(2e-4)))
    run(StoreVolumes, tmp_path / "node", **inputs)
    assert (tmp_path / "stored" / "pet.npy").exists()


@pytest.mark.parametrize(
    ("name", "damage", "sentence"),
    [
        ("pet", lambda pet: 0 * pet, "all voxels are equal"),
        ("t1w", lambda t1w: 100 * t1w, r"has intensities beyond 0\.\.1"),
        ("pet", lambda pet: pet - 0.1, r"has intensities beyond 0\.\.1"),
        ("pet", lambda pet: np.where(pet > 0, 0.5, 0), "is constant in the brain"),
        ("t1w", lambda t1w: np.where(t1w > 0, 0.5, 0), "is constant in the brain"),
        ("pet", lambda pet: np.where(pet > 0, 0, 0.1), "is constant in the brain"),
        ("pet", lambda pet: np.where(pet > 0.5, np.nan, pet), "NaN or infinite"),
        ("brain_mask", lambda mask: 0 * mask, "all voxels are equal"),
    ],
    ids=[
        *("no counts", "too bright", "negative", "flat PET", "flat T1w", "no PET in the brain"),
        *("no numbers", "no brain"),
    ],
)
def test_an_image_that_training_cannot_use_is_refused(tmp_path, visit, name, damage, sentence):
    inputs, write, data = visit
    volume = {**data, "brain_mask": data["brain"]}[name].astype(np.float32)
    put(inputs, name, write("bad", damage(volume)))
    with pytest.raises(UnusableDataError, match=rf"bad\.nii\.gz: .*{sentence}"):
        run(StoreVolumes, tmp_path / "node", **inputs)


def test_an_image_that_is_gone_is_told(tmp_path, visit):
    inputs, _, _ = visit
    (tmp_path / "pet.nii.gz").unlink()
    with pytest.raises(MissingInputError, match=r"pet\.nii\.gz: no such file"):
        run(StoreVolumes, tmp_path / "node", **inputs)


@pytest.mark.parametrize("real", [True, False])
def test_a_synthetic_image_never_passes_for_a_measurement(tmp_path, visit, real):
    inputs, _, data = visit
    image = nib.Nifti1Image(data["pet"], AFFINE)
    image.header["descrip"] = "SYNTHETIC FDG PET, mri2pet"
    nib.save(image, tmp_path / "made.nii.gz")
    put(inputs, "pet", str(tmp_path / "made.nii.gz"))
    if not real:
        inputs["real"] = ["t1w"]
        run(StoreVolumes, tmp_path / "node", **inputs)
        return
    with pytest.raises(UnusableDataError, match=r"made\.nii\.gz: its header says SYNTHETIC"):
        run(StoreVolumes, tmp_path / "node", **inputs)


# Training


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    root, rng = tmp_path_factory.mktemp("volumes"), np.random.default_rng(3)
    return [str(store(root / name, rng, name, shape=SHAPE)) for name in ("01", "02", "03")]


def training(tmp_path, folders, **changed):
    inputs = {
        "model": "semi3d-gan-mse",
        "fold": "1",
        "spec": spec_to_dict(SPEC),
        "seed": 4,
        "training": folders[:2],
        "validation": folders[2:],
        "digests": ["a", "b", "|", "c"],
        "kept_epochs": [],
        "fwhm": 8.0,
        "times_mean": 0.0,
        "checkpoints": str(tmp_path / "checkpoints"),
        "initial": "",
        **MEANS,
    }
    return {**inputs, **changed}


def test_a_generator_is_trained_and_what_it_was_resumed_from_is_removed(tmp_path, folders):
    out = run(TrainGenerator, tmp_path / "node", **training(tmp_path, folders))
    assert not (tmp_path / "checkpoints").exists()
    visits = [Path(folder) for folder in folders]
    job = Job("1", SPEC, visits[:2], visits[2:], 3, 4, 8.0, tmp_path / "job")
    (tmp_path / "other").mkdir()
    launch_job(make_fabric("cpu", choose_precision("cpu")), job, tmp_path / "other")
    weights, history = Path(out.weights), read_tsv(Path(out.history))
    assert weights.read_bytes() == (tmp_path / "other" / KEPT).read_bytes()
    other = read_tsv(tmp_path / "other" / HISTORY)
    assert [{**row, "seconds": ""} for row in history] == [{**row, "seconds": ""} for row in other]
    assert [row["epoch"] for row in history if row["kept"] == "1"] == [str(out.kept_epoch)]
    assert out.precision == choose_precision("cpu")


def test_a_tissue_model_predicts_on_the_scale_of_the_pet(tmp_path, folders):
    spec = spec_to_dict(TissueSpec((1, 1, 1), SHAPE))
    out = run(TrainGenerator, tmp_path / "node", **training(tmp_path, folders, spec=spec))
    assert float(load_file(out.weights)["brain_mean"]) == 0
    inputs = training(tmp_path, folders, spec=spec, times_mean=2.0)
    out = run(TrainGenerator, tmp_path / "other", **inputs)
    assert float(load_file(out.weights)["brain_mean"]) == 0.5


@pytest.mark.parametrize(("kept", "last"), [([1, 2, 3], 2), ([1, 1, 1, 2], 1), ([3, 3], 3)])
def test_the_fit_to_all_ends_at_the_mean_of_the_epochs_that_folds_have_kept(
    tmp_path, folders, kept, last
):
    inputs = training(tmp_path, folders, fold="all", validation=[], kept_epochs=kept)
    out = run(TrainGenerator, tmp_path / "node", **inputs)
    rows = read_tsv(Path(out.history))
    assert [row["epoch"] for row in rows] == [str(n + 1) for n in range(last)]
    assert {row["fold"] for row in rows} == {"all"}
    assert out.kept_epoch == last


def test_a_training_that_fails_says_which_and_keeps_its_checkpoint(tmp_path, folders, monkeypatch):
    run_epoch = Training.run_epoch

    def fail(self, batches):
        if self.epoch == 1:
            raise FloatingPointError("a loss is not finite in epoch 2")
        return run_epoch(self, batches)

    monkeypatch.setattr(Training, "run_epoch", fail)
    with pytest.raises(Mri2petError, match=r"training of fold 1 stopped: .* --random-seed"):
        run(TrainGenerator, tmp_path / "node", **training(tmp_path, folders))
    assert (tmp_path / "checkpoints" / "checkpoint.safetensors").exists()


# Scoring


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    path = tmp_path_factory.mktemp("weights") / "kept.safetensors"
    generator = build_translator(SPEC, torch.Generator().manual_seed(4)).generator
    save_file(generator.state_dict(), path)
    return str(path)


@pytest.mark.parametrize("overlapping", [False, True])
def test_a_fold_is_scored_and_its_synthetic_pet_is_written(tmp_path, folders, weights, overlapping):
    out = run(
        ScoreGenerator,
        tmp_path / "node",
        model="semi3d-gan-mse",
        fold=2,
        digests=["a"],
        spec=spec_to_dict(SPEC),
        weights=weights,
        fwhm=1.5,
        overlap=overlapping,
        validation=folders[1:],
        **MEANS,
        **NO_LPIPS,
    )
    assert basis_from_json(read_json(tmp_path / "node" / "records.json")) == "b"
    records = records_from_json(read_json(tmp_path / "node" / "records.json"))
    assert out.records == str(tmp_path / "node" / "records.json")
    told = [(one.model, one.participant, one.fold) for one in records]
    lines = ("semi3d-gan-mse", "semi3d-gan-mse-overlap")
    assert told == [(line, who, 2) for who in ("02", "03") for line in lines]
    assert out.sidecar == {"GeneratorSHA256": file_sha256(Path(weights))}
    for path, folder, record in zip(out.pets, folders[1:], records[overlapping::2], strict=True):
        visit, image = open_volumes(Path(folder)), nib.load(path)
        pet = image.get_fdata(dtype=np.float32)
        assert pet.shape == SHAPE
        np.testing.assert_allclose(image.affine, visit.owner.affine)
        assert b"SYNTHETIC" in image.header["descrip"].item()
        assert 0 < pet.max() <= 1
        assert pet.min() == 0
        assert not pet[~visit.brain].any()
        error = np.abs(pet - visit.pet).mean()
        assert record.scores.mae == pytest.approx(error, abs=1e-6)


def test_weights_that_do_not_fit_are_refused(tmp_path, folders, weights):
    with pytest.raises(UnusableDataError, match=r"kept\.safetensors: does not match"):
        run(
            ScoreGenerator,
            tmp_path / "node",
            model="semi3d-gan-mse",
            fold=2,
            digests=["a"],
            spec=spec_to_dict(replace(SPEC, width=3)),
            weights=weights,
            fwhm=1.5,
            overlap=False,
            validation=folders[1:],
            **MEANS,
            **NO_LPIPS,
        )


def test_lpips_weights_that_are_gone_are_told(tmp_path, folders, weights):
    lpips = {"lpips_weights": str(tmp_path / "lpips.pth"), "lpips_sha256": "a"}
    with pytest.raises((MissingInputError, ReadWriteError), match=r"lpips\.pth"):
        run(
            ScoreGenerator,
            tmp_path / "node",
            model="semi3d-gan-mse",
            fold=2,
            digests=["a"],
            spec=spec_to_dict(SPEC),
            weights=weights,
            fwhm=1.5,
            overlap=False,
            validation=folders[1:],
            **MEANS,
            **{**NO_LPIPS, **lpips},
        )


def test_baselines_are_the_mean_of_the_training_pets_and_the_t1w(tmp_path, folders):
    out = run(
        ScoreBaselines,
        tmp_path / "node",
        model="baselines",
        fold=3,
        digests=["a"],
        training=folders[:2],
        validation=folders[2:],
        **MEANS,
        **NO_LPIPS,
    )
    assert basis_from_json(read_json(Path(out.records))) == "b"
    mean, t1w = records_from_json(read_json(Path(out.records)))
    assert (mean.model, t1w.model) == BASELINES
    first, second, left_out = (open_volumes(Path(folder)) for folder in folders)
    guess = np.where(left_out.brain, (first.pet + second.pet) / 2, 0)
    assert mean.scores.mae == pytest.approx(np.abs(guess - left_out.pet).mean(), abs=1e-6)
    error = np.abs(left_out.t1w - left_out.pet).mean()
    assert t1w.scores.mae == pytest.approx(error, abs=1e-6)
    assert {one.participant for one in (mean, t1w)} == {"03"}
    assert {one.fold for one in (mean, t1w)} == {3}


# Publishing and saving


def test_a_generator_is_published_from_what_other_nodes_left(tmp_path, folders):
    trained = [
        run(TrainGenerator, tmp_path / name, **training(tmp_path, folders, fold=name))
        for name in ("1", "2", "all")
    ]
    scored = [
        run(
            ScoreGenerator,
            tmp_path / f"score{k}",
            model="semi3d-gan-mse",
            fold=k,
            digests=["a"],
            spec=spec_to_dict(SPEC),
            weights=trained[k - 1].weights,
            fwhm=1.5,
            overlap=False,
            validation=folders[k : k + 1],
            **MEANS,
            **NO_LPIPS,
        )
        for k in (1, 2)
    ]
    rows = tuple(map(tuple, AFFINE.tolist()))
    card = Card(
        "semi3d-gan-mse",
        "7",
        SPEC,
        "MNI",
        SHAPE,
        rows,
        "",
        "three",
        "tests",
        ("01", "02", "03"),
        "ellipsoids",
        0,
    )
    out = run(
        PublishGenerator,
        tmp_path / "publish",
        card=card_values(card),
        weights=trained[2].weights,
        fold_weights=[model.weights for model in trained[:2]],
        left_out=[folders[1:2], folders[2:]],
        pets=[pet for one in scored for pet in one.pets],
        volumes=folders,
        histories=[model.history for model in trained],
        records=[one.records for one in scored],
        precision="32-true",
        folder=str(tmp_path / "generators" / "mine"),
    )
    _, read = load_generator(Path(out.folder), "cpu")
    assert read.participants == ("01", "02", "03")
    assert read.sha256 == file_sha256(Path(trained[2].weights))
    rows = read_tsv(tmp_path / "generators" / "mine" / "history.tsv")
    assert [row["fold"] for row in rows] == ["1"] * 3 + ["2"] * 3 + ["all"] * 3
    for number, one in enumerate(scored, start=1):
        fold = tmp_path / "generators" / "mine" / "folds" / f"fold-{number}"
        _, read = load_generator(fold, "cpu")
        assert read.participants == (("01", "03"), ("01", "02"))[number - 1]
        assert one.sidecar["GeneratorSHA256"] == read.sha256


def test_results_go_to_their_places_with_what_was_measured(tmp_path):
    names = ("a", "b")
    for name in names:
        (tmp_path / f"{name}.in").write_text(name)
    run(
        SaveDerivatives,
        tmp_path / "node",
        in_files=[str(tmp_path / f"{name}.in") for name in names],
        out_files=[str(tmp_path / "out" / f"{name}.tsv") for name in names],
        sidecar_files=[str(tmp_path / "out" / f"{name}.json") for name in names],
        sidecars=[{"Name": name, "SHA256": "?"} for name in names],
        measured={"SHA256": "f"},
    )
    for name in names:
        assert (tmp_path / "out" / f"{name}.tsv").read_text() == name
        told = json.loads((tmp_path / "out" / f"{name}.json").read_text())
        assert told == {"Name": name, "SHA256": "f"}


def test_a_result_without_sidecar_goes_to_its_place(tmp_path):
    (tmp_path / "in").write_text("new")
    (tmp_path / "out").write_text("old")
    out = run(
        SaveFile, tmp_path / "node", in_file=str(tmp_path / "in"), out_file=str(tmp_path / "out")
    )
    assert (tmp_path / "out").read_text() == "new"
    assert out.out_file == str(tmp_path / "out")
