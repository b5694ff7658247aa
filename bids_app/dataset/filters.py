"""Filters for the images of a dataset: tracers, sessions, runs, and the filter file."""

import re
import tomllib
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from bids_app.arguments import LABEL, same_run
from bids_app.errors import UsageError
from bids_app.files import read_text
from bids_app.visit import Scan

Filter = Mapping[str, object]

# Names of entities in pybids, and thus in filter files of other apps, that equal their short keys.
ALIKE = ("task", "run", "echo", "flip", "inv", "mt", "part", "chunk", "space", "desc")
SHORT = {name: name for name in ALIKE} | {
    "subject": "sub",
    "session": "ses",
    "acquisition": "acq",
    "ceagent": "ce",
    "tracer": "trc",
    "reconstruction": "rec",
    "direction": "dir",
    "inversion": "inv",
    "modality": "mod",
}
IMPLIED = {  # by the key
    "t1w": {"datatype": "anat", "suffix": "T1w"},
    "pet": {"datatype": "pet", "suffix": "pet"},
}
EXTENSION = "extension"


@dataclass(frozen=True)
class Rules:
    """Rules of the command line for images, named like its flags."""

    session_label: tuple[str, ...] = ()
    tracer_label: tuple[str, ...] = ()
    run_label: tuple[str, ...] = ()
    filters: Mapping[str, Filter] = field(default_factory=dict)


def _check_query(key: str, query: object) -> None:
    prefix = f'--bids-filter-file: "{key}"'
    if key not in ("t1w", "pet"):
        raise UsageError(f'{prefix} is not known; use "t1w" and "pet"')
    if not isinstance(query, Mapping):
        raise UsageError(f"{prefix} is not an object of entities and labels; correct it")
    for name, labels in query.items():
        if (
            name not in SHORT
            and name not in SHORT.values()
            and name not in (*IMPLIED[key], EXTENSION)
        ):
            raise UsageError(f'{prefix}: unknown entity "{name}"; use {", ".join(sorted(SHORT))}')
        values = labels if isinstance(labels, list) else [labels]
        if not all(value is None or isinstance(value, str | int) for value in values):
            raise UsageError(f'{prefix}: "{name}" must be a label, a list of labels, or null')
        implied = IMPLIED[key].get(name)
        if implied is not None and not {implied, "*"} & set(values):
            raise UsageError(f'{prefix}: "{name}" is always "{implied}"; leave it out')


def check_filters(filters: object) -> dict[str, Filter]:
    """Check the content of a ``--bids-filter-file``.

    Parameters
    ----------
    filters : object
        Parsed JSON: an object with the keys ``t1w`` and ``pet``, each an object of entities (named
        as in pybids or BIDS) and labels. A list means any of its labels, null means that the entity
        must be absent, and ``"*"`` that it must be present.

    Returns
    -------
    dict
        The filters.

    Raises
    ------
    UsageError
        If the content has another form.
    """
    if not isinstance(filters, Mapping):
        raise UsageError('--bids-filter-file: not a JSON object; use {"t1w": {…}, "pet": {…}}')
    for key, query in filters.items():
        _check_query(key, query)
    return dict(filters)


def _matches(label: str | None, key: str, query: object) -> bool:
    if isinstance(query, list):
        return any(_matches(label, key, value) for value in query)
    if query is None or label is None:
        return query is None and label is None
    if query == "*":
        return True
    if key == EXTENSION:
        return label.removeprefix(".") == str(query).removeprefix(".")
    bare = str(query).removeprefix(f"{key}-")
    return same_run(label, bare) if key == "run" else label == bare


def _passes(scan: Scan, query: Filter) -> bool:
    extension = "".join(scan.path.name.partition(".")[1:])
    labels = {**dict(scan.entities), "sub": scan.subject, "ses": scan.session, EXTENSION: extension}
    return all(
        _matches(labels.get(SHORT.get(name, name)), SHORT.get(name, name), wanted)
        for name, wanted in query.items()
        if name not in IMPLIED["t1w"]
    )


def why_illegal(scan: Scan) -> str | None:
    """Explain which label of an image is not legal in BIDS, or return None.

    Results could not be named after an illegal label. The participant and session in the file name
    must also match the folders, because only the owner knows which of them is wrong.
    """
    folders = {"sub": scan.subject, "ses": scan.session}
    for key, label in (*scan.entities, *folders.items()):
        if label is not None and not LABEL.fullmatch(label):
            return (
                f"{scan.path}: {key}-{label} is not a legal label; rename it with letters and "
                "digits only"
            )
    for key, label in scan.entities:
        if label != folders.get(key, label):
            return (
                f"{scan.path}: its name says {key}-{label}, but it lies in {key}-{folders[key]}; "
                "move or rename it"
            )
    named, folder = scan.entity("ses"), scan.path.parents[1].name
    if named is not None and not folder.startswith("ses-"):
        return f"{scan.path}: its name says ses-{named}, but it is not in a ses- folder; move it"
    if named is None and folder.startswith("ses-"):
        return f"{scan.path}: lies in {folder}, but its name has no ses-; rename it"
    return None


