"""``mri2pet-simulate``: the command line of the simulation."""

import argparse
import sys
import time
from collections.abc import Callable, Sequence
from functools import partial
from importlib.metadata import version
from typing import Any

from bids_app.arguments import (
    Parser,
    absolute_path,
    add_option,
    number_reader,
    read_names_as_utf8,
    refuse_lost_folder,
    run_program,
)
from bids_app.errors import UsageError, count_noun
from bids_app.lifeline import exit_with

SMALLEST_RESOLUTION, LARGEST_RESOLUTION = 0.5, 8.0  # mm
MOST_FRAMES, MOST_SESSIONS = 100, 99


def _between(kind: type[int] | type[float], low: float, high: float) -> Callable[[str], float]:
    """Create an argument type of numbers between two bounds, inclusive."""
    return number_reader(kind, lambda value: low <= value <= high, f"is not in {low:g} to {high:g}")


COUNT, POSITIVE = _between(int, 0, 9999), _between(int, 1, 9999)


def build_parser() -> argparse.ArgumentParser:
    """Build the parser of the command line."""
    parser = Parser(
        prog="mri2pet-simulate",
        allow_abbrev=False,
        description="Write a cohort of simulated T1w and FDG PET with known truth, as a valid "
        "BIDS dataset; the truth goes to BIDS_DIR/derivatives/truth.",
        epilog="Exit codes: 0 done; 64 usage; 65 unusable data; 66 input missing; 73 cannot "
        "create output; 74 read or write error.",
    )
    parser.add_argument(
        "bids_dir", type=absolute_path, metavar="BIDS_DIR", help="a new or empty folder"
    )
    add = partial(add_option, parser)
    add("--paired N", "controls with T1w and PET; default 4", COUNT, default=4)
    add("--t1w-only N", "controls with T1w alone; default none", COUNT, default=0)
    add("--patients N", "patients, with one or two lesions each; default none", COUNT, default=0)
    add(
        "--resolution MM",
        "voxel size of T1w; default 1",
        _between(float, SMALLEST_RESOLUTION, LARGEST_RESOLUTION),
        default=1.0,
    )
    add(
        "--seed S",
        "random seed; equal seeds give identical files; default 0",
        _between(int, 0, 2**63 - 1),
        default=0,
    )
    add(
        "--sessions N",
        "scan everyone N times, as ses-01, ses-02, ...; default: no sessions",
        _between(int, 0, MOST_SESSIONS),
        default=0,
    )
    add(
        "--frames N",
        "frames of PET; default 1, a static scan",
        _between(int, 1, MOST_FRAMES),
        default=1,
    )
    add(
        "--anatomies DIR",
        "label maps of whole heads, in FreeSurfer's aseg numbers; "
        "default: the template that comes with nilearn",
        absolute_path,
    )
    add(
        "--uptake-template NIFTI",
        "a mean FDG PET in MNI space; default: a built-in pattern",
        absolute_path,
    )
    add(
        "--lesion-depth LEAST MOST",
        "reduction of uptake in lesions, in %%, drawn from LEAST to MOST; default 10 40",
        _between(float, 0, 100),
        nargs=2,
        default=(10.0, 40.0),
    )
    add("--vary-orientation", "vary the orientation of image arrays instead of using RAS only")
    add("--nprocs N", "participants simulated at a time; default 1", POSITIVE, default=1)
    parser.add_argument("--version", action="version", version=f"mri2pet {version('mri2pet')}")
    return parser


def simulate_cohort(argv: Sequence[str] | None) -> str:
    """Simulate the cohort given on the command line, and return the closing line."""
    arguments: dict[str, Any] = vars(build_parser().parse_args(argv))
    refuse_lost_folder()
    from bids_app.simulation.cohort import CohortPlan, write_cohort

    nprocs = arguments.pop("nprocs")
    lowest, highest = arguments.pop("lesion_depth")
    if lowest > highest:
        raise UsageError(f"--lesion-depth {lowest:g} {highest:g}: give the smaller number first")
    plan = CohortPlan(**arguments, lesion_depth=(lowest, highest))
    if not plan.members:
        raise UsageError("nobody to simulate; give --paired, --t1w-only or --patients")
    start = time.monotonic()
    write_cohort(plan, nprocs=nprocs, version=version("mri2pet"))
    count = len(plan.members)
    return (
        f"{count_noun(count, 'participant')} "
        f"({plan.paired} paired, {plan.t1w_only} T1w only, {count_noun(plan.patients, 'patient')}) "
        f"in {time.monotonic() - start:.0f} s: {plan.bids_dir}"
    )


def _run(argv: Sequence[str] | None) -> int:
    sys.stdout.write(f"{simulate_cohort(argv)}\n")
    return 0


def main(argv: Sequence[str] | None = None) -> int:
    """Simulate a cohort, and return the exit code defined in BEP027."""
    if argv is None:
        read_names_as_utf8()
    return run_program(
        lambda: _run(argv),
        interrupted="stopped; the folder is not complete: empty it before another try",
    )


if __name__ == "__main__":
    exit_with(main())
