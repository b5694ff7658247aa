"""Reading of ``participants.tsv``."""

import re
from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path

from bids_app.errors import UnusableDataError, name_some
from bids_app.files import MISSING, read_text, split_lines

SILENT = frozenset((MISSING, "", "N/A", "NA", "NaN", "nan"))  # cells that contradict no other
COLUMNS_AT_MOST = 20  # columns with a remark of their own
ID = "participant_id"

Row = list[tuple[str, str]]  # names of columns, possibly repeated, and cells


def _read(path: Path) -> str:
    text = read_text(path)
    if "\0" in text:
        raise UnusableDataError(f"{path}: contains NUL characters; save it again as UTF-8 text")
    return text


def _cell(text: str) -> str:
    """Remove whitespace, and the quotes that R's ``write.table`` puts around text."""
    bare = " ".join(text.split())
    if len(bare) > 1 and bare[0] == bare[-1] == '"':
        bare = bare[1:-1].replace('""', '"').replace('\\"', '"').strip()
    return bare


def _split(text: str) -> list[tuple[int, list[str]]]:
    """Split a table into its non-empty rows, as pairs of line number and cells."""
    lines = enumerate(split_lines(text), start=1)
    return [(n, [_cell(cell) for cell in line.split("\t")]) for n, line in lines if line.strip()]


def _without_row_names(rows: Sequence[list[str]], header: list[str]) -> int:
    """Return 1 if rows begin with a row name, which R writes without a heading, otherwise 0."""
    named = bool(rows) and all(len(row) == len(header) + 1 and row[-1] for row in rows)
    return int(named and all(row[0].isdecimal() for row in rows))


def _rows(path: Path) -> list[Row]:
    table = _split(_read(path))
    header = table[0][1] if table else []
    if ID not in header:
        raise UnusableDataError(
            f"{path}: has no column participant_id; give the labels this heading, and separate "
            "columns by tabs"
        )
    first = _without_row_names([row for _, row in table[1:]], header)
    rows = []
    for number, full in table[1:]:
        row = full[first:]
        while len(row) > len(header) and not row[-1]:
            row = row[:-1]  # trailing tabs
        if len(row) > len(header):
            raise UnusableDataError(
                f"{path}: row {number} has {len(row)} cells for {len(header)} columns; correct it"
            )
        cells = [cell or MISSING for cell in row] + [MISSING] * (len(header) - len(row))
        rows.append([pair for pair in zip(header, cells, strict=True) if pair[0]])
    return rows


def _listed(labels: Iterable[str]) -> str:
    return name_some([f"sub-{label}" for label in sorted(labels)])


def _agree(rows: Sequence[Row]) -> tuple[dict[str, str], set[str]]:
    """Join the rows of one participant, and return the columns on which they disagree.

    A missing value (n/a) contradicts no other.
    """
    values: dict[str, set[str]] = defaultdict(set)
    for row in rows:
        for name, cell in row:
            values[name] |= set() if cell in SILENT else {cell}
    torn = {name for name, cells in values.items() if len(cells) > 1}
    joined = {
        name: next(iter(cells)) if len(cells) == 1 else MISSING for name, cells in values.items()
    }
    return joined, torn


def _join(rows: Sequence[Row]) -> tuple[dict[str, dict[str, str]], list[str]]:
    """Join the rows of each participant, and write remarks on contradictions."""
    by_label: defaultdict[str, list[Row]] = defaultdict(list)
    for row in rows:
        label = next(cell for name, cell in row if name == ID).removeprefix("sub-")
        if label not in SILENT:
            by_label[label].append([(name, cell) for name, cell in row if name != ID])
    joined, torn = {}, defaultdict[str, list[str]](list)
    for label, of_label in by_label.items():
        joined[label], columns = _agree(of_label)
        for column in sorted(columns):
            torn[column].append(label)
    remarks = [
        f"column {column} has several values for {_listed(labels)}; n/a is used"
        for column, labels in list(torn.items())[:COLUMNS_AT_MOST]
    ]
    if len(torn) > COLUMNS_AT_MOST:
        remarks.append(f"{len(torn) - COLUMNS_AT_MOST} more columns have several values, too")
    return joined, remarks


def _key(label: str) -> str:
    """Normalize a label as a spreadsheet changes numbers, and drop case and ``SUB_``."""
    bare = re.sub(r"(?i)^sub[-_ ]", "", label)
    number = re.fullmatch(r"0*(\d+?)(?:\.0+)?", bare)
    return number[1] if number is not None and bare.isascii() else bare.casefold()


def _match(
    table: Mapping[str, dict[str, str]], present: Collection[str]
) -> tuple[dict[str, dict[str, str]], list[str]]:
    """Match rows to participants whose label is spelt differently, if the match is unique."""
    rows, folders = (defaultdict[str, list[str]](list) for _ in range(2))
    for label in table:
        rows[_key(label)].append(label)
    for label in present:
        folders[_key(label)].append(label)
    matched = dict(table)
    remarks, renamed = [], list[str]()
    for key in sorted(rows.keys() & folders.keys()):
        lost, bare = set(rows[key]) - set(folders[key]), set(folders[key]) - set(rows[key])
        if len(rows[key]) == len(folders[key]) == len(lost) == 1:
            (label,) = bare
            matched[label] = matched.pop(lost.pop())
            renamed.append(label)
        elif lost and bare:
            labels = ", ".join(sorted(lost))
            remarks.append(
                f"participant_id {labels} could be {_listed(folders[key])}; spell it out"
            )
    if renamed:
        remarks.append(
            f"participant_id of {_listed(renamed)} is spelt differently (zeros, upper and lower "
            "case, or no sub-), and was matched, because no other participant fits"
        )
    return matched, remarks


def read_participants(
    bids_dir: Path, present: Collection[str] = ()
) -> tuple[dict[str, dict[str, str]], tuple[str, ...]]:
    """Read ``participants.tsv``, if it exists.

    Quotes around cells and row names (both written by R), several rows per participant, and zeros
    that a spreadsheet has removed from labels are corrected if the correction is unambiguous.

    Parameters
    ----------
    bids_dir : Path
        Root of a dataset.
    present : collection of str
        Labels of the participants that have a folder.

    Returns
    -------
    participants : dict
        Columns and cells by participant label, without ``sub-``. Missing cells, and cells on which
        the rows of a participant disagree, are ``n/a``. Some participants of the dataset may be
        missing, and others may not be in the dataset.
    remarks : tuple of str
        Sentences that begin with the path of the table: corrections, problems that were not
        corrected, and missing participants.

    Raises
    ------
    UnusableDataError
        If it is not a tab-separated table with a column ``participant_id``.
    ReadWriteError
        If it cannot be read.
    """
    path = bids_dir / "participants.tsv"
    if not path.exists() and not path.is_symlink():
        return {}, ()
    joined, remarks = _join(_rows(path))
    participants, of_labels = _match(joined, present)
    absent = set(present) - participants.keys()
    remarks += of_labels
    if absent:
        remarks.append(f"has no row for {_listed(absent)}; add it")
    return participants, tuple(f"{path}: {remark}" for remark in remarks)
