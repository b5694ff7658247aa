"""Which images of the dataset a run may use: tracers, sessions, runs, and the filter file."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from bids_app.errors import UsageError
from bids_app.labels import LABEL, same_run
from bids_app.visit import Scan

Filter = Mapping[str, object]

# Names that pybids, and so other apps' filter files, give to the keys of a file name.
SHORT = {
    "subject": "sub", "session": "ses", "task": "task", "acquisition": "acq", "ceagent": "ce",
    "tracer": "trc", "reconstruction": "rec", "direction": "dir", "run": "run", "echo": "echo",
    "flip": "flip", "inv": "inv", "inversion": "inv", "mt": "mt", "part": "part", "chunk": "chunk",
    "modality": "mod", "space": "space", "desc": "desc",
}  # fmt: skip
IMPLIED = ("datatype", "suffix", "extension")  # follow from the key "t1w" or "pet"
FDG = re.compile(r"fdg(?!al)")  # FDGal is fluorodeoxygalactose


@dataclass(frozen=True)
class Rules:
    """What the command line says about images; names are those of its flags."""

    session_label: tuple[str, ...] = ()
    tracer_label: tuple[str, ...] = ()
    run_label: tuple[str, ...] = ()
    filters: Mapping[str, Filter] = field(default_factory=dict)


def _check_query(key: str, query: object) -> None:
    where = f'--bids-filter-file: "{key}"'
    if key not in ("t1w", "pet"):
        raise UsageError(f'{where} is not known; use "t1w" and "pet"')
    if not isinstance(query, Mapping):
        raise UsageError(f"{where} is not an object of entities and labels; correct it")
    for name, wanted in query.items():
        if name not in SHORT and name not in SHORT.values() and name not in IMPLIED:
            raise UsageError(f'{where}: no entity "{name}"; use {", ".join(sorted(SHORT))}')
        values = wanted if isinstance(wanted, list) else [wanted]
        if not all(value is None or isinstance(value, str | int) for value in values):
            raise UsageError(f'{where}: "{name}" must be a label, a list of labels, or null')


def check_filters(filters: object) -> dict[str, Filter]:
    """Look through what a ``--bids-filter-file`` holds.

    Parameters
    ----------
    filters : object
        Parsed JSON: an object with the keys ``t1w`` and ``pet``, each an object of entities (as
        pybids or BIDS names them) and labels. A list is any of its labels, null is an entity that
        must be absent, ``"*"`` one that must be there.

    Raises
    ------
    UsageError
        If it is not that.
    """
    if not isinstance(filters, Mapping):
        raise UsageError('--bids-filter-file: not a JSON object; use {"t1w": {…}, "pet": {…}}')
    for key, query in filters.items():
        _check_query(key, query)
    return dict(filters)


def _matches(label: str | None, key: str, wanted: object) -> bool:
    if isinstance(wanted, list):
        return any(_matches(label, key, value) for value in wanted)
    if wanted is None or label is None:
        return wanted is None and label is None
    if wanted == "*":
        return True
    bare = str(wanted).removeprefix(f"{key}-")
    return same_run(label, bare) if key == "run" else label == bare


def _passes(scan: Scan, query: Filter) -> bool:
    labels = {**dict(scan.entities), "sub": scan.subject, "ses": scan.session}
    return all(
        _matches(labels.get(SHORT.get(name, name)), SHORT.get(name, name), wanted)
        for name, wanted in query.items()
        if name not in IMPLIED
    )


def why_illegal(scan: Scan) -> str | None:
    """Say which label of an image BIDS does not allow, or None: no result could be named so."""
    named = [*scan.entities, ("sub", scan.subject), ("ses", scan.session)]
    for key, label in named:
        if label is not None and not LABEL.fullmatch(label):
            return f"{key}-{label} is not a legal label; rename with letters and digits only"
    return None


def why_not(scan: Scan, key: str, rules: Rules) -> str | None:
    """Say which flag leaves an image out, or None.

    Parameters
    ----------
    scan : Scan
        An image.
    key : {"t1w", "pet"}
        Which filter of the filter file holds.
    rules : Rules
        What the command line says. A run label holds for images that have a run.
    """
    if rules.session_label and scan.session not in rules.session_label:
        return "its session is not among --session-label"
    run = scan.entity("run")
    may_be = (run is None or same_run(run, label) for label in rules.run_label)
    if rules.run_label and not any(may_be):
        return "its run is not among --run-label"
    if not _passes(scan, rules.filters.get(key, {})):
        return f'--bids-filter-file ("{key}") does not select it'
    return None


def is_fdg(tracer: str) -> bool:
    """Whether a tracer, by its label or its full name, is fluorodeoxyglucose.

    Examples
    --------
    >>> [is_fdg(name) for name in ("18FFDG", "2-deoxy-2-[18F]fluoro-D-glucose", "11CPIB")]
    [True, True, False]
    """
    plain = re.sub(r"[^0-9a-z]", "", tracer.lower())
    in_full = all(part in plain for part in ("flu", "deoxy", "glucose"))
    return in_full or bool(FDG.search(plain))


def _same_tracer(one: str, other: str) -> bool:
    plain = [re.sub(r"[^0-9a-z]", "", name.lower()) for name in (one, other)]
    return plain[0] == plain[1] or (is_fdg(one) and is_fdg(other))


def why_not_tracer(scan: Scan, tracer_label: Sequence[str]) -> tuple[str, int | None] | None:
    """Say why the tracer of a PET image leaves it out, or None if it is used.

    ``trc-`` counts before ``TracerName`` of the sidecar, unless that says FDG. FDG is used, or
    what ``--tracer-label`` names instead.

    Parameters
    ----------
    scan : Scan
        With its metadata.
    tracer_label : sequence of str
        As the flag gives it; empty is FDG.

    Returns
    -------
    tuple of (str, int or None), or None
        The reason, and an exit code if it is a problem of the data.
    """
    named = dict(scan.metadata).get("TracerName")
    in_full = named if isinstance(named, str) and named.strip() else None
    tracer = scan.entity("trc")
    if tracer is None or (in_full is not None and is_fdg(in_full)):
        tracer = in_full
    if tracer is None and tracer_label:
        return None  # the user vouches for it
    if tracer is None:
        return "its sidecar lacks TracerName: add it, or pass --tracer-label", 65
    if tracer_label:
        wanted = any(_same_tracer(tracer, label) for label in tracer_label)
        return None if wanted else (f"its tracer is {tracer}, not among --tracer-label", None)
    if is_fdg(tracer):
        return None
    return f"its tracer is {tracer}; only FDG is used", None
