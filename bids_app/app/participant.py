"""The participant level: every visit into MNI space, and a synthetic PET for each."""

import os
import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from bids_app import provenance
from bids_app.app.computation import clean, compute
from bids_app.app.intake import (
    Problem,
    error_of,
    problem_of,
    problems_of,
    read_selection,
    refuse_nothing,
)
from bids_app.app.preparation import (
    make_places,
    prepare_generator,
    prepare_run,
    prepare_template,
    refuse_places,
    refuse_plugin,
    share_resources,
    tell_old_work,
)
from bids_app.app.running import told_of
from bids_app.console import Voice, count_line
from bids_app.dataset.participants import read_participants
from bids_app.dataset.validation import validate_bids
from bids_app.derivatives.description import (
    Software,
    find_container,
    start_dataset,
)
from bids_app.derivatives.tables import finish_dataset
from bids_app.errors import MissingInputError, Mri2petError
from bids_app.planning import Run, VisitPlan, is_done, plan_visit, refuse_unprepared
from bids_app.report.runs import Told
from bids_app.report.subject import write_subject_report
from bids_app.resources import choose_device
from bids_app.settings import Settings
from bids_app.templates import Template
from bids_app.visit import Selection
from bids_app.workflows.execution import Resources

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
    selection = _select(settings, voice)
    if settings.reports_only:
        return _report_again(selection, settings, voice)
    participants, template, run, resources = _prepare(settings, selection, voice, stamp)
    plans, done, early = _plan(selection, run, None if settings.dry_run else settings.output_dir)
    if not (plans or done):
        raise error_of([*problems_of(selection), *early])
    if settings.dry_run:
        return _tell_plans(plans, done, early, voice)
    _start(settings, run, template, stamp)
    _tell_aside(selection, settings, early, voice)
    problems = [*problems_of(selection), *early]
    problems += compute(plans, run, resources, settings, voice)
    if settings.clean_workdir:
        clean([*plans, *done], problems, settings)
    fresh = Fresh(told_of(stamp, started), {plan.visit.subject for plan in plans})
    told = _tell_reports(selection, problems, settings.output_dir, fresh)
    problems += report_subjects(settings.output_dir, told, template.reference, voice)
    finish_dataset(settings.output_dir, bids_dir=settings.bids_dir, participants=participants)
    return _close(plans, done, problems, settings, voice)


def _select(settings: Settings, voice: Voice) -> Selection:
    """Choose images; a dry run prints them, whatever else may be refused later."""
    refuse_places(settings)
    selection = read_selection(settings)
    if settings.dry_run:
        voice.tell_selection(selection, settings.bids_dir)
    return selection


def _prepare(
    settings: Settings, selection: Selection, voice: Voice, stamp: provenance.Stamp
) -> tuple[dict[str, dict[str, str]], Template, Run, Resources]:
    """See that the run can begin: what is refused here is refused by a dry run as well.

    Only the folders of the run and the template in them are written, by a dry run nothing.

    Returns
    -------
    tuple
        Columns of participants.tsv by label, the template, what visits have in common, what the
        run may use of the machine.
    """
    generator = prepare_generator(settings)
    refuse_plugin(settings)
    resources, threads = share_resources(settings, len(selection.visits))
    choose_device(settings.device)  # refuses one that is not there
    with _validation(settings) as validation:  # another process works on it meanwhile
        participants = _participants(settings, voice)
        if not settings.dry_run:
            make_places(settings)
        template = prepare_template(settings, write=not settings.dry_run)
        _heed(validation, voice)
    refuse_nothing(selection)
    run = prepare_run(settings, template, generator, threads, stamp.versions["mri2pet"])
    return participants, template, run, resources


def _participants(settings: Settings, voice: Voice) -> dict[str, dict[str, str]]:
    """Read participants.tsv, which images do not depend on; a damaged one is only told of."""
    try:
        return read_participants(settings.bids_dir)
    except Mri2petError as error:
        voice.warn(f"{error}; its columns are left out")
        return {}


@contextmanager
def _validation(settings: Settings) -> Iterator[Future[str | None] | None]:
    """Run the BIDS validator, if it is wanted, beside what is done in the block."""
    with ThreadPoolExecutor(1) as thread:
        yield thread.submit(validate_bids, settings.bids_dir) if settings.validate else None


def _heed(validation: Future[str | None] | None, voice: Voice) -> None:
    warning = None if validation is None else validation.result()
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


def _tell_aside(
    selection: Selection, settings: Settings, early: Sequence[Problem], voice: Voice
) -> None:
    for note in tell_old_work(settings):
        voice.say(note)
    for visit in selection.visits:
        for note in visit.notes:
            voice.say(f"sub-{visit.subject}: {note}")
    for one in selection.unused:
        where = f"sub-{one.subject}" if one.path is None else one.path.name
        if one.exit_code is None:
            voice.say(f"not used: {where}: {one.reason}")
        else:
            voice.fail(one.reason)
    for problem in early:
        voice.fail(problem.sentence)


