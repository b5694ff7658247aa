"""Checks, before any computation, of files that are named in the command line."""

import pytest

from bids_app.app.run import read_plugin
from bids_app.errors import UsageError


@pytest.fixture
def write(tmp_path):
    def _write(text):
        path = tmp_path / "plugin.yaml"
        path.write_text(text)
        return path

    return _write


def test_no_file_is_no_plugin():
    assert read_plugin(None) is None


@pytest.mark.parametrize("text", ["plugin: SLURM", "plugin: SLURM\nplugin_args:\n"])
def test_arguments_may_be_left_out(write, text):
    assert read_plugin(write(text)) == {"plugin": "SLURM", "plugin_args": {}}


@pytest.mark.parametrize(
    "text", ["plugin: PBS\nplugin_args: {a: 1}", '{"plugin": "PBS", "plugin_args": {"a": 1}}']
)
def test_yaml_and_json_are_read_alike(write, text):
    assert read_plugin(write(text)) == {"plugin": "PBS", "plugin_args": {"a": 1}}


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("plugin: [", "cannot be read as YAML"),
        ("plugin_args: {}", "names no plugin"),
        ("- SLURM", "names no plugin"),
        ("plugin: SLURM\nplugin_args: --time=4:00:00", "plugin_args is not a mapping"),
    ],
)
def test_what_is_wrong_is_said_with_the_file(write, text, said):
    path = write(text)
    with pytest.raises(UsageError, match=said) as error:
        read_plugin(path)
    assert str(error.value).startswith(f"{path}: ")
