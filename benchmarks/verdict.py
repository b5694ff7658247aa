"""Turn heads; check whether registration finds them, and whether the verdict detects failures.

Turns the headers of real brains, of brains painted on label maps, and of painted FDG PET. Registers
them coarsely (as ``--sloppy`` does), with the search of directions and without it, and compares
with the registration of the untouched T1w, or with the true place of the PET. ``--only fine`` does
this with two real brains at 1 mm, as a run without ``--sloppy`` does; ``--only odd`` gives images
that are not a good T1w or FDG PET (benchmarks/odd.py). Prints how many registrations were wrong,
and how often the verdict missed that or gave a false alarm, with Wilson's intervals, separately for
heads on which bounds may be changed and for held-out heads. Results are kept in
WORK/results.jsonl, so that an interrupted run can be resumed.

    python benchmarks/verdict.py WORK DATA --turns 2

DATA has ``ds002748`` and ``heads`` (real T1w), ``labelmaps``, and ``fdg_templates``.
"""

import argparse
import os
from collections.abc import Iterable, Iterator
from itertools import product
from pathlib import Path

os.environ.setdefault("ITK_GLOBAL_DEFAULT_NUMBER_OF_THREADS", "1")

import numpy as np
import odd
from heads import (
    GRID,
    SHIFT,
    brains,
    done_in,
    is_learnt,
    keep,
    painted,
    people,
    real,
    rows_of,
    share_of,
    simulate,
    template_at,
    turned,
    turns,
)
from registration import LPS, apply_to_points
from scipy.spatial.transform import Rotation

from bids_app import nifti
from bids_app.anatomy import registration
from bids_app.imaging.pose import Pose
from bids_app.imaging.verdict import (
    BEHIND,
    PET_CRITERIA,
    T1W_CRITERIA,
    VERDICTS,
    judge,
    judge_t1w,
    measure_brain,
    sidecar_fields,
)
from bids_app.templates import Template

RIGHT, WRONG = 5.0, 10.0  # mm, mean over the brain; errors in between are neither
FINE = {
    "sub-52": (("as it is", True), ("y 60", False), ("z 90", True)),
    "colin27_ch2": (("as it is", True), ("x 180", True), ("z 90", False)),
}  # at 1 mm: axis and degrees of the turn, and whether the search is on
ODD = ("colin27_ch2", "sub-01", "sub-04", "sub-52", "sub-54", "sub-55", "sub-57")
ODD_PAINTED = ("01", "04", "08", "10", "12", "14")  # people whose PET is odd

SEARCHED = Pose.is_better


def let_search(on: bool) -> None:
    """Make registration start from the result of the search if it is better, or never."""
    Pose.is_better = SEARCHED if on else property(lambda _: False)


def places(template: Template, transform: Path) -> np.ndarray:
    """Return the points to which a transform maps voxels of the template's brain, RAS+, mm."""
    mask = nifti.load(template.brain_mask)
    voxels = np.argwhere(mask.data > 0)[::40]
    points = np.c_[voxels, np.ones(len(voxels))] @ mask.affine.T @ LPS
    moved = apply_to_points(transform, points[:, :3])
    return np.c_[moved, np.ones(len(moved))] @ LPS


def register_t1w(
    brain: nifti.Image, template: Template, work: Path, *, quick: bool = True
) -> tuple[dict, np.ndarray]:
    """Register a brain as the app does; return the sidecar fields and the mapped points."""
    path, mask = work / "brain.nii.gz", work / "brain_mask.nii.gz"
    nifti.save(brain, path)
    nifti.save(nifti.Image(brain.data > 0, brain.affine), mask)
    there, _, start, behind = registration.register_to_template(
        path, template.brain, work / "t1w_", quick=quick, seed=0
    )
    for name, source, how in (("after", path, "bSpline"), ("mask", mask, "nearestNeighbor")):
        registration.resample(
            source, template.reference, [there], work / f"{name}.nii.gz", interpolation=how
        )
    target = nifti.load(template.reference)
    judgement = judge_t1w(
        nifti.load(work / "after.nii.gz").data,
        target.data,
        nifti.load(work / "mask.nii.gz").data > 0,
        nifti.load(template.reference_mask).data > 0,
        target.affine,
        behind=behind,
        own_measures=measure_brain(brain.data, brain.data > 0, brain.affine),
    )
    return {"Start": start, **sidecar_fields(judgement)}, places(template, there)


