"""Nodes that find the brain. Torch's: see CONTRIBUTING.md, "Processes"."""

from pathlib import Path

from nipype.interfaces.base import (
    BaseInterfaceInputSpec,
    File,
    SimpleInterface,
    TraitedSpec,
    isdefined,
    traits,
)

from bids_app import nifti
from bids_app.errors import UnusableDataError
from bids_app.imaging.gaps import gaps_in


class _ExtractBrainInputSpec(BaseInterfaceInputSpec):
    t1w = File(exists=True, mandatory=True, desc="a T1w, three axes")
    valid = File(exists=True, desc="where it holds numbers, not filled gaps; everywhere without")
    source = traits.Str(mandatory=True, desc="the file it was read from, for messages")
    mode = traits.Enum("auto", "force", "skip", mandatory=True, desc="as --skull-strip")
    threads = traits.Int(mandatory=True, nohash=True, desc="that torch may use")


class _ExtractBrainOutputSpec(TraitedSpec):
    mask = File(exists=True, desc="the brain, on the grid of the T1w")
    sidecar = traits.Dict(desc="how it was found")


class ExtractBrain(SimpleInterface):
    """Find the brain with deepbet, or take that of a T1w which has been stripped already."""

    input_spec = _ExtractBrainInputSpec
    output_spec = _ExtractBrainOutputSpec
    uses_torch = True
    engine = "bids_app.anatomy.brain"

    def _run_interface(self, runtime):
        from bids_app.anatomy import brain

        image, mode = nifti.load(self.inputs.t1w), self.inputs.mode
        stripped = mode == "skip" or (mode == "auto" and brain.is_stripped(image))
        try:
            mask = (
                brain.foreground(image) if stripped else brain.extract(image, self.inputs.threads)
            )
        except ValueError as error:
            raise UnusableDataError(
                f"{self.inputs.source}: {error}; look at the image, and at its orientation"
            ) from error
        if isdefined(self.inputs.valid):
            self._refuse_gaps(mask, image.zooms)
        path = Path(runtime.cwd) / "mask.nii.gz"
        nifti.save(nifti.Image(mask, image.affine), path)
        method = "the input was skull-stripped already" if stripped else "deepbet"
        self._results["mask"] = str(path)
        self._results["sidecar"] = {"SkullStripped": stripped, "BrainExtraction": method}
        return runtime

    def _refuse_gaps(self, brain, zooms):
        gaps = nifti.load(self.inputs.valid).data == 0
        if gaps.any() and (count := gaps_in(brain, gaps, zooms)):
            raise UnusableDataError(
                f"{self.inputs.source}: {count} voxels are NaN or infinite in the brain; export or "
                "convert the image again"
            )
