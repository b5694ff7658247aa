"""One fit from files to files: resumed where it was stopped, in one process or several."""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from math import isnan
from multiprocessing import parent_process
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from safetensors.torch import save_file
from torch import nn

from bids_app.errors import Mri2petError, UnusableDataError
from bids_app.files import write_tsv
from bids_app.imaging import similarity
from bids_app.lifeline import die_with_parent
from bids_app.synthesis.checkpoint import restore_checkpoint, save_checkpoint
from bids_app.synthesis.evaluation import smooth_in_brain
from bids_app.synthesis.inference import predict
from bids_app.synthesis.models import ModelSpec, Spec, TissueSpec
from bids_app.synthesis.pairs import Volumes, open_volumes, usable_pairs
from bids_app.synthesis.tissue import fit_tissue_model
from bids_app.synthesis.training import Fit, HistoryRow, Training, go_on

if TYPE_CHECKING:
    from lightning_fabric import Fabric

KEPT, HISTORY, CHECKPOINT = "kept.safetensors", "history.tsv", "checkpoint.safetensors"
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
    """What to fit, to what, and where its results go.

    Parameters
    ----------
    name : str
        For messages and tables: a fold's number, or ``all``.
    spec : ModelSpec
        A row of Table 1.
    training, validation : sequence of Path
        Folders of :func:`bids_app.synthesis.pairs.store_volumes`; without validation the last
        epoch is kept.
    last_epoch : int
        To stop at, if not earlier.
    seed : int
        Of all randomness.
    fwhm : float
        Smoothing before validation SSIM is measured, in mm.
    folder : Path
        For the checkpoint and the history while it runs.
    """

    name: str
    spec: ModelSpec
    training: Sequence[Path]
    validation: Sequence[Path]
    last_epoch: int
    seed: int
    fwhm: float
    folder: Path


def mean_ssim(generator: nn.Module, visits: Sequence[Volumes], spec: Spec, fwhm: float) -> float:
    """Give the mean SSIM of synthetic and real PET over whole volumes, as early stopping has it."""
    values = []
    for visit in visits:
        raw = predict(visit.t1w, generator, spec.tiling)
        pet = smooth_in_brain(raw, visit.brain, fwhm=fwhm, zooms=visit.owner.zooms)
        _, windows = similarity.judged(visit.brain, visit.covered)
        values.append(similarity.ssim(pet, visit.pet, windows))
    return float(np.mean(values))


def rows_of(name: str, fit: Fit) -> list[dict[str, object]]:
    """Tell the history of a fit as rows of a table."""
    return [_row(name, line, kept=line.epoch == fit.kept_epoch) for line in fit.history]


def _row(name: str, line: HistoryRow, *, kept: bool) -> dict[str, object]:
    return {
        "fold": name,
        "epoch": line.epoch,
        "generator_loss": line.generator_loss,
        "discriminator_loss": line.discriminator_loss,
        "ssim_validation": None if isnan(line.ssim) else line.ssim,
        "learning_rate": line.learning_rate,
        "seconds": round(line.seconds, 2),
        "kept": int(kept),
    }


def run_job(fabric: Fabric, job: Job, out: Path) -> None:
    """Fit, from the last checkpoint on if there is one, and write what is kept.

    Parameters
    ----------
    fabric : Fabric
        Launched; the first of several processes writes.
    job : Job
        What to fit.
    out : Path
        Gets ``kept.safetensors``, the generator MRI → PET, and ``history.tsv``.

    Raises
    ------
    Mri2petError
        If a loss, a weight or a prediction is not finite; checkpoints before it are kept.
    ReadWriteError, UnusableDataError
        If a checkpoint cannot be written, or read.
    """
    visits = [open_volumes(folder) for folder in job.validation]
    fit = Fit(Training(job.spec, fabric, torch.Generator().manual_seed(job.seed)))
    checkpoint = job.folder / CHECKPOINT
    if checkpoint.exists():
        restore_checkpoint(fit, checkpoint)
    pairs = usable_pairs(map(open_volumes, job.training), job.spec)
    if not pairs:
        raise UnusableDataError(
            f"training of fold {job.name}: no PET covers any tile of the brain; look at coverage "
            "in desc-registration_metrics.tsv"
        )

    def validate(generator: nn.Module) -> float:
        return mean_ssim(generator, visits, job.spec, job.fwhm)

    job.folder.mkdir(parents=True, exist_ok=True)
    try:
        for _ in go_on(
            fit, pairs, validate=validate if visits else None, last_epoch=job.last_epoch
        ):
            if fabric.is_global_zero:
                save_checkpoint(fit, checkpoint)
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
    """Run a job; one of several processes ends with the one that launched them."""
    parent = parent_process()
    if fabric.world_size > 1 and parent is not None and parent.pid is not None:
        die_with_parent(parent.pid)
    run_job(fabric, job, out)


