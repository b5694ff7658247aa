"""From values to a page of HTML, by the templates in ``data/report``, and records of runs.

The latter is kept, so that a report can be made again.
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
from bids_app.files import read_json, write_json, write_text

UNKNOWN: Final = "unknown"
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
    style = Markup((TEMPLATES / "style.css").read_text(encoding="utf-8"))
    return PAGES.get_template(template).render(style=style, **values)


LOGS: Final = "logs"
HOUR: Final = 3600  # seconds


class RunSummary(TypedDict, total=False):
    """What a run tells of itself.

    Parameters
    ----------
    problems, notes : sequence of str
        Sentences: what went wrong; how scans, controls and patients were chosen.
    versions : dict
        Distribution → version (``mri2pet``, ``torch``, ``simpleitk``, ``nipype``, ``scipy`` …).
    date, command : str
        When the run was, and its command line.
    duration : float or None
        Of the run, in seconds; None if unknown.
    settings : dict
        What the run was asked to do, by the names of the flags, as JSON holds it; empty for the
        participant level.
    made_from : str
        Digest of the files that the report of a participant was made from; empty if not known.
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
    """Say where the record of a report lies: of ``sub-X``, or of ``train``."""
    return output_dir / LOGS / f"{report}_report.json"


def read_record(output_dir: Path, report: str) -> RunSummary:
    """Read the record of the last run; an empty one where there is none, or it is damaged."""
    try:
        record = read_json(path_of(output_dir, report))
    except Mri2petError:
        record = {}
    versions, duration, settings = (record.get(key) for key in ("versions", "duration", "settings"))
    return {
        "notes": _sentences(record.get("notes")),
        "problems": _sentences(record.get("problems")),
        "versions": versions if isinstance(versions, dict) else {},
        "date": str(record.get("date", "")),
        "command": str(record.get("command", "")),
        "duration": duration if isinstance(duration, float) else None,
        "settings": settings if isinstance(settings, dict) else {},
        "made_from": str(record.get("made_from", "")),
    }


def detector_of_run(record: RunSummary) -> Path | None:
    """Give the folder of detectors that a run applied; None if it trained its own."""
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
    """Write a report, and keep what the run tells; what it does not tell stays as it was.

    Parameters
    ----------
    output_dir : Path
        The derivative dataset.
    report : str
        The report's name: ``sub-X``, ``train`` or ``group``.
    summary : RunSummary
        Of the run.
    template : str
        A file in ``data/report``.
    gather : callable
        Gives what the template asks for, from the record.

    Returns
    -------
    Path
        The report.

    Raises
    ------
    ReadWriteError
        If report or record cannot be written. A missing file is no error: the report says so.
    """
    record: RunSummary = {**read_record(output_dir, report), **summary}
    record["settings"] = plain_settings(record["settings"])
    write_json(path_of(output_dir, report), record)
    values = {"record": record, "duration": describe_duration(record["duration"]), **gather(record)}
    path = output_dir / f"{report}.html"
    write_text(path, render(template, values))
    return path


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


def show(value: float | None, digits: int) -> str:
    """Write a number, or ``n/a``.

    Examples
    --------
    >>> show(0.98765, 3), show(None, 3), show(math.nan, 3), show(math.inf, 1)
    ('0.988', 'n/a', 'n/a', '∞')
    """
    if value is None or math.isnan(value):
        return "n/a"
    return "∞" if math.isinf(value) else f"{value:.{digits}f}"


def name_visit(participant: str, session: str | None) -> str:
    """Name a visit.

    Examples
    --------
    >>> name_visit("01", None), name_visit("01", "02")
    ('sub-01', 'sub-01, ses-02')
    """
    return f"sub-{participant}" + (f", ses-{session}" if session else "")


def enumerate_words(words: Sequence[str]) -> str:
    """Join words as a sentence does.

    Examples
    --------
    >>> enumerate_words(["9", "9", "8"]), enumerate_words(["9"])
    ('9, 9 and 8', '9')
    """
    *first, last = words
    return f"{', '.join(first)} and {last}" if first else last


def describe_demonstration(*texts: str) -> str:
    """Say why what a card describes is not meant for real studies; empty if it may be.

    Examples
    --------
    >>> describe_demonstration("Research.", "T1w and PET SIMULATED on label maps.")
    'trained on simulated images'
    >>> describe_demonstration("A demonstration.", "Simulated images.")
    'for demonstration and trained on simulated images'
    """
    words = {"demonstrat": "for demonstration", "simulat": "trained on simulated images"}
    reasons = [reason for word, reason in words.items() if word in " ".join(texts).lower()]
    return " and ".join(reasons)


# Whom a note is of
PARTICIPANT_PREFIX: Final = re.compile(r"(sub-[0-9A-Za-z+]+)(?: ses-[0-9A-Za-z+]+)?: ")


def gather_alike(sentences: Sequence[str]) -> list[str]:
    """Say once what sentences say alike of many participants, where the first is said.

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


# Made once: templates are then compiled once in a run, and not for each participant's page.
PAGES: Final = Environment(
    loader=FileSystemLoader(TEMPLATES),
    autoescape=True,
    undefined=StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
)
PAGES.filters["described"] = describe_settings
PAGES.filters["gathered"] = gather_alike
