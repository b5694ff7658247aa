"""Methods paragraphs: what a level did, with which tool and version, ready for a paper.

Texts are templates in ``data/report/methods``; here is what fills them in.
"""

import tomllib
from collections.abc import Mapping, Sequence
from math import isnan
from pathlib import Path
from typing import Final

from jinja2 import Environment, FunctionLoader, StrictUndefined

from bids_app.derivatives.find import RealPet, Results
from bids_app.report.anomalies import Detected
from bids_app.report.cards import (
    Specs,
    TrainedModel,
    by_configuration,
    describe_grid,
    grids_of,
    tell_losses,
    tell_number,
)
from bids_app.report.page import TEMPLATES, enumerate_words
from bids_app.report.results import as_number
from bids_app.synthesis.models import ModelSpec
from bids_app.synthesis.tiling import CubicPatches, SliceTriplets

REFERENCES: Final = TEMPLATES / "references.toml"
MORE_REFERENCES: Final = TEMPLATES / "training_references.toml"
GROUP_REFERENCES: Final = TEMPLATES / "group_references.toml"
OWN_TEMPLATE: Final = "MNI152NLin2009aSym"  # the one that comes with nilearn
TOOLS: Final = {
    "PyTorch": "torch",
    "SciPy": "scipy",
    "antspyx": "antspyx",
    "deepbet": "deepbet",
    "mri2pet": "mri2pet",
    "nibabel": "nibabel",
    "nilearn": "nilearn",
    "nipype": "nipype",
    "numba": "numba",
}  # as texts name them → distribution
NUMBERS: Final = (
    *(
        "n_blocks",
        "width",
        "beta1",
        "beta2",
        "batch_size",
        "learning_rate",
        "pool_size",
        "patience",
    ),
)  # of a spec


def boilerplate(
    *,
    versions: Mapping[str, str],
    template: str = OWN_TEMPLATE,
    resolution: str = "1",
    skull_stripped: bool = False,
    percentile: float = 99.9,
    pet: bool = False,
    frames_averaged: bool = False,
    generator: Mapping[str, object] | None = None,
    fwhm: float | None = None,
    compared: bool = False,
    overlap: bool = False,
    matched: bool = False,
    folds: int = 0,
    novelty: bool = False,
) -> str:
    """Write the methods of the participant level and the references they cite, as plain text.

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
    generator : dict, optional
        ``Generator`` of a synthetic PET's sidecar; None or empty if none was made.
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

    Examples
    --------
    >>> text = boilerplate(versions={"mri2pet": "0.1.0"})
    >>> text.startswith("Results were obtained with mri2pet 0.1.0")
    True
    """
    values: dict[str, object] = {
        "template": template,
        "size": resolution.replace("p", "."),
        "skull_stripped": skull_stripped,
        "percentile": f"{percentile:g}",
        "pet": pet,
        "frames_averaged": frames_averaged,
        "generator": _describe_generator(generator) if generator else None,
        "fwhm": _show(fwhm),
        "compared": compared,
        "overlap": overlap,
        "matched": matched,
        "folds": folds,
        "novelty": novelty,
    }
    return _write("participant.txt", versions, values, REFERENCES)


def boilerplate_of(visits: Sequence[Results], versions: Mapping[str, str]) -> str:
    """Write the methods of a participant, from what sidecars tell."""
    space = next((visit.space for visit in visits if visit.space), f"{OWN_TEMPLATE}_res-1")
    moved = [visit.t1w_in_template for visit in visits if visit.t1w_in_template]
    pets = [pet for visit in visits for pet in visit.pets]
    synthetic = [visit.synthetic for visit in visits if visit.synthetic]
    first = synthetic[0].metadata if synthetic else {}
    generator = first.get("Generator")
    scaling = moved[0].metadata.get("IntensityScaling") if moved else None
    percentile = as_number(scaling.get("Percentile")) if isinstance(scaling, dict) else None
    return boilerplate(
        versions=versions,
        template=space.partition("_res-")[0],
        resolution=space.partition("_res-")[2],
        skull_stripped=any(visit.t1w.metadata.get("SkullStripped") is True for visit in visits),
        percentile=99.9 if percentile is None else percentile,
        pet=bool(pets),
        frames_averaged=any(map(_had_frames, pets)),
        generator=generator if isinstance(generator, dict) else None,
        fwhm=as_number(first.get("SmoothingFWHM")),
        compared=any(bool(image.metadata.get("Measures")) for image in synthetic),
        overlap=first.get("OverlappingTripletsAveraged") is True,
        matched=bool(first.get("HistogramMatchedTo")),
        folds=max((len(visit.folds) for visit in visits), default=0),
        novelty=any(bool(image.metadata.get("Novelty")) for image in synthetic),
    )


