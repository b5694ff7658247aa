"""Methods paragraphs for papers: the processing of a level, with its tools and their versions.

The texts are templates in ``data/report/methods``, filled in by this module.
"""

import re
import tomllib
from collections.abc import Mapping, Sequence
from functools import partial
from math import isnan
from pathlib import Path
from typing import Final

import yaml
from jinja2 import Environment, FunctionLoader, StrictUndefined

from bids_app.derivatives.find import RealPet, Results
from bids_app.derivatives.sidecars import Derivative
from bids_app.detection.card import covariates_of
from bids_app.detection.detectors import DIRECTIONS
from bids_app.errors import Mri2petError
from bids_app.files import object_at, read_text, write_text
from bids_app.report.anomalies import Detected
from bids_app.report.cards import (
    Specs,
    TrainedModel,
    by_configuration,
    describe_grid,
    format_losses,
    format_number,
    grids_of,
)
from bids_app.report.page import TEMPLATES, enumerate_words
from bids_app.report.results import as_number
from bids_app.synthesis.models import ModelSpec
from bids_app.synthesis.tiling import CubicPatches, SliceTriplets

TOOLS: Final = {
    "PyTorch": "torch",
    "SciPy": "scipy",
    "SimpleITK": "simpleitk",
    "deepbet": "deepbet",
    "dipy": "dipy",
    "mri2pet": "mri2pet",
    "nibabel": "nibabel",
    "nilearn": "nilearn",
    "nipype": "nipype",
    "numba": "numba",
}  # name in texts → distribution
NUMBERS: Final = (
    *("n_blocks", "width", "beta1", "beta2", "batch_size", "learning_rate", "pool_size"),
    "patience",
)  # fields of a spec
DEFAULTS: Final[Mapping[str, Mapping[str, object]]] = yaml.safe_load(
    (TEMPLATES / "methods" / "defaults.yaml").read_text(encoding="utf-8")
)  # fields of the texts, by level


def read_references() -> dict[str, dict[str, str]]:
    """Read all references by the level whose methods cite them first, and by key."""
    return tomllib.loads((TEMPLATES / "references.toml").read_text(encoding="utf-8"))


def write_methods(level: str, versions: Mapping[str, str], fields: Mapping[str, object]) -> str:
    """Return the methods of a level and the references they cite, as plain text.

    Empty paragraphs are left out. A reference of ``data/report/references.toml`` is listed if its
    key occurs in the text.

    Parameters
    ----------
    level : str
        ``participant``, ``train`` or ``group``.
    versions : dict
        Version of each distribution, by its name in ``importlib.metadata``; unknown versions are
        left out.
    fields : dict
        Processing that was done, by the names in ``DEFAULTS``, which apply to missing fields.

    Examples
    --------
    >>> text = write_methods("participant", {"mri2pet": "0.1.0"}, {})
    >>> text.startswith("Results were obtained with mri2pet 0.1.0")
    True
    """
    tools = {name: f"{name} {versions.get(key, '')}".strip() for name, key in TOOLS.items()}
    context = {**DEFAULTS[level], **fields}
    text = TEXTS.get_template(f"{level}.txt").render(tools=tools, **context)
    body = "\n\n".join(paragraph for paragraph in text.split("\n\n") if paragraph)
    listed = [item for section in read_references().values() for item in section.items()]
    cited = sorted(reference for key, reference in listed if key in body)
    return f"{body}\n\nReferences\n\n" + "\n".join(f"- {text}" for text in cited) + "\n"


CITATION: Final = "CITATION"  # .md and .bib, in logs/
REFERENCE: Final = re.compile(
    r"(?P<author>.+?) \((?P<year>\d{4})\)\. (?P<title>.+?)\. (?P<rest>.+?)(?:\. doi:(?P<doi>\S+))?$"
)


def write_citation(output_dir: Path, level: str, text: str) -> None:
    """Write the methods of a level, and its references as BibTeX, to ``logs/CITATION.{md,bib}``.

    Parameters
    ----------
    output_dir : Path
        Path of the derivative dataset.
    level : str
        ``participant``, ``train`` or ``group``; the texts of other levels are kept.
    text : str
        Text from :func:`write_methods`.

    Raises
    ------
    ReadWriteError
        If a file cannot be written.
    """
    path = output_dir / "logs" / f"{CITATION}.md"
    try:
        before = read_text(path) if path.exists() else ""
    except Mri2petError:
        before = ""
    parts = re.split(r"^# (\w+)\n\n", before, flags=re.MULTILINE)
    texts = dict(zip(parts[1::2], parts[2::2], strict=False))
    texts[level] = f"{text.rstrip()}\n\n"
    write_text(path, "".join(f"# {name}\n\n{texts[name]}" for name in sorted(texts)))
    cited = {line[2:] for body in texts.values() for line in body.splitlines() if line[:2] == "- "}
    entries = "\n".join(filter(None, map(bibtex_of, sorted(cited))))
    write_text(path.with_suffix(".bib"), entries)


