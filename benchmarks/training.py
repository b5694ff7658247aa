"""Training steps per second against a plain loop; share of time in the step; samples/s per row.

The plain loop is written here, in float32, eager, contiguous: the same networks, losses, weights,
batches and pools, of torch's own layers, without any optimisation for speed. Both take turns in one
process, block by block, so that other load on the machine slows them equally; the ratio is over
all blocks.

    python benchmarks/training.py --threads 2                   the ratio, width 64, batch 5
    python benchmarks/training.py --threads 2 --rows            samples/s of each row as well
    python benchmarks/training.py --threads 2 --width 16 --losses   both loops in both precisions
"""

import argparse
import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bids_app.synthesis.job import choose_precision, make_fabric
from bids_app.synthesis.losses import build_translator
from bids_app.synthesis.models import MODELS, ModelSpec
from bids_app.synthesis.networks import ReflectConv2d
from bids_app.synthesis.pairs import Batch, Pair, brain_tiles
from bids_app.synthesis.training import ImagePool, Training, shuffled_batches

SHAPE = (157, 189, 136)
SEED = 5


class PlainLoop:
    """Training loop of a Cycle-GAN or Simple-GAN without optimisation for speed.

    ``bfloat16`` runs it under torch's autocast, to measure the effect of that precision.
    """

    def __init__(self, spec: ModelSpec, *, bfloat16: bool = False) -> None:
        random = torch.Generator().manual_seed(SEED)
        self.spec, self.bfloat16 = spec, bfloat16
        self.translators = [build_translator(spec, random) for _ in range(1 + spec.cycle)]
        self.pools = [ImagePool(spec.pool_size, random) for _ in self.translators]
        for translator in self.translators:
            use_own_layers_of_torch(translator.generator)
        betas = (spec.beta1, spec.beta2)
        makers = nn.ModuleList([translator.generator for translator in self.translators])
        judges = nn.ModuleList([translator.discriminator for translator in self.translators])
        self.makers = torch.optim.Adam(makers.parameters(), spec.learning_rate, betas)
        self.judges = torch.optim.Adam(judges.parameters(), spec.learning_rate, betas)

    def step(self, batch: Batch) -> tuple[float, float]:
        """Run a step; return both losses."""
        cast = torch.autocast("cpu", torch.bfloat16) if self.bfloat16 else nullcontext()
        with cast:
            return self._step(batch)

    def _step(self, batch: Batch) -> tuple[float, float]:
        spec, (to_pet, *others) = self.spec, self.translators
        truth = [batch.pet, batch.mri]
        fakes = [to_pet.generator(batch.mri)]
        if others:
            fakes.append(others[0].generator(batch.pet))
        loss: Tensor = torch.zeros(())
        for translator, fake, true in zip(self.translators, fakes, truth, strict=False):
            loss = (
                loss
                + spec.adversarial_weight * (translator.discriminator(fake) - 1).square().mean()
            )
            loss = loss + spec.mse_weight * F.mse_loss(fake, true)
        if others:
            mri_again, pet_again = others[0].generator(fakes[0]), to_pet.generator(fakes[1])
            cycle = F.l1_loss(mri_again, batch.mri) + F.l1_loss(pet_again, batch.pet)
            loss = loss + spec.cycle_weight * cycle
        self.makers.zero_grad()
        loss.backward()
        self.makers.step()
        judged: Tensor = torch.zeros(())
        for translator, pool, fake, true in zip(
            self.translators, self.pools, fakes, truth, strict=False
        ):
            remembered = pool.exchange(fake.detach())
            judged = judged + translator.discriminator(remembered).square().mean()
            judged = judged + (translator.discriminator(true) - 1).square().mean()
        self.judges.zero_grad()
        judged.backward()
        self.judges.step()
        return float(loss.detach()), float(judged.detach())


