"""Bad input gets a one-sentence message (file, problem, remedy) and the right exit code."""

import json
import os
import shutil
import subprocess
import tempfile
from contextlib import redirect_stderr, redirect_stdout
from io import StringIO
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from phantoms import PET, SHAPE, add_pet, add_t1w, brain, head_affine, image_path, write_dataset

from bids_app import nifti
from bids_app.cli import main
from bids_app.dataset.validation import find_validator
from bids_app.errors import ReadWriteError
from bids_app.files import read_tsv

pytestmark = pytest.mark.slow

NOBODY = 65534
AFFINES = {
    "zero": (np.zeros((4, 4)), "no inverse"),
    "huge": (np.diag([400.0, 4.0, 4.0, 1.0]), "400"),
    "flat": (np.diag([0.2, 4.0, 4.0, 1.0]), "field of view"),
    "sheared": (np.array([[4, 2, 0, 0], [0, 4, 0, 0], [0, 0, 4, 0], [0, 0, 0, 1.0]]), "sheared"),
}
SLOPPY = ["participant", "--sloppy", "--nprocs", "1", "--skip-bids-validation"]
AS_THEY_ARE = ("--skull-strip", "skip")  # phantoms have no skull, and extraction takes seconds


@pytest.fixture
def raw(tmp_path):
    return write_dataset(tmp_path / "raw")


@pytest.fixture
def run(tmp_path, capsys):
    """Run the app in this process; return its exit code and output."""

    def call(raw, *options, out=None):
        code = main([str(raw), str(tmp_path / "out" if out is None else out), *SLOPPY, *options])
        said = capsys.readouterr()
        return code, said.out + said.err

    return call


def rewrite(path, data, affine=None):
    """Rewrite an image with contents that bids_app.nifti would refuse to write."""
    nib.save(nib.Nifti1Image(data, head_affine() if affine is None else affine), path)


def test_a_participant_without_t1w(raw, rng, run):
    (raw / "sub-01" / "anat").mkdir(parents=True)
    code, said = run(raw)
    assert code == 66
    assert "sub-01" in said
    assert "T1w" in said


def test_a_participant_with_pet_only(raw, rng, run):
    add_pet(raw, "01", rng)
    code, said = run(raw)
    assert code == 66
    assert "no T1w" in said


def write_with_affine(path, data, affine):
    image = nib.Nifti1Image(data, np.eye(4))
    image.header["qform_code"], image.header["sform_code"] = 0, 2
    for row, name in zip(affine, ("srow_x", "srow_y", "srow_z"), strict=False):
        image.header[name] = row
    nib.save(nib.Nifti1Image(image.dataobj, None, image.header), path)


def run_once(folder, raw, *options):
    """Run once for several tests; return the output folder, the exit code and the output."""
    out, said = folder / "out", StringIO()
    with redirect_stdout(said), redirect_stderr(said):
        code = main([str(raw), str(out), *SLOPPY, *options])
    return out, code, said.getvalue()


@pytest.fixture(scope="module")
def unusable(tmp_path_factory):
    """Run in which no T1w can be used, each for a different reason."""
    folder, rng = tmp_path_factory.mktemp("unusable"), np.random.default_rng(7)
    raw = write_dataset(folder / "raw")
    truncated = add_t1w(raw, "truncated", rng)
    truncated.write_bytes(truncated.read_bytes()[:20000])
    data = brain(rng)
    data[20, 20, 20] = np.nan
    rewrite(image_path(raw, "nan", "anat", "T1w"), data)
    rewrite(image_path(raw, "constant", "anat", "T1w"), np.full((44, 52, 44), 7, np.float32))
    image_path(raw, "text", "anat", "T1w").write_text("this is not an image")
    several = np.stack([brain(rng)] * 3, axis=-1)
    rewrite(image_path(raw, "several", "anat", "T1w"), several)
    for name, (affine, _) in AFFINES.items():
        write_with_affine(image_path(raw, name, "anat", "T1w"), brain(rng), affine)
    return run_once(folder, raw)


@pytest.mark.slow
def test_unreadable_contents_are_named_one_by_one(unusable):
    """Truncated, NaN and constant images are detected by nodes, and each is reported."""
    out, code, said = unusable
    assert code == 65
    for word in (
        "truncated or damaged",
        "NaN or infinite",
        "all voxels are equal",
        "not a NIfTI image",
    ):
        assert word in said, word
    for name in ("truncated", "nan", "constant", "text"):
        assert f"sub-{name}_T1w.nii.gz" in said
    assert "Traceback" not in said
    assert list((out / "logs").glob("crash-*"))