def _plan(
    selection: Selection, run: Run, kept: Path | None
) -> tuple[list[VisitPlan], list[VisitPlan], list[Problem]]:
    """Plan all visits; those whose results are there already come second, the unfit third.

    Tracebacks go to the logs of the output folder ``kept``; None: nowhere.
    """
    logs = None if kept is None else kept / "logs"
    plans, done, problems = list[VisitPlan](), list[VisitPlan](), list[Problem]()
    for visit in selection.visits:
        try:
            plan = plan_visit(visit, run)
            if is_done(plan, run):
                done.append(plan)
            else:
                refuse_unprepared(plan, run)
                plans.append(plan)
        except Exception as error:  # of any kind: it is this visit's, and no one else's
            label = " ".join([f"sub-{visit.subject}", *[f"ses-{s}" for s in [visit.session] if s]])
            problems.append(problem_of(error, visit.subject, label, logs))
    return plans, done, problems


def _tell_plans(
    plans: Sequence[VisitPlan],
    done: Sequence[VisitPlan],
    early: Sequence[Problem],
    voice: Voice,
) -> int:
    """Say the last lines of a dry run; return its exit code."""
    for problem in early:
        voice.fail(problem.sentence)
    voice.close(
        f"mri2pet: {len(plans)} visits would be computed, {len(done)} are complete already; this "
        "was a dry run, and nothing was written"
    )
    return DONE


def _subjects(selection: Selection) -> list[str]:
    """List participants whose images were looked at, with or without success."""
    images = {one.subject for one in selection.unused if one.path is not None}
    return sorted({visit.subject for visit in selection.visits} | images)


def _report_again(selection: Selection, settings: Settings, voice: Voice) -> int:
    """Write reports from what lies in the output folder; return the exit code."""
    output_dir = settings.output_dir
    there = [one for one in _subjects(selection) if (output_dir / f"sub-{one}").is_dir()]
    if not there:
        raise MissingInputError(
            f"{output_dir}: holds no results of these participants; run without --reports-only"
        )
    if settings.dry_run:
        voice.close(f"mri2pet: {len(there)} reports would be written, in {output_dir}")
        return DONE
    with _validation(settings) as validation:
        make_places(settings)
        template = prepare_template(settings)
        _heed(validation, voice)
    problems = report_subjects(output_dir, dict.fromkeys(there, Told()), template.reference, voice)
    voice.close(
        f"mri2pet: {len(there) - len(problems)} reports written, {len(problems)} failed; they are "
        f"in {output_dir}"
    )
    return PARTIAL if problems else DONE


def report_subjects(
    output_dir: Path, told: Mapping[str, Told], template_t1w: Path, voice: Voice
) -> list[Problem]:
    """Write reports of participants; one that fails does not take the others with it.

    Parameters
    ----------
    output_dir : Path
        The derivative dataset.
    told : mapping
        Label → what the run tells of it.
    template_t1w : Path
        The template, on the grid of the images in its space.
    voice : Voice
        Is told of what failed.

    Returns
    -------
    list of Problem
        One a report that could not be written.
    """
    problems = []
    for subject, run in told.items():
        try:
            write_subject_report(output_dir, subject, template_t1w=template_t1w, **run)
        except Exception as error:  # of any kind: results stand, and so do the others' reports
            label = f"sub-{subject}.html"
            problems.append(problem_of(error, subject, label, output_dir / "logs"))
            voice.fail(problems[-1].sentence)
    return problems


@dataclass(frozen=True)
class Fresh:
    """A run that computed something: what it tells of itself, and whose visits it made."""

    told: Told
    subjects: Collection[str]


def _tell_reports(
    selection: Selection, problems: Sequence[Problem], output_dir: Path, fresh: Fresh
) -> dict[str, Told]:
    """Say what reports tell; one of results that were there before keeps what it told."""
    runs = {}
    for subject in _subjects(selection):
        notes = [note for v in selection.visits if v.subject == subject for note in v.notes]
        notes += [u.reason for u in selection.unused if u.subject == subject and not u.exit_code]
        told = [problem.sentence for problem in problems if problem.subject == subject]
        made = subject in fresh.subjects or not (output_dir / f"sub-{subject}").is_dir()
        run = Told(notes=notes, problems=told)
        if made:
            run.update(fresh.told)
        runs[subject] = run
    return runs


def _close(
    plans: Sequence[VisitPlan],
    done: Sequence[VisitPlan],
    problems: Sequence[Problem],
    settings: Settings,
    voice: Voice,
) -> int:
    """Say the last line; return the exit code."""
    troubled = {problem.visit for problem in problems}
    lost = {problem.visit for problem in problems if problem.fatal}
    well = [plan for plan in plans if plan.name not in troubled]
    failed = sorted({f"sub-{problem.subject}" for problem in problems})
    voice.close(count_line(len(well), len(done), failed, settings.output_dir))
    if not problems:
        return DONE
    usable = [*done, *(plan for plan in plans if plan.name not in lost)]
    return PARTIAL if usable else error_of(problems).exit_code
