"""The card of a generator: how to rebuild it, and what it is for. Does not import torch."""

from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TypeVar

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import load

from bids_app import strict
from bids_app.errors import MissingInputError, ReadWriteError, UnusableDataError
from bids_app.files import Json, file_sha256
from bids_app.imaging.volume import Grid
from bids_app.synthesis.models import Spec, TissueSpec, spec_from_dict, spec_to_dict

WEIGHTS, CARD, REFERENCE = "weights.safetensors", "card.json", "reference.safetensors"
UNCERTAINTY = "uncertainty.safetensors"
_ORIGIN_CHECKS: dict[str, strict.Check] = {
    "name": strict.is_name,
    "sha256": strict.is_sha256,
    "dataset": strict.is_text,
    "participants": strict.is_list(strict.is_text, 1_000_000),
}


def _is_origin(value: object) -> bool:
    return (
        isinstance(value, dict)
        and value.keys() == _ORIGIN_CHECKS.keys()
        and all(check(value[name]) for name, check in _ORIGIN_CHECKS.items())
    )


_CHECKS: dict[str, strict.Check] = {
    **dict.fromkeys(("version", "dataset", "trained_on", "intended_use"), strict.is_text),
    **dict.fromkeys(("name", "template"), strict.is_name),
    "spec": lambda value: isinstance(value, dict),
    "shape": strict.is_list(strict.is_whole(1, 10_000), 3, 3),
    "affine": strict.is_list(strict.is_list(strict.is_number(-1e6, 1e6), 4, 4), 4, 4),
    "sha256": strict.is_sha256,
    "participants": strict.is_list(strict.is_text, 1_000_000),
    "seed": strict.is_whole(-1, 2**64 - 1),
    "versions": strict.is_mapping(strict.is_text, 1000),
    "metrics": strict.is_mapping(strict.is_number(), 1000),
    **dict.fromkeys(("reference_sha256", "uncertainty_sha256"), strict.is_sha256),
    "pet_times_mean": strict.is_number(0, 1000),
    "initialized_from": strict.is_list(_is_origin, 100),
}
# Fields that older cards may lack
_NEWER = "versions metrics reference_sha256 uncertainty_sha256 pet_times_mean initialized_from"
_BLANK: dict[str, object] = {
    **dict.fromkeys(("name", "version", "template", "sha256"), ""),
    **dict.fromkeys(("trained_on", "intended_use", "dataset"), ""),
    **dict.fromkeys(("shape", "affine", "participants"), ()),
    "seed": -1,
}  # defaults for fields that a card lacks, for reports
FOLDS = "folds"  # folder with one generator per fold of the cross-validation


@dataclass(frozen=True)
class Card:
    """Description of a generator, for its use and for the decision whether to use it.

    Parameters
    ----------
    name, version : str
        A row of Table 1 or a custom name; the version of the app that trained the generator.
    spec : ModelSpec or TissueSpec
        Specification from which the generator is rebuilt.
    template : str
        Space of its images.
    shape, affine : tuple
        Grid of its images; the affine in mm, RAS+, row by row.
    sha256 : str
        SHA-256 of the weights file.
    trained_on, intended_use : str
        One sentence each.
    participants : tuple of str
        ``sub-`` labels of the participants it was trained on.
    dataset : str
        Name or DOI of their dataset.
    seed : int
        Seed of all randomness in training; -1 if unknown.
    versions : dict
        Name → version of the software that trained it.
    metrics : dict
        Name → value, on held-out images.
    reference_sha256 : str
        SHA-256 of the file that describes its training images; empty if there is none.
    pet_times_mean : float
        ``times_mean`` of :func:`bids_app.imaging.intensity.scale_to_unit` for its PET: the mean of
        the brain times this number becomes 1; if it is 0, a percentile becomes 1 instead.
    initialized_from : tuple of Ancestor
        The generator that it was fine-tuned from, then that one's, and so on; empty if it was
        trained from scratch.
    uncertainty_sha256 : str
        SHA-256 of the file that describes the errors of its PET; empty if there is none.
    """

    name: str
    version: str
    spec: Spec
    template: str
    shape: tuple[int, int, int]
    affine: tuple[tuple[float, ...], ...]
    sha256: str
    trained_on: str
    intended_use: str
    participants: tuple[str, ...]
    dataset: str
    seed: int
    versions: dict[str, str] = field(default_factory=dict)
    metrics: dict[str, float] = field(default_factory=dict)
    reference_sha256: str = ""
    pet_times_mean: float = 0.0
    initialized_from: tuple["Ancestor", ...] = ()
    uncertainty_sha256: str = ""

    @property
    def origin(self) -> "Ancestor":
        """Entry for this generator in the card of a generator fine-tuned from it."""
        return Ancestor(self.name, self.sha256, self.dataset, self.participants)

    @property
    def origins(self) -> tuple["Ancestor", ...]:
        """The generator itself, followed by its ancestors."""
        return (self.origin, *self.initialized_from)


