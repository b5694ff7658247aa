"""Detectors as reports name and draw them: cards, lesions found, held-out controls."""

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from bids_app.derivatives.detections import DETECTORS_FOLDER
from bids_app.detection.detectors import DETECTORS, detector_of
from bids_app.detection.detectors import TRAINING_SETS as SETS
from bids_app.errors import Mri2petError
from bids_app.files import read_json
from bids_app.report.cards import UNKNOWN
from bids_app.report.charts import PALETTE
from bids_app.report.page import Cells, as_count, as_label, as_value, read_lines


@dataclass(frozen=True, order=True)
class DetectorKey:
    """A detector, and what it was trained on; sorted as they are shown."""

    place: tuple[int, str, int, str]
    training_set: str
    detector: str


def which(training_set: str, detector: str) -> DetectorKey:
    """Name a detector and what it was trained on."""
    return DetectorKey(rank_of(training_set, detector), training_set, detector)


def name_visit(participant: str, session: str) -> str:
    """Name a visit.

    Examples
    --------
    >>> name_visit("01", ""), name_visit("01", "02")
    ('sub-01', 'sub-01, ses-02')
    """
    return f"sub-{participant}" + f", ses-{session}" * bool(session)


def label_of(value: object, prefix: str) -> str:
    """Take a label without its prefix; empty where there is none.

    Examples
    --------
    >>> label_of("sub-01", "sub-"), label_of("01", "sub-"), label_of(None, "ses-")
    ('01', '01', '')
    """
    return as_label(None if value is None else str(value)).removeprefix(prefix)


def name_of(detector: str) -> str:
    """Give the name of a detector as a reader sees it."""
    return detector_of(detector).label


def title_of(training_set: str, detector: str) -> str:
    """Name a detector with its training set.

    Examples
    --------
    >>> title_of("hybrid", "ocsvm"), title_of("", "zscore")
    ('OC-SVM, hybrid', 'z score')
    """
    return name_of(detector) + f", {training_set}" * bool(training_set)


def in_order(names: Iterable[str], known: Iterable[str]) -> list[str]:
    """Put names in the order of those that are known, each once; others come after, by name.

    Examples
    --------
    >>> in_order(["synthetic", "mine", "real", "real"], SETS)
    ['real', 'synthetic', 'mine']
    """
    places = list(known)
    return sorted(
        {name for name in names if name},
        key=lambda name: (places.index(name) if name in places else len(places), name),
    )


def rank_of(training_set: str, detector: str) -> tuple[int, str, int, str]:
    """Say where a detector stands: training sets in their order, then detectors in theirs."""
    sets, kinds = list(SETS), list(DETECTORS)
    return (
        sets.index(training_set) if training_set in sets else len(sets),
        training_set,
        kinds.index(detector) if detector in kinds else len(kinds),
        detector,
    )


def colour_of(training_set: str, sets: Sequence[str]) -> str:
    """Give the colour of a training set: one a set, from the palette of Okabe and Ito."""
    places = in_order([*SETS, *sets], SETS)
    return (PALETTE[0], PALETTE[5], PALETTE[2], *PALETTE)[
        places.index(training_set) % (3 + len(PALETTE))
    ]


@dataclass(frozen=True)
class ControlMember:
    """A control that a detector was trained on.

    Parameters
    ----------
    participant, session : str
        Labels without ``sub-`` and ``ses-``; ``session`` is empty where there is none.
    synthetic : bool
        Its PET was predicted from its T1w.
    generator : str
        By what; empty for real PET.
    fold : str
        The one that left it out; empty if none did.
    """

    participant: str
    session: str
    synthetic: bool
    generator: str
    fold: str

    @property
    def visit(self) -> str:
        """Who it is: ``"sub-01"``, or ``"sub-01, ses-02"``."""
        return name_visit(self.participant, self.session)


@dataclass(frozen=True)
class Maker:
    """A generator of synthetic PET, as its own card tells it; empty if not told."""

    name: str
    trained_on: str
    intended_use: str


