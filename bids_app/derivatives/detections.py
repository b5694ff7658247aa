"""Anomaly maps and clusters of the group level: their paths, sidecars and tables.

Each table has its dictionary beside it. An absent table is read as one without lines.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import NoneType
from typing import TypeVar, get_args, get_type_hints

from bids_app.derivatives.description import KEY as VERSION
from bids_app.derivatives.find import Preprocessed
from bids_app.derivatives.paths import FDG_LABEL, derivative_path, entities_of, resolution_label
from bids_app.derivatives.sidecars import Dictionary, Sidecar, Space, read_dictionary, write_table
from bids_app.detection.card import CARD, CONTROL_CLUSTERS, CONTROL_MAPS
from bids_app.detection.clusters import Cluster, Place
from bids_app.detection.detectors import DETECTORS
from bids_app.detection.evaluation import CurvePoint, Finding, FreePoint, Mark, McNemarTest
from bids_app.errors import UnusableDataError
from bids_app.files import MISSING, read_json, read_tsv, write_json

DETECTORS_FOLDER = "detectors"
_CARD = "DetectorCard"  # in a sidecar


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
    own = {key: entities.get(key) for key in ("rec", "run")}
    grid = {"space": space.template, "res": resolution_label(space.resolution)}

    def path(suffix: str, extension: str, **labels: str) -> Path:
        return derivative_path(
            root,
            subject=entities["sub"],
            session=entities.get("ses"),
            datatype="pet",
            suffix=suffix,
            extension=extension,
            entities={"trc": FDG_LABEL, **own, **labels},
        )

    return {
        "statmap": path("statmap", ".nii.gz", **grid, stat=detector),
        "labels": path("dseg", ".nii.gz", **grid, desc=detector),
        "table": path("clusters", ".tsv", **grid, desc=detector),
        "statmap_in_t1w": path("statmap", ".nii.gz", space="T1w", stat=detector),
        "labels_in_t1w": path("dseg", ".nii.gz", space="T1w", desc=detector),
        "table_in_t1w": path("clusters", ".tsv", space="T1w", desc=detector),
    }


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
    told = read_json(sidecar)
    card = told.get(_CARD)
    known = card if isinstance(card, dict) else {}
    write_json(sidecar, {**told, _CARD: {**known, "SHA256": sha256}})


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
    """

    output_dir: Path
    detector: str
    training_set: str
    version: str
    card: Sidecar

    def own(self, path: Path) -> str:
        """BIDS URI of a result."""
        return f"bids::{path.relative_to(self.output_dir).as_posix()}"

    def _common(self, sources: list[Path]) -> Sidecar:
        return {
            "Sources": [self.own(path) for path in sources],
            "Detector": self.detector,
            "TrainingSet": self.training_set,
            VERSION: self.version,
            _CARD: self.card,
        }

    def statmap(self, pet: Path, space: Space) -> Sidecar:
        """Tell of an anomaly map on the template's grid."""
        meaning = DETECTORS[self.detector].statmap
        text = f"Anomaly of FDG PET, more is more abnormal: {meaning}. For research; no diagnosis"
        return {
            "Description": text,
            **self._common([pet]),
            "SkullStripped": True,
            **space.entries(),
        }

    def labels(self, statmap: Path, space: Space) -> Sidecar:
        """Tell of the label image of clusters on the template's grid."""
        text = "Clusters of the anomaly map; a voxel's value is its cluster's rank, 0 is none"
        return {"Description": text, **self._common([statmap]), **space.entries()}

    def in_t1w(self, told: Sidecar, path: Path, visit: Preprocessed) -> Sidecar:
        """Tell of a result that was carried to the T1w's own grid; ``told`` of the one it is."""
        own = {key: value for key, value in told.items() if key != "Resolution"}
        reference = self.own(native_t1w(visit))
        sources = [self.own(path), self.own(template_to_t1w(visit))]
        return {**own, "Sources": sources, "SpatialReference": reference}


