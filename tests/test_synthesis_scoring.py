import math
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from cohorts import store
from torch import nn

from bids_app.imaging.intensity import smooth
from bids_app.imaging.similarity import mean_absolute_error, psnr, ssim
from bids_app.synthesis import scoring
from bids_app.synthesis.evaluation import BASELINES, FWHM_SWEEP, ScoreRecord, records_from_json
from bids_app.synthesis.inference import predict
from bids_app.synthesis.pairs import Owner, open_volumes, store_volumes
from bids_app.synthesis.scoring import Scorer, mean_pet
from bids_app.synthesis.tiling import CubicPatches, SliceTriplets

ZOOMS = (4.0, 4.0, 4.0)


class Half(nn.Module):
    """Generator that halves its input."""

    def __init__(self):
        super().__init__()
        self.anything = nn.Parameter(torch.zeros(1))

    def forward(self, x):
        return x / 2


@pytest.fixture
def visit(tmp_path, rng):
    return open_volumes(store(tmp_path / "visit", rng, "07", session="b"))


@pytest.fixture
def scorer():
    return Scorer("semi3d-gan", 3, 6.0, None, "cpu")


def halved(visit, fwhm):
    """Return Half's prediction for a visit, smoothed, then masked."""
    return np.where(visit.brain, smooth(np.array(visit.t1w) / 2, fwhm, ZOOMS), 0)


def test_a_synthetic_pet_is_smoothed_and_lies_in_the_brain(visit, scorer):
    pet, _ = scorer.score_generator(visit, Half(), SliceTriplets())
    assert pet.dtype == np.float32
    np.testing.assert_allclose(pet, halved(visit, 6.0), atol=1e-6)
    assert not pet[~visit.brain].any()


def test_a_record_tells_whose_it_is(visit, scorer):
    scorer.score_generator(visit, Half(), SliceTriplets())
    rows = [
        (record.model, record.participant, record.session, record.fold) for record in scorer.records
    ]
    assert rows == [("semi3d-gan", "07", "b", 3), ("semi3d-gan-overlap", "07", "b", 3)]


class Ranking(Half):
    """Generator that returns the index of each slice in its triplet, in tenths: 0, 1, 2."""

    def forward(self, x):
        return x * 0 + 0.1 * torch.arange(3.0)[:, None, None]


def test_the_second_line_averages_what_overlapping_triplets_make_of_a_slice(visit):
    scorer = Scorer("semi3d-gan", 1, 0.0, None, "cpu")
    given = scorer.score_generator(visit, Ranking(), SliceTriplets())
    both = [predict(np.array(visit.t1w), Ranking(), SliceTriplets(step)) for step in (3, 1)]
    for one, expected in zip(given, both, strict=True):
        np.testing.assert_array_equal(one, np.where(visit.brain, expected, 0))
    differences = [
        mean_absolute_error(np.where(visit.brain, pet, 0), np.array(visit.pet)) for pet in both
    ]
    assert [record.scores.mae for record in scorer.records] == pytest.approx(differences)
    assert differences[0] != pytest.approx(differences[1], rel=1e-5)
    assert scorer.records[1].sweep == {}


def test_other_rows_have_no_second_line(visit):
    for model, tiling in (("tissue", SliceTriplets()), ("patch3d-gan-mse", CubicPatches(8, 4))):
        scorer = Scorer(model, 1, 0.0, None, "cpu")
        one, same = scorer.score_generator(visit, Half(), tiling)
        assert one is same
        assert [record.model for record in scorer.records] == [model]


def test_scores_compare_what_is_written_with_the_real_pet(visit, scorer):
    scorer.score_generator(visit, Half(), SliceTriplets())
    pet, real, brain = halved(visit, 6.0).astype(np.float32), np.array(visit.pet), visit.brain
    scores = scorer.records[0].scores
    assert scores.ssim == pytest.approx(ssim(pet, real), abs=1e-6)
    assert scores.psnr_brain == pytest.approx(psnr(pet, real, brain), abs=1e-4)
    assert scores.mae == pytest.approx(mean_absolute_error(pet, real), abs=1e-7)
    assert scores.ssim != pytest.approx(ssim(real, halved(visit, 0.0)), abs=1e-3)


def test_the_sweep_smooths_what_was_not_smoothed_yet(visit, scorer):
    scorer.score_generator(visit, Half(), SliceTriplets())
    swept = scorer.records[0].sweep
    assert tuple(swept) == FWHM_SWEEP
    for fwhm in (0.0, 3.0):
        expected = ssim(halved(visit, fwhm).astype(np.float32), np.array(visit.pet))
        assert swept[fwhm] == pytest.approx(expected, abs=1e-6)


