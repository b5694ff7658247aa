"""Check what happens to awkward input, case by case.

Runs the app on images and datasets like those in public bug reports, and prints one table
with the right answer for every case, what happened, and whether the two agree. The one thing that
must not occur is a "silent" case: a result that differs from the reference, passes, and is reported
nowhere.

    python benchmarks/robustness.py WORK --cases CASES [--heads HEADS] [--parts t1w pet names files]

CASES holds ``make_images.py`` and ``make_names.py``, which make such images and datasets from a
simulated one. HEADS, a folder of real heads, adds cases of those. The hostile files of the part
``files`` are made here. Results are kept in WORK: a part that was run is only read again.
"""

import argparse
import gzip
import json
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import nibabel as nib
import numpy as np
from registration import LPS, apply_to_points

BIN = Path(sys.executable).parent
GRID = "space-MNI152NLin2009aSym_res-4"
LIKE, NOT_LIKE = 0.95, 0.9  # correlations with the reference inside its brain; our choice
NEAR = 2.0  # mm, mean distance over the brain from the reference: half a voxel; our choice
POINTS = 50  # step between the voxels of the template's brain at which it is measured
TABLE = "desc-registration_metrics.tsv"


@dataclass(frozen=True)
class Seen:
    """Outcome of a run for one case."""

    likeness: float | None  # correlation with the reference; None if there is no result
    verdict: str
    sentences: tuple[str, ...]  # messages in the terminal about this case
    distance: float | None = None  # mm from the reference; None if unknown

    def __str__(self) -> str:
        told = f"; {self.sentences[-1]}" if self.sentences else ""
        if self.likeness is None:
            return f"{self.verdict or 'no result'}{told}"
        far = "" if self.distance is None else f", {self.distance:.1f} mm"
        return f"r = {self.likeness:.3f}{far}, {self.verdict}{told}"


Answer = tuple[str, Callable[[Seen], bool]]


def has_result(seen: Seen) -> bool:
    """Return whether there is a result that later levels would use."""
    return seen.likeness is not None and seen.verdict != "fail"


def is_like(seen: Seen) -> bool:
    """Return whether a usable result is like the reference, or at the same place."""
    return (
        has_result(seen) and seen.likeness is not None and (seen.likeness >= LIKE or is_near(seen))
    )


def is_near(seen: Seen) -> bool:
    """Return whether an image, of any resolution or contrast, lies where the reference does."""
    return seen.distance is not None and seen.distance <= NEAR


def is_told(seen: Seen) -> bool:
    """Return whether a message in the terminal is about the case."""
    return bool(seen.sentences)


SAME: Answer = ("as the reference", is_like)
TOLD: Answer = ("as the reference, and told", lambda seen: is_like(seen) and is_told(seen))
REFUSED: Answer = ("refused with a sentence", lambda seen: seen.likeness is None and is_told(seen))
ALIGNED_OR_FAILED: Answer = (
    "as the reference, or refused, or verdict fail",
    lambda seen: is_like(seen) or (not has_result(seen) and is_told(seen)),
)
FLAGGED: Answer = (
    "refused, or verdict doubt or fail",
    lambda seen: is_told(seen) and (seen.likeness is None or seen.verdict in ("doubt", "fail")),
)
NOT_SILENT: Answer = (
    "near the reference, or told",
    lambda seen: (
        is_told(seen)
        or (seen.likeness is not None and (seen.likeness >= NOT_LIKE or is_near(seen)))
    ),
)
UNKNOWABLE: Answer = ("nothing in the file can tell", lambda _: True)

