"""Anomaly maps and clusters of the group level: their paths, sidecars and tables.

Each table has its dictionary beside it. An absent table is read as one without lines. A reader that
is given ``faults`` reads what it can: see :func:`bids_app.derivatives.sidecars.read_rows`.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from bids_app.derivatives.description import KEY as VERSION
from bids_app.derivatives.find import Preprocessed, t1w_of_pet
from bids_app.derivatives.paths import FDG_LABEL, derivative_path, entities_of, resolution_label
from bids_app.derivatives.sidecars import (
    SCALED,
    Dictionary,
    Faults,
    Sidecar,
    Space,
    as_label,
    read_derivative,
    read_dictionary,
    read_pairs,
    read_rows,
    write_table,
)
from bids_app.detection.card import CARD, CONTROL_CLUSTERS, CONTROL_MAPS
from bids_app.detection.clusters import Cluster, Place
from bids_app.detection.detectors import DETECTORS, DIRECTIONS, rank_of
from bids_app.detection.distribution import CheckedPet
from bids_app.detection.evaluation import CurvePoint, Finding, FreePoint, Mark, McNemarTest
from bids_app.errors import Mri2petError
from bids_app.files import read_json, write_json, write_tsv
from bids_app.imaging.intensity import describe_scaling

DETECTORS_FOLDER = "detectors"
STATMAP = "_statmap.nii.gz"
STATISTIC = "t"  # ``stat-`` of all maps; pybids does not know it, and tells them by ``desc-``
OWN = "T1w"  # space- label of the participant's own T1w
SCORED = "logs/group_scored.json"  # in the derivative dataset
_CARD = "DetectorCard"  # in a sidecar
DIRECTION = "Direction"  # in that of a map


def root_of(output_dir: Path, training_set: str, *, primary: bool) -> Path:
    """Say where maps of a training set go: those of the primary one, to participants' folders."""
    return output_dir if primary else output_dir / DETECTORS_FOLDER / training_set


def anomaly_paths(root: Path, pet: Path, detector: str, space: Space) -> dict[str, Path]:
    """Name the results of a detector on a PET.

    Parameters
    ----------
    root : Path
        As :func:`root_of` gives it.
    pet : Path
        The preprocessed PET on the template's grid.
    detector : str
        Its name.
    space : Space
        The template's grid.

    Returns
    -------
    dict
        ``statmap``, ``labels`` and ``table``, on the template's grid: anomaly map, clusters by
        rank, their table; and each with ``_in_t1w``, on the grid of the T1w.
    """
    entities = entities_of(pet)
    pet_entities = {key: entities.get(key) for key in ("rec", "run")}
    grid = {"space": space.template, "res": resolution_label(space.resolution)}
    statmap = derivative_path(
        root,
        subject=entities["sub"],
        session=entities.get("ses"),
        datatype="pet",
        suffix="statmap",
        extension=".nii.gz",
        entities={"trc": FDG_LABEL, **pet_entities, **grid, "stat": STATISTIC, "desc": detector},
    )
    return paths_beside(statmap)


def paths_beside(statmap: Path) -> dict[str, Path]:
    """Name what belongs to an anomaly map on the template's grid."""
    stem, space, detector = parts_of(statmap)

    def path(space: str, ending: str) -> Path:
        return statmap.with_name(f"{stem}_space-{space}_{ending}")

    return {
        "statmap": statmap,
        "labels": path(space, f"desc-{detector}_dseg.nii.gz"),
        "table": path(space, f"desc-{detector}_clusters.tsv"),
        "statmap_in_t1w": path(OWN, f"stat-{STATISTIC}_desc-{detector}{STATMAP}"),
        "labels_in_t1w": path(OWN, f"desc-{detector}_dseg.nii.gz"),
        "table_in_t1w": path(OWN, f"desc-{detector}_clusters.tsv"),
    }


CONTROL_AVERAGES = {"controlsmean": "Mean", "controlssd": "Standard deviation"}  # by ``desc-``


