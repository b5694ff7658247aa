import os
import shutil
import subprocess
import sys
import threading
from functools import partial

import numpy as np
import pytest
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st
from sklearn.svm import OneClassSVM

from bids_app.detection import smo
from bids_app.detection.oneclass import AT_ONCE, VoxelwiseOneClassSVM

NEW = 10  # samples that are scored but not trained on


def spread(random, n, features):
    return random.normal(size=(n, features)) * np.exp(random.uniform(-3, 3))


def with_means_of_their_own(random, n, features):
    return spread(random, n, features) + random.choice([1, 10, 100]) * random.normal(size=features)


def far_from_zero(random, n, features):
    return random.normal(size=(n, features)) + 100


def duplicated(random, n, features):
    return spread(random, n, features)[random.integers(0, n // 2, n)]


def on_a_lattice(random, n, features):
    return random.integers(-1, 2, size=(n, features))


def along_few_directions(random, n, features):
    return random.normal(size=(n, 2)) @ random.normal(size=(2, features))


def without_variance(random, n, features):
    return np.full((n, features), random.normal())


KINDS = [
    spread,
    with_means_of_their_own,
    far_from_zero,
    duplicated,
    on_a_lattice,
    along_few_directions,
    without_variance,
]


def draw(kind, random, n, features):
    """Draw training samples, and samples to score, some of them identical."""
    train = kind(random, n, features).astype(np.float32)
    new = train.mean(axis=0) + train.std() * random.normal(size=(NEW, features))
    return train, np.concatenate([train[:NEW], new]).astype(np.float32)


def reference(train, scored, **options):
    machine = OneClassSVM(**options).fit(train)
    return machine.decision_function(scored), machine.score_samples(scored), machine.offset_[0]


@pytest.fixture
def latents(rng):
    return rng.normal(size=(9, 20, 5)).astype(np.float32)


@settings(max_examples=400)
@given(
    kind=st.sampled_from(KINDS),
    seed=st.integers(0, 2**32),
    shape=st.tuples(st.integers(3, 300), st.integers(1, 64)),
    nu=st.sampled_from([0.01, 0.03, 0.1, 0.3, 0.5, 0.9]) | st.floats(0.01, 0.9),
    times=st.none() | st.floats(0.01, 100),
)
@example(kind=spread, seed=0, shape=(245, 1), nu=0.5, times=97.0)
@example(kind=far_from_zero, seed=74014445, shape=(116, 1), nu=0.01, times=None)
@example(kind=far_from_zero, seed=458854821, shape=(111, 1), nu=0.1, times=None)
def test_decisions_are_those_of_scikit_learn(kind, seed, shape, nu, times):
    train, scored = draw(kind, np.random.default_rng(seed), *shape)
    gamma = "scale"
    if times is not None:
        gamma = times / (shape[1] * max(float(train.var(dtype=np.float64)), 1e-12))
    assume(
        abs(nu * len(train) - round(nu * len(train))) > 1e-6
    )  # otherwise the offset is not unique
    options = {"nu": nu, "gamma": gamma, "tol": 1e-7}  # coefficients depend on the
    # tolerance if samples are few or nearly equal
    machine = VoxelwiseOneClassSVM(**options, threads=1).fit(train[np.newaxis])
    decisions, scores, offset = reference(train, scored, **options)
    found = machine.decision_function(scored[np.newaxis])[0]
    # errors of nu * n float32 kernels add up; narrow kernels amplify rounding of distances
    near = 1e-4 + (4e-6 + 8e-8 * (times or 1)) * nu * len(train)
    np.testing.assert_allclose(found, decisions, rtol=0, atol=near)
    np.testing.assert_allclose(machine.score_samples(scored[np.newaxis])[0], scores, atol=near)
    assert machine.offset_[0] == pytest.approx(offset, abs=near)


@pytest.mark.parametrize("n", [9, 26, 35, 75, 150])
@pytest.mark.parametrize("nu", [0.03, 0.3])
def test_decisions_on_latents_are_those_of_scikit_learn_to_1e_5(rng, n, nu):
    """64 features, as in the detector, that vary mostly along a few directions."""
    for kind in (spread, with_means_of_their_own, duplicated):
        directions = kind(rng, n, 8) @ rng.normal(size=(8, 64))
        train = (directions + 0.3 * directions.std() * rng.normal(size=(n, 64))).astype(np.float32)
        new = train.mean(axis=0) + train.std() * rng.normal(size=(NEW, 64))
        scored = np.concatenate([train[:NEW], new]).astype(np.float32)
        machine = VoxelwiseOneClassSVM(nu=nu, threads=1).fit(train[np.newaxis])
        decisions, _, offset = reference(train, scored, nu=nu, tol=1e-6)
        found = machine.decision_function(scored[np.newaxis])[0]
        np.testing.assert_allclose(found, decisions, rtol=0, atol=1e-5)
        assert machine.offset_[0] == pytest.approx(offset, abs=1e-5)


@given(
    kind=st.sampled_from(KINDS),
    seed=st.integers(0, 100),
    nu=st.floats(0.01, 1),
    tol=st.sampled_from([1e-2, 1e-3, 1e-5]),
)
@example(kind=spread, seed=0, nu=1.0, tol=1e-3)
def test_coefficients_meet_the_conditions_of_an_optimum(kind, seed, nu, tol):
    n = 40
    train, _ = draw(kind, np.random.default_rng(seed), n, 6)
    machine = VoxelwiseOneClassSVM(nu=nu, tol=tol, threads=1).fit(train[np.newaxis])
    alpha = np.zeros(n)
    alpha[machine.support_] = machine.dual_coef_
    assert alpha.sum() == pytest.approx(nu * n)
    assert alpha.max() <= 1
    assert (machine.dual_coef_ > 0).all()
    gradient = machine.score_samples(train[np.newaxis])[0]
    if (alpha < 1).any():
        assert gradient[alpha > 0].max() - gradient[alpha < 1].min() < tol + 1e-5


@given(seed=st.integers(0, 50), offset=st.sampled_from([-4096.0, 1024.0, 2.0**16]))
def test_an_offset_of_all_values_changes_nothing(seed, offset):
    """Scalar products of values this large would have lost the digits that tell samples apart."""
    random = np.random.default_rng(seed)
    train = (random.integers(-64, 65, size=(1, 30, 8)) / 64).astype(np.float32)
    moved = train + np.float32(offset)
    assert (moved - np.float32(offset) == train).all()
    here, there = (VoxelwiseOneClassSVM(nu=0.2, threads=1).fit(one) for one in (train, moved))
    np.testing.assert_allclose(here.gamma_, there.gamma_, rtol=1e-9)
    np.testing.assert_allclose(
        there.decision_function(moved), here.decision_function(train), atol=1e-7
    )


@pytest.mark.parametrize("threads", [1, 2, 5])
def test_neighbours_and_threads_change_nothing(rng, threads):
    before = threading.active_count()
    latents = rng.normal(size=(2 * AT_ONCE + 3, 12, 4)).astype(np.float32)
    together = VoxelwiseOneClassSVM(nu=0.3, threads=threads).fit(latents)
    decisions = together.decision_function(latents[:, :5])
    for voxel in (0, AT_ONCE - 1, AT_ONCE, 2 * AT_ONCE + 2):
        own = latents[voxel : voxel + 1]
        alone = VoxelwiseOneClassSVM(nu=0.3, threads=1).fit(own)
        np.testing.assert_array_equal(alone.decision_function(own[:, :5])[0], decisions[voxel])
    assert threading.active_count() == before


def test_two_samples_share_the_boundary():
    """Samples 0 and 1: variance 1/4, gamma 4, kernel exp(-4), coefficients 1/2 each."""
    machine = VoxelwiseOneClassSVM(nu=0.5).fit(np.array([[[0], [1]]], np.float32))
    assert machine.gamma_ == pytest.approx(4)
    assert machine.dual_coef_ == pytest.approx([0.5, 0.5])
    assert machine.offset_ == pytest.approx((1 + np.exp(-4)) / 2)
    far = np.array([[[0], [0.5], [1e30]]], np.float32)
    scores = machine.score_samples(far)[0]
    assert scores == pytest.approx([(1 + np.exp(-4)) / 2, np.exp(-1), 0])
    assert (machine.decision_function(far)[0] == scores - machine.offset_[0]).all()


def test_with_nu_1_every_sample_counts_fully(latents):
    """libsvm gives an infinite offset; here no sample is inside the boundary."""
    machine = VoxelwiseOneClassSVM(nu=1.0).fit(latents)
    assert (machine.dual_coef_ == 1).all()
    assert (machine.n_support_ == latents.shape[1]).all()
    largest = machine.decision_function(latents).max(axis=1)
    np.testing.assert_allclose(largest, 0, atol=1e-5)


def test_where_nothing_varies_gamma_is_1():
    machine = VoxelwiseOneClassSVM(nu=0.5).fit(np.full((1, 4, 3), 0.1, np.float32))
    assert machine.gamma_ == 1
    assert machine.decision_function(np.full((1, 1, 3), 0.1, np.float32)) == 0


def test_what_was_learned_from_is_not_changed(latents):
    before = latents.copy()
    VoxelwiseOneClassSVM(nu=0.5).fit(latents).score_samples(latents)
    np.testing.assert_array_equal(latents, before)


def test_layout_and_precision_of_the_input_do_not_matter(latents):
    machine = VoxelwiseOneClassSVM(nu=0.3)
    expected = machine.fit(latents).decision_function(latents)
    turned = latents.transpose(1, 0, 2).copy().transpose(1, 0, 2)
    for same in (turned, latents.astype(np.float64)):
        np.testing.assert_array_equal(machine.fit(same).decision_function(same), expected)
        assert machine.support_vectors_.dtype == np.float32


def test_voxels_may_be_none(latents):
    machine = VoxelwiseOneClassSVM().fit(latents[:0])
    assert machine.decision_function(latents[:0]).shape == (0, 20)


def kept(machine):
    return {
        "support_vectors": machine.support_vectors_,
        "dual_coef": machine.dual_coef_,
        "n_support": machine.n_support_,
        "gamma": machine.gamma_,
        "offset": machine.offset_,
    }


def test_support_vectors_are_all_that_scores_need(latents):
    machine = VoxelwiseOneClassSVM(nu=0.3).fit(latents)
    assert (machine.n_support_ > 0).all()
    assert (machine.n_support_ < 20).any()
    owners = np.repeat(np.arange(len(latents)), machine.n_support_)
    np.testing.assert_array_equal(machine.support_vectors_, latents[owners, machine.support_])
    again = VoxelwiseOneClassSVM.from_support(**kept(machine))
    np.testing.assert_array_equal(
        again.decision_function(latents), machine.decision_function(latents)
    )


def test_support_vectors_may_be_kept_in_half_precision(latents):
    machine = VoxelwiseOneClassSVM(nu=0.3).fit(latents)
    half = kept(machine) | {"support_vectors": machine.support_vectors_.astype(np.float16)}
    again = VoxelwiseOneClassSVM.from_support(**half)
    np.testing.assert_allclose(
        again.decision_function(latents), machine.decision_function(latents), atol=1e-2
    )


@pytest.mark.parametrize("name", ["support_vectors", "dual_coef", "n_support", "gamma", "offset"])
def test_what_was_kept_has_to_belong_together(latents, name):
    parts = kept(VoxelwiseOneClassSVM(nu=0.3).fit(latents))
    with pytest.raises(ValueError, match="need"):
        VoxelwiseOneClassSVM.from_support(**parts | {name: parts[name][1:]})


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"nu": 0.0}, "nu must be above 0"),
        ({"nu": 1.01}, "nu must be above 0"),
        ({"nu": float("nan")}, "nu must be above 0"),
        ({"tol": 0.0}, "tol must be finite and above 0"),
        ({"gamma": 0.0}, "gamma must be 'scale' or a number above 0"),
        ({"gamma": "auto"}, "gamma must be 'scale' or a number above 0"),
        ({"threads": 0}, "at least 1 thread"),
    ],
)
def test_settings_out_of_range_are_refused(latents, options, told):
    with pytest.raises(ValueError, match=told):
        VoxelwiseOneClassSVM(**options).fit(latents)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_values_that_are_not_finite_are_refused(latents, value):
    machine = VoxelwiseOneClassSVM().fit(latents)
    latents[-1, -1, -1] = value
    for work in (VoxelwiseOneClassSVM().fit, machine.score_samples, machine.decision_function):
        with pytest.raises(ValueError, match="not finite"):
            work(latents)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda latents: np.ma.masked_greater(latents, 0), "masked"),
        (lambda latents: latents + 1j, "real numbers, not complex"),
        (lambda latents: latents.astype(str), "real numbers, not <U"),
    ],
    ids=["masked", "complex", "text"],
)
def test_values_that_are_no_numbers_are_refused(latents, change, told):
    machine = VoxelwiseOneClassSVM().fit(latents)
    for work in (VoxelwiseOneClassSVM().fit, machine.score_samples):
        with pytest.raises(ValueError, match=told):
            work(change(latents))


