"""Properties of simulated heads, images and lesions, on 4 mm grids."""

from dataclasses import replace

import numpy as np
import pytest
from nilearn import datasets
from scipy import ndimage

from bids_app.imaging.volume import grid_of_box, zooms_of
from bids_app.simulation import metadata, person
from bids_app.simulation.anatomy import (
    NAMES,
    Anatomy,
    anatomy_from_labels,
    coordinates,
    is_brain,
    is_in_skull,
)
from bids_app.simulation.cohort import template_anatomy
from bids_app.simulation.geometry import (
    ORIENTATIONS,
    Displacement,
    draw_displacement,
    grid_over_box,
    itk_text,
    thin_cortex,
    warp_head,
    widen_ventricles,
)
from bids_app.simulation.images import (
    PATTERN_GRID,
    Scanner,
    acquire,
    activity,
    blur,
    draw_uptake,
    expect_uptake,
    paint_t1w,
    pattern_of_template,
    random_contrast,
    resample_to_scanner,
    usual_pattern,
)
from bids_app.simulation.lesions import (
    DEPTHS,
    PET_LONGEST,
    PET_SIZE,
    PET_ZOOMS,
    draw_lesions,
    draw_pet_grid,
    factor_of,
    grey_of,
    head_box,
    mask_of,
)
from bids_app.simulation.person import (
    draw_atrophy,
    draw_person,
    mark_lesions,
    place_head,
    scan_pet,
    scan_t1w,
)
from bids_app.simulation.template import anatomy_from_template

pytestmark = pytest.mark.slow

CORTEX, WHITE, FLUID = (3, 42), (2, 41), (4, 24, 43)


def jacobian(displacement: Displacement) -> np.ndarray:
    """Return the Jacobian determinant of a warp, which is above 0 if there is no folding."""
    zooms = zooms_of(displacement.affine)
    rows = [np.stack(np.gradient(displacement.field[..., c], *zooms), axis=-1) for c in range(3)]
    return np.linalg.det(np.stack(rows, axis=-2) + np.eye(3, dtype=np.float32))


def deform(anatomy: Anatomy, rng: np.random.Generator, *, strength: float = 1.0):
    """Warp a head on the same grid."""
    displacement = draw_displacement(anatomy.grid, rng, strength=strength)
    return warp_head(anatomy, displacement, anatomy.grid), displacement


@pytest.fixture(scope="module")
def head() -> Anatomy:
    """Head from nilearn's template at 4 mm: every other voxel of its 2 mm maps."""
    maps = [
        load(resolution=2)
        for load in (
            datasets.load_mni152_template,
            datasets.load_mni152_gm_template,
            datasets.load_mni152_wm_template,
            datasets.load_mni152_brain_mask,
        )
    ]
    t1w, gm, wm, mask = (np.asarray(image.dataobj, np.float32) for image in maps)
    fine = anatomy_from_template(t1w, gm, wm, mask > 0, maps[0].affine)
    affine = fine.affine @ np.diag([2.0, 2.0, 2.0, 1.0])
    return Anatomy(fine.labels[::2, ::2, ::2].copy(), affine, fine.mni[::2, ::2, ::2].copy())


@pytest.fixture
def rng():
    return np.random.default_rng(7)


def mean(volume, labels, chosen):
    return float(volume[np.isin(labels, chosen)].mean())


def middle_of(volume, affine):
    return affine[:3, :3] @ ndimage.center_of_mass(volume) + affine[:3, 3]


def at(pattern, x, y, z):
    i, j, k = np.rint(np.linalg.inv(PATTERN_GRID.affine) @ [x, y, z, 1]).astype(int)[:3]
    return float(pattern[i, j, k])