T1W: dict[str, Answer] = {
    "sqdisagree": TOLD, "code0las": REFUSED, "code0ras": REFUSED, "slopeneg": FLAGGED,
    "slopeinf": NOT_SILENT, "sformnan": TOLD, "sformzero": TOLD, "micron": REFUSED,
    "float64tiny": NOT_SILENT, "int16wrap": NOT_SILENT, "rgb": REFUSED, "complex": NOT_SILENT,
    "twovolumes": REFUSED, "fived3": REFUSED, "shearbig": REFUSED, "shearsmall": NOT_SILENT,
    "tilted70deg": ALIGNED_OR_FAILED, "upsidedown": ALIGNED_OR_FAILED, "thick6": NOT_SILENT,
    "slab72": FLAGGED, "ball": FLAGGED, "noise": FLAGGED, "infant": NOT_SILENT,
    "nanoutside": TOLD, "onenan": TOLD, "vertexcut": NOT_SILENT, "halfbrain": FLAGGED,
    "contrast": NOT_SILENT, "mp2rage": NOT_SILENT, "strippednoise": NOT_SILENT,
    "empty": REFUSED, "isgz": NOT_SILENT, "gzjunk": REFUSED, "html": REFUSED,
    "lfs": REFUSED, "annex": REFUSED, "UPPER": REFUSED, "analyze": REFUSED,
    "realcode0": REFUSED, "realthick": NOT_SILENT, "realmp2rage": NOT_SILENT,
}  # fmt: skip  # all others: SAME
# Cases with the reference's voxel order or world coordinates, whose distance can be measured
SAME_ORDER = {
    "tilted70deg",
    "upsidedown",
    "thick6",
    "realthick",
    "vertexcut",
    "contrast",
    "strippedneg",
    "realneg",
    "padded",
    "realpad",
    "zscored",
    "hotvoxel",
    "mp2rage",
    "realmp2rage",
}
PET: dict[str, Answer] = {
    "mismatch": REFUSED,
    "strings4d": REFUSED,
    "notimes4d": REFUSED,
    "zerodur": NOT_SILENT,
    "nanoutside": TOLD,
    "nanframe": REFUSED,
    "zeros": REFUSED,
    "vertexcut": TOLD,
    "rot90z": ALIGNED_OR_FAILED,
    "rot180z": ALIGNED_OR_FAILED,
    "tilt35": ALIGNED_OR_FAILED,
    "code0": REFUSED,
    "mirrored": UNKNOWABLE,
    "nosidecarnotrc": REFUSED,
    "noisyneg": NOT_SILENT,
    "thick": NOT_SILENT,
    "negative": NOT_SILENT,
    "undecayed": NOT_SILENT,
}
NO_T1W, NO_PET = "_T1w.nii", "_pet.nii"
NOT_FDG = {"tracer15", "tracer20"}  # FDOPA, fluorodeoxygalactose
UNCLEAR = {"tracer08", "tracer12", "tracer18", "tracer22"}  # 18F fluoro-D-glucose, FGD, F-18 …
NAMES: dict[str, str | tuple[str, ...]] = {  # parts of the name that is used; NO_…: none is used
    "ceA": "sub-ceA_T1w",
    "ceB": "rec-norm_T1w",
    "ceC": "acq-mprage_T1w",
    "ceD": ("acq-mprage_T1w", "acq-bravoGd_T1w"),
    "part": "part-mag",
    "part2": "rec-x",
    "phaseonly": NO_T1W,
    "chunk": NO_T1W,
    "space": "acq-x_T1w",
    "spaceB": "sub-spaceB_T1w",
    "desc": "sub-desc_T1w",
    "mask": "rec-x_T1w",
    "wrongname": NO_T1W,
    "wrongses": NO_T1W,
    "noses": NO_T1W,
    "nac": "rec-ac_pet",
    "dyn": "rec-acstat_pet",
    "adni": ("rec-coregavg_pet", "rec-coregiso_pet"),
    "petspace": "trc-18FFDG_pet",
    "seg": "rec-a_pet",
    "ct": "trc-18FFDG_pet",
    "trccontra": NO_PET,
    "noname": NO_PET,
    "copy": "anat/sub-copy_T1w.nii.gz",
    "heudi": "sub-heudi_T1w.nii.gz",
    "ignimg": "acq-good_T1w",
    "maconly": "sub-maconly_ce-z_T1w",
    "bom": "sub-bom_pet",
    "jnan": "sub-jnan_pet",
    "latin": NO_PET,
    "comma": NO_PET,
    "utf16": NO_PET,
    "inherit": "trc-inherited_pet",
    "inherit2": "acq-rootonly_pet",
    "mac": "sub-mac_T1w",
}


