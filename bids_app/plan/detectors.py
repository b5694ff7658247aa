"""Plans of training sets, fitted or applied: from settings and stored images to workflows."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from nipype.pipeline.engine import Workflow

from bids_app.derivatives.description import compare_versions, dataset_names
from bids_app.derivatives.detections import (
    DETECTORS_FOLDER,
    Origin,
    anomaly_paths,
    control_average_paths,
    describe_card,
    describe_control_averages,
    native_t1w,
    root_of,
    template_to_t1w,
)
from bids_app.derivatives.find import times_mean_of_image
from bids_app.derivatives.paths import uri_of
from bids_app.derivatives.sidecars import Sidecar
from bids_app.detection.card import (
    DetectorCard,
    EncoderSpec,
    card_sha256,
    other_clusters,
    read_card,
    spec_to_dict,
)
from bids_app.detection.detectors import (
    CHANNELS,
    DEFAULT_DETECTORS,
    DETECTORS,
    DIRECTIONS,
    detector_of,
    needing_synthetic,
)
from bids_app.detection.normative import ZSCORE_FWHM
from bids_app.detection.slabs import cut_slabs, thickness_of
from bids_app.errors import Mri2petError, UnusableDataError, UsageError
from bids_app.files import object_at, place_in
from bids_app.generators import is_one_of
from bids_app.plan.cohort import (
    Participant,
    Subjects,
    SyntheticMaker,
    describe_windows,
    usual_window,
)
from bids_app.plan.group import (
    assign_folds,
    atlas_of,
    check_covariates,
    choose_training_images,
    described,
    list_training_controls,
    split,
)
from bids_app.plan.study import Study
from bids_app.settings import Settings
from bids_app.templates import coarse_atlas
from bids_app.workflows.detection import (
    PACKED,
    Applied,
    Clustering,
    Fitting,
    ScoredImage,
    smoothing_of,
)
from bids_app.workflows.execution import label_nodes
from bids_app.workflows.group import init_applied_set_wf, init_training_set_wf
from bids_app.workflows.training import Fold, StoredImage

Planned = tuple[Workflow, list[ScoredImage], list[str]]  # workflow of a set, scored images, notes


BRAIN_SHARE = 0.9  # of controls; our choice
BYTES = 4  # per float
CLUSTERS = "clusters"  # folder of the clusters of all images, in the work folder
CHECKS = "checks"  # folder of the comparisons of synthetic with real PET, there
# Keys among a card's parameters
GENERATORS, TIMES_MEAN, WINDOW = "synthetic_generators", "times_mean", "window_after_injection"
INTENDED_USE = (
    "Mapping deviations from healthy controls in FDG PET acquired and preprocessed like the "
    "training set. For research only; not a basis for decisions about a patient."
)


def resolve_detectors(settings: Settings, card: DetectorCard | None) -> Settings:
    """Resolve the detectors of a run and the options of their scores that the settings leave open.

    Parameters
    ----------
    settings : Settings
        Settings of the run.
    card : DetectorCard or None
        Card of detectors that were trained before, whose options cannot be changed.

    Raises
    ------
    UnusableDataError
        If those were trained with other options than the settings request, or by a version that did
        not record them.
    """
    if card is None:
        usual = (
            name
            for name in DEFAULT_DETECTORS
            if not (DETECTORS[name].mirrored and _is_skewed(settings))
        )
        return replace(
            settings,
            detectors=settings.detectors if settings.detectors else tuple(usual),
            direction=settings.direction_of_scores,
            score_smoothing=settings.fwhm_of_scores,
            channels=settings.channels if settings.channels else CHANNELS[0],
        )
    direction, fwhm = card.parameters.get("direction"), card.parameters.get("score_fwhm")
    smoothed = "svm" in _methods_of(card.detectors)
    if direction not in DIRECTIONS or (smoothed and not isinstance(fwhm, (int, float))):
        raise UnusableDataError(
            f"{settings.detector}: its card, of mri2pet {card.version}, does not record in which "
            "direction uptake is abnormal and how scores were smoothed; train it again"
        )
    if not smoothed:  # the other options have no effect on norms
        fwhm = settings.score_smoothing
    channels = _channels_of(card) if smoothed else settings.channels
    options = (settings.direction, settings.score_smoothing, settings.channels)
    recorded = (direction, fwhm, channels)
    if any(option not in (None, value) for option, value in zip(options, recorded, strict=True)):
        others = f" --score-smoothing {fwhm} --channels {channels}" if smoothed else ""
        raise UnusableDataError(
            f"{settings.detector}: was made with --direction {direction}{others}, as were the "
            "scores of its held-out controls; leave these options out, or train it again"
        )
    return replace(
        settings,
        detectors=settings.detectors if settings.detectors else card.detectors,
        direction=direction,
        score_smoothing=None if fwhm is None else float(str(fwhm)),
        channels=channels,
    )


def _methods_of(detectors: Iterable[str]) -> set[str]:
    return {detector_of(name).method for name in detectors}


def _channels_of(card: DetectorCard) -> str:
    """Return the --channels that a detector was trained with; the PET alone for old detectors."""
    channels = object_at(card.parameters, "encoder").get("channels", 1)
    return CHANNELS[1] if channels == len(CHANNELS) else CHANNELS[0]


def encodes_t1w(settings: Settings) -> bool:
    """Return whether a detector of a run uses the T1w beside the PET."""
    return "svm" in _methods_of(settings.detectors) and settings.channels == CHANNELS[1]


def _is_skewed(settings: Settings) -> bool:
    """Return whether the template is asymmetric, as all are that do not say otherwise."""
    return not settings.template.endswith("Sym")


def encoder_spec(settings: Settings) -> EncoderSpec:
    """Return the spec of the encoder, with less training for a sloppy run."""
    spec = EncoderSpec(channels=2 if settings.channels == CHANNELS[1] else 1)
    return replace(spec, epochs=5, pairs_per_epoch=2000) if settings.sloppy else spec


def _fitting_of(
    study: Study,
    settings: Settings,
    threads: int,
    images: int,
    covariates: Mapping[str, Sequence[float]],
) -> Fitting:
    """Collect the parameters of fitting; ``images`` is the maximum number of images of a fold."""
    slabs = cut_slabs(study.grid.shape[2], thickness_of(study.space.resolution))
    spec = encoder_spec(settings)
    area = study.grid.shape[0] * study.grid.shape[1]
    return Fitting(
        encoder=spec_to_dict(spec),
        nu=settings.nu,
        slabs=[(slab.first, slab.last) for slab in slabs],
        fwhm=ZSCORE_FWHM,
        direction=settings.direction_of_scores,
        covariates=covariates,
        atlas=coarse_atlas(settings.template),
        checks=study.work_dir / CHECKS,
        threads=threads,
        mem_gb=1 + images * area * spec.latents * BYTES / 2**30,  # for one slice at a time
    )


def _clustering_of(settings: Settings, cohort: Subjects) -> Clustering:
    """Collect the parameters of the search for clusters."""
    atlas = atlas_of(settings)
    return Clustering(
        fwhm=settings.fwhm_of_scores,
        extent=settings.cluster_extent,
        minimum_volume=settings.min_cluster_size,
        max_clusters=settings.clusters,
        atlas=cohort.atlas,
        names=None if atlas is None or cohort.atlas is None else atlas[1],
    )


def refuse_settings(settings: Settings) -> None:
    """Check settings that no controls could satisfy, before anything is computed.

    Raises
    ------
    UsageError
        If a detector is requested without a training set that it can be fitted to, or one that
        compares left with right on a template that is not symmetric.
    """
    for detector in settings.detectors:
        if DETECTORS[detector].mirrored and _is_skewed(settings):
            raise UsageError(
                f"--detectors {detector} compares left with right, and {settings.template} is not "
                "symmetric; run the participant level with a symmetric template"
            )
        fitting = DETECTORS[detector].training_sets
        if not set(fitting) & set(settings.training_set):
            raise UsageError(
                f"--detectors {detector} compares with controls who have a real PET; add "
                f"{' or '.join(fitting)} to --training-set"
            )


def plan_sets(
    study: Study, settings: Settings, cohort: Subjects, *, threads: int
) -> Iterator[Planned]:
    """Plan each training set in the settings: its workflow, the images it scores, and notes.

    Parameters
    ----------
    study, settings : Study, Settings
        Common parameters and settings of the run.
    cohort : Subjects
        Subjects with stored images.
    threads : int
        Number of threads per node.

    Raises
    ------
    UsageError
        If there are fewer than two folds.
    UnusableDataError
        If there are too few controls, or a set has none.
    """
    fold_of = assign_folds(cohort.controls, study.folds, study.seed)
    for name in settings.training_set:
        trained = choose_training_images(name, cohort.controls, settings.synthetic_controls)
        images = len(trained) + len(cohort.patients)
        fitting = _fitting_of(study, settings, threads, images, cohort.covariates)
        yield _plan_set(
            name, study, settings, cohort, trained=trained, fold_of=fold_of, fitting=fitting
        )


def refuse_sets(study: Study, settings: Settings, cohort: Subjects) -> list[str]:
    """Check that these subjects can fill training sets and folds, before anything is computed.

    Returns the notes of :func:`plan_sets` on subjects and folds.

    Parameters
    ----------
    study, settings : Study, Settings
        Common parameters and settings of the run.
    cohort : Subjects
        All subjects who may take part.

    Raises
    ------
    UsageError, UnusableDataError
        See :func:`plan_sets`.
    """
    fold_of, notes = assign_folds(cohort.controls, study.folds, study.seed), list[str]()
    for name in settings.training_set:
        trained = choose_training_images(name, cohort.controls, settings.synthetic_controls)
        for detector in detectors_of(name, settings):
            notes += _folds_of(detector, study, trained, fold_of, cohort)[2]
    return list(dict.fromkeys(notes))


def refuse_applied(
    study: Study, settings: Settings, cohort: Subjects, folder: Path, card: DetectorCard
) -> list[str]:
    """Check that some patient has the images that detectors trained before need.

    Returns the notes of :func:`plan_applied`.

    Raises
    ------
    UnusableDataError
        See :func:`plan_applied`.
    """
    notes = [
        *describe_version(card, study.versions["mri2pet"]),
        *_describe_not_applied(folder, card, settings),
        *_describe_namesakes(folder, card, cohort, study.output_dir),
        *_describe_other_clusters(card, settings),
    ]
    for detector in detectors_to_apply(card, settings):
        notes += _usable_by(detector, cohort)[1]
    return notes


def detectors_of(training_set: str, settings: Settings) -> list[str]:
    """List the detectors that can be fitted to a training set."""
    return [name for name in settings.detectors if training_set in DETECTORS[name].training_sets]


def _folds_of(
    detector: str,
    study: Study,
    trained: Sequence[StoredImage],
    fold_of: Mapping[str, int],
    cohort: Subjects,
) -> tuple[Subjects, list[Fold], list[str]]:
    """Return the subjects that a detector scores, its folds, and notes."""
    usable, notes = _usable_by(detector, cohort)
    used = trained
    if DETECTORS[detector].synthetic:
        used = [image for image in trained if image.synthetic is not None]
        _refuse_mixed_generators(detector, usable)
    folds = split(used, usable.controls, fold_of, study.folds, study.seed)
    return usable, folds, [*notes, *check_covariates(cohort, folds)]


def _describe_replaced(folder: Path, settings: Settings) -> list[str]:
    """Describe detectors of an earlier run that are removed, but not replaced by new ones."""
    try:
        card = read_card(folder)
    except Mri2petError:
        return []  # there are none, or they are incomplete
    lost = [detector for detector in card.detectors if detector not in settings.detectors]
    if not lost:
        return []
    return [
        f"{folder}: this run removes what an earlier run has left there ({', '.join(lost)}); to "
        "keep detectors, copy the folder before a run"
    ]


def _plan_set(
    name: str,
    study: Study,
    settings: Settings,
    cohort: Subjects,
    *,
    trained: Sequence[StoredImage],
    fold_of: Mapping[str, int],
    fitting: Fitting,
) -> Planned:
    folder = study.output_dir / DETECTORS_FOLDER / name
    version = study.versions["mri2pet"]
    card = describe_card(study.output_dir, folder, dataset=study.dataset, version=version)
    root = root_of(study.output_dir, name, primary=name == settings.training_set[0])
    folds, scored = dict[str, list[Fold]](), list[ScoredImage]()
    notes = _describe_replaced(folder, settings)
    by_label = {control.label: control.maker for control in cohort.controls}
    makers = [by_label[image.participant] for image in trained if not image.real]
    times_mean = times_mean_of_image(trained[0].volumes["pet"])  # equal for all: choose_subjects
    window = usual_window(image.volumes["pet"] for image in trained if image.real)
    parameters = {
        **_parameters(settings, fitting, detectors_of(name, settings)),
        TIMES_MEAN: times_mean,
        **({} if window is None else {WINDOW: [*window]}),
        **described(cohort, trained),
    }
    for detector in detectors_of(name, settings):
        usable, folds[detector], more = _folds_of(detector, study, trained, fold_of, cohort)
        notes += more
        if name == "real" and DETECTORS[detector].method == "svm":
            folds[detector] = list(_add_compared(folds[detector], cohort, settings))
        origin = _origin(study, settings, cohort, detector, name, card=card)
        scored += _score_images(study, origin, root, usable, folds[detector])
        if DETECTORS[detector].synthetic:
            compared = [control.maker for control in usable.controls]
            parameters[GENERATORS] = generators_of(compared)
            makers += compared
    values = {
        **_card(study, name),
        "detectors": tuple(folds),
        "controls": list_training_controls(trained, cohort.controls, fold_of),
        "slabs": fitting.slabs,
        "parameters": parameters,
        "makers": describe_makers(makers),
    }
    averages = zip(
        control_average_paths(root, study.space),
        _describe_averages(name, study, cohort, trained, times_mean),
        strict=True,
    )
    graph = init_training_set_wf(
        trained,
        folds,
        scored,
        fitting,
        _clustering_of(settings, cohort),
        folder=folder,
        card=values,
        averages=list(averages),
        share=BRAIN_SHARE,
        name=f"{name}_wf",
    )
    label_nodes(graph, owner=name, label=name, part=name)
    return graph, scored, notes


def _describe_averages(
    name: str, study: Study, cohort: Subjects, trained: Sequence[StoredImage], times_mean: float
) -> list[Sidecar]:
    """Describe the mean and the SD of the PET of a training set."""
    return describe_control_averages(
        [(uri_of(image.volumes["pet"], study.output_dir), not image.real) for image in trained],
        study.space,
        controls=len({image.participant for image in trained}),
        training_set=name,
        version=study.versions["mri2pet"],
        times_mean=times_mean,
        covariates=tuple(cohort.description),
    )


def _add_compared(folds: Iterable[Fold], cohort: Subjects, settings: Settings) -> Iterator[Fold]:
    """Add the synthetic PET of other training sets to folds of real PET, for comparison."""
    images = {
        image.name: image
        for name in settings.training_set
        for image in choose_training_images(name, cohort.controls, settings.synthetic_controls)
        if not image.real
    }
    for fold in folds:
        known = {image.participant for image in fold.training}
        compared = [image for image in images.values() if image.participant not in known]
        yield replace(fold, compared=compared if fold.validation else ())


def checks_of(settings: Settings, work_dir: Path) -> list[Path]:
    """List the files in which folds compare synthetic with real PET; they may not exist."""
    return [work_dir / CHECKS / f"fold-{fold}.json" for fold in range(1, settings.folds + 1)]


def _usable_by(detector: str, cohort: Subjects) -> tuple[Subjects, list[str]]:
    """Keep subjects with both real and synthetic PET if a detector needs both; note the others."""
    if not DETECTORS[detector].synthetic:
        return cohort, []
    controls, patients = (
        [subject for subject in group if subject.stored_pet]
        for group in (cohort.controls, cohort.patients)
    )
    kept = replace(
        cohort,
        controls=tuple(control for control in controls if control.stored_synthetic),
        patients=tuple(patient for patient in patients if patient.stored_synthetic),
    )
    if not kept.patients:
        raise UnusableDataError(
            f"detector {detector}: no patient has a synthetic PET; run the participant level on "
            "patients without --stage preprocess"
        )
    return kept, [
        f"sub-{subject.label}: not used by {detector}, no synthetic PET"
        for subject in (*controls, *patients)
        if not subject.stored_synthetic
    ]


def generators_of(makers: Iterable[SyntheticMaker | None]) -> dict[str, list[str]]:
    """Return the generators of synthetic PETs: name → SHA-256 of their weights.

    The SHA-256 is left out for a cross-validation, whose weights differ by fold.
    """
    known = {(maker.name, maker.sha256) for maker in makers if maker is not None}
    return {
        name: sorted({sha256 for other, sha256 in known if other == name and sha256})
        for name in sorted({name for name, _ in known})
    }


def describe_makers(makers: Iterable[SyntheticMaker | None]) -> list[dict[str, str]]:
    """Describe each generator of synthetic PETs once, for the card of a detector."""
    known = {
        (maker.name, maker.trained_on, maker.intended_use) for maker in makers if maker is not None
    }
    names = ("name", "trained_on", "intended_use")
    return [dict(zip(names, values, strict=True)) for values in sorted(known)]


def refuse_card(
    folder: Path, card: DetectorCard, settings: Settings, patients: Sequence[Participant]
) -> None:
    """Check that detectors trained before can be applied, before anything is computed.

    Parameters
    ----------
    folder, card : Path, DetectorCard
        Folder and card of the detectors.
    settings : Settings
        Settings of the run.
    patients : sequence of Participant
        Patients to apply them to.

    Raises
    ------
    UnusableDataError
        If none of the requested detectors is there, a patient is one of its controls, the PET of a
        patient is on another scale than those of the controls, or a synthetic PET to compare with
        was made by another generator.
    """
    detectors = detectors_to_apply(card, settings)
    if not detectors:
        raise UnusableDataError(
            f"{folder}: contains {', '.join(card.detectors)}; choose --detectors from these"
        )
    labels = {control.participant for control in card.controls}
    both = ", ".join(
        sorted({f"sub-{patient.label}" for patient in patients if patient.label in labels})
    )
    if both and _is_of_dataset(folder, card, settings.output_dir):
        raise UnusableDataError(
            f"{folder}: was trained on {both}, now selected as patients; correct --patient-query"
        )
    _refuse_other_scales(folder, card, patients)
    for detector in needing_synthetic(detectors):
        _refuse_other_generators(detector, folder, card, patients)


def describe_other_windows(card: DetectorCard, patients: Sequence[Participant]) -> list[str]:
    """Describe patients whose PET was measured at another time than those of a detector's controls.

    See :func:`bids_app.plan.cohort.describe_windows`.
    """
    match card.parameters.get(WINDOW):
        case [int() | float() as start, int() | float() as end]:
            return describe_windows(patients, (float(start), float(end)))
    return []


def _is_of_dataset(folder: Path, card: DetectorCard, output_dir: Path) -> bool:
    """Return whether a detector's controls belong to a dataset, which may have been renamed."""
    made_here = place_in(output_dir / DETECTORS_FOLDER, folder) is not None
    return made_here or is_one_of(card.dataset, dataset_names(output_dir))


