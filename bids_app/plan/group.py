"""From people to the images that detectors are trained on and applied to: sets, folds, names."""

import re
import zlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from bids_app.derivatives.find import Preprocessed
from bids_app.derivatives.paths import coverage_path, entities_of
from bids_app.derivatives.sidecars import Space
from bids_app.detection.card import Control
from bids_app.errors import UnusableDataError, UsageError
from bids_app.imaging.volume import Grid
from bids_app.workflows.detection import DetectorFold, StoredImage
from bids_app.workflows.training import StoragePlan

FEWEST = 2  # controls that a fold is trained on: pairs are of two
VOLUMES = "pictures"  # folder of stored volumes, in the work folder


@dataclass(frozen=True)
class Synthetic:
    """A synthetic PET, and the generator that its sidecar names, which has not seen the subject.

    Parameters
    ----------
    path : Path
        The image.
    generator, sha256 : str
        Name of the generator, and the SHA-256 of its weights; empty if they differ by fold.
    trained_on, intended_use : str
        What its card says, as the sidecar has it; empty if that does not tell.
    """

    path: Path
    generator: str
    sha256: str
    trained_on: str = ""
    intended_use: str = ""


@dataclass(frozen=True)
class Participant:
    """One visit of someone: its images, a real PET and a synthetic one where there are.

    Parameters
    ----------
    visit : Preprocessed
        T1w and brain on the run's grid.
    pet : Path or None
        Real.
    synthetic : Synthetic or None
        Predicted from the T1w.
    """

    visit: Preprocessed
    pet: Path | None
    synthetic: Synthetic | None

    @property
    def label(self) -> str:
        """The participant's label."""
        return self.visit.subject

    @property
    def session(self) -> str | None:
        """The session of the PET, or of the T1w where there is none."""
        return self.visit.session if self.pet is None else entities_of(self.pet).get("ses")


@dataclass(frozen=True)
class StoredSubject:
    """A participant, and the stored PETs."""

    participant: Participant
    real: StoredImage | None
    synthetic: StoredImage | None


@dataclass(frozen=True)
class GroupPlan:
    """What all training sets of a run of the group level have in common.

    Parameters
    ----------
    output_dir, work_dir : Path
        The derivative dataset; intermediate files.
    space, grid : Space, Grid
        Of all images.
    dataset : str
        Name or DOI of the raw dataset.
    folds : int
        That controls are dealt out to.
    seed : int
        Of all randomness.
    versions : mapping
        Name → version of what computes.
    """

    output_dir: Path
    work_dir: Path
    space: Space
    grid: Grid
    dataset: str
    folds: int
    seed: int
    versions: Mapping[str, str]


def _name(path: Path, kind: str) -> str:
    stem = path.name.partition("_space-")[0]
    safe = re.sub(r"[^0-9A-Za-z]", lambda found: "_" if found[0] in "-_" else "__", stem)
    return f"{kind}_{safe}"


def plan_storage(
    group_plan: GroupPlan, people: Iterable[Participant], *, synthetic: bool
) -> list[StoragePlan]:
    """Name the folders that the PETs of people are stored in.

    Parameters
    ----------
    group_plan : GroupPlan
        The run.
    people : iterable of Participant
        Controls and patients.
    synthetic : bool
        Whether synthetic PETs are wanted, too.
    """
    plans = {}  # by name: two PETs of a visit have one synthetic PET
    for subject in people:
        wanted = [] if subject.pet is None else [("real", subject.pet, subject.session)]
        if synthetic and subject.synthetic is not None:
            wanted.append(("synthetic", subject.synthetic.path, subject.visit.session))
        for kind, path, session in wanted:
            name = _name(path, kind)
            plans[name] = StoragePlan(
                name,
                subject.label,
                session,
                {"pet": path},
                ("pet",) if kind == "real" else (),
                subject.visit.brain_mask,
                group_plan.work_dir / VOLUMES / name,
                coverage_path(path) if kind == "real" else None,
            )
    return list(plans.values())


def join_stored(one: Participant, stored: Mapping[str, StoredImage]) -> StoredSubject:
    """Join a participant with what was stored of it; what could not be stored is None."""
    made = None if one.synthetic is None else stored.get(_name(one.synthetic.path, "synthetic"))
    real = None if one.pet is None else stored.get(_name(one.pet, "real"))
    if real is not None and made is not None:
        real = StoredImage(real.name, real.folder, real.sha256, made)
    return StoredSubject(one, real, made)


@dataclass(frozen=True)
class TrainingImage:
    """An image that detectors are trained on, and whose."""

    participant: Participant
    image: StoredImage
    synthetic: bool


