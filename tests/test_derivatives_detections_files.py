"""File names and sidecars of anomaly maps and clusters, as specified in the contract."""

import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
from cohorts import GRID, SPACE, TEMPLATE, write_control, write_controls

from bids_app import nifti
from bids_app.dataset.validation import find_validator
from bids_app.derivatives.detections import (
    Origin,
    anomaly_paths,
    describe_card,
    lesions_in_template,
    native_t1w,
    root_of,
    sign,
    t1w_to_template,
    template_to_t1w,
)
from bids_app.derivatives.find import find_preprocessed
from bids_app.derivatives.paths import sidecar_path
from bids_app.detection.detectors import DETECTORS
from bids_app.files import read_json, write_json

OUT = Path("/out")
MADE_BY = {"URI": "bids::detectors/x/card.json", "Dataset": "ellipsoids", "Version": "0.1"}
GRID_LABELS = f"space-{TEMPLATE}_res-4"


def pet(*entities, session=None):
    folder = OUT.joinpath("sub-01", *([f"ses-{session}"] if session else []), "pet")
    own = ["sub-01", *([f"ses-{session}"] if session else []), "trc-18FFDG", *entities]
    return folder / f"{'_'.join(own)}_{GRID_LABELS}_desc-preproc_pet.nii.gz"


@pytest.fixture
def visit(tmp_path, rng):
    write_controls(tmp_path / "out", ["01"], rng)
    (found,) = find_preprocessed(tmp_path / "out", TEMPLATE, 4.0)
    return found


# Names


@pytest.mark.parametrize("detector", DETECTORS)
@pytest.mark.parametrize(
    ("entities", "session", "folder", "stem"),
    [
        ((), None, "sub-01/pet", "sub-01_trc-18FFDG"),
        ((), "a", "sub-01/ses-a/pet", "sub-01_ses-a_trc-18FFDG"),
        (("rec-ac", "run-2"), None, "sub-01/pet", "sub-01_trc-18FFDG_rec-ac_run-2"),
    ],
)
def test_names_are_those_of_the_contract(detector, entities, session, folder, stem):
    paths = anomaly_paths(OUT, pet(*entities, session=session), detector, SPACE)
    names = {name: path.relative_to(OUT / folder).as_posix() for name, path in paths.items()}
    assert names == {
        "statmap": f"{stem}_{GRID_LABELS}_stat-t_desc-{detector}_statmap.nii.gz",
        "labels": f"{stem}_{GRID_LABELS}_desc-{detector}_dseg.nii.gz",
        "table": f"{stem}_{GRID_LABELS}_desc-{detector}_clusters.tsv",
        "statmap_in_t1w": f"{stem}_space-T1w_stat-t_desc-{detector}_statmap.nii.gz",
        "labels_in_t1w": f"{stem}_space-T1w_desc-{detector}_dseg.nii.gz",
        "table_in_t1w": f"{stem}_space-T1w_desc-{detector}_clusters.tsv",
    }


def test_the_primary_training_set_lies_with_the_participants():
    assert root_of(OUT, "hybrid", primary=True) == OUT
    assert root_of(OUT, "hybrid", primary=False) == OUT / "detectors" / "hybrid"


def test_results_of_detectors_sets_and_pets_have_files_of_their_own():
    paths = [
        path
        for name, primary in (("real", True), ("hybrid", False), ("synthetic", False))
        for image in (pet(), pet("run-1"), pet("run-2"), pet(session="a"))
        for detector in DETECTORS
        for path in anomaly_paths(
            root_of(OUT, name, primary=primary), image, detector, SPACE
        ).values()
    ]
    assert len(set(paths)) == len(paths) == 3 * 4 * len(DETECTORS) * 6


@pytest.mark.parametrize("session", [None, "a"])
def test_images_beside_a_visit_are_those_that_the_participant_level_wrote(tmp_path, rng, session):
    out = tmp_path / "out"
    paths = write_control(out, "01", rng, session=session)
    (found,) = find_preprocessed(out, TEMPLATE, 4.0)
    assert native_t1w(found) == paths.t1w
    assert t1w_to_template(found) == paths.t1w_to_template
    assert template_to_t1w(found) == paths.template_to_t1w
    mask = lesions_in_template(found)
    assert mask.parent == found.t1w.parent
    assert mask.name == found.t1w.name.replace("desc-preproc_T1w", "label-L_mask")


# Sidecars


def sidecars(visit, detector, training_set="real", *, primary=True):
    """Return path → sidecar for all four images of a detector."""
    out = visit.t1w.parents[2]
    origin = Origin(out, detector, training_set, "0.1", MADE_BY, "hypo", 0.0)
    paths = anomaly_paths(
        root_of(out, training_set, primary=primary), visit.pets[0], detector, SPACE
    )
    statmap = origin.statmap(visit.pets[0], SPACE)
    labels = origin.labels(paths["statmap"], SPACE)
    return {
        paths["statmap"]: statmap,
        paths["labels"]: labels,
        paths["statmap_in_t1w"]: origin.in_t1w(statmap, paths["statmap"], visit),
        paths["labels_in_t1w"]: origin.in_t1w(labels, paths["labels"], visit),
    }


