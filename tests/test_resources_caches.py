"""Caches of libraries are moved to writable folders, with their existing contents."""

import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from bids_app.resources import CONFIGURATIONS, VARIABLES, writable_caches

FUNCTIONS = 3  # functions that smo compiles for its callers: scale, fit, score


def test_places_that_can_be_written_to_stay(tmp_path):
    own = tmp_path / "own"
    own.mkdir()
    environment = {"HOME": str(tmp_path), "MPLCONFIGDIR": str(own)}
    before = dict(environment)
    with writable_caches(environment) as made:
        assert made is None
        assert environment == before | dict.fromkeys(CONFIGURATIONS, os.devnull)
    assert environment == before
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["own"]


def test_a_folder_that_is_yet_to_be_made_below_home_stays(tmp_path):
    environment = {"HOME": str(tmp_path), "NUMBA_CACHE_DIR": str(tmp_path / ".cache" / "numba")}
    with writable_caches(environment) as made:
        assert made is None


def test_machine_code_does_not_stay_beside_a_package_that_may_be_uninstalled(tmp_path):
    script = """
import numpy as np
from bids_app.detection.oneclass import VoxelwiseOneClassSVM
VoxelwiseOneClassSVM(threads=1).fit(np.random.default_rng(0).random((2, 5, 3), np.float32))
"""
    inherited = {name: value for name, value in os.environ.items() if "CACHE" not in name}
    environment = {**inherited, "HOME": str(tmp_path), "NUMBA_DEBUG_CACHE": "1"}
    done = subprocess.run(
        [sys.executable, "-c", script], env=environment, check=True, text=True, capture_output=True
    )
    saved = [line for line in done.stdout.splitlines() if "data saved to" in line]
    assert saved
    assert all(str(tmp_path / ".cache" / "mri2pet") in line for line in saved)


@pytest.mark.parametrize("home", [{}, {"HOME": ""}, {"HOME": "/proc"}, {"HOME": "/no/such/folder"}])
def test_without_a_home_there_are_places_for_a_while(home):
    environment = dict(home)
    with writable_caches(environment) as made:
        for name in VARIABLES:
            place = Path(environment[name])
            assert place.parent == made
            (place / "file").write_text("x")
        assert environment.items() >= home.items()
    assert environment == home
    assert not made.exists()


def test_a_home_of_somebody_else_is_left_alone(tmp_path, monkeypatch):
    """For example root's for a container with ``-u``: libraries that access it would fail."""
    (tmp_path / "secret").write_text("x")
    monkeypatch.setattr("os.access", lambda place, _: str(place) != str(tmp_path))  # root may all
    monkeypatch.setattr("bids_app.resources.is_writable", lambda folder: folder != tmp_path)
    environment = {"HOME": str(tmp_path)}
    with writable_caches(environment) as made:
        assert Path(environment["HOME"]).parent == made
        assert list(Path(environment["HOME"]).iterdir()) == []
    assert environment == {"HOME": str(tmp_path)}


def test_what_cannot_be_written_to_is_copied(tmp_path, monkeypatch):
    filled = tmp_path / "filled"
    (filled / "deep").mkdir(parents=True)
    (filled / "deep" / "code").write_bytes(b"\x00\x01")
    (filled / "deep" / "code").chmod(stat.S_IRUSR)
    filled.chmod(stat.S_IRUSR | stat.S_IXUSR)
    monkeypatch.setattr(
        "bids_app.resources.is_writable", lambda folder: folder != filled
    )  # root may do so
    environment = {"HOME": str(tmp_path), "NUMBA_CACHE_DIR": str(filled)}
    with writable_caches(environment):
        copy = Path(environment["NUMBA_CACHE_DIR"], "deep", "code")
        assert copy.read_bytes() == b"\x00\x01"
        copy.write_bytes(b"new")
        assert set(environment) == {"HOME", "NUMBA_CACHE_DIR", *CONFIGURATIONS}
    assert environment["NUMBA_CACHE_DIR"] == str(filled)
    assert (filled / "deep" / "code").read_bytes() == b"\x00\x01"
    filled.chmod(stat.S_IRWXU)


