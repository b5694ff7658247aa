from dataclasses import astuple
from itertools import permutations, product

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from scipy import ndimage

from bids_app.detection.clusters import (
    find_clusters,
    name_regions,
    overlaps,
    read_labels,
    separate_lesions,
    side_of,
    threshold_of,
)
from bids_app.detection.evaluation import common_brain
from bids_app.errors import MissingInputError, UnusableDataError

SHAPE = (12, 10, 8)
ALL = np.ones(SHAPE, bool)
TURNS = [
    (axes, flips)
    for axes in permutations(range(3))
    for flips in product((slice(None), slice(None, None, -1)), repeat=3)
]
seeds = st.integers(0, 10_000)


def lay(origin=(0, 0, 0), zoom=2.0):
    affine = np.diag([zoom, zoom, zoom, 1.0])
    affine[:3, 3] = origin
    return affine


AFFINE = lay((-11.0, -9.0, -7.0))  # x = 0 lies between voxels 5 and 6


def draw(seed, shape=SHAPE, fwhm=1.0):
    noise = np.random.default_rng(seed).standard_normal(shape)
    return ndimage.gaussian_filter(noise, fwhm).astype(np.float32)


def spots(*places, shape=SHAPE):
    """Return a map that is 0 except at some voxels."""
    score = np.zeros(shape, np.float32)
    for place, value in places:
        score[place] = value
    return score


def find(score, brain=ALL, affine=AFFINE, *, extent=0.5, minimum_volume=0.0, most=None):
    return find_clusters(
        score, brain, affine, extent=extent, minimum_volume=minimum_volume, most=most
    )


# Threshold


@given(seeds, st.floats(0.001, 0.5))
@example(seed=1222, extent=0.205078125)  # two of these float32 random values are equal
def test_the_share_of_the_brain_exceeds_the_threshold(seed, extent):
    score, brain = draw(seed), draw(seed + 1) > 0
    score = 10 + score.argsort(axis=None).argsort().reshape(score.shape).astype(np.float32)
    above = (score[brain] > threshold_of(score, brain, extent)).mean()
    assert extent - 1 / brain.sum() < above <= extent + 1e-9


@given(seeds, st.floats(0.001, 0.999))
def test_the_threshold_is_never_below_the_median_nor_zero(seed, extent):
    score, brain = draw(seed), draw(seed + 1) > 0
    found = score[brain & (score > threshold_of(score, brain, extent))]
    assert (found > np.median(score[brain])).all()
    assert (found > 0).all()


@given(st.lists(st.integers(0, 4), min_size=1, max_size=60), st.floats(0.01, 0.99))
def test_ties_stay_together_and_are_never_more_than_the_share(values, extent):
    score = np.array(values, np.float32).reshape(-1, 1, 1)
    threshold = threshold_of(score, score >= 0, extent)
    share = min(extent, 0.5)
    assert (score > threshold).mean() <= share + 1e-9
    lower = score[score <= threshold].max()  # including the next value would give too many
    assert (score >= lower).sum() > int(share * score.size * (1 + 1e-9))


def test_thresholds_by_hand():
    score = np.arange(1, 101, dtype=np.float32).reshape(10, 10, 1)
    brain = score > 0
    assert threshold_of(score, brain, 0.02) == 98
    assert threshold_of(score, brain, 0.29) == 71  # 0.29 × 100 is 28.999999999999996
    assert threshold_of(score, brain, 0.001) == 100
    assert threshold_of(score, brain, 0.9) == 50
    assert threshold_of(score, brain & (score <= 50), 0.02) == 49
    assert threshold_of(score - 99, brain, 0.02) == 0


@pytest.mark.parametrize("extent", [0.001, 0.02, 0.5, 0.99])
@pytest.mark.parametrize("value", [0, 3, -3])
def test_a_flat_map_has_no_cluster(extent, value):
    clusters, labels = find(np.full(SHAPE, value, np.float32), extent=extent)
    assert clusters == []
    assert not labels.any()


