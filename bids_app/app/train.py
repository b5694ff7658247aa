"""Train level: the generators of Table 1, cross-validated on controls with T1w and PET."""

import os
import time
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from math import prod
from pathlib import Path

from bids_app.app.images import refuse_twins, store_images
from bids_app.app.run import (
    Runner,
    begin,
    close_dry,
    exit_code_of,
    refuse_places,
    refuse_plugin,
    refuse_without_results,
    report_again,
    report_estimate,
    report_level,
    report_notes,
    summarize_level,
    summarize_run,
    work_dir_of,
)
from bids_app.console import Console
from bids_app.derivatives import description
from bids_app.derivatives.find import Preprocessed
from bids_app.derivatives.table1 import write_table1
from bids_app.errors import MissingInputError, UnusableDataError, UsageError, count_noun
from bids_app.files import file_sha256, locked
from bids_app.generators import GeneratorChoice
from bids_app.imaging.volume import Grid, count_cubes, cube_sides, zooms_of
from bids_app.plan.cohort import Subjects, choose_controls
from bids_app.plan.estimate import estimate_training
from bids_app.plan.problems import Problem, error_of, refuse_other_grids
from bids_app.plan.study import Study, grid_of, plan_study, resolve_grid
from bids_app.plan.train import (
    GENERATORS,
    assign_folds,
    baseline_paths,
    bases_of,
    choose_initial,
    gather_records,
    plan_model,
    plan_storage,
)
from bids_app.report.page import RunSummary
from bids_app.report.train import write_training_report
from bids_app.resources import choose_device
from bids_app.settings import LPIPS_VARIABLE, Settings
from bids_app.synthesis.models import (
    CONDITIONED,
    CUBE,
    FEWEST,
    MODELS,
    TISSUE,
    TRAINABLE,
    ModelSpec,
    Spec,
    TissueSpec,
    spec_from_dict,
    spec_to_dict,
)
from bids_app.synthesis.tiling import CubicPatches
from bids_app.templates import coarse_atlas
from bids_app.workflows.training import (
    BASELINES,
    ComputeSettings,
    Fold,
    ModelPlan,
    StoredImage,
    init_baselines_wf,
    init_model_wf,
)

MEMORY = {(2, False): 0.20, (2, True): 0.75, (3, False): 0.10, (3, True): 0.32}  # GiB per sample
TISSUE_MEMORY = 2.0  # GiB
FEWEST_CONTROLS, FEWEST_FOR_NETWORKS = 3, 4  # our choice; 3 are enough for tissue models only
LEAST_VALIDATIONS = 10  # in a training of few epochs; our choice
LEAST_SIDE = 24  # voxels, for a discriminator with three halvings and two 4×4 convolutions
SLOPPY_PATCHES = CubicPatches(size=LEAST_SIDE, stride=8)


def train(settings: Settings, console: Console, run_record: description.RunRecord) -> int:
    """Cross-validate the generators in the settings, and train them on all controls.

    Returns
    -------
    int
        0 if all went well, 1 if some control or some row failed.

    Raises
    ------
    Mri2petError
        If the run cannot start, or none of its input can be used.
    """
    started = time.monotonic()
    refuse_places(settings)
    _refuse_specs(settings)
    settings, grid = resolve_grid(settings)
    if settings.reports_only:
        return _report_again(settings, console)
    controls = choose_controls(settings, run_record.versions["mri2pet"])
    controls = replace(controls, notes=(*grid, *controls.notes))
    if settings.dry_run:
        sentences = [*controls.notes, *(problem.sentence for problem in controls.problems)]
        columns = ("control", "session", "T1w", "PET")
        used = [(pair.subject, pair.session, pair.t1w, pair.pets[0]) for pair in _visits(controls)]
        console.report_used(columns, used, sentences, settings.output_dir)
    runner = Runner(settings, console, "mri2pet_train", settings.folds * len(_names(settings)))
    compute, study, initial, unfit = _prepare(runner, controls, run_record)
    if settings.dry_run:
        return _close_dry(runner, controls, unfit)
    rows = [f"train {name}" for name in _names(settings)]  # other runs may train other rows
    with begin(settings, run_record, console, results=rows):
        report_notes(console, controls.notes, controls.problems)
        stored, problems = _store(study, controls, runner)
        refuse_twins(stored)
        participants = [image.participant for image in stored]
        refuse_few(names=_names(settings), participants=participants, folds=settings.folds)
        folds = assign_folds(study, stored)
        plans = _plans(study, controls, folds, settings, initial)
        problems += [*controls.problems, *_compute(study, plans, folds, compute, runner)]
        summary = summarize_run(run_record, started)
        problems += _finish(
            study, folds, runner, controls=controls, problems=problems, summary=summary
        )
        runner.report_used()
    return _close(settings, study, problems, console)


