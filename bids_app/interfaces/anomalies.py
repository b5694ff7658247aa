"""Nodes that lay out anomaly maps, cut them into clusters, and publish detectors."""

from contextlib import suppress
from dataclasses import asdict, replace
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
from bids_app.detection.agreement import common_brain
from bids_app.detection.card import CARD, card_from, card_values, digest_files
from bids_app.detection.clusters import (
    find_clusters,
    leave_out_uncovered,
    overlaps,
    separate_lesions,
)
from bids_app.detection.places import locate
from bids_app.detection.regions import name_regions, read_labels
from bids_app.detection.slabs import Slab, mean_map
from bids_app.errors import UnusableDataError
from bids_app.files import copy_file, write_json
from bids_app.mapped import open_arrays, open_hole, read_owner

BRAIN = "brain"


class _AgreeOnBrainInputSpec(BaseInterfaceInputSpec):
    controls = traits.List(traits.Str, mandatory=True, nohash=True, desc="folders of volumes")
    digests = traits.List(traits.Str, mandatory=True, desc="of the volumes, in that order")
    share = traits.Float(mandatory=True, desc="of controls, whose brain a voxel must be in")


class _AgreeOnBrainOutputSpec(TraitedSpec):
    brain = File(exists=True, desc="what is analysed")


class AgreeOnBrain(SimpleInterface):
    """Mark the voxels that are brain in most of the controls."""

    input_spec = _AgreeOnBrainInputSpec
    output_spec = _AgreeOnBrainOutputSpec

    def _run_interface(self, runtime):
        masks = (open_arrays(Path(folder), [BRAIN])[0] for folder in self.inputs.controls)
        path = Path(runtime.cwd) / "brain.nii.gz"
        affine = np.array(read_owner(Path(self.inputs.controls[0])).affine)
        brain = common_brain(masks, self.inputs.share)
        if not brain.any():
            raise UnusableDataError(
                f"no voxel is brain in {self.inputs.share:.0%} of the {len(self.inputs.controls)} "
                "controls; look at their registration"
            )
        nifti.save(nifti.Image(brain, affine), path)
        self._results["brain"] = str(path)
        return runtime


class _MapAnomaliesInputSpec(BaseInterfaceInputSpec):
    scores = traits.List(File(exists=True), mandatory=True, desc="of all slabs of all folds, .npy")
    slabs = traits.List(
        traits.Tuple(traits.Int, traits.Int), mandatory=True, desc="first slice and one after last"
    )
    rows = traits.List(traits.Int, mandatory=True, desc="where this image stands in each")
    folds = traits.Int(mandatory=True, desc="that have scored it")
    brain = File(exists=True, mandatory=True, desc="what is analysed")
    image = traits.Str(mandatory=True, nohash=True, desc="folder of its volumes")
    digest = traits.Str(mandatory=True, desc="of those")
    extent = traits.Float(mandatory=True, desc="share of the brain above the threshold")
    minimum_volume = traits.Float(mandatory=True, desc="of a cluster, in mm3")
    most = traits.Int(mandatory=True, desc="clusters that are labelled")
    lesions = File(exists=True, desc="mask of known lesions on the grid; none is known without")
    atlas = File(exists=True, desc="label image on the grid")
    names = File(exists=True, desc="of its labels")


class _MapAnomaliesOutputSpec(TraitedSpec):
    statmap = File(exists=True, desc="anomaly map; more is more abnormal, 0 where nothing is known")
    labels = File(exists=True, desc="clusters by rank")
    clusters = File(exists=True, desc="all, what they share with lesions; share of brain above 0")


