"""Detectors as graphs: folds and slabs are nodes, fitted or applied; and what is made of scores.

From scores come anomaly maps and clusters, on the template and on the T1w.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from nipype.interfaces.utility import IdentityInterface, Merge
from nipype.pipeline.engine import Node, Workflow

from bids_app.derivatives.paths import sidecar_path
from bids_app.detection.detectors import DETECTORS
from bids_app.detection.distribution import REAL, SYNTHETIC
from bids_app.interfaces.anatomy import CarryLabels, Resample
from bids_app.interfaces.derivatives import SaveFile
from bids_app.interfaces.detection import (
    ApplyNorm,
    ApplySlab,
    CompareSynthetic,
    FitNorm,
    FitSlab,
    KeepClusters,
    LocateClusters,
    MapAnomalies,
    PackControls,
    TrainEncoder,
)
from bids_app.workflows.execution import Output, label_nodes, save_all_node, save_node
from bids_app.workflows.training import Fold, StoredImage, digests_of, folders_of

PACKED = "ocsvm/controls.safetensors"


@dataclass(frozen=True)
class Fitting:
    """How detectors are fitted, and applied.

    Parameters
    ----------
    encoder : mapping
        As :func:`bids_app.detection.card.spec_to_dict` gives it.
    nu : float
        Of the one-class SVM.
    slabs : sequence of (int, int)
        First slice of each, and the one after its last.
    fwhm : float
        Smoothing before voxels are compared by a norm, in mm.
    direction : {"hypo", "hyper", "both"}
        What scores higher.
    covariates : mapping
        Label → numbers of each participant, as :mod:`bids_app.detection.covariates` has them; empty
        where none are taken out.
    atlas : Path or None
        Regions in the template's space, by which synthetic PET is compared with real PET.
    checks : Path
        Folder that gets what comes of that, ``fold-K.json``; for this app alone.
    threads : int
        Of a node.
    mem_gb : float
        Of a node that works on a slab.
    """

    encoder: Mapping[str, object]
    nu: float
    slabs: Sequence[tuple[int, int]]
    fwhm: float
    direction: str
    covariates: Mapping[str, Sequence[float]]
    atlas: Path | None
    checks: Path
    threads: int
    mem_gb: float

    def rows_of(self, images: Sequence[StoredImage]) -> list[list[float]]:
        """List the covariates of those that images are of; nothing where none are taken out."""
        if not self.covariates:
            return []
        return [list(self.covariates[image.participant]) for image in images]


@dataclass(frozen=True)
class Applied:
    """Detectors that were fitted before.

    Parameters
    ----------
    folder : Path
        Of the detectors.
    members : sequence of sequence of int
        For each fold, which of the training set's controls it was trained on.
    sha256 : str
        Of the file of the controls' images.
    covariates : sequence of sequence of float
        Of the training set's controls; none where none are taken out.
    """

    folder: Path
    members: Sequence[Sequence[int]]
    sha256: str
    covariates: Sequence[Sequence[float]] = ()

    @property
    def folds(self) -> list[Fold]:
        """Folds that nobody is trained on, or held out from, any more."""
        return [Fold(number, (), ()) for number in range(1, len(self.members) + 1)]


def init_detector_wf(
    detector: str,
    controls: Sequence[StoredImage],
    folds: Sequence[Fold],
    patients: Sequence[StoredImage],
    fitting: Fitting,
    *,
    applied: Applied | None = None,
) -> Workflow:
    """Fit a detector by its method, :func:`init_ocsvm_wf` or :func:`init_norm_wf`, or apply it.

    Parameters
    ----------
    detector : str
        A key of ``DETECTORS``; the workflow is named after it.
    controls : sequence of StoredImage
        The training set; those of each fold are among them.
    folds : sequence of Fold
        In order.
    patients : sequence of StoredImage
        Scored by every fold, before the controls it leaves out.
    fitting : Fitting
        How.
    applied : Applied, optional
        Detectors that were fitted before; what only fitting needs is not used.

    Inputs
    ------
    brain
        What is analysed.
    """
    factories: dict[str, Callable[..., Workflow]] = {
        "svm": partial(init_ocsvm_wf, controls),
        "norm": partial(init_norm_wf, detector),
    }
    factory = factories[DETECTORS[detector].method]
    return factory(folds, patients, fitting, applied, name=f"{detector}_wf")


def init_ocsvm_wf(
    controls: Sequence[StoredImage],
    folds: Sequence[Fold],
    patients: Sequence[StoredImage],
    fitting: Fitting,
    applied: Applied | None = None,
    *,
    name: str = "ocsvm_wf",
) -> Workflow:
    """Score by one one-class SVM a voxel, slab by slab, and an encoder, both of each fold.

    Nodes ``scores_K`` give the scores of all slabs of fold K. Where encoders and SVMs are trained,
    ``files`` gives what makes the detector, in the order of :func:`ocsvm_files`.

    Parameters
    ----------
    controls, folds, patients, fitting, applied
        As :func:`init_detector_wf` has them.

    Inputs
    ------
    brain
        What is analysed.
    """
    workflow = Workflow(name)
    inputnode = Node(IdentityInterface(["brain"]), name="inputnode")
    names = ocsvm_files(len(folds), len(fitting.slabs))
    if applied is None:
        pack = Node(
            PackControls(
                controls=folders_of(controls),
                digests=digests_of(controls),
                channels=fitting.encoder.get("channels", 1),
            ),
            name="pack",
            mem_gb=1,
        )
        files = Node(Merge(len(names)), name="files", run_without_submitting=True)
        workflow.connect([(pack, files, [("packed", "in1")])])
    places = {control.name: place for place, control in enumerate(controls)}
    for place, fold in enumerate(folds):
        start = 1 + place * (1 + len(fitting.slabs))  # of its names
        scored = [*patients, *fold.validation]
        common = {
            "threads": fitting.threads,
            "direction": fitting.direction,
            "scored": folders_of(scored),
            "scored_digests": digests_of(scored),
            "scored_covariates": fitting.rows_of(scored),
        }
        if applied is None:
            train = _encoder_node(fold, fitting)
            workflow.connect(
                [
                    (inputnode, train, [("brain", "brain")]),
                    (train, files, [("encoder", f"in{start + 1}")]),
                ]
            )
            common |= {
                "nu": fitting.nu,
                "members": [places[control.name] for control in fold.training],
                "digests": digests_of(fold.training),
                "covariates": fitting.rows_of(fold.training),
                **_compared(fold),
                "compared_covariates": fitting.rows_of(_compared_images(fold)),
            }
        else:
            common |= {
                "encoder": str(applied.folder / names[start]),
                "packed": str(applied.folder / PACKED),
                "members": list(applied.members[place]),
                "digests": [applied.sha256],
                "covariates": [list(applied.covariates[m]) for m in applied.members[place]]
                if applied.covariates
                else [],
            }
        merge = _merge_scores(fold.number, len(fitting.slabs))
        for number, (first, last) in enumerate(fitting.slabs, start=1):
            if applied is None:
                slab = FitSlab(first=first, last=last, **common)
            else:
                voxels = str(applied.folder / names[start + number])
                slab = ApplySlab(first=first, last=last, voxels=voxels, **common)
            node = Node(
                slab,
                name=f"slab_{fold.number}_{number}",
                n_procs=fitting.threads,
                mem_gb=fitting.mem_gb,
            )
            label_nodes(node, step=f"one-class SVMs of fold {fold.number}, slab {number}")
            workflow.connect(
                [
                    (inputnode, node, [("brain", "brain")]),
                    (node, merge, [("scores", f"in{number}")]),
                ]
            )
            if applied is None:
                workflow.connect(
                    [
                        (pack, node, [("packed", "packed")]),
                        (train, node, [("encoder", "encoder")]),
                        (node, files, [("voxels", f"in{start + number + 1}")]),
                    ]
                )
    for fold in folds:
        _connect_check(workflow, inputnode, fold, fitting)
    return workflow


def _connect_check(workflow: Workflow, inputnode: Node, fold: Fold, fitting: Fitting) -> None:
    if not fold.compared:
        return
    check = init_check_wf(fold, fitting)
    train = workflow.get_node(f"encoder_{fold.number}")
    workflow.connect(
        [
            (inputnode, check, [("brain", "inputnode.brain")]),
            (train, check, [("encoder", "inputnode.encoder")]),
        ]
    )
    for number in range(1, len(fitting.slabs) + 1):
        slab = workflow.get_node(f"slab_{fold.number}_{number}")
        workflow.connect([(slab, check, [("unsigned", f"unsigned.in{number}")])])


def _compared_images(fold: Fold) -> list[StoredImage]:
    return [*fold.validation, *fold.compared] if fold.compared else []


def _compared(fold: Fold) -> dict[str, object]:
    images = _compared_images(fold)
    return {"compared": folders_of(images), "compared_digests": digests_of(images)}


def init_check_wf(fold: Fold, fitting: Fitting) -> Workflow:
    """Compare synthetic PET with held-out real PET, as one fold of one-class SVMs sees both.

    Parameters
    ----------
    fold : Fold
        Whom it holds out, and synthetic PET that is compared.
    fitting : Fitting
        Slabs, regions, and where the result goes.

    Inputs
    ------
    encoder
        Of the fold.
    brain
        What is analysed.
    """
    inputnode = Node(IdentityInterface(["encoder", "brain"]), name="inputnode")
    unsigned = Node(Merge(len(fitting.slabs)), name="unsigned", run_without_submitting=True)
    compare = CompareSynthetic(
        **_compared(fold),
        kinds=[REAL] * len(fold.validation) + [SYNTHETIC] * len(fold.compared),
        fold=fold.number,
        slabs=list(fitting.slabs),
        atlas="" if fitting.atlas is None else str(fitting.atlas),
    )
    check = Node(compare, name="compare", mem_gb=2)
    path = fitting.checks / f"fold-{fold.number}.json"
    save = Node(SaveFile(out_file=str(path)), name="save")
    workflow = Workflow(f"check_{fold.number}_wf")
    workflow.connect(
        [
            (inputnode, check, [("encoder", "encoder"), ("brain", "brain")]),
            (unsigned, check, [("out", "unsigned")]),
            (check, save, [("checked", "in_file")]),
        ]
    )
    label_nodes(check, step=f"synthetic PET compared with real PET, fold {fold.number}")
    label_nodes(workflow, step="", fatal=False)
    return workflow


def _encoder_node(fold: Fold, fitting: Fitting) -> Node:
    encoder = TrainEncoder(
        controls=folders_of(fold.training),
        digests=digests_of(fold.training),
        spec=dict(fitting.encoder),
        seed=fold.seed,
        threads=1,  # of so small a network they would wait for one another
    )
    train = Node(encoder, name=f"encoder_{fold.number}", mem_gb=2)
    label_nodes(train, step=f"encoder of fold {fold.number}")
    return train


def _merge_scores(fold: int, pieces: int) -> Node:
    return Node(Merge(pieces), name=f"scores_{fold}", run_without_submitting=True)


def ocsvm_files(folds: int, slabs: int) -> list[str]:
    """Name the files of the detector in its folder.

    Examples
    --------
    >>> ocsvm_files(1, 1)[:2]
    ['ocsvm/controls.safetensors', 'ocsvm/fold-1/encoder.safetensors']
    """
    names = [PACKED]
    for fold in range(1, folds + 1):
        names.append(f"ocsvm/fold-{fold}/encoder.safetensors")
        names += [f"ocsvm/fold-{fold}/voxels-{k:02}.safetensors" for k in range(1, slabs + 1)]
    return names


def norm_files(detector: str, folds: int) -> list[str]:
    """Name the files of a detector that is a norm in the folder of detectors."""
    return [f"{detector}/fold-{fold}.safetensors" for fold in range(1, folds + 1)]


def _synthetic(detector: str, images: Sequence[StoredImage]) -> list[StoredImage]:
    if not DETECTORS[detector].synthetic:
        return []
    return [image.synthetic for image in images if image.synthetic is not None]


def init_norm_wf(
    detector: str,
    folds: Sequence[Fold],
    patients: Sequence[StoredImage],
    fitting: Fitting,
    applied: Applied | None = None,
    *,
    name: str,
) -> Workflow:
    """Score by what controls are like in each voxel, learned a fold at a time, or before.

    Nodes ``scores_K`` give the scores of fold K. Where norms are learned, ``files`` gives them.

    Parameters
    ----------
    detector, folds, patients, fitting, applied
        As :func:`init_detector_wf` has them; every image has its synthetic one, if the detector
        compares both.

    Inputs
    ------
    brain
        What is analysed.
    """
    workflow = Workflow(name)
    inputnode = Node(IdentityInterface(["brain"]), name="inputnode")
    files = Node(Merge(len(folds)), name="files", run_without_submitting=True)
    names = norm_files(detector, len(folds))
    for place, fold in enumerate(folds):
        scored = [*patients, *fold.validation]
        synthetic = _synthetic(detector, scored)
        common = {
            "detector": detector,
            "direction": fitting.direction,
            "fwhm": fitting.fwhm,
            "scored": folders_of(scored),
            "scored_synthetic": folders_of(synthetic),
            "scored_digests": digests_of([*scored, *synthetic]),
            "scored_covariates": fitting.rows_of(scored),
        }
        if applied is None:
            synthetic_controls = _synthetic(detector, fold.training)
            norm = FitNorm(
                controls=folders_of(fold.training),
                controls_synthetic=folders_of(synthetic_controls),
                digests=digests_of([*fold.training, *synthetic_controls]),
                covariates=fitting.rows_of(fold.training),
                **common,
            )
        else:
            norm = ApplyNorm(norm=str(applied.folder / names[place]), **common)
        node = Node(norm, name=f"norm_{fold.number}", mem_gb=2)
        label_nodes(node, step=f"norm of fold {fold.number}")
        merge = _merge_scores(fold.number, 1)
        workflow.connect(
            [(inputnode, node, [("brain", "brain")]), (node, merge, [("scores", "in1")])]
        )
        if applied is None:
            workflow.connect([(node, files, [("norm", f"in{place + 1}")])])
    return workflow


def files_of(detector: str, folds: int, slabs: int) -> list[str]:
    """Name the files of a detector in the folder of detectors, as its node ``files`` has them."""
    name_files = {
        "svm": partial(ocsvm_files, folds, slabs),
        "norm": partial(norm_files, detector, folds),
    }
    return name_files[DETECTORS[detector].method]()


def slabs_of(detector: str, fitting: Fitting) -> Sequence[tuple[int, int]]:
    """List the slabs whose scores a detector gives in each fold: a norm's is the whole volume."""
    whole = [(fitting.slabs[0][0], fitting.slabs[-1][1])]
    return {"svm": fitting.slabs, "norm": whole}[DETECTORS[detector].method]


