"""Incomplete coverage of the brain by PET: gaps enter no norm, score or cluster."""

from dataclasses import replace
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from bids_app import header, nifti
from bids_app.detection.autoencoder import (
    SiameseAutoencoder,
    draw_pairs,
    shared_places,
    train_encoder,
    whole_patches,
)
from bids_app.detection.card import EncoderSpec
from bids_app.detection.evaluation import least_controls
from bids_app.detection.normative import (
    fit_norm,
    load_norms,
    measure_uptake,
    save_norms,
    smooth_within,
)
from bids_app.detection.slabs import PackedControls, Slab, pack_controls
from bids_app.detection.voxelwise import FoldOnSlab, fit_slab, score_slab
from bids_app.errors import UnusableDataError
from bids_app.files import read_json
from bids_app.interfaces.detection import MapAnomalies
from bids_app.interfaces.training import StoreVolumes
from bids_app.nifti import Owner, load, open_hole, store_arrays

SHAPE = (28, 30, 14)
ZOOMS = (2.0, 2.0, 2.0)
AFFINE = np.diag([*ZOOMS, 1.0])


def ball(shape=SHAPE):
    half = (np.array(shape).reshape(3, 1, 1, 1) - 1) / 2
    return (((np.indices(shape) - half) / half) ** 2).sum(0) < 0.95


BRAIN = ball()


def top_hole(slices, shape=SHAPE):
    """Return a gap that covers the last slices of the brain."""
    return ball(shape) & (np.arange(shape[2]) >= shape[2] - slices)


def pet(rng, brain=BRAIN):
    return np.where(brain, 0.5 + 0.1 * rng.standard_normal(brain.shape), 0).astype(np.float32)


# Norms


@given(st.integers(0, 100), st.integers(4, 16))
def test_controls_with_gaps_do_not_change_the_norm_where_they_do_not_cover(seed, count):
    """There it is that of the others; where they cover, it is that of all."""
    rng = np.random.default_rng(seed)
    hole = top_hole(4)
    controls = [pet(rng) for _ in range(count)]
    gap = np.where(hole, np.nan, controls[0]).astype(np.float32)
    norm = fit_norm([gap, *controls[1:]], BRAIN, least_sd=0)
    everyone = fit_norm(controls, BRAIN, least_sd=0)
    others = fit_norm(controls[1:], BRAIN, least_sd=0)
    person = pet(rng)
    for name in ("mean", "sd"):
        found, all_, rest = (getattr(one, name) for one in (norm, everyone, others))
        np.testing.assert_allclose(found[hole], rest[hole], rtol=1e-6)
        np.testing.assert_array_equal(found[~hole], all_[~hole])
    np.testing.assert_allclose(norm.excess(person)[hole], others.excess(person)[hole], rtol=1e-5)
    np.testing.assert_array_equal(norm.excess(person)[~hole], everyone.excess(person)[~hole])


@pytest.mark.parametrize(("count", "gaps"), [(4, 1), (4, 2), (13, 3), (13, 4), (30, 20), (30, 21)])
def test_a_voxel_that_too_few_controls_cover_is_not_analysed(tmp_path, rng, count, gaps):
    """Ten are enough, or three quarters of fewer; the file of the norm stores this."""
    hole = top_hole(3)
    controls = [pet(rng) for _ in range(count)]
    told = [
        np.where(hole, np.nan, control) if k < gaps else control
        for k, control in enumerate(controls)
    ]
    norm = fit_norm(told, BRAIN)
    save_norms(tmp_path / "norm.safetensors", [norm])
    for one in (norm, *load_norms(tmp_path / "norm.safetensors")):
        score = one.deficit(pet(rng))
        assert np.isnan(score[hole]).all() == (count - gaps < least_controls(count))
        assert np.isfinite(score[~hole]).all()


