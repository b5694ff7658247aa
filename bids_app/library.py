"""Python interface of the app: functions on files and images, without a command line.

They are public as ``mri2pet.predict_pet`` and so on.
"""

import subprocess
import sys
from functools import reduce
from os import PathLike
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from bids_app import nifti
from bids_app.cli import parse
from bids_app.derivatives.paths import report_path, sidecar_path, visit_paths
from bids_app.errors import Mri2petError, UnusableDataError
from bids_app.files import read_json
from bids_app.generators import find_generator
from bids_app.imaging.intensity import check_fwhm
from bids_app.imaging.similarity import dice
from bids_app.imaging.verdict import verdict_of, worse_of
from bids_app.imaging.volume import Grid
from bids_app.quick import RAW, label_of
from bids_app.resources import choose_device
from bids_app.simulate import simulate_cohort
from bids_app.synthesis.card import Card, check_space, check_weights, is_own_grid, read_card
from bids_app.templates import mask_on
from bids_app.visit import Scan, Visit

LEAST_DICE = 0.8  # with the template's brain; registered brains have 0.95 or more; our choice
ROUNDING = 1e-3  # tolerance of intensities outside [0, 1]


class Registered(NamedTuple):
    """Files of one person in MNI space, and the transforms in both directions.

    Attributes
    ----------
    t1w, brain_mask : Path
        T1w in [0, 1], 0 outside the brain, and brain mask, on the template's grid.
    pet : Path or None
        FDG PET in [0, 1] on that grid; None if none was given.
    t1w_to_mni, mni_to_t1w : Path
        Composite transforms in ITK's HDF5 format, readable by ANTs and SimpleITK.
    verdict : str
        Verdict on the registrations: ``pass``, or ``doubt`` if that of the T1w or of the PET is in
        doubt.
    report : Path
        HTML report, for visual inspection.
    """

    t1w: Path
    brain_mask: Path
    pet: Path | None
    t1w_to_mni: Path
    mni_to_t1w: Path
    verdict: str
    report: Path


def register_to_mni(
    t1w: Path | str,
    folder: Path | str,
    *,
    pet: Path | str | None = None,
    resolution: float = 1.0,
    quick: bool = False,
) -> Registered:
    """Register a T1w, and optionally an FDG PET, to MNI space.

    Brain extraction, bias field correction and registration are those of the participant level,
    which runs in a process of its own.

    Parameters
    ----------
    t1w, pet : path-like
        Images as acquired, ``.nii`` or ``.nii.gz``; sidecars beside them (``.json``) are used.
    folder : path-like
        Folder for all results, a BIDS derivative dataset. Results of earlier calls are kept.
    resolution : float
        Voxel size of the results, in mm.
    quick : bool
        If True, registration is coarse, for testing only.

    Returns
    -------
    Registered
        Paths of the results, and the verdict on the registration.

    Raises
    ------
    Mri2petError
        If an image cannot be used, or a registration failed; the message says which, and why.
    TypeError
        If an image or the folder is not given as a path.

    Examples
    --------
    >>> found = register_to_mni("ann_T1w.nii.gz", "out", pet="ann_pet.nii.gz")  # doctest: +SKIP
    >>> found.verdict  # doctest: +SKIP
    'pass'
    """
    given = [t1w] if pet is None else [t1w, pet]
    images = [str(Path(path).absolute()) for path in given]
    root = Path(folder).absolute()
    options = ["--stage", "preprocess", "--resolution", str(resolution)]
    options += ["--sloppy"] if quick else []
    words = ["quick", *images, str(root), *options]
    done = subprocess.run(
        [sys.executable, "-P", "-m", "mri2pet", *words], capture_output=True, text=True, check=False
    )
    if done.returncode:
        messages = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
        raise Mri2petError(messages[-1].removeprefix("error: ") if messages else done.stderr)
    label = label_of(Path(t1w))
    settings = parse([str(root / RAW), str(root), "participant", *options])
    scan, *pets = (Scan(Path(image), label, None, ()) for image in images)
    visit = Visit(label, None, scan, tuple(pets))
    paths = visit_paths(root, visit, settings.template, settings.grid_resolution)
    written_pets = [pet.in_template for pet in paths.pets if pet.in_template.is_file()]
    sidecars = [sidecar_path(path) for path in (paths.t1w_in_template, *written_pets)]
    verdicts = filter(None, (verdict_of(read_json(sidecar)) for sidecar in sidecars))
    return Registered(
        paths.t1w_in_template,
        paths.brain_mask_in_template,
        next(iter(written_pets), None),
        paths.t1w_to_template,
        paths.template_to_t1w,
        reduce(worse_of, verdicts),
        report_path(root, label),
    )