def detectors_to_apply(card: DetectorCard, settings: Settings) -> list[str]:
    """List the detectors on a card that the settings request."""
    return [detector for detector in settings.detectors if detector in card.detectors]


def _refuse_other_scales(folder: Path, card: DetectorCard, patients: Sequence[Participant]) -> None:
    for patient in patients:
        if patient.pet and times_mean_of_image(patient.pet) != card.parameters.get(TIMES_MEAN):
            raise UnusableDataError(
                f"{patient.pet}: is not on the scale (IntensityScaling in its sidecar) of the "
                f"controls' PET in {folder}; run the participant level again with --paper if it "
                "was used for them, and without it if not"
            )


def _refuse_other_generators(
    detector: str, folder: Path, card: DetectorCard, patients: Sequence[Participant]
) -> None:
    known = object_at(card.parameters, GENERATORS)
    for patient in patients:
        maker = patient.maker
        if maker is None:
            continue
        digests = known.get(maker.name)
        if digests is None or (digests and maker.sha256 and maker.sha256 not in digests):
            raise UnusableDataError(
                f"{patient.synthetic}: made by generator {maker.name}, but {detector} in {folder} "
                "compares with controls whose synthetic PET was made by another; synthesize with "
                "the same generator, or choose other --detectors"
            )


