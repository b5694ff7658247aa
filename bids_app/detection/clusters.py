"""Clusters of a score map: what is most abnormal, in order, where it lies, and what it means.

Where: the region of an atlas, on the grid a cluster was found on or on one it was carried to. What
it means: how often healthy people have such a cluster too.
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

COLUMNS = ("index", "name")  # BIDS 1.10, "Segmentations": of a table that explains a _dseg


def names_beside(atlas: Path) -> Path:
    """Name the table of the names of an atlas that comes with the app.

    Examples
    --------
    >>> names_beside(Path("atlas/coarse.nii.gz")).as_posix()
    'atlas/coarse.tsv'
    """
    return atlas.with_name(f"{atlas.name.partition('.')[0]}.tsv")


def read_labels(path: Path) -> dict[int, str]:
    """Read what the numbers of an atlas mean, from a table as BIDS has it beside a ``_dseg``.

    Parameters
    ----------
    path : Path
        Tab-separated, with the columns ``index`` and ``name``; others are passed over.

    Raises
    ------
    MissingInputError
        If there is no such file.
    ReadWriteError
        If it cannot be read.
    UnusableDataError
        If a column is not there, a line has no whole number or no name, a number comes twice, or
        there is no line.
    """
    if not path.exists():
        raise MissingInputError(f"{path}: no such file; --atlas needs an image and its labels")
    rows = read_tsv(path)
    if not rows:
        raise UnusableDataError(f"{path}: holds no label; write one a line below index and name")
    absent = [column for column in COLUMNS if column not in rows[0]]
    if absent:
        raise UnusableDataError(
            f"{path}: has no column {' or '.join(absent)}; the columns index and name, "
            "separated by a tab, are needed"
        )
    names: dict[int, str] = {}
    for line, row in enumerate(rows, 2):
        index, name = _read_label(path, line, row)
        if index in names:
            raise UnusableDataError(f"{path}: line {line} says again what {index} is; keep one")
        names[index] = name
    return names


def _read_label(path: Path, line: int, row: Mapping[str, str]) -> tuple[int, str]:
    index, name = (row.get(column, "").strip() for column in COLUMNS)
    if not index.removeprefix("-").isdecimal():
        raise UnusableDataError(f"{path}: index {index!r} in line {line} is no whole number")
    if not name:
        raise UnusableDataError(f"{path}: {index} has no name in line {line}; write one")
    return int(index), name


def name_regions(
    labels: NDArray[np.integer], atlas: NDArray[np.generic], names: Mapping[int, str]
) -> list[str | None]:
    """Name each cluster by the region that holds most of it.

    Parameters
    ----------
    labels : ndarray of int, (I, J, K)
        Clusters by rank, 0 elsewhere.
    atlas : ndarray, (I, J, K)
        Numbers of regions, 0 for background, on the same grid.
    names : mapping
        What the numbers mean; of others, the number is told.

    Returns
    -------
    list of str or None
        By rank. Background does not count; None where there is nothing else. Of equal shares, the
        region with the lowest number.

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
    """Where a cluster lies, and how large it is there.

    Parameters
    ----------
    rank : int
        Of the cluster, from 1.
    x, y, z : float
        Centre of mass, each voxel weighted by its score, in mm, RAS+.
    peak_x, peak_y, peak_z : float
        The voxel with the highest score, in mm, RAS+.
    volume : float
        In mm³.
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
    """Find out where clusters lie, from a score map and a label image on one grid.

    Parameters
    ----------
    score : ndarray, (I, J, K)
        Interpolated: at the edge of a cluster it may be 0 or below, and weighs nothing then.
    labels : ndarray of int, (I, J, K)
        The rank of the cluster that a voxel is in, 0 where it is in none.
    affine : ndarray, (4, 4)
        Voxel indices → mm, RAS+.

    Returns
    -------
    list of Place
        By rank; a cluster that has no voxel on this grid is not in it.

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
    """Tell where voxels lie.

    Parameters
    ----------
    rank : int
        Of the cluster that they are.
    places : ndarray, (voxels, 3)
        In mm, RAS+.
    scores : ndarray, (voxels,)
        Their weights; those below 0 weigh nothing, and if none is above 0 all weigh the same.
    voxel_volume : float
        In mm³.
    """
    weights = np.maximum(scores, 0)
    centre = np.average(places, axis=0, weights=weights if weights.any() else None)
    x, y, z = centre.tolist()
    peak_x, peak_y, peak_z = places[int(scores.argmax())].tolist()
    return Place(rank, x, y, z, peak_x, peak_y, peak_z, len(scores) * voxel_volume)


