import pytest
import torch
from torch import nn

from bids_app.synthesis import networks
from bids_app.synthesis.networks import PatchDiscriminator, ResnetGenerator, initialize


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("size", [(16, 16), (17, 14), (13, 15), (39, 47)])
def test_slices_of_any_size_keep_it(size):
    generator = ResnetGenerator(2, channels=3, n_blocks=1, width=2)
    assert generator(torch.rand(2, 3, *size)).shape == (2, 3, *size)


@pytest.mark.parametrize("size", [(8, 8, 8), (9, 11, 14)])
def test_patches_of_any_size_keep_it(size):
    generator = ResnetGenerator(3, channels=1, n_blocks=1, width=2)
    assert generator(torch.rand(2, 1, *size)).shape == (2, 1, *size)


def test_filling_up_leaves_what_fits_as_it_is():
    """For a size that is no multiple of 4, the output is that for the padded image."""
    generator = ResnetGenerator(2, channels=1, n_blocks=1, width=2)
    image = torch.rand(1, 1, 14, 13)
    filled = nn.functional.pad(image, (0, 3, 0, 2), mode="replicate")
    assert torch.equal(generator(image), generator(filled)[..., :14, :13])


def test_what_is_made_lies_between_0_and_1():
    generator = ResnetGenerator(2, channels=3, n_blocks=1, width=2)
    for parameter in generator.parameters():
        nn.init.normal_(parameter, 0, 3, generator=seeded())
    made = generator(torch.rand(1, 3, 16, 16))
    assert made.min() >= 0
    assert made.max() <= 1
    assert made.max() - made.min() > 0.9


def test_the_generator_of_the_paper_has_11_million_parameters():
    with torch.device("meta"):
        generator = ResnetGenerator(2, channels=3, n_blocks=9)
    assert sum(parameter.numel() for parameter in generator.parameters()) == 11_378_179


def test_channels_are_those_of_the_paper():
    with torch.device("meta"):
        layers = PatchDiscriminator(2, channels=3).layers
    convolutions = [layer for layer in layers if isinstance(layer, nn.Conv2d)]
    assert [layer.out_channels for layer in convolutions] == [64, 128, 256, 512, 1]
    assert {layer.kernel_size for layer in convolutions} == {(4, 4)}
    assert {layer.negative_slope for layer in layers if isinstance(layer, nn.LeakyReLU)} == {0.2}
    assert sum(isinstance(layer, nn.InstanceNorm2d) for layer in layers) == 3


@pytest.mark.parametrize(("spatial_dims", "side"), [(2, 120), (3, 96)])
def test_an_opinion_is_about_70_voxels(monkeypatch, spatial_dims, side):
    """Without norms, which depend on the whole image, an output depends on 70 voxels per axis."""
    monkeypatch.setitem(networks.NORM, spatial_dims, lambda _width: nn.Identity())
    discriminator = PatchDiscriminator(spatial_dims, channels=1, width=1)
    for parameter in discriminator.parameters():
        nn.init.ones_(parameter)
    image = torch.ones(1, 1, *[side] * spatial_dims, requires_grad=True)
    opinions = discriminator(image)
    middle = (0, 0, *[opinions.shape[-1] // 2] * spatial_dims)
    opinions[middle].backward()
    seen = image.grad[0, 0].nonzero()
    assert (seen.amax(0) - seen.amin(0) + 1).tolist() == [70] * spatial_dims
    assert len(seen) == 70**spatial_dims


@pytest.mark.parametrize("spatial_dims", [2, 3])
def test_opinions_cover_an_image_patch_by_patch(spatial_dims):
    discriminator = PatchDiscriminator(spatial_dims, channels=1, width=1)
    image = torch.rand(1, 1, *[32] * spatial_dims)
    assert discriminator(image).shape == (1, 1, *[2] * spatial_dims)


def test_weights_begin_as_the_paper_draws_them():
    generator = ResnetGenerator(2, channels=3, n_blocks=2, width=16)
    initialize(generator, seeded())
    drawn = {name: p.detach() for name, p in generator.named_parameters()}
    weights = torch.cat([p.flatten() for name, p in drawn.items() if name.endswith("weight")])
    biases = torch.cat([p.flatten() for name, p in drawn.items() if name.endswith("bias")])
    assert weights.mean().item() == pytest.approx(0, abs=3e-4)
    assert weights.std().item() == pytest.approx(0.02, rel=0.01)
    assert (weights.abs() < 0.02).float().mean().item() == pytest.approx(0.683, abs=0.01)
    assert biases.eq(0).all()


def test_equal_seeds_draw_equal_weights():
    drawn = []
    for seed in (1, 1, 2):
        torch.rand(7)  # the state of torch's global generator does not matter
        generator = ResnetGenerator(2, channels=1, n_blocks=1, width=2)
        initialize(generator, seeded(seed))
        drawn.append(torch.cat([p.detach().flatten() for p in generator.parameters()]))
    assert torch.equal(drawn[0], drawn[1])
    assert not torch.equal(drawn[0], drawn[2])


@pytest.mark.parametrize(("dims", "plain"), [(2, nn.Conv2d), (3, nn.Conv3d)])
@pytest.mark.parametrize("kernel", [3, 7])
@pytest.mark.parametrize("outputs", [1, 3, networks.FEW_CHANNELS])
@pytest.mark.parametrize("bias", [True, False])
def test_reflection_is_what_torch_calls_so(dims, plain, kernel, outputs, bias):
    """With gradients, whether or not the kernel is split into planes; torch's are in 64 bits.

    Errors of 32 bits scale with the largest number, and vary between processors.
    """
    own_conv = networks.REFLECT[dims](2, outputs, kernel, padding=kernel // 2, bias=bias)
    torch_conv = plain(2, outputs, kernel, padding=kernel // 2, padding_mode="reflect", bias=bias)
    torch_conv.load_state_dict(own_conv.state_dict())
    image = torch.rand(2, 2, *(9, 8, 7)[:dims], generator=seeded())
    found = []
    for conv, precision in ((own_conv, torch.float32), (torch_conv.double(), torch.float64)):
        x = image.to(precision, copy=True).requires_grad_()
        y = conv(x)
        y.square().sum().backward()
        found.append([y.detach(), x.grad, *(p.grad for p in conv.parameters())])
    for own, known in zip(*found, strict=True):
        assert (own - known).abs().max() < 1e-5 * known.abs().max()


def test_reflection_keeps_layout_and_precision():
    channels = networks.FEW_CHANNELS
    conv = networks.REFLECT[2](3, channels, 3, padding=1).to(memory_format=torch.channels_last)
    image = torch.rand(1, 3, 8, 9).contiguous(memory_format=torch.channels_last)
    with torch.autocast("cpu", torch.bfloat16):
        made = conv(image.to(torch.bfloat16))
    assert made.dtype == torch.bfloat16
    assert made.is_contiguous(memory_format=torch.channels_last)
