"""Clusters over the T1w, a column a detector, as Figure 3 of Zotova et al. (2021)."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Final

import numpy as np
from scipy import ndimage

from bids_app.errors import Mri2petError
from bids_app.imaging.volume import Mask, Volume
from bids_app.nifti import Image
from bids_app.report.anomalies import Anomaly, backdrop_of, lesions_of
from bids_app.report.clusters import columns_told
from bids_app.report.detectors import name_of
from bids_app.report.gallery import GREY
from bids_app.report.montage import Column, montage
from bids_app.report.outlines import trace
from bids_app.report.overlays import (
    bars_of_ranks,
    brightness,
    lay_over,
    paint_ranks,
    painter_of,
)
from bids_app.report.panels import AROUND_BRAIN, Panel
from bids_app.report.reportlets import Figure, Layer, Line
from bids_app.report.shelf import Shelf, mask_of
from bids_app.report.slices import AXIS_OF, PLANES, Field, Section, crop, cut, field_around

LESION: Final = "#00b7ff"  # colour of the line around a lesion: none of the clusters has it


def draw_cluster_maps(output_dir: Path, anomalies: Sequence[Anomaly]) -> list[Panel]:
    """Draw the clusters of all detectors beside one another, a panel a PET.

    Parameters
    ----------
    output_dir : Path
        The derivative dataset.
    anomalies : sequence of Anomaly
        Of one participant.

    Returns
    -------
    list of Panel
        Without a figure, but with the reason, where the T1w cannot be read.
    """
    return [
        _attempt(output_dir, [one for one in anomalies if one.stem == stem])
        for stem in dict.fromkeys(one.stem for one in anomalies)
    ]


def weigh(volumes: Sequence[Volume]) -> Volume:
    """Add up how bright the clusters of several label images are drawn, voxel by voxel."""
    table = np.array([0.0, *(brightness(rank) for rank in range(1, 256))], np.float32)
    ranks = (np.clip(labels.round(), 0, 255).astype(np.uint8) for labels in volumes)
    total: Volume = sum((table[one] for one in ranks), np.zeros(volumes[0].shape, np.float32))
    return total


def best_sections(weights: Volume) -> tuple[Section, ...]:
    """Choose a slice a view: the one that holds most, the middle one where there is nothing.

    Parameters
    ----------
    weights : ndarray, (I, J, K)
        RAS+, not below 0.
    """
    chosen = []
    for plane in PLANES:
        axis = AXIS_OF[plane]
        sums = weights.sum(axis=tuple({0, 1, 2} - {axis}))
        middle = weights.shape[axis] // 2
        chosen.append(Section(plane, int(sums.argmax()) if sums.any() else middle))
    return tuple(chosen)


def sections_through(mask: Mask) -> tuple[Section, ...]:
    """Choose a slice a view through the middle of the largest part of a mask."""
    parts, count = ndimage.label(mask, np.ones((3, 3, 3)))
    sizes = ndimage.sum_labels(mask, parts, range(1, count + 1))
    largest = parts == 1 + int(np.argmax(sizes))
    middle = [round(place) for place in ndimage.center_of_mass(largest)]
    return tuple(Section(plane, middle[AXIS_OF[plane]]) for plane in PLANES)


def take_lesions(shelf: Shelf, output_dir: Path, anomaly: Anomaly, grid: Image) -> Mask | None:
    """Read all lesions of a participant as one mask; None if none is known.

    A mask that lies there, but that no cluster was compared with, is of an earlier run.
    """
    if anomaly.clusters and not columns_told(anomaly.clusters)[1]:
        return None
    paths = lesions_of(output_dir, anomaly)
    masks = [mask_of(shelf.take(path, grid)) for path in paths]
    together: Mask | None = np.any(masks, axis=0) if masks else None
    return together if together is not None and together.any() else None


def _attempt(output_dir: Path, anomalies: Sequence[Anomaly]) -> Panel:
    try:
        return _draw(output_dir, anomalies)
    except Mri2petError as error:
        return Panel(anomalies[0].name, "", missing=str(error))


def _draw(output_dir: Path, anomalies: Sequence[Anomaly]) -> Panel:
    shelf, first = Shelf(output_dir), anomalies[0]
    backdrop = backdrop_of(output_dir, first, own=False)
    t1w = shelf.take(backdrop.t1w)
    brain = shelf.take(backdrop.brain, t1w)
    field = field_around(mask_of(brain), brain.zooms, AROUND_BRAIN)
    lesions = take_lesions(shelf, output_dir, first, t1w)
    shown, volumes, faults = _labels(shelf, anomalies, t1w, field)
    if not shown:
        return Panel(first.name, "", missing=" ".join(faults))
    grid = crop(t1w, field)
    inside = lesions[field] if lesions is not None and lesions[field].any() else None
    sections = best_sections(weigh(volumes)) if inside is None else sections_through(inside)
    columns = [Column(_words(one), Layer("T1w", grid, GREY)) for one in shown]
    figure = montage(f"Clusters of {first.name}", columns, sections, grid)
    hits = [_hits(labels, inside) for labels in volumes]
    paint = painter_of(volumes, lambda place, labels: paint_ranks(labels, hits[place]))
    figure = lay_over(figure, paint, bars_of_ranks(lesions=inside is not None))
    if inside is not None:
        figure = _outline(figure, inside)
    return Panel(first.name, " ".join([_caption(inside), *faults]), (figure,))


def _labels(
    shelf: Shelf, anomalies: Sequence[Anomaly], grid: Image, field: Field
) -> tuple[list[Anomaly], list[Volume], list[str]]:
    """Read the label images that can be read; say of the rest why they cannot."""
    shown, volumes, faults = list[Anomaly](), list[Volume](), list[str]()
    for one in anomalies:
        try:
            volumes.append(shelf.take(one.labels, grid).data[field])
            shown.append(one)
        except Mri2petError as error:
            faults.append(str(error))
    return shown, volumes, faults


def _hits(labels: Volume, lesions: Mask | None) -> set[int]:
    """List the ranks of clusters that share a voxel with a lesion."""
    return set() if lesions is None else set(np.unique(labels[lesions]).astype(int).tolist()) - {0}


def _words(anomaly: Anomaly) -> tuple[str, str, str]:
    count = len(anomaly.clusters)
    clusters = f"{count} cluster{'s' * (count != 1)}"
    return anomaly.training_set, name_of(anomaly.detector), clusters


def _caption(lesions: Mask | None) -> str:
    if lesions is not None:
        return "Slices through the lesion, the same for all."
    return "Slices on which the clusters of all columns together are brightest, the same for all."


def _outline(figure: Figure, lesions: Mask) -> Figure:
    volume = lesions.astype(np.float32)
    spots = dict.fromkeys(tile.spot for tile in figure.frames[0].tiles)
    paths = (
        (trace(cut(volume, spot.section), 0.5, (spot.width, spot.height)), spot) for spot in spots
    )
    line = Line("edge of the lesion", LESION, tuple((path, spot) for path, spot in paths if path))
    return replace(figure, lines=(line,))
