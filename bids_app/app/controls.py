"""Which controls a generator is trained on: those with T1w and real PET on the run's grid."""

from collections.abc import Sequence
from dataclasses import dataclass

from bids_app.derivatives.groups import select
from bids_app.derivatives.preprocessed import Preprocessed, find_preprocessed, tell_coverage
from bids_app.derivatives.versions import ANEW, compare_versions, version_of
from bids_app.errors import MissingInputError, NothingSelectedError
from bids_app.settings import Settings

NOBODY = "no control is left after all selections; correct --control-query or the labels"


@dataclass(frozen=True)
class Controls:
    """Controls with T1w and PET, one visit each, and what is to be told of the others."""

    pairs: tuple[Preprocessed, ...]
    notes: tuple[str, ...]


def choose_controls(settings: Settings, version: str) -> Controls:
    """Choose controls by query and labels; of several visits, the first with both images.

    ``version`` is that of the app: it is told who was prepared by another one.

    Raises
    ------
    Mri2petError
        As :func:`bids_app.derivatives.groups.select` and
        :func:`bids_app.derivatives.preprocessed.find_preprocessed`; MissingInputError if nothing
        was preprocessed, or nobody has a PET, NothingSelectedError if no control is left,
        UnusableDataError if one was prepared by a version that this one cannot use.
    """
    queried = {
        one.removeprefix("sub-") for one in select(settings.output_dir, settings.control_query)
    }
    wanted = {label for label in queried if _is_selected(label, settings)}
    if not wanted:
        raise NothingSelectedError(NOBODY)
    visits = find_preprocessed(
        settings.output_dir, settings.template, settings.grid_resolution, wanted
    )
    if not visits:
        raise MissingInputError(
            f"{settings.output_dir}: no T1w of these controls in {settings.template} at "
            f"{settings.grid_resolution:g} mm; run the participant level first"
        )
    pairs, notes = _pairs(visits, settings.session_label)
    seen = {visit.subject for visit in visits}
    notes += [f"sub-{label}: not used, no T1w on this grid" for label in sorted(wanted - seen)]
    if not pairs:
        raise MissingInputError("; ".join(notes)) if notes else NothingSelectedError(NOBODY)
    made = [
        (f"sub-{one.subject}", version_of(path)) for one in pairs for path in (one.t1w, one.pets[0])
    ]
    told = compare_versions(made, version, advice=ANEW)
    told += [
        f"sub-{one.subject}: {gap}; no tile of training touches that"
        for one in pairs
        if (gap := tell_coverage(one.pets[0]))
    ]
    return Controls(tuple(pairs), (*told, *notes))


def _is_selected(label: str, settings: Settings) -> bool:
    chosen = settings.participant_label
    return (not chosen or label in chosen) and label not in settings.exclude_participant_label


def _pairs(
    visits: Sequence[Preprocessed], sessions: Sequence[str]
) -> tuple[list[Preprocessed], list[str]]:
    pairs: dict[str, Preprocessed] = {}
    notes = []
    for visit in visits:
        name = f"sub-{visit.subject}" + ("" if visit.session is None else f" ses-{visit.session}")
        if sessions and visit.session not in sessions:
            continue
        if not visit.pets:
            notes.append(f"{name}: not used, no real PET")
        elif visit.subject in pairs:
            notes.append(f"{name}: not used, an earlier session of this participant is")
        else:
            pairs[visit.subject] = visit
    return list(pairs.values()), notes