HOSTILE = """
[execution]
stop_on_first_rerun = true
use_relative_paths = true
remove_node_directories = true
keep_inputs = false
"""
SHOW = """
import os, sys
from pathlib import Path
from bids_app.resources import writable_caches
with writable_caches(os.environ):
    from nipype.pipeline.engine import Workflow
    from bids_app.workflows.execution import _make_ready
    import nipype
    print(nipype.config.get("execution", "stop_on_first_rerun"))
    _make_ready(Workflow("w", sys.argv[1]), Path(sys.argv[1], "crashes"), stop_on_first_crash=False)
    sections = nipype.config._sections["execution"]
    print(sections["stop_on_first_rerun"], sections["use_relative_paths"])
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("place", "imported"), [("home/.nipype", "false"), ("here", "true")], ids=["home", "here"]
)
def test_nobody_s_nipype_cfg_counts(tmp_path, place, imported):
    """One for other workflows: it would move results, or end a run where a step is repeated."""
    for folder in ("home/.nipype", "here"):
        (tmp_path / folder).mkdir(parents=True)
    (tmp_path / place / "nipype.cfg").write_text(HOSTILE)
    environment = {**os.environ, "HOME": str(tmp_path / "home")}
    environment.pop("NIPYPE_CONFIG_DIR", None)
    said = subprocess.run(
        [sys.executable, "-c", SHOW, tmp_path],
        cwd=tmp_path / "here",
        env=environment,
        check=True,
        text=True,
        capture_output=True,
    ).stdout
    assert said.split() == [imported, "false", "false"]


@pytest.mark.slow
def test_nobody_s_matplotlibrc_changes_the_locale(tmp_path):
    """It would write decimal commas in libraries, or end a step where the locale is unknown."""
    (tmp_path / ".config" / "matplotlib").mkdir(parents=True)
    rc = tmp_path / ".config" / "matplotlib" / "matplotlibrc"
    rc.write_text("axes.formatter.use_locale: True\ntext.usetex: True\n")
    script = """
import os
from bids_app.resources import writable_caches
with writable_caches(os.environ):
    import matplotlib
    print(matplotlib.rcParams["text.usetex"], matplotlib.rcParams["font.size"])
"""
    environment = {**os.environ, "HOME": str(tmp_path), "LC_ALL": "xx_XX.UTF-8"}
    for name in ("MPLCONFIGDIR", "XDG_CONFIG_HOME", "MATPLOTLIBRC"):
        environment.pop(name, None)
    command = [sys.executable, "-W", "error", "-c", script]
    done = subprocess.run(
        command, cwd=tmp_path, env=environment, check=True, text=True, capture_output=True
    )
    assert done.stdout.split() == ["False", "10.0"]


@pytest.mark.slow
def test_machine_code_of_a_read_only_cache_is_used(tmp_path):
    """As in a container: filled at build time, copied at run time; nothing is recompiled."""
    script = """
import os, sys
import numpy as np
from bids_app import resources
resources.is_writable = lambda folder: str(folder) != sys.argv[1]
with resources.writable_caches(os.environ):
    from bids_app.detection.oneclass import VoxelwiseOneClassSVM
    x = np.random.default_rng(0).normal(size=(2, 5, 3)).astype(np.float32)
    VoxelwiseOneClassSVM(threads=1).fit(x).decision_function(x)
"""
    filled = tmp_path / "numba"
    filled.mkdir()
    environment = {**os.environ, "NUMBA_CACHE_DIR": str(filled), "NUMBA_DEBUG_CACHE": "1"}
    said = [
        subprocess.run(
            [sys.executable, "-c", script, barred],
            env=environment,
            check=True,
            text=True,
            capture_output=True,
        ).stdout
        for barred in ("", str(filled))
    ]
    assert said[0].count("data saved to") == said[1].count("data loaded from") == FUNCTIONS
    assert "data saved to" not in said[1]