def test_a_z_map_is_the_same_with_and_without_a_gap_beyond_the_reach_of_smoothing(rng):
    """At 8 mm, within 0.35 SD of controls; in and around the gap, scores are undefined."""
    shape = (40, 40, 40)
    brain, hole = ball(shape), top_hole(8, shape)
    smooth = {"fwhm": 8.0, "affine": np.diag([*ZOOMS, 1.0])}
    controls = [measure_uptake(pet(rng, brain), brain, **smooth) for _ in range(12)]
    norm = fit_norm(controls, brain)
    whole = pet(rng, brain)
    cut = np.where(hole, 0, whole).astype(np.float32)
    expected = norm.deficit(measure_uptake(whole, brain, **smooth))
    found = norm.deficit(measure_uptake(cut, brain, hole=hole, **smooth))
    known = brain & ~np.isnan(found)
    assert not known[hole].any()
    assert known.sum() > 0.85 * (brain & ~hole).sum()
    assert np.abs(found - expected)[known].max() < 0.35
    blind = norm.deficit(measure_uptake(cut, brain, **smooth))
    assert blind[hole].max() > 10  # which the first version took for a lesion
    filled = np.where(hole, 7, whole).astype(np.float32)
    again = norm.deficit(measure_uptake(filled, brain, hole=hole, **smooth))
    np.testing.assert_array_equal(again, found)


def test_smoothing_without_a_gap_is_what_it_was(rng):
    one = pet(rng)
    for hole in (None, np.zeros(SHAPE, bool), ~BRAIN):
        found = smooth_within(one, BRAIN, fwhm=6.0, zooms=ZOOMS, hole=hole)
        np.testing.assert_array_equal(found, smooth_within(one, BRAIN, fwhm=6.0, zooms=ZOOMS))


# Patches and encoders


def test_patches_that_touch_a_gap_are_never_drawn(rng):
    """Gaps have a special value; other patches are drawn if at least two people cover them."""
    holes = [top_hole(6), top_hole(3), None, BRAIN & (np.arange(SHAPE[0])[:, None, None] < 9)]
    volumes = [
        np.where(np.zeros(SHAPE, bool) if hole is None else hole, 99, number + 1.0)
        for number, hole in enumerate(holes)
    ]
    whole = {k: whole_patches(hole, 5) for k, hole in enumerate(holes) if hole is not None}
    places = shared_places(BRAIN, whole, 4)
    pairs = draw_pairs(volumes, places, 4000, rng, size=5, whole=whole)
    assert pairs.max() < 99
    one, other = (pairs[:, twin].max(axis=(1, 2)) for twin in (0, 1))
    assert (one != other).all()
    drawn = {frozenset(pair) for pair in zip(one, other, strict=True)}
    assert len(drawn) == 6  # all pairs occur somewhere
    assert len(places) < BRAIN.sum()  # no pair is drawn where only one person is covered


def test_an_encoder_does_not_see_what_lies_in_a_gap(rng):
    spec = EncoderSpec(epochs=1, pairs_per_epoch=64, batch_size=32)
    controls, hole = [pet(rng) for _ in range(3)], top_hole(5)
    holes = [hole, None, None]
    histories = []
    for filling in (0, 1):
        first = np.where(hole, filling, controls[0]).astype(np.float32)
        histories.append(train_encoder([first, *controls[1:]], BRAIN, spec, seed=1, holes=holes)[1])
    assert histories[0] == histories[1]
    assert histories[0] != train_encoder(controls, BRAIN, spec, seed=1)[1]


# One-class SVMs

NU = 0.1
COUNT = 9


@pytest.fixture(scope="module")
def encoder():
    return SiameseAutoencoder(EncoderSpec(), torch.Generator().manual_seed(1)).eval()


@pytest.fixture(scope="module")
def people():
    rng = np.random.default_rng(5)
    return [pet(rng) for _ in range(COUNT)], [pet(rng) for _ in range(2)]


ANALYSED = BRAIN & (np.random.default_rng(0).random(SHAPE) < 0.1)
SIDE = BRAIN & (np.arange(SHAPE[0])[:, None, None] < 8)
SLAB = Slab(0, SHAPE[2])


def fold_of(encoder, controls, holes, path, members=range(COUNT)):
    pack_controls(controls, path, holes)
    return FoldOnSlab(encoder, PackedControls(path, members), ANALYSED, SLAB, 1, "both")


def laid_out(scores):
    volume = np.full(SHAPE, -np.inf)
    start = 0
    for k in range(SHAPE[2]):
        inside = ANALYSED[..., k]
        volume[..., k][inside] = scores[start : start + inside.sum()]
        start += inside.sum()
    return volume


