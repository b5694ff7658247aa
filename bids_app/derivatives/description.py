"""Files that describe a derivative dataset: description, versions, and records of runs."""

import platform
import re
import shlex
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from itertools import groupby
from operator import itemgetter
from pathlib import Path
from uuid import uuid4

from bids_app.derivatives.paths import sidecar_path
from bids_app.detection.detectors import DETECTORS
from bids_app.errors import ReadWriteError, UnusableDataError, UsageError
from bids_app.files import (
    locked,
    object_at,
    place_in,
    read_json,
    read_text,
    split_lines,
    write_json,
    write_text,
    write_tsv,
)

NAME = "mri2pet"
DESCRIPTION = "dataset_description.json"
BIDS_VERSION = "1.10.0"
TEXTS = Path(__file__).parents[1] / "data" / "dataset"
# No trailing slash for folders: the validator does not match it. A slash inside anchors a pattern.
IGNORED = tuple((TEXTS / "bidsignore").read_text(encoding="utf-8").split())
DESCRIPTIONS = {
    "preproc": "Acquired image after correction, registration and, with res-, scaling to 0..1",
    "brain": "Mask of the brain",
    "coverage": "Mask of what the PET covers: the scanner's field of view",
    "synthscaled": "SYNTHETIC PET in the unit of the participant's real PET; not a measurement",
    "difference": "Real PET minus the scaled SYNTHETIC PET, in percent of the latter's mean",
    "synth": "SYNTHETIC PET, predicted from the T1w; not a measurement",
    "controlsmean": "Mean of the PET of controls that detectors are trained on",
    "controlssd": "Standard deviation of the PET of controls that detectors are trained on",
    **{name: detector.clusters for name, detector in DETECTORS.items()},
}


def find_container(environment: Mapping[str, str]) -> tuple[tuple[str, str], ...]:
    """Detect the container of a run from its environment.

    ``MRI2PET_CONTAINER`` (a tag) is set in our image; Apptainer and Singularity set the name of
    their image file.

    Examples
    --------
    >>> find_container({"MRI2PET_CONTAINER": "mri2pet:1.0"})
    (('Type', 'docker'), ('Tag', 'mri2pet:1.0'))
    """
    for kind in ("apptainer", "singularity"):
        image = environment.get(f"{kind.upper()}_CONTAINER")
        if image:
            return ("Type", kind), ("URI", image)
    tag = environment.get("MRI2PET_CONTAINER")
    return (("Type", "docker"), ("Tag", tag)) if tag else ()


def refuse_foreign(output_dir: Path) -> None:
    """Check that an output folder is not the dataset of another app.

    Raises
    ------
    UsageError
        If it is, or its description cannot be read.
    """
    path = output_dir / DESCRIPTION
    if not path.exists():
        return
    advice = "choose another output folder"
    try:
        content = read_json(path)
    except (ReadWriteError, UnusableDataError) as error:
        raise UsageError(f"{path}: cannot be understood; remove it, or {advice}") from error
    makers = content.get("GeneratedBy")
    names = (
        [m.get("Name") for m in makers if isinstance(m, dict)] if isinstance(makers, list) else []
    )
    if NAME not in names:
        raise UsageError(f"{path}: describes a dataset that was not made by {NAME}; {advice}")


def _link(dataset: Path, output_dir: Path) -> str:
    """Return the URL of another dataset, relative if this one is inside it and moves with it."""
    root, out = dataset.resolve(), output_dir.resolve()
    if out.is_relative_to(root) and out != root:
        return "/".join([".."] * len(out.relative_to(root).parts))
    return root.as_uri()


def _links(output_dir: Path) -> dict[str, object]:
    """Read the links to other datasets; empty if there is no description yet."""
    path = output_dir / DESCRIPTION
    return object_at(read_json(path), "DatasetLinks") if path.is_file() else {}


def _read_raw(bids_dir: Path) -> dict[str, object]:
    try:
        return read_json(bids_dir / DESCRIPTION)
    except (ReadWriteError, UnusableDataError):
        return {}


def _description(
    bids_dir: Path,
    output_dir: Path,
    generated_by: Mapping[str, object],
    links: Mapping[str, object],
) -> dict[str, object]:
    raw = _read_raw(bids_dir)
    link = _link(bids_dir, output_dir)
    source = {"URL": link, "DOI": raw.get("DatasetDOI"), "Version": raw.get("DatasetVersion")}
    return {
        "Name": f"{NAME}: {raw.get('Name', bids_dir.name)}",
        "BIDSVersion": BIDS_VERSION,
        "DatasetType": "derivative",
        "GeneratedBy": [dict(generated_by)],
        "SourceDatasets": [{k: v for k, v in source.items() if isinstance(v, str)}],
        "DatasetLinks": {**links, "raw": link},
    }