def _prepare(
    runner: Runner, controls: Subjects, run_record: description.RunRecord
) -> tuple[ComputeSettings, Study, GeneratorChoice | None, list[Problem]]:
    """Check that the run can start; a dry run makes the same checks.

    Returns
    -------
    compute, study : ComputeSettings, Study
        Parameters of the run.
    initial : GeneratorChoice or None
        Generator that training starts from.
    problems : list of Problem
        Controls whose headers show that their images cannot be stored.
    """
    settings = runner.settings
    refuse_plugin(settings)
    compute = _compute_settings(runner)
    study = plan_study(settings, work_dir_of(settings), run_record.versions)
    paths = [
        (visit.subject, path)
        for visit in _visits(controls)
        for path in (visit.t1w, visit.pets[0], visit.brain_mask)
    ]
    problems = refuse_other_grids(paths, study.grid)
    lost = {problem.subject for problem in problems}
    images = plan_storage(study, _visits(controls))
    fit = [image for image in images if image.participant not in lost]
    if not fit:
        raise error_of(problems)
    participants = [image.participant for image in fit]
    refuse_few(names=_names(settings), participants=participants, folds=settings.folds)
    assign_folds(study, fit)
    for name in _names(settings):
        refuse_small_grid(name, spec_of(name, settings), study.grid)
    if not settings.init:
        return compute, study, None, problems
    specs = {name: spec_of(name, settings) for name in _names(settings)}
    initial = choose_initial(settings.init, study, specs, participants, sloppy=settings.sloppy)
    return compute, study, initial, problems


def _close_dry(runner: Runner, controls: Subjects, unfit: Sequence[Problem]) -> int:
    """Print the last lines of a dry run, and return the best exit code that the run could have."""
    settings, console = runner.settings, runner.console
    report_notes(console, problems=unfit)
    usable = {visit.subject for visit in _visits(controls)} - {problem.subject for problem in unfit}
    grid = grid_of(settings)
    specs = [spec_of(name, settings) for name in _names(settings)]
    estimate = estimate_training(
        [(spec, memory_of(spec)) for spec in specs],
        controls=len(usable),
        folds=settings.folds,
        voxels=prod(grid.shape),
        threads=runner.shares[1],
    )
    report_estimate(settings, runner.jobs, console, estimate)
    sentence = (
        f"{count_noun(len(_names(settings)), 'model')} would be trained, on {len(usable)} controls"
    )
    return close_dry(sentence, [*controls.problems, *unfit], console)


