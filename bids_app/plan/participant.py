"""Plans of visits: from images to workflows, with the checks of inputs and of existing results."""

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from nipype.pipeline.engine import Workflow

from bids_app import nifti
from bids_app.arguments import IN_TEMPLATE, PREPROCESSED, WITH_PET
from bids_app.dataset.index import frame_durations, frame_starts
from bids_app.dataset.selection import select
from bids_app.derivatives.description import dataset_names
from bids_app.derivatives.find import (
    SOURCE_DIGEST,
    SourceDigests,
    fingerprint,
    is_complete,
    stored_fingerprint,
)
from bids_app.derivatives.foreign import find_derived_pet, find_derived_t1w, read_app
from bids_app.derivatives.paths import SUBTRACTED, PetPaths, VisitPaths, sidecar_path, visit_paths
from bids_app.derivatives.sidecars import (
    Provenance,
    Space,
    preprocessing_sidecars,
    subtracted_pet,
    synthetic_in_t1w,
    synthetic_pet,
    uncertainty,
)
from bids_app.derivatives.tables import describe_regions
from bids_app.errors import (
    MissingInputError,
    Mri2petError,
    NothingSelectedError,
    ReadWriteError,
    UnusableDataError,
    UsageError,
    name_some,
)
from bids_app.files import Json, read_json, read_text
from bids_app.generators import GeneratorChoice, check_space, has_seen, known_labels
from bids_app.header import Header
from bids_app.imaging.verdict import DOUBT, FAIL, reasons_of, verdict_of
from bids_app.plan.problems import Problem, error_of
from bids_app.settings import Settings
from bids_app.strict import parse_object
from bids_app.templates import coarse_atlas
from bids_app.visit import Derived, Scan, Selection, Unused, Visit, label_of
from bids_app.workflows.execution import Output
from bids_app.workflows.participant import (
    PetPlan,
    init_participant_wf,
    init_preprocessing_wf,
    init_synthesis_from_disk_wf,
)
from bids_app.workflows.registration import Preprocessing
from bids_app.workflows.synthesis import SynthesisPlan

VOLUME_AXES = 3
PREDICTED = ("synth", *SUBTRACTED)  # desc- of images made from a synthetic PET
ADVICE = "give one duration, in s, for each frame"
AGAIN = "run the app that made it again, or leave its dataset out of --derivatives"
Known = tuple[Scan, Header | None]  # None if this run does not read the image
# s after injection. Guidelines begin at 30 min or later (Guedj et al., 2022, Eur J Nucl Med Mol
# Imaging 49:632); earlier images also show blood flow. Our choice, slightly earlier
EARLIEST_FRAME = 1200.0
LONGEST_FRAME = 1e7  # s; longer durations are implausible, even in ms; our choice


def read_selection(settings: Settings) -> Selection:
    """Select images according to the settings, and exclude those whose headers forbid their use.

    Derivatives of other apps replace their raw images before headers are checked.

    Raises
    ------
    Mri2petError
        See :func:`bids_app.dataset.selection.select`; UsageError also if the filter file is not
        JSON; MissingInputError, UnusableDataError also if ``--derivatives`` names a folder without
        derivatives.
    """
    selection = select(
        settings.bids_dir,
        participant_label=settings.participant_label,
        exclude_participant_label=settings.exclude_participant_label,
        session_label=settings.session_label,
        tracer_label=settings.tracer_label,
        run_label=settings.run_label,
        filters=_read_filters(settings.bids_filter_file),
        database_dir=_index_of(settings),
    )
    apps = () if _starts_elsewhere(settings) else read_apps(settings.derivatives)
    used = _with_derived(selection, apps, settings.template) if apps else selection
    return _without_unusable(used, apps, settings)


def _index_of(settings: Settings) -> Path | None:
    """Return the folder of the index; a dry run creates none."""
    folder = settings.bids_database_dir
    return None if settings.dry_run and folder and not folder.is_dir() else folder


def _read_filters(path: Path | None) -> object:
    if path is None:
        return None
    try:
        return parse_object(read_text(path))
    except (Mri2petError, ValueError) as error:
        raise UsageError(f"{path}: cannot be read as JSON ({error}); correct it") from error


def _confirmed_orientation(scan: Scan, orientation: str) -> str:
    """Return the axis code confirmed by the user for a raw image, or "" for that of another app."""
    return orientation if scan.derived is None else ""