def predict_pet(
    t1w: Any, generator: Path | str = "default", *, fwhm: float = 1.5, device: str = "cpu"
) -> Any:
    """Predict an FDG PET from a T1w in MNI space.

    Parameters
    ----------
    t1w : path-like or nibabel image
        Brain in MNI space with intensities in [0, 1], as written by :func:`register_to_mni`.
    generator : path-like
        Folder of a generator, or ``default``, the demonstration generator of the app.
    fwhm : float
        Smoothing of the result, in mm; Zotova et al. (2021), section 2.1.
    device : str
        ``auto``, ``cpu``, ``cuda`` or ``cuda:N``. On a CPU with native bfloat16 support, networks
        compute with bfloat16.

    Returns
    -------
    nibabel.Nifti1Image
        Synthetic PET in [0, 1] on the grid of the T1w, 0 outside the brain. Its header says
        SYNTHETIC.

    Raises
    ------
    Mri2petError
        If the T1w is not in MNI space, not within [0, 1], or on a grid that the generator does not
        support, if the generator predicts no PET, or if there is no such device or generator.
    TypeError, ValueError
        If the T1w is neither a path nor a nibabel image, or if ``fwhm`` is below 0.

    Examples
    --------
    >>> pet = predict_pet(found.t1w)  # doctest: +SKIP
    >>> pet.to_filename("synthetic.nii.gz")  # doctest: +SKIP
    """
    from bids_app.synthesis.inference import (  # torch
        choose_dtype,
        load_weights,
        naming_files,
        synthesize,
    )
    from bids_app.synthesis.tiling import SliceTriplets, overlap
    from bids_app.synthesis.tissue import TissueModel, resample_tissue_model

    is_path = isinstance(t1w, PathLike | str)
    if not is_path and not hasattr(t1w, "dataobj"):
        raise TypeError(f"t1w must be a path or a nibabel image, not {type(t1w).__name__}")
    check_fwhm(fwhm)
    device = choose_device(str(device))
    folder = find_generator(str(generator), Path(), sloppy=False, flag="generator")
    image = nifti.load(Path(t1w)) if is_path else nifti.from_nibabel(t1w)
    name = str(t1w) if is_path else "the given image"
    if image.data.ndim != 3 or image.data.size == 0:
        raise UnusableDataError(f"{name}: has shape {image.data.shape}; give one volume")
    grid = Grid(image.data.shape, image.affine)
    card = read_card(folder)
    weights = check_weights(folder, card)
    _refuse(image, grid, card, name)
    network = load_weights(weights, card.spec, device)
    if isinstance(network, TissueModel) and not is_own_grid(card, grid):
        network = resample_tissue_model(network, np.array(card.affine), grid)
    tiling = card.spec.tiling
    tiling = overlap(tiling) if isinstance(tiling, SliceTriplets) else tiling
    dtype = choose_dtype(network, device)
    with naming_files(folder, card, name):
        pet = synthesize(image.data, network, tiling, fwhm=fwhm, zooms=image.zooms, dtype=dtype)
    pet[image.data <= 0] = 0
    result = nifti.to_nibabel(nifti.Image(pet, image.affine))
    result.header["descrip"] = nifti.SYNTHETIC_PET
    return result


def _refuse(image: nifti.Image, grid: Grid, card: Card, name: str) -> None:
    """Refuse anything but a T1w in MNI space, from which a generator would predict nonsense."""
    low, high = float(np.min(image.data)), float(np.max(image.data))
    if not (np.isfinite(low + high) and low >= -ROUNDING and high <= 1 + ROUNDING):
        raise UnusableDataError(
            f"{name}: intensities are {low:.3g} to {high:.3g} instead of 0 to 1; use the "
            "output of register_to_mni"
        )
    check_space(card, grid, card.template)
    brain, template = image.data > 0, mask_on(card.template, grid)
    overlap = dice(brain, template)
    if overlap < LEAST_DICE:
        raise UnusableDataError(
            f"{name}: its voxels above 0 overlap with the brain of {card.template} with a Dice of "
            f"only {overlap:.2f}, so it is not a brain in that space; use the output of "
            "register_to_mni"
        )


def simulate(
    bids_dir: Path | str,
    *,
    paired: int = 4,
    t1w_only: int = 0,
    patients: int = 0,
    resolution: float = 1.0,
    seed: int = 0,
) -> Path:
    """Write a cohort of simulated T1w and FDG PET with known ground truth, as a BIDS dataset.

    Parameters
    ----------
    bids_dir : path-like
        New or empty folder.
    paired, t1w_only, patients : int
        Numbers of controls with T1w and PET, of controls with T1w only, and of patients with one or
        two lesions.
    resolution : float
        Voxel size of the T1w, in mm.
    seed : int
        Random seed. Equal seeds give identical files.

    Returns
    -------
    Path
        Path of the dataset; the ground truth is in its ``derivatives/truth``.

    Raises
    ------
    Mri2petError
        If the folder is not empty or cannot be written to, or a number is out of range.

    Examples
    --------
    >>> import tempfile
    >>> folder = Path(tempfile.mkdtemp()) / "bids"
    >>> sorted(path.name for path in simulate(folder, paired=1, resolution=4).glob("sub-*"))
    ['sub-control01']
    """
    root = Path(bids_dir).absolute()
    counts = {"--paired": paired, "--t1w-only": t1w_only, "--patients": patients}
    words = [word for flag, number in counts.items() for word in (flag, str(number))]
    simulate_cohort([str(root), *words, "--resolution", str(resolution), "--seed", str(seed)])
    return root
