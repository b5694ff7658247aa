"""Compare what a group with 5 to 35 pairs of T1w and PET and no GPU can do.

    python benchmarks/few_pairs.py WORK

Two scanners are simulated, on the template's head warped into people of 20 to 76 years, painted at
2 mm and resampled to the 4 mm grid of a sloppy run. They differ in T1w contrast, in the PET's point
spread (5 and 7.5 mm), in the uptake of white matter, cerebellum and basal ganglia, and in a
smooth regional factor (10 %). A tissue model and a network are trained on 24 pairs of the first.
Generators for the second are trained on ``--pairs`` pairs, and scored on 8 other people, inside the
brain, as ``participant`` writes a synthetic PET: smoothed, with overlapping triplets.

Networks are semi-3D Simple-GANs with MSE of width 16. Each has the same CPU time, ``--seconds``;
the learning rate falls over the second half of the epochs that this allows. A fifth of the pairs,
at least one, choose the epoch that is kept, as in early stopping; tissue models learn from all.
A seed determines which of 35 pairs are used, and the initial weights. Results are kept in WORK;
to resume, give the same command again. With the defaults it takes about an hour of CPU time.
"""

import argparse
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file
from scipy import stats
from torch import nn

from bids_app import nifti
from bids_app.files import read_tsv, write_tsv
from bids_app.imaging.intensity import TIMES_MEAN, scale_to_unit
from bids_app.imaging.similarity import measure
from bids_app.imaging.volume import Volume, count_cubes, cube_sides, grid_of_box
from bids_app.nifti import Owner
from bids_app.settings import SLOPPY_RESOLUTION, Settings
from bids_app.simulation.anatomy import NAMES, is_in_skull
from bids_app.simulation.cohort import AGES, template_anatomy
from bids_app.simulation.geometry import (
    draw_displacement,
    random_field,
    thin_cortex,
    warp_head,
    widen_ventricles,
)
from bids_app.simulation.images import (
    NOISE,
    PATTERN_GRID,
    Contrast,
    Scanner,
    acquire,
    activity,
    blur,
    draw_uptake,
    paint_t1w,
    random_contrast,
    usual_pattern,
)
from bids_app.simulation.person import draw_atrophy
from bids_app.synthesis import training as trainings
from bids_app.synthesis.evaluation import smooth_in_brain
from bids_app.synthesis.inference import load_weights, predict
from bids_app.synthesis.job import choose_precision, make_fabric, mean_ssim
from bids_app.synthesis.models import CUBE, MODELS, ModelSpec, TissueSpec
from bids_app.synthesis.networks import ConditionedGenerator, ResnetGenerator, network_of
from bids_app.synthesis.pairs import Volumes, open_volumes, store_volumes, usable_pairs
from bids_app.synthesis.tiling import SliceTriplets, overlap
from bids_app.synthesis.tissue import TissueModel, fit_tissue_model
from bids_app.synthesis.training import Fit, Training, resume_training

RESOLUTION = SLOPPY_RESOLUTION  # mm; every second voxel of the painted grid
PAINTED = 2  # mm
GRID, FINE = (grid_of_box(Settings.bounding_box, size) for size in (RESOLUTION, PAINTED))
ZOOMS, FINE_ZOOMS = (RESOLUTION,) * 3, (float(PAINTED),) * 3
STRENGTH = 0.4  # of the warp; low, because people have been registered to the template
RESIDUAL_BIAS = 0.25  # share of the bias field that remains after N4
DURATION = 1200.0  # s
FIRST_PAIRS, POOL, JUDGES = 24, 35, 8
FWHM = Settings.smoothing_fwhm
LOOKS = 15  # evaluations on the validation pairs
EARLY_RATE = trainings.EARLY_RATE
WIDTH = 16
ALL = "tissue", "tissue, first's in mind", "from scratch", "fine-tuned", "conditioned"
COLUMNS = ("pairs", "seed", "variant", "person", "ssim_brain", "psnr_brain", "cpu_seconds")


