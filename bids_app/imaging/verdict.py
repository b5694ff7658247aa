"""Verdict on a registration, pass, doubt or fail, by absolute criteria.

An increase in similarity during registration shows only that the optimizer made progress. The
criteria here describe a brain that is registered correctly: it resembles the template or, for a
PET, the uptake expected from grey and white matter of the T1w. Their bounds are our choice, derived
from real and simulated heads that were rotated on purpose: docs/results/participant.md has the
numbers. None of them detects a swap of left and right, because a brain resembles its mirror image.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from bids_app.imaging.intensity import smooth
from bids_app.imaging.similarity import correlation, dice
from bids_app.imaging.volume import Affine, Mask, Volume, box_of_data, downsample, zooms_of

OUTSIDE, FLUID, GREY, WHITE = range(4)
BINS, ROUNDS = 256, 50  # of the histogram; at most, of Lloyd's iteration
START = (0.05, 0.5, 0.9)  # initial quantiles: fluid is the smallest part, white matter a third
UPTAKE_OF_TISSUES = (
    0.0,
    0.05,
    1.0,
    0.3,
)  # outside, fluid, grey, white, relative to grey; our choice, after Heiss et al. (2004),
# J Nucl Med 45:1811, who report 0.25 to 0.4 of grey for white matter


def winsorize(
    volume: Volume, mask: Mask | None = None, *, least: float = 0.1, most: float = 99.9
) -> Volume:
    """Clip the most extreme intensities to percentiles.

    A single hot voxel, 4e4 times the maximum, shifted a registration by 10 mm. PETPrep and fMRIPrep
    winsorize too, with ``--winsorize-image-intensities`` of antsRegistration.

    Parameters
    ----------
    volume : ndarray, (I, J, K)
        Intensities in any unit.
    mask : ndarray of bool, (I, J, K), optional
        Voxels that the percentiles are computed from, and that are changed; all by default.
    least, most : float
        Percentiles of the finite voxels; our choice.

    Returns
    -------
    ndarray, (I, J, K)
        Clipped volume in float32, in the same unit.

    Examples
    --------
    >>> winsorize(np.array([[[0, 1, 2, 900]]], np.float32), least=0, most=200 / 3)
    array([[[0., 1., 2., 2.]]], dtype=float32)
    """
    chosen = np.isfinite(volume) if mask is None else mask & np.isfinite(volume)
    changed = np.nan_to_num(volume).astype(np.float32)
    values = changed[chosen]
    if values.size:
        changed[chosen] = np.clip(values, *np.percentile(values, (least, most)))
    return changed


def classify(t1w: Volume, brain: Mask) -> NDArray[np.uint8]:
    """Classify the voxels of a brain into fluid, grey and white matter by k-means of intensities.

    This is the method of Lloyd (1982), IEEE Trans. Information Theory 28:129-137, in one dimension,
    on a histogram. It ignores location, and is suitable only for means over many voxels.

    Parameters
    ----------
    t1w : ndarray, (I, J, K)
        Intensities in any unit, without bias field.
    brain : ndarray of bool, (I, J, K)
        Brain mask.

    Returns
    -------
    ndarray, (I, J, K)
        Class of each voxel: ``OUTSIDE``, ``FLUID``, ``GREY`` or ``WHITE``.

    Raises
    ------
    ValueError
        If the brain is empty or has a single intensity.
    """
    if not brain.any():
        raise ValueError("the brain mask is empty")
    low, high = np.percentile(t1w[brain], (1, 99))
    if not high > low:
        raise ValueError("all voxels of the brain have the same intensity")
    counts, edges = np.histogram(np.clip(t1w[brain], low, high), bins=BINS)
    middles = (edges[:-1] + edges[1:]) / 2
    means = np.quantile(t1w[brain], START)
    for _ in range(ROUNDS):
        nearest = np.abs(middles[:, None] - means).argmin(axis=1)
        total = np.bincount(nearest, counts, minlength=3)
        moved = np.bincount(nearest, counts * middles, minlength=3) / np.maximum(total, 1)
        moved = np.where(total > 0, moved, means)
        if np.allclose(moved, means):
            break
        means = np.sort(moved)
    bounds = (means[:-1] + means[1:]) / 2
    classes = np.digitize(t1w, bounds).astype(np.uint8) + np.uint8(FLUID)
    return np.where(brain, classes, np.uint8(OUTSIDE))


def expected_uptake(classes: NDArray[np.uint8]) -> Volume:
    """Return the FDG uptake expected from tissue class alone, 1 in grey matter, unsmoothed."""
    return np.array(UPTAKE_OF_TISSUES, np.float32)[classes]


PASS, DOUBT, FAIL = VERDICTS = ("pass", "doubt", "fail")
GRID, BLUR = 4.0, 6.0  # mm: voxels, and FWHM, at which images of all resolutions are compared
PET_BLUR = 6.0  # mm FWHM: smooths expected uptake to about the resolution of a PET
HALF = 0.5  # share of a coarse voxel that is brain
DEPTH = 6.0  # mm from the surface, as the outline alone makes brains similar; our choice
# In the T1w's own space, in mm: voxel size, thickness of the brain's rim, depth at which its deep
# part begins, and width of the image's edge; our choice
OWN_GRID, RIM, DEEP, EDGE = 2.0, 4.0, 10.0, 3.0
BRIGHTEST = 90  # percentile of the rim that represents its bright part
STRIPPED = 0.05  # of the brain's voxels; a T1w with fewer outside the brain counts as stripped
ENOUGH = 0.9  # share of the brain that a PET has to cover for an estimate of its size; our choice
# mm FWHM of what is finer than a PET; mm, largest voxels that show it; mm from the brain's outline;
# fewest voxels; our choice
FINE, COARSEST, BELOW_OUTLINE, FEWEST_INNER = 3.0, 2.5, 4.0, 1000
GREY_ABOVE, WHITE_BELOW, FLUID_BELOW = 0.8, 0.45, 0.2  # bounds of expected uptake, 1 for grey
TINY = 1e-6  # of the mean uptake: minimum for white matter in a ratio


@dataclass(frozen=True)
class Criterion:
    """Bounds of a measure for the verdicts doubt and fail, and the sentence that explains them.

    Parameters
    ----------
    measure : str
        Name of the measure in sidecars.
    doubt, fail : float
        Bounds below which the measure is doubtful, or fails.
    sentence : str
        Explanation with a placeholder for the value, such as ``{:.2f}``.
    """

    measure: str
    doubt: float
    fail: float
    sentence: str


@dataclass(frozen=True)
class Judgement:
    """Verdict on a registration, with its reasons.

    Parameters
    ----------
    verdict : {"pass", "doubt", "fail"}
        Worst verdict of all criteria.
    reasons : tuple of str
        One sentence per criterion that is not passed.
    measures : dict
        Measured values by name.
    """

    verdict: str
    reasons: tuple[str, ...]
    measures: Mapping[str, float]


# Names of measures in sidecars
LIKENESS, OVERLAP = "CorrelationWithTemplate", "DiceBrainMask"
INSIDE, UPTAKE, CONTRAST = "BrainInsidePET", "CorrelationWithExpectedUptake", "GreyWhiteRatio"
WHOLE, DEEP_TO_RIM = "BrainSectionInsideT1w", "DeepToRimRatio"
BEHIND = "CorrelationBehindBestPose"  # correlation minus that in the best pose of a search
SIZE = "RatioOfBrainSizes"  # the smaller size of the brain, in PET or T1w, relative to the larger
UNLIKE = "FineDetailUnlikeT1w"  # 1 minus the size of the correlation of fine detail with the T1w's
BLURRED = "BlurOfAnatomy"  # 1 minus the SD of fine detail that the T1w explains, relative to all

T1W_CRITERIA = (
    Criterion(
        LIKENESS, 0.6, 0.45, "deep in the brain, the correlation of T1w and template is only {:.2f}"
    ),
    Criterion(
        OVERLAP, 0.9, 0.8, "the brain masks of T1w and template overlap with a Dice of only {:.2f}"
    ),
    Criterion(
        BEHIND,
        -0.04,
        -0.08,
        "in another pose, the T1w matches the template better (difference in correlation {:+.2f})",
    ),
    Criterion(
        WHOLE,
        0.8,
        0.2,
        "the T1w ends inside the brain (towards the edge of the image, the brain's cross-section "
        "shrinks by only {:.0%})",
    ),
    Criterion(
        DEEP_TO_RIM,
        0.75,
        0.25,
        "the extracted brain has a bright rim (its deep part has only {:.0%} of the rim's "
        "brightness), which suggests contrast agent, fat or another kind of image",
    ),
)
PET_CRITERIA = (
    Criterion(
        UNLIKE,
        0.4,
        0.2,
        "only {:.0%} of the PET's detail below 3 mm differs from that of the T1w, as if an MRI had "
        "been given as PET",
    ),
    Criterion(
        BLURRED,
        0.75,
        0.0,
        "anatomy in the PET is sharper than PET scanners show it (only {:.0%} of its contrast is "
        "blurred), as if an MRI had been given as PET",
    ),
    Criterion(INSIDE, 0.8, 0.5, "only {:.0%} of the brain lies inside the PET"),
    Criterion(
        UPTAKE,
        0.5,
        0.35,
        "in the brain, the correlation of the PET with the uptake expected from grey and white "
        "matter of the T1w is only {:.2f}",
    ),
    Criterion(
        CONTRAST, 1.05, 1.0, "uptake in grey matter is only {:.2f} times that in white matter"
    ),
    Criterion(
        BEHIND,
        -0.05,
        -0.1,
        "in another pose, the PET matches the T1w better (difference in correlation {:+.2f})",
    ),
    Criterion(
        SIZE,
        0.96,
        0.85,
        "the brain has another size in the PET than in the T1w (ratio {:.2f}), as if the voxel "
        "size of one of them were wrong",
    ),
)


def judge(measures: Mapping[str, float], criteria: Sequence[Criterion]) -> Judgement:
    """Compare measures with criteria; criteria without a measure are ignored.

    Parameters
    ----------
    measures : mapping
        Measured values by the names of the criteria; NaN fails.
    criteria : sequence of Criterion
        Criteria, all of equal weight.

    Examples
    --------
    >>> judge({"A": 0.7}, [Criterion("A", 0.8, 0.6, "A is only {:.2f}")])
    Judgement(verdict='doubt', reasons=('A is only 0.70',), measures={'A': 0.7})
    """
    worst, reasons = PASS, []
    for criterion in criteria:
        if criterion.measure not in measures:
            continue
        value = measures[criterion.measure]
        if value >= criterion.doubt:
            continue
        reasons.append(criterion.sentence.format(value).replace("%", " %"))
        worst = worse_of(worst, DOUBT if value >= criterion.fail else FAIL)
    return Judgement(worst, tuple(reasons), dict(measures))


def worse_of(one: str, other: str) -> str:
    """Return the worse of two verdicts.

    Examples
    --------
    >>> worse_of("doubt", "pass")
    'doubt'
    """
    return max(one, other, key=VERDICTS.index)


def sidecar_fields(judgement: Judgement) -> dict[str, object]:
    """Return the fields of a judgement for ``Registration`` in a sidecar."""
    return {
        "Verdict": judgement.verdict,
        "VerdictReasons": list(judgement.reasons),
        **{name: round(value, 4) for name, value in judgement.measures.items()},
    }


def describe_registration(
    method: Mapping[str, object], before: float, after: float, judgement: Judgement
) -> dict[str, object]:
    """Return ``Registration`` for a sidecar, with the similarity before and after it."""
    return {
        "Registration": {
            **method,
            "SimilarityMetric": "normalized mutual information",
            "SimilarityBefore": round(before, 4),
            "SimilarityAfter": round(after, 4),
            **sidecar_fields(judgement),
        }
    }


def verdict_of(sidecar: Mapping[str, object]) -> str | None:
    """Read the verdict on a registration from a sidecar; None if there is none.

    The word is returned in lower case, even if it is not a known verdict, because people edit
    sidecars.

    Examples
    --------
    >>> verdict_of({"Registration": {"Verdict": "Doubt"}})
    'doubt'
    """
    registration = sidecar.get("Registration")
    verdict = registration.get("Verdict") if isinstance(registration, Mapping) else None
    return verdict.strip().lower() if isinstance(verdict, str) else None


def reasons_of(registration: Mapping[str, object]) -> list[str]:
    """Read the reasons for a verdict other than pass from a sidecar's ``Registration``."""
    reasons = registration.get("VerdictReasons")
    return [str(reason) for reason in reasons] if isinstance(reasons, list) else []


