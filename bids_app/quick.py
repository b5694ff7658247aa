"""``mri2pet quick``: process one person's images without a BIDS dataset.

A small BIDS dataset is created in ``OUT/sourcedata``, and the participant level runs on it.
"""

import gzip
import re
import sys
import unicodedata
import zlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import replace
from itertools import zip_longest
from pathlib import Path

from bids_app.arguments import Parser, read_names_as_utf8, refuse_lost_folder, run_program
from bids_app.cli import parse, run_level
from bids_app.derivatives.description import DESCRIPTION as NAME_OF_DESCRIPTION
from bids_app.derivatives.description import refuse_foreign
from bids_app.errors import (
    CannotCreateError,
    MissingInputError,
    ReadWriteError,
    UnusableDataError,
    UsageError,
)
from bids_app.files import (
    GZIP,
    PARTIAL,
    copy_file,
    place_in,
    read_json,
    refuse_unwritable,
    remove_partials,
    replacing,
    write_json,
    write_text,
)

RAW = "sourcedata"  # folder of OUT
OWN = (RAW, "logs")  # what a run writes to OUT before it has described the dataset there
ENDINGS = (".nii.gz", ".nii")
NIFTI = (348, 540)  # first bytes of NIfTI files, as a number; bids_app.header is slow to import
PIECE = 1 << 20  # bytes compared at once
FEWEST_PATHS, MOST_PATHS = 2, 3  # paths: T1W OUT, or T1W PET OUT
DESCRIPTION = {"Name": "Images given to mri2pet quick", "BIDSVersion": "1.10.0"}
README = "Images given to `mri2pet quick`, renamed according to BIDS.\n"
FDG = {"TracerName": "FDG", "TracerRadionuclide": "F18"}  # sidecar for a PET without one


def build_parser() -> Parser:
    """Build the parser of the paths; all options are those of the participant level."""
    parser = Parser(
        prog="mri2pet quick",
        usage="mri2pet quick T1W [PET] OUT [options of the participant level]",
        description="Bring one person's T1w, and FDG PET if there is one, into MNI space and "
        "predict an FDG PET from the T1w. No BIDS dataset is needed. Give the files first, then "
        "options, such as --sloppy, --nprocs or --generator (mri2pet --help-all).",
        epilog="The synthetic PET is written on the T1w's own grid and in MNI space; the report is "
        "OUT/sub-X.html.",
    )
    parser.add_argument(
        "paths",
        nargs="+",
        metavar="T1W [PET] OUT",
        help="images (.nii or .nii.gz), and the output folder",
    )
    return parser


def label_of(t1w: Path) -> str:
    """Derive a participant label from the file name of the T1w; letters lose their accents.

    Examples
    --------
    >>> label_of(Path("sub-7_T1w.nii.gz")), label_of(Path("MRI of Zoë_T1w.nii"))
    ('7', 'MRIofZoe')
    """
    found = re.match(r"sub-([0-9A-Za-z]+)", t1w.name)
    if found:
        return found[1]
    stem = unicodedata.normalize("NFKD", _stem(t1w).removesuffix("_T1w"))
    label = re.sub(r"[^0-9A-Za-z]", "", stem)
    return label if label else "01"


def _stem(path: Path) -> str:
    ending = next(end for end in ENDINGS if path.name.lower().endswith(end))
    return path.name[: -len(ending)]


def _refuse(path: Path) -> None:
    """Refuse anything but a NIfTI file, before anything is written."""
    if not path.exists():
        raise MissingInputError(f"{path}: no such file; check its path")
    if path.is_dir():
        raise UnusableDataError(f"{path}: is a folder; give the image in it")
    if not path.name.lower().endswith(ENDINGS):
        raise UnusableDataError(
            f"{path}: neither .nii nor .nii.gz; convert it to one of them (DICOM images, for "
            "example, by dcm2niix)"
        )


