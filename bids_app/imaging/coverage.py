"""Coverage of the brain by a PET: the covered part, missing parts, and gaps without values.

A scanner's field of view may end below the vertex or above the cerebellum. Uptake outside it was
not measured, and is not 0. A *hole* is brain that is not covered. A *gap* is NaN, which SPM writes
outside the field of view.
"""

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from bids_app.imaging.volume import Affine, Mask, Volume, box_of_data, zooms_of

DEEP = 5.0  # mm below the surface of a brain; our choice: masks and registration err by less
LARGEST_SHARE = 0.01  # maximum share of the brain for gaps near its surface; our choice
# Maximum share of the brain for gaps of a PET anywhere, for example in ventricles with hardly any
# tracer; our choice. They count as not covered, and are reported.
LARGEST_SHARE_OF_PET = 0.01


def fill(volume: Volume) -> tuple[Volume, Mask]:
    """Fill gaps with 0.

    Parameters
    ----------
    volume : ndarray, (I, J, K)
        Intensities in any unit, NaN or infinite in gaps.

    Returns
    -------
    ndarray, (I, J, K)
        Volume without gaps.
    ndarray of bool, (I, J, K)
        Mask of the voxels that are not gaps.

    Examples
    --------
    >>> fill(np.array([[[1, np.nan, 3]]], np.float32))
    (array([[[1., 0., 3.]]], dtype=float32), array([[[ True, False,  True]]]))
    """
    valid = np.isfinite(volume)
    return np.where(valid, volume, 0).astype(np.float32), valid


def enclosed(valid: Mask) -> Mask:
    """Find the gaps enclosed by valid voxels; other gaps may be outside the field of view.

    Parameters
    ----------
    valid : ndarray of bool, (I, J, K)
        Mask of the voxels that are not gaps.

    Returns
    -------
    ndarray of bool, (I, J, K)
        Mask of the enclosed gaps.
    """
    return ndimage.binary_fill_holes(valid) & ~valid


def gaps_in(brain: Mask, gaps: Mask, zooms: tuple[float, float, float]) -> int:
    """Count the gaps in a brain that make its image unusable.

    A few gaps near the surface do not, because the error of the mask is larger there.

    Parameters
    ----------
    brain, gaps : ndarray of bool, (I, J, K)
        Brain mask, and mask of the gaps.
    zooms : tuple of float
        Voxel size in mm.

    Returns
    -------
    int
        Number of gap voxels in the brain; 0 if the image can be used.
    """
    inside = brain & gaps
    count = int(inside.sum())
    if not count or count > LARGEST_SHARE * brain.sum():
        return count
    depth = ndimage.distance_transform_edt(np.pad(brain, 1), sampling=zooms)[1:-1, 1:-1, 1:-1]
    return count if bool((depth[inside] > DEEP).any()) else 0


WHOLLY = 0.999  # of the interpolated field of view, for covered voxels: 1, except for rounding
COMPLETE = 0.99  # share of the brain; lower coverage is reported
# Minimum size of a constant region to count as padding: share of the scan, and voxels; our choice
LEAST_FILLING, FEWEST_FILLING = 1e-3, 16
LEAST_MISSING = 2.0  # mm missing at an end of the brain that are reported; our choice
HALF = 0.5  # minimum covered share of a brain slice that is not missing; our choice
ENDS = (
    (2, 1, "the top {} cm"),
    (2, -1, "the bottom {} cm (cerebellum side)"),
    (1, 1, "the front {} cm"),
    (1, -1, "the back {} cm (occipital)"),
    (0, -1, "the left {} cm"),
    (0, 1, "the right {} cm"),
)


def field_of_view(volume: Volume) -> Mask:
    """Find the voxels of a scan that hold data rather than padding.

    Scanners and converters pad volumes with a constant value: planes at the ends, wedges after a
    rotation, the gap between two bed positions, voxels outside a mask. Such a region has one value,
    0 or the minimum of the scan, and reaches a face of the volume. A brain region without uptake
    does not, because it is surrounded by the head. Air clipped to 0 is excluded as well, which does
    no harm.

    Parameters
    ----------
    volume : ndarray, (I, J, K)
        Intensities in any unit; finite.

    Returns
    -------
    ndarray of bool, (I, J, K)
        Mask of the data; True everywhere if the volume is constant.

    Examples
    --------
    >>> field_of_view(np.array([[[0, 1, 0, 3, 0, 0]], [[0, 2, 0, 5, 0, 0]]], np.float32))[0, 0]
    array([False,  True,  True,  True, False, False])
    """
    least = volume.min()
    if least == volume.max():
        return np.ones(volume.shape, bool)
    holds_data = np.zeros(volume.shape, bool)
    holds_data[box_of_data(volume)] = True
    for value in {0.0, float(least)}:
        holds_data &= ~_filling(volume == value)
    return holds_data


