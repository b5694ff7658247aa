"""Selection of people for the group level, by the names and sidecars of their images."""

import re
import shutil
from contextlib import nullcontext
from dataclasses import replace
from functools import partial
from importlib.metadata import version
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from cohorts import (
    RESOLUTION,
    TEMPLATE,
    tell,
    write_control,
    write_controls,
    write_out_of_fold,
    write_synthetic,
)

from bids_app import nifti
from bids_app.derivatives.detections import native_t1w, template_to_t1w
from bids_app.derivatives.find import digest_of, find_preprocessed
from bids_app.derivatives.paths import sidecar_path
from bids_app.errors import MissingInputError, NothingSelectedError, UnusableDataError, UsageError
from bids_app.files import read_json, write_json
from bids_app.plan.cohort import SyntheticMaker, choose_controls, choose_subjects
from bids_app.plan.detectors import WINDOW, describe_other_windows
from bids_app.plan.group import _in_years, keep_usable, take_covariates
from bids_app.plan.problems import error_of
from bids_app.plan.study import plan_study
from bids_app.settings import Settings
from bids_app.synthesis.card import Card, card_values
from bids_app.synthesis.models import MODELS

GROUPS = {"01": "control", "02": "control", "03": "control", "p1": "patient", "p2": "patient"}


@pytest.fixture(scope="module")
def cohort(tmp_path_factory):
    """Three controls and two patients with real PET; 03 and p1 also have a synthetic one."""
    out, rng = tmp_path_factory.mktemp("cohort") / "out", np.random.default_rng(2)
    paths = write_controls(out, GROUPS, rng)
    for label in ("03", "p1"):
        write_synthetic(out, paths[label], rng)
    tell(out, GROUPS)
    return out


@pytest.fixture
def out(cohort, tmp_path):
    return shutil.copytree(cohort, tmp_path / "out")


def choose(out, *, controls=True, **changed):
    settings = Settings(Path("/raw"), out, "group", sloppy=True, **changed)
    return choose_subjects(settings, controls=controls, version=version("mri2pet"))


def labels(people):
    return [subject.label for subject in people]


def the_problem(people, label, sentence):
    """Return the exit code of the only problem, which has to be this subject's."""
    (problem,) = people.problems
    assert problem.subject == label
    assert re.search(sentence, problem.sentence)
    return problem.exit_code


def synthetic_of(people, label):
    (made,) = (
        control.synthetic
        for control in (*people.controls, *people.patients)
        if control.label == label
    )
    return made


def edit(sidecar, **changed):
    write_json(sidecar, {**read_json(sidecar), **changed})


def pet_of(out, label):
    (path,) = out.glob(f"sub-{label}/**/*_desc-preproc_pet.nii.gz")
    return path


def second_pet(out, label, entity):
    """Copy a PET as if it were of another run or session."""
    first = pet_of(out, label)
    folder, before, name = first.parent, "_space-", first.name
    if entity.startswith("ses-"):
        folder, before = out / f"sub-{label}" / entity / "pet", "_trc-"
        name = re.sub("_ses-[^_]+", "", name)
    folder.mkdir(parents=True, exist_ok=True)
    second = folder / name.replace(before, f"_{entity}{before}")
    shutil.copy(first, second)
    shutil.copy(sidecar_path(first), sidecar_path(second))
    return second


# Selection of people


def test_controls_and_patients_are_those_of_the_queries(out):
    people = choose(out)
    assert labels(people.controls) == ["01", "02", "03"]
    assert labels(people.patients) == ["p1", "p2"]
    assert people.notes == people.problems == ()
    for control in (*people.controls, *people.patients):
        assert control.pet == pet_of(out, control.label)
        assert control.session is None
        assert (control.synthetic is not None) is (control.label in ("03", "p1"))


def test_who_is_what_is_a_question_to_the_table(out):
    tell(out, GROUPS, age={"01": 20, "02": 31, "03": 70, "p1": 50, "p2": 60})
    people = choose(out, control_query="age < 40", patient_query="age > 55 and group != 'control'")
    assert labels(people.controls) == ["01", "02"]
    assert labels(people.patients) == ["p2"]


@pytest.mark.parametrize(
    ("selection", "controls", "patients"),
    [
        ({"participant_label": ("p1",)}, ["01", "02", "03"], ["p1"]),
        ({"participant_label": ("p1", "01")}, ["01", "02", "03"], ["p1"]),
        ({"exclude_participant_label": ("p1", "02")}, ["01", "03"], ["p2"]),
    ],
)
def test_labels_say_which_patients_are_looked_at(out, selection, controls, patients):
    people = choose(out, **selection)
    assert labels(people.controls) == controls
    assert labels(people.patients) == patients


def test_a_detector_that_was_trained_before_needs_no_controls(out):
    tell(out, {"p1": "patient", "p2": "patient"})
    people = choose(out, controls=False)
    assert people.controls == ()
    assert labels(people.patients) == ["p1", "p2"]


@pytest.mark.parametrize("kind", ["control", "patient"])
def test_a_query_that_nobody_matches_is_refused(out, kind):
    with pytest.raises(UnusableDataError, match=r"participants\.tsv: no part.*'x'.* holds") as told:
        choose(out, **{f"{kind}_query": "group == 'x'"})
    assert told.value.exit_code == 65


def test_a_query_that_cannot_be_understood_is_refused(out):
    with pytest.raises(UsageError, match="no column diagnosis"):
        choose(out, control_query="diagnosis == 'none'")


def test_nobody_is_control_and_patient_at_once(out):
    tell(out, GROUPS, age={"01": 20, "02": 61, "03": 62, "p1": 50, "p2": 50})
    with pytest.raises(UnusableDataError) as told:
        choose(out, patient_query="age > 60 or group == 'patient'")
    assert told.value.exit_code == 65
    assert f"{told.value}" == (
        "participants.tsv: sub-02, sub-03 would be both control and patient; correct "
        "--control-query or --patient-query"
    )


