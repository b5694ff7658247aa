"""Plans of the images that detectors are trained on and applied to: sets, folds and names."""

import re
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from bids_app.arguments import LESIONS
from bids_app.derivatives.detections import (
    native_brain,
    native_t1w,
    t1w_to_template,
    template_to_t1w,
)
from bids_app.derivatives.find import LesionMask, Preprocessed, find_lesion_mask, no_mask_at_all
from bids_app.derivatives.paths import coverage_path, sidecar_path
from bids_app.derivatives.tables import read_columns
from bids_app.detection.card import DetectorCard, covariates_of
from bids_app.detection.clusters import names_beside, read_labels
from bids_app.detection.covariates import (
    FEWEST_BESIDE,
    Cell,
    Description,
    beyond_controls,
    describe_covariates,
    describe_doubtful_numbers,
    describe_single_levels,
    encode,
    is_age,
    is_in_years,
    missing_code,
    unseen_levels,
)
from bids_app.errors import (
    MissingInputError,
    Mri2petError,
    UnusableDataError,
    UsageError,
    name_some,
)
from bids_app.files import Json, read_json
from bids_app.nifti import Image, check_labels, inspect, load
from bids_app.plan.cohort import Participant, Subjects
from bids_app.plan.problems import Problem, refuse_other_grids
from bids_app.plan.study import Study, seed_of
from bids_app.settings import Settings
from bids_app.templates import coarse_atlas
from bids_app.visit import label_of
from bids_app.workflows.training import Fold, StoredImage

FEWEST = 2  # controls in the training part of a fold, because pairs need two
LARGEST_LESION = 1.0  # litres; a hemisphere has about half of that; our choice
LEAST_INSIDE = 0.5  # share of a mask that lies in the brain, or else a note says so; our choice
VOLUMES = "pictures"  # folder of stored volumes, in the work folder


def _name(path: Path, kind: str) -> str:
    stem = path.name.partition("_space-")[0]
    safe = re.sub(r"[^0-9A-Za-z]", lambda found: "_" if found[0] in "-_" else "__", stem)
    return f"{kind}_{safe}"


def plan_storage(
    study: Study, subjects: Iterable[Participant], *, synthetic: bool, t1w: bool = False
) -> list[StoredImage]:
    """List the images to store for subjects, with a folder for each.

    Parameters
    ----------
    study : Study
        Common parameters of the run.
    subjects : iterable of Participant
        Controls and patients.
    synthetic : bool
        Whether synthetic PETs are needed, too.
    t1w : bool
        Whether the T1w is needed beside each PET.
    """
    images = {}  # by name, because two PETs of a visit share a synthetic PET
    for subject in subjects:
        pets = [] if subject.pet is None else [("real", subject.pet, subject.session)]
        if synthetic and subject.synthetic is not None:
            pets.append(("synthetic", subject.synthetic, subject.visit.session))
        for kind, path, session in pets:
            name = _name(path, kind)
            images[name] = StoredImage(
                name,
                subject.label,
                session,
                {"pet": path} | ({"t1w": subject.visit.t1w} if t1w else {}),
                ("pet",) if kind == "real" else (),
                subject.visit.brain_mask,
                study.work_dir / VOLUMES / name,
                coverage_path(path) if kind == "real" else None,
                stacked=t1w,
            )
    return list(images.values())


def join_stored(subject: Participant, stored: Mapping[str, StoredImage]) -> Participant:
    """Add its stored images to a participant; None for those that could not be stored."""
    synthetic = None
    if subject.synthetic is not None:
        synthetic = stored.get(_name(subject.synthetic, "synthetic"))
    pet = None if subject.pet is None else stored.get(_name(subject.pet, "real"))
    if pet is not None:
        pet = replace(pet, synthetic=synthetic)
    return replace(subject, stored_pet=pet, stored_synthetic=synthetic)


def join_cohort(cohort: Subjects, stored: Mapping[str, StoredImage]) -> Subjects:
    """Add stored images to a cohort; controls need a stored PET, and patients a stored real one."""
    controls = [join_stored(control, stored) for control in cohort.controls]
    patients = [join_stored(patient, stored) for patient in cohort.patients]
    return replace(
        cohort,
        controls=tuple(c for c in controls if c.stored_pet or c.stored_synthetic),
        patients=tuple(patient for patient in patients if patient.stored_pet),
    )


