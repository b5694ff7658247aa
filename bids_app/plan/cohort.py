"""Selection of the subjects of ``train`` and ``group``: one visit per control, and patients."""

from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import chain
from pathlib import Path

import numpy as np

from bids_app.dataset.participants import read_participants
from bids_app.derivatives.description import ANEW, compare_versions, dataset_names, version_of
from bids_app.derivatives.detections import native_t1w
from bids_app.derivatives.find import (
    DIGESTS,
    Preprocessed,
    SourceDigests,
    describe_coverage,
    find_preprocessed,
    fit_of_image,
    is_left_over,
    raw_source_of,
    source_digest_of,
    times_mean_of_image,
    verdict_of_image,
    window_of_image,
)
from bids_app.derivatives.paths import entities_of, sidecar_path
from bids_app.derivatives.sidecars import SLOPPY, read_derivative
from bids_app.derivatives.tables import Ratings, describe_unknown_columns, read_ratings, select
from bids_app.detection.detectors import needing_synthetic
from bids_app.errors import (
    MissingInputError,
    Mri2petError,
    NothingSelectedError,
    UnusableDataError,
    name_some,
)
from bids_app.files import object_at, read_json, read_tsv
from bids_app.generators import CROSSVALIDATION, describe_namesakes, has_seen, known_cards
from bids_app.plan.problems import Problem, error_of
from bids_app.settings import Settings
from bids_app.synthesis.card import Card
from bids_app.visit import label_of
from bids_app.workflows.training import StoredImage

MISSING, UNUSABLE = MissingInputError.exit_code, UnusableDataError.exit_code
ABSENT = "no T1w on this grid"
# Robust z-score beyond which a value is an outlier: Iglewicz and Hoaglin (1993), How to detect and
# handle outliers; and the ratio of SD to median absolute deviation for a Gaussian
FAR, NORMAL = 3.5, 1.4826
LEAST_SPREAD = 0.03  # SD of a correlation, because few images may agree by chance; our choice
FEWEST_FITS = 4  # PETs that can show an outlier; our choice
APART = 600.0  # s between starts, or ends, of comparable PETs; our choice
NOBODY = "no control is left after all selections; correct --control-query or the labels"


@dataclass(frozen=True)
class SyntheticMaker:
    """Generator of a synthetic PET, as named by its sidecar, which was not trained on the subject.

    Parameters
    ----------
    name, sha256 : str
        Name, and SHA-256 of the weights; the latter is empty if it differs by fold.
    trained_on, intended_use : str
        Fields of its card, copied in the sidecar; empty if they are missing there.
    """

    name: str
    sha256: str
    trained_on: str = ""
    intended_use: str = ""


@dataclass(frozen=True)
class Participant:
    """Visit of a participant, with a real PET and a synthetic one if available.

    Parameters
    ----------
    visit : Preprocessed
        T1w and brain mask on the run's grid.
    pet, synthetic : Path or None
        Real PET; PET predicted from the T1w.
    maker : SyntheticMaker or None
        Generator of the synthetic PET.
    stored_pet, stored_synthetic : StoredImage or None
        Both PETs after they have been stored, if they could be.
    """

    visit: Preprocessed
    pet: Path | None
    synthetic: Path | None = None
    maker: SyntheticMaker | None = None
    stored_pet: StoredImage | None = None
    stored_synthetic: StoredImage | None = None

    @property
    def label(self) -> str:
        """Label of the participant."""
        return self.visit.subject

    @property
    def session(self) -> str | None:
        """Session of the PET, or of the T1w if there is none."""
        return self.visit.session if self.pet is None else entities_of(self.pet).get("ses")


@dataclass(frozen=True)
class Subjects:
    """Controls and patients of a run, and what is known about them beforehand.

    Parameters
    ----------
    controls, patients : tuple of Participant
        One visit of each control; every PET of each patient.
    notes, problems : tuple
        Messages about subjects and images that are not used, or used with reservations.
    lesions : mapping
        Lesion masks on the template's grid, keyed by the T1w of the patient's visit; empty until
        they exist.
    atlas : Path or None
        Atlas labels on the grid; None until they exist.
    covariates, description : mapping
        Label → numbers of each participant, and their coding from ``participants.tsv``; see
        :mod:`bids_app.detection.covariates`. Empty without adjustment.
    """

    controls: tuple[Participant, ...]
    patients: tuple[Participant, ...] = ()
    notes: tuple[str, ...] = ()
    problems: tuple[Problem, ...] = ()
    lesions: Mapping[Path, Path] = field(default_factory=dict)
    atlas: Path | None = None
    covariates: Mapping[str, Sequence[float]] = field(default_factory=dict)
    description: Mapping[str, Mapping[str, object]] = field(default_factory=dict)


