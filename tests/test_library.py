"""Public interface, through ``import mri2pet``: functions, an estimator and workflows."""

import subprocess
import sys
from functools import partial

import nibabel as nib
import numpy as np
import pytest
from nilearn.datasets import load_mni152_gm_template, load_mni152_template
from nipype.interfaces.utility import Function, IdentityInterface
from nipype.pipeline.engine import Node, Workflow
from phantoms import add_t1w, write_dataset

import mri2pet
from bids_app import nifti
from bids_app.detection.oneclass import VoxelwiseOneClassSVM
from bids_app.errors import MissingInputError, Mri2petError, UnusableDataError, UsageError
from bids_app.files import write_json
from bids_app.generators import SHIPPED
from bids_app.imaging.volume import Grid, grid_of_box
from bids_app.library import Registered
from bids_app.synthesis import card
from bids_app.templates import _onto, mask_on

BOX = (-78, -112, -50, 78, 76, 85)


def template_t1w(resolution=4.0):
    """The template's own brain as a T1w in MNI space."""
    grid = grid_of_box(BOX, resolution)
    whole = nifti.from_nibabel(load_mni152_template(resolution=2))
    inside = mask_on("MNI152NLin2009aSym", grid)
    data = np.where(inside, _onto(whole, grid, "continuous").data, 0)
    return nib.Nifti1Image(np.clip(data / np.percentile(data, 99.9), 0, 1), grid.affine)


