"""Table 1 for readers: mean ± SD, best of each column, comparison with the paper, and tests."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from itertools import groupby
from math import isfinite, isnan, nan
from statistics import fmean
from typing import Final

from bids_app.derivatives.table1 import ScoreRow
from bids_app.report.page import show
from bids_app.synthesis.evaluation import METRICS, ROWS, ScoreRecord
from bids_app.synthesis.models import CONDITIONED, OVERLAPPING, PUBLISHED, TISSUE
from bids_app.synthesis.statistics import PairedTest

BASELINE: Final = "baseline-"
GREY: Final = "#6e7781"
DOTS: Final = "1 2"  # dashes of lines of conditioned rows
# Name → description
BASELINES: Final = {
    "baseline-mean-pet": "Mean PET of the training controls",
    "baseline-t1w": "The T1w itself",
}
NAMES: Final = {TISSUE: "No network", **BASELINES}


def is_baseline(model: str) -> bool:
    """Return whether a row is a baseline, which does not predict from the individual's anatomy."""
    return model.startswith(BASELINE)


def in_order(models: Iterable[str]) -> list[str]:
    """Sort models as in the paper, without duplicates, followed by others and then baselines.

    Examples
    --------
    >>> in_order(["baseline-t1w", "my-own", "semi3d-gan-mse", "semi3d-gan", "my-own"])
    ['semi3d-gan', 'semi3d-gan-mse', 'my-own', 'baseline-t1w']
    """
    rows = list(ROWS)

    def position(model: str) -> tuple[bool, int, str]:
        return (is_baseline(model), rows.index(model) if model in rows else len(rows), model)

    return sorted(set(models), key=position)


def configuration_of(model: str) -> str:
    """Return the first column of the paper's table; empty for a model that is not in ``ROWS``."""
    if is_baseline(model):
        return "baseline"
    return ROWS.get(model, "")


def name_of(model: str) -> str:
    """Return the paper's name of a model, our name of a baseline, or another model's own name.

    Examples
    --------
    >>> name_of("semi3d-cyclegan-mse"), name_of("my-own")
    ('Cycle-GAN with MSE loss', 'my-own')
    """
    if model in OVERLAPPING:
        return f"{name_of(OVERLAPPING[model])}, overlapping triplets"
    row = CONDITIONED.get(model, model)
    if row in PUBLISHED:
        return PUBLISHED[row].name
    return NAMES.get(model, model)


def full_name_of(model: str) -> str:
    """Return the configuration and name of a model.

    Examples
    --------
    >>> full_name_of("semi3d-cyclegan-mse"), full_name_of("baseline-t1w")
    ('semi-3D Cycle-GAN with MSE loss', 'The T1w itself')
    >>> full_name_of("semi3d-gan-tissue"), full_name_of("semi3d-gan-overlap")
    ('conditioned semi-3D Simple-GAN', 'semi-3D Simple-GAN, overlapping triplets')
    """
    if model in PUBLISHED or model in CONDITIONED or model in OVERLAPPING:
        return f"{ROWS[model]} {name_of(model)}"
    return "tissue model" if model == TISSUE else name_of(model)


def name_in_short(model: str) -> str:
    """Return the short name of a model.

    Examples
    --------
    >>> name_in_short("semi3d-cyclegan-mse")
    'Cycle-GAN + MSE'
    """
    return name_of(model).replace(" with MSE loss", " + MSE")


def colour_of(model: str) -> str:
    """Return the colour of a model; grey for baselines and models that are not in the paper.

    A conditioned row has the colour of the paper's row on which it is based.
    """
    row = CONDITIONED.get(model, model)
    return PUBLISHED[row].colour if row in PUBLISHED else GREY


def dash_of(model: str) -> str:
    """Return the dashes of a model's line; empty for a solid line."""
    if model in CONDITIONED:
        return DOTS
    return PUBLISHED[model].dash if model in PUBLISHED else ""


NEEDS_MORE: Final = ("lpips", "suvr", "asymmetry")  # need weights or an atlas
LESS_IS_BETTER: Final = ("lpips", "mae", "suvr_error")
BIAS: Final = "suvr_bias"  # best near zero


def sign_of(metric: str) -> int:
    """Return 1 if higher values of a metric are better, and -1 if lower ones are.

    Examples
    --------
    >>> sign_of("ssim_brain"), sign_of("lpips_brain")
    (1, -1)
    """
    return -1 if metric.startswith(LESS_IS_BETTER) else 1


def values_of(scores: Iterable[ScoreRecord], model: str, metric: str) -> dict[str, float]:
    """Return the mean of the finite values of a metric over visits, by participant."""
    visits: dict[str, list[float]] = {}
    for score in scores:
        value = getattr(score.scores, metric)
        if score.model == model and isfinite(value):
            visits.setdefault(score.participant, []).append(value)
    return {participant: fmean(values) for participant, values in sorted(visits.items())}


