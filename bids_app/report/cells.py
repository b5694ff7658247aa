"""Cells of tables as text files hold them: numbers, or ``n/a``."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TypeAlias

from bids_app.errors import Mri2petError
from bids_app.files import MISSING, read_tsv

Cells: TypeAlias = Mapping[str, str]


def as_value(cell: str | None) -> float | None:
    """Read a number, perhaps infinite; None if it is none.

    Examples
    --------
    >>> as_value("0.88"), as_value("inf"), as_value("n/a"), as_value("nan"), as_value(None)
    (0.88, inf, None, None, None)
    """
    try:
        value = float(MISSING if cell is None else cell)
    except ValueError:
        return None
    return None if math.isnan(value) else value


def as_count(cell: str | None) -> int | None:
    """Read a whole number; None if it is none.

    Examples
    --------
    >>> as_count("9"), as_count("9.5"), as_count("inf")
    (9, None, None)
    """
    value = as_value(cell)
    return int(value) if value is not None and value.is_integer() else None


def as_label(cell: str | None) -> str:
    """Read a label; empty where there is none."""
    return "" if cell is None or cell == MISSING else cell


def read_lines(
    output_dir: Path, name: str, needed: Sequence[str]
) -> tuple[list[Cells], tuple[str, ...]]:
    """Read a table.

    Parameters
    ----------
    output_dir : Path
        The derivative dataset.
    name : str
        The table, as a path inside it.
    needed : sequence of str
        Columns without which a line says nothing.

    Returns
    -------
    list of dict
        Column → cell, a line each; none if there is no such table.
    tuple of str
        What is missing or damaged, a sentence each.
    """
    try:
        lines = read_tsv(output_dir / name)
    except Mri2petError:
        return [], (f"{name} cannot be read.",)
    if not lines:
        state = "is empty" if (output_dir / name).exists() else "is missing"
        return [], (f"{name} {state}.",)
    whole: list[Cells] = [line for line in lines if all(as_label(line.get(c)) for c in needed)]
    lost = len(lines) - len(whole)
    columns = " or ".join(needed)
    return whole, (f"{name}: {lost} of its lines lack {columns} and are left out.",) * (lost > 0)
