"""Refusals: a dry run gives the same messages as the run; folders a run must not write to."""

import os
import shutil
import subprocess
import sys
from dataclasses import fields
from types import SimpleNamespace

import nibabel as nib
import numpy as np
import pytest
from cohorts import tell, write_control, write_controls, write_native, write_screened
from phantoms import add_pet, add_t1w, write_dataset

from bids_app.app import participant as participant_level
from bids_app.cli import main
from bids_app.derivatives.description import ignore_also
from bids_app.files import place_in, read_json, write_json, write_text
from bids_app.settings import USED_BY, Settings

pytestmark = pytest.mark.slow

SLOPPY = ("--sloppy", "--nprocs", "1", "--omp-nthreads", "1")


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    """Dataset, results of two levels for other people, and files that settings may refer to."""
    folder = tmp_path_factory.mktemp("refusals")
    rng = np.random.default_rng(3)
    raw = write_dataset(folder / "raw")
    add_t1w(raw, "01", rng)
    add_pet(raw, "01", rng)
    out = folder / "out"
    write_controls(out, ["c1", "c2", "c3", "c4"], rng)
    for label in ("c1", "c2", "c3", "c4", "p1"):
        paths = write_screened(out, label, rng, lesion=label == "p1")
        write_native(paths, flipped=False)
    write_control(out, "t1", rng, pet=False)
    groups = {**dict.fromkeys(("c1", "c2", "c3", "c4", "t1"), "control"), "p1": "patient"}
    tell(out, groups)
    write_text(folder / "file", "text")
    write_json(folder / "astral.json", {"plugin": "Astral"})
    write_json(folder / "slurm.json", {"plugin": "SLURM"})
    write_text(folder / "bad.json", "[")
    nib.save(
        nib.Nifti1Image(np.ones((9, 9, 9), np.uint8), np.diag([20, 20, 20, 1])),
        folder / "atlas.nii",
    )
    write_text(folder / "atlas.tsv", "index\tname\n1\tA\n")
    (folder / "empty").mkdir()
    write_json(folder / "foreign" / "dataset_description.json", {"Name": "x", "GeneratedBy": []})
    return folder


def contents(folder):
    return {path: path.lstat().st_mtime_ns for path in folder.rglob("*")}


def told(study, level, options, capsys, out="out", *more):
    """Run the app; return the exit code and the error messages."""
    given = [option.format(study=study) for option in options]
    code = main([str(study / "raw"), str(study / out), level, *given, *more])
    lines = capsys.readouterr().err.splitlines()
    return code, [line for line in lines if line.startswith("error: ")]


