"""Tables of a whole derivative dataset: participants and their groups, registration metrics."""

import ast
import json
import re
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from bids_app.derivatives.sidecars import Faults, read_dictionary, read_rows, write_table
from bids_app.detection.covariates import text_of
from bids_app.errors import (
    MissingInputError,
    ReadWriteError,
    UnusableDataError,
    UsageError,
    name_some,
)
from bids_app.files import (
    MISSING,
    append_tsv,
    locked,
    object_at,
    read_json,
    read_text,
    read_tsv,
    split_lines,
    write_json,
    write_tsv,
)
from bids_app.imaging.regions import RegionalUptake
from bids_app.imaging.verdict import reasons_of

REMARKS = "Remarks"  # our own key
FIELDS = {
    "method": "Method",
    "similarity_metric": "SimilarityMetric",
    "similarity_before": "SimilarityBefore",
    "similarity_after": "SimilarityAfter",
    "dice_brain_mask": "DiceBrainMask",
    "start": "Start",
    "verdict": "Verdict",
}


RATINGS = ("pass", "doubt", "fail")
Ratings = dict[tuple[str, str], tuple[str, str]]  # (participant, session) → (rating, comment)


def read_ratings(path: Path, output_dir: Path) -> Ratings:
    """Read a reader's ratings of participants, as saved by ``participants.html``.

    Parameters
    ----------
    path : Path
        Path of a tab-separated table with columns ``participant_id``, ``rating`` (pass, doubt or
        fail), and optionally ``session_id`` and ``comment``. A row without a session counts for all
        sessions.
    output_dir : Path
        Path of the derivative dataset, which must contain what is rated fail.

    Raises
    ------
    MissingInputError
        If the table does not exist.
    ReadWriteError
        If the table cannot be read.
    UnusableDataError
        If the table lacks a required column, or has an unknown rating; if a participant has two
        different ratings, or is rated fail but not in the dataset, or its session is not, because
        with a misspelt label the failed image would be used.
    """
    if not path.is_file():
        problem = "is a folder" if path.is_dir() else "no such file"
        raise MissingInputError(f"{path}: {problem}; give the table that participants.html saves")
    rows, ratings = read_tsv(path), Ratings()
    columns = split_lines(read_text(path))[0].split("\t")
    if not {"participant_id", "rating"} <= set(columns):
        raise UnusableDataError(f"{path}: has no columns participant_id and rating")
    for row in rows:
        rating, session = row.get("rating", "").strip().lower(), row.get("session_id", MISSING)
        if rating in ("", MISSING):
            continue
        if rating not in RATINGS:
            raise UnusableDataError(
                f"{path}: {row['participant_id']}: {row['rating']!r} is not a rating; use pass, "
                "doubt or fail"
            )
        label = row["participant_id"].strip().removeprefix("sub-")
        session_label = "" if session in ("", MISSING) else session.strip().removeprefix("ses-")
        folder = output_dir / f"sub-{label}" / (f"ses-{session_label}" if session_label else "")
        if rating == "fail" and not folder.is_dir():
            raise UnusableDataError(
                f"{path}: {row['participant_id']}: is rated fail, but there is no {folder}; "
                "correct the label or the session, or remove the line"
            )
        if ratings.get((label, session_label), (rating,))[0] != rating:
            raise UnusableDataError(
                f"{path}: {row['participant_id']}: has two ratings; keep one line"
            )
        ratings[label, session_label] = rating, row.get("comment", "").replace(MISSING, "")
    return ratings


def note_resources(path: Path, row: Mapping[str, object]) -> None:
    """Add the resources that a step used to the table of a run, ``logs/*_resources.tsv``.

    Parameters
    ----------
    path : Path
        Path of the table; it is created, with its data dictionary, if it does not exist.
    row : mapping
        Values by column of ``data/dictionaries/resources.json``.

    Raises
    ------
    ReadWriteError
        If the table cannot be written.
    """
    dictionary = read_dictionary("resources")
    if path.exists():
        append_tsv(path, list(dictionary), row)
    else:
        write_table(path, dictionary, [row])


