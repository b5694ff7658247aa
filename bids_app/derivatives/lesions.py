"""Masks of known lesions, found in a dataset of derivatives by their names."""

from dataclasses import dataclass
from pathlib import Path

from bids_app.derivatives.preprocessed import Preprocessed
from bids_app.errors import MissingInputError, UnusableDataError
from bids_app.labels import LESIONS

MASK = "label-L_mask"  # how the name of one ends, before its extension
EXTENSIONS = (".nii.gz", ".nii")


@dataclass(frozen=True)
class LesionMask:
    """A mask, and whether it was drawn in the space of the template or on the T1w."""

    path: Path
    in_template: bool


def find_lesion_mask(root: Path, visit: Preprocessed, template: str) -> LesionMask | None:
    """Find the mask of a visit's lesions; None where none was drawn.

    Looked for are ``sub-X[…]_space-<template>_label-L_mask.nii.gz`` (or ``.nii``) and
    ``…_space-T1w_…`` in the participant's folder, the former first; of the visit's own session,
    else of none.

    Parameters
    ----------
    root : Path
        The dataset.
    visit : Preprocessed
        Whose.
    template : str
        Name of the template, as a ``space-`` label.

    Raises
    ------
    MissingInputError
        If there is no such dataset.
    UnusableDataError
        If several masks fit, or none of those that are there says a space that can be used.
    """
    if not root.is_dir():
        raise MissingInputError(f"{root}: no such folder; correct --derivatives {LESIONS}=PATH")
    masks = _masks_of(root, visit.subject)
    own = [path for path in masks if visit.session and f"_ses-{visit.session}_" in path.name]
    timeless = [path for path in masks if "_ses-" not in path.name]
    there = own if own else timeless
    for space in (template, "T1w"):
        found = [path for path in there if f"_space-{space}_" in path.name]
        if len(found) > 1:
            raise UnusableDataError(
                f"{found[0]}: and {found[1].name} are masks of the same visit; keep one"
            )
        if found:
            return LesionMask(found[0], space == template)
    if there:
        raise UnusableDataError(
            f"{there[0]}: its name says neither space-T1w nor space-{template}, and masks of "
            "other spaces cannot be used; name or resample it so"
        )
    return None


def no_mask_at_all(root: Path, template: str) -> MissingInputError:
    """Say that nobody has a mask there, and what is looked for."""
    return MissingInputError(
        f"{root}: holds no mask of lesions of any patient of this run; name masks "
        f"sub-X/anat/sub-X[_ses-Y]_space-T1w_{MASK}.nii.gz (or space-{template}), or leave out "
        f"--derivatives {LESIONS}=PATH"
    )


def _masks_of(root: Path, subject: str) -> list[Path]:
    names = (f"sub-{subject}_*{MASK}{extension}" for extension in EXTENSIONS)
    return sorted(path for name in names for path in (root / f"sub-{subject}").rglob(name))
