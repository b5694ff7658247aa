"""Participant level: preprocessing of every visit into MNI space, and synthesis of its PET."""

import os
import time
from collections import defaultdict
from collections.abc import Collection, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from math import prod
from pathlib import Path

from bids_app import nifti
from bids_app.app.run import (
    DONE,
    PARTIAL,
    Runner,
    clean,
    close_dry,
    compute,
    describe_old_work,
    exit_code_of,
    hold,
    make_places,
    prepare_generator,
    prepare_run,
    prepare_template,
    refuse_places,
    refuse_plugin,
    report_estimate,
    report_failure,
    report_notes,
    share_resources,
    summarize_run,
)
from bids_app.arguments import PREPROCESSED
from bids_app.console import Console, count_line
from bids_app.dataset.index import find_subjects
from bids_app.dataset.participants import read_participants
from bids_app.dataset.validation import validate_bids
from bids_app.derivatives import description
from bids_app.derivatives.description import (
    dataset_names,
    find_container,
    raw_dataset_names,
    start_dataset,
)
from bids_app.derivatives.detections import find_anomalies, is_outdated
from bids_app.derivatives.find import describe_coverage, source_digest_of
from bids_app.derivatives.sidecars import SLOPPY, read_derivative
from bids_app.derivatives.tables import finish_dataset
from bids_app.errors import MissingInputError, Mri2petError, UsageError, count_noun, name_some
from bids_app.files import object_at, read_tsv
from bids_app.generators import GeneratorChoice, describe_namesakes
from bids_app.plan.estimate import estimate_participants, seconds_spared
from bids_app.plan.participant import (
    ParticipantPlan,
    VisitPlan,
    describe_copies,
    doubts_of,
    is_done,
    plan_visit,
    problems_of,
    read_selection,
    refuse_nothing,
    refuse_unprepared,
)
from bids_app.plan.problems import Problem, error_of, problem_of
from bids_app.plan.study import grid_of
from bids_app.report.overview import NAME as OVERVIEW
from bids_app.report.overview import write_overview
from bids_app.report.page import RunSummary
from bids_app.report.participant import is_current, shared_sources, write_subject_report
from bids_app.resources import choose_device
from bids_app.settings import Settings
from bids_app.templates import Template
from bids_app.visit import Scan, Selection, Visit, label_of

PAUSE_RATIO = 20  # pause between writings of tables, relative to their duration; our choice: 5 %
_Table = tuple[dict[str, dict[str, str]], tuple[str, ...]]  # participants.tsv, and remarks on it


def participant(settings: Settings, console: Console, run_record: description.RunRecord) -> int:
    """Preprocess every participant into MNI space, and predict the PET of each.

    Returns
    -------
    int
        0 if all went well, 1 if some participant failed.

    Raises
    ------
    Mri2petError
        If the run cannot start, or none of the selected images can be used.
    """
    started = time.monotonic()
    selection = _select(settings, console)
    if settings.reports_only:
        return _report_again(selection, settings, console)
    generator = _refuse(settings)
    with _hold_visits(settings, selection, console, run_record):
        table, template, run = _prepare(settings, selection, generator, console, run_record)
        logs = None if settings.dry_run else settings.output_dir / "logs"
        plans, done, early = _plan(selection, run, logs)
        aside = [*problems_of(selection), *early]
        if not (plans or done):
            raise error_of(aside)
        if settings.sloppy and settings.stage != "synthesize":
            refuse_better(plans)
        _report_former(plans, done, run, console)
        selection = _report_namesakes(selection, run, console)
        copies = _report_copies([*plans, *done], run, console)
        if settings.dry_run:
            _estimate(plans, run, settings, console)
            return _report_plans(plans, done, aside, early, console)
        _start(settings, run, template, run_record)
        run.digests.save(settings.output_dir)
        _report_aside(selection, settings, early, console)
        subjects = {plan.visit.subject for plan in plans}
        reports = _Reports(
            settings, selection, copies, table, template, subjects, run_record, started, console
        )
        problems = [*aside, *_compute(plans, run, reports, aside)]
        _report_images([*plans, *done], console)
        _report_outdated([*plans, *done], settings.output_dir, console)
        if settings.clean_workdir:
            clean([*plans, *done], problems, settings)
        problems += reports.finish(problems)
        return _close(plans, done, problems, settings, console)


