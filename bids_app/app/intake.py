"""Which images a run will work on, and which it sets aside before anything is computed."""

import re
import traceback
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path
from uuid import uuid4

from bids_app import nifti
from bids_app.dataset.reading import frame_durations
from bids_app.dataset.selection import select
from bids_app.errors import (
    MissingInputError,
    Mri2petError,
    NothingSelectedError,
    ReadWriteError,
    UnusableDataError,
    UsageError,
)
from bids_app.files import read_text, write_text
from bids_app.header import Header
from bids_app.imaging.volume import Grid
from bids_app.settings import Settings
from bids_app.strict import parse_object
from bids_app.visit import Scan, Selection, Unused, Visit

VOLUME_AXES = 3
ADVICE = "give one length of time, in s, a frame"
LONGEST_FRAME = 1e7  # s; beyond it a duration is none, in ms neither; our choice


@dataclass(frozen=True)
class Problem:
    """What went wrong for a participant.

    Parameters
    ----------
    subject, sentence : str
        Who, and what, where, and what to do.
    exit_code : int
        Of the run, if nothing else could be used either.
    visit : str or None
        Name of the visit's graph; None if the images were set aside before there was one.
    fatal : bool
        Whether the visit is left without the results of its T1w.
    """

    subject: str
    sentence: str
    exit_code: int
    visit: str | None = None
    fatal: bool = True


def read_selection(settings: Settings) -> Selection:
    """Choose images as the settings say, and set aside those whose headers forbid their use.

    Raises
    ------
    Mri2petError
        As :func:`bids_app.dataset.selection.select`; UsageError also if the filter file is no
        JSON.
    """
    selection = select(
        settings.bids_dir,
        participant_label=settings.participant_label,
        exclude_participant_label=settings.exclude_participant_label,
        session_label=settings.session_label,
        tracer_label=settings.tracer_label,
        run_label=settings.run_label,
        filters=_read_filters(settings.bids_filter_file),
        database_dir=_index_of(settings),
    )
    return _without_unusable(selection, settings)


def _index_of(settings: Settings) -> Path | None:
    """Say where the index is kept; a dry run makes none."""
    folder = settings.bids_database_dir
    return None if settings.dry_run and folder and not folder.is_dir() else folder


def _read_filters(path: Path | None) -> object:
    if path is None:
        return None
    try:
        return parse_object(read_text(path))
    except (Mri2petError, ValueError) as error:
        raise UsageError(f"{path}: cannot be read as JSON ({error}); correct it") from error


def _check_t1w(t1w: Scan, orientation: str) -> Header:
    header = nifti.inspect(t1w.path, orientation=orientation)
    if len(header.shape) != VOLUME_AXES:
        raise UnusableDataError(
            f"{t1w.path}: {header.shape[3]} volumes, where a T1w has one; average or choose one of "
            "them"
        )
    return header


def _check_pet(pet: Scan, chosen: Sequence[int], orientation: str) -> Header:
    header = nifti.inspect(pet.path, orientation=orientation)
    frames = header.shape[3] if len(header.shape) > VOLUME_AXES else 1
    if frames > 1:  # a single volume is used as it is, whatever its sidecar says of frames
        _check_durations(pet, frames, chosen)
    _check_frames(pet, frames, chosen)
    return header


def _check_durations(pet: Scan, frames: int, chosen: Sequence[int]) -> None:
    durations = frame_durations(pet)
    if not durations:
        told = "FrameDuration" in dict(pet.metadata)
        what = "FrameDuration is not a list of numbers" if told else "there is no FrameDuration"
        raise UnusableDataError(f"{pet.path}: {frames} frames, but {what} in its sidecar; {ADVICE}")
    if len(durations) != frames:
        raise UnusableDataError(
            f"{pet.path}: {frames} frames, but {len(durations)} FrameDuration values in its "
            f"sidecar; {ADVICE}"
        )
    used = [durations[frame] for frame in chosen if frame < frames] if chosen else durations
    wrong = [duration for duration in used if not 0 < duration <= LONGEST_FRAME]
    if wrong:
        what = "not above 0" if wrong[0] <= 0 else f"{wrong[0]:g} s, longer than any scan"
        raise UnusableDataError(f"{pet.path}: a FrameDuration in its sidecar is {what}; {ADVICE}")


