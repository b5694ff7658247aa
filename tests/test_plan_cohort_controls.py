from importlib.metadata import version
from pathlib import Path

import numpy as np
import pytest
from cohorts import TEMPLATE, tell, write_control, write_controls

from bids_app import nifti
from bids_app.derivatives.find import find_preprocessed
from bids_app.derivatives.paths import resolution_label, sidecar_path
from bids_app.errors import MissingInputError, NothingSelectedError, UnusableDataError, UsageError
from bids_app.files import read_json, write_json
from bids_app.imaging.volume import grid_of_box
from bids_app.plan.cohort import choose_controls
from bids_app.plan.study import find_grids, grid_of, resolve_grid
from bids_app.settings import Settings


@pytest.fixture
def out(tmp_path, rng):
    """Three controls and a patient, all with T1w and PET."""
    out = tmp_path / "out"
    write_controls(out, ["01", "02", "03", "p1"], rng)
    tell(out, {"01": "control", "02": "control", "03": "control", "p1": "patient"})
    return out


def choose(out, **changed):
    settings = Settings(Path("/raw"), out, "train", sloppy=True, **changed)
    return choose_controls(settings, version("mri2pet"))


def labels(controls):
    return [control.label for control in controls.controls]


def test_controls_are_those_of_the_query_with_their_images(out):
    controls = choose(out)
    assert labels(controls) == ["01", "02", "03"]
    assert controls.notes == ()
    assert [control.visit for control in controls.controls] == find_preprocessed(
        out, TEMPLATE, 4.0, {"01", "02", "03"}
    )
    assert all(control.pet and control.visit.t1w.is_file() for control in controls.controls)


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


def test_labels_that_find_nobody_are_told(out):
    """With another case or number of zeros, they would otherwise be ignored silently."""
    asked = ("01", "02", "1", "p1")
    controls = choose(out, participant_label=asked, exclude_participant_label=("002", "02"))
    assert labels(controls) == ["01"]
    assert [(problem.subject, problem.exit_code) for problem in controls.problems] == [
        ("1", MissingInputError.exit_code),
        ("p1", MissingInputError.exit_code),
    ]
    assert controls.problems[0].sentence == (
        "sub-1: not selected by --control-query; correct --participant-label or the query"
    )
    assert controls.notes == ("sub-002: to be excluded, but is not a control",)


def test_of_several_visits_the_first_with_both_images_is_used(tmp_path, rng):
    out = tmp_path / "out"
    write_controls(out, ["01"], rng)
    tell(out, {"01": "control", "02": "control"})
    write_control(out, "02", rng, session="a", pet=False)
    write_control(out, "02", rng, session="b")
    write_control(out, "02", rng, session="c")
    controls = choose(out)
    assert [(control.label, control.session) for control in controls.controls] == [
        ("01", None),
        ("02", "b"),
    ]
    assert controls.notes == (
        "sub-02 ses-a: not used, no real PET",
        "sub-02 ses-c: not used, an earlier session is used instead",
    )


def test_sessions_can_be_chosen(tmp_path, rng):
    out = tmp_path / "out"
    write_controls(out, [], rng)
    tell(out, {"01": "control", "02": "control"})
    for label in ("01", "02"):
        for session in ("a", "b"):
            write_control(out, label, rng, session=session)
    controls = choose(out, session_label=("b",))
    assert [(control.label, control.session) for control in controls.controls] == [
        ("01", "b"),
        ("02", "b"),
    ]
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


# No controls


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
    """Edit a sidecar as if another version had written its image."""
    sidecar = sidecar_path(image)
    write_json(sidecar, {**read_json(sidecar), "Version": version})


def test_controls_of_another_release_are_told_and_of_one_that_cannot_be_used_refused(out):
    one, two = choose(out).controls[:2]
    remake(one.visit.t1w, "0.9.0")
    remake(two.pet, "0.9.2")
    (note,) = choose(out).notes
    assert note.startswith("made by mri2pet 0.9.0: sub-01, made by mri2pet 0.9.2: sub-02; this is")
    remake(two.visit.t1w, "7.0.0")
    with pytest.raises(UnusableDataError, match=r"7\.0\.0: sub-02; .* cannot be compared"):
        choose(out)


