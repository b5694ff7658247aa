"""Selection of patients' lesion masks, and messages about those without."""

import json
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import nibabel as nib
import numpy as np
import pytest
from cohorts import GRID, TEMPLATE, stored_image

from bids_app import nifti
from bids_app.app.images import refuse_twins, store_images
from bids_app.derivatives.detections import native_brain
from bids_app.derivatives.find import Preprocessed
from bids_app.derivatives.sidecars import Space
from bids_app.errors import MissingInputError, UnusableDataError
from bids_app.nifti import Owner, store_arrays
from bids_app.plan.cohort import Participant
from bids_app.plan.group import find_masks, mask_on_grid, refuse_knowledge
from bids_app.plan.problems import Problem
from bids_app.plan.study import Study
from bids_app.settings import Settings


def patient(label, session=None):
    visit = Preprocessed(label, session, Path("t1w"), Path("mask"), (), None)
    return Participant(visit, Path("pet"), None)


def draw(root, name):
    path = root / name.partition("_")[0] / "anat" / name
    path.parent.mkdir(parents=True, exist_ok=True)
    lesion = np.zeros(GRID.shape, np.uint8)
    lesion[9:20, 9:20, 9:20] = 1
    nifti.save(nifti.Image(lesion, GRID.affine), path)
    return path


def find(root, *patients):
    settings = Settings(Path("raw"), Path("out"), "group", derivatives=(("lesions", root),))
    return find_masks(settings, patients)


def test_a_patient_without_a_mask_is_told_and_the_others_are_found(tmp_path):
    draw(tmp_path, f"sub-p1_space-{TEMPLATE}_label-L_mask.nii.gz")
    draw(tmp_path, f"sub-p2_ses-a_space-{TEMPLATE}_label-L_mask.nii")
    people = [patient("p1"), patient("p2", "a"), patient("p2", "b"), patient("p3")]
    found = find(tmp_path, *people)
    assert [(mask.subject, mask.session) for mask in found.masks] == [("p1", None), ("p2", "a")]
    assert found.problems == ()
    assert found.notes[2:] == (
        "sub-p2 ses-b: no lesion mask, so not included in any curve",
        "sub-p3: no lesion mask, so not included in any curve",
    )
    assert found.notes[0].startswith("sub-p1: lesions are those of sub-p1_space-")


@pytest.mark.parametrize(
    "name",
    [None, "sub-p1_space-T1w_label-lesion_mask.nii.gz", "sub-c1_space-T1w_label-L_mask.nii.gz"],
)
def test_a_folder_without_a_mask_of_any_patient_is_refused(tmp_path, name):
    if name is not None:
        draw(tmp_path, name)
    with pytest.raises(MissingInputError) as refused:
        find(tmp_path, patient("p1"), patient("p2"))
    told = f"{refused.value}"
    assert told.startswith(f"{tmp_path}: contains no lesion mask for any patient of this run")
    assert "sub-X[_ses-Y]_space-T1w_label-L_mask.nii.gz" in told
    assert "--derivatives lesions=PATH" in told


def test_a_mask_that_cannot_be_used_is_told_and_is_not_none_at_all(tmp_path):
    draw(tmp_path, "sub-p1_label-L_mask.nii.gz")
    found = find(tmp_path, patient("p1"), patient("p2"))
    (problem,) = found.problems
    assert "its name says neither space-T1w nor" in problem.sentence
    assert found.notes == ("sub-p2: no lesion mask, so not included in any curve",)


def with_native_t1w(out, **told):
    """Patient with a T1w written by the participant level, and its sidecar."""
    folder = out / "sub-p1/anat"
    folder.mkdir(parents=True)
    stem = f"{folder}/sub-p1_"
    Path(f"{stem}from-T1w_to-{TEMPLATE}_mode-image_xfm.h5").write_bytes(b"")
    Path(f"{stem}desc-preproc_T1w.json").write_text(json.dumps(told))
    t1w = Path(f"{stem}space-{TEMPLATE}_res-4_desc-preproc_T1w.nii.gz")
    who = patient("p1")
    return replace(who, visit=replace(who.visit, t1w=t1w))


def test_a_mask_on_the_raw_t1w_is_refused_where_that_was_taken_in_mni_space(tmp_path):
    """The existing transform, the identity, would silently map it to the wrong place."""
    who = with_native_t1w(tmp_path / "out", InMNISpace=True, TakenFrom="Clinica")
    path = draw(tmp_path / "masks", "sub-p1_space-T1w_label-L_mask.nii.gz")
    (problem,) = find(tmp_path / "masks", who).problems
    assert problem.exit_code == 65
    for word in (path, "of this visit is in MNI space", f"name it space-{TEMPLATE}"):
        assert f"{word}" in problem.sentence
    draw(tmp_path / "masks", f"sub-p1_space-{TEMPLATE}_label-L_mask.nii.gz")
    assert find(tmp_path / "masks", who).problems == ()


