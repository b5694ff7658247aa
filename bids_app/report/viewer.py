"""Interactive slices of a PET's anomaly maps with T1w and PET, by NiiVue.

A page contains NiiVue once (``data/report/niivue``), ``data/report/viewer.js`` that drives it, and
the volumes of each viewer as compressed NIfTI images, so that it works offline from a local file.
"""

import base64
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

import numpy as np
from scipy import ndimage

from bids_app.derivatives.detections import Anomaly, pets_of
from bids_app.errors import Mri2petError
from bids_app.imaging.volume import Affine, Grid, Mask, Volume, grid_of_box
from bids_app.nifti import Image, to_small_bytes
from bids_app.report.anomalies import name_of
from bids_app.report.findings import CLUSTER, leading_first
from bids_app.report.maps import LESION, ScoreMap, take_lesions, take_score_map
from bids_app.report.page import TEMPLATES
from bids_app.report.panels import COLOURS, UPTAKE
from bids_app.report.results import ImageCache, mask_of

FINEST: Final = 1.5  # mm; smallest voxel edge, so that a page stays small (our choice)
MARGIN: Final = 6.0  # mm shown beyond the brain (our choice)
BRIGHTEST: Final = 99.5  # percentile of the brain's T1w that is drawn white (our choice)
GREYS: Final = (
    63  # steps from black to white; finer steps are noise, which compresses badly (our choice)
)
STEPS: Final = 127  # from 0 to the score that is drawn brightest (our choice)
OPACITY: Final = 0.75  # initial opacity of the layers over the T1w (our choice)
HALF: Final = 0.5  # level between 0 and 1 of a mask
NIIVUE: Final = TEMPLATES / "niivue"

Place = tuple[float, float, float]  # x, y and z in mm, RAS+
Layer = dict[str, str | float | bool]


@dataclass(frozen=True)
class Viewer:
    """Content of a viewer, all on one grid.

    Parameters
    ----------
    layers : sequence of dict
        Layers from bottom to top. ``label``: name of the layer; ``kind``: ``t1w``, ``pet``,
        ``map``, ``clusters`` or ``lesions``; ``detector``: detector of a map and its clusters;
        ``colours``: NiiVue colour map, or colour of an outline; ``low`` and ``high``: values that
        are drawn darkest and brightest; ``opacity``: 0 to 1; ``shown``: whether it is visible at
        first; ``nifti``: image, in base64.
    stops : dict
        Place of the peak of each cluster, by detector and rank.
    tall : float
        Height of the three slices side by side, relative to their width.
    native : bool
        Whether the space is that of the participant's T1w, not that of the template.
    """

    layers: list[Layer]
    stops: Mapping[str, Mapping[int, Place]]
    tall: float
    native: bool


def view_pet(output_dir: Path, anomalies: Sequence[Anomaly]) -> tuple[Viewer | None, list[str]]:
    """Create a viewer of the maps of a PET on the participant's T1w, if all were resampled to it.

    Otherwise they are viewed in the space of the template. The leading detector comes first.

    Parameters
    ----------
    output_dir : Path
        Path of the derivative dataset.
    anomalies : sequence of Anomaly
        Maps of one PET.

    Returns
    -------
    Viewer or None
        Viewer; None if no map can be read in the space of the template.
    list of str
        Faults of images that could not be read, apart from maps in the space of the template.
    """
    cache, anomalies = ImageCache(output_dir), leading_first(anomalies)
    maps, _ = _take_maps(cache, output_dir, anomalies, native=False)
    if not maps:
        return None, []
    readable = [anomaly for anomaly in anomalies if name_of(anomaly.detector) in maps]
    native_maps, faults = dict[str, ScoreMap](), list[str]()
    if all(anomaly.paths["statmap_in_t1w"].exists() for anomaly in readable):
        native_maps, faults = _take_maps(cache, output_dir, readable, native=True)
    native = len(native_maps) == len(maps)
    if native:
        maps = {
            name: replace(native_maps[name], heat=score_map.heat)
            for name, score_map in maps.items()
        }
    first, grid = readable[0], next(iter(maps.values())).t1w
    paths = zip(("PET", "SYNTHETIC PET"), pets_of(output_dir, first, native=native), strict=True)
    pets, lost = cache.take_all({label: path for label, path in paths if path.exists()}, grid)
    lesions = None
    try:
        mask = take_lesions(cache, output_dir, first, grid, native=native)
        lesions = None if mask is None else Image(mask.astype(np.float32), grid.affine)
    except Mri2petError as error:
        lost.append(str(error))
    return make_viewer(maps, pets, lesions, native=native), list(dict.fromkeys([*faults, *lost]))


