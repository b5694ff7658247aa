"""The participant level: every visit into MNI space, and a synthetic PET for each."""

import os
import shutil
import time
from collections.abc import Sequence
from pathlib import Path

from nipype.pipeline.engine import Workflow

from bids_app import provenance
from bids_app.app.intake import Problem, error_of, problems_of, read_selection, refuse_nothing
from bids_app.app.preparation import (
    make_work_dir,
    prepare_generator,
    prepare_run,
    prepare_template,
    read_plugin,
    share_resources,
    work_dir_of,
)
from bids_app.console import Voice, count_line
from bids_app.dataset.participants import read_participants
from bids_app.dataset.validation import refuse_output, validate_bids
from bids_app.derivatives.description import Software, find_container, start_dataset
from bids_app.derivatives.tables import finish_dataset
from bids_app.errors import Mri2petError
from bids_app.planning import Run, VisitPlan, init_visit_wf, is_done, plan_visit
from bids_app.report.subject import write_subject_report
from bids_app.settings import Settings
from bids_app.templates import Template
from bids_app.visit import Selection
from bids_app.workflows.execution import Crash, Resources, run_graph

DONE, PARTIAL = 0, 1  # exit codes


def participant(settings: Settings, voice: Voice, stamp: provenance.Stamp) -> int:
    """Bring every participant into MNI space, and predict the PET of each.

    Returns
    -------
    int
        0 if all went well, 1 if some participant failed.

    Raises
    ------
    Mri2petError
        If the run cannot begin, or nothing that was selected can be used.
    """
    started = time.monotonic()
    selection = read_selection(settings)
    if settings.dry_run:
        voice.tell_selection(selection, settings.bids_dir)
        return DONE
    refuse_output(settings.bids_dir, settings.output_dir)
    _validate(settings, voice)
    refuse_nothing(selection)
    make_work_dir(settings)
    template, generator = prepare_template(settings), prepare_generator(settings)
    resources, threads = share_resources(settings, len(selection.visits))
    run = prepare_run(settings, template, generator, threads)
    _start(settings, run, template, stamp)
    problems = problems_of(selection)
    _tell_aside(selection, voice)
    plans, done = _plan(selection, run)
    if settings.reports_only:
        _report_again(selection, template, settings.output_dir)
        plans = []
    else:
        problems += _compute(plans, run, resources, settings, voice)
        seconds = time.monotonic() - started
        _report(selection, problems, template, settings.output_dir, stamp=stamp, seconds=seconds)
    finish_dataset(
        settings.output_dir,
        bids_dir=settings.bids_dir,
        participants=read_participants(settings.bids_dir),
    )
    return _close(plans, done, problems, settings, voice)


def _validate(settings: Settings, voice: Voice) -> None:
    warning = validate_bids(settings.bids_dir) if settings.validate else None
    if warning is not None:
        voice.warn(warning)


def _start(settings: Settings, run: Run, template: Template, stamp: provenance.Stamp) -> None:
    software = Software(stamp.versions["mri2pet"], provenance.CODE_URL, find_container(os.environ))
    start_dataset(
        settings.output_dir,
        bids_dir=settings.bids_dir,
        software=software,
        template=run.space.template,
        reference=template.uri,
    )
    provenance.write_run(settings.output_dir / "logs", vars(settings), stamp)


def _tell_aside(selection: Selection, voice: Voice) -> None:
    for visit in selection.visits:
        for note in visit.notes:
            voice.say(f"sub-{visit.subject}: {note}")
    for one in selection.unused:
        where = f"sub-{one.subject}" if one.path is None else one.path.name
        if one.exit_code is None:
            voice.say(f"not used: {where}: {one.reason}")
        else:
            voice.fail(one.reason)


def _plan(selection: Selection, run: Run) -> tuple[list[VisitPlan], list[VisitPlan]]:
    """Plan all visits; those whose results are there already come second."""
    plans = [plan_visit(visit, run) for visit in selection.visits]
    done = [plan for plan in plans if is_done(plan, run)]
    return [plan for plan in plans if plan not in done], done


