"""Results of the train level for reports: generators, their cards, and their training histories.

Files that are missing or cannot be read are left out, with a sentence saying so.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from bids_app.derivatives.sidecars import Faults
from bids_app.derivatives.table1 import (
    ALL,
    HistoryEpoch,
    ScoreRow,
    rank,
    read_history,
    read_scores,
    read_table1,
    read_tests,
)
from bids_app.errors import Mri2petError
from bids_app.report.page import UNKNOWN, enumerate_words, show
from bids_app.report.table1 import full_name_of, in_order, is_baseline
from bids_app.synthesis.card import CARD, WEIGHTS, Card, read_card
from bids_app.synthesis.evaluation import ScoreRecord
from bids_app.synthesis.models import CONFIGURATIONS, OVERLAPPING, ModelSpec, TissueSpec, kind_of
from bids_app.synthesis.statistics import PairedTest

GENERATORS: Final = "generators"
CROSS_VALIDATION: Final = "crossvalidation"
SHORT: Final = 12  # digits of a SHA-256 shown, enough to distinguish it from others
LOSSES: Final = {"adversarial_weight": "adversarial", "cycle_weight": "cycle", "mse_weight": "MSE"}
UNCERTAINTY_MEASURES: Final = {
    **{f"coverage_{percent}": (100, 1) for percent in (50, 80, 95)},
    **dict.fromkeys(("correlation", "correlation_8mm"), (1, 2)),
}  # name in cards → factor to multiply by, and decimals shown
Specs = Mapping[str, ModelSpec | None]  # name of a model → its spec; None if it has no card


@dataclass(frozen=True)
class TrainedModel:
    """Tables and generators of a derivative dataset.

    Parameters
    ----------
    rows, scores, comparisons : sequence
        Lines of ``table1.tsv``, ``table1_subjects.tsv`` and ``table1_tests.tsv``.
    cards : dict
        Card of each model.
    histories : dict
        Training epochs of each model.
    faults : sequence of str
        Sentences about missing or damaged files, one each.
    """

    rows: Sequence[ScoreRow]
    scores: Sequence[ScoreRecord]
    comparisons: Sequence[PairedTest]
    cards: Mapping[str, Card]
    histories: Mapping[str, Sequence[HistoryEpoch]]
    faults: Sequence[str]

    @property
    def models(self) -> list[str]:
        """All models that were trained or scored, without baselines, in the order of the paper."""
        scored = {row.model for row in self.rows} | {score.model for score in self.scores}
        named = {*scored, *self.cards, *self.histories}
        return in_order(name for name in named if _is_trained(name))

    @property
    def participants(self) -> list[str]:
        """All controls that were scored."""
        return sorted({score.participant for score in self.scores})

    @property
    def folds(self) -> dict[int, int]:
        """Number of controls left out in each fold."""
        left_out = {(score.fold, score.participant) for score in self.scores if score.fold}
        folds = sorted(fold for fold, _ in left_out)
        return {fold: folds.count(fold) for fold in folds}

    @property
    def specs(self) -> Specs:
        """Spec of each network, by name; tissue models are excluded."""
        cards = {full_name_of(model): self.cards.get(model) for model in self.models}
        specs = {name: None if card is None else card.spec for name, card in cards.items()}
        return {name: spec for name, spec in specs.items() if not isinstance(spec, TissueSpec)}

    @property
    def initial(self) -> list[str]:
        """Names of the generators from which training was continued."""
        cards = self.cards.values()
        return list(dict.fromkeys(c.initialized_from[0].name for c in cards if c.initialized_from))

    @property
    def conditioned(self) -> list[str]:
        """Names of the networks that are conditioned on a tissue model."""
        return [name for name, spec in self.specs.items() if spec is not None and spec.condition]

    @property
    def has_tissue_model(self) -> bool:
        """Whether a tissue model was fitted."""
        cards = self.cards.values()
        return bool(self.conditioned) or any(isinstance(card.spec, TissueSpec) for card in cards)


def _is_trained(row: str) -> bool:
    """Return whether a row of Table 1 is a generator: not a baseline, nor a model's second line."""
    return not is_baseline(row) and row not in OVERLAPPING


def find_trained(output_dir: Path) -> TrainedModel:
    """Read the output of the train level from a derivative dataset.

    Parameters
    ----------
    output_dir : Path
        Path of the derivative dataset.
    """
    faults = Faults(output_dir)
    rows, scores = read_table1(output_dir, faults), read_scores(output_dir, faults)
    comparisons = read_tests(output_dir, faults)
    folders = {path.name for path in (output_dir / GENERATORS).glob("*") if path.is_dir()}
    scored = {row.model for row in rows} | {score.model for score in scores}
    models = in_order(folders | {model for model in scored if _is_trained(model)})
    cards = {model: _read_card(output_dir / GENERATORS / model, faults) for model in models}
    histories = {model: read_history(output_dir / GENERATORS / model, faults) for model in models}
    return TrainedModel(
        rows=rows,
        scores=scores,
        comparisons=comparisons,
        cards={model: card for model, card in cards.items() if card is not None},
        histories={model: epochs for model, epochs in histories.items() if epochs},
        faults=faults,
    )


def _read_card(folder: Path, faults: Faults) -> Card | None:
    """Read a card; record a fault if the card cannot be read or its weights do not exist."""
    try:
        card = read_card(folder, lenient=True)
    except Mri2petError:
        card = None
        faults.add_unread(folder / CARD)
    if not (folder / WEIGHTS).exists():
        faults.add_unread(folder / WEIGHTS)
    return card


def folds_of(epochs: Iterable[HistoryEpoch]) -> list[str]:
    """List the folds in order."""
    return sorted({epoch.fold for epoch in epochs}, key=rank)


