import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from phantoms import brain, head_affine
from scipy import ndimage

from bids_app.imaging.intensity import smooth
from bids_app.imaging.verdict import (
    BLURRED,
    DEEP_TO_RIM,
    DOUBT,
    FAIL,
    FLUID,
    GREY,
    INSIDE,
    OUTSIDE,
    PASS,
    PET_CRITERIA,
    SIZE,
    T1W_CRITERIA,
    UNLIKE,
    VERDICTS,
    WHITE,
    WHOLE,
    Criterion,
    classify,
    expected_uptake,
    judge,
    judge_pet,
    judge_t1w,
    measure_brain,
    measure_detail,
    reasons_of,
    sidecar_fields,
    verdict_of,
    winsorize,
    worse_of,
)

ZOOMS = (4.0, 4.0, 4.0)
BOUNDS = [Criterion("A", 0.8, 0.6, "A is {:.2f}"), Criterion("B", 0.5, 0.0, "B is {:.2f}")]
values = st.floats(-1, 1)


@given(a=values, b=values, more=st.floats(0, 1))
def test_a_better_measure_is_never_judged_worse(a, b, more):
    before = judge({"A": a, "B": b}, BOUNDS)
    after = judge({"A": a + more, "B": b}, BOUNDS)
    assert VERDICTS.index(after.verdict) <= VERDICTS.index(before.verdict)
    assert len(after.reasons) <= len(before.reasons)


@given(a=values, b=values)
def test_the_worst_criterion_decides(a, b):
    alone = [judge({"A": a}, BOUNDS).verdict, judge({"B": b}, BOUNDS).verdict]
    both = judge({"A": a, "B": b}, BOUNDS)
    assert both.verdict == worse_of(*alone)
    assert (both.verdict == PASS) == (not both.reasons)


def test_shares_are_given_in_percent():
    reasons = judge({INSIDE: 0.76}, PET_CRITERIA).reasons
    assert reasons == ("only 76 % of the brain lies inside the PET",)
    (reason,) = judge({WHOLE: 0.31, DEEP_TO_RIM: 1.0}, T1W_CRITERIA).reasons
    assert "shrinks by only 31 %)" in reason


def test_bounds_belong_to_the_better_side_and_no_number_fails():
    assert judge({"A": 0.8, "B": 0.5}, BOUNDS).verdict == PASS
    assert judge({"A": 0.6, "B": 1.0}, BOUNDS).verdict == DOUBT
    assert judge({"A": 0.59, "B": 1.0}, BOUNDS).verdict == FAIL
    assert judge({"A": float("nan")}, BOUNDS).verdict == FAIL


def test_what_is_told_is_read_again():
    judgement = judge({"A": 0.61239, "B": 1.0}, BOUNDS)
    told = sidecar_fields(judgement)
    assert told["A"] == 0.6124
    assert verdict_of({"Registration": told}) == DOUBT
    assert reasons_of(told) == ["A is 0.61"]
    assert verdict_of({"Registration": {"Method": "x"}}) is None
    assert verdict_of({"Registration": 3}) is None
    assert reasons_of({"VerdictReasons": None}) == []


@pytest.mark.parametrize("criteria", [T1W_CRITERIA, PET_CRITERIA])
def test_criteria_doubt_before_they_fail(criteria):
    for criterion in criteria:
        assert criterion.doubt > criterion.fail
        assert any(value in criterion.sentence.format(0.5) for value in ("0.50", "50%"))


@pytest.fixture(scope="module")
def person():
    rng = np.random.default_rng(2)
    t1w, pet = brain(rng), brain(rng, inverted=True)
    return t1w, pet, t1w > 0


def t1w_verdict(data, template):
    judged = judge_t1w(
        data, template, data > 0, template > 0, head_affine(), own_measures={}, behind=0.0
    )
    return judged.verdict