@dataclass(frozen=True)
class Ancestor:
    """Generator that another one was fine-tuned from; see :class:`Card` for the fields."""

    name: str
    sha256: str
    dataset: str
    participants: tuple[str, ...]


def card_values(card: Card) -> dict[str, object]:
    """Return the plain values that the file of a card holds.

    ``initialized_from`` is omitted if it is empty.
    """
    values = {**asdict(card), "spec": spec_to_dict(card.spec)}
    if not card.initialized_from:
        del values["initialized_from"]
    return values


def card_from(values: Json, *, lenient: bool = False) -> Card:
    """Build a card from plain values.

    If ``lenient``, a missing or invalid field is left empty (-1 for the seed), except the spec,
    without which nothing is known about the generator.

    Raises
    ------
    ValueError
        If a field is missing, unknown or invalid.
    """
    if not lenient:
        strict.refuse_odd(values, _CHECKS, _NEWER)
    checks = {**_CHECKS, "sha256": strict.is_text}  # it is only shown
    known: Json = strict.keep_known(values, checks, _BLANK) if lenient else dict(values)
    known["spec"] = spec_from_dict(known.get("spec", {}))
    known["affine"] = tuple(tuple(float(x) for x in row) for row in known["affine"])
    known["shape"] = tuple(known["shape"])
    known["participants"] = tuple(known["participants"])
    known["initialized_from"] = tuple(
        Ancestor(**{**origin, "participants": tuple(origin["participants"])})
        for origin in known.get("initialized_from", ())
    )
    return Card(**known)


def read_card(folder: Path, *, lenient: bool = False) -> Card:
    """Read the card of a generator; for ``lenient``, used in reports, see :func:`card_from`.

    Raises
    ------
    MissingInputError
        If the folder holds no card.
    ReadWriteError
        If the card cannot be read.
    UnusableDataError
        If the file is not a card.
    """
    path = folder / CARD
    if not path.is_file():
        raise MissingInputError(f"{path}: no such file; a generator is a folder with a card")
    try:
        return card_from(strict.read_object(path), lenient=lenient)
    except ValueError as error:
        raise UnusableDataError(
            f"{path}: not the card of a generator ({error}); train it again, or fetch it again"
        ) from error


def check_weights(folder: Path, card: Card) -> Path:
    """Check that the weights are those the card was written for, and return their path.

    Raises
    ------
    MissingInputError
        If there are no weights.
    UnusableDataError
        If their SHA-256 differs from the card's, or a weight is not finite.
    """
    path = _checked(folder / WEIGHTS, card.sha256)
    try:
        names = [name for name, (dtype, _) in strict.shapes_of(path).items() if dtype == "F32"]
        with safe_open(path, framework="numpy") as file:
            odd = next(
                (name for name in names if not np.isfinite(file.get_tensor(name)).all()), None
            )
    except (SafetensorError, OSError, ValueError) as error:
        raise UnusableDataError(
            f"{path}: does not match the network in its card ({error}); fetch both again"
        ) from error
    if odd is not None:
        raise UnusableDataError(
            f"{path}: {odd} contains NaN or infinity, so the generator cannot predict a PET; train "
            "it again, or choose another --generator"
        )
    return path


