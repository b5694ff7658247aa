"""What the cards of detectors say: whom they were trained on, and how."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path

from bids_app.errors import Mri2petError
from bids_app.files import read_json
from bids_app.report.cards import UNKNOWN
from bids_app.report.detectors import FOLDER, SETS, in_order, label_of, name_of, name_visit


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
class Maker:
    """A generator of synthetic PET, as its own card tells it; empty if not told."""

    name: str
    trained_on: str
    intended_use: str


@dataclass(frozen=True)
class Card:
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
    members: tuple[Member, ...]
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


def find_cards(
    output_dir: Path, sets: Collection[str], applied: str = ""
) -> tuple[dict[str, Card], tuple[str, ...]]:
    """Read the cards of training sets.

    Parameters
    ----------
    output_dir : Path
        The derivative dataset.
    sets : collection of str
        Whose cards are wanted.
    applied : str
        The folder of detectors that were trained before and were applied: no others are then
        looked at. Empty if the run trained its own.

    Returns
    -------
    dict
        Training set → card, in the order in which they are shown.
    tuple of str
        Which are missing or damaged, a sentence each.
    """
    cards, faults = dict[str, Card](), list[str]()
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
            name = str(values.get("name", folder.name)) if applied else folder.name
            cards[name] = card_of(name, told, values)
    return cards, tuple(faults)


def folders_of(output_dir: Path, sets: Collection[str], applied: str = "") -> list[Path]:
    """Say where detectors lie, in the order in which they are shown; as :func:`find_cards`."""
    own = [output_dir / FOLDER / name for name in in_order(sets, SETS)]
    return [Path(applied)] if applied else own


def card_of(training_set: str, folder: str, told: Mapping[str, object]) -> Card:
    """Read a card, as far as it can be understood."""
    controls, kinds, parameters = (told.get(key) for key in ("controls", "detectors", "parameters"))
    members = controls if isinstance(controls, list) else []
    makers = told.get("makers")
    folds, seed, dataset, use = (
        "" if value is None else str(value)
        for value in map(told.get, ("folds", "seed", "dataset", "intended_use"))
    )
    return Card(
        training_set=training_set,
        folder=folder,
        detectors=tuple(map(str, kinds)) if isinstance(kinds, list) else (),
        members=tuple(_member(one) for one in members if isinstance(one, dict)),
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
