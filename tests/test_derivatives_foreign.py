"""Files of fMRIPrep, sMRIPrep and PETPrep that replace raw images; nothing is computed."""

import json

import nibabel as nib
import numpy as np
import pytest
from phantoms import add_anatomy, add_derived, add_pet, add_t1w, brain, write_dataset
from phantoms import write_derivatives as write_app

from bids_app import nifti
from bids_app.derivatives.foreign import find_derived_t1w, read_app
from bids_app.derivatives.paths import visit_paths
from bids_app.derivatives.sidecars import Provenance, read_derivative
from bids_app.errors import MissingInputError, UnusableDataError
from bids_app.plan.participant import read_selection
from bids_app.settings import Settings
from bids_app.visit import Scan

OWN, OTHER = "MNI152NLin2009aSym", "MNI152NLin2009cAsym"
BOTH = (b"there", b"back")


@pytest.fixture
def head():
    return brain(np.random.default_rng(0))


@pytest.fixture
def raw(tmp_path, head):
    """One person with T1w and PET in a session, and one with a T1w and no session."""
    root = write_dataset(tmp_path / "raw")
    add_t1w(root, "01", None, session="a", data=head)
    add_pet(root, "01", np.random.default_rng(0), session="a")
    add_t1w(root, "02", None, data=head)
    return root


@pytest.fixture
def fmriprep(tmp_path):
    return write_app(tmp_path / "fmriprep", "fMRIPrep", "24.1.1")


@pytest.fixture
def petprep(tmp_path):
    return write_app(tmp_path / "petprep", "PETPrep", "0.0.2")


def select(raw, options=None, **roots):
    """Select images given datasets of other apps; return visits by participant, and problems."""
    settings = Settings(
        raw,
        raw.parent / "out",
        "participant",
        derivatives=tuple(roots.items()),
        validate=False,
        **(options or {}),
    )
    selection = read_selection(settings)
    problems = [unused for unused in selection.unused if unused.exit_code is not None]
    return {visit.subject: visit for visit in selection.visits}, problems


def names(derived):
    return [path.name for path in derived.files]


def test_a_t1w_its_mask_and_the_transforms_to_the_template_of_the_run_are_taken(
    raw, fmriprep, head
):
    add_anatomy(fmriprep, "02", head, template=OTHER, transforms=BOTH)
    add_anatomy(fmriprep, "02", head, template=OWN, transforms=BOTH)
    add_derived(fmriprep, "02", "anat", f"space-{OWN}_desc-preproc_T1w", head)
    visit = select(raw, fmriprep=fmriprep)[0]["02"]
    assert names(visit.t1w.derived) == [
        "sub-02_desc-preproc_T1w.nii.gz",
        "sub-02_desc-brain_mask.nii.gz",
        f"sub-02_from-T1w_to-{OWN}_mode-image_xfm.h5",
        f"sub-02_from-{OWN}_to-T1w_mode-image_xfm.h5",
    ]
    assert visit.notes == (
        f"T1w, brain mask and transforms to {OWN} are taken from fMRIPrep 24.1.1",
    )


@pytest.mark.parametrize(
    ("template", "transforms", "told"),
    [(OTHER, BOTH, f" (there are some to {OTHER})"), (OWN, BOTH[:1], "")],
)
def test_without_both_transforms_to_the_template_the_t1w_is_registered(
    raw, head, template, transforms, told
):
    fmriprep = write_app(raw.parent / "fmriprep", "fMRIPrep", "24.1.1")
    add_anatomy(fmriprep, "02", head, template=template, transforms=transforms)
    visit = select(raw, fmriprep=fmriprep)[0]["02"]
    assert names(visit.t1w.derived) == [
        "sub-02_desc-preproc_T1w.nii.gz",
        "sub-02_desc-brain_mask.nii.gz",
    ]
    (note,) = visit.notes
    assert note == (
        f"T1w and brain mask are taken from fMRIPrep 24.1.1; it has no transforms to {OWN} and "
        f"back{told}, so the T1w is registered to this template"
    )