REFUSED = [
    ("participant", ("--resolution", "2", "--novelty"), 64),
    ("participant", (*SLOPPY, "--generator", "nowhere"), 66),
    ("participant", (*SLOPPY, "--uncertainty", "--match-histogram"), 64),
    ("participant", (*SLOPPY, "--device", "cuda"), 64),
    ("participant", (*SLOPPY, "--use-plugin", "{study}/astral.json"), 64),
    ("participant", (*SLOPPY, "--use-plugin", "{study}/slurm.json"), 64),
    ("participant", (*SLOPPY, "--use-plugin", "{study}/bad.json"), 64),
    ("participant", (*SLOPPY, "--use-plugin", "{study}/none.json"), 66),
    ("participant", (*SLOPPY, "--bids-filter-file", "{study}/bad.json"), 64),
    ("participant", (*SLOPPY, "--participant-label", "nobody"), 18),
    ("participant", (*SLOPPY, "--stage", "synthesize"), 66),
    ("participant", (*SLOPPY, "--stage", "preprocess", "--template", "NoSuchTemplate"), 66),
    (
        "participant",
        (
            *SLOPPY,
            "--stage",
            "preprocess",
            "--bounding-box",
            "500",
            "500",
            "500",
            "600",
            "600",
            "600",
        ),
        64,
    ),
    ("participant", ("--stage", "preprocess", "--resolution", "0.001"), 64),
    ("participant", (*SLOPPY, "-w", "{study}/file/work"), 73),
    ("participant", (*SLOPPY, "-w", "{study}/new/out"), 64),
    ("train", (*SLOPPY, "--folds", "9"), 65),
    ("train", (*SLOPPY, "--folds", "1"), 64),
    ("train", (*SLOPPY, "--lpips-weights", "{study}/none"), 66),
    ("train", (*SLOPPY, "--lpips-weights", "{study}/file"), 65),
    ("train", (*SLOPPY, "--device", "cuda:1"), 64),
    ("train", (*SLOPPY, "--use-plugin", "{study}/astral.json"), 64),
    ("train", (*SLOPPY, "--control-query", "colour == 'red'"), 64),
    ("train", (*SLOPPY, "--bounding-box", "-78", "-112", "-50", "78", "76", "80"), 66),
    ("train", ("--template", "Other"), 66),
    ("group", (*SLOPPY, "--folds", "9"), 65),
    ("group", (*SLOPPY, "--folds", "1"), 64),
    ("group", (*SLOPPY, "--folds", "2", "-d", "lesions={study}/none"), 66),
    ("group", (*SLOPPY, "--folds", "2", "-d", "lesions={study}/empty"), 66),
    ("group", (*SLOPPY, "--folds", "2", "--atlas", "{study}/none.nii", "{study}/file"), 66),
    ("group", (*SLOPPY, "--folds", "2", "--atlas", "{study}/file", "{study}/file"), 65),
    ("group", (*SLOPPY, "--folds", "2", "--training-set", "hybrid"), 65),
    ("group", (*SLOPPY, "--folds", "2", "--detector", "{study}/empty"), None),
    ("group", (*SLOPPY, "--folds", "2", "--use-plugin", "{study}/astral.json"), 64),
    (
        "group",
        (*SLOPPY, "--folds", "2", "--bounding-box", "-78", "-112", "-50", "78", "76", "80"),
        66,
    ),
    (
        "group",
        (
            *SLOPPY,
            "--folds",
            "2",
            "--atlas",
            "{study}/atlas.nii",
            "{study}/atlas.tsv",
            "--bounding-box",
            "-78",
            "-112",
            "-50",
            "78",
            "76",
            "80",
        ),
        66,
    ),
]


@pytest.fixture
def no_slurm(monkeypatch):
    """Hide SLURM if this machine has it."""
    which = shutil.which
    monkeypatch.setattr(shutil, "which", lambda name: None if name == "sbatch" else which(name))


@pytest.mark.usefixtures("no_slurm")
@pytest.mark.parametrize(
    ("level", "options", "code"), REFUSED, ids=[" ".join((a, *b)) for a, b, _ in REFUSED]
)
def test_a_dry_run_refuses_what_the_run_would(study, capsys, level, options, code):
    out = "new/out" if level == "participant" else "out"
    skip = ("--skip-bids-validation",) if level == "participant" else ()
    before = contents(study)
    dry = told(study, level, options, capsys, out, "--dry-run", *skip)
    assert contents(study) == before
    run = told(study, level, options, capsys, out, *skip)
    shutil.rmtree(study / "new", ignore_errors=True)
    assert dry == run
    assert len(dry[1]) == 1
    assert dry[0] != 0
    assert code in (dry[0], None)


@pytest.mark.parametrize("options", [("--dry-run",), ()])
def test_a_damaged_table_of_the_output_is_refused_before_anything_is_computed(
    study, tmp_path, capsys, options
):
    out = shutil.copytree(study / "out", tmp_path / "out")
    (out / "participants.tsv").write_bytes(b"participant_id\n\xff\n")
    before = set(out.rglob("*"))
    code = main(
        [
            str(study / "raw"),
            str(out),
            "participant",
            *SLOPPY,
            "--stage",
            "preprocess",
            "--skip-bids-validation",
            *options,
        ]
    )
    assert code == 74
    assert f"{out}/participants.tsv: not UTF-8 text" in capsys.readouterr().err
    assert set(out.rglob("*")) == before


@pytest.mark.parametrize("options", [("--dry-run",), ()])
def test_what_is_not_bids_is_refused_by_both(study, tmp_path, capsys, options):
    raw = shutil.copytree(study / "raw", tmp_path / "raw")
    (raw / "sub-01" / "anat" / "sub-01_colour.nii.gz").write_text("")
    code = main([str(raw), str(tmp_path / "out"), "participant", *SLOPPY, *options])
    assert code == 16
    assert "not valid BIDS" in capsys.readouterr().err


