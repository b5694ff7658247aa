"""Before all else, PETs are stored; lesion masks and an atlas are brought onto the grid."""

from collections.abc import Mapping, Sequence
from dataclasses import replace

from nipype.pipeline.engine import Workflow

from bids_app.app.run import Runner
from bids_app.arguments import LESIONS
from bids_app.derivatives.description import uri_in
from bids_app.derivatives.detections import lesions_in_template, t1w_to_template
from bids_app.derivatives.find import LesionMask, Preprocessed
from bids_app.nifti import read_digest
from bids_app.plan.cohort import Subjects
from bids_app.plan.detectors import encodes_t1w
from bids_app.plan.group import (
    atlas_of,
    check_atlas,
    find_masks,
    join_cohort,
    keep_with_t1w,
    mask_on_grid,
    plan_storage,
)
from bids_app.plan.problems import Problem
from bids_app.plan.study import Study
from bids_app.settings import Settings
from bids_app.workflows.detection import init_atlas_wf, init_lesions_wf
from bids_app.workflows.execution import label_nodes
from bids_app.workflows.training import StoredImage, init_storing_wf

ATLAS_WF = "atlas_wf"


def store_images(
    study: Study, images: Sequence[StoredImage], runner: Runner, others: Sequence[Workflow] = ()
) -> tuple[list[StoredImage], list[Problem]]:
    """Check and store images, and run other graphs beside; give those that are stored.

    Parameters
    ----------
    study : Study
        The run.
    images : sequence of StoredImage
        Where they go.
    runner : Runner
        Runs the graphs.
    others : sequence of Workflow
        The other graphs.
    """
    shape, affine = study.grid.shape, study.grid.affine.tolist()
    problems = runner.run([init_storing_wf(images, shape=shape, affine=affine), *others], {})
    lost = {problem.visit for problem in problems}
    stored = [
        replace(image, sha256=read_digest(image.folder))
        for image in images
        if image.name not in lost
    ]
    return stored, problems


def store_cohort(study: Study, cohort: Subjects, runner: Runner, *, synthetic: bool) -> Subjects:
    """Check and store the PETs of all subjects, and what is known of lesions and regions.

    Parameters
    ----------
    study : Study
        The run.
    cohort : Subjects
        Controls and patients.
    runner : Runner
        Runs the graphs.
    synthetic : bool
        Whether synthetic PETs are needed, too.

    Returns
    -------
    Subjects
        Those of whom a PET is stored, of patients a real one; notes and problems are those that
        this finds.

    Raises
    ------
    Mri2petError
        If a dataset or file that the settings name is not there, or cannot be used.
    """
    settings = runner.settings
    of_atlas = check_atlas(settings)
    patients, without_t1w = keep_with_t1w(cohort.patients)
    lesions = find_masks(settings, patients)
    images = plan_storage(
        study, [*cohort.controls, *patients], synthetic=synthetic, t1w=encodes_t1w(settings)
    )
    graphs = _mask_graphs(study, lesions.masks, settings)
    atlas, reference = study.work_dir / "atlas.nii.gz", mask_on_grid(study, patients)
    given = atlas_of(settings)
    atlas.unlink(missing_ok=True)  # of an earlier run
    if given is not None and reference is not None:
        orientation = settings.assume_orientation
        graphs.append(
            init_atlas_wf(given[0], reference, atlas, orientation=orientation, name=ATLAS_WF)
        )
    stored, failed = store_images(study, images, runner, graphs)
    masks = {visit.t1w: lesions_in_template(visit) for visit in lesions.masks}
    return replace(
        join_cohort(
            replace(cohort, patients=tuple(patients)), {image.name: image for image in stored}
        ),
        lesions={t1w: mask for t1w, mask in masks.items() if mask.is_file()},
        atlas=atlas if atlas.is_file() else None,
        notes=(*of_atlas, *lesions.notes),
        problems=(*without_t1w, *lesions.problems, *failed),
    )


def _mask_graphs(
    study: Study, masks: Mapping[Preprocessed, LesionMask], settings: Settings
) -> list[Workflow]:
    graphs = []
    for number, (visit, mask) in enumerate(masks.items()):
        own = lesions_in_template(visit)
        own.unlink(missing_ok=True)  # of an earlier run
        transforms = [] if mask.in_template else [t1w_to_template(visit)]
        root = dict(settings.derivatives)[LESIONS]
        drawn = uri_in(study.output_dir, LESIONS, root, mask.path)
        uris = [f"bids::{path.relative_to(study.output_dir).as_posix()}" for path in transforms]
        sidecar = {
            "Description": f"Lesions as {mask.path.name} has them, in {study.space.template}",
            "Sources": [drawn, *uris],
            "Type": "Lesion",
            **study.space.entries(),
        }
        graph = init_lesions_wf(
            mask.path,
            visit.brain_mask,
            transforms,
            (own, sidecar),
            orientation=settings.assume_orientation,
            name=f"lesions_{number}_wf",
        )
        label_nodes(graph, owner=visit.subject, label=f"sub-{visit.subject}")
        graphs.append(graph)
    return graphs
