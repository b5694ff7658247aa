"""Conversion of arguments to settings. Nothing heavy is imported before arguments are parsed."""

import argparse
import os
import re
import sys
import tomllib
from collections.abc import Callable, Sequence
from dataclasses import fields, replace
from difflib import get_close_matches
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

from bids_app.arguments import (
    LESIONS,
    PREPROCESSED,
    Parser,
    PrintCompletion,
    absolute_path,
    add_option,
    axis_code,
    normalize_labels,
    not_negative,
    number_reader,
    positive,
    read_names_as_utf8,
    refuse_inverted,
    refuse_lost_folder,
    refuse_other_than_bids,
    run_program,
)
from bids_app.detection.detectors import (
    CHANNELS,
    DEFAULT_DETECTORS,
    DETECTORS,
    DIRECTIONS,
    TRAINING_SETS,
)
from bids_app.errors import MissingInputError, Mri2petError, UsageError
from bids_app.files import read_json, read_text
from bids_app.lifeline import exit_with
from bids_app.resources import DEVICE, writable_caches
from bids_app.settings import (
    FULL_RESOLUTION,
    LEVELS,
    SCORE_FWHM,
    SLOPPY_RESOLUTION,
    USED_BY,
    Settings,
)
from bids_app.synthesis.models import CONDITIONED, MODELS, TISSUE, TRAINABLE

UNITS = {"K": 1e-6, "": 1e-3, "M": 1e-3, "G": 1.0, "T": 1e3}  # units of memory, in GB
UNKNOWN_LEVEL = 17  # BEP027
BOX_SIDES = 6
MOST_VERBOSE = 2
LARGEST_SEED = 4294967294  # ITK counts seeds from 1, in 32 bits
LAST_FRAME = 32766  # NIfTI-1 allows at most 32767 frames
MOST_USUAL = "LAS"  # orientation that nibabel, SPM and FSL assume if an image has none
NAMES = {"models", "training_set", "detectors", "covariates"}  # duplicates are dropped
TUPLES = NAMES | {"bounding_box", "derivatives"}
PLACES = ("bids_dir", "output_dir", "level")  # settings given on the command line only
FILES = ("bids_filter_file", "detector", "lpips_weights", "ratings", "use_plugin")  # files to read
DATASETS = {"participant": PREPROCESSED, "group": (LESIONS,)}  # used by levels
FLAGS = {"validate": "--skip-bids-validation"}  # flags not named after their setting
LABELS = {
    "participant_label": "sub-",
    "exclude_participant_label": "sub-",
    "session_label": "ses-",
    "run_label": "run-",
    "tracer_label": "trc-",
}


_share = number_reader(float, lambda value: 0 < value < 1, "is not between 0 and 1")
_count = number_reader(int, lambda value: value >= 1, "is not a whole number above 0")
_seed = number_reader(
    int, lambda value: 0 <= value <= LARGEST_SEED, f"is not between 0 and {LARGEST_SEED}"
)