def test_a_map_of_two_values_has_clusters_where_the_upper_ones_are_few():
    some = spots(((slice(0, 2), 0, 0), 1))  # 2 of 960
    assert len(find(some, extent=0.01)[0]) == 1
    assert find(some, extent=0.001)[0] == []


@pytest.mark.parametrize("extent", [0, 1, -0.1, float("nan")])
def test_an_extent_that_is_no_share_is_refused(extent):
    with pytest.raises(ValueError, match="share of the brain"):
        threshold_of(draw(1), ALL, extent)


@pytest.mark.parametrize("odd", [np.nan, np.inf])
def test_a_score_that_is_no_number_is_refused_in_the_brain_alone(odd):
    score = draw(1)
    score[3, 3, 3] = odd
    with pytest.raises(ValueError, match="1 scores in the brain are NaN or infinite"):
        find(score)
    brain = ALL.copy()
    brain[3, 3, 3] = False
    clusters, labels = find(score, brain, extent=0.05)
    expected, expected_labels = find(np.where(brain, score, 0), brain, extent=0.05)
    assert clusters == expected
    assert np.array_equal(labels, expected_labels)


def test_a_brain_that_does_not_fit_is_refused():
    with pytest.raises(ValueError, match="differ"):
        threshold_of(draw(1), ALL[1:], 0.1)
    with pytest.raises(ValueError, match="empty"):
        threshold_of(draw(1), ~ALL, 0.1)


# Clusters


@given(seeds, st.floats(0.01, 0.3), st.floats(0, 60), st.none() | st.integers(1, 5))
def test_tables_and_labels_say_the_same(seed, extent, minimum_volume, most):
    score, brain = draw(seed), draw(seed + 1) > -0.2
    clusters, labels = find(score, brain, extent=extent, minimum_volume=minimum_volume, most=most)
    assert labels.dtype == np.int16
    assert [cluster.rank for cluster in clusters] == [*range(1, len(clusters) + 1)]
    assert labels.max() == len(clusters) <= (len(clusters) if most is None else most)
    assert (score[labels > 0] > threshold_of(score, brain, extent)).all()
    assert brain[labels > 0].all()
    for cluster in clusters:
        own = labels == cluster.rank
        assert ndimage.label(own, np.ones((3, 3, 3)))[1] == 1
        assert cluster.volume == pytest.approx(8 * own.sum())
        assert cluster.volume >= minimum_volume * (1 - 1e-6)
        assert cluster.sum_score == pytest.approx(np.abs(score[own]).sum(), rel=1e-5)
        assert cluster.mean_score == pytest.approx(score[own].mean(), rel=1e-5)
        assert cluster.peak_score == score[own].max()
        centre = ndimage.center_of_mass(score * own)
        assert (cluster.x, cluster.y, cluster.z) == pytest.approx(
            (AFFINE @ [*centre, 1])[:3], abs=1e-4
        )
        peak = np.linalg.inv(AFFINE) @ [cluster.peak_x, cluster.peak_y, cluster.peak_z, 1]
        assert (score * own)[tuple(np.rint(peak[:3]).astype(int))] == cluster.peak_score
        assert cluster.side == side_of(cluster.x)
    sums = [cluster.sum_score for cluster in clusters]
    assert sums == sorted(sums, reverse=True)


def flood(exceeding):
    """Find connected components by flood fill: sets of voxels."""
    left, parts = {tuple(v) for v in np.argwhere(exceeding).tolist()}, []
    while left:
        part, edge = set(), [left.pop()]
        while edge:
            voxel = edge.pop()
            part.add(voxel)
            near = {tuple(np.add(voxel, step).tolist()) for step in product((-1, 0, 1), repeat=3)}
            edge += near & left
            left -= near
        parts.append(part)
    return parts


@given(seeds, st.floats(0.02, 0.3))
def test_clusters_are_what_flooding_gives(seed, extent):
    score = draw(seed, (7, 6, 5), 0.6)
    brain = np.ones(score.shape, bool)
    _, labels = find(score, brain, extent=extent)
    expected = flood(score > threshold_of(score, brain, extent))
    found = [
        {tuple(v) for v in np.argwhere(labels == rank).tolist()}
        for rank in range(1, labels.max() + 1)
    ]
    assert sorted(map(sorted, found)) == sorted(map(sorted, expected))