def why_not(scan: Scan, key: str, rules: Rules) -> str | None:
    """Explain which flag excludes an image, or return None.

    Parameters
    ----------
    scan : Scan
        Image to check.
    key : {"t1w", "pet"}
        Key of the filter in the filter file.
    rules : Rules
        Rules of the command line. Run labels apply only to images with a run.
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


FDG = "FDG"
# Tracers of the brain, and patterns for their names without case, accents and punctuation
TRACERS = tomllib.loads(read_text(Path(__file__).parents[1] / "data" / "tracers.toml"))
# Fluorine, deoxy and glucose, in any order, as spelt in many languages and in chemistry:
# fludeoxyglucose, 2-deoxy-2-[18F]fluoro-D-glucose, désoxyglucose, Fluordesoxyglukose, glicosio
FDG_IN_FULL = (r"fl(?:uo|u|o)r?", r"d[ei][sz]?(?:ox|oks|oss)[iy]", r"gl[iuy](?:k|c|kk)o")
FDG_IN_SHORT = re.compile(r"fdg(?!al)|18fd[ei][sz]?ox[iy]gl")
FDG_ELSEWHERE = re.compile("фдг|дезоксиглюкоз|脱氧葡萄糖|デオキシグルコース")
OTHER_FDG = re.compile(r"(?:^|[^0-9])(?:me)?[346]fdg")  # another position of fluorine
# A label with a nuclide and more names a tracer; any other label may be arbitrary.
LABELLED = re.compile(r"(?:11c|13n|15o|18f|64cu|68ga|82rb|89zr|123i|124i)[a-z0-9]+")
NUCLIDE = re.compile(r"18f|f18|fluor18?|fluorine18?|18fluor|18fluorine")
UNKNOWN = frozenset(("", "na", "nan", "none", "null", "unknown", "tbd", "todo", "tracer"))


def _plain(tracer: str) -> str:
    """Normalize a name by removing case, accents and punctuation."""
    letters = unicodedata.normalize("NFKD", tracer).casefold()
    return re.sub(r"[^0-9a-z]", "", letters)


def is_fdg(tracer: str) -> bool:
    """Check whether the label or full name of a tracer means fluorodeoxyglucose.

    Examples
    --------
    >>> [is_fdg(name) for name in ("18FFDG", "2-deoxy-2-[18F]fluoro-D-glucose", "11CPIB")]
    [True, True, False]
    >>> [is_fdg(name) for name in ("18F-Fluorodésoxyglucose", "Fluordesoxyglukose", "FDGal")]
    [True, True, False]
    """
    plain = _plain(tracer)
    if OTHER_FDG.search(plain) or re.search(TRACERS["FDGal"], plain):
        return False
    in_full = all(re.search(part, plain) for part in FDG_IN_FULL)
    elsewhere = FDG_ELSEWHERE.search(unicodedata.normalize("NFC", tracer).casefold())
    return in_full or bool(FDG_IN_SHORT.search(plain) or elsewhere)


def _tracer_of(name: str) -> str:
    """Return the name of a tracer in :data:`TRACERS`, or the normalized name if it is unknown."""
    if is_fdg(name):
        return FDG
    plain = _plain(name)
    return next((known for known, form in TRACERS.items() if re.search(form, plain)), plain)


def _full_name(scan: Scan) -> str | None:
    """Return the ``TracerName`` of the sidecar if it names a tracer, otherwise None."""
    named = dict(scan.metadata).get("TracerName")
    if isinstance(named, tuple) and len(named) == 1:
        (named,) = named
    if not isinstance(named, str):
        return None
    plain = _plain(named)
    silent = plain in UNKNOWN and named.isascii()
    return None if silent or NUCLIDE.fullmatch(plain) else named


def _contradict(label: str, named: str) -> bool:
    """Check whether a ``trc-`` label and a ``TracerName`` mean different tracers.

    BIDS allows arbitrary labels (``trc-baseline``); one that does not name a tracer contradicts
    nothing.
    """
    by_label, by_name = _tracer_of(label), _tracer_of(named)
    if by_label == by_name or NUCLIDE.fullmatch(by_label):
        return False
    if by_label == FDG:
        return True
    known = by_label in TRACERS or LABELLED.fullmatch(by_label) is not None
    return known and (by_name == FDG or (by_label in TRACERS and by_name in TRACERS))


def why_not_tracer(scan: Scan, tracer_label: Sequence[str]) -> tuple[str, int | None] | None:
    """Explain why the tracer of a PET image excludes it, or return None if it does not.

    The ``trc-`` label takes precedence over ``TracerName`` in the sidecar, unless that is FDG. If
    they name different tracers, and one of them is wanted, neither is trusted. The wanted tracer is
    FDG, or those of ``--tracer-label``.

    Parameters
    ----------
    scan : Scan
        PET image with its metadata.
    tracer_label : sequence of str
        Labels given by the flag; empty means FDG.

    Returns
    -------
    tuple of (str, int or None), or None
        Reason, and an exit code if it is a problem of the data.
    """
    tracers = {_tracer_of(label) for label in tracer_label or (FDG,)}
    label, named = scan.entity("trc"), _full_name(scan)
    if label is not None and named is not None and _contradict(label, named):
        if not tracers & {_tracer_of(label), _tracer_of(named)}:
            return f"its tracer is {label} or {named}", None
        contradiction = f"its name says trc-{label}, but its sidecar TracerName {named!r}"
        return f"{scan.path}: {contradiction}; correct the wrong one", 65
    tracer = named if label is None or (named is not None and is_fdg(named)) else label
    if tracer is None and not tracer_label:
        return f"{scan.path}: its sidecar lacks TracerName: add it, or pass --tracer-label", 65
    if tracer is None or _tracer_of(tracer) in tracers:
        return None  # without a tracer name, --tracer-label counts
    only = "not among --tracer-label" if tracer_label else "only FDG is used"
    return f"its tracer is {tracer}{', ' if tracer_label else '; '}{only}", None