@pytest.mark.parametrize("level", ["participant", "train", "group"])
@pytest.mark.parametrize("option", ["--dry-run", "--reports-only", "--boilerplate-only", None])
def test_a_mistyped_output_folder_is_not_made(study, capsys, level, option):
    if level == "participant" and option is None:
        pytest.skip("this is how a new output folder is made")
    before = contents(study)
    options = (*SLOPPY, "--skip-bids-validation", *([option] if option else []))
    code = main([str(study / "raw"), str(study / "mistyped"), level, *options])
    plans = level == "participant" and option in ("--dry-run", "--boilerplate-only")
    assert code == (0 if plans else 66)
    assert contents(study) == before


@pytest.mark.parametrize(
    ("options", "described"), [((), True), (("--tracer-label", "AV45"), False)], ids=["all", "none"]
)
def test_the_methods_describe_pet_only_if_one_is_selected(study, capsys, options, described):
    command = [str(study / "raw"), str(study / "new"), "participant", *SLOPPY, *options]
    assert main([*command, "--boilerplate-only"]) == 0
    said = capsys.readouterr().out
    assert ("The FDG PET was registered" in said) == described
    assert ("Synthetic and real PET were compared" in said) == described


def test_a_dry_run_that_nothing_stops_writes_nothing(study, capsys):
    before = contents(study)
    index = ("--bids-database-dir", str(study / "index"), "--skip-bids-validation")
    for level, options in (("participant", index), ("train", ()), ("group", ())):
        command = [str(study / "raw"), str(study / "out"), level, *SLOPPY, "--folds", "2"]
        assert main([*command, *options, "--dry-run"]) == 0
        assert contents(study) == before
    said = capsys.readouterr()
    assert "1 visit would be computed, 0 are complete" in said.out
    assert said.out.count("estimate, within a factor of two: ") == 3
    assert "make room" not in said.err


@pytest.mark.parametrize("level", ["participant", "train", "group"])
def test_a_dry_run_warns_of_a_disk_that_is_too_small(study, capsys, monkeypatch, level):
    nearly_full = SimpleNamespace(free=1000)
    monkeypatch.setattr("shutil.disk_usage", lambda _: nearly_full)
    command = [str(study / "raw"), str(study / "out"), level, *SLOPPY, "--folds", "2"]
    assert main([*command, "--skip-bids-validation", "--dry-run"]) == 0
    said = " ".join(capsys.readouterr().err.split())
    assert "GB are needed, but only 0.0 are free; make room" in said


@pytest.mark.parametrize(
    ("level", "spoilt", "counted"),
    [
        ("participant", "raw/sub-02/anat/sub-02_T1w.nii.gz", "1 visit would be computed"),
        ("train", "out/sub-c3/pet/*res-4*desc-preproc_pet.nii.gz", "model would be trained, on 3"),
        ("group", "out/sub-c3/pet/*res-4*desc-preproc_pet.nii.gz", "1 patient would be mapped"),
    ],
)
def test_a_dry_run_ends_as_a_run_where_some_cannot_be_used(
    study, tmp_path, capsys, level, spoilt, counted
):
    there = shutil.copytree(study, tmp_path / "study")
    add_t1w(there / "raw", "02", np.random.default_rng(4))
    (path,) = there.glob(spoilt)
    path.write_bytes(b"no image")
    options = ("--skip-bids-validation",) if level == "participant" else ("--folds", "3")
    options += ("--models", "tissue") if level == "train" else ()  # a network needs four controls
    command = [str(there / "raw"), str(there / "out"), level, *SLOPPY, *options]
    assert main([*command, "--dry-run"]) == 1
    told = capsys.readouterr()
    closing = told.out.splitlines()[-1]
    who = path.name.partition("_")[0]
    assert counted in closing
    assert f"1 has problems ({who})" in closing
    assert path.name in told.out + told.err


