"""Datasets small enough to create in a test: very coarse, skull-stripped brains."""

import json
from functools import cache
from pathlib import Path

import numpy as np
from nilearn.datasets import (
    load_mni152_brain_mask,
    load_mni152_gm_template,
    load_mni152_wm_template,
)
from scipy import ndimage

from bids_app import nifti

SHAPE, ZOOM = (44, 52, 44), 4.0  # mm; 176 × 208 × 176 mm
MIDDLE = (0, -18, 5)  # mm; centre of the template's brain
TO_T1W = tuple(-place for place in MIDDLE)  # mm; offset from template to grid
PET = {"TracerName": "FDG", "TracerRadionuclide": "F18", "Units": "Bq/mL"}


def head_affine():
    affine = np.diag([ZOOM, ZOOM, ZOOM, 1.0])
    affine[:3, 3] = -np.array(SHAPE) * ZOOM / 2
    return affine


@cache
def _tissues():
    """Return the template's grey and white matter and its brain mask, resampled to the grid."""
    maps = []
    for load in (load_mni152_gm_template, load_mni152_wm_template, load_mni152_brain_mask):
        image = load(resolution=2)
        affine = head_affine()
        affine[:3, 3] += MIDDLE
        whole = np.linalg.inv(image.affine) @ affine
        soft = ndimage.gaussian_filter(np.asarray(image.dataobj, np.float32), 0.8)
        maps.append(ndimage.affine_transform(soft, whole[:3, :3], whole[:3, 3], SHAPE, order=1))
    grey, white, inside = np.clip(maps, 0, 1)
    return grey, white, inside > 0.5


def brain(rng, *, inverted=False):
    """Return a T1w of the template's brain with texture or, if ``inverted``, its FDG PET."""
    grey, white, inside = _tissues()
    texture = ndimage.gaussian_filter(rng.standard_normal(SHAPE), 1.5) * 2
    tissue = grey + 0.3 * white if inverted else 0.6 * grey + white
    tissue = (0.1 + tissue) * (1 + 0.1 * texture)
    return np.where(inside, 1000 * np.clip(tissue, 0.05, 2), 0).astype(np.float32)


def write_dataset(folder: Path) -> Path:
    folder.mkdir(parents=True)
    (folder / "dataset_description.json").write_text(
        '{"Name": "phantoms", "BIDSVersion": "1.10.0"}'
    )
    (folder / "README").write_text("Coarse brains.\n")
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
    if data is None:  # the air of a scan is not 0 throughout: voxels of 0 count as not measured
        data = brain(rng, inverted=True)
        air = np.random.default_rng(0).random(data.shape, np.float32) * 0.01 * data.max()
        data = np.maximum(data, air)
    nifti.save(nifti.Image(data, head_affine()), path)
    path.with_name(path.name.replace(".nii.gz", ".json")).write_text(json.dumps(sidecar or PET))
    return path


# Outputs of other apps, with their file names and sidecars


def write_derivatives(folder: Path, app: str, version: str) -> Path:
    folder.mkdir(parents=True)
    told = {
        "Name": f"{app} - output",
        "BIDSVersion": "1.4.0",
        "DatasetType": "derivative",
        "GeneratedBy": [{"Name": app, "Version": version}],
    }
    (folder / "dataset_description.json").write_text(json.dumps(told))
    return folder


def add_derived(root, subject, datatype, name, data, *, session=None, affine=None, sidecar=None):
    """Write an image of another app and, if given, its sidecar."""
    path = image_path(root, subject, datatype, name, session)
    nifti.save(nifti.Image(data, head_affine() if affine is None else affine), path)
    if sidecar is not None:
        path.with_name(path.name.replace(".nii.gz", ".json")).write_text(json.dumps(sidecar))
    return path


def add_anatomy(root, subject, data, *, session=None, template="", transforms=(), prefix=""):
    """Write the T1w, brain mask and transforms of a person as fMRIPrep does."""
    sidecar = {"SkullStripped": False, "Sources": [f"bids:raw:sub-{subject}/anat/T1w.nii.gz"]}
    told = {"session": session}
    t1w = add_derived(
        root, subject, "anat", f"{prefix}desc-preproc_T1w", data, sidecar=sidecar, **told
    )
    mask = (data > 0).astype(np.uint8)
    add_derived(root, subject, "anat", f"{prefix}desc-brain_mask", mask, **told)
    pairs = (("T1w", template), (template, "T1w"))
    for (start, end), content in zip(pairs, transforms, strict=False):
        ending = f"{prefix}from-{start}_to-{end}_mode-image_xfm.h5"
        name = t1w.name.replace(f"{prefix}desc-preproc_T1w.nii.gz", ending)
        t1w.with_name(name).write_bytes(content)
    return t1w
