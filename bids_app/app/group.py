"""The group level: detectors trained on controls, anomaly maps and clusters of patients."""

import shutil
import time
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from bids_app import provenance
from bids_app.app.detections import Seen, read_seen, scored_in, top_clusters, write_detections
from bids_app.app.detectors import (
    CLUSTERS,
    GroupRun,
    SetPlan,
    plan_applied,
    plan_sets,
    refuse_applied,
    refuse_card,
    refuse_sets,
    refuse_settings,
    tell_version,
)
from bids_app.app.intake import Problem, error_of, problem_of
from bids_app.app.participant import report_subjects
from bids_app.app.pictures import (
    Pictures,
    assume_pictures,
    refuse_knowledge,
    take_pictures,
    usable_subjects,
)
from bids_app.app.preparation import (
    make_places,
    prepare_template,
    refuse_places,
    refuse_plugin,
    refuse_without_results,
    tell_old_work,
    work_dir_of,
)
from bids_app.app.running import Runner, hold, told_of
from bids_app.app.subjects import Subjects, choose_subjects, settle_grid
from bids_app.app.training import DONE, PARTIAL
from bids_app.console import Voice, tell_troubled
from bids_app.derivatives.description import dataset_name, refresh_dataset
from bids_app.derivatives.sidecars import Space
from bids_app.detection.card import DetectorCard, check_files, check_grid, read_card
from bids_app.errors import MissingInputError, Mri2petError
from bids_app.files import locked, remove_partials
from bids_app.imaging.volume import grid_of_box
from bids_app.report.group import write_group_report
from bids_app.report.runs import Told
from bids_app.report.scored import GridSettings, last_run, write_run
from bids_app.screening import VOLUMES, Screening
from bids_app.settings import Settings
from bids_app.templates import uri_of
from bids_app.workflows.execution import Crash

GRAPH = "mri2pet_group"
INTERMEDIATE = (GRAPH, VOLUMES, CLUSTERS)  # folders of the work folder


def group(settings: Settings, voice: Voice, stamp: provenance.Stamp) -> int:
    """Train detectors on controls, or take trained ones, and map what is abnormal in patients.

    Returns
    -------
    int
        0 if all went well, 1 if some participant or detector failed.

    Raises
    ------
    Mri2petError
        If the run cannot begin, or nothing of it can be used.
    """
    started = time.monotonic()
    refuse_places(settings)
    if settings.reports_only:
        return _report_again(settings, voice)
    try:
        settings, grid = settle_grid(settings)
    except MissingInputError:
        _read_detector(settings)  # whose grid may be another than was asked for: that is told first
        raise
    card = _read_detector(settings)
    version = stamp.versions["mri2pet"]
    subjects = choose_subjects(settings, controls=card is None, version=version)
    subjects = replace(subjects, notes=(*grid, *subjects.notes))
    if not subjects.patients:
        raise error_of(subjects.problems)
    if settings.dry_run:
        _tell_subjects(settings, subjects, card, voice)
    usable = _refuse(settings, card, subjects, stamp, voice)
    if settings.dry_run:
        return _close_dry(usable, subjects.problems, voice)
    make_places(settings)
    with hold(settings, stamp, voice, results=["group"], intermediate=["group"]):
        provenance.write_run(settings.output_dir / "logs", vars(settings), stamp)
        for note in tell_old_work(settings):
            voice.say(note)
        outcome = _carry_out(settings, subjects, card, voice, stamp=stamp, started=started)
    return _close(settings, outcome, voice)


def _carry_out(
    settings: Settings,
    subjects: Subjects,
    card: DetectorCard | None,
    voice: Voice,
    *,
    stamp: provenance.Stamp,
    started: float,
) -> "_Outcome":
    """Detect, write tables and reports, and delete intermediate files where nothing failed."""
    runner = Runner(settings, voice, GRAPH, settings.folds * len(settings.training_set))
    run = GroupRun(_screening(settings, stamp), settings, runner)
    outcome = _detect(run, subjects, card, voice)
    problems = [*outcome.problems, *_finish(run, outcome, told_of(stamp, started), voice)]
    if settings.clean_workdir and not problems:
        for name in INTERMEDIATE:
            shutil.rmtree(work_dir_of(settings) / name, ignore_errors=True)
    return replace(outcome, problems=problems)