def _select(settings: Settings, console: Console) -> Selection:
    """Select images; a dry run prints them, before any later check fails."""
    refuse_places(settings)
    selection = read_selection(settings)
    if settings.dry_run:
        console.report_selection(selection, settings.bids_dir)
    return selection


def refuse_better(plans: Sequence[VisitPlan]) -> None:
    """Check that a sloppy run replaces no results of a full one.

    Images on another grid of the template have other names, but the T1w, the transforms, and all
    images on the grid of the T1w have the same.

    Raises
    ------
    UsageError
        If it would.
    """
    own = {plan.label: read_derivative(plan.paths.t1w).metadata for plan in plans}
    better = [label for label, metadata in own.items() if metadata and not metadata.get(SLOPPY)]
    if better:
        raise UsageError(
            f"--sloppy: would replace results of {name_some(better)} that were made without it "
            "(or by 0.1, which did not record it); choose another output folder"
        )


def describe_replaced(plans: Sequence[VisitPlan], run: ParticipantPlan) -> str:
    """Describe results of the same labels from another dataset, which a run replaces; or ``""``."""
    labels = {f"sub-{plan.visit.subject}" for plan in plans if plan.paths.t1w_in_template.exists()}
    if not labels or not (run.output_dir / description.DESCRIPTION).is_file():
        return ""
    before, now = dataset_names(run.output_dir), raw_dataset_names(run.bids_dir)
    if set(before) & set(now):
        return ""
    return (
        f"{run.output_dir}: contains results of {name_some(sorted(labels))} from the dataset "
        f"{before[-1]!r}, which this run replaces by those of {now[-1]!r}; if these are other "
        "people, choose another output folder"
    )


def describe_regridded(plans: Sequence[VisitPlan]) -> str:
    """Describe visits with results on another grid, some of which a run replaces; or ``""``."""
    labels = [
        plan.label
        for plan in plans
        if not plan.paths.t1w_in_template.exists()
        and any(plan.paths.t1w.parent.glob("*_space-*_res-*_desc-preproc_T1w.nii.gz"))
    ]
    if not labels:
        return ""
    return (
        f"results of {name_some(labels)} exist on another grid: those in template space are kept, "
        "but images on the grid of the T1w, and tables of regions, are replaced by those of this "
        "run; to keep both, choose another output folder"
    )


def describe_resynthesized(plans: Sequence[VisitPlan], run: ParticipantPlan) -> str:
    """Describe synthetic PET of another generator, which a run replaces; or ``""``."""
    if run.generator is None:
        return ""
    makers = {
        plan.label: str(object_at(metadata, "Generator").get("Name", ""))
        for plan in plans
        if (metadata := read_derivative(plan.paths.synthetic_pet).metadata)
    }
    others = {label: name for label, name in makers.items() if name != run.generator.card.name}
    if not others:
        return ""
    return (
        f"synthetic PET of {name_some([*others])}, made by generator "
        f"{name_some(sorted(set(others.values())))}, is replaced by that of generator "
        f"{run.generator.card.name}; to keep the former, choose it with --generator"
    )


def describe_outrun(plans: Sequence[VisitPlan], run: ParticipantPlan) -> str:
    """Describe visits whose raw images were replaced after the results that are used; or ``""``."""
    if run.stage != "synthesize":
        return ""

    def is_outrun(scan: Scan, image: Path) -> bool:
        digest = source_digest_of(image)
        return bool(digest) and run.digests.of(scan.path) != digest

    labels = [
        plan.label
        for plan in plans
        if plan.preprocessed
        and any(
            is_outrun(scan, image)
            for scan, image in (
                (plan.visit.t1w, plan.paths.t1w_in_template),
                *zip(plan.visit.pets, (pet.in_template for pet in plan.paths.pets), strict=True),
            )
        )
    ]
    if not labels:
        return ""
    return (
        f"raw images of {name_some(labels)} were replaced since they were preprocessed, and "
        "results of the former ones are used; run again without --stage synthesize"
    )


