"""The tissue model recovers its parameters, and predicts people it was not fitted to."""

import os
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
from scipy import ndimage

from bids_app.imaging.intensity import SIGMA_OF_FWHM, scale_to_unit, smooth
from bids_app.imaging.tissues import find_tissue_means, tissue_shares
from bids_app.imaging.volume import Grid
from bids_app.nifti import Owner
from bids_app.synthesis.inference import predict
from bids_app.synthesis.models import TissueSpec
from bids_app.synthesis.pairs import Volumes
from bids_app.synthesis.tissue import _solve, fit_tissue_model, resample_tissue_model

pytestmark = pytest.mark.slow

SHAPE, ZOOMS, PSF = (28, 24, 22), (3.0, 3.0, 3.0), 6.0
SPEC = TissueSpec((1, 1, 1), SHAPE)  # a cube of 3 mm is one voxel
AFFINE = tuple(map(tuple, np.diag([*ZOOMS, 1.0]).tolist()))
MEANS = (0.2, 0.6, 0.9)  # of fluid, grey and white matter


def make_t1w(seed, means=MEANS):
    """Return blobs of three tissues in a box that is 0 at its rim."""
    rng = np.random.default_rng(seed)
    field = ndimage.gaussian_filter(rng.standard_normal(SHAPE), 2.0)
    tissue = np.digitize(field, np.quantile(field, (0.2, 0.6)))
    t1w = np.array(means, np.float32)[tissue]
    t1w[~box()] = 0
    return t1w


def box():
    inside = np.zeros(SHAPE, bool)
    inside[3:-3, 3:-3, 3:-3] = True
    return inside


def alike(x):
    return 0.9 + 0 * x, 0.3, 0.05


def make_visit(seed, uptake=alike, means=MEANS):
    """Return a T1w and a PET that follows the tissue model."""
    t1w = make_t1w(seed, means)
    x = np.linspace(0, 1, SHAPE[0])[:, None, None]
    a, b, c = uptake(x)
    grey, white = (smooth(share, PSF, ZOOMS) for share in tissue_shares(t1w))
    pet = np.where(box(), a * grey + b * white + c, 0).astype(np.float32)
    return Volumes(Owner(f"{seed:02d}", None, AFFINE), t1w, pet, box())


def predicted_by(model, t1w):
    return predict(t1w, model, model.spec.tiling)


def test_tissue_means_are_found_in_any_shares():
    found = find_tissue_means(make_t1w(0))
    assert found == pytest.approx(MEANS, abs=0.005)


FORKED = """
import multiprocessing
import numpy as np
from sklearn.cluster import KMeans
from bids_app.imaging.tissues import find_tissue_means

KMeans(3, n_init=1).fit(np.random.default_rng(0).normal(size=(100_000, 2)))  # in two threads
t1w = np.linspace(0.1, 1, 1000).reshape(10, 10, 10)
child = multiprocessing.get_context("fork").Process(target=find_tissue_means, args=(t1w,))
child.start()
child.join(20)
child.kill()
child.join()
raise SystemExit(child.exitcode)
"""


def test_tissue_means_are_found_in_a_fork_of_a_process_that_used_threads():
    """nipype forks its workers, possibly after a PET was predicted in the same process."""
    done = subprocess.run(
        [sys.executable, "-c", FORKED], env={**os.environ, "OMP_NUM_THREADS": "2"}, check=False
    )
    assert done.returncode == 0


def test_tissues_share_a_voxel():
    t1w = np.zeros((1, 1, 8), np.float32)
    t1w[0, 0, 1:] = 0.2, 0.6, 0.9, 0.75, 0.4, 0.2, 0.9
    grey, white = tissue_shares(t1w)
    means = find_tissue_means(t1w)
    assert np.all(grey + white <= 1 + 1e-6)
    for place, value in enumerate(t1w[0, 0]):
        if means[1] <= value <= means[2]:
            share = (value - means[1]) / (means[2] - means[1])
            assert white[0, 0, place] == pytest.approx(share, abs=1e-6)
            assert grey[0, 0, place] == pytest.approx(1 - share, abs=1e-6)
    assert grey[0, 0, 0] == white[0, 0, 0] == 0  # outside the brain


def test_what_it_assumes_is_recovered():
    model = fit_tissue_model(SPEC, [make_visit(seed) for seed in range(3)])
    assert model.psf_sigma.numpy() / SIGMA_OF_FWHM * ZOOMS == pytest.approx([PSF] * 3)
    for coefficient, truth in zip(model.coefficients.numpy(), (0.9, 0.3, 0.05), strict=True):
        assert coefficient[3:-3, 3:-3, 3:-3].mean() == pytest.approx(truth, abs=0.01)
    unseen = make_visit(99)
    predicted = predicted_by(model, unseen.t1w)
    assert np.abs(predicted - unseen.pet).max() < 0.01
    assert not predicted[~box()].any()


