"""Training sets and folds: nobody is scored by a model trained on them, nor on synthetic PET."""

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from cohorts import GRID, SPACE, write_control, write_synthetic
from hypothesis import assume, given
from hypothesis import strategies as st

from bids_app import nifti
from bids_app.derivatives.find import Preprocessed
from bids_app.derivatives.paths import sidecar_path
from bids_app.detection.detectors import DEFAULT_DETECTORS
from bids_app.errors import UnusableDataError, UsageError
from bids_app.files import write_json
from bids_app.nifti import open_arrays, read_digest, read_owner
from bids_app.plan.cohort import Participant, Subjects, SyntheticMaker
from bids_app.plan.detectors import (
    _describe_averages,
    _folds_of,
    encoder_spec,
    encodes_t1w,
    refuse_card,
    refuse_settings,
    resolve_detectors,
)
from bids_app.plan.group import (
    assign_folds,
    check_covariates,
    choose_training_images,
    join_stored,
    list_training_controls,
    plan_storage,
    split,
)
from bids_app.plan.study import Study, seed_of
from bids_app.settings import Settings
from bids_app.workflows.training import init_storing_wf

OUT = Path("/out")
SCREENING = Study(
    OUT, Path("/work"), SPACE, GRID, "made", 4, 0, {"mri2pet": "0"}, 1.5, overlap=True
)
TRAINING_SETS = ("real", "hybrid", "synthetic")
SYNTHETIC_CONTROLS = ("t1w-only", "all")
KINDS = ("both", "real", "synthetic")  # PET that a control has
cohorts = st.lists(st.sampled_from(KINDS), min_size=2, max_size=14)
folds_and_seeds = {"folds": st.integers(2, 5), "seed": st.integers(0, 2**32 - 1)}
sets = {
    "training_set": st.sampled_from(TRAINING_SETS),
    "synthetic_controls": st.sampled_from(SYNTHETIC_CONTROLS),
}


def image(label, desc, *entities, session=None):
    folder = OUT / f"sub-{label}" / (f"ses-{session}" if session else "") / "pet"
    told = [f"sub-{label}", *([f"ses-{session}"] if session else []), "trc-18FFDG", *entities]
    return folder / f"{'_'.join(told)}_space-{SPACE.template}_res-4_desc-{desc}_pet.nii.gz"


def participant(label, kind, session=None):
    visit = Preprocessed(
        label, session, OUT / f"sub-{label}_T1w.nii.gz", OUT / f"sub-{label}_mask.nii.gz", (), None
    )
    made = image(label, "synth", session=session), SyntheticMaker("g", "a" * 64)
    return Participant(
        visit,
        None if kind == "synthetic" else image(label, "preproc", session=session),
        *((None, None) if kind == "real" else made),
    )


def pictured(kinds):
    """Return controls 00, 01 … with these PET, as stored."""
    return stored_of([participant(f"{n:02}", kind) for n, kind in enumerate(kinds)])


def stored_of(people):
    plans = plan_storage(SCREENING, people, synthetic=True)
    stored = {plan.name: replace(plan, sha256=f"sha {plan.name}") for plan in plans}
    return [join_stored(subject, stored) for subject in people]


def owner(one):
    """Return the label of the participant of an image."""
    return one.name.split("_")[2]


def chosen_and_dealt(kinds, training_set, synthetic_controls, folds, seed):
    controls = pictured(kinds)
    try:
        trained = choose_training_images(training_set, controls, synthetic_controls)
        dealt = assign_folds(controls, folds, seed)
        return controls, trained, dealt, split(trained, controls, dealt, folds, seed)
    except UnusableDataError:
        return assume(False)


# Folds


