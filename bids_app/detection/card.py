"""Card of a detector: its encoder, its training data, and its files; does not import torch."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

import numpy as np

from bids_app import strict
from bids_app.detection.detectors import detector_of
from bids_app.errors import MissingInputError, UnusableDataError
from bids_app.files import Json, file_sha256, object_at, write_json
from bids_app.imaging.volume import Grid, zooms_of

SHRINKING = 6  # voxels by which the first two convolutions, 5×5 and 3×3, shrink a patch
_SPEC_CHECKS: dict[str, strict.Check] = {
    "patch": strict.is_whole(1, 255),
    "latents": strict.is_whole(1, 65_536),
    "alpha": strict.is_number(-1e6, 1e6),
    "epochs": strict.is_whole(1, 1_000_000),
    "pairs_per_epoch": strict.is_whole(1, 100_000_000),
    "batch_size": strict.is_whole(1, 1_000_000),
    "learning_rate": strict.is_number(0, 10),
    "channels": strict.is_whole(1, 2),
}  # limits are our choice
STRIDE = 3  # of the third convolution


@dataclass(frozen=True)
class EncoderSpec:
    """Specification of a siamese autoencoder of axial patches, and of its training.

    Parameters
    ----------
    patch : int
        Edge length of a patch in voxels: 15 in Zotova et al. (2021), section 2.2. Other valid sizes
        are 21, 27 and so on: odd, with a whole number of steps of the third convolution.
    latents : int
        Number of latents per patch: 64, as in the paper.
    alpha : float
        Weight of the similarity of latents against the reconstruction error; our choice, as the
        paper gives none. On simulated PET, detection was similar from 0 to 0.03; with 0.3, latents
        varied along 2 directions, and lesions stood out less.
    epochs, pairs_per_epoch : int
        Number of epochs, and number of pairs of patches drawn anew for each; our choice: under a
        minute on one core, at any resolution (benchmarks/latents.py).
    batch_size : int
        Pairs per step; our choice.
    learning_rate : float
        Learning rate of Adam at the first step; it falls to 0 along half a cosine. Our choice.
    channels : int
        Number of images that a patch is extracted from: 1 is the PET, as in Zotova et al. (2021),
        section 2.2; 2 is the PET and the T1w, after Zotova et al. (2025), arXiv:2505.07364.
    """

    patch: int = 15
    latents: int = 64
    alpha: float = 0.01
    epochs: int = 20
    pairs_per_epoch: int = 10_000
    batch_size: int = 64
    learning_rate: float = 5e-3
    channels: int = 1

    def __post_init__(self) -> None:
        fits = self.patch % 2 == 1 and (self.patch - SHRINKING) % STRIDE == 0
        if not fits or self.side < 1:
            raise ValueError(f"patches must be 15, 21, 27, … voxels wide, not {self.patch}")
        if self.latents < 1 or self.latents % self.side**2:
            raise ValueError(f"the number of latents must be a multiple of {self.side}×{self.side}")
        counts = (self.epochs, self.pairs_per_epoch, self.batch_size)
        if min(counts) < 1:
            raise ValueError(
                f"epochs, pairs per epoch and batch size must be at least 1, not {min(counts)}"
            )

    @property
    def side(self) -> int:
        """Number of locations of latents along each axis of a patch.

        Examples
        --------
        The sizes are 15 → 11 → 9 → 3 → 2:

        >>> EncoderSpec().side
        2
        """
        return (self.patch - SHRINKING) // STRIDE - 1


def spec_to_dict(spec: EncoderSpec) -> dict[str, object]:
    """Convert a spec to plain values, as stored in the file of an encoder.

    A single channel is omitted, so that results computed before there could be more stay valid.

    Examples
    --------
    >>> spec_from_dict(spec_to_dict(EncoderSpec(epochs=3))) == EncoderSpec(epochs=3)
    True
    """
    return {name: v for name, v in asdict(spec).items() if name != "channels" or v > 1}


def spec_from_dict(values: Json) -> EncoderSpec:
    """Build a spec from plain values.

    Raises
    ------
    ValueError
        If a value is missing or unknown, or the values do not define an encoder.
    """
    try:
        if not isinstance(values, dict):
            raise ValueError("not a mapping")
        strict.refuse_odd(values, _SPEC_CHECKS, "channels")
        return EncoderSpec(**values)
    except ValueError as error:
        raise ValueError(f"not an encoder's spec: {error}") from error


CARD = "card.json"
CONTROL_CLUSTERS = "control_clusters.tsv"
CONTROL_MAPS = "control_maps.tsv"
CALIBRATION = (CONTROL_CLUSTERS, CONTROL_MAPS)  # of held-out controls; written after the card
_FOLDS = strict.is_whole(1, 1000)
_CONTROL_CHECKS: dict[str, strict.Check] = {
    "participant": strict.is_text,
    "session": lambda value: value is None or strict.is_text(value),
    "synthetic": strict.is_flag,
    "generator": strict.is_text,
    "generator_sha256": strict.is_text,
    "fold": _FOLDS,
}
_CHECKS: dict[str, strict.Check] = {
    **dict.fromkeys(("version", "dataset", "intended_use"), strict.is_text),
    **dict.fromkeys(("name", "template"), strict.is_name),
    "detectors": strict.is_list(strict.is_text, 100),
    "shape": strict.is_list(strict.is_whole(1, 10_000), 3, 3),
    "affine": strict.is_list(strict.is_list(strict.is_number(), 4, 4), 4, 4),
    "controls": strict.is_list(lambda value: isinstance(value, dict), 100_000),
    "folds": _FOLDS,
    "slabs": strict.is_list(strict.is_list(strict.is_whole(0, 10_000), 2, 2), 10_000),
    "parameters": lambda value: isinstance(value, dict) and strict.is_plain(value),
    "seed": strict.is_whole(0, 2**64 - 1),
    "versions": strict.is_mapping(strict.is_text, 1000),
    "files": strict.is_mapping(strict.is_sha256, 1_000_000),
    "makers": strict.is_list(strict.is_mapping(strict.is_text, 100), 100_000),
}
_BLANK_CONTROL: dict[str, object] = {
    **dict.fromkeys(("participant", "generator", "generator_sha256"), ""),
    "session": None,
    "synthetic": False,
    "fold": 0,
}
_BLANK: dict[str, object] = {
    **dict.fromkeys(("name", "version", "template", "dataset", "intended_use"), ""),
    **dict.fromkeys(("detectors", "shape", "affine", "controls", "slabs"), ()),
    "folds": 0,
    "parameters": {},
    "seed": -1,
}  # defaults for missing fields of a card, for reports


@dataclass(frozen=True)
class Control:
    """Image that a detector was trained on.

    Parameters
    ----------
    participant, session : str, str or None
        Labels.
    synthetic : bool
        Whether the image was predicted from a T1w.
    generator : str
        Name of the generator that predicted it; empty for a real image.
    generator_sha256 : str
        SHA-256 of the generator's weights; empty for the generators of a cross-validation, which
        differ by fold.
    fold : int
        Number, from 1, of the fold that left this participant out.
    """

    participant: str
    session: str | None
    synthetic: bool
    generator: str
    generator_sha256: str
    fold: int


@dataclass(frozen=True)
class DetectorCard:
    """Description of detectors: what is needed to use them, and to decide whether to.

    Parameters
    ----------
    name, version : str
        Name of the training set; version of the app that trained the detectors.
    detectors : tuple of str
        Names of the detectors.
    template : str
        Space of the images.
    shape, affine : tuple
        Grid of the images; the affine in mm, RAS+, row by row.
    controls : tuple of Control
        Images they were trained on.
    folds : int
        Number of folds, each with an encoder and one-class SVMs of its own.
    slabs : tuple of (int, int)
        First slice of each slab, and the one after its last.
    parameters : dict
        Name → value: nu, and the parameters of the encoder and of clusters.
    dataset : str
        Name or DOI of the dataset that the controls belong to.
    seed : int
        Seed of all randomness.
    intended_use : str
        Intended use, in a sentence.
    versions : dict
        Name → version of the software that computed them.
    files : dict
        Path in the folder → SHA-256.
    makers : list of dict
        Generators of all synthetic images used for training or for comparison: ``name``, and
        ``trained_on`` and ``intended_use`` from their own cards.
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
        """SHA-256 of the weights of all generators of its synthetic images."""
        return frozenset(
            control.generator_sha256 for control in self.controls if control.generator_sha256
        )