def test_the_neighbourhood_is_as_wide_on_any_grid():
    """The influence of a cube on others depends on the distance in mm, not in cubes."""
    reach = {}
    for edge in (2.0, 4.0):
        side = int(40 / edge)
        moments = np.zeros((2 * side + 1, 1, 1, 4, 4))
        x = edge * (np.arange(2 * side + 1) - side)
        a, b, c = np.where(np.abs(x) < 9, 2.0, 1.0), np.ones_like(x), np.zeros_like(x)
        rng = np.random.default_rng(0)
        for place in range(len(x)):
            terms = rng.random((50, 3))
            pet = terms @ (a[place], b[place], c[place])
            terms = np.concatenate([terms, pet[:, None]], axis=1)
            moments[place, 0, 0] = terms.T @ terms
        found = _solve(moments, 13.0, (edge, 1.0, 1.0))[:, 0, 0, 0]
        reach[edge] = np.interp(np.arange(-32, 33, 8), x, found)
    assert reach[2.0] == pytest.approx(reach[4.0], abs=0.1)
    assert np.ptp(reach[2.0]) > 0.5


def test_uptake_differs_from_place_to_place():
    def uptake(x):
        return 0.6 + 0.3 * x, 0.3 - 0.1 * x, 0.05

    visits = [make_visit(seed, uptake) for seed in range(6)]
    unseen = make_visit(99, uptake)
    error = np.abs(predicted_by(fit_tissue_model(SPEC, visits), unseen.t1w) - unseen.pet)[box()]
    a, b, c = uptake(0.5)
    blind = make_visit(99, lambda x: (a + 0 * x, b, c))  # without position
    assert error.mean() < 0.2 * np.abs(blind.pet - unseen.pet)[box()].mean()


def uneven(x):
    return 0.6 + 0.3 * x, 0.3 - 0.1 * x, 0.05


def darker(x):
    return tuple(0.8 * value for value in uneven(x))


def test_an_initial_model_helps_where_controls_are_few_and_scanners_differ():
    known = fit_tissue_model(SPEC, [make_visit(seed, uneven) for seed in range(20, 26)])
    rng = np.random.default_rng(1)
    few = [make_visit(seed, darker) for seed in range(2)]
    noise = [ndimage.gaussian_filter(rng.standard_normal(SHAPE), 1.0) for _ in few]
    few = [
        replace(v, pet=np.where(box(), v.pet + 0.3 * n, 0).astype(np.float32))
        for v, n in zip(few, noise, strict=True)
    ]
    unseen = make_visit(99, darker)

    def error(initial):
        model = fit_tissue_model(SPEC, few, initial)
        return np.abs(predicted_by(model, unseen.t1w) - unseen.pet)[box()].mean()

    assert error(known) < 0.6 * error(None)


def test_an_initial_model_that_is_wrong_hardly_matters():
    visits = [make_visit(seed, uneven) for seed in range(4)]
    wrong = fit_tissue_model(SPEC, visits)
    wrong.coefficients.copy_(wrong.coefficients.flip(0, 1))
    unseen = make_visit(99, uneven)
    errors = [
        np.abs(predicted_by(fit_tissue_model(SPEC, visits, one), unseen.t1w) - unseen.pet).mean()
        for one in (None, wrong)
    ]
    assert errors[1] < 1.2 * errors[0]


def test_contrast_of_another_scanner_does_not_matter():
    model = fit_tissue_model(SPEC, [make_visit(seed) for seed in range(3)])
    other = make_visit(99, means=(0.1, 0.5, 1.0))
    assert np.abs(predicted_by(model, other.t1w) - other.pet).max() < 0.015


def test_what_a_pet_does_not_cover_does_not_count():
    visits = [make_visit(seed) for seed in range(3)]
    hole = np.zeros(SHAPE, bool)
    hole[:, :, 13:] = True
    gone = [replace(v, pet=np.where(hole, 0, v.pet), hole=hole) for v in visits[:1]] + visits[1:]
    unseen = make_visit(99)
    predicted = predicted_by(fit_tissue_model(SPEC, gone), unseen.t1w)
    assert np.abs(predicted - unseen.pet).max() < 0.01


