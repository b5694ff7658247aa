"""Who takes part in the group level: controls to train on, patients to look at."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from bids_app.app.intake import Problem
from bids_app.derivatives.groups import select
from bids_app.derivatives.paths import entities_of, sidecar_path
from bids_app.derivatives.preprocessed import Preprocessed, find_preprocessed
from bids_app.derivatives.versions import ANEW, compare_versions, version_of
from bids_app.errors import (
    MissingInputError,
    Mri2petError,
    NothingSelectedError,
    UnusableDataError,
)
from bids_app.files import read_json
from bids_app.screening import Participant, Synthetic
from bids_app.settings import Settings

MISSING = MissingInputError.exit_code
CROSSVALIDATION = "crossvalidation"


@dataclass(frozen=True)
class People:
    """Controls, one visit each, and patients, every PET of each; what is to be told of others."""

    controls: tuple[Participant, ...]
    patients: tuple[Participant, ...]
    notes: tuple[str, ...] = ()
    problems: tuple[Problem, ...] = field(default=())


def choose_people(settings: Settings, *, controls: bool, version: str) -> People:
    """Choose controls and patients by query and labels.

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
        As :func:`bids_app.derivatives.groups.select` and
        :func:`bids_app.derivatives.preprocessed.find_preprocessed`; UnusableDataError if someone
        is both, or was prepared by a version that this one cannot use; NothingSelectedError if no
        patient, or no control, is left; MissingInputError if all controls lack images.
    """
    ill = select(settings.output_dir, settings.patient_query)
    well = select(settings.output_dir, settings.control_query) if controls else frozenset()
    _refuse_both(well & ill)
    excluded = set(settings.exclude_participant_label)
    wanted = {one for one in ill - excluded if _is_asked_for(one, settings)}
    if not wanted:
        raise NothingSelectedError(
            "no patient is left after all selections; correct --patient-query or the labels"
        )
    visits = [one for one in _visits(settings, wanted) if _is_in_sessions(one, settings)]
    patients, notes, problems = _patients(visits, settings, wanted)
    healthy = _visits(settings, well - excluded)
    healthy.sort(key=lambda visit: not _is_in_sessions(visit, settings))
    chosen, more = _controls(healthy, settings, well - excluded)
    if controls and not chosen:
        raise _nobody(more)
    made = [pair for one in (*chosen, *patients) for pair in _versions(one)]
    told = compare_versions(made, version, advice=ANEW)
    unknown, remarks = _unmatched(settings, well, ill)
    return People(
        tuple(chosen), tuple(patients), (*told, *remarks, *more, *notes), (*unknown, *problems)
    )


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


def _versions(one: Participant) -> list[tuple[str, str]]:
    """Say by which versions of the app the images of someone were made."""
    synthetic = None if one.synthetic is None else one.synthetic.path
    paths = [path for path in (one.visit.t1w, one.pet, synthetic) if path is not None]
    return [(f"sub-{one.label}", version_of(path)) for path in paths]


def _nobody(notes: Sequence[str]) -> Mri2petError:
    if notes:
        return MissingInputError("; ".join(notes) + "; run the participant level on controls")
    return NothingSelectedError(
        "no control is left after all selections; correct --control-query or the labels"
    )


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


def _visits(settings: Settings, labels: Collection[str]) -> list[Preprocessed]:
    return find_preprocessed(
        settings.output_dir, settings.template, settings.grid_resolution, labels
    )


def _synthetic(visit: Preprocessed, output_dir: Path) -> Synthetic | None:
    """Find the synthetic PET of a visit; of controls that the generator saw, by one that did not.

    The latter has other weights in each fold, so its SHA-256 is left out.

    Raises
    ------
    MissingInputError
        If its sidecar is not there.
    UnusableDataError
        If its sidecar does not say that it is synthetic.
    """
    if visit.synthetic is None:
        return None
    told = _read_synthetic(visit.synthetic, "participant")
    made = told.get("Generator")
    by: dict[str, object] = made if isinstance(made, dict) else {}
    name, sha256 = str(by.get("Name", "unknown")), str(by.get("SHA256", ""))
    trained_on, intended_use = (str(by.get(key, "")) for key in ("TrainedOn", "IntendedUse"))
    seen = _saw_this_participant(told)
    unseen = output_dir / CROSSVALIDATION / name / visit.synthetic.relative_to(output_dir)
    if seen and unseen.is_file() and not _saw_this_participant(_read_synthetic(unseen, "train")):
        return Synthetic(unseen, name, "", False, trained_on, intended_use)
    return Synthetic(visit.synthetic, name, sha256, seen, trained_on, intended_use)


def _saw_this_participant(told: dict[str, object]) -> bool:
    return told.get("TrainedOnThisParticipant") is True


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


def _patients(
    visits: Sequence[Preprocessed], settings: Settings, wanted: Collection[str]
) -> tuple[list[Participant], list[str], list[Problem]]:
    chosen = [
        Participant(visit, pet, _synthetic(visit, settings.output_dir))
        for visit in visits
        for pet in visit.pets
    ]
    there = {one.label for one in chosen}
    where = " in these sessions" if settings.session_label else ""
    problems = [
        Problem(label, f"sub-{label}: a patient without a PET on this grid{where}; run the "
                "participant level on it, or exclude it", MISSING)
        for label in sorted(set(wanted) - there)
    ]  # fmt: skip
    notes = [note for visit in visits if visit.subject in there for note in _tell_visit(visit)]
    return chosen, notes, problems


def _tell_visit(visit: Preprocessed) -> list[str]:
    session = "" if visit.session is None else f" ses-{visit.session}"
    sessions = {entities_of(pet).get("ses") for pet in visit.pets}
    if not visit.pets:
        return [f"sub-{visit.subject}{session}: not used, no real PET"]
    if len(sessions) < len(visit.pets):
        return [
            f"sub-{visit.subject}{session}: each PET has a map and a table; clusters.tsv and "
            "curves tell of the first of a session"
        ]
    return []


def _controls(
    visits: Sequence[Preprocessed], settings: Settings, wanted: Collection[str]
) -> tuple[list[Participant], list[str]]:
    """Choose a visit of each control: the first with both PETs, else the real, else the other."""
    chosen: dict[str, Participant] = {}
    for visit in visits:
        pet = visit.pets[0] if visit.pets else None
        one = Participant(visit, pet, _synthetic(visit, settings.output_dir))
        before = chosen.get(one.label)
        if before is None or _rank(one) > _rank(before):
            chosen[one.label] = one
    notes = [
        f"sub-{label}: not used, {_why_not(chosen.get(label))}"
        for label in sorted(wanted)
        if label not in chosen or _rank(chosen[label]) == 0
    ]
    return [one for one in chosen.values() if _rank(one) > 0], notes


def _rank(one: Participant) -> int:
    return 2 * (one.pet is not None) + (one.synthetic is not None)


def _why_not(one: Participant | None) -> str:
    return "no T1w on this grid" if one is None else "neither real nor synthetic PET"
