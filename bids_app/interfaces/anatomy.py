"""Interfaces for brain extraction (torch) and registration (ITK).

They run in separate processes: see CONTRIBUTING.md, "Processes".
"""

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
from bids_app.errors import UnusableDataError
from bids_app.imaging.coverage import LARGEST_SHARE_OF_PET, enclosed, gaps_in
from bids_app.imaging.verdict import describe_registration

HALF = 0.5  # share of a voxel that is brain


class _ExtractBrainInputSpec(BaseInterfaceInputSpec):
    t1w = File(exists=True, mandatory=True, desc="a T1w, three axes")
    valid = File(exists=True, desc="voxels that are not filled gaps; default: all")
    source = traits.Str(mandatory=True, desc="its original file, for messages")
    mode = traits.Enum("auto", "force", "skip", mandatory=True, desc="value of --skull-strip")
    threads = traits.Int(mandatory=True, nohash=True, desc="threads for torch")


class _ExtractBrainOutputSpec(TraitedSpec):
    mask = File(exists=True, desc="the brain, on the grid of the T1w")
    sidecar = traits.Dict(desc="how the brain was found")


class ExtractBrain(SimpleInterface):
    """Extract the brain with deepbet, or find it in a T1w that is skull-stripped already."""

    input_spec = _ExtractBrainInputSpec
    output_spec = _ExtractBrainOutputSpec
    uses_torch = True
    engine = "bids_app.anatomy.brain"

    def _run_interface(self, runtime):
        from bids_app.anatomy import brain

        image, mode, threads = nifti.load(self.inputs.t1w), self.inputs.mode, self.inputs.threads
        stripped = mode == "skip"
        try:
            if mode == "auto":
                mask, stripped = brain.find_brain(image, threads)
            else:
                mask = brain.foreground(image) if stripped else brain.extract(image, threads)
        except ValueError as error:
            raise UnusableDataError(
                f"{self.inputs.source}: {error}; look at the image, and at its orientation"
            ) from error
        if isdefined(self.inputs.valid):
            _refuse_gaps(self.inputs.source, self.inputs.valid, mask, image.zooms)
        path = Path(runtime.cwd) / "mask.nii.gz"
        nifti.save(nifti.Image(mask, image.affine), path)
        method = "the input was skull-stripped already" if stripped else "deepbet"
        self._results["mask"] = str(path)
        self._results["sidecar"] = {"SkullStripped": stripped, "BrainExtraction": method}
        return runtime


def _refuse_gaps(source, valid, brain, zooms):
    gaps = nifti.load(valid).data == 0
    if gaps.any() and (count := gaps_in(brain, gaps, zooms)):
        raise UnusableDataError(
            f"{source}: {count} voxels are NaN or infinite in the brain; export or convert the "
            "image again"
        )


class _TakeBrainInputSpec(BaseInterfaceInputSpec):
    t1w = File(exists=True, mandatory=True, desc="a T1w preprocessed by another app")
    valid = File(exists=True, mandatory=True, desc="voxels that are not filled gaps")
    source = traits.Str(mandatory=True, desc="its original file, for messages")
    brain_mask = File(exists=True, mandatory=True, desc="brain mask of that app")
    skull_stripped = traits.Bool(mandatory=True, desc="whether the T1w shows the brain alone")
    method = traits.Str(mandatory=True, desc="source of the mask, for the sidecar")


class TakeBrain(SimpleInterface):
    """Use the brain mask of another app instead of extracting the brain."""

    input_spec = _TakeBrainInputSpec
    output_spec = _ExtractBrainOutputSpec

    def _run_interface(self, runtime):
        t1w, mask = nifti.load(self.inputs.t1w), nifti.load(self.inputs.brain_mask)
        brain = np.nan_to_num(mask.data) > HALF
        if not brain.any():
            raise UnusableDataError(
                f"{self.inputs.brain_mask}: marks no voxel; look at it, or leave its dataset out "
                "of --derivatives"
            )
        _refuse_gaps(self.inputs.source, self.inputs.valid, brain, t1w.zooms)
        path = Path(runtime.cwd) / "mask.nii.gz"
        nifti.save(nifti.Image(brain, t1w.affine), path)
        self._results["mask"] = str(path)
        self._results["sidecar"] = {
            "SkullStripped": self.inputs.skull_stripped,
            "BrainExtraction": self.inputs.method,
        }
        return runtime


