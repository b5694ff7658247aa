"""How well lesions were found, as ``detection_*.tsv`` tell it."""

from dataclasses import dataclass
from typing import Final

from bids_app.report.cells import Cells, as_count, as_label, as_value
from bids_app.report.detectors import Which, which

UNITS: Final = ("lesion", "patient")


@dataclass(frozen=True)
class Point:
    """A line of ``detection_curve.tsv``."""

    which: Which
    unit: str
    clusters: int
    n: int | None
    found: int | None
    sensitivity: float
    low: float | None
    high: float | None
    per_patient: float | None
    per_control: float | None


@dataclass(frozen=True)
class Response:
    """A line of ``detection_froc.tsv``."""

    which: Which
    unit: str
    per_control: float
    sensitivity: float


@dataclass(frozen=True)
class Comparison:
    """A line of ``detection_tests.tsv``: McNemar's test between two detectors."""

    unit: str
    clusters: int
    one: Which
    other: Which
    n: int | None
    only_one: int | None
    only_other: int | None
    p: float | None
    p_holm: float | None


def point_of(cells: Cells) -> Point | None:
    """Read a line of ``detection_curve.tsv``; None if it does not say enough."""
    clusters, sensitivity = as_count(cells["clusters"]), as_value(cells.get("sensitivity"))
    if clusters is None or sensitivity is None:
        return None
    return Point(
        which=which(cells["training_set"], cells["detector"]),
        unit=cells["unit"],
        clusters=clusters,
        n=as_count(cells.get("n")),
        found=as_count(cells.get("found")),
        sensitivity=sensitivity,
        low=as_value(cells.get("low")),
        high=as_value(cells.get("high")),
        per_patient=as_value(cells.get("false_clusters_per_patient")),
        per_control=as_value(cells.get("false_clusters_per_control")),
    )


def response_of(cells: Cells) -> Response | None:
    """Read a line of ``detection_froc.tsv``; None if it does not say enough."""
    per_control = as_value(cells.get("false_clusters_per_control"))
    sensitivity = as_value(cells.get("sensitivity"))
    if per_control is None or sensitivity is None:
        return None
    return Response(
        which(cells["training_set"], cells["detector"]), cells["unit"], per_control, sensitivity
    )


def comparison_of(cells: Cells) -> Comparison | None:
    """Read a line of ``detection_tests.tsv``; None if it does not say enough."""
    clusters = as_count(cells["clusters"])
    one, other = (
        which(as_label(cells.get(f"training_set_{n}")), as_label(cells.get(f"detector_{n}")))
        for n in (1, 2)
    )
    if clusters is None or not one.detector or not other.detector:
        return None
    return Comparison(
        unit=cells["unit"],
        clusters=clusters,
        one=one,
        other=other,
        n=as_count(cells.get("n")),
        only_one=as_count(cells.get("only_1")),
        only_other=as_count(cells.get("only_2")),
        p=as_value(cells.get("p")),
        p_holm=as_value(cells.get("p_holm")),
    )
