"""The section "Anomalies" of a participant's report: tables, pictures and slice viewers."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from bids_app.errors import Mri2petError
from bids_app.report.anomalies import Anomaly, find_anomalies
from bids_app.report.clusters import Cluster, columns_told, tell_expected, tell_numbers
from bids_app.report.control_maps import control_scores
from bids_app.report.detector_cards import find_cards
from bids_app.report.detectors import MEANINGS
from bids_app.report.panels import Panel
from bids_app.report.record import read_record
from bids_app.report.score_maps import ScoreMap, draw_score_map, take_score_map
from bids_app.report.scored import Run, read_run
from bids_app.report.shelf import Shelf
from bids_app.report.tables import show
from bids_app.report.viewer import Viewer, make_viewer

CAPTION: Final = (
    "Brighter is more abnormal; what is not coloured scores less than every voxel of the clusters "
    "in the table. Coloured places that are not in it are too small, or of a later rank. Space of "
    "the template, so that x, y and z are those of the table."
)

OWN_PLACE: Final = "x, y, z on the T1w (mm)"


@dataclass(frozen=True)
class ClusterLine:
    """A line of the table of clusters; ``rare`` if healthy controls hardly have one like it."""

    rank: int
    cells: tuple[str, ...]
    rare: bool


@dataclass(frozen=True)
class Part:
    """What one detector says of one PET.

    Parameters
    ----------
    name : str
        For addresses inside the page.
    title, meaning : str
        The detector, its training set and the PET; what its score is.
    lines : tuple of ClusterLine
        By rank.
    columns : tuple of str
        Heads of their cells.
    panel : Panel
        The map over the T1w.
    viewer : Viewer or None
        None for training sets that are not the primary one, and where images are missing.
    faults : tuple of str
        Sentences.
    controls : int or None
        Held out, that tell what is expected in a healthy one; None if that is not known.
    """

    name: str
    title: str
    meaning: str
    lines: tuple[ClusterLine, ...]
    columns: tuple[str, ...]
    panel: Panel
    viewer: Viewer | None
    faults: tuple[str, ...]
    controls: int | None = None

    @property
    def placed(self) -> bool:
        """Whether the table tells where clusters lie on the participant's own T1w."""
        return OWN_PLACE in self.columns


@dataclass(frozen=True)
class Section:
    """All detectors on all PET of a participant.

    Parameters
    ----------
    parts : tuple of Part
        Of the primary training set.
    others : tuple of Part
        Of other training sets.
    control : bool
        The participant is a control: its maps were made by folds that left it out.
    """

    parts: tuple[Part, ...]
    others: tuple[Part, ...]
    control: bool

    @property
    def placed(self) -> bool:
        """Whether any table tells where clusters lie on the participant's own T1w."""
        return any(part.placed for part in (*self.parts, *self.others))


def section_of(output_dir: Path, subject: str, spaces: tuple[str, ...]) -> Section | None:
    """Gather the anomalies of a participant.

    Parameters
    ----------
    output_dir : Path
        The derivative dataset.
    subject : str
        Its label, without ``sub-``.
    spaces : tuple of str
        Of the template, as in file names; maps in others are passed over. Empty: any.

    Returns
    -------
    Section or None
        None where there is no score map.
    """
    anomalies = find_anomalies(output_dir, subject, spaces=spaces)
    if not anomalies:
        return None
    run, controls = read_run(output_dir), _controls(output_dir, anomalies)
    parts = []
    for place, one in enumerate(anomalies, 1):
        doubts = _left_over(output_dir, one, run)
        part = _part(output_dir, one, f"anomaly-{place}", doubts)
        count = controls.get((one.training_set, one.detector), 0)
        parts.append((one.primary, replace(part, controls=None if doubts else count)))
    return Section(
        parts=tuple(part for primary, part in parts if primary),
        others=tuple(part for primary, part in parts if not primary),
        control=any(one.held_out for one in anomalies),
    )