def choose_controls(settings: Settings, version: str) -> Subjects:
    """Select the controls to train generators on: those with T1w and real PET.

    One visit of each is chosen by :func:`_visit_of_each`, for ``train`` and ``group`` alike.
    ``--session-label`` excludes the PETs of all other sessions.

    Parameters
    ----------
    settings : Settings
        Settings of the run.
    version : str
        Version of the app; notes list subjects preprocessed by another version.

    Raises
    ------
    Mri2petError
        See :func:`bids_app.derivatives.tables.select`; MissingInputError if nothing was
        preprocessed or no control has a PET, NothingSelectedError if no control is left,
        UnusableDataError if one was preprocessed by an incompatible version, or all registrations
        have failed.
    """
    queried = select(settings.output_dir, settings.control_query)
    labels = {label for label in queried if _is_asked_for(label, settings)}
    labels -= set(settings.exclude_participant_label)
    if not labels:
        raise NothingSelectedError(NOBODY)
    preprocessed, failed, problems = _find(settings, labels)
    if not (preprocessed or failed or problems):
        raise MissingInputError(
            f"{settings.output_dir}: no T1w of these controls in {settings.template} at "
            f"{settings.grid_resolution:g} mm; run the participant level first"
        )
    visits = _in_sessions(preprocessed, settings)
    with_pet, _ = _look_at((visit for visit in visits if visit.pets), settings)
    chosen = _visit_of_each(with_pet)
    notes = [*chain(*failed.values()), *_describe_other_visits(visits, chosen)]
    notes += describe_unknown_columns(settings.output_dir, [settings.control_query])
    notes += [*_describe_stale(settings), *_describe_raw(chosen, settings)]
    notes += _describe_absent(labels, preprocessed, failed, problems)
    if not chosen:
        raise _no_controls_error(notes, failed, problems)
    warnings = _describe_making(chosen, chosen, settings, version)
    _refuse_mixed_scales(chosen)
    _refuse_copies(chosen)
    warnings += [f"{gap}; no training tile includes that part" for gap in _describe_gaps(chosen)]
    unknown, remarks = _unmatched(settings, queried)
    return Subjects(
        tuple(chosen),
        (),
        (*warnings, *_describe_verdicts(chosen), *_describe_misfits(chosen), *remarks, *notes),
        (*unknown, *problems),
    )


def choose_subjects(settings: Settings, *, controls: bool, version: str) -> Subjects:
    """Select the controls and patients of the group level by query and labels.

    ``--participant-label`` and ``--session-label`` select patients and their PETs. Controls are all
    that their query selects, except those of ``--exclude-participant-label``, each with a visit of
    these sessions if there is one.

    Parameters
    ----------
    settings : Settings
        Settings of the run.
    controls : bool
        Whether controls are needed; they are not for a detector that was trained before.
    version : str
        Version of the app; notes list subjects preprocessed by another version.

    Raises
    ------
    Mri2petError
        See :func:`bids_app.derivatives.tables.select`; UnusableDataError if a subject is both
        control and patient, was preprocessed by an incompatible version, or the registrations of
        all controls have failed; NothingSelectedError if no patient, or no control, is left;
        MissingInputError if all controls lack images.
    """
    patient_labels = select(settings.output_dir, settings.patient_query)
    control_labels = (
        select(settings.output_dir, settings.control_query) if controls else frozenset()
    )
    _refuse_both(control_labels & patient_labels)
    excluded = set(settings.exclude_participant_label)
    labels = {patient for patient in patient_labels - excluded if _is_asked_for(patient, settings)}
    if not labels:
        raise NothingSelectedError(
            "no patient is left after all selections; correct --patient-query or the labels"
        )
    patients, notes, problems = _patients(settings, labels)
    chosen, control_notes, control_problems = _controls(
        settings, control_labels - excluded, needed=controls
    )
    with_synthetic = [control for control in chosen if _wants_synthetic(control, settings)]
    with_synthetic += patients if needing_synthetic(settings.detectors) else []
    used = [c for c in chosen if c.pet is not None or _wants_synthetic(c, settings)] + patients
    warnings = _describe_making(used, chosen, settings, version)
    _refuse_mixed_scales([*chosen, *patients])
    _refuse_copies(chosen, patients)
    warnings += [*_describe_gaps(used), *_describe_namesakes(used, settings)]
    warnings += _describe_retrained(with_synthetic, settings)
    warnings += [*_describe_verdicts(used), *_describe_misfits(used)]
    unknown, remarks = _unmatched(settings, patient_labels, control_labels)
    queries = [settings.patient_query, *([settings.control_query] if controls else [])]
    selected = patient_labels | control_labels if controls else None
    remarks += describe_unknown_columns(settings.output_dir, queries, selected)
    remarks += [*_describe_stale(settings), *_describe_raw(used, settings)]
    return Subjects(
        tuple(chosen),
        tuple(patients),
        (*warnings, *remarks, *control_notes, *notes),
        (*unknown, *control_problems, *problems),
    )


