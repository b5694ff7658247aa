"""Reimplementation of pytorch-CycleGAN-and-pix2pix's generator, as a reference for imports."""

import copy
from functools import partial

import numpy as np
import torch
from torch import nn

WIDTH = 4


class Block(nn.Module):
    """Their residual block, with reflection padding and dropout as separate layers."""

    def __init__(self, width, dropout, norm):
        super().__init__()
        self.conv_block = nn.Sequential(
            nn.ReflectionPad2d(1),
            nn.Conv2d(width, width, 3),
            norm(width),
            nn.ReLU(),
            *([nn.Dropout(0.5)] if dropout else []),
            nn.ReflectionPad2d(1),
            nn.Conv2d(width, width, 3),
            norm(width),
        )

    def forward(self, x):
        return x + self.conv_block(x)


class Theirs(nn.Module):
    """ResnetGenerator as in the code of Zhu et al. (2017): [-1, 1] to [-1, 1]."""

    def __init__(self, *, taken=3, given=3, width=WIDTH, blocks=9, dropout=False, norm=None):
        super().__init__()
        norm = nn.InstanceNorm2d if norm is None else norm
        up = partial(nn.ConvTranspose2d, kernel_size=3, stride=2, padding=1, output_padding=1)
        self.model = nn.Sequential(
            nn.ReflectionPad2d(3),
            nn.Conv2d(taken, width, 7),
            norm(width),
            nn.ReLU(),
            nn.Conv2d(width, 2 * width, 3, 2, 1),
            norm(2 * width),
            nn.ReLU(),
            nn.Conv2d(2 * width, 4 * width, 3, 2, 1),
            norm(4 * width),
            nn.ReLU(),
            *(Block(4 * width, dropout, norm) for _ in range(blocks)),
            up(4 * width, 2 * width),
            norm(2 * width),
            nn.ReLU(),
            up(2 * width, width),
            norm(width),
            nn.ReLU(),
            nn.ReflectionPad2d(3),
            nn.Conv2d(width, given, 7),
            nn.Tanh(),
        )

    def forward(self, x):
        return self.model(x)


def drawn(seed=0, **how):
    """Return their network with large random weights and biases, as after training."""
    torch.manual_seed(seed)
    network = Theirs(**how)
    for parameter in network.parameters():
        nn.init.normal_(parameter, 0, 0.1)
    return network.eval()


@torch.inference_mode()
def in_unit_range(network, x):
    """Apply their network to intensities in [0, 1], with output in [0, 1]; in float64."""
    return (copy.deepcopy(network).double()(2 * x.double() - 1) + 1) / 2


def in_volume(network, volume):
    """Predict a volume, (I, J, K), by slices or by overlapping triplets; in float64."""
    channels = network.model[1].in_channels
    total, times = np.zeros(volume.shape), np.zeros(volume.shape[-1])
    for first in range(volume.shape[-1] - channels + 1):
        tile = torch.from_numpy(volume[..., first : first + channels]).movedim(-1, 0)
        made = in_unit_range(network, tile[None])[0].movedim(0, -1).numpy()
        total[..., first : first + channels] += made * bool(tile.any())
        times[first : first + channels] += 1
    return total / times
