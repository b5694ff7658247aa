"""Interfaces that read, scale and compare volumes, with numpy and scipy only."""

from dataclasses import asdict, fields
from math import isfinite
from pathlib import Path

import numpy as np
from nipype.interfaces.base import (
    BaseInterfaceInputSpec,
    File,
    InputMultiObject,
    SimpleInterface,
    TraitedSpec,
    isdefined,
    traits,
)

from bids_app import nifti
from bids_app.detection.clusters import read_labels
from bids_app.errors import UnusableDataError
from bids_app.files import write_tsv
from bids_app.imaging.coverage import WHOLLY, brain_coverage, field_of_view, fill, missing_parts
from bids_app.imaging.intensity import (
    average_frames,
    clip_spikes,
    describe_scaling,
    intensity_of_one,
    raise_above_zero,
    saturation,
    scale_to_unit,
    subtract_air,
    subtract_floor,
)
from bids_app.imaging.regions import RegionalUptake, measure_uptake_by_region
from bids_app.imaging.similarity import measure, normalized_mutual_information, pseudo_normal
from bids_app.imaging.verdict import FAIL, describe_registration, judge_t1w, measure_brain, worse_of
from bids_app.imaging.volume import Grid

VOUCHED = "axis code to assume if the header defines none; empty: none is assumed"
VALID = "mask of the voxels that are finite in the file; the others were set to 0"
PSEUDO_NORMAL = "From SYNTHETIC FDG PET, mri2pet"  # in headers of images computed from both PET
SATURATED = 0.03  # share of bright voxels with the largest intensity that is reported; our choice
METHOD = "SimpleITK: rigid, affine; mutual information. dipy: SyN; cross-correlation"


class _ReadT1wInputSpec(BaseInterfaceInputSpec):
    t1w = File(mandatory=True, desc="a T1w as acquired")
    orientation = traits.Str("", usedefault=True, desc=VOUCHED)


class _ReadT1wOutputSpec(TraitedSpec):
    t1w = File(exists=True, desc="the same volume: three axes, float32, sform as qform")
    valid = File(exists=True, desc=VALID)
    sidecar = traits.Dict(desc="notes on how it was read, if any")


def _without_gaps(image, name):
    """Fill gaps with 0; return the image, with a note, and the mask of valid voxels."""
    data, valid = fill(image.data)
    notes = image.notes
    if not valid.all():
        notes += (
            f"{name}: {int((~valid).sum())} of its {valid.size} voxels are NaN or infinite; they "
            "were treated as outside the field of view.",
        )
    return nifti.Image(data, image.affine, notes), valid


def _without_spikes(image, name):
    """Clip broken voxels; return the image, with a note."""
    data, spikes = clip_spikes(image.data)
    notes = image.notes
    if spikes:
        notes += (
            f"{name}: {spikes} of its {data.size} voxels are far brighter than any tissue and "
            "were clipped.",
        )
    return nifti.Image(data, image.affine, notes)


def _without_floor(image, name):
    """Subtract a constant that was added to all intensities; return the image, with a note."""
    data, floor = subtract_floor(image.data)
    notes = image.notes
    if floor:
        notes += (f"{name}: no intensity is below {floor:g}, which was subtracted from all.",)
    return nifti.Image(data, image.affine, notes)


def _without_air(image, name):
    """Subtract a constant that was added to a PET, by the air; return the image, with notes."""
    data, level = subtract_air(image.data)
    notes, equal = image.notes, saturation(image.data)
    if equal > SATURATED:
        notes += (
            f"{name}: {100 * equal:.0f} % of its bright voxels have the same, largest intensity, "
            "as if brighter ones had been cut off; if they lie in the brain, differences there "
            "are lost: export the image again.",
        )
    if level:
        notes += (
            f"{name}: the air around the head has an intensity of {level:g}, as if a constant had "
            "been added to all; it was subtracted.",
        )
    return nifti.Image(data, image.affine, notes)


def _save_scan(image, name, path, valid_path):
    """Save a scan without gaps and spikes, and where it has data; return its reading notes."""
    image, valid = _without_gaps(image, name)
    image = _without_spikes(image, name)
    nifti.save(image, path)
    nifti.save(nifti.Image(valid, image.affine), valid_path)
    return {"ReadingNotes": list(image.notes)} if image.notes else {}


