"""Everything that ANTs does: bias field, registration, resampling. Images are files here.

ANTs uses ITK's threads, so nothing here may run in a process that also runs torch. The number of
threads is read by ITK once, from the environment, before a process first uses it. A transform
"from A to B" is the one that resamples images of A on grids of B.
"""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import ants
import numpy as np

from bids_app.imaging.coverage import WHOLLY, field_of_view
from bids_app.imaging.similarity import normalized_mutual_information

# Grid in mm, and levels, of the rigid registration of PET: ours. No PET is sharper than 2 mm.
RIGID = {"aff_iterations": (500, 250, 100), "aff_shrink_factors": (4, 2, 1),
         "aff_smoothing_sigmas": (2, 1, 0)}  # fmt: skip
QUICK_RIGID = {"aff_iterations": (200, 100), "aff_shrink_factors": (2, 1),
               "aff_smoothing_sigmas": (1, 0)}  # fmt: skip
PET_GRID, QUICK_PET_GRID = 2.0, 4.0
OF_LABELS = "genericLabel"  # interpolation
BRAIN_MARGIN = 6  # mm around the brain in which PET and T1w are compared; our choice


@dataclass(frozen=True)
class RigidResult:
    """Where a PET went: the transform's file, which start won, similarity before and after."""

    transform: Path
    start: str
    before: float
    after: float


def correct_bias(t1w: Path, mask: Path, out: Path, *, shrink_factor: int) -> Path:
    """Remove the bias field of a T1w with N4 (Tustison et al. 2010, IEEE TMI 29:1310-1320).

    Parameters
    ----------
    t1w, mask : Path
        Image, and the brain in which the field is measured; the field is removed everywhere.
    out : Path
        Where the corrected image goes.
    shrink_factor : int
        Voxels are thinned out by it, along each axis, to measure the field: 4 is ANTs's own.
    """
    image = ants.image_read(str(t1w))
    corrected = ants.n4_bias_field_correction(
        image, mask=ants.image_read(str(mask)), shrink_factor=shrink_factor
    )
    corrected.to_filename(str(out))
    return out


def seed_ants(seed: int) -> None:
    """Tell ANTs where its random numbers begin; its 0 is the clock."""
    os.environ["ANTS_RANDOM_SEED"] = str(seed + 1)


def register_to_template(
    brain: Path, template: Path, prefix: Path, *, quick: bool
) -> tuple[Path, Path]:
    """Register a brain to a template's brain: rigid, affine, then SyN, mutual information.

    Avants et al. (2008), Medical Image Analysis 12:26-41, by the settings of
    ``antsRegistrationSyNQuick`` of ANTs; centres of mass are brought together first.

    Parameters
    ----------
    brain, template : Path
        T1w of a brain alone, 0 elsewhere.
    prefix : Path
        Folder and first part of the names of the transforms.
    quick : bool
        Rigid, affine, and SyN at two coarse levels only, for trying things out.

    Returns
    -------
    Path, Path
        Composite transforms (.h5), from brain to template and back.
    """
    fixed, moving = ants.image_read(str(template)), ants.image_read(str(brain))
    if quick:
        ants.registration(
            fixed, moving, "SyN", outprefix=str(prefix), write_composite_transform=True,
            aff_iterations=(200, 100), aff_shrink_factors=(2, 1), aff_smoothing_sigmas=(1, 0),
            reg_iterations=(20, 5),
        )  # fmt: skip
    else:
        ants.registration(
            fixed, moving, "antsRegistrationSyNQuick[s]", outprefix=str(prefix),
            write_composite_transform=True,
        )  # fmt: skip
    return Path(f"{prefix}Composite.h5"), Path(f"{prefix}InverseComposite.h5")


def _common_grid(image: ants.ANTsImage, zoom: float, interpolation: int) -> ants.ANTsImage:
    zooms = [max(zoom, own) for own in image.spacing]
    return ants.resample_image(image, zooms, use_voxels=False, interp_type=interpolation)


