"""What an encoder is and how it is trained, as data; read without torch."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass

from bids_app.strict import Check, is_number, is_whole, refuse_odd

SHRINKING = 6  # voxels that a patch loses to the first two convolutions: 5×5 and 3×3
_CHECKS: dict[str, Check] = {
    "patch": is_whole(1, 255), "latents": is_whole(1, 65_536), "alpha": is_number(-1e6, 1e6),
    "epochs": is_whole(1, 1_000_000), "pairs_per_epoch": is_whole(1, 100_000_000),
    "batch_size": is_whole(1, 1_000_000), "learning_rate": is_number(0, 10),
}  # fmt: skip  # limits are our choice
STRIDE = 3  # of the third convolution


@dataclass(frozen=True)
class EncoderSpec:
    """A siamese autoencoder of axial patches.

    Parameters
    ----------
    patch : int
        Edge of a patch in voxels: 15 in Zotova et al. (2021), section 2.2. Others are 21, 27 and
        so on: odd, with a whole number of steps of the third convolution.
    latents : int
        Values that a patch becomes: 64, as there.
    alpha : float
        Weight of the similarity of latents against the reconstruction error; our choice, the
        paper gives none. On simulated PET, detection was alike from 0 to 0.03; with 0.3 latents
        lay along 2 directions, and lesions stood out less.
    epochs, pairs_per_epoch : int
        How long it is trained, and how many pairs of patches are drawn anew for an epoch; our
        choice: under a minute of one core, at any resolution (benchmarks/latents.py).
    batch_size : int
        Pairs a step; our choice.
    learning_rate : float
        Of Adam at the first step; it falls to 0 along half a cosine. Our choice.
    """

    patch: int = 15
    latents: int = 64
    alpha: float = 0.01
    epochs: int = 20
    pairs_per_epoch: int = 10_000
    batch_size: int = 64
    learning_rate: float = 5e-3

    def __post_init__(self) -> None:
        fits = self.patch % 2 == 1 and (self.patch - SHRINKING) % STRIDE == 0
        if not fits or self.side < 1:
            raise ValueError(f"patches are 15, 21, 27, … voxels wide, not {self.patch}")
        if self.latents < 1 or self.latents % self.side**2:
            raise ValueError(f"latents are {self.side}×{self.side} times a whole number")
        counts = (self.epochs, self.pairs_per_epoch, self.batch_size)
        if min(counts) < 1:
            raise ValueError(f"epochs, pairs and batches have at least 1, not {min(counts)}")

    @property
    def side(self) -> int:
        """Latents along each axis of a patch.

        Examples
        --------
        15 → 11 → 9 → 3 → 2, DESIGN.md, section 4:

        >>> EncoderSpec().side
        2
        """
        return (self.patch - SHRINKING) // STRIDE - 1


def spec_to_dict(spec: EncoderSpec) -> dict[str, object]:
    """Tell a spec in plain values, as the file of an encoder holds it.

    Examples
    --------
    >>> spec_from_dict(spec_to_dict(EncoderSpec(epochs=3))) == EncoderSpec(epochs=3)
    True
    """
    return asdict(spec)


def spec_from_dict(values: Mapping[str, object]) -> EncoderSpec:
    """Build the spec that plain values tell of.

    Raises
    ------
    ValueError
        If a value is missing, not known, or makes no encoder.
    """
    try:
        if not isinstance(values, Mapping):
            raise ValueError("no mapping")
        refuse_odd(values, _CHECKS)
        return EncoderSpec(**values)  # type: ignore[arg-type]
    except ValueError as error:
        raise ValueError(f"not an encoder's spec: {error}") from error