def _check_frames(pet: Scan, frames: int, chosen: Sequence[int]) -> None:
    if any(frame >= frames for frame in chosen):
        raise UnusableDataError(
            f"{pet.path}: has {frames} frames, from 0 on, and no frame {max(chosen)}; change "
            "--pet-frames"
        )


def _usable_pets(
    visit: Visit, settings: Settings
) -> tuple[list[tuple[Scan, Header]], list[Unused]]:
    usable, unused = [], []
    for pet in visit.pets:
        try:
            header = _check_pet(pet, settings.pet_frames, settings.assume_orientation)
            usable.append((pet, header))
        except Mri2petError as error:
            unused.append(Unused(pet.subject, pet.path, f"{error}", error.exit_code))
    return usable, unused


def _without_unusable(selection: Selection, settings: Settings) -> Selection:
    orientation = settings.assume_orientation
    visits, unused = [], list(selection.unused)
    for visit in selection.visits:
        pets, left_aside = _usable_pets(visit, settings)
        unused += left_aside
        try:
            known = [(visit.t1w, _check_t1w(visit.t1w, orientation)), *pets]
        except Mri2petError as error:
            unused.append(Unused(visit.subject, visit.t1w.path, f"{error}", error.exit_code))
            continue
        notes = [note for _, header in known for note in header.notes]
        t1w, *others = (
            replace(scan, orientation=orientation) if header.assumed else scan
            for scan, header in known
        )
        visits.append(replace(visit, t1w=t1w, pets=tuple(others), notes=(*visit.notes, *notes)))
    return Selection(tuple(visits), tuple(unused))


def problem_of(
    error: Exception, subject: str, label: str, logs: Path | None, visit: str | None = None
) -> Problem:
    """Tell what went wrong for a participant; of an error that nobody foresaw, keep the traceback.

    Parameters
    ----------
    error : Exception
        That was caught.
    subject, label : str
        Whose; who or what, for people.
    logs : Path or None
        Gets the traceback, as ``crash-*``; None: it is kept nowhere.
    visit : str, optional
        Name of the visit's graph.
    """
    if isinstance(error, Mri2petError):
        return Problem(subject, f"{label}: {error}", error.exit_code, visit)
    said = " ".join(f"{type(error).__name__}: {error}".split())
    where = ""
    if logs is not None:
        name = re.sub(r"\W+", "-", label)
        path = logs / f"crash-{datetime.now():%Y%m%d-%H%M%S}-{name}-{uuid4().hex[:8]}.txt"
        write_text(path, f"{label}\n\n{''.join(traceback.format_exception(error))}")
        where = f"; its traceback is in {path}"
    return Problem(subject, f"{label}: {said}{where}", 1, visit)


def refuse_other_grids(images: Iterable[tuple[str, Path]], grid: Grid) -> list[Problem]:
    """See from headers who has images on another grid than the run's.

    Parameters
    ----------
    images : iterable of (str, Path)
        Label of a participant, and an image in the template's space.
    grid : Grid
        Of the run.

    Returns
    -------
    list of Problem
        One a participant, at most.
    """
    problems: dict[str, Problem] = {}
    for subject, path in images:
        try:
            nifti.check_grid(path, grid)
        except Exception as error:  # of any kind: it is this participant's
            problems.setdefault(subject, problem_of(error, subject, f"sub-{subject}", None))
    return list(problems.values())


def problems_of(selection: Selection) -> list[Problem]:
    """List what cannot be used although it was selected."""
    return [
        Problem(one.subject, one.reason, one.exit_code)
        for one in selection.unused
        if one.exit_code is not None
    ]


def refuse_nothing(selection: Selection) -> None:
    """Stop if there is nothing to work on.

    Raises
    ------
    MissingInputError, UnusableDataError
        If all that was selected is missing, or cannot be used.
    NothingSelectedError
        If nothing was selected.
    """
    if selection.visits:
        return
    problems = problems_of(selection)
    if not problems:
        raise NothingSelectedError("no image is left after all selections; look at --dry-run")
    raise error_of(problems)


def error_of(problems: Sequence[Problem]) -> Mri2petError:
    """Make one error of the problems of a run in which nothing could be used."""
    text = "; ".join(problem.sentence for problem in problems)
    codes = {problem.exit_code for problem in problems}
    for kind in (MissingInputError, UnusableDataError, ReadWriteError):
        if codes == {kind.exit_code}:
            return kind(text)
    if codes <= {MissingInputError.exit_code, UnusableDataError.exit_code}:
        return UnusableDataError(text)
    return Mri2petError(text)