class MapAnomalies(SimpleInterface):
    """Lay out the anomaly map of one image, and find its clusters."""

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
                f"{inputs.image}: its brain has no voxel of that of controls; look at its "
                "registration"
            )
        brain &= ~hole & ~np.isnan(score)  # NaN is what no detector knows: near holes, of anybody
        if not brain.any():
            raise UnusableDataError(
                f"{inputs.image}: nowhere do it and enough controls cover the brain; look at "
                "coverage in desc-registration_metrics.tsv"
            )
        score = np.where(brain, score, 0).astype(np.float32)
        clusters, labels = find_clusters(
            score, brain, affine, extent=inputs.extent, minimum_volume=inputs.minimum_volume
        )
        found = {
            "clusters": [asdict(one) for one in clusters],
            "above_zero": float((score[brain] > 0).mean()),
            **self._compared(labels, affine, hole),
        }
        labels[labels > inputs.most] = 0
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
        """Compare clusters with lesions and regions, where those are known."""
        told = {"lesions": None, "lesions_not_covered": 0, "overlaps": None, "regions": None}
        if isdefined(self.inputs.lesions):
            lesions = separate_lesions(self._on_grid(self.inputs.lesions, labels) > 0, affine)
            lesions, told["lesions_not_covered"] = leave_out_uncovered(lesions, hole)
            voxel_volume = float(abs(np.linalg.det(affine[:3, :3])))
            told["lesions"] = int(lesions.max())
            told["overlaps"] = overlaps(labels, lesions, voxel_volume).tolist()
        if isdefined(self.inputs.atlas):
            atlas = np.rint(self._on_grid(self.inputs.atlas, labels)).astype(np.int64)
            names = read_labels(Path(self.inputs.names))
            told["regions"] = name_regions(labels, atlas, names)
        return told

    @staticmethod
    def _on_grid(path, labels):
        data = nifti.load(path).data
        if data.shape != labels.shape:
            raise UnusableDataError(f"{path}: lies on another grid than the anomaly map")
        return data


class _LocateClustersInputSpec(BaseInterfaceInputSpec):
    statmap = File(exists=True, mandatory=True, desc="anomaly map, carried to another grid")
    labels = File(exists=True, mandatory=True, desc="clusters by rank, carried to it")


class _LocateClustersOutputSpec(TraitedSpec):
    places = File(exists=True, desc="where clusters lie there, JSON")


class LocateClusters(SimpleInterface):
    """Find out where clusters lie on the grid that they were carried to."""

    input_spec = _LocateClustersInputSpec
    output_spec = _LocateClustersOutputSpec

    def _run_interface(self, runtime):
        score, labels = nifti.load(self.inputs.statmap), nifti.load(self.inputs.labels)
        ranks = np.rint(labels.data).astype(np.int16)
        places = locate(score.data, ranks, score.affine)
        path = Path(runtime.cwd) / "places.json"
        write_json(path, {"places": [asdict(one) for one in places]})
        self._results["places"] = str(path)
        return runtime


class _PublishDetectorInputSpec(BaseInterfaceInputSpec):
    card = traits.Dict(mandatory=True, desc="as card_values gives it, without files")
    sources = traits.List(File(exists=True), mandatory=True, desc="files of the detector")
    names = traits.List(traits.Str, mandatory=True, desc="their paths in the folder")
    folder = traits.Str(mandatory=True, desc="where the detector belongs")


class _PublishDetectorOutputSpec(TraitedSpec):
    folder = traits.Str(desc="where the detector is")


def _remove_empty(place: Path, root: Path) -> None:
    """Remove a folder, and those above it below a root, as far as they hold nothing.

    No other folder: another node may have made it, and be about to write into it.
    """
    with suppress(OSError):
        while place != root:
            place.rmdir()
            place = place.parent


class PublishDetector(SimpleInterface):
    """Put the files of a detector where they belong, and its card after them."""

    input_spec = _PublishDetectorInputSpec
    output_spec = _PublishDetectorOutputSpec
    always_run = True  # what was put there may have been deleted since

    def _run_interface(self, runtime):
        folder = Path(self.inputs.folder)
        (folder / CARD).unlink(missing_ok=True)  # of an earlier one, until this one is whole
        paths = [folder / name for name in self.inputs.names]
        for path in set(folder.rglob("*.safetensors")) - set(paths):  # folds that are no more
            path.unlink()
            _remove_empty(path.parent, folder)
        for source, path in zip(self.inputs.sources, paths, strict=True):
            copy_file(Path(source), path)
        card = card_from(self.inputs.card)
        card = replace(card, files=digest_files(folder, paths))
        write_json(folder / CARD, card_values(card))
        self._results["folder"] = str(folder)
        return runtime
