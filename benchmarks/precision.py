"""Does training in bfloat16 do harm? One row trained in both precisions, scored on others.

    python benchmarks/precision.py OUT --resolution 3 --width 16 --epochs 20 --seeds 1 2

``OUT`` holds derivatives of the participant level. The last quarter of the people with a PET is
left out of training and scored.
"""

import argparse
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch
from safetensors.torch import load_file

from bids_app import nifti
from bids_app.derivatives.find import find_preprocessed
from bids_app.imaging.volume import zooms_of
from bids_app.settings import Settings
from bids_app.synthesis.evaluation import score, smooth_in_brain
from bids_app.synthesis.inference import predict
from bids_app.synthesis.job import KEPT, Job, launch_job, make_fabric
from bids_app.synthesis.models import MODELS, ModelSpec
from bids_app.synthesis.networks import ResnetGenerator
from bids_app.synthesis.pairs import Owner, open_volumes, store_volumes

MEASURES = ("ssim_brain", "psnr_brain")


def store(out: Path, resolution: float, folder: Path) -> list[Path]:
    """Store all people with a PET in the format that training memory-maps."""
    stored = []
    for visit in find_preprocessed(out, Settings.template, resolution):
        if visit.pets:
            images = [nifti.load(path) for path in (visit.t1w, visit.pets[0], visit.brain_mask)]
            t1w, pet, brain = (image.data for image in images)
            affine = tuple(map(tuple, images[0].affine.tolist()))
            place = folder / visit.subject
            owner = Owner(visit.subject, visit.session, affine)
            store_volumes(place, owner, t1w=t1w, pet=pet, brain=brain > 0)
            stored.append(place)
    return stored


def train(spec: ModelSpec, precision: str, seed: int, people: Sequence[Path]) -> ResnetGenerator:
    """Train for all epochs; with early stopping, the numbers of epochs could differ."""
    with TemporaryDirectory() as made:
        job = Job("all", spec, people, (), spec.epochs, seed, Settings.smoothing_fwhm, Path(made))
        launch_job(make_fabric("cpu", precision), job, Path(made))
        tiling = spec.tiling
        network = ResnetGenerator(tiling.spatial_dims, tiling.channels, spec.n_blocks, spec.width)
        network.load_state_dict(load_file(Path(made) / KEPT))
    return network.eval()


def measure(network: ResnetGenerator, spec: ModelSpec, people: Sequence[Path]) -> np.ndarray:
    """Score the held-out people: (people, measures)."""
    rows = []
    for place in people:
        volumes = open_volumes(place)
        zooms = zooms_of(np.array(volumes.owner.affine))
        raw = predict(volumes.t1w, network, spec.tiling)
        pet = smooth_in_brain(raw, volumes.brain, fwhm=Settings.smoothing_fwhm, zooms=zooms)
        found = score(pet, volumes.pet, volumes.brain)
        rows.append([getattr(found, name) for name in MEASURES])
    return np.array(rows)


def main() -> None:
    """Print the scores of both precisions, seed by seed."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("out", type=Path)
    parser.add_argument("--model", choices=MODELS, default="semi3d-gan-mse")
    parser.add_argument("--resolution", type=float, default=1.0)
    parser.add_argument("--width", type=int, default=64)
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--seeds", type=int, nargs="+", default=[1])
    parser.add_argument("--threads", type=int, default=2)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    spec = replace(
        MODELS[given.model],
        width=given.width,
        epochs=given.epochs,
        constant_epochs=given.epochs // 2,
    )
    with TemporaryDirectory() as made:
        people = store(given.out, given.resolution, Path(made))
        left = max(len(people) // 4, 1)
        for seed in given.seeds:
            for precision in ("32-true", "bf16-mixed"):
                began = time.monotonic()
                network = train(spec, precision, seed, people[:-left])
                spent = time.monotonic() - began
                mean = measure(network, spec, people[-left:]).mean(axis=0)
                told = ", ".join(f"{n} {v:.4f}" for n, v in zip(MEASURES, mean, strict=True))
                print(f"seed {seed}, {precision}: {told}; {spent:.0f} s", flush=True)


if __name__ == "__main__":
    main()
