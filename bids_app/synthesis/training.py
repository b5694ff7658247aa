"""Training loop of a row of Table 1, which yields epochs; the caller saves and stops.

Several processes can train the same networks together, each on its share of every batch. Their
result is that of one process on whole batches: losses are means over the samples of a batch, so
gradients are averaged over all samples, and the pools of earlier fakes, which keep a discriminator
from forgetting, receive the fakes in the order of the batch.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, replace
from math import isnan, nan
from typing import TYPE_CHECKING, Final, TypeVar, cast

import torch
from torch import Tensor, nn

from bids_app.synthesis.losses import (
    Translator,
    build_translator,
    discriminator_loss,
    generator_loss,
)
from bids_app.synthesis.models import ModelSpec
from bids_app.synthesis.networks import PatchDiscriminator, ResnetGenerator, network_of
from bids_app.synthesis.pairs import Batch, Pair

if TYPE_CHECKING:
    from lightning_fabric import Fabric


class ImagePool:
    """Pool of earlier fakes: Zhu et al. (2017), section 4, after Shrivastava et al. (2017).

    Parameters
    ----------
    size : int
        Number of fakes to keep; 0 for none.
    random : torch.Generator
        Source of randomness for the exchange, on the CPU.
    """

    def __init__(self, size: int, random: torch.Generator) -> None:
        self.size, self.random = size, random
        self.images: list[Tensor] = []

    def exchange(self, fakes: Tensor) -> Tensor:
        """Exchange each fake, with probability 1/2, for an older one from the pool.

        Parameters
        ----------
        fakes : Tensor, (N, channels, *size)
            New fakes, detached.

        Returns
        -------
        Tensor, (N, channels, *size)
            New or older fakes. Until the pool is full, new fakes are stored and returned.
        """
        return torch.stack([self._exchange_fake(fake) for fake in fakes])

    def _exchange_fake(self, fake: Tensor) -> Tensor:
        if len(self.images) < self.size:
            self.images.append(fake.clone())
            return fake
        if not self.size or torch.rand((), generator=self.random) < 0.5:
            return fake
        place = int(torch.randint(self.size, (), generator=self.random))
        older = self.images[place]
        self.images[place] = fake.clone()
        return older


Item = TypeVar("Item")


class Team:
    """Group of all processes of a Fabric, of which there may be only one.

    Parameters
    ----------
    fabric : Fabric
        Launched Fabric.
    """

    def __init__(self, fabric: Fabric) -> None:
        self.fabric = fabric
        self.rank, self.size = fabric.global_rank, fabric.world_size

    def share(self, batch: Sequence[Item]) -> list[Item]:
        """Return every ``size``-th item for this process, or the first one if there is none."""
        items = batch[self.rank :: self.size]
        return list(items if len(items) else batch[:1])

    def weight(self, total: int) -> float:
        """Return the weight of this process's share of ``total`` samples in means over processes.

        It is 0 for a process without a sample of its own, if there are fewer samples than
        processes.
        """
        return len(range(self.rank, total, self.size)) * self.size / total

    def gather(self, share: Tensor, total: int) -> Tensor:
        """Gather the shares of a batch from all processes, in the order of the batch.

        Parameters
        ----------
        share : Tensor, (n, ...)
            Share of this process.
        total : int
            Number of samples in the whole batch.

        Returns
        -------
        Tensor, (total, ...)
            Whole batch, the same in all processes.
        """
        if self.size == 1:
            return share
        largest = -(-total // self.size)
        filling = share[:1].expand(largest - len(share), *share.shape[1:])
        shares = cast("Tensor", self.fabric.all_gather(torch.cat([share, filling])))
        return shares.transpose(0, 1).flatten(0, 1)[:total]

    def average_gradients(self, networks: nn.Module) -> None:
        """Replace gradients by their mean over all processes."""
        if self.size == 1:
            return
        gradients = [p.grad for p in networks.parameters() if p.grad is not None]
        mean = self.average(torch.cat([g.flatten() for g in gradients]))
        for gradient, part in zip(
            gradients, mean.split([g.numel() for g in gradients]), strict=True
        ):
            gradient.copy_(part.view_as(gradient))

    def average(self, value: Tensor) -> Tensor:
        """Return the mean of a value over all processes."""
        if self.size == 1:
            return value
        return cast("Tensor", self.fabric.all_reduce(value, reduce_op="mean"))


# Norm that gradients of a step are clipped to. Our choice: otherwise the gradient of a tile with
# next to no brain, which instance norms multiply, is up to a million times those of others, and
# Adam's steps stay small for long. 10, 30 and 100 were tried on simulated PET:
# docs/results/training.md
LARGEST_GRADIENT = 10.0
EARLY_RATE = 0.1  # share of the learning rate for pretrained early layers; our choice
# Channels as the innermost axis, which convolutions read together; faster here.
LAYOUTS: Final = {2: torch.channels_last, 3: torch.channels_last_3d}


@dataclass(frozen=True)
class Losses:
    """Losses of one step, or their means over an epoch; unitless."""

    generator: float
    discriminator: float


def learning_rate(spec: ModelSpec, epoch: int) -> float:
    """Return the learning rate of an epoch, counted from 0.

    It is constant, then falls linearly to 0: Zotova et al. (2021), section 3.2.

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
    """Networks during training, with all state needed to resume.

    Parameters
    ----------
    spec : ModelSpec
        A row of Table 1.
    fabric : Fabric
        Launched Fabric, which determines device and precision. With several processes, each holds
        the same networks and works on its share of every batch.
    random : torch.Generator
        Source of randomness for initial weights, order of tiles and pools, on the CPU; in the same
        state in all processes.
    initial : Module or None
        Generator MRI → PET of the same architecture to start from; its layers before the residual
        blocks then learn more slowly. Other networks are initialized at random.
    """

    def __init__(
        self,
        spec: ModelSpec,
        fabric: Fabric,
        random: torch.Generator,
        initial: ResnetGenerator | None = None,
    ) -> None:
        self.spec, self.fabric, self.random = spec, fabric, random
        self.team = Team(fabric)
        self.epoch = 0
        back = [replace(spec, condition=None)] if spec.cycle else []  # PET → MRI has no condition
        plain = [build_translator(translator_spec, random) for translator_spec in (spec, *back)]
        self.generators = nn.ModuleList([translator.generator for translator in plain])
        self.discriminators = nn.ModuleList([translator.discriminator for translator in plain])
        layout = LAYOUTS[spec.tiling.spatial_dims]
        for network in (*self.generators.modules(), *self.discriminators.modules()):
            if isinstance(network, ResnetGenerator | PatchDiscriminator):  # no tissue model
                network.to(memory_format=layout)  # type: ignore[call-overload]  # torch's types lack it
        early = list[nn.Parameter]()
        if initial is not None:
            network = network_of(plain[0].generator)
            network.load_state_dict(initial.state_dict())
            early = network.early_parameters
        self.generator_optimizer = self._adam(self.generators, early)
        self.discriminator_optimizer = self._adam(self.discriminators)
        self.translators = [
            Translator(
                fabric.setup_module(translator.generator),
                fabric.setup_module(translator.discriminator),
            )
            for translator in plain
        ]
        self.pools = [ImagePool(spec.pool_size, random) for _ in plain]

    def _adam(self, networks: nn.Module, early: Sequence[nn.Parameter] = ()) -> torch.optim.Adam:
        spec, slow = self.spec, {id(parameter) for parameter in early}
        others = [parameter for parameter in networks.parameters() if id(parameter) not in slow]
        groups = [{"params": others, "share": 1.0}]
        groups += [{"params": list(early), "share": EARLY_RATE}] if early else []
        return torch.optim.Adam(groups, lr=spec.learning_rate, betas=(spec.beta1, spec.beta2))

    @contextmanager
    def _unsynced_gradients(self) -> Iterator[None]:
        """Prevent Fabric from averaging gradients, which a step averages once at its end."""
        with ExitStack() as stack:
            if self.team.size > 1:
                for translator in self.translators:
                    for network in (translator.generator, translator.discriminator):
                        unsynced = self.fabric.no_backward_sync(network)  # type: ignore[arg-type]  # set up by Fabric
                        stack.enter_context(unsynced)
            yield

    def step(self, batch: Batch) -> Losses:
        """Update all networks once, with a batch of true pairs."""
        with self._unsynced_gradients():
            return self._step(batch.to(self.fabric.device))

    def _step(self, batch: Batch) -> Losses:
        spec, to_pet = self.spec, self.translators[0]
        to_mri = self.translators[1] if spec.cycle else None
        weight = self.team.weight(batch.total)
        self.discriminators.requires_grad_(requires_grad=False)
        loss, fakes = generator_loss(
            to_pet,
            to_mri,
            batch.mri,
            batch.pet,
            adversarial_weight=spec.adversarial_weight,
            cycle_weight=spec.cycle_weight,
            mse_weight=spec.mse_weight,
            condition=batch.condition,
        )
        self._improve(self.generators, self.generator_optimizer, weight * loss)
        self.discriminators.requires_grad_(requires_grad=True)
        judged = self._judge(to_pet, self.pools[0], batch.pet, fakes.fake_pet, batch.total)
        if to_mri is not None and fakes.fake_mri is not None:
            judged = judged + self._judge(
                to_mri, self.pools[1], batch.mri, fakes.fake_mri, batch.total
            )
        self._improve(self.discriminators, self.discriminator_optimizer, weight * judged)
        return Losses(float(weight * loss.detach()), float(weight * judged.detach()))

    def _improve(self, networks: nn.Module, optimizer: torch.optim.Adam, loss: Tensor) -> None:
        optimizer.zero_grad()
        self.fabric.backward(loss)
        self.team.average_gradients(networks)
        nn.utils.clip_grad_norm_(networks.parameters(), LARGEST_GRADIENT)
        optimizer.step()

    def _judge(
        self, translator: Translator, pool: ImagePool, real: Tensor, fake: Tensor, total: int
    ) -> Tensor:
        remembered = pool.exchange(self.team.gather(fake.detach(), total))
        fakes = torch.stack(self.team.share(list(remembered)))
        return discriminator_loss(translator.discriminator(real), translator.discriminator(fakes))

    def run_epoch(self, batches: Iterable[Batch]) -> Losses:
        """Run one step per batch, count the epoch, and return the mean losses over its steps.

        Raises
        ------
        FloatingPointError
            If a loss, or a weight after the last step, is not finite.
        """
        for optimizer in (self.generator_optimizer, self.discriminator_optimizer):
            for group in optimizer.param_groups:
                group["lr"] = group["share"] * learning_rate(self.spec, self.epoch)
        total = torch.zeros(2, dtype=torch.float64)
        steps = 0
        for batch in batches:
            losses = self.step(batch)
            total += torch.tensor([losses.generator, losses.discriminator])
            steps += 1
            if not torch.isfinite(total).all():
                raise FloatingPointError(f"a loss is not finite in epoch {self.epoch + 1}")
        weights = [*self.generators.parameters(), *self.discriminators.parameters()]
        if not all(torch.isfinite(weight).all() for weight in weights):
            raise FloatingPointError(f"a weight is not finite in epoch {self.epoch + 1}")
        self.epoch += 1
        mean = self.team.average(total.to(self.fabric.device) / max(steps, 1))
        generator, discriminator = mean.tolist()
        return Losses(generator, discriminator)