def test_a_t1w_that_fits_passes_and_others_fail(person):
    template = brain(np.random.default_rng(9))
    t1w, _, inside = person
    rng = np.random.default_rng(8)
    assert t1w_verdict(t1w, template) == PASS
    assert t1w_verdict(np.where(inside, rng.random(t1w.shape), 0), template) == FAIL
    assert t1w_verdict(np.where(inside, 1, 0).astype(np.float32), template) == FAIL  # a ball
    assert t1w_verdict(ndimage.rotate(t1w, 90, (0, 1), reshape=False, order=1), template) == FAIL
    slab = np.where(np.arange(t1w.shape[2]) < 22, t1w, 0)
    assert t1w_verdict(slab, template) == FAIL


@pytest.mark.parametrize(("behind", "verdict"), [(0.0, PASS), (-0.06, DOUBT), (-0.3, FAIL)])
def test_a_better_pose_elsewhere_is_held_against_a_t1w(person, behind, verdict):
    t1w, _, inside = person
    found = judge_t1w(t1w, t1w, inside, inside, head_affine(), own_measures={}, behind=behind)
    assert found.verdict == verdict


BALL = np.sum((np.indices((40, 40, 40)) - 19.5) ** 2, axis=0)  # squared distance in voxels of 4 mm


def head(radius=15.0, *, bright_rim=1.0):
    """Return a ball of brain in a larger one of skin, and its mask."""
    inside = radius**2 >= BALL
    rim = inside & ((radius - 1) ** 2 < BALL)
    data = np.where((radius + 3) ** 2 > BALL, 0.4, 0.0)
    return np.where(rim, 0.6 * bright_rim, np.where(inside, 1.0, data)).astype(np.float32), inside


def own_measures(t1w, inside):
    return measure_brain(t1w, inside, np.diag([4.0, 4.0, 4.0, 1.0]))


def verdict_on(measures):
    return judge(measures, T1W_CRITERIA).verdict


@pytest.mark.parametrize("axis", [0, 1, 2])
@pytest.mark.parametrize("way", [1, -1])
@pytest.mark.parametrize("filled", [True, False])
def test_a_t1w_that_ends_inside_the_brain_is_doubted(axis, way, filled):
    t1w, inside = (np.moveaxis(part, 0, axis) for part in head())
    assert own_measures(t1w, inside)[WHOLE] == 1
    beyond = way * (np.indices(t1w.shape)[axis] - 19.5) > 10  # outer 20 mm of 60
    if filled:
        cut = own_measures(np.where(beyond, 0, t1w), inside & ~beyond)
    else:
        keep = tuple(
            slice(None) if a != axis else (slice(None, 30) if way > 0 else slice(10, None))
            for a in range(3)
        )
        cut = own_measures(t1w[keep], inside[keep])
    assert cut[WHOLE] == pytest.approx((10 / 15) ** 2, abs=0.1)  # for a ball, by Pythagoras
    assert verdict_on(cut) == DOUBT


@pytest.mark.parametrize("margin", [0, 1, 5])
def test_a_stripped_t1w_that_ends_with_its_brain_is_whole(margin):
    t1w, inside = head()
    box = (slice(5 - margin, 35 + margin),) * 3
    found = own_measures(np.where(inside, t1w, 0)[box], inside[box])
    assert found[WHOLE] > 0.8
    assert verdict_on(found) == PASS


def test_a_slab_of_a_stripped_brain_ends_inside_it():
    fine = np.diag([2.0, 2.0, 2.0, 1.0])
    t1w, inside = (part.repeat(2, 0).repeat(2, 1).repeat(2, 2) for part in head())
    stripped = np.where(inside, t1w, 0)
    assert measure_brain(stripped, inside, fine)[WHOLE] > 0.8
    slab = np.abs(np.arange(80) - 39.5) < 18
    found = measure_brain(stripped * slab, inside & slab, fine)
    assert verdict_on(found) == DOUBT


