"""Workflow of a training set: detectors, images they score, anomaly maps and clusters."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from nipype.interfaces.utility import IdentityInterface, Merge
from nipype.pipeline.engine import Node, Workflow

from bids_app.interfaces.detection import AgreeOnBrain, AverageControls, PublishDetector
from bids_app.workflows.detection import (
    Applied,
    Clustering,
    Fitting,
    ScoredImage,
    files_of,
    init_anomalies_wf,
    init_detector_wf,
    init_on_t1w_wf,
    slabs_of,
)
from bids_app.workflows.execution import Output, label_nodes, link, save_all_node
from bids_app.workflows.training import Fold, StoredImage, digests_of, folders_of

BRAIN_FILE = "brain_mask.nii.gz"


def init_training_set_wf(
    controls: Sequence[StoredImage],
    folds: Mapping[str, Sequence[Fold]],
    scored: Sequence[ScoredImage],
    fitting: Fitting,
    clustering: Clustering,
    *,
    folder: Path,
    card: Mapping[str, object],
    averages: Sequence[Output],
    share: float,
    name: str,
) -> Workflow:
    """Build a workflow that fits and publishes the detectors of a training set, and maps anomalies.

    Parameters
    ----------
    controls : sequence of StoredImage
        Controls that detectors are trained on.
    folds : mapping
        Detector → its folds, in order.
    scored : sequence of ScoredImage
        All images that these detectors score.
    fitting : Fitting
        Parameters of fitting.
    clustering : Clustering
        Parameters of the search for clusters.
    folder : Path
        Folder of the detectors.
    card : mapping
        Known fields of their card.
    averages : sequence of Output
        Paths of the mean and the SD of the controls' PET, with their sidecars.
    share : float
        Share of controls in whose brain an analysed voxel must be.
    """
    agree = AgreeOnBrain(controls=folders_of(controls), digests=digests_of(controls), share=share)
    brain = Node(agree, name="brain", mem_gb=1)
    label_nodes(brain, step="common brain")
    files = [BRAIN_FILE]
    for detector, folds_of_detector in folds.items():
        files += files_of(detector, len(folds_of_detector), len(fitting.slabs))
    publish = PublishDetector(card=dict(card), names=files, folder=str(folder))
    publishing = Node(publish, name="publish")
    label_nodes(publishing, step="writing of detectors")
    sources = Node(Merge(1 + len(folds)), name="sources", run_without_submitting=True)
    workflow = Workflow(name)
    workflow.connect(
        [(brain, sources, [("brain", "in1")]), (sources, publishing, [("out", "sources")])]
    )
    average = AverageControls(
        controls=folders_of(controls),
        digests=digests_of(controls),
        synthetic=sum(not image.real for image in controls),
        covariates=fitting.rows_of(controls),
    )
    averaging = Node(average, name="average", mem_gb=1)
    save = save_all_node(averages, name="save_average")
    label_nodes(averaging, fatal=False)
    label_nodes(save, fatal=False)
    workflow.connect([(brain, averaging, [("brain", "brain")])])
    workflow.connect([(averaging, save, [("images", "in_files")])])
    for place, (detector, folds_of_detector) in enumerate(folds.items(), start=2):
        images = [image for image in scored if image.detector == detector]
        patients = [image.image for image in images if not image.control]
        graph = init_detector_wf(detector, controls, folds_of_detector, patients, fitting)
        workflow.connect([(graph, sources, [("files.out", f"in{place}")])])
        _connect(
            workflow,
            brain,
            graph,
            images,
            folds=len(folds_of_detector),
            fitting=fitting,
            clustering=clustering,
        )
    return workflow


def init_applied_set_wf(
    applied: Applied,
    scored: Sequence[ScoredImage],
    fitting: Fitting,
    clustering: Clustering,
    *,
    name: str,
) -> Workflow:
    """Build a workflow that applies detectors trained before, and maps anomalies.

    Parameters
    ----------
    applied : Applied
        Detectors that were fitted before.
    scored : sequence of ScoredImage
        All images that they score.
    fitting : Fitting
        Parameters of the application of detectors.
    clustering : Clustering
        Parameters of the search for clusters.
    """
    brain = Node(IdentityInterface(["brain"]), name="brain")
    brain.inputs.brain = str(applied.folder / BRAIN_FILE)
    workflow, folds = Workflow(name), applied.folds
    for detector in dict.fromkeys(image.detector for image in scored):
        images = [image for image in scored if image.detector == detector]
        patients = [image.image for image in images]
        graph = init_detector_wf(detector, (), folds, patients, fitting, applied=applied)
        _connect(
            workflow, brain, graph, images, folds=len(folds), fitting=fitting, clustering=clustering
        )
    return workflow


def _connect(
    workflow: Workflow,
    brain: Node,
    graph: Workflow,
    images: Sequence[ScoredImage],
    *,
    folds: int,
    fitting: Fitting,
    clustering: Clustering,
) -> None:
    """Connect the brain to a detector, and to each image the scores of the folds that score it."""
    detector = images[0].detector
    slabs = slabs_of(detector, fitting)
    everyone = Node(Merge(folds), name=f"{detector}_scores", run_without_submitting=True)
    workflow.connect([(brain, graph, [("brain", "inputnode.brain")])])
    workflow.connect(
        [(graph, everyone, [(f"scores_{fold}.out", f"in{fold}")]) for fold in range(1, folds + 1)]
    )
    for image in images:
        count = 1 if image.control else folds
        name = f"{detector}_{image.image.name}"
        anomalies = init_anomalies_wf(image, slabs, count, clustering, name=f"{name}_wf")
        label_nodes(anomalies, owner=image.image.participant, label=image.label)
        source, field = (graph, f"scores_{image.fold}.out") if image.control else (everyone, "out")
        workflow.connect(
            [
                (source, anomalies, [(field, "inputnode.scores")]),
                (brain, anomalies, [("brain", "inputnode.brain")]),
            ]
        )
        if image.places is not None:
            carried = init_on_t1w_wf(image, name=f"{name}_t1w_wf")
            label_nodes(carried, owner=image.image.participant, label=image.label)
            link(workflow, anomalies, carried, statmap="statmap", labels="labels")