def told_of(unusable, name):
    """Return the only message about an image."""
    (line,) = [line for line in unusable[2].splitlines() if f"sub-{name}_T1w.nii.gz: " in line]
    return line


@pytest.mark.slow
def test_a_t1w_of_several_volumes(unusable):
    assert "3 volumes" in told_of(unusable, "several")


@pytest.mark.slow
@pytest.mark.parametrize("name", AFFINES)
def test_affines_that_no_scanner_writes(unusable, name):
    assert AFFINES[name][1] in told_of(unusable, name)


def test_an_image_without_read_permission(rng):
    """Root may read all files, so the effective user is changed to nobody for a moment."""
    folder = Path(tempfile.mkdtemp())
    try:
        folder.chmod(0o755)
        path = add_t1w(folder, "01", rng)
        path.chmod(0)
        user = os.geteuid()
        os.seteuid(NOBODY if user == 0 else user)
        try:
            with pytest.raises(ReadWriteError, match="no permission") as caught:
                nifti.inspect(path)
        finally:
            os.seteuid(user)
    finally:
        shutil.rmtree(folder)
    assert caught.value.exit_code == 74
    assert path.name in str(caught.value)


def test_an_empty_dataset(tmp_path, run):
    (tmp_path / "empty").mkdir()
    assert run(tmp_path / "empty")[0] == 16
    assert run(tmp_path / "nowhere")[0] == 66


def test_an_unknown_label(raw, rng, run):
    add_t1w(raw, "01", rng)
    code, said = run(raw, "--participant-label", "99")
    assert code == 18
    assert "01" in said  # the participants that exist


def test_output_where_the_input_is(raw, rng, run):
    add_t1w(raw, "01", rng)
    before = sorted(path for path in raw.rglob("*"))
    assert run(raw, out=raw)[0] == 64
    assert run(raw, out=raw / "mine")[0] == 64
    assert sorted(path for path in raw.rglob("*")) == before


@pytest.mark.parametrize("flag", ["-w", "--bids-database-dir"])
def test_no_other_folder_in_the_input(raw, rng, run, flag):
    add_t1w(raw, "01", rng)
    before = sorted(raw.rglob("*"))
    code, said = run(raw, flag, str(raw / "scratch"))
    assert code == 64
    assert "inside the input" in said
    assert sorted(raw.rglob("*")) == before


def test_frames_that_are_not_there(raw, rng, run):
    add_t1w(raw, "01", rng)
    add_pet(raw, "01", rng)
    _, said = run(raw, "--dry-run", "--pet-frames", "3-5")
    assert "--pet-frames" in said


def test_reports_of_nothing(raw, rng, run):
    add_t1w(raw, "01", rng)
    code, said = run(raw, "--reports-only")
    assert code == 66
    assert "without --reports-only" in said


def test_output_that_cannot_be_made(raw, rng, run, tmp_path):
    add_t1w(raw, "01", rng)
    (tmp_path / "file").write_text("")
    code, said = run(raw, out=tmp_path / "file" / "out")
    assert code == 73
    assert "choose another" in said


def test_what_a_generator_knows_of_its_own_grid_alone_is_refused_on_another(raw, rng, run):
    add_t1w(raw, "01", rng)
    code, said = run(raw, "--resolution", "5", "--uncertainty")
    assert code == 64
    assert "--uncertainty: generator default supports this at --resolution 1 only" in said


def test_tampered_weights(raw, rng, run, tmp_path):
    add_t1w(raw, "01", rng)
    shipped = Path(__file__).parents[1] / "bids_app" / "data" / "generators" / "sloppy"
    mine = Path(shutil.copytree(shipped, tmp_path / "mine"))
    weights = bytearray((mine / "weights.safetensors").read_bytes())
    weights[-1] ^= 1
    (mine / "weights.safetensors").write_bytes(weights)
    code, said = run(raw, "--generator", str(mine))
    assert code == 65
    assert "SHA-256" in said