def test_a_control_counts_at_a_voxel_only_if_its_whole_patch_is_covered(encoder, people, tmp_path):
    """Near its gap, scores are those of the other controls, on the common scale."""
    controls, others = people
    holes = [None, SIDE, *[None] * 7]
    path = tmp_path / "controls.safetensors"
    found = fit_slab(fold_of(encoder, controls, holes, path), others, nu=NU)[1]
    everyone = fit_slab(fold_of(encoder, controls, (), path), others, nu=NU)[1]
    rest = [0, *range(2, COUNT)]
    fewer = fit_slab(fold_of(encoder, controls, (), path, rest), others, nu=NU)[1]
    near = ~whole_patches(SIDE, 15) & ANALYSED
    assert near.any()
    assert (ANALYSED & ~near).any()
    for row in range(2):
        score = laid_out(found[row])
        np.testing.assert_allclose(
            score[near], COUNT / (COUNT - 1) * laid_out(fewer[row])[near], atol=2e-5
        )
        far = ANALYSED & ~near
        np.testing.assert_allclose(score[far], laid_out(everyone[row])[far], atol=2e-5)


@pytest.mark.parametrize("hole", [top_hole(5), SIDE], ids=["top", "side"])
def test_what_lies_in_a_gap_does_not_matter_and_scores_elsewhere_are_those_without_it(
    encoder, people, tmp_path, hole
):
    controls, others = people
    path = tmp_path / "controls.safetensors"
    fold = fold_of(encoder, controls, (), path)
    scores = [
        fit_slab(fold, [np.where(hole, filling, others[0]), others[1]], nu=NU, holes=[hole, None])[
            1
        ]
        for filling in (0, 1)
    ]
    np.testing.assert_array_equal(*scores)
    expected = fit_slab(fold, others, nu=NU)[1]
    np.testing.assert_array_equal(scores[0][1], expected[1])
    score, near = laid_out(scores[0][0]), ~whole_patches(hole, 15)
    assert np.isnan(score[near & ANALYSED]).all()
    far = ~near & ANALYSED
    np.testing.assert_allclose(score[far], laid_out(expected[0])[far], atol=1e-6)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("gaps", [2, 3, COUNT])
def test_voxels_that_too_few_controls_cover_have_no_score(encoder, people, tmp_path, gaps):
    """Three quarters are needed: seven of nine are enough, six are not."""
    controls, others = people
    holes = [SIDE] * gaps + [None] * (COUNT - gaps)
    fold = fold_of(encoder, controls, holes, tmp_path / "controls.safetensors")
    fold = replace(fold, direction="hypo")
    models, scores = fit_slab(fold, others, nu=NU)
    near = ~whole_patches(SIDE, 15)
    score = laid_out(scores[0])
    assert np.isnan(score[near & ANALYSED]).all() == (gaps >= 3)
    assert np.isfinite(score[~near & ANALYSED]).all()
    again = score_slab(fold, models, others)
    np.testing.assert_allclose(again, scores, atol=1e-6)


def test_controls_without_gaps_are_packed_as_before(people, tmp_path):
    controls, _ = people
    pack_controls(controls, tmp_path / "one.safetensors")
    pack_controls(controls, tmp_path / "other.safetensors", [None] * COUNT)
    one, other = ((tmp_path / f"{name}.safetensors").read_bytes() for name in ("one", "other"))
    assert one == other
    assert PackedControls(tmp_path / "one.safetensors", [0]).holes(3) == {}


# Nodes


def store(folder, image, coverage, brain=BRAIN, **others):
    """Store a PET by its node; with ``coverage=None``, there is no coverage mask."""
    folder.mkdir(exist_ok=True)
    nifti.save(nifti.Image(image, AFFINE), folder / "x_desc-preproc_pet.nii.gz")
    nib.save(nib.Nifti1Image(brain.astype(np.uint8), AFFINE), folder / "brain.nii.gz")
    mask = folder / "x_desc-coverage_mask.nii.gz"
    mask.unlink(missing_ok=True)
    if coverage is not None:
        nifti.save(nifti.Image(coverage, AFFINE), mask)
    StoreVolumes(
        volumes={"pet": str(folder / "x_desc-preproc_pet.nii.gz")},
        real=["pet"],
        brain_mask=str(folder / "brain.nii.gz"),
        participant="01",
        session="",
        shape=SHAPE,
        affine=AFFINE.tolist(),
        folder=str(folder / "stored"),
        coverage=str(mask),
        **others,
    ).run(cwd=str(folder))
    return folder / "stored"