def assume_cohort(study: Study, cohort: Subjects, *, synthetic: bool) -> Subjects:
    """Return the cohort as if all images had been stored; nothing is stored."""
    images = plan_storage(study, [*cohort.controls, *cohort.patients], synthetic=synthetic)
    return join_cohort(cohort, {image.name: image for image in images})


def choose_training_images(
    training_set: str, controls: Sequence[Participant], synthetic_controls: str
) -> list[StoredImage]:
    """Select the images of a training set.

    Parameters
    ----------
    training_set : {"real", "hybrid", "synthetic"}
        Real PETs, both kinds, or synthetic ones.
    controls : sequence of Participant
        All controls.
    synthetic_controls : {"t1w-only", "all"}
        Whether the synthetic PET of controls without a real one is used, or that of all.

    Raises
    ------
    UnusableDataError
        If there are no images of a kind that the set needs.
    """
    real = [control.stored_pet for control in controls if control.stored_pet is not None]
    synthetic = [
        control.stored_synthetic
        for control in controls
        if control.stored_synthetic is not None
        and (synthetic_controls == "all" or control.pet is None)
    ]
    if training_set != "synthetic" and not real:
        raise UnusableDataError(
            f"training set {training_set}: no control has a real PET; run the participant level "
            "on some who have one, or choose --training-set synthetic"
        )
    if training_set != "real" and not synthetic:
        raise UnusableDataError(
            f"training set {training_set}: no control without a real PET has a synthetic one; run "
            "the participant level on such controls, or choose --synthetic-controls all"
        )
    parts = {"real": real, "hybrid": [*real, *synthetic], "synthetic": synthetic}
    return parts[training_set]


def refuse_folds(folds: int, controls: int) -> None:
    """Check that a number of controls can be divided into a number of folds.

    Raises
    ------
    UsageError
        If there are fewer than two folds.
    UnusableDataError
        If there are fewer controls than folds.
    """
    if folds < FEWEST:
        raise UsageError(f"--folds {folds}: leaving controls out needs at least {FEWEST} folds")
    if controls < folds:
        raise UnusableDataError(
            f"{controls} control(s) with a PET are fewer than --folds {folds}; "
            "choose fewer folds, or add controls"
        )


def assign_folds(controls: Sequence[Participant], folds: int, seed: int) -> dict[str, int]:
    """Assign controls to folds: those with a real PET evenly, then those without.

    Returns
    -------
    dict
        Label → number, from 1, of the fold that leaves this control out.

    Raises
    ------
    UsageError, UnusableDataError
        See :func:`refuse_folds`.
    """
    real = sorted({control.label for control in controls if control.stored_pet is not None})
    others = sorted({control.label for control in controls} - set(real))
    refuse_folds(folds, len(real) + len(others))
    random = np.random.default_rng(seed)
    order = [part[k] for part in (real, others) for k in random.permutation(len(part))]
    return {label: place % folds + 1 for place, label in enumerate(order)}


def split(
    trained: Sequence[StoredImage],
    controls: Sequence[Participant],
    fold_of: Mapping[str, int],
    folds: int,
    seed: int,
) -> list[Fold]:
    """Divide images into the training images and the held-out images of each fold.

    Parameters
    ----------
    trained : sequence of StoredImage
        Training set.
    controls : sequence of Participant
        Controls whose real PETs are scored by the fold that leaves them out, whether they are in
        the training set or not.
    fold_of : mapping
        Result of :func:`assign_folds`.
    folds, seed : int
        Number of folds; seed of all randomness.

    Raises
    ------
    UnusableDataError
        If a fold is left with fewer than two controls to train on.
    """
    parts, people = [], len({image.participant for image in trained})
    more = f", or choose --folds {people}" if folds < people > FEWEST else ""
    scored = [control.stored_pet for control in controls if control.stored_pet is not None]
    for number in range(1, folds + 1):
        training = [image for image in trained if fold_of[image.participant] != number]
        held_out = [image for image in scored if fold_of[image.participant] == number]
        count = len({image.participant for image in training})
        if count < FEWEST:
            raise UnusableDataError(
                f"fold {number} has {count} control(s) to train on, but needs {FEWEST}; add "
                f"controls{more}"
            )
        parts.append(Fold(number, training, held_out, seed_of(seed, "encoder", number)))
    return parts