def judge_t1w(
    t1w: Volume,
    template: Volume,
    brain: Mask,
    template_brain: Mask,
    affine: Affine,
    *,
    own_measures: Mapping[str, float],
    behind: float | None = None,
) -> Judgement:
    """Judge the registration of a T1w to a template.

    Parameters
    ----------
    t1w, template : ndarray, (I, J, K)
        Brains alone, on one grid, in any unit.
    brain, template_brain : ndarray of bool, (I, J, K)
        Brain masks.
    affine : ndarray, (4, 4)
        Affine of the grid.
    own_measures : mapping
        Measures of the T1w in its own space by :func:`measure_brain`.
    behind : float, optional
        Correlation in the registered pose minus that in the best pose of a search.
    """
    (moved, coarse), (fixed, _), (inside, _) = (
        downsample(volume.astype(np.float32), affine, GRID)
        for volume in (t1w, template, template_brain)
    )
    zooms = zooms_of(coarse)
    deep = ndimage.distance_transform_edt(inside >= HALF, sampling=zooms) > DEPTH
    likeness = correlation(smooth(moved, BLUR, zooms), smooth(fixed, BLUR, zooms), deep)
    measures = {LIKENESS: likeness, OVERLAP: dice(brain, template_brain), **own_measures}
    if behind is not None:
        measures[BEHIND] = behind
    return judge(measures, T1W_CRITERIA)


