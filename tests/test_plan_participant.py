from dataclasses import replace
from hashlib import sha256
from itertools import combinations
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from bids_app import nifti
from bids_app.app.participant import _report_copies, _Reports
from bids_app.derivatives.find import SourceDigests, fingerprint
from bids_app.derivatives.paths import sidecar_path
from bids_app.derivatives.sidecars import Space
from bids_app.derivatives.tables import describe_regions
from bids_app.errors import ReadWriteError, UnusableDataError
from bids_app.files import write_json
from bids_app.generators import GeneratorChoice, Options
from bids_app.imaging.volume import Grid
from bids_app.plan import participant
from bids_app.plan.participant import (
    ParticipantPlan,
    _check_pet,
    _preprocessing_outputs,
    _synthesis_plan,
    describe_copies,
    init_visit_wf,
    is_done,
    plan_visit,
    refuse_unprepared,
)
from bids_app.synthesis.card import Card
from bids_app.synthesis.models import MODELS
from bids_app.visit import Derived, Scan, Visit
from bids_app.workflows.registration import Preprocessing

GRID = Grid((4, 4, 4), np.diag([4.0, 4, 4, 1]))
NAMES = ("overlap", "match_histogram", "uncertainty", "novelty")


def card_of(sha256, reference="r"):
    affine = tuple(tuple(row) for row in GRID.affine.tolist())
    return Card(
        "mine",
        "7",
        MODELS["semi3d-gan-mse"],
        "T",
        GRID.shape,
        affine,
        sha256,
        "noise",
        "tests",
        ("02",),
        "none",
        0,
        reference_sha256=reference,
    )


@pytest.fixture
def visit(tmp_path):
    path = tmp_path / "raw" / "sub-01" / "anat" / "sub-01_T1w.nii.gz"
    path.parent.mkdir(parents=True)
    path.write_bytes(b"raw")
    return Visit("01", None, Scan(path, "01", None, (("sub", "01"),)))


@pytest.fixture
def run(tmp_path):
    for name in ("template", "grid", "mask"):
        (tmp_path / name).touch()
    for name in ("generator", "fold-1", "fold-2"):
        (tmp_path / name).mkdir()
    how = Preprocessing(
        tmp_path / "template",
        tmp_path / "grid",
        tmp_path / "mask",
        "auto",
        (),
        99.9,
        2.5,
        quick=True,
        seed=0,
        omp_nthreads=1,
    )
    choice = GeneratorChoice(tmp_path / "generator", card_of("s"))
    write_json(tmp_path / "out" / "dataset_description.json", {"Name": "mri2pet: raw"})
    return ParticipantPlan(
        tmp_path / "raw",
        tmp_path / "out",
        Space("T", 4.0, "t"),
        how,
        {},
        "all",
        choice,
        1.5,
        "cpu",
        "0.1.0",
        SourceDigests(tmp_path / "raw", tmp_path / "out" / "digests.json"),
    )


def with_options(run, *names):
    options = Options(**dict.fromkeys(names, True))
    return replace(run, generator=replace(run.generator, options=options))


def _check_that_copies_are_told_of_in_order(visits, run, note):
    plans, warned = [plan_visit(visits[label], run) for label in ("02", "01", "03")], []
    copies = _report_copies(plans, run, SimpleNamespace(warn=warned.append))
    assert copies == {"01": [note], "02": describe_copies(visits["02"], run), "03": []}
    assert warned == [f"sub-{label}: {said}" for label in copies for said in copies[label]]
    nobody = SimpleNamespace(visits=(), unused=())
    parts = SimpleNamespace(output_dir=run.output_dir), nobody, copies, ({}, ()), None, (), None, 0
    (run.output_dir / "sub-01").mkdir(parents=True)
    assert _Reports(*parts, None)._summarize("01", []) == {"notes": [], "problems": [note]}
    unread = [plan_visit(visits["01"], run, dry=True)]
    assert not any(_report_copies(unread, run, SimpleNamespace(warn=pytest.fail)).values())


