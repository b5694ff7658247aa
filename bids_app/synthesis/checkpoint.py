"""Checkpoints of a training, as tensors only: nothing is ever unpickled."""

import json
from dataclasses import astuple
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.optim import Optimizer

from bids_app.errors import ReadWriteError, UnusableDataError
from bids_app.files import replacing
from bids_app.strict import refuse_shapes, shapes_of
from bids_app.synthesis.models import spec_to_dict
from bids_app.synthesis.training import Fit, HistoryRow, Training


def _optimizer_state(optimizer: Optimizer) -> dict[str, Tensor]:
    return {
        f"{place}.{name}": torch.as_tensor(value)
        for place, values in optimizer.state_dict()["state"].items()
        for name, value in values.items()
    }


def _restore_optimizer(optimizer: Optimizer, flat: dict[str, Tensor]) -> None:
    state: dict[int, dict[str, Tensor]] = {}
    for name, value in flat.items():
        place, _, key = name.partition(".")
        state.setdefault(int(place), {})[key] = value
    optimizer.load_state_dict({**optimizer.state_dict(), "state": state})


def _below(prefix: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}


def _state(fit: Fit) -> dict[str, Tensor]:
    training = fit.training
    parts = {
        "kept.": fit.kept,
        "generators.": training.generators.state_dict(),
        "discriminators.": training.discriminators.state_dict(),
        "generator_optimizer.": _optimizer_state(training.generator_optimizer),
        "discriminator_optimizer.": _optimizer_state(training.discriminator_optimizer),
    }
    for number, pool in enumerate(training.pools):
        parts[f"pool.{number}."] = {str(i): image for i, image in enumerate(pool.images)}
    tensors = {prefix + name: t for prefix, part in parts.items() for name, t in part.items()}
    tensors["epoch"] = torch.tensor(training.epoch)
    tensors["random"] = training.random.get_state()
    tensors["history"] = torch.tensor([astuple(line) for line in fit.history], dtype=torch.float64)
    return {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}


def save_checkpoint(fit: Fit, path: Path) -> None:
    """Write the state of a fit, replacing the previous checkpoint only once it is complete.

    Raises
    ------
    ReadWriteError
        If it cannot be written; the previous checkpoint is kept.
    """
    try:
        with replacing(path) as partial:
            save_file(_state(fit), partial, metadata={"spec": _spec_text(fit.training)})
    except (OSError, SafetensorError) as error:
        raise ReadWriteError(f"{path}: cannot write the checkpoint ({error})") from error


def _spec_text(training: Training) -> str:
    return json.dumps(spec_to_dict(training.spec), sort_keys=True)


def _read(path: Path, fit: Fit) -> dict[str, Tensor]:
    """Read the tensors of a checkpoint after checking that they fit the networks and are finite."""
    shapes = shapes_of(path)
    with safe_open(path, framework="pt") as file:
        if file.metadata() != {"spec": _spec_text(fit.training)}:
            raise ValueError("it was made with other settings")
    network_shapes = {
        name: ("F32", tuple(tensor.shape))
        for name, tensor in _state(fit).items()
        if name.startswith(("generators.", "discriminators."))
    }
    kept_shapes = {
        f"kept.{name}": ("F32", tuple(tensor.shape))
        for name, tensor in fit.training.generators[0].state_dict().items()
    }
    for prefix, expected in (
        ("generators.", network_shapes),
        ("discriminators.", network_shapes),
        ("kept.", kept_shapes),
    ):
        refuse_shapes(
            {name: shape for name, shape in shapes.items() if name.startswith(prefix)},
            {name: shape for name, shape in expected.items() if name.startswith(prefix)},
        )
    tensors = load_file(path)
    for name, tensor in tensors.items():
        if name != "history" and not torch.isfinite(tensor).all():
            raise ValueError(f"{name} contains NaN or infinity")
    if not 0 < int(tensors["epoch"]) <= fit.training.spec.epochs:
        raise ValueError(f"it was saved in epoch {int(tensors['epoch'])}")
    return tensors


def restore_checkpoint(fit: Fit, path: Path) -> None:
    """Restore the saved state in a new fit of the same spec.

    Raises
    ------
    UnusableDataError
        If the file is damaged or belongs to another spec.
    """
    training = fit.training
    try:
        tensors = _read(path, fit)
        training.generators.load_state_dict(_below("generators.", tensors))
        training.discriminators.load_state_dict(_below("discriminators.", tensors))
        for name in ("generator_optimizer", "discriminator_optimizer"):
            _restore_optimizer(getattr(training, name), _below(f"{name}.", tensors))
        for number, pool in enumerate(training.pools):
            images = _below(f"pool.{number}.", tensors)
            pool.images = [
                images[key].to(training.fabric.device) for key in sorted(images, key=int)
            ]
        training.epoch = int(tensors["epoch"])
        training.random.set_state(tensors["random"])
        fit.kept = _below("kept.", tensors)
        fit.history = [HistoryRow(int(epoch), *row) for epoch, *row in tensors["history"].tolist()]
    except (OSError, SafetensorError, KeyError, RuntimeError, ValueError, TypeError) as error:
        reason = str(error).partition("\n")[0].rstrip(":")  # torch adds a line per weight
        raise UnusableDataError(
            f"{path}: not a checkpoint of this training ({reason}); delete it to start again"
        ) from error
