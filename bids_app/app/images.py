"""Before detectors: PETs are stored, lesion masks and an atlas are brought onto the grid."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from nipype.pipeline.engine import Workflow

from bids_app.app.run import Runner
from bids_app.arguments import LESIONS
from bids_app.derivatives.description import uri_in
from bids_app.derivatives.detections import (
    lesions_in_template,
    native_t1w,
    t1w_to_template,
    template_to_t1w,
)
from bids_app.derivatives.find import LesionMask, Preprocessed, find_lesion_mask, no_mask_at_all
from bids_app.derivatives.paths import sidecar_path
from bids_app.detection.clusters import read_labels
from bids_app.errors import MissingInputError, Mri2petError
from bids_app.interfaces.derivatives import Output
from bids_app.nifti import check_labels, inspect, read_digest
from bids_app.plan.cohort import Subjects
from bids_app.plan.group import GroupPlan, Participant, StoredSubject, join_stored, plan_storage
from bids_app.plan.participant import Problem, refuse_other_grids
from bids_app.settings import Settings
from bids_app.workflows.detection import StoredImage, init_atlas_wf, init_lesions_wf
from bids_app.workflows.execution import label_nodes
from bids_app.workflows.training import init_storing_wf

ATLAS_WF, STORING_WF = "atlas_wf", "storing_wf"


@dataclass(frozen=True)
class StoredCohort:
    """Everyone whose images could be stored, and what is known of them beforehand.

    Parameters
    ----------
    controls, patients : tuple of StoredSubject
        With a stored PET, real or synthetic; patients with a real one.
    lesions : mapping
        Mask on the template's grid, by T1w of the patient's visit.
    atlas : Path or None
        Its labels on the grid.
    notes, problems : tuple
        What is to be told.
    """

    controls: tuple[StoredSubject, ...]
    patients: tuple[StoredSubject, ...]
    lesions: Mapping[Path, Path]
    atlas: Path | None
    notes: tuple[str, ...]
    problems: tuple[Problem, ...]


def store_cohort(
    group_plan: GroupPlan, subjects: Subjects, runner: Runner, *, synthetic: bool
) -> StoredCohort:
    """Check and store the PETs of all subjects, and what is known of lesions and regions.

    Parameters
    ----------
    group_plan : GroupPlan
        The run.
    subjects : Subjects
        Controls and patients.
    runner : Runner
        Runs the graphs.
    synthetic : bool
        Whether synthetic PETs are needed, too.

    Raises
    ------
    Mri2petError
        If a dataset or file that the settings name is not there, or cannot be used.
    """
    settings = runner.settings
    of_atlas = _check_atlas(settings)
    atlas = None if settings.atlas is None else group_plan.work_dir / "atlas.nii.gz"
    patients, without_t1w = _with_t1w(subjects.patients)
    lesions = find_masks(settings, patients)
    masks = lesions.masks
    plans = plan_storage(group_plan, [*subjects.controls, *patients], synthetic=synthetic)
    graphs = [
        init_storing_wf(
            plans,
            shape=group_plan.grid.shape,
            affine=group_plan.grid.affine.tolist(),
            name=STORING_WF,
        )
    ]
    graphs += _mask_graphs(group_plan, masks, settings)
    reference = _on_grid(group_plan, patients)
    if settings.atlas is not None and atlas is not None and reference is not None:
        graphs.append(
            init_atlas_wf(
                settings.atlas[0],
                reference,
                atlas,
                orientation=settings.assume_orientation,
                name=ATLAS_WF,
            )
        )
        atlas.unlink(missing_ok=True)  # of an earlier run
    failed = runner.run(graphs, {})
    problems = [*without_t1w, *lesions.problems, *failed]
    lost = {problem.visit for problem in failed}
    stored = {
        plan.name: StoredImage(plan.name, plan.folder, read_digest(plan.folder))
        for plan in plans
        if plan.name not in lost
    }
    controls = [join_stored(control, stored) for control in subjects.controls]
    stored_subjects = [join_stored(patient, stored) for patient in patients]
    return StoredCohort(
        controls=tuple(c for c in controls if c.real is not None or c.synthetic is not None),
        patients=tuple(p for p in stored_subjects if p.real is not None),
        lesions={
            visit.t1w: lesions_in_template(visit)
            for visit in masks
            if lesions_in_template(visit).is_file()
        },
        atlas=atlas if atlas is not None and atlas.is_file() else None,
        notes=(*of_atlas, *lesions.notes),
        problems=tuple(problems),
    )


def _with_t1w(patients: Sequence[Participant]) -> tuple[list[Participant], list[Problem]]:
    """Keep patients whose results can be carried to their T1w; tell of others."""
    absent = {
        visit: path
        for visit in dict.fromkeys(patient.visit for patient in patients)
        for path in (template_to_t1w(visit), native_t1w(visit))
        if not path.is_file()
    }
    problems = [_problem(visit, _absent(path)) for visit, path in absent.items()]
    return [patient for patient in patients if patient.visit not in absent], problems


def _on_grid(group_plan: GroupPlan, people: Sequence[Participant]) -> Path | None:
    """Give the first brain mask that lies on the grid; None where nobody has one."""
    masks = {subject.label: subject.visit.brain_mask for subject in people}
    lost = {one.subject for one in refuse_other_grids(masks.items(), group_plan.grid)}
    return next((mask for label, mask in masks.items() if label not in lost), None)


def _absent(path: Path) -> MissingInputError:
    return MissingInputError(f"{path}: no such file; run the participant level again")


def _problem(visit: Preprocessed, error: Mri2petError) -> Problem:
    return Problem(visit.subject, f"sub-{visit.subject}: {error}", error.exit_code)


@dataclass(frozen=True)
class Lesions:
    """Masks of lesions by visit of a patient; what is to be told of them, and of who has none."""

    masks: Mapping[Preprocessed, LesionMask]
    notes: tuple[str, ...] = ()
    problems: tuple[Problem, ...] = ()


def find_masks(settings: Settings, patients: Sequence[Participant]) -> Lesions:
    """Find masks of lesions, where the settings name a dataset of such.

    Parameters
    ----------
    settings : Settings
        Of the run.
    patients : sequence of Participant
        That are to be mapped.

    Raises
    ------
    MissingInputError
        If there is no such dataset, or it holds a mask of none of the patients.
    """
    root = dict(settings.derivatives).get(LESIONS)
    if root is None:
        return Lesions({})
    masks: dict[Preprocessed, LesionMask] = {}
    notes, problems = list[str](), list[Problem]()
    for visit in dict.fromkeys(patient.visit for patient in patients):
        try:
            mask = _usable_mask(root, visit, settings)
        except Mri2petError as error:
            if not root.is_dir():
                raise
            problems.append(_problem(visit, error))
            continue
        notes.append(_tell_mask(visit, mask))
        if mask is not None:
            masks[visit] = mask
            notes += inspect(mask.path, orientation=settings.assume_orientation).notes
    if patients and not (masks or problems):
        raise no_mask_at_all(root, settings.template)
    return Lesions(masks, tuple(notes), tuple(problems))


def refuse_knowledge(settings: Settings, patients: Sequence[Participant]) -> Lesions:
    """See that what is known of regions and lesions can be used, before anything is computed.

    Notes are those on lesions, and on how the atlas's header is understood.

    Raises
    ------
    Mri2petError
        If a file or folder that the settings name is not there, or cannot be used.
    """
    of_atlas = _check_atlas(settings)
    lesions = find_masks(settings, patients)
    return replace(lesions, notes=(*of_atlas, *lesions.notes))


def usable_subjects(group_plan: GroupPlan, subjects: Subjects, *, synthetic: bool) -> Subjects:
    """Keep those whose images lie on the run's grid, patients also with what leads to their T1w.

    Headers alone are looked at: an image may turn out to be damaged later. ``problems`` are those
    that this finds, without those that the subjects came with.
    """
    patients, problems = _with_t1w(subjects.patients)
    everyone = [*subjects.controls, *patients]
    unfit = refuse_other_grids(
        [
            (subject.label, path)
            for subject in everyone
            for path in (subject.visit.brain_mask, subject.pet)
            if path
        ],
        group_plan.grid,
    )
    odd = refuse_other_grids(
        [
            (subject.label, subject.synthetic.path)
            for subject in everyone
            if synthetic and subject.synthetic
        ],
        group_plan.grid,
    )
    lost, without = ({problem.subject for problem in told} for told in (unfit, odd))
    controls, kept = (
        tuple(
            replace(subject, synthetic=None) if subject.label in without else subject
            for subject in group
            if subject.label not in lost
        )
        for group in (subjects.controls, patients)
    )
    return Subjects(controls, kept, subjects.notes, (*problems, *unfit, *odd))


def assume_cohort(group_plan: GroupPlan, subjects: Subjects, *, synthetic: bool) -> StoredCohort:
    """Give the cohort that a run has where all images can be stored: nothing is."""
    plans = plan_storage(group_plan, [*subjects.controls, *subjects.patients], synthetic=synthetic)
    stored = {plan.name: StoredImage(plan.name, plan.folder, "") for plan in plans}
    controls, patients = (
        tuple(join_stored(subject, stored) for subject in group)
        for group in (subjects.controls, subjects.patients)
    )
    return StoredCohort(
        tuple(c for c in controls if c.real is not None or c.synthetic is not None),
        tuple(p for p in patients if p.real is not None),
        {},
        None,
        (),
        (),
    )


def _usable_mask(root: Path, visit: Preprocessed, settings: Settings) -> LesionMask | None:
    mask = find_lesion_mask(root, visit, settings.template)
    if mask is not None:
        check_labels(mask.path, orientation=settings.assume_orientation)
        if not mask.in_template and not t1w_to_template(visit).is_file():
            raise _absent(t1w_to_template(visit))
    return mask


def _tell_mask(visit: Preprocessed, mask: LesionMask | None) -> str:
    who = f"sub-{visit.subject}" + (f" ses-{visit.session}" if visit.session else "")
    if mask is None:
        return f"{who}: no mask of lesions; in no curve"
    how = "resampled" if mask.in_template else "carried from the T1w"
    return f"{who}: lesions are those of {mask.path.name}, {how} to the grid"


def _mask_graphs(
    group_plan: GroupPlan, masks: Mapping[Preprocessed, LesionMask], settings: Settings
) -> list[Workflow]:
    graphs = []
    for number, (visit, mask) in enumerate(masks.items()):
        path = lesions_in_template(visit)
        path.unlink(missing_ok=True)  # of an earlier run
        transforms = [] if mask.in_template else [t1w_to_template(visit)]
        root = dict(settings.derivatives)[LESIONS]
        drawn = uri_in(group_plan.output_dir, LESIONS, root, mask.path)
        uris = [f"bids::{one.relative_to(group_plan.output_dir).as_posix()}" for one in transforms]
        sidecar = {
            "Description": f"Lesions as {mask.path.name} has them, in {group_plan.space.template}",
            "Sources": [drawn, *uris],
            "Type": "Lesion",
            **group_plan.space.entries(),
        }
        output = Output(path, sidecar_path(path), sidecar)
        name = f"lesions_{number}_wf"
        graph = init_lesions_wf(
            mask.path,
            visit.brain_mask,
            transforms,
            output,
            orientation=settings.assume_orientation,
            name=name,
        )
        label_nodes(graph, owner=visit.subject, label=f"sub-{visit.subject}")
        graphs.append(graph)
    return graphs


def _check_atlas(settings: Settings) -> tuple[str, ...]:
    """See that the atlas can be used; give notes on how its header is understood."""
    if settings.atlas is None:
        return ()
    image, names = settings.atlas
    check_labels(image, orientation=settings.assume_orientation)
    read_labels(names)
    return inspect(image, orientation=settings.assume_orientation).notes
