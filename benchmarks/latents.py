"""Time for the latents of a 1 mm slice: densely, patch by patch, and in batches of patches.

The three take turns, so that other load on the machine slows them equally; the fastest turn of
each counts. Patch by patch, some voxels are timed, and the time of the slice is extrapolated.

    python benchmarks/latents.py                  one thread, the slice and an image of 136 slices
    python benchmarks/latents.py --train          and an epoch of training, on 26 controls on disk
"""

import argparse
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from bids_app.detection.autoencoder import SiameseAutoencoder, fit_encoder, latents_at
from bids_app.detection.card import EncoderSpec

SHAPE = (157, 189, 136)
CONTROLS = 26  # training controls of a fold, of 35
SOME = 500  # voxels that are encoded one by one
BATCHES = (64, 256, 1024)  # patches; sizes that are compared
SEED = 5


def new_encoder(spec: EncoderSpec) -> SiameseAutoencoder:
    """Return an encoder with its initial weights."""
    return SiameseAutoencoder(spec, torch.Generator().manual_seed(SEED)).eval()


def seconds(work: Callable[[], object]) -> float:
    """Measure the wall time of a call, in s."""
    before = time.perf_counter()
    work()
    return time.perf_counter() - before


def unfold(image: Tensor, size: int) -> Tensor:
    """Extract the patch around every voxel of a slice, (1, I, J) → (I·J, 1, size, size)."""
    half = size // 2
    columns = F.unfold(F.pad(image[:, None], (half,) * 4), size)[0]
    return columns.T.reshape(-1, 1, size, size)


@torch.inference_mode()
def in_batches(encoder: SiameseAutoencoder, image: Tensor, size: int) -> Tensor:
    """Encode all patches of a slice, (1, I, J) → (I·J, latents)."""
    return torch.cat([encoder.encode(p) for p in unfold(image, encoder.patch).split(size)])


@torch.inference_mode()
def one_by_one(encoder: SiameseAutoencoder, patches: Tensor) -> Tensor:
    """Encode patches one by one."""
    return torch.cat([encoder.encode(patch) for patch in patches.split(1)])


def ellipsoid() -> np.ndarray:
    """Create a mask of an ellipsoid as large as the template's brain: 1.85 million voxels."""
    axes = np.meshgrid(*(np.linspace(-1, 1, side) for side in SHAPE), indexing="ij")
    return sum(axis**2 for axis in axes) < 0.93


def compare(encoder: SiameseAutoencoder, turns: int) -> None:
    """Print times per slice, and the largest difference between the methods."""
    image = torch.rand(1, *SHAPE[:2], generator=torch.Generator().manual_seed(SEED))
    voxels, everywhere = image.numel(), np.ones(SHAPE[:2], bool)
    some = unfold(image, encoder.patch)[:SOME]
    ways: dict[str, tuple[Callable[[], object], float]] = {
        "densely": (lambda: latents_at(encoder, image.numpy(), everywhere), 1.0),
        "patch by patch": (lambda: one_by_one(encoder, some), voxels / SOME),
    }
    for size in BATCHES:
        ways[f"in batches of {size}"] = (lambda size=size: in_batches(encoder, image, size), 1.0)
    best = dict.fromkeys(ways, np.inf)
    for _ in range(turns):
        for name, (work, times) in ways.items():
            best[name] = min(best[name], times * seconds(work))
    for name, took in best.items():
        print(f"{name}: {1000 * took:.1f} ms per slice, {took / best['densely']:.0f} × densely")
    dense = torch.from_numpy(latents_at(encoder, image.numpy(), everywhere)[:, 0])
    apart = (in_batches(encoder, image, BATCHES[0]) - dense).abs().max()
    print(f"largest difference of a latent: {apart:.1e}")


def whole_image(encoder: SiameseAutoencoder) -> None:
    """Print the time of encoding an image, slice by slice, at all voxels of an ellipsoid."""
    brain = ellipsoid()
    volume = np.random.default_rng(SEED).random(SHAPE, np.float32)

    def encode() -> None:
        for k in range(SHAPE[2]):
            latents_at(encoder, volume[None, ..., k], brain[..., k])

    took = min(seconds(encode) for _ in range(2))
    print(f"one image, {SHAPE[2]} slices, {brain.sum()} voxels: {took:.2f} s")


def one_epoch(spec: EncoderSpec) -> None:
    """Print the time of a training epoch on memory-mapped volumes."""
    rng, brain = np.random.default_rng(SEED), ellipsoid()
    with TemporaryDirectory() as folder:
        volumes = []
        for person in range(CONTROLS):
            path = Path(folder) / f"{person}.npy"
            np.save(path, np.asfortranarray(rng.random(SHAPE, np.float32)))
            volumes.append(np.load(path, mmap_mode="c"))
        epochs = fit_encoder(new_encoder(spec), volumes, brain, replace(spec, epochs=2), rng)
        took = min(seconds(lambda: next(epochs)) for _ in range(2))
    print(
        f"an epoch of {spec.pairs_per_epoch} pairs: {took:.1f} s, "
        f"{spec.pairs_per_epoch / took:.0f} pairs/s; {spec.epochs} epochs: "
        f"{spec.epochs * took:.0f} s"
    )


def main() -> None:
    """Run the requested measurements and print the results."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--train", action="store_true")
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    encoder = new_encoder(EncoderSpec())
    compare(encoder, given.turns)
    whole_image(encoder)
    if given.train:
        one_epoch(EncoderSpec())


if __name__ == "__main__":
    main()
