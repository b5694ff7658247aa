"""From settings and stored images to the graphs of training sets, fitted or applied."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from nipype.pipeline.engine import Workflow

from bids_app.app.images import StoredCohort
from bids_app.app.run import Runner
from bids_app.derivatives.description import compare_versions, dataset_names
from bids_app.derivatives.detections import (
    DETECTORS_FOLDER,
    AnomalyPaths,
    Origin,
    anomaly_paths,
    describe_card,
    native_t1w,
    root_of,
    template_to_t1w,
)
from bids_app.derivatives.paths import sidecar_path
from bids_app.derivatives.sidecars import Sidecar
from bids_app.detection.card import (
    Control,
    DetectorCard,
    EncoderSpec,
    card_sha256,
    card_values,
    read_card,
    spec_to_dict,
)
from bids_app.detection.detectors import DETECTORS, needing_synthetic
from bids_app.detection.normative import ZSCORE_FWHM
from bids_app.detection.slabs import cut_slabs, thickness_of
from bids_app.errors import Mri2petError, UnusableDataError, UsageError
from bids_app.files import place_in
from bids_app.generators import is_one_of
from bids_app.interfaces.derivatives import Output
from bids_app.plan.group import (
    GroupPlan,
    Participant,
    StoredSubject,
    Synthetic,
    TrainingImage,
    choose_training_images,
    deal,
    list_training_controls,
    split,
)
from bids_app.settings import Settings
from bids_app.workflows.detection import (
    PACKED,
    Applied,
    Clustering,
    DetectorFold,
    Fitting,
    OnT1w,
    ScoredMaps,
)
from bids_app.workflows.execution import label_nodes
from bids_app.workflows.group import (
    DetectorPlan,
    Publication,
    Target,
    init_applied_set_wf,
    init_training_set_wf,
)

BRAIN_SHARE = 0.9  # of controls; our choice
BYTES = 4  # of a float
CLUSTERS = "clusters"  # folder of what detectors saw, in the work folder
GENERATORS = "synthetic_generators"  # in a card's parameters
INTENDED_USE = (
    "Mapping what is unlike healthy controls in FDG PET that were scanned and prepared as those "
    "of the training set; for research. No basis for decisions about a patient."
)


@dataclass(frozen=True)
class ScoredImage:
    """An image and a detector: who, which, and where its clusters are told.

    Parameters
    ----------
    training_set, detector : str
        What scored it.
    participant : Participant
        Whose PET.
    control : bool
        Whether it is a held-out control.
    clusters : Path
        JSON.
    paths : AnomalyPaths
        Where its results go.
    sidecars : tuple of Path
        Of its images.
    places : Path or None
        JSON, of where its clusters lie on the T1w; None for controls.
    """

    training_set: str
    detector: str
    participant: Participant
    control: bool
    clusters: Path
    paths: AnomalyPaths
    sidecars: tuple[Path, ...] = ()
    places: Path | None = None

    @property
    def stale(self) -> list[Path]:
        """What an earlier run has told of it, and this one will tell again unless it fails."""
        if self.places is None:
            return [self.clusters]
        table = self.paths.table_in_t1w
        return [self.clusters, self.places, table, sidecar_path(table)]


@dataclass(frozen=True)
class TrainingSetPlan:
    """A training set: its graph, what it will have seen, and what is to be told.

    Parameters
    ----------
    name : str
        Of the training set.
    graph : Workflow
        That does it all.
    scored_images : tuple of ScoredImage
        All images and detectors.
    notes : tuple of str
        Sentences.
    """

    name: str
    graph: Workflow
    scored_images: tuple[ScoredImage, ...]
    notes: tuple[str, ...] = ()


def encoder_spec(settings: Settings) -> EncoderSpec:
    """Give the encoder's numbers, fewer for a sloppy run."""
    spec = EncoderSpec()
    return replace(spec, epochs=5, pairs_per_epoch=2000) if settings.sloppy else spec


