"""Uptake by region: means, ratios and asymmetry."""

import numpy as np
import pytest

from bids_app.imaging.regions import RegionalUptake, measure_uptake_by_region

NAMES = {
    1: "left insula",
    2: "right insula",
    3: "left cerebellum",
    4: "right cerebellum",
    5: "pons",
}
VALUES = {1: 0.4, 2: 0.6, 3: 0.5, 4: 0.3, 5: 0.2}


def volumes():
    """Return a bar of five regions of 8 × 3 × 3 voxels, and 8 brain voxels outside any region."""
    regions = np.repeat([0, *NAMES], 8)[:, None, None] * np.ones((48, 3, 3), int)
    pet = np.full(regions.shape, 0.1, np.float32)
    for label, value in VALUES.items():
        pet[regions == label] = value
    return pet, np.ones(regions.shape, bool), regions


def measured(**changed):
    pet, brain, regions = volumes()
    given = {"pet": pet, "brain": brain, "regions": regions} | changed
    how = {"names": NAMES, "voxel_volume": 8.0}
    rows = measure_uptake_by_region("real", given["pet"], given["brain"], given["regions"], **how)
    return {row.region: row for row in rows}


def test_values_worked_out_by_hand():
    rows = measured()
    assert list(rows) == list(NAMES.values())
    whole, cerebellum = np.mean([0.1, *VALUES.values()]), 0.4
    for label, name in NAMES.items():
        row, value = rows[name], VALUES[label]
        assert row.volume == 72 * 8
        assert row.mean == pytest.approx(value)
        assert row.ratio_brain == pytest.approx(value / whole)
        assert row.ratio_cerebellum == pytest.approx(value / cerebellum)
        assert row.ratio_pons == pytest.approx(value / 0.2)
    for side in ("left", "right"):
        assert rows[f"{side} insula"].asymmetry == pytest.approx(-40)
        assert rows[f"{side} cerebellum"].asymmetry == pytest.approx(50)
    assert rows["pons"].asymmetry is None


def test_the_unit_of_the_pet_does_not_matter_for_ratios(rng):
    pet, *_ = volumes()
    pet = (pet + 0.05 * rng.random(pet.shape)).astype(np.float32)
    one, other = measured(pet=pet), measured(pet=pet / 3)
    for name, row in one.items():
        for field in ("ratio_brain", "ratio_cerebellum", "ratio_pons", "asymmetry"):
            if getattr(row, field) is not None:
                assert getattr(other[name], field) == pytest.approx(getattr(row, field), rel=1e-4)


def test_what_is_not_covered_counts_nowhere():
    pet, brain, regions = volumes()
    brain[regions >= 3] = False  # the scan ends above the cerebellum and the pons
    brain[(regions == 2) & (np.arange(48)[:, None, None] % 2 == 0)] = False
    pet[~brain] = 0.9
    rows = measured(pet=pet, brain=brain)
    assert list(rows) == ["left insula", "right insula"]
    row = rows["right insula"]
    assert (row.volume, row.ratio_cerebellum, row.ratio_pons) == (36 * 8, None, None)
    assert row.mean == pytest.approx(0.6)
    assert row.asymmetry == pytest.approx(-40)


def test_a_region_without_its_twin_has_no_asymmetry():
    _, brain, regions = volumes()
    brain[regions == 1] = False
    assert measured(brain=brain)["right insula"].asymmetry is None


def test_a_brain_without_uptake_has_no_ratios():
    rows = measured(pet=np.zeros((48, 3, 3), np.float32))
    expected = RegionalUptake("real", "pons", 576.0, 0.0, None, None, None, None)
    assert rows["pons"] == expected