class ReadT1w(SimpleInterface):
    """Read and check a T1w, and save it in a form that ITK can read."""

    input_spec = _ReadT1wInputSpec
    output_spec = _ReadT1wOutputSpec

    def _run_interface(self, runtime):
        image = nifti.load_scan(self.inputs.t1w, orientation=self.inputs.orientation, gaps=True)
        if image.data.ndim != 3:
            raise UnusableDataError(
                f"{self.inputs.t1w}: {image.data.shape[3]} volumes, where a T1w has one; "
                "average or choose one of them"
            )
        path, valid = Path(runtime.cwd) / "t1w.nii", Path(runtime.cwd) / "valid.nii.gz"
        name = Path(self.inputs.t1w).name
        notes = _save_scan(_without_floor(image, name), name, path, valid)
        self._results.update(t1w=str(path), valid=str(valid), sidecar=notes)
        return runtime


class _ReadPETInputSpec(BaseInterfaceInputSpec):
    pet = File(mandatory=True, desc="a PET as acquired: one volume, or frames")
    durations = traits.List(traits.Float, mandatory=True, desc="durations in s; may be empty")
    starts = traits.List(
        traits.Float, [], usedefault=True, desc="their starts in s after injection; may be empty"
    )
    frames = traits.List(traits.Int, mandatory=True, desc="frames to use, from 0; if empty, all")
    orientation = traits.Str("", usedefault=True, desc=VOUCHED)


class _ReadPETOutputSpec(TraitedSpec):
    pet = File(exists=True, desc="one volume, in the unit of the image")
    valid = File(exists=True, desc=VALID)
    sidecar = traits.Dict(
        desc="frames that were averaged, from 0, their durations in s, when the first begins and "
        "the last ends, in s after injection, and notes on reading"
    )


class ReadPET(SimpleInterface):
    """Read and check a PET, and average its frames, weighted by duration."""

    input_spec = _ReadPETInputSpec
    output_spec = _ReadPETOutputSpec

    def _run_interface(self, runtime):
        image = nifti.load_scan(self.inputs.pet, orientation=self.inputs.orientation, gaps=True)
        data, used, durations = self._one_volume(image.data)
        name = Path(self.inputs.pet).name
        average = _without_air(nifti.Image(data, image.affine, image.notes), name)
        path, valid = Path(runtime.cwd) / "pet.nii.gz", Path(runtime.cwd) / "valid.nii.gz"
        notes = _save_scan(average, name, path, valid)
        frames = {"FramesUsed": used, "FrameDurationsUsed": durations}
        frames |= self._window(used if image.data.ndim > 3 else [])
        self._results.update(pet=str(path), valid=str(valid), sidecar=frames | notes)
        return runtime

    def _window(self, used):
        starts, durations = np.array(self.inputs.starts), np.array(self.inputs.durations)
        if not starts.size or starts.size != durations.size:
            return {}
        used = used or list(range(starts.size))  # one volume may be the sum of several frames
        window = [float(starts[used].min()), float((starts + durations)[used].max())]
        return {"WindowAfterInjection": window}

    def _one_volume(self, data):
        path, durations = self.inputs.pet, np.array(self.inputs.durations, float)
        if data.ndim == 3:
            return data, [0], durations.tolist() if durations.size == 1 else []
        count = data.shape[3]
        if durations.size != count:
            known = f"{durations.size} FrameDuration values" if durations.size else "none"
            raise UnusableDataError(
                f"{path}: {count} frames but {known} in its sidecar; correct FrameDuration there"
            )
        used = list(self.inputs.frames) if self.inputs.frames else list(range(count))
        beyond = [frame for frame in used if not 0 <= frame < count]
        if beyond:
            raise UnusableDataError(
                f"{path}: has frames 0 to {count - 1}, not {beyond}; change --pet-frames"
            )
        if (durations[used] <= 0).any():
            raise UnusableDataError(f"{path}: a FrameDuration is not above 0; correct its sidecar")
        empty = [frame for frame in used if not np.isfinite(data[..., frame]).any()]
        if empty:
            raise UnusableDataError(
                f"{path}: all voxels of frames {empty} are NaN or infinite; leave them out with "
                "--pet-frames, or export the image again"
            )
        return average_frames(data, durations, used), used, durations[used].tolist()


