import hashlib
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.lib.stride_tricks import sliding_window_view
from safetensors.torch import save_file

from bids_app.errors import MissingInputError, ReadWriteError, UnusableDataError
from bids_app.synthesis import scoring
from bids_app.synthesis.scoring import (
    PUBLISHED_SHA256,
    SMALLEST_SIDE,
    Lpips,
    Scorer,
    load_lpips,
    volume_lpips,
)

REAL = Path(__file__).parents[2] / "shared" / "data" / "lpips" / "alexnet_lpips_v0.1.pth"
real = pytest.mark.skipif(not REAL.is_file(), reason=f"{REAL.name} is not in shared/data/lpips")


def draw_weights(seed=7):
    """Draw weights that keep every layer active: N inputs share a variance of 2."""
    rng, weights = np.random.default_rng(seed), {}
    for name, tensor in Lpips("drawn").state_dict().items():
        shape = tuple(tensor.shape)
        drawn = rng.normal(size=shape) * np.sqrt(2 / max(np.prod(shape[1:]), 50))
        weights[name] = torch.tensor(np.abs(drawn) if "lin" in name else drawn, dtype=torch.float32)
    return weights


WEIGHTS = draw_weights()


@pytest.fixture(scope="module")
def network():
    made = Lpips("drawn").eval()
    made.load_state_dict(WEIGHTS)
    return made


@pytest.fixture(scope="module")
def pair():
    rng = np.random.default_rng(11)
    return rng.random((2, 40, 35, 5), dtype=np.float32)


def convolve(image, kernel, bias, stride, padding):
    """Convolve (C, I, J) with (D, C, S, S) → (D, smaller I, smaller J)."""
    padded = np.pad(image, ((0, 0), (padding, padding), (padding, padding)))
    windows = sliding_window_view(padded, kernel.shape[2:], axis=(1, 2))[:, ::stride, ::stride]
    return np.einsum("cijkl,dckl->dij", windows, kernel, optimize=True) + bias[:, None, None]


def pool(image):
    return sliding_window_view(image, (3, 3), axis=(1, 2))[:, ::2, ::2].max((3, 4))


def unit_features(grey, weights):
    """Compute AlexNet's features of one slice in [0, 1], in float64 and without torch."""
    shift, scale = np.array([-0.030, -0.088, -0.188]), np.array([0.458, 0.448, 0.450])
    colours = np.stack([2 * grey.astype(np.float64) - 1] * 3, axis=-1)
    x = np.moveaxis((colours - shift) / scale, -1, 0)
    for number, stride, padding in ((0, 4, 2), (3, 1, 2), (6, 1, 1), (8, 1, 1), (10, 1, 1)):
        x = pool(x) if number in (3, 6) else x
        kernel, bias = (weights[f"features.{number}.{part}"] for part in ("weight", "bias"))
        x = np.maximum(convolve(x, kernel, bias, stride, padding), 0)
        yield x / (np.sqrt((x**2).sum(0)) + 1e-10)


def enlarge(image, shape):
    """Interpolate linearly between pixel centres; constant beyond the last ones."""
    for axis, side in enumerate(shape):
        samples = np.arange(image.shape[axis])
        places = (np.arange(side) + 0.5) * len(samples) / side - 0.5
        resample = partial(np.interp, places, samples)
        image = np.apply_along_axis(resample, axis, image)
    return image


def oracle(one, other, tensors):
    """Compute LPIPS of every slice, (K,), and its map, (I, J, K), by numpy only."""
    weights = {name: tensor.numpy().astype(np.float64) for name, tensor in tensors.items()}
    values, maps = [], []
    for k in range(one.shape[-1]):
        features = zip(
            unit_features(one[..., k], weights), unit_features(other[..., k], weights), strict=True
        )
        layers = [
            np.tensordot(weights[f"lin{number}.model.1.weight"][0, :, 0, 0], (a - b) ** 2, 1)
            for number, (a, b) in enumerate(features)
        ]
        values.append(sum(layer.mean() for layer in layers))
        maps.append(sum(enlarge(layer, one.shape[:2]) for layer in layers))
    return np.array(values), np.stack(maps, axis=-1)


def waves(shape=(53, 64, 3)):
    """Return two volumes and a mask by formulas, equal on any machine."""
    i, j, k = np.meshgrid(*(np.arange(side) for side in shape), indexing="ij")
    one = 0.5 + 0.5 * np.sin(i / 5) * np.cos(j / 7 + k)
    other = 0.5 + 0.4 * np.sin(i / 5 + 0.3) * np.cos(j / 6 + k)
    where = (i - 26) ** 2 / 400 + (j - 32) ** 2 / 600 < 1
    return one.astype(np.float32), other.astype(np.float32), where


def test_identical_volumes_are_at_distance_zero(network, pair):
    assert volume_lpips(network, pair[0], pair[0].copy()) == (0, 0)