def measure_detail(
    pet: Volume, t1w: Volume, brain: Mask, zooms: tuple[float, float, float]
) -> dict[str, float]:
    """Measure whether a PET has fine detail like the T1w, which no PET scanner resolves.

    The detail finer than 3 mm is compared deeper than 4 mm in the brain, away from its outline. How
    the T1w explains it is estimated by regression on the detail of the T1w, its square and its
    cube, because contrast differs among kinds of MRI. Noise of the PET does not count.

    Parameters
    ----------
    pet, t1w : ndarray, (I, J, K)
        PET after registration, and T1w, on one grid of about 2 mm, in any unit.
    brain : ndarray of bool, (I, J, K)
        Part of the brain that the PET covers.
    zooms : tuple of float
        Voxel size in mm.

    Returns
    -------
    dict
        ``UNLIKE``, 0 to 1, and ``BLURRED``, at most 1; empty if they cannot be measured, as in
        large voxels.
    """
    depth = ndimage.distance_transform_edt(np.pad(brain, 1), sampling=zooms)[1:-1, 1:-1, 1:-1]
    inner = depth > BELOW_OUTLINE
    if max(zooms) > COARSEST or np.count_nonzero(inner) < FEWEST_INNER:
        return {}
    bright = winsorize(t1w, brain)
    bright /= max(float(np.abs(bright[brain]).max()), TINY)

    def fine(volume: Volume) -> NDArray[np.float64]:
        return (volume - smooth(volume, FINE, zooms))[inner].astype(np.float64)

    clipped = winsorize(pet, brain)
    detail, powers = fine(clipped), [fine(bright**power) for power in (1, 2, 3)]
    terms = np.stack([*powers, np.ones_like(detail)], axis=1)
    explained = terms @ np.linalg.lstsq(terms, detail, rcond=None)[0]
    whole = float(clipped[inner].std(dtype=np.float64))
    if not (whole > 0 and detail.std() > 0 and powers[0].std() > 0):
        return {}
    alike = abs(float(np.corrcoef(powers[0], detail)[0, 1]))
    return {UNLIKE: 1 - alike, BLURRED: 1 - float(explained.std()) / whole}


