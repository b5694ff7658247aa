"""What a run was: settings and versions, written for people and never read back."""

import platform
import shlex
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from uuid import uuid4

from bids_app.files import write_json

PACKAGES = (
    "mri2pet", "antspyx", "deepbet", "torch", "numba", "safetensors", "nipype", "pybids", "nibabel",
    "nilearn", "numpy", "scipy", "templateflow", "bids-validator-deno",
)  # fmt: skip
CODE_URL = "https://github.com/mri2pet/mri2pet"


@dataclass(frozen=True)
class Stamp:
    """When a run began, its command line, and the versions of what computes."""

    date: str
    command: str
    versions: Mapping[str, str]


def find_versions() -> dict[str, str]:
    """Give the versions of Python and of the packages that decide about results."""
    versions = {"Python": platform.python_version()}
    for name in PACKAGES:
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            versions[name] = "not installed"
    return versions


def stamp() -> Stamp:
    """Tell of this moment and this process."""
    name = Path(sys.argv[0]).name
    now = datetime.now(UTC).isoformat(timespec="seconds")
    return Stamp(now, shlex.join([name, *sys.argv[1:]]), find_versions())


def _plain(value: object) -> object:
    """Spell the paths in a setting as text."""
    if isinstance(value, tuple):
        return [_plain(one) for one in value]
    return str(value) if isinstance(value, Path) else value


def write_run(logs: Path, settings: Mapping[str, object], run: Stamp) -> Path:
    """Write the settings of a run to ``logs/run-<date>-<random>.json``, for provenance only."""
    plain = {k: _plain(v) for k, v in settings.items()}
    date = run.date.replace(":", "").replace("+0000", "Z")
    path = logs / f"run-{date}-{uuid4().hex[:8]}.json"
    write_json(path, {**asdict(run), "settings": plain})
    return path