def control_average_paths(root: Path, space: Space) -> list[Path]:
    """Name the mean and the SD of the controls' PET: of no participant, but of the template.

    Parameters
    ----------
    root : Path
        As :func:`root_of` gives it.
    space : Space
        The template's grid.

    Examples
    --------
    >>> control_average_paths(Path("out"), Space("MNI", 1.0, "https://example.org"))[0].as_posix()
    'out/tpl-MNI/pet/tpl-MNI_trc-18FFDG_res-1_desc-controlsmean_pet.nii.gz'
    """
    tpl = f"tpl-{space.template}"
    grid = f"trc-{FDG_LABEL}_res-{resolution_label(space.resolution)}"
    folder = root / tpl / "pet"
    return [folder / f"{tpl}_{grid}_desc-{desc}_pet.nii.gz" for desc in CONTROL_AVERAGES]


def parts_of(statmap: Path) -> tuple[str, str, str]:
    """Take the name of a map apart: whose PET, the grid of the template, and the detector."""
    stem, _, rest = statmap.name.partition("_space-")
    space, _, end = rest.partition("_stat-")
    return stem, space, end.removeprefix(f"{STATISTIC}_desc-").removesuffix(STATMAP)


def describe_card(
    output_dir: Path, folder: Path, *, dataset: str, version: str, sha256: str = ""
) -> Sidecar:
    """Say by which detector a map is made: where its card is, and what that says.

    Parameters
    ----------
    output_dir, folder : Path
        Roots of the derivative dataset and of the detector, which may lie in it or elsewhere.
    dataset, version : str
        Whose controls it was trained on, and by which version of the app.
    sha256 : str
        Of the card, which knows those of all files of the detector; empty where the run at hand
        trains it: see :func:`sign`.
    """
    card = (folder / CARD).absolute()
    root = output_dir.absolute()
    inside = card.is_relative_to(root)
    uri = f"bids::{card.relative_to(root).as_posix()}" if inside else card.as_uri()
    signature = {"SHA256": sha256} if sha256 else {}
    return {"URI": uri, "Dataset": dataset, "Version": version, **signature}


def sign(sidecar: Path, sha256: str) -> None:
    """Add the SHA-256 of the detector's card to the sidecar of a map, when the card is whole."""
    metadata = read_json(sidecar)
    card = metadata.get(_CARD)
    fields = card if isinstance(card, dict) else {}
    write_json(sidecar, {**metadata, _CARD: {**fields, "SHA256": sha256}})


@dataclass(frozen=True)
class Origin:
    """What every anomaly map of one detector tells alike.

    Parameters
    ----------
    output_dir : Path
        Root of the derivative dataset.
    detector, training_set : str
        What computed it, and on what that was trained.
    version : str
        Of the app.
    card : dict
        Of the detector, as :func:`describe_card` gives it.
    direction : {"hypo", "hyper", "both"}
        What scores higher.
    fwhm : float
        Smoothing of the map, in mm; 0 for none.
    covariates : tuple of str
        Names of those that were taken out.
    """

    output_dir: Path
    detector: str
    training_set: str
    version: str
    card: Sidecar
    direction: str
    fwhm: float
    covariates: tuple[str, ...] = ()

    def uri(self, path: Path) -> str:
        """BIDS URI of a result."""
        return f"bids::{path.relative_to(self.output_dir).as_posix()}"

    def _common(self, sources: list[Path]) -> Sidecar:
        return {
            "Sources": [self.uri(path) for path in sources],
            "Detector": self.detector,
            "TrainingSet": self.training_set,
            VERSION: self.version,
            _CARD: self.card,
        }

    def statmap(self, pet: Path, space: Space) -> Sidecar:
        """Tell of an anomaly map on the template's grid."""
        meaning = DETECTORS[self.detector].statmap
        text = (
            f"Anomaly of FDG PET, more is more abnormal: {meaning}; {DIRECTIONS[self.direction]}. "
            "For research; no diagnosis"
        )
        more: Sidecar = {"SmoothingFWHM": self.fwhm} if self.fwhm else {}
        more |= {"Covariates": list(self.covariates)} if self.covariates else {}
        return {
            "Description": text,
            **self._common([pet]),
            DIRECTION: self.direction,
            **more,
            "SkullStripped": True,
            **space.entries(),
        }

    def labels(self, statmap: Path, space: Space) -> Sidecar:
        """Tell of the label image of clusters on the template's grid."""
        text = "Clusters of the anomaly map; a voxel's value is its cluster's rank, 0 is none"
        return {"Description": text, **self._common([statmap]), **space.entries()}

    def in_t1w(self, metadata: Sidecar, path: Path, visit: Preprocessed) -> Sidecar:
        """Tell of a result that was carried to the T1w's own grid, from its ``metadata``."""
        kept = {key: value for key, value in metadata.items() if key != "Resolution"}
        reference = self.uri(native_t1w(visit))
        sources = [self.uri(path), self.uri(template_to_t1w(visit))]
        return {**kept, "Sources": sources, "SpatialReference": reference}


