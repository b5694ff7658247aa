"""Positions of clusters on a grid to which they were resampled."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bids_app.detection.clusters import Place, find_clusters, locate

AFFINE = np.array([[-2.0, 0, 0, 10], [0, 3, 0, -20], [0, 0, 4, 5], [0, 0, 0, 1]])


def test_places_by_hand():
    """Two voxels of rank 1, with scores 3 and 1, and one of rank 3."""
    score, labels = np.zeros((4, 3, 2), np.float32), np.zeros((4, 3, 2), np.int16)
    score[1, 0, 0], score[2, 0, 0], score[0, 2, 1] = 3, 1, 5
    labels[1, 0, 0], labels[2, 0, 0], labels[0, 2, 1] = 1, 1, 3
    first, third = locate(score, labels, AFFINE)
    assert first == Place(1, 7.5, -20, 5, 8, -20, 5, pytest.approx(48))
    assert third == Place(3, 10, -14, 9, 10, -14, 9, pytest.approx(24))


def test_what_scores_0_or_less_at_the_edge_weighs_nothing():
    score, labels = np.zeros((3, 1, 1), np.float32), np.ones((3, 1, 1), np.int16)
    score[:, 0, 0] = 2, 0, -4
    (place,) = locate(score, labels, AFFINE)
    assert (place.x, place.peak_x) == (10, 10)
    (place,) = locate(np.minimum(score, 0), labels, AFFINE)  # no positive weights are left
    assert place.x == pytest.approx(8)


@given(seed=st.integers(0, 99), flipped=st.booleans())
def test_on_the_grid_that_they_were_found_on_places_are_those_of_the_table(seed, flipped):
    score = np.random.default_rng(seed).random((6, 5, 4), np.float32)
    affine = AFFINE @ np.diag([-1.0, 1, 1, 1]) if flipped else AFFINE
    clusters, labels = find_clusters(
        score, np.ones(score.shape, bool), affine, extent=0.2, minimum_volume=0
    )
    found = [
        (
            cluster.rank,
            cluster.x,
            cluster.y,
            cluster.z,
            cluster.peak_x,
            cluster.peak_y,
            cluster.peak_z,
            cluster.volume,
        )
        for cluster in clusters
    ]
    located = [tuple(vars(one).values()) for one in locate(score, labels, affine)]
    np.testing.assert_allclose(located, found, atol=1e-6)


def test_without_clusters_there_are_no_places():
    assert locate(np.ones((2, 2, 2)), np.zeros((2, 2, 2), np.int16), AFFINE) == []


def test_a_label_image_of_another_grid_is_refused():
    with pytest.raises(ValueError, match="differ"):
        locate(np.ones((2, 2, 2)), np.ones((2, 2, 3), np.int16), AFFINE)