def expected_in_control(
    sum_score: float, control_sum_scores: Sequence[Sequence[float]]
) -> float | None:
    """Give how many clusters of at least this score a healthy control is expected to have.

    The mean over controls that took no part in training. The paper does not do this. It is a
    number of clusters, not a probability: it can exceed 1.

    Parameters
    ----------
    sum_score : float
        Sum of the scores of a patient's cluster.
    control_sum_scores : sequence of sequences of float
        For each held-out control, those of all of its clusters, of the same detector and training
        set; an empty one for a control that has none.

    Returns
    -------
    float or None
        From 0; None without controls.

    Examples
    --------
    Of three controls one has two such clusters, one has one, one has none:

    >>> expected_in_control(10.0, [[30.0, 10.0, 2.0], [12.0], []])
    1.0
    """
    if not control_sum_scores:
        return None
    at_least = sum(score >= sum_score for scores in control_sum_scores for score in scores)
    return at_least / len(control_sum_scores)


CORNERS = np.ones((3, 3, 3), bool)  # 26 neighbours
MIDLINE = 2.0  # mm from the plane x = 0, to either side, that belong to neither; our choice
LESION_GAP = 8.0  # mm; our choice: the two banks of a sulcus, or two voxels of the coarsest grid
LARGEST_LABEL = np.iinfo(np.int16).max
TOLERANCE = 1e-9  # relative: 8 voxels of 8 mm³ are 64 mm³, whatever an affine's last digits say


@dataclass(frozen=True)
class Cluster(Place):
    """A cluster of a score map; a line of the cluster table. Ranks go by ``sum_score``.

    Parameters
    ----------
    peak_score : float
        The highest score in it.
    side : {"left", "right", "midline"}
        Of the person, as the centre of mass has it.
    mean_score, sum_score : float
        Mean of the scores of its voxels; sum of their absolute values.
    expected_in_control : float, optional
        Clusters of at least this ``sum_score`` that a healthy control is expected to have.
    overlap : float, optional
        Shared with lesions, in mm³; None where no lesion is known.
    region : str, optional
        Of an atlas; None without one.
    """

    peak_score: float
    side: str
    mean_score: float
    sum_score: float
    expected_in_control: float | None = None
    overlap: float | None = None
    region: str | None = None


