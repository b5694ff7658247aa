"""Nodes that fit detectors to controls, and score others with them.

Those that encode patches are torch's: see CONTRIBUTING.md, "Processes".
"""

from pathlib import Path

import numpy as np
from nipype.interfaces.base import (
    BaseInterfaceInputSpec,
    File,
    SimpleInterface,
    TraitedSpec,
    traits,
)

from bids_app import nifti
from bids_app.detection.normative import learn_norm
from bids_app.detection.norms import (
    SCORES,
    load_norm,
    measure_difference,
    measure_uptake,
    save_norm,
)
from bids_app.detection.packed import PackedControls, pack_controls
from bids_app.detection.slabs import Slab, values_of
from bids_app.errors import UnusableDataError
from bids_app.files import write_json
from bids_app.mapped import open_arrays, open_hole, read_owner

ENGINE = "bids_app.detection.voxelwise"
PET = "pet"


def _brain(path):
    return nifti.load(path).data > 0


def _save_rows(path, scores, what, holes):
    """Write scores, (scored, voxels), unless one is not finite without a reason.

    NaN is what a voxel has that too few controls cover, in all rows; and what an image has where
    its PET does not reach.
    """
    partial = np.array([hole is not None for hole in holes])
    unknown = np.isnan(scores)
    explained = unknown & (partial[:, np.newaxis] | unknown.all(axis=0))
    odd = ~(np.isfinite(scores) | explained).all(axis=1)
    if odd.any():
        raise UnusableDataError(
            f"{what}: scores of {odd.sum()} of {len(scores)} images are not finite, so none is "
            "written; train the detector again, and leave out images that are not within 0..1"
        )
    np.save(path, scores)


def _pets(folders):
    return [open_arrays(Path(folder), [PET])[0] for folder in folders]


def _holes(folders):
    return [open_hole(Path(folder)) for folder in folders]


class _TrainEncoderInputSpec(BaseInterfaceInputSpec):
    controls = traits.List(traits.Str, mandatory=True, nohash=True, desc="folders of volumes")
    digests = traits.List(traits.Str, mandatory=True, desc="of the volumes, in that order")
    brain = File(exists=True, mandatory=True, desc="what is analysed")
    spec = traits.Dict(mandatory=True, desc="as spec_to_dict gives it")
    seed = traits.Int(mandatory=True, desc="of all randomness")
    threads = traits.Int(mandatory=True, nohash=True, desc="that torch may use")


class _TrainEncoderOutputSpec(TraitedSpec):
    encoder = File(exists=True, desc="weights, with what rebuilds the network")
    history = File(exists=True, desc="its epochs, JSON")


class TrainEncoder(SimpleInterface):
    """Train the siamese autoencoder of one fold."""

    input_spec = _TrainEncoderInputSpec
    output_spec = _TrainEncoderOutputSpec
    uses_torch = True
    engine = ENGINE

    def _run_interface(self, runtime):
        import torch

        from bids_app.detection.encoding import save_encoder
        from bids_app.detection.fitting import train_encoder
        from bids_app.detection.spec import spec_from_dict

        torch.set_num_threads(self.inputs.threads)
        spec = spec_from_dict(self.inputs.spec)
        encoder, epochs = train_encoder(
            _pets(self.inputs.controls),
            _brain(self.inputs.brain),
            spec,
            seed=self.inputs.seed,
            holes=_holes(self.inputs.controls),
        )
        cwd = Path(runtime.cwd)
        save_encoder(cwd / "encoder.safetensors", encoder, spec)
        write_json(cwd / "history.json", {"epochs": epochs})
        self._results.update(
            encoder=str(cwd / "encoder.safetensors"), history=str(cwd / "history.json")
        )
        return runtime


class _PackControlsInputSpec(BaseInterfaceInputSpec):
    controls = traits.List(traits.Str, mandatory=True, nohash=True, desc="folders of volumes")
    digests = traits.List(traits.Str, mandatory=True, desc="of the volumes, in that order")


class _PackControlsOutputSpec(TraitedSpec):
    packed = File(exists=True, desc="PET of all controls, as a detector keeps them")