def all_t1w(work: Path, data: Path, arguments: argparse.Namespace, done: set) -> Iterator[dict]:
    """Turn and register brains; yield the distance from the registration of the untouched one.

    All heads are done in one direction before the next, so an interrupted run covers all of them.
    """
    template = template_at(GRID, work)
    for index in range(arguments.turns + 1):
        for number, (name, path) in enumerate(brains(work, data, arguments.heads)):
            told, turn = list(turns(np.random.default_rng(number), arguments.turns))[index]
            for search in (True, False) if index else (True,):
                key, kept = ["T1w", name, told, search], work / "brains" / f"{name}.npy"
                if tuple(key) in done:
                    continue
                let_search(search)
                brain, move = turned(nifti.load(path), turn, np.zeros(3))
                row, found = register_t1w(brain, template, work)
                found = found @ np.linalg.inv(move).T
                if not index:
                    np.save(kept, found)
                error = np.linalg.norm((found - np.load(kept))[:, :3], axis=1).mean()
                yield {"key": key, "error": float(error), **row}


def all_pet(work: Path, arguments: argparse.Namespace, done: set) -> Iterator[dict]:
    """Turn, shift and register PET of painted people, whose true positions are known."""
    for index in range(arguments.turns + 1):
        for number, folder in enumerate(people(work)):
            rng = np.random.default_rng(100 + number)
            told, turn = list(turns(rng, arguments.turns))[index]
            shift = rng.uniform(-SHIFT, SHIFT, (index + 1, 3))[index]
            for search in (True, False) if index else (True,):
                key = ["PET", folder.name, told, search]
                if tuple(key) in done:
                    continue
                let_search(search)
                person = painted(folder, work)
                error, row = person.register(person.pet, turn, shift, work)
                yield {"key": key, "error": error, **row}


def fine(work: Path, data: Path, done: set) -> Iterator[dict]:
    """Register real brains at 1 mm, untouched and turned."""
    template, sources = template_at(1.0, work), dict(brains(work, data, 99, grid=1.0, only=FINE))
    for name, plan in FINE.items():
        for told, search in plan:
            key, kept = ["T1w at 1 mm", name, told, search], sources[name].with_suffix(".npy")
            if tuple(key) in done:
                continue
            let_search(search)
            axis, degrees = told.split() if " is" not in told else ("x", "0")
            turn = Rotation.from_euler(axis, float(degrees), degrees=True).as_matrix()
            brain, move = turned(nifti.load(sources[name]), turn, np.zeros(3))
            row, found = register_t1w(brain, template, work, quick=False)
            found = found @ np.linalg.inv(move).T
            if told == "as it is":
                np.save(kept, found)
            error = np.linalg.norm((found - np.load(kept))[:, :3], axis=1).mean()
            yield {"key": key, "error": float(error), **row}


def odd_t1w(work: Path, data: Path, done: set) -> Iterator[dict]:
    """Register images that are not a whole T1w; yield the distance from the untouched T1w."""
    template = template_at(GRID, work)
    let_search(True)
    for (told, make), (name, path) in product(odd.T1W.items(), brains(work, data, 99)):
        key = ["odd T1w", name, told, True]
        if name not in ODD or tuple(key) in done:
            continue
        row, found = register_t1w(make(nifti.load(path)), template, work)
        kept = np.load(work / "brains" / f"{name}.npy")
        error = np.linalg.norm((found - kept)[:, :3], axis=1).mean()
        yield {"key": key, "error": float(error), **row}


def odd_pet(work: Path, done: set) -> Iterator[dict]:
    """Register images that are not a good FDG PET of the person."""
    let_search(True)
    for (told, make), folder in product(odd.PET.items(), people(work)):
        key = ["odd PET", folder.name, told, True]
        if not folder.name.endswith(ODD_PAINTED) or tuple(key) in done:
            continue
        person = painted(folder, work)
        error, row = person.register(make(person), np.eye(3), np.zeros(3), work)
        yield {"key": key, "error": error, **row}