def describe_control_averages(
    pets: Sequence[tuple[str, bool]],
    space: Space,
    *,
    training_set: str,
    version: str,
    times_mean: float,
    covariates: Sequence[str],
) -> list[Sidecar]:
    """Tell of the mean and the SD of the PET that detectors are trained on.

    Parameters
    ----------
    pets : sequence of (str, bool)
        BIDS URI of each control's, and whether it is synthetic.
    space : Space
        The template's grid.
    training_set : str
        Of whom they are.
    version : str
        Of the app.
    times_mean : float
        How PET was scaled: see :func:`bids_app.imaging.intensity.describe_scaling`.
    covariates : sequence of str
        Names of those that were taken out.
    """
    n_synthetic = sum(synthetic for _, synthetic in pets)
    text = f"over the FDG PET of {len(pets)} controls"
    text += f", of which {n_synthetic} are SYNTHETIC" if n_synthetic else ""
    text += f", with {', '.join(covariates)} as the controls' mean" if covariates else ""
    common: Sidecar = {
        "Sources": [uri for uri, _ in pets],
        "TrainingSet": training_set,
        "NumberOfControls": len(pets),
        "NumberOfSyntheticPET": n_synthetic,
        VERSION: version,
        "IntensityScaling": describe_scaling(times_mean=times_mean),
        "Units": SCALED,
        "SmoothingFWHM": 0.0,
        **({"Covariates": list(covariates)} if covariates else {}),
        "SkullStripped": True,
        **space.entries(),
    }
    return [
        {
            "Description": f"{statistic} {text}; 0 outside the brain and where few PET reach",
            **common,
        }
        for statistic in CONTROL_AVERAGES.values()
    ]


def native_t1w(visit: Preprocessed) -> Path:
    """Name the corrected T1w on its own grid."""
    return _beside(visit, "desc-preproc_T1w.nii.gz")


def template_to_t1w(visit: Preprocessed) -> Path:
    """Name the transform from the template to the T1w."""
    return _beside(visit, f"from-{entities_of(visit.t1w)['space']}_to-T1w_mode-image_xfm.h5")


def t1w_to_template(visit: Preprocessed) -> Path:
    """Name the transform from the T1w to the template."""
    return _beside(visit, f"from-T1w_to-{entities_of(visit.t1w)['space']}_mode-image_xfm.h5")


def lesions_in_template(visit: Preprocessed) -> Path:
    """Name the mask of known lesions on the template's grid."""
    space, res = (entities_of(visit.t1w)[key] for key in ("space", "res"))
    return _beside(visit, f"space-{space}_res-{res}_label-L_mask.nii.gz")


def lesions_on_t1w(visit: Preprocessed) -> Path:
    """Name the mask of known lesions on the T1w's own grid."""
    return _beside(visit, f"space-{OWN}_label-L_mask.nii.gz")


def _beside(visit: Preprocessed, ending: str) -> Path:
    return visit.t1w.with_name(f"{visit.t1w.name.partition('_space-')[0]}_{ending}")


