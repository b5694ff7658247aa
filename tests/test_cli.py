import json
import subprocess
import sys
from dataclasses import asdict, fields, replace
from importlib.metadata import version
from pathlib import Path

import pytest

from bids_app import cli
from bids_app.errors import MissingInputError, NothingSelectedError, UsageError
from bids_app.settings import Settings

WHERE = ["bids", "out", "participant"]
HEAVY = {
    "numpy",
    "torch",
    "nipype",
    "nibabel",
    "bids",
    "SimpleITK",
    "dipy",
    "scipy",
    "nilearn",
    "matplotlib",
}


def parse(*options):
    return cli.parse([*WHERE, *options])


def exit_code(*argv):
    """Return the exit code of a command line that ends before any computation."""
    try:
        return cli.main(argv)
    except SystemExit as stop:
        return stop.code


def config(tmp_path, text):
    (tmp_path / "run.toml").write_text(text)
    return "--config-file", str(tmp_path / "run.toml")


def options():
    """Return all options of the parser by their destination names."""
    return {
        action.dest: action.option_strings
        for action in cli.build_parser()._actions
        if action.option_strings
    }


def test_without_options_all_is_as_settings_say():
    here = Path.cwd()
    assert parse() == Settings(here / "bids", here / "out", "participant")


def test_paths_are_made_absolute(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    settings = parse("-w", "work", "--use-plugin", "slurm.json", "-d", "lesions=masks")
    assert settings.bids_dir == tmp_path / "bids"
    assert settings.work_dir == tmp_path / "work"
    assert settings.use_plugin == tmp_path / "slurm.json"
    assert settings.derivatives == (("lesions", tmp_path / "masks"),)


def test_every_setting_has_a_flag_and_every_flag_is_a_setting():
    names = {field.name for field in fields(Settings)} - {"bids_dir", "output_dir", "level"}
    other = {"help", "help_all", "version", "self_test", "print_completion"}
    assert set(options()) - other - {"notrack", "low_mem", "config_file"} == names


def test_every_flag_has_both_spellings():
    for spellings in options().values():
        long = {spelling for spelling in spellings if spelling.startswith("--")}
        assert {"--" + one[2:].replace("-", "_") for one in long} <= long
        assert {"--" + one[2:].replace("_", "-") for one in long} <= long


@pytest.mark.parametrize(
    ("typed", "name", "value"),
    [
        (["--participant-label", "01", "sub-02"], "participant_label", ("01", "02")),
        (["--participant_label", "sub-01", "01"], "participant_label", ("01",)),
        (["--exclude-participant-label", "sub-9"], "exclude_participant_label", ("9",)),
        (["--session_label", "ses-pre", "post"], "session_label", ("pre", "post")),
        (["--run-label", "run-1"], "run_label", ("1",)),
        (["--tracer-label", "trc-FDG"], "tracer_label", ("FDG",)),
        (["--skip_bids_validation"], "validate", False),
        (
            ["--bounding-box", "-70", "-100", "-50.5", "70", "80", "90"],
            "bounding_box",
            (-70, -100, -50.5, 70, 80, 90),
        ),
        (["--resolution", "1.5"], "resolution", 1.5),
        (["--skull-strip", "force"], "skull_strip", "force"),
        (["--assume-orientation", "ras"], "assume_orientation", "RAS"),
        (["--assume_orientation"], "assume_orientation", "LAS"),
        (["--pet-frames", "7", "2-4", "3"], "pet_frames", (2, 3, 4, 7)),
        (["--generator", "mine"], "generator", "mine"),
        (["--smoothing-fwhm", "0"], "smoothing_fwhm", 0.0),
        (["--stage", "synthesize"], "stage", "synthesize"),
        (["--overlap"], "overlap", True),
        (["--no-overlap"], "overlap", False),
        (["--no_overlap"], "overlap", False),
        (["--match-histogram"], "match_histogram", True),
        (["--match_histogram"], "match_histogram", True),
        (["--uncertainty"], "uncertainty", True),
        (["--novelty"], "novelty", True),
        (["--nprocs", "4"], "nprocs", 4),
        (["--omp_nthreads", "2"], "omp_nthreads", 2),
        (["--mem-gb", "7.5"], "mem_gb", 7.5),
        (["--device", "cuda:1"], "device", "cuda:1"),
        (["--clean-workdir"], "clean_workdir", True),
        (["--random-seed", "3"], "random_seed", 3),
        (["-vv"], "verbose", 2),
        (["-v", "--verbose"], "verbose", 2),
        (["--sloppy"], "sloppy", True),
        (["--notrack"], "dry_run", False),
    ],
)
def test_a_flag_becomes_a_setting(typed, name, value):
    assert getattr(parse(*typed), name) == value


@pytest.mark.parametrize(
    ("flag", "values", "name"),
    [
        ("--exclude-participant-label", ["01", "02"], "exclude_participant_label"),
        ("-d", ["fmriprep=/a", "petprep=/b"], "derivatives"),
        ("--pet-frames", ["3", "5-6"], "pet_frames"),
        ("--covariates", ["age", "sex"], "covariates"),
    ],
)
def test_an_option_that_is_given_again_adds_to_its_values(flag, values, name):
    """argparse would drop the first ones: a participant to be left out would be used."""
    first, second = values
    assert getattr(parse(flag, first, flag, second), name) == getattr(parse(flag, *values), name)


def test_a_label_list_may_be_a_text_file(tmp_path):
    (tmp_path / "list.txt").write_text("# those with PET\nsub-03\n\n01 # again\n")
    settings = parse("--participant-label", str(tmp_path / "list.txt"), "sub-02", "01")
    assert settings.participant_label == ("03", "01", "02")


@pytest.mark.parametrize("content", [None, "", "# nobody\n", "two words\n"])
def test_a_label_list_that_is_none_is_a_usage_error(tmp_path, content):
    if content is not None:
        (tmp_path / "list.txt").write_text(content)
    with pytest.raises(UsageError, match=r"list\.txt"):
        parse("--participant-label", str(tmp_path / "list.txt"))


@pytest.mark.parametrize(
    ("sloppy", "resolution", "expected"),
    [(False, None, 1.0), (True, None, 4.0), (True, "2", 2.0), (False, "2", 2.0)],
)
def test_a_sloppy_run_is_coarse_unless_told_otherwise(sloppy, resolution, expected):
    typed = [
        *(["--sloppy"] if sloppy else []),
        *(["--resolution", resolution] if resolution else []),
    ]
    assert parse(*typed).grid_resolution == expected


# Settings files


def test_a_file_of_settings_lies_between_flags_and_defaults(tmp_path):
    file = config(
        tmp_path,
        "nprocs = 3\nmem_gb = 5.5\nsmoothing-fwhm = 2.0\nskip-bids-validation = true\n"
        'sloppy = false\nparticipant_label = ["sub-01", "02"]\npet-frames = ["2-3", 5]\n'
        "bounding_box = [-70, -100, -50, 70, 80, 90]\n",
    )
    settings = parse(*file, "--smoothing-fwhm", "0", "--participant-label", "7")
    assert (settings.nprocs, settings.mem_gb) == (3, 5.5)
    assert settings.smoothing_fwhm == 0
    assert settings.participant_label == ("7",)
    assert settings.validate is False
    assert settings.sloppy is False
    assert settings.pet_frames == (2, 3, 5)
    assert settings.bounding_box == (-70, -100, -50, 70, 80, 90)
    assert settings.resolution is None


@pytest.mark.parametrize("on", [True, False])
def test_a_file_of_settings_can_ask_for_what_is_beyond_the_paper(tmp_path, on):
    names = ("overlap", "match_histogram", "uncertainty", "novelty")
    settings = parse(*config(tmp_path, "".join(f"{name} = {on}\n".lower() for name in names)))
    assert {getattr(settings, name) for name in names} == {on}


@pytest.mark.parametrize(("said", "level"), [(0, 0), (1, 1), (2, 2), (10**20, 2), (-1, 0)])
def test_a_file_of_settings_can_be_as_verbose_as_it_likes(tmp_path, said, level):
    assert parse(*config(tmp_path, f"verbose = {said}")).verbose == level


def test_labels_of_a_file_of_settings_lose_their_prefix(tmp_path):
    settings = parse(*config(tmp_path, 'participant-label = ["sub-01", "02"]'))
    assert settings.participant_label == ("01", "02")


@pytest.mark.parametrize("text", ["nprocs = ", "[resources]\nnprocs = 2\n"])
def test_a_file_of_settings_that_is_none_is_named(tmp_path, text):
    with pytest.raises(UsageError, match=r"run\.toml: "):
        parse(*config(tmp_path, text))


def test_paths_in_a_file_of_settings_start_where_those_of_the_command_line_do(
    tmp_path, monkeypatch
):
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    settings = parse(*config(tmp_path, 'work-dir = "scratch"\nderivatives = ["lesions=masks"]'))
    typed = parse("--work-dir", "scratch", "--derivatives", "lesions=masks")
    assert settings == typed
    assert settings.work_dir == tmp_path / "here" / "scratch"
    assert settings.derivatives == (("lesions", tmp_path / "here" / "masks"),)


def test_a_missing_file_of_settings_is_named(tmp_path):
    with pytest.raises(MissingInputError, match=r"none\.toml: no such file; correct --config-f"):
        parse("--config-file", str(tmp_path / "none.toml"))


@pytest.mark.parametrize("line", ["sloppy = 1", 'dry-run = "yes"', "skip_bids_validation = []"])
def test_a_switch_in_a_file_of_settings_is_true_or_false(tmp_path, line):
    name = line.split()[0]
    with pytest.raises(UsageError, match=rf"run\.toml, line 2: {name} is neither true nor false"):
        parse(*config(tmp_path, f"nprocs = 2\n{line}"))


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ("nprocs = [1, 2]", "nprocs has one value, not a list"),
        ('config_file = "other.toml"', "config_file cannot name a second file"),
    ],
)
def test_a_value_of_another_form_in_a_file_of_settings_is_named(tmp_path, line, told):
    with pytest.raises(UsageError, match=rf"run\.toml, line 2: {told}"):
        parse(*config(tmp_path, f"sloppy = true\n{line}"))


