"""Paint a T1w and an FDG PET of a brain on a label map in MNI space, quickly and in many ways.

The numbers are ours: contrasts wide enough to take in T1w of several scanners, uptake as FDG PET
of healthy adults show it. ``bids_app.simulation`` makes whole heads; this only brains, on the grid
that generators see.
"""

import numpy as np
from scipy import ndimage

SIGMA = 1 / 2.3548  # of a FWHM
WHITE, CEREBELLAR_WHITE, STEM, VENTRAL = (2, 41), (7, 46), (16,), (28, 60)
CORTEX, CEREBELLUM, THALAMUS = (3, 42), (8, 47), (10, 49)
STRIATUM, PALLIDUM, TEMPORAL = (11, 50, 12, 51, 26, 58), (13, 52), (17, 53, 18, 54)
FLUID = (4, 5, 14, 15, 24, 43, 44, 72, 30, 31, 62, 63)
OTHER_WHITE = (77, 85, 251, 252, 253, 254, 255)
PAIRS = (
    (2, 41),
    (3, 42),
    (4, 43),
    (5, 44),
    (7, 46),
    (8, 47),
    (10, 49),
    (11, 50),
    (12, 51),
    (13, 52),
    (17, 53),
    (18, 54),
    (26, 58),
    (28, 60),
    (30, 62),
    (31, 63),
)
VESSELS = (136, 137, 163, 164)
HEAD = 300  # labels from here on are not brain
N_LABELS = 1024


def _table(values: tuple[tuple[tuple[int, ...], float], ...]) -> np.ndarray:
    table = np.zeros(N_LABELS, np.float32)
    for labels, value in values:
        table[list(labels)] = value
    return table


UPTAKE = _table(
    (
        (WHITE + OTHER_WHITE, 0.26),
        (CEREBELLAR_WHITE, 0.34),
        (STEM, 0.48),
        (VENTRAL, 0.6),
        (CORTEX, 1.0),
        (CEREBELLUM, 0.86),
        (THALAMUS, 1.02),
        (STRIATUM, 1.1),
        (PALLIDUM, 0.7),
        (TEMPORAL, 0.68),
        (FLUID, 0.04),
        ((0,), 0.04),
    )
)


def simplify(labels: np.ndarray) -> np.ndarray:
    """Keep the brain's labels; lesions become white matter."""
    kept = np.round(labels).astype(np.int16)
    kept[(kept >= HEAD) | np.isin(kept, VESSELS)] = 0
    kept[kept == 25], kept[kept == 57] = 2, 41
    return kept


