"""Comparison of the distributions of synthetic and real PET, as seen by a detector.

Synthetic PET of controls and real PET of controls held out by a fold are given to the encoder and
the one-class SVMs of that fold, which were trained on real PET alone. If they cannot tell them
apart, synthetic controls may be used beside real ones in a training set. This is our addition,
after the task-oriented evaluation of synthetic PET in Zotova et al. (2025), arXiv:2505.07364.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from bids_app.imaging.volume import Mask, Volume

WHOLE = "brain"  # name of the region that is the whole brain
REAL, SYNTHETIC = "real", "synthetic"
PATCHES = 5000  # per PET; our choice
FEWEST_VOXELS = 8  # of a region that is reported; our choice
ALIKE = (0.2, 0.8)  # range of areas under the ROC curve, inclusive; our choice
Verdict = Literal["alike", "too typical", "too unusual"]


@dataclass(frozen=True)
class CheckedPet:
    """Measures of a control's PET by the detectors of one fold, in one region.

    Parameters
    ----------
    participant_id : str
        Participant with ``sub-``.
    session_id : str or None
        Session with ``ses-``.
    kind : {"real", "synthetic"}
        Held-out real PET, or synthetic PET.
    fold : int
        Number of the fold, from 1; it was not trained on this participant.
    region : str
        Region of the atlas, or ``brain``.
    reconstruction_error : float or None
        Mean squared error of the autoencoder over patches centred in the region; intensities are in
        [0, 1]. None if no patch was drawn.
    mean_score : float
        Mean score of the one-class SVMs; above 0 lies outside the boundary of the controls.
    above_zero : float
        Share of voxels that score above 0, 0 to 1.
    """

    participant_id: str
    session_id: str | None
    kind: str
    fold: int
    region: str
    reconstruction_error: float | None
    mean_score: float
    above_zero: float


def draw_centres(brain: Mask) -> NDArray[np.intp]:
    """Draw the centres of the patches to reconstruct, (N, 3); the same for the same brain."""
    places = np.argwhere(brain)
    if len(places) <= PATCHES:
        return places
    chosen = np.random.default_rng(0).choice(len(places), PATCHES, replace=False)
    return places[np.sort(chosen)]


def measure_regions(
    scores: Volume,
    errors: NDArray[np.floating],
    centres: NDArray[np.intp],
    brain: Mask,
    *,
    regions: NDArray[np.integer],
    names: Mapping[int, str],
) -> list[tuple[str, float | None, float, float]]:
    """Summarise a PET as seen by one fold, in the whole brain and in each region.

    Parameters
    ----------
    scores : ndarray, (I, J, K)
        Scores of one-class SVMs, without direction; NaN where unknown.
    errors : ndarray, (N,)
        Mean squared reconstruction errors of patches.
    centres : ndarray of int, (N, 3)
        Centres of those patches.
    brain : ndarray of bool, (I, J, K)
        Mask of the analysed brain.
    regions : ndarray of int, (I, J, K)
        Labels of an atlas.
    names : mapping
        Label → name.

    Returns
    -------
    list of tuple
        Region, mean reconstruction error, mean score, and share of scores above 0; regions with too
        few voxels are left out.
    """
    known = brain & np.isfinite(scores)
    labels = regions[tuple(centres.T)]
    parts = [(WHOLE, known, np.ones(len(centres), bool))]
    parts += [(name, known & (regions == k), labels == k) for k, name in names.items()]
    return [
        (
            name,
            float(errors[drawn].mean()) if drawn.any() else None,
            float(scores[inside].mean()),
            float((scores[inside] > 0).mean()),
        )
        for name, inside, drawn in parts
        if np.count_nonzero(inside) >= FEWEST_VOXELS
    ]


@dataclass(frozen=True)
class Comparison:
    """Synthetic PET compared with held-out real PET in one region.

    Parameters
    ----------
    region : str
        Region of the atlas, or ``brain``.
    real, synthetic : int
        Number of participants of each kind.
    error_real, error_synthetic, score_real, score_synthetic : float
        Means over participants; NaN if no patch was drawn.
    error_area, score_area : float
        Area under the ROC curve: the share of pairs in which the synthetic PET has the higher
        value; 0.5 if both are alike.
    """

    region: str
    real: int
    synthetic: int
    error_real: float
    error_synthetic: float
    score_real: float
    score_synthetic: float
    error_area: float
    score_area: float

    @property
    def verdict(self) -> Verdict:
        """Whether scores of synthetic PET are like those of real PET, lower, or higher."""
        low, high = ALIKE
        if self.score_area < low:
            return "too typical"
        return "too unusual" if self.score_area > high else "alike"


def compare_kinds(checked: Sequence[CheckedPet]) -> list[Comparison]:
    """Compare synthetic with held-out real PET in each region, the whole brain first.

    A participant seen by several folds counts once, with the mean.

    Examples
    --------
    >>> rows = [CheckedPet(f"sub-{n}", None, REAL, 1, WHOLE, 0.2, 0.01 * n, 0.5) for n in (1, 2)]
    >>> rows += [CheckedPet("sub-3", None, SYNTHETIC, f, WHOLE, 0.1, -0.02, 0.1) for f in (1, 2)]
    >>> found = compare_kinds(rows)[0]
    >>> found.synthetic, found.score_area, found.verdict
    (1, 0.0, 'too typical')
    """
    comparisons = []
    for region in dict.fromkeys(row.region for row in checked):
        in_region = [row for row in checked if row.region == region]
        errors, scores = (
            [_by_person(in_region, kind, name) for kind in (REAL, SYNTHETIC)]
            for name in ("reconstruction_error", "mean_score")
        )
        if min(map(len, scores)) > 0:
            areas = [_area(*pair) for pair in (errors, scores)]
            means = [float(np.mean(x)) if len(x) else np.nan for x in (*errors, *scores)]
            comparisons.append(Comparison(region, len(scores[0]), len(scores[1]), *means, *areas))
    return comparisons


def _by_person(rows: Iterable[CheckedPet], kind: str, name: str) -> NDArray[np.float64]:
    people: dict[str, list[float]] = {}
    for row in rows:
        value = getattr(row, name)
        if row.kind == kind and value is not None:
            people.setdefault(row.participant_id, []).append(value)
    return np.array([np.mean(values) for values in people.values()], float)


def _area(real: NDArray[np.float64], synthetic: NDArray[np.float64]) -> float:
    if not len(real) or not len(synthetic):
        return np.nan
    pairs = len(real) * len(synthetic)
    return float(stats.mannwhitneyu(synthetic, real).statistic) / pairs
