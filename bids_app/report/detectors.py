"""Detectors of anomalies, and the training sets they learn from: names, order, colours."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final

from bids_app.report.cells import as_label
from bids_app.report.curves import PALETTE

FOLDER: Final = "detectors"
SETS: Final = ("real", "hybrid", "synthetic")  # in the order in which they are shown
NAMES: Final = {"ocsvm": "OC-SVM", "zscore": "z score", "pseudonormal": "pseudo-normal"}
MEANINGS: Final = {
    "ocsvm": "distance beyond the boundary that a one-class SVM draws, at that voxel, around the "
    "controls it was trained on; above 0 is outside of it, and so is much of the brain of a "
    "control it was not trained on",
    "zscore": "how much less uptake there is than in controls, as the t of Crawford and Howell",
    "pseudonormal": "how much less uptake there is than in the synthetic PET predicted from the "
    "participant's own T1w, against the same difference in controls, as a t",
}
DASHES: Final = {"ocsvm": "", "zscore": "7 3", "pseudonormal": "2 3"}


@dataclass(frozen=True, order=True)
class Which:
    """A detector, and what it was trained on; sorted as they are shown."""

    place: tuple[int, str, int, str]
    training_set: str
    detector: str


def which(training_set: str, detector: str) -> Which:
    """Name a detector and what it was trained on."""
    return Which(rank_of(training_set, detector), training_set, detector)


def name_visit(participant: str, session: str) -> str:
    """Name a visit.

    Examples
    --------
    >>> name_visit("01", ""), name_visit("01", "02")
    ('sub-01', 'sub-01, ses-02')
    """
    return f"sub-{participant}" + f", ses-{session}" * bool(session)


def label_of(value: object, prefix: str) -> str:
    """Take a label without its prefix; empty where there is none.

    Examples
    --------
    >>> label_of("sub-01", "sub-"), label_of("01", "sub-"), label_of(None, "ses-")
    ('01', '01', '')
    """
    return as_label(None if value is None else str(value)).removeprefix(prefix)


def name_of(detector: str) -> str:
    """Give the name of a detector as a reader sees it."""
    return NAMES.get(detector, detector)


def title_of(training_set: str, detector: str) -> str:
    """Name a detector with its training set.

    Examples
    --------
    >>> title_of("hybrid", "ocsvm"), title_of("", "zscore")
    ('OC-SVM, hybrid', 'z score')
    """
    return name_of(detector) + f", {training_set}" * bool(training_set)


def in_order(names: Iterable[str], known: Iterable[str]) -> list[str]:
    """Put names in the order of those that are known, each once; others come after, by name.

    Examples
    --------
    >>> in_order(["synthetic", "mine", "real", "real"], SETS)
    ['real', 'synthetic', 'mine']
    """
    places = list(known)
    return sorted(
        {name for name in names if name},
        key=lambda name: (places.index(name) if name in places else len(places), name),
    )


def rank_of(training_set: str, detector: str) -> tuple[int, str, int, str]:
    """Say where a detector stands: training sets in their order, then detectors in theirs."""
    sets, kinds = list(SETS), list(NAMES)
    return (
        sets.index(training_set) if training_set in sets else len(sets),
        training_set,
        kinds.index(detector) if detector in kinds else len(kinds),
        detector,
    )


def colour_of(training_set: str, sets: Sequence[str]) -> str:
    """Give the colour of a training set: one a set, from the palette of Okabe and Ito."""
    places = in_order([*SETS, *sets], SETS)
    return (PALETTE[0], PALETTE[5], PALETTE[2], *PALETTE)[
        places.index(training_set) % (3 + len(PALETTE))
    ]