def test_a_map_tells_which_images_it_was_made_from(visit):
    sidecar = sidecar_path(visit.pets[0])
    written = read_json(sidecar) if sidecar.is_file() else {}
    write_json(sidecar, {**written, "Fingerprint": "ab12"})
    paths = list(sidecars(visit, "zscore").items())
    for (path, fields), expected in zip(paths, ("ab12", None, "ab12", None), strict=True):
        assert fields.get("T1wFingerprint") == expected, path


@pytest.mark.parametrize(("training_set", "primary"), [("real", True), ("hybrid", False)])
def test_sidecars_tell_where_results_come_from(visit, training_set, primary):
    folder = "" if primary else f"detectors/{training_set}/"
    stem = "sub-01/pet/sub-01_trc-18FFDG"
    xfm = f"bids::sub-01/anat/sub-01_from-{TEMPLATE}_to-T1w_mode-image_xfm.h5"
    statmap = f"bids::{folder}{stem}_{GRID_LABELS}_stat-t_desc-ocsvm_statmap.nii.gz"
    labels = f"bids::{folder}{stem}_{GRID_LABELS}_desc-ocsvm_dseg.nii.gz"
    told = sidecars(visit, "ocsvm", training_set, primary=primary).values()
    assert [one["Sources"] for one in told] == [
        [f"bids::{stem}_{GRID_LABELS}_desc-preproc_pet.nii.gz"],
        [statmap],
        [statmap, xfm],
        [labels, xfm],
    ]
    for one in told:
        assert (one["Detector"], one["TrainingSet"]) == ("ocsvm", training_set)
        assert one["Version"] == "0.1"
        assert one["DetectorCard"] == MADE_BY


def test_the_card_of_a_detector_is_named_wherever_it_lies(tmp_path):
    told = {"dataset": "doi:10.1/x", "version": "0.1"}
    own = describe_card(tmp_path / "out", tmp_path / "out" / "detectors" / "real", **told)
    assert own == {
        "URI": "bids::detectors/real/card.json",
        "Dataset": "doi:10.1/x",
        "Version": "0.1",
    }
    other = describe_card(tmp_path / "out", tmp_path / "there", **told, sha256="a" * 64)
    assert other["URI"] == (tmp_path / "there" / "card.json").as_uri()
    assert other["SHA256"] == "a" * 64


def test_a_sidecar_is_signed_and_else_stays_as_it_is(tmp_path):
    write_json(tmp_path / "a.json", {"A": 1, "DetectorCard": MADE_BY, "B": 2})
    sign(tmp_path / "a.json", "c" * 64)
    sign(tmp_path / "a.json", "b" * 64)
    assert read_json(tmp_path / "a.json") == {
        "A": 1,
        "DetectorCard": {**MADE_BY, "SHA256": "b" * 64},
        "B": 2,
    }


def test_on_the_t1w_the_grid_is_that_of_the_t1w(visit):
    on_template, labels, *on_t1w = sidecars(visit, "zscore").values()
    for one in (on_template, labels):
        assert one["SpatialReference"] == SPACE.reference
        assert "4 mm" in one["Resolution"]
    for one in on_t1w:
        assert one["SpatialReference"] == "bids::sub-01/anat/sub-01_desc-preproc_T1w.nii.gz"
        assert "Resolution" not in one
    assert on_t1w[0]["Description"] == on_template["Description"]


@pytest.mark.parametrize(
    ("detector", "words"),
    [
        ("ocsvm", "minus the decision function"),
        ("zscore", "Crawford-Howell"),
        ("pseudonormal", "between synthetic and real PET"),
        ("combined", "lower uptake gives higher scores"),
    ],
)
def test_a_map_says_what_its_numbers_are_and_what_it_is_not(visit, detector, words):
    text = next(iter(sidecars(visit, detector).values()))["Description"]
    assert words in text
    assert ("as does much of the brain of a held-out control" in text) is (detector == "ocsvm")
    assert "more is more abnormal" in text
    assert next(iter(sidecars(visit, detector).values()))["SkullStripped"] is True
    assert "not a diagnosis" in text


@pytest.mark.skipif(find_validator() is None, reason="bids-validator-deno is not installed")
def test_the_validator_accepts_maps_and_labels(visit, tmp_path, rng):
    out = visit.t1w.parents[2]
    nifti.save(nifti.Image(rng.random(GRID.shape, np.float32), GRID.affine), native_t1w(visit))
    write_json(sidecar_path(native_t1w(visit)), {"SkullStripped": False})
    mask = lesions_in_template(visit)
    nifti.save(nifti.Image(np.ones(GRID.shape, np.uint8), GRID.affine), mask)
    write_json(sidecar_path(mask), {"Type": "Lesion", **SPACE.entries()})
    made = {path: one for detector in DETECTORS for path, one in sidecars(visit, detector).items()}
    made |= sidecars(visit, "ocsvm", "hybrid", primary=False)
    for path, sidecar in made.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        nifti.save(nifti.Image(np.zeros(GRID.shape, np.int16), GRID.affine), path)
        write_json(sidecar_path(path), sidecar)
    there = shutil.copytree(out, tmp_path / "copy" / "out")
    (tmp_path / "copy" / "raw").symlink_to(tmp_path / "raw")
    told = subprocess.run([find_validator(), str(there)], check=False, capture_output=True)
    assert told.returncode == 0, told.stdout.decode()
