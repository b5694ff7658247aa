"""The unit of work: one T1w of one participant, with the PET images that go with it."""

from dataclasses import dataclass
from pathlib import Path
from typing import Protocol


@dataclass(frozen=True)
class Derived:
    """What another app has made of a raw image, which a run uses instead of computing it.

    Parameters
    ----------
    dataset : str
        Name of its dataset: ``fmriprep``, ``smriprep``, ``petprep``, ``clinica`` or ``mni``.
    root : Path
        Where that dataset is.
    app : str
        What made it, with its version: ``fMRIPrep 24.1.1``.
    image : Path
        The T1w without bias field; or the PET, in the space of that T1w or with a transform to it.
    brain_mask : Path or None
        Of the T1w, on its grid; None: to be found.
    forward, back : Path or None
        Transforms of the T1w to the run's template and back, or of the PET to the T1w; None: to
        be found, or, for a PET, none is needed.
    skull_stripped : bool
        Whether the T1w shows the brain alone.
    templates : tuple of str
        Those that there are transforms of the T1w to.
    in_template : bool
        Whether the image lies in MNI space, so that the T1w is not registered.
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
        """All that is taken."""
        named = (self.image, self.brain_mask, self.forward, self.back)
        return tuple(path for path in named if path is not None)

    @property
    def is_registered(self) -> bool:
        """Whether a T1w need not be registered to the template."""
        return self.in_template or self.forward is not None

    @property
    def method(self) -> str:
        """How sidecars say that it was not computed."""
        return f"taken from {self.app}"


@dataclass(frozen=True)
class Scan:
    """One raw image.

    Parameters
    ----------
    path : Path
        Where it lies, inside the raw dataset.
    subject, session : str, str or None
        Labels without ``sub-`` and ``ses-``.
    entities : tuple of (str, str)
        Keys and labels as its name spells them (``("trc", "18FFDG"), ("run", "01")``).
    metadata : tuple of (str, object)
        Those fields of its sidecars that the app reads; lists are tuples.
    orientation : str
        Axis code, such as ``RAS``, that the user vouches for as its header has none; else empty.
    derived : Derived or None
        What another app has made of it, if that is used instead.
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
        """The image that a run reads: this one, or what another app has made of it."""
        return self.path if self.derived is None else self.derived.image

    def entity(self, key: str) -> str | None:
        """Give the label of an entity by its short key (``trc``), or None."""
        return dict(self.entities).get(key)


@dataclass(frozen=True)
class Visit:
    """A T1w, and the PET images that are brought onto it.

    Parameters
    ----------
    subject, session : str, str or None
        Those of the T1w.
    t1w : Scan
        The T1w.
    pets : tuple of Scan
        At most one a session; those of sessions without T1w come here if this one is nearest.
    notes : tuple of str
        What a reader of the report should know about how these images were put together.
    """

    subject: str
    session: str | None
    t1w: Scan
    pets: tuple[Scan, ...] = ()
    notes: tuple[str, ...] = ()


class OfSession(Protocol):
    """A visit, raw or preprocessed, as far as it has a name."""

    @property
    def subject(self) -> str:
        """Label without ``sub-``."""

    @property
    def session(self) -> str | None:
        """Label without ``ses-``."""


def label_of(visit: OfSession) -> str:
    """Give the name of a visit for people.

    Examples
    --------
    >>> scan = Scan(Path("t1w"), "01", "b", ())
    >>> label_of(scan)
    'sub-01 ses-b'
    """
    return f"sub-{visit.subject}" + ("" if visit.session is None else f" ses-{visit.session}")


@dataclass(frozen=True)
class Unused:
    """A participant or an image that no visit uses.

    Parameters
    ----------
    subject : str
        Label without ``sub-``.
    path : Path or None
        The image; None where it is the participant.
    reason : str
        A sentence.
    exit_code : int or None
        None if it was merely not selected; 65 or 66 if it is a problem of this participant.
    """

    subject: str
    path: Path | None
    reason: str
    exit_code: int | None = None


@dataclass(frozen=True)
class Selection:
    """What a run works on, and what it leaves aside."""

    visits: tuple[Visit, ...]
    unused: tuple[Unused, ...] = ()