def measure_brain(t1w: Volume, brain: Mask, affine: Affine) -> dict[str, float]:
    """Measure problems of a T1w on its own grid that registration to a whole brain would hide.

    Registration stretches a brain that is cut off at the edge of the image over the whole template,
    and pulls bright surroundings that were mistaken for brain inside.

    Parameters
    ----------
    t1w : ndarray, (I, J, K)
        T1w without bias field, with everything around the brain, in any unit.
    brain : ndarray of bool, (I, J, K)
        Brain mask.
    affine : ndarray, (4, 4)
        Voxel indices → world coordinates in mm.

    Returns
    -------
    dict
        1 minus the largest section of the brain within 3 mm of an edge, relative to the largest
        section along that axis; and the ratio of the median at depths of more than 10 mm to the
        90th percentile of the rim of 4 mm. Measures that are not possible are left out.
    """
    measures = {WHOLE: 1 - _section_at_edge(t1w, brain, zooms_of(affine))}
    box = tuple(slice(int(at.min()), int(at.max()) + 1) for at in np.nonzero(brain))
    (data, coarse), (inside, _) = (
        downsample(part[box].astype(np.float32), affine, OWN_GRID) for part in (t1w, brain)
    )
    zooms = zooms_of(coarse)
    depth = ndimage.distance_transform_edt(np.pad(inside >= HALF, 1), sampling=zooms)
    depth = depth[1:-1, 1:-1, 1:-1]
    rim = data[(depth > 0) & (depth <= max(RIM, *zooms))]
    deep = data[depth > DEEP]
    if rim.size and deep.size:
        bright = float(np.percentile(rim, BRIGHTEST))
        if bright > 0:
            measures[DEEP_TO_RIM] = float(np.median(deep)) / bright
    return measures


