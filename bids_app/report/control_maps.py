"""Maps of held-out controls: how much of a healthy brain scores above 0."""

from collections.abc import Mapping
from pathlib import Path

from bids_app.report.cells import as_value, read_lines
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
    shares, faults = Shares(), list[str]()
    for name, card in cards.items():
        table = f"{card.folder}/control_maps.tsv"
        lines, lost = read_lines(output_dir, table, ("participant_id", "detector", "above_zero"))
        faults += lost
        for cells in lines:
            share = as_value(cells["above_zero"])
            if share is None:
                continue
            visit = name_visit(
                label_of(cells["participant_id"], "sub-"), label_of(cells.get("session_id"), "ses-")
            )
            shares.setdefault(which(name, cells["detector"]), {})[visit] = share
    return shares, faults
