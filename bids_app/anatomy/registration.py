"""Bias field correction, registration, resampling and transforms with SimpleITK and dipy.

Images are passed as files. SimpleITK (Lowekamp et al. 2013, Frontiers in Neuroinformatics 7:45) is
used for N4, linear registration and resampling, and dipy (Garyfallidis et al. 2014, Frontiers in
Neuroinformatics 8:8) for deformable registration; docs/results/registration.md explains this
choice. The threads of ITK and torch compete for cores, so that nothing here may run in a process
that also runs torch. ITK reads the number of threads from the environment only once, before a
process first uses it. A transform "from A to B" resamples images of A to grids of B.
"""

import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from operator import itemgetter
from pathlib import Path

import h5py
import numpy as np
import SimpleITK as sitk
from dipy.align.imwarp import SymmetricDiffeomorphicRegistration
from dipy.align.metrics import CCMetric
from numpy.typing import NDArray
from scipy import ndimage

from bids_app import nifti
from bids_app.imaging.coverage import WHOLLY, field_of_view
from bids_app.imaging.intensity import raise_above_zero
from bids_app.imaging.pose import Pose, PoseSearch
from bids_app.imaging.similarity import normalized_mutual_information
from bids_app.imaging.verdict import (
    SIZE,
    Judgement,
    classify,
    expected_uptake,
    judge_pet,
    measure_detail,
    winsorize,
)
from bids_app.imaging.volume import Affine, Mask, Volume, downsample

Levels = Mapping[str, Sequence[int]]

logging.getLogger("dipy").setLevel(logging.WARNING)  # it logs each level otherwise

BIAS_ITERATIONS, BIAS_TOLERANCE = [50] * 4, 1e-7  # for N4, per level; defaults of ANTs
BIAS_THREADS = 4  # always as many, because N4's sums depend on their number; our choice
BINS = 32  # of the joint histogram for Mattes's mutual information; antsRegistrationSyNQuick's
# Levels of the linear registration to a template: shrink factor, smoothing in voxels, and share of
# voxels sampled; our choice
SHRINK, SIGMAS, SAMPLES = (4, 2, 1), (2, 1, 0), (0.5, 0.25, 0.1)
STEPS, LINE_STEPS = 30, 8  # of conjugate gradients, and per line search; our choice
LINE = 5.0  # upper limit of a line search, in units of the estimated step
TOLERANCE, WINDOW = 1e-5, 5  # minimum gain of the metric, and steps over which it is measured
PRECISION = 0.01  # of a line search
APART = "All samples map outside"  # part of ITK's error message if images do not overlap
DEFORMABLE_GRID, QUICK_GRID = 2.0, 4.0  # mm; nothing is computed at 1 mm
MARGIN = 10.0  # mm around the template's brain that the deformation covers; our choice
RADIUS = 2  # voxels, for the local cross-correlation; 4 at 1 mm in Avants et al. (2008)
SIGMA = 1.73  # voxels, for smoothing updates: a variance of 3, as in antsRegistration
# Iterations, coarsest level first: more at 2 mm increased Dice, fewer decreased it
# (docs/results/registration.md)
ITERATIONS, QUICK_ITERATIONS = (60, 60, 40, 20), (20, 10, 5)
COMPRESSION = 4  # gzip level of stored fields

# Levels and grid in mm for the rigid registration of PET; our choice: no PET is sharper than 2 mm
RIGID_COARSE: Levels = {"shrink": (4, 2), "sigmas": (2, 1)}
QUICK_RIGID_COARSE: Levels = {"shrink": (2,), "sigmas": (1,)}
RIGID_FINE: Levels = {"shrink": (1,), "sigmas": (0,)}
PET_GRID, QUICK_PET_GRID = 2.0, 4.0
INTERPOLATORS = {
    "linear": sitk.sitkLinear,
    "nearestNeighbor": sitk.sitkNearestNeighbor,
    "bSpline": sitk.sitkBSpline3,
    "genericLabel": sitk.sitkLabelLinear,
}
OF_LABELS = "genericLabel"
POINTS = 5000  # points in the template's brain for fitting a linear transform; our choice
APART_AT_MOST = 3.0  # mm, median error of a transform and its inverse; our choice
BRAIN_MARGIN = 6  # mm around the brain in which PET and T1w are compared; our choice
COARSE = 4.0  # mm, voxel size for the search of poses
LPS = np.diag([-1.0, -1.0, 1.0, 1.0])  # ITK's axes in RAS+
# Correct linear parts exceeded the correlation in the best pose of the search by -.00 to .24, wrong
# ones by -.02 to -.08 (docs/results/participant.md); our choice
AHEAD = -0.01
HEADER, CENTRE, SEARCH = "header", "centre of mass", "search of directions"


