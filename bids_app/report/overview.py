"""``participants.html``: a table of all participants for browsing and rating."""

import base64
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import numpy as np
from PIL import Image as Pillow

from bids_app.derivatives.find import Results
from bids_app.errors import Mri2petError
from bids_app.files import Json, object_at, read_json, write_json, write_text
from bids_app.report.figures import encode
from bids_app.report.page import LOGS, render, show
from bids_app.report.panels import Panel
from bids_app.report.results import (
    MEASURES,
    as_number,
    coverage_rows,
    measures_of,
    registration_rows,
    warnings_of,
)

NAME: Final = "participants.html"
OTHERS: Final = {"group.html": "Group report", "train.html": "Training of generators"}
ENDING: Final = "_overview.json"  # of the files that reports write to logs/ for this page
THUMBNAIL: Final = 72  # px; our choice: 500 of them are a megabyte
QUALITY: Final = 70  # of JPEG; our choice
KINDS: Final = ("Real PET", "SYNTHETIC PET")  # names of rows of pictures, the preferred one first
FAR: Final = 3.0  # robust SDs from the median beyond which a value is an outlier; our choice
FEWEST: Final = 8  # values needed to find outliers; our choice
NORMAL: Final = 1.4826  # ratio of SD to median absolute deviation for a Gaussian
# Column → its heading and number of decimals
NUMBERS: Final = {
    "dice": ("Dice, T1w", 3),
    "covered": ("PET coverage (%)", 1),
    "ssim": ("SSIM, brain", 3),
    "novelty": ("Novelty", 2),
}


def overview_path(output_dir: Path, subject: str) -> Path:
    """Return the path of the rows of a participant for the table of all participants."""
    return output_dir / LOGS / f"sub-{subject}{ENDING}"


def keep_overview(
    output_dir: Path,
    subject: str,
    visits: Sequence[Results],
    pictures: Sequence[Panel],
    problems: Sequence[str] = (),
) -> None:
    """Write the rows of a participant for the table of all participants.

    Parameters
    ----------
    output_dir : Path
        Path of the derivative dataset.
    subject : str
        Label of the participant, without ``sub-``.
    visits : sequence of Results
        Visits of the participant.
    pictures : sequence of Panel
        Panels of PET; a slice of the first real PET becomes the thumbnail, or of the synthetic one.
    problems : sequence of str
        Problems of the run; they count as warnings.
    """
    rows = [{"visit": visit.name, **_numbers(visit)} for visit in visits]
    kind, thumbnail = next(filter(None, (_thumbnail(pictures, kind) for kind in KINDS)), ("", ""))
    record = {
        "rows": rows,
        "warnings": len(problems) + len(warnings_of(visits, problems)),
        "thumbnail": thumbnail,
        "pictured": kind,
    }
    write_json(overview_path(output_dir, subject), record)


def _numbers(visit: Results) -> Json:
    rows = registration_rows([visit])
    verdicts = [row.cells[0] for row in rows]
    shares = [float(row.cells[0].rstrip(" %")) for row in coverage_rows([visit])]
    novelty = {} if visit.synthetic is None else object_at(visit.synthetic.metadata, "Novelty")
    t1w = visit.t1w_in_template
    registration = {} if t1w is None else object_at(t1w.metadata, "Registration")
    return {
        "t1w": verdicts[0] if verdicts else "n/a",
        "pet": ", ".join(verdicts[1:]) if verdicts[1:] else "no PET",
        "dice": as_number(registration.get("DiceBrainMask")),
        "covered": min(shares, default=None),
        "ssim": measures_of(visit.synthetic).get(MEASURES[2]),
        "novelty": as_number(novelty.get("Value")),
    }


