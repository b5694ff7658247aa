"""Processes that train the same networks together, each on its share of every batch.

What they end with is what one process would end with on the whole batches: losses are means over
the samples of a batch, so gradients are averaged over all samples, and the pools of fakes see them
in the order of the batch.
"""

from collections.abc import Sequence
from typing import TypeVar

import torch
from lightning_fabric import Fabric
from torch import Tensor, nn

Item = TypeVar("Item")


class Team:
    """All processes of a Fabric, or the only one.

    Parameters
    ----------
    fabric : Fabric
        Launched.
    """

    def __init__(self, fabric: Fabric) -> None:
        self.fabric = fabric
        self.rank, self.size = fabric.global_rank, fabric.world_size

    def share(self, batch: Sequence[Item]) -> list[Item]:
        """Give this process every ``size``-th item, or the first one if none is left for it."""
        own = batch[self.rank :: self.size]
        return list(own if len(own) else batch[:1])

    def weight(self, total: int) -> float:
        """Weigh this process's share of ``total`` samples so that the mean over processes is right.

        A share that stands for nothing, because there were fewer samples than processes, weighs 0.
        """
        return len(range(self.rank, total, self.size)) * self.size / total

    def gather(self, share: Tensor, total: int) -> Tensor:
        """Put the shares of a batch together again, in its order.

        Parameters
        ----------
        share : Tensor, (n, ...)
            Of this process.
        total : int
            Samples of the whole batch.

        Returns
        -------
        Tensor, (total, ...)
            Alike in all processes.
        """
        if self.size == 1:
            return share
        most = -(-total // self.size)
        filling = share[:1].expand(most - len(share), *share.shape[1:])
        shares: Tensor = self.fabric.all_gather(torch.cat([share, filling]))  # type: ignore[assignment]
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
        """Give the mean of a value over all processes."""
        if self.size == 1:
            return value
        return self.fabric.all_reduce(value, reduce_op="mean")  # type: ignore[return-value]
