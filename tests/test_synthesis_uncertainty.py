"""Predicted errors match actual errors, also for people the model was not fitted to."""

from dataclasses import replace

import numpy as np
import pytest
from safetensors.numpy import save_file
from scipy import ndimage

from bids_app.errors import ReadWriteError, UnusableDataError
from bids_app.nifti import Owner
from bids_app.synthesis.pairs import Volumes
from bids_app.synthesis.uncertainty import (
    FEATURES,
    ErrorModel,
    Errors,
    describe_error_model,
    fit_error_model,
    measure_errors,
    predict_sd,
    read_error_model,
    sample_errors,
    write_error_model,
)

SHAPE, ZOOMS = (26, 24, 22), (3.0, 3.0, 3.0)
AFFINE = tuple(map(tuple, np.diag([*ZOOMS, 1.0]).tolist()))
BRAIN = np.zeros(SHAPE, bool)
BRAIN[3:-3, 3:-3, 3:-3] = True


def head(rng):
    """Return a T1w of three tissues, and a synthetic PET that is high in the second."""
    field = ndimage.gaussian_filter(rng.standard_normal(SHAPE), 2.0)
    tissue = np.digitize(field, np.quantile(field, (0.2, 0.6)))
    t1w = np.where(BRAIN, np.array([0.2, 0.6, 0.9])[tissue], 0).astype(np.float32)
    pet = ndimage.gaussian_filter(np.array([0.1, 0.8, 0.4])[tissue], 1.0)
    return t1w, np.where(BRAIN, pet, 0).astype(np.float32)


def true_sd(pet):
    """Return the true SD: a tenth of the uptake, and three times that on the right."""
    place = np.where(np.arange(SHAPE[0]) > 14, 3.0, 1.0)[:, None, None]
    return 0.1 * pet * place


def person(rng, size=1.0):
    """Return the errors of a person, and the values they were drawn with."""
    t1w, pet = head(rng)
    real = (pet + size * true_sd(pet) * rng.standard_normal(SHAPE)).astype(np.float32)
    return sample_errors(Volumes(Owner("x", None, AFFINE), t1w, real, BRAIN), pet)


@pytest.fixture(scope="module")
def people():
    rng = np.random.default_rng(7)
    return [person(rng) for _ in range(8)]


@pytest.fixture(scope="module")
def fitted(people):
    return fit_error_model(people, [0, 0, 1, 1, 2, 2, 3, 3])


def test_intervals_cover_what_they_are_meant_to(fitted, rng):
    model, told = fitted
    unseen = measure_errors([person(rng) for _ in range(4)], model)
    for measured in (told, unseen):
        for percent in (50, 80, 95):
            assert measured[f"coverage_{percent}"] == pytest.approx(percent / 100, abs=0.03)
    assert model.factors == pytest.approx([0.674, 1.282, 1.960], abs=0.15)  # errors are Gaussian


def test_larger_errors_than_those_of_controls_are_not_covered(fitted, rng):
    told = measure_errors([person(rng, size=2.0)], fitted[0])
    assert told["coverage_95"] < 0.8
    assert told["coverage_50"] < 0.35


def test_the_standard_deviation_is_the_one_that_errors_were_drawn_with(fitted, rng):
    t1w, pet = head(rng)
    found, true = predict_sd(pet, t1w, BRAIN, ZOOMS, fitted[0]), true_sd(pet)
    assert np.corrcoef(found[BRAIN], true[BRAIN])[0, 1] > 0.93
    assert np.median(found[BRAIN] / true[BRAIN]) == pytest.approx(1, abs=0.2)
    assert found[BRAIN].min() > 0
    assert not found[~BRAIN].any()


def test_places_tell_what_images_do_not(people, fitted, rng):
    """Right and left are equally bright, so a model without position cannot distinguish them."""
    everywhere = replace(fitted[0], places=np.ones_like(fitted[0].places))
    unseen = [person(rng) for _ in range(2)]
    with_places, without = (measure_errors(unseen, one) for one in (fitted[0], everywhere))
    assert with_places["correlation"] > without["correlation"] + 0.1
    assert with_places["correlation_8mm"] > with_places["correlation"] > 0.4


@pytest.mark.parametrize("factor", [0.5, 3.0])
def test_the_standard_deviation_goes_with_the_scale_of_the_pet(fitted, rng, factor):
    t1w, pet = head(rng)
    one, other = (predict_sd(k * pet, t1w, BRAIN, ZOOMS, fitted[0]) for k in (1, factor))
    assert other == pytest.approx(factor * one, rel=1e-3)