def shuffled_batches(
    pairs: Sequence[Pair], spec: ModelSpec, random: torch.Generator, team: Team | None = None
) -> Iterator[Batch]:
    """Yield the batches of an epoch: tiles of all pairs in random order.

    The last batch may be smaller.

    Parameters
    ----------
    pairs : sequence of Pair
        T1w and PET of one person each.
    spec : ModelSpec
        Specification of the tiling, the batch size and the number of tiles per volume.
    random : torch.Generator
        Source of randomness for the order, on the CPU.
    team : Team, optional
        Processes that share each batch; by default, batches are not shared.
    """
    places = [(pair, index) for pair in pairs for index in _chosen(pair, spec, random)]
    for chosen in torch.randperm(len(places), generator=random).split(spec.batch_size):
        tiles = [places[int(place)] for place in (chosen if team is None else team.share(chosen))]
        conditions = [
            spec.tiling.cut(pair.condition, index)
            for pair, index in tiles
            if pair.condition is not None
        ]
        yield Batch(
            torch.stack([spec.tiling.cut(pair.mri, index) for pair, index in tiles]),
            torch.stack([spec.tiling.cut(pair.pet, index) for pair, index in tiles]),
            len(chosen),
            torch.stack(conditions) if conditions else None,
        )


def _chosen(pair: Pair, spec: ModelSpec, random: torch.Generator) -> list[int]:
    """Choose the tiles of a volume for an epoch: all usable ones, or a random subset of them."""
    if not spec.tiles_per_volume:
        everything = range(spec.tiling.count(tuple(pair.mri.shape)))
        return list(pair.places if pair.places else everything)
    order = torch.randperm(len(pair.places), generator=random)[: spec.tiles_per_volume]
    return [pair.places[int(place)] for place in order]


