import resource
from contextlib import contextmanager
from dataclasses import replace

import numpy as np
import pytest
import torch
from cohorts import store
from safetensors.torch import load_file
from trainings import small

from bids_app.errors import Mri2petError, ReadWriteError, UnusableDataError
from bids_app.files import read_tsv
from bids_app.imaging.similarity import ssim
from bids_app.imaging.volume import Grid
from bids_app.synthesis import job as jobs
from bids_app.synthesis.card import Card
from bids_app.synthesis.checkpoint import save_checkpoint
from bids_app.synthesis.evaluation import smooth_in_brain
from bids_app.synthesis.inference import load_weights, predict, save_generator
from bids_app.synthesis.job import (
    CHECKPOINT,
    COLUMNS,
    HISTORY,
    KEPT,
    Job,
    fit_tissue,
    launch_job,
    make_fabric,
    mean_ssim,
)
from bids_app.synthesis.models import TissueSpec
from bids_app.synthesis.networks import NEAREST
from bids_app.synthesis.pairs import open_volumes
from bids_app.synthesis.tiling import CubicPatches, SliceTriplets
from bids_app.synthesis.tissue import fit_tissue_model, resample_tissue_model
from bids_app.synthesis.training import Training

pytestmark = pytest.mark.slow

SEMI3D = small("semi3d-cyclegan-mse", constant_epochs=2, batch_size=6, pool_size=3)
PATCH3D = small(
    "patch3d-gan-mse",
    tiling=CubicPatches(24, 8),
    constant_epochs=4,
    batch_size=2,
    pool_size=3,
    tiles_per_volume=3,
    validation_interval=3,
)
CONDITION = TissueSpec((1, 1, 1), (26, 25, 24))  # 4 mm
PRECISIONS = ("32-true", "bf16-mixed")


@pytest.fixture(scope="module")
def visits(tmp_path_factory):
    """Three people of 26×25×24 voxels; an epoch on two of them has three steps."""
    root, rng = tmp_path_factory.mktemp("volumes"), np.random.default_rng(3)
    return [store(root / name, rng, name, shape=(26, 25, 24)) for name in ("01", "02", "03")]


@pytest.fixture
def start(tmp_path, visits):
    """Start or resume a job; return the folder of its results."""

    def run(
        name="1",
        *,
        spec=SEMI3D,
        validation=None,
        last_epoch=4,
        precision="32-true",
        seed=1,
        initial=None,
        times_mean=0.0,
    ):
        out = tmp_path / f"out-{name}"
        out.mkdir(exist_ok=True)
        left_out = visits[2:] if validation is None else validation
        place = tmp_path / name
        job = Job(
            name, spec, visits[:2], left_out, last_epoch, seed, 1.5, place, initial, times_mean
        )
        launch_job(make_fabric("cpu", precision), job, out)
        return out

    return run


def without_seconds(out):
    rows = read_tsv(out / HISTORY)
    return [
        {name: cell for name, cell in row.items() if name not in ("fold", "seconds")}
        for row in rows
    ]


def assert_same(one, other):
    mine, yours = load_file(one / KEPT), load_file(other / KEPT)
    assert mine.keys() == yours.keys()
    assert [name for name in mine if not torch.equal(mine[name], yours[name])] == []
    assert without_seconds(one) == without_seconds(other)


def stop_in_step(monkeypatch, number, error):
    """Make a step raise an error, counted from 1; later steps work as usual."""
    step, seen = Training._step, []

    def stopping(training, batch):
        seen.append(batch)
        if len(seen) == number:
            raise error
        return step(training, batch)

    monkeypatch.setattr(Training, "_step", stopping)


