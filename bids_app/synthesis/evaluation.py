"""How well a synthetic PET agrees with the real one: what Table 1 is computed from.

The measures are those of Zotova et al. (2021), section 3.2; the mean absolute error, and all
measures inside the brain alone, are ours. No torch here: LPIPS is computed elsewhere.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields

import numpy as np
from numpy.typing import NDArray

from bids_app.imaging.intensity import smooth
from bids_app.imaging.similarity import judged, mean_absolute_error, measure, ssim
from bids_app.imaging.volume import Mask, Volume
from bids_app.synthesis.models import (
    CONDITIONED,
    CONDITIONED_WORD,
    CONFIGURATIONS,
    PUBLISHED,
    SECOND_LINES,
    TISSUE,
    WHOLE,
)

FWHM_SWEEP = (0.0, 0.5, 1.0, 1.5, 2.0, 2.5, 3.0)  # mm; the range of section 3.2, the steps are ours
BASELINES = ("baseline-mean-pet", "baseline-t1w")  # ours: what a reader compares a generator with
_FIRST_LINES = {
    **{name: row.configuration for name, row in PUBLISHED.items()},
    **{
        name: f"{CONDITIONED_WORD} {PUBLISHED[row].configuration}"
        for name, row in CONDITIONED.items()
    },
    TISSUE: CONFIGURATIONS[WHOLE],
    **dict.fromkeys(BASELINES, "baseline"),
}
# Name → configuration, in the order of the table
ROWS: dict[str, str] = {
    line: configuration
    for name, configuration in _FIRST_LINES.items()
    for line in (name, SECOND_LINES.get(name))
    if line is not None
}


@dataclass(frozen=True)
class Scores:
    """Agreement of one synthetic PET with the real one.

    Parameters
    ----------
    ssim, ssim_brain : float
        Structural similarity, -1 to 1, over the whole volume and in the brain.
    psnr, psnr_brain : float
        Peak signal to noise ratio in dB; infinite where both are equal.
    lpips, lpips_brain : float
        Learned perceptual distance, from 0; nan where no weights were given.
    mae, mae_brain : float
        Mean absolute error, in the unit of the images, 0 to 1.
    suvr_error, suvr_bias : float
        In %: mean over regions of the difference to the real PET in the ratio of the region's mean
        to the brain's, without and with its sign. nan where no atlas was given.
    asymmetry_agreement : float
        Correlation over pairs of regions of 200 (L - R) / (L + R), -1 to 1; nan where no atlas was
        given, or all pairs are alike.
    """

    ssim: float
    psnr: float
    lpips: float
    mae: float
    ssim_brain: float
    psnr_brain: float
    lpips_brain: float
    mae_brain: float
    suvr_error: float = math.nan
    suvr_bias: float = math.nan
    asymmetry_agreement: float = math.nan


METRICS = tuple(field.name for field in fields(Scores))  # in the order of the tables


def score(
    synthetic: Volume,
    real: Volume,
    brain: Mask,
    lpips: tuple[float, float] = (math.nan, math.nan),
    *,
    covered: Mask | None = None,
    regions: NDArray[np.integer] | None = None,
) -> Scores:
    """Compare a synthetic PET with the real one.

    Parameters
    ----------
    synthetic, real : ndarray, (I, J, K)
        Intensities in [0, 1] on one grid; ``synthetic`` as it is written, smoothed and masked.
    brain : ndarray of bool, (I, J, K)
        The brain on that grid.
    lpips : tuple of float
        Over the whole volume and in the brain, from whoever has the weights.
    covered : ndarray of bool, (I, J, K), optional
        What the real PET covers; all by default. What it does not counts in no measure.
    regions : ndarray of int, (I, J, K), optional
        Labels of an atlas: 2n - 1 on the left, 2n on the right, the last one on both; 0 for none.
    """
    measures = measure(synthetic, real, brain, covered)
    voxels, _ = judged(brain, np.ones_like(brain) if covered is None else covered)
    regional = (math.nan,) * 3
    if regions is not None:
        regional = compare_regions(synthetic, real, np.where(voxels & brain, regions, 0))
    return Scores(
        ssim=measures.ssim,
        psnr=measures.psnr,
        lpips=lpips[0],
        mae=mean_absolute_error(synthetic, real, voxels),
        ssim_brain=measures.ssim_brain,
        psnr_brain=measures.psnr_brain,
        lpips_brain=lpips[1],
        mae_brain=mean_absolute_error(synthetic, real, voxels & brain),
        suvr_error=regional[0],
        suvr_bias=regional[1],
        asymmetry_agreement=regional[2],
    )


FEWEST_VOXELS = 4  # of a region, to be compared; our choice
FEWEST_PAIRS = 3  # of regions, to correlate their asymmetry; our choice


def compare_regions(
    synthetic: Volume, real: Volume, regions: NDArray[np.integer]
) -> tuple[float, float, float]:
    """Compare regional means, over the mean of all regions' voxels; see :class:`Scores`.

    Parameters
    ----------
    synthetic, real : ndarray, (I, J, K)
        On one grid, any unit.
    regions : ndarray of int, (I, J, K)
        As of :func:`score`; 0 where nothing counts.

    Returns
    -------
    suvr_error, suvr_bias, asymmetry_agreement : float
        As :class:`Scores` has them.
    """
    counts = np.bincount(regions.ravel())
    usable = np.flatnonzero(counts >= FEWEST_VOXELS)[1:]  # 0 is no region
    ratios = []
    for pet in (synthetic, real):
        sums = np.bincount(regions.ravel(), pet.ravel())
        means = np.divide(sums, counts, out=np.full(sums.shape, np.nan), where=counts > 0)
        ratios.append(means / (sums[1:].sum() / max(counts[1:].sum(), 1)))
    synthetic_ratios, real_ratios = ratios
    if not usable.size or not (real_ratios[usable] > 0).all():
        return math.nan, math.nan, math.nan
    relative = 100 * (synthetic_ratios[usable] / real_ratios[usable] - 1)
    left = np.array([n for n in usable if n % 2 and n + 1 in usable], np.intp)
    asymmetries = [200 * (r[left] - r[left + 1]) / (r[left] + r[left + 1]) for r in ratios]
    return float(np.abs(relative).mean()), float(relative.mean()), _correlate(*asymmetries)


def _correlate(one: NDArray[np.float64], other: NDArray[np.float64]) -> float:
    if one.size < FEWEST_PAIRS or not (np.ptp(one) > 0 and np.ptp(other) > 0):
        return math.nan
    return float(np.corrcoef(one, other)[0, 1])


def smooth_in_brain(
    unsmoothed: Volume, brain: Mask, *, fwhm: float, zooms: tuple[float, float, float]
) -> Volume:
    """Finish a synthetic PET as :class:`~bids_app.interfaces.synthesis.SynthesizePET` does.

    Parameters
    ----------
    unsmoothed : ndarray, (I, J, K)
        What the tiles merge to, intensities in [0, 1].
    brain : ndarray of bool, (I, J, K)
        The brain on its grid.
    fwhm : float
        Of the Gaussian, in mm.
    zooms : tuple of float
        Voxel size in mm along each axis.

    Returns
    -------
    ndarray, (I, J, K)
        float32, smoothed, then 0 outside the brain.
    """
    finished = smooth(unsmoothed, fwhm, zooms)
    finished[~brain] = 0
    return finished


def sweep(
    unsmoothed: Volume,
    real: Volume,
    brain: Mask,
    *,
    zooms: tuple[float, float, float],
    covered: Mask | None = None,
) -> dict[float, float]:
    """Measure what smoothing does to SSIM: section 3.2, where 1.5 mm was best.

    Parameters
    ----------
    unsmoothed : ndarray, (I, J, K)
        What the tiles merge to, before smoothing and masking, intensities in [0, 1].
    real : ndarray, (I, J, K)
        The real PET in [0, 1], 0 outside the brain.
    brain : ndarray of bool, (I, J, K)
        The brain on their grid.
    zooms : tuple of float
        Voxel size in mm along each axis.
    covered : ndarray of bool, (I, J, K), optional
        What the real PET covers; all by default.

    Returns
    -------
    dict
        FWHM in mm, those of ``FWHM_SWEEP`` → SSIM over the whole volume.
    """
    _, windows = judged(brain, np.ones_like(brain) if covered is None else covered)
    return {
        fwhm: ssim(smooth_in_brain(unsmoothed, brain, fwhm=fwhm, zooms=zooms), real, windows)
        for fwhm in FWHM_SWEEP
    }


@dataclass(frozen=True)
class ScoreRecord:
    """How one model, or baseline, did for one visit that it was not trained on.

    Parameters
    ----------
    model : str
        A key of ``ROWS``.
    participant, session : str, str or None
        Labels without ``sub-`` and ``ses-``.
    fold : int
        The fold the participant was left out of, from 1.
    scores : Scores
        Of the PET as it is written.
    sweep : mapping
        SSIM by FWHM in mm, as :func:`sweep` gives it; empty for baselines and second lines.
    """

    model: str
    participant: str
    session: str | None
    fold: int
    scores: Scores
    sweep: Mapping[float, float] = field(default_factory=dict)


def records_to_json(records: Sequence[ScoreRecord], basis: str = "") -> dict[str, object]:
    """Tell records in plain values that JSON can hold; nan becomes null, infinity a word.

    Parameters
    ----------
    records : sequence of ScoreRecord
        Of one fold.
    basis : str
        A digest of what they rest on; empty if that is not known. Records of models can be
        compared where it is the same.
    """
    return {
        "Basis": basis,
        "Records": [
            {
                **asdict(record),
                "scores": {k: _plain(value) for k, value in asdict(record.scores).items()},
                "sweep": {f"{fwhm:g}": _plain(value) for fwhm, value in record.sweep.items()},
            }
            for record in records
        ],
    }


def basis_from_json(content: Mapping[str, object]) -> str:
    """Read the digest of what records rest on; empty where none is told."""
    return str(content.get("Basis", ""))


def records_from_json(content: Mapping[str, object]) -> list[ScoreRecord]:
    """Read what :func:`records_to_json` told.

    Raises
    ------
    ValueError
        If it is something else.
    """
    try:
        rows = content["Records"]
        if not isinstance(rows, list):
            raise TypeError("no list")
        return [
            ScoreRecord(
                **{
                    **row,
                    "scores": Scores(**{k: _number(value) for k, value in row["scores"].items()}),
                    "sweep": {float(k): _number(value) for k, value in row["sweep"].items()},
                }
            )
            for row in rows
        ]
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"no records of an evaluation: {error}") from error


def _plain(value: float) -> float | str | None:
    if math.isnan(value):
        return None
    return float(value) if math.isfinite(value) else str(float(value))


def _number(value: float | str | None) -> float:
    return math.nan if value is None else float(value)
