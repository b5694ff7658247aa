"""Which generators were trained, and on what, as their cards tell it."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from bids_app.report.cells import as_value
from bids_app.report.history import ALL, Epoch, kept_epoch
from bids_app.report.paper import full_name_of
from bids_app.report.tables import as_number
from bids_app.report.trained import Trained

UNKNOWN: Final = "unknown"
CONFIGURATIONS: Final = {"semi3d": "semi-3D", "patch3d": "3D-patch"}  # tiling → paper's word
SHORT: Final = 12  # digits of a SHA-256 that tell it from others
WEIGHTS: Final = {"adversarial_weight": "adversarial", "cycle_weight": "cycle", "mse_weight": "MSE"}


@dataclass(frozen=True)
class Spec:
    """How a model was built and trained; what its card does not tell is None.

    Parameters
    ----------
    tiles : str
        ``semi3d``, ``patch3d``, or empty.
    numbers : dict
        All numbers of the card's spec, by name.
    size, stride : float or None
        Of cubes, in voxels.
    cycle : bool
        Cycle-GAN, not Simple-GAN.
    """

    tiles: str
    numbers: Mapping[str, float]
    size: float | None
    stride: float | None
    cycle: bool

    def tell(self, name: str) -> str:
        """Write a number of the spec, or that it is unknown."""
        return f"{self.numbers[name]:g}" if name in self.numbers else UNKNOWN

    def losses(self) -> str:
        """Write the weights of the losses that count: ``"adversarial 1, cycle 10"``."""
        told = [
            f"{word} {self.tell(name)}"
            for name, word in WEIGHTS.items()
            if self.numbers.get(name) and (self.cycle or name != "cycle_weight")
        ]
        return ", ".join(told) if told else UNKNOWN


@dataclass(frozen=True)
class GeneratorLine:
    """A line of the list of generators."""

    folder: str
    name: str
    spec: Spec
    epochs: str
    sha256: str
    participants: int


@dataclass(frozen=True)
class Cohort:
    """Generators that were trained on the same participants."""

    names: tuple[str, ...]
    participants: tuple[str, ...]


def spec_of(card: Mapping[str, object]) -> Spec:
    """Read the spec of a card, as far as it can be understood."""
    found = card.get("spec")
    told = found if isinstance(found, dict) else {}
    tiling = told.get("tiling")
    tiles = tiling if isinstance(tiling, dict) else {}
    numbers = {name: as_number(value) for name, value in told.items()}
    return Spec(
        tiles=str(tiles.get("kind", "")),
        numbers={name: value for name, value in numbers.items() if value is not None},
        size=as_number(tiles.get("size")),
        stride=as_number(tiles.get("stride")),
        cycle=told.get("cycle") is True,
    )


def participants_of(card: Mapping[str, object]) -> tuple[str, ...]:
    """List whose images a generator has seen."""
    found = card.get("participants")
    return tuple(sorted(map(str, found))) if isinstance(found, list) else ()


def generator_lines(trained: Trained) -> list[GeneratorLine]:
    """List the final generators."""
    return [
        _line(model, trained.cards[model], trained.histories.get(model, ()))
        for model in trained.models
        if model in trained.cards
    ]


def cohorts_of(trained: Trained) -> list[Cohort]:
    """Group generators by whom they were trained on."""
    groups: dict[tuple[str, ...], list[str]] = {}
    for model in trained.models:
        if model in trained.cards:
            seen = participants_of(trained.cards[model])
            groups.setdefault(seen, []).append(full_name_of(model))
    return [Cohort(tuple(names), seen) for seen, names in groups.items()]


def grids_of(trained: Trained) -> list[str]:
    """Tell the grids of all cards, each once: ``"MNI…, 157×189×136 voxels of 1 mm"``."""
    return list(dict.fromkeys(filter(None, map(_grid, trained.cards.values()))))


def statements_of(trained: Trained, key: str) -> list[str]:
    """Gather what the cards say of something, each answer once."""
    told = [str(card[key]) for card in trained.cards.values() if card.get(key) not in (None, "")]
    return list(dict.fromkeys(told))


def enumerate_words(words: Sequence[str]) -> str:
    """Join words as a sentence does.

    Examples
    --------
    >>> enumerate_words(["9", "9", "8"]), enumerate_words(["9"])
    ('9, 9 and 8', '9')
    """
    *first, last = words
    return f"{', '.join(first)} and {last}" if first else last


def by_configuration(specs: Mapping[str, Spec], tell: Callable[[Spec], str]) -> str:
    """Tell something of all models: once if they agree, else for each configuration.

    Examples
    --------
    >>> semi3d, patch3d = (Spec(kind, {}, None, None, cycle=False) for kind in CONFIGURATIONS)
    >>> by_configuration({"one": semi3d, "other": patch3d}, lambda spec: spec.tiles[-2:])
    '3d'
    >>> by_configuration({"one": semi3d, "other": patch3d}, lambda spec: spec.tiles[0])
    's (semi-3D) and p (3D-patch)'
    """
    told = {
        kind: " or ".join(dict.fromkeys(tell(s) for s in specs.values() if s.tiles == kind))
        for kind in dict.fromkeys(spec.tiles for spec in specs.values())
    }
    if len(set(told.values())) == 1:
        return next(iter(told.values()))
    return enumerate_words(
        [f"{words} ({CONFIGURATIONS.get(kind, UNKNOWN)})" for kind, words in told.items()]
    )


def _line(model: str, card: Mapping[str, object], history: Sequence[Epoch]) -> GeneratorLine:
    spec = spec_of(card)
    kept = kept_epoch(history, ALL)
    planned = f"at most {spec.tell('epochs')}" if "epochs" in spec.numbers else UNKNOWN
    return GeneratorLine(
        folder=model,
        name=full_name_of(model),
        spec=spec,
        epochs=planned if kept == "n/a" else kept.partition(" ")[0],
        sha256=str(card.get("sha256", UNKNOWN))[:SHORT],
        participants=len(participants_of(card)),
    )


def _grid(card: Mapping[str, object]) -> str:
    shape, affine = card.get("shape"), card.get("affine")
    if not isinstance(shape, list):
        return ""
    rows = affine if isinstance(affine, list) else []
    first = rows[0] if rows and isinstance(rows[0], list) else []
    edge = as_value(str(first[0])) if first else None
    size = "" if edge is None else f" of {abs(edge):g} mm"
    return f"{card.get('template', UNKNOWN)}, {'×'.join(map(str, shape))} voxels{size}"
