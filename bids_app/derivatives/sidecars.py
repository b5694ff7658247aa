"""What stands beside each result: everything known before it is computed.

Nodes merge in what they measure ("Registration", "IntensityScaling", "FramesUsed",
"FrameDurationsUsed", "ReadingNotes", "BrainCoverage", "BrainNotCovered", "Measures", "Novelty",
"Uncertainty", "Precision").

Beside a table stands its data dictionary, from ``data/dictionaries``.
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
from bids_app.derivatives.paths import PetPaths, VisitPaths, sidecar_path
from bids_app.errors import Mri2petError, UnusableDataError
from bids_app.files import MISSING, read_json, read_text, read_tsv, write_json, write_tsv
from bids_app.imaging.intensity import describe_scaling
from bids_app.visit import Derived, Scan, Visit

Sidecar = dict[str, object]
Dictionary = dict[str, dict[str, object]]  # column → what explains it
Cells = Mapping[str, str]  # column → cell, of a line
Row = TypeVar("Row")
DICTIONARIES = Path(__file__).parents[1] / "data" / "dictionaries"
FIELD_OF_VIEW = "ROI"  # "Type" of a mask of what an image covers: BIDS knows no better
COVERED = "where the PET was measured: within the scanner's field of view. Elsewhere it is 0"
SCALED = "arbitrary"  # "Units" of intensities within 0..1
MATCHED_TO = "mean PET of the generator's training controls, in the brain"


@dataclass(frozen=True)
class Space:
    """The app's grid.

    Parameters
    ----------
    template : str
        Its name, as a ``space-`` label.
    resolution : float
        In mm.
    reference : str
        URI of the template's image.
    """

    template: str
    resolution: float
    reference: str

    def entries(self) -> Sidecar:
        """Fields of every image on this grid."""
        text = f"{self.resolution:g} mm isotropic, the grid of this dataset in {self.template}"
        return {"Resolution": text, "SpatialReference": self.reference}


@dataclass(frozen=True)
class Provenance:
    """What every sidecar of a run tells alike.

    Parameters
    ----------
    bids_dir, output_dir : Path
        Roots of the raw and of the derivative dataset.
    fingerprint : str
        Of the settings and the sources.
    version : str
        Of the app.
    """

    bids_dir: Path
    output_dir: Path
    fingerprint: str
    version: str

    def source(self, scan: Scan) -> str:
        """BIDS URI of the image that was read: the raw one, or what another app made of it.

        ``raw``, and the name of that app's dataset, stand in ``DatasetLinks``.
        """
        if scan.derived is not None:
            return self.other(scan.derived, scan.derived.image)
        return f"bids:raw:{scan.path.relative_to(self.bids_dir.absolute()).as_posix()}"

    def other(self, derived: Derived, path: Path) -> str:
        """BIDS URI of a file of another app's dataset."""
        return f"bids:{derived.dataset}:{path.relative_to(derived.root).as_posix()}"

    def own(self, path: Path) -> str:
        """BIDS URI of a result."""
        return f"bids::{path.relative_to(self.output_dir).as_posix()}"

    def entries(self, description: str, sources: Sequence[str]) -> Sidecar:
        """Fields of every sidecar."""
        return {
            "Description": description,
            "Sources": list(sources),
            "Fingerprint": self.fingerprint,
            VERSION: self.version,
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
    overlap: bool = False,
    match_histogram: bool = False,
) -> Sidecar:
    """Tell of the PET that a generator predicts: no dose, no time, nothing that was not measured.

    Parameters
    ----------
    paths, origin, space : VisitPaths, Provenance, Space
        Of the visit and the run.
    generator : mapping
        ``Name``, ``Version``, ``SHA256``, ``TrainedOn``, ``IntendedUse``, from its card.
    smoothing_fwhm : float
        In mm.
    trained_on_this_participant : bool
        Whether the generator has seen this participant in training.
    times_mean : float
        Scale of the PET, as :func:`bids_app.imaging.intensity.scale_to_unit` has it.
    overlap, match_histogram : bool
        What was done beyond the paper; told only where it was done.
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
        **({"OverlappingTripletsAveraged": True} if overlap else {}),
        **({"HistogramMatchedTo": MATCHED_TO} if match_histogram else {}),
    }


def synthetic_in_t1w(synthetic: Sidecar, paths: VisitPaths, origin: Provenance) -> Sidecar:
    """Tell of the synthetic PET that was carried to the T1w's own grid.

    Parameters
    ----------
    synthetic : dict
        The sidecar of the one in template space.
    paths, origin : VisitPaths, Provenance
        Of the visit.
    """
    fields = {
        key: value for key, value in synthetic.items() if key not in ("Resolution", "Sources")
    }
    return {
        **fields,
        "Description": "SYNTHETIC FDG PET on the grid of the T1w, predicted from it in the space "
        "of the template; not a measurement",
        "Sources": [origin.own(paths.synthetic_pet), origin.own(paths.template_to_t1w)],
        "SpatialReference": origin.own(paths.t1w),
    }


def subtracted_pet(
    synthetic: Sidecar, paths: VisitPaths, origin: Provenance, units: object
) -> tuple[Sidecar, Sidecar]:
    """Tell of the synthetic PET in the unit of the first real one, and of their difference.

    Parameters
    ----------
    synthetic : dict
        The sidecar of the synthetic PET in template space.
    paths, origin : VisitPaths, Provenance
        Of the visit.
    units : str or None
        Of the real PET, if its sidecar says.
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
            "of the scaled one's mean over the brain; below 0 where the real PET is less bright",
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
    times_mean: float,
) -> Sidecar:
    """Describe the synthetic PET of a control by the generator of the fold that left it out.

    Parameters
    ----------
    space : Space
        Of the run.
    t1w : str
        What it was predicted from, relative to the derivative dataset.
    generator, version : str
        Name of the generator, and the version of mri2pet that trained it.
    fold, folds : int
        Number of the fold, from 1, and of how many.
    smoothing_fwhm : float
        In mm.
    times_mean : float
        Scale of the PET, as :func:`bids_app.imaging.intensity.scale_to_unit` has it.
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
        "TrainedOnThisParticipant": False,
    }


def uncertainty(synthetic: Sidecar, space: Space, sha256: str) -> Sidecar:
    """Tell of the standard deviation of a synthetic PET's error, but for what a node measures.

    Parameters
    ----------
    synthetic : dict
        The sidecar of the synthetic PET, which all else is alike to.
    space : Space
        Of the run.
    sha256 : str
        Of what the generator knows of its errors.
    """
    about = (
        f"Standard deviation of the error of the SYNTHETIC FDG PET in {space.template}, in its "
        "unit, predicted from the errors that the generator made on controls that it had not been "
        "trained on. It holds for similar people and scans; the effect of a lesion or disease on "
        "PET is not included"
    )
    return {**synthetic, "Description": about, "ErrorModelSHA256": sha256}


def preprocessing_sidecars(
    visit: Visit, paths: VisitPaths, origin: Provenance, space: Space, *, skull_stripped: bool
) -> dict[Path, Sidecar]:
    """Give the sidecars of all that ``--stage preprocess`` writes, by the file they stand beside.

    Parameters
    ----------
    visit, paths : Visit, VisitPaths
        The visit and its results.
    origin, space : Provenance, Space
        Of the run.
    skull_stripped : bool
        Whether the raw T1w came without skull.
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
            "SkullStripped": skull_stripped,
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
    """Say of each result that another app has made what it was taken from."""
    transforms = (paths.t1w_to_template, paths.template_to_t1w)
    if derived.in_template:
        sidecars[paths.t1w].update(
            Description=f"T1w in MNI space, as {derived.app} has made it", InMNISpace=True
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
    """Say of a PET, and of its transform, what another app has made of them."""
    for result in (paths.in_t1w, paths.in_template, paths.to_t1w):
        sidecars[result]["TakenFrom"] = derived.app
    if derived.forward is None:
        about = "Identity: the PET was taken in the space of the T1w"
        sidecars[paths.to_t1w]["Description"] = about
    else:
        sidecars[paths.to_t1w]["Sources"] = [origin.other(derived, derived.forward)]


def read_dictionary(*names: str) -> Dictionary:
    """Read what explains the columns of a table, in their order.

    Parameters
    ----------
    *names : str
        Files in ``data/dictionaries``, without ``.json``; columns of the first come first.

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
    """Write a table, and its dictionary beside it.

    Parameters
    ----------
    path : Path
        The table.
    dictionary : dict
        Explains its columns, in their order.
    lines : sequence of dict
        Column → value; other keys are left out.

    Raises
    ------
    ReadWriteError
        If one of them cannot be written.
    """
    write_tsv(path, list(dictionary), lines)
    write_json(path.with_suffix(".json"), dictionary)


class Faults(list[str]):
    """What is missing or damaged in a dataset, a sentence each.

    Reports are lenient: a reader that is given this adds to it, and reads on.

    Parameters
    ----------
    root : Path
        The dataset; its files are named from there.
    """

    def __init__(self, root: Path) -> None:
        super().__init__()
        self.root = root

    def add(self, path: Path, fault: str) -> None:
        """Say what is wrong with a file."""
        self.append(f"{self.name(path)}{fault}")

    def name(self, path: Path) -> str:
        """Name a file from the root of the dataset."""
        inside = path.is_relative_to(self.root)
        return path.relative_to(self.root).as_posix() if inside else str(path)

    def tell_unread(self, path: Path) -> None:
        """Say of a file that could not be read whether it is there."""
        self.add(path, " cannot be read." if path.exists() else " is missing.")


def as_value(cell: str | None) -> float:
    """Read a number, perhaps infinite; nan if it is none.

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
    """Read a label; empty where there is none."""
    return "" if cell is None or cell == MISSING else cell


def read_lines(path: Path, needed: Sequence[str], faults: Faults) -> list[Cells]:
    """Read the lines of a table that have something in all of the columns ``needed``."""
    try:
        lines = read_tsv(path)
    except Mri2petError:
        faults.tell_unread(path)
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
        The table. An absent one is read as one without lines.
    kind : type
        A dataclass, a field a column.
    needed : sequence of str
        Columns without which a line says nothing.
    faults : Faults, optional
        For reports: gets what is missing or damaged, and the rest is read, see :func:`known_row`.

    Raises
    ------
    ReadWriteError
        If it cannot be read.
    UnusableDataError
        If it lacks a column, or a cell is not what the column is.
    """
    return [row for _, row in read_pairs(path, kind, needed, faults)]


def read_pairs(
    path: Path, kind: Callable[..., Row], needed: Sequence[str], faults: Faults | None
) -> list[tuple[Cells, Row]]:
    """Read as :func:`read_rows`, each line with all of its cells."""
    if faults is not None:
        lines = read_lines(path, needed, faults)
        known = ((line, known_row(line, kind, needed)) for line in lines)
        kept = [(line, row) for line, row in known if row is not None]
        lost = len(lines) - len(kept)
        if lost:
            faults.add(path, f": {lost} of its lines cannot be understood and are left out.")
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
    """Read what can be read of a line.

    A cell that cannot is None where the field may be, else nan or empty; without a whole number,
    or one that is needed, a line is not understood, and None.
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
    """Read a cell as the field it is for."""
    choices = get_args(annotation)
    if cell == MISSING and NoneType in choices:
        return None
    kind = choices[0] if choices else annotation
    return kind(cell) if kind in (int, float) else cell


@dataclass(frozen=True)
class Derivative:
    """An image that ought to be there, and its sidecar.

    Parameters
    ----------
    path : Path
        The image.
    metadata : dict
        Empty where the sidecar is missing or cannot be read.
    fault : str
        What is wrong with the sidecar; empty if nothing is.
    """

    path: Path
    metadata: Mapping[str, object]
    fault: str = ""

    def text(self, key: str) -> str:
        """Give a value as text; empty where there is none."""
        value = self.metadata.get(key)
        return "" if value is None else str(value)

    def reading_notes(self) -> list[str]:
        """List what is to be known of how the raw image was read, in sentences."""
        notes = self.metadata.get("ReadingNotes")
        return [str(note) for note in notes] if isinstance(notes, list) else []

    def sources(self) -> tuple[str, ...]:
        """Name the files of other datasets it was made from, those not raw with their dataset."""
        listed = self.metadata.get("Sources")
        uris = [str(uri) for uri in listed] if isinstance(listed, list) else []
        named = [uri[len("bids:") :] for uri in uris if re.match("bids:[^:]", uri)]
        return tuple(uri.removeprefix("raw:") for uri in named)


def read_derivative(path: Path) -> Derivative:
    """Read the sidecar of an image; the image itself need not be there."""
    sidecar = sidecar_path(path)
    try:
        return Derivative(path, read_json(sidecar))
    except Mri2petError:
        state = "cannot be read" if sidecar.exists() else "is missing"
        return Derivative(path, {}, f"{sidecar.name} {state}; what it would tell is left out.")
