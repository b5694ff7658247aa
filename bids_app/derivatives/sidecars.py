"""What stands beside each result: everything known before it is computed.

Nodes merge in what they measure ("Registration", "IntensityScaling", "FramesUsed",
"FrameDurationsUsed", "ReadingNotes", "BrainCoverage", "BrainNotCovered", "Measures", "Novelty").

Beside a table stands its data dictionary, from ``data/dictionaries``.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from bids_app.derivatives.description import KEY as VERSION
from bids_app.derivatives.paths import PetPaths, VisitPaths
from bids_app.files import read_text, write_json, write_tsv
from bids_app.visit import Scan, Visit

Sidecar = dict[str, object]
Dictionary = dict[str, dict[str, object]]  # column → what explains it
DICTIONARIES = Path(__file__).parents[1] / "data" / "dictionaries"
FIELD_OF_VIEW = "ROI"  # "Type" of a mask of what an image covers: BIDS knows no better
COVERED = "where the PET was measured: within the scanner's field of view. Elsewhere it is 0"
SCALED = "arbitrary"  # "Units" of intensities that are divided by a percentile
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

    def raw(self, scan: Scan) -> str:
        """BIDS URI of a raw image; ``raw`` stands in ``DatasetLinks``."""
        return f"bids:raw:{scan.path.relative_to(self.bids_dir.absolute()).as_posix()}"

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


def t1w(scan: Scan, origin: Provenance, *, skull_stripped: bool) -> Sidecar:
    """Tell of the corrected T1w; ``skull_stripped`` if it already came so."""
    about = "T1w corrected for the bias field, on its own grid"
    return {**origin.entries(about, [origin.raw(scan)]), "SkullStripped": skull_stripped}


def brain_mask(paths: VisitPaths, origin: Provenance) -> Sidecar:
    """Tell of the brain mask on the grid of the T1w."""
    reference = origin.own(paths.t1w)
    common = origin.entries("Brain, on the grid of the T1w", [reference])
    return {**common, "Type": "Brain", "SpatialReference": reference}


def t1w_in_template(paths: VisitPaths, origin: Provenance, space: Space) -> Sidecar:
    """Tell of the T1w on the app's grid."""
    sources = [origin.own(p) for p in (paths.t1w, paths.brain_mask, paths.t1w_to_template)]
    about = f"T1w of the brain in {space.template}, intensities in 0..1"
    return {**origin.entries(about, sources), "SkullStripped": True, **space.entries()}


def brain_mask_in_template(paths: VisitPaths, origin: Provenance, space: Space) -> Sidecar:
    """Tell of the brain mask on the app's grid."""
    sources = [origin.own(p) for p in (paths.brain_mask, paths.t1w_to_template)]
    about = f"Brain, in {space.template}"
    return {**origin.entries(about, sources), "Type": "Brain", **space.entries()}


def anatomical_transform(paths: VisitPaths, origin: Provenance, space: Space) -> Sidecar:
    """Tell of the transforms between T1w and template, either way."""
    sources = [origin.own(paths.t1w), origin.own(paths.brain_mask)]
    about = f"Transform between T1w and {space.template}: affine and deformation"
    return {**origin.entries(about, sources), "SpatialReference": space.reference}


def pet_in_template(
    pet: Scan, of_pet: PetPaths, paths: VisitPaths, origin: Provenance, space: Space
) -> Sidecar:
    """Tell of a real PET on the app's grid."""
    computed = (of_pet.to_t1w, paths.t1w_to_template, paths.brain_mask_in_template)
    about = f"Acquired PET of the brain in {space.template}, intensities in 0..1"
    return {
        **origin.entries(about, [origin.raw(pet), *map(origin.own, computed)]),
        "SkullStripped": True,
        "Units": SCALED,
        **space.entries(),
    }


def pet_in_t1w(pet: Scan, of_pet: PetPaths, paths: VisitPaths, origin: Provenance) -> Sidecar:
    """Tell of a real PET on the grid of the T1w, in its own units."""
    units = dict(pet.metadata).get("Units")
    about = "Acquired PET on the grid of the T1w, in its own units"
    return {
        **origin.entries(about, [origin.raw(pet), origin.own(of_pet.to_t1w)]),
        "SkullStripped": False,
        "SpatialReference": origin.own(paths.t1w),
        **({} if units is None else {"Units": units}),
    }


