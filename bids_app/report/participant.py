"""The report of one participant, from files on disk only."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final, Unpack

from bids_app.detection.detectors import detector_of
from bids_app.errors import Mri2petError
from bids_app.files import write_text
from bids_app.nifti import check_header
from bids_app.report.anomalies import (
    Anomaly,
    ListedCluster,
    ScoredRun,
    columns_told,
    find_anomalies,
    format_expected,
    format_numbers,
    read_run,
)
from bids_app.report.detectors import control_scores, find_cards
from bids_app.report.maps import ScoreMap, draw_score_map, take_score_map
from bids_app.report.methods import boilerplate_of
from bids_app.report.page import (
    RecordSection,
    RunSummary,
    describe_duration,
    read_record,
    render,
    renew,
)
from bids_app.report.panels import Panel, draw
from bids_app.report.results import (
    ImageCache,
    Results,
    comparison_rows,
    coverage_rows,
    find_results,
    novelty_rows,
    registration_rows,
    show,
    warnings_of,
)
from bids_app.report.viewer import Viewer, make_viewer

CAPTION: Final = (
    "Brighter is more abnormal; what is not coloured scores less than every voxel of the clusters "
    "in the table. Coloured places that are not in it are too small, or of a later rank. Space of "
    "the template, so that x, y and z are those of the table."
)

OWN_PLACE: Final = "x, y, z on the T1w (mm)"


@dataclass(frozen=True)
class SubjectClusterRow:
    """A line of the table of clusters; ``rare`` if healthy controls hardly have one like it."""

    rank: int
    cells: tuple[str, ...]
    rare: bool


@dataclass(frozen=True)
class AnomalyPart:
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
    lines: tuple[SubjectClusterRow, ...]
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
class AnomalySection:
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

    parts: tuple[AnomalyPart, ...]
    others: tuple[AnomalyPart, ...]
    control: bool

    @property
    def placed(self) -> bool:
        """Whether any table tells where clusters lie on the participant's own T1w."""
        return any(part.placed for part in (*self.parts, *self.others))


def section_of(output_dir: Path, subject: str, spaces: tuple[str, ...]) -> AnomalySection | None:
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
    for place, anomaly in enumerate(anomalies, 1):
        doubts = _left_over(output_dir, anomaly, run)
        part = _part(output_dir, anomaly, f"anomaly-{place}", doubts)
        count = controls.get((anomaly.training_set, anomaly.detector), 0)
        parts.append((anomaly.primary, replace(part, controls=None if doubts else count)))
    return AnomalySection(
        parts=tuple(part for primary, part in parts if primary),
        others=tuple(part for primary, part in parts if not primary),
        control=any(anomaly.held_out for anomaly in anomalies),
    )


def columns_of(clusters: Sequence[ListedCluster], *, placed: bool) -> tuple[str, ...]:
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


def line_of(cluster: ListedCluster, columns: Sequence[str], own_place: str) -> SubjectClusterRow:
    """Write a cluster under the heads of a table; ``own_place`` is that on the T1w."""
    volume, peak, mean, total = format_numbers(cluster)
    cells = {
        "x, y, z (mm)": cluster.place,
        OWN_PLACE: own_place,
        "Side": cluster.side,
        "Region": cluster.region,
        "Volume (mm³)": volume,
        "Peak": peak,
        "Mean": mean,
        "Sum": total,
        "Expected in a healthy control": format_expected(cluster.expected),
        "On a lesion (mm³)": show(cluster.overlap, 0),
    }
    written = (cells[head] for head in columns)
    return SubjectClusterRow(
        cluster.rank, tuple(w if w else "n/a" for w in written), cluster.is_rare
    )


def _controls(output_dir: Path, anomalies: Sequence[Anomaly]) -> dict[tuple[str, str], int]:
    """Count held-out controls by training set and detector of the last run."""
    applied = read_record(output_dir, "group").detector
    cards, _ = find_cards(output_dir, {anomaly.training_set for anomaly in anomalies}, applied)
    scores, _ = control_scores(output_dir, cards)
    return {(which.training_set, which.detector): len(own) for which, own in scores.items()}


def _left_over(output_dir: Path, anomaly: Anomaly, run: ScoredRun | None) -> list[str]:
    """Tell of a map that the last run of the group level has not made."""
    if run is None or anomaly.path_in(output_dir) in {one.path for one in run.maps}:
        return []
    return ["This map is of an earlier run of the group level than the last one."]


def _part(output_dir: Path, anomaly: Anomaly, name: str, doubts: Sequence[str]) -> AnomalyPart:
    shelf, title = ImageCache(output_dir), f"{anomaly.title} ({anomaly.name})"
    panel, viewer, faults = Panel(title, CAPTION), None, [*doubts, *anomaly.faults]
    try:
        score_map = take_score_map(shelf, output_dir, anomaly, own=False)
        panel = draw_score_map(score_map, title, CAPTION)
        if anomaly.primary:
            viewer, fault = _viewer(shelf, output_dir, anomaly, score_map, name)
            faults += fault
    except Mri2petError as error:
        panel = replace(panel, missing=str(error))
    own_places = {cluster.rank: cluster.place for cluster in anomaly.own_clusters}
    columns = columns_of(anomaly.clusters, placed=bool(own_places))
    return AnomalyPart(
        name=name,
        title=title,
        meaning=detector_of(anomaly.detector).meaning,
        lines=tuple(
            line_of(cluster, columns, own_places.get(cluster.rank, ""))
            for cluster in anomaly.clusters
        ),
        columns=columns,
        panel=panel,
        viewer=viewer,
        faults=tuple(faults),
    )