Validate = Callable[[nn.Module], float]


@dataclass(frozen=True)
class HistoryRow:
    """Epoch in the history of a fit.

    Parameters
    ----------
    epoch : int
        Number of the epoch, counted from 1.
    generator_loss, discriminator_loss : float
        Mean losses over its steps; unitless.
    ssim_validation : float
        Mean SSIM over the validation volumes; nan if it was not computed.
    learning_rate : float
        Learning rate of both optimizers.
    seconds : float
        Duration of the epoch, including validation.
    """

    epoch: int
    generator_loss: float
    discriminator_loss: float
    ssim_validation: float
    learning_rate: float
    seconds: float


class Fit:
    """Training with its history and the weights to keep.

    Early stopping follows Zotova et al. (2021), section 3.2: the generator with the best SSIM on
    validation volumes is kept. Without validation, the last one is kept.

    Parameters
    ----------
    training : Training
        New training.
    """

    def __init__(self, training: Training) -> None:
        self.training = training
        self.history: list[HistoryRow] = []
        self.kept: dict[str, Tensor] = {}

    @property
    def kept_epoch(self) -> int:
        """Epoch whose weights are kept, the first of the best ones; 0 before the first epoch."""
        looked_at = [line for line in self.history if not isnan(line.ssim_validation)]
        if looked_at:
            return max(looked_at, key=lambda line: line.ssim_validation).epoch
        return self.history[-1].epoch if self.history else 0

    def is_over(self, last_epoch: int) -> bool:
        """Return whether the last epoch was run, or early stopping applies."""
        epoch = self.training.epoch
        watched = any(not isnan(line.ssim_validation) for line in self.history)
        patience = self.training.spec.patience
        return epoch >= last_epoch or (watched and epoch - self.kept_epoch >= patience)

    def keep(self) -> None:
        """Store a copy of the current weights of the generator MRI → PET."""
        state = self.training.generators[0].state_dict()
        self.kept = {
            name: tensor.detach().cpu().clone(memory_format=torch.contiguous_format)
            for name, tensor in state.items()
        }