@pytest.mark.parametrize("more", [("--dry-run",), ()])
def test_who_is_lost_is_told_where_too_few_are_left(study, tmp_path, capsys, more):
    there = shutil.copytree(study, tmp_path / "study")
    (path,) = there.glob("out/sub-c3/pet/*res-4*desc-preproc_pet.nii.gz")
    path.write_bytes(b"no image")
    code, errors = told(there, "group", (*SLOPPY, "--folds", "2"), capsys, "out", *more)
    assert code == 65
    assert [line.partition(" ")[2][:7] for line in errors] == ["sub-c3:", "fold 1 "]


@pytest.mark.slow
def test_names_are_not_cut_in_a_narrow_terminal(study):
    """Neither in a terminal of 30 columns nor in a pipe."""
    command = f"{sys.executable} -m bids_app.cli {study}/raw {study}/new participant --sloppy"
    command += " --dry-run --skip-bids-validation"
    name = "sub-01/anat/sub-01_T1w.nii.gz"
    environment = {**os.environ, "COLUMNS": "30", "TERM": "xterm"}
    for line in (f"script -qec '{command}' /dev/null", f"{command} | cat"):
        if line.startswith("script") and shutil.which("script") is None:
            continue
        done = subprocess.run(
            ["bash", "-c", line], capture_output=True, text=True, check=False, env=environment
        )
        assert name in done.stdout
        assert "…" not in done.stdout


# Folders


@pytest.mark.parametrize(
    ("out", "work", "said"),
    [
        ("out", "out", "is the output folder"),
        ("out", "out/", "is the output folder"),
        ("out", "out/../out/./", "is the output folder"),
        ("out", "link", "is the output folder"),
        ("out", "out/sub-01/work", "a folder of results"),
        ("out", "out/logs", "a folder of results"),
        ("out", "link/generators/x", "a folder of results"),
        ("out", ".", "contains the output folder"),
        (
            "out",
            "raw",
            "is the same folder as the input dataset; choose a separate folder for --work-dir",
        ),
        ("out", "raw/sub-01", "is inside the input dataset; choose a separate folder for --work"),
        ("out", "raw/derivatives/work", "is inside the input dataset"),
        ("deep/out", "deep/", "contains the output folder"),
        ("raw", None, "is the BIDS dataset itself"),
        ("raw/sub-01", None, "is inside the input dataset"),
        (".", None, "contains the BIDS dataset"),
        ("raw/..", None, "contains the BIDS dataset"),
        ("foreign", None, "was not made by mri2pet"),
    ],
)
def test_folders_that_a_run_must_not_write_to(study, capsys, out, work, said):
    link = study / "link"
    link.symlink_to(study / "out")
    try:
        before = contents(study)
        options = [] if work is None else ["-w", f"{study}/{work}"]
        command = [f"{study}/raw", f"{study}/{out}", "participant", *SLOPPY]
        for dry in ([], ["--dry-run"]):
            assert main([*command, *options, *dry, "--skip-bids-validation"]) == 64
            assert said in capsys.readouterr().err
        assert contents(study) == before
    finally:
        link.unlink()


def test_a_folder_whose_name_is_no_text_is_refused(study):
    """Runs in a separate process, because pytest cannot read the output."""
    command = [
        sys.executable,
        "-m",
        "bids_app.cli",
        str(study / "raw"),
        f"{study}/new\udce9",
        "participant",
        *SLOPPY,
        "--dry-run",
    ]
    done = subprocess.run(command, capture_output=True, check=False)
    assert done.returncode == 64
    assert b"new\xe9: its name is not valid UTF-8" in done.stderr


def test_a_place_is_found_however_it_is_written(tmp_path):
    (tmp_path / "a" / "b").mkdir(parents=True)
    (tmp_path / "link").symlink_to(tmp_path / "a")
    assert place_in(tmp_path / "a", tmp_path / "link" / "b" / "new") == ("b", "new")
    assert place_in(tmp_path / "link", tmp_path / "a" / "b" / "..") == ()
    assert place_in(tmp_path / "a", tmp_path / "ab") is None
    assert place_in(tmp_path / "a" / "b", tmp_path / "a") is None