_Failed = dict[str, list[str]]  # subject with a failed registration → notes about it


def _find(
    settings: Settings, labels: Collection[str]
) -> tuple[list[Preprocessed], _Failed, list[Problem]]:
    """Find visits whose registration has not failed; a bad file only affects its own subject.

    A subject that is in none of the visits, failures and problems has no T1w on the grid.
    """
    visits, failed, problems = list[Preprocessed](), _Failed(), list[Problem]()
    path, out = settings.ratings, settings.output_dir
    ratings = {} if path is None else read_ratings(path, out)
    for label in sorted(labels):
        try:
            found = find_preprocessed(
                settings.output_dir, settings.template, settings.grid_resolution, [label]
            )
            usable, reasons = _leave_out_failed(found)
            usable, rejected = _leave_out_rated(usable, ratings)
            reasons += rejected
        except Mri2petError as error:
            problems.append(Problem(label, f"sub-{label}: {error}", error.exit_code))
            continue
        visits += usable
        if reasons:
            failed[label] = reasons
    return visits, failed, problems


def _describe_absent(
    labels: Collection[str],
    visits: Sequence[Preprocessed],
    failed: _Failed,
    problems: Sequence[Problem],
) -> list[str]:
    found = {visit.subject for visit in visits} | {problem.subject for problem in problems}
    absent = sorted(set(labels) - found - failed.keys())
    return [f"sub-{label}: not used, {ABSENT}" for label in absent]


def _leave_out_failed(visits: Sequence[Preprocessed]) -> tuple[list[Preprocessed], list[str]]:
    """Leave out PETs whose registration has failed, or the whole visit if that of its T1w has.

    PETs left over from earlier runs, which the last run of the participant level did not select or
    could not use, are left out, too.
    """
    usable, notes = [], []
    for visit in visits:
        name = label_of(visit)
        verdict, reasons = verdict_of_image(visit.t1w)
        if verdict == "fail":
            sentence = "the registration of its T1w to the template has failed"
            notes.append(f"{name}: not used, {_with_reasons(sentence, reasons)}")
            continue
        pets = {pet: verdict_of_image(pet) for pet in visit.pets}
        lost = [pet for pet, (verdict, _) in pets.items() if verdict == "fail"]
        sentence = "its registration to the T1w has failed"
        notes += [
            f"{name}: {pet.name} is not used, {_with_reasons(sentence, pets[pet][1])}"
            for pet in lost
        ]
        left_over = [pet for pet in pets if pet not in lost and is_left_over(pet, visit.t1w)]
        notes += [
            f"{name}: {pet.name} is not used, because it was not made with its T1w, but by an "
            "earlier run, from other images or settings; delete it, or run the participant level "
            "again"
            for pet in left_over
        ]
        kept = tuple(pet for pet in pets if pet not in (*lost, *left_over))
        usable.append(replace(visit, pets=kept))
    return usable, notes


def _leave_out_rated(
    visits: Sequence[Preprocessed], ratings: Ratings
) -> tuple[list[Preprocessed], list[str]]:
    """Leave out visits that a reader has rated fail, and PETs whose own session was.

    A PET may belong to another session than the T1w it is registered to.
    """
    usable, notes = [], []
    for visit in visits:
        reason = _why_rated_out(visit.subject, visit.session, ratings)
        if reason:
            notes.append(f"{label_of(visit)}: not used, {reason}")
            continue
        reasons = {
            pet: _why_rated_out(visit.subject, entities_of(pet).get("ses"), ratings)
            for pet in visit.pets
        }
        notes += [
            f"{label_of(visit)}: {pet.name} is not used, {reason}"
            for pet, reason in reasons.items()
            if reason
        ]
        usable.append(replace(visit, pets=tuple(pet for pet in visit.pets if not reasons[pet])))
    return usable, notes


def _why_rated_out(subject: str, session: str | None, ratings: Ratings) -> str:
    """Return why a session is not used; empty if it, or else the participant, is not rated fail."""
    general = ratings.get((subject, ""), ("", ""))
    rating, comment = ratings.get((subject, session if session else ""), general)
    return _with_reasons("it was rated fail", comment) if rating == "fail" else ""


def _with_reasons(sentence: str, reasons: str) -> str:
    return f"{sentence} ({reasons})" if reasons else sentence


