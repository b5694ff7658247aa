"""Simulated outputs of the participant level, created without registration."""

import shutil
import subprocess
import sys
from functools import cache
from importlib.metadata import version
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
from scipy import ndimage

from bids_app import nifti
from bids_app.derivatives import sidecars
from bids_app.derivatives.description import start_dataset
from bids_app.derivatives.paths import VisitPaths, derivative_path, sidecar_path, visit_paths
from bids_app.derivatives.sidecars import Provenance, Space
from bids_app.files import write_json, write_tsv
from bids_app.imaging.volume import grid_of_box
from bids_app.settings import Settings
from bids_app.synthesis.pairs import Owner, store_volumes
from bids_app.visit import Scan, Visit
from bids_app.workflows.training import StoredImage

TEMPLATE, RESOLUTION = Settings.template, 4.0
GRID = grid_of_box(Settings.bounding_box, RESOLUTION)  # 40×48×34 voxels
SPACE = Space(TEMPLATE, RESOLUTION, "https://example.org/T1w.nii.gz")


def stored_image(label: str, folder: Path, sha256: str, *, name="", synthetic=None) -> StoredImage:
    """Return the record of a stored image; its sources are placeholders."""
    return StoredImage(
        name or label, label, None, {}, (), Path("mask"), folder, None, sha256, synthetic
    )


def images(rng, shape=GRID.shape):
    """Return T1w, PET and brain mask: an ellipsoid of smooth texture, with PET and T1w inverted.

    T1w and PET are float32 in [0, 1], 0 outside the brain.
    """
    x = np.indices(shape).astype(np.float32)
    half = np.array(shape).reshape(3, 1, 1, 1) / 2
    brain = (((x + 0.5 - half) / (0.8 * half)) ** 2).sum(0) < 1
    texture = ndimage.gaussian_filter(rng.standard_normal(shape), 1.5)
    t1w = np.clip(0.6 + 0.5 * texture / texture.std() * 0.3, 0.05, 1)
    pet = np.clip(1.1 - t1w + 0.02 * rng.standard_normal(shape), 0, 1)
    return (*(np.where(brain, one, 0).astype(np.float32) for one in (t1w, pet)), brain)


def store(folder: Path, rng, participant: str, shape=(24, 25, 9), session=None) -> Path:
    """Store a visit in the format that training memory-maps; return its folder."""
    t1w, pet, brain = images(rng, shape)
    affine = tuple(map(tuple, np.diag([4.0, 4, 4, 1]).tolist()))
    store_volumes(folder, Owner(participant, session, affine), t1w=t1w, pet=pet, brain=brain)
    return folder


def _scan(raw: Path, subject: str, session: str | None, datatype: str) -> Scan:
    path = derivative_path(
        raw,
        subject=subject,
        session=session,
        datatype=datatype,
        suffix={"anat": "T1w", "pet": "pet"}[datatype],
        extension=".nii.gz",
        entities={},
    )
    return Scan(path, subject, session, ())


def write_control(out: Path, subject: str, rng, *, session=None, pet=True) -> VisitPaths:
    """Write the files of a visit that training reads: T1w, brain mask, PET in template space."""
    raw = out.parent.absolute() / "raw"
    pets = (_scan(raw, subject, session, "pet"),) if pet else ()
    visit = Visit(subject, session, _scan(raw, subject, session, "anat"), pets)
    paths = visit_paths(out, visit, TEMPLATE, RESOLUTION)
    t1w, activity, brain = images(rng)
    data = {paths.t1w_in_template: t1w, paths.brain_mask_in_template: brain}
    if pet:
        data[paths.pets[0].in_template] = activity
    origin = Provenance(raw, out, "f", version("mri2pet"))
    told = sidecars.preprocessing_sidecars(visit, paths, origin, SPACE)
    for path, volume in data.items():
        judged = {} if volume is brain else {"Registration": {"Verdict": "pass"}}
        write_json(sidecar_path(path), {**told[path], **judged})
        nifti.save(nifti.Image(volume, GRID.affine), path)
    return paths


