"""Measure the tables of docs/results/performance.md in one run, beside an earlier version.

    git worktree add ../before COMMIT && make -C ../before .venv/.installed
    python benchmarks/performance.py WORK --t1w T1W.nii.gz --before ../before

One real T1w goes through the participant level at 1 mm, and slices of a simulated cohort through
the group level, by the earlier version and by this one in turn. Then the other benchmarks of speed
are run, each of which compares two things in turn. Each measurement is repeated, to show how much
it varies, and printed with the load of the machine before it: on a quiet machine, the load is at
most that of the measurement before. Results are kept in WORK: a part that was run is only printed
again. It takes about half an hour on 2 cores.
"""

import argparse
import ctypes
import os
import platform
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from overhead import write_dataset
from registration_engines import BOX, FLUID, GREY, WHITE, template_tissue
from scipy import ndimage

from bids_app import nifti
from bids_app.imaging.similarity import dice
from bids_app.imaging.verdict import classify
from bids_app.imaging.volume import Grid, grid_of_box

HERE = Path(__file__).parent
ADOPT_ORPHANS = 36  # PR_SET_CHILD_SUBREAPER: workers whose parent has ended are waited for here
ONE_THREAD = dict.fromkeys(
    ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "ITK_GLOBAL_DEFAULT_NUMBER_OF_THREADS"), "1"
)


def run(*words: object, out: Path, **environment: str) -> dict[str, float]:
    """Run a command with its output in a file; return its wall time and the CPU time of all."""
    ctypes.CDLL(None).prctl(ADOPT_ORPHANS, 1, 0, 0, 0)
    began, cpu, code = time.perf_counter(), 0.0, 0
    with out.open("w") as sink:
        process = subprocess.Popen(
            [str(word) for word in words],
            stdout=sink,
            stderr=subprocess.STDOUT,
            cwd=out.parent,  # not in a checkout, whose package processes of another would import
            env={**os.environ, **environment},
        )
        wall = 0.0
        while True:
            try:
                number, status, usage = os.wait4(-1, 0)
            except ChildProcessError:
                break
            cpu += usage.ru_utime + usage.ru_stime
            if number == process.pid:
                code, wall = os.waitstatus_to_exitcode(status), time.perf_counter() - began
    if code:
        sys.exit(f"{words} ended with {code}; see {out}")
    return {"wall": wall, "cpu": cpu}


def version(checkout: Path) -> str:
    """Return the commit of a checkout."""
    command = ["git", "-C", str(checkout), "rev-parse", "--short", "HEAD"]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


def on_grid(path: Path, grid: Grid) -> np.ndarray:
    """Resample an image in MNI space to the grid of the template, linearly."""
    image = nifti.load(path)
    matrix = np.linalg.inv(image.affine) @ grid.affine
    moved: np.ndarray = ndimage.affine_transform(
        image.data.astype(np.float32), matrix[:3, :3], matrix[:3, 3], grid.shape, order=1
    )
    return moved


def overlap(out: Path) -> list[float]:
    """Return Dice of fluid, grey and white matter with the template's, and r inside its brain."""
    (t1w, brain, tissue), grid = template_tissue(), grid_of_box(BOX, 1.0)
    folder = out / "sub-01" / "anat"
    (image,) = folder.glob("*_space-MNI*_desc-preproc_T1w.nii.gz")
    (mask,) = folder.glob("*_space-MNI*_desc-brain_mask.nii.gz")
    person, inside = on_grid(image, grid), on_grid(mask, grid) > 0.5
    labels = classify(np.where(inside, person, 0), inside)
    overlaps = [dice(labels == kind, tissue == kind) for kind in (FLUID, GREY, WHITE)]
    return [*overlaps, float(np.corrcoef(person[brain], t1w[brain])[0, 1])]


