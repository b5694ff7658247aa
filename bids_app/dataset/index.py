"""Index of a raw BIDS dataset: T1w and PET images and their sidecars."""

import re
import warnings
from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from math import isfinite, isnan
from pathlib import Path
from typing import Protocol

from bids_app.arguments import refuse_other_than_bids
from bids_app.errors import InvalidBidsError, ReadWriteError, UnusableDataError, UsageError
from bids_app.files import NOWHERE, read_json, split_lines, why_no_file
from bids_app.visit import Scan

NAME = ".bidsignore"
LARGEST = 1_000_000  # bytes; our choice, much more than lists of thousands of files need
CLASS = r"\[(?P<no>[!^]?)(?P<body>(?:\]|\\.)?(?:\\.|[^\]\\])*)\]"
PART = re.compile(rf"(?:{CLASS}|\\[^/]|[^/])+")  # part of a pattern between slashes
TOKEN = re.compile(rf"(?P<star>\*+)|{CLASS}|(?P<any>\?)|\\?(?P<sign>.)", re.S)
Rule = tuple[tuple[re.Pattern[str] | None, ...], bool, bool]  # see _compile


class Ignored(Protocol):
    """Predicate for paths that ``.bidsignore`` excludes."""

    def __call__(self, path: Path, is_folder: bool = False) -> bool:
        """Check whether a path relative to the root of the dataset is excluded."""


def _sign(found: re.Match[str]) -> str:
    """Translate a token of a pattern that matches one character to a regular expression."""
    if found[0] == "[":
        raise re.error("a bracket that is never closed, which matches nothing in git, either")
    if found["any"] or found["body"] is None:
        return "." if found["any"] else re.escape(found["sign"])
    body = re.sub(r"([\\\]\[^&~|])", r"\\\1", re.sub(r"\\(.)", r"\1", found["body"]))
    return f"[{'^' if found['no'] else ''}{body}]"


def _name_pattern(part: str) -> re.Pattern[str] | None:
    """Compile the part of a pattern for one path component; None matches any number of components.

    The text between two stars is matched at its first occurrence only, because a later one leaves
    less for the rest. Thus, many stars take no longer than one.
    """
    if part == "**":
        return None
    pieces = [""]
    for found in TOKEN.finditer(part):
        if found["star"]:
            pieces.append("")
        else:
            pieces[-1] += _sign(found)
    first, *between = pieces
    last = f".*{between.pop()}" if between else ""
    return re.compile(first + "".join(f"(?>.*?{piece})" for piece in between) + last, re.S)


def _compile(line: str) -> Rule | None:
    """Parse a line into its pattern, whether it matches folders only, and whether it negates."""
    pattern = re.sub(r"(?<!\\)[ \t]+$", "", line)
    taken_back = pattern.startswith("!")
    pattern = pattern.removeprefix("!")
    only_folders = pattern.endswith("/")
    pattern = pattern.removesuffix("/")
    parts = [found[0] for found in PART.finditer(pattern)]
    if not parts or "//" in pattern or line.startswith("#"):
        return None
    parts = parts if "/" in pattern else ["**", *parts]
    try:
        return tuple(map(_name_pattern, parts)), only_folders, taken_back
    except re.error:  # for example, [z-a]
        return None


def _fits(names: Sequence[str], patterns: Sequence[re.Pattern[str] | None]) -> bool:
    """Check whether the components of a path match those of a rule."""
    if not patterns:
        return not names
    first, *rest = patterns
    if first is not None:
        return bool(names) and first.fullmatch(names[0]) is not None and _fits(names[1:], rest)
    if not rest:
        return bool(names)
    return any(_fits(names[n:], rest) for n in range(len(names)))


def _lines(bids_dir: Path) -> list[str]:
    path = bids_dir / NAME
    if not path.is_file():
        return []
    try:
        if path.stat().st_size > LARGEST:
            raise ReadWriteError(f"{path}: larger than 1 MB; shorten it to patterns")
        text = path.read_text(encoding="utf-8-sig", errors="replace")
    except OSError as error:
        raise ReadWriteError(f"{path}: cannot be read ({error.strerror})") from error
    return split_lines(text)


def read_bidsignore(bids_dir: Path) -> Ignored:
    """Read ``.bidsignore`` at the root of a dataset; without the file, nothing is excluded.

    Its patterns are those of ``.gitignore`` (BIDS 1.10, "Filesystem structure"; gitignore(5)): the
    last match decides, ``!`` re-includes, and nothing inside an excluded folder can be re-included.

    Returns
    -------
    callable
        Function of a path relative to the root, and of whether it is a folder (by default a file),
        that returns whether the path is excluded.

    Raises
    ------
    ReadWriteError
        If the file exists but cannot be read.
    """
    rules = [rule for rule in map(_compile, _lines(bids_dir)) if rule is not None]

    def decides(names: Sequence[str], is_folder: bool) -> bool:
        for patterns, only_folders, taken_back in reversed(rules):
            if (is_folder or not only_folders) and _fits(names, patterns):
                return not taken_back
        return False

    def is_ignored(path: Path, is_folder: bool = False) -> bool:
        folders = [path.parts[:n] for n in range(1, len(path.parts))]
        return any(decides(names, True) for names in folders) or decides(path.parts, is_folder)

    return is_ignored


