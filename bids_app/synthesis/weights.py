"""A generator on disk: its weights as safetensors, beside its card. Nothing is ever unpickled."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from bids_app.errors import ReadWriteError, UnusableDataError
from bids_app.files import replacing, write_json
from bids_app.strict import refuse_shapes, shapes_of
from bids_app.synthesis.card import (
    CARD,
    WEIGHTS,
    Card,
    card_values,
    check_weights,
    file_sha256,
    read_card,
)
from bids_app.synthesis.models import ModelSpec
from bids_app.synthesis.networks import ResnetGenerator
from bids_app.synthesis.translator import build_generator


def save_generator(generator: nn.Module, card: Card, folder: Path) -> Card:
    """Write weights and card into a folder, which is made; return the card with its SHA-256.

    Raises
    ------
    ReadWriteError
        If they cannot be written: no space, no permission.
    UnusableDataError
        If one is no finite number: nothing is written.
    """
    refuse_infinite(generator.state_dict(), folder / WEIGHTS)
    weights = {name: tensor.contiguous() for name, tensor in generator.state_dict().items()}
    try:
        with replacing(folder / WEIGHTS) as partial:
            save_file(weights, partial)
            partial.chmod(0o644)  # safetensors lets only the owner read
    except (OSError, SafetensorError) as error:
        raise ReadWriteError(f"{folder / WEIGHTS}: cannot be written ({error})") from error
    signed = replace(card, sha256=file_sha256(folder / WEIGHTS))
    write_json(folder / CARD, card_values(signed))
    return read_card(folder)


def load_weights(path: Path, spec: ModelSpec, device: str) -> ResnetGenerator:
    """Build the generator of a row of Table 1 with weights from a file.

    The file's header is compared with a network that has shapes alone before one is built.

    Raises
    ------
    UnusableDataError
        If they do not fit, or are not finite.
    """
    try:
        with torch.device("meta"):
            shapes = build_generator(spec).state_dict()
        expected = {name: ("F32", tuple(one.shape)) for name, one in shapes.items()}
        refuse_shapes(shapes_of(path), expected)
        weights = load_file(path)
        generator = build_generator(spec)
        generator.load_state_dict(weights)
    except (SafetensorError, OSError, RuntimeError, ValueError) as error:
        raise UnusableDataError(
            f"{path}: does not fit the network of its card ({error}); fetch both again"
        ) from error
    refuse_infinite(weights, path)
    return generator.to(device).eval()


def refuse_infinite(weights: Mapping[str, Tensor], path: Path) -> None:
    """Refuse tensors that hold NaN or infinity.

    Raises
    ------
    UnusableDataError
        Which, of which file.
    """
    for name, tensor in weights.items():
        if not torch.isfinite(tensor).all():
            raise UnusableDataError(
                f"{path}: {name} holds NaN or infinity, so the generator predicts nothing; train "
                "it again, or choose another --generator"
            )


def load_generator(folder: Path, device: str) -> tuple[ResnetGenerator, Card]:
    """Rebuild a generator from its folder, ready to synthesize.

    Parameters
    ----------
    folder : Path
        Holds ``weights.safetensors`` and ``card.json``.
    device : str
        A torch device.

    Raises
    ------
    MissingInputError, UnusableDataError
        As :func:`read_card` and :func:`check_weights`; UnusableDataError also if the weights do
        not fit the card's network.
    """
    card = read_card(folder)
    path = check_weights(folder, card)
    return load_weights(path, card.spec, device), card
