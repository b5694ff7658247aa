"""Pictures for the rows of Table 1, as in Figure 2 of Zotova et al. (2021), of one control."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from math import isnan
from pathlib import Path
from typing import Final

from bids_app.derivatives.sidecars import read_derivative
from bids_app.errors import Mri2petError
from bids_app.nifti import Image
from bids_app.report.cards import CROSS_VALIDATION
from bids_app.report.figures import Layer, Section, crop, field_around, spread
from bids_app.report.page import name_visit, show
from bids_app.report.panels import AROUND_BRAIN, DIFFERENCE, T1W, UPTAKE, Column, Panel, montage
from bids_app.report.results import ImageCache, mask_of
from bids_app.report.table1 import best_model, configuration_of, full_name_of, name_in_short
from bids_app.synthesis.evaluation import ScoreRecord
from bids_app.synthesis.models import SECOND_LINES

JUDGED_BY: Final = "ssim_brain"  # metric by which the control is chosen


def choose(scores: Sequence[ScoreRecord]) -> tuple[ScoreRecord, dict[str, float]] | None:
    """Choose the visit with the median SSIM in the brain, of the model that is best there.

    For an even number of visits, this is the lower of the two in the middle. Return its score and
    the SSIM of each model, nan if n/a, or None if nothing was measured.
    """
    best = best_model(scores, JUDGED_BY)
    measured = [s for s in scores if s.model == best and not isnan(getattr(s.scores, JUDGED_BY))]
    if not measured:
        return None
    measured.sort(key=lambda s: (getattr(s.scores, JUDGED_BY), s.participant, _session(s)))
    chosen = measured[(len(measured) - 1) // 2]
    visit = (chosen.participant, chosen.session)
    visit_scores = [score for score in scores if (score.participant, score.session) == visit]
    return chosen, {score.model: getattr(score.scores, JUDGED_BY) for score in visit_scores}


def _session(score: ScoreRecord) -> str:
    return score.session if score.session else ""


def draw_gallery(
    output_dir: Path, scores: Sequence[ScoreRecord], models: Sequence[str], space: str
) -> Panel:
    """Draw T1w, the synthetic PET of each model, the real PET, and their differences.

    Parameters
    ----------
    output_dir : Path
        Path of the derivative dataset.
    scores : sequence of ScoreRecord
        Scores of all models, by which the control is chosen.
    models : sequence of str
        Models in the order in which they are shown.
    space : str
        Space of the template, as in file names: ``"MNI152NLin2009aSym_res-1"``.

    Returns
    -------
    Panel
        Pictures; the caption has a sentence for each missing image.
    """
    choice = choose(scores)
    if choice is None:
        missing = "No control could be chosen, because no SSIM inside the brain was found."
        return Panel("One control, all models", "", missing=missing)
    score, similarities = choice
    visit = name_visit(score.participant, score.session)
    title = f"{visit}, left out in fold {score.fold if score.fold else ''}"
    caption = (
        f"Of all controls, {visit} has the median SSIM inside the brain with the model that is "
        f"best there ({full_name_of(score.model)}). Each SYNTHETIC PET was predicted by a "
        "generator that was not trained on this participant. Blue: the real PET is brighter than "
        "the synthetic one; red: it is less bright."
    )
    panel = Panel(title, caption)
    try:
        return _draw(output_dir, score, space, models, similarities, panel=panel)
    except Mri2petError as error:
        return replace(panel, missing=str(error))


def _path(root: Path, score: ScoreRecord, modality: str, ending: str) -> Path:
    """Return the path of an image of a visit."""
    entities = name_visit(score.participant, score.session).split(", ")
    return root.joinpath(*entities, modality, "_".join([*entities, f"{ending}.nii.gz"]))


def _real(output_dir: Path, score: ScoreRecord, space: str) -> Path:
    """Find the real PET of a visit, or otherwise of another session of the participant."""
    path = _path(output_dir, score, "pet", f"trc-18FFDG_space-{space}_desc-preproc_pet")
    ending = f"*_trc-18FFDG*_space-{space}_desc-preproc_pet.nii.gz"
    beside = sorted(path.parent.glob(ending))
    elsewhere = sorted((output_dir / f"sub-{score.participant}").glob(f"**/pet/{ending}"))
    return next(iter([*beside, *elsewhere]), path)


def _draw(
    output_dir: Path,
    score: ScoreRecord,
    space: str,
    models: Sequence[str],
    similarities: Mapping[str, float],
    *,
    panel: Panel,
) -> Panel:
    cache = ImageCache(output_dir)
    t1w = cache.take(_path(output_dir, score, "anat", f"space-{space}_desc-preproc_T1w"))
    mask = _path(output_dir, score, "anat", f"space-{space}_desc-brain_mask")
    brain = cache.take(mask, t1w)
    field = field_around(mask_of(brain), brain.zooms, AROUND_BRAIN)
    ending = f"trc-18FFDG_space-{space}_desc-synth_pet"
    paths = {
        model: _path(output_dir / CROSS_VALIDATION / model, score, "pet", ending)
        for model in models
    }
    lines = {model: _line(model, path) for model, path in paths.items()}
    paths[""] = _real(output_dir, score, space)
    images, faults = cache.take_all(paths, t1w)
    cropped = {name: crop(image, field) for name, image in images.items()}
    grid, real = crop(t1w, field), cropped.pop("", None)
    columns = [
        Column(("", "T1w", ""), Layer("T1w", grid, T1W)),
        *(_column(m, cropped.get(m), real, similarities.get(lines[m])) for m in models),
        Column(("", "Real PET", ""), None if real is None else Layer("Real PET", real, UPTAKE)),
    ]
    sections = _middle(crop(brain, field))
    figure = montage("T1w, SYNTHETIC PET of each model, real PET", columns, sections, grid)
    sentences = [panel.caption, f"Real PET: {paths[''].name}.", *faults]
    return replace(panel, caption=" ".join(sentences), figures=(figure,))


def _line(model: str, path: Path) -> str:
    """Return the line of the table that holds the scores of a synthetic PET."""
    averaged = read_derivative(path).metadata.get("OverlappingTripletsAveraged") is True
    return SECOND_LINES.get(model, model) if averaged else model


def _column(model: str, pet: Image | None, real: Image | None, ssim: float | None) -> Column:
    configuration = configuration_of(model)
    above = f"SYNTHETIC, {configuration}" if configuration else "SYNTHETIC"
    words = (above, name_in_short(model), f"SSIM in the brain {show(ssim, 3)}")
    if pet is None:
        return Column(words, None)
    layer = Layer(f"SYNTHETIC PET, {full_name_of(model)}", pet, UPTAKE)
    if real is None:
        return Column(words, layer)
    difference = Image(pet.data - real.data, pet.affine)
    return Column(words, layer, Layer("Synthetic − real", difference, DIFFERENCE))


def _middle(brain: Image) -> tuple[Section, ...]:
    """Choose a slice per plane, as in Figure 2; the sagittal one is off-centre, through cortex."""
    inside = mask_of(brain)
    return (
        *spread(inside, "axial", 1),
        *spread(inside, "coronal", 1),
        spread(inside, "sagittal", 3)[0],
    )
