"""Simulation of T1w and FDG PET from a label map: contrast, uptake, blur, frames and noise."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from bids_app.imaging.intensity import SIGMA_OF_FWHM, smooth
from bids_app.imaging.volume import Affine, Grid, Volume, grid_of_box
from bids_app.simulation.anatomy import NAMES, Anatomy, Labels, coordinates, is_in_skull, table_of
from bids_app.simulation.geometry import random_field, sample, to_indices

PSF = (4.0, 8.0)  # mm; published range of FWHM of PET scanners in use
USUAL_PSF = 6.0  # mm; middle of that range
CORTEX = (15e3, 30e3)  # Bq/mL in cortex: 180–300 MBq in 60–90 kg an hour later; our choice
NOISE = (0.03, 0.06)  # of cortex, over the whole scan; our choice
NOISE_FWHM = 4.0  # mm; reconstruction correlates noise; our choice
RISE = 0.03  # growth of uptake from the first frame to the last; our choice


@dataclass(frozen=True)
class Scanner:
    """Resolution, scale and noise of a PET scan.

    Parameters
    ----------
    fwhm : float
        Full width at half maximum of the point spread function, in mm.
    scale : float
        Activity concentration at an uptake of 1, in Bq/mL.
    noise : float
        Standard deviation of the noise at an uptake of 1, as a share of it; it is proportional to
        the square root of uptake.
    """

    fwhm: float
    scale: float
    noise: float


def draw_scanner(rng: np.random.Generator) -> Scanner:
    """Draw the properties of a PET scan."""
    return Scanner(*(float(rng.uniform(*bounds)) for bounds in (PSF, CORTEX, NOISE)))


def blur(activity: Volume, scanner: Scanner, zooms: tuple[float, float, float]) -> Volume:
    """Apply the point spread function, and return the noise-free PET in Bq/mL."""
    return smooth(activity, scanner.fwhm, zooms) * np.float32(scanner.scale)


def resample_to_scanner(
    noisefree: Volume, affine: Affine, grid: Grid, pet_to_t1w: Affine
) -> Volume:
    """Resample the noise-free PET linearly to the grid of the PET scan.

    Parameters
    ----------
    noisefree : ndarray, (I, J, K)
        Noise-free PET on the grid of the T1w.
    affine : ndarray, (4, 4)
        Affine of the T1w.
    grid : Grid
        Grid of the PET scan.
    pet_to_t1w : ndarray, (4, 4)
        World coordinates of PET → world coordinates of T1w, in mm.

    Returns
    -------
    ndarray
        Noise-free PET on the grid of the PET scan, 0 outside the T1w.
    """
    pet_to_index = np.linalg.inv(affine) @ pet_to_t1w @ grid.affine
    return ndimage.affine_transform(
        noisefree, pet_to_index[:3, :3], pet_to_index[:3, 3], grid.shape, order=1, cval=0.0
    )


def acquire(
    noisefree: Volume,
    scanner: Scanner,
    durations: NDArray[np.float64],
    zooms: tuple[float, float, float],
    rng: np.random.Generator,
) -> NDArray[np.float32]:
    """Add the noise of a scan, frame by frame.

    Parameters
    ----------
    noisefree : ndarray, (I, J, K)
        Mean over all frames without noise, in Bq/mL.
    scanner : Scanner
        Noise and scale of the scan.
    durations : ndarray, (T,)
        Durations of the frames, in seconds; shorter frames are noisier.
    zooms : tuple of float
        Voxel size in mm along each axis.
    rng : numpy.random.Generator
        Source of randomness.

    Returns
    -------
    ndarray, (I, J, K, T)
        float32, in Bq/mL, not negative. The average of the frames, weighted by duration, is a scan
        of the whole time.
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


