"""Train networks on hundreds of simulated pairs, and compare them with the tissue model.

    python benchmarks/fresh_pairs.py WORK --labelmaps DIR

``--pairs`` pairs of T1w and PET are simulated on label maps 1 to 12, as for the default generator:
each on another warped copy of a map, with another contrast, scanner and uptake, at 1.5 mm, of which
every second voxel along each axis is kept. 24 held-out pairs are simulated on maps 13 and 14.
Networks are the paper's semi-3D generator, starting from the tissue model or alone, and a network
of the whole volume. They are trained on the MSE alone, by AdamW with a falling rate, and their
weights are averaged exponentially. Predictions are scaled to the brain's mean, and scored in the
brain. Results are kept in WORK; to resume, give the same command again. A pair takes about a
second of CPU time, and a network ``--minutes``.
"""

from __future__ import annotations

import argparse
import copy
import json
import math
import time
from pathlib import Path

import default_generator as recipe
import numpy as np
import torch
from torch import Tensor, nn

from bids_app.imaging.intensity import TIMES_MEAN, scale_to_unit
from bids_app.imaging.similarity import measure
from bids_app.imaging.volume import Grid, Volume, grid_of_box
from bids_app.settings import Settings
from bids_app.simulation.anatomy import Anatomy, coordinates
from bids_app.simulation.geometry import to_indices
from bids_app.simulation.images import usual_pattern
from bids_app.synthesis.inference import predict
from bids_app.synthesis.networks import NEAREST, ConditionedGenerator, ResnetGenerator

FINE, COARSE = 1.5, 3.0  # mm
HELD_OUT = 12  # pairs of each held-out map
KINDS = ("semi3d-tissue", "semi3d", "3d-tissue")
RATE, BATCH, AVERAGING = 5e-4, 8, 0.999
WARM_UP, SHOWN_EVERY = 200, 300.0  # steps; CPU seconds
LARGEST_GRADIENT = 0.1
SEED = 2027
ENOUGH = 120  # pairs for the tissue model


def anatomies(maps: Path, work: Path) -> dict[str, Anatomy]:
    """Return the brain of each label map in MNI space, at 1.5 mm."""
    grid = grid_of_box(Settings.bounding_box, FINE)
    mni = coordinates(grid)
    found = {}
    for path in sorted(maps.glob("*.nii.gz")):
        brain = recipe.anatomy_of(recipe.register(path, work))
        places = np.rint(to_indices(mni, recipe.GRID.affine)).astype(int)
        places = np.clip(places, 0, np.array(brain.labels.shape) - 1)
        labels = brain.labels[tuple(np.moveaxis(places, -1, 0))]
        found[path.name[-9:-7]] = Anatomy(labels, grid.affine, mni)
    return found


def paint(brain: Anatomy, pattern: Volume, seed: list[int], path: Path) -> None:
    """Simulate a pair at 1.5 mm, and store it at 3 mm."""
    if path.exists():
        return
    made = recipe.paint(brain, pattern, np.random.default_rng(seed))
    parts = {name: part[::2, ::2, ::2] for name, part in vars(made).items()}
    for name in ("t1w", "pet", "ceiling"):
        parts[name] = np.where(parts["brain"], parts[name], 0).astype(np.float16)
    temporary = path.with_suffix(".part.npz")
    np.savez(temporary, **parts)
    temporary.rename(path)


def read(path: Path) -> recipe.Painting:
    """Read a stored pair."""
    with np.load(path) as kept:
        t1w, pet, ceiling = (kept[key].astype(np.float32) for key in ("t1w", "pet", "ceiling"))
        return recipe.Painting(t1w, pet, kept["brain"], ceiling)


def paint_all(given: argparse.Namespace) -> tuple[list[Path], list[Path]]:
    """Simulate all pairs that do not exist yet, each ``--of`` processes taking their share."""
    pairs, held_out, wanted = [], [], []
    names = [f"{number:02}" for number in range(1, 15)]
    training = [name for name in names if name not in recipe.HELD_OUT]
    for name in recipe.HELD_OUT:
        for number in range(HELD_OUT):
            held_out.append(given.work / f"held_{name}_{number:02}.npz")
            wanted.append((name, [SEED, 0, int(name), number], held_out[-1]))
    for number in range(given.pairs):
        name = training[number % len(training)]
        pairs.append(given.work / f"pair_{number:04}.npz")
        wanted.append((name, [SEED, 1, int(name), number], pairs[-1]))
    missing = [one for one in wanted[given.share :: given.of] if not one[2].exists()]
    if missing:
        brains = anatomies(given.labelmaps, given.work)
        pattern = usual_pattern()
        for name, seed, path in missing:
            paint(brains[name], pattern, seed, path)
    return pairs, held_out


