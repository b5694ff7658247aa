"""Simulation of a cohort, written as a BIDS dataset with its truth."""

from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import lru_cache
from multiprocessing import get_context
from pathlib import Path

import numpy as np
from nilearn import datasets
from numpy.typing import NDArray

from bids_app import nifti
from bids_app.errors import CannotCreateError, MissingInputError, UnusableDataError
from bids_app.files import write_json, write_text, write_tsv
from bids_app.imaging.volume import Affine, Volume
from bids_app.lifeline import start_fork_server
from bids_app.simulation import metadata
from bids_app.simulation.anatomy import Anatomy, anatomy_from_labels
from bids_app.simulation.geometry import itk_text
from bids_app.simulation.images import pattern_of_template, usual_pattern
from bids_app.simulation.lesions import mask_of
from bids_app.simulation.person import (
    Person,
    PetScan,
    draw_atrophy,
    draw_person,
    mark_lesions,
    place_head,
    scan_pet,
    scan_t1w,
)
from bids_app.simulation.template import anatomy_from_template

TRUTH = Path("derivatives") / "truth"


@dataclass(frozen=True)
class SimulatedSubject:
    """Participant to simulate.

    Parameters
    ----------
    subject : str
        Label without ``sub-``.
    kind : {"paired", "t1w-only", "patient"}
        Control with or without PET, or patient.
    number : int
        Number within the group, counted from 1.
    """

    subject: str
    kind: str
    number: int

    @property
    def group(self) -> str:
        """Group, as in ``participants.tsv``."""
        return "patient" if self.kind == "patient" else "control"


