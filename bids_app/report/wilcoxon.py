"""The p-values between all rows of Table 1, laid out as matrices."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from bids_app.report.paper import full_name_of, in_order
from bids_app.report.scores import Comparison, sign_of

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


def matrices(comparisons: Sequence[Comparison]) -> list[Matrix]:
    """Lay out a matrix a metric, its rows and columns as :func:`names_of` has them.

    Metrics of which no p-value is known are left out.
    """
    models = _models(comparisons)
    laid = []
    for metric, title in SHOWN.items():
        tests = _both_ways([one for one in comparisons if one.metric == metric])
        if any(one.p is not None for one in tests.values()):
            lines = tuple(
                tuple(_cell(metric, tests, models, row, column) for column in range(len(models)))
                for row in range(len(models))
            )
            laid.append(Matrix(title, lines))
    return laid


def names_of(comparisons: Sequence[Comparison]) -> list[str]:
    """Name the rows, and columns, of all matrices."""
    return [full_name_of(model) for model in _models(comparisons)]


def least_p(comparisons: Sequence[Comparison]) -> str:
    """Warn where so few controls were compared that no p-value can be small; else empty.

    The signs of n differences fall in 2ⁿ ways, two of which are as one-sided as can be.
    """
    counts = [one.n for one in comparisons if one.n]
    pairs = max((sum(one.metric == metric for one in comparisons) for metric in SHOWN), default=0)
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


def _models(comparisons: Sequence[Comparison]) -> list[str]:
    return in_order(name for one in comparisons for name in (one.one, one.other))


def _both_ways(tests: Sequence[Comparison]) -> dict[tuple[str, str], Comparison]:
    """Find a test by its rows, whichever comes first; the difference follows."""
    swapped = [
        Comparison(
            t.metric, t.other, t.one, t.n, None if t.difference is None else -t.difference,
            t.p, t.p_holm,
        )
        for t in tests
    ]  # fmt: skip
    return {(test.one, test.other): test for test in (*swapped, *tests)}


def _cell(
    metric: str,
    tests: dict[tuple[str, str], Comparison],
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