def covariates_of(card: DetectorCard) -> dict[str, dict[str, object]]:
    """Return the coding of the covariates that a detector adjusts for; empty if there are none.

    See :func:`bids_app.detection.covariates.describe_covariates`.
    """
    return object_at(card.parameters, "covariates")


OF_CLUSTERS = ("cluster_extent", "min_cluster_size")  # parameters, by the names of the options


def other_clusters(card: DetectorCard, settings: Mapping[str, object]) -> dict[str, object]:
    """Return how clusters of a detector's controls were found, where those of a run are not.

    Clusters of patients cannot be compared with those of controls then.

    Parameters
    ----------
    card : DetectorCard
        Card of the detector.
    settings : mapping
        Options of the run by name; unknown ones are not compared.

    Returns
    -------
    dict
        Name of an option → its value for the controls; None if it is unknown.
    """
    return {
        name: card.parameters.get(name)
        for name in OF_CLUSTERS
        if name in settings and settings[name] != card.parameters.get(name)
    }


def card_values(card: DetectorCard) -> dict[str, object]:
    """Convert a card to plain values, as stored in its file."""
    return asdict(card)


def card_from(values: Json, *, lenient: bool = False) -> DetectorCard:
    """Build a card from plain values.

    If ``lenient``, fields that are missing or invalid are empty; ``folds`` is then 0, and ``seed``
    is -1.

    Raises
    ------
    ValueError
        If a field is missing, unknown, or has an invalid value, or if a file lies outside the
        folder.
    """
    if lenient:
        known = _keep_known(values)
    else:
        strict.refuse_odd(values, _CHECKS, "versions files makers")
        known = dict(values)
        for control in known["controls"]:
            strict.refuse_odd(control, _CONTROL_CHECKS)
    outside = [name for name in known.get("files", {}) if not strict.is_inner_name(name)]
    if outside:
        raise ValueError(f"{outside[0][:80]!r} is not a file in its folder")
    known["detectors"] = tuple(known["detectors"])
    known["shape"] = tuple(known["shape"])
    known["affine"] = tuple(tuple(float(x) for x in row) for row in known["affine"])
    known["slabs"] = tuple((a, b) for a, b in known["slabs"])
    known["controls"] = tuple(Control(**control) for control in known["controls"])
    return DetectorCard(**known)


