"""Files of detectors, and fitting and scoring of a slab.

Norms first, then one-class SVMs of many voxels, then slabs.
"""

import tracemalloc
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from cohorts import images
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import save_file
from sklearn.svm import OneClassSVM

from bids_app import files
from bids_app.detection.autoencoder import SiameseAutoencoder, cut_patches, latents_at
from bids_app.detection.card import EncoderSpec
from bids_app.detection.detectors import DIRECTIONS
from bids_app.detection.normative import (
    Norm,
    fit_norm,
    load_norms,
    measure_difference,
    measure_uptake,
    save_norms,
    score_against,
    smooth_within,
)
from bids_app.detection.oneclass import VoxelwiseOneClassSVM
from bids_app.detection.slabs import (
    PackedControls,
    Slab,
    count_voxels,
    mean_map,
    pack_controls,
    values_of,
)
from bids_app.detection.voxelwise import (
    NAMES,
    FoldOnSlab,
    VoxelModels,
    fit_slab,
    join,
    load_models,
    models_of,
    save_models,
    score_slab,
)
from bids_app.errors import MissingInputError, ReadWriteError, UnusableDataError

SHAPE = (18, 20, 8)
SLAB = Slab(2, 7)
NU = 0.1
SINGLE = 1e-6  # absolute error of scores by rounding to float32, with a margin
seeds = st.integers(0, 9999)


def full_disk(monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(files.Path, "replace", full)


def unreadable(monkeypatch, name):
    def refuse(*_):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, name, refuse)


# Norms


@pytest.fixture
def norm(rng):
    mean, sd = rng.random((2, *SHAPE), np.float32)
    return Norm(mean, sd, 12)


def test_a_norm_is_read_as_it_was_written(tmp_path, norm, rng):
    for one in (norm, Norm(norm.mean.T, norm.sd.T[::-1], 2)):
        save_norms(tmp_path / "norm.safetensors", [one])
        (read,) = load_norms(tmp_path / "norm.safetensors")
        np.testing.assert_array_equal(read.mean, one.mean)
        np.testing.assert_array_equal(read.sd, one.sd)
        assert (read.n, read.mean.dtype, read.sd.dtype) == (one.n, np.float32, np.float32)
    volume = rng.random(SHAPE, np.float32)
    several = [norm, Norm(norm.sd, norm.mean, 3)]
    save_norms(tmp_path / "norm.safetensors", several)
    for read, one in zip(load_norms(tmp_path / "norm.safetensors"), several, strict=True):
        np.testing.assert_array_equal(read.deficit(volume), one.deficit(volume))


def test_less_than_controls_is_positive_for_zscore_and_more_synthetic_for_pseudonormal(norm):
    low = norm.mean - norm.sd
    judged = norm.sd > 0
    for name, signs in (("zscore", (1, -1, 1)), ("pseudonormal", (-1, 1, 1))):
        for direction, sign in zip(DIRECTIONS, signs, strict=True):
            score = score_against([norm], [low], name, direction)
            np.testing.assert_allclose(score[judged], sign / np.sqrt(13 / 12), rtol=1e-3)
            assert score.dtype == np.float32


def test_what_is_combined_is_the_mean_of_both(norm, rng):
    other = Norm(norm.sd, norm.mean, 5)
    own = [rng.random(SHAPE, np.float32) for _ in range(2)]
    found = score_against([norm, other], own, "combined", "hypo")
    expected = (norm.deficit(own[0]) + other.deficit(own[1])) / 2
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)


def test_what_norms_compare_is_smoothed_within_the_brain(rng):
    _, pet, brain = images(rng, SHAPE)
    synthetic = rng.random(SHAPE, np.float32)
    zooms, fwhm = (4.0, 4.0, 5.0), 8.0
    affine = np.diag([*zooms, 1.0])
    uptake = measure_uptake(pet, brain, fwhm=fwhm, affine=affine)
    np.testing.assert_array_equal(uptake, smooth_within(pet, brain, fwhm=fwhm, zooms=zooms))
    difference = measure_difference(pet, synthetic, brain, fwhm=fwhm, affine=affine)
    expected = smooth_within(synthetic, brain, fwhm=fwhm, zooms=zooms) - uptake
    np.testing.assert_allclose(difference, expected, atol=1e-6)  # smoothing is linear
    for one in (uptake, difference):
        assert not one[~brain].any()