def run(log: Path, *command: object) -> tuple[int, str]:
    """Run a command once; keep its exit code and output in ``log``."""
    if not log.exists():
        done = subprocess.run(
            [str(word) for word in command], capture_output=True, text=True, check=False
        )
        log.write_text(f"{done.returncode}\n{done.stdout}\n{done.stderr}")
    code, _, text = log.read_text().partition("\n")
    return int(code), text


def simulate(work: Path) -> Path:
    """Simulate the dataset from which cases are derived."""
    base = work / "base"
    run(
        work / "base.log",
        BIN / "mri2pet-simulate",
        base,
        "--paired",
        4,
        "--t1w-only",
        2,
        "--patients",
        2,
        "--resolution",
        3,
        "--seed",
        3,
    )
    return base


def process(work: Path, bids: Path) -> tuple[int, str]:
    """Preprocess all images of a dataset on a coarse grid."""
    return run(
        work / f"{bids.name}.log",
        BIN / "mri2pet",
        bids,
        work / f"{bids.name}_out",
        "participant",
        "--sloppy",
        "--stage",
        "preprocess",
        "--skip-bids-validation",
    )


def sentences_about(text: str, case: str) -> tuple[str, ...]:
    """Find the messages about a case in the terminal output, apart from progress."""
    lines = (line.strip() for line in text.splitlines())
    ends = (" started", " done", " FAILED")
    about = [
        line
        for line in lines
        if any(f"{key}-{case}{end}" in line for key in ("sub", "ses") for end in ":_/ ,")
        and not line.endswith(ends)
        and "visits done" not in line
    ]
    return tuple(about)


def likeness(path: Path, reference: Path, mask: Path, coverage: Path | None = None) -> float:
    """Correlate two images inside a mask and, if given, the coverage of the first."""
    one, other, inside = (np.asarray(nib.load(p).dataobj) for p in (path, reference, mask))
    where = inside > 0
    if coverage is not None and coverage.exists():
        where &= np.asarray(nib.load(coverage).dataobj) > 0
    return float(np.corrcoef(one[where], other[where])[0, 1])


def distance(raw: list[Path], transforms: list[Path], mask: Path) -> float:
    """Return the distance between two T1w in world space, in mm, mean over the template's brain.

    If both have the same shape, their affines give the turn between them, which is allowed for.
    """
    case, reference = (nib.load(path) for path in raw)
    turn = np.eye(4)
    if case.shape == reference.shape:
        turn = case.affine @ np.linalg.inv(reference.affine)
    brain = nib.load(mask)
    voxels = np.argwhere(np.asarray(brain.dataobj) > 0)[::POINTS]
    points = np.c_[voxels, np.ones(len(voxels))] @ brain.affine.T @ LPS
    places = [apply_to_points(path, points[:, :3]) @ LPS[:3, :3] for path in transforms]
    wanted = places[1] @ turn[:3, :3].T + turn[:3, 3]
    return float(np.linalg.norm(places[0] - wanted, axis=1).mean())


def verdicts(out: Path) -> dict[str, str]:
    """Read the verdict of each image in template space, by file name."""
    header, *rows = [line.split("\t") for line in (out / TABLE).read_text().splitlines()]
    file, verdict = header.index("file"), header.index("verdict")
    return {Path(row[file]).name: row[verdict] for row in rows}


