"""From a visit to the graph that works on it: which files it makes, and which are made already."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from nipype.pipeline.engine import Workflow

from bids_app import nifti
from bids_app.dataset.reading import frame_durations
from bids_app.derivatives.completion import fingerprint, is_complete, stored_fingerprint
from bids_app.derivatives.description import dataset_names
from bids_app.derivatives.paths import VisitPaths, sidecar_path, visit_paths
from bids_app.derivatives.sidecars import (
    Provenance,
    Sidecar,
    Space,
    preprocessing_sidecars,
    synthetic_pet,
    uncertainty,
)
from bids_app.errors import MissingInputError, Mri2petError, UnusableDataError
from bids_app.files import read_json
from bids_app.generators import GeneratorChoice, check_grid, has_seen
from bids_app.imaging.verdict import DOUBT, FAIL, reasons_of, verdict_of
from bids_app.visit import Visit
from bids_app.workflows.outputs import Output
from bids_app.workflows.participant import (
    PetPlan,
    Preprocessing,
    init_participant_wf,
    init_preprocessing_wf,
    init_synthesis_from_disk_wf,
)
from bids_app.workflows.synthesis import GeneratorFiles, SynthesisPlan, UncertaintyPlan

ANATOMICAL_OUTPUTS = (  # alike in the workflow's outputnode and in VisitPaths
    "t1w", "brain_mask", "t1w_in_template", "brain_mask_in_template", "t1w_to_template",
    "template_to_t1w",
)  # fmt: skip


@dataclass(frozen=True)
class Run:
    """What all visits of a run have in common."""

    bids_dir: Path
    output_dir: Path
    space: Space
    preprocessing: Preprocessing
    parameters: Mapping[str, object]
    stage: str
    generator: GeneratorChoice | None
    fwhm: float
    device: str
    version: str


@dataclass(frozen=True)
class VisitPlan:
    """A visit, where its results go, and the digests that tell whether they are there."""

    visit: Visit
    paths: VisitPaths
    preprocessed: str
    synthesized: str

    @property
    def name(self) -> str:
        """Name of its graph: letters, digits and underscores."""
        parts = ["sub", self.visit.subject]
        if self.visit.session is not None:
            parts += ["ses", self.visit.session]
        return re.sub(r"\W", "_", "_".join([*parts, "wf"]))

    @property
    def label(self) -> str:
        """Name of the visit for people."""
        return label_of(self.visit)


def label_of(visit: Visit) -> str:
    """Give the name of a visit for people."""
    session = "" if visit.session is None else f" ses-{visit.session}"
    return f"sub-{visit.subject}{session}"


def plan_visit(visit: Visit, run: Run) -> VisitPlan:
    """Name the results of a visit and digest what decides about them.

    Raises
    ------
    MissingInputError, ReadWriteError
        If an image is not there, or cannot be looked at.
    """
    paths = visit_paths(run.output_dir, visit, run.space.template, run.space.resolution)
    pets = [pet.path for pet in visit.pets]
    decisive = {**run.parameters, "frame_durations": [*map(frame_durations, visit.pets)]}
    vouched = [scan.orientation for scan in (visit.t1w, *visit.pets)]
    if any(vouched):  # what is not needed changes nothing
        decisive["assume_orientation"] = vouched
    preprocessed = fingerprint(decisive, [visit.t1w.path, *pets], bids_dir=run.bids_dir)
    if run.stage == "synthesize":  # from whatever an earlier run has made
        preprocessed = stored_fingerprint(paths.t1w_in_template)
    options = {} if run.generator is None else run.generator.decisive()
    synthesized = fingerprint(
        {"fwhm": run.fwhm, "preprocessed": preprocessed, **options},
        [visit.t1w.path],
        bids_dir=run.bids_dir,
        generator_sha256=None if run.generator is None else run.generator.card.sha256,
    )
    return VisitPlan(visit, paths, preprocessed, synthesized)


def is_done(plan: VisitPlan, run: Run) -> bool:
    """Tell whether all that the run's stage makes of a visit is there already."""
    preprocessed = is_complete(plan.paths.preprocessed, plan.preprocessed) and not any(
        verdict_of(sidecar) == FAIL for _, sidecar in _registrations(plan.paths)
    )
    wanted = [*plan.paths.synthesized]
    if run.generator is not None and run.generator.folds:
        wanted.append(plan.paths.uncertainty)
    synthesized = is_complete(wanted, plan.synthesized) and is_compared(plan.paths)
    return {
        "all": preprocessed and synthesized,
        "preprocess": preprocessed,
        "synthesize": synthesized,
    }[run.stage]