@given(seeds, st.floats(0.02, 0.3), st.floats(0, 80), st.integers(1, 6))
def test_what_is_kept_are_the_first_of_what_there_is(seed, extent, minimum_volume, most):
    score = draw(seed)
    every, all_labels = find(score, extent=extent)
    large = [one for one in every if one.volume >= minimum_volume * (1 - 1e-9)]
    some, labels = find(score, extent=extent, minimum_volume=minimum_volume, most=most)
    assert [astuple(one)[1:] for one in some] == [astuple(one)[1:] for one in large[:most]]
    for new, old in zip(some, large, strict=False):
        assert np.array_equal(labels == new.rank, all_labels == old.rank)


@pytest.mark.parametrize("turn", TURNS, ids=str)
def test_how_the_array_lies_changes_nothing(turn):
    """RAS, LAS and all others: same clusters, ranks, ties and sides at the same places."""
    axes, flips = turn
    score, brain = np.round(draw(5), 1), draw(6) > -0.2  # rounded, so that there are ties
    affine = AFFINE.copy()
    affine[:3, :3] += 0.03 * np.random.default_rng(1).standard_normal((3, 3))  # slightly oblique
    to_old = np.zeros((4, 4))
    to_old[3, 3] = 1
    for new, old in enumerate(axes):
        to_old[old, new] = 1 if flips[new].step is None else -1
        to_old[old, 3] = 0 if flips[new].step is None else SHAPE[old] - 1
    expected, labels = find(score, brain, affine, extent=0.1)
    found, turned = find(
        score.transpose(axes)[flips], brain.transpose(axes)[flips], affine @ to_old, extent=0.1
    )
    assert np.array_equal(turned, labels.transpose(axes)[flips])
    assert len(expected) > 5
    for one, other in zip(expected, found, strict=True):
        assert astuple(other)[:8] == pytest.approx(astuple(one)[:8], abs=1e-9)
        assert (other.side, other.sum_score) == (one.side, one.sum_score)


def test_a_lesion_on_the_left_stays_left_and_a_mirrored_head_has_it_right():
    score = spots(((2, 4, 4), 5), ((2, 5, 4), 5))
    (left,), _ = find(score)
    assert (left.side, left.x) == ("left", -7)
    flip = np.diag([-1.0, 1, 1, 1])
    flip[0, 3] = SHAPE[0] - 1
    (stored_otherwise,), _ = find(score[::-1], affine=AFFINE @ flip)
    assert stored_otherwise == left
    (mirrored,), _ = find(score[::-1])
    assert (mirrored.side, mirrored.x, mirrored.y) == ("right", 7, left.y)


@pytest.mark.parametrize(
    ("x", "side"), [(-2.1, "left"), (-2, "midline"), (0, "midline"), (2, "midline"), (2.1, "right")]
)
def test_sides(x, side):
    assert side_of(x) == side


def test_clusters_by_hand():
    score = spots(
        ((1, 1, 1), 1),
        ((2, 2, 2), 3),  # neighbours by a corner: 4 voxels in all
        ((8, 1, 1), 2.5),
        ((8, 8, 5), 2),
        ((8, 8, 6), 2),
        ((8, 7, 6), 2),
    )
    (first, second, third), labels = find(score)
    assert [one.volume for one in (first, second, third)] == pytest.approx([24, 16, 8])
    assert (first.sum_score, first.mean_score, first.peak_score) == (6, 2, 2)
    assert (first.x, first.side) == (5, "right")
    assert (first.peak_x, first.peak_y, first.peak_z) == (5, 5, 5)  # the first of equal maxima
    assert (first.y, first.z) == (pytest.approx(7 - 2 / 3), pytest.approx(3 + 4 / 3))
    assert second.sum_score == 4
    assert (second.x, second.y, second.z) == (-7.5, -5.5, -3.5)  # at three quarters of the distance
    assert (third.sum_score, labels[8, 1, 1]) == (2.5, 3)
    assert (first.expected_in_control, first.overlap, first.region) == (None, None, None)
    kept, labels = find(score, minimum_volume=16)
    assert kept == [first, second]
    assert labels[8, 1, 1] == 0