def test_a_low_patch_is_high_in_both_maps(rng):
    """A patient's PET is below that of controls, and below its synthetic PET."""
    _, pet, brain = images(rng, SHAPE)
    affine = np.diag([4.0, 4.0, 4.0, 1.0])

    def noisy():
        return (pet + 0.02 * rng.standard_normal(SHAPE)).astype(np.float32)

    controls = [noisy() for _ in range(8)]
    patient = noisy()
    patient[8:11, 9:12, 3:6] -= 0.3
    uptake = [
        measure_uptake(control, brain, fwhm=8.0, affine=affine) for control in [*controls, patient]
    ]
    differences = [
        measure_difference(control, pet, brain, fwhm=8.0, affine=affine)
        for control in [*controls, patient]
    ]
    for name, measured in (("zscore", uptake), ("pseudonormal", differences)):
        norm = fit_norm(measured[:-1], brain)
        score = score_against([norm], [measured[-1]], name, "hypo")
        assert score[9, 10, 4] > 3
        assert np.linalg.norm(np.array(np.unravel_index(score.argmax(), SHAPE)) - (9, 10, 4)) < 4


def test_a_norm_that_is_missing_is_told(tmp_path):
    with pytest.raises(MissingInputError, match=r"norm\.safetensors: no such file; fit the detect"):
        load_norms(tmp_path / "norm.safetensors")


def damage(path, kind, tensors, metadata):
    """Damage a file of tensors, or replace its content."""
    content = path.read_bytes()
    if kind == "truncated":
        path.write_bytes(content[:-7])
    elif kind == "emptied":
        path.write_bytes(b"")
    elif kind == "something else":
        path.write_bytes(b"PK\3\4" + content)
    elif kind == "other tensors":
        save_file({"weights": np.zeros(3, np.float32)}, path, metadata)
    elif kind == "one tensor less":
        save_file(dict(list(tensors.items())[1:]), path, metadata)
    elif kind == "no metadata":
        save_file(tensors, path)


KINDS = ("truncated", "emptied", "something else", "other tensors", "one tensor less")


@pytest.mark.parametrize("kind", [*KINDS, "no metadata"])
def test_a_damaged_norm_is_refused_by_name(tmp_path, norm, kind):
    path = tmp_path / "norm.safetensors"
    save_norms(path, [norm])
    damage(path, kind, {"mean_0": norm.mean, "sd_0": norm.sd}, {"norm": '{"controls": [3]}'})
    with pytest.raises(UnusableDataError, match=r"norm\.safetensors: not the norm .*; fit the de"):
        load_norms(path)


def test_a_disk_that_is_full_leaves_the_norm_that_was_there(tmp_path, norm, monkeypatch):
    path = tmp_path / "norm.safetensors"
    save_norms(path, [norm])
    before = path.read_bytes()
    full_disk(monkeypatch)
    with pytest.raises(ReadWriteError, match=r"norm\.safetensors: cannot be written \(No space"):
        save_norms(path, [Norm(norm.sd, norm.mean, 3)])
    monkeypatch.undo()
    assert path.read_bytes() == before
    assert [one.name for one in tmp_path.iterdir()] == ["norm.safetensors"]


# One-class SVMs of many voxels


def fitted(seed=0, *, voxels=7, samples=12, features=5, scale=1.0):
    """Return an estimator, the latents of its controls, and those of other people."""
    rng = np.random.default_rng(seed)
    controls, others = (
        (scale * rng.standard_normal((voxels, n, features))).astype(np.float32)
        for n in (samples, 4)
    )
    return VoxelwiseOneClassSVM(nu=NU, threads=1).fit(controls), controls, others


