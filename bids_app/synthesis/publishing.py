"""Publication of a trained generator with its card, reference, error model and history."""

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import replace
from math import isfinite
from pathlib import Path

import numpy as np

from bids_app.files import file_sha256, read_tsv, write_tsv
from bids_app.nifti import load
from bids_app.synthesis.card import FOLDS, REFERENCE, UNCERTAINTY, Card, card_from
from bids_app.synthesis.evaluation import METRICS, records_from_json
from bids_app.synthesis.inference import load_weights, save_generator
from bids_app.synthesis.job import COLUMNS, HISTORY
from bids_app.synthesis.models import OVERLAPPING, Spec, TissueSpec
from bids_app.synthesis.pairs import Volumes, open_volumes, usable_pairs
from bids_app.synthesis.reference import gather_reference, measure_traits, write_reference
from bids_app.synthesis.uncertainty import FEWEST, fit_error_model, sample_errors, write_error_model


def mean_metrics(records: Sequence[Mapping[str, object]]) -> dict[str, float]:
    """Average each metric over the visits of some folds, omitting means that are not finite.

    Second lines of the table, with overlapping triplets, are ignored.
    """
    rows = [row for content in records for row in records_from_json(content)]
    scores = [row.scores for row in rows if row.model not in OVERLAPPING]
    means = {m: float(np.mean([getattr(row, m) for row in scores])) for m in METRICS}
    return {metric: round(mean, 4) for metric, mean in means.items() if isfinite(mean)}


def publish(
    values: dict[str, object],
    folder: Path,
    *,
    weights: Path,
    fold_weights: Sequence[Path],
    volumes: Sequence[Path],
    left_out: Sequence[Sequence[Path]],
    pets: Sequence[Path],
    histories: Sequence[Path],
    records: Sequence[Mapping[str, object]],
    precision: str,
) -> None:
    """Write weights, cards, references and histories.

    Parameters
    ----------
    values : dict
        Card of the generator trained on all participants, as returned by
        :func:`bids_app.synthesis.card.card_values`, without the fields known only after training.
    folder : Path
        Folder for ``weights.safetensors``, ``card.json``, ``reference.safetensors``,
        ``history.tsv``, ``uncertainty.safetensors`` unless there are too few controls, and each
        fold's generator in ``folds/fold-K``, with the scores of its left-out participants.
    weights : Path
        Weights of the generator trained on all participants.
    fold_weights : sequence of Path
        Weights of the folds, in order.
    volumes : sequence of Path
        Folders of the volumes of all participants; see
        :func:`bids_app.synthesis.pairs.store_volumes`.
    left_out : sequence of sequence of Path
        Those that each fold left out.
    pets : sequence of Path
        PET predicted by the folds for these, as written, in the same order.
    histories : sequence of Path
        Histories of the folds, then of the fit to all participants.
    records : sequence of mapping
        Scores of each fold, as plain values.
    precision : str
        Precision that all were trained in.

    Raises
    ------
    ReadWriteError
        If they cannot be written, or volumes cannot be read.
    """
    card = card_from(values)
    card = replace(card, versions={**card.versions, "precision": precision})
    visits = {path: open_volumes(path) for path in volumes}
    traits = {p: measure_traits(np.asarray(v.t1w), v.owner.zooms) for p, v in visits.items()}

    def save(own: Path, seen: Sequence[Path], card: Card, place: Path) -> None:
        """Write a generator, with its card and the reference of the volumes it has seen."""
        reference = gather_reference([visits[p] for p in seen], [traits[p] for p in seen])
        write_reference(reference, place / REFERENCE)
        card = replace(
            card,
            participants=tuple(sorted({visits[path].owner.participant for path in seen})),
            reference_sha256=file_sha256(place / REFERENCE),
            trained_on=card.trained_on + _describe_unused([visits[p] for p in seen], card.spec),
        )
        save_generator(load_weights(own, card.spec, "cpu"), card, place)

    for number, own in enumerate(fold_weights, start=1):
        fold_card = replace(
            card,
            metrics=mean_metrics(records[number - 1 : number]),
            trained_on=f"{card.trained_on}; without those of fold {number}",
        )
        seen = [path for path in volumes if path not in left_out[number - 1]]
        save(own, seen, fold_card, folder / FOLDS / f"fold-{number}")
    _remove_folds(folder / FOLDS, beyond=len(fold_weights))
    whole = replace(card, metrics=mean_metrics(records))
    by_fold = [[visits[path] for path in paths] for paths in left_out]
    save(weights, volumes, _with_uncertainty(whole, by_fold, pets, folder), folder)
    rows = [row for history in histories for row in read_tsv(history)]
    write_tsv(folder / HISTORY, COLUMNS, rows)


def _with_uncertainty(
    card: Card, left_out: Sequence[Sequence[Volumes]], pets: Sequence[Path], folder: Path
) -> Card:
    """Fit and write the error model, and return the card with its measures and SHA-256.

    If there are too few controls, the card is returned unchanged.
    """
    path = folder / UNCERTAINTY
    path.unlink(missing_ok=True)
    groups = [fold for fold, visits in enumerate(left_out) for _ in visits]
    if len(groups) < FEWEST:
        return card
    everyone = [visit for visits in left_out for visit in visits]
    try:
        people = [
            sample_errors(visit, load(pet).data) for visit, pet in zip(everyone, pets, strict=True)
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
    gappy = [visit for visit in visits if visit.hole is not None]  # the others have tiles
    unused = len(gappy) - len(usable_pairs(gappy, spec))
    return f"; {unused} of them without any tile, as their PET covers none" if unused else ""
