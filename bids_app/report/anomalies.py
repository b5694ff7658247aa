"""Results of the group level for reports: detectors, clusters, and held-out controls.

Files that are missing or cannot be read are left out, with a sentence saying so.
"""

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import isnan
from pathlib import Path
from types import MappingProxyType
from typing import Final

from bids_app.derivatives.detections import (
    DETECTORS_FOLDER,
    SCORED,
    Anomaly,
    Listed,
    ScoredSubject,
    detector_folders,
    maps_on_disk,
    read_all_clusters,
    read_control_clusters,
    read_control_maps,
    read_curve,
    read_froc,
    read_run,
    read_synthetic_controls,
    read_tests,
)
from bids_app.derivatives.sidecars import Faults
from bids_app.detection.card import CARD, DetectorCard, other_clusters, read_card
from bids_app.detection.clusters import Cluster
from bids_app.detection.detectors import detector_of, rank_of
from bids_app.detection.distribution import CheckedPet
from bids_app.detection.evaluation import CurvePoint, FreePoint, McNemarTest
from bids_app.errors import Mri2petError
from bids_app.report.page import RunSummary, detector_of_run, name_visit, show

RARE: Final = 0.05  # clusters expected in a healthy control, below which one stands out; our choice
UNITS: Final = ("lesion", "patient")

DetectorKey = tuple[str, str]  # training set, and detector
Scores = dict[DetectorKey, dict[str, list[float]]]  # per held-out control, sum of each cluster
Shares = dict[DetectorKey, dict[str, float]]  # per held-out control, share of its brain, 0 to 1


def key_of(line: Listed | ScoredSubject | CurvePoint | FreePoint) -> DetectorKey:
    """Return the training set and the detector of a line."""
    return line.training_set, line.detector


def in_rank(keys: Iterable[DetectorKey]) -> list[DetectorKey]:
    """Sort detectors in the order in which they are shown, without duplicates."""
    return sorted(set(keys), key=lambda key: rank_of(*key))


def name_of(detector: str) -> str:
    """Return the label of a detector for readers."""
    return detector_of(detector).label


def title_of(training_set: str, detector: str) -> str:
    """Return the label of a detector with its training set.

    Examples
    --------
    >>> title_of("hybrid", "ocsvm"), title_of("", "zscore")
    ('OC-SVM, hybrid', 'z score')
    """
    name = name_of(detector)
    return f"{name}, {training_set}" if training_set else name


def in_order(names: Iterable[str]) -> list[str]:
    """Sort training sets in order, without duplicates; other names come last, alphabetically.

    Examples
    --------
    >>> in_order(["synthetic", "mine", "real", "real"])
    ['real', 'synthetic', 'mine']
    """
    return sorted({name for name in names if name}, key=lambda name: rank_of(name, ""))


def place_of(cluster: Cluster) -> str:
    """Format the centre of a cluster: ``"−22, 14, 9"``."""
    return write_place(cluster.x, cluster.y, cluster.z)


def describe_absence(settings: Mapping[str, object]) -> str:
    """Return why there is no cluster, after "No cluster"; ``settings`` are options of the run.

    Examples
    --------
    >>> describe_absence({})
    'was found'
    >>> describe_absence({"expected_false": 0.5})
    'is as rare in controls as --expected-false 0.5 asks for'
    """
    limit = settings.get("expected_false")
    if not isinstance(limit, int | float):
        return "was found"
    return f"is as rare in controls as --expected-false {limit:g} asks for"


def write_place(*place: float) -> str:
    """Format a position in mm, RAS+, rounded to whole mm.

    Examples
    --------
    >>> write_place(-21.7, 14.2, 9.0)
    '−22, 14, 9'
    """
    return ", ".join(f"{round(v)}".replace("-", "−") for v in place)


def describe_place(cluster: Cluster) -> str:
    """Describe the place of a cluster: its region, if it has one in the atlas, and its side.

    The side is that of the centre, and the region the one that holds most of the cluster.

    Examples
    --------
    >>> numbers = dict.fromkeys(("rank", "x", "y", "z", "volume", "peak_x", "peak_y", "peak_z"), 1)
    >>> numbers |= dict.fromkeys(("peak_score", "mean_score", "sum_score"), 1.0)
    >>> describe_place(Cluster(**numbers, side="left", region="left frontal"))
    'left frontal'
    >>> describe_place(Cluster(**numbers, side="midline", region="pons"))
    'pons, midline'
    >>> describe_place(Cluster(**numbers, side="right", region="left occipital"))
    'left occipital, across the midline'
    >>> describe_place(Cluster(**numbers, side="right"))
    'right, no named region'
    """
    region = cluster.region
    if not region:
        return f"{cluster.side}, no named region"
    sides = [side for side in ("left", "right") if side in region.lower()]
    if cluster.side in sides:
        return region
    crosses = sides and cluster.side != "midline"
    return f"{region}, {'across the midline' if crosses else cluster.side}"


