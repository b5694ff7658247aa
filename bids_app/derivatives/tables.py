"""Tables of a whole derivative dataset, gathered from what lies in it."""

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

from bids_app.errors import ReadWriteError, UnusableDataError
from bids_app.files import locked, read_json, read_tsv, write_json, write_tsv

METRICS = {
    "participant_id": "Participant",
    "session_id": "Session of the image that was moved",
    "file": "The moved image, as a path inside this dataset",
    "method": "Algorithm",
    "similarity_metric": "How similarity is measured; more is better",
    "similarity_before": "Similarity to the target where the headers put the images",
    "similarity_after": "Similarity to the target after registration",
    "dice_brain_mask": "Dice overlap of the warped brain mask with that of the template",
    "start": "For PET: the start that led to the best result",
    "coverage": "For PET: share of the brain that lies in the scanner's field of view, 0 to 1",
}
FIELDS = {
    "method": "Method",
    "similarity_metric": "SimilarityMetric",
    "similarity_before": "SimilarityBefore",
    "similarity_after": "SimilarityAfter",
    "dice_brain_mask": "DiceBrainMask",
    "start": "Start",
}


def _raw_columns(bids_dir: Path) -> dict[str, object]:
    try:
        return read_json(bids_dir / "participants.json")
    except (ReadWriteError, UnusableDataError):
        return {}  # it only explains columns


def _write_participants(
    output_dir: Path, bids_dir: Path, participants: Mapping[str, Mapping[str, str]]
) -> None:
    subjects = sorted(p.name[4:] for p in output_dir.glob("sub-*") if p.is_dir())
    earlier = {
        row["participant_id"].removeprefix("sub-"): row
        for row in read_tsv(output_dir / "participants.tsv")
        if "participant_id" in row
    }
    rows: list[dict[str, object]] = [
        {**earlier.get(s, {}), **participants.get(s, {}), "participant_id": f"sub-{s}"}
        for s in subjects
    ]
    every = [*participants.values(), *earlier.values()]
    columns = list(dict.fromkeys(["participant_id", *(name for row in every for name in row)]))
    write_tsv(output_dir / "participants.tsv", columns, rows)
    explained = {k: v for k, v in _raw_columns(bids_dir).items() if k in columns}
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
    output_dir: Path, *, bids_dir: Path, participants: Mapping[str, Mapping[str, str]]
) -> None:
    """Write the tables of the whole dataset: all participants in it, all registrations.

    Several runs may write into one dataset: each lists what all have written so far.

    Parameters
    ----------
    output_dir, bids_dir : Path
        Roots of the derivative and of the raw dataset.
    participants : mapping
        Columns of the raw ``participants.tsv`` by participant label; partial, or empty.

    Raises
    ------
    ReadWriteError
        If they cannot be written.
    """
    with locked(output_dir):
        _write_participants(output_dir, bids_dir, participants)
        _write_registrations(output_dir)
