"""The training loop of a row of Table 1. It yields epochs; whoever iterates saves and stops."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import torch
from lightning_fabric import Fabric
from torch import Tensor, nn

from bids_app.synthesis.losses import discriminator_loss, generator_loss
from bids_app.synthesis.models import ModelSpec
from bids_app.synthesis.pool import ImagePool
from bids_app.synthesis.translator import Translator, build_translator


@dataclass(frozen=True)
class Losses:
    """Losses of one step, or their means over an epoch; unitless."""

    generator: float
    discriminator: float


@dataclass(frozen=True)
class Epoch:
    """An epoch that has been run, counted from 1, and the mean losses over its steps."""

    number: int
    losses: Losses


def learning_rate(spec: ModelSpec, epoch: int) -> float:
    """Give the learning rate of an epoch, counted from 0.

    Constant, then linear to 0: Zotova et al. (2021), section 3.2.

    Examples
    --------
    >>> from bids_app.synthesis.models import MODELS
    >>> [learning_rate(MODELS["semi3d-gan"], epoch) for epoch in (0, 99, 150, 200)]
    [0.0002, 0.0002, 0.0001, 0.0]
    """
    falling = spec.epochs - spec.constant_epochs
    past = max(epoch - spec.constant_epochs, 0)
    return spec.learning_rate * (1 - past / falling if past else 1.0)


class Training:
    """Networks in the middle of being trained, with all that is needed to go on.

    Parameters
    ----------
    spec : ModelSpec
        A row of Table 1.
    fabric : Fabric
        Where, and in which precision, to compute.
    random : torch.Generator
        On the CPU; draws the first weights, the order of tiles, and from the pools.
    """

    def __init__(self, spec: ModelSpec, fabric: Fabric, random: torch.Generator) -> None:
        self.spec, self.fabric, self.random = spec, fabric, random
        self.epoch = 0
        plain = [build_translator(spec, random) for _ in range(1 + spec.cycle)]
        self.generators = nn.ModuleList([one.generator for one in plain])
        self.discriminators = nn.ModuleList([one.discriminator for one in plain])
        self.generator_optimizer = self._adam(self.generators)
        self.discriminator_optimizer = self._adam(self.discriminators)
        self.translators = [
            Translator(fabric.setup_module(one.generator), fabric.setup_module(one.discriminator))
            for one in plain
        ]
        self.pools = [ImagePool(spec.pool_size, random) for _ in plain]

    def _adam(self, networks: nn.Module) -> torch.optim.Adam:
        spec = self.spec
        betas = (spec.beta1, spec.beta2)
        return torch.optim.Adam(networks.parameters(), lr=spec.learning_rate, betas=betas)

    def step(self, mri: Tensor, pet: Tensor) -> Losses:
        """Improve all networks once, by a batch of true pairs.

        Parameters
        ----------
        mri, pet : Tensor, (N, channels, *size)
            In [0, 1], on the device of the networks.
        """
        spec, to_pet = self.spec, self.translators[0]
        to_mri = self.translators[1] if spec.cycle else None
        self.discriminators.requires_grad_(requires_grad=False)
        loss, made = generator_loss(
            to_pet, to_mri, mri, pet,
            adversarial_weight=spec.adversarial_weight,
            cycle_weight=spec.cycle_weight,
            mse_weight=spec.mse_weight,
        )  # fmt: skip
        self.generator_optimizer.zero_grad()
        self.fabric.backward(loss)
        self.generator_optimizer.step()
        self.discriminators.requires_grad_(requires_grad=True)
        judged = self._judge(to_pet, self.pools[0], pet, made.fake_pet)
        if to_mri is not None and made.fake_mri is not None:
            judged = judged + self._judge(to_mri, self.pools[1], mri, made.fake_mri)
        self.discriminator_optimizer.zero_grad()
        self.fabric.backward(judged)
        self.discriminator_optimizer.step()
        return Losses(float(loss.detach()), float(judged.detach()))

    @staticmethod
    def _judge(translator: Translator, pool: ImagePool, real: Tensor, fake: Tensor) -> Tensor:
        remembered = pool.exchange(fake.detach())
        return discriminator_loss(
            translator.discriminator(real), translator.discriminator(remembered)
        )

    def run_epoch(self, batches: Iterable[tuple[Tensor, Tensor]]) -> Epoch:
        """Take a step a batch, and count the epoch.

        Raises
        ------
        FloatingPointError
            If a loss is not finite.
        """
        for optimizer in (self.generator_optimizer, self.discriminator_optimizer):
            for group in optimizer.param_groups:
                group["lr"] = learning_rate(self.spec, self.epoch)
        total = torch.zeros(2, dtype=torch.float64)
        steps = 0
        for mri, pet in batches:
            losses = self.step(mri.to(self.fabric.device), pet.to(self.fabric.device))
            total += torch.tensor([losses.generator, losses.discriminator])
            steps += 1
            if not torch.isfinite(total).all():
                raise FloatingPointError(f"a loss is not finite in epoch {self.epoch + 1}")
        self.epoch += 1
        generator, discriminator = (total / max(steps, 1)).tolist()
        return Epoch(self.epoch, Losses(generator, discriminator))


def shuffled_batches(
    pairs: Sequence[tuple[Tensor, Tensor]], spec: ModelSpec, random: torch.Generator
) -> Iterator[tuple[Tensor, Tensor]]:
    """Cut all tiles of all pairs, in random order, the last batch possibly smaller.

    Parameters
    ----------
    pairs : sequence of (Tensor, Tensor), each (I, J, K)
        T1w and PET of one person on one grid, in [0, 1].
    spec : ModelSpec
        Gives tiling and batch size.
    random : torch.Generator
        On the CPU; draws the order.

    Yields
    ------
    Tensor, Tensor
        Tiles of T1w and of PET, (N, channels, *size).
    """
    places = [
        (mri, pet, index) for mri, pet in pairs for index in range(spec.tiling.count(mri.shape))
    ]
    for chosen in torch.randperm(len(places), generator=random).split(spec.batch_size):
        batch = [places[int(place)] for place in chosen]
        yield (
            torch.stack([spec.tiling.cut(mri, index) for mri, _, index in batch]),
            torch.stack([spec.tiling.cut(pet, index) for _, pet, index in batch]),
        )


def train(training: Training, pairs: Sequence[tuple[Tensor, Tensor]]) -> Iterator[Epoch]:
    """Run the epochs that are left, one at a time.

    Parameters
    ----------
    training : Training
        New, or restored from a checkpoint.
    pairs : sequence of (Tensor, Tensor), each (I, J, K)
        As :func:`shuffled_batches`.
    """
    while training.epoch < training.spec.epochs:
        yield training.run_epoch(shuffled_batches(pairs, training.spec, training.random))
