import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from cohorts import store
from safetensors.torch import load_file, save_file
from scipy import ndimage

from bids_app import nifti
from bids_app.errors import UnusableDataError
from bids_app.files import file_sha256, read_tsv, write_tsv
from bids_app.synthesis import publishing, reference
from bids_app.synthesis.card import (
    CARD,
    UNCERTAINTY,
    WEIGHTS,
    Card,
    card_values,
    check_uncertainty,
    read_card,
)
from bids_app.synthesis.evaluation import METRICS, ScoreRecord, Scores, records_to_json
from bids_app.synthesis.inference import load_generator
from bids_app.synthesis.job import COLUMNS, HISTORY
from bids_app.synthesis.losses import build_translator
from bids_app.synthesis.models import MODELS
from bids_app.synthesis.pairs import open_volumes, store_volumes
from bids_app.synthesis.publishing import mean_metrics, publish
from bids_app.synthesis.reference import measure_traits
from bids_app.synthesis.uncertainty import fit_error_model, read_error_model, sample_errors

SPEC = replace(MODELS["semi3d-gan-mse"], n_blocks=1, width=2)
CARD_OF_ALL = Card(
    "semi3d-gan-mse",
    "7",
    SPEC,
    "MNI",
    (24, 25, 9),
    ((4.0, 0.0, 0.0, 0.0),) * 4,
    "",
    "two people",
    "tests",
    ("01", "02"),
    "ellipsoids",
    3,
    {"torch": "2"},
)


def record(participant, fold, value, **changed):
    scores = replace(Scores(*[value] * len(METRICS)), **changed)
    return ScoreRecord(CARD_OF_ALL.name, participant, None, fold, scores, {})


@pytest.fixture
def fitted(tmp_path, rng):
    """Results of two folds of one person each, and of the fit to both."""

    def weights(seed):
        generator = build_translator(SPEC, torch.Generator().manual_seed(seed)).generator
        save_file(generator.state_dict(), tmp_path / f"kept-{seed}.safetensors")
        return tmp_path / f"kept-{seed}.safetensors"

    def history(fold, epochs):
        rows = [{"fold": fold, "epoch": n, "kept": int(n == epochs)} for n in range(1, epochs + 1)]
        write_tsv(tmp_path / f"history-{fold}.tsv", COLUMNS, rows)
        return tmp_path / f"history-{fold}.tsv"

    folders = [store(tmp_path / name, rng, name) for name in ("01", "02")]
    return {
        "weights": weights(9),
        "fold_weights": [weights(1), weights(2)],
        "volumes": folders,
        "left_out": [folders[:1], folders[1:]],
        "pets": [],
        "histories": [history("1", 2), history("2", 3), history("all", 1)],
        "records": [
            records_to_json([record("01", 1, 0.9, lpips=float("nan"))]),
            records_to_json([record("02", 2, 0.6, lpips=float("nan")), record("03", 2, 0.0)]),
        ],
        "precision": "bf16-mixed",
    }


@pytest.fixture
def folder(fitted, tmp_path):
    publish(card_values(CARD_OF_ALL), tmp_path / "out" / "mine", **fitted)
    return tmp_path / "out" / "mine"


def assert_generates(folder, weights):
    """Check that a folder holds a usable generator with the expected weights."""
    generator, card = load_generator(folder, "cpu")
    other = build_translator(SPEC, torch.Generator().manual_seed(0)).generator
    other.load_state_dict(load_file(weights))
    assert all(
        torch.equal(parameter, two)
        for parameter, two in zip(generator.parameters(), other.parameters(), strict=True)
    )
    assert card.sha256 == file_sha256(folder / WEIGHTS)


def test_the_generator_of_all_and_those_of_the_folds_can_be_used(folder, fitted):
    assert_generates(folder, fitted["weights"])
    for number, weights in enumerate(fitted["fold_weights"], start=1):
        assert_generates(folder / "folds" / f"fold-{number}", weights)
    assert not (folder / "folds" / "fold-3").exists()


def test_the_weights_of_a_fold_are_those_that_were_scored(folder, fitted):
    """Sidecars of out-of-fold PET refer to the weights by the SHA-256 of the fold's result."""
    for number, weights in enumerate(fitted["fold_weights"], start=1):
        card = read_card(folder / "folds" / f"fold-{number}")
        assert card.sha256 == file_sha256(weights)


def test_cards_list_whom_their_generator_has_seen(folder):
    assert read_card(folder).participants == ("01", "02")
    assert read_card(folder / "folds" / "fold-1").participants == ("02",)
    assert read_card(folder / "folds" / "fold-2").participants == ("01",)
    assert "without those of fold 2" in read_card(folder / "folds" / "fold-2").trained_on


def test_cards_keep_what_was_known_and_add_precision(folder):
    for place in (folder, folder / "folds" / "fold-1"):
        card = read_card(place)
        assert card.versions == {"torch": "2", "precision": "bf16-mixed"}
        for name in ("name", "version", "spec", "template", "shape", "affine", "dataset", "seed"):
            assert getattr(card, name) == getattr(CARD_OF_ALL, name)


def test_a_t1w_is_measured_once_for_all_folds(fitted, tmp_path, monkeypatch):
    measured = []

    def measure(t1w, zooms):
        measured.append(t1w.shape)
        return measure_traits(t1w, zooms)

    for module in (publishing, reference):
        monkeypatch.setattr(module, "measure_traits", measure)
    publish(card_values(CARD_OF_ALL), tmp_path / "out", **fitted)
    assert len(measured) == len(fitted["volumes"])