DATATYPE = {"T1w": "anat", "pet": "pet"}
IMAGE = re.compile(r"sub-.*_(T1w|pet)\.nii(\.gz)?")
NO_CONFIG = "mri2pet_no_layout_config.json"  # never exists: pybids would obey a dataset's file
PET_SIDECAR = re.compile(r"(.*_)?pet\.json")
ELSEWHERE = re.compile(  # paths from the root of a dataset that pybids need not index
    r"^(?!/(sub-[^/]+(/ses-[^/]+)?(/(anat|pet))?/?)?([^/]*(pet\.json|(T1w|pet)\.nii(\.gz)?))?$)"
)


def _is_of_use(name: str) -> bool:
    return IMAGE.fullmatch(name) is not None or PET_SIDECAR.fullmatch(name) is not None


def _list(bids_dir: Path, subjects: Iterable[str]) -> list[Path]:
    tops = [bids_dir / f"sub-{subject}" for subject in subjects]
    tops += [session for top in tops for session in top.glob("ses-*")]
    inner = [top / datatype for top in tops for datatype in DATATYPE.values()]
    folders = filter(Path.is_dir, [bids_dir, *tops, *inner])
    found = (path for folder in folders for path in folder.iterdir() if _is_of_use(path.name))
    return [path for path in found if not path.is_dir()]


def _list_indexed(bids_dir: Path, database_dir: Path) -> list[Path]:
    """List the files in a pybids index, which is kept between runs and selections."""
    from bids import BIDSLayout, BIDSLayoutIndexer  # slow: docs/results/pybids.md
    from sqlalchemy.exc import SQLAlchemyError

    indexer = BIDSLayoutIndexer(
        validate=False, ignore=[ELSEWHERE], index_metadata=False, config_filename=NO_CONFIG
    )
    try:
        with warnings.catch_warnings(action="ignore"):
            layout = BIDSLayout(
                bids_dir, validate=False, indexer=indexer, database_path=database_dir
            )
            files = list(map(Path, layout.files))
    except (OSError, ValueError, TypeError, SQLAlchemyError) as error:
        why = str(error).partition("\n")[0]
        raise UsageError(
            f"{database_dir}: cannot be used as --bids-database-dir ({why}); choose another"
        ) from error
    if not all(path.is_relative_to(bids_dir) for path in files):
        raise UsageError(
            f"{database_dir}: is the index of another dataset; delete it, or choose another folder"
        )
    return files


def list_files(
    bids_dir: Path, subjects: Collection[str], database_dir: Path | None = None
) -> list[Path]:
    """List the T1w and PET images of participants, and possible sidecars of PET, sorted.

    Parameters
    ----------
    bids_dir : Path
        Absolute path of the raw dataset.
    subjects : collection of str
        Labels of the participants.
    database_dir : Path, optional
        Folder in which pybids keeps its index between runs. An existing index is trusted;
        participants without files in it are assumed to be new, and are listed from the dataset.

    Raises
    ------
    InvalidBidsError
        If a folder cannot be read.
    UsageError
        If the index cannot be used, or belongs to another dataset.
    """
    indexed = [] if database_dir is None else _list_indexed(bids_dir, database_dir)
    known = {path.relative_to(bids_dir).parts[0] for path in indexed}
    added = [subject for subject in subjects if f"sub-{subject}" not in known]
    try:
        return sorted({*indexed, *_list(bids_dir, added)})
    except OSError as error:
        raise InvalidBidsError(
            f"{bids_dir}: cannot be read as a BIDS dataset ({error}); run bids-validator-deno on it"
        ) from error


# Fields that the app reads
METADATA = (
    "TracerName",
    "InjectionStart",
    "FrameTimesStart",
    "FrameDuration",
    "Units",
    "Synthetic",
)


@dataclass(frozen=True)
class RawFiles:
    """Files of participants.

    Parameters
    ----------
    t1ws, pets : mapping
        Images by subject label, in the order of their names. PET images have no metadata yet.
    pet_sidecars : mapping
        JSON files that may be sidecars of PET images, by folder.
    ignored : mapping
        Images that ``.bidsignore`` excludes, by subject label.
    """

    t1ws: Mapping[str, tuple[Scan, ...]]
    pets: Mapping[str, tuple[Scan, ...]]
    pet_sidecars: Mapping[Path, tuple[Path, ...]]
    ignored: Mapping[str, tuple[Scan, ...]] = field(default_factory=dict)


