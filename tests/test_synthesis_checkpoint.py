from dataclasses import astuple, replace
from math import isnan

import numpy as np
import pytest
import torch
import trainings
from safetensors.torch import save_file
from trainings import CYCLE, SIMPLE

from bids_app.errors import ReadWriteError, UnusableDataError
from bids_app.synthesis import checkpoint
from bids_app.synthesis.checkpoint import restore_checkpoint, save_checkpoint
from bids_app.synthesis.training import Fit, resume_training


def start(spec, seed=0):
    return Fit(trainings.start(spec, seed))


def run(fit, pairs, scores=None, last_epoch=4):
    """Run a fit with the given SSIM per epoch; None skips validation."""
    validate = None if scores is None else lambda _: scores[fit.training.epoch - 1]
    return list(resume_training(fit, pairs, validate=validate, last_epoch=last_epoch))


def everything(fit):
    return {name: tensor.clone() for name, tensor in checkpoint._state(fit).items()}


def assert_equal(one, other):
    """Check that two fits are equal except for the durations of epochs."""
    assert one.keys() == other.keys()
    alike = [n for n in one if n == "history" or torch.equal(one[n], other[n])]
    assert alike == list(one)
    np.testing.assert_array_equal(one["history"][:, :-1], other["history"][:, :-1])


# Fits


def test_the_first_of_the_best_epochs_is_kept(pairs):
    fit = start(SIMPLE)
    lines = run(fit, pairs, scores=[0.1, 0.5, 0.5, 0.3])
    assert [line.ssim_validation for line in lines] == [0.1, 0.5, 0.5, 0.3]
    assert fit.kept_epoch == 2
    until = start(SIMPLE)
    run(until, pairs, last_epoch=2)
    assert all(torch.equal(fit.kept[n], until.kept[n]) for n in fit.kept)
    now = fit.training.generators[0].state_dict()
    assert not all(torch.equal(fit.kept[n], now[n]) for n in fit.kept)


def test_without_validation_the_last_epoch_is_kept(pairs):
    fit = start(SIMPLE)
    assert all(isnan(line.ssim_validation) for line in run(fit, pairs))
    now = fit.training.generators[0].state_dict()
    assert fit.kept_epoch == 4
    assert all(torch.equal(fit.kept[n], now[n]) for n in now)


def test_training_stops_when_validation_does_not_improve(pairs):
    fit = start(replace(SIMPLE, epochs=9, constant_epochs=9, patience=2))
    scores = [0.1, 0.4, 0.3, 0.39, 0.9, 0.9, 0.9, 0.9, 0.9]
    assert [line.epoch for line in run(fit, pairs, scores, last_epoch=9)] == [1, 2, 3, 4]


def test_validation_is_looked_at_in_its_interval_and_at_the_end(pairs):
    fit = start(replace(SIMPLE, epochs=7, constant_epochs=7, validation_interval=3))
    lines = run(fit, pairs, scores=[0.5] * 7, last_epoch=7)
    assert [line.epoch for line in lines if not isnan(line.ssim_validation)] == [3, 6, 7]
    assert fit.kept_epoch == 3


def test_a_fit_that_stops_early_keeps_to_the_schedule_of_its_spec(pairs):
    lines = run(start(SIMPLE), pairs, last_epoch=3)
    assert [line.learning_rate for line in lines] == [2e-4, 2e-4, 2e-4]
    lines = run(start(SIMPLE), pairs)
    assert [line.learning_rate for line in lines] == [2e-4, 2e-4, 2e-4, 1e-4]


def test_validation_does_not_change_what_is_learned(pairs):
    seen, unseen = start(SIMPLE), start(SIMPLE)

    def look(generator):
        assert not generator.training
        generator(torch.rand(1, 3, 24, 25))
        return 0.5

    list(resume_training(seen, pairs, validate=look, last_epoch=2))
    list(resume_training(unseen, pairs, validate=None, last_epoch=2))
    assert seen.training.generators[0].training
    one, other = seen.training.generators.state_dict(), unseen.training.generators.state_dict()
    assert all(torch.equal(one[n], other[n]) for n in one)


# Checkpoints


