"""Common parts of the levels: folders, template, generator, resources, and running of workflows."""

import os
import re
import shutil
import time
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import cached_property
from importlib import metadata
from pathlib import Path
from uuid import uuid4

import yaml
from nipype.pipeline.engine import Node, Workflow

from bids_app.claims import claimed
from bids_app.console import Console, list_troubled
from bids_app.dataset.validation import make_writable, refuse_inside
from bids_app.derivatives.description import (
    RunRecord,
    ignore_also,
    refuse_foreign,
    write_run_record,
)
from bids_app.derivatives.find import DIGESTS, SourceDigests
from bids_app.derivatives.sidecars import Space
from bids_app.derivatives.tables import describe_largest, note_resources
from bids_app.errors import MissingInputError, ReadWriteError, UnusableDataError, UsageError
from bids_app.files import place_in, read_text, refuse_unwritable, remove_partials
from bids_app.generators import GeneratorChoice, Options, choose_generator
from bids_app.imaging.intensity import PERCENTILE, TIMES_MEAN
from bids_app.plan.estimate import Estimate, describe_estimate, find_shortages
from bids_app.plan.participant import ParticipantPlan, VisitPlan, init_visit_wf
from bids_app.plan.problems import Problem, error_of, problem_of
from bids_app.plan.study import grid_of
from bids_app.report.page import RunSummary
from bids_app.resources import (
    Resources,
    choose_device,
    find_limits,
    limit_threads,
    threads_of_job,
    threads_per_node,
)
from bids_app.settings import SLOPPY_RESOLUTION, Settings
from bids_app.templates import REGISTRATION_RESOLUTION, Template, prepare
from bids_app.workflows import execution
from bids_app.workflows.execution import Crash, label_nodes, nodes_of, run_graph
from bids_app.workflows.registration import Preprocessing

DONE, PARTIAL = 0, 1  # exit codes
RESULTS = {"train": "table1.tsv", "group": "clusters.tsv"}  # exist if a level was run
LARGEST_PLUGIN, MOST_BRACKETS = 1 << 15, 200  # bytes, [ or {; our choice
WORK = ".work"  # pybids and other BIDS tools ignore names that begin with a dot
KEPT = ("logs", "figures", "generators", "detectors", "crossvalidation")  # beside sub-*
RAW = "sourcedata"
OLD_GRAPHS = ("mri2pet", "mri2pet_train", "mri2pet_group")
_RELEASES = re.compile(r"\d+\.\d+")
RELEASE = ".".join(metadata.version("mri2pet").split(".")[:2])  # another may give other results


def work_dir_of(settings: Settings) -> Path:
    """Return the folder of intermediate files of this release, so that none goes on with another's.

    It is in the output folder, unless another place was given.
    """
    return _root_of_work(settings) / RELEASE


def _root_of_work(settings: Settings) -> Path:
    return settings.output_dir / WORK if settings.work_dir is None else settings.work_dir


def refuse_places(settings: Settings) -> None:
    """Check that a run may and can write to its folders; none is created.

    Raises
    ------
    UsageError
        See :func:`bids_app.dataset.validation.refuse_inside`; also if the output folder contains
        the raw dataset elsewhere than in ``sourcedata``, or belongs to another app, or if the work
        folder would be mixed with data or results.
    CannotCreateError
        If a folder cannot be written to.
    """
    out, work, index = settings.output_dir, settings.work_dir, settings.bids_database_dir
    for folder in (settings.bids_dir, out, work_dir_of(settings)):
        _refuse_bytes(folder)
    for folder in filter(None, (out, index)):
        refuse_inside(settings.bids_dir, folder)
    inside = place_in(out, settings.bids_dir)
    if inside is not None and inside != (RAW,):  # BIDS allows raw data there in derivatives
        raise UsageError(f"{out}: contains the BIDS dataset; choose a separate output folder")
    if work is not None:
        _refuse_work(work, settings)
    refuse_foreign(out)
    for folder in (out, work_dir_of(settings)):
        refuse_unwritable(folder)