@pytest.mark.parametrize(
    ("typed", "told"),
    [("--mem-gb 8G", "'8G' is not a number"), ("--nprocs 1.5", "'1.5' is not a whole number")],
)
def test_what_is_no_number_is_named(typed, told):
    with pytest.raises(UsageError, match=told):
        parse(*typed.split())


@pytest.mark.parametrize("text", ["colour = 1", "nprocs = 0", 'device = "gpu"', "sloppy = 3"])
def test_a_file_of_settings_obeys_the_rules_of_flags(tmp_path, text):
    assert exit_code(*WHERE, *config(tmp_path, text)) == 64


# Invalid command lines


def test_an_unknown_level_is_17(capsys):
    assert exit_code("bids", "out", "autopilot") == 17
    assert "'autopilot'; use one of participant" in capsys.readouterr().err
    assert exit_code("participant", "bids", "out") == 17
    assert "give BIDS_DIR, OUTPUT_DIR and the level in this order" in capsys.readouterr().err


@pytest.mark.parametrize(
    "argv",
    [
        [],
        ["bids"],
        ["bids", "out"],
        [*WHERE, "more"],
        [*WHERE, "--colour"],
        [*WHERE, "--sloppier"],
        [*WHERE, "--slop"],
        [*WHERE, "--random-seed", "4294967295"],  # ITK could not use it
    ],
    ids=" ".join,
)
def test_a_wrong_command_line_is_64(argv, capsys):
    assert exit_code(*argv) == 64
    told = capsys.readouterr().err
    assert "error: " in told
    assert "see mri2pet --help" in told


