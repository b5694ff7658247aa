"""The group level at 1 mm: time and memory of a slab of a full-size cohort, and of the whole.

Volumes are simulated: smooth textures inside an ellipsoid, as large as the paper's. One fold's
encoder is trained. One slab in the middle of the brain is fitted and scored in a process of its
own, whose memory is measured. Then the slab is scored again, as by a detector that is applied.

    python benchmarks/group.py WORK --controls 75 --patients 17 --threads 2
"""

import argparse
import json
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from scipy import ndimage

from bids_app.detection.autoencoder import load_encoder, save_encoder, train_encoder
from bids_app.detection.card import EncoderSpec
from bids_app.detection.slabs import PackedControls, Slab, count_voxels, pack_controls
from bids_app.detection.voxelwise import FoldOnSlab, fit_slab, load_models, save_models, score_slab

SHAPE = (157, 189, 136)
FOLDS = 4


def brain() -> np.ndarray:
    """Create a mask of an ellipsoid as large as a brain: 1.8 million voxels."""
    places = np.meshgrid(*(np.linspace(-1, 1, side) for side in SHAPE), indexing="ij", sparse=True)
    return sum((place / 0.93) ** 2 for place in places) < 1


def write_volumes(folder: Path, count: int) -> None:
    """Write PETs: a shared pattern and an individual texture."""
    mask, shared = brain(), ndimage.gaussian_filter(_noise(0), 4)
    for number in range(count):
        path = folder / f"{number}.npy"
        if not path.exists():
            own = ndimage.gaussian_filter(_noise(number + 1), 3)
            pet = 0.6 + 0.15 * shared / shared.std() + 0.05 * own / own.std()
            np.save(path, np.asfortranarray(np.where(mask, pet, 0).clip(0, 1).astype(np.float32)))


def _noise(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(SHAPE, dtype=np.float32)


def volumes(folder: Path, numbers: range) -> list[np.ndarray]:
    """Open volumes memory-mapped."""
    return [np.load(folder / f"{number}.npy", mmap_mode="c") for number in numbers]


def measure(work: Path, given: argparse.Namespace) -> dict[str, float]:
    """Train, fit, score and apply, in a separate process; return seconds, MiB and counts."""
    torch.set_num_threads(1)  # as when the app trains encoders
    mask = brain()
    training = given.controls - given.controls // FOLDS
    scored = volumes(work, range(training, given.controls + given.patients))
    told: dict[str, float] = {}
    encoder_file, packed = work / "encoder.safetensors", work / "controls.safetensors"

    def timed(name: str, function: Callable[[], object]) -> object:
        started = time.perf_counter()
        result = function()
        told[f"{name}, s"] = time.perf_counter() - started
        return result

    controls = volumes(work, range(training))
    spec = EncoderSpec()
    encoder, _ = timed("encoder", lambda: train_encoder(controls, mask, spec, seed=1))
    save_encoder(encoder_file, encoder, spec)
    torch.set_num_threads(given.threads)
    timed("packing", lambda: pack_controls(volumes(work, range(given.controls)), packed))
    told["controls, MiB"] = packed.stat().st_size / 2**20
    slab = Slab(60, 60 + given.slices)
    fold = FoldOnSlab(
        load_encoder(encoder_file),
        PackedControls(packed, range(training)),
        mask,
        slab,
        given.threads,
        "hypo",
    )
    models, scores = timed("slab, fitted", lambda: fit_slab(fold, scored, nu=0.03))
    save_models(work / "voxels.safetensors", models)
    told["slab, MiB"] = (work / "voxels.safetensors").stat().st_size / 2**20
    told["slab, voxels"] = count_voxels(mask, slab)
    told["support vectors per voxel"] = float(models.n_support.mean())
    again = timed(
        "slab, applied", lambda: score_slab(fold, load_models(work / "voxels.safetensors"), scored)
    )
    told["largest difference"] = float(np.abs(again - scores).max())
    told["peak memory, MiB"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return told


def main() -> None:
    """Measure in a child process, and extrapolate."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("work", type=Path)
    parser.add_argument("--controls", type=int, default=75)
    parser.add_argument("--patients", type=int, default=17)
    parser.add_argument("--slices", type=int, default=4)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--child", action="store_true")
    given = parser.parse_args()
    given.work.mkdir(parents=True, exist_ok=True)
    if given.child:
        print(json.dumps(measure(given.work, given)))
        return
    write_volumes(given.work, given.controls + given.patients)
    child = subprocess.run(
        [sys.executable, __file__, *sys.argv[1:], "--child"], check=True, stdout=subprocess.PIPE
    )
    told = json.loads(child.stdout)
    for name, value in told.items():
        print(f"{name}: {value:.4g}")
    slabs = brain().sum() / told["slab, voxels"]
    encoders = FOLDS / min(FOLDS, given.threads) * told["encoder, s"]  # folds run in parallel
    hours = (encoders + FOLDS * slabs * told["slab, fitted, s"]) / 3600
    size = (told["controls, MiB"] + FOLDS * slabs * told["slab, MiB"]) / 1024
    apply = FOLDS * slabs * told["slab, applied, s"] / 60
    print(
        f"extrapolated: {FOLDS} folds {hours:.2f} h with {given.threads} threads, detector "
        f"{size:.2f} GiB; applied in {apply:.0f} min"
    )


if __name__ == "__main__":
    main()
