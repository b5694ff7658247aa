"""All that the train level has written.

What is missing or cannot be understood is left out, and a sentence says so.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from bids_app.errors import Mri2petError
from bids_app.files import read_json
from bids_app.report.cells import read_lines
from bids_app.report.history import Epoch, epochs_of, rank
from bids_app.report.paper import in_order, is_baseline
from bids_app.report.scores import Comparison, Row, Score, comparison_of, row_of, score_of

GENERATORS: Final = "generators"
CROSS_VALIDATION: Final = "crossvalidation"
WEIGHTS: Final = "weights.safetensors"


@dataclass(frozen=True)
class Trained:
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

    rows: Sequence[Row]
    scores: Sequence[Score]
    comparisons: Sequence[Comparison]
    cards: Mapping[str, Mapping[str, object]]
    histories: Mapping[str, Sequence[Epoch]]
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


def find_trained(output_dir: Path) -> Trained:
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
    return Trained(
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
    lost = (f"{folder}/{WEIGHTS} is missing.",) * (not (output_dir / folder / WEIGHTS).exists())
    card = output_dir / folder / "card.json"
    try:
        return read_json(card), lost
    except Mri2petError:
        state = "cannot be read" if card.exists() else "is missing"
        return {}, (f"{folder}/card.json {state}.", *lost)