@pytest.mark.parametrize(
    ("argv", "told"),
    [
        ([*WHERE, "--dryrun"], "unrecognized arguments: --dryrun; did you mean --dry-run?; see"),
        ([*WHERE, "--participant_lable", "01"], "did you mean --participant-label?; see"),
        ([*WHERE, "--colour"], "unrecognized arguments: --colour; see"),
        (
            ["--participant-label", "01", "02", *WHERE],
            "give BIDS_DIR OUTPUT_DIR LEVEL first, because an option that takes several values has "
            "taken them; see",
        ),
        (["bids", "--sloppy"], "arguments are required: output_dir"),
        ([*WHERE, "--detectors", "zscor"], "'ocsvm', 'zscore', 'pseudonormal'"),
        ([*WHERE, "--detectors", "zscor"], "; did you mean zscore?; see"),
        ([*WHERE, "--models", "forest"], "'tissue'); see"),
        ([*WHERE, "--n_cpus", "0"], "argument --nprocs/--nthreads/--n-cpus: 0 is not"),
    ],
)
def test_a_wrong_command_line_is_answered_in_one_line_with_what_was_meant(argv, told, capsys):
    assert exit_code(*argv) == 64
    said = capsys.readouterr().err
    assert told in said
    assert said.count("\n") == 1


@pytest.mark.parametrize(
    ("typed", "name", "value"),
    [
        ("--nthreads 3", "nprocs", 3),
        ("--n_cpus 3", "nprocs", 3),
        ("--mem 16G", "mem_gb", 16.0),
        ("--mem 1.5TB", "mem_gb", 1500.0),
        ("--mem-mb 8000", "mem_gb", 8.0),
        ("--mem_mb 500M", "mem_gb", 0.5),
        ("--mem-gb 8", "mem_gb", 8.0),
    ],
)
def test_names_of_nipreps_are_accepted(typed, name, value):
    assert getattr(parse(*typed.split()), name) == value


