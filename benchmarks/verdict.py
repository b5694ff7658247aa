"""Turn heads, and see whether registration finds them, and whether the verdict tells.

Turns the headers of real brains, of brains painted on label maps, and of painted FDG PET, registers
them coarsely (as ``--sloppy`` does), with the search of directions and without it, and compares
with the registration of the untouched T1w, or with the true place of the PET. Prints how many were
wrong, and how often the verdict missed that or gave a false alarm, with Wilson's intervals. What
was measured is kept in WORK/results.jsonl: a run that was stopped goes on where it was.

    python benchmarks/verdict.py WORK DATA --turns 2 --heads 99

DATA has ``ds002748`` and ``heads`` (real T1w), and ``labelmaps``.
"""

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

os.environ.setdefault("ITK_GLOBAL_DEFAULT_NUMBER_OF_THREADS", "1")

import ants
import numpy as np
import pandas as pd
from registration import LPS, itk_affine
from scipy import ndimage, stats
from scipy.spatial.transform import Rotation

from bids_app import nifti
from bids_app.anatomy import registration
from bids_app.imaging.pose import Pose, axis_aligned
from bids_app.imaging.verdict import BEHIND, PET_CRITERIA, T1W_CRITERIA, judge, judge_t1w, told_of
from bids_app.imaging.volume import grid_of_box, thin
from bids_app.settings import Settings
from bids_app.templates import Template, prepare

GRID, BRAIN_GRID = 4.0, 2.0  # mm: of --sloppy; of the brains that are registered
RIGHT, WRONG = 5.0, 10.0  # mm, mean over the brain; what lies between is neither
SHIFT = 40.0  # mm, at most, along each axis, of PET
LEARNT = ("colin27", "sub-0")  # how names of the heads begin on which bounds were set
TILTS = (20, 30, 40, 50, 60, 70)  # degrees

SEARCHED = Pose.is_better


def let_search(on: bool) -> None:
    """Let registration start from what the search found, or never."""
    Pose.is_better = SEARCHED if on else property(lambda _: False)


def brains(work: Path, data: Path, heads: int) -> Iterator[tuple[str, Path]]:
    """Give stripped brains at 2 mm without bias field; whole heads are stripped first."""
    sources = [
        *sorted(data.glob("heads/*.nii.gz")),
        *sorted(data.glob("ds002748/*/anat/*T1w.nii.gz")),
    ]
    sources += sorted(work.glob("simulated/sub-*/anat/*T1w.nii.gz"))
    for source in sources[:heads]:
        name = source.name.split(".")[0].removesuffix("_T1w")
        path = work / "brains" / f"{name}.nii.gz"
        if not path.exists():
            image = nifti.load(source)
            mask = brain_of(source, work)
            coarse, affine = thin(np.where(mask, image.data, 0), image.affine, BRAIN_GRID)
            save_corrected(nifti.Image(coarse, affine), path, work)
        yield name, path


def save_corrected(image: nifti.Image, path: Path, work: Path) -> None:
    """Save a brain without its bias field."""
    raw, mask = work / "raw.nii.gz", work / "raw_mask.nii.gz"
    nifti.save(image, raw)
    nifti.save(nifti.Image(image.data > 0, image.affine), mask)
    path.parent.mkdir(exist_ok=True)
    registration.correct_bias(raw, mask, path, shrink_factor=4)


def brain_of(source: Path, work: Path) -> np.ndarray:
    """Find the brain: the truth of painted heads; deepbet, in its own process, for others."""
    found = list((work / "simulated/derivatives/truth").rglob(f"{source.name[:-11]}*dseg.nii.gz"))
    if found:
        return brain_of_labels(nifti.load(found[0]).data)
    out = work / "mask.nii.gz"
    code = (
        "import sys; from bids_app import nifti; from bids_app.anatomy import brain; "
        "image = nifti.load(sys.argv[1]); stripped = brain.is_stripped(image); "
        "mask = brain.foreground(image) if stripped else brain.extract(image, 1); "
        "nifti.save(nifti.Image(mask, image.affine), sys.argv[2])"
    )
    subprocess.run([sys.executable, "-c", code, source, out], check=True)
    return nifti.load(out).data > 0


def brain_of_labels(labels: np.ndarray) -> np.ndarray:
    """Give the brain of a label map, with the fluid between its folds."""
    return ndimage.binary_closing((labels > 0) & (labels < 300), iterations=3)


