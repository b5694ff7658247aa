"""Which files a dataset's ``.bidsignore`` leaves out."""

import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Protocol

from bids_app.errors import ReadWriteError
from bids_app.files import split_lines

NAME = ".bidsignore"
LARGEST = 1_000_000  # bytes; our choice: lists of thousands of files are a hundred times smaller
STAR = "[^/]*"
CLASS = re.compile(r"\[([!^]?)((?:\]|\\.)?(?:\\.|[^\]\\])*)\]")


class Ignored(Protocol):
    """Whether a path inside the dataset is left out."""

    def __call__(self, path: Path, is_folder: bool = False) -> bool:
        """Answer for a path relative to the root of the dataset."""


def _class(found: re.Match[str]) -> str:
    """Write ``[!a-z]`` of a pattern as a regular expression; it never matches a slash."""
    body = re.sub(r"\\(.)", r"\1", found[2])
    safe = re.sub(r"([\\\]\[^&~|])", r"\\\1", body)
    return f"(?!/)[{'^' if found[1] else ''}{safe}]"


def _tokens(pattern: str) -> Iterator[str]:
    """Write a pattern, part by part, as a regular expression."""
    at = 0
    while at < len(pattern):
        rest = pattern[at:]
        found = CLASS.match(rest)
        if rest.startswith("/**/"):
            yield "/(?:.*/)?"
            at += 3  # the second slash may begin the next one
            while pattern[at : at + 4] == "/**/":
                at += 3
            at += 1
        elif rest == "/**":
            yield "/.+"
            return
        elif rest.startswith("**/") and at == 0:
            yield "(?:.*/)?"
            at += 3
        elif rest.startswith("*"):
            yield STAR
            at += len(rest) - len(rest.lstrip("*"))
        elif found is not None:
            yield _class(found)
            at += found.end()
        else:
            escaped = rest[0] == "\\" and len(rest) > 1
            yield "[^/]" if rest[0] == "?" else re.escape(rest[1] if escaped else rest[0])
            at += 2 if escaped else 1


def _join(tokens: Sequence[str]) -> str:
    """Join the parts of an expression so that many stars in one pattern take no longer than one.

    What stands between two stars is taken where it first fits, and never anywhere else: a later
    place leaves less for the rest.
    """
    written, is_open = "", False
    for at, token in enumerate(tokens):
        if token != STAR:
            written += token
            continue
        following = (one for one in tokens[at + 1 :] if one in (STAR, "/.+") or ".*" in one)
        closes = next(following, "") == STAR
        written += (")" if is_open else "") + ("(?>[^/]*?" if closes else STAR)
        is_open = closes
    return written


def _compile(line: str) -> tuple[re.Pattern[str], bool, bool] | None:
    """Read a line: what it matches, whether only folders, whether it takes back."""
    pattern = re.sub(r"(?<!\\)[ \t]+$", "", line)
    if not pattern or pattern.startswith("#"):
        return None
    taken_back = pattern.startswith("!")
    pattern = pattern[1:] if taken_back else pattern
    if "[" in re.sub(r"\\.", "", CLASS.sub("", pattern)):
        return None  # a bracket that is never closed: git matches nothing by it, either
    only_folders = pattern.endswith("/")
    pattern = pattern[:-1] if only_folders else pattern
    if not pattern:
        return None
    anchored = "/" in pattern
    whole = _join([*_tokens(pattern.removeprefix("/"))])
    try:
        expression = re.compile(whole if anchored else f"(?:.*/)?{whole}", re.S)
    except re.error:
        return None  # such as [z-a]
    return expression, only_folders, taken_back


def _lines(bids_dir: Path) -> list[str]:
    path = bids_dir / NAME
    if not path.is_file():
        return []
    try:
        if path.stat().st_size > LARGEST:
            raise ReadWriteError(f"{path}: larger than 1 MB; shorten it to patterns")
        text = path.read_text(encoding="utf-8-sig", errors="replace")
    except OSError as error:
        raise ReadWriteError(f"{path}: cannot be read ({error.strerror})") from error
    return split_lines(text)


def read_bidsignore(bids_dir: Path) -> Ignored:
    """Read ``.bidsignore`` at the root of a dataset; where there is none, nothing is left out.

    Its patterns are those of ``.gitignore`` (BIDS 1.10, "Filesystem structure"; gitignore(5)): the
    last one that matches decides, ``!`` takes back, and nothing inside a folder that is left out
    can be taken back.

    Returns
    -------
    callable
        Says of a path, relative to the root, and whether it is a folder (by default it is a file),
        whether it is left out.

    Raises
    ------
    ReadWriteError
        If it is there but cannot be read.
    """
    rules = [rule for rule in map(_compile, _lines(bids_dir)) if rule is not None]

    def decides(place: str, is_folder: bool) -> bool:
        for pattern, only_folders, taken_back in reversed(rules):
            if (is_folder or not only_folders) and pattern.fullmatch(place):
                return not taken_back
        return False

    def is_ignored(path: Path, is_folder: bool = False) -> bool:
        parts = path.parts
        places = ["/".join(parts[: n + 1]) for n in range(len(parts))]
        return any(decides(place, True) for place in places[:-1]) or decides(places[-1], is_folder)

    return is_ignored
