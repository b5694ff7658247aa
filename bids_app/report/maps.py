"""Score maps and clusters over the participant's T1w, as in Figure 3 of Zotova et al. (2021)."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

import numpy as np
from scipy import ndimage

from bids_app.derivatives.detections import Anomaly, backdrop_of, lesions_of
from bids_app.errors import Mri2petError, count_noun
from bids_app.imaging.volume import Mask, Volume
from bids_app.nifti import Image
from bids_app.report.anomalies import lesions_known, name_of
from bids_app.report.figures import (
    AXIS_OF,
    PLANES,
    Field,
    Layer,
    Section,
    blocks_of,
    crop,
    draw_line,
    field_around,
    mosaic,
)
from bids_app.report.panels import (
    AROUND_BRAIN,
    T1W,
    Column,
    Heat,
    Panel,
    bar_of_scores,
    bars_of_ranks,
    brightness,
    montage,
    overlay,
    paint_ranks,
    paint_scores,
)
from bids_app.report.results import ImageCache, mask_of

SHOWN: Final = 98.0  # percentile of the scores in the brain; threshold without clusters; our choice
TOP: Final = 99.99  # percentile of the scores in the brain that is drawn brightest (our choice)
# Share of the brain with a score, below which this is reported; our choice. It is 0.94 or more in
# simulated people whose PET covers the brain, because edges of brains differ between people
LEAST_SCORED: Final = 0.9
ROWS: Final = ("Axial slices, lower half", "Axial slices, upper half", "Coronal and sagittal")


@dataclass(frozen=True)
class ScoreMap:
    """Score map with the images needed to draw it, on one grid, RAS+.

    Parameters
    ----------
    scores, t1w, brain : Image
        Map, NaN where nothing was scored; T1w under it; and brain mask.
    labels : Image or None
        Clusters, as the rank of each voxel. None if they cannot be read.
    heat : Heat
        Range of scores that are shown.
    """

    scores: Image
    t1w: Image
    brain: Image
    labels: Image | None
    heat: Heat

    def cropped(self, field: Field) -> "ScoreMap":
        """Crop all images."""
        labels = None if self.labels is None else crop(self.labels, field)
        scores, t1w, brain = (crop(image, field) for image in (self.scores, self.t1w, self.brain))
        return ScoreMap(scores, t1w, brain, labels, self.heat)


def take_score_map(
    cache: ImageCache, output_dir: Path, anomaly: Anomaly, *, native: bool
) -> ScoreMap:
    """Read a score map and the images needed to draw it.

    Parameters
    ----------
    cache : ImageCache
        Cache of images of ``output_dir``.
    output_dir : Path
        Path of the derivative dataset.
    anomaly : Anomaly
        Score map to read.
    native : bool
        Whether to read it in the space of the participant's T1w instead of the template.

    Raises
    ------
    MissingInputError, ReadWriteError, UnusableDataError
        If the map, T1w or brain mask cannot be read, or they are not on one grid.
    """
    space = "_in_t1w" if native else ""
    path, labels = (anomaly.paths[f"{part}{space}"] for part in ("statmap", "labels"))
    t1w_path, mask_path = backdrop_of(output_dir, anomaly, native=native)
    t1w = cache.take(t1w_path)
    brain = cache.take(mask_path, t1w)
    statmap = cache.take(path, t1w)
    scored = mask_of(brain) & (statmap.data != 0)
    scores = Image(np.where(scored, statmap.data, np.nan), statmap.affine)
    try:
        clusters = cache.take(labels, t1w)
    except Mri2petError:
        clusters = None
    ranks = None if clusters is None else clusters.data
    return ScoreMap(scores, t1w, brain, clusters, heat_of(scores.data, ranks))


def describe_unscored(score_map: ScoreMap) -> list[str]:
    """Return a sentence if a map has no score in a large part of the brain, otherwise nothing."""
    share = float(np.isfinite(score_map.scores.data[mask_of(score_map.brain)]).mean())
    if share >= LEAST_SCORED:
        return []
    return [
        f"Only {100 * share:.0f} % of the brain has a score. Nothing can be found in the rest, "
        "which is not covered by this PET, or not by the PET of enough controls."
    ]


def heat_of(scores: Volume, labels: Volume | None) -> Heat:
    """Choose the range of scores shown, from the lowest score in a cluster but not below 0.

    Parameters
    ----------
    scores : ndarray, (I, J, K)
        Scores, higher is more abnormal; NaN where nothing was scored.
    labels : ndarray or None, (I, J, K)
        Ranks of clusters, 0 elsewhere. Without clusters, the highest 2 % of scores are shown.
    """
    scored = np.isfinite(scores)
    values = scores[scored] if scored.any() else np.zeros(1, np.float32)
    usual, top = (float(value) for value in np.percentile(values, [SHOWN, TOP]))
    clustered = scores[scored & (labels > 0.5)] if labels is not None else scores[:0]
    threshold = max(float(clustered.min()) if clustered.size else usual, 0.0)
    return Heat(threshold, top if top > threshold else threshold + 1.0)


def draw_score_map(score_map: ScoreMap, title: str) -> Panel:
    """Draw a score map over its T1w: axial, coronal and sagittal slices through the whole brain.

    Parameters
    ----------
    score_map : ScoreMap
        Score map from :func:`take_score_map`, in the space of the template, where the T1w is
        scaled to 0..1.
    title : str
        Heading.
    """
    field = field_around(mask_of(score_map.brain), score_map.brain.zooms, AROUND_BRAIN)
    shown, heat = score_map.cropped(field), score_map.heat
    bars, layers = bar_of_scores(heat), [Layer("T1w and scores", shown.t1w, T1W)]
    rows = (
        mosaic(name, layers, sections)
        for name, sections in zip(ROWS, blocks_of(mask_of(shown.brain)), strict=True)
    )
    figures = (
        overlay(row, [shown.scores.data], lambda _, values: paint_scores(values, heat), bars)
        for row in rows
    )
    return Panel(title, "", tuple(figures))


LESION: Final = "#00b7ff"  # outline of a lesion; not a colour of clusters


def draw_cluster_maps(output_dir: Path, anomalies: Sequence[Anomaly]) -> list[Panel]:
    """Draw the clusters of all detectors side by side, in a panel per PET.

    Parameters
    ----------
    output_dir : Path
        Path of the derivative dataset.
    anomalies : sequence of Anomaly
        Score maps of one participant.

    Returns
    -------
    list of Panel
        Panels; a panel whose T1w cannot be read has the reason instead of a figure.
    """
    return [
        _attempt(output_dir, [anomaly for anomaly in anomalies if anomaly.stem == stem])
        for stem in dict.fromkeys(anomaly.stem for anomaly in anomalies)
    ]


def weigh(volumes: Sequence[Volume]) -> Volume:
    """Sum the brightness of the clusters of several label images, voxel by voxel."""
    table = np.array([0.0, *(brightness(rank) for rank in range(1, 256))], np.float32)
    images = (np.clip(labels.round(), 0, 255).astype(np.uint8) for labels in volumes)
    total: Volume = sum(
        (table[indices] for indices in images), np.zeros(volumes[0].shape, np.float32)
    )
    return total


def best_sections(weights: Volume) -> tuple[Section, ...]:
    """Choose a slice per plane: the one with the largest sum, or the middle one if all are zero.

    Parameters
    ----------
    weights : ndarray, (I, J, K)
        Non-negative weights, RAS+.
    """
    chosen = []
    for plane in PLANES:
        axis = AXIS_OF[plane]
        sums = weights.sum(axis=tuple({0, 1, 2} - {axis}))
        middle = weights.shape[axis] // 2
        chosen.append(Section(plane, int(sums.argmax()) if sums.any() else middle))
    return tuple(chosen)


def sections_through(mask: Mask) -> tuple[Section, ...]:
    """Choose a slice per plane through the centre of the largest component of a mask."""
    parts, count = ndimage.label(mask, np.ones((3, 3, 3)))
    sizes = ndimage.sum_labels(mask, parts, range(1, count + 1))
    largest = parts == 1 + int(np.argmax(sizes))
    middle = [round(place) for place in ndimage.center_of_mass(largest)]
    return tuple(Section(plane, middle[AXIS_OF[plane]]) for plane in PLANES)


def take_lesions(
    cache: ImageCache, output_dir: Path, anomaly: Anomaly, grid: Image, *, native: bool = False
) -> Mask | None:
    """Read all lesions of a participant as one mask; None if none is known.

    ``native`` reads them in the space of the participant's T1w instead of the template. Masks are
    ignored if clusters were not compared with them, because they are left over from an earlier run.
    """
    if anomaly.clusters and not lesions_known(anomaly.clusters):
        return None
    paths = lesions_of(output_dir, anomaly, native=native)
    masks = [mask_of(cache.take(path, grid)) for path in paths]
    if not masks:
        return None
    lesions: Mask = np.any(masks, axis=0)
    return lesions if lesions.any() else None


def _attempt(output_dir: Path, anomalies: Sequence[Anomaly]) -> Panel:
    try:
        return _draw(output_dir, anomalies)
    except Mri2petError as error:
        return Panel(anomalies[0].name, "", missing=str(error))


def _draw(output_dir: Path, anomalies: Sequence[Anomaly]) -> Panel:
    cache, first = ImageCache(output_dir), anomalies[0]
    t1w_path, mask_path = backdrop_of(output_dir, first, native=False)
    t1w = cache.take(t1w_path)
    brain = cache.take(mask_path, t1w)
    field = field_around(mask_of(brain), brain.zooms, AROUND_BRAIN)
    lesions = take_lesions(cache, output_dir, first, t1w)
    paths = {number: anomaly.paths["labels"] for number, anomaly in enumerate(anomalies)}
    labels, faults = cache.take_all(paths, t1w)
    shown, volumes = (
        [anomalies[n] for n in labels],
        [image.data[field] for image in labels.values()],
    )
    if not shown:
        return Panel(first.name, "", missing=" ".join(faults))
    grid = crop(t1w, field)
    inside = lesions[field] if lesions is not None and lesions[field].any() else None
    sections = best_sections(weigh(volumes)) if inside is None else sections_through(inside)
    columns = [Column(_words(subject), Layer("T1w", grid, T1W)) for subject in shown]
    figure = montage(f"Clusters of {first.name}", columns, sections, grid)
    hits = [_hits(volume, inside) for volume in volumes]
    bars = bars_of_ranks(lesions=inside is not None)
    figure = overlay(figure, volumes, lambda n, ranks: paint_ranks(ranks, hits[n]), bars)
    if inside is not None:
        outline = ("edge of the lesion", LESION, inside.astype(np.float32), 0.5)
        spots = dict.fromkeys(tile.spot for tile in figure.frames[0][1])
        figure = replace(figure, lines=(draw_line(outline, spots),))
    return Panel(first.name, " ".join([_caption(inside), *faults]), (figure,))


def _hits(labels: Volume, lesions: Mask | None) -> set[int]:
    """Return the ranks of clusters that overlap a lesion."""
    return set() if lesions is None else set(np.unique(labels[lesions]).astype(int).tolist()) - {0}


def _words(anomaly: Anomaly) -> tuple[str, str, str]:
    clusters = count_noun(len(anomaly.clusters), "cluster")
    return anomaly.training_set, name_of(anomaly.detector), clusters


def _caption(lesions: Mask | None) -> str:
    if lesions is not None:
        return "Slices through the largest lesion, the same for all detectors."
    return "Slices on which the clusters of all detectors together are brightest."
