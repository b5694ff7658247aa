"""How well the models did, as ``table1*.tsv`` tell it."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Final

from bids_app.report.cells import Cells, as_count, as_label, as_value
from bids_app.report.paper import in_order, is_baseline
from bids_app.synthesis.evaluation import METRICS

LESS_IS_BETTER: Final = ("lpips", "mae")
SWEEP: Final = "ssim_fwhm"  # first letters of the columns of the smoothing sweep


@dataclass(frozen=True)
class Row:
    """A line of ``table1.tsv``: mean and SD over controls of each metric; None is n/a."""

    model: str
    configuration: str
    n: int | None
    means: Mapping[str, float | None]
    sds: Mapping[str, float | None]


@dataclass(frozen=True)
class Score:
    """A line of ``table1_subjects.tsv``: a visit, by a network that has not been trained on it.

    Parameters
    ----------
    model, participant, session, fold : str
        ``session`` is empty where there is none.
    values : dict
        Metric → value, None if n/a.
    sweep : dict
        FWHM in mm → SSIM of the whole volume; only what was measured.
    """

    model: str
    participant: str
    session: str
    fold: str
    values: Mapping[str, float | None]
    sweep: Mapping[float, float]

    @property
    def visit(self) -> str:
        """Who it is: ``"sub-01"``, or ``"sub-01, ses-02"``."""
        return ", ".join(part for part in (self.participant, self.session) if part)


@dataclass(frozen=True)
class Comparison:
    """A line of ``table1_tests.tsv``: Wilcoxon signed-rank, two-tailed, over the same controls."""

    metric: str
    one: str
    other: str
    n: int | None
    difference: float | None
    p: float | None
    p_holm: float | None


def row_of(cells: Cells) -> Row:
    """Read a line of ``table1.tsv``."""
    return Row(
        model=cells["model"],
        configuration=as_label(cells.get("configuration")),
        n=as_count(cells.get("n")),
        means={metric: as_value(cells.get(f"{metric}_mean")) for metric in METRICS},
        sds={metric: as_value(cells.get(f"{metric}_sd")) for metric in METRICS},
    )


def score_of(cells: Cells) -> Score:
    """Read a line of ``table1_subjects.tsv``."""
    swept = [
        (as_value(name.removeprefix(SWEEP).replace("p", ".")), as_value(cell))
        for name, cell in cells.items()
        if name.startswith(SWEEP)
    ]
    return Score(
        model=cells["model"],
        participant=cells["participant_id"],
        session=as_label(cells.get("session_id")),
        fold=as_label(cells.get("fold")),
        values={metric: as_value(cells.get(metric)) for metric in METRICS},
        sweep={
            fwhm: ssim
            for fwhm, ssim in swept
            if fwhm is not None and ssim is not None and math.isfinite(ssim)
        },
    )


def comparison_of(cells: Cells) -> Comparison:
    """Read a line of ``table1_tests.tsv``."""
    return Comparison(
        metric=cells["metric"],
        one=cells["model_1"],
        other=cells["model_2"],
        n=as_count(cells.get("n")),
        difference=as_value(cells.get("median_difference")),
        p=as_value(cells.get("p")),
        p_holm=as_value(cells.get("p_holm")),
    )


def sign_of(metric: str) -> int:
    """Say whether more of a metric is better, 1, or less, -1.

    Examples
    --------
    >>> sign_of("ssim_brain"), sign_of("lpips_brain")
    (1, -1)
    """
    return -1 if metric.startswith(LESS_IS_BETTER) else 1


def values_of(scores: Iterable[Score], model: str, metric: str) -> dict[str, float]:
    """Give a metric by participant: the mean of the visits, and only what is finite."""
    visits: dict[str, list[float]] = {}
    for score in scores:
        value = score.values[metric]
        if score.model == model and value is not None and math.isfinite(value):
            visits.setdefault(score.participant, []).append(value)
    return {participant: fmean(values) for participant, values in sorted(visits.items())}


def best_model(scores: Sequence[Score], metric: str) -> str | None:
    """Name the model, no baseline, with the best mean of a metric; None if none was measured."""
    models = in_order(score.model for score in scores if not is_baseline(score.model))
    measured = {model: values_of(scores, model, metric) for model in models}
    means = {model: sign_of(metric) * fmean(v.values()) for model, v in measured.items() if v}
    return max(means, key=lambda model: means[model], default=None)
