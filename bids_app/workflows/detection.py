"""Detectors as graphs: folds and slabs are nodes, fitted or applied; and what is made of scores.

From scores come anomaly maps and clusters, on the template and on the T1w.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from nipype.interfaces.utility import IdentityInterface, Merge
from nipype.pipeline.engine import Node, Workflow

from bids_app.detection.detectors import DETECTORS
from bids_app.interfaces.anatomy import CarryLabels, Resample
from bids_app.interfaces.derivatives import Output, SaveDerivatives, SaveFile, save_node
from bids_app.interfaces.detection import (
    ApplyNorm,
    ApplySlab,
    FitNorm,
    FitSlab,
    LocateClusters,
    MapAnomalies,
    PackControls,
    TrainEncoder,
)
from bids_app.workflows.execution import label_nodes

PACKED = "ocsvm/controls.safetensors"


@dataclass(frozen=True)
class StoredImage:
    """A PET as :class:`bids_app.interfaces.training.StoreVolumes` writes it.

    Parameters
    ----------
    name : str
        Letters, digits and underscores; another one for each.
    folder : Path
        Its volumes.
    sha256 : str
        Of their content.
    synthetic : StoredImage or None
        The synthetic PET of the same visit, where the detector compares both.
    """

    name: str
    folder: Path
    sha256: str
    synthetic: "StoredImage | None" = None


@dataclass(frozen=True)
class DetectorFold:
    """One fold: whom detectors are fitted to, and which controls they score beside the patients.

    Parameters
    ----------
    number : int
        From 1.
    controls : sequence of StoredImage
        That are trained on.
    held_out : sequence of StoredImage
        Real PET of controls that are not.
    seed : int
        Of all randomness.
    """

    number: int
    controls: Sequence[StoredImage]
    held_out: Sequence[StoredImage]
    seed: int


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
        Smoothing before voxels are compared, in mm.
    threads : int
        Of a node.
    mem_gb : float
        Of a node that works on a slab.
    """

    encoder: Mapping[str, object]
    nu: float
    slabs: Sequence[tuple[int, int]]
    fwhm: float
    threads: int
    mem_gb: float


def _folders(images: Sequence[StoredImage]) -> list[str]:
    return [str(image.folder) for image in images]


def _digests(images: Sequence[StoredImage]) -> list[str]:
    return [image.sha256 for image in images]


def _scored(images: Sequence[StoredImage]) -> dict[str, list[str]]:
    return {"scored": _folders(images), "scored_digests": _digests(images)}


def _trained(images: Sequence[StoredImage]) -> dict[str, list[str]]:
    return {"controls": _folders(images), "digests": _digests(images)}


def init_ocsvm_wf(
    controls: Sequence[StoredImage],
    folds: Sequence[DetectorFold],
    patients: Sequence[StoredImage],
    fitting: Fitting,
    *,
    name: str = "ocsvm_wf",
) -> Workflow:
    """Train an encoder a fold, and with it one one-class SVM a voxel, slab by slab.

    Nodes ``scores_K`` give the scores of all slabs of fold K, ``files`` what makes the detector,
    in the order of :func:`ocsvm_files`.

    Parameters
    ----------
    controls : sequence of StoredImage
        The training set; those of each fold are among them.
    folds : sequence of DetectorFold
        In order.
    patients : sequence of StoredImage
        Scored by every fold, before the controls it holds out.
    fitting : Fitting
        How.

    Inputs
    ------
    brain
        What is analysed.
    """
    workflow = Workflow(name)
    inputnode = Node(IdentityInterface(["brain"]), name="inputnode")
    pack = Node(PackControls(**_trained(controls)), name="pack", mem_gb=1)
    places = {control.name: place for place, control in enumerate(controls)}
    per_fold = 1 + len(fitting.slabs)
    files = Node(Merge(1 + len(folds) * per_fold), name="files", run_without_submitting=True)
    workflow.connect([(pack, files, [("packed", "in1")])])
    for place, fold in enumerate(folds):
        encoder = TrainEncoder(
            **_trained(fold.controls),
            spec=dict(fitting.encoder),
            seed=fold.seed,
            threads=1,  # of so small a network they would wait for one another
        )
        train = Node(encoder, name=f"encoder_{fold.number}", mem_gb=2)
        label_nodes(train, step=f"encoder of fold {fold.number}")
        merge = _merge_scores(fold.number, len(fitting.slabs))
        start = 2 + place * per_fold
        workflow.connect(
            [(inputnode, train, [("brain", "brain")]), (train, files, [("encoder", f"in{start}")])]
        )
        common = {
            "members": [places[control.name] for control in fold.controls],
            "digests": _digests(fold.controls),
            "nu": fitting.nu,
            "threads": fitting.threads,
            **_scored([*patients, *fold.held_out]),
        }
        for number, (first, last) in enumerate(fitting.slabs, start=1):
            fit = _slab_node(
                FitSlab(first=first, last=last, **common), fold.number, number, fitting
            )
            workflow.connect(
                [
                    (inputnode, fit, [("brain", "brain")]),
                    (pack, fit, [("packed", "packed")]),
                    (train, fit, [("encoder", "encoder")]),
                    (fit, merge, [("scores", f"in{number}")]),
                    (fit, files, [("voxels", f"in{start + number}")]),
                ]
            )
    return workflow


