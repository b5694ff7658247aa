"""Small derivative dataset, as written by the group level."""

from itertools import combinations

import numpy as np
from scipy import ndimage

from bids_app import nifti
from bids_app.derivatives.detections import ScoredRun, maps_on_disk, write_run
from bids_app.files import write_json, write_tsv
from bids_app.imaging.volume import grid_of_box
from bids_app.report.group import write_group_report
from bids_app.report.participant import write_subject_report

TEMPLATE, RESOLUTION = "MNI152NLin2009aSym", 6.0
T = f"{TEMPLATE}_res-6"
DETECTORS = ("ocsvm", "zscore")
UNITS = ("lesion", "patient")
SETS = ("real", "hybrid")  # the first is the primary set
CONTROLS = ("C1", "C2")
PATIENTS = {"P1": (-36.0, -10.0, 20.0), "P2": (36.0, 20.0, 10.0)}  # mm; a left and a right lesion
OTHER = (12.0, -70.0, 40.0)  # a place that looks abnormal in everyone
MOVED = np.array([4.0, -6.0, 8.0])  # mm; offset of a patient's own T1w space from the template's
CLUSTER = [
    *("rank", "x", "y", "z", "peak_x", "peak_y", "peak_z", "peak_score", "volume", "side"),
    *("mean_score", "sum_score", "expected_in_control", "overlap", "region"),
]
WHO = ["participant_id", "session_id"]
HOW = ["training_set", "detector"]
CONTROL = [*WHO, "detector", "rank", "x", "y", "z", "volume", "mean_score", "sum_score"]
CONTROL_MAP = [*WHO, "detector", "above_zero"]
ABOVE_ZERO = {"C1": 0.9, "C2": 0.96}
CURVE = [
    *(*HOW, "unit", "clusters", "n", "found", "sensitivity", "low", "high"),
    *("false_clusters_per_patient", "false_clusters_per_control"),
]
TESTS = [
    *("unit", "clusters", "training_set_1", "detector_1", "training_set_2", "detector_2"),
    *("n", "only_1", "only_2", "p", "p_holm"),
]
FROC = [*HOW, "unit", "sum_score", "false_clusters_per_control", "sensitivity", "low", "high"]


def places_of(affine, shape):
    indices = np.stack(np.meshgrid(*map(np.arange, shape), indexing="ij"), axis=-1)
    return indices @ affine[:3, :3].T + affine[:3, 3]