def _report_former(
    plans: Sequence[VisitPlan], done: Sequence[VisitPlan], run: ParticipantPlan, console: Console
) -> None:
    """Warn of results of earlier runs that this one replaces, or uses although they are old."""
    remarks = (
        describe_replaced(plans, run),
        describe_regridded(plans),
        describe_resynthesized(plans, run),
        describe_outrun([*plans, *done], run),
    )
    for remark in filter(None, remarks):
        console.warn(remark)


def _report_namesakes(selection: Selection, run: ParticipantPlan, console: Console) -> Selection:
    """Report labels that the generator knows from another dataset, once and in reports."""
    if run.generator is None:
        return selection
    card, names = run.generator.card, raw_dataset_names(run.bids_dir)

    def describe(visits: Sequence[Visit]) -> str:
        return describe_namesakes(card, [visit.subject for visit in visits], names, run.output_dir)

    if not describe(selection.visits):
        return selection
    console.warn(describe(selection.visits))
    visits = [
        replace(visit, notes=(*visit.notes, *filter(None, [describe([visit])])))
        for visit in selection.visits
    ]
    return replace(selection, visits=tuple(visits))


def _report_copies(
    plans: Sequence[VisitPlan], run: ParticipantPlan, console: Console
) -> dict[str, list[str]]:
    """Report images that are copies of others; return the sentences, by participants.

    A dry run looks only at images that it reads anyway, those of visits with results.
    """
    copies = defaultdict[str, list[str]](list)
    for plan in sorted(plans, key=lambda plan: plan.label):
        notes: list[str] = []
        if plan.preprocessed:
            with suppress(Mri2petError):  # reported where the image is needed
                notes = describe_copies(plan.visit, run)
        for note in notes:
            console.warn(f"{plan.label}: {note}")
        copies[plan.visit.subject] += notes
    return copies


def _compute(
    plans: Sequence[VisitPlan], run: ParticipantPlan, reports: "_Reports", aside: Sequence[Problem]
) -> list[Problem]:
    """Run the workflows of visits, and write each participant's report after its last node.

    The tables are written as well, unless they have just been: for a thousand participants, this
    takes a second.
    """
    due = time.monotonic()

    def report(subject: str, problems: Sequence[Problem]) -> None:
        nonlocal due
        with suppress(Exception):  # of any kind: it is retried at the end of the run
            reports.write([subject], [*aside, *problems])
            began = time.monotonic()
            if began >= due:
                reports.tables()
                due = time.monotonic() + PAUSE_RATIO * (time.monotonic() - began)

    runner = Runner(reports.settings, reports.console, "mri2pet", len(reports.selection.visits))
    problems = compute(plans, run, runner, on_finished=report)
    runner.report_used()
    return problems


def _refuse(settings: Settings) -> GeneratorChoice | None:
    """Check that the settings can be satisfied, before any folder is created."""
    generator = prepare_generator(settings)
    refuse_plugin(settings)
    choose_device(settings.device)  # fails if there is no such device
    read_tsv(settings.output_dir / "participants.tsv")  # if damaged, fails now rather than later
    return generator


@contextmanager
def _hold_visits(
    settings: Settings, selection: Selection, console: Console, run_record: description.RunRecord
) -> Iterator[None]:
    """Create the folders of the run and claim its visits in the block; a dry run does neither."""
    if settings.dry_run:
        yield
        return
    make_places(settings)
    visits = [label_of(visit) for visit in selection.visits]
    with hold(settings, run_record, console, results=visits, intermediate=visits):
        yield