@pytest.mark.parametrize("told", [{}, {"TakenFrom": "fMRIPrep 24.1.1"}])
def test_a_mask_on_a_t1w_of_another_app_is_used_with_a_word_of_warning(tmp_path, told):
    who = with_native_t1w(tmp_path / "out", **told)
    draw(tmp_path / "masks", "sub-p1_space-T1w_label-L_mask.nii.gz")
    found = find(tmp_path / "masks", who)
    assert len(found.masks) == 1
    warned = "this T1w was taken from fMRIPrep 24.1.1: check that the mask fits it"
    assert (warned in found.notes[0]) is bool(told)


def shorten(path, _image):
    path.write_bytes(path.read_bytes()[:-20])


def garble(path, _image):
    content = path.read_bytes()
    path.write_bytes(content[:-8] + bytes(byte ^ 255 for byte in content[-8:-4]) + content[-4:])


def soften(path, image):
    data = image.data * np.float32(0.7)
    data[0] = np.nan
    nifti.to_nibabel(nifti.Image(data, image.affine)).to_filename(path)


def lower(path, image):
    nifti.to_nibabel(nifti.Image(image.data - 1, image.affine)).to_filename(path)


def double(path, image):
    nifti.save(nifti.Image(np.stack([image.data] * 2, axis=-1), image.affine), path)


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (shorten, "truncated or damaged"),
        (garble, "truncated or damaged"),
        (soften, "some values are not integers, so this is not a label image; apply a threshold"),
        (lower, "some values are negative, so this is not a label image"),
        (double, "has 4 axes, but a label image has three; give a single volume"),
    ],
)
def test_a_mask_that_would_be_misread_is_refused(tmp_path, spoil, words):
    path = draw(tmp_path, f"sub-p1_space-{TEMPLATE}_label-L_mask.nii.gz")
    image = nifti.load(path)
    assert find(tmp_path, patient("p1")).problems == ()
    spoil(path, image)
    (problem,) = find(tmp_path, patient("p1")).problems
    assert problem.sentence.startswith(f"sub-p1: {path}: {words}")
    assert problem.exit_code == 65


def test_a_mask_larger_than_any_lesion_is_refused(tmp_path):
    """As the masks of cost functions, which are 0 in the lesion."""
    path = draw(tmp_path, f"sub-p1_space-{TEMPLATE}_label-L_mask.nii.gz")
    mask = nifti.load(path)
    nifti.save(nifti.Image(mask.data == 0, mask.affine), path)
    (problem,) = find(tmp_path, patient("p1")).problems
    assert problem.sentence.startswith(f"sub-p1: {path}: marks 4.1 litres, more than any lesion")


def test_a_mask_without_a_session_is_used_with_a_word_of_warning(tmp_path):
    who = with_native_t1w(tmp_path / "out")
    who = replace(who, visit=replace(who.visit, session="1"))
    draw(tmp_path / "masks", "sub-p1_space-T1w_label-L_mask.nii.gz")
    assert "drawn on the T1w of sub-p1 ses-1" in find(tmp_path / "masks", who).notes[0]


@pytest.mark.parametrize("space", ["T1w", TEMPLATE])
def test_a_mask_outside_the_brain_is_used_with_a_word_of_warning(tmp_path, space):
    """As if saved with another affine than that of the image on which it was drawn."""
    who = with_native_t1w(tmp_path / "out")
    who = replace(who, visit=replace(who.visit, brain_mask=tmp_path / "mask.nii.gz"))
    path = draw(tmp_path / "masks", f"sub-p1_space-{space}_label-L_mask.nii.gz")
    mask = nifti.load(path)
    brain = tmp_path / "mask.nii.gz" if space == TEMPLATE else native_brain(who.visit)
    nifti.save(nifti.Image(np.roll(mask.data, 3, axis=2), mask.affine), brain)  # 8 of 11 slices
    assert len(find(tmp_path / "masks", who).notes) == 1
    shifted = mask.affine.copy()
    shifted[2, 3] -= 20
    nifti.save(nifti.Image(mask.data, shifted), path)
    found = find(tmp_path / "masks", who)
    assert "sub-p1: only 27 % of sub-p1_space" in found.notes[1]
    assert len(found.masks) == 1
    shifted[:2, 3] += 999
    nifti.save(nifti.Image(mask.data, shifted), path)
    assert "only 0 % of" in find(tmp_path / "masks", who).notes[1]


def test_labels_may_be_rounded_by_scaling_and_unknown_outside(tmp_path):
    path = draw(tmp_path, f"sub-p1_space-{TEMPLATE}_label-L_mask.nii.gz")
    data = 0.99999 * nifti.load(path).data
    data[0] = np.nan
    nifti.to_nibabel(nifti.Image(data, GRID.affine)).to_filename(path)
    assert find(tmp_path, patient("p1")).problems == ()


