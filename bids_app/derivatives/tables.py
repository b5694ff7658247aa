"""Tables of a whole derivative dataset: participants and their groups, registration metrics."""

import ast
import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from bids_app.derivatives.sidecars import Faults, read_dictionary, read_rows, write_table
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
Ratings = dict[tuple[str, str], tuple[str, str]]  # labels of who and session → rating, comment


def read_ratings(path: Path, output_dir: Path) -> Ratings:
    """Read what a reader thinks of participants, as ``participants.html`` saves it.

    Parameters
    ----------
    path : Path
        Tab-separated: ``participant_id``, ``rating`` (pass, doubt or fail), and where they are
        there ``session_id`` and ``comment``. A row without a session counts for all.
    output_dir : Path
        The derivative dataset, which has whoever is rated fail.

    Raises
    ------
    MissingInputError
        If it is not there.
    ReadWriteError
        If it cannot be read.
    UnusableDataError
        If it has no such columns, or another rating; if somebody has two, or is rated fail and is
        not in the dataset: a misspelt label would keep an image that shall not be used.
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
                f"{path}: {row['participant_id']}: {row['rating']!r} is no rating; use pass, doubt "
                "or fail"
            )
        label = row["participant_id"].strip().removeprefix("sub-")
        session_label = "" if session in ("", MISSING) else session.strip().removeprefix("ses-")
        if rating == "fail" and not (output_dir / f"sub-{label}").is_dir():
            raise UnusableDataError(
                f"{path}: {row['participant_id']}: is rated fail, but not in {output_dir}; correct "
                "the label, or remove the line"
            )
        if ratings.get((label, session_label), (rating,))[0] != rating:
            raise UnusableDataError(
                f"{path}: {row['participant_id']}: has two ratings; keep one line"
            )
        ratings[label, session_label] = rating, row.get("comment", "").replace(MISSING, "")
    return ratings


def note_resources(path: Path, row: Mapping[str, object]) -> None:
    """Add what a step has used to the table of a run, ``logs/*_resources.tsv``.

    Parameters
    ----------
    path : Path
        The table; begun, with what explains its columns, if it is not there.
    row : mapping
        Column of ``data/dictionaries/resources.json`` → value.

    Raises
    ------
    ReadWriteError
        If it cannot be written.
    """
    dictionary = read_dictionary("resources")
    if path.exists():
        append_tsv(path, list(dictionary), row)
    else:
        write_table(path, dictionary, [row])


def describe_largest(rows: Sequence[Mapping[str, object]]) -> str:
    """Tell which steps of a run have used the most memory, and the most CPU time.

    Parameters
    ----------
    rows : sequence of mapping
        As :func:`note_resources` takes them; at least one.

    Examples
    --------
    >>> row = {"node": "a.b", "owner": "01", "step": "", "peak_rss_gb": 0.5, "cpu_seconds": 31.2}
    >>> describe_largest([row, {**row, "owner": "02", "cpu_seconds": 4.0}])
    'most memory 0.50 GiB (01: a.b), most CPU time 31 s (01: a.b)'
    """
    memory, cpu = (
        max(rows, key=lambda row, name=name: float(str(row[name])))  # type: ignore[misc]
        for name in ("peak_rss_gb", "cpu_seconds")
    )

    def name(row: Mapping[str, object]) -> str:
        return ": ".join(f"{part}" for part in (row["owner"], row["step"] or row["node"]) if part)

    return (
        f"most memory {memory['peak_rss_gb']:.2f} GiB ({name(memory)}), most CPU time "
        f"{cpu['cpu_seconds']:.0f} s ({name(cpu)})"
    )


def describe_regions() -> dict[str, dict[str, object]]:
    """Explain the columns of ``desc-regions_pet.tsv``."""
    return read_dictionary("regions")


def read_regions(path: Path, faults: Faults | None = None) -> list[RegionalUptake]:
    """Read ``desc-regions_pet.tsv`` of a visit; none where it is not there.

    Raises
    ------
    ReadWriteError, UnusableDataError
        As :func:`bids_app.derivatives.sidecars.read_rows`.
    """
    if not path.exists():
        return []
    return read_rows(path, RegionalUptake, ("pet", "region", "mean"), faults)


def _described(folder: Path) -> dict[str, object]:
    """Read what explains the columns of a table of participants."""
    path = folder / "participants.json"
    try:
        return read_json(path) if path.is_file() else {}
    except (ReadWriteError, UnusableDataError):
        return {}  # it only explains columns


def read_remarks(output_dir: Path) -> tuple[str, ...]:
    """Give what earlier runs had to say of the raw tables that ``participants.tsv`` repeats.

    Returns
    -------
    tuple of str
        Sentences that begin with the path of a raw table.
    """
    column = _described(output_dir).get("participant_id")
    remarks = column.get(REMARKS) if isinstance(column, dict) else None
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
    """Write who is in the dataset: the raw table decides about those whom the raw dataset has.

    Others may have been brought here from other datasets, so what an earlier run wrote of them is
    kept, and that is told. Where the raw dataset has no table at all, it decides about nobody.
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
    """Name the columns in which some row says something."""
    for row in rows:
        yield from (name for name, cell in row.items() if cell != MISSING)


def _describe_kept(
    table: Path, kept: Mapping[str, Mapping[str, str]], *, has_table: bool
) -> list[str]:
    """Tell whose rows stay; where there is no table, of those that say anything."""
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
            f"{table}: no such file; what an earlier run knew of {names} stays, and may be stale"
        ]
    return [
        f"{table}: there is no {names} in the raw dataset, so what an earlier run knew stays; "
        "remove from the output who was withdrawn"
    ]


def _is_storable(value: object) -> bool:
    """Whether this is JSON in UTF-8: Python's reader takes NaN and halves of characters, too."""
    try:
        return bool(json.dumps(value, allow_nan=False, ensure_ascii=False).encode())
    except (ValueError, RecursionError):
        return False


def _write_descriptions(
    output_dir: Path, explained: dict[str, object], remarks: Sequence[str]
) -> None:
    """Write what explains the columns, and under the first of them the remarks."""
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
            continue  # not written by us, or by a run that is not at its end
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

    Several runs may write into one dataset: each lists what all have written so far.

    Parameters
    ----------
    output_dir, bids_dir : Path
        Roots of the derivative and of the raw dataset.
    participants : mapping
        Columns of the raw ``participants.tsv`` by participant label; partial, or empty.
    remarks : sequence of str
        What is to be said of that table; each begins with its path. The group level, which sees
        no raw table, gives it as a reason.

    Returns
    -------
    list of str
        At most one more remark: whose rows stay though the raw dataset does not have them.

    Raises
    ------
    ReadWriteError
        If they cannot be written.
    """
    with locked(output_dir):
        new_remarks = _write_participants(output_dir, bids_dir, participants, remarks)
        _write_registrations(output_dir)
    return new_remarks


# What a query may hold: comparisons of columns with values, and how these are joined. No call, no
# attribute, no subscript: pandas would run them.
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
SHOWN, MOST_COLUMNS = 8, 40  # values of a column, and columns, that a message names
LONGEST = 60  # characters of each


def select(output_dir: Path, query: str) -> frozenset[str]:
    """Choose participants by what ``participants.tsv`` says of them.

    Parameters
    ----------
    output_dir : Path
        Root of the derivative dataset, whose table repeats that of the raw one.
    query : str
        As pandas understands it: columns compared with values, joined by ``and``, ``or``, ``not``.
        Columns of numbers compare as numbers. ``participant_id`` is as it stands in the file.

    Returns
    -------
    frozenset of str
        Labels without ``sub-``. Whoever has ``n/a`` in a column that the query names is not among
        them: nothing is guessed.

    Raises
    ------
    MissingInputError
        If there is no table.
    UsageError
        If the query cannot be understood, or names a column that is not there.
    UnusableDataError
        If the table cannot be used, or nobody in it matches.
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
            f"{path}: nobody in it matches {query!r}; {values}; correct either{remarks}"
        )
    return frozenset(str(label).removeprefix("sub-") for label in chosen)


def describe_unknown_columns(output_dir: Path, queries: Sequence[str]) -> list[str]:
    """Name the participants of whom ``participants.tsv`` does not say what queries ask.

    Parameters
    ----------
    output_dir : Path
        Root of the derivative dataset.
    queries : sequence of str
        As for :func:`select`.

    Returns
    -------
    list of str
        At most one sentence: who has n/a in a column of each query, and what the participant level
        said of it.

    Raises
    ------
    MissingInputError, UsageError, UnusableDataError
        As :func:`select`, but nobody need match.
    """
    table = _read(output_dir / "participants.tsv")
    remarks = _quote_remarks(output_dir)
    columns = [_columns_in(query, table, remarks) for query in queries]
    gaps = [table[names].isna().any(axis="columns") for names in columns]
    unknown = table.loc[np.logical_and.reduce(gaps), "participant_id"].tolist()
    if not unknown:
        return []
    names = dict.fromkeys(name for queried in columns for name in queried)
    return [
        f"{name_some(unknown, SHOWN)}: not used, n/a in participants.tsv under "
        f"{', '.join(names)}{remarks}"
    ]


def read_columns(output_dir: Path, columns: Sequence[str]) -> dict[str, dict[str, float | str]]:
    """Read columns of ``participants.tsv``.

    Parameters
    ----------
    output_dir : Path
        Root of the derivative dataset.
    columns : sequence of str
        Their names.

    Returns
    -------
    dict
        Label without ``sub-`` → column → cell: a number where all of the column are; cells of n/a
        are left out.

    Raises
    ------
    MissingInputError, UnusableDataError
        As :func:`select`.
    UsageError
        If a column is not there.
    """
    table = _read(output_dir / "participants.tsv")
    for column in columns:
        if column not in table.columns or column == "participant_id":
            names = [_short(name) for name in table.columns[:MOST_COLUMNS]]
            raise UsageError(
                f"{output_dir / 'participants.tsv'}: there is no column {column}; columns are "
                f"{', '.join(names)}{_quote_remarks(output_dir)}"
            )
    labels = [str(label).removeprefix("sub-") for label in table["participant_id"]]
    cells = [row.dropna().to_dict() for _, row in table[list(columns)].iterrows()]
    return dict(zip(labels, cells, strict=True))


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
        raise UnusableDataError(f"{path}: {_short(twice[0])} stands in it twice; remove one row")
    return pd.DataFrame({**cells, "participant_id": pd.Series(ids, dtype=object)})


def _column(cells: list[str]) -> pd.Series:
    present = [cell for cell in cells if cell not in {MISSING, ""}]
    numeric = bool(present) and all(NUMBER.fullmatch(cell) for cell in present)
    values = [None if cell in {MISSING, ""} else float(cell) if numeric else cell for cell in cells]
    return pd.Series(values, dtype=float if numeric else object)


def _quote_remarks(output_dir: Path) -> str:
    """Repeat what the participant level said of the raw tables: why cells or columns are absent."""
    remarks = read_remarks(output_dir)
    more = " …" if len(remarks) > SHOWN else ""
    return f" ({'; '.join(remarks[:SHOWN])}{more})" if remarks else ""


def _columns_in(query: str, table: pd.DataFrame, remarks: str) -> list[str]:
    """Refuse what is no plain comparison; name the columns it asks for."""
    names = [_short(name) for name in table.columns[:MOST_COLUMNS]]
    listing = f"columns are {', '.join(names)}{', …' if len(names) < len(table.columns) else ''}"
    advice = f"write it like \"group == 'control'\"; {listing}"
    if "@" in query or "__" in query:
        raise UsageError(f"query {query!r}: holds @ or __, which no query needs; {advice}")
    try:
        nodes = list(ast.walk(ast.parse(query.strip(), mode="eval")))
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        raise UsageError(f"query {query!r}: cannot be understood; {advice}") from error
    if not all(isinstance(node, ALLOWED) for node in nodes):
        raise UsageError(f"query {query!r}: is more than comparisons of columns; {advice}")
    names = list(dict.fromkeys(node.id for node in nodes if isinstance(node, ast.Name)))
    for name in names:
        if name not in table.columns:
            raise UsageError(f"query {query!r}: there is no column {name}; {listing}{remarks}")
    return names


def _answer(query: str, table: pd.DataFrame) -> pd.Series:
    try:
        answer = table.eval(query.strip(), engine="python")
    except Exception as error:  # pandas tells of a wrong comparison in many ways
        raise UsageError(f"query {query!r}: cannot be answered ({error}); correct it") from error
    if not isinstance(answer, pd.Series) or answer.dtype != bool:
        raise UsageError(
            f"query {query!r}: is no yes or no for each participant; compare a column with a value"
        )
    return answer


def _short(text: str) -> str:
    return text if len(text) <= LONGEST else f"{text[:LONGEST]}…"


def _values(table: pd.DataFrame, column: str) -> str:
    values = table[column].dropna().unique().tolist()
    shown = ", ".join(f"{v:g}" if isinstance(v, float) else _short(repr(v)) for v in values[:SHOWN])
    more = ", …" if len(values) > SHOWN else ""
    return f"{column} holds {shown}{more}" if values else f"{column} is n/a throughout"