@pytest.mark.parametrize("spec", [SIMPLE, CYCLE], ids=["simple", "cycle"])
@pytest.mark.parametrize("stopped", [1, 3])
def test_an_interrupted_fit_ends_like_an_uninterrupted_one(tmp_path, pairs, spec, stopped):
    scores = [0.3, 0.6, 0.2, 0.5]
    uninterrupted = start(spec)
    for line in resume_training(
        uninterrupted,
        pairs,
        last_epoch=4,
        validate=lambda _: scores[uninterrupted.training.epoch - 1],
    ):
        if line.epoch == stopped:
            save_checkpoint(uninterrupted, tmp_path / "training.safetensors")
    resumed = start(spec, seed=9)
    restore_checkpoint(resumed, tmp_path / "training.safetensors")
    assert [line.epoch for line in resumed.history] == list(range(1, stopped + 1))
    lines = run(resumed, pairs, scores)
    assert [line.epoch for line in lines] == list(range(stopped + 1, 5))
    assert_equal(everything(resumed), everything(uninterrupted))


def test_a_history_with_epochs_that_were_not_validated_comes_back(tmp_path, pairs):
    fit = start(replace(SIMPLE, validation_interval=2))
    run(fit, pairs, scores=[0.5] * 4, last_epoch=3)
    save_checkpoint(fit, tmp_path / "training.safetensors")
    again = start(fit.training.spec)
    restore_checkpoint(again, tmp_path / "training.safetensors")
    np.testing.assert_array_equal(
        [astuple(line) for line in again.history], [astuple(line) for line in fit.history]
    )


def test_a_checkpoint_that_cannot_be_written_keeps_the_one_before(tmp_path, monkeypatch):
    fit, path = start(SIMPLE), tmp_path / "training.safetensors"
    save_checkpoint(fit, path)
    before = path.read_bytes()

    def write_half(tensors, file, metadata):
        save_file(dict(list(tensors.items())[:3]), file)
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(checkpoint, "save_file", write_half)
    fit.training.epoch = 3
    with pytest.raises(ReadWriteError, match=r"training\.safetensors: cannot write"):
        save_checkpoint(fit, path)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(
    "other",
    [replace(SIMPLE, width=3), replace(SIMPLE, n_blocks=2), CYCLE, replace(SIMPLE, batch_size=3)],
    ids=["width", "blocks", "cycle", "batch size"],
)
@pytest.mark.parametrize("turned", [False, True])
def test_a_checkpoint_of_another_spec_is_refused(tmp_path, other, turned):
    one, another = (other, SIMPLE) if turned else (SIMPLE, other)
    save_checkpoint(start(one), tmp_path / "training.safetensors")
    with pytest.raises(UnusableDataError, match=r"training\.safetensors: .*delete it"):
        restore_checkpoint(start(another), tmp_path / "training.safetensors")


def test_a_damaged_checkpoint_is_refused(tmp_path):
    path = tmp_path / "training.safetensors"
    save_checkpoint(start(SIMPLE), path)
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(UnusableDataError, match=r"training\.safetensors: .*delete it"):
        restore_checkpoint(start(SIMPLE), path)


@pytest.mark.parametrize("name", ["generators.", "kept.", "generator_optimizer.", "pool."])
def test_a_checkpoint_that_holds_nan_is_refused(tmp_path, pairs, name):
    fit = start(SIMPLE)
    run(fit, pairs, last_epoch=2)
    path = tmp_path / "checkpoint"
    save_checkpoint(fit, path)
    restore_checkpoint(start(SIMPLE), path)
    tensors = checkpoint._state(fit)
    spoilt = next(key for key in tensors if key.startswith(name) and tensors[key].ndim)
    tensors[spoilt] = tensors[spoilt].clone()
    tensors[spoilt].view(-1)[0] = torch.nan
    save_file(tensors, path, metadata={"spec": checkpoint._spec_text(fit.training)})
    with pytest.raises(UnusableDataError, match=f"{spoilt} contains NaN or infinity.*delete it"):
        restore_checkpoint(start(SIMPLE), path)


@pytest.mark.parametrize("epoch", [-1, 0, 5, 10**9])
def test_a_checkpoint_of_an_epoch_that_there_is_not_is_refused(tmp_path, pairs, epoch):
    fit = start(SIMPLE)
    run(fit, pairs, last_epoch=1)
    tensors = {**checkpoint._state(fit), "epoch": torch.tensor(epoch)}
    path = tmp_path / "checkpoint"
    save_file(tensors, path, metadata={"spec": checkpoint._spec_text(fit.training)})
    with pytest.raises(UnusableDataError, match=f"saved in epoch {epoch}"):
        restore_checkpoint(start(SIMPLE), path)