def _keep_known(values: Json) -> Json:
    known: Json = strict.keep_known({**values, "files": {}}, _CHECKS, _BLANK)
    controls = known["controls"]
    if isinstance(controls, list):
        known["controls"] = [
            strict.keep_known(control, _CONTROL_CHECKS, _BLANK_CONTROL) for control in controls
        ]
    return known


def read_card(folder: Path, *, lenient: bool = False) -> DetectorCard:
    """Read the card of a detector; for ``lenient``, used in reports, see :func:`card_from`.

    Raises
    ------
    MissingInputError
        If the folder contains no card.
    UnusableDataError
        If the file is not the card of a detector.
    """
    path = folder / CARD
    if not path.is_file():
        raise MissingInputError(
            f"{path}: no such file; give --detector a folder written by the group level, for "
            "example OUTPUT_DIR/detectors/real"
        )
    try:
        return card_from(strict.read_object(path), lenient=lenient)
    except ValueError as error:
        raise UnusableDataError(
            f"{path}: not the card of a detector ({error}); train it again, or fetch it again"
        ) from error


def digest_files(folder: Path, paths: Sequence[Path]) -> dict[str, str]:
    """Return the SHA-256 of files, keyed by their path in a folder."""
    return {path.relative_to(folder).as_posix(): file_sha256(path) for path in sorted(paths)}