def _describe_verdicts(used: Sequence[Participant]) -> list[str]:
    """Describe registrations in doubt, and in one note all subjects without a verdict."""
    notes, unknown = [], []
    images = {
        image: participant
        for participant in used
        for image in (participant.visit.t1w, participant.pet)
        if image is not None
    }
    for image, participant in images.items():
        verdict, reasons = verdict_of_image(image)
        if verdict == "doubt":
            sentence = _with_reasons("its registration is in doubt", reasons)
            notes.append(f"{label_of(participant.visit)}: {image.name} is used, but {sentence}")
        elif not verdict:
            unknown.append(f"sub-{participant.label}")
    if unknown:
        notes.append(
            f"{', '.join(dict.fromkeys(unknown))}: it is unknown whether the registrations can be "
            "trusted, because an earlier version of mri2pet made them; look at the reports"
        )
    return notes


def _describe_misfits(used: Sequence[Participant]) -> list[str]:
    """Describe real PETs that fit their T1w far worse than those of most others do.

    The PET of another person often passes the verdict on its registration
    (docs/results/robustness.md).
    """
    owners = {subject.pet: subject for subject in used if subject.pet is not None}
    fits = {pet: fit for pet in owners if (fit := fit_of_image(pet)) is not None}
    if len(fits) < FEWEST_FITS:
        return []
    values = np.array([*fits.values()])
    middle = float(np.median(values))
    spread = max(NORMAL * float(np.median(np.abs(values - middle))), LEAST_SPREAD)
    return [
        f"{label_of(owners[pet].visit)}: {pet.name} is used, but fits its T1w worse than those of "
        f"the others (correlation with the uptake expected from the T1w {fit:.2f}, median "
        f"{middle:.2f}); look at whether it is of the same person, and at its registration"
        for pet, fit in fits.items()
        if fit < middle - FAR * spread
    ]


Window = tuple[float, float]  # start and end of a PET, in s after injection


def usual_window(pets: Iterable[Path]) -> Window | None:
    """Return the median window of PETs; None if it is known of none."""
    windows = [window for pet in pets if (window := window_of_image(pet)) is not None]
    if not windows:
        return None
    start, end = np.median(windows, axis=0).tolist()
    return start, end


def describe_windows(used: Iterable[Participant], usual: Window | None) -> list[str]:
    """Describe the PETs that were measured at another time after injection than is usual.

    Parameters
    ----------
    used : iterable of Participant
        Subjects; PETs of an unknown time are not mentioned.
    usual : tuple of float or None
        Median of the controls, from :func:`usual_window`.

    Returns
    -------
    list of str
        At most one sentence.
    """
    odd = []
    for subject in used:
        window = None if subject.pet is None else window_of_image(subject.pet)
        if window and usual and np.abs(np.subtract(window, usual)).max() > APART:
            odd.append(f"{label_of(subject.visit)} ({_minutes(window)})")
    if not odd or usual is None:
        return []
    return [
        "PET measured at another time after injection than those of controls (median "
        f"{_minutes(usual)}): {name_some([*dict.fromkeys(odd)])}; the pattern of uptake changes "
        "with time, so differences may be due to it; use the same time for all (--pet-frames)"
    ]


def _minutes(window: Window) -> str:
    start, end = (seconds / 60 for seconds in window)
    return f"{start:.0f} to {end:.0f} min"


def _describe_making(
    used: Sequence[Participant], controls: Sequence[Participant], settings: Settings, version: str
) -> list[str]:
    """Name subjects whose images were made by another version, coarsely, or at another time."""
    return [
        *compare_versions(_versions(used), version, advice=ANEW),
        *_describe_sloppy(used, settings),
        *describe_windows(used, usual_window(c.pet for c in controls if c.pet)),
    ]


def _describe_sloppy(used: Sequence[Participant], settings: Settings) -> list[str]:
    """Name the subjects whose images were registered coarsely, unless the run is for testing."""
    labels = [
        f"sub-{subject.label}"
        for subject in used
        if not settings.sloppy and read_derivative(subject.visit.t1w).metadata.get(SLOPPY)
    ]
    if not labels:
        return []
    return [
        "made with --sloppy, which registers coarsely and is for testing only: "
        f"{name_some([*dict.fromkeys(labels)])}; make them anew in another output folder"
    ]


def _refuse_mixed_scales(used: Sequence[Participant]) -> None:
    """Check that all PETs are on one scale: divided by the same multiple of the brain's mean."""
    images = [image for subject in used for image in (subject.pet, subject.synthetic) if image]
    by_scale = {times_mean_of_image(image): image.name for image in images}
    if len(by_scale) > 1:
        one, other, *_ = (by_scale[scale] for scale in sorted(by_scale))
        raise UnusableDataError(
            f"{one} and {other} are on different scales (IntensityScaling in their sidecars): "
            "one was made with --paper, or by an earlier version; run the participant level again "
            "for all, with --paper or without"
        )


