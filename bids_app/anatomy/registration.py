"""Everything that ANTs does: bias field, registration, resampling, transforms. Images are files.

ANTs uses ITK's threads, so nothing here may run in a process that also runs torch. The number of
threads is read by ITK once, from the environment, before a process first uses it. A transform
"from A to B" is the one that resamples images of A on grids of B.
"""

import os
import struct
from collections.abc import Sequence
from operator import itemgetter
from pathlib import Path

import ants
import numpy as np
import pandas as pd
from scipy import ndimage

from bids_app import nifti
from bids_app.imaging.coverage import field_of_view
from bids_app.imaging.pose import Pose, PoseSearch
from bids_app.imaging.similarity import normalized_mutual_information
from bids_app.imaging.verdict import Judgement, classify, expected_uptake, judge_pet, winsorize
from bids_app.imaging.volume import Affine, Mask, thin

MAGIC, VERSION, TIMES, ATTRIBUTES = b"OHDR", 2, 0x20, 0x10  # of object headers, and their flags
HALF_WORD = 0xFFFFFFFF


def strip_times(path: Path) -> None:
    """Set the times in an HDF5 file to 0, which ITK's writer has no switch for.

    Each object header of version 2 may hold four times, and ends with a checksum (HDF5 File
    Format Specification 3.0, IV.A.1.b). A header whose checksum does not fit is none.

    Parameters
    ----------
    path : Path
        Is written anew.
    """
    content = bytearray(path.read_bytes())
    at = content.find(MAGIC)
    while at >= 0:
        _strip_header(content, at)
        at = content.find(MAGIC, at + 1)
    path.write_bytes(content)


def _strip_header(content: bytearray, at: int) -> None:
    version, flags = content[at + 4 : at + 6].ljust(2, b"\0")
    if version != VERSION or not flags & TIMES:
        return
    width = 1 << (flags & 3)
    place = at + 6 + 16 + (4 if flags & ATTRIBUTES else 0)
    end = place + width + int.from_bytes(content[place : place + width], "little")
    stored = content[end : end + 4]
    if bytes(stored) != struct.pack("<I", checksum(bytes(content[at:end]))):
        return
    content[at + 6 : at + 22] = bytes(16)
    content[end : end + 4] = struct.pack("<I", checksum(bytes(content[at:end])))


def _rotate(value: int, bits: int) -> int:
    return (value << bits | value >> (32 - bits)) & HALF_WORD


def checksum(data: bytes) -> int:
    """Give the checksum of HDF5's metadata: lookup3 of Bob Jenkins (2006), ``hashlittle``.

    Examples
    --------
    From the test driver of lookup3.c:

    >>> hex(checksum(b"Four score and seven years ago"))
    '0x17770551'
    """
    a = b = c = (0xDEADBEEF + len(data)) & HALF_WORD
    if not data:
        return c
    whole = (len(data) - 1) // 12 * 12
    for start in range(0, whole, 12):
        x, y, z = struct.unpack_from("<III", data, start)
        a, b, c = _mix((a + x) & HALF_WORD, (b + y) & HALF_WORD, (c + z) & HALF_WORD)
    x, y, z = struct.unpack("<III", data[whole:].ljust(12, b"\0"))
    return _finish((a + x) & HALF_WORD, (b + y) & HALF_WORD, (c + z) & HALF_WORD)


def _mix(a: int, b: int, c: int) -> tuple[int, int, int]:
    for bits in (4, 6, 8, 16, 19, 4):
        a = (a - c & HALF_WORD) ^ _rotate(c, bits)
        c = c + b & HALF_WORD
        a, b, c = b, c, a
    return a, b, c


def _finish(a: int, b: int, c: int) -> int:
    for bits in (14, 11, 25, 16, 4, 14, 24):
        c = (c ^ b) - _rotate(b, bits) & HALF_WORD
        a, b, c = b, c, a
    return b


