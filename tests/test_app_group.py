"""The group level end to end, with --sloppy, on simulated people without registration."""

import hashlib
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from contextlib import contextmanager, redirect_stderr
from dataclasses import replace
from html import unescape
from importlib.metadata import version
from io import StringIO
from pathlib import Path
from types import SimpleNamespace

import nibabel as nib
import numpy as np
import pytest
from bids import BIDSLayout
from cohorts import (
    GRID,
    LESION,
    SHIFT,
    TEMPLATE,
    copy_of,
    files,
    lesion_mask,
    running_with,
    tell,
    uptake,
    write_controls,
    write_native,
    write_screened,
)
from nilearn.image import load_img
from nipype.interfaces.io import BIDSDataGrabber
from scipy import ndimage

from bids_app import nifti, templates
from bids_app.app import group, participant
from bids_app.app.run import RELEASE
from bids_app.cli import main, parse
from bids_app.dataset.validation import find_validator
from bids_app.derivatives.detections import (
    control_sum_scores,
    read_all_clusters,
    read_clusters_table,
    read_control_clusters,
    read_control_maps,
    read_curve,
    read_froc,
    read_tests,
)
from bids_app.detection import slabs
from bids_app.detection.card import CALIBRATION, CONTROL_CLUSTERS, check_files, read_card
from bids_app.errors import UnusableDataError, UsageError
from bids_app.files import read_json, read_tsv, write_json, write_tsv
from bids_app.plan import detectors
from bids_app.settings import Settings

pytestmark = pytest.mark.slow

SETS, DETECTORS = ("real", "hybrid", "synthetic"), ("ocsvm", "zscore", "pseudonormal")
REAL, T1W_ONLY = ("c1", "c2", "c3", "c4", "c5", "c6"), ("d1", "d2", "d3", "d4", "d5", "d6")
PATIENTS = ("p1", "p2")  # T1w stored as RAS and as LAS
MADE = (
    "detectors",
    "tpl-*",
    ".work",
    "logs",
    "*_statmap.*",
    "*_clusters.*",
    "*_dseg.*",
    "*label-L*",
    "detection_*",
    "synthetic_controls.*",
    "clusters.*",
    "*.html",
)
OWN_MASK = ("space-T1w_label-L_mask", "desc-preproc_T1w")  # on the grid of the preprocessed T1w
COARSE = np.array([[5.0, 0, 0, -70], [0, 5, 0, -100], [0, 0, 5, -40], [0, 0, 0, 1]])


def arguments(out, *options):
    machine = ("--sloppy", "--folds", "2", "--nprocs", "1", "--omp-nthreads", "1")
    return [str(out.parent / "raw"), str(out), "group", *machine, *options]


def make_small(patch):
    """Use three slabs per volume, as a volume at 1 mm has many, and train only briefly."""
    patch.setattr(slabs, "THICKNESS", 0.75)
    whole, small = detectors.encoder_spec, {"epochs": 1, "pairs_per_epoch": 256}
    patch.setattr(detectors, "encoder_spec", lambda settings: replace(whole(settings), **small))


@pytest.fixture(scope="module", autouse=True)
def _small():
    with pytest.MonkeyPatch.context() as patch:
        make_small(patch)
        yield


