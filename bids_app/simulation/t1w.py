"""Paint a T1w image on a label map, as one scanner or another would show it."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from bids_app.imaging.smoothing import smooth
from bids_app.imaging.volume import Volume
from bids_app.simulation.anatomy import Labels
from bids_app.simulation.aseg import table_of

# Where a structure lies between cortex (0) and white matter (1), for T1w (our choice).
BETWEEN = {
    "cerebellar_cortex": 0.02, "hippocampus": 0.05, "amygdala": 0.0, "caudate": 0.08,
    "accumbens": 0.12, "putamen": 0.28, "thalamus": 0.55, "pallidum": 0.80, "ventral_dc": 0.72,
    "brainstem": 0.85, "cerebellar_white": 0.97, "cord": 0.8,
}  # fmt: skip
# Head tissue as a share of white matter: mean and standard deviation among scanners (our choice).
HEAD = {
    "skin": (1.05, 0.20), "muscle": (0.62, 0.12), "mucosa": (0.55, 0.12), "eye": (0.25, 0.06),
    "vessel": (0.40, 0.20), "bone": (0.10, 0.04), "marrow": (0.75, 0.25),
}  # fmt: skip
WAVES = 4  # cosines of the bias field along each axis, the constant among them


@dataclass(frozen=True)
class Contrast:
    """How bright each tissue is in one scan, and how good the scan is.

    Parameters
    ----------
    means : ndarray, (1024,)
        Brightness by label; white matter is about 1.
    texture : float
        Standard deviation of brightness within a tissue, as a share of white matter.
    fwhm : float
        Resolution in mm.
    bias : float
        Standard deviation of the logarithm of the bias field.
    noise : float
        Standard deviation of the noise of each of the two channels, as a share of white matter.
    """

    means: NDArray[np.float32]
    texture: float
    fwhm: float
    bias: float
    noise: float


def random_contrast(rng: np.random.Generator) -> Contrast:
    """Draw the contrast of a T1w scan: white > grey > fluid, by how much differs among scanners.

    Cortex lies at 0.5 to 0.8 of white matter, fluid at 0.08 to 0.4 (our choice, wide on purpose).
    """
    white = 1.0
    cortex = float(rng.uniform(0.50, 0.80))
    fluid = float(rng.uniform(0.08, min(0.40, cortex - 0.15)))
    values = {"white": white, "cortex": cortex, "fluid": fluid}
    values["plexus"] = fluid + float(rng.uniform(0.2, 0.6)) * (cortex - fluid)
    for name, share in BETWEEN.items():
        share = np.clip(share + rng.normal(0, 0.06), -0.1, 1.0)  # noqa: PLW2901
        values[name] = cortex + float(share) * (white - cortex)
    for name, (mean, spread) in HEAD.items():
        values[name] = float(np.clip(rng.normal(mean, spread), 0.02, 1.6))
    means = table_of(values)
    means[[25, 57, 77]] = cortex + 0.5 * (white - cortex)  # lesions of white matter
    return Contrast(
        means=means,
        texture=float(rng.uniform(0.01, 0.04)),
        fwhm=float(rng.uniform(0.7, 1.6)),
        bias=float(rng.uniform(0.03, 0.15)),
        noise=float(rng.uniform(0.01, 0.045)),
    )


def draw_bias_field(shape: tuple[int, ...], size: float, rng: np.random.Generator) -> Volume:
    """Draw a smooth field around 1: the exponential of a sum of slow cosines.

    Parameters
    ----------
    shape : tuple of int
        (I, J, K).
    size : float
        Standard deviation of its logarithm.
    rng : numpy.random.Generator
        Where chance comes from.
    """
    orders = np.arange(WAVES)
    weights = rng.standard_normal((WAVES,) * 3) / (1 + np.add.outer(np.add.outer(
        orders**2, orders**2), orders**2))  # fmt: skip
    weights[0, 0, 0] = 0
    field = weights
    for n in shape:  # one axis at a time: it goes to the end when it is done
        waves = np.cos(np.pi * np.outer(orders, (np.arange(n) + 0.5) / n))
        field = np.tensordot(field, waves, axes=(0, 0))
    return np.exp(size * field / field.std()).astype(np.float32)


def paint_t1w(
    labels: Labels,
    contrast: Contrast,
    rng: np.random.Generator,
    zooms: tuple[float, float, float],
) -> Volume:
    """Paint a T1w image: tissue, texture, partial volume, bias field, Rician noise.

    Parameters
    ----------
    labels : ndarray of int16, (I, J, K)
        A head or a bare brain; 0 is air.
    contrast : Contrast
        As :func:`random_contrast` draws one.
    rng : numpy.random.Generator
        Where chance comes from.
    zooms : tuple of float
        Voxel size in mm along each axis.

    Returns
    -------
    ndarray, (I, J, K)
        float32, not negative; white matter is about 1.
    """
    noise = rng.standard_normal(labels.shape, dtype=np.float32)
    t1w = contrast.means[labels]
    t1w += contrast.texture * (t1w > 0) * noise
    t1w = smooth(t1w, contrast.fwhm, zooms)
    t1w *= draw_bias_field(labels.shape, contrast.bias, rng)
    real = t1w + contrast.noise * rng.standard_normal(labels.shape, dtype=np.float32)
    other = contrast.noise * rng.standard_normal(labels.shape, dtype=np.float32)
    return np.hypot(real, other)
