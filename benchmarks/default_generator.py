"""Rebuild the default generator from label maps of heads: a tissue model, its card, its scores.

    python benchmarks/default_generator.py WORK --labelmaps DIR --uptake A.nii.gz B.nii.gz \
        --generators bids_app/data/generators --against OLD_GENERATOR …

``DIR`` holds whole-head label maps in FreeSurfer's aseg numbers (SynthSeg's training maps, named
``training_seg_NN.nii.gz``); maps 13 and 14 are held out. ``--uptake`` names mean FDG PET images in
MNI space. Each map is registered to the template once. The uptake that people share is estimated so
that the mean of the simulated PET equals the mean FDG PET. Then pairs of T1w and PET are simulated
on warped copies of the maps, on the grid of the outputs, and the tissue model is fitted to them.
Its reference consists of these T1w. The error model comes from models that were fitted with a
quarter of the maps left out, and is evaluated on maps 13 and 14. ``--against`` scores other
generators, for example networks, on the same held-out pairs.

``--score N`` fits nothing: it scores the generator that exists, and those of ``--against``, on N
new pairs of each of maps 13 and 14. This takes a minute of CPU time per map, and 15 s per pair.
"""

import argparse
import json
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path

import numpy as np
from nilearn.datasets import load_mni152_template
from nilearn.image import resample_img
from scipy import ndimage
from torch import nn

from bids_app import nifti
from bids_app.anatomy import registration
from bids_app.derivatives.description import find_versions
from bids_app.imaging.intensity import TIMES_MEAN, scale_to_unit, smooth
from bids_app.imaging.similarity import measure
from bids_app.imaging.volume import (
    Grid,
    Mask,
    Volume,
    count_cubes,
    cube_sides,
    grid_of_box,
    zooms_of,
)
from bids_app.nifti import Owner
from bids_app.settings import SLOPPY_RESOLUTION, Settings
from bids_app.simulation.anatomy import (
    NAMES,
    SURROUNDINGS,
    Anatomy,
    coordinates,
    is_brain,
    labels_in,
)
from bids_app.simulation.cohort import AGES
from bids_app.simulation.geometry import (
    draw_displacement,
    sample,
    thin_cortex,
    to_indices,
    warp_head,
    widen_ventricles,
)
from bids_app.simulation.images import (
    PATTERN_GRID,
    PATTERN_ZOOM,
    USUAL_PSF,
    Scanner,
    acquire,
    activity,
    blur,
    draw_scanner,
    draw_uptake,
    expect_uptake,
    paint_t1w,
    random_contrast,
)
from bids_app.simulation.person import draw_atrophy
from bids_app.synthesis.card import REFERENCE, UNCERTAINTY, Card, check_uncertainty, file_sha256
from bids_app.synthesis.evaluation import smooth_in_brain
from bids_app.synthesis.inference import load_generator, predict, save_generator, synthesize
from bids_app.synthesis.models import CUBE, TissueSpec
from bids_app.synthesis.pairs import Volumes
from bids_app.synthesis.reference import gather_reference, write_reference
from bids_app.synthesis.tiling import SliceTriplets, Tiling, overlap
from bids_app.synthesis.tissue import TissueModel, fit_tissue_model
from bids_app.synthesis.uncertainty import (
    Errors,
    fit_error_model,
    measure_errors,
    read_error_model,
    sample_errors,
    write_error_model,
)

HELD_OUT = ("13", "14")
SEED = 2026
PAINTINGS = 2  # per map
GROUPS = 4  # groups of maps that are left out in turn, to estimate errors
STRENGTH = 0.4  # of the warp; registered maps differ by less than people do
RESIDUAL_BIAS = 0.25  # share of the bias field that remains after N4; our choice
ROUNDS = 6  # corrections of the pattern
REGISTERED_AT = 3  # mm; our choice, as the warps that are drawn afterwards are coarser
GRID = grid_of_box(Settings.bounding_box, 1.0)
ZOOMS = (1.0, 1.0, 1.0)
COARSE = round(SLOPPY_RESOLUTION)  # step of the sloppy grid: every fourth voxel along each axis
TEMPLATE_FWHM, PAINTED_FWHM = 3.0, 8.5  # mm; mean FDG PET are already blurred by about 8


@dataclass(frozen=True)
class Painting:
    """Simulated T1w and PET in [0, 1], brain mask, and the best PET a generator can predict."""

    t1w: Volume
    pet: Volume
    brain: Mask
    ceiling: Volume


