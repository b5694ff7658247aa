"""The table of participants."""

import csv
from pathlib import Path

from bids_app.errors import ReadWriteError, UnusableDataError

MISSING = "n/a"


def _rows(path: Path) -> list[list[str]]:
    try:
        text = path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise ReadWriteError(f"{path}: cannot be read ({error.strerror})") from error
    except UnicodeDecodeError as error:
        raise UnusableDataError(f"{path}: not UTF-8 text; save it again as UTF-8") from error
    lines = [line for line in text.splitlines() if line.strip()]
    try:
        return list(csv.reader(lines, delimiter="\t", quoting=csv.QUOTE_NONE))
    except csv.Error as error:
        raise UnusableDataError(f"{path}: not a table of tabs ({error}); correct it") from error


def read_participants(bids_dir: Path) -> dict[str, dict[str, str]]:
    """Read ``participants.tsv``, where there is one.

    Parameters
    ----------
    bids_dir : Path
        Root of a dataset.

    Returns
    -------
    dict
        Columns and cells by participant label, without ``sub-``. Cells a row lacks are ``n/a``.
        Participants may be missing, or not be in the dataset.

    Raises
    ------
    UnusableDataError
        If it is no table of tabs with a column ``participant_id``, or names one twice.
    ReadWriteError
        If it cannot be read.
    """
    path = bids_dir / "participants.tsv"
    if not path.exists():
        return {}
    rows = _rows(path)
    header = [name.strip() for name in rows[0]] if rows else []
    if "participant_id" not in header:
        raise UnusableDataError(
            f"{path}: has no column participant_id; name it so, and separate columns by tabs"
        )
    participants: dict[str, dict[str, str]] = {}
    for number, full in enumerate(rows[1:], start=2):
        row = full
        while len(row) > len(header) and not row[-1].strip():
            row = row[:-1]  # tabs at the end of a line
        if len(row) > len(header):
            raise UnusableDataError(
                f"{path}: row {number} has {len(row)} cells under {len(header)} columns; correct it"
            )
        cells = [cell.strip() for cell in row] + [MISSING] * (len(header) - len(row))
        record = dict(zip(header, cells, strict=True))
        label = record.pop("participant_id").removeprefix("sub-")
        if label in participants:
            raise UnusableDataError(f"{path}: sub-{label[:60]} stands in it twice; remove one row")
        participants[label] = record
    return participants
