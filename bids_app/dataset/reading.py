"""The files of a raw BIDS dataset: its T1w and PET images, and what their sidecars say."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from math import isfinite
from pathlib import Path

from bids_app.dataset.bidsignore import Ignored
from bids_app.dataset.index import DATATYPE, IMAGE, PET_SIDECAR, list_files
from bids_app.errors import (
    InvalidBidsError,
    MissingInputError,
    ReadWriteError,
    UnusableDataError,
)
from bids_app.files import NOWHERE, read_json, why_no_file
from bids_app.visit import Scan

METADATA = ("TracerName", "FrameTimesStart", "FrameDuration", "Units")  # all that the app reads


@dataclass(frozen=True)
class RawFiles:
    """What was found of some participants.

    Parameters
    ----------
    t1ws, pets : mapping
        Images by subject label, in the order of their names. PET images carry no metadata yet.
    pet_sidecars : mapping
        All JSON files that may say something about a PET image, by the folder they lie in.
    ignored : mapping
        Images that ``.bidsignore`` leaves out, by subject label.
    """

    t1ws: Mapping[str, tuple[Scan, ...]]
    pets: Mapping[str, tuple[Scan, ...]]
    pet_sidecars: Mapping[Path, tuple[Path, ...]]
    ignored: Mapping[str, tuple[Scan, ...]] = field(default_factory=dict)


def find_subjects(bids_dir: Path) -> tuple[str, ...]:
    """List the participants that have a folder, without ``sub-``, sorted.

    Those that ``.bidsignore`` leaves out are among them, and those whose folder is a link that
    leads nowhere.

    Raises
    ------
    MissingInputError
        If there is no such dataset.
    InvalidBidsError
        If it is no folder, has no ``dataset_description.json``, or no participant.
    ReadWriteError
        If it may not be read.
    """
    if not bids_dir.exists():
        raise MissingInputError(f"{bids_dir}: no such folder; check the path of the BIDS dataset")
    if not bids_dir.is_dir():
        raise InvalidBidsError(f"{bids_dir}: not a folder; give the root of a BIDS dataset")
    description = bids_dir / "dataset_description.json"
    if not description.is_file():
        raise InvalidBidsError(
            f"{bids_dir}: has no dataset_description.json; give the root of a BIDS dataset"
        )
    try:
        read_json(description)
    except UnusableDataError as error:
        raise InvalidBidsError(str(error)) from error
    try:
        subjects = sorted(p.name[4:] for p in bids_dir.iterdir() if p.name.startswith("sub-"))
        subjects = [subject for subject in subjects if _may_be_folder(bids_dir / f"sub-{subject}")]
    except OSError as error:
        raise ReadWriteError(f"{bids_dir}: cannot be listed ({error.strerror})") from error
    if not subjects:
        raise InvalidBidsError(f"{bids_dir}: has no sub-* folder; a BIDS dataset has one a person")
    return tuple(subjects)


def _may_be_folder(path: Path) -> bool:
    return path.is_dir() or why_no_file(path) == NOWHERE


def parse_name(name: str) -> tuple[tuple[str, str], ...]:
    """Split a BIDS file name into its entities.

    Examples
    --------
    >>> parse_name("sub-01_ses-a_trc-18FFDG_run-01_pet.nii.gz")
    (('sub', '01'), ('ses', 'a'), ('trc', '18FFDG'), ('run', '01'))
    """
    parts = (part.partition("-") for part in name.partition(".")[0].split("_"))
    return tuple((key, label) for key, dash, label in parts if dash)


def _scan(path: Path, folders: Sequence[str]) -> Scan:
    entities = parse_name(path.name)
    # The folder decides: a name may lack what its folder says.
    named = dict(entities).get("ses")
    session = next((name[4:] for name in folders if name.startswith("ses-")), named)
    return Scan(path, folders[0].removeprefix("sub-"), session, entities)


def _is_image(path: Path) -> bool:
    """Whether this is a file, or a link whose content is not there; nothing is opened."""
    instead = why_no_file(path)
    return instead is None or instead == NOWHERE


def read_files(
    bids_dir: Path,
    subjects: Sequence[str],
    *,
    is_ignored: Ignored | None = None,
    database_dir: Path | None = None,
) -> RawFiles:
    """Find the T1w and PET images of some participants; no file is opened.

    Parameters
    ----------
    bids_dir : Path
        Root of the raw dataset.
    subjects : sequence of str
        Labels without ``sub-``.
    is_ignored : callable, optional
        What ``.bidsignore`` says, as :func:`bids_app.dataset.bidsignore.read_bidsignore` reads it.
    database_dir : Path, optional
        Where pybids keeps its index between runs. One that is there is believed: who changes the
        dataset deletes it.

    Raises
    ------
    InvalidBidsError, UsageError
        As :func:`list_files`.
    """
    bids_dir = bids_dir.absolute()
    found: dict[str, defaultdict[str, list[Scan]]] = {
        key: defaultdict(list) for key in ("T1w", "pet", "ignored")
    }
    sidecars: defaultdict[Path, list[Path]] = defaultdict(list)
    chosen = frozenset(f"sub-{subject}" for subject in subjects)
    for path in list_files(bids_dir, subjects, database_dir):
        folders = path.relative_to(bids_dir).parts[:-1]
        match = IMAGE.fullmatch(path.name)
        left_out = is_ignored is not None and is_ignored(path.relative_to(bids_dir))
        if PET_SIDECAR.fullmatch(path.name) and not left_out:
            sidecars[path.parent].append(path)
        elif not match or not folders or folders[0] not in chosen or not _is_image(path):
            continue
        elif folders[-1] == DATATYPE[match[1]]:
            scan = _scan(path, folders)
            found["ignored" if left_out else match[1]][scan.subject].append(scan)
    t1ws, pets, ignored = (
        {subject: tuple(scans) for subject, scans in by_subject.items()}
        for by_subject in found.values()
    )
    of_folders = {folder: tuple(paths) for folder, paths in sidecars.items()}
    return RawFiles(t1ws, pets, of_folders, ignored)


def read_metadata(scan: Scan, sidecars: Mapping[Path, tuple[Path, ...]]) -> Scan:
    """Add to an image what its sidecars say, the nearest one last (BIDS inheritance principle).

    Parameters
    ----------
    scan : Scan
        A PET image.
    sidecars : mapping
        Those of :func:`read_files`.

    Raises
    ------
    UnusableDataError
        If a sidecar that applies is no file, or no JSON object.
    ReadWriteError
        If it cannot be read.
    """
    own = scan.path.with_name(scan.path.name.partition(".")[0] + ".json")
    if own.is_dir():  # pybids lists no folders
        raise UnusableDataError(f"{own}: is a folder, not a file; remove it")
    entities = frozenset(scan.entities)
    metadata: dict[str, object] = {}
    for folder in reversed(scan.path.parents):  # from the root down to the image
        applying = (
            path for path in sidecars.get(folder, ()) if entities.issuperset(parse_name(path.name))
        )
        for path in sorted(applying, key=lambda path: len(path.name)):
            instead = why_no_file(path)
            if instead is not None:
                raise UnusableDataError(f"{path}: is {instead}")
            metadata.update(read_json(path))
    kept = {key: metadata[key] for key in METADATA if metadata.get(key) is not None}
    return replace(
        scan,
        metadata=tuple(
            (key, tuple(value) if isinstance(value, list) else value) for key, value in kept.items()
        ),
    )


def _numbers(value: object) -> tuple[float, ...] | None:
    values = value if isinstance(value, tuple) else (value,)  # one frame may come without a list
    if any(isinstance(v, bool) or not isinstance(v, int | float) for v in values):
        return None
    try:
        numbers = tuple(float(v) for v in values)
    except OverflowError:  # a whole number of hundreds of digits
        return None
    return numbers if all(isfinite(number) for number in numbers) else None


def frame_durations(scan: Scan) -> tuple[float, ...]:
    """Give the duration of each frame in s, as its sidecar has it; none where it has no numbers.

    When frames began is of no use here, so that it may be wrong or missing.
    """
    durations = dict(scan.metadata).get("FrameDuration")
    numbers = None if durations is None else _numbers(durations)
    return () if numbers is None else numbers
