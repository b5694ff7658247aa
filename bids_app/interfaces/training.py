"""Interfaces that store volumes for training, train generators and score them.

Training uses torch: see CONTRIBUTING.md, "Processes".
"""

import shutil
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
from bids_app.errors import UnusableDataError
from bids_app.files import file_sha256, read_json, read_tsv, write_json
from bids_app.imaging.coverage import COMPLETE
from bids_app.imaging.volume import Grid
from bids_app.nifti import CHANNELS, HOLE, Owner, store_arrays

ROUNDING = 1e-3  # tolerance of intensities outside 0..1
SYNTHETIC = "SYNTHETIC"  # start of the description in the header of every synthetic image
PET, T1W, BRAIN = "pet", "t1w", "brain"


class _StoreVolumesInputSpec(BaseInterfaceInputSpec):
    volumes = traits.Dict(
        traits.Str, traits.Str, mandatory=True, desc="images on the template's grid, in [0, 1]"
    )
    real = traits.List(traits.Str, mandatory=True, desc="names of the images that must be acquired")
    brain_mask = traits.Str(mandatory=True, desc="the brain on that grid")
    participant = traits.Str(mandatory=True, desc="label of the participant")
    session = traits.Str(mandatory=True, desc="label of the session; empty for none")
    shape = traits.Tuple(
        traits.Int, traits.Int, traits.Int, mandatory=True, desc="shape of the grid of the run"
    )
    affine = traits.List(
        traits.List(traits.Float), mandatory=True, desc="affine of the grid of the run, mm, RAS+"
    )
    folder = traits.Str(mandatory=True, nohash=True, desc="folder to write the volumes to")
    stacked = traits.Bool(False, usedefault=True, desc="whether to store PET and T1w as one array")
    coverage = traits.Str(
        "", usedefault=True, desc="mask of what the PET covers; empty for a synthetic one"
    )


class _StoreVolumesOutputSpec(TraitedSpec):
    folder = traits.Str(desc="folder of the volumes")


class StoreVolumes(SimpleInterface):
    """Check the images of one visit, and write them as files that can be memory-mapped."""

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
        for name in self.inputs.real:
            known = arrays[BRAIN] & ~arrays[HOLE] if HOLE in arrays else arrays[BRAIN]
            self._refuse_flat(Path(self.inputs.volumes[name]), arrays[name][known])
        if self.inputs.stacked:
            arrays[CHANNELS] = np.stack([arrays[PET], arrays.pop(T1W)])
        store_arrays(Path(self.inputs.folder), owner, arrays)
        self._results["folder"] = self.inputs.folder
        return runtime

    def _hole(self, pet, brain):
        """Mark brain voxels that the PET does not cover.

        A PET without a coverage mask, from an older version, is rejected if it may have a gap.
        """
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
                "which would show what the scan does not cover, is missing; run the participant "
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
    def _refuse_flat(path, values):
        if values.size and values.min() == values.max():
            raise UnusableDataError(
                f"{path}: is constant in the brain, so it cannot be used for training; "
                "look at the raw image, and run the participant level again"
            )

    @staticmethod
    def _refuse_synthetic(path):
        if nifti.inspect(path).description.startswith(SYNTHETIC):
            raise UnusableDataError(
                f"{path}: its header says {SYNTHETIC}, but the image is named as a measured one; "
                "run the participant level again"
            )


ENGINE = "bids_app.synthesis.job"


class _ComputeInputSpec(BaseInterfaceInputSpec):
    device = traits.Str(mandatory=True, nohash=True, desc="torch device to compute on")
    threads = traits.Int(mandatory=True, nohash=True, desc="threads that torch may use")
    use_gpu = traits.Bool(mandatory=True, nohash=True, desc="whether it takes a slot for GPUs")


class _TrainGeneratorInputSpec(_ComputeInputSpec):
    model = traits.Str(mandatory=True, desc="name of the row of Table 1")
    fold = traits.Str(mandatory=True, desc="number of the fold, or all")
    spec = traits.Dict(mandatory=True, desc="spec as a dict, see spec_to_dict")
    training = traits.List(traits.Str, mandatory=True, nohash=True, desc="folders of volumes")
    validation = traits.List(traits.Str, mandatory=True, nohash=True, desc="folders of volumes")
    digests = traits.List(traits.Str, mandatory=True, desc="digests of the volumes, in that order")
    kept_epochs = traits.List(
        traits.Int, mandatory=True, desc="kept epochs of the folds; stop at their mean"
    )
    seed = traits.Int(mandatory=True, desc="random seed")
    fwhm = traits.Float(mandatory=True, desc="smoothing before validation, in mm")
    times_mean = traits.Float(mandatory=True, desc="scale of the PET, see scale_to_unit")
    checkpoints = traits.Str(mandatory=True, nohash=True, desc="folder for checkpoints")
    initial = traits.Str(
        "", usedefault=True, nohash=True, desc="folder of a generator to start from; empty for none"
    )
    initial_sha256 = traits.Str("", usedefault=True, desc="SHA-256 of its weights")