@dataclass(frozen=True)
class GroupRun:
    """What all training sets of a run share: its numbers, its settings, what runs it."""

    group_plan: GroupPlan
    settings: Settings
    runner: Runner


def fitting_of(run: GroupRun, images: int) -> Fitting:
    """Say how detectors are fitted; ``images`` are trained on or scored in a fold, at most."""
    grid, resolution = run.group_plan.grid, run.group_plan.space.resolution
    slabs = cut_slabs(grid.shape[2], thickness_of(resolution))
    spec = encoder_spec(run.settings)
    area = grid.shape[0] * grid.shape[1]
    return Fitting(
        encoder=spec_to_dict(spec),
        nu=run.settings.nu,
        slabs=[(slab.first, slab.last) for slab in slabs],
        fwhm=ZSCORE_FWHM,
        threads=run.runner.threads,
        mem_gb=1 + images * area * spec.latents * BYTES / 2**30,  # one slice at a time
    )


def clustering_of(settings: Settings, cohort: StoredCohort) -> Clustering:
    """Say how clusters are found."""
    return Clustering(
        extent=settings.cluster_extent,
        minimum_volume=settings.min_cluster_size,
        most=settings.clusters,
        atlas=cohort.atlas,
        names=None if settings.atlas is None else settings.atlas[1],
    )


def refuse_settings(settings: Settings) -> None:
    """Refuse what no controls could be trained on, before anything is computed.

    Raises
    ------
    UsageError
        If a detector is asked for without a training set that it can be fitted to.
    """
    for detector in settings.detectors:
        fitting = DETECTORS[detector].training_sets
        if not set(fitting) & set(settings.training_set):
            raise UsageError(
                f"--detectors {detector} compares with controls who have a real PET; add "
                f"{' or '.join(fitting)} to --training-set"
            )


def plan_sets(run: GroupRun, cohort: StoredCohort) -> Iterator[TrainingSetPlan]:
    """Plan each training set that the settings name.

    Raises
    ------
    UsageError
        If there are fewer than two folds.
    UnusableDataError
        If there are too few controls, or a set has none.
    """
    settings = run.settings
    dealt = deal(cohort.controls, run.group_plan.folds, run.group_plan.seed)
    for name in settings.training_set:
        trained = choose_training_images(name, cohort.controls, settings.synthetic_controls)
        yield _plan_set(run, name, trained, dealt, cohort)


def refuse_sets(group_plan: GroupPlan, settings: Settings, cohort: StoredCohort) -> None:
    """Refuse training sets and folds that these people cannot fill, before anything is computed.

    Parameters
    ----------
    group_plan, settings : GroupPlan, Settings
        The run.
    cohort : StoredCohort
        Of all who may take part.

    Raises
    ------
    UsageError, UnusableDataError
        As :func:`plan_sets`.
    """
    dealt = deal(cohort.controls, group_plan.folds, group_plan.seed)
    for name in settings.training_set:
        trained = choose_training_images(name, cohort.controls, settings.synthetic_controls)
        for detector in _detectors_of(name, settings):
            _folds_of(detector, group_plan, trained, dealt, cohort)


def refuse_applied(card: DetectorCard, settings: Settings, cohort: StoredCohort) -> None:
    """Refuse detectors that were trained before where no patient has what they need.

    Raises
    ------
    UnusableDataError
        As :func:`plan_applied`.
    """
    for detector in _wanted(card, settings):
        _usable_by(detector, cohort)


def _detectors_of(training_set: str, settings: Settings) -> list[str]:
    """List the detectors that can be fitted to a training set."""
    return [name for name in settings.detectors if training_set in DETECTORS[name].training_sets]


def _folds_of(
    detector: str,
    group_plan: GroupPlan,
    trained: Sequence[TrainingImage],
    dealt: Mapping[str, int],
    cohort: StoredCohort,
) -> tuple[StoredCohort, list[DetectorFold], tuple[str, ...]]:
    """Say who is scored by a detector, what each fold is trained on, and what is to be told."""
    seen, told = _usable_by(detector, cohort)
    used = trained
    if DETECTORS[detector].synthetic:
        used = [image for image in trained if image.image.synthetic is not None]
    return seen, split(used, seen.controls, dealt, group_plan.folds, group_plan.seed), told