def card_sha256(folder: Path) -> str:
    """Return the SHA-256 of a detector's card, which itself lists the SHA-256 of all files."""
    return digest_files(folder, [folder / CARD])[CARD]


def complete_card(folder: Path) -> str:
    """Add the tables of held-out controls, which calibrate a detector, to the files on its card.

    A card that already lists any of them, or that cannot be read, is from an earlier run than the
    one that wrote the tables. It is left as it is, and :func:`check_files` or :func:`read_card`
    then rejects the detector.

    Returns
    -------
    str
        SHA-256 of the card; empty if there is none, or if it is from an earlier run.

    Raises
    ------
    ReadWriteError
        If the card cannot be written.
    """
    try:
        card = read_card(folder)
    except (MissingInputError, UnusableDataError):  # nothing was published
        return ""
    if card.files.keys() & set(CALIBRATION):
        return ""
    tables = digest_files(folder, [folder / name for name in CALIBRATION])
    card = replace(card, files={**card.files, **tables})
    write_json(folder / CARD, card_values(card))
    return card_sha256(folder)


def check_files(folder: Path, card: DetectorCard) -> None:
    """Check that a detector's files are those that its card was written for.

    Raises
    ------
    MissingInputError
        If a file that the card lists, or a calibration table, does not exist.
    UnusableDataError
        If the SHA-256 of a file differs, a file leads out of the folder, or the card does not list
        all calibration tables.
    """
    for name in (*card.files, *CALIBRATION):
        if not strict.is_inside(folder, folder / name):
            raise UnusableDataError(
                f"{folder / name}: points outside its folder; replace it with a copy of the file"
            )
        if not (folder / name).is_file():
            raise MissingInputError(f"{folder / name}: no such file; the card beside it needs it")
    for name in CALIBRATION:
        if name not in card.files:
            raise UnusableDataError(
                f"{folder / CARD}: does not list {name}, so the run that trained the detector did "
                "not finish; run it again"
            )
    digests = digest_files(folder, [folder / name for name in card.files])
    for name, sha256 in digests.items():
        if sha256 != card.files[name]:
            raise UnusableDataError(
                f"{folder / name}: its SHA-256 is not the card's, so it was changed or damaged; "
                "fetch it again"
            )


def check_grid(card: DetectorCard, grid: Grid, template: str) -> None:
    """Check that a detector was trained on the grid of a run.

    Raises
    ------
    UnusableDataError
        If template, shape or affine differ, or if the slabs do not cover each slice exactly once.
    """
    _refuse_slabs(card)
    same_grid = card.shape == grid.shape and np.allclose(card.affine, grid.affine, atol=1e-3)
    if not same_grid or card.template != template:
        raise UnusableDataError(
            f"detector {card.name}: its card says "
            f"{_describe(card.template, Grid(card.shape, np.array(card.affine)))}, the run wants "
            f"{_describe(template, grid)}; choose its --template, --bounding-box and --resolution, "
            "or train another detector"
        )


def _refuse_slabs(card: DetectorCard) -> None:
    if all(detector_of(name).method != "svm" for name in card.detectors):
        return
    ends = [0, *(last for _, last in card.slabs)]
    if [first for first, _ in card.slabs] != ends[:-1] or ends != sorted(set(ends)):
        raise UnusableDataError(
            f"detector {card.name}: the slabs on its card have gaps; train it again"
        )
    if ends[-1] != card.shape[2]:
        raise UnusableDataError(
            f"detector {card.name}: the slabs on its card cover {ends[-1]} slices, but images have "
            f"{card.shape[2]}; train it again"
        )


def _describe(template: str, grid: Grid) -> str:
    size, zooms = ("×".join(f"{x:g}" for x in row) for row in (grid.shape, zooms_of(grid.affine)))
    first = ", ".join(f"{x:g}" for x in grid.affine[:3, 3])
    return f"{template} on {size} voxels of {zooms} mm from ({first})"
