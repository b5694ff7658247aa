"""Which subjects take part in ``train`` and ``group``: controls, one visit each, and patients."""

from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from bids_app.dataset.participants import NAMED_AT_MOST, read_participants
from bids_app.derivatives.description import ANEW, compare_versions, dataset_names, version_of
from bids_app.derivatives.find import (
    Preprocessed,
    describe_coverage,
    find_preprocessed,
    verdict_of_image,
)
from bids_app.derivatives.paths import entities_of, resolution_label, sidecar_path
from bids_app.derivatives.tables import describe_unknown_columns, select
from bids_app.detection.detectors import needing_synthetic
from bids_app.errors import (
    MissingInputError,
    Mri2petError,
    NothingSelectedError,
    UnusableDataError,
    UsageError,
)
from bids_app.files import read_json, read_tsv
from bids_app.generators import CROSSVALIDATION, describe_namesakes, has_seen, known_cards
from bids_app.imaging.volume import Box, box_of_grid, grid_of_box
from bids_app.nifti import read_grid
from bids_app.plan.group import Participant, Synthetic
from bids_app.plan.participant import Problem, error_of
from bids_app.settings import Settings
from bids_app.synthesis.card import Card

MISSING, UNUSABLE = MissingInputError.exit_code, UnusableDataError.exit_code
ABSENT = "no T1w on this grid"
NOBODY = "no control is left after all selections; correct --control-query or the labels"


@dataclass(frozen=True)
class Subjects:
    """Controls, one visit each, and patients, every PET of each; what is to be told of others."""

    controls: tuple[Participant, ...]
    patients: tuple[Participant, ...] = ()
    notes: tuple[str, ...] = ()
    problems: tuple[Problem, ...] = field(default=())


def settle_grid(settings: Settings) -> tuple[Settings, list[str]]:
    """Take the template, resolution and box that the derivatives have, where none are asked for.

    Returns
    -------
    settings : Settings
        On the one grid that is there and fits what was asked for; as they were if there is none at
        all.
    notes : list of str
        A sentence where it is not the grid of the defaults.

    Raises
    ------
    UsageError
        If several fit.
    MissingInputError
        If there are some, and none fits.
    """
    known = [
        replace(settings, template=template, resolution=resolution, bounding_box=box)
        for template, resolution, box in find_grids(settings.output_dir)
    ]
    fitting = _prefer_defaults(
        [candidate for candidate in known if _is_wanted(candidate, settings)]
    )
    there = "; ".join(_describe_grid(candidate) for candidate in known)
    choose = "choose one with --template, --resolution and --bounding-box"
    if len(fitting) > 1:
        raise UsageError(f"{settings.output_dir}: holds images on several grids: {there}; {choose}")
    if known and not fitting:
        grid = f"{settings.template} at {settings.grid_resolution:g} mm"
        grid += " is on this grid" if settings.level == "group" else ""
        raise MissingInputError(
            f"{settings.output_dir}: no image in {grid}; run the participant level first, or "
            f"{choose} that is there: {there}"
        )
    if not known:
        return settings, []
    others = "; ".join(_describe_grid(candidate) for candidate in known if candidate != fitting[0])
    notes = [f"not used, images on another grid: {others}"] if others else []
    if _is_same_grid(fitting[0], settings):
        return settings, notes
    return fitting[0], [f"the grid is that of the images, {_describe_grid(fitting[0])}", *notes]


def find_grids(output_dir: Path) -> list[tuple[str, float, Box]]:
    """List the grids in template space that a derivative dataset has T1w on.

    Returns
    -------
    list of (str, float, tuple)
        Template, resolution in mm, and box in mm, RAS+, as :func:`grid_of_box` wants it. Images
        that are named for another resolution than they have, or cannot be read, are passed over:
        whoever uses them tells.
    """
    ending = "anat/sub-*_space-*_res-*_desc-preproc_T1w.nii.gz"
    paths = [
        path for level in ("sub-*", "sub-*/ses-*") for path in output_dir.glob(f"{level}/{ending}")
    ]
    return sorted({grid for path in paths if (grid := _grid_of(path)) is not None})