def field(shape: tuple[int, ...], fwhm: float, rng: np.random.Generator) -> np.ndarray:
    """Draw a smooth random field of unit variance; ``fwhm`` in voxels."""
    factor = max(fwhm / 4, 1.0)
    coarse = [int(np.ceil(side / factor)) + 8 for side in shape]
    noise = ndimage.gaussian_filter(rng.standard_normal(coarse), fwhm * SIGMA / factor)
    large = ndimage.zoom(noise / noise.std(), factor, order=1)
    start = [(a - b) // 2 for a, b in zip(large.shape, shape, strict=True)]
    box = tuple(slice(a, a + b) for a, b in zip(start, shape, strict=True))
    return large[box].astype(np.float32)


def warp(labels: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Displace labels smoothly, by 2.5 mm (SD), and mirror half of them."""
    places = np.meshgrid(
        *(np.arange(n, dtype=np.float32) for n in labels.shape), indexing="ij", sparse=True
    )
    moved = [place + 2.5 * field(labels.shape, 35, rng) for place in places]
    out = ndimage.map_coordinates(labels, moved, order=0, mode="nearest")
    if rng.random() < 0.5:
        other_side = np.arange(N_LABELS)
        for left, right in PAIRS:
            other_side[[left, right]] = right, left
        out = other_side[out[::-1]].astype(np.int16)
    return np.ascontiguousarray(out)


def brain_of(labels: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Close the brain's surface as a brain extraction would, up to 2 mm too wide."""
    core = np.pad((labels > 0) & (labels != 24), 8)
    closed = ndimage.binary_closing(core, iterations=6)[8:-8, 8:-8, 8:-8]
    filled = ndimage.binary_fill_holes(closed)
    wider = int(rng.integers(0, 3))
    return ndimage.binary_dilation(filled, iterations=wider) if wider else filled


def paint_t1w(labels: np.ndarray, brain: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Paint a T1w in [0, 1]: contrasts, texture, partial volume, bias field, Rician noise."""
    grey, fluid = rng.uniform(0.5, 0.8), rng.uniform(0.05, 0.35)

    def between(low: float, high: float) -> float:
        return grey + (1 - grey) * rng.uniform(low, high)

    table = _table(
        (
            (WHITE + OTHER_WHITE, 1.0),
            (CEREBELLAR_WHITE, rng.uniform(0.9, 1.02)),
            (STEM, rng.uniform(0.82, 1)),
            (VENTRAL, between(0.5, 1)),
            (CORTEX, grey),
            (CEREBELLUM, grey * rng.uniform(0.9, 1.08)),
            (THALAMUS, between(0.25, 0.75)),
            (STRIATUM, between(0.02, 0.4)),
            (PALLIDUM, between(0.5, 1)),
            (TEMPORAL, grey * rng.uniform(0.95, 1.08)),
            (FLUID, fluid),
            ((0,), fluid * rng.uniform(0.3, 1.2)),
        )
    )
    table *= 1 + 0.02 * rng.standard_normal(N_LABELS).astype(np.float32)
    image = table[labels] * (1 + 0.03 * field(labels.shape, float(rng.uniform(4, 10)), rng))
    if rng.random() < 0.5:  # grey matter fades into white, as in thin or myelinated cortex
        image = 0.75 * image + 0.25 * ndimage.gaussian_filter(image, 3 * SIGMA)
    image = ndimage.gaussian_filter(image, rng.uniform(0.7, 1.8) * SIGMA)
    bias = field(labels.shape, float(rng.uniform(40, 90)), rng)
    image = image * np.exp(rng.uniform(0.02, 0.09) * bias)
    noise = rng.uniform(0.005, 0.045) * rng.standard_normal((2, *labels.shape)).astype(np.float32)
    if rng.random() < 0.6:  # resampling correlates noise
        noise = np.stack([2 * ndimage.gaussian_filter(plane, 0.6) for plane in noise])
    image = np.hypot(image + noise[0], noise[1])
    image = image / np.percentile(image[brain], 99.9) * rng.choice([1.0, rng.uniform(0.72, 1.0)])
    image = np.clip(image, 0, 1) ** rng.uniform(0.85, 1.2)
    return np.where(brain, image, 0).astype(np.float32)


def regional_uptake(template: np.ndarray, maps: list[np.ndarray]) -> np.ndarray:
    """Divide a mean PET by what tissue alone would show at its sharpness; mirrored and smooth."""
    tissue = np.mean(
        [ndimage.gaussian_filter(UPTAKE[labels], 14 * SIGMA) for labels in maps], axis=0
    )
    inside = np.mean([labels > 0 for labels in maps], axis=0) > 0.5
    ratio = ndimage.gaussian_filter(template, 10 * SIGMA) / np.maximum(tissue, 0.12)
    ratio = np.where(inside, np.clip(ratio / np.median(ratio[inside]), 0.6, 1.5), 1.0)
    return ndimage.gaussian_filter((ratio + ratio[::-1]) / 2, 8 * SIGMA).astype(np.float32)


def paint_pet(
    labels: np.ndarray, brain: np.ndarray, regional: np.ndarray, rng: np.random.Generator
) -> np.ndarray:
    """Paint an FDG PET in [0, 1]: tissue × region × a smooth, mirrored variation, 5 mm, noise."""
    table = UPTAKE.copy()
    table[list(WHITE + OTHER_WHITE)] = rng.uniform(0.22, 0.32)
    table *= 1 + 0.05 * rng.standard_normal(N_LABELS).astype(np.float32)
    for left, right in (
        (10, 49),
        (11, 50),
        (12, 51),
        (17, 53),
        (18, 54),
        (8, 47),
        (3, 42),
        (2, 41),
    ):
        table[right] = table[left] * (1 + 0.015 * rng.standard_normal())
    common = field(labels.shape, 40.0, rng)
    variation = 0.56 * (common + common[::-1]) + 0.35 * field(labels.shape, 30.0, rng)
    image = table[labels] * regional * np.exp(0.05 * variation)
    image = ndimage.gaussian_filter(image, rng.uniform(4.5, 5.5) * SIGMA)
    noise = ndimage.gaussian_filter(rng.standard_normal(labels.shape).astype(np.float32), 4 * SIGMA)
    image = image + 0.135 * noise * np.sqrt(np.maximum(image, 0)) * rng.uniform(0.4, 1.0)
    image = image / np.percentile(image[brain], 99.9)
    return np.where(brain, np.clip(image, 0, 1), 0).astype(np.float32)
