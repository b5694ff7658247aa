from importlib.metadata import version
from pathlib import Path

import pytest
from cohorts import TEMPLATE, write_control, write_controls

from bids_app.app.controls import choose_controls
from bids_app.derivatives.paths import sidecar_path
from bids_app.derivatives.preprocessed import find_preprocessed
from bids_app.errors import MissingInputError, NothingSelectedError, UnusableDataError, UsageError
from bids_app.files import read_json, write_json, write_tsv
from bids_app.settings import Settings


@pytest.fixture
def out(tmp_path, rng):
    """Three controls and a patient; all have T1w and PET."""
    out = tmp_path / "out"
    write_controls(out, ["01", "02", "03", "p1"], rng)
    tell(out, {"01": "control", "02": "control", "03": "control", "p1": "patient"})
    return out


def tell(out, groups, **columns):
    rows = [
        {
            "participant_id": f"sub-{label}",
            "group": group,
            **{k: columns[k][label] for k in columns},
        }
        for label, group in groups.items()
    ]
    write_tsv(out / "participants.tsv", ["participant_id", "group", *columns], rows)


def choose(out, **changed):
    settings = Settings(Path("/raw"), out, "train", sloppy=True, **changed)
    return choose_controls(settings, version("mri2pet"))


def labels(controls):
    return [one.subject for one in controls.pairs]


def test_controls_are_those_of_the_query_with_their_images(out):
    controls = choose(out)
    assert labels(controls) == ["01", "02", "03"]
    assert controls.notes == ()
    assert list(controls.pairs) == find_preprocessed(out, TEMPLATE, 4.0, {"01", "02", "03"})
    assert all(one.pets and one.t1w.is_file() for one in controls.pairs)


@pytest.mark.parametrize(
    ("query", "expected"),
    [("group == 'patient'", ["p1"]), ("age > 30 and group == 'control'", ["02", "03"])],
)
def test_who_is_a_control_is_a_question_to_the_table(out, query, expected):
    groups = {"01": "control", "02": "control", "03": "control", "p1": "patient"}
    tell(out, groups, age={"01": 20, "02": 31, "03": 70, "p1": 50})
    assert labels(choose(out, control_query=query)) == expected


@pytest.mark.parametrize(
    ("selection", "expected"),
    [
        ({"participant_label": ("02", "03", "p1")}, ["02", "03"]),
        ({"exclude_participant_label": ("02",)}, ["01", "03"]),
        ({"participant_label": ("01", "02"), "exclude_participant_label": ("01",)}, ["02"]),
    ],
)
def test_labels_narrow_the_query_down(out, selection, expected):
    assert labels(choose(out, **selection)) == expected


def test_of_several_visits_the_first_with_both_images_is_used(tmp_path, rng):
    out = tmp_path / "out"
    write_controls(out, ["01"], rng)
    tell(out, {"01": "control", "02": "control"})
    write_control(out, "02", rng, session="a", pet=False)
    write_control(out, "02", rng, session="b")
    write_control(out, "02", rng, session="c")
    controls = choose(out)
    assert [(one.subject, one.session) for one in controls.pairs] == [("01", None), ("02", "b")]
    assert controls.notes == (
        "sub-02 ses-a: not used, no real PET",
        "sub-02 ses-c: not used, an earlier session of this participant is",
    )


def test_sessions_can_be_chosen(tmp_path, rng):
    out = tmp_path / "out"
    write_controls(out, [], rng)
    tell(out, {"01": "control", "02": "control"})
    for label in ("01", "02"):
        for session in ("a", "b"):
            write_control(out, label, rng, session=session)
    controls = choose(out, session_label=("b",))
    assert [(one.subject, one.session) for one in controls.pairs] == [("01", "b"), ("02", "b")]
    assert controls.notes == ()


def test_a_control_without_pet_is_told_and_the_others_are_used(out, rng):
    tell(out, {"01": "control", "04": "control", "05": "control"})
    write_control(out, "04", rng, pet=False)
    controls = choose(out)
    assert labels(controls) == ["01"]
    assert controls.notes == (
        "sub-04: not used, no real PET",
        "sub-05: not used, no T1w on this grid",
    )


def test_a_synthetic_pet_makes_nobody_a_control(out, rng):
    tell(out, {"01": "control", "04": "control"})
    paths = write_control(out, "04", rng, pet=False)
    paths.synthetic_pet.parent.mkdir()
    paths.synthetic_pet.write_bytes(b"synthetic")
    assert labels(choose(out)) == ["01"]


# Nobody


def test_nothing_that_was_preprocessed_is_told(tmp_path, out, rng):
    with pytest.raises(MissingInputError, match=r"participants\.tsv: no such file; run the parti"):
        choose(tmp_path / "nowhere")
    empty = tmp_path / "empty"
    write_controls(empty, [], rng)
    tell(empty, {"01": "control"})
    with pytest.raises(MissingInputError, match=r"empty: no T1w .*at 4 mm; run the participant"):
        choose(empty)
    with pytest.raises(MissingInputError, match=r"out: no T1w .*at 1 mm; run the participant"):
        choose(out, resolution=1.0)


@pytest.mark.parametrize(
    "selection",
    [
        {"participant_label": ("p1",)},
        {"exclude_participant_label": ("01", "02", "03")},
        {"session_label": ("b",)},
    ],
)
def test_a_selection_that_leaves_nobody_is_told(out, selection):
    with pytest.raises(NothingSelectedError, match="no control is left after all selections"):
        choose(out, **selection)


def test_controls_that_all_lack_a_pet_are_told(out, rng):
    tell(out, {"04": "control", "05": "control"})
    for label in ("04", "05"):
        write_control(out, label, rng, pet=False)
    with pytest.raises(MissingInputError, match=r"sub-04: not used, no real PET; sub-05: .* PET"):
        choose(out)


@pytest.mark.parametrize(
    ("query", "error"),
    [
        ("group == 'nobody'", UnusableDataError),
        ("sex == 'F'", UsageError),
        ("group ==", UsageError),
    ],
)
def test_a_query_that_finds_nobody_or_cannot_be_understood_is_told(out, query, error):
    with pytest.raises(error, match=query):
        choose(out, control_query=query)


def remake(image, version):
    """Let a sidecar say that another version made its image."""
    sidecar = sidecar_path(image)
    write_json(sidecar, {**read_json(sidecar), "Version": version})


def test_controls_of_another_release_are_told_and_of_one_that_cannot_be_used_refused(out):
    one, two = choose(out).pairs[:2]
    remake(one.t1w, "0.9.0")
    remake(two.pets[0], "0.9.2")
    (note,) = choose(out).notes
    assert note.startswith("made by mri2pet 0.9.0: sub-01, made by mri2pet 0.9.2: sub-02; this is")
    remake(two.t1w, "7.0.0")
    with pytest.raises(UnusableDataError, match=r"7\.0\.0: sub-02; .* cannot be compared"):
        choose(out)
