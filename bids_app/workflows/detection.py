"""Workflows of detectors, which are fitted or applied by fold and slab, and of their results.

The results are anomaly maps and clusters, in the space of the template and of the T1w.
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
from bids_app.interfaces.anatomy import Resample, ResampleLabels
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
    """Parameters of the fitting and application of detectors.

    Parameters
    ----------
    encoder : mapping
        Spec of the encoder; see :func:`bids_app.detection.card.spec_to_dict`.
    nu : float
        Nu of the one-class SVM.
    slabs : sequence of (int, int)
        First slice of each slab, and the one after its last.
    fwhm : float
        Smoothing of images before a norm compares voxels, in mm.
    direction : {"hypo", "hyper", "both"}
        Direction of uptake that scores higher.
    covariates : mapping
        Label → numbers of each participant; see :mod:`bids_app.detection.covariates`. Empty without
        adjustment.
    atlas : Path or None
        Atlas in the template's space, by whose regions synthetic PET is compared with real PET.
    checks : Path
        Folder for the results of that comparison, ``fold-K.json``; internal to this app.
    threads : int
        Number of threads per node.
    mem_gb : float
        Memory of a node that processes a slab.
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
        """List the covariates of the participants of images; empty without adjustment."""
        if not self.covariates:
            return []
        return [list(self.covariates[image.participant]) for image in images]


@dataclass(frozen=True)
class Applied:
    """Detectors that were fitted before.

    Parameters
    ----------
    folder : Path
        Folder of the detectors.
    members : sequence of sequence of int
        For each fold, indices of the controls of the training set that it was trained on.
    sha256 : str
        SHA-256 of the file of the controls' images.
    covariates : sequence of sequence of float
        Covariates of the training set's controls; empty without adjustment.
    """

    folder: Path
    members: Sequence[Sequence[int]]
    sha256: str
    covariates: Sequence[Sequence[float]] = ()

    @property
    def folds(self) -> list[Fold]:
        """Folds without training or held-out images."""
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
    """Build the workflow that fits or applies a detector.

    Depending on the method of the detector, see :func:`init_ocsvm_wf` or :func:`init_norm_wf`.

    Parameters
    ----------
    detector : str
        A key of ``DETECTORS``; the workflow is named after it.
    controls : sequence of StoredImage
        Training set, which includes the controls of each fold.
    folds : sequence of Fold
        Folds in order.
    patients : sequence of StoredImage
        Images scored by every fold, before the controls it leaves out.
    fitting : Fitting
        Parameters of fitting.
    applied : Applied, optional
        Detectors that were fitted before; arguments only needed for fitting are then ignored.

    Inputs
    ------
    brain
        Mask of the analysed brain.
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
    """Build a workflow that scores with one one-class SVM per voxel, slab by slab, for each fold.

    Each fold has its own encoder and SVMs. Node ``scores_K`` returns the scores of all slabs of
    fold K. If encoders and SVMs are trained, ``files`` returns the files of the detector, in the
    order of :func:`ocsvm_files`.

    Parameters
    ----------
    controls, folds, patients, fitting, applied
        See :func:`init_detector_wf`.

    Inputs
    ------
    brain
        Mask of the analysed brain.
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
        start = 1 + place * (1 + len(fitting.slabs))  # index of its first name
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
    """Build a workflow that compares synthetic with held-out real PET, as seen by a fold's SVMs.

    Parameters
    ----------
    fold : Fold
        Fold with its held-out images and the synthetic PET to compare.
    fitting : Fitting
        Slabs, regions, and folder of the result.

    Inputs
    ------
    encoder
        Encoder of the fold.
    brain
        Mask of the analysed brain.
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
        threads=1,  # more would wait for one another, with so small a network
    )
    train = Node(encoder, name=f"encoder_{fold.number}", mem_gb=2)
    label_nodes(train, step=f"encoder of fold {fold.number}")
    return train


def _merge_scores(fold: int, pieces: int) -> Node:
    return Node(Merge(pieces), name=f"scores_{fold}", run_without_submitting=True)


def ocsvm_files(folds: int, slabs: int) -> list[str]:
    """List the files of the detector by their paths in the folder of detectors.

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
    """List the files of a detector that is a norm by their paths in the folder of detectors."""
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
    """Build a workflow that scores by deviation from a norm of controls, fitted per fold or before.

    Node ``scores_K`` returns the scores of fold K. If norms are fitted, ``files`` returns them.

    Parameters
    ----------
    detector, folds, patients, fitting, applied
        See :func:`init_detector_wf`; every image has its synthetic one, if the detector compares
        both.

    Inputs
    ------
    brain
        Mask of the analysed brain.
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
    """List the files of a detector in its folder, in the order of its node ``files``."""
    name_files = {
        "svm": partial(ocsvm_files, folds, slabs),
        "norm": partial(norm_files, detector, folds),
    }
    return name_files[DETECTORS[detector].method]()


def slabs_of(detector: str, fitting: Fitting) -> Sequence[tuple[int, int]]:
    """List the slabs of a detector's scores in each fold; for a norm, it is the whole volume."""
    whole = [(fitting.slabs[0][0], fitting.slabs[-1][1])]
    return {"svm": fitting.slabs, "norm": whole}[DETECTORS[detector].method]


def smoothing_of(detector: str, fwhm: float) -> float:
    """Return the smoothing of a detector's maps in mm: 0 for a norm, which smooths its input."""
    return fwhm if DETECTORS[detector].method == "svm" else 0.0