def _thumbnail(pictures: Sequence[Panel], kind: str) -> tuple[str, str] | None:
    """Return a kind of PET with a thumbnail of it, a ``data:`` URL; None if it is not pictured."""
    for figure in (figure for panel in pictures for figure in panel.figures):
        names = [text.words for text in figure.texts if text.turned]  # of the rows
        if kind in names:
            slices = figure.frames[0][1]
            row = sorted({tile.spot.y for tile in slices})[names.index(kind)]
            tiles = [tile for tile in slices if tile.spot.y == row]
            content = base64.b64decode(tiles[len(tiles) // 2].href.partition("base64,")[2])
            image = Pillow.open(io.BytesIO(content)).convert("RGB")
            image.thumbnail((THUMBNAIL, THUMBNAIL))
            return kind, encode(np.asarray(image), "JPEG", quality=QUALITY)
    return None


def write_overview(output_dir: Path) -> Path:
    """Write ``participants.html`` from the rows written with the reports.

    Raises
    ------
    ReadWriteError
        If the page cannot be written.
    """
    records = {}
    for path in sorted((output_dir / LOGS).glob(f"sub-*{ENDING}")):
        label = path.name.removesuffix(ENDING)
        if (output_dir / f"{label}.html").exists():
            try:
                records[label] = read_json(path)
            except Mri2petError:
                continue  # the report itself is there
    lines = [
        _line(label, row, record, first=number == 0)
        for label, record in records.items()
        for number, row in enumerate(_rows(record))
    ]
    mark_outliers(lines)
    numbers = {
        name: heading
        for name, (heading, _) in NUMBERS.items()
        if any(line["cells"][name] != "n/a" for line in lines)
    }
    values = {
        "lines": lines,
        "numbers": numbers,
        "dataset": output_dir.name,
        "reports": [item for item in OTHERS.items() if (output_dir / item[0]).exists()],
    }
    path = output_dir / NAME
    write_text(path, render("participants.html", values))
    return path


def _rows(record: Json) -> list[Json]:
    rows = record.get("rows")
    return [row for row in rows if isinstance(row, dict)] if isinstance(rows, list) else []


def _line(label: str, row: Json, record: Json, *, first: bool) -> Json:
    numbers = {name: as_number(row.get(name)) for name in NUMBERS}
    visit = str(row.get("visit", label))
    participant, _, session = visit.partition(", ")
    thumbnail, pictured = record.get("thumbnail"), str(record.get("pictured", ""))
    return {
        "participant": participant,
        "session": session,
        "visit": visit,
        "page": f"{label}.html",
        "t1w": str(row.get("t1w", "n/a")),
        "pet": str(row.get("pet", "n/a")),
        "numbers": numbers,
        "cells": {name: show(numbers[name], digits) for name, (_, digits) in NUMBERS.items()},
        "odd": set[str](),
        "warnings": record.get("warnings", 0),
        "thumbnail": thumbnail if first and pictured else "",  # of an unknown kind: not shown
        "pictured": pictured,
    }


def mark_outliers(lines: Sequence[Json]) -> None:
    """Add to ``odd`` of each line the numbers that are outliers.

    Outliers are more than 3 robust standard deviations from the median (our choice), of at least
    8 values.

    Examples
    --------
    >>> values = [dict.fromkeys(NUMBERS, 0.9 + n / 1000) for n in range(9)]
    >>> lines = [{"numbers": numbers, "odd": set()} for numbers in values]
    >>> lines[4]["numbers"]["dice"] = 0.5
    >>> mark_outliers(lines)
    >>> [line["odd"] for line in lines[3:6]]
    [set(), {'dice'}, set()]
    """
    for name in NUMBERS:
        pairs = [(line, line["numbers"][name]) for line in lines]
        values = np.array([value for _, value in pairs if value is not None], float)
        if len(values) < FEWEST:
            continue
        middle = float(np.median(values))
        spread = NORMAL * float(np.median(np.abs(values - middle)))
        for line, value in pairs:
            if value is not None and spread and abs(value - middle) > FAR * spread:
                line["odd"].add(name)
