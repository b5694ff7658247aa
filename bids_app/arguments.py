"""What the command lines of all programs have in common; light, so that --help is quick."""

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

from bids_app.errors import Mri2petError, ReadWriteError, UsageError
from bids_app.files import read_text, split_lines
from bids_app.lifeline import ended_by_signals

INTERRUPTED = 130  # a shell's code for SIGINT
UNSHOWABLE = "mri2pet"  # how codecs know :func:`_in_other_words`
OTHER_WORDS = str.maketrans("—–−×³²·“”’", '---x32*""\'') | str.maketrans(
    {"…": "...", "±": "+-", "→": "->"}
)
UNRECOGNIZED = re.compile("unrecognized arguments: (.*)")  # what argparse says
CLOSE = 0.7  # of 1: so alike is what was meant; our choice
REQUIRED = "the following arguments are required"
STREAMS = ("stdin", "stdout", "stderr")


class Parser(argparse.ArgumentParser):
    """argparse, but a wrong command line is answered by one line, and the exit code 64.

    Parameters
    ----------
    common : collection of str
        ``dest`` of the arguments that ``--help`` tells of; ``--help-all`` tells of all. By default
        there is ``--help`` alone, for all.
    **options
        Of argparse.

    Attributes
    ----------
    source : str
        Where what is parsed was read, for errors; empty for the command line.
    """

    def __init__(self, *, common: Collection[str] = (), **options: Any) -> None:
        options = {"formatter_class": HelpFormatter, **options}
        super().__init__(**options, add_help=False) if common else super().__init__(**options)
        self.common, self.source = common, ""
        self._given = list[str]()
        if common:
            self.add_argument("-h", "--help", action=_Help, help="the options used most, and exit")
            self.add_argument(
                "--help-all", "--help_all", action=_HelpAll, help="all options, and exit"
            )

    def parse_known_args(self, args=None, namespace=None):  # type: ignore[no-untyped-def]  # argparse's types are overloads
        """Parse as argparse does; what was given is kept for its errors."""
        self._given = list(sys.argv[1:] if args is None else args)
        return super().parse_known_args(args, namespace)

    def error(self, message: str) -> NoReturn:
        source = f"{self.source}: " if self.source else ""
        sentences = [f"{source}{message}", *self._hints(message)]
        self.exit(UsageError.exit_code, f"error: {'; '.join(sentences)}; see {self.prog} --help\n")

    def _hints(self, message: str) -> Iterator[str]:
        """Guess what was meant."""
        unknown = UNRECOGNIZED.match(message)
        known = [flag for flag in self._option_string_actions if re.fullmatch("--[a-z-]+", flag)]
        for word in unknown[1].split() if unknown else ():
            near = difflib.get_close_matches(
                word.partition("=")[0].replace("_", "-"), known, n=1, cutoff=CLOSE
            )
            yield from (f"did you mean {flag}?" for flag in near)
        names = [action.dest for action in self._actions if not action.option_strings]
        words = [word for word in self._given if not word.startswith("-")]
        if message.startswith(REQUIRED) and len(words) >= len(names):
            first = " ".join(name.upper() for name in names)
            yield f"an option that takes several values has taken them, so give {first} first"

    def format_common_help(self) -> str:
        """Format what is said of the arguments that are used most."""
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
    """argparse's, but spellings with ``_`` are not told, and texts keep lines that they have."""

    def _format_action_invocation(self, action: argparse.Action) -> str:
        shown = copy(action)
        shown.option_strings = [flag for flag in action.option_strings if "_" not in flag]
        return super()._format_action_invocation(shown)

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        return text if "\n" in text else super()._fill_text(text, width, indent)


