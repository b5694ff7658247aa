"""What a run tells of itself for its report: some of it anew, the rest as the last run did."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

from bids_app.report.record import Record, read_record
from bids_app.report.subject import tell_duration

HOUR: Final = 3600  # seconds


def renew(
    output_dir: Path,
    report: str,
    *,
    problems: Sequence[str] | None,
    notes: Sequence[str] | None,
    versions: Mapping[str, str] | None,
    date: str | None,
    command: str | None,
    duration: float | None,
    settings: Mapping[str, object] | None,
) -> Record:
    """Bring the record of a report up to date; what is None stays as it was.

    Parameters
    ----------
    output_dir : Path
        The derivative dataset.
    report : str
        The report's name.
    problems, notes, versions, date, command, duration, settings
        As :func:`bids_app.report.group.write_group_report` takes them.
    """
    last = read_record(output_dir, report)
    return Record(
        notes=last.notes if notes is None else tuple(notes),
        problems=last.problems if problems is None else tuple(problems),
        versions=last.versions if versions is None else dict(versions),
        date=last.date if date is None else date,
        command=last.command if command is None else command,
        duration=last.duration if duration is None else float(duration),
        settings=last.settings if settings is None else tell_settings(settings),
    )


def tell_settings(settings: Mapping[str, object]) -> dict[str, str]:
    """Write settings as a reader sees them; those that were not made are left out.

    Examples
    --------
    >>> tell_settings({"nu": 0.03, "detectors": ("ocsvm", "zscore"), "atlas": None, "runs": ()})
    {'nu': '0.03', 'detectors': 'ocsvm, zscore'}
    """
    return {
        name: ", ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)
        for name, value in settings.items()
        if value is not None and value != ()
    }


def tell_hours(seconds: float | None) -> str:
    """Write a duration, with its hours where it is long.

    Examples
    --------
    >>> tell_hours(7320.0), tell_hours(62.0), tell_hours(None)
    ('2 h 2 min', '1 min 2 s', '')
    """
    if seconds is None or seconds < HOUR:
        return tell_duration(seconds)
    hours, rest = divmod(round(seconds), HOUR)
    return f"{hours} h {rest // 60} min"