def t1w_cases(work: Path, hdr: Path) -> Iterator[tuple[str, Answer, Seen]]:
    """Compare each T1w with the reference, the same head stored correctly."""
    _, text = process(work, hdr)
    out = work / "hdr_out"
    told = verdicts(out)

    def image(case: str, ending: str) -> Path:
        return out / f"sub-{case}" / "anat" / f"sub-{case}_{GRID}_{ending}"

    for folder in sorted(hdr.glob("sub-*")):
        case = folder.name.removeprefix("sub-")
        reference = "real" if case.startswith("real") else "ref"
        made = image(case, "desc-preproc_T1w.nii.gz")
        r = far = None
        if made.exists():
            ours = image(reference, "desc-preproc_T1w.nii.gz")
            mask = image(reference, "desc-brain_mask.nii.gz")
            r = likeness(made, ours, mask)
            pair = (folder.name, f"sub-{reference}")
            raw = [next((hdr / name / "anat").glob("*_T1w.nii*")) for name in pair]
            xfm = [next((out / name / "anat").glob("*_from-T1w_to-*_xfm.h5")) for name in pair]
            far = distance(raw, xfm, mask) if case in SAME_ORDER else None
        verdict = "" if r is None else told.get(made.name, "no verdict")
        seen = Seen(r, verdict, sentences_about(text, case), far)
        yield case, T1W.get(case, SAME), seen


def pet_cases(work: Path, pet: Path) -> Iterator[tuple[str, Answer, Seen]]:
    """Compare each PET with the reference; cases of tracers by whether they would be used."""
    tracers = work / "tracers"
    if not tracers.exists():
        shutil.copytree(pet, tracers)
        for folder in pet.glob("sub-01/ses-tracer*"):
            shutil.rmtree(folder)
    _, text = process(work, pet)
    out = work / "pet_out"
    told = verdicts(out)

    def image(case: str, entities: str, ending: str) -> Path:
        folder = out / "sub-01" / f"ses-{case}" / "pet"
        return folder / f"sub-01_ses-{case}_{entities}_{GRID}_{ending}"

    mask = out / f"sub-01/ses-00/anat/sub-01_ses-00_{GRID}_desc-brain_mask.nii.gz"
    for folder in sorted(pet.glob("sub-01/ses-*/pet")):
        case = folder.parent.name.removeprefix("ses-")
        made, covered = (
            image(case, "trc-18FFDG", f"desc-{name}.nii.gz")
            for name in ("preproc_pet", "coverage_mask")
        )
        ours = image("00ref", "trc-18FFDG", "desc-preproc_pet.nii.gz")
        r = likeness(made, ours, mask, covered) if made.exists() else None
        verdict = "" if r is None else told.get(made.name, "no verdict")
        seen = Seen(r, verdict, sentences_about(text, case))
        yield f"PET {case}", PET.get(case, SAME), seen
    yield from tracer_cases(work, tracers)


def tracer_cases(work: Path, bids: Path) -> Iterator[tuple[str, Answer, Seen]]:
    """Check whether a PET is taken for FDG, by the name of its tracer."""
    text = dry_run(work, bids)
    used, _, unused = text.partition("Not used")
    for folder in sorted(bids.glob("sub-01/ses-tracer*/pet")):
        case = folder.parent.name.removeprefix("ses-")
        name = json.loads(next(folder.glob("*.json")).read_text())["TracerName"]
        taken = f"ses-{case}_" in used
        told = tuple(line for line in unused.splitlines() if f"ses-{case}_" in line)
        right = (not taken and bool(told)) if case in NOT_FDG else taken
        right = right or (case in UNCLEAR and bool(told))
        answer = "left aside, told" if case in NOT_FDG else "used"
        answer = "used, or told" if case in UNCLEAR else answer
        seen = Seen(None, "used" if taken else "not used", ())
        yield f"TracerName {name!r}", (answer, lambda _, right=right: right), seen