def test_the_validator_passes_over_a_work_folder_in_the_output(tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "out")
    ignore_also(tmp_path / "out", tmp_path / "link" / "scratch" / "deep")
    assert (tmp_path / "out" / ".bidsignore").read_text().split() == ["scratch"]
    ignore_also(tmp_path / "out", tmp_path / "elsewhere")
    assert (tmp_path / "out" / ".bidsignore").read_text().split() == ["scratch"]


def test_names_of_files_that_are_no_text_can_be_kept(tmp_path):
    write_json(tmp_path / "run.json", {"name": "out\udce9"})
    assert read_json(tmp_path / "run.json") == {"name": "out\udce9"}


# A problem of one participant does not affect the others


def test_a_plan_that_fails_does_not_stop_the_others(study, tmp_path, monkeypatch, capsys):
    raw = shutil.copytree(study / "raw", tmp_path / "raw")
    add_t1w(raw, "02", np.random.default_rng(4))
    plan, seen = participant_level.plan_visit, []

    def fail(visit, run, **how):
        if visit.subject == "01":
            raise ZeroDivisionError("nobody foresaw this")
        return plan(visit, run, **how)

    def compute(plans, *_, **__):
        seen.extend(plan.visit.subject for plan in plans)
        return []

    monkeypatch.setattr(participant_level, "plan_visit", fail)
    monkeypatch.setattr(participant_level, "compute", compute)
    out = tmp_path / "out"
    command = [str(raw), str(out), "participant", *SLOPPY, "--skip-bids-validation"]
    assert main(command) == 1
    said = " ".join(capsys.readouterr().err.split())
    assert "error: sub-01: ZeroDivisionError: nobody foresaw this; its traceback is in" in said
    assert seen == ["02"]
    (crash,) = (out / "logs").glob("crash-*-sub-01-*.txt")
    assert "Traceback" in crash.read_text()
    assert "nobody foresaw this" in (out / "sub-01.html").read_text()
    assert (out / "participants.tsv").is_file()


def test_a_report_that_fails_is_a_problem_of_its_own(study, tmp_path, monkeypatch, capsys):
    raw = shutil.copytree(study / "raw", tmp_path / "raw")
    add_t1w(raw, "02", np.random.default_rng(4))
    write = participant_level.write_subject_report

    def fail(out, subject, **told):
        if subject == "01":
            raise IndexError("an empty list")
        return write(out, subject, **told)

    monkeypatch.setattr(participant_level, "write_subject_report", fail)
    monkeypatch.setattr(participant_level, "compute", lambda *_, **__: [])
    out = tmp_path / "out"
    command = [str(raw), str(out), "participant", *SLOPPY, "--skip-bids-validation"]
    assert main(command) == 1
    assert "error: sub-01.html: IndexError: an empty list" in capsys.readouterr().err
    assert (out / "sub-02.html").is_file()
    assert (out / "participants.tsv").is_file()
    (out / "sub-01").mkdir()
    (out / "sub-02").mkdir()
    assert main([*command, "--reports-only"]) == 1
    assert "1 report written, 1 failed" in capsys.readouterr().out


# Options of other levels


def test_options_that_a_level_has_no_use_for_are_told_in_a_line(study, tmp_path, capsys):
    (tmp_path / "run.toml").write_text("clusters = 3\nnprocs = 1\n")
    options = ("--models", "semi3d-gan", "--nu", "0.1", "--config-file", str(tmp_path / "run.toml"))
    command = [str(study / "raw"), str(study / "new"), "participant", *SLOPPY, *options]
    assert main([*command, "--dry-run", "--skip-bids-validation"]) == 0
    (line,) = [one for one in capsys.readouterr().err.splitlines() if "does not use" in one]
    assert line == "warning: the level participant does not use --models, --nu, --clusters"


def test_options_that_are_used_are_not_told(study, capsys):
    main([str(study / "raw"), str(study / "new"), "participant", *SLOPPY, "--dry-run"])
    assert "does not use" not in capsys.readouterr().err


def test_levels_are_told_of_settings_that_there_are():
    names = [name for group in USED_BY.values() for name in group.split()]
    assert len(names) == len(set(names))
    assert set(names) <= {field.name for field in fields(Settings)}
