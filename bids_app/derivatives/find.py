"""Finding of participant-level results and lesion masks by name, and fingerprints of results."""

import hashlib
import json
import os
import re
import time
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from bids_app.arguments import LABEL, LESIONS
from bids_app.derivatives.paths import (
    FDG_LABEL,
    derivative_path,
    entities_of,
    resolution_label,
    sidecar_path,
)
from bids_app.derivatives.sidecars import OF_T1W, RAW, Derivative, read_derivative
from bids_app.errors import MissingInputError, Mri2petError, ReadWriteError, UnusableDataError
from bids_app.files import file_sha256, locked, object_at, read_json, write_json
from bids_app.imaging.coverage import COMPLETE, describe_missing
from bids_app.imaging.verdict import DOUBT, UPTAKE, VERDICTS, reasons_of, verdict_of
from bids_app.nifti import inspect
from bids_app.strict import is_number

AGAIN = "run the participant level again"
# Visit of the anatomy that a URI of this dataset refers to: "sub-01_ses-a".
ANATOMY = re.compile(r"bids::(?:.*/)?anat/(sub-[0-9A-Za-z+]+(?:_ses-[0-9A-Za-z+]+)?)_[^/]*")


@dataclass(frozen=True)
class Preprocessed:
    """Images of one visit, all on the same grid of the template.

    Parameters
    ----------
    subject, session : str, str or None
        Labels of the T1w, without ``sub-`` and ``ses-``.
    t1w, brain_mask : Path
        T1w in 0..1, and brain mask.
    pets : tuple of Path
        Real PET images in 0..1 that are aligned to this T1w; those of its own session come first.
    synthetic : Path or None
        Synthetic PET, predicted from the T1w.
    """

    subject: str
    session: str | None
    t1w: Path
    brain_mask: Path
    pets: tuple[Path, ...]
    synthetic: Path | None


def find_preprocessed(
    output_dir: Path, template: str, resolution: float, subjects: Collection[str] | None = None
) -> list[Preprocessed]:
    """Find the visits that the participant level has resampled to a grid.

    A PET is real if its name says ``desc-preproc`` and its sidecar does not say ``Synthetic``.

    Parameters
    ----------
    output_dir : Path
        Root of the derivative dataset. Only its ``sub-*`` and ``ses-*`` folders are searched.
    template : str
        Name of the template, as a ``space-`` label.
    resolution : float
        Resolution of the grid, in mm.
    subjects : collection of str, optional
        Labels of the subjects to find, without ``sub-``; all by default.

    Returns
    -------
    list of Preprocessed
        Visits by subject, then session; empty if there are none.

    Raises
    ------
    MissingInputError
        If a brain mask, or the sidecar of a real PET, does not exist.
    UnusableDataError
        If a PET named as real is synthetic, or the T1w to which it is aligned does not exist.
    """
    grid = {"space": template, "res": resolution_label(resolution)}
    found = []
    for subject in _labels(output_dir, "sub-"):
        if subjects is not None and subject not in subjects:
            continue
        sessions = [None, *_labels(output_dir / f"sub-{subject}", "ses-")]
        visits = [
            visit
            for session in sessions
            if (visit := _visit(output_dir, subject, session, grid)) is not None
        ]
        pets = [
            pet for session in sessions for pet in _real_pets(output_dir, subject, session, grid)
        ]
        homes = {pet: _home(output_dir, pet, visits) for pet in pets}
        found += [
            replace(visit, pets=tuple(_own_first(visit, (p for p in pets if homes[p] == visit))))
            for visit in visits
        ]
    return found


def _own_first(visit: Preprocessed, pets: Iterable[Path]) -> list[Path]:
    """Sort the PETs of a visit: those of its own session come first."""
    return sorted(pets, key=lambda pet: entities_of(pet).get("ses") != visit.session)


def describe_coverage(pet: Path) -> str:
    """Describe the part of the brain that a real PET lacks; empty if it is 1 % or less, or unknown.

    Parameters
    ----------
    pet : Path
        PET on a grid of the template, whose box may cut the brain; the sidecar of the same PET on
        the grid of the T1w, which contains the whole brain, is read first.
    """
    in_t1w = pet.with_name(re.sub("_space-[^_]+_res-[^_]+_", "_space-T1w_", pet.name))
    for image in (in_t1w, pet):
        try:
            metadata = read_json(sidecar_path(image))
        except Mri2petError:
            continue  # reported where the sidecar is needed
        share = metadata.get("BrainCoverage")
        if isinstance(share, float | int) and share < COMPLETE:
            missing = describe_missing(metadata.get("BrainNotCovered"))
            return (
                f"{pet.name} covers {100 * share:.1f} % of the brain; the missing part "
                f"({missing}) is ignored"
            )
    return ""