def _prepare(
    settings: Settings,
    selection: Selection,
    generator: GeneratorChoice | None,
    console: Console,
    run_record: description.RunRecord,
) -> tuple[_Table, Template, ParticipantPlan]:
    """Check that the run can start; a dry run makes the same checks.

    Only the template is written, and nothing by a dry run.

    Returns
    -------
    tuple
        Columns of participants.tsv by label, with remarks; the template; the common parameters of
        visits.
    """
    _, threads = share_resources(settings, len(selection.visits))
    with _validation(settings) as validation:  # runs in another process meanwhile
        table = _participants(settings, console)
        template = prepare_template(settings, write=not settings.dry_run)
        _report_validation(validation, console)
    refuse_nothing(selection)
    run = prepare_run(settings, template, generator, threads, run_record.versions["mri2pet"])
    return table, template, run


def _participants(settings: Settings, console: Console) -> _Table:
    """Read participants.tsv; if it is damaged, warn only, because images do not depend on it."""
    try:
        present = find_subjects(settings.bids_dir)
        participants, remarks = read_participants(settings.bids_dir, present)
    except Mri2petError as error:
        participants, remarks = {}, (f"{error}; its columns are left out",)
    for remark in remarks:
        console.warn(remark)
    return participants, remarks


@contextmanager
def _validation(settings: Settings) -> Iterator[Future[str | None] | None]:
    """Run the BIDS validator, if requested, alongside the block."""
    with ThreadPoolExecutor(1) as thread:
        yield thread.submit(validate_bids, settings.bids_dir) if settings.validate else None


def _report_validation(validation: Future[str | None] | None, console: Console) -> None:
    warning = None if validation is None else validation.result()
    if warning is not None:
        console.warn(warning)


def _start(
    settings: Settings, run: ParticipantPlan, template: Template, run_record: description.RunRecord
) -> None:
    start_dataset(
        settings.output_dir,
        bids_dir=settings.bids_dir,
        version=run_record.versions["mri2pet"],
        container=find_container(os.environ),
        template=run.space.template,
        reference=template.uri,
        others=[dataset for dataset in settings.derivatives if dataset[0] in PREPROCESSED],
    )
    description.write_run_record(settings.output_dir / "logs", vars(settings), run_record)


def _report_aside(
    selection: Selection, settings: Settings, early: Sequence[Problem], console: Console
) -> None:
    for note in describe_old_work(settings):
        console.say(note)
    for visit in selection.visits:
        for note in visit.notes:
            console.say(f"sub-{visit.subject}: {note}")
    for unused in selection.unused:
        name = f"sub-{unused.subject}" if unused.path is None else unused.path.name
        if unused.exit_code is None:
            console.say(f"not used: {name}: {unused.reason}")
        else:
            console.fail(unused.reason)
    report_notes(console, problems=early)


def _report_images(plans: Sequence[VisitPlan], console: Console) -> None:
    """Report notes on images that are only known after reading, registration and resampling."""
    for plan in plans:
        for path in (plan.paths.t1w, *(pet.in_t1w for pet in plan.paths.pets)):
            for note in read_derivative(path).reading_notes():
                if note not in plan.visit.notes:
                    console.warn(f"{plan.label}: {note}")
        for pet in plan.paths.pets:
            gap = describe_coverage(pet.in_template)
            if gap:
                console.warn(f"{plan.label}: {gap}")
        for doubt in doubts_of(plan):
            console.warn(doubt)


def _report_outdated(plans: Sequence[VisitPlan], output_dir: Path, console: Console) -> None:
    """Warn of anomaly maps of images that have been replaced since."""
    labels = [
        f"sub-{subject}"
        for subject in sorted({plan.visit.subject for plan in plans})
        if any(is_outdated(output_dir, one) for one in find_anomalies(output_dir, subject))
    ]
    if labels:
        console.warn(
            f"the images of {name_some(labels)} have been replaced since they were mapped; run the "
            "group level again"
        )


