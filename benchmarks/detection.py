"""Do synthetic controls help? The paper's experiment on simulated cohorts with known lesions.

For each seed, controls with T1w and PET, controls with only T1w, and patients with lesions are
simulated. Generators are trained on the paired controls only. Detectors are trained on real PET,
and on real PET with the synthetic PET of the T1w-only controls from a semi-3D and from a 3D-patch
generator. Everything is done by the app's own commands, and steps that are complete are not
repeated.

    python benchmarks/detection.py WORK --anatomies DIR --seeds 1 2 3
    python benchmarks/detection.py WORK --seeds 1 2 3 --report     tables of existing results
    python benchmarks/detection.py WORK --anatomies DIR --seeds 1 2 3 --real-only
                                                        detectors only, without generators

``WORK/seed-N/`` holds cohort and results; tables and a figure over all seeds go to ``WORK``.
"""

import argparse
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from matplotlib import pyplot as plt

from bids_app import nifti
from bids_app.app.run import RELEASE
from bids_app.derivatives.detections import root_of, write_curve, write_tests
from bids_app.detection.clusters import Cluster, separate_lesions
from bids_app.detection.detectors import DETECTORS
from bids_app.detection.evaluation import CurvePoint, Finding, compare, detection_curve, marks_of
from bids_app.files import read_json

SHOWN = (1, 3, 5, 10)  # reported numbers of clusters per patient
SEMI3D, PATCH3D = "semi3d-gan-mse", "patch3d-gan-mse"
SETS = {
    ("semi3d", "real"): "real",
    ("semi3d", "hybrid"): "hybrid semi3d",
    ("patch3d", "hybrid"): "hybrid patch3d",
}


def call(*words: object) -> None:
    """Run one of the app's commands and print how long it took."""
    started = time.monotonic()
    name, *rest = (str(word) for word in words)
    print("$", name, *rest, flush=True)
    code = subprocess.run([Path(sys.executable).with_name(name), *rest], check=False).returncode
    print(f"  {time.monotonic() - started:.0f} s, exit code {code}", flush=True)
    if code:
        sys.exit(code)


def simulate(bids: Path, seed: int, given: argparse.Namespace) -> None:
    """Simulate a cohort, unless it exists."""
    done = bids.with_name("simulated")
    if done.exists():
        return
    shutil.rmtree(bids, ignore_errors=True)
    anatomies = () if given.anatomies is None else ("--anatomies", given.anatomies)
    call(
        "mri2pet-simulate",
        bids,
        "--paired",
        given.paired,
        "--t1w-only",
        given.t1w_only,
        "--patients",
        given.patients,
        "--seed",
        seed,
        "--nprocs",
        given.nprocs,
        *anatomies,
        "--resolution",
        given.simulated_resolution,
        "--lesion-depth",
        *given.lesion_depth,
    )
    done.touch()


def run_seed(folder: Path, seed: int, given: argparse.Namespace) -> None:
    """Run all steps of one seed."""
    folder.mkdir(parents=True, exist_ok=True)
    bids, semi, patch = folder / "bids", folder / "semi3d", folder / "patch3d"
    simulate(bids, seed, given)
    grid = ("--resolution", given.resolution, "--nprocs", given.nprocs)
    level = ("participant", "--sloppy", *grid, "--omp-nthreads", 1, "--stage")
    call("mri2pet", bids, semi, *level, "preprocess")
    lesions = f"lesions={bids / 'derivatives' / 'truth'}"
    if given.real_only:
        names = [name for name in DETECTORS if not DETECTORS[name].synthetic]
        call("mri2pet", bids, semi, "group", *grid, "--detectors", *names, "-d", lesions)
        return
    for model, epochs in ((SEMI3D, given.epochs), (PATCH3D, given.patch_epochs)):
        call(
            "mri2pet",
            bids,
            semi,
            "train",
            *grid,
            "--width",
            given.width,
            "--folds",
            2,
            "--models",
            model,
            "--epochs",
            epochs,
        )
    copied = patch.with_name("copied")
    if not copied.exists():
        shutil.rmtree(patch, ignore_errors=True)
        shutil.copytree(semi, patch, ignore=shutil.ignore_patterns(".work", "*_desc-synth_*"))
        copied.touch()
    for out, generator, sets, detectors in (
        (semi, SEMI3D, ("real", "hybrid"), tuple(DETECTORS)),
        (patch, PATCH3D, ("hybrid",), ("ocsvm", "zscore", "combined")),
    ):
        call(
            "mri2pet",
            bids,
            out,
            *level,
            "synthesize",
            "--generator",
            out / "generators" / generator,
        )
        call(
            "mri2pet",
            bids,
            out,
            "group",
            *grid,
            "--training-set",
            *sets,
            "--detectors",
            *detectors,
            "-d",
            lesions,
        )