def decide(models, controls, latents, part=slice(0, None)):
    return models.part(part, controls[part]).decision_function(latents[part])


def equal(one, other):
    return all(
        getattr(one, name).dtype == getattr(other, name).dtype
        and np.array_equal(getattr(one, name), getattr(other, name))
        for name in NAMES
    )


@given(
    seed=seeds, samples=st.integers(2, 40), features=st.integers(1, 8), scale=st.floats(1e-3, 1e3)
)
def test_kept_models_score_with_the_controls_latents_as_fresh_ones(seed, samples, features, scale):
    estimator, controls, others = fitted(
        seed, voxels=5, samples=samples, features=features, scale=scale
    )
    error = decide(models_of(estimator), controls, others) - estimator.decision_function(others)
    assert abs(error).max() <= SINGLE * (1 + NU * samples)  # coefficients are stored as float32


def test_models_are_read_as_they_were_written(tmp_path):
    models = models_of(fitted()[0])
    save_models(tmp_path / "voxels.safetensors", models)
    assert equal(load_models(tmp_path / "voxels.safetensors"), models)
    kinds = [getattr(models, name).dtype for name in NAMES]
    assert kinds == [np.uint16, np.uint16, np.float32, np.float32, np.float64]


def test_a_support_vector_takes_six_bytes(tmp_path):
    """With 75 controls, 1.5 million voxels, 4 folds and 25 vectors per voxel: below 1 GB."""
    estimator, *_ = fitted(voxels=300, samples=20, features=64)
    save_models(tmp_path / "voxels.safetensors", models_of(estimator))
    total = int(estimator.n_support_.sum())
    size = (tmp_path / "voxels.safetensors").stat().st_size
    assert size - total * 6 - 300 * (2 + 4 + 8) < 600  # header


@given(seed=seeds, cuts=st.lists(st.integers(0, 9), max_size=3).map(sorted))
def test_parts_score_as_the_whole_and_joined_parts_are_the_whole(seed, cuts):
    estimator, controls, others = fitted(seed, voxels=9)
    whole = models_of(estimator)
    scores = decide(whole, controls, others)
    pieces = [slice(a, b) for a, b in zip([0, *cuts], [*cuts, 9], strict=True) if b > a]
    parts = []
    for piece in pieces:
        np.testing.assert_array_equal(decide(whole, controls, others, piece), scores[piece])
        begin = int(whole.n_support[: piece.start].sum())
        own = slice(begin, begin + int(whole.n_support[piece].sum()))
        parts.append(
            VoxelModels(
                whole.n_support[piece],
                whole.support[own],
                whole.dual_coef[own],
                whole.gamma[piece],
                whole.offset[piece],
            )
        )
    assert equal(join(parts), whole)


def test_models_of_no_voxel_are_models(tmp_path):
    none = join([])
    save_models(tmp_path / "voxels.safetensors", none)
    assert equal(load_models(tmp_path / "voxels.safetensors"), none)
    models = models_of(fitted()[0])
    assert equal(join([none, models, none]), models)


def test_models_that_are_missing_are_told(tmp_path):
    with pytest.raises(MissingInputError, match=r"voxels\.safetensors: no such file; fit the det"):
        load_models(tmp_path / "voxels.safetensors")


@pytest.mark.parametrize("kind", KINDS)
def test_damaged_models_are_refused_by_name(tmp_path, kind):
    path, models = tmp_path / "voxels.safetensors", models_of(fitted()[0])
    save_models(path, models)
    damage(path, kind, vars(models), None)
    with pytest.raises(
        UnusableDataError, match=r"voxels\.safetensors: not the one-class SVMs .*fe"
    ):
        load_models(path)


@pytest.mark.parametrize("name", NAMES)
def test_models_whose_parts_do_not_belong_together_are_refused(tmp_path, name):
    models = models_of(fitted()[0])
    shorter = replace(models, **{name: getattr(models, name)[:-1]})
    save_models(tmp_path / "voxels.safetensors", shorter)
    with pytest.raises(UnusableDataError, match="the lengths of its arrays do not match"):
        load_models(tmp_path / "voxels.safetensors")


