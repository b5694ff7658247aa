"""Messages reach any kind of output, and never as a traceback."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

PROGRAMS = ("bids_app.cli", "bids_app.simulate", "bids_app.fetch", "bids_app.importing")
LOCALE = "LC_ALL=POSIX PYTHONCOERCECLOCALE=0 PYTHONUTF8=0"


def shell(line, cwd=None, **environment):
    """Run a line of bash with $PY as the path of Python."""
    known = {**os.environ, "PY": sys.executable, **environment}
    return subprocess.run(
        ["bash", "-o", "pipefail", "-c", line], cwd=cwd, env=known, capture_output=True, check=False
    )


@pytest.mark.parametrize("program", PROGRAMS)
@pytest.mark.parametrize(
    ("line", "codes"),
    [
        ("PYTHONIOENCODING=ascii $PY -m {} --help", {0}),
        ("PYTHONIOENCODING=latin-1 $PY -m {} --help", {0}),
        ("LC_ALL=POSIX PYTHONCOERCECLOCALE=0 PYTHONUTF8=0 $PY -m {} --help", {0}),
        ("$PY -m {} --help | head -c 1 >/dev/null", {0}),
        ("$PY -m {} --help >/dev/full", {74}),
        ("$PY -m {} --version >&-", {0}),
        ("$PY -m {} --help <&- >&- 2>&-", {0}),
        ("$PY -m {} --nonsense >/dev/full 2>/dev/full", {64}),
        ("$PY -W error -m {} --version", {0}),
        ("PYTHONWARNINGS=error $PY -m {} --help", {0}),
        ("HOME=/nowhere TMPDIR=/nowhere $PY -m {} --version", {0}),
    ],
)
def test_no_place_that_messages_go_to_is_a_traceback(program, line, codes):
    done = shell(line.format(program))
    assert done.returncode in codes, done.stderr
    for word in (b"Traceback", b"Exception ignored", b"UnicodeEncodeError"):
        assert word not in done.stderr


def test_signs_are_written_in_other_words(tmp_path):
    done = shell("PYTHONIOENCODING=ascii $PY -m bids_app.cli --help-all")
    assert b"default 82 mm3" in done.stdout
    (tmp_path / "none.txt").mkdir()
    done = shell(f"PYTHONIOENCODING=ascii $PY -m bids_app.cli 'in — ü' {tmp_path} train")
    assert done.returncode == 66
    assert b"error: " in done.stderr


@pytest.mark.parametrize(
    "command",
    [
        "bids_app.cli in out participant",
        "bids_app.cli /in /out participant",
        "bids_app.simulate out",
        "bids_app.fetch --lpips file",
        "bids_app.importing /net_G.pth /new --trained-on x",
    ],
)
def test_a_current_folder_that_was_deleted_is_a_sentence(tmp_path, command):
    (tmp_path / "gone").mkdir()
    done = shell(f"cd {tmp_path}/gone && rmdir {tmp_path}/gone && $PY -m {command}")
    assert done.returncode == 74
    assert done.stderr.count(b"\n") == 1
    assert b"error: the current folder was deleted" in done.stderr


SAY = (
    "import sys; from bids_app.arguments import run_program\n"
    "def run():\n"
    "    from bids_app.console import Console\n"
    "    console = Console()\n"
    "    for _ in range(2000): console.say('a line — of progress \\udcff')\n"
    "    console.close('the last')\n"
    "    open(sys.argv[1], 'w').write('done'); return 0\n"
    "sys.exit(run_program(run, interrupted='stopped'))\n"
)


@pytest.mark.parametrize(
    ("to", "code"),
    [
        ("2>&1 | head -1 >/dev/null", 0),
        ("2>/dev/full", 0),
        ("2>&-", 0),
        (">&-", 0),
        (">/dev/full", 74),
        (">/dev/full 2>&1", 74),
        ("| head -1 >/dev/null", 0),
    ],
)
def test_a_run_goes_on_though_nobody_listens(tmp_path, to, code):
    done = shell(f'PYTHONIOENCODING=ascii $PY -c "$SAY" {tmp_path}/file {to}', SAY=SAY)
    assert done.returncode == code
    assert (tmp_path / "file").read_text() == "done"
    assert b"Traceback" not in done.stderr + done.stdout


def test_bytes_of_names_that_are_no_text_are_written_as_they_are():
    done = shell('PYTHONIOENCODING=utf-8 $PY -c "$SAY" /dev/null 2>&1 | head -1', SAY=SAY)
    assert done.stdout == "a line — of progress ".encode() + b"\xff\n"


def test_no_file_takes_the_place_of_a_closed_output(tmp_path):
    """Output of a library to the standard output would otherwise be written into an image."""
    code = (
        "import os, sys; from bids_app.arguments import run_program\n"
        "def run():\n"
        f"    with open({str(tmp_path / 'image')!r}, 'w') as file:\n"
        "        os.write(1, b'noise'); file.write('image')\n"
        "    return 0\n"
        "sys.exit(run_program(run, interrupted=''))\n"
    )
    assert shell('$PY -c "$CODE" <&- >&- 2>&-', CODE=code).returncode == 0
    assert Path(tmp_path, "image").read_text() == "image"


def test_warnings_are_no_errors_in_processes_that_a_run_starts():
    code = (
        "import subprocess, sys, warnings; from bids_app.arguments import run_program\n"
        "def run():\n"
        "    warnings.warn('old', DeprecationWarning)\n"
        "    flags = subprocess._args_from_interpreter_flags()\n"
        "    say = 'import warnings; warnings.warn(\"old\")'\n"
        "    return subprocess.run([sys.executable, *flags, '-c', say]).returncode\n"
        "sys.exit(run_program(run, interrupted=''))\n"
    )
    for flags, variable in (("-W error", ""), ("", "error"), ("-W error", "error,ignore::Warning")):
        done = shell(f'$PY {flags} -c "$CODE"', CODE=code, PYTHONWARNINGS=variable)
        assert done.returncode == 0, done.stderr


@pytest.mark.slow
def test_names_are_utf8_whatever_the_locale_says(tmp_path):
    """Messages about a dataset in ``données`` are the same in a locale that only has ASCII."""
    raw = tmp_path / "données"
    (raw / "sub-01" / "anat").mkdir(parents=True)
    (raw / "sub-01" / "anat" / "sub-01_T1w.mgz").write_bytes(b"")
    (raw / "dataset_description.json").write_text('{"Name": "x", "BIDSVersion": "1.10.0"}')
    line = f"$PY -m bids_app.cli '{raw}' '{tmp_path}/out' participant --dry-run --skip-bids-val"
    line += "idation --stage preprocess"
    done = [shell(f"{locale} {line}") for locale in ("", LOCALE)]
    assert [one.returncode for one in done] == [65, 65]
    assert done[0].stderr == done[1].stderr
    assert "données/sub-01/anat/sub-01_T1w.mgz" in done[1].stderr.decode()
