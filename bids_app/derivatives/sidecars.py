"""Sidecars of results, with everything known before they are computed.

Nodes add what they measure ("Registration", "IntensityScaling", "FramesUsed",
"FrameDurationsUsed", "ReadingNotes", "BrainCoverage", "BrainNotCovered", "Measures", "Novelty",
"Uncertainty", "Precision").

The sidecar of a table is its data dictionary, from ``data/dictionaries``.
"""

import json
import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import NoneType
from typing import TypeVar, get_args, get_type_hints

from bids_app.derivatives.description import KEY as VERSION
from bids_app.derivatives.paths import PetPaths, VisitPaths, sidecar_path, uri_of
from bids_app.errors import Mri2petError, UnusableDataError
from bids_app.files import MISSING, read_json, read_text, read_tsv, write_json, write_tsv
from bids_app.imaging.intensity import describe_scaling
from bids_app.visit import Derived, Scan, Visit

Sidecar = dict[str, object]
Dictionary = dict[str, dict[str, object]]  # column → its description
Cells = Mapping[str, str]  # column → cell, for one line
Row = TypeVar("Row")
DICTIONARIES = Path(__file__).parents[1] / "data" / "dictionaries"
FIELD_OF_VIEW = "ROI"  # "Type" of a coverage mask; BIDS has no better one
COVERED = "where the PET was measured, within the scanner's field of view; 0 elsewhere"
RAW = "bids:raw:"  # begins the URI of a file in the raw dataset
OF_T1W = "T1wFingerprint"  # of the T1w that a synthetic PET or an anomaly map was made with
SCALED = "arbitrary"  # "Units" of intensities within 0..1
MATCHED_TO = "mean PET of the generator's training controls, in the brain"


@dataclass(frozen=True)
class Space:
    """Grid of the app.

    Parameters
    ----------
    template : str
        Name of the template, as a ``space-`` label.
    resolution : float
        Voxel size in mm.
    reference : str
        URI of the template's image.
    """

    template: str
    resolution: float
    reference: str

    def entries(self) -> Sidecar:
        """Return the fields of every image on this grid."""
        text = f"{self.resolution:g} mm isotropic, the grid of this dataset in {self.template}"
        return {"Resolution": text, "SpatialReference": self.reference}


SLOPPY = "Sloppy"  # in a sidecar; only of a run for testing


@dataclass(frozen=True)
class Provenance:
    """Metadata that all sidecars of a run share.

    Parameters
    ----------
    bids_dir, output_dir : Path
        Roots of the raw and of the derivative dataset.
    fingerprint : str
        Fingerprint of the settings and the sources.
    version : str
        Version of the app.
    sloppy : bool
        Whether the run is for testing only, with coarse registration.
    """

    bids_dir: Path
    output_dir: Path
    fingerprint: str
    version: str
    sloppy: bool = False

    def source(self, scan: Scan) -> str:
        """Return the BIDS URI of the image that was read: the raw one, or another app's derivative.

        ``raw`` and the name of that app's dataset are defined in ``DatasetLinks``.
        """
        if scan.derived is not None:
            return self.other(scan.derived, scan.derived.image)
        return f"{RAW}{scan.path.relative_to(self.bids_dir.absolute()).as_posix()}"

    def other(self, derived: Derived, path: Path) -> str:
        """Return the BIDS URI of a file in another app's dataset."""
        return f"bids:{derived.dataset}:{path.relative_to(derived.root).as_posix()}"

    def own(self, path: Path) -> str:
        """Return the BIDS URI of a result."""
        return uri_of(path, self.output_dir)

    def entries(self, description: str, sources: Sequence[str]) -> Sidecar:
        """Return the fields of every sidecar."""
        return {
            "Description": description,
            "Sources": list(sources),
            "Fingerprint": self.fingerprint,
            VERSION: self.version,
            **({SLOPPY: True} if self.sloppy else {}),
        }