def bibtex_of(reference: str) -> str:
    """Format a reference of ``data/report`` as BibTeX; return an empty string if it is not parsed.

    Examples
    --------
    >>> print(bibtex_of("Holm S (1979). A simple test. Scand J Stat 6:65-70. doi:10.2307/4615733"))
    @misc{Holm1979A,
      author = {Holm, S},
      year = {1979},
      title = {{A simple test}},
      howpublished = {Scand J Stat 6:65-70},
      doi = {10.2307/4615733}
    }
    <BLANKLINE>
    """
    match = REFERENCE.match(reference)
    if match is None:
        return ""
    names = [name.strip().rpartition(" ") for name in match["author"].rstrip(".").split(",")]
    authors = ["others" if last == "al" else f"{name}, {last}" for name, _, last in names]
    first = re.sub(r"\W", "", names[0][0])
    word = re.sub(r"\W", "", match["title"].split()[0])
    fields = {
        "author": " and ".join(authors),
        "year": match["year"],
        "title": f"{{{match['title']}}}",
        "howpublished": match["rest"],
        "doi": match["doi"],
    }
    lines = ",\n".join(f"  {name} = {{{value}}}" for name, value in fields.items() if value)
    return f"@misc{{{first}{match['year']}{word},\n{lines}\n}}\n"


def participant_methods(visits: Sequence[Results], versions: Mapping[str, str]) -> str:
    """Return the methods of a participant, from the sidecars of the images."""
    space = next((visit.space for visit in visits if visit.space), "")
    moved = [visit.t1w_in_template for visit in visits if visit.t1w_in_template]
    pets = [pet for visit in visits for pet in visit.pets]
    synthetic = [visit.synthetic for visit in visits if visit.synthetic]
    first = synthetic[0].metadata if synthetic else {}
    generator = first.get("Generator")
    percentile = _scaling(moved, "Percentile")
    times_mean = _scaling([pet.in_template for pet in pets if pet.in_template], "TimesBrainMean")
    template, _, size = space.partition("_res-")
    fields: dict[str, object] = {
        "skull_stripped": any(visit.t1w.metadata.get("SkullStripped") is True for visit in visits),
        "mni": any(visit.t1w.metadata.get("InMNISpace") is True for visit in visits),
        "mask_taken": "deepbet" not in {visit.t1w.text("BrainExtraction") for visit in visits},
        **_taken_from_apps(visits),
        "pet": bool(pets),
        "frames_averaged": any(map(_had_frames, pets)),
        "generator": generator if isinstance(generator, dict) else None,
        "fwhm": as_number(first.get("SmoothingFWHM")),
        "compared": any(bool(image.metadata.get("Measures")) for image in synthetic),
        "overlap": first.get("OverlappingTripletsAveraged") is True,
        "matched": bool(first.get("HistogramMatchedTo")),
        "uncertainty": any(visit.knows_errors for visit in visits),
        "novelty": any(bool(image.metadata.get("Novelty")) for image in synthetic),
        **({"template": template, "size": size.replace("p", ".")} if space else {}),
        **({} if percentile is None else {"percentile": percentile}),
        **({} if times_mean is None else {"times_mean": times_mean}),
    }
    return write_methods("participant", versions, fields)


def training_methods(trained: TrainedModel, versions: Mapping[str, str], fwhm: float | None) -> str:
    """Return the methods of the train level, from its tables and cards."""
    fields = {
        **describe_specs(trained.specs),
        "tissue": trained.has_tissue_model,
        "conditioned": trained.conditioned,
        "initial": trained.initial,
        "controls": len(trained.participants),
        "folds": tuple(trained.folds.values()),
        "grids": grids_of(trained),
        "fwhm": fwhm,
        "lpips": any(not isnan(row.means["lpips"]) for row in trained.rows),
        "tested": any(not isnan(test.p) for test in trained.comparisons),
    }
    return write_methods("train", versions, fields)