def test_what_does_not_go_together(raw, rng, run):
    add_t1w(raw, "01", rng)
    code, said = run(raw, "--match-histogram", "--uncertainty")
    assert code == 64
    assert "leave one of them out" in said


def test_no_such_generator(raw, rng, run):
    add_t1w(raw, "01", rng)
    assert run(raw, "--generator", "nowhere")[0] == 66


def forget_orientation(path):
    image = nib.load(path)
    image.set_sform(None, 0)
    image.set_qform(None, 0)
    nib.save(image, path)


def one_line(said):
    return " ".join(said.split())


def test_a_header_that_cannot_tell_left_from_right(raw, rng, run):
    """Other participants are processed; a given orientation leads to a result and a message."""
    add_t1w(raw, "ok", rng)
    forget_orientation(add_t1w(raw, "lost", rng))
    add_t1w(raw, "pet", rng)
    forget_orientation(add_pet(raw, "pet", rng))
    said = one_line(run(raw, "--dry-run")[1])
    assert said.count("does not define left and right (") == 2
    for name in ("sub-lost_T1w.nii.gz", "sub-pet_trc-18FFDG_pet.nii.gz"):
        assert f"{name}: its header does not define left and right" in said
    assert "--assume-orientation" in said
    said = one_line(run(raw, "--dry-run", "--assume-orientation", "RAS")[1])
    assert said.count("RAS was assumed") == 2
    assert "Not used" not in said
    code, said = run(raw, "--participant-label", "lost")
    assert code == 65
    assert "does not define left and right" in said


def test_files_that_are_none_take_nobody_else_down(raw, rng, run):
    add_t1w(raw, "ok", rng)
    os.mkfifo(image_path(raw, "pipe", "anat", "T1w"))
    image_path(raw, "device", "anat", "T1w").symlink_to("/dev/zero")
    sidecars = {}
    for name in ("pipe2", "deep", "endless"):
        add_t1w(raw, name, rng)
        sidecars[name] = Path(f"{add_pet(raw, name, rng)}".replace(".nii.gz", ".json"))
    sidecars["pipe2"].unlink()
    os.mkfifo(sidecars["pipe2"])
    sidecars["deep"].write_text("[" * 100_000)
    with sidecars["endless"].open("wb") as file:
        file.truncate(1 << 36)
    code, said = run(raw, "--dry-run")
    assert code == 1
    assert "5 have problems (sub-" in said
    used, _, unused = said.partition("Not used")
    assert all(f"sub-{name}_T1w" in used for name in ("ok", *sidecars))
    assert unused.count("named pipe") == 2
    for words in ("is a device", "nested too deeply", "68719 MB"):
        assert words in unused


@pytest.mark.parametrize(
    ("shape", "sidecar", "problem"),
    [
        ((), {"FrameTimesStart": [0, 9], "FrameDuration": [9] * 20}, None),  # for the dynamic PET
        ((), {"FrameTimesStart": ["a"], "FrameDuration": ["b"]}, None),
        ((1,), {"FrameDuration": None}, None),
        ((2,), {"FrameDuration": [9, 9]}, None),
        ((2,), {"FrameTimesStart": [0, 9, 18], "FrameDuration": [9, 9]}, None),
        ((1, 2), {"FrameDuration": [9, 9]}, None),
        ((2,), {"FrameTimesStart": [0, 9]}, "2 frames, but there is no FrameDuration"),
        ((2,), {"FrameDuration": [9, 9, 9]}, "2 frames, but 3 FrameDuration values"),
        ((2,), {"FrameDuration": ["9", "9"]}, "not a list of numbers"),
        ((2,), {"FrameDuration": [[9], {"a": 9}]}, "not a list of numbers"),
        ((), {"FrameDuration": {"a": [9]}}, None),
        ((2,), {"FrameDuration": [9, 0]}, "not above 0"),
        ((2,), {"FrameDuration": [1e308, 1e308]}, "longer than any scan"),
    ],
)
def test_frames_need_durations_and_nothing_else(raw, rng, run, shape, sidecar, problem):
    add_t1w(raw, "01", rng)
    pet = brain(rng, inverted=True)
    data = np.broadcast_to(pet.reshape(*pet.shape, *[1] * len(shape)), (*pet.shape, *shape))
    add_pet(raw, "01", rng, data=data, sidecar={**PET, **sidecar})
    said = one_line(run(raw, "--dry-run")[1])
    assert ("Not used" in said) == (problem is not None)
    assert problem is None or problem in said


