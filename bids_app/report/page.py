"""Rendering of HTML pages from the templates in ``data/report``, and records of runs.

Records are kept so that a report can be rebuilt.
"""

import math
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Final, TypedDict

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from bids_app.derivatives.description import plain_settings
from bids_app.errors import NAMED_AT_MOST, Mri2petError, name_some
from bids_app.files import object_at, read_json, write_json, write_text

UNKNOWN: Final = "unknown"
TEMPLATES: Final = Path(__file__).parents[1] / "data" / "report"


def render(template: str, values: Mapping[str, object]) -> str:
    """Render a template.

    Parameters
    ----------
    template : str
        Name of a file in ``data/report``.
    values : dict
        Variables of the template; all text is escaped.

    Returns
    -------
    str
        Self-contained page, including the style sheet.
    """
    style = Markup((TEMPLATES / "style.css").read_text(encoding="utf-8"))
    return PAGES.get_template(template).render(style=style, **values)


LOGS: Final = "logs"
HOUR: Final = 3600  # seconds


class RunSummary(TypedDict, total=False):
    """Summary of a run.

    Parameters
    ----------
    problems, notes : sequence of str
        Sentences on what went wrong, and on how scans, controls and patients were chosen.
    versions : dict
        Version of each distribution (``mri2pet``, ``torch``, ``simpleitk``, ``nipype``, ``scipy``
        …).
    date, command : str
        Date of the run, and its command line.
    duration : float or None
        Duration of the run in seconds; None if unknown.
    settings : dict
        Options of the run, by the names of the flags, as JSON values; empty for the participant
        level.
    made_from : str
        Digest of the files from which the report of a participant was made; empty if unknown.
    """

    problems: Sequence[str]
    notes: Sequence[str]
    versions: Mapping[str, str]
    date: str
    command: str
    duration: float | None
    settings: Mapping[str, object]
    made_from: str


def path_of(output_dir: Path, report: str) -> Path:
    """Return the path of the record of a report: ``sub-X``, ``train`` or ``group``."""
    return output_dir / LOGS / f"{report}_report.json"


def read_record(output_dir: Path, report: str) -> RunSummary:
    """Read the record of the last run; return an empty one if it is missing or damaged."""
    try:
        record = read_json(path_of(output_dir, report))
    except Mri2petError:
        record = {}
    duration = record.get("duration")
    return {
        "notes": _sentences(record.get("notes")),
        "problems": _sentences(record.get("problems")),
        "versions": object_at(record, "versions"),
        "date": str(record.get("date", "")),
        "command": str(record.get("command", "")),
        "duration": duration if isinstance(duration, float) else None,
        "settings": object_at(record, "settings"),
        "made_from": str(record.get("made_from", "")),
    }


def detector_of_run(record: RunSummary) -> Path | None:
    """Return the folder of the detectors that a run applied; None if it trained its own."""
    folder = record["settings"].get("detector")
    return Path(folder) if isinstance(folder, str) and folder else None


def _sentences(value: object) -> tuple[str, ...]:
    return tuple(map(str, value)) if isinstance(value, list) else ()


def write_report(
    output_dir: Path,
    report: str,
    summary: RunSummary,
    template: str,
    gather: Callable[[RunSummary], Mapping[str, object]],
) -> Path:
    """Write a report and update its record; fields missing from ``summary`` are kept.

    Parameters
    ----------
    output_dir : Path
        Path of the derivative dataset.
    report : str
        Name of the report: ``sub-X``, ``train`` or ``group``.
    summary : RunSummary
        Summary of the run.
    template : str
        Name of a file in ``data/report``.
    gather : callable
        Function that returns the variables of the template, given the record.

    Returns
    -------
    Path
        Path of the report.

    Raises
    ------
    ReadWriteError
        If the report or its record cannot be written. Missing input files do not raise an error
        but are mentioned in the report.
    """
    record: RunSummary = {**read_record(output_dir, report), **summary}
    record["settings"] = plain_settings(record["settings"])
    write_json(path_of(output_dir, report), record)
    values = {"record": record, "duration": describe_duration(record["duration"]), **gather(record)}
    path = output_dir / f"{report}.html"
    write_text(path, render(template, values))
    return path


