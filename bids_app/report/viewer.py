"""An interactive slice viewer of a score map over its T1w, which needs no other file.

The viewer is nilearn's (brainsprite), in a frame of its own. It is changed where a page that works
offline, and is the same when it is written again, needs it; and ``data/report/viewer.js`` is put
before its last script, so that slices can be moved from outside.
"""

import re
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

import numpy as np
from scipy import ndimage

from bids_app.imaging.volume import Affine, Grid, Volume, grid_of_box
from bids_app.nifti import Image, to_nibabel
from bids_app.report.figures import crop, field_around
from bids_app.report.maps import ScoreMap
from bids_app.report.page import TEMPLATES
from bids_app.report.panels import COLOURS, Heat
from bids_app.report.results import mask_of

FINEST: Final = 1.5  # mm; edge of a voxel, so that a page stays small (our choice)
MARGIN: Final = 6.0  # mm shown beyond the brain (our choice)
OPACITY: Final = 0.75  # of the colours, at first (our choice)
BRIGHTEST: Final = 99.5  # percentile of the brain's T1w that is drawn white (our choice)
COORDINATES: Final = 0.1  # of the height of the slices, below them, as brainsprite lays them out
RANDOM: Final = re.compile(r"(?<=div_viewer-)[0-9a-f]{32}")  # in the names of nilearn's elements
ICON: Final = re.compile(r"<link\b[^>]*>")  # lies in the web
HALF: Final = 0.5
SCRIPT: Final = "<script>"


Stop = tuple[int, int, int]  # the slices through a place: x, y, z


@dataclass(frozen=True)
class Viewer:
    """A page for a frame.

    Parameters
    ----------
    html : str
        The page.
    tall : float
        Height of its slices, of its width.
    stops : dict
        Rank of a cluster → the slices through its peak, to which the viewer can be moved.
    own : bool
        In the space of the participant's T1w, not in that of the template.
    """

    html: str
    tall: float
    stops: Mapping[int, Stop]
    own: bool


def make_viewer(score_map: ScoreMap, name: str, *, own: bool) -> Viewer:
    """Make the viewer of a score map; it opens at the peak of the first cluster.

    Parameters
    ----------
    score_map : ScoreMap
        Any orientation: slices are laid along the axes of the world.
    name : str
        Of letters, digits and hyphens: names the elements of the page.
    own : bool
        In the space of the participant's T1w, not in that of the template.
    """
    score_map = _crop(score_map)
    grid, heat = grid_over(score_map.brain), score_map.heat
    scores = resample(score_map.scores, grid)
    shown = np.where(scores >= heat.threshold, scores, 0)
    stops = find_stops(score_map, grid)
    html = _nilearn(
        Image(shown, grid.affine),
        Image(_grey(score_map, grid), grid.affine),
        at=_world(grid, stops[min(stops)] if stops else _brightest(shown)),
        heat=heat,
    )
    across, deep, high = grid.shape
    tall = (1 + COORDINATES) * max(deep, high) / (2 * across + deep)
    return Viewer(_settle(html, name), tall, stops, own)


def grid_over(brain: Image) -> Grid:
    """Lay a grid along the axes of the world over a brain, however it is oriented.

    Parameters
    ----------
    brain : Image
        A mask; all of it is covered where it is empty.
    """
    mask = mask_of(brain)
    inside = np.argwhere(mask if mask.any() else np.ones_like(mask))
    world = inside @ brain.affine[:3, :3].T + brain.affine[:3, 3]
    x0, y0, z0 = (world.min(axis=0) - MARGIN).tolist()
    x1, y1, z1 = (world.max(axis=0) + MARGIN).tolist()
    return grid_of_box((x0, y0, z0, x1, y1, z1), max(FINEST, min(brain.zooms)))


def resample(image: Image, grid: Grid) -> Volume:
    """Look an image up at the voxels of a grid, trilinear; 0 beyond its edges."""
    steps: Affine = np.linalg.inv(image.affine) @ grid.affine
    moved: Volume = ndimage.affine_transform(
        np.nan_to_num(image.data), steps[:3, :3], steps[:3, 3], grid.shape, order=1
    )
    return moved


def find_stops(score_map: ScoreMap, grid: Grid) -> dict[int, Stop]:
    """Find the peak of each cluster, by rank, as the nearest voxel of a grid."""
    if score_map.labels is None:
        return {}
    labels = np.nan_to_num(score_map.labels.data).round().ravel()
    inside = np.flatnonzero(labels)
    ranks = labels[inside].astype(int)
    scores = np.nan_to_num(score_map.scores.data, nan=-np.inf).ravel()[inside]
    to_grid = np.linalg.inv(grid.affine) @ score_map.scores.affine
    stops = dict[int, Stop]()
    for rank in np.unique(ranks).tolist():
        own = ranks == rank
        peak = np.unravel_index(inside[own][scores[own].argmax()], score_map.scores.data.shape)
        x, y, z = (to_grid @ [*peak, 1])[:3].round().astype(int).tolist()
        stops[rank] = x, y, z
    return stops


def _crop(score_map: ScoreMap) -> ScoreMap:
    """Keep what the viewer shows."""
    brain = score_map.brain
    field = field_around(mask_of(brain), brain.zooms, 2 * MARGIN)
    scores, t1w, brain = (crop(score, field) for score in (score_map.scores, score_map.t1w, brain))
    labels = None if score_map.labels is None else crop(score_map.labels, field)
    return ScoreMap(scores, t1w, brain, labels, score_map.heat)


def _brightest(scores: Volume) -> Stop:
    x, y, z = (int(place) for place in np.unravel_index(scores.argmax(), scores.shape))
    return x, y, z


def _world(grid: Grid, stop: Stop) -> tuple[float, float, float]:
    x, y, z = (grid.affine @ [*stop, 1])[:3].tolist()
    return x, y, z


def _grey(score_map: ScoreMap, grid: Grid) -> Volume:
    """Bring the T1w to 0..1 on a grid; black where it has nothing."""
    t1w = resample(score_map.t1w, grid)
    inside = t1w[resample(score_map.brain, grid) >= HALF]
    white = float(np.percentile(inside, BRIGHTEST)) if inside.size else 1.0
    grey: Volume = np.clip(t1w / white if white > 0 else t1w, 0, 1)
    return grey


def _nilearn(scores: Image, t1w: Image, *, at: tuple[float, float, float], heat: Heat) -> str:
    # It takes half a second to load, and only reports with a score map need it.
    from nilearn.plotting import view_img

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of numpy's, on masked arrays inside of nilearn
        view = view_img(
            to_nibabel(scores),
            bg_img=to_nibabel(t1w),
            cut_coords=at,
            threshold=heat.threshold * (1 - 1e-6),  # 0 is transparent, too
            vmin=0,
            vmax=heat.high,
            cmap=COLOURS,
            symmetric_cmap=False,
            dim=0,
            black_bg=True,
            opacity=OPACITY,
            resampling_interpolation="nearest",  # both lie on one grid already
            title=None,
        )
    page: str = view.html
    return page


def _settle(html: str, name: str) -> str:
    """Take out what differs from run to run or lies in the web, and put our script in."""
    found = RANDOM.search(html)
    page = html if found is None else html.replace(found[0], name)
    head, body, rest = page.partition("<body>")
    script = (TEMPLATES / "viewer.js").read_text(encoding="utf-8")
    before, last, start = rest.rpartition(SCRIPT)
    return f"{ICON.sub('', head)}{body}{before}{SCRIPT}\n{script}</script>\n{last}{start}"