@pytest.mark.parametrize(
    ("sidecar", "options", "minutes"),
    [
        ({"InjectionStart": 0}, (), "0.0"),
        ({"InjectionStart": 0}, ("--pet-frames", "2"), None),
        ({"InjectionStart": 0}, ("--pet-frames", "1-2"), "1.0"),
        ({"InjectionStart": -900}, (), "15.0"),
        ({"InjectionStart": -2400}, (), None),  # times are relative to the start of the scan
        ({}, (), None),  # nothing is known of the times
        ({"InjectionStart": "10:00"}, (), None),
        ({"InjectionStart": 0, "FrameTimesStart": [0, 60]}, (), None),
    ],
)
def test_frames_of_the_first_minutes_are_told_of(raw, rng, run, sidecar, options, minutes):
    """They show another distribution, and controls with static PET have none."""
    add_t1w(raw, "01", rng)
    data = np.stack([brain(rng, inverted=True)] * 3, axis=-1)
    times = {"FrameTimesStart": [0, 60, 1800], "FrameDuration": [60, 1740, 1800]}
    add_pet(raw, "01", rng, data=data, sidecar={**PET, **times, **sidecar})
    code, said = run(raw, "--dry-run", *options)
    assert code == 0
    told = f"the averaged frames begin {minutes} min after injection, when FDG shows blood flow"
    assert (told in one_line(said)) == (minutes is not None)
    assert minutes is not None or "after injection" not in one_line(said)


@pytest.mark.slow
@pytest.mark.skipif(os.geteuid() != 0, reason="only root may mount a small disk")
def test_a_disk_that_is_full(raw, rng, run, tmp_path):
    add_t1w(raw, "01", rng)
    small = tmp_path / "small"
    small.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=300k", "none", str(small)]
    if shutil.which("mount") is None or subprocess.run(mount, check=False).returncode:
        pytest.skip("this machine does not let us mount a small disk")
    try:
        code, said = run(raw, "-w", str(small / "work"), out=tmp_path / "out")
    finally:
        subprocess.run(["umount", "-l", str(small)], check=True)
    assert code in (65, 74)
    assert "No space left" in said or "cannot be written" in said
    assert not list((tmp_path / "out").rglob("*synth*"))


def test_a_filter_file_that_is_no_json(raw, rng, run, tmp_path):
    add_t1w(raw, "01", rng)
    filters = tmp_path / "filters.json"
    filters.write_text("{")
    assert run(raw, "--bids-filter-file", str(filters))[0] == 64


@pytest.mark.parametrize(
    ("table", "told"),
    [
        ("participant_id\tgroup\nsub-1\tcontrol\n", "has no row for sub-02; add it"),
        ("participant_id\tgroup\nsub-1\tcontrol\n", "of sub-01 is spelt differently"),
        ("participant_id\tg\nsub-01\ta\nsub-01\tb\n", "g has several values for sub-01"),
        ("id\tgroup\n", "no column participant_id; give the labels this heading"),
        ("participant_id\tgroup\n1\t" + 200000 * "x" + "\0", "NUL characters"),
    ],
)
def test_a_dry_run_tells_of_the_table_of_participants(raw, rng, run, table, told):
    for label in ("01", "02"):
        add_t1w(raw, label, rng)
    (raw / "participants.tsv").write_text(table)
    code, said = run(raw, "--dry-run")
    assert code == 0
    assert f"warning: {raw}/participants.tsv: " in said
    assert told in said


def test_a_dry_run_tells_which_of_several_images_is_used(raw, rng, run):
    for name in ("acq-a_T1w", "acq-b_T1w", "ce-gad_T1w"):
        image_path(raw, "01", "anat", name).write_bytes(add_t1w(raw, "02", rng).read_bytes())
    add_pet(raw, "02", rng, sidecar={"TracerName": "PIB"})
    code, said = run(raw, "--dry-run")
    assert code == 1  # same as for the run, because the PET of sub-02 cannot be used
    for words in (
        "1 has problems (sub-02)",
        "2 T1w images are equally good: sub-01_acq-a_T1w.nii.gz is used, the first by run",
        "because it has no contrast agent (ce-); choose with --bids-filter-file",
        "its name says trc-18FFDG, but its sidecar TracerName 'PIB'",
    ):
        assert words in said