def _check_t1w(t1w: Scan, orientation: str) -> Header:
    header = nifti.inspect(t1w.used, orientation=_confirmed_orientation(t1w, orientation))
    if len(header.shape) != VOLUME_AXES:
        raise UnusableDataError(
            f"{t1w.used}: has {header.shape[3]} volumes, but a T1w has one; average them, or "
            "choose one"
        )
    return header


def _frames(header: Header) -> int:
    return header.shape[3] if len(header.shape) > VOLUME_AXES else 1


def _is_one_volume(pet: Scan, header: Header | None) -> bool:
    """Return whether another app has reduced a PET to one volume, without frames to choose."""
    return pet.derived is not None and header is not None and _frames(header) == 1


def _check_pet(pet: Scan, chosen: Sequence[int], orientation: str) -> Header:
    header = nifti.inspect(pet.used, orientation=_confirmed_orientation(pet, orientation))
    _refuse_predicted(pet, header)
    frames = _frames(header)
    if frames > 1:  # a single volume is used as it is, whatever frames its sidecar lists
        _check_durations(pet, frames, chosen)
    if not _is_one_volume(pet, header):
        _check_frames(pet, frames, chosen)
    return header


def _refuse_predicted(pet: Scan, header: Header) -> None:
    """Refuse an image made from a synthetic PET, by its header, its sidecar or its name."""
    place, mark = "", nifti.SYNTHETIC_PET
    if mark in header.description:
        place = "header"
    elif dict(pet.metadata).get("Synthetic", False) is not False:
        place, mark = "sidecar", "Synthetic"
    elif pet.entity("desc") in PREDICTED:
        place, mark = "name", f"desc-{pet.entity('desc')}"
    if place:
        raise UnusableDataError(
            f"{pet.used}: its {place} says {mark}, so it was predicted, not measured; give the "
            "acquired PET"
        )


def _check_durations(pet: Scan, frames: int, chosen: Sequence[int]) -> None:
    durations = frame_durations(pet)
    if not durations:
        fault = "there is no FrameDuration"
        if "FrameDuration" in dict(pet.metadata):
            fault = "FrameDuration is not a list of numbers"
        raise UnusableDataError(
            f"{pet.used}: {frames} frames, but {fault} in its sidecar; {ADVICE}"
        )
    if len(durations) != frames:
        raise UnusableDataError(
            f"{pet.used}: {frames} frames, but {len(durations)} FrameDuration values in its "
            f"sidecar; {ADVICE}"
        )
    used = [durations[frame] for frame in chosen if frame < frames] if chosen else durations
    wrong = [duration for duration in used if not 0 < duration <= LONGEST_FRAME]
    if wrong:
        fault = "not above 0" if wrong[0] <= 0 else f"{wrong[0]:g} s, longer than any scan"
        raise UnusableDataError(f"{pet.used}: a FrameDuration in its sidecar is {fault}; {ADVICE}")


def _check_frames(pet: Scan, frames: int, chosen: Sequence[int]) -> None:
    if any(frame >= frames for frame in chosen):
        raise UnusableDataError(
            f"{pet.used}: has {frames} frames, counted from 0, but no frame {max(chosen)}; change "
            "--pet-frames"
        )


def _usable_pets(visit: Visit, settings: Settings) -> tuple[list[Known], list[Unused]]:
    usable, unused = list[Known](), []
    for number, pet in enumerate(visit.pets):
        try:
            header = _check_pet(pet, settings.pet_frames, settings.assume_orientation)
            usable.append((pet, header))
        except Mri2petError as error:
            if _starts_elsewhere(settings) and (
                _results(visit, settings).pets[number].in_template.is_file()
            ):
                usable.append((pet, None))
            else:
                unused.append(Unused(pet.subject, pet.path, f"{error}", error.exit_code))
    return usable, unused


def _usable_t1w(visit: Visit, settings: Settings) -> Known:
    try:
        return visit.t1w, _check_t1w(visit.t1w, settings.assume_orientation)
    except Mri2petError:
        if _starts_elsewhere(settings) and _results(visit, settings).t1w_in_template.is_file():
            return visit.t1w, None  # an earlier run used that of another app
        raise


