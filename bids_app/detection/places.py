"""Where clusters lie, on the grid they were found on or on one they were carried to."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from bids_app.imaging.volume import Affine, Volume

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
    where = np.nonzero(labels)
    ranks, scores = labels[where], score[where].astype(np.float64)
    places = np.stack(where, axis=-1) @ affine[:3, :3].T + affine[:3, 3]
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
