"""The report of one participant, from files on disk only."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Unpack

from bids_app.errors import Mri2petError
from bids_app.files import write_text
from bids_app.nifti import check_header
from bids_app.report.anomaly_section import section_of
from bids_app.report.methods import boilerplate, procedure_of
from bids_app.report.page import render
from bids_app.report.panels import draw
from bids_app.report.record import Record
from bids_app.report.results import Results, find_results
from bids_app.report.runs import Told, renew, tell_duration
from bids_app.report.tables import (
    comparison_rows,
    coverage_rows,
    novelty_rows,
    registration_rows,
    warnings_of,
)

DEMONSTRATION: Final = ("demonstrat", "simulat")  # as cards of generators put it


@dataclass(frozen=True)
class Generator:
    """What made a synthetic PET, as its sidecar says."""

    name: str
    version: str
    sha256: str
    trained_on: str
    intended_use: str

    @property
    def is_demonstration(self) -> bool:
        """Whether its card says that it is not meant for real studies."""
        return tells_of_demonstration(self.intended_use, self.trained_on)


@dataclass(frozen=True)
class Finding:
    """A line of the list of what was found."""

    what: str
    name: str
    source: str


def tells_of_demonstration(*told: str) -> bool:
    """Whether a card says that what it is of is not meant for real studies.

    Examples
    --------
    >>> tells_of_demonstration("Research.", "T1w and PET SIMULATED on label maps.")
    True
    """
    return any(word in " ".join(told).lower() for word in DEMONSTRATION)


def write_subject_report(
    output_dir: Path,
    subject: str,
    *,
    template_t1w: Path,
    **told: Unpack[Told],
) -> Path:
    """Write ``sub-X.html``.

    What is not told is taken from the last run's record, ``logs/sub-X_report.json``; what is
    told is kept there.

    Parameters
    ----------
    output_dir : Path
        The derivative dataset.
    subject : str
        A label, without ``sub-``.
    template_t1w : Path
        The template, on the grid of the images in its space.
    **told
        What the run tells of itself, see :class:`bids_app.report.runs.Told`.

    Returns
    -------
    Path
        The report.

    Raises
    ------
    ReadWriteError
        If report or record cannot be written. A missing image is no error: the report says so.
    """
    record = renew(output_dir, f"sub-{subject}", told)
    visits = find_results(output_dir, subject, _shape_of(template_t1w))
    page = render("subject.html", _values(output_dir, subject, template_t1w, visits, record))
    path = output_dir / f"sub-{subject}.html"
    write_text(path, page)
    return path


def _shape_of(template_t1w: Path) -> tuple[int, ...]:
    try:
        return check_header(template_t1w)
    except Mri2petError:  # its figure will say what is wrong
        return ()


def _values(
    output_dir: Path,
    subject: str,
    template_t1w: Path,
    visits: Sequence[Results],
    record: Record,
) -> dict[str, object]:
    drawings = [draw(output_dir, visit, template_t1w) for visit in visits]
    spaces = tuple(sorted({visit.space for visit in visits if visit.space}))
    return {
        "subject": subject,
        "generators": _generators(visits),
        "findings": [line for visit in visits for line in _findings(visit)],
        "spaces": spaces,
        "record": record,
        "doubts": [one for one in warnings_of(visits) if one not in record.notes],
        "registrations": registration_rows(visits),
        "coverages": coverage_rows(visits),
        "novelties": novelty_rows(visits),
        "comparisons": comparison_rows(visits),
        "anatomy": [panel for drawing in drawings for panel in drawing.anatomy],
        "coregistration": [panel for drawing in drawings for panel in drawing.coregistration],
        "pet": [panel for drawing in drawings for panel in drawing.pet],
        "anomalies": section_of(output_dir, subject, spaces),
        "methods": boilerplate(procedure_of(visits, record.versions)) if visits else "",
        "duration": tell_duration(record.duration),
    }


def _generators(visits: Sequence[Results]) -> list[Generator]:
    """List the generators of the synthetic PETs, each once."""
    found = [
        visit.synthetic.metadata.get("Generator") for visit in visits if visit.synthetic is not None
    ]
    return list(dict.fromkeys(_generator(told if isinstance(told, dict) else {}) for told in found))


def _generator(told: Mapping[str, object]) -> Generator:
    name, version, sha256, trained_on, use = (
        str(told.get(key, "unknown"))
        for key in ("Name", "Version", "SHA256", "TrainedOn", "IntendedUse")
    )
    return Generator(name, version, sha256, trained_on, use)


def _findings(visit: Results) -> list[Finding]:
    lines = [Finding("T1w", visit.name, ", ".join(visit.t1w.sources()))]
    lines += [Finding("PET", pet.name, ", ".join(pet.in_t1w.sources())) for pet in visit.pets]
    if visit.synthetic is not None:
        lines.append(Finding("SYNTHETIC PET", visit.name, "predicted from the T1w"))
    return lines