def _results(visit: Visit, settings: Settings) -> VisitPaths:
    return visit_paths(settings.output_dir, visit, settings.template, settings.grid_resolution)


App = tuple[str, Path, str]  # name of its dataset in --derivatives, folder, and name of the app


def _without_unusable(selection: Selection, apps: Sequence[App], settings: Settings) -> Selection:
    orientation = settings.assume_orientation
    visits, unused = [], list(selection.unused)
    for visit in selection.visits:
        pets, left_aside = _usable_pets(visit, settings)
        unused += left_aside
        try:
            known = [_usable_t1w(visit, settings), *pets]
        except Mri2petError as error:
            unused.append(Unused(visit.subject, visit.t1w.path, f"{error}", error.exit_code))
            continue
        notes = [note for _, header in known if header is not None for note in header.notes]
        notes += [note for pet in pets for note in _describe_early(*pet, settings)]
        if visit.t1w.derived is not None:
            notes = [*_describe_pets(pets, apps, settings.pet_frames), *notes]
        t1w, *others = (
            replace(scan, orientation=orientation)
            if header is not None and header.assumed
            else scan
            for scan, header in known
        )
        visits.append(replace(visit, t1w=t1w, pets=tuple(others), notes=(*visit.notes, *notes)))
    return Selection(tuple(visits), tuple(unused))


def _starts_elsewhere(settings: Settings) -> bool:
    """Return whether a run reads no raw images, so that there is nothing to replace."""
    return settings.stage == "synthesize" or settings.reports_only


def read_apps(derivatives: Iterable[tuple[str, Path]]) -> tuple[App, ...]:
    """Read the names of the apps whose datasets a run may take preprocessed images from.

    Raises
    ------
    MissingInputError, ReadWriteError, UnusableDataError
        If one of them is not a dataset of derivatives.
    """
    named = ((name, root) for name, root in derivatives if name in PREPROCESSED)
    return tuple((name, root, read_app(name, root)) for name, root in named)


def _with_derived(selection: Selection, apps: Sequence[App], template: str) -> Selection:
    """Replace images of visits by the derivatives of other apps if there are any."""
    visits, unused = [], list(selection.unused)
    for visit in selection.visits:
        try:
            visits.append(use_derived(visit, apps, template))
        except Mri2petError as error:
            unused.append(Unused(visit.subject, visit.t1w.path, f"{error}", error.exit_code))
    return Selection(tuple(visits), tuple(unused))


def use_derived(visit: Visit, apps: Sequence[App], template: str) -> Visit:
    """Add the derivatives of another app to a visit's T1w and PET, with a note about the T1w.

    The first dataset that has PET of the visit is preferred, then the first with a transform to the
    run's template, because a PET lies on the T1w of its own dataset. A PET of a dataset without a
    T1w is assumed to lie on that of another. A T1w in MNI space is used only with PET in the same
    space: a brain scaled to the template has another size than that in a raw PET, which is
    registered rigidly.

    Parameters
    ----------
    visit : Visit
        Visit with raw images only.
    apps : sequence of App
        Result of :func:`read_apps`.
    template : str
        Name of the run's template.

    Raises
    ------
    Mri2petError
        If the T1w of the dataset cannot be used, or the names of images are contradictory.
    """
    t1ws = {
        app: found
        for app in apps
        if (found := find_derived_t1w(*app, visit.t1w, template)) is not None
    }
    without = [app for app in apps if app not in t1ws]
    pets = {app: _derived_pets(visit, [app, *without], t1w) for app, t1w in t1ws.items()}
    usable = [app for app, t1w in t1ws.items() if all(pets[app]) or not t1w.in_template]
    if not usable:
        names = " or ".join(name for name, _, _ in t1ws or apps)
        if t1ws:
            lacks = "PET in the space of its T1w"
        elif all(name in IN_TEMPLATE for name, _, _ in apps):
            lacks = "preprocessed T1w"
        else:
            lacks = "preprocessed T1w with a brain mask"
        note = (
            f"{names} has no {lacks} of {label_of(visit)}, so both are computed from the raw images"
        )
        return replace(visit, notes=(*visit.notes, note))
    best = min(usable, key=lambda app: (not any(pets[app]), not t1ws[app].is_registered))
    t1w = t1ws[best]
    _check_derived_t1w(t1w)
    return replace(
        visit,
        t1w=replace(visit.t1w, derived=t1w, orientation=""),
        pets=tuple(new or raw for new, raw in zip(pets[best], visit.pets, strict=True)),
        notes=(*visit.notes, _describe_t1w(t1w, visit, template)),
    )


