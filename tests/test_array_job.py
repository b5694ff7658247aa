"""The array job of containers/slurm-array.sh, with a shell script in place of Apptainer."""

import os
import subprocess
from pathlib import Path

import pytest

from bids_app.cli import parse

SCRIPT = Path(__file__).parents[1] / "containers" / "slurm-array.sh"
APPTAINER = """#!/bin/bash
printf '%s\\n' "$@" > asked
for word; do case $word in *:/*)
    [ -d "${word%%:*}" ] || { echo "FATAL: $word: mount source doesn't exist" >&2; exit 255; }
esac; done
"""


@pytest.fixture
def bids(tmp_path):
    for label in ("a", "b", "c"):
        (tmp_path / "my bids" / f"sub-{label}").mkdir(parents=True)
    return tmp_path / "my bids"


@pytest.fixture
def task(tmp_path, bids):
    """Run a task in its own folder; return the arguments passed to Apptainer."""
    place = tmp_path / "bin"
    place.mkdir()
    (place / "apptainer").write_text(APPTAINER)
    (place / "apptainer").chmod(0o755)
    known = {name: value for name, value in os.environ.items() if not name.startswith("SLURM_")}
    known["PATH"] = f"{place}:{known['PATH']}"

    def run(number, *options, out="out", **environment):
        subprocess.run(
            ["bash", SCRIPT, bids, out, *options],
            cwd=tmp_path,
            check=True,
            env=known | {"SLURM_ARRAY_TASK_ID": str(number), **environment},
        )
        return (tmp_path / "asked").read_text().splitlines()

    return run


def of_mri2pet(words):
    """Parse the arguments after the name of the container as mri2pet does."""
    return parse(words[words.index("/bids") :])


def binds(words):
    return {words[n + 1] for n, word in enumerate(words) if word == "-B"}


def test_a_task_runs_its_participant_shut_off_from_the_rest(task, bids, tmp_path):
    words = task(2, "--sloppy", out="new/out", SLURM_CPUS_PER_TASK="3")
    assert words[:4] == ["run", "--cleanenv", "--containall", "--no-home"]
    assert binds(words) == {f"{bids}:/bids:ro", f"{tmp_path}/new/out:/out"}
    assert words[words.index("/bids") - 1] == "mri2pet.sif"
    settings = of_mri2pet(words)
    assert (str(settings.bids_dir), str(settings.output_dir)) == ("/bids", "/out")
    assert settings.level == "participant"
    assert settings.participant_label == ("b",)
    assert settings.nprocs == 3
    assert settings.sloppy
    assert settings.clean_workdir


@pytest.mark.parametrize(
    ("granted", "mem_gb"),
    [
        ({"SLURM_MEM_PER_NODE": "8192"}, 7.2),
        ({"SLURM_MEM_PER_CPU": "2048", "SLURM_CPUS_PER_TASK": "4"}, 7.2),
        ({"SLURM_MEM_PER_CPU": "2048"}, 1.8),
        ({"SLURM_MEM_PER_NODE": "0"}, None),  # all memory of the node
        ({}, None),
    ],
)
def test_memory_is_what_slurm_has_granted(task, granted, mem_gb):
    assert of_mri2pet(task(1, **granted)).mem_gb == mem_gb


def test_options_of_the_caller_count(task):
    words = task(1, "--mem-gb", "3", "--nprocs", "2", SLURM_MEM_PER_NODE="8192")
    assert (of_mri2pet(words).mem_gb, of_mri2pet(words).nprocs) == (3, 2)
    words = task(1, SIF="/images/other one.sif")
    assert words[words.index("/bids") - 1] == "/images/other one.sif"


def test_a_task_that_is_submitted_again_has_the_same_work_folder(task, tmp_path):
    """It is mri2pet's default, OUTPUT_DIR/.work, or WORK; neither is removed."""
    assert of_mri2pet(task(1, SLURM_JOB_ID="7")).work_dir is None
    folder = tmp_path / "a disk" / "work"
    for job in "78":
        words = task(1, SLURM_JOB_ID=job, WORK=str(folder))
        assert f"{folder}:/work" in binds(words)
        assert str(of_mri2pet(words).work_dir) == "/work"
        (folder / job).touch()
    assert {path.name for path in folder.iterdir()} == {"7", "8"}


def test_an_installed_mri2pet_is_given_the_same(task, bids, tmp_path):
    command = tmp_path / "bin" / "apptainer"
    words = task(3, COMMAND=f"{command} with", WORK=f"{tmp_path}/work", SLURM_MEM_PER_NODE="4096")
    assert words[0] == "with"
    settings = parse(words[1:])
    assert (settings.bids_dir, settings.output_dir) == (bids, tmp_path / "out")
    assert settings.participant_label == ("c",)
    assert settings.work_dir == tmp_path / "work"
    assert settings.mem_gb == 3.6