Line = dict[str, object]
CLUSTERS = "clusters"
CURVE, TESTS, FROC = "detection_curve", "detection_tests", "detection_froc"
SYNTHETIC_CONTROLS = "synthetic_controls"
DICTIONARIES = {  # table → what explains it, in data/dictionaries
    "clusters": ("clusters",),
    "clusters_in_t1w": ("clusters_in_t1w",),
    "all_clusters": ("visits", "training_sets", "detectors", "clusters"),
    "control_clusters": ("visits", "detectors", "control_clusters"),
    "control_maps": ("visits", "detectors", "control_maps"),
    CURVE: ("training_sets", "detectors", "units", CURVE),
    TESTS: ("units", TESTS),
    FROC: ("training_sets", "detectors", "units", FROC),
    SYNTHETIC_CONTROLS: ("visits", SYNTHETIC_CONTROLS),
}
_PLACE = ("rank", "x", "y", "z")  # without them a line of clusters says nothing
_OWNER = ("participant_id", "training_set", "detector")
_UNIT = ("training_set", "detector", "unit")
_PLACED = ("x", "y", "z", "peak_x", "peak_y", "peak_z", "volume")  # differ between spaces


@dataclass(frozen=True)
class Listed:
    """The clusters of one visit.

    Parameters
    ----------
    participant : str
        Label, without ``sub-``.
    session : str or None
        Label, without ``ses-``.
    training_set, detector : str
        What the score map was made by.
    clusters : tuple of Cluster
        By rank; there may be none.
    above_zero : float or None
        Share of the brain that scores above 0; None if it is not known.
    """

    participant: str
    session: str | None
    training_set: str
    detector: str
    clusters: tuple[Cluster, ...]
    above_zero: float | None = None


@dataclass(frozen=True)
class ControlCluster:
    """A line of ``control_clusters.tsv``, identifiers with their prefixes, as in the file.

    From ``rank`` on all is None for a control without clusters.
    """

    participant_id: str
    session_id: str | None
    detector: str
    rank: int | None
    x: float | None
    y: float | None
    z: float | None
    volume: float | None
    mean_score: float | None
    sum_score: float | None


@dataclass(frozen=True)
class ControlMap:
    """A line of ``control_maps.tsv``: the map of a held-out control by one detector.

    Parameters
    ----------
    participant_id, session_id, detector : str, str or None, str
        Identifiers have their prefixes, as in the file.
    above_zero : float or None
        Share of its brain that scores above 0; None if it is not known.
    """

    participant_id: str
    session_id: str | None
    detector: str
    above_zero: float | None


def write_clusters_table(path: Path, clusters: Sequence[Cluster], controls: int) -> None:
    """Write the clusters of one score map, by rank; no line where there is none.

    Parameters
    ----------
    path : Path
        The table.
    clusters : sequence of Cluster
        By rank.
    controls : int
        That ``expected_in_control`` rests on.

    Raises
    ------
    ReadWriteError
        If a file cannot be written; so do all others here.
    """
    write_table(path, describe("clusters", f"{controls}"), [vars(cluster) for cluster in clusters])
    _name_labels(path, clusters)


def _name_labels(path: Path, clusters: Sequence[Cluster]) -> None:
    """Write beside the label image what its numbers mean, as BIDS has it (``_dseg.tsv``)."""
    lines = [
        {"index": c.rank, "name": f"cluster {c.rank}, {c.region or 'outside of all regions'}"}
        for c in clusters
    ]
    target = path.with_name(path.name.replace("_clusters.", "_dseg."))
    write_tsv(target, ["index", "name"], lines)


def write_clusters_in_t1w(
    path: Path, clusters: Sequence[Cluster], places: Iterable[Place], controls: int
) -> None:
    """Write the clusters of one score map, by rank, as they lie on the T1w.

    Ranks, scores and all that was found with them are those of ``clusters``. One that has no
    place, because no voxel of it was left when it was carried, has a volume of 0.
    """
    by_rank = {place.rank: vars(place) for place in places}
    missing = {**dict.fromkeys(_PLACED), "volume": 0.0}
    lines = [{**vars(cluster), **missing, **by_rank.get(cluster.rank, {})} for cluster in clusters]
    write_table(path, describe("clusters_in_t1w", f"{controls}"), lines)
    _name_labels(path, clusters)


