"""Heads as label maps: the tissue of each label, and the MNI coordinates of voxels.

Brain structures have FreeSurfer's "aseg" numbers. Numbers from 500 are tissues of the head around
the brain, as in whole-head label maps; they were identified by their position and their neighbours
in 14 such maps (our measurement).
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from bids_app.imaging.volume import Affine, Grid, Volume, zooms_of

NAMES: dict[str, tuple[int, ...]] = {  # tissue → labels
    "white": (2, 41, 25, 57, 77, 85, 251, 252, 253, 254, 255),
    "cortex": (3, 42),
    "fluid": (4, 5, 14, 15, 24, 30, 43, 44, 62, 72),  # and vessels, and fluid around the brain
    "plexus": (31, 63, 136, 137, 163, 164),
    "cerebellar_white": (7, 46),
    "cerebellar_cortex": (8, 47),
    "thalamus": (10, 49),
    "caudate": (11, 50),
    "putamen": (12, 51),
    "pallidum": (13, 52),
    "brainstem": (16,),
    "hippocampus": (17, 53),
    "amygdala": (18, 54),
    "accumbens": (26, 58),
    "ventral_dc": (28, 60),
    "vessel": (502, 514),
    "eye": (506, 508),
    "muscle": (507, 530),
    "mucosa": (509,),
    "skin": (511,),
    "cord": (512,),
    "bone": (515,),
    "marrow": (516,),
}
CORTEX, HIPPOCAMPUS = NAMES["cortex"], NAMES["hippocampus"]

SIZE = 1024  # of a table indexed by label
HEAD = 500  # first label of the tissues of the head
SURROUNDINGS = 24  # fluid between brain and skull


def table_of(values: dict[str, float]) -> NDArray[np.float32]:
    """Convert values by tissue to a table by label.

    Parameters
    ----------
    values : dict
        Name of a tissue, as in ``NAMES`` → value; values of other tissues are 0.

    Returns
    -------
    ndarray, (1024,)
        float32; to be indexed with a label map.

    Examples
    --------
    >>> table_of({"cortex": 1.0, "white": 0.25})[[0, 2, 3, 42]]
    array([0.  , 0.25, 1.  , 1.  ], dtype=float32)
    """
    table = np.zeros(SIZE, np.float32)
    for name, value in values.items():
        table[list(NAMES[name])] = value
    return table


def labels_in(labels: NDArray[np.int16], *groups: tuple[int, ...]) -> NDArray[np.bool_]:
    """Return a mask of the voxels whose label is in one of the groups."""
    table = np.zeros(SIZE, bool)
    for group in groups:
        table[list(group)] = True
    return table[labels]


def is_in_skull(labels: NDArray[np.int16]) -> NDArray[np.bool_]:
    """Return a mask of the inside of the skull: brain, ventricles and surrounding fluid."""
    return (labels > 0) & (labels < HEAD)


def is_brain(labels: NDArray[np.int16]) -> NDArray[np.bool_]:
    """Return a mask of brain tissue and ventricles, without the fluid around the brain."""
    return is_in_skull(labels) & (labels != SURROUNDINGS)


Labels = NDArray[np.int16]

# Centroids in MNI mm: means over 14 label maps warped to MNI152NLin2009aSym (our measurement).
CENTROIDS: dict[int, tuple[float, float, float]] = {
    2: (-28.4, -16.5, 19.9),
    41: (28.4, -16.5, 19.9),
    3: (-32.6, -18.8, 15.3),
    42: (32.6, -18.8, 15.3),
    4: (-13.9, -14.9, 14.1),
    43: (13.9, -14.9, 14.1),
    7: (-18.9, -53.8, -35.0),
    46: (18.9, -53.8, -35.0),
    8: (-23.6, -63.6, -33.0),
    47: (23.6, -63.6, -33.0),
    10: (-11.2, -18.3, 6.3),
    49: (11.2, -18.3, 6.3),
    11: (-13.1, 9.4, 8.7),
    50: (13.1, 9.4, 8.7),
    12: (-26.0, 1.4, -1.1),
    51: (26.0, 1.4, -1.1),
    13: (-20.7, -2.5, -2.6),
    52: (20.7, -2.5, -2.6),
    14: (0.0, -11.2, -3.6),
    15: (0.0, -44.5, -33.5),
    17: (-25.6, -22.2, -14.4),
    53: (25.6, -22.2, -14.4),
    18: (-24.2, -4.3, -20.2),
    54: (24.2, -4.3, -20.2),
}
FEWEST_CENTROIDS = 8  # our choice: twice the points that determine an affine
MARGIN = 4  # mm of air kept around a head


@dataclass(frozen=True)
class Anatomy:
    """Head as a label map.

    Parameters
    ----------
    labels : ndarray of int16, (I, J, K)
        Labels listed in :mod:`bids_app.simulation.anatomy`; 0 is air.
    affine : ndarray, (4, 4)
        Voxel indices → world coordinates in mm, RAS+.
    mni : ndarray of float32, (I, J, K, 3)
        Approximate MNI coordinates of each voxel, in mm.
    """

    labels: Labels
    affine: Affine
    mni: Volume

    @property
    def zooms(self) -> tuple[float, float, float]:
        """Voxel size in mm along each axis."""
        return zooms_of(self.affine)

    @property
    def grid(self) -> Grid:
        """Grid of its voxels."""
        i, j, k = self.labels.shape
        return Grid((i, j, k), self.affine)


def coordinates(grid: Grid) -> Volume:
    """Return the world coordinates of all voxels.

    Returns
    -------
    ndarray of float32, (I, J, K, 3)
        Coordinates in mm, RAS+. For a grid in MNI space, these are its MNI coordinates.

    Examples
    --------
    >>> coordinates(Grid((1, 1, 2), np.diag([1.0, 1.0, 3.0, 1.0])))[0, 0].tolist()
    [[0.0, 0.0, 0.0], [0.0, 0.0, 3.0]]
    """
    steps = grid.affine[:3, :3].astype(np.float32)
    i, j, k = (np.arange(n, dtype=np.float32) for n in grid.shape)
    along_i, along_j, along_k = steps.T
    origin = grid.affine[:3, 3].astype(np.float32)
    plane = origin + i[:, None, None, None] * along_i + j[:, None, None] * along_j
    return plane + k[:, None] * along_k


def fit_affine(points: NDArray[np.float64], others: NDArray[np.float64]) -> Affine:
    """Fit the affine that maps points to others, by least squares.

    Parameters
    ----------
    points, others : ndarray, (N, 3)
        Pairs of points, N ≥ 4.

    Returns
    -------
    ndarray, (4, 4)
        Affine from ``points`` to ``others``.
    """
    extended = np.c_[points, np.ones(len(points))]
    solution, *_ = np.linalg.lstsq(extended, others, rcond=None)
    affine = np.eye(4)
    affine[:3] = solution.T
    return affine


def _crop(labels: Labels, affine: Affine, margin: float) -> tuple[Labels, Affine]:
    """Crop the air around a head, except for a margin in mm."""
    bounds = []
    for axis, zoom in enumerate(zooms_of(affine)):
        others = tuple(a for a in range(3) if a != axis)
        occupied = np.flatnonzero((labels > 0).any(axis=others))
        spare = round(margin / zoom)
        bounds.append((max(int(occupied[0]) - spare, 0), int(occupied[-1]) + spare + 1))
    moved = affine.copy()
    moved[:3, 3] += affine[:3, :3] @ [low for low, _ in bounds]
    return labels[tuple(slice(*bound) for bound in bounds)], moved


def _measure_centroids(labels: Labels, affine: Affine) -> dict[int, NDArray[np.float64]]:
    counts = np.bincount(labels.ravel(), minlength=max(CENTROIDS) + 1)
    axes = (np.arange(n, dtype=np.float64) for n in labels.shape)
    sums = [
        np.bincount(labels.ravel(), np.broadcast_to(index, labels.shape).ravel())
        for index in np.meshgrid(*axes, indexing="ij", sparse=True)
    ]
    present = [label for label in CENTROIDS if counts[label]]
    return {
        label: affine[:3, :3] @ [s[label] / counts[label] for s in sums] + affine[:3, 3]
        for label in present
    }


def anatomy_from_labels(labels: Labels, affine: Affine) -> Anatomy:
    """Create a head from a label map, and estimate its MNI coordinates.

    Parameters
    ----------
    labels : ndarray of int, (I, J, K)
        FreeSurfer's "aseg" numbers, and numbers from 500 for the rest of the head.
    affine : ndarray, (4, 4)
        Voxel indices → world coordinates in mm, RAS+.

    Returns
    -------
    Anatomy
        Head, cropped to a margin of air. Its MNI coordinates are those of the affine that best
        maps the centroids of nuclei, ventricles, cerebellum and hemispheres to their positions in
        MNI space; they are off by some mm in the cortex.

    Raises
    ------
    ValueError
        If there are too few structures, or a label is out of range.
    """
    if labels.min() < 0 or labels.max() >= 1024:
        raise ValueError("labels must lie between 0 and 1023")
    labels, affine = _crop(labels.astype(np.int16), affine, MARGIN)
    centroids = _measure_centroids(labels, affine)
    if len(centroids) < FEWEST_CENTROIDS:
        raise ValueError(f"only {len(centroids)} structures with aseg numbers are in it")
    world_to_mni = fit_affine(
        np.array(list(centroids.values())), np.array([CENTROIDS[label] for label in centroids])
    )
    i, j, k = labels.shape
    return Anatomy(labels, affine, coordinates(Grid((i, j, k), world_to_mni @ affine)))