def findings(folder: Path, seed: int) -> Iterator[Finding]:
    """Yield the findings of all people of a seed, read from the app's work folder."""
    for (out, training_set), name in SETS.items():
        for path in sorted(
            (folder / out / ".work" / RELEASE / "clusters" / training_set).glob("*/*.json")
        ):
            told = read_json(path)
            clusters = [Cluster(**values) for values in told["clusters"]]
            lesions = told["lesions"] if told["lesions"] else 0
            shared = np.array(told["overlaps"] if lesions else [], float)
            marks = marks_of(clusters, shared.reshape(len(clusters), lesions))
            who = f"{seed:02}{path.stem.split('_')[2]}"
            yield Finding(name, path.parent.name, who, None, lesions, marks)


def hit_by_chance(work: Path, seeds: list[int], out: str, training_set: str, detector: str) -> None:
    """Print how often clusters of healthy held-out controls lie at the lesion sites of patients."""
    firsts: list[int] = []
    for seed in seeds:
        root = work / f"seed-{seed}" / out
        maps = root_of(root, training_set, primary=training_set == "real" or out == "patch3d")
        found = maps.glob(f"sub-control*/pet/*space-MNI*desc-{detector}_dseg.nii.gz")
        ranks = [nifti.load(path).data for path in sorted(found)]
        for path in sorted(root.glob("sub-patient*/anat/*label-L_mask.nii.gz")):
            mask = nifti.load(path)
            lesions = separate_lesions(mask.data > 0, mask.affine)
            for number in range(1, int(lesions.max()) + 1):
                inside = (rank[(lesions == number) & (rank > 0)] for rank in ranks)
                firsts += [int(ranks.min()) if ranks.size else sys.maxsize for ranks in inside]
    for clusters in SHOWN if firsts else ():
        share = np.mean(np.array(firsts) <= clusters)
        name = SETS[out, training_set]
        print(f"{name:15} {detector:13} {clusters:2} clusters of a control: {share:.2f}")


def is_patient(finding: Finding) -> bool:
    """Return whether a finding is of a patient rather than a held-out control, by its label."""
    return "patient" in finding.participant


def tell(points: list[CurvePoint]) -> None:
    """Print sensitivities over lesions."""
    for point in points:
        if point.unit == "lesion" and point.clusters in SHOWN:
            print(
                f"{point.training_set:15} {point.detector:13} {point.clusters:2} clusters: "
                f"{point.found}/{point.n} = {point.sensitivity:.2f} "
                f"({point.low:.2f} to {point.high:.2f})"
            )


def draw(points: list[CurvePoint], path: Path) -> None:
    """Plot sensitivity over lesions like Figure 4 of the paper, with a panel per detector."""
    lesions = [point for point in points if point.unit == "lesion"]
    known = [name for name in DETECTORS if any(p.detector == name for p in lesions)]
    figure, panels = plt.subplots(1, len(known), figsize=(3 * len(known), 4), sharey=True)
    for panel, detector in zip(panels, known, strict=True):
        for name in SETS.values():
            own = [p for p in lesions if (p.training_set, p.detector) == (name, detector)]
            across = [p.clusters for p in own]
            if own:
                panel.plot(across, [p.sensitivity for p in own], marker="o", label=name)
                panel.fill_between(across, [p.low for p in own], [p.high for p in own], alpha=0.15)
        panel.set(title=detector, xlabel="clusters kept per patient", ylim=(0, 1))
        panel.legend(loc="upper left")
    panels[0].set_ylabel("lesions found")
    figure.tight_layout()
    figure.savefig(path, dpi=90)


def report(work: Path, seeds: list[int]) -> None:
    """Print sensitivities per seed; print, write and plot curves over all seeds; write tests."""
    everyone = {seed: list(findings(work / f"seed-{seed}", seed)) for seed in seeds}
    for seed, found in everyone.items():
        print(f"seed {seed}")
        tell(detection_curve([subject for subject in found if is_patient(subject)]))
    found = [subject for seed in seeds for subject in everyone[seed]]
    patients = [subject for subject in found if is_patient(subject)]
    points = detection_curve(patients, [subject for subject in found if not is_patient(subject)])
    print("all seeds")
    tell(points)
    write_curve(work, points)
    draw(points, work / "detection_curve.png")
    write_tests(work, compare(patients))
    print("share of lesions that clusters of healthy controls would have found")
    for out, training_set in SETS:
        for detector in DETECTORS:
            hit_by_chance(work, seeds, out, training_set, detector)


def main() -> None:
    """Run all seeds, then write the tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("work", type=Path)
    parser.add_argument("--anatomies", type=Path)
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--paired", type=int, default=12)
    parser.add_argument("--t1w-only", type=int, default=12)
    parser.add_argument("--patients", type=int, default=12)
    parser.add_argument("--lesion-depth", type=float, nargs=2, default=[20, 50])
    parser.add_argument("--simulated-resolution", type=float, default=1.5)
    parser.add_argument("--resolution", type=float, default=3)
    parser.add_argument("--width", type=int, default=16)
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--patch-epochs", type=int, default=5)
    parser.add_argument("--nprocs", type=int, default=2)
    parser.add_argument("--real-only", action="store_true", help="train no generators")
    parser.add_argument("--report", action="store_true")
    given = parser.parse_args()
    work = given.work.absolute()
    for seed in [] if given.report else given.seeds:
        run_seed(work / f"seed-{seed}", seed, given)
    report(work, given.seeds)


if __name__ == "__main__":
    main()
