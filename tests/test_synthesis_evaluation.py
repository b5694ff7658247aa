import json
import math
from dataclasses import astuple, replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import ndimage
from torchmetrics.functional.image import (
    peak_signal_noise_ratio,
    structural_similarity_index_measure,
)

from bids_app.imaging.intensity import smooth
from bids_app.synthesis.evaluation import (
    BASELINES,
    FWHM_SWEEP,
    METRICS,
    ROWS,
    ScoreRecord,
    Scores,
    compare_regions,
    records_from_json,
    records_to_json,
    score,
    smooth_in_brain,
    sweep,
)
from bids_app.synthesis.models import CONDITIONED, MODELS, OVERLAPPING, TISSUE

ZOOMS = (1.0, 1.5, 2.0)
numbers = st.floats(-1, 100) | st.sampled_from([math.nan, math.inf])
records = st.builds(
    ScoreRecord,
    model=st.sampled_from(list(ROWS)),
    participant=st.text("abc019", min_size=1),
    session=st.none() | st.text("abc019", min_size=1),
    fold=st.integers(1, 10),
    scores=st.builds(Scores, *[numbers] * len(METRICS)),
    sweep=st.dictionaries(st.sampled_from(FWHM_SWEEP), numbers),
)


@pytest.fixture
def brain():
    inside = np.zeros((20, 18, 16), bool)
    inside[4:16, 3:15, 3:13] = True
    return inside


@pytest.fixture
def real(rng, brain):
    texture = ndimage.gaussian_filter(rng.random(brain.shape), 1.5)
    return np.where(brain, texture, 0).astype(np.float32)


def test_the_rows_are_the_models_and_then_the_baselines():
    first_lines = [name for name in ROWS if name not in OVERLAPPING]
    assert first_lines == [*MODELS, *CONDITIONED, TISSUE, *BASELINES]
    assert all(list(ROWS)[list(ROWS).index(row) + 1] == line for line, row in OVERLAPPING.items())
    assert {(name.split("-")[0], name in CONDITIONED): ROWS[name] for name in first_lines} == {
        ("semi3d", False): "semi-3D",
        ("patch3d", False): "3D-patch",
        ("semi3d", True): "conditioned semi-3D",
        ("patch3d", True): "conditioned 3D-patch",
        ("tissue", False): "tissue model",
        ("baseline", False): "baseline",
    }


def test_metrics_in_the_order_of_the_tables():
    assert (
        *("ssim", "psnr", "lpips", "mae"),
        *("ssim_brain", "psnr_brain", "lpips_brain", "mae_brain"),
        *("suvr_error", "suvr_bias", "asymmetry_agreement"),
    ) == METRICS


# Scores


def labelled(shape):
    """Create a volume of seven slabs side by side: three pairs, and a single one."""
    regions = np.zeros(shape, int)
    for label in range(1, 8):
        regions[3 + label, 3:15, 3:13] = label
    return regions


def test_regional_uptake_by_hand(brain):
    regions = labelled(brain.shape)
    real = np.where(regions > 0, 0.5, 0).astype(np.float32)
    for label, value in ((1, 0.6), (2, 0.4), (3, 0.55), (4, 0.45)):
        real[regions == label] = value
    synthetic = real.copy()
    synthetic[regions == 7] = 0.6  # instead of 0.5; the overall mean increases by 0.1 / 7
    error, bias, asymmetry = compare_regions(3 * synthetic, real, regions)
    mean = 0.5 + 0.1 / 7
    relative = 100 * np.array([*[0.5 / mean - 1] * 6, 0.6 / mean - 1])
    assert error == pytest.approx(np.abs(relative).mean(), rel=1e-5)
    assert bias == pytest.approx(relative.mean(), abs=1e-5)
    assert asymmetry == pytest.approx(1)
    mirrored = real.copy()
    for left in (1, 3, 5):
        mirrored[regions == left] = real[regions == left + 1].mean()
        mirrored[regions == left + 1] = real[regions == left].mean()
    expected = compare_regions(mirrored, real, regions)
    assert expected[2] == pytest.approx(-1)
    inside = regions > 0  # the first region counts without a background, too
    assert compare_regions(*(x[inside] for x in (mirrored, real, regions))) == expected


def test_regions_that_are_not_known_leave_their_measures_open(real, brain):
    without = score(real, real, brain)
    assert math.isnan(without.suvr_error)
    assert math.isnan(without.asymmetry_agreement)
    regions = labelled(brain.shape)
    inside = score(real, real, brain, regions=regions)
    assert (inside.suvr_error, inside.suvr_bias) == (0, 0)
    assert inside.asymmetry_agreement == pytest.approx(1)
    covered = brain & (regions != 2)
    assert score(real, real, brain, covered=covered, regions=regions).suvr_error == 0
    assert math.isnan(score(real, real, brain, regions=np.minimum(regions, 3)).asymmetry_agreement)


def test_a_perfect_image_has_perfect_scores(real, brain):
    assert score(real, real, brain, (0.0, 0.0)) == Scores(
        ssim=pytest.approx(1, abs=1e-5),
        psnr=math.inf,
        lpips=0,
        mae=0,
        ssim_brain=pytest.approx(1, abs=1e-5),
        psnr_brain=math.inf,
        lpips_brain=0,
        mae_brain=0,
    )