def _likeness(fixed: ants.ANTsImage, moving: ants.ANTsImage, where: np.ndarray, xfm: str) -> float:
    moved = ants.apply_transforms(fixed, moving, [xfm])
    field = moving.new_image_like(field_of_view(moving.numpy()).astype(np.float32))
    covered = ants.apply_transforms(fixed, field, [xfm]).numpy() > WHOLLY
    shared = where & covered  # as long as there is enough of it to be alike
    region = shared if 2 * shared.sum() >= where.sum() else where
    return normalized_mutual_information(fixed.numpy(), moved.numpy(), region)


def _starts(fixed: ants.ANTsImage, moving: ants.ANTsImage, prefix: Path) -> dict[str, str]:
    """Write the transforms that registration starts from: nothing moved, or centres matched."""
    shift = np.subtract(ants.get_center_of_mass(moving), ants.get_center_of_mass(fixed))
    starts = {}
    for name, translation in (("header", np.zeros(3)), ("centre of mass", shift)):
        transform = ants.create_ants_transform(
            transform_type="Euler3DTransform", center=ants.get_center_of_mass(fixed),
            translation=tuple(translation),
        )  # fmt: skip
        starts[name] = f"{prefix}{name.replace(' ', '_')}_start.mat"
        ants.write_transform(transform, starts[name])
    return starts


def register_pet(
    pet: Path, t1w: Path, mask: Path, prefix: Path, out: Path, *, quick: bool
) -> RigidResult:
    """Move a PET rigidly onto the T1w of the same person.

    Mattes's mutual information, from two starts: as the headers say, and with centres of mass
    matched. The one whose result is more alike (normalized mutual information) is kept.

    Parameters
    ----------
    pet, t1w, mask : Path
        One PET volume; the T1w, whole or brain alone; and its brain.
    prefix : Path
        Folder and first part of the names of files on the way.
    out : Path
        Where the transform, PET to T1w, goes; ITK's text format.
    quick : bool
        On a coarse grid, for trying things out.
    """
    zoom, levels = (QUICK_PET_GRID, QUICK_RIGID) if quick else (PET_GRID, RIGID)
    brain = ants.image_read(str(mask))
    target = ants.mask_image(ants.image_read(str(t1w)), brain)
    fixed = _common_grid(target, zoom, 0)
    inside = _common_grid(brain, zoom, 1)
    radius = max(round(BRAIN_MARGIN / min(inside.spacing)), 1)
    around = ants.iMath(inside, "MD", radius)
    moving = ants.image_read(str(pet))
    where = around.numpy() > 0
    starts = _starts(fixed, moving, prefix)
    results = []
    for name, start in starts.items():
        found = ants.registration(
            fixed, moving, "Rigid", initial_transform=start, mask=around,
            outprefix=f"{prefix}{name.replace(' ', '_')}_", aff_random_sampling_rate=1.0,
            **levels,
        )["fwdtransforms"][0]  # fmt: skip
        results.append((_likeness(fixed, moving, where, found), name, found))
    after, name, best = max(results)
    ants.write_transform(ants.read_transform(best), str(out))
    return RigidResult(out, name, _likeness(fixed, moving, where, starts["header"]), after)


def resample(
    image: Path, reference: Path, transforms: Sequence[Path], out: Path, *, interpolation: str
) -> Path:
    """Carry an image along transforms onto the grid of another, interpolating once.

    Parameters
    ----------
    image, reference : Path
        What is resampled, and the image whose grid it gets.
    transforms : sequence of Path
        From image to reference, as ANTs orders them: the last is applied first. None: both
        lie as their headers say.
    out : Path
        Where the result goes; 0 where the image does not reach.
    interpolation : str
        One of ``ants.apply_transforms``; what ``genericLabel`` gives is written as whole numbers.
    """
    target, source = ants.image_read(str(reference)), ants.image_read(str(image))
    names = [str(path) for path in transforms]
    if names:
        moved = ants.apply_transforms(target, source, names, interpolator=interpolation)
    else:
        moved = ants.resample_image_to_target(source, target, interp_type=interpolation)
    if interpolation == OF_LABELS:
        moved = moved.new_image_like(np.rint(np.nan_to_num(moved.numpy())).astype(np.uint32))
    moved.to_filename(str(out))
    return out