def test_nobody_is_left_after_selections(out):
    with pytest.raises(
        NothingSelectedError, match=r"no patient is left .* correct --patient-query"
    ):
        choose(out, participant_label=("01",))
    with pytest.raises(
        NothingSelectedError, match=r"no control is left .* correct --control-query"
    ):
        choose(out, exclude_participant_label=("01", "02", "03"))


def test_controls_that_all_lack_images_are_named(out, rng):
    tell(out, {"04": "control", "05": "control", "p1": "patient"})
    write_control(out, "04", rng, pet=False)
    with pytest.raises(MissingInputError) as told:
        choose(out)
    assert f"{told.value}" == (
        "sub-04: not used, neither real nor synthetic PET; sub-05: not used, no T1w on this grid; "
        "run the participant level on controls"
    )
    assert labels(choose(out, controls=False).patients) == ["p1"]


# Selection of images


def test_a_patient_without_pet_is_a_problem_and_the_others_go_on(out, rng):
    tell(out, {**GROUPS, "p3": "patient", "p4": "patient"})
    write_synthetic(out, write_control(out, "p3", rng, pet=False), rng)
    people = choose(out)
    assert labels(people.patients) == ["p1", "p2"]
    assert [(problem.subject, problem.exit_code) for problem in people.problems] == [
        ("p3", 66),
        ("p4", 66),
    ]
    assert people.problems[0].sentence == (
        "sub-p3: a patient without a PET on this grid; run the participant level for this "
        "patient, or exclude them"
    )


def test_patients_that_all_lack_a_pet_end_the_run(out):
    tell(out, {"01": "control", "p3": "patient", "p4": "patient"})
    people = choose(out)
    assert people.patients == ()
    error = error_of(people.problems)
    assert error.exit_code == 66
    assert "sub-p3: a patient" in f"{error}"
    assert "sub-p4: a patient" in f"{error}"


def test_derivatives_of_another_grid_are_not_looked_at(out):
    with pytest.raises(MissingInputError, match="sub-01: not used, no T1w on this grid"):
        choose(out, resolution=2.0)
    people = choose(out, resolution=2.0, controls=False)
    assert people.patients == ()
    assert [problem.exit_code for problem in people.problems] == [66, 66]


def test_a_control_has_one_visit_and_a_patient_all_that_have_a_pet(out, rng):
    tell(out, {**GROUPS, "04": "control", "p3": "patient"})
    for label in ("04", "p3"):
        write_control(out, label, rng, session="a", pet=False)
        write_control(out, label, rng, session="b")
        write_control(out, label, rng, session="c")
    people = choose(out)
    assert [(control.label, control.session) for control in people.controls][-1] == ("04", "b")
    visits = [(patient.label, patient.session) for patient in people.patients]
    assert visits == [("p1", None), ("p2", None), ("p3", "b"), ("p3", "c")]
    assert people.notes == (
        "sub-04 ses-c: not used, an earlier session is used instead",
        "sub-p3 ses-a: not used, no real PET",
    )


@pytest.mark.parametrize(
    ("visits", "chosen"),
    [
        ([("a", False, True), ("b", True, False)], "b"),
        ([("a", True, False), ("b", True, True)], "b"),
        ([("a", True, True), ("b", True, True)], "a"),
        ([("a", False, False), ("b", False, True)], "b"),
    ],
    ids=["real beats synthetic", "both beat one", "the first", "synthetic beats none"],
)
def test_of_several_visits_of_a_control_the_best_is_used(tmp_path, rng, visits, chosen):
    out = tmp_path / "out"
    write_controls(out, ["p1"], rng)
    tell(out, {"01": "control", "p1": "patient"})
    for session, pet, synthetic in visits:
        paths = write_control(out, "01", rng, session=session, pet=pet)
        if synthetic:
            write_synthetic(out, paths, rng)
    (control,) = choose(out).controls
    assert control.visit.session == chosen


def test_sessions_can_be_chosen(out, rng):
    tell(out, {"01": "control", "04": "control", "p1": "patient", "p3": "patient"})
    for label in ("04", "p3"):
        for session in ("a", "b"):
            write_control(out, label, rng, session=session)
    people = choose(out, session_label=("b",))
    controls = [(control.label, control.session) for control in people.controls]
    assert controls == [("04", "b"), ("01", None)]  # the only visit has no session
    assert [(patient.label, patient.session) for patient in people.patients] == [("p3", "b")]
    assert people.notes == ()
    (problem,) = people.problems
    assert problem.sentence.startswith(
        "sub-p1: a patient without a PET on this grid in these sessions; run"
    )


@pytest.mark.parametrize(
    ("asked", "mapped"), [("late", ["late"]), ("early", ["early"]), ("other", [])]
)
def test_a_session_is_that_of_the_pet_where_the_t1w_is_of_another(out, rng, asked, mapped):
    tell(out, {**GROUPS, "04": "control", "p3": "patient"})
    for label in ("04", "p3"):
        write_control(out, label, rng, session="other", pet=False)
        write_control(out, label, rng, session="early")
        second_pet(out, label, "ses-late")
    people = choose(out, session_label=(asked,))
    assert [p.session for p in people.patients if p.label == "p3"] == mapped
    told = [problem.sentence for problem in people.problems if problem.subject == "p3"]
    assert len(told) == 1 - len(mapped)
    assert all("without a PET on this grid in these sessions" in sentence for sentence in told)
    (session,) = [control.session for control in people.controls if control.label == "04"]
    assert session == (asked if mapped else "early")
    if mapped:
        settings = Settings(Path("/raw"), out, "train", sloppy=True, session_label=(asked,))
        (trained,) = choose_controls(settings, version("mri2pet")).controls
        assert trained.visit.pets == (trained.pet,)
        assert (trained.label, trained.session) == ("04", asked)


def test_a_visit_without_session_is_not_named_after_one(out, rng):
    tell(out, {**GROUPS, "p3": "patient"})
    write_control(out, "p3", rng, pet=False)
    write_control(out, "p3", rng, session="b")
    assert choose(out).notes == ("sub-p3: not used, no real PET",)