def turns(rng: np.random.Generator, count: int) -> Iterator[tuple[str, np.ndarray]]:
    """Draw directions: nothing turned, then axis-aligned ones and tilts by turns."""
    yield "as it is", np.eye(3)
    aligned = [one for one in axis_aligned() if np.trace(one) < 3]
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
    """Turn an image's header about its middle, and shift it; give the image, and what was done."""
    centre = image.affine[:3, :3] @ (np.array(image.data.shape) / 2) + image.affine[:3, 3]
    move = np.eye(4)
    move[:3, :3], move[:3, 3] = turn, centre - turn @ centre + shift
    return nifti.Image(image.data, move @ image.affine), move


def places(template: Template, transform: Path) -> np.ndarray:
    """Give where a transform takes voxels of the template's brain, in mm, RAS+."""
    mask = nifti.load(template.brain_mask)
    voxels = np.argwhere(mask.data > 0)[::40]
    points = np.c_[voxels, np.ones(len(voxels))] @ mask.affine.T @ LPS
    table = pd.DataFrame(points[:, :3], columns=list("xyz"))
    moved = ants.apply_transforms_to_points(3, table, [str(transform)]).to_numpy()[:, :3]
    return np.c_[moved, np.ones(len(moved))] @ LPS


def register_t1w(brain: nifti.Image, template: Template, work: Path) -> tuple[dict, np.ndarray]:
    """Register a brain as the app does; give what the sidecar would tell, and places."""
    path, mask = work / "brain.nii.gz", work / "brain_mask.nii.gz"
    nifti.save(brain, path)
    nifti.save(nifti.Image(brain.data > 0, brain.affine), mask)
    registration.seed_ants(0)
    there, _, start, behind = registration.register_to_template(
        path, template.brain, work / "t1w_", quick=True
    )
    for name, source, how in (("after", path, "bSpline"), ("mask", mask, "nearestNeighbor")):
        registration.resample(
            source, template.reference, [there], work / f"{name}.nii.gz", interpolation=how
        )
    target = nifti.load(template.reference)
    judgement = judge_t1w(
        nifti.load(work / "after.nii.gz").data, target.data,
        nifti.load(work / "mask.nii.gz").data > 0,
        nifti.load(template.reference_mask).data > 0, target.affine, behind=behind,
    )  # fmt: skip
    return {"Start": start, **told_of(judgement)}, places(template, there)


def all_t1w(work: Path, data: Path, arguments: argparse.Namespace, done: set) -> Iterator[dict]:
    """Turn and register brains; the distance is from where the untouched one was taken."""
    template = prepare(
        Settings.template, grid_of_box(Settings.bounding_box, GRID), work / "template",
        registration_resolution=GRID,
    )  # fmt: skip
    for number, (name, path) in enumerate(brains(work, data, arguments.heads)):
        image, kept = nifti.load(path), work / "brains" / f"{name}.npy"
        for told, turn in turns(np.random.default_rng(number), arguments.turns):
            for search in (True, False):
                key = ["T1w", name, told, search]
                if tuple(key) in done or (told == "as it is" and not search):
                    continue
                let_search(search)
                brain, move = turned(image, turn, np.zeros(3))
                row, found = register_t1w(brain, template, work)
                found = found @ np.linalg.inv(move).T
                if told == "as it is":
                    np.save(kept, found)
                error = np.linalg.norm((found - np.load(kept))[:, :3], axis=1).mean()
                yield {"key": key, "error": float(error), **row}


