"""Training of one generator from files to files, resumable, in one process or several."""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from math import isnan
from multiprocessing import parent_process
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn

from bids_app.errors import Mri2petError, ReadWriteError, UnusableDataError
from bids_app.files import replacing, write_tsv
from bids_app.imaging import similarity
from bids_app.imaging.volume import Grid
from bids_app.lifeline import die_with_parent
from bids_app.nifti import open_arrays, store_arrays
from bids_app.synthesis.card import is_own_grid
from bids_app.synthesis.checkpoint import restore_checkpoint, save_checkpoint
from bids_app.synthesis.evaluation import smooth_in_brain
from bids_app.synthesis.inference import load_generator, predict
from bids_app.synthesis.models import ModelSpec, Spec, TissueSpec
from bids_app.synthesis.networks import ConditionedGenerator, has_bfloat16, network_of
from bids_app.synthesis.pairs import Volumes, open_volumes, usable_pairs
from bids_app.synthesis.tissue import TissueModel, fit_tissue_model, resample_tissue_model
from bids_app.synthesis.training import Fit, Training, resume_training

if TYPE_CHECKING:
    from lightning_fabric import Fabric

KEPT, HISTORY, CHECKPOINT = "kept.safetensors", "history.tsv", "checkpoint.safetensors"
TISSUE_MODEL, CONDITION = "tissue.safetensors", "condition"  # of a conditioned row, during training
COLUMNS = (
    "fold",
    "epoch",
    "generator_loss",
    "discriminator_loss",
    "ssim_validation",
    "learning_rate",
    "seconds",
    "kept",
)


@dataclass(frozen=True)
class Job:
    """Specification of one fit: the model, its data and the folder of its checkpoint.

    Parameters
    ----------
    name : str
        Name in messages and tables: a fold's number, or ``all``.
    spec : ModelSpec
        A row of Table 1.
    training, validation : sequence of Path
        Folders written by :func:`bids_app.synthesis.pairs.store_volumes`; without validation, the
        last epoch is kept.
    last_epoch : int
        Epoch at which to stop at the latest.
    seed : int
        Seed of all randomness.
    fwhm : float
        Smoothing before the validation SSIM is computed, in mm.
    folder : Path
        Folder of the checkpoint and the history during training.
    initial : Path or None
        Folder of a generator to fine-tune.
    times_mean : float
        Scale of the PET, for the tissue model of a conditioned row: see :func:`fit_tissue`.
    """

    name: str
    spec: ModelSpec
    training: Sequence[Path]
    validation: Sequence[Path]
    last_epoch: int
    seed: int
    fwhm: float
    folder: Path
    initial: Path | None = None
    times_mean: float = 0.0


def mean_ssim(generator: nn.Module, visits: Sequence[Volumes], spec: Spec, fwhm: float) -> float:
    """Return the mean SSIM of synthetic and real PET over whole volumes, for early stopping."""
    values = []
    for visit in visits:
        raw = predict(visit.t1w, generator, spec.tiling, condition=visit.condition)
        pet = smooth_in_brain(raw, visit.brain, fwhm=fwhm, zooms=visit.owner.zooms)
        _, windows = similarity.judged(visit.brain, visit.covered)
        values.append(similarity.ssim(pet, visit.pet, windows))
    return float(np.nanmean(values))  # nan for a PET that covers too little


def rows_of(name: str, fit: Fit) -> list[dict[str, object]]:
    """Return the history of a fit as rows of a table."""
    return [
        {
            **vars(line),
            "fold": name,
            "ssim_validation": None if isnan(line.ssim_validation) else line.ssim_validation,
            "seconds": round(line.seconds, 2),
            "kept": int(line.epoch == fit.kept_epoch),
        }
        for line in fit.history
    ]


def _condition(job: Job) -> None:
    """Fit the tissue model of a job and store its predictions for all visits, unless done already.

    Raises
    ------
    ReadWriteError
        If they cannot be written.
    UnusableDataError
        See :func:`_fitted`.
    """
    spec = job.spec.condition
    if spec is None or (job.folder / TISSUE_MODEL).exists():
        return
    model = _fitted(job.name, spec, job.training, job.initial, job.times_mean)
    for number, folder in enumerate((*job.training, *job.validation)):
        visit = open_volumes(folder)
        predicted = predict(visit.t1w, model, spec.tiling)
        store_arrays(job.folder / CONDITION / f"{number}", visit.owner, {CONDITION: predicted})
    try:
        with replacing(job.folder / TISSUE_MODEL) as partial:  # marks the predictions as complete
            save_file(model.state_dict(), partial)
    except (OSError, SafetensorError) as error:
        raise ReadWriteError(f"{job.folder / TISSUE_MODEL}: cannot be written ({error})") from error