def test_visits_of_one_participant_are_left_out_together():
    own = make_visit(1)
    with pytest.raises(ValueError, match="1 participant is too few, 2 are needed"):
        fit_tissue_model(SPEC, [own, own])


def t1w_of(*values):
    t1w = np.zeros(SHAPE, np.float32)
    t1w[box()] = np.resize(values, box().sum())
    return t1w


@pytest.mark.parametrize(
    "t1w",
    [t1w_of(1.0), t1w_of(0.2, 0.9), t1w_of(*[0.2] * 98, 0.8, 0.9), np.zeros(SHAPE, np.float32)],
    ids=["one", "two", "two that start as one", "none"],
)
def test_a_t1w_without_three_tissues_is_refused_and_whose_it_is(t1w):
    visits = [make_visit(seed) for seed in range(2)]
    model = fit_tissue_model(SPEC, visits)
    if t1w.any():
        with pytest.raises(ValueError, match="fewer than three tissues"):
            predicted_by(model, t1w)
    with pytest.raises(ValueError, match=r"sub-01: .*--exclude-participant-label 01"):
        fit_tissue_model(SPEC, [visits[0], replace(visits[1], t1w=t1w)])
    with pytest.raises(ValueError, match="grid"):
        predicted_by(model, make_t1w(0)[:-6])


def test_predictions_have_the_mean_that_the_scale_of_pet_gives_all():
    """A control with hot voxels, which are clipped at 1, does not change that."""

    def scaled(visit):
        return replace(visit, pet=scale_to_unit(visit.pet, box(), times_mean=2.5))

    visits = [
        make_visit(seed, lambda x, s=seed: (0.6 + 0.1 * s + 0 * x, 0.3, 0.05)) for seed in range(4)
    ]
    visits[2].pet[8, 8:12, 8:12] = 5
    alike = list(map(scaled, visits))
    assert alike[2].pet[box()].mean() < 0.399
    model = fit_tissue_model(SPEC, alike, times_mean=2.5)
    assert predicted_by(model, make_t1w(99))[box()].mean() == pytest.approx(0.4, rel=1e-4)
    free = fit_tissue_model(SPEC, visits[:2])
    assert float(free.brain_mean) == 0
    assert predicted_by(free, make_t1w(99))[box()].mean() != pytest.approx(0.4, rel=0.01)


def carried_to(model, affine, shape):
    return resample_tissue_model(model, np.diag([*ZOOMS, 1.0]), Grid(shape, affine))


def test_a_model_that_is_carried_to_its_own_grid_is_itself():
    model = fit_tissue_model(SPEC, [make_visit(seed, uneven) for seed in range(4)])
    same = carried_to(model, np.diag([*ZOOMS, 1.0]), SHAPE)
    assert same.spec == model.spec
    for name, tensor in model.state_dict().items():
        np.testing.assert_allclose(same.state_dict()[name], tensor, rtol=1e-6)


@pytest.mark.parametrize(("every", "shift"), [(2, 0), (1, 4)])
def test_a_model_that_is_carried_predicts_the_same_at_the_same_places(every, shift):
    """Every second voxel of the grid, and a part of it with another origin."""
    model = fit_tissue_model(SPEC, [make_visit(seed, uneven) for seed in range(4)])
    model.psf_sigma.zero_()  # a blur of so few voxels would differ
    visit = make_visit(9, uneven)
    part = (slice(shift, None, every),) * 3
    t1w = np.ascontiguousarray(visit.t1w[part])
    affine = np.diag([*(every * np.array(ZOOMS)), 1.0])
    affine[:3, 3] = shift * np.array(ZOOMS)
    carried = carried_to(model, affine, t1w.shape)
    model.brain_mean.zero_()  # the mean is of the whole brain, of which only a part is present
    carried.brain_mean.zero_()
    inside = visit.brain[part]
    whole, few = predicted_by(model, visit.t1w)[part], predicted_by(carried, t1w)
    np.testing.assert_allclose(few[inside], whole[inside], atol=0.03)
    assert np.abs(few[inside] - whole[inside]).mean() < 0.005


def test_the_blur_stays_as_wide_in_mm():
    model = fit_tissue_model(SPEC, [make_visit(seed) for seed in range(3)])
    affine = np.diag([1.0, 1.5, 3.0, 1.0])
    carried = carried_to(model, affine, (84, 48, 22))
    blur = carried.psf_sigma.numpy() * [1.0, 1.5, 3.0]
    np.testing.assert_allclose(blur, model.psf_sigma.numpy() * ZOOMS, rtol=1e-5)
    assert carried.spec == TissueSpec((3, 2, 1), (28, 24, 22))
