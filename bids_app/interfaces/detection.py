"""Nodes that fit detectors, score images with them, and compute maps and clusters from the scores.

Nodes that encode patches run in torch processes: see CONTRIBUTING.md, "Processes".
"""

from contextlib import suppress
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path

import numpy as np
from nipype.interfaces.base import (
    BaseInterfaceInputSpec,
    File,
    SimpleInterface,
    TraitedSpec,
    isdefined,
    traits,
)

from bids_app import nifti
from bids_app.detection.card import CARD, card_from, card_values, digest_files
from bids_app.detection.clusters import (
    find_clusters,
    leave_out_uncovered,
    locate,
    name_regions,
    names_beside,
    overlaps,
    read_labels,
    separate_lesions,
)
from bids_app.detection.distribution import CheckedPet, draw_centres, measure_regions
from bids_app.detection.evaluation import common_brain
from bids_app.detection.normative import (
    MEASURES,
    fit_adjusted_norm,
    fit_norm,
    load_norms,
    save_norms,
    score_against,
    smooth_within,
)
from bids_app.detection.slabs import PackedControls, Slab, mean_map, pack_controls, values_of
from bids_app.errors import UnusableDataError
from bids_app.files import copy_file, write_json
from bids_app.imaging.volume import Grid, zooms_of
from bids_app.nifti import CHANNELS, open_arrays, open_hole, read_owner

ENGINE = "bids_app.detection.voxelwise"
PET, BRAIN = "pet", "brain"


def _covariates(desc):
    """Create a trait for the covariates of people, with a list of numbers per person."""
    return traits.List(traits.List(traits.Float), [], usedefault=True, desc=desc)


def _folders(desc):
    """Create a trait for folders, which may move; digests say what they contain."""
    return traits.List(traits.Str, mandatory=True, nohash=True, desc=desc)


def _strings(desc):
    return traits.List(traits.Str, mandatory=True, desc=desc)


def _slabs():
    of = traits.Tuple(traits.Int, traits.Int)
    return traits.List(of, mandatory=True, desc="first slice of each slab, and that after its last")


def _brain(path):
    return nifti.load(path).data > 0


def _save_rows(path, scores, name, partial):
    """Write scores, (scored, voxels), if all of them are finite or explained NaN.

    NaN is valid in all rows of a voxel that too few controls cover, and in the ``partial`` images,
    which lack part of the brain.
    """
    partial = np.array(partial)
    unknown = np.isnan(scores)
    explained = unknown & (partial[:, np.newaxis] | unknown.all(axis=0))
    odd = ~(np.isfinite(scores) | explained).all(axis=1)
    if odd.any():
        raise UnusableDataError(
            f"{name}: scores of {odd.sum()} of {len(scores)} images are not finite, so none is "
            "written; train the detector again, and leave out images that are not within 0..1"
        )
    np.save(path, scores)


def _pets(folders):
    return [open_arrays(Path(folder), [PET])[0] for folder in folders]


def _images(folders, channels):
    """Open the images that an encoder uses: PET, or PET and T1w, (2, I, J, K), memory-mapped."""
    name = PET if channels == 1 else CHANNELS
    return [open_arrays(Path(folder), [name])[0] for folder in folders]


def _holes(folders):
    return [open_hole(Path(folder)) for folder in folders]


class _ControlsInputSpec(BaseInterfaceInputSpec):
    controls = _folders("folders of volumes")
    digests = _strings("digests of the volumes, in order")


class _TrainEncoderInputSpec(_ControlsInputSpec):
    brain = File(exists=True, mandatory=True, desc="mask of the analysed voxels")
    spec = traits.Dict(mandatory=True, desc="spec of the encoder, from spec_to_dict")
    seed = traits.Int(mandatory=True, desc="seed of all random numbers")
    threads = traits.Int(mandatory=True, nohash=True, desc="number of threads for torch")


class _TrainEncoderOutputSpec(TraitedSpec):
    encoder = File(exists=True, desc="weights and spec of the encoder")
    history = File(exists=True, desc="losses of all epochs, JSON")


