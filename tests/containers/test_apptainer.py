"""Build and runs of singularity.def by Apptainer, as an ordinary user without an environment."""

import os
import shutil
from pathlib import Path

import pytest
from engines import (
    BASE,
    CONTAINERS_DIR,
    TOOLS,
    call,
    copy_sources,
    let_in,
    make_out,
    need,
    podman,
    pollute,
)

pytestmark = pytest.mark.slow
ROOT = CONTAINERS_DIR / "apptainer-root"
USER = "1234:1234"
CLEAN = ("--cleanenv", "--containall", "--no-home")


def apptainer(*words, check=True, cwd=None, **environment):
    """Run Apptainer inside its own root, as a non-root user."""
    return call(
        "bash",
        TOOLS / "containers" / "apptainer.sh",
        "-u",
        USER,
        "apptainer",
        *words,
        check=check,
        cwd=cwd,
        env={**os.environ, "HOME": "/home/appt", **environment},
    )


@pytest.fixture(scope="session")
def sif(image, tmp_path_factory):
    """SIF of singularity.def, built on a local base image instead of the registry's."""
    need("mmdebstrap", "podman")
    if not ROOT.is_dir():
        made = call("bash", TOOLS / "containers" / "apptainer-root.sh", ROOT, check=False)
        if made.returncode:
            shutil.rmtree(ROOT, ignore_errors=True)
            pytest.skip(f"Apptainer cannot be had: {made.stderr[-300:]}")
    folder = copy_sources(tmp_path_factory.mktemp("sif"))
    podman("save", "-o", folder / "base.tar", BASE)
    definition = folder / "singularity.def"
    text = definition.read_text()
    text = text.replace("Bootstrap: docker\n", "Bootstrap: docker-archive\n")
    definition.write_text(
        text.replace("From: python:3.11-slim-bookworm", f"From: {folder}/base.tar")
    )
    call("chown", "-R", USER, folder)
    let_in(folder)
    wheels = call("pip", "config", "get", "global.find-links", check=False).stdout.strip()
    found = Path(wheels).is_dir() if wheels else False
    more = ("-B", f"{wheels}:/srv") if found else ()
    apptainer(
        "build",
        "--force",
        "-B",
        "/etc/ssl/certs:/mnt",
        *more,
        folder / "app.sif",
        definition,
        cwd=folder,
        BINDS=wheels if found else "",
        APPTAINERENV_TORCH_INDEX="none",
        APPTAINERENV_LPIPS="try",
        APPTAINERENV_PIP_CERT="/mnt/ca-certificates.crt",
        **({"APPTAINERENV_PIP_FIND_LINKS": "/srv"} if found else {}),
    )
    return folder / "app.sif"


def test_a_person_is_done_without_home_or_environment(sif, bids, tmp_path):
    let_in(bids.parent)
    out = make_out(tmp_path)
    run = apptainer(
        "run",
        *CLEAN,
        "-B",
        f"{bids}:/bids:ro",
        "-B",
        f"{out}:/out",
        sif,
        "/bids",
        "/out",
        "participant",
        "--sloppy",
        "-w",
        "/out/work",
    )
    assert "1 visit done, 0 already complete, 0 failed" in run.stdout
    assert (out / "sub-control01.html").exists()
    assert list(out.glob("sub-control01/pet/*_desc-synth_pet.nii.gz"))


def test_what_the_caller_has_in_the_environment_does_no_harm(sif, tmp_path):
    """Without --cleanenv, the container inherits all of it."""
    pollute(tmp_path)
    let_in(tmp_path)
    run = apptainer(
        "run",
        "--containall",
        "-B",
        f"{tmp_path}:/dirt",
        sif,
        "--self-test",
        PYTHONPATH="/dirt",
        PYTHONSTARTUP="/dirt/numpy.py",
    )
    assert "no checks failed" in run.stdout


def test_help_labels_and_test_are_there(sif):
    assert "participant --participant-label 01 -w /work" in apptainer("run-help", sif).stdout
    assert "mri2pet" in apptainer("inspect", "--labels", sif).stdout
    assert "no checks failed" in apptainer("test", *CLEAN, sif).stdout


def test_a_run_may_name_another_folder_of_templates(sif):
    """Otherwise it uses the image's own, whatever the caller's environment says."""
    words = (sif, "printenv", "TEMPLATEFLOW_HOME")
    own, place = "/opt/mri2pet/templateflow", "/fetched/templateflow"
    caller = {"TEMPLATEFLOW_HOME": "/of/the/caller"}
    assert apptainer("exec", *CLEAN, *words, **caller).stdout.strip() == own
    given = ("--env", f"TEMPLATEFLOW_HOME={place}")
    assert apptainer("exec", *CLEAN, *given, *words).stdout.strip() == place
    given = {"APPTAINERENV_TEMPLATEFLOW_HOME": place}
    assert apptainer("exec", *CLEAN, *words, **given).stdout.strip() == place
