"""Main findings of a patient: the strongest clusters and known lesions, with pictures.

The leading detector is the one that finds most in simulated patients. Each of its clusters is shown
with the other detectors that have a cluster there, and with the number of held-out controls that
have a cluster as strong.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from bids_app.derivatives.detections import Anomaly, find_anomalies, is_outdated, pets_of, read_run
from bids_app.derivatives.paths import coverage_path
from bids_app.detection.clusters import Cluster, separate_lesions, side_of
from bids_app.detection.detectors import LEADING
from bids_app.errors import Mri2petError
from bids_app.imaging.volume import Mask
from bids_app.nifti import Image
from bids_app.report.anomalies import (
    NO_CONTROLS,
    Scores,
    describe_absence,
    describe_place,
    format_score,
    format_volume,
    name_of,
    place_of,
    scores_of_run,
    write_place,
)
from bids_app.report.charts import WIDTH
from bids_app.report.figures import (
    Figure,
    Layer,
    Outline,
    Section,
    Spot,
    Text,
    Tile,
    bars_of,
    crop,
    cut,
    describe_slices,
    draw_line,
    field_around,
    head,
    size_of,
    tile_of,
)
from bids_app.report.maps import LESION, ScoreMap, describe_unscored, take_lesions, take_score_map
from bids_app.report.page import enumerate_words, read_record
from bids_app.report.panels import (
    AROUND_BRAIN,
    GAP,
    HEADER,
    LINE,
    T1W,
    UPTAKE,
    bar_of_scores,
    paint_scores,
)
from bids_app.report.results import ImageCache, mask_of

FIRST: Final = 3  # clusters that are shown; our choice: three fit on a printed page
COMMON: Final = 0.2  # share of controls with one as strong: it does not stand out (our choice)
NEVER: Final = 1_000_000  # greater than any rank
CHANGES: Final = {"hypo": " of low uptake", "hyper": " of high uptake"}  # by direction


@dataclass(frozen=True)
class Found:
    """Cluster or lesion: its heading, its description, and its picture if there is one."""

    heading: str
    sentences: tuple[str, ...]
    figure: Figure | None
    missed: bool = False


@dataclass(frozen=True)
class _Patient:
    """Cropped maps of a PET in the space of the template; the leading detector's comes first."""

    anomalies: Sequence[Anomaly]
    maps: Sequence[ScoreMap]
    pet: Image | None
    lesions: Mask | None
    hole: Mask | None
    scores: Scores

    @property
    def lead(self) -> Anomaly:
        return self.anomalies[0]


def findings_of(output_dir: Path, subject: str, spaces: tuple[str, ...]) -> list[dict[str, object]]:
    """Describe the findings of the last run of the group level in a patient, with an entry per PET.

    Parameters
    ----------
    output_dir : Path
        Path of the derivative dataset.
    subject : str
        Label of the subject, without ``sub-``.
    spaces : tuple of str
        Spaces of the template, as in file names; maps in other spaces are skipped. If empty, all
        spaces are accepted.

    Returns
    -------
    list of dict
        Entries with ``name``, ``summary``, ``clusters`` and ``lesions``, both lists of
        :class:`Found`, and ``faults``; no entry for a control, or if there is no map of the images
        that are there now.
    """
    run = read_run(output_dir)
    run_paths = None if run is None else {output_dir / scored.path for scored in run.maps}
    shown = [
        anomaly
        for anomaly in find_anomalies(output_dir, subject, spaces=spaces)
        if anomaly.primary
        and not anomaly.held_out
        and (run_paths is None or anomaly.paths["statmap"] in run_paths)
        and not is_outdated(output_dir, anomaly)
    ]
    record = read_record(output_dir, "group")
    scores = scores_of_run(output_dir, record, shown)
    absence = describe_absence(record["settings"])
    return [
        _findings_of_pet(output_dir, [a for a in shown if a.stem == stem], scores, absence)
        for stem in dict.fromkeys(anomaly.stem for anomaly in shown)
    ]