def columns_of(clusters: Sequence[Cluster], *, placed: bool) -> tuple[str, ...]:
    """Give the heads of a table of clusters; regions and lesions only where they are known.

    ``placed``: it is known where they lie on the participant's own T1w, too.
    """
    regions, lesions = columns_told(clusters)
    return (
        *("x, y, z (mm)", *(OWN_PLACE,) * placed, "Side"),
        *("Region",) * regions,
        *("Volume (mm³)", "Peak", "Mean", "Sum", "Expected in a healthy control"),
        *("On a lesion (mm³)",) * lesions,
    )


def line_of(cluster: Cluster, columns: Sequence[str], own_place: str) -> ClusterLine:
    """Write a cluster under the heads of a table; ``own_place`` is that on the T1w."""
    volume, peak, mean, total = tell_numbers(cluster)
    cells = {
        "x, y, z (mm)": cluster.place,
        OWN_PLACE: own_place,
        "Side": cluster.side,
        "Region": cluster.region,
        "Volume (mm³)": volume,
        "Peak": peak,
        "Mean": mean,
        "Sum": total,
        "Expected in a healthy control": tell_expected(cluster.expected),
        "On a lesion (mm³)": show(cluster.overlap, 0),
    }
    written = (cells[head] for head in columns)
    return ClusterLine(cluster.rank, tuple(w if w else "n/a" for w in written), cluster.is_rare)


def _controls(output_dir: Path, anomalies: Sequence[Anomaly]) -> dict[tuple[str, str], int]:
    """Count held-out controls by training set and detector of the last run."""
    applied = read_record(output_dir, "group").settings.get("detector", "")
    cards, _ = find_cards(output_dir, {one.training_set for one in anomalies}, applied)
    scores, _ = control_scores(output_dir, cards)
    return {(which.training_set, which.detector): len(own) for which, own in scores.items()}


def _left_over(output_dir: Path, anomaly: Anomaly, run: Run | None) -> list[str]:
    """Tell of a map that the last run of the group level has not made."""
    if run is None or anomaly.path_in(output_dir) in {one.path for one in run.maps}:
        return []
    return ["This map is of an earlier run of the group level than the last one."]


def _part(output_dir: Path, anomaly: Anomaly, name: str, doubts: Sequence[str]) -> Part:
    shelf, title = Shelf(output_dir), f"{anomaly.title} ({anomaly.name})"
    panel, viewer, faults = Panel(title, CAPTION), None, [*doubts, *anomaly.faults]
    try:
        score_map = take_score_map(shelf, output_dir, anomaly, own=False)
        panel = draw_score_map(score_map, title, CAPTION)
        if anomaly.primary:
            viewer, fault = _viewer(shelf, output_dir, anomaly, score_map, name)
            faults += fault
    except Mri2petError as error:
        panel = replace(panel, missing=str(error))
    own_places = {one.rank: one.place for one in anomaly.own_clusters}
    columns = columns_of(anomaly.clusters, placed=bool(own_places))
    return Part(
        name=name,
        title=title,
        meaning=MEANINGS.get(anomaly.detector, "higher is more abnormal"),
        lines=tuple(
            line_of(one, columns, own_places.get(one.rank, "")) for one in anomaly.clusters
        ),
        columns=columns,
        panel=panel,
        viewer=viewer,
        faults=tuple(faults),
    )


def _viewer(
    shelf: Shelf, output_dir: Path, anomaly: Anomaly, in_template: ScoreMap, name: str
) -> tuple[Viewer, list[str]]:
    """View the map in the participant's own space, or else in that of the template."""
    if not anomaly.own_statmap.exists():
        return make_viewer(in_template, name, own=False), []
    try:
        own = take_score_map(shelf, output_dir, anomaly, own=True)
    except Mri2petError as error:
        return make_viewer(in_template, name, own=False), [str(error)]
    return make_viewer(replace(own, heat=in_template.heat), name, own=True), []
