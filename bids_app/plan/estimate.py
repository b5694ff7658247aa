"""Estimates of the time, memory and disk space of a run, reported by a dry run.

Work is measured in CPU seconds, because these do not depend on how busy a machine is. They are
determined by the number of people and of voxels and, in training, of epochs. Machines and images
differ, so the aim is to be within a factor of two.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from bids_app.errors import count_noun
from bids_app.resources import find_space
from bids_app.synthesis.models import ModelSpec, Spec, TissueSpec
from bids_app.synthesis.tiling import CubicPatches
from bids_app.visit import Visit

# Measured on one core of an AMD EPYC with AVX-512: by --resource-monitor, as described in
# docs/hpc.md, or as described on another page that is named.
VOXELS = 157 * 189 * 136  # in the 1 mm grid, for which the numbers hold
BRAIN = 0.44  # share of voxels that detectors score; docs/results/detection.md, "Parts"
T1W_SECONDS = 46.0  # brain, bias field, registration, whatever the grid
PET_SECONDS = 13.0  # frames, registration to the T1w
# Parts of these that another app may have done already, and the assessment of registrations that
# are taken over instead: docs/hpc.md, "What to request".
BRAIN_SECONDS, BIAS_SECONDS, TO_TEMPLATE_SECONDS, TO_T1W_SECONDS = 4.0, 13.0, 26.0, 11.0
JUDGE_T1W_SECONDS, JUDGE_PET_SECONDS = 1.0, 2.0
ON_GRID_SECONDS = 5.0  # per image at 1 mm: resampling, synthesis, regions
SUBJECT_REPORT_SECONDS = 4.0
PARTICIPANT_MEMORY = 1.3  # GiB, for the largest step, brain extraction
# With --sloppy: brain extraction 4 s, bias field 3 s, T1w to template 4 s, PET to T1w 3 s
QUICK = 0.25  # share of these seconds that is left
TRANSFORMS_GB, QUICK_TRANSFORMS_GB = 0.014, 0.0016  # in OUT, per visit, whatever the grid
T1W_VOXELS = 197 * 233 * 189  # in the T1w for which the next numbers hold; 1 mm
# In OUT, on the T1w's own grid: T1w and mask; synthetic PET; PET, and what else each PET adds
T1W_GB, SYNTHETIC_GB, PET_GB, SUBTRACTED_GB = 0.025, 0.011, 0.015, 0.015
IMAGE_GB = 0.007  # in OUT, per image at 1 mm
PARTICIPANT_WORK = 2.5  # size of the work folder, relative to OUT
STORE_SECONDS, STORED_BYTES = 0.5, 5  # per image; per voxel: float32 and its mask
TRAIN_SECONDS = 5.0  # per training of any kind, to load torch
TISSUE_SECONDS = 0.8  # per control, each time it is used
SCORE_SECONDS = 3.0  # per control and row that scores it
PUBLISH_SECONDS = 3.6  # per control and row, at 1 mm: its errors, and the traits of its T1w
# CPU seconds per voxel of a tile and epoch, at width 64: docs/training.md, "How long"
NETWORK_SECONDS = {  # keys: dimensions of tiles, and whether there is a cycle
    (2, False): 1.4e-5,
    (2, True): 5.0e-5,
    (3, False): 1.65e-5,
    (3, True): 6.4e-5,
}
GENERATOR_GB = 0.05
PAIR_SECONDS = 175e-6  # per pair of an encoder's patches: docs/results/detection.md, "Parts"
SVM_SECONDS = 2.3e-6  # per voxel and image that its SVM is fitted to, or scores; same section
APPLIED = 0.35  # share of these if SVMs were fitted before; same section
NORM_SECONDS = 0.3  # per image and fold, at 1 mm
MAP_SECONDS = 1.1  # per image and detector, at 1 mm: smoothing, clusters
CARRY_SECONDS = 4.0  # per patient and detector, to a T1w of 1 mm: like `carry_to_t1w` of a visit
PATIENT_REPORT_SECONDS = 15.0  # docs/results/detection.md, "Parts"
GROUP_MEMORY, GROUP_MEMORY_OF_IMAGE = 1.1, 0.015  # GiB; the latter per control or patient of a fold
SVM_BYTES, SVM_CONTROL_BYTES = 72.0, 2.2  # per voxel of the brain and fold; and per control
MAP_GB = 0.012  # per patient and detector, on the T1w's grid
START_SECONDS = 6.0  # imports, template, plan
OVERHEAD_MEMORY = 0.4  # GiB, of the process that waits for the steps
THREADED = 0.1  # share of a visit's work that several threads can do: brain, resampling; our choice
GB = 1e9


@dataclass(frozen=True)
class Estimate:
    """Resources that a run needs.

    Parameters
    ----------
    cpu_seconds : float
        CPU seconds of all its work.
    chain_seconds : float
        CPU seconds of steps that wait for one another: the shortest run with any number of CPUs.
    serial_seconds : float
        Seconds of the work done by a single process, before and after all others.
    memory_gb : float
        Memory of the largest step, in GiB.
    output_gb, work_gb : float
        Disk space in the output folder and in the work folder, in units of 10⁹ bytes.
    """

    cpu_seconds: float
    chain_seconds: float
    serial_seconds: float
    memory_gb: float
    output_gb: float
    work_gb: float

    def seconds(self, nprocs: int) -> float:
        """Return the duration of the run on a number of CPUs."""
        return self.serial_seconds + max(self.cpu_seconds / nprocs, self.chain_seconds)

    def memory(self, nprocs: int) -> float:
        """Return the memory of the run in GiB, if all CPUs process largest steps."""
        return OVERHEAD_MEMORY + nprocs * self.memory_gb


def _in_threads(seconds: float, threads: int) -> float:
    """Return the duration of work, a share of which is done by several threads (Amdahl's law)."""
    return seconds * (1 - THREADED + THREADED / threads)


def seconds_spared(visit: Visit) -> float:
    """Return the CPU seconds of a visit that other apps have spent already.

    These are the bias field of a T1w that is taken over; its brain mask and its registration, if
    they are taken over, too; and the registration of each PET that is taken over. What remains is
    to read and assess them, resampling, scaling, and all later steps. The seconds are those
    measured per step, in docs/hpc.md, "What to request".

    Parameters
    ----------
    visit : Visit
        Visit whose images refer to the ones taken over.
    """
    t1w = visit.t1w.derived
    spared = 0.0
    if t1w is not None:
        spared += BIAS_SECONDS + BRAIN_SECONDS * (t1w.brain_mask is not None)
        spared += (TO_TEMPLATE_SECONDS - JUDGE_T1W_SECONDS) * t1w.is_registered
    n_taken = sum(pet.derived is not None for pet in visit.pets)
    return spared + n_taken * (TO_T1W_SECONDS - JUDGE_PET_SECONDS)


def estimate_participants(
    *,
    visits: int,
    pets: int,
    voxels: int,
    t1w_voxels: float = T1W_VOXELS,
    threads: int,
    quick: bool = False,
    preprocess: bool = True,
    synthesize: bool,
    spared: Sequence[float] = (),
) -> Estimate:
    """Estimate a run of the participant level.

    Parameters
    ----------
    visits, pets : int
        Numbers of visits to compute, and of their PET images.
    voxels : int
        Number of voxels of the output's grid.
    t1w_voxels : float
        Mean number of voxels of the T1w images on their own grids.
    threads : int
        Number of threads per step.
    quick : bool
        Whether registration is coarse, as with ``--sloppy``.
    preprocess, synthesize : bool
        Whether images are registered, and whether PET is predicted.
    spared : sequence of float
        Result of :func:`seconds_spared` for each visit; empty if nothing is taken from other apps.
    """
    size, native = voxels / VOXELS, t1w_voxels / T1W_VOXELS
    share = (QUICK if quick else 1.0) * preprocess
    images = (visits + pets) * preprocess + visits * synthesize
    cpu = share * (visits * T1W_SECONDS + pets * PET_SECONDS - sum(spared))
    cpu += images * size * ON_GRID_SECONDS
    with_pet = min(pets, 1)
    longest = T1W_SECONDS + with_pet * PET_SECONDS - min(spared, default=0.0)
    per_visit = share * max(longest, 0.0)  # below 0 if several PETs of a visit are taken over
    per_visit += ((1 + with_pet) * preprocess + synthesize) * size * ON_GRID_SECONDS
    per_t1w = visits * (T1W_GB * preprocess + SYNTHETIC_GB * synthesize)
    per_pet = pets * (PET_GB * preprocess + SUBTRACTED_GB * synthesize)
    output = native * (per_t1w + per_pet) + images * size * IMAGE_GB
    output += visits * (QUICK_TRANSFORMS_GB if quick else TRANSFORMS_GB) * preprocess
    return Estimate(
        cpu,
        _in_threads(per_visit, threads),
        START_SECONDS + visits * SUBJECT_REPORT_SECONDS,
        PARTICIPANT_MEMORY,
        output,
        PARTICIPANT_WORK * output,
    )


def _train_seconds(spec: Spec, controls: int, voxels: int) -> float:
    """Return the CPU seconds of one training on a number of controls, without its start."""
    if isinstance(spec, TissueSpec):
        return controls * TISSUE_SECONDS * voxels / VOXELS
    seen = voxels
    if isinstance(spec.tiling, CubicPatches):
        side = spec.tiling.size
        seen = voxels * (side // spec.tiling.stride) ** 3
        if spec.tiles_per_volume:
            seen = min(seen, spec.tiles_per_volume * side**3)
    rate = NETWORK_SECONDS[spec.tiling.spatial_dims, spec.cycle] * (spec.width / 64) ** 2
    seconds = controls * spec.epochs * seen * rate
    if spec.condition is None:
        return seconds
    return seconds + controls * TISSUE_SECONDS * voxels / VOXELS


def estimate_training(
    specs: Iterable[tuple[Spec, float]], *, controls: int, folds: int, voxels: int, threads: int
) -> Estimate:
    """Estimate a run of the train level: each row in each fold, and on all controls.

    Parameters
    ----------
    specs : iterable of (Spec, float)
        Spec of each row, and the memory of one training in GiB.
    controls, folds : int
        Numbers of controls and folds.
    voxels : int
        Number of voxels of the grid.
    threads : int
        Number of threads per step.
    """
    rows, size = list(specs), voxels / VOXELS
    scoring, publishing = (controls * size * s for s in (SCORE_SECONDS, PUBLISH_SECONDS))
    own = (folds + 1) * TRAIN_SECONDS + scoring + publishing  # of each row, whatever it trains
    trainings = [  # each control is in all folds but one, and in the last training
        folds * _train_seconds(spec, controls, voxels) + own for spec, _ in rows
    ]
    longest = max(_train_seconds(spec, controls, voxels) for spec, _ in rows)
    networks = sum(isinstance(spec, ModelSpec) for spec, _ in rows)
    images = controls * size * IMAGE_GB * len(rows)  # held-out synthetic PET
    weights = GENERATOR_GB * networks
    stored = controls * 2 * STORED_BYTES * voxels / GB
    return Estimate(
        sum(trainings) + scoring + controls * size * STORE_SECONDS,
        TRAIN_SECONDS + longest / threads + scoring / max(folds, 1) + publishing,
        START_SECONDS + SUBJECT_REPORT_SECONDS,
        max([PARTICIPANT_MEMORY, *(memory for _, memory in rows)]),
        images + weights,
        stored + images + (folds + 1) * 3 * weights,  # with Adam's moments
    )


def estimate_group(
    *,
    controls: int,
    patients: int,
    folds: int,
    svms: int,
    norms: int,
    pairs: int,
    voxels: int,
    applied: bool = False,
) -> Estimate:
    """Estimate one training set of a run of the group level; for several, see :func:`add_up`.

    Parameters
    ----------
    controls, patients, folds : int
        Numbers of controls, of PET images of patients, and of folds.
    svms, norms : int
        Numbers of detectors that are one-class SVMs, and of others.
    pairs : int
        Number of pairs that an encoder is trained on, over all epochs.
    voxels : int
        Number of voxels of the grid.
    applied : bool
        Whether detectors were trained before.
    """
    size, brain = voxels / VOXELS, BRAIN * voxels
    held_out = 0 if applied else controls
    per_fold = controls * (1 - 1 / max(folds, 1)) + patients + held_out / max(folds, 1)
    encoder = 0.0 if applied else pairs * PAIR_SECONDS
    share = APPLIED if applied else 1.0
    svm = share * brain * per_fold * SVM_SECONDS
    norm = per_fold * size * NORM_SECONDS
    detectors = svms + norms
    maps = detectors * ((patients + held_out) * size * MAP_SECONDS + patients * CARRY_SECONDS)
    stored = (held_out + patients) * STORED_BYTES * voxels / GB
    scores = detectors * folds * per_fold * brain * 4 / GB
    models = 0 if applied else svms * folds * brain * (SVM_BYTES + controls * SVM_CONTROL_BYTES)
    results = detectors * (patients * MAP_GB + (patients + held_out) * size * IMAGE_GB)
    return Estimate(
        folds * (svms * (encoder + svm) + norms * norm)
        + maps
        + (held_out + patients) * size * STORE_SECONDS,
        svms * encoder + norm,
        START_SECONDS + patients * PATIENT_REPORT_SECONDS,
        GROUP_MEMORY + size * (held_out + patients) * GROUP_MEMORY_OF_IMAGE,
        results + models / GB,
        results + models / GB + stored + scores,
    )


def add_up(estimates: Iterable[Estimate]) -> Estimate:
    """Add the estimates of several training sets of a run, which stores and reports people once."""
    first, *others = estimates
    for other in others:
        first = replace(
            first,
            cpu_seconds=first.cpu_seconds + other.cpu_seconds,
            chain_seconds=max(first.chain_seconds, other.chain_seconds),
            memory_gb=max(first.memory_gb, other.memory_gb),
            output_gb=first.output_gb + other.output_gb,
            work_gb=first.work_gb + other.work_gb,
        )
    return first


def _duration(seconds: float) -> str:
    minutes = seconds / 60
    if minutes < 90:
        return f"{max(minutes, 1):.0f} min"
    return f"{minutes / 60:.1f} h" if minutes < 48 * 60 else f"{minutes / 60 / 24:.1f} days"


def describe_estimate(estimate: Estimate, nprocs: int) -> str:
    r"""Describe the needs of a run in a sentence.

    Examples
    --------
    >>> estimate = Estimate(3600.0, 60.0, 60.0, 1.5, 0.4, 0.55)
    >>> print(describe_estimate(estimate, 4).replace("; ", ";\n"))
    estimate, within a factor of two: 16 min on 4 CPUs (60 min of CPU time);
    memory 1.5 GiB for the largest step, 6.4 GiB with 4 such;
    disk 0.4 GB for results, 0.6 GB in the work folder
    """
    beside = f", {estimate.memory(nprocs):.1f} GiB with {nprocs} such" if nprocs > 1 else ""
    return (
        f"estimate, within a factor of two: {_duration(estimate.seconds(nprocs))} on "
        f"{count_noun(nprocs, 'CPU')} ({_duration(estimate.cpu_seconds)} of CPU time); memory "
        f"{estimate.memory_gb:.1f} GiB for the largest step{beside}; disk "
        f"{estimate.output_gb:.1f} GB for results, {estimate.work_gb:.1f} GB in the work folder"
    )


def find_shortages(
    estimate: Estimate, *, mem_gb: float, output_dir: Path, work_dir: Path
) -> list[str]:
    """Describe resources that a run will probably lack: memory for its largest step, or disk space.

    Parameters
    ----------
    estimate : Estimate
        Estimate of the run.
    mem_gb : float
        Memory that the run may use, in GiB.
    output_dir, work_dir : Path
        Folders, which may not exist yet; their needs are added if they are on the same disk.
    """
    shortages = []
    if OVERHEAD_MEMORY + estimate.memory_gb > mem_gb:
        shortages.append(
            f"the largest step needs about {estimate.memory_gb:.1f} GiB of memory, but the run may "
            f"use only {mem_gb:g}, so it may be killed; give it more, and set --mem-gb"
        )
    needed: dict[int, float] = {}
    places: dict[int, tuple[list[str], float]] = {}
    for folder, size in ((output_dir, estimate.output_gb), (work_dir, estimate.work_gb)):
        disk, free = find_space(folder)
        needed[disk] = needed.get(disk, 0.0) + size
        places.setdefault(disk, ([], free / GB))[0].append(str(folder))
    for disk, (folders, free_gb) in places.items():
        if needed[disk] > free_gb:
            shortages.append(
                f"{' and '.join(folders)}: about {needed[disk]:.1f} GB are needed, but only "
                f"{free_gb:.1f} are free; make room, or choose another folder or --work-dir"
            )
    return shortages