class _ApplyMaskInputSpec(BaseInterfaceInputSpec):
    image = File(exists=True, mandatory=True, desc="an image")
    mask = File(exists=True, mandatory=True, desc="a mask on the same grid")


class _ApplyMaskOutputSpec(TraitedSpec):
    image = File(exists=True, desc="the image, 0 outside the mask")


class ApplyMask(SimpleInterface):
    """Set an image to 0 outside a mask."""

    input_spec = _ApplyMaskInputSpec
    output_spec = _ApplyMaskOutputSpec

    def _run_interface(self, runtime):
        image, mask = nifti.load(self.inputs.image), nifti.load(self.inputs.mask)
        path = Path(runtime.cwd) / "masked.nii"
        nifti.save(nifti.Image(np.where(mask.data > 0, image.data, 0), image.affine), path)
        self._results["image"] = str(path)
        return runtime


class _RaiseT1wInputSpec(BaseInterfaceInputSpec):
    t1w = File(exists=True, mandatory=True, desc="T1w preprocessed by another app")
    mask = File(exists=True, mandatory=True, desc="brain mask on the same grid")


class _RaiseT1wOutputSpec(TraitedSpec):
    t1w = File(exists=True, desc="T1w without negative intensities")


class RaiseT1w(SimpleInterface):
    """Shift a T1w upwards if part of its brain is negative, as before N4."""

    input_spec = _RaiseT1wInputSpec
    output_spec = _RaiseT1wOutputSpec

    def _run_interface(self, runtime):
        t1w, mask = nifti.load(self.inputs.t1w), nifti.load(self.inputs.mask)
        raised, path = raise_above_zero(t1w.data, mask.data > 0), self.inputs.t1w
        if raised is not t1w.data:
            path = str(Path(runtime.cwd) / "raised.nii")
            nifti.save(nifti.Image(raised, t1w.affine), path)
        self._results["t1w"] = path
        return runtime


class _FindFieldOfViewInputSpec(BaseInterfaceInputSpec):
    pet = File(exists=True, mandatory=True, desc="one PET volume")
    valid = File(exists=True, desc="voxels with data, on the same grid; default: all")


class _FindFieldOfViewOutputSpec(TraitedSpec):
    field_of_view = File(exists=True, desc="1 where the PET has data, 0 elsewhere")


class FindFieldOfView(SimpleInterface):
    """Find the field of view of a PET, without padding and gaps."""

    input_spec = _FindFieldOfViewInputSpec
    output_spec = _FindFieldOfViewOutputSpec

    def _run_interface(self, runtime):
        pet = nifti.load(self.inputs.pet)
        inside = field_of_view(pet.data)
        if isdefined(self.inputs.valid):
            inside &= nifti.load(self.inputs.valid).data > 0
        path = Path(runtime.cwd) / "field_of_view.nii.gz"
        nifti.save(nifti.Image(inside, pet.affine), path)
        self._results["field_of_view"] = str(path)
        return runtime


class _MeasureCoverageInputSpec(BaseInterfaceInputSpec):
    image = File(exists=True, mandatory=True, desc="a PET, resampled")
    field_of_view = File(exists=True, mandatory=True, desc="its field of view, resampled with it")
    mask = File(exists=True, mandatory=True, desc="the brain on the same grid")


class _MeasureCoverageOutputSpec(TraitedSpec):
    image = File(exists=True, desc="the PET, 0 in voxels that it does not cover")
    coverage = File(exists=True, desc="1 in voxels that it covers")
    covered_brain = File(exists=True, desc="the part of the brain that it covers")
    sidecar = traits.Dict(desc="share of the brain that is covered, and what is missing")