def test_head_has_all_that_is_painted_and_sides_in_their_places(head):
    present = set(np.unique(head.labels))
    assert {2, 3, 7, 8, 10, 11, 12, 13, 16, 17, 18, 41, 42, 49, 50, 53} <= present
    assert any(label >= 500 for label in present)
    for left, right in ((3, 42), (10, 49), (17, 53), (12, 51)):
        assert head.mni[head.labels == left][:, 0].mean() < 0
        assert head.mni[head.labels == right][:, 0].mean() > 0
    brain = is_brain(head.labels)
    assert 1.0e6 < brain.sum() * 64 < 2.2e6  # mm³, as in adults
    # the brain is surrounded by the head and touches no air
    assert (head.labels[ndimage.binary_dilation(brain)] > 0).all()


def test_centroids_find_mni_space_of_a_moved_head(head):
    motion = np.array([[0, -1.1, 0, 7], [0.9, 0, 0, -3], [0, 0, 1, 11], [0, 0, 0, 1.0]])
    found = anatomy_from_labels(head.labels, motion @ head.affine)
    brain = is_brain(found.labels)
    world = coordinates(found.grid)[brain]
    inverse = np.linalg.inv(motion)
    truth = world @ inverse[:3, :3].T + inverse[:3, 3]
    error = np.linalg.norm(found.mni[brain] - truth, axis=-1)
    assert np.median(error) < 5


def test_label_map_without_structures_is_refused():
    with pytest.raises(ValueError, match="structures"):
        anatomy_from_labels(np.ones((5, 5, 5), np.int16), np.eye(4))


@pytest.mark.parametrize("seed", range(5))
def test_warp_folds_nothing(head, seed):
    displacement = draw_displacement(head.grid, np.random.default_rng(seed))
    assert jacobian(displacement).min() > 0
    assert np.abs(displacement.field).max() > 3  # the warp is not trivial


def test_no_strength_leaves_the_head_as_it_is(head, rng):
    same, displacement = deform(head, rng, strength=0)
    assert np.abs(displacement.field).max() < 1e-4
    assert np.array_equal(same.labels, head.labels)
    np.testing.assert_allclose(same.mni, head.mni, atol=1e-2)


def test_mni_coordinates_go_with_the_labels(head, rng):
    warped, _ = deform(head, rng)
    for label in (10, 49, 12, 51, 16):
        before = head.mni[head.labels == label].mean(axis=0)
        after = warped.mni[warped.labels == label].mean(axis=0)
        np.testing.assert_allclose(after, before, atol=2.5)  # although it moved in world space
    assert np.abs(warped.mni - head.mni).max() > 3


def test_same_head_on_two_grids_is_the_same_head(head, rng):
    displacement = draw_displacement(head.grid, rng)
    box = head_box(head)
    volumes, centres = [], []
    for orientation in ("RAS", "LIA"):
        seen = warp_head(head, displacement, grid_over_box(*box, 4.0, orientation=orientation))
        stem = np.argwhere(seen.labels == 16)
        volumes.append(len(stem))
        centres.append(seen.affine[:3, :3] @ stem.mean(axis=0) + seen.affine[:3, 3])
    assert volumes[0] == pytest.approx(volumes[1], rel=0.15)
    np.testing.assert_allclose(centres[0], centres[1], atol=1.5)


@pytest.mark.parametrize("seed", range(4))
def test_t1w_has_white_over_grey_over_fluid(head, seed):
    rng = np.random.default_rng(seed)
    t1w = paint_t1w(head.labels, random_contrast(rng), rng, head.zooms)
    white, grey, fluid = (mean(t1w, head.labels, chosen) for chosen in (WHITE, CORTEX, FLUID))
    assert white > 1.08 * grey
    assert grey > 1.15 * fluid
    assert mean(t1w, head.labels, (0,)) < 0.5 * grey
    assert mean(t1w, head.labels, (515,)) < grey  # bone is dark
    assert t1w.min() >= 0


def test_contrasts_differ_among_people():
    ratios = []
    for seed in range(20):
        means = random_contrast(np.random.default_rng(seed)).means
        ratios.append(means[3] / means[2])
    assert np.std(ratios) > 0.05