def describe_specs(specs: Specs) -> dict[str, object]:
    """Describe the architecture and training of models, as fields of the text on training."""
    tilings = [spec.tiling for spec in specs.values() if spec is not None]
    if not specs:
        return {}
    return {
        "losses": {name: format_losses(spec) for name, spec in specs.items()},
        "semi3d": any(isinstance(tiling, SliceTriplets) for tiling in tilings),
        "cubes": dict.fromkeys(filter(None, map(_describe_cubes, specs.values()))),
        "specs": {
            name: by_configuration(specs, partial(format_number, name=name)) for name in NUMBERS
        },
        "schedule": by_configuration(specs, _describe_schedule),
        "stopped_early": bool(tilings),
    }


def group_methods(
    detected: Detected, versions: Mapping[str, str], numbers: Mapping[str, str]
) -> str:
    """Return the methods of the group level, from its tables and cards.

    ``numbers`` are settings and parameters of the detectors, by name.
    """
    training, grids = [], []
    for name, card in detected.cards.items():
        n_synthetic = sum(control.synthetic for control in card.controls)
        real = f"{len(card.controls) - n_synthetic} controls with real PET"
        training.append(f"{name} ({real}, {n_synthetic} with synthetic PET)")
        grids.append(describe_grid(card.template, card.shape, card.affine))
    cards = detected.cards.values()
    fields = {
        "detectors": {detector for _, detector in detected.detectors},
        "training": training,
        "synthetic": any(control.synthetic for card in cards for control in card.controls),
        "grids": list(dict.fromkeys(filter(None, grids))),
        "folds": next((card.folds for card in cards if card.folds), 0),
        "numbers": numbers,
        "direction": DIRECTIONS.get(numbers.get("direction", ""), ""),
        "directed": numbers.get("direction") in ("hypo", "hyper"),
        "covariates": list(dict.fromkeys(name for card in cards for name in covariates_of(card))),
        "evaluated": bool(detected.curve),
        "tested": any(test.p is not None for test in detected.comparisons),
        "free": bool(detected.responses),
    }
    return write_methods("group", versions, fields)


def _unfold(template: str) -> str:
    """Read a template, with each paragraph joined into one line."""
    text = (TEMPLATES / "methods" / template).read_text(encoding="utf-8")
    return "\n\n".join(" ".join(paragraph.split()) for paragraph in text.split("\n\n"))


TEXTS: Final = Environment(loader=FunctionLoader(_unfold), undefined=StrictUndefined)


TEXTS.filters["enumerated"] = enumerate_words


def _scaling(images: Sequence[Derivative], key: str) -> float | None:
    """Return a number from ``IntensityScaling`` of the first image."""
    scaling = object_at(images[0].metadata, "IntensityScaling") if images else {}
    return as_number(scaling.get(key))


def _taken_from_apps(visits: Sequence[Results]) -> dict[str, object]:
    """Describe what was taken from other apps, wholly or in part."""
    apps = {
        "t1w_from": [visit.t1w.text("TakenFrom") for visit in visits],
        "transforms_from": [
            _registered_by(visit.t1w_in_template) for visit in visits if visit.t1w_in_template
        ],
        "pet_from": [pet.in_t1w.text("TakenFrom") for visit in visits for pet in visit.pets],
    }
    wholly = {key: dict.fromkeys(names) for key, names in apps.items() if all(names) and names}
    partly = [name for key, names in apps.items() if key not in wholly for name in names if name]
    fields: dict[str, object] = {key: enumerate_words([*names]) for key, names in wholly.items()}
    return fields | ({"partly_from": enumerate_words([*dict.fromkeys(partly)])} if partly else {})


def _registered_by(image: Derivative) -> str:
    """Return the name of the other app that registered an image; empty if none did."""
    return str(object_at(image.metadata, "Registration").get("TakenFrom", ""))


def _had_frames(pet: RealPet) -> bool:
    frames = pet.get("FramesUsed")
    return isinstance(frames, list) and len(frames) > 1


def _describe_cubes(spec: ModelSpec | None) -> tuple[str, str, str] | None:
    """Return edge and stride in voxels, and the number of cubes drawn, which is empty for all."""
    if spec is None or not isinstance(spec.tiling, CubicPatches):
        return None
    count = f"{spec.tiles_per_volume}" if spec.tiles_per_volume else ""
    return f"{spec.tiling.size}", f"{spec.tiling.stride}", count


def _describe_schedule(spec: ModelSpec | None) -> str:
    falls = spec is not None and spec.constant_epochs < spec.epochs
    constant = format_number(spec, "constant_epochs")
    fall = f", constant for {constant} and then falling linearly to 0" if falls else ""
    return f"at most {format_number(spec, 'epochs')} epochs{fall}"
