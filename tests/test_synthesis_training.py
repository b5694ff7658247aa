from collections import Counter
from dataclasses import replace

import pytest
import torch
from trainings import CYCLE, SIMPLE, seeded, start

from bids_app.synthesis import checkpoint
from bids_app.synthesis.models import MODELS
from bids_app.synthesis.pairs import Pair
from bids_app.synthesis.training import (
    LARGEST_GRADIENT,
    Fit,
    ImagePool,
    Losses,
    learning_rate,
    resume_training,
    shuffled_batches,
)


def everything(training):
    """Return all numbers of the state of a training."""
    return {name: tensor.clone() for name, tensor in checkpoint._state(Fit(training)).items()}


def assert_equal(one, other):
    assert one.keys() == other.keys()
    assert [name for name in one if not torch.equal(one[name], other[name])] == []


# Training loop


def train(training, pairs):
    """Run all epochs, one at a time, without validation."""
    return resume_training(Fit(training), pairs, validate=None, last_epoch=training.spec.epochs)


@pytest.mark.parametrize("spec", [SIMPLE, CYCLE], ids=["simple", "cycle"])
def test_the_loss_falls(spec, pairs):
    spec = replace(spec, epochs=12, constant_epochs=12, learning_rate=5e-3)
    epochs = list(train(start(spec), pairs))
    assert [row.epoch for row in epochs] == list(range(1, 13))
    assert epochs[-1].generator_loss < 0.8 * epochs[0].generator_loss
    assert epochs[-1].discriminator_loss < epochs[0].discriminator_loss


def test_equal_seeds_give_equal_weights(pairs):
    ends = []
    for seed in (0, 0, 1):
        torch.rand(3)  # the state of torch's global generator does not matter
        training = start(replace(CYCLE, epochs=1), seed)
        list(train(training, pairs))
        ends.append(everything(training))
    assert_equal(ends[0], ends[1])
    assert not torch.equal(*(end["generators.0.layers.0.weight"] for end in (ends[0], ends[2])))


def test_a_step_moves_all_networks_and_only_by_their_own_loss(pairs):
    """Discriminator updates do not depend on the weights of generator losses, nor vice versa."""
    ends = []
    for weight in (0.0, 100.0):
        training = start(replace(CYCLE, mse_weight=weight))
        before = everything(training)
        training.step(next(shuffled_batches(pairs, CYCLE, seeded(3))))
        after = everything(training)
        still = [n for n in before if n.endswith("weight") and torch.equal(before[n], after[n])]
        assert still == []
        ends.append(after)
    judges = [name for name in ends[0] if name.startswith("discriminators.")]
    assert all(torch.equal(ends[0][name], ends[1][name]) for name in judges)
    assert not torch.equal(*(end["generators.0.layers.0.weight"] for end in ends))


@pytest.mark.parametrize("weight", [1e-3, 1e7])
def test_gradients_of_a_step_are_cut_to_a_norm_of_10_and_keep_their_direction(pairs, weight):
    spec = replace(SIMPLE, mse_weight=weight, adversarial_weight=0.0)
    training = start(spec)
    training.step(next(shuffled_batches(pairs, spec, seeded(3))))
    found = torch.cat([own.grad.flatten() for own in training.generators.parameters()])
    plain = start(spec)
    plain.spec = replace(spec, mse_weight=1e-3)
    plain.step(next(shuffled_batches(pairs, spec, seeded(3))))
    expected = torch.cat([own.grad.flatten() for own in plain.generators.parameters()])
    cut = weight / 1e-3 * float(expected.norm()) > LARGEST_GRADIENT
    assert cut == (weight > 1)
    norm = LARGEST_GRADIENT if cut else float(expected.norm())
    assert float(found.norm()) == pytest.approx(norm, rel=1e-3)
    torch.testing.assert_close(
        found / found.norm(), expected / expected.norm(), atol=1e-4, rtol=1e-2
    )


def test_an_epoch_tells_the_mean_of_its_steps(pairs, monkeypatch):
    steps = iter([Losses(1.0, 10.0), Losses(2.0, 20.0), Losses(6.0, 30.0)])
    training = start(SIMPLE)
    monkeypatch.setattr(training, "step", lambda *_batch: next(steps))
    batches = shuffled_batches(pairs[:1], replace(SIMPLE, batch_size=1), seeded())
    assert training.run_epoch(batches) == Losses(3.0, 20.0)
    assert training.epoch == 1