def test_what_is_public_is_there_and_loads_late():
    assert {"predict_pet", "register_to_mni", "simulate", "VoxelwiseOneClassSVM"} < set(
        dir(mri2pet)
    )
    assert mri2pet.VoxelwiseOneClassSVM is VoxelwiseOneClassSVM
    assert mri2pet.Mri2petError is Mri2petError
    with pytest.raises(AttributeError, match="has no attribute 'predict_mri'"):
        mri2pet.predict_mri  # noqa: B018 - raises
    told = subprocess.run(
        [sys.executable, "-c", "import sys, mri2pet; print({'torch', 'numpy'} & set(sys.modules))"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert told.stdout.strip() == "set()"


@pytest.mark.parametrize("resolution", [4.0, 3.0])
def test_a_pet_is_predicted_on_the_grid_of_the_t1w(resolution, tmp_path):
    t1w = template_t1w(resolution)
    t1w.to_filename(tmp_path / "t1w.nii.gz")
    pet, same = (mri2pet.predict_pet(given) for given in (t1w, str(tmp_path / "t1w.nii.gz")))
    np.testing.assert_array_equal(pet.get_fdata(), same.get_fdata())
    np.testing.assert_array_equal(pet.affine, t1w.affine)
    assert b"SYNTHETIC" in pet.header["descrip"].item()
    made, brain = pet.get_fdata(), t1w.get_fdata() > 0
    assert not made[~brain].any()
    assert 0 <= made.min() < 0.3 < made.max() <= 1
    grey = _onto(
        nifti.from_nibabel(load_mni152_gm_template(resolution=2)),
        Grid(made.shape, pet.affine),
        "continuous",
    ).data
    assert np.corrcoef(made[brain], grey[brain])[0, 1] > 0.4  # uptake is highest in grey matter


def test_the_weights_of_a_generator_are_checked_once(monkeypatch):
    checked, digest = [], card.file_sha256
    monkeypatch.setattr(card, "file_sha256", lambda path: checked.append(path) or digest(path))
    mri2pet.predict_pet(template_t1w())
    assert [path.name for path in checked] == ["weights.safetensors"]


@pytest.mark.parametrize("axes", ["LAS", "PSR"])
def test_the_order_of_voxels_does_not_matter(axes):
    t1w = template_t1w()
    turn = nib.orientations.ornt_transform(
        nib.io_orientation(t1w.affine), nib.orientations.axcodes2ornt(axes)
    )
    pet, turned = mri2pet.predict_pet(t1w), mri2pet.predict_pet(t1w.as_reoriented(turn))
    assert nib.aff2axcodes(turned.affine) == tuple(axes)
    back = nib.as_closest_canonical(turned)
    np.testing.assert_allclose(back.affine, pet.affine, atol=1e-5)
    np.testing.assert_allclose(back.get_fdata(), pet.get_fdata(), atol=1e-3)


def test_a_fourth_axis_of_length_one_is_one_volume():
    t1w = template_t1w()
    longer = nib.Nifti1Image(t1w.get_fdata()[..., np.newaxis], t1w.affine)
    np.testing.assert_array_equal(
        mri2pet.predict_pet(longer).get_fdata(), mri2pet.predict_pet(t1w).get_fdata()
    )


@pytest.mark.parametrize(
    ("options", "error", "told"),
    [
        ({"fwhm": -1.0}, ValueError, "fwhm must be 0 mm or more, not -1"),
        ({"fwhm": np.nan}, ValueError, "fwhm must be 0 mm or more, not nan"),
        ({"device": "gpu"}, UsageError, "use auto, cpu, cuda or cuda:N"),
        ({"generator": "mine"}, MissingInputError, "^generator mine: no folder"),
    ],
    ids=str,
)
def test_options_that_cannot_be_used_are_refused(options, error, told):
    """By the workflow, too, when it is built."""
    for predict in (partial(mri2pet.predict_pet, template_t1w()), mri2pet.init_synthesis_wf):
        with pytest.raises(error, match=told):
            predict(**options)


def test_what_is_no_image_and_no_path_is_a_type_error(tmp_path):
    for wrong in (template_t1w().get_fdata(), [1, 2], None, b"t1w.nii"):
        with pytest.raises(TypeError, match="must be a path or a nibabel image, not"):
            mri2pet.predict_pet(wrong)
    for wrong in (template_t1w(), None, ["t1w.nii"]):
        with pytest.raises(TypeError):
            mri2pet.register_to_mni(wrong, tmp_path)


def test_a_resolution_of_0_is_refused_by_the_workflow(tmp_path):
    with pytest.raises(ValueError, match="resolution must be above 0 mm, not 0"):
        mri2pet.init_participant_wf(template_dir=tmp_path, resolution=0)


def volume(shape, affine=np.eye(4)):  # noqa: B008 - not changed
    return nib.Nifti1Image(np.ones(shape, np.float32), affine)


def shifted(image):
    affine = image.affine.copy()
    affine[:3, 3] += 60
    return nib.Nifti1Image(image.get_fdata(dtype=np.float32), affine)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (shifted, "so it is not a brain in that space"),
        (lambda t1w: nib.Nifti1Image(900 * t1w.get_fdata(), t1w.affine), "instead of 0 to 1"),
        (lambda _: volume((9, 9, 9, 2)), r"\(9, 9, 9, 2\); give one volume"),
        (lambda _: volume((9, 9)), r"\(9, 9\); give one volume"),
        (lambda _: volume((0, 9, 9)), r"\(0, 9, 9\); give one volume"),
        (lambda t1w: volume(t1w.shape, None), "does not define left and right"),
        (
            lambda t1w: nib.Nifti1Image(t1w.get_fdata() + 0.5 * (t1w.get_fdata() == 0), t1w.affine),
            "not a brain",
        ),
    ],
    ids=["elsewhere", "unscaled", "two", "slice", "empty", "unoriented", "background"],
)
def test_what_is_no_t1w_in_mni_space_is_refused(change, told):
    with pytest.raises(UnusableDataError, match=told):
        mri2pet.predict_pet(change(template_t1w()))


def test_a_generator_that_predicts_no_pet_is_named(tmp_path):
    from bids_app.synthesis.inference import load_generator, save_generator

    network, about = load_generator(SHIPPED / "default", "cpu")
    for values in network.state_dict().values():
        values.zero_()
    save_generator(network, about, tmp_path / "g")
    with pytest.raises(
        Mri2petError, match=rf"{tmp_path}/g: for the given image, the generator predicts 0"
    ):
        mri2pet.predict_pet(template_t1w(), tmp_path / "g")