def test_every_pet_of_a_patient_is_looked_at_and_what_tables_leave_out_is_told(out):
    first = pet_of(out, "p1")
    second = second_pet(out, "p1", "run-2")
    people = choose(out)
    assert {patient.pet for patient in people.patients if patient.label == "p1"} == {first, second}
    assert people.notes == (
        "sub-p1: each PET has a map and a table, but clusters.tsv and curves contain only the "
        "first PET of a session",
    )


def test_pets_of_other_sessions_are_visits_of_their_own(out):
    second_pet(out, "p1", "ses-late")
    people = choose(out)
    sessions = [patient.session for patient in people.patients if patient.label == "p1"]
    assert sessions == [None, "late"]
    assert people.notes == ()


def test_labels_that_find_nobody_are_told(out):
    people = choose(out, participant_label=("p1", "xx", "01"), exclude_participant_label=("zz",))
    assert labels(people.patients) == ["p1"]
    (problem,) = people.problems
    assert problem.exit_code == MissingInputError.exit_code
    assert problem.sentence == (
        "sub-xx: not selected by --patient-query; correct --participant-label or the query"
    )
    assert people.notes == (
        "sub-01: a control, so not mapped; --participant-label is for patients",
        "sub-zz: to be excluded, but is neither a control nor a patient",
    )


# Real and synthetic PET


def test_a_control_with_a_t1w_alone_takes_part_by_its_synthetic_pet(out, rng):
    tell(out, {**GROUPS, "04": "control", "05": "control"})
    path = write_synthetic(out, write_control(out, "04", rng, pet=False), rng)
    write_control(out, "05", rng, pet=False)
    people = choose(out)
    assert labels(people.controls) == ["01", "02", "03", "04"]
    assert people.controls[-1].pet is None
    assert people.controls[-1].synthetic == path
    assert people.controls[-1].maker == SyntheticMaker("g", "a" * 64)
    assert people.notes == ("sub-05: not used, neither real nor synthetic PET",)


def test_who_was_measured_at_another_time_after_injection_is_named_once(out):
    assert not [note for note in choose(out).notes if "injection" in note]  # nothing is known
    windows = {"01": (1800, 3600), "02": (2100, 3900), "p1": (3600, 5400), "p2": (2390, 4200)}
    for label, window in windows.items():
        edit(sidecar_path(pet_of(out, label)), WindowAfterInjection=[*window])
    (note,) = (note for note in choose(out).notes if "injection" in note)
    assert "controls (median 32 to 62 min): sub-p1 (60 to 90 min); the pattern" in note
    edit(sidecar_path(pet_of(out, "p1")), WindowAfterInjection=[1800, 4600])  # longer
    edit(sidecar_path(pet_of(out, "p2")), WindowAfterInjection="soon")
    (note,) = (note for note in choose(out).notes if "injection" in note)
    assert "sub-p1 (30 to 77 min); the pattern" in note
    settings = Settings(Path("/raw"), out, "train", sloppy=True)
    edit(sidecar_path(pet_of(out, "03")), WindowAfterInjection=[0, 1800])
    notes = choose_controls(settings, version("mri2pet")).notes
    assert [note for note in notes if "30 to 60 min): sub-03 (0 to 30 min); the" in note]


def test_a_detector_knows_when_its_controls_were_measured(out):
    edit(sidecar_path(pet_of(out, "p1")), WindowAfterInjection=[3600, 5400])
    patients = choose(out, controls=False).patients
    for window, told in (
        ([1800, 3600], True),
        ([3600.0, 5000.0], False),
        (None, False),
        ("", False),
    ):
        card = SimpleNamespace(parameters={WINDOW: window})
        assert bool(describe_other_windows(card, patients)) is told
        assert not told or "sub-p1 (60 to 90" in describe_other_windows(card, patients)[0]


def test_images_of_sloppy_runs_are_named_unless_the_run_is_one(out):
    for label in ("02", "p1"):
        (t1w,) = out.glob(f"sub-{label}/anat/*_desc-preproc_T1w.json")
        edit(t1w, Sloppy=True)
    assert not [note for note in choose(out).notes if "--sloppy" in note]
    settings = Settings(Path("/raw"), out, "group", resolution=4.0)
    people = choose_subjects(settings, controls=True, version=version("mri2pet"))
    (note,) = (note for note in people.notes if "--sloppy" in note)
    assert "for testing only: sub-02, sub-p1; make" in note


def test_images_on_different_scales_are_refused(out, rng):
    tell(out, {**GROUPS, "04": "control"})
    write_synthetic(out, write_control(out, "04", rng, pet=False), rng, times_mean=2.5)
    with pytest.raises(UnusableDataError, match=r"sub-04_.*synth_pet.* different scales.*--paper"):
        choose(out)


@pytest.mark.parametrize(
    ("owners", "refused"),
    [
        (("01", "02"), "sub-02_.*was made from the same raw file as an image of sub-01, so one"),
        (("01", "p2"), "sub-p2_.* of sub-01, .*; replace .*--exclude-participant-label p2 01"),
        (("p1", "p2"), ""),  # on neither is anything trained
    ],
)
@pytest.mark.parametrize("image", ["T1w", "pet"])
def test_a_raw_image_that_a_control_shares_is_refused(out, owners, refused, image):
    for label in GROUPS:
        for path in out.glob(f"sub-{label}/*/*_space-*_desc-preproc_*.json"):
            is_shared = label in owners and path.name.endswith(f"{image}.json")
            edit(path, SourceSHA256="same" if is_shared else f"{path.name}")
    with pytest.raises(UnusableDataError, match=refused) if refused else nullcontext():
        choose(out)
    if owners == ("01", "02"):
        with pytest.raises(UnusableDataError, match=refused):
            choose_controls(Settings(Path("/raw"), out, "train", sloppy=True), version("mri2pet"))


def test_sessions_of_one_person_may_have_the_same_raw_t1w(out, rng):
    tell(out, {**GROUPS, "04": "control", "p3": "patient"})
    for label, session in (("04", "a"), ("04", "b"), ("p3", "a"), ("p3", "b")):
        write_control(out, label, rng, session=session)
        (t1w,) = out.glob(f"sub-{label}/ses-{session}/anat/*_space-*_desc-preproc_T1w.json")
        edit(t1w, SourceSHA256=label)
    people = choose(out)
    assert "04" in labels(people.controls)
    assert labels(people.patients)[-2:] == ["p3", "p3"]
    edit(t1w, SourceSHA256="04")
    with pytest.raises(UnusableDataError, match=r"sub-p3_ses-b_.* of sub-04, so"):
        choose(out)