@contextmanager
def without_pages():
    """Skip the reports of patients, which take longer than everything else here."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(participant, "write_subject_report", lambda *_, **__: None)
        yield


def tell_groups(out, **others):
    groups = {**dict.fromkeys((*REAL, *T1W_ONLY), "control"), **dict.fromkeys(PATIENTS, "patient")}
    tell(out, {**groups, **others})


def write_masks(folder):
    """Write lesion masks, one in T1w space and one in template space, on other grids."""
    for label, space, shift in (("p1", "T1w", SHIFT), ("p2", TEMPLATE, (0, 0, 0))):
        name = f"sub-{label}_space-{space}_label-L_mask.nii"  # p2's is not compressed
        path = folder / f"sub-{label}" / "anat" / (name + ".gz" * (label == "p1"))
        path.parent.mkdir(parents=True)
        nifti.save(nifti.Image(lesion_mask(COARSE, (29, 37, 27), shift), COARSE), path)


def write_atlas(folder):
    """Write an atlas of three slabs from left to right; the last has no name."""
    data = np.repeat([1, 2, 3], (15, 5, 9)).reshape(29, 1, 1) * np.ones((29, 37, 27), np.int16)
    nifti.save(nifti.Image(data.astype(np.int16), COARSE), folder / "atlas.nii.gz")
    rows = [{"index": 1, "name": "Left"}, {"index": 2, "name": "Midline"}]
    write_tsv(folder / "atlas.tsv", ["index", "name"], rows)


def knowledge(folder):
    atlas = ("--atlas", str(folder / "atlas.nii.gz"), str(folder / "atlas.tsv"))
    return ("-d", f"lesions={folder / 'lesions'}", *atlas)


@pytest.fixture(scope="module")
def out(tmp_path_factory):
    """Run with all training sets, detectors and optional inputs, by a plugin of nipype."""
    folder = tmp_path_factory.mktemp("group")
    out, rng = folder / "out", np.random.default_rng(5)
    write_controls(out, [], rng)
    for label in (*REAL, *T1W_ONLY):
        write_screened(out, label, rng, pet=label in REAL)
    for label in PATIENTS:
        paths = write_screened(out, label, rng, lesion=True)
        write_native(paths, flipped=label == "p2")
    (sidecar,) = out.glob("sub-d1/pet/*_desc-synth_pet.json")
    told = read_json(sidecar)
    write_json(
        sidecar, {**told, "Generator": {**told["Generator"], "IntendedUse": "Demonstration"}}
    )
    tell_groups(out)
    write_masks(folder / "lesions")
    write_atlas(folder)
    write_json(folder / "plugin.json", {"plugin": "MultiProc", "plugin_args": {"n_procs": 1}})
    wanted = ("--training-set", *SETS, "--detectors", *DETECTORS)
    plugin = ("--use-plugin", str(folder / "plugin.json"))
    said = StringIO()
    with redirect_stderr(said):
        command = arguments(out, *wanted, *plugin, *knowledge(folder), "--resource-monitor")
        assert main(command) == 0
    (folder / "said").write_text(said.getvalue())
    return out


def root_of(out, training_set):
    return out if training_set == "real" else out / "detectors" / training_set


def result(root, label, name, space=f"{TEMPLATE}_res-4"):
    return root / f"sub-{label}" / "pet" / f"sub-{label}_trc-18FFDG_space-{space}_{name}"


def used(training_set):
    return [one for one in DETECTORS if one != "pseudonormal" or training_set == "real"]


def sha256(detector):
    return hashlib.sha256((detector / "card.json").read_bytes()).hexdigest()


EVERY = [(one, detector) for one in SETS for detector in used(one)]


def load(path):
    image = nib.load(path)
    return image.get_fdata(dtype=np.float32), image.affine


# Options


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        ("--training-set hybrid real hybrid", {"training_set": ("hybrid", "real")}),
        ("--training_set synthetic", {"training_set": ("synthetic",)}),
        ("--detectors zscore zscore ocsvm", {"detectors": ("zscore", "ocsvm")}),
        ("--synthetic-controls all", {"synthetic_controls": "all"}),
        ("--patient-query x==1 --control_query x==2", {"patient_query": "x==1"}),
        ("--detector /a/b", {"detector": Path("/a/b")}),
        ("--nu 0.1 --clusters 3", {"nu": 0.1, "clusters": 3}),
        ("--min-cluster-size 0 --cluster_extent 0.5", {"min_cluster_size": 0.0}),
        ("--atlas /a.nii /b.tsv", {"atlas": (Path("/a.nii"), Path("/b.tsv"))}),
        ("-d lesions=/l", {"derivatives": (("lesions", Path("/l")),)}),
        ("--direction hyper", {"direction_of_scores": "hyper", "fwhm_of_scores": 8.0}),
        ("--paper", {"direction_of_scores": "both", "fwhm_of_scores": 0.0}),
        ("--paper --score-smoothing 4", {"direction_of_scores": "both", "fwhm_of_scores": 4.0}),
        ("", {"direction_of_scores": "hypo", "fwhm_of_scores": 8.0}),
        ("", {"training_set": ("real",), "detectors": (), "folds": 4}),
    ],
)
def test_flags_become_settings(flags, expected):
    found = parse(["/raw", "/out", "group", *flags.split()])
    assert {name: getattr(found, name) for name in expected} == expected


@pytest.mark.parametrize(
    "flags",
    [
        "--training-set mixed",
        "--detectors ocsvm lstm",
        "--synthetic-controls none",
        "--nu 0",
        "--nu 1",
        "--nu nan",
        "--clusters 0",
        "--min-cluster-size -1",
        "--min-cluster-size inf",
        "--cluster-extent 1",
        "-d lesions",
        "--training-set",
        "--folds 0",
    ],
)
def test_flags_that_cannot_be_understood(flags):
    with pytest.raises(UsageError, match=flags.split()[0]):
        parse(["/raw", "/out", "group", *flags.split()])


@pytest.mark.parametrize("atlas", ["one.nii.gz", "a/names.tsv", "a.nii b.tsv c", "HOCPA x y"])
def test_an_atlas_is_a_name_or_two_files(atlas):
    with pytest.raises(UsageError, match=f"--atlas {re.escape(atlas)}: give the name"):
        parse(["/raw", "/out", "group", "--atlas", *atlas.split()])


def test_an_atlas_is_found_by_its_name(monkeypatch):
    asked = []
    found = (Path("/a.nii"), Path("/b.tsv"))
    monkeypatch.setattr(templates, "atlas_of_templateflow", lambda *of: asked.append(of) or found)
    given = ["/raw", "/out", "group", "--template", "MNI152NLin6Asym", "--atlas", "HOCPA:th25"]
    assert parse(given).atlas == found
    assert asked == [("HOCPA:th25", "MNI152NLin6Asym")]


# Files that a run leaves


@pytest.mark.parametrize(("training_set", "detector"), EVERY)
def test_patients_and_controls_have_all_files(out, training_set, detector):
    root = root_of(out, training_set)
    images = [f"stat-t_desc-{detector}_statmap", f"desc-{detector}_dseg"]
    made_by = {
        "URI": f"bids::detectors/{training_set}/card.json",
        "Dataset": "ellipsoids",
        "Version": version("mri2pet"),
        "SHA256": sha256(out / "detectors" / training_set),
    }
    for label in (*PATIENTS, *REAL):
        spaces = [f"{TEMPLATE}_res-4", *(["T1w"] if label in PATIENTS else [])]
        for space in spaces:
            for name in images:
                data, _ = load(result(root, label, f"{name}.nii.gz", space))
                assert data.shape == GRID.shape
                assert np.isfinite(data).all()
                told = read_json(result(root, label, f"{name}.json", space))
                assert (told["Detector"], told["TrainingSet"]) == (detector, training_set)
                assert told["DetectorCard"] == made_by
                assert all((out / one.removeprefix("bids::")).is_file() for one in told["Sources"])
        for space in (f"{TEMPLATE}_res-4", "T1w"):
            for ending in (".tsv", ".json"):
                table = result(root, label, f"desc-{detector}_clusters{ending}", space)
                assert table.is_file() is (label in PATIENTS)
    for label in T1W_ONLY:
        assert not list(root.glob(f"sub-{label}/pet/*stat*"))


def test_the_map_of_an_image_is_0_outside_the_brain_and_its_labels_are_ranks(out):
    brain = uptake(np.random.default_rng(0))[1]
    for label in (*PATIENTS, *REAL):
        score, affine = load(result(out, label, "stat-t_desc-zscore_statmap.nii.gz"))
        ranks, _ = load(result(out, label, "desc-zscore_dseg.nii.gz"))
        np.testing.assert_allclose(affine, GRID.affine)
        assert not score[~brain].any()
        assert np.unique(ranks).tolist() == list(range(int(ranks.max()) + 1))
        assert score[ranks > 0].min(initial=np.inf) > np.quantile(score[brain], 0.97)


@pytest.mark.parametrize(("training_set", "detector"), EVERY)
def test_the_planted_lesion_is_the_top_cluster_and_it_is_on_the_left(out, training_set, detector):
    for label in PATIENTS:
        path = result(root_of(out, training_set), label, f"desc-{detector}_clusters.tsv")
        first = read_clusters_table(path)[0]
        assert (first.rank, first.side, first.region) == (1, "left", "Left")
        assert np.linalg.norm(np.subtract((first.x, first.y, first.z), LESION)) < 10
        assert first.overlap > (0.1 if detector == "ocsvm" else 0.5) * first.volume
        assert first.expected_in_control < 1


@pytest.mark.parametrize("label", PATIENTS)
@pytest.mark.parametrize(
    "name", ["stat-t_desc-ocsvm_statmap", "stat-t_desc-zscore_statmap", "desc-zscore_dseg"]
)
def test_what_is_left_in_the_template_is_left_on_the_t1w_however_that_is_stored(out, label, name):
    there, _ = load(result(out, label, f"{name}.nii.gz"))
    carried, affine = load(result(out, label, f"{name}.nii.gz", "T1w"))
    assert bool(affine[0, 0] < 0) is (label == "p2")
    turned = carried[::-1] if label == "p2" else carried
    np.testing.assert_allclose(turned, there, atol=1e-3 * there.max())
    bright = carried > np.quantile(carried, 0.9985)  # 98 of all voxels
    where = np.argwhere(bright if "stat" in name else carried == 1)
    centre = where.mean(axis=0) @ affine[:3, :3].T + affine[:3, 3]
    assert np.linalg.norm(centre - LESION - SHIFT) < 10
    assert centre[0] < 0


@pytest.mark.parametrize("label", PATIENTS)
def test_clusters_have_the_same_ranks_and_scores_on_the_t1w_but_lie_where_they_are_there(
    out, label
):
    there = read_tsv(result(out, label, "desc-zscore_clusters.tsv"))
    here = read_tsv(result(out, label, "desc-zscore_clusters.tsv", "T1w"))
    assert len(here) == len(there) > 0
    for own, one in zip(here, there, strict=True):
        for column in ("rank", "peak_score", "sum_score", "expected_in_control", "side", "overlap"):
            assert own[column] == one[column]
        for lead in ("", "peak_"):
            place, other = ([float(line[f"{lead}{axis}"]) for axis in "xyz"] for line in (own, one))
            np.testing.assert_allclose(np.subtract(place, other), SHIFT, atol=0.1)
        assert float(own["volume"]) == pytest.approx(float(one["volume"]), rel=1e-3)


def test_controls_are_scored_by_the_fold_that_left_them_out(out):
    for training_set in SETS:
        card = read_card(out / "detectors" / training_set)
        folds = {control.participant: control.fold for control in card.controls}
        dealt = {
            control.participant: control.fold
            for control in read_card(out / "detectors/hybrid").controls
        }
        assert folds.items() <= dealt.items()
        for label in REAL:
            path = result(root_of(out, training_set), label, "stat-t_desc-zscore_statmap.json")
            assert read_json(path)["Fold"] == dealt[label]
    assert (
        read_json(result(out, "p1", "stat-t_desc-zscore_statmap.json"))["Fold"] == "mean over all"
    )


def test_a_card_tells_which_controls_are_synthetic_and_what_made_them(out):
    trained = {"real": REAL, "hybrid": (*REAL, *T1W_ONLY), "synthetic": T1W_ONLY}
    for training_set, labels in trained.items():
        card = read_card(out / "detectors" / training_set)
        assert {control.participant: control.synthetic for control in card.controls} == {
            label: label in T1W_ONLY for label in labels
        }
        for control in card.controls:
            generator = ("g", "a" * 64) if control.synthetic else ("", "")
            assert (control.generator, control.generator_sha256) == generator
        assert card.detectors == tuple(used(training_set))
        assert (card.template, card.shape, card.folds) == (TEMPLATE, GRID.shape, 2)
        assert card.slabs == ((0, 12), (12, 24), (24, 34))
        check_files(out / "detectors" / training_set, card)
        folder = out / "detectors" / training_set
        files = {path.relative_to(folder).as_posix() for path in folder.rglob("*.safetensors")}
        assert files | {"brain_mask.nii.gz", *CALIBRATION} == set(card.files)


def test_a_card_tells_what_the_generators_are_that_made_its_synthetic_pet(out):
    """For real PET, those that pseudonormal compares with; d1, without PET, has another."""
    untold = {"name": "g", "trained_on": "", "intended_use": ""}
    demonstration = untold | {"intended_use": "Demonstration"}
    for training_set, makers in (
        ("real", [untold]),
        ("hybrid", [untold, demonstration]),
        ("synthetic", [untold, demonstration]),
    ):
        assert read_card(out / "detectors" / training_set).makers == makers
    assert (
        "synthetic PET (g) is, by its own description, meant for demonstration"
        in (out / "group.html").read_text()
    )


def test_synthetic_pet_is_compared_with_real_pet_by_folds_that_knew_neither(out):
    rows = read_tsv(out / "synthetic_controls.tsv")
    dealt = {one.participant: one.fold for one in read_card(out / "detectors/hybrid").controls}
    whole = [row for row in rows if row["region"] == "brain"]
    seen = {(row["participant_id"], row["kind"], int(row["fold"])) for row in whole}
    real = {(f"sub-{label}", "real", dealt[label]) for label in REAL}
    assert seen == real | {(f"sub-{d}", "synthetic", k) for d in T1W_ONLY for k in (1, 2)}
    assert len(whole) == len(seen)
    assert {row["region"] for row in rows} > {"brain", "left frontal", "right frontal"}
    page = (out / "group.html").read_text()
    assert "Synthetic PET against real PET" in page
    assert "(6 synthetic against 6 held-out real PET)" in page


def test_tables_tell_of_all_patients_and_of_controls(out):
    listed = read_all_clusters(out)
    found = {(cluster.participant, cluster.training_set, cluster.detector) for cluster in listed}
    assert found == {(label, *pair) for label in PATIENTS for pair in EVERY}
    for cluster in listed:
        path = result(
            root_of(out, cluster.training_set),
            cluster.participant,
            f"desc-{cluster.detector}_clusters.tsv",
        )
        assert tuple(read_clusters_table(path)) == cluster.clusters
    for training_set in SETS:
        lines = read_control_clusters(out / "detectors" / training_set)
        assert {line.participant_id for line in lines} == {f"sub-{label}" for label in REAL}
        assert {line.detector for line in lines} == set(used(training_set))
        maps = read_control_maps(out / "detectors" / training_set)
        assert {(one.participant_id, one.detector) for one in maps} == {
            (line.participant_id, line.detector) for line in lines
        }
        brain = uptake(np.random.default_rng(0))[1]
        for one in maps:
            label = one.participant_id.removeprefix("sub-")
            name = f"stat-t_desc-{one.detector}_statmap.nii.gz"
            score, _ = load(result(root_of(out, training_set), label, name))
            assert one.above_zero == pytest.approx((score[brain] > 0).mean(), abs=1e-4)


def test_lesions_that_are_known_give_curves(out):
    points = read_curve(out)
    assert {(point.training_set, point.detector) for point in points} == set(EVERY)
    assert {(point.unit, point.clusters) for point in points} == {
        (unit, n) for unit in ("lesion", "patient") for n in range(1, 11)
    }
    assert {(point.n, point.found) for point in points} == {(2, 2)}
    assert len(read_tests(out)) == 2 * 10 * 21  # pairs of the 7 detectors in EVERY
    assert {(one.training_set, one.detector) for one in read_froc(out)} == set(EVERY)


def test_lesion_masks_on_other_grids_are_brought_onto_the_grid_and_that_is_said(out):
    for label in PATIENTS:
        folder = out / f"sub-{label}" / "anat"
        mask, affine = load(folder / f"sub-{label}_space-{TEMPLATE}_res-4_label-L_mask.nii.gz")
        assert mask.shape == GRID.shape
        np.testing.assert_allclose(affine, GRID.affine)
        planted = lesion_mask()
        both = (mask > 0) & planted
        name = f"sub-{label}_space-{TEMPLATE}_res-4_label-L_mask.json"
        drawn, *transforms = read_json(folder / name)["Sources"]
        assert drawn.startswith(f"bids:lesions:sub-{label}/anat/sub-{label}_space-")
        links = read_json(out / "dataset_description.json")["DatasetLinks"]
        assert links["lesions"] == (out.parent / "lesions").as_uri()
        assert (out.parent / "lesions" / drawn.removeprefix("bids:lesions:")).is_file()
        assert len(transforms) == (label == "p1")
        assert 2 * both.sum() > 0.85 * ((mask > 0).sum() + planted.sum())
        own, t1w = (nifti.load(folder / f"sub-{label}_{name}.nii.gz") for name in OWN_MASK)
        assert own.data.shape == t1w.data.shape
        np.testing.assert_allclose(own.affine, t1w.affine)
        planted = lesion_mask(t1w.affine, t1w.data.shape, SHIFT)
        both = (own.data > 0) & planted
        assert 2 * both.sum() > 0.85 * ((own.data > 0).sum() + planted.sum())
        told = read_json(folder / f"sub-{label}_{OWN_MASK[0]}.json")
        assert len(told["Sources"]) == 1 + (label == "p2")
        assert told["SpatialReference"].endswith(f"/sub-{label}_{OWN_MASK[1]}.nii.gz")
    notes = read_json(out / "logs" / "group_report.json")["notes"]
    grid = "to the grid of the template"
    carried = f"sub-p1_space-T1w_label-L_mask.nii.gz, resampled from the T1w {grid}"
    resampled = f"sub-p2_space-{TEMPLATE}_label-L_mask.nii, resampled {grid}"
    for note in (
        f"sub-p1: lesions are those of {carried}",
        f"sub-p2: lesions are those of {resampled}",
    ):
        assert note in notes
        assert note in (out / "group.html").read_text()


def test_patients_have_reports_that_tell_of_anomalies(out):
    for label in PATIENTS:
        assert "z score, training set real" in (out / f"sub-{label}.html").read_text()
    assert not list(out.glob("sub-[cd]*.html"))


def averages(root):
    stem = root / f"tpl-{TEMPLATE}" / "pet" / f"tpl-{TEMPLATE}_trc-18FFDG_res-4_desc-"
    return [Path(f"{stem}{name}_pet.nii.gz") for name in ("controlsmean", "controlssd")]


@pytest.mark.parametrize(("training_set", "people"), [("real", REAL), ("hybrid", REAL + T1W_ONLY)])
def test_mean_and_sd_of_the_controls_lie_in_the_folder_of_the_template(out, training_set, people):
    root = root_of(out, training_set)
    paths = [
        result(out, one, "desc-preproc_pet.nii.gz" if one in REAL else "desc-synth_pet.nii.gz")
        for one in people
    ]
    pets = np.stack([load(path)[0] for path in paths])
    mean, sd = averages(root)
    brain = load(mean)[0] > 0
    assert brain.sum() > 1000
    np.testing.assert_allclose(load(mean)[0], np.where(brain, pets.mean(axis=0), 0), atol=1e-6)
    expected = np.where(brain, pets.std(axis=0, ddof=1), 0)
    np.testing.assert_allclose(load(sd)[0], expected, atol=1e-6)
    told = read_json(mean.with_name(mean.name.replace(".nii.gz", ".json")))
    made = len(set(people) - set(REAL))
    assert (told["NumberOfControls"], told["NumberOfSyntheticPET"]) == (len(people), made)
    assert set(told["Sources"]) == {f"bids::{path.relative_to(out)}" for path in paths}
    assert (told["TrainingSet"], told["SmoothingFWHM"]) == (training_set, 0)
    assert told["IntensityScaling"] == {"Percentile": 99.9}
    assert ("SYNTHETIC" in told["Description"]) is bool(made)


def images_of(out):
    return [path for path in out.rglob("*.nii*") if ".work" not in path.parts]


def test_nilearn_opens_every_image_and_headers_say_their_space(out):
    assert len(images_of(out)) > 100
    for path in images_of(out):
        image = load_img(path)
        assert image.ndim == 3
        assert np.isfinite(image.get_fdata()).all()
        if path.is_relative_to(out / "detectors") or re.search("stat|dseg|tpl-", path.name):
            code = 2 if "_space-T1w_" in path.name else 4  # the others are created in this file
            if path.name != "brain_mask.nii.gz":
                assert (image.header["sform_code"], image.header["qform_code"]) == (code, code)


def test_pybids_opens_every_image_and_table(out):
    layout = BIDSLayout(out, validate=False, is_derivative=True)
    for path in images_of(out):
        file = layout.get_file(path)
        assert file.get_image().shape == nib.load(path).shape
        if path.name != "brain_mask.nii.gz":
            own = path.with_name(path.name.partition(".")[0] + ".json")
            assert file.get_metadata() == (read_json(own) if own.is_file() else {})
    tables = [path for path in out.rglob("*.tsv") if ".work" not in path.parts]
    for path in tables:
        assert len(layout.get_file(path).get_df()) == len(read_tsv(path))
    found = layout.get(desc="controlsmean", suffix="pet", tracer="18FFDG", extension=".nii.gz")
    assert {Path(file.path) for file in found} == {averages(root_of(out, one))[0] for one in SETS}


def test_nipype_grabs_every_image_by_its_labels(out):
    wanted = {
        "maps": {"suffix": "statmap"},
        "labels": {"suffix": "dseg"},
        "pets": {"suffix": "pet"},
        "anatomy": {"datatype": "anat"},
    }
    grab = BIDSDataGrabber(base_dir=str(out.parent / "raw"), extra_derivatives=[str(out)])
    grab.inputs.output_query = {
        name: {**query, "extension": [".nii.gz", ".nii"], "scope": "derivatives"}
        for name, query in wanted.items()
    }
    grabbed = grab.run().outputs.get()
    found = {Path(path) for name in wanted for path in grabbed[name]}
    assert found == {path for path in images_of(out) if path.name != "brain_mask.nii.gz"}


def test_what_each_step_used_is_written_and_the_largest_told(out):
    (path,) = out.glob("logs/*_resources.tsv")
    rows = read_tsv(path)
    assert set(rows[0]) == set(read_json(path.with_suffix(".json")))
    steps = {row["step"] for row in rows}
    assert {"encoder of fold 1", "one-class SVMs of fold 2, slab 3"} <= steps
    assert {row["owner"] for row in rows} >= {*SETS, *PATIENTS, *REAL, *T1W_ONLY}
    assert len({row["node"] for row in rows}) == len(rows) > 100  # of several graphs, each once
    for row in rows:
        assert 0.02 < float(row["peak_rss_gb"]) < 4
        assert float(row["cpu_seconds"]) >= 0
        assert 0 < float(row["wall_seconds"]) < 600
        assert int(row["threads"]) >= 1
        assert float(row["mem_gb"]) > 0
    said = " ".join((out.parent / "said").read_text().split())
    largest = max(rows, key=lambda row: float(row["peak_rss_gb"]))
    assert f"most memory {float(largest['peak_rss_gb']):.2f} GiB ({largest['owner']}: " in said
    assert str(path) in said


def test_labels_are_described(out):
    described = {row["desc_id"] for row in read_tsv(out / "descriptions.tsv")}
    assert {f"desc-{one}" for one in (*DETECTORS, "controlsmean", "controlssd")} <= described


@pytest.mark.skipif(find_validator() is None, reason="bids-validator-deno is not installed")
def test_the_validator_accepts_the_output(out, tmp_path):
    written = copy_of(out, tmp_path)
    told = subprocess.run([find_validator(), str(written)], check=False, capture_output=True)
    assert told.returncode == 0, told.stdout.decode()


# Runs into a dataset that already has results


def test_a_report_is_about_what_its_run_has_scored(out, tmp_path):
    there = copy_of(out, tmp_path)
    fewer = ("--participant-label", "p1", "--exclude-participant-label", "c1")
    with without_pages():
        assert main(arguments(there, *fewer, "--detectors", "zscore")) == 0
    page = (there / "group.html").read_text()
    assert "1 patient, scored by z score." in page
    assert "5 controls, for comparison" in page
    assert (
        "Left over from an earlier run, and not part of this report: all maps of sub-c1 and sub-p2"
        "; maps of OC-SVM, real of sub-c2, sub-c3, sub-c4, sub-c5, sub-c6 and 1 more; maps of "
        "pseudo-normal, real of sub-c2, sub-c3, sub-c4, sub-c5, sub-c6 and 1 more; all of "
        "detectors/hybrid and detectors/synthetic."
    ) in page
    assert {cluster.participant for cluster in read_all_clusters(there)} == {"p1"}
    assert not list(there.glob("detection_*"))  # no lesions were given to this run
    with without_pages():
        assert main(arguments(there, "--reports-only")) == 0
    assert (there / "group.html").read_text() == page


# Detectors that were trained before


@pytest.mark.parametrize(
    ("wanted", "told"),
    [
        (("zscore",), "this run removes what an earlier run has left there (ocsvm, pseudonormal)"),
        (("zscore", "ocsvm", "pseudonormal"), None),
    ],
)
def test_detectors_that_a_run_would_remove_are_told(out, wanted, told):
    settings = Settings(out.parent / "raw", out, "group", detectors=wanted)
    notes = detectors._describe_replaced(out / "detectors" / "real", settings)
    assert len(notes) == (told is not None)
    assert all(told in note for note in notes)
    assert detectors._describe_replaced(out / "detectors" / "none", settings) == []


def test_what_a_trained_detector_cannot_give_is_told(out):
    folder = out / "detectors" / "hybrid"
    told = [
        detectors._describe_not_applied(
            folder,
            read_card(folder),
            Settings(out, out, "group", detectors=names, training_set=sets),
        )
        for names, sets in ((("zscore", "pseudonormal"), ("synthetic",)), (("ocsvm",), ("real",)))
    ]
    assert told[0] == [
        f"{folder}: contains no pseudonormal, so no such map is made",
        f"{folder}: was trained on hybrid, which --training-set does not change",
    ]
    assert told[1] == []


def test_a_detector_knows_its_controls_when_their_dataset_was_renamed(out, tmp_path):
    here = out / "detectors" / "real"
    card = replace(read_card(here), dataset="an older title")
    control = SimpleNamespace(label=card.controls[0].participant, pet=None, maker=None)
    patients = SimpleNamespace(patients=[control])
    settings = Settings(out, out, "group", detectors=card.detectors)
    with pytest.raises(UnusableDataError, match=f"was trained on sub-{control.label}, now"):
        detectors.refuse_card(here, card, settings, [control])
    assert detectors._describe_namesakes(here, card, patients, out) == []
    detectors.refuse_card(tmp_path, card, settings, [control])  # the dataset may be another one
    (note,) = detectors._describe_namesakes(tmp_path, card, patients, out)
    assert f"sub-{control.label} of the dataset 'an older title'" in note


def without_controls(out, folder):
    """Copy the dataset as seen by a hospital that has no access to the controls."""
    there = copy_of(out, folder, *MADE, "sub-c*", "sub-d*")
    tell(there, dict.fromkeys(PATIENTS, "patient"))
    return there


def test_one_class_svms_may_see_the_t1w_and_are_applied_so(out, tmp_path):
    there = copy_of(out, tmp_path, *MADE)
    with without_pages():
        assert main(arguments(there, "--channels", "t1w+pet", "--detectors", "ocsvm")) == 0
        detector = shutil.move(there / "detectors" / "real", tmp_path / "detector")
        path = result(there, "p2", "stat-t_desc-ocsvm_statmap.nii.gz")
        made, before = load(path)[0], load(result(out, "p2", path.name.partition("res-4_")[2]))[0]
        path.unlink()
        assert main(arguments(there, "--detector", str(detector))) == 0
    assert read_card(detector).parameters["encoder"]["channels"] == 2
    assert "channels" not in read_card(out / "detectors" / "real").parameters["encoder"]
    np.testing.assert_allclose(load(path)[0], made, atol=1e-3 * np.abs(made).max())
    assert np.abs(made - before).max() > 0.1 * np.abs(made).max()


def test_a_detector_is_applied_without_its_controls_and_gives_the_same_maps(out, tmp_path):
    there = without_controls(out, tmp_path)
    detector = shutil.copytree(out / "detectors" / "real", tmp_path / "detector")
    before = files(detector)
    options = ("--detector", str(detector), "--detectors", *DETECTORS, "--clean-workdir")
    with without_pages():
        assert main(arguments(there, *options, "--participant-label", "p2", "--folds", "7")) == 0
    assert files(detector) == before
    assert not (there / "detectors").exists()
    for name in DETECTORS:
        for space in (f"{TEMPLATE}_res-4", "T1w"):
            path = f"stat-t_desc-{name}_statmap.nii.gz"
            new, old = (load(result(one, "p2", path, space))[0] for one in (there, out))
            np.testing.assert_allclose(new, old, atol=1e-3 * np.abs(old).max())
        new, old = (
            read_clusters_table(result(one, "p2", f"desc-{name}_clusters.tsv"))[0]
            for one in (there, out)
        )
        assert new.sum_score == pytest.approx(old.sum_score, rel=1e-3)
        assert new.expected_in_control == pytest.approx(old.expected_in_control, abs=0.2)
        assert new.overlap is None
        assert new.region is None or new.region.startswith("left")  # by the app's own atlas
        made_by = read_json(result(there, "p2", f"stat-t_desc-{name}_statmap.json"))["DetectorCard"]
        assert made_by["URI"] == (detector / "card.json").as_uri()
        assert (made_by["Dataset"], made_by["SHA256"]) == ("ellipsoids", sha256(detector))
    assert not list(there.glob("detection_*"))  # no lesions are known here
    assert not [path for path in (there / ".work").rglob("*") if path.suffix in {".npy", ".pklz"}]


@pytest.mark.parametrize(
    ("options", "code", "words"),
    [
        (("--resolution", "2"), 65, "choose its --template, --bounding-box and --resolution"),
        (("--template", "MNI152NLin6Asym"), 65, "its card says MNI152NLin2009aSym"),
        (
            ("--detectors", "pseudonormal"),
            65,
            "contains ocsvm, zscore; choose --detectors from these",
        ),
        (("--patient-query", "group == 'control'"), 65, "hybrid: was trained on sub-c1, sub-c2"),
    ],
)
def test_a_detector_that_does_not_fit_is_refused(out, capsys, options, code, words):
    before = files(out)
    detector = ("--detector", str(out / "detectors" / "hybrid"))
    assert main(arguments(out, *detector, *options)) == code
    assert words in capsys.readouterr().err
    assert files(out) == before


def with_ages(out, folder, ages):
    """Copy the inputs of a run, with the given ages by label, and 30, 34, … for all others."""
    there = copy_of(out, folder, *MADE)
    rows = read_tsv(there / "participants.tsv")
    for number, row in enumerate(rows):
        label = row["participant_id"].removeprefix("sub-")
        row["age"] = str(ages.get(label, 30 + 4 * number))
    write_tsv(there / "participants.tsv", ["participant_id", "group", "age"], rows)
    return there


def test_a_covariate_is_taken_out_here_and_where_the_detector_is_applied(out, tmp_path, capsys):
    (tmp_path / "here").mkdir()
    there = with_ages(out, tmp_path / "here", {"c6": "n/a", "p1": 99, "p2": 40})
    wanted = ("--covariates", "age", "--detectors", "ocsvm", "zscore", "--folds", "5")
    with without_pages():
        assert main(arguments(there, *wanted)) == 1  # c6 is excluded
        said = " ".join(capsys.readouterr().err.split())
        assert "sub-c6: participants.tsv has n/a in age, which --covariates names" in said
        assert "sub-p1: age 99 is outside the range of the controls, 30 to 46; its exp" in said
        assert "sub-p2: age" not in said
        card = read_card(there / "detectors" / "real")
        assert (
            card.parameters["covariates"]["age"]["high"] == 46
        )  # those without a real PET do not count
        assert len(card.parameters["covariate_rows"]) == len(card.controls) == 5
        (tmp_path / "there").mkdir()
        again = with_ages(out, tmp_path / "there", {"p1": 99, "p2": 40})
        detector = ("--detector", str(there / "detectors" / "real"))
        assert main(arguments(again, *detector)) == 0
    for name in ("ocsvm", "zscore"):
        path = f"stat-t_desc-{name}_statmap.nii.gz"
        new, old, plain = (load(result(one, "p2", path))[0] for one in (again, there, out))
        np.testing.assert_allclose(new, old, atol=1e-3 * np.abs(old).max())
        assert np.abs(new - plain).max() > 1e-2 * np.abs(plain).max()
    assert main(arguments(again, *detector, "--covariates", "group", "--dry-run")) == 65
    assert "was trained with other covariates (age); leave" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (
            "--covariates height",
            "there is no column height; columns are participant_id, group, age",
        ),
        (
            "--covariates group",
            "group is the same in all controls, so its effect cannot be estimated",
        ),
        ("--covariates age", "fold 1 are too few for a regression on 1 column(s), 4 are needed"),
    ],
)
def test_covariates_that_cannot_be_taken_out_are_refused(out, tmp_path, capsys, options, words):
    there = with_ages(out, tmp_path, {})
    command = arguments(there, "--detectors", "zscore", *options.split(), "--dry-run")
    assert main(command) in {64, 65}
    assert words in " ".join(capsys.readouterr().err.split())


def test_clusters_are_kept_down_to_the_score_that_controls_seldom_have(out, tmp_path, capsys):
    there = copy_of(out, tmp_path, *MADE)
    wanted = ("--detectors", "zscore", "--cluster-extent", "0.1", "--expected-false", "0.5")
    with without_pages():
        assert main(arguments(there, *wanted)) == 0
    parameters = read_card(there / "detectors" / "real").parameters
    assert {"fwhm": 8.0, "cluster_extent": 0.1, "direction": "hypo"}.items() <= parameters.items()
    assert not {"nu", "gamma", "encoder", "score_fwhm"} & parameters.keys()  # of one-class SVMs
    sums = control_sum_scores(read_control_clusters(there / "detectors" / "real"), "zscore")
    fewer = 0
    for label in PATIENTS:
        (told,) = (there / ".work" / RELEASE / "clusters" / "real" / "zscore").glob(
            f"*_sub_{label}_*.json"
        )
        scores = [cluster["sum_score"] for cluster in read_json(told)["clusters"]][:10]
        expected = [
            sum(other >= one for own in sums for other in own) / len(sums) for one in scores
        ]
        seldom = [rank for rank, number in enumerate(expected, 1) if number <= 0.5]
        fewer += len(scores) - len(seldom)
        for space in (f"{TEMPLATE}_res-4", "T1w"):
            kept = read_clusters_table(result(there, label, "desc-zscore_clusters.tsv", space))
            assert [one.rank for one in kept] == seldom
            labels, _ = load(result(there, label, "desc-zscore_dseg.nii.gz", space))
            assert set(np.unique(labels)) == {0, *seldom}
    assert fewer > 0
    printed = capsys.readouterr().err
    told = (
        r"^strongest cluster of each patient, by .* \(whether or not --expected-false keeps it\):$"
    )
    assert re.search(told, printed, re.MULTILINE)
    page = (there / "group.html").read_text(encoding="utf-8")
    assert (
        "<code>--expected-false</code> has no effect on it" in page or "No lesion is known" in page
    )
    assert "dot per person (0 for patients without a cluster that is kept)." in page


def test_a_few_lines_of_numpy_and_scipy_give_the_same_z_maps(out):
    """From the images alone: folds, common brain, smoothing within it, t, and mean over folds."""
    fold_of = {c.participant: c.fold for c in read_card(out / "detectors" / "real").controls}

    def volume(label, name, folder="pet"):
        trc = "_trc-18FFDG" * (folder == "pet")
        path = out / f"sub-{label}" / folder / f"sub-{label}{trc}_space-{TEMPLATE}_res-4_{name}"
        return load(path.with_name(f"{path.name}.nii.gz"))[0].astype(float)

    def smooth(volume):
        return ndimage.gaussian_filter(volume, 8 / np.sqrt(8 * np.log(2)) / 4, mode="nearest")

    brains = {label: volume(label, "desc-brain_mask", "anat") > 0 for label in (*REAL, *PATIENTS)}
    common = np.mean([brains[label] for label in REAL], axis=0) >= 0.9
    uptake = {}
    for label, brain in brains.items():
        inside = common & brain
        values = smooth(np.where(inside, volume(label, "desc-preproc_pet"), 0))
        weight = smooth(inside.astype(float))[common]
        uptake[label] = np.where(inside[common], values[common] / weight, np.nan)

    def score(label, fold):
        norm = np.stack([uptake[other] for other in REAL if fold_of[other] != fold])
        sd = norm.std(axis=0, ddof=1)
        sd = np.maximum(sd, 0.1 * np.median(sd))
        return (norm.mean(axis=0) - uptake[label]) / (sd * np.sqrt(1 + 1 / len(norm)))

    for label in uptake:
        folds = [fold_of[label]] if label in fold_of else [1, 2]
        expected = np.mean([score(label, fold) for fold in folds], axis=0)
        found = volume(label, "stat-t_desc-zscore_statmap")
        np.testing.assert_allclose(found[common], expected, atol=1e-3)
        assert not found[~common].any()


def test_clusters_found_otherwise_than_those_of_controls_are_not_compared_with_them(
    out, tmp_path, capsys
):
    there = without_controls(out, tmp_path)
    wanted = ("--cluster-extent", "0.1", "--expected-false", "0.5", *knowledge(out.parent))
    detector = ("--detector", str(out / "detectors" / "real"), "--detectors", "zscore")
    note = "--cluster-extent is 0.1, but was 0.02 for the clusters of controls: patients are not"
    assert main(arguments(there, *detector, *wanted, "--dry-run")) == 0
    assert " ".join(capsys.readouterr().err.split()).count(note) == 1
    assert main(arguments(there, *detector, *wanted)) == 0
    assert note in " ".join(capsys.readouterr().err.split())
    page = unescape(" ".join((there / "group.html").read_text(encoding="utf-8").split()))
    assert page.count(note) == 1
    assert "clusters of controls were found with other options, so the number of such" in page
    assert "held-out control has" not in page.partition("Notes")[0]
    found = [cluster for listed in read_all_clusters(there) for cluster in listed.clusters]
    assert found
    assert {cluster.expected_in_control for cluster in found} == {None}
    assert read_froc(there) == []
    assert {point.false_clusters_per_control for point in read_curve(there)} == {None}
    for label in PATIENTS:
        report = " ".join((there / f"sub-{label}.html").read_text(encoding="utf-8").split())
        assert "cannot be compared with healthy people: no control was held out, or" in report
        assert "Expected counts are unknown: no control was held out, or clusters" in report


def test_a_synthetic_pet_of_another_generator_is_not_compared(out, tmp_path, capsys):
    there = copy_of(out, tmp_path, *MADE)
    (sidecar,) = there.glob("sub-p2/pet/*_desc-synth_pet.json")
    told = read_json(sidecar)
    write_json(sidecar, {**told, "Generator": {"Name": "g", "SHA256": "b" * 64}})
    detector = ("--detector", str(out / "detectors" / "real"))
    assert main(arguments(there, *detector, "--detectors", "pseudonormal")) == 65
    image = str(sidecar).replace(".json", ".nii.gz")
    assert f"{image}: made by generator g, but pseudonormal" in capsys.readouterr().err
    assert main(arguments(there, *detector, "--detectors", "zscore", "--dry-run")) == 0


@pytest.mark.parametrize(
    ("damage", "refusal"),
    [
        (lambda path: path.write_bytes(path.read_bytes()[:-1] + b"?"), (65, "SHA-256 is not")),
        (lambda path: path.unlink(), (66, "no such file; the card beside it needs it")),
        (lambda path: (path.parents[1] / "card.json").write_text("{}"), (65, "not the card of")),
        (lambda path: (path.parents[1] / "card.json").unlink(), (66, "give --detector a folder")),
        (lambda path: (path.parents[1] / CONTROL_CLUSTERS).unlink(), (66, "no such file; the c")),
        (lambda path: (path.parents[1] / CONTROL_CLUSTERS).write_text(""), (65, "SHA-256 is not")),
    ],
    ids=["changed", "gone", "no card", "card gone", "controls gone", "controls changed"],
)
def test_a_damaged_detector_is_refused(out, tmp_path, capsys, damage, refusal):
    detector = shutil.copytree(out / "detectors" / "real", tmp_path / "detector")
    damage(detector / "zscore" / "fold-2.safetensors")
    before = files(out)
    code = main(arguments(out, "--detector", str(detector)))
    said = capsys.readouterr().err
    assert code == refusal[0]
    assert refusal[1] in said
    assert str(detector) in said
    assert files(out) == before


@pytest.mark.parametrize(("release", "code"), [("0.9.0", 0), ("9.0.0", 65)])
def test_a_detector_of_another_version_is_told_of_or_refused(out, tmp_path, release, code):
    detector = shutil.copytree(out / "detectors" / "real", tmp_path / "detector")
    write_json(detector / "card.json", {**read_json(detector / "card.json"), "version": release})
    there, said = without_controls(out, tmp_path), StringIO()
    options = ("--detector", str(detector), "--detectors", "zscore", "--participant-label", "p2")
    with redirect_stderr(said), without_pages():
        assert main(arguments(there, *options)) == code
    note = f"made by mri2pet {release}: detector real; this is {version('mri2pet')}, "
    if code:
        assert note in " ".join(said.getvalue().split())
        assert not list(there.rglob("*statmap*"))
    else:
        (told,) = read_json(there / "logs" / "group_report.json")["notes"]
        assert told == f"{note}which may give different results; to be sure, train it again"


# Failures and interruptions


def results(out):
    """Return the results of the one-class SVMs of real PET: detectors, maps, patients' clusters."""
    paths = [*out.glob("detectors/real/ocsvm/**/*.safetensors"), *out.glob("sub-*/pet/*ocsvm*")]
    return {
        path.relative_to(out): content_of(path)
        for path in paths
        if path.suffix != ".tsv"  # lesions and regions known to the runs differ
    }