def all_pet(work: Path, arguments: argparse.Namespace, done: set) -> Iterator[dict]:
    """Turn, shift and register PET of painted people; the true place is known."""
    for number, folder in enumerate(sorted((work / "simulated").glob("sub-*"))):
        truth = work / "simulated/derivatives/truth" / folder.name
        labels = nifti.load(next(truth.rglob("*aseg_dseg.nii.gz")))
        true = itk_affine(next(truth.rglob("*from-pet_to-T1w*.txt")))
        pet, t1w = nifti.load(next(folder.rglob("*_pet.nii.gz"))), next(folder.rglob("*T1w.nii.gz"))
        pet = nifti.Image(pet.data.reshape(*pet.data.shape[:3], -1).mean(axis=3), pet.affine)
        brain = brain_of_labels(labels.data)
        mask, path, out = work / "pet_mask.nii.gz", work / "pet.nii.gz", work / "pet.txt"
        nifti.save(nifti.Image(brain, labels.affine), mask)
        points = np.c_[np.argwhere(brain)[::50], np.ones(len(np.argwhere(brain)[::50]))]
        points = points @ labels.affine.T
        rng = np.random.default_rng(100 + number)
        for told, turn in turns(rng, arguments.turns):
            shift = rng.uniform(-SHIFT, SHIFT, 3)
            for search in (True, False):
                key = ["PET", folder.name, told, search]
                if tuple(key) in done or (told == "as it is" and not search):
                    continue
                let_search(search)
                image, move = turned(pet, turn, shift)
                nifti.save(image, path)
                registration.seed_ants(0)
                found = registration.register_pet(path, t1w, mask, work / "pet_", out, quick=True)
                wrong = np.linalg.inv(move) @ itk_affine(out) - true
                error = np.linalg.norm((points @ wrong.T)[:, :3], axis=1).mean()
                yield {
                    "key": key,
                    "error": float(error),
                    "Start": found.start,
                    **told_of(found.judgement),
                }


def tell(rows: Iterable[dict]) -> None:
    """Print errors, and how the verdict judges right and wrong registrations."""
    rows = list(rows)
    for kind, criteria in (("T1w", T1W_CRITERIA), ("PET", PET_CRITERIA)):
        alone = [one for one in criteria if one.measure != BEHIND]
        for search in (True, False):
            mine = [r for r in rows if r["key"][0] == kind and r["key"][3] is search]
            if not mine:
                continue
            errors = np.array([row["error"] for row in mine])
            right = errors[errors < RIGHT]
            print(
                f"{kind}, {'with' if search else 'without'} the search: {len(mine)} registrations, "
                f"{len(right)} right (median error {np.median(right):.1f} mm), "
                f"{(errors > WRONG).sum()} wrong"
            )
            for words, bounds in (("all criteria", criteria), ("without the search's", alone)):
                print(f"  {words}: {judged(mine, bounds)}")


def judged(rows: list[dict], criteria: Iterable) -> str:
    """Count false alarms and misses, with Wilson's 95 % intervals."""
    counts = {}
    for name, chosen in (
        ("right", [row for row in rows if row["error"] < RIGHT]),
        ("wrong", [row for row in rows if row["error"] > WRONG]),
    ):
        told = [judge(row, list(criteria)).verdict for row in chosen]
        counts[name] = (told.count("pass"), told.count("doubt"), told.count("fail"))
    right, wrong = counts["right"], counts["wrong"]
    lines = [f"right: {right} pass, doubt, fail; wrong: {wrong}"]
    for words, hits, total in (
        ("false alarms (doubt or fail)", sum(right[1:]), sum(right)),
        ("false fails", right[2], sum(right)),
        ("misses (pass)", wrong[0], sum(wrong)),
        ("wrong but not fail", sum(wrong[:2]), sum(wrong)),
    ):
        if total:
            low, high = stats.binomtest(hits, total).proportion_ci(method="wilson")
            lines.append(f"{words} {hits}/{total} ({100 * low:.0f} to {100 * high:.0f} %)")
    return "; ".join(lines)


def main() -> None:
    """Go on where the last run stopped; print the tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("work", type=Path)
    parser.add_argument("data", type=Path)
    parser.add_argument("--turns", type=int, default=2, help="of each head, and each PET")
    parser.add_argument("--heads", type=int, default=99, help="real ones come first")
    parser.add_argument("--only", choices=("T1w", "PET"))
    arguments = parser.parse_args()
    work, data = arguments.work.absolute(), arguments.data.absolute()
    work.mkdir(parents=True, exist_ok=True)
    if not (work / "simulated").exists():
        subprocess.run(
            ["mri2pet-simulate", work / "simulated", "--paired", "14", "--resolution", "2",
             "--seed", "6", "--anatomies", data / "labelmaps"], check=True,
        )  # fmt: skip
    results = work / "results.jsonl"
    text = results.read_text() if results.exists() else ""
    rows = [json.loads(line) for line in text.splitlines()]
    done = {tuple(row["key"]) for row in rows}
    chains = []
    if arguments.only != "PET":
        chains.append(all_t1w(work, data, arguments, done))
    if arguments.only != "T1w":
        chains.append(all_pet(work, arguments, done))
    for chain in chains:
        for row in chain:
            with results.open("a") as file:
                file.write(json.dumps(row) + "\n")
            rows.append(row)
    tell(rows)


if __name__ == "__main__":
    main()