class _Help(argparse.Action):
    """Print the help of the arguments that are used most, and exit."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **{**options, "nargs": 0, "default": argparse.SUPPRESS})

    def __call__(self, parser: argparse.ArgumentParser, *_: object) -> None:
        sys.stdout.write(self.text(cast("Parser", parser)))
        parser.exit()

    @staticmethod
    def text(parser: Parser) -> str:
        """Give what is printed."""
        return parser.format_common_help()


class _HelpAll(_Help):
    """Print the help of all arguments, and exit."""

    @staticmethod
    def text(parser: Parser) -> str:
        """Give what is printed."""
        return parser.format_help()


def add_option(
    to: argparse._ActionsContainer,
    usage: str,
    text: str,
    read: Callable[[str], object] | None = None,
    **options: Any,
) -> None:
    """Add an option to a parser or a group of it, in both spellings, with ``-`` and with ``_``.

    Parameters
    ----------
    to : ArgumentParser or group
        Is changed.
    usage : str
        One flag, or a short and a long one, and what stands for its values: ``-w --work-dir DIR``.
    text, read, options
        ``help``, ``type`` and others of argparse.
    """
    flags = [word for word in usage.split() if word.startswith("-")]
    values = tuple(usage.split()[len(flags) :])
    if values:
        options["metavar"] = values if len(values) > 1 else values[0]
    if read is not None:
        options["type"] = read
    spellings = [{flag: 0, flag[:2] + flag[2:].replace("-", "_"): 0} for flag in flags]
    to.add_argument(*(name for pair in spellings for name in pair), help=text, **options)


def absolute_path(text: str) -> Path:
    """Read a path of the command line, or of a file of settings.

    Raises
    ------
    ArgumentTypeError
        If no path can be written like this.
    ReadWriteError
        If it is relative to a folder that is there no more.
    """
    if not text or "\0" in text:
        raise argparse.ArgumentTypeError(f"{text!r} is no path")
    try:
        return Path(text).absolute()
    except FileNotFoundError:
        raise _no_folder() from None


def number_reader(
    kind: type[int] | type[float], may_be: Callable[[float], bool], otherwise: str
) -> Callable[[str], float]:
    """Make a reader of numbers that says what is wrong with others."""

    def read(text: str) -> float:
        value = kind(text)
        if not may_be(value):
            raise argparse.ArgumentTypeError(f"{text} {otherwise}")
        return value

    read.__name__ = kind.__name__  # argparse says it of what is no number
    return read


positive = number_reader(float, lambda value: 0 < value < math.inf, "is not above 0")
not_negative = number_reader(float, lambda value: 0 <= value < math.inf, "is below 0")


def refuse_inverted(box: Sequence[float]) -> None:
    """Refuse a ``--bounding-box`` whose first corner does not lie below its second.

    Raises
    ------
    UsageError
        If it does not, or a side is no finite number.
    """
    sides = zip(box[:3], box[3:], strict=True)
    if not all(-math.inf < low < high < math.inf for low, high in sides):
        raise UsageError("--bounding-box: x0 y0 z0 must lie below x1 y1 z1; give both in mm, RAS+")


class PrintCompletion(argparse.Action):
    """Print the completion of a shell and exit."""

    def __call__(self, parser: argparse.ArgumentParser, *values: Any) -> None:
        import shtab

        for action in parser._actions:
            if action.dest.endswith("_dir"):
                action.complete = shtab.DIRECTORY  # type: ignore[attr-defined]
            elif action.type is absolute_path:
                action.complete = shtab.FILE  # type: ignore[attr-defined]
        sys.stdout.write(shtab.complete(parser, str(values[1])))
        parser.exit()


def refuse_lost_folder() -> None:
    """Refuse to begin in a folder that has been deleted: libraries ask where they are.

    Raises
    ------
    ReadWriteError
        If the current folder is there no more.
    """
    try:
        Path.cwd()
    except FileNotFoundError:
        raise _no_folder() from None


def _no_folder() -> ReadWriteError:
    return ReadWriteError(
        "the current folder was deleted; change to one that is there, and run the command again"
    )


def _in_other_words(error: UnicodeError) -> tuple[str | bytes, int]:
    """Write what an encoding has no sign for: bytes of file names as they are, signs by others."""
    if not isinstance(error, UnicodeEncodeError):
        raise error
    sign = error.object[error.start]
    if "\udc80" <= sign <= "\udcff":  # how Python spells a byte that is no UTF-8 (PEP 383)
        return bytes([ord(sign) - 0xDC00]), error.start + 1
    known = sign.translate(OTHER_WORDS)
    return known if known.isascii() else "?", error.start + 1


def read_names_as_utf8() -> None:
    """Start a program again in Python's UTF-8 mode (PEP 540) where names of files are not UTF-8.

    ITK and the validator take names for UTF-8, whatever the locale says: in another one, a
    dataset in ``données`` would not be found. Messages keep the encoding of the locale, but where
    that is ASCII: there, as Python does by itself, UTF-8 is taken for what the terminal knows.
    """
    encoding = codecs.lookup(sys.getfilesystemencoding()).name
    if encoding == "utf-8" or sys.flags.utf8_mode or not sys.executable:
        return
    if encoding != "ascii":
        os.environ.setdefault("PYTHONIOENCODING", encoding)
    os.environ["PYTHONUTF8"] = "1"  # of this process's children, too
    os.execv(sys.executable, [sys.executable, "-X", "utf8", *sys.orig_argv[1:]])


class _Steady:
    """A stream to whose end nobody may listen: a run goes on when it cannot be written to.

    Parameters
    ----------
    stream : text stream
        All else is as it has it.
    """

    def __init__(self, stream: Any) -> None:
        self.stream = stream
        self.error: OSError | None = None

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stream, name)

    def write(self, text: str) -> int:
        """Write, as far as that can be done."""
        with self._losing():
            self.stream.write(text)
        return len(text)

    def flush(self) -> None:
        """Hand on what was written, as far as that can be done."""
        with self._losing():
            self.stream.flush()

    @contextmanager
    def _losing(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            self.error = self.error or error
            with suppress(OSError, ValueError):  # what is buffered goes nowhere, at exit as well
                nowhere = os.open(os.devnull, os.O_WRONLY)
                os.dup2(nowhere, self.stream.fileno())
                os.close(nowhere)


def _fill_gaps() -> None:
    """Open what was closed: the next file would be taken for the standard output otherwise."""
    for number in range(len(STREAMS)):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # gets the lowest number that is free
    for name in STREAMS:
        if getattr(sys, name) is None:
            mode = "r" if name == "stdin" else "w"
            setattr(sys, name, open(os.devnull, mode, encoding="utf-8"))  # noqa: PTH123, SIM115 - it stays open


@contextmanager
def steady_streams() -> Iterator[_Steady]:
    """Let no program end in a traceback because of where its messages go; give its output.

    A terminal may know ASCII only, a reader may have gone (``| head -1``), a disk may be full, the
    streams may be closed.
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


