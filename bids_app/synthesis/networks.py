"""The networks: generators and discriminators."""

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

NEAREST = 1e-3  # least distance of a logit's argument to 0 and 1, to keep its gradient; our choice
FEW_CHANNELS = 8  # fewer output channels leave most of a vector unit idle


class ReflectConv2d(nn.Conv2d):
    """Convolution with reflection padding, like ``padding_mode="reflect"``, but faster.

    On a CPU, autocast casts the input of a reflection padding to float32 and loses its memory
    layout; here both are kept.
    """

    def _conv_forward(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        with torch.autocast(x.device.type, enabled=False):
            padded = F.pad(x, self._reversed_padding_repeated_twice, mode="reflect")
        return _convolve(F.conv2d, padded, weight, bias)


class ReflectConv3d(nn.Conv3d):
    """Three-dimensional counterpart of :class:`ReflectConv2d`."""

    def _conv_forward(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        with torch.autocast(x.device.type, enabled=False):
            padded = F.pad(x, self._reversed_padding_repeated_twice, mode="reflect")
        return _convolve(F.conv3d, padded, weight, bias)


def _convolve(
    convolution: Callable[..., Tensor], x: Tensor, weight: Tensor, bias: Tensor | None
) -> Tensor:
    """Convolve, splitting the kernel into its planes first if there are few output channels.

    A CPU computes 16 output channels at a time, so that with a single one, 15 of 16 results are
    discarded. Here the planes of the kernel serve as output channels, and their results are
    shifted and summed in float32.
    """
    channels, size = weight.shape[0], weight.shape[2]
    if channels >= FEW_CHANNELS:
        return convolution(x, weight, bias)
    planes = weight.movedim(2, 0).flatten(0, 1).unsqueeze(2)
    parts = convolution(x, planes).float().unflatten(1, (size, channels)).unbind(1)
    length = x.shape[2] - size + 1
    total = sum(part.narrow(2, place, length) for place, part in enumerate(parts))
    return total if bias is None else total + bias.view(-1, *[1] * (weight.ndim - 2))


class InstanceNorm2d(nn.InstanceNorm2d):
    """Instance norm whose gradient is also correct for a single image.

    On CPUs, torch 2.13 computes a wrong gradient if the incoming one has channels innermost.
    """

    def forward(self, x: Tensor) -> Tensor:
        return _with_channels_outermost(super().forward(x))


class InstanceNorm3d(nn.InstanceNorm3d):
    """Three-dimensional counterpart of :class:`InstanceNorm2d`."""

    def forward(self, x: Tensor) -> Tensor:
        return _with_channels_outermost(super().forward(x))


def _with_channels_outermost(y: Tensor) -> Tensor:
    """Register a hook that makes the gradient of ``y`` contiguous, with channels outermost."""
    if y.requires_grad:
        y.register_hook(Tensor.contiguous)
    return y


CONV = {2: nn.Conv2d, 3: nn.Conv3d}
REFLECT = {2: ReflectConv2d, 3: ReflectConv3d}
TRANSPOSED = {2: nn.ConvTranspose2d, 3: nn.ConvTranspose3d}
NORM = {2: InstanceNorm2d, 3: InstanceNorm3d}
PAD = {2: nn.ZeroPad2d, 3: nn.ZeroPad3d}


class ResidualBlock(nn.Module):
    """Two convolutions with a skip connection around them.

    ``forward`` maps (N, width, *size) to the same shape. Borders are reflected, as in the code
    that [18] of Zotova et al. (2021) provides.
    """

    def __init__(self, spatial_dims: int, width: int) -> None:
        super().__init__()
        conv, norm = REFLECT[spatial_dims], NORM[spatial_dims]
        self.layers = nn.Sequential(
            conv(width, width, 3, padding=1),
            norm(width),
            nn.ReLU(),
            conv(width, width, 3, padding=1),
            norm(width),
        )

    def forward(self, x: Tensor) -> Tensor:
        return x + self.layers(x)


class ResnetGenerator(nn.Module):
    """Generator that translates an image of one modality into the other.

    ``forward`` maps (N, channels, *size) to the same shape. Both hold unitless intensities in
    [0, 1]. Any ``size`` is accepted: the network pads it to a multiple of its strides, and crops
    the result.

    Parameters
    ----------
    spatial_dims : {2, 3}
        2 for semi-3D, 3 for 3D-patch.
    channels : int
        3 adjacent slices (semi-3D), or 1 patch (3D-patch).
    n_blocks : int
        Number of residual blocks: 9 for semi-3D, 2 for 3D-patch [1]_.
    width : int
        Feature maps after the first convolution; four times as many in the residual blocks [2]_.
    more_channels : int
        Number of additional input channels.
    activation : type of Module
        Last activation; a logistic function by default.

    References
    ----------
    .. [1] Zotova, Jung & Lartizien (2021), section 2.1, "Implementation details".
    .. [2] Zhu, Park, Isola & Efros (2017), appendix 7.2: c7s1-64, d128, d256, R256 x 9, u128,
       u64, c7s1-3. There, the last activation is a hyperbolic tangent, for intensities in [-1, 1].

    Examples
    --------
    >>> generator = ResnetGenerator(spatial_dims=2, channels=3, n_blocks=9)
    >>> sum(parameter.numel() for parameter in generator.parameters())
    11378179
    """

    STRIDE = 4  # two halvings
    ENCODER = 9  # layers: three convolutions, each with its norm and activation

    def __init__(
        self,
        spatial_dims: int,
        channels: int,
        n_blocks: int,
        width: int = 64,
        *,
        more_channels: int = 0,
        activation: type[nn.Module] = nn.Sigmoid,
    ) -> None:
        super().__init__()
        conv, up, norm = CONV[spatial_dims], TRANSPOSED[spatial_dims], NORM[spatial_dims]
        reflect = REFLECT[spatial_dims]
        self.layers = nn.Sequential(
            reflect(channels + more_channels, width, 7, padding=3),
            norm(width),
            nn.ReLU(),
            conv(width, 2 * width, 3, stride=2, padding=1),
            norm(2 * width),
            nn.ReLU(),
            conv(2 * width, 4 * width, 3, stride=2, padding=1),
            norm(4 * width),
            nn.ReLU(),
            *(ResidualBlock(spatial_dims, 4 * width) for _ in range(n_blocks)),
            up(4 * width, 2 * width, 3, 2, padding=1, output_padding=1),
            norm(2 * width),
            nn.ReLU(),
            up(2 * width, width, 3, 2, padding=1, output_padding=1),
            norm(width),
            nn.ReLU(),
            reflect(width, channels, 7, padding=3),
            activation(),
        )

    @property
    def early_parameters(self) -> list[nn.Parameter]:
        """Parameters of the layers before the residual blocks."""
        early = list(self.layers)[: self.ENCODER]
        return [parameter for layer in early for parameter in layer.parameters()]

    def forward(self, x: Tensor) -> Tensor:
        size = x.shape[2:]
        filling = [fill for side in reversed(size) for fill in (0, -side % self.STRIDE)]
        y = self.layers(F.pad(x, filling, mode="replicate"))
        return y[(..., *(slice(side) for side in size))]


class ConditionedGenerator(nn.Module):
    """Generator that corrects the prediction of a tissue model, which it sees beside the T1w.

    ``forward`` maps (N, 2 · channels, *size), tiles of the T1w and then of the tissue model's
    prediction, to tiles of PET, (N, channels, *size); all in [0, 1]. The output of the network is
    added to the logit of the prediction. This is ours, not the paper's.

    Parameters
    ----------
    tissue : Module
        Tissue model, which maps T1w, (N, 1, I, J, K), to PET; it is not trained further.
    spatial_dims, channels, n_blocks, width
        See :class:`ResnetGenerator`.
    """

    def __init__(
        self, tissue: nn.Module, spatial_dims: int, channels: int, n_blocks: int, width: int
    ) -> None:
        super().__init__()
        self.tissue, self.channels = tissue, channels
        self.network = ResnetGenerator(
            spatial_dims, channels, n_blocks, width, more_channels=channels, activation=nn.Identity
        )

    def forward(self, x: Tensor) -> Tensor:
        predicted = x[:, self.channels :].float()
        return torch.sigmoid(self.network(x).float() + torch.logit(predicted, NEAREST))

    @torch.no_grad()
    def start_at_tissue(self) -> None:
        """Set the last layer to 0, so that the prediction is that of the tissue model."""
        for parameter in self.network.layers[-2].parameters():
            parameter.zero_()


def has_bfloat16(device: str) -> bool:
    """Return whether a device supports bfloat16 natively.

    Parameters
    ----------
    device : str
        ``cpu``, ``cuda`` or ``cuda:N``.
    """
    if device.startswith("cuda"):
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()


def network_of(generator: nn.Module) -> ResnetGenerator:
    """Return the network of a generator, conditioned or not.

    Raises
    ------
    TypeError
        If the generator has no network.
    """
    network = generator.network if isinstance(generator, ConditionedGenerator) else generator
    if not isinstance(network, ResnetGenerator):
        raise TypeError(f"a {type(generator).__name__} is no network")
    return network


class PatchDiscriminator(nn.Module):
    """Discriminator of patches of an image: 1 is real, 0 is fake.

    ``forward`` maps (N, channels, *size) to one output per patch, (N, 1, *smaller size). A patch
    is 70 voxels wide. Outputs are unbounded, as the least-squares loss requires.

    Parameters
    ----------
    spatial_dims : {2, 3}
        2 for semi-3D, 3 for 3D-patch.
    channels : int
        Number of channels, the same as the generator's.
    width : int
        Feature maps after the first convolution, doubled three times: 64-128-256-512 in
        Isola, Zhu, Zhou & Efros (2017), appendix 6.1.2.
    """

    def __init__(self, spatial_dims: int, channels: int, width: int = 64) -> None:
        super().__init__()
        conv, norm, pad = CONV[spatial_dims], NORM[spatial_dims], PAD[spatial_dims]
        # The last two convolutions are padded by layers of their own: if a padding convolution's
        # input is 3 voxels wide, as in 3D-patch, torch 2.13 computes a wrong gradient on CPUs in
        # bfloat16.
        self.layers = nn.Sequential(
            conv(channels, width, 4, stride=2, padding=1),
            nn.LeakyReLU(0.2),
            conv(width, 2 * width, 4, stride=2, padding=1),
            norm(2 * width),
            nn.LeakyReLU(0.2),
            conv(2 * width, 4 * width, 4, stride=2, padding=1),
            norm(4 * width),
            nn.LeakyReLU(0.2),
            pad(1),
            conv(4 * width, 8 * width, 4),
            norm(8 * width),
            nn.LeakyReLU(0.2),
            pad(1),
            conv(8 * width, 1, 4),
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x)


def initialize(network: nn.Module, generator: torch.Generator) -> None:
    """Draw all weights from N(0, 0.02) and set biases to 0: Zhu et al. (2017), 7.1.

    Parameters that are not trained are left unchanged.
    """
    for name, parameter in network.named_parameters():
        if not parameter.requires_grad:
            continue
        with torch.no_grad():
            if name.endswith("bias"):
                parameter.zero_()
            else:
                parameter.normal_(0.0, 0.02, generator=generator)
