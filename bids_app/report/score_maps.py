"""The score map of one detector over the participant's T1w, slice by slice."""

from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np

from bids_app.errors import Mri2petError
from bids_app.imaging.volume import Mask, Volume
from bids_app.nifti import Image
from bids_app.report.anomalies import Anomaly, backdrop_of
from bids_app.report.gallery import GREY
from bids_app.report.overlays import Heat, bar_of_scores, lay_over, paint_scores, painter_of
from bids_app.report.panels import AROUND_BRAIN, Panel
from bids_app.report.reportlets import Layer, mosaic
from bids_app.report.shelf import Shelf, mask_of
from bids_app.report.slices import Section, crop, field_around, spread

SHOWN: Final = 98.0  # percentile of a brain's scores, shown where no cluster is (our choice)
TOP: Final = 99.99  # percentile of a brain's scores that is drawn brightest (our choice)
ROWS: Final = ("Axial slices, lower half", "Axial slices, upper half", "Coronal and sagittal")


@dataclass(frozen=True)
class ScoreMap:
    """A score map with all it is drawn with, on one grid, RAS+.

    Parameters
    ----------
    scores, t1w, brain : Image
        The map, NaN where nothing was scored; the T1w under it and the mask of its brain.
    labels : Image or None
        Clusters: the value of a voxel is the rank. None if they cannot be read.
    heat : Heat
        Which scores are shown.
    """

    scores: Image
    t1w: Image
    brain: Image
    labels: Image | None
    heat: Heat


def take_score_map(shelf: Shelf, output_dir: Path, anomaly: Anomaly, *, own: bool) -> ScoreMap:
    """Read a score map and what belongs to it.

    Parameters
    ----------
    shelf : Shelf
        Of ``output_dir``.
    output_dir : Path
        The derivative dataset.
    anomaly : Anomaly
        The map.
    own : bool
        In the space of the participant's T1w, not in that of the template.

    Raises
    ------
    MissingInputError, ReadWriteError, UnusableDataError
        If map, T1w or brain mask cannot be read, or do not lie on one grid.
    """
    backdrop = backdrop_of(output_dir, anomaly, own=own)
    path, labels = (
        (anomaly.own_statmap, anomaly.own_labels) if own else (anomaly.statmap, anomaly.labels)
    )
    t1w = shelf.take(backdrop.t1w)
    brain = shelf.take(backdrop.brain, t1w)
    told = shelf.take(path, t1w)
    scores = Image(np.where(mask_of(brain) & (told.data != 0), told.data, np.nan), told.affine)
    try:
        clusters = shelf.take(labels, t1w)
    except Mri2petError:
        clusters = None
    ranks = None if clusters is None else clusters.data
    return ScoreMap(scores, t1w, brain, clusters, heat_of(scores.data, ranks))


def heat_of(scores: Volume, labels: Volume | None) -> Heat:
    """Choose which scores are shown: from the smallest one in a cluster on, none below 0.

    Parameters
    ----------
    scores : ndarray, (I, J, K)
        Higher is more abnormal; NaN where nothing was scored.
    labels : ndarray or None, (I, J, K)
        Ranks, 0 elsewhere. Without clusters, the brightest 2 % of the brain are shown.
    """
    scored = np.isfinite(scores)
    inside = scores[scored] if scored.any() else np.zeros(1, np.float32)
    usual, top = (float(value) for value in np.percentile(inside, [SHOWN, TOP]))
    clustered = scores[scored & (labels > 0.5)] if labels is not None else scores[:0]  # noqa: PLR2004
    threshold = max(float(clustered.min()) if clustered.size else usual, 0.0)
    return Heat(threshold, top if top > threshold else threshold + 1.0)


def draw_score_map(score_map: ScoreMap, title: str, caption: str) -> Panel:
    """Draw a score map over its T1w: axial, coronal and sagittal slices through all of the brain.

    Parameters
    ----------
    score_map : ScoreMap
        As :func:`take_score_map` reads it.
        In the space of the template, where the T1w is scaled to 0..1.
    title, caption : str
        The heading; what to look for.
    """
    field = field_around(mask_of(score_map.brain), score_map.brain.zooms, AROUND_BRAIN)
    brain, t1w, scores = (
        crop(image, field) for image in (score_map.brain, score_map.t1w, score_map.scores)
    )
    heat = score_map.heat
    paint = painter_of([scores.data], lambda _, values: paint_scores(values, heat))
    bars = (bar_of_scores(heat),)
    layers = [Layer("T1w and scores", t1w, GREY)]
    figures = (
        lay_over(mosaic(name, layers, sections), paint, bars)
        for name, sections in zip(ROWS, _blocks(mask_of(brain)), strict=True)
    )
    return Panel(title, caption, tuple(figures))


def _blocks(brain: Mask) -> tuple[tuple[Section, ...], ...]:
    axial = spread(brain, "axial", 12)
    return axial[:6], axial[6:], (*spread(brain, "coronal", 3), *spread(brain, "sagittal", 3))
