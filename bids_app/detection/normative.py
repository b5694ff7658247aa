"""Maps of how far a person is from controls, voxel by voxel, without learning.

``zscore`` compares PET smoothed within the brain; ``pseudonormal`` compares what a synthetic PET
has over the real one.
"""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from bids_app.imaging.smoothing import smooth
from bids_app.imaging.volume import Mask, Volume

FEWEST = 2  # controls: below, nothing varies
LEAST_SD = 0.1  # of the median over the brain; our choice


@dataclass(frozen=True)
class Norm:
    """What controls are like, voxel by voxel.

    Parameters
    ----------
    mean, sd : ndarray, (I, J, K)
        Mean and standard deviation (n - 1) over controls, float32, in the unit of their volumes.
        Where ``sd`` is 0 nothing is judged: outside the brain, and where controls are copies.
    n : int
        Controls; 2 or more.
    """

    mean: Volume
    sd: Volume
    n: int

    def excess(self, volume: Volume) -> Volume:
        """Give t of how much more a person has than controls.

        Crawford & Howell (1998), The Clinical Neuropsychologist 12:482-486:
        (x - mean) / (sd sqrt((n + 1) / n)). In one more control it has Student's t distribution
        with n - 1 degrees of freedom. A z score would call too many healthy people ill, as it
        takes the mean and sd of few controls for those of all.

        Parameters
        ----------
        volume : ndarray, (I, J, K)
            In the unit of the controls' volumes, and treated as they were.

        Returns
        -------
        ndarray, (I, J, K)
            float32; 0 where ``sd`` is 0.

        Raises
        ------
        ValueError
            If shapes differ.
        """
        if volume.shape != self.mean.shape:
            raise ValueError(f"{volume.shape} voxels differ from the norm's {self.mean.shape}")
        judged = self.sd > 0
        score = np.zeros(volume.shape, np.float32)
        wide = self.sd[judged] * np.sqrt((self.n + 1) / self.n)
        score[judged] = (volume[judged].astype(np.float64) - self.mean[judged]) / wide
        return score

    def deficit(self, volume: Volume) -> Volume:
        """Give t of how much less a person has than controls: minus :meth:`excess`."""
        return 0 - self.excess(volume)  # no negative zeros


def learn_norm(volumes: Iterable[Volume], brain: Mask, *, least_sd: float = LEAST_SD) -> Norm:
    """Learn from controls, holding one volume at a time.

    Welford (1962), Technometrics 4:419-420.

    Parameters
    ----------
    volumes : iterable of ndarray, (I, J, K)
        Two controls or more, on one grid, in one unit.
    brain : ndarray of bool, (I, J, K)
        Where a norm is wanted; mean and sd are 0 elsewhere.
    least_sd : float
        No voxel's sd is taken for less than this share of the median sd in the brain: a few
        controls agree by chance somewhere, and where all are clipped; a hair would be abnormal.

    Raises
    ------
    ValueError
        If there are fewer than two controls, the brain is empty, or shapes differ.
    """
    if not brain.any():
        raise ValueError("the brain of a norm is empty")
    n, mean, squares = 0, np.zeros(int(brain.sum())), np.zeros(int(brain.sum()))
    for volume in volumes:
        if volume.shape != brain.shape:
            raise ValueError(f"{volume.shape} voxels differ from the brain's {brain.shape}")
        n += 1
        values = volume[brain]
        change = values - mean
        mean += change / n
        squares += change * (values - mean)
    if n < FEWEST:
        raise ValueError(f"{n} control(s) are too few for a norm; {FEWEST} are needed")
    sd = np.sqrt(squares / (n - 1))
    sd = np.maximum(sd, least_sd * float(np.median(sd)))
    return Norm(_lay_out(mean, brain), _lay_out(sd, brain), n)


def _lay_out(values: np.ndarray, brain: Mask) -> Volume:
    volume = np.zeros(brain.shape, np.float32)
    volume[brain] = values
    return volume


def smooth_within(
    volume: Volume, brain: Mask, *, fwhm: float, zooms: tuple[float, float, float]
) -> Volume:
    """Smooth a volume with what the brain holds alone.

    Each voxel is the weighted mean of the brain's voxels around it: the smoothed volume, 0 outside
    the brain, over the smoothed mask. Without that, the cortex would darken as much as the brain
    around a voxel is missing, and people whose brains end a little earlier would seem ill. Our
    choice.

    Parameters
    ----------
    volume : ndarray, (I, J, K)
        Any unit; what is outside the brain does not count.
    brain : ndarray of bool, (I, J, K)
        Best the same for all people that are compared.
    fwhm : float
        Full width of the Gaussian at half of its maximum, in mm.
    zooms : tuple of float
        Voxel size in mm.

    Returns
    -------
    ndarray, (I, J, K)
        float32; 0 outside the brain.
    """
    amount = smooth(np.where(brain, volume, 0).astype(np.float32), fwhm, zooms)
    weight = smooth(brain.astype(np.float32), fwhm, zooms)
    return np.divide(amount, weight, out=np.zeros_like(amount), where=brain)


def pseudonormal_difference(synthetic: Volume, real: Volume) -> Volume:
    """Give what a person's synthetic PET, normal by its making, has over the real one.

    :meth:`Norm.excess` of it, against that of controls, is the ``pseudonormal`` score map: above 0
    where the real PET is further below the synthetic one than in controls.

    Parameters
    ----------
    synthetic, real : ndarray, (I, J, K)
        Scaled to 0..1.

    Returns
    -------
    ndarray, (I, J, K)
        float32, -1 to 1.
    """
    return synthetic.astype(np.float32) - real.astype(np.float32)