def register(label_map: Path, work: Path) -> Path:
    """Warp a label map to the output grid by its tissues, unless the result exists."""
    name = label_map.name.removesuffix(".nii.gz")[-2:]
    out = work / f"labels_{name}.nii.gz"
    if out.exists():
        return out
    image = nifti.load(label_map)
    labels = np.round(image.data).astype(np.int16)
    labels[~is_brain(labels)] = 0
    white = labels_in(labels, *(NAMES[part] for part in ("white", "cerebellar_white", "brainstem")))
    guide = np.select([white, labels_in(labels, NAMES["fluid"])], [1.0, 0.2], 0.65) * (labels > 0)
    template = load_mni152_template(resolution=REGISTERED_AT)
    images = {}
    for part, data, affine in (
        ("fixed", np.asarray(template.dataobj, np.float32), template.affine),
        ("moving", smooth(guide, 2.0, ZOOMS), image.affine),
        ("whole", labels.astype(np.float32), image.affine),
        ("grid", np.zeros(GRID.shape, np.float32), GRID.affine),
    ):
        path = work / f"{part}_{name}.nii.gz"
        nifti.save(nifti.Image(data, affine), path)
        images[part] = path
    prefix = work / f"x_{name}_"
    there, *_ = registration.register_to_template(
        images["moving"], images["fixed"], prefix, quick=False, seed=0
    )
    registration.resample(
        images["whole"], images["grid"], [there], out, interpolation="nearestNeighbor"
    )
    return out


def anatomy_of(path: Path) -> Anatomy:
    """Read a registered label map as a brain in MNI space, with fluid in its sulci, no head."""
    labels = np.round(nifti.load(path).data).astype(np.int16)
    labels[~is_brain(labels)] = 0
    core = np.pad(labels > 0, 8)
    closed = ndimage.binary_fill_holes(ndimage.binary_closing(core, iterations=6))
    inside = closed[8:-8, 8:-8, 8:-8]
    return Anatomy(np.where(inside & (labels == 0), SURROUNDINGS, labels), GRID.affine, MNI)


MNI = coordinates(GRID)


def find_pattern(templates: list[Path], anatomies: list[Anatomy]) -> Volume:
    """Estimate the regional pattern for which the mean simulated PET equals the mean FDG PET.

    Each round multiplies it by the remaining ratio, averaged over both sides and smoothed by 6 mm.
    """
    target = np.zeros(GRID.shape, np.float32)
    brain = np.mean([is_brain(anatomy.labels) for anatomy in anatomies], axis=0) > 0.5
    for path in templates:
        moved = resample_img(
            str(path), GRID.affine, GRID.shape, force_resample=True, copy_header=True
        )
        data = smooth(np.asarray(moved.dataobj, np.float32), TEMPLATE_FWHM, ZOOMS)
        target += data / data[brain].mean()
    where = to_indices(coordinates(PATTERN_GRID), GRID.affine)
    inside = sample(smooth(brain, 4.0, ZOOMS), where) > 0.5
    pattern = np.ones(PATTERN_GRID.shape, np.float32)
    for _ in range(ROUNDS):
        painted = [
            smooth(activity(one, expect_uptake(pattern)), PAINTED_FWHM, ZOOMS) for one in anatomies
        ]
        mean = np.mean(painted, axis=0)
        ratio = target / target[brain].mean() / np.maximum(mean / mean[brain].mean(), 0.1)
        left = np.where(inside, sample(ratio, where), 1.0)
        left = smooth((left + left[::-1]) / 2, 6.0, (PATTERN_ZOOM,) * 3)
        pattern = np.clip(pattern * left, 0.4, 2.0)
        off = np.abs(ratio[brain] - 1).mean()
        print(f"pattern: mean FDG PET and mean simulated PET differ by {off:.1%}", flush=True)
    return pattern


def paint(
    anatomy: Anatomy, pattern: Volume, rng: np.random.Generator, atrophy: float | None = None
) -> Painting:
    """Simulate T1w and PET of a warped copy of a brain, as if preprocessed by the app."""
    zooms = anatomy.zooms
    usual = draw_atrophy(rng.uniform(*AGES), rng)
    atrophy = usual if atrophy is None else atrophy
    warp = draw_displacement(anatomy.grid, rng, strength=STRENGTH)
    warp = widen_ventricles(anatomy, warp, atrophy)
    head = warp_head(thin_cortex(anatomy, atrophy), warp, anatomy.grid)
    brain = head.labels > 0
    contrast = random_contrast(rng)
    contrast = replace(contrast, bias=RESIDUAL_BIAS * contrast.bias)
    t1w = paint_t1w(head.labels, contrast, rng, zooms)
    scanner = draw_scanner(rng)
    clean = blur(activity(head, draw_uptake(pattern, rng)), scanner, zooms)
    pet = acquire(clean, scanner, np.array([1200.0]), zooms, rng)[..., 0]
    best = blur(activity(head, expect_uptake(pattern)), Scanner(USUAL_PSF, 1.0, 0.0), zooms)
    pet, best = (scale_to_unit(x, brain, times_mean=TIMES_MEAN) for x in (pet, best))
    return Painting(scale_to_unit(t1w, brain), pet, brain, best)