class PackControls(SimpleInterface):
    """Write the PETs of all controls of a training set as its detector keeps them."""

    input_spec = _PackControlsInputSpec
    output_spec = _PackControlsOutputSpec

    def _run_interface(self, runtime):
        path = Path(runtime.cwd) / "controls.safetensors"
        pack_controls(_pets(self.inputs.controls), path, _holes(self.inputs.controls))
        self._results["packed"] = str(path)
        return runtime


class _SlabInputSpec(BaseInterfaceInputSpec):
    brain = File(exists=True, mandatory=True, desc="what is analysed")
    encoder = File(exists=True, mandatory=True, desc="of the same fold")
    packed = File(mandatory=True, nohash=True, desc="PET of all controls; too large to digest")
    members = traits.List(traits.Int, mandatory=True, desc="which of those the fold has")
    digests = traits.List(traits.Str, mandatory=True, desc="of the volumes of these")
    first = traits.Int(mandatory=True, desc="slice of the slab")
    last = traits.Int(mandatory=True, desc="slice after its last one")
    scored = traits.List(traits.Str, mandatory=True, nohash=True, desc="folders of volumes")
    scored_digests = traits.List(traits.Str, mandatory=True, desc="of those, in that order")
    threads = traits.Int(mandatory=True, nohash=True, desc="that torch and numba may use")


class _FitSlabInputSpec(_SlabInputSpec):
    nu = traits.Float(mandatory=True, desc="of the one-class SVM")


class _FitSlabOutputSpec(TraitedSpec):
    voxels = File(exists=True, desc="one one-class SVM a voxel")
    scores = File(exists=True, desc="(scored, voxels), .npy")


def _fold_of(inputs):
    import torch

    from bids_app.detection.encoding import load_encoder
    from bids_app.detection.voxelwise import FoldOnSlab

    torch.set_num_threads(inputs.threads)
    return FoldOnSlab(
        load_encoder(Path(inputs.encoder)),
        PackedControls(Path(inputs.packed), inputs.members),
        _brain(inputs.brain),
        Slab(inputs.first, inputs.last),
        inputs.threads,
    )


def _slab_name(inputs):
    return f"one-class SVMs of slices {inputs.first} to {inputs.last - 1}"


class FitSlab(SimpleInterface):
    """Fit the one-class SVMs of the voxels of a slab in one fold, and score with them."""

    input_spec = _FitSlabInputSpec
    output_spec = _FitSlabOutputSpec
    uses_torch = True
    engine = ENGINE

    def _run_interface(self, runtime):
        from bids_app.detection.voxelmodels import save_models
        from bids_app.detection.voxelwise import fit_slab

        fold, scored = _fold_of(self.inputs), _pets(self.inputs.scored)
        models, scores = fit_slab(fold, scored, nu=self.inputs.nu, holes=_holes(self.inputs.scored))
        cwd = Path(runtime.cwd)
        save_models(cwd / "voxels.safetensors", models)
        _save_rows(cwd / "scores.npy", scores, _slab_name(self.inputs), _holes(self.inputs.scored))
        self._results.update(voxels=str(cwd / "voxels.safetensors"), scores=str(cwd / "scores.npy"))
        return runtime


class _ApplySlabInputSpec(_SlabInputSpec):
    voxels = File(exists=True, mandatory=True, desc="one one-class SVM a voxel")


class _ApplySlabOutputSpec(TraitedSpec):
    scores = File(exists=True, desc="(scored, voxels), .npy")


class ApplySlab(SimpleInterface):
    """Score with one-class SVMs that were fitted before."""

    input_spec = _ApplySlabInputSpec
    output_spec = _ApplySlabOutputSpec
    uses_torch = True
    engine = ENGINE

    def _run_interface(self, runtime):
        from bids_app.detection.voxelmodels import load_models
        from bids_app.detection.voxelwise import score_slab

        models = load_models(Path(self.inputs.voxels))
        scored = _pets(self.inputs.scored)
        scores = score_slab(_fold_of(self.inputs), models, scored, holes=_holes(self.inputs.scored))
        _save_rows(
            Path(runtime.cwd) / "scores.npy", scores, _slab_name(self.inputs),
            _holes(self.inputs.scored),
        )  # fmt: skip
        self._results["scores"] = str(Path(runtime.cwd) / "scores.npy")
        return runtime