def test_models_that_may_not_be_read_are_told(tmp_path, monkeypatch):
    save_models(tmp_path / "voxels.safetensors", models_of(fitted()[0]))
    unreadable(monkeypatch, "read_bytes")
    with pytest.raises(ReadWriteError, match=r"voxels\.safetensors: cannot be read \(Permission"):
        load_models(tmp_path / "voxels.safetensors")


# Slabs


@pytest.fixture(scope="module")
def encoder():
    return SiameseAutoencoder(EncoderSpec(), torch.Generator().manual_seed(1)).eval()


@pytest.fixture(scope="module")
def cohort(tmp_path_factory):
    """Nine controls, two others, and a brain mask without the first slices of the slab."""
    rng = np.random.default_rng(5)
    controls = [images(rng, SHAPE)[1] for _ in range(9)]
    others = [images(rng, SHAPE)[1] for _ in range(2)]
    brain = images(rng, SHAPE)[2] & (rng.random(SHAPE) < 0.3)
    brain[..., :3] = brain[..., 5] = False
    brain[9, 10, 4] = True
    path = tmp_path_factory.mktemp("packed") / "controls.safetensors"
    pack_controls(controls, path)
    return controls, others, brain, path


def fold(encoder, cohort, slab=SLAB, members=range(9), *, threads=1, direction="both"):
    packed = PackedControls(cohort[3], members)
    return FoldOnSlab(encoder, packed, cohort[2], slab, threads, direction)


def fit(encoder, cohort, slab=SLAB):
    return fit_slab(fold(encoder, cohort, slab), cohort[1], nu=NU)


def test_a_direction_keeps_scores_where_uptake_differs_so_and_turns_others(encoder, cohort):
    controls, others, brain, _ = cohort
    _, both = fit(encoder, cohort)
    mean = np.mean(controls, axis=0)
    for direction in ("hypo", "hyper"):
        models, scores = fit_slab(fold(encoder, cohort, direction=direction), others, nu=NU)
        again = score_slab(fold(encoder, cohort, direction=direction), models, others)
        np.testing.assert_allclose(again, scores, atol=1e-6)
        for row, other in enumerate(others):
            less = values_of(mean - other, brain, SLAB)
            wanted = less > 0 if direction == "hypo" else less < 0
            clear = np.abs(less) > 1e-4  # controls are stored with 16 bits
            np.testing.assert_array_equal(scores[row][wanted & clear], both[row][wanted & clear])
            turned = ~wanted & clear
            np.testing.assert_array_equal(scores[row][turned], -np.abs(both[row][turned]))
            assert wanted.any()
            assert (both[row][turned] > 0).any()


@torch.no_grad()
def latents_by_hand(encoder, volumes, place):
    """Return the latents of the patches around one voxel, (volumes, latents), patch by patch."""
    patches = [cut_patches(volume, np.array([place]), encoder.patch) for volume in volumes]
    return encoder.encode(torch.from_numpy(np.stack(patches))).numpy()


def test_packed_controls_are_read_slice_by_slice_to_a_65535th(cohort):
    controls, _, _, path = cohort
    packed = PackedControls(path, [3, 0])
    for k in range(SHAPE[2]):
        expected = np.stack([controls[3][..., k], controls[0][..., k]])
        np.testing.assert_allclose(packed.slices(k), expected, atol=0.51 / 65535)
        assert packed.slices(k).dtype == np.float32


def test_packed_controls_that_are_missing_damaged_or_others_are_refused(cohort, tmp_path):
    with pytest.raises(MissingInputError, match=r"none\.safetensors: no such file; fit the det"):
        PackedControls(tmp_path / "none.safetensors", [0])
    with pytest.raises(UnusableDataError, match=r"does not contain control 9; it belongs to"):
        PackedControls(cohort[3], [0, 9])
    (tmp_path / "torn.safetensors").write_bytes(cohort[3].read_bytes()[:40])
    with pytest.raises(UnusableDataError, match=r"torn\.safetensors: not the controls of a det"):
        PackedControls(tmp_path / "torn.safetensors", [0])
    (tmp_path / "file").write_text("")
    with pytest.raises(ReadWriteError, match="cannot be written"):
        pack_controls(cohort[0], tmp_path / "file" / "controls.safetensors")


