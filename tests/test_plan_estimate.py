"""Estimates of a dry run: general properties, and comparison with measurements."""

from collections import namedtuple
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bids_app.plan.estimate import (
    T1W_VOXELS,
    VOXELS,
    Estimate,
    add_up,
    describe_estimate,
    estimate_group,
    estimate_participants,
    estimate_training,
    find_shortages,
    seconds_spared,
)
from bids_app.synthesis.models import MODELS, TissueSpec
from bids_app.visit import Derived, Scan, Visit

TISSUE = TissueSpec((3, 3, 3), (53, 63, 46))
COUNT = st.integers(1, 500)
FIELDS = ("cpu_seconds", "chain_seconds", "serial_seconds", "memory_gb", "output_gb", "work_gb")
Usage = namedtuple("Usage", "total used free")


def participants(visits, pets, voxels, threads=1, *, synthesize=True, **more):
    return estimate_participants(
        visits=visits, pets=pets, voxels=voxels, threads=threads, synthesize=synthesize, **more
    )


def training(controls, voxels, *specs, folds=4, threads=1):
    rows = [(spec, 3.0) for spec in specs or MODELS.values()]
    return estimate_training(rows, controls=controls, folds=folds, voxels=voxels, threads=threads)


def group(controls, patients, voxels, **changed):
    usual = {"folds": 4, "svms": 1, "norms": 2, "pairs": 200_000}
    return estimate_group(
        controls=controls, patients=patients, voxels=voxels, **{**usual, **changed}
    )


def is_no_less(more, less):
    return all(getattr(more, name) >= getattr(less, name) for name in FIELDS)


@given(COUNT, COUNT, COUNT, st.floats(1, 64))
def test_more_people_or_a_finer_grid_never_need_less(people, others, more, coarser):
    voxels = round(VOXELS / coarser)
    for estimate in (participants, group):
        least = estimate(people, others, voxels)
        assert is_no_less(estimate(people + more, others, voxels), least)
        assert is_no_less(estimate(people, others + more, voxels), least)
        finer = estimate(people, others, VOXELS)
        assert is_no_less(finer, least)
        assert finer.cpu_seconds > least.cpu_seconds or coarser < 1.001
    assert is_no_less(training(people + more, voxels), training(people, voxels))
    assert is_no_less(training(people, VOXELS), training(people, voxels))


@given(COUNT, st.integers(1, 64))
def test_more_cpus_never_take_longer_and_never_less_than_steps_that_wait_for_others(people, nprocs):
    for estimate in (participants(people, people, VOXELS), group(people, 3, VOXELS)):
        seconds = estimate.seconds(nprocs)
        assert estimate.seconds(nprocs + 1) <= seconds <= estimate.seconds(1)
        assert seconds >= estimate.chain_seconds + estimate.serial_seconds
        assert estimate.memory(nprocs) >= nprocs * estimate.memory_gb


def test_without_pet_or_synthesis_there_is_less_to_do():
    both = participants(4, 4, VOXELS)
    assert participants(4, 0, VOXELS).cpu_seconds < both.cpu_seconds
    assert participants(4, 4, VOXELS, synthesize=False).cpu_seconds < both.cpu_seconds
    assert participants(4, 4, VOXELS, threads=4).chain_seconds < both.chain_seconds
    assert participants(4, 4, VOXELS, quick=True).cpu_seconds < both.cpu_seconds
    later = participants(4, 4, VOXELS, preprocess=False)
    assert later.cpu_seconds < both.cpu_seconds / 5
    assert later.output_gb < both.output_gb / 2


def test_images_on_the_grid_of_a_finer_t1w_need_more_disk():
    usual = participants(4, 4, VOXELS)
    finer = participants(4, 4, VOXELS, t1w_voxels=8 * T1W_VOXELS)
    assert 4 * usual.output_gb < finer.output_gb < 8 * usual.output_gb
    assert finer.work_gb > 4 * usual.work_gb