def _describe_replaced(folder: Path, settings: Settings) -> list[str]:
    """Tell which detectors of an earlier run the new ones do not replace, but remove."""
    try:
        card = read_card(folder)
    except Mri2petError:
        return []  # none, or none that is whole
    lost = [detector for detector in card.detectors if detector not in settings.detectors]
    if not lost:
        return []
    return [
        f"{folder}: holds {' and '.join(lost)} of an earlier run, which this run will remove; to "
        "keep them, stop now and copy the folder"
    ]


def _plan_set(
    run: GroupRun,
    name: str,
    trained: Sequence[TrainingImage],
    dealt: Mapping[str, int],
    cohort: StoredCohort,
) -> TrainingSetPlan:
    group_plan = run.group_plan
    folder = group_plan.output_dir / DETECTORS_FOLDER / name
    own = describe_card(
        group_plan.output_dir,
        folder,
        dataset=group_plan.dataset,
        version=group_plan.versions["mri2pet"],
    )
    primary = name == run.settings.training_set[0]
    planner = _Planner(group_plan, name, own, primary=primary)
    plans: dict[str, DetectorPlan] = {}
    scored_images: list[ScoredImage] = []
    notes = _describe_replaced(folder, run.settings)
    for detector in _detectors_of(name, run.settings):
        seen, folds, told = _folds_of(detector, group_plan, trained, dealt, cohort)
        notes += told
        plans[detector], found = planner.plan(detector, seen, folds)
        scored_images += found
    fitting = fitting_of(run, len(trained) + len(cohort.patients))
    card = _card(run, name, tuple(plans), fitting, list_training_controls(trained, dealt))
    made = [model.participant.synthetic for model in trained if model.synthetic]
    for detector in needing_synthetic(plans):
        compared = _usable_by(detector, cohort)[0].controls
        card.parameters[GENERATORS] = generators_of(compared)
        made += [comparison.participant.synthetic for comparison in compared]
    card.makers.extend(generators_in_sidecars(made))
    graph = init_training_set_wf(
        [model.image for model in trained],
        plans,
        fitting,
        clustering_of(run.settings, cohort),
        Publication(folder, card_values(card)),
        share=BRAIN_SHARE,
        name=f"{name}_wf",
    )
    label_nodes(graph, owner=name, label=name, part=name)
    return TrainingSetPlan(name, graph, tuple(scored_images), tuple(notes))


def _usable_by(detector: str, cohort: StoredCohort) -> tuple[StoredCohort, tuple[str, ...]]:
    """Keep those with a real and a synthetic PET, if a detector compares both; tell of others."""
    if not DETECTORS[detector].synthetic:
        return cohort, ()
    everyone = [*cohort.controls, *cohort.patients]
    lost = [subject for subject in everyone if subject.real and not subject.real.synthetic]
    kept = replace(
        cohort,
        controls=tuple(
            control for control in cohort.controls if control.real and control.real.synthetic
        ),
        patients=tuple(
            patient for patient in cohort.patients if patient.real and patient.real.synthetic
        ),
    )
    if not kept.patients:
        raise UnusableDataError(
            f"detector {detector}: no patient has a synthetic PET; run the participant level on "
            "them without --stage preprocess"
        )
    notes = [
        f"sub-{one.participant.label}: not used by {detector}, no synthetic PET" for one in lost
    ]
    return kept, tuple(notes)


def generators_of(people: Sequence[StoredSubject]) -> dict[str, list[str]]:
    """Tell whose synthetic PETs are used: name of the generator → SHA-256 of its weights.

    Those of a cross-validation have other weights for each fold; their SHA-256 is left out.
    """
    made = [
        subject.participant.synthetic
        for subject in people
        if subject.participant.synthetic is not None
    ]
    names = sorted({pet.generator for pet in made})
    return {
        name: sorted({pet.sha256 for pet in made if pet.generator == name and pet.sha256})
        for name in names
    }


