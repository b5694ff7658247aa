from dataclasses import asdict, replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn import functional as F

from bids_app.detection.autoencoder import (
    SiameseAutoencoder,
    cut_patches,
    draw_pairs,
    fit_encoder,
    reconstruction_errors,
    siamese_loss,
    train_encoder,
)
from bids_app.detection.card import EncoderSpec, spec_from_dict, spec_to_dict

SPEC = EncoderSpec()
BRIEF = replace(SPEC, epochs=3, pairs_per_epoch=400, batch_size=32)
SPECS = [SPEC, EncoderSpec(patch=21), EncoderSpec(latents=8), EncoderSpec(channels=2)]
sides = st.integers(1, 12)
seeds = st.integers(0, 99)


def told(spec):
    return f"{spec.patch}-{spec.latents}-{spec.channels}"


def new_encoder(spec=SPEC, seed=0):
    return SiameseAutoencoder(spec, torch.Generator().manual_seed(seed))


def smooth_people(rng, people=4, shape=(30, 34, 3)):
    """Return PET-like volumes, of shared and individual waves in an ellipse, and the ellipse."""
    places = np.stack(np.meshgrid(*(np.linspace(-1, 1, side) for side in shape), indexing="ij"))
    brain = np.hypot(places[0], places[1]) < 0.9

    def wave():
        return np.sin(np.tensordot(rng.normal(0, 5, 3), places, 1) + rng.uniform(0, 6))

    shared = 0.5 + 0.2 * wave() + 0.15 * wave()
    volumes = [np.where(brain, shared + 0.05 * wave(), 0) for _ in range(people)]
    return [volume.clip(0, 1).astype(np.float32) for volume in volumes], brain


# Specification


@pytest.mark.parametrize("spec", SPECS, ids=told)
def test_a_spec_survives_being_told(spec):
    assert spec_from_dict(spec_to_dict(spec)) == spec


@pytest.mark.parametrize(
    "change",
    [
        {"patch": 14},
        {"patch": 17},
        {"patch": 12},
        {"patch": 9},
        {"latents": 63},
        {"latents": 0},
        {"epochs": 0},
        {"pairs_per_epoch": 0},
        {"batch_size": 0},
        {"alpha": "much"},
        {"depth": 3},
    ],
    ids=str,
)
def test_a_spec_that_makes_no_encoder_is_refused(change):
    with pytest.raises(ValueError, match="not an encoder's spec"):
        spec_from_dict({**spec_to_dict(SPEC), **change})


def test_a_spec_that_lacks_a_value_is_refused():
    told = spec_to_dict(SPEC)
    del told["alpha"]
    with pytest.raises(ValueError, match="not an encoder's spec"):
        spec_from_dict(told)


# Network


def test_patches_of_15_voxels_become_11_9_3_and_2():
    x, sizes = torch.zeros(1, 1, 15, 15), []
    for layer in new_encoder().encoder:
        x = layer(x)
        sizes.append(tuple(x.shape[1:]))
    assert sizes[::2] == [(3, 11, 11), (4, 9, 9), (12, 3, 3), (16, 2, 2)]


@pytest.mark.parametrize("spec", SPECS, ids=told)
def test_a_patch_becomes_latents_and_a_patch_again(spec):
    encoder = new_encoder(spec)
    patches = torch.rand(3, spec.channels, spec.patch, spec.patch)
    latents = encoder.encode(patches)
    assert latents.shape == (3, spec.latents)
    made = encoder(patches)
    assert made.shape == patches.shape
    assert 0 <= made.min() <= made.max() <= 1


def test_latents_go_place_by_place_as_the_decoder_takes_them():
    encoder = new_encoder()
    patches = torch.rand(2, 1, 15, 15)
    maps = encoder.encoder(patches)
    latents = encoder.encode(patches)
    assert torch.equal(latents[:, 16:32], maps[:, :, 0, 1])
    assert torch.allclose(encoder.decode(latents), encoder.decoder(maps))


def test_every_latent_of_a_new_encoder_sees_its_own_part_of_the_patch():
    """Each corner latent sees 12 of the 15 voxels along an axis: 5 + 2 + 2 + 3."""
    encoder = new_encoder()
    patch = torch.rand(1, 1, 15, 15, requires_grad=True)
    encoder.encode(patch)[0, :16].sum().backward()
    seen = patch.grad[0, 0] != 0
    assert seen[:12, :12].all()
    assert not seen[12:].any()
    assert not seen[:, 12:].any()


