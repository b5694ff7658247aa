import json
from dataclasses import replace

import numpy as np
import pytest

from bids_app import generators
from bids_app.errors import MissingInputError, UnusableDataError
from bids_app.generators import choose_generator, find_generator
from bids_app.imaging.volume import Grid, grid_of_box
from bids_app.settings import Settings
from bids_app.synthesis.card import CARD, WEIGHTS, Card
from bids_app.synthesis.models import MODELS
from bids_app.synthesis.translator import build_generator
from bids_app.synthesis.weights import save_generator

GRID = Grid((40, 48, 34), np.diag([4.0, 4, 4, 1]))


@pytest.fixture
def shipped(tmp_path, monkeypatch):
    monkeypatch.setattr(generators, "SHIPPED", tmp_path / "shipped")
    for name in ("default", "sloppy"):
        (tmp_path / "shipped" / name).mkdir(parents=True)
    return tmp_path / "shipped"


@pytest.fixture
def out(tmp_path):
    """A derivative dataset with a generator in it."""
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
        "Name": "mine", "Version": "7", "SHA256": card["sha256"], "TrainedOn": "noise",
        "IntendedUse": "tests",
    }  # fmt: skip


def test_a_generator_that_does_not_fit_is_refused_before_anything_is_run(out):
    with pytest.raises(UnusableDataError, match="the run wants U on 40×48×34"):
        choose_generator("mine", out, GRID, "U", sloppy=False)
    (out / "generators" / "mine" / WEIGHTS).write_bytes(b"other")
    with pytest.raises(UnusableDataError, match="SHA-256"):
        choose_generator("mine", out, GRID, "T", sloppy=False)


@pytest.mark.parametrize(("sloppy", "resolution"), [(False, 1.0), (True, 4.0)])
def test_what_is_shipped_fits_the_default_grid(tmp_path, sloppy, resolution):
    grid = grid_of_box(Settings.bounding_box, resolution)
    choice = choose_generator("default", tmp_path, grid, Settings.template, sloppy=sloppy)
    assert "SIMULATED" in choice.card.trained_on
    assert sum(path.stat().st_size for path in choice.folder.iterdir()) < 12e6