def test_a_raw_image_of_two_people_is_told_of(visit, run, monkeypatch):
    monkeypatch.setattr("bids_app.derivatives.find.SETTLED", -60.0)
    raw, visits = run.bids_dir, {}
    contents = {"01": (b"raw", b"pet"), "02": (b"raw", b"other"), "03": (b"its own", b"third")}
    for label, images in contents.items():
        scans = []
        for kind, content in zip(("anat/sub-{}_T1w", "pet/sub-{}_pet"), images, strict=True):
            path = raw / f"sub-{label}" / f"{kind.format(label)}.nii.gz"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
            scans.append(Scan(path, label, None, (("sub", label),)))
        visits[label] = Visit(label, None, scans[0], (scans[1],))
        plan_visit(visits[label], run)
    (note,) = describe_copies(visits["01"], run)
    assert note.startswith("sub-01_T1w.nii.gz is the same file as sub-02_T1w.nii.gz, so one of")
    assert describe_copies(visits["03"], run) == []
    _check_that_copies_are_told_of_in_order(visits, run, note)
    later = replace(visits["03"].t1w, path=raw / "sub-03/ses-b/anat/sub-03_ses-b_T1w.nii.gz")
    later.path.parent.mkdir(parents=True)
    later.path.write_bytes(b"its own")
    again = Visit("03", "b", later, (replace(visits["03"].pets[0], path=later.path),))
    plan_visit(again, run)
    assert describe_copies(visits["03"], run) == []  # one T1w may stand in several sessions
    (note,) = describe_copies(again, run)  # but may not be a PET
    assert "is the same file as sub-03_T1w.nii.gz" in note
    derived = raw / "derivatives" / "app" / "sub-03_T1w.nii.gz"  # may be a copy
    derived.parent.mkdir(parents=True)
    derived.write_bytes(b"its own")
    assert run.digests.of(derived) == run.digests.of(visits["03"].t1w.path)
    assert describe_copies(visits["03"], run) == []
    outputs = _preprocessing_outputs(plan_visit(visits["01"], run), run)
    digests = {sidecar.get("SourceSHA256") for _, sidecar in outputs.values()}
    assert digests == {None, *(sha256(content).hexdigest() for content in contents["01"])}


def test_without_options_a_result_is_known_by_what_it_was_known_by_before(visit, run):
    plan = plan_visit(visit, run)
    assert plan.synthesized == fingerprint(
        {"fwhm": 1.5, "preprocessed": plan.preprocessed},
        [visit.t1w.path],
        bids_dir=run.bids_dir,
        generator_sha256="s",
    )


def test_each_choice_of_options_is_another_result(visit, run):
    chosen = [names for count in range(5) for names in combinations(NAMES, count)]
    marks = {plan_visit(visit, with_options(run, *names)).synthesized for names in chosen}
    assert len(marks) == len(chosen) == 16


@pytest.mark.parametrize("option", ["match_histogram", "novelty"])
def test_another_reference_is_another_result(visit, run, option):
    one = with_options(run, option)
    other = replace(one, generator=replace(one.generator, card=card_of("s", "other")))
    assert plan_visit(visit, one).synthesized != plan_visit(visit, other).synthesized
    assert (
        plan_visit(visit, run).synthesized
        == plan_visit(
            visit, replace(run, generator=replace(run.generator, card=card_of("s", "other")))
        ).synthesized
    )


def test_other_knowledge_of_errors_is_another_result(visit, run):
    one = with_options(run, "uncertainty")
    card = replace(one.generator.card, uncertainty_sha256="other")
    other = replace(one, generator=replace(one.generator, card=card))
    assert plan_visit(visit, one).synthesized != plan_visit(visit, other).synthesized


def write(path: Path, mark):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"made")
    write_json(sidecar_path(path), {"Fingerprint": mark})


def with_pet(visit, **metadata):
    """Return a visit with a real PET."""
    path = visit.t1w.path.parents[1] / "pet" / "sub-01_trc-18FFDG_pet.nii.gz"
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(b"raw")
    pet = Scan(path, "01", None, (("sub", "01"), ("trc", "18FFDG")), tuple(metadata.items()))
    return replace(visit, pets=(pet,))