def _viewer(
    shelf: ImageCache, output_dir: Path, anomaly: Anomaly, in_template: ScoreMap, name: str
) -> tuple[Viewer, list[str]]:
    """View the map in the participant's own space, or else in that of the template."""
    if not anomaly.own_statmap.exists():
        return make_viewer(in_template, name, own=False), []
    try:
        own = take_score_map(shelf, output_dir, anomaly, own=True)
    except Mri2petError as error:
        return make_viewer(in_template, name, own=False), [str(error)]
    return make_viewer(replace(own, heat=in_template.heat), name, own=True), []


DEMONSTRATION: Final = ("demonstrat", "simulat")  # as cards of generators put it


@dataclass(frozen=True)
class Generator:
    """What made a synthetic PET, as its sidecar says."""

    name: str
    version: str
    sha256: str
    trained_on: str
    intended_use: str

    @property
    def is_demonstration(self) -> bool:
        """Whether its card says that it is not meant for real studies."""
        return is_demonstration(self.intended_use, self.trained_on)


@dataclass(frozen=True)
class Remark:
    """A line of the list of what was found."""

    what: str
    name: str
    source: str


def is_demonstration(*told: str) -> bool:
    """Whether a card says that what it is of is not meant for real studies.

    Examples
    --------
    >>> is_demonstration("Research.", "T1w and PET SIMULATED on label maps.")
    True
    """
    return any(word in " ".join(told).lower() for word in DEMONSTRATION)


def write_subject_report(
    output_dir: Path, subject: str, *, template_t1w: Path, **told: Unpack[RunSummary]
) -> Path:
    """Write ``sub-X.html``.

    What is not told is taken from the last run's record, ``logs/sub-X_report.json``; what is
    told is kept there.

    Parameters
    ----------
    output_dir : Path
        The derivative dataset.
    subject : str
        A label, without ``sub-``.
    template_t1w : Path
        The template, on the grid of the images in its space.
    **told
        What the run tells of itself, see :class:`bids_app.report.page.RunSummary`.

    Returns
    -------
    Path
        The report.

    Raises
    ------
    ReadWriteError
        If report or record cannot be written. A missing image is no error: the report says so.
    """
    record = renew(output_dir, f"sub-{subject}", told)
    visits = find_results(output_dir, subject, _shape_of(template_t1w))
    page = render("subject.html", _values(output_dir, subject, template_t1w, visits, record))
    path = output_dir / f"sub-{subject}.html"
    write_text(path, page)
    return path


def _shape_of(template_t1w: Path) -> tuple[int, ...]:
    try:
        return check_header(template_t1w)
    except Mri2petError:  # its figure will say what is wrong
        return ()


def _values(
    output_dir: Path,
    subject: str,
    template_t1w: Path,
    visits: Sequence[Results],
    record: RecordSection,
) -> dict[str, object]:
    drawings = [draw(output_dir, visit, template_t1w) for visit in visits]
    spaces = tuple(sorted({visit.space for visit in visits if visit.space}))
    return {
        "subject": subject,
        "generators": _generators(visits),
        "findings": [line for visit in visits for line in _findings(visit)],
        "spaces": spaces,
        "record": record,
        "doubts": [one for one in warnings_of(visits) if one not in record.notes],
        "registrations": registration_rows(visits),
        "coverages": coverage_rows(visits),
        "novelties": novelty_rows(visits),
        "comparisons": comparison_rows(visits),
        "anatomy": [panel for drawing in drawings for panel in drawing.anatomy],
        "coregistration": [panel for drawing in drawings for panel in drawing.coregistration],
        "pet": [panel for drawing in drawings for panel in drawing.pet],
        "anomalies": section_of(output_dir, subject, spaces),
        "methods": boilerplate_of(visits, record.versions) if visits else "",
        "duration": describe_duration(record.duration),
    }


def _generators(visits: Sequence[Results]) -> list[Generator]:
    """List the generators of the synthetic PETs, each once."""
    found = [
        visit.synthetic.metadata.get("Generator") for visit in visits if visit.synthetic is not None
    ]
    return list(dict.fromkeys(_generator(told if isinstance(told, dict) else {}) for told in found))


def _generator(told: Mapping[str, object]) -> Generator:
    name, version, sha256, trained_on, use = (
        str(told.get(key, "unknown"))
        for key in ("Name", "Version", "SHA256", "TrainedOn", "IntendedUse")
    )
    return Generator(name, version, sha256, trained_on, use)


def _findings(visit: Results) -> list[Remark]:
    lines = [Remark("T1w", visit.name, ", ".join(visit.t1w.sources()))]
    lines += [Remark("PET", pet.name, ", ".join(pet.in_t1w.sources())) for pet in visit.pets]
    if visit.synthetic is not None:
        lines.append(Remark("SYNTHETIC PET", visit.name, "predicted from the T1w"))
    return lines
