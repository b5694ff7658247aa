"""From a visit to the graph that works on it: which files it makes, and which are made already."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from nipype.pipeline.engine import Workflow

from bids_app import nifti
from bids_app.dataset.reading import frame_times
from bids_app.derivatives.completion import fingerprint, is_complete, stored_fingerprint
from bids_app.derivatives.description import dataset_name
from bids_app.derivatives.paths import VisitPaths, sidecar_path, visit_paths
from bids_app.derivatives.sidecars import (
    Provenance,
    Sidecar,
    Space,
    preprocessing_sidecars,
    synthetic_pet,
    uncertainty,
)
from bids_app.errors import MissingInputError
from bids_app.files import read_json
from bids_app.generators import GeneratorChoice, check_grid, has_seen
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
        session = "" if self.visit.session is None else f" ses-{self.visit.session}"
        return f"sub-{self.visit.subject}{session}"


def plan_visit(visit: Visit, run: Run) -> VisitPlan:
    """Name the results of a visit and digest what decides about them.

    Raises
    ------
    MissingInputError, ReadWriteError
        If an image is not there, or cannot be looked at.
    """
    paths = visit_paths(run.output_dir, visit, run.space.template, run.space.resolution)
    pets = [pet.path for pet in visit.pets]
    durations = [frame_times(pet) for pet in visit.pets]
    preprocessed = fingerprint(
        {**run.parameters, "frame_times": durations}, [visit.t1w.path, *pets], bids_dir=run.bids_dir
    )
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
    preprocessed = is_complete(plan.paths.preprocessed, plan.preprocessed)
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
    if not any(pet.in_template.exists() for pet in paths.pets[:1]):
        return True
    return "Measures" in read_json(sidecar_path(paths.synthetic_pet))


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
        times = frame_times(pet)
        plans.append(
            PetPlan(
                pet=pet.path,
                durations=() if times is None else times[1],
                outputs={
                    "in_template": outputs[paths.in_template],
                    "in_t1w": outputs[paths.in_t1w],
                    "to_t1w": outputs[paths.to_t1w],
                },
            )
        )
    return plans


def _files(generator: GeneratorChoice) -> GeneratorFiles:
    card = generator.card
    return GeneratorFiles(generator.folder, card.sha256, card.reference_sha256)


def _was_trained_on(generator: GeneratorChoice, subject: str, run: Run) -> bool:
    """Whether a generator knows this subject; without participants there is nothing to compare."""
    card = generator.card
    return bool(card.participants) and has_seen(card, subject, dataset_name(run.output_dir))


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


def _from_disk(plan: VisitPlan, synthesis: SynthesisPlan, run: Run) -> Workflow:
    needed = (plan.paths.t1w_in_template, plan.paths.brain_mask_in_template)
    for path in needed:
        if not path.exists():
            raise MissingInputError(
                f"{path}: no such file; run --stage preprocess for {plan.label} first"
            )
        if run.generator is not None:
            check_grid(run.generator.card, nifti.load(path).grid, run.space.template)
    return init_synthesis_from_disk_wf(
        t1w=needed[0],
        brain_mask=needed[1],
        pets=[p.in_template for p in plan.paths.pets if p.in_template.exists()],
        synthesis=synthesis,
        omp_nthreads=run.preprocessing.omp_nthreads,
        name=plan.name,
    )


def init_visit_wf(plan: VisitPlan, run: Run) -> Workflow:
    """Build the graph that a run's stage wants for a visit.

    Raises
    ------
    MissingInputError
        If the stage starts from results that are not there.
    """
    if run.stage == "synthesize" and run.generator is not None:
        return _from_disk(plan, _synthesis_plan(plan, run, run.generator), run)
    outputs = _preprocessing_outputs(plan, run)
    anatomical = {field: outputs[getattr(plan.paths, field)] for field in ANATOMICAL_OUTPUTS}
    pets = _pet_plans(plan, outputs)
    if run.generator is None:
        return init_preprocessing_wf(
            t1w=plan.visit.t1w.path, outputs=anatomical, pets=pets, how=run.preprocessing,
            name=plan.name,
        )  # fmt: skip
    return init_participant_wf(
        t1w=plan.visit.t1w.path, outputs=anatomical, pets=pets, how=run.preprocessing,
        synthesis=_synthesis_plan(plan, run, run.generator), name=plan.name,
    )  # fmt: skip