class MeasureCoverage(SimpleInterface):
    """Find the voxels that a resampled PET covers, and the covered part of the brain.

    A voxel is covered if all voxels that it was interpolated from hold data.
    """

    input_spec = _MeasureCoverageInputSpec
    output_spec = _MeasureCoverageOutputSpec

    def _run_interface(self, runtime):
        pet, cwd = nifti.load(self.inputs.image), Path(runtime.cwd)
        covered = nifti.load(self.inputs.field_of_view).data > WHOLLY
        brain = nifti.load(self.inputs.mask).data > 0
        images = {
            "image": np.where(covered, pet.data, 0),
            "coverage": covered,
            "covered_brain": brain & covered,
        }
        for name, data in images.items():
            nifti.save(nifti.Image(data, pet.affine), cwd / f"{name}.nii.gz")
            self._results[name] = str(cwd / f"{name}.nii.gz")
        sidecar = {"BrainCoverage": round(brain_coverage(brain, covered), 4)}
        missing = missing_parts(brain, covered, pet.affine)
        if missing:
            sidecar["BrainNotCovered"] = missing
        self._results["sidecar"] = sidecar
        return runtime


class _ScaleIntensityInputSpec(BaseInterfaceInputSpec):
    image = File(exists=True, mandatory=True, desc="an image, any unit")
    mask = File(exists=True, mandatory=True, desc="the brain on the same grid")
    percentile = traits.Float(mandatory=True, desc="of intensities in the brain; scaled to 1")
    times_mean = traits.Float(mandatory=True, desc="if not 0, this times the mean is scaled to 1")


class _ScaleIntensityOutputSpec(TraitedSpec):
    image = File(exists=True, desc="the image in [0, 1], 0 outside the brain")
    sidecar = traits.Dict(desc="the intensity scaled to 1, in the unit of the image")


class ScaleIntensity(SimpleInterface):
    """Scale the brain of an image to [0, 1]."""

    input_spec = _ScaleIntensityInputSpec
    output_spec = _ScaleIntensityOutputSpec

    def _run_interface(self, runtime):
        image, mask = nifti.load(self.inputs.image), nifti.load(self.inputs.mask)
        brain = mask.data > 0
        options = {"percentile": self.inputs.percentile, "times_mean": self.inputs.times_mean}
        try:
            scaled = scale_to_unit(image.data, brain, **options)
            value = intensity_of_one(image.data, brain, **options)
        except ValueError as error:
            raise UnusableDataError(
                f"{self.inputs.image}: {error} after registration; look at the registration, "
                "and at the input"
            ) from error
        path = Path(runtime.cwd) / "scaled.nii.gz"
        nifti.save(nifti.Image(scaled, image.affine), path)
        self._results["image"] = str(path)
        scaling = describe_scaling(**options)
        self._results["sidecar"] = {"IntensityScaling": {**scaling, "Value": float(f"{value:.6g}")}}
        return runtime


class _JudgeRegistrationInputSpec(BaseInterfaceInputSpec):
    fixed = File(exists=True, mandatory=True, desc="the target")
    fixed_mask = File(exists=True, mandatory=True, desc="where images are compared")
    before = File(exists=True, mandatory=True, desc="the moving image, aligned by headers")
    after = File(exists=True, mandatory=True, desc="the moving image after registration")
    mask_after = File(exists=True, mandatory=True, desc="its brain mask after registration")
    t1w = File(exists=True, mandatory=True, desc="the T1w on its own grid, not masked")
    brain_mask = File(exists=True, mandatory=True, desc="the brain on that grid")
    taken_from = traits.Str(desc="the app that registered it, if not this one")
    start = traits.Str(desc="initial pose of the registration")
    behind = traits.Float(desc="correlation minus that in the best pose of a search")


class _JudgeRegistrationOutputSpec(TraitedSpec):
    sidecar = traits.Dict(desc="similarity before and after, Dice of the masks, verdict")


