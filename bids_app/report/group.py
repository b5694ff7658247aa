"""The report of the group level, ``group.html``, from files on disk only."""

from pathlib import Path
from typing import Final, Unpack

from bids_app.files import write_text
from bids_app.report import group_methods
from bids_app.report.anomalies import Anomaly, find_anomalies
from bids_app.report.calibration import calibration_lines, calibrations_of, draw_calibration
from bids_app.report.cards import enumerate_words
from bids_app.report.cluster_maps import draw_cluster_maps
from bids_app.report.detected import Detected, find_detected
from bids_app.report.detection_curves import draw_detection, draw_responses
from bids_app.report.detectors import name_visit
from bids_app.report.findings import cluster_tables, summaries_of, tell_scoring, tell_training
from bids_app.report.gallery import space_label
from bids_app.report.group_doubts import current, doubts_of
from bids_app.report.mcnemar import matches_of
from bids_app.report.page import render
from bids_app.report.record import Record, read_record
from bids_app.report.runs import Told, renew, tell_duration
from bids_app.report.subject import tells_of_demonstration

NAME: Final = "group"  # of the report, and of its record
MOST_PICTURED: Final = 40  # patients; the others are pictured in their own reports (our choice)


def write_group_report(
    output_dir: Path,
    *,
    template: str,
    resolution: float,
    **told: Unpack[Told],
) -> Path:
    """Write ``group.html``.

    What is not told is taken from the last run's record, ``logs/group_report.json``; what is
    told is kept there. It is about what that run has scored, as
    :func:`bids_app.report.scored.write_run` has recorded it.

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
    detected = find_detected(output_dir, record.settings.get("detector", ""))
    space = space_label(template, resolution)
    page = render("group.html", _values(output_dir, detected, record, space))
    path = output_dir / f"{NAME}.html"
    write_text(path, page)
    return path


def tell_group_methods(output_dir: Path) -> str:
    """Write the methods paragraph of what the last run did, as plain text."""
    record = read_record(output_dir, NAME)
    return _methods(find_detected(output_dir, record.settings.get("detector", "")), record)


def _methods(detected: Detected, record: Record) -> str:
    procedure = group_methods.procedure_of(detected, record.versions, record.settings)
    return group_methods.boilerplate(procedure)


def _values(output_dir: Path, detected: Detected, record: Record, space: str) -> dict[str, object]:
    pictured, others = detected.participants[:MOST_PICTURED], detected.participants[MOST_PICTURED:]
    return {
        "record": record,
        "duration": tell_duration(record.duration),
        "space": space,
        "doubts": doubts_of(output_dir, detected),
        "maps": [
            (_page(label), panel)
            for label in pictured
            for panel in draw_cluster_maps(output_dir, _maps(output_dir, label, detected, space))
        ],
        "unpictured": [(_page(label), name_visit(label, "")) for label in others],
        "methods": _methods(detected, record),
        **_detectors(detected),
        **_results(detected),
    }


def _maps(output_dir: Path, label: str, detected: Detected, space: str) -> list[Anomaly]:
    return current(output_dir, find_anomalies(output_dir, label, spaces=(space,)), detected)


def _page(label: str) -> str:
    return f"sub-{label}.html"


def _detectors(detected: Detected) -> dict[str, object]:
    """Gather what was trained on what."""
    cards = list(detected.cards.values())
    makers = sorted({
        one.name
        for card in cards
        for one in card.makers
        if tells_of_demonstration(one.intended_use, one.trained_on)
    })  # fmt: skip
    return {
        "cards": cards,
        "demonstration": any(tells_of_demonstration(c.intended_use, c.dataset) for c in cards),
        "makers": enumerate_words(makers) if makers else "",
        "pseudonormal": any(one.detector == "pseudonormal" for one in detected.detectors),
        "synthetic": _tell_synthetic(detected),
        "training": [tell_training(card) for card in cards],
        "scoring": tell_scoring(detected),
    }


def _results(detected: Detected) -> dict[str, object]:
    """Lay out tables and charts."""
    calibrations = calibrations_of(detected)
    return {
        "evaluated": bool(detected.curve),
        "summaries": summaries_of(detected, calibrations),
        "tables": cluster_tables(detected),
        "curve": draw_detection(detected),
        "free": draw_responses(detected),
        "matches": matches_of(detected),
        "calibration": draw_calibration(calibrations, detected.training_sets),
        "calibration_lines": calibration_lines(calibrations),
    }


def _tell_synthetic(detected: Detected) -> str:
    """Say which detectors know synthetic PET; empty if none does."""
    sets = [name for name, card in detected.cards.items() if card.synthetic]
    told = []
    if sets:
        told.append(f"detectors of {enumerate_words(sets)} were trained on synthetic PET")
    if any(one.detector == "pseudonormal" for one in detected.detectors):
        told.append("the detector “pseudo-normal” compares real with synthetic PET")
    return "; ".join(told)