def is_compared(paths: VisitPaths) -> bool:
    """Tell whether the synthetic PET was measured against the real one, if there is one."""
    if not any(_is_trusted(pet.in_template) for pet in paths.pets[:1]):
        return True
    return "Measures" in read_json(sidecar_path(paths.synthetic_pet))


def _is_trusted(image: Path) -> bool:
    """Tell whether an image is there, and its registration did not fail."""
    return image.exists() and verdict_of(read_json(sidecar_path(image))) != FAIL


def _registrations(paths: VisitPaths) -> list[tuple[Path, Sidecar]]:
    """List the sidecars that tell of each registration of a visit, if they can be read."""
    found = []
    for path in (paths.t1w_in_template, *(pet.to_t1w for pet in paths.pets)):
        try:
            found.append((path, read_json(sidecar_path(path))))
        except Mri2petError:
            continue  # a run that did not come so far
    return found


def doubts_of(plan: VisitPlan) -> list[str]:
    """Say which registrations of a visit are doubted, and why; one sentence an image."""
    return [
        f"{plan.label}: {path.name}: registration is in doubt: "
        f"{'; '.join(reasons_of(sidecar['Registration']))}"  # type: ignore[arg-type]
        for path, sidecar in _registrations(plan.paths)
        if verdict_of(sidecar) == DOUBT
    ]


def _output(path: Path, sidecar: Sidecar) -> Output:
    return Output(path, sidecar_path(path), sidecar)


def _preprocessing_outputs(plan: VisitPlan, run: Run) -> dict[Path, Output]:
    origin = Provenance(run.bids_dir, run.output_dir, plan.preprocessed, run.version)
    sidecars = preprocessing_sidecars(
        plan.visit, plan.paths, origin, run.space, skull_stripped=False
    )
    return {path: _output(path, sidecar) for path, sidecar in sidecars.items()}


def _pet_plans(plan: VisitPlan, outputs: Mapping[Path, Output]) -> list[PetPlan]:
    plans = []
    for pet, paths in zip(plan.visit.pets, plan.paths.pets, strict=True):
        plans.append(
            PetPlan(
                pet=pet.path,
                durations=frame_durations(pet),
                outputs={
                    "in_template": outputs[paths.in_template],
                    "in_t1w": outputs[paths.in_t1w],
                    "to_t1w": outputs[paths.to_t1w],
                    "coverage_in_template": outputs[paths.coverage_in_template],
                    "coverage_in_t1w": outputs[paths.coverage_in_t1w],
                },
                orientation=pet.orientation,
            )
        )
    return plans


def _files(generator: GeneratorChoice) -> GeneratorFiles:
    card = generator.card
    return GeneratorFiles(generator.folder, card.sha256, card.reference_sha256)


def _was_trained_on(generator: GeneratorChoice, subject: str, run: Run) -> bool:
    """Whether a generator knows this subject; nothing is read where its card has no such label."""
    card, out = generator.card, run.output_dir
    labels = {one.removeprefix("sub-") for one in card.participants}
    return subject in labels and has_seen(card, subject, dataset_names(out), out)


