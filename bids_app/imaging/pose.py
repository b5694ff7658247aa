"""Pose of a head: a coarse search over all orientations, because headers may be wrong.

Registration finds the nearest optimum, within a few centimetres and some 30° of its start. Larger
rotations are searched here, from many starts, on a few thousand points. Poses are rigid transforms
of shape (4, 4), world → world in mm, RAS+, from the fixed image to the moving one.
"""

from dataclasses import dataclass
from itertools import permutations, product

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage, optimize
from scipy.spatial.transform import Rotation

from bids_app.imaging.intensity import smooth
from bids_app.imaging.volume import Affine, Mask, Volume, zooms_of

Points = NDArray[np.float64]

GRID = 8.0  # mm between points, and FWHM of the smoothing; our choice
FIRST = 4  # stride over the points in the first round
KEPT = 6  # starts kept for the second round; our choice
HALF = 0.5  # voxel, from the centre to a face
FIRST_STEPS = (5.0, 5.0, 5.0, 8.0, 8.0, 8.0)  # of the optimizer: three of 0.1 rad, three in mm
STEPS = 160  # evaluations per start in the second round; our choice
SIZING = 400  # evaluations for the estimate of a size; our choice
LEAST_SEEN = 0.5  # minimum share of points inside the moving image; our choice
TILT, CORNER = 45.0, 60.0  # degrees; every orientation is then within 40° of a start
SCALE = 0.02  # rad per mm, so that rotations and shifts move the cortex by similar amounts
NEAR = 30.0  # degrees from the header within which registration succeeds; our choice
LEAST_SCORE = 0.5  # of a pose that may overrule the header; brains that fit reach 0.7 or more
CLEARLY = 0.03  # of correlation: wrong orientations score at least .06 below the right one


@dataclass(frozen=True)
class Pose:
    """Result of the search.

    Parameters
    ----------
    matrix : ndarray, (4, 4)
        World of the fixed image → world of the moving one, mm, RAS+.
    score : float
        Correlation in this pose, -1 to 1.
    header_score : float
        Best correlation reached within 30° of the header's pose, starting from that pose and from
        matched centres of mass.
    """

    matrix: Affine
    score: float
    header_score: float

    @property
    def degrees(self) -> float:
        """Angle of rotation from the header's pose, 0 to 180."""
        return _degrees(self.matrix[:3, :3])

    @property
    def is_better(self) -> bool:
        """True if it is out of reach of registration from the header, and clearly better."""
        enough = max(LEAST_SCORE, self.header_score + CLEARLY)
        return self.degrees > NEAR and self.score > enough


def _degrees(turn: NDArray[np.float64]) -> float:
    return float(np.degrees(np.arccos(np.clip((np.trace(turn) - 1) / 2, -1, 1))))


def axis_aligned() -> list[NDArray[np.float64]]:
    """List the 24 rotations that map axes onto axes."""
    rotations = []
    for order in permutations(range(3)):
        for signs in product((1.0, -1.0), repeat=3):
            matrix = np.zeros((3, 3))
            matrix[range(3), order] = signs
            if np.linalg.det(matrix) > 0:
                rotations.append(matrix)
    return rotations


def directions() -> list[NDArray[np.float64]]:
    """List a dense set of rotations: the 24 axis-aligned ones, each also tilted by 45° and 60°.

    Tilts of 45° about the axes and of 60° about the diagonals are those farthest from all 24.
    """
    axes = [TILT * axis for axis in np.eye(3)]
    corners = [CORNER * np.array([1, y, z]) / np.sqrt(3) for y, z in product((1, -1), repeat=2)]
    tilts = [np.eye(3)] + [
        Rotation.from_rotvec(vector, degrees=True).as_matrix() for vector in (*axes, *corners)
    ]
    return [turn @ tilt for turn, tilt in product(axis_aligned(), tilts)]