def _grid_of(path: Path) -> tuple[str, float, Box] | None:
    try:
        entities, grid = entities_of(path), read_grid(path)
        resolution = round(float(grid.affine[0, 0]), 4)
        box = box_of_grid(grid)
        if box is None or resolution_label(resolution) != entities["res"]:
            return None
        x0, y0, z0, x1, y1, z1 = (round(side, 3) for side in box)
        return entities["space"], resolution, (x0, y0, z0, x1, y1, z1)
    except (Mri2petError, ValueError, KeyError):
        return None


def _is_wanted(known: Settings, settings: Settings) -> bool:
    """Whether a grid is one that was asked for; what was not asked for may be any."""
    by_resolution = settings.resolution is not None or settings.sloppy
    by_template = settings.template != Settings.template
    by_box = settings.bounding_box != Settings.bounding_box
    return (
        (not by_resolution or known.grid_resolution == settings.grid_resolution)
        and (not by_template or known.template == settings.template)
        and (not by_box or _same_box(known, settings))
    )


def _prefer_defaults(fitting: list[Settings]) -> list[Settings]:
    """Keep those of the default template, then of the default box, if there are any.

    Whether it was named or left at its default cannot be told apart.
    """
    standard = [
        candidate for candidate in fitting if candidate.template == Settings.template
    ] or fitting
    boxed = [
        candidate
        for candidate in standard
        if _same_box(candidate, replace(candidate, bounding_box=Settings.bounding_box))
    ]
    return boxed or standard


def _same_box(known: Settings, settings: Settings) -> bool:
    one, other = (
        grid_of_box(box, known.grid_resolution)
        for box in (known.bounding_box, settings.bounding_box)
    )
    return one.shape == other.shape and np.allclose(one.affine, other.affine, atol=1e-3)


def _is_same_grid(known: Settings, settings: Settings) -> bool:
    named = (known.template, known.grid_resolution) == (settings.template, settings.grid_resolution)
    return named and _same_box(known, settings)


def _describe_grid(settings: Settings) -> str:
    sides = " ".join(f"{side:g}" for side in settings.bounding_box)
    return f"{settings.template} at {settings.grid_resolution:g} mm in the box {sides}"


def choose_controls(settings: Settings, version: str) -> Subjects:
    """Choose the controls that generators are trained on: those with T1w and real PET.

    Which visit of each, :func:`_visit_of_each` says, for ``train`` and ``group`` alike.
    ``--session-label`` leaves out all other sessions.

    Parameters
    ----------
    settings : Settings
        Of the run.
    version : str
        Of the app: it is told who was prepared by another one.

    Raises
    ------
    Mri2petError
        As :func:`bids_app.derivatives.tables.select`; MissingInputError if nothing was
        preprocessed, or nobody has a PET, NothingSelectedError if no control is left,
        UnusableDataError if one was prepared by a version that this one cannot use, or the
        registration of all has failed.
    """
    queried = select(settings.output_dir, settings.control_query)
    wanted = {label for label in queried if _is_asked_for(label, settings)}
    wanted -= set(settings.exclude_participant_label)
    if not wanted:
        raise NothingSelectedError(NOBODY)
    found = _find(settings, wanted)
    if not (found.there or found.problems):
        raise MissingInputError(
            f"{settings.output_dir}: no T1w of these controls in {settings.template} at "
            f"{settings.grid_resolution:g} mm; run the participant level first"
        )
    visits = [visit for visit in found.visits if _is_in_sessions(visit, settings)]
    with_pet, _ = _look_at((visit for visit in visits if visit.pets), settings)
    chosen = _visit_of_each(with_pet)
    notes = [*found.notes, *_describe_other_visits(visits, chosen)]
    notes += describe_unknown_columns(settings.output_dir, [settings.control_query])
    notes += _describe_stale(settings)
    notes += [f"sub-{one}: not used, {ABSENT}" for one in sorted(wanted - set(found.there))]
    if not chosen:
        raise _nobody(notes, found)
    told = compare_versions(_versions(chosen), version, advice=ANEW)
    told += [f"{gap}; no tile of training touches that" for gap in _describe_gaps(chosen)]
    return Subjects(
        tuple(chosen), (), (*told, *_describe_verdicts(chosen), *notes), tuple(found.problems)
    )