# Grid in mm, and levels, of the rigid registration of PET: ours. No PET is sharper than 2 mm.
RIGID = {
    "aff_iterations": (500, 250, 100),
    "aff_shrink_factors": (4, 2, 1),
    "aff_smoothing_sigmas": (2, 1, 0),
}
QUICK_RIGID = {
    "aff_iterations": (200, 100),
    "aff_shrink_factors": (2, 1),
    "aff_smoothing_sigmas": (1, 0),
}
PET_GRID, QUICK_PET_GRID = 2.0, 4.0
OF_LABELS, NEAREST = "genericLabel", "nearestNeighbor"  # interpolation
LEAST = 0.1  # percentile of the brain that becomes 0 if it is below; our choice, as in winsorize
POINTS = 20  # every so many voxels of the brain tell the linear part of a transform
BRAIN_MARGIN = 6  # mm around the brain in which PET and T1w are compared; our choice
COARSE = 4.0  # mm; images that are searched for a pose are thinned out to it
LPS = np.diag([-1.0, -1.0, 1.0, 1.0])  # ITK's axes in RAS+
# A linear part that is right was ahead of the best pose of the search by -.00 to .24 of
# correlation, wrong ones by -.02 to -.08 (docs/results/participant.md); our choice
AHEAD = -0.01
HEADER, CENTRE, SEARCH = "header", "centre of mass", "search of directions"


def correct_bias(t1w: Path, mask: Path, out: Path, *, shrink_factor: int) -> Path:
    """Remove the bias field of a T1w with N4 (Tustison et al. 2010, IEEE TMI 29:1310-1320).

    N4 takes logarithms, and 0 stands for what is no brain: where part of the brain is below 0 (a
    z-scored T1w), all is raised first, and what stays below 0 (a fill value of the air) is 0.

    Parameters
    ----------
    t1w, mask : Path
        Image, and the brain in which the field is measured; the field is removed everywhere.
    out : Path
        Where the corrected image goes.
    shrink_factor : int
        Voxels are thinned out by it, along each axis, to measure the field: 4 is ANTs's own.
    """
    image, brain = ants.image_read(str(t1w)), ants.image_read(str(mask))
    data = image.numpy()
    if data.min() < 0:
        least = float(np.percentile(data[brain.numpy() > 0], LEAST))
        image = image.new_image_like(np.maximum(data - min(least, 0.0), 0))
    corrected = ants.n4_bias_field_correction(image, mask=brain, shrink_factor=shrink_factor)
    corrected.to_filename(str(out))
    return out


def seed_ants(seed: int) -> None:
    """Tell ANTs where its random numbers begin; its 0 is the clock."""
    os.environ["ANTS_RANDOM_SEED"] = str(seed + 1)


def _winsorized(image: ants.ANTsImage) -> ants.ANTsImage:
    """Cut off extreme intensities of an image, for registration only; zeros are no brain."""
    data = image.numpy()
    return image.new_image_like(winsorize(data, data != 0))


def _coarse(image: nifti.Image) -> nifti.Image:
    data, affine = thin(np.nan_to_num(image.data), image.affine, COARSE)
    return nifti.Image(data, affine)


def _around(brain: Mask, zooms: Sequence[float], margin: float) -> Mask:
    """Widen a brain by a margin in mm."""
    away = ndimage.distance_transform_edt(~brain, sampling=zooms)
    return away <= max(margin, *zooms)


def _write_pose(pose: Affine, centre: Sequence[float], path: str) -> str:
    """Write a rigid transform, world of the fixed image → world of the moving one, RAS+."""
    own = LPS @ pose @ LPS
    matrix, about = own[:3, :3], np.array(centre)
    transform = ants.create_ants_transform(
        transform_type="Euler3DTransform",
        center=tuple(about),
        matrix=matrix,
        translation=tuple(matrix @ about + own[:3, 3] - about),
    )
    ants.write_transform(transform, path)
    return path


def _search_in_template(brain: Path, template: Path) -> PoseSearch:
    """Prepare to search the pose of a brain in which it is most like the template's."""
    fixed, moving = _coarse(nifti.load(template)), _coarse(nifti.load(brain))
    where = _around(fixed.data > 0, fixed.zooms, BRAIN_MARGIN)
    data = winsorize(moving.data, moving.data != 0)
    return PoseSearch(fixed.data, fixed.affine, where, data, moving.affine, bounded=False)


def _linear_part(transform: Path, template: Path) -> Affine:
    """Fit an affine to what a transform does to the template's brain; fixed → moving, RAS+."""
    image = _coarse(nifti.load(template))
    voxels = np.argwhere(image.data > 0)[::POINTS]
    points = np.c_[voxels, np.ones(len(voxels))] @ image.affine.T
    table = pd.DataFrame((points @ LPS)[:, :3], columns=list("xyz"))
    moved = ants.apply_transforms_to_points(3, table, [str(transform)]).to_numpy()[:, :3]
    fitted, *_ = np.linalg.lstsq(points, moved @ LPS[:3, :3], rcond=None)
    return np.vstack([fitted.T, [0, 0, 0, 1]])


