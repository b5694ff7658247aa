import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from cohorts import GRID, SPACE, TEMPLATE, stored_image, write_control, write_controls
from hypothesis import given
from hypothesis import strategies as st

from bids_app.derivatives.find import Preprocessed, find_preprocessed
from bids_app.derivatives.paths import entities_of, sidecar_path
from bids_app.errors import MissingInputError, UnusableDataError, UsageError
from bids_app.files import write_json
from bids_app.imaging.volume import Grid
from bids_app.interfaces.training import PublishGenerator
from bids_app.plan import train as planning
from bids_app.plan.study import Study, seed_of
from bids_app.plan.train import (
    assign_folds,
    baseline_paths,
    bases_of,
    choose_initial,
    gather_records,
    plan_model,
    plan_storage,
    records_path,
    synthetic_path,
)
from bids_app.synthesis.card import Card, card_from
from bids_app.synthesis.evaluation import ScoreRecord, Scores, records_to_json, without_lpips
from bids_app.synthesis.inference import save_generator
from bids_app.synthesis.losses import build_generator
from bids_app.synthesis.models import MODELS, TissueSpec, spec_to_dict
from bids_app.synthesis.tiling import SingleSlices, SliceTriplets
from bids_app.synthesis.tissue import TissueModel
from bids_app.workflows.training import Fold

STUDY = Study(
    output_dir=Path("/out"),
    work_dir=Path("/work"),
    space=SPACE,
    grid=GRID,
    dataset="ellipsoids",
    folds=3,
    fwhm=1.5,
    overlap=False,
    seed=5,
    versions={"mri2pet": "7", "torch": "2"},
)
NAME, SPEC = "semi3d-gan-mse", MODELS["semi3d-gan-mse"]


def control(subject, session=None, out=Path("/out")):
    folder = out / f"sub-{subject}" if session is None else out / f"sub-{subject}/ses-{session}"
    return Preprocessed(
        subject,
        session,
        folder / "anat/t1w.nii.gz",
        folder / "anat/mask.nii.gz",
        (folder / "pet/pet.nii.gz", folder / "pet/other.nii.gz"),
        None,
    )


def stored(count):
    return [stored_image(f"{n:02}", Path(f"/volumes/{n:02}"), f"sha{n:02}") for n in range(count)]


def plan(count=7, study=STUDY, name=NAME, spec=SPEC):
    visits = stored(count)
    controls = {visit.participant: control(visit.participant) for visit in visits}
    return plan_model(study, name, spec, assign_folds(study, visits), controls)


# Volumes


def test_each_control_is_stored_in_a_folder_of_its_own():
    controls = [control("01"), control("01", "b"), control("1+2"), control("x", "y+z")]
    plans = plan_storage(STUDY, controls)
    assert [one.folder.name for one in plans] == ["sub_01", "sub_01_b", "sub_1+2", "sub_x_y+z"]
    assert all(one.folder.parent == Path("/work/volumes") for one in plans)
    assert all(one.name.isidentifier() for one in plans)  # as required by nipype
    for one, other in zip(plans, controls, strict=True):
        assert (one.participant, one.session) == (other.subject, other.session)
        assert (one.volumes, one.brain_mask) == (
            {"t1w": other.t1w, "pet": other.pets[0]},
            other.brain_mask,
        )


# Training from an initial generator

TISSUE_SPEC = TissueSpec((1, 1, 1), GRID.shape)


@pytest.fixture
def study(tmp_path, monkeypatch):
    """A dataset called ellipsoids, and a function that adds a generator to it."""
    monkeypatch.setattr(planning, "dataset_names", lambda _: ["ellipsoids"])
    here = replace(STUDY, output_dir=tmp_path)

    def put(spec, name="before", participants=("01",), dataset="others"):
        built = TissueModel(spec) if isinstance(spec, TissueSpec) else build_generator(spec)
        affine = tuple(tuple(row) for row in GRID.affine.tolist())
        space = here.space.template
        card = Card(name, "0", spec, space, GRID.shape, affine, "", "x", "x", participants, "", 0)
        return save_generator(built, replace(card, dataset=dataset), tmp_path / "generators" / name)

    return here, put


SMALL = replace(SPEC, n_blocks=1, width=2)
SEEING = replace(SMALL, condition=TISSUE_SPEC)