def test_it_does_not_matter_which_volume_comes_first(network, pair):
    there, back = volume_lpips(network, *pair), volume_lpips(network, *pair[::-1])
    assert there == pytest.approx(back, rel=1e-6)
    assert min(there) > 0.1


def test_another_implementation_agrees(network, pair):
    values, spread = oracle(*pair, WEIGHTS)
    where = spread > np.median(spread)
    measured = volume_lpips(network, *pair, where)
    assert measured.whole == pytest.approx(values.mean(), abs=1e-5)
    assert measured.chosen == pytest.approx(spread[where].mean(), abs=1e-5)
    assert spread[where].mean() > values.mean() + 0.01


@pytest.mark.parametrize("shape", [(31, 31, 1), (40, 48, 2), (53, 64, 2), (33, 71, 1)])
def test_another_implementation_agrees_on_any_shape(network, shape):
    one, other = np.random.default_rng(17).random((2, *shape), dtype=np.float32)
    values, spread = oracle(one, other, WEIGHTS)
    expected = values.mean(), spread.mean()
    assert volume_lpips(network, one, other) == pytest.approx(expected, abs=1e-5)


def test_the_batch_size_does_not_change_the_result(network, pair):
    where = pair[0] > 0.5
    one, two, all_at_once = (
        volume_lpips(network, *pair, where, batch_size=size) for size in (1, 2, 100)
    )
    assert one == pytest.approx(two, rel=1e-6)
    assert one == pytest.approx(all_at_once, rel=1e-6)


def test_two_halves_of_a_volume_make_up_the_whole(network, pair):
    where = np.zeros(pair[0].shape, bool)
    where[:13] = True
    share = where.mean()
    inside, outside, everywhere = (
        volume_lpips(network, *pair, mask) for mask in (where, ~where, None)
    )
    both = share * inside.chosen + (1 - share) * outside.chosen
    assert both == pytest.approx(everywhere.chosen, rel=1e-6)
    assert inside.chosen != pytest.approx(outside.chosen, rel=1e-3)
    assert inside.whole == outside.whole == everywhere.whole


def test_a_difference_counts_in_its_own_slice_and_place(network, pair):
    one = pair[0]
    other, near, far = one.copy(), np.zeros(one.shape, bool), np.zeros(one.shape, bool)
    other[4:9, 4:9, 2] = 1 - other[4:9, 4:9, 2]
    near[4:9, 4:9, 2], far[4:9, 4:9, 3] = True, True
    assert volume_lpips(network, one, other, far).chosen == 0
    near_lpips = volume_lpips(network, one, other, near)
    assert near_lpips.chosen > 3 * near_lpips.whole > 0


def test_no_voxel_has_no_distance(network, pair):
    measured = volume_lpips(network, *pair, np.zeros(pair[0].shape, bool))
    assert np.isnan(measured.chosen)
    assert measured.whole > 0


def test_white_against_black_by_hand():
    """Channel 0 responds to white, 1 to black: unit vectors, squared differences of 1 and 1."""
    network = Lpips("by hand")
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.zero_()
        network.features[0].weight[0, :, 5, 5] = 1
        network.features[0].weight[1, :, 5, 5] = -1
        network.lin0.model[1].weight[0, :2, 0, 0] = torch.tensor([0.25, 0.5])
    white, black = np.ones((35, 40, 2), np.float32), np.zeros((35, 40, 2), np.float32)
    assert volume_lpips(network, white, black) == pytest.approx((0.75, 0.75))
    # 0.49 and 0.51 are on both sides of the colour shift: -0.102 on [-1, 1], here 0.449
    assert volume_lpips(network, white * 0.49, white * 0.51) == pytest.approx((0, 0))
    assert volume_lpips(network, white * 0.44, white * 0.46) == pytest.approx((0.75, 0.75))


def test_the_smallest_side_is_what_the_pools_need(network):
    least, less = (torch.zeros(1, 3, side, side) for side in (SMALLEST_SIDE, SMALLEST_SIDE - 1))
    assert [distance.shape[-1] for distance in network(least, least)] == [7, 3, 1, 1, 1]
    with pytest.raises(RuntimeError, match="too small"):
        network(less, less)