class JudgeRegistration(SimpleInterface):
    """Measure the similarity of target and image before and after registration, and judge it.

    All images lie on one grid, except for the original T1w and its brain mask.
    """

    input_spec = _JudgeRegistrationInputSpec
    output_spec = _JudgeRegistrationOutputSpec

    def _run_interface(self, runtime):
        target, mask = nifti.load(self.inputs.fixed), nifti.load(self.inputs.fixed_mask)
        fixed, brain = target.data, mask.data > 0
        t1w = nifti.load(self.inputs.t1w)
        before, after = (nifti.load(path).data for path in (self.inputs.before, self.inputs.after))
        judgement = judge_t1w(
            after,
            fixed,
            nifti.load(self.inputs.mask_after).data > 0,
            brain,
            target.affine,
            own_measures=measure_brain(
                t1w.data, nifti.load(self.inputs.brain_mask).data > 0, t1w.affine
            ),
            behind=self.inputs.behind if isdefined(self.inputs.behind) else None,
        )
        app, method = self.inputs.taken_from, {"Method": METHOD}
        if isdefined(app):
            method = {"Method": f"taken from {app}", "TakenFrom": app}
        if isdefined(self.inputs.start):
            method["Start"] = self.inputs.start
        similarities = (
            normalized_mutual_information(fixed, image, brain) for image in (before, after)
        )
        self._results["sidecar"] = describe_registration(method, *similarities, judgement)
        return runtime


class _TaintVerdictInputSpec(BaseInterfaceInputSpec):
    sidecar = traits.Dict(mandatory=True, desc="measures of registering a PET to its T1w")
    t1w_measured = InputMultiObject(
        traits.Dict(), mandatory=True, desc="measures of the T1w, such as of its registration"
    )


class _TaintVerdictOutputSpec(TraitedSpec):
    sidecar = traits.Dict(desc="that of the PET, with a verdict no better than its T1w's")


class TaintVerdict(SimpleInterface):
    """Limit the verdict on a PET in template space to that on its T1w."""

    input_spec = _TaintVerdictInputSpec
    output_spec = _TaintVerdictOutputSpec

    def _run_interface(self, runtime):
        quality = dict(self.inputs.sidecar["Registration"])
        t1w = _registration_of(self.inputs.t1w_measured)
        quality["Verdict"] = worse_of(quality["Verdict"], t1w["Verdict"])
        quality["VerdictReasons"] = [
            *quality["VerdictReasons"],
            *(f"its T1w: {reason}" for reason in t1w["VerdictReasons"]),
        ]
        self._results["sidecar"] = {"Registration": quality}
        return runtime


def _registration_of(measured):
    return next(part["Registration"] for part in measured if "Registration" in part)


class _RefuseFailedInputSpec(BaseInterfaceInputSpec):
    image = File(exists=True, mandatory=True, desc="an image that was registered")
    measured = InputMultiObject(traits.Dict(), mandatory=True, desc="with the verdict on it")
    source = traits.Str(mandatory=True, desc="its original file, for messages")


class _RefuseFailedOutputSpec(TraitedSpec):
    image = File(exists=True, desc="the same image")


class RefuseFailed(SimpleInterface):
    """Pass an image on unless its registration failed, so that nothing is computed from it."""

    input_spec = _RefuseFailedInputSpec
    output_spec = _RefuseFailedOutputSpec

    def _run_interface(self, runtime):
        found = _registration_of(self.inputs.measured)
        if found["Verdict"] == FAIL:
            reasons = "; ".join(found["VerdictReasons"])
            raise UnusableDataError(
                f"{self.inputs.source}: its registration failed: {reasons}. Its results are used "
                "nowhere; look at the report, and at the image and its header"
            )
        self._results["image"] = self.inputs.image
        return runtime


class _MeasureRegionsInputSpec(BaseInterfaceInputSpec):
    synthetic = File(exists=True, mandatory=True, desc="synthetic PET in [0, 1]")
    real = File(exists=True, desc="real PET in [0, 1] on the same grid, if there is one")
    mask = File(exists=True, mandatory=True, desc="the brain on the same grid")
    coverage = File(exists=True, desc="voxels that the real PET covers; default: all")
    atlas = File(exists=True, mandatory=True, desc="label image in the same space")
    names = File(exists=True, mandatory=True, desc="table of its labels")


class _MeasureRegionsOutputSpec(TraitedSpec):
    table = File(exists=True, desc="uptake by region, tab-separated")


