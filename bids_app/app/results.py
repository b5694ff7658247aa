"""Scores of all rows that lie in a derivative dataset, from this run and from earlier ones."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from bids_app.crossvalidation import Study, records_path
from bids_app.errors import ReadWriteError, UnusableDataError
from bids_app.files import read_json
from bids_app.generators import CROSSVALIDATION
from bids_app.synthesis.evaluation import BASELINES, ROWS, Record, records_from_json

Dealt = Mapping[int, frozenset[str]]


@dataclass(frozen=True)
class Gathered:
    """Records of rows that can stand in one table, and why others cannot."""

    records: list[Record]
    notes: list[str]


def _read(path: Path) -> list[Record]:
    try:
        return records_from_json(read_json(path))
    except ValueError as error:
        raise UnusableDataError(f"{path}: {error}; delete it") from error


def _of_row(study: Study, name: str) -> list[Record] | None:
    """Read the records of a row; None if a fold's are not there."""
    try:
        parts = [_read(records_path(study, name, k + 1)) for k in range(study.folds)]
    except (ReadWriteError, UnusableDataError):
        return None
    return [record for part in parts for record in part]


def _dealt(records: list[Record]) -> Dealt:
    folds = {record.fold for record in records}
    return {
        fold: frozenset(one.participant for one in records if one.fold == fold) for fold in folds
    }


def gather_records(study: Study) -> Gathered:
    """Gather the scores of all rows that were scored on the same folds as the baselines.

    Rows may come from runs of their own, side by side; each lists what all have written so far.
    """
    baselines = _of_row(study, "baselines")
    records = [] if baselines is None else list(baselines)
    dealt = _dealt(records)
    notes = []
    for name in ROWS:
        folder = study.output_dir / CROSSVALIDATION / name
        if name in BASELINES or not folder.is_dir():
            continue
        own = _of_row(study, name)
        if own is None:
            notes.append(f"{name}: not in the table, scores of a fold are missing")
        elif dealt and _dealt(own) != dealt:
            notes.append(f"{name}: not in the table, it was cross-validated on other folds")
        else:
            records += own
    return Gathered(records, notes)
