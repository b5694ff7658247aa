"""Common parameters of a run of ``train`` or ``group``: the grid, folders, folds and seeds."""

import zlib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from bids_app.derivatives.description import dataset_name
from bids_app.derivatives.paths import entities_of, resolution_label
from bids_app.derivatives.sidecars import Space
from bids_app.errors import MissingInputError, Mri2petError, UsageError
from bids_app.imaging.volume import Box, Grid, box_of_grid, grid_of_box
from bids_app.nifti import read_grid
from bids_app.settings import Settings
from bids_app.templates import uri_of


@dataclass(frozen=True)
class Study:
    """Common parameters of all rows of a ``train`` run, or all training sets of a ``group`` run.

    Parameters
    ----------
    output_dir, work_dir : Path
        Folder of the derivative dataset; folder of intermediate files.
    space, grid : Space, Grid
        Space and grid of all images.
    dataset : str
        Name or DOI of the raw dataset.
    folds : int
        Number of folds that controls are divided into.
    seed : int
        Seed of all randomness.
    versions : mapping
        Name → version of the software used.
    fwhm : float
        Smoothing of a synthetic PET, in mm.
    overlap : bool
        Whether a synthetic PET is averaged over overlapping triplets, if it is made of triplets.
    """

    output_dir: Path
    work_dir: Path
    space: Space
    grid: Grid
    dataset: str
    folds: int
    seed: int
    versions: Mapping[str, str]
    fwhm: float
    overlap: bool


def grid_of(settings: Settings) -> Grid:
    """Return the grid of the outputs that the settings request."""
    return grid_of_box(settings.bounding_box, settings.grid_resolution)


def plan_study(settings: Settings, work_dir: Path, versions: Mapping[str, str]) -> Study:
    """Collect the common parameters of a run of ``train`` or ``group``."""
    return Study(
        output_dir=settings.output_dir,
        work_dir=work_dir,
        space=Space(settings.template, settings.grid_resolution, uri_of(settings.template)),
        grid=grid_of(settings),
        dataset=dataset_name(settings.output_dir),
        folds=settings.folds,
        seed=settings.random_seed,
        versions=versions,
        fwhm=settings.smoothing_fwhm,
        overlap=settings.triplets_overlap,
    )


def seed_of(seed: int, name: str, place: int) -> int:
    """Derive the seed of one fit from that of the run; it differs by name and fold."""
    sequence = np.random.SeedSequence([seed, zlib.crc32(name.encode()), place])
    return int(sequence.generate_state(1)[0])


def resolve_grid(settings: Settings) -> tuple[Settings, list[str]]:
    """Use the template, resolution and box of the derivatives for those not given by the settings.

    Returns
    -------
    settings : Settings
        Settings with the one existing grid that fits the request; unchanged if there is no grid at
        all.
    notes : list of str
        Notes if the grid is not the default one, or if there are other grids.

    Raises
    ------
    UsageError
        If several grids fit.
    MissingInputError
        If there are grids, but none fits.
    """
    known = [
        replace(settings, template=template, resolution=resolution, bounding_box=box)
        for template, resolution, box in find_grids(settings.output_dir)
    ]
    fitting = _prefer_defaults(
        [candidate for candidate in known if _is_wanted(candidate, settings)]
    )
    grids = "; ".join(_describe_grid(candidate) for candidate in known)
    choose = "choose one with --template, --resolution and --bounding-box"
    if len(fitting) > 1:
        raise UsageError(
            f"{settings.output_dir}: contains images on several grids: {grids}; {choose}"
        )
    if known and not fitting:
        grid = f"{settings.template} at {settings.grid_resolution:g} mm"
        grid += " is on this grid" if settings.level == "group" else ""
        raise MissingInputError(
            f"{settings.output_dir}: no image in {grid}; run the participant level first, or "
            f"{choose} from these: {grids}"
        )
    if not known:
        return settings, []
    (found,) = fitting
    others = "; ".join(_describe_grid(candidate) for candidate in known if candidate != found)
    notes = [f"images on another grid are not used: {others}"] if others else []
    if not _is_same_grid(found, settings):
        return found, [f"the grid is that of the images, {_describe_grid(found)}", *notes]
    to_the_digit = found.grid_resolution == settings.grid_resolution
    return settings if to_the_digit else found, notes


