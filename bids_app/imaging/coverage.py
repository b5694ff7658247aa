"""Which part of a brain a PET covers, what is missing of it, and gaps that hold no number.

A scanner's field of view may end below the vertex or above the cerebellum. What lies outside was
not measured: it is no uptake of 0. A *hole* is what is brain but not covered. A *gap* is NaN, as
SPM writes it where an image does not reach.
"""

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from bids_app.imaging.volume import Affine, Mask, Volume, box_of_data, zooms_of

DEEP = 5.0  # mm below the surface of a brain; our choice: masks and registration err by less
LARGEST_SHARE = 0.01  # of a brain that gaps near its surface may take; our choice
# Of a brain that gaps of a PET may take anywhere, as where ventricles hold next to no tracer; our
# choice: they are not covered, and told of
LARGEST_SHARE_OF_PET = 0.01


def fill(volume: Volume) -> tuple[Volume, Mask]:
    """Put 0 where there is no number.

    Parameters
    ----------
    volume : ndarray, (I, J, K)
        Any unit; NaN or infinite in gaps.

    Returns
    -------
    ndarray, (I, J, K)
        The same without gaps.
    ndarray of bool, (I, J, K)
        Where there is a number.

    Examples
    --------
    >>> fill(np.array([[[1, np.nan, 3]]], np.float32))
    (array([[[1., 0., 3.]]], dtype=float32), array([[[ True, False,  True]]]))
    """
    valid = np.isfinite(volume)
    return np.where(valid, volume, 0).astype(np.float32), valid


def enclosed(valid: Mask) -> Mask:
    """Find the gaps that numbers enclose: beyond others, the image may just not reach.

    Parameters
    ----------
    valid : ndarray of bool, (I, J, K)
        Where there is a number.
    """
    return ndimage.binary_fill_holes(valid) & ~valid


def gaps_in(brain: Mask, gaps: Mask, zooms: tuple[float, float, float]) -> int:
    """Count the gaps in a brain that make an image of it unusable.

    Those near its surface do not, as long as they are few: the mask may be wrong there by more.

    Parameters
    ----------
    brain, gaps : ndarray of bool, (I, J, K)
        The brain, and voxels without a number.
    zooms : tuple of float
        Voxel size in mm.

    Returns
    -------
    int
        0 if the image can be used.
    """
    inside = brain & gaps
    count = int(inside.sum())
    if not count or count > LARGEST_SHARE * brain.sum():
        return count
    depth = ndimage.distance_transform_edt(np.pad(brain, 1), sampling=zooms)[1:-1, 1:-1, 1:-1]
    return count if bool((depth[inside] > DEEP).any()) else 0


WHOLLY = 0.999  # of what a voxel was interpolated from lies in the field of view; 1, but rounded
COMPLETE = 0.99  # share of the brain: what covers less is told of; the number
# Of a scan, and in voxels, what a part of one value has at least to be no data; our choice
LEAST_FILLING, FEWEST_FILLING = 1e-3, 16
LEAST_MISSING = 2.0  # mm at an end of the brain that are worth a word; our choice
HALF = 0.5  # of a slice of the brain: it is missing where less is covered; our choice
ENDS = (
    (2, 1, "the top {} cm"),
    (2, -1, "the bottom {} cm (cerebellum side)"),
    (1, 1, "the front {} cm"),
    (1, -1, "the back {} cm (occipital)"),
    (0, -1, "the left {} cm"),
    (0, 1, "the right {} cm"),
)


def field_of_view(volume: Volume) -> Mask:
    """Mark the voxels of a scan that hold data: all but what only fills it up.

    Scanners and converters fill a volume up with one value: planes at its ends, of 0 or another,
    wedges where it was turned, the gap between two beds, what a mask took away. Such a part is of
    one value throughout, 0 or the least of the scan, and reaches a face of the volume; a dead part
    of a brain does not, as the head lies around it. Air that was cut off at 0 goes with it, which
    is no loss.

    Parameters
    ----------
    volume : ndarray, (I, J, K)
        Any unit; finite.

    Returns
    -------
    ndarray of bool, (I, J, K)
        All of a volume that is even throughout.

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
    """Keep the parts of one value that are large and reach a face of the volume."""
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
    """Give the share of a brain that is covered, 0 to 1; 0 of no brain.

    Examples
    --------
    >>> brain_coverage(np.array([True, True, False]), np.array([False, True, True]))
    0.5
    """
    total = int(brain.sum())
    return int((brain & covered).sum()) / total if total else 0.0


def near(hole: Mask, sides: tuple[int, int, int]) -> Mask:
    """Mark the voxels around which a box touches a hole.

    Parameters
    ----------
    hole : ndarray of bool, (I, J, K)
        What was not measured.
    sides : tuple of int
        Of the box, in voxels; odd. What is beyond the border touches nothing.

    Examples
    --------
    >>> near(np.array([[[False, False, False, True]]]), (1, 1, 3))
    array([[[False, False,  True,  True]]])
    """
    found: Mask = ndimage.maximum_filter(hole, size=sides, mode="constant", cval=False)
    return found


def missing_parts(brain: Mask, covered: Mask, affine: Affine) -> list[str]:
    """Say in words which ends of a brain are not covered, and how thick they are.

    Parameters
    ----------
    brain, covered : ndarray of bool, (I, J, K)
        On one grid.
    affine : ndarray, (4, 4)
        Voxel indices → mm, RAS+.

    Returns
    -------
    list of str
        ``"the top 2.4 cm"``: slices from that end of which less than half is covered. A gap that is
        no end, and scattered holes, are named as such.
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
    """Join what :func:`missing_parts` gave; of anything else, say that it is not known.

    Examples
    --------
    >>> describe_missing(["the top 2.4 cm", "the left 0.4 cm"]), describe_missing(None)
    ('the top 2.4 cm and the left 0.4 cm', 'a part')
    """
    return " and ".join(map(str, parts)) if isinstance(parts, list) and parts else "a part"


def _thickness(height: NDArray[np.float64], lost: NDArray[np.bool_], step: float) -> float:
    """Give in mm how far the slices go, from the highest down, of which most are lost."""
    slices = np.floor((height.max() - height) / step + HALF).astype(int)
    sizes = np.bincount(slices)  # 0 where voxels are longer along this axis than along another
    shares = np.bincount(slices, lost) / np.maximum(sizes, 1)
    mostly_covered = np.flatnonzero((sizes > 0) & (shares < HALF))
    return step * (int(mostly_covered[0]) if mostly_covered.size else len(shares))