def _screening(settings: Settings, stamp: provenance.Stamp) -> Screening:
    return Screening(
        output_dir=settings.output_dir,
        work_dir=work_dir_of(settings),
        space=Space(settings.template, settings.grid_resolution, uri_of(settings.template)),
        grid=grid_of_box(settings.bounding_box, settings.grid_resolution),
        dataset=dataset_name(settings.output_dir),
        folds=settings.folds,
        seed=settings.random_seed,
        versions=stamp.versions,
    )


def _read_detector(settings: Settings) -> DetectorCard | None:
    """Read and check the detector that is to be applied, if one is."""
    if settings.detector is None:
        return None
    card = read_card(settings.detector)
    grid = grid_of_box(settings.bounding_box, settings.grid_resolution)
    check_grid(card, grid, settings.template)
    check_files(settings.detector, card)
    return card


def _refuse(
    settings: Settings,
    card: DetectorCard | None,
    subjects: Subjects,
    stamp: provenance.Stamp,
    voice: Voice,
) -> Subjects:
    """See that the run can begin; give who is left, with what a dry run tells of all others."""
    screening = _screening(settings, stamp)
    refuse_plugin(settings)
    prepare_template(settings, write=False)  # reports of patients will want it
    if settings.detector is None or card is None:
        refuse_settings(settings)
    else:
        tell_version(card, screening.versions["mri2pet"])  # which refuses; notes are told later
        refuse_card(settings.detector, card, settings, subjects.patients)
    usable = usable_subjects(screening, subjects, synthetic=_needs_synthetic(settings, card))
    lesions = refuse_knowledge(settings, usable.patients)
    if not usable.patients:
        raise error_of([*subjects.problems, *usable.problems])
    pictures = assume_pictures(screening, usable, synthetic=_needs_synthetic(settings, card))
    try:
        if card is None:
            refuse_sets(screening, settings, pictures)
        else:
            refuse_applied(card, settings, pictures)
    except Mri2petError:
        early = () if settings.dry_run else subjects.problems  # which a dry run has told
        _tell(voice, [], [*early, *usable.problems])  # who is lost may be why
        raise
    problems = (*usable.problems, *lesions.problems)
    return replace(usable, notes=lesions.notes, problems=problems)


def _needs_synthetic(settings: Settings, card: DetectorCard | None) -> bool:
    fitted = card is None and set(settings.training_set) != {"real"}
    return fitted or "pseudonormal" in settings.detectors


def _tell_subjects(
    settings: Settings, subjects: Subjects, card: DetectorCard | None, voice: Voice
) -> None:
    """Print whom the run would use, and by which images."""
    controls, patients = subjects.controls, subjects.patients
    if not _needs_synthetic(settings, card):
        controls, patients = (
            tuple(replace(one, synthetic=None) for one in group) for group in (controls, patients)
        )
    used = [one for one in controls if one.pet is not None or one.synthetic is not None]
    told = list(subjects.notes)
    told += [f"sub-{one.label}: not used, no real PET" for one in controls if one not in used]
    told += [problem.sentence for problem in subjects.problems]
    voice.tell_people(used, patients, told, settings.output_dir)


def _close_dry(usable: Subjects, early: Sequence[Problem], voice: Voice) -> int:
    """Say the last lines of a dry run; return the exit code that the run would have at best."""
    _tell(voice, usable.notes, usable.problems)
    troubled = {f"sub-{problem.subject}" for problem in (*early, *usable.problems)}
    voice.close(
        f"mri2pet: {len({one.label for one in usable.patients})} patients would be mapped, "
        f"{tell_troubled(sorted(troubled))}; this was a dry run, and nothing was written"
    )
    return PARTIAL if troubled else DONE


@dataclass(frozen=True)
class _Outcome:
    """What a run has seen, and what is to be told of it."""

    seen: Sequence[Seen]
    notes: Sequence[str]
    problems: Sequence[Problem]