def _read(path: Path | str) -> sitk.Image:
    return sitk.ReadImage(str(path), sitk.sitkFloat32)


def _write(image: sitk.Image, path: Path | str) -> None:
    sitk.WriteImage(image, str(path))


def _voxels(image: sitk.Image) -> Volume:
    """Return the voxels of an image, (I, J, K), as a copy because a view would outlive it."""
    voxels: Volume = sitk.GetArrayFromImage(image).T
    return voxels


def _like(image: sitk.Image, data: NDArray[np.generic]) -> sitk.Image:
    """Create an image from voxels (I, J, K) on the grid of another image."""
    on_grid = sitk.GetImageFromArray(np.ascontiguousarray(data.T))
    on_grid.CopyInformation(image)
    return on_grid


def _zooms(image: sitk.Image) -> tuple[float, float, float]:
    x, y, z = image.GetSpacing()
    return x, y, z


def _affine(image: sitk.Image) -> Affine:
    """Return the affine of an image, voxel indices → world in mm, RAS+."""
    lps_affine = np.eye(4)
    lps_affine[:3, :3] = np.reshape(image.GetDirection(), (3, 3)) * image.GetSpacing()
    lps_affine[:3, 3] = image.GetOrigin()
    affine: Affine = LPS @ lps_affine
    return affine


def _grid_around(image: sitk.Image, zoom: float) -> sitk.Image:
    """Create a grid around the non-zero voxels, with voxel size in mm and a margin."""
    inside = np.nonzero(_voxels(image))
    spacing = np.array(image.GetSpacing())
    low = np.array([axis.min() for axis in inside]) - MARGIN / spacing
    high = np.array([axis.max() for axis in inside]) + MARGIN / spacing
    size = np.ceil((high - low) * spacing / zoom).astype(int) + 1
    grid = sitk.Image(size.tolist(), sitk.sitkFloat32)
    grid.SetSpacing([zoom] * 3)
    grid.SetDirection(image.GetDirection())
    grid.SetOrigin(image.TransformContinuousIndexToPhysicalPoint(low.tolist()))
    return grid


def _centre_of_mass(image: sitk.Image) -> list[float]:
    """Return the centre of mass of an image, in mm, LPS."""
    centre = ndimage.center_of_mass(_voxels(image))
    place: list[float] = list(
        image.TransformContinuousIndexToPhysicalPoint([float(index) for index in centre])
    )
    return place


def _match_centres(centre: Sequence[float], moving: sitk.Image) -> Affine:
    """Return the pose that moves the moving image's centre of mass to a point in mm, LPS."""
    pose = np.eye(4)
    pose[:3, 3] = LPS[:3, :3] @ np.subtract(_centre_of_mass(moving), centre)
    return pose


@contextmanager
def _threads(number: int) -> Iterator[None]:
    """Set the number of threads of filters, and of those that they run; they are no CPUs."""
    before = sitk.ProcessObject.GetGlobalDefaultNumberOfThreads()
    sitk.ProcessObject.SetGlobalDefaultNumberOfThreads(number)
    try:
        yield
    finally:
        sitk.ProcessObject.SetGlobalDefaultNumberOfThreads(before)


def correct_bias(t1w: Path, mask: Path, out: Path, *, grid: float) -> Path:
    """Remove the bias field of a T1w with N4 (Tustison et al. 2010, IEEE TMI 29:1310-1320).

    N4 takes logarithms, and 0 means background. Negative intensities are therefore raised first, by
    :func:`bids_app.imaging.intensity.raise_above_zero`.

    Parameters
    ----------
    t1w, mask : Path
        Image, and mask of the brain in which the field is estimated; it is removed everywhere.
    out : Path
        Path of the corrected image.
    grid : float
        Approximate voxel size, in mm, to which the image is downsampled for estimating the field. 4
        corresponds to ANTs's shrink factor for voxels of 1 mm.

    Returns
    -------
    Path
        ``out``.
    """
    image, brain = _read(t1w), sitk.ReadImage(str(mask), sitk.sitkUInt8)
    image = _like(image, raise_above_zero(_voxels(image), _voxels(brain) > 0))
    steps = np.clip(np.round(grid / np.array(image.GetSpacing())), 1, image.GetSize())
    shrinking = [int(step) for step in steps]
    n4 = sitk.N4BiasFieldCorrectionImageFilter()
    n4.SetMaximumNumberOfIterations(BIAS_ITERATIONS)
    n4.SetConvergenceThreshold(BIAS_TOLERANCE)
    with _threads(BIAS_THREADS):
        n4.Execute(sitk.Shrink(image, shrinking), sitk.Shrink(brain, shrinking))
    field = sitk.Exp(n4.GetLogBiasFieldAsImage(image))
    _write(sitk.Cast(image / field, sitk.sitkFloat32), out)
    return out