def generators_in_sidecars(made: Iterable[Synthetic | None]) -> list[dict[str, str]]:
    """Tell what the generators of synthetic PETs are, each once: for the card of a detector."""
    known = {
        (pet.generator, pet.trained_on, pet.intended_use): None for pet in made if pet is not None
    }
    names = ("name", "trained_on", "intended_use")
    return [dict(zip(names, values, strict=True)) for values in sorted(known)]


def refuse_card(
    folder: Path, card: DetectorCard, settings: Settings, patients: Sequence[Participant]
) -> None:
    """Refuse to apply detectors where they do not fit, before anything is computed.

    Parameters
    ----------
    folder, card : Path, DetectorCard
        Of the detectors.
    settings : Settings
        Of the run.
    patients : sequence of Participant
        That they would be applied to.

    Raises
    ------
    UnusableDataError
        If none of the detectors that are wanted is there, a patient is one of its controls, or
        another generator made a synthetic PET that it would compare with.
    """
    wanted = _wanted(card, settings)
    if not wanted:
        raise UnusableDataError(
            f"{folder}: holds {', '.join(card.detectors)}; choose --detectors of those"
        )
    own = {control.participant for control in card.controls}
    both = ", ".join(
        sorted({f"sub-{patient.label}" for patient in patients if patient.label in own})
    )
    if both and _is_of_dataset(folder, card, settings.output_dir):
        raise UnusableDataError(
            f"{folder}: was trained on {both}, who would be a patient now; correct --patient-query"
        )
    for detector in needing_synthetic(wanted):
        _refuse_other_generators(detector, folder, card, patients)


def _is_of_dataset(folder: Path, card: DetectorCard, output_dir: Path) -> bool:
    """Whether controls of a detector are people of a dataset, which may have been renamed since."""
    made_here = place_in(output_dir / DETECTORS_FOLDER, folder) is not None
    return made_here or is_one_of(card.dataset, dataset_names(output_dir))


def _wanted(card: DetectorCard, settings: Settings) -> list[str]:
    return [detector for detector in settings.detectors if detector in card.detectors]


def _refuse_other_generators(
    detector: str, folder: Path, card: DetectorCard, patients: Sequence[Participant]
) -> None:
    known = card.parameters.get(GENERATORS, {})
    for patient in patients:
        made = patient.synthetic
        if made is None:
            continue
        digests = known.get(made.generator) if isinstance(known, dict) else None
        if digests is None or (digests and made.sha256 and made.sha256 not in digests):
            raise UnusableDataError(
                f"{made.path}: made by generator {made.generator}, but {detector} in {folder} "
                "compares with controls whose synthetic PET another one made; synthesize with the "
                "same generator, or choose other --detectors"
            )