def native_t1w(visit: Preprocessed) -> Path:
    """Name the corrected T1w on its own grid."""
    return _beside(visit, suffix="T1w", extension=".nii.gz", entities={"desc": "preproc"})


def template_to_t1w(visit: Preprocessed) -> Path:
    """Name the transform from the template to the T1w."""
    space = entities_of(visit.t1w)["space"]
    steps = {"from": space, "to": "T1w", "mode": "image"}
    return _beside(visit, suffix="xfm", extension=".h5", entities=steps)


def t1w_to_template(visit: Preprocessed) -> Path:
    """Name the transform from the T1w to the template."""
    space = entities_of(visit.t1w)["space"]
    steps = {"from": "T1w", "to": space, "mode": "image"}
    return _beside(visit, suffix="xfm", extension=".h5", entities=steps)


def lesions_in_template(visit: Preprocessed) -> Path:
    """Name the mask of known lesions on the template's grid."""
    entities = entities_of(visit.t1w)
    grid = {key: entities[key] for key in ("space", "res")}
    return _beside(visit, suffix="mask", extension=".nii.gz", entities={**grid, "label": "L"})


def _beside(visit: Preprocessed, *, suffix: str, extension: str, entities: dict[str, str]) -> Path:
    root = visit.t1w.parents[2 if visit.session is None else 3]
    return derivative_path(
        root,
        subject=visit.subject,
        session=visit.session,
        datatype="anat",
        suffix=suffix,
        extension=extension,
        entities=entities,
    )


Line = dict[str, object]
Row = TypeVar("Row")

CLUSTERS = "clusters"
CURVE, TESTS, FROC = "detection_curve", "detection_tests", "detection_froc"
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
class _Owner:
    """Who a line of ``clusters.tsv`` is of; identifiers have their prefixes, as in the file."""

    participant_id: str
    session_id: str | None
    training_set: str
    detector: str

    def list(self, clusters: Iterable[Cluster]) -> Listed:
        session = None if self.session_id is None else self.session_id.removeprefix("ses-")
        participant = self.participant_id.removeprefix("sub-")
        return Listed(participant, session, self.training_set, self.detector, tuple(clusters))


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
    write_table(path, describe_clusters(f"{controls}"), [vars(cluster) for cluster in clusters])


def write_clusters_in_t1w(
    path: Path, clusters: Sequence[Cluster], places: Iterable[Place], controls: int
) -> None:
    """Write the clusters of one score map, by rank, as they lie on the T1w.

    Ranks, scores and all that was found with them are those of ``clusters``. One that has no
    place, because no voxel of it was left when it was carried, has a volume of 0.
    """
    found = {place.rank: vars(place) for place in places}
    lost = {**dict.fromkeys(_PLACED), "volume": 0.0}
    lines = [{**vars(cluster), **lost, **found.get(cluster.rank, {})} for cluster in clusters]
    write_table(path, describe_clusters_in_t1w(f"{controls}"), lines)


def write_all_clusters(
    output_dir: Path, visits: Iterable[Listed], controls: Mapping[tuple[str, str], int]
) -> None:
    """Write ``clusters.tsv``: all clusters of all patients, in the order given.

    ``controls``: how many ``expected_in_control`` rests on, by training set and detector.
    """
    lines = [
        {
            **_who(visit),
            "training_set": visit.training_set,
            "detector": visit.detector,
            **vars(cluster),
        }
        for visit in visits
        for cluster in visit.clusters
    ]
    told = ", ".join(f"{count} ({' '.join(names)})" for names, count in controls.items())
    write_table(output_dir / f"{CLUSTERS}.tsv", describe_all_clusters(told), lines)