def dry_run(work: Path, bids: Path) -> str:
    """Return the report of a dry run: which images would be used."""
    _, text = run(
        work / f"{bids.name}_dry.log",
        BIN / "mri2pet",
        bids,
        work / f"{bids.name}_dry",
        "participant",
        "--sloppy",
        "--dry-run",
        "--skip-bids-validation",
    )
    return text


def name_cases(work: Path, bids: Path) -> Iterator[tuple[str, Answer, Seen]]:
    """Check which of several images is chosen, by its name."""
    used, _, unused = dry_run(work, bids).partition("Not used")
    for case, wanted in NAMES.items():
        row = " ".join(line for line in used.splitlines() if f"sub-{case}/" in line)
        told = tuple(line.strip("│ ") for line in unused.splitlines() if f"sub-{case}/" in line)
        told += tuple(
            line.strip("│ ") for line in unused.splitlines() if line.startswith(f"│ {case} ")
        )
        refused = wanted in (NO_T1W, NO_PET)
        parts = (wanted,) if isinstance(wanted, str) else wanted
        found = any(part in row for part in parts)
        right = bool(told) and not found if refused else found
        chosen = " ".join(word for word in row.split() if "sub-" in word) or "nothing"
        answer = "refused with a sentence" if refused else f"uses {' or '.join(parts)}"
        seen = Seen(None, f"uses {chosen}", told)
        yield f"name: {case}", (answer, lambda _, right=right: right), seen


def hostile_image(root: Path, case: str) -> Path:
    """Return the path of the T1w of a case, and create its folder."""
    folder = root / f"sub-{case}" / "anat"
    folder.mkdir(parents=True, exist_ok=True)
    return folder / f"sub-{case}_T1w.nii.gz"


def make_special_files(root: Path) -> None:
    """Create special files under the names of images."""
    os.mkfifo(hostile_image(root, "fifo"))
    hostile_image(root, "directory").mkdir()
    hostile_image(root, "device").symlink_to("/dev/zero")
    path = hostile_image(root, "socket")
    here = Path.cwd()
    with socket.socket(socket.AF_UNIX) as door:
        os.chdir(path.parent)  # the path of a socket has to be short
        door.bind(path.name)
        os.chdir(here)


def make_headers(root: Path, header: bytes) -> None:
    """Create images whose headers have wrong sizes or voxel offsets."""
    dim, vox_offset = 40, 108  # nifti1.h
    for case, place, value in (
        ("huge", dim, np.array([3, 30000, 30000, 30000, 1, 1, 1, 1], "<i2")),
        ("negative", dim, np.array([3, -5, 60, 60, 1, 1, 1, 1], "<i2")),
        ("offsetnan", vox_offset, np.array([np.nan], "<f4")),
        ("offsetfar", vox_offset, np.array([1e30], "<f4")),
        ("offsetbelow", vox_offset, np.array([-5e6], "<f4")),
    ):
        changed = bytearray(header)
        changed[place : place + value.nbytes] = value.tobytes()
        hostile_image(root, case).write_bytes(gzip.compress(bytes(changed) + b"\0" * 4096))
    bomb = bytearray(header)
    bomb[dim : dim + 16] = np.array([3, 2000, 2000, 1500, 1, 1, 1, 1], "<i2").tobytes()
    with gzip.open(hostile_image(root, "bomb"), "wb", compresslevel=9) as file:
        file.write(bomb)
        for _ in range(256):
            file.write(b"\0" * (1 << 22))


def make_sidecars(root: Path, t1w: Path, pet: Path) -> None:
    """Create PETs whose sidecars are too deep, too large, or not a regular file."""
    contents = {
        "deepjson": "[" * 100_000 + "]" * 100_000,
        "widejson": '{"TracerName": "' + "x" * 10**8 + '"}',
        "fifojson": None,
    }
    for case, content in contents.items():
        shutil.copy(t1w, hostile_image(root, case))
        sidecar = root / f"sub-{case}" / "pet" / f"sub-{case}_trc-18FFDG_pet.json"
        sidecar.parent.mkdir()
        shutil.copy(pet, sidecar.with_suffix(".nii.gz"))
        if content is None:
            os.mkfifo(sidecar)
        else:
            sidecar.write_text(content)


