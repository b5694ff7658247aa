"""Tables of a whole derivative dataset, gathered from what lies in it."""

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

from bids_app.errors import ReadWriteError, UnusableDataError
from bids_app.files import MISSING, locked, read_json, read_tsv, write_json, write_tsv
from bids_app.imaging.verdict import reasons_of

METRICS = {
    "participant_id": "Participant",
    "session_id": "Session of the image that was moved",
    "file": "The moved image, as a path inside this dataset",
    "method": "Algorithm",
    "similarity_metric": "How similarity is measured; more is better",
    "similarity_before": "Similarity to the target where the headers put the images",
    "similarity_after": "Similarity to the target after registration",
    "dice_brain_mask": "Dice overlap of the warped brain mask with that of the template",
    "start": "The start that led to the best result",
    "coverage": "For PET: share of the brain that lies in the scanner's field of view, 0 to 1",
    "verdict": "pass, doubt, or fail: an image that failed is used by no later level",
    "reasons": "Why it is not pass",
}
REMARKS = "Remarks"  # our own key
NAMED_AT_MOST = 5  # participants listed in a remark
FIELDS = {
    "method": "Method",
    "similarity_metric": "SimilarityMetric",
    "similarity_before": "SimilarityBefore",
    "similarity_after": "SimilarityAfter",
    "dice_brain_mask": "DiceBrainMask",
    "start": "Start",
    "verdict": "Verdict",
}


def _described(folder: Path) -> dict[str, object]:
    """Read what explains the columns of a table of participants."""
    path = folder / "participants.json"
    try:
        return read_json(path) if path.is_file() else {}
    except (ReadWriteError, UnusableDataError):
        return {}  # it only explains columns


def read_remarks(output_dir: Path) -> tuple[str, ...]:
    """Give what earlier runs had to say of the raw tables that ``participants.tsv`` repeats.

    Returns
    -------
    tuple of str
        Sentences that begin with the path of a raw table.
    """
    column = _described(output_dir).get("participant_id")
    told = column.get(REMARKS) if isinstance(column, dict) else None
    return tuple(one for one in told if isinstance(one, str)) if isinstance(told, list) else ()


def _is_there(path: Path) -> bool:
    return path.exists() or path.is_symlink()


def _write_participants(
    output_dir: Path,
    bids_dir: Path,
    participants: Mapping[str, Mapping[str, str]],
    remarks: Sequence[str],
) -> list[str]:
    """Write who is in the dataset: the raw table decides about those whom the raw dataset has.

    Others may have been brought here from other datasets, so what an earlier run wrote of them is
    kept, and that is told. Where the raw dataset has no table at all, it decides about nobody.
    """
    subjects = sorted(p.name[4:] for p in output_dir.glob("sub-*") if p.is_dir())
    table = bids_dir / "participants.tsv"
    raw = {p.name[4:] for p in bids_dir.glob("sub-*")} if _is_there(table) else set()
    decided = raw | participants.keys()
    kept = {
        row["participant_id"].removeprefix("sub-"): row
        for row in read_tsv(output_dir / "participants.tsv")
        if "participant_id" in row
    }
    kept = {label: row for label, row in kept.items() if label in subjects and label not in decided}
    rows: list[dict[str, object]] = [
        {**kept.get(s, {}), **participants.get(s, {}), "participant_id": f"sub-{s}"}
        for s in subjects
    ]
    of_raw = dict.fromkeys(name for row in participants.values() for name in row)
    columns = list(dict.fromkeys(["participant_id", *of_raw, *_columns_of(kept.values())]))
    write_tsv(output_dir / "participants.tsv", columns, rows)
    explained = {k: v for k, v in _described(output_dir).items() if k in columns}
    explained = {k: v for k, v in explained.items() if k not in of_raw and k != "participant_id"}
    explained |= {k: v for k, v in _described(bids_dir).items() if k in columns and _is_storable(v)}
    told = [one for one in read_remarks(output_dir) if not one.startswith(f"{table}:")]
    more = _tell_kept(table, kept, has_table=bool(raw))
    _write_descriptions(output_dir, explained, [*(told if kept else ()), *remarks, *more])
    return more


