"""Workflows for the cross-validation and training of generators."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from nipype.interfaces.utility import Merge
from nipype.pipeline.engine import Node, Workflow

from bids_app.interfaces.derivatives import SaveFile
from bids_app.interfaces.training import (
    PublishGenerator,
    ScoreBaselines,
    ScoreGenerator,
    StoreVolumes,
    TrainGenerator,
)
from bids_app.workflows.execution import Output, label_nodes, save_all_node

BASELINES = "baselines"  # scored beside the rows of Table 1


@dataclass(frozen=True)
class StoredImage:
    """Images of a visit, and the folder that :class:`StoreVolumes` stores them in.

    Parameters
    ----------
    name : str
        Unique name of letters, digits and underscores.
    participant, session : str, str or None
        Labels.
    volumes : mapping
        Name → image in 0..1.
    real : sequence of str
        Names of the volumes that must be measurements.
    brain_mask : Path
        Brain mask on the same grid.
    folder : Path
        Folder for the volumes.
    coverage : Path or None
        Mask of the voxels covered by the PET; None for a synthetic one, which covers all.
    sha256 : str
        SHA-256 of the volumes' content; empty before they are stored.
    synthetic : StoredImage or None
        Synthetic PET of the same visit, for a detector that compares both.
    stacked : bool
        Whether PET and T1w are stored as one array, too.
    """

    name: str
    participant: str
    session: str | None
    volumes: Mapping[str, Path]
    real: Sequence[str]
    brain_mask: Path
    folder: Path
    coverage: Path | None = None
    sha256: str = ""
    synthetic: "StoredImage | None" = None
    stacked: bool = False


def init_storing_wf(
    images: Sequence[StoredImage],
    *,
    shape: tuple[int, int, int],
    affine: Sequence[Sequence[float]],
    name: str = "storing_wf",
) -> Workflow:
    """Check the images of all visits, and write them as files that can be memory-mapped.

    Parameters
    ----------
    images : sequence of StoredImage
        Images, grouped by visit.
    shape, affine : sequence
        Shape and affine of the run's grid; in mm, RAS+.
    """
    workflow = Workflow(name)
    for image in images:
        store = StoreVolumes(
            volumes={key: str(path) for key, path in image.volumes.items()},
            real=list(image.real),
            brain_mask=str(image.brain_mask),
            participant=image.participant,
            session="" if image.session is None else image.session,
            shape=shape,
            affine=[list(row) for row in affine],
            folder=str(image.folder),
            coverage="" if image.coverage is None else str(image.coverage),
            stacked=image.stacked,
        )
        node = Node(store, name=f"store_{image.name}", mem_gb=1)
        label = f"sub-{image.participant}"
        label_nodes(node, owner=image.participant, label=label, part=image.name)
        workflow.add_nodes([node])
    return workflow


@dataclass(frozen=True)
class ComputeSettings:
    """Device, threads and files for training and scoring.

    Parameters
    ----------
    device : str
        A torch device.
    threads : int
        Number of threads that torch may use in one node.
    lpips_weights : Path or None
        Weights of LPIPS.
    lpips_sha256 : str
        SHA-256 of that file; empty if there is none.
    atlas : Path or None
        Regions in the space of the images, in which uptake is compared.
    """

    device: str
    threads: int
    lpips_weights: Path | None
    lpips_sha256: str
    atlas: Path | None = None

    def inputs(self) -> dict[str, object]:
        """Return the inputs common to all nodes."""
        gpu = self.device.startswith("cuda")
        return {"device": self.device, "threads": self.threads, "use_gpu": gpu}

    def scoring(self) -> dict[str, object]:
        """Return the additional inputs of nodes that score."""
        path = "" if self.lpips_weights is None else str(self.lpips_weights)
        atlas = "" if self.atlas is None else str(self.atlas)
        return {"lpips_weights": path, "lpips_sha256": self.lpips_sha256, "atlas": atlas}


@dataclass(frozen=True)
class Fold:
    """Training and validation data of one fold.

    Parameters
    ----------
    number : int
        Number of the fold, counted from 1.
    training, validation : sequence of StoredImage
        Images of different participants.
    seed : int
        Seed of all randomness of a detector; those of generators differ by row.
    compared : sequence of StoredImage
        Synthetic PET of participants not in ``training``, which are compared with the real PET of
        ``validation``.
    """

    number: int
    training: Sequence[StoredImage]
    validation: Sequence[StoredImage]
    seed: int = 0
    compared: Sequence[StoredImage] = ()

    @property
    def digests(self) -> list[str]:
        """Digests of the volumes that determine the fold's result."""
        return [*digests_of(self.training), "|", *digests_of(self.validation)]


