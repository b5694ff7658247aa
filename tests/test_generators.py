import json
import os
import stat
from dataclasses import replace

import numpy as np
import pytest

from bids_app import generators
from bids_app.errors import MissingInputError, UnusableDataError, UsageError
from bids_app.files import file_sha256
from bids_app.generators import (
    Options,
    choose_generator,
    describe_namesakes,
    find_generator,
    has_seen,
    known_labels,
)
from bids_app.imaging.volume import Grid, grid_of_box
from bids_app.settings import Settings
from bids_app.synthesis.card import CARD, REFERENCE, UNCERTAINTY, WEIGHTS, Card
from bids_app.synthesis.inference import load_generator, save_generator
from bids_app.synthesis.losses import build_generator
from bids_app.synthesis.models import MODELS
from bids_app.synthesis.reference import read_reference
from bids_app.synthesis.uncertainty import read_error_model

GRID = Grid((40, 48, 34), np.diag([4.0, 4, 4, 1]))


@pytest.fixture
def shipped(tmp_path, monkeypatch):
    monkeypatch.setattr(generators, "SHIPPED", tmp_path / "shipped")
    for name in ("default", "sloppy"):
        (tmp_path / "shipped" / name).mkdir(parents=True)
    return tmp_path / "shipped"


@pytest.fixture
def out(tmp_path):
    """Derivative dataset that contains a generator."""
    spec = replace(MODELS["semi3d-gan-mse"], n_blocks=0, width=1)
    affine = tuple(tuple(row) for row in GRID.affine.tolist())
    card = Card("mine", "7", spec, "T", GRID.shape, affine, "", "noise", "tests", (), "none", 0)
    save_generator(build_generator(spec), card, tmp_path / "out" / "generators" / "mine")
    return tmp_path / "out"


@pytest.mark.parametrize(("sloppy", "name"), [(False, "default"), (True, "sloppy")])
def test_the_default_comes_with_the_app(shipped, out, sloppy, name):
    assert find_generator("default", out, sloppy=sloppy) == shipped / name


def test_a_name_is_looked_up_in_the_outputs_first(out, tmp_path, monkeypatch):
    (tmp_path / "mine").mkdir()
    monkeypatch.chdir(tmp_path)
    assert find_generator("mine", out, sloppy=False) == out / "generators" / "mine"
    assert find_generator("./mine", tmp_path, sloppy=True) == tmp_path / "mine"
    assert find_generator(str(tmp_path / "mine"), out, sloppy=False) == tmp_path / "mine"


def test_a_generator_that_is_nowhere_is_missing(out):
    with pytest.raises(MissingInputError, match=r"--generator yours: no folder .*generators/yours"):
        find_generator("yours", out, sloppy=False)


def test_a_generator_is_described_by_its_card(out):
    choice = choose_generator("mine", out, GRID, "T", sloppy=False)
    card = json.loads((out / "generators" / "mine" / CARD).read_text())
    assert choice.folder == out / "generators" / "mine"
    assert choice.description() == {
        "Name": "mine",
        "Version": "7",
        "Configuration": "semi-3D",
        "SHA256": card["sha256"],
        "TrainedOn": "noise",
        "IntendedUse": "tests",
    }


def test_a_generator_that_does_not_fit_is_refused_before_anything_is_run(out):
    with pytest.raises(UnusableDataError, match="the run wants U on 40×48×34"):
        choose_generator("mine", out, GRID, "U", sloppy=False)
    (out / "generators" / "mine" / WEIGHTS).write_bytes(b"other")
    with pytest.raises(UnusableDataError, match="SHA-256"):
        choose_generator("mine", out, GRID, "T", sloppy=False)


@pytest.mark.parametrize("name", ["default", "sloppy"])
def test_what_is_shipped_predicts_pet_of_the_mean_that_real_pet_has(name):
    model, card = load_generator(generators.SHIPPED / name, "cpu")
    assert float(model.brain_mean) * card.pet_times_mean == pytest.approx(1, abs=1e-6)


@pytest.mark.parametrize(("sloppy", "resolution"), [(False, 1.0), (True, 4.0)])
def test_what_is_shipped_fits_the_default_grid(tmp_path, sloppy, resolution):
    grid = grid_of_box(Settings.bounding_box, resolution)
    choice = choose_generator("default", tmp_path, grid, Settings.template, sloppy=sloppy)
    assert "SIMULATED" in choice.card.trained_on
    assert sum(path.stat().st_size for path in choice.folder.iterdir()) < 12e6
    for options in (Options(match_histogram=True, novelty=True), Options(uncertainty=True)):
        choose_generator(
            "default", tmp_path, grid, Settings.template, sloppy=sloppy, options=options
        )
    read_reference(choice.folder / REFERENCE)
    model = read_error_model(choice.folder / UNCERTAINTY)
    for percent, factor in zip((50, 80, 95), model.factors, strict=True):
        measured = choice.card.metrics[f"uncertainty_coverage_{percent}"]
        assert measured == pytest.approx(percent / 100, abs=0.08)
        assert 0 < factor < 3


