"""``--self-test`` reports what works and what does not."""

import re
import shutil
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from bids_app import generators, nifti
from bids_app.app import selftest
from bids_app.cli import main
from bids_app.detection import oneclass
from bids_app.errors import UnusableDataError
from bids_app.files import file_sha256, write_json, write_text
from bids_app.settings import LPIPS_VARIABLE
from bids_app.synthesis import scoring
from bids_app.synthesis.scoring import Lpips


def fail():
    raise UnusableDataError("broken\nin two lines")


def crash():
    raise RuntimeError("built for another CPU")


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """Return tensors with the right names and shapes, but not the published values."""
    torch.manual_seed(5)
    tensors = {name: torch.rand_like(value) for name, value in Lpips("").state_dict().items()}
    path = tmp_path_factory.mktemp("weights") / "lpips.safetensors"
    save_file(tensors, path)
    return path


@pytest.mark.slow
def test_all_is_well_here(monkeypatch, capfd):
    monkeypatch.delenv(LPIPS_VARIABLE, raising=False)
    with pytest.raises(SystemExit) as stopped:
        main(["--self-test"])
    said = capfd.readouterr().out.splitlines()
    assert stopped.value.code == 0, said
    assert [line.split()[0] for line in said[:-1]] == ["ok"] * len(selftest.CHECKS)
    assert f"torch {version('torch')}" in said[0]
    assert re.search(r"correlates with the real one by 0\.9\d$", said[-2])
    assert said[-1].endswith("no checks failed")


def test_what_fails_is_told_and_the_others_go_on(monkeypatch, capsys):
    checks = {"good": lambda: "fine", "bad": fail, "worse": crash, "last": lambda: "fine, too"}
    monkeypatch.setattr(selftest, "CHECKS", checks)
    assert selftest.self_test() == 1
    assert capsys.readouterr().out.splitlines() == [
        "ok      good: fine",
        "FAILED  bad: broken in two lines",
        "FAILED  worse: RuntimeError: built for another CPU",
        "ok      last: fine, too",
        f"mri2pet {version('mri2pet')}: 2 checks failed",
    ]


def test_a_check_that_a_busy_machine_does_not_get_done_says_so(shadow, monkeypatch, capsys):
    shadow("SimpleITK", "import time; time.sleep(60)")
    monkeypatch.setattr(selftest, "TIMEOUT", 0.5)
    monkeypatch.setattr(selftest, "CHECKS", {"packages": selftest.check_packages})
    assert selftest.self_test() == 1
    assert capsys.readouterr().out.startswith(
        "FAILED  packages: not done after 0 minutes; if other work keeps this machine busy, run "
        "the self-test again when it is done\n"
    )


@pytest.fixture
def shadow(tmp_path, monkeypatch):
    """Create a module with this text that shadows an installed one."""
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    return lambda name, text: (tmp_path / f"{name}.py").write_text(text)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("broken", "failed"),
    [
        (["numba", "nibabel"], {"packages", "one-class SVMs", "participant"}),
        (
            ["numpy", "sklearn"],
            {"packages", "threads", "generators", "one-class SVMs", "participant"},
        ),
    ],
    ids=["numba", "numpy"],
)
def test_what_cannot_be_imported_is_told_by_each_check_that_needs_it(
    shadow, monkeypatch, broken, failed
):
    for name in broken:
        shadow(name, "raise OSError('lib.so: cannot open shared object file')")
    monkeypatch.delenv(LPIPS_VARIABLE, raising=False)
    words = [sys.executable, "-m", "bids_app.cli", "--self-test"]
    run = subprocess.run(words, capture_output=True, text=True, check=False)
    assert run.stderr == ""
    assert run.returncode == 1
    lines = [line.split(maxsplit=1) for line in run.stdout.splitlines()[:-1]]
    assert len(lines) == len(selftest.CHECKS)
    told = dict(what.split(": ", maxsplit=1) for word, what in lines if word == "FAILED")
    assert told.keys() == failed
    names = {"sklearn": "scikit-learn"}
    assert all(f"{names.get(one, one)} (OSError: lib.so" in told["packages"] for one in broken)
    assert "lib.so: cannot open" in told["one-class SVMs"]


def test_modules_that_lie_where_the_caller_is_are_not_taken(tmp_path, monkeypatch):
    (tmp_path / "psutil.py").write_text("raise RuntimeError('of the caller')")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(selftest, "requires", lambda _: ["psutil"])
    assert selftest.check_packages() == f"psutil {version('psutil')}"


def test_a_package_that_takes_python_with_it_is_named(shadow, monkeypatch):
    """For example one that was built for a newer CPU."""
    shadow("deadly", "import os; os.kill(os.getpid(), 4)")
    monkeypatch.setattr(selftest, "requires", lambda _: ["psutil", "deadly>=1", "rich"])
    with pytest.raises(UnusableDataError, match=r"imported: deadly \(crashes Python\); install"):
        selftest.check_packages()