def _is_of_others(raw: Path) -> bool:
    """Check whether a folder holds anything that mri2pet quick did not create or begin."""
    if not raw.is_dir():
        return raw.exists()
    try:
        if all(PARTIAL.match(path.name) for path in raw.iterdir()):
            return False
        return bool(read_json(raw / NAME_OF_DESCRIPTION).get("Name") != DESCRIPTION["Name"])
    except (OSError, ReadWriteError, UnusableDataError):
        return True


def _refuse_place(out: Path, images: Sequence[Path]) -> None:
    """Refuse an output folder with other content, or that contains the input images."""
    if out.exists() and not out.is_dir():
        raise CannotCreateError(f"{out}: is a file; choose another output folder")
    refuse_foreign(out)
    raw = out / RAW
    others = [path for path in out.glob("*") if path.name not in OWN and path.name[0] != "."]
    if others and not (out / NAME_OF_DESCRIPTION).exists():
        raise UsageError(
            f"{out}: is the output folder, as the last of the paths, but contains other files "
            f"({min(others).name}, for example); choose a new or empty folder"
        )
    if _is_of_others(raw):
        raise UsageError(
            f"{raw}: was not made by mri2pet quick, which would write there; choose another output "
            "folder"
        )
    if len({path.resolve() for path in images}) < len(images):
        raise UsageError(f"{images[0]}: is given as T1w and as PET; give each image once")
    for path in images:
        if place_in(raw, path) is not None:
            raise UsageError(
                f"{path}: lies in {raw}, where mri2pet quick writes; run mri2pet {raw} {out} "
                "participant instead"
            )


def _is_zipped(path: Path) -> bool:
    """Check whether an image is compressed, whatever its name; a damaged one by its name."""
    try:
        with path.open("rb") as file:
            start = file.read(4)
    except OSError as error:
        raise ReadWriteError(f"{path}: cannot be read ({error.strerror})") from error
    is_plain = any(int.from_bytes(start, order) in NIFTI for order in ("little", "big"))
    return start.startswith(GZIP) or (path.name.lower().endswith(".gz") and not is_plain)


def _pieces(path: Path, *, unpacked: bool) -> Iterator[bytes]:
    """Read an image piece by piece; errors name this file."""
    zipped = unpacked and _is_zipped(path)
    try:
        with gzip.open(path) if zipped else path.open("rb") as file:
            while piece := file.read(PIECE):
                yield piece
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise UnusableDataError(f"{path}: cannot be read ({error}); copy it again") from error
    except OSError as error:
        raise ReadWriteError(f"{path}: cannot be read ({error.strerror})") from error


def _holds(target: Path, source: Path) -> bool:
    """Check whether two images have the same content, compressed or not."""
    both = (_pieces(path, unpacked=True) for path in (target, source))
    return all(one == other for one, other in zip_longest(*both))


def _is_whole(path: Path) -> bool:
    """Check whether an image exists and can be read completely."""
    try:
        return sum(map(len, _pieces(path, unpacked=True))) > 0
    except (ReadWriteError, UnusableDataError):
        return False


def _copy(source: Path, target: Path) -> None:
    """Copy an image atomically, and compress it if it is not."""
    with (
        replacing(target) as partial,
        partial.open("wb") as file,
        # without name and time, so that equal images have equal bytes
        nullcontext(file) if _is_zipped(source) else gzip.GzipFile("", "wb", 1, file, 0) as packed,
    ):
        packed.writelines(_pieces(source, unpacked=False))


def _put(source: Path, target: Path, metadata: Mapping[str, object]) -> None:
    """Copy an image, and the sidecar beside it, under a BIDS name.

    The sidecar is copied first, so that a complete image always has one. An unfinished copy is
    replaced.
    """
    is_present = _is_whole(target)
    if is_present and not _holds(target, source):
        raise UsageError(
            f"{source}: its label is that of another image in the output folder ({target}); give "
            "another with --participant-label, choose another output folder, or, if this image "
            f"replaces that one, delete {target.parent.parent}"
        )
    sidecar, copied_sidecar = (path.with_name(f"{_stem(path)}.json") for path in (source, target))
    if sidecar.is_file():
        copy_file(sidecar, copied_sidecar)
    elif not is_present:
        copied_sidecar.unlink(missing_ok=True)
        if metadata:
            write_json(copied_sidecar, metadata)
    if not is_present:
        _copy(source, target)