ENGINE = "bids_app.anatomy.registration"  # module that workers import in advance


class _CorrectBiasInputSpec(BaseInterfaceInputSpec):
    t1w = File(exists=True, mandatory=True, desc="a T1w")
    mask = File(exists=True, mandatory=True, desc="its brain")
    grid = traits.Float(mandatory=True, desc="voxel size for the field, in mm")


class _CorrectBiasOutputSpec(TraitedSpec):
    t1w = File(exists=True, desc="the T1w without its bias field")


class CorrectBias(SimpleInterface):
    """Remove the bias field of a T1w with N4."""

    input_spec = _CorrectBiasInputSpec
    output_spec = _CorrectBiasOutputSpec
    engine = ENGINE

    def _run_interface(self, runtime):
        from bids_app.anatomy.registration import correct_bias

        out = Path(runtime.cwd) / "t1w.nii.gz"
        correct_bias(Path(self.inputs.t1w), Path(self.inputs.mask), out, grid=self.inputs.grid)
        self._results["t1w"] = str(out)
        return runtime


class _RegisterToTemplateInputSpec(BaseInterfaceInputSpec):
    brain = File(exists=True, mandatory=True, desc="skull-stripped T1w")
    template = File(exists=True, mandatory=True, desc="the template's brain")
    quick = traits.Bool(mandatory=True, desc="coarse levels only")
    seed = traits.Int(mandatory=True, desc="random seed for sampling voxels")


class _RegisterToTemplateOutputSpec(TraitedSpec):
    t1w_to_template = File(exists=True, desc="composite transform, .h5")
    template_to_t1w = File(exists=True, desc="its inverse, .h5")
    start = traits.Str(desc="initial pose of the registration, unless another app registered")
    behind = traits.Float(desc="correlation minus that in the best pose of a search")


class RegisterToTemplate(SimpleInterface):
    """Register a brain to a template by rigid, affine and SyN registration."""

    input_spec = _RegisterToTemplateInputSpec
    output_spec = _RegisterToTemplateOutputSpec
    engine = ENGINE

    def _run_interface(self, runtime):
        from bids_app.anatomy.registration import register_to_template

        forward, back, start, behind = register_to_template(
            Path(self.inputs.brain),
            Path(self.inputs.template),
            Path(runtime.cwd) / "t1w_to_template_",
            quick=self.inputs.quick,
            seed=self.inputs.seed,
        )
        self._results.update(t1w_to_template=str(forward), template_to_t1w=str(back))
        self._results.update(start=start, behind=float(behind))
        return runtime


class _TakeTransformsInputSpec(BaseInterfaceInputSpec):
    brain = File(exists=True, mandatory=True, desc="skull-stripped T1w")
    template = File(exists=True, mandatory=True, desc="the template's brain")
    forward = File(exists=True, desc="composite transform, T1w to template; default: identity")
    back = File(exists=True, desc="its inverse")


