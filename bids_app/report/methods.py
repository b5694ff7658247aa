"""The methods paragraph: what was done, with which tool and version, ready for a paper."""

import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from bids_app.report.beyond import tell_beyond
from bids_app.report.results import RealPet, Results
from bids_app.report.tables import as_number, folds_of

REFERENCES: Final = Path(__file__).parents[1] / "data" / "report" / "references.toml"
OWN_TEMPLATE: Final = "MNI152NLin2009aSym"  # the one that comes with nilearn
CLOSING: Final = (
    "This text was written by mri2pet and may be used freely; check it against what was done."
)


@dataclass(frozen=True)
class Procedure:
    """What the paragraph depends on.

    Parameters
    ----------
    versions : dict
        Distribution → version, as ``importlib.metadata`` names them; what is missing is left out.
    template : str
        Its name.
    resolution : str
        As file names spell it, in mm: ``"1"``, ``"1p5"``.
    skull_stripped : bool
        The input came without skull, so that no brain extraction was done.
    percentile : float
        Of the brain's intensities, the one that became 1.
    pet : bool
        There is a real PET.
    frames_averaged : bool
        A real PET had several frames.
    generator : dict
        ``Generator`` of a synthetic PET's sidecar; empty if none was made.
    fwhm : float or None
        By which the synthetic PET was smoothed, in mm.
    compared : bool
        The synthetic PET was measured against a real one.
    overlap, matched : bool
        Overlapping triplets were averaged; intensities were matched to the training controls'.
    folds : int
        Generators of folds whose predictions were compared; 0 if none were.
    novelty : bool
        The T1w was compared with those of the training controls.
    """

    versions: Mapping[str, str]
    template: str = OWN_TEMPLATE
    resolution: str = "1"
    skull_stripped: bool = False
    percentile: float = 99.9
    pet: bool = False
    frames_averaged: bool = False
    generator: Mapping[str, object] = field(default_factory=dict)
    fwhm: float | None = None
    compared: bool = False
    overlap: bool = False
    matched: bool = False
    folds: int = 0
    novelty: bool = False


def procedure_of(visits: Sequence[Results], versions: Mapping[str, str]) -> Procedure:
    """Read from the sidecars what was done."""
    space = next((visit.space for visit in visits if visit.space), f"{OWN_TEMPLATE}_res-1")
    moved = [visit.t1w_in_template for visit in visits if visit.t1w_in_template]
    pets = [pet for visit in visits for pet in visit.pets]
    synthetic = [visit.synthetic for visit in visits if visit.synthetic]
    first = synthetic[0].metadata if synthetic else {}
    generator = first.get("Generator")
    scaling = moved[0].metadata.get("IntensityScaling") if moved else None
    percentile = as_number(scaling.get("Percentile")) if isinstance(scaling, dict) else None
    return Procedure(
        versions=versions,
        template=space.partition("_res-")[0],
        resolution=space.partition("_res-")[2],
        skull_stripped=any(visit.t1w.metadata.get("SkullStripped") is True for visit in visits),
        percentile=99.9 if percentile is None else percentile,
        pet=bool(pets),
        frames_averaged=any(map(_had_frames, pets)),
        generator=generator if isinstance(generator, dict) else {},
        fwhm=as_number(first.get("SmoothingFWHM")),
        compared=any(bool(one.metadata.get("Measures")) for one in synthetic),
        overlap=first.get("OverlappingTripletsAveraged") is True,
        matched=bool(first.get("HistogramMatchedTo")),
        folds=max((len(folds_of(visit)) for visit in visits), default=0),
        novelty=any(bool(one.metadata.get("Novelty")) for one in synthetic),
    )


def boilerplate(procedure: Procedure) -> str:
    """Write the methods paragraph and the references it cites, as plain text.

    Examples
    --------
    >>> text = boilerplate(Procedure(versions={"mri2pet": "0.1.0"}))
    >>> text.startswith("Results were obtained with mri2pet 0.1.0")
    True
    """
    paragraphs = [_opening(procedure), _anatomy(procedure)]
    if procedure.pet:
        paragraphs.append(_pet(procedure))
    if procedure.generator:
        paragraphs.append(_synthesis(procedure))
    paragraphs.append(CLOSING)
    body = "\n\n".join(paragraphs)
    return with_references(body, REFERENCES)


def _had_frames(pet: RealPet) -> bool:
    frames = pet.get("FramesUsed")
    return isinstance(frames, list) and len(frames) > 1