@dataclass(frozen=True)
class DetectorCardSummary:
    """What a detector's card says.

    Parameters
    ----------
    training_set : str
        ``real``, ``hybrid`` or ``synthetic``.
    folder : str
        Where it lies; a path inside the derivative dataset, if it is there.
    detectors : tuple of str
        What was trained.
    members : tuple of Member
        The controls.
    parameters : dict
        Name → value, those of nested ones joined by a point: ``"ocsvm.nu"``.
    folds : str
        How many there were.
    grid, seed, dataset, intended_use : str
        Empty if not told.
    makers : tuple of Maker
        Of the synthetic PET that was trained on or that is compared with.
    """

    training_set: str
    folder: str
    detectors: tuple[str, ...]
    members: tuple[ControlMember, ...]
    parameters: Mapping[str, str]
    folds: str = ""
    grid: str = ""
    seed: str = ""
    dataset: str = ""
    intended_use: str = ""
    makers: tuple[Maker, ...] = ()

    @property
    def real(self) -> int:
        """How many controls have real PET."""
        return sum(not member.synthetic for member in self.members)

    @property
    def synthetic(self) -> int:
        """How many controls have synthetic PET."""
        return sum(member.synthetic for member in self.members)

    @property
    def named(self) -> str:
        """The names of its detectors, as a reader sees them."""
        return ", ".join(name_of(detector) for detector in self.detectors)

    @property
    def generators(self) -> tuple[str, ...]:
        """What made the synthetic PET, each once."""
        return tuple(dict.fromkeys(member.generator for member in self.members if member.synthetic))

    def tell(self, name: str) -> str:
        """Give a parameter by the last part of its name; empty if the card does not tell it."""
        found = [v for key, v in self.parameters.items() if key.rpartition(".")[2] == name]
        return found[0] if found else ""


def find_cards(
    output_dir: Path, sets: Collection[str], applied: Path | None = None
) -> tuple[dict[str, DetectorCardSummary], tuple[str, ...]]:
    """Read the cards of training sets.

    Parameters
    ----------
    output_dir : Path
        The derivative dataset.
    sets : collection of str
        Whose cards are wanted.
    applied : Path, optional
        The folder of detectors that were trained before and were applied: no others are then
        looked at. None if the run trained its own.

    Returns
    -------
    dict
        Training set → card, in the order in which they are shown.
    tuple of str
        Which are missing or damaged, a sentence each.
    """
    cards, faults = dict[str, DetectorCardSummary](), list[str]()
    for folder in folders_of(output_dir, sets, applied):
        told = str(folder)
        if folder.is_relative_to(output_dir):
            told = folder.relative_to(output_dir).as_posix()
        try:
            values = read_json(folder / "card.json")
        except Mri2petError:
            state = "cannot be read" if (folder / "card.json").exists() else "is missing"
            faults.append(f"{told}/card.json {state}.")
        else:
            name = str(values.get("name", folder.name)) if applied is not None else folder.name
            cards[name] = card_of(name, told, values)
    return cards, tuple(faults)


def folders_of(output_dir: Path, sets: Collection[str], applied: Path | None = None) -> list[Path]:
    """Say where detectors lie, in the order in which they are shown; as :func:`find_cards`."""
    own = [output_dir / DETECTORS_FOLDER / name for name in in_order(sets, SETS)]
    return own if applied is None else [applied]