def test_what_the_card_of_a_generator_says_comes_with_its_synthetic_pet(out, rng):
    tell(out, {**GROUPS, "04": "control"})
    paths = write_control(out, "04", rng)
    path = write_synthetic(out, paths, rng, seen=True)
    generator = {"Name": "g", "TrainedOn": "T1w of heads.", "IntendedUse": "A demonstration."}
    edit(sidecar_path(path), Generator=generator)
    for made in (path, write_out_of_fold(out, paths, rng)):  # now used, under the same name
        control = choose(out).controls[-1]
        assert control.synthetic.name == made.name
        assert control.maker.trained_on == "T1w of heads."
        assert control.maker.intended_use == "A demonstration."


def test_a_measured_image_that_says_synthetic_is_refused(out):
    """Not even a typing error turns a synthetic PET into a measured one."""
    for label in ("01", "p2"):
        sidecar = sidecar_path(pet_of(out, label))
        before = read_json(sidecar)
        for told in (True, "true", "yes", 1):
            edit(sidecar, Synthetic=told)
            people = choose(out)
            assert label not in labels((*people.controls, *people.patients))
            assert the_problem(people, label, rf"sub-{label}_.*says Synthetic.*; run") == 65
        write_json(sidecar, before)
    assert labels(choose(out).patients) == ["p1", "p2"]


@pytest.mark.parametrize("told", [False, "true", None])
@pytest.mark.parametrize("label", ["03", "p1"])
def test_a_synthetic_image_has_to_say_that_it_is_one(out, label, told):
    (path,) = out.glob(f"sub-{label}/pet/*_desc-synth_pet.json")
    edit(path, Synthetic=told)
    people = choose(out)
    assert the_problem(people, label, rf"{path.name}: Synthetic is not true.* partici") == 65
    assert synthetic_of(people, label) is None


def test_a_synthetic_image_without_sidecar_may_be_unfinished(out):
    (path,) = out.glob("sub-03/pet/*_desc-synth_pet.json")
    path.unlink()
    people = choose(out)
    assert the_problem(people, "03", rf"{path.name}: no such file.*; run the partici") == 66
    assert synthetic_of(people, "03") is None


def test_of_controls_that_the_generator_saw_the_image_out_of_fold_is_used(out, rng):
    tell(out, {**GROUPS, "04": "control", "05": "control", "06": "control"})
    paths = {label: write_control(out, label, rng) for label in ("04", "05", "06")}
    own = {label: write_synthetic(out, paths[label], rng, seen=label != "06") for label in paths}
    for label in ("04", "06"):
        write_out_of_fold(out, paths[label], rng)
    people = choose(out, training_set=("hybrid",), synthetic_controls="all")
    *_, seen, alone, never = people.controls
    unseen = out / "crossvalidation" / "g" / own["04"].relative_to(out)
    assert (seen.synthetic, seen.maker) == (unseen, SyntheticMaker("g", ""))
    assert alone.synthetic is None
    assert the_problem(people, "05", rf"{own['05'].name}: not used, since generator g was tr") == 65
    assert (never.synthetic, never.maker) == (own["06"], SyntheticMaker("g", "a" * 64))


@pytest.mark.parametrize(
    ("changed", "error", "sentence"),
    [
        ({"Synthetic": False}, UnusableDataError, "Synthetic is not true.*; run the train level"),
        (None, MissingInputError, "no such file.*; run the train level again"),
    ],
)
def test_an_image_out_of_fold_has_to_say_that_it_is_synthetic(out, rng, changed, error, sentence):
    paths = write_control(out, "03", rng)
    write_synthetic(out, paths, rng, seen=True)
    sidecar = sidecar_path(write_out_of_fold(out, paths, rng))
    if changed is None:
        sidecar.unlink()
    else:
        edit(sidecar, **changed)
    people = choose(out)
    assert the_problem(people, "03", f"crossvalidation/.*json: {sentence}") == error.exit_code
    assert synthetic_of(people, "03") is None


def test_an_image_that_claims_to_be_out_of_fold_but_saw_the_control_is_not_taken(out, rng):
    paths = write_control(out, "03", rng)
    write_synthetic(out, paths, rng, seen=True)
    edit(sidecar_path(write_out_of_fold(out, paths, rng)), TrainedOnThisParticipant=True)
    people = choose(out, detectors=("pseudonormal",))
    assert synthetic_of(people, "03") is None
    assert the_problem(people, "03", "since generator g was trained on this") == 65


def test_a_sidecar_that_names_no_generator_and_one_that_cannot_be_read(out):
    (path,) = out.glob("sub-03/pet/*_desc-synth_pet.json")
    edit(path, Generator="g")
    maker = choose(out).controls[-1].maker
    assert (maker.name, maker.sha256) == ("unknown", "")
    path.write_text("{")
    assert the_problem(choose(out), "03", rf"{path.name}: not valid JSON") == 65


# Generators that were trained on the subject


def longitudinal(out, rng, *, seen=True):
    """04 has PET in sessions 1 and 2, and a synthetic PET for each."""
    tell(out, {**GROUPS, "04": "control"})
    paths = {session: write_control(out, "04", rng, session=session) for session in ("1", "2")}
    for path in paths.values():
        write_synthetic(out, path, rng, seen=seen)
    return paths


WANTED = [
    {"training_set": ("hybrid",), "synthetic_controls": "all"},
    {"training_set": ("synthetic",), "synthetic_controls": "all"},
    {"detectors": ("pseudonormal",)},
]