def _plan(
    selection: Selection, run: ParticipantPlan, logs: Path | None
) -> tuple[list[VisitPlan], list[VisitPlan], list[Problem]]:
    """Plan all visits; return those to compute, those already complete, and the problems of others.

    Tracebacks are written to the folder ``logs``, if it is not None.
    """
    plans, done, problems = list[VisitPlan](), list[VisitPlan](), list[Problem]()
    for visit in selection.visits:
        try:
            plan = plan_visit(visit, run, dry=logs is None)
            if is_done(plan, run):
                done.append(plan)
            else:
                refuse_unprepared(plan, run)
                plans.append(plan)
        except Exception as error:  # of any kind: it only affects this visit
            problems.append(problem_of(error, visit.subject, label_of(visit), logs))
    return plans, done, problems


def _t1w_voxels(plans: Sequence[VisitPlan], run: ParticipantPlan) -> float:
    """Return the mean number of voxels of the T1w images of visits, on their own grids."""
    voxels = 0
    for plan in plans:
        t1w = plan.visit.t1w
        path = plan.paths.t1w if run.stage == "synthesize" else t1w.used
        with suppress(Mri2petError):  # later stages do not need it
            voxels += prod(nifti.inspect(path, orientation=t1w.orientation).shape[:3])
    return voxels / len(plans)


def _estimate(
    plans: Sequence[VisitPlan], run: ParticipantPlan, settings: Settings, console: Console
) -> None:
    """Report the resources that a run would need for the visits that are not complete."""
    if not plans:
        return
    grid = grid_of(settings)
    estimate = estimate_participants(
        visits=len(plans),
        pets=sum(len(plan.visit.pets) for plan in plans),
        voxels=prod(grid.shape),
        t1w_voxels=_t1w_voxels(plans, run),
        threads=run.preprocessing.omp_nthreads,
        quick=settings.sloppy,
        preprocess=run.stage != "synthesize",
        synthesize=run.generator is not None,
        spared=[seconds_spared(plan.visit) for plan in plans],
    )
    report_estimate(settings, len(plans), console, estimate)


def _report_plans(
    plans: Sequence[VisitPlan],
    done: Sequence[VisitPlan],
    aside: Sequence[Problem],
    early: Sequence[Problem],
    console: Console,
) -> int:
    """Print the last lines of a dry run, and return the best exit code that the run could have.

    ``early`` contains the problems in ``aside`` that have not been reported yet.
    """
    report_notes(console, problems=early)
    verb = "is" if len(done) == 1 else "are"
    visits = count_noun(len(plans), "visit")
    sentence = f"{visits} would be computed, {len(done)} {verb} complete already"
    return close_dry(sentence, aside, console)


def _subjects(selection: Selection) -> list[str]:
    """List the participants whose images were checked, with or without success."""
    images = {unused.subject for unused in selection.unused if unused.path is not None}
    return sorted({visit.subject for visit in selection.visits} | images)


def _report_again(selection: Selection, settings: Settings, console: Console) -> int:
    """Write reports from the contents of the output folder, and return the exit code."""
    output_dir = settings.output_dir
    subjects = [
        subject for subject in _subjects(selection) if (output_dir / f"sub-{subject}").is_dir()
    ]
    if not subjects:
        raise MissingInputError(
            f"{output_dir}: contains no results of these participants; run without --reports-only"
        )
    if settings.dry_run:
        console.close(
            f"mri2pet: {count_noun(len(subjects), 'report')} would be written, in {output_dir}"
        )
        return DONE
    with _validation(settings) as validation:
        make_places(settings)
        template = prepare_template(settings)
        _report_validation(validation, console)
    problems = report_subjects(
        output_dir, dict.fromkeys(subjects, RunSummary()), template.reference, console
    )
    problems += report_all(output_dir, console)
    console.close(
        f"mri2pet: {count_noun(len(subjects) - len(problems), 'report')} written, "
        f"{len(problems)} failed; they are in {output_dir}"
    )
    return PARTIAL if problems else DONE


