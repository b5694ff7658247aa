"""One-class SVMs of many voxels on disk: which controls support each, and how much."""

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
from bids_app.strict import shapes_of

KINDS: dict[str, type[np.generic]] = {
    "n_support": np.uint16, "support": np.uint16, "dual_coef": np.float32, "gamma": np.float32,
    "offset": np.float64,
}  # fmt: skip
NAMES = tuple(KINDS)


@dataclass(frozen=True)
class VoxelModels:
    """One-class SVMs of the voxels of a slab, one after another.

    Parameters
    ----------
    n_support : ndarray of uint16, (voxels,)
        How many controls support each voxel.
    support : ndarray of uint16, (total,)
        Which: places among the controls of the fold, voxel after voxel.
    dual_coef : ndarray of float32, (total,)
        Their coefficients.
    gamma : ndarray of float32, (voxels,)
        Of the kernel.
    offset : ndarray of float64, (voxels,)
        The score on the boundary.
    """

    n_support: NDArray[np.uint16]
    support: NDArray[np.uint16]
    dual_coef: NDArray[np.float32]
    gamma: NDArray[np.float32]
    offset: NDArray[np.float64]

    def part(
        self, voxels: slice, latents: NDArray[np.float32], *, threads: int
    ) -> VoxelwiseOneClassSVM:
        """Make the estimator of some of the voxels.

        Parameters
        ----------
        voxels : slice
            Which of them.
        latents : ndarray, (voxels, controls, features)
            Of the controls of the fold there, as it was fitted to.
        threads : int
            That share the voxels.
        """
        counts = self.n_support[voxels].astype(np.int64)
        begin = int(self.n_support[: voxels.start].sum(dtype=np.int64))
        own = slice(begin, begin + int(counts.sum()))
        owners = np.repeat(np.arange(len(counts)), counts)
        return VoxelwiseOneClassSVM.from_support(
            latents[owners, self.support[own]], self.dual_coef[own], counts,
            gamma=self.gamma[voxels], offset=self.offset[voxels], threads=threads,
        )  # fmt: skip


def keep(estimator: VoxelwiseOneClassSVM) -> VoxelModels:
    """Keep what, with the controls' latents, makes a fitted estimator again."""
    return VoxelModels(
        n_support=estimator.n_support_.astype(np.uint16),
        support=estimator.support_.astype(np.uint16),
        dual_coef=estimator.dual_coef_.astype(np.float32),
        gamma=estimator.gamma_.astype(np.float32),
        offset=estimator.offset_.astype(np.float64),
    )


def join(parts: Sequence[VoxelModels]) -> VoxelModels:
    """Join the models of voxels that follow one another; of none, give models of no voxel."""
    whole, single = np.zeros(0, np.uint16), np.zeros(0, np.float32)
    every = [VoxelModels(whole, whole, single, single, np.zeros(0)), *parts]
    return VoxelModels(*(np.concatenate([getattr(one, name) for one in every]) for name in NAMES))


def save_models(path: Path, models: VoxelModels) -> None:
    """Write models; the file is whole or absent.

    Raises
    ------
    ReadWriteError
        If it cannot be written.
    UnusableDataError
        If one holds a number that is not finite: nothing is written.
    """
    try:
        _refuse_odd(models)
    except ValueError as error:
        raise UnusableDataError(
            f"{path.name}: {error}, so these one-class SVMs have failed; look for controls whose "
            "PET is not within 0..1, and leave them out"
        ) from error
    write_bytes(path, save({name: getattr(models, name) for name in NAMES}))


def _refuse_odd(models: VoxelModels) -> None:
    for name, kind in KINDS.items():
        array = getattr(models, name)
        if array.dtype != kind or array.ndim != 1:
            raise ValueError(f"{name} is {array.dtype} of {array.ndim} axes, not {kind.__name__}")
        finite = np.isfinite(array)
        if (
            name == "offset" and array.shape == models.n_support.shape
        ):  # NaN where too few controls are known, so that nothing supports
            finite |= np.isnan(array) & (models.n_support == 0)
        if not finite.all():
            raise ValueError(f"{name} holds NaN or infinity")
    if (models.gamma < 0).any():
        raise ValueError("gamma is below 0")


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
        shapes_of(path)
        models = VoxelModels(**load(path.read_bytes()))
        _refuse_odd(models)
        total = {int(models.n_support.sum(dtype=np.int64)), len(models.support)}
        voxels = {len(models.n_support), len(models.gamma), len(models.offset)}
        if len(total | {len(models.dual_coef)}) > 1 or len(voxels) > 1:
            raise ValueError("its parts do not belong together")
    except OSError as error:
        raise ReadWriteError(f"{path}: cannot be read ({error.strerror})") from error
    except (SafetensorError, TypeError, ValueError) as error:
        raise UnusableDataError(
            f"{path}: not the one-class SVMs of a detector ({error}); fit the detector again, or "
            "fetch it again"
        ) from error
    return models
