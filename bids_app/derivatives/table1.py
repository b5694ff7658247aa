"""Table 1 as files: one line a row, one line a visit, one line a test, each with its dictionary."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from bids_app.files import write_json, write_tsv
from bids_app.synthesis.evaluation import FWHM_SWEEP, METRICS, ROWS, ScoreRecord
from bids_app.synthesis.statistics import compare_rows, mean_and_sd, participants_of, rows_of

Line = dict[str, object]
Dictionary = dict[str, dict[str, object]]

_WHAT = {
    "ssim": (
        "Structural similarity to the real PET, -1 to 1, more is better; three-dimensional Gaussian"
        " window of 11 voxels, sigma 1.5 voxels, range 1. Wang et al. (2004), IEEE Transactions on"
        " Image Processing 13:600-612",
        "1",
    ),
    "psnr": (
        "Peak signal to noise ratio, from 0 for images in 0..1, more is better, inf where both are"
        " equal; peak 1. Zotova et al. (2021), section 3.2",
        "dB",
    ),
    "lpips": (
        "Learned perceptual image patch similarity, a distance: from 0, less is better; AlexNet,"
        " version 0.1; n/a where no weights were given (--lpips-weights). Zhang et al. (2018),"
        " CVPR, 586-595",
        "1",
    ),
    "mae": (
        "Mean absolute error of intensities scaled to 0..1, 0 to 1, less is better; not in the"
        " paper",
        "1",
    ),
}  # fmt: skip
_MODEL = (
    "Row of the table: a generator (Zotova et al. (2021), Table 1), scored on participants it was"
    " not trained on, or a baseline: the mean PET of the fold's training participants, the T1w"
)
_CONFIGURATION = "What the network sees: semi-3D three adjacent slices, 3D-patch cubes"


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
    tests = [_cells(vars(one)) for one in compare_rows(records)]
    for name, lines, dictionary in (
        ("table1", _rows(records), describe_rows()),
        ("table1_subjects", _subjects(records), describe_subjects()),
        ("table1_tests", tests, describe_tests()),
    ):
        write_tsv(output_dir / f"{name}.tsv", list(dictionary), lines)
        write_json(output_dir / f"{name}.json", dictionary)


def best_fwhm(records: Sequence[ScoreRecord], model: str) -> float | None:
    """Give the smoothing, in mm, whose mean SSIM is highest: section 3.2; the least of equals."""
    swept = [one.sweep for one in records if one.model == model and one.sweep]
    if not swept:
        return None
    means = {fwhm: float(np.mean([one[fwhm] for one in swept])) for fwhm in FWHM_SWEEP}
    return max(means, key=lambda fwhm: means[fwhm])


def describe_rows() -> Dictionary:
    """Explain the columns of ``table1.tsv``, in their order."""
    return {
        "model": {"Description": _MODEL},
        "configuration": {"Description": _CONFIGURATION},
        "n": {"Description": "Participants; those with several visits count once, by their mean"},
        **{
            f"{metric}_{end}": _describe(metric, lead)
            for metric in METRICS
            for end, lead in (
                ("mean", "Mean over participants. "),
                ("sd", "Standard deviation (n - 1) over participants. "),
            )
        },
        "fwhm_best": {
            "Description": "Full width at half maximum of the Gaussian, of those tried"
            f" ({', '.join(f'{fwhm:g}' for fwhm in FWHM_SWEEP)} mm), that gives the highest mean"
            " SSIM over the whole volume; n/a for baselines. Zotova et al. (2021), section 3.2",
            "Units": "mm",
        },
    }


def describe_subjects() -> Dictionary:
    """Explain the columns of ``table1_subjects.tsv``, in their order."""
    return {
        "model": {"Description": _MODEL},
        "participant_id": {"Description": "Participant"},
        "session_id": {"Description": "Session; n/a where there is none"},
        "fold": {"Description": "Fold, from 1, whose networks were not trained on the participant"},
        **{metric: _describe(metric) for metric in METRICS},
        **{
            _sweep_column(fwhm): _describe("ssim", f"After smoothing by {fwhm:g} mm FWHM. ")
            for fwhm in FWHM_SWEEP
        },
    }


def describe_tests() -> Dictionary:
    """Explain the columns of ``table1_tests.tsv``, in their order."""
    return {
        "metric": {
            "Description": "What is compared; its unit is that of median_difference",
            "Levels": {metric: _describe(metric)["Description"] for metric in METRICS},
        },
        "model_1": {"Description": _MODEL},
        "model_2": {"Description": "The row it is compared with; see model_1"},
        "n": {"Description": "Participants with a number in both rows"},
        "median_difference": {"Description": "Median of model_1 - model_2 over participants"},
        "statistic": {
            "Description": "Wilcoxon signed-rank statistic: the smaller sum of ranks, from 0"
        },
        "p": {
            "Description": "Two-tailed, 0 to 1, not corrected; 1 where all differences are 0, n/a"
            " where n is below 2. Zotova et al. (2021), section 3.2"
        },
        "p_holm": {
            "Description": "p corrected by Holm (1979), Scandinavian Journal of Statistics 6:65-70,"
            " for all pairs of rows in this metric"
        },
    }


def _describe(metric: str, lead: str = "") -> dict[str, object]:
    text, unit = _WHAT[metric.removesuffix("_brain")]
    where = "In the brain" if metric.endswith("_brain") else "Over the whole volume"
    return {"Description": f"{lead}{where}: {text}", "Units": unit}


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
            "model": one.model,
            "participant_id": f"sub-{one.participant}",
            "session_id": None if one.session is None else f"ses-{one.session}",
            "fold": one.fold,
            **_cells(vars(one.scores)),
            **_cells({_sweep_column(fwhm): value for fwhm, value in one.sweep.items()}),
        }
        for one in sorted(records, key=place)
    ]


def _sweep_column(fwhm: float) -> str:
    return f"ssim_fwhm{fwhm:g}".replace(".", "p")


def _cells(values: Mapping[str, object]) -> Line:
    return {name: _cell(value) for name, value in values.items()}


def _cell(value: object) -> object:
    """Let a number that there is not be n/a."""
    return None if isinstance(value, float) and math.isnan(value) else value