def smoothing_of(detector: str, fwhm: float) -> float:
    """Say by how much the maps of a detector are smoothed, in mm: a norm smooths what it sees."""
    return fwhm if DETECTORS[detector].method == "svm" else 0.0


@dataclass(frozen=True)
class Clustering:
    """How clusters are found.

    Parameters
    ----------
    fwhm : float
        Smoothing of maps of one-class SVMs before, in mm; norms have smoothed what they compare.
    extent : float
        Share of the brain above the threshold.
    minimum_volume : float
        In mm³.
    max_clusters : int
        That are labelled.
    atlas, names : Path or None
        Label image on the grid, and the names of its labels.
    """

    fwhm: float
    extent: float
    minimum_volume: float
    max_clusters: int
    atlas: Path | None
    names: Path | None


@dataclass(frozen=True)
class ScoredImage:
    """An image that a detector scores, and where what is found in it goes.

    Parameters
    ----------
    training_set, detector : str
        What scores it.
    image : StoredImage
        A PET.
    row : int
        Where it stands in the scores of each fold that scores it.
    fold : int or None
        The fold that scores a control; None for a patient: all do.
    paths : mapping
        Results as :func:`bids_app.derivatives.detections.anomaly_paths` names them; of a patient,
        also ``t1w``, the grid of those that end in ``_in_t1w``, and ``template_to_t1w``.
    sidecars : mapping
        What the sidecars of images among these tell.
    clusters : Path
        All its clusters, JSON; a file for this app alone.
    lesions : Path or None
        Mask of its known lesions on the template's grid.
    places : Path or None
        Where clusters lie on the T1w, JSON, for this app alone; None for controls.
    """

    training_set: str
    detector: str
    image: StoredImage
    row: int
    fold: int | None
    paths: Mapping[str, Path]
    sidecars: Mapping[str, dict[str, object]]
    clusters: Path
    lesions: Path | None = None
    places: Path | None = None

    @property
    def label(self) -> str:
        """Whose it is, for people."""
        return f"sub-{self.image.participant}"

    @property
    def control(self) -> bool:
        """Whether it is a held-out control."""
        return self.fold is not None

    @property
    def sidecar_paths(self) -> list[Path]:
        """Sidecars of its images."""
        return [sidecar_path(self.paths[name]) for name in self.sidecars]

    @property
    def stale(self) -> list[Path]:
        """What an earlier run has told of it, and this one will tell again unless it fails."""
        if self.places is None:
            return [self.clusters]
        table = self.paths["table_in_t1w"]
        return [self.clusters, self.places, table, sidecar_path(table)]

    def output(self, name: str) -> Output:
        """Give a path, and what its sidecar tells."""
        return self.paths[name], self.sidecars[name]


