"""Labels of BIDS entities, as people type them."""

import re
from collections.abc import Sequence
from pathlib import Path

from bids_app.errors import Mri2petError, UsageError
from bids_app.files import read_text, split_lines

LABEL = re.compile(r"[0-9A-Za-z+]+")  # BIDS 1.10, "Filesystem structure": alphanumeric, or plus
AXES = {"R": 0, "L": 0, "A": 1, "P": 1, "S": 2, "I": 2}  # of the world, by where they point to
LESIONS = "lesions"  # name of the dataset with masks of lesions, in --derivatives
PREFIXES = ("sub-", "ses-", "trc-", "run-")


def _lines(path: Path) -> list[str]:
    if not path.is_file():
        raise UsageError(
            f"{path}: neither a label (letters and digits) nor a text file with one label a line"
        )
    try:
        lines = split_lines(read_text(path))
    except Mri2petError as error:
        raise UsageError(f"{path}: cannot be read as a list of labels ({error})") from error
    labels = [line.partition("#")[0].strip() for line in lines]
    if not any(labels):
        raise UsageError(f"{path}: holds no label; write one a line")
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
