"""What the train level has written: generators, their cards, and how their training went.

What is missing or cannot be understood is left out, and a sentence says so.
"""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from bids_app.errors import Mri2petError
from bids_app.files import read_json
from bids_app.report.page import Cells, as_count, as_value, read_lines
from bids_app.report.results import as_number
from bids_app.report.table1 import (
    Score,
    ScoreComparison,
    ScoreRow,
    comparison_of,
    full_name_of,
    in_order,
    is_baseline,
    row_of,
    score_of,
)
from bids_app.synthesis.models import CONFIGURATIONS

ALL: Final = "all"  # the "fold" of the final generator


@dataclass(frozen=True)
class HistoryEpoch:
    """An epoch of one fold; ``fold`` is its number, or ``all``.

    Losses are means over the epoch's steps, unitless; ``ssim`` is that of the validation volumes,
    None where it was not measured; ``kept`` tells the epoch whose weights were kept.
    """

    fold: str
    number: int
    generator_loss: float | None
    discriminator_loss: float | None
    ssim: float | None
    kept: bool


def epochs_of(lines: Iterable[Cells]) -> tuple[HistoryEpoch, ...]:
    """Read all epochs, fold by fold; of one that was run twice, the later line counts."""
    epochs = {}
    for cells in lines:
        number = as_count(cells["epoch"])
        if number is not None:
            epochs[cells["fold"], number] = HistoryEpoch(
                fold=cells["fold"],
                number=number,
                generator_loss=as_value(cells.get("generator_loss")),
                discriminator_loss=as_value(cells.get("discriminator_loss")),
                ssim=as_value(cells.get("ssim_validation")),
                kept=as_count(cells.get("kept")) == 1,
            )
    return tuple(sorted(epochs.values(), key=lambda epoch: (rank(epoch.fold), epoch.number)))


def rank(fold: str) -> tuple[bool, float, str]:
    """Say where a fold stands in a list: by number, the final generator last.

    Examples
    --------
    >>> sorted(["all", "10", "2"], key=rank)
    ['2', '10', 'all']
    """
    number = as_value(fold)
    return fold == ALL, math.inf if number is None else number, fold


def folds_of(epochs: Iterable[HistoryEpoch]) -> list[str]:
    """List the folds, in order."""
    return sorted({epoch.fold for epoch in epochs}, key=rank)


def kept_epoch(epochs: Sequence[HistoryEpoch], fold: str) -> str:
    """Say which epoch of a fold was kept: ``"137 of 200"``, or ``n/a``."""
    own = [epoch for epoch in epochs if epoch.fold == fold]
    kept = [epoch.number for epoch in own if epoch.kept]
    return f"{kept[-1]} of {own[-1].number}" if kept else "n/a"


GENERATORS: Final = "generators"
CROSS_VALIDATION: Final = "crossvalidation"
WEIGHT_FILES: Final = "weights.safetensors"


@dataclass(frozen=True)
class TrainedModel:
    """The tables and generators of a derivative dataset.

    Parameters
    ----------
    rows, scores, comparisons : sequence
        The lines of ``table1.tsv``, ``table1_subjects.tsv`` and ``table1_tests.tsv``.
    cards : dict
        Model → content of its card.
    histories : dict
        Model → its epochs.
    faults : sequence of str
        What is missing or damaged, a sentence each.
    """

    rows: Sequence[ScoreRow]
    scores: Sequence[Score]
    comparisons: Sequence[ScoreComparison]
    cards: Mapping[str, Mapping[str, object]]
    histories: Mapping[str, Sequence[HistoryEpoch]]
    faults: Sequence[str]

    @property
    def models(self) -> list[str]:
        """All models that were trained or scored, no baselines, in the order of the paper."""
        scored = {row.model for row in self.rows} | {score.model for score in self.scores}
        named = {*scored, *self.cards, *self.histories}
        return in_order(name for name in named if not is_baseline(name))

    @property
    def participants(self) -> list[str]:
        """All controls that were scored."""
        return sorted({score.participant for score in self.scores})

    @property
    def folds(self) -> dict[str, int]:
        """Fold → how many controls it left out."""
        left_out = {(score.fold, score.participant) for score in self.scores if score.fold}
        folds = sorted((fold for fold, _ in left_out), key=rank)
        return {fold: folds.count(fold) for fold in dict.fromkeys(folds)}


def find_trained(output_dir: Path) -> TrainedModel:
    """Read all that the train level has written into a derivative dataset.

    Parameters
    ----------
    output_dir : Path
        The derivative dataset.
    """
    table, no_table = read_lines(output_dir, "table1.tsv", ["model"])
    subjects, no_subjects = read_lines(
        output_dir, "table1_subjects.tsv", ["model", "participant_id"]
    )
    tests, no_tests = read_lines(output_dir, "table1_tests.tsv", ["metric", "model_1", "model_2"])
    scored = {line["model"] for line in (*table, *subjects) if not is_baseline(line["model"])}
    folders = {path.name for path in (output_dir / GENERATORS).glob("*") if path.is_dir()}
    models = in_order(folders | scored)
    cards = {model: _read_card(output_dir, model) for model in models}
    histories = {
        model: read_lines(output_dir, f"{GENERATORS}/{model}/history.tsv", ["fold", "epoch"])
        for model in models
    }
    faults = [*no_table, *no_subjects, *no_tests]
    faults += [fault for _, found in cards.values() for fault in found]
    faults += [fault for _, found in histories.values() for fault in found]
    return TrainedModel(
        rows=[row_of(line) for line in table],
        scores=[score_of(line) for line in subjects],
        comparisons=[comparison_of(line) for line in tests],
        cards={model: card for model, (card, _) in cards.items() if card},
        histories={model: epochs_of(lines) for model, (lines, _) in histories.items() if lines},
        faults=faults,
    )


def _read_card(output_dir: Path, model: str) -> tuple[Mapping[str, object], tuple[str, ...]]:
    """Read a card; tell of it, or of the weights beside it, if they are not there."""
    folder = f"{GENERATORS}/{model}"
    lost = (f"{folder}/{WEIGHT_FILES} is missing.",) * (
        not (output_dir / folder / WEIGHT_FILES).exists()
    )
    card = output_dir / folder / "card.json"
    try:
        return read_json(card), lost
    except Mri2petError:
        state = "cannot be read" if card.exists() else "is missing"
        return {}, (f"{folder}/card.json {state}.", *lost)


UNKNOWN: Final = "unknown"
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


def generator_lines(trained: TrainedModel) -> list[GeneratorLine]:
    """List the final generators."""
    return [
        _line(model, trained.cards[model], trained.histories.get(model, ()))
        for model in trained.models
        if model in trained.cards
    ]


def cohorts_of(trained: TrainedModel) -> list[Cohort]:
    """Group generators by whom they were trained on."""
    groups: dict[tuple[str, ...], list[str]] = {}
    for model in trained.models:
        if model in trained.cards:
            seen = participants_of(trained.cards[model])
            groups.setdefault(seen, []).append(full_name_of(model))
    return [Cohort(tuple(names), seen) for seen, names in groups.items()]


def grids_of(trained: TrainedModel) -> list[str]:
    """Tell the grids of all cards, each once: ``"MNI…, 157×189×136 voxels of 1 mm"``."""
    return list(dict.fromkeys(filter(None, map(_grid, trained.cards.values()))))


def statements_of(trained: TrainedModel, key: str) -> list[str]:
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


def _line(model: str, card: Mapping[str, object], history: Sequence[HistoryEpoch]) -> GeneratorLine:
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