def describe_largest(rows: Sequence[Mapping[str, object]]) -> str:
    """Describe the steps of a run that used the most memory and the most CPU time.

    Parameters
    ----------
    rows : sequence of mapping
        Rows of :func:`note_resources`; at least one.

    Examples
    --------
    >>> row = {"node": "a.b", "owner": "01", "step": "", "peak_rss_gb": 0.5, "cpu_seconds": 31.2}
    >>> describe_largest([row, {**row, "owner": "02", "cpu_seconds": 4.0}])
    'most memory 0.50 GiB (01: a.b), most CPU time 31 s (01: a.b)'
    """
    memory = max(rows, key=lambda row: float(str(row["peak_rss_gb"])))
    cpu = max(rows, key=lambda row: float(str(row["cpu_seconds"])))

    def name(row: Mapping[str, object]) -> str:
        return ": ".join(f"{part}" for part in (row["owner"], row["step"] or row["node"]) if part)

    return (
        f"most memory {memory['peak_rss_gb']:.2f} GiB ({name(memory)}), most CPU time "
        f"{cpu['cpu_seconds']:.0f} s ({name(cpu)})"
    )


def describe_regions() -> dict[str, dict[str, object]]:
    """Return the data dictionary of ``desc-regions_pet.tsv``."""
    return read_dictionary("regions")


def read_regions(path: Path, faults: Faults | None = None) -> list[RegionalUptake]:
    """Read ``desc-regions_pet.tsv`` of a visit; return an empty list if it does not exist.

    Raises
    ------
    ReadWriteError, UnusableDataError
        See :func:`bids_app.derivatives.sidecars.read_rows`.
    """
    if not path.exists():
        return []
    return read_rows(path, RegionalUptake, ("pet", "region", "mean"), faults)


def _described(folder: Path) -> dict[str, object]:
    """Read the data dictionary of a table of participants; empty if it cannot be read."""
    path = folder / "participants.json"
    try:
        return read_json(path) if path.is_file() else {}
    except (ReadWriteError, UnusableDataError):
        return {}  # it only explains columns


def read_remarks(output_dir: Path) -> tuple[str, ...]:
    """Return the remarks of earlier runs on the raw tables from which ``participants.tsv`` comes.

    Returns
    -------
    tuple of str
        Sentences that begin with the path of a raw table.
    """
    remarks = object_at(_described(output_dir), "participant_id").get(REMARKS)
    if not isinstance(remarks, list):
        return ()
    return tuple(remark for remark in remarks if isinstance(remark, str))


def _exists(path: Path) -> bool:
    return path.exists() or path.is_symlink()


def _write_participants(
    output_dir: Path,
    bids_dir: Path,
    participants: Mapping[str, Mapping[str, str]],
    remarks: Sequence[str],
) -> list[str]:
    """Write the participants of the dataset, using the raw table for those in the raw dataset.

    Other participants may come from other datasets, so their rows from an earlier run are kept,
    with a remark. If the raw dataset has no table, all rows of an earlier run are kept.
    """
    subjects = sorted(p.name[4:] for p in output_dir.glob("sub-*") if p.is_dir())
    table = bids_dir / "participants.tsv"
    raw = {p.name[4:] for p in bids_dir.glob("sub-*")} if _exists(table) else set()
    decided = raw | participants.keys()
    kept = {
        row["participant_id"].removeprefix("sub-"): row
        for row in read_tsv(output_dir / "participants.tsv")
        if "participant_id" in row
    }
    kept = {label: row for label, row in kept.items() if label in subjects and label not in decided}
    rows: list[dict[str, object]] = [
        {**kept.get(s, {}), **participants.get(s, {}), "participant_id": f"sub-{s}"}
        for s in subjects
    ]
    raw_columns = dict.fromkeys(name for row in participants.values() for name in row)
    columns = list(dict.fromkeys(["participant_id", *raw_columns, *_columns_of(kept.values())]))
    write_tsv(output_dir / "participants.tsv", columns, rows)
    explained = {k: v for k, v in _described(output_dir).items() if k in columns}
    explained = {
        k: v for k, v in explained.items() if k not in raw_columns and k != "participant_id"
    }
    explained |= {k: v for k, v in _described(bids_dir).items() if k in columns and _is_storable(v)}
    earlier_remarks = [
        remark for remark in read_remarks(output_dir) if not remark.startswith(f"{table}:")
    ]
    new_remarks = _describe_kept(table, kept, has_table=bool(raw))
    _write_descriptions(
        output_dir, explained, [*(earlier_remarks if kept else ()), *remarks, *new_remarks]
    )
    return new_remarks


def _columns_of(rows: Iterable[Mapping[str, str]]) -> Iterator[str]:
    """Yield the columns in which a row has a value."""
    for row in rows:
        yield from (name for name, cell in row.items() if cell != MISSING)


