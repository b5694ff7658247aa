"""The input must be valid BIDS, and the output must have a place of its own."""

import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections import defaultdict
from functools import partial
from pathlib import Path

from bids_app.errors import CannotCreateError, InvalidBidsError, UsageError
from bids_app.files import place_in
from bids_app.lifeline import last_act, tied

COMMAND = "bids-validator-deno"
NAMED_AT_MOST = 5  # kinds of errors in a message
ADVICE = "correct the dataset, or pass --skip-bids-validation"


def find_validator() -> str | None:
    """Find the validator beside the running Python, or on ``PATH``."""
    beside = Path(sys.executable).parent / COMMAND
    return str(beside) if beside.is_file() else shutil.which(COMMAND)


def _run(command: str, bids_dir: Path) -> subprocess.CompletedProcess[str]:
    # Headers are not looked at here: one damaged image is that participant's problem, not all's.
    arguments = ["--format", "json", "--ignoreWarnings", "--ignoreNiftiHeaders"]
    with (
        tempfile.TemporaryDirectory() as cache,  # HOME may be absent, or not ours to write to
        last_act(partial(shutil.rmtree, cache, ignore_errors=True)),
    ):
        environment = {**os.environ, "DENO_DIR": cache, "DENO_NO_UPDATE_CHECK": "1"}
        environment.pop("BIDS_SCHEMA", None)  # the schema it carries, not one from the network
        return subprocess.run(
            tied([command, *arguments, str(bids_dir.absolute())]),
            env=environment, capture_output=True, text=True, check=False,
        )  # fmt: skip


def _group(issues: list[dict[str, object]]) -> dict[str, list[str]]:
    groups: defaultdict[str, list[str]] = defaultdict(list)
    for issue in issues:
        if issue.get("severity") != "error":
            continue
        code = " ".join(str(issue[key]) for key in ("code", "subCode") if issue.get(key))
        groups[code].append(str(issue.get("location", "")))
    return dict(groups)


def _told(code: str, places: list[str]) -> str:
    named = next((place for place in places if place), "")
    more = f" and {len(places) - 1} more" if len(places) > 1 else ""
    return f"{code} ({named}{more})" if named else code


def validate_bids(bids_dir: Path) -> str | None:
    """Run the BIDS validator over a dataset, without network.

    Returns
    -------
    str or None
        A warning, if there is no validator or it did not work.

    Raises
    ------
    InvalidBidsError
        If it finds errors; warnings pass.
    """
    command = find_validator()
    if command is None:
        return f"{COMMAND} is not installed: the dataset was not validated"
    try:
        outcome = _run(command, bids_dir)
        issues = json.loads(outcome.stdout)["issues"]["issues"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        return f"{COMMAND} did not work ({error!r}): the dataset was not validated"
    groups = _group(issues)
    if groups:
        kinds = [_told(code, places) for code, places in groups.items()]
        more = f"; and {len(kinds) - NAMED_AT_MOST} more" if len(kinds) > NAMED_AT_MOST else ""
        raise InvalidBidsError(
            f"{bids_dir}: not valid BIDS: {'; '.join(kinds[:NAMED_AT_MOST])}{more}; {ADVICE}"
        )
    return None


def refuse_inside(bids_dir: Path, output_dir: Path) -> None:
    """Refuse to write into the raw dataset, but for a folder under its ``derivatives/``.

    Raises
    ------
    UsageError
        If the folder is the input, or inside it but not under ``derivatives/``.
    """
    inside = place_in(bids_dir, output_dir)
    if inside == ():
        raise UsageError(f"{output_dir}: is the input folder; choose another, its own folder")
    if inside is not None and (inside[0] != "derivatives" or len(inside) == 1):
        raise UsageError(
            f"{output_dir}: is inside the input dataset; use {bids_dir / 'derivatives/mri2pet'}"
        )


def make_writable(output_dir: Path) -> None:
    """Make a folder, and see that it may be written to.

    Raises
    ------
    CannotCreateError
        If it cannot be made, or no file can be made in it.
    """
    try:
        output_dir.mkdir(parents=True, exist_ok=True)
        # Permission bits do not tell: root passes them, a read-only disk does not show in them.
        with tempfile.NamedTemporaryFile(dir=output_dir, prefix=".mri2pet-"):
            pass
    except OSError as error:
        raise CannotCreateError(
            f"{output_dir}: cannot be written to ({error.strerror}); choose another folder"
        ) from error
