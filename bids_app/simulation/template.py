"""A head created from the tissue maps of a template."""

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from bids_app.imaging.volume import Affine, Grid, Mask, Volume, zooms_of
from bids_app.simulation.anatomy import Anatomy, Labels, coordinates
from bids_app.simulation.geometry import sample

# Centre (x > 0) and covariance (xx, yy, zz, xy, xz, yz) in MNI mm and mm², means of both sides
# of 14 label maps warped to MNI152NLin2009aSym (our measurement).
NUCLEI: dict[tuple[int, int], tuple[tuple[float, ...], tuple[float, ...]]] = {
    (28, 60): ((11.6, -16.2, -10.0), (47.3, 47.5, 19.1, -16.8, 9.6, -4.7)),
    (26, 58): ((9.2, 10.7, -8.5), (7.1, 19.8, 6.0, 3.7, -3.3, 2.7)),
    (11, 50): ((13.1, 9.4, 8.7), (11.9, 113.8, 78.0, -8.5, 13.1, -68.1)),
    (12, 51): ((26.0, 1.4, -1.1), (23.6, 92.1, 42.1, -31.0, 8.7, -18.5)),
    (13, 52): ((20.7, -2.5, -2.6), (16.9, 29.7, 9.8, -14.9, 2.7, -2.3)),
    (10, 49): ((11.2, -18.3, 6.3), (29.3, 71.1, 32.5, -23.2, 1.8, 6.5)),
    (17, 53): ((25.6, -22.2, -14.4), (31.6, 97.1, 62.1, -5.7, -3.3, -69.3)),
    (18, 54): ((24.2, -4.3, -20.2), (20.2, 8.3, 25.1, 0.2, -4.1, -7.7)),
}
BRAINSTEM = ((0.0, -28.8, -29.3), (51.8, 48.7, 133.7, 0.0, 0.0, 18.0))
ELLIPSOID = 5.0  # squared Mahalanobis radius of a uniform ellipsoid with its own covariance
# These may contain white matter; the others, among them hippocampus and amygdala, are grey only.
WHITISH = {(28, 60), (13, 52), (10, 49)}

# Cerebellum versus cerebrum behind y = -20: logistic regression on 1, x, y, z, xx, yy, zz, xy, xz,
# yz of |x|, y, z in units of 50 mm; correct in 99.5 % of the voxels (our measurement).
CEREBELLUM = (-18.4, -71.8, -57.2, 6.7, 9.2, -35.5, 18.7, -20.5, -17.5, 51.4)
LEAST_GREY = 0.35  # probability; our choice
LEAST_TISSUE = 0.5  # probability; our choice
DARKEST_TISSUE = 0.62  # of white matter in T1w; our choice: sulci of a mean brain are half filled
NUCLEI_BOX = ((-45.0, -50.0, -40.0), (45.0, 45.0, 40.0))  # MNI mm
VENTRICLE_BOX = ((-32.0, -48.0, -14.0), (32.0, 35.0, 32.0))  # MNI mm
# Layers of the head around the brain: outer limit in mm from the inner skull (our choice), label.
LAYERS = ((1.5, 24), (3.0, 515), (5.5, 516), (7.0, 515), (11.0, 507), (14.0, 511))
BELOW = 20.0  # mm of head below the template, whose field of view ends in the brainstem
CLOSING = 8.0  # mm; the inner skull does not follow the sulci


def _mahalanobis(
    points: Volume, centre: tuple[float, ...], covariance: tuple[float, ...]
) -> Volume:
    xx, yy, zz, xy, xz, yz = covariance
    precision = np.linalg.inv([[xx, xy, xz], [xy, yy, yz], [xz, yz, zz]]).astype(np.float32)
    offset = points - np.array(centre, np.float32)
    return ((offset @ precision) * offset).sum(axis=-1)


def _is_cerebellum(points: Volume) -> Mask:
    x, y, z = np.abs(points[:, 0]) / 50, points[:, 1] / 50, points[:, 2] / 50
    terms = (np.ones_like(x), x, y, z, x * x, y * y, z * z, x * y, x * z, y * z)
    return np.array(CEREBELLUM, np.float32) @ np.stack(terms) > 0


def _cut_off_cerebellum(labels: Labels, points: Volume) -> None:
    y, z = points[..., 1], points[..., 2]
    chosen = np.nonzero((y < -20) & (z < 5) & ((labels == 2) | (labels == 3)))
    chosen_labels = labels[chosen]
    within = _is_cerebellum(points[chosen])
    labels[chosen] = np.where(within, np.where(chosen_labels == 2, 7, 8), chosen_labels)


def _label_tissue(grey: Volume, white: Volume, t1w: Volume, brain: Mask) -> Labels:
    """Segment the brain into 2 (white), 3 (grey) and 24 (fluid), with slightly opened sulci."""
    top = float(np.percentile(t1w[brain], 90))
    fluid = (t1w < DARKEST_TISSUE * top) | (grey + white < LEAST_TISSUE)
    labels = np.where(fluid, 24, np.where(white > grey, 2, 3))
    return np.where(brain, labels, 0).astype(np.int16)


