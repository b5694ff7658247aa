"""Before detectors: PETs are stored, lesion masks and an atlas are brought onto the grid."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from bids_app.app.intake import Problem
from bids_app.app.people import People
from bids_app.app.running import Runner
from bids_app.derivatives.anomalies import (
    lesions_in_template,
    native_t1w,
    t1w_to_template,
)
from bids_app.derivatives.lesions import NAME as LESIONS
from bids_app.derivatives.lesions import LesionMask, find_lesion_mask
from bids_app.derivatives.paths import sidecar_path
from bids_app.derivatives.preprocessed import Preprocessed
from bids_app.errors import MissingInputError
from bids_app.mapped import read_digest
from bids_app.screening import Pictured, Screening, picture, plan_pictures
from bids_app.settings import Settings
from bids_app.workflows.anomalies import init_atlas_wf, init_lesions_wf
from bids_app.workflows.detection import Picture
from bids_app.workflows.execution import Crash
from bids_app.workflows.outputs import Output
from bids_app.workflows.storing import StoragePlan, init_storing_wf

ATLAS_WF, STORING_WF = "atlas_wf", "storing_wf"


@dataclass(frozen=True)
class Pictures:
    """Everyone whose images could be stored, and what is known of them beforehand.

    Parameters
    ----------
    controls, patients : tuple of Pictured
        With a stored PET, real or synthetic; patients with a real one.
    lesions : mapping
        Mask on the template's grid, by T1w of the patient's visit.
    atlas : Path or None
        Its labels on the grid.
    notes, problems : tuple
        What is to be told.
    """

    controls: tuple[Pictured, ...]
    patients: tuple[Pictured, ...]
    lesions: Mapping[Path, Path]
    atlas: Path | None
    notes: tuple[str, ...]
    problems: tuple[Problem, ...]


def take_pictures(
    screening: Screening, people: People, runner: Runner, *, synthetic: bool
) -> Pictures:
    """Check and store the PETs of all people, and what is known of lesions and regions.

    Parameters
    ----------
    screening : Screening
        The run.
    people : People
        Controls and patients.
    runner : Runner
        Runs the graphs.
    synthetic : bool
        Whether synthetic PETs are needed, too.

    Raises
    ------
    Mri2petError
        If a dataset or file that the settings name is not there, or a lesion mask is ambiguous.
    """
    settings = runner.settings
    plans = plan_pictures(screening, [*people.controls, *people.patients], synthetic=synthetic)
    masks = _find_masks(settings, people)
    graphs = [init_storing_wf(
        plans, shape=screening.grid.shape, affine=screening.grid.affine.tolist(), name=STORING_WF
    )]  # fmt: skip
    for number, (visit, mask) in enumerate(masks.items()):
        graphs.append(_lesions_graph(screening, visit, mask, f"lesions_{number}_wf"))
    atlas = _atlas_path(settings, screening)
    if settings.atlas is not None and atlas is not None:
        reference = people.patients[0].visit.brain_mask
        graphs.append(init_atlas_wf(settings.atlas[0], reference, atlas, name=ATLAS_WF))
    crashes = runner.run(graphs, {}, {})
    problems = _problems(crashes, plans, list(masks))
    stored = _stored(plans, crashes)
    controls = [picture(one, stored) for one in people.controls]
    patients = [picture(one, stored) for one in people.patients]
    return Pictures(
        controls=tuple(c for c in controls if c.real is not None or c.synthetic is not None),
        patients=tuple(p for p in patients if p.real is not None),
        lesions={
            visit.t1w: lesions_in_template(visit)
            for visit in masks
            if lesions_in_template(visit).is_file()
        },
        atlas=atlas,
        notes=tuple(_tell_mask(visit, mask) for visit, mask in masks.items()),
        problems=tuple(problems),
    )


def _find_masks(settings: Settings, people: People) -> dict[Preprocessed, LesionMask]:
    root = dict(settings.derivatives).get(LESIONS)
    if root is None:
        return {}
    visits = dict.fromkeys(one.visit for one in people.patients)
    found = {visit: find_lesion_mask(root, visit, settings.template) for visit in visits}
    return {visit: mask for visit, mask in found.items() if mask is not None}


def _tell_mask(visit: Preprocessed, mask: LesionMask) -> str:
    how = "resampled" if mask.in_template else "carried from the T1w"
    return f"sub-{visit.subject}: lesions are those of {mask.path.name}, {how} to the grid"


def _lesions_graph(
    screening: Screening, visit: Preprocessed, mask: LesionMask, name: str
) -> object:
    path = lesions_in_template(visit)
    root = screening.output_dir
    transforms = [] if mask.in_template else [t1w_to_template(visit)]
    for needed in transforms or [native_t1w(visit)]:
        if not needed.is_file():
            raise MissingInputError(f"{needed}: no such file; run the participant level again")
    sidecar = {
        "Description": f"Lesions as {mask.path.name} has them, in {screening.space.template}",
        "Sources": [f"bids::{one.relative_to(root).as_posix()}" for one in transforms],
        "Type": "Lesion",
        **screening.space.entries(),
    }
    output = Output(path, sidecar_path(path), sidecar)
    return init_lesions_wf(mask.path, visit.brain_mask, transforms, output, name=name)


def _atlas_path(settings: Settings, screening: Screening) -> Path | None:
    if settings.atlas is None:
        return None
    for path in settings.atlas:
        if not path.is_file():
            raise MissingInputError(f"{path}: no such file; correct --atlas")
    return screening.work_dir / "atlas.nii.gz"


def _stored(plans: Sequence[StoragePlan], crashes: Sequence[Crash]) -> dict[str, Picture]:
    lost = {crash.node.split(".")[-1].removeprefix("store_") for crash in crashes}
    return {
        plan.name: Picture(plan.name, plan.folder, read_digest(plan.folder))
        for plan in plans
        if plan.name not in lost
    }


def _problems(
    crashes: Sequence[Crash], plans: Sequence[StoragePlan], visits: Sequence[Preprocessed]
) -> list[Problem]:
    owners = {f"store_{plan.name}": plan.participant for plan in plans}
    owners |= {f"lesions_{number}_wf": one.subject for number, one in enumerate(visits)}
    problems = []
    for crash in crashes:
        parts = crash.node.split(".")
        who = next((owners[part] for part in parts if part in owners), "")
        sentence = f"sub-{who}: {crash.sentence}" if who else crash.sentence
        problems.append(Problem(who, sentence, crash.exit_code))
    return problems