def write_all_clusters(
    output_dir: Path, visits: Iterable[Listed], controls: Mapping[tuple[str, str], int]
) -> None:
    """Write ``clusters.tsv``: all clusters of all patients, in the order given.

    ``controls``: how many ``expected_in_control`` rests on, by training set and detector.
    """
    lines = [
        {
            **_identifiers(visit),
            "training_set": visit.training_set,
            "detector": visit.detector,
            **vars(cluster),
        }
        for visit in visits
        for cluster in visit.clusters
    ]
    counts = ", ".join(f"{count} ({' '.join(names)})" for names, count in controls.items())
    write_table(output_dir / f"{CLUSTERS}.tsv", describe("all_clusters", counts), lines)


def write_control_clusters(folder: Path, visits: Iterable[Listed]) -> None:
    """Write ``control_clusters.tsv``, in the folder of a training set.

    A control without clusters has one line without numbers: it counts in every mean.
    """
    lines = [
        {**_identifiers(visit), "detector": visit.detector, **numbers}
        for visit in visits
        for numbers in ([vars(cluster) for cluster in visit.clusters] if visit.clusters else [{}])
    ]
    write_table(folder / CONTROL_CLUSTERS, describe("control_clusters"), lines)


def write_control_maps(folder: Path, visits: Iterable[Listed]) -> None:
    """Write ``control_maps.tsv``, in the folder of a training set."""
    lines = [
        {**_identifiers(visit), "detector": visit.detector, "above_zero": visit.above_zero}
        for visit in visits
    ]
    write_table(folder / CONTROL_MAPS, describe("control_maps"), lines)


def write_curve(output_dir: Path, points: Sequence[CurvePoint]) -> None:
    """Write ``detection_curve.tsv``."""
    write_table(output_dir / f"{CURVE}.tsv", describe(CURVE), list(map(vars, points)))


def write_tests(output_dir: Path, tests: Sequence[McNemarTest]) -> None:
    """Write ``detection_tests.tsv``."""
    write_table(output_dir / f"{TESTS}.tsv", describe(TESTS), list(map(vars, tests)))


def write_froc(output_dir: Path, points: Sequence[FreePoint]) -> None:
    """Write ``detection_froc.tsv``."""
    write_table(output_dir / f"{FROC}.tsv", describe(FROC), list(map(vars, points)))


def write_synthetic_controls(output_dir: Path, checked: Sequence[CheckedPet]) -> None:
    """Write ``synthetic_controls.tsv``; where nothing was compared, remove that of another run."""
    path = output_dir / f"{SYNTHETIC_CONTROLS}.tsv"
    if checked:
        write_table(path, describe(SYNTHETIC_CONTROLS), list(map(vars, checked)))
    else:
        for stale in (path, path.with_suffix(".json")):
            stale.unlink(missing_ok=True)


def read_clusters_table(path: Path, faults: Faults | None = None) -> list[Cluster]:
    """Read the clusters of one score map, by rank.

    Raises
    ------
    ReadWriteError, UnusableDataError
        As :func:`bids_app.derivatives.sidecars.read_rows`; so do all others here.
    """
    clusters = read_rows(path, Cluster, _PLACE, faults)
    ranked = [cluster for cluster in clusters if cluster.rank > 0]
    return sorted(ranked, key=lambda cluster: cluster.rank)


def read_all_clusters(output_dir: Path, faults: Faults | None = None) -> list[Listed]:
    """Read ``clusters.tsv``; visits without clusters are not in it."""
    path, needed = output_dir / f"{CLUSTERS}.tsv", (*_OWNER, *_PLACE)
    grouped: dict[tuple[str, ...], list[Cluster]] = {}
    for cells, cluster in read_pairs(path, Cluster, needed, faults):
        visit = _visit_of(cells["participant_id"], as_label(cells.get("session_id")))
        owner = (*visit, cells["training_set"], cells["detector"])
        if cluster.rank > 0:
            grouped.setdefault(owner, []).append(cluster)
    return [
        Listed(participant, session if session else None, training_set, detector, tuple(clusters))
        for (participant, session, training_set, detector), clusters in grouped.items()
    ]