def _columns_of(rows: Iterable[Mapping[str, str]]) -> Iterator[str]:
    """Name the columns in which some row says something."""
    for row in rows:
        yield from (name for name, cell in row.items() if cell != MISSING)


def _tell_kept(table: Path, kept: Mapping[str, Mapping[str, str]], *, has_table: bool) -> list[str]:
    """Tell whose rows stay; where there is no table, of those that say anything."""
    known = (set(row.values()) - {row["participant_id"], MISSING} for row in kept.values())
    labels = sorted(
        f"sub-{label}" for label, cells in zip(kept, known, strict=True) if has_table or cells
    )
    if not labels:
        return []
    more = f" and {len(labels) - NAMED_AT_MOST} more" if len(labels) > NAMED_AT_MOST else ""
    who = f"{', '.join(labels[:NAMED_AT_MOST])}{more}"
    if not has_table:
        return [f"{table}: no such file; what an earlier run knew of {who} stays, and may be stale"]
    return [
        f"{table}: there is no {who} in the raw dataset, so what an earlier run knew stays; remove "
        "from the output who was withdrawn"
    ]


def _is_storable(value: object) -> bool:
    """Whether this is JSON in UTF-8: Python's reader takes NaN and halves of characters, too."""
    try:
        return bool(json.dumps(value, allow_nan=False, ensure_ascii=False).encode())
    except (ValueError, RecursionError):
        return False


def _write_descriptions(
    output_dir: Path, explained: dict[str, object], remarks: Sequence[str]
) -> None:
    """Write what explains the columns, and under the first of them the remarks."""
    if remarks:
        first = explained.get("participant_id", {"Description": METRICS["participant_id"]})
        known = first if isinstance(first, dict) else {}
        explained["participant_id"] = {**known, REMARKS: list(remarks)}
    write_json(output_dir / "participants.json", explained)


def _registrations(sidecars: Iterable[Path], output_dir: Path) -> Iterator[dict[str, object]]:
    for path in sorted(sidecars):
        try:
            told = read_json(path)
        except (ReadWriteError, UnusableDataError):
            continue  # not written by us, or by a run that is not at its end
        measured = told.get("Registration")
        if not isinstance(measured, dict):
            continue
        inside = path.relative_to(output_dir)
        session = inside.parts[1] if inside.parts[1].startswith("ses-") else None
        yield {
            "participant_id": inside.parts[0],
            "session_id": session,
            "file": inside.with_suffix(".nii.gz").as_posix(),
            **{column: measured.get(name) for column, name in FIELDS.items()},
            "reasons": "; ".join(reasons_of(measured)) or None,
            "coverage": told.get("BrainCoverage"),
        }


def _write_registrations(output_dir: Path) -> None:
    sidecars = [
        path
        for folders in ("sub-*/anat", "sub-*/pet", "sub-*/ses-*/anat", "sub-*/ses-*/pet")
        for path in output_dir.glob(f"{folders}/*_space-*_res-*_desc-preproc_*.json")
    ]
    table = output_dir / "desc-registration_metrics.tsv"
    write_tsv(table, list(METRICS), list(_registrations(sidecars, output_dir)))
    write_json(table.with_suffix(".json"), {k: {"Description": v} for k, v in METRICS.items()})


def finish_dataset(
    output_dir: Path,
    *,
    bids_dir: Path,
    participants: Mapping[str, Mapping[str, str]],
    remarks: Sequence[str] = (),
) -> list[str]:
    """Write the tables of the whole dataset: all participants in it, all registrations.

    Several runs may write into one dataset: each lists what all have written so far.

    Parameters
    ----------
    output_dir, bids_dir : Path
        Roots of the derivative and of the raw dataset.
    participants : mapping
        Columns of the raw ``participants.tsv`` by participant label; partial, or empty.
    remarks : sequence of str
        What is to be said of that table; each begins with its path. The group level, which sees
        no raw table, gives it as a reason.

    Returns
    -------
    list of str
        At most one more remark: whose rows stay though the raw dataset does not have them.

    Raises
    ------
    ReadWriteError
        If they cannot be written.
    """
    with locked(output_dir):
        more = _write_participants(output_dir, bids_dir, participants, remarks)
        _write_registrations(output_dir)
    return more