def _describe_kept(
    table: Path, kept: Mapping[str, Mapping[str, str]], *, has_table: bool
) -> list[str]:
    """Describe whose rows are kept; without a raw table, only rows with values are mentioned."""
    labels = sorted(
        f"sub-{label}"
        for label, row in kept.items()
        if has_table or set(row.values()) - {row["participant_id"], MISSING}
    )
    if not labels:
        return []
    names = name_some(labels)
    if not has_table:
        return [
            f"{table}: no such file; what an earlier run found on {names} is kept, and may be "
            "out of date"
        ]
    return [
        f"{table}: there is no {names} in the raw dataset, so what an earlier run found is kept; "
        "remove withdrawn participants from the output"
    ]


def _is_storable(value: object) -> bool:
    """Return whether a value is valid JSON in UTF-8; Python also reads NaN and lone surrogates."""
    try:
        return bool(json.dumps(value, allow_nan=False, ensure_ascii=False).encode())
    except (ValueError, RecursionError):
        return False


def _write_descriptions(
    output_dir: Path, explained: dict[str, object], remarks: Sequence[str]
) -> None:
    """Write the data dictionary of participants, with remarks in the entry of the first column."""
    if remarks:
        first = explained.get("participant_id", read_dictionary("visits")["participant_id"])
        entry = first if isinstance(first, dict) else {}
        explained["participant_id"] = {**entry, REMARKS: list(remarks)}
    write_json(output_dir / "participants.json", explained)


def _registrations(sidecars: Iterable[Path], output_dir: Path) -> Iterator[dict[str, object]]:
    for path in sorted(sidecars):
        try:
            sidecar = read_json(path)
        except (ReadWriteError, UnusableDataError):
            continue  # not written by this app, or by an unfinished run
        registration = sidecar.get("Registration")
        if not isinstance(registration, dict):
            continue
        inside = path.relative_to(output_dir)
        session = inside.parts[1] if inside.parts[1].startswith("ses-") else None
        yield {
            "participant_id": inside.parts[0],
            "session_id": session,
            "file": inside.with_suffix(".nii.gz").as_posix(),
            **{column: registration.get(name) for column, name in FIELDS.items()},
            "reasons": "; ".join(reasons_of(registration)) or None,
            "coverage": sidecar.get("BrainCoverage"),
        }


def _write_registrations(output_dir: Path) -> None:
    sidecars = [
        path
        for folders in ("sub-*/anat", "sub-*/pet", "sub-*/ses-*/anat", "sub-*/ses-*/pet")
        for path in output_dir.glob(f"{folders}/*_space-*_res-*_desc-preproc_*.json")
    ]
    table = output_dir / "desc-registration_metrics.tsv"
    lines = list(_registrations(sidecars, output_dir))
    write_table(table, read_dictionary("registration_metrics"), lines)


def finish_dataset(
    output_dir: Path,
    *,
    bids_dir: Path,
    participants: Mapping[str, Mapping[str, str]],
    remarks: Sequence[str] = (),
) -> list[str]:
    """Write the tables of the whole dataset: all participants in it, all registrations.

    Several runs may write into one dataset: each lists the results of all runs so far.

    Parameters
    ----------
    output_dir, bids_dir : Path
        Roots of the derivative and of the raw dataset.
    participants : mapping
        Columns of the raw ``participants.tsv`` by participant label; may be partial or empty.
    remarks : sequence of str
        Remarks on that table, each beginning with its path. The group level, which does not read
        the raw table, quotes them as a reason.

    Returns
    -------
    list of str
        At most one more remark, on rows that are kept although they are not in the raw dataset.

    Raises
    ------
    ReadWriteError
        If a table cannot be written.
    """
    with locked(output_dir):
        new_remarks = _write_participants(output_dir, bids_dir, participants, remarks)
        _write_registrations(output_dir)
    return new_remarks


# Allowed in a query: comparisons of columns with values, and their combinations. Calls, attributes
# and subscripts are not, because pandas would execute them.
ALLOWED = (
    ast.Expression,
    ast.BoolOp,
    ast.And,
    ast.Or,
    ast.BinOp,
    ast.BitAnd,
    ast.BitOr,
    ast.UnaryOp,
    ast.Not,
    ast.Invert,
    ast.USub,
    ast.Compare,
    ast.cmpop,
    ast.Name,
    ast.Load,
    ast.Constant,
    ast.List,
    ast.Tuple,
)
NUMBER = re.compile(r"[+-]?(0|[1-9]\d*)(\.\d*)?([eE][+-]?\d+)?")  # "01" is a label, not a number
SHOWN, MOST_COLUMNS = 8, 40  # maximum numbers of values and of columns in a message
LONGEST = 60  # maximum number of characters of each


