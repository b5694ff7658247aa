"""The participant level starting from outputs of other apps, with --sloppy, on coarse brains."""

import json
import re

import numpy as np
import pytest
from cohorts import shifts
from phantoms import (
    MIDDLE,
    TO_T1W,
    add_anatomy,
    add_derived,
    add_pet,
    add_t1w,
    brain,
    head_affine,
    write_dataset,
    write_derivatives,
)
from scipy import ndimage

from bids_app import nifti
from bids_app.app.run import RELEASE
from bids_app.cli import main
from bids_app.files import read_json

pytestmark = pytest.mark.slow

TEMPLATE, GRID = "MNI152NLin2009aSym", "space-MNI152NLin2009aSym_res-4"
COMPUTED = {"extract_brain", "correct_bias", "register_to_template", "register_to_t1w"}


def write_pet(petprep, pet):
    """Write a PET of two frames on PETPrep's own grid, the first of which has no counts."""
    half = np.stack([0.01 * pet[::2, ::2, ::2], pet[::2, ::2, ::2]], axis=-1)
    affine = np.diag([8.0, 8, 8, 1])
    affine[:3, 3] = (-88, -104, -88)
    told = {"FrameDuration": [10, 90], "Units": "kBq/mL"}
    add_derived(
        petprep,
        "01",
        "pet",
        "space-T1w_desc-preproc_pet",
        half,
        session="a",
        affine=affine,
        sidecar=told,
    )


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    """Three people: with all derivatives, with all but transforms, and with none."""
    rng = np.random.default_rng(1)
    folder = tmp_path_factory.mktemp("derivatives")
    raw = write_dataset(folder / "raw")
    fmriprep = write_derivatives(folder / "fmriprep", "fMRIPrep", "24.1.1")
    petprep = write_derivatives(folder / "petprep", "PETPrep", "0.0.2")
    heads = [brain(rng) for _ in range(3)]
    for label, head, session in zip(("01", "02", "03"), heads, ("a", None, None), strict=True):
        add_t1w(raw, label, rng, data=head, session=session)
    add_pet(raw, "01", rng, session="a")
    smaller = [np.where(ndimage.binary_erosion(head > 0), head / 2, 0) for head in heads]
    transforms = shifts(TO_T1W)
    add_anatomy(fmriprep, "01", smaller[0], template=TEMPLATE, transforms=transforms)
    add_anatomy(fmriprep, "02", smaller[1], template="MNI152NLin6Asym", transforms=transforms)
    pet = brain(rng, inverted=True)
    write_pet(petprep, np.maximum(pet, 0.01 * pet.max() * rng.random(pet.shape)))
    return folder


def run(study, out, *options, fmriprep="fmriprep"):
    command = [str(study / "raw"), str(out), "participant", "--sloppy", "--nprocs", "1"]
    command += ["--omp-nthreads", "1", "--skip-bids-validation", *options]
    derivatives = [f"fmriprep={study / fmriprep}", f"petprep={study / 'petprep'}"]
    return main([*command, "-d", *derivatives])


@pytest.fixture(scope="module")
def out(study):
    assert run(study, study / "out") == 0
    return study / "out"


def steps_of(out, visit):
    """List the nodes that have left results in the work folder."""
    return {
        path.name
        for path in (out / ".work" / RELEASE / "mri2pet" / visit).glob("**/*")
        if path.is_dir()
    }


def test_what_was_taken_is_not_computed(out):
    assert not COMPUTED & steps_of(out, "sub_01_ses_a_wf")
    assert {"take_brain", "take_transforms", "take_pet", "judge"} <= steps_of(
        out, "sub_01_ses_a_wf"
    )
    assert COMPUTED & steps_of(out, "sub_02_wf") == {"register_to_template"}
    assert COMPUTED - {"register_to_t1w"} <= steps_of(out, "sub_03_wf")


def test_the_results_are_of_the_same_kind_as_ever(study, out):
    stem = out / "sub-01/ses-a/pet/sub-01_ses-a_trc-18FFDG_"
    for name in (
        f"{GRID}_desc-preproc_pet",
        f"{GRID}_desc-synth_pet",
        f"{GRID}_desc-coverage_mask",
        "space-T1w_desc-preproc_pet",
        "space-T1w_desc-synth_pet",
        "space-T1w_desc-difference_pet",
    ):
        assert nifti.load(f"{stem}{name}.nii.gz").data.any(), name
    moved = read_json(out / f"sub-01/ses-a/anat/sub-01_ses-a_{GRID}_desc-preproc_T1w.json")
    assert moved["Registration"]["Verdict"] == "pass"
    assert (
        read_json(out / f"{stem}{GRID}_desc-preproc_pet.json")["Registration"]["Verdict"] == "pass"
    )
    mask = nifti.load(out / "sub-01/ses-a/anat/sub-01_ses-a_desc-brain_mask.nii.gz").data
    taken = nifti.load(study / "fmriprep/sub-01/anat/sub-01_desc-brain_mask.nii.gz").data
    np.testing.assert_array_equal(mask, taken)
    transforms = out.glob("sub-01/ses-a/anat/*_xfm.h5")
    assert sorted(path.read_bytes() for path in transforms) == sorted(shifts(TO_T1W))