class TakeTransforms(SimpleInterface):
    """Use the transforms of another app, and compute the measures for a verdict."""

    input_spec = _TakeTransformsInputSpec
    output_spec = _RegisterToTemplateOutputSpec
    engine = ENGINE

    def _run_interface(self, runtime):
        from bids_app.anatomy.registration import examine_transforms, write_identity

        if isdefined(self.inputs.forward):
            paths = Path(self.inputs.forward), Path(self.inputs.back)
        else:
            cwd = Path(runtime.cwd)
            paths = cwd / "t1w_to_template.h5", cwd / "template_to_t1w.h5"
            for path in paths:
                write_identity(path)
        try:
            behind = examine_transforms(*paths, Path(self.inputs.brain), Path(self.inputs.template))
        except ValueError as error:
            raise UnusableDataError(
                f"{error}; run the app that made it again, or leave its dataset out of "
                "--derivatives"
            ) from error
        self._results.update(t1w_to_template=str(paths[0]), template_to_t1w=str(paths[1]))
        self._results["behind"] = float(behind)
        return runtime


class _RegisterPETInputSpec(BaseInterfaceInputSpec):
    pet = File(exists=True, mandatory=True, desc="one PET volume")
    t1w = File(exists=True, mandatory=True, desc="T1w of the same person")
    mask = File(exists=True, mandatory=True, desc="the brain on the grid of the T1w")
    quick = traits.Bool(mandatory=True, desc="use a coarse grid")


class _RegisterPETOutputSpec(TraitedSpec):
    pet_to_t1w = File(exists=True, desc="rigid transform, ITK's text format")
    sidecar = traits.Dict(desc="the best start, similarity before and after, verdict")


class RegisterPET(SimpleInterface):
    """Register a PET rigidly to the T1w of the same person."""

    input_spec = _RegisterPETInputSpec
    output_spec = _RegisterPETOutputSpec
    engine = ENGINE

    def _run_interface(self, runtime):
        from bids_app.anatomy.registration import register_pet

        cwd = Path(runtime.cwd)
        pet_to_t1w = cwd / "pet_to_t1w.txt"
        try:
            start, before, after, judgement = register_pet(
                Path(self.inputs.pet),
                Path(self.inputs.t1w),
                Path(self.inputs.mask),
                cwd / "rigid_",
                pet_to_t1w,
                quick=self.inputs.quick,
            )
        except ValueError as error:
            raise UnusableDataError(f"{self.inputs.t1w}: {error}; look at the T1w") from error
        self._results["pet_to_t1w"] = str(pet_to_t1w)
        method = {"Method": "SimpleITK: rigid; mutual information", "Start": start}
        self._results["sidecar"] = describe_registration(method, before, after, judgement)
        return runtime


class _TakePETInputSpec(_RegisterPETInputSpec):
    transform = File(exists=True, desc="rigid, PET to T1w; default: the identity")
    taken_from = traits.Str(mandatory=True, desc="the app that made it, for the sidecar")


class TakePET(SimpleInterface):
    """Use the rigid transform from PET to T1w of another app, and judge it like our own."""

    input_spec = _TakePETInputSpec
    output_spec = _RegisterPETOutputSpec
    engine = ENGINE

    def _run_interface(self, runtime):
        from bids_app.anatomy.registration import judge_given_pet

        cwd, transform = Path(runtime.cwd), self.inputs.transform
        images = Path(self.inputs.pet), Path(self.inputs.t1w), Path(self.inputs.mask)
        try:
            before, after, judgement = judge_given_pet(
                *images,
                cwd / "rigid_",
                cwd / "pet_to_t1w.txt",
                given=Path(transform) if isdefined(transform) else None,
                quick=self.inputs.quick,
            )
        except ValueError as error:
            raise UnusableDataError(
                f"{error}; run {self.inputs.taken_from} again, or leave its dataset out of "
                "--derivatives"
            ) from error
        self._results["pet_to_t1w"] = str(cwd / "pet_to_t1w.txt")
        app = self.inputs.taken_from
        method = {"Method": f"taken from {app}", "TakenFrom": app}
        self._results["sidecar"] = describe_registration(method, before, after, judgement)
        return runtime