def test_first_weights_come_from_the_generator_alone():
    before = torch.get_rng_state()
    one, same, another = (new_encoder(seed=seed).state_dict() for seed in (1, 1, 2))
    assert all(torch.equal(one[name], same[name]) for name in one)
    assert not any(torch.equal(one[n], another[n]) for n in one if n.endswith("weight"))
    assert torch.equal(torch.get_rng_state(), before)


def test_latents_of_a_new_encoder_tell_patches_apart():
    latents = new_encoder().encode(torch.rand(200, 1, 15, 15))
    assert latents.std(dim=0).min() > 1e-3


# Patches


@given(shape=st.tuples(sides, sides, sides), size=st.sampled_from([1, 3, 5, 9]), seed=seeds)
def test_a_patch_is_what_lies_around_its_voxel_and_0_beyond(shape, size, seed):
    rng = np.random.default_rng(seed)
    volume = rng.random(shape).astype(np.float32)
    centres = np.stack([rng.integers(side, size=5) for side in shape], axis=1)
    half = size // 2
    padded = np.pad(volume, ((half, half), (half, half), (0, 0)))
    expected = [padded[i : i + size, j : j + size, k] for i, j, k in centres]
    np.testing.assert_array_equal(cut_patches(volume, centres, size), expected)


def test_patches_of_a_mapped_volume_are_those_of_the_volume(tmp_path, rng):
    volume = rng.random((9, 8, 7)).astype(np.float32)
    np.save(tmp_path / "pet.npy", np.asfortranarray(volume))
    mapped = np.load(tmp_path / "pet.npy", mmap_mode="r")
    centres = np.argwhere(volume > 0.8)
    patches = cut_patches(mapped, centres, 5)
    assert type(patches) is np.ndarray
    np.testing.assert_array_equal(patches, cut_patches(volume, centres, 5))


def labelled(people, shape=(6, 5, 4)):
    """Return volumes whose voxels encode the person, in thousands, and the index of the place."""
    places = np.arange(np.prod(shape)).reshape(shape)
    return [(1000 * person + places).astype(np.float32) for person in range(people)]


@given(people=st.integers(2, 6), seed=seeds)
def test_the_patches_of_a_pair_are_two_peoples_at_one_place_of_the_brain(people, seed):
    rng = np.random.default_rng(seed)
    brain = rng.random((6, 5, 4)) > 0.7
    pairs = draw_pairs(labelled(people), np.argwhere(brain), 50, rng, size=3)
    person, place = np.divmod(pairs[:, :, 1, 1].astype(int), 1000)
    assert (person[:, 0] != person[:, 1]).all()
    np.testing.assert_array_equal(place[:, 0], place[:, 1])
    assert brain.ravel()[place].all()


def test_all_pairs_of_people_and_all_places_are_drawn_equally_often(rng):
    brain = np.zeros((6, 5, 4), bool)
    brain[1:3, 2, 1:4] = True
    pairs = draw_pairs(labelled(4), np.argwhere(brain), 12_000, rng, size=1)
    person, place = np.divmod(pairs[:, :, 0, 0].astype(int), 1000)
    _, of_people = np.unique(person[:, 0] * 4 + person[:, 1], return_counts=True)
    _, of_places = np.unique(place[:, 0], return_counts=True)
    assert (len(of_people), len(of_places)) == (12, 6)
    assert abs(of_people - 1000).max() < 5 * np.sqrt(1000)
    assert abs(of_places - 2000).max() < 5 * np.sqrt(2000)


def test_pairs_follow_the_generator():
    volumes, places = labelled(3), np.argwhere(np.ones((6, 5, 4), bool))
    one, same, another = (
        draw_pairs(volumes, places, 20, np.random.default_rng(seed), size=3) for seed in (1, 1, 2)
    )
    np.testing.assert_array_equal(one, same)
    assert not np.array_equal(one, another)


@pytest.mark.parametrize("people", [0, 1])
def test_a_pair_needs_two_controls(people, rng):
    with pytest.raises(ValueError, match=f"2 controls, not {people}"):
        draw_pairs(labelled(people), np.zeros((1, 3), int), 1, rng, size=3)


def test_an_empty_brain_has_no_pairs(rng):
    with pytest.raises(ValueError, match="no voxel"):
        draw_pairs(labelled(2), np.zeros((0, 3), int), 1, rng, size=3)


# Loss


@pytest.mark.parametrize(
    ("other", "cosine"), [([2.0, 0.0], 1.0), ([0.0, 3.0], 0.0), ([-1.0, 0.0], -1.0)]
)
def test_the_loss_weighs_both_errors_against_the_cosine(other, cosine):
    """Errors of 0.1 in one patch and 0.3 in the other: 0.01 + 0.09 - 0.5 cosine."""
    pairs = torch.zeros(1, 2, 15, 15)
    made = torch.stack([torch.full((15, 15), 0.1), torch.full((15, 15), 0.3)])[None]
    latents = torch.tensor([[[1.0, 0.0], other]])
    losses = siamese_loss(pairs, made, latents, alpha=0.5)
    assert float(losses.reconstruction) == pytest.approx(0.05)
    assert float(losses.similarity) == pytest.approx(cosine)
    assert float(losses.total) == pytest.approx(0.1 - 0.5 * cosine)