@pytest.mark.parametrize("channels", [1, 2])
def test_controls_are_packed_as_safetensors_packs_them(tmp_path, rng, channels):
    shape = (channels, 5, 4, 3)[channels == 1 :]
    volumes = [rng.random(shape, np.float32) for _ in range(12)]
    holes = [None, rng.random((5, 4, 3)) < 0.5, *[None] * 9, rng.random((5, 4, 3)) < 0.5]
    pack_controls(volumes, tmp_path / "ours", holes)
    arrays = {f"{n}": np.rint(np.moveaxis(v, -1, 0) * 65535) for n, v in enumerate(volumes)}
    arrays = {name: array.astype(np.uint16).copy("C") for name, array in arrays.items()}
    arrays |= {
        f"{n}.hole": np.moveaxis(hole, 2, 0).astype(np.uint8).copy("C")
        for n, hole in enumerate(holes)
        if hole is not None
    }
    save_file(arrays, tmp_path / "theirs")
    assert (tmp_path / "ours").read_bytes() == (tmp_path / "theirs").read_bytes()


def test_controls_are_packed_one_at_a_time(tmp_path):
    volume = np.zeros((100, 100, 50), np.float32)
    tracemalloc.start()
    pack_controls([volume] * 20, tmp_path / "packed")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 6 * volume.nbytes  # all of them with 16 bits would be 10


def test_a_slab_is_scored_voxel_by_voxel_by_one_class_svms_of_the_centred_controls(encoder, cohort):
    """Compared at every voxel with scikit-learn, in the order of slabs."""
    _, others, brain, path = cohort
    packed = PackedControls(path, range(9))
    controls = list(np.stack([packed.slices(k) for k in range(SHAPE[2])], axis=-1))
    _, scores = fit(encoder, cohort)
    assert scores.dtype == np.float32
    assert scores.shape == (2, count_voxels(brain, SLAB))
    places = [(i, j, k) for k in SLAB.slices() for i, j in np.argwhere(brain[..., k])]
    assert len(places) == scores.shape[1] > 50
    for column, place in enumerate(places):
        known = latents_by_hand(encoder, controls, place)
        seen = latents_by_hand(encoder, others, place) - known.mean(0)
        known = known - known.mean(0)
        oracle = OneClassSVM(nu=NU, gamma="scale").fit(known).decision_function(seen)
        # dense latents differ by rounding, and solvers stop at a tolerance of 1e-3
        np.testing.assert_allclose(scores[:, column], -oracle, rtol=0, atol=5e-4)
    assert np.ptp(scores) > 0.05  # far above the tolerance


def test_the_mean_of_latents_does_not_widen_the_kernel(encoder, cohort):
    """Without centring, the means of the features would count as variance."""
    models, _ = fit(encoder, cohort)
    controls, _, brain, _ = cohort
    raw = latents_at(encoder, np.stack([control[..., 4] for control in controls]), brain[..., 4])
    uncentred = VoxelwiseOneClassSVM(nu=NU, threads=1).fit(raw).gamma_
    before = int(brain[..., 2:4].sum())
    centred = models.gamma[before : before + len(raw)]
    spread = raw.var(axis=1).sum(axis=1)
    np.testing.assert_allclose(centred, 1 / spread, rtol=1e-3)
    assert (centred > uncentred).all()


@pytest.mark.parametrize("cuts", [(2, 7), (2, 3, 7), (2, 4, 5, 7), (2, 3, 4, 5, 6, 7)])
def test_the_cut_into_slabs_changes_nothing(encoder, cohort, cuts):
    models, whole = fit(encoder, cohort)
    parts = [fit(encoder, cohort, Slab(a, b)) for a, b in pairwise(cuts)]
    np.testing.assert_array_equal(np.concatenate([part for _, part in parts], axis=1), whole)
    assert equal(join([part for part, _ in parts]), models)


