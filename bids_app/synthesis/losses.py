"""Losses of the networks: equations 1 to 3 of Zotova et al. (2021).

The paper's G_B and D_B, the generator and discriminator of PET, are ``to_pet``; G_A and D_A are
``to_mri``.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bids_app.synthesis.models import ModelSpec
from bids_app.synthesis.networks import (
    ConditionedGenerator,
    PatchDiscriminator,
    ResnetGenerator,
    initialize,
)
from bids_app.synthesis.tissue import TissueModel


@dataclass(frozen=True)
class Translator:
    """Generator and discriminator of one direction of translation."""

    generator: nn.Module
    discriminator: nn.Module


def build_generator(spec: ModelSpec) -> ResnetGenerator | ConditionedGenerator:
    """Build the generator MRI → PET of a row of Table 1, with an unfitted tissue model if any.

    In the rows of the paper, the generator PET → MRI has the same architecture.
    """
    tiling = spec.tiling
    sizes = (tiling.spatial_dims, tiling.channels, spec.n_blocks, spec.width)
    if spec.condition is None:
        return ResnetGenerator(*sizes)
    return ConditionedGenerator(TissueModel(spec.condition), *sizes)


def build_translator(spec: ModelSpec, random: torch.Generator) -> Translator:
    """Build both networks of one direction, with weights drawn from ``random``."""
    tiling = spec.tiling
    translator = Translator(
        build_generator(spec), PatchDiscriminator(tiling.spatial_dims, tiling.channels, spec.width)
    )
    initialize(translator.generator, random)
    if isinstance(translator.generator, ConditionedGenerator):
        translator.generator.start_at_tissue()
    initialize(translator.discriminator, random)
    return translator


@dataclass(frozen=True)
class Translation:
    """Fakes of one batch, kept for the discriminators; all of shape (N, C, *size)."""

    fake_pet: Tensor
    fake_mri: Tensor | None


def discriminator_loss(on_real: Tensor, on_fake: Tensor) -> Tensor:
    """Compute the least-squares loss of a discriminator: eq. 1, first line.

    Parameters
    ----------
    on_real, on_fake : Tensor
        Outputs of the discriminator, any shape: 1 means real, 0 fake.

    Examples
    --------
    >>> from torch import ones, zeros
    >>> discriminator_loss(on_real=ones(2, 1, 3, 3), on_fake=zeros(2, 1, 3, 3))
    tensor(0.)
    """
    return on_fake.square().mean() + (on_real - 1).square().mean()


def _adversarial_loss(judge: Translator, fake: Tensor) -> Tensor:
    """Compute the least-squares loss of a generator: eq. 1, second line."""
    return (judge.discriminator(fake) - 1).square().mean()


def generator_loss(
    to_pet: Translator,
    to_mri: Translator | None,
    mri: Tensor,
    pet: Tensor,
    *,
    adversarial_weight: float,
    cycle_weight: float,
    mse_weight: float,
    condition: Tensor | None = None,
) -> tuple[Tensor, Translation]:
    """Compute the generators' loss: adversarial, eq. 1; MSE, eq. 2; cycle consistency, eq. 3.

    Parameters
    ----------
    to_pet : Translator
        Generator MRI → PET, and discriminator of PET.
    to_mri : Translator or None
        Generator PET → MRI, and discriminator of MRI; None for a Simple-GAN.
    mri, pet : Tensor, (N, channels, *size)
        True pairs in [0, 1].
    adversarial_weight, cycle_weight, mse_weight : float
        Weights of eq. 1, 3 and 2; see :class:`bids_app.synthesis.models.ModelSpec`. The cycle
        weight is unused in a Simple-GAN; the MSE weight is 0 in the rows of Table 1 without MSE.
    condition : Tensor, (N, channels, *size), optional
        Predictions of the tissue model for the same tiles, for a conditioned generator.

    Returns
    -------
    Tensor, ()
        Weighted sum of the losses.
    Translation
        Fakes, still attached to the graph.
    """

    def translated(t1w: Tensor) -> Tensor:
        inputs = t1w if condition is None else torch.cat([t1w, condition], dim=1)
        return to_pet.generator(inputs)

    fake_pet = translated(mri)
    loss = adversarial_weight * _adversarial_loss(to_pet, fake_pet)
    loss = loss + mse_weight * F.mse_loss(fake_pet, pet)
    if to_mri is None:
        return loss, Translation(fake_pet, None)
    fake_mri = to_mri.generator(pet)
    loss = loss + adversarial_weight * _adversarial_loss(to_mri, fake_mri)
    loss = loss + mse_weight * F.mse_loss(fake_mri, mri)
    mri_again, pet_again = to_mri.generator(fake_pet), translated(fake_mri)
    cycle = F.l1_loss(mri_again, mri) + F.l1_loss(pet_again, pet)
    return loss + cycle_weight * cycle, Translation(fake_pet, fake_mri)
