"""Card of a detector: read as written, with refusal of invalid or incomplete cards."""

import json
from dataclasses import asdict, replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bids_app.detection.card import (
    CALIBRATION,
    CARD,
    CONTROL_CLUSTERS,
    Control,
    DetectorCard,
    card_from,
    card_values,
    check_files,
    check_grid,
    complete_card,
    digest_files,
    read_card,
)
from bids_app.errors import MissingInputError, UnusableDataError
from bids_app.files import write_json
from bids_app.imaging.volume import Grid, grid_of_box

GRID = grid_of_box((-78, -112, -50, 78, 76, 85), 4.0)
REAL = Control("01", None, False, "", "", 1)
MADE = Control("02", "a", True, "semi3d-cyclegan-mse", "a" * 64, 2)
CARD_OF = DetectorCard(
    name="hybrid",
    version="0.1",
    detectors=("ocsvm", "zscore"),
    template="MNI152NLin2009aSym",
    shape=GRID.shape,
    affine=tuple(tuple(row) for row in GRID.affine.tolist()),
    controls=(REAL, MADE),
    folds=2,
    slabs=((0, 8), (8, 34)),
    parameters={"nu": 0.03, "gamma": "scale", "encoder": {"latents": 64}},
    dataset="doi:10.1/x",
    seed=7,
    intended_use="Research.",
    versions={"mri2pet": "0.1"},
    files={"ocsvm/fold-1/encoder.safetensors": "0" * 64},
)
labels = st.text("ab+0", min_size=1, max_size=3)
controls = st.builds(
    Control,
    labels,
    st.none() | labels,
    st.booleans(),
    st.text(max_size=3),
    st.text(max_size=3),
    st.integers(1, 9),
)
rows = st.tuples(*[st.floats(allow_nan=False, allow_infinity=False)] * 4)
cards = st.builds(
    replace,
    st.just(CARD_OF),
    name=st.text("ab0_-", min_size=1),
    shape=st.tuples(*[st.integers(1, 300)] * 3),
    affine=st.tuples(rows, rows, rows, rows),
    controls=st.lists(controls).map(tuple),
    slabs=st.lists(st.tuples(st.integers(0, 99), st.integers(0, 99))).map(tuple),
    detectors=st.lists(st.sampled_from(["ocsvm", "zscore", "pseudonormal"])).map(tuple),
    seed=st.integers(0, 2**32 - 1),
    dataset=st.text(),
)


@pytest.fixture
def folder(tmp_path):
    """Folder of a detector with two files, and the clusters of its controls."""
    publish(tmp_path)
    for name in CALIBRATION:
        (tmp_path / name).write_text(f"participant_id\nsub-01\n{name}\n")
    complete_card(tmp_path)
    return tmp_path


def publish(folder):
    (folder / "ocsvm").mkdir(exist_ok=True)
    paths = [folder / "brain_mask.nii.gz", folder / "ocsvm" / "voxels.safetensors"]
    for number, path in enumerate(paths):
        path.write_bytes(bytes([number]) * 100)
    card = replace(CARD_OF, files=digest_files(folder, paths))
    write_json(folder / CARD, card_values(card))


# Round trip


@given(cards)
def test_a_card_is_read_as_it_was_written(tmp_path_factory, card):
    folder = tmp_path_factory.mktemp("detector")
    write_json(folder / CARD, card_values(card))
    assert read_card(folder) == card


def test_a_card_is_that_of_its_plain_values():
    values = card_values(CARD_OF)
    assert json.loads(json.dumps(values)) == json.loads(json.dumps(asdict(CARD_OF)))
    assert card_from(values) == CARD_OF


def test_it_is_recorded_who_is_real():
    told = card_values(CARD_OF)["controls"]
    assert [(one["participant"], one["synthetic"]) for one in told] == [("01", False), ("02", True)]
    assert CARD_OF.generators == {"a" * 64}
    assert replace(CARD_OF, controls=(REAL, replace(MADE, generator_sha256=""))).generators == set()


# Invalid cards


def test_a_folder_without_a_card_is_told(tmp_path):
    with pytest.raises(MissingInputError, match=r"card\.json: no such file; give --detector a f"):
        read_card(tmp_path)
    with pytest.raises(MissingInputError, match=r"card\.json: no such file"):
        read_card(tmp_path / "nowhere")


def damaged(**changed):
    return json.dumps({**card_values(CARD_OF), **changed})


@pytest.mark.parametrize(
    "text",
    [
        *("", "{", "[]", "[1]", "3", "null", "{}", '"card"', "\xff"),
        damaged(surprise=1),
        damaged(shape=None),
        damaged(shape=["a", "b", "c"]),
        damaged(affine=[[1, 2], "xy"]),
        damaged(slabs=[[0, 1, 2]]),
        damaged(controls=[{"participant": "01"}]),
        damaged(controls=["01"]),
        damaged(detectors=None),
        json.dumps({k: v for k, v in card_values(CARD_OF).items() if k != "seed"}),
    ],
)
def test_what_is_no_card_is_refused(tmp_path, text):
    (tmp_path / CARD).write_bytes(text.encode("latin-1"))
    with pytest.raises(
        UnusableDataError, match=r"card\.json: not the card of a detector \(.*fetch"
    ):
        read_card(tmp_path)


