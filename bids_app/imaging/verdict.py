"""Whether a registration may be believed: pass, doubt or fail, by absolute criteria.

Comparing an image with itself before and after registration tells only that it moved uphill. The
criteria here say what a brain that lies right looks like. Their bounds are our choice, learnt on
real and painted heads that were turned on purpose: docs/results/participant.md has the numbers.
None of them sees a brain whose left and right were exchanged: it is too like its mirror image.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy import ndimage

from bids_app.imaging.similarity import correlation, dice
from bids_app.imaging.smoothing import smooth
from bids_app.imaging.volume import Affine, Mask, Volume, thin, zooms_of

PASS, DOUBT, FAIL = VERDICTS = ("pass", "doubt", "fail")
GRID, BLUR = 4.0, 6.0  # mm: voxels, and FWHM, at which images of all resolutions are compared
PET_BLUR = 6.0  # mm FWHM: what a T1w lets expect becomes about as soft as a PET
HALF = 0.5  # of a coarse voxel is brain
DEPTH = 6.0  # mm from the brain's surface, whose outline alone makes brains alike; our choice
GREY_ABOVE, WHITE_BELOW, FLUID_BELOW = 0.8, 0.45, 0.2  # of expected uptake, grey's being 1
TINY = 1e-6  # of the mean uptake: white matter that has none gives no ratio


@dataclass(frozen=True)
class Criterion:
    """A bound below which a measure is doubted, one below which it fails, and what to say then.

    Parameters
    ----------
    measure : str
        Its name in sidecars.
    doubt, fail : float
        Bounds.
    sentence : str
        With a place for the value, ``{:.2f}`` or the like.
    """

    measure: str
    doubt: float
    fail: float
    sentence: str


@dataclass(frozen=True)
class Judgement:
    """What is thought of a registration.

    Parameters
    ----------
    verdict : {"pass", "doubt", "fail"}
        The worst of all criteria.
    reasons : tuple of str
        A sentence for each criterion that is not passed.
    measures : dict
        What was measured.
    """

    verdict: str
    reasons: tuple[str, ...]
    measures: Mapping[str, float]


# Names of measures in sidecars
LIKENESS, OVERLAP = "CorrelationWithTemplate", "DiceBrainMask"
INSIDE, UPTAKE, CONTRAST = "BrainInsidePET", "CorrelationWithExpectedUptake", "GreyWhiteRatio"
BEHIND = "CorrelationBehindBestPose"  # where it lies, less that in the best pose of a search

T1W_CRITERIA = (
    Criterion(LIKENESS, 0.6, 0.45, "deep in the brain, T1w and template correlate by only {:.2f}"),
    Criterion(OVERLAP, 0.9, 0.8, "the brain masks of T1w and template overlap by only {:.2f}"),
    Criterion(
        BEHIND, -0.04, -0.08,
        "there is a pose in which the T1w is more like the template (correlation {:+.2f} here)",
    ),
)  # fmt: skip
PET_CRITERIA = (
    Criterion(INSIDE, 0.8, 0.5, "only {:.2f} of the brain lies inside the PET"),
    Criterion(
        UPTAKE, 0.5, 0.35,
        "in the brain, the PET correlates by only {:.2f} with the uptake that grey and white "
        "matter of the T1w let expect",
    ),
    Criterion(CONTRAST, 1.05, 1.0, "uptake of grey matter is only {:.2f} of that of white matter"),
    Criterion(
        BEHIND, -0.05, -0.1,
        "there is a pose in which the PET is more like the T1w (correlation {:+.2f} here)",
    ),
)  # fmt: skip


def judge(measures: Mapping[str, float], criteria: Sequence[Criterion]) -> Judgement:
    """Hold measures against criteria; one that was not measured is not held against it.

    Parameters
    ----------
    measures : mapping
        By the names of the criteria; one that is no number fails.
    criteria : sequence of Criterion
        All of them count alike.

    Examples
    --------
    >>> judge({"A": 0.7}, [Criterion("A", 0.8, 0.6, "A is only {:.2f}")])
    Judgement(verdict='doubt', reasons=('A is only 0.70',), measures={'A': 0.7})
    """
    worst, reasons = PASS, []
    for one in criteria:
        if one.measure not in measures:
            continue
        value = measures[one.measure]
        if value >= one.doubt:
            continue
        reasons.append(one.sentence.format(value))
        worst = worse_of(worst, DOUBT if value >= one.fail else FAIL)
    return Judgement(worst, tuple(reasons), dict(measures))


def worse_of(one: str, other: str) -> str:
    """Give the worse of two verdicts.

    Examples
    --------
    >>> worse_of("doubt", "pass")
    'doubt'
    """
    return max(one, other, key=VERDICTS.index)


def told_of(judgement: Judgement) -> dict[str, object]:
    """Give what a sidecar's ``Registration`` tells of a judgement."""
    return {
        "Verdict": judgement.verdict,
        "VerdictReasons": list(judgement.reasons),
        **{name: round(value, 4) for name, value in judgement.measures.items()},
    }


