from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save_file

from bids_app import files
from bids_app.detection import autoencoder
from bids_app.detection.autoencoder import (
    STRIDE,
    SiameseAutoencoder,
    _slide,
    cut_patches,
    latents_at,
    load_encoder,
    save_encoder,
)
from bids_app.detection.card import EncoderSpec
from bids_app.errors import MissingInputError, ReadWriteError, UnusableDataError

SPEC = EncoderSpec()
SPECS = [SPEC, EncoderSpec(patch=21), EncoderSpec(latents=12), EncoderSpec(channels=2)]
sides = st.integers(1, 33)
DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]


@torch.inference_mode()
def dense_latents(encoder: SiameseAutoencoder, slices: torch.Tensor) -> torch.Tensor:
    """Return the latents of the patch around every voxel, (S, latents, I, J)."""
    rows, columns = slices.shape[-2:]
    maps = _slide(encoder, slices.reshape(-1, encoder.channels, rows, columns))
    corners = [
        maps[:, :, STRIDE * a : STRIDE * a + rows, STRIDE * b : STRIDE * b + columns]
        for a in range(encoder.side)
        for b in range(encoder.side)
    ]
    return torch.cat(corners, dim=1)


def told(spec):
    return f"{spec.patch}-{spec.latents}-{spec.channels}"


def draw(rng, people, rows, columns, spec):
    """Draw slices of people, without a channel axis if there is one channel."""
    channels = (spec.channels,) * (spec.channels > 1)
    return rng.random((people, *channels, rows, columns), np.float32)


def new_encoder(spec=SPEC, seed=0):
    """Return an encoder with non-zero biases, so that zeros hide no errors."""
    random = torch.Generator().manual_seed(seed)
    encoder = SiameseAutoencoder(spec, random).eval()
    for name, tensor in encoder.named_parameters():
        if name.endswith("bias"):
            torch.nn.init.uniform_(tensor, -0.5, 0.5, generator=random)
    return encoder


@torch.no_grad()
def patch_by_patch(encoder, slices):
    """Extract the patch around every voxel and encode it: (S, …, I, J) → (S, latents, I, J)."""
    rows, columns = slices.shape[-2:]
    centres = np.argwhere(np.ones((rows, columns, 1), bool))
    planes = slices.reshape(len(slices), encoder.channels, rows, columns)
    encoded = []
    for plane in planes:
        patches = [cut_patches(channel[..., None], centres, encoder.patch) for channel in plane]
        encoded.append(encoder.encode(torch.from_numpy(np.stack(patches, axis=1))))
    return torch.stack(encoded).unflatten(1, (rows, columns)).permute(0, 3, 1, 2).numpy()


def skip_without(device):
    if device == "cuda" and not torch.cuda.is_available():
        pytest.skip("no CUDA device")


# Dense latents


@pytest.mark.parametrize("spec", SPECS, ids=told)
@given(people=st.integers(1, 3), rows=sides, columns=sides, seed=st.integers(0, 99))
def test_dense_latents_are_those_patch_by_patch(spec, people, rows, columns, seed):
    encoder = new_encoder(spec, seed)
    slices = draw(np.random.default_rng(seed), people, rows, columns, spec)
    dense = dense_latents(encoder, torch.from_numpy(slices)).numpy()
    assert dense.shape == (people, spec.latents, rows, columns)
    np.testing.assert_allclose(dense, patch_by_patch(encoder, slices), rtol=0, atol=1e-5)


@pytest.mark.parametrize("shape", [(1, 1), (1, 40), (15, 15), (16, 17), (53, 64)])
def test_dense_latents_are_those_patch_by_patch_also_at_borders(shape):
    encoder, slices = new_encoder(), np.ones((1, *shape), np.float32)
    dense = dense_latents(encoder, torch.from_numpy(slices)).numpy()
    np.testing.assert_allclose(dense, patch_by_patch(encoder, slices), rtol=0, atol=1e-5)


