"""Before all else, PETs are stored; lesion masks and an atlas are brought onto the grid."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from nipype.pipeline.engine import Workflow

from bids_app.app.run import Runner
from bids_app.arguments import LESIONS
from bids_app.derivatives.description import uri_in
from bids_app.derivatives.detections import (
    lesions_in_template,
    lesions_on_t1w,
    native_t1w,
    t1w_to_template,
    template_to_t1w,
)
from bids_app.derivatives.find import LesionMask, Preprocessed
from bids_app.derivatives.sidecars import Sidecar
from bids_app.nifti import read_digest
from bids_app.plan.cohort import Subjects
from bids_app.plan.detectors import encodes_t1w
from bids_app.plan.group import (
    Lesions,
    atlas_of,
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

    None is given of a run that stops at the first problem, and has one.

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
    if runner.settings.stop_on_first_crash and problems:
        return [], problems  # of the others, nothing may have been stored, or by an earlier run
    lost = {problem.visit for problem in problems}
    stored = [
        replace(image, sha256=read_digest(image.folder))
        for image in images
        if image.name not in lost
    ]
    return stored, problems


def store_cohort(
    study: Study, cohort: Subjects, runner: Runner, *, lesions: Lesions, synthetic: bool
) -> Subjects:
    """Check and store the PETs of all subjects, and what is known of lesions and regions.

    Parameters
    ----------
    study : Study
        The run.
    cohort : Subjects
        Controls and patients.
    runner : Runner
        Runs the graphs.
    lesions : Lesions
        Of the patients, as :func:`bids_app.plan.group.refuse_knowledge` has found them.
    synthetic : bool
        Whether synthetic PETs are needed, too.

    Returns
    -------
    Subjects
        Those of whom a PET is stored, of patients a real one; notes and problems are those of
        lesions, and those that this finds.
    """
    settings = runner.settings
    patients, without_t1w = keep_with_t1w(cohort.patients)
    images = plan_storage(
        study, [*cohort.controls, *patients], synthetic=synthetic, t1w=encodes_t1w(settings)
    )
    graphs = _mask_graphs(study, lesions.masks, settings)
    atlas, reference = study.work_dir / "atlas.nii.gz", mask_on_grid(study, patients)
    atlas_files = atlas_of(settings)
    atlas.unlink(missing_ok=True)  # of an earlier run
    if atlas_files is not None and reference is not None:
        orientation = settings.assume_orientation
        graphs.append(
            init_atlas_wf(atlas_files[0], reference, atlas, orientation=orientation, name=ATLAS_WF)
        )
    stored, failed = store_images(study, images, runner, graphs)
    masks = {visit.t1w: lesions_in_template(visit) for visit in lesions.masks}
    return replace(
        join_cohort(
            replace(cohort, patients=tuple(patients)), {image.name: image for image in stored}
        ),
        lesions={t1w: mask for t1w, mask in masks.items() if mask.is_file()},
        atlas=atlas if atlas.is_file() else None,
        notes=lesions.notes,
        problems=(*without_t1w, *lesions.problems, *failed),
    )


def _mask_graphs(
    study: Study, masks: Mapping[Preprocessed, LesionMask], settings: Settings
) -> list[Workflow]:
    """Carry masks of lesions to the template's grid, where clusters are, and to the T1w's own."""
    graphs = []
    for number, (visit, mask) in enumerate(masks.items()):
        to_template = [] if mask.in_template else [t1w_to_template(visit)]
        to_t1w = [template_to_t1w(visit)] if mask.in_template else []
        on_t1w: Sidecar = {"SpatialReference": _uri(study, native_t1w(visit))}
        root = dict(settings.derivatives)[LESIONS]
        drawn = uri_in(study.output_dir, LESIONS, root, mask.path)
        template, grid = study.space.template, study.space.entries()
        for name, path, reference, transforms, place, space in (
            ("", lesions_in_template(visit), visit.brain_mask, to_template, template, grid),
            ("_on_t1w", lesions_on_t1w(visit), native_t1w(visit), to_t1w, "T1w", on_t1w),
        ):
            path.unlink(missing_ok=True)  # of an earlier run
            sidecar: Sidecar = {
                "Description": f"Lesions as {mask.path.name} has them, in {place}",
                "Sources": [drawn, *(_uri(study, path) for path in transforms)],
                "Type": "Lesion",
                **space,
            }
            graph = init_lesions_wf(
                mask.path,
                reference,
                transforms,
                (path, sidecar),
                orientation=settings.assume_orientation,
                name=f"lesions_{number}{name}_wf",
            )
            label_nodes(graph, owner=visit.subject, label=f"sub-{visit.subject}")
            graphs.append(graph)
    return graphs


def _uri(study: Study, path: Path) -> str:
    return f"bids::{path.relative_to(study.output_dir).as_posix()}"
