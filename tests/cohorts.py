"""Controls as the participant level leaves them, made in a test: no registration is needed."""

from pathlib import Path

import numpy as np
from scipy import ndimage

from bids_app import nifti
from bids_app.derivatives import sidecars
from bids_app.derivatives.description import Software, start_dataset
from bids_app.derivatives.paths import VisitPaths, derivative_path, sidecar_path, visit_paths
from bids_app.derivatives.sidecars import Provenance, Space
from bids_app.files import write_json, write_tsv
from bids_app.imaging.volume import grid_of_box
from bids_app.settings import Settings
from bids_app.synthesis.volumes import Owner, store_volumes
from bids_app.visit import Scan, Visit

TEMPLATE, RESOLUTION = Settings.template, 4.0
GRID = grid_of_box(Settings.bounding_box, RESOLUTION)  # 40×48×34 voxels
SPACE = Space(TEMPLATE, RESOLUTION, "https://example.org/T1w.nii.gz")


def images(rng, shape=GRID.shape):
    """T1w, PET and brain: an ellipsoid of smooth texture; its PET is bright where its T1w is not.

    Both are float32 in [0, 1], 0 outside the brain.
    """
    x = np.indices(shape).astype(np.float32)
    half = np.array(shape).reshape(3, 1, 1, 1) / 2
    brain = (((x + 0.5 - half) / (0.8 * half)) ** 2).sum(0) < 1
    texture = ndimage.gaussian_filter(rng.standard_normal(shape), 1.5)
    t1w = np.clip(0.6 + 0.5 * texture / texture.std() * 0.3, 0.05, 1)
    pet = np.clip(1.1 - t1w + 0.02 * rng.standard_normal(shape), 0, 1)
    return (*(np.where(brain, one, 0).astype(np.float32) for one in (t1w, pet)), brain)


def store(folder: Path, rng, participant: str, shape=(24, 25, 9), session=None) -> Path:
    """Store a visit as training maps it; give its folder."""
    t1w, pet, brain = images(rng, shape)
    affine = tuple(map(tuple, np.diag([4.0, 4, 4, 1]).tolist()))
    store_volumes(folder, Owner(participant, session, affine), t1w=t1w, pet=pet, brain=brain)
    return folder


def _scan(raw: Path, subject: str, session: str | None, datatype: str) -> Scan:
    path = derivative_path(
        raw, subject=subject, session=session, datatype=datatype,
        suffix={"anat": "T1w", "pet": "pet"}[datatype], extension=".nii.gz", entities={},
    )  # fmt: skip
    return Scan(path, subject, session, ())


def write_control(out: Path, subject: str, rng, *, session=None, pet=True) -> VisitPaths:
    """Write what training reads of a visit: T1w, brain mask and PET in template space."""
    raw = out.parent.absolute() / "raw"
    pets = (_scan(raw, subject, session, "pet"),) if pet else ()
    visit = Visit(subject, session, _scan(raw, subject, session, "anat"), pets)
    paths = visit_paths(out, visit, TEMPLATE, RESOLUTION)
    t1w, activity, brain = images(rng)
    data = {paths.t1w_in_template: t1w, paths.brain_mask_in_template: brain}
    if pet:
        data[paths.pets[0].in_template] = activity
    origin = Provenance(raw, out, "f")
    told = sidecars.preprocessing_sidecars(visit, paths, origin, SPACE, skull_stripped=False)
    for path, volume in data.items():
        write_json(sidecar_path(path), told[path])
        nifti.save(nifti.Image(volume, GRID.affine), path)
    return paths


def write_controls(out: Path, subjects, rng) -> dict[str, VisitPaths]:
    """Write a derivative dataset of controls with T1w and PET."""
    raw = out.parent.absolute() / "raw"
    raw.mkdir(parents=True, exist_ok=True)
    write_json(raw / "dataset_description.json", {"Name": "ellipsoids", "BIDSVersion": "1.10.0"})
    out.mkdir()
    software = Software("0", "https://example.org")
    start_dataset(
        out, bids_dir=raw, software=software, template=TEMPLATE, reference=SPACE.reference
    )
    rows = [{"participant_id": f"sub-{one}", "group": "control"} for one in subjects]
    write_tsv(out / "participants.tsv", ["participant_id", "group"], rows)
    return {one: write_control(out, one, rng) for one in subjects}
