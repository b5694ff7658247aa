"""From values to a page of HTML, by the templates in ``data/report``, and records of runs.

The latter is kept, so that a report can be made again.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Final, TypeAlias, TypedDict

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from bids_app.derivatives.description import plain_settings
from bids_app.errors import Mri2petError
from bids_app.files import MISSING, read_json, read_tsv, write_json

TEMPLATES: Final = Path(__file__).parents[1] / "data" / "report"


def render(template: str, values: Mapping[str, object]) -> str:
    """Fill in a template.

    Parameters
    ----------
    template : str
        A file in ``data/report``.
    values : dict
        What it asks for; all text is escaped.

    Returns
    -------
    str
        A page that needs no other file: the style sheet is inside.
    """
    environment = Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    style = Markup((TEMPLATES / "style.css").read_text(encoding="utf-8"))
    environment.filters["described"] = describe_settings
    return environment.get_template(template).render(style=style, **values)


LOGS: Final = "logs"


@dataclass(frozen=True)
class RecordSection:
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
        What the run was asked to do, by the names of the flags, as JSON holds it; empty for the
        participant level.
    """

    notes: Sequence[str] = ()
    problems: Sequence[str] = ()
    versions: Mapping[str, str] = field(default_factory=dict)
    date: str = ""
    command: str = ""
    duration: float | None = None
    settings: Mapping[str, object] = field(default_factory=dict)

    @property
    def detector(self) -> Path | None:
        """The folder of detectors that were applied; None if the run trained its own."""
        folder = self.settings.get("detector")
        return Path(folder) if isinstance(folder, str) and folder else None


def path_of(output_dir: Path, report: str) -> Path:
    """Say where the record of a report lies: of ``sub-X``, or of ``train``."""
    return output_dir / LOGS / f"{report}_report.json"


def read_record(output_dir: Path, report: str) -> RecordSection:
    """Read the record of the last run; an empty one where there is none, or it is damaged."""
    try:
        found = read_json(path_of(output_dir, report))
    except Mri2petError:
        return RecordSection()
    versions, duration, settings = (found.get(key) for key in ("versions", "duration", "settings"))
    return RecordSection(
        notes=_sentences(found.get("notes")),
        problems=_sentences(found.get("problems")),
        versions=versions if isinstance(versions, dict) else {},
        date=str(found.get("date", "")),
        command=str(found.get("command", "")),
        duration=duration if isinstance(duration, float) else None,
        settings=settings if isinstance(settings, dict) else {},
    )


def write_record(output_dir: Path, report: str, record: RecordSection) -> None:
    """Keep a record for later reports.

    Raises
    ------
    ReadWriteError
        If it cannot be written.
    """
    write_json(path_of(output_dir, report), asdict(record))


def _sentences(value: object) -> tuple[str, ...]:
    return tuple(map(str, value)) if isinstance(value, list) else ()


Cells: TypeAlias = Mapping[str, str]


def as_value(cell: str | None) -> float | None:
    """Read a number, perhaps infinite; None if it is none.

    Examples
    --------
    >>> as_value("0.88"), as_value("inf"), as_value("n/a"), as_value("nan"), as_value(None)
    (0.88, inf, None, None, None)
    """
    try:
        value = float(MISSING if cell is None else cell)
    except ValueError:
        return None
    return None if math.isnan(value) else value


def as_count(cell: str | None) -> int | None:
    """Read a whole number; None if it is none.

    Examples
    --------
    >>> as_count("9"), as_count("9.5"), as_count("inf")
    (9, None, None)
    """
    value = as_value(cell)
    return int(value) if value is not None and value.is_integer() else None


def as_label(cell: str | None) -> str:
    """Read a label; empty where there is none."""
    return "" if cell is None or cell == MISSING else cell


def read_lines(
    output_dir: Path, name: str, needed: Sequence[str]
) -> tuple[list[Cells], tuple[str, ...]]:
    """Read a table.

    Parameters
    ----------
    output_dir : Path
        The derivative dataset.
    name : str
        The table, as a path inside it.
    needed : sequence of str
        Columns without which a line says nothing.

    Returns
    -------
    list of dict
        Column → cell, a line each; none if there is no such table.
    tuple of str
        What is missing or damaged, a sentence each.
    """
    try:
        lines = read_tsv(output_dir / name)
    except Mri2petError:
        return [], (f"{name} cannot be read.",)
    if not lines:
        state = "is empty" if (output_dir / name).exists() else "is missing"
        return [], (f"{name} {state}.",)
    whole: list[Cells] = [line for line in lines if all(as_label(line.get(c)) for c in needed)]
    lost = len(lines) - len(whole)
    columns = " or ".join(needed)
    return whole, (f"{name}: {lost} of its lines lack {columns} and are left out.",) * (lost > 0)


HOUR: Final = 3600  # seconds


class RunSummary(TypedDict, total=False):
    """What a run tells of itself.

    Parameters
    ----------
    problems, notes : sequence of str
        Sentences: what went wrong; how scans, controls and patients were chosen.
    versions : dict
        Distribution → version (``mri2pet``, ``torch``, ``antspyx``, ``nipype``, ``scipy`` …).
    date, command : str
        When the run was, and its command line.
    duration : float
        Of the run, in seconds.
    settings : dict
        What the run was asked to do, by the names of the flags.
    """

    problems: Sequence[str]
    notes: Sequence[str]
    versions: Mapping[str, str]
    date: str
    command: str
    duration: float
    settings: Mapping[str, object]


def renew(output_dir: Path, report: str, told: RunSummary) -> RecordSection:
    """Bring the record of a report up to date, and keep it; what is not told stays as it was.

    Parameters
    ----------
    output_dir : Path
        The derivative dataset.
    report : str
        The report's name.
    told : RunSummary
        Of the run.

    Raises
    ------
    ReadWriteError
        If the record cannot be written.
    """
    last = read_record(output_dir, report)
    record = RecordSection(
        problems=tuple(told.get("problems", last.problems)),
        notes=tuple(told.get("notes", last.notes)),
        versions=dict(told.get("versions", last.versions)),
        date=told.get("date", last.date),
        command=told.get("command", last.command),
        duration=told.get("duration", last.duration),
        settings=plain_settings(told.get("settings", last.settings)),
    )
    write_record(output_dir, report, record)
    return record


def describe_settings(settings: Mapping[str, object]) -> dict[str, str]:
    """Write settings of a record as a reader sees them; those that were not made are left out.

    Examples
    --------
    >>> describe_settings({"nu": 0.03, "detectors": ["ocsvm", "zscore"], "atlas": None, "runs": []})
    {'nu': '0.03', 'detectors': 'ocsvm, zscore'}
    >>> describe_settings({"derivatives": [["masks", "/data/masks"]]})
    {'derivatives': 'masks=/data/masks'}
    """
    return {
        name: ", ".join(map(_describe_part, value)) if isinstance(value, list) else str(value)
        for name, value in settings.items()
        if value is not None and value != []
    }


def _describe_part(part: object) -> str:
    return "=".join(map(str, part)) if isinstance(part, list) else str(part)


def describe_duration(seconds: float | None) -> str:
    """Write a duration as a reader says it.

    Examples
    --------
    >>> describe_duration(7320.0), describe_duration(755.2), describe_duration(None)
    ('2 h 2 min', '12 min 35 s', '')
    """
    if seconds is None:
        return ""
    minutes, rest = divmod(round(seconds), 60)
    if seconds >= HOUR:
        return f"{minutes // 60} h {minutes % 60} min"
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"