def finish(plan):
    """Write all results of a visit with a real PET."""
    (pet,) = plan.paths.pets
    for path in plan.paths.preprocessed:
        write(path, plan.preprocessed)
    for path in (plan.paths.synthetic_pet, plan.paths.synthetic_pet_in_t1w, *pet.subtracted):
        write(path, plan.synthesized)
    told = {"Fingerprint": plan.synthesized, "Measures": {}}
    write_json(sidecar_path(plan.paths.synthetic_pet), told)


def test_a_visit_is_done_when_its_map_of_uncertainty_is(visit, run):
    wanted = with_options(run, "uncertainty")
    for one in (run, wanted):
        plan = plan_visit(visit, one)
        for path in plan.paths.preprocessed:
            write(path, plan.preprocessed)
        write(plan.paths.synthetic_pet, plan.synthesized)
        assert not is_done(plan, one)
        write(plan.paths.synthetic_pet_in_t1w, plan.synthesized)
        assert is_done(plan, one) is (one is run)
    write(plan.paths.uncertainty, plan.synthesized)
    assert is_done(plan, wanted)
    write(plan.paths.uncertainty, "another")
    assert not is_done(plan, wanted)


def write_regions(plan, run):
    """Write the table of uptake by region as a run does."""
    path, sidecar = _synthesis_plan(plan, run, run.generator).regions
    path.write_text("pet\n")
    write_json(sidecar_path(path), sidecar)


@pytest.mark.parametrize("stage", ["all", "synthesize"])
def test_a_visit_without_its_table_of_regions_is_not_done(visit, run, stage):
    """The table is missing after a failure or an interruption, or belongs to another generator."""
    in_mni = replace(run, space=Space("MNI152NLin2009aSym", 4.0, "t"))
    plan = plan_visit(with_pet(visit), in_mni)
    finish(plan)
    later, table = replace(in_mni, stage=stage), plan.paths.regions
    assert not is_done(plan, later)
    write_regions(plan, in_mni)
    assert is_done(plan, later)
    assert is_done(plan, replace(in_mni, stage="preprocess"))
    write_regions(replace(plan, synthesized="another"), in_mni)
    assert not is_done(plan, later)
    write_json(sidecar_path(table), describe_regions())  # as earlier runs of this version wrote it
    assert is_done(plan, later)
    sidecar_path(table).unlink()
    assert not is_done(plan, later)
    write_regions(plan, in_mni)
    table.write_text("")
    assert not is_done(plan, later)
    elsewhere = plan_visit(with_pet(visit), run)  # in a space for which there is no atlas
    finish(elsewhere)
    assert is_done(elsewhere, run)


def test_sidecars_tell_what_was_done_beyond_the_paper(visit, run):
    told = []
    for names in ((), NAMES):
        chosen = with_options(run, *names)
        graph = init_visit_wf(plan_visit(visit, chosen), chosen)
        found = {node.name: node for node in graph._create_flat_graph()}
        told.append(found["save_synthetic_pet"].inputs.sidecar)
        assert ("save_uncertainty" in found) is bool(names)
    plain, beyond = told
    added = {"OverlappingTripletsAveraged", "HistogramMatchedTo"}
    assert set(beyond) - set(plain) == added
    deviation = found["save_uncertainty"].inputs
    assert Path(deviation.out_file).name == "sub-01_trc-18FFDG_space-T_res-4_desc-synth_std.nii.gz"
    assert (
        Path(deviation.sidecar_file).name == "sub-01_trc-18FFDG_space-T_res-4_desc-synth_std.json"
    )
    assert deviation.sidecar["ErrorModelSHA256"] == ""
    assert deviation.sidecar["Synthetic"] is True
    assert deviation.sidecar["Fingerprint"] == beyond["Fingerprint"]
    assert "Standard deviation of the error" in deviation.sidecar["Description"]