def threshold_of(score: Volume, brain: Mask, extent: float) -> float:
    """Give the score that only a share of the brain exceeds, and never more than half of it.

    It is never below 0: where a detector sees nothing abnormal there is no cluster, however the
    map is spread. Equal scores stay together: where those at the threshold are more than fit,
    none of them exceeds it. So a flat map has no cluster.

    Parameters
    ----------
    score : ndarray, (I, J, K)
        Higher is more abnormal; 0 is as controls are, or the boundary of those that were
        trained on.
    brain : ndarray of bool, (I, J, K)
        What was analysed; not empty.
    extent : float
        The share, above 0 and below 1. Above 1/2 it is 1/2: the threshold is at the median or
        above.

    Raises
    ------
    ValueError
        If shapes differ, the brain is empty, a score in it is not finite, or no such share
        exists.

    Examples
    --------
    >>> row = np.arange(10, dtype=np.float32).reshape(10, 1, 1)
    >>> threshold_of(row, row >= 0, 0.2)
    7.0
    """
    if not 0 < extent < 1:
        raise ValueError(f"an extent is a share of the brain, above 0 and below 1, not {extent}")
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

    How the array lies in space changes nothing: clusters, ranks and ties are those of the same
    map turned to RAS+.

    Parameters
    ----------
    score : ndarray, (I, J, K)
        Higher is more abnormal.
    brain : ndarray of bool, (I, J, K)
        What was analysed.
    affine : ndarray, (4, 4)
        Voxel indices → mm, RAS+.
    extent : float
        Share of the brain that is in clusters, before small ones are dropped; see
        :func:`threshold_of`.
    minimum_volume : float
        In mm³.
    most : int, optional
        How many are kept, from the first rank on; all by default.

    Returns
    -------
    list of Cluster
        By rank. Of equal sums, the one whose first voxel comes first in the RAS+ array.
    ndarray of int16, (I, J, K)
        The rank of the cluster that a voxel is in, 0 where it is in none that was kept.

    Raises
    ------
    ValueError
        As :func:`threshold_of`; also if there are more clusters than labels.
    """
    threshold = threshold_of(score, brain, extent)
    axes, steps, turned = _turn_to_ras(affine, score.shape)
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
        raise ValueError(f"{len(ranked)} clusters are more than labels; ask for a larger volume")
    labels = np.zeros(score.shape, np.int16)
    view = labels.transpose(axes)[steps]
    clusters = []
    for rank, group in enumerate(ranked, 1):
        voxels = tuple(axis[group] for axis in indices)
        view[voxels] = rank
        places = np.stack(voxels, axis=-1) @ turned[:3, :3].T + turned[:3, 3]
        clusters.append(_measure(rank, places, scores[group], voxel_volume))
    return clusters, labels


def _turn_to_ras(
    affine: Affine, shape: tuple[int, ...]
) -> tuple[tuple[int, ...], tuple[slice, ...], Affine]:
    """Give the order and direction of axes that make an array RAS+, and its affine then."""
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
    """List, part by part, the places of its voxels, in their order."""
    ends = np.cumsum(np.bincount(parts, minlength=count))
    return np.split(np.argsort(parts, kind="stable"), ends)[:count]  # the last one is empty


def _measure(
    rank: int, places: NDArray[np.float64], scores: NDArray[np.float64], voxel_volume: float
) -> Cluster:
    total = float(scores.sum())  # all are positive: their absolute values are themselves
    place = place_of(rank, places, scores, voxel_volume)
    return Cluster(
        **asdict(place),
        peak_score=float(scores.max()),
        side=side_of(place.x),
        mean_score=total / scores.size,
        sum_score=total,
    )


def side_of(x: float) -> str:
    """Name the side of the person that a place is on, x in mm, RAS+.

    Examples
    --------
    >>> side_of(-30.0), side_of(30.0), side_of(-2.0)
    ('left', 'right', 'midline')
    """
    if abs(x) <= MIDLINE:
        return "midline"
    return "left" if x < 0 else "right"


def separate_lesions(mask: Mask, affine: Affine, *, gap: float = LESION_GAP) -> Labels:
    """Give each lesion of a mask a number: its 26-connected parts, but one if they are near.

    A lesion drawn in grey matter falls into crumbs, at a sulcus and where it is resampled; each
    would count as a lesion, and be missed.

    Parameters
    ----------
    mask : ndarray of bool, (I, J, K)
        All lesions of a person.
    affine : ndarray, (4, 4)
        Voxel indices → mm.
    gap : float
        Parts of one lesion are at most so many mm apart, from face to face; 0 takes each part for
        a lesion.

    Returns
    -------
    ndarray of int16, (I, J, K)
        Lesions from 1, 0 elsewhere.
    """
    around = ndimage.distance_transform_edt(~mask, sampling=zooms_of(affine)) <= gap / 2
    return np.where(mask, ndimage.label(around, CORNERS)[0], 0).astype(np.int16)


def leave_out_uncovered(lesions: Labels, hole: Mask) -> tuple[Labels, int]:
    """Leave out the lesions that a PET could not see: those in nothing but a hole.

    Parameters
    ----------
    lesions : ndarray of int, (I, J, K)
        As :func:`separate_lesions` gives them.
    hole : ndarray of bool, (I, J, K)
        What is brain, but was not covered by the PET.

    Returns
    -------
    ndarray of int16, (I, J, K)
        The others, numbered from 1 in their order.
    int
        How many were left out.

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
    """Measure what each cluster shares with each lesion.

    Parameters
    ----------
    labels, lesions : ndarray of int, (I, J, K)
        Clusters by rank, as :func:`find_clusters`, and lesions, as :func:`separate_lesions`,
        gives them; on one grid.
    voxel_volume : float
        In mm³.

    Returns
    -------
    ndarray, (clusters, lesions)
        In mm³; the cluster of rank 1 first, lesion 1 first.

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
