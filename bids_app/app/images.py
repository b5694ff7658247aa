"""Storage of PETs before other steps, and resampling of lesion masks and an atlas to the grid."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace

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
from bids_app.derivatives.paths import uri_of
from bids_app.derivatives.sidecars import Sidecar
from bids_app.errors import UnusableDataError
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
    """Check and store images, and run other workflows alongside; return stored images and problems.

    If the run stops at the first problem, and there is one, no images are returned.

    Parameters
    ----------
    study : Study
        Common parameters of the run.
    images : sequence of StoredImage
        Images with the folders to store them in.
    runner : Runner
        Runner of the workflows.
    others : sequence of Workflow
        Other workflows.
    """
    shape, affine = study.grid.shape, study.grid.affine.tolist()
    problems = runner.run([init_storing_wf(images, shape=shape, affine=affine), *others], {})
    if runner.settings.stop_on_first_crash and problems:
        return [], problems  # others may not have been stored, or by an earlier run only
    lost = {problem.visit for problem in problems}
    stored = [
        replace(image, sha256=read_digest(image.folder))
        for image in images
        if image.name not in lost
    ]
    return stored, problems


def refuse_twins(images: Sequence[StoredImage], tested: Collection[str] = ()) -> None:
    """Check that nobody has the images of a control, so that none is scored as it was trained.

    Parameters
    ----------
    images : sequence of StoredImage
        Images of controls, and of people to be tested.
    tested : collection of str
        Labels of those who are only tested, who may share images with one another.

    Raises
    ------
    UnusableDataError
        If two people, one of them a control, have the same images, with their labels.
    """
    owners: dict[str, str] = {}
    for image in images:
        other = owners.setdefault(image.sha256, image.participant)
        if other != image.participant and not {other, image.participant} <= set(tested):
            raise UnusableDataError(
                f"sub-{other} and sub-{image.participant} have the same images, voxel by voxel, so "
                "one would be scored by a model trained on the other; give "
                f"--exclude-participant-label {image.participant}"
            )


def store_cohort(
    study: Study, cohort: Subjects, runner: Runner, *, lesions: Lesions, synthetic: bool
) -> Subjects:
    """Check and store the PETs of all subjects, with the masks of lesions and the atlas.

    Parameters
    ----------
    study : Study
        Common parameters of the run.
    cohort : Subjects
        Controls and patients.
    runner : Runner
        Runner of the workflows.
    lesions : Lesions
        Lesions of the patients, from :func:`bids_app.plan.group.refuse_knowledge`.
    synthetic : bool
        Whether synthetic PETs are needed, too.

    Returns
    -------
    Subjects
        Controls with a stored PET, and patients with a stored real one; notes and problems are
        those of lesions and of this step.

    Raises
    ------
    UnusableDataError
        If a control has the images of another control or of a patient.
    """
    settings = runner.settings
    patients, without_t1w = keep_with_t1w(cohort.patients)
    images = plan_storage(
        study, [*cohort.controls, *patients], synthetic=synthetic, t1w=encodes_t1w(settings)
    )
    graphs = _mask_graphs(study, lesions.masks, settings)
    atlas, reference = study.work_dir / "atlas.nii.gz", mask_on_grid(study, patients)
    atlas_files = atlas_of(settings)
    atlas.unlink(missing_ok=True)  # from an earlier run
    if atlas_files is not None and reference is not None:
        orientation = settings.assume_orientation
        graphs.append(
            init_atlas_wf(atlas_files[0], reference, atlas, orientation=orientation, name=ATLAS_WF)
        )
    stored, failed = store_images(study, images, runner, graphs)
    refuse_twins(stored, [patient.label for patient in patients])
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
    """Build workflows that resample masks of lesions to the template's grid and to that of the T1w.

    Clusters are on the template's grid.
    """
    graphs = []
    for number, (visit, mask) in enumerate(masks.items()):
        to_template = [] if mask.in_template else [t1w_to_template(visit)]
        to_t1w = [template_to_t1w(visit)] if mask.in_template else []
        on_t1w: Sidecar = {"SpatialReference": uri_of(native_t1w(visit), study.output_dir)}
        root = dict(settings.derivatives)[LESIONS]
        drawn = uri_in(study.output_dir, LESIONS, root, mask.path)
        template, grid = study.space.template, study.space.entries()
        for name, path, reference, transforms, place, space in (
            ("", lesions_in_template(visit), visit.brain_mask, to_template, template, grid),
            ("_on_t1w", lesions_on_t1w(visit), native_t1w(visit), to_t1w, "T1w", on_t1w),
        ):
            path.unlink(missing_ok=True)  # from an earlier run
            sidecar: Sidecar = {
                "Description": f"Lesions of {mask.path.name}, resampled to {place}",
                "Sources": [drawn, *(uri_of(path, study.output_dir) for path in transforms)],
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