class _TrainGeneratorOutputSpec(TraitedSpec):
    weights = File(exists=True, desc="weights of the MRI → PET generator that is kept")
    history = File(exists=True, desc="table of its epochs")
    kept_epoch = traits.Int(desc="the epoch it was kept at")
    precision = traits.Str(desc="precision in which it was trained")


class TrainGenerator(SimpleInterface):
    """Train one row of Table 1 on one fold, or on all participants, resuming an interrupted run."""

    input_spec = _TrainGeneratorInputSpec
    output_spec = _TrainGeneratorOutputSpec
    uses_torch = True
    engine = ENGINE

    def _run_interface(self, runtime):
        import torch

        from bids_app.synthesis.job import (
            HISTORY,
            KEPT,
            Job,
            choose_precision,
            fit_tissue,
            launch_job,
            make_fabric,
        )
        from bids_app.synthesis.models import TissueSpec, spec_from_dict

        torch.set_num_threads(self.inputs.threads)
        spec, cwd = spec_from_dict(self.inputs.spec), Path(runtime.cwd)
        training, validation = (
            [Path(folder) for folder in folders]
            for folders in (self.inputs.training, self.inputs.validation)
        )
        initial = Path(self.inputs.initial) if self.inputs.initial else None
        if isinstance(spec, TissueSpec):
            fit_tissue(
                self.inputs.fold,
                spec,
                training,
                validation,
                fwhm=self.inputs.fwhm,
                out=cwd,
                initial=initial,
                times_mean=self.inputs.times_mean,
            )
            precision = "32-true"
        else:
            precision = choose_precision(self.inputs.device)
            kept = self.inputs.kept_epochs
            job = Job(
                name=self.inputs.fold,
                spec=spec,
                training=training,
                validation=validation,
                last_epoch=max(round(sum(kept) / len(kept)), 1) if kept else spec.epochs,
                seed=self.inputs.seed,
                fwhm=self.inputs.fwhm,
                folder=Path(self.inputs.checkpoints),
                initial=initial,
                times_mean=self.inputs.times_mean,
            )
            launch_job(make_fabric(self.inputs.device, precision), job, cwd)
            shutil.rmtree(job.folder, ignore_errors=True)  # nothing is left to resume
        self._results.update(
            weights=str(cwd / KEPT),
            history=str(cwd / HISTORY),
            precision=precision,
            kept_epoch=self._kept_epoch(cwd / HISTORY),
        )
        return runtime

    @staticmethod
    def _kept_epoch(history):
        return next(int(row["epoch"]) for row in read_tsv(history) if row["kept"] == "1")


class _ScoreInputSpec(_ComputeInputSpec):
    model = traits.Str(mandatory=True, desc="name of the row of the table")
    fold = traits.Int(mandatory=True, desc="number of the fold, from 1")
    validation = traits.List(traits.Str, mandatory=True, nohash=True, desc="folders of volumes")
    digests = traits.List(
        traits.Str, mandatory=True, desc="digests of all volumes that affect the scores"
    )
    basis = traits.Str(mandatory=True, desc="digest of what the scores of this fold depend on")
    lpips_weights = traits.Str(mandatory=True, nohash=True, desc="file of weights; empty for none")
    lpips_sha256 = traits.Str(mandatory=True, desc="SHA-256 of that file")
    atlas = traits.Str(mandatory=True, desc="atlas in the space of the images; empty for none")


def _scorer(inputs, fwhm):
    import torch

    from bids_app.synthesis.scoring import Scorer

    torch.set_num_threads(inputs.threads)
    lpips = Path(inputs.lpips_weights) if inputs.lpips_weights else None
    atlas = Path(inputs.atlas) if inputs.atlas else None
    return Scorer(inputs.model, inputs.fold, fwhm, lpips, inputs.device, atlas=atlas)


class _ScoreGeneratorInputSpec(_ScoreInputSpec):
    spec = traits.Dict(mandatory=True, desc="spec as a dict, see spec_to_dict")
    weights = File(exists=True, mandatory=True, desc="weights of the MRI → PET generator")
    fwhm = traits.Float(mandatory=True, desc="smoothing of the result, in mm")
    overlap = traits.Bool(
        mandatory=True, desc="whether the result is averaged over overlapping triplets"
    )


class _ScoreGeneratorOutputSpec(TraitedSpec):
    records = File(exists=True, desc="scores of all validation visits, JSON")
    pets = traits.List(File(exists=True), desc="their synthetic PET, in the order of validation")
    sidecar = traits.Dict(desc="SHA-256 of the weights")


