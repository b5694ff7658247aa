"""Anomaly maps and clusters of the group level: their paths, sidecars and tables.

Each table has a data dictionary beside it. A missing table is read as an empty one. A reader that
is given ``faults`` reads as much as it can: see :func:`bids_app.derivatives.sidecars.read_rows`.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from bids_app.derivatives.description import KEY as VERSION
from bids_app.derivatives.find import (
    Preprocessed,
    is_left_over,
    spell_out,
    stored_fingerprint,
    t1w_of_pet,
    visit_of,
)
from bids_app.derivatives.paths import (
    FDG_LABEL,
    derivative_path,
    entities_of,
    resolution_label,
    uri_of,
)
from bids_app.derivatives.sidecars import (
    OF_T1W,
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
from bids_app.files import object_at, read_json, write_json, write_tsv
from bids_app.imaging.intensity import describe_scaling

DETECTORS_FOLDER = "detectors"
STATMAP = "_statmap.nii.gz"
STATISTIC = "t"  # stat- label of all maps; pybids ignores it and distinguishes maps by desc-
OWN = "T1w"  # space- label of the participant's own T1w
SCORED = "logs/group_scored.json"  # in the derivative dataset
_CARD = "DetectorCard"  # in a sidecar
DIRECTION = "Direction"  # in the sidecar of a map


def root_of(output_dir: Path, training_set: str, *, primary: bool) -> Path:
    """Return the root for maps of a training set; the primary one's go to participants' folders."""
    return output_dir if primary else output_dir / DETECTORS_FOLDER / training_set


def anomaly_paths(root: Path, pet: Path, detector: str, space: Space) -> dict[str, Path]:
    """Return the paths of the results of a detector for a PET.

    Parameters
    ----------
    root : Path
        Root from :func:`root_of`.
    pet : Path
        Preprocessed PET on the template's grid.
    detector : str
        Name of the detector.
    space : Space
        Grid of the template.

    Returns
    -------
    dict
        Paths by name. ``statmap``, ``labels`` and ``table`` are the anomaly map, the clusters by
        rank and their table on the template's grid; each also exists with ``_in_t1w``, on the grid
        of the T1w.
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
    """Return the paths of all results that belong to an anomaly map on the template's grid."""
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
    """Return the paths of the mean and SD of the controls' PET, which are template-level files.

    Parameters
    ----------
    root : Path
        Root from :func:`root_of`.
    space : Space
        Grid of the template.

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
    """Split the name of a map into the stem of its PET, the template's grid, and the detector."""
    stem, _, rest = statmap.name.partition("_space-")
    space, _, end = rest.partition("_stat-")
    return stem, space, end.removeprefix(f"{STATISTIC}_desc-").removesuffix(STATMAP)


def describe_card(
    output_dir: Path, folder: Path, *, dataset: str, version: str, sha256: str = ""
) -> Sidecar:
    """Describe the detector of a map by the location and content of its card.

    Parameters
    ----------
    output_dir, folder : Path
        Roots of the derivative dataset and of the detector, which may lie in it or elsewhere.
    dataset, version : str
        Dataset of its training controls, and version of the app that trained it.
    sha256 : str
        SHA-256 of the card, which contains those of all files of the detector; empty if the current
        run trains it: see :func:`sign`.
    """
    card = (folder / CARD).absolute()
    root = output_dir.absolute()
    inside = card.is_relative_to(root)
    uri = uri_of(card, root) if inside else card.as_uri()
    signature = {"SHA256": sha256} if sha256 else {}
    return {"URI": uri, "Dataset": dataset, "Version": version, **signature}


def sign(sidecar: Path, sha256: str) -> None:
    """Add the SHA-256 of the detector's card, once it is complete, to the sidecar of a map."""
    metadata = read_json(sidecar)
    write_json(sidecar, {**metadata, _CARD: {**object_at(metadata, _CARD), "SHA256": sha256}})


