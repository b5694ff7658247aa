"""Pictures of one visit in a report: overlays on the T1w, columns of images, and panels of figures.

Scores are drawn in matplotlib's plasma, which has no dark end and no grey, so that they are visible
on a T1w and are not mistaken for PET. A figure whose files are missing or cannot be read is
replaced by a sentence that says so.
"""

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Final, TypeAlias

import matplotlib as mpl
import numpy as np

from bids_app.derivatives.find import RealPet, Results
from bids_app.errors import Mri2petError
from bids_app.imaging.volume import Mask, Volume
from bids_app.nifti import Image
from bids_app.report.anomalies import format_score
from bids_app.report.charts import WIDTH
from bids_app.report.figures import (
    Colours,
    Figure,
    Layer,
    Outline,
    Scale,
    Section,
    Spot,
    Text,
    Tile,
    bars_of,
    blocks_of,
    crop,
    cut,
    describe_slices,
    encode,
    field_around,
    flicker,
    head,
    mosaic,
    size_of,
    tile_of,
    tissue_levels,
)
from bids_app.report.results import ImageCache, describe_measures, describe_uncertainty, mask_of

Bars: TypeAlias = tuple[tuple[str, str, str, str], ...]  # see Figure

COLOURS: Final = "plasma"
HIT: Final = (70, 225, 150)  # colour of rank 1 for clusters that overlap a known lesion
OTHER: Final = (255, 140, 40)  # colour of rank 1 for all others
FAINTEST: Final = 0.45  # brightness of the last rank relative to the first (our choice)
LAST_RANK: Final = 10  # ranks beyond it are drawn alike


@dataclass(frozen=True)
class Heat:
    """Range of scores that are shown, and their colours.

    Parameters
    ----------
    threshold : float
        Non-negative threshold; scores below it are transparent.
    high : float
        Score that is drawn brightest, above the threshold; the other end of the colours is at 0.
    """

    threshold: float
    high: float


def paint_scores(scores: Volume, heat: Heat) -> str:
    """Draw a slice of a score map with one pixel per voxel, as a ``data:`` URL.

    Parameters
    ----------
    scores : ndarray, (rows, columns)
        Scores, top row first; higher is more abnormal.
    heat : Heat
        Range of scores that are shown.
    """
    finite = np.nan_to_num(scores.astype(np.float32), nan=-1.0)
    unit = np.clip(finite / heat.high, 0, 1)
    indices = np.where(finite >= heat.threshold, 1 + (unit * 254).round(), 0).astype(np.uint8)
    table = mpl.colormaps[COLOURS](np.linspace(0, 1, 255), bytes=True)[:, :3]
    palette = np.vstack([np.zeros((1, 3)), table]).astype(np.uint8).tobytes()
    return encode(indices, "PNG", palette, transparency=0)


def paint_ranks(labels: Volume, hits: Collection[int]) -> str:
    """Draw a slice of a label image with one pixel per voxel, as a ``data:`` URL.

    Parameters
    ----------
    labels : ndarray, (rows, columns)
        Ranks of clusters, 0 elsewhere; top row first.
    hits : collection of int
        Ranks of clusters that overlap a lesion.
    """
    indices = np.clip(np.nan_to_num(labels).round(), 0, 255).astype(np.uint8)
    table = np.zeros((256, 3))
    for rank in range(1, 256):
        table[rank] = np.array(HIT if rank in hits else OTHER) * brightness(rank)
    palette = table.round().astype(np.uint8).tobytes()
    return encode(indices, "PNG", palette, transparency=0)


def brightness(rank: int) -> float:
    """Return the brightness of a rank, which is 1 for the first.

    Examples
    --------
    >>> brightness(1), round(brightness(10), 2)
    (1.0, 0.45)
    """
    return 1 - (1 - FAINTEST) * (min(rank, LAST_RANK) - 1) / (LAST_RANK - 1)


