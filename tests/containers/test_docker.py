"""Image of the Dockerfile, built, and run as on a cluster."""

import json
import re
import sys
from pathlib import Path

import numpy as np
import pytest
from engines import (
    AS_A_CLUSTER,
    PROJECT,
    build,
    call,
    copy_sources,
    let_in,
    make_out,
    podman,
    pollute,
    run_image,
)
from nilearn.datasets import load_mni152_brain_mask, load_mni152_template

from bids_app import nifti

pytestmark = pytest.mark.slow
LARGEST = 2.0e9  # bytes; measured: 1.90e9
LARGEST_OF_CODE = 100e6  # bytes; our choice
FUNCTIONS = 3  # functions that smo compiles for its callers: scale, fit, score


def digests(folder):
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture(scope="module")
def done(image, bids, tmp_path_factory):
    """One run without network, user name or home, with only /out and a small /tmp writable."""
    out = make_out(tmp_path_factory.mktemp("docker"))
    before = digests(bids)
    volumes = ("-v", f"{bids}:/bids:ro", "-v", f"{out}:/out")
    run = run_image(
        image,
        "/bids",
        "/out",
        "participant",
        "--sloppy",
        "--omp-nthreads",
        1,
        options=(*AS_A_CLUSTER, *volumes),
    )
    assert digests(bids) == before
    return out, run


def test_a_run_as_on_a_cluster_gives_what_a_run_here_gives(done, bids, tmp_path):
    out, run = done
    assert "1 visit done, 0 already complete, 0 failed" in run.stdout
    here = tmp_path / "here"
    call("mri2pet", bids, here, "participant", "--sloppy", "--omp-nthreads", 1)
    names = {path.relative_to(here) for path in here.glob("sub-*/**/*.nii.gz")}
    assert names == {path.relative_to(out) for path in out.glob("sub-*/**/*.nii.gz")}
    for name in names:
        one, other = (nifti.load(folder / name).data for folder in (out, here))
        np.testing.assert_allclose(one, other, rtol=1e-3, atol=1e-3 * np.abs(other).max())


def test_nothing_but_the_answer_is_said(done):
    """No library complains about a folder that it cannot write to."""
    _, run = done
    said = [line for line in run.stderr.splitlines() if line.strip()]
    assert all(line.startswith("sub-control01: ") for line in said), said


def test_the_output_says_which_container_made_it(done):
    out, _ = done
    told = json.loads((out / "dataset_description.json").read_text())
    assert told["GeneratedBy"][0]["Container"] == {"Type": "docker", "Tag": "mri2pet:9.8.7"}
    assert (out / "sub-control01.html").stat().st_uid == 1234


def test_the_self_test_passes_without_network_home_or_place_to_write(image):
    run = run_image(image, "--self-test")
    assert "no checks failed" in run.stdout, run.stdout
    assert run.stderr == ""


def test_a_home_that_may_not_be_read_does_no_harm(image):
    options = (*AS_A_CLUSTER, "-e", "HOME=/root")
    run = run_image(image, "--self-test", options=options)
    assert "no checks failed" in run.stdout, run.stdout


def test_other_python_packages_of_the_caller_do_no_harm(image, tmp_path):
    for folder in ("path", "home/.local/lib/python3.11/site-packages"):
        pollute(tmp_path / folder)
    let_in(tmp_path)
    options = (
        *AS_A_CLUSTER,
        "-v",
        f"{tmp_path}:/dirt:ro",
        "-e",
        "PYTHONPATH=/dirt/path",
        "-e",
        "HOME=/dirt/home",
    )
    assert "no checks failed" in run_image(image, "--self-test", options=options).stdout


def test_labels_and_size(image):
    told = json.loads(podman("image", "inspect", image).stdout)[0]
    labels = told["Labels"]
    assert labels["org.opencontainers.image.version"] == "9.8.7"
    assert labels["org.opencontainers.image.revision"] == "abcdef"
    assert labels["org.opencontainers.image.licenses"] == "Apache-2.0"
    assert told["Config"]["Entrypoint"] == ["mri2pet"]
    assert told["Size"] < LARGEST