def test_a_simulated_cohort_is_written(tmp_path):
    root = mri2pet.simulate(tmp_path / "bids", paired=1, patients=1, resolution=4, seed=3)
    assert sorted(path.name for path in root.glob("sub-*")) == ["sub-control01", "sub-patient01"]
    with pytest.raises(Mri2petError, match="not empty"):
        mri2pet.simulate(tmp_path / "bids")
    with pytest.raises(Mri2petError, match="argument --paired: -1 is not in 0 to"):
        mri2pet.simulate(tmp_path / "bids", paired=-1)


def test_what_cannot_be_registered_is_refused_in_the_words_of_the_command_line(tmp_path):
    (tmp_path / "scan.mgz").touch()
    for name, told in (
        ("none.nii", r"none\.nii: no such file; check its path"),
        ("scan.mgz", r"scan\.mgz: neither \.nii nor \.nii\.gz"),
    ):
        with pytest.raises(Mri2petError, match=told):
            mri2pet.register_to_mni(tmp_path / name, tmp_path / "out")


@pytest.mark.slow
@pytest.mark.itk
def test_a_t1w_is_registered_and_its_pet_predicted(tmp_path):
    t1w = add_t1w(write_dataset(tmp_path / "raw"), "x", np.random.default_rng(4))
    found = mri2pet.register_to_mni(t1w, tmp_path / "out", resolution=4, quick=True)
    assert isinstance(found, Registered)
    assert found.verdict == "pass"
    assert found.pet is None
    for path in (found.brain_mask, found.t1w_to_mni, found.mni_to_t1w, found.report):
        assert path.is_file()
    assert mri2pet.predict_pet(found.t1w).shape == (40, 48, 34)


@pytest.fixture
def made(tmp_path, monkeypatch):
    """Folder with results of earlier calls: two resolutions, another template, and a PET."""
    pet, anat = (tmp_path / "out/sub-x" / name for name in ("pet", "anat"))
    pet.mkdir(parents=True)
    anat.mkdir()
    for template in ("MNI152NLin2009aSym", "MNI152NLin2009cAsym"):
        for ends in (f"from-T1w_to-{template}", f"from-{template}_to-T1w"):
            (anat / f"sub-x_{ends}_mode-image_xfm.h5").touch()
        for resolution, verdict in (("2", "pass"), ("2p5", "doubt")):
            grid = f"space-{template}_res-{resolution}"
            (pet / f"sub-x_trc-18FFDG_{grid}_desc-preproc_pet.nii.gz").touch()
            told = {"Registration": {"Verdict": "pass"}}
            write_json(pet / f"sub-x_trc-18FFDG_{grid}_desc-preproc_pet.json", told)
            (anat / f"sub-x_{grid}_desc-brain_mask.nii.gz").touch()
            (anat / f"sub-x_{grid}_desc-preproc_T1w.nii.gz").touch()
            told = {"Registration": {"Verdict": verdict}}
            write_json(anat / f"sub-x_{grid}_desc-preproc_T1w.json", told)
    done = subprocess.CompletedProcess([], 0, "", "")
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: done)
    return tmp_path / "out"


@pytest.mark.parametrize(
    ("resolution", "label", "verdict"), [(2, "2", "pass"), (2.5, "2p5", "doubt")]
)
def test_results_are_those_of_the_call_whatever_else_is_there(made, resolution, label, verdict):
    found = mri2pet.register_to_mni("sub-x_T1w.nii", made, pet="x_pet.nii", resolution=resolution)
    grid = f"space-MNI152NLin2009aSym_res-{label}"
    assert found.t1w.name == f"sub-x_{grid}_desc-preproc_T1w.nii.gz"
    assert found.brain_mask.name == f"sub-x_{grid}_desc-brain_mask.nii.gz"
    assert found.pet.name == f"sub-x_trc-18FFDG_{grid}_desc-preproc_pet.nii.gz"
    assert "_to-MNI152NLin2009aSym_" in found.t1w_to_mni.name
    assert "_from-MNI152NLin2009aSym_" in found.mni_to_t1w.name
    assert found.verdict == verdict
    assert all(path.is_file() for path in found[:5])
    assert found.report == made / "sub-x.html"