def _section_at_edge(t1w: Volume, brain: Mask, zooms: tuple[float, float, float]) -> float:
    """Compute the largest section of a brain at an edge of its image, relative to its largest one.

    The edge is where the data end, because a cut-off part may have been padded. In a stripped
    image, the data end with the brain: the outermost section of a whole brain is small for thin
    slices (at most 0.13 of the largest in 28 brains), but may be large for thick ones, for which
    the edge of the grid is used instead.
    """
    stripped = np.count_nonzero(t1w[~brain]) < STRIPPED * np.count_nonzero(brain)
    box, worst = box_of_data(t1w), 0.0
    for axis, zoom in enumerate(zooms):
        others = tuple(other for other in range(t1w.ndim) if other != axis)
        sections = brain.sum(axis=others)
        if not (stripped and zoom > EDGE):
            sections = sections[box[axis]]
        thick = max(round(EDGE / zoom), 1)
        at_edge = max(sections[:thick].max(), sections[-thick:].max())
        worst = max(worst, float(at_edge / max(sections.max(), 1)))
    return worst


def judge_pet(
    pet: Volume,
    uptake: Volume,
    brain: Mask,
    covered: Mask,
    zooms: tuple[float, float, float],
    *,
    behind: float,
    own_measures: Mapping[str, float],
) -> Judgement:
    """Judge the registration of a PET to the T1w of the same person.

    Parameters
    ----------
    pet : ndarray, (I, J, K)
        PET in any unit, on the grid of the T1w.
    uptake : ndarray, (I, J, K)
        Expected uptake, see :func:`bids_app.imaging.verdict.expected_uptake`.
    brain, covered : ndarray of bool, (I, J, K)
        Brain mask, and voxels that the PET covers; only their intersection is compared.
    zooms : tuple of float
        Voxel size of the grid in mm.
    behind : float
        Correlation in the registered pose minus that in the best pose of a search.
    own_measures : mapping
        Measures of the PET on a finer grid by :func:`measure_detail`, and ``SIZE``, which is
        ignored if the PET does not cover most of the brain.
    """
    compared = brain & covered
    share = float(compared.sum() / max(brain.sum(), 1))
    measures = {INSIDE: share, BEHIND: behind, **own_measures}
    if share < ENOUGH:
        measures.pop(SIZE, None)
    grey = compared & (uptake > GREY_ABOVE)
    white = compared & (uptake > FLUID_BELOW) & (uptake < WHITE_BELOW)
    measures[UPTAKE] = correlation(pet, smooth(uptake, PET_BLUR, zooms), compared)
    if grey.any() and white.any():
        whole, inner, outer = (pet[part].astype(np.float64) for part in (compared, white, grey))
        least = TINY * float(np.abs(whole).mean())  # relative, for any unit
        of_white = max(float(inner.mean()), least)
        measures[CONTRAST] = float(outer.mean()) / of_white if of_white > 0 else 0.0
    return judge(measures, PET_CRITERIA)
