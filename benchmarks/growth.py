"""Measure how time and memory of the group level grow, and with what.

    python benchmarks/growth.py FIGURE.png

One-class SVMs of full slices at 1 mm (157 × 189), as a fold fits them: encoding, gathering, fitting
and scoring, each combination in a process of its own. One of four is varied at a time: controls of
the fold (75 otherwise), people who are scored (30), slices (1), threads (1). CPU time is given,
because the machine may do other things; for threads it is wall time. Memory is the peak of the
process, with its libraries. The encoder has its initial weights, which affects neither.
"""

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from matplotlib import pyplot as plt
from scipy import ndimage

from bids_app.detection.autoencoder import SiameseAutoencoder
from bids_app.detection.card import EncoderSpec
from bids_app.detection.slabs import PackedControls, Slab, count_voxels, pack_controls
from bids_app.detection.voxelwise import FoldOnSlab, fit_slab

SHAPE = (157, 189)
USUAL = {"controls": 75, "scored": 30, "slices": 1, "threads": 1}
STEPS = {
    "controls": (20, 35, 75, 150, 300, 500),
    "scored": (1, 10, 30, 100),
    "slices": (1, 2, 4, 8),
    "threads": (1, 2),
}
NAMES = {
    "controls": "controls of the fold",
    "scored": "people scored",
    "slices": "slices (20,000 voxels each)",
    "threads": "threads",
}


def volumes(count: int, slices: int, seed: int) -> np.ndarray:
    """Simulate smooth PET-like volumes, (count, I, J, slices)."""
    rng = np.random.default_rng(seed)
    noise = rng.standard_normal((count, *SHAPE, slices), dtype=np.float32)
    smooth = ndimage.gaussian_filter(noise, (0, 3, 3, 0))
    return np.clip(0.6 + 0.05 * smooth / smooth.std(), 0, 1)


def measure(controls: int, scored: int, slices: int, threads: int) -> dict[str, float]:
    """Fit and score a slab; to be called in a separate process."""
    torch.set_num_threads(1)
    places = np.meshgrid(*(np.linspace(-1, 1, side) for side in SHAPE), indexing="ij")
    brain = np.repeat((sum((p / 0.93) ** 2 for p in places) < 1)[..., None], slices, axis=2)
    slab = Slab(0, slices)
    with tempfile.TemporaryDirectory() as folder:
        packed = Path(folder) / "controls.safetensors"
        pack_controls(list(volumes(controls, slices, 1)), packed)
        known = PackedControls(packed, range(controls))
        encoder = SiameseAutoencoder(EncoderSpec(), torch.Generator().manual_seed(0)).eval()
        others = list(volumes(scored, slices, 2))
        few = FoldOnSlab(encoder, PackedControls(packed, range(8)), brain, Slab(0, 1), 1, "hypo")
        fit_slab(few, others[:1], nu=0.03)  # compiles numba functions
        fold = FoldOnSlab(encoder, known, brain, slab, threads, "hypo")
        wall, cpu = time.perf_counter(), time.process_time()
        fit_slab(fold, others, nu=0.03)
        wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    voxels = count_voxels(brain, slab)
    return {"cpu": cpu, "wall": wall, "memory": peak, "voxels": voxels}


def draw(told: dict[str, list[dict[str, float]]], path: Path) -> None:
    """Plot a panel for each of the four: time, and memory on a second axis."""
    figure, panels = plt.subplots(1, len(STEPS), figsize=(14, 3.4))
    for panel, (name, steps) in zip(panels, STEPS.items(), strict=True):
        kind = "wall" if name == "threads" else "cpu"
        times, memory = ([one[which] for one in told[name]] for which in (kind, "memory"))
        panel.plot(steps, times, "o-", color="#1b6ca8")
        label = f"{kind} time (s)".replace("cpu", "CPU")
        panel.set(xlabel=NAMES[name], ylabel=label, ylim=(0, 1.15 * max(times)))
        if name == "threads":
            panel.set_xticks(steps)
        beside = panel.twinx()
        beside.plot(steps, memory, "s--", color="#c05020")
        beside.set(ylabel="peak memory (GiB, dashed)", ylim=(0, 1.15 * max(memory)))
    figure.tight_layout()
    figure.savefig(path, dpi=90)


def main() -> None:
    """Measure each combination in a separate process, print a table, and plot."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("figure", type=Path)
    parser.add_argument("--one", type=json.loads)
    given = parser.parse_args()
    if given.one:
        print(json.dumps(measure(**given.one)))
        return
    told: dict[str, list[dict[str, float]]] = {}
    print("| | | CPU s | µs per voxel | wall s | peak GiB |\n|---|---|---|---|---|---|")
    for name, steps in STEPS.items():
        for step in steps:
            one = json.dumps({**USUAL, name: step})
            command = [sys.executable, __file__, str(given.figure), "--one", one]
            child = subprocess.run(command, check=True, stdout=subprocess.PIPE)
            row = json.loads(child.stdout)
            told.setdefault(name, []).append(row)
            each = 1e6 * row["cpu"] / row["voxels"]
            numbers = f"{row['cpu']:.1f} | {each:.0f} | {row['wall']:.1f} | {row['memory']:.2f}"
            print(f"| {NAMES[name]} | {step} | {numbers} |", flush=True)
    draw(told, given.figure)


if __name__ == "__main__":
    main()
