"""Where libraries keep files of their own: not in a home that may be absent, full or read-only."""

import os
import shutil
import tempfile
from collections.abc import Iterator, MutableMapping
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path

from bids_app.lifeline import last_act

VARIABLES = ("MPLCONFIGDIR", "NIPYPE_CONFIG_DIR", "NUMBA_CACHE_DIR")  # without: below HOME


def is_writable(folder: Path) -> bool:
    """Tell whether a file can be made in a folder."""
    try:
        with tempfile.TemporaryFile(dir=folder):
            return True
    except OSError:
        return False


@contextmanager
def settled(environment: MutableMapping[str, str]) -> Iterator[Path | None]:
    """Give libraries places that can be written to, for as long as this lasts.

    A container brings its caches filled, but read-only; numba and matplotlib then do without
    them, and take seconds in each process. So they get copies, in a temporary folder. Places that
    can be written to stay.

    Parameters
    ----------
    environment : mapping
        What this process and those it starts read; is changed, and changed back.

    Yields
    ------
    Path or None
        The temporary folder, None where none was needed.
    """
    home = environment.get("HOME") or os.devnull  # no folder
    wanted = {name: Path(environment.get(name) or home) for name in VARIABLES}
    barred = {name: place for name, place in wanted.items() if not is_writable(place)}
    if Path(home).is_dir() and not os.access(home, os.R_OK | os.X_OK):  # pybids looks into it
        barred["HOME"] = Path(home)
    if not barred:
        yield None
        return
    before = {name: environment.get(name) for name in barred}
    with (
        tempfile.TemporaryDirectory(prefix="mri2pet-", ignore_cleanup_errors=True) as made,
        last_act(partial(shutil.rmtree, made, ignore_errors=True)),
    ):
        for name, place in barred.items():
            own = Path(made) / name.lower()
            own.mkdir()
            if environment.get(name) and name != "HOME":
                _copy(place, own)
            environment[name] = str(own)
        try:
            yield Path(made)
        finally:
            for name, value in before.items():
                if value is None:
                    environment.pop(name, None)
                else:
                    environment[name] = value


def _copy(place: Path, own: Path) -> None:
    """Copy what a place holds, as far as it can be read; without it, work is only slower."""
    with suppress(OSError):  # shutil.Error is one
        shutil.copytree(place, own, dirs_exist_ok=True, copy_function=shutil.copyfile)