def _refuse_bytes(folder: Path) -> None:
    try:
        str(folder).encode()
    except UnicodeEncodeError as error:
        raise UsageError(
            f"{folder}: its name is not valid UTF-8, so ITK cannot open it; rename it"
        ) from error


def _refuse_work(work: Path, settings: Settings) -> None:
    """Check that the files of a work folder would not be mixed with data or results."""
    out, raw = settings.output_dir, settings.bids_dir
    advice = "choose a separate folder for --work-dir"
    inside, in_raw = place_in(out, work), place_in(raw, work)
    if inside == ():
        raise UsageError(f"{work}: is the output folder; {advice}")
    if inside is None and in_raw is not None:
        where = "inside" if in_raw else "the same folder as"
        raise UsageError(f"{work}: is {where} the input dataset; {advice}")
    if inside and (inside[0].startswith("sub-") or inside[0] in KEPT):
        raise UsageError(f"{work}: is inside {out / inside[0]}, a folder of results; {advice}")
    for folder, kind in ((out, "output"), (raw, "input")):
        if place_in(work, folder) is not None:
            raise UsageError(f"{work}: contains the {kind} folder; {advice}")


def make_places(settings: Settings) -> None:
    """Create the folders that a run writes to, with the work folder ignored by the BIDS validator.

    Raises
    ------
    CannotCreateError
        If a folder cannot be created.
    """
    make_writable(settings.output_dir)
    make_writable(work_dir_of(settings))
    ignore_also(settings.output_dir, work_dir_of(settings))


def describe_old_work(settings: Settings) -> list[str]:
    """Describe work folders of other releases, which are not used."""
    root = _root_of_work(settings)
    old = [path for path in root.glob("*") if _RELEASES.fullmatch(path.name) and path.is_dir()]
    folders = sorted(path for path in old if path.name != RELEASE)
    first = settings.output_dir / "work"  # of 0.1
    if settings.work_dir is None and any((first / name).is_dir() for name in OLD_GRAPHS):
        folders.insert(0, first)
    return [
        f"{folder}: contains intermediate files of another version, which this one does not use "
        f"(its own are in {work_dir_of(settings)}), so what was not finished starts anew; delete it"
        for folder in folders
    ]


def refuse_plugin(settings: Settings) -> None:
    """Check that a plugin can be used, before anything is computed.

    Raises
    ------
    UsageError
        See :func:`read_plugin` and :func:`bids_app.workflows.execution.refuse_plugin`.
    """
    plugin = read_plugin(settings.use_plugin)
    if plugin is not None:
        execution.refuse_plugin(str(plugin["plugin"]))


def refuse_without_results(settings: Settings, flag: str) -> None:
    """Check that a level was run, for a flag that needs its results.

    Raises
    ------
    MissingInputError
        If the table of the level does not exist.
    """
    if not (settings.output_dir / RESULTS[settings.level]).is_file():
        raise MissingInputError(
            f"{settings.output_dir}: contains no results of the {settings.level} level; run "
            f"without {flag}"
        )


def prepare_template(settings: Settings, *, write: bool = True) -> Template:
    """Write the template to the work folder, on the grid of the settings.

    If not ``write``, only its availability is checked.
    """
    return prepare(
        settings.template,
        grid_of(settings),
        work_dir_of(settings) / "template",
        registration_resolution=SLOPPY_RESOLUTION if settings.sloppy else REGISTRATION_RESOLUTION,
        write=write,
    )


def prepare_generator(settings: Settings) -> GeneratorChoice | None:
    """Find the generator and check that it fits; None if the run does not synthesize."""
    if settings.stage == "preprocess":
        return None
    grid = grid_of(settings)
    options = Options(
        settings.triplets_overlap, settings.match_histogram, settings.uncertainty, settings.novelty
    )
    return choose_generator(
        settings.generator,
        settings.output_dir,
        grid,
        settings.template,
        sloppy=settings.sloppy and settings.grid_resolution == SLOPPY_RESOLUTION,
        options=options,
    )