def content_of(path):
    """Return the content of a file; for a sidecar without the card, which lists all detectors."""
    if path.suffix != ".json":
        return path.read_bytes()
    return {key: value for key, value in read_json(path).items() if key != "DetectorCard"}


RUN = """
import sys, pytest, test_app_group
from bids_app.cli import main, parse
test_app_group.make_small(pytest.MonkeyPatch())
sys.exit(main(sys.argv[1:]))
"""


def test_a_run_that_was_killed_at_a_slab_goes_on_to_the_same_files(out, tmp_path):
    """SIGKILL of the main process once the first one-class SVMs of the second fold exist."""
    there = copy_of(out, tmp_path, *MADE)
    options = arguments(there, "--detectors", "ocsvm")
    mark = f"MRI2PET_TEST={tmp_path}"
    path = os.pathsep.join([str(Path(__file__).parent), *sys.path])
    environment = {**os.environ, "MRI2PET_TEST": str(tmp_path), "PYTHONPATH": path}
    process = subprocess.Popen(
        [sys.executable, "-c", RUN, *options], stderr=subprocess.DEVNULL, env=environment
    )
    graph, ends = (
        there / ".work" / RELEASE / "mri2pet_group" / "real_wf" / "ocsvm_wf",
        time.monotonic() + 300,
    )
    while not (graph / "slab_2_1" / "voxels.safetensors").exists():
        assert process.poll() is None
        assert time.monotonic() < ends
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    time.sleep(1)
    assert not running_with(mark)
    assert not (there / "detectors").exists()
    done = {path: path.stat().st_mtime_ns for path in graph.glob("slab_1_*/voxels.safetensors")}
    done |= {path: path.stat().st_mtime_ns for path in graph.glob("encoder_*/*.safetensors")}
    assert len(done) == 5
    with without_pages():
        assert main(options) == 0
    assert results(there) == results(out)
    assert {path: path.stat().st_mtime_ns for path in done} == done