def test_stored_models_score_as_those_that_were_just_fitted(encoder, cohort, tmp_path):
    models, scores = fit(encoder, cohort)
    save_models(tmp_path / "voxels.safetensors", models)
    stored = load_models(tmp_path / "voxels.safetensors")
    again = score_slab(fold(encoder, cohort), stored, cohort[1])
    np.testing.assert_allclose(again, scores, rtol=0, atol=SINGLE)


def test_each_person_is_scored_alone(encoder, cohort):
    models, both = fit(encoder, cohort)
    for row, one in enumerate(cohort[1]):
        alone = score_slab(fold(encoder, cohort), models, [one])
        np.testing.assert_allclose(alone[0], both[row], rtol=0, atol=SINGLE)


def test_threads_change_nothing(encoder, cohort):
    models, scores = fit_slab(fold(encoder, cohort, threads=2), cohort[1], nu=NU)
    expected, one_thread = fit(encoder, cohort)
    assert equal(models, expected)
    np.testing.assert_array_equal(scores, one_thread)


def test_only_the_members_of_a_fold_are_learned_from(encoder, cohort, tmp_path):
    few, _ = fit_slab(fold(encoder, cohort, members=[1, 4, 7]), cohort[1], nu=NU)
    pack_controls([cohort[0][k] for k in (1, 4, 7)], tmp_path / "few.safetensors")
    alone = (None, None, cohort[2], tmp_path / "few.safetensors")
    expected, _ = fit_slab(fold(encoder, alone, members=range(3)), cohort[1], nu=NU)
    assert equal(few, expected)
    assert not equal(few, fit(encoder, cohort)[0])


@pytest.mark.parametrize("slab", [Slab(0, 2), Slab(5, 6), Slab(3, 3)])
def test_a_slab_without_brain_has_no_models_and_no_scores(encoder, cohort, slab):
    for empty in (slab, Slab(0, 2)):
        brain = cohort[2].copy()
        brain[..., empty.first : empty.last] = False
        bare = (*cohort[:2], brain, cohort[3])
        models, scores = fit(encoder, bare, empty)
        assert len(models.n_support) == 0
        assert (scores.shape, scores.dtype) == ((2, 0), np.float32)
        again = score_slab(fold(encoder, bare, empty), models, cohort[1])
        assert (again.shape, again.dtype) == ((2, 0), np.float32)


def test_scores_go_back_to_where_they_come_from(encoder, cohort):
    """A PET that is dark around one voxel is unlike controls there and nowhere far away."""
    controls, _, brain, _ = cohort
    mean = np.mean(controls, axis=0)
    ill = mean.copy()
    ill[9, 10, 4] = 0
    _, scores = fit_slab(fold(encoder, cohort), [mean, ill], nu=NU)
    change = mean_map([(SLAB, scores[1] - scores[0])], brain, 1)
    far = np.ones(SHAPE, bool)
    far[2:17, 3:18, 4] = False  # patches are 15 voxels wide
    assert change[9, 10, 4] > 0
    assert not change[far].any()
    np.testing.assert_array_equal(values_of(change, brain, SLAB), scores[1] - scores[0])


def test_models_of_another_slab_are_refused(encoder, cohort):
    models, _ = fit(encoder, cohort, Slab(3, 5))
    with pytest.raises(ValueError, match=rf"{len(models.n_support)} models do not fit the \d+ vox"):
        score_slab(fold(encoder, cohort), models, cohort[1])


def test_only_what_the_slab_holds_is_read(encoder, cohort):
    """Volumes are memory-mapped, so slices outside the slab may have any content."""
    torn = [one.copy() for one in cohort[1]]
    for one in torn:
        one[..., [0, 1, 2, 5, 7]] = np.nan
    _, found = fit(encoder, (cohort[0], torn, *cohort[2:]))
    np.testing.assert_array_equal(found, fit(encoder, cohort)[1])