def init_anomalies_wf(
    scored: ScoredImage,
    slabs: Sequence[tuple[int, int]],
    folds: int,
    clustering: Clustering,
    *,
    name: str,
) -> Workflow:
    """Lay out the anomaly map of one image, find its clusters, and put both in their places.

    Parameters
    ----------
    scored : ScoredImage
        The image.
    slabs : sequence of (int, int)
        Of the detector.
    folds : int
        That have scored it.
    clustering : Clustering
        How.

    Inputs
    ------
    scores
        Of all slabs of those folds.
    brain
        What is analysed.

    Outputs
    -------
    statmap
        The anomaly map.
    labels
        Clusters by rank.
    """
    inputnode = Node(IdentityInterface(["scores", "brain"]), name="inputnode")
    outputnode = Node(IdentityInterface(["statmap", "labels"]), name="outputnode")
    known = {"lesions": scored.lesions, "atlas": clustering.atlas, "names": clustering.names}
    anomalies = MapAnomalies(
        slabs=list(slabs) * folds,
        rows=[scored.row] * (len(slabs) * folds),
        folds=folds,
        image=str(scored.image.folder),
        digest=scored.image.sha256,
        fwhm=smoothing_of(scored.detector, clustering.fwhm),
        extent=clustering.extent,
        minimum_volume=clustering.minimum_volume,
        max_clusters=clustering.max_clusters,
        **{name: str(path) for name, path in known.items() if path is not None},
    )
    anomaly_map = Node(anomalies, name="map", mem_gb=1)
    saves = [save_node(scored.output(name), name) for name in ("statmap", "labels")]
    save_clusters = Node(SaveFile(out_file=str(scored.clusters)), name="save_clusters")
    workflow = Workflow(name)
    workflow.connect(
        [
            (inputnode, anomaly_map, [("scores", "scores"), ("brain", "brain")]),
            (anomaly_map, saves[0], [("statmap", "in_file")]),
            (anomaly_map, saves[1], [("labels", "in_file")]),
            (anomaly_map, save_clusters, [("clusters", "in_file")]),
            (anomaly_map, outputnode, [("statmap", "statmap"), ("labels", "labels")]),
        ]
    )
    return workflow


