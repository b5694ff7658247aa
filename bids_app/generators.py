"""Choice of the generator for a run, checks that it fits, and whom it was trained on."""

import re
from collections.abc import Collection, Iterable
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np

from bids_app.errors import (
    MissingInputError,
    Mri2petError,
    UnusableDataError,
    UsageError,
    name_some,
)
from bids_app.imaging.volume import Grid, zooms_of
from bids_app.synthesis.card import (
    FOLDS,
    Ancestor,
    Card,
    check_reference,
    check_space,
    check_uncertainty,
    check_weights,
    is_own_grid,
    read_card,
)
from bids_app.synthesis.models import configuration_of
from bids_app.synthesis.tiling import SliceTriplets

SHIPPED = Path(__file__).parent / "data" / "generators"
DEFAULT, SLOPPY = "default", "sloppy"
CROSSVALIDATION = "crossvalidation"  # folder of a derivative dataset, with one per generator
DOI = re.compile(r"^(?:https?://(?:dx\.)?doi\.org/|doi:\s*)")  # prefix of a DOI


@dataclass(frozen=True)
class Options:
    """Options of the synthesis beyond Zotova et al. (2021).

    Parameters
    ----------
    overlap : bool
        Whether triplets start at every slice and predictions of a slice are averaged; no effect on
        generators that do not use triplets.
    match_histogram : bool
        Whether the synthetic PET is matched to the intensity distribution of the mean PET of the
        training controls.
    uncertainty : bool
        Whether the standard deviation of the synthetic PET's error is predicted, too.
    novelty : bool
        Whether the T1w is compared with those of the training controls.
    """

    overlap: bool = False
    match_histogram: bool = False
    uncertainty: bool = False
    novelty: bool = False


@dataclass(frozen=True)
class GeneratorChoice:
    """Generator used by a run: its folder, its card and its options.

    Parameters
    ----------
    folder, card : Path, Card
        Folder and card of the generator.
    options : Options
        Options of its use.
    """

    folder: Path
    card: Card
    options: Options = Options()

    def description(self) -> dict[str, object]:
        """Return the description of the generator in the sidecar of a synthetic PET."""
        return {
            "Name": self.card.name,
            "Version": self.card.version,
            "Configuration": configuration_of(self.card.spec),
            "SHA256": self.card.sha256,
            "TrainedOn": self.card.trained_on,
            "IntendedUse": self.card.intended_use,
        }

    def decisive(self) -> dict[str, object]:
        """Return the fields by which the options affect the result; empty if all are off."""
        fields: dict[str, object] = {name: on for name, on in asdict(self.options).items() if on}
        if self.options.match_histogram or self.options.novelty:
            fields["reference"] = self.card.reference_sha256
        if self.options.uncertainty:
            fields["error_model"] = self.card.uncertainty_sha256
        return fields


def find_generator(name: str, output_dir: Path, *, sloppy: bool, flag: str = "--generator") -> Path:
    """Find the folder of a generator.

    Parameters
    ----------
    name : str
        ``default``, the name of a generator in ``output_dir/generators``, or the path of a folder.
    output_dir : Path
        Path of the derivative dataset.
    sloppy : bool
        Whether ``default`` is the small generator for a coarse grid.
    flag : str
        Name of the command line option, for messages.

    Raises
    ------
    MissingInputError
        If there is no such folder.
    """
    shipped = SHIPPED / (SLOPPY if sloppy else DEFAULT)
    places = [shipped] if name == DEFAULT else [output_dir / "generators" / name, Path(name)]
    for place in places:
        if place.is_dir():
            return place.absolute()
    tried = " or ".join(str(place) for place in places)
    raise MissingInputError(f"{flag} {name}: no folder {tried}; check its name")


def choose_generator(
    name: str,
    output_dir: Path,
    grid: Grid,
    template: str,
    *,
    sloppy: bool,
    options: Options = Options(),
) -> GeneratorChoice:
    """Find a generator and check, before anything is run, that it can be used as requested.

    Raises
    ------
    MissingInputError, UnusableDataError
        See :func:`find_generator`, :func:`read_card`, :func:`check_weights`, :func:`check_space`,
        :func:`check_reference` and :func:`check_uncertainty`.
    UsageError
        If options are incompatible.
    """
    if options.match_histogram and options.uncertainty:
        raise UsageError(
            "--uncertainty: describes the PET as predicted, not intensities changed by "
            "--match-histogram; leave one of them out"
        )
    folder = find_generator(name, output_dir, sloppy=sloppy)
    card = read_card(folder)
    triplets = isinstance(card.spec.tiling, SliceTriplets)
    options = replace(options, overlap=options.overlap and triplets)
    choice = GeneratorChoice(folder, card, options)
    _check(choice, grid, template)
    return choice


