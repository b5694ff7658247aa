import pytest
import torch
from torch import nn

from bids_app.synthesis.losses import Translator, discriminator_loss, generator_loss

WEIGHTS = {"adversarial_weight": 1.0, "cycle_weight": 10.0, "mse_weight": 0.0}


class Shift(nn.Module):
    """Generator that adds a constant."""

    def __init__(self, by):
        super().__init__()
        self.by = nn.Parameter(torch.tensor(float(by)))

    def forward(self, x):
        return x + self.by


class Judge(nn.Module):
    """Discriminator with a constant output; it keeps its inputs."""

    def __init__(self, opinion):
        super().__init__()
        self.opinion, self.seen = opinion, []

    def forward(self, x):
        self.seen.append(x.detach())
        return torch.full((x.shape[0], 1, 2, 2), float(self.opinion))


GULLIBLE = 1.0


def translator(by, opinion=GULLIBLE):
    return Translator(Shift(by), Judge(opinion))


def images(mri, pet):
    return torch.full((2, 3, 4, 5), float(mri)), torch.full((2, 3, 4, 5), float(pet))


@pytest.mark.parametrize(
    ("cycle", "mse", "expected"),
    [(False, False, 0), (False, True, 0.25), (True, False, 20), (True, True, 20.5)],
)
def test_generators_wrong_by_a_half_and_gullible_judges(cycle, mse, expected):
    to_pet, to_mri = translator(0.5), translator(0.5) if cycle else None
    weights = {**WEIGHTS, "mse_weight": float(mse)}
    loss, _ = generator_loss(to_pet, to_mri, *images(0, 0), **weights)
    assert loss.item() == pytest.approx(expected)


class Seeing(nn.Module):
    """Generator that returns the second half of its input channels."""

    def forward(self, x):
        return x.chunk(2, dim=1)[1]


@pytest.mark.parametrize(("cycle", "expected"), [(False, 0), (True, 10 * 0.5)])
def test_the_condition_goes_where_a_t1w_becomes_a_pet(cycle, expected):
    """The way back has an error of 0.5 in the cycle T1w → PET → T1w, whatever the condition."""
    mri, pet = images(0.2, 0.7)
    to_pet = Translator(Seeing(), Judge(GULLIBLE))
    to_mri = translator(0.0) if cycle else None  # returns the PET itself, which is the T1w plus 0.5
    loss, made = generator_loss(to_pet, to_mri, mri, pet, **WEIGHTS, condition=pet)
    assert torch.equal(made.fake_pet, pet)
    assert loss.item() == pytest.approx(expected)


@pytest.mark.parametrize("cycle", [False, True])
def test_perfect_generators_and_gullible_judges_cost_nothing(cycle):
    to_pet, to_mri = translator(0.3), translator(-0.3) if cycle else None
    weights = dict.fromkeys(WEIGHTS, 7.0)
    loss, made = generator_loss(to_pet, to_mri, *images(0.2, 0.5), **weights)
    assert loss.item() == pytest.approx(0, abs=1e-5)
    assert torch.allclose(made.fake_pet, images(0.2, 0.5)[1])
    if cycle:
        assert torch.allclose(made.fake_mri, images(0.2, 0.5)[0])


@pytest.mark.parametrize(
    ("weight", "simple", "cycle"),
    [
        # discriminators return 0.2 for PET and 0.5 for MRI: (0.2 - 1)² = 0.64, (0.5 - 1)² = 0.25
        ("adversarial_weight", 0.64, 0.64 + 0.25),
        # the error of the PET is 0.1, that of the MRI 0.3
        ("mse_weight", 0.01, 0.01 + 0.09),
        # after a cycle, the error of both is 0.1 + 0.3
        ("cycle_weight", 0.0, 0.8),
    ],
)
def test_each_weight_acts_on_its_own_term(weight, simple, cycle):
    to_pet, to_mri = translator(0.4, opinion=0.2), translator(0.0, opinion=0.5)
    mri, pet = images(0.2, 0.5)
    weights = {**dict.fromkeys(WEIGHTS, 0.0), weight: 3.0}
    alone, made = generator_loss(to_pet, None, mri, pet, **weights)
    assert alone.item() == pytest.approx(3 * simple)
    assert made.fake_mri is None
    both, _ = generator_loss(to_pet, to_mri, mri, pet, **weights)
    assert both.item() == pytest.approx(3 * cycle)


def test_each_judge_sees_fakes_of_its_own_modality():
    to_pet, to_mri = translator(0.25), translator(-0.125)
    generator_loss(to_pet, to_mri, *images(0.5, 1.0), **WEIGHTS)
    assert [seen.unique().item() for seen in to_pet.discriminator.seen] == [0.75]
    assert [seen.unique().item() for seen in to_mri.discriminator.seen] == [0.875]


def test_generators_can_learn_from_it():
    to_pet, to_mri = translator(0.4), translator(0.1)
    loss, made = generator_loss(to_pet, to_mri, *images(0, 0), **{**WEIGHTS, "mse_weight": 1.0})
    loss.backward()
    # d/da [a² + b² + 10 · 2 |a + b|] = 2a + 20
    assert to_pet.generator.by.grad.item() == pytest.approx(2 * 0.4 + 20)
    assert to_mri.generator.by.grad.item() == pytest.approx(2 * 0.1 + 20)
    assert made.fake_pet.requires_grad


@pytest.mark.parametrize(
    ("on_real", "on_fake", "expected"),
    [(1, 0, 0), (0, 1, 2), (0.75, 0.5, 0.3125), (0.5, 0.75, 0.8125), (2, -1, 2)],
)
def test_discriminator_loss_by_hand(on_real, on_fake, expected):
    opinions = [torch.full((2, 1, 3, 3), float(value)) for value in (on_real, on_fake)]
    assert discriminator_loss(*opinions).item() == pytest.approx(expected)


def test_opinions_are_averaged_after_squaring():
    on_real, on_fake = torch.tensor([0.0, 2.0]), torch.tensor([-1.0, 1.0])
    assert discriminator_loss(on_real, on_fake).item() == pytest.approx(2)