@pytest.mark.parametrize("session", ["1", "2"])
@pytest.mark.parametrize("asked", [(), ("1",), ("2",)])
def test_the_session_with_a_held_out_synthetic_pet_is_used(out, rng, session, asked):
    """A generator trained on one session knows the subject of the other session as well."""
    tell(out, GROUPS)
    paths = longitudinal(out, rng)
    write_out_of_fold(out, paths[session], rng)
    second = second_pet(out, "p1", f"ses-{asked[0]}") if asked else None
    people = choose(out, session_label=asked, **WANTED[0])
    control = people.controls[-1] if not asked else people.controls[0]
    assert (control.label, second is None) == ("04", not asked)
    if control.session == session:
        assert control.synthetic.is_relative_to(out / "crossvalidation" / "g")
        assert people.problems == () or asked
    else:  # the requested session has a real PET, and no usable synthetic one
        assert control.session == asked[0] != session
        assert control.synthetic is None
        (problem,) = (one for one in people.problems if one.subject == "04")
        assert "since generator g was trained on this" in problem.sentence


def test_a_seen_synthetic_pet_of_another_session_is_no_silent_fallback(out, rng):
    """If its generator had not been trained on 04, session 2 with both PETs would be chosen."""
    tell(out, {**GROUPS, "04": "control"})
    write_control(out, "04", rng, session="1")
    path = write_synthetic(out, write_control(out, "04", rng, session="2"), rng)
    assert choose(out, **WANTED[0]).controls[-1].session == "2"
    edit(sidecar_path(path), TrainedOnThisParticipant=True)
    people = choose(out, **WANTED[0])
    assert (people.controls[-1].session, people.controls[-1].synthetic) == ("1", None)
    assert the_problem(people, "04", "sub-04 ses-2: .* was trained on this") == 65
    assert choose(out).problems == ()  # real PET only: nothing is missing


def test_controls_are_of_the_sessions_that_are_asked_for_at_both_levels(out, rng):
    tell(out, {**GROUPS, "04": "control"})
    write_synthetic(out, write_control(out, "04", rng, session="1"), rng)
    write_control(out, "04", rng, session="2")
    second_pet(out, "p1", "ses-2")
    trained = choose_controls(
        Settings(Path("/raw"), out, "train", sloppy=True, session_label=("2",)), "0"
    )
    scored = choose(out, session_label=("2",))
    assert [control.session for control in trained.controls if control.label == "04"] == ["2"]
    assert [control.session for control in scored.controls if control.label == "04"] == ["2"]


@pytest.mark.parametrize("wanted", WANTED)
def test_without_a_held_out_synthetic_pet_there_is_a_problem_and_no_other_is_taken(
    out, rng, wanted
):
    longitudinal(out, rng)
    people = choose(out, **wanted)
    control = people.controls[-1]
    assert (control.label, control.session, control.synthetic) == ("04", "1", None)
    assert the_problem(people, "04", "trained on this participant.*does not exist; train") == 65
    assert choose(out).problems == ()  # real PET only: no synthetic one is needed


def test_train_and_group_choose_the_same_visit(out, rng):
    paths = longitudinal(out, rng)
    settings = Settings(Path("/raw"), out, "train", sloppy=True)

    def trained():
        return choose_controls(settings, version("mri2pet")).controls[-1].visit

    assert choose(out).controls[-1].visit == trained() == replace(trained(), session="1")
    write_out_of_fold(out, paths["2"], rng)
    assert choose(out).controls[-1].visit == trained() == replace(trained(), session="2")


def test_a_t1w_alone_whose_generator_saw_the_subject_elsewhere_is_not_in_the_hybrid_set(out, rng):
    tell(out, {**GROUPS, "04": "control"})
    write_synthetic(out, write_control(out, "04", rng, pet=False), rng, seen=True)
    people = choose(out, training_set=("hybrid",))
    assert "04" not in labels(people.controls)
    assert the_problem(people, "04", "trained on this participant") == 65
    people = choose(out)
    assert people.problems == ()
    assert people.notes == (
        "sub-04: not used, no real PET, and the generator of its synthetic PET was trained on the "
        "participant",
    )


@pytest.mark.parametrize("seen", [False, True])
def test_a_synthetic_pet_of_an_earlier_t1w_is_not_used(out, rng, seen):
    """``--stage preprocess`` replaces the T1w alone."""
    tell(out, {**GROUPS, "04": "control"})
    paths = write_control(out, "04", rng, pet=False)
    write_synthetic(out, paths, rng, seen=seen)
    if seen:
        edit(sidecar_path(write_out_of_fold(out, paths, rng)), T1wFingerprint="earlier")
    else:
        edit(sidecar_path(paths.t1w_in_template), Fingerprint="later")
    assert choose(out).notes == (
        "sub-04: not used, no real PET, and its synthetic PET was predicted from a T1w that was "
        "replaced since",
    )
    people = choose(out, training_set=("hybrid",))
    assert "04" not in labels(people.controls)
    advice = "train g again" if seen else "run --stage synthesize again"
    assert the_problem(people, "04", f"T1w that a later run replaced; {advice}") == 65


def write_generator(out, sha256, participants, dataset="ellipsoids", fold=""):
    folder = out / "generators" / "g" / (f"folds/fold-{fold}" if fold else "")
    rows = tuple(tuple(row) for row in np.eye(4).tolist())
    card = Card(
        "g",
        "0",
        MODELS["semi3d-gan"],
        "T",
        (3, 3, 3),
        rows,
        sha256,
        "x",
        "x",
        tuple(participants),
        dataset,
        0,
    )
    write_json(folder / "card.json", card_values(card))


def test_synthetic_pet_of_a_generator_that_was_trained_again_is_told_of(out):
    def told(**wanted):
        notes = choose(out, **wanted).notes
        return [note.partition(";")[0] for note in notes if "by another generator" in note]

    assert told(**WANTED[0]) == []  # of a generator that is not of this dataset
    write_generator(out, "a" * 64, ["02"])
    assert told(**WANTED[0]) == []
    write_generator(out, "c" * 64, ["02"])  # trained again
    of = f"was made by another generator g than the one in {out / 'generators'}, which may have"
    assert told(detectors=("pseudonormal",)) == [
        f"synthetic PET of sub-03, sub-p1 {of} been trained again since"
    ]
    assert told() == []  # none is used
    write_generator(out, "a" * 64, ["02"], fold=1)  # whose generators make those of controls
    assert told(detectors=("pseudonormal",)) == []