def test_a_value_that_is_no_number_stops_training(pairs):
    first, other = pairs
    broken = first.mri.clone()
    broken[3, 3, 3] = torch.nan
    with pytest.raises(FloatingPointError, match="epoch 1"):
        list(train(start(SIMPLE), [Pair(broken, first.pet), other]))


def test_the_learning_rate_is_constant_then_falls_to_0():
    spec = MODELS["semi3d-cyclegan-mse"]
    rates = [learning_rate(spec, epoch) for epoch in (0, 50, 100, 125, 175, 200)]
    assert rates == pytest.approx([2e-4, 2e-4, 2e-4, 1.5e-4, 0.5e-4, 0])


def test_the_learning_rate_of_patches_is_constant():
    assert {learning_rate(MODELS["patch3d-gan-mse"], epoch) for epoch in range(100)} == {2e-4}


def test_epochs_use_their_learning_rate(pairs):
    training = start(replace(SIMPLE, epochs=4, constant_epochs=2))
    rates = []
    for _ in train(training, pairs[:1]):
        optimizers = (training.generator_optimizer, training.discriminator_optimizer)
        rates += [{group["lr"] for one in optimizers for group in one.param_groups}]
    assert rates == [{2e-4}, {2e-4}, {2e-4}, {1e-4}]


# Batches


def test_an_epoch_sees_each_tile_once_with_its_partner():
    sizes = [(4, 5, 7), (3, 4, 9)]
    first = torch.arange(4 * 5 * 7.0).reshape(sizes[0])
    second = 1000 + torch.arange(3 * 4 * 9.0).reshape(sizes[1])
    for volume in (first, second):
        batches = list(shuffled_batches([Pair(volume, -volume)], SIMPLE, seeded()))
        assert [(len(batch.mri), batch.total) for batch in batches] == [(2, 2), (1, 1)]
        assert all(torch.equal(batch.mri, -batch.pet) for batch in batches)
    pairs = [Pair(first[:3, :4], -first[:3, :4]), Pair(second, -second)]
    batches = shuffled_batches(pairs, SIMPLE, seeded())
    corners = Counter(tile[0, 0, 0].item() for batch in batches for tile in batch.mri)
    assert corners == Counter([0, 3, 6, 1000, 1003, 1006])


def test_the_order_of_tiles_comes_from_the_generator(pairs):
    def order(random):
        return torch.cat([batch.mri for batch in shuffled_batches(pairs, SIMPLE, random)])

    random = seeded(1)
    first, second = order(random), order(random)
    assert not torch.equal(first, second)
    assert torch.equal(first, order(seeded(1)))


# Pool


def test_a_pool_gives_the_first_fakes_back():
    pool = ImagePool(4, seeded())
    fakes = torch.rand(4, 1, 2, 2)
    assert torch.equal(pool.exchange(fakes), fakes)


def test_a_pool_never_holds_more_than_its_size():
    pool = ImagePool(5, seeded())
    for number in range(20):
        pool.exchange(torch.full((2, 1), float(number)))
        assert len(pool.images) <= 5
    assert len(pool.images) == 5


def test_a_pool_exchanges_every_second_fake_for_an_older_one():
    pool, size, count = ImagePool(10, seeded()), 10, 2000
    pool.exchange(torch.arange(10.0)[:, None])
    fakes = torch.arange(10.0, 10 + count)[:, None]
    given = pool.exchange(fakes)
    exchanged = given[:, 0] != fakes[:, 0]
    assert exchanged.float().mean().item() == pytest.approx(0.5, abs=0.05)
    assert (given[exchanged, 0] < fakes[exchanged, 0]).all()
    # no image is lost or returned twice
    seen = [*given[:, 0].tolist(), *(float(image) for image in pool.images)]
    assert sorted(seen) == list(range(count + size))


def test_a_pool_remembers_copies():
    pool, fake = ImagePool(1, seeded()), torch.zeros(1, 3)
    pool.exchange(fake)
    fake += 1
    assert pool.images[0].tolist() == [0, 0, 0]


def test_a_pool_of_no_size_remembers_nothing():
    pool, fakes = ImagePool(0, seeded()), torch.rand(9, 2)
    assert torch.equal(pool.exchange(fakes), fakes)
    assert pool.images == []