def _slab_node(interface: FitSlab | ApplySlab, fold: int, slab: int, fitting: Fitting) -> Node:
    node = Node(
        interface, name=f"slab_{fold}_{slab}", n_procs=fitting.threads, mem_gb=fitting.mem_gb
    )
    label_nodes(node, step=f"one-class SVMs of fold {fold}, slab {slab}")
    return node


def _norm_node(interface: FitNorm | ApplyNorm, fold: int) -> Node:
    node = Node(interface, name=f"norm_{fold}", mem_gb=2)
    label_nodes(node, step=f"norm of fold {fold}")
    return node


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
    folds: Sequence[DetectorFold],
    patients: Sequence[StoredImage],
    fitting: Fitting,
    *,
    name: str,
) -> Workflow:
    """Learn what controls are like in each voxel, a fold at a time.

    Nodes ``scores_K`` give the scores of fold K, ``files`` the norms.

    Parameters
    ----------
    detector : str
        Which, of those whose method is a norm.
    folds : sequence of DetectorFold
        In order; every image has its synthetic one, if the detector compares both.
    patients : sequence of StoredImage
        Scored by every fold, before the controls it holds out.
    fitting : Fitting
        How.

    Inputs
    ------
    brain
        What is analysed.
    """
    workflow = Workflow(name)
    inputnode = Node(IdentityInterface(["brain"]), name="inputnode")
    files = Node(Merge(len(folds)), name="files", run_without_submitting=True)
    for place, fold in enumerate(folds, start=1):
        made = _synthetic(detector, fold.controls)
        norm = FitNorm(
            detector=detector,
            fwhm=fitting.fwhm,
            controls=_folders(fold.controls),
            controls_synthetic=_folders(made),
            digests=_digests([*fold.controls, *made]),
            **_scored_both(detector, [*patients, *fold.held_out]),
        )
        fit = _norm_node(norm, fold.number)
        merge = _merge_scores(fold.number, 1)
        workflow.connect(
            [
                (inputnode, fit, [("brain", "brain")]),
                (fit, merge, [("scores", "in1")]),
                (fit, files, [("norm", f"in{place}")]),
            ]
        )
    return workflow