def share_resources(settings: Settings, visits: int) -> tuple[Resources, int]:
    """Determine the CPUs and memory of the run and the threads of a node; set limits of libraries.

    If nodes become jobs of a queue, their threads are not limited by the CPUs of this process.
    """
    limits = find_limits(os.environ)
    nprocs = limits.cpus if settings.nprocs is None else settings.nprocs
    mem_gb = limits.mem_gb if settings.mem_gb is None else settings.mem_gb
    requested = settings.omp_nthreads
    plugin = read_plugin(settings.use_plugin)
    if plugin is not None and plugin["plugin"] != "MultiProc":
        threads = threads_of_job() if requested is None else requested
    else:
        threads = threads_per_node(nprocs, visits) if requested is None else min(requested, nprocs)
    limit_threads(os.environ, threads)
    return Resources(nprocs, mem_gb), threads


def prepare_run(
    settings: Settings,
    template: Template,
    generator: GeneratorChoice | None,
    threads: int,
    version: str,
) -> ParticipantPlan:
    """Collect all that determines the results of visits; ``version`` is that of the app."""
    preprocessing = Preprocessing(
        template=template.brain,
        reference=template.reference,
        reference_mask=template.reference_mask,
        skull_strip=settings.skull_strip,
        frames=settings.pet_frames,
        percentile=PERCENTILE,
        times_mean=0.0 if settings.paper else TIMES_MEAN,
        quick=settings.sloppy,
        omp_nthreads=threads,
        seed=settings.random_seed,
    )
    parameters = {
        "template": settings.template,
        "bounding_box": settings.bounding_box,
        "resolution": settings.grid_resolution,
        "skull_strip": settings.skull_strip,
        "pet_frames": settings.pet_frames,
        "percentile": PERCENTILE,
        "times_mean": preprocessing.times_mean,
        "quick": settings.sloppy,
        "seed": settings.random_seed,
    }
    return ParticipantPlan(
        bids_dir=settings.bids_dir,
        output_dir=settings.output_dir,
        space=Space(settings.template, settings.grid_resolution, template.uri),
        preprocessing=preprocessing,
        parameters=parameters,
        stage=settings.stage,
        generator=generator,
        fwhm=settings.smoothing_fwhm,
        device=choose_device(settings.device),
        digests=SourceDigests(settings.bids_dir, settings.output_dir / DIGESTS),
        version=version,
    )


def read_plugin(path: Path | None) -> Mapping[str, object] | None:
    """Read the file of ``--use-plugin``: ``plugin`` and ``plugin_args`` of nipype.

    Raises
    ------
    UsageError
        If the file cannot be read or names no plugin, or if its ``plugin_args`` are not a mapping.
    """
    if path is None:
        return None
    try:
        text = read_text(path, LARGEST_PLUGIN)
        if not text or max(text.count(sign) for sign in "[{") > MOST_BRACKETS:
            raise UsageError(f"{path}: empty, or too large for a --use-plugin file; correct it")
        content = yaml.safe_load(text)  # also reads JSON
    except RecursionError as error:
        raise UsageError(f"{path}: lists are nested too deeply; correct it") from error
    except (ReadWriteError, UnusableDataError) as error:
        raise UsageError(f"{error}") from error
    except (ValueError, TypeError, yaml.YAMLError) as error:
        reason = " ".join(f"{error}".split())[:200]
        raise UsageError(f"{path}: cannot be read as YAML ({reason}); correct it") from error
    if not isinstance(content, dict) or not isinstance(content.get("plugin"), str):
        raise UsageError(f"{path}: names no plugin; write plugin: SLURM and plugin_args: …")
    arguments = content.get("plugin_args") or {}
    if not isinstance(arguments, dict):
        raise UsageError(f"{path}: plugin_args is not a mapping; write names and values below it")
    return content | {"plugin_args": arguments}


