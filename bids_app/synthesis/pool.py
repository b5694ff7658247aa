"""Earlier fakes, so that a discriminator does not forget them."""

import torch
from torch import Tensor


class ImagePool:
    """A memory of fakes: Zhu et al. (2017), section 4, after Shrivastava et al. (2017).

    Parameters
    ----------
    size : int
        Fakes to remember; 0 remembers none.
    random : torch.Generator
        On the CPU; decides which fakes are exchanged.
    """

    def __init__(self, size: int, random: torch.Generator) -> None:
        self.size, self.random = size, random
        self.images: list[Tensor] = []

    def exchange(self, fakes: Tensor) -> Tensor:
        """Remember the new fakes; give, each with probability 1/2, an older one in its place.

        Parameters
        ----------
        fakes : Tensor, (N, channels, *size)
            Detached.

        Returns
        -------
        Tensor, (N, channels, *size)
            While the pool is not full, the new fakes themselves.
        """
        return torch.stack([self._exchange_one(fake) for fake in fakes])

    def _exchange_one(self, fake: Tensor) -> Tensor:
        if len(self.images) < self.size:
            self.images.append(fake.clone())
            return fake
        if not self.size or torch.rand((), generator=self.random) < 0.5:  # noqa: PLR2004
            return fake
        place = int(torch.randint(self.size, (), generator=self.random))
        older = self.images[place]
        self.images[place] = fake.clone()
        return older