def find_subjects(bids_dir: Path) -> tuple[str, ...]:
    """List the labels of participants with a folder, sorted.

    Participants that ``.bidsignore`` excludes are included, and so are those whose folder is a
    broken link.

    Raises
    ------
    MissingInputError
        If the dataset does not exist.
    InvalidBidsError
        If it is not a folder, or has no ``dataset_description.json`` or no participant.
    ReadWriteError
        If it cannot be read.
    """
    refuse_other_than_bids(bids_dir)
    try:
        read_json(bids_dir / "dataset_description.json")
    except UnusableDataError as error:
        raise InvalidBidsError(str(error)) from error
    try:
        subjects = sorted(p.name[4:] for p in bids_dir.iterdir() if p.name.startswith("sub-"))
        subjects = [subject for subject in subjects if _may_be_folder(bids_dir / f"sub-{subject}")]
    except OSError as error:
        raise ReadWriteError(f"{bids_dir}: cannot be listed ({error.strerror})") from error
    if not subjects:
        raise InvalidBidsError(
            f"{bids_dir}: has no sub-* folder; a BIDS dataset has one for each participant"
        )
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
    # The folder takes precedence, because a file name may lack the session.
    named = dict(entities).get("ses")
    session = next((name[4:] for name in folders if name.startswith("ses-")), named)
    return Scan(path, folders[0].removeprefix("sub-"), session, entities)


def _is_image(path: Path) -> bool:
    """Check whether a path is a file or a broken link, without opening it."""
    fault = why_no_file(path)
    return fault is None or fault == NOWHERE


def read_files(
    bids_dir: Path,
    subjects: Sequence[str],
    *,
    is_ignored: Ignored | None = None,
    database_dir: Path | None = None,
) -> RawFiles:
    """Find the T1w and PET images of participants without opening any file.

    Parameters
    ----------
    bids_dir : Path
        Root of the raw dataset.
    subjects : sequence of str
        Labels without ``sub-``.
    is_ignored : callable, optional
        Predicate of :func:`bids_app.dataset.index.read_bidsignore`.
    database_dir : Path, optional
        Folder in which pybids keeps its index between runs. An existing index is trusted: delete it
        after changing the images of a participant in it.

    Raises
    ------
    InvalidBidsError, UsageError
        See :func:`list_files`.
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
    """Add the metadata of its sidecars to an image, by the BIDS inheritance principle.

    The nearest sidecar takes precedence.

    Parameters
    ----------
    scan : Scan
        PET image.
    sidecars : mapping
        Sidecars by folder, from :func:`read_files`.

    Returns
    -------
    Scan
        The image with its metadata.

    Raises
    ------
    UnusableDataError
        If an applicable sidecar is not a file, or not a JSON object.
    ReadWriteError
        If it cannot be read.
    """
    stem = scan.path.name.partition(".")[0]
    sidecar = scan.path.with_name(f"{stem}.json")
    if sidecar.is_dir():  # folders are not among the sidecars
        raise UnusableDataError(f"{sidecar}: is a folder, not a file; remove it")
    parts = frozenset(stem.split("_"))  # copies (old_…) and macOS's "._…" have others
    metadata: dict[str, object] = {}
    for folder in reversed(scan.path.parents):  # from the root down to the image
        applying = (
            path
            for path in sidecars.get(folder, ())
            if parts.issuperset(path.name.partition(".")[0].split("_"))
        )
        for path in sorted(applying, key=lambda path: len(path.name)):
            fault = why_no_file(path)
            if fault is not None:
                raise UnusableDataError(f"{path}: is {fault}")
            metadata.update(read_json(path))
    kept = {key: metadata[key] for key in METADATA if _is_given(metadata.get(key))}
    return replace(
        scan,
        metadata=tuple(
            (key, tuple(value) if isinstance(value, list) else value) for key, value in kept.items()
        ),
    )


def _is_given(value: object) -> bool:
    """Check whether a field has a value; Python writes NaN for a missing one."""
    return value is not None and not (isinstance(value, float) and isnan(value))


def _numbers(value: object) -> tuple[float, ...] | None:
    values = value if isinstance(value, tuple) else (value,)  # a single frame may lack a list
    if any(isinstance(v, bool) or not isinstance(v, int | float) for v in values):
        return None
    try:
        numbers = tuple(float(v) for v in values)
    except OverflowError:  # an integer of hundreds of digits
        return None
    return numbers if all(isfinite(number) for number in numbers) else None


def frame_durations(scan: Scan) -> tuple[float, ...]:
    """Return the duration of each frame in s from the sidecar; empty if it holds no valid numbers.

    The start times of frames are not needed here, and may be wrong or missing.
    """
    return _field(scan, "FrameDuration")


def frame_starts(scan: Scan) -> tuple[float, ...]:
    """Return the start of each frame in s after injection; empty if the sidecar does not give it.

    BIDS gives both times relative to the same time zero, which may be the start of the scan.
    """
    starts, injections = _field(scan, "FrameTimesStart"), _field(scan, "InjectionStart")
    return tuple(start - injections[0] for start in starts) if injections else ()


def _field(scan: Scan, name: str) -> tuple[float, ...]:
    value = dict(scan.metadata).get(name)
    numbers = None if value is None else _numbers(value)
    return () if numbers is None else numbers
