"""Clusters of abnormal voxels, as tables tell them."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from bids_app.report.cells import Cells, as_count, as_label, as_value, read_lines
from bids_app.report.tables import show

NEEDED: Final = ("rank", "x", "y", "z")  # without them a line says nothing
RARE: Final = 0.05  # clusters expected in a healthy control; below it a line stands out; our choice


@dataclass(frozen=True)
class Cluster:
    """A cluster of a score map; None is n/a.

    Parameters
    ----------
    rank : int
        From 1, by ``sum_score``.
    centre : tuple of float
        Centre of mass in mm, in the space of the template, RAS+.
    volume, overlap : float or None
        Its own, and what it shares with a lesion, in mm³.
    peak_score, mean_score, sum_score : float or None
        In the unit of the score map.
    side, region : str
        Empty if not told.
    expected : float or None
        How many clusters of at least that ``sum_score`` a healthy control is expected to have.
    """

    rank: int
    centre: tuple[float, float, float]
    volume: float | None
    side: str
    peak_score: float | None
    mean_score: float | None
    sum_score: float | None
    expected: float | None
    overlap: float | None
    region: str

    @property
    def is_hit(self) -> bool:
        """Whether it overlaps a lesion that is known."""
        return self.overlap is not None and self.overlap > 0

    @property
    def is_rare(self) -> bool:
        """Whether a healthy control is hardly expected to have one like it."""
        return self.expected is not None and self.expected < RARE

    @property
    def place(self) -> str:
        """Its centre: ``"−22, 14, 9"``."""
        return ", ".join(f"{round(value)}".replace("-", "−") for value in self.centre)


def cluster_of(cells: Cells) -> Cluster | None:
    """Read a line of a cluster table; None if it does not say which cluster, and where."""
    rank = as_count(cells.get("rank"))
    x, y, z = (as_value(cells.get(axis)) for axis in "xyz")
    if rank is None or rank < 1 or x is None or y is None or z is None:
        return None
    return Cluster(
        rank=rank,
        centre=(x, y, z),
        volume=as_value(cells.get("volume")),
        side=as_label(cells.get("side")),
        peak_score=as_value(cells.get("peak_score")),
        mean_score=as_value(cells.get("mean_score")),
        sum_score=as_value(cells.get("sum_score")),
        expected=as_value(cells.get("expected_in_control")),
        overlap=as_value(cells.get("overlap")),
        region=as_label(cells.get("region")),
    )


def read_clusters(output_dir: Path, table: str) -> tuple[tuple[Cluster, ...], tuple[str, ...]]:
    """Read the cluster table of one score map.

    Parameters
    ----------
    output_dir : Path
        The derivative dataset.
    table : str
        A path inside it.

    Returns
    -------
    tuple of Cluster
        By rank. A table of no line is no fault: nothing was found.
    tuple of str
        What is missing or damaged, a sentence each.
    """
    lines, faults = read_lines(output_dir, table, NEEDED)
    clusters = [one for one in map(cluster_of, lines) if one is not None]
    told = tuple(fault for fault in faults if not fault.endswith("is empty."))  # nothing found
    return tuple(sorted(clusters, key=lambda one: one.rank)), told


def tell_numbers(cluster: Cluster) -> tuple[str, ...]:
    """Write volume, peak, mean and sum of a cluster.

    Examples
    --------
    >>> line = {"rank": "1", "x": "-22.4", "y": "14", "z": "9", "volume": "1340", "sum_score": "9"}
    >>> tell_numbers(cluster_of(line))
    ('1340', 'n/a', 'n/a', '9.00')
    """
    return (
        show(cluster.volume, 0),
        *(tell_score(v) for v in (cluster.peak_score, cluster.mean_score, cluster.sum_score)),
    )


def tell_score(value: float | None) -> str:
    """Write a score to three digits.

    Examples
    --------
    >>> tell_score(0.01234), tell_score(3.0), tell_score(1234.5), tell_score(-2.0)
    ('0.0123', '3.00', '1234', '−2.00')
    """
    if value is None:
        return "n/a"
    words = f"{value:.0f}" if abs(value) >= 100 else f"{value:#.3g}"  # noqa: PLR2004
    return words.replace("-", "−")


def tell_expected(value: float | None) -> str:
    """Write how many such clusters a healthy control is expected to have.

    Examples
    --------
    >>> tell_expected(0.0), tell_expected(0.029), tell_expected(3.5), tell_expected(None)
    ('0', '0.029', '3.5', 'n/a')
    """
    if value is None:
        return "n/a"
    return f"{value:.2g}" if value < 1 else f"{value:.1f}"


def columns_told(clusters: Sequence[Cluster]) -> tuple[bool, bool]:
    """Say whether any cluster has a region, and whether any knows of a lesion."""
    return (
        any(one.region for one in clusters),
        any(one.overlap is not None for one in clusters),
    )