def taken_visit(*, mask=None, transforms=None, pets=(True,)):
    """Return a visit whose T1w, and whose PET if so given, are by another app."""
    image = Path("image")
    t1w = Derived("fmriprep", image, "f", image, mask, transforms, transforms)
    pet = Derived("petprep", image, "p", image)
    scans = [Scan(image, "01", None, (), derived=pet if taken else None) for taken in pets]
    return Visit("01", None, Scan(image, "01", None, (), derived=t1w), tuple(scans))


def test_what_other_apps_have_made_is_not_counted():
    image = Path("image")
    raw = Visit("01", None, Scan(image, "01", None, ()), (Scan(image, "01", None, ()),))
    little = taken_visit(pets=(False,))
    visits = [
        raw,
        little,
        taken_visit(mask=image, pets=(False,)),
        taken_visit(mask=image, transforms=image, pets=(False,)),
        taken_visit(mask=image, transforms=image),
    ]
    in_mni = replace(little.t1w.derived, in_template=True)
    in_mni = replace(little, t1w=replace(little.t1w, derived=in_mni))
    spared = [seconds_spared(visit) for visit in visits]
    assert spared[0] == 0
    assert spared == sorted(set(spared))
    assert seconds_spared(little) < seconds_spared(in_mni) < spared[3]
    for field in ("cpu_seconds", "chain_seconds"):
        needs = [getattr(participants(1, 1, VOXELS, spared=[one]), field) for one in spared]
        assert needs == sorted(set(needs), reverse=True)
        assert needs[-1] < needs[0] / 2
        mixed = participants(2, 2, VOXELS, spared=[0.0, spared[-1]])
        assert getattr(mixed, field) > needs[-1]
    assert mixed.chain_seconds == participants(2, 2, VOXELS).chain_seconds
    several = seconds_spared(taken_visit(mask=image, transforms=image, pets=(True,) * 9))
    assert participants(1, 9, VOXELS, spared=[several]).chain_seconds > 0


