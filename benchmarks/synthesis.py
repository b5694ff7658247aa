"""Measure time and memory of one synthetic PET: the default generator, and a network.

    python benchmarks/synthesis.py --threads 2

The network, a semi-3D one, has the paper's size and its initial weights. It predicts in float32 and
in bfloat16 in turn, so that their ratio is measured under the same load.
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


def network(t1w: np.ndarray) -> None:
    """Print the time of one PET by a network in both precisions, the fastest of three turns."""
    spec = MODELS["semi3d-gan-mse"]
    generator = build_generator(spec).eval()
    took: dict[torch.dtype, list[float]] = {torch.float32: [], torch.bfloat16: []}
    pets = {}
    for _ in range(3):
        for dtype, turns in took.items():
            start = time.perf_counter()
            pets[dtype] = predict(t1w, generator, spec.tiling, dtype=dtype)
            turns.append(time.perf_counter() - start)
    full, half = (min(turns) for turns in took.values())
    error = np.mean((pets[torch.float32] - pets[torch.bfloat16]) ** 2)
    print(
        f"network: float32 {full:.1f} s, bfloat16 {half:.1f} s, ratio {full / half:.2f}; "
        f"{-10 * np.log10(error):.0f} dB apart"
    )


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
    network(t1w)


if __name__ == "__main__":
    main()
