"""Sessions of a participant: which one is nearest to another."""

import csv
import re
from collections.abc import Iterable, Mapping
from datetime import datetime
from pathlib import Path

from bids_app.errors import Mri2petError
from bids_app.files import read_text

Session = str | None


def natural_key(text: Session) -> tuple[tuple[int, int, str], ...]:
    """Sort key under which ``2`` comes before ``10``, and no session before all.

    Examples
    --------
    >>> sorted(["m10", "m2", "baseline"], key=natural_key)
    ['baseline', 'm2', 'm10']
    """
    if text is None:
        return ()
    parts = re.findall(r"\d+|\D+", text)
    return tuple((0, int(p), p) if p.isdecimal() else (1, 0, p) for p in parts)


def _datetime(text: str) -> datetime | None:
    try:
        return datetime.fromisoformat(text.strip()).replace(tzinfo=None)
    except ValueError:
        return None


def read_session_times(bids_dir: Path, subject: str) -> dict[Session, datetime]:
    """Read when each session was, from ``sub-X_sessions.tsv``; what cannot be read is left out."""
    path = bids_dir / f"sub-{subject}" / f"sub-{subject}_sessions.tsv"
    try:
        rows = list(csv.DictReader(read_text(path).splitlines(), delimiter="\t"))
    except (Mri2petError, csv.Error):
        return {}
    times: dict[Session, datetime] = {}
    for row in rows:
        label, text = row.get("session_id"), row.get("acq_time")
        time = None if text is None else _datetime(text)
        if label is not None and time is not None:
            times[label.removeprefix("ses-")] = time
    return times


def nearest_session(
    session: Session, candidates: Iterable[Session], times: Mapping[Session, datetime]
) -> Session:
    """Choose the candidate nearest to a session; of two as near, the earlier.

    Parameters
    ----------
    session : str or None
        The session that needs a partner.
    candidates : iterable of str or None
        At least one.
    times : mapping
        When each session was. Used if all are known; else the distance is that between ranks of
        the sorted labels.

    Examples
    --------
    >>> nearest_session("02", ["01", "03", "04"], {})
    '01'
    """
    options = sorted(set(candidates), key=natural_key)
    everyone = sorted({session, *options}, key=natural_key)
    if all(label in times for label in everyone):
        here = times[session]
        return min(options, key=lambda label: (abs(times[label] - here), times[label]))
    rank = {label: position for position, label in enumerate(everyone)}
    return min(options, key=lambda label: (abs(rank[label] - rank[session]), rank[label]))