def visit_of(stem: str) -> str:
    """Return the visit of an image from the first part of its name: ``sub-01_ses-b``."""
    return "_".join(part for part in stem.split("_") if part.startswith(("sub-", "ses-")))


def spell_out(stem: str) -> str:
    """Name an image for readers by the first part of its name: ``sub-01, ses-b``."""
    return ", ".join(part for part in stem.split("_") if not part.startswith("trc-"))


def t1w_of_pet(output_dir: Path, stem: str, visits: Collection[str]) -> str | None:
    """Return the visit of the T1w to which a real PET is aligned; used by all parts of the app.

    It is read from ``SpatialReference`` and ``Sources`` in the PET's sidecars, that in the space of
    the T1w first, if they refer to anatomy of this dataset. Otherwise it is the PET's own session.

    Parameters
    ----------
    output_dir : Path
        Root of the derivative dataset.
    stem : str
        First part of the names of the PET's images, before ``_space-``:
        ``sub-01_ses-b_trc-18FFDG``.
    visits : collection of str
        Visits with a T1w, as in file names: ``sub-01_ses-a``.

    Returns
    -------
    str or None
        One of ``visits``; None if the visit found is not among them.
    """
    own_visit = visit_of(stem)
    folder = output_dir.joinpath(*own_visit.split("_"), "pet")
    in_t1w = folder / f"{stem}_space-T1w_desc-preproc_pet.json"
    others = sorted(set(folder.glob(f"{stem}_space-*_desc-preproc_pet.json")) - {in_t1w})
    subject = own_visit.partition("_")[0]
    named = (_anatomy_in(sidecar, subject) for sidecar in (in_t1w, *others))
    home = next((visit for visit in named if visit is not None), own_visit)
    return home if home in visits else None


def _anatomy_in(sidecar: Path, subject: str) -> str | None:
    """Read the visit of the T1w to which an image is aligned from its sidecar; None if unknown."""
    try:
        metadata = read_json(sidecar)
    except Mri2petError:
        return None
    sources = metadata.get("Sources")
    uris = [metadata.get("SpatialReference"), *(sources if isinstance(sources, list) else [])]
    matches = (ANATOMY.fullmatch(uri) for uri in uris if isinstance(uri, str))
    visits = (match[1] for match in matches if match and match[1].partition("_")[0] == subject)
    return next(visits, None)


def _metadata_of(image: Path) -> Mapping[str, object]:
    """Read the sidecar of an image; empty if there is none."""
    sidecar = sidecar_path(image)
    return read_json(sidecar) if sidecar.is_file() else {}


def times_mean_of_image(pet: Path) -> float:
    """Read the ``times_mean`` of a PET; see :func:`bids_app.imaging.intensity.scale_to_unit`.

    It is 0, for scaling by a percentile of the brain, if the sidecar does not have it.

    Raises
    ------
    ReadWriteError, UnusableDataError
        If there is a sidecar but it cannot be read, or its value is invalid.
    """
    value = object_at(_metadata_of(pet), "IntensityScaling").get("TimesBrainMean", 0.0)
    if not is_number(0, 1000)(value):
        raise UnusableDataError(
            f"{sidecar_path(pet)}: TimesBrainMean of IntensityScaling is {value!r:.40}; run the "
            "participant level again"
        )
    return float(value)


def verdict_of_image(image: Path) -> tuple[str, str]:
    """Read the verdict on the registration of an image, and the reasons for it.

    Parameters
    ----------
    image : Path
        T1w or PET in the space of the template.

    Returns
    -------
    verdict, reasons : str
        Verdict ``pass``, ``doubt`` or ``fail``, or empty if the sidecar has none, as those of
        versions before 0.2; and the sentences of ``VerdictReasons``, joined. Any other verdict
        counts as ``doubt``.

    Raises
    ------
    ReadWriteError, UnusableDataError
        If there is a sidecar but it cannot be read.
    """
    metadata = _metadata_of(image)
    verdict, reasons = verdict_of(metadata), reasons_of(object_at(metadata, "Registration"))
    if verdict is not None and verdict not in VERDICTS:
        odd = f'its sidecar says "{verdict}", which is not one of {", ".join(VERDICTS)}'
        verdict, reasons = DOUBT, [odd, *reasons]
    return verdict or "", "; ".join(reasons)