@dataclass(frozen=True)
class Clustering:
    """Parameters of the search for clusters.

    Parameters
    ----------
    fwhm : float
        Smoothing of maps of one-class SVMs beforehand, in mm; norms smooth the images they compare.
    extent : float
        Share of the brain above the threshold.
    minimum_volume : float
        Minimum volume of a cluster in mm³.
    max_clusters : int
        Maximum number of labelled clusters.
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
    """Image scored by a detector, and the paths of its results.

    Parameters
    ----------
    training_set, detector : str
        Training set and detector that score it.
    image : StoredImage
        The PET.
    row : int
        Index of the image in the scores of each fold that scores it.
    fold : int or None
        Fold that scores a control; None for a patient, who is scored by all.
    paths : mapping
        Results by name, as in :func:`bids_app.derivatives.detections.anomaly_paths`; for a patient,
        also ``t1w``, the grid of those whose names end in ``_in_t1w``, and ``template_to_t1w``.
    sidecars : mapping
        Contents of the sidecars of images among these results.
    clusters : Path
        All its clusters, JSON; a file internal to this app.
    lesions : Path or None
        Mask of its known lesions on the template's grid.
    places : Path or None
        Locations of its clusters in the T1w, JSON, internal to this app; None for controls.
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
        """Participant as shown to users."""
        return f"sub-{self.image.participant}"

    @property
    def control(self) -> bool:
        """Whether the participant is a held-out control."""
        return self.fold is not None

    @property
    def sidecar_paths(self) -> list[Path]:
        """Sidecars of its images."""
        return [sidecar_path(self.paths[name]) for name in self.sidecars]

    @property
    def stale(self) -> list[Path]:
        """Results of an earlier run that this one rewrites unless it fails.

        The map in the template's space stays if a new one fails, with all that belongs to it there;
        in the T1w's space, an old map beside a new one in the template's would pass for its copy.
        A control has neither that nor a table, unless an earlier run took it for a patient.
        """
        tables = [self.paths["table_in_t1w"], *([self.paths["table"]] if self.control else [])]
        paths = [self.paths["statmap_in_t1w"], self.paths["labels_in_t1w"], *tables]
        names = [table.with_name(table.name.replace("_clusters.", "_dseg.")) for table in tables]
        internal = [self.clusters, *([] if self.places is None else [self.places])]
        return [*internal, *paths, *names, *map(sidecar_path, paths)]

    def output(self, name: str) -> Output:
        """Return the path of a result, and the contents of its sidecar."""
        return self.paths[name], self.sidecars[name]


def init_anomalies_wf(
    scored: ScoredImage,
    slabs: Sequence[tuple[int, int]],
    folds: int,
    clustering: Clustering,
    *,
    name: str,
) -> Workflow:
    """Build a workflow that computes the anomaly map and clusters of one image, and saves both.

    Parameters
    ----------
    scored : ScoredImage
        The image.
    slabs : sequence of (int, int)
        Slabs of the detector.
    folds : int
        Number of folds that have scored it.
    clustering : Clustering
        Parameters of the search for clusters.

    Inputs
    ------
    scores
        Scores of all slabs of those folds.
    brain
        Mask of the analysed brain.

    Outputs
    -------
    statmap
        Anomaly map.
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
    """Build a workflow that resamples a patient's anomaly map and clusters to the native T1w grid.

    Clinicians read them there.

    Parameters
    ----------
    scored : ScoredImage
        Image with the paths of the grid and of the results.

    Inputs
    ------
    statmap
        Anomaly map on the template's grid.
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
    """Build a workflow that removes clusters that are not kept from patients' saved label images.

    Parameters
    ----------
    scored : sequence of ScoredImage
        Images of patients.
    kept : sequence of int
        Number of clusters of each to keep.
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
    """Build a workflow that resamples a mask of known lesions to the template's or the T1w's grid.

    Parameters
    ----------
    mask : Path
        Mask on any grid in the space of the T1w, or of the template.
    reference : Path
        Image on the target grid.
    transforms : sequence of Path
        Transforms from one space to the other; empty if the mask is in the target space already.
    output : Output
        Path of the result, with its sidecar.
    orientation : str
        Axis code confirmed by the user, for a mask whose header has none.
    """
    carry = _resample_labels_node(mask, reference, orientation, mem_gb=2)
    if transforms:
        carry.inputs.transforms = [str(path) for path in transforms]
    workflow = Workflow(name)
    workflow.connect([(carry, save_node(output, "lesions"), [("image", "in_file")])])
    return workflow


def init_atlas_wf(
    atlas: Path, reference: Path, output: Path, *, orientation: str = "", name: str
) -> Workflow:
    """Build a workflow that resamples the labels of an atlas in the template's space to the grid.

    Parameters
    ----------
    atlas : Path
        Label image.
    reference : Path
        Image on the grid.
    output : Path
        Path of the result.
    orientation : str
        Axis code confirmed by the user, for an atlas whose header has none.
    """
    save = Node(SaveFile(out_file=str(output)), name="save")
    carry, workflow = _resample_labels_node(atlas, reference, orientation), Workflow(name)
    workflow.connect([(carry, save, [("image", "in_file")])])
    return workflow


def _resample_labels_node(
    labels: Path, reference: Path, orientation: str, mem_gb: float = 0.2
) -> Node:
    carry = ResampleLabels(
        image=str(labels),
        orientation=orientation,
        reference=str(reference),
        interpolation="genericLabel",
    )
    return Node(carry, name="carry", mem_gb=mem_gb)