@contextmanager
def begin(
    settings: Settings, run_record: RunRecord, console: Console, *, results: Collection[str]
) -> Iterator[None]:
    """Create the folders of a run of controls or patients, claim them, and record the run.

    Parameters
    ----------
    settings, run_record, console, results
        See :func:`hold`.
    """
    make_places(settings)
    with hold(settings, run_record, console, results=results, intermediate=[settings.level]):
        write_run_record(settings.output_dir / "logs", vars(settings), run_record)
        report_notes(console, describe_old_work(settings))
        yield


def report_notes(
    console: Console, notes: Iterable[str] = (), problems: Iterable[Problem] = ()
) -> None:
    """Print notes, and then problems."""
    for note in notes:
        console.say(note)
    for problem in problems:
        console.fail(problem.sentence)


@contextmanager
def report_failure(
    console: Console, *, name: str, logs: Path, subject: str = ""
) -> Iterator[list[Problem]]:
    """Report the failure of a report that is written in the block; all other results remain.

    Parameters
    ----------
    console
        Console for the failure.
    name : str
        File name of the report.
    logs : Path
        Folder for the traceback of an unexpected error.
    subject : str
        Label of the participant of the report; "" if it is about all.

    Yields
    ------
    list of Problem
        Problems, filled in when the block ends.
    """
    problems: list[Problem] = []
    try:
        yield problems
    except Exception as error:  # of any kind: it only affects the report
        problems.append(problem_of(error, subject, name, logs))
        report_notes(console, problems=problems)


def report_level(
    settings: Settings, console: Console, write: Callable[..., Path], summary: RunSummary
) -> list[Problem]:
    """Write the report of ``train`` or ``group``; if that fails, all other results remain."""
    name, output_dir = f"{settings.level}.html", settings.output_dir
    with report_failure(console, name=name, logs=output_dir / "logs") as lost:
        write(
            output_dir, template=settings.template, resolution=settings.grid_resolution, **summary
        )
    return lost


def report_again(settings: Settings, console: Console, report: Callable[[], list[Problem]]) -> int:
    """Write the reports of ``train`` or ``group`` from disk, unless this is a dry run.

    Parameters
    ----------
    settings : Settings
        Settings of the run.
    console
        Console for the last line.
    report
        Function that writes the reports, and returns problems.

    Returns
    -------
    int
        0 if all went well, 1 if some report failed.
    """
    path = settings.output_dir / f"{settings.level}.html"
    if settings.dry_run:
        console.close(f"mri2pet: the report would be written to {path}")
        return DONE
    problems = report()
    console.close(f"mri2pet: reports written, {len(problems)} failed; see {path}")
    return PARTIAL if problems else DONE


def summarize_level(
    summary: RunSummary, settings: Settings, notes: Sequence[str], problems: Iterable[Problem]
) -> RunSummary:
    """Add the parts specific to ``train`` and ``group`` to the summary of a run."""
    sentences = [problem.sentence for problem in problems]
    return {**summary, "problems": sentences, "notes": notes, "settings": vars(settings)}


def report_estimate(settings: Settings, jobs: int, console: Console, estimate: Estimate) -> None:
    """Report the resources that a run would need, and warn of probable shortages.

    Parameters
    ----------
    settings, jobs : Settings, int
        Settings and number of parallel jobs of the run; see :class:`Runner`.
    console
        Console for the estimate.
    estimate : Estimate
        Estimate of the run.
    """
    resources, _ = share_resources(settings, jobs)
    console.report_estimate(describe_estimate(estimate, resources.cpus))
    for shortage in find_shortages(
        estimate,
        mem_gb=resources.mem_gb,
        output_dir=settings.output_dir,
        work_dir=work_dir_of(settings),
    ):
        console.warn(shortage)


