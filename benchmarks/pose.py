"""How often does the search of directions find a head that was turned? Without any registration.

Turns the headers of real brains, of brains painted on label maps, and of painted FDG PET: in the 24
axis-aligned directions, and by 0 to 70° in steps of 10° about x, y, z, and an oblique axis, both
ways. All are also shifted by up to 40 mm along each axis. Each head gets one in N of these poses
(``--every N``), in rotation, so that each direction is tried on heads of all kinds. Prints the
share of poses within 5 mm (mean over the brain) and 10° of where the untouched T1w was found, or of
the PET's true place, and how often registration would start from there. Results are kept in
WORK/poses.jsonl, so that an interrupted run can be resumed.

    python benchmarks/pose.py WORK DATA --every 3
"""

import argparse
import os
from collections.abc import Iterator
from itertools import product
from pathlib import Path
from time import process_time

os.environ.setdefault("ITK_GLOBAL_DEFAULT_NUMBER_OF_THREADS", "1")

import numpy as np
from heads import (
    GRID,
    SHIFT,
    Person,
    brains,
    done_in,
    keep,
    painted,
    people,
    rows_of,
    share_of,
    simulate,
    template_at,
    turned,
)
from scipy import ndimage
from scipy.spatial.transform import Rotation

from bids_app import nifti
from bids_app.anatomy.registration import BRAIN_MARGIN
from bids_app.imaging.pose import PoseSearch, axis_aligned
from bids_app.imaging.verdict import classify, expected_uptake, winsorize
from bids_app.imaging.volume import downsample

RIGHT_MM, RIGHT_DEGREES = 5.0, 10.0
AXES = {"x": (1, 0, 0), "y": (0, 1, 0), "z": (0, 0, 1), "oblique": (1, 1, 1)}
TILTS = range(10, 71, 10)  # degrees


def poses() -> Iterator[tuple[str, np.ndarray]]:
    """Yield all rotations; the first is the identity."""
    aligned = sorted(axis_aligned(), key=lambda one: -np.trace(one))
    for number, turn in enumerate(aligned):
        yield f"axes {number}", turn
    for (name, axis), degrees, sign in product(AXES.items(), TILTS, (1, -1)):
        vector = sign * degrees * np.array(axis) / np.linalg.norm(axis)
        yield (
            f"tilt {name} {sign * degrees}",
            Rotation.from_rotvec(vector, degrees=True).as_matrix(),
        )


def around(where: np.ndarray, margin: float = BRAIN_MARGIN) -> np.ndarray:
    """Dilate a brain mask on the coarse grid, as the app does."""
    return ndimage.distance_transform_edt(~where, sampling=GRID) <= margin


class Case:
    """Pair of a fixed image and one that is turned.

    Parameters
    ----------
    fixed, moving : Image
        Images on coarse grids.
    true : ndarray, (4, 4), optional
        True transform from fixed to untouched moving, if known (for a PET); otherwise the pose
        found for the untouched image is used.
    """

    def __init__(
        self, fixed: nifti.Image, moving: nifti.Image, *, true: np.ndarray | None = None
    ) -> None:
        self.fixed, self.moving, self.bounded = fixed, moving, true is not None
        self.where, voxels = around(fixed.data > 0), np.argwhere(fixed.data > 0)[::10]
        self.points = np.c_[voxels, np.ones(len(voxels))] @ fixed.affine.T
        self.true = self.search(np.eye(3), np.zeros(3))[1] if true is None else true

    def search(self, turn: np.ndarray, shift: np.ndarray) -> tuple[dict, np.ndarray]:
        """Search the pose of the turned image; return a row, and the pose with the turn undone."""
        image, move = turned(self.moving, turn, shift)
        began = process_time()
        found = PoseSearch(
            self.fixed.data,
            self.fixed.affine,
            self.where,
            image.data,
            image.affine,
            bounded=self.bounded,
        ).find()
        row = {"better": bool(found.is_better), "degrees": found.degrees, "score": found.score}
        return {**row, "seconds": process_time() - began}, np.linalg.inv(move) @ found.matrix

    def errors(self, pose: np.ndarray) -> tuple[float, float]:
        """Return the distance from the true pose: mm, mean over the brain; and degrees."""
        apart = np.linalg.norm((self.points @ (pose - self.true).T)[:, :3], axis=1).mean()
        turn = Rotation.from_matrix(self.true[:3, :3].T @ pose[:3, :3])
        return float(apart), float(np.degrees(turn.magnitude()))


