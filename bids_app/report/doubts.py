"""What the files of the train level themselves give reason to doubt, in sentences."""

from collections.abc import Sequence
from typing import Final

from bids_app.report.paper import full_name_of, is_baseline
from bids_app.report.scores import Row, sign_of
from bids_app.report.table1 import not_measured
from bids_app.report.trained import Trained

JUDGES: Final = {"ssim_brain": "SSIM", "psnr_brain": "PSNR"}  # inside the brain


def doubts_of(trained: Trained) -> list[str]:
    """List what is missing, what was not compared alike, and what a baseline does as well."""
    return [
        *trained.faults,
        *not_measured(trained.rows),
        *_uneven(trained),
        *_without_network(trained),
        *_no_better(trained.rows),
    ]


def _uneven(trained: Trained) -> list[str]:
    """Find rows that do not stand on all controls."""
    everyone = len(trained.participants)
    uneven = [row for row in trained.rows if row.n is not None and row.n != everyone]
    if not everyone or not uneven:
        return []
    told = ", ".join(f"{full_name_of(row.model)} on {row.n}" for row in uneven)
    return [f"Not all rows of Table 1 stand on all {everyone} controls: {told}."]


def _without_network(trained: Trained) -> list[str]:
    """Find models that were trained but not scored."""
    scored = {score.model for score in trained.scores}
    return [
        f"{full_name_of(model)} was trained, but no control was scored with it."
        for model in trained.models
        if scored and model not in scored
    ]


def _no_better(rows: Sequence[Row]) -> list[str]:
    """Find models that a baseline, which needs no network, is as good as inside the brain."""
    sentences = []
    baselines = [row for row in rows if is_baseline(row.model)]
    for row in (row for row in rows if not is_baseline(row.model)):
        lost = {
            full_name_of(baseline.model): [
                name for metric, name in JUDGES.items() if _beats(baseline, row, metric)
            ]
            for baseline in baselines
        }
        told = [f"{name} ({' and '.join(metrics)})" for name, metrics in lost.items() if metrics]
        if told:
            sentences.append(
                f"Inside the brain, {full_name_of(row.model)} is no better than a baseline: "
                f"{'; '.join(told)}."
            )
    return sentences


def _beats(one: Row, other: Row, metric: str) -> bool:
    """Tell whether the first is at least as good; not if either was not measured."""
    mine, theirs = one.means[metric], other.means[metric]
    return mine is not None and theirs is not None and sign_of(metric) * (mine - theirs) >= 0
