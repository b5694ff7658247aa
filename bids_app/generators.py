"""Find the generator that a run names, and see that it fits."""

from dataclasses import dataclass
from pathlib import Path

from bids_app.errors import MissingInputError
from bids_app.imaging.volume import Grid
from bids_app.synthesis.card import Card, check_grid, check_weights, read_card

SHIPPED = Path(__file__).parent / "data" / "generators"
DEFAULT, SLOPPY = "default", "sloppy"


@dataclass(frozen=True)
class GeneratorChoice:
    """A generator that a run uses: its folder and its card."""

    folder: Path
    card: Card

    def description(self) -> dict[str, object]:
        """Tell what the sidecar of a synthetic PET says of it."""
        return {
            "Name": self.card.name,
            "Version": self.card.version,
            "SHA256": self.card.sha256,
            "TrainedOn": self.card.trained_on,
            "IntendedUse": self.card.intended_use,
        }


def find_generator(name: str, output_dir: Path, *, sloppy: bool) -> Path:
    """Find the folder of a generator.

    Parameters
    ----------
    name : str
        ``default``, the name of one in ``output_dir/generators``, or the path of a folder.
    output_dir : Path
        The derivative dataset.
    sloppy : bool
        Whether ``default`` is the small one for a coarse grid.

    Raises
    ------
    MissingInputError
        If there is none.
    """
    shipped = SHIPPED / (SLOPPY if sloppy else DEFAULT)
    places = [shipped] if name == DEFAULT else [output_dir / "generators" / name, Path(name)]
    for place in places:
        if place.is_dir():
            return place.absolute()
    tried = " or ".join(str(place) for place in places)
    raise MissingInputError(f"--generator {name}: no folder {tried}; check its name")


def choose_generator(
    name: str, output_dir: Path, grid: Grid, template: str, *, sloppy: bool
) -> GeneratorChoice:
    """Find a generator and check its card, its weights and its grid, before anything is run.

    Raises
    ------
    MissingInputError, UnusableDataError
        As :func:`find_generator`, :func:`read_card`, :func:`check_weights`, :func:`check_grid`.
    """
    folder = find_generator(name, output_dir, sloppy=sloppy)
    card = read_card(folder)
    check_weights(folder, card)
    check_grid(card, grid, template)
    return GeneratorChoice(folder, card)