def make_files(base: Path, root: Path) -> None:
    """Create a dataset in which all participants but one have a hostile file."""
    source = base / "sub-control01"
    t1w, pet = (next(source.rglob(f"*_{name}.nii.gz")) for name in ("T1w", "pet"))
    root.mkdir(parents=True)
    shutil.copy(base / "dataset_description.json", root)
    (root / "README").write_text("hostile files\n")
    (root / "participants.tsv").write_text(f"participant_id\tgroup\nsub-good\t{'x' * 200_000}\n")
    shutil.copy(t1w, hostile_image(root, "good"))
    make_special_files(root)
    make_headers(root, nib.load(t1w).to_bytes()[:352])
    make_sidecars(root, t1w, pet)


def file_cases(work: Path, bids: Path) -> Iterator[tuple[str, Answer, Seen]]:
    """Check that a hostile file stops only its participant, with a message."""
    started = time.monotonic()
    code, text = process(work, bids)
    print(f"files: exit code {code} after {time.monotonic() - started:.0f} s", file=sys.stderr)
    out = work / f"{bids.name}_out"
    for folder in sorted(bids.glob("sub-*")):
        case = folder.name.removeprefix("sub-")
        made = out / folder.name / "anat" / f"{folder.name}_{GRID}_desc-preproc_T1w.nii.gz"
        sentences = sentences_about(text, case)
        if case == "good":
            right = made.exists() and code == 1
            answer = "processed; exit code 1"
        else:
            right = bool(sentences) and "Traceback" not in text
            answer = "a sentence, and only this participant"
        seen = Seen(1.0 if made.exists() else None, "result" if made.exists() else "", sentences)
        yield f"file: {case}", (answer, lambda _, right=right: right), seen


def cases(arguments: argparse.Namespace) -> Iterator[tuple[str, Answer, Seen]]:
    """Create and run the cases of all requested parts."""
    work = arguments.work
    base = simulate(work)
    heads = [] if arguments.heads is None else [arguments.heads]
    if {"t1w", "pet"} & set(arguments.parts):
        run(
            work / "images.log",
            sys.executable,
            arguments.cases / "make_images.py",
            base,
            work,
            *heads,
        )
    if "t1w" in arguments.parts:
        yield from t1w_cases(work, work / "hdr")
    if "pet" in arguments.parts:
        yield from pet_cases(work, work / "pet")
    if "names" in arguments.parts:
        run(work / "names.log", sys.executable, arguments.cases / "make_names.py", base, work)
        yield from name_cases(work, work / "bids")
    if "files" in arguments.parts:
        if not (work / "files").exists():
            make_files(base, work / "files")
        yield from file_cases(work, work / "files")


def main() -> None:
    """Print the table, in Markdown, and how many cases are as expected."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("work", type=Path)
    parser.add_argument("--cases", type=Path, required=True, help="folder of make_*.py")
    parser.add_argument("--heads", type=Path, help="folder of real heads")
    parser.add_argument("--parts", nargs="+", default=["t1w", "pet", "names", "files"])
    arguments = parser.parse_args()
    arguments.work = arguments.work.absolute()
    arguments.work.mkdir(parents=True, exist_ok=True)
    print("| case | expected | observed | as expected |\n|---|---|---|---|")
    counts = {True: 0, False: 0}
    for case, (answer, judge), seen in cases(arguments):
        right = judge(seen)
        counts[right] += 1
        told = str(seen).replace(str(arguments.work), "WORK").replace("|", "¦")
        told = " ".join(told.replace("│", ";").split())
        print(f"| {case} | {answer} | {told} | {'yes' if right else '**NO**'} |", flush=True)
    print(f"\n{counts[True]} of {sum(counts.values())} cases are as expected.")


if __name__ == "__main__":
    main()
