"""Visits, the units of work: one T1w of a participant, with the PET images registered to it."""

from dataclasses import dataclass
from pathlib import Path
from typing import Protocol


@dataclass(frozen=True)
class Derived:
    """Results of another app for a raw image, which a run uses instead of computing them.

    Parameters
    ----------
    dataset : str
        Name of the dataset: ``fmriprep``, ``smriprep``, ``petprep``, ``clinica`` or ``mni``.
    root : Path
        Folder of that dataset.
    app : str
        Name and version of the app: ``fMRIPrep 24.1.1``.
    image : Path
        T1w without bias field; or PET, in the space of that T1w or with a transform to it.
    brain_mask : Path or None
        Brain mask of the T1w, on its grid; None if it is to be computed.
    forward, back : Path or None
        Transforms of the T1w to the run's template and back, or of the PET to the T1w; None if they
        are to be computed or, for a PET, if none is needed.
    skull_stripped : bool
        True if the T1w shows the brain alone.
    templates : tuple of str
        Templates to which there are transforms of the T1w.
    in_template : bool
        True if the image lies in MNI space, so that the T1w is not registered.
    """

    dataset: str
    root: Path
    app: str
    image: Path
    brain_mask: Path | None = None
    forward: Path | None = None
    back: Path | None = None
    skull_stripped: bool = False
    templates: tuple[str, ...] = ()
    in_template: bool = False

    @property
    def files(self) -> tuple[Path, ...]:
        """Paths of all files that are used."""
        named = (self.image, self.brain_mask, self.forward, self.back)
        return tuple(path for path in named if path is not None)

    @property
    def is_registered(self) -> bool:
        """True if the T1w does not have to be registered to the template."""
        return self.in_template or self.forward is not None

    @property
    def method(self) -> str:
        """Text for sidecars in place of a method of computation."""
        return f"taken from {self.app}"


@dataclass(frozen=True)
class Scan:
    """Raw image.

    Parameters
    ----------
    path : Path
        Path of the image inside the raw dataset.
    subject, session : str, str or None
        Labels without ``sub-`` and ``ses-``.
    entities : tuple of (str, str)
        Keys and labels as spelt in the file name (``("trc", "18FFDG"), ("run", "01")``).
    metadata : tuple of (str, object)
        Fields of its sidecars that the app reads; lists are tuples.
    orientation : str
        Axis code, such as ``RAS``, that the user asserts because the header has none; otherwise
        empty.
    derived : Derived or None
        Results of another app that are used instead.
    """

    path: Path
    subject: str
    session: str | None
    entities: tuple[tuple[str, str], ...]
    metadata: tuple[tuple[str, object], ...] = ()
    orientation: str = ""
    derived: Derived | None = None

    @property
    def used(self) -> Path:
        """Path of the image that a run reads: this one, or the one derived by another app."""
        return self.path if self.derived is None else self.derived.image

    def entity(self, key: str) -> str | None:
        """Return the label of an entity by its short key (``trc``), or None."""
        return dict(self.entities).get(key)


@dataclass(frozen=True)
class Visit:
    """T1w, and the PET images that are registered to it.

    Parameters
    ----------
    subject, session : str, str or None
        Labels of the T1w.
    t1w : Scan
        The T1w.
    pets : tuple of Scan
        PET images, at most one per session: that of the T1w's own session, if there is one, and
        those of sessions without a T1w for which this T1w is the nearest.
    notes : tuple of str
        Notes for readers of the report on how these images were matched.
    """

    subject: str
    session: str | None
    t1w: Scan
    pets: tuple[Scan, ...] = ()
    notes: tuple[str, ...] = ()


class OfSession(Protocol):
    """Protocol for raw and preprocessed visits, with the labels that name them."""

    @property
    def subject(self) -> str:
        """Label without ``sub-``."""

    @property
    def session(self) -> str | None:
        """Label without ``ses-``."""


def label_of(visit: OfSession) -> str:
    """Return the display name of a visit.

    Examples
    --------
    >>> scan = Scan(Path("t1w"), "01", "b", ())
    >>> label_of(scan)
    'sub-01 ses-b'
    """
    return f"sub-{visit.subject}" + ("" if visit.session is None else f" ses-{visit.session}")


@dataclass(frozen=True)
class Unused:
    """Participant or image that no visit uses.

    Parameters
    ----------
    subject : str
        Label without ``sub-``.
    path : Path or None
        Path of the image; None for a participant.
    reason : str
        Reason as a sentence.
    exit_code : int or None
        65 or 66 for a problem of this participant; None if it was merely not selected.
    """

    subject: str
    path: Path | None
    reason: str
    exit_code: int | None = None


@dataclass(frozen=True)
class Selection:
    """Visits that a run processes, and participants and images that it does not use."""

    visits: tuple[Visit, ...]
    unused: tuple[Unused, ...] = ()
