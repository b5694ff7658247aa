"""What a run tells of itself for its report: some of it anew, the rest as the last run did."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final, TypedDict

from bids_app.report.record import Record, read_record, write_record

HOUR: Final = 3600  # seconds


class Told(TypedDict, total=False):
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


def renew(output_dir: Path, report: str, told: Told) -> Record:
    """Bring the record of a report up to date, and keep it; what is not told stays as it was.

    Parameters
    ----------
    output_dir : Path
        The derivative dataset.
    report : str
        The report's name.
    told : Told
        Of the run.

    Raises
    ------
    ReadWriteError
        If the record cannot be written.
    """
    last = read_record(output_dir, report)
    record = Record(
        problems=tuple(told.get("problems", last.problems)),
        notes=tuple(told.get("notes", last.notes)),
        versions=dict(told.get("versions", last.versions)),
        date=told.get("date", last.date),
        command=told.get("command", last.command),
        duration=told.get("duration", last.duration),
        settings=tell_settings(told.get("settings", last.settings)),
    )
    write_record(output_dir, report, record)
    return record


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


def tell_duration(seconds: float | None) -> str:
    """Write a duration as a reader says it.

    Examples
    --------
    >>> tell_duration(7320.0), tell_duration(755.2), tell_duration(None)
    ('2 h 2 min', '12 min 35 s', '')
    """
    if seconds is None:
        return ""
    minutes, rest = divmod(round(seconds), 60)
    if seconds >= HOUR:
        return f"{minutes // 60} h {minutes % 60} min"
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"