def list_training_controls(
    trained: Sequence[StoredImage], controls: Sequence[Participant], fold_of: Mapping[str, int]
) -> list[dict[str, object]]:
    """List the images that detectors were trained on, as on their card."""
    makers = {control.label: control.maker for control in controls}
    rows = list[dict[str, object]]()
    for image in trained:
        maker = None if image.real else makers[image.participant]
        rows.append(
            {
                "participant": image.participant,
                "session": image.session,
                "synthetic": not image.real,
                "generator": "" if maker is None else maker.name,
                "generator_sha256": "" if maker is None else maker.sha256,
                "fold": fold_of[image.participant],
            }
        )
    return rows


def keep_with_t1w(patients: Sequence[Participant]) -> tuple[list[Participant], list[Problem]]:
    """Keep patients whose results can be resampled to their T1w; return problems of the others."""
    absent = {
        visit: path
        for visit in dict.fromkeys(patient.visit for patient in patients)
        for path in (template_to_t1w(visit), native_t1w(visit))
        if not path.is_file()
    }
    problems = [_problem(visit, _absent(path)) for visit, path in absent.items()]
    return [patient for patient in patients if patient.visit not in absent], problems


def mask_on_grid(study: Study, subjects: Sequence[Participant]) -> Path | None:
    """Return the first brain mask that lies on the grid, or None if there is none."""
    masks = {subject.label: subject.visit.brain_mask for subject in subjects}
    lost = {problem.subject for problem in refuse_other_grids(masks.items(), study.grid)}
    return next((mask for label, mask in masks.items() if label not in lost), None)


def _absent(path: Path) -> MissingInputError:
    return MissingInputError(f"{path}: no such file; run the participant level again")


def _problem(visit: Preprocessed, error: Mri2petError) -> Problem:
    return Problem(visit.subject, f"sub-{visit.subject}: {error}", error.exit_code)


@dataclass(frozen=True)
class Lesions:
    """Lesion masks by visit of a patient, with notes about them and about patients without one."""

    masks: Mapping[Preprocessed, LesionMask]
    notes: tuple[str, ...] = ()
    problems: tuple[Problem, ...] = ()


def find_masks(settings: Settings, patients: Sequence[Participant]) -> Lesions:
    """Find masks of lesions, if the settings name a dataset of lesion masks.

    Parameters
    ----------
    settings : Settings
        Settings of the run.
    patients : sequence of Participant
        Patients to be mapped.

    Raises
    ------
    MissingInputError
        If the dataset does not exist, or has no mask of any of the patients.
    """
    root = dict(settings.derivatives).get(LESIONS)
    if root is None:
        return Lesions({})
    masks: dict[Preprocessed, LesionMask] = {}
    notes, problems = list[str](), list[Problem]()
    for visit in dict.fromkeys(patient.visit for patient in patients):
        try:
            mask, remarks = _usable_mask(root, visit, settings)
        except Mri2petError as error:
            if not root.is_dir():
                raise
            problems.append(_problem(visit, error))
            continue
        notes.append(_describe_mask(visit, mask))
        if mask is not None:
            masks[visit] = mask
            notes += remarks
    if patients and not (masks or problems):
        raise no_mask_at_all(root, settings.template)
    return Lesions(masks, tuple(notes), tuple(problems))


def refuse_knowledge(settings: Settings, patients: Sequence[Participant]) -> Lesions:
    """Check that the atlas and the lesion masks can be used, before anything is computed.

    Notes are about lesions, and about how the atlas's header is interpreted.

    Raises
    ------
    Mri2petError
        If a file or folder in the settings does not exist, or cannot be used.
    """
    of_atlas = check_atlas(settings)
    lesions = find_masks(settings, patients)
    return replace(lesions, notes=(*of_atlas, *lesions.notes))