def test_thick_slices_of_a_stripped_brain_do_not_end_inside_it():
    t1w, inside = (part[:, :, 2::4] for part in head())
    found = measure_brain(np.where(inside, t1w, 0), inside, np.diag([4.0, 4.0, 16.0, 1.0]))
    assert found[WHOLE] == 1


@pytest.mark.parametrize(("rim", "verdict"), [(1.0, PASS), (3.0, DOUBT), (8.0, FAIL)])
def test_a_bright_rim_taken_for_brain_is_doubted(rim, verdict):
    found = own_measures(*head(bright_rim=rim))
    assert found[DEEP_TO_RIM] == pytest.approx(1 / (0.6 * rim), rel=0.01)
    assert verdict_on(found) == verdict


def pet_verdict(person, pet, covered=None, **own):
    t1w, _, inside = person
    covered = np.ones_like(inside) if covered is None else covered
    uptake = expected_uptake(classify(t1w, inside))
    return judge_pet(pet, uptake, inside, covered, ZOOMS, behind=0.0, own_measures=own)


def test_a_pet_that_fits_passes_and_others_fail(person):
    t1w, pet, _ = person
    rng = np.random.default_rng(8)
    assert pet_verdict(person, ndimage.gaussian_filter(pet, 0.7)).verdict == PASS
    assert pet_verdict(person, rng.random(pet.shape)).verdict == FAIL
    assert pet_verdict(person, t1w).verdict == FAIL  # because white matter is brighter
    for axis in (1, 2):
        assert pet_verdict(person, np.flip(pet, axis)).verdict == FAIL
    assert pet_verdict(person, np.roll(pet, 8, axis=1)).verdict == FAIL
    assert pet_verdict(person, np.zeros_like(pet)).verdict == FAIL


@pytest.mark.parametrize(("size", "verdict"), [(0.97, PASS), (0.94, DOUBT), (0.8, FAIL)])
def test_a_brain_of_another_size_is_doubted_where_most_of_it_is_seen(person, size, verdict):
    _, pet, inside = person
    assert pet_verdict(person, pet, **{SIZE: size}).verdict == verdict
    half = np.indices(inside.shape)[2] < inside.shape[2] // 2  # its size is unknown
    assert SIZE not in pet_verdict(person, pet, half, **{SIZE: size}).measures


def details(fwhm, noise=0.0, of=lambda t1w: t1w):
    """Judge an image of the T1w's anatomy, of a contrast, blurred, and with noise of 4 mm."""
    _, inside = head()
    rng, zooms = np.random.default_rng(6), (2.0, 2.0, 2.0)
    texture = smooth(rng.random(inside.shape).astype(np.float32), 3.0, zooms)
    t1w = np.where(inside, 0.7 + 2 * (texture - 0.5), 0).astype(np.float32)
    other = smooth(rng.standard_normal(t1w.shape).astype(np.float32), 4.0, zooms)
    pet = smooth(np.where(inside, of(t1w), 0), fwhm, zooms)
    pet = pet + np.float32(noise * pet[inside].std() / other.std()) * other
    return judge(measure_detail(pet, t1w, inside, zooms), PET_CRITERIA)


def test_an_mri_is_too_sharp_for_a_pet():
    assert details(0.0).measures[UNLIKE] == pytest.approx(0, abs=1e-3)
    assert details(0.0).verdict == FAIL
    assert details(0.0, of=lambda t1w: 1.5 - t1w).verdict == FAIL
    other = details(0.0, of=lambda t1w: 1 - (t1w - 0.7) ** 2)
    assert other.measures[UNLIKE] > 0.6
    assert other.verdict == DOUBT
    assert "as if an MRI had been given as PET" in other.reasons[0]


@pytest.mark.parametrize("fwhm", [6.0, 8.0])
@pytest.mark.parametrize("noise", [0.0, 0.3, 1.0])
def test_neither_blur_nor_noise_of_a_pet_is_detail(fwhm, noise):
    assert details(fwhm, noise).measures[BLURRED] > 0.8


