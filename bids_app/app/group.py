"""Group level: detectors trained on controls, anomaly maps and clusters of patients, and tables."""

import shutil
import time
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from math import prod
from pathlib import Path

import numpy as np
from nipype.pipeline.engine import Workflow

from bids_app.app.images import store_cohort
from bids_app.app.participant import report_all, report_subjects
from bids_app.app.run import (
    Runner,
    begin,
    close_dry,
    exit_code_of,
    prepare_template,
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
from bids_app.derivatives import description, detections
from bids_app.derivatives.description import refresh_dataset
from bids_app.detection.card import (
    DetectorCard,
    check_files,
    check_grid,
    complete_card,
    other_clusters,
    read_card,
)
from bids_app.detection.clusters import Cluster, Place, expected_in_control
from bids_app.detection.detectors import DETECTORS, needing_synthetic
from bids_app.detection.distribution import CheckedPet
from bids_app.detection.evaluation import Finding, compare, detection_curve, free_response, marks_of
from bids_app.errors import MissingInputError, Mri2petError, UnusableDataError, count_noun
from bids_app.files import locked, read_json, remove_partials
from bids_app.plan.cohort import Subjects, choose_subjects
from bids_app.plan.detectors import (
    CHECKS,
    CLUSTERS,
    checks_of,
    describe_other_windows,
    describe_version,
    detectors_of,
    detectors_to_apply,
    encoder_spec,
    plan_applied,
    plan_sets,
    refuse_applied,
    refuse_card,
    refuse_sets,
    refuse_settings,
    resolve_detectors,
)
from bids_app.plan.estimate import add_up, estimate_group
from bids_app.plan.group import (
    VOLUMES,
    Lesions,
    assume_cohort,
    choose_training_images,
    keep_usable,
    refuse_knowledge,
    take_covariates,
)
from bids_app.plan.problems import Problem, error_of, problem_of
from bids_app.plan.study import Study, grid_of, plan_study, resolve_grid
from bids_app.report.anomalies import describe_place, title_of
from bids_app.report.group import write_group_report
from bids_app.report.page import RunSummary
from bids_app.settings import Settings
from bids_app.workflows.detection import ScoredImage, init_kept_wf

CURVES = (detections.CURVE, detections.TESTS, detections.FROC)


@dataclass(frozen=True)
class ImageClusters:
    """Clusters that a detector found in one image, with known lesions and overlaps.

    Parameters
    ----------
    scored_image : ScoredImage
        Image, with its training set and detector.
    clusters : tuple of Cluster
        All clusters by rank.
    lesions : int or None
        Number of known lesions; None if unknown.
    shared : ndarray, (clusters, lesions)
        Overlap of clusters and lesions in mm³.
    places : tuple of Place or None
        Locations of the first clusters in the T1w; None if they were not resampled to it.
    above_zero : float or None
        Share of the brain that scores above 0.
    not_covered : int
        Number of lesions that the PET does not cover, which are not among ``lesions``.
    """

    scored_image: ScoredImage
    clusters: tuple[Cluster, ...]
    lesions: int | None
    shared: np.ndarray
    places: tuple[Place, ...] | None = None
    above_zero: float | None = None
    not_covered: int = 0

    @property
    def row(self) -> tuple[str, str]:
        """Training set and detector."""
        return self.scored_image.training_set, self.scored_image.detector

    @property
    def subject(self) -> str:
        """Label of the participant."""
        return self.scored_image.image.participant

    def listed(self, limit: int | None = None) -> detections.Listed:
        """Return all clusters, or the first ones, as listed in tables."""
        session = self.scored_image.image.session
        return detections.Listed(
            self.subject, session, *self.row, self.clusters[:limit], self.above_zero
        )

    def finding(self) -> Finding:
        """Return the finding used in evaluation."""
        lesions = 0 if self.lesions is None else self.lesions
        session, marks = self.scored_image.image.session, marks_of(self.clusters, self.shared)
        return Finding(*self.row, self.subject, session, lesions, marks)


def read_image_clusters(scored_image: ScoredImage) -> ImageClusters | None:
    """Read the clusters that a detector found in one image; None if scoring failed.

    Raises
    ------
    UnusableDataError
        If the file was not written by this app.
    """
    if not scored_image.clusters.is_file():
        return None
    record = read_json(scored_image.clusters)
    try:
        clusters = [Cluster(**cluster) for cluster in record["clusters"]]
        lesions = record["lesions"]
        count = 0 if lesions is None else int(lesions)
        shared = np.array(record["overlaps"] if count else [], float).reshape(len(clusters), count)
        not_covered = int(record.get("lesions_not_covered", 0))
        share = record.get("above_zero")
        above_zero = None if share is None else float(share)
        regions = record["regions"] if record["regions"] else [None] * len(clusters)
        known = [
            replace(cluster, region=region, overlap=None if lesions is None else float(row.sum()))
            for cluster, region, row in zip(clusters, regions, shared, strict=True)
        ]
    except (KeyError, TypeError, ValueError) as error:
        raise UnusableDataError(
            f"{scored_image.clusters}: not the clusters of an image ({error}); delete it, and run "
            "again"
        ) from error
    return ImageClusters(
        scored_image,
        tuple(known),
        None if lesions is None else count,
        shared,
        _read_places(scored_image),
        above_zero,
        not_covered,
    )


def _read_places(scored_image: ScoredImage) -> tuple[Place, ...] | None:
    path = scored_image.places
    if path is None or not path.is_file():
        return None
    try:
        return tuple(Place(**place) for place in read_json(path)["places"])
    except (KeyError, TypeError) as error:
        raise UnusableDataError(
            f"{path}: not the places of clusters ({error}); delete it, and run again"
        ) from error


def read_checks(paths: Iterable[Path]) -> list[CheckedPet]:
    """Read how folds see synthetic PET and held-out real PET, from the files that exist.

    Raises
    ------
    UnusableDataError
        If a file was not written by this app.
    """
    rows = list[CheckedPet]()
    for path in filter(Path.is_file, paths):
        try:
            rows += [CheckedPet(**row) for row in read_json(path)["checked"]]
        except (KeyError, TypeError) as error:
            raise UnusableDataError(
                f"{path}: not a fold's comparison of PET ({error}); delete it, and run again"
            ) from error
    return rows


def scored_in(output_dir: Path, images: Iterable[ImageClusters]) -> list[detections.ScoredSubject]:
    """List what a run has scored, controls and patients, for reports."""
    return [
        detections.ScoredSubject(
            scored.image.participant,
            scored.image.session if scored.image.session else "",
            scored.training_set,
            scored.detector,
            scored.control,
            scored.paths["statmap"].relative_to(output_dir).as_posix(),
        )
        for scored in (image.scored_image for image in images)
    ]


def write_detections(
    output_dir: Path,
    images: Sequence[ImageClusters],
    *,
    max_clusters: int,
    applied: Path | None,
    comparable: bool = True,
    expected_false: float | None = None,
) -> dict[Path, int]:
    """Write the tables of patients and of controls, and the curves if lesions are known.

    If a session has several PETs, tables of all patients and curves only include the first.

    Parameters
    ----------
    output_dir : Path
        Root of the derivative dataset.
    images : sequence of ImageClusters
        Images of controls and patients, in any order.
    max_clusters : int
        Maximum number of clusters kept per patient.
    applied : Path or None
        Folder of detectors that were trained before, whose controls are used for calibration.
    comparable : bool
        Whether clusters of the controls were found in the same way; otherwise they are not used.
    expected_false : float, optional
        Maximum of the mean number of clusters with at least the same score per held-out control,
        for a patient's cluster to be kept; all are kept if no control was held out.

    Returns
    -------
    dict
        Label image of each patient → number of kept clusters, if not all are kept.
    """
    controls: dict[str, list[detections.ControlCluster]] = {}
    for name in dict.fromkeys(image.scored_image.training_set for image in images):
        folder = output_dir / detections.DETECTORS_FOLDER / name if applied is None else applied
        if applied is None:
            _complete(
                folder, [image for image in images if image.scored_image.training_set == name]
            )
        controls[name] = detections.read_control_clusters(folder) if comparable else []
    scores = {
        row: detections.control_sum_scores(controls[row[0]], row[1])
        for row in dict.fromkeys(image.row for image in images)
    }
    counts = {row: len(control_scores) for row, control_scores in scores.items()}
    patients = [
        _calibrated(image, scores[image.row]) for image in images if not image.scored_image.control
    ]
    kept = partial(_count_kept, limit=max_clusters, expected_false=expected_false)
    for patient in patients:
        _write_table(patient, kept(patient), counts[patient.row])
    first = _first_pets(patients)
    listed = [patient.listed(kept(patient)) for patient in first]
    detections.write_all_clusters(output_dir, listed, counts)
    healthy = [
        found for name in controls for found in detections.control_findings(controls[name], name)
    ]
    _write_curves(output_dir, first, healthy, max_clusters)
    return {
        patient.scored_image.paths["labels"]: kept(patient)
        for patient in patients
        if kept(patient) < min(max_clusters, len(patient.clusters))
    }


def _count_kept(patient: ImageClusters, limit: int, expected_false: float | None) -> int:
    """Count the kept clusters of a patient, which are the first ones, because ranks go by score."""
    if expected_false is None:
        return limit
    return sum(
        cluster.expected_in_control is None or cluster.expected_in_control <= expected_false
        for cluster in patient.clusters[:limit]
    )


def _complete(folder: Path, images: Iterable[ImageClusters]) -> None:
    """Write the tables of a detector's controls, and the digest of its final card in sidecars."""
    controls = [image.listed() for image in images if image.scored_image.control]
    detections.write_control_clusters(folder, controls)
    detections.write_control_maps(folder, controls)
    sha256 = complete_card(folder)
    paths = [
        path for image in images for path in image.scored_image.sidecar_paths if path.is_file()
    ]
    for path in paths if sha256 else ():
        detections.sign(path, sha256)


def _first_pets(patients: Sequence[ImageClusters]) -> list[ImageClusters]:
    """Keep the first PET of each session that has a map, the same one for all detectors."""
    first: dict[tuple[str, str | None], Path] = {}
    for patient in patients:
        visit, pet = _visit_and_pet(patient)
        first[visit] = min(first.get(visit, pet), pet)
    return [patient for patient in patients if _visit_and_pet(patient) in first.items()]


def _visit_and_pet(patient: ImageClusters) -> tuple[tuple[str, str | None], Path]:
    image = patient.scored_image.image
    return (image.participant, image.session), image.volumes["pet"]


def _write_table(patient: ImageClusters, limit: int, controls: int) -> None:
    paths, clusters = patient.scored_image.paths, patient.clusters[:limit]
    detections.write_clusters_table(paths["table"], clusters, controls)
    if patient.places is not None:
        detections.write_clusters_in_t1w(paths["table_in_t1w"], clusters, patient.places, controls)


def _calibrated(patient: ImageClusters, controls: Sequence[Sequence[float]]) -> ImageClusters:
    clusters = tuple(
        replace(cluster, expected_in_control=expected_in_control(cluster.sum_score, controls))
        for cluster in patient.clusters
    )
    return replace(patient, clusters=clusters)


def _write_curves(
    output_dir: Path, patients: Iterable[ImageClusters], healthy: Sequence[Finding], limit: int
) -> None:
    findings = [patient.finding() for patient in patients if patient.lesions]
    if not findings:
        for name in CURVES:  # from an earlier run with known lesions
            for ending in (".tsv", ".json"):
                (output_dir / f"{name}{ending}").unlink(missing_ok=True)
        return
    detections.write_curve(output_dir, detection_curve(findings, healthy, most=limit))
    detections.write_tests(output_dir, compare(findings, most=limit))
    detections.write_froc(output_dir, free_response(findings, healthy))


def top_clusters(images: Iterable[ImageClusters]) -> Mapping[str, list[str]]:
    """Describe the first cluster of each patient in a line, by detector and training set."""
    lines: dict[str, list[str]] = {}
    for image in images:
        if not image.scored_image.control:
            session = image.scored_image.image.session
            visit = image.scored_image.label + (f" ses-{session}" if session else "")
            line = f"{visit}: {_describe_first(image)}"
            lines.setdefault(title_of(*image.row), []).append(line)
    return lines


def _describe_first(patient: ImageClusters) -> str:
    if not patient.clusters:
        return "no cluster"
    first = patient.clusters[0]
    place = f"{describe_place(first)}, ({first.x:z.0f}, {first.y:z.0f}, {first.z:z.0f}) mm"
    size = f"{first.volume / 1000:.1f} cm³"
    if first.overlap is None:
        return f"{place}, {size}"
    hit = f"{first.overlap / 1000:.1f} cm³ of it in lesions" if first.overlap else "not in a lesion"
    return f"{place}, {size}, {hit}"


GRAPH = "mri2pet_group"
INTERMEDIATE = (GRAPH, VOLUMES, CLUSTERS, CHECKS)  # folders of the work folder


def group(settings: Settings, console: Console, run_record: description.RunRecord) -> int:
    """Train detectors on controls, or apply trained ones, and map anomalies of patients.

    Returns
    -------
    int
        0 if all went well, 1 if some participant or detector failed.

    Raises
    ------
    Mri2petError
        If the run cannot start, or none of its input can be used.
    """
    started = time.monotonic()
    refuse_places(settings)
    if settings.reports_only:
        return _report_again(settings, console)
    try:
        settings, grid = resolve_grid(settings)
    except MissingInputError:
        _read_detector(settings)  # an error about its grid takes precedence
        raise
    card = _read_detector(settings)
    settings = resolve_detectors(settings, card)
    version = run_record.versions["mri2pet"]
    subjects = choose_subjects(settings, controls=card is None, version=version)
    windows = [] if card is None else describe_other_windows(card, subjects.patients)
    subjects = replace(subjects, notes=(*grid, *windows, *subjects.notes))
    subjects = take_covariates(settings, subjects, card)
    if not subjects.patients:
        raise error_of(subjects.problems)
    if settings.dry_run:
        _report_subjects(settings, subjects, card, console)
    usable, lesions = _refuse(settings, card, subjects, run_record, console)
    if settings.dry_run:
        _estimate(settings, usable, card, console)
        return _close_dry(usable, subjects.problems, console)
    with begin(settings, run_record, console, results=["group"]):
        images, problems = _run_detection(
            settings,
            subjects,
            card,
            console,
            lesions=lesions,
            run_record=run_record,
            started=started,
        )
    return _close(settings, images, problems, console)


def _run_detection(
    settings: Settings,
    subjects: Subjects,
    card: DetectorCard | None,
    console: Console,
    *,
    lesions: Lesions,
    run_record: description.RunRecord,
    started: float,
) -> tuple[list[ImageClusters], list[Problem]]:
    """Run detection, write tables and reports, and delete intermediate files if nothing failed."""
    runner = Runner(settings, console, GRAPH, settings.folds * len(settings.training_set))
    study = plan_study(settings, work_dir_of(settings), run_record.versions)
    images, notes, problems = _detect(study, subjects, lesions, card, runner)
    summary = summarize_level(summarize_run(run_record, started), settings, notes, problems)
    problems += _finish(study, runner, images, summary, card)
    runner.report_used()
    if settings.clean_workdir and not problems:
        for name in INTERMEDIATE:
            shutil.rmtree(work_dir_of(settings) / name, ignore_errors=True)
    return images, problems


def _read_detector(settings: Settings) -> DetectorCard | None:
    """Read and check the detector to apply, if there is one."""
    if settings.detector is None:
        return None
    card = read_card(settings.detector)
    grid = grid_of(settings)
    check_grid(card, grid, settings.template)
    check_files(settings.detector, card)
    return card


def _refuse(
    settings: Settings,
    card: DetectorCard | None,
    subjects: Subjects,
    run_record: description.RunRecord,
    console: Console,
) -> tuple[Subjects, Lesions]:
    """Check that the run can start; return usable subjects, with notes on others, and lesions."""
    study = plan_study(settings, work_dir_of(settings), run_record.versions)
    refuse_plugin(settings)
    prepare_template(settings, write=False)  # needed for reports of patients
    if settings.detector is None or card is None:
        refuse_settings(settings)
    else:
        describe_version(card, study.versions["mri2pet"])  # for its error; notes are reported later
        refuse_card(settings.detector, card, settings, subjects.patients)
    usable = keep_usable(study, subjects, synthetic=_needs_synthetic(settings, card))
    if not usable.patients:
        raise error_of([*subjects.problems, *usable.problems])
    lesions = refuse_knowledge(settings, usable.patients)
    cohort = assume_cohort(study, usable, synthetic=_needs_synthetic(settings, card))
    notes = list[str]()
    try:
        if settings.detector is None or card is None:
            notes = refuse_sets(study, settings, cohort)
        else:
            notes = refuse_applied(study, settings, cohort, settings.detector, card)
    except Mri2petError:
        early = () if settings.dry_run else subjects.problems  # already reported by a dry run
        report_notes(console, [], [*early, *usable.problems])  # lost subjects may be the cause
        raise
    problems = (*usable.problems, *lesions.problems)
    return replace(cohort, notes=(*lesions.notes, *notes), problems=problems), lesions


def _needs_synthetic(settings: Settings, card: DetectorCard | None) -> bool:
    fitted = card is None and set(settings.training_set) != {"real"}
    return fitted or bool(needing_synthetic(settings.detectors))


def _report_subjects(
    settings: Settings, subjects: Subjects, card: DetectorCard | None, console: Console
) -> None:
    """Print the subjects that the run would use, and their images."""
    needed = _needs_synthetic(settings, card)
    sentences = [
        *subjects.notes,
        *(
            f"sub-{control.label}: not used, no real PET"
            for control in subjects.controls
            if control.pet is None and not (needed and control.synthetic)
        ),
        *(problem.sentence for problem in subjects.problems),
    ]
    used = [
        (group, subject.label, subject.session, subject.pet, subject.synthetic if needed else None)
        for group, participants in (("control", subjects.controls), ("patient", subjects.patients))
        for subject in participants
        if subject.pet or (needed and subject.synthetic)
    ]
    columns = ("group", "participant", "session", "PET", "synthetic PET")
    console.report_used(columns, used, sentences, settings.output_dir)


def _estimate(
    settings: Settings, usable: Subjects, card: DetectorCard | None, console: Console
) -> None:
    """Report the resources that a run would need."""
    spec = encoder_spec(settings)
    grid = grid_of(settings)
    names = settings.training_set if card is None else (card.name,)
    estimates = []
    for name in names:
        if card is None:
            used = detectors_of(name, settings)
            controls = len(
                choose_training_images(name, usable.controls, settings.synthetic_controls)
            )
        else:
            used, controls = detectors_to_apply(card, settings), len(card.controls)
        svms = sum(DETECTORS[detector].method == "svm" for detector in used)
        estimates.append(
            estimate_group(
                controls=controls,
                patients=len(usable.patients),
                folds=settings.folds if card is None else card.folds,
                svms=svms,
                norms=len(used) - svms,
                pairs=spec.epochs * spec.pairs_per_epoch,
                voxels=prod(grid.shape),
                applied=card is not None,
            )
        )
    jobs = settings.folds * len(names)
    report_estimate(settings, jobs, console, add_up(estimates))


def _close_dry(usable: Subjects, early: Sequence[Problem], console: Console) -> int:
    """Print the last lines of a dry run, and return the best exit code that the run could have."""
    report_notes(console, usable.notes, usable.problems)
    number = len({patient.label for patient in usable.patients})
    sentence = f"{count_noun(number, 'patient')} would be mapped"
    return close_dry(sentence, [*early, *usable.problems], console)


def _detect(
    study: Study, subjects: Subjects, lesions: Lesions, card: DetectorCard | None, runner: Runner
) -> tuple[list[ImageClusters], list[str], list[Problem]]:
    """Store, fit or apply, and map; return the clusters, notes and problems."""
    settings, console = runner.settings, runner.console
    cohort = store_cohort(
        study, subjects, runner, lesions=lesions, synthetic=_needs_synthetic(settings, card)
    )
    early = [*subjects.problems, *cohort.problems]
    stopped = settings.stop_on_first_crash and cohort.problems
    notes = [*subjects.notes, *cohort.notes]
    report_notes(console, notes, early)  # before plans, which may fail because of lost subjects
    if stopped or not cohort.patients:
        raise error_of(early)
    _, threads = runner.shares
    if settings.detector is None or card is None:
        plans = list(plan_sets(study, settings, cohort, threads=threads))
    else:
        folder = settings.detector
        plans = [plan_applied(study, settings, cohort, folder, card, threads=threads)]
    more = list(dict.fromkeys(note for _, _, notes_of_set in plans for note in notes_of_set))
    report_notes(console, more, [])
    notes += more
    scored = [image for _, images, _ in plans for image in images]
    late = _run(runner, [graph for graph, _, _ in plans], scored)
    images, unread = _read_all(scored, settings.output_dir / "logs")
    late += unread
    report_notes(console, [], late)
    lost = _describe_lost_lesions(images)
    report_notes(console, lost, [])
    return images, [*notes, *lost], [*early, *late]


def _read_all(
    scored: Sequence[ScoredImage], logs: Path
) -> tuple[list[ImageClusters], list[Problem]]:
    """Read the clusters of all images; an unreadable file is a problem of its participant only."""
    images, problems = list[ImageClusters](), list[Problem]()
    for image in scored:
        try:
            found = read_image_clusters(image)
        except Exception as error:  # of any kind: it only affects this participant
            problems.append(problem_of(error, image.image.participant, image.label, logs))
            continue
        images += [] if found is None else [found]
    return images, problems


def _describe_lost_lesions(images: Sequence[ImageClusters]) -> list[str]:
    """Describe lesions that are in no curve: outside the grid, or not covered by the PET."""
    counts = {image.subject: image.not_covered for image in images if image.not_covered}
    uncovered = [
        f"sub-{label}: {count} lesion(s) are not covered by the PET, and not included in any curve"
        for label, count in sorted(counts.items())
    ]
    lost = {image.subject for image in images if image.lesions == 0 and not image.not_covered}
    return uncovered + [
        f"sub-{label}: its lesion mask marks no voxel of the grid; not included in any curve"
        for label in sorted(lost)
    ]


def _run(
    runner: Runner, graphs: Sequence[Workflow], scored: Sequence[ScoredImage]
) -> list[Problem]:
    for image in scored:
        for path in image.stale:
            path.unlink(missing_ok=True)
        remove_partials(image.paths["table"].parent)
    for path in checks_of(runner.settings, work_dir_of(runner.settings)):
        path.unlink(missing_ok=True)
    return runner.run(graphs, {image.training_set: image.training_set for image in scored})


def _finish(
    study: Study,
    runner: Runner,
    images: Sequence[ImageClusters],
    summary: RunSummary,
    card: DetectorCard | None,
) -> list[Problem]:
    """Write tables and reports; return the problems of reports."""
    settings, console, output_dir = runner.settings, runner.console, study.output_dir
    refresh_dataset(output_dir)
    with locked(output_dir):
        kept = write_detections(
            output_dir,
            images,
            max_clusters=settings.clusters,
            applied=settings.detector,
            comparable=card is None or not other_clusters(card, vars(settings)),
            expected_false=settings.expected_false,
        )
        checked = read_checks(checks_of(settings, study.work_dir))
        detections.write_synthetic_controls(output_dir, checked)
        former = _mapped(detections.last_run(output_dir).maps)
        grid = (settings.template, settings.bounding_box, settings.grid_resolution)
        maps = scored_in(output_dir, images)
        detections.write_run(output_dir, detections.ScoredRun(study.dataset, maps, grid))
    fewer = [image.scored_image for image in images if image.scored_image.paths["labels"] in kept]
    problems = list[Problem]()
    if fewer:
        graph = init_kept_wf(
            fewer, [kept[image.paths["labels"]] for image in fewer], name="kept_wf"
        )
        problems += runner.run([graph], {})
    problems += report_level(settings, console, write_group_report, summary)
    controls = {scored.participant for scored in maps if scored.control}
    patients = _mapped(maps) | (former & controls)  # whose reports showed them as patients
    return problems + _report_patients(settings, patients, console)


def _mapped(maps: Iterable[detections.ScoredSubject]) -> set[str]:
    return {scored.participant for scored in maps if not scored.control}


def _report_patients(
    settings: Settings, patients: Collection[str], console: Console
) -> list[Problem]:
    """Rewrite the reports of patients, which now include anomalies."""
    template = prepare_template(settings)
    summaries = dict.fromkeys(sorted(patients), RunSummary())
    problems = report_subjects(settings.output_dir, summaries, template.reference, console)
    return problems + report_all(settings.output_dir, console)


def _report_again(settings: Settings, console: Console) -> int:
    refuse_without_results(settings, "--reports-only")
    run = detections.last_run(settings.output_dir)
    if run.grid is not None:  # may differ from that of this command line
        template, (x0, y0, z0, x1, y1, z1), resolution = run.grid
        settings = replace(
            settings,
            template=template,
            bounding_box=(x0, y0, z0, x1, y1, z1),
            resolution=resolution,
        )
    patients = _mapped(run.maps)

    def report() -> list[Problem]:
        problems = report_level(settings, console, write_group_report, RunSummary())
        return problems + _report_patients(settings, patients, console)

    return report_again(settings, console, report)


def _close(
    settings: Settings,
    images: Sequence[ImageClusters],
    problems: Sequence[Problem],
    console: Console,
) -> int:
    """Print the first cluster of each patient and the last line, and return the exit code."""
    kept = "" if settings.expected_false is None else " (whether or not --expected-false keeps it)"
    for name, lines in top_clusters(images).items():
        console.say(f"strongest cluster of each patient, by {name}{kept}:")
        for line in lines:
            console.say(f"  {line}")
    mapped = {image.subject for image in images if not image.scored_image.control}
    report: Path = settings.output_dir / "group.html"
    console.close(
        f"mri2pet: {count_noun(len(mapped), 'patient')} mapped, "
        f"{count_noun(len(problems), 'problem')}; the report is {report}"
    )
    return exit_code_of(problems, usable=bool(mapped))