def _derived_pets(visit: Visit, apps: Iterable[App], t1w: Derived) -> list[Scan | None]:
    """Return each PET of a visit as preprocessed by the first app that has it on a T1w."""
    return [
        next((found for app in apps if (found := _derived_pet(pet, app, t1w)) is not None), None)
        for pet in visit.pets
    ]


def _derived_pet(pet: Scan, app: App, t1w: Derived) -> Scan | None:
    """Return a PET as preprocessed by an app, with metadata of its sidecar."""
    found = find_derived_pet(*app, pet, t1w)
    if found is None:
        return None
    derived, fields = found
    metadata = {key: value for key, value in pet.metadata if key != "Units"}  # may have changed
    for key in ("FrameDuration", "Units"):
        if key in fields:
            metadata[key] = tuple(fields[key]) if isinstance(fields[key], list) else fields[key]
    return replace(pet, derived=derived, metadata=tuple(metadata.items()), orientation="")


def _check_derived_t1w(t1w: Derived) -> None:
    """Check that a T1w has one volume, and that its brain mask lies on its grid."""
    shape = nifti.inspect(t1w.image).shape
    if len(shape) != VOLUME_AXES:
        raise UnusableDataError(f"{t1w.image}: has {shape[3]} volumes, but a T1w has one; {AGAIN}")
    mask = t1w.brain_mask
    if mask is not None and not nifti.lies_on(mask, nifti.read_grid(t1w.image)):
        raise UnusableDataError(
            f"{mask}: lies on another grid than {t1w.image.name}, whose brain mask it is; {AGAIN}"
        )


def _describe_t1w(t1w: Derived, visit: Visit, template: str) -> str:
    is_of_session = visit.session is None or f"_ses-{visit.session}_" in t1w.image.name
    app = t1w.app if is_of_session else f"{t1w.app}, which made one T1w from all sessions"
    if t1w.in_template:
        mask = " is" if t1w.brain_mask is None else " and its brain mask are"
        return f"T1w in MNI space{mask} taken from {app}, and not registered again"
    if t1w.forward is not None:
        return f"T1w, brain mask and transforms to {template} are taken from {app}"
    templates = [name for name in t1w.templates if name != template]
    others = f" (there are some to {', '.join(templates)})" if templates else ""
    return (
        f"T1w and brain mask are taken from {app}; it has no transforms to {template} and "
        f"back{others}, so the T1w is registered to this template"
    )


def _describe_pets(
    pets: Iterable[Known], apps: Sequence[App], chosen: Sequence[int]
) -> Iterator[str]:
    """Describe which PETs were taken from other apps, and which were expected, but not found."""
    for pet, header in pets:
        if pet.derived is not None:
            space = "MNI" if pet.derived.in_template else "T1w"
            yield f"{pet.path.name}: is taken from {pet.derived.app}, in {space} space"
            if chosen and _is_one_volume(pet, header):
                yield (
                    f"{pet.path.name}: {pet.derived.app} has made a single volume, which is used "
                    "as it is; --pet-frames does not apply to it"
                )
        elif names := [name for name, _, _ in apps if name in WITH_PET]:
            yield (
                f"{pet.path.name}: {' or '.join(names)} has no preprocessed version on the T1w "
                "that is used, so the raw PET is registered"
            )


def _describe_early(pet: Scan, header: Header | None, settings: Settings) -> Iterator[str]:
    """Describe a dynamic FDG PET whose averaged frames begin soon after injection."""
    frames = 1 if header is None else _frames(header)
    starts = frame_starts(pet)
    if frames == 1 or len(starts) != frames or settings.tracer_label:
        return
    used = settings.pet_frames if settings.pet_frames else range(frames)
    first = min(starts[frame] for frame in used)
    if first < EARLIEST_FRAME:
        yield (
            f"{pet.path.name}: the averaged frames begin {first / 60:.1f} min after injection, "
            "when FDG shows blood flow rather than metabolism; select frames from 30 min on with "
            "--pet-frames, the same for all participants"
        )