def test_who_is_not_there_is_computed_and_told(raw, fmriprep, head):
    add_anatomy(fmriprep, "02", head)
    (fmriprep / "sub-02/anat/sub-02_desc-brain_mask.nii.gz").unlink()
    visits, problems = select(raw, fmriprep=fmriprep, smriprep=fmriprep)
    assert problems == []
    for subject, label in (("01", "sub-01 ses-a"), ("02", "sub-02")):
        assert visits[subject].t1w.derived is None
        assert visits[subject].notes == (
            "fmriprep or smriprep has no preprocessed T1w with a brain mask of "
            f"{label}, so both are computed from the raw images",
        )


@pytest.mark.parametrize(("session", "told"), [("a", False), (None, True)])
def test_the_anatomy_of_a_session_is_its_own_or_one_for_all(raw, fmriprep, head, session, told):
    add_anatomy(fmriprep, "01", head, session=session)
    visit = select(raw, fmriprep=fmriprep)[0]["01"]
    assert visit.t1w.derived.image.name.startswith("sub-01_ses-a" if session else "sub-01_desc")
    assert ("which made one T1w from all sessions" in visit.notes[0]) is told


def test_what_belongs_together_lies_together(raw, fmriprep, head):
    """A mask and transforms of another folder level belong to another T1w."""
    add_anatomy(fmriprep, "01", head, template=OWN, transforms=BOTH)
    t1w = add_anatomy(fmriprep, "01", head, session="a")
    assert len(select(raw, fmriprep=fmriprep)[0]["01"].t1w.derived.files) == 2
    t1w.with_name(t1w.name.replace("preproc_T1w", "brain_mask")).unlink()
    assert select(raw, fmriprep=fmriprep)[0]["01"].t1w.derived is None


def test_a_pet_of_no_session_is_not_that_of_a_session(raw, petprep, head):
    add_anatomy(petprep, "01", head)
    add_derived_pet(petprep, session=None)
    assert select(raw, petprep=petprep)[0]["01"].pets[0].derived is None


def test_the_anatomy_of_another_session_is_not_taken(raw, fmriprep, head):
    add_anatomy(fmriprep, "01", head, session="b")
    assert select(raw, fmriprep=fmriprep)[0]["01"].t1w.derived is None


@pytest.mark.parametrize(
    ("prefix", "taken"),
    [
        ("", True),
        ("acq-mprage_", True),
        ("acq-mprage_run-1_", True),
        ("acq-mprage_run-2_", False),
        ("acq-flash_", False),
        ("rec-norm_", False),
    ],
)
def test_a_name_says_nothing_that_its_raw_image_does_not(tmp_path, fmriprep, head, prefix, taken):
    path = tmp_path / "raw/sub-01/anat/sub-01_acq-mprage_run-01_T1w.nii.gz"
    scan = Scan(path, "01", None, (("sub", "01"), ("acq", "mprage"), ("run", "01")))
    add_anatomy(fmriprep, "01", head, prefix=prefix)
    assert (find_derived_t1w("fmriprep", fmriprep, "f", scan, OWN) is not None) is taken
    if taken and prefix:  # the more specific file is preferred
        add_anatomy(fmriprep, "01", head)
        found = find_derived_t1w("fmriprep", fmriprep, "f", scan, OWN)
        assert prefix in found.image.name
        assert prefix in found.brain_mask.name


def add_derived_pet(root, space="space-T1w_", extra="", session="a", **told):
    pet = brain(np.random.default_rng(0), inverted=True)
    name = f"{space}{extra}desc-preproc_pet"
    return add_derived(root, "01", "pet", name, pet, session=session, sidecar=told)


def test_a_pet_on_the_t1w_is_taken_with_what_its_sidecar_tells(raw, fmriprep, petprep, head):
    add_anatomy(fmriprep, "01", head)
    add_derived_pet(petprep, extra="pvc-GTM_")  # partial-volume-corrected, so not the same image
    wanted = add_derived_pet(petprep, FrameDuration=[30, 60], Units="kBq/mL")
    visit = select(raw, fmriprep=fmriprep, petprep=petprep)[0]["01"]
    (pet,) = visit.pets
    assert pet.derived.files == (wanted,)
    told = {"TracerName": "FDG", "FrameDuration": (30, 60), "Units": "kBq/mL"}
    assert dict(pet.metadata) == told
    assert visit.notes[1:] == (
        "sub-01_ses-a_trc-18FFDG_pet.nii.gz: is taken from PETPrep 0.0.2, in T1w space",
    )


