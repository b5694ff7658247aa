"""From a dynamic PET to one volume."""

import numpy as np
from numpy.typing import NDArray

from bids_app.imaging.volume import Volume


def average_frames(frames: NDArray[np.float32], durations: NDArray[np.float64]) -> Volume:
    """Average PET frames, each weighted by how long it lasted.

    Parameters
    ----------
    frames : ndarray, (I, J, K, T)
        Activity concentration, any unit; kept.
    durations : ndarray, (T,)
        Length of each frame in seconds.

    Returns
    -------
    ndarray, (I, J, K)
        float32; a voxel that holds no number in one of the frames holds none on average.

    Raises
    ------
    ValueError
        If there is not one positive duration a frame.

    Examples
    --------
    >>> average_frames(np.array([[[[1, 4]]]], np.float32), np.array([200.0, 100.0]))
    array([[[2.]]], dtype=float32)
    """
    if durations.shape != frames.shape[3:]:
        raise ValueError(f"{frames.shape[3]} frames but {durations.size} durations")
    if not (durations > 0).all():
        raise ValueError("a frame lasts no time")
    total = np.zeros(frames.shape[:3], np.float64)
    for number, share in enumerate(durations / durations.sum()):  # all at once takes memory
        total += share * frames[..., number]
    return total.astype(np.float32)
