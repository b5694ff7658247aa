"""Strict reading of cards and tensors from untrusted sources, without unpickling.

Content that is too large, too deeply nested or of another type is refused before memory is
allocated for it. All limits are our choice, far beyond what this app writes.
"""

import json
import math
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

from safetensors import SafetensorError, safe_open

from bids_app.errors import UnusableDataError
from bids_app.files import Json, read_text

LARGEST_CARD = 1 << 24  # bytes
DEEPEST = 32  # levels of nested lists and objects
LONGEST_TEXT = 20_000  # characters
LONGEST_NAME = 200  # characters; folders take 255 bytes
LARGEST_HEADER = 1 << 24  # bytes of a safetensors header
HEADER_SIZE = 8  # bytes that hold its length
Check = Callable[[object], bool]
Shapes = Mapping[str, tuple[str, tuple[int, ...]]]  # name → safetensors dtype, and shape


def read_object(path: Path) -> Json:
    """Read the JSON object of a card.

    Raises
    ------
    ReadWriteError
        If the file cannot be read.
    ValueError
        If it is not a file, too large, not UTF-8, not JSON, not an object, or nested too deeply, or
        if it contains a duplicate key or NaN.
    """
    try:
        text = read_text(path, LARGEST_CARD)
    except UnusableDataError as error:
        raise ValueError(f"{error}".removeprefix(f"{path}: ")) from error
    return parse_object(text)


def parse_object(text: str) -> Json:
    """Parse a JSON object.

    Raises
    ------
    ValueError
        If the text is not JSON, not an object, or nested too deeply, or if it contains a duplicate
        key or NaN.

    Examples
    --------
    >>> parse_object('{"a": 1}')
    {'a': 1}
    >>> parse_object('{"a": 1, "a": 2}')
    Traceback (most recent call last):
    ValueError: duplicate key a
    """
    try:
        values = json.loads(text, object_pairs_hook=_once, parse_constant=_refuse_constant)
    except RecursionError as error:
        raise ValueError("nested too deeply") from error
    if not isinstance(values, dict):
        raise ValueError("not a JSON object")
    if _depth(values) > DEEPEST:
        raise ValueError(f"nested more than {DEEPEST} levels deep")
    return values


def _once(pairs: list[tuple[str, object]]) -> dict[str, object]:
    values = dict(pairs)
    if len(values) < len(pairs):
        keys = [key for key, _ in pairs]
        raise ValueError(f"duplicate key {next(key for key in keys if keys.count(key) > 1)}")
    return values


def _refuse_constant(name: str) -> object:
    raise ValueError(f"{name} is not a valid number")


def _depth(value: dict[str, object]) -> int:
    depth, row = (0, list[dict | list]([value]))  # level by level, without recursion
    while row:
        depth += 1
        inner = [x for item in row for x in (item.values() if isinstance(item, dict) else item)]
        row = [item for item in inner if isinstance(item, list | dict)]
    return depth


def refuse_odd(
    values: Mapping[str, object], checks: Mapping[str, Check], optional: str = ""
) -> None:
    """Refuse fields that are missing, unknown, or fail their check.

    Parameters
    ----------
    values : mapping
        Values of a card by field.
    checks : mapping
        Field → function that checks its value.
    optional : str
        Fields that may be missing, separated by spaces.

    Raises
    ------
    ValueError
        If a field is refused; the message names it and its value.
    """
    unknown = sorted(values.keys() - checks.keys())
    if unknown:
        raise ValueError(f"field {unknown[0][:40]!r} is unknown")
    missing = sorted(checks.keys() - values.keys() - set(optional.split()))
    if missing:
        raise ValueError(f"field {missing[0]} is missing")
    for name, value in values.items():
        if not checks[name](value):
            raise ValueError(f"field {name} cannot be {_short(value)}")


def keep_known(
    values: Mapping[str, object], checks: Mapping[str, Check], blank: Mapping[str, object]
) -> dict[str, object]:
    """Keep the fields that pass their checks; replace the others by those of ``blank``.

    Examples
    --------
    >>> checks = {"name": is_text, "seed": is_whole(0, 9)}
    >>> keep_known({"name": 3, "seed": 5, "odd": 1}, checks, {"name": ""})
    {'name': '', 'seed': 5}
    """
    known = {name: values[name] for name in checks if name in values}
    return {**blank, **{name: value for name, value in known.items() if checks[name](value)}}


def _short(value: object) -> str:
    text = repr(value) if not isinstance(value, int) or abs(value) < 1 << 64 else "that large"
    return text if len(text) <= 60 else f"{text[:60]}…"


def is_text(value: object) -> bool:
    """Check whether a value is text of limited length that can be encoded in UTF-8."""
    if not isinstance(value, str) or len(value) > LONGEST_TEXT:
        return False
    return not any("\ud800" <= sign <= "\udfff" for sign in value)


