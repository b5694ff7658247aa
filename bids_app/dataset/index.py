"""The files of a raw BIDS dataset: T1w and PET images and their sidecars, found with pybids.

pybids lists the files; which of them ``.bidsignore`` leaves out is decided here.
"""

import re
import warnings
from collections import defaultdict
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from math import isfinite
from pathlib import Path
from typing import Protocol

from bids import BIDSLayout, BIDSLayoutIndexer
from sqlalchemy.exc import SQLAlchemyError

from bids_app.errors import (
    InvalidBidsError,
    MissingInputError,
    ReadWriteError,
    UnusableDataError,
    UsageError,
)
from bids_app.files import NOWHERE, read_json, split_lines, why_no_file
from bids_app.visit import Scan

NAME = ".bidsignore"
LARGEST = 1_000_000  # bytes; our choice: lists of thousands of files are a hundred times smaller
STAR = "[^/]*"
CLASS = re.compile(r"\[([!^]?)((?:\]|\\.)?(?:\\.|[^\]\\])*)\]")


class Ignored(Protocol):
    """Whether a path inside the dataset is left out."""

    def __call__(self, path: Path, is_folder: bool = False) -> bool:
        """Answer for a path relative to the root of the dataset."""


def _class(found: re.Match[str]) -> str:
    """Write ``[!a-z]`` of a pattern as a regular expression; it never matches a slash."""
    body = re.sub(r"\\(.)", r"\1", found[2])
    safe = re.sub(r"([\\\]\[^&~|])", r"\\\1", body)
    return f"(?!/)[{'^' if found[1] else ''}{safe}]"


def _tokens(pattern: str) -> Iterator[str]:
    """Write a pattern, part by part, as a regular expression."""
    at = 0
    while at < len(pattern):
        rest = pattern[at:]
        found = CLASS.match(rest)
        if rest.startswith("/**/"):
            yield "/(?:.*/)?"
            at += 3  # the second slash may begin the next one
            while pattern[at : at + 4] == "/**/":
                at += 3
            at += 1
        elif rest == "/**":
            yield "/.+"
            return
        elif rest.startswith("**/") and at == 0:
            yield "(?:.*/)?"
            at += 3
        elif rest.startswith("*"):
            yield STAR
            at += len(rest) - len(rest.lstrip("*"))
        elif found is not None:
            yield _class(found)
            at += found.end()
        else:
            escaped = rest[0] == "\\" and len(rest) > 1
            yield "[^/]" if rest[0] == "?" else re.escape(rest[1] if escaped else rest[0])
            at += 2 if escaped else 1


def _join(tokens: Sequence[str]) -> str:
    """Join the parts of an expression so that many stars in one pattern take no longer than one.

    What stands between two stars is taken where it first fits, and never anywhere else: a later
    place leaves less for the rest.
    """
    written, is_open = "", False
    for at, token in enumerate(tokens):
        if token != STAR:
            written += token
            continue
        following = (one for one in tokens[at + 1 :] if one in (STAR, "/.+") or ".*" in one)
        closes = next(following, "") == STAR
        written += (")" if is_open else "") + ("(?>[^/]*?" if closes else STAR)
        is_open = closes
    return written