@pytest.mark.parametrize(
    ("participants", "dataset", "seen"),
    [
        (["03"], "ellipsoids", True),
        (["sub-03"], " Ellipsoids", True),
        (["02"], "ellipsoids", False),
        (["03"], "another study", False),
    ],
)
def test_the_card_of_a_generator_tells_whom_it_has_seen(out, participants, dataset, seen):
    """Regardless of the sidecar, which may be older than the generator of this name."""
    write_generator(out, "a" * 64, participants, dataset)
    people = choose(out, **WANTED[0])
    assert (synthetic_of(people, "03") is None) is seen
    assert bool(people.problems) is seen
    namesake = "sub-03 of the dataset 'another study'"
    assert any(namesake in note for note in people.notes) is (dataset == "another study")


def test_the_card_of_a_fold_tells_whom_it_has_left_out(out, rng):
    paths = write_control(out, "03", rng)
    write_synthetic(out, paths, rng, seen=True)
    held_out = write_out_of_fold(out, paths, rng)
    write_generator(out, "b" * 64, ["01", "02"], fold="1")
    assert synthetic_of(choose(out), "03") == held_out
    write_generator(out, "b" * 64, ["01", "03"], fold="1")
    people = choose(out, **WANTED[0])
    assert synthetic_of(people, "03") is None
    assert the_problem(people, "03", "trained on this participant") == 65


def test_a_sidecar_that_does_not_tell_whether_the_subject_was_seen_is_not_believed(out):
    (path,) = out.glob("sub-03/pet/*_desc-synth_pet.json")
    edit(path, TrainedOnThisParticipant=None)
    assert synthetic_of(choose(out), "03") is None


def test_a_name_of_a_generator_leads_nowhere_else(out, rng):
    paths = write_control(out, "03", rng)
    write_synthetic(out, paths, rng, seen=True)
    (path,) = out.glob("sub-03/pet/*_desc-synth_pet.json")
    held_out = write_out_of_fold(out, paths, rng)
    shutil.copytree(held_out.parents[2], out.parent / "elsewhere")
    edit(path, Generator={"Name": "../../elsewhere"})
    assert synthetic_of(choose(out), "03") is None


def test_a_patient_whom_the_generator_has_seen_has_no_pseudonormal_pet(out, rng):
    (path,) = out.glob("sub-p1/pet/*_desc-synth_pet.json")
    edit(path, TrainedOnThisParticipant=True)
    people = choose(out, detectors=("pseudonormal",))
    assert synthetic_of(people, "p1") is None
    assert the_problem(people, "p1", "trained on this participant") == 65
    assert choose(out).problems == ()


@pytest.mark.parametrize(
    ("table", "who"),
    [
        ("participant_id\tgroup\nsub-01\tcontrol\n02\tcontrol\n3\tcontrol\n", None),
        ("participant_id\tgroup\nsub-01\tpatient\nsub-02\tcontrol\nsub-03\tcontrol\n", "01"),
        ("participant_id\tgroup\nsub-01\tcontrol\nsub-02\tcontrol\n", "03"),
        ("participant_id\tdiagnosis\nsub-01\tcontrol\n", "01, sub-02, sub-03"),
        ("damaged", None),
    ],
)
def test_a_raw_table_that_was_changed_since_is_told_of(out, tmp_path, table, who):
    raw = tmp_path / "raw"
    for label in ("01", "02", "03", "99"):
        (raw / f"sub-{label}").mkdir(parents=True)
    (raw / "participants.tsv").write_text(table)
    settings = Settings(raw, out, "group", sloppy=True)
    for notes in (
        choose_subjects(settings, controls=True, version=version("mri2pet")).notes,
        choose_controls(replace(settings, level="train"), version("mri2pet")).notes,
    ):
        told = [note for note in notes if f"{raw}/participants.tsv: differs from" in note]
        assert len(told) == (who is not None)
        assert all(f"differs from {out}/participants.tsv for sub-{who}, and" in one for one in told)


@pytest.mark.parametrize("level", ["train", "group"])
@pytest.mark.parametrize("image", ["T1w", "PET"])
def test_raw_images_replaced_or_removed_since_are_told_of(out, tmp_path, level, image):
    raw, paths = tmp_path / "raw", {}
    for visit in find_preprocessed(out, TEMPLATE, RESOLUTION):
        digested = visit.t1w if image == "T1w" else visit.pets[0]
        named = native_t1w(visit) if image == "T1w" else digested
        paths[visit.subject] = path = raw / f"sub-{visit.subject}" / "image.nii.gz"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(visit.subject)
        uri = f"bids:raw:{path.relative_to(raw)}"
        for one, fields in ((digested, {"SourceSHA256": digest_of(path)}), (named, {})):
            sidecar = sidecar_path(one)
            written = read_json(sidecar) if sidecar.is_file() else {}
            write_json(sidecar, {**written, "Sources": [uri], **fields})
    settings = Settings(raw, out, level, sloppy=True)

    def told():
        choose = partial(choose_subjects, controls=True) if level == "group" else choose_controls
        return [
            note.removeprefix(f"{raw}: ").partition(",")[0]
            for note in choose(settings, version=version("mri2pet")).notes
            if note.startswith(f"{raw}: ")
        ]

    assert told() == []
    paths["01"].write_text("another image")
    replaced = "raw images of sub-01 were replaced since the participant level ran"
    assert told() == [replaced]
    paths["02"].unlink()
    assert told() == [replaced, "no longer has raw images of sub-02"]
    paths["02"].symlink_to("not-fetched")
    assert told() == [replaced]
    shutil.rmtree(raw)
    assert told() == []  # the raw dataset may be elsewhere


# A damaged file affects only its participant