def test_folds_without_a_level_of_a_covariate_are_named():
    controls = pictured(["real"] * 8)
    rows = {control.label: [0.875 if control.label == "03" else -0.125] for control in controls}
    known = {"sex": {"levels": ["F", "M"], "shares": [0.875, 0.125]}}
    cohort = Subjects(tuple(controls), covariates=rows, description=known)
    dealt = assign_folds(controls, 4, 0)
    folds = split([control.stored_pet for control in controls], controls, dealt, 4, 0)
    (note,) = check_covariates(cohort, folds)
    assert f"fold {dealt['03']} is trained on no control with sex 'M', so it cannot" in note
    assert check_covariates(Subjects(tuple(controls)), folds) == []


@given(kinds=cohorts, **folds_and_seeds)
def test_everyone_is_left_out_once_and_real_pets_are_spread_evenly(kinds, folds, seed):
    assume(len(kinds) >= folds)
    controls = pictured(kinds)
    dealt = assign_folds(controls, folds, seed)
    assert set(dealt) == {control.label for control in controls}
    real = [dealt[control.label] for control in controls if control.stored_pet is not None]
    for numbers in (list(dealt.values()), real):
        sizes = [numbers.count(fold) for fold in range(1, folds + 1)]
        assert sum(sizes) == len(numbers)
        assert max(sizes) - min(sizes) <= 1


@given(kinds=cohorts, order=st.randoms(use_true_random=False), **folds_and_seeds)
def test_the_order_of_controls_does_not_matter(kinds, order, folds, seed):
    assume(len(kinds) >= folds)
    controls = pictured(kinds)
    before = assign_folds(controls, folds, seed)
    order.shuffle(controls)
    assert assign_folds(controls, folds, seed) == before


@given(kinds=cohorts, more=st.integers(0, 5), **folds_and_seeds)
def test_whoever_joins_without_real_pet_those_with_one_are_dealt_alike(kinds, more, folds, seed):
    """So that training sets, and runs with other training sets, can be compared."""
    assume(len(kinds) >= folds)
    alone = [one for one in pictured(kinds) if one.stored_pet is not None]
    assume(len(alone) >= folds)
    dealt = assign_folds(pictured([*kinds, *["synthetic"] * more]), folds, seed)
    assert assign_folds(alone, folds, seed).items() <= dealt.items()


def test_another_seed_deals_otherwise():
    controls = pictured(["real"] * 12)
    dealt = [assign_folds(controls, 4, seed) for seed in range(20)]
    assert dealt[0] == assign_folds(controls, 4, 0)
    assert len({tuple(sorted(one.items())) for one in dealt}) == 20


@given(kinds=cohorts, **sets, **folds_and_seeds)
def test_nobody_is_scored_by_a_fold_that_trained_on_them(
    kinds, training_set, synthetic_controls, folds, seed
):
    """Not even on their synthetic PET."""
    controls, trained, _, parts = chosen_and_dealt(
        kinds, training_set, synthetic_controls, folds, seed
    )
    assert [part.number for part in parts] == list(range(1, folds + 1))
    for part in parts:
        assert not {*map(owner, part.training)} & {*map(owner, part.validation)}
    scored = [one.name for part in parts for one in part.validation]
    assert sorted(scored) == sorted(
        control.stored_pet.name for control in controls if control.stored_pet is not None
    )
    assert all(name.startswith("real_") for name in scored)  # whatever the training set
    for model in trained:
        holding = [part.number for part in parts if model in part.training]
        assert len(holding) == folds - 1


@given(kinds=cohorts, **sets, **folds_and_seeds)
def test_a_training_set_holds_what_its_name_says(
    kinds, training_set, synthetic_controls, folds, seed
):
    controls, trained, *_ = chosen_and_dealt(kinds, training_set, synthetic_controls, folds, seed)
    real = {control.stored_pet.name for control in controls if control.stored_pet is not None}
    made = {
        control.stored_synthetic.name
        for control in controls
        if control.stored_synthetic is not None
        and (control.stored_pet is None or synthetic_controls == "all")
    }
    expected = {"real": real, "hybrid": real | made, "synthetic": made}[training_set]
    assert sorted(model.name for model in trained) == sorted(expected)
    for model in trained:
        kind = "real_" if model.real else "synthetic_"
        assert model.name.startswith(kind)