def _refuse_copies(controls: Sequence[Participant], patients: Sequence[Participant] = ()) -> None:
    """Check that no raw image of a control is also that of somebody else.

    A PET on the T1w of another person passes most checks.
    """
    owners, known = dict[str, str](), {control.label for control in controls}
    for subject in [*controls, *patients]:
        for image in filter(None, (subject.visit.t1w, subject.pet)):
            digest = source_digest_of(image)
            other = owners.setdefault(digest, subject.label) if digest else subject.label
            if other != subject.label and other in known:
                raise UnusableDataError(
                    f"{image.name}: was made from the same raw file as an image of sub-{other}, so "
                    "one of them shows somebody other than its name says; replace the wrong raw "
                    "image and run the participant level again, or leave the wrong one out (both "
                    "if you cannot tell): --exclude-participant-label "
                    f"{subject.label} {other}"
                )


def _describe_stale(settings: Settings) -> list[str]:
    """Describe differences between the raw ``participants.tsv`` and that of the output.

    The latter, which the participant level writes, is used, because the raw dataset may be absent.
    """
    raw, out = (folder / "participants.tsv" for folder in (settings.bids_dir, settings.output_dir))
    try:
        present = [path.name.removeprefix("sub-") for path in settings.bids_dir.glob("sub-*")]
        raw_rows, _ = read_participants(settings.bids_dir, present)
        rows = {row.pop("participant_id", "").removeprefix("sub-"): row for row in read_tsv(out)}
    except (Mri2petError, OSError):
        return []  # the participant level reports the error
    both = sorted((raw_rows.keys() | set(present)) & rows.keys()) if raw_rows else []
    odd = [
        f"sub-{label}" for label in both if _known(rows[label]) != _known(raw_rows.get(label, {}))
    ]
    if not odd:
        return []
    return [
        f"{raw}: differs from {out} for {name_some(odd)}, and the latter is used; to update it, "
        "run the participant level again, which does not repeat what is complete"
    ]


def _state_of_raw(path: Path, digest: str, digests: SourceDigests) -> str:
    """Compare a raw file with the one that had a digest; git-annex may not have fetched it."""
    if path.is_file():
        return "same" if digests.of(path) == digest else "changed"
    return "unknown" if path.is_symlink() else "gone"


def _states_of_raw(
    used: Iterable[Participant], raw: Path, digests: SourceDigests
) -> Mapping[str, list[str]]:
    """List the subjects whose raw files have ``changed`` or are ``gone``."""
    states = defaultdict[str, list[str]](list)
    for subject in used:
        visit, pet = subject.visit, subject.pet
        for named, image in ((native_t1w(visit), visit.t1w), *([(pet, pet)] if pet else [])):
            try:
                source, digest = raw_source_of(named), source_digest_of(image)
                if source and digest:
                    states[_state_of_raw(raw / source, digest, digests)].append(subject.label)
            except Mri2petError:
                continue  # reported where the file is needed
    return states


def _describe_raw(used: Iterable[Participant], settings: Settings) -> list[str]:
    """Describe the images whose raw files have been replaced or removed since they were made.

    Nothing is said without the raw dataset, and of files whose content was not fetched (git-annex).
    """
    raw, out = settings.bids_dir, settings.output_dir
    if not any(raw.glob("sub-*")):
        return []
    states = _states_of_raw(used, raw, SourceDigests(raw, out / DIGESTS))
    changed, gone = (
        name_some([f"sub-{label}" for label in dict.fromkeys(labels)]) if labels else ""
        for labels in (states["changed"], states["gone"])
    )
    notes = []
    if changed:
        notes.append(
            f"{raw}: raw images of {changed} were replaced since the "
            "participant level ran, and results of the former ones are used; run it again"
        )
    if gone:
        notes.append(
            f"{raw}: no longer has raw images of {gone}, whose "
            f"results in {out} are used all the same; if these people or images were withdrawn, "
            "delete their results, or leave the people out with --exclude-participant-label"
        )
    return notes


def _known(row: Mapping[str, str]) -> dict[str, str]:
    return {name.strip(): cell for name, cell in row.items() if cell.strip() not in ("", "n/a")}


def _describe_namesakes(used: Sequence[Participant], settings: Settings) -> list[str]:
    """Describe subjects whose labels a generator in this dataset knows from another dataset."""
    names, out = dataset_names(settings.output_dir), settings.output_dir
    cards = known_cards(out)
    by_card = defaultdict[str, list[str]](list)
    for participant in used:
        if participant.maker is not None and participant.maker.sha256 in cards:
            by_card[participant.maker.sha256].append(participant.label)
    notes = (describe_namesakes(cards[key], labels, names, out) for key, labels in by_card.items())
    return [note for note in notes if note]