def _findings_of_pet(
    output_dir: Path, anomalies: Sequence[Anomaly], scores: Scores, absence: str
) -> dict[str, object]:
    anomalies = leading_first(anomalies)
    lead = anomalies[0]
    entry: dict[str, object] = {
        "name": lead.name,
        "summary": _summarize(lead, scores, absence),
        "clusters": [
            Found(*_describe_cluster(c, lead, scores), None) for c in lead.clusters[:FIRST]
        ],
        "lesions": [],
        "faults": [],
    }
    try:
        patient = _take(output_dir, anomalies, scores)
    except Mri2petError as error:
        return {**entry, "faults": [f"There is no picture of the findings. {error}"]}
    return {
        **entry,
        "clusters": [_show_cluster(patient, cluster) for cluster in lead.clusters[:FIRST]],
        "lesions": _show_lesions(patient),
        "faults": describe_unscored(patient.maps[0]),
    }


def leading_first(anomalies: Sequence[Anomaly]) -> list[Anomaly]:
    """Sort maps by PET, so that the detector that finds most comes first in each."""
    last = len(LEADING)
    ranks = {detector: rank for rank, detector in enumerate(LEADING)}
    return sorted(anomalies, key=lambda anomaly: (anomaly.stem, ranks.get(anomaly.detector, last)))


def _take(output_dir: Path, anomalies: Sequence[Anomaly], scores: Scores) -> _Patient:
    """Read the maps of a PET, the PET itself and known lesions, cropped around the brain."""
    cache, lead = ImageCache(output_dir), anomalies[0]
    maps = [take_score_map(cache, output_dir, anomaly, native=False) for anomaly in anomalies]
    t1w = maps[0].t1w
    field = field_around(mask_of(maps[0].brain), t1w.zooms, AROUND_BRAIN)
    pet, _ = pets_of(output_dir, lead, native=False)
    images, _ = cache.take_all({"pet": pet, "coverage": coverage_path(pet)}, t1w)
    lesions = take_lesions(cache, output_dir, lead, t1w)
    hole = None
    if "coverage" in images:
        hole = (mask_of(maps[0].brain) & ~mask_of(images["coverage"]))[field]
    return _Patient(
        anomalies,
        [score_map.cropped(field) for score_map in maps],
        crop(images["pet"], field) if "pet" in images else None,
        None if lesions is None else lesions[field],
        hole,
        scores,
    )


def _lead_scores(lead: Anomaly, scores: Scores) -> list[list[float]]:
    return list(scores.get((lead.training_set, lead.detector), {}).values())


def _count_controls(cluster: Cluster, lead: Anomaly, scores: Scores) -> tuple[int, int]:
    """Count the held-out controls with a cluster at least as strong, and all held-out controls."""
    controls = _lead_scores(lead, scores)
    return sum(max(sums, default=-np.inf) >= cluster.sum_score for sums in controls), len(controls)


def _summarize(lead: Anomaly, scores: Scores, absence: str) -> str:
    """Summarize the findings in two sentences."""
    detector = name_of(lead.detector)
    if not lead.clusters:
        return f"No cluster of {detector} {absence}."
    first = lead.clusters[0]
    place = f"{describe_place(first)}, {format_volume(first.volume)} cm³"
    change = CHANGES.get(lead.direction, "")
    strongest = f"Strongest cluster{change} (detector: {detector}): {place}."
    n_strong, n_controls = _count_controls(first, lead, scores)
    if not n_controls:
        return f"{strongest} It cannot be compared with healthy people: {NO_CONTROLS}."
    if not n_strong:
        return f"{strongest} It is stronger than every cluster of {n_controls} held-out controls."
    common = ", so it does not stand out" if n_strong >= COMMON * n_controls else ""
    return (
        f"{strongest} {n_strong} of {n_controls} held-out controls {_have(n_strong)} a cluster at "
        f"least as strong{common}."
    )


