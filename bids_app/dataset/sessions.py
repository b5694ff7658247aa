"""Sessions of a participant: the distances between them, and the nearest one."""

import re
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path

from bids_app.errors import Mri2petError
from bids_app.files import read_tsv

Session = str | None

DAY = 86400.0  # s
YEARS = range(1900, 2100)  # range in which a label may be a date
# Formats of dates in labels; "2020-06-01" is not a legal label.
DATES = ("%Y%m%d", "%Y%m%dT%H%M%S", "%Y%m%dT%H%M", "%Y%m%d%H%M%S", "%Y%m%d%H%M")
AMBIGUOUS = (("%Y%m", "%y%m%d"), ("%d%m%Y", "%m%d%Y"))  # used only if one of a pair fits
FIRST = re.compile(r"baseline|base|bl", re.I)  # session 0 among numbered ones
NUMBERED = re.compile(r"(\D*)(\d+)(\D*)")
IMAGES = re.compile(r".*_(T1w|pet)\.nii(\.gz)?")


def natural_key(text: Session) -> tuple[tuple[int, int, str], ...]:
    """Return a sort key that orders ``2`` before ``10``, and no session before all others.

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
    """Parse a BIDS date and time as UTC; without a time zone, UTC is assumed.

    >>> _datetime("2020-01-01T23:00:00-05:00")
    datetime.datetime(2020, 1, 2, 4, 0)
    """
    try:
        time = datetime.fromisoformat(text.strip())
        return time if time.tzinfo is None else time.astimezone(UTC).replace(tzinfo=None)
    except (ValueError, OverflowError):  # the latter if the zone moves it out of the calendar
        return None


def _rows(path: Path) -> list[dict[str, str]]:
    """Read an optional table; one that cannot be read counts as missing."""
    try:
        return read_tsv(path) if path.is_file() else []
    except (Mri2petError, OSError):
        return []


def _scan_times(folder: Path, subject: str, session: Session) -> Iterator[datetime]:
    label = "" if session is None else f"_ses-{session}"
    for row in _rows(folder / f"sub-{subject}{label}_scans.tsv"):
        time = _datetime(row.get("acq_time", ""))
        if time is not None and IMAGES.fullmatch(row.get("filename", "")):
            yield time


def read_session_times(
    bids_dir: Path, subject: str, sessions: Iterable[Session] = ()
) -> dict[Session, datetime]:
    """Read the times of sessions; those that cannot be read are left out.

    Parameters
    ----------
    bids_dir : Path
        Root of the raw dataset.
    subject : str
        Label of the participant.
    sessions : iterable of str or None
        Sessions to look up in ``sub-X_scans.tsv`` (first T1w or PET) if they are not in
        ``sub-X_sessions.tsv``.
    """
    top = bids_dir / f"sub-{subject}"
    times: dict[Session, datetime] = {}
    for row in _rows(top / f"sub-{subject}_sessions.tsv"):
        time = _datetime(row.get("acq_time", ""))
        if time is not None and row.get("session_id"):
            times[row["session_id"].strip().removeprefix("ses-")] = time
    for session in sessions:
        if session not in times:
            folder = top if session is None else top / f"ses-{session}"
            first = min(_scan_times(folder, subject, session), default=None)
            times |= {} if first is None else {session: first}
    return times


def _read_date(text: str, form: str) -> datetime | None:
    try:
        date = datetime.strptime(text, form)
    except ValueError:
        return None
    whole = date.strftime(form) == text  # strptime also accepts "2020111"
    return date if whole and date.year in YEARS else None


def _letters(labels: Collection[str]) -> str:
    """Return the common prefix of letters of all labels, such as ``MR`` of ``MR20200601``."""
    letters = {re.split(r"\d", label, maxsplit=1)[0] for label in labels}
    return letters.pop() if len(letters) == 1 else ""


def _dates_by(labels: Collection[str], form: str) -> dict[Session, datetime] | None:
    dates = {label: _read_date(label.removeprefix(_letters(labels)), form) for label in labels}
    known: dict[Session, datetime] = {k: date for k, date in dates.items() if date is not None}
    return known if len(known) == len(dates) else None


def _dates(labels: Collection[str]) -> dict[Session, datetime] | None:
    """Read labels as dates if all of them fit one unambiguous format."""
    for form in DATES:
        dates = _dates_by(labels, form)
        if dates is not None:
            return dates
    for forms in AMBIGUOUS:
        readings = [dates for form in forms if (dates := _dates_by(labels, form)) is not None]
        if len(readings) == 1:
            return readings[0]
    return None


def _numbers(labels: Iterable[str]) -> dict[Session, float] | None:
    """Read the numbers of labels that differ only in their number; a baseline is 0."""
    found = {label: NUMBERED.fullmatch(label) for label in labels}
    first = {label for label, match in found.items() if match is None and FIRST.fullmatch(label)}
    matches = {label: match for label, match in found.items() if match is not None}
    around = {(match[1].lower(), match[3].lower()) for match in matches.values()}
    if len(around) != 1 or len(first) + len(matches) != len(found):
        return None
    return {label: 0.0 if label in first else float(matches[label][2]) for label in found}


def _days(times: Mapping[Session, datetime]) -> dict[Session, float]:
    earliest = min(times.values())
    return {label: (time - earliest).total_seconds() / DAY for label, time in times.items()}


def place_sessions(
    sessions: Iterable[Session], times: Mapping[Session, datetime]
) -> tuple[dict[Session, float], str]:
    """Place sessions on a common axis by the best information available.

    Parameters
    ----------
    sessions : iterable of str or None
        Labels of sessions, at least one.
    times : mapping
        Times of sessions.

    Returns
    -------
    places : dict
        Position of each session: days, if all times are known or all labels are dates; numbers, if
        labels differ only in their number; otherwise ranks of the sorted labels.
    measure : {"acq_time", "dates", "numbers", "order"}
        Kind of position.

    Examples
    --------
    >>> place_sessions(["M054", "M060", "M000"], {})
    ({'M054': 54.0, 'M060': 60.0, 'M000': 0.0}, 'numbers')
    >>> place_sessions(["20200101", "20200301"], {})
    ({'20200101': 0.0, '20200301': 60.0}, 'dates')
    """
    everything = list(sessions)
    if all(label in times for label in everything):
        return _days({label: times[label] for label in everything}), "acq_time"
    labels = [label for label in everything if label is not None]
    if len(labels) == len(everything):
        dates = _dates(labels)
        if dates is not None:
            return _days(dates), "dates"
        # Ambiguous dates of six or eight digits have no meaningful distance as numbers.
        numbers = None if _may_be_dates(labels) else _numbers(labels)
        if numbers is not None:
            return numbers, "numbers"
    ordered = sorted(set(everything), key=natural_key)
    return {label: float(rank) for rank, label in enumerate(ordered)}, "order"


def _may_be_dates(labels: Collection[str]) -> bool:
    return any(_dates_by(labels, form) is not None for forms in AMBIGUOUS for form in forms)


def nearest_session(
    session: Session, candidates: Iterable[Session], times: Mapping[Session, datetime]
) -> Session:
    """Choose the candidate nearest to a session, or the earlier of two equally near ones.

    Parameters
    ----------
    session : str or None
        Session to match.
    candidates : iterable of str or None
        Sessions to choose from, at least one.
    times : mapping
        Times of sessions; see :func:`place_sessions` for the measure of distance.

    Examples
    --------
    >>> nearest_session("02", ["01", "03", "04"], {})
    '01'
    >>> nearest_session("M054", ["M000", "M060"], {})
    'M060'
    """
    options = sorted(set(candidates), key=natural_key)
    places, _ = place_sessions({session, *options}, times)
    place = places[session]
    return min(options, key=lambda label: (abs(places[label] - place), places[label]))


DISTANCES: Mapping[str, Callable[[float], str]] = {
    "acq_time": lambda apart: f"{apart:.4g} days apart by acq_time",
    "dates": lambda apart: f"{apart:.4g} days apart by the dates in their labels",
    "numbers": lambda apart: f"{apart:g} apart by the numbers in their labels",
    "order": lambda apart: (
        f"{apart:g} apart in the order of labels, because not all have dates or numbers"
    ),
}


def describe_distance(
    session: Session,
    nearest: Session,
    candidates: Iterable[Session],
    times: Mapping[Session, datetime],
) -> str:
    """Describe the distance of the nearest session, how it was measured, and any tie.

    Examples
    --------
    >>> describe_distance("M054", "M060", ["M000", "M060"], {})
    '6 apart by the numbers in their labels'
    >>> describe_distance("2", "1", ["1", "3"], {})
    '1 apart by the numbers in their labels, the earlier of two equally near ones'
    """
    options = set(candidates)
    places, measure = place_sessions(sorted({session, *options}, key=natural_key), times)
    apart = abs(places[nearest] - places[session])
    as_near = sum(abs(places[label] - places[session]) == apart for label in options)
    tie = ", the earlier of two equally near ones" if as_near > 1 else ""
    return DISTANCES[measure](apart) + tie