@pytest.mark.parametrize(
    ("entity", "taken"),
    [("task-rest", True), ("task-eyes", False), ("echo-1", False), ("part-mag", False)],
)
def test_a_task_that_the_raw_name_tells_may_be_repeated(raw, petprep, head, entity, taken):
    (raw / "sub-01/ses-a/pet/sub-01_ses-a_trc-18FFDG_pet.nii.gz").unlink()
    add_pet(raw, "01", np.random.default_rng(0), session="a", name="task-rest_trc-18FFDG_pet")
    add_anatomy(petprep, "01", head)
    add_derived_pet(petprep, space=f"{entity}_trc-18FFDG_space-T1w_")
    (pet,) = select(raw, petprep=petprep)[0]["01"].pets
    assert (pet.derived is not None) is taken


@pytest.mark.parametrize("entity", ["echo", "part"])
def test_an_echo_or_part_that_the_raw_name_tells_may_be_repeated(tmp_path, fmriprep, head, entity):
    path = tmp_path / f"raw/sub-01/anat/sub-01_{entity}-1_T1w.nii.gz"
    scan = Scan(path, "01", None, (("sub", "01"), (entity, "1")))
    for label, taken in (("2", False), ("1", True)):
        add_anatomy(fmriprep, "01", head, prefix=f"{entity}-{label}_")
        assert (find_derived_t1w("fmriprep", fmriprep, "f", scan, OWN) is not None) is taken


def test_a_derived_pet_has_not_the_unit_of_the_raw_one(raw, petprep, head):
    """Another app may have divided by a region or a dose."""
    add_anatomy(petprep, "01", head)
    add_derived_pet(petprep)
    (pet,) = select(raw, petprep=petprep)[0]["01"].pets
    assert dict(pet.metadata) == {"TracerName": "FDG"}


def test_a_pet_with_a_transform_to_the_t1w_is_taken_where_it_does_not_lie_there(raw, petprep, head):
    add_anatomy(petprep, "01", head)
    pet = add_derived_pet(petprep, space="")
    assert select(raw, petprep=petprep)[0]["01"].pets[0].derived is None
    rigid = pet.with_name("sub-01_ses-a_from-petref_to-T1w_mode-image_xfm.txt")
    rigid.write_text("")
    assert select(raw, petprep=petprep)[0]["01"].pets[0].derived.files == (pet, rigid)
    add_derived_pet(petprep)
    assert select(raw, petprep=petprep)[0]["01"].pets[0].derived.forward is None


def test_a_pet_lies_on_the_t1w_of_its_own_dataset(raw, fmriprep, petprep, head):
    """Even if another dataset has a transform to the template."""
    add_anatomy(fmriprep, "01", head, template=OWN, transforms=BOTH)
    add_anatomy(petprep, "01", head)
    both = {"fmriprep": fmriprep, "petprep": petprep}
    visit = select(raw, **both)[0]["01"]
    assert visit.t1w.derived.dataset == "fmriprep"
    assert visit.pets[0].derived is None
    assert "petprep has no preprocessed version on the T1w" in visit.notes[1]
    add_derived_pet(petprep)
    visit = select(raw, **both)[0]["01"]
    assert visit.t1w.derived.dataset == visit.pets[0].derived.dataset == "petprep"


def test_a_pet_that_lies_on_another_t1w_is_registered(raw, fmriprep, petprep, head):
    add_pet(raw, "01", np.random.default_rng(0), session="b")
    for root, session in ((petprep, "a"), (fmriprep, "b")):
        add_anatomy(root, "01", head)
        add_derived_pet(root, session=session)
    visit = select(raw, petprep=petprep, fmriprep=fmriprep)[0]["01"]
    assert visit.t1w.derived.dataset == "petprep"
    assert [pet.derived is not None for pet in visit.pets] == [True, False]