@given(step=st.tuples(st.integers(0, 5), st.integers(0, 5)), seed=st.integers(0, 99))
def test_latents_move_with_the_image(step, seed):
    encoder = new_encoder(seed=seed)
    image = np.zeros((1, 40, 42), np.float32)
    image[:, 8:25, 9:27] = np.random.default_rng(seed).random((17, 18))
    moved = np.roll(image, step, (1, 2))
    one, other = (dense_latents(encoder, torch.from_numpy(x)).numpy() for x in (image, moved))
    np.testing.assert_allclose(np.roll(one, step, (2, 3)), other, rtol=0, atol=1e-5)


def test_a_voxel_changes_the_latents_of_the_patches_it_is_in_and_no_others(rng):
    encoder = new_encoder()
    image = torch.from_numpy(rng.random((1, 40, 40), np.float32))
    other = image.clone()
    other[0, 20, 18] = 3
    changed = (dense_latents(encoder, image) != dense_latents(encoder, other)).any(dim=1)[0]
    expected = torch.zeros(40, 40, dtype=torch.bool)
    expected[13:28, 11:26] = True
    assert torch.equal(changed, expected)


@pytest.mark.parametrize("device", DEVICES)
def test_dense_latents_stay_where_the_encoder_is(device):
    skip_without(device)
    slices = torch.rand(2, 20, 21)
    there = dense_latents(new_encoder().to(device), slices.to(device))
    assert there.device.type == device
    torch.testing.assert_close(there.cpu(), dense_latents(new_encoder(), slices))


def test_dense_latents_need_no_gradient():
    assert not dense_latents(new_encoder(), torch.rand(1, 20, 20)).requires_grad


# Latents at the voxels of a mask


@pytest.mark.parametrize("spec", SPECS, ids=told)
@given(people=st.integers(1, 3), rows=sides, columns=sides, seed=st.integers(0, 99))
def test_latents_at_a_mask_are_the_dense_ones_there(spec, people, rows, columns, seed):
    rng = np.random.default_rng(seed)
    slices, mask = draw(rng, people, rows, columns, spec), rng.random((rows, columns)) > 0.5
    encoder = new_encoder(spec, seed)
    found = latents_at(encoder, slices, mask)
    assert (found.dtype, found.shape) == (np.float32, (mask.sum(), people, spec.latents))
    assert found.flags.c_contiguous
    dense = dense_latents(encoder, torch.from_numpy(slices)).numpy()
    np.testing.assert_allclose(found, dense[:, :, mask].transpose(2, 0, 1), rtol=0, atol=1e-5)


def test_latents_of_a_person_do_not_depend_on_who_else_is_encoded(rng):
    slices, mask = rng.random((4, 30, 31), np.float32), rng.random((30, 31)) > 0.5
    together = latents_at(new_encoder(), slices, mask)
    alone = latents_at(new_encoder(), slices[2:3], mask)
    np.testing.assert_array_equal(together[:, 2:3], alone)


def test_slices_may_lie_across_memory_and_on_disk(tmp_path, rng):
    volume = rng.random((4, 20, 21, 5)).astype(np.float32)
    mask = np.ones((20, 21), bool)
    np.save(tmp_path / "pet.npy", np.asfortranarray(volume))
    mapped = np.load(tmp_path / "pet.npy", mmap_mode="r")
    one, other = (latents_at(new_encoder(), v[..., 3], mask) for v in (volume, mapped))
    np.testing.assert_array_equal(one, other)


def test_slices_may_be_wider_numbers_and_views(rng):
    slices, mask = rng.random((2, 20, 21), np.float32), np.ones((20, 21), bool)
    turned = np.ascontiguousarray(slices[:, ::-1]).astype(np.float64)[:, ::-1]
    one, other = (latents_at(new_encoder(), given, mask) for given in (slices, turned))
    np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("device", DEVICES)
