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
from bids_app.strict import parse_object, shapes_of

ZSCORE_FWHM = 8.0  # mm; DESIGN, section 4
Detector = Literal["zscore", "pseudonormal"]
SCORES: dict[str, Callable[[Norm, Volume], Volume]] = {
    "zscore": Norm.deficit,
    "pseudonormal": Norm.excess,
}


def measure_uptake(
    pet: Volume,
    brain: Mask,
    *,
    fwhm: float,
    zooms: tuple[float, float, float],
    hole: Mask | None = None,
) -> Volume:
    """Give what ``zscore`` compares: PET smoothed within the brain, (I, J, K); NaN near a hole."""
    return smooth_within(pet, brain, fwhm=fwhm, zooms=zooms, hole=hole)


def measure_difference(
    pet: Volume,
    synthetic: Volume,
    brain: Mask,
    *,
    fwhm: float,
    zooms: tuple[float, float, float],
    hole: Mask | None = None,
) -> Volume:
    """Give what ``pseudonormal`` compares: synthetic minus real PET, smoothed, (I, J, K).

    Smoothed as for ``zscore``, our choice: else the noise of the scan would drown the rest.
    """
    difference = pseudonormal_difference(synthetic, pet)
    return smooth_within(difference, brain, fwhm=fwhm, zooms=zooms, hole=hole)


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
    volumes = {"mean": norm.mean, "sd": norm.sd, "counts": norm.counts}
    arrays = {k: np.ascontiguousarray(one) for k, one in volumes.items() if one is not None}
    write_bytes(path, save(arrays, metadata={"norm": json.dumps({"controls": norm.n})}))


def _refuse_infinite(norm: Norm) -> None:
    """Refuse what is no number, but for NaN where not all controls are known."""
    numbers = np.isfinite(norm.mean) & np.isfinite(norm.sd) & (norm.sd >= 0)
    unknown = np.isnan(norm.sd) & (False if norm.counts is None else norm.counts < norm.n)
    if not (numbers | unknown).all():
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
        shapes_of(path)
        with safe_open(path, framework="numpy") as file:
            n = parse_object(file.metadata()["norm"])["controls"]
            mean, sd = (file.get_tensor(name) for name in ("mean", "sd"))
            counts = file.get_tensor("counts") if "counts" in file.keys() else None  # noqa: SIM118
        shapes = {one.shape for one in (mean, sd, counts) if one is not None}
        if not isinstance(n, int) or n < 2 or len(shapes) > 1 or mean.ndim != 3:  # noqa: PLR2004
            raise ValueError(f"it tells of {n} controls, and of volumes of {shapes}")
        norm = Norm(mean, sd, n, counts)
        _refuse_infinite(norm)
        return norm
    except (OSError, SafetensorError, KeyError, TypeError, ValueError) as error:
        raise UnusableDataError(
            f"{path}: not the norm of a detector ({error}); fit the detector again"
        ) from error
