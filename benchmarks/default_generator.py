"""Train the default generator again: from label maps of heads to weights, card and numbers.

    python benchmarks/default_generator.py WORK --labelmaps DIR --uptake A.nii.gz B.nii.gz \
        --steps 3000 --generator bids_app/data/generators/default

``--against FOLDER`` measures another generator on the same held-out pairs, such as the one before.

``DIR`` holds whole-head label maps in FreeSurfer's aseg numbers (SynthSeg's training maps, named
``training_seg_NN.nii.gz``); maps 13 and 14 are held out. ``--uptake`` names mean FDG PET in MNI
space. Each map is registered to the template once; pairs of T1w and PET are painted anew on warped
copies while training goes on. A run that was stopped goes on from its checkpoint.
"""

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import torch
from default_generator_painting import (
    brain_of,
    paint_pet,
    paint_t1w,
    regional_uptake,
    simplify,
    warp,
)
from nilearn.datasets import load_mni152_template
from nilearn.image import resample_img
from scipy import ndimage

from bids_app import nifti
from bids_app.derivatives.description import find_versions
from bids_app.imaging.similarity import measure
from bids_app.imaging.volume import grid_of_box
from bids_app.settings import Settings
from bids_app.synthesis.card import Card
from bids_app.synthesis.checkpoint import restore_checkpoint, save_checkpoint
from bids_app.synthesis.inference import (
    choose_precision,
    load_generator,
    make_fabric,
    save_generator,
    synthesize,
)
from bids_app.synthesis.models import MODELS, ModelSpec
from bids_app.synthesis.pairs import Batch
from bids_app.synthesis.training import Fit, Training

HELD_OUT = ("13", "14")
SEED = 2026
REPAINTED = 4  # pairs an epoch; the others are seen again
SPEC = replace(MODELS["semi3d-gan-mse"], width=32, batch_size=4, mse_weight=2000.0)
GRID = grid_of_box(Settings.bounding_box, 1.0)
REGISTER = """
import sys, ants
fixed, moving, labels, grid, prefix, out = sys.argv[1:]
found = ants.registration(ants.image_read(fixed), ants.image_read(moving),
                          "antsRegistrationSyNQuick[s]", outprefix=prefix)["fwdtransforms"]
ants.apply_transforms(ants.image_read(grid), ants.image_read(labels), found,
                      interpolator="nearestNeighbor").to_filename(out)
"""
Painted = tuple[np.ndarray, np.ndarray]  # T1w and PET


def register(label_map: Path, work: Path) -> Path:
    """Warp a label map to the grid of the outputs, unless it is there; a clean T1w guides it."""
    name = label_map.name.removesuffix(".nii.gz")[-2:]
    out = work / f"labels_{name}.nii.gz"
    if out.exists():
        return out
    image = nifti.load(label_map)
    labels = simplify(image.data)
    guide = np.select(
        [np.isin(labels, (2, 41, 7, 46, 16, 28, 60, 77, 85)), np.isin(labels, (4, 5, 24, 43, 44))],
        [1.0, 0.2],
        np.where(labels > 0, 0.65, 0.0),
    )
    template = load_mni152_template(resolution=1)
    files = [work / f"{part}_{name}.nii.gz" for part in ("fixed", "moving", "whole", "grid")]
    smooth = ndimage.gaussian_filter(guide.astype(np.float32), 0.5)
    for path, data, affine in (
        (files[0], np.asarray(template.dataobj), template.affine),
        (files[1], smooth, image.affine),
        (files[2], labels.astype(np.float32), image.affine),
        (files[3], np.zeros(GRID.shape, np.float32), GRID.affine),
    ):
        nifti.save(nifti.Image(data, affine), path)
    command = [sys.executable, "-c", REGISTER, *files, work / f"x_{name}_", out]
    subprocess.run([str(word) for word in command], check=True)
    return out


def read_uptake(paths: list[Path], maps: list[np.ndarray]) -> np.ndarray:
    """Mean FDG templates on the grid, over what tissue alone would show."""
    templates = []
    for path in paths:
        moved = resample_img(
            str(path), GRID.affine, GRID.shape, force_resample=True, copy_header=True
        )
        data = np.asarray(moved.dataobj, np.float32)
        templates.append(data / np.percentile(data, 99.5))
    return regional_uptake(np.mean(templates, axis=0), maps)


def paint(labels: np.ndarray, uptake: np.ndarray, rng: np.random.Generator) -> Painted:
    """Paint a T1w and its PET on a warped copy of a label map; both in [0, 1]."""
    warped = warp(labels, rng)
    brain = brain_of(warped, rng)
    return paint_t1w(warped, brain, rng), paint_pet(warped, brain, uptake, rng)


def batches(pairs: list[Painted], spec: ModelSpec, rng: np.random.Generator) -> Iterator[Batch]:
    """Triplets from any slice on, in random order; few of those without brain."""
    places = [
        (pair, z)
        for pair in pairs
        for z in range(int(rng.integers(0, 3)), pair[0].shape[2] - 2, 3)
        if (pair[0][:, :, z : z + 3] > 0).mean() > 0.005 or rng.random() < 0.15
    ]
    rng.shuffle(places)
    for first in range(0, len(places) - spec.batch_size + 1, spec.batch_size):
        chosen = places[first : first + spec.batch_size]
        mri, pet = (
            torch.from_numpy(
                np.stack([np.moveaxis(p[i][:, :, z : z + 3], -1, 0) for p, z in chosen])
            )
            for i in (0, 1)
        )
        yield Batch(mri, pet, len(chosen))