def _winsorized(image: sitk.Image) -> sitk.Image:
    """Winsorize the non-zero intensities of an image, for registration only."""
    data = _voxels(image)
    return _like(image, winsorize(data, data != 0))


def _coarse(image: nifti.Image) -> nifti.Image:
    data, affine = downsample(np.nan_to_num(image.data), image.affine, COARSE)
    return nifti.Image(data, affine)


def _around(brain: Mask, zooms: Sequence[float]) -> Mask:
    """Dilate a brain mask by ``BRAIN_MARGIN``, at least by one voxel."""
    away = ndimage.distance_transform_edt(~brain, sampling=zooms)
    return away <= max(BRAIN_MARGIN, *zooms)


def _start(pose: Affine, centre: Sequence[float]) -> sitk.Euler3DTransform:
    """Create a rigid transform from a pose in RAS+, fixed → moving, about a centre in LPS."""
    matrix, pivot = LPS @ pose @ LPS, np.array(centre)
    rigid = sitk.Euler3DTransform()
    rigid.SetCenter(pivot.tolist())
    rigid.SetMatrix(matrix[:3, :3].ravel().tolist(), 1e-6)
    rigid.SetTranslation((matrix[:3, :3] @ pivot + matrix[:3, 3] - pivot).tolist())
    return rigid


def _search_in_template(brain: Path, template: Path) -> PoseSearch:
    """Prepare the search for the pose in which a brain is most similar to the template's."""
    fixed, moving = _coarse(nifti.load(template)), _coarse(nifti.load(brain))
    mask = _around(fixed.data > 0, fixed.zooms)
    data = winsorize(moving.data, moving.data != 0)
    return PoseSearch(fixed.data, fixed.affine, mask, data, moving.affine, bounded=False)


def _matrix_of(transform: sitk.Transform) -> Affine:
    """Convert a linear transform to a matrix, fixed → moving, RAS+."""
    points = np.vstack([np.zeros(3), np.eye(3)])
    moved = np.array([transform.TransformPoint(point.tolist()) for point in points])
    matrix = np.eye(4)
    matrix[:3, :3], matrix[:3, 3] = (moved[1:] - moved[0]).T, moved[0]
    return LPS @ matrix @ LPS


def _align(
    fixed: sitk.Image,
    moving: sitk.Image,
    transform: sitk.Transform,
    *,
    shrink: Sequence[int],
    sigmas: Sequence[float],
    samples: Sequence[float] | None,
    seed: int,
    mask: sitk.Image | None = None,
) -> None:
    """Optimize a linear transform by Mattes's mutual information and conjugate gradients.

    See Mattes et al. (2003), IEEE TMI 22:120-128. Parameters are scaled so that each moves voxels
    by similar amounts, and a line search determines the length of each step, as in
    ``antsRegistration``. A single thread computes the metric: several add up its derivative in an
    order that differs between runs, and line searches amplify differences in the last digit.

    Parameters
    ----------
    fixed, moving : SimpleITK.Image
        Images of about the same voxel size.
    transform : SimpleITK.Transform
        Initial transform; changed in place, unless the images do not overlap.
    shrink, sigmas : sequence
        Shrink factor and smoothing in voxels for each level.
    samples : sequence of float or None
        Share of the voxels sampled at random for each level; None for all voxels.
    seed : int
        Seed of the sampling.
    mask : SimpleITK.Image or None
        Mask of the voxels of ``fixed`` to compare; None for all voxels.
    """
    method = sitk.ImageRegistrationMethod()
    method.SetNumberOfWorkUnits(1)  # SetNumberOfThreads has no effect on the metric
    method.SetMetricAsMattesMutualInformation(BINS)
    if samples is not None:
        method.SetMetricSamplingStrategy(method.RANDOM)
        method.SetMetricSamplingPercentagePerLevel(list(samples), seed + 1)  # 0 means the clock
    if mask is not None:
        method.SetMetricFixedMask(mask)
    method.SetInterpolator(sitk.sitkLinear)
    method.SetOptimizerAsConjugateGradientLineSearch(
        learningRate=1.0,
        numberOfIterations=STEPS,
        convergenceMinimumValue=TOLERANCE,
        convergenceWindowSize=WINDOW,
        lineSearchLowerLimit=0.0,
        lineSearchUpperLimit=LINE,
        lineSearchEpsilon=PRECISION,
        lineSearchMaximumIterations=LINE_STEPS,
        estimateLearningRate=method.EachIteration,
    )
    method.SetOptimizerScalesFromPhysicalShift()
    method.SetShrinkFactorsPerLevel(list(shrink))
    method.SetSmoothingSigmasPerLevel(list(sigmas))
    method.SmoothingSigmasAreSpecifiedInPhysicalUnitsOff()
    method.SetInitialTransform(transform, inPlace=True)
    start = transform.GetParameters()
    try:
        method.Execute(fixed, moving)
    except RuntimeError as error:
        if APART not in str(error):
            raise
        transform.SetParameters(start)