def is_rare(cluster: Cluster) -> bool:
    """Return whether such a cluster is rarely expected in a healthy control."""
    return cluster.expected_in_control is not None and cluster.expected_in_control < RARE


def format_score(value: float) -> str:
    """Format a score to three significant digits.

    Examples
    --------
    >>> format_score(0.01234), format_score(3.0), format_score(1234.5), format_score(-2.0)
    ('0.0123', '3.00', '1234', '−2.00')
    """
    if isnan(value):
        return "n/a"
    words = f"{value:.0f}" if abs(value) >= 100 else f"{value:#.3g}"
    return words.replace("-", "−")


def format_expected(value: float | None) -> str:
    """Format the number of such clusters expected in a healthy control.

    Examples
    --------
    >>> format_expected(0.0), format_expected(0.125), format_expected(3.5), format_expected(None)
    ('0', '0.125', '3.5', 'n/a')
    """
    if value is None:
        return "n/a"
    return f"{value:.3g}" if value < 1 else f"{value:.1f}"


SMALL: Final = 1000.0  # mm³; smaller volumes are shown in cm³ with two decimals


def format_volume(volume: float | None) -> str:
    """Format a volume, given in mm³, as a number of cm³.

    Examples
    --------
    >>> format_volume(3216.0), format_volume(216.0), format_volume(0.0), format_volume(None)
    ('3.2', '0.22', '0', 'n/a')
    """
    if not volume:
        return show(volume, 0)
    return show(volume / 1000, 1 if volume >= SMALL else 2)


def lesions_known(clusters: Sequence[Cluster]) -> bool:
    """Return whether clusters were compared with lesions."""
    return any(cluster.overlap is not None for cluster in clusters)


OWN_PLACE: Final = "x, y, z on the T1w (mm)"


def cells_of(cluster: Cluster, place_on_t1w: str = "") -> dict[str, str]:
    """Format a cluster as cells of a table, by column; ``place_on_t1w`` is its place on the T1w."""
    return {
        "x, y, z (mm)": place_of(cluster),
        OWN_PLACE: place_on_t1w,
        "Place": describe_place(cluster),
        "Volume (cm³)": format_volume(cluster.volume),
        "Peak": format_score(cluster.peak_score),
        "Mean": format_score(cluster.mean_score),
        "Sum": format_score(cluster.sum_score),
        "Expected in a healthy control": format_expected(cluster.expected_in_control),
        "On a lesion (cm³)": format_volume(cluster.overlap),
    }


@dataclass(frozen=True)
class Detected:
    """Results of the last run: its maps, tables and cards.

    Parameters
    ----------
    dataset : str
        Name or DOI of the raw dataset that was scored; empty if unknown.
    cards : dict
        Card of each training set.
    maps : sequence of ScoredSubject
        Maps of all subjects that it has scored: patients and held-out controls.
    clusters : sequence of Listed
        Clusters of patients.
    control_scores : dict
        ``sum_score`` of each cluster of each held-out control, by detector; a control may have no
        cluster.
    control_shares : dict
        Share of the brain of each held-out control that scores above 0, by detector.
    curve, responses, comparisons : sequence
        Lines of ``detection_curve.tsv``, ``detection_froc.tsv`` and ``detection_tests.tsv``; empty
        if no lesion is known.
    checked : sequence of CheckedPet
        Lines of ``synthetic_controls.tsv``; empty if synthetic PET was not compared.
    stale_maps : sequence of ScoredSubject
        Maps left over from an earlier run.
    stale_folders : sequence of str
        Folders of detectors left over from an earlier run, inside the derivative dataset.
    faults : sequence of str
        Sentences about missing or damaged files, one each.
    """

    dataset: str
    cards: Mapping[str, DetectorCard]
    maps: Sequence[ScoredSubject]
    clusters: Sequence[Listed]
    control_scores: Scores
    control_shares: Shares
    curve: Sequence[CurvePoint]
    responses: Sequence[FreePoint]
    comparisons: Sequence[McNemarTest]
    checked: Sequence[CheckedPet]
    stale_maps: Sequence[ScoredSubject]
    stale_folders: Sequence[str]
    faults: Sequence[str]

    @property
    def detectors(self) -> list[DetectorKey]:
        """All detectors that have scored a subject or found a cluster."""
        tables = (self.maps, self.clusters, self.curve)
        return in_rank(key_of(line) for table in tables for line in table)

    @property
    def participants(self) -> list[str]:
        """Labels of all patients who were scored."""
        return sorted({subject.participant for subject in self.maps if not subject.control})

    def patients_of(self, detector: DetectorKey) -> list[tuple[str, str]]:
        """List the participant and session of each patient's visit that a detector has scored."""
        scored = (subject for subject in self.maps if key_of(subject) == detector)
        return sorted({(s.participant, s.session) for s in scored if not s.control})

    @property
    def training_sets(self) -> tuple[str, ...]:
        """All training sets, in the order in which they are shown."""
        return tuple(dict.fromkeys(training_set for training_set, _ in self.detectors))


