"""Problems of single participants, and the error of a run in which nothing could be used."""

import re
import traceback
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from uuid import uuid4

from bids_app import nifti
from bids_app.errors import MissingInputError, Mri2petError, ReadWriteError, UnusableDataError
from bids_app.files import write_text
from bids_app.imaging.volume import Grid


@dataclass(frozen=True)
class Problem:
    """Problem of a participant.

    Parameters
    ----------
    subject, sentence : str
        Participant, and a sentence that says what is wrong, where, and what to do.
    exit_code : int
        Exit code of the run, if nothing else could be used either.
    visit : str or None
        Name of the visit's workflow, or of another that is lost as a whole; see
        :func:`bids_app.workflows.execution.label_nodes`. None if images were excluded before there
        was a workflow.
    fatal : bool
        Whether the visit is left without the results of its T1w.
    """

    subject: str
    sentence: str
    exit_code: int
    visit: str | None = None
    fatal: bool = True


def problem_of(
    error: Exception, subject: str, label: str, logs: Path | None, visit: str | None = None
) -> Problem:
    """Describe the problem of a participant, and write the traceback of an unexpected error.

    Parameters
    ----------
    error : Exception
        Caught exception.
    subject, label : str
        Participant; label of the participant or step, as shown to users.
    logs : Path or None
        Folder for the traceback, ``crash-*``; None if it is not kept.
    visit : str, optional
        Name of the visit's workflow.
    """
    if isinstance(error, Mri2petError):
        return Problem(subject, f"{label}: {error}", error.exit_code, visit)
    said = " ".join(f"{type(error).__name__}: {error}".split())
    hint = ""
    if logs is not None:
        name = re.sub(r"\W+", "-", label)
        path = logs / f"crash-{datetime.now():%Y%m%d-%H%M%S}-{name}-{uuid4().hex[:8]}.txt"
        write_text(path, f"{label}\n\n{''.join(traceback.format_exception(error))}")
        hint = f"; its traceback is in {path}"
    return Problem(subject, f"{label}: {said}{hint}", 1, visit)


def refuse_other_grids(images: Iterable[tuple[str, Path]], grid: Grid) -> list[Problem]:
    """Find participants whose images, by their headers, lie on another grid than the run's.

    Parameters
    ----------
    images : iterable of (str, Path)
        Label of a participant, and an image in the template's space.
    grid : Grid
        Grid of the run.

    Returns
    -------
    list of Problem
        At most one problem per participant.
    """
    problems: dict[str, Problem] = {}
    for subject, path in images:
        try:
            nifti.check_grid(path, grid)
        except Exception as error:  # of any kind: it only affects this participant
            problems.setdefault(subject, problem_of(error, subject, f"sub-{subject}", None))
    return list(problems.values())


def error_of(problems: Sequence[Problem]) -> Mri2petError:
    """Combine the problems of a run in which nothing could be used into one error."""
    text = "; ".join(problem.sentence for problem in problems)
    codes = {problem.exit_code for problem in problems}
    for kind in (MissingInputError, UnusableDataError, ReadWriteError):
        if codes == {kind.exit_code}:
            return kind(text)
    if codes <= {MissingInputError.exit_code, UnusableDataError.exit_code}:
        return UnusableDataError(text)
    return Mri2petError(text)