def test_the_order_of_a_pair_does_not_matter():
    pairs, made, latents = torch.rand(6, 2, 15, 15), torch.rand(6, 2, 15, 15), torch.rand(6, 2, 64)
    one = siamese_loss(pairs, made, latents, alpha=0.3).total
    other = siamese_loss(pairs.flip(1), made.flip(1), latents.flip(1), alpha=0.3).total
    assert float(one) == pytest.approx(float(other), rel=1e-6)


# Training


def test_training_learns_to_reconstruct_and_latents_stay_apart(rng):
    volumes, brain = smooth_people(rng)
    spec = replace(SPEC, epochs=6, pairs_per_epoch=1000, batch_size=32)
    encoder, epochs = train_encoder(volumes, brain, spec, seed=3)
    first, last = epochs[0], epochs[-1]
    assert last["reconstruction"] < 0.5 * first["reconstruction"]
    assert last["similarity"] > 0.8
    assert last["variance"] > 1e-3
    assert last["dimensions"] > 1.5
    assert not encoder.training
    patches = draw_pairs(volumes, np.argwhere(brain), 300, rng, size=15)
    latents = encoder.encode(torch.from_numpy(patches[:, :1]))
    spread = latents.std(dim=0)
    assert spread.min() > 0.01 * spread.max()
    own = F.mse_loss(encoder(torch.from_numpy(patches[:, :1])), torch.from_numpy(patches[:, :1]))
    assert float(own.detach()) < last["reconstruction"] * 1.5


def test_the_weight_of_similarity_makes_people_more_alike(rng):
    volumes, brain = smooth_people(rng)
    between = [
        train_encoder(volumes, brain, replace(BRIEF, alpha=alpha), seed=3)[1][-1]
        for alpha in (0.0, 1.0)
    ]
    assert between[1]["similarity"] > between[0]["similarity"]
    assert between[1]["between_people"] < between[0]["between_people"]


def test_training_with_a_seed_is_the_same_every_time(rng):
    volumes, brain = smooth_people(rng)
    (one, first), (same, again), (another, _) = (
        train_encoder(volumes, brain, BRIEF, seed=seed) for seed in (4, 4, 5)
    )
    assert first == again
    assert [epoch["number"] for epoch in first] == [1, 2, 3]
    ours, theirs, others = one.state_dict(), same.state_dict(), another.state_dict()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    assert not any(torch.equal(ours[name], others[name]) for name in ours)


def test_first_weights_follow_the_seed(rng):
    volumes, brain = smooth_people(rng)
    still = replace(SPEC, epochs=1, pairs_per_epoch=2, learning_rate=0.0)
    encoder, _ = train_encoder(volumes, brain, still, seed=6)
    expected = new_encoder(seed=6).state_dict()
    assert all(torch.equal(expected[n], tensor) for n, tensor in encoder.state_dict().items())


def test_steps_become_smaller_along_half_a_cosine(rng):
    """Adam's first step moves weights by the learning rate; the last of 4 steps by 15 % of it."""
    volumes, brain = smooth_people(rng)
    spec = replace(SPEC, epochs=4, pairs_per_epoch=32, batch_size=32)
    encoder, moves = new_encoder(), []
    weights = torch.cat([tensor.flatten() for tensor in encoder.parameters()]).detach()
    for _ in fit_encoder(encoder, volumes, brain, spec, rng):
        now = torch.cat([tensor.flatten() for tensor in encoder.parameters()]).detach()
        moves.append(float((now - weights).abs().max()) / spec.learning_rate)
        weights = now
    assert moves[0] == pytest.approx(1, rel=0.01)
    assert moves[-1] < 0.3


def test_training_yields_epoch_by_epoch_and_changes_the_encoder_between(rng):
    volumes, brain = smooth_people(rng)
    encoder = new_encoder()
    epochs = fit_encoder(encoder, volumes, brain, BRIEF, rng)
    before = {name: tensor.clone() for name, tensor in encoder.state_dict().items()}
    next(epochs)
    between = {name: tensor.clone() for name, tensor in encoder.state_dict().items()}
    next(epochs)
    assert not any(torch.equal(before[n], between[n]) for n in before)
    assert not any(torch.equal(between[n], tensor) for n, tensor in encoder.state_dict().items())


