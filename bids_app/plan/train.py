"""Plans of the cross-validation of generators: workflows of controls, folds and scores."""

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np

from bids_app.derivatives.description import dataset_names
from bids_app.derivatives.find import Preprocessed, stored_fingerprint, times_mean_of_image
from bids_app.derivatives.paths import FDG_LABEL, coverage_path, derivative_path, resolution_label
from bids_app.derivatives.sidecars import crossvalidated_pet
from bids_app.errors import ReadWriteError, UnusableDataError, UsageError, name_some
from bids_app.files import read_json
from bids_app.generators import CROSSVALIDATION, GeneratorChoice, find_generator, has_seen
from bids_app.plan.study import Study, seed_of
from bids_app.synthesis.card import Card, card_values, check_space, check_weights, read_card
from bids_app.synthesis.evaluation import (
    BASELINES,
    ROWS,
    ScoreRecord,
    basis_from_json,
    lpips_from_json,
    records_from_json,
    without_lpips,
)
from bids_app.synthesis.models import TISSUE, Spec, TissueSpec, configuration_of, spec_to_dict
from bids_app.synthesis.statistics import split
from bids_app.synthesis.tiling import SliceTriplets
from bids_app.workflows.execution import Output
from bids_app.workflows.training import Fold, ModelPlan, StoredImage

GENERATORS = "generators"
INTENDED_USE = (
    "Predicting the FDG PET of healthy controls from T1w acquired like those of the training "
    "controls. For research only; not a basis for decisions about a patient."
)


def plan_storage(study: Study, controls: Sequence[Preprocessed]) -> list[StoredImage]:
    """List the images to store for controls, with a folder for each."""
    plans = []
    for control in controls:
        name = "_".join(
            ["sub", control.subject, *([] if control.session is None else [control.session])]
        )
        folder = study.work_dir / "volumes" / name
        plans.append(
            StoredImage(
                name.replace("+", "_"),
                control.subject,
                control.session,
                {"t1w": control.t1w, "pet": control.pets[0]},
                ("t1w", "pet"),
                control.brain_mask,
                folder,
                coverage_path(control.pets[0]),
            )
        )
    return plans


def assign_folds(study: Study, stored: Sequence[StoredImage]) -> list[Fold]:
    """Assign controls to folds.

    Raises
    ------
    UsageError, UnusableDataError
        See :func:`bids_app.synthesis.statistics.split`.
    """
    random = np.random.default_rng(study.seed)
    sets = split([image.participant for image in stored], study.folds, random)
    return [
        Fold(
            number,
            [image for image in stored if image.participant not in left_out],
            [image for image in stored if image.participant in left_out],
        )
        for number, left_out in enumerate(sets, start=1)
    ]


def _digest(*parts: object) -> str:
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:12]


def bases_of(study: Study, folds: Sequence[Fold]) -> list[str]:
    """Return a digest, for each fold, of what scores must have in common to be shown in one table.

    That is the subjects it leaves out, the volumes of all, whose digests include the grid and the
    scale, and the smoothing. What is learned from these volumes, and how, may differ by row.
    """
    return [
        _digest(
            study.space.template,
            study.fwhm,
            [image.participant for image in fold.training],
            [image.participant for image in fold.validation],
            fold.digests,
        )
        for fold in folds
    ]


def records_path(study: Study, name: str, fold: int) -> Path:
    """Return the path of the scores of one row on one fold."""
    return study.output_dir / CROSSVALIDATION / name / f"fold-{fold}_scores.json"


def synthetic_path(study: Study, name: str, control: Preprocessed) -> Path:
    """Return the path of a control's synthetic PET by the fold that left it out."""
    return derivative_path(
        study.output_dir / CROSSVALIDATION / name,
        subject=control.subject,
        session=control.session,
        datatype="pet",
        suffix="pet",
        extension=".nii.gz",
        entities={
            "trc": FDG_LABEL,
            "space": study.space.template,
            "res": resolution_label(study.space.resolution),
            "desc": "synth",
        },
    )


def _output(
    study: Study, name: str, control: Preprocessed, fold: int, *, overlap: bool, times_mean: float
) -> Output:
    path = synthetic_path(study, name, control)
    source = control.t1w.relative_to(study.output_dir).as_posix()
    sidecar = crossvalidated_pet(
        study.space,
        source,
        generator=name,
        version=study.versions["mri2pet"],
        fold=fold,
        folds=study.folds,
        smoothing_fwhm=study.fwhm,
        overlap=overlap,
        times_mean=times_mean,
        t1w_fingerprint=stored_fingerprint(control.t1w),
    )
    return path, sidecar


