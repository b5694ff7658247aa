"""A training set as a graph: detectors, what they score, anomaly maps and clusters."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from nipype.interfaces.utility import IdentityInterface, Merge
from nipype.pipeline.engine import Node, Workflow

from bids_app.interfaces.detection import AgreeOnBrain, PublishDetector
from bids_app.workflows.detection import (
    Applied,
    Clustering,
    DetectorFold,
    Fitting,
    OnT1w,
    ScoredMaps,
    StoredImage,
    files_of,
    init_anomalies_wf,
    init_applied_wf,
    init_fitted_wf,
    init_on_t1w_wf,
    slabs_of,
)
from bids_app.workflows.execution import label_nodes

BRAIN_FILE = "brain_mask.nii.gz"


@dataclass(frozen=True)
class Target:
    """An image that a detector scores.

    Parameters
    ----------
    scored : Scored
        The image, and where its results go.
    fold : int or None
        The fold that scores a control; None for a patient: all do.
    on_t1w : OnT1w or None
        Where results on the T1w's own grid go, if they are wanted.
    participant : str
        Label of whose image it is.
    """

    scored: ScoredMaps
    fold: int | None
    on_t1w: OnT1w | None
    participant: str


@dataclass(frozen=True)
class DetectorPlan:
    """One detector of a training set.

    Parameters
    ----------
    folds : sequence of DetectorFold
        In order.
    patients : sequence of StoredImage
        Scored by every fold, before the controls it holds out.
    targets : sequence of Target
        All that are scored.
    """

    folds: Sequence[DetectorFold]
    patients: Sequence[StoredImage]
    targets: Sequence[Target]


@dataclass(frozen=True)
class Publication:
    """Where the detectors of a training set go, and their card as far as it is known."""

    folder: Path
    card: Mapping[str, object]


def init_training_set_wf(
    controls: Sequence[StoredImage],
    detectors: Mapping[str, DetectorPlan],
    fitting: Fitting,
    clustering: Clustering,
    publication: Publication,
    *,
    share: float,
    name: str,
) -> Workflow:
    """Fit the detectors of a training set, publish them, and map what they find.

    Parameters
    ----------
    controls : sequence of StoredImage
        That detectors are trained on.
    detectors : mapping
        Name → plan.
    fitting : Fitting
        How detectors are fitted.
    clustering : Clustering
        How clusters are found.
    publication : Publication
        Where detectors go.
    share : float
        Of controls, whose brain a voxel that is analysed must be in.
    """
    agree = AgreeOnBrain(
        controls=[str(control.folder) for control in controls],
        digests=[control.sha256 for control in controls],
        share=share,
    )
    brain = Node(agree, name="brain", mem_gb=1)
    label_nodes(brain, step="common brain")
    fitted = {
        detector: init_fitted_wf(detector, controls, plan.folds, plan.patients, fitting)
        for detector, plan in detectors.items()
    }
    files = [BRAIN_FILE]
    for detector, plan in detectors.items():
        files += files_of(detector, len(plan.folds), len(fitting.slabs))
    publish = PublishDetector(
        card=dict(publication.card), names=files, folder=str(publication.folder)
    )
    publishing = Node(publish, name="publish")
    label_nodes(publishing, step="detectors written")
    sources = Node(Merge(1 + len(fitted)), name="sources", run_without_submitting=True)
    workflow = Workflow(name)
    workflow.connect(
        [(brain, sources, [("brain", "in1")]), (sources, publishing, [("out", "sources")])]
    )
    for place, (detector, graph) in enumerate(fitted.items(), start=2):
        workflow.connect(
            [
                (brain, graph, [("brain", "inputnode.brain")]),
                (graph, sources, [("files.out", f"in{place}")]),
            ]
        )
        plan, slabs = detectors[detector], slabs_of(detector, fitting)
        _connect_targets(
            workflow,
            brain,
            graph,
            plan.targets,
            detector=detector,
            folds=len(plan.folds),
            slabs=slabs,
            clustering=clustering,
        )
    return workflow


def init_applied_set_wf(
    applied: Applied,
    detectors: Mapping[str, DetectorPlan],
    fitting: Fitting,
    clustering: Clustering,
    *,
    name: str,
) -> Workflow:
    """Apply detectors that were trained before, and map what they find.

    Parameters
    ----------
    applied : Applied
        The detectors.
    detectors : mapping
        Name → plan; its folds are not used.
    fitting : Fitting
        How detectors are applied.
    clustering : Clustering
        How clusters are found.
    """
    brain = Node(IdentityInterface(["brain"]), name="brain")
    brain.inputs.brain = str(applied.folder / BRAIN_FILE)
    workflow = Workflow(name)
    for detector, plan in detectors.items():
        graph = init_applied_wf(detector, applied, plan.patients, fitting)
        workflow.connect([(brain, graph, [("brain", "inputnode.brain")])])
        _connect_targets(
            workflow,
            brain,
            graph,
            plan.targets,
            detector=detector,
            folds=applied.folds,
            slabs=slabs_of(detector, fitting),
            clustering=clustering,
        )
    return workflow


def _connect_targets(
    workflow: Workflow,
    brain: Node,
    graph: Workflow,
    targets: Sequence[Target],
    *,
    detector: str,
    folds: int,
    slabs: Sequence[tuple[int, int]],
    clustering: Clustering,
) -> None:
    """Give each image the scores of the folds that have scored it."""
    everyone = Node(Merge(folds), name=f"{detector}_scores", run_without_submitting=True)
    workflow.connect(
        [(graph, everyone, [(f"scores_{fold}.out", f"in{fold}")]) for fold in range(1, folds + 1)]
    )
    for target in targets:
        count = folds if target.fold is None else 1
        name = f"{detector}_{target.scored.image.name}"
        owner, label = target.participant, f"sub-{target.participant}"
        anomalies = init_anomalies_wf(target.scored, slabs, count, clustering, name=f"{name}_wf")
        label_nodes(anomalies, owner=owner, label=label)
        source, field = (
            (everyone, "out") if target.fold is None else (graph, f"scores_{target.fold}.out")
        )
        workflow.connect(
            [
                (source, anomalies, [(field, "inputnode.scores")]),
                (brain, anomalies, [("brain", "inputnode.brain")]),
            ]
        )
        if target.on_t1w is not None:
            carried = init_on_t1w_wf(target.on_t1w, name=f"{name}_t1w_wf")
            label_nodes(carried, owner=owner, label=label)
            fields = [(f"outputnode.{one}", f"inputnode.{one}") for one in ("statmap", "labels")]
            workflow.connect([(anomalies, carried, fields)])