@pytest.mark.parametrize("name", list(MODELS))
def test_training_goes_with_epochs_and_the_square_of_the_width(name):
    spec, none = MODELS[name], training(8, VOXELS, replace(MODELS[name], epochs=0))
    whole = training(8, VOXELS, spec).cpu_seconds - none.cpu_seconds
    half = training(8, VOXELS, replace(spec, epochs=spec.epochs // 2))
    narrow = training(8, VOXELS, replace(spec, width=spec.width // 2))
    assert half.cpu_seconds - none.cpu_seconds == pytest.approx(whole / 2)
    assert narrow.cpu_seconds - none.cpu_seconds == pytest.approx(whole / 4)
    assert training(8, VOXELS, spec, folds=2).cpu_seconds < whole
    tissue = training(8, VOXELS, TISSUE)
    assert tissue.cpu_seconds < whole / 100
    conditioned = training(8, VOXELS, replace(spec, condition=TISSUE))
    assert conditioned.cpu_seconds > whole


def test_what_was_fitted_before_is_not_fitted_again():
    assert group(35, 17, VOXELS, applied=True).cpu_seconds < group(35, 17, VOXELS).cpu_seconds / 2
    assert group(35, 17, VOXELS, svms=0).cpu_seconds < group(35, 17, VOXELS).cpu_seconds / 2
    both = add_up([group(35, 17, VOXELS), group(75, 17, VOXELS)])
    assert both.cpu_seconds == pytest.approx(
        group(35, 17, VOXELS).cpu_seconds + group(75, 17, VOXELS).cpu_seconds
    )
    assert both.memory_gb == group(75, 17, VOXELS).memory_gb


def about(estimated, measured):
    return measured / 2 < estimated < 2 * measured


def test_what_was_measured_is_met_within_a_factor_of_two():
    hour, gib, coarse = 3600, 2**30 / 1e9, 78 * 94 * 68  # voxels of a grid of 2 mm
    two = participants(2, 2, VOXELS)  # this and the next two are from docs/hpc.md
    assert about(two.cpu_seconds, 198)
    assert about(two.memory_gb, 1.25)
    assert about(two.output_gb, 0.201)
    assert about(two.work_gb, 0.506)
    # Seven people with voxels of 4 mm, --sloppy, by --resource-monitor on a busy machine
    small = participants(7, 6, 40 * 48 * 34, t1w_voxels=49 * 57 * 51, quick=True)
    assert about(small.cpu_seconds, 134)
    assert about(small.output_gb, 0.026)
    image = Path("image")
    spared = [seconds_spared(taken_visit(mask=image, transforms=image))]
    assert about(participants(1, 1, VOXELS, synthesize=False, spared=spared).cpu_seconds, 17)
    assert about(training(12, coarse, TISSUE, folds=2).cpu_seconds, 32)
    small = group(12, 3, coarse, folds=2)
    assert about(small.cpu_seconds, 85)
    assert about(small.memory_gb, 0.72)
    for controls, hours, detector in ((35, 0.145, 1.00), (75, 0.215, 1.60)):  # detection.md
        svm = group(controls, 17, VOXELS, norms=0)
        without = group(controls, 17, VOXELS, norms=0, svms=0)
        assert about((svm.cpu_seconds - without.cpu_seconds) / 2, hours * hour)
        models = group(controls, 0, VOXELS, norms=0).output_gb
        assert about(models, detector * gib)
    hours = {  # per fold on two cores: docs/training.md
        "semi3d-gan": 40,
        "semi3d-gan-mse": 40,
        "semi3d-cyclegan": 145,
        "semi3d-cyclegan-mse": 145,
        "patch3d-gan-mse": 50,
        "patch3d-cyclegan-mse": 195,
    }
    for name, of_fold in hours.items():
        one = training(26, VOXELS, MODELS[name], folds=1, threads=2)
        assert about(one.seconds(2), of_fold * hour)


LITTLE = Estimate(3600.0, 60.0, 60.0, 1.5, 3.0, 4.0)


def test_an_estimate_is_told_in_units_that_can_be_read():
    told = describe_estimate(LITTLE, 1)
    assert "61 min on 1 CPU (60 min of CPU time)" in told
    assert "such" not in told
    assert " 2.2 days on 4 CPUs" in describe_estimate(replace(LITTLE, cpu_seconds=7.6e5), 4)
    assert " 5.6 h on 1 CPU " in describe_estimate(replace(LITTLE, cpu_seconds=2e4), 1)


@pytest.mark.parametrize(
    ("free", "mem_gb", "expected"),
    [
        (9e9, 8.0, []),
        (6e9, 8.0, ["about 7.0 GB are needed, but only 6.0 are free"]),  # both on the same disk
        (9e9, 1.6, ["needs about 1.5 GiB of memory, but the run may use only 1.6"]),
    ],
)
def test_what_cannot_fit_is_warned_of(tmp_path, monkeypatch, free, mem_gb, expected):
    monkeypatch.setattr("shutil.disk_usage", lambda _: Usage(1e12, 0, free))
    places = {"output_dir": tmp_path / "new" / "out", "work_dir": tmp_path / "work"}
    told = find_shortages(LITTLE, mem_gb=mem_gb, **places)
    assert len(told) == len(expected)
    for sentence, words in zip(told, expected, strict=True):
        assert words in sentence
    assert not list(tmp_path.iterdir())


def test_disks_are_counted_each_for_itself(tmp_path, monkeypatch):
    spaces = {"out": (1, 3.5e9), "work": (2, 3.5e9)}
    monkeypatch.setattr("bids_app.plan.estimate.find_space", lambda folder: spaces[folder.name])
    (told,) = find_shortages(
        LITTLE, mem_gb=8.0, output_dir=tmp_path / "out", work_dir=tmp_path / "work"
    )
    assert told.startswith(f"{tmp_path / 'work'}: about 4.0 GB are needed, but only 3.5 are free")