def test_sidecars_say_what_was_taken_from_where(out):
    anat, stem = out / "sub-01/ses-a/anat", "sub-01_ses-a_"
    t1w = read_json(anat / f"{stem}desc-preproc_T1w.json")
    assert t1w["Sources"] == ["bids:fmriprep:sub-01/anat/sub-01_desc-preproc_T1w.nii.gz"]
    assert t1w["BrainExtraction"] == "taken from fMRIPrep 24.1.1"
    assert t1w["TakenFrom"] == "fMRIPrep 24.1.1"
    xfm = read_json(anat / f"{stem}from-T1w_to-{TEMPLATE}_mode-image_xfm.json")
    assert xfm["Sources"] == [
        f"bids:fmriprep:sub-01/anat/sub-01_from-T1w_to-{TEMPLATE}_mode-image_xfm.h5"
    ]
    moved = read_json(anat / f"{stem}{GRID}_desc-preproc_T1w.json")["Registration"]
    assert moved["Method"] == "taken from fMRIPrep 24.1.1"
    assert "Start" not in moved
    assert abs(moved["CorrelationBehindBestPose"]) < 0.01
    pet = read_json(out / f"sub-01/ses-a/pet/{stem}trc-18FFDG_space-T1w_desc-preproc_pet.json")
    assert pet["Sources"][0] == (
        "bids:petprep:sub-01/ses-a/pet/sub-01_ses-a_space-T1w_desc-preproc_pet.nii.gz"
    )
    assert (pet["TakenFrom"], pet["Units"]) == ("PETPrep 0.0.2", "kBq/mL")
    assert pet["FrameDurationsUsed"] == [10, 90]
    other = read_json(out / f"sub-02/anat/sub-02_{GRID}_desc-preproc_T1w.json")["Registration"]
    assert "SyN" in other["Method"]
    assert "TakenFrom" not in other
    assert "TakenFrom" not in read_json(out / "sub-03/anat/sub-03_desc-preproc_T1w.json")
    links = read_json(out / "dataset_description.json")["DatasetLinks"]
    assert links["fmriprep"].endswith("/fmriprep")
    assert links["petprep"].endswith("/petprep")


def test_the_report_says_so_in_notes_sources_and_methods(out):
    page = re.sub(r"\s+", " ", (out / "sub-01.html").read_text())
    assert f"T1w, brain mask and transforms to {TEMPLATE} are taken from fMRIPrep 24.1.1" in page
    assert "fmriprep:sub-01/anat/sub-01_desc-preproc_T1w.nii.gz" in page
    assert "with the transform computed by fMRIPrep 24.1.1" in page
    assert "The FDG PET was taken from the output of PETPrep 0.0.2" in page
    assert "The brain was extracted" not in page
    other = re.sub(r"\s+", " ", (out / "sub-02.html").read_text())
    assert "there are some to MNI152NLin6Asym" in other
    assert "The brain was registered to the template" in other
    assert "computed from the raw images" in (out / "sub-03.html").read_text()


def test_a_run_is_complete_as_long_as_the_derivatives_are_the_same(study, out, capsys):
    assert run(study, out, "--dry-run") == 0
    assert "0 visits would be computed, 3 are complete" in capsys.readouterr().out
    command = [str(study / "raw"), str(out), "participant", "--sloppy", "--dry-run"]
    assert main([*command, "--skip-bids-validation"]) == 0
    assert "2 visits would be computed, 1 is complete" in capsys.readouterr().out


def test_a_dry_run_estimates_what_is_left_to_be_computed(study, tmp_path, capsys):
    minutes = []
    command = [str(study / "raw"), str(tmp_path / "out"), "participant", "--dry-run"]
    command += ["--skip-bids-validation", "--nprocs", "1"]
    apps = ["-d", f"fmriprep={study / 'fmriprep'}", f"petprep={study / 'petprep'}"]
    for options in ([], apps):
        assert main([*command, *options]) == 0
        minutes.append(int(re.search(r"\((\d+) min of CPU time", capsys.readouterr().out)[1]))
    assert minutes[1] < minutes[0]