def synthetic_pet(
    paths: VisitPaths,
    origin: Provenance,
    space: Space,
    *,
    generator: Mapping[str, object],
    smoothing_fwhm: float,
    trained_on_this_participant: bool,
    times_mean: float,
    t1w_fingerprint: str,
    overlap: bool = False,
    match_histogram: bool = False,
) -> Sidecar:
    """Return the sidecar of a synthetic PET, without dose, time or other fields of measured PET.

    Parameters
    ----------
    paths, origin, space : VisitPaths, Provenance, Space
        Paths of the visit, and provenance and grid of the run.
    generator : mapping
        ``Name``, ``Version``, ``SHA256``, ``TrainedOn`` and ``IntendedUse``, from its card.
    smoothing_fwhm : float
        FWHM of the smoothing, in mm.
    trained_on_this_participant : bool
        Whether the generator was trained on this participant.
    times_mean : float
        Scale of the PET: see :func:`bids_app.imaging.intensity.scale_to_unit`.
    t1w_fingerprint : str
        Fingerprint of the T1w from which it was predicted, which a later run may replace.
    overlap, match_histogram : bool
        Whether options beyond the paper were used; mentioned only if they were.
    """
    about = f"SYNTHETIC FDG PET in {space.template}, predicted from the T1w; not a measurement"
    return {
        "Synthetic": True,
        **origin.entries(about, [origin.own(paths.t1w_in_template)]),
        "SkullStripped": True,
        "Units": SCALED,
        **space.entries(),
        "Generator": dict(generator),
        "IntensityScaling": describe_scaling(times_mean=times_mean),
        "SmoothingFWHM": smoothing_fwhm,
        "TrainedOnThisParticipant": trained_on_this_participant,
        OF_T1W: t1w_fingerprint,
        **({"OverlappingTripletsAveraged": True} if overlap else {}),
        **({"HistogramMatchedTo": MATCHED_TO} if match_histogram else {}),
    }


def synthetic_in_t1w(synthetic: Sidecar, paths: VisitPaths, origin: Provenance) -> Sidecar:
    """Return the sidecar of the synthetic PET resampled to the T1w's own grid.

    Parameters
    ----------
    synthetic : dict
        Sidecar of the synthetic PET in template space.
    paths, origin : VisitPaths, Provenance
        Paths of the visit, and provenance of the run.
    """
    fields = {
        key: value for key, value in synthetic.items() if key not in ("Resolution", "Sources")
    }
    return {
        **fields,
        "Description": "SYNTHETIC FDG PET on the grid of the T1w, predicted from the T1w in the "
        "space of the template; not a measurement",
        "Sources": [origin.own(paths.synthetic_pet), origin.own(paths.template_to_t1w)],
        "SpatialReference": origin.own(paths.t1w),
    }


def subtracted_pet(
    synthetic: Sidecar, paths: VisitPaths, origin: Provenance, units: object
) -> tuple[Sidecar, Sidecar]:
    """Return the sidecars of the synthetic PET in the first real one's unit, and of the difference.

    Parameters
    ----------
    synthetic : dict
        Sidecar of the synthetic PET in template space.
    paths, origin : VisitPaths, Provenance
        Paths of the visit, and provenance of the run.
    units : str or None
        Unit of the real PET, if its sidecar has it.
    """
    real, scaled = paths.pets[0].in_t1w, paths.pets[0].subtracted[0]
    fields = synthetic_in_t1w(synthetic, paths, origin)
    del fields["IntensityScaling"], fields["Units"]
    brain = [origin.own(paths.brain_mask), origin.own(paths.pets[0].coverage_in_t1w)]
    return (
        {
            **fields,
            "Description": "SYNTHETIC FDG PET on the grid of the T1w, scaled to the real one by "
            "the median ratio over the brain; not a measurement",
            "Sources": [origin.own(paths.synthetic_pet_in_t1w), origin.own(real), *brain],
            **({} if units is None else {"Units": units}),
        },
        {
            **fields,
            "Description": "Real minus scaled SYNTHETIC FDG PET on the grid of the T1w, in percent "
            "of the latter's mean over the brain; negative where the real PET is less bright, and "
            "0 where nothing was predicted, such as below the template's grid",
            "Sources": [origin.own(real), origin.own(scaled), *brain],
            "Units": "%",
        },
    )


