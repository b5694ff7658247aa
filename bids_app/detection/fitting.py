"""Training of the siamese autoencoder. It yields its epochs; whoever iterates saves and stops."""

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import TypeAlias

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F
from torch.optim.lr_scheduler import CosineAnnealingLR

from bids_app.detection.networks import SiameseAutoencoder
from bids_app.detection.patches import draw_pairs, shared_places, whole_patches
from bids_app.detection.spec import EncoderSpec
from bids_app.imaging.volume import Mask, Volume

Holes: TypeAlias = Sequence[Mask | None]


@dataclass(frozen=True)
class Epoch:
    """An epoch that has been run; means over its pairs.

    Parameters
    ----------
    number : int
        From 1.
    loss : float
        What is minimised: twice ``reconstruction`` minus alpha times ``similarity``.
    reconstruction : float
        Mean squared error of a patch, whose intensities are in [0, 1].
    similarity : float
        Cosine between the latents of a pair, -1 to 1.
    variance : float
        Of a latent over places and people, mean over latents; 0 if all patches become one.
    dimensions : float
        Along how many directions latents vary: (sum of v)² / sum of v², v the eigenvalues of
        their covariance. 1 if they lie on a line, the number of latents if there is no
        preferred direction; 0 if nothing varies.
    between_people : float
        Share of that variance that is between two people at one place; 0 if their latents have
        become equal, 1 if places do not differ.
    """

    number: int
    loss: float
    reconstruction: float
    similarity: float
    variance: float
    dimensions: float
    between_people: float


@dataclass(frozen=True)
class Losses:
    """Of a batch of pairs; ``total`` is what is minimised, the others as in :class:`Epoch`."""

    total: Tensor
    reconstruction: Tensor
    similarity: Tensor


def siamese_loss(pairs: Tensor, made: Tensor, latents: Tensor, *, alpha: float) -> Losses:
    """Judge latents of pairs of patches, and what was made of them again.

    Zotova et al. (2021), section 2.2, after Alaverdyan et al. (2020): the error of both patches,
    minus ``alpha`` times the cosine similarity of their latents. The patches keep latents from
    becoming equal, which the similarity alone would be content with.

    Parameters
    ----------
    pairs, made : Tensor, (N, 2, size, size)
        Patches in [0, 1], given and reconstructed.
    latents : Tensor, (N, 2, latents)
        Of both patches of each pair.
    alpha : float
        Weight of the similarity.

    Examples
    --------
    >>> pairs = torch.zeros(1, 2, 15, 15)
    >>> float(siamese_loss(pairs, pairs + 0.5, torch.ones(1, 2, 64), alpha=0.25).total)
    0.25
    """
    reconstruction = F.mse_loss(made, pairs)
    similarity = F.cosine_similarity(latents[:, 0], latents[:, 1]).mean()
    return Losses(2 * reconstruction - alpha * similarity, reconstruction, similarity)


class _Spread:
    """Sums over the latents of an epoch, that tell how they are spread; float64."""

    def __init__(self, size: int) -> None:
        self.count, self.apart = 0, 0.0
        self.total, self.products = np.zeros(size), np.zeros((size, size))

    def add(self, latents: Tensor) -> None:
        """Take the latents of pairs, (N, 2, latents), into account."""
        values = latents.detach().cpu().numpy().astype(np.float64)
        self.apart += float(np.square(values[:, 0] - values[:, 1]).sum())
        flat = values.reshape(-1, values.shape[-1])
        self.count += len(flat)
        self.total += flat.sum(axis=0)
        self.products += flat.T @ flat

    def measure(self) -> tuple[float, float, float]:
        """Give variance, dimensions and between_people of :class:`Epoch`."""
        mean = self.total / self.count
        covariance = self.products / self.count - np.outer(mean, mean)
        variance = float(np.trace(covariance))
        if variance <= np.finfo(np.float64).eps * float(np.trace(self.products)):
            return 0.0, 0.0, 0.0
        within = self.apart / self.count / variance  # of two draws, half the squared difference
        return variance / len(mean), float(variance**2 / np.square(covariance).sum()), within


def _epoch(number: int, losses: Sequence[tuple[float, ...]], spread: _Spread) -> Epoch:
    loss, reconstruction, similarity = np.average(
        [values for *values, _ in losses], axis=0, weights=[size for *_, size in losses]
    ).tolist()
    return Epoch(number, loss, reconstruction, similarity, *spread.measure())


def fit_encoder(
    encoder: SiameseAutoencoder,
    volumes: Sequence[Volume],
    brain: Mask,
    spec: EncoderSpec,
    random: np.random.Generator,
    *,
    holes: Holes = (),
) -> Iterator[Epoch]:
    """Train an encoder where it is, an epoch at a time, with Adam.

    Parameters
    ----------
    encoder : SiameseAutoencoder
        New, of the same spec, on the device to compute on; changed in place.
    volumes : sequence of ndarray, (I, J, K)
        PET of one control each, on one grid, in [0, 1], 0 outside the brain; may lie on disk.
    brain : ndarray of bool, (I, J, K)
        The analysed brain: centres of patches.
    spec : EncoderSpec
        How to train.
    random : numpy.random.Generator
        Draws the pairs.
    holes : sequence of ndarray of bool or None
        What each control's PET lacks of its brain, (I, J, K); None for nothing. No patch that
        touches it is drawn. By default nobody's PET lacks anything.

    Yields
    ------
    Epoch
        When it was run.

    Raises
    ------
    ValueError
        If there are fewer than two controls, no voxel in the brain, or another grid.
    FloatingPointError
        If a loss is not finite.
    """
    if any(volume.shape != brain.shape for volume in volumes):
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
    """Improve an encoder once; give the latents, (N, 2, latents), and the three losses."""
    patches = pairs.flatten(0, 1).unsqueeze(1)
    latents = encoder.encode(patches)
    made = encoder.decode(latents).reshape(pairs.shape)
    latents = latents.unflatten(0, (-1, 2))
    losses = siamese_loss(pairs, made, latents, alpha=alpha)
    optimizer.zero_grad()
    losses.total.backward()
    optimizer.step()
    told = torch.stack([losses.total, losses.reconstruction, losses.similarity]).tolist()
    return latents, tuple(told)


def train_encoder(
    volumes: Sequence[Volume],
    brain: Mask,
    spec: EncoderSpec,
    *,
    seed: int,
    holes: Holes = (),
) -> tuple[SiameseAutoencoder, list[dict[str, float]]]:
    """Train a new encoder on the CPU, from first weights to last epoch.

    Parameters
    ----------
    volumes, brain, spec
        As in :func:`fit_encoder`.
    seed : int
        Of first weights and pairs.
    holes : sequence of ndarray of bool or None
        As in :func:`fit_encoder`.

    Returns
    -------
    SiameseAutoencoder
        Ready to encode.
    list of dict
        Its epochs, in plain values.

    Raises
    ------
    ValueError, FloatingPointError
        As :func:`fit_encoder`.
    """
    encoder = SiameseAutoencoder(spec, torch.Generator().manual_seed(seed))
    epochs = fit_encoder(encoder, volumes, brain, spec, np.random.default_rng(seed), holes=holes)
    history = [asdict(epoch) for epoch in epochs]
    return encoder.eval(), history
