"""Which images a run works on, which it leaves aside, and why."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path

from bids_app.dataset.filters import Rules, check_filters, why_illegal, why_not, why_not_tracer
from bids_app.dataset.reading import RawFiles, find_subjects, read_files, read_metadata
from bids_app.dataset.sessions import Session, natural_key, nearest_session, read_session_times
from bids_app.errors import NothingSelectedError, ReadWriteError, UnusableDataError
from bids_app.visit import Scan, Selection, Unused, Visit

NAMED_AT_MOST = 5  # labels listed in a message


def _order(scan: Scan) -> tuple[bool, int, str]:
    run = scan.entity("run")
    number = int(run) if run is not None and run.isdecimal() else 0
    return run is None, number, scan.path.name


def _named(session: Session) -> str:
    return "no session" if session is None else f"ses-{session}"


def _listed(labels: Sequence[str]) -> str:
    more = " …" if len(labels) > NAMED_AT_MOST else ""
    return ", ".join(labels[:NAMED_AT_MOST]) + more


def _first_of_each_session(scans: Sequence[Scan]) -> tuple[dict[Session, Scan], list[Unused]]:
    """Keep one image a session: first run, then first name."""
    by_session: defaultdict[Session, list[Scan]] = defaultdict(list)
    for scan in sorted(scans, key=_order):
        by_session[scan.session].append(scan)
    unused = [
        Unused(
            scan.subject,
            scan.path,
            f"{first.path.name} of the same session is used; "
            "choose with --run-label or --bids-filter-file",
        )
        for first, *others in by_session.values()
        for scan in others
    ]
    return {session: scans[0] for session, scans in by_session.items()}, unused


def _screen(scans: Sequence[Scan], key: str, rules: Rules) -> tuple[list[Scan], list[Unused]]:
    """Part images by what their names say."""
    chosen, unused = [], []
    for scan in scans:
        reason = why_not(scan, key, rules)
        illegal = why_illegal(scan)
        if reason is not None:
            unused.append(Unused(scan.subject, scan.path, reason))
        elif illegal is not None:
            unused.append(Unused(scan.subject, scan.path, illegal, 65))
        else:
            chosen.append(scan)
    return chosen, unused


def _chosen_pets(
    scans: Sequence[Scan], sidecars: Mapping[Path, tuple[Path, ...]], rules: Rules
) -> tuple[list[Scan], list[Unused]]:
    screened, unused = _screen(scans, "pet", rules)
    chosen = []
    for scan in screened:
        try:
            complete = read_metadata(scan, sidecars)
        except (UnusableDataError, ReadWriteError) as error:
            unused.append(Unused(scan.subject, scan.path, str(error), error.exit_code))
            continue
        refusal = why_not_tracer(complete, rules.tracer_label)
        if refusal is None:
            chosen.append(complete)
        else:
            unused.append(Unused(scan.subject, scan.path, *refusal))
    return chosen, unused


def _visits(
    t1ws: Mapping[Session, Scan], pets: Mapping[Session, Scan], bids_dir: Path
) -> list[Visit]:
    """Give each PET image to the T1w of its session, or of the nearest."""
    partners: defaultdict[Session, list[Scan]] = defaultdict(list)
    notes: defaultdict[Session, list[str]] = defaultdict(list)
    for session in sorted(pets, key=natural_key):
        pet, nearest = pets[session], session
        if session not in t1ws:
            times = read_session_times(bids_dir, pet.subject)
            nearest = nearest_session(session, t1ws, times)
            notes[nearest].append(
                f"PET of {_named(session)} has no T1w of its own session; "
                f"T1w of {_named(nearest)} is used"
            )
        partners[nearest].append(pet)
    return [
        Visit(t1w.subject, session, t1w, tuple(partners[session]), tuple(notes[session]))
        for session, t1w in sorted(t1ws.items(), key=lambda item: natural_key(item[0]))
    ]


def _without_t1w(subject: str, files: RawFiles, pets: Mapping[Session, Scan]) -> list[Unused]:
    present, left_out = files.pets.get(subject, ()), files.t1ws.get(subject, ())
    if left_out and not pets:
        return []  # nothing of this participant was asked for; each image says why
    if left_out:
        sessions = [f"ses-{s.session}" for s in left_out if s.session is not None]
        advice = f"the flags leave out that of {_listed(sessions)}" if sessions else "see the flags"
        return [Unused(subject, None, f"sub-{subject}: no T1w for its PET; {advice}", 66)]
    if present:
        reason = "no T1w; PET alone cannot be used, add the participant's T1w or exclude it"
    else:
        reason = "no T1w and no PET; add its images or exclude it"
    return [Unused(subject, None, f"sub-{subject}: {reason}", 66)]


def _select_of(
    subject: str, files: RawFiles, rules: Rules, bids_dir: Path
) -> tuple[list[Visit], list[Unused]]:
    t1ws, unused = _screen(files.t1ws.get(subject, ()), "t1w", rules)
    pets, unused_pets = _chosen_pets(files.pets.get(subject, ()), files.pet_sidecars, rules)
    first_t1ws, later_t1ws = _first_of_each_session(t1ws)
    first_pets, later_pets = _first_of_each_session(pets)
    unused += later_t1ws + unused_pets + later_pets
    if not first_t1ws:
        return [], unused + _without_t1w(subject, files, first_pets)
    return _visits(first_t1ws, first_pets, bids_dir), unused


def _choose_subjects(
    present: Sequence[str], wanted: Sequence[str], excluded: Sequence[str]
) -> tuple[list[str], list[Unused]]:
    known = frozenset(present)
    unused = [
        Unused(label, None, f"sub-{label}: not in the dataset; correct --participant-label", 66)
        for label in wanted
        if label not in known
    ]
    unused += [
        Unused(label, None, f"sub-{label}: left out by --exclude-participant-label")
        if label in known
        else Unused(label, None, f"sub-{label}: to be excluded, but not in the dataset")
        for label in excluded
    ]
    asked = frozenset(wanted) if wanted else known
    chosen = [label for label in present if label in asked and label not in excluded]
    if not chosen:
        there = _listed([f"sub-{label}" for label in present])
        raise NothingSelectedError(
            "no participant is left after --participant-label and --exclude-participant-label; "
            f"the dataset has {there}"
        )
    return chosen, unused


def _refuse_nothing(files: RawFiles, visits: list[Visit], unused: list[Unused]) -> None:
    if visits or any(entry.exit_code is not None for entry in unused):
        return
    scans = [scan for scans in (*files.t1ws.values(), *files.pets.values()) for scan in scans]
    sessions = sorted({scan.session for scan in scans if scan.session is not None})
    there = f"; there are ses-{_listed(sessions)}" if sessions else ""
    first = next((f" ({u.path.name}: {u.reason})" for u in unused if u.path is not None), "")
    raise NothingSelectedError(
        f"no T1w is left after --session-label, --run-label and --bids-filter-file{there}{first}"
    )


def select(
    bids_dir: Path,
    *,
    participant_label: Sequence[str] = (),
    exclude_participant_label: Sequence[str] = (),
    session_label: Sequence[str] = (),
    tracer_label: Sequence[str] = (),
    run_label: Sequence[str] = (),
    filters: object = None,
    database_dir: Path | None = None,
) -> Selection:
    """Choose the images of a run; no image is opened.

    Parameters
    ----------
    bids_dir : Path
        Root of the raw dataset.
    participant_label, exclude_participant_label, session_label, tracer_label, run_label
        As the flags give them, without prefixes; empty is everything (for tracers: FDG).
    filters : object
        What the ``--bids-filter-file`` holds, parsed; see :func:`check_filters`.
    database_dir : Path, optional
        Where pybids keeps its index between runs.

    Returns
    -------
    Selection
        Visits by participant and session, and all that is left aside.

    Raises
    ------
    MissingInputError, InvalidBidsError, ReadWriteError
        As :func:`find_subjects`.
    UsageError
        As :func:`check_filters`.
    NothingSelectedError
        If the flags leave nothing.
    """
    checked = check_filters({} if filters is None else filters)
    rules = Rules(tuple(session_label), tuple(tracer_label), tuple(run_label), checked)
    bids_dir = bids_dir.absolute()
    subjects, unused = _choose_subjects(
        find_subjects(bids_dir), participant_label, exclude_participant_label
    )
    files = read_files(bids_dir, subjects, database_dir=database_dir)
    visits: list[Visit] = []
    for subject in subjects:
        of_subject, left_aside = _select_of(subject, files, rules, bids_dir)
        visits += of_subject
        unused += left_aside
    _refuse_nothing(files, visits, unused)
    return Selection(tuple(visits), tuple(unused))
