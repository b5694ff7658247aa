"""Which maps a run of the group level has made: what its report is about."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final

from bids_app.errors import Mri2petError
from bids_app.files import read_json, write_json
from bids_app.report.anomalies import Anomaly, find_anomalies
from bids_app.report.detectors import Which, which
from bids_app.report.record import FOLDER

NAME: Final = f"{FOLDER}/group_scored.json"  # in the derivative dataset


@dataclass(frozen=True)
class Scored:
    """A map: whose PET, and what scored it.

    Parameters
    ----------
    participant, session : str
        Labels; ``session`` is empty where there is none.
    training_set, detector : str
        What scored it.
    control : bool
        Whether it is a held-out control's.
    path : str
        The map, inside the derivative dataset.
    """

    participant: str
    session: str
    training_set: str
    detector: str
    control: bool
    path: str

    @property
    def visit(self) -> tuple[str, str]:
        """Participant and session."""
        return self.participant, self.session

    @property
    def which(self) -> Which:
        """The detector, and what it was trained on."""
        return which(self.training_set, self.detector)


@dataclass(frozen=True)
class GridSettings:
    """As the settings of a run have it: template, box in mm (RAS+), and resolution in mm."""

    template: str
    bounding_box: Sequence[float]
    resolution: float


@dataclass(frozen=True)
class Run:
    """What a run has scored.

    Parameters
    ----------
    dataset : str
        Name or DOI of the raw dataset that was scored; empty if not told.
    maps : sequence of Scored
        Of patients and of held-out controls.
    grid : GridSettings or None
        On which they lie in the template's space; None if not told.
    """

    dataset: str
    maps: Sequence[Scored]
    grid: GridSettings | None = None


def write_run(output_dir: Path, run: Run) -> None:
    """Record what the run has scored, for its report and for later ones.

    Raises
    ------
    ReadWriteError
        If it cannot be written.
    """
    maps = [asdict(one) for one in run.maps]
    grid = None if run.grid is None else asdict(run.grid)
    write_json(output_dir / NAME, {"dataset": run.dataset, "grid": grid, "maps": maps})


def read_run(output_dir: Path) -> Run | None:
    """Read what the last run has scored; None where no record tells it, or it is damaged."""
    try:
        told = read_json(output_dir / NAME)
        maps = [Scored(**one) for one in told["maps"]]  # type: ignore[attr-defined]
        grid = told.get("grid")
        known = GridSettings(**grid) if isinstance(grid, dict) else None
        return Run(str(told["dataset"]), maps, known)
    except (Mri2petError, KeyError, TypeError):
        return None


def maps_on_disk(output_dir: Path) -> list[Scored]:
    """List all maps that lie in a derivative dataset, of whatever run."""
    return [_scored(output_dir, one) for one in find_anomalies(output_dir, "*")]


def last_run(output_dir: Path) -> Run:
    """Tell what the last run has scored; without a record, all maps on disk stand for it."""
    run = read_run(output_dir)
    return Run("", maps_on_disk(output_dir)) if run is None else run


def _scored(output_dir: Path, one: Anomaly) -> Scored:
    return Scored(
        one.subject, one.session, one.training_set, one.detector, one.held_out,
        one.path_in(output_dir),
    )  # fmt: skip