@contextmanager
def disk_for(size):
    """Limit the size of files, as on a full disk."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


# Files that a job leaves


def test_the_history_tells_each_epoch_and_which_one_was_kept(start):
    rows = read_tsv(start("1") / HISTORY)
    assert tuple(rows[0]) == COLUMNS
    assert [(row["fold"], row["epoch"]) for row in rows] == [("1", str(n)) for n in (1, 2, 3, 4)]
    best = max(rows, key=lambda row: float(row["ssim_validation"]))
    assert [row["kept"] for row in rows] == [str(int(row is best)) for row in rows]
    assert [row["learning_rate"] for row in rows] == ["0.0002", "0.0002", "0.0002", "0.0001"]


def test_what_is_kept_is_the_generator_of_the_best_epoch(start, visits):
    out = start("1")
    rows = read_tsv(out / HISTORY)
    (kept,) = (row for row in rows if row["kept"] == "1")
    generator = load_weights(out / KEPT, SEMI3D, "cpu")
    value = mean_ssim(generator, [open_volumes(visits[2])], SEMI3D, 1.5)
    assert float(kept["ssim_validation"]) == pytest.approx(value, abs=1e-6)
    assert kept is not rows[-1]  # otherwise, the last epoch would be as good


def test_without_validation_the_last_epoch_is_kept(start):
    rows = read_tsv(start("all", validation=[], last_epoch=3) / HISTORY)
    assert [(row["kept"], row["ssim_validation"]) for row in rows] == [
        ("0", "n/a"),
        ("0", "n/a"),
        ("1", "n/a"),
    ]


def test_early_stopping_looks_at_what_will_be_written(visits):
    """The images are smoothed, then masked, like a synthetic PET; scores are means over people."""
    generator = load_weights_of_noise()
    expected = []
    for visit in map(open_volumes, visits):
        raw = predict(np.array(visit.t1w), generator, SEMI3D.tiling)
        pet = smooth_in_brain(raw, visit.brain, fwhm=6.0, zooms=(4.0, 4.0, 4.0))
        expected.append(ssim(pet, visit.pet))
    value = mean_ssim(generator, [open_volumes(visit) for visit in visits], SEMI3D, 6.0)
    assert value == pytest.approx(np.mean(expected), abs=1e-7)
    assert value != pytest.approx(expected[0], abs=1e-4)


def load_weights_of_noise():
    fabric = make_fabric("cpu", "32-true")
    return Training(SEMI3D, fabric, torch.Generator().manual_seed(8)).generators[0].eval()


def test_jobs_with_equal_seeds_end_alike_and_with_others_not(start):
    assert_same(start("1"), start("2"))
    one, other = load_file(start("1") / KEPT), load_file(start("3", seed=2) / KEPT)
    assert not torch.equal(one["layers.0.weight"], other["layers.0.weight"])


@pytest.mark.parametrize("spec", [SEMI3D, PATCH3D], ids=["semi3d", "patch3d"])
def test_a_conditioned_job_starts_from_the_tissue_model_of_its_training(start, visits, spec):
    tilings = [spec.tiling, *([SliceTriplets(step=1)] if spec is SEMI3D else [])]
    spec = replace(spec, condition=CONDITION, learning_rate=0.0)
    out = start("1", spec=spec, last_epoch=1, times_mean=2.0)
    generator = load_weights(out / KEPT, spec, "cpu")
    training = [open_volumes(folder) for folder in visits[:2]]
    tissue = fit_tissue_model(CONDITION, training, times_mean=2.0)
    assert float(tissue.brain_mean) == 0.5
    for name, tensor in tissue.state_dict().items():
        assert torch.equal(generator.tissue.state_dict()[name], tensor)
    t1w = open_volumes(visits[2]).t1w
    expected = predict(t1w, tissue, CONDITION.tiling)
    for tiling in tilings:
        made = predict(t1w, generator, tiling)
        assert made == pytest.approx(np.clip(expected, NEAREST, 1 - NEAREST), abs=1e-6)
    assert np.ptp(expected) > 0.5


# Initial generators


@pytest.fixture
def initial(start, tmp_path):
    """Create a generator to start from."""

    def make(spec):
        weights = load_weights(start("before", spec=spec, seed=7, last_epoch=1) / KEPT, spec, "cpu")
        identity = tuple(tuple(row) for row in np.eye(4).tolist())
        card = Card("g", "0", spec, "T", CONDITION.cubes, identity, "", "", "", (), "none", 0)
        save_generator(weights, card, tmp_path / "initial")
        return tmp_path / "initial", weights.state_dict()

    return make


def test_a_tissue_model_starts_from_one_of_another_grid(visits, tmp_path):
    training = [open_volumes(folder) for folder in visits]
    affine = np.array(training[0].owner.affine)
    fine = Grid((52, 50, 48), affine @ np.diag([0.5, 0.5, 0.5, 1.0]))
    before = resample_tissue_model(fit_tissue_model(CONDITION, training), affine, fine)
    rows = tuple(tuple(row) for row in fine.affine.tolist())
    card = Card("g", "0", before.spec, "T", fine.shape, rows, "", "", "", (), "none", 0)
    save_generator(before, card, tmp_path / "initial")
    fit_tissue("1", CONDITION, visits[:2], [], fwhm=0.0, out=tmp_path, initial=tmp_path / "initial")
    kept = load_weights(tmp_path / KEPT, CONDITION, "cpu").coefficients
    coarse = Grid((26, 25, 24), affine)
    initial = resample_tissue_model(before, fine.affine, coarse)
    assert torch.equal(kept, fit_tissue_model(CONDITION, training[:2], initial).coefficients)
    assert not torch.equal(kept, fit_tissue_model(CONDITION, training[:2]).coefficients)


@pytest.mark.parametrize("condition", [None, CONDITION], ids=["plain", "conditioned"])
def test_a_job_goes_on_from_the_weights_of_an_initial_generator(start, initial, condition):
    spec = replace(SEMI3D, condition=condition)
    folder, before = initial(spec)
    still = replace(spec, learning_rate=0.0)
    kept = load_file(start("1", spec=still, initial=folder, last_epoch=1) / KEPT)
    for name, tensor in kept.items():
        if not name.startswith("tissue."):
            assert torch.equal(tensor, before[name]), name


def test_early_layers_of_an_initial_generator_learn_more_slowly(start, initial):
    folder, before = initial(SEMI3D)
    kept = load_file(start("1", initial=folder, last_epoch=1) / KEPT)
    moved = {name: float((kept[name] - before[name]).abs().max()) for name in kept}
    early = max(moved[name] for name in ("layers.0.weight", "layers.3.weight", "layers.6.weight"))
    late = min(moved[name] for name in ("layers.10.weight", "layers.13.weight", "layers.16.weight"))
    assert 0 < early < 0.3 * late


def test_a_job_from_an_initial_generator_is_resumed_as_any(start, initial, monkeypatch):
    folder, _ = initial(SEMI3D)
    whole = start("whole", initial=folder)
    with monkeypatch.context() as patch:
        stop_in_step(patch, 8, KeyboardInterrupt)
        with pytest.raises(KeyboardInterrupt):
            start("stopped", initial=folder)
    assert_same(start("stopped", initial=folder), whole)


# Resuming


@pytest.mark.parametrize(
    ("spec", "precision"),
    [
        *((spec, precision) for spec in (SEMI3D, PATCH3D) for precision in PRECISIONS),
        (replace(SEMI3D, condition=CONDITION), "32-true"),
        (replace(PATCH3D, condition=CONDITION), "bf16-mixed"),
    ],
    ids=lambda value: getattr(value, "precision", None),
)
def test_a_job_that_was_stopped_in_an_epoch_ends_like_one_that_was_not(
    start, tmp_path, monkeypatch, spec, precision
):
    whole = start("whole", spec=spec, precision=precision)
    with monkeypatch.context() as patch:
        stop_in_step(patch, 8, KeyboardInterrupt)  # in the third epoch, after changes of its pools
        with pytest.raises(KeyboardInterrupt):
            start("stopped", spec=spec, precision=precision)
    assert len(read_tsv(tmp_path / "stopped" / HISTORY)) == 2
    assert not (tmp_path / "out-stopped" / KEPT).exists()
    epochs = []
    monkeypatch.setattr(
        jobs,
        "save_checkpoint",
        lambda fit, path: epochs.append(fit.training.epoch) or save_checkpoint(fit, path),
    )
    assert_same(start("stopped", spec=spec, precision=precision), whole)
    assert epochs == [3, 4]  # no epoch is trained twice


def test_a_job_that_had_ended_is_not_trained_again(start, monkeypatch):
    whole = start("1")
    before = (whole / HISTORY).read_text()
    for name in (KEPT, HISTORY):
        (whole / name).unlink()
    stop_in_step(monkeypatch, 1, AssertionError("trained again"))
    assert (start("1") / HISTORY).read_text() == before
    assert (whole / KEPT).exists()


# Failures and interruptions


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
@pytest.mark.parametrize("when", [1, 6])
def test_a_loss_that_is_no_number_stops_the_job_with_a_sentence(
    start, tmp_path, monkeypatch, when, precision
):
    step, seen = Training._step, []

    def broken(training, batch):
        seen.append(batch)
        if len(seen) == when:
            batch = replace(batch, mri=batch.mri * torch.nan)
        return step(training, batch)

    monkeypatch.setattr(Training, "_step", broken)
    epoch = {1: 1, 6: 2}[when]
    match = rf"training of fold 3 stopped: a loss is not finite in epoch {epoch}, in {precision}"
    with pytest.raises(Mri2petError, match=match) as caught:
        start("3", precision=precision)
    assert caught.value.exit_code == 1
    assert "--random-seed or a larger --batch-size" in f"{caught.value}"
    assert not (tmp_path / "out-3" / KEPT).exists()
    checkpoint = tmp_path / "3" / CHECKPOINT  # the previous files are kept
    assert checkpoint.exists() is (epoch > 1)
    if epoch > 1:
        tensors = load_file(checkpoint)
        assert int(tensors.pop("epoch")) == 1
        assert all(tensor.isfinite().all() for name, tensor in tensors.items() if name != "history")


def test_weights_that_became_no_numbers_stop_the_job(start, monkeypatch):
    """In the last step of an epoch, whose losses are still finite."""
    step, seen = Training._step, []

    def broken(training, batch):
        losses = step(training, batch)
        seen.append(batch)
        if len(seen) == 6:
            with torch.no_grad():
                next(training.discriminators.parameters()).fill_(torch.inf)
        return losses

    monkeypatch.setattr(Training, "_step", broken)
    with pytest.raises(Mri2petError, match="a weight is not finite in epoch 2"):
        start("3")


def test_a_validation_that_is_no_number_is_not_taken_for_none(start, monkeypatch):
    monkeypatch.setattr(jobs, "mean_ssim", lambda *_: float("nan"))
    with pytest.raises(Mri2petError, match="the generator's prediction is not finite in epoch 1"):
        start("3")


def test_a_checkpoint_that_cannot_be_read_is_told(start, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        stop_in_step(patch, 5, KeyboardInterrupt)
        with pytest.raises(KeyboardInterrupt):
            start("1")
    path = tmp_path / "1" / CHECKPOINT
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(UnusableDataError, match=rf"{path}: not a checkpoint .*; delete it to"):
        start("1")
    path.unlink()
    assert_same(start("1"), start("2"))


def test_a_disk_that_is_full_keeps_the_checkpoint_before(start, tmp_path, monkeypatch):
    def save(fit, path):
        with disk_for(4096 if fit.training.epoch == 3 else resource.RLIM_INFINITY):
            save_checkpoint(fit, path)

    with monkeypatch.context() as patch:
        patch.setattr(jobs, "save_checkpoint", save)
        match = rf"{tmp_path / '1' / CHECKPOINT}: cannot write the checkpoint \(\S"
        with pytest.raises(ReadWriteError, match=match):
            start("1")
    assert sorted(path.name for path in (tmp_path / "1").iterdir()) == [CHECKPOINT, HISTORY]
    assert int(load_file(tmp_path / "1" / CHECKPOINT)["epoch"]) == 2
    assert_same(start("1"), start("2"))


def test_volumes_that_are_gone_are_told(start, tmp_path):
    with pytest.raises(ReadWriteError, match=r"nobody/about\.json: cannot be read"):
        start("1", validation=[tmp_path / "nobody"])
