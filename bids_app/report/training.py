"""The report of the train level, ``train.html``, from files on disk only."""

from pathlib import Path
from typing import Final, Unpack

from bids_app.errors import Mri2petError
from bids_app.files import read_json, write_text
from bids_app.report import training_methods
from bids_app.report.cards import cohorts_of, generator_lines, grids_of, statements_of
from bids_app.report.cells import as_value
from bids_app.report.curves import draw_curves
from bids_app.report.doubts import doubts_of
from bids_app.report.gallery import draw_gallery, space_label
from bids_app.report.history import folds_of, kept_epoch, rank
from bids_app.report.page import render
from bids_app.report.paper import full_name_of
from bids_app.report.record import Record, read_record
from bids_app.report.runs import Told, renew, tell_duration
from bids_app.report.subject import tells_of_demonstration
from bids_app.report.sweep import cautions_of, draw_sweeps, sweeps_of
from bids_app.report.table1 import beside_the_paper, table1, why_no_lpips
from bids_app.report.tables import as_number, show
from bids_app.report.trained import CROSS_VALIDATION, Trained, find_trained
from bids_app.report.violins import draw_violins
from bids_app.report.wilcoxon import least_p, matrices, names_of

NAME: Final = "train"  # of the report, and of its record


def write_training_report(
    output_dir: Path,
    *,
    template: str,
    resolution: float,
    **told: Unpack[Told],
) -> Path:
    """Write ``train.html``.

    What is not told is taken from the last run's record, ``logs/train_report.json``; what is
    told is kept there.

    Parameters
    ----------
    output_dir : Path
        The derivative dataset.
    template : str
        Its name, as a ``space-`` label.
    resolution : float
        Of the images in its space, in mm.
    **told
        What the run tells of itself, see :class:`bids_app.report.runs.Told`.

    Returns
    -------
    Path
        The report.

    Raises
    ------
    ReadWriteError
        If report or record cannot be written. A missing file is no error: the report says so.
    """
    record = renew(output_dir, NAME, told)
    trained = find_trained(output_dir)
    page = render("training.html", _values(output_dir, trained, record, template, resolution))
    path = output_dir / f"{NAME}.html"
    write_text(path, page)
    return path


def tell_training_methods(output_dir: Path) -> str:
    """Write the methods paragraph of what the last run did, as plain text."""
    record = read_record(output_dir, NAME)
    return _methods(find_trained(output_dir), record, _smoothing(output_dir, record))


def _methods(trained: Trained, record: Record, fwhm: float | None) -> str:
    procedure = training_methods.procedure_of(trained, record.versions, fwhm)
    return training_methods.boilerplate(procedure)


def _values(
    output_dir: Path, trained: Trained, record: Record, template: str, resolution: float
) -> dict[str, object]:
    fwhm = _smoothing(output_dir, record)
    return {
        "record": record,
        "duration": tell_duration(record.duration),
        "doubts": doubts_of(trained),
        "trained": trained,
        "gallery": draw_gallery(
            output_dir, trained.scores, trained.models, space_label(template, resolution)
        ),
        "methods": _methods(trained, record, fwhm),
        **_generators(trained),
        **_results(trained, fwhm),
        "smoothing_cautions": cautions_of(sweeps_of(trained.scores), resolution),
    }


def _generators(trained: Trained) -> dict[str, object]:
    """Gather what was trained on what."""
    told = {
        key: statements_of(trained, key)
        for key in ("trained_on", "intended_use", "dataset", "seed", "version")
    }
    return {
        "statements": told,
        "demonstration": tells_of_demonstration(*told["trained_on"], *told["intended_use"]),
        "grids": grids_of(trained),
        "generators": generator_lines(trained),
        "cohorts": cohorts_of(trained),
    }


def _results(trained: Trained, fwhm: float | None) -> dict[str, object]:
    """Lay out tables and charts."""
    sweeps = sweeps_of(trained.scores)
    histories = {model: trained.histories.get(model, ()) for model in trained.models}
    folds = sorted({fold for epochs in histories.values() for fold in folds_of(epochs)}, key=rank)
    return {
        "groups": table1(trained.rows),
        "pairs": beside_the_paper(trained.rows),
        "no_lpips": why_no_lpips(trained.rows),
        "matrices": matrices(trained.comparisons),
        "compared": names_of(trained.comparisons),
        "least_p": least_p(trained.comparisons),
        "violins": draw_violins(trained.scores),
        "curves": draw_curves(histories),
        "folds": folds,
        "kept": {
            full_name_of(model): [kept_epoch(epochs, fold) for fold in folds]
            for model, epochs in histories.items()
            if epochs
        },
        "sweep": draw_sweeps(sweeps, fwhm),
        "best_smoothing": [
            (full_name_of(one.model), f"{one.best:g}", show(one.means[one.best], 3))
            for one in sweeps
        ],
    }


def _smoothing(output_dir: Path, record: Record) -> float | None:
    """Find by how much synthetic PET was smoothed, in mm: as a sidecar says, else the settings."""
    pattern = f"{CROSS_VALIDATION}/*/sub-*/**/*_desc-synth_pet.json"
    for sidecar in sorted(output_dir.glob(pattern))[:1]:
        try:
            told = as_number(read_json(sidecar).get("SmoothingFWHM"))
        except Mri2petError:
            told = None
        if told is not None:
            return told
    return as_value(record.settings.get("smoothing_fwhm"))