def test_a_pet_is_not_taken_without_a_t1w(raw, petprep):
    add_derived_pet(petprep)
    visit = select(raw, petprep=petprep)[0]["01"]
    assert (visit.t1w.derived, visit.pets[0].derived) == (None, None)


def test_a_pet_that_cannot_be_used_costs_the_visit_no_more_than_itself(raw, petprep, head):
    add_anatomy(petprep, "01", head)
    path = add_derived_pet(petprep)
    path.write_bytes(b"no image")
    visits, (problem,) = select(raw, petprep=petprep)
    assert visits["01"].pets == ()
    assert str(path) in problem.reason


def add_frames(root, count=2, **told):
    """Write a raw dynamic PET of the first person."""
    pet = brain(np.random.default_rng(0), inverted=True)
    sidecar = {"TracerName": "FDG", **told}
    frames = np.stack([pet] * count, axis=-1)
    return add_pet(root, "01", None, session="a", data=frames, sidecar=sidecar)


def remove_orientation(path):
    image = nib.load(path)
    image.set_sform(None, 0)
    image.set_qform(None, 0)
    nib.save(image, path)


def test_a_raw_pet_that_could_not_be_used_does_not_bar_what_was_made_of_it(raw, petprep, head):
    path = add_frames(raw)  # of unknown duration
    add_anatomy(petprep, "01", head)
    visits, (problem,) = select(raw, petprep=petprep)
    assert "there is no FrameDuration" in problem.reason
    assert visits["01"].pets == ()
    assert not any(path.name in note for note in visits["01"].notes)  # it is not registered
    wanted = add_derived_pet(petprep)
    visits, problems = select(raw, petprep=petprep)
    assert problems == []
    assert visits["01"].pets[0].used == wanted


def test_a_raw_t1w_that_could_not_be_used_does_not_bar_what_was_made_of_it(raw, fmriprep, head):
    remove_orientation(raw / "sub-02/anat/sub-02_T1w.nii.gz")
    refused(raw, "sub-02_T1w.nii.gz")
    t1w = add_anatomy(fmriprep, "02", head)
    visits, problems = select(raw, fmriprep=fmriprep)
    assert problems == []
    assert visits["02"].t1w.used == t1w


def test_a_raw_image_that_could_not_be_used_does_not_bar_a_later_stage(raw, petprep, head):
    """A later stage starts from the results of an earlier run on another app's images."""
    add_frames(raw)
    remove_orientation(raw / "sub-01/ses-a/anat/sub-01_ses-a_T1w.nii.gz")
    later = {"stage": "synthesize"}
    visits, problems = select(raw, later)
    assert (list(visits), len(problems)) == (["02"], 2)
    add_anatomy(petprep, "01", head)
    add_derived_pet(petprep)
    visit = select(raw, petprep=petprep)[0]["01"]
    settings = Settings(raw, raw.parent / "out", "participant")
    paths = visit_paths(settings.output_dir, visit, settings.template, settings.grid_resolution)
    for result in (paths.t1w_in_template, paths.pets[0].in_template):
        result.parent.mkdir(parents=True)
        result.write_bytes(b"made")
    visits, problems = select(raw, later)
    assert problems == []
    assert len(visits["01"].pets) == 1
    assert len(select(raw)[1]) == 2  # of a run that starts from the raw images


@pytest.mark.parametrize("frames", [(0,), (3, 4)])
def test_frames_are_not_chosen_of_one_volume_that_another_app_has_made(raw, petprep, head, frames):
    path = add_frames(raw, 5, FrameDuration=[60] * 5)
    add_anatomy(petprep, "01", head)
    wanted = add_derived_pet(petprep)
    visits, problems = select(raw, {"pet_frames": frames}, petprep=petprep)
    assert problems == []
    assert visits["01"].pets[0].used == wanted
    assert visits["01"].notes[-1] == (
        f"{path.name}: PETPrep 0.0.2 has made a single volume, which is used as it is; "
        "--pet-frames does not apply to it"
    )