def _have(number: int) -> str:
    return "has" if number == 1 else "have"


def _describe_cluster(
    cluster: Cluster, lead: Anomaly, scores: Scores, agreeing: Sequence[str] | None = None
) -> tuple[str, tuple[str, ...]]:
    """Return the heading and the description of a cluster."""
    place = describe_place(cluster)
    heading = f"{cluster.rank}. {place[:1].upper()}{place[1:]}, {format_volume(cluster.volume)} cm³"
    n_strong, n_controls = _count_controls(cluster, lead, scores)
    peak = write_place(cluster.peak_x, cluster.peak_y, cluster.peak_z)
    compared = (
        f"{n_strong} of {n_controls} held-out controls {_have(n_strong)} a cluster as strong."
    )
    sentences = [
        compared if n_controls else f"It is not compared with controls: {NO_CONTROLS}.",
        f"Peak score {format_score(cluster.peak_score)} at {peak} mm; centre at "
        f"{place_of(cluster)} mm.",
    ]
    if agreeing is not None:
        sentences.append(
            f"Also found by {enumerate_words(list(agreeing))}."
            if agreeing
            else "No other detector has a cluster there."
        )
    if cluster.overlap is not None:
        sentences.append(
            f"It overlaps a known lesion by {format_volume(cluster.overlap)} cm³."
            if cluster.overlap
            else "It does not overlap a known lesion."
        )
    return heading, tuple(sentences)


def _show_cluster(patient: _Patient, cluster: Cluster) -> Found:
    lead, first = patient.lead, patient.maps[0]
    inside = _cluster_of(first, cluster.rank)
    agreeing = None if len(patient.anomalies) == 1 else _agreement(patient, inside)
    heading, sentences = _describe_cluster(cluster, lead, patient.scores, agreeing)
    peak = np.array([cluster.peak_x, cluster.peak_y, cluster.peak_z, 1.0])
    voxel = np.linalg.inv(first.t1w.affine) @ peak
    figure = _picture(patient, heading, voxel[:3], inside, with_bars=cluster.rank == 1)
    return Found(heading, sentences, figure)


def _cluster_of(score_map: ScoreMap, rank: int) -> Mask:
    if score_map.labels is None:
        return np.zeros(score_map.scores.data.shape, bool)
    inside: Mask = np.rint(np.nan_to_num(score_map.labels.data)) == rank
    return inside


def _agreement(patient: _Patient, inside: Mask) -> list[str]:
    """List the other detectors with a cluster on the same voxels, each with its rank."""
    ranks = _first_ranks(patient, inside)
    others = [(name, rank) for name, rank in ranks.items() if name != patient.lead.detector]
    return [f"{name_of(name)} (rank {rank})" for name, rank in others if rank]


def _first_ranks(patient: _Patient, inside: Mask) -> dict[str, int]:
    """Return the rank of each detector's first cluster that overlaps a mask; 0 if none does."""
    ranks = {}
    for anomaly, score_map in zip(patient.anomalies, patient.maps, strict=True):
        if score_map.labels is not None:
            labels = np.rint(np.nan_to_num(score_map.labels.data[inside])).astype(int)
            ranks[anomaly.detector] = int(labels[labels > 0].min(initial=NEVER)) % NEVER
    return ranks