@pytest.fixture(scope="module")
def unlucky(out, tmp_path_factory):
    """Run with many problems, and with a lesion in the PET of a control."""
    folder = tmp_path_factory.mktemp("unlucky")
    there = copy_of(out, folder, *MADE)
    copies = ("p4", "p5", "p6", "p7")
    tell_groups(there, p3="patient", **dict.fromkeys(copies, "patient"))
    for label in copies:
        copied = shutil.copytree(there / "sub-p1", there / f"sub-{label}")
        for path in copied.rglob("sub-p1*"):
            path.rename(path.with_name(path.name.replace("sub-p1", f"sub-{label}")))
    (there / "sub-p4" / "anat" / "sub-p4_desc-preproc_T1w.nii.gz").unlink()
    ill = uptake(np.random.default_rng(8), lesion=True)[0]
    for label, pet in (("c1", ill), ("p5", 0 * ill)):
        path = result(there, label, "desc-preproc_pet.nii.gz")
        nifti.save(nifti.Image(pet, GRID.affine), path)
    made = result(there, "p6", "desc-synth_pet.nii.gz")
    shutil.copy(made, result(there, "p6", "desc-preproc_pet.nii.gz"))
    masks = shutil.copytree(out.parent / "lesions", folder / "lesions")
    (mask,) = masks.rglob("sub-p2*.nii")
    shutil.copytree(mask.parent, masks / "sub-p7")
    lost = (masks / "sub-p7" / mask.name).rename(masks / "sub-p7" / mask.name.replace("p2", "p7"))
    nifti.save(nifti.Image(np.zeros((29, 37, 27), np.uint8), COARSE), lost)
    mask.write_bytes(b"no image")
    said = StringIO()
    with redirect_stderr(said), without_pages():
        code = main(arguments(there, "--detectors", "zscore", "-d", f"lesions={masks}"))
    return there, code, " ".join(said.getvalue().split())


