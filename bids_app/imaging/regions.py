"""Regional uptake of a PET: means, ratios to reference regions, and left-right asymmetry."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from bids_app.imaging.volume import Mask, Volume

FEWEST_VOXELS = 4  # minimum size of a region; our choice
LEFT, RIGHT = "left ", "right "  # prefixes of the names of paired regions
REFERENCES = {"ratio_cerebellum": "cerebellum", "ratio_pons": "pons"}  # column → part of a name


@dataclass(frozen=True)
class RegionalUptake:
    """Row of ``desc-regions_pet.tsv``: uptake of one PET in one region.

    Parameters
    ----------
    pet : {"real", "synthetic"}
        Kind of PET.
    region : str
        Name of the region in the atlas.
    volume : float
        Volume of its voxels in the brain that the PET covers, in mm³.
    mean : float
        Mean of the PET, scaled to [0, 1].
    ratio_brain, ratio_cerebellum, ratio_pons : float or None
        Mean divided by that of the reference region; None if the reference is not covered.
    asymmetry : float or None
        200 (L - R) / (L + R), in %, for paired regions; negative if uptake is lower on the left.
    """

    pet: str
    region: str
    volume: float
    mean: float
    ratio_brain: float | None
    ratio_cerebellum: float | None
    ratio_pons: float | None
    asymmetry: float | None


def measure_uptake_by_region(
    kind: str,
    pet: Volume,
    brain: Mask,
    regions: NDArray[np.integer],
    *,
    names: Mapping[int, str],
    voxel_volume: float,
) -> list[RegionalUptake]:
    """Measure a PET in each region of an atlas.

    Parameters
    ----------
    kind : {"real", "synthetic"}
        Kind of PET.
    pet : ndarray, (I, J, K)
        PET in [0, 1].
    brain : ndarray of bool, (I, J, K)
        Part of the brain that the PET covers.
    regions : ndarray of int, (I, J, K)
        Label image of the atlas.
    names : mapping
        Label → name; names of paired regions begin with ``left`` and ``right``.
    voxel_volume : float
        Volume of a voxel in mm³.

    Returns
    -------
    list of RegionalUptake
        One row per region, in the order of the names; regions with too few voxels are left out.
    """
    inside = {name: brain & (regions == label) for label, name in names.items()}
    counts = {name: int(np.count_nonzero(mask)) for name, mask in inside.items()}
    means = {
        name: float(pet[mask].mean())
        for name, mask in inside.items()
        if counts[name] >= FEWEST_VOXELS
    }
    references = {"ratio_brain": float(pet[brain].mean()) if brain.any() else 0.0}
    for column, part in REFERENCES.items():
        voxels = [pet[inside[name]] for name in means if part in name]
        references[column] = float(np.concatenate(voxels).mean()) if voxels else 0.0
    return [
        RegionalUptake(
            pet=kind,
            region=name,
            volume=counts[name] * voxel_volume,
            mean=mean,
            asymmetry=_asymmetry(name, means),
            **{column: mean / value if value else None for column, value in references.items()},
        )
        for name, mean in means.items()
    ]


def _asymmetry(name: str, means: Mapping[str, float]) -> float | None:
    """Compute the asymmetry of a region and its counterpart in the other hemisphere.

    Examples
    --------
    >>> _asymmetry("left insula", {"left insula": 0.9, "right insula": 1.1})
    -20.0
    >>> _asymmetry("pons", {"pons": 1.0}) is None
    True
    """
    bare = name.removeprefix(LEFT).removeprefix(RIGHT)
    left, right = means.get(LEFT + bare), means.get(RIGHT + bare)
    if bare == name or left is None or right is None or not left + right:
        return None
    return round(200 * (left - right) / (left + right), 9)