def overlay(
    figure: Figure, volumes: Sequence[Volume], paint: Callable[[int, Volume], str], bars: Bars
) -> Figure:
    """Overlay pictures on the tiles of a figure with a single frame.

    Parameters
    ----------
    figure : Figure
        Figure with one frame.
    volumes : sequence of ndarray, (I, J, K)
        Volumes of the overlay, which take turns from tile to tile.
    paint : callable
        Function that draws a slice, given the index of its volume and the slice.
    bars : tuple
        Colour bars of the overlay.
    """
    ((name, tiles),) = figure.frames
    places = ((number % len(volumes), tile.spot) for number, tile in enumerate(tiles))
    over = [Tile(paint(n, cut(volumes[n], spot.section)), spot) for n, spot in places]
    return replace(figure, frames=((name, (*tiles, *over)),), bars=bars)


def bar_of_scores(heat: Heat) -> Bars:
    """Create a colour bar of the scores that are shown."""
    row = np.linspace(heat.threshold, heat.high, 256, dtype=np.float32)[np.newaxis]
    low, high = format_score(heat.threshold), format_score(heat.high)
    return (("anomaly score", paint_scores(row, heat), low, f"≥ {high}"),)


def bars_of_ranks(*, lesions: bool) -> Bars:
    """Create colour bars of clusters; if lesions are known, one for hits and one for others."""
    row = np.repeat(np.arange(1, LAST_RANK + 1), 16).astype(np.float32)[np.newaxis]
    ends = ("rank 1", f"rank {LAST_RANK}")
    other = ("elsewhere" if lesions else "clusters", paint_ranks(row, ()), *ends)
    return (("on a lesion", paint_ranks(row, range(1, 256)), *ends), other) if lesions else (other,)


WIDEST: Final = 210.0  # px; width of a column if there are few (our choice)
MARGIN, GAP = 18.0, 4.0  # px; on the left for the name of a row, and between columns and rows
LINE, HEADER = 14.0, 20.0  # px; line of text, and space above a slice for its letters and position


@dataclass(frozen=True)
class Column:
    """Column of a montage.

    Parameters
    ----------
    words : tuple of str
        Three lines of text above the column, with its name in the middle.
    layer : Layer or None
        Image on the common grid; None if it is missing.
    difference : Layer or None
        Difference drawn below the image; None if there is none.
    """

    words: tuple[str, str, str]
    layer: Layer | None
    difference: Layer | None = None


def montage(
    title: str, columns: Sequence[Column], sections: Sequence[Section], grid: Image
) -> Figure:
    """Draw, for each slice, a row of images and a row of differences.

    Parameters
    ----------
    title : str
        Heading.
    columns : sequence of Column
        Columns from left to right.
    sections : sequence of Section
        Slices from top to bottom. Each fills the width of a column, so planes differ in scale.
    grid : Image
        Any image on the common grid, RAS+.

    Returns
    -------
    Figure
        Figure with one frame, laid out in px.
    """
    side = min(WIDEST, (WIDTH - MARGIN) / len(columns) - GAP)
    lefts = [MARGIN + index * (side + GAP) for index in range(len(columns))]
    texts = [
        Text(words, x + side / 2, LINE * (n + 0.8), strong=n == 1)
        for x, column in zip(lefts, columns, strict=True)
        for n, words in enumerate(column.words)
    ]
    images = [column.layer for column in columns]
    differences = [column.difference for column in columns]
    tiles, y = list[Tile](), 3 * LINE
    for section in sections:
        width, height = size_of(grid, section.plane)
        tall = side * height / width
        y += HEADER
        spots = [Spot(section, x, y, side, tall) for x in lefts]
        if any(images):
            tiles += _paint(images, spots)
            texts += [_name(section.plane.capitalize(), spots), *_heads(images, spots, grid)]
            y += tall + GAP
        if any(differences):
            spots = [replace(spot, y=y) for spot in spots]
            tiles += _paint(differences, spots)
            texts.append(_name("Difference", spots))
            y += tall + GAP
    names = ", ".join(" ".join(column.words[:2]).strip() for column in columns)
    return Figure(
        title=title,
        description=describe_slices(names, grid, sections),
        width=lefts[-1] + side + GAP,
        height=y,
        frames=(("", tuple(tiles)),),
        texts=tuple(texts),
        bars=bars_of([layer for layer in (*images, *differences) if layer is not None]),
    )


