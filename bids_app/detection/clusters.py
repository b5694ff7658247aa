"""Clusters of a score map: detection and ranking, location, and comparison with controls.

A cluster is located by the region of an atlas, on the grid it was found on or on one it was
resampled to. It is put in context by how often healthy people have a similar cluster.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage
from scipy.optimize import linear_sum_assignment

from bids_app.errors import MissingInputError, UnusableDataError
from bids_app.files import read_tsv
from bids_app.imaging.volume import Affine, Mask, Volume, zooms_of

COLUMNS = ("index", "name")  # of the table beside a _dseg; BIDS 1.10, "Segmentations"


def names_beside(atlas: Path) -> Path:
    """Return the path of the table of region names of an atlas that comes with the app.

    Examples
    --------
    >>> names_beside(Path("atlas/coarse.nii.gz")).as_posix()
    'atlas/coarse.tsv'
    """
    return atlas.with_name(f"{atlas.name.partition('.')[0]}.tsv")


def read_labels(path: Path) -> dict[int, str]:
    """Read the names of an atlas's labels from a BIDS table, as found beside a ``_dseg``.

    Parameters
    ----------
    path : Path
        Tab-separated file with the columns ``index`` and ``name``; others are ignored.

    Raises
    ------
    MissingInputError
        If the file does not exist.
    ReadWriteError
        If the file cannot be read.
    UnusableDataError
        If a column is missing, a line has no whole number or no name, a number occurs twice, or the
        table is empty.
    """
    if not path.exists():
        raise MissingInputError(f"{path}: no such file; --atlas needs an image and its labels")
    rows = read_tsv(path)
    if not rows:
        raise UnusableDataError(
            f"{path}: contains no labels; add one per line below the columns index and name"
        )
    absent = [column for column in COLUMNS if column not in rows[0]]
    if absent:
        raise UnusableDataError(
            f"{path}: has no column {' or '.join(absent)}; give the columns index and name, "
            "separated by a tab"
        )
    names: dict[int, str] = {}
    for line, row in enumerate(rows, 2):
        index, name = _read_label(path, line, row)
        if index in names:
            raise UnusableDataError(f"{path}: index {index} occurs again in line {line}; keep one")
        names[index] = name
    return names


def _read_label(path: Path, line: int, row: Mapping[str, str]) -> tuple[int, str]:
    index, name = (row.get(column, "").strip() for column in COLUMNS)
    if not index.removeprefix("-").isdecimal():
        raise UnusableDataError(f"{path}: index {index!r} in line {line} is not a whole number")
    if not name:
        raise UnusableDataError(f"{path}: index {index} in line {line} has no name; add one")
    return int(index), name


def name_regions(
    labels: NDArray[np.integer], atlas: NDArray[np.generic], names: Mapping[int, str]
) -> list[str | None]:
    """Name each cluster after the region that contains most of it.

    Parameters
    ----------
    labels : ndarray of int, (I, J, K)
        Clusters by rank, 0 elsewhere.
    atlas : ndarray, (I, J, K)
        Numbers of regions, 0 for background, on the same grid.
    names : mapping
        Number → name of a region; regions without a name are called by their number.

    Returns
    -------
    list of str or None
        Names by rank. Background does not count; None if the cluster lies in nothing else. In a
        tie, the region with the lowest number.

    Raises
    ------
    ValueError
        If shapes differ.
    """
    if labels.shape != atlas.shape:
        raise ValueError(f"clusters of {labels.shape} and an atlas of {atlas.shape} voxels differ")
    inside = labels > 0
    ranks, regions = labels[inside], np.rint(atlas[inside]).astype(np.int64)
    region_names: list[str | None] = []
    for rank in range(1, int(labels.max(initial=0)) + 1):
        in_cluster = regions[(ranks == rank) & (regions != 0)]
        numbers, counts = np.unique(in_cluster, return_counts=True)
        largest = int(numbers[counts.argmax()]) if numbers.size else None
        region_names.append(None if largest is None else names.get(largest, f"label {largest}"))
    return region_names


Labels = NDArray[np.int16]


@dataclass(frozen=True)
class Place:
    """Location and size of a cluster.

    Parameters
    ----------
    rank : int
        Rank of the cluster, from 1.
    x, y, z : float
        Centre of mass, with voxels weighted by their scores, in mm, RAS+.
    peak_x, peak_y, peak_z : float
        Voxel with the highest score, in mm, RAS+.
    volume : float
        Volume in mm³.
    """

    rank: int
    x: float
    y: float
    z: float
    peak_x: float
    peak_y: float
    peak_z: float
    volume: float


def locate(score: Volume, labels: Labels, affine: Affine) -> list[Place]:
    """Locate clusters, given a score map and a label image on the same grid.

    Parameters
    ----------
    score : ndarray, (I, J, K)
        Interpolated score map: at the edge of a cluster it may be 0 or below, with a weight of 0.
    labels : ndarray of int, (I, J, K)
        Rank of the cluster that each voxel belongs to, 0 for none.
    affine : ndarray, (4, 4)
        Voxel indices → mm, RAS+.

    Returns
    -------
    list of Place
        Locations by rank, without clusters that have no voxel on this grid.

    Raises
    ------
    ValueError
        If shapes differ.
    """
    if score.shape != labels.shape:
        raise ValueError(f"a score map of {score.shape} and labels of {labels.shape} voxels differ")
    indices = np.nonzero(labels)
    ranks, scores = labels[indices], score[indices].astype(np.float64)
    places = np.stack(indices, axis=-1) @ affine[:3, :3].T + affine[:3, 3]
    voxel_volume = float(abs(np.linalg.det(affine[:3, :3])))
    return [
        place_of(rank, places[ranks == rank], scores[ranks == rank], voxel_volume)
        for rank in np.unique(ranks).tolist()
    ]


def place_of(
    rank: int, places: NDArray[np.float64], scores: NDArray[np.float64], voxel_volume: float
) -> Place:
    """Locate the voxels of one cluster.

    Parameters
    ----------
    rank : int
        Rank of the cluster.
    places : ndarray, (voxels, 3)
        Coordinates in mm, RAS+.
    scores : ndarray, (voxels,)
        Scores used as weights; negative ones count as 0, and if none is above 0, all voxels have
        equal weight.
    voxel_volume : float
        Volume of a voxel in mm³.
    """
    weights = np.maximum(scores, 0)
    centre = np.average(places, axis=0, weights=weights if weights.any() else None)
    x, y, z = centre.tolist()
    peak_x, peak_y, peak_z = places[int(scores.argmax())].tolist()
    return Place(rank, x, y, z, peak_x, peak_y, peak_z, len(scores) * voxel_volume)


def expected_in_control(
    sum_score: float, control_sum_scores: Sequence[Sequence[float]]
) -> float | None:
    """Return the expected number of clusters with at least this score in a healthy control.

    It is the mean over controls that were not used in training; the paper does not compute it. It
    is a number of clusters, not a probability: it can exceed 1.

    Parameters
    ----------
    sum_score : float
        Sum of the scores of a patient's cluster.
    control_sum_scores : sequence of sequences of float
        Sums of the scores of all clusters of each held-out control, for the same detector and
        training set; an empty sequence for a control without clusters.

    Returns
    -------
    float or None
        Expected number, 0 or more; None without controls.

    Examples
    --------
    Of three controls, one has two such clusters, one has one, and one has none:

    >>> expected_in_control(10.0, [[30.0, 10.0, 2.0], [12.0], []])
    1.0
    """
    if not control_sum_scores:
        return None
    at_least = sum(score >= sum_score for scores in control_sum_scores for score in scores)
    return at_least / len(control_sum_scores)


CORNERS = np.ones((3, 3, 3), bool)  # 26 neighbours
MIDLINE = 2.0  # mm to either side of the plane x = 0 that count as the midline; our choice
LESION_GAP = 8.0  # mm; our choice: spans a sulcus, or two voxels of the coarsest grid
LARGEST_LABEL = np.iinfo(np.int16).max
TOLERANCE = 1e-9  # relative: 8 voxels of 8 mm³ are 64 mm³, despite rounding of the affine


@dataclass(frozen=True)
class Cluster(Place):
    """Cluster of a score map: a line of the cluster table, which is ranked by ``sum_score``.

    Parameters
    ----------
    peak_score : float
        Highest score in the cluster.
    side : {"left", "right", "midline"}
        Side of the person that the centre of mass is on.
    mean_score, sum_score : float
        Mean of the scores of its voxels; sum of their absolute values.
    expected_in_control : float, optional
        Expected number of clusters with at least this ``sum_score`` in a healthy control.
    overlap : float, optional
        Volume shared with lesions, in mm³; None if no lesion is known.
    region : str, optional
        Region of an atlas; None without one.
    """

    peak_score: float
    side: str
    mean_score: float
    sum_score: float
    expected_in_control: float | None = None
    overlap: float | None = None
    region: str | None = None


def threshold_of(score: Volume, brain: Mask, extent: float) -> float:
    """Return the score that at most a given share of the brain exceeds, and never more than half.

    The threshold is never below 0: if a detector finds nothing abnormal there is no cluster,
    however scores are distributed. Tied scores stay together: if there are more scores tied at the
    threshold than fit, none of them exceeds it, so a constant map has no clusters.

    Parameters
    ----------
    score : ndarray, (I, J, K)
        Score map. Higher is more abnormal; 0 is like the controls, or on the boundary of those used
        in training.
    brain : ndarray of bool, (I, J, K)
        Mask of the analysed brain; not empty.
    extent : float
        Share of the brain, above 0 and below 1. Values above 1/2 are treated as 1/2: the threshold
        is the median or higher.

    Raises
    ------
    ValueError
        If shapes differ, the brain is empty, a score in it is not finite, or the extent is out of
        range.

    Examples
    --------
    >>> row = np.arange(10, dtype=np.float32).reshape(10, 1, 1)
    >>> threshold_of(row, row >= 0, 0.2)
    7.0
    """
    if not 0 < extent < 1:
        raise ValueError(
            f"the extent must be a share of the brain above 0 and below 1, not {extent}"
        )
    if score.shape != brain.shape:
        raise ValueError(f"a score map of {score.shape} and a brain of {brain.shape} voxels differ")
    scores = score[brain]
    if scores.size == 0:
        raise ValueError("the brain of a score map is empty")
    odd = int(scores.size - np.isfinite(scores).sum())
    if odd:
        raise ValueError(f"{odd} scores in the brain are NaN or infinite")
    above = min(int(extent * scores.size * (1 + TOLERANCE)), scores.size // 2)
    place = scores.size - 1 - above
    return max(float(np.partition(scores, place)[place]), 0.0)


def find_clusters(
    score: Volume,
    brain: Mask,
    affine: Affine,
    *,
    extent: float,
    minimum_volume: float,
    most: int | None = None,
) -> tuple[list[Cluster], Labels]:
    """Find the clusters of a score map, and rank them by the sum of their scores.

    The result does not depend on the orientation of the array: clusters, ranks and ties are the
    same as for the map reoriented to RAS+.

    Parameters
    ----------
    score : ndarray, (I, J, K)
        Score map; higher is more abnormal.
    brain : ndarray of bool, (I, J, K)
        Mask of the analysed brain.
    affine : ndarray, (4, 4)
        Voxel indices → mm, RAS+.
    extent : float
        Share of the brain that is in clusters, before small ones are dropped; see
        :func:`threshold_of`.
    minimum_volume : float
        Minimum volume of a cluster in mm³.
    most : int, optional
        Maximum number of clusters, the first by rank; all are kept by default.

    Returns
    -------
    list of Cluster
        Clusters by rank. In a tie, the cluster whose first voxel comes first in the RAS+ array.
    ndarray of int16, (I, J, K)
        Rank of the cluster that each voxel belongs to, 0 if it is in none that was kept.

    Raises
    ------
    ValueError
        See :func:`threshold_of`; also if there are more clusters than labels.
    """
    threshold = threshold_of(score, brain, extent)
    axes, steps, turned = _reorient_to_ras(affine, score.shape)
    exceeding = brain & (score > threshold)
    parts, count = ndimage.label(exceeding.transpose(axes)[steps], CORNERS)
    indices = np.nonzero(parts)
    scores = score.transpose(axes)[steps][indices].astype(np.float64)
    groups = _group(parts[indices] - 1, count)
    voxel_volume = float(abs(np.linalg.det(affine[:3, :3])))
    fewest = minimum_volume * (1 - TOLERANCE)
    large = [group for group in groups if group.size * voxel_volume >= fewest]
    ranked = sorted(large, key=lambda group: -float(scores[group].sum()))[:most]
    if len(ranked) > LARGEST_LABEL:
        raise ValueError(f"{len(ranked)} clusters are too many to label; ask for a larger volume")
    labels = np.zeros(score.shape, np.int16)
    view = labels.transpose(axes)[steps]
    clusters = []
    for rank, group in enumerate(ranked, 1):
        voxels = tuple(axis[group] for axis in indices)
        view[voxels] = rank
        places = np.stack(voxels, axis=-1) @ turned[:3, :3].T + turned[:3, 3]
        clusters.append(_measure(rank, places, scores[group], voxel_volume))
    return clusters, labels


def _reorient_to_ras(
    affine: Affine, shape: tuple[int, ...]
) -> tuple[tuple[int, ...], tuple[slice, ...], Affine]:
    """Return the order and direction of axes that reorient an array to RAS+, and its new affine."""
    cosines = affine[:3, :3] / zooms_of(affine)
    axes = linear_sum_assignment(-np.abs(cosines))[1].tolist()
    forward = [cosines[world, axis] > 0 for world, axis in enumerate(axes)]
    turned = np.zeros((4, 4))
    turned[3, 3] = 1
    for world, (axis, ahead) in enumerate(zip(axes, forward, strict=True)):
        turned[axis, world] = 1 if ahead else -1
        turned[axis, 3] = 0 if ahead else shape[axis] - 1
    return tuple(axes), tuple(slice(None, None, 1 if f else -1) for f in forward), affine @ turned


def _group(parts: NDArray[np.intp], count: int) -> list[NDArray[np.intp]]:
    """List the indices of the voxels of each part, in their original order."""
    ends = np.cumsum(np.bincount(parts, minlength=count))
    return np.split(np.argsort(parts, kind="stable"), ends)[:count]  # the last piece is empty


def _measure(
    rank: int, places: NDArray[np.float64], scores: NDArray[np.float64], voxel_volume: float
) -> Cluster:
    total = float(scores.sum())  # all are positive, so this is the sum of absolute values
    place = place_of(rank, places, scores, voxel_volume)
    return Cluster(
        **asdict(place),
        peak_score=float(scores.max()),
        side=side_of(place.x),
        mean_score=total / scores.size,
        sum_score=total,
    )


def side_of(x: float) -> str:
    """Return the side of the person that a coordinate x, in mm, RAS+, is on.

    Examples
    --------
    >>> side_of(-30.0), side_of(30.0), side_of(-2.0)
    ('left', 'right', 'midline')
    """
    if abs(x) <= MIDLINE:
        return "midline"
    return "left" if x < 0 else "right"


def separate_lesions(mask: Mask, affine: Affine, *, gap: float = LESION_GAP) -> Labels:
    """Find the lesions of a mask: its 26-connected parts, with nearby parts merged into one.

    A lesion drawn in grey matter breaks into fragments at sulci and when it is resampled.
    Without merging, each fragment would count as a lesion that can be missed.

    Parameters
    ----------
    mask : ndarray of bool, (I, J, K)
        All lesions of a person.
    affine : ndarray, (4, 4)
        Voxel indices → mm.
    gap : float
        Maximum distance between parts of one lesion in mm, from face to face; with 0, each part is
        a lesion.

    Returns
    -------
    ndarray of int16, (I, J, K)
        Lesions numbered from 1, 0 elsewhere.
    """
    around = ndimage.distance_transform_edt(~mask, sampling=zooms_of(affine)) <= gap / 2
    return np.where(mask, ndimage.label(around, CORNERS)[0], 0).astype(np.int16)


def leave_out_uncovered(lesions: Labels, hole: Mask) -> tuple[Labels, int]:
    """Leave out the lesions that lie entirely outside the PET coverage.

    Parameters
    ----------
    lesions : ndarray of int, (I, J, K)
        Result of :func:`separate_lesions`.
    hole : ndarray of bool, (I, J, K)
        Brain voxels that the PET does not cover.

    Returns
    -------
    ndarray of int16, (I, J, K)
        Remaining lesions, renumbered from 1 in their order.
    int
        Number of lesions left out.

    Examples
    --------
    >>> lesions = np.array([[[1, 0, 2, 2, 3]]])
    >>> leave_out_uncovered(lesions, np.array([[[True, True, True, False, False]]]))
    (array([[[0, 0, 1, 1, 2]]], dtype=int16), 1)
    """
    n_lesions = int(lesions.max(initial=0))
    covered = np.unique(lesions[~hole & (lesions > 0)])
    new_numbers = np.zeros(n_lesions + 1, np.int16)
    new_numbers[covered] = np.arange(1, len(covered) + 1)
    return new_numbers[lesions], n_lesions - len(covered)


def overlaps(labels: Labels, lesions: Labels, voxel_volume: float) -> NDArray[np.float64]:
    """Compute the volume that each cluster shares with each lesion.

    Parameters
    ----------
    labels, lesions : ndarray of int, (I, J, K)
        Clusters by rank, from :func:`find_clusters`, and lesions, from :func:`separate_lesions`, on
        the same grid.
    voxel_volume : float
        Volume of a voxel in mm³.

    Returns
    -------
    ndarray, (clusters, lesions)
        Shared volumes in mm³, by rank of the cluster and number of the lesion.

    Raises
    ------
    ValueError
        If shapes differ.
    """
    if labels.shape != lesions.shape:
        raise ValueError(f"clusters of {labels.shape} and lesions of {lesions.shape} voxels differ")
    shape = int(labels.max(initial=0)) + 1, int(lesions.max(initial=0)) + 1
    pairs = np.ravel_multi_index((labels.ravel(), lesions.ravel()), shape)
    shared = np.bincount(pairs, minlength=shape[0] * shape[1]).reshape(shape)
    return shared[1:, 1:].astype(np.float64) * voxel_volume
