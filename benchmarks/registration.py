"""How accurate is registration? Measured on a simulated cohort, where the truth is known.

Simulates people whose images have many orientations, runs ``--stage preprocess`` on them, and
prints for each person: the distance between where the true and the estimated transform take the
brain's voxels from T1w to PET; and the Dice overlap of the person's grey and white matter,
resampled into the template's space, with the template's own.

    python benchmarks/registration.py WORK --participants 4 --resolution 1
"""

import argparse
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import nibabel as nib
import numpy as np
import SimpleITK as sitk
from nilearn.datasets import load_mni152_gm_template, load_mni152_wm_template

from bids_app import nifti
from bids_app.imaging.similarity import dice
from bids_app.imaging.volume import Grid

TEMPLATE = "MNI152NLin2009aSym"
GREY, WHITE = (3, 42, 8, 47), (2, 41, 7, 46)  # FreeSurfer: cortex, cerebellar cortex; white
HALF = 0.5  # tissue probability
LPS = np.diag([-1.0, -1.0, 1.0, 1.0])


def run(*command: object) -> None:
    """Run a command; stop if it fails."""
    subprocess.run([str(word) for word in command], check=True)


def itk_affine(path: Path) -> np.ndarray:
    """Read an ITK text transform with one matrix as a 4 × 4 matrix in RAS+, mm."""
    lines = dict(line.split(": ", 1) for line in path.read_text().splitlines() if ": " in line)
    values = np.array(lines["Parameters"].split(), float)
    centre = np.array(lines["FixedParameters"].split(), float)[:3]
    if "Euler" in lines["Transform"]:
        matrix, shift = euler(values[:3]), values[3:]
    else:
        matrix, shift = values[:9].reshape(3, 3), values[9:]
    affine = np.eye(4)
    affine[:3, :3], affine[:3, 3] = matrix, shift + centre - matrix @ centre
    return LPS @ affine @ LPS


def euler(angles: np.ndarray) -> np.ndarray:
    """Return the rotation matrix of ITK's Euler3DTransform: R = Rz Rx Ry."""
    (cx, cy, cz), (sx, sy, sz) = np.cos(angles), np.sin(angles)
    rx = np.array([[1, 0, 0], [0, cx, -sx], [0, sx, cx]])
    ry = np.array([[cy, 0, sy], [0, 1, 0], [-sy, 0, cy]])
    rz = np.array([[cz, -sz, 0], [sz, cz, 0], [0, 0, 1]])
    return rz @ rx @ ry


def apply_to_points(transform: Path, points: np.ndarray) -> np.ndarray:
    """Transform points (N, 3), LPS, mm, by a transform in one of ITK's formats."""
    path = sitk.ReadTransform(str(transform))
    return np.array([path.TransformPoint(point) for point in points.tolist()])


def pet_error(truth: Path, out: Path, labels: nifti.Image) -> np.ndarray:
    """Return the distances in mm, over the brain, between true and estimated points in the PET."""
    voxels = np.argwhere((labels.data > 0) & (labels.data < 300))[::50]
    points = np.c_[voxels, np.ones(len(voxels))] @ labels.affine.T
    both = [itk_affine(next(root.rglob("*from-pet_to-T1w*.txt"))) for root in (truth, out)]
    return np.linalg.norm((points @ (both[0] - both[1]).T)[:, :3], axis=1)


def resample_labels(labels: Path, reference: Path, transform: Path, out: Path) -> None:
    """Resample labels in a separate process, because this one already has numpy's threads."""
    code = (
        "from pathlib import Path; from bids_app.anatomy.registration import resample; "
        f"resample(Path({str(labels)!r}), Path({str(reference)!r}), [Path({str(transform)!r})], "
        f"Path({str(out)!r}), interpolation='nearestNeighbor')"
    )
    run(sys.executable, "-c", code)


def cut_template(load: Callable[..., nib.Nifti1Image], grid: Grid) -> np.ndarray:
    """Crop a 1 mm image of the template to a grid whose voxels coincide with its own."""
    image = load(resolution=1)
    offset = np.round(grid.affine[:3, 3] - image.affine[:3, 3]).astype(int)
    box = tuple(slice(o, o + n) for o, n in zip(offset, grid.shape, strict=True))
    return np.asarray(image.dataobj)[box]


def prepare(arguments: argparse.Namespace, raw: Path, out: Path) -> None:
    """Simulate the cohort, unless it exists, and preprocess it."""
    anatomies = ["--anatomies", arguments.anatomies] if arguments.anatomies else []
    if not raw.exists():
        run(
            "mri2pet-simulate",
            raw,
            "--paired",
            arguments.participants,
            "--resolution",
            arguments.resolution,
            "--seed",
            arguments.seed,
            "--vary-orientation",
            *anatomies,
        )
    run("mri2pet", raw, out, "participant", "--stage", "preprocess", "--skip-bids-validation")


def tissue_overlap(labels: Path, folder: Path, work: Path) -> tuple[float, float]:
    """Return the Dice overlap of a person's grey and white matter with the template's."""
    reference = next(folder.rglob(f"*space-{TEMPLATE}_res-1_desc-preproc_T1w.nii.gz"))
    moved_path = work / f"{folder.name}_labels.nii.gz"
    resample_labels(labels, reference, next(folder.rglob("*from-T1w_to-*_xfm.h5")), moved_path)
    moved = nifti.load(moved_path)
    grey = cut_template(load_mni152_gm_template, moved.grid)
    white = cut_template(load_mni152_wm_template, moved.grid)
    found = np.round(moved.data)
    return (
        dice(np.isin(found, GREY), (grey > white) & (grey > HALF)),
        dice(np.isin(found, WHITE), (white > grey) & (white > HALF)),
    )


def main() -> None:
    """Print a line per participant and a summary."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("work", type=Path)
    parser.add_argument("--participants", type=int, default=4)
    parser.add_argument("--resolution", default="1", help="voxel size of the simulated T1w, in mm")
    parser.add_argument("--anatomies", type=Path, help="label maps; default: the template")
    parser.add_argument("--seed", default="11")
    arguments = parser.parse_args()
    raw, out = arguments.work / "bids", arguments.work / "out"
    prepare(arguments, raw, out)
    rows = []
    print("participant      axes  PET error (mm) median   max    Dice grey  white")
    for folder in sorted(out.glob("sub-*/")):
        truth = raw / "derivatives" / "truth" / folder.name
        labels_path = next(truth.rglob("*_desc-aseg_dseg.nii.gz"))
        labels = nifti.load(labels_path)
        distances = pet_error(truth, folder, labels)
        grey, white = tissue_overlap(labels_path, folder, arguments.work)
        rows.append((np.median(distances), distances.max(), grey, white))
        told = "{:22.2f} {:5.2f} {:12.3f} {:6.3f}".format(*rows[-1])
        print(f"{folder.name:16} {axis_codes(labels.affine):5} {told}")
    error, _, grey, white = np.median(rows, axis=0)
    print(f"median over participants: {error:.2f} mm; Dice: grey {grey:.3f}, white {white:.3f}")


def axis_codes(affine: np.ndarray) -> str:
    """Return the letters of the directions of a grid's axes."""
    names = (("L", "R"), ("P", "A"), ("I", "S"))
    largest = np.abs(affine[:3, :3]).argmax(axis=0)
    return "".join(names[row][int(affine[row, column] > 0)] for column, row in enumerate(largest))


if __name__ == "__main__":
    main()