def choose_subjects(settings: Settings, *, controls: bool, version: str) -> Subjects:
    """Choose controls and patients of the group level by query and labels.

    ``--participant-label`` and ``--session-label`` say which patients, and which visits of theirs,
    are looked at; controls are all that their query finds, but for those of
    ``--exclude-participant-label``, by a visit of these sessions where they have one.

    Parameters
    ----------
    settings : Settings
        Of the run.
    controls : bool
        Whether controls are needed; not where a detector is applied that was trained before.
    version : str
        Of the app: it is told who was prepared by another one.

    Raises
    ------
    Mri2petError
        As :func:`bids_app.derivatives.tables.select`; UnusableDataError if someone is both, was
        prepared by a version that this one cannot use, or the registration of all controls has
        failed; NothingSelectedError if no patient, or no control, is left; MissingInputError if
        all controls lack images.
    """
    ill = select(settings.output_dir, settings.patient_query)
    well = select(settings.output_dir, settings.control_query) if controls else frozenset()
    _refuse_both(well & ill)
    excluded = set(settings.exclude_participant_label)
    wanted = {patient for patient in ill - excluded if _is_asked_for(patient, settings)}
    if not wanted:
        raise NothingSelectedError(
            "no patient is left after all selections; correct --patient-query or the labels"
        )
    patients, notes, problems = _patients(_find(settings, wanted), settings, wanted)
    healthy = _find(settings, well - excluded)
    chosen, more, troubles = _controls(healthy, settings, well - excluded)
    if controls and not chosen:
        raise _nobody(more, healthy)
    used = [*chosen, *patients]
    told = compare_versions(_versions(used), version, advice=ANEW)
    told += [*_describe_gaps(used), *_describe_namesakes(used, settings)]
    unknown, remarks = _unmatched(settings, well, ill)
    queries = [settings.patient_query, *([settings.control_query] if controls else [])]
    remarks += [*describe_unknown_columns(settings.output_dir, queries), *_describe_stale(settings)]
    return Subjects(
        tuple(chosen),
        tuple(patients),
        (*told, *_describe_verdicts(used), *remarks, *more, *notes),
        (*unknown, *troubles, *problems),
    )


@dataclass(frozen=True)
class _FoundVisits:
    """Visits of some subjects that can be used, and what is to be told of all others.

    ``there``: labels of all who have a T1w on the grid, usable or not, or a problem; ``failed``:
    of those of whom a registration has failed.
    """

    visits: Sequence[Preprocessed]
    there: Collection[str]
    notes: Sequence[str]
    problems: Sequence[Problem]
    failed: Collection[str]


def _find(settings: Settings, labels: Collection[str]) -> _FoundVisits:
    """Find visits whose registration has not failed; one bad file costs its own subject only."""
    visits, there, notes, problems = list[Preprocessed](), set[str](), list[str](), list[Problem]()
    failed = set[str]()
    for label in sorted(labels):
        try:
            found = find_preprocessed(
                settings.output_dir, settings.template, settings.grid_resolution, [label]
            )
            usable, told = _leave_out_failed(found)
        except Mri2petError as error:
            problems.append(Problem(label, f"sub-{label}: {error}", error.exit_code))
            there.add(label)
            continue
        there |= {one.subject for one in found}
        failed |= {label} if told else set()
        visits += usable
        notes += told
    return _FoundVisits(visits, there, notes, problems, failed)


def _leave_out_failed(visits: Sequence[Preprocessed]) -> tuple[list[Preprocessed], list[str]]:
    """Leave out PETs whose registration has failed; with a T1w, all that lies on it."""
    usable, notes = [], []
    for visit in visits:
        name = _name_of(visit)
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
        usable.append(replace(visit, pets=tuple(pet for pet in pets if pet not in lost)))
    return usable, notes


def _with_reasons(sentence: str, reasons: str) -> str:
    return f"{sentence} ({reasons})" if reasons else sentence


def _describe_verdicts(used: Sequence[Participant]) -> list[str]:
    """Tell of registrations in doubt, and, once, of those that nobody has judged."""
    notes, unknown = [], []
    images = {
        image: participant
        for participant in used
        for image in (participant.visit.t1w, participant.pet)
        if image is not None
    }
    for image, stored_image in images.items():
        verdict, reasons = verdict_of_image(image)
        if verdict == "doubt":
            told = _with_reasons("its registration is in doubt", reasons)
            notes.append(f"{_name_of(stored_image.visit)}: {image.name} is used, but {told}")
        elif not verdict:
            unknown.append(f"sub-{stored_image.label}")
    if unknown:
        notes.append(
            f"{', '.join(dict.fromkeys(unknown))}: nothing tells whether their registration is to "
            "be trusted, since an earlier version of mri2pet has made them; look at their reports"
        )
    return notes


