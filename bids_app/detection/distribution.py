"""Whether synthetic PET is distributed as real PET is, as a detector sees both.

Synthetic PET of controls, and real PET of controls that a fold has held out, are shown to the
encoder and the one-class SVMs of that fold, which were trained on real PET alone. If both look
alike to them, synthetic controls may stand beside real ones in a training set. Ours, after the
task-oriented evaluation of synthetic PET in Zotova et al. (2025), arXiv:2505.07364.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from bids_app.imaging.volume import Mask, Volume

WHOLE = "brain"  # the region that is all of it
REAL, SYNTHETIC = "real", "synthetic"
PATCHES = 5000  # of a PET; our choice
FEWEST_VOXELS = 8  # of a region that is told of; our choice
ALIKE = (0.2, 0.8)  # areas under the ROC curve, ends included; our choice
Verdict = Literal["alike", "too typical", "too unusual"]


@dataclass(frozen=True)
class CheckedPet:
    """A control's PET as one fold of detectors sees it, in one region.

    Parameters
    ----------
    participant_id : str
        With ``sub-``.
    session_id : str or None
        With ``ses-``.
    kind : {"real", "synthetic"}
        Held-out real PET, or synthetic.
    fold : int
        From 1; it was not trained on this participant.
    region : str
        Of the atlas, or ``brain``.
    reconstruction_error : float or None
        Mean squared error of the autoencoder over patches whose centre lies there; intensities are
        in [0, 1]. None where no patch was drawn.
    mean_score : float
        Of the one-class SVMs; above 0 lies outside the boundary of the controls.
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
    """Draw the centres of patches that are reconstructed, (N, 3): always the same of a brain."""
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
    """Sum up what one fold sees of a PET: over the whole brain, then region by region.

    Parameters
    ----------
    scores : ndarray, (I, J, K)
        Of one-class SVMs, without direction; NaN where nothing is known.
    errors : ndarray, (N,)
        Of reconstruction, mean squared.
    centres : ndarray of int, (N, 3)
        Of those patches.
    brain : ndarray of bool, (I, J, K)
        What is analysed.
    regions : ndarray of int, (I, J, K)
        Labels of an atlas.
    names : mapping
        Label → name.

    Returns
    -------
    list of tuple
        Region, error of reconstruction, mean score, share above 0; regions with too few voxels are
        left out.
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
    """Synthetic PET against held-out real PET in one region.

    Parameters
    ----------
    region : str
        Of the atlas, or ``brain``.
    real, synthetic : int
        Participants of either kind.
    error_real, error_synthetic, score_real, score_synthetic : float
        Means over participants; NaN where no patch was drawn.
    error_area, score_area : float
        How often a synthetic PET has more than a real one, of all pairs: the area under the ROC
        curve. 0.5 where both are alike.
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

    A participant whom several folds have seen counts once, by the mean.

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