def test_who_cannot_be_used_is_named_and_the_others_are_done(unlucky):
    there, code, said = unlucky
    assert code == 1
    assert "sub-p3: a patient without a PET on this grid" in said
    assert "sub-p4_desc-preproc_T1w.nii.gz: no such file; run the participant level again" in said
    zeros = result(there, "p5", "desc-preproc_pet.nii.gz")
    assert f"sub-p5: {zeros}: all voxels are equal" in said
    assert "sub-p2_space-MNI152NLin2009aSym_label-L_mask.nii: not a NIfTI image" in said
    synthetic = result(there, "p6", "desc-preproc_pet.nii.gz")
    assert f"sub-p6: {synthetic}: its header says SYNTHETIC, but" in said
    assert "sub-p7: its lesion mask marks no voxel of the grid; not included in any curve" in said
    assert "sub-p6: no lesion mask, so not included in any curve" in said
    assert "Traceback" not in said
    assert {cluster.participant for cluster in read_all_clusters(there)} == {"p1", "p2", "p7"}
    assert "all voxels are equal" in (there / "group.html").read_text()
    assert {point.n for point in read_curve(there)} == {1}  # p1's lesion


def test_a_control_has_no_part_in_the_fold_that_scores_it(out, unlucky):
    there, _, _ = unlucky
    (fold,) = (
        control.fold
        for control in read_card(out / "detectors/real").controls
        if control.participant == "c1"
    )
    norms = [f"detectors/real/zscore/fold-{number}.safetensors" for number in (fold, 3 - fold)]
    own, other = ((out / name).read_bytes() == (there / name).read_bytes() for name in norms)
    assert own
    assert not other
    lines = [
        cluster for cluster in read_control_clusters(there / "detectors/real") if cluster.rank == 1
    ]
    (first,) = (line for line in lines if line.participant_id == "sub-c1")
    assert first.sum_score == max(line.sum_score for line in lines)
    assert np.linalg.norm(np.subtract((first.x, first.y, first.z), LESION)) < 10