def _memory(text: str) -> float:
    """Convert an amount of memory, in MB or with a unit as in nipreps' apps, to GB."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?)([KMGT]?)B?", text.upper())
    if not found or not float(found[1]):
        raise argparse.ArgumentTypeError(
            f"{text!r} is not an amount of memory such as 8000 (MB) or 8G"
        )
    return float(found[1]) * UNITS[found[2]]


def _device(text: str) -> str:
    if not DEVICE.fullmatch(text):
        raise argparse.ArgumentTypeError(f"{text!r} is not auto, cpu, cuda or cuda:N")
    return text


def _orientation(text: str) -> str:
    try:
        return axis_code(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{error}") from error


def _frames(text: str) -> tuple[int, ...]:
    found = re.fullmatch(r"(\d+)(?:-(\d+))?", text)
    if not found:
        raise argparse.ArgumentTypeError(f"{text!r} is not a frame (3) or a range of frames (3-6)")
    first, last = int(found[1]), int(found[2] or found[1])
    if last < first:
        raise argparse.ArgumentTypeError(f"{text!r} ends before it begins")
    if last > LAST_FRAME:
        raise argparse.ArgumentTypeError(f"{text!r}: no image has frames beyond {LAST_FRAME}")
    return tuple(range(first, last + 1))


def _named_path(text: str) -> tuple[str, Path]:
    name, equals, path = text.partition("=")
    if not (name and equals and path):
        raise argparse.ArgumentTypeError(f"{text!r} is not NAME=PATH")
    if name not in (LESIONS, *PREPROCESSED):
        known = f"{LESIONS}, {', '.join(PREPROCESSED[:-1])} or {PREPROCESSED[-1]}"
        raise argparse.ArgumentTypeError(f"{name!r} is unknown; NAME must be {known}")
    return name, absolute_path(path)


def _group(parser: argparse.ArgumentParser, title: str) -> Callable[..., None]:
    """Create a group of options; options not given are absent from the namespace."""
    return partial(add_option, parser.add_argument_group(title), default=argparse.SUPPRESS)


def _add_selection(parser: argparse.ArgumentParser) -> None:
    add = _group(parser, "which images")
    for name, prefix, images in (
        ("participant", "sub-", "participants"),
        ("exclude-participant", "sub-", "all but these"),
        ("session", "ses-", "sessions"),
        ("run", "run-", "runs"),
    ):
        add(
            f"--{name}-label LABEL",
            f"{images}, with or without {prefix}; or a text file with one label per line",
            nargs="+",
        )
    add(
        "--tracer-label LABEL",
        "tracer labels (trc-) to use as FDG, if neither they nor TracerName say FDG",
        nargs="+",
    )
    add(
        "--bids-filter-file FILE",
        'filters as JSON: {"t1w": {"acquisition": "mprage"}, "pet": {"reconstruction": "acdyn"}}',
        absolute_path,
    )
    add("--bids-database-dir DIR", "where pybids keeps its index", absolute_path)
    add(
        "--skip-bids-validation",
        "do not run the BIDS validator over BIDS_DIR first",
        dest="validate",
        action="store_false",
    )
    add(
        "-d --derivatives NAME=PATH",
        "participant starts from results of fmriprep=PATH, smriprep=, petprep= or clinica=, or "
        "from images in MNI space, mni=; group compares clusters with masks in lesions=PATH, "
        "sub-X/anat/sub-X_space-T1w_label-L_mask.nii.gz (or .nii)",
        _named_path,
        nargs="+",
    )


def _add_participant(parser: argparse.ArgumentParser) -> None:
    add = _group(parser, "participant")
    add("--template NAME", f"TemplateFlow name; the default, {Settings.template}, needs no network")
    add(
        "--bounding-box MM",
        "corners of the grid in template space: x0 y0 z0 x1 y1 z1 in mm, RAS+; default "
        f"{' '.join(f'{side:g}' for side in Settings.bounding_box)}",
        float,
        nargs=BOX_SIDES,
    )
    add(
        "--resolution MM",
        f"voxel size; default {FULL_RESOLUTION:g} mm, {SLOPPY_RESOLUTION:g} mm with --sloppy",
        positive,
    )
    add(
        "--skull-strip",
        "auto (the default) detects T1w that are already stripped",
        choices=("auto", "force", "skip"),
    )
    add(
        "--assume-orientation CODE",
        "assume this order of voxels (LAS, RAS, …: the directions of the axes) for images whose "
        "headers do not define left and right (sform and qform codes are 0); without CODE: "
        f"{MOST_USUAL}, as in nibabel and SPM. Without this option, such images are refused",
        _orientation,
        nargs="?",
        const=MOST_USUAL,
    )
    add(
        "--pet-frames FRAME",
        "frames of a dynamic PET to average, counted from 0, such as 3 4 5 or 3-5; default all",
        _frames,
        nargs="+",
    )
    add(
        "--generator NAME|PATH",
        "a folder with weights and card, or the name of one in OUTPUT_DIR/generators; "
        "default: the demonstration generator that comes with mri2pet",
    )
    add(
        "--smoothing-fwhm MM",
        f"smoothing of the synthetic PET (FWHM); default {Settings.smoothing_fwhm:g} mm",
        not_negative,
    )
    add(
        "--stage",
        "only bring images into template space, or only synthesize PET from those; default all",
        choices=("all", "preprocess", "synthesize"),
    )


def _add_beyond(parser: argparse.ArgumentParser) -> None:
    add = _group(parser, "participant, beyond the paper")
    add(
        "--paper",
        "follow the paper. participant: divide PET by the 99.9th percentile of the brain, not by "
        "2.5 times its mean; participant and train: --no-overlap; group: --direction both "
        "--score-smoothing 0",
    )
    add(
        "--overlap",
        "semi-3D generators: triplets start at every slice, and the predictions for a slice are "
        "averaged; this is the default",
    )
    add(
        "--no-overlap",
        "semi-3D generators: non-overlapping triplets, as in the paper, with visible bands "
        "between them",
        action="store_false",
        dest="overlap",
    )
    add(
        "--match-histogram",
        "give the synthetic PET the intensities of the mean PET of the training controls",
    )
    add(
        "--uncertainty",
        "also write the expected error of the synthetic PET, as a standard deviation "
        "(desc-synth_std)",
    )
    add("--novelty", "report how unusual the T1w is, compared with those of the training controls")


def _add_people(parser: argparse.ArgumentParser) -> None:
    add = _group(parser, "train and group")
    add(
        "--control-query QUERY",
        f"selects the controls in participants.tsv; default {Settings.control_query!r}",
    )
    add("--folds N", f"number of cross-validation folds; default {Settings.folds}", _count)
    add(
        "--ratings FILE",
        "exclude participants rated fail in this table, as saved by participants.html",
        absolute_path,
    )


def _add_train(parser: argparse.ArgumentParser) -> None:
    add = _group(parser, "train")
    add(
        "--models NAME",
        f"default all: the paper's networks ({', '.join(MODELS)}), and tissue (not a network)",
        nargs="+",
        choices=TRAINABLE,
    )
    add(
        "--condition",
        "beyond the paper: networks take the tissue model's prediction as an additional input, and "
        f"correct it; these models, such as {next(iter(CONDITIONED))}, replace the paper's",
        choices=(TISSUE,),
    )
    add(
        "--init NAME|PATH",
        "start from a generator of the same architecture, or shrink tissue models towards its "
        "coefficients: default (the tissue model that comes with mri2pet), the name of one in "
        "OUTPUT_DIR/generators, or a folder; it must not have been trained on any of the controls",
    )
    add(
        "--epochs N",
        "maximum number; default 200 for semi-3D, 100 for 3D-patch, as in the paper",
        _count,
    )
    add(
        "--batch-size N",
        "inputs per step; default 5 for semi-3D, 10 for 3D-patch, as in the paper",
        _count,
    )
    add("--width N", "feature maps of the first convolution; default 64", _count)
    add(
        "--patches",
        "3D-patch: cubes inside the brain, drawn anew for each epoch (the default), or all",
        choices=("brain", "all"),
    )
    add(
        "--lpips-weights FILE",
        "weights of AlexNet and LPIPS v0.1; default: $MRI2PET_LPIPS_WEIGHTS; without them, LPIPS "
        "is n/a",
        absolute_path,
    )


def _add_group(parser: argparse.ArgumentParser) -> None:
    add = _group(parser, "group")
    add(
        "--patient-query QUERY",
        f"selects the patients in participants.tsv; default {Settings.patient_query!r}",
    )
    add(
        "--training-set SET",
        "real (the default): real PET of controls; hybrid: also synthetic PET of controls without "
        "a real one; synthetic: only synthetic PET. A run can use several; maps of the first go to "
        "the participants' folders",
        nargs="+",
        choices=TRAINING_SETS,
    )
    add(
        "--synthetic-controls",
        "controls whose synthetic PET is used by hybrid and synthetic: those without a real PET "
        "(the default), or all",
        choices=("t1w-only", "all"),
    )
    add(
        "--detectors NAME",
        f"one or more of {', '.join(DETECTORS)}; default {' '.join(DEFAULT_DETECTORS)}",
        nargs="+",
        choices=tuple(DETECTORS),
    )
    add(
        "--detector PATH",
        "apply a detector of an earlier run, OUTPUT_DIR/detectors/SET, without training",
        absolute_path,
    )
    add(
        "--direction",
        "which uptake is abnormal: lower than in controls (hypo, the default), higher (hyper), or "
        "either (both, the default with --paper)",
        choices=tuple(DIRECTIONS),
    )
    add(
        "--score-smoothing MM",
        "smoothing (FWHM) of one-class SVM maps before clusters are found; default "
        f"{SCORE_FWHM:g} mm, 0 with --paper",
        not_negative,
    )
    add(
        "--channels NAME",
        "images from which one-class SVMs take patches: pet (the default, as in the paper), or "
        "t1w+pet",
        choices=CHANNELS,
    )
    add(
        "--covariates COLUMN",
        "columns of participants.tsv, such as age, sex or scanner, whose effect, estimated in the "
        "controls, is removed from all PET; none by default",
        nargs="+",
    )
    add(
        "--nu NU",
        f"share of outliers among the controls (one-class SVM); default {Settings.nu:g}",
        _share,
    )
    add("--clusters N", f"clusters to keep per patient; default {Settings.clusters}", _count)
    add(
        "--expected-false N",
        "keep clusters down to the score that N clusters (such as 0.5 or 1) of a held-out control "
        "reach on average; never more than --clusters",
        positive,
    )
    add(
        "--min-cluster-size MM3",
        f"least volume of a cluster; default {Settings.min_cluster_size:g} mm³",
        not_negative,
    )
    add(
        "--cluster-extent SHARE",
        f"share of the brain above each map's threshold; default {Settings.cluster_extent:g}",
        _share,
    )
    add(
        "--atlas NAME",
        "atlas that names the places of clusters: one of TemplateFlow, such as "
        "Schaefer2018:200Parcels7Networks, or two files, a label image in the template's space and "
        "a table of the names of its labels (columns index and name); default: the coarse atlas of "
        "lobes and nuclei that comes with the app (MNI space)",
        nargs="+",
    )


def _add_resources(parser: argparse.ArgumentParser) -> None:
    add = _group(parser, "resources")
    add("--nprocs --nthreads --n-cpus N", "CPUs to use; default: all that are available", _count)
    add(
        "--omp-nthreads N",
        "threads of steps that can use several; default: the CPUs divided among the participants. "
        "Results do not depend on it, except those of training networks",
        _count,
    )
    add("--mem-gb GB", "memory; default: nine tenths of what is available", positive)
    add(
        "--mem --mem-mb MB",
        "the same as in nipreps' apps: in MB, or with a unit (16G)",
        _memory,
        dest="mem_gb",
    )
    add("--low-mem", "accepted, without effect: memory does not grow with the number of scans")
    add("--device", "device for networks: auto (the default), cpu, cuda or cuda:N", _device)
    add("--use-plugin FILE", "JSON or YAML with plugin and plugin_args of nipype", absolute_path)
    add("-w --work-dir DIR", "intermediate files; default: OUTPUT_DIR/.work", absolute_path)
    add("--clean-workdir", "delete intermediate files after success")
    add("--stop-on-first-crash", "stop the run at the first participant that fails")
    add(
        "--resource-monitor",
        "write time, CPU time and peak memory of each step to OUTPUT_DIR/logs/*_resources.tsv; for "
        "steps that --use-plugin submits to a queue, use the accounting of the queue instead",
    )


def _add_run(parser: argparse.ArgumentParser) -> None:
    add = _group(parser, "run")
    add("--sloppy", "4 mm voxels and coarse registration, for testing only")
    add(
        "--dry-run",
        "print which images would be used or refused, and an estimate of time, memory and disk "
        "space, and write nothing; the exit code is that of the run, as far as headers and tables "
        "can predict it",
    )
    add("--reports-only", "only write reports, from the files in OUTPUT_DIR")
    add("--boilerplate-only", "print the methods paragraph, and exit")
    add("--config-file TOML", "options by name; the command line overrides it", absolute_path)
    add("--random-seed N", f"default {Settings.random_seed}", _seed)
    add("--notrack", "accepted, without effect: nothing is ever tracked")
    add("-v --verbose", "print more; twice: all messages of nipype", action="count")


def _options() -> Parser:
    options = Parser(add_help=False, allow_abbrev=False, prog="mri2pet")
    for add in (
        _add_selection,
        _add_participant,
        _add_beyond,
        _add_people,
        _add_train,
        _add_group,
        _add_resources,
        _add_run,
    ):
        add(options)
    return options


class _SelfTest(argparse.Action):
    """Action that runs the self-test and exits, like ``--version``."""

    def __call__(self, parser: argparse.ArgumentParser, *_: object) -> None:
        with writable_caches(os.environ):
            from bids_app.app.selftest import self_test

            parser.exit(self_test())


class _PrintCompletion(PrintCompletion):
    """Action that prints the completion script, including the levels, which argparse lacks."""

    def __call__(self, parser: argparse.ArgumentParser, *values: Any) -> None:
        next(action for action in parser._actions if action.dest == "level").choices = LEVELS
        super().__call__(parser, *values)


def build_parser() -> Parser:
    """Build the parser of the command line."""
    parser = Parser(
        prog="mri2pet",
        usage="mri2pet BIDS_DIR OUTPUT_DIR {participant,train,group} [options]",
        allow_abbrev=False,
        common=COMMON.split(),
        parents=[_options()],
        description="Bring T1w MRI and FDG PET into MNI space, predict an FDG PET from the T1w "
        "(participant), train the generators that predict it (train), and map what is abnormal in "
        "the FDG PET of patients (group).",
        epilog=EXAMPLES,
    )
    parser.add_argument("bids_dir", type=absolute_path, help="BIDS dataset; never written to")
    parser.add_argument("output_dir", type=absolute_path, help="output folder for the derivatives")
    parser.add_argument("level", metavar="{" + ",".join(LEVELS) + "}", help="what to do")
    add = partial(add_option, parser, default=argparse.SUPPRESS)
    add(
        "--self-test",
        "check the installation on a simulated subject, and exit",
        action=_SelfTest,
        nargs=0,
    )
    add(
        "--print-completion",
        "print the completion script for a shell, and exit",
        action=_PrintCompletion,
        choices=("bash", "zsh", "tcsh"),
    )
    parser.add_argument("--version", action="version", version=f"mri2pet {version('mri2pet')}")
    return parser


COMMON = (  # arguments that --help shows
    "bids_dir output_dir level help help_all version participant_label template resolution "
    "generator control_query folds models epochs patient_query training_set detectors detector "
    "derivatives nprocs mem_gb work_dir sloppy dry_run config_file"
)
EXAMPLES = """\
examples:
  mri2pet BIDS OUT participant               all T1w and PET in MNI space, and synthetic PET
  mri2pet BIDS OUT participant --participant-label 01
  mri2pet BIDS OUT train --models tissue     a generator trained on your controls
  mri2pet BIDS OUT group -d lesions=MASKS    anomaly maps of patients, with known lesions
  mri2pet quick T1W.nii.gz PET.nii.gz OUT    one person, no BIDS dataset needed