def test_the_least_volume_is_kept_whatever_the_last_digit_of_the_affine():
    score = spots(((slice(2, 4), slice(2, 4), slice(2, 4)), 1))
    affine = AFFINE @ np.diag([1 - 1e-12, 1, 1, 1])
    assert len(find(score, affine=affine, minimum_volume=64)[0]) == 1
    assert find(score, affine=affine, minimum_volume=64.001)[0] == []


def test_equal_sums_rank_by_their_first_voxel():
    places = [(9, 1, 1), (1, 8, 1), (1, 1, 6), (1, 1, 1)]
    _, labels = find(spots(*((place, 2) for place in places)))
    assert [labels[place] for place in places] == [4, 3, 2, 1]


def test_of_equal_peaks_the_first_is_told():
    score = np.round(draw(3, (40, 30, 20), 2.0) * 20).astype(np.float32)
    clusters, labels = find(score, np.isfinite(score), extent=0.2)
    assert clusters[0].volume > 8000
    for cluster in clusters:
        first = np.argwhere((labels == cluster.rank) & (score == cluster.peak_score))[0]
        assert (cluster.peak_x, cluster.peak_y, cluster.peak_z) == tuple((AFFINE @ [*first, 1])[:3])


def test_more_clusters_than_labels_are_refused():
    score = np.zeros((80, 80, 50), np.float32)
    score[::2, ::2, ::2] = 1
    with pytest.raises(ValueError, match="40000 clusters are too many to label"):
        find(score, score >= 0)
    assert len(find(score, score >= 0, most=3)[0]) == 3


# Lesions


@pytest.mark.parametrize(("zoom", "empty"), [(1, 8), (2, 4), (4, 2)])
def test_parts_of_a_lesion_that_are_near_are_one(zoom, empty):
    """Parts are near if their faces are up to 8 mm apart."""
    mask = np.zeros((40, 5, 5), bool)
    second, third = 3 + empty, 3 + empty + empty + 2
    mask[[2, second, third], 2, 2] = True
    labels = separate_lesions(mask, lay(zoom=zoom))
    assert labels.dtype == np.int16
    assert labels[[2, second, third], 2, 2].tolist() == [1, 1, 2]
    assert np.array_equal(labels > 0, mask)
    assert separate_lesions(mask, lay(zoom=zoom), gap=0).max() == 3
    assert separate_lesions(mask, lay(zoom=zoom), gap=16).max() == 1


@given(seeds)
def test_without_a_gap_lesions_are_connected_parts(seed):
    mask = draw(seed) > 0.2
    found = separate_lesions(mask, AFFINE, gap=0)
    assert np.array_equal(found, ndimage.label(mask, np.ones((3, 3, 3)))[0])


def test_without_a_lesion_there_is_none():
    assert not separate_lesions(~ALL, AFFINE).any()


@given(seeds, st.integers(1, 4), st.integers(1, 4))
def test_overlaps_are_what_counting_gives(seed, clusters, lesions):
    rng = np.random.default_rng(seed)
    one = rng.integers(0, clusters + 1, SHAPE).astype(np.int16)
    other = rng.integers(0, lesions + 1, SHAPE).astype(np.int16)
    shared = overlaps(one, other, 8.0)
    assert shared.shape == (clusters, lesions)
    for rank, lesion in product(range(1, clusters + 1), range(1, lesions + 1)):
        assert shared[rank - 1, lesion - 1] == 8 * ((one == rank) & (other == lesion)).sum()
    assert np.array_equal(overlaps(other, one, 8.0), shared.T)


