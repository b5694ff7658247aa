"""Who is to be simulated, and how."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

TRUTH = Path("derivatives") / "truth"


@dataclass(frozen=True)
class Member:
    """One participant to be made.

    Parameters
    ----------
    subject : str
        Label without ``sub-``.
    kind : {"paired", "t1w-only", "patient"}
        Controls with or without PET, or a patient.
    number : int
        Within the group, from 1.
    """

    subject: str
    kind: str
    number: int

    @property
    def group(self) -> str:
        """Say what ``participants.tsv`` has."""
        return "patient" if self.kind == "patient" else "control"


@dataclass(frozen=True)
class Plan:
    """What is to be made.

    Parameters
    ----------
    bids_dir : Path
        Where it is written to.
    paired, t1w_only, patients : int
        How many controls with PET, controls without, and patients.
    resolution : float
        Voxel size of T1w, in mm.
    seed : int
        Where chance starts; not negative.
    sessions : int
        0 for no sessions.
    frames : int
        Of PET; 1 for a static scan.
    anatomies, uptake_template : Path or None
        A folder of label maps; a mean PET in MNI space.
    vary_orientation : bool
        Whether arrays point to many directions.
    lesion_depth : tuple of float
        Least and most uptake that lesions lose, in %.
    """

    bids_dir: Path
    paired: int
    t1w_only: int
    patients: int
    resolution: float
    seed: int
    sessions: int
    frames: int
    anatomies: Path | None
    uptake_template: Path | None
    vary_orientation: bool
    lesion_depth: tuple[float, float]

    @property
    def members(self) -> list[Member]:
        """List everyone: controls with PET, controls without, patients."""
        controls = ["paired"] * self.paired + ["t1w-only"] * self.t1w_only
        named = [Member(f"control{n:02d}", kind, n) for n, kind in enumerate(controls, 1)]
        ill = [Member(f"patient{n:02d}", "patient", n) for n in range(1, self.patients + 1)]
        return named + ill

    @property
    def command(self) -> str:
        """Spell the options that give these images, wherever they are written to."""
        words = [] if self.anatomies is None else ["--anatomies", self.anatomies.name]
        if self.uptake_template is not None:
            words += ["--uptake-template", self.uptake_template.name]
        if self.vary_orientation:
            words.append("--vary-orientation")
        least, most = self.lesion_depth
        words.append(f"--lesion-depth {least:g} {most:g}")
        numbers = ("paired", "t1w_only", "patients", "resolution", "seed", "sessions", "frames")
        options = [f"--{name.replace('_', '-')} {getattr(self, name):g}" for name in numbers]
        return " ".join([*options, *words])

    @property
    def visits(self) -> list[str | None]:
        """List the session labels, or None where there are no sessions."""
        return [f"{n:02d}" for n in range(1, self.sessions + 1)] if self.sessions else [None]


def start_chance(plan: Plan, member: Member, visit: int) -> np.random.Generator:
    """Start chance anew for each participant and visit: it does not matter who else is made."""
    group = 1 if member.group == "patient" else 0
    return np.random.default_rng([plan.seed, group, member.number, visit])