def crossvalidated_pet(
    space: Space,
    t1w: str,
    *,
    generator: str,
    version: str,
    fold: int,
    folds: int,
    smoothing_fwhm: float,
    overlap: bool,
    times_mean: float,
    t1w_fingerprint: str,
) -> Sidecar:
    """Return the sidecar of the synthetic PET of a control that was left out in cross-validation.

    Parameters
    ----------
    space : Space
        Grid of the run.
    t1w : str
        Path of the T1w from which it was predicted, relative to the derivative dataset.
    generator, version : str
        Name of the generator, and the version of mri2pet that trained it.
    fold, folds : int
        Number of the fold, from 1, and number of folds.
    smoothing_fwhm : float
        FWHM of the smoothing, in mm.
    overlap : bool
        Whether predictions of overlapping triplets of slices were averaged.
    times_mean : float
        Scale of the PET: see :func:`bids_app.imaging.intensity.scale_to_unit`.
    t1w_fingerprint : str
        See :func:`synthetic_pet`.
    """
    return {
        "Synthetic": True,
        "Description": f"SYNTHETIC FDG PET in {space.template}, predicted from the T1w by a "
        "generator that was not trained on this participant; not a measurement",
        "Sources": [f"bids::{t1w}"],
        "SkullStripped": True,
        "Units": SCALED,
        **space.entries(),
        "Generator": {"Name": generator, "Version": version},
        VERSION: version,
        "Fold": fold,
        "Folds": folds,
        "IntensityScaling": describe_scaling(times_mean=times_mean),
        "SmoothingFWHM": smoothing_fwhm,
        **({"OverlappingTripletsAveraged": True} if overlap else {}),
        "TrainedOnThisParticipant": False,
        OF_T1W: t1w_fingerprint,
    }


def uncertainty(synthetic: Sidecar, space: Space, sha256: str) -> Sidecar:
    """Return the sidecar, without measured fields, of the SD of a synthetic PET's error.

    Parameters
    ----------
    synthetic : dict
        Sidecar of the synthetic PET, whose other fields are shared.
    space : Space
        Grid of the run.
    sha256 : str
        SHA-256 of the generator's error model.
    """
    about = (
        f"Standard deviation of the error of the SYNTHETIC FDG PET in {space.template}, in its "
        "unit, predicted from the errors that the generator made on controls that it had not been "
        "trained on. It is valid for similar people and scans, and does not include the effect of "
        "a lesion or disease on the PET"
    )
    return {**synthetic, "Description": about, "ErrorModelSHA256": sha256}