class TrainEncoder(SimpleInterface):
    """Train the siamese autoencoder of one fold."""

    input_spec = _TrainEncoderInputSpec
    output_spec = _TrainEncoderOutputSpec
    uses_torch = True
    engine = ENGINE

    def _run_interface(self, runtime):
        import torch

        from bids_app.detection.autoencoder import save_encoder, train_encoder
        from bids_app.detection.card import spec_from_dict

        torch.set_num_threads(self.inputs.threads)
        spec = spec_from_dict(self.inputs.spec)
        encoder, epochs = train_encoder(
            _images(self.inputs.controls, spec.channels),
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


class _PackControlsInputSpec(_ControlsInputSpec):
    channels = traits.Int(1, usedefault=True, desc="1 for PET, 2 for PET and T1w")


class _PackControlsOutputSpec(TraitedSpec):
    packed = File(exists=True, desc="PET of all controls, as stored in a detector")


class PackControls(SimpleInterface):
    """Write the images of all controls of a training set in the format of its detector."""

    input_spec = _PackControlsInputSpec
    output_spec = _PackControlsOutputSpec

    def _run_interface(self, runtime):
        path = Path(runtime.cwd) / "controls.safetensors"
        controls = self.inputs.controls
        pack_controls(_images(controls, self.inputs.channels), path, _holes(controls))
        self._results["packed"] = str(path)
        return runtime


class _SlabInputSpec(BaseInterfaceInputSpec):
    brain = File(exists=True, mandatory=True, desc="mask of the analysed voxels")
    encoder = File(exists=True, mandatory=True, desc="encoder of the same fold")
    packed = File(mandatory=True, nohash=True, desc="PET of all controls; too large to digest")
    members = traits.List(traits.Int, mandatory=True, desc="indices of the fold's controls")
    digests = _strings("digests of the members' volumes")
    first = traits.Int(mandatory=True, desc="first slice of the slab")
    last = traits.Int(mandatory=True, desc="slice after the last one of the slab")
    scored = _folders("folders of the volumes to score")
    scored_digests = _strings("digests of the volumes to score, in order")
    direction = traits.Str(mandatory=True, desc="what scores higher, a key of DIRECTIONS")
    covariates = _covariates("covariates of the members, in order; empty if not used")
    scored_covariates = _covariates("covariates of the people to score; empty if not used")
    threads = traits.Int(mandatory=True, nohash=True, desc="number of threads for torch and numba")


class _ScoresOutputSpec(TraitedSpec):
    scores = File(exists=True, desc="scores, (scored, voxels), .npy")


def _fold_of(inputs):
    import torch

    from bids_app.detection.autoencoder import load_encoder
    from bids_app.detection.voxelwise import FoldOnSlab

    torch.set_num_threads(inputs.threads)
    return FoldOnSlab(
        load_encoder(Path(inputs.encoder)),
        PackedControls(Path(inputs.packed), inputs.members),
        _brain(inputs.brain),
        Slab(inputs.first, inputs.last),
        inputs.threads,
        inputs.direction,
        np.array(inputs.covariates, float) if inputs.covariates else None,
    )


def _slab_name(inputs):
    return f"one-class SVMs of slices {inputs.first} to {inputs.last - 1}"


class _ApplySlabInputSpec(_SlabInputSpec):
    voxels = File(exists=True, mandatory=True, desc="one one-class SVM per voxel")


class ApplySlab(SimpleInterface):
    """Compute scores with one-class SVMs fitted before."""

    input_spec = _ApplySlabInputSpec
    output_spec = _ScoresOutputSpec
    uses_torch = True
    engine = ENGINE

    def _run_interface(self, runtime):
        path, holes = Path(runtime.cwd) / "scores.npy", _holes(self.inputs.scored)
        scores, partial = self._score(path.parent, holes), [hole is not None for hole in holes]
        _save_rows(path, scores, _slab_name(self.inputs), partial)
        self._results["scores"] = str(path)
        return runtime

    def _score(self, _, holes):
        from bids_app.detection.voxelwise import load_models, score_slab

        models = load_models(Path(self.inputs.voxels))
        fold = _fold_of(self.inputs)
        scored = _images(self.inputs.scored, fold.encoder.channels)
        return score_slab(fold, models, scored, holes, rows=self.inputs.scored_covariates)


class _ComparedInputSpec(BaseInterfaceInputSpec):
    compared = traits.List(
        traits.Str,
        [],
        usedefault=True,
        nohash=True,
        desc="folders of the real and synthetic PET to compare with one another",
    )
    compared_digests = traits.List(
        traits.Str, [], usedefault=True, desc="digests of the PET to compare, in order"
    )


class _FitSlabInputSpec(_SlabInputSpec, _ComparedInputSpec):
    nu = traits.Float(mandatory=True, desc="nu of the one-class SVMs")
    compared_covariates = _covariates("covariates of the PET to compare, in order")


class _FitSlabOutputSpec(_ScoresOutputSpec):
    voxels = File(exists=True, desc="one one-class SVM per voxel")
    unsigned = File(desc="scores without direction, (compared, voxels), .npy")


class FitSlab(ApplySlab):
    """Fit the one-class SVMs of the voxels of a slab in one fold, and compute scores with them."""

    input_spec = _FitSlabInputSpec
    output_spec = _FitSlabOutputSpec

    def _score(self, cwd, holes):
        from bids_app.detection.voxelwise import fit_slab, save_models

        fold, rows = _fold_of(self.inputs), self.inputs.scored_covariates
        scored = _images(self.inputs.scored, fold.encoder.channels)
        models, scores = fit_slab(fold, scored, nu=self.inputs.nu, holes=holes, rows=rows)
        save_models(cwd / "voxels.safetensors", models)
        self._results["voxels"] = str(cwd / "voxels.safetensors")
        if self.inputs.compared:
            self._results["unsigned"] = self._compare(cwd, fold, models)
        return scores

    def _compare(self, cwd, fold, models):
        from bids_app.detection.voxelwise import score_slab

        compared, rows = self.inputs.compared, self.inputs.compared_covariates
        fold, holes = replace(fold, direction="both"), _holes(compared)
        images = _images(compared, fold.encoder.channels)
        scores = score_slab(fold, models, images, holes, rows=rows)
        partial = [hole is not None for hole in holes]
        _save_rows(cwd / "unsigned.npy", scores, _slab_name(self.inputs), partial)
        return str(cwd / "unsigned.npy")


class _CompareSyntheticInputSpec(_ComparedInputSpec):
    kinds = _strings("'real' or 'synthetic' for each PET, in order")
    fold = traits.Int(mandatory=True, desc="number of the fold, from 1")
    encoder = File(exists=True, mandatory=True, desc="encoder of the fold")
    unsigned = traits.List(
        File(exists=True), mandatory=True, desc="scores of all slabs, from FitSlab"
    )
    slabs = _slabs()
    brain = File(exists=True, mandatory=True, desc="mask of the analysed voxels")
    atlas = traits.Str(mandatory=True, desc="atlas in the space of the images; empty for none")


class _CompareSyntheticOutputSpec(TraitedSpec):
    checked = File(exists=True, desc="scores and reconstruction errors of each PET by region, JSON")


class CompareSynthetic(SimpleInterface):
    """Measure how the detectors of a fold see synthetic PET and held-out real PET."""

    input_spec = _CompareSyntheticInputSpec
    output_spec = _CompareSyntheticOutputSpec
    uses_torch = True
    engine = ENGINE

    def _run_interface(self, runtime):
        from bids_app.detection.autoencoder import load_encoder

        inputs, encoder = self.inputs, load_encoder(Path(self.inputs.encoder))
        brain, rows = _brain(inputs.brain), []
        affine = np.array(read_owner(Path(inputs.compared[0])).affine)
        regions, names = self._regions(Grid(brain.shape, affine))
        for place, (folder, kind) in enumerate(zip(inputs.compared, inputs.kinds, strict=True)):
            pieces = (
                (Slab(*slab), np.load(path, mmap_mode="r")[place])
                for path, slab in zip(inputs.unsigned, inputs.slabs, strict=True)
            )
            owner = read_owner(Path(folder))
            session = f"ses-{owner.session}" if owner.session else None
            identity = (f"sub-{owner.participant}", session, kind, inputs.fold)
            scores = mean_map(pieces, brain, 1)
            errors = self._reconstruct(encoder, Path(folder), brain)
            seen = measure_regions(scores, *errors, brain, regions=regions, names=names)
            rows += [asdict(CheckedPet(*identity, *row)) for row in seen]
        write_json(Path(runtime.cwd) / "checked.json", {"checked": rows})
        self._results["checked"] = str(Path(runtime.cwd) / "checked.json")
        return runtime

    @staticmethod
    def _reconstruct(encoder, folder, brain):
        """Return reconstruction errors and centres of patches; none touches a hole."""
        from bids_app.detection.autoencoder import reconstruction_errors, whole_patches

        hole, whole = open_hole(folder), brain
        if hole is not None:
            whole = brain & whole_patches(hole, encoder.patch)
        centres = draw_centres(whole)
        image = _images([folder], encoder.channels)[0]
        return reconstruction_errors(encoder, image, centres), centres

    def _regions(self, grid):
        if not self.inputs.atlas:
            return np.zeros(grid.shape, np.int16), {}
        regions = nifti.resample_atlas(nifti.load(self.inputs.atlas), grid)
        return regions, read_labels(names_beside(Path(self.inputs.atlas)))


class _NormInputSpec(BaseInterfaceInputSpec):
    detector = traits.Str(mandatory=True, desc="name of the detector, a key of MEASURES")
    direction = traits.Str(mandatory=True, desc="what scores higher, a key of DIRECTIONS")
    brain = File(exists=True, mandatory=True, desc="mask of the analysed voxels")
    fwhm = traits.Float(mandatory=True, desc="FWHM of the smoothing before scoring, in mm")
    scored = _folders("folders of the volumes to score")
    scored_synthetic = _folders("folders of their synthetic PET, if it is compared")
    scored_digests = _strings("digests of all these volumes, in order")
    scored_covariates = _covariates("covariates of the people to score; empty if not used")


def _outside(brain, folder):
    """Mark voxels of the analysed brain that are not in the brain mask of a visit."""
    return brain & ~open_arrays(Path(folder), [BRAIN])[0]


def _measured(inputs, measure, real, synthetic):
    """Yield the measures that a norm compares, one volume at a time.

    Images are 0 outside the brain mask of their own visit, where nothing was measured: the measure
    is NaN there, and is not smoothed with these zeros elsewhere.
    """
    brain = _brain(inputs.brain)
    for place, folder in enumerate(real):
        affine = np.array(read_owner(Path(folder)).affine)
        options = {"fwhm": inputs.fwhm, "affine": affine, "hole": open_hole(Path(folder))}
        pets, outside = _pets([folder, *synthetic[place : place + 1]]), _outside(brain, folder)
        yield np.where(outside, np.nan, measure(*pets, brain & ~outside, **options))


def _save_scores(inputs, norms, path):
    brain, measures = _brain(inputs.brain), MEASURES[inputs.detector]
    whole = Slab(0, brain.shape[-1])
    if len(norms) != len(measures) or any(norm.mean.shape != brain.shape for norm in norms):
        raise UnusableDataError(
            f"{inputs.detector}: its norm lies on another grid than the images; train it again"
        )
    everyone = (inputs.scored, inputs.scored_synthetic)
    each = zip(*(_measured(inputs, measure, *everyone) for measure in measures), strict=True)
    covariates = inputs.scored_covariates or [()] * len(inputs.scored)
    options = (inputs.detector, inputs.direction)
    rows = [
        values_of(score_against(norms, values, *options, row), brain, whole)
        for values, row in zip(each, covariates, strict=True)
    ]
    partial = [
        hole is not None or _outside(brain, folder).any()
        for hole, folder in zip(_holes(inputs.scored), inputs.scored, strict=True)
    ]
    _save_rows(path, np.stack(rows), inputs.detector, partial)


class _ApplyNormInputSpec(_NormInputSpec):
    norm = File(exists=True, mandatory=True, desc="mean and SD of controls")


class ApplyNorm(SimpleInterface):
    """Score others by their deviation from a norm of controls computed before."""

    input_spec = _ApplyNormInputSpec
    output_spec = _ScoresOutputSpec

    def _run_interface(self, runtime):
        path = Path(runtime.cwd) / "scores.npy"
        _save_scores(self.inputs, self._norms(path.parent), path)
        self._results["scores"] = str(path)
        return runtime

    def _norms(self, _):
        return load_norms(Path(self.inputs.norm))


class _FitNormInputSpec(_NormInputSpec):
    controls = _folders("folders of volumes")
    controls_synthetic = _folders("folders of their synthetic PET, if it is compared")
    digests = _strings("digests of all these volumes, in order")
    covariates = _covariates("covariates of the controls, in order; empty if not used")


class _FitNormOutputSpec(_ScoresOutputSpec):
    norm = File(exists=True, desc="mean and SD of controls")


class FitNorm(ApplyNorm):
    """Compute the norm of controls at each voxel, and score others by their deviation from it."""

    input_spec = _FitNormInputSpec
    output_spec = _FitNormOutputSpec

    def _norms(self, cwd):
        brain = _brain(self.inputs.brain)
        everyone = (self.inputs.controls, self.inputs.controls_synthetic)
        rows = np.array(self.inputs.covariates, float)
        norms = []
        for measure in MEASURES[self.inputs.detector]:
            volumes = partial(_measured, self.inputs, measure, *everyone)
            if rows.size:
                norms.append(fit_adjusted_norm(volumes, brain, rows))
            else:
                norms.append(fit_norm(volumes(), brain))
        save_norms(cwd / "norm.safetensors", norms)
        self._results["norm"] = str(cwd / "norm.safetensors")
        return norms


class _AgreeOnBrainInputSpec(_ControlsInputSpec):
    share = traits.Float(mandatory=True, desc="share of controls whose brain must contain a voxel")


class _AgreeOnBrainOutputSpec(TraitedSpec):
    brain = File(exists=True, desc="mask of the voxels to analyse")


class AgreeOnBrain(SimpleInterface):
    """Compute a mask of the voxels that are brain in most of the controls."""

    input_spec = _AgreeOnBrainInputSpec
    output_spec = _AgreeOnBrainOutputSpec

    def _run_interface(self, runtime):
        masks = (open_arrays(Path(folder), [BRAIN])[0] for folder in self.inputs.controls)
        path = Path(runtime.cwd) / "brain.nii.gz"
        affine = np.array(read_owner(Path(self.inputs.controls[0])).affine)
        brain = common_brain(masks, self.inputs.share)
        if not brain.any():
            raise UnusableDataError(
                f"no voxel is in the brain of {self.inputs.share:.0%} of the "
                f"{len(self.inputs.controls)} controls; look at their registration"
            )
        nifti.save(nifti.Image(brain, affine), path)
        self._results["brain"] = str(path)
        return runtime


class _AverageControlsInputSpec(_ControlsInputSpec):
    synthetic = traits.Int(mandatory=True, desc="how many of the volumes are synthetic PET")
    covariates = _covariates("covariates of the controls, in order; empty if not used")
    brain = File(exists=True, mandatory=True, desc="mask of the analysed voxels")


class _AverageControlsOutputSpec(TraitedSpec):
    images = traits.List(
        File(exists=True), desc="mean and SD, 0 where too few controls have a value"
    )


class AverageControls(SimpleInterface):
    """Compute the mean and the SD of the controls' PET at each voxel of the brain."""

    input_spec = _AverageControlsInputSpec
    output_spec = _AverageControlsOutputSpec

    def _run_interface(self, runtime):
        inputs, brain = self.inputs, _brain(self.inputs.brain)
        affine = np.array(read_owner(Path(inputs.controls[0])).affine)
        rows = np.array(inputs.covariates, float)
        if rows.size:
            norm = fit_adjusted_norm(self._volumes, brain, rows, least_sd=0.0)
        else:
            norm = fit_norm(self._volumes(), brain, least_sd=0.0)
        description = f"{inputs.synthetic} of {len(inputs.controls)} PET SYNTHETIC"
        self._results["images"] = []
        for name, volume in (("mean", norm.mean), ("sd", norm.sd)):
            path = Path(runtime.cwd) / f"{name}.nii.gz"
            image = nifti.Image(np.nan_to_num(volume), affine)
            nifti.save(image, path, description=description if inputs.synthetic else "")
            self._results["images"].append(str(path))
        return runtime

    def _volumes(self):
        brain = _brain(self.inputs.brain)
        for folder in map(Path, self.inputs.controls):
            (pet,), hole, outside = _pets([folder]), open_hole(folder), _outside(brain, folder)
            yield np.where(outside if hole is None else outside | hole, np.nan, pet)


class _MapAnomaliesInputSpec(BaseInterfaceInputSpec):
    scores = traits.List(
        File(exists=True), mandatory=True, desc="scores of all slabs of all folds, .npy"
    )
    slabs = _slabs()
    rows = traits.List(traits.Int, mandatory=True, desc="row of this image in each scores file")
    folds = traits.Int(mandatory=True, desc="number of folds that have scored the image")
    brain = File(exists=True, mandatory=True, desc="mask of the analysed voxels")
    image = traits.Str(mandatory=True, nohash=True, desc="folder of the image's volumes")
    digest = traits.Str(mandatory=True, desc="digest of the image's volumes")
    fwhm = traits.Float(mandatory=True, desc="smoothing of the scores within the brain, in mm")
    extent = traits.Float(mandatory=True, desc="share of the brain above the threshold")
    minimum_volume = traits.Float(mandatory=True, desc="minimum volume of a cluster, in mm3")
    max_clusters = traits.Int(mandatory=True, desc="maximum number of clusters to label")
    lesions = File(exists=True, desc="mask of the lesions on the grid, if they are known")
    atlas = File(exists=True, desc="label image on the grid")
    names = File(exists=True, desc="names of the atlas' labels")


class _MapAnomaliesOutputSpec(TraitedSpec):
    statmap = File(exists=True, desc="anomaly map; higher is more abnormal, 0 where not scored")
    labels = File(exists=True, desc="label image of the clusters, by rank")
    clusters = File(
        exists=True,
        desc="all clusters, their overlap with lesions, and the share of the brain above 0, JSON",
    )


class MapAnomalies(SimpleInterface):
    """Compute the anomaly map of one image, and find its clusters."""

    input_spec = _MapAnomaliesInputSpec
    output_spec = _MapAnomaliesOutputSpec

    def _run_interface(self, runtime):
        inputs, cwd = self.inputs, Path(runtime.cwd)
        common = nifti.load(inputs.brain).data > 0
        affine = np.array(read_owner(Path(inputs.image)).affine)
        pieces = (
            (Slab(*slab), np.load(path, mmap_mode="r")[row])
            for path, slab, row in zip(inputs.scores, inputs.slabs, inputs.rows, strict=True)
        )
        score = mean_map(pieces, common, inputs.folds)
        brain, hole = common & open_arrays(Path(inputs.image), [BRAIN])[0], self._hole(common)
        if not brain.any():
            raise UnusableDataError(
                f"{inputs.image}: its brain has no voxel in common with that of controls; look at "
                "its registration"
            )
        brain &= ~hole & ~np.isnan(score)  # no detector has a score where it is NaN, near a hole
        if not brain.any():
            raise UnusableDataError(
                f"{inputs.image}: no voxel of the brain is covered by this PET and by enough "
                "controls; look at coverage in desc-registration_metrics.tsv"
            )
        score = np.where(brain, score, 0).astype(np.float32)
        if inputs.fwhm:
            score = smooth_within(score, brain, fwhm=inputs.fwhm, zooms=zooms_of(affine))
        clusters, labels = find_clusters(
            score, brain, affine, extent=inputs.extent, minimum_volume=inputs.minimum_volume
        )
        found = {
            "clusters": [asdict(cluster) for cluster in clusters],
            "above_zero": float((score[brain] > 0).mean()),
            **self._compared(labels, affine, hole),
        }
        labels[labels > inputs.max_clusters] = 0
        nifti.save(nifti.Image(score, affine), cwd / "statmap.nii.gz")
        nifti.save(nifti.Image(labels, affine), cwd / "labels.nii.gz")
        write_json(cwd / "clusters.json", found)
        for name in ("statmap.nii.gz", "labels.nii.gz", "clusters.json"):
            self._results[name.partition(".")[0]] = str(cwd / name)
        return runtime

    def _hole(self, common):
        hole = open_hole(Path(self.inputs.image))
        return np.zeros_like(common) if hole is None else hole

    def _compared(self, labels, affine, hole):
        """Compare clusters with lesions and regions, if these are known."""
        fields = {"lesions": None, "lesions_not_covered": 0, "overlaps": None, "regions": None}
        if isdefined(self.inputs.lesions):
            lesions = separate_lesions(self._on_grid(self.inputs.lesions, labels) > 0, affine)
            lesions, fields["lesions_not_covered"] = leave_out_uncovered(lesions, hole)
            voxel_volume = float(abs(np.linalg.det(affine[:3, :3])))
            fields["lesions"] = int(lesions.max())
            fields["overlaps"] = overlaps(labels, lesions, voxel_volume).tolist()
        if isdefined(self.inputs.atlas):
            atlas = np.rint(self._on_grid(self.inputs.atlas, labels)).astype(np.int64)
            names = read_labels(Path(self.inputs.names))
            fields["regions"] = name_regions(labels, atlas, names)
        return fields

    @staticmethod
    def _on_grid(path, labels):
        data = nifti.load(path).data
        if data.shape != labels.shape:
            raise UnusableDataError(f"{path}: lies on another grid than the anomaly map")
        return data


class _KeepClustersInputSpec(BaseInterfaceInputSpec):
    labels = _strings("label images in the output dataset, rewritten in place")
    kept = traits.Int(mandatory=True, desc="number of clusters to keep, from the first rank on")


class _KeepClustersOutputSpec(TraitedSpec):
    labels = traits.List(File(exists=True), desc="the rewritten label images")


class KeepClusters(SimpleInterface):
    """Remove all but the first clusters from label images in the output dataset."""

    input_spec = _KeepClustersInputSpec
    output_spec = _KeepClustersOutputSpec
    always_run = True  # each run rewrites the labels

    def _run_interface(self, runtime):
        for path in map(Path, self.inputs.labels):
            image = nifti.load(path)
            ranks = np.rint(image.data).astype(np.int16)
            ranks[ranks > self.inputs.kept] = 0
            partial = Path(runtime.cwd) / path.name
            nifti.save(nifti.Image(ranks, image.affine), partial)
            nifti.place(partial, path)
        self._results["labels"] = list(self.inputs.labels)
        return runtime


class _LocateClustersInputSpec(BaseInterfaceInputSpec):
    statmap = File(exists=True, mandatory=True, desc="anomaly map, resampled to another grid")
    labels = File(exists=True, mandatory=True, desc="clusters by rank, resampled to that grid")


class _LocateClustersOutputSpec(TraitedSpec):
    places = File(exists=True, desc="positions of the clusters on that grid, JSON")


class LocateClusters(SimpleInterface):
    """Locate clusters on the grid that they were resampled to."""

    input_spec = _LocateClustersInputSpec
    output_spec = _LocateClustersOutputSpec

    def _run_interface(self, runtime):
        score, labels = nifti.load(self.inputs.statmap), nifti.load(self.inputs.labels)
        ranks = np.rint(labels.data).astype(np.int16)
        places = locate(score.data, ranks, score.affine)
        path = Path(runtime.cwd) / "places.json"
        write_json(path, {"places": [asdict(place) for place in places]})
        self._results["places"] = str(path)
        return runtime


class _PublishDetectorInputSpec(BaseInterfaceInputSpec):
    card = traits.Dict(mandatory=True, desc="card of the detector, from card_values, without files")
    sources = traits.List(File(exists=True), mandatory=True, desc="files of the detector")
    names = _strings("paths of these files in the folder")
    folder = traits.Str(mandatory=True, desc="folder to write the detector to")


class _PublishDetectorOutputSpec(TraitedSpec):
    folder = traits.Str(desc="folder of the detector")


def _remove_empty(place: Path, root: Path) -> None:
    """Remove a folder and those above it, below a root, as long as they are empty.

    Other folders are not touched: another node may have created one and be about to write to it.
    """
    with suppress(OSError):
        while place != root:
            place.rmdir()
            place = place.parent


class PublishDetector(SimpleInterface):
    """Copy the files of a detector to its folder, and then write its card."""

    input_spec = _PublishDetectorInputSpec
    output_spec = _PublishDetectorOutputSpec
    always_run = True  # the published files may have been deleted since

    def _run_interface(self, runtime):
        folder = Path(self.inputs.folder)
        (folder / CARD).unlink(missing_ok=True)  # of an earlier detector, until this is complete
        paths = [folder / name for name in self.inputs.names]
        for path in set(folder.rglob("*.safetensors")) - set(paths):  # of former folds
            path.unlink()
            _remove_empty(path.parent, folder)
        for source, path in zip(self.inputs.sources, paths, strict=True):
            copy_file(Path(source), path)
        card = card_from(self.inputs.card)
        card = replace(card, files=digest_files(folder, paths))
        write_json(folder / CARD, card_values(card))
        self._results["folder"] = str(folder)
        return runtime