@dataclass(frozen=True)
class ModelPlan:
    """Row of Table 1 to train, and the destinations of its results.

    Parameters
    ----------
    name : str
        Name of the row.
    spec : mapping
        Plain values returned by :func:`bids_app.synthesis.models.spec_to_dict`.
    seeds : sequence of int
        Seed of each fold, then that of the fit to all participants.
    checkpoints : sequence of Path
        Folder of each fold, then that of the fit to all participants.
    bases : sequence of str
        Digest of the data that the scores are based on, for each fold.
    records : sequence of Path
        Destination of the scores, for each fold.
    pets : sequence of sequence of Output
        Destinations of the synthetic PET of the visits left out, for each fold.
    card : mapping
        Card of the generator, as far as known before training.
    folder : Path
        Destination of the generator.
    overlap : bool
        Whether the synthetic PET is averaged over overlapping triplets.
    initial : Path or None
        Folder of a generator to fine-tune.
    initial_sha256 : str
        SHA-256 of its weights; empty if there is none.
    """

    name: str
    spec: Mapping[str, object]
    seeds: Sequence[int]
    checkpoints: Sequence[Path]
    bases: Sequence[str]
    records: Sequence[Path]
    pets: Sequence[Sequence[Output]]
    card: Mapping[str, object]
    folder: Path
    overlap: bool
    initial: Path | None = None
    initial_sha256: str = ""


def folders_of(images: Sequence[StoredImage]) -> list[str]:
    """List the folders of stored images."""
    return [str(image.folder) for image in images]


def digests_of(images: Sequence[StoredImage]) -> list[str]:
    """List the digests of stored images."""
    return [image.sha256 for image in images]


def _train(
    plan: ModelPlan,
    place: int,
    fold: str,
    visits: Fold,
    compute: ComputeSettings,
    *,
    fwhm: float,
    mem_gb: float,
) -> Node:
    train = TrainGenerator(
        model=plan.name,
        fold=fold,
        spec=dict(plan.spec),
        seed=plan.seeds[place],
        training=folders_of(visits.training),
        validation=folders_of(visits.validation),
        digests=visits.digests,
        kept_epochs=[],
        fwhm=fwhm,
        times_mean=plan.card["pet_times_mean"],
        checkpoints=str(plan.checkpoints[place]),
        initial="" if plan.initial is None else str(plan.initial),
        initial_sha256=plan.initial_sha256,
        **compute.inputs(),
    )
    node = Node(train, name=f"train_{fold}", n_procs=compute.threads, mem_gb=mem_gb)
    step = f"fold {visits.number}, training" if visits.number else "training on all"
    label_nodes(node, step=step)
    return node


def _score(plan: ModelPlan, place: int, fold: Fold, compute: ComputeSettings, fwhm: float) -> Node:
    score = ScoreGenerator(
        model=plan.name,
        fold=fold.number,
        spec=dict(plan.spec),
        fwhm=fwhm,
        overlap=plan.overlap,
        validation=folders_of(fold.validation),
        digests=fold.digests,
        basis=plan.bases[place],
        **compute.inputs(),
        **compute.scoring(),
    )
    return _score_node(score, fold, compute)


def _score_node(
    score: ScoreGenerator | ScoreBaselines, fold: Fold, compute: ComputeSettings
) -> Node:
    node = Node(score, name=f"score_{fold.number}", n_procs=compute.threads, mem_gb=2)
    label_nodes(node, step=f"fold {fold.number}, scores")
    return node


