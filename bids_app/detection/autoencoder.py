"""Siamese autoencoder: network, pairs of patches, training, and latents of whole slices.

Zotova et al. (2021), section 2.2, use the network of Alaverdyan et al. (2020), figure 5, with
patches of 15×15 voxels and 64 latents. That figure was not available to us: filters and
activations are our choice. A pair consists of two axial patches at the same location in two
different controls.

A volume is a PET image, (I, J, K), or PET and T1w, (2, I, J, K), with channels first.
"""

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from types import MappingProxyType
from typing import TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim.lr_scheduler import CosineAnnealingLR

from bids_app.detection.card import STRIDE, EncoderSpec, spec_from_dict, spec_to_dict
from bids_app.detection.smo import Integers, Singles, compiled
from bids_app.errors import MissingInputError, ReadWriteError, UnusableDataError
from bids_app.files import write_bytes
from bids_app.imaging.coverage import near
from bids_app.imaging.volume import Mask, Volume
from bids_app.strict import parse_object, refuse_shapes, shapes_of

FILTERS = (3, 4, 12)  # feature maps of the first three convolutions; our choice


class SiameseAutoencoder(nn.Module):
    """Convolutional autoencoder of patches; both twins share this one network.

    The encoder has convolutions of 5×5, 3×3, 3×3 with stride 3, and 2×2: 15 → 11 → 9 → 3 → 2
    voxels. They are separated by ELU: with ReLU, which easily loses some of so few feature maps,
    latents of simulated PET varied along 2 to 3 directions instead of 5 to 7, and patches were
    reconstructed less accurately. Latents have no activation and are unbounded. The decoder
    mirrors the encoder and ends in a sigmoid.

    Parameters
    ----------
    spec : EncoderSpec
        Specification with the patch size and the number of latents.
    random : torch.Generator
        Generator, on the CPU, of the initial weights, drawn as in Glorot & Bengio (2010), eq. 16.
        Biases are 0.

    Examples
    --------
    >>> network = SiameseAutoencoder(EncoderSpec(), torch.Generator().manual_seed(0))
    >>> network.encode(torch.rand(5, 1, 15, 15)).shape
    torch.Size([5, 64])
    """

    def __init__(self, spec: EncoderSpec, random: torch.Generator) -> None:
        super().__init__()
        self.patch, self.side, self.latents = spec.patch, spec.side, spec.latents
        self.channels = spec.channels
        layers = layers_of(spec)
        self.encoder, self.decoder = layers["encoder"], layers["decoder"]
        self.to_empty(device="cpu")
        self.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # faster here; its types lack it
        _initialize(self, random)

    def encode(self, patches: Tensor) -> Tensor:
        """Return the latents of patches.

        Parameters
        ----------
        patches : Tensor, (N, channels, patch, patch)
            Intensities in [0, 1], 0 outside the brain.

        Returns
        -------
        Tensor, (N, latents)
            Latents ordered by location, row by row, with all feature maps at each.
        """
        return self.encoder(patches).permute(0, 2, 3, 1).flatten(1)

    def decode(self, latents: Tensor) -> Tensor:
        """Decode latents, (N, latents), into patches, (N, channels, patch, patch) in [0, 1]."""
        return self.decoder(latents.unflatten(1, (self.side, self.side, -1)).permute(0, 3, 1, 2))

    def forward(self, patches: Tensor) -> Tensor:
        """Encode and decode patches, (N, channels, patch, patch) in [0, 1]."""
        return self.decode(self.encode(patches))


def layers_of(spec: EncoderSpec) -> dict[str, nn.Sequential]:
    """Build the ``encoder`` and ``decoder`` of a spec on the meta device, without weights."""
    first, second, third = FILTERS
    fourth = spec.latents // spec.side**2
    with torch.device("meta"):  # otherwise torch would draw weights from its global generator
        encoder = nn.Sequential(
            nn.Conv2d(spec.channels, first, 5),
            nn.ELU(),
            nn.Conv2d(first, second, 3),
            nn.ELU(),
            nn.Conv2d(second, third, 3, stride=STRIDE),
            nn.ELU(),
            nn.Conv2d(third, fourth, 2),
        )
        decoder = nn.Sequential(
            nn.ConvTranspose2d(fourth, third, 2),
            nn.ELU(),
            nn.ConvTranspose2d(third, second, 3, stride=STRIDE),
            nn.ELU(),
            nn.ConvTranspose2d(second, first, 3),
            nn.ELU(),
            nn.ConvTranspose2d(first, spec.channels, 5),
            nn.Sigmoid(),
        )
    return {"encoder": encoder, "decoder": decoder}