@dataclass(frozen=True)
class _Planner:
    """Plans the detectors of one training set: who is scored by which fold, what goes where."""

    group_plan: GroupPlan
    training_set: str
    card: Sidecar
    primary: bool

    def plan(
        self, detector: str, cohort: StoredCohort, folds: Sequence[DetectorFold]
    ) -> tuple[DetectorPlan, list[ScoredImage]]:
        """Plan one detector; without folds, patients alone are scored."""
        patients = [patient.real for patient in cohort.patients if patient.real is not None]
        everyone = [*cohort.patients, *cohort.controls]
        by_name = {subject.real.name: subject for subject in everyone if subject.real is not None}
        places: list[tuple[str, int, int | None]] = [
            (patient.name, row, None) for row, patient in enumerate(patients)
        ]
        for fold in folds:
            rows = enumerate(fold.held_out, start=len(patients))
            places += [(one.name, row, fold.number) for row, one in rows]
        targets, scored_images = [], []
        for name, row, number in places:
            one = by_name[name]
            lesions = None if number else cohort.lesions.get(one.participant.visit.t1w)
            target, scored_image = self._target(detector, one, row, number, lesions)
            targets.append(target)
            scored_images.append(scored_image)
        return DetectorPlan(folds, patients, targets), scored_images

    def _target(
        self, detector: str, one: StoredSubject, row: int, fold: int | None, lesions: Path | None
    ) -> tuple[Target, ScoredImage]:
        group_plan, visit = self.group_plan, one.participant.visit
        if one.real is None or one.participant.pet is None:
            raise ValueError(f"sub-{one.participant.label} has no real PET to be scored")
        root = root_of(group_plan.output_dir, self.training_set, primary=self.primary)
        paths = anomaly_paths(root, one.participant.pet, detector, group_plan.space)
        version = group_plan.versions["mri2pet"]
        origin = Origin(group_plan.output_dir, detector, self.training_set, version, self.card)
        told = origin.statmap(one.participant.pet, group_plan.space)
        told["Fold"] = "mean over all" if fold is None else fold
        labels = origin.labels(paths.statmap, group_plan.space)
        folder = group_plan.work_dir / CLUSTERS / self.training_set / detector
        clusters = folder / f"{one.real.name}.json"
        scored = ScoredMaps(
            one.real,
            row,
            lesions,
            _output(paths.statmap, told),
            _output(paths.labels, labels),
            clusters,
        )
        carried = folder / "T1w" / clusters.name
        on_t1w = OnT1w(
            native_t1w(visit),
            template_to_t1w(visit),
            _output(paths.statmap_in_t1w, origin.in_t1w(told, paths.statmap, visit)),
            _output(paths.labels_in_t1w, origin.in_t1w(labels, paths.labels, visit)),
            carried,
        )
        target = Target(scored, fold, on_t1w if fold is None else None, one.participant.label)
        scored_image = ScoredImage(
            self.training_set,
            detector,
            one.participant,
            fold is not None,
            clusters,
            paths,
            tuple(output.sidecar_path for output in outputs_of(target)),
            carried if fold is None else None,
        )
        return target, scored_image


def outputs_of(target: Target) -> list[Output]:
    """List the images that an image of someone leads to."""
    scored, on_t1w = target.scored, target.on_t1w
    carried = [] if on_t1w is None else [on_t1w.statmap, on_t1w.labels]
    return [scored.statmap, scored.labels, *carried]


def _output(path: Path, sidecar: Sidecar) -> Output:
    return Output(path, sidecar_path(path), sidecar)


def _card(
    run: GroupRun,
    name: str,
    detectors: tuple[str, ...],
    fitting: Fitting,
    controls: tuple[Control, ...],
) -> DetectorCard:
    group_plan, settings = run.group_plan, run.settings
    rows = group_plan.grid.affine.tolist()
    return DetectorCard(
        name=name,
        version=group_plan.versions["mri2pet"],
        detectors=detectors,
        template=group_plan.space.template,
        shape=group_plan.grid.shape,
        affine=tuple(tuple(row) for row in rows),
        controls=controls,
        folds=group_plan.folds,
        slabs=tuple((first, last) for first, last in fitting.slabs),
        parameters={
            "nu": settings.nu,
            "gamma": "scale",
            "brain_share": BRAIN_SHARE,
            "fwhm": fitting.fwhm,
            "encoder": dict(fitting.encoder),
            "cluster_extent": settings.cluster_extent,
            "min_cluster_size": settings.min_cluster_size,
        },
        dataset=group_plan.dataset,
        seed=group_plan.seed,
        intended_use=INTENDED_USE,
        versions=dict(group_plan.versions),
    )


def describe_version(card: DetectorCard, version: str) -> list[str]:
    """Tell of detectors that another version of the app has trained; refuse those of some.

    Raises
    ------
    UnusableDataError
        As :func:`bids_app.derivatives.description.compare_versions`.
    """
    return compare_versions(
        [(f"detector {card.name}", card.version)], version, advice="to be sure, train it again"
    )