def card_of(training_set: str, folder: str, told: Mapping[str, object]) -> DetectorCardSummary:
    """Read a card, as far as it can be understood."""
    controls, kinds, parameters = (told.get(key) for key in ("controls", "detectors", "parameters"))
    members = controls if isinstance(controls, list) else []
    makers = told.get("makers")
    folds, seed, dataset, use = (
        "" if value is None else str(value)
        for value in map(told.get, ("folds", "seed", "dataset", "intended_use"))
    )
    return DetectorCardSummary(
        training_set=training_set,
        folder=folder,
        detectors=tuple(map(str, kinds)) if isinstance(kinds, list) else (),
        members=tuple(_member(member) for member in members if isinstance(member, dict)),
        parameters=_flat(parameters) if isinstance(parameters, dict) else {},
        grid=_grid(told),
        folds=folds,
        seed=seed,
        dataset=dataset,
        intended_use=use,
        makers=tuple(map(_maker, makers)) if isinstance(makers, list) else (),
    )


def _maker(told: object) -> Maker:
    known = told if isinstance(told, Mapping) else {}
    name, trained_on, use = (
        str(known.get(key, "")) for key in ("name", "trained_on", "intended_use")
    )
    return Maker(name if name else UNKNOWN, trained_on, use)


def _member(told: Mapping[str, object]) -> ControlMember:
    fold = told.get("fold")
    return ControlMember(
        participant=label_of(told.get("participant"), "sub-"),
        session=label_of(told.get("session"), "ses-"),
        synthetic=told.get("synthetic") is True,
        generator=_generator(told.get("generator")),
        fold="" if fold is None else str(fold),
    )


def _generator(told: object) -> str:
    if isinstance(told, Mapping):
        words = [str(told[key]) for key in ("Name", "Version", "name", "version") if told.get(key)]
        return " ".join(words) if words else UNKNOWN
    return UNKNOWN if told is None else str(told)


def _flat(values: Mapping[str, object], before: str = "") -> dict[str, str]:
    """Write nested parameters in one level.

    Examples
    --------
    >>> _flat({"nu": 0.03, "network": {"width": 3}})
    {'nu': '0.03', 'network.width': '3'}
    """
    flat = dict[str, str]()
    for key, value in values.items():
        if isinstance(value, dict):
            flat |= _flat(value, f"{before}{key}.")
        elif value is not None:
            flat[f"{before}{key}"] = f"{value:g}" if isinstance(value, float) else str(value)
    return flat


def _grid(told: Mapping[str, object]) -> str:
    shape, affine = told.get("shape"), told.get("affine")
    if not isinstance(shape, list):
        return ""
    rows = affine if isinstance(affine, list) else []
    first = rows[0][0] if rows and isinstance(rows[0], list) and rows[0] else None
    size = f" of {abs(first):g} mm" if isinstance(first, int | float) else ""
    return f"{told.get('template', UNKNOWN)}, {'×'.join(map(str, shape))} voxels{size}"


UNITS: Final = ("lesion", "patient")


@dataclass(frozen=True)
class DetectionPoint:
    """A line of ``detection_curve.tsv``."""

    which: DetectorKey
    unit: str
    clusters: int
    n: int | None
    found: int | None
    sensitivity: float
    low: float | None
    high: float | None
    per_patient: float | None
    per_control: float | None


@dataclass(frozen=True)
class FreeResponse:
    """A line of ``detection_froc.tsv``."""

    which: DetectorKey
    unit: str
    per_control: float
    sensitivity: float


@dataclass(frozen=True)
class DetectorComparison:
    """A line of ``detection_tests.tsv``: McNemar's test between two detectors."""

    unit: str
    clusters: int
    one: DetectorKey
    other: DetectorKey
    n: int | None
    only_one: int | None
    only_other: int | None
    p: float | None
    p_holm: float | None


def point_of(cells: Cells) -> DetectionPoint | None:
    """Read a line of ``detection_curve.tsv``; None if it does not say enough."""
    clusters, sensitivity = as_count(cells["clusters"]), as_value(cells.get("sensitivity"))
    if clusters is None or sensitivity is None:
        return None
    return DetectionPoint(
        which=which(cells["training_set"], cells["detector"]),
        unit=cells["unit"],
        clusters=clusters,
        n=as_count(cells.get("n")),
        found=as_count(cells.get("found")),
        sensitivity=sensitivity,
        low=as_value(cells.get("low")),
        high=as_value(cells.get("high")),
        per_patient=as_value(cells.get("false_clusters_per_patient")),
        per_control=as_value(cells.get("false_clusters_per_control")),
    )