@pytest.mark.parametrize("seed", range(4))
def test_cortex_takes_up_more_than_twice_as_much_as_white_matter(head, seed):
    uptake = draw_uptake(usual_pattern(), np.random.default_rng(seed))
    volume = activity(head, uptake)
    ratio = mean(volume, head.labels, CORTEX) / mean(volume, head.labels, WHITE)
    assert 2.2 < ratio < 3.6
    assert volume[head.labels >= 500].mean() < 0.25  # uptake outside the brain is low


def test_pattern_is_high_and_low_where_fdg_is():
    pattern = usual_pattern()
    for high in ((10, -84, 4), (42, -24, 52), (8, -62, 48)):
        assert at(pattern, *high) > 1.04
    for low in ((26, -18, -20), (36, 10, -36), (54, -34, -22)):
        assert at(pattern, *low) < 0.9
    np.testing.assert_allclose(pattern, pattern[::-1], atol=1e-6)


# Means over the brain's mean, averaged over two mean FDG PET of many people, see ``TISSUE``.
MEASURED = {"thalamus": 0.97, "caudate": 0.82, "putamen": 1.21, "hippocampus": 0.81}
MEASURED_AT = {(7, -55, 28): 1.36, (9, -84, 5): 1.37, (36, 12, -34): 0.83, (38, 36, 28): 1.15}


def test_regions_take_up_as_much_as_in_mean_fdg_pet():
    head = template_anatomy(2)
    pet = blur(activity(head, expect_uptake(usual_pattern())), Scanner(8.0, 1.0, 0.0), head.zooms)
    pet /= pet[is_brain(head.labels)].mean()
    for name, value in MEASURED.items():
        assert mean(pet, head.labels, NAMES[name]) == pytest.approx(value, rel=0.12), name
    for centre, value in MEASURED_AT.items():
        distance = np.linalg.norm(
            np.abs(head.mni) * [1, 0, 0] + head.mni * [0, 1, 1] - centre, axis=-1
        )
        cortex = np.isin(head.labels, CORTEX) & (distance < 10)
        assert pet[cortex].mean() == pytest.approx(value, rel=0.12), centre


def test_regions_differ_among_people_and_between_sides_as_published():
    """SD of regions relative to the mean about 7 %, of asymmetry 3 to 5 %; see ``VARIATION``."""
    points = coordinates(PATTERN_GRID)
    brain = np.linalg.norm(points - [0, -18, 8], axis=-1) < 60
    places = ((7, -52, 28), (38, 36, 28), (42, -24, 52), (54, -34, -22), (26, -22, -14))
    balls = [
        [
            np.linalg.norm(points - np.multiply(place, (side, 1, 1)), axis=-1) < 10
            for side in (-1, 1)
        ]
        for place in places
    ]
    spread, asymmetry = [], []
    for seed in range(60):
        ones = np.ones(PATTERN_GRID.shape, np.float32)
        region = draw_uptake(ones, np.random.default_rng(seed)).region
        pairs = np.array([[region[ball].mean() for ball in sides] for sides in balls])
        spread.append(pairs.mean(axis=1) / region[brain].mean())
        asymmetry.append(200 * (pairs[:, 0] - pairs[:, 1]) / pairs.sum(axis=1))
    assert 0.05 < np.std(spread, axis=0).mean() < 0.10
    assert 2.5 < np.std(asymmetry, axis=0).mean() < 5.5


def test_ventricles_widen_with_atrophy_and_nothing_folds(head, rng):
    displacement = draw_displacement(head.grid, rng)
    volumes, skulls = [], []
    for atrophy in (0.0, 0.5, 1.0):
        widened = widen_ventricles(head, displacement, atrophy)
        assert jacobian(widened).min() > 0
        carried = warp_head(head, widened, grid_over_box(*head_box(head), 2.0))
        volumes.append(np.isin(carried.labels, (4, 43)).sum())
        skulls.append(is_in_skull(carried.labels).sum())
    assert (np.diff(volumes) > 0.1 * volumes[0]).all()
    assert volumes[2] < 4 * volumes[0]
    assert skulls[2] == pytest.approx(skulls[0], rel=0.01)


