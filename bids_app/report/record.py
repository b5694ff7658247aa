"""What a run says of a participant beyond its images, kept so that a report can be redone."""

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Final

from bids_app.errors import ReadWriteError
from bids_app.report.results import Json

FOLDER: Final = "logs"


@dataclass(frozen=True)
class Record:
    """A run, as the report of one participant tells it.

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
    """

    notes: Sequence[str] = ()
    problems: Sequence[str] = ()
    versions: Mapping[str, str] = field(default_factory=dict)
    date: str = ""
    command: str = ""
    duration: float | None = None


def path_of(output_dir: Path, subject: str) -> Path:
    """Say where the record of a participant lies."""
    return output_dir / FOLDER / f"sub-{subject}_report.json"


def read_record(output_dir: Path, subject: str) -> Record:
    """Read the record of the last run; an empty one where there is none, or it is damaged."""
    try:
        found = json.loads(path_of(output_dir, subject).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return Record()
    if not isinstance(found, dict):
        return Record()
    versions, duration = found.get("versions"), found.get("duration")
    return Record(
        notes=_sentences(found.get("notes")),
        problems=_sentences(found.get("problems")),
        versions=versions if isinstance(versions, dict) else {},
        date=str(found.get("date", "")),
        command=str(found.get("command", "")),
        duration=duration if isinstance(duration, float) else None,
    )


def write_record(output_dir: Path, subject: str, record: Record) -> None:
    """Keep a record for later reports.

    Raises
    ------
    ReadWriteError
        If it cannot be written.
    """
    content = json.dumps(asdict(record), indent=2, ensure_ascii=False) + "\n"
    write_text(path_of(output_dir, subject), content)


def write_text(path: Path, content: str) -> None:
    """Write a text file so that it is whole, or as it was before.

    Raises
    ------
    ReadWriteError
        If it cannot be written: no space, no permission.
    """
    partial = path.with_name(f".{os.getpid()}.{path.name}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        partial.write_text(content, encoding="utf-8")
        partial.replace(path)
    except OSError as error:
        partial.unlink(missing_ok=True)
        raise ReadWriteError(f"{path}: cannot be written ({error.strerror})") from error


def _sentences(value: Json) -> tuple[str, ...]:
    return tuple(map(str, value)) if isinstance(value, list) else ()