@dataclass(frozen=True)
class Origin:
    """Metadata that all anomaly maps of one detector share.

    Parameters
    ----------
    output_dir : Path
        Root of the derivative dataset.
    detector, training_set : str
        Detector, and training set on which it was trained.
    version : str
        Version of the app.
    card : dict
        Description of the detector's card, from :func:`describe_card`.
    direction : {"hypo", "hyper", "both"}
        Direction of change that scores higher.
    fwhm : float
        FWHM of the smoothing of the map, in mm; 0 for none.
    covariates : tuple of str
        Names of the covariates that were regressed out.
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
        """Return the BIDS URI of a result."""
        return uri_of(path, self.output_dir)

    def _common(self, sources: list[Path]) -> Sidecar:
        return {
            "Sources": [self.uri(path) for path in sources],
            "Detector": self.detector,
            "TrainingSet": self.training_set,
            VERSION: self.version,
            _CARD: self.card,
        }

    def statmap(self, pet: Path, space: Space) -> Sidecar:
        """Return the sidecar of an anomaly map on the template's grid."""
        meaning = DETECTORS[self.detector].statmap
        text = (
            f"Anomaly of FDG PET, more is more abnormal: {meaning}; {DIRECTIONS[self.direction]}. "
            "For research; not a diagnosis"
        )
        more: Sidecar = {"SmoothingFWHM": self.fwhm} if self.fwhm else {}
        more |= {"Covariates": list(self.covariates)} if self.covariates else {}
        made_with = stored_fingerprint(pet)  # that of its T1w: left-over PETs are not used
        more |= {OF_T1W: made_with} if made_with else {}
        return {
            "Description": text,
            **self._common([pet]),
            DIRECTION: self.direction,
            **more,
            "SkullStripped": True,
            **space.entries(),
        }

    def labels(self, statmap: Path, space: Space) -> Sidecar:
        """Return the sidecar of the label image of clusters on the template's grid."""
        text = "Clusters of the anomaly map; the value of a voxel is the rank of its cluster, or 0"
        return {"Description": text, **self._common([statmap]), **space.entries()}

    def in_t1w(self, metadata: Sidecar, path: Path, visit: Preprocessed) -> Sidecar:
        """Return the sidecar of a result resampled to the T1w's own grid, from its ``metadata``."""
        kept = {key: value for key, value in metadata.items() if key != "Resolution"}
        reference = self.uri(native_t1w(visit))
        sources = [self.uri(path), self.uri(template_to_t1w(visit))]
        return {**kept, "Sources": sources, "SpatialReference": reference}


def describe_control_averages(
    pets: Sequence[tuple[str, bool]],
    space: Space,
    *,
    controls: int,
    training_set: str,
    version: str,
    times_mean: float,
    covariates: Sequence[str],
) -> list[Sidecar]:
    """Return the sidecars of the mean and the SD of the PET on which detectors are trained.

    Parameters
    ----------
    pets : sequence of (str, bool)
        BIDS URI of each PET, and whether it is synthetic.
    space : Space
        Grid of the template.
    controls : int
        Number of controls; some may have both a real and a synthetic PET.
    training_set : str
        Training set to which the controls belong.
    version : str
        Version of the app.
    times_mean : float
        Scaling of PET: see :func:`bids_app.imaging.intensity.describe_scaling`.
    covariates : sequence of str
        Names of the covariates that were regressed out.
    """
    n_synthetic = sum(synthetic for _, synthetic in pets)
    text = f"over {len(pets)} FDG PET"
    text += f", of which {n_synthetic} are SYNTHETIC," if n_synthetic else ""
    text += f" of {controls} controls"
    text += f", with {', '.join(covariates)} as the controls' mean" if covariates else ""
    common: Sidecar = {
        "Sources": [uri for uri, _ in pets],
        "TrainingSet": training_set,
        "NumberOfControls": controls,
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
            "Description": f"{statistic} {text}; 0 outside the brain and where few PET have data",
            **common,
        }
        for statistic in CONTROL_AVERAGES.values()
    ]


def native_t1w(visit: Preprocessed) -> Path:
    """Return the path of the corrected T1w on its own grid."""
    return _beside(visit, "desc-preproc_T1w.nii.gz")


def native_brain(visit: Preprocessed) -> Path:
    """Return the path of the brain mask on the T1w's own grid."""
    return _beside(visit, "desc-brain_mask.nii.gz")


