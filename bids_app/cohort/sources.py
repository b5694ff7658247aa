"""What people are made from: a template or label maps, and a pattern of uptake."""

from functools import lru_cache
from pathlib import Path

import numpy as np
from nilearn import datasets

from bids_app import nifti
from bids_app.errors import MissingInputError, UnusableDataError
from bids_app.imaging.volume import Volume
from bids_app.simulation.anatomy import Anatomy, anatomy_from_labels
from bids_app.simulation.template import anatomy_from_template
from bids_app.simulation.uptake import pattern_of_template, usual_pattern


def find_label_maps(folder: Path) -> list[Path]:
    """Find the label maps of a folder, by name.

    Raises
    ------
    MissingInputError
        If there is no folder, or no NIfTI image in it.
    """
    if not folder.is_dir():
        raise MissingInputError(f"{folder}: no such folder; give one that holds label maps")
    paths = sorted(path for path in folder.iterdir() if path.name.endswith((".nii", ".nii.gz")))
    if not paths:
        raise MissingInputError(f"{folder}: no NIfTI image in it; put label maps there")
    return paths


@lru_cache(maxsize=1)
def template_anatomy(resolution: int) -> Anatomy:
    """Cut a head out of the template that nilearn carries; 1 or 2 mm."""
    t1w, gm, wm, mask = (
        load(resolution=resolution)
        for load in (
            datasets.load_mni152_template, datasets.load_mni152_gm_template,
            datasets.load_mni152_wm_template, datasets.load_mni152_brain_mask,
        )
    )  # fmt: skip
    head, grey, white = (np.asarray(image.dataobj, np.float32) for image in (t1w, gm, wm))
    return anatomy_from_template(head, grey, white, np.asarray(mask.dataobj) > 0, t1w.affine)


def load_anatomy(path: Path) -> Anatomy:
    """Read a label map as a head.

    Raises
    ------
    MissingInputError, UnusableDataError
        If it cannot be read, or is not a label map of a head.
    """
    image = nifti.load(path)
    labels = np.rint(image.data)
    if labels.ndim != 3 or not np.array_equal(labels, image.data):  # noqa: PLR2004
        raise UnusableDataError(f"{path}: not a label map; give whole numbers in three dimensions")
    try:
        return anatomy_from_labels(labels.astype(np.int32), image.affine)
    except ValueError as error:
        raise UnusableDataError(
            f"{path}: not a label map of a head ({error}); use FreeSurfer's aseg numbers"
        ) from error


def load_pattern(path: Path | None) -> Volume:
    """Read the regional pattern that people share off a mean PET in MNI space; or the usual one.

    Raises
    ------
    MissingInputError, UnusableDataError
        If it cannot be read, or is not one volume with something in it.
    """
    if path is None:
        return usual_pattern()
    image = nifti.load_scan(path)
    if image.data.ndim != 3:  # noqa: PLR2004
        raise UnusableDataError(f"{path}: {image.data.ndim} dimensions; give one volume")
    if not image.data.max() > 0:
        raise UnusableDataError(f"{path}: nothing in it is above zero; give a mean PET")
    return pattern_of_template(np.maximum(image.data, 0), image.grid, template_anatomy(2))
