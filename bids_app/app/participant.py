"""The participant level: every visit into MNI space, and a synthetic PET for each."""

import os
import time
from collections.abc import Collection, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from bids_app import provenance
from bids_app.app.computation import clean, compute
from bids_app.app.intake import Problem, error_of, problems_of, read_selection, refuse_nothing
from bids_app.app.preparation import (
    prepare_generator,
    prepare_run,
    prepare_template,
    refuse_places,
    share_resources,
    work_dir_of,
)
from bids_app.app.running import told_of
from bids_app.console import Voice, count_line
from bids_app.dataset.participants import read_participants
from bids_app.dataset.validation import make_writable, validate_bids
from bids_app.derivatives.description import (
    Software,
    find_container,
    ignore_also,
    start_dataset,
)
from bids_app.derivatives.preprocessed import tell_coverage
from bids_app.derivatives.tables import finish_dataset
from bids_app.errors import MissingInputError, Mri2petError
from bids_app.planning import Run, VisitPlan, doubts_of, is_done, plan_visit
from bids_app.report.runs import Told
from bids_app.report.subject import write_subject_report
from bids_app.settings import Settings
from bids_app.templates import Template
from bids_app.visit import Selection

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
    refuse_places(settings)
    selection = read_selection(settings)
    if settings.dry_run:
        voice.tell_selection(selection, settings.bids_dir)
        return DONE
    make_writable(settings.output_dir)
    make_writable(work_dir_of(settings))
    with _validation(settings) as validation:  # another process works on it meanwhile
        participants = _participants(settings, voice)
        template = prepare_template(settings)
        _heed(validation, voice)
    refuse_nothing(selection)
    if settings.reports_only:
        return _report_again(selection, template, settings.output_dir, voice)
    generator = prepare_generator(settings)
    resources, threads = share_resources(settings, len(selection.visits))
    run = prepare_run(settings, template, generator, threads, stamp.versions["mri2pet"])
    _start(settings, run, template, stamp)
    _tell_aside(selection, voice)
    plans, done = _plan(selection, run)
    problems = problems_of(selection) + compute(plans, run, resources, settings, voice)
    _tell_coverage([*plans, *done], voice)
    if settings.clean_workdir:
        clean([*plans, *done], problems, settings)
    fresh = Fresh(told_of(stamp, started), {plan.visit.subject for plan in plans})
    _report(selection, problems, template, settings.output_dir, fresh)
    finish_dataset(settings.output_dir, bids_dir=settings.bids_dir, participants=participants)
    for doubt in (doubt for plan in [*plans, *done] for doubt in doubts_of(plan)):
        voice.warn(doubt)
    return _close(plans, done, problems, settings, voice)


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
    ignore_also(settings.output_dir, work_dir_of(settings))
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


def _tell_coverage(plans: Sequence[VisitPlan], voice: Voice) -> None:
    """Tell which PETs do not cover the brain; reports read it from their sidecars too."""
    for plan in plans:
        for pet in plan.paths.pets:
            told = tell_coverage(pet.in_template)
            if told:
                voice.warn(f"{plan.label}: {told}")


def _plan(selection: Selection, run: Run) -> tuple[list[VisitPlan], list[VisitPlan]]:
    """Plan all visits; those whose results are there already come second."""
    plans = [plan_visit(visit, run) for visit in selection.visits]
    done = [plan for plan in plans if is_done(plan, run)]
    return [plan for plan in plans if plan not in done], done


def _subjects(selection: Selection) -> list[str]:
    """List participants whose images were looked at, with or without success."""
    images = {one.subject for one in selection.unused if one.path is not None}
    return sorted({visit.subject for visit in selection.visits} | images)


def _report_again(selection: Selection, template: Template, output_dir: Path, voice: Voice) -> int:
    """Write reports from what lies in the output folder; return the exit code."""
    there = [one for one in _subjects(selection) if (output_dir / f"sub-{one}").is_dir()]
    if not there:
        raise MissingInputError(
            f"{output_dir}: holds no results of these participants; run without --reports-only"
        )
    for subject in there:
        write_subject_report(output_dir, subject, template_t1w=template.reference)
    voice.close(f"mri2pet: {len(there)} reports written; they are in {output_dir}")
    return DONE


@dataclass(frozen=True)
class Fresh:
    """A run that computed something: what it tells of itself, and whose visits it made."""

    told: Told
    subjects: Collection[str]


def _report(
    selection: Selection,
    problems: Sequence[Problem],
    template: Template,
    output_dir: Path,
    fresh: Fresh,
) -> None:
    """Write all reports; one of results that were there before keeps what it told of their run."""
    for subject in _subjects(selection):
        notes = [note for v in selection.visits if v.subject == subject for note in v.notes]
        notes += [u.reason for u in selection.unused if u.subject == subject and not u.exit_code]
        told = [problem.sentence for problem in problems if problem.subject == subject]
        made = subject in fresh.subjects or not (output_dir / f"sub-{subject}").is_dir()
        run = Told(notes=notes, problems=told)
        if made:
            run.update(fresh.told)
        write_subject_report(output_dir, subject, template_t1w=template.reference, **run)


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