SOURCE_DIGEST = "SourceSHA256"  # field of T1w and real PET in template space, of the raw file


def source_digest_of(image: Path) -> str:
    """Read the digest of the raw file that a T1w or real PET was made from; empty if unknown.

    Raises
    ------
    ReadWriteError, UnusableDataError
        If there is a sidecar but it cannot be read.
    """
    return str(_metadata_of(image).get(SOURCE_DIGEST, ""))


def raw_source_of(image: Path) -> str:
    """Read which raw file an image was made from, as a path in the raw dataset; empty if unknown.

    Parameters
    ----------
    image : Path
        T1w on its own grid, or real PET on any grid; they are empty for those of another app.

    Raises
    ------
    ReadWriteError, UnusableDataError
        If there is a sidecar but it cannot be read.
    """
    sources = _metadata_of(image).get("Sources")
    uris = [uri for uri in sources if isinstance(uri, str)] if isinstance(sources, list) else []
    return next((uri.removeprefix(RAW) for uri in uris if uri.startswith(RAW)), "")


def fit_of_image(pet: Path) -> float | None:
    """Read the correlation of a real PET with the uptake expected from the tissues of its T1w.

    Returns
    -------
    float or None
        None if it is not in the sidecar, as in those of versions before 0.2.

    Raises
    ------
    ReadWriteError, UnusableDataError
        If there is a sidecar but it cannot be read.
    """
    value = object_at(_metadata_of(pet), "Registration").get(UPTAKE)
    return float(value) if isinstance(value, int | float) else None


def window_of_image(pet: Path) -> tuple[float, float] | None:
    """Read when the frames of a PET begin and end, in s after injection; None if it is unknown.

    Raises
    ------
    ReadWriteError, UnusableDataError
        If there is a sidecar but it cannot be read.
    """
    value = _metadata_of(pet).get("WindowAfterInjection")
    if not isinstance(value, list) or len(value) != 2 or not all(map(is_number(), value)):
        return None
    start, end = map(float, value)
    return start, end


def _labels(folder: Path, prefix: str) -> list[str]:
    names = [path.name.removeprefix(prefix) for path in folder.glob(f"{prefix}*")]
    return sorted(name for name in names if LABEL.fullmatch(name))


def _visit(
    root: Path, subject: str, session: str | None, grid: dict[str, str]
) -> Preprocessed | None:
    def path(datatype: str, suffix: str, **entities: str) -> Path:
        return derivative_path(
            root,
            subject=subject,
            session=session,
            datatype=datatype,
            suffix=suffix,
            extension=".nii.gz",
            entities={**grid, **entities},
        )

    t1w, mask = path("anat", "T1w", desc="preproc"), path("anat", "mask", desc="brain")
    if not t1w.is_file():
        return None
    if not mask.is_file():
        raise MissingInputError(f"{mask}: no such file; {AGAIN}")
    synthetic = path("pet", "pet", trc=FDG_LABEL, desc="synth")
    return Preprocessed(subject, session, t1w, mask, (), synthetic if synthetic.is_file() else None)


def _real_pets(
    root: Path, subject: str, session: str | None, grid: dict[str, str]
) -> Iterator[Path]:
    folder = root.joinpath(f"sub-{subject}", *([] if session is None else [f"ses-{session}"]))
    visit = {"sub": subject} if session is None else {"sub": subject, "ses": session}
    expected = {**visit, "trc": FDG_LABEL, **grid, "desc": "preproc"}
    for path in sorted(folder.glob("pet/sub-*_desc-preproc_pet.nii.gz")):
        try:
            entities = entities_of(path)
        except ValueError:
            continue  # not a name of this app
        shared = {key: label for key, label in entities.items() if key not in ("rec", "run")}
        if shared == expected:
            yield path


