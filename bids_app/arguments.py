"""Argument parsing shared by all programs; imports little, so that ``--help`` is quick."""

import argparse
import codecs
import difflib
import io
import math
import os
import re
import sys
import warnings
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager, suppress
from copy import copy
from pathlib import Path
from typing import Any, NoReturn, TextIO, cast

from bids_app.errors import (
    InvalidBidsError,
    MissingInputError,
    Mri2petError,
    ReadWriteError,
    UsageError,
)
from bids_app.files import read_text, split_lines
from bids_app.lifeline import ended_by_signals

INTERRUPTED = 130  # a shell's code for SIGINT
UNSHOWABLE = "mri2pet"  # name under which :func:`_in_other_words` is registered with codecs
OTHER_WORDS = str.maketrans("—–−×³²·“”’", '---x32*""\'') | str.maketrans(
    {"…": "...", "±": "+-", "→": "->"}
)
UNRECOGNIZED = re.compile("unrecognized arguments: (.*)")  # argparse's messages
WRONG_CHOICE = re.compile(r".*invalid choice: '(.*)' \(choose from (.*)\)")
CLOSE = 0.7  # similarity, of 1, from which an option is suggested; our choice
REQUIRED = "the following arguments are required"
STREAMS = ("stdin", "stdout", "stderr")


class Parser(argparse.ArgumentParser):
    """Argument parser that answers a wrong command line with a ``UsageError`` of one line.

    Parameters
    ----------
    common : collection of str
        ``dest`` of the arguments that ``--help`` shows; ``--help-all`` shows all. By default, there
        is only ``--help``, which shows all.
    **options
        Options of ``argparse.ArgumentParser``.

    Attributes
    ----------
    source : str
        Origin of the parsed arguments, for error messages; empty for the command line.
    """

    def __init__(self, *, common: Collection[str] = (), **options: Any) -> None:
        options = {"formatter_class": HelpFormatter, **options}
        super().__init__(**options, add_help=False) if common else super().__init__(**options)
        self.common, self.source = common, ""
        self._given = list[str]()
        if common:
            texts = "show the most common options and exit", "show all options and exit"
            self.add_argument("-h", "--help", action=_Help, help=texts[0])
            self.add_argument("--help-all", "--help_all", action=_HelpAll, help=texts[1])

    def parse_known_args(self, args=None, namespace=None):  # type: ignore[no-untyped-def]  # argparse's types are overloads
        """Parse as argparse does, and keep the arguments for error messages."""
        self._given = list(sys.argv[1:] if args is None else args)
        return super().parse_known_args(args, namespace)

    def error(self, message: str) -> NoReturn:
        for flag in self._option_string_actions:
            if "_" in flag:  # the second spelling of a flag
                message = message.replace(f"/{flag}", "")
        source = f"{self.source}: " if self.source else ""
        sentences = [f"{source}{message}", *self._hints(message)]
        raise UsageError(f"{'; '.join(sentences)}; see {self.prog} --help")

    def _hints(self, message: str) -> Iterator[str]:
        """Suggest what may have been meant."""
        unknown, choice = UNRECOGNIZED.match(message), WRONG_CHOICE.match(message)
        known = [flag for flag in self._option_string_actions if re.fullmatch("--[a-z-]+", flag)]
        words = unknown[1].split() if unknown else []
        words = [word.partition("=")[0].replace("_", "-") for word in words]
        if choice:
            words, known = [choice[1]], re.findall(r"[\w-]+", choice[2])
        for word in words:
            near = difflib.get_close_matches(word, known, n=1, cutoff=CLOSE)
            yield from (f"did you mean {name}?" for name in near)
        if message.startswith(REQUIRED):
            yield from self._order_hint(message)

    def _order_hint(self, message: str) -> Iterator[str]:
        """Say that paths come first, if one is missing and an option may have taken it."""
        paths = [action for action in self._actions if not action.option_strings]
        names = [str(path.metavar or path.dest) for path in paths]
        options = self._option_string_actions
        greedy = any(options[word].nargs == "+" for word in self._given if word in options)
        words = [word for word in self._given if not word.startswith("-")]
        if greedy and len(words) >= len(paths) and any(name in message for name in names):
            first = " ".join(re.sub("{.*}", "level", name) for name in names).upper()
            yield f"give {first} first, because an option that takes several values has taken them"

    def format_common_help(self) -> str:
        """Format the help of the most used arguments."""
        formatter = self._get_formatter()
        formatter.add_usage(self.usage, self._actions, self._mutually_exclusive_groups)
        formatter.add_text(self.description)
        for group in self._action_groups:
            actions = [a for a in group._group_actions if a.dest in self.common]
            if actions:
                formatter.start_section(group.title)
                formatter.add_arguments(actions)
                formatter.end_section()
        formatter.add_text(self.epilog)
        return formatter.format_help()