@pytest.mark.parametrize(
    "convert", [np.ndarray.tolist, np.ma.array, partial(np.asarray, dtype="f2")]
)
def test_other_arrays_are_converted(latents, convert):
    given = convert(latents)
    plain = np.asarray(given, np.float32)
    np.testing.assert_array_equal(
        VoxelwiseOneClassSVM().fit(given).decision_function(given),
        VoxelwiseOneClassSVM().fit(plain).decision_function(plain),
    )


def test_arrays_of_another_shape_are_refused(latents):
    machine = VoxelwiseOneClassSVM()
    for wrong in (latents[0], latents[..., np.newaxis], latents[..., :0]):
        with pytest.raises(ValueError, match=r"\(voxels, samples, features\)"):
            machine.fit(wrong)
    with pytest.raises(ValueError, match="at least 2 samples, not 1"):
        machine.fit(latents[:, :1])
    with pytest.raises(ValueError, match="must be fitted"):
        machine.score_samples(latents)
    machine.fit(latents)
    for wrong in (latents[1:], latents[..., 1:]):
        with pytest.raises(ValueError, match="of the training"):
            machine.decision_function(wrong)


COMPUTE = """
import numpy, kernels
print(kernels.scale(numpy.array([[[0], [1]]], numpy.float32)))
"""
FULL = "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))"