def _place_nuclei(labels: Labels, points: Volume, grey: Volume) -> None:
    low, high = np.array(NUCLEI_BOX, np.float32)
    candidates = np.isin(labels, (2, 3)) & ((points > low) & (points < high)).all(axis=-1)
    chosen = np.nonzero(candidates)
    mirrored = points[chosen] * np.where(points[chosen][:, :1] < 0, [-1, 1, 1], 1)
    chosen_labels = labels[chosen]
    for pair, (centre, covariance) in NUCLEI.items():
        inside = _mahalanobis(mirrored, centre, covariance) < 1.25 * ELLIPSOID
        if pair not in WHITISH:
            inside &= grey[chosen] > LEAST_GREY
        chosen_labels[inside & np.isin(chosen_labels, (2, 3))] = pair[0]
    labels[chosen] = chosen_labels


def _place_brainstem(labels: Labels, points: Volume) -> None:
    x, y, z = (points[..., axis] for axis in range(3))
    chosen = np.nonzero((np.abs(x) < 25) & (y > -60) & (y < 0) & (z < -8))
    near, chosen_labels = points[chosen], labels[chosen]
    stem = _mahalanobis(near, *BRAINSTEM) < 1.2 * ELLIPSOID
    stem |= (np.abs(near[:, 0]) < 9) & (near[:, 1] > -45) & (near[:, 2] < -48)
    labels[chosen] = np.where(stem & np.isin(chosen_labels, (2, 3, 7, 28)), 16, chosen_labels)


def _place_ventricles(labels: Labels, points: Volume) -> None:
    low, high = np.array(VENTRICLE_BOX, np.float32)
    deep = ((points > low) & (points < high)).all(axis=-1)
    labels[ndimage.binary_opening(deep & (labels == 24))] = 4


def _label_sides(labels: Labels, x: Volume) -> Labels:
    right_of = {label: label + 39 for label in (2, 3, 4, 7, 8, 10, 11, 12, 13)}
    right_of |= {17: 53, 18: 54, 26: 58, 28: 60}
    table = np.arange(1024, dtype=np.int16)
    for left_label, right_label in right_of.items():
        table[left_label] = right_label
    return np.where(x > 0, table[labels], labels)


def _measure_distance(mask: Mask, zooms: tuple[float, float, float]) -> Volume:
    """Compute each voxel's distance in mm from the inner skull around a brain.

    The inner skull is the morphological closing of the brain. Fine images are processed at half
    the resolution, which is eight times as fast.
    """
    step = 2 if max(zooms) < 1.5 else 1
    spare = round(2 * CLOSING / (step * min(zooms))) + 2
    coarse = np.pad(mask[::step, ::step, ::step], spare)
    wide = [step * zoom for zoom in zooms]
    outside = ndimage.distance_transform_edt(~coarse, wide)
    inner = ndimage.distance_transform_edt(outside < CLOSING, wide) > CLOSING
    distance = ndimage.distance_transform_edt(~(inner | coarse), wide).astype(np.float32)
    distance = distance[spare:-spare, spare:-spare, spare:-spare]
    indices = coordinates(Grid(mask.shape, np.diag([1 / step] * 3 + [1.0])))
    return sample(distance, indices)


def _add_head(labels: Labels, brain: Mask, zooms: tuple[float, float, float]) -> Labels:
    distance = _measure_distance(brain, zooms)
    head = np.select([distance <= end for end, _ in LAYERS], [label for _, label in LAYERS], 0)
    return np.where(labels > 0, labels, head).astype(np.int16)


def anatomy_from_template(
    t1w: Volume, gm: Volume, wm: Volume, brain_mask: NDArray[np.bool_], affine: Affine
) -> Anatomy:
    """Create a head from the maps of a template in MNI space.

    Cortex, white matter and fluid come from the maps; nuclei and brainstem are ellipsoids,
    restricted to their tissue; the cerebellum is bounded by a quadric; skull, muscle, fat and skin
    are shells around the brain. The head has no face.

    Parameters
    ----------
    t1w : ndarray, (I, J, K)
        Mean T1w, any unit.
    gm, wm : ndarray, (I, J, K)
        Probability of grey and of white matter, in [0, 1].
    brain_mask : ndarray of bool, (I, J, K)
        Brain mask.
    affine : ndarray, (4, 4)
        Voxel indices → MNI coordinates in mm.

    Returns
    -------
    Anatomy
        Head whose world coordinates are its MNI coordinates.
    """
    below = round(BELOW / zooms_of(affine)[2])  # the template ends at the foramen magnum
    t1w, gm, wm = (np.pad(map_, ((0, 0), (0, 0), (below, 0))) for map_ in (t1w, gm, wm))
    brain_mask = np.pad(brain_mask, ((0, 0), (0, 0), (below, 0)))
    affine = affine.copy()
    affine[:3, 3] -= below * affine[:3, 2]
    i, j, k = t1w.shape
    points = coordinates(Grid((i, j, k), affine))
    labels = _label_tissue(gm, wm, t1w, brain_mask)
    _cut_off_cerebellum(labels, points)
    _place_nuclei(labels, points, gm)
    _place_brainstem(labels, points)
    _place_ventricles(labels, points)
    sided = _label_sides(labels, points[..., 0])
    return Anatomy(_add_head(sided, brain_mask, zooms_of(affine)), affine, points)