def _initialize(network: nn.Module, random: torch.Generator) -> None:
    for parameter in network.parameters():
        with torch.no_grad():
            if parameter.ndim == 1:
                parameter.zero_()
            else:
                bound = math.sqrt(6 / (parameter[0].numel() + parameter[:, 0].numel()))
                parameter.uniform_(-bound, bound, generator=random)


PEOPLE = 2  # least number of controls for a pair


def cut_patches(volume: Volume, centres: NDArray[np.intp], size: int) -> NDArray[np.float32]:
    """Extract axial patches centred on voxels of a volume.

    The volume may be memory-mapped: only the patches are read.

    Parameters
    ----------
    volume : ndarray, (I, J, K) or (channels, I, J, K)
        Volume in any unit.
    centres : ndarray of int, (N, 3)
        Voxels inside the volume.
    size : int
        Edge length of a patch in voxels; odd.

    Returns
    -------
    ndarray of float32, (N, size, size) or (N, channels, size, size)
        Patches in the unit of the volume; 0 beyond its border, as outside the brain.
    """
    steps = np.arange(size) - size // 2
    rows = centres[:, 0, None, None] + steps[:, None]
    columns = centres[:, 1, None, None] + steps
    height, width, _ = volume.shape[-3:]
    inside = (rows >= 0) & (rows < height) & (columns >= 0) & (columns < width)
    indices = (rows.clip(0, height - 1), columns.clip(0, width - 1), centres[:, 2, None, None])
    patches = np.where(inside, volume[..., *indices], 0).astype(np.float32, copy=False)
    return patches if volume.ndim == centres.shape[1] else patches.swapaxes(0, 1)


def whole_patches(hole: Mask, size: int) -> Mask:
    """Return a mask of the voxels whose axial patch does not touch a hole.

    Parameters
    ----------
    hole : ndarray of bool, (I, J, K), or (I, J, 1) for a single slice
        Brain voxels that the PET does not cover.
    size : int
        Edge length of a patch in voxels; odd.
    """
    return ~near(hole, (size, size, 1))


def shared_places(brain: Mask, whole: Mapping[int, Mask], people: int) -> NDArray[np.intp]:
    """List the brain voxels where two or more controls have a whole patch, (voxels, 3).

    Parameters
    ----------
    brain : ndarray of bool, (I, J, K)
        Mask of the analysed brain.
    whole : mapping
        Masks of whole patches; see :func:`draw_pairs`.
    people : int
        Number of controls.
    """
    known = np.full(brain.shape, people - len(whole))
    for has_patch in whole.values():
        known += has_patch
    return np.argwhere(brain & (known >= PEOPLE))


def draw_pairs(
    volumes: Sequence[Volume],
    places: NDArray[np.intp],
    count: int,
    random: np.random.Generator,
    *,
    size: int,
    whole: Mapping[int, Mask] = MappingProxyType({}),
) -> NDArray[np.float32]:
    """Draw pairs of patches from two different controls at the same location, uniformly.

    Parameters
    ----------
    volumes : sequence of ndarray, (I, J, K) or (channels, I, J, K)
        One volume per control, on one grid, in [0, 1]; may be memory-mapped.
    places : ndarray of int, (voxels, 3)
        Possible centres of a patch, such as ``np.argwhere`` of the analysed brain.
    count : int
        Number of pairs.
    random : numpy.random.Generator
        Source of randomness.
    size : int
        Edge length of a patch in voxels; odd.
    whole : mapping
        Index of a control → ndarray of bool, (I, J, K), mask of the voxels where its patches are
        whole. Patches of controls without an entry are whole everywhere. At least two controls
        must have a whole patch at every place.

    Returns
    -------
    ndarray of float32, (count, 2, size, size) or (count, 2, channels, size, size)
        Whole patches with intensities in [0, 1].

    Raises
    ------
    ValueError
        If there are fewer than two controls, or no places.
    """
    people = len(volumes)
    if people < PEOPLE:
        raise ValueError(f"a pair needs {PEOPLE} controls, not {people}")
    if not len(places):
        raise ValueError("the analysed brain has no voxel")
    centres = places[random.integers(len(places), size=count)]
    known = np.ones((count, people), bool)
    for person, mask in whole.items():
        known[:, person] = mask[tuple(centres.T)]
    one, other = _draw_two(known, random)
    pairs = np.empty((count, 2, *volumes[0].shape[:-3], size, size), np.float32)
    for person, volume in enumerate(volumes):
        for twin, chosen in enumerate((one == person, other == person)):
            pairs[chosen, twin] = cut_patches(volume, centres[chosen], size)
    return pairs