def _describe_retrained(used: Sequence[Participant], settings: Settings) -> list[str]:
    """Describe synthetic PETs of a generator other than the one that has its name now."""
    out = settings.output_dir
    cards = known_cards(out)
    names = {card.name for card in cards.values()}
    odd = defaultdict[str, list[str]](list)
    for subject in used:
        maker = subject.maker
        if maker is not None and maker.sha256 and maker.sha256 not in cards:
            odd[maker.name].append(f"sub-{subject.label}")
    return [
        f"synthetic PET of {name_some([*dict.fromkeys(labels)])} was made by another generator "
        f"{name} than the one in {out / 'generators'}, which may have been trained again since; "
        f"run --stage synthesize --generator {name}"
        for name, labels in odd.items()
        if name in names
    ]


def _describe_gaps(used: Sequence[Participant]) -> list[str]:
    """Describe the real PETs that do not cover the brain."""
    pets = {
        participant.pet: participant.label for participant in used if participant.pet is not None
    }
    return [f"sub-{label}: {gap}" for pet, label in pets.items() if (gap := describe_coverage(pet))]


def _look_at(
    visits: Iterable[Preprocessed], settings: Settings
) -> tuple[list[Participant], dict[Preprocessed, Mri2petError]]:
    """Find the first real and the synthetic PET of visits, and the errors of unusable ones."""
    names = dataset_names(settings.output_dir)
    cards = known_cards(settings.output_dir)
    candidates, errors = [], {}
    for visit in visits:
        synthetic, maker = None, None
        try:
            synthetic, maker = _synthetic(visit, settings.output_dir, cards, names)
        except Mri2petError as error:
            errors[visit] = error
        candidates.append(Participant(visit, next(iter(visit.pets), None), synthetic, maker))
    return candidates, errors


def _visit_of_each(candidates: Iterable[Participant]) -> list[Participant]:
    """Choose a visit per subject: the first with both PETs, or else with the real or synthetic one.

    A synthetic PET counts only if its generator was not trained on the subject.
    """
    chosen: dict[str, Participant] = {}
    for candidate in candidates:
        before = chosen.get(candidate.label)
        if before is None or _rank(candidate) > _rank(before):
            chosen[candidate.label] = candidate
    return list(chosen.values())


def _rank(candidate: Participant) -> int:
    return 2 * (candidate.pet is not None) + (candidate.synthetic is not None)


def _describe_other_visits(
    visits: Sequence[Preprocessed], chosen: Sequence[Participant]
) -> list[str]:
    notes, used = [], {participant.label: participant.visit for participant in chosen}
    places = {visit: place for place, visit in enumerate(visits)}
    for visit in visits:
        if not visit.pets:
            notes.append(f"{label_of(visit)}: not used, no real PET")
        elif visit != used[visit.subject]:
            later = places[used[visit.subject]] > places[visit]
            preferred = (
                "a later session, which also has a synthetic PET,"
                if later
                else "an earlier session"
            )
            notes.append(f"{label_of(visit)}: not used, {preferred} is used instead")
    return notes


def _controls(
    settings: Settings, labels: Collection[str], *, needed: bool
) -> tuple[list[Participant], list[str], list[Problem]]:
    """Choose controls, each by a visit of the requested sessions if there is one."""
    visits, failed, early = _find(settings, labels)
    wanted = _in_sessions(visits, settings)
    candidates, errors = _look_at(wanted, settings)
    in_sessions = [candidate for candidate in candidates if _rank(candidate)]
    found = {candidate.label for candidate in in_sessions}
    others, more = _look_at((visit for visit in visits if visit.subject not in found), settings)
    errors |= more
    chosen = _visit_of_each([*in_sessions, *others])
    problems = []
    for control in chosen:
        visit = _visit_in_trouble(control, errors)
        error = errors.get(visit)
        if error and (not isinstance(error, _UnfitError) or _wants_synthetic(control, settings)):
            sentence = f"{label_of(visit)}: {error}"
            problems.append(Problem(control.label, sentence, error.exit_code))
    notes = [*chain(*failed.values())]
    notes += _describe_other_visits([visit for visit in wanted if visit.pets], chosen)
    in_trouble = {problem.subject for problem in problems}
    for control in chosen:
        if _rank(control) == 0 and control.label not in in_trouble:
            error = errors.get(control.visit)
            why = "neither real nor synthetic PET"
            why = f"no real PET, and {error.reason}" if isinstance(error, _UnfitError) else why
            notes.append(f"sub-{control.label}: not used, {why}")
    notes += _describe_absent(labels, visits, failed, early)
    usable = [control for control in chosen if _rank(control) > 0]
    if needed and not usable:
        raise _no_controls_error(notes, failed, early)
    return usable, notes, [*early, *problems]


