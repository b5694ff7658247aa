"""Measure time and memory of one synthetic PET with the default generator.

python benchmarks/synthesis.py --threads 2
"""

import argparse
import resource
import time
from pathlib import Path

import numpy as np
import torch

from bids_app.generators import DEFAULT, find_generator
from bids_app.settings import Settings
from bids_app.synthesis.inference import load_generator, synthesize


def main() -> None:
    """Print the time, and the peak memory of the process."""
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
    print(f"{pet.shape} in {seconds:.1f} s, peak {peak:.2f} GiB")


if __name__ == "__main__":
    main()
