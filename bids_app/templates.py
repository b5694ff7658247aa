"""Templates and atlases of nilearn and TemplateFlow, resampled to the grid of a run."""

import hashlib
import re
from collections.abc import Sequence
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from importlib.metadata import version
from io import StringIO
from pathlib import Path
from types import ModuleType
from typing import cast

import numpy as np
from nilearn import datasets
from nilearn.image import resample_img

from bids_app import nifti
from bids_app.errors import CannotCreateError, MissingInputError, UsageError
from bids_app.imaging.volume import Affine, Grid, Mask, grid_of_box

OWN = "MNI152NLin2009aSym"  # included in nilearn, so that no network is needed
REGISTRATION_RESOLUTION = 1.0  # mm
FEWEST, MOST = 2, 1e9  # voxels per side, and per grid (4 GB in float32); our choice
HALF = 0.5  # voxel
COHORT = re.compile(r"_cohort-([A-Za-z0-9]+)_")  # in TemplateFlow's names
NAMED = re.compile(r"_atlas-([A-Za-z0-9]+)(?:_desc-([A-Za-z0-9]+))?_")  # in TemplateFlow's names


COARSE_ATLAS = Path(__file__).parent / "data" / "atlas" / "coarse.nii.gz"  # in MNI space


def coarse_atlas(template: str) -> Path | None:
    """Return the path of the app's own atlas of lobes and nuclei; None outside MNI152 spaces."""
    return COARSE_ATLAS if template.startswith("MNI152") else None


@dataclass(frozen=True)
class Template:
    """Files of a template, prepared for a run.

    Parameters
    ----------
    name : str
        Name of the template in TemplateFlow.
    brain, brain_mask : Path
        T1w of the brain alone and its mask, on the full field of view, as registration target.
    reference, reference_mask : Path
        The same two images on the grid of the outputs.
    uri : str
        Public address of the template.
    """

    name: str
    brain: Path
    brain_mask: Path
    reference: Path
    reference_mask: Path
    uri: str


def uri_of(name: str) -> str:
    """Return the public address of a template."""
    return f"https://templateflow.s3.amazonaws.com/tpl-{name}/tpl-{name}_res-01_T1w.nii.gz"


def _load_nilearn() -> tuple[nifti.Image, nifti.Image]:
    t1w = datasets.load_mni152_template(resolution=1)
    mask = datasets.load_mni152_brain_mask(resolution=1)
    return (
        nifti.Image(np.asarray(t1w.dataobj, np.float32), t1w.affine),
        nifti.Image(np.asarray(mask.dataobj) > 0, mask.affine),
    )


def _templateflow(wanted: str) -> ModuleType:
    """Import TemplateFlow, which creates a folder, in HOME unless TEMPLATEFLOW_HOME is set."""
    try:
        from templateflow import api
    except OSError as error:
        raise CannotCreateError(
            f"{wanted}: TemplateFlow cannot create its folder ({error}); set TEMPLATEFLOW_HOME"
        ) from error
    return cast(ModuleType, api)


def of_templateflow(name: str) -> tuple[nifti.Image, nifti.Image]:
    """Read a template's T1w and brain mask at 1 mm; TemplateFlow downloads them if needed.

    Raises
    ------
    CannotCreateError
        If TemplateFlow cannot create its folder.
    MissingInputError
        If it cannot provide them.
    UsageError
        If the template has several cohorts, such as one per age.
    """
    templateflow = _templateflow(f"template {name}")
    found = []
    for query in ({"desc": None, "suffix": "T1w"}, {"desc": "brain", "suffix": "mask"}):
        try:
            paths = templateflow.get(name, resolution=1, extension=".nii.gz", **query)
        except Exception as error:
            offline = isinstance(error, OSError) and error.errno is None  # those of requests
            reason = "no connection to its server" if offline else error
            raise MissingInputError(
                f"template {name}: TemplateFlow cannot provide it ({reason}); check the name, or "
                f"fetch it on a machine with a network: mri2pet-fetch --template {name}"
            ) from error
        paths = paths if isinstance(paths, list) else [paths]
        if not paths or not paths[0].exists():
            raise MissingInputError(
                f"template {name}: no 1 mm {query['suffix']} in TemplateFlow; choose another"
            )
        cohorts = {cohort for path in paths for cohort in COHORT.findall(path.name)}
        if len(cohorts) > 1:
            raise UsageError(
                f"template {name}: it has a T1w for each of {len(cohorts)} cohorts, such as ages, "
                "and --template cannot name one; choose a template without cohorts"
            )
        found.append(nifti.load(sorted(paths)[0]))
    t1w, mask = found
    return t1w, nifti.Image(mask.data > 0, mask.affine)