def _refuse_mixed_generators(detector: str, cohort: Subjects) -> None:
    """Check that one generator has made the synthetic PET of patients and of controls.

    Differences between synthetic and real PET depend on the generator. Weights of one generator
    differ between folds, and are not compared.
    """
    by_name: dict[str, Path] = {}
    for subject in (*cohort.controls, *cohort.patients):
        if subject.maker is not None and subject.synthetic is not None:
            by_name.setdefault(subject.maker.name, subject.synthetic)
    if len(by_name) > 1:
        (name, one), (other, another), *_ = by_name.items()
        raise UnusableDataError(
            f"{one.name} and {another.name}: made by different generators, {name} and {other}, but "
            f"{detector} compares patients with controls; synthesize all with the same generator, "
            "or choose other --detectors"
        )


def _origin(
    study: Study,
    settings: Settings,
    cohort: Subjects,
    detector: str,
    training_set: str,
    *,
    card: dict[str, object],
) -> Origin:
    return Origin(
        study.output_dir,
        detector,
        training_set,
        study.versions["mri2pet"],
        card,
        settings.direction_of_scores,
        smoothing_of(detector, settings.fwhm_of_scores),
        tuple(cohort.description),
    )


def _score_images(
    study: Study, origin: Origin, root: Path, cohort: Subjects, folds: Sequence[Fold]
) -> list[ScoredImage]:
    """List the images that a detector scores, with their rows in the scores and paths of results.

    Without folds, only patients are scored.
    """
    scored = []
    for row, patient in enumerate(cohort.patients):
        if patient.stored_pet is not None:
            visit = patient.visit
            image = _score_image(study, origin, root, patient.stored_pet, row=row, fold=None)
            sidecars = {
                f"{name}_in_t1w": origin.in_t1w(sidecar, image.paths[name], visit)
                for name, sidecar in image.sidecars.items()
            }
            scored.append(
                replace(
                    image,
                    paths={
                        **image.paths,
                        "t1w": native_t1w(visit),
                        "template_to_t1w": template_to_t1w(visit),
                    },
                    sidecars={**image.sidecars, **sidecars},
                    lesions=cohort.lesions.get(visit.t1w),
                    places=image.clusters.parent / "T1w" / image.clusters.name,
                )
            )
    return scored + [
        _score_image(study, origin, root, image, row=row, fold=fold.number)
        for fold in folds
        for row, image in enumerate(fold.validation, start=len(cohort.patients))
    ]