def mean_pet(work: Path, data: Path, done: set) -> Iterator[dict]:
    """Resample mean FDG PET into each T1w's space, turn them, and register them."""
    template = template_at(GRID, work)
    let_search(True)
    for number, (name, path) in enumerate(brains(work, data, 99)):
        for index, (pet_name, pet) in enumerate(odd.mean_pets(data)):
            rng = np.random.default_rng(200 + 2 * number + index)
            told, turn = list(turns(rng, 2))[(number + index) % 3]
            key = ["mean PET", name, f"{pet_name}, {told}", True]
            if tuple(key) in done:
                continue
            register_t1w(nifti.load(path), template, work)
            back = work / "t1w_InverseComposite.h5"
            lying = odd.carried(pet, path, back, work)
            error, row = real(path).register(lying, turn, rng.uniform(-SHIFT, SHIFT, 3), work)
            yield {"key": key, "error": error, **row}


def tell(rows: list[dict]) -> None:
    """Print errors, and the verdicts on right and wrong registrations."""
    for kind, learnt, search in product(
        ("T1w", "PET", "T1w at 1 mm", "mean PET"), (True, False), (True, False)
    ):
        mine = [r for r in rows if r["key"][0] == kind and r["key"][3] is search]
        mine = [row for row in mine if is_learnt(row["key"][1]) is learnt]
        if mine:
            words = (
                f"{kind}, {'learnt' if learnt else 'held out'}, search {'on' if search else 'off'}"
            )
            tell_of(mine, words, PET_CRITERIA if "PET" in kind else T1W_CRITERIA)
    for kind in ("odd T1w", "odd PET"):
        mine = [row for row in rows if row["key"][0] == kind]
        for told in dict.fromkeys(row["key"][2] for row in mine):
            chosen = [row for row in mine if row["key"][2] == told]
            errors = [row["error"] for row in chosen]
            counts = [[row["Verdict"] for row in chosen].count(verdict) for verdict in VERDICTS]
            off = f"{min(errors):.1f} to {max(errors):.1f} mm"
            print(f"{kind}: {told}: {off}; pass, doubt, fail {counts}")
            tell_measures(chosen, "    ")


def tell_of(rows: list[dict], words: str, criteria: Iterable) -> None:
    """Print how many registrations are right, and the verdicts on them."""
    errors = np.array([row["error"] for row in rows])
    right = errors[errors < RIGHT]
    middle = f" (median error {np.median(right):.1f} mm)" if len(right) else ""
    print(
        f"{words}: {len(rows)} registrations of {len({row['key'][1] for row in rows})} heads, "
        f"{len(right)} right{middle}, {(errors > WRONG).sum()} wrong"
    )
    alone = [criterion for criterion in criteria if criterion.measure != BEHIND]
    for told, bounds in (("all criteria", criteria), ("without the search's", alone)):
        print(f"  {told}: {judged(rows, bounds)}")
    tell_measures([row for row in rows if row["error"] < RIGHT], "  right: ")
    tell_measures([row for row in rows if row["error"] > WRONG], "  wrong: ")


def tell_measures(rows: list[dict], words: str) -> None:
    """Print the range of each measure."""
    names = [criterion.measure for criterion in (*T1W_CRITERIA, *PET_CRITERIA)]
    for name in dict.fromkeys(names):
        values = [row[name] for row in rows if name in row]
        if values:
            print(f"{words}{name} {min(values):.2f} to {max(values):.2f}")


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
            lines.append(f"{words} {share_of(hits, total)}")
    return "; ".join(lines)


def main() -> None:
    """Resume where the last run stopped, and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("work", type=Path)
    parser.add_argument("data", type=Path)
    parser.add_argument("--turns", type=int, default=2, help="number per head and PET")
    parser.add_argument("--heads", type=int, default=99, help="number of heads, real ones first")
    parser.add_argument("--only", choices=("fine", "T1w", "PET", "mean", "odd", "none"))
    arguments = parser.parse_args()
    work, data = arguments.work.absolute(), arguments.data.absolute()
    simulate(work, data)
    results = work / "results.jsonl"
    done = done_in(results)
    chains = {
        "fine": [fine(work, data, done)],
        "T1w": [all_t1w(work, data, arguments, done)],
        "PET": [all_pet(work, arguments, done)],
        "mean": [mean_pet(work, data, done)],
        "odd": [odd_t1w(work, data, done), odd_pet(work, done)],
    }
    for name, chain in chains.items():
        if arguments.only in (None, name):
            for rows in chain:
                keep(results, rows)
    tell(rows_of(results))


if __name__ == "__main__":
    main()