def _name(words: str, spots: Sequence[Spot]) -> Text:
    return Text(words, MARGIN - 6, spots[0].y + spots[0].height / 2, turned=True)


def _paint(layers: Sequence[Layer | None], spots: Sequence[Spot]) -> list[Tile]:
    pairs = ((layer, spot) for layer, spot in zip(layers, spots, strict=True) if layer is not None)
    return [tile_of(layer, spot) for layer, spot in pairs]


def _heads(layers: Sequence[Layer | None], spots: Sequence[Spot], grid: Image) -> list[Text]:
    """Place side letters and positions above images, and a text where an image is missing."""
    texts = list[Text]()
    for layer, spot in zip(layers, spots, strict=True):
        if layer is None:
            middle = (spot.x + spot.width / 2, spot.y + spot.height / 2)
            texts.append(Text("no image", *middle))
        else:
            texts += head(grid, spot, above=5)
    return texts


AROUND_HEAD, AROUND_BRAIN = 18.0, 4.0  # mm shown beyond the brain (our choice)
BRIGHTEST: Final = 99.5  # percentile of the brain that is drawn brightest (our choice)
LARGEST_DIFFERENCE: Final = 0.5  # end of the scale of differences, the same in all reports
T1W: Final = Scale("gray", 0.0, 1.0, "T1w")
UPTAKE: Final = Scale("inferno", 0.0, 1.0, "PET (scaled to this brain)")
DIFFERENCE: Final = Scale("RdBu_r", -LARGEST_DIFFERENCE, LARGEST_DIFFERENCE, "synthetic − real")
LARGEST_SD: Final = 0.15  # end of the scale of uncertainty, the same in all reports; our choice
DEVIATION: Final = Scale("viridis", 0.0, LARGEST_SD, "SD of the error, as predicted")
ON_GREY: Final = ("#ff2e88", "#00b7ff")  # colours of outer and inner outlines on MRI only
ON_PET: Final = ("#19e3ff", "#3dff5e")  # on PET as well, whose colours include no blue or green


@dataclass(frozen=True)
class Panel:
    """Figures under one heading.

    Parameters
    ----------
    title, caption : str
        Heading, and what to look for.
    figures : tuple of Figure
        Figures; empty if they could not be drawn.
    missing : str
        Reason for the absence of figures.
    """

    title: str
    caption: str
    figures: tuple[Figure, ...] = ()
    missing: str = ""


def draw(output_dir: Path, visit: Results, template_t1w: Path) -> dict[str, tuple[Panel, ...]]:
    """Draw all panels of a visit, by section of the report.

    Parameters
    ----------
    output_dir : Path
        Path of the derivative dataset.
    visit : Results
        Images of the visit.
    template_t1w : Path
        Path of the template, on the grid of the images in its space.
    """
    cache = ImageCache(output_dir)
    extraction = _attempt(
        Panel(
            f"Brain mask on the T1w ({visit.name})",
            "The line should follow the surface of the brain: no skull or eye inside, no cortex "
            "or cerebellum outside.",
        ),
        lambda: (_brain_extraction(cache, visit),),
    )
    normalization = _attempt(
        Panel(
            f"T1w → template ({visit.name})",
            "The lines are drawn from the template and stay as they are while the pictures "
            "change. Ventricles, insula and surface of the T1w should lie on them.",
        ),
        lambda: (_normalization(cache, visit, template_t1w),),
    )
    coregistrations = [
        _attempt(
            Panel(
                f"PET → T1w ({pet.name})",
                "The lines are drawn from the T1w. Uptake should fill the band between them, "
                "on both sides alike, with no bright rim outside of the brain.",
            ),
            partial(_coregistration, cache, visit, pet),
        )
        for pet in visit.pets
    ]
    return {
        "anatomy": (extraction, normalization),
        "coregistration": tuple(coregistrations),
        "pet": (*_compare_all(cache, visit), *_uncertainty_panels(cache, visit)),
    }