def keep_usable(study: Study, cohort: Subjects, *, synthetic: bool) -> Subjects:
    """Keep subjects with images on the run's grid, and patients who also have files for their T1w.

    Only headers are checked: an image may turn out to be damaged later. ``problems`` are those
    found here, without those that the subjects had before.
    """
    patients, problems = keep_with_t1w(cohort.patients)

    def misfits(subject: Participant, *images: Path | None) -> list[Problem]:
        named = [(subject.label, image) for image in images if image is not None]
        found = refuse_other_grids(named, study.grid)
        problems.extend(found)
        return found

    def keep(subjects: Iterable[Participant]) -> tuple[Participant, ...]:
        fit = [s for s in subjects if not misfits(s, s.visit.brain_mask, s.pet)]
        return tuple(
            replace(s, synthetic=None, maker=None) if synthetic and misfits(s, s.synthetic) else s
            for s in fit
        )

    controls, kept = keep(cohort.controls), keep(patients)
    once = tuple(dict.fromkeys(problems))  # PETs of a visit share its other images
    return replace(cohort, controls=controls, patients=kept, problems=once)


def _usable_mask(
    root: Path, visit: Preprocessed, settings: Settings
) -> tuple[LesionMask | None, list[str]]:
    """Find and check the lesion mask of a visit, and return it with remarks."""
    mask = find_lesion_mask(root, visit, settings.template)
    if mask is not None:
        image = check_labels(mask.path, orientation=settings.assume_orientation)
        litres = float(np.count_nonzero(np.nan_to_num(image.data)) * np.prod(image.zooms) * 1e-6)
        if litres > LARGEST_LESION:
            raise UnusableDataError(
                f"{mask.path}: marks {litres:.1f} litres, more than any lesion; if it is inverted, "
                "save 1 in the lesion and 0 elsewhere"
            )
        if not mask.in_template:
            _refuse_unreachable(mask, visit, settings.template)
        return mask, [*image.notes, *_describe_outside(image, mask, visit)]
    return None, []


def _describe_outside(image: Image, mask: LesionMask, visit: Preprocessed) -> list[str]:
    """Describe a mask that lies mostly outside the brain, as with a wrong header."""
    path = visit.brain_mask if mask.in_template else native_brain(visit)
    if not path.is_file():
        return []
    brain = load(path)
    points = np.argwhere(np.nan_to_num(image.data) > 0)
    matrix = np.linalg.inv(brain.affine) @ image.affine
    places = np.rint(points @ matrix[:3, :3].T + matrix[:3, 3]).astype(int)
    within = ((places >= 0) & (places < brain.data.shape)).all(axis=1)
    inside = int((brain.data[tuple(places[within].T)] > 0).sum())
    if inside >= LEAST_INSIDE * len(points):
        return []
    share = f"{100 * inside / len(points):.0f} % of {mask.path.name}"
    return [f"{label_of(visit)}: only {share} lie in the brain; check its sform and qform"]


def _refuse_unreachable(mask: LesionMask, visit: Preprocessed, template: str) -> None:
    """Check that a transform leads from the raw T1w of a mask to the template.

    A T1w that was taken over in MNI space has one, but it is the identity, from MNI space, not from
    the raw T1w.
    """
    if _read_native(visit).get("InMNISpace") is True:
        raise UnusableDataError(
            f"{mask.path}: was drawn on the raw T1w, but the preprocessed T1w of this visit is in "
            "MNI space, and no transform between the two is known; resample the mask to MNI "
            f"space, and name it space-{template}"
        )
    if not t1w_to_template(visit).is_file():
        raise _absent(t1w_to_template(visit))


def _read_native(visit: Preprocessed) -> Json:
    """Read the sidecar of the T1w on its own grid, if there is one."""
    sidecar = sidecar_path(native_t1w(visit))
    return read_json(sidecar) if sidecar.is_file() else {}


def _describe_mask(visit: Preprocessed, mask: LesionMask | None) -> str:
    label = label_of(visit)
    if mask is None:
        return f"{label}: no lesion mask, so not included in any curve"
    if mask.in_template:
        manner, app = "resampled", None
    else:
        manner, app = "resampled from the T1w", _read_native(visit).get("TakenFrom")
    doubt = f"; this T1w was taken from {app}: check that the mask fits it" if app else ""
    if not mask.in_template and visit.session is not None and "_ses-" not in mask.path.name:
        doubt += f"; its name has no session: check that it was drawn on the T1w of {label}"
    source = f"{mask.path.name}, {manner} to the grid of the template"
    return f"{label}: lesions are those of {source}{doubt}"


def atlas_of(settings: Settings) -> tuple[Path, Path] | None:
    """Return the image and the names of the given atlas, or else of the app's own if it fits."""
    if settings.atlas is not None:
        return settings.atlas
    coarse = coarse_atlas(settings.template)
    return None if coarse is None else (coarse, names_beside(coarse))