def test_what_the_real_pet_does_not_cover_does_not_count(rng):
    t1w, pet = head(rng)
    hole = BRAIN & (np.arange(SHAPE[0]) < 12)[:, None, None]
    real = np.where(hole, 0, pet + 0.1 * BRAIN).astype(np.float32)
    visit = Volumes(Owner("x", None, AFFINE), t1w, real, BRAIN, hole)
    errors = sample_errors(visit, pet)
    assert len(errors.size) == (BRAIN & ~hole).sum()
    assert errors.size == pytest.approx(0.1 / pet[BRAIN].mean(), rel=1e-4)
    assert errors.smoothed == pytest.approx(errors.size, rel=1e-4)


def test_the_people_who_are_measured_say_nothing_about_themselves(people):
    """If errors of one group are ten times larger, intervals of the others cover few of them."""
    odd = [*people[:6], *(replace(one, size=10 * one.size) for one in people[6:])]
    _, told = fit_error_model(odd, [0, 0, 1, 1, 2, 2, 3, 3])
    assert told["coverage_95"] < 0.85  # three quarters of the people are covered


@pytest.mark.parametrize(("count", "groups"), [(3, [0, 1, 2]), (4, [0, 0, 0, 0])])
def test_too_few_tell_nothing(people, count, groups):
    with pytest.raises(ValueError, match="too few"):
        fit_error_model(people[:count], groups)


def test_a_model_of_another_grid_and_images_without_brain_are_refused(fitted, rng):
    t1w, pet = head(rng)
    with pytest.raises(ValueError, match="cubes are not those of"):
        predict_sd(pet[:-5], t1w[:-5], BRAIN[:-5], ZOOMS, fitted[0])
    for empty in (0 * pet, pet):
        with pytest.raises(ValueError, match="is 0 in the brain"):
            predict_sd(empty, t1w, BRAIN & (empty < 0), ZOOMS, fitted[0])
    with pytest.raises(ValueError, match="fewer than three tissues"):
        predict_sd(pet, BRAIN.astype(np.float32), BRAIN, ZOOMS, fitted[0])


# File of the model


def arrays(model):
    return {name: getattr(model, name) for name in ("weights", "places", "factors")}


def test_a_model_comes_back_from_its_file(tmp_path, fitted):
    write_error_model(fitted[0], tmp_path / "made" / "model")
    found = read_error_model(tmp_path / "made" / "model")
    for name, array in arrays(fitted[0]).items():
        assert np.array_equal(getattr(found, name), array)
        assert array.dtype == np.float32


def changed(array, value):
    array = array.copy()
    array.ravel()[0] = value
    return array


ODD = {
    "nan": lambda whole: {**whole, "places": changed(whole["places"], np.nan)},
    "negative": lambda whole: {**whole, "factors": changed(whole["factors"], -1)},
    "whole numbers": lambda whole: {**whole, "places": whole["places"].astype(np.int32)},
    "shape": lambda whole: {**whole, "weights": whole["weights"][1:]},
    "axes": lambda whole: {**whole, "places": whole["places"][0]},
    "missing": lambda whole: {k: v for k, v in whole.items() if k != "factors"},
    "more": lambda whole: {**whole, "other": whole["factors"]},
}


@pytest.mark.parametrize("change", ODD.values(), ids=ODD)
def test_what_is_no_model_is_refused(tmp_path, fitted, change):
    odd = {name: np.ascontiguousarray(one) for name, one in change(arrays(fitted[0])).items()}
    save_file(odd, tmp_path / "odd")
    with pytest.raises(UnusableDataError, match="odd: not an error model"):
        read_error_model(tmp_path / "odd")


def test_a_model_that_is_not_finite_is_not_written(tmp_path):
    model = ErrorModel(*(np.full(shape, np.inf) for shape in ((FEATURES,) * 2, (1, 1, 1), (3,))))
    with pytest.raises(UnusableDataError, match="not finite"):
        write_error_model(model, tmp_path / "model")
    assert not list(tmp_path.iterdir())
    with pytest.raises(ReadWriteError, match="cannot be read"):
        read_error_model(tmp_path / "model")


def test_a_sidecar_tells_what_was_measured(fitted):
    told = describe_error_model(fitted[0], {"uncertainty_coverage_50": 0.49, "ssim": 1.0})
    assert told["MeasuredCoverage"] == {"50": 0.49, "80": None, "95": None}
    assert told["CorrelationWithAbsoluteError"] is None
    assert set(told["IntervalFactors"]) == {"50", "80", "95"}


def test_errors_are_looked_at_3_mm_apart(rng):
    """On the 1 mm grid, one of 27 voxels is used."""
    shape = (30, 30, 30)
    t1w = np.kron(rng.choice([0.2, 0.6, 0.9], (10, 10, 10)), np.ones((3, 3, 3))).astype(np.float32)
    visit = Volumes(
        Owner("x", None, tuple(map(tuple, np.eye(4).tolist()))), t1w, t1w, np.ones(shape, bool)
    )
    errors = sample_errors(visit, t1w)
    assert isinstance(errors, Errors)
    assert errors.features.shape == (1000, FEATURES)
    assert errors.cubes == (8, 8, 8)
    assert errors.cube.max() < 512
