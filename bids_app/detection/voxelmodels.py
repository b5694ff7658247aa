"""One-class SVMs of many voxels on disk, as compactly as scores allow."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load, save

from bids_app.detection.oneclass import VoxelwiseOneClassSVM
from bids_app.errors import MissingInputError, ReadWriteError, UnusableDataError
from bids_app.files import write_bytes

NAMES = ("n_support", "support_vectors", "dual_coef", "gamma", "offset")


@dataclass(frozen=True)
class VoxelModels:
    """One-class SVMs of the voxels of a slab, one after another.

    Support vectors are kept in float16 (our choice: a latent's error is then 1/2000 of itself),
    coefficients, gamma and offset in float32.

    Parameters
    ----------
    n_support : ndarray of uint16, (voxels,)
        How many support vectors each voxel has.
    support_vectors : ndarray of float16, (total, features)
        Of one voxel after another.
    dual_coef : ndarray of float32, (total,)
        Their coefficients.
    gamma, offset : ndarray of float32, (voxels,)
        Of the kernel; and the score on the boundary.
    """

    n_support: NDArray[np.uint16]
    support_vectors: NDArray[np.float16]
    dual_coef: NDArray[np.float32]
    gamma: NDArray[np.float32]
    offset: NDArray[np.float32]

    @property
    def starts(self) -> NDArray[np.int64]:
        """Where the support vectors of each voxel begin, and where the last one's end."""
        return np.concatenate([[0], np.cumsum(self.n_support, dtype=np.int64)])

    def part(self, voxels: slice, *, threads: int) -> VoxelwiseOneClassSVM:
        """Make the estimator of some of the voxels."""
        first, last, _ = voxels.indices(len(self.n_support))
        begin, end = self.starts[[first, last]]
        return VoxelwiseOneClassSVM.from_support(
            self.support_vectors[begin:end].astype(np.float32), self.dual_coef[begin:end],
            self.n_support[voxels], gamma=self.gamma[voxels], offset=self.offset[voxels],
            threads=threads,
        )  # fmt: skip


def keep(estimator: VoxelwiseOneClassSVM) -> VoxelModels:
    """Keep what scoring needs of a fitted estimator."""
    return VoxelModels(
        n_support=estimator.n_support_.astype(np.uint16),
        support_vectors=estimator.support_vectors_.astype(np.float16),
        dual_coef=estimator.dual_coef_.astype(np.float32),
        gamma=estimator.gamma_.astype(np.float32),
        offset=estimator.offset_.astype(np.float32),
    )


def join(parts: Sequence[VoxelModels], features: int) -> VoxelModels:
    """Join the models of voxels that follow one another; of none, give models of no voxel."""
    none = VoxelModels(
        np.zeros(0, np.uint16), np.zeros((0, features), np.float16),
        *(np.zeros(0, np.float32) for _ in range(3)),
    )  # fmt: skip
    every = [none, *parts]
    return VoxelModels(*(np.concatenate([getattr(one, name) for one in every]) for name in NAMES))


def save_models(path: Path, models: VoxelModels) -> None:
    """Write models; the file is whole or absent.

    Raises
    ------
    ReadWriteError
        If it cannot be written.
    """
    write_bytes(path, save({name: getattr(models, name) for name in NAMES}))


def load_models(path: Path) -> VoxelModels:
    """Read models.

    Raises
    ------
    MissingInputError
        If there is no such file.
    ReadWriteError
        If it cannot be read.
    UnusableDataError
        If it holds something else.
    """
    if not path.is_file():
        raise MissingInputError(f"{path}: no such file; fit the detector again, or fetch it again")
    try:
        arrays = load(path.read_bytes())
        models = VoxelModels(**arrays)
        vectors = {models.starts[-1], len(models.dual_coef), len(models.support_vectors)}
        if len(vectors) > 1 or not len(models.n_support) == len(models.gamma) == len(models.offset):
            raise ValueError("its parts do not belong together")
    except OSError as error:
        raise ReadWriteError(f"{path}: cannot be read ({error.strerror})") from error
    except (SafetensorError, TypeError, ValueError) as error:
        raise UnusableDataError(
            f"{path}: not the one-class SVMs of a detector ({error}); fit the detector again, or "
            "fetch it again"
        ) from error
    return models