def make_dataset(t1w: Path, pet: Path | None, root: Path, label: str) -> None:
    """Copy images into a BIDS dataset; other participants in it are kept.

    Parameters
    ----------
    t1w, pet : Path, Path or None
        Images to copy; sidecars beside them (``.json``) are copied, too.
    root : Path
        Folder of the dataset.
    label : str
        Label of the participant.

    Raises
    ------
    ReadWriteError
        If a file cannot be read or written.
    UnusableDataError
        If an image is damaged.
    UsageError
        If another image already has the same label.
    """
    folder = root / f"sub-{label}"
    write_json(root / NAME_OF_DESCRIPTION, DESCRIPTION)  # first, so that the next run can resume
    write_text(root / "README.md", README)
    remove_partials(root, below=True)
    try:
        _put(t1w, folder / "anat" / f"sub-{label}_T1w.nii.gz", {})
        copy = folder / "pet" / f"sub-{label}_trc-18FFDG_pet.nii.gz"
        if pet is not None:
            _put(pet, copy, FDG)
        else:  # remove the copy of an earlier call
            copy.unlink(missing_ok=True)
            copy.with_name(f"{_stem(copy)}.json").unlink(missing_ok=True)
    except OSError as error:  # from writing: no space, no permission
        raise ReadWriteError(f"{root}: cannot be written to ({error.strerror})") from error


def _refuse_headers(t1w: Path, pets: Sequence[Path], orientation: str) -> None:
    """Refuse images whose headers forbid their use, by their own names, before they are copied."""
    from bids_app import nifti  # slow to import

    for path in (t1w, *pets):
        shape = nifti.inspect(path, orientation=orientation).shape
        if path == t1w and len(shape) > 3:
            raise UnusableDataError(
                f"{path}: has {shape[3]} volumes, but a T1w has one; give the T1w first, then the "
                "PET"
            )


def _run(argv: Sequence[str]) -> int:
    first = next((place for place, word in enumerate(argv) if word.startswith("-")), len(argv))
    parser = build_parser()
    if {"-h", "--help"} & set(argv[first:]):
        parser.parse_args(["--help"])
    paths = [Path(word).absolute() for word in argv[:first]]
    if not FEWEST_PATHS <= len(paths) <= MOST_PATHS:
        given = f"{len(paths)} path{'s' * (len(paths) != 1)}"
        parser.error(
            f"{given} given; use T1W OUT or T1W PET OUT, and options after them (a name that "
            "begins with - is written ./-NAME)"
        )
    refuse_lost_folder()
    t1w, *pets, out = paths
    for path in (t1w, *pets):
        _refuse(path)
    words = ("participant", "--skip-bids-validation", *argv[first:])
    settings = parse([str(out / RAW), str(out), *words])
    if settings.participant_label[1:]:
        raise UsageError("--participant-label: mri2pet quick takes one person; give one label")
    label = next(iter(settings.participant_label), label_of(t1w))
    _refuse_place(out, (t1w, *pets))
    _refuse_headers(t1w, pets, settings.assume_orientation)
    refuse_unwritable(out)
    if settings.dry_run:
        images = " and ".join(map(str, (t1w, *pets)))
        sys.stdout.write(
            f"sub-{label}: would be made from {images} in {out}; nothing was written\n"
        )
        return 0
    make_dataset(t1w, pets[0] if pets else None, out / RAW, label)
    code = run_level(replace(settings, participant_label=(label,)))
    for path in sorted(out.glob(f"sub-{label}/pet/*_desc-synth_pet.nii.gz")) if not code else ():
        sys.stdout.write(f"synthetic PET: {path}\n")
    return code


def main(argv: Sequence[str] | None = None) -> int:
    """Process one person and return the exit code of BEP027; ``argv`` excludes ``quick``."""
    if argv is None:
        read_names_as_utf8()
    words = sys.argv[2:] if argv is None else argv
    return run_program(
        lambda: _run(words), interrupted="stopped; run the same command again to resume"
    )