def init_on_t1w_wf(scored: ScoredImage, *, name: str) -> Workflow:
    """Carry anomaly map and clusters of a patient to the T1w's own grid: clinicians look there.

    Parameters
    ----------
    scored : ScoredImage
        The grid, and where results go.

    Inputs
    ------
    statmap
        The anomaly map on the template's grid.
    labels
        Clusters by rank, on the template's grid.
    """
    inputnode = Node(IdentityInterface(["statmap", "labels"]), name="inputnode")
    common = {
        "reference": str(scored.paths["t1w"]),
        "transforms": [str(scored.paths["template_to_t1w"])],
    }
    carry_map = Node(Resample(interpolation="linear", **common), name="carry_map", mem_gb=2)
    carry_labels = Node(
        Resample(interpolation="genericLabel", **common), name="carry_labels", mem_gb=2
    )
    both = Node(Merge(2), name="both", run_without_submitting=True)
    outputs = [scored.output("statmap_in_t1w"), scored.output("labels_in_t1w")]
    places = Node(LocateClusters(), name="locate", mem_gb=1)
    save_places = Node(SaveFile(out_file=str(scored.places)), name="save_places")
    workflow = Workflow(name)
    workflow.connect(
        [
            (inputnode, carry_map, [("statmap", "image")]),
            (inputnode, carry_labels, [("labels", "image")]),
            (carry_map, places, [("image", "statmap")]),
            (carry_labels, places, [("image", "labels")]),
            (places, save_places, [("places", "in_file")]),
            (carry_map, both, [("image", "in1")]),
            (carry_labels, both, [("image", "in2")]),
            (both, save_all_node(outputs, "save"), [("out", "in_files")]),
        ]
    )
    return workflow


