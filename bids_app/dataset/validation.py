"""Validation of the input, detection of files that only resemble images, and output checks."""

import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections import defaultdict
from collections.abc import Iterator
from functools import partial
from itertools import islice
from pathlib import Path

from bids_app.dataset.index import DATATYPE, IMAGE
from bids_app.errors import CannotCreateError, InvalidBidsError, UsageError, name_some
from bids_app.files import NOWHERE, place_in, why_no_file
from bids_app.lifeline import call_on_signal, tied

SUFFIX = {datatype: suffix for suffix, datatype in DATATYPE.items()}
# Names that suggest an image: T1w, T1 or pet as a word, or a sequence such as MPRAGE
MEANT = {
    "anat": re.compile(r"(?<![a-z0-9])t1w?(?![a-z])|mprage|spgr|bravo|_unit1\."),
    "pet": re.compile(r"(?<![a-z0-9])pet(?![a-z])"),
}
TO_NIFTI = "convert it to NIfTI"
UNPACK = "unpack it, or store it as .nii or .nii.gz"
FORMATS = {  # ending in lower case → format, and what to do
    ending: sentence
    for endings, sentence in (
        (".img .hdr", f"Analyze, or NIfTI in two files; {TO_NIFTI} in one (.nii.gz)"),
        (".mgz .mgh", f"FreeSurfer's format; {TO_NIFTI} (mri_convert)"),
        (".dcm .ima", f"DICOM; {TO_NIFTI} (dcm2niix)"),
        (".par", f"Philips's PAR/REC; {TO_NIFTI} (dcm2niix)"),
        (".mnc", f"MINC; {TO_NIFTI} (mnc2nii)"),
        (".nrrd", f"NRRD; {TO_NIFTI}"),
        (".mha .mhd", f"MetaImage; {TO_NIFTI}"),
        (".v", f"ECAT; {TO_NIFTI} (ecatpet2bids)"),
        (".zip .tar .tar.gz .tgz", f"an archive; {UNPACK}"),
        (".nii.bz2 .nii.xz .nii.zst", f"compressed by a program other than gzip; {UNPACK}"),
    )
    for ending in endings.split()
}
DICOM_FOLDER = re.compile(r"dicom|dcm", re.I)
LOOKED_AT = 50  # entries of a folder to check for DICOM


def _is_dicom(folder: Path) -> bool:
    """Check whether the name of a folder, or of one of its first files, indicates DICOM."""
    if DICOM_FOLDER.search(folder.name):
        return True
    try:
        names = [path.name.lower() for path in islice(folder.iterdir(), LOOKED_AT)]
    except OSError:
        return False
    return any(name.endswith((".dcm", ".ima")) or name == "dicomdir" for name in names)


def _why_named(name: str, datatype: str) -> str | None:
    """Explain what is wrong with a file name, or return None if it is not meant as an image."""
    lower = name.lower()
    meant = bool(MEANT[datatype].search(lower))
    ending = next(
        (end for end in sorted(FORMATS, key=len, reverse=True) if lower.endswith(end)), ""
    )
    if ending:
        return f"it is {FORMATS[ending]}" if meant or not name.startswith("sub-") else None
    if not meant or not lower.endswith((".nii", ".nii.gz")):
        return None
    if "_unit1." in lower:
        return "it is a UNIT1 of MP2RAGE; to use it, copy it to a name that ends in _T1w.nii.gz"
    form = f"sub-<label>[_ses-<label>][_…]_{SUFFIX[datatype]}.nii.gz"
    if not name.endswith((".nii", ".nii.gz")):
        return "its extension is not .nii or .nii.gz in lower case; rename it"
    return f"its name is not {form}; rename it, or remove it"


def _why(path: Path, datatype: str) -> str | None:
    match = IMAGE.fullmatch(path.name)
    instead = why_no_file(path)
    if match is not None:
        # A broken link is an image whose content is to be fetched; it is reported later.
        is_image = instead in (None, NOWHERE) or match[1] != SUFFIX[datatype]
        return None if is_image else f"it is {instead}"
    if path.is_dir():
        return f"it is a folder of DICOM; {TO_NIFTI} (dcm2niix)" if _is_dicom(path) else None
    named = _why_named(path.name, datatype)
    if named is None or instead is None:
        return named
    return f"it is {instead}"


def _names(folder: Path) -> list[str]:
    try:
        return sorted(p.name for p in folder.iterdir() if not p.name.startswith("."))
    except OSError:
        return []