def check_atlas(settings: Settings) -> tuple[str, ...]:
    """Check that the atlas can be used; return notes on how its header is interpreted."""
    if settings.atlas is None:
        return ()
    image, names = settings.atlas
    check_labels(image, orientation=settings.assume_orientation)
    read_labels(names)
    notes = inspect(image, orientation=settings.assume_orientation).notes
    drawn = re.match(r"tpl-([A-Za-z0-9]+)_", image.name)  # TemplateFlow's naming
    if drawn is None or drawn[1] == settings.template:
        return notes
    return (
        *notes,
        f"{image.name}: was drawn on {drawn[1]}, but images are on {settings.template}; near the "
        "borders of a region, its neighbour may be named instead",
    )


def take_covariates(settings: Settings, cohort: Subjects, card: DetectorCard | None) -> Subjects:
    """Add covariates to a cohort; subjects without a value are left out, with a problem for each.

    Parameters
    ----------
    settings : Settings
        Settings of the run.
    cohort : Subjects
        Subjects who may take part.
    card : DetectorCard or None
        Card of detectors that were trained before, which determines the covariates.

    Raises
    ------
    UsageError
        If a column does not exist.
    UnusableDataError
        If a covariate is the same in all controls, or if detectors that were trained before use
        others than the settings.
    """
    description = None if card is None else _description_of(settings, card)
    names = list(settings.covariates) if description is None else list(description)
    if not names:
        return cohort
    cells = read_columns(settings.output_dir, names)
    real = {control.label for control in cohort.controls if control.pet is not None}
    used = [c for c in cohort.controls if c.label in real or settings.training_set != ("real",)]
    rows, notes = dict[str, list[float]](), list[str]()
    years = _in_years(names, [cells.get(c.label, {}) for c in used], description)
    controls, problems = _with_cells(used, cells, names, years)
    patients, lost = _with_cells(cohort.patients, cells, names, years)
    problems += lost
    notes += _describe_codes([*controls, *patients], cells, names)
    notes += _describe_repeated(patients, names)
    if description is None:
        # A set of real PET knows nothing of controls without one
        known = [
            c.label for c in controls if c.label in real or "real" not in settings.training_set
        ]
        columns = {name: [cells[label][name] for label in known] for name in names}
        description = _describe(columns)
        notes += [
            f"--covariates: {sentence}; if they are codes, list them under Levels in the raw "
            "participants.json, and run the participant level again"
            for sentence in describe_doubtful_numbers(columns)
        ]
        notes += [
            f"--covariates: {sentence}, so its effect is estimated from one PET, and about half of "
            "it is removed; add such controls, or leave the covariate out"
            for sentence in describe_single_levels(columns)
        ]
    for participant in [*controls, *patients]:
        try:
            rows[participant.label] = encode(cells[participant.label], description)
        except ValueError as error:
            fault = UnusableDataError(f"--covariates: {error}")
            problems.append(_problem(participant.visit, fault))
            continue
        notes += [
            f"sub-{participant.label}: {sentence}; its expected PET is an extrapolation"
            for sentence in beyond_controls(cells[participant.label], description)
        ]
    return replace(
        cohort,
        controls=tuple(c for c in cohort.controls if c.label in rows or c not in used),
        patients=tuple(patient for patient in patients if patient.label in rows),
        notes=(*cohort.notes, *dict.fromkeys(notes)),
        problems=(*cohort.problems, *{problem.sentence: problem for problem in problems}.values()),
        covariates=rows,
        description=description,
    )


def described(cohort: Subjects, trained: Sequence[StoredImage]) -> dict[str, object]:
    """Return the fields of a detector's card about covariates, with those of its controls."""
    if not cohort.covariates:
        return {}
    rows = [list(cohort.covariates[image.participant]) for image in trained]
    return {"covariates": dict(cohort.description), "covariate_rows": rows}


def _description_of(settings: Settings, card: DetectorCard) -> Description:
    description = covariates_of(card)
    if settings.covariates and set(settings.covariates) != set(description):
        names = ", ".join(description) if description else "none"
        raise UnusableDataError(
            f"{settings.detector}: was trained with other covariates ({names}); leave --covariates "
            "out, or train it again"
        )
    return description


