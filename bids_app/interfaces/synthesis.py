"""Interfaces that predict a PET and its uncertainty, and measure the novelty of a T1w.

Prediction uses torch: see CONTRIBUTING.md, "Processes".
"""

from pathlib import Path

import numpy as np
from nipype.interfaces.base import (
    BaseInterfaceInputSpec,
    Directory,
    File,
    SimpleInterface,
    TraitedSpec,
    traits,
)

from bids_app import nifti
from bids_app.errors import UnusableDataError
from bids_app.imaging.intensity import fill_holes, match_quantiles, scale_to_unit
from bids_app.imaging.volume import Grid
from bids_app.synthesis.card import check_reference, check_uncertainty, is_own_grid, read_card
from bids_app.synthesis.tiling import overlap


class _SynthesizePETInputSpec(BaseInterfaceInputSpec):
    t1w = File(exists=True, mandatory=True, desc="T1w in MNI space, intensities in [0, 1]")
    mask = File(exists=True, mandatory=True, desc="the brain on the same grid")
    generator = Directory(exists=True, mandatory=True, desc="weights and card of a generator")
    sha256 = traits.Str(mandatory=True, desc="SHA-256 of the weights, on which the result depends")
    reference_sha256 = traits.Str(
        mandatory=True, desc="SHA-256 of the reference; empty without matching"
    )
    fwhm = traits.Float(mandatory=True, desc="smoothing of the result, in mm")
    overlap = traits.Bool(mandatory=True, desc="average triplets that start at every slice")
    match_histogram = traits.Bool(
        mandatory=True, desc="match intensities to the mean PET of the training controls"
    )
    times_mean = traits.Float(
        mandatory=True, desc="scaling of real PET in this run, see scale_to_unit"
    )
    device = traits.Str(mandatory=True, nohash=True, desc="torch device to compute on")
    threads = traits.Int(mandatory=True, nohash=True, desc="threads that torch may use")


class _SynthesizePETOutputSpec(TraitedSpec):
    pet = File(exists=True, desc="the synthetic PET in [0, 1], 0 outside the brain")
    sidecar = traits.Dict(desc="precision in which a network computed it; empty for a tissue model")


class SynthesizePET(SimpleInterface):
    """Write the PET that a generator predicts from a T1w image."""

    input_spec = _SynthesizePETInputSpec
    output_spec = _SynthesizePETOutputSpec
    uses_torch = True

    def _run_interface(self, runtime):
        from bids_app.synthesis.inference import naming_files
        from bids_app.synthesis.reference import read_reference

        t1w = nifti.load(self.inputs.t1w)
        brain = nifti.load(self.inputs.mask).data > 0
        t1w = nifti.Image(fill_holes(t1w.data, brain), t1w.affine)
        folder = Path(self.inputs.generator)
        generator, card = self._load(folder, Grid(t1w.data.shape, t1w.affine))
        with naming_files(folder, card, self.inputs.t1w):
            pet, self._results["sidecar"] = self._synthesize(t1w, generator, card)
        pet[~brain] = 0
        if self.inputs.match_histogram:
            reference = read_reference(check_reference(folder, card))
            pet = match_quantiles(pet, brain, reference.pet_quantiles)
        if card.pet_times_mean != self.inputs.times_mean:
            pet = scale_to_unit(pet, brain, times_mean=self.inputs.times_mean)
        path = Path(runtime.cwd) / "pet.nii.gz"
        nifti.save(nifti.Image(pet, t1w.affine), path, description=nifti.SYNTHETIC_PET)
        self._results["pet"] = str(path)
        return runtime

    def _load(self, folder, grid):
        """Load a generator for a grid, and return it with its card."""
        import torch

        from bids_app.synthesis.inference import load_generator
        from bids_app.synthesis.tissue import resample_tissue_model

        torch.set_num_threads(self.inputs.threads)
        generator, card = load_generator(folder, self.inputs.device)
        if not is_own_grid(card, grid):  # then a tissue model, as checked before the run
            generator = resample_tissue_model(generator, np.array(card.affine), grid)
        return generator, card

    def _synthesize(self, t1w, generator, card):
        """Predict a PET, and return it with the fields of its sidecar."""
        from bids_app.synthesis.inference import choose_dtype, synthesize
        from bids_app.synthesis.tissue import TissueModel

        tiling = overlap(card.spec.tiling) if self.inputs.overlap else card.spec.tiling
        dtype = choose_dtype(generator, self.inputs.device)
        options = {"fwhm": self.inputs.fwhm, "zooms": t1w.zooms, "dtype": dtype}
        network = not isinstance(generator, TissueModel)
        fields = {"Precision": str(dtype).removeprefix("torch.")} if network else {}
        return synthesize(t1w.data, generator, tiling, **options), fields