def read_control_clusters(folder: Path, faults: Faults | None = None) -> list[ControlCluster]:
    """Read ``control_clusters.tsv`` of a training set."""
    needed = ("participant_id", "detector")
    return read_rows(folder / CONTROL_CLUSTERS, ControlCluster, needed, faults)


def read_control_maps(folder: Path, faults: Faults | None = None) -> list[ControlMap]:
    """Read ``control_maps.tsv`` of a training set."""
    needed = ("participant_id", "detector", "above_zero")
    return read_rows(folder / CONTROL_MAPS, ControlMap, needed, faults)


def read_curve(output_dir: Path, faults: Faults | None = None) -> list[CurvePoint]:
    """Read ``detection_curve.tsv``."""
    needed = (*_UNIT, "clusters", "sensitivity")
    return read_rows(output_dir / f"{CURVE}.tsv", CurvePoint, needed, faults)


def read_tests(output_dir: Path, faults: Faults | None = None) -> list[McNemarTest]:
    """Read ``detection_tests.tsv``."""
    needed = ("unit", "clusters", "detector_1", "detector_2")
    return read_rows(output_dir / f"{TESTS}.tsv", McNemarTest, needed, faults)


def read_froc(output_dir: Path, faults: Faults | None = None) -> list[FreePoint]:
    """Read ``detection_froc.tsv``."""
    needed = (*_UNIT, "false_clusters_per_control", "sensitivity")
    return read_rows(output_dir / f"{FROC}.tsv", FreePoint, needed, faults)


def read_synthetic_controls(output_dir: Path, faults: Faults | None = None) -> list[CheckedPet]:
    """Read ``synthetic_controls.tsv``; there is none where nothing was compared."""
    path = output_dir / f"{SYNTHETIC_CONTROLS}.tsv"
    needed = ("participant_id", "kind", "region", "mean_score", "above_zero")
    return read_rows(path, CheckedPet, needed, faults) if path.exists() else []


def control_sum_scores(lines: Iterable[ControlCluster], detector: str) -> list[list[float]]:
    """Gather the scores of each control's clusters, one list a visit, as calibration wants them."""
    scores: dict[tuple[str, str | None], list[float]] = {}
    for line in lines:
        if line.detector == detector:
            sums = scores.setdefault((line.participant_id, line.session_id), [])
            sums += [] if line.sum_score is None else [line.sum_score]
    return list(scores.values())


def control_findings(lines: Iterable[ControlCluster], training_set: str) -> list[Finding]:
    """Give what curves need of each control: all of its clusters, by detector; no lesion."""
    marks: dict[tuple[str, str, str | None], list[Mark]] = {}
    for line in lines:
        control_marks = marks.setdefault((line.detector, line.participant_id, line.session_id), [])
        if line.rank is not None and line.sum_score is not None:
            control_marks.append(Mark(line.rank, line.sum_score))
    return [
        Finding(
            training_set,
            detector,
            participant.removeprefix("sub-"),
            None if session is None else session.removeprefix("ses-"),
            0,
            tuple(control_marks),
        )
        for (detector, participant, session), control_marks in marks.items()
    ]


def describe(table: str, controls: str = "") -> Dictionary:
    """Explain the columns of a table, in their order.

    Parameters
    ----------
    table : str
        A key of ``DICTIONARIES``.
    controls : str
        How many ``expected_in_control`` rests on; empty if that is not known.
    """
    dictionary = read_dictionary(*DICTIONARIES[table])
    levels: dict[str, object] = {
        "training_set": read_dictionary("training_sets")["training_set"]["Levels"],
        "detector": {name: detector.score for name, detector in DETECTORS.items()},
    }
    for column, entry in dictionary.items():
        kind = column.removesuffix("_1").removesuffix("_2")
        if kind in levels:
            entry["Levels"] = levels[kind]
    note = f". Number of these controls: {controls}" if controls else ""
    for entry in dictionary.values():
        entry["Description"] = str(entry["Description"]).replace("{controls}", note)
    return dictionary