def _show_lesions(patient: _Patient) -> list[Found]:
    """List the detectors that found each lesion; draw lesions missed by the leading detector."""
    if patient.lesions is None:
        return []
    affine = patient.maps[0].t1w.affine
    labels = separate_lesions(patient.lesions, affine)
    findings = []
    for number in range(1, int(labels.max()) + 1):
        inside = labels == number
        centre = np.argwhere(inside).mean(axis=0)
        x = float((affine @ [*centre, 1])[0])
        volume = float(inside.sum() * abs(np.linalg.det(affine[:3, :3])))
        heading = f"Lesion {number}, {side_of(x)}, {format_volume(volume)} cm³"
        if patient.hole is not None and patient.hole[inside].all():
            findings.append(Found(heading, ("Not covered by the PET, so not searched.",), None))
            continue
        ranks = _first_ranks(patient, inside)
        hits = [f"{name_of(name)} (rank {rank})" for name, rank in ranks.items() if rank]
        missing = [name_of(name) for name, rank in ranks.items() if not rank]
        sentences = [f"Found by {enumerate_words(hits)}."] if hits else []
        sentences += [f"Missed by {enumerate_words(missing)}."] if missing else []
        missed_by_lead = not ranks.get(patient.lead.detector)
        figure = _picture(patient, heading, centre) if missed_by_lead else None
        findings.append(Found(heading, tuple(sentences), figure, missed=missed_by_lead))
    return findings


CLUSTER: Final = "#3dff5e"  # outline of a cluster; not a colour of PET or of scores
HALF: Final = 0.5  # level between 0 and 1 of a mask


def _picture(
    patient: _Patient,
    title: str,
    place: NDArray[np.float64],
    cluster: Mask | None = None,
    *,
    with_bars: bool = False,
) -> Figure:
    """Draw T1w, PET and map side by side, in two planes through a place given in voxels.

    ``with_bars`` adds colour bars below, which are needed only once per page.
    """
    first = patient.maps[0]
    grid, shape = first.t1w, first.t1w.data.shape
    _, j, k = (int(np.clip(round(x), 0, n - 1)) for x, n in zip(place, shape, strict=True))
    t1w = Layer("T1w", grid, T1W)
    pet = None if patient.pet is None else Layer("PET", patient.pet, UPTAKE)
    columns = {"T1w": t1w, "PET": pet, name_of(patient.lead.detector): t1w}
    sections = (Section("axial", k), Section("coronal", j))
    spots = _spots_in_strip(sections, grid, len(columns))
    tiles, texts = list[Tile](), list[Text]()
    for (name, layer), spot in zip([*columns.items()] * len(sections), spots, strict=True):
        tiles += [] if layer is None else [tile_of(layer, spot)]
        texts += head(grid, spot, above=5)
        words = name if layer is not None else f"{name}: no image"
        texts.append(Text(words, spot.x + spot.width / 2, LINE * 0.8, strong=True))
    for spot in spots[len(columns) - 1 :: len(columns)]:
        tiles.append(Tile(paint_scores(cut(first.scores.data, spot.section), first.heat), spot))
    lines: list[Outline] = []
    if patient.lesions is not None:
        lines.append(("known lesion", LESION, patient.lesions.astype(np.float32), HALF))
    if cluster is not None:
        lines.append(("this cluster", CLUSTER, cluster.astype(np.float32), HALF))
    return Figure(
        title=title,
        description=describe_slices(", ".join(columns), grid, sections),
        width=WIDTH,
        height=max(spot.y + spot.height for spot in spots) + GAP,
        frames=(("", tuple(tiles)),),
        texts=tuple(texts),
        lines=tuple(draw_line(line, spots) for line in lines),
        bars=(*bars_of([] if pet is None else [pet]), *bar_of_scores(first.heat))
        if with_bars
        else (),
    )


def _spots_in_strip(sections: Sequence[Section], grid: Image, columns: int) -> list[Spot]:
    """Lay out the columns of each slice in one row as wide as the page, in px."""
    widths = [size_of(grid, section.plane) for section in sections]
    room = WIDTH - GAP * columns * len(sections)
    scale = room / (columns * sum(width for width, _ in widths))
    spots, x = list[Spot](), 0.0
    for section, (width, height) in zip(sections, widths, strict=True):
        for _ in range(columns):
            spots.append(Spot(section, x, LINE + HEADER, scale * width, scale * height))
            x += scale * width + GAP
    return spots