def choose_initial(
    name: str, study: Study, specs: Mapping[str, Spec], participants: Sequence[str], *, sloppy: bool
) -> GeneratorChoice:
    """Find the generator that training starts from, and check that it is suitable for all rows.

    Parameters
    ----------
    name : str
        Name or folder; see :func:`bids_app.generators.find_generator`.
    study : Study
        Common parameters of all rows.
    specs : mapping
        Row → its spec.
    participants : sequence of str
        Labels of the controls.
    sloppy : bool
        Whether ``default`` is the small generator for a coarse grid.

    Raises
    ------
    MissingInputError, UnusableDataError
        See :func:`bids_app.generators.choose_generator`; UnusableDataError also if the generator
        was trained on one of the controls, whom a fold has to leave out.
    UsageError
        If a row has another architecture, or the run would replace the generator.
    """
    flag = f"--init {name}"
    if name == TISSUE and not (study.output_dir / GENERATORS / name).is_dir():
        raise UsageError(
            f"{flag}: networks are given a tissue model by --condition tissue; give --init "
            "default, the name of a generator in OUTPUT_DIR/generators, or a folder"
        )
    folder = find_generator(name, study.output_dir, sloppy=sloppy, flag="--init")
    card = read_card(folder)
    check_weights(folder, card)
    check_space(card, study.grid, study.space.template)
    for row, spec in specs.items():
        other = _difference(card.spec, spec)
        if other:
            raise UsageError(f"{flag}: cannot start {row}: {other}")
        if folder == (study.output_dir / GENERATORS / row).absolute():
            raise UsageError(
                f"{flag}: this run would replace it; copy {folder} elsewhere, and give the copy"
            )
    names = dataset_names(study.output_dir)
    seen = [label for label in participants if has_seen(card, label, names, study.output_dir)]
    if seen:
        labels = name_some([f"sub-{label}" for label in seen])
        raise UnusableDataError(
            f"{flag}: was trained on {labels}, whose scores would not be those of held-out "
            "controls; leave them out with --exclude-participant-label, or choose a generator "
            "that was not trained on them"
        )
    return GeneratorChoice(folder, card)


def _difference(initial: Spec, spec: Spec) -> str:
    """Describe why a generator cannot initialise a row, and what to do; empty if it can."""
    if isinstance(initial, TissueSpec):
        if isinstance(spec, TissueSpec) or spec.condition is not None:
            return ""
        return "it is a tissue model, not a network; give --condition tissue, or --models tissue"
    if isinstance(spec, TissueSpec):
        return "" if initial.condition else "it has no tissue model; name networks with --models"
    theirs, ours = configuration_of(initial), configuration_of(spec)
    word = "with" if initial.condition else "without"
    differences = {
        f"only one of them is given a tissue model; run {word} --condition tissue": (
            (initial.condition is None) is not (spec.condition is None)
        ),
        f"it is {theirs}, but the row is {ours}; name others with --models": theirs != ours,
        "its slices are oriented differently; train without --init": (
            isinstance(initial.tiling, SliceTriplets) and initial.tiling.axes != SliceTriplets.axes
        ),
        f"its width is {initial.width}, not {spec.width}; give --width {initial.width}": (
            initial.width != spec.width
        ),
        f"it has {initial.n_blocks} residual blocks, not {spec.n_blocks}; choose another": (
            initial.n_blocks != spec.n_blocks
        ),
    }
    return next((sentence for sentence, differ in differences.items() if differ), "")


def _card(
    study: Study,
    name: str,
    spec: Spec,
    folds: Sequence[Fold],
    *,
    times_mean: float,
    initial: Card | None,
) -> Card:
    everyone = sorted({image.participant for fold in folds for image in fold.validation})
    rows = study.grid.affine.tolist()
    begun = "" if initial is None else f", starting from generator {initial.name}"
    return Card(
        name=name,
        version=study.versions["mri2pet"],
        spec=spec,
        template=study.space.template,
        shape=study.grid.shape,
        affine=tuple(tuple(row) for row in rows),
        sha256="",
        trained_on=f"T1w and FDG PET of {len(everyone)} controls ({study.dataset}){begun}",
        intended_use=INTENDED_USE,
        participants=tuple(everyone),
        dataset=study.dataset,
        seed=study.seed,
        versions=dict(study.versions),
        initialized_from=() if initial is None else initial.origins,
        pet_times_mean=times_mean,
    )