def test_frames_are_chosen_of_the_frames_that_another_app_has_made(raw, petprep, head):
    add_anatomy(petprep, "01", head)
    path = add_derived_pet(petprep, FrameDuration=[30, 60])
    image = nifti.load(path)
    nifti.save(nifti.Image(np.stack([image.data] * 2, axis=-1), image.affine), path)
    visits, problems = select(raw, {"pet_frames": (1,)}, petprep=petprep)
    assert problems == []
    assert not any("--pet-frames" in note for note in visits["01"].notes)
    (problem,) = select(raw, {"pet_frames": (2,)}, petprep=petprep)[1]
    assert "has 2 frames, counted from 0, but no frame 2" in problem.reason


def test_nobody_vouches_for_the_orientation_of_what_another_app_has_made(raw, petprep, head):
    """The orientation option is for raw images, whose voxels the app may have reordered."""
    add_anatomy(petprep, "01", head)
    path = add_derived_pet(petprep)
    remove_orientation(path)
    remove_orientation(raw / "sub-02/anat/sub-02_T1w.nii.gz")
    visits, (problem,) = select(raw, {"assume_orientation": "LAS"}, petprep=petprep)
    assert str(path) in problem.reason
    assert visits["02"].t1w.orientation == "LAS"


@pytest.mark.parametrize(
    ("tracers", "taken"), [(["18FFDG", "11CPIB"], True), (["11CPIB"], False), ([], True)]
)
def test_a_pet_made_of_another_tracer_is_not_taken(raw, petprep, head, tracers, taken):
    """PETPrep leaves out trc-, so that names do not tell."""
    add_anatomy(petprep, "01", head)
    folder = "bids:raw:sub-01/ses-a/pet/sub-01_ses-a"
    sources = [f"{folder}_trc-{tracer}_pet.nii.gz" for tracer in tracers]
    aside = [f"{folder}_from-petref_to-T1w_mode-image_xfm.txt", f"{folder}_desc-hmc_pet.nii.gz"]
    for key in ("Sources", "RawSources"):
        add_derived_pet(petprep, **{key: sources + aside})
        visit = select(raw, petprep=petprep)[0]["01"]
        assert visit.t1w.derived is not None
        assert (visit.pets[0].derived is not None) is taken
        assert any("so the raw PET is registered" in note for note in visit.notes) is not taken


def test_a_t1w_made_of_another_run_is_not_taken(raw, fmriprep, head):
    t1w = add_anatomy(fmriprep, "02", head)
    sidecar = t1w.with_name("sub-02_desc-preproc_T1w.json")
    run, own = "/data/raw/sub-02/anat/sub-02_run-2_T1w.nii", "bids::sub-02/anat/sub-02_T1w.nii.gz"
    for sources, taken in (([run], False), ([run, own], True)):
        sidecar.write_text(json.dumps({"Sources": sources}))
        visits, problems = select(raw, fmriprep=fmriprep)
        assert problems == []
        assert (visits["02"].t1w.derived is not None) is taken


# Images in MNI space

CAPS = {"anat": ("t1_linear", ""), "pet": ("pet_linear", "suvr-cerebellumPons2_")}


def add_in_mni(root, subject, datatype, suffix, data, *, session=None, caps=True):
    """Write an image named as by Clinica's t1-linear and pet-linear, or by any other app."""
    top, folder, extra = root, datatype, ""
    if caps:
        top, (folder, extra) = root / "subjects", CAPS[datatype]
    space = "space-MNI152NLin2009cSym_" + "desc-Crop_res-1x1x1_" * caps
    own = "trc-18FFDG_" if datatype == "pet" else ""
    name = f"{own}{space}{extra}{suffix}"
    return add_derived(top, subject, folder, name, data, session=session)