def _describe_stale(settings: Settings) -> list[str]:
    """Tell of whom the raw ``participants.tsv`` speaks otherwise than that of the output.

    The latter is used, for the raw dataset need not be there; the participant level writes it.
    """
    raw, out = (one / "participants.tsv" for one in (settings.bids_dir, settings.output_dir))
    try:
        present = [path.name.removeprefix("sub-") for path in settings.bids_dir.glob("sub-*")]
        told, _ = read_participants(settings.bids_dir, present)
        rows = {row.pop("participant_id", "").removeprefix("sub-"): row for row in read_tsv(out)}
    except (Mri2petError, OSError):
        return []  # the participant level tells why
    own = sorted((told.keys() | set(present)) & rows.keys()) if told else []
    odd = [f"sub-{one}" for one in own if _known(rows[one]) != _known(told.get(one, {}))]
    if not odd:
        return []
    more = f" and {len(odd) - NAMED_AT_MOST} more" if len(odd) > NAMED_AT_MOST else ""
    return [
        f"{raw}: says otherwise of {', '.join(odd[:NAMED_AT_MOST])}{more} than {out}, which is "
        "used; run the participant level again: what is complete is not computed again"
    ]


def _known(row: Mapping[str, str]) -> dict[str, str]:
    return {name.strip(): cell for name, cell in row.items() if cell.strip() not in ("", "n/a")}


def _describe_namesakes(used: Sequence[Participant], settings: Settings) -> list[str]:
    """Tell of those whom a generator in this dataset knows by their labels from another one."""
    names, out = dataset_names(settings.output_dir), settings.output_dir
    cards = known_cards(out)
    by_card = defaultdict[str, list[str]](list)
    for participant in used:
        if participant.synthetic is not None and participant.synthetic.sha256 in cards:
            by_card[participant.synthetic.sha256].append(participant.label)
    notes = (describe_namesakes(cards[one], labels, names, out) for one, labels in by_card.items())
    return [note for note in notes if note]


def _describe_gaps(used: Sequence[Participant]) -> list[str]:
    """Tell whose real PETs do not cover the brain."""
    pets = {
        participant.pet: participant.label for participant in used if participant.pet is not None
    }
    return [
        f"sub-{label}: {told}" for pet, label in pets.items() if (told := describe_coverage(pet))
    ]


def _look_at(
    visits: Iterable[Preprocessed], settings: Settings
) -> tuple[list[Participant], dict[Preprocessed, Mri2petError]]:
    """Look at the first real and the synthetic PET of visits; say why one cannot be used."""
    names = dataset_names(settings.output_dir)
    cards = known_cards(settings.output_dir)
    candidates, errors = [], {}
    for visit in visits:
        made = None
        try:
            made = _synthetic(visit, settings.output_dir, cards, names)
        except Mri2petError as error:
            errors[visit] = error
        candidates.append(Participant(visit, next(iter(visit.pets), None), made))
    return candidates, errors


def _visit_of_each(candidates: Iterable[Participant]) -> list[Participant]:
    """Choose a visit of each: the first with both PETs, else the real, else the synthetic one.

    A synthetic PET counts only if its generator has not seen the subject.
    """
    chosen: dict[str, Participant] = {}
    for candidate in candidates:
        before = chosen.get(candidate.label)
        if before is None or _rank(candidate) > _rank(before):
            chosen[candidate.label] = candidate
    return list(chosen.values())


def _rank(one: Participant) -> int:
    return 2 * (one.pet is not None) + (one.synthetic is not None)


def _describe_other_visits(
    visits: Sequence[Preprocessed], chosen: Sequence[Participant]
) -> list[str]:
    notes, used = [], {one.label: one.visit for one in chosen}
    for visit in visits:
        if not visit.pets:
            notes.append(f"{_name_of(visit)}: not used, no real PET")
        elif visit != used[visit.subject]:
            later = visits.index(used[visit.subject]) > visits.index(visit)
            which = "a later session, with a synthetic PET too," if later else "an earlier session"
            notes.append(f"{_name_of(visit)}: not used, {which} of this participant is")
    return notes


def _name_of(visit: Preprocessed) -> str:
    return f"sub-{visit.subject}" + ("" if visit.session is None else f" ses-{visit.session}")