def template_to_t1w(visit: Preprocessed) -> Path:
    """Return the path of the transform from the template to the T1w."""
    return _beside(visit, f"from-{entities_of(visit.t1w)['space']}_to-T1w_mode-image_xfm.h5")


def t1w_to_template(visit: Preprocessed) -> Path:
    """Return the path of the transform from the T1w to the template."""
    return _beside(visit, f"from-T1w_to-{entities_of(visit.t1w)['space']}_mode-image_xfm.h5")


def lesions_in_template(visit: Preprocessed) -> Path:
    """Return the path of the mask of known lesions on the template's grid."""
    space, res = (entities_of(visit.t1w)[key] for key in ("space", "res"))
    return _beside(visit, f"space-{space}_res-{res}_label-L_mask.nii.gz")


def lesions_on_t1w(visit: Preprocessed) -> Path:
    """Return the path of the mask of known lesions on the T1w's own grid."""
    return _beside(visit, f"space-{OWN}_label-L_mask.nii.gz")


def _beside(visit: Preprocessed, ending: str) -> Path:
    return visit.t1w.with_name(f"{visit.t1w.name.partition('_space-')[0]}_{ending}")


Line = dict[str, object]
CLUSTERS = "clusters"
CURVE, TESTS, FROC = "detection_curve", "detection_tests", "detection_froc"
SYNTHETIC_CONTROLS = "synthetic_controls"
DICTIONARIES = {  # table → its dictionaries, in data/dictionaries
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
_PLACE = ("rank", "x", "y", "z")  # required in a line of clusters
_OWNER = ("participant_id", "training_set", "detector")
_UNIT = ("training_set", "detector", "unit")
_PLACED = ("x", "y", "z", "peak_x", "peak_y", "peak_z", "volume")  # differ between spaces


@dataclass(frozen=True)
class Listed:
    """Clusters of one visit.

    Parameters
    ----------
    participant : str
        Label, without ``sub-``.
    session : str or None
        Label, without ``ses-``.
    training_set, detector : str
        Training set and detector of the score map.
    clusters : tuple of Cluster
        Clusters by rank; there may be none.
    above_zero : float or None
        Share of the brain that scores above 0; None if unknown.
    """

    participant: str
    session: str | None
    training_set: str
    detector: str
    clusters: tuple[Cluster, ...]
    above_zero: float | None = None


@dataclass(frozen=True)
class ControlCluster:
    """Line of ``control_clusters.tsv``, with prefixed identifiers, as in the file.

    All fields from ``rank`` on are None for a control without clusters.
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
    """Line of ``control_maps.tsv``: the map of a held-out control by one detector.

    Parameters
    ----------
    participant_id, session_id, detector : str, str or None, str
        Identifiers with their prefixes, as in the file, and the name of the detector.
    above_zero : float or None
        Share of its brain that scores above 0; None if unknown.
    """

    participant_id: str
    session_id: str | None
    detector: str
    above_zero: float | None


def write_clusters_table(path: Path, clusters: Sequence[Cluster], controls: int) -> None:
    """Write the clusters of one score map by rank; without clusters, the table has no lines.

    Parameters
    ----------
    path : Path
        Path of the table.
    clusters : sequence of Cluster
        Clusters by rank.
    controls : int
        Number of controls on which ``expected_in_control`` is based.

    Raises
    ------
    ReadWriteError
        If a file cannot be written. The other writers in this module raise it as well.
    """
    write_table(path, describe("clusters", f"{controls}"), [vars(cluster) for cluster in clusters])
    _name_labels(path, clusters)


def _name_labels(path: Path, clusters: Sequence[Cluster]) -> None:
    """Write the BIDS lookup table of the label image beside it (``_dseg.tsv``)."""
    lines = [
        {"index": c.rank, "name": f"cluster {c.rank}, {c.region or 'outside of all regions'}"}
        for c in clusters
    ]
    target = path.with_name(path.name.replace("_clusters.", "_dseg."))
    write_tsv(target, ["index", "name"], lines)


def write_clusters_in_t1w(
    path: Path, clusters: Sequence[Cluster], places: Iterable[Place], controls: int
) -> None:
    """Write the clusters of one score map by rank, with their places on the T1w.

    Ranks, scores and other findings are those of ``clusters``. A cluster without a place, because
    no voxel of it was left after resampling, has a volume of 0.
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

    ``controls`` is the number of controls on which ``expected_in_control`` is based, by training
    set and detector.
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

    A control without clusters has one line without numbers, because it counts in every mean.
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
    """Write ``synthetic_controls.tsv``; if nothing was compared, remove that of an earlier run."""
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
        See :func:`bids_app.derivatives.sidecars.read_rows`. The other readers in this module raise
        them as well.
    """
    clusters = read_rows(path, Cluster, _PLACE, faults)
    ranked = [cluster for cluster in clusters if cluster.rank > 0]
    return sorted(ranked, key=lambda cluster: cluster.rank)


def read_all_clusters(output_dir: Path, faults: Faults | None = None) -> list[Listed]:
    """Read ``clusters.tsv``, which does not contain visits without clusters."""
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
    """Read ``synthetic_controls.tsv``, which does not exist if nothing was compared."""
    path = output_dir / f"{SYNTHETIC_CONTROLS}.tsv"
    needed = ("participant_id", "kind", "region", "mean_score", "above_zero")
    return read_rows(path, CheckedPet, needed, faults) if path.exists() else []


def control_sum_scores(lines: Iterable[ControlCluster], detector: str) -> list[list[float]]:
    """List the summed scores of each control's clusters, one list per visit, for calibration."""
    scores: dict[tuple[str, str | None], list[float]] = {}
    for line in lines:
        if line.detector == detector:
            sums = scores.setdefault((line.participant_id, line.session_id), [])
            sums += [] if line.sum_score is None else [line.sum_score]
    return list(scores.values())


def control_findings(lines: Iterable[ControlCluster], training_set: str) -> list[Finding]:
    """List the findings of each control for curves: all of its clusters, by detector; no lesion."""
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
    """Return the data dictionary of a table, with columns in order.

    Parameters
    ----------
    table : str
        Key of ``DICTIONARIES``.
    controls : str
        Number of controls on which ``expected_in_control`` is based; empty if unknown.
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
    """Remove the prefixes from identifiers of a table."""
    return participant.removeprefix("sub-"), (session if session else "").removeprefix("ses-")


@dataclass(frozen=True)
class Anomaly:
    """Score map of one detector for one PET in a derivative dataset.

    Parameters
    ----------
    subject, session : str
        Labels; ``session`` is empty if there is none.
    stem : str
        First part of the names of its files, which identifies the participant and the PET.
    training_set, detector : str
        Training set, empty if unknown, and detector.
    primary : bool
        Whether the training set is the one whose maps are stored with the participant's images.
    space : str
        Space of the template, as in file names: ``"MNI152NLin2009aSym_res-1"``.
    paths : mapping
        Paths of its files, not all of which need exist.
    held_out : bool
        Whether the participant is a control, scored by the fold that left it out.
    direction : str
        Direction of change that scores higher, a key of ``DIRECTIONS``; empty if unknown.
    clusters, own_clusters : tuple of Cluster
        Clusters by rank; and the clusters resampled to the participant's own T1w, with their places
        there.
    faults : tuple of str
        Sentences about missing or damaged tables.
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
        """Name of the PET: ``"sub-01, ses-02"``."""
        return spell_out(self.stem)


def detector_folders(output_dir: Path) -> list[Path]:
    """List the folders of the detectors, one per training set, by name."""
    return sorted(path for path in (output_dir / DETECTORS_FOLDER).glob("*") if path.is_dir())


def find_anomalies(
    output_dir: Path, subject: str, *, spaces: tuple[str, ...] = ()
) -> list[Anomaly]:
    """Find the score maps of a participant.

    Parameters
    ----------
    output_dir : Path
        Path of the derivative dataset.
    subject : str
        Label of the participant, without ``sub-``; ``"*"`` for everyone.
    spaces : tuple of str
        Spaces of the template, as in file names; maps in other spaces are skipped. If empty, all
        spaces are accepted.

    Returns
    -------
    list of Anomaly
        Score maps by PET, with the primary training set first.
    """
    roots = {"": output_dir, **{path.name: path for path in detector_folders(output_dir)}}
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
    """Return the paths of the T1w to which the PET of a map was aligned, and of its brain mask.

    ``native`` selects the participant's own space instead of the template. The files need not
    exist.
    """
    space = "" if native else f"_space-{anomaly.space}"
    subject_dir = output_dir / f"sub-{anomaly.subject}"
    t1w_paths = subject_dir.glob("**/anat/sub-*_desc-preproc_T1w.nii.gz")
    visits = {path.name.partition("_space-")[0].partition("_desc-")[0] for path in t1w_paths}
    home = t1w_of_pet(output_dir, anomaly.stem, visits)
    t1w_visit = visit_of(anomaly.stem) if home is None else home
    folder = subject_dir.joinpath(*t1w_visit.split("_")[1:], "anat")
    return (
        folder / f"{t1w_visit}{space}_desc-preproc_T1w.nii.gz",
        folder / f"{t1w_visit}{space}_desc-brain_mask.nii.gz",
    )


def is_outdated(output_dir: Path, anomaly: Anomaly) -> bool:
    """Return whether the images from which a map was made have been replaced since."""
    t1w, _ = backdrop_of(output_dir, anomaly, native=False)
    return is_left_over(anomaly.paths["statmap"], t1w)


def pets_of(output_dir: Path, anomaly: Anomaly, *, native: bool) -> tuple[Path, Path]:
    """Return the paths of the PET that was scored, and of the synthetic one of its T1w.

    ``native`` selects the participant's own space instead of the template. The files need not
    exist.
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

    In the space of the template, these are the masks of all sessions; with ``native``, those of the
    T1w to which the PET was aligned.
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
    """Score map of a subject: its visit, detector and path.

    Parameters
    ----------
    participant, session : str
        Labels; ``session`` is empty if there is none.
    training_set, detector : str
        Training set and detector that scored it.
    control : bool
        Whether the subject is a held-out control.
    path : str
        Path of the map, relative to the derivative dataset.
    """

    participant: str
    session: str
    training_set: str
    detector: str
    control: bool
    path: str


@dataclass(frozen=True)
class ScoredRun:
    """Record of the score maps of a run.

    Parameters
    ----------
    dataset : str
        Name or DOI of the raw dataset that was scored; empty if unknown.
    maps : sequence of ScoredSubject
        Score maps of patients and of held-out controls.
    grid : tuple of (str, sequence of float, float), or None
        Grid of the maps in the template's space: template, box in mm (RAS+), and resolution in mm,
        from the settings of the run; None if unknown.
    """

    dataset: str
    maps: Sequence[ScoredSubject]
    grid: tuple[str, Sequence[float], float] | None = None


_GRID = ("template", "bounding_box", "resolution")


def write_run(output_dir: Path, run: ScoredRun) -> None:
    """Write the record of a run's score maps, for its report and for later ones.

    Raises
    ------
    ReadWriteError
        If the record cannot be written.
    """
    grid = None if run.grid is None else dict(zip(_GRID, run.grid, strict=True))
    maps = [asdict(scored) for scored in run.maps]
    write_json(output_dir / SCORED, {"dataset": run.dataset, "grid": grid, "maps": maps})


def read_run(output_dir: Path) -> ScoredRun | None:
    """Read the record of the last run's score maps; None if it is missing or damaged."""
    try:
        record = read_json(output_dir / SCORED)
        maps = [ScoredSubject(**fields) for fields in record["maps"]]
        grid = record.get("grid")
        values = tuple(grid[key] for key in _GRID) if isinstance(grid, dict) else None
        return ScoredRun(str(record["dataset"]), maps, values)
    except (Mri2petError, KeyError, TypeError):
        return None


def maps_on_disk(output_dir: Path) -> list[ScoredSubject]:
    """List all maps in a derivative dataset, of any run."""
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
    """Return the record of the last run; without one, list all maps on disk instead."""
    run = read_run(output_dir)
    return ScoredRun("", maps_on_disk(output_dir)) if run is None else run
