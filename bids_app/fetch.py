"""``mri2pet-fetch``: download files that cannot be distributed with the package."""

import argparse
import hashlib
import os
import sys
import tempfile
import time
from collections.abc import Sequence
from functools import partial
from http.client import HTTPException
from importlib.metadata import version
from pathlib import Path
from urllib.error import URLError
from urllib.request import urlopen

from bids_app.arguments import (
    Parser,
    absolute_path,
    add_option,
    read_names_as_utf8,
    refuse_lost_folder,
    run_program,
)
from bids_app.errors import MissingInputError, UnusableDataError
from bids_app.files import file_sha256
from bids_app.lifeline import exit_with

TIMEOUT, TRIES, PAUSE = 60.0, 3, 2.0  # s; number of tries; s between them


# URLs, and the first digits of checksums. torchvision puts them into the name of the file. The
# heads are those of the package lpips 0.1.4, whose full checksum is known.
ALEXNET = ("https://download.pytorch.org/models/alexnet-owt-7be5be79.pth", "7be5be79")
HEADS = (
    "https://github.com/richzhang/PerceptualSimilarity/raw/master/lpips/weights/v0.1/alex.pth",
    "df73285e35b22355a2df87cdb6b70b343713b667eddbda73e1977e0c860835c0",
)


def download(url: str, sha256: str, target: Path) -> None:
    """Download a file, and compare the beginning of its checksum with the expected one.

    Raises
    ------
    MissingInputError
        If the file cannot be downloaded.
    UnusableDataError
        If the checksum differs.
    """
    for tries_left in reversed(range(TRIES)):
        try:
            with urlopen(url, timeout=TIMEOUT) as answer, target.open("wb") as file:
                while block := answer.read(1 << 20):
                    file.write(block)
            break
        except (URLError, HTTPException, TimeoutError, ConnectionError) as error:
            if not tries_left:
                raise MissingInputError(
                    f"{url}: cannot be downloaded ({error}); run this on a machine with a network "
                    "connection, and copy the result"
                ) from error
            time.sleep(PAUSE)
    found = file_sha256(target)
    if not found.startswith(sha256):
        raise UnusableDataError(
            f"{url}: is not the expected file (its SHA-256 is {found}); it may have been changed "
            "during the download"
        )


def fetch_lpips(out: Path) -> None:
    """Write the weights of LPIPS: AlexNet's convolutions and the heads of version 0.1.

    Parameters
    ----------
    out : Path
        Path of the ``.safetensors`` file; replaced atomically if it exists.

    Raises
    ------
    MissingInputError
        If the weights cannot be downloaded.
    UnusableDataError
        If they are not those published.
    ReadWriteError
        If they cannot be written.
    """
    from safetensors.torch import save

    from bids_app.files import write_bytes
    from bids_app.synthesis.scoring import FETCHED_SHA256, read_tensors

    with tempfile.TemporaryDirectory() as folder:
        files = Path(folder, "alexnet.pth"), Path(folder, "heads.pth")
        for source, file in zip((ALEXNET, HEADS), files, strict=True):
            download(*source, file)
        alexnet, heads = (read_tensors(file) for file in files)
    convolutions = {name: value for name, value in alexnet.items() if name.startswith("features.")}
    tensors = {name: value.contiguous() for name, value in {**convolutions, **heads}.items()}
    content = save(tensors)
    if hashlib.sha256(content).hexdigest() != FETCHED_SHA256:
        raise UnusableDataError(
            f"{ALEXNET[0]} and {HEADS[0]}: do not contain the published weights of LPIPS; "
            "nothing was written"
        )
    write_bytes(out, content)


def build_parser() -> argparse.ArgumentParser:
    """Build the parser of the command line."""
    parser = Parser(
        prog="mri2pet-fetch",
        allow_abbrev=False,
        description="Fetch files that do not come with the package, for machines without a "
        "network. Containers do this when they are built.",
        epilog="Exit codes: 0 done; 64 usage; 65 unusable data; 66 cannot be fetched; 74 cannot "
        "be written.",
    )
    add = partial(add_option, parser)
    add(
        "--lpips FILE",
        "weights of LPIPS, for mri2pet train; pass the file to --lpips-weights, or name it "
        "in $MRI2PET_LPIPS_WEIGHTS",
        absolute_path,
    )
    add(
        "--template NAME",
        "templates of TemplateFlow, into $TEMPLATEFLOW_HOME",
        nargs="+",
        default=[],
    )
    add(
        "--atlas NAME",
        "atlases of TemplateFlow for mri2pet group --atlas NAME, such as "
        "Schaefer2018:200Parcels7Networks, into $TEMPLATEFLOW_HOME",
        nargs="+",
        default=[],
    )
    add(
        "--space NAME",
        "template space of the atlases; default %(default)s, for which atlases "
        "in other MNI152 spaces are accepted, too",
        default="MNI152NLin2009aSym",
    )
    parser.add_argument("--version", action="version", version=f"mri2pet {version('mri2pet')}")
    return parser


def _run(argv: Sequence[str] | None) -> int:
    parser = build_parser()
    arguments = parser.parse_args(argv)
    if arguments.lpips is None and not arguments.template and not arguments.atlas:
        parser.error("nothing to fetch; give --lpips, --template or --atlas")
    refuse_lost_folder()
    from bids_app.templates import atlas_of_templateflow, of_templateflow

    if arguments.lpips is not None:
        fetch_lpips(arguments.lpips)
        sys.stdout.write(f"{arguments.lpips}\n")
    for name in arguments.template:
        of_templateflow(name)
        sys.stdout.write(f"{name}: in {os.environ.get('TEMPLATEFLOW_HOME', 'TemplateFlow')}\n")
    for name in arguments.atlas:
        image, names = atlas_of_templateflow(name, arguments.space)
        sys.stdout.write(f"{name}: {image} {names}\n")
    return 0


def main(argv: Sequence[str] | None = None) -> int:
    """Download what is requested and return the exit code of BEP027."""
    if argv is None:
        read_names_as_utf8()
    return run_program(lambda: _run(argv), interrupted="stopped; complete files were kept")


if __name__ == "__main__":
    exit_with(main())