# Intensity of a structure in T1w between cortex (0) and white matter (1) (our choice).
BETWEEN = {
    "cerebellar_cortex": 0.02,
    "hippocampus": 0.05,
    "amygdala": 0.0,
    "caudate": 0.08,
    "accumbens": 0.12,
    "putamen": 0.28,
    "thalamus": 0.55,
    "pallidum": 0.80,
    "ventral_dc": 0.72,
    "brainstem": 0.85,
    "cerebellar_white": 0.97,
    "cord": 0.8,
}
# Intensity of head tissue relative to white matter: mean and SD among scanners (our choice).
HEAD = {
    "skin": (1.05, 0.20),
    "muscle": (0.62, 0.12),
    "mucosa": (0.55, 0.12),
    "eye": (0.25, 0.06),
    "vessel": (0.40, 0.20),
    "bone": (0.10, 0.04),
    "marrow": (0.75, 0.25),
}
WAVES = 4  # cosines of the bias field along each axis, including the constant


@dataclass(frozen=True)
class Contrast:
    """Contrast and quality of a T1w scan.

    Parameters
    ----------
    means : ndarray, (1024,)
        Mean intensity by label; white matter is about 1.
    texture : float
        Standard deviation of intensity within a tissue, as a share of white matter.
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
    """Draw the contrast of a T1w scan: white > grey > fluid, by amounts that vary among scanners.

    The intensity of cortex is 0.5 to 0.8 of that of white matter, and that of fluid 0.08 to 0.4
    (our choice, wide on purpose).
    """
    white = 1.0
    cortex = float(rng.uniform(0.50, 0.80))
    fluid = float(rng.uniform(0.08, min(0.40, cortex - 0.15)))
    values = {"white": white, "cortex": cortex, "fluid": fluid}
    values["plexus"] = fluid + float(rng.uniform(0.2, 0.6)) * (cortex - fluid)
    for name, share in BETWEEN.items():
        drawn = np.clip(share + rng.normal(0, 0.06), -0.1, 1.0)
        values[name] = cortex + float(drawn) * (white - cortex)
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
        Source of randomness.
    """
    orders = np.arange(WAVES)
    weights = rng.standard_normal((WAVES,) * 3) / (
        1 + np.add.outer(np.add.outer(orders**2, orders**2), orders**2)
    )
    weights[0, 0, 0] = 0
    field = weights
    for n in shape:  # each axis in turn, moved to the end
        waves = np.cos(np.pi * np.outer(orders, (np.arange(n) + 0.5) / n))
        field = np.tensordot(field, waves, axes=(0, 0))
    return np.exp(size * field / field.std()).astype(np.float32)


