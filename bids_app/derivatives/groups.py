"""Who is a control, who a patient: a question to the table of participants."""

import ast
import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from bids_app.derivatives.tables import read_remarks
from bids_app.errors import MissingInputError, UnusableDataError, UsageError
from bids_app.files import MISSING, read_tsv

# What a query may hold: comparisons of columns with values, and how these are joined. No call, no
# attribute, no subscript: pandas would run them.
ALLOWED = (
    ast.Expression, ast.BoolOp, ast.And, ast.Or, ast.BinOp, ast.BitAnd, ast.BitOr, ast.UnaryOp,
    ast.Not, ast.Invert, ast.USub, ast.Compare, ast.cmpop, ast.Name, ast.Load, ast.Constant,
    ast.List, ast.Tuple,
)  # fmt: skip
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
    why = _why(output_dir)
    columns = _columns_in(query, table, why)
    known = table.dropna(subset=columns)
    chosen = known.loc[_answer(query, known), "participant_id"] if len(known) else ()
    if not len(chosen):
        values = "; ".join(_values(table, column) for column in columns)
        raise UnusableDataError(
            f"{path}: nobody in it matches {query!r}; {values}; correct either{why}"
        )
    return frozenset(str(one).removeprefix("sub-") for one in chosen)


def tell_unknown(output_dir: Path, queries: Sequence[str]) -> list[str]:
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
    why = _why(output_dir)
    columns = [_columns_in(query, table, why) for query in queries]
    gaps = [table[names].isna().any(axis="columns") for names in columns]
    unknown = table.loc[np.logical_and.reduce(gaps), "participant_id"].tolist()
    if not unknown:
        return []
    names = dict.fromkeys(name for some in columns for name in some)
    more = f" and {len(unknown) - SHOWN} more" if len(unknown) > SHOWN else ""
    return [
        f"{', '.join(unknown[:SHOWN])}{more}: not used, n/a in participants.tsv under "
        f"{', '.join(names)}{why}"
    ]


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
    twice = sorted({one for one in ids if ids.count(one) > 1})
    if twice:
        raise UnusableDataError(f"{path}: {_short(twice[0])} stands in it twice; remove one row")
    return pd.DataFrame({**cells, "participant_id": pd.Series(ids, dtype=object)})


def _column(cells: list[str]) -> pd.Series:
    present = [cell for cell in cells if cell not in {MISSING, ""}]
    numeric = bool(present) and all(NUMBER.fullmatch(cell) for cell in present)
    values = [None if cell in {MISSING, ""} else float(cell) if numeric else cell for cell in cells]
    return pd.Series(values, dtype=float if numeric else object)


def _why(output_dir: Path) -> str:
    """Repeat what the participant level said of the raw tables: why cells or columns are absent."""
    remarks = read_remarks(output_dir)
    more = " …" if len(remarks) > SHOWN else ""
    return f" ({'; '.join(remarks[:SHOWN])}{more})" if remarks else ""


def _columns_in(query: str, table: pd.DataFrame, why: str) -> list[str]:
    """Refuse what is no plain comparison; name the columns it asks for."""
    names = [_short(name) for name in table.columns[:MOST_COLUMNS]]
    there = f"columns are {', '.join(names)}{', …' if len(names) < len(table.columns) else ''}"
    advice = f"write it like \"group == 'control'\"; {there}"
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
            raise UsageError(f"query {query!r}: there is no column {name}; {there}{why}")
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