def is_name(value: object) -> bool:
    """Check whether a value can be the name of a folder and be printed in a sentence.

    Examples
    --------
    >>> [is_name(name) for name in ("semi3d-gan", "our own", "", "..", "a/b", "a" * 300)]
    [True, True, False, False, False, False]
    """
    if not isinstance(value, str) or not 0 < len(value) <= LONGEST_NAME:
        return False
    return value.isprintable() and not set(value) & {"/", "\\"} and bool(value.strip(". "))


def is_flag(value: object) -> bool:
    """Check whether a value is a boolean, rather than 1 or 0."""
    return isinstance(value, bool)


def is_whole(low: int, high: int) -> Check:
    """Create a check for integers in a range, both ends included."""
    return lambda value: type(value) is int and low <= value <= high


def is_number(low: float = -math.inf, high: float = math.inf) -> Check:
    """Create a check for finite numbers in a range, both ends included."""

    def check(value: object) -> bool:
        if not isinstance(value, int | float) or isinstance(value, bool):
            return False
        return low <= value <= high and abs(value) <= sys.float_info.max

    return check


def is_list(check: Check, longest: int, shortest: int = 0) -> Check:
    """Create a check for lists or tuples of limited length whose values all pass a check."""
    return lambda value: (
        isinstance(value, list | tuple)
        and shortest <= len(value) <= longest
        and all(check(item) for item in value)
    )


def is_mapping(check: Check, longest: int) -> Check:
    """Create a check for mappings of limited length from text to values that pass a check."""
    return lambda value: (
        isinstance(value, dict)
        and len(value) <= longest
        and all(is_text(key) and check(item) for key, item in value.items())
    )


def is_plain(value: object) -> bool:
    """Check whether a value consists of text, finite numbers, booleans, None, lists and dicts."""
    if isinstance(value, dict):
        return all(is_text(key) and is_plain(item) for key, item in value.items())
    if isinstance(value, list | tuple):
        return all(is_plain(item) for item in value)
    return value is None or is_flag(value) or is_text(value) or is_number()(value)


def is_sha256(value: object) -> bool:
    """Check whether a value is a SHA-256 in hexadecimal digits, or empty if there is none yet."""
    return (
        isinstance(value, str) and len(value) in (0, 64) and set(value) <= set("0123456789abcdef")
    )


def is_inner_name(value: object) -> bool:
    """Check whether a value is a relative path such as ``a/b.txt`` that stays inside a folder.

    Examples
    --------
    >>> [is_inner_name(name) for name in ("a/b.txt", "../a", "/a", "a/../../b", "", ".")]
    [True, False, False, False, False, False]
    """
    if not is_text(value) or not isinstance(value, str) or set(value) & {"\\", "\0", ":"}:
        return False
    return bool(value) and all(part not in ("", ".", "..") for part in value.split("/"))


def is_inside(folder: Path, path: Path) -> bool:
    """Check whether a file lies in a folder after resolving links."""
    try:
        return path.resolve().is_relative_to(folder.resolve())
    except (OSError, RuntimeError):  # circular links
        return False


def shapes_of(path: Path) -> dict[str, tuple[str, tuple[int, ...]]]:
    """Read names, types and shapes from the header of a safetensors file, without its tensors.

    Call this before reading such a file: a header that claims more than the file holds is refused
    before memory is allocated for it.

    Returns
    -------
    dict
        Name → dtype (``F32``) and shape. The safetensors library checks that they fit the file.

    Raises
    ------
    OSError
        If the file cannot be read.
    ValueError
        If it is not a safetensors file, or its header is too large.
    """
    if path.exists() and not path.is_file():  # reading a named pipe may never end
        raise ValueError("a folder, pipe or device, not a file")
    with path.open("rb") as file:
        size = int.from_bytes(file.read(HEADER_SIZE), "little")
    if not 0 < size <= min(LARGEST_HEADER, path.stat().st_size - HEADER_SIZE):
        raise ValueError("no safetensors header, or one that does not fit into the file")
    try:
        with safe_open(path, framework="numpy") as file:
            slices = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118 - not a mapping
            return {
                name: (str(plane.get_dtype()), tuple(plane.get_shape()))
                for name, plane in slices.items()
            }
    except SafetensorError as error:
        raise ValueError(f"not safetensors: {error!s:.200}") from error


def refuse_shapes(found: Shapes, expected: Shapes) -> None:
    """Refuse tensors that differ from those expected.

    Raises
    ------
    ValueError
        If a tensor is missing, unknown, or of another dtype or shape; the message names the first.
    """
    for name in sorted(found.keys() ^ expected.keys()):
        raise ValueError(f"{name[:80]} is {'missing' if name in expected else 'unknown'}")
    for name, (dtype, shape) in found.items():
        expected_dtype, expected_shape = expected[name]
        if (dtype, shape) != (expected_dtype, expected_shape):
            raise ValueError(
                f"{name} is {dtype} {list(shape)}, not {expected_dtype} {list(expected_shape)}"
            )