def _draw_two(
    known: NDArray[np.bool_], random: np.random.Generator
) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """Draw two different controls per row among those marked in ``known``, (count, people)."""
    count, people = known.shape
    number = people if known.all() else known.sum(axis=1)
    one = random.integers(number, size=count)
    other = (one + random.integers(1, number, size=count)) % number
    order = np.argsort(~known, axis=1, kind="stable")  # known controls come first
    rows = np.arange(count)
    return order[rows, one], order[rows, other]


Holes: TypeAlias = Sequence[Mask | None]


@dataclass(frozen=True)
class EncoderEpoch:
    """Completed training epoch, with means over its pairs.

    Parameters
    ----------
    number : int
        Number of the epoch, from 1.
    loss : float
        Minimised loss: twice ``reconstruction`` minus alpha times ``similarity``.
    reconstruction : float
        Mean squared error of a patch with intensities in [0, 1].
    similarity : float
        Cosine similarity of the latents of a pair, -1 to 1.
    variance : float
        Variance of a latent over locations and people, averaged over latents; 0 if all patches
        have the same latents.
    dimensions : float
        Effective number of directions along which latents vary: (sum of v)² / sum of v², where v
        are the eigenvalues of their covariance. 1 if they lie on a line, the number of latents if
        there is no preferred direction, and 0 if nothing varies.
    between_people : float
        Share of the variance that is between two people at the same location; 0 if their latents
        are equal, 1 if locations do not differ.
    """

    number: int
    loss: float
    reconstruction: float
    similarity: float
    variance: float
    dimensions: float
    between_people: float


@dataclass(frozen=True)
class EncoderLosses:
    """Losses of a batch of pairs: the minimised ``total``, and terms of :class:`EncoderEpoch`."""

    total: Tensor
    reconstruction: Tensor
    similarity: Tensor


def siamese_loss(
    pairs: Tensor, reconstructed: Tensor, latents: Tensor, *, alpha: float
) -> EncoderLosses:
    """Compute the loss of reconstructed pairs of patches and their latents.

    Following Zotova et al. (2021), section 2.2, after Alaverdyan et al. (2020), it is the
    reconstruction error of both patches minus ``alpha`` times the cosine similarity of their
    latents. The reconstruction error keeps all latents from becoming equal, which would be
    optimal for the similarity alone.

    Parameters
    ----------
    pairs, reconstructed : Tensor, (N, 2, size, size) or (N, 2, channels, size, size)
        Original and reconstructed patches in [0, 1].
    latents : Tensor, (N, 2, latents)
        Latents of both patches of each pair.
    alpha : float
        Weight of the similarity.

    Examples
    --------
    >>> pairs = torch.zeros(1, 2, 15, 15)
    >>> float(siamese_loss(pairs, pairs + 0.5, torch.ones(1, 2, 64), alpha=0.25).total)
    0.25
    """
    reconstruction = F.mse_loss(reconstructed, pairs)
    similarity = F.cosine_similarity(latents[:, 0], latents[:, 1]).mean()
    return EncoderLosses(2 * reconstruction - alpha * similarity, reconstruction, similarity)