def _score_image(
    study: Study, origin: Origin, root: Path, image: StoredImage, *, row: int, fold: int | None
) -> ScoredImage:
    pet = image.volumes["pet"]
    paths = anomaly_paths(root, pet, origin.detector, study.space)
    statmap = origin.statmap(pet, study.space)
    statmap["Fold"] = "mean over all" if fold is None else fold
    return ScoredImage(
        training_set=origin.training_set,
        detector=origin.detector,
        image=image,
        row=row,
        fold=fold,
        paths=paths,
        sidecars={"statmap": statmap, "labels": origin.labels(paths["statmap"], study.space)},
        clusters=study.work_dir
        / CLUSTERS
        / origin.training_set
        / origin.detector
        / f"{image.name}.json",
    )


def _parameters(
    settings: Settings, fitting: Fitting, detectors: Iterable[str]
) -> dict[str, object]:
    """Return the parameters of detectors for their card, without those that none of them has."""
    of_methods: dict[str, dict[str, object]] = {
        "svm": {
            "nu": settings.nu,
            "gamma": "scale",
            "score_fwhm": settings.fwhm_of_scores,
            "encoder": dict(fitting.encoder),
        },
        "norm": {"fwhm": fitting.fwhm},
    }
    parameters: dict[str, object] = {
        "brain_share": BRAIN_SHARE,
        "direction": fitting.direction,
        "cluster_extent": settings.cluster_extent,
        "min_cluster_size": settings.min_cluster_size,
    }
    for method in sorted(_methods_of(detectors)):
        parameters |= of_methods[method]
    return parameters


