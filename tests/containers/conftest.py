"""Fixtures of images that several tests need."""

import os
import sys
from pathlib import Path

import pytest
from engines import BASE, TOOLS, build, call, copy_sources, digest, need, podman


@pytest.fixture(scope="session", autouse=True)
def commands():
    """Commands of the environment that runs the tests, on PATH even if it is not activated."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PATH", str(Path(sys.executable).parent), prepend=os.pathsep)
        yield


@pytest.fixture(scope="session", autouse=True)
def _network():
    """Network access, which building images needs and other tests are denied.

    It has session scope, because the images have, and fixtures of a package are created later.
    """
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("LD_PRELOAD", raising=False)
        yield


@pytest.fixture(scope="session")
def sources(tmp_path_factory):
    return copy_sources(tmp_path_factory.mktemp("sources"))


@pytest.fixture(scope="session")
def image(sources):
    """Name of the Dockerfile's image, which is built unless it exists."""
    need("buildah", "podman", "crun", "mmdebstrap")
    name = f"localhost/mri2pet:{digest(sources)}"
    if podman("image", "exists", BASE, check=False).returncode:
        call("bash", TOOLS / "containers" / "bases.sh")
    if podman("image", "exists", name, check=False).returncode:
        build(sources, name)
    return name


@pytest.fixture(scope="session")
def bids(tmp_path_factory):
    """One simulated person."""
    folder = tmp_path_factory.mktemp("dataset") / "bids"
    call("mri2pet-simulate", folder, "--paired", 1, "--resolution", 3, "--seed", 2)
    return folder