@given(sides=st.tuples(st.integers(1, 34), st.integers(1, 34)))
def test_small_slices_are_filled_up_around_with_their_border(network, sides):
    one, other = np.random.default_rng(19).random((2, *sides, 1), dtype=np.float32)
    filling = [
        (missing // 2, missing - missing // 2) for missing in (max(31 - side, 0) for side in sides)
    ]
    larger = [np.pad(volume, [*filling, (0, 0)], mode="edge") for volume in (one, other)]
    inside = np.pad(np.ones(one.shape, bool), [*filling, (0, 0)])
    expected = volume_lpips(network, *larger, inside)
    assert volume_lpips(network, one, other) == pytest.approx(expected, abs=1e-6)


def test_volumes_are_left_as_they_were(network, pair):
    before = pair.copy()
    volume_lpips(network, *pair)
    assert np.array_equal(pair, before)


@pytest.mark.parametrize("save", [torch.save, save_file])
def test_weights_are_read_from_either_kind_of_file(network, pair, tmp_path, monkeypatch, save):
    path = tmp_path / ("weights.pth" if save is torch.save else "weights.safetensors")
    save(WEIGHTS, path)
    if save is save_file:
        monkeypatch.delattr(torch, "load")  # only recent versions of it read safetensors
    loaded = load_lpips(path)
    assert volume_lpips(loaded, *pair) == volume_lpips(network, *pair)
    assert not loaded.training
    assert not any(parameter.requires_grad for parameter in loaded.parameters())
    assert loaded.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    assert not loaded.is_published
    assert Scorer("m", 1, 0.0, path, "cpu").plain_values()["LPIPSWeights"] == loaded.sha256
    assert Scorer("m", 1, 0.0, None, "cpu").plain_values()["LPIPSWeights"] == ""
    monkeypatch.setattr(scoring, "FETCHED_SHA256", loaded.sha256)  # two files of the same weights
    assert loaded.weights == Lpips(PUBLISHED_SHA256).weights == "published"


def test_weights_that_are_not_there(tmp_path):
    for path in (tmp_path / "none.pth", tmp_path):
        with pytest.raises(MissingInputError, match=f"^{path}: no such file; --lpips-weights"):
            load_lpips(path)


@pytest.mark.skipif(not Path("/proc/self/mem").exists(), reason="/proc/self/mem is absent")
def test_weights_that_cannot_be_read():
    with pytest.raises(ReadWriteError, match=r"^/proc/self/mem: cannot be read \(.+\)$"):
        load_lpips(Path("/proc/self/mem"))


def without(name):
    return {key: tensor for key, tensor in WEIGHTS.items() if key != name}


HEAD = "lin2.model.1.weight"
WRONG = {
    "a tensor": (torch.zeros(3), "not a plain dict of tensors"),
    "nested": ({"state_dict": WEIGHTS}, "not a plain dict of tensors"),
    "missing": (without(HEAD), f"{HEAD} is missing"),
    "unknown": ({**WEIGHTS, "classifier.1.bias": torch.zeros(2)}, "classifier.1.bias is unknown"),
    "numbered": ({0: torch.zeros(2)}, "0 is unknown"),
    "shape": (
        {**WEIGHTS, HEAD: torch.zeros(1, 64, 1, 1)},
        f"{HEAD} has shape (1, 64, 1, 1), not (1, 384, 1, 1)",
    ),
    "not finite": (
        {**WEIGHTS, HEAD: WEIGHTS[HEAD] * torch.nan},
        f"{HEAD} contains a value that is not a finite number",
    ),
    "whole numbers": (
        {**WEIGHTS, HEAD: WEIGHTS[HEAD].int()},
        f"{HEAD} contains a value that is not a finite number",
    ),
}


@pytest.mark.parametrize(("content", "reason"), WRONG.values(), ids=WRONG.keys())
def test_other_tensors_are_refused_in_a_sentence(tmp_path, content, reason):
    path = tmp_path / "weights.pth"
    torch.save(content, path)
    with pytest.raises(UnusableDataError) as caught:
        load_lpips(path)
    said = str(caught.value)
    assert said.startswith(f"{path}: not the weights of LPIPS ({reason}); --lpips-weights needs ")
    assert "\n" not in said


@pytest.mark.parametrize("name", ["weights.pth", "weights.safetensors"])
@pytest.mark.parametrize(
    "content", [b"", b"PK\x03\x04", b"not weights", bytes(range(256)), b"\x80"]
)
def test_other_files_are_refused_in_a_sentence(tmp_path, name, content):
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(UnusableDataError, match=r"\(not a file of tensors\); --lpips-weights"):
        load_lpips(path)


class Trap:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


def test_code_in_a_file_is_not_run(tmp_path):
    path, touched = tmp_path / "weights.pth", tmp_path / "touched"
    torch.save({**WEIGHTS, HEAD: Trap(touched)}, path)
    with pytest.raises(UnusableDataError):
        load_lpips(path)
    assert not touched.exists()
    torch.load(path, weights_only=False)
    assert touched.exists()


@real
def test_the_published_file_is_known_by_its_checksum():
    assert load_lpips(REAL).is_published


@real
def test_the_published_weights_give_a_known_distance():
    # By oracle() above, in float64, on waves(). The authors' package, lpips 0.1.4, run by hand on
    # the same slices with spatial=False and True, gives 0.042750340 and 0.044164711.
    expected = 0.0427503377, 0.0441647047
    assert volume_lpips(load_lpips(REAL), *waves()) == pytest.approx(expected, rel=1e-5)