def _compute(
    plans: Sequence[VisitPlan], run: Run, resources: Resources, settings: Settings, voice: Voice
) -> list[Problem]:
    """Run the graphs of visits; tell and return what failed."""
    problems, graphs = [], {}
    for plan in plans:
        try:
            graphs[plan.name] = init_visit_wf(plan, run)
        except Mri2petError as error:
            problems.append(Problem(plan.visit.subject, f"{error}", error.exit_code))
    if graphs:
        crashes = _run_graphs(graphs, plans, resources, settings, voice)
        subjects = {plan.name: plan.visit.subject for plan in plans}
        problems += [_problem(crash, subjects) for crash in crashes]
    for problem in problems:
        voice.fail(problem.sentence)
    if settings.clean_workdir:
        failed = {problem.subject for problem in problems}
        for plan in plans:
            if plan.visit.subject not in failed:
                shutil.rmtree(work_dir_of(settings) / "mri2pet" / plan.name, ignore_errors=True)
    return problems


def _run_graphs(
    graphs: dict[str, Workflow],
    plans: Sequence[VisitPlan],
    resources: Resources,
    settings: Settings,
    voice: Voice,
) -> list[Crash]:
    workflow = Workflow("mri2pet", base_dir=str(work_dir_of(settings)))
    workflow.add_nodes(list(graphs.values()))
    labels = {plan.name: plan.label for plan in plans if plan.name in graphs}
    steps = {name: len(graph.list_node_names()) for name, graph in graphs.items()}
    with voice.progress(labels, steps) as on_status:
        return run_graph(
            workflow,
            resources=resources,
            plugin=read_plugin(settings.use_plugin),
            logs=settings.output_dir / "logs",
            stop_on_first_crash=settings.stop_on_first_crash,
            on_status=on_status,
        )


def _problem(crash: Crash, subjects: dict[str, str]) -> Problem:
    parts = crash.node.split(".")
    name = next((part for part in parts if part in subjects), "")
    subject = subjects.get(name, "?")
    return Problem(subject, f"sub-{subject}: {crash.sentence}", crash.exit_code)


def _subjects(selection: Selection) -> list[str]:
    """List participants whose images were looked at, with or without success."""
    images = {one.subject for one in selection.unused if one.path is not None}
    return sorted({visit.subject for visit in selection.visits} | images)


def _report_again(selection: Selection, template: Template, output_dir: Path) -> None:
    """Write reports from what lies in the output folder."""
    for subject in _subjects(selection):
        write_subject_report(output_dir, subject, template_t1w=template.reference)


def _report(
    selection: Selection,
    problems: Sequence[Problem],
    template: Template,
    output_dir: Path,
    *,
    stamp: provenance.Stamp,
    seconds: float,
) -> None:
    for subject in _subjects(selection):
        notes = [note for v in selection.visits if v.subject == subject for note in v.notes]
        notes += [u.reason for u in selection.unused if u.subject == subject and not u.exit_code]
        write_subject_report(
            output_dir,
            subject,
            template_t1w=template.reference,
            notes=notes,
            problems=[p.sentence for p in problems if p.subject == subject],
            versions=stamp.versions,
            date=stamp.date,
            command=stamp.command,
            duration=seconds,
        )


def _close(
    plans: Sequence[VisitPlan],
    done: Sequence[VisitPlan],
    problems: Sequence[Problem],
    settings: Settings,
    voice: Voice,
) -> int:
    failed = sorted({f"sub-{problem.subject}" for problem in problems})
    succeeded = [p for p in plans if f"sub-{p.visit.subject}" not in failed]
    voice.close(count_line(len(succeeded), len(done), failed, settings.output_dir))
    if problems and not succeeded and not done:
        return error_of(problems).exit_code
    return PARTIAL if problems else DONE