def _to_affine(rigid: sitk.Euler3DTransform) -> sitk.AffineTransform:
    """Convert a rigid transform to an affine one, which all readers of ITK's files support."""
    affine = sitk.AffineTransform(3)
    affine.SetCenter(rigid.GetCenter())
    affine.SetMatrix(rigid.GetMatrix())
    affine.SetTranslation(rigid.GetTranslation())
    return affine


def _align_to_template(
    fixed: sitk.Image, moving: sitk.Image, start: sitk.Euler3DTransform, *, quick: bool, seed: int
) -> sitk.AffineTransform:
    """Align a brain to the template's: rigid at 8 and 4 mm, then affine at 8, 4 and 2 mm.

    If ``quick``, the last level of both is left out.
    """

    def align(transform: sitk.Transform, levels: int) -> None:
        _align(
            fixed,
            moving,
            transform,
            shrink=SHRINK[:levels],
            sigmas=SIGMAS[:levels],
            samples=SAMPLES[:levels],
            seed=seed,
        )

    levels = len(SHRINK) - quick
    align(start, levels - 1)
    affine = _to_affine(start)
    align(affine, levels)
    return affine


def register_to_template(
    brain: Path, template: Path, prefix: Path, *, quick: bool, seed: int
) -> tuple[Path, Path, str, float]:
    """Register a brain to a template's brain: rigid, affine, then symmetric diffeomorphic (SyN).

    Linear registration maximizes mutual information, starting from matched centres of mass. It is
    followed by SyN (Avants et al. 2008, Medical Image Analysis 12:26-41) in dipy, with local
    cross-correlation, at 2 mm, on the template's brain with a margin of 10 mm. If the head is
    rotated according to a search of all orientations, registration starts from the pose found
    there. If the result of the linear part is less similar to the template than that pose,
    registration is repeated from the other start, and the better result is kept.

    Parameters
    ----------
    brain, template : Path
        T1w of a brain alone and of the template's brain, 0 elsewhere.
    prefix : Path
        Folder and beginning of the names of the transforms.
    quick : bool
        If True, linear registration ends at 4 mm, and SyN runs at 4 mm with few iterations, for
        testing only.
    seed : int
        Seed for sampling voxels.

    Returns
    -------
    Path, Path
        Composite transforms (.h5), from brain to template and back.
    str
        Name of the start that was used.
    float
        Correlation after the linear part alone, minus that in the best pose of the search.
    """
    target, source = _read(template), _winsorized(_read(brain))
    grid = _grid_around(target, DEFORMABLE_GRID)
    fixed = sitk.Resample(target, grid)
    moving = sitk.Resample(source, _grid_around(source, DEFORMABLE_GRID))
    search = _search_in_template(brain, template)
    pose = search.find()
    centre = _centre_of_mass(fixed)
    starts = {CENTRE: _match_centres(centre, moving), SEARCH: pose.matrix}
    results = []
    for start in (SEARCH, CENTRE) if pose.is_better else (CENTRE, SEARCH):
        affine = _align_to_template(
            fixed, moving, _start(starts[start], centre), quick=quick, seed=seed
        )
        ahead = search.score(_matrix_of(affine)) - pose.score
        results.append((ahead, affine, start))
        if ahead >= AHEAD:
            break
    ahead, affine, start = max(results, key=itemgetter(0))
    if quick:
        grid = _grid_around(target, QUICK_GRID)
    forward, backward = _deform(
        target, source, affine, grid, QUICK_ITERATIONS if quick else ITERATIONS
    )
    paths = Path(f"{prefix}Composite.h5"), Path(f"{prefix}InverseComposite.h5")
    _write_composite(paths[0], [affine, forward], grid)
    _write_composite(paths[1], [backward, affine.GetInverse()], grid)
    return *paths, start, ahead