def write_controls(out: Path, subjects, rng) -> dict[str, VisitPaths]:
    """Write a derivative dataset of controls with T1w and PET."""
    raw = out.parent.absolute() / "raw"
    raw.mkdir(parents=True, exist_ok=True)
    write_json(raw / "dataset_description.json", {"Name": "ellipsoids", "BIDSVersion": "1.10.0"})
    out.mkdir()
    start_dataset(out, bids_dir=raw, version="0", template=TEMPLATE, reference=SPACE.reference)
    tell(out, dict.fromkeys(subjects, "control"))
    return {subject: write_control(out, subject, rng) for subject in subjects}


def _synthesized(path: Path, rng, sidecar) -> None:
    nifti.save(nifti.Image(images(rng)[1], GRID.affine), path, description="SYNTHETIC FDG PET")
    write_json(sidecar_path(path), sidecar)


def write_synthetic(out: Path, paths: VisitPaths, rng, *, seen=False, times_mean=0.0) -> Path:
    """Write the synthetic PET of a visit; ``seen`` if the generator was trained on this control."""
    path = paths.synthetic_pet
    path.parent.mkdir(exist_ok=True)
    sidecar = sidecars.synthetic_pet(
        paths,
        Provenance(out.parent.absolute() / "raw", out, "f", version("mri2pet")),
        SPACE,
        generator={"Name": "g", "Version": "0", "SHA256": "a" * 64},
        smoothing_fwhm=1.5,
        trained_on_this_participant=seen,
        times_mean=times_mean,
        t1w_fingerprint="f",
    )
    _synthesized(path, rng, sidecar)
    return path


def write_out_of_fold(out: Path, paths: VisitPaths, rng) -> Path:
    """Write the synthetic PET of a control by the generator of the fold that left it out."""
    path = out / "crossvalidation" / "g" / paths.synthetic_pet.relative_to(out)
    path.parent.mkdir(parents=True)
    generator = {"Name": "g", "Version": "0"}
    told = {"Synthetic": True, "Generator": generator, "TrainedOnThisParticipant": False}
    told["Version"] = version("mri2pet")
    _synthesized(path, rng, {**told, "GeneratorSHA256": "b" * 64})
    return path


# Patients with a simulated lesion, and controls that differ only in texture

CENTRE, HALF = (0.0, -16.0, 18.0), (40.0, 50.0, 32.0)  # mm, RAS+; a brain of 0.27 litres
LESION, RADIUS = (-21.0, -10.0, 20.0), 13.0  # mm, RAS+; on the left
SHIFT = (6.0, -10.0, 4.0)  # mm, RAS+, from a point in the template to the same point in the T1w
WRITE_TRANSFORMS = """
import sys, SimpleITK as sitk
for path, sign in (("there.h5", 1), ("back.h5", -1)):
    x, y, z = (sign * float(one) for one in sys.argv[1:])
    shift = sitk.AffineTransform(3)
    shift.SetTranslation((-x, -y, z))  # LPS
    sitk.WriteTransform(shift, path)
"""


def places(affine=GRID.affine, shape=GRID.shape):
    """Return the world coordinates of all voxels of a grid, (I, J, K, 3), RAS+, mm."""
    return np.moveaxis(np.indices(shape), 0, -1) @ affine[:3, :3].T + affine[:3, 3]


def lesion_mask(affine=GRID.affine, shape=GRID.shape, shift=(0, 0, 0)):
    """Return the mask of the simulated lesion; ``shift`` is SHIFT in the space of the T1w."""
    return np.linalg.norm(places(affine, shape) - LESION - shift, axis=-1) < RADIUS