def problems_of(selection: Selection) -> list[Problem]:
    """List selected images that cannot be used, as problems."""
    return [
        Problem(unused.subject, unused.reason, unused.exit_code)
        for unused in selection.unused
        if unused.exit_code is not None
    ]


def refuse_nothing(selection: Selection) -> None:
    """Check that there is something to process.

    Raises
    ------
    MissingInputError, UnusableDataError
        If all that was selected is missing, or cannot be used.
    NothingSelectedError
        If nothing was selected.
    """
    if selection.visits:
        return
    problems = problems_of(selection)
    if not problems:
        raise NothingSelectedError(
            "no image is left after all selections; run with --dry-run to see why"
        )
    raise error_of(problems)


ANATOMICAL_OUTPUTS = (  # the same names in the workflow's outputnode and in VisitPaths
    "t1w",
    "brain_mask",
    "t1w_in_template",
    "brain_mask_in_template",
    "t1w_to_template",
    "template_to_t1w",
)
PET_OUTPUTS = (  # the same names in the fields of PetPaths
    "in_template",
    "in_t1w",
    "to_t1w",
    "coverage_in_template",
    "coverage_in_t1w",
)


@dataclass(frozen=True)
class ParticipantPlan:
    """Common parameters of all visits of a run."""

    bids_dir: Path
    output_dir: Path
    space: Space
    preprocessing: Preprocessing
    parameters: Mapping[str, object]
    stage: str
    generator: GeneratorChoice | None
    fwhm: float
    device: str
    version: str
    digests: SourceDigests


@dataclass(frozen=True)
class VisitPlan:
    """Visit with the paths of its results, and fingerprints that show whether they are complete."""

    visit: Visit
    paths: VisitPaths
    preprocessed: str
    synthesized: str

    @property
    def name(self) -> str:
        """Name of its workflow: letters, digits and underscores."""
        parts = ["sub", self.visit.subject]
        if self.visit.session is not None:
            parts += ["ses", self.visit.session]
        return re.sub(r"\W", "_", "_".join([*parts, "wf"]))

    @property
    def label(self) -> str:
        """Name of the visit as shown to users."""
        return label_of(self.visit)


def plan_visit(visit: Visit, run: ParticipantPlan, *, dry: bool = False) -> VisitPlan:
    """Determine the paths of the results of a visit, and compute its fingerprints.

    If ``dry``, images of a visit without results are not read, and the fingerprints are empty.

    Raises
    ------
    MissingInputError, ReadWriteError
        If an image does not exist, or cannot be read.
    """
    paths = visit_paths(run.output_dir, visit, run.space.template, run.space.resolution)
    if dry and not paths.t1w_in_template.exists():
        return VisitPlan(visit, paths, "", "")
    pets = [pet.path for pet in visit.pets]
    decisive = {**run.parameters, "frame_durations": [*map(frame_durations, visit.pets)]}
    derived = [scan.derived for scan in (visit.t1w, *visit.pets) if scan.derived is not None]
    if derived:
        decisive["derivatives"] = [
            [image.dataset, path.relative_to(image.root).as_posix(), run.digests.of(path)]
            for image in derived
            for path in image.files
        ]
    starts = [_starts_of(pet) for pet in visit.pets]
    if any(starts):  # they change the sidecar (WindowAfterInjection), which levels compare
        decisive["frame_starts"] = starts
    if any(image.skull_stripped for image in derived):  # known from a sidecar, not from a file
        decisive["skull_stripped"] = True
    vouched = [scan.orientation for scan in (visit.t1w, *visit.pets)]
    if any(vouched):  # otherwise, the option has no effect on results
        decisive["assume_orientation"] = vouched
    sources = [visit.t1w.path, *pets]
    preprocessed = fingerprint(decisive, sources, bids_dir=run.bids_dir, digest=run.digests.of)
    if run.stage == "synthesize":  # starts from the results of any earlier run
        preprocessed = stored_fingerprint(paths.t1w_in_template)
    options = {} if run.generator is None else run.generator.decisive()
    synthesized = fingerprint(
        {"fwhm": run.fwhm, "preprocessed": preprocessed, **options},
        [visit.t1w.path],
        bids_dir=run.bids_dir,
        generator_sha256=None if run.generator is None else run.generator.card.sha256,
        digest=run.digests.of,
    )
    return VisitPlan(visit, paths, preprocessed, synthesized)


