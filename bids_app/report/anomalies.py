"""What the group level has written: score maps, clusters and tables, as reports read them.

What is missing or cannot be understood is left out, and a sentence says so.
"""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final, TypeVar

from bids_app.derivatives.detections import DETECTORS_FOLDER
from bids_app.derivatives.find import t1w_of_pet
from bids_app.errors import Mri2petError
from bids_app.files import read_json, write_json
from bids_app.report.detectors import (
    DetectionPoint,
    DetectorCardSummary,
    DetectorComparison,
    DetectorKey,
    FreeResponse,
    comparison_of,
    control_scores,
    control_shares,
    find_cards,
    folders_of,
    label_of,
    name_of,
    name_visit,
    point_of,
    rank_of,
    response_of,
    which,
)
from bids_app.report.page import LOGS, Cells, as_count, as_label, as_value, read_lines
from bids_app.report.results import IMAGE, read_derivative, show

NEEDED: Final = ("rank", "x", "y", "z")  # without them a line says nothing
RARE: Final = 0.05  # clusters expected in a healthy control; below it a line stands out; our choice


@dataclass(frozen=True)
class ListedCluster:
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


def cluster_of(cells: Cells) -> ListedCluster | None:
    """Read a line of a cluster table; None if it does not say which cluster, and where."""
    rank = as_count(cells.get("rank"))
    x, y, z = (as_value(cells.get(axis)) for axis in "xyz")
    if rank is None or rank < 1 or x is None or y is None or z is None:
        return None
    return ListedCluster(
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


def read_clusters(
    output_dir: Path, table: str
) -> tuple[tuple[ListedCluster, ...], tuple[str, ...]]:
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


def format_numbers(cluster: ListedCluster) -> tuple[str, ...]:
    """Write volume, peak, mean and sum of a cluster.

    Examples
    --------
    >>> line = {"rank": "1", "x": "-22.4", "y": "14", "z": "9", "volume": "1340", "sum_score": "9"}
    >>> format_numbers(cluster_of(line))
    ('1340', 'n/a', 'n/a', '9.00')
    """
    return (
        show(cluster.volume, 0),
        *(format_score(v) for v in (cluster.peak_score, cluster.mean_score, cluster.sum_score)),
    )


def format_score(value: float | None) -> str:
    """Write a score to three digits.

    Examples
    --------
    >>> format_score(0.01234), format_score(3.0), format_score(1234.5), format_score(-2.0)
    ('0.0123', '3.00', '1234', '−2.00')
    """
    if value is None:
        return "n/a"
    words = f"{value:.0f}" if abs(value) >= 100 else f"{value:#.3g}"
    return words.replace("-", "−")


def format_expected(value: float | None) -> str:
    """Write how many such clusters a healthy control is expected to have.

    Examples
    --------
    >>> format_expected(0.0), format_expected(0.029), format_expected(3.5), format_expected(None)
    ('0', '0.029', '3.5', 'n/a')
    """
    if value is None:
        return "n/a"
    return f"{value:.2g}" if value < 1 else f"{value:.1f}"


def columns_told(clusters: Sequence[ListedCluster]) -> tuple[bool, bool]:
    """Say whether any cluster has a region, and whether any knows of a lesion."""
    return (
        any(cluster.region for cluster in clusters),
        any(cluster.overlap is not None for cluster in clusters),
    )


STATMAP: Final = f"_statmap{IMAGE}"
OWN: Final = "T1w"  # space- label of the participant's own T1w


@dataclass(frozen=True)
class Anomaly:
    """The score map of one detector for one PET.

    Parameters
    ----------
    subject, session : str
        Labels; ``session`` is empty where there is none.
    stem : str
        The first part of its files' names: who, and which PET.
    training_set, detector : str
        ``training_set`` is empty where it is not known.
    primary : bool
        Of the training set whose maps lie with the participant's images.
    space : str
        Of the template, as in file names: ``"MNI152NLin2009aSym_res-1"``.
    folder : Path
        Where its files are.
    held_out : bool
        One fold scored it, that left this participant out: a control's.
    clusters : tuple of Cluster
        By rank.
    own_clusters : tuple of Cluster
        Those that lie on the participant's own T1w, with their places there, by rank.
    faults : tuple of str
        What of its tables is missing or damaged.
    """

    subject: str
    session: str
    stem: str
    training_set: str
    detector: str
    primary: bool
    space: str
    folder: Path
    held_out: bool = False
    clusters: tuple[ListedCluster, ...] = ()
    own_clusters: tuple[ListedCluster, ...] = ()
    faults: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """Whose PET it is: ``"sub-01, ses-02"``."""
        return ", ".join(part for part in self.stem.split("_") if not part.startswith("trc-"))

    @property
    def title(self) -> str:
        """The detector and its training set."""
        trained = f", trained on {self.training_set}" if self.training_set else ""
        return name_of(self.detector) + trained

    @property
    def statmap(self) -> Path:
        """The map in the space of the template."""
        return self.folder / f"{self.stem}_space-{self.space}_stat-{self.detector}{STATMAP}"

    def path_in(self, output_dir: Path) -> str:
        """Give the path of the map inside the derivative dataset."""
        return self.statmap.relative_to(output_dir).as_posix()

    @property
    def labels(self) -> Path:
        """Its clusters there: the value of a voxel is the rank."""
        return self.folder / f"{self.stem}_space-{self.space}_desc-{self.detector}_dseg{IMAGE}"

    @property
    def own_statmap(self) -> Path:
        """The map in the space of the participant's T1w."""
        return self.folder / f"{self.stem}_space-{OWN}_stat-{self.detector}{STATMAP}"

    @property
    def own_labels(self) -> Path:
        """Its clusters there."""
        return self.folder / f"{self.stem}_space-{OWN}_desc-{self.detector}_dseg{IMAGE}"


@dataclass(frozen=True)
class Backdrop:
    """A T1w that a map is laid over, and the mask of its brain."""

    t1w: Path
    brain: Path


def find_anomalies(
    output_dir: Path, subject: str, *, spaces: tuple[str, ...] = ()
) -> tuple[Anomaly, ...]:
    """Gather the score maps of a participant.

    Parameters
    ----------
    output_dir : Path
        The derivative dataset.
    subject : str
        Its label, without ``sub-``; ``"*"`` for everyone.
    spaces : tuple of str
        Of the template, as in file names; maps in others are passed over. Empty: any.

    Returns
    -------
    tuple of Anomaly
        By PET; the primary training set first.
    """
    found = [
        _anomaly(output_dir, path, name)
        for name, root in _roots(output_dir)
        for path in sorted(root.glob(f"sub-{subject}/**/*{STATMAP}"))
        if f"_space-{OWN}_" not in path.name
    ]
    return tuple(
        sorted(
            (one for one in found if not spaces or one.space in spaces),
            key=lambda one: (one.stem, not one.primary, *rank_of(one.training_set, one.detector)),
        )
    )


def backdrop_of(output_dir: Path, anomaly: Anomaly, *, own: bool) -> Backdrop:
    """Find the T1w of an anomaly map: the one its PET was aligned to.

    Parameters
    ----------
    output_dir : Path
        The derivative dataset.
    anomaly : Anomaly
        The map.
    own : bool
        In the participant's own space, not in that of the template.

    Returns
    -------
    Backdrop
        Its files need not be there.
    """
    space = "" if own else f"_space-{anomaly.space}"
    home, folder = _home(output_dir, anomaly)
    return Backdrop(
        folder / f"{home}{space}_desc-preproc_T1w{IMAGE}",
        folder / f"{home}{space}_desc-brain_mask{IMAGE}",
    )


def lesions_of(output_dir: Path, anomaly: Anomaly) -> tuple[Path, ...]:
    """List the lesion masks of a participant in the space of an anomaly map."""
    pattern = f"sub-{anomaly.subject}_*space-{anomaly.space}_label-*_mask{IMAGE}"
    return tuple(sorted((output_dir / f"sub-{anomaly.subject}").glob(f"**/{pattern}")))


def _roots(output_dir: Path) -> list[tuple[str, Path]]:
    """List where maps lie, with the training set that a folder is named after."""
    folders = sorted(path for path in (output_dir / DETECTORS_FOLDER).glob("*") if path.is_dir())
    return [("", output_dir), *((path.name, path) for path in folders)]


def _anomaly(output_dir: Path, path: Path, named: str) -> Anomaly:
    stem, _, rest = path.name.partition("_space-")
    space, _, end = rest.partition("_stat-")
    detector = end.removesuffix(STATMAP)
    table = path.with_name(f"{stem}_space-{space}_desc-{detector}_clusters.tsv")
    clusters, faults = read_clusters(output_dir, table.relative_to(output_dir).as_posix())
    own = path.with_name(f"{stem}_space-{OWN}_desc-{detector}_clusters.tsv")
    own_clusters, own_faults = (
        read_clusters(output_dir, own.relative_to(output_dir).as_posix())
        if own.exists()
        else ((), ())
    )
    told = read_derivative(path)
    entities = dict(part.partition("-")[::2] for part in stem.split("_"))
    return Anomaly(
        subject=entities.get("sub", ""),
        session=entities.get("ses", ""),
        stem=stem,
        training_set=named if named else told.text("TrainingSet"),
        detector=detector,
        primary=not named,
        space=space,
        folder=path.parent,
        held_out=isinstance(told.metadata.get("Fold"), int),
        clusters=clusters,
        own_clusters=own_clusters,
        faults=(*faults, *own_faults),
    )


def _home(output_dir: Path, anomaly: Anomaly) -> tuple[str, Path]:
    """Name the visit whose T1w the PET lies on, and the folder of its anatomy."""
    person = output_dir / f"sub-{anomaly.subject}"
    there = person.glob(f"**/anat/sub-*_desc-preproc_T1w{IMAGE}")
    visits = {path.name.partition("_space-")[0].partition("_desc-")[0] for path in there}
    own = "_".join(part for part in anomaly.stem.split("_") if part.startswith(("sub-", "ses-")))
    name = t1w_of_pet(output_dir, anomaly.stem, visits) or own
    return name, person.joinpath(*name.split("_")[1:], "anat")


NAME: Final = f"{LOGS}/group_scored.json"  # in the derivative dataset


@dataclass(frozen=True)
class ScoredSubject:
    """A map: whose PET, and what scored it.

    Parameters
    ----------
    participant, session : str
        Labels; ``session`` is empty where there is none.
    training_set, detector : str
        What scored it.
    control : bool
        Whether it is a held-out control's.
    path : str
        The map, inside the derivative dataset.
    """

    participant: str
    session: str
    training_set: str
    detector: str
    control: bool
    path: str

    @property
    def visit(self) -> tuple[str, str]:
        """Participant and session."""
        return self.participant, self.session

    @property
    def which(self) -> DetectorKey:
        """The detector, and what it was trained on."""
        return which(self.training_set, self.detector)


@dataclass(frozen=True)
class GridSettings:
    """As the settings of a run have it: template, box in mm (RAS+), and resolution in mm."""

    template: str
    bounding_box: Sequence[float]
    resolution: float


@dataclass(frozen=True)
class ScoredRun:
    """What a run has scored.

    Parameters
    ----------
    dataset : str
        Name or DOI of the raw dataset that was scored; empty if not told.
    maps : sequence of Scored
        Of patients and of held-out controls.
    grid : GridSettings or None
        On which they lie in the template's space; None if not told.
    """

    dataset: str
    maps: Sequence[ScoredSubject]
    grid: GridSettings | None = None


def write_run(output_dir: Path, run: ScoredRun) -> None:
    """Record what the run has scored, for its report and for later ones.

    Raises
    ------
    ReadWriteError
        If it cannot be written.
    """
    maps = [asdict(one) for one in run.maps]
    grid = None if run.grid is None else asdict(run.grid)
    write_json(output_dir / NAME, {"dataset": run.dataset, "grid": grid, "maps": maps})


def read_run(output_dir: Path) -> ScoredRun | None:
    """Read what the last run has scored; None where no record tells it, or it is damaged."""
    try:
        told = read_json(output_dir / NAME)
        maps = [ScoredSubject(**one) for one in told["maps"]]  # type: ignore[attr-defined]
        grid = told.get("grid")
        known = GridSettings(**grid) if isinstance(grid, dict) else None
        return ScoredRun(str(told["dataset"]), maps, known)
    except (Mri2petError, KeyError, TypeError):
        return None


def maps_on_disk(output_dir: Path) -> list[ScoredSubject]:
    """List all maps that lie in a derivative dataset, of whatever run."""
    return [_scored(output_dir, anomaly) for anomaly in find_anomalies(output_dir, "*")]


def last_run(output_dir: Path) -> ScoredRun:
    """Tell what the last run has scored; without a record, all maps on disk stand for it."""
    run = read_run(output_dir)
    return ScoredRun("", maps_on_disk(output_dir)) if run is None else run


def _scored(output_dir: Path, one: Anomaly) -> ScoredSubject:
    return ScoredSubject(
        one.subject,
        one.session,
        one.training_set,
        one.detector,
        one.held_out,
        one.path_in(output_dir),
    )


Line = TypeVar("Line")

ABSENT: Final = "is missing."  # how a sentence on a table that is not there ends
EMPTY: Final = "is empty."  # and on one without lines: nothing was found


@dataclass(frozen=True)
class Found:
    """A cluster of a visit; labels without ``sub-`` and ``ses-``."""

    which: DetectorKey
    participant: str
    session: str
    cluster: ListedCluster

    @property
    def visit(self) -> str:
        """Who it is: ``"sub-01"``, or ``"sub-01, ses-02"``."""
        return name_visit(self.participant, self.session)


@dataclass(frozen=True)
class Detected:
    """What the last run has made: its maps, tables and cards.

    Parameters
    ----------
    dataset : str
        Name or DOI of the raw dataset that was scored; empty if not told.
    cards : dict
        Training set → card.
    maps : sequence of Scored
        All that it has scored: patients, and held-out controls.
    clusters : sequence of Found
        Of patients.
    control_scores : dict
        Detector → held-out control → ``sum_score`` of each of its clusters; there may be none.
    control_shares : dict
        Detector → held-out control → share of its brain that scores above 0.
    curve, responses, comparisons : sequence
        The lines of ``detection_curve.tsv``, ``detection_froc.tsv`` and ``detection_tests.tsv``;
        none where no lesion is known.
    stale_maps : sequence of Scored
        Those that an earlier run has left.
    stale_folders : sequence of str
        Folders of detectors that it has left, inside the derivative dataset.
    faults : sequence of str
        What is missing or damaged, a sentence each.
    """

    dataset: str
    cards: Mapping[str, DetectorCardSummary]
    maps: Sequence[ScoredSubject]
    clusters: Sequence[Found]
    control_scores: Mapping[DetectorKey, Mapping[str, Sequence[float]]]
    control_shares: Mapping[DetectorKey, Mapping[str, float]]
    curve: Sequence[DetectionPoint]
    responses: Sequence[FreeResponse]
    comparisons: Sequence[DetectorComparison]
    stale_maps: Sequence[ScoredSubject]
    stale_folders: Sequence[str]
    faults: Sequence[str]

    @property
    def detectors(self) -> list[DetectorKey]:
        """All that have scored someone, or have found something."""
        scored = {one.which for one in self.maps}
        found = {cluster.which for cluster in self.clusters} | {point.which for point in self.curve}
        return sorted(scored | found)

    @property
    def participants(self) -> list[str]:
        """The labels of all patients who were scored."""
        return sorted({one.participant for one in self.maps if not one.control})

    def patients_of(self, detector: DetectorKey) -> list[tuple[str, str]]:
        """List whom a detector has scored: participant and session of each patient's visit."""
        return sorted({one.visit for one in self.maps if one.which == detector and not one.control})

    @property
    def training_sets(self) -> tuple[str, ...]:
        """All training sets, in the order in which they are shown."""
        return tuple(dict.fromkeys(detector.training_set for detector in self.detectors))


def find_detected(output_dir: Path, applied: Path | None = None) -> Detected:
    """Read all that the last run of the group level has written into a derivative dataset.

    Where no record tells which maps are of that run, all that are there are taken for it.

    Parameters
    ----------
    output_dir : Path
        The derivative dataset.
    applied : Path, optional
        The folder of detectors that were trained before and were applied; None if there is none.
    """
    run, there = read_run(output_dir), maps_on_disk(output_dir)
    maps = there if run is None else run.maps
    untold = [f"{NAME} cannot be read: some of the maps may be of earlier runs."] * (
        run is None and bool(there)
    )
    sets = {one.training_set for one in maps}
    cards, no_cards = find_cards(output_dir, sets, applied)
    needed = ("participant_id", "training_set", "detector", *NEEDED)
    clusters, no_clusters = _read(output_dir, "clusters.tsv", needed, _found)
    scores, no_scores = control_scores(output_dir, cards)
    shares, no_shares = control_shares(output_dir, cards)
    known = ("training_set", "detector", "unit")
    curve, no_curve = _read(output_dir, "detection_curve.tsv", (*known, "clusters"), point_of)
    responses, no_responses = _read(output_dir, "detection_froc.tsv", known, response_of)
    tests, no_tests = _read(output_dir, "detection_tests.tsv", ("unit", "clusters"), comparison_of)
    evaluated = [*no_curve, *no_responses, *no_tests]
    if not (curve or responses or tests):  # then no lesion is known, and nothing could be
        evaluated = [fault for fault in evaluated if not fault.endswith(ABSENT)]
    faults = (*untold, *no_cards, *no_clusters, *no_scores, *no_shares, *evaluated)
    own = {one.path for one in maps}
    return Detected(
        dataset="" if run is None else run.dataset,
        cards=cards,
        maps=maps,
        clusters=clusters,
        control_scores=scores,
        control_shares=shares,
        curve=curve,
        responses=responses,
        comparisons=tests,
        stale_maps=[one for one in there if one.path not in own],
        stale_folders=_unused(output_dir, folders_of(output_dir, sets, applied)),
        faults=[fault for fault in faults if not fault.endswith(EMPTY)],
    )


def _unused(output_dir: Path, used: Collection[Path]) -> list[str]:
    there = sorted(path for path in (output_dir / DETECTORS_FOLDER).glob("*") if path.is_dir())
    return [path.relative_to(output_dir).as_posix() for path in there if path not in used]


def _read(
    output_dir: Path, table: str, needed: Sequence[str], read: Callable[[Cells], Line | None]
) -> tuple[list[Line], list[str]]:
    lines, faults = read_lines(output_dir, table, needed)
    understood = [read(line) for line in lines]
    kept = [number for number in understood if number is not None]
    lost = len(lines) - len(kept)
    told = [f"{table}: {lost} of its lines cannot be understood and are left out."] * (lost > 0)
    return kept, [*faults, *told]


def _found(cells: Cells) -> Found | None:
    cluster = cluster_of(cells)
    if cluster is None:
        return None
    return Found(
        which=which(cells["training_set"], cells["detector"]),
        participant=label_of(cells["participant_id"], "sub-"),
        session=label_of(cells.get("session_id"), "ses-"),
        cluster=cluster,
    )