def _deform(
    target: sitk.Image,
    source: sitk.Image,
    affine: sitk.AffineTransform,
    grid: sitk.Image,
    iterations: Sequence[int],
) -> tuple[Volume, Volume]:
    """Compute the displacement fields that remain after an affine, in both directions.

    Returns
    -------
    tuple of ndarray, (I, J, K, 3)
        Forward and backward displacements on the grid, float32, in mm, RAS+; 0 at its faces.
    """
    fixed = _voxels(sitk.Resample(target, grid))
    moving = _voxels(sitk.Resample(source, grid, affine))
    registration = SymmetricDiffeomorphicRegistration(
        CCMetric(3, sigma_diff=SIGMA, radius=RADIUS), level_iters=list(iterations)
    )
    world = _affine(grid)
    mapping = registration.optimize(
        np.ascontiguousarray(fixed),
        np.ascontiguousarray(moving),
        static_grid2world=world,
        moving_grid2world=world,
    )
    return mapping.get_forward_field(), mapping.get_backward_field()


def _write_composite(
    path: Path, parts: Sequence[sitk.AffineTransform | Volume], grid: sitk.Image
) -> None:
    """Write a composite transform in ITK's HDF5 format, in single precision and compressed.

    SimpleITK would write it in double precision, uncompressed, and with a timestamp.

    Parameters
    ----------
    path : Path
        Path ending in ``.h5``; replaced if it exists.
    parts : sequence of SimpleITK.AffineTransform or ndarray, (I, J, K, 3)
        Transforms, of which the last is applied to points first. Displacements are in mm, RAS+.
    grid : SimpleITK.Image
        Grid of the displacements.
    """
    with h5py.File(path, "w") as file:
        _write_part(file.create_group("TransformGroup/0"), "CompositeTransform")
        for number, part in enumerate(parts, 1):
            group = file.create_group(f"TransformGroup/{number}")
            if isinstance(part, sitk.Transform):
                fixed, values = part.GetFixedParameters(), np.array(part.GetParameters())
                _write_part(group, "AffineTransform", fixed, values)
            else:
                fixed = (*grid.GetSize(), *grid.GetOrigin(), *grid.GetSpacing())
                fixed += tuple(grid.GetDirection())
                turned = part * np.diag(LPS)[:3].astype(np.float32)
                values = turned.transpose(2, 1, 0, 3).ravel()
                _write_part(group, "DisplacementFieldTransform", fixed, values)


def write_identity(path: Path) -> None:
    """Write the identity in the format of the transforms between T1w and template."""
    _write_composite(path, [sitk.AffineTransform(3)], sitk.Image())


def _write_part(
    group: h5py.Group,
    kind: str,
    fixed: Sequence[float] | None = None,
    values: NDArray[np.floating] | None = None,
) -> None:
    text = h5py.string_dtype("ascii")  # variable length, the only kind that ITK reads
    group.create_dataset("TransformType", data=[f"{kind}_float_3_3"], dtype=text)
    if fixed is None or values is None:
        return
    group["TransformFixedParameters"] = np.array(fixed, np.float64)
    compressed = {"compression": "gzip", "compression_opts": COMPRESSION, "shuffle": True}
    data = values.astype(np.float32)
    group.create_dataset("TransformParameters", data=data, **compressed)


def _common_grid(image: sitk.Image, zoom: float) -> sitk.Image:
    """Resample an image linearly to a voxel size in mm, except along axes with larger voxels."""
    zooms = np.maximum(image.GetSpacing(), zoom)
    size = np.maximum(np.array(image.GetSize()) * image.GetSpacing() / zooms, 1).round()
    grid = sitk.Image([int(side) for side in size], sitk.sitkFloat32)
    grid.SetSpacing(zooms.tolist())
    grid.SetDirection(image.GetDirection())
    half = (zooms / image.GetSpacing() - 1) / 2  # so that the outer faces of both grids coincide
    grid.SetOrigin(image.TransformContinuousIndexToPhysicalPoint(half.tolist()))
    return sitk.Resample(image, grid)