@pytest.mark.parametrize("label", ["c3", "p1"])
def test_who_has_the_images_of_a_control_under_another_label_is_refused(
    out, tmp_path, capsys, label
):
    there = copy_of(out, tmp_path, *MADE)
    for one in there.glob("sub-c1/*/*_space-*"):
        shutil.copy(one, str(one).replace("sub-c1", f"sub-{label}"))
    assert main(arguments(there, "--detectors", "zscore")) == 65
    said = " ".join(capsys.readouterr().err.split())
    assert f"sub-c1 and sub-{label} have the same images, voxel by voxel" in said
    assert not list(there.rglob("*statmap*"))


def test_fewer_controls_than_folds(out, tmp_path, capsys):
    there = copy_of(out, tmp_path, *MADE, "sub-c[3-9]", "sub-d*", "sub-p2")
    assert main(arguments(there, "--folds", "3", "--participant-label", "p1")) == 65
    assert "2 control(s) with a PET are fewer than --folds 3" in capsys.readouterr().err
    assert not (there / "detectors").exists()


def test_a_run_can_stop_at_the_first_who_cannot_be_used(out, tmp_path, capsys):
    there = copy_of(out, tmp_path, *MADE, "sub-c[5-9]", "sub-d*")
    pet = result(there, "p2", "desc-preproc_pet.nii.gz")
    nifti.save(nifti.Image(np.zeros(GRID.shape, np.float32), GRID.affine), pet)
    assert main(arguments(there, "--stop-on-first-crash")) == 65
    assert f"error: sub-p2: {pet}: all voxels are equal" in capsys.readouterr().err
    assert not (there / "detectors").exists()