def select(output_dir: Path, query: str) -> frozenset[str]:
    """Select participants by their rows in ``participants.tsv``.

    Parameters
    ----------
    output_dir : Path
        Root of the derivative dataset, whose table contains the columns of the raw one.
    query : str
        Query in the syntax of pandas: columns compared with values, combined by ``and``, ``or`` and
        ``not``. Columns of numbers are compared as numbers. ``participant_id`` is as in the file.

    Returns
    -------
    frozenset of str
        Labels without ``sub-``. Participants with ``n/a`` in a column of the query are excluded.

    Raises
    ------
    MissingInputError
        If the table does not exist.
    UsageError
        If the query is invalid, or has a column that does not exist.
    UnusableDataError
        If the table cannot be used, or no participant matches.
    """
    path = output_dir / "participants.tsv"
    table = _read(path)
    remarks = _quote_remarks(output_dir)
    columns = _columns_in(query, table, remarks)
    complete = table.dropna(subset=columns)
    chosen = complete.loc[_answer(query, complete), "participant_id"] if len(complete) else ()
    if not len(chosen):
        values = "; ".join(_values(table, column) for column in columns)
        raise UnusableDataError(
            f"{path}: no participant matches {query!r}; {values}; correct the query or the "
            f"table{remarks}"
        )
    return frozenset(str(label).removeprefix("sub-") for label in chosen)


def describe_unknown_columns(
    output_dir: Path, queries: Sequence[str], selected: Collection[str] | None = None
) -> list[str]:
    """Describe the participants whose values in ``participants.tsv`` queries may not expect.

    Parameters
    ----------
    output_dir : Path
        Root of the derivative dataset.
    queries : sequence of str
        Queries in the syntax of :func:`select`.
    selected : collection of str, optional
        Labels that the queries select, if all others are to be described.

    Returns
    -------
    list of str
        Sentences on values that differ only by case, as in ``control`` and ``Control``, and at most
        one each on participants with n/a in a column of every query, with the remarks of the
        participant level, and on others who are not selected.

    Raises
    ------
    MissingInputError, UsageError, UnusableDataError
        See :func:`select`, except that no participant need match.
    """
    table = _read(output_dir / "participants.tsv")
    remarks = _quote_remarks(output_dir)
    columns = [_columns_in(query, table, remarks) for query in queries]
    gaps = [table[names].isna().any(axis="columns") for names in columns]
    gap = np.logical_and.reduce(gaps)
    unknown = table.loc[gap, "participant_id"].tolist()
    names = dict.fromkeys(name for queried in columns for name in queried)
    sentences = [sentence for name in names for sentence in _describe_spellings(table, name)]
    if unknown:
        sentences.append(
            f"{name_some(unknown, SHOWN)}: not used, n/a in participants.tsv under "
            f"{', '.join(names)}{remarks}"
        )
    ids = [f"sub-{label}" for label in selected or ()]
    others = table[~gap & ~table["participant_id"].isin([*(selected or ()), *ids])]
    if selected is not None and len(others):
        values = "; ".join(_values(others, name) for name in names)
        sentences.append(
            f"{name_some(others['participant_id'].tolist(), SHOWN)}: not used, selected by no "
            f"query ({values})"
        )
    return sentences


def _describe_spellings(table: pd.DataFrame, column: str) -> list[str]:
    """Describe values of a column that differ only by case from a more frequent one."""
    usual, sentences = dict[str, str](), list[str]()
    values = table[column].dropna()
    for value in values.value_counts().index:
        other = usual.setdefault(str(value).casefold(), value)
        if other != value:
            labels = table.loc[table[column] == value, "participant_id"].tolist()
            sentences.append(
                f"{name_some(labels, SHOWN)}: {column} is {value!r} in participants.tsv, elsewhere "
                f"{other!r}; queries distinguish upper and lower case"
            )
    return sentences


def read_columns(output_dir: Path, columns: Sequence[str]) -> dict[str, dict[str, float | str]]:
    """Read columns of ``participants.tsv``.

    Parameters
    ----------
    output_dir : Path
        Root of the derivative dataset.
    columns : sequence of str
        Names of the columns.

    Returns
    -------
    dict
        Cells by label without ``sub-`` and by column, those that are numbers as numbers, unless
        ``participants.json`` lists the ``Levels`` of the column, which makes them codes; n/a cells
        are left out.

    Raises
    ------
    MissingInputError, UnusableDataError
        See :func:`select`.
    UsageError
        If a column does not exist.
    """
    table = _read(output_dir / "participants.tsv")
    for column in columns:
        if column not in table.columns or column == "participant_id":
            names = [_short(name) for name in table.columns[:MOST_COLUMNS]]
            raise UsageError(
                f"{output_dir / 'participants.tsv'}: there is no column {column}; columns are "
                f"{', '.join(names)}{_quote_remarks(output_dir)}"
            )
    entries = _described(output_dir)
    codes = {c for c in columns if isinstance(e := entries.get(c), dict) and e.get("Levels")}
    labels = [str(label).removeprefix("sub-") for label in table["participant_id"]]
    return {
        label: {c: _value(cell, code=c in codes) for c, cell in row.dropna().items()}
        for label, (_, row) in zip(labels, table[list(columns)].iterrows(), strict=True)
    }


