"""Scores of synthetic PET and of baselines for Table 1, including LPIPS.

LPIPS: Zhang, Isola, Efros, Shechtman & Wang (2018), CVPR, 586-595, equation 1; it is 0 for equal
images, and larger for less similar ones. Zotova et al. (2021), who report it in Table 1, do not
name the network; here it is AlexNet, the default of the authors' code.
"""

from collections.abc import Iterable
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional as F

from bids_app import nifti
from bids_app.errors import MissingInputError, ReadWriteError, UnusableDataError
from bids_app.files import file_sha256
from bids_app.imaging.volume import Grid, Mask, Volume
from bids_app.strict import shapes_of
from bids_app.synthesis.evaluation import (
    BASELINES,
    ScoreRecord,
    records_to_json,
    score,
    smooth_in_brain,
    sweep,
)
from bids_app.synthesis.inference import predict, refuse_flat
from bids_app.synthesis.models import SECOND_LINES
from bids_app.synthesis.pairs import Volumes, open_volumes
from bids_app.synthesis.tiling import SliceTriplets, Tiling, overlap

# SHA-256 of alexnet_lpips_v0.1.pth: the five convolutions of torchvision's AlexNet, trained on
# ImageNet, and the heads of the package lpips 0.1.4, weights/v0.1/alex.pth.
PUBLISHED_SHA256 = "59caea9c9fb9a96229026388f7e58187bda4e00081374eed64974bf43e4c5396"
FETCHED_SHA256 = (
    "972b85a274f7af1bc18638c2257488e4740296ea1ddeefe6c5a48da7ece116e3"  # from mri2pet-fetch
)
LARGEST = 1 << 28  # bytes of a weights file, which usually has 10 MB; our choice
SMALLEST_SIDE = 31  # pixels: 31 → 7 → 3 → 1 with the strides of Lpips
WEIGHTS_ADVICE = (
    "--lpips-weights needs the tensors of AlexNet's convolutions and the LPIPS v0.1 heads"
)


