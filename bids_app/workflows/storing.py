"""Preprocessed images are checked, and stored so that nodes can map them into memory."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from nipype.pipeline.engine import Node, Workflow

from bids_app.interfaces.volumes import StoreVolumes


@dataclass(frozen=True)
class Stored:
    """Volumes of one visit as :class:`StoreVolumes` writes them, and a digest of their content."""

    participant: str
    folder: Path
    sha256: str


@dataclass(frozen=True)
class StoragePlan:
    """Images of a visit that are to be stored, and the folder that gets them.

    Parameters
    ----------
    name : str
        Letters, digits and underscores; another one for each.
    participant, session : str, str or None
        Labels.
    volumes : mapping
        Name → image in 0..1.
    real : sequence of str
        Names of those that must be measurements.
    brain_mask : Path
        On the same grid.
    folder : Path
        Gets the volumes.
    coverage : Path or None
        What the PET covers, if that is to be known; that of a synthetic one is all.
    """

    name: str
    participant: str
    session: str | None
    volumes: Mapping[str, Path]
    real: Sequence[str]
    brain_mask: Path
    folder: Path
    coverage: Path | None = None


def init_storing_wf(
    plans: Sequence[StoragePlan],
    *,
    shape: tuple[int, int, int],
    affine: Sequence[Sequence[float]],
    name: str = "storing_wf",
) -> Workflow:
    """Check the images of all visits, and write them so that they can be mapped.

    Parameters
    ----------
    plans : sequence of StoragePlan
        One a visit.
    shape, affine : sequence
        Of the run's grid; in mm, RAS+.
    """
    workflow = Workflow(name)
    for plan in plans:
        store = StoreVolumes(
            volumes={key: str(path) for key, path in plan.volumes.items()}, real=list(plan.real),
            brain_mask=str(plan.brain_mask), participant=plan.participant,
            session="" if plan.session is None else plan.session, shape=shape,
            affine=[list(row) for row in affine], folder=str(plan.folder),
            coverage="" if plan.coverage is None else str(plan.coverage),
        )  # fmt: skip
        workflow.add_nodes([Node(store, name=f"store_{plan.name}", mem_gb=1)])
    return workflow
