from dataclasses import replace

import numpy as np
import pytest
import torch
from safetensors.numpy import save_file
from scipy import ndimage

from bids_app import nifti
from bids_app.errors import ReadWriteError, UnusableDataError
from bids_app.files import write_tsv
from bids_app.imaging.intensity import smooth
from bids_app.synthesis.card import REFERENCE, Card, card_values, check_reference, read_card
from bids_app.synthesis.inference import save_generator
from bids_app.synthesis.job import COLUMNS
from bids_app.synthesis.losses import build_generator
from bids_app.synthesis.models import MODELS
from bids_app.synthesis.pairs import Owner, Volumes, open_volumes, store_volumes
from bids_app.synthesis.publishing import publish
from bids_app.synthesis.reference import (
    Reference,
    describe_novelty,
    gather_reference,
    measure_cubes,
    measure_traits,
    novelty,
    read_reference,
    write_reference,
)

SHAPE, ZOOMS = (16, 14, 12), (4.0, 4.0, 4.0)
AFFINE = ((4.0, 0.0, 0.0, 0.0), (0.0, 4.0, 0.0, 0.0), (0.0, 0.0, 4.0, 0.0), (0.0, 0.0, 0.0, 1.0))


def visit_of(rng, participant, *, level=0.6):
    """Return a box-shaped brain with a shared pattern and some individual variation."""
    x, y, z = np.indices(SHAPE)
    brain = np.zeros(SHAPE, bool)
    brain[2:14, 2:12, 2:10] = True
    t1w = level + 0.2 * np.sin(x / 2) * np.cos(y / 3) + 0.05 * rng.standard_normal(SHAPE)
    t1w = np.where(brain, np.clip(t1w, 0, 1), 0).astype(np.float32)
    pet = np.where(brain, np.clip(1 - t1w + 0.02 * z, 0, 1), 0).astype(np.float32)
    return Volumes(Owner(participant, None, AFFINE), t1w, pet, brain)


@pytest.fixture
def visits(rng):
    return [visit_of(rng, f"{number:02}") for number in range(6)]


@pytest.fixture
def reference(visits):
    return gather_reference(visits)


def same(one, other):
    return all(
        np.array_equal(getattr(one, name), getattr(other, name))
        and getattr(one, name).dtype == getattr(other, name).dtype
        for name in vars(one)
    )


# Contents of a reference


def test_a_reference_comes_back_from_its_file(tmp_path, reference):
    write_reference(reference, tmp_path / "made" / REFERENCE)
    assert same(read_reference(tmp_path / "made" / REFERENCE), reference)
    assert [path.name for path in (tmp_path / "made").iterdir()] == [REFERENCE]


def test_equal_images_give_equal_files(tmp_path, visits):
    for name in "ab":
        write_reference(gather_reference(visits), tmp_path / name)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_a_file_that_is_no_reference_is_named(tmp_path):
    (tmp_path / "other").write_bytes(b"no tensors")
    with pytest.raises(UnusableDataError, match="other: not a reference"):
        read_reference(tmp_path / "other")
    with pytest.raises(ReadWriteError, match="absent: cannot be read"):
        read_reference(tmp_path / "absent")


def test_the_order_of_images_does_not_matter(visits, reference):
    other = gather_reference(visits[::-1])
    assert other.novelties[::-1] == pytest.approx(reference.novelties, rel=1e-5)
    assert other.t1w_mean == pytest.approx(reference.t1w_mean, abs=1e-6)
    assert other.pet_quantiles == pytest.approx(reference.pet_quantiles, abs=1e-6)


def test_the_mean_pet_is_of_those_who_have_brain_there():
    """Of two people, one voxel is in both brains, one is in one of them, and one is in none."""
    brains = np.array([[[[True, True, False]]], [[[True, False, False]]]])
    pets = np.array([[[[0.4, 0.8, 0.0]]], [[[0.6, 0.0, 0.0]]]], np.float32)
    visits = [
        Volumes(Owner(name, None, AFFINE), pet, pet, brain)
        for name, pet, brain in zip("ab", pets, brains, strict=True)
    ]
    quantiles = gather_reference(visits).pet_quantiles
    assert quantiles == pytest.approx(np.linspace(0.5, 0.8, 1001), abs=1e-6)
    third = Volumes(Owner("c", None, AFFINE), pets[1], pets[1], brains[1])
    quantiles = gather_reference([*visits, third]).pet_quantiles  # 1 of 3 is too few
    assert quantiles == pytest.approx(np.full(1001, (0.4 + 2 * 0.6) / 3), abs=1e-6)