def is_done(plan: VisitPlan, run: ParticipantPlan) -> bool:
    """Return whether all results of the run's stage are complete for a visit.

    An image is incomplete if its sidecar is missing or cannot be read: a run may have been killed
    between writing the two.
    """
    try:
        return (run.stage == "synthesize" or _is_preprocessed(plan)) and (
            run.stage == "preprocess" or _is_synthesized(plan, run)
        )
    except (ReadWriteError, UnusableDataError):
        return False


def _is_preprocessed(plan: VisitPlan) -> bool:
    return (
        is_complete(plan.paths.preprocessed, plan.preprocessed)
        and not any(verdict_of(sidecar) == FAIL for _, sidecar in _registrations(plan.paths))
        and all(
            _has_unit(paths.in_t1w, dict(pet.metadata).get("Units"))
            for pet, paths in zip(plan.visit.pets, plan.paths.pets, strict=True)
        )
    )


def _has_unit(image: Path, unit: object) -> bool:
    """Return whether a sidecar has this unit; correcting a raw sidecar changes no image."""
    known = [*unit] if isinstance(unit, tuple) else unit  # as JSON has it
    return bool(read_json(sidecar_path(image)).get("Units") == known)


def _is_synthesized(plan: VisitPlan, run: ParticipantPlan) -> bool:
    wanted, pets = [*plan.paths.synthesized], list[PetPaths]()
    if _leads_to_t1w(plan, run):
        wanted.append(plan.paths.synthetic_pet_in_t1w)
        pets = _subtracted(plan)
        wanted += [path for pet in pets for path in pet.subtracted]
    if run.generator is not None and run.generator.options.uncertainty:
        wanted.append(plan.paths.uncertainty)
    return (
        is_complete(wanted, plan.synthesized)
        and all(_has_unit(pet.subtracted[0], _units(plan, run)) for pet in pets)
        and is_compared(plan.paths)
        and _has_regions(plan, run)
    )


def _has_regions(plan: VisitPlan, run: ParticipantPlan) -> bool:
    """Return whether the table of uptake by region is complete; it needs an atlas in the space."""
    if coarse_atlas(run.space.template) is None:
        return True
    table, expected = plan.paths.regions, plan.synthesized
    if not table.is_file() or not table.stat().st_size:
        return False
    # Earlier runs of this version did not write a fingerprint beside it.
    return bool(read_json(sidecar_path(table)).get("Fingerprint", expected) == expected)


def _subtracted(plan: VisitPlan) -> list[PetPaths]:
    """List the real PET, at most one, that the synthetic one is subtracted from."""
    first = plan.paths.pets[:1]
    return [pet for pet in first if _is_trusted(pet.in_template) and pet.in_t1w.exists()]


def is_compared(paths: VisitPaths) -> bool:
    """Return whether the synthetic PET was compared with the real one, if there is one."""
    if not any(_is_trusted(pet.in_template) for pet in paths.pets[:1]):
        return True
    return "Measures" in read_json(sidecar_path(paths.synthetic_pet))


def _is_trusted(image: Path) -> bool:
    """Return whether an image exists, and its registration did not fail."""
    return image.exists() and verdict_of(read_json(sidecar_path(image))) != FAIL


def _registrations(paths: VisitPaths) -> list[tuple[Path, Json]]:
    """List the sidecars that describe the registrations of a visit, if they can be read."""
    found = []
    for path in (paths.t1w_in_template, *(pet.to_t1w for pet in paths.pets)):
        try:
            found.append((path, read_json(sidecar_path(path))))
        except Mri2petError:
            continue  # an earlier run did not get this far
    return found


def doubts_of(plan: VisitPlan) -> list[str]:
    """Describe the registrations of a visit that are in doubt, and why, one sentence per image."""
    return [
        f"{plan.label}: {path.name}: registration is in doubt: "
        f"{'; '.join(reasons_of(sidecar['Registration']))}"
        for path, sidecar in _registrations(plan.paths)
        if verdict_of(sidecar) == DOUBT
    ]