def _identifiers(visit: Listed) -> Line:
    session = None if visit.session is None else f"ses-{visit.session}"
    return {"participant_id": f"sub-{visit.participant}", "session_id": session}


def _visit_of(participant: str, session: str | None) -> tuple[str, str]:
    """Take the prefixes from identifiers, as tables have them."""
    return participant.removeprefix("sub-"), (session if session else "").removeprefix("ses-")


@dataclass(frozen=True)
class Anomaly:
    """The score map of one detector for one PET, as it lies in a derivative dataset.

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
    paths : mapping
        Its files; they need not all be there.
    held_out : bool
        One fold scored it, that left this participant out: a control's.
    direction : str
        What scores higher, a key of ``DIRECTIONS``; empty where it is not known.
    clusters, own_clusters : tuple of Cluster
        By rank; and those that lie on the participant's own T1w, with their places there.
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
    paths: Mapping[str, Path]
    held_out: bool = False
    direction: str = ""
    clusters: tuple[Cluster, ...] = ()
    own_clusters: tuple[Cluster, ...] = ()
    faults: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """Whose PET it is: ``"sub-01, ses-02"``."""
        return ", ".join(part for part in self.stem.split("_") if not part.startswith("trc-"))


def find_anomalies(
    output_dir: Path, subject: str, *, spaces: tuple[str, ...] = ()
) -> list[Anomaly]:
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
    list of Anomaly
        By PET; the primary training set first.
    """
    folders = sorted(path for path in (output_dir / DETECTORS_FOLDER).glob("*") if path.is_dir())
    roots = {"": output_dir, **{path.name: path for path in folders}}
    found = [
        _anomaly(output_dir, path, training_set)
        for training_set, root in roots.items()
        for path in sorted(root.glob(f"sub-{subject}/**/*{STATMAP}"))
        if f"_space-{OWN}_" not in path.name
    ]
    kept = [anomaly for anomaly in found if not spaces or anomaly.space in spaces]
    return sorted(kept, key=lambda a: (a.stem, not a.primary, rank_of(a.training_set, a.detector)))


def _anomaly(output_dir: Path, path: Path, training_set: str) -> Anomaly:
    (stem, space, detector), paths, faults = parts_of(path), paths_beside(path), Faults(output_dir)
    table, native_table = paths["table"], paths["table_in_t1w"]
    clusters = read_clusters_table(table, faults)
    own_clusters = read_clusters_table(native_table, faults) if native_table.exists() else []
    sidecar = read_derivative(path)
    entities = dict(part.partition("-")[::2] for part in stem.split("_"))
    return Anomaly(
        subject=entities.get("sub", ""),
        session=entities.get("ses", ""),
        stem=stem,
        training_set=training_set if training_set else sidecar.text("TrainingSet"),
        detector=detector,
        primary=not training_set,
        space=space,
        paths=paths,
        held_out=isinstance(sidecar.metadata.get("Fold"), int),
        direction=sidecar.text(DIRECTION),
        clusters=tuple(clusters),
        own_clusters=tuple(own_clusters),
        faults=tuple(fault for fault in faults if not fault.endswith("is empty.")),  # none found
    )


def backdrop_of(output_dir: Path, anomaly: Anomaly, *, native: bool) -> tuple[Path, Path]:
    """Name the T1w that the PET of a map was aligned to, and the mask of its brain.

    ``native``: in the participant's own space, not in that of the template. They need not be there.
    """
    space = "" if native else f"_space-{anomaly.space}"
    subject_dir = output_dir / f"sub-{anomaly.subject}"
    t1w_paths = subject_dir.glob("**/anat/sub-*_desc-preproc_T1w.nii.gz")
    visits = {path.name.partition("_space-")[0].partition("_desc-")[0] for path in t1w_paths}
    visit = "_".join(part for part in anomaly.stem.split("_") if part.startswith(("sub-", "ses-")))
    t1w_visit = t1w_of_pet(output_dir, anomaly.stem, visits)
    t1w_visit = visit if t1w_visit is None else t1w_visit
    folder = subject_dir.joinpath(*t1w_visit.split("_")[1:], "anat")
    return (
        folder / f"{t1w_visit}{space}_desc-preproc_T1w.nii.gz",
        folder / f"{t1w_visit}{space}_desc-brain_mask.nii.gz",
    )