MNI152 = ("MNI152NLin2009cAsym", "MNI152NLin2009cSym", "MNI152NLin6Asym")  # spaces with atlases


def atlas_of_templateflow(name: str, template: str) -> tuple[Path, Path]:
    """Find an atlas by its name; TemplateFlow downloads it if needed.

    Most atlases in TemplateFlow exist in only one MNI152 space. For an MNI152 template, its own
    space is searched first, then those in ``MNI152``: their brains agree within a few mm.

    Parameters
    ----------
    name : str
        Name of the atlas in TemplateFlow: ``atlas``, or ``atlas:desc`` if there are several.
    template : str
        Template that defines the space of the atlas.

    Returns
    -------
    image, names : Path
        Label image at 1 mm, and the table of its labels.

    Raises
    ------
    CannotCreateError
        If TemplateFlow cannot create its folder.
    MissingInputError
        If it has no such atlas at 1 mm with a table, or cannot provide it.

    Examples
    --------
    >>> atlas_of_templateflow("Schaefer2018:100Parcels7Networks", "MNI152NLin6Asym")
    ... # doctest: +SKIP
    """
    templateflow = _templateflow(f"atlas {name}")
    atlas, _, desc = name.partition(":")
    spaces = [template, *(MNI152 if template.startswith("MNI152") else ())]

    def listed(space: str, **query: object) -> list[Path]:
        try:
            found = templateflow.ls(space, suffix="dseg", **query)
        except Exception:  # an unknown template
            return []
        return sorted(map(Path, found))

    for space in dict.fromkeys(spaces):
        image = {"atlas": atlas, "desc": desc or None, "resolution": 1, "extension": ".nii.gz"}
        tables = ({"atlas": atlas, "desc": of, "extension": ".tsv"} for of in (desc or None, None))
        table = next((query for query in tables if len(listed(space, **query)) == 1), None)
        if table is None or len(listed(space, **image)) != 1:
            continue
        absent = (
            f"atlas {name}: is not on this machine, and cannot be downloaded; fetch it on a "
            f"machine with a network: mri2pet-fetch --atlas {name}"
        )
        try:
            with redirect_stdout(StringIO()), redirect_stderr(StringIO()):  # hide download messages
                paths = [templateflow.get(space, suffix="dseg", **q) for q in (image, table)]
        except Exception as error:
            raise MissingInputError(absent) from error
        if not all(isinstance(path, Path) and path.exists() for path in paths):
            raise MissingInputError(absent)
        return paths[0], paths[1]
    others = {
        ":".join(filter(None, entities.groups()))
        for space in spaces
        for path in listed(space, resolution=1, extension=".nii.gz")
        if (entities := NAMED.search(path.name))
    }
    raise MissingInputError(
        f"atlas {name}: TemplateFlow has no such atlas with a table of names for {template}; it "
        f"has {', '.join(sorted(others)) or 'none'}"
    )


def _onto(image: nifti.Image, grid: Grid, interpolation: str) -> nifti.Image:
    moved = resample_img(
        nifti.to_nibabel(image),
        grid.affine,
        grid.shape,
        interpolation=interpolation,
        force_resample=True,
        copy_header=True,
    )
    return nifti.Image(np.asarray(moved.dataobj, np.float32), grid.affine)


def _mask_onto(mask: nifti.Image, grid: Grid) -> nifti.Image:
    moved = _onto(nifti.Image(mask.data.astype(np.float32), mask.affine), grid, "nearest")
    return nifti.Image(moved.data > 0, grid.affine)


def mask_on(name: str, grid: Grid) -> Mask:
    """Return the brain mask of a template on a grid of its space, shape (I, J, K).

    Raises
    ------
    MissingInputError
        If TemplateFlow cannot provide the template.
    """
    _, mask = _load_nilearn() if name == OWN else of_templateflow(name)
    inside: Mask = _mask_onto(mask, grid).data
    return inside