@torch.no_grad()
def test_the_losses_of_an_epoch_are_those_of_all_its_pairs_also_of_a_smaller_last_batch(rng):
    volumes, brain = smooth_people(rng)
    spec = replace(SPEC, alpha=0.3, epochs=1, pairs_per_epoch=33, batch_size=32, learning_rate=0.0)
    encoder = new_encoder()
    drawn = draw_pairs(volumes, np.argwhere(brain), 33, np.random.default_rng(8), size=15)
    pairs = torch.from_numpy(drawn)
    latents = encoder.encode(pairs.reshape(-1, 1, 15, 15))
    made = encoder.decode(latents).reshape(pairs.shape)
    expected = siamese_loss(pairs, made, latents.reshape(33, 2, 64), alpha=0.3)
    with torch.enable_grad():
        epoch = next(fit_encoder(encoder, volumes, brain, spec, np.random.default_rng(8)))
    assert epoch.loss == pytest.approx(float(expected.total), rel=1e-5)
    assert epoch.reconstruction == pytest.approx(float(expected.reconstruction), rel=1e-5)
    assert epoch.similarity == pytest.approx(float(expected.similarity), rel=1e-5)


def first_epoch(volumes, brain, encoder, rng):
    """Run an epoch of one step; its log describes the state before the step."""
    spec = replace(SPEC, epochs=1, pairs_per_epoch=500, batch_size=500)
    return next(fit_encoder(encoder, volumes, brain, spec, rng))


def test_the_spread_of_latents_is_that_of_all_patches_of_the_epoch(rng):
    volumes, brain = smooth_people(rng)
    encoder = new_encoder()
    pairs = draw_pairs(volumes, np.argwhere(brain), 500, np.random.default_rng(8), size=15)
    with torch.no_grad():
        values = encoder.encode(torch.from_numpy(pairs).flatten(0, 1)[:, None]).double().numpy()
    epoch = first_epoch(volumes, brain, encoder, np.random.default_rng(8))
    eigenvalues = np.linalg.eigvalsh(np.cov(values.T, bias=True))
    halves = np.square(values[::2] - values[1::2]).mean() / 2
    assert epoch.variance == pytest.approx(values.var(axis=0).mean(), rel=1e-4)
    assert epoch.dimensions == pytest.approx(
        eigenvalues.sum() ** 2 / np.square(eigenvalues).sum(), rel=1e-4
    )
    assert epoch.between_people == pytest.approx(halves / epoch.variance, rel=1e-4)


def test_a_collapse_shows_in_the_epochs_spread(rng):
    volumes, brain = smooth_people(rng)
    encoder = new_encoder()
    torch.nn.init.zeros_(encoder.encoder[-1].weight)
    torch.nn.init.ones_(encoder.encoder[-1].bias)
    epoch = first_epoch(volumes, brain, encoder, rng)
    assert (epoch.variance, epoch.dimensions, epoch.between_people) == (0, 0, 0)
    assert epoch.similarity == pytest.approx(1)


def test_equal_people_have_nothing_between_them(rng):
    volumes, brain = smooth_people(rng)
    epoch = first_epoch([volumes[0]] * 3, brain, new_encoder(), rng)
    assert epoch.between_people == pytest.approx(0, abs=1e-12)
    assert epoch.variance > 0


def test_a_value_that_is_no_number_stops_training(rng):
    volumes, brain = smooth_people(rng)
    volumes[1][brain] = np.nan
    with pytest.raises(FloatingPointError, match="not finite in epoch 1"):
        train_encoder(volumes, brain, BRIEF, seed=0)


def test_a_control_on_another_grid_is_refused(rng):
    volumes, brain = smooth_people(rng)
    with pytest.raises(ValueError, match="grid"):
        train_encoder([*volumes, volumes[0][1:]], brain, BRIEF, seed=0)


def test_an_epoch_is_plain_values(rng):
    volumes, brain = smooth_people(rng)
    epoch = first_epoch(volumes, brain, new_encoder(), rng)
    assert {type(value) for value in asdict(epoch).values()} == {int, float}


def test_errors_of_reconstruction_are_those_of_patches_one_by_one(rng):
    volumes, brain = smooth_people(rng)
    encoder, centres = new_encoder().eval(), np.argwhere(brain)[::97]
    errors = reconstruction_errors(encoder, volumes[0], centres)
    for error, patch in zip(errors, cut_patches(volumes[0], centres, SPEC.patch), strict=True):
        with torch.inference_mode():
            made = encoder(torch.from_numpy(patch)[None, None])[0, 0].numpy()
        assert error == pytest.approx(np.mean((made - patch) ** 2), rel=1e-4)