def test_weights_that_were_changed_are_seen(monkeypatch, tmp_path):
    shipped = shutil.copytree(generators.SHIPPED, tmp_path / "generators")
    monkeypatch.setattr(generators, "SHIPPED", shipped)
    assert "default, sloppy" in selftest.check_generators()
    with (shipped / "sloppy" / "weights.safetensors").open("ab") as file:
        file.write(b"x")
    with pytest.raises(UnusableDataError, match="sloppy"):
        selftest.check_generators()
    monkeypatch.setattr(generators, "SHIPPED", tmp_path)
    with pytest.raises(UnusableDataError, match="contains no generator"):
        selftest.check_generators()


def test_a_package_that_is_missing_is_named(monkeypatch):
    monkeypatch.setattr(selftest, "requires", lambda _: ["numpy>=1", "nosuchthing>=2"])
    with pytest.raises(UnusableDataError, match=r"imported: nosuchthing \(ModuleNotFoundError"):
        selftest.check_packages()


@pytest.mark.slow
def test_threads_of_both_libraries_are_told_and_heed_what_a_step_may_have(monkeypatch):
    monkeypatch.setattr(selftest, "threads_per_node", lambda _cpus, **_visits: 1)
    assert selftest.check_threads() == "1 of torch and 1 of ITK; a step may use 1"
    monkeypatch.setattr(selftest, "limit_threads", lambda *_: None)
    monkeypatch.setenv("ITK_GLOBAL_DEFAULT_NUMBER_OF_THREADS", "3")
    with pytest.raises(UnusableDataError, match=r"3 of ITK, but a step may use 1: they do not"):
        selftest.check_threads()


def test_weights_of_lpips_are_known_by_their_checksum(monkeypatch, tmp_path, weights):
    monkeypatch.setenv(LPIPS_VARIABLE, str(tmp_path / "absent"))
    assert "names no file; LPIPS will be n/a" in selftest.check_lpips()
    monkeypatch.setenv(LPIPS_VARIABLE, str(weights))
    with pytest.raises(UnusableDataError, match="does not have the checksum of the published"):
        selftest.check_lpips()
    for name in ("PUBLISHED_SHA256", "FETCHED_SHA256"):
        with monkeypatch.context() as patch:
            patch.setattr(scoring, name, file_sha256(weights))
            assert selftest.check_lpips().endswith("has the published checksum")


def test_machines_that_err_are_seen(monkeypatch):
    class Wrong(oneclass.VoxelwiseOneClassSVM):
        def decision_function(self, latents):
            return super().decision_function(latents) + np.float32(0.001)

    monkeypatch.setattr(oneclass, "VoxelwiseOneClassSVM", Wrong)
    with pytest.raises(UnusableDataError, match=r"by 1\.0e-03"):
        selftest.check_machines()


def test_a_command_that_fails_is_told_with_its_last_words(monkeypatch):
    real = subprocess.run
    monkeypatch.setattr(subprocess, "run", lambda words, **k: real([*words, "--nonsense"], **k))
    with pytest.raises(
        UnusableDataError, match=r"bids_app\.simulate .* ended with exit code 64: .*nons"
    ):
        selftest.check_participant()


@pytest.fixture
def written(monkeypatch, rng):
    """Write the results of a run for a person; the similarity of the PETs is given."""

    def write(likeness):
        real, other = (one - one.mean() for one in rng.random((2, 12, 13, 14)))
        other -= real * (real * other).sum() / (real**2).sum()  # uncorrelated with the real one
        made = likeness * real / real.std() + np.sqrt(1 - likeness**2) * other / other.std()

        def run(module, _bids, out, *_):
            if module == "bids_app.simulate":
                return
            stem = Path(out, "sub-control01", "pet", "sub-control01_trc-18FFDG_space-MNI_desc")
            stem.parent.mkdir(parents=True)
            for name, data in (("synth", made), ("preproc", real)):
                nifti.save(
                    nifti.Image(data, np.diag([10, 10, 10, 1.0])), Path(f"{stem}-{name}_pet.nii.gz")
                )
                write_json(Path(f"{stem}-{name}_pet.json"), {"Synthetic": name == "synth"})
            write_text(Path(out, "sub-control01.html"), "a report")

        monkeypatch.setattr(selftest, "_call", run)

    return write


def test_synthetic_pet_unlike_the_real_one_is_refused(written):
    written(0.69)
    with pytest.raises(UnusableDataError, match=r"correlates with the real one by only 0\.69"):
        selftest.check_participant()
    written(0.71)
    assert selftest.check_participant().endswith("correlates with the real one by 0.71")