def _scored_both(detector: str, images: Sequence[StoredImage]) -> dict[str, list[str]]:
    made = _synthetic(detector, images)
    return {
        "scored": _folders(images),
        "scored_synthetic": _folders(made),
        "scored_digests": _digests([*images, *made]),
    }


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
    """

    folder: Path
    members: Sequence[Sequence[int]]
    sha256: str

    @property
    def folds(self) -> int:
        """How many folds there are."""
        return len(self.members)


def init_applied_ocsvm_wf(
    applied: Applied, patients: Sequence[StoredImage], fitting: Fitting, *, name: str = "ocsvm_wf"
) -> Workflow:
    """Score patients with encoders and one-class SVMs that were fitted before.

    Nodes ``scores_K`` give the scores of all slabs of fold K.

    Parameters
    ----------
    applied : Applied
        The detectors.
    patients : sequence of StoredImage
        Scored by every fold.
    fitting : Fitting
        How; what only fitting needs is not used.

    Inputs
    ------
    brain
        What is analysed.
    """
    workflow = Workflow(name)
    inputnode = Node(IdentityInterface(["brain"]), name="inputnode")
    packed, *names = ocsvm_files(applied.folds, len(fitting.slabs))
    files = iter(names)
    for fold, members in enumerate(applied.members, start=1):
        common = {
            **_scored(patients),
            "encoder": str(applied.folder / next(files)),
            "packed": str(applied.folder / packed),
            "members": list(members),
            "digests": [applied.sha256],
            "threads": fitting.threads,
        }
        merge = _merge_scores(fold, len(fitting.slabs))
        for number, (first, last) in enumerate(fitting.slabs, start=1):
            voxels = str(applied.folder / next(files))
            slab = ApplySlab(first=first, last=last, voxels=voxels, **common)
            apply = _slab_node(slab, fold, number, fitting)
            workflow.connect(
                [
                    (inputnode, apply, [("brain", "brain")]),
                    (apply, merge, [("scores", f"in{number}")]),
                ]
            )
    return workflow


def init_applied_norm_wf(
    detector: str, applied: Applied, patients: Sequence[StoredImage], fitting: Fitting, *, name: str
) -> Workflow:
    """Compare patients with controls that were learned from before.

    Nodes ``scores_K`` give the scores of fold K.

    Parameters
    ----------
    detector : str
        Which, of those whose method is a norm.
    applied : Applied
        The detectors.
    patients : sequence of StoredImage
        Scored by every fold.
    fitting : Fitting
        How; what only fitting needs is not used.

    Inputs
    ------
    brain
        What is analysed.
    """
    workflow = Workflow(name)
    inputnode = Node(IdentityInterface(["brain"]), name="inputnode")
    for fold, norm in enumerate(norm_files(detector, applied.folds), start=1):
        node = ApplyNorm(
            detector=detector,
            fwhm=fitting.fwhm,
            norm=str(applied.folder / norm),
            **_scored_both(detector, patients),
        )
        apply, merge = _norm_node(node, fold), _merge_scores(fold, 1)
        workflow.connect(
            [(inputnode, apply, [("brain", "brain")]), (apply, merge, [("scores", "in1")])]
        )
    return workflow


def init_fitted_wf(
    detector: str,
    controls: Sequence[StoredImage],
    folds: Sequence[DetectorFold],
    patients: Sequence[StoredImage],
    fitting: Fitting,
) -> Workflow:
    """Fit a detector by its method: :func:`init_ocsvm_wf` or :func:`init_norm_wf`.

    Parameters
    ----------
    detector : str
        A key of ``DETECTORS``; the workflow is named after it.
    controls, folds, patients, fitting
        As the method takes them.

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
    return factory(folds, patients, fitting, name=f"{detector}_wf")


def init_applied_wf(
    detector: str, applied: Applied, patients: Sequence[StoredImage], fitting: Fitting
) -> Workflow:
    """Apply a detector by its method: :func:`init_applied_ocsvm_wf` or the one of norms.

    Parameters
    ----------
    detector : str
        A key of ``DETECTORS``; the workflow is named after it.
    applied, patients, fitting
        As the method takes them.

    Inputs
    ------
    brain
        What is analysed.
    """
    factories: dict[str, Callable[..., Workflow]] = {
        "svm": init_applied_ocsvm_wf,
        "norm": partial(init_applied_norm_wf, detector),
    }
    factory = factories[DETECTORS[detector].method]
    return factory(applied, patients, fitting, name=f"{detector}_wf")


def files_of(detector: str, folds: int, slabs: int) -> list[str]:
    """Name the files of a detector in the folder of detectors, as its node ``files`` has them."""
    namers = {
        "svm": partial(ocsvm_files, folds, slabs),
        "norm": partial(norm_files, detector, folds),
    }
    return namers[DETECTORS[detector].method]()


def slabs_of(detector: str, fitting: Fitting) -> Sequence[tuple[int, int]]:
    """List the slabs whose scores a detector gives in each fold: a norm's is the whole volume."""
    whole = [(fitting.slabs[0][0], fitting.slabs[-1][1])]
    return {"svm": fitting.slabs, "norm": whole}[DETECTORS[detector].method]