def _describe_namesakes(
    folder: Path, card: DetectorCard, cohort: StoredCohort, output_dir: Path
) -> list[str]:
    """Tell of patients who bear the labels of controls of another dataset."""
    own = {control.participant for control in card.controls}
    both = sorted(
        {
            f"sub-{patient.participant.label}"
            for patient in cohort.patients
            if patient.participant.label in own
        }
    )
    if not both or _is_of_dataset(folder, card, output_dir):
        return []
    return [
        f"{folder}: was trained on {', '.join(both)} of the dataset {card.dataset!r}, who are "
        "taken for others than the patients of these labels; if the dataset was only renamed, "
        "their maps show too little"
    ]


def _describe_not_applied(folder: Path, card: DetectorCard, settings: Settings) -> list[str]:
    """Tell what is asked for and cannot be had from detectors that were trained before."""
    absent = [detector for detector in settings.detectors if detector not in card.detectors]
    notes = [f"{folder}: holds no {' and no '.join(absent)}, so no map of it"] * bool(absent)
    if settings.training_set not in (Settings.training_set, (card.name,)):
        notes.append(
            f"{folder}: was trained on {card.name}, and --training-set does not change that"
        )
    return notes


def _describe_other_clusters(card: DetectorCard, settings: Settings) -> list[str]:
    wanted = {
        "cluster_extent": settings.cluster_extent,
        "min_cluster_size": settings.min_cluster_size,
    }
    return [
        f"--{name.replace('_', '-')} is {value:g}, but was {card.parameters.get(name)} where the "
        "clusters of controls were counted: expected_in_control and false clusters per control do "
        "not fit"
        for name, value in wanted.items()
        if card.parameters.get(name) != value
    ]


def applied_of(folder: Path, card: DetectorCard) -> Applied:
    """Tell graphs of detectors that were trained before: whom each fold was trained on."""
    members = [
        [place for place, control in enumerate(card.controls) if control.fold != fold]
        for fold in range(1, card.folds + 1)
    ]
    return Applied(folder, members, card.files.get(PACKED, ""))


def plan_applied(
    run: GroupRun, folder: Path, card: DetectorCard, cohort: StoredCohort
) -> TrainingSetPlan:
    """Plan the application of detectors that were trained before.

    Parameters
    ----------
    run : GroupRun
        The run.
    folder, card : Path, DetectorCard
        Of the detectors.
    cohort : StoredCohort
        Of patients.

    Raises
    ------
    UnusableDataError
        If no patient has the synthetic PET that a detector compares with.
    """
    made_by = describe_card(
        run.group_plan.output_dir,
        folder,
        dataset=card.dataset,
        version=card.version,
        sha256=card_sha256(folder),
    )
    planner = _Planner(run.group_plan, card.name, made_by, primary=True)
    plans: dict[str, DetectorPlan] = {}
    scored_images: list[ScoredImage] = []
    notes = describe_version(card, run.group_plan.versions["mri2pet"])
    notes += _describe_not_applied(folder, card, run.settings)
    notes += _describe_namesakes(folder, card, cohort, run.group_plan.output_dir)
    notes += _describe_other_clusters(card, run.settings)
    for detector in _wanted(card, run.settings):
        seen, told = _usable_by(detector, cohort)
        notes += told
        plans[detector], found = planner.plan(detector, seen, [])
        scored_images += found
    fwhm = float(str(card.parameters.get("fwhm", ZSCORE_FWHM)))
    fitting = replace(fitting_of(run, len(cohort.patients)), slabs=card.slabs, fwhm=fwhm)
    graph = init_applied_set_wf(
        applied_of(folder, card),
        plans,
        fitting,
        clustering_of(run.settings, cohort),
        name=f"{card.name}_applied_wf",
    )
    label_nodes(graph, owner=card.name, label=f"{card.name}_applied", part=card.name)
    return TrainingSetPlan(card.name, graph, tuple(scored_images), tuple(notes))