def _open(job: Job) -> list[Volumes]:
    """Memory-map the volumes and conditions of a job's visits, training visits first."""
    visits = [open_volumes(folder) for folder in (*job.training, *job.validation)]
    if job.spec.condition is None:
        return visits
    conditions = [
        open_arrays(job.folder / CONDITION / f"{number}", [CONDITION])[0]
        for number in range(len(visits))
    ]
    return [replace(v, condition=c) for v, c in zip(visits, conditions, strict=True)]


def _begin(fabric: Fabric, job: Job) -> Fit:
    """Build a fit, and restore its last checkpoint if there is one."""
    initial = None if job.initial is None else load_generator(job.initial, "cpu")[0]
    network = None if initial is None or isinstance(initial, TissueModel) else network_of(initial)
    fit = Fit(Training(job.spec, fabric, torch.Generator().manual_seed(job.seed), network))
    generator = fit.training.generators[0]
    if isinstance(generator, ConditionedGenerator):
        generator.tissue.load_state_dict(load_file(job.folder / TISSUE_MODEL))
    checkpoint = job.folder / CHECKPOINT
    if checkpoint.exists():
        restore_checkpoint(fit, checkpoint)
    return fit


def run_job(fabric: Fabric, job: Job, out: Path) -> None:
    """Train, resuming from the last checkpoint if there is one, and write the kept generator.

    Parameters
    ----------
    fabric : Fabric
        Launched Fabric; of several processes, the first one writes.
    job : Job
        Specification of the fit.
    out : Path
        Folder for ``kept.safetensors``, the generator MRI → PET, and ``history.tsv``.

    Raises
    ------
    Mri2petError
        If a loss, a weight or a prediction is not finite; earlier checkpoints are kept.
    ReadWriteError, UnusableDataError
        If a checkpoint cannot be written or read.
    """
    visits = _open(job)
    training, visits = visits[: len(job.training)], visits[len(job.training) :]
    fit = _begin(fabric, job)
    pairs = usable_pairs(training, job.spec)
    if not pairs:
        raise UnusableDataError(
            f"training of fold {job.name}: no PET covers any tile of the brain; look at coverage "
            "in desc-registration_metrics.tsv"
        )

    def validate(generator: nn.Module) -> float:
        return mean_ssim(generator, visits, job.spec, job.fwhm)

    job.folder.mkdir(parents=True, exist_ok=True)
    try:
        for _ in resume_training(
            fit, pairs, validate=validate if visits else None, last_epoch=job.last_epoch
        ):
            if fabric.is_global_zero:
                save_checkpoint(fit, job.folder / CHECKPOINT)
                write_tsv(job.folder / HISTORY, COLUMNS, rows_of(job.name, fit))
    except FloatingPointError as error:
        raise Mri2petError(
            f"training of fold {job.name} stopped: {error}, in {fabric._precision.precision} "
            "precision; the learning rate is too high for these images: try again with another "
            "--random-seed or a larger --batch-size, or look for images that are not within 0..1; "
            f"what was trained before is kept in {job.folder}"
        ) from error
    if fabric.is_global_zero:
        save_file(fit.kept, out / KEPT)
        write_tsv(out / HISTORY, COLUMNS, rows_of(job.name, fit))


def _run_tied(fabric: Fabric, job: Job, out: Path) -> None:
    """Run a job; each of several processes is killed if the one that launched them ends."""
    parent = parent_process()
    if fabric.world_size > 1 and parent is not None and parent.pid is not None:
        die_with_parent(parent.pid)
    run_job(fabric, job, out)


def _fitted(
    name: str, spec: TissueSpec, training: Sequence[Path], initial: Path | None, times_mean: float
) -> TissueModel:
    """Fit a tissue model to stored volumes, starting from that of an initial generator if any.

    Raises
    ------
    UnusableDataError
        If there are too few participants, or a T1w does not show three tissues.
    """
    try:
        visits = [open_volumes(folder) for folder in training]
        initial_tissue = None if initial is None else _tissue_of(initial, visits[0])
        return fit_tissue_model(spec, visits, initial_tissue, times_mean=times_mean)
    except ValueError as error:
        raise UnusableDataError(f"tissue model of fold {name}: {error}") from error