def use_own_layers_of_torch(network: nn.Module) -> None:
    """Replace our convolutions with reflection by those of torch, with the same weights."""
    for name, layer in network.named_children():
        use_own_layers_of_torch(layer)
        if isinstance(layer, ReflectConv2d):
            plain = nn.Conv2d(
                layer.in_channels,
                layer.out_channels,
                layer.kernel_size,
                padding=layer.padding,
                padding_mode="reflect",
            )
            plain.load_state_dict(layer.state_dict())
            setattr(network, name, plain)


def pair(spec: ModelSpec, shape: tuple[int, int, int] = SHAPE) -> Pair:
    """Simulate a T1w and a PET, smooth inside an ellipsoid, as large as the paper's."""
    rng = np.random.default_rng(SEED)
    places = np.stack(np.meshgrid(*(np.linspace(-1, 1, side) for side in shape), indexing="ij"))
    brain = (places**2).sum(axis=0) < 0.8
    waves = sum(np.sin(rng.normal(0, 6, 3) @ places.reshape(3, -1) + k) for k in range(8))
    t1w = np.where(brain, 0.5 + 0.06 * waves.reshape(shape), 0).clip(0, 1).astype(np.float32)
    t1w, pet = (np.asfortranarray(volume) for volume in (t1w, np.where(brain, 1 - t1w, 0)))
    places_of = brain_tiles(spec.tiling, torch.from_numpy(brain)) if spec.tiles_per_volume else ()
    return Pair(torch.from_numpy(t1w), torch.from_numpy(pet.astype(np.float32)), places_of)


def start(spec: ModelSpec, precision: str | None = None) -> Training:
    """Start a training as the app does on this machine."""
    fabric = make_fabric("cpu", precision or choose_precision("cpu"))
    return Training(spec, fabric, torch.Generator().manual_seed(SEED))


def seconds(work: Callable[[], object]) -> float:
    """Measure the wall time of a call, in s."""
    before = time.perf_counter()
    work()
    return time.perf_counter() - before


def compare(spec: ModelSpec, steps: int, block: int) -> None:
    """Run both loops in turn on the same batches; print the ratio of times, and the losses."""
    batches = [b for _ in range(50) for b in shuffled_batches([pair(spec)], spec, _random())]
    batches = batches[:steps]
    plain, ours = PlainLoop(spec), start(spec)
    spent = {"plain": 0.0, "ours": 0.0}
    lines: list[tuple[float, float, float, float]] = []
    for first in range(0, steps, block):
        part = batches[first : first + block]
        theirs: list[tuple[float, float]] = []
        own: list = []
        spent["plain"] += seconds(lambda: theirs.extend(plain.step(b) for b in part))  # noqa: B023 - called at once
        spent["ours"] += seconds(lambda: own.extend(ours.step(b) for b in part))  # noqa: B023 - called at once
        lines += [(*a, b.generator, b.discriminator) for a, b in zip(theirs, own, strict=True)]
        ratio = spent["plain"] / spent["ours"]
        done = first + len(part)
        print(
            f"{done:3d} steps: plain {spent['plain'] / done:.2f} s, ours "
            f"{spent['ours'] / done:.2f} s per step, ratio {ratio:.2f}; generator loss "
            f"{lines[-1][0]:.3f} / {lines[-1][2]:.3f}, discriminator {lines[-1][1]:.3f} / "
            f"{lines[-1][3]:.3f}",
            flush=True,
        )
    table = np.array(lines)
    apart = np.abs(table[:, 2] - table[:, 0]) / table[:, 0]
    print(f"generator losses differ by {apart.mean():.2%} on average, {apart.max():.2%} at most")