def report_subjects(
    output_dir: Path, summaries: Mapping[str, RunSummary], template_t1w: Path, console: Console
) -> list[Problem]:
    """Write the reports of participants; one that fails does not affect the others.

    Parameters
    ----------
    output_dir : Path
        Root of the derivative dataset.
    summaries : mapping
        Label → summary of the run for this participant.
    template_t1w : Path
        Template on the grid of the images in its space.
    console : Console
        Console for failures.

    Returns
    -------
    list of Problem
        One problem per report that could not be written.
    """
    problems, logs = list[Problem](), output_dir / "logs"
    for subject, run in summaries.items():
        name = f"sub-{subject}.html"
        with report_failure(console, name=name, logs=logs, subject=subject) as lost:
            write_subject_report(output_dir, subject, template_t1w=template_t1w, **run)
        problems += lost
    return problems


def report_all(output_dir: Path, console: Console) -> list[Problem]:
    """Write the table of all participants; if that fails, all other results remain."""
    with report_failure(console, name=OVERVIEW, logs=output_dir / "logs") as lost:
        write_overview(output_dir)
    return lost


@dataclass(frozen=True)
class _Reports:
    """Writer of the reports and tables of a run, participant by participant.

    ``copies`` gives the sentences on raw images that are copies of others, by participants.
    ``fresh`` lists the participants whose visits this run computes; reports of others keep the
    details of the run that computed them.
    """

    settings: Settings
    selection: Selection
    copies: Mapping[str, Sequence[str]]
    table: _Table
    template: Template
    fresh: Collection[str]
    run_record: description.RunRecord
    started: float
    console: Console
    written: set[str] = field(default_factory=set)

    def _summarize(self, subject: str, problems: Sequence[Problem]) -> RunSummary:
        """Collect what the report of a participant contains about the run."""
        visits, unused = self.selection.visits, self.selection.unused
        notes = [note for visit in visits if visit.subject == subject for note in visit.notes]
        notes += [
            image.reason for image in unused if image.subject == subject and not image.exit_code
        ]
        notes += self.table[1]
        summaries = [problem.sentence for problem in problems if problem.subject == subject]
        run = RunSummary(notes=notes, problems=[*summaries, *self.copies.get(subject, [])])
        if subject in self.fresh or not (self.settings.output_dir / f"sub-{subject}").is_dir():
            run.update(summarize_run(self.run_record, self.started))
        return run

    def write(self, subjects: Sequence[str], problems: Sequence[Problem]) -> list[Problem]:
        """Write the reports of participants; return problems."""
        summaries = {subject: self._summarize(subject, problems) for subject in subjects}
        output_dir = self.settings.output_dir
        failed = report_subjects(output_dir, summaries, self.template.reference, self.console)
        self.written.update(set(subjects) - {problem.subject for problem in failed})
        return failed

    def tables(self) -> list[str]:
        """Write the tables of the dataset; return remarks on them."""
        participants, remarks = self.table
        return finish_dataset(
            self.settings.output_dir,
            bids_dir=self.settings.bids_dir,
            participants=participants,
            remarks=remarks,
        )

    def finish(self, problems: Sequence[Problem]) -> list[Problem]:
        """Write the reports that are not up to date, and the tables; return problems."""
        others = [subject for subject in _subjects(self.selection) if subject not in self.written]
        output_dir = self.settings.output_dir
        shared = shared_sources(output_dir, self.template.reference)
        stale = [
            subject
            for subject in others
            if not is_current(output_dir, subject, shared, **self._summarize(subject, problems))
        ]
        failed = self.write(stale, problems)
        failed += report_all(output_dir, self.console)
        for remark in self.tables():
            self.console.warn(remark)
        return failed


def _close(
    plans: Sequence[VisitPlan],
    done: Sequence[VisitPlan],
    problems: Sequence[Problem],
    settings: Settings,
    console: Console,
) -> int:
    """Print the last line, and return the exit code."""
    troubled = {problem.visit for problem in problems}
    lost = {problem.visit for problem in problems if problem.fatal}
    well = [plan for plan in plans if plan.name not in troubled]
    failed = sorted({f"sub-{problem.subject}" for problem in problems})
    console.close(count_line(len(well), len(done), failed, settings.output_dir))
    usable = [*done, *(plan for plan in plans if plan.name not in lost)]
    return exit_code_of(problems, usable=bool(usable))
