"""How far several volumes are apart."""

from collections.abc import Iterable

import numpy as np

from bids_app.imaging.volume import Volume


def standard_deviation(volumes: Iterable[Volume]) -> Volume:
    """Give the standard deviation of volumes, voxel by voxel, holding one at a time.

    Welford (1962), Technometrics 4:419-420; over one less than there are, so that the variance
    is right on average.

    Parameters
    ----------
    volumes : iterable of ndarray, (I, J, K)
        Two or more on one grid, any unit.

    Returns
    -------
    ndarray, (I, J, K)
        float32, in their unit.

    Raises
    ------
    ValueError
        If there are fewer than two.

    Examples
    --------
    >>> one, other = np.zeros((1, 1, 2), np.float32), np.array([[[0, 2]]], np.float32)
    >>> standard_deviation([one, other])
    array([[[0.       , 1.4142135]]], dtype=float32)
    """
    count, mean, squares = 0, np.zeros(()), np.zeros(())
    for volume in volumes:
        count += 1
        change = volume.astype(np.float64) - mean
        mean = mean + change / count
        squares = squares + change * (volume - mean)
    if count < 2:  # noqa: PLR2004
        raise ValueError(f"{count} volume(s) have no standard deviation")
    return np.sqrt(squares / (count - 1)).astype(np.float32)
