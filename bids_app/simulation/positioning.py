"""How a head lies in a scanner: grids of any orientation, and rigid offsets."""

import numpy as np
from numpy.typing import NDArray
from scipy.spatial.transform import Rotation

from bids_app.imaging.volume import Affine, Grid

ORIENTATIONS = ("RAS", "LAS", "LIA", "PSR", "LPS", "ASR")
DIRECTIONS = {"R": (0, 1), "L": (0, -1), "A": (1, 1), "P": (1, -1), "S": (2, 1), "I": (2, -1)}
LPS_OF_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])


def lay_grid(
    low: NDArray[np.float64],
    high: NDArray[np.float64],
    zoom: float,
    *,
    orientation: str = "RAS",
    tilt: NDArray[np.float64] | None = None,
) -> Grid:
    """Lay isotropic voxels over a box.

    Parameters
    ----------
    low, high : ndarray, (3,)
        Corners of the box in mm, RAS+.
    zoom : float
        Edge of a voxel in mm.
    orientation : str
        Where the array's axes point to, as nibabel spells it: ``RAS``, ``LIA``, ….
    tilt : ndarray, (3, 3), optional
        Rotation of the grid about the middle of the box.

    Returns
    -------
    Grid

    Examples
    --------
    >>> lay_grid(np.zeros(3), np.array([4.0, 6.0, 8.0]), 2.0, orientation="LIA").shape
    (3, 5, 4)
    """
    axes = [DIRECTIONS[letter] for letter in orientation]
    counts = np.ceil((high - low) / zoom).astype(int) + 1
    x, y, z = (int(counts[axis]) for axis, _ in axes)
    steps = np.zeros((3, 3))
    for column, (axis, sign) in enumerate(axes):
        steps[axis, column] = sign * zoom
    if tilt is not None:
        steps = tilt @ steps
    affine = np.eye(4)
    affine[:3, :3] = steps
    affine[:3, 3] = (low + high) / 2 - steps @ ((np.array([x, y, z]) - 1) / 2)
    return Grid((x, y, z), affine)


def draw_rotation(degrees: float, rng: np.random.Generator) -> NDArray[np.float64]:
    """Draw a rotation, (3, 3), of up to some degrees about each axis."""
    return Rotation.from_euler("xyz", rng.uniform(-degrees, degrees, 3), degrees=True).as_matrix()


def draw_rigid(
    centre: NDArray[np.float64], rng: np.random.Generator, *, degrees: float, shift: float
) -> Affine:
    """Draw a rigid transform: a rotation about a point, then a shift.

    Parameters
    ----------
    centre : ndarray, (3,)
        In mm.
    rng : numpy.random.Generator
        Where chance comes from.
    degrees, shift : float
        The most of each, about or along each axis; mm for the shift.

    Returns
    -------
    ndarray, (4, 4)
        Of points, in mm, RAS+.
    """
    rigid = np.eye(4)
    rigid[:3, :3] = draw_rotation(degrees, rng)
    rigid[:3, 3] = centre - rigid[:3, :3] @ centre + rng.uniform(-shift, shift, 3)
    return rigid


def itk_text(points: Affine) -> str:
    """Write an affine transform of points as ITK's text format.

    ITK and ANTs resample by asking, for a point of the fixed image, where it is in the moving one.
    So the file that "moves PET onto T1w" holds the transform of points of T1w to points of PET.

    Parameters
    ----------
    points : ndarray, (4, 4)
        From points of the fixed image to those of the moving one, in mm, RAS+. The text has them
        in LPS+.

    Examples
    --------
    >>> print(itk_text(np.diag([1.0, 1.0, 1.0, 1.0])).splitlines()[3])
    Parameters: 1.0 0.0 0.0 0.0 1.0 0.0 0.0 0.0 1.0 0.0 0.0 0.0
    """
    lps = LPS_OF_RAS @ points @ LPS_OF_RAS + 0.0  # + 0.0: no "-0.0" in the text
    numbers = [*lps[:3, :3].ravel().tolist(), *lps[:3, 3].tolist()]
    return (
        "#Insight Transform File V1.0\n#Transform 0\nTransform: AffineTransform_double_3_3\n"
        f"Parameters: {' '.join(map(repr, numbers))}\nFixedParameters: 0.0 0.0 0.0\n"
    )
