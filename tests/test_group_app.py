"""The group level from end to end, in --sloppy, on people that were made and not registered."""

import csv
import gc
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from cohorts import (
    CENTRE,
    GRID,
    LESION,
    SHIFT,
    TEMPLATE,
    lesion_mask,
    uptake,
    write_controls,
    write_native,
    write_screened,
)

from bids_app import nifti
from bids_app.app import detectors
from bids_app.cli import main
from bids_app.dataset.validation import find_validator
from bids_app.derivatives.description import DESCRIPTIONS
from bids_app.derivatives.detections import (
    read_all_clusters,
    read_clusters_table,
    read_control_clusters,
    read_curve,
    read_froc,
    read_tests,
)
from bids_app.detection import slabs
from bids_app.detection.card import check_files, read_card
from bids_app.detection.spec import EncoderSpec
from bids_app.files import read_json, read_tsv, write_json, write_tsv

pytestmark = pytest.mark.slow

SETS, DETECTORS = ("real", "hybrid", "synthetic"), ("ocsvm", "zscore", "pseudonormal")
REAL, T1W_ONLY = ("c1", "c2", "c3", "c4", "c5", "c6"), ("c7", "c8", "c9", "c10")
PATIENTS = ("p1", "p2")  # T1w stored RAS, and LAS
MADE = ("detectors", "work", "logs", "*_statmap.*", "*_clusters.*", "*_dseg.*", "*label-L*",
        "detection_*", "clusters.*", "*.html")  # fmt: skip
COARSE = np.array([[5.0, 0, 0, -70], [0, 5, 0, -100], [0, 0, 5, -40], [0, 0, 0, 1]])


def arguments(out, *options):
    machine = ("--sloppy", "--folds", "2", "--nprocs", "1", "--omp-nthreads", "1")
    return [str(out.parent / "raw"), str(out), "group", *machine, *options]


def make_small(patch):
    """Cut a volume into three slabs, as one of 1 mm is cut into many, and train for a moment."""
    patch.setattr(slabs, "THICKNESS", 0.75)
    small = replace(EncoderSpec(), epochs=1, pairs_per_epoch=256)
    patch.setattr(detectors, "encoder_spec", lambda _settings: small)


@pytest.fixture(scope="module", autouse=True)
def _small():
    with pytest.MonkeyPatch.context() as patch:
        make_small(patch)
        yield


def tell_groups(out, **others):
    groups = {**dict.fromkeys((*REAL, *T1W_ONLY), "control"), **dict.fromkeys(PATIENTS, "patient")}
    rows = [
        {"participant_id": f"sub-{one}", "group": group}
        for one, group in {**groups, **others}.items()
    ]
    write_tsv(out / "participants.tsv", ["participant_id", "group"], rows)


def write_masks(folder):
    """Write masks of lesions: one as drawn on the T1w, one in the template; on other grids."""
    for label, space, shift in (("p1", "T1w", SHIFT), ("p2", TEMPLATE, (0, 0, 0))):
        path = folder / f"sub-{label}" / "anat" / f"sub-{label}_space-{space}_label-L_mask.nii.gz"
        path.parent.mkdir(parents=True)
        nifti.save(nifti.Image(lesion_mask(COARSE, (29, 37, 27), shift), COARSE), path)


def write_atlas(folder):
    """Write an atlas of three slabs from left to right; of the last, the name is not told."""
    data = np.repeat([1, 2, 3], (15, 5, 9)).reshape(29, 1, 1) * np.ones((29, 37, 27), np.int16)
    nifti.save(nifti.Image(data.astype(np.int16), COARSE), folder / "atlas.nii.gz")
    rows = [{"index": 1, "name": "Left"}, {"index": 2, "name": "Midline"}]
    write_tsv(folder / "atlas.tsv", ["index", "name"], rows)


def knowledge(folder):
    atlas = ("--atlas", str(folder / "atlas.nii.gz"), str(folder / "atlas.tsv"))
    return ("-d", f"lesions={folder / 'lesions'}", *atlas)


def fitted(out):
    """When each encoder, slab and norm of the real PETs was computed."""
    graph = out / "work" / "mri2pet_group" / "real_wf"
    return {
        path.relative_to(graph): path.stat().st_mtime_ns
        for name in ("encoder.safetensors", "voxels.safetensors", "norm.safetensors")
        for path in graph.rglob(name)
    }


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Run twice: two detectors on real PET, then all sets and detectors, by a plugin of nipype."""
    folder = tmp_path_factory.mktemp("group")
    out, rng = folder / "out", np.random.default_rng(5)
    write_controls(out, [], rng)
    for label in (*REAL, *T1W_ONLY):
        write_screened(out, label, rng, pet=label in REAL)
    for label in PATIENTS:
        paths = write_screened(out, label, rng, lesion=True)
        write_native(paths, flipped=label == "p2")
    tell_groups(out)
    write_masks(folder / "lesions")
    write_atlas(folder)
    assert main(arguments(out, "--detectors", "ocsvm", "zscore")) == 0
    before = fitted(out)
    write_json(folder / "plugin.json", {"plugin": "MultiProc", "plugin_args": {"n_procs": 2}})
    plugin = ("--use-plugin", str(folder / "plugin.json"))
    wanted = ("--training-set", *SETS, "--detectors", *DETECTORS)
    assert main(arguments(out, *wanted, *plugin, *knowledge(folder))) == 0
    return out, before


@pytest.fixture
def out(runs):
    return runs[0]