def participant(given: argparse.Namespace) -> str:
    """Run the participant level on one T1w by both versions in turn."""
    work, lines = given.work / "participant", []
    write_dataset(work / "bids", given.t1w)
    lines.append("| | CPU s | wall s | Dice CSF | Dice GM | Dice WM | r with the template |")
    lines.append("|---|---|---|---|---|---|---|")
    for turn in range(given.turns):
        for name, python in given.versions.items():
            out = work / f"{name}-{turn}"
            shutil.rmtree(out, ignore_errors=True)
            command = python.with_name("mri2pet"), work / "bids", out, "participant"
            took = run(*command, "--nprocs", 2, out=work / f"{name}-{turn}.txt")
            agreement = " | ".join(f"{value:.3f}" for value in overlap(out))
            lines.append(f"| {name} | {took['cpu']:.0f} | {took['wall']:.0f} | {agreement} |")
    return "\n".join(lines)


def slab(given: argparse.Namespace) -> str:
    """Fit, score and apply one-class SVMs of slices at 1 mm by both versions in turn."""
    work, lines = given.work / "slab", []
    work.mkdir(exist_ok=True)
    told = ("encoder, s", "slab, fitted, s", "slab, applied, s", "peak memory, MiB")
    lines.append("| controls | | " + " | ".join(told) + " | µs per voxel, fitted | applied |")
    lines.append("|---" * 8 + "|")
    for controls in (35, 75):
        for turn in range(given.turns):
            for name, python in given.versions.items():
                benchmark = python.parents[2] / "benchmarks" / "group.py"
                log = work / f"{name}-{controls}-{turn}.txt"
                options = ("--controls", controls, "--patients", 17, "--threads", 1)
                run(python, benchmark, work, *options, "--slices", 2, out=log, **ONE_THREAD)
                text = log.read_text().replace("memory at most", "peak memory")  # name in 0.1
                rows = [line.rsplit(": ", 1) for line in text.splitlines()]
                found = {row[0]: float(row[1]) for row in rows if row[0] in (*told, "slab, voxels")}
                each = [1e6 * found[key] / found["slab, voxels"] for key in told[1:3]]
                cells = [f"{found[key]:.4g}" for key in told] + [f"{value:.0f}" for value in each]
                lines.append(f"| {controls} | {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def benchmark(name: str, *words: object, repeated: bool = True) -> Callable[..., str]:
    """Return a part that runs another benchmark as often as there are turns."""

    def part(given: argparse.Namespace) -> str:
        told = []
        for turn in range(given.turns if repeated else 1):
            log = given.work / f"{name}-{turn}.txt"
            took = run(sys.executable, HERE / f"{name}.py", *words, out=log)
            told.append(f"{log.read_text().strip()}\n\n({took['wall']:.0f} s)")
        return "\n\n".join(told)

    return part


def main() -> None:
    """Run the parts that have no result yet, and print all."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("work", type=Path)
    parser.add_argument("--t1w", type=Path, required=True, help="a real T1w")
    parser.add_argument("--before", type=Path, help="checkout of an earlier version, with .venv")
    parser.add_argument("--turns", type=int, default=2)
    given = parser.parse_args()
    given.work = given.work.resolve()
    given.work.mkdir(parents=True, exist_ok=True)
    checkouts = {"now": HERE.parent}
    if given.before:
        checkouts = {"before": given.before.resolve(), **checkouts}
    given.versions = {name: path / ".venv" / "bin" / "python" for name, path in checkouts.items()}
    parts = {
        "participant": participant,
        "slab": slab,
        "oneclass": benchmark("oneclass", "--voxels", 6000),
        "growth": benchmark("growth", given.work / "growth.png", repeated=False),
        "synthesis": benchmark("synthesis", "--threads", 1),
        "training": benchmark("training", "--steps", 6, "--block", 2),
        "many": benchmark("many_participants", given.work / "many", repeated=False),
    }
    commits = ", ".join(f"{name} {version(path)}" for name, path in checkouts.items())
    print(f"{platform.machine()}, {os.cpu_count()} CPUs, {time.strftime('%Y-%m-%d')}; {commits}")
    for name, part in parts.items():
        kept = given.work / f"{name}.md"
        if not kept.exists():
            load = f"Load before: {os.getloadavg()[0]:.1f}"
            kept.write_text(f"{part(given)}\n\n{load}\n")
        print(f"\n## {name}\n\n{kept.read_text()}", flush=True)


if __name__ == "__main__":
    main()
