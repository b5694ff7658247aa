"""The card of a detector: what it was trained on, how, and which files belong to it."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

import numpy as np

from bids_app.errors import MissingInputError, UnusableDataError
from bids_app.files import write_json
from bids_app.imaging.volume import Grid, zooms_of

CARD = "card.json"
CONTROL_CLUSTERS = "control_clusters.tsv"
CONTROL_MAPS = "control_maps.tsv"
CALIBRATION = (CONTROL_CLUSTERS, CONTROL_MAPS)  # what held-out controls show; there after the card


@dataclass(frozen=True)
class Control:
    """An image that a detector was trained on.

    Parameters
    ----------
    participant, session : str, str or None
        Labels.
    synthetic : bool
        Whether it was predicted from a T1w.
    generator : str
        What predicted it; empty for a real one.
    generator_sha256 : str
        Of that generator's weights; empty for the generators of a cross-validation, which differ
        by fold.
    fold : int
        The fold that left this participant out, from 1.
    """

    participant: str
    session: str | None
    synthetic: bool
    generator: str
    generator_sha256: str
    fold: int


@dataclass(frozen=True)
class DetectorCard:
    """What must be known of detectors to use them, and to judge whether to.

    Parameters
    ----------
    name, version : str
        The training set; the version of the app that trained them.
    detectors : tuple of str
        Which there are.
    template : str
        The space of its images.
    shape, affine : tuple
        The grid of its images; the affine in mm, RAS+, row by row.
    controls : tuple of Control
        What they were trained on.
    folds : int
        Each has an encoder and one-class SVMs of its own.
    slabs : tuple of (int, int)
        First slice of each slab, and the one after its last.
    parameters : dict
        Name → value: nu, the encoder's, and those of clusters.
    dataset : str
        Name or DOI of the dataset that controls belong to.
    seed : int
        Of all randomness.
    intended_use : str
        In a sentence.
    versions : dict
        Name → version of what computed them.
    files : dict
        Path in the folder → SHA-256.
    makers : list of dict
        Generators of all synthetic images it was trained on or compares with: ``name``, and
        ``trained_on`` and ``intended_use`` as their own cards say.
    """

    name: str
    version: str
    detectors: tuple[str, ...]
    template: str
    shape: tuple[int, int, int]
    affine: tuple[tuple[float, ...], ...]
    controls: tuple[Control, ...]
    folds: int
    slabs: tuple[tuple[int, int], ...]
    parameters: dict[str, object]
    dataset: str
    seed: int
    intended_use: str
    versions: dict[str, str] = field(default_factory=dict)
    files: dict[str, str] = field(default_factory=dict)
    makers: list[dict[str, str]] = field(default_factory=list)

    @property
    def generators(self) -> frozenset[str]:
        """SHA-256 of the weights of all generators that its synthetic images came from."""
        return frozenset(one.generator_sha256 for one in self.controls if one.generator_sha256)


def card_values(card: DetectorCard) -> dict[str, object]:
    """Tell a card in plain values, as its file holds it."""
    return asdict(card)


def card_from(values: Mapping[str, object]) -> DetectorCard:
    """Build the card that plain values tell of.

    Raises
    ------
    ValueError, KeyError, TypeError
        If they tell of something else.
    """
    known = dict(values)
    known["detectors"] = tuple(known["detectors"])  # type: ignore[arg-type]
    known["shape"] = tuple(int(side) for side in known["shape"])  # type: ignore[attr-defined]
    known["affine"] = tuple(tuple(float(x) for x in row) for row in known["affine"])  # type: ignore[attr-defined]
    known["slabs"] = tuple((int(a), int(b)) for a, b in known["slabs"])  # type: ignore[attr-defined]
    known["controls"] = tuple(Control(**one) for one in known["controls"])  # type: ignore[attr-defined]
    return DetectorCard(**known)  # type: ignore[arg-type]


def read_card(folder: Path) -> DetectorCard:
    """Read the card of a detector.

    Raises
    ------
    MissingInputError
        If the folder holds no card.
    UnusableDataError
        If it is not the card of a detector.
    """
    path = folder / CARD
    if not path.is_file():
        raise MissingInputError(
            f"{path}: no such file; --detector wants a folder that the group level has written, "
            "OUTPUT_DIR/detectors/real or such"
        )
    try:
        return card_from(json.loads(path.read_text(encoding="utf-8")))
    except (ValueError, KeyError, TypeError) as error:
        raise UnusableDataError(
            f"{path}: not the card of a detector ({error}); train it again, or fetch it again"
        ) from error


def digest_files(folder: Path, paths: Sequence[Path]) -> dict[str, str]:
    """Give the SHA-256 of files by their path in a folder."""
    found = {}
    for path in sorted(paths):
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        found[path.relative_to(folder).as_posix()] = digest
    return found


def card_sha256(folder: Path) -> str:
    """Digest the card of a detector; it holds the SHA-256 of all its files."""
    return digest_files(folder, [folder / CARD])[CARD]


def complete_card(folder: Path) -> str:
    """Let the card of a detector know the tables of held-out controls that calibrate it.

    A card that knows of some is that of an earlier run, not of the one that wrote the tables: it
    stays as it is, and :func:`check_files` then refuses the detector.

    Returns
    -------
    str
        The SHA-256 of the card; empty if it is not that of the run at hand, or there is none.

    Raises
    ------
    UnusableDataError, ReadWriteError
        If the card cannot be read or written.
    """
    if not (folder / CARD).is_file():  # nothing could be published
        return ""
    card = read_card(folder)
    if card.files.keys() & set(CALIBRATION):
        return ""
    tables = digest_files(folder, [folder / name for name in CALIBRATION])
    card = replace(card, files={**card.files, **tables})
    write_json(folder / CARD, card_values(card))
    return card_sha256(folder)


def check_files(folder: Path, card: DetectorCard) -> None:
    """Refuse a detector whose files are not those that its card was written for.

    Raises
    ------
    MissingInputError
        If one is not there, of those that the card names and of those that calibrate.
    UnusableDataError
        If the SHA-256 of one is another, or the card does not name all that calibrates.
    """
    for name in (*card.files, *CALIBRATION):
        if not (folder / name).is_file():
            raise MissingInputError(f"{folder / name}: no such file; the card beside it needs it")
    for name in CALIBRATION:
        if name not in card.files:
            raise UnusableDataError(
                f"{folder / CARD}: does not know {name}, so the run that trained the detector did "
                "not end; run it again"
            )
    found = digest_files(folder, [folder / name for name in card.files])
    for name, sha256 in found.items():
        if sha256 != card.files[name]:
            raise UnusableDataError(
                f"{folder / name}: its SHA-256 is not the card's, so it was changed or damaged; "
                "fetch it again"
            )


def check_grid(card: DetectorCard, grid: Grid, template: str) -> None:
    """Refuse a grid that the detector was not trained on.

    Raises
    ------
    UnusableDataError
        If template, shape or affine differ.
    """
    same = card.shape == grid.shape and np.allclose(card.affine, grid.affine, atol=1e-3)
    if not same or card.template != template:
        raise UnusableDataError(
            f"detector {card.name}: its card says "
            f"{_tell(card.template, Grid(card.shape, np.array(card.affine)))}, the run wants "
            f"{_tell(template, grid)}; choose its --template, --bounding-box and --resolution, or "
            "train another detector"
        )


def _tell(template: str, grid: Grid) -> str:
    size, zooms = ("×".join(f"{x:g}" for x in row) for row in (grid.shape, zooms_of(grid.affine)))
    first = ", ".join(f"{x:g}" for x in grid.affine[:3, 3])
    return f"{template} on {size} voxels of {zooms} mm from ({first})"
