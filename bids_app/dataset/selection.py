"""Selection of the images for a run, with reasons for those not used."""

import re
from collections import defaultdict
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path

from bids_app.dataset.filters import Rules, check_filters, why_illegal, why_not, why_not_tracer
from bids_app.dataset.index import (
    Ignored,
    RawFiles,
    find_subjects,
    parse_name,
    read_bidsignore,
    read_files,
    read_metadata,
)
from bids_app.dataset.sessions import (
    Session,
    describe_distance,
    natural_key,
    nearest_session,
    read_session_times,
)
from bids_app.dataset.validation import find_strays
from bids_app.errors import Mri2petError, NothingSelectedError, name_some
from bids_app.visit import Scan, Selection, Unused, Visit

MAGNITUDE = ("mag", "magnitude")
# Entities of derivatives (BIDS 1.10, "Derivatives"), which mark a processed image
OF_DERIVATIVES = frozenset(
    ("space", "desc", "res", "den", "label", "seg", "atlas", "hemi", "stat", "from", "to", "mode")
)
NO_AGENT = re.compile(r"no|non|none|pre|without", re.I)  # labels of ce-
# Labels of acq- that mark a contrast agent in scanners' protocols; our choice
AGENT = re.compile(r"(?<![Nn]o)(?<![Nn]on)(?<![Pp]re)([Gg]ad|GAD|Gd|GD|[Cc]ontrast|[Pp]ost[Cc]on)")
# rec-nacdyn and rec-nacstat (BIDS 1.10, "Positron emission tomography"), and other spellings
NOT_CORRECTED = re.compile(
    r"^nac(?!c)|^no[nt]?ac|([Nn][Oo][NnTt]?|N)AC(?![A-Z])|[Ww]ithoutA[Cc]|(?i:uncorr)"
)
CORRECTED = re.compile(r"^ac(?!q)|AC(?![A-Z])")  # rec-acdyn, rec-acstat; CTAC, MRAC


def _labels(scan: Scan) -> list[str]:
    """List the labels of reconstruction and acquisition of an image."""
    return [label for label in (scan.entity("rec"), scan.entity("acq")) if label is not None]


def _is_odd(scan: Scan) -> int:
    """Count the parts of a file name that are not entities, as in names of copies."""
    parts = scan.path.name.partition(".")[0].split("_")
    return sum(not dash or not label for _, dash, label in (p.partition("-") for p in parts[:-1]))


def _is_derived(scan: Scan) -> int:
    return int(any(key in OF_DERIVATIVES for key, _ in scan.entities))


def _has_agent(scan: Scan) -> int:
    agent, acquired = scan.entity("ce"), scan.entity("acq")
    if agent is not None:
        return int(not NO_AGENT.fullmatch(agent))
    return int(acquired is not None and bool(AGENT.search(acquired)))


def _is_not_corrected(scan: Scan) -> int:
    if any(NOT_CORRECTED.search(label) for label in _labels(scan)):
        return 2
    return int(not any(CORRECTED.search(label) for label in _labels(scan)))


def _is_dynamic(scan: Scan) -> int:
    labels = [label.lower() for label in _labels(scan)]
    if any("stat" in label for label in labels):
        return 0
    return 2 if any("dyn" in label for label in labels) else 1


Rule = tuple[str, Callable[[Scan], int]]  # why an image is better, and its penalty: 0 is best
OF_ALL: tuple[Rule, ...] = (
    ("its name consists of entities only", _is_odd),
    ("it is not a derived image (space-, desc-)", _is_derived),
    ("it has no contrast agent (ce-)", _has_agent),
)
RULES: Mapping[str, tuple[Rule, ...]] = {
    "t1w": OF_ALL,
    "pet": (
        *OF_ALL,
        ("it comes first by attenuation correction (rec-ac…, others, rec-nac…)", _is_not_corrected),
        ("static (rec-acstat) comes before dynamic (rec-acdyn)", _is_dynamic),
    ),
}
WORDS = {"t1w": "T1w", "pet": "PET"}


def why_never(scan: Scan) -> str | None:
    """Explain why an image cannot be used whatever the flags, or return None.

    Phase, real and imaginary parts (``part-``) and pieces (``chunk-``) are never used.
    """
    part, chunk = scan.entity("part"), scan.entity("chunk")
    if part is not None and part.lower() not in MAGNITUDE:
        return f"{scan.path}: part-{part} is not a magnitude image; add the magnitude"
    if chunk is not None:
        return f"{scan.path}: chunk-{chunk} is only a piece of an image; join the pieces into one"
    return None


