"""Agreement of synthetic PET with real PET, from which Table 1 is computed.

The measures are those of Zotova et al. (2021), section 3.2; the mean absolute error, and all
measures restricted to the brain, are ours. This module does not import torch: LPIPS is computed
elsewhere.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace

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

FWHM_SWEEP = (0.0, 0.5, 1.0, 1.5, 2.0, 2.5, 3.0)  # mm; range of section 3.2, our steps
BASELINES = ("baseline-mean-pet", "baseline-t1w")  # ours, to compare generators with
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
    """Agreement of one synthetic PET with the real one; nan where no voxel can be compared.

    Parameters
    ----------
    ssim, ssim_brain : float
        Structural similarity, -1 to 1, over the whole volume and in the brain.
    psnr, psnr_brain : float
        Peak signal-to-noise ratio in dB; infinite if both images are equal.
    lpips, lpips_brain : float
        Learned perceptual distance, at least 0; nan if no weights were given.
    mae, mae_brain : float
        Mean absolute error, in the unit of the images, 0 to 1.
    suvr_error, suvr_bias : float
        Absolute and signed relative error, in %, of the ratio of a region's mean to the brain's,
        averaged over regions; nan if no atlas was given.
    asymmetry_agreement : float
        Correlation of the asymmetry 200 (L - R) / (L + R) between both images over pairs of
        regions, -1 to 1; nan if no atlas was given or all pairs are alike.
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


METRICS = tuple(field.name for field in fields(Scores))  # in table order


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
        Intensities in [0, 1] on one grid; ``synthetic`` as written, smoothed and masked.
    brain : ndarray of bool, (I, J, K)
        Brain mask on that grid.
    lpips : tuple of float
        LPIPS over the whole volume and in the brain, computed by the caller.
    covered : ndarray of bool, (I, J, K), optional
        Voxels covered by the real PET; all by default. Others are ignored by all measures.
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


FEWEST_VOXELS = 4  # per region, to compare its means; our choice
FEWEST_PAIRS = 3  # of regions, to correlate their asymmetry; our choice


def compare_regions(
    synthetic: Volume, real: Volume, regions: NDArray[np.integer]
) -> tuple[float, float, float]:
    """Compare regional means, each relative to the mean over all regions' voxels.

    Parameters
    ----------
    synthetic, real : ndarray, (I, J, K)
        PET on one grid, in any unit.
    regions : ndarray of int, (I, J, K)
        Labels of an atlas, see :func:`score`; 0 for voxels to ignore.

    Returns
    -------
    suvr_error, suvr_bias, asymmetry_agreement : float
        See :class:`Scores`.
    """
    counts = np.bincount(regions.ravel())
    usable = np.flatnonzero(counts[1:] >= FEWEST_VOXELS) + 1  # 0 is no region
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
    """Smooth and mask a raw prediction like :class:`~bids_app.interfaces.synthesis.SynthesizePET`.

    Parameters
    ----------
    unsmoothed : ndarray, (I, J, K)
        Merged tiles, intensities in [0, 1].
    brain : ndarray of bool, (I, J, K)
        Brain mask on the same grid.
    fwhm : float
        Full width at half maximum of the Gaussian, in mm.
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
    """Compute the SSIM for each width of smoothing; in section 3.2, 1.5 mm was best.

    Parameters
    ----------
    unsmoothed : ndarray, (I, J, K)
        Merged tiles, before smoothing and masking, intensities in [0, 1].
    real : ndarray, (I, J, K)
        Real PET in [0, 1], 0 outside the brain.
    brain : ndarray of bool, (I, J, K)
        Brain mask on the same grid.
    zooms : tuple of float
        Voxel size in mm along each axis.
    covered : ndarray of bool, (I, J, K), optional
        Voxels covered by the real PET; all by default.

    Returns
    -------
    dict
        FWHM in mm, from ``FWHM_SWEEP`` → SSIM over the whole volume; empty without SSIM.
    """
    _, windows = judged(brain, np.ones_like(brain) if covered is None else covered)
    if not windows.any():
        return {}
    return {
        fwhm: ssim(smooth_in_brain(unsmoothed, brain, fwhm=fwhm, zooms=zooms), real, windows)
        for fwhm in FWHM_SWEEP
    }


@dataclass(frozen=True)
class ScoreRecord:
    """Scores of one model or baseline for one held-out visit.

    Parameters
    ----------
    model : str
        A key of ``ROWS``.
    participant, session : str, str or None
        Labels without ``sub-`` and ``ses-``.
    fold : int
        Fold that the participant was left out of, counted from 1.
    scores : Scores
        Scores of the PET as written.
    sweep : mapping
        FWHM in mm → SSIM, see :func:`sweep`; empty for baselines and second lines.
    """

    model: str
    participant: str
    session: str | None
    fold: int
    scores: Scores
    sweep: Mapping[float, float] = field(default_factory=dict)


def records_to_json(
    records: Sequence[ScoreRecord], basis: str = "", lpips: str = ""
) -> dict[str, object]:
    """Convert records to plain values for JSON; nan becomes null, and infinity a string.

    Parameters
    ----------
    records : sequence of ScoreRecord
        Records of one fold.
    basis : str
        Digest of the data they are based on; empty if unknown. Only records with the same digest
        can be compared between models.
    lpips : str
        Weights with which LPIPS was computed; empty if it was not, or if they are unknown. LPIPS of
        other weights cannot be compared.
    """
    return {
        "Basis": basis,
        "LPIPSWeights": lpips,
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
    """Return the digest of the data that records are based on; empty if there is none."""
    return str(content.get("Basis", ""))


def lpips_from_json(content: Mapping[str, object]) -> str:
    """Return the weights with which LPIPS of records was computed; empty if they are unknown."""
    return str(content.get("LPIPSWeights", ""))


def without_lpips(record: ScoreRecord) -> ScoreRecord:
    """Return a record whose LPIPS is nan."""
    scores = replace(record.scores, lpips=math.nan, lpips_brain=math.nan)
    return replace(record, scores=scores)


def records_from_json(content: Mapping[str, object]) -> list[ScoreRecord]:
    """Rebuild records from the values of :func:`records_to_json`.

    Raises
    ------
    ValueError
        If the values are not such records.
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
