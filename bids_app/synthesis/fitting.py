"""A training that is watched: which epoch's generator is kept, and when to stop."""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from math import isnan, nan

import torch
from torch import Tensor, nn

from bids_app.synthesis.pairs import Pair
from bids_app.synthesis.training import Training, learning_rate, shuffled_batches

Validate = Callable[[nn.Module], float]


@dataclass(frozen=True)
class Line:
    """An epoch in the history of a fit.

    Parameters
    ----------
    epoch : int
        From 1.
    generator_loss, discriminator_loss : float
        Means over its steps; unitless.
    ssim : float
        Mean over the validation volumes; nan where it was not looked at.
    learning_rate : float
        Of both optimizers.
    seconds : float
        That the epoch took, with validation.
    """

    epoch: int
    generator_loss: float
    discriminator_loss: float
    ssim: float
    learning_rate: float
    seconds: float

    @classmethod
    def of(cls, row: Sequence[float]) -> "Line":
        """Build it from a row of numbers."""
        epoch, *rest = row
        return cls(int(epoch), *rest)


class Fit:
    """A training, its history, and the weights that are kept of it.

    Early stopping is that of Zotova et al. (2021), section 3.2: the generator with the best SSIM
    on validation volumes is kept. Without validation the last one is.

    Parameters
    ----------
    training : Training
        New.
    """

    def __init__(self, training: Training) -> None:
        self.training = training
        self.history: list[Line] = []
        self.kept: dict[str, Tensor] = {}

    @property
    def kept_epoch(self) -> int:
        """The epoch whose weights are kept, the first of the best; 0 before the first."""
        looked_at = [line for line in self.history if not isnan(line.ssim)]
        if looked_at:
            return max(looked_at, key=lambda line: line.ssim).epoch
        return self.history[-1].epoch if self.history else 0

    def is_over(self, last_epoch: int) -> bool:
        """Whether the last epoch was run, or validation has not improved for too long."""
        epoch = self.training.epoch
        watched = any(not isnan(line.ssim) for line in self.history)
        patience = self.training.spec.patience
        return epoch >= last_epoch or (watched and epoch - self.kept_epoch >= patience)

    def keep(self) -> None:
        """Remember the weights of the generator MRI → PET as they are."""
        state = self.training.generators[0].state_dict()
        self.kept = {
            name: tensor.detach().cpu().clone(memory_format=torch.contiguous_format)
            for name, tensor in state.items()
        }


def _looks(fit: Fit, last_epoch: int) -> bool:
    epoch, interval = fit.training.epoch, fit.training.spec.validation_interval
    return epoch % interval == 0 or epoch >= last_epoch


def _validated(fit: Fit, validate: Validate | None, last_epoch: int) -> float:
    """Give the SSIM of this epoch's generator; one process looks, all learn of it."""
    if validate is None or not _looks(fit, last_epoch):
        return nan
    training = fit.training
    ssim = nan
    if training.team.rank == 0:
        generator = training.generators[0].eval()
        with suppress(FloatingPointError):  # told below, by all processes alike
            ssim = validate(generator)
        generator.train()
    told = float(training.fabric.broadcast(torch.tensor(ssim, dtype=torch.float64)))
    if isnan(told):
        raise FloatingPointError(
            f"what the generator predicts is not finite in epoch {training.epoch}"
        )
    return told


def go_on(
    fit: Fit, pairs: Sequence[Pair], *, validate: Validate | None, last_epoch: int
) -> Iterator[Line]:
    """Run the epochs that are left, one at a time.

    Parameters
    ----------
    fit : Fit
        New, or restored from a checkpoint.
    pairs : sequence of Pair
        What is learned from.
    validate : callable or None
        Gives the mean SSIM of a generator on volumes it does not learn from.
    last_epoch : int
        To stop at, if not earlier; the learning rate follows the spec's own epochs.

    Yields
    ------
    Line
        An epoch, when its weights were judged; whoever iterates saves.

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
        epoch = training.run_epoch(batches)
        ssim = _validated(fit, validate, last_epoch)
        losses, seconds = epoch.losses, time.perf_counter() - started
        line = Line(epoch.number, losses.generator, losses.discriminator, ssim, rate, seconds)
        fit.history.append(line)
        if fit.kept_epoch == epoch.number:
            fit.keep()
        yield line