def _likeness(
    fixed: sitk.Image, moving: sitk.Image, field: sitk.Image, mask: Mask, transform: sitk.Transform
) -> tuple[float, np.ndarray, Mask]:
    """Compute the similarity of two images, reduced if the moving one covers less of the mask.

    ``field`` is the field of view of the moving image, 1 where it holds data.

    Returns
    -------
    float
        Normalized mutual information, of which the part above 1 is multiplied by the share of
        ``mask`` that the moving image covers.
    ndarray, ndarray of bool
        Moved image, and mask of the voxels that it covers.
    """
    moved = _voxels(sitk.Resample(moving, fixed, transform))
    covered = _voxels(sitk.Resample(field, fixed, transform, sitk.sitkNearestNeighbor)) > 0
    compared = mask & covered
    share = float(compared.sum() / max(mask.sum(), 1))
    similarity = (
        normalized_mutual_information(_voxels(fixed), moved, compared) if compared.any() else 1.0
    )
    return 1 + (similarity - 1) * share, moved, covered


def _starts(fixed: sitk.Image, moving: sitk.Image, pose: Pose) -> dict[str, sitk.Euler3DTransform]:
    """Create the initial transforms: by header, by centres of mass and, if better, by search."""
    centre = _centre_of_mass(fixed)
    poses = {HEADER: np.eye(4), CENTRE: _match_centres(centre, moving)}
    if pose.is_better:
        poses[SEARCH] = pose.matrix
    return {name: _start(matrix, centre) for name, matrix in poses.items()}


def _search_in_t1w(pet: sitk.Image, uptake: nifti.Image, prefix: Path) -> PoseSearch:
    """Prepare the search for the pose of a PET most similar to the uptake expected from a T1w."""
    name = f"{prefix}winsorized.nii"
    _write(pet, name)
    moving = _coarse(nifti.load(Path(name)))
    mask = _around(uptake.data > 0, uptake.zooms)
    return PoseSearch(uptake.data, uptake.affine, mask, moving.data, moving.affine, bounded=True)


def register_pet(
    pet: Path, t1w: Path, mask: Path, prefix: Path, out: Path, *, quick: bool
) -> tuple[str, float, float, Judgement]:
    """Register a PET rigidly to the T1w of the same person.

    Registration maximizes Mattes's mutual information from two starts, the headers and matched
    centres of mass, and from a third if a search of all orientations finds a clearly better pose.
    The start with the most similar result on the coarse levels (normalized mutual information) is
    refined on the finest level. If the result is less similar to the T1w than the best pose of the
    search, registration is repeated from that pose, and the better result is kept.

    Parameters
    ----------
    pet, t1w, mask : Path
        One PET volume; T1w, with or without skull; and brain mask of the T1w.
    prefix : Path
        Folder and beginning of the names of intermediate files.
    out : Path
        Path of the transform from PET to T1w, in ITK's text format.
    quick : bool
        If True, registration uses a coarse grid, for testing only.

    Returns
    -------
    str
        Name of the start that was used.
    float, float
        Similarity before and after registration.
    Judgement
        Verdict on the result.

    Raises
    ------
    ValueError
        If tissues cannot be distinguished in the brain of the T1w.
    """
    coarse = QUICK_RIGID_COARSE if quick else RIGID_COARSE
    fixed, region, moving, field = _read_pair(pet, t1w, mask, quick=quick)
    region_image = _like(fixed, region.astype(np.uint8))
    uptake = _uptake(t1w, mask)
    search = _search_in_t1w(moving, uptake, prefix)
    pose = search.find()
    starts = _starts(fixed, moving, pose)
    before = _likeness(fixed, moving, field, region, starts[HEADER])[0]

    def improve(transform: sitk.Euler3DTransform, levels: Levels) -> float:
        """Optimize a transform in place, unless that decreases similarity; return similarity."""
        start = transform.GetParameters()
        initial = _likeness(fixed, moving, field, region, transform)[0]
        _align(fixed, moving, transform, **levels, samples=None, seed=0, mask=region_image)
        reached = _likeness(fixed, moving, field, region, transform)[0]
        if reached < initial:
            transform.SetParameters(start)
        return max(reached, initial)

    def finish(names: Iterable[str]) -> tuple[float, str]:
        """Refine the best of some starts on the finest level."""
        _, name = max((improve(starts[name], coarse), name) for name in names)
        return improve(starts[name], RIGID_FINE), name

    after, name = finish(starts)
    if SEARCH not in starts and search.score(_matrix_of(starts[name])) < pose.score + AHEAD:
        starts[SEARCH] = _start(pose.matrix, _centre_of_mass(fixed))
        after, name = max((after, name), finish([SEARCH]))
    best = starts[name]
    sitk.WriteTransform(_to_affine(best), str(out))
    behind = search.score(_matrix_of(best)) - pose.score
    own = _measure_pet(pet, t1w, mask, best, search)
    judgement = _judge(moving, field, uptake, best, prefix, behind=behind, own_measures=own)
    return name, before, after, judgement


