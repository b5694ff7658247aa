"""Latents of the patch around every voxel of a slice, and the encoder's file."""

import json
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save
from torch import Tensor, nn
from torch.nn import functional as F

from bids_app.detection.networks import SiameseAutoencoder, layers_of
from bids_app.detection.spec import STRIDE, EncoderSpec, spec_from_dict, spec_to_dict
from bids_app.errors import MissingInputError, ReadWriteError, UnusableDataError
from bids_app.files import write_bytes
from bids_app.imaging.volume import Mask
from bids_app.strict import parse_object, refuse_shapes, shapes_of


def _slide(encoder: SiameseAutoencoder, slices: Tensor) -> Tensor:
    """Run the convolutions over whole slices, none of them skipped.

    Where a convolution would skip places, it now visits all, and those behind it look as far
    apart as it would have skipped: stride becomes dilation.

    Parameters
    ----------
    slices : Tensor, (N, I, J)
        Intensities in [0, 1].

    Returns
    -------
    Tensor, (N, maps, I + 3 (side - 1), J + 3 (side - 1))
        What a patch that begins at (i, j) has there, and at every third place from there.
    """
    half = encoder.patch // 2
    x = F.pad(slices.unsqueeze(1), (half, half, half, half))
    dilation = 1
    for layer in encoder.encoder:
        if isinstance(layer, nn.Conv2d):
            x = F.conv2d(x, layer.weight, layer.bias, dilation=dilation)
            dilation *= layer.stride[0]
        else:
            x = layer(x)
    return x


@torch.inference_mode()
def dense_latents(encoder: SiameseAutoencoder, slices: Tensor) -> Tensor:
    """Give the latents of the patch around every voxel.

    They are those of :meth:`SiameseAutoencoder.encode`, patch by patch.

    Parameters
    ----------
    encoder : SiameseAutoencoder
        Trained; on the device of the slices.
    slices : Tensor, (S, I, J)
        Axial slices, intensities in [0, 1]; beyond the border they are 0.

    Returns
    -------
    Tensor, (S, latents, I, J)
        float32, no bounds.
    """
    maps = _slide(encoder, slices)
    rows, columns = slices.shape[1:]
    corners = [
        maps[:, :, STRIDE * a : STRIDE * a + rows, STRIDE * b : STRIDE * b + columns]
        for a in range(encoder.side)
        for b in range(encoder.side)
    ]
    return torch.cat(corners, dim=1)


def _places(mask: Mask, side: int) -> Tensor:
    """Tell where in flattened maps of :func:`_slide` the latents of a mask's voxels are."""
    steps = STRIDE * np.arange(side)
    rows, columns = (axis[:, None, None] for axis in np.nonzero(mask))
    width = mask.shape[1] + STRIDE * (side - 1)
    return torch.from_numpy(((rows + steps[:, None]) * width + columns + steps).ravel())


@torch.inference_mode()
def latents_at(
    encoder: SiameseAutoencoder, slices: NDArray[np.float32], mask: Mask
) -> NDArray[np.float32]:
    """Give the latents of one axial slice of many people, at the voxels of a mask.

    Parameters
    ----------
    encoder : SiameseAutoencoder
        Trained; where it is, is computed.
    slices : ndarray, (S, I, J)
        The slice of S people, in [0, 1]; beyond the border they are 0.
    mask : ndarray of bool, (I, J)
        The voxels, taken row by row.

    Returns
    -------
    ndarray of float32, (voxels, S, latents)
        As a one-class SVM a voxel wants them. Beside it, no more than the maps of one person's
        slice are held.
    """
    device = next(encoder.parameters()).device
    places = _places(mask, encoder.side).to(device)
    found = np.empty((int(mask.sum()), len(slices), encoder.latents), np.float32)
    for person, one in enumerate(slices):
        maps = _slide(encoder, torch.from_numpy(np.array(one, np.float32)).to(device)[None])[0]
        rows = maps.permute(1, 2, 0).flatten(0, 1).index_select(0, places)
        found[:, person] = rows.view(found.shape[0], found.shape[2]).cpu().numpy()
    return found


def save_encoder(path: Path, encoder: SiameseAutoencoder, spec: EncoderSpec) -> None:
    """Write an encoder, with what rebuilds it; the file is whole or absent.

    Raises
    ------
    ReadWriteError
        If it cannot be written: no space, no permission.
    """
    weights = {
        name: tensor.detach().cpu().contiguous() for name, tensor in encoder.state_dict().items()
    }
    told = json.dumps(spec_to_dict(spec), sort_keys=True)
    write_bytes(path, save(weights, metadata={"spec": told}))


def load_encoder(path: Path, device: str = "cpu") -> SiameseAutoencoder:
    """Rebuild an encoder from its file, ready to encode.

    Parameters
    ----------
    path : Path
        As :func:`save_encoder` wrote it.
    device : str
        A torch device.

    Raises
    ------
    MissingInputError
        If it is not there.
    ReadWriteError
        If it cannot be read from its disk.
    UnusableDataError
        If it is damaged, or something else.
    """
    if not path.is_file():
        raise MissingInputError(f"{path}: no such file; the detector beside it needs its encoder")
    try:
        shapes = shapes_of(path)
        with safe_open(path, framework="pt") as file:
            told = file.metadata() or {}
        spec = spec_from_dict(parse_object(told.get("spec", "")))
        expected = nn.ModuleDict(layers_of(spec)).state_dict()
        refuse_shapes(shapes, {k: ("F32", tuple(one.shape)) for k, one in expected.items()})
        weights = load_file(path)
        odd = [name for name, one in weights.items() if not torch.isfinite(one).all()]
        if odd:
            raise ValueError(f"{odd[0]} holds NaN or infinity")
        encoder = SiameseAutoencoder(spec, torch.Generator())
        encoder.load_state_dict(weights)
    except OSError as error:
        raise ReadWriteError(f"{path}: cannot be read ({error.strerror})") from error
    except (SafetensorError, ValueError, RuntimeError) as error:
        reason = str(error).partition("\n")[0].rstrip(":")  # torch goes on for a line a weight
        raise UnusableDataError(
            f"{path}: not an encoder of this app ({reason}); train the detector again, or fetch "
            "it again"
        ) from error
    return encoder.to(device).eval()
