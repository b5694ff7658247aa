"""Building and running of real images; tests are skipped, with the reason, without the tools.

``MRI2PET_TOOLS`` is the folder of scripts that build and run containers and a one-node cluster; by
default it is next to the project. An image built from the same files is reused.
"""

import hashlib
import os
import shutil
import subprocess
from pathlib import Path

import pytest

PROJECT = Path(__file__).parents[2]
TOOLS = Path(os.environ.get("MRI2PET_TOOLS", PROJECT.parent / "shared" / "tools"))
CONTAINERS_DIR = Path(os.environ.get("CONTAINERS_DIR", "/tmp/mri2pet-containers"))
BASE = "docker.io/library/python:3.11-slim-bookworm"
SOURCES = (
    "Dockerfile",
    "singularity.def",
    "containers/dependencies.sh",
    "containers/install.sh",
    "constraints.txt",
    "pyproject.toml",
    "README.md",
    "LICENSE",
    "bids_app",
    "mri2pet",
)
AS_A_CLUSTER = (
    "--rm",
    "--pull=never",
    "--network=none",
    "-u",
    "1234:1234",
    "--passwd=false",
    "-e",
    "HOME=/",
    "--read-only",
    "--read-only-tmpfs=false",
    "--tmpfs",
    "/tmp:rw,mode=1777,size=256m",
    "--cap-drop=all",
    "--security-opt",
    "no-new-privileges",
)


def call(*words, check=True, **options):
    """Run a command; return the completed process with its output."""
    run = subprocess.run(
        [str(word) for word in words], capture_output=True, text=True, check=False, **options
    )
    assert not check or run.returncode == 0, f"{words}\n{run.stdout[-3000:]}\n{run.stderr[-3000:]}"
    return run


def need(*commands):
    """Skip the test if a command or the scripts are missing, or without root."""
    missing = [name for name in commands if shutil.which(name) is None]
    if missing:
        pytest.skip(f"{', '.join(missing)} not installed")
    if os.geteuid() != 0:
        pytest.skip("the scripts that build containers need root")
    if not (TOOLS / "containers" / "build.sh").is_file():
        pytest.skip("no scripts that build and run containers; name their folder in MRI2PET_TOOLS")


def podman(*words, **options):
    script = f'. "{TOOLS}/containers/env.sh"; exec podman "$@"'
    return call("bash", "-c", script, "podman", *words, **options)


def build(sources, name):
    """Build the Dockerfile's image, reusing existing layers."""
    call(
        "bash",
        TOOLS / "containers" / "build.sh",
        sources,
        name,
        "--layers=true",
        "--build-arg",
        "TORCH_INDEX=none",
        "--build-arg",
        "LPIPS=try",
        "--build-arg",
        "VERSION=9.8.7",
        "--build-arg",
        "REVISION=abcdef",
    )


def run_image(image, *words, options=AS_A_CLUSTER, check=True):
    """Run an image, by default with the restrictions of a cluster."""
    return call("bash", TOOLS / "containers" / "run.sh", *options, image, *words, check=check)


def copy_sources(folder):
    """Copy the files that go into an image, without caches."""
    for name in SOURCES:
        source, target = PROJECT / name, folder / name
        target.parent.mkdir(parents=True, exist_ok=True)
        if source.is_dir():
            shutil.copytree(source, target, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(source, target)
    shutil.copy(PROJECT / ".dockerignore", folder)
    return folder


def digest(folder):
    """Return a digest of the sources."""
    told = hashlib.sha256()
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        told.update(f"{path.relative_to(folder)}\n".encode() + path.read_bytes())
    return told.hexdigest()[:16]


def let_in(folder):
    """Let any user enter a folder; pytest's folders are private to its user."""
    for one in (folder, *folder.parents[:2]):
        one.chmod(0o755)


def make_out(folder):
    """Create an output folder that any user may write to."""
    out = folder / "out"
    out.mkdir(parents=True)
    let_in(folder)
    out.chmod(0o777)
    return out


def pollute(folder, names=("numpy", "torch", "argparse", "sitecustomize", "bids_app")):
    """Fill a folder with modules that nobody should import."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        (folder / f"{name}.py").write_text("raise RuntimeError('polluted')")