def agree(spec: ModelSpec, steps: int) -> None:
    """Print differences of losses between loops and precisions, on the same half-size batches."""
    some = pair(spec, tuple(side // 2 for side in SHAPE))
    batches = [b for _ in range(50) for b in shuffled_batches([some], spec, _random())][:steps]
    plain, cast = PlainLoop(spec), PlainLoop(spec, bfloat16=True)
    ours, own_cast = start(spec, "32-true"), start(spec, "bf16-mixed")
    table = np.array(
        [
            [plain.step(b)[0], cast.step(b)[0], ours.step(b).generator, own_cast.step(b).generator]
            for b in batches
        ]
    )
    for name, column in (("plain in bfloat16", 1), ("ours in float32", 2), ("ours in bfloat16", 3)):
        apart = np.abs(table[:, column] / table[:, 0] - 1)
        means = table[:, column].mean() / table[:, 0].mean() - 1
        print(
            f"{name} against plain in float32, {steps} steps: generator losses differ by "
            f"{apart.mean():.3%} on average, {apart.max():.2%} at most (first 5 steps "
            f"{apart[:5].max():.3%}); their mean by {means:+.2%}; at the end "
            f"{table[-1, column]:.3f} / {table[-1, 0]:.3f}"
        )


def _random() -> torch.Generator:
    return torch.Generator().manual_seed(SEED)


def matmul_peak(threads: int) -> float:
    """Measure the machine's fastest bfloat16 or float32 matrix product, in GFLOP/s."""
    best = 0.0
    for kind in (torch.float32, torch.bfloat16):
        a, b = (torch.randn(2048, 2048).to(kind) for _ in range(2))
        torch.mm(a, b)
        took = min(seconds(lambda: torch.mm(a, b)) for _ in range(5))  # noqa: B023 - called at once
        print(f"matmul {kind}: {2 * 2048**3 / took / 1e9:.0f} GFLOP/s with {threads} threads")
        best = max(best, 2 * 2048**3 / took / 1e9)
    return best


def flops_of(spec: ModelSpec, size: tuple[int, ...]) -> float:
    """Count the FLOPs of one sample's training step: forward, and twice as many backward."""
    from torch.utils.flop_counter import FlopCounterMode

    translator = build_translator(spec, _random())
    x = torch.zeros(1, spec.tiling.channels, *size)
    counts = []
    for network in (translator.generator, translator.discriminator):
        with FlopCounterMode(display=False) as counter:
            network(x)
        counts.append(counter.get_total_flops())
    generator, judge = counts
    # Simple-GAN: G forward and backward; D once for G's loss (forward, gradient of its input), and
    # twice for its own. Cycle-GAN: four generator passes, two discriminators.
    passes = (4 if spec.cycle else 1) * 3 * generator
    return passes + (2 if spec.cycle else 1) * (2 + 2 * 3) * judge


def rates(steps: int, peak: float) -> None:
    """Print samples per second of each row at the paper's settings, and the share of the step."""
    for name, spec in MODELS.items():
        training, one = start(spec), pair(spec)
        inside = 0.0
        batches = shuffled_batches(
            [one],
            replace(spec, tiles_per_volume=steps * spec.batch_size)
            if spec.tiles_per_volume
            else spec,
            _random(),
        )
        began, count, size = time.perf_counter(), 0, ()
        for batch, _ in zip(batches, range(steps + 1), strict=False):
            if count == 0:  # warm-up
                training.step(batch)
                began, inside = time.perf_counter(), 0.0
            else:
                inside += seconds(lambda: training.step(batch))  # noqa: B023 - called at once
            count += 1
            size = tuple(batch.mri.shape[2:])
        whole = time.perf_counter() - began
        rate = spec.batch_size * (count - 1) / whole
        used = rate * flops_of(spec, size) / 1e9 / peak
        print(
            f"{name}: {rate:.2f} samples/s, {inside / whole:.1%} of the time in the step, "
            f"{used:.0%} of the matmul peak",
            flush=True,
        )


def main() -> None:
    """Run the requested measurements and print the results."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--block", type=int, default=5)
    parser.add_argument("--width", type=int, default=64)
    parser.add_argument("--rows", action="store_true")
    parser.add_argument("--losses", action="store_true")
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    spec = replace(MODELS["semi3d-cyclegan-mse"], width=given.width)
    if given.losses:
        agree(spec, given.steps)
        return
    peak = matmul_peak(given.threads)
    compare(spec, given.steps, given.block)
    if given.rows:
        rates(max(given.steps // 10, 2), peak)


if __name__ == "__main__":
    main()
