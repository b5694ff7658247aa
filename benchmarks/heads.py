"""Real and simulated heads, turned in their headers, for pose.py and verdict.py.

It also stores what these two measure, so that an interrupted run can be resumed.
"""

import json
import os
import subprocess
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

os.environ.setdefault("ITK_GLOBAL_DEFAULT_NUMBER_OF_THREADS", "1")

import numpy as np
from registration import itk_affine
from scipy import ndimage, stats
from scipy.spatial.transform import Rotation

from bids_app import nifti
from bids_app.anatomy import registration
from bids_app.imaging.pose import axis_aligned
from bids_app.imaging.verdict import sidecar_fields
from bids_app.imaging.volume import downsample, grid_of_box
from bids_app.settings import Settings
from bids_app.templates import Template, prepare

GRID, BRAIN_GRID = 4.0, 2.0  # mm: grid of --sloppy; grid of the registered brains
SHIFT = 40.0  # mm, maximum along each axis
TILTS = (20, 30, 40, 50, 60, 70)  # degrees
LEARNT = ("colin27", "studyforrest", "sub-0", *(f"sub-control0{n}" for n in range(1, 8)))


def is_learnt(name: str) -> bool:
    """Return whether a head is one of those on which bounds may be changed."""
    return name.startswith(LEARNT)


def brains(
    work: Path, data: Path, heads: int, *, grid: float = BRAIN_GRID, only: Iterable[str] = ()
) -> Iterator[tuple[str, Path]]:
    """Yield skull-stripped, bias-corrected brains; whole heads are stripped first.

    They are downsampled to about ``grid`` mm, unless they are coarser already.
    """
    sources = [
        *sorted(data.glob("heads/*.nii.gz")),
        *sorted(data.glob("ds002748/*/anat/*T1w.nii.gz")),
    ]
    sources += sorted(work.glob("simulated/sub-*/anat/*T1w.nii.gz"))
    for source in sources[:heads]:
        name = source.name.split(".")[0].removesuffix("_T1w")
        if only and name not in only:
            continue
        path = work / ("brains" if grid == BRAIN_GRID else "fine") / f"{name}.nii.gz"
        if not path.exists():
            image = nifti.load(source)
            mask = brain_of(source, work)
            brain = np.where(mask, image.data, 0).astype(np.float32)
            save_corrected(nifti.Image(*downsample(brain, image.affine, grid)), path, work)
        yield name, path


def simulate(work: Path, data: Path) -> None:
    """Simulate a T1w and a PET on each label map, unless they exist."""
    work.mkdir(parents=True, exist_ok=True)
    if not (work / "simulated").exists():
        subprocess.run(
            [
                Path(sys.executable).parent / "mri2pet-simulate",
                work / "simulated",
                "--paired",
                "14",
                "--resolution",
                "2",
                "--seed",
                "6",
                "--anatomies",
                data / "labelmaps",
            ],
            check=True,
        )


def save_corrected(image: nifti.Image, path: Path, work: Path) -> None:
    """Correct the bias field of a brain, and save the result."""
    raw, mask = work / "raw.nii.gz", work / "raw_mask.nii.gz"
    nifti.save(image, raw)
    nifti.save(nifti.Image(image.data > 0, image.affine), mask)
    path.parent.mkdir(exist_ok=True)
    registration.correct_bias(raw, mask, path, grid=4.0)


def brain_of(source: Path, work: Path) -> np.ndarray:
    """Return the true brain mask of a painted head, or that of deepbet, in its own process."""
    found = list((work / "simulated/derivatives/truth").rglob(f"{source.name[:-11]}*dseg.nii.gz"))
    if found:
        return brain_of_labels(nifti.load(found[0]).data)
    out = work / "mask.nii.gz"
    code = (
        "import sys; from bids_app import nifti; from bids_app.anatomy import brain; "
        "image = nifti.load(sys.argv[1]); mask, _ = brain.find_brain(image, 1); "
        "nifti.save(nifti.Image(mask, image.affine), sys.argv[2])"
    )
    subprocess.run([sys.executable, "-c", code, source, out], check=True)
    return nifti.load(out).data > 0


def brain_of_labels(labels: np.ndarray) -> np.ndarray:
    """Return the brain mask of a label map, including the fluid in its sulci."""
    return ndimage.binary_closing((labels > 0) & (labels < 300), iterations=3)


def turns(rng: np.random.Generator, count: int) -> Iterator[tuple[str, np.ndarray]]:
    """Draw rotations: the identity, then axis-aligned ones and tilts alternately."""
    yield "as it is", np.eye(3)
    aligned = [rotation for rotation in axis_aligned() if np.trace(rotation) < 3]
    for number in range(count):
        if number % 2 == 0:
            index = int(rng.integers(len(aligned)))
            yield f"axes {index}", aligned[index]
        else:
            axis, degrees = "xyz"[rng.integers(3)], int(rng.choice(TILTS) * rng.choice([-1, 1]))
            yield (
                f"tilt {axis} {degrees}",
                Rotation.from_euler(axis, degrees, degrees=True).as_matrix(),
            )