def _whole_grid(image: nifti.Image, resolution: float) -> Grid:
    """Create a grid of another resolution over the extent of an image, whatever its orientation."""
    corners = np.array(list(np.ndindex(2, 2, 2))) * (np.array(image.data.shape) - 1)
    world = corners @ image.affine[:3, :3].T + image.affine[:3, 3]
    x0, y0, z0, x1, y1, z1 = (float(side) for side in (*world.min(axis=0), *world.max(axis=0)))
    return grid_of_box((x0, y0, z0, x1, y1, z1), resolution)


def _digest(name: str, images: Sequence[nifti.Image], grids: Sequence[Grid]) -> str:
    """Compute a name for the prepared files from everything that they depend on."""
    parts = [version("mri2pet"), name, *((grid.shape, grid.affine.tolist()) for grid in grids)]
    digest = hashlib.sha256(repr(parts).encode())
    for image in images:
        digest.update(image.data.tobytes())
        digest.update(image.affine.tobytes())
    return digest.hexdigest()[:12]


def _holds(grid: Grid, steps: Affine, plane: Mask, i: int) -> bool:
    """Check whether any voxel of a mask's ``i``-th plane lies on a grid; ``steps`` maps indices."""
    places = (np.argwhere(plane) + np.array([i, 0, 0])) @ steps[:3, :3].T + steps[:3, 3]
    return bool(((places > -HALF) & (places < np.array(grid.shape) - HALF)).all(axis=1).any())


def _refuse_absurd(grid: Grid, mask: nifti.Image, name: str) -> None:
    """Refuse a grid that is too large, is not a volume, or lies entirely outside the brain."""
    size = " × ".join(map(str, grid.shape))
    if min(grid.shape) < FEWEST or np.prod(grid.shape, dtype=float) > MOST:
        raise UsageError(
            f"--bounding-box and --resolution result in a grid of {size} voxels; change one of them"
        )
    steps = np.linalg.inv(grid.affine) @ mask.affine
    planes = np.flatnonzero(mask.data.any(axis=(1, 2)))
    if not any(_holds(grid, steps, mask.data[i : i + 1], i) for i in map(int, planes)):
        raise UsageError(
            f"--bounding-box: contains no part of the brain of {name}; give x0 y0 z0 x1 y1 z1 in "
            "mm, RAS+"
        )


def prepare(
    name: str, grid: Grid, folder: Path, *, registration_resolution: float, write: bool = True
) -> Template:
    """Write a template's brain and mask for a run, unless an earlier run has written them.

    Parameters
    ----------
    name : str
        ``MNI152NLin2009aSym``, which is included in nilearn, or a name in TemplateFlow.
    grid : Grid
        Grid of the outputs.
    folder : Path
        Parent of the folder with the files; created if needed.
    registration_resolution : float
        Voxel size in mm of the image that T1w are registered to.
    write : bool
        If False, only check that the template is available and fits the grid.

    Returns
    -------
    Template
        Paths of the files.

    Raises
    ------
    MissingInputError
        If TemplateFlow cannot provide the template.
    UsageError
        If the grid is too large, is not a volume, or contains no part of the brain.
    """
    t1w, mask = _load_nilearn() if name == OWN else of_templateflow(name)
    brain = nifti.Image(np.where(mask.data, t1w.data, 0).astype(np.float32), t1w.affine)
    whole = _whole_grid(brain, registration_resolution)
    folder = folder / _digest(name, (brain, mask), (grid, whole))  # runs may share the parent
    _refuse_absurd(grid, mask, name)
    template = Template(
        name=name,
        brain=folder / "brain.nii.gz",
        brain_mask=folder / "mask.nii.gz",
        reference=folder / "grid_brain.nii.gz",
        reference_mask=folder / "grid_mask.nii.gz",
        uri=uri_of(name),
    )
    if not write:
        return template
    folder.mkdir(parents=True, exist_ok=True)
    for place, brain_path, mask_path in (
        (whole, template.brain, template.brain_mask),
        (grid, template.reference, template.reference_mask),
    ):
        if brain_path.exists() and mask_path.exists():
            continue
        inside = _mask_onto(mask, place)
        resampled = _onto(brain, place, "continuous")  # rings outside the brain on coarse grids
        nifti.save(nifti.Image(np.where(inside.data, resampled.data, 0), place.affine), brain_path)
        nifti.save(inside, mask_path)
    return template
