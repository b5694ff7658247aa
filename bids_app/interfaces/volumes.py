"""A node that checks preprocessed images and stores them so that others can map them."""

from pathlib import Path

import numpy as np
from nipype.interfaces.base import (
    BaseInterfaceInputSpec,
    SimpleInterface,
    TraitedSpec,
    traits,
)

from bids_app import nifti
from bids_app.errors import UnusableDataError
from bids_app.imaging.coverage import COMPLETE
from bids_app.imaging.volume import Grid
from bids_app.mapped import HOLE, Owner, store_arrays

ROUNDING = 1e-3  # intensities may be beyond 0..1 by so much
SYNTHETIC = "SYNTHETIC"  # as the header of every synthetic image says
PET, BRAIN = "pet", "brain"


class _StoreVolumesInputSpec(BaseInterfaceInputSpec):
    volumes = traits.Dict(
        traits.Str, traits.Str, mandatory=True, desc="images on the template's grid, in [0, 1]"
    )
    real = traits.List(traits.Str, mandatory=True, desc="names of those that must be measurements")
    brain_mask = traits.Str(mandatory=True, desc="the brain on that grid")
    participant = traits.Str(mandatory=True, desc="label")
    session = traits.Str(mandatory=True, desc="label; empty for none")
    shape = traits.Tuple(traits.Int, traits.Int, traits.Int, mandatory=True, desc="of the run")
    affine = traits.List(traits.List(traits.Float), mandatory=True, desc="of the run, in mm, RAS+")
    folder = traits.Str(mandatory=True, nohash=True, desc="where the volumes go")
    coverage = traits.Str(
        "", usedefault=True, desc="what the PET covers; empty for a synthetic one"
    )


class _StoreVolumesOutputSpec(TraitedSpec):
    folder = traits.Str(desc="where the volumes are")


class StoreVolumes(SimpleInterface):
    """Check the images of one visit, and write them so that they can be mapped."""

    input_spec = _StoreVolumesInputSpec
    output_spec = _StoreVolumesOutputSpec
    always_run = True  # the folder may have been deleted since

    def _run_interface(self, runtime):
        images = {name: self._load(Path(path)) for name, path in self.inputs.volumes.items()}
        for name in self.inputs.real:
            self._refuse_synthetic(Path(self.inputs.volumes[name]))
        brain = self._load(Path(self.inputs.brain_mask))
        owner = Owner(
            self.inputs.participant,
            self.inputs.session if self.inputs.session else None,
            tuple(map(tuple, brain.affine.tolist())),
        )
        arrays = {**{name: image.data for name, image in images.items()}, BRAIN: brain.data > 0}
        if self.inputs.coverage:
            hole = self._hole(images[PET].data, arrays[BRAIN])
            arrays |= {HOLE: hole} if hole.any() else {}
        store_arrays(Path(self.inputs.folder), owner, arrays)
        self._results["folder"] = self.inputs.folder
        return runtime

    def _hole(self, pet, brain):
        """Mark the brain that the PET does not cover; refuse an older PET that may have a gap."""
        path = Path(self.inputs.coverage)
        if path.is_file():
            grid = Grid(self.inputs.shape, np.array(self.inputs.affine))
            nifti.check_grid(path, grid)
            covered = nifti.load(path).data > 0
            return brain & ~covered
        empty = float((pet[brain] == 0).mean()) if brain.any() else 0.0
        if empty > 1 - COMPLETE:
            raise UnusableDataError(
                f"{self.inputs.volumes[PET]}: is 0 in {empty:.1%} of the brain, and {path.name}, "
                "which would tell what the scan does not cover, is not there; run the participant "
                "level again"
            )
        return np.zeros(brain.shape, bool)

    def _load(self, path):
        nifti.check_grid(path, Grid(self.inputs.shape, np.array(self.inputs.affine)))
        image = nifti.load_scan(path)
        if image.data.min() < -ROUNDING or image.data.max() > 1 + ROUNDING:
            raise UnusableDataError(
                f"{path}: has intensities beyond 0..1; run the participant level again"
            )
        return image

    @staticmethod
    def _refuse_synthetic(path):
        if nifti.read_description(path).startswith(SYNTHETIC):
            raise UnusableDataError(
                f"{path}: its header says {SYNTHETIC}, but the image is named as a measured one; "
                "run the participant level again"
            )