class Cohort:
    """Two controls and two patients, with ellipsoids as brains and bumps as abnormalities."""

    def __init__(self, out, *, lesions=True, own_space=True):
        self.out, self.lesions, self.own_space = out, lesions, own_space
        self.grid = grid_of_box((-78, -112, -50, 78, 76, 85), RESOLUTION)
        self.affine, self.world = self.grid.affine, places_of(self.grid.affine, self.grid.shape)
        # the first axis of the participant's own grid points to the left
        self.own_affine = np.diag([-5.0, 5.0, 5.0, 1.0])
        self.own_affine[:3, 3] = 86, -124, -52
        self.own_world = places_of(self.own_affine, (33, 42, 32)) - MOVED
        self.template = out.parent / "template.nii.gz"
        out.mkdir(parents=True)
        nifti.save(nifti.Image(self.t1w(self.world), self.affine), self.template)
        self.found = {}  # (training set, detector, patient) → rows of its table
        for label in (*CONTROLS, *PATIENTS):
            self.add_anatomy(label)
        for training_set in SETS:
            self.add_detectors(training_set)
        self.add_tables()
        self.record()

    # Images

    @staticmethod
    def radius(world):
        return np.sqrt((((world - (0, -18, 15)) / (66, 84, 60)) ** 2).sum(axis=-1))

    def t1w(self, world):
        radius = self.radius(world)
        return np.where(radius < 1, 0.4 + 0.5 * (radius < 0.7), 0).astype(np.float32)

    def scores(self, world, label, strength):
        """Return abnormality scores: a strong bump at the lesion, a weak one elsewhere."""
        places = {OTHER: 2.0, **({PATIENTS[label]: strength} if label in PATIENTS else {})}
        bumps = sum(
            height * np.exp(-((world - np.array(place)) ** 2).sum(axis=-1) / (2 * 9**2))
            for place, height in places.items()
        )
        return np.where(self.radius(world) < 1, bumps - 0.5, 0).astype(np.float32)

    def put(self, folder, name, data, *, affine=None, **metadata):
        path = self.out / folder / f"{name}.nii.gz"
        path.parent.mkdir(parents=True, exist_ok=True)
        nifti.save(nifti.Image(data, self.affine if affine is None else affine), path)
        write_json(path.with_name(f"{name}.json"), metadata)
        return path

    def add_anatomy(self, label):
        own, anat, pet = f"sub-{label}", f"sub-{label}/anat", f"sub-{label}/pet"
        t1w = self.t1w(self.world)
        self.put(anat, f"{own}_space-{T}_desc-preproc_T1w", t1w)
        self.put(anat, f"{own}_space-{T}_desc-brain_mask", t1w > 0)
        self.put(pet, f"{own}_trc-18FFDG_space-{T}_desc-preproc_pet", t1w)
        native = self.t1w(self.own_world)
        self.put(anat, f"{own}_desc-preproc_T1w", 400 * native, affine=self.own_affine)
        self.put(anat, f"{own}_desc-brain_mask", native > 0, affine=self.own_affine)
        reference = f"bids::{anat}/{own}_desc-preproc_T1w.nii.gz"
        name = f"{own}_trc-18FFDG_space-T1w_desc-preproc_pet"
        self.put(pet, name, native, affine=self.own_affine, SpatialReference=reference)
        if label in PATIENTS and self.lesions:
            lesion = np.linalg.norm(self.world - PATIENTS[label], axis=-1) < 16
            self.put(anat, f"{own}_space-{T}_label-L_mask", lesion)

    # Detectors

    def add_detectors(self, training_set):
        folder = self.out / "detectors" / training_set
        synthetic = training_set == "hybrid"
        members = [(label, False) for label in CONTROLS] + [("C3", True)] * synthetic
        card = {
            "name": training_set,
            "version": "0.1.0",
            "detectors": list(DETECTORS),
            "template": TEMPLATE,
            "shape": list(self.grid.shape),
            "affine": self.affine.tolist(),
            "controls": [
                {
                    "participant": label,
                    "session": None,
                    "synthetic": made,
                    "fold": 1 + n % 2,
                    "generator": "semi3d-cyclegan-mse" if made else "",
                    "generator_sha256": "ab" * 32 if made else "",
                }
                for n, (label, made) in enumerate(members)
            ],
            "folds": 2,
            "slabs": [[0, 23]],
            "dataset": "A dataset.",
            "seed": 3,
            "parameters": {
                "nu": 0.03,
                "encoder": {"patch": 15, "latents": 64},
                "cluster_extent": 0.02,
            },
            "intended_use": "Research.",
            "versions": {"torch": "2.13.0"},
            "files": {},
            "makers": [
                {
                    "name": "semi3d-cyclegan-mse",
                    "trained_on": "PET of 35 controls.",
                    "intended_use": "Mapping.",
                }
            ]
            * synthetic,
        }
        write_json(folder / "card.json", card)
        lines = []
        for place, detector in enumerate(DETECTORS):
            strength = 5.0 if (training_set, detector) == ("hybrid", "ocsvm") else 4.0 - 2.5 * place
            for label in CONTROLS if training_set == SETS[0] else ():
                self.add_map("", training_set, detector, label, strength)
            for label in PATIENTS:
                root = "" if training_set == SETS[0] else f"detectors/{training_set}/"
                found = self.add_map(root, training_set, detector, label, strength)
                self.found[training_set, detector, label] = found
            (healthy,) = self.table("C1", self.scores(self.world, "C1", strength))[0]
            lines.append({"participant_id": "sub-C1", "detector": detector, **healthy})
            lines.append({"participant_id": "sub-C2", "detector": detector})  # without clusters
        write_tsv(folder / "control_clusters.tsv", CONTROL, lines)
        maps = [
            {"participant_id": f"sub-{label}", "detector": detector, "above_zero": share}
            for detector in DETECTORS
            for label, share in ABOVE_ZERO.items()
        ]
        write_tsv(folder / "control_maps.tsv", CONTROL_MAP, maps)

    def add_map(self, root, training_set, detector, label, strength):
        stem, folder = f"sub-{label}_trc-18FFDG", f"{root}sub-{label}/pet"
        fold = "mean over all" if label in PATIENTS else 1 + CONTROLS.index(label) % 2
        told = {"Detector": detector, "TrainingSet": training_set, "Fold": fold}
        scores = self.scores(self.world, label, strength)
        lines, labels = self.table(label, scores)
        self.put(folder, f"{stem}_space-{T}_stat-t_desc-{detector}_statmap", scores, **told)
        self.put(folder, f"{stem}_space-{T}_desc-{detector}_dseg", labels, **told)
        if label in PATIENTS:
            table = self.out / folder / f"{stem}_space-{T}_desc-{detector}_clusters.tsv"
            write_tsv(table, CLUSTER, lines)
        if label in PATIENTS and self.own_space:
            own = self.scores(self.own_world, label, strength)
            told |= {
                "SpatialReference": f"bids::sub-{label}/anat/sub-{label}_desc-preproc_T1w.nii.gz"
            }
            place = {"affine": self.own_affine, **told}
            self.put(folder, f"{stem}_space-T1w_stat-t_desc-{detector}_statmap", own, **place)
            own_lines, ranks = self.table(label, own, self.own_world)
            for line in own_lines:
                for number, axis in enumerate("xyz"):
                    line[axis] += MOVED[number]
                    line[f"peak_{axis}"] += MOVED[number]
            write_tsv(
                self.out / folder / f"{stem}_space-T1w_desc-{detector}_clusters.tsv",
                CLUSTER,
                own_lines,
            )
            self.put(folder, f"{stem}_space-T1w_desc-{detector}_dseg", ranks, **place)
        return lines

    def table(self, label, scores, world=None):
        """Find the clusters of a map, and rank them."""
        world = self.world if world is None else world
        parts, count = ndimage.label(scores > 0.5, np.ones((3, 3, 3)))
        sums = ndimage.sum_labels(scores, parts, range(1, count + 1))
        order = np.argsort(-sums)
        labels = np.zeros(scores.shape, np.int16)
        lines = []
        for rank, place in enumerate(order.tolist(), 1):
            inside = parts == place + 1
            labels[inside] = rank
            lines.append(self.line(label, rank, inside, scores, world))
        return lines, labels

    def line(self, label, rank, inside, scores, world):
        x, y, z = world[inside].mean(axis=0).tolist()
        peak = world[inside][scores[inside].argmax()].tolist()
        lesion = label in PATIENTS and np.linalg.norm(world - PATIENTS.get(label, 0), axis=-1) < 16
        overlap = 216.0 * int((inside & lesion).sum()) if label in PATIENTS else 0.0
        return {
            "rank": rank,
            "x": x,
            "y": y,
            "z": z,
            "peak_x": peak[0],
            "peak_y": peak[1],
            "peak_z": peak[2],
            "peak_score": float(scores[inside].max()),
            "volume": 216.0 * int(inside.sum()),
            "side": "left" if x < 0 else "right",
            "mean_score": float(scores[inside].mean()),
            "sum_score": float(scores[inside].sum()),
            "expected_in_control": 0.0 if rank == 1 else 0.5,
            "overlap": overlap if self.lesions else None,
            "region": "Frontal lobe" if rank == 1 else None,
        }

    # Tables

    def add_tables(self):
        lines = [
            {"participant_id": f"sub-{label}", "training_set": name, "detector": kind, **line}
            for (name, kind, label), found in self.found.items()
            for line in found
        ]
        write_tsv(self.out / "clusters.tsv", [*WHO, *HOW, *CLUSTER], lines)
        if not self.lesions:
            return
        rows = [(name, kind) for name in SETS for kind in DETECTORS]
        curve = [self.point(row, unit, n) for row in rows for unit in UNITS for n in range(1, 11)]
        write_tsv(self.out / "detection_curve.tsv", CURVE, curve)
        tests = [
            {
                "unit": unit,
                "clusters": n,
                "training_set_1": one[0],
                "detector_1": one[1],
                "training_set_2": other[0],
                "detector_2": other[1],
                "n": 17,
                "only_1": 6,
                "only_2": 1,
                "p": 0.125,
                "p_holm": 0.75 if n < 10 else 0.0312,
            }
            for unit in UNITS
            for n in range(1, 11)
            for one, other in combinations(rows, 2)
        ]
        write_tsv(self.out / "detection_tests.tsv", TESTS, tests)
        froc = [
            {
                "training_set": row[0],
                "detector": row[1],
                "unit": unit,
                "sum_score": 50.0 - n,
                "false_clusters_per_control": n / 2,
                "sensitivity": self.found_by(row, n) / 17,
            }
            for row in rows
            for unit in UNITS
            for n in range(1, 11)
        ]
        write_tsv(self.out / "detection_froc.tsv", FROC, froc)

    def record(self, *, without=()):
        """Record all maps as of the last run, except those with one of these words in the path."""
        there = maps_on_disk(self.out)
        maps = [one for one in there if not any(word in one.path for word in without)]
        write_run(self.out, ScoredRun("A dataset.", maps))

    def write(self, **run):
        """Write group.html, and return the page."""
        path = write_group_report(self.out, template=TEMPLATE, resolution=RESOLUTION, **run)
        return path.read_text(encoding="utf-8")

    def write_subject(self, label):
        """Write sub-X.html, and return the page."""
        path = write_subject_report(self.out, label, template_t1w=self.template)
        return path.read_text(encoding="utf-8")

    @staticmethod
    def found_by(row, clusters):
        start = 3 + 2 * (row[0] == "hybrid") + (row[1] == "ocsvm")
        return min(start + clusters // 2, 11)

    def point(self, row, unit, clusters):
        found = self.found_by(row, clusters)
        share = found / 17
        return {
            "training_set": row[0],
            "detector": row[1],
            "unit": unit,
            "clusters": clusters,
            "n": 17,
            "found": found,
            "sensitivity": share,
            "low": max(share - 0.2, 0),
            "high": min(share + 0.2, 1),
            "false_clusters_per_patient": clusters - share,
            "false_clusters_per_control": clusters * 0.9,
        }