class _NormInputSpec(BaseInterfaceInputSpec):
    detector = traits.Enum("zscore", "pseudonormal", mandatory=True, desc="which")
    brain = File(exists=True, mandatory=True, desc="what is analysed")
    fwhm = traits.Float(mandatory=True, desc="smoothing before, in mm")
    scored = traits.List(traits.Str, mandatory=True, nohash=True, desc="folders of volumes")
    scored_synthetic = traits.List(
        traits.Str, mandatory=True, nohash=True, desc="of their synthetic PET; none for zscore"
    )
    scored_digests = traits.List(traits.Str, mandatory=True, desc="of all those, in that order")


class _FitNormInputSpec(_NormInputSpec):
    controls = traits.List(traits.Str, mandatory=True, nohash=True, desc="folders of volumes")
    controls_synthetic = traits.List(
        traits.Str, mandatory=True, nohash=True, desc="of their synthetic PET; none for zscore"
    )
    digests = traits.List(traits.Str, mandatory=True, desc="of all those, in that order")


class _FitNormOutputSpec(TraitedSpec):
    norm = File(exists=True, desc="mean and SD of controls")
    scores = File(exists=True, desc="(scored, voxels), .npy")


def _measured(inputs, real, synthetic):
    """Give what a norm compares, one volume at a time."""
    brain = _brain(inputs.brain)
    for place, folder in enumerate(real):
        zooms = read_owner(Path(folder)).zooms
        how = {"fwhm": inputs.fwhm, "zooms": zooms, "hole": open_hole(Path(folder))}
        if inputs.detector == "zscore":
            yield measure_uptake(*_pets([folder]), brain, **how)
        else:
            pair = _pets([folder, synthetic[place]])
            yield measure_difference(*pair, brain, **how)


def _save_scores(inputs, norm, path):
    brain = _brain(inputs.brain)
    whole = Slab(0, brain.shape[-1])
    volumes = _measured(inputs, inputs.scored, inputs.scored_synthetic)
    if not norm.mean.shape == norm.sd.shape == brain.shape:
        raise UnusableDataError(
            f"{inputs.detector}: its norm lies on another grid than the images; train it again"
        )
    rows = [values_of(SCORES[inputs.detector](norm, one), brain, whole) for one in volumes]
    _save_rows(path, np.stack(rows), f"{inputs.detector}", _holes(inputs.scored))


class FitNorm(SimpleInterface):
    """Learn what controls are like in each voxel, and tell how far others are from it."""

    input_spec = _FitNormInputSpec
    output_spec = _FitNormOutputSpec

    def _run_interface(self, runtime):
        inputs, cwd = self.inputs, Path(runtime.cwd)
        volumes = _measured(inputs, inputs.controls, inputs.controls_synthetic)
        norm = learn_norm(volumes, _brain(inputs.brain))
        save_norm(cwd / "norm.safetensors", norm)
        _save_scores(inputs, norm, cwd / "scores.npy")
        self._results.update(norm=str(cwd / "norm.safetensors"), scores=str(cwd / "scores.npy"))
        return runtime


class _ApplyNormInputSpec(_NormInputSpec):
    norm = File(exists=True, mandatory=True, desc="mean and SD of controls")


class _ApplyNormOutputSpec(TraitedSpec):
    scores = File(exists=True, desc="(scored, voxels), .npy")


class ApplyNorm(SimpleInterface):
    """Tell how far others are from controls that were learned from before."""

    input_spec = _ApplyNormInputSpec
    output_spec = _ApplyNormOutputSpec

    def _run_interface(self, runtime):
        _save_scores(
            self.inputs, load_norm(Path(self.inputs.norm)), Path(runtime.cwd) / "scores.npy"
        )
        self._results["scores"] = str(Path(runtime.cwd) / "scores.npy")
        return runtime
