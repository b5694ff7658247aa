"""Names of clusters, from an atlas."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from bids_app.errors import MissingInputError, UnusableDataError
from bids_app.files import read_tsv

COLUMNS = ("index", "name")  # BIDS 1.10, "Segmentations": of a table that explains a _dseg


def read_labels(path: Path) -> dict[int, str]:
    """Read what the numbers of an atlas mean, from a table as BIDS has it beside a ``_dseg``.

    Parameters
    ----------
    path : Path
        Tab-separated, with the columns ``index`` and ``name``; others are passed over.

    Raises
    ------
    MissingInputError
        If there is no such file.
    ReadWriteError
        If it cannot be read.
    UnusableDataError
        If a column is not there, a line has no whole number or no name, a number comes twice, or
        there is no line.
    """
    if not path.exists():
        raise MissingInputError(f"{path}: no such file; --atlas needs an image and its labels")
    rows = read_tsv(path)
    if not rows:
        raise UnusableDataError(f"{path}: holds no label; write one a line below index and name")
    absent = [column for column in COLUMNS if column not in rows[0]]
    if absent:
        raise UnusableDataError(
            f"{path}: has no column {' or '.join(absent)}; the columns index and name, "
            "separated by a tab, are needed"
        )
    names: dict[int, str] = {}
    for line, row in enumerate(rows, 2):
        index, name = _read_label(path, line, row)
        if index in names:
            raise UnusableDataError(f"{path}: line {line} says again what {index} is; keep one")
        names[index] = name
    return names


def _read_label(path: Path, line: int, row: Mapping[str, str]) -> tuple[int, str]:
    index, name = (row.get(column, "").strip() for column in COLUMNS)
    if not index.removeprefix("-").isdecimal():
        raise UnusableDataError(f"{path}: index {index!r} in line {line} is no whole number")
    if not name:
        raise UnusableDataError(f"{path}: {index} has no name in line {line}; write one")
    return int(index), name


def name_regions(
    labels: NDArray[np.integer], atlas: NDArray[np.generic], names: Mapping[int, str]
) -> list[str | None]:
    """Name each cluster by the region that holds most of it.

    Parameters
    ----------
    labels : ndarray of int, (I, J, K)
        Clusters by rank, 0 elsewhere.
    atlas : ndarray, (I, J, K)
        Numbers of regions, 0 for background, on the same grid.
    names : mapping
        What the numbers mean; of others, the number is told.

    Returns
    -------
    list of str or None
        By rank. Background does not count; None where there is nothing else. Of equal shares, the
        region with the lowest number.

    Raises
    ------
    ValueError
        If shapes differ.
    """
    if labels.shape != atlas.shape:
        raise ValueError(f"clusters of {labels.shape} and an atlas of {atlas.shape} voxels differ")
    inside = labels > 0
    ranks, regions = labels[inside], np.rint(atlas[inside]).astype(np.int64)
    found: list[str | None] = []
    for rank in range(1, int(labels.max(initial=0)) + 1):
        mine = regions[(ranks == rank) & (regions != 0)]
        numbers, counts = np.unique(mine, return_counts=True)
        largest = int(numbers[counts.argmax()]) if numbers.size else None
        found.append(None if largest is None else names.get(largest, f"label {largest}"))
    return found