def _detect(run: GroupRun, subjects: Subjects, card: DetectorCard | None, voice: Voice) -> _Outcome:
    """Store, fit or apply, and map."""
    settings = run.settings
    pictures = take_pictures(
        run.screening, subjects, run.runner, synthetic=_needs_synthetic(settings, card)
    )
    early = [*subjects.problems, *pictures.problems]
    stopped = settings.stop_on_first_crash and pictures.problems
    notes = [*subjects.notes, *pictures.notes]
    _tell(voice, notes, early)  # before plans: who is lost may be why they cannot be made
    if stopped or not pictures.patients:
        raise error_of(early)
    plans = _plans(run, pictures, card)
    more = [note for plan in plans for note in plan.notes]
    _tell(voice, more, [])
    notes += more
    late = _problems(_run(run, plans), plans)
    there, unread = _read_all(plans, settings.output_dir / "logs")
    late += unread
    _tell(voice, [], late)
    lost = _tell_lost_lesions(there)
    _tell(voice, lost, [])
    return _Outcome(there, [*notes, *lost], [*early, *late])


def _read_all(plans: Sequence[SetPlan], logs: Path) -> tuple[list[Seen], list[Problem]]:
    """Read what was seen of everyone; a file that cannot be read is its owner's problem."""
    seen, problems = list[Seen](), list[Problem]()
    for sighting in (sighting for plan in plans for sighting in plan.sightings):
        try:
            one = read_seen(sighting)
        except Exception as error:  # of any kind: it is this participant's, and no one else's
            label = sighting.who.who.label
            problems.append(problem_of(error, label, f"sub-{label}", logs))
            continue
        if one is not None:
            seen.append(one)
    return seen, problems


def _tell_lost_lesions(seen: Sequence[Seen]) -> list[str]:
    """Tell of lesions that are in no curve: those off the grid, and those that no PET covers."""
    counts = {one.sighting.who.who.label: one.not_covered for one in seen if one.not_covered}
    uncovered = [
        f"sub-{label}: {count} lesion(s) lie where the PET does not cover the brain; in no curve"
        for label, count in sorted(counts.items())
    ]
    lost = {one.sighting.who.who.label for one in seen if one.lesions == 0 and not one.not_covered}
    return uncovered + [
        f"sub-{label}: its mask of lesions marks no voxel of the grid; in no curve"
        for label in sorted(lost)
    ]


def _tell(voice: Voice, notes: Sequence[str], problems: Sequence[Problem]) -> None:
    for note in notes:
        voice.say(note)
    for problem in problems:
        voice.fail(problem.sentence)


def _run(run: GroupRun, plans: Sequence[SetPlan]) -> list[Crash]:
    for plan in plans:
        for sighting in plan.sightings:
            for path in sighting.stale:
                path.unlink(missing_ok=True)
            remove_partials(sighting.paths.table.parent)
    labels = {plan.graph.name: plan.name for plan in plans}
    return run.runner.run([plan.graph for plan in plans], labels, _words(plans))


def _plans(run: GroupRun, pictures: Pictures, card: DetectorCard | None) -> list[SetPlan]:
    folder = run.settings.detector
    if folder is None or card is None:
        return list(plan_sets(run, pictures))
    return [plan_applied(run, folder, card, pictures)]


def _words(plans: Sequence[SetPlan]) -> dict[str, str]:
    words = {"brain": "common brain", "publish": "detectors written"}
    names = {name.split(".")[-1] for plan in plans for name in plan.graph.list_node_names()}
    for name in names:
        kind, *numbers = name.split("_")
        if kind == "slab":
            words[name] = f"one-class SVMs of fold {numbers[0]}, slab {numbers[1]}"
        elif kind == "encoder":
            words[name] = f"encoder of fold {numbers[0]}"
        elif kind == "norm":
            words[name] = f"norm of fold {numbers[0]}"
    return words


