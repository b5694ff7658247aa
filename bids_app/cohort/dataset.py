"""A cohort of simulated people, written as a BIDS dataset with its truth."""

from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context

from bids_app.cohort.plan import TRUTH, Plan, start_chance
from bids_app.cohort.sources import find_label_maps, load_pattern
from bids_app.cohort.visit import write_member
from bids_app.errors import CannotCreateError
from bids_app.files import write_json, write_text, write_tsv
from bids_app.lifeline import start_fork_server
from bids_app.simulation import metadata

AGES = (20, 76)  # years, the second excluded; our choice


def _write_tables(plan: Plan, lesions: list[dict[str, object]]) -> None:
    rows: list[dict[str, object]] = []
    for member in plan.members:
        rng = start_chance(plan, member, len(plan.visits) + 1)
        age, sex = int(rng.integers(*AGES)), str(rng.choice(["F", "M"]))
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


def _start(plan: Plan, version: str) -> None:
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
        about = metadata.describe_dataset(version, truth=is_truth)
        write_json(folder / "dataset_description.json", about)
    readme = metadata.README.format(version=version, command=plan.command, source=source)
    write_text(plan.bids_dir / "README.md", readme)
    write_text(truth / "README.md", metadata.TRUTH_README)
    write_text(truth / ".bidsignore", "\n".join(metadata.IGNORED) + "\n")


def write_cohort(plan: Plan, *, nprocs: int, version: str) -> None:
    """Write the dataset and its truth; equal plans give equal bytes, on any number of processes.

    Parameters
    ----------
    plan : Plan
        What to make.
    nprocs : int
        Participants made at a time; a process needs 1.5 GB at 1 mm.
    version : str
        Of mri2pet, for the dataset's description.

    Raises
    ------
    CannotCreateError
        If the folder is not empty, or cannot be made.
    MissingInputError, UnusableDataError
        If label maps or the uptake template are not there, or cannot be used.
    ReadWriteError
        If a file cannot be written.
    """
    if plan.anatomies is not None:
        find_label_maps(plan.anatomies)
    pattern = load_pattern(plan.uptake_template)
    _start(plan, version)
    members = plan.members
    workers = min(nprocs, len(members))
    everyone = ([plan] * len(members), members, [pattern] * len(members))
    if workers == 1:
        found = list(map(write_member, *everyone))
    else:
        start_fork_server()
        with ProcessPoolExecutor(workers, mp_context=get_context("forkserver")) as pool:
            found = list(pool.map(write_member, *everyone))
    _write_tables(plan, [row for rows in found for row in rows])