def repaint(anatomy: Anatomy, name: str, number: int, pattern: Volume, work: Path) -> Painting:
    """Simulate a pair, or read it from the folder ``work`` if it was simulated before."""
    path = work / f"painting_{name}_{number}.npz"
    if not path.exists():
        made = paint(anatomy, pattern, np.random.default_rng([SEED, int(name), number]))
        parts = {key: part.astype(np.float16) for key, part in vars(made).items()}
        np.savez(path, **parts)
    with np.load(path) as kept:
        t1w, pet, ceiling = (kept[key].astype(np.float32) for key in ("t1w", "pet", "ceiling"))
        return Painting(t1w, pet, kept["brain"] > 0, ceiling)


def coarse(painting: Painting) -> Painting:
    """Resample a painting to the grid of a sloppy run."""
    every = (slice(None, None, COARSE),) * 3
    parts = (painting.t1w, painting.pet, painting.brain, painting.ceiling)
    return Painting(*(np.ascontiguousarray(part[every]) for part in parts))


def volumes_of(painting: Painting, name: str, affine: np.ndarray) -> Volumes:
    """Convert a painting to the input of the fit."""
    owner = Owner(name, None, tuple(map(tuple, affine.tolist())))
    return Volumes(owner, painting.t1w, painting.pet, painting.brain)


def evaluate(guesses: dict[str, list[Volume]], held_out: list[Painting]) -> dict[str, float]:
    """Score predictions of held-out PET in the brain, unscaled and scaled by a factor per head."""
    told = {}
    for name, volumes in guesses.items():
        rows = []
        for guess, real in zip(volumes, held_out, strict=True):
            inside = real.brain & (guess > 0.1)
            factor = float(np.median(real.pet[inside] / guess[inside]))
            guess = np.where(real.brain, guess, 0).astype(np.float32)  # noqa: PLW2901
            found = measure(guess, real.pet, real.brain)
            scaled = measure(np.clip(guess * factor, 0, 1), real.pet, real.brain)
            rows.append((found.ssim_brain, found.psnr_brain, scaled.ssim_brain, scaled.psnr_brain))
        for key, value in zip(
            ("ssim_brain", "psnr_brain", "ssim_brain_scaled", "psnr_brain_scaled"),
            np.mean(rows, axis=0),
            strict=True,
        ):
            told[f"{name}: {key}"] = round(float(value), 4)
    return told


def predict_by(
    generator: nn.Module,
    tiling: Tiling,
    held_out: list[Painting],
    fwhm: float = Settings.smoothing_fwhm,
) -> list[Volume]:
    """Predict the PET of held-out pairs as ``participant`` does."""
    return [synthesize(x.t1w, generator, tiling, fwhm=fwhm, zooms=ZOOMS) for x in held_out]


def predict_with(folder: Path, held_out: list[Painting]) -> dict[str, list[Volume]]:
    """Predict held-out PET by a stored generator, on our scale; a network also with overlap."""
    generator, card = load_generator(folder, "cpu")
    tilings = {folder.name: card.spec.tiling}
    if isinstance(card.spec.tiling, SliceTriplets):
        tilings[f"{folder.name}, with overlap"] = overlap(card.spec.tiling)
    told = {name: predict_by(generator, tiling, held_out) for name, tiling in tilings.items()}
    if card.pet_times_mean == TIMES_MEAN:
        return told
    return {  # as participant does
        name: [
            scale_to_unit(pet, painting.brain, times_mean=TIMES_MEAN)
            for pet, painting in zip(volumes, held_out, strict=True)
        ]
        for name, volumes in told.items()
    }


