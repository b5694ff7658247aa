"""Lines drawn over slices: the edge of the brain, and of the white matter."""

from dataclasses import dataclass
from typing import Final

import contourpy
import numpy as np
from contourpy import LineType
from numpy.typing import NDArray
from scipy import ndimage

from bids_app.imaging.volume import Mask, Volume

SMOOTHING: Final = 0.7  # voxels; our choice: enough to calm the noise of a T1w
FEWEST_POINTS: Final = 12  # our choice: shorter lines are specks


@dataclass(frozen=True)
class Outline:
    """A line to be drawn where a volume crosses a level.

    Parameters
    ----------
    name : str
        What it follows, for the legend.
    colour : str
        As CSS writes it.
    volume : ndarray, (I, J, K)
        RAS+.
    level : float
        In the unit of the volume.
    """

    name: str
    colour: str
    volume: Volume
    level: float


def tissue_levels(t1w: Volume, brain: Mask) -> tuple[float, float]:
    """Find two intensities that part CSF from grey, and grey from white matter.

    Three means on the intensities of the brain (Lloyd's algorithm), started at the 10th, 45th and
    80th percentile (our choice). Meant for drawing only.

    Returns
    -------
    tuple of float
        CSF | grey and grey | white, in the unit of the T1w; zeros where the brain is empty.
    """
    values = t1w[brain][::5]  # a fifth of the voxels tells as much
    if not values.size:
        return 0.0, 0.0
    means = np.percentile(values, [10, 45, 80])
    for _ in range(12):
        borders = (means[1:] + means[:-1]) / 2
        group = np.digitize(values, borders)
        counts = np.bincount(group, minlength=3)
        sums = np.bincount(group, weights=values, minlength=3)
        means = np.where(counts > 0, sums / np.maximum(counts, 1), means)
    lower, upper = ((means[1:] + means[:-1]) / 2).tolist()
    return lower, upper


def trace(values: Volume, level: float, size: tuple[float, float]) -> str:
    """Follow a level through a slice.

    Parameters
    ----------
    values : ndarray, (rows, columns)
        A slice, the top row first.
    level : float
        In the unit of the values.
    size : tuple of float
        Width and height of the slice in mm.

    Returns
    -------
    str
        A path as SVG writes it, in mm from the slice's upper left corner.
    """
    rows, columns = values.shape
    if min(rows, columns) < 2:  # noqa: PLR2004 - a line needs two neighbours on each side
        return ""
    step = np.array([size[0] / columns, size[1] / rows])
    calm = ndimage.gaussian_filter(values.astype(np.float32), SMOOTHING)
    lines = contourpy.contour_generator(z=calm, line_type=LineType.Separate).lines(level)
    points = (np.asarray(line, dtype=np.float64) for line in lines)
    return "".join(_path((line + 0.5) * step) for line in points if len(line) >= FEWEST_POINTS)


def _path(points: NDArray[np.float64]) -> str:
    """Write one line as a path, in steps of a tenth of a mm from point to point."""
    tenths = np.round(points * 10).astype(int)
    first, moves = tenths[0], np.diff(tenths, axis=0)
    steps = " ".join(f"{x / 10:g} {y / 10:g}" for x, y in moves[moves.any(axis=1)].tolist())
    return f"M{first[0] / 10:g} {first[1] / 10:g}l{steps}"