def _problems(crashes: Sequence[Crash], plans: Sequence[SetPlan]) -> list[Problem]:
    """Say of each crash whose it is: a participant's, or a whole training set's."""
    owners: Mapping[str, str] = {
        f"{one.detector}_{one.who.real.name}": one.who.who.label
        for plan in plans
        for one in plan.sightings
        if one.who.real is not None
    }
    problems = []
    for crash in crashes:
        parts = [part.removesuffix("_wf").removesuffix("_t1w") for part in crash.node.split(".")]
        who = next((owners[part] for part in parts if part in owners), "")
        place = f"sub-{who}" if who else parts[1] if len(parts) > 1 else parts[0]
        problems.append(Problem(who, f"{place}: {crash.sentence}", crash.exit_code))
    return problems


def _finish(run: GroupRun, outcome: _Outcome, told: Told, voice: Voice) -> list[Problem]:
    """Write tables and reports; give what went wrong with reports."""
    settings, output_dir = run.settings, run.screening.output_dir
    refresh_dataset(output_dir)
    with locked(output_dir):
        write_detections(
            output_dir, outcome.seen, most=settings.clusters, applied=settings.detector
        )
        scored = scored_in(output_dir, run.screening.dataset, outcome.seen)
        grid = GridSettings(settings.template, settings.bounding_box, settings.grid_resolution)
        write_run(output_dir, replace(scored, grid=grid))
    sentences = [problem.sentence for problem in outcome.problems]
    whole: Told = {
        **told, "problems": sentences, "notes": outcome.notes, "settings": vars(settings)
    }  # fmt: skip
    problems = _report(settings, voice, whole)
    patients = {one.sighting.who.who.label for one in outcome.seen if not one.sighting.control}
    return problems + _report_patients(settings, patients, voice)


def _report_patients(settings: Settings, patients: Collection[str], voice: Voice) -> list[Problem]:
    """Write the reports of patients again: they tell of anomalies now."""
    template = prepare_template(settings)
    told = dict.fromkeys(sorted(patients), Told())
    return report_subjects(settings.output_dir, told, template.reference, voice)


def _report(settings: Settings, voice: Voice, told: Told) -> list[Problem]:
    """Write ``group.html``; where that fails, tables and the patients' reports stand."""
    output_dir = settings.output_dir
    try:
        write_group_report(
            output_dir, template=settings.template, resolution=settings.grid_resolution, **told
        )
    except Exception as error:  # of any kind: it is only the report
        problems = [problem_of(error, "", "group.html", output_dir / "logs")]
        _tell(voice, [], problems)
        return problems
    return []


def _report_again(settings: Settings, voice: Voice) -> int:
    refuse_without_results(settings, "--reports-only")
    run = last_run(settings.output_dir)
    if run.grid is not None:  # which may be another than this command line's
        x0, y0, z0, x1, y1, z1 = run.grid.bounding_box
        settings = replace(
            settings, template=run.grid.template, bounding_box=(x0, y0, z0, x1, y1, z1),
            resolution=run.grid.resolution,
        )  # fmt: skip
    path = settings.output_dir / "group.html"
    if settings.dry_run:
        voice.close(f"mri2pet: the report would be written; it is {path}")
        return DONE
    problems = _report(settings, voice, Told())
    patients = {one.participant for one in run.maps if not one.control}
    problems += _report_patients(settings, patients, voice)
    voice.close(f"mri2pet: reports written, {len(problems)} failed; see {path}")
    return PARTIAL if problems else DONE


def _close(settings: Settings, outcome: _Outcome, voice: Voice) -> int:
    """Print the first cluster of each patient, and the last line; return the exit code."""
    for name, lines in top_clusters(outcome.seen).items():
        voice.say(f"first cluster, {name}")
        for line in lines:
            voice.say(f"  {line}")
    mapped = {one.sighting.who.who.label for one in outcome.seen if not one.sighting.control}
    report: Path = settings.output_dir / "group.html"
    voice.close(
        f"mri2pet: {len(mapped)} patients mapped, {len(outcome.problems)} problems; the report "
        f"is {report}"
    )
    if not outcome.problems:
        return DONE
    return PARTIAL if mapped else error_of(outcome.problems).exit_code