def test_low_mem_is_accepted_and_changes_nothing():
    assert parse("--low-mem") == parse()


def test_a_wrong_line_of_a_file_of_settings_is_named(tmp_path, capsys):
    path = tmp_path / "run.toml"
    path.write_text("# mine\nsloppy = true\n  nprocs= 0\n")
    assert exit_code(*WHERE, "--config-file", str(path)) == 64
    said = capsys.readouterr().err
    assert said.startswith(f"error: {path}, line 3: argument --nprocs")


def test_the_record_of_a_run_gives_its_settings_back(tmp_path):
    """All options except paths; the command line still overrides it."""
    changed = {
        "participant_label": ("01", "02"),
        "validate": False,
        "derivatives": (("lesions", tmp_path / "masks"),),
        "bounding_box": (-78, -112, -70, 78, 76, 85),
        "resolution": 2.0,
        "pet_frames": (3, 4, 7),
        "overlap": False,
        "detectors": ("zscore", "ocsvm"),
        "covariates": ("age",),
        "direction": "hyper",
        "mem_gb": 7.5,
        "work_dir": tmp_path / "work",
        "atlas": (tmp_path / "a.nii", tmp_path / "a.tsv"),
        "sloppy": True,
        "random_seed": 5,
        "verbose": 1,
    }
    settings = replace(parse(), **changed)
    record = tmp_path / "run-1.json"
    record.write_text(json.dumps({"settings": asdict(settings)}, default=str))
    assert parse("--config-file", str(record)) == settings
    assert parse("--config-file", str(record), "--nprocs", "2", "--resolution", "1") == replace(
        settings, nprocs=2, resolution=1.0
    )
    record.write_text('{"date": "today"}')
    with pytest.raises(UsageError, match="not the record of a run"):
        parse("--config-file", str(record))


def test_short_help_tells_of_few_options_and_the_long_one_of_all(capsys):
    texts = []
    for flag in ("-h", "--help", "--help-all"):
        with pytest.raises(SystemExit) as stop:
            cli.parse([flag])
        assert stop.value.code == 0
        texts.append(capsys.readouterr().out)
    assert texts[0] == texts[1]
    assert len(texts[0].splitlines()) < 100 < len(texts[2].splitlines())
    assert "mri2pet BIDS OUT participant --participant-label 01\n" in texts[0]
    for spellings in options().values():
        assert any(flag in texts[2] for flag in spellings)
    assert "--participant_label LABEL" not in texts[2]


@pytest.mark.parametrize("shell", ["bash", "zsh"])
def test_completion_of_a_shell_knows_the_options(shell, capsys):
    with pytest.raises(SystemExit):
        cli.parse(["--print-completion", shell])
    assert "--training-set" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "answer", "told"),
    [
        ("none out participant", 66, "no such folder; check the path of the BIDS dataset"),
        ("none out train", 66, "no such folder; run the participant level first"),
        ("none out group", 66, "no such folder; run the participant level first"),
        ("raw out participant", 16, "raw: has no dataset_description.json; give the root"),
        ("bids out participant --bids-filter-file none", 66, "correct --bids-filter-file"),
        ("bids out participant --use-plugin none", 66, "none: no such file or folder; correct"),
        ("bids out participant --config-file none", 66, "no such file; correct --config-file"),
        ("bids out participant -d fmriprep=none", 66, "correct --derivatives fmriprep=PATH"),
        ("bids raw group -d lesions=none", 66, "correct --derivatives lesions=PATH"),
        ("bids raw group --ratings none", 66, "correct --ratings"),
        ("bids raw group --detector none", 66, "correct --detector"),
        ("bids raw train --lpips-weights none", 66, "correct --lpips-weights"),
    ],
)
def test_a_wrong_path_is_answered_before_anything_heavy_is_loaded(words, answer, told, tmp_path):
    (tmp_path / "raw").mkdir()
    (tmp_path / "bids").mkdir()
    (tmp_path / "bids/dataset_description.json").write_text("{}")
    code = (
        "import sys, bids_app.cli as cli\n"
        f"print(cli.main({words.split()!r}))\n"
        f"print(sorted({HEAVY!r} & set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=tmp_path
    )
    assert done.stdout.split() == [str(answer), "[]"]
    assert told in done.stderr
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize(
    "typed",
    [
        "--resolution 0",
        "--resolution nan",
        "--resolution inf",
        "--resolution fine",
        "--smoothing-fwhm -1",
        "--smoothing-fwhm nan",
        "--mem-gb 0",
        "--nprocs 0",
        "--nprocs 1.5",
        "--omp-nthreads -2",
        "--device gpu",
        "--device cuda:",
        "--stage none",
        "--skull-strip maybe",
        "--assume-orientation RAR",
        "--assume-orientation RA",
        "--assume-orientation /bids",
        "--pet-frames 4-",
        "--pet-frames 5-3",
        "--pet-frames -1",
        "--pet-frames 0-99999999999",
        "--bounding-box -78 -112 -50 78 76",
        "--bounding-box -78 -112 -50 78 76 nan",
        "--bounding-box 78 -112 -50 -78 76 85",
        "--derivatives lesions",
        "--derivatives lesion=/masks",
        "--derivatives lesions=/masks other=/masks",
        "--derivatives lesions=/one lesions=/two",
    ],
)
def test_a_wrong_value_is_64(typed):
    with pytest.raises(UsageError, match=typed.split()[0]):
        parse(*typed.split())


