"""Where anomaly maps and clusters of a visit go, and what stands beside them."""

from dataclasses import dataclass
from pathlib import Path

from bids_app.derivatives.paths import FDG_LABEL, derivative_path, entities_of, resolution_label
from bids_app.derivatives.preprocessed import Preprocessed
from bids_app.derivatives.sidecars import Sidecar, Space
from bids_app.derivatives.versions import KEY as VERSION
from bids_app.detection.card import CARD
from bids_app.files import read_json, write_json

DETECTORS = "detectors"
_CARD = "DetectorCard"  # in a sidecar
_MEANING = {
    "ocsvm": "minus the decision function of a one-class SVM on the latents of patches; above 0 "
    "lies outside the boundary of the controls it was trained on, as does much of the brain of a "
    "control it was not trained on",
    "zscore": "Crawford-Howell t of the uptake of controls minus this one's, after smoothing",
    "pseudonormal": "t of synthetic minus real PET, against that difference in controls",
}


@dataclass(frozen=True)
class AnomalyPaths:
    """Results of one detector on one PET.

    Parameters
    ----------
    statmap, labels, table : Path
        On the template's grid: anomaly map, clusters by rank, their table.
    statmap_in_t1w, labels_in_t1w, table_in_t1w : Path
        On the grid of the T1w.
    """

    statmap: Path
    labels: Path
    table: Path
    statmap_in_t1w: Path
    labels_in_t1w: Path
    table_in_t1w: Path


def root_of(output_dir: Path, training_set: str, *, primary: bool) -> Path:
    """Say where maps of a training set go: those of the primary one, to participants' folders."""
    return output_dir if primary else output_dir / DETECTORS / training_set


def anomaly_paths(root: Path, pet: Path, detector: str, space: Space) -> AnomalyPaths:
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
    """
    entities = entities_of(pet)
    own = {key: entities.get(key) for key in ("rec", "run")}
    grid = {"space": space.template, "res": resolution_label(space.resolution)}

    def path(suffix: str, extension: str, **labels: str) -> Path:
        return derivative_path(
            root, subject=entities["sub"], session=entities.get("ses"), datatype="pet",
            suffix=suffix, extension=extension,
            entities={"trc": FDG_LABEL, **own, **labels},
        )  # fmt: skip

    return AnomalyPaths(
        statmap=path("statmap", ".nii.gz", **grid, stat=detector),
        labels=path("dseg", ".nii.gz", **grid, desc=detector),
        table=path("clusters", ".tsv", **grid, desc=detector),
        statmap_in_t1w=path("statmap", ".nii.gz", space="T1w", stat=detector),
        labels_in_t1w=path("dseg", ".nii.gz", space="T1w", desc=detector),
        table_in_t1w=path("clusters", ".tsv", space="T1w", desc=detector),
    )


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
        meaning = _MEANING[self.detector]
        text = f"Anomaly of FDG PET, more is more abnormal: {meaning}. For research; no diagnosis"
        return {
            "Description": text, **self._common([pet]), "SkullStripped": True, **space.entries()
        }  # fmt: skip

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
        root, subject=visit.subject, session=visit.session, datatype="anat", suffix=suffix,
        extension=extension, entities=entities,
    )  # fmt: skip