def _filling(even: Mask) -> Mask:
    """Keep the connected regions of a mask that are large and reach a face of the volume."""
    parts, count = ndimage.label(even)
    sizes = np.bincount(parts.ravel(), minlength=count + 1)
    faces = [np.take(parts, end, axis) for axis in range(parts.ndim) for end in (0, -1)]
    outer = np.unique(np.concatenate([face.ravel() for face in faces]))
    chosen = np.zeros(count + 1, bool)
    chosen[outer] = sizes[outer] >= max(LEAST_FILLING * even.size, FEWEST_FILLING)
    chosen[0] = False
    filling: Mask = chosen[parts]
    return filling


def brain_coverage(brain: Mask, covered: Mask) -> float:
    """Return the share of a brain that is covered, 0 to 1; 0 if the brain is empty.

    Examples
    --------
    >>> brain_coverage(np.array([True, True, False]), np.array([False, True, True]))
    0.5
    """
    total = int(brain.sum())
    return int((brain & covered).sum()) / total if total else 0.0


def near(hole: Mask, sides: tuple[int, int, int]) -> Mask:
    """Find the voxels whose surrounding box touches a hole.

    Parameters
    ----------
    hole : ndarray of bool, (I, J, K)
        Mask of the voxels that were not measured.
    sides : tuple of int
        Side lengths of the box, in voxels; odd. Outside the volume, there are no holes.

    Examples
    --------
    >>> near(np.array([[[False, False, False, True]]]), (1, 1, 3))
    array([[[False, False,  True,  True]]])
    """
    found: Mask = ndimage.maximum_filter(hole, size=sides, mode="constant", cval=False)
    return found


def missing_parts(brain: Mask, covered: Mask, affine: Affine) -> list[str]:
    """Describe which ends of a brain are not covered, and their thickness.

    Parameters
    ----------
    brain, covered : ndarray of bool, (I, J, K)
        Brain mask and covered voxels, on one grid.
    affine : ndarray, (4, 4)
        Voxel indices → world coordinates in mm, RAS+.

    Returns
    -------
    list of str
        Descriptions such as ``"the top 2.4 cm"``: slices from that end of which less than half is
        covered. A hole between the ends, and scattered holes, are described as such.
    """
    lost = ~covered[brain]
    if not lost.any():
        return []
    places = np.argwhere(brain) @ affine[:3, :3].T + affine[:3, 3]
    step = min(zooms_of(affine))
    sentences, unexplained = [], lost.copy()
    for axis, sign, words in ENDS:
        height = sign * places[:, axis]
        thickness = _thickness(height, lost, step)
        if thickness >= LEAST_MISSING:
            sentences.append(words.format(f"{thickness / 10:.1f}"))
            unexplained &= height.max() - height >= thickness - step / 2
    hole = np.zeros(brain.shape, bool)
    hole[brain] = unexplained
    between = np.bincount(ndimage.label(hole)[0][hole], minlength=1).max() / lost.size
    if between > 1 - COMPLETE:
        sentences.append(f"a part between the ends ({100 * between:.1f} %)")
    return sentences if sentences else ["small parts at its surface"]


def describe_missing(parts: object) -> str:
    """Join the descriptions of :func:`missing_parts`; for anything else, return a general phrase.

    Examples
    --------
    >>> describe_missing(["the top 2.4 cm", "the left 0.4 cm"]), describe_missing(None)
    ('the top 2.4 cm and the left 0.4 cm', 'a part')
    """
    return " and ".join(map(str, parts)) if isinstance(parts, list) and parts else "a part"


def _thickness(height: NDArray[np.float64], lost: NDArray[np.bool_], step: float) -> float:
    """Return the thickness in mm of the mostly lost slices, from the highest downwards."""
    slices = np.floor((height.max() - height) / step + HALF).astype(int)
    sizes = np.bincount(slices)  # 0 for some if voxels are longer along this axis than others
    shares = np.bincount(slices, lost) / np.maximum(sizes, 1)
    mostly_covered = np.flatnonzero((sizes > 0) & (shares < HALF))
    return step * (int(mostly_covered[0]) if mostly_covered.size else len(shares))