# Selection of images


def names(trained):
    return [model.name.removesuffix("_trc_18FFDG") for model in trained]


@pytest.mark.parametrize(
    ("training_set", "synthetic_controls", "expected"),
    [
        ("real", "t1w-only", ["real_sub_00", "real_sub_01"]),
        ("real", "all", ["real_sub_00", "real_sub_01"]),
        ("hybrid", "t1w-only", ["real_sub_00", "real_sub_01", "synthetic_sub_02"]),
        ("hybrid", "all", ["real_sub_00", "real_sub_01", "synthetic_sub_00", "synthetic_sub_02"]),
        ("synthetic", "t1w-only", ["synthetic_sub_02"]),
        ("synthetic", "all", ["synthetic_sub_00", "synthetic_sub_02"]),
    ],
)
def test_training_sets_by_hand(training_set, synthetic_controls, expected):
    trained = choose_training_images(
        training_set, pictured(["both", "real", "synthetic"]), synthetic_controls
    )
    assert names(trained) == expected


def test_a_control_whose_real_pet_cannot_be_used_is_not_one_without():
    """A synthetic PET replaces a damaged one only on request."""
    damaged = replace(pictured(["both"])[0], stored_pet=None)
    others = pictured(["both", "both", "synthetic"])[1:]
    assert (
        names(choose_training_images("hybrid", [damaged, *others], "t1w-only"))[-1]
        == "synthetic_sub_02"
    )
    assert len(choose_training_images("hybrid", [damaged, *others], "t1w-only")) == 2
    assert "synthetic_sub_00" in names(
        choose_training_images("synthetic", [damaged, *others], "all")
    )


@pytest.mark.parametrize(
    ("training_set", "kinds", "sentence"),
    [
        ("real", ["synthetic"] * 4, "set real: no control has a real PET; run .* or choose"),
        ("hybrid", ["synthetic"] * 4, "set hybrid: no control has a real PET; run .* or choose"),
        ("hybrid", ["both"] * 4, "no control without a real PET has a synthetic one; .* choose"),
        ("synthetic", ["both"] * 4, "no control without a real PET .* --synthetic-controls all"),
    ],
)
def test_a_training_set_without_images_is_refused(training_set, kinds, sentence):
    with pytest.raises(UnusableDataError, match=sentence) as told:
        choose_training_images(training_set, pictured(kinds), "t1w-only")
    assert told.value.exit_code == 65


# Too few controls


def test_fewer_controls_than_folds_or_than_two_folds_are_refused():
    with pytest.raises(UnusableDataError, match=r"3 control\(s\) with a PET are f") as told:
        assign_folds(pictured(["real", "both", "synthetic"]), 4, 0)
    assert f"{told.value}".endswith("fewer than --folds 4; choose fewer folds, or add controls")
    with pytest.raises(UsageError, match="--folds 1: leaving controls out needs at least 2"):
        assign_folds(pictured(["real"] * 3), 1, 0)


@pytest.mark.parametrize(
    ("kinds", "training_set"), [(["real"] * 3, "real"), (["both"] * 3, "hybrid")]
)
def test_a_fold_is_trained_on_two_controls_at_least(kinds, training_set):
    """Two images of one control are not two controls, because pairs are of two people."""
    controls = pictured(kinds)
    trained = choose_training_images(training_set, controls, "all")
    with pytest.raises(UnusableDataError, match=r"has 1 control\(s\) to train on") as told:
        split(trained, controls, assign_folds(controls, 2, 0), 2, 0)
    assert f"{told.value}".endswith("but needs 2; add controls, or choose --folds 3")
    with pytest.raises(UnusableDataError, match=r"but needs 2; add controls$"):
        split(trained[:2], controls[:2], assign_folds(controls[:2], 2, 0), 2, 0)
    folds = split(trained, controls, assign_folds(controls, 3, 0), 3, 0)  # as the sentence advises
    assert all(len({*map(owner, fold.training)}) == 2 for fold in folds)


