"""The node that predicts a PET. Torch's: see CONTRIBUTING.md, "Processes"."""

from pathlib import Path

from nipype.interfaces.base import (
    BaseInterfaceInputSpec,
    Directory,
    File,
    SimpleInterface,
    TraitedSpec,
    traits,
)

from bids_app import nifti


class _SynthesizePETInputSpec(BaseInterfaceInputSpec):
    t1w = File(exists=True, mandatory=True, desc="T1w in MNI space, intensities in [0, 1]")
    mask = File(exists=True, mandatory=True, desc="the brain on the same grid")
    generator = Directory(exists=True, mandatory=True, desc="weights and card of a generator")
    sha256 = traits.Str(mandatory=True, desc="of the weights: other weights, another result")
    fwhm = traits.Float(mandatory=True, desc="smoothing of the result, in mm")
    device = traits.Str(mandatory=True, nohash=True, desc="torch device to compute on")
    threads = traits.Int(mandatory=True, nohash=True, desc="that torch may use")


class _SynthesizePETOutputSpec(TraitedSpec):
    pet = File(exists=True, desc="the synthetic PET in [0, 1], 0 outside the brain")


class SynthesizePET(SimpleInterface):
    """Write the PET that a generator predicts from a T1w image."""

    input_spec = _SynthesizePETInputSpec
    output_spec = _SynthesizePETOutputSpec
    uses_torch = True

    def _run_interface(self, runtime):
        import torch

        from bids_app.synthesis.inference import synthesize
        from bids_app.synthesis.weights import load_generator

        torch.set_num_threads(self.inputs.threads)
        t1w = nifti.load(self.inputs.t1w)
        generator, card = load_generator(Path(self.inputs.generator), self.inputs.device)
        pet = synthesize(
            t1w.data, generator, card.spec.tiling, fwhm=self.inputs.fwhm, zooms=t1w.zooms
        )
        pet[nifti.load(self.inputs.mask).data == 0] = 0
        path = Path(runtime.cwd) / "pet.nii.gz"
        nifti.save(nifti.Image(pet, t1w.affine), path, description="SYNTHETIC FDG PET, mri2pet")
        self._results["pet"] = str(path)
        return runtime