@pytest.mark.parametrize(
    ("owners", "refused"),
    [
        ({"c1": "a", "c2": "b", "p1": "c"}, ""),
        ({"c1": "a", "c2": "b", "c3": "a"}, "sub-c1 and sub-c3 have the same images"),
        ({"c1": "a", "p1": "b", "p2": "a"}, "sub-c1 and sub-p2 have .*-label p2"),
        ({"c1": "a", "p1": "b", "p2": "b"}, ""),  # neither is trained on
    ],
)
def test_nobody_is_scored_as_another_label_was_trained(owners, refused):
    images = [stored_image(label, Path("folder"), sha256) for label, sha256 in owners.items()]
    images += images[:1]  # two PET of a person may be equal
    with pytest.raises(UnusableDataError, match=refused) if refused else nullcontext():
        refuse_twins(images, [label for label in owners if label.startswith("p")])


def test_where_no_masks_are_named_nothing_is_told():
    found = find_masks(Settings(Path("raw"), Path("out"), "group"), [patient("p1")])
    assert (found.masks, found.notes, found.problems) == ({}, (), ())


def test_an_atlas_whose_header_disagrees_about_sides_is_told_of(tmp_path):
    """Left and right in names of regions depend on it, as do the sides of lesions."""
    image = nib.Nifti1Image(np.ones(GRID.shape, np.uint8), GRID.affine)
    image.set_sform(GRID.affine, 1)
    image.set_qform(GRID.affine @ np.diag([-1, 1, 1, 1]), 1)
    nib.save(image, tmp_path / "atlas.nii.gz")
    (tmp_path / "atlas.tsv").write_text("index\tname\n1\tall\n")
    atlas = (tmp_path / "atlas.nii.gz", tmp_path / "atlas.tsv")
    (note,) = refuse_knowledge(Settings(Path("raw"), Path("out"), "group", atlas=atlas), []).notes
    assert "atlas.nii.gz: sform" in note
    assert "disagree about left and right" in note


@pytest.mark.parametrize(("space", "notes"), [("MNI152NLin2009aSym", 0), ("MNI152NLin6Asym", 1)])
def test_an_atlas_of_another_template_is_told_of(tmp_path, space, notes):
    image = tmp_path / f"tpl-{space}_res-01_atlas-Mine_dseg.nii.gz"
    nifti.save(nifti.Image(np.ones(GRID.shape, np.uint8), GRID.affine), image)
    (tmp_path / "atlas.tsv").write_text("index\tname\n1\tall\n")
    atlas = (image, tmp_path / "atlas.tsv")
    found = refuse_knowledge(Settings(Path("raw"), Path("out"), "group", atlas=atlas), []).notes
    assert len(found) == notes
    assert all(f"drawn on {space}, but images are on MNI152NLin2009aSym" in note for note in found)


@pytest.mark.parametrize("stop", [True, False])
def test_a_run_that_stops_at_the_first_crash_takes_no_image_that_may_be_of_an_earlier_run(
    tmp_path, stop
):
    """Images whose node did not run are not stored, and have no digest, or an outdated one."""
    images = [
        replace(stored_image(f"0{n}", tmp_path / f"0{n}", ""), name=f"sub_0{n}") for n in range(3)
    ]
    store_arrays(images[1].folder, Owner("01", None, ()), {})
    if not stop:
        store_arrays(images[2].folder, Owner("02", None, ()), {})
    problem = Problem("00", "sub-00: all voxels are equal", 65, "sub_00")
    settings = Settings(tmp_path / "raw", tmp_path, "train", stop_on_first_crash=stop)
    runner = SimpleNamespace(settings=settings, run=lambda *_: [problem])
    study = Study(
        tmp_path, tmp_path, Space(TEMPLATE, 4.0, ""), GRID, "made", 2, 0, {}, 1.5, overlap=True
    )
    stored, problems = store_images(study, images, runner)
    assert problems == [problem]
    assert [image.name for image in stored] == ([] if stop else ["sub_01", "sub_02"])
    assert all(image.sha256 for image in stored)


def test_the_grid_of_an_atlas_is_that_of_the_first_mask_that_lies_on_it(tmp_path):
    people = []
    for label, shape in (("p1", None), ("p2", (9, 9, 9)), ("p3", GRID.shape)):
        path = tmp_path / f"{label}.nii.gz"
        path.write_bytes(b"no image")
        if shape is not None:
            nifti.save(nifti.Image(np.ones(shape, np.uint8), GRID.affine), path)
        who = patient(label)
        people.append(replace(who, visit=replace(who.visit, brain_mask=path)))
    space = Space(TEMPLATE, 4.0, "")
    study = Study(tmp_path, tmp_path, space, GRID, "made", 2, 0, {}, 1.5, overlap=True)
    assert mask_on_grid(study, people) == tmp_path / "p3.nii.gz"
    assert mask_on_grid(study, people[:2]) is None