def with_references(body: str, *listings: Path) -> str:
    """Add the references that a text cites.

    Parameters
    ----------
    body : str
        A reference is cited where its key stands.
    listings : Path
        TOML files: key → reference.
    """
    listed = [item for path in listings for item in _read(path).items()]
    cited = sorted(text for key, text in listed if key in body)
    return f"{body}\n\nReferences\n\n" + "\n".join(f"- {text}" for text in cited) + "\n"


def _read(path: Path) -> dict[str, str]:
    return tomllib.loads(path.read_text(encoding="utf-8"))


def tell_tool(versions: Mapping[str, str], name: str, distribution: str) -> str:
    """Name a tool with its version, if that is known."""
    return f"{name} {versions.get(distribution, '')}".strip()


def _tool(procedure: Procedure, name: str, distribution: str) -> str:
    return tell_tool(procedure.versions, name, distribution)


def _opening(procedure: Procedure) -> str:
    standards = "Gorgolewski et al., 2016" + "; Norgaard et al., 2022" * procedure.pet
    return (
        f"Results were obtained with {_tool(procedure, 'mri2pet', 'mri2pet')}, a BIDS App "
        f"(Gorgolewski et al., 2017) after the method of Zotova and colleagues (Zotova et al., "
        f"2021). Its input follows the Brain Imaging Data Structure ({standards}). Steps were run "
        f"by {_tool(procedure, 'nipype', 'nipype')} (Gorgolewski et al., 2011); images were read "
        f"and written with {_tool(procedure, 'nibabel', 'nibabel')} (Brett et al., 2024)."
    )


def _anatomy(procedure: Procedure) -> str:
    ants = f"ANTs ({_tool(procedure, 'antspyx', 'antspyx')})"
    brain = (
        "The T1-weighted (T1w) image came without skull, and its own extent was taken as the brain"
        if procedure.skull_stripped
        else "The brain was extracted from the T1-weighted (T1w) image with "
        f"{_tool(procedure, 'deepbet', 'deepbet')} (Fisch et al., 2024)"
    )
    source = (
        "Fonov et al., 2009), as distributed with "
        f"{_tool(procedure, 'nilearn', 'nilearn')} (Abraham et al., 2014)"
        if procedure.template == OWN_TEMPLATE
        else "TemplateFlow; Ciric et al., 2022)"
    )
    size = procedure.resolution.replace("p", ".")
    return (
        f"{brain}. Intensity non-uniformity was corrected with N4 (Tustison et al., 2010) and the "
        f"brain was registered to the template {procedure.template} ({source} by rigid, affine and "
        f"symmetric diffeomorphic (SyN) registration (Avants et al., 2008), both in {ants}. The "
        f"image was resampled to {size} mm isotropic voxels, divided by the "
        f"{procedure.percentile:g}th percentile of its brain, clipped to 0..1, and set to 0 "
        "outside of the brain. Registrations were judged by normalized mutual information "
        "(Studholme et al., 1999) before and after, by the Dice overlap of the brain masks, by "
        "correlation with the template deep in the brain, and by a search of all directions."
    )


def _pet(procedure: Procedure) -> str:
    frames = "Frames of the FDG PET were averaged, each weighted by its duration. "
    return frames * procedure.frames_averaged + (
        "The FDG PET was registered rigidly to the T1w image of the same participant by mutual "
        "information, from more than one start. It was carried into the space of the template "
        "along the transforms of the T1w image, resampled once, and scaled as the T1w image was."
    )


def _beyond(procedure: Procedure) -> str:
    return tell_beyond(
        overlap=procedure.overlap, matched=procedure.matched,
        folds=procedure.folds, novelty=procedure.novelty,
    )  # fmt: skip


def _synthesis(procedure: Procedure) -> str:
    told = procedure.generator
    name = " ".join(str(told[key]) for key in ("Name", "Version") if told.get(key))
    source = str(told.get("TrainedOn", "unknown images")).rstrip(".")
    smoothed = (
        ""
        if procedure.fwhm is None
        else (f" The predicted image was smoothed by a Gaussian of {procedure.fwhm:g} mm FWHM.")
    )
    compared = (
        " Synthetic and real PET were compared by peak signal-to-noise ratio and structural "
        "similarity (Wang et al., 2004), in the whole volume and inside the brain."
    )
    return (
        "A synthetic FDG PET was predicted from the T1w image in the space of the template by the "
        f"generator {name} (SHA-256 {told.get('SHA256', 'unknown')}), a convolutional network "
        "as Zhu et al., 2017, describe it, trained adversarially (Zotova et al., 2021), in "
        f"{_tool(procedure, 'PyTorch', 'torch')} (Paszke et al., 2019). It was trained on: "
        f"{source}.{smoothed}{_beyond(procedure)}"
        f"{compared * procedure.compared} A synthetic PET is no measurement of metabolism."
    )