def pets_of(output_dir: Path, anomaly: Anomaly, *, native: bool) -> tuple[Path, Path]:
    """Name the PET that was scored, and the synthetic one of its T1w; they need not be there.

    ``native``: in the participant's own space, not in that of the template.
    """
    space = OWN if native else anomaly.space
    t1w, _ = backdrop_of(output_dir, anomaly, native=True)
    visit = t1w.name.partition("_desc-")[0]
    synthetic = f"{visit}_trc-{FDG_LABEL}_space-{space}_desc-synth_pet.nii.gz"
    return (
        anomaly.paths["statmap"].with_name(f"{anomaly.stem}_space-{space}_desc-preproc_pet.nii.gz"),
        t1w.parent.with_name("pet") / synthetic,
    )


def lesions_of(output_dir: Path, anomaly: Anomaly, *, native: bool) -> list[Path]:
    """List the lesion masks of a participant in the space of the template, or of a T1w.

    In the former, they are of all sessions, in the latter (``native``) of the T1w that the PET was
    aligned to.
    """
    subject_dir = output_dir / f"sub-{anomaly.subject}"
    if not native:
        names = f"sub-{anomaly.subject}_*space-{anomaly.space}_label-*_mask.nii.gz"
        return sorted(subject_dir.glob(f"**/{names}"))
    t1w, _ = backdrop_of(output_dir, anomaly, native=True)
    visit = t1w.name.partition("_desc-")[0]
    return sorted(t1w.parent.glob(f"{visit}_space-{OWN}_label-*_mask.nii.gz"))


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


@dataclass(frozen=True)
class ScoredRun:
    """What a run has scored.

    Parameters
    ----------
    dataset : str
        Name or DOI of the raw dataset that was scored; empty if not told.
    maps : sequence of ScoredSubject
        Of patients and of held-out controls.
    grid : tuple of (str, sequence of float, float), or None
        On which they lie in the template's space: template, box in mm (RAS+), and resolution in mm,
        as the settings of the run have them; None if not told.
    """

    dataset: str
    maps: Sequence[ScoredSubject]
    grid: tuple[str, Sequence[float], float] | None = None


_GRID = ("template", "bounding_box", "resolution")


def write_run(output_dir: Path, run: ScoredRun) -> None:
    """Record what the run has scored, for its report and for later ones.

    Raises
    ------
    ReadWriteError
        If it cannot be written.
    """
    grid = None if run.grid is None else dict(zip(_GRID, run.grid, strict=True))
    maps = [asdict(scored) for scored in run.maps]
    write_json(output_dir / SCORED, {"dataset": run.dataset, "grid": grid, "maps": maps})


def read_run(output_dir: Path) -> ScoredRun | None:
    """Read what the last run has scored; None where no record tells it, or it is damaged."""
    try:
        record = read_json(output_dir / SCORED)
        maps = [ScoredSubject(**fields) for fields in record["maps"]]
        grid = record.get("grid")
        values = tuple(grid[key] for key in _GRID) if isinstance(grid, dict) else None
        return ScoredRun(str(record["dataset"]), maps, values)
    except (Mri2petError, KeyError, TypeError):
        return None


def maps_on_disk(output_dir: Path) -> list[ScoredSubject]:
    """List all maps that lie in a derivative dataset, of whatever run."""
    return [
        ScoredSubject(
            anomaly.subject,
            anomaly.session,
            anomaly.training_set,
            anomaly.detector,
            anomaly.held_out,
            anomaly.paths["statmap"].relative_to(output_dir).as_posix(),
        )
        for anomaly in find_anomalies(output_dir, "*")
    ]


def last_run(output_dir: Path) -> ScoredRun:
    """Tell what the last run has scored; without a record, all maps on disk stand for it."""
    run = read_run(output_dir)
    return ScoredRun("", maps_on_disk(output_dir)) if run is None else run
