import json
from dataclasses import replace

import numpy as np
import pytest
import torch

from bids_app.errors import MissingInputError, UnusableDataError
from bids_app.files import file_sha256
from bids_app.imaging.volume import Grid
from bids_app.synthesis.card import (
    CARD,
    REFERENCE,
    WEIGHTS,
    Card,
    card_values,
    check_grid,
    check_reference,
    check_space,
    read_card,
)
from bids_app.synthesis.inference import load_generator, save_generator
from bids_app.synthesis.losses import build_generator, build_translator
from bids_app.synthesis.models import MODELS, TissueSpec, spec_from_dict, spec_to_dict
from bids_app.synthesis.tiling import CubicPatches, SingleSlices, SliceTriplets

CONDITIONED = replace(
    MODELS["semi3d-gan"], n_blocks=1, width=2, condition=TissueSpec((3, 3, 3), (4, 5, 6))
)
SLICES = replace(MODELS["semi3d-cyclegan-mse"], n_blocks=1, width=2)
PATCHES = replace(MODELS["patch3d-gan-mse"], width=3, tiling=CubicPatches(size=12, stride=4))
GRID = Grid((40, 48, 34), np.diag([4.0, 4, 4, 1]) + np.eye(4, k=3) * -78)


def card_of(spec):
    return Card(
        name="tiny",
        version="0.1.0",
        spec=spec,
        template="MNI152NLin2009aSym",
        shape=GRID.shape,
        affine=tuple(tuple(row) for row in GRID.affine.tolist()),
        sha256="",
        trained_on="noise",
        intended_use="tests",
        participants=("01", "02"),
        dataset="none",
        seed=4,
        versions={"torch": "2"},
        metrics={"ssim": 0.5},
    )


@pytest.fixture(
    params=[SLICES, PATCHES, CONDITIONED, replace(SLICES, tiling=SingleSlices("PL"))],
    ids=["slices", "patches", "conditioned", "single"],
)
def spec(request):
    return request.param


@pytest.fixture
def generator(spec):
    return build_translator(spec, torch.Generator().manual_seed(1)).generator


@pytest.fixture
def folder(tmp_path, spec, generator):
    save_generator(generator, card_of(spec), tmp_path / "generators" / "tiny")
    return tmp_path / "generators" / "tiny"


def change_card(folder, **values):
    content = json.loads((folder / CARD).read_text())
    (folder / CARD).write_text(json.dumps({**content, **values}))


def test_a_card_rebuilds_its_generator(folder, spec, generator):
    seen = spec.tiling.channels * (1 if spec.condition is None else 2)
    tile = torch.rand(2, seen, *[12] * spec.tiling.spatial_dims)
    again, card = load_generator(folder, "cpu")
    assert torch.equal(again(tile), generator(tile))
    assert card.spec == spec
    assert not again.training


def test_a_card_is_read_as_it_was_written(tmp_path, spec, generator):
    card = save_generator(generator, card_of(spec), tmp_path)
    sha256 = file_sha256(tmp_path / WEIGHTS)
    assert len(sha256) == 64
    assert card == read_card(tmp_path) == replace(card_of(spec), sha256=sha256)


def test_the_sha256_is_that_of_the_standard(tmp_path):
    (tmp_path / "abc").write_bytes(b"abc")
    expected = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    assert file_sha256(tmp_path / "abc") == expected  # FIPS 180-2, appendix B.1


def test_equal_weights_have_equal_sha256(tmp_path, spec, generator):
    cards = [save_generator(generator, card_of(spec), tmp_path / name) for name in "ab"]
    assert cards[0] == cards[1]


def test_a_card_written_before_references_were_known_is_read(folder):
    content = json.loads((folder / CARD).read_text())
    del content["reference_sha256"]
    (folder / CARD).write_text(json.dumps(content))
    assert read_card(folder).reference_sha256 == ""


def test_triplets_without_overlap_are_told_as_before_there_was_any():
    assert spec_to_dict(SLICES)["tiling"] == {"kind": "semi3d"}
    assert spec_to_dict(PATCHES)["tiling"] == {"kind": "patch3d", "size": 12, "stride": 4}
    for tiling in (SliceTriplets(axes="AR"), SliceTriplets(1, "LP"), SingleSlices()):
        spec = replace(SLICES, tiling=tiling)
        assert spec_from_dict(spec_to_dict(spec)) == spec
    overlapping = replace(SLICES, tiling=SliceTriplets(step=1))
    assert spec_from_dict(spec_to_dict(overlapping)) == overlapping


def test_a_card_tells_what_it_was_initialized_from(folder, spec, generator):
    first = read_card(folder)
    later = replace(first, initialized_from=first.origins, sha256="")
    assert save_generator(generator, later, folder).initialized_from == first.origins
    assert read_card(folder).origins[1].participants == ("01", "02")
    change_card(folder, initialized_from=[{"name": "g"}])
    with pytest.raises(UnusableDataError, match="initialized_from cannot be"):
        read_card(folder)


def test_the_rows_of_the_paper_tell_no_condition():
    """Existing cards, and the names of checkpoints, stay valid."""
    assert not [name for name, spec in MODELS.items() if "condition" in spec_to_dict(spec)]
    assert "initialized_from" not in card_values(card_of(SLICES))