def _compile(line: str) -> tuple[re.Pattern[str], bool, bool] | None:
    """Read a line: what it matches, whether only folders, whether it takes back."""
    pattern = re.sub(r"(?<!\\)[ \t]+$", "", line)
    if not pattern or pattern.startswith("#"):
        return None
    taken_back = pattern.startswith("!")
    pattern = pattern[1:] if taken_back else pattern
    if "[" in re.sub(r"\\.", "", CLASS.sub("", pattern)):
        return None  # a bracket that is never closed: git matches nothing by it, either
    only_folders = pattern.endswith("/")
    pattern = pattern[:-1] if only_folders else pattern
    if not pattern:
        return None
    anchored = "/" in pattern
    whole = _join([*_tokens(pattern.removeprefix("/"))])
    try:
        expression = re.compile(whole if anchored else f"(?:.*/)?{whole}", re.S)
    except re.error:
        return None  # such as [z-a]
    return expression, only_folders, taken_back


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
    """Read ``.bidsignore`` at the root of a dataset; where there is none, nothing is left out.

    Its patterns are those of ``.gitignore`` (BIDS 1.10, "Filesystem structure"; gitignore(5)): the
    last one that matches decides, ``!`` takes back, and nothing inside a folder that is left out
    can be taken back.

    Returns
    -------
    callable
        Says of a path, relative to the root, and whether it is a folder (by default it is a file),
        whether it is left out.

    Raises
    ------
    ReadWriteError
        If it is there but cannot be read.
    """
    rules = [rule for rule in map(_compile, _lines(bids_dir)) if rule is not None]

    def decides(place: str, is_folder: bool) -> bool:
        for pattern, only_folders, taken_back in reversed(rules):
            if (is_folder or not only_folders) and pattern.fullmatch(place):
                return not taken_back
        return False

    def is_ignored(path: Path, is_folder: bool = False) -> bool:
        parts = path.parts
        places = ["/".join(parts[: n + 1]) for n in range(len(parts))]
        return any(decides(place, True) for place in places[:-1]) or decides(places[-1], is_folder)

    return is_ignored


DATATYPE = {"T1w": "anat", "pet": "pet"}
IMAGE = re.compile(r"sub-.*_(T1w|pet)\.nii(\.gz)?")
NO_CONFIG = "mri2pet_no_layout_config.json"  # a file of a dataset that pybids would open and obey
PET_SIDECAR = re.compile(r"(.*_)?pet\.json")


class _Elsewhere:
    """A pattern, for pybids, of all that need not be looked at.

    pybids asks its patterns to ``search`` each path, of files and folders, from the root of the
    dataset. One look-up a level is quicker than an expression with hundreds of labels.
    """

    def __init__(self, subjects: Collection[str] | None) -> None:
        self.subjects = None if subjects is None else frozenset(f"sub-{s}" for s in subjects)

    def search(self, path: str) -> bool:
        *folders, name = path.strip("/").split("/")
        if PET_SIDECAR.fullmatch(name) or IMAGE.fullmatch(name):
            return False
        inside = [*folders, name]
        if not inside[0].startswith("sub-"):
            return True
        if self.subjects is not None and inside[0] not in self.subjects:
            return True
        rest = inside[2:] if len(inside) > 1 and inside[1].startswith("ses-") else inside[1:]
        return len(rest) > 1 or (len(rest) == 1 and rest[0] not in DATATYPE.values())


def list_files(
    bids_dir: Path, subjects: Collection[str], database_dir: Path | None = None
) -> list[Path]:
    """List the T1w and PET images of some participants, and what may be sidecars of PET, sorted.

    Parameters
    ----------
    bids_dir : Path
        Root of the raw dataset, absolute.
    subjects : collection of str
        Labels. An index that is kept holds everyone: it outlives this run and its selection.
    database_dir : Path, optional
        Where pybids keeps its index between runs.

    Raises
    ------
    InvalidBidsError
        If pybids cannot read the dataset.
    UsageError
        If the index cannot be used, or is that of another dataset.
    """
    elsewhere = _Elsewhere(subjects if database_dir is None else None)
    indexer = BIDSLayoutIndexer(
        validate=False, ignore=[elsewhere], index_metadata=False, config_filename=NO_CONFIG
    )
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            layout = BIDSLayout(
                bids_dir, validate=False, indexer=indexer, database_path=database_dir
            )
            files = sorted(map(Path, layout.files))
    except (OSError, ValueError, TypeError, SQLAlchemyError) as error:
        why = str(error).partition("\n")[0]
        if database_dir is not None:
            raise UsageError(
                f"{database_dir}: cannot be used as --bids-database-dir ({why}); choose another"
            ) from error
        raise InvalidBidsError(
            f"{bids_dir}: cannot be read as a BIDS dataset ({why}); run bids-validator-deno on it"
        ) from error
    if not all(path.is_relative_to(bids_dir) for path in files):
        raise UsageError(
            f"{database_dir}: is the index of another dataset; delete it, or choose another folder"
        )
    return files


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
        What ``.bidsignore`` says, as :func:`bids_app.dataset.index.read_bidsignore` reads it.
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