def test_large_voxels_and_flat_images_have_no_detail():
    t1w, inside = head()
    zooms = (2.0, 2.0, 2.0)
    t1w = t1w + np.random.default_rng(6).random(t1w.shape).astype(np.float32)
    assert measure_detail(t1w, t1w, inside, zooms)
    assert measure_detail(t1w, t1w, inside, (3.0, 3.0, 3.0)) == {}
    assert measure_detail(np.ones_like(t1w), t1w, inside, zooms) == {}
    assert measure_detail(t1w, np.ones_like(t1w), inside, zooms) == {}
    assert measure_detail(t1w, t1w, np.zeros_like(inside), zooms) == {}


@pytest.mark.parametrize("unit", [1e-28, 1e-12, 1e-3, 1e6, 1e35])
def test_the_unit_of_a_pet_changes_no_verdict(person, unit):
    _, pet, _ = person
    told = pet_verdict(person, pet)
    scaled = pet_verdict(person, (pet * unit).astype(np.float32))
    assert scaled.verdict == told.verdict
    assert scaled.measures == pytest.approx(told.measures, abs=1e-3)


def test_only_what_a_pet_covers_is_judged(person):
    _, pet, inside = person
    layers = np.argwhere(inside)[:, 2]
    for share, verdict in ((0.9, PASS), (0.7, DOUBT), (0.4, FAIL)):
        covered = np.arange(inside.shape[2]) <= np.quantile(layers, share)
        covered = np.broadcast_to(covered, inside.shape)
        found = pet_verdict(person, np.where(covered, pet, 0), covered)
        assert found.verdict == verdict
        assert found.measures[INSIDE] == pytest.approx((covered & inside).sum() / inside.sum())
        rest = pet_verdict(person, np.where(covered, pet, 1e6), covered)
        assert rest == found


# Tissue segmentation


def test_tissues_are_told_apart_by_intensity():
    rng = np.random.default_rng(1)
    true = rng.choice([FLUID, GREY, WHITE], (20, 20, 20), p=[0.15, 0.5, 0.35]).astype(np.uint8)
    true[0] = OUTSIDE
    t1w = np.array([0, 200, 600, 900])[true] + 40 * rng.standard_normal(true.shape)
    assert (classify(t1w, true > 0) == true).mean() > 0.999
    assert (classify(3 * t1w + 50, true > 0) == classify(t1w, true > 0)).all()
    uptake = expected_uptake(true)
    assert uptake[true == GREY].min() == 1 > uptake[true == WHITE].max() > 0.2
    assert uptake[0].max() == 0


@pytest.mark.parametrize("where", [np.zeros((2, 3, 4), bool), np.ones((2, 3, 4), bool)])
def test_what_has_no_tissues_is_refused(where):
    with pytest.raises(ValueError, match="brain"):
        classify(np.ones((2, 3, 4), np.float32), where)


def test_one_hot_voxel_is_cut_off_and_the_rest_stays(rng):
    volume = rng.random((20, 20, 20)).astype(np.float32)
    hot = volume.copy()
    hot[3, 4, 5] = 4e4 * volume.max()
    assert winsorize(hot).max() <= volume.max()
    middle = (hot > 0.01) & (hot < 0.99)
    assert (winsorize(hot)[middle] == hot[middle]).all()
    assert (winsorize(winsorize(hot)) == winsorize(hot)).mean() > 0.99
    hot[0, 0, 0] = np.nan
    assert np.isfinite(winsorize(hot)).all()


def test_zeros_around_a_brain_do_not_count_when_it_is_winsorized(rng):
    volume = np.zeros((20, 20, 20), np.float32)
    volume[5:9, 5:9, 5:9] = rng.random((4, 4, 4)) + 1
    cut = winsorize(volume, volume > 0, most=90)
    assert (cut[volume == 0] == 0).all()
    assert cut.max() == pytest.approx(np.percentile(volume[volume > 0], 90))
