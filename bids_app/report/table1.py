"""Table 1 as a reader sees it: mean ± SD, the best of each column, the paper's beside it, tests."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from statistics import fmean
from typing import Final

from bids_app.report.page import Cells, as_count, as_label, as_value
from bids_app.report.results import show
from bids_app.synthesis.evaluation import METRICS
from bids_app.synthesis.models import PUBLISHED

BASELINE: Final = "baseline-"
GREY: Final = "#6e7781"
# Name → what it is
BASELINES: Final = {
    "baseline-mean-pet": "Mean PET of the training controls",
    "baseline-t1w": "The T1w itself",
}


def is_baseline(model: str) -> bool:
    """Tell what needs no network from a model."""
    return model.startswith(BASELINE)


def in_order(models: Iterable[str]) -> list[str]:
    """Put models as the paper does, each once; after them others, then the baselines.

    Examples
    --------
    >>> in_order(["baseline-t1w", "my-own", "semi3d-gan-mse", "semi3d-gan", "my-own"])
    ['semi3d-gan', 'semi3d-gan-mse', 'my-own', 'baseline-t1w']
    """
    known = [*PUBLISHED, *BASELINES]

    def place(model: str) -> tuple[bool, int, str]:
        return (is_baseline(model), known.index(model) if model in known else len(known), model)

    return sorted(set(models), key=place)


def configuration_of(model: str) -> str:
    """Give the first column of the paper's table; empty if it is none of the paper's rows."""
    if is_baseline(model):
        return "baseline"
    return PUBLISHED[model].configuration if model in PUBLISHED else ""


def name_of(model: str) -> str:
    """Give the paper's name of a model; a baseline's is ours, another model's its own.

    Examples
    --------
    >>> name_of("semi3d-cyclegan-mse"), name_of("my-own")
    ('Cycle-GAN with MSE loss', 'my-own')
    """
    if model in PUBLISHED:
        return PUBLISHED[model].name
    return BASELINES.get(model, model)


def full_name_of(model: str) -> str:
    """Give configuration and name.

    Examples
    --------
    >>> full_name_of("semi3d-cyclegan-mse"), full_name_of("baseline-t1w")
    ('semi-3D Cycle-GAN with MSE loss', 'The T1w itself')
    """
    if model in PUBLISHED:
        return f"{PUBLISHED[model].configuration} {PUBLISHED[model].name}"
    return name_of(model)


def name_in_short(model: str) -> str:
    """Give the name where there is little room.

    Examples
    --------
    >>> name_in_short("semi3d-cyclegan-mse")
    'Cycle-GAN + MSE'
    """
    return name_of(model).replace(" with MSE loss", " + MSE")


def colour_of(model: str) -> str:
    """Give the colour of a model; grey for baselines and models that are not the paper's."""
    return PUBLISHED[model].colour if model in PUBLISHED else GREY


def dash_of(model: str) -> str:
    """Give the dashes of a model's line; empty for a whole line."""
    return PUBLISHED[model].dash if model in PUBLISHED else ""


LESS_IS_BETTER: Final = ("lpips", "mae")
SWEEP: Final = "ssim_fwhm"  # first letters of the columns of the smoothing sweep


@dataclass(frozen=True)
class ScoreRow:
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
class ScoreComparison:
    """A line of ``table1_tests.tsv``: Wilcoxon signed-rank, two-tailed, over the same controls."""

    metric: str
    one: str
    other: str
    n: int | None
    difference: float | None
    p: float | None
    p_holm: float | None