def score_anew(given: argparse.Namespace, brains: dict[str, Anatomy], pattern: Volume) -> None:
    """Print the scores of stored generators, mean ± SD, on new pairs of the held-out maps.

    Also print how often the errors of those that ship with the app lie in the intervals of their
    error models.
    """
    held_out = [
        repaint(brains[name], name, PAINTINGS + number, pattern, given.work)
        for name in HELD_OUT
        for number in range(given.score)
    ]
    grid = grid_of_box(Settings.bounding_box, SLOPPY_RESOLUTION)
    for name, on, pairs in (
        ("default", GRID, held_out),
        ("sloppy", grid, [coarse(pair) for pair in held_out]),
    ):
        generator, card = load_generator(given.generators / name, "cpu")
        errors = errors_of(generator, pairs, on)
        error_model = read_error_model(check_uncertainty(given.generators / name, card))
        print(name, json.dumps(measure_errors(errors, error_model)), flush=True)
    print(f"| {len(held_out)} pairs | SSIM | PSNR (dB) | SSIM minus the default's | PSNR |")
    print("|---|---|---|---|---|")
    guesses = predict_with(given.generators / "default", held_out)
    guesses["ceiling"] = [pair.ceiling for pair in held_out]
    first = scores_of(guesses["default"], held_out)
    for told in chain([guesses], (predict_with(folder, held_out) for folder in given.against)):
        for name, volumes in told.items():
            scores = scores_of(volumes, held_out)
            columns = [*scores.T, *(scores - first).T]
            cells = [f"{x.mean():.3f} ± {x.std(ddof=1):.3f}" for x in columns]
            print(f"| {name} | {' | '.join(cells)} |", flush=True)


def scores_of(volumes: list[Volume], held_out: list[Painting]) -> np.ndarray:
    """Return SSIM and PSNR in the brain for each pair, (pairs, 2)."""
    found = [
        measure(np.where(real.brain, guess, 0).astype(np.float32), real.pet, real.brain)
        for guess, real in zip(volumes, held_out, strict=True)
    ]
    return np.array([(x.ssim_brain, x.psnr_brain) for x in found])


def fit(pairs: list[Painting], grid: Grid) -> TissueModel:
    """Fit a tissue model to pairs of T1w and PET."""
    volumes = [volumes_of(pair, f"{number}", grid.affine) for number, pair in enumerate(pairs)]
    return fit_tissue_model(spec_of(grid), volumes, times_mean=TIMES_MEAN)


def errors_of(model: nn.Module, pairs: list[Painting], grid: Grid) -> list[Errors]:
    """Compare the PET of a model, postprocessed as by ``participant``, with the simulated PET."""
    found = []
    for pair in pairs:
        raw = predict(pair.t1w, model, spec_of(grid).tiling)
        fwhm, zooms = Settings.smoothing_fwhm, zooms_of(grid.affine)
        pet = smooth_in_brain(raw, pair.brain, fwhm=fwhm, zooms=zooms)
        found.append(sample_errors(volumes_of(pair, "", grid.affine), pet))
    return found


def know_errors(
    pairs: list[Painting], maps: list[str], held_out: list[Errors], grid: Grid, folder: Path
) -> dict[str, float]:
    """Fit the error model by cross-validation over maps; write and evaluate it."""
    groups = [sorted(set(maps)).index(name) % GROUPS for name in maps]
    people, belonging = [], []
    for group in range(GROUPS):
        model = fit([p for p, own in zip(pairs, groups, strict=True) if own != group], grid)
        left_out = [p for p, own in zip(pairs, groups, strict=True) if own == group]
        people += errors_of(model, left_out, grid)
        belonging += [group] * len(left_out)
    error_model, told = fit_error_model(people, belonging)
    print(json.dumps({"left out": told}, indent=2), flush=True)
    write_error_model(error_model, folder / UNCERTAINTY)
    measured = measure_errors(held_out, error_model)
    return {f"uncertainty_{name}": round(value, 4) for name, value in measured.items()}


def save_all(
    model: TissueModel,
    card: Card,
    pairs: list[Painting],
    maps: list[str],
    *,
    held_out: list[Painting],
    folder: Path,
) -> None:
    """Write a generator with its card, reference and error model."""
    grid = Grid(card.shape, np.array(card.affine))
    measured = know_errors(pairs, maps, errors_of(model, held_out, grid), grid, folder)
    print(json.dumps(measured, indent=2), flush=True)
    volumes = [volumes_of(p, name, grid.affine) for p, name in zip(pairs, maps, strict=True)]
    write_reference(gather_reference(volumes), folder / REFERENCE)
    card = replace(
        card,
        metrics={**card.metrics, **measured},
        reference_sha256=file_sha256(folder / REFERENCE),
        uncertainty_sha256=file_sha256(folder / UNCERTAINTY),
    )
    save_generator(model, card, folder)