@pytest.mark.parametrize(
    ("initial", "row", "words"),
    [
        (SMALL, SMALL, ""),
        (replace(SMALL, cycle=True, mse_weight=0.0), SMALL, ""),
        (SEEING, SEEING, ""),
        (SEEING, TISSUE_SPEC, ""),
        (TISSUE_SPEC, TISSUE_SPEC, ""),
        (TISSUE_SPEC, SEEING, ""),
        (TISSUE_SPEC, SMALL, "it is a tissue model, not a network; give --condition"),
        (SMALL, TISSUE_SPEC, "it has no tissue model; name networks"),
        (SMALL, SEEING, "only one of them is given a tissue model; run without --condition"),
        (SEEING, SMALL, "only one of them is given a tissue model; run with --condition"),
        (replace(SMALL, width=3), SMALL, "its width is 3, not 2; give --width 3"),
        (replace(SMALL, n_blocks=2), SMALL, "it has 2 residual blocks, not 1; choose another"),
        (MODELS["patch3d-gan-mse"], SMALL, "it is 3D-patch, but the row is semi-3D"),
        (replace(SMALL, tiling=SingleSlices()), SMALL, "it is 2D, but the row is semi-3D"),
        (replace(SMALL, tiling=SliceTriplets(axes="PL")), SMALL, "its slices are oriented"),
    ],
)
def test_a_row_goes_on_from_what_is_built_alike(study, initial, row, words):
    here, put = study
    card = put(initial)
    if not words:
        choice = choose_initial("before", here, {"row": row}, ["01"], sloppy=False)
        assert choice.card == card
        return
    with pytest.raises(UsageError, match="--init before: cannot start row: ") as refusal:
        choose_initial("before", here, {"row": row}, ["01"], sloppy=False)
    assert words in f"{refusal.value}"


def test_a_tissue_model_initialises_on_any_grid_of_its_template(study):
    here, put = study
    put(TISSUE_SPEC)
    put(SMALL, name="network")
    other = replace(here, grid=Grid((9, 9, 9), GRID.affine))
    for row in (TISSUE_SPEC, SEEING):
        choose_initial("before", other, {"row": row}, ["02"], sloppy=False)
    with pytest.raises(UnusableDataError, match=r"its card says .* or another generator"):
        choose_initial("network", other, {"row": SMALL}, ["02"], sloppy=False)


def test_nobody_is_left_out_whom_the_initial_generator_has_seen(study):
    here, put = study
    put(SMALL, dataset="ellipsoids")
    choose_initial("before", here, {"row": SMALL}, ["02"], sloppy=False)
    with pytest.raises(
        UnusableDataError, match=r"trained on sub-01, .*--exclude-participant-label"
    ):
        choose_initial("before", here, {"row": SMALL}, ["01", "02"], sloppy=False)


def test_an_initial_generator_is_not_replaced_and_tissue_is_a_condition(study):
    here, put = study
    put(SMALL)
    with pytest.raises(UsageError, match="this run would replace it; copy"):
        choose_initial("before", here, {"before": SMALL}, [], sloppy=False)
    with pytest.raises(UsageError, match=r"--init tissue: networks are .* by --condition tissue"):
        choose_initial("tissue", here, {"row": SMALL}, [], sloppy=False)
    with pytest.raises(MissingInputError, match="--init nobody: no folder"):
        choose_initial("nobody", here, {"row": SMALL}, [], sloppy=False)


def test_what_a_row_went_on_from_is_in_its_card_and_its_checkpoints_are_others(study):
    here, put = study
    first = put(SMALL)
    choice = choose_initial("before", here, {"row": SMALL}, [], sloppy=False)
    visits = stored(7)
    controls = {visit.participant: control(visit.participant) for visit in visits}
    dealt = assign_folds(STUDY, visits)
    later = plan_model(STUDY, NAME, SMALL, dealt, controls, initial=choice)
    new = plan_model(STUDY, NAME, SMALL, dealt, controls)
    assert card_from(dict(later.card)).initialized_from == first.origins
    assert later.card["trained_on"].endswith("starting from generator before")
    assert (later.initial, later.initial_sha256) == (choice.folder, first.sha256)
    assert not set(later.checkpoints) & set(new.checkpoints)


# Folds