# Files


def test_files_that_are_those_of_the_card_are_accepted(folder):
    check_files(folder, read_card(folder))
    (folder / "more.txt").touch()
    check_files(folder, read_card(folder))


def test_digests_are_those_of_sha256(folder):
    """SHA-256 of 100 bytes of value 0, and of 1, by sha256sum."""
    publish(folder)
    assert read_card(folder).files == {
        "brain_mask.nii.gz": "cd00e292c5970d3c5e2f0ffa5171e555bc46bfc4faddfb4a418b6840b86e79a3",
        "ocsvm/voxels.safetensors": (
            "80f93e8c7d0e1e083e6aab0b073011d858d092951eb4bb2d595cd43173e04704"
        ),
    }


@pytest.mark.parametrize("content", [b"", bytes([1]) * 99, bytes([1]) * 99 + b"\0", bytes(101)])
def test_a_file_that_was_changed_is_refused(folder, content):
    path = folder / "ocsvm" / "voxels.safetensors"
    path.write_bytes(content)
    with pytest.raises(UnusableDataError) as told:
        check_files(folder, read_card(folder))
    assert told.value.exit_code == 65
    assert f"{told.value}".startswith(f"{path}: its SHA-256 is not the card's")
    assert f"{told.value}".endswith("; fetch it again")


@pytest.mark.parametrize("name", ["brain_mask.nii.gz", "ocsvm/voxels.safetensors", *CALIBRATION])
def test_a_file_that_is_missing_is_told(folder, name):
    (folder / name).unlink()
    with pytest.raises(MissingInputError) as told:
        check_files(folder, read_card(folder))
    assert told.value.exit_code == 66
    assert f"{told.value}" == f"{folder / name}: no such file; the card beside it needs it"


# Calibration


def test_a_card_is_completed_by_what_controls_show_and_by_nothing_else(folder):
    completed = read_card(folder)
    publish(folder)
    before = read_card(folder)
    added = digest_files(folder, [folder / name for name in CALIBRATION])
    assert completed == replace(before, files={**before.files, **added})


@pytest.mark.parametrize("name", CALIBRATION)
def test_controls_that_were_changed_are_refused(folder, name):
    table = folder / name
    table.write_text(table.read_text() + "sub-02\n")
    with pytest.raises(UnusableDataError, match=f"{name}: its SHA-256 is not"):
        check_files(folder, read_card(folder))


def test_a_run_that_did_not_come_to_the_controls_has_trained_nothing_that_can_be_applied(folder):
    publish(folder)
    with pytest.raises(UnusableDataError) as told:
        check_files(folder, read_card(folder))
    assert told.value.exit_code == 65
    assert f"{told.value}".startswith(f"{folder / CARD}: does not list control_clusters.tsv")
    (folder / CONTROL_CLUSTERS).unlink()
    with pytest.raises(MissingInputError, match=r"control_clusters\.tsv: no such file"):
        check_files(folder, read_card(folder))


def test_the_card_of_an_earlier_run_does_not_vouch_for_the_controls_of_another(folder):
    (folder / CONTROL_CLUSTERS).write_text("participant_id\nsub-09\n")
    before = read_card(folder)
    complete_card(folder)
    assert read_card(folder) == before
    with pytest.raises(UnusableDataError, match="SHA-256"):
        check_files(folder, before)


# Grid


def shifted(by):
    affine = GRID.affine.copy()
    affine[0, 3] += by
    return Grid(GRID.shape, affine)


@pytest.mark.parametrize("grid", [GRID, shifted(1e-4)])
def test_the_grid_of_the_card_is_accepted(grid):
    check_grid(CARD_OF, grid, CARD_OF.template)


@pytest.mark.parametrize(
    ("grid", "template", "words"),
    [
        (GRID, "MNI152NLin6Asym", "run wants MNI152NLin6Asym on 40×48×34 voxels"),
        (shifted(0.5), CARD_OF.template, r"voxels of 4×4×4 mm from \(-77\.5, -112, -50\)"),
        (Grid((40, 48, 33), GRID.affine), CARD_OF.template, "wants .* on 40×48×33 voxels"),
        (Grid(GRID.shape, np.diag([2.0, 2, 2, 1])), CARD_OF.template, "wants .* of 2×2×2 mm from"),
    ],
    ids=["template", "place", "shape", "voxels"],
)
def test_another_grid_is_refused_and_the_difference_can_be_read(grid, template, words):
    with pytest.raises(UnusableDataError, match=words) as told:
        check_grid(CARD_OF, grid, template)
    assert told.value.exit_code == 65
    text = f"{told.value}"
    assert text.startswith("detector hybrid: its card says MNI152NLin2009aSym on 40×48×34 voxels ")
    assert text.endswith(
        "; choose its --template, --bounding-box and --resolution, or train another detector"
    )