class HelpFormatter(argparse.HelpFormatter):
    """Help formatter that hides spellings with ``_`` and keeps the line breaks of texts."""

    def _format_action_invocation(self, action: argparse.Action) -> str:
        shown = copy(action)
        shown.option_strings = [flag for flag in action.option_strings if "_" not in flag]
        return super()._format_action_invocation(shown)

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        return text if "\n" in text else super()._fill_text(text, width, indent)


class _Help(argparse.Action):
    """Action that prints the help of the most used arguments and exits."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **{**options, "nargs": 0, "default": argparse.SUPPRESS})

    def __call__(self, parser: argparse.ArgumentParser, *_: object) -> None:
        sys.stdout.write(self.text(cast("Parser", parser)))
        parser.exit()

    @staticmethod
    def text(parser: Parser) -> str:
        """Return the text to print."""
        return parser.format_common_help()


class _HelpAll(_Help):
    """Action that prints the help of all arguments and exits."""

    @staticmethod
    def text(parser: Parser) -> str:
        """Return the text to print."""
        return parser.format_help()


def add_option(
    to: argparse._ActionsContainer,
    usage: str,
    text: str,
    read: Callable[[str], object] | None = None,
    **options: Any,
) -> None:
    """Add an option to a parser or argument group, spelled with ``-`` and with ``_``.

    If an option that takes several values is given again, its values are added to the first ones.
    An option without placeholder, type, choices and action is a switch.

    Parameters
    ----------
    to : ArgumentParser or group
        Parser or group to change.
    usage : str
        One flag, or a short and a long one, and the placeholders of its values:
        ``-w --work-dir DIR``.
    text, read, options
        ``help``, ``type`` and further options of ``add_argument``.
    """
    flags = [word for word in usage.split() if word.startswith("-")]
    values = tuple(usage.split()[len(flags) :])
    if values:
        options["metavar"] = values if len(values) > 1 else values[0]
    if read is not None:
        options["type"] = read
    if options.get("nargs") == "+":
        options["action"] = "extend"
    elif not (values or read or "choices" in options or "action" in options):
        options["action"] = "store_true"
    spellings = [{flag: 0, flag[:2] + flag[2:].replace("-", "_"): 0} for flag in flags]
    to.add_argument(*(name for pair in spellings for name in pair), help=text, **options)


def absolute_path(text: str) -> Path:
    """Read a path from the command line or a file of settings, and make it absolute.

    Raises
    ------
    ArgumentTypeError
        If the text cannot be a path.
    ReadWriteError
        If the path is relative and the current folder no longer exists.
    """
    if not text or "\0" in text:
        raise argparse.ArgumentTypeError(f"{text!r} is not a valid path")
    try:
        return Path(text).absolute()
    except FileNotFoundError:
        raise _no_folder() from None


def number_reader(
    kind: type[int] | type[float], may_be: Callable[[float], bool], otherwise: str
) -> Callable[[str], float]:
    """Create a function that reads a number and refuses those that ``may_be`` rejects."""

    def read(text: str) -> float:
        try:
            value = kind(text)
        except ValueError:
            name = "a whole number" if kind is int else "a number"
            raise argparse.ArgumentTypeError(f"{text!r} is not {name}") from None
        if not may_be(value):
            raise argparse.ArgumentTypeError(f"{text} {otherwise}")
        return value

    read.__name__ = kind.__name__  # by which the descriptor knows the type
    return read


positive = number_reader(float, lambda value: 0 < value < math.inf, "is not above 0")
not_negative = number_reader(float, lambda value: 0 <= value < math.inf, "is below 0")


def refuse_inverted(box: Sequence[float]) -> None:
    """Check that the first corner of ``--bounding-box`` lies below the second.

    Raises
    ------
    UsageError
        If it does not, or a coordinate is not finite.
    """
    sides = zip(box[:3], box[3:], strict=True)
    if not all(-math.inf < low < high < math.inf for low, high in sides):
        raise UsageError("--bounding-box: x0 y0 z0 must lie below x1 y1 z1; give both in mm, RAS+")


class PrintCompletion(argparse.Action):
    """Action that prints the completion script for a shell and exits."""

    def __call__(self, parser: argparse.ArgumentParser, *values: Any) -> None:
        import shtab

        for action in parser._actions:
            if action.dest.endswith("_dir"):
                action.complete = shtab.DIRECTORY  # type: ignore[attr-defined]  # shtab's own
            elif action.type is absolute_path:
                action.complete = shtab.FILE  # type: ignore[attr-defined]  # shtab's own
        sys.stdout.write(shtab.complete(parser, str(values[1])))
        parser.exit()


def refuse_lost_folder() -> None:
    """Check that the current folder still exists, because libraries ask for it.

    Raises
    ------
    ReadWriteError
        If the current folder was deleted.
    """
    try:
        Path.cwd()
    except FileNotFoundError:
        raise _no_folder() from None


def refuse_other_than_bids(bids_dir: Path) -> None:
    """Check that a path can be the root of a BIDS dataset.

    Raises
    ------
    MissingInputError
        If it does not exist.
    InvalidBidsError
        If it is not a folder, or has no ``dataset_description.json``.
    """
    if not bids_dir.exists():
        raise MissingInputError(f"{bids_dir}: no such folder; check the path of the BIDS dataset")
    if not bids_dir.is_dir():
        raise InvalidBidsError(f"{bids_dir}: not a folder; give the root of a BIDS dataset")
    if not (bids_dir / "dataset_description.json").is_file():
        raise InvalidBidsError(
            f"{bids_dir}: has no dataset_description.json; give the root of a BIDS dataset"
        )


def _no_folder() -> ReadWriteError:
    return ReadWriteError(
        "the current folder was deleted; change to an existing folder and run the command again"
    )


def _in_other_words(error: UnicodeError) -> tuple[str | bytes, int]:
    """Replace a character that an encoding lacks.

    Undecodable bytes of file names are written unchanged, other characters by similar ones.
    """
    if not isinstance(error, UnicodeEncodeError):
        raise error
    sign = error.object[error.start]
    if "\udc80" <= sign <= "\udcff":  # a byte that is not UTF-8, as Python represents it (PEP 383)
        return bytes([ord(sign) - 0xDC00]), error.start + 1
    known = sign.translate(OTHER_WORDS)
    return known if known.isascii() else "?", error.start + 1


def read_names_as_utf8() -> None:
    """Restart the program in Python's UTF-8 mode (PEP 540) if file names are not read as UTF-8.

    ITK and the validator read names as UTF-8, whatever the locale: in another locale, a dataset in
    ``données`` would not be found. Messages keep the encoding of the locale, unless that is ASCII:
    then UTF-8 is assumed of the terminal, as Python itself does.
    """
    encoding = codecs.lookup(sys.getfilesystemencoding()).name
    if encoding == "utf-8" or sys.flags.utf8_mode or not sys.executable:
        return
    if encoding != "ascii":
        os.environ.setdefault("PYTHONIOENCODING", encoding)
    os.environ["PYTHONUTF8"] = "1"  # for child processes
    os.execv(sys.executable, [sys.executable, "-X", "utf8", *sys.orig_argv[1:]])


class _Steady:
    """Output stream whose write errors are recorded but not raised, so that a run continues.

    Parameters
    ----------
    stream : text stream
        Stream that everything is passed on to.
    """

    def __init__(self, stream: Any) -> None:
        self.stream = stream
        self.error: OSError | None = None

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stream, name)

    def write(self, text: str) -> int:
        """Write text, if possible."""
        with self._losing():
            self.stream.write(text)
        return len(text)

    def flush(self) -> None:
        """Flush the stream, if possible."""
        with self._losing():
            self.stream.flush()

    @contextmanager
    def _losing(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            self.error = self.error or error
            with suppress(OSError, ValueError):  # discard what is buffered, also at exit
                nowhere = os.open(os.devnull, os.O_WRONLY)
                os.dup2(nowhere, self.stream.fileno())
                os.close(nowhere)


def _fill_gaps() -> None:
    """Open closed standard streams; otherwise, the next file opened would become one of them."""
    for number in range(len(STREAMS)):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # receives the lowest free descriptor
    for name in STREAMS:
        if getattr(sys, name) is None:
            mode = "r" if name == "stdin" else "w"
            setattr(sys, name, open(os.devnull, mode, encoding="utf-8"))  # noqa: PTH123, SIM115 - it stays open


@contextmanager
def steady_streams() -> Iterator[_Steady]:
    """Keep a program from ending in a traceback because its messages cannot be written.

    A terminal may support ASCII only, a reader may have closed the pipe (``| head -1``), a disk may
    be full, or the streams may be closed.

    Yields
    ------
    _Steady
        The standard output.
    """
    codecs.register_error(UNSHOWABLE, _in_other_words)
    _fill_gaps()
    before = sys.stdout, sys.stderr
    for stream in before:
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors=UNSHOWABLE)
    out, err = map(_Steady, before)
    sys.stdout, sys.stderr = cast("TextIO", out), cast("TextIO", err)
    try:
        yield out
    finally:
        out.flush()
        err.flush()
        sys.stdout, sys.stderr = before


def show_warnings() -> None:
    """Show the warnings that ``python -W error`` would raise, because libraries emit some.

    Processes started later inherit this.
    """

    def shown(option: str) -> str:
        action, colon, rest = option.partition(":")
        return f"default{colon}{rest}" if action and "error".startswith(action) else option

    sys.warnoptions[:] = map(shown, sys.warnoptions)
    named = os.environ.get("PYTHONWARNINGS")
    if named:
        os.environ["PYTHONWARNINGS"] = ",".join(map(shown, named.split(",")))
    if any(entry[0] == "error" for entry in warnings.filters):
        kept = [
            ("default" if entry[0] == "error" else entry[0], *entry[1:])
            for entry in warnings.filters
        ]
        warnings.resetwarnings()  # also clears the cache of filters
        cast("list[object]", warnings.filters)[:] = kept


def run_program(run: Callable[[], int], *, interrupted: str) -> int:
    """Run a program, report errors in one sentence, and return the exit code of BEP027.

    Parameters
    ----------
    run : callable
        Function that reads the command line and returns an exit code.
    interrupted : str
        Sentence printed after Ctrl-C or another terminating signal: what to do next.
    """
    with steady_streams() as out:
        show_warnings()
        try:
            code = _code_of(run, interrupted)
        except SystemExit as stop:  # raised by argparse, for example after --help
            code = stop.code if isinstance(stop.code, int) else 0
            out.flush()
            if _lost(out) and not code:
                raise SystemExit(ReadWriteError.exit_code) from None
            raise
        out.flush()
        return ReadWriteError.exit_code if _lost(out) and not code else code


def _lost(out: _Steady) -> bool:
    """Report an output that could not be written, unless its reader closed the pipe."""
    if out.error is None or isinstance(out.error, BrokenPipeError):
        return False
    sys.stderr.write(f"error: standard output: {out.error.strerror}; some output was lost\n")
    return True


def _code_of(run: Callable[[], int], interrupted: str) -> int:
    try:
        with ended_by_signals(interrupted):
            return run()
    except Mri2petError as error:
        sys.stderr.write(f"error: {error}\n")
        return error.exit_code
    except OSError as error:
        place = "" if error.filename is None else f"{error.filename}: "
        sys.stderr.write(f"error: {place}{error.strerror or error}\n")
        return ReadWriteError.exit_code
    except KeyboardInterrupt:
        sys.stderr.write(f"{interrupted}\n")
        return INTERRUPTED


LABEL = re.compile(r"[0-9A-Za-z+]+")  # BIDS 1.10, "Filesystem structure": alphanumeric, or plus
AXES = {"R": 0, "L": 0, "A": 1, "P": 1, "S": 2, "I": 2}  # world axis of each direction
LESIONS = "lesions"  # name of the dataset of lesion masks in --derivatives
PETPREP, CLINICA, MNI = "petprep", "clinica", "mni"
WITH_PET = (PETPREP, CLINICA, MNI)  # datasets that may hold PET
IN_TEMPLATE = (CLINICA, MNI)  # datasets with images in MNI space
PREPROCESSED = ("fmriprep", "smriprep", *WITH_PET)  # datasets that participant can start from
PREFIXES = ("sub-", "ses-", "trc-", "run-")


def _lines(path: Path) -> list[str]:
    if not path.is_file():
        raise UsageError(
            f"{path}: neither a label (letters and digits, several separated by spaces) nor a "
            "text file with one label per line"
        )
    try:
        lines = split_lines(read_text(path))
    except Mri2petError as error:
        raise UsageError(f"{path}: cannot be read as a list of labels ({error})") from error
    labels = [line.partition("#")[0].strip() for line in lines]
    if not any(labels):
        raise UsageError(f"{path}: contains no label; write one per line")
    return [label for label in labels if label]


def normalize_labels(values: Sequence[str], prefix: str) -> tuple[str, ...]:
    """Remove prefixes and duplicates from labels, keeping their order.

    Parameters
    ----------
    values : sequence of str
        Labels with or without their prefix. Any other value is the path of a text file with one
        label per line (``#`` starts a comment), written ``./name`` if its name could be a label.
    prefix : {"sub-", "ses-", "trc-", "run-"}
        Prefix to remove.

    Raises
    ------
    UsageError
        If a value is neither a label nor a readable file, or the file contains no label.

    Examples
    --------
    >>> normalize_labels(["sub-01", "02", "01"], "sub-")
    ('01', '02')
    """
    if prefix not in PREFIXES:
        raise ValueError(f"{prefix!r} is not one of {PREFIXES}")
    labels: dict[str, None] = {}
    for value in values:
        bare = value.strip().removeprefix(prefix)
        if LABEL.fullmatch(bare):
            labels[bare] = None
            continue
        for line in _lines(Path(value)):
            label = line.removeprefix(prefix)
            if not LABEL.fullmatch(label):
                raise UsageError(f"{value}: {line!r} is not a label; use letters and digits")
            labels[label] = None
    return tuple(labels)


def same_run(one: str, other: str) -> bool:
    """Check whether two run labels are the same index.

    Examples
    --------
    >>> same_run("01", "1"), same_run("1", "2")
    (True, False)
    """
    if one.isdecimal() and other.isdecimal():
        return one.lstrip("0") == other.lstrip("0")  # int() refuses more than 4300 digits
    return one == other


def axis_code(text: str) -> str:
    """Check an axis code (the directions of an array's axes) and return it in upper case.

    Raises
    ------
    ValueError
        If the code does not name each of the three world axes exactly once.

    Examples
    --------
    >>> axis_code("lps")
    'LPS'
    """
    code = text.upper()
    if sorted(AXES.get(letter, -1) for letter in code) != [0, 1, 2]:
        raise ValueError(f"{text!r} is not an axis code such as RAS, LAS or LPS")
    return code