def _order(scan: Scan) -> tuple[bool, int, str]:
    run = scan.entity("run")
    number = int(run) if run is not None and run.isdecimal() else 0
    return run is None, number, scan.path.name


def penalties(scan: Scan, key: str) -> tuple[int, ...]:
    """Return the penalty of an image under each rule, the most important first; 0 is best.

    Parameters
    ----------
    scan : Scan
        Image to rate.
    key : {"t1w", "pet"}
        Kind of image. The rules concern derived and contrast-enhanced images and, for PET,
        attenuation correction and frames.
    """
    return tuple(rule(scan) for _, rule in RULES[key])


def _why_not(scan: Scan, best: Scan, key: str) -> str:
    used = f"{best.path.name} of the same session is used"
    ranks = zip(RULES[key], penalties(best, key), penalties(scan, key), strict=True)
    for (why, _), better, worse in ranks:
        if better < worse:
            return f"{used}, because {why}; choose with --bids-filter-file"
    return f"{used}; choose with --run-label or --bids-filter-file"


def _remarks(best: Scan, as_good: int, key: str) -> list[str]:
    """Write remarks if several images were equally good, or the best one is not ideal."""
    remarks = []
    if as_good:
        remarks.append(
            f"{as_good + 1} {WORDS[key]} images are equally good: {best.path.name} is used, the "
            "first by run, then by name; choose with --bids-filter-file"
        )
    if _is_derived(best):
        remarks.append(f"{best.path.name} is a derived image, and there is no other")
    if _has_agent(best):
        remarks.append(
            f"{best.path.name} shows a contrast agent, and there is no image without one"
        )
    if key == "pet" and _is_not_corrected(best) > 1:
        remarks.append(
            f"{best.path.name} is not corrected for attenuation, and there is no image that is"
        )
    return remarks


def choose_best(
    scans: Sequence[Scan], key: str
) -> tuple[dict[str | None, Scan], list[Unused], dict[str | None, list[str]]]:
    """Keep the best image per session; among equally good ones, the first by run, then by name.

    Parameters
    ----------
    scans : sequence of Scan
        Images of one participant.
    key : {"t1w", "pet"}
        Kind of image, which determines the rules.

    Returns
    -------
    chosen : dict
        Chosen image of each session.
    unused : list of Unused
        Other images, with reasons.
    remarks : dict
        Sentences by session, if other images were equally good, or the chosen one is not ideal.
    """
    by_session: defaultdict[str | None, list[Scan]] = defaultdict(list)
    for scan in sorted(scans, key=lambda scan: (penalties(scan, key), *_order(scan))):
        by_session[scan.session].append(scan)
    unused, remarks = list[Unused](), dict[str | None, list[str]]()
    for session, (best, *others) in by_session.items():
        unused += [Unused(s.subject, s.path, _why_not(s, best, key)) for s in others]
        as_good = sum(penalties(scan, key) == penalties(best, key) for scan in others)
        remarks[session] = _remarks(best, as_good, key)
    return {session: ranked[0] for session, ranked in by_session.items()}, unused, remarks


Stray = tuple[Scan, str, str]  # file that is not a usable image, intended kind (t1w, pet), reason


def _named(session: Session) -> str:
    return "no session" if session is None else f"ses-{session}"


def _screen(
    scans: Sequence[Scan], key: str, rules: Rules
) -> tuple[list[Scan], list[Unused], list[Stray]]:
    """Split images by their names into candidates, excluded ones, and unusable ones."""
    chosen, unused, strays = list[Scan](), list[Unused](), list[Stray]()
    for scan in scans:
        reason, illegal, never = why_not(scan, key, rules), why_illegal(scan), why_never(scan)
        if reason is not None:
            unused.append(Unused(scan.subject, scan.path, reason))
        elif illegal is not None:
            unused.append(Unused(scan.subject, scan.path, illegal, 65))
        elif never is not None:
            strays.append((scan, key, never))
        else:
            chosen.append(scan)
    return chosen, unused, strays


def _chosen_pets(
    scans: Sequence[Scan], sidecars: Mapping[Path, tuple[Path, ...]], rules: Rules
) -> tuple[list[Scan], list[Unused]]:
    """Read the sidecars of PET images, and select by tracer."""
    chosen, unused = [], []
    for scan in scans:
        try:
            complete = read_metadata(scan, sidecars)
        except Mri2petError as error:
            unused.append(Unused(scan.subject, scan.path, str(error), error.exit_code))
            continue
        refusal = why_not_tracer(complete, rules.tracer_label)
        if refusal is None:
            chosen.append(complete)
        else:
            unused.append(Unused(scan.subject, scan.path, *refusal))
    return chosen, unused