@pytest.mark.parametrize(
    ("subject", "dataset", "known"),
    [("02", "the same", True), ("02", "another", False), ("01", "the same", False)],
)
def test_a_generator_knows_people_of_its_own_dataset(visit, run, subject, dataset, known):
    """Labels such as 02 belong to other people in other datasets."""
    write_json(run.output_dir / "dataset_description.json", {"Name": "mri2pet: the same"})
    card = replace(run.generator.card, dataset=dataset)
    chosen = replace(run, generator=replace(run.generator, card=card))
    plan = plan_visit(replace(visit, subject=subject), chosen)
    graph = init_visit_wf(plan, chosen)
    (save,) = (n for n in graph._create_flat_graph() if n.name == "save_synthetic_pet")
    assert save.inputs.sidecar["TrainedOnThisParticipant"] is known


@pytest.mark.parametrize("of_whom", [("02",), ("02", "03"), ()])
def test_a_dataset_that_was_renamed_since_is_still_known(visit, run, of_whom):
    """By the cross-validation results of each person whom the generator was trained on."""
    write_json(run.output_dir / "dataset_description.json", {"Name": "mri2pet: a better title"})
    card = replace(run.generator.card, dataset="the same", participants=("sub-02", "sub-03"))
    for label in of_whom:
        (run.output_dir / "crossvalidation" / card.name / f"sub-{label}").mkdir(parents=True)
    chosen = replace(run, generator=replace(run.generator, card=card))
    graph = init_visit_wf(plan_visit(replace(visit, subject="02"), chosen), chosen)
    (save,) = (n for n in graph._create_flat_graph() if n.name == "save_synthetic_pet")
    assert save.inputs.sidecar["TrainedOnThisParticipant"] is (len(of_whom) == 2)


def test_an_orientation_that_is_vouched_for_is_another_result_where_it_is_used(visit, run):
    def known(code):
        return plan_visit(replace(visit, t1w=replace(visit.t1w, orientation=code)), run)

    digests = {code: known(code).preprocessed for code in ("", "LAS", "RAS")}
    assert len(set(digests.values())) == 3
    assert digests[""] == plan_visit(visit, run).preprocessed
    graph = init_visit_wf(known("RAS"), run)
    (read,) = (node for node in graph._get_all_nodes() if node.name == "read")
    assert read.inputs.orientation == "RAS"


def test_a_t1w_of_another_app_that_turns_out_to_be_stripped_is_another_result(visit, run, tmp_path):
    """Its sidecar was corrected; the images are unchanged."""
    root, marks = tmp_path / "fmriprep", []
    image = root / "sub-01/anat/sub-01_desc-preproc_T1w.nii.gz"
    image.parent.mkdir(parents=True)
    image.write_bytes(b"made")
    for stripped in (False, True):
        derived = Derived("fmriprep", root, "fMRIPrep", image, image, skull_stripped=stripped)
        taken = replace(visit, t1w=replace(visit.t1w, derived=derived))
        marks.append(plan_visit(taken, run).preprocessed)
    assert marks[0] != marks[1]
    decisive = {
        "frame_durations": [],
        "derivatives": [["fmriprep", "sub-01/anat/" + image.name, run.digests.of(image)]] * 2,
    }
    assert marks[0] == fingerprint(decisive, [visit.t1w.path], bids_dir=run.bids_dir)  # unchanged


def test_a_dry_run_reads_no_image_of_whom_nothing_is_there(visit, run, monkeypatch):
    read = []
    monkeypatch.setattr(SourceDigests, "of", lambda _self, path: read.append(path) or "d")
    plan = plan_visit(visit, run, dry=True)
    assert (read, is_done(plan, run)) == ([], False)
    whole = plan_visit(visit, run)
    assert read
    assert plan.paths == whole.paths
    read.clear()
    plan.paths.t1w_in_template.parent.mkdir(parents=True, exist_ok=True)
    plan.paths.t1w_in_template.write_bytes(b"made")
    assert plan_visit(visit, run, dry=True) == whole
    assert read