def forgive_warnings() -> None:
    """Show warnings that ``python -W error`` makes errors: those of libraries would end a run.

    Processes that are started later inherit it.
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
        warnings.resetwarnings()  # also empties the record of which filter was met
        cast("list[object]", warnings.filters)[:] = kept


def run_program(run: Callable[[], int], *, interrupted: str) -> int:
    """Run a program; say in one sentence what goes wrong, and give the exit code of BEP027.

    Parameters
    ----------
    run : callable
        Reads the command line and gives an exit code.
    interrupted : str
        What to do after Ctrl-C or another signal to end, a sentence.
    """
    with steady_streams() as out:
        forgive_warnings()
        try:
            code = _code_of(run, interrupted)
        except SystemExit as stop:  # argparse's, after --help and the like
            code = stop.code if isinstance(stop.code, int) else 0
            out.flush()
            if _lost(out) and not code:
                raise SystemExit(ReadWriteError.exit_code) from None
            raise
        out.flush()
        return ReadWriteError.exit_code if _lost(out) and not code else code


def _lost(out: _Steady) -> bool:
    """Tell of an output that could not be written; one whose reader has gone is not missed."""
    if out.error is None or isinstance(out.error, BrokenPipeError):
        return False
    sys.stderr.write(f"error: standard output: {out.error.strerror}; what was said is lost\n")
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
AXES = {"R": 0, "L": 0, "A": 1, "P": 1, "S": 2, "I": 2}  # of the world, by where they point to
LESIONS = "lesions"  # name of the dataset with masks of lesions, in --derivatives
PETPREP, CLINICA, MNI = "petprep", "clinica", "mni"
WITH_PET = (PETPREP, CLINICA, MNI)  # datasets that may hold PET
IN_TEMPLATE = (CLINICA, MNI)  # whose images lie in MNI space
PREPROCESSED = ("fmriprep", "smriprep", *WITH_PET)  # names there of what participant starts from
PREFIXES = ("sub-", "ses-", "trc-", "run-")


def _lines(path: Path) -> list[str]:
    if not path.is_file():
        raise UsageError(
            f"{path}: neither a label (letters and digits) nor a text file with one label per line"
        )
    try:
        lines = split_lines(read_text(path))
    except Mri2petError as error:
        raise UsageError(f"{path}: cannot be read as a list of labels ({error})") from error
    labels = [line.partition("#")[0].strip() for line in lines]
    if not any(labels):
        raise UsageError(f"{path}: holds no label; write one per line")
    return [label for label in labels if label]


def normalize_labels(values: Sequence[str], prefix: str) -> tuple[str, ...]:
    """Bring labels into one form: bare, each once, in the order given.

    Parameters
    ----------
    values : sequence of str
        Labels with or without their prefix. What cannot be a label is the path of a text file
        with one label a line (``#`` starts a remark); ``./name`` where the name could be one.
    prefix : {"sub-", "ses-", "trc-", "run-"}
        The prefix to take off.

    Raises
    ------
    UsageError
        If a value is no label and no readable file, or the file holds none.

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
    """Whether two run labels are the same index.

    Examples
    --------
    >>> same_run("01", "1"), same_run("1", "2")
    (True, False)
    """
    if one.isdecimal() and other.isdecimal():
        return one.lstrip("0") == other.lstrip("0")  # int() refuses more than 4300 digits
    return one == other


def axis_code(text: str) -> str:
    """Understand an axis code: where the first, second and third axis of an array point to.

    Raises
    ------
    ValueError
        If each of the world's three axes is not named once.

    Examples
    --------
    >>> axis_code("lps")
    'LPS'
    """
    code = text.upper()
    if sorted(AXES.get(letter, -1) for letter in code) != [0, 1, 2]:
        raise ValueError(f"{text!r} is no axis code such as RAS, LAS or LPS")
    return code