def paint_t1w(
    labels: Labels, contrast: Contrast, rng: np.random.Generator, zooms: tuple[float, float, float]
) -> Volume:
    """Simulate a T1w image: tissue, texture, partial volume, bias field and Rician noise.

    Parameters
    ----------
    labels : ndarray of int16, (I, J, K)
        Label map of a head or a bare brain; 0 is air.
    contrast : Contrast
        Contrast drawn by :func:`random_contrast`.
    rng : numpy.random.Generator
        Source of randomness.
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


# Uptake by tissue, relative to cortex, and by region. Fitted by least squares: the means of 37
# regions, relative to the brain's mean, in 14 label maps in MNI space and in the template's own
# anatomy, blurred by 8 mm, agree with those of two mean FDG PET (Della Rosa et al., 2014;
# Karjalainen et al., 2020) to within 8 % for the label maps and 11 % for the template (our
# measurement).
TISSUE = {
    "cortex": 1.0,
    "cerebellar_cortex": 0.68,
    "thalamus": 0.67,
    "caudate": 0.69,
    "putamen": 0.87,
    "accumbens": 0.57,
    "pallidum": 0.65,
    "hippocampus": 0.66,
    "amygdala": 0.57,
    "ventral_dc": 0.64,
    "brainstem": 0.52,
    "cerebellar_white": 0.41,
    "fluid": 0.04,
    "plexus": 0.04,
    "cord": 0.30,
    "muscle": 0.12,
    "skin": 0.08,
    "mucosa": 0.20,
    "eye": 0.12,
    "vessel": 0.15,
    "bone": 0.05,
    "marrow": 0.12,
}
WHITE = (0.31, 0.39)  # range among people, about the fitted 0.35; our choice
TISSUE_SD = 0.05  # of each tissue, among people; our choice
SIDE_SD = 0.015  # of each side, within a person; our choice

# Centre (x > 0, MNI mm), sigma (mm) and change of uptake, the same on both sides:
REGIONS = (
    ((9.0, -84.0, 4.0), 16.0, 0.19),  # medial occipital
    ((36.0, -82.0, 10.0), 14.0, -0.09),  # lateral occipital
    ((6.0, 36.0, 16.0), 14.0, -0.14),  # anterior cingulate
    ((42.0, -24.0, 52.0), 18.0, 0.14),  # sensorimotor
    ((36.0, 10.0, -36.0), 16.0, -0.39),  # temporal pole
    ((54.0, -34.0, -22.0), 16.0, -0.21),  # inferior temporal
    ((38.0, 6.0, 0.0), 12.0, -0.11),  # insula
    ((26.0, -30.0, -16.0), 12.0, -0.19),  # parahippocampal
    ((34.0, -54.0, -16.0), 14.0, -0.12),  # fusiform
    ((58.0, -22.0, 6.0), 14.0, 0.06),  # superior temporal
    ((24.0, -74.0, -36.0), 16.0, 0.09),  # posterior cerebellum
    ((8.0, -62.0, 48.0), 14.0, 0.09),  # precuneus
    ((24.0, -14.0, 38.0), 14.0, -0.23),  # centrum semiovale
)
PATTERN_ZOOM = 4.0  # mm
PATTERN_GRID = grid_of_box(
    (-92, -128, -76, 92, 92, 108), PATTERN_ZOOM
)  # beyond any brain in MNI space
VARIATION_SD = 0.085  # of a person's own pattern; our choice: regions then vary by 6 to 9 %
# FWHM in mm and share of the variance, of the symmetric and then of the asymmetric part. Our
# choice: the asymmetry of regions, 200 (L - R) / (L + R), then has an SD of 3 to 5 %; more than
# 10 % is considered abnormal (Jokeit et al., 1997).
VARIATION = ((40.0, 0.86), (30.0, 0.14))
RANGE = (0.6, 1.5)  # of a template's pattern; our choice


@dataclass(frozen=True)
class Uptake:
    """FDG uptake of a person's brain.

    Parameters
    ----------
    tissue : ndarray of float32, (1024,)
        Uptake by label; cortex is about 1.
    region : ndarray of float32
        Regional factor about 1, on ``PATTERN_GRID`` in MNI space.
    """

    tissue: NDArray[np.float32]
    region: Volume


def usual_pattern() -> Volume:
    """Return the regional pattern of FDG uptake in healthy people, as a factor about 1.

    Uptake is high in medial occipital, sensorimotor and superior temporal cortex and in the
    precuneus; it is low in the temporal pole, inferior and medial temporal cortex and the anterior
    cingulate.

    Returns
    -------
    ndarray
        Pattern on ``PATTERN_GRID``, symmetric.
    """
    points = np.abs(coordinates(PATTERN_GRID)) * [1, 0, 0] + coordinates(PATTERN_GRID) * [0, 1, 1]
    pattern = np.ones(PATTERN_GRID.shape)
    for centre, sigma, change in REGIONS:
        distance = np.linalg.norm(points - np.array(centre), axis=-1)
        pattern += change * np.exp(-0.5 * (distance / sigma) ** 2)
    return pattern.astype(np.float32)


def pattern_of_template(template: Volume, grid: Grid, anatomy: Anatomy) -> Volume:
    """Compute the regional pattern of a mean FDG PET, which tissue alone does not explain.

    Parameters
    ----------
    template : ndarray, (I, J, K)
        Mean PET in MNI space, in any unit, not negative.
    grid : Grid
        Grid of the template.
    anatomy : Anatomy
        Head in MNI space: its world coordinates are MNI coordinates.

    Returns
    -------
    ndarray
        Pattern on ``PATTERN_GRID``, symmetric, 0.6 to 1.5; 1 outside the brain.
    """
    points, zooms = coordinates(PATTERN_GRID), (PATTERN_ZOOM,) * 3
    pet = smooth(sample(template, to_indices(points, grid.affine)), 10.0, zooms)
    expected = smooth(_mean_tissue()[anatomy.labels], 14.0, anatomy.zooms)
    brain = smooth(_is_brain_tissue()[anatomy.labels], 4.0, anatomy.zooms)
    indices = to_indices(points, anatomy.affine)
    expected, inside = sample(expected, indices), sample(brain, indices) > 0.5
    ratio = pet / np.maximum(expected, 0.12)
    ratio = np.clip(ratio / np.median(ratio[inside]), *RANGE)
    ratio = np.where(inside, ratio, 1.0).astype(np.float32)
    even = ((ratio + ratio[::-1]) / 2).astype(np.float32)  # the grid is symmetric about x = 0
    return smooth(even, 8.0, zooms)


def _mean_tissue() -> NDArray[np.float32]:
    return table_of({**TISSUE, "white": float(np.mean(WHITE))})


def expect_uptake(pattern: Volume) -> Uptake:
    """Return the uptake that people share, all that can be predicted from anatomy alone."""
    return Uptake(_mean_tissue(), pattern)


def _is_brain_tissue() -> NDArray[np.float32]:
    table = (np.arange(1024) < 500).astype(np.float32)
    table[[0, 24]] = 0
    return table


def _unit_field(fwhm: float, rng: np.random.Generator) -> Volume:
    return random_field(PATTERN_GRID.shape, fwhm * SIGMA_OF_FWHM / PATTERN_ZOOM, rng)


def draw_uptake(pattern: Volume, rng: np.random.Generator) -> Uptake:
    """Draw the FDG uptake of a person's brain.

    Parameters
    ----------
    pattern : ndarray
        Regional pattern that people share, such as that of :func:`usual_pattern`.
    rng : numpy.random.Generator
        Source of randomness.

    Returns
    -------
    Uptake
        Uptake in which tissues vary by 5 %, sides by 1.5 %, and regions smoothly by 8.5 %, with
        86 % of the latter's variance shared by both sides (our choice).
    """
    values = {**TISSUE, "white": float(rng.uniform(*WHITE))}
    table = table_of(values)
    for name, labels in NAMES.items():
        factor = 1.0 if name in ("cortex", "white") else 1 + TISSUE_SD * rng.standard_normal()
        table[list(labels)] *= factor * (1 + SIDE_SD * rng.standard_normal(len(labels)))
    (wide, symmetric), (fine, asymmetric) = VARIATION
    field = _unit_field(wide, rng)
    mirrored = field + field[::-1]
    variation = np.sqrt(symmetric) * mirrored / mirrored.std()
    variation += np.sqrt(asymmetric) * _unit_field(fine, rng)
    region = pattern * np.exp(VARIATION_SD * variation)
    return Uptake(np.maximum(table, 0).astype(np.float32), region.astype(np.float32))


def activity(anatomy: Anatomy, uptake: Uptake) -> Volume:
    """Compute the uptake in a head, as seen by a perfect scanner.

    Returns
    -------
    ndarray, (I, J, K)
        Uptake, about 1 in cortex and low in the head around the brain.
    """
    volume = uptake.tissue[anatomy.labels]
    brain = is_in_skull(anatomy.labels)
    indices = to_indices(anatomy.mni[brain], PATTERN_GRID.affine)
    volume[brain] *= sample(uptake.region, indices)
    return volume
