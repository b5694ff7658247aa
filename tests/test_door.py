import subprocess
import sys
from importlib.metadata import version

import pytest

import mri2pet


def test_the_import_package_tells_its_version():
    assert mri2pet.__version__ == version("mri2pet")


@pytest.mark.slow
def test_the_package_runs_as_the_command_does(tmp_path):
    run = subprocess.run(
        [sys.executable, "-m", "mri2pet", "--version"],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        check=True,
    )
    assert run.stdout.split()[-1].lstrip("v") == version("mri2pet")
    wrong = subprocess.run(
        [sys.executable, "-m", "mri2pet", str(tmp_path / "none"), str(tmp_path / "out"), "group"],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        check=False,
    )
    assert wrong.returncode == 66
    assert str(tmp_path / "out") in wrong.stderr
