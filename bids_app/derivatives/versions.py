"""By which version of the app a result was made, and whether this one can use it."""

import re
from collections.abc import Iterable
from itertools import groupby
from operator import itemgetter
from pathlib import Path

from bids_app.derivatives.paths import sidecar_path
from bids_app.errors import UnusableDataError
from bids_app.files import read_json

KEY = "Version"  # in a sidecar
ANEW = "to make them anew, delete their folders and run the participant level"
_RELEASE = re.compile(r"(\d+)\.(\d+)")


def version_of(image: Path) -> str:
    """Read by which version of the app an image was made; empty if its sidecar does not tell."""
    sidecar = sidecar_path(image)
    told = read_json(sidecar).get(KEY) if sidecar.is_file() else None
    return told if isinstance(told, str) else ""


def compare_versions(made: Iterable[tuple[str, str]], version: str, *, advice: str) -> list[str]:
    """Tell what other versions of the app have made, and refuse what cannot be used.

    The first number of a version rises when what is made before and after cannot be compared
    (CONTRIBUTING.md, "Changes"): that is refused. What another second number, or an unknown
    version, has made is told of.

    Parameters
    ----------
    made : iterable of (str, str)
        What it is, ``"sub-01"``, and the version that made it; empty if that is not known.
    version : str
        Of the app that runs.
    advice : str
        What to do.

    Returns
    -------
    list of str
        A sentence, or none.

    Raises
    ------
    UnusableDataError
        If a first number differs.

    Examples
    --------
    >>> compare_versions([("sub-01", "0.1.3"), ("sub-02", "0.2.0")], "0.1.0", advice="do it again")
    ['made by mri2pet 0.2.0: sub-02; this is 0.1.0, and may have made them otherwise; do it again']
    """
    own = _release_of(version)
    if own is None:  # a copy of the source that is not installed
        return []
    others = sorted({(by, what) for what, by in made if _release_of(by) != own})
    foreign = [one for one in others if _is_foreign(one[0], own)]
    if foreign:
        raise UnusableDataError(
            f"{_list(foreign)}; this is {version}, and what it makes cannot be compared with "
            f"them; {advice}"
        )
    if not others:
        return []
    return [f"{_list(others)}; this is {version}, and may have made them otherwise; {advice}"]


def _release_of(version: str) -> tuple[int, int] | None:
    found = _RELEASE.match(version)
    return None if found is None else (int(found[1]), int(found[2]))


def _is_foreign(version: str, own: tuple[int, int]) -> bool:
    release = _release_of(version)
    return release is not None and release[0] != own[0]


def _list(made: Iterable[tuple[str, str]]) -> str:
    return ", ".join(
        f"made by {f'mri2pet {version}' if version else 'an unknown version'}: "
        + ", ".join(what for _, what in group)
        for version, group in groupby(made, itemgetter(0))
    )
