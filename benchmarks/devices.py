"""Measure training samples per second, and seconds per synthetic PET, of each network on a device.

    python benchmarks/devices.py cuda:0 cpu --steps 10

Volumes of the paper's size at 1 mm, with its width, batches and losses, in the precision that the
app would choose, and with initial weights. Devices take turns, row by row, so that their ratio is
measured under the same load.
"""

import argparse
import time

import torch
from training import pair

from bids_app.synthesis.inference import choose_dtype, predict
from bids_app.synthesis.job import choose_precision, make_fabric
from bids_app.synthesis.losses import build_generator
from bids_app.synthesis.models import MODELS, ModelSpec
from bids_app.synthesis.tiling import SliceTriplets, overlap
from bids_app.synthesis.training import Training, shuffled_batches


def settle(device: str) -> float:
    """Wait until a GPU has finished, and return the time."""
    if device != "cpu":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def train(spec: ModelSpec, device: str, steps: int) -> float:
    """Return training samples per second, after a warm-up step."""
    fabric = make_fabric(device, choose_precision(device))
    training = Training(spec, fabric, torch.Generator().manual_seed(0))
    began, count = 0.0, 0
    while count <= steps:
        for batch in shuffled_batches([pair(spec)], spec, torch.Generator().manual_seed(0)):
            if count == 1:
                began = settle(device)
            training.step(batch)
            count += 1
            if count > steps:
                break
    return spec.batch_size * steps / (settle(device) - began)


def synthesize(spec: ModelSpec, device: str) -> float:
    """Return the seconds per synthetic PET; networks of triplets use overlapping ones."""
    generator = build_generator(spec).to(device).eval()
    tiling = overlap(spec.tiling) if isinstance(spec.tiling, SliceTriplets) else spec.tiling
    t1w, dtype = pair(spec).mri.numpy(), choose_dtype(generator, device)
    if device != "cpu":
        predict(t1w, generator, tiling, dtype=dtype)
    began = settle(device)
    predict(t1w, generator, tiling, dtype=dtype)
    return settle(device) - began


def main() -> None:
    """Print a table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("devices", nargs="+")
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--rows", nargs="+", default=list(MODELS), choices=list(MODELS))
    given = parser.parse_args()
    print("| | device | training, samples/s | synthetic PET, s |\n|---|---|---|---|")
    for name in given.rows:
        for device in given.devices:
            rate = train(MODELS[name], device, given.steps)
            took = synthesize(MODELS[name], device)
            print(f"| {name} | {device} | {rate:.2f} | {took:.1f} |", flush=True)


if __name__ == "__main__":
    main()