def test_the_cortex_thins_with_atrophy_and_fluid_takes_its_place(head):
    counts = []
    for atrophy in (0.0, 0.5, 1.0):
        labels = thin_cortex(head, atrophy).labels
        lost = labels != head.labels
        assert np.isin(head.labels[lost], CORTEX).all()
        assert (labels[lost] == 24).all()
        counts.append(np.isin(labels, CORTEX).sum())
    assert (np.diff(counts) < -0.02 * counts[0]).all()
    assert counts[2] > 0.7 * counts[0]


def test_no_atrophy_changes_nothing(head, rng):
    displacement = draw_displacement(head.grid, rng)
    assert widen_ventricles(head, displacement, 0) is displacement
    assert thin_cortex(head, 0) is head


def test_atrophy_comes_with_age():
    rng = np.random.default_rng(0)
    young, old = ([draw_atrophy(age, rng) for _ in range(50)] for age in (25, 75))
    assert np.mean(young) < 0.1
    assert 0.5 < np.mean(old) < 0.9
    assert min(young) >= 0
    assert max(old) <= 1


def test_variation_is_correlated_between_sides_and_smooth():
    brain = np.linalg.norm(coordinates(PATTERN_GRID) - [0, -18, 8], axis=-1) < 60
    correlations = []
    for seed in range(12):
        ones = np.ones(PATTERN_GRID.shape, np.float32)
        field = np.log(draw_uptake(ones, np.random.default_rng(seed)).region)
        correlations.append(np.corrcoef(field[brain], field[::-1][brain])[0, 1])
        assert np.abs(np.diff(field, axis=1)).max() < 0.08  # over 4 mm
        assert 0.01 < field[brain].std() < 0.12
    assert 0.6 < np.mean(correlations) < 0.98