# Seeds


@given(st.integers(0, 2**32 - 1), st.integers(0, 2**32 - 1))
def test_folds_and_runs_have_seeds_of_their_own(one, other):
    seeds = [seed_of(seed, "encoder", fold) for seed in {one, other} for fold in range(1, 6)]
    assert len(set(seeds)) == len(seeds)
    assert all(0 <= seed < 2**32 for seed in seeds)
    assert seed_of(one, "encoder", 1) == seeds[[*{one, other}].index(one) * 5]


def test_training_sets_share_the_seeds_of_folds():
    controls = pictured(["both"] * 6)
    dealt = assign_folds(controls, 3, 11)
    for name in TRAINING_SETS:
        folds = split(choose_training_images(name, controls, "all"), controls, dealt, 3, 11)
        assert [fold.seed for fold in folds] == [
            seed_of(11, "encoder", number) for number in (1, 2, 3)
        ]


# Stored images


def test_a_visit_is_stored_from_its_own_images():
    both = participant("01", "both", session="a")
    real, made = plan_storage(SCREENING, [both], synthetic=True)
    assert [real] == plan_storage(SCREENING, [both], synthetic=False)
    assert (real.name, made.name) == (
        "real_sub_01_ses_a_trc_18FFDG",
        "synthetic_sub_01_ses_a_trc_18FFDG",
    )
    assert (real.volumes, made.volumes) == ({"pet": both.pet}, {"pet": both.synthetic})
    assert (real.real, made.real) == (("pet",), ())
    for one in (real, made):
        assert (one.participant, one.session) == ("01", "a")
        assert one.brain_mask == both.visit.brain_mask
        assert one.folder == Path("/work/pictures") / one.name


def test_two_pets_of_a_visit_share_their_synthetic_one():
    one = participant("p1", "both")
    runs = [replace(one, pet=image("p1", "preproc", f"run-{n}")) for n in (1, 2)]
    plans = plan_storage(SCREENING, runs, synthetic=True)
    assert [plan.name for plan in plans] == [
        "real_sub_p1_trc_18FFDG_run_1",
        "synthetic_sub_p1_trc_18FFDG",
        "real_sub_p1_trc_18FFDG_run_2",
    ]
    init_storing_wf(plans, shape=GRID.shape, affine=GRID.affine.tolist())


def test_the_session_of_a_pet_is_not_that_of_the_t1w_it_lies_on():
    one = replace(participant("01", "both", session="a"), pet=image("01", "preproc", session="b"))
    assert one.session == "b"
    assert [plan.session for plan in plan_storage(SCREENING, [one], synthetic=True)] == ["b", "a"]


@given(st.sets(st.text("+Pa0", min_size=1, max_size=4), min_size=2, max_size=6))
def test_whoever_has_another_label_has_another_name(labels):
    people = [participant(label, "both", session) for label in labels for session in (None, label)]
    names = [plan.name for plan in plan_storage(SCREENING, people, synthetic=True)]
    assert len(set(names)) == 4 * len(labels)
    assert all(name.isascii() and name.isidentifier() for name in names)


def test_what_was_not_stored_is_not_there():
    both = participant("01", "both")
    real, made = (
        replace(one, sha256="sha") for one in plan_storage(SCREENING, [both], synthetic=True)
    )
    assert join_stored(both, {}) == both
    assert join_stored(both, {made.name: made}) == replace(both, stored_synthetic=made)
    assert join_stored(both, {real.name: real}) == replace(both, stored_pet=real)
    joined = join_stored(both, {real.name: real, made.name: made})
    real = replace(real, synthetic=made)
    assert joined == replace(both, stored_pet=real, stored_synthetic=made)