def _card(study: Study, name: str) -> dict[str, object]:
    """Return the fields of the card of a training set that are known from the run."""
    return {
        "name": name,
        "version": study.versions["mri2pet"],
        "template": study.space.template,
        "shape": study.grid.shape,
        "affine": study.grid.affine.tolist(),
        "folds": study.folds,
        "dataset": study.dataset,
        "seed": study.seed,
        "intended_use": INTENDED_USE,
        "versions": dict(study.versions),
    }


def describe_version(card: DetectorCard, version: str) -> list[str]:
    """Describe detectors trained by another version of the app, and refuse incompatible ones.

    Raises
    ------
    UnusableDataError
        See :func:`bids_app.derivatives.description.compare_versions`.
    """
    return compare_versions(
        [(f"detector {card.name}", card.version)], version, advice="to be sure, train it again"
    )


def _describe_namesakes(
    folder: Path, card: DetectorCard, cohort: Subjects, output_dir: Path
) -> list[str]:
    """Describe patients who have the same labels as controls of another dataset."""
    labels = {control.participant for control in card.controls}
    both = sorted(
        {f"sub-{patient.label}" for patient in cohort.patients if patient.label in labels}
    )
    if not both or _is_of_dataset(folder, card, output_dir):
        return []
    return [
        f"{folder}: was trained on {', '.join(both)} of the dataset {card.dataset!r}, who are "
        "assumed to be different people from the patients with these labels; if the dataset was "
        "only renamed, their maps may miss abnormalities"
    ]