def _brain_on_grid(t1w: Path, mask: Path, zoom: float) -> tuple[sitk.Image, Mask]:
    """Read the brain of a T1w on the common grid of a voxel size in mm, and its mask there."""
    brain = _read(mask)
    fixed = _common_grid(_read(t1w) * brain, zoom)
    inside = sitk.Resample(brain, fixed, sitk.Transform(), sitk.sitkNearestNeighbor)
    return fixed, _voxels(inside) > 0


def _read_pair(
    pet: Path, t1w: Path, mask: Path, *, quick: bool
) -> tuple[sitk.Image, Mask, sitk.Image, sitk.Image]:
    """Read the brain of a T1w on the common grid, the mask for comparison, a PET, and its field."""
    fixed, inside = _brain_on_grid(t1w, mask, QUICK_PET_GRID if quick else PET_GRID)
    whole = _read(pet)
    moving = _like(whole, winsorize(_voxels(whole)))
    field = _like(moving, field_of_view(_voxels(moving)).astype(np.float32))
    return fixed, _around(inside, _zooms(fixed)), moving, field


def judge_given_pet(
    pet: Path, t1w: Path, mask: Path, prefix: Path, out: Path, *, given: Path | None, quick: bool
) -> tuple[float, float, Judgement]:
    """Judge a rigid transform from PET to T1w of another app like one of :func:`register_pet`.

    Parameters
    ----------
    pet, t1w, mask, prefix, out
        See :func:`register_pet`.
    given : Path or None
        Path of the transform, in ITK's text format; None if the PET already lies on the T1w.
    quick : bool
        If True, images are compared on a coarse grid.

    Returns
    -------
    float, float
        Similarity according to the headers alone, and with the transform.
    Judgement
        Verdict on the result.

    Raises
    ------
    ValueError
        If the transform cannot be read or is not linear, or if tissues cannot be distinguished in
        the brain of the T1w.
    """
    affine = sitk.AffineTransform(3)
    if given is not None:
        matrix = LPS @ _matrix_of(_read_transform(given, linear=True)) @ LPS
        affine.SetMatrix(matrix[:3, :3].ravel().tolist())
        affine.SetTranslation(matrix[:3, 3].tolist())
    sitk.WriteTransform(affine, str(out))
    fixed, region, moving, field = _read_pair(pet, t1w, mask, quick=quick)
    try:
        uptake = _uptake(t1w, mask)
    except ValueError as error:
        raise ValueError(f"{t1w}: {error}") from error
    search = _search_in_t1w(moving, uptake, prefix)
    behind = search.score(_matrix_of(affine)) - search.find().score
    before = _likeness(fixed, moving, field, region, sitk.Transform())[0]
    after = _likeness(fixed, moving, field, region, affine)[0]
    own = _measure_pet(pet, t1w, mask, affine, search)
    judgement = _judge(moving, field, uptake, affine, prefix, behind=behind, own_measures=own)
    return before, after, judgement


def _read_transform(path: Path, *, linear: bool = False) -> sitk.Transform:
    """Read a transform of another app, or raise ValueError with a sentence if that fails."""
    try:
        transform = sitk.ReadTransform(str(path))
    except RuntimeError as error:
        raise ValueError(f"{path}: cannot be read as an ITK transform") from error
    if linear and path.read_bytes().count(b"\nTransform:") > 1:  # ITK reads only the first
        raise ValueError(f"{path}: contains several transforms, but one is expected")
    if transform.GetDimension() != len(LPS) - 1 or (linear and not transform.IsLinear()):
        raise ValueError(f"{path}: is not a {'rigid ' if linear else ''}transform between volumes")
    return transform