def init_model_wf(
    plan: ModelPlan,
    folds: Sequence[Fold],
    compute: ComputeSettings,
    *,
    fwhm: float,
    mem_gb: float,
    name: str,
) -> Workflow:
    """Cross-validate a row of Table 1, then train its generator on all participants.

    Each fold is trained, keeps the epoch with the best validation SSIM, and is scored on its
    left-out visits. The fit to all stops at the mean of the epochs kept by the folds.

    Parameters
    ----------
    plan : ModelPlan
        Row and destinations.
    folds : sequence of Fold
        Folds in order.
    compute : ComputeSettings
        Device, threads and files to use.
    fwhm : float
        Smoothing of the synthetic PET, in mm.
    mem_gb : float
        Memory needed by one training, in GB.
    """
    last, everyone = len(folds), [*folds[0].training, *folds[0].validation]
    everyone = sorted(everyone, key=lambda visit: visit.participant)
    train_all = _train(plan, last, "all", Fold(0, everyone, ()), compute, fwhm=fwhm, mem_gb=mem_gb)
    publish = PublishGenerator(
        card=dict(plan.card),
        folder=str(plan.folder),
        left_out=[folders_of(fold.validation) for fold in folds],
        volumes=folders_of(everyone),
    )
    publishing = Node(publish, name="publish", mem_gb=1)
    lists = {
        "kept_epoch": (train_all, "kept_epochs", last),
        "weights": (publishing, "fold_weights", last),
        "history": (publishing, "histories", last + 1),
        "records": (publishing, "records", last),
        "pets": (publishing, "pets", last),
    }
    merges = {
        field: Node(Merge(size), name=f"all_{field}", run_without_submitting=True)
        for field, (_, _, size) in lists.items()
    }
    workflow = Workflow(name)
    workflow.connect(
        [(merges[field], node, [("out", into)]) for field, (node, into, _) in lists.items()]
    )
    workflow.connect(
        [
            (train_all, merges["history"], [("history", f"in{last + 1}")]),
            (train_all, publishing, [("weights", "weights"), ("precision", "precision")]),
        ]
    )
    for place, fold in enumerate(folds):
        train = _train(plan, place, f"{fold.number}", fold, compute, fwhm=fwhm, mem_gb=mem_gb)
        score = _score(plan, place, fold, compute, fwhm)
        _connect_fold(workflow, train, score, plan, place)
        into = f"in{place + 1}"
        workflow.connect(
            [
                (train, merges["kept_epoch"], [("kept_epoch", into)]),
                (train, merges["weights"], [("weights", into)]),
                (train, merges["history"], [("history", into)]),
                (score, merges["records"], [("records", into)]),
                (score, merges["pets"], [("pets", into)]),
            ]
        )
    label_nodes(workflow, owner=plan.name, label=plan.name, part=plan.name)
    return workflow


def _connect_fold(
    workflow: Workflow, train: Node, score: Node, plan: ModelPlan, place: int
) -> None:
    number = place + 1
    save_pets = save_all_node(plan.pets[place], f"save_pets_{number}")
    save_records = Node(SaveFile(out_file=str(plan.records[place])), name=f"save_records_{number}")
    workflow.connect(
        [
            (train, score, [("weights", "weights")]),
            (score, save_pets, [("pets", "in_files"), ("sidecar", "measured")]),
            (score, save_records, [("records", "in_file")]),
        ]
    )


def init_baselines_wf(
    folds: Sequence[Fold],
    outputs: Sequence[Path],
    compute: ComputeSettings,
    *,
    bases: Sequence[str],
    name: str = "baselines_wf",
) -> Workflow:
    """Score the baselines that a generator must beat: the mean training PET, and the T1w itself.

    Parameters
    ----------
    folds : sequence of Fold
        Folds in order.
    outputs : sequence of Path
        Destination of the scores, for each fold.
    compute : ComputeSettings
        Device, threads and files to use.
    bases : sequence of str
        Digest of the data that the scores are based on, for each fold.
    """
    workflow = Workflow(name)
    for fold, output, basis in zip(folds, outputs, bases, strict=True):
        score = ScoreBaselines(
            model=BASELINES,
            fold=fold.number,
            training=folders_of(fold.training),
            validation=folders_of(fold.validation),
            digests=fold.digests,
            basis=basis,
            **compute.inputs(),
            **compute.scoring(),
        )
        node = _score_node(score, fold, compute)
        save = Node(SaveFile(out_file=str(output)), name=f"save_records_{fold.number}")
        workflow.connect([(node, save, [("records", "in_file")])])
    label_nodes(workflow, owner=BASELINES, label=BASELINES, part=BASELINES)
    return workflow