def _home(root: Path, pet: Path, visits: list[Preprocessed]) -> Preprocessed:
    """Find the visit of the T1w to which a PET is aligned."""
    sidecar = sidecar_path(pet)
    if not sidecar.is_file():
        raise MissingInputError(
            f"{sidecar}: no such file, so {pet.name} may be unfinished; {AGAIN}"
        )
    if read_json(sidecar).get("Synthetic", False) is not False:
        raise UnusableDataError(
            f"{sidecar}: says Synthetic, but the image is named as a measured one; {AGAIN}"
        )
    by_name = {visit.t1w.name.partition("_space-")[0]: visit for visit in visits}
    home = t1w_of_pet(root, pet.name.partition("_space-")[0], by_name)
    if home is None:
        raise UnusableDataError(f"{pet}: the T1w to which it is aligned was not found; {AGAIN}")
    return by_name[home]


MASK = "label-L_mask"  # end of the name of a mask, before its extension
EXTENSIONS = (".nii.gz", ".nii")


@dataclass(frozen=True)
class LesionMask:
    """Lesion mask, drawn in the space of the template or on the T1w."""

    path: Path
    in_template: bool


def find_lesion_mask(root: Path, visit: Preprocessed, template: str) -> LesionMask | None:
    """Find the lesion mask of a visit; return None if none was drawn.

    The participant's folder is searched for ``sub-X[…]_space-<template>_label-L_mask.nii.gz`` (or
    ``.nii``) and then for ``…_space-T1w_…``, of the visit's own session or otherwise without a
    session.

    Parameters
    ----------
    root : Path
        Root of the dataset of masks.
    visit : Preprocessed
        Visit of the patient.
    template : str
        Name of the template, as a ``space-`` label.

    Raises
    ------
    MissingInputError
        If the dataset does not exist.
    UnusableDataError
        If several masks match, or no mask has a space that can be used.
    """
    if not root.is_dir():
        raise MissingInputError(f"{root}: no such folder; correct --derivatives {LESIONS}=PATH")
    masks = _masks_of(root, visit.subject)
    of_session = [path for path in masks if visit.session and f"_ses-{visit.session}_" in path.name]
    timeless = [path for path in masks if "_ses-" not in path.name]
    candidates = of_session if of_session else timeless
    for space in (template, "T1w"):
        found = [path for path in candidates if f"_space-{space}_" in path.name]
        if len(found) > 1:
            raise UnusableDataError(
                f"{found[0]}: and {found[1].name} are masks of the same visit; keep one"
            )
        if found:
            return LesionMask(found[0], space == template)
    if candidates:
        raise UnusableDataError(
            f"{candidates[0]}: its name says neither space-T1w nor space-{template}, and masks of "
            "other spaces cannot be used; rename or resample it accordingly"
        )
    return None


def no_mask_at_all(root: Path, template: str) -> MissingInputError:
    """Return the error that a dataset has no lesion mask at all, with the expected names."""
    return MissingInputError(
        f"{root}: contains no lesion mask for any patient of this run; name masks "
        f"sub-X/anat/sub-X[_ses-Y]_space-T1w_{MASK}.nii.gz (or space-{template}), or leave out "
        f"--derivatives {LESIONS}=PATH"
    )


def _masks_of(root: Path, subject: str) -> list[Path]:
    names = (f"sub-{subject}_*{MASK}{extension}" for extension in EXTENSIONS)
    return sorted(path for name in names for path in (root / f"sub-{subject}").rglob(name))


def digest_of(path: Path) -> str:
    """Compute the SHA-256 of a whole file.

    The checksum at the end of a gzip file is not enough, because it may cover only the last of many
    members.

    Raises
    ------
    MissingInputError, ReadWriteError
        If the file does not exist, or cannot be read.
    """
    try:
        return file_sha256(path)
    except FileNotFoundError as error:
        raise MissingInputError(f"{path}: no such file; fetch its content") from error
    except OSError as error:
        raise ReadWriteError(f"{path}: cannot be read ({error.strerror})") from error


def _state_of(found: os.stat_result) -> list[int]:
    return [found.st_size, found.st_ino, found.st_mtime_ns, found.st_ctime_ns]


SETTLED = 2.0  # s; a file changed more recently may change again within one time stamp; our choice


DIGESTS = "logs/source_digests.json"  # in the derivative dataset


