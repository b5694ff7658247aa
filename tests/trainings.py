"""Short trainings: small networks, few epochs, two people."""

from dataclasses import replace

import torch

from bids_app.synthesis.job import make_fabric
from bids_app.synthesis.models import MODELS
from bids_app.synthesis.pairs import Pair
from bids_app.synthesis.training import Training


def small(model, **values):
    """Return a row of Table 1 with small networks, by default with four epochs."""
    return replace(MODELS[model], **{"n_blocks": 1, "width": 2, "epochs": 4, **values})


SIMPLE = small("semi3d-gan-mse", constant_epochs=2, batch_size=2, pool_size=2)
CYCLE = replace(SIMPLE, cycle=True)


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def start(spec, seed=0):
    return Training(spec, make_fabric("cpu", "32-true"), seeded(seed))


def two_people():
    """Return two people of 24×25×7 voxels whose PET is their T1w, darker."""
    mri = torch.rand(2, 24, 25, 7, generator=seeded(5))
    return [Pair(one, 0.3 * one) for one in mri]