def _attempt(panel: Panel, figures: Callable[[], tuple[Figure, ...]]) -> Panel:
    try:
        return replace(panel, figures=figures())
    except Mri2petError as error:
        return replace(panel, missing=str(error))


def _scale(image: Image, brain: Mask, colours: Colours, name: str, unit: str = "") -> Scale:
    """Create a scale from zero to nearly the maximum of the brain."""
    chosen = image.data[brain] if brain.any() else image.data.ravel()
    top = float(np.percentile(np.nan_to_num(chosen), BRIGHTEST))
    return Scale(colours, 0.0, top if np.isfinite(top) and top > 0 else 1.0, name, unit)


def _grey(name: str, image: Image, brain: Image) -> Layer:
    return Layer(name, image, _scale(image, mask_of(brain), "gray", "T1w"))


def _to_brain(brain: Image, margin: float, *images: Image) -> tuple[Image, ...]:
    """Crop images around the brain; the first one returned is the mask."""
    field = field_around(mask_of(brain), brain.zooms, margin)
    return tuple(crop(image, field) for image in (brain, *images))


def _tissue_outlines(
    t1w: Volume, brain: Mask, image_name: str, colours: tuple[str, str]
) -> tuple[Outline, Outline]:
    inside = np.where(brain, t1w, 0)
    lower, upper = tissue_levels(t1w, brain)
    return (
        (f"edge of the grey matter of {image_name}", colours[0], inside, lower),
        (f"edge of the white matter of {image_name}", colours[1], inside, upper),
    )


def _brain_outline(brain: Image, colours: tuple[str, str]) -> Outline:
    return "edge of the brain mask", colours[0], brain.data, 0.5


def _brain_extraction(cache: ImageCache, visit: Results) -> Figure:
    t1w = cache.take_derivative(visit.t1w)
    brain, t1w = _to_brain(cache.take_derivative(visit.mask, t1w), AROUND_HEAD, t1w)
    layers = [_grey(f"T1w ({visit.name})", t1w, brain)]
    return flicker(
        "Brain mask on the T1w", layers, [_brain_outline(brain, ON_GREY)], mask_of(brain)
    )


def _normalization(cache: ImageCache, visit: Results, template_t1w: Path) -> Figure:
    template = cache.take(template_t1w)
    t1w = cache.take_derivative(visit.t1w_in_template, template)
    brain = cache.take_derivative(visit.mask_in_template, template)
    brain, t1w, template = _to_brain(brain, AROUND_BRAIN, t1w, template)
    name = f"T1w moved to the template ({visit.name})"
    layers = [_grey("Template", template, brain), _grey(name, t1w, brain)]
    outlines = _tissue_outlines(template.data, mask_of(brain), "the template", ON_GREY)
    return flicker("T1w and template in turn", layers, outlines, mask_of(brain))


def _coregistration(cache: ImageCache, visit: Results, pet: RealPet) -> tuple[Figure, ...]:
    t1w = cache.take_derivative(visit.t1w)
    moved = cache.take_derivative(pet.in_t1w, t1w)
    brain = cache.take_derivative(visit.mask, t1w)
    brain, t1w, moved = _to_brain(brain, AROUND_HEAD, t1w, moved)
    scale = _scale(moved, mask_of(brain), "inferno", "PET", pet.in_t1w.text("Units"))
    layers = [
        _grey(f"T1w ({visit.name})", t1w, brain),
        Layer(f"PET moved to the T1w ({pet.name})", moved, scale),
    ]
    _, white = _tissue_outlines(t1w.data, mask_of(brain), "the T1w", ON_PET)
    outlines = [_brain_outline(brain, ON_PET), white]
    return (flicker("T1w and PET in turn", layers, outlines, mask_of(brain)),)