class SourceDigests:
    """Cache of digests of raw images between runs, because reading a thousand takes minutes.

    A file is read again if its size, inode, modification time or change time differs. Programs can
    set the modification time but not the change time.

    Parameters
    ----------
    bids_dir : Path
        Root of the raw dataset.
    file : Path
        Path of the file in which digests are kept.
    """

    def __init__(self, bids_dir: Path, file: Path) -> None:
        self._root, self._file = bids_dir.absolute(), file
        self._known = self._read()
        self._new: dict[str, list[object]] = {}
        self._names = defaultdict[str, set[str]](set)  # files of each digest, of any run
        self._seen: set[str] = set()  # files of this run
        for name, known in self._known.items():
            self._names[str(known[-1])].add(name)

    def _read(self) -> dict[str, list[object]]:
        """Read the entries of earlier runs: state and digest; others are left out."""
        try:
            entries = read_json(self._file)
        except Mri2petError:
            return {}
        return {
            name: known
            for name, known in entries.items()
            if isinstance(known, list) and known and isinstance(known[-1], str)
        }

    def _name(self, path: Path) -> str:
        inside = path.is_relative_to(self._root)
        return (path.relative_to(self._root) if inside else path).as_posix()

    def of(self, path: Path) -> str:
        """Return the digest of a file; see :func:`digest_of`."""
        name = self._name(path)
        try:
            found = path.stat()
        except OSError:
            return digest_of(path)  # raises a suitable error
        state = _state_of(found)
        known = self._new.get(name, self._known.get(name))
        if known is not None and known[:-1] == state:
            self._seen.add(name)
            return str(known[-1])
        digest = digest_of(path)
        if known is not None:
            self._names[str(known[-1])].discard(name)  # its content has changed
        self._names[digest].add(name)
        self._seen.add(name)
        if time.time() - max(found.st_mtime, found.st_ctime) > SETTLED:
            self._new[name] = [*state, digest]
        return digest

    def same_as(self, path: Path) -> list[str]:
        """List the other known files with the content of a file, by their names in the dataset.

        Files of earlier runs that were changed or removed since do not count.
        """
        others = self._names[self.of(path)] - {self._name(path)}
        return sorted(name for name in others if name in self._seen or self._is_as_known(name))

    def _is_as_known(self, name: str) -> bool:
        """Return whether a file of an earlier run has not changed since."""
        try:
            return self._known[name][:-1] == _state_of((self._root / name).stat())
        except OSError:
            return False

    def save(self, output_dir: Path) -> None:
        """Write the digests of this run, keeping those of concurrent runs.

        Raises
        ------
        ReadWriteError
            If the file cannot be written.
        """
        if self._new:
            with locked(output_dir):
                write_json(self._file, {**self._read(), **self._new})


