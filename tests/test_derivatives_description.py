"""Versions of software that a run reports to have used."""

import json
from importlib.metadata import version

from bids_app.derivatives.description import RunRecord, find_versions, write_run_record
from bids_app.report import methods


class Asked(dict):
    """Mapping of versions that remembers which of them were looked up."""

    def __init__(self):
        super().__init__()
        self.names = set()

    def get(self, name, default=None):
        self.names.add(name)
        return default


def test_all_that_methods_paragraphs_cite_has_its_version_told():
    asked = Asked()
    detectors = ("ocsvm", "zscore", "pseudonormal")
    methods.write_methods("group", asked, {"detectors": detectors, "evaluated": True})
    methods.write_methods("participant", asked, {"pet": True, "generator": {"Name": "g"}})
    methods.write_methods("train", asked, {})
    assert {"mri2pet", "numba", "torch", "simpleitk", "dipy", "scipy", "nibabel"} <= asked.names
    assert asked.names <= set(find_versions())


def test_versions_are_those_that_are_installed():
    told = find_versions()
    assert told["numba"] == version("numba")
    assert told["safetensors"] == version("safetensors")  # reads the format of the weights
    assert "not installed" not in told.values()


def test_the_log_of_a_run_has_its_versions(tmp_path):
    path = write_run_record(
        tmp_path, {}, RunRecord("2026-01-01T00:00:00+00:00", "mri2pet", find_versions())
    )
    assert json.loads(path.read_text())["versions"]["numba"] == version("numba")