@pytest.fixture
def large(monkeypatch):
    """Treat small grids as if they were as large as heads."""
    monkeypatch.setattr(header, "SMALLEST_FIELD_OF_VIEW", 20)


def test_what_is_brain_and_not_covered_is_stored_and_forgotten_again(tmp_path, rng, large):
    image, hole = np.clip(pet(rng), 0, 1), top_hole(4)
    stored = store(tmp_path / "a", np.where(hole, 0, image), ~hole | ~BRAIN)
    np.testing.assert_array_equal(open_hole(stored), hole)
    assert open_hole(store(tmp_path / "a", image, np.ones(SHAPE, bool))) is None


def test_a_pet_of_an_earlier_version_is_used_unless_it_may_have_a_gap(tmp_path, rng, large):
    image, hole = np.clip(pet(rng), 0.01, 1) * BRAIN, top_hole(4)
    assert open_hole(store(tmp_path / "a", image.astype(np.float32), None)) is None
    gap = np.where(hole, 0, image).astype(np.float32)
    with pytest.raises(UnusableDataError, match=r"is 0 in \d+\.\d% of the brain.*run the partici"):
        store(tmp_path / "b", gap, None)


def test_no_cluster_lies_in_a_gap_and_the_threshold_ignores_it(tmp_path, rng, large):
    """Scores in a gap are NaN, as written by detectors, or very high, as if computed from zeros."""
    hole = top_hole(5)
    score = rng.standard_normal(SHAPE).astype(np.float32)
    score[8:12, 10:14, 4:7] += 6
    brain_file = tmp_path / "brain.nii.gz"
    nifti.save(nifti.Image(BRAIN, AFFINE), brain_file)
    lesions = np.zeros(SHAPE, np.float32)
    lesions[8:10, 10:12, 4:6] = 1
    lesions[10:20, 10:20, 11:13] = 1
    lesions *= BRAIN
    nifti.save(nifti.Image(lesions, AFFINE), tmp_path / "lesions.nii.gz")
    rows = tuple(map(tuple, AFFINE.tolist()))
    found = {}
    for name, value in (("high", 50.0), ("nan", np.nan)):
        told = np.where(hole, value, score)
        values = np.concatenate([told[..., k][BRAIN[..., k]] for k in range(SHAPE[2])])
        np.save(tmp_path / f"{name}.npy", values[np.newaxis].astype(np.float32))
        store_arrays(
            tmp_path / name, Owner("01", None, rows), {"pet": score, "brain": BRAIN, "hole": hole}
        )
        found[name] = (
            MapAnomalies(
                scores=[str(tmp_path / f"{name}.npy")],
                slabs=[(0, SHAPE[2])],
                rows=[0],
                folds=1,
                brain=str(brain_file),
                image=str(tmp_path / name),
                digest="",
                fwhm=0.0,
                extent=0.01,
                minimum_volume=16.0,
                max_clusters=5,
                lesions=str(tmp_path / "lesions.nii.gz"),
            )
            .run(cwd=str(tmp_path))
            .outputs
        )
        labels = load(found[name].labels).data
        assert labels.any()
        assert not labels[hole].any()
        statmap = load(found[name].statmap).data
        assert not statmap[hole].any()
        above = statmap[BRAIN & ~hole] > np.quantile(score[BRAIN & ~hole], 0.99)
        assert (labels[BRAIN & ~hole] > 0).sum() <= above.sum()
        content = read_json(Path(found[name].clusters))
        assert (content["lesions"], content["lesions_not_covered"]) == (1, 1)
        share = float((score[BRAIN & ~hole] > 0).mean())
        assert content["above_zero"] == pytest.approx(share, abs=1e-6)