def _visit_in_trouble(
    control: Participant, errors: Mapping[Preprocessed, Mri2petError]
) -> Preprocessed:
    """Return the visit whose error explains why a control has no synthetic PET."""
    if control.synthetic is not None or control.visit in errors:
        return control.visit
    others = (visit for visit in errors if visit.subject == control.label)
    return next(others, control.visit)


def _wants_synthetic(control: Participant, settings: Settings) -> bool:
    """Return whether a run of the group level uses the synthetic PET of a control."""
    if needing_synthetic(settings.detectors) and control.pet is not None:
        return True
    is_chosen = settings.synthetic_controls == "all" or control.pet is None
    return is_chosen and bool({"hybrid", "synthetic"} & set(settings.training_set))


def _patients(
    settings: Settings, labels: Collection[str]
) -> tuple[list[Participant], list[str], list[Problem]]:
    preprocessed, failed, early = _find(settings, labels)
    visits = _in_sessions(preprocessed, settings)
    candidates, errors = _look_at(visits, settings)
    chosen = [
        replace(candidate, pet=pet) for candidate in candidates for pet in candidate.visit.pets
    ]
    found = {patient.label for patient in chosen} | {problem.subject for problem in early}
    in_sessions = " in these sessions" if settings.session_label else ""
    problems = [
        Problem(visit.subject, f"{label_of(visit)}: {error}", error.exit_code)
        for visit, error in errors.items()
        if not isinstance(error, _UnfitError) or needing_synthetic(settings.detectors)
    ]
    for label in sorted(set(labels) - found):
        why, code = (
            f"without a PET on this grid{in_sessions}; run the participant level for this patient",
            MISSING,
        )
        if label in failed:
            why = "whose registration has failed or was rated fail, so no map is made; correct it"
            code = UNUSABLE
        problems.append(Problem(label, f"sub-{label}: a patient {why}, or exclude them", code))
    notes = [*chain(*failed.values())]
    notes += [note for visit in visits if visit.subject in found for note in _describe_pets(visit)]
    return chosen, notes, [*early, *problems]


def _describe_pets(visit: Preprocessed) -> list[str]:
    sessions = {entities_of(pet).get("ses") for pet in visit.pets}
    if not visit.pets:
        return [f"{label_of(visit)}: not used, no real PET"]
    if len(sessions) < len(visit.pets):
        return [
            f"{label_of(visit)}: each PET has a map and a table, but clusters.tsv and curves "
            "contain only the first PET of a session"
        ]
    return []


class _UnfitError(UnusableDataError):
    """Error for a synthetic PET that must not be used; a run may do without it."""

    reason = ""  # short form


class _SeenError(_UnfitError):
    """Error for a synthetic PET whose generator was trained on its subject."""

    reason = "the generator of its synthetic PET was trained on the participant"


class _OldError(_UnfitError):
    """Error for a synthetic PET that was predicted from a T1w since replaced."""

    reason = "its synthetic PET was predicted from a T1w that was replaced since"


def _synthetic(
    visit: Preprocessed, output_dir: Path, cards: Mapping[str, Card], names: Collection[str]
) -> tuple[Path, SyntheticMaker] | tuple[None, None]:
    """Find the synthetic PET of a visit, by a generator that was not trained on the subject.

    If the generator was, the image of the cross-validation, by the fold that left the subject out,
    is returned; its SHA-256 is empty, because weights differ by fold.

    Raises
    ------
    MissingInputError
        If the sidecar does not exist.
    UnusableDataError
        If the sidecar does not mark the image as synthetic; if the generator was trained on the
        subject, in any session, and there is no image by a fold that was not; or if the T1w has
        been replaced since.
    """
    if visit.synthetic is None:
        return None, None

    def has_trained_on(metadata: Mapping[str, object], sha256: str) -> bool:
        card = cards.get(sha256)
        known = card is not None and has_seen(card, visit.subject, names, output_dir)
        return known or metadata.get("TrainedOnThisParticipant") is not False

    metadata = _read_synthetic(visit.synthetic, "participant")
    _refuse_old(visit.synthetic, visit, "run --stage synthesize again")
    fields = object_at(metadata, "Generator")
    name, sha256 = str(fields.get("Name", "unknown")), str(fields.get("SHA256", ""))
    maker = SyntheticMaker(
        name, sha256, *(str(fields.get(key, "")) for key in ("TrainedOn", "IntendedUse"))
    )
    if not has_trained_on(metadata, sha256):
        return visit.synthetic, maker
    folder = output_dir / CROSSVALIDATION / Path(name).name  # inside, whatever the sidecar says
    unseen = folder / visit.synthetic.relative_to(output_dir)
    if unseen.is_file():
        metadata = _read_synthetic(unseen, "train")
        _refuse_old(unseen, visit, f"train {name} again")
        if not has_trained_on(metadata, str(metadata.get("GeneratorSHA256", ""))):
            return unseen, replace(maker, sha256="")
    raise _SeenError(
        f"{visit.synthetic}: not used, since generator {name} was trained on this participant, and "
        f"{unseen}, by the fold without the participant, does not exist; train {name} on this "
        "session, or synthesize with a generator that was not trained on this participant"
    )