@pytest.mark.parametrize("caps", [True, False])
def test_images_in_mni_space_are_taken_with_or_without_a_mask(tmp_path, raw, head, caps):
    root, name = tmp_path / "elsewhere", "clinica" if caps else "mni"
    t1w = add_in_mni(root, "01", "anat", "T1w", head, session="a", caps=caps)
    pet = add_in_mni(root, "01", "pet", "pet", head, session="a", caps=caps)
    visits = select(raw, **{name: root})[0]
    derived = visits["01"].t1w.derived
    assert derived.files == (t1w,)
    assert derived.in_template
    assert visits["01"].pets[0].derived.files == (pet,)
    app = "Clinica" if caps else "the dataset mni"
    assert visits["01"].notes == (
        f"T1w in MNI space is taken from {app}, and not registered again",
        f"sub-01_ses-a_trc-18FFDG_pet.nii.gz: is taken from {app}, in MNI space",
    )
    assert visits["02"].t1w.derived is None
    place = t1w.name.replace("desc-Crop_", "").replace("T1w.nii.gz", "desc-brain_mask.nii.gz")
    nifti.save(nifti.load(t1w), t1w.with_name(place))
    assert len(select(raw, **{name: root})[0]["01"].t1w.derived.files) == 2


@pytest.mark.parametrize(("sessions", "taken"), [(["M000"], True), (["M000", "M018"], False)])
def test_the_only_session_of_another_app_is_that_of_a_dataset_without(
    tmp_path, raw, head, sessions, taken
):
    add_pet(raw, "02", np.random.default_rng(0))
    for session in sessions:
        for datatype, suffix in (("anat", "T1w"), ("pet", "pet")):
            add_in_mni(tmp_path / "caps", "02", datatype, suffix, head, session=session)
    visit = select(raw, clinica=tmp_path / "caps")[0]["02"]
    derived = [image.derived for image in (visit.t1w, *visit.pets)]
    assert [one is not None for one in derived] == [taken, taken]
    assert taken or "clinica has no preprocessed T1w of sub-02, so both" in visit.notes[0]


def test_the_name_of_a_ratio_tells_its_unit_unless_its_sidecar_does(tmp_path, raw, head):
    add_in_mni(tmp_path / "caps", "01", "anat", "T1w", head, session="a")
    path = add_in_mni(tmp_path / "caps", "01", "pet", "pet", head, session="a")
    for told, unit in (({}, "SUVR"), ({"Units": "unitless"}, "unitless")):
        path.with_name(path.name.replace(".nii.gz", ".json")).write_text(json.dumps(told))
        (pet,) = select(raw, clinica=tmp_path / "caps")[0]["01"].pets
        assert dict(pet.metadata)["Units"] == unit


def test_the_space_of_the_template_is_preferred(tmp_path, raw, head):
    root = tmp_path / "mni"
    for space in (OWN, OTHER):
        for datatype, suffix in (("anat", "T1w"), ("pet", "pet"), ("anat", "desc-brain_mask")):
            name = f"space-{space}_{'res-2_' * (space == OTHER)}{suffix}"
            add_derived(root, "01", datatype, name, head, session="a")
    visit = select(raw, mni=root)[0]["01"]
    taken = visit.t1w.derived.files + visit.pets[0].derived.files
    assert [f"space-{OWN}" in path.name for path in taken] == [True] * 3


@pytest.mark.parametrize("datatype", ["anat", "pet"])
def test_images_of_mni152_stand_in_for_those_of_no_other_template(tmp_path, raw, head, datatype):
    """They would count as registered to a template with another position and shape."""
    root, suffix = tmp_path / "mni", {"anat": "T1w", "pet": "pet"}
    own, template = "space-MNIInfant_", {"template": "MNIInfant"}
    for kind in ("anat", "pet"):
        space = f"space-{OTHER}_" if kind == datatype else own
        add_derived(root, "01", kind, f"{space}{suffix[kind]}", head, session="a")
    visit = select(raw, template, mni=root)[0]["01"]
    assert [scan.derived for scan in (visit.t1w, *visit.pets)] == [None, None]
    add_derived(root, "01", datatype, f"{own}{suffix[datatype]}", head, session="a")
    visit = select(raw, template, mni=root)[0]["01"]
    assert all(scan.derived is not None for scan in (visit.t1w, *visit.pets))