class _Spread:
    """Running sums over the latents of an epoch, in float64, that measure their spread."""

    def __init__(self, size: int) -> None:
        self.count, self.apart = 0, 0.0
        self.total, self.products = np.zeros(size), np.zeros((size, size))

    def add(self, latents: Tensor) -> None:
        """Add the latents of pairs, (N, 2, latents), to the sums."""
        values = latents.detach().cpu().numpy().astype(np.float64)
        self.apart += float(np.square(values[:, 0] - values[:, 1]).sum())
        flat = values.reshape(-1, values.shape[-1])
        self.count += len(flat)
        self.total += flat.sum(axis=0)
        self.products += flat.T @ flat

    def measure(self) -> tuple[float, float, float]:
        """Return variance, dimensions and between_people of :class:`EncoderEpoch`."""
        mean = self.total / self.count
        covariance = self.products / self.count - np.outer(mean, mean)
        variance = float(np.trace(covariance))
        if variance <= np.finfo(np.float64).eps * float(np.trace(self.products)):
            return 0.0, 0.0, 0.0
        # The variance is half the expected squared difference of two draws.
        within = self.apart / self.count / variance
        return variance / len(mean), float(variance**2 / np.square(covariance).sum()), within


def _epoch(number: int, losses: Sequence[tuple[float, ...]], spread: _Spread) -> EncoderEpoch:
    loss, reconstruction, similarity = np.average(
        [values for *values, _ in losses], axis=0, weights=[size for *_, size in losses]
    ).tolist()
    return EncoderEpoch(number, loss, reconstruction, similarity, *spread.measure())