def _preprocessing_outputs(plan: VisitPlan, run: ParticipantPlan) -> dict[Path, Output]:
    origin = Provenance(
        run.bids_dir, run.output_dir, plan.preprocessed, run.version, sloppy=run.preprocessing.quick
    )
    sidecars = preprocessing_sidecars(plan.visit, plan.paths, origin, run.space)
    for scan, image in (
        (plan.visit.t1w, plan.paths.t1w_in_template),
        *zip(plan.visit.pets, (pet.in_template for pet in plan.paths.pets), strict=True),
    ):
        sidecars[image][SOURCE_DIGEST] = run.digests.of(scan.path)
    return {path: (path, sidecar) for path, sidecar in sidecars.items()}


def describe_copies(visit: Visit, run: ParticipantPlan) -> list[str]:
    """Describe which raw images of a visit are the same file as another raw image.

    One T1w may stand in several sessions of a participant, and the derivative of another app may be
    a copy of the raw image.

    Raises
    ------
    MissingInputError, ReadWriteError
        If an image cannot be read.
    """
    sentences = []
    for scan in (visit.t1w, *visit.pets):
        own = f"sub-{scan.subject}"
        same = [Path(name) for name in run.digests.same_as(scan.path)]
        twins = [path for path in same if path.parts[0].startswith("sub-")]  # in the raw dataset
        others = [twin for twin in twins if twin.parts[0] != own or scan is not visit.t1w]
        if others:
            sentences.append(
                f"{scan.path.name} is the same file as "
                f"{name_some([twin.name for twin in others])}, so one of them shows somebody or "
                "something other than its name says; replace the wrong one"
            )
    return sentences


def _starts_of(pet: Scan) -> tuple[float, ...]:
    """Return the starts of frames; none if another app, which may choose frames, made the PET."""
    return () if pet.derived else frame_starts(pet)


def _pet_plans(plan: VisitPlan, outputs: Mapping[Path, Output]) -> list[PetPlan]:
    return [
        PetPlan(
            pet=pet.used,
            durations=frame_durations(pet),
            starts=_starts_of(pet),
            outputs={field: outputs[getattr(paths, field)] for field in PET_OUTPUTS},
            orientation=pet.orientation,
            derived=pet.derived,
        )
        for pet, paths in zip(plan.visit.pets, plan.paths.pets, strict=True)
    ]


def _was_trained_on(generator: GeneratorChoice, subject: str, run: ParticipantPlan) -> bool:
    """Return whether a generator was trained on a subject; without its label, nothing is read."""
    card, out = generator.card, run.output_dir
    return subject in known_labels(card) and has_seen(card, subject, dataset_names(out), out)


def _synthesis_plan(
    plan: VisitPlan, run: ParticipantPlan, generator: GeneratorChoice
) -> SynthesisPlan:
    options, times_mean = generator.options, run.preprocessing.times_mean
    origin = Provenance(run.bids_dir, run.output_dir, plan.synthesized, run.version)
    sidecar = synthetic_pet(
        plan.paths,
        origin,
        run.space,
        generator=generator.description(),
        smoothing_fwhm=run.fwhm,
        trained_on_this_participant=_was_trained_on(generator, plan.visit.subject, run),
        overlap=options.overlap,
        match_histogram=options.match_histogram,
        times_mean=times_mean,
        t1w_fingerprint=plan.preprocessed,
    )
    output, errors = (plan.paths.synthetic_pet, sidecar), None
    if options.uncertainty:
        fields = uncertainty(sidecar, run.space, generator.card.uncertainty_sha256)
        errors = plan.paths.uncertainty, fields
    in_t1w, subtracted = None, tuple[Output, ...]()
    if _leads_to_t1w(plan, run):
        in_t1w = plan.paths.synthetic_pet_in_t1w, synthetic_in_t1w(sidecar, plan.paths, origin)
    if in_t1w is not None and plan.paths.pets:
        sidecars = subtracted_pet(sidecar, plan.paths, origin, _units(plan, run))
        subtracted = tuple(zip(plan.paths.pets[0].subtracted, sidecars, strict=True))
    atlas = coarse_atlas(run.space.template)
    about_regions = {**describe_regions(), "Fingerprint": plan.synthesized}
    return SynthesisPlan(
        generator,
        run.fwhm,
        times_mean,
        run.device,
        output,
        in_t1w,
        uncertainty=errors,
        subtracted=subtracted,
        regions=None if atlas is None else (plan.paths.regions, about_regions),
        atlas=atlas,
    )


