"""Descriptions for other tools agree with the command line and with pyproject.toml."""

import importlib.util
import json
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import yaml

from bids_app.cli import build_parser, parse

CONTAINERS = Path(__file__).parents[1] / "containers"
DESCRIPTOR = CONTAINERS / "mri2pet.boutiques.json"
BOSH = shutil.which("bosh", path=str(Path(sys.executable).parent))
needs_bosh = pytest.mark.skipif(BOSH is None, reason="boutiques is not installed")


def describe(parser):
    spec = importlib.util.spec_from_file_location("descriptor", CONTAINERS / "descriptor.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.describe(parser)


def bosh(*words):
    run = subprocess.run([BOSH, *map(str, words)], capture_output=True, text=True, check=False)
    return run.returncode, run.stdout + run.stderr


def test_the_file_is_what_the_parser_gives():
    assert json.loads(DESCRIPTOR.read_text()) == describe(build_parser())


def test_a_flag_more_changes_it():
    parser = build_parser()
    parser.add_argument("--brand-new", type=float, help="100%% new")
    (told,) = (one for one in describe(parser)["inputs"] if one["id"] == "brand_new")
    assert told["command-line-flag"] == "--brand-new"
    assert (told["type"], told["description"], told["optional"]) == ("Number", "100% new", True)


def test_every_flag_is_described():
    told = {
        one["command-line-flag"]
        for one in describe(build_parser())["inputs"]
        if "command-line-flag" in one
    }
    flags = {
        next(flag for flag in action.option_strings if flag.startswith("--"))
        for action in build_parser()._actions
        if action.option_strings
    }
    telling = {"--help", "--help-all", "--version", "--self-test", "--print-completion"}
    assert flags - told == telling


@needs_bosh
def test_boutiques_finds_it_valid():
    code, said = bosh("validate", DESCRIPTOR)
    assert code == 0, said
    assert "OK" in said


@needs_bosh
def test_the_command_it_gives_is_understood(tmp_path):
    wanted = {
        "bids_dir": "/bids",
        "output_dir": "/out",
        "level": "group",
        "nu": 0.1,
        "participant_label": ["01", "02"],
        "bounding_box": [-70, -100, -40, 70, 70, 80],
        "skip_bids_validation": True,
        "sloppy": True,
        "derivatives": ["lesions=/truth"],
        "detectors": ["ocsvm", "zscore"],
        "atlas": ["/a.nii.gz", "/a.tsv"],
        "nprocs": 3,
        "work_dir": "/work",
        "random_seed": 7,
    }
    invocation = tmp_path / "invocation.json"
    invocation.write_text(json.dumps(wanted))
    code, said = bosh("exec", "simulate", DESCRIPTOR, "-i", invocation)
    assert code == 0, said
    (line,) = (line for line in said.splitlines() if line.startswith("mri2pet "))
    settings = parse(shlex.split(line)[1:])
    assert settings.level == "group"
    assert settings.participant_label == ("01", "02")
    assert settings.bounding_box == (-70, -100, -40, 70, 70, 80)
    assert not settings.validate
    assert settings.derivatives == (("lesions", Path("/truth")),)
    assert settings.detectors == ("ocsvm", "zscore")
    assert (settings.nu, settings.nprocs, settings.random_seed) == (0.1, 3, 7)
    assert settings.work_dir == Path("/work")


def test_the_babs_example_asks_for_what_mri2pet_understands():
    told = yaml.safe_load((CONTAINERS / "babs.yaml").read_text())
    assert set(told) == {
        "input_datasets",
        "bids_app_args",
        "singularity_args",
        "all_results_in_one_zip",
        "zip_foldernames",
        "cluster_resources",
        "script_preamble",
        "job_compute_space",
    }
    given = dict(told["bids_app_args"])
    words = [given.pop("$SUBJECT_SELECTION_FLAG"), "sub-01"]
    words += [word for pair in given.items() for word in pair if word]
    settings = parse(["/bids", "/out", "participant", *words])
    assert settings.participant_label == ("01",)
    assert settings.work_dir.name == "$BABS_TMPDIR"
    limit = re.search(r"--mem=(\d+)G", told["cluster_resources"]["customized_text"])
    assert settings.mem_gb < float(limit[1])
    assert f"--cpus-per-task={settings.nprocs}" in told["cluster_resources"]["customized_text"]


@pytest.mark.parametrize(
    ("file", "spelling"),
    [
        ("CITATION.cff", "\nversion: {}\n"),
        ("Dockerfile", "\nARG VERSION={}\n"),
        ("singularity.def", "image.version {}\n"),
        ("containers/conda/recipe.yaml", '\n  version: "{}"\n'),
        ("containers/babs.yaml", 'mri2pet: "{}"\n'),
        ("docs/hpc.md", "--container-name mri2pet-{} "),
    ],
)
def test_all_files_name_the_same_version(file, spelling):
    root = CONTAINERS.parent
    version = tomllib.loads((root / "pyproject.toml").read_text())["project"]["version"]
    named = [spelling.format(version), spelling.format(version.replace(".", "-"))]
    assert any(one in (root / file).read_text(encoding="utf-8") for one in named)


# conda-forge's names of packages that are called otherwise on PyPI
CONDA_NAMES = {"matplotlib": "matplotlib-base", "torch": "pytorch"}


def test_the_conda_recipe_says_what_pyproject_says():
    project = tomllib.loads((CONTAINERS.parent / "pyproject.toml").read_text())["project"]
    recipe = yaml.safe_load((CONTAINERS / "conda" / "recipe.yaml").read_text())
    wanted = {}
    for requirement in project["dependencies"]:
        name, _, least = requirement.partition(">=")
        wanted[CONDA_NAMES.get(name, name)] = f">={least}"
    run = dict(line.split(" ", 1) for line in recipe["requirements"]["run"] if " " in line)
    assert run.pop("python") == ">=${{ python_min }}"
    assert run == wanted
    assert f">={recipe['context']['python_min']}" == project["requires-python"]
    entry_points = dict(line.split(" = ") for line in recipe["build"]["python"]["entry_points"])
    assert entry_points == project["scripts"]
    assert recipe["about"]["summary"] == project["description"]
    assert recipe["about"]["license_file"] == project["license-files"]


def test_the_sdist_has_what_images_are_built_from():
    included = (CONTAINERS.parent / "MANIFEST.in").read_text().split()
    needed = {".dockerignore", "Dockerfile", "singularity.def", "constraints.txt", "containers"}
    assert needed <= {*included}