@dataclass(frozen=True)
class Site:
    """Scanner with its protocol: contrast, point spread in mm, pattern and factors of uptake."""

    contrast: Contrast
    fwhm: float
    pattern: Volume
    factors: dict[str, float]


def make_sites() -> dict[str, Site]:
    """Create both scanners, with a fixed seed."""
    rng = np.random.default_rng(2026)
    contrasts = [random_contrast(rng) for _ in range(2)]
    first, second = (replace(one, bias=RESIDUAL_BIAS * one.bias) for one in contrasts)
    field = random_field(PATTERN_GRID.shape, 6.0, rng)
    field = field + field[::-1]
    other = usual_pattern() * np.exp(0.1 * field / field.std()).astype(np.float32)
    factors = {"white": 1.2, "cerebellar_cortex": 1.15, "putamen": 0.9, "caudate": 0.9}
    return {
        "first": Site(first, 5.0, usual_pattern(), {}),
        "second": Site(second, 7.5, other, factors),
    }


def paint(site: Site, name: str, folder: Path, rng: np.random.Generator) -> None:
    """Simulate T1w and PET of a person, as if preprocessed by the app, and store them."""
    anatomy = template_anatomy(PAINTED)
    atrophy = draw_atrophy(rng.uniform(*AGES), rng)
    warp = draw_displacement(anatomy.grid, rng, strength=STRENGTH)
    warp = widen_ventricles(anatomy, warp, atrophy)
    head = warp_head(thin_cortex(anatomy, atrophy), warp, FINE)
    brain = is_in_skull(head.labels)
    t1w = paint_t1w(head.labels, site.contrast, rng, FINE_ZOOMS)
    uptake = draw_uptake(site.pattern, rng)
    for tissue, factor in site.factors.items():
        uptake.tissue[list(NAMES[tissue])] *= factor
    scanner = Scanner(site.fwhm, 2e4, float(rng.uniform(*NOISE)))
    clean = blur(activity(head, uptake), scanner, FINE_ZOOMS)
    pet = acquire(clean, scanner, np.array([DURATION]), FINE_ZOOMS, rng)[..., 0]
    every = (slice(None, None, round(RESOLUTION / PAINTED)),) * 3
    t1w, pet, brain = (np.ascontiguousarray(one[every]) for one in (t1w, pet, brain))
    store_volumes(
        folder,
        Owner(name, None, tuple(map(tuple, GRID.affine.tolist()))),
        t1w=scale_to_unit(t1w, brain),
        pet=scale_to_unit(pet, brain, times_mean=TIMES_MEAN),
        brain=brain,
    )


def people_of(work: Path, site: str, number: int) -> list[Volumes]:
    """Return people of a scanner, simulated unless they exist."""
    made = []
    for place in range(number):
        name = f"{site}{place:02d}"
        folder = work / "people" / name
        if not (folder / nifti.ABOUT).exists():
            rng = np.random.default_rng([2026, site == "second", place])
            paint(make_sites()[site], name, folder, rng)
        made.append(open_volumes(folder))
    return made


def tissue_spec() -> TissueSpec:
    """Return the specification of the tissue model of the grid."""
    sides = cube_sides(CUBE, ZOOMS)
    return TissueSpec(sides, count_cubes(GRID.shape, sides))


def fit_tissue(pairs: Sequence[Volumes], initial: TissueModel | None = None) -> TissueModel:
    """Fit a tissue model to pairs."""
    return fit_tissue_model(tissue_spec(), pairs, initial, times_mean=TIMES_MEAN)