def write_control_clusters(folder: Path, visits: Iterable[Listed]) -> None:
    """Write ``control_clusters.tsv``, in the folder of a training set.

    A control without clusters has one line without numbers: it counts in every mean.
    """
    lines = [
        {**_who(visit), "detector": visit.detector, **numbers}
        for visit in visits
        for numbers in ([vars(cluster) for cluster in visit.clusters] if visit.clusters else [{}])
    ]
    write_table(folder / CONTROL_CLUSTERS, describe_control_clusters(), lines)


def write_control_maps(folder: Path, visits: Iterable[Listed]) -> None:
    """Write ``control_maps.tsv``, in the folder of a training set."""
    lines = [
        {**_who(visit), "detector": visit.detector, "above_zero": visit.above_zero}
        for visit in visits
    ]
    write_table(folder / CONTROL_MAPS, describe_control_maps(), lines)


def write_curve(output_dir: Path, points: Sequence[CurvePoint]) -> None:
    """Write ``detection_curve.tsv``."""
    write_table(output_dir / f"{CURVE}.tsv", describe_curve(), [vars(point) for point in points])


def write_tests(output_dir: Path, comparisons: Sequence[McNemarTest]) -> None:
    """Write ``detection_tests.tsv``."""
    write_table(
        output_dir / f"{TESTS}.tsv",
        describe_tests(),
        [vars(comparison) for comparison in comparisons],
    )


def write_froc(output_dir: Path, points: Sequence[FreePoint]) -> None:
    """Write ``detection_froc.tsv``."""
    write_table(output_dir / f"{FROC}.tsv", describe_froc(), [vars(point) for point in points])


def read_clusters_table(path: Path) -> list[Cluster]:
    """Read the clusters of one score map.

    Raises
    ------
    ReadWriteError
        If the table cannot be read; so do all others here.
    UnusableDataError
        If it lacks a column, or a cell is not what the column is; so do all others here.
    """
    return _read(path, Cluster)


def read_all_clusters(output_dir: Path) -> list[Listed]:
    """Read ``clusters.tsv``; visits without clusters are not in it."""
    path = output_dir / f"{CLUSTERS}.tsv"
    grouped: dict[_Owner, list[Cluster]] = {}
    for owner, cluster in zip(_read(path, _Owner), _read(path, Cluster), strict=True):
        grouped.setdefault(owner, []).append(cluster)
    return [owner.list(clusters) for owner, clusters in grouped.items()]


def read_control_clusters(folder: Path) -> list[ControlCluster]:
    """Read ``control_clusters.tsv`` of a training set."""
    return _read(folder / CONTROL_CLUSTERS, ControlCluster)


def read_control_maps(folder: Path) -> list[ControlMap]:
    """Read ``control_maps.tsv`` of a training set."""
    return _read(folder / CONTROL_MAPS, ControlMap)


def read_curve(output_dir: Path) -> list[CurvePoint]:
    """Read ``detection_curve.tsv``."""
    return _read(output_dir / f"{CURVE}.tsv", CurvePoint)


def read_tests(output_dir: Path) -> list[McNemarTest]:
    """Read ``detection_tests.tsv``."""
    return _read(output_dir / f"{TESTS}.tsv", McNemarTest)


def read_froc(output_dir: Path) -> list[FreePoint]:
    """Read ``detection_froc.tsv``."""
    return _read(output_dir / f"{FROC}.tsv", FreePoint)


def control_sum_scores(lines: Iterable[ControlCluster], detector: str) -> list[list[float]]:
    """Gather the scores of each control's clusters, one list a visit, as calibration wants them."""
    scores: dict[tuple[str, str | None], list[float]] = {}
    for line in lines:
        if line.detector == detector:
            own = scores.setdefault((line.participant_id, line.session_id), [])
            own += [] if line.sum_score is None else [line.sum_score]
    return list(scores.values())


