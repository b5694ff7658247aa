"""Which of several images of a session is the best one."""

import re
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence

from bids_app.visit import Scan, Unused

MAGNITUDE = ("mag", "magnitude")
# Entities of derivatives (BIDS 1.10, "Derivatives"): of an image that somebody has worked on.
OF_DERIVATIVES = frozenset(
    ("space", "desc", "res", "den", "label", "seg", "atlas", "hemi", "stat", "from", "to", "mode")
)
NO_AGENT = re.compile(r"no|non|none|pre|without", re.I)  # as labels of ce-
# Labels of acq- by which scanners' protocols tell of a contrast agent (our choice of words).
AGENT = re.compile(r"(?<![Nn]o)(?<![Nn]on)(?<![Pp]re)([Gg]ad|GAD|Gd|GD|[Cc]ontrast|[Pp]ost[Cc]on)")
# rec-nacdyn and rec-nacstat (BIDS 1.10, "Positron emission tomography"), and how else it is spelt.
NOT_CORRECTED = re.compile(
    r"^nac(?!c)|^no[nt]?ac|([Nn][Oo][NnTt]?|N)AC(?![A-Z])|[Ww]ithoutA[Cc]|(?i:uncorr)"
)
CORRECTED = re.compile(r"^ac(?!q)|AC(?![A-Z])")  # rec-acdyn, rec-acstat; CTAC, MRAC


def _labels(scan: Scan) -> list[str]:
    """Give the labels that tell of how an image was acquired and reconstructed."""
    return [label for label in (scan.entity("rec"), scan.entity("acq")) if label is not None]


def _is_odd(scan: Scan) -> int:
    """Whether its name has parts that are no entities: not BIDS, a copy perhaps."""
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


Rule = tuple[str, Callable[[Scan], int]]  # why one is better, and a penalty: 0 is best
OF_ALL: tuple[Rule, ...] = (
    ("its name has nothing but entities", _is_odd),
    ("it is no derived image (space-, desc-)", _is_derived),
    ("it has no contrast agent (ce-)", _has_agent),
)
RULES: Mapping[str, tuple[Rule, ...]] = {
    "t1w": OF_ALL,
    "pet": (
        *OF_ALL,
        ("it comes first by attenuation correction: rec-ac…, others, rec-nac…", _is_not_corrected),
        ("static (rec-acstat) comes before dynamic (rec-acdyn)", _is_dynamic),
    ),
}
WORDS = {"t1w": "T1w", "pet": "PET"}


def why_never(scan: Scan) -> str | None:
    """Say why an image is none of a whole head's tissue or uptake, or None.

    Phase, real and imaginary parts (``part-``) and pieces (``chunk-``) never take part, whatever
    flags say.
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
    """Give the penalty of an image under each rule, the most important first; 0 is best.

    Parameters
    ----------
    scan : Scan
        An image.
    key : {"t1w", "pet"}
        Whose rules hold: of derived and contrast-enhanced images, and for PET of attenuation
        correction and frames.
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
    """Tell of a choice that could have been another, or of an image that is second best."""
    told = []
    if as_good:
        told.append(
            f"{as_good + 1} {WORDS[key]} images are equally good: {best.path.name} is used, the "
            "first by run, then by name; --bids-filter-file settles it"
        )
    if _is_derived(best):
        told.append(f"{best.path.name} is a derived image, and there is no other")
    if _has_agent(best):
        told.append(f"{best.path.name} shows a contrast agent, and there is no image without one")
    if key == "pet" and _is_not_corrected(best) > 1:
        told.append(
            f"{best.path.name} is not corrected for attenuation, and there is no image that is"
        )
    return told


def choose_best(
    scans: Sequence[Scan], key: str
) -> tuple[dict[str | None, Scan], list[Unused], dict[str | None, list[str]]]:
    """Keep one image a session: the best one, of equally good ones the first run, then name.

    Parameters
    ----------
    scans : sequence of Scan
        Of one participant.
    key : {"t1w", "pet"}
        Whose rules hold.

    Returns
    -------
    chosen : dict
        One image by session.
    unused : list of Unused
        The others, and why.
    remarks : dict
        By session, sentences: where others would have been as good, or a better one was not there.
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