def best_model(scores: Sequence[ScoreRecord], metric: str) -> str | None:
    """Return the model, excluding baselines, with the best mean of a metric; None if unmeasured."""
    models = in_order(score.model for score in scores if not is_baseline(score.model))
    measured = {model: values_of(scores, model, metric) for model in models}
    means = {model: sign_of(metric) * fmean(v.values()) for model, v in measured.items() if v}
    return max(means, key=lambda model: means[model], default=None)


# In the order of the page's template: whole volume, brain, and the error of both.
COLUMNS: Final = (
    "ssim",
    "psnr",
    "lpips",
    "ssim_brain",
    "psnr_brain",
    "lpips_brain",
    "mae",
    "mae_brain",
    "suvr_error",
    "suvr_bias",
    "asymmetry_agreement",
)
DIGITS: Final = 3  # decimals, as in the paper
FEWER_DIGITS: Final = {"suvr_error": 1, "suvr_bias": 1, "asymmetry_agreement": 2}


Cell = tuple[str, str, bool]  # formatted mean and SD, and whether it is the best


def table1(rows: Sequence[ScoreRow]) -> list[tuple[str, list[tuple[str, list[Cell]]]]]:
    """Lay out Table 1.

    Parameters
    ----------
    rows : sequence of ScoreRow
        Rows in the order in which they are shown. The best of a column is a model whose rounded
        mean is better than those of all baselines; models with the same rounded mean share it.

    Returns
    -------
    list of (str, list)
        Configurations with their rows, each with its name and a cell per column.
    """
    best = {metric: _best(rows, metric) for metric in COLUMNS}

    def configuration(row: ScoreRow) -> str:
        return row.configuration if row.configuration else configuration_of(row.model)

    return [
        (name, [(name_of(r.model), [_cell(r, m, best[m]) for m in COLUMNS]) for r in members])
        for name, members in groupby(rows, key=configuration)
    ]


def compare_with_paper(rows: Sequence[ScoreRow]) -> list[tuple[str, list[tuple[str, str]]]]:
    """List our results beside the published ones, for rows that are in the paper."""
    pairs = []
    for row in rows:
        if row.model in PUBLISHED:
            published = zip(("ssim", "psnr", "lpips"), PUBLISHED[row.model].scores, strict=True)
            cells = [
                (_show_mean(row.means[m], row.sds[m]), _show_mean(*values))
                for m, values in published
            ]
            pairs.append((full_name_of(row.model), cells))
    return pairs


def why_no_lpips(rows: Sequence[ScoreRow]) -> str:
    """Explain which rows have no LPIPS, and why; return an empty string if all have it."""
    without = [row for row in rows if isnan(row.means["lpips"])]
    if not without:
        return ""
    if len(without) == len(rows):
        return (
            "LPIPS is n/a: it needs the weights of a network that is not distributed with the app, "
            "and none were given (--lpips-weights FILE, or MRI2PET_LPIPS_WEIGHTS)."
        )
    names = ", ".join(full_name_of(row.model) for row in without)
    return f"LPIPS was not measured for: {names}."


def not_measured(rows: Sequence[ScoreRow]) -> list[str]:
    """List sentences on metrics other than those in ``NEEDS_MORE`` that rows lack."""
    lacking = {
        row.model: [m for m in METRICS if isnan(row.means[m]) and not m.startswith(NEEDS_MORE)]
        for row in rows
    }
    return [
        f"table1.tsv has no {', '.join(metrics)} for {full_name_of(model)}."
        for model, metrics in lacking.items()
        if metrics
    ]


def _best(rows: Sequence[ScoreRow], metric: str) -> str:
    """Return the best merit of the models' means, formatted; empty if a baseline is as good."""
    digits = _digits(metric)
    merits = [
        (round(_merit(metric, row.means[metric]), digits), is_baseline(row.model))
        for row in rows
        if not isnan(row.means[metric])
    ]
    best, by_baseline = max(merits, default=(nan, True))  # a baseline wins a tie
    return "" if by_baseline else show(best, digits)


def _digits(metric: str) -> int:
    return FEWER_DIGITS.get(metric, DIGITS)


def _merit(metric: str, mean: float) -> float:
    """Return a value that is higher for a better mean: the mean, or minus what should be low."""
    return -abs(mean) if metric == BIAS else sign_of(metric) * mean