def fingerprint(
    parameters: Mapping[str, object],
    sources: Iterable[Path],
    *,
    bids_dir: Path,
    generator_sha256: str | None = None,
    digest: Callable[[Path], str] = digest_of,
) -> str:
    """Compute a digest of everything that determines a result.

    Parameters
    ----------
    parameters : mapping
        Settings that change the result, by name, as JSON values.
    sources : iterable of Path
        Raw images, in any order; their names inside the dataset and their content count.
    bids_dir : Path
        Root of the raw dataset, which may move.
    generator_sha256 : str, optional
        SHA-256 of the generator's weights; None for a result that no generator makes.
    digest : callable
        Function that returns the digest of a source.

    Returns
    -------
    str
        SHA-256, in hexadecimal.

    Raises
    ------
    MissingInputError, ReadWriteError
        If a source does not exist, or cannot be read.
    """
    root = bids_dir.absolute()
    files = sorted((path.relative_to(root).as_posix(), digest(path)) for path in sources)
    content = {"parameters": parameters, "sources": files, "generator": generator_sha256}
    canonical = json.dumps(content, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(canonical.encode()).hexdigest()


def stored_fingerprint(path: Path) -> str:
    """Return the fingerprint in the sidecar of a result; empty if there is none."""
    try:
        return str(read_json(sidecar_path(path)).get("Fingerprint", ""))
    except (ReadWriteError, UnusableDataError):
        return ""


def is_left_over(pet: Path, t1w: Path) -> bool:
    """Return whether a PET was not made together with, or predicted from, this T1w.

    Sidecars of one run have the same fingerprint, and those of a synthetic PET and of an anomaly
    map repeat the one of their T1w; without one, nothing is known.
    """
    try:
        metadata = read_json(sidecar_path(pet))
    except (ReadWriteError, UnusableDataError):
        return False
    own = "" if metadata.get("Synthetic") else metadata.get("Fingerprint", "")
    made_with = str(metadata.get(OF_T1W, own))
    return len({made_with, stored_fingerprint(t1w)} - {""}) > 1


def is_complete(files: Iterable[Path], fingerprint: str) -> bool:
    """Return whether all files exist, are not empty, and have the fingerprint in their sidecars.

    Parameters
    ----------
    files : iterable of Path
        Results with sidecars.
    fingerprint : str
        Fingerprint from :func:`fingerprint`.
    """
    return all(_is_made(path, fingerprint) for path in files)


def _is_made(path: Path, fingerprint: str) -> bool:
    try:
        is_written = path.stat().st_size > 0
        return is_written and read_json(sidecar_path(path)).get("Fingerprint") == fingerprint
    except (OSError, ReadWriteError, UnusableDataError):
        return False


@dataclass(frozen=True)
class RealPet:
    """Measured PET, in the space of its T1w and in that of the template."""

    name: str
    in_t1w: Derivative
    in_template: Derivative | None

    def get(self, key: str) -> object:
        """Return the value of a key in the sidecar of either image, or None."""
        values = [
            image.metadata.get(key)
            for image in (self.in_t1w, self.in_template)
            if image is not None
        ]
        return next((value for value in values if value is not None), None)


@dataclass(frozen=True)
class Results:
    """Results of one visit; ``None`` marks images that were not requested or not reached.

    Parameters
    ----------
    name : str
        Name of the visit: ``"sub-01, ses-02"``.
    space : str
        Space of the template, as in file names: ``"MNI152NLin2009aSym_res-1"``; empty if none.
    """

    name: str
    space: str
    t1w: Derivative
    mask: Derivative
    t1w_in_template: Derivative | None
    mask_in_template: Derivative | None
    synthetic: Derivative | None
    uncertainty: Derivative | None = None
    pets: tuple[RealPet, ...] = field(default=())

    def derivatives(self) -> tuple[Derivative, ...]:
        """List all images of the visit."""
        anatomy = (self.t1w, self.mask, self.t1w_in_template, self.mask_in_template)
        pets = [image for pet in self.pets for image in (pet.in_t1w, pet.in_template)]
        predicted = (self.synthetic, self.uncertainty)
        return tuple(image for image in (*anatomy, *predicted, *pets) if image is not None)

    def reading_notes(self) -> list[str]:
        """List sentences on how the raw images were read."""
        images = (self.t1w, *(pet.in_t1w for pet in self.pets))
        return [note for image in images for note in image.reading_notes()]

    @property
    def knows_errors(self) -> bool:
        """Whether the map of uncertainty was made together with the synthetic PET."""
        both = (self.synthetic, self.uncertainty)
        fingerprints = {image.text("Fingerprint") for image in both if image is not None}
        return self.uncertainty is not None and len(fingerprints) == 1


def find_results(output_dir: Path, subject: str, shape: tuple[int, ...]) -> tuple[Results, ...]:
    """Find the images of a participant.

    Parameters
    ----------
    output_dir : Path
        Path of the derivative dataset.
    subject : str
        Label of the subject, without ``sub-``.
    shape : tuple of int
        Shape of the template. If there are images in several spaces, those of this shape are used.

    Returns
    -------
    tuple of Results
        Results by session. A PET belongs to the T1w to which it was aligned, if the same run made
        both.
    """
    folder = output_dir / f"sub-{subject}"
    stems = sorted({_stem(path) for path in _images(folder, "anat")})
    visits = {stem: _without_old(_results(folder, stem, shape)) for stem in stems}
    pets: dict[str, list[RealPet]] = {stem: [] for stem in stems}
    for stem in sorted({_stem(path) for path in _images(folder, "pet", "sub-*desc-preproc_pet")}):
        in_t1w = read_derivative(_place(folder, "pet", f"{stem}_space-T1w_desc-preproc_pet"))
        home = t1w_of_pet(output_dir, stem, visits)
        if home is None:
            first = stems[0] if stems else ""
            lost = f"{stem}: the T1w to which this PET is aligned was not found; it is not shown."
            visits |= {k: _with_fault(v, lost) for k, v in visits.items() if k == first}
        elif is_left_over(in_t1w.path, visits[home].t1w.path):
            old = f"{stem}: this PET is left over from an earlier run; it is not shown."
            visits[home] = _with_fault(visits[home], old)
        else:
            space = visits[home].space
            beside = _in_space(folder, "pet", stem, space, "desc-preproc_pet")
            pets[home].append(RealPet(spell_out(stem), in_t1w, beside))
    return tuple(replace(visit, pets=tuple(pets[stem])) for stem, visit in visits.items())


def _without_old(visit: Results) -> Results:
    """Leave out a synthetic PET that was predicted from another T1w than the present one."""
    synthetic, t1w = visit.synthetic, visit.t1w_in_template
    if synthetic is None or t1w is None or not is_left_over(synthetic.path, t1w.path):
        return visit
    old = f"{synthetic.path.name}: is left over from an earlier run; it is not shown."
    return _with_fault(replace(visit, synthetic=None, uncertainty=None), old)


def _with_fault(visit: Results, fault: str) -> Results:
    faults = " ".join(filter(None, (visit.t1w.fault, fault)))
    return replace(visit, t1w=replace(visit.t1w, fault=faults))


def _images(folder: Path, modality: str, pattern: str = "sub-*_desc-*") -> list[Path]:
    return [
        path
        for place in (modality, f"ses-*/{modality}")
        for ending in (".nii.gz", ".json")
        for path in folder.glob(f"{place}/{pattern}{ending}")
    ]


def _stem(path: Path) -> str:
    """Return the entities that identify an image: all before ``space-``, ``res-`` or ``desc-``."""
    parts = path.name.split("_")
    ends = [n for n, part in enumerate(parts) if part.startswith(("space-", "res-", "desc-"))]
    return "_".join(parts[: ends[0]])


def _place(folder: Path, modality: str, name: str) -> Path:
    session = [part for part in name.split("_") if part.startswith("ses-")]
    return folder.joinpath(*session, modality, f"{name}.nii.gz")


def _in_space(folder: Path, modality: str, stem: str, space: str, ending: str) -> Derivative | None:
    if not space:
        return None
    return read_derivative(_place(folder, modality, f"{stem}_space-{space}_{ending}"))


def _results(folder: Path, stem: str, shape: tuple[int, ...]) -> Results:
    space = _space_of(_images(folder, "anat", f"{stem}_space-*_desc-preproc_T1w"), shape)
    synthetic, uncertainty = (
        _if_there(_in_space(folder, "pet", f"{stem}_trc-18FFDG", space, f"desc-synth_{suffix}"))
        for suffix in ("pet", "std")
    )
    return Results(
        name=spell_out(stem),
        space=space,
        t1w=read_derivative(_place(folder, "anat", f"{stem}_desc-preproc_T1w")),
        mask=read_derivative(_place(folder, "anat", f"{stem}_desc-brain_mask")),
        t1w_in_template=_in_space(folder, "anat", stem, space, "desc-preproc_T1w"),
        mask_in_template=_in_space(folder, "anat", stem, space, "desc-brain_mask"),
        synthetic=synthetic,
        uncertainty=uncertainty,
    )


def _if_there(derivative: Derivative | None) -> Derivative | None:
    """Return a derivative, or None if it has neither a sidecar nor an image file."""
    if derivative is None or derivative.metadata or derivative.path.exists():
        return derivative
    return None


def _space_of(paths: Iterable[Path], shape: tuple[int, ...]) -> str:
    """Choose a space whose T1w has the given shape, or otherwise the first by name."""
    spaces = {
        path.name.partition("_space-")[2].rpartition("_desc-")[0]: path
        for path in sorted(paths)
        if path.name.endswith(".nii.gz")
    } or {path.name.partition("_space-")[2].rpartition("_desc-")[0]: path for path in paths}
    fitting = [space for space, path in spaces.items() if shape_of(path) == shape]
    return min(fitting, default=min(spaces, default=""))


def shape_of(path: Path) -> tuple[int, ...]:
    """Read the shape of an image from its header; empty if it cannot be read."""
    try:
        return inspect(path).shape
    except Mri2petError:
        return ()
