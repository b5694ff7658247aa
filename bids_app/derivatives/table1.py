"""Files of Table 1: one with a line per row, per visit, and per test, each with its dictionary.

Only reports read these files and training histories; missing or damaged parts are left out.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from bids_app.derivatives.sidecars import (
    Cells,
    Faults,
    as_label,
    as_value,
    known_row,
    read_dictionary,
    read_lines,
    read_rows,
    write_table,
)
from bids_app.synthesis.evaluation import FWHM_SWEEP, METRICS, ROWS, ScoreRecord, Scores
from bids_app.synthesis.statistics import (
    PairedTest,
    compare_rows,
    mean_and_sd,
    participants_of,
    rows_of,
)

Line = dict[str, object]
SWEEP = "ssim_fwhm"  # prefix of the columns of the smoothing sweep
ALL = "all"  # the "fold" of the final generator


@dataclass(frozen=True)
class ScoreRow:
    """Line of ``table1.tsv``: mean and SD over controls of each metric; nan is n/a."""

    model: str
    configuration: str
    n: int | None
    means: Mapping[str, float]
    sds: Mapping[str, float]


@dataclass(frozen=True)
class HistoryEpoch:
    """Line of ``history.tsv``: an epoch of one fold; ``fold`` is its number, or ``all``.

    Losses are means over the steps of the epoch, unitless; ``ssim_validation`` is the SSIM of the
    validation volumes; ``kept`` is 1 for the epoch whose weights were kept.
    """

    fold: str
    epoch: int
    generator_loss: float
    discriminator_loss: float
    ssim_validation: float
    kept: int | None


def write_table1(output_dir: Path, records: Sequence[ScoreRecord]) -> None:
    """Write ``table1.tsv``, ``table1_subjects.tsv`` and ``table1_tests.tsv``, each with its JSON.

    Rows are in the order of ``ROWS``: models, then baselines; those without a record are left out.

    Parameters
    ----------
    output_dir : Path
        Root of the derivative dataset.
    records : sequence of ScoreRecord
        Records of all rows and folds, in any order.

    Raises
    ------
    ValueError
        If a model is not a row of the table, or was scored twice on one visit.
    ReadWriteError
        If a file cannot be written.
    """
    tests = [_cells(vars(row)) for row in compare_rows(records)]
    for name, lines in (
        ("table1", _rows(records)),
        ("table1_subjects", _subjects(records)),
        ("table1_tests", tests),
    ):
        write_table(output_dir / f"{name}.tsv", read_dictionary(name), lines)


def best_fwhm(records: Sequence[ScoreRecord], model: str) -> float | None:
    """Return the FWHM, in mm, with the highest mean SSIM (section 3.2); the smallest in a tie."""
    swept = [record.sweep for record in records if record.model == model and record.sweep]
    if not swept:
        return None
    means = {fwhm: float(np.mean([sweep[fwhm] for sweep in swept])) for fwhm in FWHM_SWEEP}
    return max(means, key=lambda fwhm: means[fwhm])


def _rows(records: Sequence[ScoreRecord]) -> list[Line]:
    lines = []
    for model in rows_of(records):
        line: Line = {
            "model": model,
            "configuration": ROWS[model],
            "n": participants_of(records, model),
            "fwhm_best": best_fwhm(records, model),
        }
        for metric in METRICS:
            mean, sd = mean_and_sd(records, model, metric)
            line |= {f"{metric}_mean": _cell(mean), f"{metric}_sd": _cell(sd)}
        lines.append(line)
    return lines


def _subjects(records: Sequence[ScoreRecord]) -> list[Line]:
    order = {row: index for index, row in enumerate(ROWS)}

    def position(record: ScoreRecord) -> tuple[int, str, str]:
        session = "" if record.session is None else record.session
        return order[record.model], record.participant, session

    return [
        {
            "model": record.model,
            "participant_id": f"sub-{record.participant}",
            "session_id": None if record.session is None else f"ses-{record.session}",
            "fold": record.fold,
            **_cells(vars(record.scores)),
            **_cells({_sweep_column(fwhm): value for fwhm, value in record.sweep.items()}),
        }
        for record in sorted(records, key=position)
    ]


def _sweep_column(fwhm: float) -> str:
    return f"{SWEEP}{fwhm:g}".replace(".", "p")


def _cells(values: Mapping[str, object]) -> Line:
    return {name: _cell(value) for name, value in values.items()}


def _cell(value: object) -> object:
    """Replace nan by None, which is written as n/a."""
    return None if isinstance(value, float) and math.isnan(value) else value


def read_table1(output_dir: Path, faults: Faults) -> list[ScoreRow]:
    """Read ``table1.tsv``."""
    return [
        ScoreRow(
            model=cells["model"],
            configuration=as_label(cells.get("configuration")),
            n=int(n) if (n := as_value(cells.get("n"))).is_integer() else None,
            means={metric: as_value(cells.get(f"{metric}_mean")) for metric in METRICS},
            sds={metric: as_value(cells.get(f"{metric}_sd")) for metric in METRICS},
        )
        for cells in read_lines(output_dir / "table1.tsv", ["model"], faults)
    ]


def read_scores(output_dir: Path, faults: Faults) -> list[ScoreRecord]:
    """Read ``table1_subjects.tsv``; an unknown fold is 0."""
    needed = ["model", "participant_id"]
    lines = read_lines(output_dir / "table1_subjects.tsv", needed, faults)
    return [_record(cells) for cells in lines]


def _record(cells: Cells) -> ScoreRecord:
    session, fold = as_label(cells.get("session_id")), as_value(cells.get("fold"))
    swept = {
        as_value(name.removeprefix(SWEEP).replace("p", ".")): as_value(cell)
        for name, cell in cells.items()
        if name.startswith(SWEEP)
    }
    return ScoreRecord(
        model=cells["model"],
        participant=cells["participant_id"].removeprefix("sub-"),
        session=session.removeprefix("ses-") if session else None,
        fold=int(fold) if fold.is_integer() else 0,
        scores=Scores(**{metric: as_value(cells.get(metric)) for metric in METRICS}),
        sweep={f: v for f, v in swept.items() if math.isfinite(f) and math.isfinite(v)},
    )


def read_tests(output_dir: Path, faults: Faults) -> list[PairedTest]:
    """Read ``table1_tests.tsv``."""
    needed = ("metric", "model_1", "model_2")
    return read_rows(output_dir / "table1_tests.tsv", PairedTest, needed, faults)


def read_history(folder: Path, faults: Faults) -> list[HistoryEpoch]:
    """Read the history of a generator; for an epoch that was run twice, the later line counts."""
    return epochs_of(read_lines(folder / "history.tsv", ["fold", "epoch"], faults))


def epochs_of(lines: Sequence[Cells]) -> list[HistoryEpoch]:
    """Return all epochs, fold by fold."""
    rows = (known_row(cells, HistoryEpoch, ()) for cells in lines)
    epochs = {(row.fold, row.epoch): row for row in rows if row is not None}
    return sorted(epochs.values(), key=lambda row: (rank(row.fold), row.epoch))


def rank(fold: str) -> tuple[bool, float, str]:
    """Return the sort key of a fold: by number, with the final generator last.

    Examples
    --------
    >>> sorted(["all", "10", "2"], key=rank)
    ['2', '10', 'all']
    """
    number = as_value(fold)
    return fold == ALL, math.inf if math.isnan(number) else number, fold