def cases(work: Path, data: Path) -> Iterator[tuple[str, str, Case]]:
    """Yield each T1w with the template, and each painted PET with its T1w."""
    template = template_at(GRID, work)
    target = nifti.load(template.brain)
    for name, path in brains(work, data, 99):
        brain = nifti.load(path)
        coarse = nifti.Image(*downsample(brain.data, brain.affine, GRID))
        moving = nifti.Image(winsorize(coarse.data, coarse.data != 0), coarse.affine)
        kind = "painted T1w" if name.startswith("sub-control") else "real T1w"
        yield kind, name, Case(target, moving)
    for folder in people(work):
        yield "painted PET", folder.name, pet_case(painted(folder, work))


def pet_case(person: Person) -> Case:
    """Create the case of a PET and the tissues of its T1w, as the app does."""
    t1w = nifti.load(person.t1w)
    uptake = expected_uptake(classify(t1w.data, person.brain))
    return Case(
        nifti.Image(*downsample(uptake, t1w.affine, GRID)),
        nifti.Image(*downsample(winsorize(person.pet.data), person.pet.affine, GRID)),
        true=person.true,
    )


def measure(work: Path, data: Path, every: int, done: set) -> Iterator[dict]:
    """Yield the results of the search, head by head, for one in ``every`` rotations."""
    for number, (kind, name, case) in enumerate(cases(work, data)):
        shifts = np.random.default_rng(number).uniform(-SHIFT, SHIFT, (99, 3))
        chosen = [
            (told, turn, shift)
            for index, ((told, turn), shift) in enumerate(zip(poses(), shifts, strict=False))
            if (index - number) % every == 0 and (kind, name, told) not in done
        ]
        for told, turn, shift in chosen:
            row, pose = case.search(turn, shift)
            millimetres, degrees = case.errors(pose)
            turned_by = float(np.degrees(Rotation.from_matrix(turn).magnitude()))
            yield {
                "key": [kind, name, told],
                "turned": turned_by,
                "mm": millimetres,
                "wrong_by": degrees,
                **row,
            }


def tell(rows: list[dict]) -> None:
    """Print shares of right poses, by kind of image and by direction."""
    for kind in dict.fromkeys(row["key"][0] for row in rows):
        mine = [row for row in rows if row["key"][0] == kind]
        heads = {row["key"][1] for row in mine}
        right = [row["mm"] for row in mine if is_right(row)]
        print(
            f"{kind}: {len(heads)} heads; right {share_of(len(right), len(mine))}, median "
            f"{np.median(right):.1f} mm, most {max(right):.1f} mm; "
            f"{np.mean([row['seconds'] for row in mine]):.1f} s of CPU time each"
        )
        groups = [("24 axis-aligned", "axes"), *((f"tilted about {a}", f"tilt {a} ") for a in AXES)]
        for words, begin in groups:
            told(words, [row for row in mine if row["key"][2].startswith(begin)])
        for degrees in (0, *TILTS, 90, 120, 180):
            told(f"turned by {degrees}", [row for row in mine if round(row["turned"]) == degrees])
        for row in mine:
            if not is_right(row):
                print(f"    wrong: {row}")


def told(words: str, rows: list[dict]) -> None:
    """Print how many searches are right, and in how many registration would start there."""
    if rows:
        right, better = sum(map(is_right, rows)), sum(row["better"] for row in rows)
        print(f"  {words}: right {share_of(right, len(rows))}; {better} overrule the header")


def is_right(row: dict) -> bool:
    """Return whether a pose is within the tolerances of the true one."""
    return row["mm"] < RIGHT_MM and row["wrong_by"] < RIGHT_DEGREES


def main() -> None:
    """Resume where the last run stopped, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("work", type=Path)
    parser.add_argument("data", type=Path)
    parser.add_argument("--every", type=int, default=3, help="one in N poses per head")
    arguments = parser.parse_args()
    work, data = arguments.work.absolute(), arguments.data.absolute()
    simulate(work, data)
    results = work / "poses.jsonl"
    keep(results, measure(work, data, arguments.every, done_in(results)))
    tell(rows_of(results))


if __name__ == "__main__":
    main()