def _write_ignored(path: Path, patterns: Sequence[str]) -> None:
    try:
        text = read_text(path).rstrip("\n") if path.exists() else ""
    except UnusableDataError as error:
        raise ReadWriteError(f"{error}, or remove it") from error
    lines = split_lines(text) if text else []
    missing = [pattern for pattern in patterns if pattern not in lines]
    write_text(path, "\n".join([*lines, *missing]) + "\n")


def ignore_also(output_dir: Path, folder: Path) -> None:
    """Make the validator ignore a folder, if it is inside the dataset."""
    inside = place_in(output_dir, folder)
    if inside:
        with locked(output_dir):
            _write_ignored(output_dir / ".bidsignore", inside[:1])


def start_dataset(
    output_dir: Path,
    *,
    bids_dir: Path,
    version: str,
    container: Iterable[tuple[str, str]] = (),
    template: str,
    reference: str,
    others: Iterable[tuple[str, Path]] = (),
) -> None:
    """Write the files that describe the dataset, before any result.

    Parameters
    ----------
    output_dir, bids_dir : Path
        Roots of the derivative and of the raw dataset. Lines that a user added to ``.bidsignore``
        are kept.
    version : str
        Version of the app.
    container : iterable of (str, str)
        BIDS fields of the container, from :func:`find_container`.
    template, reference : str
        Name of the template, and URI of its image.
    others : iterable of (str, Path)
        Names and roots of other datasets that sidecars list as sources.

    Raises
    ------
    UsageError
        If the folder is the dataset of another app.
    ReadWriteError
        If a file cannot be written.
    """
    generated_by: dict[str, object] = {
        "Name": NAME,
        "Version": version,
        "CodeURL": CODE_URL,
        "Description": f"T1w and FDG PET in {template}, and synthetic FDG PET from T1w",
    }
    fields = dict(container)
    if fields:
        generated_by["Container"] = fields
    description = output_dir / DESCRIPTION
    with locked(output_dir):
        refuse_foreign(output_dir)
        named = {name: _link(root, output_dir) for name, root in others}
        links = {**_links(output_dir), **named, "template": reference}
        write_json(description, _description(bids_dir, output_dir, generated_by, links))
        _write_ignored(output_dir / ".bidsignore", IGNORED)
        about = read_text(TEXTS / "README.md")
        readme = about.format(version=version, template=template)
        write_text(output_dir / "README.md", readme)
        _write_descriptions(output_dir)


def _write_descriptions(output_dir: Path) -> None:
    rows = [{"desc_id": f"desc-{k}", "description": v} for k, v in DESCRIPTIONS.items()]
    write_tsv(output_dir / "descriptions.tsv", ["desc_id", "description"], rows)


def refresh_dataset(output_dir: Path) -> None:
    """Update the descriptions of a dataset from an earlier version for what this one writes."""
    with locked(output_dir):
        _write_ignored(output_dir / ".bidsignore", IGNORED)
        _write_descriptions(output_dir)


def uri_in(output_dir: Path, name: str, folder: Path, path: Path) -> str:
    """Return the BIDS URI of a file in another dataset, which is added to ``DatasetLinks``.

    Parameters
    ----------
    output_dir, folder : Path
        Roots of the derivative dataset and of the other one, which may be the same.
    name : str
        Name of the other dataset in ``DatasetLinks``.
    path : Path
        Path of the file, in ``folder``.

    Raises
    ------
    ReadWriteError, UnusableDataError
        If the description of the derivative dataset cannot be read or written.
    """
    inside = path.relative_to(folder).as_posix()
    if folder.resolve() == output_dir.resolve():
        return f"bids::{inside}"
    with locked(output_dir):
        content = read_json(output_dir / DESCRIPTION)
        links = {**_links(output_dir), name: _link(folder, output_dir)}
        if links != content.get("DatasetLinks"):
            write_json(output_dir / DESCRIPTION, {**content, "DatasetLinks": links})
    return f"bids:{name}:{inside}"


def dataset_names(output_dir: Path) -> tuple[str, ...]:
    """Return the names of the raw dataset, from the derivative one: DOI, if any, and title."""
    content = read_json(output_dir / DESCRIPTION)
    sources = content.get("SourceDatasets")
    first = sources[0] if isinstance(sources, list) and sources else {}
    doi = first.get("DOI") if isinstance(first, dict) else None
    title = str(content.get("Name", output_dir.name)).removeprefix(f"{NAME}: ")
    return (str(doi), title) if doi else (title,)


def raw_dataset_names(bids_dir: Path) -> tuple[str, ...]:
    """Return the names of a raw dataset that :func:`dataset_names` returns once a run has begun."""
    raw = _read_raw(bids_dir)
    doi, title = raw.get("DatasetDOI"), str(raw.get("Name", bids_dir.name))
    return (doi, title) if isinstance(doi, str) and doi else (title,)