class MeasureRegions(SimpleInterface):
    """Measure the regional uptake of the synthetic and the real PET of a visit."""

    input_spec = _MeasureRegionsInputSpec
    output_spec = _MeasureRegionsOutputSpec

    def _run_interface(self, runtime):
        mask = nifti.load(self.inputs.mask)
        brain, grid = mask.data > 0, Grid(mask.data.shape, mask.affine)
        regions = nifti.resample_atlas(nifti.load(self.inputs.atlas), grid)
        names = read_labels(Path(self.inputs.names))
        options = {"names": names, "voxel_volume": float(np.prod(mask.zooms))}
        rows = []
        if isdefined(self.inputs.real):
            real, covered = nifti.load(self.inputs.real).data, _covered(self.inputs, brain)
            rows += measure_uptake_by_region("real", real, covered, regions, **options)
        synthetic = nifti.load(self.inputs.synthetic).data
        rows += measure_uptake_by_region("synthetic", synthetic, brain, regions, **options)
        table = Path(runtime.cwd) / "regions.tsv"
        columns = [field.name for field in fields(RegionalUptake)]
        write_tsv(table, columns, [_rounded(row) for row in rows])
        self._results["table"] = str(table)
        return runtime


def _covered(inputs, brain):
    """Return the part of the brain that the real PET covers; all of it if coverage is not given."""
    return brain & (nifti.load(inputs.coverage).data > 0) if isdefined(inputs.coverage) else brain


def _rounded(row):
    return {
        name: round(value, 4) if isinstance(value, float) else value
        for name, value in vars(row).items()
    }


class _PairInputSpec(BaseInterfaceInputSpec):
    synthetic = File(exists=True, mandatory=True, desc="synthetic PET")
    real = File(exists=True, mandatory=True, desc="real PET on the same grid")
    mask = File(exists=True, mandatory=True, desc="the brain on the same grid")
    coverage = File(exists=True, desc="voxels that the real PET covers; default: all")


class _SubtractPETInputSpec(_PairInputSpec):
    trusted = File(desc="exists only if the registration of the real PET did not fail")


class _SubtractPETOutputSpec(TraitedSpec):
    scaled = File(exists=True, desc="synthetic PET in the unit of the real one")
    difference = File(exists=True, desc="real minus scaled, in percent of the scaled brain's mean")
    sidecar = traits.Dict(desc="the factor by which the synthetic PET was scaled")


class SubtractPET(SimpleInterface):
    """Scale a synthetic PET to the intensities of the real one, and subtract it."""

    input_spec = _SubtractPETInputSpec
    output_spec = _SubtractPETOutputSpec

    def _run_interface(self, runtime):
        real, synthetic = nifti.load(self.inputs.real), nifti.load(self.inputs.synthetic)
        brain = _covered(self.inputs, nifti.load(self.inputs.mask).data > 0)
        try:
            scaled, difference, factor = pseudo_normal(real.data, synthetic.data, brain)
        except ValueError as error:
            raise UnusableDataError(f"{self.inputs.real}: {error}; look at the report") from error
        for name, data in (("scaled", scaled), ("difference", difference)):
            path = Path(runtime.cwd) / f"{name}.nii.gz"
            nifti.save(nifti.Image(data, real.affine), path, description=PSEUDO_NORMAL)
            self._results[name] = str(path)
        self._results["sidecar"] = {"ScaledBy": factor}
        return runtime


class _ComparePETOutputSpec(TraitedSpec):
    sidecar = traits.Dict(desc="SSIM and PSNR over the whole volume and in the brain")


class ComparePET(SimpleInterface):
    """Measure the similarity of a synthetic and a real PET, where the real one covers the brain.

    Intensities of both are in [0, 1].
    """

    input_spec = _PairInputSpec
    output_spec = _ComparePETOutputSpec

    def _run_interface(self, runtime):
        names = {"ssim": "SSIM", "psnr": "PSNR", "ssim_brain": "SSIMBrain"}
        names["psnr_brain"] = "PSNRBrain"
        covered = None
        if isdefined(self.inputs.coverage):
            covered = nifti.load(self.inputs.coverage).data > 0
        measures = measure(
            nifti.load(self.inputs.synthetic).data,
            nifti.load(self.inputs.real).data,
            nifti.load(self.inputs.mask).data > 0,
            covered,
        )
        self._results["sidecar"] = {
            "Measures": {
                names[key]: round(value, 4) if isfinite(value) else None  # JSON has no infinity
                for key, value in asdict(measures).items()
            }
        }
        return runtime