# Runs in which nothing needs to be computed


def test_a_dry_run_tells_and_writes_nothing(out, capsys):
    before = files(out)
    assert main(arguments(out, "--dry-run", "--training-set", "hybrid")) == 0
    said = [line.split() for line in capsys.readouterr().out.splitlines()]
    for kind, label in (("control", "c1"), ("control", "d1"), ("patient", "p2")):
        (line,) = (line for line in said if line[1:4:2] == [kind, label])
        real, made = f"sub-{label}/pet/sub-{label}_trc-18FFDG", f"sub-{label}/pet/sub-{label}_trc"
        assert line[7].startswith("—" if label == "d1" else real)
        assert line[9].startswith(made)
    assert not any("…" in word for line in said for word in line)
    assert files(out) == before


@pytest.mark.parametrize(("which", "sizes"), [("t1w-only", [6, 12, 6]), ("all", [6, 18, 12])])
def test_a_dry_run_estimates_the_training_sets_that_are_used(out, monkeypatch, which, sizes):
    estimated, whole = [], group.estimate_group
    monkeypatch.setattr(
        group, "estimate_group", lambda **told: estimated.append(told) or whole(**told)
    )
    options = ("--training-set", *SETS, "--synthetic-controls", which)
    assert main(arguments(out, "--dry-run", *options)) == 0
    assert [told["controls"] for told in estimated] == sizes