def verdict_of(sidecar: Mapping[str, object]) -> str | None:
    """Read the verdict on a registration: pass, doubt or fail; None where there is none.

    Another word is given as it is, in small letters: people write into sidecars.

    Examples
    --------
    >>> verdict_of({"Registration": {"Verdict": "Doubt"}})
    'doubt'
    """
    told = sidecar.get("Registration")
    found = told.get("Verdict") if isinstance(told, Mapping) else None
    return found.strip().lower() if isinstance(found, str) else None


def reasons_of(registration: Mapping[str, object]) -> list[str]:
    """Read the sentences why a registration is no pass, of a sidecar's ``Registration``."""
    told = registration.get("VerdictReasons")
    return [str(one) for one in told] if isinstance(told, list) else []


def judge_t1w(
    t1w: Volume,
    template: Volume,
    brain: Mask,
    template_brain: Mask,
    affine: Affine,
    *,
    behind: float | None = None,
) -> Judgement:
    """Judge the registration of a T1w to a template.

    Parameters
    ----------
    t1w, template : ndarray, (I, J, K)
        Brains alone, on one grid; any unit.
    brain, template_brain : ndarray of bool, (I, J, K)
        Their masks.
    affine : ndarray, (4, 4)
        Of the grid.
    behind : float, optional
        Correlation in the pose that was found, less that in the best pose of a search.
    """
    (moved, coarse), (fixed, _), (inside, _) = (
        thin(one.astype(np.float32), affine, GRID) for one in (t1w, template, template_brain)
    )
    zooms = zooms_of(coarse)
    deep = ndimage.distance_transform_edt(inside >= HALF, sampling=zooms) > DEPTH
    alike = correlation(smooth(moved, BLUR, zooms), smooth(fixed, BLUR, zooms), deep)
    measures = {LIKENESS: alike, OVERLAP: dice(brain, template_brain)}
    if behind is not None:
        measures[BEHIND] = behind
    return judge(measures, T1W_CRITERIA)


def judge_pet(
    pet: Volume,
    uptake: Volume,
    brain: Mask,
    covered: Mask,
    zooms: tuple[float, float, float],
    *,
    behind: float,
) -> Judgement:
    """Judge the registration of a PET to the T1w of the same person.

    Parameters
    ----------
    pet : ndarray, (I, J, K)
        Any unit, on the grid of the T1w.
    uptake : ndarray, (I, J, K)
        What the T1w lets expect, see :func:`bids_app.imaging.tissue.expected_uptake`.
    brain, covered : ndarray of bool, (I, J, K)
        The brain, and where the PET reaches; nothing else counts.
    zooms : tuple of float
        Of the grid, in mm.
    behind : float
        Correlation in the pose that was found, less that in the best pose of a search.
    """
    seen = brain & covered
    share = float(seen.sum() / max(brain.sum(), 1))
    measures = {INSIDE: share, BEHIND: behind}
    grey = seen & (uptake > GREY_ABOVE)
    white = seen & (uptake > FLUID_BELOW) & (uptake < WHITE_BELOW)
    measures[UPTAKE] = correlation(pet, smooth(uptake, PET_BLUR, zooms), seen)
    if grey.any() and white.any():
        least = TINY * float(np.abs(pet[seen]).mean())  # whatever the unit: 1e-12 Bq/mL, too
        of_white = max(float(pet[white].mean()), least)
        measures[CONTRAST] = float(pet[grey].mean()) / of_white if of_white > 0 else 0.0
    return judge(measures, PET_CRITERIA)
