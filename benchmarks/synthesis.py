"""Measure time and memory of one synthetic PET: the default generator, and networks.

    python benchmarks/synthesis.py --threads 2

Networks have the paper's size and their initial weights, and predict in float32 and in bfloat16 in
turn, so that their ratio is measured under the same load.
"""

import argparse
import resource
import time
from pathlib import Path

import numpy as np
import torch

from bids_app.generators import DEFAULT, find_generator
from bids_app.settings import Settings
from bids_app.synthesis.inference import load_generator, predict, synthesize
from bids_app.synthesis.losses import build_generator
from bids_app.synthesis.models import MODELS


def networks(t1w: np.ndarray, rows: tuple[str, ...]) -> None:
    """Print the time of one PET by networks in both precisions, the fastest of three turns."""
    print("| | float32, s | bfloat16, s | ratio | dB apart |\n|---|---|---|---|---|")
    for name in rows:
        generator = build_generator(MODELS[name]).eval()
        took: dict[torch.dtype, float] = {}
        pets = {}
        for _ in range(3):
            for dtype in (torch.float32, torch.bfloat16):
                start = time.perf_counter()
                pets[dtype] = predict(t1w, generator, MODELS[name].tiling, dtype=dtype)
                seconds = time.perf_counter() - start
                took[dtype] = min(seconds, took.get(dtype, seconds))
        full, half = took[torch.float32], took[torch.bfloat16]
        error = np.mean((pets[torch.float32] - pets[torch.bfloat16]) ** 2)
        cells = f"{full:.1f} | {half:.1f} | {full / half:.2f} | {-10 * np.log10(error):.0f}"
        print(f"| {name} | {cells} |")


def main() -> None:
    """Print times, and the peak memory of the process."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--threads", type=int, default=2)
    torch.set_num_threads(parser.parse_args().threads)
    folder = find_generator(DEFAULT, Path(), sloppy=False)
    generator, card = load_generator(folder, "cpu")
    t1w = np.random.default_rng(0).random(card.shape, dtype=np.float32)
    start = time.perf_counter()
    pet = synthesize(
        t1w, generator, card.spec.tiling, fwhm=Settings.smoothing_fwhm, zooms=(1.0, 1.0, 1.0)
    )
    seconds = time.perf_counter() - start
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    print(f"default generator: {pet.shape} in {seconds:.1f} s, peak {peak:.2f} GiB\n")
    networks(t1w, ("semi3d-gan-mse", "patch3d-gan-mse"))


if __name__ == "__main__":
    main()