def test_overlaps_without_clusters_or_lesions():
    none, some = np.zeros(SHAPE, np.int16), np.ones(SHAPE, np.int16)
    assert overlaps(none, some, 1.0).shape == (0, 1)
    assert overlaps(some, none, 1.0).shape == (1, 0)
    with pytest.raises(ValueError, match="differ"):
        overlaps(none, some[1:], 1.0)


# Brain masks shared by most people


@given(seeds, st.integers(1, 12), st.floats(0.01, 1))
def test_the_common_brain_is_what_counting_gives(seed, count, share):
    masks = np.random.default_rng(seed).random((count, 3, 4, 5)) > 0.3
    expected = masks.mean(axis=0) >= share - 1e-8
    assert np.array_equal(common_brain(iter(masks), share), expected)


def test_common_brains_by_hand():
    masks = [np.arange(10) >= n for n in range(10)]  # voxel n is in n + 1 of 10 brains
    assert common_brain(masks).tolist() == [False] * 8 + [True] * 2
    assert common_brain(masks, 1.0).tolist() == [False] * 9 + [True]
    assert common_brain(masks, 0.7).sum() == 4
    assert common_brain([np.arange(25) >= n for n in range(25)], 0.28).sum() == 19
    assert common_brain(masks, 1e-6).all()


@pytest.mark.parametrize(
    ("masks", "share", "sentence"),
    [
        ([], 0.9, "at least one brain"),
        ([ALL, ALL[1:]], 0.9, "differ"),
        ([ALL], 0, "share of people"),
    ],
)
def test_brains_that_cannot_be_compared_are_refused(masks, share, sentence):
    with pytest.raises(ValueError, match=sentence):
        common_brain(masks, share)


# Regions


def test_a_cluster_has_the_name_of_the_region_that_holds_most_of_it():
    labels = np.array([1, 1, 1, 1, 1, 1, 2, 2, 3, 3, 4, 0], np.int16).reshape(3, 2, 2)
    atlas = np.array([0, 0, 0, 7, 7, 9, 9, 5, 0, 0, 12, 5], np.float32).reshape(3, 2, 2)
    names = {0: "nothing", 5: "insula", 7: "hippocampus", 9: "pole"}
    expected = ["hippocampus", "insula", None, "label 12"]
    assert name_regions(labels, atlas, names) == expected
    assert name_regions(labels, atlas + np.float32(1e-4), names) == expected  # with NIfTI rounding
    assert name_regions(np.zeros_like(labels), atlas, names) == []
    with pytest.raises(ValueError, match="differ"):
        name_regions(labels, atlas[1:], names)


def write(tmp_path, text):
    path = tmp_path / "labels.tsv"
    path.write_text(text, encoding="utf-8")
    return path


def test_labels_are_read_by_the_names_of_columns(tmp_path):
    path = write(tmp_path, "name\tcolor\tindex\nLeft  insula\t#ff0000\t5\nÉ\tx\t1035\n")
    assert read_labels(path) == {5: "Left  insula", 1035: "É"}


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("", "contains no labels"),
        ("index\tname\n", "contains no labels"),
        ("id\tlabel\n1\tinsula\n", "no column index or name"),
        ("index,name\n1,insula\n", "separated by a tab"),
        ("index\tname\n1\tinsula\n2.5\tpole\n", "index '2.5' in line 3 is not a whole number"),
        ("index\tname\n\tinsula\n", "index '' in line 2"),
        ("index\tname\n1\t \n", "index 1 in line 2 has no name"),
        ("index\tname\n1\tinsula\n2\n", "index 2 in line 3 has no name"),
        ("index\tname\n1\tinsula\n1\tpole\n", "index 1 occurs again in line 3"),
    ],
)
def test_labels_that_cannot_be_used_are_refused_by_name(tmp_path, text, sentence):
    path = write(tmp_path, text)
    with pytest.raises(UnusableDataError, match=sentence) as caught:
        read_labels(path)
    assert str(path) in str(caught.value)


def test_labels_that_are_absent_are_refused(tmp_path):
    with pytest.raises(MissingInputError, match="no such file"):
        read_labels(tmp_path / "labels.tsv")