def _controls(
    found: _FoundVisits, settings: Settings, wanted: Collection[str]
) -> tuple[list[Participant], list[str], list[Problem]]:
    """Choose controls, by a visit of the sessions that are asked for where they have one."""
    candidates, errors = _look_at(found.visits, settings)
    asked = [
        candidate
        for candidate in candidates
        if _is_in_sessions(candidate.visit, settings) and _rank(candidate)
    ]
    there = {one.label for one in asked}
    chosen = _visit_of_each(
        [*asked, *(candidate for candidate in candidates if candidate.label not in there)]
    )
    problems = []
    for one in chosen:
        visit = _visit_in_trouble(one, errors)
        error = errors.get(visit)
        if error and (not isinstance(error, _SeenError) or _wants_synthetic(one, settings)):
            sentence = f"{_name_of(visit)}: {error}"
            problems.append(Problem(one.label, sentence, error.exit_code))
    notes = [*found.notes]
    told = {problem.subject for problem in problems}
    for one in chosen:
        if _rank(one) == 0 and one.label not in told:
            why = "no real PET, and the generator of the synthetic one was trained on it"
            why = why if one.visit in errors else "neither real nor synthetic PET"
            notes.append(f"sub-{one.label}: not used, {why}")
    notes += [f"sub-{one}: not used, {ABSENT}" for one in sorted(set(wanted) - set(found.there))]
    return [one for one in chosen if _rank(one) > 0], notes, [*found.problems, *problems]


def _visit_in_trouble(
    one: Participant, errors: Mapping[Preprocessed, Mri2petError]
) -> Preprocessed:
    """Give the visit whose synthetic PET fails a control: another one, which had been chosen."""
    if one.synthetic is not None or one.visit in errors:
        return one.visit
    others = (visit for visit in errors if visit.subject == one.label)
    return next(others, one.visit)


def _wants_synthetic(one: Participant, settings: Settings) -> bool:
    """Whether a run of the group level uses the synthetic PET of a control."""
    if needing_synthetic(settings.detectors) and one.pet is not None:
        return True
    everyone = settings.synthetic_controls == "all" or one.pet is None
    return everyone and bool({"hybrid", "synthetic"} & set(settings.training_set))


def _patients(
    found: _FoundVisits, settings: Settings, wanted: Collection[str]
) -> tuple[list[Participant], list[str], list[Problem]]:
    visits = [one for one in found.visits if _is_in_sessions(one, settings)]
    candidates, errors = _look_at(visits, settings)
    chosen = [
        replace(candidate, pet=pet) for candidate in candidates for pet in candidate.visit.pets
    ]
    there = {one.label for one in chosen} | {problem.subject for problem in found.problems}
    where = " in these sessions" if settings.session_label else ""
    problems = [
        Problem(visit.subject, f"{_name_of(visit)}: {error}", error.exit_code)
        for visit, error in errors.items()
        if not isinstance(error, _SeenError) or needing_synthetic(settings.detectors)
    ]
    for label in sorted(set(wanted) - there):
        why, code = f"without a PET on this grid{where}; run the participant level on it", MISSING
        if label in found.failed:
            why, code = "whose registration has failed, so that no map is made; mend it", UNUSABLE
        problems.append(Problem(label, f"sub-{label}: a patient {why}, or exclude it", code))
    notes = [*found.notes]
    notes += [note for visit in visits if visit.subject in there for note in _tell_visit(visit)]
    return chosen, notes, [*found.problems, *problems]


def _tell_visit(visit: Preprocessed) -> list[str]:
    sessions = {entities_of(pet).get("ses") for pet in visit.pets}
    if not visit.pets:
        return [f"{_name_of(visit)}: not used, no real PET"]
    if len(sessions) < len(visit.pets):
        return [
            f"{_name_of(visit)}: each PET has a map and a table; clusters.tsv and curves tell of "
            "the first of a session"
        ]
    return []


class _SeenError(UnusableDataError):
    """The generator of a synthetic PET was trained on its subject."""