def row_of(cells: Cells) -> ScoreRow:
    """Read a line of ``table1.tsv``."""
    return ScoreRow(
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


def comparison_of(cells: Cells) -> ScoreComparison:
    """Read a line of ``table1_tests.tsv``."""
    return ScoreComparison(
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


# As the page's template has them: whole volume, brain, and the error of both.
COLUMNS: Final = (
    "ssim",
    "psnr",
    "lpips",
    "ssim_brain",
    "psnr_brain",
    "lpips_brain",
    "mae",
    "mae_brain",
)
DIGITS: Final = 3  # after the point, as the paper's


@dataclass(frozen=True)
class Table1Cell:
    """Mean and SD as they are written; ``best`` of its column."""

    mean: str
    sd: str
    best: bool = False


@dataclass(frozen=True)
class Table1Row:
    """A model or baseline."""

    name: str
    cells: tuple[Table1Cell, ...]


@dataclass(frozen=True)
class Table1Group:
    """Lines of one configuration."""

    configuration: str
    lines: tuple[Table1Row, ...]


@dataclass(frozen=True)
class Table1Pair:
    """What this run and what the paper has measured, mean ± SD; the metrics in their order."""

    name: str
    cells: tuple[tuple[str, str], ...]


def table1(rows: Sequence[ScoreRow]) -> list[Table1Group]:
    """Lay out Table 1.

    Parameters
    ----------
    rows : sequence of Row
        In the order in which they are shown. The best of a column is a model, no baseline; those
        that cannot be told from it at the digits shown are as good.
    """
    best = {metric: _best(rows, metric) for metric in COLUMNS}

    def line_of(row: ScoreRow) -> Table1Row:
        return Table1Row(
            name_of(row.model), tuple(_cell(row, metric, best[metric]) for metric in COLUMNS)
        )

    def configuration(row: ScoreRow) -> str:
        return row.configuration if row.configuration else configuration_of(row.model)

    return [
        Table1Group(name, tuple(line_of(row) for row in members))
        for name, members in groupby(rows, key=configuration)
    ]


def beside_the_paper(rows: Sequence[ScoreRow]) -> list[Table1Pair]:
    """Put what the paper has published beside the rows that it has, too."""
    pairs = []
    for row in rows:
        if row.model in PUBLISHED:
            theirs = zip(("ssim", "psnr", "lpips"), PUBLISHED[row.model].scores, strict=True)
            cells = [
                (_tell(row.means[metric], row.sds[metric]), _tell(*values))
                for metric, values in theirs
            ]
            pairs.append(Table1Pair(full_name_of(row.model), tuple(cells)))
    return pairs


def why_no_lpips(rows: Sequence[ScoreRow]) -> str:
    """Say which rows have no LPIPS, and why; empty if all have."""
    without = [row for row in rows if row.means["lpips"] is None]
    if not without:
        return ""
    if len(without) == len(rows):
        return (
            "LPIPS is n/a: it needs the weights of a network that the app does not carry, and the "
            "run was given none (--lpips-weights FILE, or MRI2PET_LPIPS_WEIGHTS)."
        )
    names = ", ".join(full_name_of(row.model) for row in without)
    return f"LPIPS was not measured for: {names}."


def not_measured(rows: Sequence[ScoreRow]) -> list[str]:
    """Say of each row which metrics, beside LPIPS, it lacks."""
    lacking = {
        row.model: [m for m in METRICS if row.means[m] is None and not m.startswith("lpips")]
        for row in rows
    }
    return [
        f"table1.tsv has no {', '.join(metrics)} for {full_name_of(model)}."
        for model, metrics in lacking.items()
        if metrics
    ]


def _best(rows: Sequence[ScoreRow], metric: str) -> str:
    """Give the best mean of the models as it is written; empty if there is none."""
    means = [row.means[metric] for row in rows if not is_baseline(row.model)]
    found = [mean for mean in means if mean is not None]
    if not found:
        return ""
    return show(max(found, key=lambda mean: sign_of(metric) * mean), DIGITS)


def _cell(row: ScoreRow, metric: str, best: str) -> Table1Cell:
    mean = show(row.means[metric], DIGITS)
    sd = "" if row.sds[metric] is None else show(row.sds[metric], DIGITS)
    return Table1Cell(mean, sd, mean == best and not is_baseline(row.model))


def _tell(mean: float | None, sd: float | None) -> str:
    """Write mean ± SD.

    Examples
    --------
    >>> _tell(0.8829, 0.0221), _tell(23.5, None), _tell(None, None)
    ('0.883 ± 0.022', '23.500', 'n/a')
    """
    words = show(mean, DIGITS)
    return words if mean is None or sd is None else f"{words} ± {show(sd, DIGITS)}"


SHOWN: Final = {
    "ssim": "SSIM, whole volume",
    "psnr": "PSNR, whole volume",
    "lpips": "LPIPS, whole volume",
    "ssim_brain": "SSIM, inside the brain",
    "psnr_brain": "PSNR, inside the brain",
    "lpips_brain": "LPIPS, inside the brain",
}
SIGNIFICANT: Final = 0.05  # of Holm's p: what is marked
SUPERSCRIPTS: Final = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")
SMALL: Final = 0.001  # below it, powers of ten


@dataclass(frozen=True)
class P:
    """A p-value as it is written. ``better``: the row's model is, the column's is, or neither."""

    text: str
    kind: str
    better: str = ""


@dataclass(frozen=True)
class Matrix:
    """A metric: unadjusted p below the diagonal, Holm's above it."""

    title: str
    lines: tuple[tuple[P, ...], ...]


def matrices(comparisons: Sequence[ScoreComparison]) -> list[Matrix]:
    """Lay out a matrix a metric, its rows and columns as :func:`names_of` has them.

    Metrics of which no p-value is known are left out.
    """
    models = _models(comparisons)
    laid = []
    for metric, title in SHOWN.items():
        tests = _both_ways(
            [comparison for comparison in comparisons if comparison.metric == metric]
        )
        if any(test.p is not None for test in tests.values()):
            lines = tuple(
                tuple(
                    _wilcoxon_cell(metric, tests, models, row, column)
                    for column in range(len(models))
                )
                for row in range(len(models))
            )
            laid.append(Matrix(title, lines))
    return laid


def names_of(comparisons: Sequence[ScoreComparison]) -> list[str]:
    """Name the rows, and columns, of all matrices."""
    return [full_name_of(model) for model in _models(comparisons)]


def least_p(comparisons: Sequence[ScoreComparison]) -> str:
    """Warn where so few controls were compared that no p-value can be small; else empty.

    The signs of n differences fall in 2ⁿ ways, two of which are as one-sided as can be.
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
    """Write a p-value.

    Examples
    --------
    >>> show_p(0.0694), show_p(0.0000021), show_p(1.0), show_p(None)
    ('0.069', '2×10⁻⁶', '1', 'n/a')
    """
    if p is None:
        return "n/a"
    if p >= SMALL or p == 0:
        return f"{p:.3f}".replace("1.000", "1")
    digit, _, power = f"{p:.0e}".partition("e")
    return f"{digit}×10" + str(int(power)).translate(SUPERSCRIPTS)


def _models(comparisons: Sequence[ScoreComparison]) -> list[str]:
    return in_order(
        name for comparison in comparisons for name in (comparison.one, comparison.other)
    )


def _both_ways(tests: Sequence[ScoreComparison]) -> dict[tuple[str, str], ScoreComparison]:
    """Find a test by its rows, whichever comes first; the difference follows."""
    swapped = [
        ScoreComparison(
            t.metric,
            t.other,
            t.one,
            t.n,
            None if t.difference is None else -t.difference,
            t.p,
            t.p_holm,
        )
        for t in tests
    ]
    return {(test.one, test.other): test for test in (*swapped, *tests)}


def _wilcoxon_cell(
    metric: str,
    tests: dict[tuple[str, str], ScoreComparison],
    models: Sequence[str],
    row: int,
    column: int,
) -> P:
    if row == column:
        return P("", "same")
    test = tests.get((models[row], models[column]))
    if row > column:
        return P(show_p(None if test is None else test.p), "plain")
    adjusted = None if test is None else test.p_holm
    significant = adjusted is not None and adjusted < SIGNIFICANT
    difference = test.difference if test is not None else None
    if not significant or not difference:
        return P(show_p(adjusted), "holm")
    better = "row" if difference * sign_of(metric) > 0 else "column"
    return P(show_p(adjusted), "holm", better)