def test_what_is_wrong_with_transforms_costs_its_participant(study, tmp_path, capsys):
    """One maps elsewhere, one is not the inverse of the other, one is no transform."""
    rng = np.random.default_rng(1)
    fmriprep = write_derivatives(study / "wrong", "fMRIPrep", "24.1.1")
    far, right = shifts((40.0, 18.0, -45.0)), shifts(TO_T1W)
    pairs = {"01": far, "02": (right[0], far[1]), "03": (b"none", right[1])}
    for label, transforms in pairs.items():
        add_anatomy(fmriprep, label, brain(rng), template=TEMPLATE, transforms=transforms)
    assert run(study, tmp_path / "out", "--stage", "preprocess", fmriprep="wrong") == 65
    told = capsys.readouterr().err
    anat, xfm = f"{fmriprep}/sub-{{0}}/anat/sub-{{0}}_", "_mode-image_xfm.h5: "
    assert f"{anat.format('01')}desc-preproc_T1w.nii.gz: its registration failed" in told
    assert f"{anat.format('02')}from-{TEMPLATE}_to-T1w{xfm}is not the inverse of" in told
    assert f"{anat.format('03')}from-T1w_to-{TEMPLATE}{xfm}cannot be read as an ITK" in told
    sidecar = next((tmp_path / "out").glob(f"sub-01/ses-a/anat/*_{GRID}_desc-preproc_T1w.json"))
    assert json.loads(sidecar.read_text())["Registration"]["Verdict"] == "fail"


def test_images_in_mni_space_go_straight_to_scaling(study, tmp_path):
    """Images by Clinica without a brain mask: the brain is extracted, and nothing is registered."""
    rng = np.random.default_rng(2)
    affine = head_affine()
    affine[:3, 3] += MIDDLE
    caps = {"t1_linear": ("", "T1w"), "pet_linear": ("trc-18FFDG_", "suvr-pons_pet")}
    pet = brain(rng, inverted=True)
    images = {"t1_linear": brain(rng), "pet_linear": np.maximum(pet, rng.random(pet.shape))}
    for folder, (own, suffix) in caps.items():
        name = f"{own}space-MNI152NLin2009cSym_desc-Crop_res-1x1x1_{suffix}"
        told = {"session": "a", "affine": affine}
        add_derived(tmp_path / "caps/subjects", "01", folder, name, images[folder], **told)
    out = tmp_path / "out"
    command = [str(study / "raw"), str(out), "participant", "--sloppy", "--nprocs", "1"]
    command += ["--omp-nthreads", "1", "--skip-bids-validation", "--participant-label", "01"]
    assert main([*command, "-d", f"clinica={tmp_path / 'caps'}"]) == 0
    assert COMPUTED & steps_of(out, "sub_01_ses_a_wf") == {"extract_brain"}
    stem = out / "sub-01/ses-a"
    for kind, name in (
        ("anat", f"{GRID}_desc-preproc_T1w"),
        ("pet", f"trc-18FFDG_{GRID}_desc-preproc_pet"),
    ):
        told = read_json(stem / kind / f"sub-01_ses-a_{name}.json")["Registration"]
        assert (told["Verdict"], told["Method"]) == ("pass", "taken from Clinica")
    assert (stem / f"pet/sub-01_ses-a_trc-18FFDG_{GRID}_desc-synth_pet.nii.gz").is_file()
    xfm = read_json(stem / f"anat/sub-01_ses-a_from-{TEMPLATE}_to-T1w_mode-image_xfm.json")
    assert xfm["Description"].startswith("Identity")
    page = re.sub(r"\s+", " ", (out / "sub-01.html").read_text())
    assert "was taken from the output of Clinica, in MNI space, and not registered" in page


def test_a_z_scored_t1w_that_is_taken_keeps_the_contrast_of_its_tissue(study, tmp_path):
    """Values below the mean of the brain, such as most of its grey matter, used to become 0."""
    affine, head = head_affine(), brain(np.random.default_rng(2))
    affine[:3, 3] += MIDDLE
    inside = head > 0
    scored = np.where(inside, (head - head[inside].mean()) / head[inside].std(), 0)
    shown = {}
    for kind, t1w in (("plain", head), ("scored", scored)):
        for suffix, data in (("desc-preproc_T1w", t1w), ("desc-brain_mask", inside)):
            name = f"space-{TEMPLATE}_{suffix}"
            add_derived(tmp_path / kind, "02", "anat", name, np.float32(data), affine=affine)
        out = tmp_path / f"out_{kind}"
        command = [str(study / "raw"), str(out), "participant", "--sloppy", "--nprocs", "1"]
        command += ["--omp-nthreads", "1", "--skip-bids-validation", "--participant-label", "02"]
        command += ["--stage", "preprocess", "-d", f"mni={tmp_path / kind}"]
        assert main(command) == 0
        assert not COMPUTED & steps_of(out, "sub_02_wf")
        stem = f"{out}/sub-02/anat/sub-02_{GRID}_desc-"
        values, mask = (nifti.load(f"{stem}{n}.nii.gz").data for n in ("preproc_T1w", "brain_mask"))
        shown[kind] = values[mask > 0]
    assert (shown["scored"] == 0).mean() < 0.05
    assert np.corrcoef(shown["plain"], shown["scored"])[0, 1] > 0.95