def coverage_in_template(
    of_pet: PetPaths, paths: VisitPaths, origin: Provenance, space: Space
) -> Sidecar:
    """Tell of the mask of what a real PET covers, on the app's grid."""
    sources = [origin.own(p) for p in (of_pet.in_template, paths.brain_mask_in_template)]
    about = f"Brain in {space.template} {COVERED}"
    return {**origin.entries(about, sources), "Type": FIELD_OF_VIEW, **space.entries()}


def coverage_in_t1w(of_pet: PetPaths, paths: VisitPaths, origin: Provenance) -> Sidecar:
    """Tell of the mask of what a real PET covers, on the grid of the T1w."""
    about = f"Grid of the T1w, {COVERED}"
    common = origin.entries(about, [origin.own(of_pet.in_t1w)])
    return {**common, "Type": FIELD_OF_VIEW, "SpatialReference": origin.own(paths.t1w)}


def pet_transform(pet: Scan, paths: VisitPaths, origin: Provenance) -> Sidecar:
    """Tell of the rigid transform from a PET to the T1w."""
    about = "Rigid transform from PET to T1w"
    return {
        **origin.entries(about, [origin.raw(pet), origin.own(paths.t1w)]),
        "SpatialReference": origin.own(paths.t1w),
    }


def synthetic_pet(
    paths: VisitPaths,
    origin: Provenance,
    space: Space,
    *,
    generator: Mapping[str, object],
    smoothing_fwhm: float,
    trained_on_this_participant: bool,
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
        "SmoothingFWHM": smoothing_fwhm,
        "TrainedOnThisParticipant": trained_on_this_participant,
        **({"OverlappingTripletsAveraged": True} if overlap else {}),
        **({"HistogramMatchedTo": MATCHED_TO} if match_histogram else {}),
    }


def uncertainty(synthetic: Sidecar, space: Space, fold_sha256: Sequence[str]) -> Sidecar:
    """Tell of the standard deviation of synthetic PET over the generators of folds.

    Parameters
    ----------
    synthetic : dict
        The sidecar of the synthetic PET, which all else is alike to.
    space : Space
        Of the run.
    fold_sha256 : sequence of str
        Of the weights of the generators of the folds, in order.
    """
    about = (
        f"Standard deviation of the SYNTHETIC FDG PET in {space.template} over the generators of "
        f"{len(fold_sha256)} folds, each trained without some of the controls, computed as the "
        "synthetic PET was. It tells how much the prediction depends on who was trained on. It is "
        "no confidence interval: what all generators get wrong alike, and what the T1w does not "
        "show, is not in it"
    )
    return {**synthetic, "Description": about, "FoldGeneratorsSHA256": list(fold_sha256)}


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
    transform = anatomical_transform(paths, origin, space)
    sidecars = {
        paths.t1w: t1w(visit.t1w, origin, skull_stripped=skull_stripped),
        paths.brain_mask: brain_mask(paths, origin),
        paths.t1w_in_template: t1w_in_template(paths, origin, space),
        paths.brain_mask_in_template: brain_mask_in_template(paths, origin, space),
        paths.t1w_to_template: transform,
        paths.template_to_t1w: dict(transform),
    }
    for pet, of_pet in zip(visit.pets, paths.pets, strict=True):
        sidecars[of_pet.in_template] = pet_in_template(pet, of_pet, paths, origin, space)
        sidecars[of_pet.in_t1w] = pet_in_t1w(pet, of_pet, paths, origin)
        sidecars[of_pet.to_t1w] = pet_transform(pet, paths, origin)
        covered = coverage_in_template(of_pet, paths, origin, space)
        sidecars[of_pet.coverage_in_template] = covered
        sidecars[of_pet.coverage_in_t1w] = coverage_in_t1w(of_pet, paths, origin)
    return sidecars


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
