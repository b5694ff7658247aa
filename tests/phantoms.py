"""Datasets small enough to make in a test: heads that are ellipsoids, already stripped."""

import json
from pathlib import Path

import numpy as np
from scipy import ndimage

from bids_app import nifti

SHAPE, ZOOM = (44, 52, 44), 4.0  # mm; 176 × 208 × 176 mm
PET = {"TracerName": "FDG", "TracerRadionuclide": "F18", "Units": "Bq/mL"}


def head_affine():
    affine = np.diag([ZOOM, ZOOM, ZOOM, 1.0])
    affine[:3, 3] = -np.array(SHAPE) * ZOOM / 2
    return affine


def brain(rng, *, inverted=False):
    """An ellipsoid of 1.4 litres with a bright core and a textured shell; 0 outside."""
    x = np.indices(SHAPE).astype(np.float32)
    centre = (np.array(SHAPE) / 2).reshape(3, 1, 1, 1)
    radius = np.sqrt(
        (((x - centre) * ZOOM / np.array([65, 82, 62]).reshape(3, 1, 1, 1)) ** 2).sum(0)
    )
    texture = ndimage.gaussian_filter(rng.standard_normal(SHAPE), 1.5) * 2
    core = ndimage.gaussian_filter((radius < 0.7).astype(np.float32), 0.7)
    tissue = (1.0 - 0.7 * core if inverted else 0.5 + 0.5 * core) * (1 + 0.1 * texture)
    return np.where(radius < 1, 1000 * np.clip(tissue, 0.05, 2), 0).astype(np.float32)


def write_dataset(folder: Path) -> Path:
    folder.mkdir(parents=True)
    (folder / "dataset_description.json").write_text(
        '{"Name": "phantoms", "BIDSVersion": "1.10.0"}'
    )
    (folder / "README").write_text("Ellipsoids.\n")
    return folder


def image_path(
    root: Path, subject: str, datatype: str, name: str, session: str | None = None
) -> Path:
    parts = [f"sub-{subject}", *([] if session is None else [f"ses-{session}"])]
    path = root.joinpath(*parts, datatype, "_".join([*parts, name]) + ".nii.gz")
    path.parent.mkdir(parents=True, exist_ok=True)
    return path


def add_t1w(root, subject, rng, *, session=None, data=None, affine=None):
    path = image_path(root, subject, "anat", "T1w", session)
    data = brain(rng) if data is None else data
    nifti.save(nifti.Image(data, head_affine() if affine is None else affine), path)
    return path


def add_pet(root, subject, rng, *, session=None, name="trc-18FFDG_pet", data=None, sidecar=None):
    path = image_path(root, subject, "pet", name, session)
    data = brain(rng, inverted=True) if data is None else data
    nifti.save(nifti.Image(data, head_affine()), path)
    path.with_name(path.name.replace(".nii.gz", ".json")).write_text(json.dumps(sidecar or PET))
    return path
