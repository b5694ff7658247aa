"""The siamese autoencoder: patches → latents → patches.

Zotova et al. (2021), section 2.2, take the network of Alaverdyan et al. (2020), figure 5, for
patches of 15×15 voxels and 64 latents. That figure was not at hand: filters and activations are
our choice.
"""

import math

import torch
from torch import Tensor, nn

from bids_app.detection.spec import STRIDE, EncoderSpec

FILTERS = (3, 4, 12)  # feature maps after the first three convolutions; our choice


class SiameseAutoencoder(nn.Module):
    """Turn patches into latents and back. Both twins are this one network.

    Convolutions 5×5, 3×3, 3×3 with stride 3, and 2×2: 15 → 11 → 9 → 3 → 2 voxels. ELU between
    them: with ReLU, which easily loses some of so few feature maps, latents of simulated PET lay
    along 2 to 3 directions instead of 5 to 7, and patches were reconstructed worse. Latents have
    no activation and no bounds. The decoder is the mirror, and ends in a sigmoid.

    Parameters
    ----------
    spec : EncoderSpec
        Gives the size of a patch, and the number of latents.
    random : torch.Generator
        On the CPU; draws the first weights, as Glorot & Bengio (2010), eq. 16. Biases are 0.

    Examples
    --------
    >>> network = SiameseAutoencoder(EncoderSpec(), torch.Generator().manual_seed(0))
    >>> network.encode(torch.rand(5, 1, 15, 15)).shape
    torch.Size([5, 64])
    """

    def __init__(self, spec: EncoderSpec, random: torch.Generator) -> None:
        super().__init__()
        self.patch, self.side, self.latents = spec.patch, spec.side, spec.latents
        layers = layers_of(spec)
        self.encoder, self.decoder = layers["encoder"], layers["decoder"]
        self.to_empty(device="cpu")
        self.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # faster here
        _initialize(self, random)

    def encode(self, patches: Tensor) -> Tensor:
        """Give the latents of patches.

        Parameters
        ----------
        patches : Tensor, (N, 1, patch, patch)
            Intensities in [0, 1], 0 outside the brain.

        Returns
        -------
        Tensor, (N, latents)
            Place by place, row by row: at each, all feature maps.
        """
        return self.encoder(patches).permute(0, 2, 3, 1).flatten(1)

    def decode(self, latents: Tensor) -> Tensor:
        """Give the patches, (N, 1, patch, patch) in [0, 1], that latents (N, latents) tell of."""
        return self.decoder(latents.unflatten(1, (self.side, self.side, -1)).permute(0, 3, 1, 2))

    def forward(self, patches: Tensor) -> Tensor:
        """Encode patches, (N, 1, patch, patch) in [0, 1], and decode them."""
        return self.decode(self.encode(patches))


def layers_of(spec: EncoderSpec) -> dict[str, nn.Sequential]:
    """Build ``encoder`` and ``decoder`` of a spec on the meta device: shapes without weights."""
    one, two, three = FILTERS
    four = spec.latents // spec.side**2
    with torch.device("meta"):  # or torch would draw weights, from a seed of its own
        encoder = nn.Sequential(
            nn.Conv2d(1, one, 5), nn.ELU(),
            nn.Conv2d(one, two, 3), nn.ELU(),
            nn.Conv2d(two, three, 3, stride=STRIDE), nn.ELU(),
            nn.Conv2d(three, four, 2),
        )  # fmt: skip
        decoder = nn.Sequential(
            nn.ConvTranspose2d(four, three, 2), nn.ELU(),
            nn.ConvTranspose2d(three, two, 3, stride=STRIDE), nn.ELU(),
            nn.ConvTranspose2d(two, one, 3), nn.ELU(),
            nn.ConvTranspose2d(one, 1, 5), nn.Sigmoid(),
        )  # fmt: skip
    return {"encoder": encoder, "decoder": decoder}


def _initialize(network: nn.Module, random: torch.Generator) -> None:
    for parameter in network.parameters():
        with torch.no_grad():
            if parameter.ndim == 1:
                parameter.zero_()
            else:
                bound = math.sqrt(6 / (parameter[0].numel() + parameter[:, 0].numel()))
                parameter.uniform_(-bound, bound, generator=random)