def test_a_synthetic_image_is_never_stored_as_a_measured_one(tmp_path, rng):
    """Even if renamed and with a sidecar of a real PET, its header still says SYNTHETIC."""
    out = tmp_path / "out"
    paths = write_control(out, "01", rng)
    made = write_synthetic(out, paths, rng)
    pet = paths.pets[0].in_template
    visit = Preprocessed("01", None, paths.t1w_in_template, paths.brain_mask_in_template, (), made)
    study = replace(SCREENING, output_dir=out, work_dir=tmp_path / "work")
    one = Participant(visit, pet, made, SyntheticMaker("g", "a" * 64))
    plans = plan_storage(study, [one], synthetic=True)

    def run(name):
        graph = init_storing_wf(plans, shape=GRID.shape, affine=GRID.affine.tolist())
        graph.get_node(f"store_{name}").interface.run(cwd=str(tmp_path))

    for plan in plans:
        run(plan.name)
        (stored,) = open_arrays(plan.folder, ["pet"])
        np.testing.assert_array_equal(stored, nifti.load(plan.volumes["pet"]).data)
        assert read_owner(plan.folder).participant == "01"
    assert len({read_digest(plan.folder) for plan in plans}) == 2
    made.replace(pet)
    with pytest.raises(UnusableDataError, match=r"preproc_pet\.nii\.gz: its header says SYNTHETIC"):
        run(plans[0].name)


# Messages


def test_the_card_tells_real_from_synthetic():
    people = [participant(f"{n:02}", kind) for n, kind in enumerate(KINDS)]
    people[0] = replace(people[0], pet=image("00", "preproc", session="b"))
    controls = stored_of(people)
    dealt = {"00": 2, "01": 1, "02": 3}
    told = list_training_controls(
        choose_training_images("hybrid", controls, "all"), controls, dealt
    )
    rows = [(one["participant"], one["session"], one["synthetic"], one["fold"]) for one in told]
    assert rows == [
        ("00", "b", False, 2),
        ("01", None, False, 1),
        ("00", None, True, 2),
        ("02", None, True, 3),
    ]
    for one in told:
        made = ("g", "a" * 64) if one["synthetic"] else ("", "")
        assert (one["generator"], one["generator_sha256"]) == made


def test_averages_tell_controls_from_their_pet():
    """Two of the three controls have a real and a synthetic PET."""
    trained = choose_training_images("hybrid", pictured(["both", "both", "real"]), "all")
    told = _describe_averages("hybrid", SCREENING, Subjects(()), trained, 2.5)[0]
    assert (told["NumberOfControls"], told["NumberOfSyntheticPET"]) == (3, 2)
    assert "Mean over 5 FDG PET, of which 2 are SYNTHETIC, of 3 controls" in told["Description"]


def settings_of(**own):
    return Settings(bids_dir=Path("raw"), output_dir=OUT, level="group", **own)


def test_without_names_the_defaults_that_fit_the_template_are_used():
    assert resolve_detectors(settings_of(), None).detectors == DEFAULT_DETECTORS
    for template in ("MNI152NLin6Asym", "MNIColin27", "OASIS30ANTs"):
        skewed = resolve_detectors(settings_of(template=template), None)
        assert skewed.detectors == ("ocsvm", "zscore")
    assert resolve_detectors(settings_of(detectors=("asymmetry",)), None).detectors == (
        "asymmetry",
    )


@pytest.fixture
def card():
    made = {"direction": "hyper", "score_fwhm": 8.0}
    return SimpleNamespace(version="0.2", parameters=made, detectors=("ocsvm", "zscore"))


def test_a_detector_is_applied_as_it_was_made(card):
    for encoder, channels in (({}, "pet"), ({"channels": 2}, "t1w+pet")):
        card.parameters["encoder"] = encoder
        own = {"direction": "hyper", "score_smoothing": 8.0, "channels": channels}
        for asked in ({}, *({name: value} for name, value in own.items())):
            settled = resolve_detectors(settings_of(**asked), card)
            told = {name: getattr(settled, name) for name in own}
            assert (settled.detectors, told) == (card.detectors, own)
            assert encodes_t1w(settled) == (channels == "t1w+pet")
            assert encoder_spec(settled).channels == encoder.get("channels", 1)