@pytest.mark.parametrize(
    "damage",
    [
        lambda path: path.write_text('{"Sources": ['),
        lambda path: path.write_text("[1]"),
        lambda path: path.write_bytes(b"\xff"),
        Path.unlink,
        lambda path: edit(path, Sources=3),
    ],
    ids=["truncated", "list", "no text", "missing", "odd"],
)
@pytest.mark.parametrize(
    "pattern",
    [
        "anat/*_res-4_desc-preproc_T1w.json",
        "pet/*_res-4_desc-preproc_pet.json",
        "pet/*_space-T1w_desc-preproc_pet.json",
        "pet/*_desc-synth_pet.json",
        "anat/*_res-4_desc-brain_mask.nii.gz",
    ],
)
def test_a_damaged_file_costs_at_most_its_owner(out, pattern, damage):
    sidecar = sidecar_path(pet_of(out, "03"))
    in_t1w = sidecar.with_name(re.sub("_space-[^_]*_res-4", "_space-T1w", sidecar.name))
    write_json(in_t1w, read_json(sidecar))
    for path in out.glob(f"sub-03/{pattern}"):
        if path.suffix == ".json" or damage is Path.unlink:
            damage(path)
    people = choose(out, **WANTED[0])
    assert set(labels(people.controls)) >= {"01", "02"}
    assert labels(people.patients) == ["p1", "p2"]
    assert {problem.subject for problem in people.problems} <= {"03"}
    assert ("03" in labels(people.controls)) or people.problems
    with_pet = choose_controls(Settings(Path("/raw"), out, "train", sloppy=True), "0")
    assert set(labels(with_pet.controls)) >= {"01", "02"}


# Registration


def judge(image, verdict, *reasons):
    edit(sidecar_path(image), Registration={"Verdict": verdict, "VerdictReasons": [*reasons]})


def test_a_failed_t1w_takes_its_pets_and_its_synthetic_pet_along(out, rng):
    tell(out, {**GROUPS, "04": "control"})
    path = write_control(out, "04", rng, pet=False)
    write_synthetic(out, path, rng)
    judge(path.t1w_in_template, "fail", "tilted by 70 degrees")
    judge(image_of(out, "p1", "T1w").with_suffix("").with_suffix(".nii.gz"), "fail", "no brain")
    judge(pet_of(out, "p2"), "doubt", "noisy")
    people = choose(out, training_set=("hybrid",))
    assert labels(people.controls) == ["01", "02", "03"]
    assert labels(people.patients) == ["p2"]
    assert the_problem(people, "p1", "sub-p1: a patient whose registration has failed or was") == 65
    assert [note.partition(":")[0] for note in people.notes] == ["sub-p2", "sub-04", "sub-p1"]
    assert "is used, but its registration is in doubt (noisy)" in people.notes[0]
    assert "tilted by 70 degrees" in people.notes[1]
    assert "no brain" in people.notes[2]


def test_only_controls_that_are_used_are_said_to_be_used(out, rng):
    tell(out, {**GROUPS, "04": "control"})
    path = write_control(out, "04", rng, pet=False)
    write_synthetic(out, path, rng)
    judge(path.t1w_in_template, "doubt", "bright rim")
    edit(sidecar_path(path.t1w_in_template), Version="0.1.0")
    assert "sub-04" not in " ".join(choose(out, training_set=("real",)).notes)
    release, doubt = choose(out, training_set=("hybrid",)).notes
    assert "made by mri2pet 0.1.0: sub-04" in release
    assert "is used, but its registration is in doubt (bright rim)" in doubt


def test_of_two_pets_of_a_patient_the_failed_one_is_left_out(out):
    first, second = pet_of(out, "p1"), second_pet(out, "p1", "run-2")
    judge(second, "fail", "far off")
    people = choose(out)
    assert [patient.pet for patient in people.patients if patient.label == "p1"] == [first]
    assert people.problems == ()
    assert people.notes == (
        f"sub-p1: {second.name} is not used, its registration to the T1w has failed (far off)",
    )


@pytest.mark.parametrize(("made_by", "used"), [("earlier", 1), ("f", 2), ("", 2)])
def test_a_pet_that_the_last_run_did_not_make_is_left_out(out, made_by, used):
    """Sidecars of one run have the same fingerprint, unless they have none."""
    first, second = pet_of(out, "01"), second_pet(out, "p1", "run-2")
    for pet in (first, second):
        edit(sidecar_path(pet), Fingerprint=made_by)
    people = choose(out)
    assert len([patient for patient in people.patients if patient.label == "p1"]) == used
    assert ("01" in labels(people.controls)) is (used == 2)
    told = [note for note in people.notes if "was not made with its T1w" in note]
    assert len(told) == (2 if used == 1 else 0)
    assert all(pet.name in " ".join(told) for pet in (first, second)) or not told


# Other versions


def image_of(out, label, suffix):
    (path,) = out.glob(f"sub-{label}/**/*_space-MNI*_desc-preproc_{suffix}.nii.gz")
    return sidecar_path(path)


def test_people_of_another_release_are_told_of_in_one_sentence(out):
    assert choose(out).notes == ()
    edit(image_of(out, "01", "pet"), Version="0.9.0")
    edit(image_of(out, "01", "T1w"), Version="0.9.0")
    edit(image_of(out, "p2", "T1w"), Version=None)  # as written before sidecars had it
    edit(image_of(out, "02", "pet"), Version=f"{version('mri2pet')}.post1")  # same release
    (synthetic,) = out.glob("sub-03/**/*_desc-synth_pet.nii.gz")
    edit(sidecar_path(synthetic), Version="0.9.0")
    people = choose(out)
    assert people.notes == (
        "made by an unknown version: sub-p2, made by mri2pet 0.9.0: sub-01, sub-03; this is "
        f"{version('mri2pet')}, which may give different results; to make them anew, delete their "
        "folders and run the participant level",
    )
    assert labels(people.controls) == ["01", "02", "03"]


@pytest.mark.parametrize("label", ["01", "p1"])
def test_people_that_cannot_be_compared_with_are_refused(out, label):
    edit(image_of(out, label, "pet"), Version="9.1.0")
    with pytest.raises(UnusableDataError) as told:
        choose(out)
    assert told.value.exit_code == 65
    assert f"{told.value}".startswith(f"made by mri2pet 9.1.0: sub-{label}; this is ")
    assert "cannot be compared" in f"{told.value}"
    without = choose(out, exclude_participant_label=(label,))
    assert without.notes == ()
    assert label not in labels((*without.controls, *without.patients))