def close_dry(sentence: str, problems: Sequence[Problem], console: Console) -> int:
    """Print the last line of a dry run, and return the best exit code that the run could have.

    Parameters
    ----------
    sentence : str
        Description of what the run would do.
    problems : sequence of Problem
        All problems known beforehand.
    console
        Console for the line.
    """
    troubled = sorted({f"sub-{problem.subject}" for problem in problems})
    console.close(
        f"mri2pet: {sentence}, {list_troubled(troubled)}; this was a dry run, and nothing was "
        "written"
    )
    return PARTIAL if problems else DONE


def exit_code_of(problems: Sequence[Problem], *, usable: bool) -> int:
    """Return the exit code of a run: success, partial success, or an error if nothing is usable."""
    if not problems:
        return DONE
    return PARTIAL if usable else error_of(problems).exit_code


def summarize_run(run_record: RunRecord, started: float) -> RunSummary:
    """Summarise for reports a run that ends now and began at ``started``, in monotonic time."""
    return RunSummary(
        versions=run_record.versions,
        date=run_record.date,
        command=run_record.command,
        duration=time.monotonic() - started,
    )


@contextmanager
def hold(
    settings: Settings,
    run_record: RunRecord,
    console: Console,
    *,
    results: Collection[str],
    intermediate: Collection[str],
) -> Iterator[None]:
    """Claim what a run works on for the duration of the block, so that other runs leave it alone.

    Partial files that a killed run has left beside the folders of subjects are removed.

    Parameters
    ----------
    settings, run_record : Settings, RunRecord
        Settings and record of the run.
    console : Console
        Console for a warning if a disk does not support locks.
    results, intermediate : collection of str
        Names to claim in the output folder, and in the work folder.

    Raises
    ------
    CannotCreateError
        If another run works on the same.
    """
    places = {settings.output_dir.resolve(): results, work_dir_of(settings).resolve(): intermediate}
    with ExitStack() as stack:
        for folder, names in places.items():
            claim = claimed(folder, names, command=run_record.command, date=run_record.date)
            if not stack.enter_context(claim):
                console.warn(
                    f"{folder}: its file system does not support locks; do not start a second run "
                    "there"
                )
        remove_partials(settings.output_dir)
        for name in KEPT:
            remove_partials(settings.output_dir / name, below=True)
        yield


def _problem(crash: Crash) -> Problem:
    sentence = f"{crash.label}: {crash.sentence}" if crash.label else crash.sentence
    return Problem(crash.owner, sentence, crash.exit_code, crash.part, crash.fatal)