def test_an_invalid_dataset(tmp_path, rng, capsys):
    if find_validator() is None:
        pytest.skip("bids-validator-deno is not installed")
    raw = write_dataset(tmp_path / "raw")
    add_t1w(raw, "01", rng)
    (raw / "sub-01" / "anat" / "sub-02_T1w.json").write_text(json.dumps({"A": 1}))
    code = main([str(raw), str(tmp_path / "out"), "participant", "--sloppy"])
    assert code == 16
    assert "--skip-bids-validation" in capsys.readouterr().err


def ball():
    """Create a ball as large as a brain with a bright core, and nothing else in common with one."""
    x = np.indices(SHAPE)
    middle = np.array(SHAPE).reshape(3, 1, 1, 1) / 2
    radius = np.sqrt((((x - middle) * 4 / np.array([65, 82, 62]).reshape(3, 1, 1, 1)) ** 2).sum(0))
    return np.where(radius < 1, 500 + 500 * (radius < 0.7), 0).astype(np.float32)


@pytest.fixture(scope="module")
def mixed(tmp_path_factory):
    """Run in which every participant has a problem, but most T1w have none."""
    folder, rng = tmp_path_factory.mktemp("mixed"), np.random.default_rng(7)
    raw = write_dataset(folder / "raw")
    for subject in ("frames", "runs", "noise"):
        add_t1w(raw, subject, rng)
    pet = brain(rng, inverted=True)
    add_pet(raw, "frames", rng, data=np.stack([pet, pet], axis=-1))
    add_pet(raw, "runs", rng, name="trc-18FFDG_run-01_pet", data=pet[..., None])
    add_pet(raw, "runs", rng, name="trc-18FFDG_run-02_pet")
    add_pet(raw, "runs", rng, name="trc-PIB_pet", sidecar={**PET, "TracerName": "PIB"})
    add_t1w(raw, "ball", rng, data=ball())
    add_pet(raw, "noise", rng, data=rng.random(SHAPE).astype(np.float32))
    return run_once(folder, raw, *AS_THEY_ARE)


@pytest.mark.slow
def test_one_bad_pet_does_not_stop_the_others(mixed):
    """(x,y,z,1), 4D without timing, two runs, another tracer: the T1w of all are processed."""
    out, code, said = mixed
    assert code == 1
    assert "sub-frames_trc-18FFDG_pet.nii.gz: 2 frames" in said
    assert "run-02" in said
    assert "PIB" in said
    synthetic = {path.parent.parent.name for path in out.rglob("*desc-synth_pet.nii.gz")}
    assert synthetic == {"sub-frames", "sub-runs", "sub-noise"}
    real = {path.parent.parent.name for path in out.rglob("*res-4_desc-preproc_pet.nii.gz")}
    assert real == {"sub-runs", "sub-noise"}
    assert "2 frames" in (out / "sub-frames.html").read_text()


@pytest.mark.slow
def test_what_does_not_fit_is_used_nowhere(mixed, run, tmp_path):
    """A T1w of a ball and a PET of noise are kept, with verdict fail, also in a second run."""
    out, code, said = mixed
    assert code == 1
    for name in ("sub-ball_T1w.nii.gz", "sub-noise_trc-18FFDG_pet.nii.gz"):
        assert f"{name}: its registration failed: " in said
    table = read_tsv(out / "desc-registration_metrics.tsv")
    of_both = [row for row in table if row["participant_id"] in ("sub-ball", "sub-noise")]
    assert [row["verdict"] for row in of_both] == ["fail", "pass", "fail"]
    assert "fail" not in {row["verdict"] for row in table if row not in of_both}
    assert "the correlation of T1w and template is only" in of_both[0]["reasons"]
    assert "FAILED: " in (out / "sub-ball.html").read_text()
    assert not list(out.glob("sub-ball/pet/*desc-synth_pet.nii.gz"))
    there = shutil.copytree(out, tmp_path / "out")
    ball = ("--participant-label", "ball", *AS_THEY_ARE)
    code, said = run(out.parent / "raw", *ball, out=there)
    assert code == 65
    assert "its registration failed" in said
    code, said = run(out.parent / "raw", *ball, "--stage", "synthesize", out=there)
    assert code == 65
    assert "no PET is predicted" in said
