"""The card of a generator: what rebuilds it, and what it is for. Read without torch."""

import hashlib
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TypeVar

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import load

from bids_app import strict
from bids_app.errors import MissingInputError, ReadWriteError, UnusableDataError
from bids_app.files import Json
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
# Fields that older cards lack
_NEWER = "versions metrics reference_sha256 uncertainty_sha256 pet_times_mean initialized_from"
_BLANK: dict[str, object] = {
    **dict.fromkeys(("name", "version", "template", "sha256"), ""),
    **dict.fromkeys(("trained_on", "intended_use", "dataset"), ""),
    **dict.fromkeys(("shape", "affine", "participants"), ()),
    "seed": -1,
}  # of a card that does not tell, for reports
FOLDS = "folds"  # of the cross-validation: each has a generator in a folder of its own


@dataclass(frozen=True)
class Card:
    """What must be known of a generator to use it, and to judge whether to.

    Parameters
    ----------
    name, version : str
        A row of Table 1, or a name of one's own; the version of the app that trained it.
    spec : ModelSpec or TissueSpec
        What rebuilds the network.
    template : str
        The space of its images.
    shape, affine : tuple
        The grid of its images; the affine in mm, RAS+, row by row.
    sha256 : str
        Of the file of weights.
    trained_on, intended_use : str
        In a sentence each.
    participants : tuple of str
        ``sub-`` labels whose images it has seen.
    dataset : str
        Name or DOI of the dataset those belong to.
    seed : int
        Of all randomness in training; -1 if that is not known.
    versions : dict
        Name → version of what computed it.
    metrics : dict
        Name → value, on images it has not seen.
    reference_sha256 : str
        Of the file that tells what its training images look like; empty if there is none.
    pet_times_mean : float
        Scale of its PET, as :func:`bids_app.imaging.intensity.scale_to_unit` has it: the brain's
        mean times this is 1, or a percentile is where it is 0.
    initialized_from : tuple of Ancestor
        The generator that training went on from, then that one's, and so on; empty if it began
        with new weights.
    uncertainty_sha256 : str
        Of the file that tells how far its PET are from real ones; empty if there is none.
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
        """What the card of a generator that goes on from this one says of it."""
        return Ancestor(self.name, self.sha256, self.dataset, self.participants)

    @property
    def origins(self) -> tuple["Ancestor", ...]:
        """All that have shaped it: itself first, then what it was initialized from."""
        return (self.origin, *self.initialized_from)


@dataclass(frozen=True)
class Ancestor:
    """A generator that training went on from, and whom it has seen; fields as of a card."""

    name: str
    sha256: str
    dataset: str
    participants: tuple[str, ...]


def file_sha256(path: Path) -> str:
    """Give the SHA-256 of a file, in hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def card_values(card: Card) -> dict[str, object]:
    """Tell a card in plain values, as its file holds it; what began with new weights says less."""
    values = {**asdict(card), "spec": spec_to_dict(card.spec)}
    if not card.initialized_from:
        del values["initialized_from"]
    return values


def card_from(values: Json, *, lenient: bool = False) -> Card:
    """Build the card that plain values tell of.

    ``lenient``: a field that is missing or holds what it cannot be is empty, a seed -1; only the
    spec is not, without which nothing is known of the generator.

    Raises
    ------
    ValueError
        If a field is missing, unknown, or holds what it cannot be.
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
    """Read the card of a generator; ``lenient``, for reports, as :func:`card_from` has it.

    Raises
    ------
    MissingInputError
        If the folder holds no card.
    ReadWriteError
        If it cannot be read.
    UnusableDataError
        If it is not a card.
    """
    path = folder / CARD
    if not path.is_file():
        raise MissingInputError(f"{path}: no such file; --generator wants a folder with a card")
    try:
        return card_from(strict.read_object(path), lenient=lenient)
    except ValueError as error:
        raise UnusableDataError(
            f"{path}: not the card of a generator ({error}); train it again, or fetch it again"
        ) from error


def check_weights(folder: Path, card: Card) -> Path:
    """Refuse weights that are not those the card was written for; return their path.

    Raises
    ------
    MissingInputError
        If they are not there.
    UnusableDataError
        If their SHA-256 is another, or one of them is no finite number.
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
            f"{path}: does not fit the network of its card ({error}); fetch both again"
        ) from error
    if odd is not None:
        raise UnusableDataError(
            f"{path}: {odd} holds NaN or infinity, so the generator predicts nothing; train it "
            "again, or choose another --generator"
        )
    return path


def check_reference(folder: Path, card: Card) -> Path:
    """Refuse what does not tell of the training images as the card was written; return its path.

    Raises
    ------
    MissingInputError
        If it is not there, though the card knows it.
    UnusableDataError
        If its SHA-256 is another, or the card knows none.
    """
    return _checked_if_named(
        folder / REFERENCE, card.reference_sha256, card, topic="training images"
    )


def check_uncertainty(folder: Path, card: Card) -> Path:
    """Refuse what does not tell of the generator's errors as the card was written; return its path.

    Raises
    ------
    MissingInputError
        If it is not there, though the card knows it.
    UnusableDataError
        If its SHA-256 is another, or the card knows none.
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
            f"generator {card.name}: its card names no {path.name}, so nothing is known of its "
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
        The file.
    kind : callable
        Makes the record of its tensors, by their names.
    refuse_odd : callable
        Raises ValueError where they do not belong together.
    complaint : str
        What the file is if it cannot be understood, for the error.

    Raises
    ------
    ReadWriteError
        If it cannot be read.
    UnusableDataError
        If it is no such record.
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
    """Whether a grid is the one that a generator was trained on."""
    return card.shape == grid.shape and np.allclose(card.affine, grid.affine, atol=1e-3)


def check_space(card: Card, grid: Grid, template: str) -> None:
    """Refuse a grid that the generator cannot be used on: a tissue model can, on any of its space.

    Raises
    ------
    UnusableDataError
        As :func:`check_grid`.
    """
    if not isinstance(card.spec, TissueSpec) or card.template != template:
        check_grid(card, grid, template)


def check_grid(card: Card, grid: Grid, template: str) -> None:
    """Refuse a grid that the generator has not been trained on.

    Raises
    ------
    UnusableDataError
        If template, shape or affine differ.
    """
    if not is_own_grid(card, grid) or card.template != template:
        raise UnusableDataError(
            f"generator {card.name}: its card says {_describe(card.template, card.shape)}, the run "
            f"wants {_describe(template, grid.shape)}; choose its --template, --bounding-box and "
            "--resolution, or another --generator"
        )


def _describe(template: str, shape: tuple[int, int, int]) -> str:
    return f"{template} on {'×'.join(map(str, shape))} voxels"
