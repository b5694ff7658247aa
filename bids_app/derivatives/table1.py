"""Table 1 as files: one line a row, one line a visit, one line a test, each with its dictionary."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from bids_app.derivatives.sidecars import read_dictionary, write_table
from bids_app.synthesis.evaluation import FWHM_SWEEP, METRICS, ROWS, ScoreRecord
from bids_app.synthesis.statistics import compare_rows, mean_and_sd, participants_of, rows_of

Line = dict[str, object]


def write_table1(output_dir: Path, records: Sequence[ScoreRecord]) -> None:
    """Write ``table1.tsv``, ``table1_subjects.tsv`` and ``table1_tests.tsv``, each with its JSON.

    Rows are in the order of ``ROWS``: models, then baselines; those without a record are left out.

    Parameters
    ----------
    output_dir : Path
        Root of the derivative dataset.
    records : sequence of Record
        All rows, all folds, in any order.

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
    """Give the smoothing, in mm, whose mean SSIM is highest: section 3.2; the least of equals."""
    swept = [record.sweep for record in records if record.model == model and record.sweep]
    if not swept:
        return None
    means = {fwhm: float(np.mean([one[fwhm] for one in swept])) for fwhm in FWHM_SWEEP}
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
    order = {row: place for place, row in enumerate(ROWS)}

    def place(one: ScoreRecord) -> tuple[int, str, str]:
        return order[one.model], one.participant, "" if one.session is None else one.session

    return [
        {
            "model": record.model,
            "participant_id": f"sub-{record.participant}",
            "session_id": None if record.session is None else f"ses-{record.session}",
            "fold": record.fold,
            **_cells(vars(record.scores)),
            **_cells({_sweep_column(fwhm): value for fwhm, value in record.sweep.items()}),
        }
        for record in sorted(records, key=place)
    ]


def _sweep_column(fwhm: float) -> str:
    return f"ssim_fwhm{fwhm:g}".replace(".", "p")


def _cells(values: Mapping[str, object]) -> Line:
    return {name: _cell(value) for name, value in values.items()}


def _cell(value: object) -> object:
    """Let a number that there is not be n/a."""
    return None if isinstance(value, float) and math.isnan(value) else value