# Novelty


def test_a_t1w_is_seen_by_mean_and_spread_of_its_cubes():
    t1w = np.zeros((2, 2, 3), np.float32)
    t1w[..., 0], t1w[..., 1], t1w[..., 2] = 0.2, 0.8, 0.5
    mean, spread = measure_cubes(t1w, (4.0, 4.0, 4.0))  # of 2×2×2 voxels, and of 2×2×1
    assert mean == pytest.approx(np.array([[[0.5, 0.5]]]))
    assert spread == pytest.approx(np.array([[[0.3, 0.0]]]), abs=1e-6)


def test_training_t1w_are_known_by_mean_and_standard_deviation(visits):
    looks = [measure_cubes(visit.t1w, ZOOMS) for visit in visits[:2]]
    both = gather_reference(visits[:2])
    assert both.t1w_mean == pytest.approx((looks[0] + looks[1]) / 2, abs=1e-6)
    assert both.t1w_sd == pytest.approx(np.abs(looks[0] - looks[1]) / np.sqrt(2), abs=1e-6)


def small_reference(novelties=()):
    """Reference of two cubes, one of them brain, with mean 0.5 ± 0.1 and spread 0.2 ± 0.001."""
    mean, sd = np.array([[[[0.5, 0.9]]], [[[0.2, 0.0]]]]), np.array([[[[0.1, 1]]], [[[0.001, 1]]]])
    return Reference(
        np.zeros(1001, np.float32),
        mean.astype(np.float32),
        sd.astype(np.float32),
        np.array([[[True, False]]]),
        np.array(novelties, np.float32),
    )


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [
        (0.3, 0.7, 0),  # mean 0.5, spread 0.2: like the mean over all
        (0.5, 0.9, 2 / np.sqrt(2)),  # the mean is 2 SD away, the spread is equal
        (0.26, 0.74, 2 / np.sqrt(2)),  # the spread is 0.04 away, which is 2 of the minimum SD
        (0.6, 0.6, np.sqrt((1**2 + 10**2) / 2)),
    ],
)
def test_novelty_is_a_distance_in_standard_deviations(low, high, expected):
    t1w = np.full((2, 2, 4), 0.123, np.float32)
    t1w[..., 0], t1w[..., 1] = low, high
    value, traits = novelty(t1w, ZOOMS, small_reference())
    assert value == pytest.approx(expected, abs=1e-4)
    assert traits == {}


def test_a_t1w_like_the_others_is_within_their_range(rng, reference):
    values = [novelty(visit_of(rng, "x").t1w, ZOOMS, reference)[0] for _ in range(8)]
    assert np.median(values) <= max(reference.novelties)