def find_strays(bids_dir: Path, subject: str) -> Iterator[tuple[Path, str | None, str, str]]:
    """Find files meant as images of a participant that are not, without opening any.

    Of several files in a folder with the same fault, only the first is reported.

    Yields
    ------
    tuple of (Path, str or None, {"t1w", "pet"}, str)
        Path, session by its folder, intended kind of image, and a sentence without the name of the
        file: why it is not an image, and what to do.
    """
    top = bids_dir / f"sub-{subject}"
    if why_no_file(top) == NOWHERE:
        yield top, None, "t1w", f"it is {NOWHERE}"
    sessions = [name for name in _names(top) if name.startswith("ses-")]
    for session in (None, *sessions):
        for datatype, suffix in SUFFIX.items():
            folder = (top if session is None else top / session) / datatype
            label = None if session is None else session.removeprefix("ses-")
            reasons = set[str]()
            if folder.is_symlink() and not folder.is_dir():
                yield folder, label, suffix.lower(), f"it is {why_no_file(folder)}"
            for name in _names(folder):
                why = _why(folder / name, datatype)
                if why is not None and why not in reasons:
                    reasons.add(why)
                    yield folder / name, label, suffix.lower(), why


COMMAND = "bids-validator-deno"
ADVICE = "correct the dataset, or pass --skip-bids-validation"


def find_validator() -> str | None:
    """Find the validator next to the running Python, or on ``PATH``."""
    beside = Path(sys.executable).parent / COMMAND
    return str(beside) if beside.is_file() else shutil.which(COMMAND)


def _run(command: str, bids_dir: Path) -> subprocess.CompletedProcess[str]:
    # NIfTI headers are checked later: a damaged image affects only its own participant.
    arguments = ["--format", "json", "--ignoreWarnings", "--ignoreNiftiHeaders"]
    with (
        tempfile.TemporaryDirectory() as cache,  # HOME may be absent or read-only
        call_on_signal(partial(shutil.rmtree, cache, ignore_errors=True)),
    ):
        environment = {**os.environ, "DENO_DIR": cache, "DENO_NO_UPDATE_CHECK": "1"}
        environment.pop("BIDS_SCHEMA", None)  # use the bundled schema, not one from the network
        return subprocess.run(
            tied([command, *arguments, str(bids_dir.absolute())]),
            env=environment,
            capture_output=True,
            text=True,
            check=False,
        )


def _group(issues: list[dict[str, object]]) -> dict[str, list[str]]:
    groups: defaultdict[str, list[str]] = defaultdict(list)
    for issue in issues:
        if issue.get("severity") != "error":
            continue
        code = " ".join(str(issue[key]) for key in ("code", "subCode") if issue.get(key))
        groups[code].append(str(issue.get("location", "")))
    return dict(groups)


def _describe(code: str, places: list[str]) -> str:
    named = next((place for place in places if place), "")
    more = f" and {len(places) - 1} more" if len(places) > 1 else ""
    return f"{code} ({named}{more})" if named else code


def validate_bids(bids_dir: Path) -> str | None:
    """Run the BIDS validator on a dataset, without network access.

    Returns
    -------
    str or None
        Warning, if the validator is not installed or did not work.

    Raises
    ------
    InvalidBidsError
        If it finds errors; its warnings are ignored.
    """
    command = find_validator()
    if command is None:
        return f"{COMMAND} is not installed: the dataset was not validated"
    try:
        outcome = _run(command, bids_dir)
        issues = json.loads(outcome.stdout)["issues"]["issues"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        return f"{COMMAND} failed ({error!r}): the dataset was not validated"
    groups = _group(issues)
    if groups:
        kinds = name_some([_describe(code, places) for code, places in groups.items()])
        raise InvalidBidsError(f"{bids_dir}: not valid BIDS: {kinds}; {ADVICE}")
    return None


def refuse_inside(bids_dir: Path, output_dir: Path) -> None:
    """Refuse an output folder inside the raw dataset, except below its ``derivatives/``.

    Raises
    ------
    UsageError
        If the folder is the input, or inside it but not below ``derivatives/``.
    """
    inside = place_in(bids_dir, output_dir)
    if inside == ():
        raise UsageError(
            f"{output_dir}: is the BIDS dataset itself; choose a separate output folder"
        )
    if inside is not None and (inside[0] != "derivatives" or len(inside) == 1):
        raise UsageError(
            f"{output_dir}: is inside the input dataset; use {bids_dir / 'derivatives/mri2pet'}"
        )


def make_writable(output_dir: Path) -> None:
    """Create a folder, and check that it is writable.

    Raises
    ------
    CannotCreateError
        If the folder, or a file in it, cannot be created.
    """
    try:
        output_dir.mkdir(parents=True, exist_ok=True)
        # Permission bits are not sufficient: root bypasses them, and a disk may be read-only.
        with tempfile.NamedTemporaryFile(dir=output_dir, prefix=".mri2pet-"):
            pass
    except OSError as error:
        raise CannotCreateError(
            f"{output_dir}: cannot be written to ({error.strerror}); choose another folder"
        ) from error
