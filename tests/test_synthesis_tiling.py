import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from bids_app.synthesis.pairs import brain_tiles
from bids_app.synthesis.tiling import (
    AXES,
    CubicPatches,
    SingleSlices,
    SliceTriplets,
    WholeVolume,
    overlap,
    reorient,
    reorient_back,
)

STEPS = (1, 2, 3)
CUBES = [CubicPatches(4, 2), CubicPatches(6, 2), CubicPatches(5, 5)]
TURNED = [SliceTriplets(3, "PR"), SliceTriplets(1, "LA"), SingleSlices("AL")]
TILINGS = [*map(SliceTriplets, STEPS), *TURNED, SingleSlices(), *CUBES, WholeVolume()]
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


@pytest.mark.parametrize("step", STEPS)
@given(slices=sides)
def test_triplets_begin_every_step_and_no_more_than_reach_the_end(step, slices):
    tiling = SliceTriplets(step)
    firsts = [int(tile[0]) for tile in cut_all(tiling, torch.arange(float(slices)))]
    assert firsts == [step * index for index in range(len(firsts))]
    assert firsts[-1] + 3 >= slices
    assert len(firsts) == 1 or firsts[-2] + 3 < slices


def test_what_is_made_of_a_slice_is_averaged_over_the_triplets_it_is_in():
    tiling, shape = SliceTriplets(step=1), (2, 1, 5)
    tiles = [torch.full((3, 2, 1), value) for value in (0.0, 3.0, 30.0)]  # slices 0-2, 1-3, 2-4
    assert tiling.merge(tiles, shape)[0, 0].tolist() == [0, 1.5, 11, 16.5, 30]


@given(shape=st.tuples(sides, sides, sides), seed=st.integers(0, 99))
def test_an_average_of_equal_triplets_changes_no_intensity(shape, seed):
    volume = torch.rand(shape, generator=torch.Generator().manual_seed(seed))
    merged = SliceTriplets(step=1).merge(cut_all(SliceTriplets(step=1), volume), shape)
    assert torch.allclose(merged, volume, rtol=1e-6, atol=0)


@given(shape=st.tuples(sides, sides, sides), seed=st.integers(0, 99))
def test_triplets_without_overlap_are_laid_side_by_side_bit_for_bit(shape, seed):
    tiles = [
        torch.rand((3, *shape[:2]), generator=torch.Generator().manual_seed(seed + index))
        for index in range(SliceTriplets().count(shape))
    ]
    side_by_side = torch.cat(tiles).movedim(0, -1)[..., : shape[-1]]
    assert torch.equal(SliceTriplets().merge(tiles, shape), side_by_side)


@pytest.mark.parametrize("step", [0, -1, 4])
def test_triplets_that_would_leave_slices_out_are_refused(step):
    with pytest.raises(ValueError, match="begin every 1 to 3 slices"):
        SliceTriplets(step)


@pytest.mark.parametrize("axes", AXES)
@given(shape=st.tuples(sides, sides, sides))
def test_turning_back_undoes_turning(axes, shape):
    tile = torch.arange(torch.Size(shape).numel()).reshape(shape)
    assert torch.equal(reorient_back(reorient(tile, axes), axes), tile)
    assert sorted(reorient(tile, axes).shape) == sorted(shape)


def test_there_are_eight_ways_to_lay_a_slice():
    tile = torch.arange(6).reshape(2, 3)
    assert (
        len(
            {
                (reorient(tile, axes).shape, *reorient(tile, axes).flatten().tolist())
                for axes in AXES
            }
        )
        == 8
    )
    assert reorient(tile, "RA") is tile
    assert reorient(tile, "LA").tolist() == [[3, 4, 5], [0, 1, 2]]
    assert reorient(tile, "AR").tolist() == [[0, 3], [1, 4], [2, 5]]


@pytest.mark.parametrize("tiling", [SliceTriplets, SingleSlices])
def test_axes_that_no_slice_has_are_refused(tiling):
    with pytest.raises(ValueError, match=r"are one of RA, RP, .*, not 'RL'"):
        tiling(axes="RL")


def test_single_slices_are_tiles():
    volume = torch.arange(7.0).expand(2, 3, 7)
    assert [tile.unique().tolist() for tile in cut_all(SingleSlices(), volume)] == [
        [number] for number in range(7)
    ]
    with pytest.raises(ValueError, match="only triplets"):
        overlap(SingleSlices())


def test_only_triplets_can_be_made_to_overlap():
    assert overlap(SliceTriplets()) == SliceTriplets(step=1)
    assert overlap(SliceTriplets(axes="PL")) == SliceTriplets(step=1, axes="PL")
    for tiling in (CubicPatches(), WholeVolume()):
        with pytest.raises(ValueError, match="only triplets"):
            overlap(tiling)


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
