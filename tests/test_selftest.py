"""``--self-test`` tells what works and what does not."""

import shutil
import subprocess
from importlib.metadata import version

import numpy as np
import pytest

from bids_app import generators
from bids_app.app import selftest
from bids_app.cli import main
from bids_app.errors import UnusableDataError


def fail():
    raise UnusableDataError("broken\nin two lines")


@pytest.mark.slow
def test_all_is_well_here(monkeypatch, capfd):
    monkeypatch.delenv(selftest.LPIPS_VARIABLE, raising=False)
    with pytest.raises(SystemExit) as stopped:
        main(["--self-test"])
    said = capfd.readouterr().out.splitlines()
    assert stopped.value.code == 0, said
    assert [line.split()[0] for line in said[:-1]] == ["ok"] * len(selftest.CHECKS)
    assert f"torch {version('torch')}" in said[0]
    assert said[-1].endswith("no checks failed")


def test_what_fails_is_told_and_the_others_go_on(monkeypatch, capsys):
    checks = {"good": lambda: "fine", "bad": fail, "last": lambda: "fine, too"}
    monkeypatch.setattr(selftest, "CHECKS", checks)
    assert selftest.self_test() == 1
    assert capsys.readouterr().out.splitlines() == [
        "ok      good: fine", "FAILED  bad: broken in two lines", "ok      last: fine, too",
        f"mri2pet {version('mri2pet')}: 1 checks failed",
    ]  # fmt: skip


def test_weights_that_were_changed_are_seen(monkeypatch, tmp_path):
    shipped = shutil.copytree(generators.SHIPPED, tmp_path / "generators")
    monkeypatch.setattr(selftest, "SHIPPED", shipped)
    assert "default, sloppy" in selftest.check_generators()
    with (shipped / "sloppy" / "weights.safetensors").open("ab") as file:
        file.write(b"x")
    with pytest.raises(UnusableDataError, match="sloppy"):
        selftest.check_generators()
    monkeypatch.setattr(selftest, "SHIPPED", tmp_path)
    with pytest.raises(UnusableDataError, match="no generator is there"):
        selftest.check_generators()


def test_a_package_that_is_missing_is_named(monkeypatch):
    monkeypatch.setattr(selftest, "requires", lambda _: ["numpy>=1", "nosuchthing>=2"])
    with pytest.raises(ImportError, match="nosuchthing"):
        selftest.check_packages()


def test_machines_that_err_are_seen(monkeypatch):
    class Wrong(selftest.VoxelwiseOneClassSVM):
        def decision_function(self, latents):
            return super().decision_function(latents) + np.float32(0.001)

    monkeypatch.setattr(selftest, "VoxelwiseOneClassSVM", Wrong)
    with pytest.raises(UnusableDataError, match=r"by 1\.0e-03"):
        selftest.check_machines()


def test_a_command_that_fails_is_told_with_its_last_words(monkeypatch):
    real = subprocess.run
    monkeypatch.setattr(subprocess, "run", lambda words, **k: real([*words, "--nonsense"], **k))
    with pytest.raises(UnusableDataError, match=r"bids_app\.simulate .* ended with 64: .*nonsense"):
        selftest.check_participant()


def test_synthetic_pet_unlike_the_real_one_is_refused(monkeypatch):
    monkeypatch.setattr(selftest, "LEAST_LIKENESS", 1.0)
    with pytest.raises(UnusableDataError, match=r"like the real by 0\.9\d only"):
        selftest.check_participant()