def _looks(fit: Fit, last_epoch: int) -> bool:
    epoch, interval = fit.training.epoch, fit.training.spec.validation_interval
    return epoch % interval == 0 or epoch >= last_epoch


def _validated(fit: Fit, validate: Validate | None, last_epoch: int) -> float:
    """Return the SSIM of the current generator, computed by one process and sent to all."""
    if validate is None or not _looks(fit, last_epoch):
        return nan
    training = fit.training
    ssim = nan
    if training.team.rank == 0:
        generator = training.generators[0].eval()
        with suppress(FloatingPointError):  # raised below, in all processes
            ssim = validate(generator)
        generator.train()
    ssim = float(training.fabric.broadcast(torch.tensor(ssim, dtype=torch.float64)))
    if isnan(ssim):
        raise FloatingPointError(
            f"the generator's prediction is not finite in epoch {training.epoch}"
        )
    return ssim


def resume_training(
    fit: Fit, pairs: Sequence[Pair], *, validate: Validate | None, last_epoch: int
) -> Iterator[HistoryRow]:
    """Run the remaining epochs, one at a time.

    Parameters
    ----------
    fit : Fit
        New fit, or one restored from a checkpoint.
    pairs : sequence of Pair
        Training data.
    validate : callable or None
        Function that returns the mean SSIM of a generator on held-out volumes.
    last_epoch : int
        Epoch at which to stop at the latest; the learning rate follows the spec's own epochs.

    Yields
    ------
    HistoryRow
        The epoch, after validation; the caller saves.

    Raises
    ------
    FloatingPointError
        If a loss, a weight, a prediction or the validation SSIM is not finite.
    """
    training = fit.training
    while not fit.is_over(last_epoch):
        started = time.perf_counter()
        rate = learning_rate(training.spec, training.epoch)
        batches = shuffled_batches(pairs, training.spec, training.random, training.team)
        losses = training.run_epoch(batches)
        ssim = _validated(fit, validate, last_epoch)
        number, seconds = training.epoch, time.perf_counter() - started
        line = HistoryRow(number, losses.generator, losses.discriminator, ssim, rate, seconds)
        fit.history.append(line)
        if fit.kept_epoch == number:
            fit.keep()
        yield line
