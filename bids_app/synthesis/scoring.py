"""Score what generators, and baselines, make of visits they have not seen: Table 1's cells."""

from collections.abc import Iterable, Mapping
from dataclasses import asdict
from math import isnan
from pathlib import Path

import numpy as np
from torch import nn

from bids_app.imaging.volume import Volume
from bids_app.synthesis.evaluation import (
    BASELINES,
    Record,
    records_to_json,
    score,
    smooth_in_brain,
    sweep,
)
from bids_app.synthesis.inference import predict, refuse_flat
from bids_app.synthesis.lpips import Lpips, load_lpips, volume_lpips
from bids_app.synthesis.tiling import Tiling
from bids_app.synthesis.volumes import Volumes, open_volumes


def _refuse_odd(scores: Mapping[str, float], *, lpips: bool) -> None:
    """Refuse scores that are no numbers; PSNR of an image and itself is infinite."""
    for name, value in scores.items():
        if isnan(value) and (lpips or not name.startswith("lpips")):
            raise FloatingPointError(f"its {name} is not a number")


class Scorer:
    """Gathers the records of one fold.

    Parameters
    ----------
    model : str
        Name of the row; baselines have their own.
    fold : int
        From 1.
    fwhm : float
        Smoothing of a synthetic PET, in mm.
    lpips_weights : Path or None
        As :func:`bids_app.synthesis.lpips.load_lpips` wants them; None leaves LPIPS out.
    device : str
        A torch device.
    """

    def __init__(
        self, model: str, fold: int, fwhm: float, lpips_weights: Path | None, device: str
    ) -> None:
        self.model, self.fold, self.fwhm = model, fold, fwhm
        self._lpips: Lpips | None = None
        if lpips_weights is not None:
            self._lpips = load_lpips(lpips_weights, device)
        self.records: list[Record] = []

    def _record(self, model: str, visit: Volumes, pet: Volume, by_fwhm: dict[float, float]) -> None:
        real, brain = np.asarray(visit.pet), np.asarray(visit.brain)
        distance: tuple[float, float] = (np.nan, np.nan)
        if self._lpips is not None:  # what the real PET does not cover is 0 in both
            shown = pet if visit.hole is None else np.where(visit.hole, 0, pet)
            distance = volume_lpips(self._lpips, shown, real, brain & visit.covered)
        scores = score(pet, real, brain, distance, covered=visit.covered)
        _refuse_odd(asdict(scores), lpips=self._lpips is not None)
        owner = visit.owner
        self.records.append(
            Record(model, owner.participant, owner.session, self.fold, scores, by_fwhm)
        )

    def score_generator(self, visit: Volumes, generator: nn.Module, tiling: Tiling) -> Volume:
        """Synthesize the PET of a visit, score it, and give it, (I, J, K) in [0, 1].

        Raises
        ------
        FloatingPointError
            If the generator predicts no PET, or a score is not a number.
        """
        raw = predict(np.asarray(visit.t1w), generator, tiling)
        refuse_flat(raw, np.asarray(visit.t1w))
        zooms = visit.owner.zooms
        pet = smooth_in_brain(raw, visit.brain, fwhm=self.fwhm, zooms=zooms)
        swept = sweep(raw, visit.pet, visit.brain, zooms=zooms, covered=visit.covered)
        self._record(self.model, visit, pet, swept)
        return pet

    def score_baselines(self, visit: Volumes, mean: Volume) -> None:
        """Score the mean training PET, (I, J, K) in [0, 1], and the visit's own T1w."""
        inside = np.where(visit.brain, mean, 0).astype(np.float32)
        for name, volume in zip(BASELINES, (inside, np.asarray(visit.t1w)), strict=True):
            self._record(name, visit, volume, {})

    def told(self) -> dict[str, object]:
        """Give the records in plain values."""
        return records_to_json(self.records)


def mean_pet(folders: Iterable[Path]) -> Volume:
    """Average the real PET of visits, (I, J, K), each where it covers the brain; 0 where none does.

    One after the other is held.
    """
    total, count = None, np.zeros((), np.int64)
    for visit in map(open_volumes, folders):
        pet = np.where(visit.covered, visit.pet, 0).astype(np.float64)
        total = pet if total is None else total + pet
        count = count + visit.covered
    if total is None:
        raise ValueError("no visits to average")
    return (total / np.maximum(count, 1)).astype(np.float32)
