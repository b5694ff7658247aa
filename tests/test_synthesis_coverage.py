"""Incomplete coverage of the brain by PET: gaps enter neither training nor scores."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from cohorts import images

from bids_app.errors import UnusableDataError
from bids_app.nifti import Owner
from bids_app.synthesis.evaluation import BASELINES, score, sweep
from bids_app.synthesis.job import Job, make_fabric, mean_ssim, run_job
from bids_app.synthesis.models import MODELS
from bids_app.synthesis.pairs import open_volumes, pair_of, store_volumes, usable_pairs
from bids_app.synthesis.reference import gather_reference
from bids_app.synthesis.scoring import Scorer, mean_pet
from bids_app.synthesis.tiling import CubicPatches
from bids_app.synthesis.training import shuffled_batches

SHAPE = (24, 25, 18)
AFFINE = tuple(map(tuple, np.diag([4.0, 4, 4, 1]).tolist()))
ZOOMS = (4.0, 4.0, 4.0)
SEMI3D = replace(MODELS["semi3d-gan-mse"], n_blocks=0, width=2, batch_size=3)
PATCHES = replace(MODELS["patch3d-gan-mse"], tiling=CubicPatches(6, 3), tiles_per_volume=20)


def top(brain, slices):
    """Return a gap over the top slices of a brain."""
    last = int(np.where(brain.any((0, 1)))[0].max())
    return brain & (np.arange(brain.shape[2]) > last - slices)


@pytest.fixture
def stored(tmp_path, rng):
    """Store a visit whose PET lacks the top slices, which have a marker value."""

    def store(name, slices, filling=0.0):
        t1w, pet, brain = images(np.random.default_rng(len(name)), SHAPE)
        hole = top(brain, slices)
        pet = np.where(hole, filling, pet).astype(np.float32)
        owner = Owner(name, None, AFFINE)
        told = hole if slices else None
        store_volumes(tmp_path / name, owner, t1w=t1w, pet=pet, brain=brain, hole=told)
        return tmp_path / name

    return store


@pytest.mark.parametrize("spec", [SEMI3D, replace(PATCHES, tiles_per_volume=0), PATCHES])
def test_no_tile_of_training_holds_what_a_pet_does_not_cover(stored, spec):
    folders = [stored("a", 5, filling=9.0), stored("bc", 0)]
    pairs = usable_pairs(map(open_volumes, folders), spec)
    batches = list(shuffled_batches(pairs, spec, torch.Generator().manual_seed(0)))
    assert max(float(batch.pet.max()) for batch in batches) <= 1
    count = sum(len(batch.pet) for batch in batches)
    everything = 2 * (spec.tiles_per_volume or spec.tiling.count(SHAPE))
    assert 0.3 * everything < count <= everything
    assert spec.tiles_per_volume or count < everything


def test_a_pet_that_covers_no_tile_is_left_out(stored):
    one = open_volumes(stored("a", SHAPE[2]))
    with pytest.raises(ValueError, match="no tile of it is covered"):
        pair_of(replace(one, hole=np.ones(SHAPE, bool)), PATCHES)
    assert usable_pairs([replace(one, hole=np.ones(SHAPE, bool))], PATCHES) == []


def test_a_fold_without_a_tile_that_is_covered_is_refused(stored, tmp_path):
    folder = stored("a", SHAPE[2])
    (folder / "hole.npy").unlink()
    np.save(folder / "hole.npy", np.ones(SHAPE, bool))
    job = Job("1", SEMI3D, [folder], [], 1, 0, 0.0, tmp_path / "job")
    fabric = make_fabric("cpu", "32-true")
    with pytest.raises(UnusableDataError, match="no PET covers any tile of the brain"):
        run_job(fabric, job, tmp_path)


def test_what_is_not_covered_judges_nothing(stored, rng):
    """Scores and sweeps do not depend on values in the gap; a perfect image has perfect scores."""
    visits = [open_volumes(stored(name, 5, filling)) for name, filling in (("a", 0.0), ("b", 1.0))]
    made = np.clip(np.asarray(visits[0].t1w), 0, 1)
    first, second = (
        score(made, np.asarray(visit.pet), visit.brain, covered=visit.covered) for visit in visits
    )
    numbers = [
        (one.ssim, one.psnr, one.mae, one.ssim_brain, one.psnr_brain, one.mae_brain)
        for one in (first, second)
    ]
    assert numbers[0] == pytest.approx(numbers[1], abs=1e-9)
    swept = [
        sweep(made, np.asarray(visit.pet), visit.brain, zooms=ZOOMS, covered=visit.covered)
        for visit in visits
    ]
    assert swept[0] == pytest.approx(swept[1], abs=1e-9)
    one = visits[0]
    whole = np.where(one.hole, 0.7, one.pet).astype(np.float32)
    perfect = score(whole, np.asarray(one.pet), one.brain, covered=one.covered)
    assert (perfect.mae, perfect.psnr_brain) == (0, math.inf)
    assert perfect.ssim_brain == pytest.approx(1)


class Same(torch.nn.Module):
    """Generator that returns the T1w."""

    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1))

    def forward(self, x):
        return x


def test_early_stopping_and_the_table_see_the_same(stored):
    """Generators are scored by SSIM over covered voxels, in validation and in the table."""

    values, scorer = [], Scorer("semi3d-gan-mse", 1, 0.0, None, "cpu")
    for name, filling in (("a", 0.0), ("b", 1.0)):
        visit = open_volumes(stored(name, 5, filling))
        values.append(mean_ssim(Same(), [visit], SEMI3D, 0.0))
        scorer.score_generator(visit, Same(), SEMI3D.tiling)
    assert values[0] == pytest.approx(values[1], abs=1e-9)
    assert [record.scores.ssim for record in scorer.records[::2]] == pytest.approx(values, abs=1e-6)


def test_a_pet_that_covers_little_has_no_ssim(stored):
    """Not that of the background, which is 1. Its other scores, and other visits', remain."""
    little, whole = open_volumes(stored("a", 12)), open_volumes(stored("bc", 0))
    scorer = Scorer("baselines", 1, 0.0, None, "cpu")
    scorer.score_baselines(little, np.asarray(little.t1w))
    assert [record.model for record in scorer.records] == list(BASELINES)
    for record in scorer.records:
        assert math.isnan(record.scores.ssim)
        assert math.isnan(record.scores.ssim_brain)
        assert math.isfinite(record.scores.psnr_brain)
    images = (np.asarray(little.t1w), np.asarray(little.pet), little.brain)
    assert sweep(*images, zooms=ZOOMS, covered=little.covered) == {}
    both = mean_ssim(Same(), [little, whole], SEMI3D, 0.0)
    assert both == mean_ssim(Same(), [whole], SEMI3D, 0.0)


def test_the_mean_pet_is_of_those_who_cover_it(stored):
    folders = [stored("a", 5, filling=9.0), stored("bc", 0), stored("def", 0)]
    visits = [open_volumes(folder) for folder in folders]
    mean, hole = mean_pet(folders), np.asarray(visits[0].hole)
    pets = [np.asarray(visit.pet, np.float64) for visit in visits]
    np.testing.assert_allclose(mean[hole], ((pets[1] + pets[2]) / 2)[hole], rtol=1e-6)
    np.testing.assert_allclose(mean[~hole], (sum(pets) / 3)[~hole], rtol=1e-6)
    nobody = mean_pet(folders[:1])
    assert not nobody[hole].any()
    assert gather_reference(visits).pet_quantiles.max() <= 1  # the marker value is 9