CHANGES = {
    "inverted": lambda t1w: np.where(t1w > 0, 1 - t1w, 0),
    "shifted": lambda t1w: np.roll(t1w, 2, axis=0),
    "darker": lambda t1w: 0.6 * t1w,
    "flat": lambda t1w: np.where(t1w > 0, t1w[t1w > 0].mean(), 0),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_a_t1w_unlike_all_others_is_beyond_their_range(rng, reference, change):
    t1w = change(visit_of(rng, "x").t1w).astype(np.float32)
    assert novelty(t1w, ZOOMS, reference)[0] > 1.5 * max(reference.novelties)


def test_each_training_t1w_is_compared_with_those_of_the_others(visits, reference):
    """Its novelty is close to that relative to a reference of the others only."""
    for number, visit in enumerate(visits):
        others = gather_reference([one for one in visits if one is not visit])
        others = replace(others, brain=reference.brain)
        table = [measure_traits(one.t1w, ZOOMS) for one in visits if one is not visit]
        assert others.trait_mean[:-2] == pytest.approx(np.mean(table, axis=0), abs=1e-5)
        alone = novelty(visit.t1w, ZOOMS, others)[0]
        assert reference.novelties[number] == pytest.approx(alone, rel=0.5)


def test_a_second_visit_does_not_vouch_for_the_first(rng, visits):
    """A person unlike all others who was scanned twice is as novel as if scanned once."""
    odd = [visit_of(rng, "odd", level=0.2) for _ in range(2)]
    twice = gather_reference([*visits, *odd]).novelties
    once = gather_reference([*visits, odd[0]]).novelties
    assert twice[6] > 0.5 * once[6]
    assert twice[6:].min() > 3 * once[:6].max()


def test_one_participant_alone_has_nobody_to_be_compared_with(rng):
    alone = gather_reference([visit_of(rng, "01"), visit_of(rng, "01")])
    assert alone.novelties.shape == (0,)
    told = describe_novelty(1.0, {}, alone)
    assert told["TrainingControlsHighest"] is None
    assert told["BeyondTrainingControls"] is False
    single = gather_reference([visit_of(rng, "01")])
    assert np.isfinite(novelty(visit_of(rng, "02").t1w, ZOOMS, single)[0])


@pytest.mark.parametrize(("value", "beyond"), [(1.2, False), (1.5, False), (1.51, True)])
def test_a_novelty_is_told_beside_those_of_the_training_controls(value, beyond):
    told = describe_novelty(
        value, {"noise": value, "sharpness": -value, "fluid": 1.0}, small_reference([1.5, 0.9, 1.1])
    )
    assert told["Value"] == value
    assert told["TrainingControls"] == 3
    assert told["TrainingControlsLowest"] == pytest.approx(0.9)
    assert told["TrainingControlsHighest"] == 1.5
    assert told["BeyondTrainingControls"] is beyond
    words = ["noisier in white matter", "blurred"]
    assert told.get("Beyond", []) == (words if beyond else [])
    assert told["Traits"]["sharpness"] == pytest.approx(-value)


def test_a_t1w_on_another_grid_has_no_novelty(reference):
    with pytest.raises(ValueError, match="cubes"):
        novelty(np.zeros((8, 8, 8), np.float32), ZOOMS, reference)


HEAD, FINE = (40, 44, 38), (3.0, 3.0, 3.0)


def head(rng, *, ventricle=4.0, contrast=(0.2, 0.6, 0.85), fwhm=2.0, noise=0.03):
    """Return a brain of fluid, grey and white matter, with common folds and a ventricle."""
    x, y, z = (np.indices(HEAD).T - (np.array(HEAD) - 1) / 2).T
    radius = np.sqrt((x / 16) ** 2 + (y / 19) ** 2 + (z / 15) ** 2)
    folds = 0.08 * np.sin(x / 1.5) * np.sin(y / 1.7) * np.sin(z / 1.6)
    tissue = np.select([radius > 0.93 + folds, radius > 0.7 + 2 * folds], [0, 1], 2)
    own = ventricle * rng.uniform(0.9, 1.1)
    tissue[np.sqrt((x / 1.2) ** 2 + (y / 2) ** 2 + z**2) < own] = 0
    t1w = smooth(np.array(contrast)[tissue] * rng.uniform(0.97, 1.03), fwhm, FINE)
    t1w += noise * rng.uniform(0.8, 1.2) * rng.standard_normal(HEAD)
    return np.where(radius < 1, np.clip(t1w, 0.01, 1), 0).astype(np.float32)


@pytest.fixture(scope="module")
def of_heads():
    rng = np.random.default_rng(11)
    affine = tuple(map(tuple, np.diag([*FINE, 1.0]).tolist()))
    heads = [head(rng) for _ in range(20)]
    return gather_reference(
        [Volumes(Owner(f"{n}", None, affine), one, one, one > 0) for n, one in enumerate(heads)]
    )


def ghosted(t1w):
    moved = 0.15 * np.roll(t1w, 9, axis=0) - 0.15 * np.roll(t1w, 1, axis=0)
    return np.where(t1w > 0, np.clip(t1w + moved, 0.01, 1), 0)


def enhanced(rng):
    t1w = head(rng)
    t1w[ndimage.gaussian_filter(rng.standard_normal(HEAD), 1) * (t1w > 0) > 0.38] = 1.2
    return t1w / 1.2


ODD_HEADS = {
    "blurred": (lambda rng: head(rng, fwhm=9.0, noise=0), "blurred"),
    "noisy": (lambda rng: head(rng, noise=0.12), "noisier in white matter"),
    "inverted": (lambda rng: head(rng, contrast=(0.9, 0.6, 0.3)), "different contrast"),
    "FLAIR": (lambda rng: head(rng, contrast=(0.2, 0.85, 0.6)), "different contrast"),
    "ventricles": (lambda rng: head(rng, ventricle=8.0), "larger ventricles"),
    "contrast agent": (enhanced, "contrast agent"),
    "ghosts": (lambda rng: ghosted(head(rng)), "left to right"),
}


@pytest.mark.parametrize(("make", "word"), ODD_HEADS.values(), ids=ODD_HEADS)
def test_what_is_odd_about_a_t1w_is_named(of_heads, rng, make, word):
    value, traits = novelty(make(rng).astype(np.float32), FINE, of_heads)
    told = describe_novelty(value, traits, of_heads)
    assert told["BeyondTrainingControls"] is True
    assert word in "; ".join(told["Beyond"])


def test_few_heads_like_the_others_are_called_odd(of_heads, rng):
    highest = of_heads.novelties.max()
    odd = [novelty(head(rng), FINE, of_heads)[0] > highest for _ in range(20)]
    assert sum(odd) <= 3  # 1 of 21 is expected


def test_a_t1w_without_three_tissues_is_odd_and_none_is_refused(of_heads):
    brain = of_heads.novelties.size and head(np.random.default_rng(1)) > 0
    assert novelty(0.5 * brain.astype(np.float32), FINE, of_heads)[0] > of_heads.novelties.max()
    with pytest.raises(ValueError, match="0 everywhere"):
        novelty(np.zeros(HEAD, np.float32), FINE, of_heads)


def test_references_before_traits_are_read_and_compared_by_cubes_alone(tmp_path, of_heads, rng):
    older = {k: v for k, v in vars(of_heads).items() if not k.startswith("trait")}
    save_file(older, tmp_path / "older")
    found = read_reference(tmp_path / "older")
    value, traits = novelty(head(rng), FINE, found)
    assert traits == {}
    told = describe_novelty(value, traits, found)
    assert "cubes of 8 mm" in told["Description"]
    assert "Traits" not in told


@pytest.mark.parametrize("change", [lambda x: x[1:], lambda x: np.full_like(x, np.nan)])
def test_damaged_traits_are_refused(tmp_path, of_heads, change):
    save_file({**vars(of_heads), "trait_sd": change(of_heads.trait_sd)}, tmp_path / "odd")
    with pytest.raises(UnusableDataError, match="odd: not a reference"):
        read_reference(tmp_path / "odd")


# Origin of a reference


@pytest.fixture
def published(tmp_path, rng):
    """Generator of four controls and two folds, as published by the train level."""
    spec = replace(MODELS["semi3d-gan-mse"], n_blocks=0, width=1)
    card = Card("tiny", "0", spec, "T", SHAPE, AFFINE, "", "noise", "tests", tuple("abcd"), "x", 0)
    folders = {}
    for name in "abcd":
        visit = visit_of(rng, name)
        folders[name] = tmp_path / "volumes" / name
        store_volumes(folders[name], visit.owner, t1w=visit.t1w, pet=visit.pet, brain=visit.brain)
    torch.manual_seed(0)
    save_generator(build_generator(spec), card, tmp_path / "fit")
    weights = tmp_path / "fit" / "weights.safetensors"
    write_tsv(tmp_path / "history.tsv", COLUMNS, [])
    pet = tmp_path / "pet.nii.gz"
    image = nifti.Image(np.full(SHAPE, 0.5, np.float32), np.diag([12.0, 12, 12, 1]))  # as a head
    nifti.save(image, pet)
    publish(
        card_values(card),
        tmp_path / "out",
        weights=weights,
        fold_weights=[weights, weights],
        volumes=list(folders.values()),
        left_out=[[folders["a"], folders["b"]], [folders["c"], folders["d"]]],
        pets=[pet] * 4,
        histories=[tmp_path / "history.tsv"],
        records=[{"Records": []}] * 2,
        precision="32-true",
    )
    return tmp_path / "out", folders


@pytest.mark.filterwarnings("ignore:Mean of empty slice", "ignore:invalid value")
@pytest.mark.parametrize(
    ("place", "trained"), [(".", "abcd"), ("folds/fold-1", "cd"), ("folds/fold-2", "ab")]
)
def test_a_generator_carries_the_reference_of_those_it_was_trained_on(published, place, trained):
    out, folders = published
    found = read_reference(check_reference(out / place, read_card(out / place)))
    expected = gather_reference([open_volumes(folders[name]) for name in trained])
    assert same(found, expected)
    assert found.novelties.shape == (len(trained),)