def response_of(cells: Cells) -> FreeResponse | None:
    """Read a line of ``detection_froc.tsv``; None if it does not say enough."""
    per_control = as_value(cells.get("false_clusters_per_control"))
    sensitivity = as_value(cells.get("sensitivity"))
    if per_control is None or sensitivity is None:
        return None
    return FreeResponse(
        which(cells["training_set"], cells["detector"]), cells["unit"], per_control, sensitivity
    )


def comparison_of(cells: Cells) -> DetectorComparison | None:
    """Read a line of ``detection_tests.tsv``; None if it does not say enough."""
    clusters = as_count(cells["clusters"])
    one, other = (
        which(as_label(cells.get(f"training_set_{n}")), as_label(cells.get(f"detector_{n}")))
        for n in (1, 2)
    )
    if clusters is None or not one.detector or not other.detector:
        return None
    return DetectorComparison(
        unit=cells["unit"],
        clusters=clusters,
        one=one,
        other=other,
        n=as_count(cells.get("n")),
        only_one=as_count(cells.get("only_1")),
        only_other=as_count(cells.get("only_2")),
        p=as_value(cells.get("p")),
        p_holm=as_value(cells.get("p_holm")),
    )


Shares = dict[DetectorKey, dict[str, float]]


def control_shares(
    output_dir: Path, cards: Mapping[str, DetectorCardSummary]
) -> tuple[Shares, list[str]]:
    """Read the share of the brain that scores above 0, of each held-out control.

    Parameters
    ----------
    output_dir : Path
        The derivative dataset.
    cards : dict
        Training set → card.

    Returns
    -------
    dict
        Detector → control → share, 0 to 1; a control of whom it is not told is not in it.
    list of str
        What is missing or damaged, a sentence each.
    """
    shares = Shares()
    lines, faults = _lines(output_dir, cards, "control_maps.tsv", "above_zero")
    for detector, visit, cells in lines:
        share = as_value(cells["above_zero"])
        if share is not None:
            shares.setdefault(detector, {})[visit] = share
    return shares, faults


def control_scores(
    output_dir: Path, cards: Mapping[str, DetectorCardSummary]
) -> tuple[dict[DetectorKey, dict[str, list[float]]], list[str]]:
    """Read what held-out controls have; those without clusters have a line without numbers.

    Parameters
    ----------
    output_dir : Path
        The derivative dataset.
    cards : dict
        Training set → card.

    Returns
    -------
    dict
        Detector → held-out control → ``sum_score`` of each of its clusters.
    list of str
        What is missing or damaged, a sentence each.
    """
    scores = dict[DetectorKey, dict[str, list[float]]]()
    lines, faults = _lines(output_dir, cards, "control_clusters.tsv")
    for detector, visit, cells in lines:
        own = scores.setdefault(detector, {}).setdefault(visit, [])
        score = as_value(cells.get("sum_score"))
        own += [] if score is None else [score]
    return scores, faults


def _lines(
    output_dir: Path, cards: Mapping[str, DetectorCardSummary], table: str, *needed: str
) -> tuple[list[tuple[DetectorKey, str, Cells]], list[str]]:
    """Read a table that lies beside each detector: which detector, whom, and all cells."""
    found, faults = list[tuple[DetectorKey, str, Cells]](), list[str]()
    for name, card in cards.items():
        columns = ("participant_id", "detector", *needed)
        lines, lost = read_lines(output_dir, f"{card.folder}/{table}", columns)
        faults += lost
        for cells in lines:
            visit = name_visit(
                label_of(cells["participant_id"], "sub-"), label_of(cells.get("session_id"), "ses-")
            )
            found.append((which(name, cells["detector"]), visit, cells))
    return found, faults
