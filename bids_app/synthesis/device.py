"""Where and in which precision to train: Lightning Fabric, set up for what a run was given."""

import logging

import torch
from lightning_fabric import Fabric
from lightning_fabric.plugins.environments import LightningEnvironment


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
    logging.getLogger("lightning_fabric").setLevel(logging.WARNING)  # it greets otherwise
    kind, _, number = device.partition(":")
    if kind == "cpu":
        devices: int | list[int] = processes
    else:
        devices = [int(number)] if number else torch.cuda.device_count()
    alone = devices == 1 or isinstance(devices, list)
    strategy = "auto" if alone else "ddp_spawn"
    return Fabric(
        accelerator=kind, devices=devices, strategy=strategy, precision=precision,  # type: ignore[arg-type]
        plugins=LightningEnvironment(),  # in a job of SLURM, Fabric takes over ranks it finds there
    )  # fmt: skip