@pytest.mark.parametrize(
    ("image", "masks", "taken"),
    [
        ("res-2_", ("res-1_", "res-2_"), "res-2_"),
        ("", ("res-1_", ""), ""),
        ("res-2_", ("",), ""),
        ("", ("res-1_",), "res-1_"),
    ],
)
def test_a_mask_of_the_resolution_of_the_t1w_is_preferred(raw, head, image, masks, taken):
    """A mask of another resolution is on another grid, and the participant would be refused."""
    space, root = f"space-{OWN}_", raw.parent / "mni"
    add_derived(root, "02", "anat", f"{space}{image}T1w", head)
    for mask in masks:
        data = head if mask == taken else head[1:]
        add_derived(root, "02", "anat", f"{space}{mask}desc-brain_mask", data)
    visits, problems = select(raw, mni=root)
    assert problems == []
    expected = f"sub-02_{space}{taken}desc-brain_mask.nii.gz"
    assert visits["02"].t1w.derived.brain_mask.name == expected


@pytest.mark.parametrize("space", [None, "MNI152NLin6Asym"])
def test_a_t1w_in_mni_space_is_not_taken_without_the_pet_in_that_space(raw, head, space):
    """A brain in MNI space has another size than in the raw PET, which is registered rigidly."""
    root = raw.parent / "mni"
    for subject, session in (("01", "a"), ("02", None)):
        add_derived(root, subject, "anat", f"space-{OTHER}_res-2_T1w", head, session=session)
    if space:
        add_derived(root, "01", "pet", f"space-{space}_res-2_pet", head, session="a")
    visits, problems = select(raw, mni=root)
    assert problems == []
    assert [scan.derived for scan in (visits["01"].t1w, *visits["01"].pets)] == [None, None]
    assert visits["01"].notes == (
        "mni has no PET in the space of its T1w of sub-01 ses-a, so both are computed from the raw "
        "images",
    )
    assert visits["02"].t1w.derived.in_template  # no PET that would have to lie on it
    add_derived(root, "01", "pet", f"space-{OTHER}_pet", head, session="a")
    visit = select(raw, mni=root)[0]["01"]
    assert all(OTHER in scan.derived.image.name for scan in (visit.t1w, *visit.pets))


def test_the_t1w_of_another_dataset_is_taken_where_the_pet_is_not_in_mni_space(raw, fmriprep, head):
    add_derived(raw.parent / "mni", "01", "anat", f"space-{OWN}_T1w", head, session="a")
    add_anatomy(fmriprep, "01", head)
    visit = select(raw, mni=raw.parent / "mni", fmriprep=fmriprep)[0]["01"]
    assert (visit.t1w.derived.dataset, visit.pets[0].derived) == ("fmriprep", None)


def test_a_pet_in_mni_space_does_not_lie_on_a_t1w_elsewhere(tmp_path, raw, fmriprep, head):
    root = tmp_path / "mni"
    add_in_mni(root, "01", "pet", "pet", head, session="a", caps=False)
    add_anatomy(fmriprep, "01", head)
    visit = select(raw, fmriprep=fmriprep, mni=root)[0]["01"]
    assert visit.t1w.derived.dataset == "fmriprep"
    assert visit.pets[0].derived is None
    assert "mni has no preprocessed version on the T1w" in visit.notes[1]


def test_a_folder_without_participants_is_refused(tmp_path, raw, head):
    with pytest.raises(
        UnusableDataError, match=r"subjects: contains no participant .*clinica=PATH"
    ):
        select(raw, clinica=raw)
    with pytest.raises(UnusableDataError, match=r"contains no participant folder \(sub-X\)"):
        select(raw, mni=raw / "sub-01")


# Refusals


def refused(raw, *told, **roots):
    """Return the problem of one person, which names files and a remedy; the other is selected."""
    visits, (problem,) = select(raw, **roots)
    assert problem.exit_code == 65
    assert problem.subject not in visits
    assert len(visits) == 1
    for word in told:
        assert str(word) in problem.reason