class _PredictErrorInputSpec(BaseInterfaceInputSpec):
    pet = File(exists=True, mandatory=True, desc="the synthetic PET, as written")
    t1w = File(exists=True, mandatory=True, desc="T1w in MNI space, intensities in [0, 1]")
    mask = File(exists=True, mandatory=True, desc="the brain on the same grid")
    generator = Directory(exists=True, mandatory=True, desc="a generator with an error model")
    uncertainty_sha256 = traits.Str(mandatory=True, desc="SHA-256 of the error model")


class _PredictErrorOutputSpec(TraitedSpec):
    deviation = File(exists=True, desc="standard deviation of the error, voxel by voxel")
    sidecar = traits.Dict(desc="measured accuracy of the error model")


class PredictError(SimpleInterface):
    """Write the standard deviation of the error of a synthetic PET."""

    input_spec = _PredictErrorInputSpec
    output_spec = _PredictErrorOutputSpec

    def _run_interface(self, runtime):
        from bids_app.synthesis.uncertainty import (
            describe_error_model,
            predict_sd,
            read_error_model,
        )

        folder = Path(self.inputs.generator)
        pet, t1w = nifti.load(self.inputs.pet), nifti.load(self.inputs.t1w)
        card = read_card(folder)
        path = check_uncertainty(folder, card)
        model = read_error_model(path)
        brain = nifti.load(self.inputs.mask).data > 0
        try:
            deviation = predict_sd(pet.data, t1w.data, brain, pet.zooms, model)
        except ValueError as error:
            raise UnusableDataError(f"{path}: cannot be used for this PET ({error})") from error
        out = Path(runtime.cwd) / "deviation.nii.gz"
        nifti.save(
            nifti.Image(deviation, pet.affine), out, description="SD of SYNTHETIC FDG PET, mri2pet"
        )
        fields = describe_error_model(model, card.metrics)
        self._results.update(deviation=str(out), sidecar={"Uncertainty": fields})
        return runtime


class _MeasureNoveltyInputSpec(BaseInterfaceInputSpec):
    t1w = File(exists=True, mandatory=True, desc="T1w in MNI space, intensities in [0, 1]")
    generator = Directory(exists=True, mandatory=True, desc="a generator with its reference")
    reference_sha256 = traits.Str(mandatory=True, desc="SHA-256 of the reference")


class _MeasureNoveltyOutputSpec(TraitedSpec):
    sidecar = traits.Dict(desc="how much the T1w differs from the training T1w")


class MeasureNovelty(SimpleInterface):
    """Compare a T1w with those that a generator was trained on."""

    input_spec = _MeasureNoveltyInputSpec
    output_spec = _MeasureNoveltyOutputSpec

    def _run_interface(self, runtime):
        from bids_app.synthesis.reference import describe_novelty, novelty, read_reference

        t1w, folder = nifti.load(self.inputs.t1w), Path(self.inputs.generator)
        path = check_reference(folder, read_card(folder))
        reference = read_reference(path)
        try:
            value, traits = novelty(t1w.data, t1w.zooms, reference)
        except ValueError as error:
            raise UnusableDataError(f"{path}: cannot be used for this T1w ({error})") from error
        self._results["sidecar"] = {"Novelty": describe_novelty(value, traits, reference)}
        return runtime