def test_a_perfect_generator_has_perfect_scores(tmp_path, visit):
    volumes = {"t1w": 2 * visit.pet / 2, "pet": visit.pet / 2, "brain": np.array(visit.brain)}
    store_volumes(tmp_path / "perfect", Owner("08", None, visit.owner.affine), **volumes)
    scorer = Scorer("semi3d-gan", 1, 0.0, None, "cpu")
    scorer.score_generator(open_volumes(tmp_path / "perfect"), Half(), SliceTriplets())
    record, second = scorer.records
    assert second.scores.mae == pytest.approx(0, abs=1e-7)  # average of equal values
    assert record.session is None
    assert (record.scores.ssim, record.scores.mae_brain) == (pytest.approx(1), 0)
    assert record.scores.psnr == math.inf
    assert record.sweep[0.0] == pytest.approx(1)
    assert record.sweep[3.0] < 1


def test_baselines_are_scored_as_they_are(visit, scorer, rng):
    mean = rng.random(visit.pet.shape).astype(np.float32)
    scorer.score_baselines(visit, mean)
    assert [record.model for record in scorer.records] == list(BASELINES)
    assert [dict(record.sweep) for record in scorer.records] == [{}, {}]
    real, brain = np.array(visit.pet), np.array(visit.brain)
    expected = [np.where(brain, mean, 0).astype(np.float32), np.array(visit.t1w)]
    for record, volume in zip(scorer.records, expected, strict=True):
        assert record.scores.ssim == pytest.approx(ssim(volume, real), abs=1e-6)
        assert record.scores.mae == pytest.approx(mean_absolute_error(volume, real), abs=1e-7)
        assert (record.participant, record.session, record.fold) == ("07", "b", 3)


def test_without_weights_there_is_no_lpips(visit, scorer):
    scorer.score_generator(visit, Half(), SliceTriplets())
    scores = scorer.records[0].scores
    assert math.isnan(scores.lpips)
    assert math.isnan(scores.lpips_brain)


def test_lpips_compares_the_same_images(visit, monkeypatch):
    seen = []
    monkeypatch.setattr(scoring, "load_lpips", lambda path, device: (path, device))

    def distance(network, *volumes):
        seen.append((network, *volumes))
        return 0.25, 0.5

    monkeypatch.setattr(scoring, "volume_lpips", distance)
    scorer = Scorer("semi3d-gan", 1, 6.0, Path("/weights"), "cpu")
    pet, _ = scorer.score_generator(visit, Half(), SliceTriplets())
    network, synthetic, real, brain = seen[0]
    assert network == (Path("/weights"), "cpu")
    for one, other in ((synthetic, pet), (real, visit.pet), (brain, visit.brain)):
        np.testing.assert_array_equal(one, other)
    assert scorer.records[0].scores.lpips == 0.25
    assert scorer.records[0].scores.lpips_brain == 0.5


def test_what_is_told_can_be_read_again(visit, scorer):
    def plain(record: ScoreRecord):
        return asdict(replace(record, scores=replace(record.scores, lpips=0, lpips_brain=0)))

    scorer.score_generator(visit, Half(), SliceTriplets())
    scorer.score_baselines(visit, np.zeros(visit.pet.shape, np.float32))
    again = records_from_json(scorer.plain_values())
    assert [plain(one) for one in again] == [plain(one) for one in scorer.records]
    assert len(again) == 4


# The mean PET


def test_the_mean_pet_is_that_of_its_visits(tmp_path, rng):
    folders = [store(tmp_path / name, rng, name) for name in "abc"]
    pets = [np.array(open_volumes(folder).pet, np.float64) for folder in folders]
    for some in (folders[:1], folders):
        mean = mean_pet(iter(some))
        assert mean.dtype == np.float32
        np.testing.assert_allclose(mean, np.mean(pets[: len(some)], axis=0), atol=1e-7)


def test_no_brain_is_not_the_absence_of_uptake(tmp_path):
    """Brains end at different voxels, where the mean would otherwise be too low."""
    shape, affine = (4, 4, 4), tuple(map(tuple, np.eye(4).tolist()))
    folders = []
    for name, uptake, end, hole in (("a", 0.4, 3, None), ("b", 0.6, 2, None), ("c", 0.8, 3, 0)):
        brain, uncovered = np.zeros(shape, bool), np.zeros(shape, bool)
        brain[:end] = True
        if hole is not None:
            uncovered[hole] = True
        pet = np.where(brain & ~uncovered, uptake, 0).astype(np.float32)
        folders.append(tmp_path / name)
        owner = Owner(name, None, affine)
        store_volumes(folders[-1], owner, t1w=pet, pet=pet, brain=brain, hole=uncovered)
    np.testing.assert_allclose(mean_pet(folders)[:, 0, 0], [0.5, 0.6, 0.6, 0], rtol=1e-6)


def test_there_is_no_mean_of_nothing():
    with pytest.raises(ValueError, match="no visits"):
        mean_pet([])
