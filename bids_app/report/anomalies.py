"""Score maps of a participant on disk, what belongs to them, and the T1w they lie on."""

from dataclasses import dataclass
from pathlib import Path
from typing import Final

from bids_app.derivatives.preprocessed import t1w_of_pet
from bids_app.report.clusters import Cluster, read_clusters
from bids_app.report.detectors import FOLDER, name_of, rank_of
from bids_app.report.results import IMAGE, read_derivative

STATMAP: Final = f"_statmap{IMAGE}"
OWN: Final = "T1w"  # space- label of the participant's own T1w


@dataclass(frozen=True)
class Anomaly:
    """The score map of one detector for one PET.

    Parameters
    ----------
    subject, session : str
        Labels; ``session`` is empty where there is none.
    stem : str
        The first part of its files' names: who, and which PET.
    training_set, detector : str
        ``training_set`` is empty where it is not known.
    primary : bool
        Of the training set whose maps lie with the participant's images.
    space : str
        Of the template, as in file names: ``"MNI152NLin2009aSym_res-1"``.
    folder : Path
        Where its files are.
    held_out : bool
        One fold scored it, that left this participant out: a control's.
    clusters : tuple of Cluster
        By rank.
    own_clusters : tuple of Cluster
        Those that lie on the participant's own T1w, with their places there, by rank.
    faults : tuple of str
        What of its tables is missing or damaged.
    """

    subject: str
    session: str
    stem: str
    training_set: str
    detector: str
    primary: bool
    space: str
    folder: Path
    held_out: bool = False
    clusters: tuple[Cluster, ...] = ()
    own_clusters: tuple[Cluster, ...] = ()
    faults: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """Whose PET it is: ``"sub-01, ses-02"``."""
        return ", ".join(part for part in self.stem.split("_") if not part.startswith("trc-"))

    @property
    def title(self) -> str:
        """The detector and its training set."""
        trained = f", trained on {self.training_set}" if self.training_set else ""
        return name_of(self.detector) + trained

    @property
    def statmap(self) -> Path:
        """The map in the space of the template."""
        return self.folder / f"{self.stem}_space-{self.space}_stat-{self.detector}{STATMAP}"

    def path_in(self, output_dir: Path) -> str:
        """Give the path of the map inside the derivative dataset."""
        return self.statmap.relative_to(output_dir).as_posix()

    @property
    def labels(self) -> Path:
        """Its clusters there: the value of a voxel is the rank."""
        return self.folder / f"{self.stem}_space-{self.space}_desc-{self.detector}_dseg{IMAGE}"

    @property
    def own_statmap(self) -> Path:
        """The map in the space of the participant's T1w."""
        return self.folder / f"{self.stem}_space-{OWN}_stat-{self.detector}{STATMAP}"

    @property
    def own_labels(self) -> Path:
        """Its clusters there."""
        return self.folder / f"{self.stem}_space-{OWN}_desc-{self.detector}_dseg{IMAGE}"


@dataclass(frozen=True)
class Backdrop:
    """A T1w that a map is laid over, and the mask of its brain."""

    t1w: Path
    brain: Path


def find_anomalies(
    output_dir: Path, subject: str, *, spaces: tuple[str, ...] = ()
) -> tuple[Anomaly, ...]:
    """Gather the score maps of a participant.

    Parameters
    ----------
    output_dir : Path
        The derivative dataset.
    subject : str
        Its label, without ``sub-``; ``"*"`` for everyone.
    spaces : tuple of str
        Of the template, as in file names; maps in others are passed over. Empty: any.

    Returns
    -------
    tuple of Anomaly
        By PET; the primary training set first.
    """
    found = [
        _anomaly(output_dir, path, name)
        for name, root in _roots(output_dir)
        for path in sorted(root.glob(f"sub-{subject}/**/*{STATMAP}"))
        if f"_space-{OWN}_" not in path.name
    ]
    return tuple(
        sorted(
            (one for one in found if not spaces or one.space in spaces),
            key=lambda one: (one.stem, not one.primary, *rank_of(one.training_set, one.detector)),
        )
    )


def backdrop_of(output_dir: Path, anomaly: Anomaly, *, own: bool) -> Backdrop:
    """Find the T1w of an anomaly map: the one its PET was aligned to.

    Parameters
    ----------
    output_dir : Path
        The derivative dataset.
    anomaly : Anomaly
        The map.
    own : bool
        In the participant's own space, not in that of the template.

    Returns
    -------
    Backdrop
        Its files need not be there.
    """
    space = "" if own else f"_space-{anomaly.space}"
    home, folder = _home(output_dir, anomaly)
    return Backdrop(
        folder / f"{home}{space}_desc-preproc_T1w{IMAGE}",
        folder / f"{home}{space}_desc-brain_mask{IMAGE}",
    )


def lesions_of(output_dir: Path, anomaly: Anomaly) -> tuple[Path, ...]:
    """List the lesion masks of a participant in the space of an anomaly map."""
    pattern = f"sub-{anomaly.subject}_*space-{anomaly.space}_label-*_mask{IMAGE}"
    return tuple(sorted((output_dir / f"sub-{anomaly.subject}").glob(f"**/{pattern}")))


def _roots(output_dir: Path) -> list[tuple[str, Path]]:
    """List where maps lie, with the training set that a folder is named after."""
    folders = sorted(path for path in (output_dir / FOLDER).glob("*") if path.is_dir())
    return [("", output_dir), *((path.name, path) for path in folders)]


def _anomaly(output_dir: Path, path: Path, named: str) -> Anomaly:
    stem, _, rest = path.name.partition("_space-")
    space, _, end = rest.partition("_stat-")
    detector = end.removesuffix(STATMAP)
    table = path.with_name(f"{stem}_space-{space}_desc-{detector}_clusters.tsv")
    clusters, faults = read_clusters(output_dir, table.relative_to(output_dir).as_posix())
    own = path.with_name(f"{stem}_space-{OWN}_desc-{detector}_clusters.tsv")
    own_clusters, own_faults = (
        read_clusters(output_dir, own.relative_to(output_dir).as_posix())
        if own.exists()
        else ((), ())
    )
    told = read_derivative(path)
    entities = dict(part.partition("-")[::2] for part in stem.split("_"))
    return Anomaly(
        subject=entities.get("sub", ""),
        session=entities.get("ses", ""),
        stem=stem,
        training_set=named if named else told.text("TrainingSet"),
        detector=detector,
        primary=not named,
        space=space,
        folder=path.parent,
        held_out=isinstance(told.metadata.get("Fold"), int),
        clusters=clusters,
        own_clusters=own_clusters,
        faults=(*faults, *own_faults),
    )


def _home(output_dir: Path, anomaly: Anomaly) -> tuple[str, Path]:
    """Name the visit whose T1w the PET lies on, and the folder of its anatomy."""
    person = output_dir / f"sub-{anomaly.subject}"
    there = person.glob(f"**/anat/sub-*_desc-preproc_T1w{IMAGE}")
    visits = {path.name.partition("_space-")[0].partition("_desc-")[0] for path in there}
    own = "_".join(part for part in anomaly.stem.split("_") if part.startswith(("sub-", "ses-")))
    name = t1w_of_pet(output_dir, anomaly.stem, visits) or own
    return name, person.joinpath(*name.split("_")[1:], "anat")