def _in_years(
    names: Iterable[str], controls: Sequence[Mapping[str, Cell]], known: Description | None
) -> list[str]:
    """Find the columns that have ages in years, by those of controls, here or of a detector."""
    ages = []
    for name in names:
        cells: list[object] = [row.get(name) for row in controls]
        if known is not None:
            cells = [known[name].get(bound) for bound in ("low", "high")]
        if is_in_years(name, [cell for cell in cells if isinstance(cell, float)]):
            ages.append(name)
    return ages


def _with_cells(
    participants: Sequence[Participant],
    cells: Mapping[str, Mapping[str, Cell]],
    names: Sequence[str],
    years: Collection[str],
) -> tuple[list[Participant], list[Problem]]:
    """Keep participants for whom all covariates are known; those in years have to be ages."""
    kept, problems = list[Participant](), list[Problem]()
    for participant in participants:
        own = cells.get(participant.label, {})
        absent = [name for name in names if name not in own]
        wrong = [
            f"{name} {cell:g}"
            for name in years
            if isinstance(cell := own.get(name), float) and not is_age(cell)
        ]
        if absent:
            error = UnusableDataError(
                f"participants.tsv has n/a in {', '.join(absent)}, which --covariates names; fill "
                "it in, or leave the covariate out"
            )
        elif wrong:
            error = UnusableDataError(
                f"participants.tsv has {', '.join(wrong)}, which is not an age in years; correct "
                "it or write n/a, and run the participant level again"
            )
        else:
            kept.append(participant)
            continue
        problems.append(_problem(participant.visit, error))
    return kept, problems


def _describe_codes(
    participants: Sequence[Participant],
    cells: Mapping[str, Mapping[str, Cell]],
    names: Sequence[str],
) -> list[str]:
    """Describe numbers that may be codes for missing values."""
    notes = []
    for name in names:
        values = {one.label: cells[one.label][name] for one in participants}
        code = missing_code([cell for cell in values.values() if isinstance(cell, float)])
        if code is not None:
            labels = sorted(f"sub-{label}" for label, cell in values.items() if cell == code)
            notes.append(
                f"--covariates: {name} is {code:g} in {name_some(labels)}, far from all others; if "
                "it stands for a missing value, write n/a in the raw participants.tsv, and run the "
                "participant level again"
            )
    return notes


def _describe_repeated(patients: Sequence[Participant], names: Sequence[str]) -> list[str]:
    """Describe patients with several PETs, for whom ``participants.tsv`` has one value each."""
    counts = Counter(patient.label for patient in patients)
    return [
        f"sub-{label}: {', '.join(names)} of participants.tsv counts for all {count} PETs; if it "
        "was different at one, write that value there, run the participant level again, and map "
        "that session alone (--session-label)"
        for label, count in counts.items()
        if count > 1
    ]


def _describe(controls: Mapping[str, Sequence[Cell]]) -> Description:
    try:
        return describe_covariates(controls)
    except ValueError as error:
        raise UnusableDataError(
            f"--covariates: {error}, so its effect cannot be estimated; correct participants.tsv "
            "and run the participant level again, or leave it out"
        ) from error


def check_covariates(cohort: Subjects, folds: Sequence[Fold]) -> list[str]:
    """Check that each fold has enough controls for the covariates; note levels that it lacks.

    Raises
    ------
    UnusableDataError
        If there are fewer than three controls beyond the number of coded covariates.
    """
    size, notes = len(next(iter(cohort.covariates.values()), ())), list[str]()
    for fold in folds if size else ():
        labels = sorted({image.participant for image in fold.training})
        number = len(labels)
        if number < size + FEWEST_BESIDE:
            raise UnusableDataError(
                f"--covariates {' '.join(cohort.description)}: the {number} controls of fold "
                f"{fold.number} are too few for a regression on {size} column(s), "
                f"{size + FEWEST_BESIDE} are needed; leave covariates out, choose more --folds, or "
                "add controls"
            )
        rows = np.array([cohort.covariates[label] for label in labels])
        notes += [
            f"--covariates: fold {fold.number} is trained on no control with {level}, so it cannot "
            "remove its effect; check the spelling, add such controls, or leave the covariate out"
            for level in unseen_levels(rows, cohort.description)
        ]
    return notes