def test_template_made_of_the_usual_pattern_gives_it_back(head):
    flat = draw_uptake(usual_pattern(), np.random.default_rng(0)).tissue
    ones = np.ones(PATTERN_GRID.shape, np.float32)
    grid = grid_of_box((-92, -128, -76, 92, 92, 108), 4.0)
    tissue = flat[
        warp_head(
            head, draw_displacement(head.grid, np.random.default_rng(0), strength=0), grid
        ).labels
    ]
    bright = ones.copy()
    bright[:, : grid.shape[1] // 2] = 1.3  # posterior half of the brain
    pet = ndimage.gaussian_filter(tissue * bright, 1.2)
    pattern = pattern_of_template(50 * pet, grid, head)
    back = np.mean([at(pattern, x, -70, 10) for x in (-30, 30)])
    front = np.mean([at(pattern, x, 35, 10) for x in (-30, 30)])
    assert 1.15 < back / front < 1.45
    assert pattern.min() >= 0.6
    assert pattern.max() <= 1.5
    np.testing.assert_allclose(pattern, pattern[::-1], atol=1e-5)


@pytest.mark.parametrize("seed", range(8))
def test_lesions_keep_to_their_bounds(head, seed):
    rng = np.random.default_rng(seed)
    lesions = draw_lesions(head, rng)
    assert len(lesions) in (1, 2)
    masks = [mask_of(lesion, head.labels, head.affine) for lesion in lesions]
    for lesion, mask in zip(lesions, masks, strict=True):
        assert 1000 <= mask.sum() * np.prod(head.zooms) <= 8000
        assert 0.10 <= lesion.depth <= 0.40
        assert grey_of(head.labels, lesion.side)[mask].all()
        sides = np.sign(head.mni[mask][:, 0].mean())
        assert sides == (-1 if lesion.side == "left" else 1)
        factor = factor_of(lesion, head.labels, head.affine)
        assert factor.min() == pytest.approx(1 - lesion.depth, abs=1e-3)
        assert (factor[mask] <= 1 - lesion.depth / 2 + 1e-6).all()
        assert (factor[~grey_of(head.labels, lesion.side)] == 1).all()
    assert not np.logical_and.reduce(masks).any() or len(masks) == 1


def test_lesions_are_as_deep_as_asked_and_else_alike(head):
    usual, deep = (
        draw_lesions(head, np.random.default_rng(3), depths) for depths in (DEPTHS, (0.6, 0.8))
    )
    assert all(0.6 <= lesion.depth <= 0.8 for lesion in deep)
    assert [replace(one, depth=0) for one in usual] == [replace(one, depth=0) for one in deep]


def test_lesion_fades_at_its_rim(head, rng):
    (lesion, *_) = draw_lesions(head, rng)
    loss = 1 - factor_of(lesion, head.labels, head.affine)
    partial = (loss > 0.02 * lesion.depth) & (loss < 0.98 * lesion.depth)
    partial &= np.abs(loss - lesion.depth / 2) > 0.05 * lesion.depth  # except those at the radius
    assert partial.sum() >= 5


def test_t1w_does_not_show_lesions_and_pet_does(head):
    images = {}
    for ill in (False, True):
        person = draw_person(
            head,
            usual_pattern(),
            np.random.default_rng(5),
            depths=DEPTHS if ill else None,
            strength=1.0,
        )
        rng = np.random.default_rng(6)
        placed = place_head(person, 4.0, rng, vary=False)
        t1w = scan_t1w(person, placed, rng)
        pet = scan_pet(person, placed, np.array([600.0]), rng, vary=False)
        images[ill] = t1w, pet.noisefree, mark_lesions(person, placed)
    assert np.array_equal(images[False][0], images[True][0])
    mask = images[True][2]
    assert mask.any()
    assert not images[False][2].any()
    change = images[True][1] / np.maximum(images[False][1], 1)
    assert change[mask].mean() < 0.95
    far = ndimage.distance_transform_edt(~mask, zooms_of(head.affine)) > 30
    np.testing.assert_allclose(change[far & (images[False][1] > 100)], 1, atol=1e-3)


def test_blur_keeps_activity_and_scale_gives_becquerels(rng):
    volume = np.zeros((30, 30, 30), np.float32)
    volume[15, 15, 15] = 1
    seen = blur(volume, Scanner(5.0, 20e3, 0.0), (2.0, 2.0, 2.0))
    assert seen.sum() == pytest.approx(20e3, rel=1e-3)
    profile = seen[:, 15, 15] / seen[15, 15, 15]
    # half of the maximum is reached at 2.5 mm, between the voxels at 2 and 4 mm
    assert profile[16] > 0.5 > profile[17]


def test_frames_average_to_the_scan_and_short_ones_are_noisier(rng):
    truth = np.full((24, 24, 24), 10e3, np.float32)
    durations = np.array([100.0, 900.0])
    frames = acquire(truth, Scanner(5.0, 10e3, 0.05), durations, (2.0, 2.0, 2.0), rng)
    assert frames.shape == (24, 24, 24, 2)
    average = np.average(frames, axis=-1, weights=durations)
    assert average.mean() == pytest.approx(10e3, rel=0.01)
    assert average.std() / 10e3 == pytest.approx(0.05, rel=0.2)
    assert frames[..., 0].std() / frames[..., 1].std() == pytest.approx(3, rel=0.2)


@pytest.mark.parametrize("orientation", ORIENTATIONS)
def test_pet_grid_keeps_the_truth_transform_true(head, orientation):
    rng = np.random.default_rng(3)
    person = draw_person(head, usual_pattern(), rng, depths=None, strength=1.0)
    placed = place_head(person, 4.0, rng, vary=False)
    pet = scan_pet(person, placed, np.array([600.0]), rng, vary=False)
    assert not np.allclose(pet.t1w_to_pet, np.eye(4), atol=1e-2)
    grid = grid_over_box(*head_box(placed), 3.0, orientation=orientation)
    onto = resample_to_scanner(pet.noisefree, placed.affine, grid, np.linalg.inv(pet.t1w_to_pet))
    brain = is_brain(placed.labels)
    centre = np.append(middle_of(pet.noisefree, placed.affine), 1)
    np.testing.assert_allclose(middle_of(onto, grid.affine), (pet.t1w_to_pet @ centre)[:3], atol=1)

    def correlation(shift):
        moved = pet.t1w_to_pet.copy()
        moved[:3, 3] += shift
        back = resample_to_scanner(onto, grid.affine, placed.grid, moved)
        one, other = (ndimage.gaussian_filter(volume, 0.85) for volume in (back, pet.noisefree))
        return np.corrcoef(one[brain], other[brain])[0, 1]

    assert correlation([0, 0, 0]) > 0.98
    for shift in 3.0 * np.vstack([np.eye(3), -np.eye(3)]):
        assert correlation(shift) < correlation([0, 0, 0])


def test_pet_grids_lie_around_the_brain_and_differ_among_scanners():
    rng = np.random.default_rng(0)
    from_centre, edges = [], set()
    for _ in range(60):
        grid = draw_pet_grid(np.array([1.0, 2.0, 3.0]), rng, vary=True)
        middle = grid.affine[:3, :3] @ ((np.array(grid.shape) - 1) / 2) + grid.affine[:3, 3]
        from_centre.append(np.abs(middle - [1, 2, 3]).max())
        edge, *others = zooms_of(grid.affine)
        assert others == pytest.approx([edge, edge])
        edges.add(round(edge, 3))
        extent = np.abs(grid.affine[:3, :3] @ grid.shape)
        assert (extent >= np.array(PET_SIZE)).all()
        assert extent[2] <= PET_LONGEST + 2 * edge
    assert max(from_centre) < 1e-6
    assert edges == set(PET_ZOOMS)


def test_itk_text_is_in_lps():
    ras = np.eye(4)
    ras[:3, 3] = 1, 2, 3
    line = itk_text(ras).splitlines()[3]
    assert [float(n) for n in line.split()[1:]] == [1, 0, 0, 0, 1, 0, 0, 0, 1, -1, -2, 3]


def test_equal_seeds_give_equal_images(head):
    def draw(seed):
        rng = np.random.default_rng(seed)
        person = draw_person(head, usual_pattern(), rng, depths=DEPTHS, strength=1.0)
        placed = place_head(person, 4.0, rng, vary=True)
        pet = scan_pet(person, placed, np.array([600.0]), rng, vary=True)
        return scan_t1w(person, placed, rng), pet.data

    first, again, other = draw(1), draw(1), draw(2)
    for one, same, different in zip(first, again, other, strict=True):
        assert np.array_equal(one, same)
        assert one.shape != different.shape or not np.array_equal(one, different)


def test_frames_share_the_scan():
    durations = metadata.frame_durations(4)
    about = metadata.describe_pet(durations, 5.0, np.random.default_rng(0))
    assert about["FrameTimesStart"] == [2400, 2700, 3000, 3300]
    assert about["FrameDuration"] == [300] * 4
    product = about["InjectedMass"] * about["SpecificRadioactivity"]
    assert product == pytest.approx(about["InjectedRadioactivity"], rel=1e-3)


def test_label_names_are_unique():
    rows = metadata.label_rows()
    assert len({row["index"] for row in rows}) == len(rows)
    assert {row["name"] for row in rows if row["index"] in (3, 42)} == {"cortex"}


def test_nobody_has_a_larger_skull_than_people_have(head, monkeypatch):
    """The template is already large; a quarter more would exceed human brains."""
    drawn = []

    def draw(grid, rng, *, strength):
        drawn.append(draw_displacement(grid, rng, strength=strength))
        return drawn[-1]

    monkeypatch.setattr(person, "draw_displacement", draw)
    pattern = usual_pattern()
    monkeypatch.setattr(person, "TRIES", 3)
    for limit, tries in ((100.0, 1), (0.1, 3)):
        monkeypatch.setattr(person, "LARGEST_SKULL", limit)
        drawn.clear()
        made = draw_person(head, pattern, np.random.default_rng(3), depths=None, strength=1.0)
        assert len(drawn) == tries
        assert made.displacement is drawn[-1]