def layers_of(image):
    """Return the digests of the image's layers, from the base on, and their sizes in bytes."""
    told = json.loads(podman("image", "inspect", image).stdout)[0]["RootFS"]["Layers"]
    steps = json.loads(podman("history", "--format", "json", image).stdout)
    return told, [step["size"] for step in reversed(steps) if step["size"]]


def test_other_code_is_another_small_layer_upon_the_same_dependencies(image, tmp_path):
    sources = copy_sources(tmp_path)
    with (sources / "bids_app" / "errors.py").open("a") as file:
        file.write("CHANGED = True\n")
    with (sources / "pyproject.toml").open("a") as file:
        file.write("\n[tool.nobody]\n")
    build(sources, "localhost/mri2pet:changed")
    try:
        (*below, code), _ = layers_of(image)
        (*same, changed), sizes = layers_of("localhost/mri2pet:changed")
    finally:
        podman("rmi", "localhost/mri2pet:changed")
    assert same == below
    assert changed != code
    assert sizes[-1] < LARGEST_OF_CODE < sizes[-2]


def run_python(image, *words, environment=()):
    options = [*AS_A_CLUSTER, "--entrypoint", "python"]
    for one in environment:
        options += ["-e", one]
    return run_image(image, *words, options=options)


def test_machine_code_of_numba_was_filled_when_the_image_was_built(image):
    """It is valid for the installed code, so nothing is compiled again."""
    code = """
import os
from bids_app.resources import writable_caches
with writable_caches(os.environ):
    from bids_app.app.selftest import check_machines
    print(check_machines())
"""
    said = run_python(image, "-c", code, environment=["NUMBA_DEBUG_CACHE=1"]).stdout
    assert said.count("data loaded from") == FUNCTIONS, said
    assert "saved to" not in said


def test_byte_code_was_filled_when_the_image_was_built(image):
    words = ("-v", "-c", "import json, jinja2, bids_app.detection.smo")
    said = run_python(image, *words).stderr
    read = re.findall(r"^# code object from '(.*)'$", said, re.MULTILINE)
    for name in ("/json/", "/jinja2/", "/bids_app/"):
        assert any(name in path for path in read)
    assert [path for path in read if not path.endswith(".pyc")] == []


def test_a_template_that_was_fetched_beforehand_is_bound(image, bids, tmp_path):
    """As in docs/hpc.md, except that there is no network, so the files are created here."""
    fetched, name = make_out(tmp_path), "MNI152NLin6Asym"
    place = ("-e", "TEMPLATEFLOW_HOME=/fetched/templateflow")
    options = (*AS_A_CLUSTER, *place, "-v", f"{fetched}:/fetched", "--entrypoint", "mri2pet-fetch")
    run = run_image(image, "--template", name, options=options, check=False)
    assert run.returncode == 66
    assert f"\nerror: template {name}: TemplateFlow cannot provide it (" in run.stderr
    images = {"T1w": load_mni152_template(1), "desc-brain_mask": load_mni152_brain_mask(1)}
    for suffix, stored_image in images.items():
        path = fetched / "templateflow" / f"tpl-{name}" / f"tpl-{name}_res-01_{suffix}.nii.gz"
        assert path.stat().st_size == 0  # TemplateFlow's stub of it, created by the run
        stored_image.to_filename(path)
    out = make_out(tmp_path / "run")
    volumes = ("-v", f"{bids}:/bids:ro", "-v", f"{out}:/out", "-v", f"{fetched}:/fetched:ro")
    run_image(
        image,
        "/bids",
        "/out",
        "participant",
        "--sloppy",
        "--stage",
        "preprocess",
        "--template",
        name,
        options=(*AS_A_CLUSTER, *place, *volumes),
    )
    assert list(out.glob(f"sub-control01/anat/*_space-{name}_*T1w.nii.gz"))


def test_what_is_wrong_is_said_and_the_exit_code_is_kept(image):
    run = run_image(image, "/nowhere", "/out", "participant", check=False)
    assert run.returncode == 66
    assert run.stderr.startswith("error: /nowhere")
    assert run_image(image, "--help").returncode == 0


def test_hadolint_finds_nothing():
    hadolint = Path(sys.executable).with_name("hadolint")
    if not hadolint.exists():
        pytest.skip("hadolint is not installed")
    assert call(hadolint, PROJECT / "Dockerfile").stdout == ""