def _units(plan: VisitPlan, run: ParticipantPlan) -> object:
    """Return the unit of the first PET, if known; ``synthesize`` uses that of an earlier run."""
    written = sidecar_path(plan.paths.pets[0].in_t1w)
    if run.stage == "synthesize" and written.is_file():
        return read_json(written).get("Units")
    return dict(plan.visit.pets[0].metadata).get("Units")


def _leads_to_t1w(plan: VisitPlan, run: ParticipantPlan) -> bool:
    """Return whether a run has the T1w of a visit on its own grid, and the transform to it."""
    needed = (plan.paths.t1w, plan.paths.template_to_t1w)
    return run.stage == "all" or all(path.exists() for path in needed)


def refuse_unprepared(plan: VisitPlan, run: ParticipantPlan) -> None:
    """Check that the results that a run's stage starts from exist for a visit.

    Raises
    ------
    MissingInputError, ReadWriteError, UnusableDataError
        If they do not exist, cannot be read, or lie on a grid that the generator was not trained
        on, or if the registration of the T1w failed.
    """
    if run.stage != "synthesize" or run.generator is None:
        return
    for path in (plan.paths.t1w_in_template, plan.paths.brain_mask_in_template):
        if not path.exists():
            raise MissingInputError(
                f"{path}: no such file; run --stage preprocess for {plan.label} first"
            )
        check_space(run.generator.card, nifti.read_grid(path), run.space.template)
    t1w = plan.paths.t1w_in_template
    _refuse_unfinished([t1w, *(pet.in_template for pet in plan.paths.pets)], plan)
    if not _is_trusted(t1w):
        raise UnusableDataError(
            f"{t1w}: its registration failed, as its sidecar says, so no PET is predicted from it; "
            "look at the report, and at the raw T1w and its header"
        )


def _refuse_unfinished(images: Iterable[Path], plan: VisitPlan) -> None:
    """Check that images that exist have readable sidecars."""
    for image in images:
        try:
            _is_trusted(image)
        except (ReadWriteError, UnusableDataError) as error:
            raise type(error)(
                f"{error}; {image.name} may be unfinished: run --stage preprocess for "
                f"{plan.label} again"
            ) from error


def _preprocessed_files(plan: VisitPlan) -> dict[str, Path]:
    """List an earlier run's results, by the names of the outputs of preprocessing."""
    always = ("t1w", "brain_mask", "template_to_t1w", "t1w_in_template", "brain_mask_in_template")
    files: dict[str, Path] = {name: getattr(plan.paths, name) for name in always}
    for pet in plan.paths.pets[:1]:
        if _is_trusted(pet.in_template):
            optional = {
                "coverage_in_template": pet.coverage_in_template,
                "pet_in_t1w": pet.in_t1w,
                "coverage_in_t1w": pet.coverage_in_t1w,
            }
            files["pet_in_template"] = pet.in_template
            files |= {name: path for name, path in optional.items() if path.exists()}
    return files


def init_visit_wf(plan: VisitPlan, run: ParticipantPlan) -> Workflow:
    """Build the workflow of a visit for the run's stage.

    Raises
    ------
    Mri2petError
        See :func:`refuse_unprepared`.
    """
    refuse_unprepared(plan, run)
    if run.stage == "synthesize" and run.generator is not None:
        return init_synthesis_from_disk_wf(
            files=_preprocessed_files(plan),
            synthesis=_synthesis_plan(plan, run, run.generator),
            omp_nthreads=run.preprocessing.omp_nthreads,
            name=plan.name,
        )
    outputs = _preprocessing_outputs(plan, run)
    preprocessing = init_preprocessing_wf(
        t1w=plan.visit.t1w.used,
        derived=plan.visit.t1w.derived,
        outputs={field: outputs[getattr(plan.paths, field)] for field in ANATOMICAL_OUTPUTS},
        pets=_pet_plans(plan, outputs),
        options=run.preprocessing,
        orientation=plan.visit.t1w.orientation,
        name=plan.name if run.generator is None else "preprocessing_wf",
    )
    if run.generator is None:
        return preprocessing
    return init_participant_wf(
        preprocessing,
        _synthesis_plan(plan, run, run.generator),
        omp_nthreads=run.preprocessing.omp_nthreads,
        real=bool(plan.visit.pets),
        name=plan.name,
    )