def test_a_pet_on_another_grid_does_not_cost_the_patient_the_others(out):
    first, second = pet_of(out, "p1"), second_pet(out, "p1", "run-2")
    image = nifti.load(second)
    nifti.save(nifti.Image(image.data[1:], image.affine), second)
    people = choose(out)
    for visit in {patient.visit for patient in people.patients}:
        native_t1w(visit).touch()
        template_to_t1w(visit).touch()
    settings = Settings(Path("/raw"), out, "group", sloppy=True)
    usable = keep_usable(plan_study(settings, out / "work", {}), people, synthetic=False)
    assert [patient.pet for patient in usable.patients] == [first, pet_of(out, "p2")]
    assert usable.controls == people.controls
    assert the_problem(usable, "p1", f"{second.name}: its grid is not that of") == 65


# Covariates


def adjust(out, told, training_set=("real",), **groups):
    """Take covariates from a table in which each participant has the values of ``told``."""
    everyone = {**GROUPS, **groups}
    tell(out, everyone, **{name: dict(zip(everyone, told[name], strict=True)) for name in told})
    settings = Settings(
        Path("/raw"), out, "group", sloppy=True, covariates=(*told,), training_set=training_set
    )
    people = choose_subjects(settings, controls=True, version=version("mri2pet"))
    return take_covariates(settings, people, None)


def test_one_text_among_patients_does_not_turn_ages_into_categories(out):
    people = adjust(out, {"age": ["30", "45", "61", "50", "89+"]})
    assert (people.description["age"]["low"], people.description["age"]["high"]) == (30, 61)
    assert labels(people.patients) == ["p1"]
    assert the_problem(people, "p2", "age is '89.', but is a number in controls") == 65


def test_codes_whose_levels_are_known_are_categories(out):
    told = {"scanner": ["1", "3", "1", "3", "2"]}
    assert "mean" in adjust(out, told).description["scanner"]
    write_json(out / "participants.json", {"scanner": {"Levels": {"1": "HR+", "3": "mCT"}}})
    people = adjust(out, told)
    assert people.description["scanner"]["levels"] == ["1", "3"]
    assert the_problem(people, "p2", "no control has scanner '2'") == 65


def test_numbers_that_may_be_codes_are_told_of(out, rng):
    write_control(out, "04", rng)
    told = {"site": ["1", "3", "2", "3", "2", "1"], "sex": ["1", "2", "1", "2", "1", "2"]}
    (note,) = adjust(out, told, **{"04": "control"}).notes
    assert note.startswith("--covariates: site has 3 different numbers in 4 controls, and counts")
    write_json(out / "participants.json", {"site": {"Levels": {"1": "A", "2": "B", "3": "C"}}})
    (note,) = adjust(out, told, **{"04": "control"}).notes
    assert note.startswith("--covariates: site is '2' or '3' in only one control each, so its eff")


@pytest.mark.parametrize("code", ["999", "-1"])
def test_whoever_has_an_age_that_is_none_is_left_out(out, code):
    people = adjust(out, {"Age": ["30", "45", "61", code, "50"]})
    assert labels(people.patients) == ["p2"]
    assert (
        the_problem(people, "p1", f"has Age {code}, which is not an age in years; correct it") == 65
    )
    assert not adjust(out, {"agent": ["3", "45", "61", "-4", "50"]}).problems


def test_ages_in_another_unit_are_kept(out):
    assert not adjust(out, {"age": ["330", "45", "610", "560", "500"]}).problems
    assert not adjust(out, {"age_months": ["30", "45", "61", "160", "50"]}).problems


def test_an_age_is_known_to_be_none_by_the_controls_of_a_detector():
    known = {"age": {"mean": 45.0, "sd": 15.0, "low": 30.0, "high": 61.0}}
    assert _in_years(["age"], [], known) == ["age"]
    assert _in_years(["age"], [], {"age": {**known["age"], "low": 330.0, "high": 900.0}}) == []
    assert _in_years(["age"], [], {"age": {"levels": ["a", "b"], "shares": [0.5, 0.5]}}) == []


def test_one_age_for_scans_of_several_years_is_told_of(out, rng):
    """The age at the first scan would make the second patient too young at the other."""
    told = {"age": ["30", "45", "61", "50", "40"]}
    assert "PETs" not in str(adjust(out, told).notes)
    for session in ("a", "b"):
        write_control(out, "p3", rng, session=session)
    notes = adjust(out, {"age": [*told["age"], "50"]}, p3="patient").notes
    (note,) = (note for note in notes if "PETs" in note)
    assert note.startswith("sub-p3: age of participants.tsv counts for all 2 PETs; if it was")


def test_a_code_for_a_missing_score_is_told_of(out):
    note, *_ = adjust(out, {"bdi": ["3", "12", "9", "99", "10"]}).notes
    assert note.startswith("--covariates: bdi is 99 in sub-p1, far from all others; if it stands")
    assert "missing value" not in str(adjust(out, {"bdi": ["3", "12", "9", "8", "10"]}).notes)


def test_controls_without_a_real_pet_do_not_decide_what_one_set_knows(out, rng):
    paths = write_control(out, "04", rng, pet=False)
    write_synthetic(out, paths, rng)
    told = {"scanner": ["A", "B", "A", "A", "C", "C"]}
    people = adjust(out, told, **{"04": "control"})
    assert labels(people.controls) == ["01", "02", "03", "04"]
    assert the_problem(people, "p2", "no control has scanner 'C'") == 65
    people = adjust(out, told, ("real", "hybrid"), **{"04": "control"})
    assert labels(people.controls) == ["01", "02", "03"]
    assert {problem.subject for problem in people.problems} == {"04", "p2"}
    people = adjust(out, told, ("hybrid",), **{"04": "control"})
    assert not people.problems
    people = adjust(out, {"scanner": ["A", "B", "A", "A", "B", "n/a"]}, **{"04": "control"})
    assert not people.problems  # it is not used
