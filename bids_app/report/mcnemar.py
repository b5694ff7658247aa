"""McNemar's tests between detectors, as a reader sees them."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from bids_app.report.detected import Detected
from bids_app.report.detectors import title_of
from bids_app.report.evaluated import UNITS, Comparison
from bids_app.report.tables import show

SHOWN: Final = (1, 5, 10)  # clusters a patient at which detectors are compared (our choice)
SIGNIFICANT: Final = 0.05  # our choice, as that of most of the field
SMALLEST: Final = 0.001  # p below it are not written out
NOTHING: Final = ("", "", "")


@dataclass(frozen=True)
class Cell:
    """At one number of clusters: found by the one alone, by the other alone, and p after Holm."""

    only_one: str
    only_other: str
    p: str
    significant: bool = False


@dataclass(frozen=True)
class Pair:
    """Two detectors."""

    one: str
    other: str
    cells: tuple[Cell, ...]


@dataclass(frozen=True)
class Matches:
    """All pairs on one unit: ``lesion`` or ``patient``."""

    unit: str
    n: str
    clusters: tuple[int, ...]
    pairs: tuple[Pair, ...]


def matches_of(detected: Detected) -> list[Matches]:
    """Lay out the tests, a unit a table; pairs in the order of the detectors."""
    tables = (_matches([o for o in detected.comparisons if o.unit == unit], unit) for unit in UNITS)
    return [table for table in tables if table.pairs]


def show_p(p: float | None) -> str:
    """Write a p-value.

    Examples
    --------
    >>> show_p(0.0312), show_p(0.00001), show_p(1.0), show_p(None)
    ('0.031', '< 0.001', '1.000', 'n/a')
    """
    return f"< {SMALLEST:g}" if p is not None and p < SMALLEST else show(p, 3)


def _matches(comparisons: Sequence[Comparison], unit: str) -> Matches:
    clusters = tuple(n for n in SHOWN if any(one.clusters == n for one in comparisons))
    known = {(one.one, one.other, one.clusters): one for one in comparisons}
    pairs = sorted({(one.one, one.other) for one in comparisons if one.clusters in clusters})
    counts = sorted({one.n for one in comparisons if one.n is not None})
    return Matches(
        unit=unit,
        n=" or ".join(map(str, counts)),
        clusters=clusters,
        pairs=tuple(
            Pair(
                title_of(one.training_set, one.detector),
                title_of(other.training_set, other.detector),
                tuple(_cell(known.get((one, other, n))) for n in clusters),
            )
            for one, other in pairs
        ),
    )


def _cell(comparison: Comparison | None) -> Cell:
    if comparison is None:
        return Cell("n/a", "n/a", "n/a")
    p = comparison.p_holm
    return Cell(
        only_one=_count(comparison.only_one),
        only_other=_count(comparison.only_other),
        p=show_p(p),
        significant=p is not None and p < SIGNIFICANT,
    )


def _count(value: int | None) -> str:
    return "n/a" if value is None else str(value)