def test_a_name_of_derivatives_that_is_not_known_is_told_with_those_that_are():
    known = "NAME must be lesions, fmriprep, smriprep, petprep, clinica or mni"
    with pytest.raises(UsageError, match=f"'lesion' is unknown; {known}"):
        parse("--derivatives", "lesion=/masks")


@pytest.mark.parametrize(
    ("level", "unused"), [("participant", " lesions"), ("group", " fmriprep"), ("train", "")]
)
def test_a_dataset_that_the_level_has_no_use_for_is_told(level, unused, capsys):
    cli.parse(["/raw", "/out", level, "-d", "lesions=/masks", "fmriprep=/fmriprep"])
    told = f"warning: the level {level} does not use --derivatives{unused}\n"
    assert capsys.readouterr().err == told


@pytest.mark.parametrize("error", [NothingSelectedError("nothing is left"), UsageError("no")])
def test_what_a_user_can_mend_is_one_line(error, monkeypatch, capsys):
    def fail(argv):
        raise error

    monkeypatch.setattr(cli, "parse", fail)
    assert cli.main([]) == error.exit_code
    assert capsys.readouterr().err == f"error: {error}\n"


def test_an_interrupted_run_says_how_to_go_on(monkeypatch, capsys):
    def interrupt(argv):
        raise KeyboardInterrupt

    monkeypatch.setattr(cli, "parse", interrupt)
    assert cli.main([]) == 130
    assert "run the same command again" in capsys.readouterr().err


# Speed


def in_fresh_process(code):
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert told.returncode == 0, told.stderr
    return told.stdout


def test_help_is_quick():
    """Measured in CPU seconds, so that other load on the machine does not count."""
    told = in_fresh_process(
        "import atexit, time; atexit.register(lambda: print(time.process_time()))\n"
        "from bids_app.cli import main; main(['--help'])"
    )
    assert "--participant-label" in told
    assert float(told.splitlines()[-1]) < 1


def test_parsing_loads_nothing_heavy():
    told = in_fresh_process(
        "import sys, bids_app.cli as cli; cli.parse(['in', 'out', 'participant'])\n"
        f"print(sorted({HEAVY!r} & set(sys.modules)))"
    )
    assert told.strip() == "[]"


def test_the_process_that_builds_graphs_loads_neither_torch_nor_ants_nor_numba():
    """They compute in separate processes: CONTRIBUTING.md, "Processes"."""
    rooms = (
        *("app.participant", "app.train", "app.group", "plan.train", "report.train"),
        *("workflows.participant", "workflows.training", "workflows.group", "workflows.execution"),
        *("derivatives.table1", "derivatives.find", "derivatives.tables"),
        *("synthesis.evaluation", "synthesis.statistics"),
    )
    told = in_fresh_process(
        "import sys, bids_app.app.main\n"
        f"print([room for room in {rooms!r} if f'bids_app.{{room}}' not in sys.modules])\n"
        "heavy = {'torch', 'numba', 'SimpleITK', 'dipy', 'deepbet'}\n"
        "print(sorted(heavy & set(sys.modules)))"
    )
    assert told.splitlines() == ["[]", "[]"]


def test_version_is_that_of_the_distribution(capsys):
    assert exit_code("--version") == 0
    assert capsys.readouterr().out == f"mri2pet {version('mri2pet')}\n"