def test_latents_at_a_mask_come_back_from_the_device(device, rng):
    skip_without(device)
    slices, mask = rng.random((2, 20, 21), np.float32), rng.random((20, 21)) > 0.5
    found = latents_at(new_encoder().to(device), slices, mask)
    np.testing.assert_allclose(found, latents_at(new_encoder(), slices, mask), atol=1e-5)


def test_without_a_voxel_there_are_no_latents(rng):
    found = latents_at(new_encoder(), rng.random((2, 9, 9), np.float32), np.zeros((9, 9), bool))
    assert found.shape == (0, 2, 64)


def test_without_a_slice_there_are_no_latents():
    found = latents_at(new_encoder(), np.zeros((0, 9, 9), np.float32), np.ones((9, 9), bool))
    assert found.shape == (81, 0, 64)


# File format


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("spec", SPECS, ids=told)
def test_an_encoder_comes_back_from_its_file(tmp_path, spec, device):
    skip_without(device)
    encoder, path = new_encoder(spec), tmp_path / "fold-1" / "encoder.safetensors"
    save_encoder(path, encoder, spec)
    again = load_encoder(path, device)
    assert not again.training
    assert next(again.parameters()).device.type == device
    weights, found = encoder.state_dict(), again.state_dict()
    assert weights.keys() == found.keys()
    assert all(torch.equal(weights[name], found[name].cpu()) for name in weights)


def test_the_same_encoder_makes_the_same_file(tmp_path):
    for name in ("one", "other"):
        save_encoder(tmp_path / name, new_encoder(), SPEC)
    assert (tmp_path / "one").read_bytes() == (tmp_path / "other").read_bytes()


def test_an_encoder_that_cannot_be_written_keeps_the_one_before(tmp_path, monkeypatch):
    path = tmp_path / "encoder.safetensors"
    save_encoder(path, new_encoder(), SPEC)
    before = path.read_bytes()

    def no_space(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(files.Path, "replace", no_space)
    with pytest.raises(ReadWriteError, match=r"encoder\.safetensors: cannot be written"):
        save_encoder(path, new_encoder(seed=1), SPEC)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_an_encoder_that_is_not_there_is_missed(tmp_path):
    with pytest.raises(MissingInputError, match=r"encoder\.safetensors: no such file"):
        load_encoder(tmp_path / "encoder.safetensors")


def test_a_disk_that_fails_is_told_from_a_damaged_file(tmp_path, monkeypatch):
    def fail(*_, **__):
        raise OSError(5, "Input/output error")

    path = tmp_path / "encoder.safetensors"
    save_encoder(path, new_encoder(), SPEC)
    monkeypatch.setattr(autoencoder, "safe_open", fail)
    with pytest.raises(ReadWriteError, match=r"encoder\.safetensors: cannot be read \(Input"):
        load_encoder(path)


def state():
    return {name: tensor.contiguous() for name, tensor in new_encoder().state_dict().items()}


def cut(path):
    save_encoder(path, new_encoder(), SPEC)
    path.write_bytes(path.read_bytes()[:-100])


DAMAGES = {
    "cut": cut,
    "empty": lambda path: path.write_bytes(b""),
    "text": lambda path: path.write_text("not tensors at all"),
    "without metadata": lambda path: save_file(state(), path),
    "without a spec": lambda path: save_file(state(), path, metadata={"name": "encoder"}),
    "spec of no object": lambda path: save_file(state(), path, metadata={"spec": "[1]"}),
    "spec of no JSON": lambda path: save_file(state(), path, metadata={"spec": "{"}),
    "other latents": lambda path: save_encoder(path, new_encoder(), replace(SPEC, latents=32)),
    "fewer weights": lambda path: save_encoder(path, new_encoder().encoder, SPEC),
}


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
def test_a_file_that_is_no_encoder_is_refused_in_a_sentence(tmp_path, damage):
    path = tmp_path / "encoder.safetensors"
    damage(path)
    with pytest.raises(
        UnusableDataError, match=r"encoder\.safetensors: .*train the detector again"
    ):
        load_encoder(path)