# Failed or doubtful registrations


def judge(image, verdict, *reasons):
    told = {"Verdict": verdict, "VerdictReasons": list(reasons)} if verdict else {"Dice": 0.9}
    write_json(sidecar_path(image), {**read_json(sidecar_path(image)), "Registration": told})


def test_a_failed_registration_is_not_learned_from_and_a_doubtful_one_is_told_of(out):
    one, two, three = choose(out).controls
    judge(one.visit.t1w, "fail", "turned by 90 degrees")
    judge(two.pet, "doubt", "similarity .2", "dim")
    controls = choose(out)
    assert labels(controls) == ["02", "03"]
    assert controls.notes == (
        f"sub-02: {two.pet.name} is used, but its registration is in doubt (similarity .2; dim)",
        "sub-01: not used, the registration of its T1w to the template has failed "
        "(turned by 90 degrees)",
    )
    judge(three.pet, "fail")
    controls = choose(out)
    assert labels(controls) == ["02"]
    assert controls.notes[-2:] == (
        f"sub-03: {three.pet.name} is not used, its registration to the T1w has failed",
        "sub-03: not used, no real PET",
    )


def test_a_pet_that_fits_its_t1w_far_worse_than_the_others_do_is_told_of(out, rng):
    def give(fits):
        for control, fit in zip(choose(out).controls, fits, strict=True):
            sidecar = sidecar_path(control.pet)
            told = {"Verdict": "pass", "CorrelationWithExpectedUptake": fit}
            write_json(sidecar, {**read_json(sidecar), "Registration": told})
        return choose(out)

    assert not give([0.9, 0.9, 0.5]).notes  # which of three is right cannot be told
    tell(out, dict.fromkeys(("01", "02", "03", "04"), "control"))
    write_control(out, "04", rng)
    assert not give([0.9, 0.91, 0.82, 0.89]).notes
    controls = give([0.9, 0.91, 0.55, 0.89])
    pet = controls.controls[2].pet.name
    assert labels(controls) == ["01", "02", "03", "04"]
    assert controls.notes == (
        f"sub-03: {pet} is used, but fits its T1w worse than those of the others (correlation with "
        "the uptake expected from the T1w 0.55, median 0.90); look at whether it is of the same "
        "person, and at its registration",
    )
    assert not give([0.9, 0.7, 0.55, 0.8]).notes  # they differ anyway


def test_where_all_registrations_failed_there_is_nothing_to_use(out):
    for control in choose(out).controls:
        judge(control.visit.t1w, "fail", "upside down")
    with pytest.raises(UnusableDataError, match=r"sub-01: not used.*upside down\); sub-02") as told:
        choose(out)
    assert told.value.exit_code == 65


def test_of_two_sessions_the_one_whose_registration_failed_is_passed_over(tmp_path, rng):
    out = tmp_path / "out"
    write_controls(out, [], rng)
    tell(out, {"01": "control"})
    first, _ = (write_control(out, "01", rng, session=one) for one in ("a", "b"))
    judge(first.pets[0].in_template, "fail")
    assert [control.session for control in choose(out).controls] == ["b"]


def test_images_that_nobody_has_judged_are_told_of_once(out):
    for control in choose(out).controls[:2]:
        judge(control.visit.t1w, None)
        judge(control.pet, None)
    assert choose(out).notes == (
        "sub-01, sub-02: it is unknown whether the registrations can be trusted, because an "
        "earlier version of mri2pet made them; look at the reports",
    )


# The grid


@pytest.fixture
def grids(tmp_path):
    """Derivatives without images, and a function that writes a T1w on a grid."""
    out = tmp_path / "out"

    def write(template=TEMPLATE, resolution=4.0, box=Settings.bounding_box):
        grid = grid_of_box(box, resolution)
        name = f"sub-01_space-{template}_res-{resolution_label(resolution)}_desc-preproc_T1w.nii.gz"
        (out / "sub-01" / "anat").mkdir(parents=True, exist_ok=True)
        data = np.zeros(grid.shape, np.float32)
        nifti.save(nifti.Image(data, grid.affine), out / "sub-01" / "anat" / name)

    return out, write


