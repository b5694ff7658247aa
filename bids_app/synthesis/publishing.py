"""Publication of a trained generator with its card, reference, error model and history."""

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from math import isfinite
from pathlib import Path

import numpy as np

from bids_app.files import read_tsv, write_tsv
from bids_app.nifti import load
from bids_app.synthesis.card import FOLDS, REFERENCE, UNCERTAINTY, Card, card_from, file_sha256
from bids_app.synthesis.evaluation import METRICS, records_from_json
from bids_app.synthesis.inference import load_weights, save_generator
from bids_app.synthesis.job import COLUMNS, HISTORY
from bids_app.synthesis.models import OVERLAPPING, Spec, TissueSpec
from bids_app.synthesis.pairs import Volumes, open_volumes, usable_pairs
from bids_app.synthesis.reference import gather_reference, write_reference
from bids_app.synthesis.uncertainty import FEWEST, fit_error_model, sample_errors, write_error_model


@dataclass(frozen=True)
class Fitted:
    """Results of the fits of one row.

    Parameters
    ----------
    weights : Path
        Weights of the generator trained on all participants.
    folds : sequence of Path
        Weights of the folds, in order.
    fold_participants : sequence of tuple of str
        Participants that each fold was trained on.
    left_out : sequence of sequence of Path
        Folders of the volumes that each fold left out.
    pets : sequence of Path
        PET predicted by the folds for these volumes, as written, in the same order.
    volumes : sequence of Path
        Folders of all volumes that the generator was trained on; see
        :func:`bids_app.synthesis.pairs.store_volumes`.
    fold_volumes : sequence of sequence of Path
        Folders of the volumes that each fold was trained on.
    histories : sequence of Path
        Histories of the folds, then of the fit to all participants.
    records : sequence of mapping
        Scores of each fold, as plain values.
    precision : str
        Precision that all were trained in.
    """

    weights: Path
    folds: Sequence[Path]
    fold_participants: Sequence[tuple[str, ...]]
    left_out: Sequence[Sequence[Path]]
    pets: Sequence[Path]
    volumes: Sequence[Path]
    fold_volumes: Sequence[Sequence[Path]]
    histories: Sequence[Path]
    records: Sequence[Mapping[str, object]]
    precision: str


def mean_metrics(records: Sequence[Mapping[str, object]]) -> dict[str, float]:
    """Average each metric over the visits of some folds, omitting means that are not finite.

    Second lines of the table, with overlapping triplets, are ignored.
    """
    rows = [row for content in records for row in records_from_json(content)]
    scores = [row.scores for row in rows if row.model not in OVERLAPPING]
    means = {m: float(np.mean([getattr(row, m) for row in scores])) for m in METRICS}
    return {metric: round(mean, 4) for metric, mean in means.items() if isfinite(mean)}


def publish(values: dict[str, object], fitted: Fitted, folder: Path) -> None:
    """Write weights, cards, references and histories.

    Parameters
    ----------
    values : dict
        Card of the generator trained on all participants, as returned by
        :func:`bids_app.synthesis.card.card_values`, without the fields known only after training.
    fitted : Fitted
        Results of the fits.
    folder : Path
        Folder for ``weights.safetensors``, ``card.json``, ``reference.safetensors``,
        ``history.tsv``, ``uncertainty.safetensors`` unless there are too few controls, and each
        fold's generator in ``folds/fold-K``, with the scores of its left-out participants.

    Raises
    ------
    ReadWriteError
        If they cannot be written, or volumes cannot be read.
    """
    card = card_from(values)
    card = replace(card, versions={**card.versions, "precision": fitted.precision})
    for number, weights in enumerate(fitted.folds, start=1):
        fold_card = replace(
            card,
            participants=fitted.fold_participants[number - 1],
            metrics=mean_metrics(fitted.records[number - 1 : number]),
            trained_on=f"{card.trained_on}; without those of fold {number}",
        )
        volumes = fitted.fold_volumes[number - 1]
        _save(weights, volumes, fold_card, folder / FOLDS / f"fold-{number}")
    _remove_folds(folder / FOLDS, beyond=len(fitted.folds))
    whole = _with_uncertainty(replace(card, metrics=mean_metrics(fitted.records)), fitted, folder)
    _save(fitted.weights, fitted.volumes, whole, folder)
    rows = [row for history in fitted.histories for row in read_tsv(history)]
    write_tsv(folder / HISTORY, COLUMNS, rows)


def _with_uncertainty(card: Card, fitted: Fitted, folder: Path) -> Card:
    """Fit and write the error model, and return the card with its measures and SHA-256.

    If there are too few controls, the card is returned unchanged.
    """
    path = folder / UNCERTAINTY
    path.unlink(missing_ok=True)
    groups = [fold for fold, folders in enumerate(fitted.left_out) for _ in folders]
    left_out = [volumes for folders in fitted.left_out for volumes in folders]
    if len(left_out) < FEWEST:
        return card
    try:
        people = [
            sample_errors(open_volumes(volumes), load(pet).data)
            for volumes, pet in zip(left_out, fitted.pets, strict=True)
        ]
        model, measures = fit_error_model(people, groups)
    except ValueError:  # one fold, or a T1w without three tissues
        return card
    write_error_model(model, path)
    metrics = {f"uncertainty_{name}": round(value, 4) for name, value in measures.items()}
    return replace(card, metrics={**card.metrics, **metrics}, uncertainty_sha256=file_sha256(path))


def _remove_folds(folder: Path, *, beyond: int) -> None:
    """Remove the generators of an earlier cross-validation with more folds."""
    known = {f"fold-{number}" for number in range(1, beyond + 1)}
    for path in folder.glob("fold-*"):
        if path.name not in known:
            shutil.rmtree(path, ignore_errors=True)


def _describe_unused(visits: Sequence[Volumes], spec: Spec) -> str:
    """Describe how many controls a network was not trained on because their PET covers no tile."""
    if isinstance(spec, TissueSpec):
        return ""
    unused = len(visits) - len(usable_pairs(visits, spec))
    return f"; {unused} of them without any tile, as their PET covers none" if unused else ""


def _save(weights: Path, volumes: Sequence[Path], card: Card, folder: Path) -> None:
    visits = [open_volumes(volume) for volume in volumes]
    write_reference(gather_reference(visits), folder / REFERENCE)
    card = replace(
        card,
        reference_sha256=file_sha256(folder / REFERENCE),
        trained_on=card.trained_on + _describe_unused(visits, card.spec),
    )
    save_generator(load_weights(weights, card.spec, "cpu"), card, folder)