def _lattice(mask: Mask, affine: Affine) -> tuple[Points, tuple[NDArray[np.intp], ...]]:
    """Choose voxels of a mask about ``GRID`` mm apart; return world coordinates and indices."""
    steps = [max(round(GRID / zoom), 1) for zoom in zooms_of(affine)]
    chosen = np.zeros_like(mask)
    box = tuple(slice(step // 2, None, step) for step in steps)
    chosen[box] = mask[box]
    indices = np.nonzero(chosen)
    return np.stack(indices, axis=1) @ affine[:3, :3].T + affine[:3, 3], indices


def centre_of(volume: Volume, affine: Affine) -> NDArray[np.float64]:
    """Return the centre of the voxels brighter than half of the range, in world mm."""
    low, high = np.percentile(volume, (1, 99.9))
    bright = volume > (low + high) / 2
    indices = np.argwhere(bright).mean(axis=0) if bright.any() else np.array(volume.shape) / 2
    return affine[:3, :3] @ indices + affine[:3, 3]


class PoseSearch:
    """Search for the pose in which two images of the same contrast correlate best.

    Parameters
    ----------
    fixed, moving : ndarray, (I, J, K) each
        Images in any unit.
    fixed_affine, moving_affine : ndarray, (4, 4)
        Voxel indices → world coordinates in mm, RAS+.
    mask : ndarray of bool, (I, J, K)
        Voxels of the fixed image that are compared: the brain with a margin.
    bounded : bool
        If True, intensities outside the moving image are unknown (a PET); otherwise they are 0 (a
        brain alone).
    """

    def __init__(
        self,
        fixed: Volume,
        fixed_affine: Affine,
        mask: Mask,
        moving: Volume,
        moving_affine: Affine,
        *,
        bounded: bool,
    ) -> None:
        self.points, indices = _lattice(mask, fixed_affine)
        self.values = smooth(fixed, GRID, zooms_of(fixed_affine))[indices].astype(np.float64)
        self.moving = smooth(moving, GRID, zooms_of(moving_affine))
        self.inverse, self.bounded = np.linalg.inv(moving_affine), bounded
        self.centres = centre_of(fixed, fixed_affine), centre_of(moving, moving_affine)

    def score(self, pose: Affine, step: int = 1) -> float:
        """Compute the correlation of the images in a pose.

        Parameters
        ----------
        pose : ndarray, (4, 4)
            World of the fixed image → world of the moving one; need not be rigid.
        step : int
            Stride over the points.

        Returns
        -------
        float
            Correlation, -1 to 1. If the moving image is bounded, only the points inside it count,
            and the correlation is multiplied by the square root of their share. If less than half
            of the points are inside, -1.
        """
        whole = self.inverse @ pose
        places = whole[:3, :3] @ self.points[::step].T + whole[:3, 3:]
        values = self.values[::step]
        sides = np.array(self.moving.shape)[:, None] - HALF
        inside = ((places > -HALF) & (places < sides)).all(axis=0)
        share = float(inside.mean()) if inside.size else 0.0
        if share < LEAST_SEEN:
            return -1.0
        if self.bounded:
            values, places = values[inside], places[:, inside]
        moved = ndimage.map_coordinates(
            self.moving, places, order=1, mode="nearest" if self.bounded else "constant"
        )
        if np.ptp(moved) == 0 or np.ptp(values) == 0:  # ranges, as squares may overflow float32
            return -1.0
        return float(np.corrcoef(values, moved)[0, 1]) * (np.sqrt(share) if self.bounded else 1.0)

    def find(self) -> Pose:
        """Search all orientations; return the best pose, and the best score near the header's."""
        no_shift = np.zeros(3)
        fixed, moving = self.centres
        header = [self._climb(np.eye(3), shift, NEAR) for shift in (no_shift, fixed - moving)]
        turns = directions()
        scores = [self.score(self._pose(turn, np.zeros(6)), FIRST) for turn in turns]
        best = np.argsort(scores)[::-1][:KEPT]
        climbed = [self._climb(turns[index], no_shift) for index in best]
        score, matrix = max((*header, *climbed), key=lambda match: match[0])
        return Pose(matrix, score, max(match[0] for match in header))

    def size(self, pose: Affine) -> float:
        """Estimate how many times larger the moving brain is than the fixed one, near a rigid pose.

        The correlation is optimized over a size, about the pose, with the rotation and shift that
        fit it best.
        """
        fixed, _ = self.centres

        def loss(parameters: NDArray[np.float64]) -> float:
            change = np.eye(4)
            change[:3, :3] = Rotation.from_rotvec(parameters[:3] * SCALE).as_matrix()
            change[:3, :3] *= np.exp(SCALE * parameters[6])
            change[:3, 3] = fixed + parameters[3:6] - change[:3, :3] @ fixed
            return -self.score(pose @ change)

        optimum = optimize.minimize(
            loss,
            np.zeros(7),
            method="Powell",
            options={"maxfev": SIZING, "xtol": 0.05, "ftol": 1e-5},
        )
        return float(np.exp(SCALE * optimum.x[6]))

    def _pose(self, turn: NDArray[np.float64], parameters: NDArray[np.float64]) -> Affine:
        """Create a pose: match centres of mass, rotate, then add three angles and three shifts."""
        fixed, moving = self.centres
        small = Rotation.from_rotvec(np.asarray(parameters[:3]) * SCALE).as_matrix()
        pose = np.eye(4)
        pose[:3, :3] = small @ turn
        pose[:3, 3] = moving + parameters[3:] - pose[:3, :3] @ fixed
        return pose

    def _climb(
        self, turn: NDArray[np.float64], shift: NDArray[np.float64], limit: float = 180.0
    ) -> tuple[float, Affine]:
        """Optimize from a start, within ``limit`` degrees of the header's orientation."""

        def loss(parameters: NDArray[np.float64]) -> float:
            pose = self._pose(turn, parameters)
            return 1.0 if _degrees(pose[:3, :3]) > limit else -self.score(pose)

        optimum = optimize.minimize(
            loss,
            np.concatenate([np.zeros(3), shift]),
            method="Powell",
            options={"maxfev": STEPS, "xtol": 0.5, "ftol": 1e-3, "direc": np.diag(FIRST_STEPS)},
        )
        return -float(optimum.fun), self._pose(turn, optimum.x)