def preprocessing_sidecars(
    visit: Visit, paths: VisitPaths, origin: Provenance, space: Space
) -> dict[Path, Sidecar]:
    """Return the sidecars of all files that ``--stage preprocess`` writes, by file.

    Parameters
    ----------
    visit, paths : Visit, VisitPaths
        Visit and paths of its results.
    origin, space : Provenance, Space
        Provenance and grid of the run.
    """
    template, source, uri, fields = space.template, origin.source, origin.own, origin.entries
    t1w, mask, to_template = map(uri, (paths.t1w, paths.brain_mask, paths.t1w_to_template))
    mask_in_template, grid = uri(paths.brain_mask_in_template), space.entries()
    on_t1w = {"SpatialReference": t1w}
    about = f"Transform between T1w and {template}: affine and deformation"
    transform = {**fields(about, [t1w, mask]), "SpatialReference": space.reference}
    sidecars: dict[Path, Sidecar] = {
        paths.t1w: {
            **fields("T1w corrected for the bias field, on its own grid", [source(visit.t1w)]),
            "SkullStripped": False,  # brain extraction says so if it is
        },
        paths.brain_mask: {
            **fields("Brain, on the grid of the T1w", [t1w]),
            "Type": "Brain",
            **on_t1w,
        },
        paths.t1w_in_template: {
            **fields(
                f"T1w of the brain in {template}, intensities in 0..1", [t1w, mask, to_template]
            ),
            "SkullStripped": True,
            **grid,
        },
        paths.brain_mask_in_template: {
            **fields(f"Brain, in {template}", [mask, to_template]),
            "Type": "Brain",
            **grid,
        },
        paths.t1w_to_template: transform,
        paths.template_to_t1w: dict(transform),
    }
    for pet, of_pet in zip(visit.pets, paths.pets, strict=True):
        to_t1w, units = uri(of_pet.to_t1w), dict(pet.metadata).get("Units")
        sidecars[of_pet.in_template] = {
            **fields(
                f"Acquired PET of the brain in {template}, intensities in 0..1",
                [source(pet), to_t1w, to_template, mask_in_template],
            ),
            "SkullStripped": True,
            "Units": SCALED,
            **grid,
        }
        sidecars[of_pet.in_t1w] = {
            **fields(
                "Acquired PET on the grid of the T1w, in its own units", [source(pet), to_t1w]
            ),
            "SkullStripped": False,
            **on_t1w,
            **({} if units is None else {"Units": units}),
        }
        sidecars[of_pet.to_t1w] = {
            **fields("Rigid transform from PET to T1w", [source(pet), t1w]),
            **on_t1w,
        }
        sidecars[of_pet.coverage_in_template] = {
            **fields(f"Brain in {template} {COVERED}", [uri(of_pet.in_template), mask_in_template]),
            "Type": FIELD_OF_VIEW,
            **grid,
        }
        sidecars[of_pet.coverage_in_t1w] = {
            **fields(f"Grid of the T1w, {COVERED}", [uri(of_pet.in_t1w)]),
            "Type": FIELD_OF_VIEW,
            **on_t1w,
        }
        if pet.derived is not None:
            _describe_taken_pet(sidecars, of_pet, pet.derived, origin)
    if visit.t1w.derived is not None:
        _describe_taken_t1w(sidecars, paths, visit.t1w.derived, origin)
    return sidecars


def _describe_taken_t1w(
    sidecars: Mapping[Path, Sidecar], paths: VisitPaths, derived: Derived, origin: Provenance
) -> None:
    """Add the source of each anatomical result that was taken from another app to its sidecar."""
    transforms = (paths.t1w_to_template, paths.template_to_t1w)
    if derived.in_template:
        sidecars[paths.t1w].update(
            Description=f"T1w in MNI space, as made by {derived.app}", InMNISpace=True
        )
        for transform in transforms:
            about = "Identity: the T1w was taken in MNI space"
            sidecars[transform].update(Description=about, TakenFrom=derived.app)
    taken = {
        paths.t1w: derived.image,
        paths.brain_mask: derived.brain_mask,
        **dict(zip(transforms, (derived.forward, derived.back), strict=True)),
    }
    for result, path in taken.items():
        if path is not None:
            sidecars[result].update(TakenFrom=derived.app, Sources=[origin.other(derived, path)])


def _describe_taken_pet(
    sidecars: Mapping[Path, Sidecar], paths: PetPaths, derived: Derived, origin: Provenance
) -> None:
    """Add the sources of a PET and its transform that were taken from another app."""
    for result in (paths.in_t1w, paths.in_template, paths.to_t1w):
        sidecars[result]["TakenFrom"] = derived.app
    if derived.forward is None:
        about = "Identity: the PET was taken in the space of the T1w"
        sidecars[paths.to_t1w]["Description"] = about
    else:
        sidecars[paths.to_t1w]["Sources"] = [origin.other(derived, derived.forward)]


