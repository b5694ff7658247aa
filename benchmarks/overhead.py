"""How much time does the app add to registration and deepbet? Measured side by side, in one run.

First the bare calls on one T1w (deepbet; N4, SyN, resampling) are run, each in a process of its
own, with only the calls timed. Then the app runs on the same image, from a cold start to its
report. Two ratios are printed: the app's time to that of the bare calls, which is affected by other
load during one of the two; and the app's time to that of its own nodes that register and that call
deepbet, in the same run.

    python benchmarks/overhead.py WORK T1W.nii.gz --threads 2
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import time
from datetime import datetime
from pathlib import Path

from nipype.utils.filemanip import loadpkl

from bids_app.imaging.volume import grid_of_box
from bids_app.settings import Settings
from bids_app.templates import prepare

CALLS = (
    "extract_brain",
    "correct_bias",
    "register_to_template",
    "before",
    "resample",
    "resample_mask",
)
BRAIN = """
import sys, time; from pathlib import Path; from bids_app import nifti
from bids_app.anatomy import brain
work, t1w, threads = Path(sys.argv[1]), nifti.load_scan(sys.argv[2]), int(sys.argv[3])
start = time.perf_counter()
mask, _ = brain.find_brain(t1w, threads)
print(time.perf_counter() - start)
nifti.save(t1w, work / "t1w.nii"); nifti.save(nifti.Image(mask, t1w.affine), work / "mask.nii.gz")
nifti.save(nifti.Image(t1w.data * mask, t1w.affine), work / "brain.nii")
"""
REGISTRATION = """
import sys, time; from pathlib import Path; from bids_app.anatomy import registration as r
work, template, grid = map(Path, sys.argv[1:]); start = time.perf_counter()
r.correct_bias(work / "t1w.nii", work / "mask.nii.gz", work / "n4.nii.gz", grid=4.0)
there, *_ = r.register_to_template(work / "brain.nii", template, work / "x_", quick=False, seed=0)
r.resample(work / "brain.nii", grid, [there], work / "moved.nii.gz",
           interpolation="bSpline")
print(time.perf_counter() - start)
"""


def timed(code: str, *words: object) -> float:
    """Run Python code that prints the seconds it took."""
    command = [sys.executable, "-c", code, *(str(word) for word in words)]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    return float(done.stdout.strip().splitlines()[-1])


def bare(work: Path, t1w: Path, threads: int) -> float:
    """Return the seconds that the bare calls take."""
    os.environ["ITK_GLOBAL_DEFAULT_NUMBER_OF_THREADS"] = str(threads)
    template = prepare(
        Settings.template,
        grid_of_box(Settings.bounding_box, 1.0),
        work / "template",
        registration_resolution=1.0,
    )
    return timed(BRAIN, work, t1w, threads) + timed(
        REGISTRATION, work, template.brain, template.reference
    )


def write_dataset(bids: Path, t1w: Path) -> None:
    """Create a BIDS dataset of one T1w, that of sub-01."""
    anat = bids / "sub-01" / "anat"
    anat.mkdir(parents=True, exist_ok=True)
    (bids / "dataset_description.json").write_text(
        json.dumps({"Name": "one", "BIDSVersion": "1.10.0"})
    )
    (bids / "README").write_text("One T1w.\n")
    shutil.copyfile(t1w, anat / "sub-01_T1w.nii.gz")


def app(work: Path, t1w: Path, threads: int) -> float:
    """Return the seconds that the whole app takes for the same image."""
    write_dataset(work / "bids", t1w)
    start = time.perf_counter()
    subprocess.run(
        [
            "mri2pet",
            work / "bids",
            work / "out",
            "participant",
            "--nprocs",
            str(threads),
            "--omp-nthreads",
            str(threads),
        ],
        check=True,
    )
    return time.perf_counter() - start


def inside(work: Path) -> float:
    """Return the seconds of registration and deepbet in the app; overlaps count once."""
    spans = []
    for path in (work / "out" / ".work").rglob("result_*.pklz"):
        runtime = loadpkl(path).runtime
        if path.parent.name in CALLS and hasattr(runtime, "startTime"):
            spans.append(
                tuple(
                    datetime.fromisoformat(t).timestamp()
                    for t in (runtime.startTime, runtime.endTime)
                )
            )
    total, until = 0.0, 0.0
    for start, end in sorted(spans):
        total += max(end - max(start, until), 0)
        until = max(until, end)
    return total


def main() -> None:
    """Print all times, and their ratios."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("work", type=Path)
    parser.add_argument("t1w", type=Path)
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    arguments.work.mkdir(parents=True)
    calls = bare(arguments.work, arguments.t1w, arguments.threads)
    whole = app(arguments.work, arguments.t1w, arguments.threads)
    own = inside(arguments.work)
    print(
        f"Registration and deepbet alone {calls:.1f} s; the app {whole:.1f} s; "
        f"ratio {whole / calls:.2f}. "
        f"Inside the app they took {own:.1f} s; ratio {whole / own:.2f}"
    )


if __name__ == "__main__":
    main()
