"""What a report shows of one visit: figures with what a reader should look for.

A figure whose files are missing or cannot be read gives way to a sentence that says so.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

import numpy as np

from bids_app.errors import Mri2petError
from bids_app.imaging.volume import Mask, Volume
from bids_app.nifti import Image
from bids_app.report.colours import Colours, Scale
from bids_app.report.outlines import Outline, tissue_levels
from bids_app.report.reportlets import Figure, Layer, flicker, mosaic
from bids_app.report.results import RealPet, Results
from bids_app.report.shelf import Shelf, mask_of
from bids_app.report.slices import Section, crop, field_around, spread
from bids_app.report.tables import folds_of, tell_measures

AROUND_HEAD, AROUND_BRAIN = 18.0, 4.0  # mm shown beyond the brain (our choice)
BRIGHTEST: Final = 99.5  # percentile of the brain that is drawn brightest (our choice)
LARGEST_DIFFERENCE: Final = 0.5  # ends of the difference scale, the same in all reports
UPTAKE: Final = Scale("inferno", 0.0, 1.0, "PET (1 = bright end of this brain's own intensities)")
DIFFERENCE: Final = Scale("RdBu_r", -LARGEST_DIFFERENCE, LARGEST_DIFFERENCE, "synthetic − real")
LARGEST_SPREAD: Final = 0.1  # end of the scale of uncertainty, the same in all reports; our choice
SPREAD: Final = Scale("viridis", 0.0, LARGEST_SPREAD, "SD over the generators of the folds")
ON_GREY: Final = ("#ff2e88", "#00b7ff")  # colours of outer and inner lines on MRI alone
ON_PET: Final = ("#19e3ff", "#3dff5e")  # and where PET is seen, whose colours have no blue or green


@dataclass(frozen=True)
class Panel:
    """Figures under one heading.

    Parameters
    ----------
    title, caption : str
        The heading; what to look for.
    figures : tuple of Figure
        Empty if they could not be made.
    missing : str
        Then why.
    """

    title: str
    caption: str
    figures: tuple[Figure, ...] = ()
    missing: str = ""


@dataclass(frozen=True)
class Drawings:
    """The panels of one visit, by section of the report."""

    anatomy: tuple[Panel, ...]
    coregistration: tuple[Panel, ...]
    pet: tuple[Panel, ...]


def draw(output_dir: Path, visit: Results, template_t1w: Path) -> Drawings:
    """Draw all there is of a visit.

    Parameters
    ----------
    output_dir : Path
        The derivative dataset.
    visit : Results
        Its images.
    template_t1w : Path
        The template, on the grid of the images in its space.
    """
    shelf = Shelf(output_dir)
    extraction = _attempt(
        Panel(
            f"Brain mask on the T1w ({visit.name})",
            "The line should follow the surface of the brain: no skull or eye inside, no cortex "
            "or cerebellum outside.",
        ),
        lambda: (_brain_extraction(shelf, visit),),
    )
    normalization = _attempt(
        Panel(
            f"T1w → template ({visit.name})",
            "The lines are drawn from the template and stay as they are while the pictures "
            "change. Ventricles, insula and surface of the T1w should lie on them.",
        ),
        lambda: (_normalization(shelf, visit, template_t1w),),
    )
    return Drawings(
        anatomy=(extraction, normalization),
        coregistration=tuple(
            _attempt(
                Panel(
                    f"PET → T1w ({pet.name})",
                    "The lines are drawn from the T1w. Uptake should fill the band between them, "
                    "on both sides alike, with no bright rim outside of the brain.",
                ),
                lambda pet=pet: (_coregistration(shelf, visit, pet),),  # type: ignore[misc]
            )
            for pet in visit.pets
        ),
        pet=(*_compare_all(shelf, visit), *_tell_uncertainty(shelf, visit)),
    )


def _attempt(panel: Panel, figures: Callable[[], tuple[Figure, ...]]) -> Panel:
    try:
        return replace(panel, figures=figures())
    except Mri2petError as error:
        return replace(panel, missing=str(error))


def _scale(image: Image, brain: Mask, colours: Colours, name: str, unit: str = "") -> Scale:
    """Spread the colours from zero to the brightest of the brain."""
    chosen = image.data[brain] if brain.any() else image.data.ravel()
    top = float(np.percentile(np.nan_to_num(chosen), BRIGHTEST))
    return Scale(colours, 0.0, top if np.isfinite(top) and top > 0 else 1.0, name, unit)


def _grey(name: str, image: Image, brain: Image) -> Layer:
    return Layer(name, image, _scale(image, mask_of(brain), "gray", "T1w"))


def _to_brain(brain: Image, margin: float, *images: Image) -> tuple[Image, ...]:
    """Crop images around the brain; the first one given back is the mask."""
    field = field_around(mask_of(brain), brain.zooms, margin)
    return tuple(crop(image, field) for image in (brain, *images))


def _tissue_outlines(
    t1w: Volume, brain: Mask, whose: str, colours: tuple[str, str]
) -> tuple[Outline, Outline]:
    inside = np.where(brain, t1w, 0)
    lower, upper = tissue_levels(t1w, brain)
    return (
        Outline(f"edge of the grey matter of {whose}", colours[0], inside, lower),
        Outline(f"edge of the white matter of {whose}", colours[1], inside, upper),
    )


def _brain_outline(brain: Image, colours: tuple[str, str]) -> Outline:
    return Outline("edge of the brain mask", colours[0], brain.data, 0.5)


def _brain_extraction(shelf: Shelf, visit: Results) -> Figure:
    t1w = shelf.take_derivative(visit.t1w)
    brain, t1w = _to_brain(shelf.take_derivative(visit.mask, t1w), AROUND_HEAD, t1w)
    layers = [_grey(f"T1w ({visit.name})", t1w, brain)]
    return flicker(
        "Brain mask on the T1w", layers, [_brain_outline(brain, ON_GREY)], mask_of(brain)
    )


def _normalization(shelf: Shelf, visit: Results, template_t1w: Path) -> Figure:
    template = shelf.take(template_t1w)
    t1w = shelf.take_derivative(visit.t1w_in_template, template)
    brain = shelf.take_derivative(visit.mask_in_template, template)
    brain, t1w, template = _to_brain(brain, AROUND_BRAIN, t1w, template)
    name = f"T1w moved to the template ({visit.name})"
    layers = [_grey("Template", template, brain), _grey(name, t1w, brain)]
    outlines = _tissue_outlines(template.data, mask_of(brain), "the template", ON_GREY)
    return flicker("T1w and template in turn", layers, outlines, mask_of(brain))


def _coregistration(shelf: Shelf, visit: Results, pet: RealPet) -> Figure:
    t1w = shelf.take_derivative(visit.t1w)
    moved = shelf.take_derivative(pet.in_t1w, t1w)
    brain = shelf.take_derivative(visit.mask, t1w)
    brain, t1w, moved = _to_brain(brain, AROUND_HEAD, t1w, moved)
    scale = _scale(moved, mask_of(brain), "inferno", "PET", pet.in_t1w.text("Units"))
    layers = [
        _grey(f"T1w ({visit.name})", t1w, brain),
        Layer(f"PET moved to the T1w ({pet.name})", moved, scale),
    ]
    _, white = _tissue_outlines(t1w.data, mask_of(brain), "the T1w", ON_PET)
    outlines = [_brain_outline(brain, ON_PET), white]
    return flicker("T1w and PET in turn", layers, outlines, mask_of(brain))


def _compare_all(shelf: Shelf, visit: Results) -> tuple[Panel, ...]:
    """Compare with each real PET; where none can be shown, show the synthetic PET by itself."""
    panels = [
        _attempt(_announce(visit, pet), lambda pet=pet: _comparison(shelf, visit, pet))  # type: ignore[misc]
        for pet in visit.pets
    ]
    if visit.synthetic is not None and not any(panel.figures for panel in panels):
        panels.append(_attempt(_announce(visit, None), lambda: _comparison(shelf, visit, None)))
    return tuple(panels)


def _announce(visit: Results, pet: RealPet | None) -> Panel:
    if visit.synthetic is None:
        name = "" if pet is None else pet.name
        return Panel(f"Real PET in the space of the template ({name})", "T1w above, PET below.")
    if pet is None:
        return Panel(
            f"T1w and SYNTHETIC PET ({visit.name})",
            "Predicted from the T1w above it; no real PET can be shown beside it.",
        )
    told = tell_measures(visit.synthetic) if len(visit.pets) == 1 else ""
    return Panel(
        f"T1w, SYNTHETIC PET and real PET ({pet.name})",
        "Blue: the real PET is brighter than the synthetic one; red: it is less bright. Both were "
        f"scaled to 0..1, each by its own brain. {told}",
    )


def _comparison(shelf: Shelf, visit: Results, pet: RealPet | None) -> tuple[Figure, ...]:
    t1w = shelf.take_derivative(visit.t1w_in_template)
    brain = shelf.take_derivative(visit.mask_in_template, t1w)
    pets: list[tuple[str, Image]] = []
    if visit.synthetic is not None:
        pets.append(("SYNTHETIC PET", shelf.take_derivative(visit.synthetic, t1w)))
    if pet is not None:
        pets.append(("Real PET", shelf.take_derivative(pet.in_template, t1w)))
    brain, t1w, *images = _to_brain(brain, AROUND_BRAIN, t1w, *(image for _, image in pets))
    layers = [Layer("T1w", t1w, Scale("gray", 0.0, 1.0, "T1w"))]
    layers += [Layer(name, image, UPTAKE) for (name, _), image in zip(pets, images, strict=True)]
    if len(images) > 1:
        difference = Image(images[0].data - images[1].data, t1w.affine)
        layers.append(Layer("Synthetic − real", difference, DIFFERENCE))
    return _mosaics(layers, brain)


def _tell_uncertainty(shelf: Shelf, visit: Results) -> tuple[Panel, ...]:
    if not visit.is_spread_of_synthetic:
        return ()
    panel = Panel(
        f"Uncertainty of the SYNTHETIC PET ({visit.name})",
        f"Bright: generators that were trained without one fold of the controls each, "
        f"{len(folds_of(visit))} of them, disagree there. Dark says only that they agree: they "
        "may be wrong alike, and what the T1w does not show, none of them knows.",
    )
    return (_attempt(panel, lambda: _spread_mosaics(shelf, visit)),)


def _spread_mosaics(shelf: Shelf, visit: Results) -> tuple[Figure, ...]:
    pet = shelf.take_derivative(visit.synthetic)
    spread = shelf.take_derivative(visit.uncertainty, pet)
    brain = shelf.take_derivative(visit.mask_in_template, pet)
    brain, pet, spread = _to_brain(brain, AROUND_BRAIN, pet, spread)
    layers = [Layer("SYNTHETIC PET", pet, UPTAKE), Layer("Uncertainty", spread, SPREAD)]
    return _mosaics(layers, brain)


def _mosaics(layers: Sequence[Layer], brain: Image) -> tuple[Figure, ...]:
    titles = ("Axial slices, lower half", "Axial slices, upper half", "Coronal and sagittal slices")
    blocks = zip(titles, _blocks(mask_of(brain)), strict=True)
    return tuple(mosaic(title, layers, sections) for title, sections in blocks)


def _blocks(brain: Mask) -> tuple[tuple[Section, ...], ...]:
    axial = spread(brain, "axial", 12)
    return axial[:6], axial[6:], (*spread(brain, "coronal", 3), *spread(brain, "sagittal", 3))