def settle(out, **changed):
    return resolve_grid(Settings(Path("/raw"), out, "train", **changed))


def test_the_only_grid_is_taken_and_told_of(grids):
    out, write = grids
    assert settle(out) == (Settings(Path("/raw"), out, "train"), [])  # there is no image
    box = (-60.0, -60.0, -40.0, 60.0, 60.0, 40.0)
    write("MNI305", 5.0, box)
    settings, (note,) = settle(out)
    assert (settings.template, settings.grid_resolution) == ("MNI305", 5.0)
    assert grid_of_box(settings.bounding_box, 5.0).shape == (25, 25, 17)
    assert note.startswith("the grid is that of the images, MNI305 at 5 mm in the box -60 -60 -40")
    assert not settings.sloppy


def test_the_grid_that_was_asked_for_is_not_told_of(grids):
    out, write = grids
    write()
    for asked in ({"sloppy": True}, {"resolution": 4.0}):
        assert settle(out, **asked) == (Settings(Path("/raw"), out, "train", **asked), [])
    assert settle(out)[0].grid_resolution == 4.0


@pytest.mark.parametrize("resolution", [1.33333, 1.17188, 4 / 3, 2.00004])
@pytest.mark.parametrize("box", [Settings.bounding_box, (-60.0, -60.0, -40.0, 60.0, 60.0, 40.0)])
@pytest.mark.parametrize("digits", [4, 5, 17, None])
def test_a_resolution_of_many_digits_is_found_again(grids, resolution, box, digits):
    """File names have four digits, headers about seven; the option may have fewer or be missing."""
    out, write = grids
    write(resolution=resolution, box=box)
    (image,) = out.rglob("*.nii.gz")
    asked = {} if digits is None else {"resolution": round(resolution, digits)}
    settings, notes = settle(out, **asked)
    nifti.check_grid(image, grid_of(settings))
    assert len(notes) == (digits is None or box != Settings.bounding_box)
    assert f"_res-{resolution_label(settings.grid_resolution)}_" in image.name


def test_runs_that_ask_for_one_resolution_by_fewer_or_more_digits_are_on_one_grid(grids):
    out, write = grids
    write(resolution=4.33333)
    for path in out.rglob("*.nii.gz"):
        path.rename(path.with_name(path.name.replace("sub-01_", "sub-01_run-1_")))
    write(resolution=4.3333)
    assert len(find_grids(out)) == 1
    assert settle(out)[0].grid_resolution == 4.3333


def test_of_several_grids_one_has_to_be_chosen(grids):
    out, write = grids
    write()
    write(resolution=8.0)
    write("MNI305")
    with pytest.raises(UsageError, match=r"several grids: .*Sym at 4 mm.*Sym at 8 mm.*MNI305 at 4"):
        settle(out)
    with pytest.raises(UsageError, match="choose one with --template, --resolution"):
        settle(out)
    assert settle(out, resolution=8.0)[0].template == TEMPLATE
    assert settle(out, template="MNI305")[0].grid_resolution == 4.0
    settings, notes = settle(out, resolution=4.0)  # of two templates, the default one
    assert notes[0].startswith("images on another grid are not used: MNI152NLin2009aSym at 8 mm")
    assert settings.template == TEMPLATE


@pytest.mark.parametrize(
    "asked",
    [
        {"resolution": 1.0},
        {"template": "MNI305"},
        {"sloppy": True, "resolution": 2.0},
        {"bounding_box": (-60, -60, -40, 60, 60, 40)},
    ],
)
def test_what_was_asked_for_and_is_not_there_is_told_with_what_is(grids, asked):
    out, write = grids
    write()
    with pytest.raises(MissingInputError, match=rf"no image in .* from these: {TEMPLATE} at 4 mm"):
        settle(out, **asked)
