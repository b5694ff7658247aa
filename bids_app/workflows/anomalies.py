"""From scores to what a reader sees: anomaly maps and clusters, on the template and on the T1w."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from nipype.interfaces.utility import IdentityInterface, Merge
from nipype.pipeline.engine import Node, Workflow

from bids_app.interfaces.anomalies import LocateClusters, MapAnomalies
from bids_app.interfaces.derivatives import SaveDerivatives, SaveFile
from bids_app.interfaces.registration import CarryLabels, Resample
from bids_app.workflows.detection import Picture
from bids_app.workflows.outputs import Output, save_node


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
class Scored:
    """An image that was scored, and where its results go.

    Parameters
    ----------
    picture : Picture
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

    picture: Picture
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
    scored: Scored,
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
        slabs=list(slabs) * folds, rows=[scored.row] * (len(slabs) * folds), folds=folds,
        image=str(scored.picture.folder), digest=scored.picture.sha256,
        extent=clustering.extent, minimum_volume=clustering.minimum_volume, most=clustering.most,
        **{name: str(path) for name, path in known.items() if path is not None},
    )  # fmt: skip
    anomaly_map = Node(anomalies, name="map", mem_gb=1)
    saves = [save_node(scored.statmap, "statmap"), save_node(scored.labels, "labels")]
    save_clusters = Node(SaveFile(out_file=str(scored.clusters)), name="save_clusters")
    workflow = Workflow(name)
    workflow.connect([
        (inputnode, anomaly_map, [("scores", "scores"), ("brain", "brain")]),
        (anomaly_map, saves[0], [("statmap", "in_file")]),
        (anomaly_map, saves[1], [("labels", "in_file")]),
        (anomaly_map, save_clusters, [("clusters", "in_file")]),
        (anomaly_map, outputnode, [("statmap", "statmap"), ("labels", "labels")]),
    ])  # fmt: skip
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
    carry_labels = Node(Resample(interpolation="genericLabel", **common), name="carry_labels",
                        mem_gb=2)  # fmt: skip
    both = Node(Merge(2), name="both", run_without_submitting=True)
    outputs = [target.statmap, target.labels]
    save = SaveDerivatives(
        out_files=[str(one.path) for one in outputs],
        sidecar_files=[str(one.sidecar_path) for one in outputs],
        sidecars=[dict(one.sidecar) for one in outputs],
    )
    places = Node(LocateClusters(), name="locate", mem_gb=1)
    save_places = Node(SaveFile(out_file=str(target.places)), name="save_places")
    workflow = Workflow(name)
    workflow.connect([
        (inputnode, carry_map, [("statmap", "image")]),
        (inputnode, carry_labels, [("labels", "image")]),
        (carry_map, places, [("image", "statmap")]),
        (carry_labels, places, [("image", "labels")]),
        (places, save_places, [("places", "in_file")]),
        (carry_map, both, [("image", "in1")]),
        (carry_labels, both, [("image", "in2")]),
        (both, Node(save, name="save"), [("out", "in_files")]),
    ])  # fmt: skip
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
            image=str(atlas), orientation=orientation, reference=str(reference),
            interpolation="genericLabel",
        ),
        name="carry",
    )  # fmt: skip
    save = Node(SaveFile(out_file=str(output)), name="save")
    workflow = Workflow(name)
    workflow.connect([(carry, save, [("image", "in_file")])])
    return workflow