def fit_encoder(
    encoder: SiameseAutoencoder,
    volumes: Sequence[Volume],
    brain: Mask,
    spec: EncoderSpec,
    random: np.random.Generator,
    *,
    holes: Holes = (),
) -> Iterator[EncoderEpoch]:
    """Train an encoder in place with Adam, yielding after each epoch.

    Parameters
    ----------
    encoder : SiameseAutoencoder
        New encoder of the same spec, on the device to compute on; changed in place.
    volumes : sequence of ndarray, (I, J, K) or (channels, I, J, K)
        Images of one control each, on one grid, in [0, 1], 0 outside the brain; may be
        memory-mapped.
    brain : ndarray of bool, (I, J, K)
        Mask of the analysed brain, which contains the centres of patches.
    spec : EncoderSpec
        Specification of the encoder and of its training.
    random : numpy.random.Generator
        Source of randomness for the pairs.
    holes : sequence of ndarray of bool or None
        Brain voxels that each control's PET does not cover, (I, J, K), or None if it covers all.
        Patches that touch them are not drawn. By default, every PET covers the brain.

    Yields
    ------
    EncoderEpoch
        Measures of the completed epoch.

    Raises
    ------
    ValueError
        If there are fewer than two controls, the brain is empty, or grids differ.
    FloatingPointError
        If a loss is not finite.
    """
    if any(volume.shape[-3:] != brain.shape for volume in volumes):
        raise ValueError(f"a control is not on the brain's grid of {brain.shape} voxels")
    whole = {
        place: whole_patches(hole, spec.patch)
        for place, hole in enumerate(holes)
        if hole is not None
    }
    places = shared_places(brain, whole, len(volumes))
    device = next(encoder.parameters()).device
    optimizer = torch.optim.Adam(encoder.parameters(), spec.learning_rate)
    steps = spec.epochs * -(-spec.pairs_per_epoch // spec.batch_size)
    schedule = CosineAnnealingLR(optimizer, steps)
    for number in range(1, spec.epochs + 1):
        spread, losses = _Spread(spec.latents), []
        drawn = draw_pairs(
            volumes, places, spec.pairs_per_epoch, random, size=spec.patch, whole=whole
        )
        for pairs in torch.from_numpy(drawn).split(spec.batch_size):
            latents, loss = _step(encoder, pairs.to(device), optimizer, spec.alpha)
            schedule.step()
            if not np.isfinite(loss[0]):
                raise FloatingPointError(f"the loss of the encoder is not finite in epoch {number}")
            losses.append((*loss, len(pairs)))
            spread.add(latents)
        yield _epoch(number, losses, spread)


def _step(
    encoder: SiameseAutoencoder, pairs: Tensor, optimizer: torch.optim.Optimizer, alpha: float
) -> tuple[Tensor, tuple[float, ...]]:
    """Run one training step; return the latents, (N, 2, latents), and the three losses."""
    patches = pairs.reshape(-1, encoder.channels, *pairs.shape[-2:])
    latents = encoder.encode(patches)
    reconstructed = encoder.decode(latents).reshape(pairs.shape)
    latents = latents.unflatten(0, (-1, 2))
    losses = siamese_loss(pairs, reconstructed, latents, alpha=alpha)
    optimizer.zero_grad()
    losses.total.backward()
    optimizer.step()
    values = torch.stack([losses.total, losses.reconstruction, losses.similarity]).tolist()
    return latents, tuple(values)


def train_encoder(
    volumes: Sequence[Volume], brain: Mask, spec: EncoderSpec, *, seed: int, holes: Holes = ()
) -> tuple[SiameseAutoencoder, list[dict[str, float]]]:
    """Train a new encoder on the CPU.

    Parameters
    ----------
    volumes, brain, spec
        See :func:`fit_encoder`.
    seed : int
        Seed of the initial weights and of the pairs.
    holes : sequence of ndarray of bool or None
        See :func:`fit_encoder`.

    Returns
    -------
    SiameseAutoencoder
        Trained encoder, in evaluation mode.
    list of dict
        Fields of each :class:`EncoderEpoch`, as plain values.

    Raises
    ------
    ValueError, FloatingPointError
        See :func:`fit_encoder`.
    """
    encoder = SiameseAutoencoder(spec, torch.Generator().manual_seed(seed))
    epochs = fit_encoder(encoder, volumes, brain, spec, np.random.default_rng(seed), holes=holes)
    history = [asdict(epoch) for epoch in epochs]
    return encoder.eval(), history


def _slide(encoder: SiameseAutoencoder, slices: Tensor) -> Tensor:
    """Apply the convolutions of an encoder densely to whole slices.

    The stride of a convolution is replaced by dilation of all later ones, so that no location is
    skipped.

    Parameters
    ----------
    slices : Tensor, (N, channels, I, J)
        Intensities in [0, 1].

    Returns
    -------
    Tensor, (N, maps, I + 3 (side - 1), J + 3 (side - 1))
        Dense feature maps. The latents of a patch that begins at (i, j) are at (i, j) and at every
        third location from there.
    """
    half = encoder.patch // 2
    x = F.pad(slices, (half, half, half, half))
    dilation = 1
    for layer in encoder.encoder:
        if isinstance(layer, nn.Conv2d):
            x = F.conv2d(x, layer.weight, layer.bias, dilation=dilation)
            dilation *= layer.stride[0]
        else:
            x = layer(x)
    return x


def latent_places(mask: Mask, side: int) -> NDArray[np.int64]:
    """Return the indices into :func:`latent_maps` of the latents of a slice's voxels.

    Parameters
    ----------
    mask : ndarray of bool, (I, J)
        Mask of the voxels, which are taken row by row.
    side : int
        Side of the encoder: each voxel has side × side places.

    Returns
    -------
    ndarray of int, (voxels, side²)
        Flat indices, in the order of the latents.
    """
    steps = STRIDE * np.arange(side)
    rows, columns = (axis[:, None, None] for axis in np.nonzero(mask))
    width = mask.shape[1] + STRIDE * (side - 1)
    places = (rows + steps[:, None]) * width + columns + steps
    return places.reshape(len(places), side * side)


@torch.inference_mode()
def latent_maps(encoder: SiameseAutoencoder, slices: NDArray[np.float32]) -> NDArray[np.float32]:
    """Encode one axial slice of several people densely, without a copy of the patch of each voxel.

    Parameters
    ----------
    encoder : SiameseAutoencoder
        Trained encoder, on the device to compute on.
    slices : ndarray, (S, I, J) or (S, channels, I, J)
        Slice of S people, in [0, 1]; padded with 0 beyond the border.

    Returns
    -------
    ndarray of float32, (S, places, maps)
        Dense maps, from which :func:`gather` extracts the latents of voxels.
    """
    device = next(encoder.parameters()).device
    rows, columns = (side + STRIDE * (encoder.side - 1) for side in slices.shape[-2:])
    dense = np.empty((len(slices), rows * columns, encoder.latents // encoder.side**2), np.float32)
    planes = slices.reshape(len(slices), 1, encoder.channels, *slices.shape[-2:])
    for person, plane in enumerate(planes):
        maps = _slide(encoder, torch.from_numpy(np.array(plane, np.float32)).to(device))[0]
        dense[person] = maps.permute(1, 2, 0).flatten(0, 1).cpu().numpy()
    return dense


@compiled
def gather(maps: Singles, places: Integers) -> Singles:
    """Extract the latents of voxels from dense maps.

    Parameters
    ----------
    maps : ndarray, (S, places, maps)
        Result of :func:`latent_maps`.
    places : ndarray, (voxels, parts)
        Result of :func:`latent_places`, or some of its rows.

    Returns
    -------
    ndarray of float32, (voxels, S, parts * maps)
        Latents in the layout of voxelwise one-class SVMs.
    """
    people, _, depth = maps.shape
    voxels, parts = places.shape
    latents = np.empty((voxels, people, parts * depth), np.float32)
    for person in range(people):
        for voxel in range(voxels):
            for part in range(parts):
                place = places[voxel, part]
                for value in range(depth):
                    latents[voxel, person, part * depth + value] = maps[person, place, value]
    return latents


def latents_at(
    encoder: SiameseAutoencoder, slices: NDArray[np.float32], mask: Mask
) -> NDArray[np.float32]:
    """Return the latents of one axial slice of several people at the voxels of a mask.

    Parameters
    ----------
    encoder, slices
        See :func:`latent_maps`.
    mask : ndarray of bool, (I, J)
        Mask of the voxels, which are taken row by row.

    Returns
    -------
    ndarray of float32, (voxels, S, latents)
        Latents in the layout of voxelwise one-class SVMs.
    """
    return gather(latent_maps(encoder, slices), latent_places(mask, encoder.side))


@torch.inference_mode()
def reconstruction_errors(
    encoder: SiameseAutoencoder, volume: Volume, centres: NDArray[np.intp]
) -> NDArray[np.float32]:
    """Return the mean squared reconstruction error of each patch.

    Parameters
    ----------
    encoder : SiameseAutoencoder
        Trained encoder.
    volume : ndarray, (I, J, K) or (channels, I, J, K)
        Intensities in [0, 1].
    centres : ndarray of int, (N, 3)
        Centres of the patches.

    Returns
    -------
    ndarray of float32, (N,)
    """
    device = next(encoder.parameters()).device
    patches = torch.from_numpy(cut_patches(volume, centres, encoder.patch)).to(device)
    patches = patches.reshape(-1, encoder.channels, *patches.shape[-2:])
    squares = (encoder(patches) - patches).square()
    errors: NDArray[np.float32] = squares.mean((1, 2, 3)).cpu().numpy()
    return errors


def save_encoder(path: Path, encoder: SiameseAutoencoder, spec: EncoderSpec) -> None:
    """Write an encoder and its spec atomically.

    Raises
    ------
    ReadWriteError
        If the file cannot be written: no space, no permission.
    """
    weights = {
        name: tensor.detach().cpu().contiguous() for name, tensor in encoder.state_dict().items()
    }
    metadata = {"spec": json.dumps(spec_to_dict(spec), sort_keys=True)}
    write_bytes(path, save(weights, metadata=metadata))


def load_encoder(path: Path, device: str = "cpu") -> SiameseAutoencoder:
    """Read an encoder, in evaluation mode.

    Parameters
    ----------
    path : Path
        File written by :func:`save_encoder`.
    device : str
        Torch device.

    Raises
    ------
    MissingInputError
        If the file does not exist.
    ReadWriteError
        If the file cannot be read.
    UnusableDataError
        If the file is damaged, or is not an encoder.
    """
    if not path.is_file():
        raise MissingInputError(f"{path}: no such file; the detector in this folder needs it")
    try:
        shapes = shapes_of(path)
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
        spec = spec_from_dict(parse_object(metadata.get("spec", "")))
        expected = nn.ModuleDict(layers_of(spec)).state_dict()
        refuse_shapes(shapes, {k: ("F32", tuple(tensor.shape)) for k, tensor in expected.items()})
        weights = load_file(path)
        odd = [name for name, weight in weights.items() if not torch.isfinite(weight).all()]
        if odd:
            raise ValueError(f"{odd[0]} contains NaN or infinity")
        encoder = SiameseAutoencoder(spec, torch.Generator())
        encoder.load_state_dict(weights)
    except OSError as error:
        raise ReadWriteError(f"{path}: cannot be read ({error.strerror})") from error
    except (SafetensorError, ValueError, RuntimeError) as error:
        reason = str(error).partition("\n")[0].rstrip(":")  # torch adds one line per weight
        raise UnusableDataError(
            f"{path}: not an encoder of mri2pet ({reason}); train the detector again, or fetch "
            "it again"
        ) from error
    return encoder.to(device).eval()