def register_to_template(
    brain: Path, template: Path, prefix: Path, *, quick: bool
) -> tuple[Path, Path, str, float]:
    """Register a brain to a template's brain: rigid, affine, then SyN, mutual information.

    Avants et al. (2008), Medical Image Analysis 12:26-41, by the settings of
    ``antsRegistrationSyNQuick`` of ANTs; centres of mass are brought together first. Where the
    header has the head turned, it starts from the pose that a search of all directions finds. A
    result that is less like the template than that pose is no good one: then it starts
    from the other as well, and the better result is kept.

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
    str
        The start.
    float
        Correlation after the linear part alone, less that in the best pose of the search.
    """
    fixed = ants.image_read(str(template))
    moving = _winsorized(ants.image_read(str(brain)))
    search = _search_in_template(brain, template)
    pose = search.find()
    centre = ants.get_center_of_mass(fixed)
    turned = [_write_pose(pose.matrix, centre, f"{prefix}search_start.mat")]
    starts = {CENTRE: (None, f"{prefix}"), SEARCH: (turned, f"{prefix}search_")}
    results = []
    for start in (SEARCH, CENTRE) if pose.is_better else (CENTRE, SEARCH):
        there, back = _register_from(fixed, moving, *starts[start], quick=quick)
        ahead = search.score(_linear_part(there, template)) - pose.score
        results.append((ahead, there, back, start))
        if ahead >= AHEAD:
            break
    ahead, there, back, start = max(results, key=itemgetter(0))
    return there, back, start, ahead


def _register_from(
    fixed: ants.ANTsImage,
    moving: ants.ANTsImage,
    initial: list[str] | None,
    prefix: str,
    *,
    quick: bool,
) -> tuple[Path, Path]:
    """Register one brain to another from one start; give the composite transforms, there and back.

    ``initial``: the start's transform; None brings centres of mass together.
    """
    if quick:
        ants.registration(
            fixed,
            moving,
            "SyN",
            initial_transform=initial,
            outprefix=prefix,
            write_composite_transform=True,
            aff_iterations=(200, 100),
            aff_shrink_factors=(2, 1),
            aff_smoothing_sigmas=(1, 0),
            reg_iterations=(20, 5),
        )
    else:
        ants.registration(
            fixed,
            moving,
            "antsRegistrationSyNQuick[s]",
            initial_transform=initial,
            outprefix=prefix,
            write_composite_transform=True,
        )
    there, back = Path(f"{prefix}Composite.h5"), Path(f"{prefix}InverseComposite.h5")
    for path in (there, back):
        strip_times(path)
    return there, back


def _common_grid(image: ants.ANTsImage, zoom: float) -> ants.ANTsImage:
    """Resample an image linearly to voxels of a size, in mm, or as they are where larger."""
    zooms = [max(zoom, own) for own in image.spacing]
    return ants.resample_image(image, zooms, use_voxels=False, interp_type=0)


def _likeness(
    fixed: ants.ANTsImage, moving: ants.ANTsImage, where: Mask, xfm: str
) -> tuple[float, np.ndarray, Mask]:
    """Compare where the moving image reaches; the less it does, the less alike they are.

    Returns
    -------
    float
        Normalized mutual information; what is above 1 is multiplied by the share of ``where``
        that the moving image covers.
    ndarray, ndarray of bool
        The moved image, and where it reaches.
    """
    moved = ants.apply_transforms(fixed, moving, [xfm]).numpy()
    field = moving.new_image_like(field_of_view(moving.numpy()).astype(np.float32))
    covered = ants.apply_transforms(fixed, field, [xfm], interpolator=NEAREST).numpy() > 0
    seen = where & covered
    share = float(seen.sum() / max(where.sum(), 1))
    alike = normalized_mutual_information(fixed.numpy(), moved, seen) if seen.any() else 1.0
    return 1 + (alike - 1) * share, moved, covered


def _starts(
    fixed: ants.ANTsImage, moving: ants.ANTsImage, pose: Pose, prefix: Path
) -> dict[str, str]:
    """Write the transforms that registration starts from: by header, centres, and search."""
    centre = ants.get_center_of_mass(fixed)
    shifted = np.eye(4)
    shifted[:3, 3] = LPS[:3, :3] @ np.subtract(ants.get_center_of_mass(moving), centre)
    poses = {HEADER: np.eye(4), CENTRE: shifted}
    if pose.is_better:
        poses[SEARCH] = pose.matrix
    return {
        name: _write_pose(matrix, centre, f"{prefix}{name.replace(' ', '_')}_start.mat")
        for name, matrix in poses.items()
    }


