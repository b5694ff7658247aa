"""One-class SVMs of many voxels: time compared with a loop of scikit-learn, memory, and storage.

Latents are simulated: at each voxel people vary along a few directions, and a little along all
others; features have means of their own, larger than the differences between people, like those of
a trained encoder. scikit-learn, one thread and two threads take turns on the same data, so that
other load on the machine slows them equally. The fastest turn of each counts, by wall time and by
CPU time, which is more informative where other programs run. Printed are: the time of the first
call, which compiles where NUMBA_CACHE_DIR is empty; the memory of one large piece; time and
agreement; the number of support vectors, and what rounding them costs and saves.

    NUMBA_CACHE_DIR=$(mktemp -d) python benchmarks/oneclass.py
"""

import argparse
import resource
import time
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray
from sklearn.svm import OneClassSVM

from bids_app.detection.oneclass import VoxelwiseOneClassSVM

Latents = NDArray[np.float32]
FEATURES = 64
SCORED = 30  # patients and held-out controls
OFFSETS = (0, 1, 3, 10)  # SD of the features' means, relative to that between people
CONTROLS = (26, 35, 56, 75)  # 3/4 of 35 and of 75, and all of them
CASES = [(n, 1) for n in (26, 35, 75, 150)] + [(75, each) for each in OFFSETS if each != 1]
DIRECTIONS = 8  # number of directions along which people vary
REST = 0.3  # SD along all other directions
TURNS = 7
SEED = 3
MODELS = 6e6  # 1.5 million voxels × 4 folds


def simulate(voxels: int, samples: int, offset: float, random: np.random.Generator) -> Latents:
    """Draw latents of people, (voxels, samples, features)."""
    means = offset * random.normal(size=(voxels, 1, FEATURES))
    directions = random.normal(size=(voxels, DIRECTIONS, FEATURES)) / DIRECTIONS**0.5
    people = random.normal(size=(voxels, samples, DIRECTIONS)) @ directions
    rest = REST * random.normal(size=(voxels, samples, FEATURES))
    return (means + people + rest).astype(np.float32)


def with_sklearn(train: Latents, scored: Latents) -> NDArray[np.float64]:
    """Fit and score voxel by voxel with scikit-learn."""
    return np.stack(
        [
            OneClassSVM(nu=0.03).fit(learnt).decision_function(asked)
            for learnt, asked in zip(train, scored, strict=True)
        ]
    )


def ours(train: Latents, scored: Latents, threads: int) -> NDArray[np.float64]:
    """Fit and score all voxels with the app's solver."""
    return VoxelwiseOneClassSVM(threads=threads).fit(train).decision_function(scored)


def seconds(work: Callable[[], object], clock: Callable[[], float] = time.perf_counter) -> float:
    """Measure the time of a call, in s."""
    before = clock()
    work()
    return clock() - before


def fastest(
    train: Latents, scored: Latents, looped: int, clock: Callable[[], float]
) -> NDArray[np.float64]:
    """Return the fewest µs per voxel of scikit-learn, one thread and two threads, run in turn."""
    turns = [
        [
            seconds(lambda: with_sklearn(train[:looped], scored[:looped]), clock) / looped,
            seconds(lambda: ours(train, scored, 1), clock) / len(train),
            seconds(lambda: ours(train, scored, 2), clock) / len(train),
        ]
        for _ in range(TURNS)
    ]
    return 1e6 * np.min(turns, axis=0)


def compare(voxels: int, looped: int, random: np.random.Generator) -> None:
    """Print the times of scikit-learn (on some voxels) and of ours, ratios, and the agreement."""
    print(f"fit, and score {SCORED} x {FEATURES}; us per voxel (ratio); largest difference")
    for n, offset in CASES:
        people = simulate(voxels, n + SCORED, offset, random)
        train, scored = people[:, :n].copy(), people[:, n:].copy()
        apart = with_sklearn(train[:looped], scored[:looped]) - ours(train, scored, 1)[:looped]
        for name, clock in (("clock", time.perf_counter), ("CPU", time.process_time)):
            loop, one, two = fastest(train, scored, looped, clock)
            print(
                f"{n:3} controls, offset {offset:2}, {name:5}: scikit-learn {loop:5.0f}; "
                f"1 thread {one:5.1f} ({loop / one:.1f}x); "
                f"2 threads {two:5.1f} ({loop / two:.1f}x); {np.abs(apart).max():.1e}"
            )


def as_bytes(vectors: Latents) -> Latents:
    """Round support vectors to 256 levels between the smallest and largest value of each."""
    least = vectors.min(axis=1, keepdims=True)
    step = (vectors.max(axis=1, keepdims=True) - least) / 255
    return least + step * np.round((vectors - least) / step)


def store(voxels: int, random: np.random.Generator) -> None:
    """Print how many support vectors there are, and what rounding them does to decisions."""
    print(f"support vectors per voxel; GB of {MODELS:.0e} models (error, in SD of decisions)")
    for offset in OFFSETS:
        people = simulate(voxels, max(CONTROLS) + SCORED, offset, random)
        for n in CONTROLS:
            machine = VoxelwiseOneClassSVM(threads=2).fit(people[:, :n])
            scored = people[:, -SCORED:]
            decisions = machine.decision_function(scored)
            spread = decisions.std(axis=1, keepdims=True)
            count = machine.n_support_.mean()
            told = f"offset {offset:2}, {n} controls: {count:4.1f}"
            vectors = machine.support_vectors_
            for name, rounded, size in (
                ("float16", vectors.astype(np.float16), 2 * FEATURES),
                ("uint8", as_bytes(vectors), FEATURES + 4),
            ):
                again = VoxelwiseOneClassSVM.from_support(
                    rounded,
                    machine.dual_coef_,
                    machine.n_support_,
                    gamma=machine.gamma_,
                    offset=machine.offset_,
                    threads=2,
                )
                error = (np.abs(again.decision_function(scored) - decisions) / spread).mean()
                gigabytes = MODELS * (count * (size + 4) + 10) / 1e9
                told += f"; {name} {gigabytes:.1f} GB ({error:.1e})"
            print(told)


def peak() -> float:
    """Return the peak memory of this process, in MiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def measure_memory(voxels: int, random: np.random.Generator) -> None:
    """Print the memory that fitting and scoring a large piece needs in addition to the piece."""
    train = random.standard_normal((voxels, 75, FEATURES), np.float32)
    scored = random.standard_normal((voxels, SCORED, FEATURES), np.float32)
    before = peak()
    time_taken = seconds(lambda: ours(train, scored, 2))
    print(
        f"{voxels} voxels x 75 x {FEATURES}, {train.nbytes / 2**20:.0f} MiB, of independent "
        f"noise: {peak() - before:.0f} MiB in addition, {time_taken:.1f} s"
    )


def main() -> None:
    """Run all measurements and print the results."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--voxels", type=int, default=512)
    parser.add_argument("--looped", type=int, default=32, help="voxels for scikit-learn")
    arguments = parser.parse_args()
    random = np.random.default_rng(SEED)
    few = simulate(2, 75, 3, random)
    print(f"first call {seconds(lambda: ours(few, few, 1)):.1f} s")
    measure_memory(20_000, random)
    compare(arguments.voxels, arguments.looped, random)
    store(arguments.voxels, random)


if __name__ == "__main__":
    main()