class _ResampleInputSpec(BaseInterfaceInputSpec):
    image = File(exists=True, mandatory=True, desc="image to resample")
    reference = File(exists=True, mandatory=True, desc="image on the target grid")
    transforms = InputMultiObject(
        File(exists=True),
        desc="in the order of antsApplyTransforms: the last is applied first; default: identity",
    )
    interpolation = traits.Str(mandatory=True, desc="its name in antsApplyTransforms")
    description = traits.Str("", usedefault=True, desc="text for the header of the result")


class _ResampleOutputSpec(TraitedSpec):
    image = File(exists=True, desc="the image on its new grid")


class Resample(SimpleInterface):
    """Resample an image to another grid through transforms, interpolating once."""

    input_spec = _ResampleInputSpec
    output_spec = _ResampleOutputSpec
    engine = ENGINE

    def _run_interface(self, runtime):
        from bids_app.anatomy.registration import resample

        transforms = self.inputs.transforms if isdefined(self.inputs.transforms) else []
        out = Path(runtime.cwd) / "resampled.nii.gz"
        resample(
            Path(self.inputs.image),
            Path(self.inputs.reference),
            [Path(path) for path in transforms],
            out,
            interpolation=self.inputs.interpolation,
        )
        if self.inputs.description:
            nifti.save(nifti.load(out), out, description=self.inputs.description)
        self._results["image"] = str(out)
        return runtime


class _ResampleLabelsInputSpec(_ResampleInputSpec):
    orientation = traits.Str(
        "", usedefault=True, desc="axis code to assume if the header defines none, or empty"
    )


class ResampleLabels(Resample):
    """Resample a mask or label image made by others to another grid.

    The image is first rewritten with equal sform and qform, because ITK chooses between them by
    rules of its own.
    """

    input_spec = _ResampleLabelsInputSpec

    def _run_interface(self, runtime):
        image = nifti.load(self.inputs.image, orientation=self.inputs.orientation)
        labels = np.rint(np.nan_to_num(image.data)).astype(np.int32)
        path = Path(runtime.cwd) / "labels.nii.gz"
        nifti.save(nifti.Image(labels, image.affine), path)
        self.inputs.image = str(path)
        return super()._run_interface(runtime)


class _RefuseGapsInputSpec(BaseInterfaceInputSpec):
    valid = File(exists=True, mandatory=True, desc="voxels of a PET with data, on its own grid")
    source = traits.Str(mandatory=True, desc="its original file, for messages")
    pet_to_t1w = File(exists=True, mandatory=True, desc="rigid transform")
    mask = File(exists=True, mandatory=True, desc="the brain on the grid of the T1w")


class _RefuseGapsOutputSpec(TraitedSpec):
    sidecar = traits.Dict(desc="empty: results that are saved with it wait for this node")


class RefuseGaps(SimpleInterface):
    """Refuse a PET with gaps inside the brain.

    Only gaps enclosed by valid voxels count, because others may be outside the field of view.
    """

    input_spec = _RefuseGapsInputSpec
    output_spec = _RefuseGapsOutputSpec
    engine = ENGINE

    def _run_interface(self, runtime):
        self._results["sidecar"] = {}
        valid = nifti.load(self.inputs.valid)
        gaps = enclosed(valid.data > 0)
        if not gaps.any():
            return runtime
        from bids_app.anatomy.registration import resample

        cwd, mask = Path(runtime.cwd), Path(self.inputs.mask)
        nifti.save(nifti.Image(gaps, valid.affine), cwd / "gaps.nii.gz")
        moved = resample(
            cwd / "gaps.nii.gz",
            mask,
            [Path(self.inputs.pet_to_t1w)],
            cwd / "gaps_in_t1w.nii.gz",
            interpolation="nearestNeighbor",
        )
        brain = nifti.load(mask).data > 0
        count = int((brain & (nifti.load(moved).data > 0)).sum())
        if count > LARGEST_SHARE_OF_PET * brain.sum():
            raise UnusableDataError(
                f"{self.inputs.source}: is NaN or infinite inside the brain ({count} voxels of the "
                "T1w); export or convert the image again"
            )
        return runtime