def control_findings(lines: Iterable[ControlCluster], training_set: str) -> list[Finding]:
    """Give what curves need of each control: all of its clusters, by detector; no lesion."""
    marks: dict[tuple[str, str, str | None], list[Mark]] = {}
    for line in lines:
        own = marks.setdefault((line.detector, line.participant_id, line.session_id), [])
        if line.rank is not None and line.sum_score is not None:
            own.append(Mark(line.rank, line.sum_score))
    return [
        Finding(
            training_set,
            detector,
            who.removeprefix("sub-"),
            None if session is None else session.removeprefix("ses-"),
            0,
            tuple(own),
        )
        for (detector, who, session), own in marks.items()
    ]


def describe_clusters(controls: str = "") -> Dictionary:
    """Explain the columns of a cluster table, in their order.

    ``controls`` says how many ``expected_in_control`` rests on; empty if that is not known.
    """
    return _resting_on(controls, read_dictionary("clusters"))


def describe_clusters_in_t1w(controls: str = "") -> Dictionary:
    """Explain the columns of a cluster table in the space of the T1w, as describe_clusters does."""
    return _resting_on(controls, read_dictionary("clusters_in_t1w"))


def describe_all_clusters(controls: str = "") -> Dictionary:
    """Explain the columns of ``clusters.tsv``, as describe_clusters does."""
    dictionary = _explain("visits", "training_sets", "detectors", "clusters")
    return _resting_on(controls, dictionary)


def describe_control_clusters() -> Dictionary:
    """Explain the columns of ``control_clusters.tsv``, in their order."""
    return _explain("visits", "detectors", "control_clusters")


def describe_control_maps() -> Dictionary:
    """Explain the columns of ``control_maps.tsv``, in their order."""
    return _explain("visits", "detectors", "control_maps")


def describe_curve() -> Dictionary:
    """Explain the columns of ``detection_curve.tsv``, in their order."""
    return _explain("training_sets", "detectors", "units", "detection_curve")


def describe_tests() -> Dictionary:
    """Explain the columns of ``detection_tests.tsv``, in their order."""
    dictionary = read_dictionary("units", "detection_tests")
    for column, entry in _explain("training_sets", "detectors").items():
        for number in (1, 2):
            dictionary[f"{column}_{number}"]["Levels"] = entry["Levels"]
    return dictionary


def describe_froc() -> Dictionary:
    """Explain the columns of ``detection_froc.tsv``, in their order."""
    return _explain("training_sets", "detectors", "units", "detection_froc")


def _explain(*names: str) -> Dictionary:
    """Read a dictionary with the column ``detector``, whose levels are all detectors."""
    dictionary = read_dictionary(*names)
    dictionary["detector"]["Levels"] = {
        name: detector.score for name, detector in DETECTORS.items()
    }
    return dictionary


def _resting_on(controls: str, dictionary: Dictionary) -> Dictionary:
    """Say how many controls ``expected_in_control`` rests on."""
    told = f". Number of these controls: {controls}" if controls else ""
    entry = dictionary["expected_in_control"]
    entry["Description"] = str(entry["Description"]).replace("{controls}", told)
    return dictionary


def _who(visit: Listed) -> Line:
    session = None if visit.session is None else f"ses-{visit.session}"
    return {"participant_id": f"sub-{visit.participant}", "session_id": session}


def _read(path: Path, kind: Callable[..., Row]) -> list[Row]:
    columns = get_type_hints(kind)
    rows = []
    for number, line in enumerate(read_tsv(path), 2):
        try:
            rows.append(kind(**{name: _value(line[name], columns[name]) for name in columns}))
        except KeyError as error:
            raise UnusableDataError(
                f"{path}: line {number} has no {error}; run the group level again"
            ) from error
        except ValueError as error:
            raise UnusableDataError(
                f"{path}: line {number} cannot be read ({error}); run the group level again"
            ) from error
    return rows


def _value(cell: str, annotation: object) -> object:
    """Read a cell as the field it is for."""
    choices = get_args(annotation)
    if cell == MISSING and NoneType in choices:
        return None
    kind = choices[0] if choices else annotation
    return kind(cell) if kind in (int, float) else cell  # type: ignore[operator]
