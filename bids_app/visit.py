"""The unit of work: one T1w of one participant, with the PET images that go with it."""

from dataclasses import dataclass
from pathlib import Path


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
    """

    path: Path
    subject: str
    session: str | None
    entities: tuple[tuple[str, str], ...]
    metadata: tuple[tuple[str, object], ...] = ()
    orientation: str = ""

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
