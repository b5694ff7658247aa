"""Norms of the detectors that do not learn: what they compare, and their files."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Literal

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from bids_app.detection.normative import Norm, pseudonormal_difference, smooth_within
from bids_app.errors import MissingInputError, UnusableDataError
from bids_app.files import write_bytes
from bids_app.imaging.volume import Mask, Volume
from bids_app.strict import parse_object

ZSCORE_FWHM = 8.0  # mm; DESIGN, section 4
Detector = Literal["zscore", "pseudonormal"]
SCORES: dict[str, Callable[[Norm, Volume], Volume]] = {
    "zscore": Norm.deficit,
    "pseudonormal": Norm.excess,
}


def measure_uptake(
    pet: Volume, brain: Mask, *, fwhm: float, zooms: tuple[float, float, float]
) -> Volume:
    """Give what ``zscore`` compares: PET smoothed within the brain, (I, J, K)."""
    return smooth_within(pet, brain, fwhm=fwhm, zooms=zooms)


def measure_difference(
    pet: Volume, synthetic: Volume, brain: Mask, *, fwhm: float, zooms: tuple[float, float, float]
) -> Volume:
    """Give what ``pseudonormal`` compares: synthetic minus real PET, smoothed, (I, J, K).

    Smoothed as for ``zscore``, our choice: else the noise of the scan would drown the rest.
    """
    difference = pseudonormal_difference(synthetic, pet)
    return smooth_within(difference, brain, fwhm=fwhm, zooms=zooms)


def save_norm(path: Path, norm: Norm) -> None:
    """Write a norm.

    Raises
    ------
    ReadWriteError
        If it cannot be written.
    UnusableDataError
        If it holds a number that is not finite: nothing is written.
    """
    try:
        _refuse_infinite(norm)
    except ValueError as error:
        raise UnusableDataError(
            f"{path.name}: {error}; look for controls whose PET is not finite, and leave them out"
        ) from error
    arrays = {"mean": np.ascontiguousarray(norm.mean), "sd": np.ascontiguousarray(norm.sd)}
    write_bytes(path, save(arrays, metadata={"norm": json.dumps({"controls": norm.n})}))


def _refuse_infinite(norm: Norm) -> None:
    if not (np.isfinite(norm.mean).all() and np.isfinite(norm.sd).all() and (norm.sd >= 0).all()):
        raise ValueError("mean or SD of controls is not finite")


def load_norm(path: Path) -> Norm:
    """Read a norm.

    Raises
    ------
    MissingInputError
        If there is no such file.
    UnusableDataError
        If it holds no norm.
    """
    if not path.is_file():
        raise MissingInputError(f"{path}: no such file; fit the detector again")
    try:
        with safe_open(path, framework="numpy") as file:
            n = parse_object(file.metadata()["norm"])["controls"]
            mean, sd = (file.get_tensor(name) for name in ("mean", "sd"))
        if not isinstance(n, int) or n < 2 or {mean.ndim, sd.ndim} != {3}:  # noqa: PLR2004
            raise ValueError(f"it tells of {n} controls, {mean.shape} and {sd.shape}")
        norm = Norm(mean, sd, n)
        _refuse_infinite(norm)
        return norm
    except (SafetensorError, KeyError, TypeError, ValueError) as error:
        raise UnusableDataError(
            f"{path}: not the norm of a detector ({error}); fit the detector again"
        ) from error
