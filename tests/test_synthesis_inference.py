from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from bids_app.imaging.intensity import smooth
from bids_app.synthesis.inference import choose_dtype, predict, refuse_flat, synthesize
from bids_app.synthesis.losses import build_translator
from bids_app.synthesis.models import MODELS, TissueSpec
from bids_app.synthesis.tiling import CubicPatches, SliceTriplets
from bids_app.synthesis.tissue import TissueModel

SHAPE, ZOOMS = (17, 14, 11), (4.0, 5.0, 6.0)
TILINGS = [SliceTriplets(), CubicPatches(size=9, stride=3), SliceTriplets(step=1)]


class Change(nn.Module):
    """Generator that applies one function to every voxel."""

    def __init__(self, change):
        super().__init__()
        self.change, self.anything = change, nn.Parameter(torch.zeros(1))
        self.batches = []

    def forward(self, x):
        self.batches.append(len(x))
        return self.change(x)


@pytest.fixture
def t1w(rng):
    volume = 0.1 + 0.9 * rng.random(SHAPE).astype(np.float32)
    volume[:3], volume[:, :, 8:] = 0, 0
    return volume


@pytest.mark.parametrize("tiling", TILINGS, ids=str)
def test_a_generator_that_changes_nothing_gives_the_smoothed_t1w(t1w, tiling):
    before = t1w.copy()
    pet = synthesize(t1w, Change(lambda x: x), tiling, fwhm=7, zooms=ZOOMS)
    assert pet == pytest.approx(smooth(t1w, 7, ZOOMS), abs=1e-6)
    assert pet.dtype == np.float32
    assert np.array_equal(t1w, before)


@pytest.mark.parametrize("name", ["semi3d-gan-mse", "patch3d-gan-mse"])
def test_the_batch_size_does_not_change_the_result(t1w, name):
    spec = replace(MODELS[name], n_blocks=1, width=2)
    spec = replace(spec, tiling=TILINGS[spec.tiling.spatial_dims - 2])
    generator = build_translator(spec, torch.Generator().manual_seed(3)).generator.eval()
    for parameter in generator.parameters():
        parameter.data *= 10  # so that predictions differ
    one, two, all_at_once = (
        synthesize(t1w, generator, spec.tiling, fwhm=1.5, zooms=ZOOMS, batch_size=size)
        for size in (1, 2, 1000)
    )
    assert one.shape == SHAPE
    assert one.std() > 0.05
    assert one == pytest.approx(two, abs=1e-5)
    assert one == pytest.approx(all_at_once, abs=1e-5)


def test_the_network_sees_no_more_tiles_at_once_than_asked_for(t1w):
    generator = Change(lambda x: x)
    synthesize(np.ones_like(t1w), generator, SliceTriplets(), fwhm=0, zooms=ZOOMS, batch_size=3)
    assert generator.batches == [3, 1]


def test_overlapping_triplets_are_each_shown_to_the_network_and_averaged():
    t1w = np.full((2, 2, 4), 0.5, np.float32)
    values = iter([0.2, 0.6])
    generator = Change(lambda x: torch.full_like(x, next(values)))
    pet = predict(t1w, generator, SliceTriplets(step=1), batch_size=1)
    assert generator.batches == [1, 1]
    assert pet[0, 0] == pytest.approx([0.2, 0.4, 0.4, 0.6])


@pytest.mark.parametrize(
    "tiling", [SliceTriplets(), SliceTriplets(step=1), CubicPatches(5, 3)], ids=str
)
def test_tiles_without_brain_are_not_shown_to_the_network(t1w, tiling):
    t1w[:9] = 0
    generator = Change(torch.ones_like)
    pet = predict(t1w, generator, tiling)
    assert 0 < sum(generator.batches) < tiling.count(t1w.shape)
    assert (pet[t1w > 0] == 1).all()
    assert pet.min() == 0


@pytest.mark.parametrize(
    ("made", "words"),
    [(torch.nan, "not finite"), (torch.inf, "not finite"), (1.1, "1.1, but PET is 0 to 1")],
)
def test_what_is_no_pet_is_not_given(made, words):
    def spoil(x):
        y = x.clone()
        y.view(-1)[0] = made
        return y

    with pytest.raises(FloatingPointError, match=words):
        predict(np.full(SHAPE, 0.5, np.float32), Change(spoil), SliceTriplets())


def test_a_dead_network_is_refused_and_one_that_is_not_is_not(rng):
    t1w = np.zeros((4, 4, 4), np.float32)
    t1w[1:3] = rng.uniform(0.2, 1, (2, 4, 4))
    pet = np.where(t1w > 0, 0.5, 0).astype(np.float32)
    with pytest.raises(FloatingPointError, match=r"predicts 0\.5 everywhere in the brain"):
        refuse_flat(pet, t1w)
    refuse_flat(pet, pet)  # if the T1w is constant, so is the prediction
    pet[1, 1, 1] = 0.51
    refuse_flat(pet, t1w)


@pytest.mark.parametrize("name", ["semi3d-gan-mse", "patch3d-gan-mse"])
def test_networks_predict_in_bfloat16_what_they_do_in_float32(t1w, name):
    spec = replace(MODELS[name], n_blocks=1, width=4)
    spec = replace(spec, tiling=TILINGS[spec.tiling.spatial_dims - 2])
    generator = build_translator(spec, torch.Generator().manual_seed(3)).generator.eval()
    seen = set()
    for module in generator.modules():
        if not list(module.children()):
            module.register_forward_hook(lambda _module, _given, made: seen.add(made.dtype))
    whole = predict(t1w, generator, spec.tiling)
    assert seen == {torch.float32}
    half = predict(t1w, generator, spec.tiling, dtype=torch.bfloat16)
    assert torch.bfloat16 in seen
    assert half.dtype == np.float32
    assert 0 < np.abs(half - whole).max() < 0.02
    assert whole.std() > 0.01


@pytest.mark.parametrize(
    ("native", "device", "network", "expected"),
    [
        (True, "cpu", True, torch.bfloat16),
        (False, "cpu", True, torch.float32),
        (True, "cuda:0", True, torch.float32),
        (True, "cpu", False, torch.float32),
    ],
)
def test_networks_alone_compute_in_bfloat16_where_the_cpu_does(
    monkeypatch, native, device, network, expected
):
    monkeypatch.setattr("bids_app.synthesis.inference.has_bfloat16", lambda _device: native)
    made = Change(lambda x: x) if network else TissueModel(TissueSpec((1, 1, 1), SHAPE))
    assert choose_dtype(made, device) == expected