def fit_tissue(
    name: str,
    spec: TissueSpec,
    training: Sequence[Path],
    validation: Sequence[Path],
    *,
    fwhm: float,
    out: Path,
) -> None:
    """Fit a tissue model, and write it as :func:`run_job` writes a network, after one epoch.

    Parameters
    ----------
    name, training, validation, fwhm
        As of a :class:`Job`.
    spec : TissueSpec
        Of the grid.
    out : Path
        Gets ``kept.safetensors`` and ``history.tsv``.

    Raises
    ------
    ReadWriteError
        If they cannot be written.
    UnusableDataError
        If there are too few participants, or a T1w has no three tissues.
    """
    started = time.monotonic()
    try:
        model = fit_tissue_model(spec, [open_volumes(folder) for folder in training])
    except ValueError as error:
        raise UnusableDataError(
            f"tissue model of fold {name}: {error}; choose fewer --folds, or add controls"
        ) from error
    row = {"fold": name, "epoch": 1, "seconds": round(time.monotonic() - started, 2), "kept": 1}
    visits = [open_volumes(folder) for folder in validation]
    if visits:
        row["ssim_validation"] = mean_ssim(model, visits, spec, fwhm)
    save_file(model.state_dict(), out / KEPT)
    write_tsv(out / HISTORY, COLUMNS, [row])


def choose_precision(device: str) -> str:
    """Choose how numbers are held while networks compute; weights stay float32.

    ``bf16-mixed`` on CPUs and GPUs that compute with bfloat16 themselves, ``32-true`` elsewhere.
    Measured faster on such a CPU (benchmarks/training.py), and no worse (benchmarks/precision.py);
    not measured on GPUs.

    Parameters
    ----------
    device : str
        ``cpu``, ``cuda`` or ``cuda:N``.
    """
    if device.startswith("cuda"):
        native = torch.cuda.is_bf16_supported(including_emulation=False)
    else:
        native = torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    return "bf16-mixed" if native else "32-true"


def make_fabric(device: str, precision: str, processes: int = 1) -> Fabric:
    """Set up Fabric; whoever gets it launches it.

    Parameters
    ----------
    device : str
        ``cpu``; ``cuda:N`` for one GPU, ``cuda`` for all there are.
    precision : str
        As :func:`choose_precision` gives it.
    processes : int
        That share each batch, on a CPU; with ``cuda`` there is one a GPU.
    """
    from lightning_fabric import Fabric  # brings torch's compiler: 2 to 3 s of a core
    from lightning_fabric.plugins.environments import LightningEnvironment

    logging.getLogger("lightning_fabric").setLevel(logging.WARNING)  # it greets otherwise
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
        precision=precision,  # type: ignore[arg-type]  # one of those that Fabric knows
        plugins=LightningEnvironment(),  # in a job of SLURM, Fabric takes over ranks it finds there
    )


def launch_job(fabric: Fabric, job: Job, out: Path) -> None:
    """Run a job in all processes of a Fabric that was not launched yet; see :func:`run_job`."""
    # Bound, not handed over: Fabric looks into arguments, and refuses frozen dataclasses.
    fabric.launch(partial(_run_tied, job=job, out=out))