def test_a_dry_run_tells_who_is_not_used_and_refuses_what_the_run_would(out, capsys):
    options = ("--dry-run", "--participant-label", "p1", "nosuch")
    assert main(arguments(out, *options)) == 1
    said = capsys.readouterr().out
    assert "1 patient would be mapped, 1 has problems (sub-nosuch)" in said
    assert "sub-d1: not used, no real PET" in said
    assert "desc-synth" not in said
    assert "sub-nosuch: not selected by --patient-query" in said
    assert main(arguments(out, "--dry-run", "--folds", "7")) == 65
    assert main(arguments(out, "--dry-run", "--folds", "1")) == 64
    assert main(arguments(out, "--dry-run", "-d", "lesions=/nowhere")) == 66


def test_the_methods_paragraph_tells_what_was_done(out, tmp_path, capsys):
    assert main(arguments(out, "--boilerplate-only")) == 0
    said = capsys.readouterr().out
    assert "real (6 controls with real PET, 0 with synthetic PET)" in said
    assert "Crawford" in said
    assert f"# group\n\n{said.strip()}" in (out / "logs" / "CITATION.md").read_text("utf-8")
    assert "author = {Crawford" in (out / "logs" / "CITATION.bib").read_text("utf-8")
    assert main(arguments(tmp_path, "--boilerplate-only")) == 66
    assert "contains no results of the group level" in capsys.readouterr().err


def test_reports_can_be_written_again_from_disk(out, tmp_path, capsys):
    there = copy_of(out, tmp_path, ".work", "sub-*.html")
    before = (there / "group.html").read_text()
    (there / "group.html").unlink()
    assert main([*arguments(there, "--reports-only"), "--resolution", "3"]) == 0
    assert (there / "group.html").read_text() == before  # it describes the grid of its own run
    assert "z score, training set real" in (there / "sub-p1.html").read_text()
    (there / "clusters.tsv").unlink()
    assert main(arguments(there, "--reports-only")) == 66
    assert "contains no results of the group level" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "code", "words"),
    [
        (("--control-query", "group == 'nobody'"), 65, "group holds 'control', 'patient'"),
        (("--patient-query", "group == 'nobody'"), 65, "no participant matches"),
        (("--patient-query", "participant_id == 'sub-c1'"), 65, "sub-c1 would be both control an"),
        (("--participant-label", "p9"), 18, "no patient is left"),
        (
            (
                "--patient-query",
                "participant_id == 'sub-d1'",
                "--control-query",
                "participant_id != 'sub-d1'",
            ),
            66,
            "sub-d1: a patient without a PET on this grid",
        ),
        (("--resolution", "2"), 66, "on this grid; run the participant level"),
        (("--session-label", "b"), 66, "sub-p1: a patient without a PET on this grid in"),
        (("--training-set", "hybrid", "--detectors", "pseudonormal"), 64, "add real to --training"),
    ],
)
def test_what_cannot_begin_says_why_and_writes_nothing(out, capsys, options, code, words):
    before = files(out)
    assert main(arguments(out, *options)) == code
    assert words in capsys.readouterr().err
    assert files(out) == before


def test_without_derivatives_nothing_can_begin(out, tmp_path, capsys):
    assert main(arguments(tmp_path / "nowhere")) == 66
    assert "nowhere: no such folder; run the participant level first" in capsys.readouterr().err


@pytest.fixture
def beside(out, monkeypatch):
    """Change to the folder of the dataset, so that options can name files in it."""
    monkeypatch.chdir(out.parent)
    return out


@pytest.mark.parametrize(
    ("options", "code", "words"),
    [
        (("-d", "lesions=/nowhere"), 66, "/nowhere: no such folder; correct --derivatives"),
        (("-d", "lesions=raw"), 66, "raw: contains no lesion mask for any patient of this run"),
        (("--atlas", "/nowhere.nii.gz", "atlas.tsv"), 66, "/nowhere.nii.gz: no such file"),
        (("--atlas", "atlas.tsv", "atlas.tsv"), 65, "atlas.tsv: not a NIfTI image"),
        (("--atlas", "atlas.nii.gz", "nowhere.tsv"), 66, "nowhere.tsv: no such file"),
        (("--atlas", "atlas.nii.gz", "out/participants.tsv"), 65, "has no column index or name"),
    ],
)
def test_what_is_known_beforehand_must_be_readable(beside, capsys, options, code, words):
    card = beside / "detectors" / "real" / "card.json"
    before = card.stat().st_mtime_ns
    assert main(arguments(beside, *options)) == code
    said = capsys.readouterr().err
    assert words in said
    assert "started" not in said
    assert card.stat().st_mtime_ns == before
