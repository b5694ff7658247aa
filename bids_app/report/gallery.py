"""The picture per row of Table 1, as Figure 2 of Zotova et al. (2021): one control, all models."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from bids_app.errors import Mri2petError
from bids_app.nifti import Image
from bids_app.report.cards import CROSS_VALIDATION
from bids_app.report.figures import Layer, Scale, Section, crop, field_around, spread
from bids_app.report.panels import AROUND_BRAIN, DIFFERENCE, UPTAKE, Column, Panel, montage
from bids_app.report.results import ImageCache, mask_of, show
from bids_app.report.table1 import Score, best_model, configuration_of, full_name_of, name_in_short

JUDGED_BY: Final = "ssim_brain"  # whom to show
GREY: Final = Scale("gray", 0.0, 1.0, "T1w")


@dataclass(frozen=True)
class Choice:
    """Who is shown.

    Parameters
    ----------
    score : Score
        The visit, by the best model.
    similarities : dict
        Model → SSIM in the brain of this visit; None if n/a.
    """

    score: Score
    similarities: Mapping[str, float | None]


def choose(scores: Sequence[Score]) -> Choice | None:
    """Choose the visit whose SSIM in the brain, by the best model there, is the median.

    Of an even number, the lower one of the two in the middle. None if nothing was measured.
    """
    best = best_model(scores, JUDGED_BY)
    measured = [
        (value, score.participant, score.session, score)
        for score in scores
        if score.model == best and (value := score.values[JUDGED_BY]) is not None
    ]
    if not measured:
        return None
    *_, chosen = sorted(measured, key=lambda one: one[:3])[(len(measured) - 1) // 2]
    same = [score for score in scores if score.visit == chosen.visit]
    return Choice(chosen, {score.model: score.values[JUDGED_BY] for score in same})


def space_label(template: str, resolution: float) -> str:
    """Spell a grid as ``derivatives.paths`` does in file names; that room is not seen from here.

    Examples
    --------
    >>> space_label("MNI152NLin2009aSym", 1.5)
    'MNI152NLin2009aSym_res-1p5'
    """
    size = f"{resolution:.4f}".rstrip("0").rstrip(".").replace(".", "p")
    return f"{template}_res-{size}"


def draw_gallery(
    output_dir: Path, scores: Sequence[Score], models: Sequence[str], space: str
) -> Panel:
    """Draw T1w, the synthetic PET of each model, the real PET, and what they differ by.

    Parameters
    ----------
    output_dir : Path
        The derivative dataset.
    scores : sequence of Score
        Of all models; they decide whom to show.
    models : sequence of str
        In the order in which they are shown.
    space : str
        Of the template, as in file names: ``"MNI152NLin2009aSym_res-1"``.

    Returns
    -------
    Panel
        With a sentence in its caption for each image that is missing.
    """
    choice = choose(scores)
    if choice is None:
        missing = "No SSIM inside the brain was found by which a control could be chosen."
        return Panel("One control, all models", "", missing=missing)
    title = f"{choice.score.visit}, left out in fold {choice.score.fold}"
    try:
        return _draw(
            ImageCache(output_dir), _Files(output_dir, choice.score, space), models, choice, title
        )
    except Mri2petError as error:
        return Panel(title, "", missing=str(error))


@dataclass(frozen=True)
class _Files:
    """Where the images of a visit lie."""

    output_dir: Path
    score: Score
    space: str

    def path(self, root: Path, modality: str, ending: str) -> Path:
        own = [part for part in (self.score.participant, self.score.session) if part]
        name = "_".join([*own, ending.format(space=f"space-{self.space}")])
        return root.joinpath(*own, modality, name)

    def anatomy(self, ending: str) -> Path:
        return self.path(self.output_dir, "anat", f"{{space}}_desc-{ending}.nii.gz")

    def synthetic(self, model: str) -> Path:
        root = self.output_dir / CROSS_VALIDATION / model
        return self.path(root, "pet", "trc-18FFDG_{space}_desc-synth_pet.nii.gz")

    def real(self) -> Path:
        """Find the real PET of the visit, or else of another session of the participant."""
        own = self.path(self.output_dir, "pet", "trc-18FFDG_{space}_desc-preproc_pet.nii.gz")
        ending = f"*_trc-18FFDG*_space-{self.space}_desc-preproc_pet.nii.gz"
        beside = sorted(own.parent.glob(ending))
        elsewhere = sorted((self.output_dir / self.score.participant).glob(f"**/pet/{ending}"))
        return next(iter([*beside, *elsewhere]), own)


def _draw(
    shelf: ImageCache, files: _Files, models: Sequence[str], choice: Choice, title: str
) -> Panel:
    t1w = shelf.take(files.anatomy("preproc_T1w"))
    brain = shelf.take(files.anatomy("brain_mask"), t1w)
    field = field_around(mask_of(brain), brain.zooms, AROUND_BRAIN)
    paths = {**{model: files.synthetic(model) for model in models}, "": files.real()}
    images, faults = _take_all(shelf, paths, t1w)
    cropped = {name: crop(image, field) for name, image in images.items()}
    grid, real = crop(t1w, field), cropped.pop("", None)
    columns = [
        Column(("", "T1w", ""), Layer("T1w", grid, GREY)),
        *(_column(model, cropped.get(model), real, choice) for model in models),
        Column(("", "Real PET", ""), None if real is None else Layer("Real PET", real, UPTAKE)),
    ]
    sections = _middle(crop(brain, field))
    caption = (
        f"Of all controls, {choice.score.visit} has the median SSIM in the brain by "
        f"{full_name_of(choice.score.model)}, the best model there. Each SYNTHETIC PET is by a "
        "network that was not trained on this participant. Blue: the real PET is brighter than "
        f"the synthetic one; red: it is less bright. Real PET: {paths[''].name}."
    )
    figure = montage("T1w, SYNTHETIC PET of each model, real PET", columns, sections, grid)
    return Panel(title, " ".join([caption, *faults]), (figure,))


def _take_all(
    shelf: ImageCache, paths: Mapping[str, Path], grid: Image
) -> tuple[dict[str, Image], list[str]]:
    """Read what can be read; say of the rest why it cannot."""
    images, faults = dict[str, Image](), list[str]()
    for name, path in paths.items():
        try:
            images[name] = shelf.take(path, grid)
        except Mri2petError as error:
            faults.append(str(error))
    return images, faults


def _column(model: str, pet: Image | None, real: Image | None, choice: Choice) -> Column:
    similarity = show(choice.similarities.get(model), 3)
    configuration = configuration_of(model)
    above = f"SYNTHETIC, {configuration}" if configuration else "SYNTHETIC"
    words = (above, name_in_short(model), f"SSIM in the brain {similarity}")
    if pet is None:
        return Column(words, None)
    layer = Layer(f"SYNTHETIC PET, {full_name_of(model)}", pet, UPTAKE)
    if real is None:
        return Column(words, layer)
    difference = Image(pet.data - real.data, pet.affine)
    return Column(words, layer, Layer("Synthetic − real", difference, DIFFERENCE))


def _middle(brain: Image) -> tuple[Section, ...]:
    """Choose a slice a view, as Figure 2; the sagittal one beside the middle, where cortex is."""
    inside = mask_of(brain)
    return (
        *spread(inside, "axial", 1),
        *spread(inside, "coronal", 1),
        spread(inside, "sagittal", 3)[0],
    )