@dataclass(frozen=True)
class CohortPlan:
    """Specification of a simulated cohort.

    Parameters
    ----------
    bids_dir : Path
        Folder to write to.
    paired, t1w_only, patients : int
        Numbers of controls with PET, of controls without PET, and of patients.
    resolution : float
        Voxel size of T1w, in mm.
    seed : int
        Random seed; not negative.
    sessions : int
        Number of sessions; 0 for a dataset without sessions.
    frames : int
        Number of PET frames; 1 for a static scan.
    anatomies, uptake_template : Path or None
        A folder of label maps; a mean PET in MNI space.
    vary_orientation : bool
        Whether the orientations of arrays vary.
    lesion_depth : tuple of float
        Smallest and largest reduction of uptake in lesions, in %.
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
    def members(self) -> list[SimulatedSubject]:
        """Participants: controls with PET, controls without PET, then patients."""
        kinds = ["paired"] * self.paired + ["t1w-only"] * self.t1w_only
        controls = [SimulatedSubject(f"control{n:02d}", kind, n) for n, kind in enumerate(kinds, 1)]
        patients = [
            SimulatedSubject(f"patient{n:02d}", "patient", n) for n in range(1, self.patients + 1)
        ]
        return controls + patients

    @property
    def command(self) -> str:
        """Command line options that reproduce these images, without the destination."""
        words = [] if self.anatomies is None else ["--anatomies", self.anatomies.name]
        if self.uptake_template is not None:
            words += ["--uptake-template", self.uptake_template.name]
        if self.vary_orientation:
            words.append("--vary-orientation")
        words.append(f"--lesion-depth {' '.join(map(_spell, self.lesion_depth))}")
        numbers = ("paired", "t1w_only", "patients", "resolution", "seed", "sessions", "frames")
        options = [f"--{name.replace('_', '-')} {_spell(getattr(self, name))}" for name in numbers]
        return " ".join([*options, *words])

    @property
    def visits(self) -> list[str | None]:
        """Session labels; a single None if there are no sessions."""
        return [f"{n:02d}" for n in range(1, self.sessions + 1)] if self.sessions else [None]


def _spell(number: float) -> str:
    """Format a number with all its digits, so that it can be used in a command.

    Examples
    --------
    >>> _spell(1234567), _spell(2.0), _spell(0.7654321)
    ('1234567', '2', '0.7654321')
    """
    return f"{number}".removesuffix(".0")


def start_chance(plan: CohortPlan, member: SimulatedSubject, visit: int) -> np.random.Generator:
    """Return a random generator for a participant and visit, independent of the other members."""
    group = 1 if member.group == "patient" else 0
    return np.random.default_rng([plan.seed, group, member.number, visit])


def find_label_maps(folder: Path) -> list[Path]:
    """List the label maps of a folder, sorted by name.

    Raises
    ------
    MissingInputError
        If there is no such folder, or no NIfTI image in it.
    """
    if not folder.is_dir():
        raise MissingInputError(f"{folder}: no such folder; give one with label maps")
    paths = sorted(path for path in folder.iterdir() if path.name.endswith((".nii", ".nii.gz")))
    if not paths:
        raise MissingInputError(f"{folder}: no NIfTI image in it; put label maps there")
    return paths


@lru_cache(maxsize=1)
def template_anatomy(resolution: int) -> Anatomy:
    """Create a head from the template included in nilearn, at a resolution of 1 or 2 mm."""
    t1w, gm, wm, mask = (
        load(resolution=resolution)
        for load in (
            datasets.load_mni152_template,
            datasets.load_mni152_gm_template,
            datasets.load_mni152_wm_template,
            datasets.load_mni152_brain_mask,
        )
    )
    head, grey, white = (np.asarray(image.dataobj, np.float32) for image in (t1w, gm, wm))
    return anatomy_from_template(head, grey, white, np.asarray(mask.dataobj) > 0, t1w.affine)


def load_anatomy(path: Path) -> Anatomy:
    """Read a label map as a head.

    Raises
    ------
    MissingInputError, UnusableDataError
        If the file cannot be read, or is not a label map of a head.
    """
    image = nifti.load(path)
    labels = np.rint(image.data)
    if labels.ndim != 3 or not np.array_equal(labels, image.data):
        raise UnusableDataError(f"{path}: not a label map; give a volume of whole numbers")
    try:
        return anatomy_from_labels(labels.astype(np.int32), image.affine)
    except ValueError as error:
        raise UnusableDataError(
            f"{path}: not a label map of a head ({error}); use FreeSurfer's aseg numbers"
        ) from error


def load_pattern(path: Path | None) -> Volume:
    """Return the regional pattern of a mean PET in MNI space; by default, the built-in one.

    Raises
    ------
    MissingInputError, UnusableDataError
        If the file cannot be read, or is not one volume with positive values.
    """
    if path is None:
        return usual_pattern()
    image = nifti.load_scan(path)
    if image.data.ndim != 3:
        raise UnusableDataError(f"{path}: {image.data.ndim} dimensions; give one volume")
    if not image.data.max() > 0:
        raise UnusableDataError(f"{path}: no voxel is above zero; give a mean PET")
    return pattern_of_template(np.maximum(image.data, 0), image.grid, template_anatomy(2))


T1W_UNIT = 800.0  # intensity of white matter in the files, which hold integers; our choice
LARGEST_COUNT = 32767.0
COORDINATE_STEP, COORDINATE_UNIT = 4.0, 0.1  # mm
AGES = (20, 76)  # years, the second excluded; our choice
STRENGTH_OF_TEMPLATE, STRENGTH_OF_LABELS = 1.0, 0.6  # label maps are of individuals already


def _draw_age_and_sex(plan: CohortPlan, member: SimulatedSubject) -> tuple[int, str]:
    """Draw the age in years and the sex."""
    rng = start_chance(plan, member, len(plan.visits) + 1)
    return int(rng.integers(*AGES)), str(rng.choice(["F", "M"]))


def _draw_member(plan: CohortPlan, member: SimulatedSubject, pattern: Volume) -> Person:
    strength, path = STRENGTH_OF_TEMPLATE, None
    if plan.anatomies is None:
        source = template_anatomy(1 if plan.resolution < 2 else 2)
    else:
        maps = find_label_maps(plan.anatomies)
        offset = plan.paired + plan.t1w_only if member.group == "patient" else 0
        path = maps[(offset + member.number - 1) % len(maps)]
        source = load_anatomy(path)
        strength = STRENGTH_OF_LABELS
    rng = start_chance(plan, member, 0)
    low, high = plan.lesion_depth
    depths = (low / 100, high / 100) if member.kind == "patient" else None
    atrophy = draw_atrophy(_draw_age_and_sex(plan, member)[0], rng)
    try:
        return draw_person(source, pattern, rng, depths=depths, strength=strength, atrophy=atrophy)
    except ValueError as error:
        raise UnusableDataError(
            f"{path}: {error}; give a map with cortex (labels 3 and 42), or no --patients"
        ) from error


@dataclass(frozen=True)
class _Visit:
    """Visit of a participant, and the destinations of its files."""

    plan: CohortPlan
    member: SimulatedSubject
    session: str | None
    head: Anatomy

    def stem(self, kind: str, *, truth: bool = False) -> str:
        """Return the start of file paths, and create their folder.

        It is ``ROOT/sub-X[/ses-Y]/KIND/sub-X[_ses-Y]_``.
        """
        root = self.plan.bids_dir / TRUTH if truth else self.plan.bids_dir
        parts = [f"sub-{self.member.subject}"] + ([f"ses-{self.session}"] if self.session else [])
        folder = root.joinpath(*parts, kind)
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise CannotCreateError(f"{folder}: cannot be made ({error.strerror})") from error
        return f"{folder}/{'_'.join(parts)}_"

    @property
    def origin(self) -> dict[str, object]:
        """Sidecar fields that refer to the T1w, for files on its grid."""
        path = Path(f"{self.stem('anat')}T1w.nii.gz").relative_to(self.plan.bids_dir)
        return {"SpatialReference": f"bids:raw:{path}", "Sources": [f"bids:raw:{path}"]}

    @property
    def durations(self) -> NDArray[np.float64]:
        """Durations of the frames in seconds."""
        return metadata.frame_durations(self.plan.frames)


def _save(
    data: NDArray[np.float32] | NDArray[np.int16] | NDArray[np.bool_],
    affine: Affine,
    stem: str,
    sidecar: dict[str, object],
) -> None:
    image = nifti.Image(data, affine)
    nifti.save(image, Path(f"{stem}.nii.gz"), description="SIMULATED by mri2pet")
    write_json(Path(f"{stem}.json"), sidecar)


def _write_anatomy(visit: _Visit, t1w: Volume) -> None:
    head, truth = visit.head, visit.stem("anat", truth=True)
    counts = np.rint(np.minimum(t1w * T1W_UNIT, LARGEST_COUNT)).astype(np.int16)
    _save(counts, head.affine, f"{visit.stem('anat')}T1w", metadata.describe_t1w())
    _save(head.labels, head.affine, f"{truth}space-T1w_desc-aseg_dseg", visit.origin)
    step = max(round(COORDINATE_STEP / visit.plan.resolution), 1)
    tenths = np.rint(head.mni[::step, ::step, ::step] / COORDINATE_UNIT).astype(np.int16)
    affine = head.affine @ np.diag([step, step, step, 1.0])
    sidecar = {**visit.origin, "Units": "0.1 mm"}
    _save(tenths, affine, f"{truth}space-T1w_desc-mni_coordinates", sidecar)


def _write_pet(visit: _Visit, pet: PetScan, rng: np.random.Generator) -> None:
    data = pet.data if visit.plan.frames > 1 else pet.data[..., 0]
    sidecar = metadata.describe_pet(visit.durations, pet.scanner.fwhm, rng)
    _save(data, pet.grid.affine, f"{visit.stem('pet')}trc-18FFDG_pet", sidecar)
    truth = visit.stem("pet", truth=True)
    sidecar = {**visit.origin, "SkullStripped": False, "Units": "Bq/mL"}
    for desc, volume in (("noisefree", pet.noisefree), ("expected", pet.expected)):
        _save(volume, visit.head.affine, f"{truth}space-T1w_desc-{desc}_pet", sidecar)
    path = Path(f"{truth}trc-18FFDG_from-pet_to-T1w_mode-image_xfm.txt")
    write_text(path, itk_text(pet.t1w_to_pet))


def _write_lesions(visit: _Visit, person: Person) -> list[dict[str, object]]:
    head, subject = visit.head, f"sub-{visit.member.subject}"
    sidecar = {**visit.origin, "Type": "Lesion"}
    stem = visit.stem("anat", truth=True)
    _save(mark_lesions(person, head), head.affine, f"{stem}space-T1w_label-L_mask", sidecar)
    rows: list[dict[str, object]] = []
    for number, lesion in enumerate(person.lesions, 1):
        volume = mask_of(lesion, head.labels, head.affine).sum() * np.prod(head.zooms)
        row: dict[str, object] = {
            "participant_id": subject,
            "lesion": number,
            "side": lesion.side,
            "session_id": f"ses-{visit.session}" if visit.session else None,
            "volume": float(volume),
            "depth": 100 * lesion.depth,
        }
        row |= dict(zip("xyz", lesion.centre, strict=True))
        row |= {f"mni_{axis}": mm for axis, mm in zip("xyz", lesion.mni, strict=True)}
        rows.append(row)
    return rows


def _write_visit(
    plan: CohortPlan, member: SimulatedSubject, person: Person, number: int
) -> list[dict[str, object]]:
    rng = start_chance(plan, member, number + 1)
    head = place_head(person, plan.resolution, rng, vary=plan.vary_orientation)
    visit = _Visit(plan, member, plan.visits[number], head)
    _write_anatomy(visit, scan_t1w(person, head, rng))
    if member.kind == "t1w-only":
        return []
    pet = scan_pet(person, head, visit.durations, rng, vary=plan.vary_orientation)
    _write_pet(visit, pet, rng)
    return _write_lesions(visit, person) if person.lesions else []


def write_member(
    plan: CohortPlan, member: SimulatedSubject, pattern: Volume
) -> list[dict[str, object]]:
    """Write all images of one participant, and return the rows of ``lesions.tsv``.

    Raises
    ------
    Mri2petError
        If a label map cannot be used, or a file cannot be written.
    """
    person = _draw_member(plan, member, pattern)
    visits = range(len(plan.visits))
    return [row for visit in visits for row in _write_visit(plan, member, person, visit)]


def _write_tables(plan: CohortPlan, lesions: list[dict[str, object]]) -> None:
    rows: list[dict[str, object]] = []
    for member in plan.members:
        age, sex = _draw_age_and_sex(plan, member)
        rows.append(
            {
                "participant_id": f"sub-{member.subject}",
                "group": member.group,
                "age": age,
                "sex": sex,
            }
        )
    columns = ["participant_id", *metadata.PARTICIPANTS]
    truth = plan.bids_dir / TRUTH
    for folder in (plan.bids_dir, truth):
        write_tsv(folder / "participants.tsv", columns, rows)
        write_json(folder / "participants.json", metadata.PARTICIPANTS)
    write_tsv(truth / "lesions.tsv", list(metadata.LESION_COLUMNS), lesions)
    write_json(truth / "lesions.json", metadata.LESION_COLUMNS)
    write_tsv(truth / "desc-aseg_dseg.tsv", ["index", "name"], metadata.label_rows())


def _start(plan: CohortPlan, version: str) -> None:
    try:
        plan.bids_dir.mkdir(parents=True, exist_ok=True)
        occupied = any(plan.bids_dir.iterdir())
    except OSError as error:
        raise CannotCreateError(
            f"{plan.bids_dir}: cannot be made ({error.strerror}); choose another folder"
        ) from error
    if occupied:
        raise CannotCreateError(f"{plan.bids_dir}: not empty; choose a new folder, or empty it")
    source = "a template's tissue maps" if plan.anatomies is None else "a label map"
    truth = plan.bids_dir / TRUTH
    for folder, is_truth in ((plan.bids_dir, False), (truth, True)):
        description = metadata.describe_dataset(version, truth=is_truth)
        write_json(folder / "dataset_description.json", description)
    readme = metadata.README.format(version=version, command=plan.command, source=source)
    write_text(plan.bids_dir / "README.md", readme)
    write_text(truth / "README.md", metadata.TRUTH_README)
    write_text(truth / ".bidsignore", "\n".join(metadata.IGNORED) + "\n")


def write_cohort(plan: CohortPlan, *, nprocs: int, version: str) -> None:
    """Write the dataset and its truth.

    Equal plans yield identical files, with any number of processes.

    Parameters
    ----------
    plan : CohortPlan
        Specification of the cohort.
    nprocs : int
        Number of participants simulated in parallel; a process needs 1.5 GB at 1 mm.
    version : str
        Version of mri2pet, for the dataset's description.

    Raises
    ------
    CannotCreateError
        If the folder is not empty, or cannot be created.
    MissingInputError, UnusableDataError
        If label maps or the uptake template are missing or cannot be used.
    ReadWriteError
        If a file cannot be written.
    """
    if plan.anatomies is not None:
        find_label_maps(plan.anatomies)
    pattern = load_pattern(plan.uptake_template)
    _start(plan, version)
    members = plan.members
    workers = min(nprocs, len(members))
    calls = ([plan] * len(members), members, [pattern] * len(members))
    if workers == 1:
        rows_by_member = list(map(write_member, *calls))
    else:
        start_fork_server()
        with ProcessPoolExecutor(workers, mp_context=get_context("forkserver")) as pool:
            rows_by_member = list(pool.map(write_member, *calls))
    _write_tables(plan, [row for rows in rows_by_member for row in rows])