def find_detected(
    output_dir: Path,
    applied: Path | None = None,
    settings: Mapping[str, object] = MappingProxyType({}),
) -> Detected:
    """Read the output of the last run of the group level from a derivative dataset.

    If no record lists the maps of that run, all maps on disk are assumed to belong to it.

    Parameters
    ----------
    output_dir : Path
        Path of the derivative dataset.
    applied : Path, optional
        Folder of the previously trained detectors that were applied; None if there is none.
    settings : mapping
        Options of that run by name; see :func:`control_scores`.
    """
    faults, evaluated = Faults(output_dir), Faults(output_dir)
    run, on_disk = read_run(output_dir), maps_on_disk(output_dir)
    maps = on_disk if run is None else run.maps
    if run is None and on_disk:
        faults.append(f"{SCORED} cannot be read: some of the maps may be from earlier runs.")
    sets = {subject.training_set for subject in maps}
    cards = find_cards(output_dir, sets, applied, faults)
    clusters = read_all_clusters(output_dir, faults)
    scores = control_scores(cards, settings, faults)
    shares = control_shares(cards, faults)
    curve, responses = read_curve(output_dir, evaluated), read_froc(output_dir, evaluated)
    tests = read_tests(output_dir, evaluated)
    measured = bool(curve or responses or tests)  # otherwise no lesion is known
    faults += [fault for fault in evaluated if measured or not fault.endswith("is missing.")]
    paths = {subject.path for subject in maps}
    folders = detector_folders(output_dir)
    used = folders_of(output_dir, sets, applied)
    return Detected(
        dataset="" if run is None else run.dataset,
        cards={name: card for name, (_, card) in cards.items()},
        maps=maps,
        clusters=clusters,
        control_scores=scores,
        control_shares=shares,
        curve=curve,
        responses=responses,
        comparisons=tests,
        checked=read_synthetic_controls(output_dir, faults),
        stale_maps=[subject for subject in on_disk if subject.path not in paths],
        stale_folders=[faults.name(path) for path in folders if path not in used],
        faults=[fault for fault in faults if not fault.endswith("is empty.")],  # nothing was found
    )


NO_CONTROLS: Final = (
    "no control was held out, or clusters of controls were found with other options"
)
Cards = Mapping[str, tuple[Path, DetectorCard]]  # training set → folder of its card, and the card


def find_cards(
    output_dir: Path, sets: Collection[str], applied: Path | None, faults: Faults
) -> Cards:
    """Read the cards of training sets in the order in which they are shown.

    Parameters
    ----------
    output_dir : Path
        Path of the derivative dataset.
    sets : collection of str
        Training sets whose cards are read.
    applied : Path or None
        Folder of the previously trained detectors that were applied, in which case no other folder
        is read. None if the run trained its own.
    faults : Faults
        List to which missing or damaged cards are added.
    """
    cards = {}
    for folder in folders_of(output_dir, sets, applied):
        try:
            card = read_card(folder, lenient=True)
        except Mri2petError:
            faults.add_unread(folder / CARD)
        else:
            name = card.name if applied is not None and card.name else folder.name
            cards[name] = (folder, card)
    return cards


def folders_of(output_dir: Path, sets: Collection[str], applied: Path | None) -> list[Path]:
    """List the folders of detectors in the order shown; see :func:`find_cards`."""
    if applied is not None:
        return [applied]
    return [output_dir / DETECTORS_FOLDER / name for name in in_order(sets)]


def scores_of_run(output_dir: Path, record: RunSummary, anomalies: Iterable[Anomaly]) -> Scores:
    """Read the cluster sums of the held-out controls with which maps of a run are compared."""
    sets, faults = {anomaly.training_set for anomaly in anomalies}, Faults(output_dir)
    cards = find_cards(output_dir, sets, detector_of_run(record), faults)
    return control_scores(cards, record["settings"], faults)


def control_scores(cards: Cards, settings: Mapping[str, object], faults: Faults) -> Scores:
    """Read the cluster sums of held-out controls; a control without clusters has an empty list.

    Controls are left out if their clusters were found with other options than those of the run,
    which are in ``settings`` by name.
    """
    scores = Scores()
    for name, (folder, card) in cards.items():
        if other_clusters(card, settings):
            continue
        for line in read_control_clusters(folder, faults):
            controls = scores.setdefault((name, line.detector), {})
            sums = controls.setdefault(name_visit(line.participant_id, line.session_id), [])
            sums += [] if line.sum_score is None else [line.sum_score]
    return scores


def control_shares(cards: Cards, faults: Faults) -> Shares:
    """Read the share of the brain scoring above 0 for each held-out control with a known share."""
    shares = Shares()
    for name, (folder, _) in cards.items():
        for line in read_control_maps(folder, faults):
            visit = name_visit(line.participant_id, line.session_id)
            if line.above_zero is not None:
                shares.setdefault((name, line.detector), {})[visit] = line.above_zero
    return shares