class ScoreGenerator(SimpleInterface):
    """Synthesize the PET of visits that a fold left out, and compare it with the real one."""

    input_spec = _ScoreGeneratorInputSpec
    output_spec = _ScoreGeneratorOutputSpec
    uses_torch = True

    def _run_interface(self, runtime):
        from bids_app.synthesis.inference import load_weights
        from bids_app.synthesis.models import spec_from_dict
        from bids_app.synthesis.pairs import open_volumes

        scorer = _scorer(self.inputs, self.inputs.fwhm)
        spec, weights = spec_from_dict(self.inputs.spec), Path(self.inputs.weights)
        generator = load_weights(weights, spec, self.inputs.device)
        pets = []
        for number, folder in enumerate(self.inputs.validation):
            visit = open_volumes(Path(folder))
            try:
                beside, averaged = scorer.score_generator(visit, generator, spec.tiling)
            except FloatingPointError as error:
                raise UnusableDataError(
                    f"fold {self.inputs.fold}, sub-{visit.owner.participant}: {error}; nothing of "
                    "this row is published; train it again with another --random-seed"
                ) from error
            path = Path(runtime.cwd) / f"pet_{number}.nii.gz"
            pet = averaged if self.inputs.overlap else beside
            image = nifti.Image(pet, np.array(visit.owner.affine))
            nifti.save(image, path, description=nifti.SYNTHETIC_PET)
            pets.append(str(path))
        records = Path(runtime.cwd) / "records.json"
        write_json(records, scorer.plain_values(self.inputs.basis))
        self._results.update(
            records=str(records), pets=pets, sidecar={"GeneratorSHA256": file_sha256(weights)}
        )
        return runtime


class _ScoreBaselinesInputSpec(_ScoreInputSpec):
    training = traits.List(traits.Str, mandatory=True, nohash=True, desc="folders of volumes")


class _ScoreBaselinesOutputSpec(TraitedSpec):
    records = File(exists=True, desc="scores of all validation visits, JSON")


class ScoreBaselines(SimpleInterface):
    """Compare the real PET of a fold's visits with the mean training PET, and with the T1w."""

    input_spec = _ScoreBaselinesInputSpec
    output_spec = _ScoreBaselinesOutputSpec
    uses_torch = True

    def _run_interface(self, runtime):
        from bids_app.synthesis.pairs import open_volumes
        from bids_app.synthesis.scoring import mean_pet

        scorer = _scorer(self.inputs, 0.0)
        mean = mean_pet(Path(folder) for folder in self.inputs.training)
        for folder in self.inputs.validation:
            scorer.score_baselines(open_volumes(Path(folder)), mean)
        records = Path(runtime.cwd) / "records.json"
        write_json(records, scorer.plain_values(self.inputs.basis))
        self._results["records"] = str(records)
        return runtime


class _PublishGeneratorInputSpec(BaseInterfaceInputSpec):
    card = traits.Dict(
        mandatory=True, desc="card as a dict, see card_values; still without SHA-256 and metrics"
    )
    weights = File(exists=True, mandatory=True, desc="weights of the generator trained on all")
    fold_weights = traits.List(
        File(exists=True), mandatory=True, desc="weights of the folds, in order"
    )
    left_out = traits.List(
        traits.List(traits.Str), mandatory=True, nohash=True, desc="volumes each fold left out"
    )
    pets = traits.List(File(exists=True), mandatory=True, desc="synthetic PET of these, in order")
    volumes = traits.List(traits.Str, mandatory=True, nohash=True, desc="folders of all volumes")
    histories = traits.List(
        File(exists=True), mandatory=True, desc="histories of the folds, then of training on all"
    )
    records = traits.List(File(exists=True), mandatory=True, desc="scores of the folds")
    precision = traits.Str(mandatory=True, desc="precision in which it was trained")
    folder = traits.Str(mandatory=True, desc="folder to write the generator to")


class _PublishGeneratorOutputSpec(TraitedSpec):
    folder = traits.Str(desc="folder of the generator")


class PublishGenerator(SimpleInterface):
    """Write a generator and those of its folds, with their cards and records, to their folder."""

    input_spec = _PublishGeneratorInputSpec
    output_spec = _PublishGeneratorOutputSpec
    uses_torch = True
    always_run = True  # the files may have been deleted since

    def _run_interface(self, runtime):
        from bids_app.synthesis.publishing import publish

        publish(
            dict(self.inputs.card),
            Path(self.inputs.folder),
            weights=Path(self.inputs.weights),
            fold_weights=[Path(path) for path in self.inputs.fold_weights],
            volumes=[Path(folder) for folder in self.inputs.volumes],
            left_out=[[Path(folder) for folder in fold] for fold in self.inputs.left_out],
            pets=[Path(path) for path in self.inputs.pets],
            histories=[Path(path) for path in self.inputs.histories],
            records=[read_json(Path(path)) for path in self.inputs.records],
            precision=self.inputs.precision,
        )
        self._results["folder"] = self.inputs.folder
        return runtime