def spec_of(grid: Grid) -> TissueSpec:
    """Return the specification of the tissue model of a grid."""
    sides = cube_sides(CUBE, zooms_of(grid.affine))
    return TissueSpec(sides, count_cubes(grid.shape, sides))


def card_of(name: str, grid: Grid, metrics: dict[str, float]) -> Card:
    """Create the card of a generator that ships with the app."""
    return Card(
        name=name,
        version=find_versions()["mri2pet"],
        spec=spec_of(grid),
        template=Settings.template,
        shape=grid.shape,
        affine=tuple(tuple(row) for row in grid.affine.tolist()),
        sha256="",
        trained_on=TRAINED_ON,
        intended_use=INTENDED_USE,
        participants=(),
        dataset="simulated on SynthSeg training label maps 01 to 12",
        seed=SEED,
        versions=find_versions(),
        metrics=metrics,
        pet_times_mean=TIMES_MEAN,
    )


def main() -> None:
    """Register, simulate, fit, measure, and write weights and cards."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("work", type=Path)
    parser.add_argument("--labelmaps", type=Path, required=True)
    parser.add_argument("--uptake", type=Path, nargs="+", required=True)
    parser.add_argument("--generators", type=Path, required=True, help="folder for default, sloppy")
    parser.add_argument("--against", type=Path, nargs="*", default=[], help="other generators")
    parser.add_argument("--score", type=int, metavar="PAIRS", help="fit nothing, and score")
    make(parser.parse_args())


def make(given: argparse.Namespace) -> None:
    """Run all steps for the arguments of the command line."""
    given.work.mkdir(parents=True, exist_ok=True)
    paths = {path.name[-9:-7]: path for path in sorted(given.labelmaps.glob("*.nii.gz"))}
    brains = {name: anatomy_of(register(path, given.work)) for name, path in paths.items()}
    training = [brain for name, brain in brains.items() if name not in HELD_OUT]
    pattern_file = given.work / "pattern.nii.gz"
    if not pattern_file.exists():
        pattern = find_pattern(given.uptake, training)
        nifti.save(nifti.Image(pattern, PATTERN_GRID.affine), pattern_file)
    pattern = nifti.load(pattern_file).data
    if given.score:
        score_anew(given, brains, pattern)
        return
    painted = [
        (name, repaint(brain, name, number, pattern, given.work))
        for name, brain in brains.items()
        for number in range(PAINTINGS)
    ]
    maps = [name for name, _ in painted if name not in HELD_OUT]
    pairs = [pair for name, pair in painted if name not in HELD_OUT]
    held_out = [pair for name, pair in painted if name in HELD_OUT]
    print(f"{len(pairs)} pairs painted", flush=True)
    model = fit(pairs, GRID)

    mean_pet = np.mean([pair.pet for pair in pairs], axis=0)
    guesses = {
        "generator": predict_by(model, model.spec.tiling, held_out),
        "exact anatomy, expected uptake": [pair.ceiling for pair in held_out],
        "mean training PET": [mean_pet] * len(held_out),
        "T1w": [pair.t1w for pair in held_out],
    }
    metrics = evaluate(guesses, held_out)
    print(json.dumps(metrics, indent=2), flush=True)
    card = card_of("default", GRID, metrics)
    save_all(model, card, pairs, maps, held_out=held_out, folder=given.generators / "default")
    grid = grid_of_box(Settings.bounding_box, SLOPPY_RESOLUTION)
    few, others = ([coarse(pair) for pair in some] for some in (pairs, held_out))
    card = card_of("sloppy", grid, {})
    save_all(fit(few, grid), card, few, maps, held_out=others, folder=given.generators / "sloppy")
    for folder in given.against:
        print(json.dumps(evaluate(predict_with(folder, held_out), held_out), indent=2), flush=True)


TRAINED_ON = (
    "T1w and FDG PET SIMULATED on label maps of 12 real heads (SynthSeg training maps 01 to 12, "
    "Apache-2.0), with random contrasts, deformations, bias fields and noise. The uptake of "
    "tissues and regions follows two mean FDG PET images in MNI space (Della Rosa et al. 2014, "
    "MIT; Turku PET Centre's magia, MIT). No acquired PET of an individual was used. The generator "
    "is a tissue model, not a network."
)
INTENDED_USE = (
    "A demonstration, for trying the app; not for studies or diagnosis. Train a generator on "
    "acquired PET of your own instead."
)

if __name__ == "__main__":
    main()