def kept_epoch(epochs: Sequence[HistoryEpoch], fold: str) -> str:
    """Format the kept epoch of a fold: ``"137 of 200"``, or ``n/a``."""
    fold_epochs = [epoch for epoch in epochs if epoch.fold == fold]
    kept = [epoch.epoch for epoch in fold_epochs if epoch.kept == 1]
    return f"{kept[-1]} of {fold_epochs[-1].epoch}" if kept else "n/a"


def format_number(spec: ModelSpec | None, name: str) -> str:
    """Format a number of a spec, or "unknown" without a spec."""
    return UNKNOWN if spec is None else f"{getattr(spec, name):g}"


def format_losses(spec: ModelSpec | None) -> str:
    """Format the weights of the losses in use: ``"adversarial 1, cycle 10"``."""
    names = [] if spec is None else [name for name in LOSSES if getattr(spec, name)]
    if spec is not None and not spec.cycle:
        names = [name for name in names if name != "cycle_weight"]
    losses = ", ".join(f"{LOSSES[name]} {format_number(spec, name)}" for name in names)
    return losses if losses else UNKNOWN


def generator_lines(trained: TrainedModel) -> list[dict[str, str]]:
    """List the final generators as the page's template expects them."""
    lines = []
    for model in trained.models:
        if model in trained.cards:
            card = trained.cards[model]
            line = {
                "name": full_name_of(model),
                **_describe_training(card, trained.histories.get(model, ())),
                "participants": f"{len(card.participants)}",
                "sha256": card.sha256[:SHORT] if card.sha256 else UNKNOWN,
                "folder": model,
            }
            lines.append(line)
    return lines


def _describe_training(card: Card, history: Sequence[HistoryEpoch]) -> dict[str, str]:
    """Describe the epochs, width and losses of a network, or how a tissue model was fitted."""
    if isinstance(card.spec, TissueSpec):
        return {"epochs": "", "width": "", "losses": "least squares"}
    kept = kept_epoch(history, ALL)
    return {
        "epochs": f"at most {card.spec.epochs}" if kept == "n/a" else kept.partition(" ")[0],
        "width": format_number(card.spec, "width"),
        "losses": format_losses(card.spec),
    }


def uncertainty_lines(trained: TrainedModel) -> list[tuple[str, list[str]]]:
    """List the accuracy of the generators' error models: coverage in percent, then correlations."""
    lines = []
    for model in trained.models:
        metrics = trained.cards[model].metrics if model in trained.cards else {}
        measures = {name: metrics.get(f"uncertainty_{name}") for name in UNCERTAINTY_MEASURES}
        if any(value is not None for value in measures.values()):
            cells = [
                show(None if value is None else value * scale, digits)
                for value, (scale, digits) in zip(
                    measures.values(), UNCERTAINTY_MEASURES.values(), strict=True
                )
            ]
            lines.append((full_name_of(model), cells))
    return lines


def cohorts_of(trained: TrainedModel) -> list[tuple[list[str], tuple[str, ...]]]:
    """Group generators by training cohort; return the names and the participants of each group."""
    groups: dict[tuple[str, ...], list[str]] = {}
    for model in trained.models:
        if model in trained.cards:
            participants = tuple(sorted(trained.cards[model].participants))
            groups.setdefault(participants, []).append(full_name_of(model))
    return [(names, participants) for participants, names in groups.items()]


def grids_of(trained: TrainedModel) -> list[str]:
    """Describe the distinct grids of all cards: ``"MNI…, 157×189×136 voxels of 1 mm"``."""
    cards = trained.cards.values()
    grids = (describe_grid(card.template, card.shape, card.affine) for card in cards)
    return list(dict.fromkeys(filter(None, grids)))


def describe_grid(template: str, shape: Sequence[int], affine: Sequence[Sequence[float]]) -> str:
    """Describe the grid of a card; return an empty string if it is unknown.

    Examples
    --------
    >>> describe_grid("MNI", (9, 8, 7), ((2.0, 0.0), (0.0, 2.0)))
    'MNI, 9×8×7 voxels of 2 mm'
    """
    size = f" of {abs(affine[0][0]):g} mm" if affine else ""
    voxels = f"{'×'.join(map(str, shape))} voxels"
    return f"{template if template else UNKNOWN}, {voxels}{size}" if shape else ""


def statements_of(trained: TrainedModel, key: str) -> list[str]:
    """List the distinct values of a field of the cards."""
    values = (getattr(card, key) for card in trained.cards.values())
    return list(dict.fromkeys(str(value) for value in values if value not in ("", -1)))


def by_configuration(specs: Specs, describe: Callable[[ModelSpec | None], str]) -> str:
    """Describe a property of all models: once if they agree, otherwise per configuration.

    Examples
    --------
    >>> from bids_app.synthesis.models import MODELS
    >>> by_configuration(MODELS, lambda spec: format_number(spec, "n_blocks"))
    '9 (semi-3D) and 2 (3D-patch)'
    >>> by_configuration(MODELS, lambda spec: format_number(spec, "beta1"))
    '0.5'
    """
    kinds = {name: "" if spec is None else kind_of(spec) for name, spec in specs.items()}
    answers = {
        kind: " or ".join(
            dict.fromkeys(describe(spec) for name, spec in specs.items() if kinds[name] == kind)
        )
        for kind in dict.fromkeys(kinds.values())
    }
    if len(set(answers.values())) == 1:
        return next(iter(answers.values()))
    return enumerate_words(
        [f"{words} ({CONFIGURATIONS.get(kind, UNKNOWN)})" for kind, words in answers.items()]
    )