def _synthetic(
    visit: Preprocessed, output_dir: Path, cards: Mapping[str, Card], names: Collection[str]
) -> Synthetic | None:
    """Find the synthetic PET of a visit, by a generator that has never seen the subject.

    Where the generator has, it is that of the cross-validation, by the fold that left the subject
    out; since its weights differ by fold, its SHA-256 is left out.

    Raises
    ------
    MissingInputError
        If its sidecar is not there.
    UnusableDataError
        If its sidecar does not say that it is synthetic; or the generator has seen the subject, in
        whatever session, and there is no image by a fold that has not.
    """
    if visit.synthetic is None:
        return None

    def saw(told: Mapping[str, object], sha256: str) -> bool:
        card = cards.get(sha256)
        known = card is not None and has_seen(card, visit.subject, names, output_dir)
        return known or told.get("TrainedOnThisParticipant") is not False

    told = _read_synthetic(visit.synthetic, "participant")
    made = told.get("Generator")
    by: dict[str, object] = made if isinstance(made, dict) else {}
    name, sha256 = str(by.get("Name", "unknown")), str(by.get("SHA256", ""))
    trained_on, intended_use = (str(by.get(key, "")) for key in ("TrainedOn", "IntendedUse"))
    if not saw(told, sha256):
        return Synthetic(visit.synthetic, name, sha256, trained_on, intended_use)
    folder = output_dir / CROSSVALIDATION / Path(name).name  # whatever a sidecar says, inside
    unseen = folder / visit.synthetic.relative_to(output_dir)
    if unseen.is_file():
        told = _read_synthetic(unseen, "train")
        if not saw(told, str(told.get("GeneratorSHA256", ""))):
            return Synthetic(unseen, name, "", trained_on, intended_use)
    raise _SeenError(
        f"{visit.synthetic}: made by generator {name}, which was trained on this participant, and "
        f"{unseen} by a fold that left it out is not there; it is not used; train {name} on this "
        "session, or synthesize with a generator that has not seen it"
    )


def _read_synthetic(path: Path, level: str) -> dict[str, object]:
    """Read the sidecar of a synthetic PET, which has to say that it is one."""
    sidecar, again = sidecar_path(path), f"run the {level} level again"
    if not sidecar.is_file():
        raise MissingInputError(
            f"{sidecar}: no such file, so {path.name} may be unfinished; {again}"
        )
    told = read_json(sidecar)
    if told.get("Synthetic") is not True:
        raise UnusableDataError(
            f"{sidecar}: does not say Synthetic, but the image is named as a synthetic one; {again}"
        )
    return told


def _unmatched(
    settings: Settings, well: Collection[str], ill: Collection[str]
) -> tuple[list[Problem], list[str]]:
    """Tell of labels that were asked for, and whom they do not find."""
    problems, notes = list[Problem](), list[str]()
    for label in settings.participant_label:
        if label in well:
            notes.append(
                f"sub-{label}: a control, so not mapped; --participant-label is for patients"
            )
        elif label not in ill:
            sentence = (
                f"sub-{label}: none of those whom --patient-query finds; correct "
                "--participant-label or the query"
            )
            problems.append(Problem(label, sentence, MISSING))
    notes += [
        f"sub-{label}: to be excluded, but neither control nor patient"
        for label in settings.exclude_participant_label
        if label not in well and label not in ill
    ]
    return problems, notes


def _versions(used: Iterable[Participant]) -> list[tuple[str, str]]:
    """Say by which versions of the app the images of subjects were made."""
    made = [
        (participant.label, path)
        for participant in used
        for path in (
            participant.visit.t1w,
            participant.pet,
            None if participant.synthetic is None else participant.synthetic.path,
        )
    ]
    return [(f"sub-{label}", version_of(path)) for label, path in made if path is not None]


def _nobody(notes: Sequence[str], found: _FoundVisits) -> Mri2petError:
    """Say why no control is left."""
    if found.problems and not notes:
        return error_of(found.problems)
    if not notes:
        return NothingSelectedError(NOBODY)
    told = [*(problem.sentence for problem in found.problems), *notes]
    kind = UnusableDataError if found.failed or found.problems else MissingInputError
    return kind("; ".join(told) + "; run the participant level on controls")


def _is_asked_for(label: str, settings: Settings) -> bool:
    return not settings.participant_label or label in settings.participant_label


def _is_in_sessions(visit: Preprocessed, settings: Settings) -> bool:
    return not settings.session_label or visit.session in settings.session_label


def _refuse_both(labels: Collection[str]) -> None:
    if labels:
        names = ", ".join(f"sub-{label}" for label in sorted(labels))
        raise UnusableDataError(
            f"participants.tsv: {names} would be control and patient at once; correct "
            "--control-query or --patient-query"
        )