def test_metrics_are_means_over_those_who_were_left_out(folder):
    whole, first, second = (
        read_card(place).metrics
        for place in (folder, folder / "folds" / "fold-1", folder / "folds" / "fold-2")
    )
    assert (first["ssim"], second["ssim"], whole["ssim"]) == (0.9, 0.3, 0.5)
    assert (first["mae_brain"], second["mae_brain"], whole["mae_brain"]) == (0.9, 0.3, 0.5)
    assert {"lpips"} == set(METRICS) - set(whole)


def test_a_metric_is_a_mean_over_people_and_not_over_folds():
    parts = [[record("01", 1, 0.9)], [record("02", 2, 0.3), record("03", 2, 0.0)]]
    metrics = mean_metrics([records_to_json(part) for part in parts])
    assert metrics == dict.fromkeys(METRICS, 0.4)


@pytest.mark.parametrize("value", [np.inf, np.nan])
def test_a_mean_that_is_no_number_is_left_out_of_the_card(value):
    told = records_to_json([record("01", 1, 0.5), record("02", 1, 0.5, psnr=value)])
    metrics = mean_metrics([told])
    assert "psnr" not in metrics
    assert metrics["ssim"] == 0.5
    json.dumps(metrics, allow_nan=False)


def test_histories_stand_one_below_the_other(folder):
    rows = read_tsv(folder / HISTORY)
    assert tuple(rows[0]) == COLUMNS
    told = [(row["fold"], row["epoch"], row["kept"]) for row in rows]
    assert told == [
        ("1", "1", "0"),
        ("1", "2", "1"),
        ("2", "1", "0"),
        ("2", "2", "0"),
        ("2", "3", "1"),
        ("all", "1", "1"),
    ]


def test_publishing_twice_changes_nothing(folder, fitted):
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    publish(card_values(CARD_OF_ALL), folder, **fitted)
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before


def test_folds_of_an_earlier_cross_validation_with_more_of_them_do_not_stay(folder, fitted):
    fewer = {**fitted, "fold_weights": fitted["fold_weights"][:1]}
    publish(card_values(CARD_OF_ALL), folder, **fewer)
    assert [path.name for path in (folder / "folds").iterdir()] == ["fold-1"]


def test_weights_of_another_network_are_refused(fitted, tmp_path):
    values = card_values(replace(CARD_OF_ALL, spec=replace(SPEC, width=3)))
    with pytest.raises(UnusableDataError, match=r"kept-1\.safetensors: does not match"):
        publish(values, tmp_path / "out", **fitted)
    assert not (tmp_path / "out" / CARD).exists()


def test_a_card_tells_of_controls_of_whom_nothing_was_learned(fitted, tmp_path):
    """A PET without a rim all around, as if stripped, has a gap in every tile."""
    one = open_volumes(fitted["volumes"][0])
    rim = one.brain & ~ndimage.binary_erosion(one.brain, iterations=1)
    arrays = {"t1w": one.t1w, "pet": one.pet, "brain": one.brain, "hole": rim}
    store_volumes(fitted["volumes"][0], one.owner, **{k: np.array(v) for k, v in arrays.items()})
    publish(card_values(CARD_OF_ALL), tmp_path / "out", **fitted)
    told = "; 1 of them without any tile, as their PET covers none"
    assert read_card(tmp_path / "out").trained_on == f"two people{told}"
    fold = "two people; without those of fold"
    for number, unused in ((1, ""), (2, told)):  # the first was trained on the other person
        card = read_card(tmp_path / "out" / "folds" / f"fold-{number}")
        assert card.trained_on == f"{fold} {number}{unused}"


# Error model


def save_pet(path, volumes):
    """Write a possible prediction for a person: the real PET and noise."""
    noise = np.random.default_rng(5).normal(0, 0.05, volumes.pet.shape)
    pet = np.where(volumes.brain, np.clip(volumes.pet + noise, 0.01, 1), 0)
    nifti.save(nifti.Image(pet.astype(np.float32), np.diag([8.0, 8, 20, 1])), path)  # as a head
    return path


@pytest.fixture
def of_four(fitted, tmp_path, rng):
    folders = [store(tmp_path / f"p{name}", rng, name) for name in "abcd"]
    pets = [save_pet(tmp_path / f"{one.name}.nii.gz", open_volumes(one)) for one in folders]
    return {**fitted, "volumes": folders, "left_out": [folders[:2], folders[2:]], "pets": pets}


def test_a_generator_knows_the_errors_of_its_folds(of_four, tmp_path):
    publish(card_values(CARD_OF_ALL), tmp_path / "out", **of_four)
    card = read_card(tmp_path / "out")
    model = read_error_model(check_uncertainty(tmp_path / "out", card))
    left_out = [one for own in of_four["left_out"] for one in own]
    people = [
        sample_errors(open_volumes(volumes), nifti.load(pet).data)
        for volumes, pet in zip(left_out, of_four["pets"], strict=True)
    ]
    expected, told = fit_error_model(people, [0, 0, 1, 1])
    assert np.array_equal(model.weights, expected.weights)
    for name, value in told.items():
        assert card.metrics[f"uncertainty_{name}"] == pytest.approx(value, abs=1e-4)
    assert not read_card(tmp_path / "out" / "folds" / "fold-1").uncertainty_sha256


def test_what_too_few_would_tell_of_errors_is_not_kept(of_four, tmp_path):
    publish(card_values(CARD_OF_ALL), tmp_path / "out", **of_four)
    few = {**of_four, "left_out": [of_four["left_out"][0], []], "pets": of_four["pets"][:2]}
    publish(card_values(CARD_OF_ALL), tmp_path / "out", **few)
    assert not (tmp_path / "out" / UNCERTAINTY).exists()
    with pytest.raises(UnusableDataError, match="on 4 controls or more"):
        check_uncertainty(tmp_path / "out", read_card(tmp_path / "out"))