def find_grids(output_dir: Path) -> list[tuple[str, float, Box]]:
    """List the grids in template space that have T1w images in a derivative dataset.

    Returns
    -------
    list of (str, float, tuple)
        Template, resolution in mm, and box in mm, RAS+, as expected by :func:`grid_of_box`. Images
        whose names give another resolution, or that cannot be read, are ignored: errors are
        reported where they are used.
    """
    ending = "anat/sub-*_space-*_res-*_desc-preproc_T1w.nii.gz"
    paths = [
        path for level in ("sub-*", "sub-*/ses-*") for path in output_dir.glob(f"{level}/{ending}")
    ]
    grids = {grid for path in paths if (grid := _grid_of(path)) is not None}
    alike = dict[object, tuple[str, float, Box]]()  # 1.3333 and 1.33333 mm may be one grid
    for template, resolution, box in sorted(grids):
        shape = grid_of_box(box, resolution).shape
        name = (template, resolution_label(resolution), box[:3], shape)
        alike.setdefault(name, (template, resolution, box))
    return sorted(alike.values())


def _grid_of(path: Path) -> tuple[str, float, Box] | None:
    """Read the grid of an image; values are rounded to header precision, so that all voxels fit."""
    try:
        entities, grid = entities_of(path), read_grid(path)
        resolution = round(float(grid.affine[0, 0]), 6)
        if box_of_grid(grid) is None or resolution_label(resolution) != entities["res"]:
            return None
        low = grid.affine[:3, 3].round(3)
        x0, y0, z0 = low.tolist()
        x1, y1, z1 = (low + (np.array(grid.shape) - 1) * resolution).tolist()
        return entities["space"], resolution, (x0, y0, z0, x1, y1, z1)
    except (Mri2petError, ValueError, KeyError):
        return None


def _is_wanted(known: Settings, settings: Settings) -> bool:
    """Return whether a grid matches the request; what was not requested may have any value."""
    by_resolution = settings.resolution is not None or settings.sloppy
    by_template = settings.template != Settings.template
    by_box = settings.bounding_box != Settings.bounding_box
    return (
        (not by_resolution or _same_resolution(known, settings))
        and (not by_template or known.template == settings.template)
        and (not by_box or _same_box(known, settings))
    )


def _prefer_defaults(fitting: list[Settings]) -> list[Settings]:
    """Keep the grids of the default template, then those of the default box, if there are any.

    An explicit request for the default cannot be distinguished from no request.
    """
    standard = [
        candidate for candidate in fitting if candidate.template == Settings.template
    ] or fitting
    boxed = [
        candidate
        for candidate in standard
        if _same_box(candidate, replace(candidate, bounding_box=Settings.bounding_box))
    ]
    return boxed or standard


def _same_box(known: Settings, settings: Settings) -> bool:
    one, other = (
        grid_of_box(box, known.grid_resolution)
        for box in (known.bounding_box, settings.bounding_box)
    )
    return one.shape == other.shape and np.allclose(one.affine, other.affine, atol=1e-3)


def _same_resolution(known: Settings, settings: Settings) -> bool:
    """Return whether two resolutions have the same label in file names.

    Headers are no more precise than labels.
    """
    one, other = (resolution_label(grid.grid_resolution) for grid in (known, settings))
    return one == other


def _is_same_grid(known: Settings, settings: Settings) -> bool:
    named = known.template == settings.template and _same_resolution(known, settings)
    return named and _same_box(known, settings)


def _describe_grid(settings: Settings) -> str:
    sides = " ".join(f"{side:g}" for side in settings.bounding_box)
    return f"{settings.template} at {settings.grid_resolution:g} mm in the box {sides}"
