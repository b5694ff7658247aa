"""A training on disk: all it needs to go on, as tensors only; nothing is ever unpickled."""

from pathlib import Path
from uuid import uuid4

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor
from torch.optim import Optimizer

from bids_app.errors import ReadWriteError, UnusableDataError
from bids_app.synthesis.training import Training


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


def _state(training: Training) -> dict[str, Tensor]:
    parts = {
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
    return {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}


def save_checkpoint(training: Training, path: Path) -> None:
    """Write the state of a training; the one before it stays until this one is whole.

    Raises
    ------
    ReadWriteError
        If it cannot be written; the checkpoint before it survives.
    """
    partial = path.with_name(f".{uuid4().hex}.{path.name}")
    try:
        save_file(_state(training), partial)
        partial.replace(path)
    except (OSError, SafetensorError) as error:
        partial.unlink(missing_ok=True)
        raise ReadWriteError(f"{path}: cannot write the checkpoint ({error})") from error


def restore_checkpoint(training: Training, path: Path) -> None:
    """Bring a training of the same spec to the state that was saved.

    Raises
    ------
    UnusableDataError
        If the file is damaged, or of another spec.
    """
    try:
        with safe_open(path, framework="pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
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
    except (OSError, SafetensorError, KeyError, RuntimeError, ValueError) as error:
        reason = str(error).partition("\n")[0].rstrip(":")  # torch goes on for a line a weight
        raise UnusableDataError(
            f"{path}: not a checkpoint of this training ({reason}); delete it to start again"
        ) from error
