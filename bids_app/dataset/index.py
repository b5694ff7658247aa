"""The index of a raw BIDS dataset: pybids, kept to what is needed."""

import re
import warnings
from collections.abc import Collection
from pathlib import Path

from bids import BIDSLayout, BIDSLayoutIndexer
from sqlalchemy.exc import SQLAlchemyError

from bids_app.errors import InvalidBidsError, UsageError

DATATYPE = {"T1w": "anat", "pet": "pet"}
IMAGE = re.compile(r"sub-.*_(T1w|pet)\.nii(\.gz)?")
NO_CONFIG = "mri2pet_no_layout_config.json"  # a file of a dataset that pybids would open and obey
PET_SIDECAR = re.compile(r"(.*_)?pet\.json")


class _Elsewhere:
    """A pattern, for pybids, of all that need not be looked at.

    pybids asks its patterns to ``search`` each path, of files and folders, from the root of the
    dataset. One look-up a level is quicker than an expression with hundreds of labels.
    """

    def __init__(self, subjects: Collection[str] | None) -> None:
        self.subjects = None if subjects is None else frozenset(f"sub-{s}" for s in subjects)

    def search(self, path: str) -> bool:
        *folders, name = path.strip("/").split("/")
        if PET_SIDECAR.fullmatch(name) or IMAGE.fullmatch(name):
            return False
        inside = [*folders, name]
        if not inside[0].startswith("sub-"):
            return True
        if self.subjects is not None and inside[0] not in self.subjects:
            return True
        rest = inside[2:] if len(inside) > 1 and inside[1].startswith("ses-") else inside[1:]
        return len(rest) > 1 or (len(rest) == 1 and rest[0] not in DATATYPE.values())


def list_files(
    bids_dir: Path, subjects: Collection[str], database_dir: Path | None = None
) -> list[Path]:
    """List the T1w and PET images of some participants, and what may be sidecars of PET, sorted.

    Parameters
    ----------
    bids_dir : Path
        Root of the raw dataset, absolute.
    subjects : collection of str
        Labels. An index that is kept holds everyone: it outlives this run and its selection.
    database_dir : Path, optional
        Where pybids keeps its index between runs.

    Raises
    ------
    InvalidBidsError
        If pybids cannot read the dataset.
    UsageError
        If the index cannot be used, or is that of another dataset.
    """
    elsewhere = _Elsewhere(subjects if database_dir is None else None)
    indexer = BIDSLayoutIndexer(
        validate=False, ignore=[elsewhere], index_metadata=False, config_filename=NO_CONFIG
    )
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            layout = BIDSLayout(
                bids_dir, validate=False, indexer=indexer, database_path=database_dir
            )
            files = sorted(map(Path, layout.files))
    except (OSError, ValueError, TypeError, SQLAlchemyError) as error:
        why = str(error).partition("\n")[0]
        if database_dir is not None:
            raise UsageError(
                f"{database_dir}: cannot be used as --bids-database-dir ({why}); choose another"
            ) from error
        raise InvalidBidsError(
            f"{bids_dir}: cannot be read as a BIDS dataset ({why}); run bids-validator-deno on it"
        ) from error
    if not all(path.is_relative_to(bids_dir) for path in files):
        raise UsageError(
            f"{database_dir}: is the index of another dataset; delete it, or choose another folder"
        )
    return files
