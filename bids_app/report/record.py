"""What a run says beyond its images, kept so that a report can be redone."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Final

from bids_app.errors import Mri2petError
from bids_app.files import read_json, write_json

FOLDER: Final = "logs"


@dataclass(frozen=True)
class Record:
    """A run, as a report tells it.

    Parameters
    ----------
    notes, problems : sequence of str
        Sentences.
    versions : dict
        Distribution → version.
    date : str
        When it ran.
    command : str
        The command line; empty if unknown.
    duration : float or None
        In seconds.
    settings : dict
        What the run was asked to do, as a reader is told; only the train level's.
    """

    notes: Sequence[str] = ()
    problems: Sequence[str] = ()
    versions: Mapping[str, str] = field(default_factory=dict)
    date: str = ""
    command: str = ""
    duration: float | None = None
    settings: Mapping[str, str] = field(default_factory=dict)


def path_of(output_dir: Path, report: str) -> Path:
    """Say where the record of a report lies: of ``sub-X``, or of ``train``."""
    return output_dir / FOLDER / f"{report}_report.json"


def read_record(output_dir: Path, report: str) -> Record:
    """Read the record of the last run; an empty one where there is none, or it is damaged."""
    try:
        found = read_json(path_of(output_dir, report))
    except Mri2petError:
        return Record()
    versions, duration, settings = (found.get(key) for key in ("versions", "duration", "settings"))
    return Record(
        notes=_sentences(found.get("notes")),
        problems=_sentences(found.get("problems")),
        versions=versions if isinstance(versions, dict) else {},
        date=str(found.get("date", "")),
        command=str(found.get("command", "")),
        duration=duration if isinstance(duration, float) else None,
        settings=settings if isinstance(settings, dict) else {},
    )


def write_record(output_dir: Path, report: str, record: Record) -> None:
    """Keep a record for later reports.

    Raises
    ------
    ReadWriteError
        If it cannot be written.
    """
    write_json(path_of(output_dir, report), asdict(record))


def _sentences(value: object) -> tuple[str, ...]:
    return tuple(map(str, value)) if isinstance(value, list) else ()