def _take_maps(
    cache: ImageCache, output_dir: Path, anomalies: Sequence[Anomaly], *, native: bool
) -> tuple[dict[str, ScoreMap], list[str]]:
    """Read the readable maps, by detector; also return why others cannot be read."""
    maps, faults = dict[str, ScoreMap](), list[str]()
    for anomaly in anomalies:
        try:
            maps[name_of(anomaly.detector)] = take_score_map(
                cache, output_dir, anomaly, native=native
            )
        except Mri2petError as error:
            faults.append(str(error))
    return maps, faults


def make_viewer(
    maps: Mapping[str, ScoreMap], pets: Mapping[str, Image], lesions: Image | None, *, native: bool
) -> Viewer:
    """Create the viewer of a PET; it opens with the map of the first detector.

    Parameters
    ----------
    maps : dict
        Maps by label of their detector, at least one, all over the same T1w of any orientation.
    pets : dict
        PET images by label, on any grid of the same space.
    lesions : Image or None
        Mask of lesions, on any grid of the same space; None if no lesion is known.
    native : bool
        Whether the space is that of the participant's T1w, not that of the template.
    """
    first = next(iter(maps.values()))
    grid = grid_over(first.brain)
    brain = resample(first.brain, grid) >= HALF
    layers = [_grey("T1w", "t1w", first.t1w, grid, brain)]
    layers += [_grey(label, "pet", pet, grid, brain) for label, pet in pets.items()]
    for name, score_map in maps.items():
        layers.append(_map(name, score_map, grid, shown=score_map is first))
    for name, score_map in maps.items():
        if score_map.labels is not None:
            line = _line("Clusters", "clusters", score_map.labels, grid, CLUSTER)
            layers.append({**line, "detector": name, "shown": score_map is first})
    if lesions is not None:
        layers.append(_line("Known lesions", "lesions", lesions, grid, LESION))
    across, deep, high = grid.shape
    stops = {name: find_stops(score_map) for name, score_map in maps.items()}
    return Viewer(layers, stops, max(deep, high) / (2 * across + deep), native)


def library() -> str:
    """Return NiiVue's compressed script, in base64."""
    return base64.b64encode((NIIVUE / "niivue.umd.js.gz").read_bytes()).decode()


def grid_over(brain: Image) -> Grid:
    """Create a grid along the world axes that covers a brain of any orientation.

    Parameters
    ----------
    brain : Image
        Brain mask; if it is empty, its whole volume is covered.
    """
    mask = mask_of(brain)
    inside = np.argwhere(mask if mask.any() else np.ones_like(mask))
    world = inside @ brain.affine[:3, :3].T + brain.affine[:3, 3]
    x0, y0, z0 = (world.min(axis=0) - MARGIN).tolist()
    x1, y1, z1 = (world.max(axis=0) + MARGIN).tolist()
    return grid_of_box((x0, y0, z0, x1, y1, z1), max(FINEST, min(brain.zooms)))


def resample(image: Image, grid: Grid, order: int = 1) -> Volume:
    """Resample an image to a grid by spline interpolation, with 0 beyond its edges.

    Parameters
    ----------
    order : {0, 1}
        Nearest-neighbour (0), for labels, or trilinear (1) interpolation.
    """
    grid_to_image: Affine = np.linalg.inv(image.affine) @ grid.affine
    moved: Volume = ndimage.affine_transform(
        np.nan_to_num(image.data),
        grid_to_image[:3, :3],
        grid_to_image[:3, 3],
        grid.shape,
        order=order,
    )
    return moved