def dataset_name(output_dir: Path) -> str:
    """Return the name of the raw dataset, from the derivative one: DOI, or otherwise title."""
    return dataset_names(output_dir)[0]


KEY = "Version"  # in a sidecar
ANEW = "to make them anew, delete their folders and run the participant level"
_RELEASE = re.compile(r"(\d+)\.(\d+)")


def version_of(image: Path) -> str:
    """Read the version of the app that made an image; empty if its sidecar does not have it."""
    sidecar = sidecar_path(image)
    value = read_json(sidecar).get(KEY) if sidecar.is_file() else None
    return value if isinstance(value, str) else ""


def compare_versions(items: Iterable[tuple[str, str]], version: str, *, advice: str) -> list[str]:
    """Check which results were made by other versions of the app.

    The major version increases when results before and after cannot be compared (CONTRIBUTING.md,
    "Changes"), so results of another major version are refused. Results of another minor version,
    or of an unknown version, are reported.

    Parameters
    ----------
    items : iterable of (str, str)
        Name of each result, such as ``"sub-01"``, and the version that made it; empty if unknown.
    version : str
        Version of the running app.
    advice : str
        Advice to the user.

    Returns
    -------
    list of str
        At most one sentence.

    Raises
    ------
    UnusableDataError
        If a major version differs.

    Examples
    --------
    >>> compare_versions([("sub-01", "0.1.3"), ("sub-02", "0.2.0")], "0.1.0", advice="do it again")
    ['made by mri2pet 0.2.0: sub-02; this is 0.1.0, which may give different results; do it again']
    """
    release = _release_of(version)
    if release is None:  # running from source, not installed
        return []
    others = sorted({(made_by, name) for name, made_by in items if _release_of(made_by) != release})
    foreign = [other for other in others if _is_foreign(other[0], release)]
    if foreign:
        raise UnusableDataError(
            f"{_list(foreign)}; this is {version}, whose results cannot be compared with them; "
            f"{advice}"
        )
    if not others:
        return []
    return [f"{_list(others)}; this is {version}, which may give different results; {advice}"]


def _release_of(version: str) -> tuple[int, int] | None:
    match = _RELEASE.match(version)
    return None if match is None else (int(match[1]), int(match[2]))


def _is_foreign(version: str, current: tuple[int, int]) -> bool:
    release = _release_of(version)
    return release is not None and release[0] != current[0]


def _list(items: Iterable[tuple[str, str]]) -> str:
    return ", ".join(
        f"made by {f'mri2pet {version}' if version else 'an unknown version'}: "
        + ", ".join(name for _, name in group)
        for version, group in groupby(items, itemgetter(0))
    )


PACKAGES = (
    "mri2pet",
    "deepbet",
    "dipy",
    "torch",
    "numba",
    "safetensors",
    "nipype",
    "pybids",
    "nibabel",
    "nilearn",
    "numpy",
    "scipy",
    "simpleitk",
    "templateflow",
    "bids-validator-deno",
)
CODE_URL = "https://github.com/mri2pet/mri2pet"


@dataclass(frozen=True)
class RunRecord:
    """Start time and command line of a run, and the versions of Python and packages."""

    date: str
    command: str
    versions: Mapping[str, str]


def find_versions() -> dict[str, str]:
    """Return the versions of Python and of the packages that affect results."""
    versions = {"Python": platform.python_version()}
    for name in PACKAGES:
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            versions[name] = "not installed"
    return versions


def start_record() -> RunRecord:
    """Create the record of the current process, starting now."""
    name = Path(sys.argv[0]).name
    now = datetime.now(UTC).isoformat(timespec="seconds")
    return RunRecord(now, shlex.join([name, *sys.argv[1:]]), find_versions())


def plain_settings(settings: Mapping[str, object]) -> dict[str, object]:
    """Convert settings to JSON values: paths to strings, tuples to lists.

    Examples
    --------
    >>> plain_settings({"nu": 0.03, "atlas": (Path("labels.nii"), Path("names.tsv"))})
    {'nu': 0.03, 'atlas': ['labels.nii', 'names.tsv']}
    """
    return {name: _plain(value) for name, value in settings.items()}


def _plain(value: object) -> object:
    if isinstance(value, tuple):
        return [_plain(part) for part in value]
    return str(value) if isinstance(value, Path) else value


def write_run_record(logs: Path, settings: Mapping[str, object], run: RunRecord) -> Path:
    """Write the settings of a run to ``logs/run-<date>-<random>.json``, for provenance only."""
    date = run.date.replace(":", "").replace("+0000", "Z")
    path = logs / f"run-{date}-{uuid4().hex[:8]}.json"
    write_json(path, {**asdict(run), "settings": plain_settings(settings)})
    return path