def choose_training_images(
    training_set: str, controls: Sequence[StoredSubject], synthetic_controls: str
) -> list[TrainingImage]:
    """Choose what a training set holds.

    Parameters
    ----------
    training_set : {"real", "hybrid", "synthetic"}
        Real PETs, both, or synthetic ones.
    controls : sequence of StoredSubject
        All.
    synthetic_controls : {"t1w-only", "all"}
        Whose synthetic PET is taken: that of controls without a real one, or of all.

    Raises
    ------
    UnusableDataError
        If a kind of image that the set needs is not there at all.
    """
    real = [TrainingImage(c.participant, c.real, False) for c in controls if c.real is not None]
    made = [
        TrainingImage(c.participant, c.synthetic, True)
        for c in controls
        if c.synthetic is not None and (synthetic_controls == "all" or c.participant.pet is None)
    ]
    if training_set != "synthetic" and not real:
        raise UnusableDataError(
            f"training set {training_set}: no control has a real PET; run the participant level "
            "on some, or choose --training-set synthetic"
        )
    if training_set != "real" and not made:
        raise UnusableDataError(
            f"training set {training_set}: no control without a real PET has a synthetic one; run "
            "the participant level on such, or choose --synthetic-controls all"
        )
    parts = {"real": real, "hybrid": [*real, *made], "synthetic": made}
    return parts[training_set]


def refuse_folds(folds: int, controls: int) -> None:
    """Refuse a number of folds that so many controls cannot be dealt out to.

    Raises
    ------
    UsageError
        If there are fewer than two folds.
    UnusableDataError
        If there are fewer controls than folds.
    """
    if folds < FEWEST:
        raise UsageError(f"--folds {folds}: leaving controls out needs at least {FEWEST}")
    if controls < folds:
        raise UnusableDataError(
            f"{controls} control(s) with a PET are fewer than --folds {folds}; "
            "choose fewer folds, or add controls"
        )


def deal(controls: Sequence[StoredSubject], folds: int, seed: int) -> dict[str, int]:
    """Deal controls out to folds: those with a real PET evenly, then those without.

    Returns
    -------
    dict
        Label → the fold that leaves this control out, from 1.

    Raises
    ------
    UsageError, UnusableDataError
        As :func:`refuse_folds`.
    """
    real = sorted({control.participant.label for control in controls if control.real is not None})
    others = sorted({control.participant.label for control in controls} - set(real))
    refuse_folds(folds, len(real) + len(others))
    random = np.random.default_rng(seed)
    order = [part[k] for part in (real, others) for k in random.permutation(len(part))]
    return {label: place % folds + 1 for place, label in enumerate(order)}


def split(
    trained: Sequence[TrainingImage],
    controls: Sequence[StoredSubject],
    dealt: Mapping[str, int],
    folds: int,
    seed: int,
) -> list[DetectorFold]:
    """Say for each fold what it is trained on, and whom it holds out.

    Parameters
    ----------
    trained : sequence of Trained
        The training set.
    controls : sequence of StoredSubject
        Whose real PETs are scored by the fold that leaves them out, in the training set or not.
    dealt : mapping
        As :func:`deal` gives it.
    folds, seed : int
        How many; of all randomness.

    Raises
    ------
    UnusableDataError
        If a fold is left with fewer than two controls to train on.
    """
    parts = []
    for number in range(1, folds + 1):
        chosen = [model for model in trained if dealt[model.participant.label] != number]
        people = {one.participant.label for one in chosen}
        held_out = [
            control.real
            for control in controls
            if control.real is not None and dealt[control.participant.label] == number
        ]
        if len(people) < FEWEST:
            raise UnusableDataError(
                f"fold {number} has {len(people)} control(s) to train on, and needs {FEWEST}; add "
                "controls, or choose more --folds"
            )
        images = [one.image for one in chosen]
        parts.append(DetectorFold(number, images, held_out, seed_of(seed, number)))
    return parts


def seed_of(seed: int, fold: int) -> int:
    """Derive the seed of one fold from that of the run."""
    sequence = np.random.SeedSequence([seed, zlib.crc32(b"encoder"), fold])
    return int(sequence.generate_state(1)[0])


def list_training_controls(
    trained: Sequence[TrainingImage], dealt: Mapping[str, int]
) -> tuple[Control, ...]:
    """Tell what detectors were trained on, as their card does."""
    told = []
    for model in trained:
        made = model.participant.synthetic if model.synthetic else None
        session = model.participant.visit.session if model.synthetic else model.participant.session
        told.append(
            Control(
                participant=model.participant.label,
                session=session,
                synthetic=model.synthetic,
                generator="" if made is None else made.generator,
                generator_sha256="" if made is None else made.sha256,
                fold=dealt[model.participant.label],
            )
        )
    return tuple(told)