@pytest.mark.parametrize(
    ("stage", "written", "unit"),
    [
        ("synthesize", {"Units": "SUVR"}, "SUVR"),
        ("synthesize", {}, None),
        ("synthesize", None, "Bq/mL"),
        ("all", {"Units": "SUVR"}, "Bq/mL"),
    ],
)
def test_a_scaled_synthetic_pet_has_the_unit_of_the_real_one_that_it_is_scaled_to(
    visit, run, stage, written, unit
):
    """The later stage finds the PET of an earlier run, possibly from another app."""
    plan, later = plan_visit(with_pet(visit, Units="Bq/mL"), run), replace(run, stage=stage)
    for result in (plan.paths.t1w, plan.paths.template_to_t1w, plan.paths.pets[0].in_t1w):
        result.parent.mkdir(parents=True, exist_ok=True)
        result.write_bytes(b"made")
    if written is not None:
        write_json(sidecar_path(plan.paths.pets[0].in_t1w), written)
    (_, sidecar), _ = _synthesis_plan(plan, later, later.generator).subtracted
    assert sidecar.get("Units") == unit


@pytest.mark.parametrize("lost", [0, 1])
def test_a_later_stage_compares_with_the_first_pet_or_with_none(visit, run, monkeypatch, lost):
    """As the run of both stages does; another PET would be taken for the first in reports."""
    monkeypatch.setattr(participant, "check_space", lambda *_: None)
    monkeypatch.setattr(participant.nifti, "read_grid", lambda _: GRID)
    monkeypatch.setattr(participant, "init_synthesis_from_disk_wf", dict)
    first = with_pet(visit).pets[0]
    second = replace(first, entities=(*first.entities, ("run", "2")))
    plan = plan_visit(replace(visit, pets=(first, second)), run)
    for path in plan.paths.preprocessed:
        write(path, plan.preprocessed)
    failed = {"Registration": {"Verdict": "fail"}}
    write_json(sidecar_path(plan.paths.pets[lost].in_template), failed)
    given = init_visit_wf(plan, replace(run, stage="synthesize"))
    pet = plan.paths.pets[0]
    expected = (pet.in_template, pet.coverage_in_template, pet.in_t1w) if lost else (None,) * 3
    files = [f"{name}_in_template" for name in ("pet", "coverage")] + ["pet_in_t1w"]
    assert tuple(map(given["files"].get, files)) == expected


@pytest.mark.parametrize("stage", ["all", "preprocess"])
@pytest.mark.parametrize("unit", ["Bq/mL", None, ("Bq", "mL")])
def test_a_unit_that_was_corrected_in_a_raw_sidecar_reaches_the_results(visit, run, stage, unit):
    """The image is unchanged, so only the sidecar shows the correction."""
    told, later = {} if unit is None else {"Units": unit}, replace(run, stage=stage)
    plan = plan_visit(with_pet(visit, **told), run)
    finish(plan)
    (pet,) = plan.paths.pets
    assert is_done(plan, later) is (unit is None)
    for image, mark in ((pet.in_t1w, plan.preprocessed), (pet.subtracted[0], plan.synthesized)):
        write_json(sidecar_path(image), {"Fingerprint": mark, **told})
    assert is_done(plan, later)
    assert is_done(plan, replace(run, stage="synthesize"))
    corrected = plan_visit(with_pet(visit, Units="kBq/mL"), run)
    assert corrected.preprocessed == plan.preprocessed
    assert not is_done(corrected, later)
    written = {"Fingerprint": plan.preprocessed, "Units": "kBq/mL"}
    write_json(sidecar_path(pet.in_t1w), written)
    assert is_done(corrected, replace(run, stage="preprocess"))
    for again in ("all", "synthesize"):  # the synthetic PET in that unit does not exist yet
        assert not is_done(corrected, replace(run, stage=again))


def test_a_start_that_was_corrected_in_a_raw_sidecar_reaches_the_results(visit, run):
    """Other levels compare when PETs were measured, which the sidecar of the result tells."""
    told = {"FrameTimesStart": (600.0,), "FrameDuration": (1200.0,), "InjectionStart": 0.0}
    plan = plan_visit(with_pet(visit, **told), run)
    for corrected in ({"FrameTimesStart": (2400.0,)}, {"InjectionStart": -1800.0}):
        again = plan_visit(with_pet(visit, **told | corrected), run)
        assert again.preprocessed != plan.preprocessed
    same = {"FrameTimesStart": (700.0,), "InjectionStart": 100.0}  # another time zero
    assert plan_visit(with_pet(visit, **told | same), run).preprocessed == plan.preprocessed