def test_scores_are_those_of_torchmetrics(rng, real, brain):
    noise = 0.2 * ndimage.gaussian_filter(rng.standard_normal(real.shape), 1)
    synthetic = np.clip(real + noise, 0, 1).astype(np.float32)
    one, other = (torch.from_numpy(volume).double()[None, None] for volume in (synthetic, real))
    mean, full = structural_similarity_index_measure(
        one, other, data_range=1.0, sigma=1.5, kernel_size=11, return_full_image=True
    )
    found, inside = score(synthetic, real, brain), torch.from_numpy(brain)[None, None]
    assert found.ssim == pytest.approx(float(mean), abs=1e-4)
    assert found.ssim_brain == pytest.approx(float(full[inside].mean()), abs=1e-4)
    assert found.psnr == pytest.approx(float(peak_signal_noise_ratio(one, other, 1.0)), abs=1e-4)
    assert found.psnr_brain == pytest.approx(
        float(peak_signal_noise_ratio(one[inside], other[inside], 1.0)), abs=1e-4
    )


def test_an_image_too_bright_in_the_brain_by_hand(real, brain):
    synthetic = np.where(brain, real + np.float32(0.1), 0).astype(np.float32)
    found = score(synthetic, real, brain)
    share = brain.mean()
    assert found.mae_brain == pytest.approx(0.1, abs=1e-6)
    assert found.psnr_brain == pytest.approx(20, abs=1e-4)
    assert found.mae == pytest.approx(0.1 * share, abs=1e-6)
    assert found.psnr == pytest.approx(20 - 10 * np.log10(share), abs=1e-4)
    assert found.ssim > found.ssim_brain  # because both are equal outside the brain


def test_lpips_is_as_given_or_not_a_number(real, brain):
    found = score(real, real, brain)
    assert math.isnan(found.lpips)
    assert math.isnan(found.lpips_brain)
    told = score(real, real, brain, (0.25, 0.5))
    assert (told.lpips, told.lpips_brain) == (0.25, 0.5)


# Smoothing


def test_an_image_is_masked_after_it_was_smoothed(real, brain):
    finished = smooth_in_brain(real + 1, brain, fwhm=3, zooms=ZOOMS)
    assert (finished[~brain] == 0).all()
    assert np.array_equal(finished[brain], smooth(real + 1, 3, ZOOMS)[brain])
    assert finished[4, 3, 3] > 1  # if masked first, it would be darker at the rim


def test_smoothing_leaves_its_input_alone(real, brain):
    before = real.copy() + 1
    unsmoothed = before.copy()
    smooth_in_brain(unsmoothed, brain, fwhm=0, zooms=ZOOMS)
    assert np.array_equal(unsmoothed, before)


def test_a_sweep_ends_where_the_scores_are(real, brain, rng):
    unsmoothed = real + 0.1 * rng.random(real.shape).astype(np.float32)
    swept = sweep(unsmoothed, real, brain, zooms=ZOOMS)
    assert tuple(swept) == FWHM_SWEEP == (0, 0.5, 1, 1.5, 2, 2.5, 3)
    for fwhm, found in swept.items():
        finished = smooth_in_brain(unsmoothed, brain, fwhm=fwhm, zooms=ZOOMS)
        assert found == score(finished, real, brain).ssim
    assert len(set(swept.values())) > 5


def test_the_smoothing_that_was_undone_is_the_best(rng, brain):
    """The real image is the unsmoothed one smoothed by 2 mm, so that SSIM is 1 there."""
    unsmoothed = rng.random(brain.shape).astype(np.float32)
    real = smooth_in_brain(unsmoothed, brain, fwhm=2, zooms=(1, 1, 1))
    swept = sweep(unsmoothed, real, brain, zooms=(1, 1, 1))
    assert max(swept, key=swept.get) == 2
    assert swept[2] == pytest.approx(1, abs=1e-5)


# Records


def same(one, other):
    return one == other or (math.isnan(one) and math.isnan(other))


@given(st.lists(records, max_size=4))
def test_records_come_back_from_json(some):
    text = json.dumps(records_to_json(some), allow_nan=False)
    again = records_from_json(json.loads(text))
    assert len(again) == len(some)
    for one, other in zip(some, again, strict=True):
        assert all(map(same, astuple(one.scores), astuple(other.scores)))
        assert list(one.sweep) == list(other.sweep)
        assert all(map(same, one.sweep.values(), other.sweep.values()))
        assert replace(one, scores=other.scores, sweep=other.sweep) == other


def test_what_is_not_a_number_is_null():
    scores = Scores(0.5, math.inf, math.nan, *[0.25] * 5)
    told = records_to_json([ScoreRecord("semi3d-gan", "01", None, 1, scores, {0.5: math.nan})])
    record = told["Records"][0]
    assert record["scores"]["lpips"] is None
    assert record["scores"]["psnr"] == "inf"
    assert record["sweep"] == {"0.5": None}


@pytest.mark.parametrize(
    "content",
    [
        *({}, {"Records": 1}, {"Records": [1]}, {"Records": [{"model": "semi3d-gan"}]}),
        {"Records": [{"scores": {"ssim": 1}, "sweep": {}}]},
        {"Records": [{"scores": {}, "sweep": {"x": 1}}]},
        {"Records": [{"scores": {}, "sweep": []}]},
    ],
)
def test_what_is_no_record_is_refused(content):
    with pytest.raises(ValueError, match=r"no records|could not convert"):
        records_from_json(content)