def _check(choice: GeneratorChoice, grid: Grid, template: str) -> None:
    check_weights(choice.folder, choice.card)
    check_space(choice.card, grid, template)
    _refuse_carried(choice, grid)
    needed = {
        "--match-histogram": (choice.options.match_histogram, check_reference),
        "--novelty": (choice.options.novelty, check_reference),
        "--uncertainty": (choice.options.uncertainty, check_uncertainty),
    }
    for flag, (is_chosen, check) in needed.items():
        try:
            if is_chosen:
                check(choice.folder, choice.card)
        except UnusableDataError as error:
            raise UnusableDataError(f"{flag}: {error}, or leave the option out") from error


def _refuse_carried(choice: GeneratorChoice, grid: Grid) -> None:
    """Check that options based on voxelwise data of a generator are not used on another grid."""
    options = {"--novelty": choice.options.novelty, "--uncertainty": choice.options.uncertainty}
    flags = [flag for flag, on in options.items() if on]
    if flags and not is_own_grid(choice.card, grid):
        resolution = zooms_of(np.array(choice.card.affine))[0]
        raise UsageError(
            f"{' and '.join(flags)}: generator {choice.card.name} supports this at --resolution "
            f"{resolution:g} only; leave it out, or change the resolution"
        )


def has_seen(card: Card, subject: str, names: Collection[str], output_dir: Path) -> bool:
    """Return whether a generator, or an ancestor of it, was trained on any session of a subject.

    The same label, such as 01, in another dataset belongs to someone else. Datasets are identified
    by name or DOI and, because either may have changed, by the folders that the cross-validation
    of a generator leaves in the derivative dataset, one for each participant it was trained on.

    Parameters
    ----------
    card : Card
        Card of the generator, wherever it was trained.
    subject : str
        Label without ``sub-``.
    names : collection of str
        Title and DOI of the subject's raw dataset.
    output_dir : Path
        Path of the derivative dataset that the subject is in.
    """
    return any(
        subject in _labels(origin)
        and (is_one_of(origin.dataset, names) or _is_from(origin, output_dir))
        for origin in card.origins
    )


def is_one_of(dataset: str, names: Iterable[str]) -> bool:
    """Return whether a dataset has one of these names.

    Examples
    --------
    >>> is_one_of("https://doi.org/10.1/x", ["My study", "doi:10.1/x"])
    True
    >>> is_one_of("My  STUDY", ["My study"]), is_one_of("My study 2", ["My study"])
    (True, False)
    """
    return _identity(dataset) in set(map(_identity, names))


def describe_namesakes(
    card: Card, subjects: Iterable[str], names: Collection[str], output_dir: Path
) -> str:
    """Describe the subjects who share labels with training participants of another dataset.

    Returns
    -------
    str
        A sentence; empty if there are none.
    """
    labels = sorted(known_labels(card).intersection(subjects))
    alike = [label for label in labels if not has_seen(card, label, names, output_dir)]
    if not alike:
        return ""
    bearers = name_some([f"sub-{label}" for label in alike])
    datasets = dict.fromkeys(
        repr(origin.dataset) for origin in card.origins if _labels(origin) & {*alike}
    )
    return (
        f"generator {card.name} was trained on {bearers} of the dataset "
        f"{' or '.join(datasets)}; they are taken for different people from those of "
        f"{' or '.join(map(repr, names))}; if the dataset was only renamed, their synthetic PET "
        "comes from a generator trained on them"
    )


def known_labels(card: Card) -> set[str]:
    """Return the labels, without ``sub-``, of all participants a generator was trained on."""
    return {label for origin in card.origins for label in _labels(origin)}


def _labels(origin: Ancestor) -> set[str]:
    return {participant.removeprefix("sub-") for participant in origin.participants}


def _is_from(origin: Ancestor, output_dir: Path) -> bool:
    """Return whether a derivative dataset is the one that a generator was trained in."""
    folder = output_dir / CROSSVALIDATION / Path(origin.name).name
    return bool(origin.participants) and all(
        (folder / f"sub-{Path(label).name}").is_dir() for label in _labels(origin)
    )


def _identity(dataset: str) -> str:
    return DOI.sub("", " ".join(dataset.casefold().split()))


def known_cards(output_dir: Path) -> dict[str, Card]:
    """Read the cards of all generators in a derivative dataset, including those of folds.

    Returns
    -------
    dict
        SHA-256 of the weights → card; cards that cannot be read are skipped.
    """
    root = output_dir / "generators"
    cards = {}
    for folder in sorted([*root.glob("*"), *root.glob(f"*/{FOLDS}/*")]):
        try:
            card = read_card(folder)
        except Mri2petError:
            continue  # reported where it is used
        cards[card.sha256] = card
    return cards
