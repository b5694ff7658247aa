"""The training loop of a row of Table 1. It yields epochs; whoever iterates saves and stops."""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Final

import torch
from lightning_fabric import Fabric
from torch import Tensor, nn

from bids_app.synthesis.losses import discriminator_loss, generator_loss
from bids_app.synthesis.models import ModelSpec
from bids_app.synthesis.pairs import Batch, Pair
from bids_app.synthesis.parallel import Team
from bids_app.synthesis.pool import ImagePool
from bids_app.synthesis.translator import Translator, build_translator

# Channels as the innermost axis: what convolutions of one thread group read together, faster here.
LAYOUTS: Final = {2: torch.channels_last, 3: torch.channels_last_3d}


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
        Where, and in which precision, to compute. Launched; with several processes, each holds
        the same networks and works on its share of every batch.
    random : torch.Generator
        On the CPU; draws the first weights, the order of tiles, and from the pools. Alike in all
        processes.
    """

    def __init__(self, spec: ModelSpec, fabric: Fabric, random: torch.Generator) -> None:
        self.spec, self.fabric, self.random = spec, fabric, random
        self.team = Team(fabric)
        self.epoch = 0
        plain = [build_translator(spec, random) for _ in range(1 + spec.cycle)]
        self.generators = nn.ModuleList([one.generator for one in plain])
        self.discriminators = nn.ModuleList([one.discriminator for one in plain])
        layout = {"memory_format": LAYOUTS[spec.tiling.spatial_dims]}
        for networks in (self.generators, self.discriminators):
            networks.to(**layout)  # type: ignore[call-overload]
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

    @contextmanager
    def _own_gradients(self) -> Iterator[None]:
        """Keep Fabric from averaging gradients: a step averages them once, at its end."""
        with ExitStack() as stack:
            if self.team.size > 1:
                for one in self.translators:
                    for network in (one.generator, one.discriminator):
                        unsynced = self.fabric.no_backward_sync(network)  # type: ignore[arg-type]
                        stack.enter_context(unsynced)
            yield

    def step(self, batch: Batch) -> Losses:
        """Improve all networks once, by a batch of true pairs."""
        with self._own_gradients():
            return self._step(batch.to(self.fabric.device))

    def _step(self, batch: Batch) -> Losses:
        spec, to_pet = self.spec, self.translators[0]
        to_mri = self.translators[1] if spec.cycle else None
        weight = self.team.weight(batch.total)
        self.discriminators.requires_grad_(requires_grad=False)
        loss, made = generator_loss(
            to_pet, to_mri, batch.mri, batch.pet,
            adversarial_weight=spec.adversarial_weight,
            cycle_weight=spec.cycle_weight,
            mse_weight=spec.mse_weight,
        )  # fmt: skip
        self._improve(self.generators, self.generator_optimizer, weight * loss)
        self.discriminators.requires_grad_(requires_grad=True)
        judged = self._judge(to_pet, self.pools[0], batch.pet, made.fake_pet, batch.total)
        if to_mri is not None and made.fake_mri is not None:
            judged = judged + self._judge(
                to_mri, self.pools[1], batch.mri, made.fake_mri, batch.total
            )
        self._improve(self.discriminators, self.discriminator_optimizer, weight * judged)
        return Losses(float(weight * loss.detach()), float(weight * judged.detach()))

    def _improve(self, networks: nn.Module, optimizer: torch.optim.Adam, loss: Tensor) -> None:
        optimizer.zero_grad()
        self.fabric.backward(loss)
        self.team.average_gradients(networks)
        optimizer.step()

    def _judge(
        self, translator: Translator, pool: ImagePool, real: Tensor, fake: Tensor, total: int
    ) -> Tensor:
        remembered = pool.exchange(self.team.gather(fake.detach(), total))
        own = torch.stack(self.team.share(list(remembered)))
        return discriminator_loss(translator.discriminator(real), translator.discriminator(own))

    def run_epoch(self, batches: Iterable[Batch]) -> Epoch:
        """Take a step a batch, and count the epoch.

        Raises
        ------
        FloatingPointError
            If a loss, or a weight after the last step, is not finite.
        """
        for optimizer in (self.generator_optimizer, self.discriminator_optimizer):
            for group in optimizer.param_groups:
                group["lr"] = learning_rate(self.spec, self.epoch)
        total = torch.zeros(2, dtype=torch.float64)
        steps = 0
        for batch in batches:
            losses = self.step(batch)
            total += torch.tensor([losses.generator, losses.discriminator])
            steps += 1
            if not torch.isfinite(total).all():
                raise FloatingPointError(f"a loss is not finite in epoch {self.epoch + 1}")
        weights = [*self.generators.parameters(), *self.discriminators.parameters()]
        if not all(torch.isfinite(one).all() for one in weights):
            raise FloatingPointError(f"a weight is not finite in epoch {self.epoch + 1}")
        self.epoch += 1
        mean = self.team.average(total.to(self.fabric.device) / max(steps, 1))
        generator, discriminator = mean.tolist()
        return Epoch(self.epoch, Losses(generator, discriminator))


def shuffled_batches(
    pairs: Sequence[Pair], spec: ModelSpec, random: torch.Generator, team: Team | None = None
) -> Iterator[Batch]:
    """Cut the tiles of an epoch out of all pairs, in random order, the last batch possibly smaller.

    Parameters
    ----------
    pairs : sequence of Pair
        T1w and PET of one person each.
    spec : ModelSpec
        Gives tiling, batch size, and how many tiles are drawn from a volume.
    random : torch.Generator
        On the CPU; draws the order.
    team : Team, optional
        Processes that share each batch; by default this one has it whole.
    """
    places = [(pair, index) for pair in pairs for index in _chosen(pair, spec, random)]
    for chosen in torch.randperm(len(places), generator=random).split(spec.batch_size):
        own = [places[int(place)] for place in (chosen if team is None else team.share(chosen))]
        yield Batch(
            torch.stack([spec.tiling.cut(pair.mri, index) for pair, index in own]),
            torch.stack([spec.tiling.cut(pair.pet, index) for pair, index in own]),
            len(chosen),
        )


def _chosen(pair: Pair, spec: ModelSpec, random: torch.Generator) -> list[int]:
    """Choose the tiles of a volume that an epoch sees: all that count, or some of those."""
    if not spec.tiles_per_volume:
        everything = range(spec.tiling.count(tuple(pair.mri.shape)))
        return list(pair.places if pair.places else everything)
    order = torch.randperm(len(pair.places), generator=random)[: spec.tiles_per_volume]
    return [pair.places[int(place)] for place in order]


def train(training: Training, pairs: Sequence[Pair]) -> Iterator[Epoch]:
    """Run the epochs that are left, one at a time.

    Parameters
    ----------
    training : Training
        New, or restored from a checkpoint.
    pairs : sequence of Pair
        T1w and PET of one person each.
    """
    while training.epoch < training.spec.epochs:
        batches = shuffled_batches(pairs, training.spec, training.random, training.team)
        yield training.run_epoch(batches)