def read_dictionary(*names: str) -> Dictionary:
    """Read the data dictionary of a table, with columns in order.

    Parameters
    ----------
    *names : str
        Names of files in ``data/dictionaries``, without ``.json``, in the order of their columns.

    Examples
    --------
    >>> list(read_dictionary("visits", "control_maps"))
    ['participant_id', 'session_id', 'above_zero']
    """
    dictionary: Dictionary = {}
    for name in names:
        dictionary |= json.loads(read_text(DICTIONARIES / f"{name}.json"))
    return dictionary


def write_table(path: Path, dictionary: Dictionary, lines: Sequence[Mapping[str, object]]) -> None:
    """Write a table, with its data dictionary beside it.

    Parameters
    ----------
    path : Path
        Path of the table.
    dictionary : dict
        Data dictionary of the columns, in order.
    lines : sequence of dict
        Values by column; other keys are ignored.

    Raises
    ------
    ReadWriteError
        If a file cannot be written.
    """
    write_tsv(path, list(dictionary), lines)
    write_json(path.with_suffix(".json"), dictionary)


class Faults(list[str]):
    """Sentences about missing or damaged files of a dataset.

    A reader that is given this list is lenient, as reports need it: it adds to the list and
    continues.

    Parameters
    ----------
    root : Path
        Root of the dataset; sentences name its files relative to it.
    """

    def __init__(self, root: Path) -> None:
        super().__init__()
        self.root = root

    def add(self, path: Path, fault: str) -> None:
        """Add a sentence about a file."""
        self.append(f"{self.name(path)}{fault}")

    def name(self, path: Path) -> str:
        """Return the name of a file, relative to the root of the dataset if it is inside."""
        inside = path.is_relative_to(self.root)
        return path.relative_to(self.root).as_posix() if inside else str(path)

    def add_unread(self, path: Path) -> None:
        """Add a sentence that a file is missing, or that it cannot be read if it exists."""
        self.add(path, " cannot be read." if path.exists() else " is missing.")


def as_value(cell: str | None) -> float:
    """Return a cell as a number, which may be infinite; nan if it is not a number.

    Examples
    --------
    >>> as_value("0.88"), as_value("inf"), as_value("n/a"), as_value(None)
    (0.88, inf, nan, nan)
    """
    try:
        return float(MISSING if cell is None else cell)
    except ValueError:
        return math.nan


def as_label(cell: str | None) -> str:
    """Return a cell as a label; empty if there is none."""
    return "" if cell is None or cell == MISSING else cell


def read_lines(path: Path, needed: Sequence[str], faults: Faults) -> list[Cells]:
    """Read the lines of a table that have a value in every column of ``needed``."""
    try:
        lines = read_tsv(path)
    except Mri2petError:
        faults.add_unread(path)
        return []
    if not lines:
        faults.add(path, " is empty." if path.exists() else " is missing.")
    whole: list[Cells] = [line for line in lines if all(as_label(line.get(c)) for c in needed)]
    lost = len(lines) - len(whole)
    if lost:
        faults.add(path, f": {lost} of its lines lack {' or '.join(needed)} and are left out.")
    return whole


def read_rows(
    path: Path, kind: Callable[..., Row], needed: Sequence[str] = (), faults: Faults | None = None
) -> list[Row]:
    """Read the lines of a table of the group level.

    Parameters
    ----------
    path : Path
        Path of the table. A missing table is read as an empty one.
    kind : type
        Dataclass with a field per column.
    needed : sequence of str
        Columns that a line must have.
    faults : Faults, optional
        List to which missing or damaged files and lines are added, for reports. The rest is read
        then, with :func:`known_row`.

    Raises
    ------
    ReadWriteError
        If the table cannot be read.
    UnusableDataError
        If the table lacks a column, or a cell is not of the column's type.
    """
    return [row for _, row in read_pairs(path, kind, needed, faults)]