def find_stops(score_map: ScoreMap) -> dict[int, Place]:
    """Find the peak of each cluster, by rank."""
    if score_map.labels is None:
        return {}
    labels = np.nan_to_num(score_map.labels.data).round().ravel()
    inside = np.flatnonzero(labels)
    ranks = labels[inside].astype(int)
    scores = np.nan_to_num(score_map.scores.data, nan=-np.inf).ravel()[inside]
    stops = dict[int, Place]()
    for rank in np.unique(ranks).tolist():
        members = ranks == rank
        peak = np.unravel_index(
            inside[members][scores[members].argmax()], score_map.scores.data.shape
        )
        x, y, z = (score_map.scores.affine @ [*peak, 1])[:3].round(3).tolist()
        stops[rank] = x, y, z
    return stops


def _layer(
    label: str, kind: str, image: Image, step: float, *, colours: str, low: float, high: float
) -> Layer:
    nifti = base64.b64encode(to_small_bytes(image, step)).decode()
    fields = {"label": label, "kind": kind, "colours": colours, "nifti": nifti}
    return {**fields, "low": low, "high": high, "opacity": OPACITY, "shown": True}


def _grey(label: str, kind: str, image: Image, grid: Grid, brain: Mask) -> Layer:
    """Clip a T1w or PET to 0 and the bright end of the brain; clear voxels away from the brain."""
    volume = resample(image, grid)
    inside = volume[brain]
    white = float(np.percentile(inside, BRIGHTEST)) if inside.size else 1.0
    white = white if white > 0 else 1.0
    shown = _widen(brain, grid) if kind == "t1w" else brain
    layer = _layer(
        label,
        kind,
        Image(np.where(shown, np.clip(volume, 0, white), 0), grid.affine),
        white / GREYS,
        colours="gray" if kind == "t1w" else UPTAKE.colours,
        low=0.0,
        high=white,
    )
    return layer | ({"opacity": 1.0} if kind == "t1w" else {"shown": False})


def _widen(brain: Mask, grid: Grid) -> Mask:
    """Dilate a brain mask by the margin; an empty mask becomes the whole volume."""
    if not brain.any():
        return np.ones_like(brain)
    distances: Volume = ndimage.distance_transform_edt(~brain, sampling=float(grid.affine[0, 0]))
    near: Mask = distances <= MARGIN
    return near


def _map(detector: str, score_map: ScoreMap, grid: Grid, *, shown: bool) -> Layer:
    """Clip a map to 0 and the score that is drawn brightest; scores below 0 are never shown."""
    heat = score_map.heat
    step = heat.high / STEPS
    scores = Image(np.clip(resample(score_map.scores, grid), 0, heat.high), grid.affine)
    low = max(round(heat.threshold / step), 1) * step  # rounded as the scores are
    layer = _layer("Map", "map", scores, step, colours=COLOURS, low=low, high=heat.high)
    return {**layer, "detector": detector, "shown": shown}


def _line(label: str, kind: str, labels: Image, grid: Grid, colour: str) -> Layer:
    """Create a layer of the outermost voxels of labels.

    Gaps of one or two voxels in lesions are closed first: otherwise the edge of a ragged mask would
    fill it, and hide the map.
    """
    volume = resample(labels, grid, order=0).round().clip(0, 255).astype(np.uint8)
    structure = ndimage.generate_binary_structure(3, 1)
    if kind == "lesions":
        volume |= ndimage.binary_closing(np.pad(volume, 1), structure)[1:-1, 1:-1, 1:-1]
    lowest = ndimage.minimum_filter(volume, footprint=structure)
    highest = ndimage.maximum_filter(volume, footprint=structure)
    edge = np.where((lowest != volume) | (highest != volume), volume, 0)
    return _layer(label, kind, Image(edge, grid.affine), 1.0, colours=colour, low=0.5, high=1.0)