def refuse_few(names: Sequence[str], participants: Sequence[str], folds: int) -> None:
    """Check that there are enough controls for a meaningful training.

    Raises
    ------
    UnusableDataError
        If there are fewer than three controls, fewer than four for a network, or a fold would be
        trained on fewer than two: our choice. More folds than controls are an error when controls
        are assigned to folds.
    """
    number = len(set(participants))
    if number < FEWEST_CONTROLS:
        raise UnusableDataError(
            f"{number} control(s) with T1w and PET are too few to train any generator; "
            f"add controls, to at least {FEWEST_CONTROLS}"
        )
    networks = [name for name in names if name != TISSUE]
    if number < FEWEST_FOR_NETWORKS and networks:
        raise UnusableDataError(
            f"{number} controls with T1w and PET are too few to train {', '.join(networks)}; give "
            f"--models tissue --folds {number}, or add controls"
        )
    if 1 < folds <= number and number - -(-number // folds) < FEWEST:
        raise UnusableDataError(
            f"{number} controls divided into --folds {folds} leave a fold fewer than {FEWEST} to "
            f"train on; give --folds {number}, or add controls"
        )


def refuse_small_grid(name: str, spec: Spec, grid: Grid) -> None:
    """Check that the tiles of a grid are large enough for a discriminator.

    Raises
    ------
    UsageError
        If a side of the tiles has fewer than 24 voxels.
    """
    sides = grid.shape[: spec.tiling.spatial_dims]
    if isinstance(spec, ModelSpec) and min(sides) < LEAST_SIDE:
        size = " × ".join(map(str, sides))
        raise UsageError(
            f"{name}: tiles of {size} voxels are smaller than the {LEAST_SIDE} that its "
            "discriminator needs; choose a smaller --resolution, or a larger --bounding-box"
        )


def _tissue_spec(settings: Settings) -> TissueSpec:
    grid = grid_of(settings)
    sides = cube_sides(CUBE, zooms_of(grid.affine))
    return TissueSpec(sides, count_cubes(grid.shape, sides))


def spec_of(name: str, settings: Settings) -> Spec:
    """Return the spec of a row of Table 1, or of the tissue model, modified by the settings.

    A conditioned row is the row it is derived from, with the spec of a tissue model as its
    condition.
    """
    if name == TISSUE:
        return _tissue_spec(settings)
    if name in CONDITIONED:
        return replace(_network_spec(CONDITIONED[name], settings), condition=_tissue_spec(settings))
    return _network_spec(name, settings)


def _network_spec(name: str, settings: Settings) -> ModelSpec:
    spec = MODELS[name]
    if settings.sloppy:
        tiling = SLOPPY_PATCHES if isinstance(spec.tiling, CubicPatches) else spec.tiling
        spec = replace(
            spec,
            tiling=tiling,
            n_blocks=2,
            width=4,
            epochs=2,
            constant_epochs=1,
            batch_size=4,
            tiles_per_volume=min(spec.tiles_per_volume, 16),
            validation_interval=1,
        )
    if settings.epochs is not None:
        constant = round(settings.epochs * spec.constant_epochs / spec.epochs)
        interval = min(spec.validation_interval, max(1, settings.epochs // LEAST_VALIDATIONS))
        spec = replace(
            spec, epochs=settings.epochs, constant_epochs=constant, validation_interval=interval
        )
    if settings.patches == "all":
        spec = replace(spec, tiles_per_volume=0)
    if settings.batch_size is not None:
        spec = replace(spec, batch_size=settings.batch_size)
    return spec if settings.width is None else replace(spec, width=settings.width)


def _refuse_specs(settings: Settings) -> None:
    """Check that networks and trainings are of plausible size, before anything is built."""
    for name in _names(settings):
        try:
            spec_from_dict(spec_to_dict(spec_of(name, settings)))
        except ValueError as error:
            raise UsageError(
                f"{name}: {error}; correct --width, --epochs or --batch-size"
            ) from error


def _lpips_weights(settings: Settings, console: Console) -> Path | None:
    """Find the weights of LPIPS.

    A container that was built without network access names a file that does not exist.
    """
    weights = settings.lpips_weights
    if weights is not None and not weights.is_file():
        raise MissingInputError(f"{weights}: no such file; correct --lpips-weights")
    named = os.environ.get(LPIPS_VARIABLE)
    if weights is not None or not named:
        return weights
    if Path(named).is_file():
        return Path(named).absolute()
    console.warn(f"{named}: no such file, though ${LPIPS_VARIABLE} names it; LPIPS will be n/a")
    return None


def _refuse_lpips(weights: Path) -> None:
    """Check the weights of LPIPS now, rather than after days of training."""
    from bids_app.synthesis.scoring import load_lpips  # imports torch, only if needed

    load_lpips(weights)


def _compute_settings(runner: Runner) -> ComputeSettings:
    weights = _lpips_weights(runner.settings, runner.console)
    if weights is not None:
        _refuse_lpips(weights)
    sha256 = "" if weights is None else file_sha256(weights)
    device = choose_device(runner.settings.device)
    atlas = coarse_atlas(runner.settings.template)
    return ComputeSettings(device, runner.shares[1], weights, sha256, atlas)


def _names(settings: Settings) -> tuple[str, ...]:
    """List the rows to train, in the order of the table."""
    named = [name for name in TRAINABLE if not settings.models or name in settings.models]
    if not settings.condition:
        return tuple(named)
    conditioned = {row: name for name, row in CONDITIONED.items()}
    return tuple(conditioned.get(name, name) for name in named)


def _store(
    study: Study, controls: Subjects, runner: Runner
) -> tuple[list[StoredImage], list[Problem]]:
    """Store the volumes of all controls; those whose images cannot be used are left out."""
    stored, problems = store_images(study, plan_storage(study, _visits(controls)), runner)
    report_notes(runner.console, problems=problems)
    if not stored and problems:
        raise error_of(problems)
    return stored, problems


def _visits(controls: Subjects) -> list[Preprocessed]:
    return [control.visit for control in controls.controls]


def _plans(
    study: Study,
    controls: Subjects,
    folds: Sequence[Fold],
    settings: Settings,
    initial: GeneratorChoice | None,
) -> list[ModelPlan]:
    by_label = {visit.subject: visit for visit in _visits(controls)}
    return [
        plan_model(study, name, spec_of(name, settings), folds, by_label, initial=initial)
        for name in _names(settings)
    ]


def _compute(
    study: Study,
    plans: Sequence[ModelPlan],
    folds: Sequence[Fold],
    compute: ComputeSettings,
    runner: Runner,
) -> list[Problem]:
    """Train and score all rows, and score the baselines; report and return failures."""
    baselines = baseline_paths(study, folds)
    for path in [*baselines, *(path for plan in plans for path in plan.records)]:
        path.unlink(missing_ok=True)  # from an earlier run; rewritten from cached nodes if possible
    memory = {plan.name: memory_of(spec_of(plan.name, runner.settings)) for plan in plans}
    graphs = [
        init_model_wf(
            plan,
            folds,
            compute,
            fwhm=study.fwhm,
            mem_gb=memory[plan.name],
            name=f"{plan.name.replace('-', '_')}_wf",
        )
        for plan in plans
    ]
    labels = {row: row for row in (*(plan.name for plan in plans), BASELINES)}
    scoring = init_baselines_wf(folds, baselines, compute, bases=bases_of(study, folds))
    problems = runner.run([scoring, *graphs], labels)
    report_notes(runner.console, problems=problems)
    return problems


def memory_of(spec: Spec) -> float:
    """Return the memory that one training needs, in GiB.

    At the paper's sizes, a step in float32 took at most 1.49, 4.11 (semi-3D, without and with a
    cycle) and 3.46 GiB (3D-patch, with a cycle), and in bfloat16 1.35, 3.05 and 2.69, of which 0.7
    are imports and data: docs/results/training.md. The estimate is a little higher. A tissue model
    holds a few volumes in memory at a time.
    """
    if isinstance(spec, TissueSpec):
        return TISSUE_MEMORY
    per_sample = MEMORY[spec.tiling.spatial_dims, spec.cycle]
    needed = 1.0 + per_sample * spec.batch_size * spec.width / 64
    return needed if spec.condition is None else max(needed, TISSUE_MEMORY)


def _finish(
    study: Study,
    folds: Sequence[Fold],
    runner: Runner,
    *,
    controls: Subjects,
    problems: Sequence[Problem],
    summary: RunSummary,
) -> list[Problem]:
    """Write the table and the report; if the report fails, generators and table remain."""
    settings = runner.settings
    with locked(study.output_dir):
        records, notes = gather_records(study, folds)
        write_table1(study.output_dir, records)
    whole = summarize_level(summary, settings, [*controls.notes, *notes], problems)
    return report_level(settings, runner.console, write_training_report, whole)


def _report_again(settings: Settings, console: Console) -> int:
    refuse_without_results(settings, "--reports-only")
    report = partial(report_level, settings, console, write_training_report, RunSummary())
    return report_again(settings, console, report)


def _close(settings: Settings, study: Study, problems: Sequence[Problem], console: Console) -> int:
    """Print the last line, and return the exit code."""
    rows = _names(settings)
    lost = [name for name in rows if name in {problem.subject for problem in problems}]
    report = study.output_dir / "train.html"
    console.close(
        f"mri2pet: {count_noun(len(rows) - len(lost), 'model')} trained, {len(lost)} failed"
        + (f" ({', '.join(lost)})" if lost else "")
        + f"; generators are in {study.output_dir / GENERATORS}, the report is {report}"
    )
    return exit_code_of(problems, usable=len(lost) < len(rows))