class Whole(nn.Module):
    """Conditioned three-dimensional network of the whole volume: T1w and prediction to PET."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.network = ResnetGenerator(3, 1, 4, width, more_channels=1, activation=nn.Identity)
        for parameter in self.network.layers[-2].parameters():
            nn.init.zeros_(parameter)

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, 2, I, J, K) to (N, 1, I, J, K)."""
        return torch.sigmoid(self.network(x).float() + torch.logit(x[:, 1:].float(), NEAREST))


def build(kind: str, width: int) -> nn.Module:
    """Build a network that maps T1w, and the tissue model's prediction, to PET."""
    torch.manual_seed(SEED)
    if kind == "semi3d":
        return ResnetGenerator(2, 3, 9, width)
    if kind == "semi3d-tissue":
        network = ConditionedGenerator(nn.Identity(), 2, 3, 9, width)
        network.start_at_tissue()
        return network
    return Whole(width // 2)


Case = tuple[Tensor, Tensor, Tensor, Tensor]


def draw_batch(cases: list[Case], kind: str, random: np.random.Generator) -> list[Tensor]:
    """Draw tiles: input, PET and brain."""
    tiles = []
    for _ in range(1 if kind == "3d-tissue" else BATCH):
        t1w, tissue, pet, brain = cases[random.integers(len(cases))]
        if kind == "3d-tissue":
            tiles.append((torch.stack([t1w, tissue]), pet[None], brain[None]))
            continue
        at = random.integers(pet.shape[2] - 2)
        cut = [volume[:, :, at : at + 3].movedim(-1, 0) for volume in (t1w, tissue, pet, brain)]
        x = cut[0] if kind == "semi3d" else torch.cat(cut[:2])
        tiles.append((x, cut[2], cut[3]))
    return [torch.stack(parts).float() for parts in zip(*tiles, strict=True)]


@torch.inference_mode()
def guess(network: nn.Module, case: Case, kind: str) -> Volume:
    """Predict a PET; triplets overlap."""
    t1w, tissue, *_ = (part.float() for part in case)
    with torch.autocast("cpu", torch.bfloat16):
        if kind == "3d-tissue":
            return network(torch.stack([t1w, tissue])[None])[0, 0].float().numpy()
        total, count = torch.zeros_like(t1w), torch.zeros(t1w.shape[2])
        for at in range(t1w.shape[2] - 2):
            x = t1w[:, :, at : at + 3].movedim(-1, 0)
            if kind == "semi3d-tissue":
                x = torch.cat([x, tissue[:, :, at : at + 3].movedim(-1, 0)])
            total[:, :, at : at + 3] += network(x[None])[0].float().movedim(0, -1)
            count[at : at + 3] += 1
        return (total / count).numpy()


def score(pet: Volume, real: recipe.Painting) -> tuple[float, float]:
    """Return SSIM and PSNR in the brain of a prediction on the scale of the brain's mean."""
    pet = np.where(real.brain, pet, 0).astype(np.float32)
    pet = scale_to_unit(pet, real.brain, times_mean=TIMES_MEAN)
    found = measure(pet, real.pet, real.brain)
    return found.ssim_brain, found.psnr_brain


def update(
    network: nn.Module, averaged: nn.Module, optimizer: torch.optim.Optimizer, tiles: list[Tensor]
) -> None:
    """Take one step, and move the averaged weights."""
    x, pet, brain = tiles
    with torch.autocast("cpu", torch.bfloat16):
        predicted = network(x)
    loss = ((predicted.float() - pet).square() * brain).sum() / brain.sum().clamp(1)
    optimizer.zero_grad()
    loss.backward()
    nn.utils.clip_grad_norm_(network.parameters(), LARGEST_GRADIENT)
    optimizer.step()
    for mean, parameter in zip(averaged.parameters(), network.parameters(), strict=True):
        mean.lerp_(parameter.detach(), 1 - AVERAGING)


def train(
    kind: str,
    cases: list[Case],
    test: list[tuple[Case, recipe.Painting]],
    given: argparse.Namespace,
) -> list[tuple[float, float]]:
    """Train a network for ``--minutes`` of CPU time; score its averaged weights as it goes."""
    path, limit = given.work / f"{kind}.pt", 60 * given.minutes
    network = build(kind, given.width)
    averaged = copy.deepcopy(network).requires_grad_(requires_grad=False)
    optimizer = torch.optim.AdamW(network.parameters(), RATE, weight_decay=1e-4)
    parts = {"network": network, "averaged": averaged, "optimizer": optimizer}
    random, used, step = np.random.default_rng(SEED), 0.0, 0
    if path.exists():
        state = torch.load(path, weights_only=False)
        for name, part in parts.items():
            part.load_state_dict(state[name])
        random, used, step = state["random"], state["used"], state["step"]
    shown = used
    while used < limit:
        began = time.process_time()
        for group in optimizer.param_groups:
            falling = 0.5 * (1 + math.cos(math.pi * used / limit))
            group["lr"] = RATE * falling * min(1, (step + 1) / WARM_UP)
        update(network, averaged, optimizer, draw_batch(cases, kind, random))
        step += 1
        used += time.process_time() - began
        if used - shown > SHOWN_EVERY or used >= limit:
            shown = used
            state = {name: part.state_dict() for name, part in parts.items()}
            torch.save(state | {"random": random, "used": used, "step": step}, path)
            few = [score(guess(averaged, case, kind), real) for case, real in test[::4]]
            ssim, psnr = np.mean(few, axis=0)
            print(f"{kind}: {used:.0f} CPU s, step {step}, {ssim:.4f} {psnr:.2f}", flush=True)
    return [score(guess(averaged, case, kind), real) for case, real in test]


def main() -> None:
    """Simulate, fit, train and compare."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("work", type=Path)
    parser.add_argument("--labelmaps", type=Path, required=True)
    parser.add_argument("--pairs", type=int, default=360)
    parser.add_argument("--minutes", type=float, default=40, help="of CPU time per network")
    parser.add_argument("--width", type=int, default=32)
    parser.add_argument("--kinds", nargs="+", default=KINDS)
    parser.add_argument("--paint-only", action="store_true")
    parser.add_argument("--share", type=int, default=0, help="of the pairs to simulate, from 0")
    parser.add_argument("--of", type=int, default=1, help="shares in all")
    given = parser.parse_args()
    torch.set_num_threads(1)
    given.work.mkdir(parents=True, exist_ok=True)
    paths, held_paths = paint_all(given)
    if given.paint_only:
        return
    pairs, real = ([read(path) for path in some] for some in (paths, held_paths))
    grid = Grid(real[0].pet.shape, grid_of_box(Settings.bounding_box, COARSE).affine)
    model = recipe.fit(pairs[:ENOUGH], grid)
    few = recipe.fit(pairs[:24], grid)

    def as_case(painting: recipe.Painting) -> Case:
        tissue = np.clip(predict(painting.t1w, model, model.spec.tiling), 0, 1)
        parts = (painting.t1w, tissue, painting.pet, painting.brain)
        return tuple(torch.from_numpy(np.asarray(part, np.float16)) for part in parts)

    cases, held = ([as_case(one) for one in some] for some in (pairs, real))
    mean = np.mean([pair.pet for pair in pairs], axis=0)
    rows = {
        "tissue model, 24 pairs": [score(predict(x.t1w, few, few.spec.tiling), x) for x in real],
        "tissue model": [score(predict(x.t1w, model, model.spec.tiling), x) for x in real],
        "ceiling": [score(x.ceiling, x) for x in real],
        "mean PET": [score(mean, x) for x in real],
    }
    report(rows)
    for kind in given.kinds:
        rows[kind] = train(kind, cases, list(zip(held, real, strict=True)), given)
        report(rows)
    (given.work / "scores.json").write_text(json.dumps(rows))


def report(rows: dict[str, list[tuple[float, float]]]) -> None:
    """Print the scores, and their difference from those of the tissue model."""
    base = np.array(rows["tissue model"])
    for name, values in rows.items():
        ssim, psnr = np.mean(values, axis=0)
        apart = np.array(values) - base
        d, sd = apart.mean(0), apart.std(0, ddof=1)
        better = (apart > 0).sum(0)
        print(
            f"{name:24} {ssim:.4f} {psnr:.2f}   {d[0]:+.4f} (SD {sd[0]:.4f}, {better[0]} of "
            f"{len(apart)}) {d[1]:+.2f} (SD {sd[1]:.2f}, {better[1]})",
            flush=True,
        )


if __name__ == "__main__":
    main()