@given(count=st.integers(3, 12), folds=st.integers(2, 3), seed=st.integers(0, 50))
def test_folds_leave_each_control_out_once(count, folds, seed):
    visits = stored(count)
    dealt = assign_folds(replace(STUDY, folds=folds, seed=seed), visits)
    assert [fold.number for fold in dealt] == list(range(1, folds + 1))
    left_out = [one.participant for fold in dealt for one in fold.validation]
    assert sorted(left_out) == [visit.participant for visit in visits]
    for fold in dealt:
        together = [*fold.training, *fold.validation]
        assert sorted(together, key=lambda one: one.participant) == visits


def test_folds_follow_the_seed_of_the_run_and_nothing_else():
    visits = stored(12)
    assert assign_folds(STUDY, visits) == assign_folds(replace(STUDY, fwhm=9, versions={}), visits)
    assert assign_folds(STUDY, visits) != assign_folds(replace(STUDY, seed=6), visits)


def test_a_control_that_is_added_or_lost_changes_the_digests_of_folds():
    one, other = (assign_folds(STUDY, stored(count)) for count in (6, 7))
    assert all(a.digests != b.digests for a, b in zip(one, other, strict=True))


def test_digests_tell_training_from_validation():
    one, two, three = stored(3)
    fold, other = Fold(1, [one, two], [three]), Fold(1, [one], [two, three])
    assert fold.digests != other.digests


def test_too_few_controls_are_refused():
    with pytest.raises(UnusableDataError, match=r"2 subject.* fewer than --folds 3"):
        assign_folds(STUDY, stored(2))
    with pytest.raises(UsageError, match="--folds 1"):
        assign_folds(replace(STUDY, folds=1), stored(2))


# Seeds and checkpoints


def test_every_fit_has_a_seed_of_its_own():
    seeds = [seed_of(STUDY.seed, name, place) for name in MODELS for place in range(5)]
    assert len(set(seeds)) == len(seeds)
    assert all(0 <= seed < 2**63 for seed in seeds)  # the range that torch and nipype accept
    assert seeds == [seed_of(STUDY.seed, name, place) for name in MODELS for place in range(5)]


def test_seeds_follow_that_of_the_run():
    one, other = ([seed_of(seed, NAME, place) for place in range(5)] for seed in (5, 6))
    assert not set(one) & set(other)
    assert plan().seeds == [seed_of(STUDY.seed, NAME, place) for place in range(4)]