def check_reference(folder: Path, card: Card) -> Path:
    """Check that the reference file is the one the card was written for, and return its path.

    Raises
    ------
    MissingInputError
        If there is no such file although the card names it.
    UnusableDataError
        If its SHA-256 differs from the card's, or the card names none.
    """
    return _checked_if_named(
        folder / REFERENCE, card.reference_sha256, card, topic="training images"
    )


def check_uncertainty(folder: Path, card: Card) -> Path:
    """Check that the error model is the one the card was written for, and return its path.

    Raises
    ------
    MissingInputError
        If there is no such file although the card names it.
    UnusableDataError
        If its SHA-256 differs from the card's, or the card names none.
    """
    requirement = ", on 4 controls or more"
    return _checked_if_named(
        folder / UNCERTAINTY, card.uncertainty_sha256, card, topic="errors", requirement=requirement
    )


def _checked_if_named(
    path: Path, sha256: str, card: Card, *, topic: str, requirement: str = ""
) -> Path:
    if not sha256:
        raise UnusableDataError(
            f"generator {card.name}: its card names no {path.name}, so nothing is known about its "
            f"{topic}; train it with this version of mri2pet{requirement}"
        )
    return _checked(path, sha256)


def _checked(path: Path, sha256: str) -> Path:
    if not path.is_file():
        raise MissingInputError(f"{path}: no such file; the card beside it needs it")
    if file_sha256(path) != sha256:
        raise UnusableDataError(
            f"{path}: its SHA-256 is not the card's, so it was changed or damaged; fetch it again"
        )
    return path


Parts = TypeVar("Parts")


def read_parts(
    path: Path, kind: Callable[..., Parts], refuse_odd: Callable[[Parts], None], complaint: str
) -> Parts:
    """Read a file whose tensors are the fields of a record.

    Parameters
    ----------
    path : Path
        Path of the file.
    kind : callable
        Constructor of the record, which takes the tensors as keyword arguments.
    refuse_odd : callable
        Check of the record, which raises ValueError if its fields are inconsistent.
    complaint : str
        Error message for a file that is not such a record.

    Raises
    ------
    ReadWriteError
        If the file cannot be read.
    UnusableDataError
        If it is not such a record.
    """
    try:
        strict.shapes_of(path)
        parts = kind(**load(path.read_bytes()))
        refuse_odd(parts)
        return parts
    except OSError as error:
        raise ReadWriteError(f"{path}: cannot be read ({error.strerror})") from error
    except (SafetensorError, TypeError, ValueError) as error:
        raise UnusableDataError(f"{path}: {complaint} ({error}); fetch it again") from error


def is_own_grid(card: Card, grid: Grid) -> bool:
    """Return whether a grid is the one that a generator was trained on."""
    return card.shape == grid.shape and np.allclose(card.affine, grid.affine, atol=1e-3)


def check_space(card: Card, grid: Grid, template: str) -> None:
    """Check that a generator can be used on a grid; a tissue model fits any grid of its template.

    Raises
    ------
    UnusableDataError
        If it cannot; see :func:`check_grid`.
    """
    if not isinstance(card.spec, TissueSpec) or card.template != template:
        check_grid(card, grid, template)


def check_grid(card: Card, grid: Grid, template: str) -> None:
    """Check that a grid is the one that a generator was trained on.

    Raises
    ------
    UnusableDataError
        If the template, the shape or the affine differs.
    """
    if not is_own_grid(card, grid) or card.template != template:
        raise UnusableDataError(
            f"generator {card.name}: its card says {_describe(card.template, card.shape)}, the run "
            f"wants {_describe(template, grid.shape)}; choose its --template, --bounding-box and "
            "--resolution, or another generator"
        )


def _describe(template: str, shape: tuple[int, int, int]) -> str:
    return f"{template} on {'×'.join(map(str, shape))} voxels"