def _find_strays(subject: str, bids_dir: Path, rules: Rules, is_ignored: Ignored) -> list[Stray]:
    """Find files meant as images that the flags select, unless they have another tracer."""
    strays = []
    for path, session, key, why in find_strays(bids_dir, subject):
        scan = Scan(path, subject, session, parse_name(path.name))
        left_out = is_ignored(path.relative_to(bids_dir), path.is_dir())
        other = scan.entity("trc") and why_not_tracer(scan, rules.tracer_label)
        if not left_out and not other and why_not(scan, key, rules) is None:
            strays.append((scan, key, f"{path}: there is a file, but {why}"))
    return strays


def _as_unused(
    strays: Sequence[Stray], sessions: Mapping[str, Collection[Session]]
) -> list[Unused]:
    """Report stray files, as problems only if their session has no image of that kind."""
    return [
        Unused(scan.subject, scan.path, why, None if scan.session in sessions[key] else 65)
        for scan, key, why in strays
    ]


def _visits(
    t1ws: Mapping[Session, Scan],
    pets: Mapping[Session, Scan],
    remarks: Mapping[str, Mapping[Session, Sequence[str]]],
    bids_dir: Path,
) -> list[Visit]:
    """Match each PET image to the T1w of its own or the nearest session; its own comes first."""
    partners: defaultdict[Session, list[Scan]] = defaultdict(list)
    notes: defaultdict[Session, list[str]] = defaultdict(list)
    for session, sentences in remarks["t1w"].items():
        notes[session] += sentences
    for session in sorted(pets, key=lambda session: (session not in t1ws, natural_key(session))):
        pet, nearest = pets[session], session
        if session not in t1ws:
            times = read_session_times(bids_dir, pet.subject, {session, *t1ws})
            nearest = nearest_session(session, t1ws, times)
            notes[nearest].append(
                f"PET of {_named(session)} has no T1w of its own session; T1w of {_named(nearest)} "
                f"is used, {describe_distance(session, nearest, t1ws, times)}"
            )
        notes[nearest] += remarks["pet"].get(session, ())
        partners[nearest].append(pet)
    return [
        Visit(t1w.subject, session, t1w, tuple(partners[session]), tuple(notes[session]))
        for session, t1w in sorted(t1ws.items(), key=lambda item: natural_key(item[0]))
    ]


def _aside(label: str, why: str, exit_code: int | None = None) -> Unused:
    return Unused(label, None, f"sub-{label}: {why}", exit_code)


def _without_t1w(subject: str, files: RawFiles, pets: Mapping[Session, Scan]) -> list[Unused]:
    """Explain why a participant has no T1w, unless its excluded images already do."""
    present, left_out = files.pets.get(subject, ()), files.t1ws.get(subject, ())
    ignored = files.ignored.get(subject, ())
    if (left_out or ignored) and not pets:
        return []  # nothing of this participant is selected; each image has its reason
    if left_out:
        sessions = [f"ses-{s.session}" for s in left_out if s.session is not None]
        advice = (
            f"the flags exclude that of {name_some(sessions)}" if sessions else "check the flags"
        )
        why = f"no T1w for its PET; {advice}"
    elif ignored:
        why = "no T1w that .bidsignore does not exclude; change it, or exclude the participant"
    elif present:
        why = "no T1w; PET alone cannot be used, so add the T1w or exclude the participant"
    else:
        why = "no T1w and no PET; add images or exclude the participant"
    return [_aside(subject, why, 66)]


def _select_of(
    subject: str, files: RawFiles, rules: Rules, bids_dir: Path, is_ignored: Ignored
) -> tuple[list[Visit], list[Unused]]:
    t1ws, unused, strays = _screen(files.t1ws.get(subject, ()), "t1w", rules)
    screened, unused_pets, no_pets = _screen(files.pets.get(subject, ()), "pet", rules)
    pets, other_tracers = _chosen_pets(screened, files.pet_sidecars, rules)
    best_t1ws, other_t1ws, of_t1ws = choose_best(t1ws, "t1w")
    best_pets, other_pets, of_pets = choose_best(pets, "pet")
    strays += no_pets + _find_strays(subject, bids_dir, rules, is_ignored)
    no_images = _as_unused(strays, {"t1w": best_t1ws, "pet": best_pets})
    unused += other_t1ws + unused_pets + other_tracers + other_pets + no_images
    unused += [
        Unused(subject, scan.path, "excluded by .bidsignore")
        for scan in files.ignored.get(subject, ())
    ]
    if best_t1ws:
        return _visits(best_t1ws, best_pets, {"t1w": of_t1ws, "pet": of_pets}, bids_dir), unused
    if any(key == "t1w" for _, key, _ in strays):
        return [], unused  # the file meant as a T1w is reported
    return [], unused + _without_t1w(subject, files, best_pets)