def turned(
    image: nifti.Image, turn: np.ndarray, shift: np.ndarray
) -> tuple[nifti.Image, np.ndarray]:
    """Rotate an image's affine about its centre, and shift it; also return the transform."""
    centre = image.affine[:3, :3] @ (np.array(image.data.shape) / 2) + image.affine[:3, 3]
    move = np.eye(4)
    move[:3, :3], move[:3, 3] = turn, centre - turn @ centre + shift
    return nifti.Image(image.data, move @ image.affine), move


def template_at(grid: float, work: Path) -> Template:
    """Resample the template to a grid of ``grid`` mm, as the app does."""
    return prepare(
        Settings.template,
        grid_of_box(Settings.bounding_box, grid),
        work / "template",
        registration_resolution=grid,
    )


def people(work: Path) -> list[Path]:
    """List the folders of painted people."""
    return sorted((work / "simulated").glob("sub-*"))


def rows_of(results: Path) -> list[dict]:
    """Read the rows of previous runs."""
    text = results.read_text() if results.exists() else ""
    return [json.loads(line) for line in text.splitlines()]


def done_in(results: Path) -> set[tuple]:
    """Return the keys of the rows of previous runs."""
    return {tuple(row["key"]) for row in rows_of(results)}


def keep(results: Path, rows: Iterable[dict]) -> None:
    """Append each row to the results as soon as it is measured."""
    for row in rows:
        with results.open("a") as file:
            file.write(json.dumps(row) + "\n")


def share_of(hits: int, total: int) -> str:
    """Format a share with Wilson's 95 % interval.

    Examples
    --------
    >>> share_of(1, 10)
    '1/10 (2 to 40 %)'
    """
    low, high = stats.binomtest(hits, total).proportion_ci(method="wilson")
    return f"{hits}/{total} ({100 * low:.0f} to {100 * high:.0f} %)"


@dataclass(frozen=True)
class Person:
    """Person with a T1w, its brain mask, and a PET.

    Parameters
    ----------
    t1w : Path
        Path of the T1w.
    labels : Image
        Label map with FreeSurfer's numbers on the grid of the T1w, or the brain mask.
    brain : ndarray of bool
        Brain mask on that grid.
    true : ndarray, (4, 4)
        True transform from world coordinates of the T1w to those of the untouched PET.
    pet : Image, optional
        PET of the person, if there is one.
    """

    t1w: Path
    labels: nifti.Image
    brain: np.ndarray
    true: np.ndarray
    pet: nifti.Image | None = None

    @property
    def points(self) -> np.ndarray:
        """Homogeneous coordinates of points in the brain, in mm, (N, 4)."""
        voxels = np.argwhere(self.brain)[::50]
        return np.c_[voxels, np.ones(len(voxels))] @ self.labels.affine.T

    def register(
        self, pet: nifti.Image, turn: np.ndarray, shift: np.ndarray, work: Path
    ) -> tuple[float, dict]:
        """Register a turned PET as the app does; return the error in mm, and the sidecar fields."""
        mask, path, out = work / "pet_mask.nii.gz", work / "pet.nii.gz", work / "pet.txt"
        image, move = turned(pet, turn, shift)
        nifti.save(nifti.Image(self.brain, self.labels.affine), mask)
        nifti.save(image, path)
        start, _, _, judgement = registration.register_pet(
            path, self.t1w, mask, work / "pet_", out, quick=True
        )
        wrong = np.linalg.inv(move) @ itk_affine(out) - self.true
        error = np.linalg.norm((self.points @ wrong.T)[:, :3], axis=1).mean()
        return float(error), {"Start": start, **sidecar_fields(judgement)}


def painted(folder: Path, work: Path) -> Person:
    """Read a painted person."""
    truth = work / "simulated/derivatives/truth" / folder.name
    labels = nifti.load(next(truth.rglob("*aseg_dseg.nii.gz")))
    pet = nifti.load(next(folder.rglob("*_pet.nii.gz")))
    pet = nifti.Image(pet.data.reshape(*pet.data.shape[:3], -1).mean(axis=3), pet.affine)
    true = itk_affine(next(truth.rglob("*from-pet_to-T1w*.txt")))
    t1w = next(folder.rglob("*T1w.nii.gz"))
    return Person(t1w, labels, brain_of_labels(labels.data), true, pet)


def real(brain: Path) -> Person:
    """Create a person from a real brain, whose true PET position is that of the T1w."""
    image = nifti.load(brain)
    mask = image.data > 0
    return Person(brain, nifti.Image(mask.astype(np.float32), image.affine), mask, np.eye(4))