@pytest.mark.parametrize("stage", ["all", "preprocess", "synthesize"])
@pytest.mark.parametrize("left", [None, "", "[]", "{"])
def test_a_visit_that_was_killed_beside_any_image_is_computed_again(visit, run, stage, left):
    """The sidecar may be left by a run that was killed, or by a partial copy of its results."""
    plan = plan_visit(with_pet(visit), run)
    finish(plan)
    read = (plan.paths.synthetic_pet, *plan.paths.pets[0].subtracted)
    made = plan.paths.preprocessed if stage != "synthesize" else ()
    looked_at = {*made, plan.paths.pets[0].in_template, *(read if stage != "preprocess" else ())}
    later = replace(run, stage=stage)
    assert is_done(plan, later)
    for path in looked_at:
        sidecar = sidecar_path(path)
        before = sidecar.read_text()
        sidecar.unlink() if left is None else sidecar.write_text(left)
        assert not is_done(plan, later), path
        sidecar.write_text(before)
    assert is_done(plan, later)


@pytest.mark.parametrize("kind", ["t1w", "pet"])
@pytest.mark.parametrize("left", [None, ""])
def test_synthesis_from_an_image_without_its_sidecar_says_what_makes_it_again(
    visit, run, monkeypatch, kind, left
):
    monkeypatch.setattr(participant, "check_space", lambda *_: None)
    monkeypatch.setattr(participant.nifti, "read_grid", lambda _: GRID)
    plan, later = plan_visit(with_pet(visit), run), replace(run, stage="synthesize")
    finish(plan)
    refuse_unprepared(plan, later)
    image = plan.paths.t1w_in_template if kind == "t1w" else plan.paths.pets[0].in_template
    sidecar = sidecar_path(image)
    sidecar.unlink() if left is None else sidecar.write_text(left)
    error = ReadWriteError if left is None else UnusableDataError
    with pytest.raises(error, match=rf"{image.name} may be .*--stage preprocess for sub-01 again"):
        refuse_unprepared(plan, later)


def test_a_pet_that_mri2pet_has_predicted_is_no_measured_one(tmp_path):
    path = tmp_path / "sub-01_trc-18FFDG_pet.nii"
    image = nifti.Image(np.ones((40, 40, 40), np.float32), np.diag([4.0, 4, 4, 1]))
    nifti.save(image, path, description=nifti.SYNTHETIC_PET)
    pet = Scan(path, "01", None, (("sub", "01"), ("trc", "18FFDG")))
    with pytest.raises(UnusableDataError, match="predicted, not measured; give the acquired PET"):
        _check_pet(pet, (), "")
    nifti.save(image, path)
    assert _check_pet(pet, (), "").shape == (40, 40, 40)


def test_a_predicted_pet_without_its_mark_in_the_header_is_refused(tmp_path):
    path = tmp_path / "sub-01_trc-18FFDG_pet.nii.gz"
    nifti.save(nifti.Image(np.ones((40, 40, 40), np.float32), np.diag([4.0, 4, 4, 1])), path)
    pet = Scan(path, "01", None, (("sub", "01"), ("trc", "18FFDG")))
    for odd, told in (
        (replace(pet, metadata=(("Synthetic", True),)), "its sidecar says Synthetic"),
        (replace(pet, entities=(*pet.entities, ("desc", "synth"))), "its name says desc-synth"),
        (replace(pet, entities=(*pet.entities, ("desc", "difference"))), "its name says desc-diff"),
    ):
        with pytest.raises(UnusableDataError, match=f"{told}.*, so it was predicted, not measured"):
            _check_pet(odd, (), "")
    honest = replace(pet, metadata=(("Synthetic", False),))
    assert _check_pet(honest, (), "").shape == (40, 40, 40)
    nifti.save(nifti.load(path), path, description=f"From {nifti.SYNTHETIC_PET}")
    with pytest.raises(UnusableDataError, match="its header says SYNTHETIC FDG PET"):
        _check_pet(pet, (), "")
