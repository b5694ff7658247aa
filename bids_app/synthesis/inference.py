"""Prediction of PET from a T1w volume by a generator.

Weights are stored as safetensors beside their card. Nothing is ever unpickled.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from bids_app.errors import ReadWriteError, UnusableDataError
from bids_app.files import file_sha256, replacing, write_json
from bids_app.imaging.intensity import smooth
from bids_app.imaging.volume import Volume
from bids_app.strict import refuse_shapes, shapes_of
from bids_app.synthesis.card import CARD, WEIGHTS, Card, card_values, check_weights, read_card
from bids_app.synthesis.losses import build_generator
from bids_app.synthesis.models import Spec, TissueSpec
from bids_app.synthesis.networks import ConditionedGenerator, has_bfloat16
from bids_app.synthesis.tiling import Tiling, WholeVolume
from bids_app.synthesis.tissue import TissueModel


def save_generator(generator: nn.Module, card: Card, folder: Path) -> Card:
    """Write weights and card into a folder, creating it if needed, and return the final card.

    The card returned holds the SHA-256 of the weights.

    Raises
    ------
    ReadWriteError
        If they cannot be written, for lack of space or permission.
    UnusableDataError
        If a weight is not finite; nothing is written then.
    """
    refuse_infinite(generator.state_dict(), folder / WEIGHTS)
    weights = {name: tensor.contiguous() for name, tensor in generator.state_dict().items()}
    try:
        with replacing(folder / WEIGHTS) as partial:
            usual = partial.stat().st_mode  # as the umask says
            save_file(weights, partial)
            partial.chmod(usual)  # safetensors makes it readable by its owner only
    except (OSError, SafetensorError) as error:
        raise ReadWriteError(f"{folder / WEIGHTS}: cannot be written ({error})") from error
    signed = replace(card, sha256=file_sha256(folder / WEIGHTS))
    write_json(folder / CARD, card_values(signed))
    return read_card(folder)


def _build(spec: Spec) -> nn.Module:
    return TissueModel(spec) if isinstance(spec, TissueSpec) else build_generator(spec)


def load_weights(path: Path, spec: Spec, device: str) -> nn.Module:
    """Build the generator of a row of Table 1, or a tissue model, with weights from a file.

    Before the weights are read, the file's header is compared with the shapes of a network on
    torch's "meta" device.

    Raises
    ------
    UnusableDataError
        If the weights do not fit or are not finite.
    """
    try:
        with torch.device("meta"):
            shapes = _build(spec).state_dict()
        expected = {name: ("F32", tuple(shape.shape)) for name, shape in shapes.items()}
        refuse_shapes(shapes_of(path), expected)
        weights = load_file(path)
        generator = _build(spec)
        generator.load_state_dict(weights)
    except (SafetensorError, OSError, RuntimeError, ValueError) as error:
        raise UnusableDataError(
            f"{path}: does not match the network in its card ({error}); fetch both again"
        ) from error
    refuse_infinite(weights, path)
    return generator.to(device).eval()


def refuse_infinite(weights: Mapping[str, Tensor], path: Path) -> None:
    """Check that no tensor holds NaN or infinity.

    Raises
    ------
    UnusableDataError
        If one does; the message names the tensor and the file.
    """
    for name, tensor in weights.items():
        if not torch.isfinite(tensor).all():
            raise UnusableDataError(
                f"{path}: {name} contains NaN or infinity, so the generator cannot predict a PET; "
                "train it again, or choose another --generator"
            )


def load_generator(folder: Path, device: str) -> tuple[nn.Module, Card]:
    """Rebuild a generator from its folder, ready to synthesize.

    Parameters
    ----------
    folder : Path
        Folder with ``weights.safetensors`` and ``card.json``.
    device : str
        A torch device.

    Raises
    ------
    MissingInputError, UnusableDataError
        See :func:`read_card` and :func:`check_weights`; UnusableDataError also if the weights do
        not fit the card's network.
    """
    card = read_card(folder)
    path = check_weights(folder, card)
    return load_weights(path, card.spec, device), card


def choose_dtype(generator: nn.Module, device: str) -> torch.dtype:
    """Return the data type for inference: bfloat16 for networks on CPUs that have it, else float32.

    Networks take half the time in bfloat16, and their predictions agree with those in float32 to
    62 dB (docs/results/performance.md). GPUs were not measured.
    """
    network = not isinstance(generator, TissueModel)
    return torch.bfloat16 if network and device == "cpu" and has_bfloat16(device) else torch.float32


ROUNDING = 1e-3  # tolerance of intensities beyond [0, 1], for bfloat16; our choice
FLAT = 1e-4


@torch.inference_mode()
def predict(
    t1w: Volume,
    generator: nn.Module,
    tiling: Tiling,
    *,
    condition: Volume | None = None,
    batch_size: int = 4,
    dtype: torch.dtype = torch.float32,
) -> Volume:
    """Predict the PET of a T1w volume, tile by tile, and merge the tiles to a volume.

    3D-patch generators are applied to cubes, as in training, and not to the whole volume at once:
    their instance norms average over the input, so that the result for a whole volume would differ.

    Parameters
    ----------
    t1w : ndarray, (I, J, K)
        Intensities in [0, 1], 0 outside the brain, on the grid the generator was trained on.
    generator : nn.Module
        Generator as returned by :func:`bids_app.synthesis.inference.load_generator`.
    tiling : Tiling
        Division of the volume into the generator's inputs.
    condition : ndarray, (I, J, K), optional
        Prediction of the generator's own tissue model, if it has one; computed by default.
    batch_size : int
        Number of tiles per forward pass; changes the memory needed, not the result.
    dtype : torch.dtype
        Data type of the convolutions; see :func:`choose_dtype`.

    Returns
    -------
    ndarray, (I, J, K)
        float32 in [0, 1]. Tiles without brain are set to 0 without applying the generator.

    Raises
    ------
    FloatingPointError
        If a voxel is not finite, or is outside [0, 1] by more than rounding.
    """
    device = next(generator.parameters()).device
    volumes = [torch.from_numpy(t1w)]
    if isinstance(generator, ConditionedGenerator):
        if condition is None:
            condition = predict(t1w, generator.tissue, WholeVolume())
        volumes.append(torch.from_numpy(condition))

    def predicted_tiles() -> Iterator[torch.Tensor]:
        for indices in torch.arange(tiling.count(t1w.shape)).split(batch_size):
            tiles = torch.stack(
                [
                    torch.cat([tiling.cut(volume, int(index)) for volume in volumes])
                    for index in indices
                ]
            )
            has_brain = tiles.flatten(1).any(1)
            predicted = torch.zeros_like(tiles[:, : tiling.channels])
            if has_brain.any():
                with torch.autocast(device.type, dtype, enabled=dtype != torch.float32):
                    predicted[has_brain] = generator(tiles[has_brain].to(device)).float().cpu()
            yield from predicted

    pet = tiling.merge(predicted_tiles(), t1w.shape).numpy()
    if not np.isfinite(pet).all():
        raise FloatingPointError("the generator's prediction is not finite")
    if pet.min() < -ROUNDING or pet.max() > 1 + ROUNDING:
        raise FloatingPointError(
            f"the generator predicts {pet.min():.3g} to {pet.max():.3g}, but PET is 0 to 1"
        )
    return pet


def refuse_flat(pet: Volume, t1w: Volume) -> None:
    """Check that a prediction is not constant in the brain, as that of a collapsed network.

    Parameters
    ----------
    pet : ndarray, (I, J, K)
        Predicted PET in [0, 1], not smoothed.
    t1w : ndarray, (I, J, K)
        T1w that it was predicted from; 0 outside the brain.

    Raises
    ------
    FloatingPointError
        If the range of intensities in the brain is at most 1e-4 (our choice; that of a PET is
        nearly 1), although that of the T1w is larger.
    """
    brain = t1w > 0
    if brain.any() and np.ptp(t1w[brain]) > FLAT and np.ptp(pet[brain]) <= FLAT:
        raise FloatingPointError(
            f"the generator predicts {pet[brain].max():.4g} everywhere in the brain"
        )


@contextmanager
def naming_files(folder: Path, card: Card, t1w: str) -> Iterator[None]:
    """Name the generator and the T1w if no PET can be predicted in the block.

    Raises
    ------
    UnusableDataError
        If the prediction is not a PET, or is impossible for the T1w.
    """
    try:
        yield
    except FloatingPointError as error:
        raise UnusableDataError(
            f"{folder}: for {Path(t1w).name}, {error}; no PET is written; train the generator "
            "again, or choose another --generator"
        ) from error
    except ValueError as error:
        raise UnusableDataError(
            f"{t1w}: {error}, so generator {card.name} cannot predict a PET from it; look at the "
            "T1w and its brain mask"
        ) from error


def synthesize(
    t1w: Volume,
    generator: nn.Module,
    tiling: Tiling,
    *,
    fwhm: float,
    zooms: tuple[float, float, float],
    batch_size: int = 4,
    dtype: torch.dtype = torch.float32,
) -> Volume:
    """Predict the PET of a T1w volume, and smooth it.

    Parameters
    ----------
    t1w, generator, tiling, batch_size, dtype
        See :func:`predict`.
    fwhm : float
        Smoothing of the result, in mm: Zotova et al. (2021), section 2.1, last paragraph.
    zooms : tuple of float
        Voxel size in mm along each axis.

    Returns
    -------
    ndarray, (I, J, K)
        float32 in [0, 1], not masked: smoothing spreads some intensity beyond the brain.

    Raises
    ------
    FloatingPointError
        See :func:`predict` and :func:`refuse_flat`.
    """
    pet = predict(t1w, generator, tiling, batch_size=batch_size, dtype=dtype)
    refuse_flat(pet, t1w)
    return smooth(pet, fwhm, zooms)
