"""Table 1 as a reader sees it: mean ± SD, the best of each column, and the paper's beside it."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Final

from bids_app.report.paper import PUBLISHED, configuration_of, full_name_of, is_baseline, name_of
from bids_app.report.scores import Row, sign_of
from bids_app.report.tables import show
from bids_app.synthesis.evaluation import METRICS

# As the page's template has them: whole volume, brain, and the error of both.
COLUMNS: Final = (
    "ssim", "psnr", "lpips", "ssim_brain", "psnr_brain", "lpips_brain", "mae", "mae_brain",
)  # fmt: skip
DIGITS: Final = 3  # after the point, as the paper's


@dataclass(frozen=True)
class Cell:
    """Mean and SD as they are written; ``best`` of its column."""

    mean: str
    sd: str
    best: bool = False


@dataclass(frozen=True)
class Line:
    """A model or baseline."""

    name: str
    cells: tuple[Cell, ...]


@dataclass(frozen=True)
class Group:
    """Lines of one configuration."""

    configuration: str
    lines: tuple[Line, ...]


@dataclass(frozen=True)
class Pair:
    """What this run and what the paper has measured, mean ± SD; the metrics in their order."""

    name: str
    cells: tuple[tuple[str, str], ...]


def table1(rows: Sequence[Row]) -> list[Group]:
    """Lay out Table 1.

    Parameters
    ----------
    rows : sequence of Row
        In the order in which they are shown. The best of a column is a model, no baseline; those
        that cannot be told from it at the digits shown are as good.
    """
    best = {metric: _best(rows, metric) for metric in COLUMNS}

    def line_of(row: Row) -> Line:
        return Line(
            name_of(row.model), tuple(_cell(row, metric, best[metric]) for metric in COLUMNS)
        )

    def configuration(row: Row) -> str:
        return row.configuration if row.configuration else configuration_of(row.model)

    return [
        Group(name, tuple(line_of(row) for row in members))
        for name, members in groupby(rows, key=configuration)
    ]


def beside_the_paper(rows: Sequence[Row]) -> list[Pair]:
    """Put what the paper has published beside the rows that it has, too."""
    pairs = []
    for row in rows:
        if row.model in PUBLISHED:
            published = PUBLISHED[row.model]
            theirs = zip(
                ("ssim", "psnr", "lpips"),
                (published.ssim, published.psnr, published.lpips),
                strict=True,
            )
            cells = [
                (_tell(row.means[metric], row.sds[metric]), _tell(*values))
                for metric, values in theirs
            ]
            pairs.append(Pair(full_name_of(row.model), tuple(cells)))
    return pairs


def why_no_lpips(rows: Sequence[Row]) -> str:
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


def not_measured(rows: Sequence[Row]) -> list[str]:
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


def _best(rows: Sequence[Row], metric: str) -> str:
    """Give the best mean of the models as it is written; empty if there is none."""
    means = [row.means[metric] for row in rows if not is_baseline(row.model)]
    found = [mean for mean in means if mean is not None]
    if not found:
        return ""
    return show(max(found, key=lambda mean: sign_of(metric) * mean), DIGITS)


def _cell(row: Row, metric: str, best: str) -> Cell:
    mean = show(row.means[metric], DIGITS)
    sd = "" if row.sds[metric] is None else show(row.sds[metric], DIGITS)
    return Cell(mean, sd, mean == best and not is_baseline(row.model))


def _tell(mean: float | None, sd: float | None) -> str:
    """Write mean ± SD.

    Examples
    --------
    >>> _tell(0.8829, 0.0221), _tell(23.5, None), _tell(None, None)
    ('0.883 ± 0.022', '23.500', 'n/a')
    """
    words = show(mean, DIGITS)
    return words if mean is None or sd is None else f"{words} ± {show(sd, DIGITS)}"