def plan_model(
    study: Study,
    name: str,
    spec: Spec,
    folds: Sequence[Fold],
    controls: Mapping[str, Preprocessed],
    *,
    initial: GeneratorChoice | None = None,
) -> ModelPlan:
    """Plan a row of Table 1: its seeds, and the paths of its checkpoints and results.

    Parameters
    ----------
    study : Study
        Common parameters of all rows.
    name, spec : str, ModelSpec or TissueSpec
        Name and spec of the row.
    folds : sequence of Fold
        Folds in order.
    controls : mapping
        Images by participant label.
    initial : GeneratorChoice, optional
        Generator that training starts from.
    """
    seeds = [seed_of(study.seed, name, place) for place in range(len(folds) + 1)]
    values = spec_to_dict(spec)
    everyone = sorted(image.sha256 for fold in folds for image in fold.validation)
    begun = [] if initial is None else [initial.card.sha256]
    digests_of_parts = [*(fold.digests for fold in folds), everyone]
    places = [*(f"fold-{fold.number}" for fold in folds), "all"]
    checkpoints = [
        study.work_dir
        / "checkpoints"
        / name
        / f"{place}_{_digest(values, digests, seed, study.fwhm, *begun)}"
        for place, digests, seed in zip(places, digests_of_parts, seeds, strict=True)
    ]
    records = [records_path(study, name, fold.number) for fold in folds]
    a_pet = next(pet for control in controls.values() for pet in control.pets)
    times_mean = times_mean_of_image(a_pet)  # the same for all: see choose_controls
    overlap = study.overlap and isinstance(spec.tiling, SliceTriplets)
    output = partial(_output, study, name, overlap=overlap, times_mean=times_mean)
    pets = [
        [output(controls[image.participant], fold.number) for image in fold.validation]
        for fold in folds
    ]
    if initial is not None and initial.card.pet_times_mean != times_mean:
        raise UnusableDataError(
            f"{initial.folder}: was trained on PET on another scale (IntensityScaling); run the "
            "participant level on controls again, with --paper or without, to get that scale, or "
            "choose another --init"
        )
    first = None if initial is None else initial.card
    card = card_values(_card(study, name, spec, folds, times_mean=times_mean, initial=first))
    folder = study.output_dir / GENERATORS / name
    bases = bases_of(study, folds)
    plan = ModelPlan(
        name, values, seeds, checkpoints, bases, records, pets, card, folder, overlap=overlap
    )
    if initial is None:
        return plan
    return replace(plan, initial=initial.folder, initial_sha256=initial.card.sha256)


def baseline_paths(study: Study, folds: Sequence[Fold]) -> list[Path]:
    """Return the paths of the scores of the baselines, one per fold."""
    return [records_path(study, "baselines", fold.number) for fold in folds]


@dataclass(frozen=True)
class _Row:
    """Scores of a row, with the digests of what they depend on, by fold, and the LPIPS weights."""

    bases: list[str]
    lpips: set[str]
    records: list[ScoreRecord]


def _read_row(study: Study, name: str) -> _Row | None:
    """Read the scores of a row; None if those of a fold are missing."""
    row = _Row([], set(), [])
    for fold in range(1, study.folds + 1):
        try:
            content = read_json(records_path(study, name, fold))
            row.records.extend(records_from_json(content))
        except (ReadWriteError, UnusableDataError, ValueError):
            return None
        row.bases.append(basis_from_json(content))
        row.lpips.add(lpips_from_json(content))
    return row


def gather_records(study: Study, folds: Sequence[Fold]) -> tuple[list[ScoreRecord], list[str]]:
    """Collect the scores of all rows scored on the folds of this run, and of the baselines.

    Rows may be trained by separate runs, in parallel; each run lists what all have written so far.
    Rows of an earlier run are left out if its images, folds or smoothing were different, although
    their files have the same names. LPIPS is left out of rows that were measured with other weights
    than those of this run, which have measured the baselines; if these have none, than the first
    row that has some.

    Returns
    -------
    records : list of ScoreRecord
        Scores of rows that can be shown in one table.
    notes : list of str
        Reasons why other rows, or their LPIPS, are left out.
    """
    bases = bases_of(study, folds)
    baselines = _read_row(study, "baselines")
    rows = {} if baselines is None or baselines.bases != bases else {"baselines": baselines}
    notes = []
    for name in ROWS:
        folder = study.output_dir / CROSSVALIDATION / name
        if name in BASELINES or not folder.is_dir():
            continue
        row = _read_row(study, name)
        if row is None:
            notes.append(f"{name}: not in the table, because scores of a fold are missing")
        elif row.bases != bases:
            notes.append(
                f"{name}: not in the table, because it was cross-validated on other images or "
                "folds, with another smoothing, or by an earlier version; train it again"
            )
        else:
            rows[name] = row
    records, more = _with_comparable_lpips(rows)
    return records, [*notes, *more]


def _with_comparable_lpips(rows: Mapping[str, _Row]) -> tuple[list[ScoreRecord], list[str]]:
    """Return the records of all rows, without LPIPS of other weights than the first, and notes."""
    records, notes, known = list[ScoreRecord](), list[str](), set[str]()
    for name, row in rows.items():
        if all(math.isnan(record.scores.lpips) for record in row.records):
            records += row.records
            continue
        known = known or row.lpips
        if row.lpips == known and len(known) == 1:
            records += row.records
            continue
        records += map(without_lpips, row.records)
        notes.append(
            f"{name}: its LPIPS is n/a in the table, because it was measured with other weights "
            "than that of other rows; to compare it, train it again with the same --lpips-weights"
        )
    return records, notes