def _refuse_old(synthetic: Path, visit: Preprocessed, again: str) -> None:
    if is_left_over(synthetic, visit.t1w):
        raise _OldError(
            f"{synthetic}: not used, since it was predicted from a T1w that a later run replaced; "
            f"{again}"
        )


def _read_synthetic(path: Path, level: str) -> dict[str, object]:
    """Read the sidecar of a synthetic PET, and check that it marks the image as synthetic."""
    sidecar, again = sidecar_path(path), f"run the {level} level again"
    if not sidecar.is_file():
        raise MissingInputError(
            f"{sidecar}: no such file, so {path.name} may be unfinished; {again}"
        )
    metadata = read_json(sidecar)
    if metadata.get("Synthetic") is not True:
        raise UnusableDataError(
            f"{sidecar}: Synthetic is not true, but the image is named as a synthetic one; {again}"
        )
    return metadata


def _unmatched(
    settings: Settings, selected: Collection[str], controls: Collection[str] = ()
) -> tuple[list[Problem], list[str]]:
    """Describe requested and excluded labels that no query selects.

    Parameters
    ----------
    settings : Settings
        Settings of the run.
    selected : collection of str
        Subjects that labels can request: the controls of ``train``, the patients of ``group``.
    controls : collection of str
        Controls of ``group``.
    """
    is_group = settings.level == "group"
    query = "--patient-query" if is_group else "--control-query"
    neither = "neither a control nor a patient" if is_group else "not a control"
    problems, notes = list[Problem](), list[str]()
    for label in settings.participant_label:
        if label in controls:
            notes.append(
                f"sub-{label}: a control, so not mapped; --participant-label is for patients"
            )
        elif label not in selected:
            sentence = (
                f"sub-{label}: not selected by {query}; correct --participant-label or the query"
            )
            problems.append(Problem(label, sentence, MISSING))
    notes += [
        f"sub-{label}: to be excluded, but is {neither}"
        for label in settings.exclude_participant_label
        if label not in controls and label not in selected
    ]
    return problems, notes


def _versions(used: Iterable[Participant]) -> list[tuple[str, str]]:
    """List the versions of the app that wrote the images of subjects."""
    images = [
        (participant.label, path)
        for participant in used
        for path in (participant.visit.t1w, participant.pet, participant.synthetic)
    ]
    return [(f"sub-{label}", version_of(path)) for label, path in images if path is not None]


def _no_controls_error(
    notes: Sequence[str], failed: _Failed, problems: Sequence[Problem]
) -> Mri2petError:
    """Return the error of a run without controls; the problems are those of visits not found."""
    if problems and not notes:
        return error_of(problems)
    if not notes:
        return NothingSelectedError(NOBODY)
    sentences = [*(problem.sentence for problem in problems), *notes]
    error = UnusableDataError if failed or problems else MissingInputError
    return error("; ".join(sentences) + "; run the participant level on controls")


def _is_asked_for(label: str, settings: Settings) -> bool:
    return not settings.participant_label or label in settings.participant_label


def _in_sessions(visits: Iterable[Preprocessed], settings: Settings) -> list[Preprocessed]:
    """Keep the PETs of the requested sessions; without a PET, the session of the T1w counts.

    A PET may belong to another session than the T1w it is registered to.
    """
    sessions = settings.session_label
    if not sessions:
        return [*visits]
    kept = []
    for visit in visits:
        pets = tuple(pet for pet in visit.pets if entities_of(pet).get("ses") in sessions)
        if pets or (not visit.pets and visit.session in sessions):
            kept.append(replace(visit, pets=pets))
    return kept


def _refuse_both(labels: Collection[str]) -> None:
    if labels:
        names = ", ".join(f"sub-{label}" for label in sorted(labels))
        raise UnusableDataError(
            f"participants.tsv: {names} would be both control and patient; correct "
            "--control-query or --patient-query"
        )