@pytest.fixture
def kernels(tmp_path):
    """Return a copy of the kernels whose machine code is not cached."""
    shutil.copyfile(smo.__file__, tmp_path / "kernels.py")
    nowhere = {"HOME": os.devnull, "XDG_CACHE_HOME": f"{os.devnull}/none"}
    environment = {k: v for k, v in os.environ.items() if not k.startswith("NUMBA_")} | nowhere

    def compute(code):
        return subprocess.run(
            [sys.executable, "-B", "-c", code],
            cwd=tmp_path,
            env=environment,
            capture_output=True,
            text=True,
            check=False,
        )

    return compute


def test_machine_code_is_kept_beside_the_source(kernels, tmp_path):
    done = kernels(COMPUTE)
    assert done.stdout == "[4.]\n", done.stderr
    assert list(tmp_path.glob("__pycache__/kernels.scale-*.nbi"))


def test_kernels_compute_where_nothing_can_be_written(kernels, tmp_path):
    (tmp_path / "__pycache__").touch()  # so that no folder can be created there, not even by root
    done = kernels(COMPUTE)
    assert done.stdout == "[4.]\n", done.stderr


def test_kernels_compute_where_the_disk_is_full(kernels, tmp_path):
    done = kernels(FULL + COMPUTE)
    assert done.stdout == "[4.]\n", done.stderr
    assert not list(tmp_path.glob("__pycache__/*.nbc"))