def examine_transforms(forward: Path, back: Path, brain: Path, template: Path) -> float:
    """Check transforms between T1w and template that another app has computed.

    Parameters
    ----------
    forward, back : Path
        Transforms from T1w to template, and back, in ITK's format.
    brain, template : Path
        T1w of a brain alone, 0 elsewhere, and the template's brain.

    Returns
    -------
    float
        Correlation with the linear part of the first, minus that in the best pose of a search.

    Raises
    ------
    ValueError
        If one cannot be read, or if they are not inverse to each other.
    """
    from_t1w, to_t1w = _read_transform(forward), _read_transform(back)
    image = nifti.load(template)
    inside = np.argwhere(image.data > 0)
    inside = inside[:: max(len(inside) // POINTS, 1)]
    points = (inside @ image.affine[:3, :3].T + image.affine[:3, 3]) @ LPS[:3, :3]
    moved = np.array([from_t1w.TransformPoint(point.tolist()) for point in points])
    returned = np.array([to_t1w.TransformPoint(point.tolist()) for point in moved])
    if np.median(np.linalg.norm(returned - points, axis=1)) > APART_AT_MOST:
        raise ValueError(f"{back}: is not the inverse of {forward.name}")
    fit = np.linalg.lstsq(np.column_stack([points, np.ones(len(points))]), moved, rcond=None)[0]
    linear = np.eye(4)
    linear[:3] = fit.T
    search = _search_in_template(brain, template)
    return float(search.score(LPS @ linear @ LPS) - search.find().score)


def _uptake(t1w: Path, mask: Path) -> nifti.Image:
    """Compute the uptake expected from the tissues of a T1w, on a coarse grid; 0 outside."""
    image, brain = nifti.load(t1w), nifti.load(mask).data > 0
    return _coarse(nifti.Image(expected_uptake(classify(image.data, brain)), image.affine))


def _judge(
    moving: sitk.Image,
    field: sitk.Image,
    uptake: nifti.Image,
    transform: sitk.Transform,
    prefix: Path,
    *,
    behind: float,
    own_measures: Mapping[str, float],
) -> Judgement:
    """Judge the alignment of a PET with the tissues of its T1w, on a coarse grid."""
    name = f"{prefix}uptake.nii"
    nifti.save(uptake, Path(name))
    brain = ndimage.binary_fill_holes(uptake.data > 0)
    _, moved, covered = _likeness(_read(name), moving, field, brain, transform)
    return judge_pet(
        moved, uptake.data, brain, covered, uptake.zooms, behind=behind, own_measures=own_measures
    )


def _measure_pet(
    pet: Path, t1w: Path, mask: Path, transform: sitk.Transform, search: PoseSearch
) -> dict[str, float]:
    """Measure the size of the brain in a PET, and its fine detail, at 2 mm whatever the run."""
    factor = search.size(_matrix_of(transform))
    fixed, inside = _brain_on_grid(t1w, mask, PET_GRID)
    whole = _read(pet)
    field = _like(whole, field_of_view(_voxels(whole)).astype(np.float32))
    moved, covered = (_voxels(sitk.Resample(part, fixed, transform)) for part in (whole, field))
    seen = inside & (covered > WHOLLY)
    return {
        SIZE: min(factor, 1 / factor),
        **measure_detail(moved, _voxels(fixed), seen, _zooms(fixed)),
    }


def resample(
    image: Path, reference: Path, transforms: Sequence[Path], out: Path, *, interpolation: str
) -> Path:
    """Resample an image to the grid of another through transforms, interpolating once.

    Parameters
    ----------
    image, reference : Path
        Image to resample, and image with the target grid.
    transforms : sequence of Path
        Transforms from image to reference, in the order of antsApplyTransforms: the last is applied
        first. If empty, the images are aligned according to their headers.
    out : Path
        Path of the result; it is 0 outside the image.
    interpolation : str
        ``linear``, ``nearestNeighbor``, ``bSpline`` (cubic) or ``genericLabel``, as named in
        antsApplyTransforms. With the last, the result consists of integers.

    Returns
    -------
    Path
        ``out``.
    """
    target, source = _read(reference), _read(image)
    path = sitk.CompositeTransform(3)
    for transform in reversed(transforms):  # a composite applies its last transform first
        path.AddTransform(sitk.ReadTransform(str(transform)))
    if interpolation == OF_LABELS:
        source = _like(source, np.rint(np.nan_to_num(_voxels(source))).astype(np.uint32))
    moved = sitk.Resample(source, target, path, INTERPOLATORS[interpolation])
    _write(moved, out)
    return out
