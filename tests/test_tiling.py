import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from bids_app.synthesis.pairs import brain_tiles
from bids_app.synthesis.tiling import CubicPatches, SliceTriplets

TILINGS = [SliceTriplets(), CubicPatches(4, 2), CubicPatches(6, 2), CubicPatches(5, 5)]
sides = st.integers(min_value=1, max_value=13)


def cut_all(tiling, volume):
    return [tiling.cut(volume, index) for index in range(tiling.count(volume.shape))]


@pytest.mark.parametrize("tiling", TILINGS, ids=str)
@given(shape=st.tuples(sides, sides, sides))
def test_merging_what_was_cut_gives_the_volume_back(tiling, shape):
    volume = torch.arange(torch.Size(shape).numel(), dtype=torch.float32).reshape(shape)
    assert torch.equal(tiling.merge(cut_all(tiling, volume), shape), volume)


@pytest.mark.parametrize("tiling", TILINGS, ids=str)
@given(shape=st.tuples(sides, sides, sides))
def test_tiles_have_the_shape_that_networks_expect(tiling, shape):
    for tile in cut_all(tiling, torch.zeros(shape)):
        assert tile.shape[0] == tiling.channels
        assert tile.ndim == 1 + tiling.spatial_dims


def test_triplets_are_adjacent_transverse_slices_and_do_not_overlap():
    volume = torch.arange(7.0).expand(2, 3, 7)
    triplets = [tile[:, 0, 0].tolist() for tile in cut_all(SliceTriplets(), volume)]
    assert triplets == [[0, 1, 2], [3, 4, 5], [6, 6, 6]]


def test_only_the_centres_of_patches_are_kept():
    tiling, shape = CubicPatches(size=6, stride=2), (16, 16, 16)
    tiles = [torch.full_like(tile, torch.nan) for tile in cut_all(tiling, torch.ones(shape))]
    for tile in tiles:
        tile[:, 2:4, 2:4, 2:4] = 1
    assert tiling.merge(tiles, shape)[2:-2, 2:-2, 2:-2].eq(1).all()


@pytest.mark.parametrize("tiling", TILINGS, ids=str)
@given(shape=st.tuples(sides, sides, sides), place=st.integers(min_value=0))
def test_the_brain_comes_from_tiles_whose_centre_has_brain(tiling, shape, place):
    brain = torch.zeros(shape, dtype=torch.bool)
    brain.view(-1)[place % brain.numel()] = True
    chosen = brain_tiles(tiling, brain)
    tiles = [torch.full_like(tile, torch.nan) for tile in cut_all(tiling, torch.ones(shape))]
    for index in chosen:
        tiles[index][:] = 1
    assert tiling.merge(tiles, shape)[brain].eq(1).all()


def test_few_tiles_have_a_small_brain_in_their_centre():
    brain = torch.zeros(20, 20, 20, dtype=torch.bool)
    brain[9, 9, 9] = True
    assert len(brain_tiles(CubicPatches(6, 2), brain)) == 1
    assert brain_tiles(SliceTriplets(), brain) == (3,)


@pytest.mark.parametrize("shape", [(157, 189, 156), (157, 189, 136)])
def test_a_patch_of_the_paper_begins_every_8_voxels_and_ends_with_the_volume(shape):
    tiling = CubicPatches()
    volume = torch.arange(float(shape[0]))[:, None, None].expand(shape)
    starts = {int(tiling.cut(volume, i)[0, 0, 0, 0]) for i in range(tiling.count(shape))}
    assert sorted(starts) == [*range(0, 121, 8), 125]


def test_tiles_stream_and_one_too_few_is_an_error():
    tiling, volume = CubicPatches(4, 2), torch.zeros(9, 9, 9)
    assert tiling.merge(iter(cut_all(tiling, volume)), volume.shape).shape == volume.shape
    with pytest.raises(ValueError, match="shorter"):
        tiling.merge(cut_all(tiling, volume)[:-1], volume.shape)