def uptake(rng, *, lesion=False):
    """Return PET and brain mask; people differ only in scale, noise and a dark lesion."""
    x = places() - CENTRE
    brain = ((x / HALF) ** 2).sum(axis=-1) < 1
    noise = ndimage.gaussian_filter(rng.standard_normal(GRID.shape), 1.0)
    pet = 0.7 + 0.15 * np.cos(x[..., 1:] / 15).prod(axis=-1)
    pet = pet * (1 + 0.12 * rng.uniform(-1, 1)) + 0.02 * noise
    pet = np.where(lesion_mask() & lesion, 0.7 * pet, pet)
    return np.where(brain, np.clip(pet, 0, 1), 0).astype(np.float32), brain


def write_screened(
    out: Path, subject: str, rng, *, session=None, pet=True, lesion=False
) -> VisitPaths:
    """Write the files of a visit that the group level reads, with a synthetic PET."""
    paths = write_control(out, subject, rng, session=session, pet=pet)
    write_synthetic(out, paths, rng)
    real, brain = uptake(rng, lesion=lesion)
    made = uptake(rng)[0]
    t1w = np.where(brain, 1.2 - made, 0).astype(np.float32)
    data = {paths.t1w_in_template: t1w, paths.brain_mask_in_template: brain}
    if pet:
        data[paths.pets[0].in_template] = real
    for path, volume in data.items():
        nifti.save(nifti.Image(volume, GRID.affine), path)
    nifti.save(nifti.Image(made, GRID.affine), paths.synthetic_pet, description="SYNTHETIC FDG PET")
    return paths


def write_native(paths: VisitPaths, *, flipped: bool) -> None:
    """Write the T1w on its own grid, the template's shifted by SHIFT, and both transforms.

    ``flipped`` stores it from right to left, LAS.
    """
    t1w = nifti.load(paths.t1w_in_template)
    affine = t1w.affine.copy()
    affine[:3, 3] += SHIFT
    turn = np.diag([-1.0, 1, 1, 1])
    turn[0, 3] = t1w.data.shape[0] - 1
    data, affine = (t1w.data[::-1], affine @ turn) if flipped else (t1w.data, affine)
    nifti.save(nifti.Image(np.ascontiguousarray(data), affine), paths.t1w)
    write_json(sidecar_path(paths.t1w), {"SkullStripped": True})
    there, back = shifts()
    paths.t1w_to_template.write_bytes(there)
    paths.template_to_t1w.write_bytes(back)


@cache
def shifts(shift: tuple[float, float, float] = SHIFT) -> tuple[bytes, bytes]:
    """Return the transforms from T1w to template and back, by which ``shift`` corresponds to 0."""
    with TemporaryDirectory() as folder:
        command = [sys.executable, "-c", WRITE_TRANSFORMS, *map(str, shift)]
        subprocess.run(command, check=True, cwd=folder)
        return Path(folder, "there.h5").read_bytes(), Path(folder, "back.h5").read_bytes()


def running_with(mark):
    """List the processes with a word in their environment."""
    found = []
    for path in Path("/proc").glob("[0-9]*/environ"):
        try:
            found += [path.parent.name] if mark.encode() in path.read_bytes() else []
        except OSError:  # it has just ended, or belongs to another user
            continue
    return found


def copy_of(out, folder, *patterns):
    """Copy a dataset except for files that match; the raw dataset stays where it was."""
    (folder / "raw").symlink_to(out.parent / "raw")
    return shutil.copytree(out, folder / "out", ignore=shutil.ignore_patterns(*patterns))


def files(out):
    """Return all files of a dataset with their times of change."""
    return {path: path.stat().st_mtime_ns for path in out.rglob("*") if path.is_file()}


def tell(out, groups, **columns):
    """Write participants.tsv: the group of each label, and further columns by label."""
    rows = [
        {
            "participant_id": f"sub-{label}",
            "group": group,
            **{k: columns[k][label] for k in columns},
        }
        for label, group in groups.items()
    ]
    write_tsv(out / "participants.tsv", ["participant_id", "group", *columns], rows)