def rate_of(spec: ModelSpec, done: int, steps: int) -> float:
    """Give the learning rate: constant for half of the steps, then linear to 0."""
    return spec.learning_rate * float(np.clip(2 * (1 - done / steps), 0, 1))


def train(
    training: Training, maps: list[np.ndarray], uptake: np.ndarray, work: Path, steps: int
) -> float:
    """Train for so many steps; return the seconds that all of it took, painting included."""
    checkpoint, state = work / "checkpoint.safetensors", work / "state.json"
    fit, done, seconds = Fit(training), 0, 0.0
    if checkpoint.exists():
        restore_checkpoint(fit, checkpoint)
        told = json.loads(state.read_text())
        done, seconds = told["steps"], told["seconds"]
    rng = np.random.default_rng([SEED, training.epoch])
    pairs: list[Painted] = []
    while done < steps:
        started = time.monotonic()
        fresh = rng.choice(len(maps), REPAINTED if pairs else len(maps), replace=False)
        pairs = [*pairs, *(paint(maps[i], uptake, rng) for i in fresh)][-len(maps) :]
        for batch in batches(pairs, training.spec, rng):
            for optimizer in (training.generator_optimizer, training.discriminator_optimizer):
                for group in optimizer.param_groups:
                    group["lr"] = rate_of(training.spec, done, steps)
            losses = training.step(batch)
            done += 1
        training.epoch += 1
        seconds += time.monotonic() - started
        save_checkpoint(fit, checkpoint)
        state.write_text(json.dumps({"steps": done, "seconds": seconds}))
        print(f"epoch {training.epoch}, {done} steps, {seconds / 60:.1f} min, {losses}", flush=True)
    return seconds


def evaluate(
    generator: torch.nn.Module, held_out: list[Painted], mean_pet: np.ndarray
) -> dict[str, float]:
    """Measure the generator, the mean training PET and the T1w itself on pairs it has not seen."""
    rows: dict[str, list] = {"generator": [], "mean training PET": [], "T1w": []}
    for t1w, pet in held_out:
        brain = t1w > 0
        made = synthesize(
            t1w, generator, SPEC.tiling, fwhm=Settings.smoothing_fwhm, zooms=(1.0, 1.0, 1.0)
        )
        for name, guess in (("generator", made), ("mean training PET", mean_pet), ("T1w", t1w)):
            rows[name].append(asdict(measure((guess * brain).astype(np.float32), pet, brain)))
    return {
        f"{name}: {key}": round(float(np.mean([row[key] for row in values])), 4)
        for name, values in rows.items()
        for key in values[0]
    }


def main() -> None:
    """Register, train, measure, and write weights and card."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("work", type=Path)
    parser.add_argument("--labelmaps", type=Path, required=True)
    parser.add_argument("--uptake", type=Path, nargs="+", required=True)
    parser.add_argument("--steps", type=int, default=3000)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--generator", type=Path, required=True)
    parser.add_argument("--against", type=Path, help="another generator, measured on the same")
    given = parser.parse_args()
    given.work.mkdir(parents=True, exist_ok=True)
    warped = {
        path.name[-9:-7]: simplify(nifti.load(register(path, given.work)).data)
        for path in sorted(given.labelmaps.glob("*.nii.gz"))
    }
    maps = [labels for name, labels in warped.items() if name not in HELD_OUT]
    uptake = read_uptake(given.uptake, maps[:4])
    torch.set_num_threads(given.threads)
    precision = choose_precision("cpu")
    training = Training(SPEC, make_fabric("cpu", precision), torch.Generator().manual_seed(SEED))
    seconds = train(training, maps, uptake, given.work, given.steps)
    rng = np.random.default_rng(99)
    held_out = [paint(warped[name], uptake, rng) for name in HELD_OUT for _ in range(2)]
    mean_pet = np.mean([paint(labels, uptake, rng)[1] for labels in maps], axis=0)
    generator = training.generators[0].eval()
    metrics = evaluate(generator, held_out, mean_pet)
    card = Card(
        name="default",
        version=find_versions()["mri2pet"],
        spec=replace(SPEC, epochs=training.epoch, constant_epochs=training.epoch // 2),
        template=Settings.template,
        shape=GRID.shape,
        affine=tuple(tuple(row) for row in GRID.affine.tolist()),
        sha256="",
        trained_on=TRAINED_ON,
        intended_use=INTENDED_USE,
        participants=(),
        dataset="simulated on SynthSeg training label maps 01 to 12",
        seed=SEED,
        versions={**find_versions(), "precision": precision},
        metrics=metrics,
    )
    save_generator(generator, card, given.generator)
    print(json.dumps(metrics, indent=2))
    if given.against is not None:
        other, _ = load_generator(given.against, "cpu")
        print(given.against, json.dumps(evaluate(other, held_out, mean_pet), indent=2))
    print(f"{given.steps} steps in {seconds / 60:.0f} min, {given.threads} threads, {precision}")


TRAINED_ON = (
    "T1w and FDG PET SIMULATED on label maps of 12 real heads (SynthSeg training maps 01 to 12, "
    "Apache-2.0): random contrasts, deformations, bias fields and noise; uptake by tissue and by "
    "region, after two mean FDG PET in MNI space (Della Rosa et al. 2014, MIT; Turku PET Centre's "
    "magia, MIT). No acquired PET."
)
INTENDED_USE = (
    "A demonstration, to try the app with. Not for studies and not for diagnosis: train a "
    "generator on acquired PET of your own instead."
)

if __name__ == "__main__":
    main()