def _tissue_of(folder: Path, visit: Volumes) -> TissueModel | None:
    """Load the tissue model of a generator, if it has one, on the grid of a visit."""
    generator, card = load_generator(folder, "cpu")
    tissue = generator.tissue if isinstance(generator, ConditionedGenerator) else generator
    if not isinstance(tissue, TissueModel):
        return None
    i, j, k = visit.t1w.shape
    grid = Grid((i, j, k), np.array(visit.owner.affine))
    if is_own_grid(card, grid):
        return tissue
    return resample_tissue_model(tissue, np.array(card.affine), grid)


def fit_tissue(
    name: str,
    spec: TissueSpec,
    training: Sequence[Path],
    validation: Sequence[Path],
    *,
    fwhm: float,
    out: Path,
    initial: Path | None = None,
    times_mean: float = 0.0,
) -> None:
    """Fit a tissue model, and write it like a network trained for one epoch; see :func:`run_job`.

    Parameters
    ----------
    name, training, validation, fwhm, initial
        See :class:`Job`.
    spec : TissueSpec
        Cubes of the grid.
    out : Path
        Folder for ``kept.safetensors`` and ``history.tsv``.
    times_mean : float
        Scale of the PET: see :func:`bids_app.synthesis.tissue.fit_tissue_model`.

    Raises
    ------
    ReadWriteError
        If they cannot be written.
    UnusableDataError
        See :func:`_fitted`.
    """
    started = time.monotonic()
    model = _fitted(name, spec, training, initial, times_mean)
    row = {"fold": name, "epoch": 1, "seconds": round(time.monotonic() - started, 2), "kept": 1}
    visits = [open_volumes(folder) for folder in validation]
    if visits:
        row["ssim_validation"] = mean_ssim(model, visits, spec, fwhm)
    save_file(model.state_dict(), out / KEPT)
    write_tsv(out / HISTORY, COLUMNS, [row])


def choose_precision(device: str) -> str:
    """Return the precision for training, as Fabric names it; weights stay float32.

    It is ``bf16-mixed`` on CPUs and GPUs with native support for bfloat16, ``32-true`` elsewhere.
    On such a CPU, bfloat16 was faster (benchmarks/training.py) and no worse
    (benchmarks/precision.py); it was not measured on GPUs.

    Parameters
    ----------
    device : str
        ``cpu``, ``cuda`` or ``cuda:N``.
    """
    return "bf16-mixed" if has_bfloat16(device) else "32-true"


def make_fabric(device: str, precision: str, processes: int = 1) -> Fabric:
    """Set up Fabric; the caller launches it.

    Parameters
    ----------
    device : str
        ``cpu``; ``cuda:N`` for one GPU, ``cuda`` for all GPUs.
    precision : str
        Precision as returned by :func:`choose_precision`.
    processes : int
        Number of processes that share each batch, on a CPU; with ``cuda``, there is one per GPU.
    """
    from lightning_fabric import Fabric  # imports torch's compiler: 2 to 3 s of a core
    from lightning_fabric.plugins.environments import LightningEnvironment

    logging.getLogger("lightning_fabric").setLevel(logging.WARNING)  # else it logs a greeting
    kind, _, number = device.partition(":")
    if kind == "cpu":
        devices: int | list[int] = processes
    else:
        devices = [int(number)] if number else torch.cuda.device_count()
    alone = devices == 1 or isinstance(devices, list)
    strategy = "auto" if alone else "ddp_spawn"
    return Fabric(
        accelerator=kind,
        devices=devices,
        strategy=strategy,
        precision=precision,  # type: ignore[arg-type]  # one of Fabric's literals
        plugins=LightningEnvironment(),  # else Fabric adopts the ranks of a SLURM job
    )


def launch_job(fabric: Fabric, job: Job, out: Path) -> None:
    """Run a job in all processes of a Fabric that is not launched yet; see :func:`run_job`.

    The tissue model of a conditioned row is fitted beforehand, in this process only.
    """
    _condition(job)
    # A partial, because Fabric traverses arguments and rejects frozen dataclasses.
    fabric.launch(partial(_run_tied, job=job, out=out))