CHANGES = {
    "spec": {"spec": replace(SPEC, batch_size=6)},
    "seed": {"study": replace(STUDY, seed=6)},
    "smoothing": {"study": replace(STUDY, fwhm=2.0)},
    "controls": {"count": 8},
    "row": {"name": "semi3d-gan"},
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_fit_that_would_end_otherwise_has_another_checkpoint(change):
    before, after = plan().checkpoints, plan(**CHANGES[change]).checkpoints
    assert len(set(before)) == 4
    assert not set(before) & set(after)


def test_checkpoints_stay_where_the_work_is():
    versions = replace(STUDY, versions={"mri2pet": "8"}, output_dir=Path("/elsewhere"))
    controls = {
        image.participant: control(image.participant, out=Path("/elsewhere")) for image in stored(7)
    }
    other = plan_model(versions, NAME, SPEC, assign_folds(versions, stored(7)), controls)
    assert plan().checkpoints == other.checkpoints
    assert {path.parent for path in other.checkpoints} == {Path("/work/checkpoints") / NAME}
    names = [path.name.partition("_")[0] for path in other.checkpoints]
    assert names == ["fold-1", "fold-2", "fold-3", "all"]


# Results


@pytest.mark.parametrize("session", [None, "b"])
def test_a_synthetic_pet_is_named_by_bids_below_its_row(session):
    path = synthetic_path(STUDY, NAME, control("01", session))
    between = "" if session is None else "/ses-b"
    named = "sub-01" if session is None else "sub-01_ses-b"
    assert path.as_posix() == (
        f"/out/crossvalidation/{NAME}/sub-01{between}/pet/"
        f"{named}_trc-18FFDG_space-{TEMPLATE}_res-4_desc-synth_pet.nii.gz"
    )
    assert entities_of(path)["desc"] == "synth"


def test_each_fold_tells_of_those_it_left_out():
    made, folds = plan(), assign_folds(STUDY, stored(7))
    assert len(made.records) == 3
    for fold, records, pets in zip(folds, made.records, made.pets, strict=True):
        assert records == records_path(STUDY, NAME, fold.number)
        labels = [entities_of(path)["sub"] for path, _ in pets]
        assert labels == [one.participant for one in fold.validation]
        for path, sidecar in pets:
            assert sidecar_path(path) == path.with_name(path.name[: -len(".nii.gz")] + ".json")
            assert (sidecar["Fold"], sidecar["Folds"]) == (fold.number, 3)


@pytest.mark.parametrize(
    ("name", "overlap", "expected"),
    [(NAME, True, True), (NAME, False, False), ("patch3d-gan-mse", True, False)],
)
def test_the_pet_of_those_left_out_is_made_as_that_of_patients(name, overlap, expected):
    made = plan(study=replace(STUDY, overlap=overlap), name=name, spec=MODELS[name])
    assert made.overlap is expected
    sidecars = [sidecar for pets in made.pets for _, sidecar in pets]
    assert {sidecar.get("OverlappingTripletsAveraged", False) for sidecar in sidecars} == {expected}


def test_a_sidecar_says_that_it_is_synthetic_and_whose_it_is():
    made = plan(study=replace(STUDY, fwhm=2.5))
    path, told = made.pets[0][0]
    label = entities_of(path)["sub"]
    sidecar = json.loads(json.dumps(dict(told)))
    assert sidecar["Synthetic"] is True
    assert sidecar["TrainedOnThisParticipant"] is False
    assert sidecar["Description"].startswith("SYNTHETIC")
    assert sidecar["Sources"] == [f"bids::sub-{label}/anat/t1w.nii.gz"]
    assert sidecar["Generator"] == {"Name": NAME, "Version": "7"}
    assert sidecar["Version"] == "7"
    assert sidecar["SmoothingFWHM"] == 2.5
    assert sidecar["SkullStripped"] is True
    assert sidecar["SpatialReference"] == SPACE.reference


def test_files_of_rows_and_baselines_do_not_collide():
    folds = assign_folds(STUDY, stored(7))
    paths = baseline_paths(STUDY, folds)
    paths += [path for name in MODELS for path in plan(name=name).records]
    paths += [path for name in MODELS for pets in plan(name=name).pets for path, _ in pets]
    assert len(set(paths)) == len(paths) == 3 * 7 + 6 * 7
    assert all(path.is_relative_to("/out/crossvalidation") for path in paths)


def test_the_card_tells_of_all_controls():
    made = plan()
    card = card_from(dict(made.card))
    assert card.participants == tuple(f"{n:02}" for n in range(7))
    assert (card.name, card.version, card.seed, card.dataset) == (NAME, "7", 5, "ellipsoids")
    assert (card.template, card.shape) == (TEMPLATE, GRID.shape)
    np.testing.assert_array_equal(card.affine, GRID.affine)
    assert card.spec == SPEC
    assert made.spec == spec_to_dict(SPEC)
    assert "7 controls (ellipsoids)" in card.trained_on
    assert "research" in card.intended_use
    assert made.folder == Path("/out/generators") / NAME
    json.dumps(made.card, allow_nan=False)


def test_a_card_is_what_a_node_takes():
    PublishGenerator(card=dict(plan().card))


# One table


SCORES = Scores(*[0.5] * 8)


def write_scores(study, name, folds, *, told=True, lpips="published"):
    """Write the scores of a row as its nodes do; without ``lpips``, they have none."""
    for fold, basis in zip(folds, bases_of(study, folds), strict=True):
        records = [
            ScoreRecord(name, image.participant, None, fold.number, SCORES)
            for image in fold.validation
        ]
        records = records if lpips else [*map(without_lpips, records)]
        content = records_to_json(records, basis, lpips)
        if not told:
            del content["Basis"]
        write_json(records_path(study, name, fold.number), content)


def rescanned(images):
    return [replace(image, sha256=f"new {image.sha256}") for image in images]


def renamed(images):
    return [replace(image, participant=f"x{image.participant}") for image in images]


EARLIER = {
    "the same": (STUDY, stored(7)),
    "other images": (STUDY, rescanned(stored(7))),
    "other people": (STUDY, renamed(stored(7))),
    "other folds": (replace(STUDY, seed=6), stored(7)),
    "other smoothing": (replace(STUDY, fwhm=2.0), stored(7)),
    "another template": (replace(STUDY, space=replace(SPACE, template="MNI305")), stored(7)),
}


@pytest.mark.parametrize("with_baselines", [True, False])
@pytest.mark.parametrize("earlier", EARLIER)
def test_a_table_holds_what_rests_on_the_images_and_folds_of_this_run(
    tmp_path, earlier, with_baselines
):
    """A row of an earlier run has the same participants, but may be on another grid."""
    study, folds = replace(STUDY, output_dir=tmp_path), assign_folds(STUDY, stored(7))
    before, images = EARLIER[earlier]
    before = replace(before, output_dir=tmp_path)
    write_scores(before, "semi3d-gan", assign_folds(before, images))
    write_scores(study, "tissue", folds)
    if with_baselines:
        write_scores(study, "baselines", folds)
    records, notes = gather_records(study, folds)
    mine = {"semi3d-gan"} if earlier == "the same" else set()
    expected = {"tissue", *mine, *(["baselines"] if with_baselines else [])}
    assert {record.model for record in records} == expected
    assert len(records) == 7 * len(expected)
    assert len(notes) == 1 - len(mine)
    assert all(
        note.startswith("semi3d-gan: not in the table, because it was cross-") for note in notes
    )


def test_scores_that_do_not_tell_what_they_rest_on_are_in_no_table(tmp_path):
    study, folds = replace(STUDY, output_dir=tmp_path), assign_folds(STUDY, stored(7))
    for name in ("tissue", "baselines"):
        write_scores(study, name, folds, told=False)
    records, (note,) = gather_records(study, folds)
    assert records == []
    assert note.startswith("tissue: not in the table")


@pytest.mark.parametrize(
    ("weights", "kept"),
    [
        ({"baselines": "a", "semi3d-gan": "b", "tissue": "a"}, {"baselines", "tissue"}),
        ({"baselines": "", "semi3d-gan": "b", "tissue": "a"}, {"semi3d-gan"}),
        ({"baselines": "", "semi3d-gan": "", "tissue": "a"}, {"tissue"}),
        (
            {"baselines": "a", "semi3d-gan": "a", "tissue": "a"},
            {"baselines", "semi3d-gan", "tissue"},
        ),
    ],
)
def test_lpips_of_other_weights_is_in_no_column(tmp_path, weights, kept):
    study, folds = replace(STUDY, output_dir=tmp_path), assign_folds(STUDY, stored(7))
    for name, lpips in weights.items():
        write_scores(study, name, folds, lpips=lpips)
    records, notes = gather_records(study, folds)
    assert {record.model for record in records if not np.isnan(record.scores.lpips)} == kept
    assert {record.model for record in records if not np.isnan(record.scores.lpips_brain)} == kept
    assert all(record.scores.ssim == 0.5 for record in records)
    measured = {name for name, lpips in weights.items() if lpips}
    assert {note.partition(": its LPIPS is n/a")[0] for note in notes} == measured - kept


def test_a_row_of_which_a_fold_has_no_scores_is_in_no_table(tmp_path):
    study, folds = replace(STUDY, output_dir=tmp_path), assign_folds(STUDY, stored(7))
    write_scores(study, "tissue", folds)
    records_path(study, "tissue", 2).unlink()
    assert gather_records(study, folds) == (
        [],
        ["tissue: not in the table, because scores of a fold are missing"],
    )


# Data leakage


def test_what_cross_validation_writes_never_passes_for_a_measurement(tmp_path, rng):
    """Neither in the dataset, nor if a row's folder is used as one, whatever the sidecar says."""
    out = tmp_path / "out"
    write_controls(out, ["01", "02", "03"], rng)
    study = replace(STUDY, output_dir=out)
    before = find_preprocessed(out, TEMPLATE, 4.0)
    controls = {one.subject: one for one in before}
    visits = [stored_image(label, tmp_path / label, label) for label in controls]
    made = plan_model(study, NAME, SPEC, assign_folds(study, visits), controls)
    for pets in made.pets:
        for path, sidecar in pets:
            write_json(sidecar_path(path), {**sidecar, "Synthetic": False})
            path.write_bytes(b"synthetic")
    assert find_preprocessed(out, TEMPLATE, 4.0) == before
    row = out / "crossvalidation" / NAME
    for label in controls:
        write_control(row, label, rng, pet=False)
    alone = find_preprocessed(row, TEMPLATE, 4.0)
    assert [one.subject for one in alone] == ["01", "02", "03"]
    assert [one.pets for one in alone] == [(), (), ()]
    assert all("desc-synth" in one.synthetic.name for one in alone)