def describe_settings(settings: Mapping[str, object]) -> dict[str, str]:
    """Format the settings of a record for readers; unset ones are left out.

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
    """Format a duration for readers.

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


def show(value: float | None, digits: int) -> str:
    """Format a number, with a minus sign unless it rounds to 0, or return ``n/a``.

    Examples
    --------
    >>> show(0.98765, 3), show(None, 3), show(math.nan, 3), show(math.inf, 1)
    ('0.988', 'n/a', 'n/a', '∞')
    >>> show(-0.04, 1), show(-0.06, 1)
    ('0.0', '−0.1')
    """
    if value is None or math.isnan(value):
        return "n/a"
    return "∞" if math.isinf(value) else f"{value:z.{digits}f}".replace("-", "−")


def name_visit(participant: str, session: str | None) -> str:
    """Return the name of a visit, whose labels may have their prefixes.

    Examples
    --------
    >>> name_visit("01", None), name_visit("01", "02"), name_visit("sub-01", "ses-02")
    ('sub-01', 'sub-01, ses-02', 'sub-01, ses-02')
    """
    name = f"sub-{participant.removeprefix('sub-')}"
    return f"{name}, ses-{session.removeprefix('ses-')}" if session else name


def enumerate_words(words: Sequence[str]) -> str:
    """Join words into an enumeration.

    Examples
    --------
    >>> enumerate_words(["9", "9", "8"]), enumerate_words(["9"])
    ('9, 9 and 8', '9')
    """
    *first, last = words
    return f"{', '.join(first)} and {last}" if first else last


def describe_demonstration(*texts: str) -> str:
    """Return why the model of a card is not meant for real studies; empty if it may be.

    Examples
    --------
    >>> describe_demonstration("Research.", "T1w and PET SIMULATED on label maps.")
    'trained on simulated images'
    >>> describe_demonstration("A demonstration.", "Simulated images.")
    'meant for demonstration and trained on simulated images'
    """
    words = {"demonstrat": "meant for demonstration", "simulat": "trained on simulated images"}
    reasons = [reason for word, reason in words.items() if word in " ".join(texts).lower()]
    return " and ".join(reasons)


# Participant to whom a note refers
PARTICIPANT_PREFIX: Final = re.compile(r"(sub-[0-9A-Za-z+]+)(?: ses-[0-9A-Za-z+]+)?: ")


def gather_alike(sentences: Sequence[str]) -> list[str]:
    """Merge sentences that are alike for many participants, at the place of the first.

    Examples
    --------
    >>> notes = [f"sub-{n}: its mask is sub-{n}_mask.nii.gz" for n in "1234567"]
    >>> for note in gather_alike([*notes, "sub-1: has no PET"]):
    ...     print(note)
    sub-1, sub-2, sub-3, sub-4, sub-5 and 2 more: its mask is sub-…_mask.nii.gz
    sub-1: has no PET
    """
    alike: dict[str, list[tuple[str, str]]] = {}
    for sentence in sentences:
        match = PARTICIPANT_PREFIX.match(sentence)
        label = match[1] if match else ""
        text = sentence[match.end() :].replace(label, "sub-…") if match else sentence
        alike.setdefault(text if match else f"\n{sentence}", []).append((label, sentence))
    gathered = list[str]()
    for text, notes in alike.items():
        names = list(dict.fromkeys(label for label, _ in notes))
        if len(names) > NAMED_AT_MOST:
            gathered.append(f"{name_some(names)}: {text}")
        else:
            gathered += [sentence for _, sentence in notes]
    return gathered


# Created once so that templates are compiled once per run, not for each participant's page.
PAGES: Final = Environment(
    loader=FileSystemLoader(TEMPLATES),
    autoescape=True,
    undefined=StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
)
PAGES.filters["described"] = describe_settings
PAGES.filters["gathered"] = gather_alike