@dataclass(frozen=True)
class Clustering:
    """How clusters are found.

    Parameters
    ----------
    extent : float
        Share of the brain above the threshold.
    minimum_volume : float
        In mm³.
    most : int
        That are labelled.
    atlas, names : Path or None
        Label image on the grid, and the names of its labels.
    """

    extent: float
    minimum_volume: float
    most: int
    atlas: Path | None
    names: Path | None


@dataclass(frozen=True)
class ScoredMaps:
    """An image that was scored, and where its results go.

    Parameters
    ----------
    image : StoredImage
        The image.
    row : int
        Where it stands in the scores of each fold that has scored it.
    lesions : Path or None
        Mask of its known lesions on the grid.
    statmap, labels : Output
        On the template's grid.
    clusters : Path
        All its clusters, JSON; a file for this app alone.
    """

    image: StoredImage
    row: int
    lesions: Path | None
    statmap: Output
    labels: Output
    clusters: Path


@dataclass(frozen=True)
class OnT1w:
    """Where the results go that are carried to the T1w of a patient.

    Parameters
    ----------
    t1w, template_to_t1w : Path
        The grid, and the transform.
    statmap, labels : Output
        The results.
    places : Path
        Where clusters lie there, JSON; a file for this app alone.
    """

    t1w: Path
    template_to_t1w: Path
    statmap: Output
    labels: Output
    places: Path


def init_anomalies_wf(
    scored: ScoredMaps,
    slabs: Sequence[tuple[int, int]],
    folds: int,
    clustering: Clustering,
    *,
    name: str,
) -> Workflow:
    """Lay out the anomaly map of one image, find its clusters, and put both in their places.

    Parameters
    ----------
    scored : Scored
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
        extent=clustering.extent,
        minimum_volume=clustering.minimum_volume,
        most=clustering.most,
        **{name: str(path) for name, path in known.items() if path is not None},
    )
    anomaly_map = Node(anomalies, name="map", mem_gb=1)
    saves = [save_node(scored.statmap, "statmap"), save_node(scored.labels, "labels")]
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


def init_on_t1w_wf(target: OnT1w, *, name: str) -> Workflow:
    """Carry anomaly map and clusters of a patient to the T1w's own grid: clinicians look there.

    Parameters
    ----------
    target : OnT1w
        The grid, and where results go.

    Inputs
    ------
    statmap
        The anomaly map on the template's grid.
    labels
        Clusters by rank, on the template's grid.
    """
    inputnode = Node(IdentityInterface(["statmap", "labels"]), name="inputnode")
    common = {"reference": str(target.t1w), "transforms": [str(target.template_to_t1w)]}
    carry_map = Node(Resample(interpolation="linear", **common), name="carry_map", mem_gb=2)
    carry_labels = Node(
        Resample(interpolation="genericLabel", **common), name="carry_labels", mem_gb=2
    )
    both = Node(Merge(2), name="both", run_without_submitting=True)
    outputs = [target.statmap, target.labels]
    save = SaveDerivatives(
        out_files=[str(output.path) for output in outputs],
        sidecar_files=[str(output.sidecar_path) for output in outputs],
        sidecars=[dict(output.sidecar) for output in outputs],
    )
    places = Node(LocateClusters(), name="locate", mem_gb=1)
    save_places = Node(SaveFile(out_file=str(target.places)), name="save_places")
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
            (both, Node(save, name="save"), [("out", "in_files")]),
        ]
    )
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
    """Carry the mask of known lesions to the template's grid.

    Parameters
    ----------
    mask : Path
        On any grid of the T1w's space, or of the template's.
    reference : Path
        An image on the grid.
    transforms : sequence of Path
        T1w to template; none if the mask is in its space already.
    output : Output
        Where it goes.
    orientation : str
        Axis code that is vouched for where the mask's header has none.
    """
    inputs = {"transforms": [str(path) for path in transforms]} if transforms else {}
    carry = Node(
        CarryLabels(
            image=str(mask),
            orientation=orientation,
            reference=str(reference),
            interpolation="genericLabel",
            **inputs,
        ),
        name="carry",
        mem_gb=2,
    )
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
    carry = Node(
        CarryLabels(
            image=str(atlas),
            orientation=orientation,
            reference=str(reference),
            interpolation="genericLabel",
        ),
        name="carry",
    )
    save = Node(SaveFile(out_file=str(output)), name="save")
    workflow = Workflow(name)
    workflow.connect([(carry, save, [("image", "in_file")])])
    return workflow