def training_boilerplate(
    *,
    versions: Mapping[str, str],
    specs: Specs,
    controls: int = 0,
    folds: Sequence[int] = (),
    grids: Sequence[str] = (),
    fwhm: float | None = None,
    lpips: bool = False,
    tested: bool = False,
) -> str:
    """Write the methods of the train level and the references they cite, as plain text.

    Parameters
    ----------
    versions : dict
        Distribution → version; what is missing is left out.
    specs : dict
        Name of a model → its spec; None if it is not known.
    controls : int
        Participants that were scored.
    folds : sequence of int
        How many each fold left out.
    grids : sequence of str
        Of the images.
    fwhm : float or None
        By which synthetic PET was smoothed, in mm.
    lpips, tested : bool
        LPIPS was measured; rows were tested against one another.

    Examples
    --------
    >>> text = training_boilerplate(versions={"mri2pet": "0.1.0"}, specs={})
    >>> text.startswith("Generators of synthetic FDG PET were trained with mri2pet 0.1.0")
    True
    """
    tilings = [spec.tiling for spec in specs.values() if spec is not None]
    values: dict[str, object] = {
        "controls": controls,
        "grids": grids,
        "losses": {name: tell_losses(spec) for name, spec in specs.items()},
        "semi3d": any(isinstance(tiling, SliceTriplets) for tiling in tilings),
        "cubes": dict.fromkeys(filter(None, map(_describe_cubes, specs.values()))),
        "specs": {name: _tell(specs, name) for name in NUMBERS},
        "schedule": by_configuration(specs, _describe_schedule) if specs else "",
        "stopped_early": bool(tilings),
        "folds": folds,
        "left_out": enumerate_words([str(size) for size in folds]) if folds else "",
        "fwhm": _show(fwhm),
        "lpips": lpips,
        "tested": tested,
    }
    return _write("train.txt", versions, values, REFERENCES, MORE_REFERENCES)


def training_boilerplate_of(
    trained: TrainedModel, versions: Mapping[str, str], fwhm: float | None
) -> str:
    """Write the methods of the train level, from what tables and cards tell."""
    return training_boilerplate(
        versions=versions,
        specs=trained.specs,
        controls=len(trained.participants),
        folds=tuple(trained.folds.values()),
        grids=grids_of(trained),
        fwhm=fwhm,
        lpips=any(not isnan(row.means["lpips"]) for row in trained.rows),
        tested=any(not isnan(test.p) for test in trained.comparisons),
    )


def group_boilerplate(
    *,
    versions: Mapping[str, str],
    detectors: Sequence[str] = (),
    training: Sequence[str] = (),
    synthetic: bool = False,
    grids: Sequence[str] = (),
    folds: str = "",
    numbers: Mapping[str, str] | None = None,
    evaluated: bool = False,
    tested: bool = False,
    free: bool = False,
) -> str:
    """Write the methods of the group level and the references they cite, as plain text.

    Parameters
    ----------
    versions : dict
        Distribution → version; what is missing is left out.
    detectors : sequence of str
        ``ocsvm``, ``zscore``, ``pseudonormal``.
    training : sequence of str
        Whom each training set holds, as words: ``"real (35 controls, all with real PET)"``.
    synthetic : bool
        Some of the controls have synthetic PET.
    grids : sequence of str
        Of the images.
    folds : str
        How many; empty if unknown.
    numbers : dict, optional
        Settings and parameters of the detectors by name: ``nu``, ``cluster_extent`` …
    evaluated, tested, free : bool
        Lesions are known; detectors were tested against one another; there is a free-response
        curve.

    Examples
    --------
    >>> text = group_boilerplate(versions={"mri2pet": "0.1.0"})
    >>> text.startswith("Anomalies of FDG PET were mapped with mri2pet 0.1.0")
    True
    """
    known = {} if numbers is None else numbers

    def tell(*names: str) -> str:
        return next((known[name] for name in names if known.get(name)), "")

    values: dict[str, object] = {
        "detectors": detectors,
        "training": training,
        "synthetic": synthetic,
        "grids": grids,
        "folds": folds,
        "nu": tell("nu"),
        "patch": tell("patch"),
        "fwhm": tell("zscore_fwhm", "fwhm"),
        "extent": tell("cluster_extent", "extent"),
        "smallest": tell("min_cluster_size", "minimum_volume"),
        "most": tell("clusters", "most"),
        "evaluated": evaluated,
        "tested": tested,
        "free": free,
    }
    listings = (REFERENCES, MORE_REFERENCES, GROUP_REFERENCES)
    return _write("group.txt", versions, values, *listings)


