"""Held-out controls: their clusters, and how much of a healthy brain scores above 0."""

from collections.abc import Mapping
from pathlib import Path

from bids_app.report.cells import Cells, as_value, read_lines
from bids_app.report.detector_cards import Card
from bids_app.report.detectors import Which, label_of, name_visit, which

Shares = dict[Which, dict[str, float]]


def control_shares(output_dir: Path, cards: Mapping[str, Card]) -> tuple[Shares, list[str]]:
    """Read the share of the brain that scores above 0, of each held-out control.

    Parameters
    ----------
    output_dir : Path
        The derivative dataset.
    cards : dict
        Training set → card.

    Returns
    -------
    dict
        Detector → control → share, 0 to 1; a control of whom it is not told is not in it.
    list of str
        What is missing or damaged, a sentence each.
    """
    shares = Shares()
    lines, faults = _lines(output_dir, cards, "control_maps.tsv", "above_zero")
    for detector, visit, cells in lines:
        share = as_value(cells["above_zero"])
        if share is not None:
            shares.setdefault(detector, {})[visit] = share
    return shares, faults


def control_scores(
    output_dir: Path, cards: Mapping[str, Card]
) -> tuple[dict[Which, dict[str, list[float]]], list[str]]:
    """Read what held-out controls have; those without clusters have a line without numbers.

    Parameters
    ----------
    output_dir : Path
        The derivative dataset.
    cards : dict
        Training set → card.

    Returns
    -------
    dict
        Detector → held-out control → ``sum_score`` of each of its clusters.
    list of str
        What is missing or damaged, a sentence each.
    """
    scores = dict[Which, dict[str, list[float]]]()
    lines, faults = _lines(output_dir, cards, "control_clusters.tsv")
    for detector, visit, cells in lines:
        own = scores.setdefault(detector, {}).setdefault(visit, [])
        score = as_value(cells.get("sum_score"))
        own += [] if score is None else [score]
    return scores, faults


def _lines(
    output_dir: Path, cards: Mapping[str, Card], table: str, *needed: str
) -> tuple[list[tuple[Which, str, Cells]], list[str]]:
    """Read a table that lies beside each detector: which detector, whom, and all cells."""
    found, faults = list[tuple[Which, str, Cells]](), list[str]()
    for name, card in cards.items():
        columns = ("participant_id", "detector", *needed)
        lines, lost = read_lines(output_dir, f"{card.folder}/{table}", columns)
        faults += lost
        for cells in lines:
            visit = name_visit(
                label_of(cells["participant_id"], "sub-"), label_of(cells.get("session_id"), "ses-")
            )
            found.append((which(name, cells["detector"]), visit, cells))
    return found, faults
