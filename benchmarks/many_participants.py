"""How long do users of large datasets wait? An index, a dry run, and a run with nothing to do.

    python benchmarks/many_participants.py WORK --participants 1000

One person is simulated at 2 mm and processed by ``participant --sloppy``. The others are copies
under other labels: raw images differ in the time stamp of their compression, because the app
names equal ones; results are links to the same bytes; sidecars and reports are rewritten with the
label, and with the fingerprints that the app would give. Then these are timed: the index alone; a
dry run where nothing is done yet; a dry run and a run where everything is done, which read each
raw image for the first time; both again; a run in which one sidecar has changed. The BIDS
validator, a separate program, is left out. All data are in the memory of the machine; a disk adds
the time to read each raw image once.
"""

import argparse
import os
import shutil
import subprocess
import sys
import time
import zlib
from collections.abc import Sequence
from pathlib import Path

from bids_app.app.run import prepare_generator, prepare_run, prepare_template
from bids_app.cli import parse
from bids_app.dataset.index import find_subjects, read_files
from bids_app.files import read_json, write_json
from bids_app.plan.participant import plan_visit, read_selection
from bids_app.report.page import path_of
from bids_app.report.participant import made_from, shared_sources

FIRST = "control01"
IMAGES = (".nii.gz", ".h5", ".txt")
OPTIONS = ("participant", "--sloppy", "--resolution", "3", "--skip-bids-validation")


def call(*words: object) -> float:
    """Run a command and return its wall time in s."""
    name, *rest = (str(word) for word in words)
    started = time.perf_counter()
    command = [Path(sys.executable).with_name(name), *rest]
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"{name} {' '.join(rest)}\n{done.stdout}{done.stderr}")
    return time.perf_counter() - started


STAMP = slice(4, 8)  # bytes of a gzip file that hold the time of its compression


def stamped(data: bytes, label: str) -> bytes:
    """Return a gzip file with another time stamp for each label."""
    changed = bytearray(data)
    changed[STAMP] = zlib.crc32(label.encode()).to_bytes(4, "little")
    return bytes(changed)


def copy_as(
    root: Path, label: str, changes: Sequence[tuple[str, str]], *, linked: bool = True
) -> None:
    """Copy all files of the first participant under another label."""
    own = f"sub-{FIRST}"
    for path in [*root.glob(f"{own}*"), *root.glob(f"{own}/**/*"), *root.glob(f"logs/{own}_*")]:
        if path.is_dir():
            continue
        there = root / str(path.relative_to(root)).replace(own, f"sub-{label}")
        there.parent.mkdir(parents=True, exist_ok=True)
        if there.exists():
            continue
        if path.name.endswith(IMAGES) and linked:
            os.link(path, there)
        elif path.name.endswith(IMAGES):
            there.write_bytes(stamped(path.read_bytes(), label))
        else:
            text = path.read_text().replace(own, f"sub-{label}")
            for before, after in changes:
                text = text.replace(before, after)
            there.write_text(text)


def fingerprints(bids: Path, out: Path) -> tuple[dict[str, tuple[str, str]], Path]:
    """Return the fingerprints that the app computes for each participant, and its template."""
    settings = parse([str(bids), str(out), *OPTIONS])
    template, generator = prepare_template(settings), prepare_generator(settings)
    version = read_json(out / "dataset_description.json")["GeneratedBy"][0]["Version"]
    run = prepare_run(settings, template, generator, 1, version)
    plans = [plan_visit(visit, run) for visit in read_selection(settings).visits]
    marks = {plan.visit.subject: (plan.preprocessed, plan.synthesized) for plan in plans}
    return marks, template.reference


def make(work: Path, participants: int) -> None:
    """Create the dataset and its results."""
    bids, out = work / "bids", work / "out"
    call("mri2pet-simulate", bids, "--paired", 1, "--resolution", 2, "--seed", 1)
    shutil.rmtree(bids / "derivatives")
    call("mri2pet", bids, out, *OPTIONS)
    labels = [f"copy{number:04}" for number in range(1, participants)]
    table = bids / "participants.tsv"
    head, first = table.read_text().splitlines()
    lines = [head, first, *(first.replace(FIRST, label) for label in labels)]
    table.write_text("\n".join(lines) + "\n")
    for label in labels:
        copy_as(bids, label, (), linked=False)
    marks, template = fingerprints(bids, out)
    shared = shared_sources(out, template)
    for label in labels:
        copy_as(out, label, list(zip(marks[FIRST], marks[label], strict=True)))
        record = path_of(out, f"sub-{label}")
        told = {"made_from": made_from(out, label, shared)}
        write_json(record, {**read_json(record), **told})


def main() -> None:
    """Create the dataset unless it exists, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("work", type=Path)
    parser.add_argument("--participants", type=int, default=1000)
    given = parser.parse_args()
    bids, out, done = given.work / "bids", given.work / "out", given.work / "made"
    if not done.exists():
        shutil.rmtree(given.work, ignore_errors=True)
        given.work.mkdir(parents=True)
        make(given.work, given.participants)
        done.touch()
    started = time.perf_counter()
    read_files(bids, find_subjects(bids), database_dir=None)
    index = time.perf_counter() - started
    sidecar = next(out.glob(f"sub-{FIRST}/anat/*_space-MNI*_desc-preproc_T1w.json"))
    rows = {
        "index alone": index,
        "`--dry-run`, nothing done": call(
            "mri2pet", bids, given.work / "new", *OPTIONS, "--dry-run"
        ),
        "`--dry-run`, all done": call("mri2pet", bids, out, *OPTIONS, "--dry-run"),
        "run, all done": call("mri2pet", bids, out, *OPTIONS),
        "`--dry-run` again": call("mri2pet", bids, out, *OPTIONS, "--dry-run"),
        "run again": call("mri2pet", bids, out, *OPTIONS),
    }
    os.utime(sidecar)
    rows["one sidecar touched"] = call("mri2pet", bids, out, *OPTIONS)
    print(f"| {given.participants} participants | s |\n|---|---|")
    for name, seconds in rows.items():
        print(f"| {name} | {seconds:.1f} |")


if __name__ == "__main__":
    main()