def test_the_verdict_is_that_of_the_worse_registration(made):
    for sidecar in made.glob("sub-x/pet/*_res-2_*.json"):
        write_json(sidecar, {"Registration": {"Verdict": "doubt"}})
    assert mri2pet.register_to_mni("x.nii", made, resolution=2).verdict == "pass"
    found = mri2pet.register_to_mni("x.nii", made, pet="x_pet.nii", resolution=2)
    assert found.verdict == "doubt"


def test_no_pet_is_given_back_where_none_was_given(made):
    assert mri2pet.register_to_mni("sub-x_T1w.nii", made, resolution=2).pet is None


def halve(in_file):
    """Step of another workflow."""
    import os

    import nibabel as nib

    image = nib.load(in_file)
    out = os.path.join(os.getcwd(), "half.nii.gz")  # noqa: PTH109, PTH118 - a str is tested
    nib.Nifti1Image(image.get_fdata() / 2, image.affine).to_filename(out)
    return out


@pytest.mark.slow
@pytest.mark.itk
def test_workflows_run_inside_of_somebody_elses(tmp_path, monkeypatch):
    """They are built before the image exists, and connected only by their inputs and outputs."""
    monkeypatch.chdir(tmp_path)
    mine = mri2pet.init_participant_wf(
        template_dir="template", resolution=4, quick=True, skull_strip="skip"
    )
    first = Node(IdentityInterface(["raw"]), name="first")
    half = Node(Function(["in_file"], ["out"], halve), name="half")
    theirs = Workflow("theirs", base_dir=str(tmp_path / "work"))
    theirs.connect(
        [
            (first, mine, [("raw", "inputnode.t1w")]),
            (mine, half, [("outputnode.synthetic_pet", "in_file")]),
        ]
    )
    first.inputs.raw = str(add_t1w(write_dataset(tmp_path / "raw"), "x", np.random.default_rng(4)))
    done = {node.name: node for node in theirs.run().nodes}
    made = nib.load(done["half"].result.outputs.out)
    assert made.shape == (40, 48, 34)
    whole = nib.load(done["synthesize"].result.outputs.pet).get_fdata()
    np.testing.assert_allclose(made.get_fdata(), whole / 2, atol=1e-3)
    assert whole.max() > 0.5
    carried = nib.load(done["carry_to_t1w"].result.outputs.image)
    assert carried.shape == nib.load(first.inputs.raw).shape


@pytest.mark.slow
@pytest.mark.itk
def test_workflows_predict_nothing_of_a_t1w_whose_registration_failed(tmp_path):
    """A ball of noise is no brain wherever it lies, but a PET predicted from it looks like one."""
    points = (np.indices((48, 48, 48)).transpose(1, 2, 3, 0) - 24) * 4.0
    noise = np.random.default_rng(0).uniform(50, 150, points.shape[:3])
    ball = np.where(np.linalg.norm(points, axis=-1) < 65, noise, 0).astype(np.float32)
    nifti.save(nifti.Image(ball, np.diag([4.0, 4, 4, 1])), tmp_path / "t1w.nii")
    mine = mri2pet.init_participant_wf(
        template_dir=tmp_path / "template", resolution=4, quick=True, skull_strip="skip"
    )
    mine.base_dir, mine.inputs.inputnode.t1w = str(tmp_path / "work"), str(tmp_path / "t1w.nii")
    mine.config["execution"] = {"crashdump_dir": str(tmp_path)}  # otherwise the current folder
    with pytest.raises(RuntimeError, match=r"t1w\.nii: its registration failed: deep in the brain"):
        mine.run()
    assert not [*(tmp_path / "work").rglob("pet.nii.gz")]
