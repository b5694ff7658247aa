"""Detectors of anomalies: what they are called, and what their cards say they were trained on."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from bids_app.errors import Mri2petError
from bids_app.files import read_json
from bids_app.report.cards import UNKNOWN
from bids_app.report.cells import as_label
from bids_app.report.curves import PALETTE

FOLDER: Final = "detectors"
SETS: Final = ("real", "hybrid", "synthetic")  # in the order in which they are shown
NAMES: Final = {"ocsvm": "OC-SVM", "zscore": "z score", "pseudonormal": "pseudo-normal"}
MEANINGS: Final = {
    "ocsvm": "distance beyond the boundary that a one-class SVM draws around the controls at that "
    "voxel; above 0 is outside of it",
    "zscore": "how much less uptake there is than in controls, as the t of Crawford and Howell",
    "pseudonormal": "how much less uptake there is than in the synthetic PET predicted from the "
    "participant's own T1w, against the same difference in controls, as a t",
}
DASHES: Final = {"ocsvm": "", "zscore": "7 3", "pseudonormal": "2 3"}


@dataclass(frozen=True)
class Member:
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
class Card:
    """What a detector's card says.

    Parameters
    ----------
    training_set : str
        Its folder: ``real``, ``hybrid`` or ``synthetic``.
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
    """

    training_set: str
    detectors: tuple[str, ...]
    members: tuple[Member, ...]
    parameters: Mapping[str, str]
    folds: str = ""
    grid: str = ""
    seed: str = ""
    dataset: str = ""
    intended_use: str = ""

    @property
    def real(self) -> int:
        """How many controls have real PET."""
        return sum(not one.synthetic for one in self.members)

    @property
    def synthetic(self) -> int:
        """How many controls have synthetic PET."""
        return sum(one.synthetic for one in self.members)

    @property
    def named(self) -> str:
        """The names of its detectors, as a reader sees them."""
        return ", ".join(name_of(detector) for detector in self.detectors)

    @property
    def generators(self) -> tuple[str, ...]:
        """What made the synthetic PET, each once."""
        return tuple(dict.fromkeys(one.generator for one in self.members if one.synthetic))

    def tell(self, name: str) -> str:
        """Give a parameter by the last part of its name; empty if the card does not tell it."""
        found = [v for key, v in self.parameters.items() if key.rpartition(".")[2] == name]
        return found[0] if found else ""


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
    return NAMES.get(detector, detector)


def title_of(training_set: str, detector: str) -> str:
    """Name a detector with its training set.

    Examples
    --------
    >>> title_of("hybrid", "ocsvm"), title_of("", "zscore")
    ('OC-SVM, hybrid', 'z score')
    """
    return name_of(detector) + f", {training_set}" * bool(training_set)


def in_order(names: Iterable[str], known: Iterable[str]) -> list[str]:
    """Put names in the order of those that are known, each once; others come after, by name."""
    places = list(known)
    return sorted(
        {name for name in names if name},
        key=lambda name: (places.index(name) if name in places else len(places), name),
    )


def rank_of(training_set: str, detector: str) -> tuple[int, str, int, str]:
    """Say where a detector stands: training sets in their order, then detectors in theirs."""
    sets, kinds = list(SETS), list(NAMES)
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


def find_cards(output_dir: Path) -> tuple[dict[str, Card], tuple[str, ...]]:
    """Read the cards of all training sets.

    Returns
    -------
    dict
        Training set → card, in the order in which they are shown.
    tuple of str
        Which are missing or damaged, a sentence each.
    """
    folders = [path for path in (output_dir / FOLDER).glob("*") if path.is_dir()]
    cards, faults = dict[str, Card](), list[str]()
    for name in in_order((path.name for path in folders), SETS):
        path = output_dir / FOLDER / name / "card.json"
        try:
            cards[name] = card_of(name, read_json(path))
        except Mri2petError:
            state = "cannot be read" if path.exists() else "is missing"
            faults.append(f"{FOLDER}/{name}/card.json {state}.")
    return cards, tuple(faults)


def card_of(training_set: str, told: Mapping[str, object]) -> Card:
    """Read a card, as far as it can be understood."""
    controls, kinds, parameters = (told.get(key) for key in ("controls", "detectors", "parameters"))
    members = controls if isinstance(controls, list) else []
    folds, seed, dataset, use = (
        "" if value is None else str(value)
        for value in map(told.get, ("folds", "seed", "dataset", "intended_use"))
    )
    return Card(
        training_set=training_set,
        detectors=tuple(map(str, kinds)) if isinstance(kinds, list) else (),
        members=tuple(_member(one) for one in members if isinstance(one, dict)),
        parameters=_flat(parameters) if isinstance(parameters, dict) else {},
        grid=_grid(told),
        folds=folds,
        seed=seed,
        dataset=dataset,
        intended_use=use,
    )


def _member(told: Mapping[str, object]) -> Member:
    fold = told.get("fold")
    return Member(
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