@pytest.mark.parametrize(
    "asked", [{"direction": "hypo"}, {"score_smoothing": 0.0}, {"channels": "t1w+pet"}]
)
def test_a_detector_is_not_applied_otherwise_than_its_controls_were_scored(card, asked):
    with pytest.raises(UnusableDataError, match="made with --direction hyper --score-smoothing 8"):
        resolve_detectors(settings_of(**asked), card)


@pytest.mark.parametrize("name", ["direction", "score_fwhm"])
def test_a_detector_that_does_not_tell_its_direction_is_refused(card, name):
    del card.parameters[name]
    with pytest.raises(UnusableDataError, match=r"mri2pet 0\.2, does not record in which"):
        resolve_detectors(settings_of(), card)


@pytest.mark.parametrize(
    ("of_patient", "of_controls", "fits"),
    [
        ({"TimesBrainMean": 2.5}, {"times_mean": 2.5}, True),
        ({"Percentile": 99.9}, {"times_mean": 0.0}, True),
        ({"Percentile": 99.9}, {"times_mean": 2.5}, False),
        ({"TimesBrainMean": 2.5}, {"times_mean": 0.0}, False),
        ({"Percentile": 99.9}, {}, False),  # it is not known how the controls' were scaled
    ],
)
def test_a_detector_is_not_applied_to_pet_on_another_scale(
    card, tmp_path, of_patient, of_controls, fits
):
    pet = tmp_path / "sub-p1_desc-preproc_pet.nii.gz"
    write_json(sidecar_path(pet), {"IntensityScaling": of_patient})
    patient = SimpleNamespace(label="p1", pet=pet, maker=None)
    card.controls, card.parameters = (), {**card.parameters, **of_controls}
    settings = settings_of(detectors=("zscore",))
    if fits:
        refuse_card(tmp_path, card, settings, [patient])
        return
    with pytest.raises(UnusableDataError, match=r"not on the scale .* with --paper if"):
        refuse_card(tmp_path, card, settings, [patient])


@pytest.mark.parametrize(
    ("of_controls", "of_patient", "fits"),
    [(("g", "g"), "g", True), (("g", "g"), "default", False), (("g", "default"), "g", False)],
)
def test_a_detector_does_not_mix_synthetic_pet_of_several_generators(of_controls, of_patient, fits):
    def subject(label, name):
        path = Path(f"sub-{label}_pet.nii.gz")
        stored = SimpleNamespace(participant=label)
        return Participant(None, path, path, SyntheticMaker(name, "ab"), stored, stored)

    controls = tuple(subject(f"c{n}", name) for n, name in enumerate(of_controls))
    cohort = Subjects(controls, (subject("p1", of_patient),))
    study = SimpleNamespace(folds=2, seed=0)
    fold_of = {"c0": 1, "c1": 2}
    reason = "1 has 0 .* to train on" if fits else "made by different generators, g and default"
    with pytest.raises(UnusableDataError, match=reason):
        _folds_of("pseudonormal", study, [], fold_of, cohort)


def test_left_and_right_are_not_compared_on_a_template_that_is_not_symmetric():
    settings = Settings(
        bids_dir=Path("raw"), output_dir=OUT, level="group", detectors=("zscore", "asymmetry")
    )
    refuse_settings(settings)
    with pytest.raises(UsageError, match="MNI152NLin2009cAsym is not symmetric"):
        refuse_settings(replace(settings, template="MNI152NLin2009cAsym"))


def test_a_norm_is_applied_without_the_options_of_one_class_svms(card):
    """Its card has none of them, and they change nothing."""
    card.detectors, card.parameters = ("zscore",), {"direction": "hyper"}
    assert resolve_detectors(settings_of(), card).direction == "hyper"
    asked = settings_of(score_smoothing=3.0, channels="t1w+pet")
    assert not encodes_t1w(resolve_detectors(asked, card))
    with pytest.raises(UnusableDataError, match=r"made with --direction hyper, as were"):
        resolve_detectors(settings_of(direction="hypo"), card)