@dataclass(frozen=True)
class Runner:
    """Runner of the workflows of one level.

    Parameters
    ----------
    settings : Settings
        Settings of the run.
    console : Console
        Console for progress and messages.
    name : str
        Name of the folder of intermediate files, in the work folder.
    jobs : int
        Maximum number of parallel jobs.
    used : list of dict
        Resources used by steps so far, if they are measured.
    """

    settings: Settings
    console: Console
    name: str
    jobs: int
    used: list[dict[str, object]] = field(default_factory=list)

    @cached_property
    def resources_file(self) -> Path:
        """Path of the table of resources used by steps, if they are measured."""
        date = datetime.now(UTC).strftime("%Y-%m-%dT%H%M%SZ")
        name = f"{date}-{uuid4().hex[:8]}_resources.tsv"
        return self.settings.output_dir / "logs" / name

    @cached_property
    def shares(self) -> tuple[Resources, int]:
        """Resources of this machine that the run may use, and threads of a node."""
        return share_resources(self.settings, self.jobs)

    def run(
        self,
        graphs: Sequence[Workflow],
        labels: Mapping[str, str],
        on_finished: Callable[[str, Sequence[Problem]], None] | None = None,
    ) -> list[Problem]:
        """Run workflows in parallel; return failures, which are not reported yet.

        Parameters
        ----------
        graphs : sequence of Workflow
            Workflows with different names, whose nodes are labelled by
            :func:`bids_app.workflows.execution.label_nodes`.
        labels : mapping
            Displayed names of the parts whose progress is shown.
        on_finished : callable or None
            Callback of :func:`run_graph`, which here receives problems.
        """
        settings = self.settings
        workflow = Workflow(self.name, base_dir=str(work_dir_of(settings)))
        workflow.add_nodes(list(graphs))
        steps = Counter(getattr(node, "part", "") for node in nodes_of(workflow))

        def report_finished(part: str, crashes: Sequence[Crash]) -> None:
            if on_finished is not None:
                on_finished(part, [*map(_problem, crashes)])

        with self.console.progress(labels, steps) as on_status:
            crashes = run_graph(
                workflow,
                resources=self.shares[0],
                plugin=read_plugin(settings.use_plugin),
                logs=settings.output_dir / "logs",
                stop_on_first_crash=settings.stop_on_first_crash,
                on_status=on_status,
                on_finished=None if on_finished is None else report_finished,
                on_used=self._note_used if settings.resource_monitor else None,
            )
        return [*map(_problem, crashes)]

    def _note_used(self, node: Node, used: Mapping[str, float]) -> None:
        row = {
            "node": node.fullname,
            "owner": node.owner,
            "step": node.step,
            **used,
            "threads": node.n_procs,
            "mem_gb": node.mem_gb,
        }
        self.used.append(row)
        with suppress(ReadWriteError):  # results are more important
            note_resources(self.resources_file, row)

    def report_used(self) -> None:
        """Report the steps that have used the most resources, if these are measured."""
        if not self.settings.resource_monitor:
            return
        if self.used:
            sentence = f"{describe_largest(self.used)}; all steps are in {self.resources_file}"
        else:
            sentence = "no step was run by this process, so none was measured"
        self.console.say(f"--resource-monitor: {sentence}")


def compute(
    plans: Sequence[VisitPlan],
    run: ParticipantPlan,
    runner: Runner,
    *,
    on_finished: Callable[[str, Sequence[Problem]], None],
) -> list[Problem]:
    """Run the workflows of visits, participant by participant; report and return failures.

    Parameters
    ----------
    plans : sequence of VisitPlan
        Plans of all visits, with those of a participant next to one another.
    run : ParticipantPlan
        Common parameters of all visits.
    runner : Runner
        Runner of the workflows.
    on_finished : callable
        Callback with a participant's label and all failures so far, called when nothing remains to
        be done for that participant. It is not called if another plugin runs the workflows.
    """
    problems, graphs = [], {}
    for plan in plans:
        try:
            graphs[plan.name] = init_visit_wf(plan, run)
            label_nodes(
                graphs[plan.name], owner=plan.visit.subject, label=plan.label, part=plan.name
            )
            results = (*plan.paths.preprocessed, *plan.paths.synthesized)
            for folder in {path.parent for path in results}:
                remove_partials(folder)
        except Exception as error:  # of any kind: it only affects this visit
            logs = runner.settings.output_dir / "logs"
            problems.append(problem_of(error, plan.visit.subject, plan.label, logs, plan.name))
    if graphs:
        unbuilt, unfinished = tuple(problems), set(graphs)

        def report_finished(name: str, failed: Sequence[Problem]) -> None:
            unfinished.discard(name)
            (subject,) = {plan.visit.subject for plan in plans if plan.name == name}
            if not any(plan.name in unfinished for plan in plans if plan.visit.subject == subject):
                on_finished(subject, [*unbuilt, *failed])

        labels = {plan.name: plan.label for plan in plans if plan.name in graphs}
        problems += runner.run(list(graphs.values()), labels, report_finished)
    report_notes(runner.console, problems=problems)
    return problems


def clean(plans: Sequence[VisitPlan], problems: Sequence[Problem], settings: Settings) -> None:
    """Delete the intermediate files of visits in which nothing failed."""
    failed = {problem.visit for problem in problems}
    for plan in plans:
        if plan.name not in failed:
            shutil.rmtree(work_dir_of(settings) / "mri2pet" / plan.name, ignore_errors=True)
