"""What a PET scanner makes of uptake: blur, another grid, frames, noise."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from bids_app.imaging.smoothing import smooth
from bids_app.imaging.volume import Affine, Grid, Volume

PSF = (4.5, 5.5)  # mm; range of FWHM among scanners; our choice
CORTEX = (15e3, 30e3)  # Bq/mL in cortex: 180–300 MBq in 60–90 kg an hour later; our choice
NOISE = (0.02, 0.05)  # of cortex, over the whole scan; our choice
NOISE_FWHM = 4.0  # mm; reconstruction correlates noise; our choice
RISE = 0.03  # growth of uptake from the first frame to the last; our choice


@dataclass(frozen=True)
class Scanner:
    """How a PET scan turns out.

    Parameters
    ----------
    fwhm : float
        Of the point spread function, in mm.
    scale : float
        Bq/mL where uptake is 1.
    noise : float
        Standard deviation of noise where uptake is 1, as a share of it; it goes with the square
        root of uptake.
    """

    fwhm: float
    scale: float
    noise: float


def draw_scanner(rng: np.random.Generator) -> Scanner:
    """Draw how a PET scan turns out."""
    return Scanner(*(float(rng.uniform(*bounds)) for bounds in (PSF, CORTEX, NOISE)))


def blur(activity: Volume, scanner: Scanner, zooms: tuple[float, float, float]) -> Volume:
    """See uptake through the point spread function: the PET without noise, in Bq/mL."""
    return smooth(activity, scanner.fwhm, zooms) * np.float32(scanner.scale)


def see(noisefree: Volume, affine: Affine, grid: Grid, pet_to_t1w: Affine) -> Volume:
    """Resample the noise-free PET onto the PET scanner's grid, linearly.

    Parameters
    ----------
    noisefree : ndarray, (I, J, K)
        On the grid of the T1w.
    affine : ndarray, (4, 4)
        Of the T1w.
    grid : Grid
        Of the PET.
    pet_to_t1w : ndarray, (4, 4)
        World coordinates of PET → world coordinates of T1w, in mm.

    Returns
    -------
    ndarray
        0 beyond the T1w.
    """
    pet_to_index = np.linalg.inv(affine) @ pet_to_t1w @ grid.affine
    return ndimage.affine_transform(
        noisefree, pet_to_index[:3, :3], pet_to_index[:3, 3], grid.shape, order=1, cval=0.0
    )  # fmt: skip


def acquire(
    noisefree: Volume, scanner: Scanner, durations: NDArray[np.float64],
    zooms: tuple[float, float, float], rng: np.random.Generator,
) -> NDArray[np.float32]:  # fmt: skip
    """Add the noise of a scan, frame by frame.

    Parameters
    ----------
    noisefree : ndarray, (I, J, K)
        In Bq/mL; the mean over all frames.
    scanner : Scanner
        How noisy it is.
    durations : ndarray, (T,)
        Of the frames, in seconds; shorter frames are noisier.
    zooms : tuple of float
        Voxel size in mm along each axis.
    rng : numpy.random.Generator
        Where chance comes from.

    Returns
    -------
    ndarray, (I, J, K, T)
        float32, in Bq/mL, not negative. Averaged by duration, frames give a scan of the whole
        time.
    """
    spread = scanner.noise * np.sqrt(np.maximum(noisefree, 0) * scanner.scale)
    middles = np.cumsum(durations) - durations / 2
    growth = RISE * (middles - np.average(middles, weights=durations)) / durations.sum()
    frames = []
    for duration, gain in zip(durations, growth, strict=True):
        noise = smooth(rng.standard_normal(noisefree.shape, dtype=np.float32), NOISE_FWHM, zooms)
        noise *= spread * np.float32(np.sqrt(durations.sum() / duration) / noise.std())
        frames.append(np.maximum(noisefree * np.float32(1 + gain) + noise, 0))
    return np.stack(frames, axis=-1).astype(np.float32)