def read_pairs(
    path: Path, kind: Callable[..., Row], needed: Sequence[str], faults: Faults | None
) -> list[tuple[Cells, Row]]:
    """Read rows as :func:`read_rows` does, each with all cells of its line."""
    if faults is not None:
        lines = read_lines(path, needed, faults)
        known = ((line, known_row(line, kind, needed)) for line in lines)
        kept = [(line, row) for line, row in known if row is not None]
        lost = len(lines) - len(kept)
        if lost:
            faults.add(path, f": {lost} of its lines cannot be read and are left out.")
        return kept
    columns, pairs = get_type_hints(kind), list[tuple[Cells, Row]]()
    for number, line in enumerate(read_tsv(path), 2):
        missing = [name for name in (*columns, *needed) if name not in line]
        if missing:
            raise UnusableDataError(
                f"{path}: line {number} has no {missing[0]!r}; run the group level again"
            )
        try:
            row = kind(**{name: _cell(line[name], columns[name]) for name in columns})
        except ValueError as error:
            raise UnusableDataError(
                f"{path}: line {number} cannot be read ({error}); run the group level again"
            ) from error
        pairs.append((line, row))
    return pairs


def known_row(line: Cells, kind: Callable[..., Row], needed: Sequence[str]) -> Row | None:
    """Read the readable cells of a line.

    An unreadable cell becomes None if its field is optional, and otherwise nan or an empty string.
    Return None if an integer, or a needed float, cannot be read.
    """
    values = dict[str, object]()
    for name, annotation in get_type_hints(kind).items():
        try:
            value = _cell(line.get(name, MISSING), annotation)
        except ValueError:
            value = None
        if annotation is str:
            value = as_label(line.get(name))
        elif value is None or (isinstance(value, float) and math.isnan(value)):
            if annotation is int or (annotation is float and name in needed):
                return None
            value = math.nan if annotation is float else None
        values[name] = value
    return kind(**values)


def _cell(cell: str, annotation: object) -> object:
    """Convert a cell to the type of its field."""
    choices = get_args(annotation)
    if cell == MISSING and NoneType in choices:
        return None
    kind = choices[0] if choices else annotation
    return kind(cell) if kind in (int, float) else cell


@dataclass(frozen=True)
class Derivative:
    """Expected image with its sidecar.

    Parameters
    ----------
    path : Path
        Path of the image.
    metadata : dict
        Content of the sidecar; empty if it is missing or cannot be read.
    fault : str
        Sentence about a missing or damaged sidecar; otherwise empty.
    """

    path: Path
    metadata: Mapping[str, object]
    fault: str = ""

    def text(self, key: str) -> str:
        """Return the value of a key as text; empty if there is none."""
        value = self.metadata.get(key)
        return "" if value is None else str(value)

    def reading_notes(self) -> list[str]:
        """List sentences on how the raw image was read."""
        notes = self.metadata.get("ReadingNotes")
        return [str(note) for note in notes] if isinstance(notes, list) else []

    def sources(self) -> tuple[str, ...]:
        """List the source files in other datasets; names of non-raw ones include the dataset."""
        listed = self.metadata.get("Sources")
        uris = [str(uri) for uri in listed] if isinstance(listed, list) else []
        named = [uri[len("bids:") :] for uri in uris if re.match("bids:[^:]", uri)]
        return tuple(uri.removeprefix("raw:") for uri in named)


def read_derivative(path: Path) -> Derivative:
    """Read the sidecar of an image; the image itself need not exist."""
    sidecar = sidecar_path(path)
    try:
        return Derivative(path, read_json(sidecar))
    except Mri2petError:
        state = "cannot be read" if sidecar.exists() else "is missing"
        return Derivative(path, {}, f"{sidecar.name} {state}; its information is left out.")
