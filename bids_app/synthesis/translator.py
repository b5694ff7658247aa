"""A generator and the discriminator that judges what it makes."""

from dataclasses import dataclass

import torch
from torch import nn

from bids_app.synthesis.models import ModelSpec
from bids_app.synthesis.networks import PatchDiscriminator, ResnetGenerator, initialize


@dataclass(frozen=True)
class Translator:
    """One direction of translation: who translates, and who judges the result."""

    generator: nn.Module
    discriminator: nn.Module


def build_generator(spec: ModelSpec) -> ResnetGenerator:
    """Build the generator of a row of Table 1; both directions have the same."""
    tiling = spec.tiling
    return ResnetGenerator(tiling.spatial_dims, tiling.channels, spec.n_blocks, spec.width)


def build_translator(spec: ModelSpec, random: torch.Generator) -> Translator:
    """Build both networks of one direction, their weights drawn from ``random``."""
    tiling = spec.tiling
    translator = Translator(
        build_generator(spec), PatchDiscriminator(tiling.spatial_dims, tiling.channels, spec.width)
    )
    initialize(translator.generator, random)
    initialize(translator.discriminator, random)
    return translator