def _cell(row: ScoreRow, metric: str, best: str) -> Cell:
    mean, sd = row.means[metric], row.sds[metric]
    deviation = "" if isnan(sd) else show(sd, _digits(metric))
    as_good = show(_merit(metric, mean), _digits(metric)) == best
    return show(mean, _digits(metric)), deviation, as_good and not is_baseline(row.model)


def _show_mean(mean: float, sd: float) -> str:
    """Format mean ± SD.

    Examples
    --------
    >>> _show_mean(0.8829, 0.0221), _show_mean(23.5, float("nan"))
    ('0.883 ± 0.022', '23.500')
    """
    words = show(mean, DIGITS)
    return words if isnan(mean) or isnan(sd) else f"{words} ± {show(sd, DIGITS)}"


SHOWN: Final = {
    "ssim": "SSIM, whole volume",
    "psnr": "PSNR, whole volume",
    "lpips": "LPIPS, whole volume",
    "ssim_brain": "SSIM, inside the brain",
    "psnr_brain": "PSNR, inside the brain",
    "lpips_brain": "LPIPS, inside the brain",
}
SIGNIFICANT: Final = 0.05  # Holm-adjusted p; our choice, common in the field
SUPERSCRIPTS: Final = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")
SMALL: Final = 0.001  # smaller p-values are shown as powers of ten


P = tuple[str, str, str]  # formatted p; its kind; the better one: "row", "column" or ""


def matrices(comparisons: Sequence[PairedTest]) -> list[tuple[str, list[list[P]]]]:
    """Lay out a matrix per metric: unadjusted p below the diagonal, Holm's above it.

    Rows and columns are in the order of :func:`names_of`. Metrics without any p-value are left out.
    """
    models = _models(comparisons)
    tables = []
    for metric, title in SHOWN.items():
        tests = _tests_by_pair([test for test in comparisons if test.metric == metric])
        if any(not isnan(test.p) for test in tests.values()):
            indices = range(len(models))
            lines = [[_p(tests, models, row, column) for column in indices] for row in indices]
            tables.append((title, lines))
    return tables


def names_of(comparisons: Sequence[PairedTest]) -> list[str]:
    """Return the names of the rows and columns of all matrices."""
    return [full_name_of(model) for model in _models(comparisons)]


def least_p(comparisons: Sequence[PairedTest]) -> str:
    """Return a warning if too few controls were compared for small p-values; otherwise empty.

    The signs of n differences have 2ⁿ possible patterns, two of which are entirely one-sided.
    """
    counts = [comparison.n for comparison in comparisons if comparison.n]
    pairs = max(
        (sum(comparison.metric == metric for comparison in comparisons) for metric in SHOWN),
        default=0,
    )
    if not counts or 2 * pairs / 2 ** max(counts) <= SIGNIFICANT:
        return ""
    least = 2 / 2 ** max(counts)
    adjusted = (
        f", and none adjusted over {pairs} pairs below {show_p(min(least * pairs, 1.0))}"
        if pairs > 1
        else ""
    )
    return (
        f"With {max(counts)} controls no p can be below {show_p(least)}{adjusted}: these tests "
        "cannot show a difference."
    )


def show_p(p: float | None) -> str:
    """Format a p-value.

    Examples
    --------
    >>> show_p(0.0694), show_p(0.0000021), show_p(1.0), show_p(float("nan"))
    ('0.069', '2×10⁻⁶', '1', 'n/a')
    """
    if p is None or isnan(p):
        return "n/a"
    if p >= SMALL or p == 0:
        return f"{p:.3f}".replace("1.000", "1")
    digit, _, power = f"{p:.0e}".partition("e")
    return f"{digit}×10" + str(int(power)).translate(SUPERSCRIPTS)


def _models(comparisons: Sequence[PairedTest]) -> list[str]:
    return in_order(name for test in comparisons for name in (test.model_1, test.model_2))


def _tests_by_pair(tests: Sequence[PairedTest]) -> dict[tuple[str, str], PairedTest]:
    """Index tests by their models in both orders, with the sign of the difference to match."""
    swapped = {
        (t.model_2, t.model_1): replace(t, median_difference=-t.median_difference) for t in tests
    }
    return {**swapped, **{(test.model_1, test.model_2): test for test in tests}}


def _p(
    tests: Mapping[tuple[str, str], PairedTest], models: Sequence[str], row: int, column: int
) -> P:
    if row == column:
        return "", "same", ""
    test = tests.get((models[row], models[column]))
    if test is None:
        return "n/a", "plain" if row > column else "holm", ""
    if row > column:
        return show_p(test.p), "plain", ""
    better = test.median_difference * sign_of(test.metric)
    if not test.p_holm < SIGNIFICANT or not better or isnan(better):
        return show_p(test.p_holm), "holm", ""
    return show_p(test.p_holm), "holm", "row" if better > 0 else "column"