def learn(
    spec: ModelSpec,
    pairs: Sequence[Volumes],
    seconds: float,
    seed: int,
    *,
    initial: ResnetGenerator | None = None,
    tissue: TissueModel | None = None,
) -> nn.Module:
    """Train a network for a number of seconds of CPU time; return that of the best epoch."""
    if tissue is not None:
        told = tissue.spec.tiling
        pairs = [replace(pair, condition=predict(pair.t1w, tissue, told)) for pair in pairs]
    left_out = max(1, len(pairs) // 5)
    fabric = make_fabric("cpu", choose_precision("cpu"))
    training = Training(spec, fabric, torch.Generator().manual_seed(seed), initial)
    generator = training.generators[0]
    if isinstance(generator, ConditionedGenerator):
        generator.tissue.load_state_dict(tissue.state_dict())
    fit, taught = Fit(training), usable_pairs(pairs[left_out:], spec)

    def validate(network: nn.Module) -> float:
        return mean_ssim(network, pairs[:left_out], spec, FWHM)

    started = time.process_time()
    validate(generator.eval())
    generator.train()
    looking = time.process_time() - started
    training.run_epoch(trainings.shuffled_batches(taught, spec, training.random))
    epoch = time.process_time() - started - looking
    epochs = max(2, 1 + int((seconds - epoch - LOOKS * looking) / epoch))
    interval = max(1, epochs // LOOKS)
    training.spec = replace(
        spec,
        epochs=epochs,
        constant_epochs=epochs // 2,
        validation_interval=interval,
        patience=epochs,
    )
    for _ in resume_training(fit, taught, validate=validate, last_epoch=epochs):
        if time.process_time() - started > 1.2 * seconds:
            break  # the first epoch was faster than the others
    if fit.kept:
        generator.load_state_dict(fit.kept)
    return generator.eval()


def score(generator: nn.Module, judges: Sequence[Volumes]) -> Iterator[tuple[str, float, float]]:
    """Yield scores of the synthetic PET of held-out people, in the brain."""
    network = not isinstance(generator, TissueModel)
    tiling = overlap(SliceTriplets()) if network else generator.spec.tiling
    for judge in judges:
        raw = predict(judge.t1w, generator, tiling)
        pet = smooth_in_brain(raw, judge.brain, fwhm=FWHM, zooms=ZOOMS)
        found = measure(pet, judge.pet, judge.brain)
        yield judge.owner.participant, found.ssim_brain, found.psnr_brain


def known_from_first(work: Path, seconds: float) -> tuple[TissueModel, ResnetGenerator]:
    """Train generators on the first scanner's pairs, unless they exist."""
    spec = replace(MODELS["semi3d-gan-mse"], width=WIDTH)
    paths = [work / f"first_{kind}.safetensors" for kind in ("tissue", "network")]
    if not all(path.exists() for path in paths):
        pairs = people_of(work, "first", FIRST_PAIRS)
        for path, generator in zip(
            paths, (fit_tissue(pairs), learn(spec, pairs, 4 * seconds, 1)), strict=True
        ):
            state = generator.state_dict()
            save_file({name: tensor.contiguous() for name, tensor in state.items()}, path)
    tissue = load_weights(paths[0], tissue_spec(), "cpu")
    network = load_weights(paths[1], spec, "cpu")
    return tissue, network_of(network)


def make(
    variant: str,
    pairs: Sequence[Volumes],
    seconds: float,
    seed: int,
    first: tuple[TissueModel, ResnetGenerator],
) -> nn.Module:
    """Train a generator on the second scanner's pairs; some variants use the first's."""
    spec = replace(MODELS["semi3d-gan-mse"], width=WIDTH)
    name, _, rate = variant.partition(", early layers × ")
    trainings.EARLY_RATE = float(rate) if rate else EARLY_RATE
    if name == "tissue":
        return fit_tissue(pairs)
    if name == "tissue, first's in mind":
        return fit_tissue(pairs, first[0])
    if name == "from scratch":
        return learn(spec, pairs, seconds, seed)
    if name == "fine-tuned":
        return learn(spec, pairs, seconds, seed, initial=first[1])
    if name == "conditioned":
        spec = replace(spec, condition=tissue_spec())
        return learn(spec, pairs, seconds, seed, tissue=fit_tissue(pairs))
    return {"first's tissue, as it is": first[0], "first's network, as it is": first[1]}[name]


def _key(row: dict[str, str]) -> tuple[int, str]:
    return int(row["pairs"]), row["variant"]


def tell(rows: Sequence[dict[str, str]]) -> None:
    """Print means over people with their 95 % intervals, and differences from ``tissue``."""
    scores: dict[tuple[int, str], dict[str, list[tuple[float, float]]]] = {}
    for row in rows:
        people = scores.setdefault(_key(row), {})
        both = float(row["ssim_brain"]), float(row["psnr_brain"])
        people.setdefault(row["person"], []).append(both)
    means = {
        key: np.array([np.mean(people[person], axis=0) for person in sorted(people)])
        for key, people in scores.items()
    }
    print("| pairs | generator | SSIM | PSNR (dB) | SSIM − tissue | PSNR − tissue | CPU s |")
    print("|---|---|---|---|---|---|---|")
    for pairs, variant in sorted(means, key=lambda key: key[0]):
        own = means[pairs, variant]
        usual = means.get((pairs, "tissue"), np.full_like(own, np.nan))
        taken = np.mean(
            [float(row["cpu_seconds"]) for row in rows if _key(row) == (pairs, variant)]
        )
        cells = [
            f"{mean:.{digits}f} ± {half:.{digits}f}" if np.isfinite(mean) else ""
            for values in (own, own - usual)
            for mean, half, digits in zip(values.mean(axis=0), _half(values), (3, 1), strict=True)
        ]
        print(f"| {pairs} | {variant} | {' | '.join(cells)} | {taken:.0f} |")


def _half(values: np.ndarray) -> np.ndarray:
    """Return half the width of the 95 % interval of the mean over people, by Student's t."""
    number = len(values)
    return stats.t.ppf(0.975, number - 1) * values.std(axis=0, ddof=1) / np.sqrt(number)


def main() -> None:
    """Run what has not been run, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("work", type=Path)
    parser.add_argument("--pairs", type=int, nargs="+", default=[5, 10, 20, 35])
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--seconds", type=float, default=90.0, help="CPU time per network")
    parser.add_argument("--variants", nargs="+", default=list(ALL))
    parser.add_argument("--early-rates", type=float, nargs="*", default=[], help="for early layers")
    parser.add_argument("--threads", type=int, default=2)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    given.work.mkdir(parents=True, exist_ok=True)
    table = given.work / "scores.tsv"
    rows = read_tsv(table) if table.exists() else []
    first = known_from_first(given.work, given.seconds)
    people = people_of(given.work, "second", POOL + JUDGES)
    pool, judges = people[:POOL], people[POOL:]
    variants = [*given.variants, *(f"fine-tuned, early layers × {x:g}" for x in given.early_rates)]
    wanted = [(0, 0, f"first's {kind}, as it is") for kind in ("tissue", "network")]
    wanted += [(n, seed, v) for n in given.pairs for seed in given.seeds for v in variants]
    done = {(int(row["pairs"]), int(row["seed"]), row["variant"]) for row in rows}
    for pairs, seed, variant in (one for one in wanted if one not in done):
        order = np.random.default_rng(seed).permutation(POOL)[:pairs]
        started = time.process_time()
        generator = make(variant, [pool[place] for place in order], given.seconds, seed, first)
        taken = time.process_time() - started
        rows += [
            dict(zip(COLUMNS, map(str, (pairs, seed, variant, *found, taken)), strict=True))
            for found in score(generator, judges)
        ]
        write_tsv(table, COLUMNS, rows)
        print(f"{pairs} pairs, seed {seed}: {variant}, {taken:.0f} s", flush=True)
    tell(rows)


if __name__ == "__main__":
    main()
