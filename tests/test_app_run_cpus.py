"""Allocation of CPUs: steps on this machine share its CPUs, jobs of a queue do not."""

import pytest

from bids_app.app import run as preparation
from bids_app.cli import parse
from bids_app.resources import Resources


@pytest.fixture
def threads(tmp_path, monkeypatch):
    """Return the threads of a step of a run with 2 CPUs on a machine with 64."""
    monkeypatch.setattr(preparation, "find_limits", lambda _environment: Resources(2, 8.0))
    monkeypatch.setattr(preparation, "limit_threads", lambda _environment, _threads: None)
    monkeypatch.setattr("os.cpu_count", lambda: 64)

    def _threads(*words, plugin=None):
        if plugin is not None:
            (tmp_path / "plugin.yaml").write_text(f"plugin: {plugin}\n")
            words = (*words, "--use-plugin", str(tmp_path / "plugin.yaml"))
        settings = parse([str(tmp_path), str(tmp_path / "out"), "train", *words])
        return preparation.share_resources(settings, visits=24)[1]

    return _threads


@pytest.mark.parametrize(
    ("words", "plugin", "expected"),
    [
        ((), None, 1),
        (("--omp-nthreads", "8"), None, 2),
        ((), "MultiProc", 1),
        ((), "SLURM", 4),
        (("--omp-nthreads", "8"), "SLURM", 8),
        (("--nprocs", "1"), "SLURM", 4),
    ],
)
def test_threads_of_a_step(threads, words, plugin, expected):
    assert threads(*words, plugin=plugin) == expected