def _describe_not_applied(folder: Path, card: DetectorCard, settings: Settings) -> list[str]:
    """Describe requests that detectors trained before cannot fulfil."""
    absent = [detector for detector in settings.detectors if detector not in card.detectors]
    notes = []
    if absent:
        notes.append(f"{folder}: contains no {' and no '.join(absent)}, so no such map is made")
    if settings.training_set not in (Settings.training_set, (card.name,)):
        notes.append(f"{folder}: was trained on {card.name}, which --training-set does not change")
    return notes


def _describe_other_clusters(card: DetectorCard, settings: Settings) -> list[str]:
    values = vars(settings)
    return [
        f"--{name.replace('_', '-')} is {values[name]:g}, but was {value} for the clusters of "
        "controls: patients are not compared with controls, so expected_in_control and false "
        "clusters per control are n/a, and --expected-false keeps all clusters"
        for name, value in other_clusters(card, values).items()
    ]


def applied_of(folder: Path, card: DetectorCard) -> Applied:
    """Return detectors trained before in the form that workflows need, with controls by fold."""
    members = [
        [place for place, control in enumerate(card.controls) if control.fold != fold]
        for fold in range(1, card.folds + 1)
    ]
    rows = card.parameters.get("covariate_rows", ())
    return Applied(
        folder, members, card.files.get(PACKED, ""), rows if isinstance(rows, list) else ()
    )