def _search_in_t1w(pet: ants.ANTsImage, uptake: nifti.Image, prefix: Path) -> PoseSearch:
    """Prepare to search the pose of a PET that is most like the uptake a T1w lets expect."""
    name = f"{prefix}winsorized.nii"
    pet.to_filename(name)
    moving = _coarse(nifti.load(Path(name)))
    where = _around(uptake.data > 0, uptake.zooms, BRAIN_MARGIN)
    return PoseSearch(uptake.data, uptake.affine, where, moving.data, moving.affine, bounded=True)


def register_pet(
    pet: Path, t1w: Path, mask: Path, prefix: Path, out: Path, *, quick: bool
) -> tuple[str, float, float, Judgement]:
    """Move a PET rigidly onto the T1w of the same person.

    Mattes's mutual information, from two starts: as the headers say, and with centres of mass
    matched; and from a third where a search of all directions finds one clearly better. The one
    whose result is more alike (normalized mutual information) is kept.

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

    Returns
    -------
    str
        The start that won.
    float, float
        Similarity before and after.
    Judgement
        Whether the result may be believed.

    Raises
    ------
    ValueError
        If the T1w's brain has no tissues that could be told apart.
    """
    zoom, levels = (QUICK_PET_GRID, QUICK_RIGID) if quick else (PET_GRID, RIGID)
    brain = ants.image_read(str(mask))
    target = ants.mask_image(ants.image_read(str(t1w)), brain)
    fixed = _common_grid(target, zoom)
    inside = ants.resample_image_to_target(brain, fixed, "nearestNeighbor")  # spacings may differ
    radius = max(round(BRAIN_MARGIN / min(inside.spacing)), 1)
    around = ants.iMath(inside, "MD", radius)
    whole = ants.image_read(str(pet))
    moving = whole.new_image_like(winsorize(whole.numpy()))
    where = around.numpy() > 0
    uptake = _uptake(t1w, mask)
    search = _search_in_t1w(moving, uptake, prefix)
    pose = search.find()
    results = []
    starts = _starts(fixed, moving, pose, prefix)
    for name, start in starts.items():
        found = ants.registration(
            fixed,
            moving,
            "Rigid",
            initial_transform=start,
            mask=around,
            outprefix=f"{prefix}{name.replace(' ', '_')}_",
            aff_random_sampling_rate=1.0,
            **levels,
        )["fwdtransforms"][0]
        results.append((_likeness(fixed, moving, where, found)[0], name, found))
    after, name, best = max(results)
    ants.write_transform(ants.read_transform(best), str(out))
    before = _likeness(fixed, moving, where, starts[HEADER])[0]
    behind = search.score(_pose_of(best)) - pose.score
    return name, before, after, _judge(moving, uptake, best, prefix, behind)


def _uptake(t1w: Path, mask: Path) -> nifti.Image:
    """Give the uptake that the tissues of a T1w let expect, on a coarse grid; 0 outside."""
    image, brain = nifti.load(t1w), nifti.load(mask).data > 0
    return _coarse(nifti.Image(expected_uptake(classify(image.data, brain)), image.affine))


def _judge(
    moving: ants.ANTsImage, uptake: nifti.Image, transform: str, prefix: Path, behind: float
) -> Judgement:
    """Judge where a PET lies on the tissues of its T1w, on a coarse grid."""
    name = f"{prefix}uptake.nii"
    nifti.save(uptake, Path(name))
    brain = ndimage.binary_fill_holes(uptake.data > 0)
    _, moved, covered = _likeness(ants.image_read(name), moving, brain, transform)
    return judge_pet(moved, uptake.data, brain, covered, uptake.zooms, behind=behind)


def _pose_of(transform: str) -> Affine:
    """Read a linear transform as a matrix, fixed → moving, RAS+."""
    own = ants.read_transform(transform)
    places = np.vstack([np.zeros(3), np.eye(3)])
    moved = np.array([own.apply_to_point(tuple(place)) for place in places])
    pose = np.eye(4)
    pose[:3, :3], pose[:3, 3] = (moved[1:] - moved[0]).T, moved[0]
    return LPS @ pose @ LPS


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