def group_boilerplate_of(
    detected: Detected, versions: Mapping[str, str], numbers: Mapping[str, str]
) -> str:
    """Write the methods of the group level, from what tables and cards tell.

    ``numbers``: settings and parameters of the detectors by name.
    """
    training, grids = [], []
    for name, card in detected.cards.items():
        made = sum(control.synthetic for control in card.controls)
        real = f"{len(card.controls) - made} controls with real PET"
        training.append(f"{name} ({real}, {made} with synthetic PET)")
        grids.append(describe_grid(card.template, card.shape, card.affine))
    cards = detected.cards.values()
    return group_boilerplate(
        versions=versions,
        detectors=tuple(dict.fromkeys(detector for _, detector in detected.detectors)),
        training=training,
        synthetic=any(control.synthetic for card in cards for control in card.controls),
        grids=list(dict.fromkeys(filter(None, grids))),
        folds=next((str(card.folds) for card in cards if card.folds), ""),
        numbers=numbers,
        evaluated=bool(detected.curve),
        tested=any(test.p is not None for test in detected.comparisons),
        free=bool(detected.responses),
    )


def _write(
    template: str, versions: Mapping[str, str], values: Mapping[str, object], *listings: Path
) -> str:
    """Fill in a template, leave out paragraphs that are empty then, and list what others cite.

    ``listings`` are TOML files, key → reference; one is cited where its key stands.
    """
    tools = {name: f"{name} {versions.get(key, '')}".strip() for name, key in TOOLS.items()}
    text = TEXTS.get_template(template).render(tools=tools, **values)
    body = "\n\n".join(paragraph for paragraph in text.split("\n\n") if paragraph)
    listed = [item for path in listings for item in _read(path).items()]
    cited = sorted(reference for key, reference in listed if key in body)
    return f"{body}\n\nReferences\n\n" + "\n".join(f"- {text}" for text in cited) + "\n"


def _read(path: Path) -> dict[str, str]:
    return tomllib.loads(path.read_text(encoding="utf-8"))


def _unfold(template: str) -> str:
    """Read a template, each of its paragraphs as one line."""
    text = (TEMPLATES / "methods" / template).read_text(encoding="utf-8")
    return "\n\n".join(" ".join(paragraph.split()) for paragraph in text.split("\n\n"))


TEXTS: Final = Environment(loader=FunctionLoader(_unfold), undefined=StrictUndefined)


def _show(number: float | None) -> str:
    return "" if number is None else f"{number:g}"


def _had_frames(pet: RealPet) -> bool:
    frames = pet.get("FramesUsed")
    return isinstance(frames, list) and len(frames) > 1


def _describe_generator(told: Mapping[str, object]) -> dict[str, str]:
    return {
        "name": " ".join(str(told[key]) for key in ("Name", "Version") if told.get(key)),
        "sha256": str(told.get("SHA256", "unknown")),
        "trained_on": str(told.get("TrainedOn", "unknown images")).rstrip("."),
    }


def _tell(specs: Specs, name: str) -> str:
    """Tell a number of the specs; empty where there are none."""
    return by_configuration(specs, lambda spec: tell_number(spec, name)) if specs else ""


def _describe_cubes(spec: ModelSpec | None) -> tuple[str, str, str] | None:
    """Tell edge and stride in voxels, and how many are drawn; the last is empty for all."""
    if spec is None or not isinstance(spec.tiling, CubicPatches):
        return None
    drawn = f"{spec.tiles_per_volume}" if spec.tiles_per_volume else ""
    return f"{spec.tiling.size}", f"{spec.tiling.stride}", drawn


def _describe_schedule(spec: ModelSpec | None) -> str:
    falls = spec is not None and spec.constant_epochs < spec.epochs
    constant = tell_number(spec, "constant_epochs")
    fall = f", constant for {constant} and then falling linearly to 0" if falls else ""
    return f"at most {tell_number(spec, 'epochs')} epochs{fall}"