def _value(cell: float | str, *, code: bool) -> float | str:
    if code:
        return text_of(cell)
    return float(cell) if isinstance(cell, float) or NUMBER.fullmatch(cell) else cell


def _read(path: Path) -> pd.DataFrame:
    if not path.is_file():
        raise MissingInputError(f"{path}: no such file; run the participant level first")
    rows = read_tsv(path)
    if not rows or "participant_id" not in rows[0]:
        raise UnusableDataError(f"{path}: has no column participant_id, or no row; correct it")
    cells = {
        column.strip(): _column([row.get(column, MISSING).strip() for row in rows])
        for column in rows[0]
    }
    ids = [row["participant_id"].strip() for row in rows]
    twice = sorted({label for label in ids if ids.count(label) > 1})
    if twice:
        raise UnusableDataError(f"{path}: {_short(twice[0])} occurs twice; remove one row")
    return pd.DataFrame({**cells, "participant_id": pd.Series(ids, dtype=object)})


def _column(cells: list[str]) -> pd.Series:
    present = [cell for cell in cells if cell not in {MISSING, ""}]
    numeric = bool(present) and all(NUMBER.fullmatch(cell) for cell in present)
    values = [None if cell in {MISSING, ""} else float(cell) if numeric else cell for cell in cells]
    return pd.Series(values, dtype=float if numeric else object)


def _quote_remarks(output_dir: Path) -> str:
    """Quote the participant level's remarks on the raw tables, which explain missing values."""
    remarks = read_remarks(output_dir)
    more = " …" if len(remarks) > SHOWN else ""
    return f" ({'; '.join(remarks[:SHOWN])}{more})" if remarks else ""


def _columns_in(query: str, table: pd.DataFrame, remarks: str) -> list[str]:
    """Check that a query consists of plain comparisons, and list its columns."""
    names = [_short(name) for name in table.columns[:MOST_COLUMNS]]
    listing = f"columns are {', '.join(names)}{', …' if len(names) < len(table.columns) else ''}"
    advice = f"write it like \"group == 'control'\"; {listing}"
    if "@" in query or "__" in query:
        raise UsageError(f"query {query!r}: contains @ or __, which is not allowed; {advice}")
    try:
        nodes = list(ast.walk(ast.parse(query.strip(), mode="eval")))
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        raise UsageError(f"query {query!r}: cannot be understood; {advice}") from error
    if not all(isinstance(node, ALLOWED) for node in nodes):
        raise UsageError(f"query {query!r}: does more than compare columns; {advice}")
    names = list(dict.fromkeys(node.id for node in nodes if isinstance(node, ast.Name)))
    for name in names:
        if name not in table.columns:
            raise UsageError(
                f"query {query!r}: participants.tsv has no column {name}; {listing}{remarks}; add "
                "it to the participants.tsv of the BIDS dataset and run the participant level "
                "again, or name another column"
            )
    return names


def _answer(query: str, table: pd.DataFrame) -> pd.Series:
    try:
        answer = table.eval(query.strip(), engine="python")
    except Exception as error:  # pandas raises many types of errors for invalid comparisons
        raise UsageError(f"query {query!r}: cannot be answered ({error}); correct it") from error
    if not isinstance(answer, pd.Series) or answer.dtype != bool:
        raise UsageError(
            f"query {query!r}: does not give true or false for each participant; compare a column "
            "with a value"
        )
    return answer


def _short(text: str) -> str:
    return text if len(text) <= LONGEST else f"{text[:LONGEST]}…"


def _values(table: pd.DataFrame, column: str) -> str:
    values = table[column].dropna().unique().tolist()
    shown = ", ".join(f"{v:g}" if isinstance(v, float) else _short(repr(v)) for v in values[:SHOWN])
    more = ", …" if len(values) > SHOWN else ""
    return f"{column} holds {shown}{more}" if values else f"{column} is n/a throughout"