def test_a_reference_is_the_one_that_the_card_was_written_for(tmp_path):
    card = card_of(SLICES)
    with pytest.raises(UnusableDataError, match=f"tiny: its card names no {REFERENCE}.*train it"):
        check_reference(tmp_path, card)
    (tmp_path / REFERENCE).write_bytes(b"some")
    card = replace(card, reference_sha256=file_sha256(tmp_path / REFERENCE))
    assert check_reference(tmp_path, card) == tmp_path / REFERENCE
    (tmp_path / REFERENCE).write_bytes(b"other")
    with pytest.raises(UnusableDataError, match="its SHA-256 is not the card's"):
        check_reference(tmp_path, card)
    (tmp_path / REFERENCE).unlink()
    with pytest.raises(MissingInputError, match=f"{REFERENCE}: no such file"):
        check_reference(tmp_path, card)


@pytest.mark.parametrize("spec", [SLICES], indirect=True, ids=["slices"])
class TestRefused:
    def test_tampered_weights(self, folder):
        content = bytearray((folder / WEIGHTS).read_bytes())
        content[-1] ^= 1
        (folder / WEIGHTS).write_bytes(content)
        with pytest.raises(UnusableDataError, match=r"weights\.safetensors: its SHA-256 is not"):
            load_generator(folder, "cpu")

    @pytest.mark.parametrize("name", [WEIGHTS, CARD])
    def test_a_missing_file(self, folder, name):
        (folder / name).unlink()
        with pytest.raises(MissingInputError, match=f"{name}: no such file"):
            load_generator(folder, "cpu")

    @pytest.mark.parametrize("content", ["{", "[]", "{}", "\xff", '"a"', "null", "7"])
    def test_a_broken_card(self, folder, content):
        (folder / CARD).write_text(content, encoding="latin-1")
        with pytest.raises(UnusableDataError, match=r"card\.json: not the card of a generator"):
            load_generator(folder, "cpu")

    @pytest.mark.parametrize(
        "values",
        [
            {"colour": "blue"},
            {"shape": None},
            {"affine": [1, 2]},
            {"spec": {}},
            {"spec": None},
            {"spec": {"tiling": {"kind": "unheard of"}}},
            {"spec": {**spec_to_dict(SLICES), "tiling": {"kind": "semi3d", "step": 4}}},
            {"spec": {**spec_to_dict(SLICES), "condition": spec_to_dict(PATCHES)}},
            {"spec": {**spec_to_dict(SLICES), "condition": None}},
        ],
        ids=str,
    )
    def test_a_card_with_wrong_values(self, folder, values):
        change_card(folder, **values)
        with pytest.raises(UnusableDataError, match=r"card\.json: not the card of a generator"):
            load_generator(folder, "cpu")

    def test_a_card_without_a_name(self, folder):
        content = json.loads((folder / CARD).read_text())
        del content["name"]
        (folder / CARD).write_text(json.dumps(content))
        with pytest.raises(UnusableDataError, match="name"):
            read_card(folder)

    def test_weights_of_another_network(self, folder, tmp_path):
        other = replace(SLICES, width=4)
        save_generator(build_generator(other), card_of(other), tmp_path / "other")
        (folder / WEIGHTS).write_bytes((tmp_path / "other" / WEIGHTS).read_bytes())
        change_card(folder, sha256=file_sha256(folder / WEIGHTS))
        with pytest.raises(UnusableDataError, match="does not match the network in its card"):
            load_generator(folder, "cpu")

    def test_weights_that_are_none(self, folder):
        (folder / WEIGHTS).write_bytes(b"no tensors")
        change_card(folder, sha256=file_sha256(folder / WEIGHTS))
        with pytest.raises(UnusableDataError, match="does not match the network in its card"):
            load_generator(folder, "cpu")


@pytest.mark.parametrize(
    ("shape", "shift", "template"),
    [
        ((41, 48, 34), 0, "MNI152NLin2009aSym"),
        ((40, 48, 34), 0.5, "MNI152NLin2009aSym"),
        ((40, 48, 34), 0, "MNI152NLin6Asym"),
    ],
)
def test_another_grid_is_refused_and_both_are_named(shape, shift, template):
    grid = Grid(shape, GRID.affine + shift * np.eye(4, k=3))
    with pytest.raises(UnusableDataError) as refusal:
        check_grid(card_of(SLICES), grid, template)
    wanted = "×".join(str(side) for side in shape)
    assert "generator tiny: its card says MNI152NLin2009aSym on 40×48×34" in str(refusal.value)
    assert f"the run wants {template} on {wanted}" in str(refusal.value)


def test_a_tissue_model_is_used_on_any_grid_of_its_space_and_a_network_is_not():
    other = Grid((80, 96, 68), GRID.affine @ np.diag([0.5, 0.5, 0.5, 1]))
    tissue = replace(card_of(SLICES), spec=TissueSpec((1, 1, 1), GRID.shape))
    check_space(tissue, other, "MNI152NLin2009aSym")
    for card, template in ((tissue, "MNI152NLin6Asym"), (card_of(SLICES), "MNI152NLin2009aSym")):
        with pytest.raises(UnusableDataError, match="the run wants"):
            check_space(card, other, template)


def test_its_own_grid_is_accepted():
    check_grid(card_of(SLICES), Grid(GRID.shape, GRID.affine + 1e-5), "MNI152NLin2009aSym")