def _compare_all(cache: ImageCache, visit: Results) -> tuple[Panel, ...]:
    """Compare with each real PET; if none can be shown, show the synthetic PET by itself."""
    panels = [
        _attempt(_announce(visit, pet), partial(_comparison, cache, visit, pet))
        for pet in visit.pets
    ]
    if visit.synthetic is not None and not any(panel.figures for panel in panels):
        panels.append(_attempt(_announce(visit, None), partial(_comparison, cache, visit, None)))
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
    measures = describe_measures(visit.synthetic) if len(visit.pets) == 1 else ""
    return Panel(
        f"T1w, SYNTHETIC PET and real PET ({pet.name})",
        "Blue: the real PET is brighter than the synthetic one; red: less bright. Both were "
        f"scaled to 0..1, each by the intensities of its own brain. {measures}",
    )


def _comparison(cache: ImageCache, visit: Results, pet: RealPet | None) -> tuple[Figure, ...]:
    t1w = cache.take_derivative(visit.t1w_in_template)
    brain = cache.take_derivative(visit.mask_in_template, t1w)
    pets: list[tuple[str, Image]] = []
    if visit.synthetic is not None:
        pets.append(("SYNTHETIC PET", cache.take_derivative(visit.synthetic, t1w)))
    if pet is not None:
        pets.append(("Real PET", cache.take_derivative(pet.in_template, t1w)))
    brain, t1w, *images = _to_brain(brain, AROUND_BRAIN, t1w, *(image for _, image in pets))
    layers = [Layer("T1w", t1w, T1W)]
    layers += [Layer(name, image, UPTAKE) for (name, _), image in zip(pets, images, strict=True)]
    if len(images) > 1:
        difference = Image(images[0].data - images[1].data, t1w.affine)
        layers.append(Layer("Synthetic − real", difference, DIFFERENCE))
    return _mosaics(layers, brain)


def _uncertainty_panels(cache: ImageCache, visit: Results) -> tuple[Panel, ...]:
    if not visit.knows_errors:
        return ()
    panel = Panel(
        f"Uncertainty of the SYNTHETIC PET ({visit.name})",
        "Bright: the real PET may differ more from the synthetic one there, as it did in controls "
        "that the generator had not been trained on. "
        f"{describe_uncertainty(visit.uncertainty)} This is valid for similar people and scans, "
        "and does not include the effect of a lesion or disease on the PET.",
    )
    return (_attempt(panel, lambda: _deviation_mosaics(cache, visit)),)


def _deviation_mosaics(cache: ImageCache, visit: Results) -> tuple[Figure, ...]:
    pet = cache.take_derivative(visit.synthetic)
    deviation = cache.take_derivative(visit.uncertainty, pet)
    brain = cache.take_derivative(visit.mask_in_template, pet)
    brain, pet, deviation = _to_brain(brain, AROUND_BRAIN, pet, deviation)
    layers = [Layer("SYNTHETIC PET", pet, UPTAKE), Layer("Uncertainty", deviation, DEVIATION)]
    return _mosaics(layers, brain)


def _mosaics(layers: Sequence[Layer], brain: Image) -> tuple[Figure, ...]:
    titles = ("Axial slices, lower half", "Axial slices, upper half", "Coronal and sagittal slices")
    blocks = zip(titles, blocks_of(mask_of(brain)), strict=True)
    return tuple(mosaic(title, layers, sections) for title, sections in blocks)