def test_a_mask_on_another_grid_is_refused(raw, fmriprep, head):
    t1w = add_anatomy(fmriprep, "02", head)
    mask = t1w.with_name("sub-02_desc-brain_mask.nii.gz")
    for shift, count in ((2.0, 0), (0.0, 1)):
        affine = np.diag([4.0, 4, 4, 1])
        affine[:3, 3] = (-88 + shift, -104, -88)
        data = (head[: len(head) - count] > 0).astype(np.uint8)
        add_derived(fmriprep, "02", "anat", "desc-brain_mask", data, affine=affine)
        refused(raw, mask, "lies on another grid than sub-02_desc-preproc", fmriprep=fmriprep)


def test_a_t1w_named_after_another_is_refused(raw, fmriprep, head):
    t1w = add_anatomy(fmriprep, "02", head)
    other = t1w.rename(t1w.with_name("sub-01_desc-preproc_T1w.nii.gz"))
    refused(raw, other, "different participants", "move it", fmriprep=fmriprep)


def test_a_t1w_made_of_anothers_images_is_refused(raw, fmriprep, head):
    t1w = add_anatomy(fmriprep, "02", head)
    sidecar = t1w.with_name("sub-02_desc-preproc_T1w.json")
    for key in ("Sources", "RawSources"):
        sidecar.write_text(json.dumps({key: ["bids:raw:sub-01/anat/sub-01_T1w.nii.gz"]}))
        refused(raw, t1w, "made from images of sub-01", fmriprep=fmriprep)
    for others in ([], ["sub-01/anat/sub-01_T1w.nii.gz", "sub-02/anat/sub-02_T1w.nii.gz"]):
        sidecar.write_text(json.dumps({"RawSources": others}))
        assert select(raw, fmriprep=fmriprep)[1] == []


def test_a_t1w_of_several_volumes_or_none_is_refused(raw, fmriprep, head):
    t1w = add_anatomy(fmriprep, "02", head)
    add_derived(fmriprep, "02", "anat", "desc-preproc_T1w", np.stack([head, head], axis=-1))
    refused(raw, t1w, "2 volumes", "leave its dataset out", fmriprep=fmriprep)
    t1w.write_bytes(b"")
    refused(raw, t1w, fmriprep=fmriprep)


def test_a_folder_that_is_no_dataset_of_derivatives_is_refused(raw, tmp_path, fmriprep):
    write_app(tmp_path / "aslprep", "ASLPrep", "1")
    with pytest.raises(MissingInputError, match="no such folder; correct --derivatives fmriprep"):
        select(raw, fmriprep=tmp_path / "nowhere")
    with pytest.raises(UnusableDataError, match=f"such as {fmriprep}, in --derivatives fmri"):
        select(raw, fmriprep=tmp_path)
    with pytest.raises(UnusableDataError, match="does not name the app that made the dataset"):
        select(raw, petprep=raw)


def test_an_app_is_named_as_its_dataset_does(tmp_path, fmriprep):
    assert read_app("fmriprep", fmriprep) == "fMRIPrep 24.1.1"
    old = {"PipelineDescription": {"Name": "fMRIPrep", "Version": "1.5"}}
    (fmriprep / "dataset_description.json").write_text(json.dumps(old))
    assert read_app("fmriprep", fmriprep) == "fMRIPrep 1.5"


def test_a_source_is_named_with_the_dataset_it_is_of(tmp_path, raw, fmriprep, head):
    add_anatomy(fmriprep, "02", head)
    visits = select(raw, fmriprep=fmriprep)[0]
    origin = Provenance(raw, tmp_path / "out", "f", "0")
    sources = [origin.source(visits[subject].t1w) for subject in ("01", "02")]
    assert sources == [
        "bids:raw:sub-01/ses-a/anat/sub-01_ses-a_T1w.nii.gz",
        "bids:fmriprep:sub-02/anat/sub-02_desc-preproc_T1w.nii.gz",
    ]
    image = tmp_path / "sub-02_T1w.nii.gz"
    told = {"Sources": [*sources, "bids::sub-02/anat/sub-02_desc-brain_mask.nii.gz"]}
    image.with_name("sub-02_T1w.json").write_text(json.dumps(told))
    assert read_derivative(image).sources() == (
        "sub-01/ses-a/anat/sub-01_ses-a_T1w.nii.gz",
        "fmriprep:sub-02/anat/sub-02_desc-preproc_T1w.nii.gz",
    )
