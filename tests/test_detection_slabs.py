"""Slabs cover a brain exactly once, and extracted voxels can be put back."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bids_app.detection.slabs import Slab, count_voxels, cut_slabs, mean_map, values_of

sides = st.integers(min_value=1, max_value=9)


def drawn(shape, seed, share):
    brain = np.random.default_rng(seed).random(shape) < share
    brain.flat[seed % brain.size] = True
    return brain


@given(st.tuples(sides, sides, sides), st.integers(0, 99), st.floats(0, 1), sides)
def test_slabs_are_disjoint_and_hold_the_whole_brain(shape, seed, share, thickness):
    brain = drawn(shape, seed, share)
    slabs = cut_slabs(shape[-1], thickness)
    assert [k for slab in slabs for k in slab.slices()] == list(range(shape[-1]))
    assert sum(count_voxels(brain, slab) for slab in slabs) == brain.sum()
    assert all(slab.last - slab.first <= thickness for slab in slabs)


@given(st.tuples(sides, sides, sides), st.integers(0, 99), sides, st.integers(1, 3))
def test_values_that_were_taken_out_come_back_from_any_order(shape, seed, thickness, folds):
    rng, brain = np.random.default_rng(seed), drawn(shape, seed, 0.6)
    volumes = rng.random((folds, *shape)).astype(np.float32)
    pieces = [
        (slab, values_of(volume, brain, slab))
        for volume in volumes
        for slab in cut_slabs(shape[-1], thickness)
    ]
    rng.shuffle(pieces)
    mean = mean_map(pieces, brain, folds)
    np.testing.assert_allclose(mean, np.where(brain, volumes.mean(0), 0), atol=1e-6)
    assert mean.dtype == np.float32


def test_a_slab_of_another_brain_is_refused():
    brain = np.ones((2, 2, 2), bool)
    with pytest.raises(ValueError, match=r"\(7,\) values do not fill 8 voxels"):
        mean_map([(Slab(0, 2), np.ones(7, np.float32))], brain, 1)
