"""Report of the train level, ``train.html``, from files on disk only."""

from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Final, Unpack

from bids_app.derivatives.paths import resolution_label
from bids_app.derivatives.sidecars import read_derivative
from bids_app.derivatives.table1 import ScoreRow, rank
from bids_app.report.cards import (
    CROSS_VALIDATION,
    TrainedModel,
    cohorts_of,
    find_trained,
    folds_of,
    generator_lines,
    grids_of,
    kept_epoch,
    statements_of,
    uncertainty_lines,
)
from bids_app.report.charts import (
    best_of,
    cautions_of,
    draw_curves,
    draw_sweeps,
    draw_violins,
    sweeps_of,
)
from bids_app.report.gallery import draw_gallery
from bids_app.report.methods import training_methods
from bids_app.report.page import (
    RunSummary,
    describe_demonstration,
    enumerate_words,
    read_record,
    show,
    write_report,
)
from bids_app.report.results import as_number
from bids_app.report.table1 import (
    compare_with_paper,
    full_name_of,
    is_baseline,
    least_p,
    matrices,
    names_of,
    not_measured,
    sign_of,
    table1,
    why_no_lpips,
)
from bids_app.synthesis.models import TISSUE

JUDGES: Final = {"ssim_brain": "SSIM", "psnr_brain": "PSNR"}  # inside the brain


def doubts_of(trained: TrainedModel) -> list[str]:
    """List caveats: missing files, uneven comparisons, and networks no better than a baseline."""
    return [
        *trained.faults,
        *not_measured(trained.rows),
        *_uneven(trained),
        *_without_network(trained),
        *_no_better(trained.rows),
    ]


def _uneven(trained: TrainedModel) -> list[str]:
    """Find rows that are not based on all controls."""
    n_controls = len(trained.participants)
    uneven = [row for row in trained.rows if row.n is not None and row.n != n_controls]
    if not n_controls or not uneven:
        return []
    counts = ", ".join(f"{full_name_of(row.model)} on {row.n}" for row in uneven)
    return [f"Not all rows of Table 1 are based on all {n_controls} controls: {counts}."]


def _without_network(trained: TrainedModel) -> list[str]:
    """Find models that were trained but not scored."""
    scored = {score.model for score in trained.scores}
    return [
        f"{full_name_of(model)} was trained, but no control was scored with it."
        for model in trained.models
        if scored and model not in scored
    ]


def _no_better(rows: Sequence[ScoreRow]) -> list[str]:
    """Find networks that are no better inside the brain than a baseline or the tissue model."""
    networks_by_baselines = defaultdict[str, list[str]](list)
    baselines = [row for row in rows if is_baseline(row.model) or row.model == TISSUE]
    for row in (row for row in rows if row not in baselines):
        metrics_by_baseline = {
            full_name_of(baseline.model): [
                name for metric, name in JUDGES.items() if _beats(baseline, row, metric)
            ]
            for baseline in baselines
        }
        matched = [
            f"{name[0].lower()}{name[1:]} ({' and '.join(metrics)})"
            for name, metrics in metrics_by_baseline.items()
            if metrics
        ]
        if matched:
            networks_by_baselines["; ".join(matched)].append(full_name_of(row.model))
    return [
        f"Inside the brain, {enumerate_words(networks)} {'is' if len(networks) == 1 else 'are'} no "
        f"better than methods without a network: {matched}."
        for matched, networks in networks_by_baselines.items()
    ]


def _beats(one: ScoreRow, other: ScoreRow, metric: str) -> bool:
    """Return whether the first is at least as good; False if either was not measured."""
    lead = one.means[metric] - other.means[metric]  # nan if both are infinite
    return sign_of(metric) * lead >= 0


NAME: Final = "train"  # of the report and of its record


def write_training_report(
    output_dir: Path, *, template: str, resolution: float, **summary: Unpack[RunSummary]
) -> Path:
    """Write ``train.html``.

    Fields missing from ``summary`` are taken from the record of the last run,
    ``logs/train_report.json``, to which given fields are written.

    Parameters
    ----------
    output_dir : Path
        Path of the derivative dataset.
    template : str
        Name of the template, as a ``space-`` label.
    resolution : float
        Resolution of the images in template space, in mm.
    **summary
        Summary of the run; see :class:`bids_app.report.page.RunSummary`.

    Returns
    -------
    Path
        Path of the report; see :func:`bids_app.report.page.write_report`.
    """

    def gather(record: RunSummary) -> dict[str, object]:
        trained, fwhm = find_trained(output_dir), _smoothing(output_dir, record)
        space = f"{template}_res-{resolution_label(resolution)}"
        return {
            "doubts": doubts_of(trained),
            "trained": trained,
            "gallery": draw_gallery(output_dir, trained.scores, trained.models, space),
            "methods": training_methods(trained, record["versions"], fwhm),
            **_generators(trained),
            **_results(trained, fwhm),
            "smoothing_cautions": cautions_of(sweeps_of(trained.scores), resolution),
        }

    return write_report(output_dir, NAME, summary, "training.html", gather)


def write_training_methods(output_dir: Path) -> str:
    """Return the methods paragraph of the last run, as plain text."""
    record = read_record(output_dir, NAME)
    fwhm = _smoothing(output_dir, record)
    return training_methods(find_trained(output_dir), record["versions"], fwhm)


def _generators(trained: TrainedModel) -> dict[str, object]:
    """Describe the training of the generators."""
    keys = ("trained_on", "intended_use", "dataset", "seed")
    statements = {key: statements_of(trained, key) for key in keys}
    return {
        "statements": statements,
        "demonstration": describe_demonstration(
            *statements["trained_on"], *statements["intended_use"]
        ),
        "grids": grids_of(trained),
        "generators": generator_lines(trained),
        "uncertainties": uncertainty_lines(trained),
        "cohorts": cohorts_of(trained),
    }


def _results(trained: TrainedModel, fwhm: float | None) -> dict[str, object]:
    """Build the tables and charts."""
    sweeps = sweeps_of(trained.scores)
    networks = [model for model in trained.models if model != TISSUE]  # it has no epochs
    histories = {model: trained.histories.get(model, ()) for model in networks}
    folds = sorted({fold for epochs in histories.values() for fold in folds_of(epochs)}, key=rank)
    return {
        "groups": table1(trained.rows),
        "pairs": compare_with_paper(trained.rows),
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
            (full_name_of(model), f"{best_of(means):g}", show(means[best_of(means)], 3))
            for model, means in sweeps.items()
        ],
    }


def _smoothing(output_dir: Path, record: RunSummary) -> float | None:
    """Return the FWHM of the smoothing of synthetic PET, in mm, from a sidecar or the settings."""
    sidecars = sorted(output_dir.glob(f"{CROSS_VALIDATION}/*/sub-*/**/*_desc-synth_pet.json"))
    metadata = read_derivative(sidecars[0]).metadata if sidecars else {}
    fwhm = as_number(metadata.get("SmoothingFWHM"))
    return as_number(record["settings"].get("smoothing_fwhm")) if fwhm is None else fwhm