@pytest.mark.parametrize("umask", [0o077, 0o002])
def test_weights_may_be_read_by_those_who_may_read_the_card(tmp_path, umask):
    before = os.umask(umask)
    try:
        add_generator(tmp_path / "mine")
    finally:
        os.umask(before)
    modes = {stat.S_IMODE((tmp_path / "mine" / name).stat().st_mode) for name in (WEIGHTS, CARD)}
    assert modes == {0o666 & ~umask}


# Options beyond the paper


def add_generator(folder, model="semi3d-gan-mse", reference=None, grid=GRID):
    """Write a small generator, optionally with a placeholder for a reference."""
    spec = replace(MODELS[model], n_blocks=0, width=1)
    affine = tuple(tuple(row) for row in grid.affine.tolist())
    card = Card("mine", "7", spec, "T", grid.shape, affine, "", "noise", "tests", (), "none", 0)
    if reference is not None:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / REFERENCE).write_bytes(reference)
        (folder / UNCERTAINTY).write_bytes(reference)
        card = replace(
            card,
            reference_sha256=file_sha256(folder / REFERENCE),
            uncertainty_sha256=file_sha256(folder / UNCERTAINTY),
        )
    return save_generator(build_generator(spec), card, folder)


def choose(out, **options):
    return choose_generator("mine", out, GRID, "T", sloppy=False, options=Options(**options))


def test_without_options_nothing_more_is_asked_of_a_generator(out):
    choice = choose(out)
    assert choice.decisive() == {}


def test_each_option_decides_about_the_result(out):
    mine = out / "generators" / "mine"
    card = add_generator(mine, reference=b"r")
    digest = card.reference_sha256
    assert choose(out, overlap=True).decisive() == {"overlap": True}
    assert choose(out, match_histogram=True).decisive() == {
        "match_histogram": True,
        "reference": digest,
    }
    assert choose(out, novelty=True).decisive() == {"novelty": True, "reference": digest}
    assert choose(out, uncertainty=True).decisive() == {
        "uncertainty": True,
        "error_model": card.uncertainty_sha256,
    }


def test_what_is_matched_to_a_histogram_has_no_known_error(out):
    with pytest.raises(UsageError, match=r"--uncertainty: .*changed by --match-histogram"):
        choose(out, uncertainty=True, match_histogram=True)


@pytest.mark.parametrize("option", ["match_histogram", "novelty"])
def test_an_option_that_needs_a_reference_is_refused_without_one(out, option):
    flag = "--" + option.replace("_", "-")
    with pytest.raises(UnusableDataError, match=f"{flag}: generator mine: its card names no"):
        choose(out, **{option: True})


def test_uncertainty_needs_what_is_known_of_errors(out):
    mine = out / "generators" / "mine"
    add_generator(mine, reference=b"r")
    (mine / UNCERTAINTY).unlink()
    with pytest.raises(MissingInputError, match=f"{UNCERTAINTY}: no such file"):
        choose(out, uncertainty=True)
    add_generator(mine)
    with pytest.raises(UnusableDataError, match=r"--uncertainty: .* 4 controls or more, or leav"):
        choose(out, uncertainty=True)
    add_generator(mine, reference=b"r")
    (mine / UNCERTAINTY).write_bytes(b"other")
    with pytest.raises(UnusableDataError, match=r"--uncertainty: .*its SHA-256"):
        choose(out, uncertainty=True)


def test_labels_of_another_dataset_are_told_of(out):
    card = Card(
        "g",
        "0",
        MODELS["semi3d-gan"],
        "T",
        (3, 3, 3),
        (),
        "a" * 64,
        "x",
        "x",
        ("sub-01", "02"),
        "Old title",
        0,
    )
    told = describe_namesakes(card, ["01", "03"], ["New title", "10.1/x"], out)
    assert "sub-01 of the dataset 'Old title'" in told
    assert "'New title' or '10.1/x'" in told
    assert describe_namesakes(card, ["03"], ["New title"], out) == ""
    for known in (["10.1/x", "old  title"], ["Old title"]):
        assert describe_namesakes(card, ["01"], known, out) == ""
        assert has_seen(card, "01", known, out)
        assert not has_seen(card, "03", known, out)


def test_whom_an_initial_generator_has_seen_the_one_that_went_on_from_it_has_seen(out):
    grid = tuple(tuple(row) for row in GRID.affine.tolist())
    spec = MODELS["semi3d-gan"]
    first = Card("a", "0", spec, "T", GRID.shape, grid, "a" * 64, "x", "x", ("01",), "Old", 0)
    second = replace(first, name="b", participants=("02",), dataset="New")
    second = replace(second, initialized_from=first.origins)
    third = replace(second, name="c", participants=("03",), initialized_from=second.origins)
    assert [origin.name for origin in third.origins] == ["c", "b", "a"]
    for label, dataset in (("01", "Old"), ("02", "New"), ("03", "New")):
        assert has_seen(third, label, [dataset], out)
    assert not has_seen(third, "01", ["New"], out)  # another person with the same label
    assert "sub-01 of the dataset 'Old'" in describe_namesakes(third, ["01"], ["New"], out)
    assert known_labels(third) == {"01", "02", "03"}


def test_overlap_is_of_no_consequence_to_cubes(out):
    add_generator(out / "generators" / "mine", "patch3d-gan-mse")
    assert choose(out, overlap=True) == choose(out)