def _synthesis_plan(plan: VisitPlan, run: Run, generator: GeneratorChoice) -> SynthesisPlan:
    options = generator.options
    sidecar = synthetic_pet(
        plan.paths,
        Provenance(run.bids_dir, run.output_dir, plan.synthesized, run.version),
        run.space,
        generator=generator.description(),
        smoothing_fwhm=run.fwhm,
        trained_on_this_participant=_was_trained_on(generator, plan.visit.subject, run),
        overlap=options.overlap,
        match_histogram=options.match_histogram,
    )
    spread = None
    if generator.folds:
        told = uncertainty(sidecar, run.space, [one.card.sha256 for one in generator.folds])
        output = _output(plan.paths.uncertainty, told)
        spread = UncertaintyPlan(tuple(map(_files, generator.folds)), output)
    return SynthesisPlan(
        _files(generator), run.fwhm, run.device, _output(plan.paths.synthetic_pet, sidecar),
        overlap=options.overlap, match_histogram=options.match_histogram, novelty=options.novelty,
        uncertainty=spread,
    )  # fmt: skip


def refuse_unprepared(plan: VisitPlan, run: Run) -> None:
    """Refuse a visit whose stage starts from results that are not there.

    Raises
    ------
    MissingInputError, ReadWriteError, UnusableDataError
        If they are not there, cannot be read, lie on a grid that the generator does not know, or
        if the registration of the T1w failed.
    """
    if run.stage != "synthesize" or run.generator is None:
        return
    for path in (plan.paths.t1w_in_template, plan.paths.brain_mask_in_template):
        if not path.exists():
            raise MissingInputError(
                f"{path}: no such file; run --stage preprocess for {plan.label} first"
            )
        check_grid(run.generator.card, nifti.read_grid(path), run.space.template)
    t1w = plan.paths.t1w_in_template
    if not _is_trusted(t1w):
        raise UnusableDataError(
            f"{t1w}: its registration failed, as its sidecar says; no PET is predicted from it. "
            "Look at the report, and at the raw T1w and its header"
        )


def _from_disk(plan: VisitPlan, synthesis: SynthesisPlan, run: Run) -> Workflow:
    pets = [pet for pet in plan.paths.pets if _is_trusted(pet.in_template)]
    masks = [pet.coverage_in_template for pet in pets[:1] if pet.coverage_in_template.exists()]
    return init_synthesis_from_disk_wf(
        t1w=plan.paths.t1w_in_template,
        brain_mask=plan.paths.brain_mask_in_template,
        pets=[pet.in_template for pet in pets],
        coverage=masks[0] if masks else None,
        synthesis=synthesis,
        omp_nthreads=run.preprocessing.omp_nthreads,
        name=plan.name,
    )


def init_visit_wf(plan: VisitPlan, run: Run) -> Workflow:
    """Build the graph that a run's stage wants for a visit.

    Raises
    ------
    Mri2petError
        As :func:`refuse_unprepared`.
    """
    refuse_unprepared(plan, run)
    if run.stage == "synthesize" and run.generator is not None:
        return _from_disk(plan, _synthesis_plan(plan, run, run.generator), run)
    outputs = _preprocessing_outputs(plan, run)
    anatomical = {field: outputs[getattr(plan.paths, field)] for field in ANATOMICAL_OUTPUTS}
    pets = _pet_plans(plan, outputs)
    if run.generator is None:
        return init_preprocessing_wf(
            t1w=plan.visit.t1w.path, outputs=anatomical, pets=pets, how=run.preprocessing,
            orientation=plan.visit.t1w.orientation, name=plan.name,
        )  # fmt: skip
    return init_participant_wf(
        t1w=plan.visit.t1w.path, outputs=anatomical, pets=pets, how=run.preprocessing,
        synthesis=_synthesis_plan(plan, run, run.generator),
        orientation=plan.visit.t1w.orientation, name=plan.name,
    )  # fmt: skip