def init_kept_wf(scored: Sequence[ScoredImage], kept: Sequence[int], *, name: str) -> Workflow:
    """Take clusters that are not kept out of the label images of patients, in their places.

    Parameters
    ----------
    scored : sequence of ScoredImage
        Patients.
    kept : sequence of int
        How many clusters of each stay.
    """
    workflow = Workflow(name)
    for image, number in zip(scored, kept, strict=True):
        labels = [str(image.paths[name]) for name in ("labels", "labels_in_t1w")]
        keep_clusters = KeepClusters(labels=labels, kept=number)
        node_name = f"{image.training_set}_{image.detector}_{image.image.name}"
        node = Node(keep_clusters, name=node_name, mem_gb=1)
        label_nodes(node, owner=image.image.participant, label=image.label, part=node_name)
        workflow.add_nodes([node])
    return workflow


def init_lesions_wf(
    mask: Path,
    reference: Path,
    transforms: Sequence[Path],
    output: Output,
    *,
    orientation: str = "",
    name: str,
) -> Workflow:
    """Carry the mask of known lesions to the template's grid, or to the T1w's own.

    Parameters
    ----------
    mask : Path
        On any grid of the T1w's space, or of the template's.
    reference : Path
        An image on the grid.
    transforms : sequence of Path
        From the one space to the other; none if the mask is there already.
    output : Output
        Where it goes.
    orientation : str
        Axis code that is vouched for where the mask's header has none.
    """
    carry = _carry_node(mask, reference, orientation, mem_gb=2)
    if transforms:
        carry.inputs.transforms = [str(path) for path in transforms]
    workflow = Workflow(name)
    workflow.connect([(carry, save_node(output, "lesions"), [("image", "in_file")])])
    return workflow


def init_atlas_wf(
    atlas: Path, reference: Path, output: Path, *, orientation: str = "", name: str
) -> Workflow:
    """Bring the labels of an atlas in the template's space onto the grid.

    Parameters
    ----------
    atlas : Path
        Label image.
    reference : Path
        An image on the grid.
    output : Path
        Where it goes.
    orientation : str
        Axis code that is vouched for where the header has none.
    """
    save = Node(SaveFile(out_file=str(output)), name="save")
    carry, workflow = _carry_node(atlas, reference, orientation), Workflow(name)
    workflow.connect([(carry, save, [("image", "in_file")])])
    return workflow


def _carry_node(labels: Path, reference: Path, orientation: str, mem_gb: float = 0.2) -> Node:
    carry = CarryLabels(
        image=str(labels),
        orientation=orientation,
        reference=str(reference),
        interpolation="genericLabel",
    )
    return Node(carry, name="carry", mem_gb=mem_gb)