Give BIDS_DIR, OUTPUT_DIR and the level first: some options take several values.
Underscores (--participant_label) work, too. See also mri2pet-simulate, -import and -fetch.

exit codes:
  0 done; 1 some participant failed; 16 not valid BIDS; 17 unknown level; 18 nothing
  selected; 64 usage; 65 unusable data; 66 input missing; 73 cannot create output; 74 read
  or write error; 129, 130, 143 ended by SIGHUP, Ctrl-C, SIGTERM
"""


def _read_config(path: Path) -> argparse.Namespace:
    """Read the options of ``--config-file`` as if they were given on the command line.

    The file is TOML, or the JSON record that a run leaves in ``OUTPUT_DIR/logs``.

    Raises
    ------
    MissingInputError
        If the file does not exist.
    UsageError
        If it cannot be understood.
    """
    arguments = argparse.Namespace()
    if not path.exists():
        raise MissingInputError(f"{path}: no such file; correct --config-file")
    try:
        text = read_text(path)
        table = _recorded(path) if path.suffix == ".json" else tomllib.loads(text)
    except UsageError:
        raise
    except Mri2petError as error:
        raise UsageError(f"{error}") from error
    except ValueError as error:  # not TOML, or a number with more digits than Python reads
        raise UsageError(f"{path}: not valid TOML ({error}); correct it") from error
    except RecursionError as error:
        raise UsageError(f"{path}: nested too deeply; correct it") from error
    for name, value in table.items():
        parser = _options()
        parser.source = f"{path}, line {_line_of(name, text)}"
        _refuse_form(parser, name, value)
        parser.parse_args(_option(path, name, value), arguments)
    return arguments


def _refuse_form(parser: Parser, name: str, value: object) -> None:
    """Refuse a value of another form than its option has, before it is read as text."""
    action = parser._option_string_actions.get("--" + name.replace("_", "-"))
    if action is None:
        return
    if action.dest == "config_file":
        raise UsageError(f"{parser.source}: {name} cannot name a second file; copy its lines here")
    if action.nargs == 0 and action.dest != "verbose" and not isinstance(value, bool):
        raise UsageError(f"{parser.source}: {name} is neither true nor false; correct it")
    if action.nargs is None and isinstance(value, list):
        raise UsageError(f"{parser.source}: {name} has one value, not a list; correct it")


def _line_of(name: str, text: str) -> int:
    """Return the number, from 1, of the first line that sets a name."""
    spelled = re.compile(rf"""\s*["']?{re.escape(name)}["']?\s*[=:]""")
    lines = text.splitlines()
    return next((n for n, line in enumerate(lines, 1) if spelled.match(line)), 1)


def _recorded(path: Path) -> dict[str, object]:
    """Read the settings that differ from the defaults from the record of a run.

    Raises
    ------
    UsageError
        If the file is not a record of a run.
    """
    run_record = read_json(path)
    settings = run_record.get("settings")
    if not isinstance(settings, dict):
        raise UsageError(f"{path}: not the record of a run; give one of OUTPUT_DIR/logs/run-*.json")
    usual = {field.name: field.default for field in fields(Settings)}
    table: dict[str, object] = {}
    for name, value in settings.items():
        plain = tuple(value) if isinstance(value, list) else value
        if (
            name in usual
            and name not in PLACES
            and plain != usual[name]
            and value not in (None, [])
        ):
            table[name] = value
    if "derivatives" in table:
        table["derivatives"] = [f"{name}={root}" for name, root in settings["derivatives"]]
    if table.pop("validate", True) is False:
        table["skip_bids_validation"] = True
    return table


def _option(path: Path, name: str, value: object) -> list[str]:
    """Write an entry of a file of settings as command-line arguments."""
    if isinstance(value, dict):
        raise UsageError(f"{path}: [{name}] is a table; write options at the top of the file")
    flag = "--" + name.replace("_", "-")
    if isinstance(value, bool):
        off = ["--no-overlap"] if name == "overlap" else []
        return [flag] if value else off
    if name == "verbose" and isinstance(value, int):
        return [flag] * min(value, MOST_VERBOSE)
    return [flag, *(str(item) for item in (value if isinstance(value, list) else [value]))]


def _refuse_twice(derivatives: tuple[tuple[str, Path], ...]) -> None:
    names = [name for name, _ in derivatives]
    if len(set(names)) < len(names):
        raise UsageError(f"--derivatives: {', '.join(names)}; give each name once")


def _with_atlas(settings: Settings, values: list[str]) -> Settings:
    """Add an atlas, given by its files or by its name, to the settings."""
    if (
        len(values) == 1
        and values[0]
        and not values[0].endswith((".nii", ".nii.gz"))
        and os.sep not in values[0]
    ):
        if settings.level != "group":
            return settings
        from bids_app.templates import atlas_of_templateflow  # slow to import

        return replace(settings, atlas=atlas_of_templateflow(values[0], settings.template))
    if len(values) != len(("image", "names")):
        raise UsageError(
            f"--atlas {' '.join(values)}: give the name of an atlas of TemplateFlow, or two files, "
            "a label image and the table of the names of its labels"
        )
    try:
        image, names = map(absolute_path, values)
    except argparse.ArgumentTypeError as error:
        raise UsageError(f"--atlas: {error}") from error
    return replace(settings, atlas=(image, names))


def _settings(options: dict[str, Any]) -> Settings:
    for internal in ("notrack", "low_mem", "config_file"):
        options.pop(internal, None)
    for name, prefix in LABELS.items():
        if name in options:
            options[name] = normalize_labels(options[name], prefix)
    for name in TUPLES & options.keys():
        options[name] = tuple(dict.fromkeys(options[name]) if name in NAMES else options[name])
    if "bounding_box" in options:
        refuse_inverted(options["bounding_box"])
    if "derivatives" in options:
        _refuse_twice(options["derivatives"])
    if "pet_frames" in options:
        options["pet_frames"] = tuple(sorted(set().union(*options["pet_frames"])))
    atlas = options.pop("atlas", None)
    settings = Settings(**options)
    return settings if atlas is None else _with_atlas(settings, atlas)


def parse(argv: Sequence[str] | None) -> Settings:
    """Parse the command line, and the file of settings that it names.

    Raises
    ------
    MissingInputError
        If the file of settings does not exist.
    UsageError
        If the command line, labels or the file of settings cannot be understood.
    SystemExit
        With code 17 if the level is unknown, and 0 after ``--help`` and ``--version``.
    """
    parser = build_parser()
    arguments = parser.parse_args(argv)
    if arguments.level not in LEVELS:
        near = get_close_matches(arguments.level, LEVELS, n=1)
        hint = f"did you mean {near[0]}? " if near else f"use one of {', '.join(LEVELS)}"
        if {arguments.bids_dir.name, arguments.output_dir.name} & set(LEVELS):
            hint = "give BIDS_DIR, OUTPUT_DIR and the level in this order"
        if get_close_matches(arguments.bids_dir.name, ["quick"]):
            hint = "did you mean mri2pet quick T1W OUT, with quick as the first word?"
        parser.exit(UNKNOWN_LEVEL, f"error: no level {arguments.level!r}; {hint.strip()}\n")
    if "config_file" in arguments:
        configured = _read_config(arguments.config_file)
        arguments = argparse.Namespace(**{**vars(configured), **vars(arguments)})
    _warn_unused(arguments)
    return _settings(vars(arguments))


def _unused(level: str) -> list[str]:
    """List the settings that a level does not use."""
    others = (names for levels, names in USED_BY.items() if level not in levels.split())
    return [name for names in others for name in names.split()]


def _flag(name: str) -> str:
    return FLAGS.get(name, "--" + name.replace("_", "-"))


def _warn_unused(arguments: argparse.Namespace) -> None:
    """Warn of given options that the level does not use."""
    flags = [_flag(name) for name in _unused(arguments.level) if name in arguments]
    names = DATASETS.get(arguments.level)
    if names is not None:
        datasets = [name for name, _ in vars(arguments).get("derivatives", ()) if name not in names]
        flags += [f"--derivatives {name}" for name in datasets]
    if flags:
        sys.stderr.write(f"warning: the level {arguments.level} does not use {', '.join(flags)}\n")


def _refuse_absent(settings: Settings) -> None:
    """Check paths early, because the modules that compute take seconds to import.

    Raises
    ------
    InvalidBidsError, MissingInputError
        If the input of the level, or a file or folder that an option names, does not exist.
    """
    if settings.level == "participant":
        refuse_other_than_bids(settings.bids_dir)
    for name in sorted(set(FILES) - set(_unused(settings.level))):
        path = getattr(settings, name)
        if path is not None and not path.exists():
            raise MissingInputError(f"{path}: no such file or folder; correct {_flag(name)}")
    for name, root in settings.derivatives:
        if name in DATASETS.get(settings.level, ()) and not root.exists():
            raise MissingInputError(f"{root}: no such folder; correct --derivatives {name}=PATH")
    if settings.level != "participant" and not settings.output_dir.exists():
        raise MissingInputError(
            f"{settings.output_dir}: no such folder; run the participant level first"
        )


def run_level(settings: Settings) -> int:
    """Run a level and return the exit code, or raise a ``Mri2petError``."""
    refuse_lost_folder()
    _refuse_absent(settings)
    with writable_caches(os.environ):
        from bids_app.app.main import run

        return run(settings)


def main(argv: Sequence[str] | None = None) -> int:
    """Run mri2pet and return the exit code of BEP027."""
    if argv is None:
        read_names_as_utf8()
    return run_program(
        lambda: run_level(parse(argv)), interrupted="stopped; run the same command again to resume"
    )


if __name__ == "__main__":
    exit_with(main())