def _without_ignored(
    present: Sequence[str], asked_for: Sequence[str], is_ignored: Ignored
) -> tuple[list[str], list[Unused]]:
    """Exclude participants whose folder is in ``.bidsignore``, as a problem if requested."""
    ignored = [label for label in present if is_ignored(Path(f"sub-{label}"), is_folder=True)]
    why, advice = "excluded by .bidsignore", "; change it, or do not request this participant"
    unused = [
        _aside(label, why + advice, 66) if label in asked_for else _aside(label, why)
        for label in ignored
    ]
    return [label for label in present if label not in ignored], unused


def _choose_subjects(
    present: Sequence[str], asked_for: Sequence[str], excluded: Sequence[str], is_ignored: Ignored
) -> tuple[list[str], list[Unused]]:
    known = frozenset(present)
    present, ignored = _without_ignored(present, asked_for, is_ignored)
    unused = [
        _aside(label, "not in the dataset; correct --participant-label", 66)
        for label in asked_for
        if label not in known
    ]
    unused += [
        _aside(label, "excluded by --exclude-participant-label")
        if label in known
        else _aside(label, "to be excluded, but not in the dataset")
        for label in excluded
    ]
    unused += ignored
    selected = frozenset(asked_for) if asked_for else known
    chosen = [label for label in present if label in selected and label not in excluded]
    if not chosen:
        labels = name_some([f"sub-{label}" for label in present])
        raise NothingSelectedError(
            "no participant is left after --participant-label and --exclude-participant-label; "
            f"the dataset has {labels}" + (", and .bidsignore excludes others" if ignored else "")
        )
    return chosen, unused


def _refuse_nothing(files: RawFiles, visits: list[Visit], unused: list[Unused]) -> None:
    if visits or any(entry.exit_code is not None for entry in unused):
        return
    scans = [scan for scans in (*files.t1ws.values(), *files.pets.values()) for scan in scans]
    sessions = sorted({scan.session for scan in scans if scan.session is not None})
    hint = f"; the dataset has ses-{name_some(sessions)}" if sessions else ""
    first = next(
        (f" ({image.path.name}: {image.reason})" for image in unused if image.path is not None), ""
    )
    raise NothingSelectedError(
        f"no T1w is left after --session-label, --run-label and --bids-filter-file{hint}{first}"
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
    """Select the images of a run without opening them.

    Parameters
    ----------
    bids_dir : Path
        Root of the raw dataset.
    participant_label, exclude_participant_label, session_label, tracer_label, run_label
        Labels given by the flags, without prefixes; empty means all (for tracers, FDG).
    filters : object
        Parsed content of the ``--bids-filter-file``; see :func:`check_filters`.
    database_dir : Path, optional
        Folder in which pybids keeps its index between runs.

    Returns
    -------
    Selection
        Visits by participant and session, and everything that is not used.

    Raises
    ------
    MissingInputError, InvalidBidsError, ReadWriteError
        See :func:`find_subjects`.
    UsageError
        See :func:`check_filters`.
    NothingSelectedError
        If the flags exclude everything.
    """
    checked = check_filters({} if filters is None else filters)
    rules = Rules(tuple(session_label), tuple(tracer_label), tuple(run_label), checked)
    bids_dir = bids_dir.absolute()
    is_ignored = read_bidsignore(bids_dir)
    subjects, unused = _choose_subjects(
        find_subjects(bids_dir), participant_label, exclude_participant_label, is_ignored
    )
    files = read_files(bids_dir, subjects, is_ignored=is_ignored, database_dir=database_dir)
    visits: list[Visit] = []
    for subject in subjects:
        of_subject, left_aside = _select_of(subject, files, rules, bids_dir, is_ignored)
        visits += of_subject
        unused += left_aside
    _refuse_nothing(files, visits, unused)
    return Selection(tuple(visits), tuple(unused))