def plan_applied(
    study: Study,
    settings: Settings,
    cohort: Subjects,
    folder: Path,
    card: DetectorCard,
    *,
    threads: int,
) -> Planned:
    """Plan the application of detectors that were trained before; see :func:`plan_sets`.

    Parameters
    ----------
    study, settings, cohort, threads
        See :func:`plan_sets`.
    folder, card : Path, DetectorCard
        Folder and card of the detectors.

    Raises
    ------
    UnusableDataError
        If no patient has the synthetic PET that a detector compares with.
    """
    made_by = describe_card(
        study.output_dir,
        folder,
        dataset=card.dataset,
        version=card.version,
        sha256=card_sha256(folder),
    )
    notes = refuse_applied(study, settings, cohort, folder, card)
    scored = list[ScoredImage]()
    for detector in detectors_to_apply(card, settings):
        usable, _ = _usable_by(detector, cohort)
        origin = _origin(study, settings, cohort, detector, card.name, card=made_by)
        scored += _score_images(study, origin, study.output_dir, usable, [])
    fwhm = float(str(card.parameters.get("fwhm", ZSCORE_FWHM)))
    fitting = _fitting_of(study, settings, threads, len(cohort.patients), cohort.covariates)
    graph = init_applied_set_wf(
        applied_of(folder, card),
        scored,
        replace(fitting, slabs=card.slabs, fwhm=fwhm),
        _clustering_of(settings, cohort),
        name=f"{card.name}_applied_wf",
    )
    label_nodes(graph, owner=card.name, label=f"{card.name}_applied", part=card.name)
    return graph, scored, notes