class Head(nn.Module):
    """Weighted sum over the channels of one layer: (N, channels, *size) to (N, 1, *size)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        # The authors train with a dropout first, hence the name model.1.weight.
        self.model = nn.Sequential(nn.Identity(), nn.Conv2d(channels, 1, 1, bias=False))

    def forward(self, x: Tensor) -> Tensor:
        return self.model(x)


class Lpips(nn.Module):
    """Distance of two images in the features of AlexNet, layer by layer.

    ``forward`` maps two batches (N, 3, I, J), unitless intensities in [-1, 1], at least 31 pixels
    per side, to five maps of distance (N, 1, smaller size), one after each ReLU: the features of a
    pixel are normalized to length 1, subtracted, squared, and weighted by a head. Layer sizes are
    those of torchvision's AlexNet; the shift and scale of the colours, and the 1e-10 that prevents
    division by 0, are those of the authors' code, package lpips 0.1.4.

    Parameters
    ----------
    sha256 : str
        SHA-256 of the weights file.
    """

    shift: Tensor
    scale: Tensor
    CHANNELS = (64, 192, 384, 256, 256)

    def __init__(self, sha256: str) -> None:
        super().__init__()
        self.sha256 = sha256
        width_1, width_2, width_3, width_4, width_5 = self.CHANNELS
        self.features = nn.Sequential(
            nn.Conv2d(3, width_1, 11, stride=4, padding=2),
            nn.ReLU(),
            nn.MaxPool2d(3, stride=2),
            nn.Conv2d(width_1, width_2, 5, padding=2),
            nn.ReLU(),
            nn.MaxPool2d(3, stride=2),
            nn.Conv2d(width_2, width_3, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(width_3, width_4, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(width_4, width_5, 3, padding=1),
            nn.ReLU(),
        )
        for number, channels in enumerate(self.CHANNELS):
            self.add_module(f"lin{number}", Head(channels))
        colours = torch.tensor([[-0.030, -0.088, -0.188], [0.458, 0.448, 0.450]])[..., None, None]
        self.register_buffer("shift", colours[0], persistent=False)
        self.register_buffer("scale", colours[1], persistent=False)

    @property
    def is_published(self) -> bool:
        """Whether the weights file is a known copy of the published tensors, by its SHA-256."""
        return self.sha256 in (PUBLISHED_SHA256, FETCHED_SHA256)

    @property
    def weights(self) -> str:
        """Name of the weights, whatever the format of their file; of unknown ones, its SHA-256."""
        return "published" if self.is_published else self.sha256

    def forward(self, one: Tensor, other: Tensor) -> list[Tensor]:
        x = (torch.cat([one, other]) - self.shift) / self.scale
        distances: list[Tensor] = []
        for layer in self.features:
            x = layer(x)
            if isinstance(layer, nn.ReLU):
                unit = x / (x.square().sum(1, keepdim=True).sqrt() + 1e-10)
                difference = (unit[: len(one)] - unit[len(one) :]).square()
                distances.append(self.get_submodule(f"lin{len(distances)}")(difference))
        return distances


def _refuse_large(path: Path) -> None:
    if path.stat().st_size > LARGEST:
        raise ValueError(f"it has more than {LARGEST >> 20} MiB")


def read_tensors(path: Path) -> dict[str, Tensor]:
    """Read a plain dict of tensors, without running any code in the file.

    Raises
    ------
    ValueError
        If the file is anything else.
    """
    _refuse_large(path)
    try:
        if path.suffix == ".safetensors":
            shapes_of(path)
            return load_file(path)
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises nearly any error for other files
        raise ValueError("not a file of tensors") from error
    if not isinstance(content, dict) or not all(torch.is_tensor(v) for v in content.values()):
        raise ValueError("not a plain dict of tensors")
    return content


def _check_tensors(tensors: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    odd = sorted(tensors.keys() ^ expected.keys(), key=str)
    if odd:
        raise ValueError(f"{odd[0]} is {'missing' if odd[0] in expected else 'unknown'}")
    for name, tensor in tensors.items():
        shape, expected_shape = tuple(tensor.shape), tuple(expected[name].shape)
        if shape != expected_shape:
            raise ValueError(f"{name} has shape {shape}, not {expected_shape}")
        if not tensor.is_floating_point() or not tensor.isfinite().all():
            raise ValueError(f"{name} contains a value that is not a finite number")


def load_lpips(path: Path, device: str = "cpu") -> Lpips:
    """Build the LPIPS network from a weights file, in evaluation mode.

    Parameters
    ----------
    path : Path
        A ``.safetensors`` file, or a plain dict of tensors written by ``torch.save`` (no code in it
        is run): ``features.{0,3,6,8,10}.{weight,bias}`` and ``lin{0..4}.model.1.weight``.
    device : str
        A torch device.

    Raises
    ------
    MissingInputError, ReadWriteError, UnusableDataError
        If there is no such file, if it cannot be read, or if it holds anything else, respectively.
    """
    if not path.is_file():
        raise MissingInputError(f"{path}: no such file; {WEIGHTS_ADVICE}")
    try:
        _refuse_large(path)  # before computing its SHA-256, which takes long for large files
        network, tensors = Lpips(file_sha256(path)), read_tensors(path)
        _check_tensors(tensors, network.state_dict())
    except OSError as error:
        raise ReadWriteError(f"{path}: cannot be read ({error.strerror})") from error
    except ValueError as error:
        raise UnusableDataError(
            f"{path}: not the weights of LPIPS ({error}); {WEIGHTS_ADVICE}"
        ) from error
    network.load_state_dict(tensors)
    return network.requires_grad_(requires_grad=False).to(device).eval()


class VolumeLpips(NamedTuple):
    """LPIPS of two volumes over whole slices, and over chosen voxels; 0 for equal volumes."""

    whole: float
    chosen: float


def _slices(volume: Volume | Mask, mode: Literal["edge", "constant"]) -> Tensor:
    """Return the transverse slices, (K, I, J), padded to the size that the pools need."""
    missing = [max(SMALLEST_SIDE - side, 0) for side in volume.shape[:2]]
    filling = [*((both // 2, both - both // 2) for both in missing), (0, 0)]
    return torch.from_numpy(np.pad(volume, filling, mode=mode)).movedim(-1, 0)


@torch.inference_mode()
def volume_lpips(
    network: Lpips, one: Volume, other: Volume, mask: Mask | None = None, *, batch_size: int = 8
) -> VolumeLpips:
    """Compute LPIPS between two volumes, transverse slice by transverse slice.

    Each slice is repeated in three equal channels. AlexNet's pools need 31 voxels per side:
    smaller slices are padded with the values at their border, as if the bounding box were larger,
    and the padding counts in ``whole``. Enlarging them would change the scale.

    Parameters
    ----------
    network : Lpips
        Network returned by :func:`load_lpips`.
    one, other : ndarray, (I, J, K)
        Intensities in [0, 1]; slices are stacked along the last axis.
    mask : ndarray of bool, (I, J, K), optional
        Voxels to average over in ``chosen``, such as those of the brain; all by default.
    batch_size : int
        Number of slices per forward pass; changes the memory needed, not the result.

    Returns
    -------
    VolumeLpips
        ``whole``: the LPIPS of a slice, averaged over all slices. ``chosen``: the map of LPIPS,
        averaged over the voxels of the mask; NaN if there are none. The map is the sum of the
        layers' distances, each resampled to the slice's size by linear interpolation, as in the
        authors' code with ``spatial=True``. Its resolution is every fourth to sixteenth voxel, and
        it depends on neighbouring voxels, including those outside the mask.
    """
    ones, others = _slices(one, "edge"), _slices(other, "edge")
    counted = np.ones(one.shape, bool) if mask is None else mask
    counting, device = _slices(counted, "constant"), network.shift.device
    whole = torch.zeros((), dtype=torch.float64, device=device)
    chosen = torch.zeros_like(whole)
    for k in torch.arange(one.shape[-1]).split(batch_size):
        shown = (
            slices[k, None].to(device).mul(2).sub(1).expand(-1, 3, -1, -1)
            for slices in (ones, others)
        )
        for distance in network(*shown):
            spread = F.interpolate(distance, counting.shape[1:], mode="bilinear")
            whole += distance.mean((1, 2, 3), dtype=torch.float64).sum()
            chosen += spread[:, 0][counting[k].to(device)].sum(dtype=torch.float64)
    return VolumeLpips(float(whole / one.shape[-1]), float(chosen / int(counted.sum())))


class Scorer:
    """Collector of the score records of one fold.

    Parameters
    ----------
    model : str
        Name of the row; baselines have names of their own.
    fold : int
        Number of the fold, counted from 1.
    fwhm : float
        Smoothing of the synthetic PET, in mm.
    lpips_weights : Path or None
        Weights for :func:`bids_app.synthesis.scoring.load_lpips`; if None, LPIPS is not computed.
    device : str
        A torch device.
    atlas : Path, optional
        Regions in the space of the images, labelled as described in :func:`score`.
    """

    def __init__(
        self,
        model: str,
        fold: int,
        fwhm: float,
        lpips_weights: Path | None,
        device: str,
        *,
        atlas: Path | None = None,
    ) -> None:
        self.model, self.fold, self.fwhm = model, fold, fwhm
        self._lpips: Lpips | None = None
        if lpips_weights is not None:
            self._lpips = load_lpips(lpips_weights, device)
        self._atlas = None if atlas is None else nifti.load(atlas)
        self.records: list[ScoreRecord] = []

    def _regions(self, visit: Volumes) -> NDArray[np.integer] | None:
        if self._atlas is None:
            return None
        i, j, k = visit.brain.shape
        grid = Grid((i, j, k), np.array(visit.owner.affine))
        return nifti.resample_atlas(self._atlas, grid)

    def _record(self, model: str, visit: Volumes, pet: Volume, by_fwhm: dict[float, float]) -> None:
        real, brain = np.asarray(visit.pet), np.asarray(visit.brain)
        distance: tuple[float, float] = (np.nan, np.nan)
        if self._lpips is not None:  # voxels outside the real PET are 0 in both
            shown = pet if visit.hole is None else np.where(visit.hole, 0, pet)
            distance = volume_lpips(self._lpips, shown, real, brain & visit.covered)
        regions = self._regions(visit)
        scores = score(pet, real, brain, distance, covered=visit.covered, regions=regions)
        owner = visit.owner
        self.records.append(
            ScoreRecord(model, owner.participant, owner.session, self.fold, scores, by_fwhm)
        )

    def score_generator(
        self, visit: Volumes, generator: nn.Module, tiling: Tiling
    ) -> tuple[Volume, Volume]:
        """Synthesize the PET of a visit, and score it.

        Returns
        -------
        ndarray, (I, J, K)
            PET in [0, 1], from adjacent triplets, as in the paper.
        ndarray, (I, J, K)
            That from overlapping triplets, which is scored for the row's second line; the same PET
            for rows without one.

        Raises
        ------
        FloatingPointError
            If the prediction is not finite, out of range or constant.
        """
        raw = predict(np.asarray(visit.t1w), generator, tiling)
        refuse_flat(raw, np.asarray(visit.t1w))
        zooms = visit.owner.zooms
        pet = smooth_in_brain(raw, visit.brain, fwhm=self.fwhm, zooms=zooms)
        swept = sweep(raw, visit.pet, visit.brain, zooms=zooms, covered=visit.covered)
        self._record(self.model, visit, pet, swept)
        second = SECOND_LINES.get(self.model)
        if second is None or not isinstance(tiling, SliceTriplets):
            return pet, pet
        raw = predict(np.asarray(visit.t1w), generator, overlap(tiling))
        averaged = smooth_in_brain(raw, visit.brain, fwhm=self.fwhm, zooms=zooms)
        self._record(second, visit, averaged, {})
        return pet, averaged

    def score_baselines(self, visit: Volumes, mean: Volume) -> None:
        """Score the mean training PET, (I, J, K) in [0, 1], and the visit's own T1w."""
        inside = np.where(visit.brain, mean, 0).astype(np.float32)
        for name, volume in zip(BASELINES, (inside, np.asarray(visit.t1w)), strict=True):
            self._record(name, visit, volume, {})

    def plain_values(self, basis: str = "") -> dict[str, object]:
        """Return the records as plain values; see :func:`records_to_json`."""
        return records_to_json(
            self.records, basis, "" if self._lpips is None else self._lpips.weights
        )


def mean_pet(folders: Iterable[Path]) -> Volume:
    """Average the real PET of visits, (I, J, K).

    At each voxel, this is the mean over the visits whose own brain lies there and is covered by the
    PET; 0 where there is none. Only one PET is held in memory at a time.
    """
    total, count = None, np.zeros((), np.int64)
    for visit in map(open_volumes, folders):
        known = visit.brain & visit.covered
        pet = np.where(known, visit.pet, 0).astype(np.float64)
        total = pet if total is None else total + pet
        count = count + known
    if total is None:
        raise ValueError("no visits to average")
    return (total / np.maximum(count, 1)).astype(np.float32)
