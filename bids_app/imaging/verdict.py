"""Whether a registration may be believed: pass, doubt or fail, by absolute criteria.

Comparing an image with itself before and after registration tells only that it moved uphill. The
criteria here say what a head that lies right looks like. Their bounds are our choice, learnt on
real and painted heads that were turned on purpose; docs/results/participant.md gives the numbers.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from bids_app.imaging.similarity import correlation, dice
from bids_app.imaging.smoothing import smooth
from bids_app.imaging.volume import Affine, Mask, Volume, thin, zooms_of

PASS, DOUBT, FAIL = "pass", "doubt", "fail"
BLUR = 6.0  # mm FWHM
GRID = 4.0  # mm


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
    measures: dict[str, float]


def measure_t1w(
    t1w: Volume, template: Volume, brain: Mask, template_brain: Mask, affine: Affine
) -> dict[str, float]:
    coarse = [thin(one.astype(np.float32), affine, GRID) for one in (t1w, template, template_brain)]
    (moved, fixed, inside), affine4 = [one for one, _ in coarse], coarse[0][1]
    zooms = zooms_of(affine4)
    where = inside >= 0.5
    a, b = smooth(moved, BLUR, zooms), smooth(fixed, BLUR, zooms)
    out = {"r6": correlation(a, b, where), "dice": dice(brain, template_brain)}
    a, b = smooth(moved, 10, zooms), smooth(fixed, 10, zooms)
    out["r10"] = correlation(a, b, where)
    out["r0"] = correlation(moved, fixed, where)
    core = smooth(inside, 8, zooms) > 0.95
    out["r6core"] = correlation(smooth(moved, 6, zooms), smooth(fixed, 6, zooms), core)
    # high-pass
    hp = lambda v: smooth(v, 6, zooms) - smooth(v, 24, zooms)
    out["rhp"] = correlation(hp(moved), hp(fixed), where)
    out["lr"] = correlation(moved, moved[::-1], where & where[::-1])
    out["cover"] = float((brain & template_brain).sum() / template_brain.sum())
    return out


def measure_pet(
    pet: Volume, uptake: Volume, brain: Mask, covered: Mask, zooms: Sequence[float]
) -> dict[str, float]:
    z = tuple(zooms)
    from scipy import ndimage
    around = ndimage.distance_transform_edt(~brain, sampling=zooms) <= 8
    u = smooth(uptake, 6, z)
    seen = covered & brain
    out = {"coverage": float(seen.sum() / brain.sum())}
    if out["coverage"] < 0.05:
        return out
    out["r"] = correlation(pet, u, covered & around)
    out["rin"] = correlation(pet, u, seen)
    hi, lo = uptake > 0.8, (uptake > 0.2) & (uptake < 0.45)
    out["gw"] = float(pet[seen & hi].mean() / max(pet[seen & lo].mean(), 1e-6))
    shell = covered & ~brain & (ndimage.distance_transform_edt(~brain, sampling=zooms) <= 16)
    out["in_out"] = float(pet[seen].mean() / max(pet[shell].mean(), 1e-6)) if shell.any() else 99.0
    return out


def judge_pet(pet, uptake, brain, covered, zooms) -> Judgement:
    return Judgement(PASS, (), measure_pet(pet, uptake, brain, covered, zooms))
