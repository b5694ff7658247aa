"""Compare engines that register T1w to MNI space: ANTs as in 0.1, ANTs at 2 mm, SimpleITK and dipy.

Real heads and label maps (whose T1w are simulated, so that their structures are known) are used,
with all brains masked and corrected for the bias field. Every engine gets the same files, one
thread, and a process of its own. After each brain's labels were resampled into template space,
these are measured: Dice of tissues with the template's; Dice between people, structure by
structure; correlation with the template; Jacobian determinants; CPU time and memory. Some label
maps have atrophy (widened ventricles, thinned cortex) or a cavity of 30 mm; the result with the
cavity is compared with that of the same head without it.

    pip install antspyx==0.6.3    # the app itself does not need it
    python benchmarks/registration_engines.py WORK --data DATA --engines ants ants-2mm dipy
    python benchmarks/registration_engines.py WORK --data DATA --report

Results are kept in WORK, so that an interrupted run can be resumed.
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import time
from itertools import combinations
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
os.environ.setdefault("ITK_GLOBAL_DEFAULT_NUMBER_OF_THREADS", "1")

import numpy as np
import SimpleITK as sitk
from nilearn.datasets import (
    load_mni152_brain_mask,
    load_mni152_gm_template,
    load_mni152_template,
    load_mni152_wm_template,
)
from registration import cut_template
from scipy import ndimage, stats

from bids_app import nifti
from bids_app.imaging.similarity import dice
from bids_app.imaging.verdict import classify
from bids_app.imaging.volume import grid_of_box

LPS = np.diag([-1.0, -1.0, 1.0])  # ITK's axes in RAS+
BOX = (-78, -112, -70, 78, 76, 85)  # SPM12's box, which covers the whole cerebellum
FLUID, GREY, WHITE = 1, 2, 3
HALF = 0.5
STRUCTURES = {
    "cortex": (3, 42),
    "white matter": (2, 41),
    "lateral ventricles": (4, 43),
    "thalamus": (10, 49),
    "caudate": (11, 50),
    "putamen": (12, 51),
    "pallidum": (13, 52),
    "hippocampus": (17, 53),
    "amygdala": (18, 54),
    "cerebellar cortex": (8, 47),
    "brainstem": (16,),
}
SUBCORTICAL = ("thalamus", "caudate", "putamen", "pallidum", "hippocampus", "amygdala")
ATROPHY, SEED = 0.8, 7
ATROPHIC, CUT = ("map01", "map02", "map03"), ("map04", "map05", "map06")
CAVITY, CAVITY_AT = 15.0, (-38.0, 10.0, 30.0)  # mm: radius, and centre in MNI space


def prepare_real(source: Path, folder: Path) -> None:
    """Skull-strip a real head, correct its bias field, and segment its tissues."""
    from bids_app.anatomy import brain

    image = nifti.load_scan(source)
    mask, _ = brain.find_brain(image, 1)
    finish(image.data, image.affine, mask, folder)
    t1w = nifti.load(folder / "brain.nii.gz")
    labels = classify(t1w.data, mask).astype(np.int16)
    nifti.save(nifti.Image(labels, image.affine), folder / "labels.nii.gz")


def prepare_map(source: Path, folder: Path) -> None:
    """Simulate the T1w of a label map, with atrophy or a cavity if the folder name says so."""
    from bids_app.simulation import images
    from bids_app.simulation.anatomy import anatomy_from_labels, is_brain
    from bids_app.simulation.geometry import (
        draw_displacement,
        grid_over_box,
        thin_cortex,
        warp_head,
        widen_ventricles,
    )
    from bids_app.simulation.lesions import head_box

    rng = np.random.default_rng([SEED, int(folder.name[3:5])])
    image = nifti.load(source)
    head = anatomy_from_labels(np.rint(image.data).astype(np.int16), image.affine)
    atrophy = ATROPHY if folder.name.endswith("atrophy") else 0.0
    still = draw_displacement(head.grid, rng, strength=0.0)
    moved = widen_ventricles(head, still, atrophy)
    head = warp_head(thin_cortex(head, atrophy), moved, grid_over_box(*head_box(head), 1.0))
    t1w = images.paint_t1w(head.labels, images.random_contrast(rng), rng, head.zooms)
    mask = ndimage.binary_fill_holes(is_brain(head.labels) | (head.labels == 24))
    if folder.name.endswith("cavity"):
        away = np.linalg.norm(head.mni - np.array(CAVITY_AT, np.float32), axis=-1) <= CAVITY
        t1w = np.where(away & mask, t1w[head.labels == 24].mean(), t1w)
    finish(t1w, head.affine, mask, folder)
    nifti.save(nifti.Image(head.labels.astype(np.int16), head.affine), folder / "labels.nii.gz")


def finish(t1w: np.ndarray, affine: np.ndarray, mask: np.ndarray, folder: Path) -> None:
    """Correct the bias field in a separate process, and save the brain."""
    nifti.save(nifti.Image(t1w.astype(np.float32), affine), folder / "t1w.nii.gz")
    nifti.save(nifti.Image(mask, affine), folder / "mask.nii.gz")
    code = (
        "import sys; from pathlib import Path; "
        "from bids_app.anatomy.registration import correct_bias; "
        "f = Path(sys.argv[1]); correct_bias(f/'t1w.nii.gz', f/'mask.nii.gz', f/'n4.nii.gz', "
        "grid=4.0)"
    )
    subprocess.run([sys.executable, "-c", code, str(folder)], check=True)
    corrected = nifti.load(folder / "n4.nii.gz")
    brain = np.where(mask, corrected.data, 0).astype(np.float32)
    nifti.save(nifti.Image(brain, affine), folder / "brain.nii.gz")


def prepare(work: Path, data: Path) -> None:
    """Create the template, and all brains that do not exist yet."""
    template, mask = load_mni152_template(resolution=1), load_mni152_brain_mask(resolution=1)
    brain = np.where(np.asarray(mask.dataobj) > 0, np.asarray(template.dataobj), 0)
    work.mkdir(parents=True, exist_ok=True)
    nifti.save(nifti.Image(brain.astype(np.float32), template.affine), work / "template.nii.gz")
    jobs = []
    for source in sorted(data.glob("labelmaps/training_seg_*.nii.gz")):
        name = f"map{source.name.split('_')[-1][:2]}"
        kinds = ["", "-atrophy" * (name in ATROPHIC), "-cavity" * (name in CUT)]
        jobs += [(name + kind, source, prepare_map) for kind in dict.fromkeys(kinds)]
    for source in sorted(data.glob("ds002748/*/anat/*T1w.nii.gz")):
        jobs.append((source.name.split("_")[0], source, prepare_real))
    for source in sorted(data.glob("heads/*.nii.gz")):
        jobs.append((source.name.split("_")[0], source, prepare_real))
    for name, source, make in jobs:
        folder = work / "brains" / name
        if not (folder / "labels.nii.gz").exists():
            folder.mkdir(parents=True, exist_ok=True)
            make(source, folder)
            print(f"prepared {name}", flush=True)


def grid_image(zoom: float) -> sitk.Image:
    """Create an empty image on the grid of the comparison."""
    grid = grid_of_box(BOX, zoom)
    image = sitk.Image([int(n) for n in grid.shape], sitk.sitkFloat32)
    image.SetSpacing([zoom] * 3)
    image.SetOrigin((LPS @ grid.affine[:3, 3]).tolist())
    image.SetDirection(LPS.ravel().tolist())
    return image


def run_engine(work: Path, engine: str, name: str) -> None:
    """Register one brain and save the results; CPU time is that of the engine only."""
    folder, out = work / "brains" / name, work / "results" / engine / name
    out.mkdir(parents=True, exist_ok=True)
    template, brain = work / "template.nii.gz", folder / "brain.nii.gz"
    before, wall = time.process_time(), time.monotonic()
    transforms = ENGINES[engine](template, brain, out)
    cpu, wall = time.process_time() - before, time.monotonic() - wall
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
    composite = sitk.CompositeTransform([sitk.ReadTransform(str(path)) for path in transforms])
    size = sum(path.stat().st_size for path in out.iterdir()) / 1e6
    fine, coarse = grid_image(1.0), grid_image(2.0)
    moving = sitk.ReadImage(str(brain), sitk.sitkFloat32)
    labels = sitk.ReadImage(str(folder / "labels.nii.gz"), sitk.sitkInt16)
    warped = sitk.GetArrayFromImage(sitk.Resample(moving, fine, composite, sitk.sitkLinear))
    carried = sitk.GetArrayFromImage(
        sitk.Resample(labels, fine, composite, sitk.sitkNearestNeighbor)
    )
    np.savez_compressed(
        out / "result.npz",
        warped=warped.T.astype(np.float32),
        labels=carried.T.astype(np.int16),
        places=places_of(composite, coarse),
    )
    told = {"cpu": cpu, "wall": wall, "memory": memory, "size": size}
    (out / "told.json").write_text(json.dumps(told))
    for path in out.glob("*.h5"):
        path.unlink()
    print(f"{engine} {name}: {cpu:.0f} s of CPU, {memory:.1f} GB", flush=True)


def places_of(transform: sitk.Transform, grid: sitk.Image) -> np.ndarray:
    """Return the points to which a transform maps a grid's voxels: (I, J, K, 3), LPS, mm."""
    large = sitk.Image([9, 9, 9], sitk.sitkFloat64)  # coordinates are linear: exact
    large.SetSpacing([100.0] * 3)
    large.SetOrigin([-400.0] * 3)
    sides = [-400.0 + 100.0 * np.arange(9)] * 3
    found = []
    for values in np.meshgrid(*sides, indexing="ij"):
        image = sitk.GetImageFromArray(np.ascontiguousarray(values.T))
        image.CopyInformation(large)
        moved = sitk.Resample(image, grid, transform, sitk.sitkLinear, 0.0, sitk.sitkFloat64)
        found.append(sitk.GetArrayFromImage(moved).T)
    return np.stack(found, axis=-1).astype(np.float32)


def with_ants(template: Path, brain: Path, out: Path) -> list[Path]:
    """Register as version 0.1 did: by ANTs' SyNQuick at full resolution."""
    import ants

    fixed, moving = ants.image_read(str(template)), ants.image_read(str(brain))
    data = moving.numpy()
    from bids_app.imaging.verdict import winsorize

    ants.registration(
        fixed,
        moving.new_image_like(winsorize(data, data != 0)),
        "antsRegistrationSyNQuick[s]",
        outprefix=f"{out}/",
        write_composite_transform=True,
    )
    return [out / "Composite.h5"]


def with_ants_at_2mm(template: Path, brain: Path, out: Path) -> list[Path]:
    """Register by ANTs at 2 mm, images cropped to the brain: affine, SyN, mutual information."""
    import ants

    from bids_app.imaging.verdict import winsorize

    images = []
    for path in (template, brain):
        image = ants.image_read(str(path))
        data = image.numpy()
        image = image.new_image_like(winsorize(data, data != 0))
        image = ants.crop_image(
            image, ants.iMath(image.new_image_like((data != 0) * 1.0), "MD", 10)
        )
        images.append(ants.resample_image(image, (2, 2, 2), use_voxels=False, interp_type=0))
    ants.registration(
        *images,
        "SyN",
        reg_iterations=(100, 70, 20),
        outprefix=f"{out}/",
        write_composite_transform=True,
    )
    return [out / "Composite.h5"]


def with_dipy(template: Path, brain: Path, out: Path) -> list[Path]:
    """Register as the app does now."""
    from bids_app.anatomy.registration import register_to_template

    there, *_ = register_to_template(brain, template, out / "x_", quick=False, seed=0)
    return [there]


ENGINES = {"ants": with_ants, "ants-2mm": with_ants_at_2mm, "dipy": with_dipy}


def load(work: Path, engine: str, name: str) -> dict:
    """Read the results of a registration."""
    folder = work / "results" / engine / name
    return dict(np.load(folder / "result.npz")) | json.loads((folder / "told.json").read_text())


def template_tissue() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the template's T1w, brain mask, and tissues (fluid, grey, white), on the fine grid."""
    grid = grid_of_box(BOX, 1.0)
    t1w, mask, grey, white = (
        cut_template(make, grid)
        for make in (
            load_mni152_template,
            load_mni152_brain_mask,
            load_mni152_gm_template,
            load_mni152_wm_template,
        )
    )
    tissue = np.where(mask > 0, FLUID, 0)
    tissue[(grey > white) & (grey > HALF)] = GREY
    tissue[(white > grey) & (white > HALF)] = WHITE
    return t1w, mask > 0, tissue


def between_people(labels: dict[str, np.ndarray], groups: dict[str, tuple[int, ...]]) -> np.ndarray:
    """Return each person's Dice with the others, averaged over them: (people, structures)."""
    names = list(labels)
    found = np.full((len(names), len(names), len(groups)), np.nan)
    masks = {name: [np.isin(labels[name], group) for group in groups.values()] for name in names}
    for one, other in combinations(range(len(names)), 2):
        pair = zip(masks[names[one]], masks[names[other]], strict=True)
        found[one, other] = found[other, one] = [dice(a, b) for a, b in pair]
    means: np.ndarray = np.nanmean(found, axis=1)
    return means


def jacobian(places: np.ndarray) -> np.ndarray:
    """Return the Jacobian determinant of a map on the coarse grid; LPS points on a RAS+ grid."""
    steps = [np.stack(np.gradient(places[..., axis], 2.0), -1) for axis in range(3)]
    found: np.ndarray = np.linalg.det(np.stack(steps, -2)) * np.linalg.det(LPS)
    return found


def difference(one: np.ndarray, other: np.ndarray) -> str:
    """Format the mean difference of two measures, with its 95 % interval over people."""
    gap = one - other
    mean = gap.mean()
    if len(gap) < 3:
        return f"{mean:+.3f}"
    half = stats.t.ppf(0.975, len(gap) - 1) * gap.std(ddof=1) / np.sqrt(len(gap))
    return f"{mean:+.3f} ({mean - half:+.3f} to {mean + half:+.3f})"


def report(work: Path, engines: list[str]) -> None:
    """Print all tables, in Markdown, over the brains that all engines have registered."""
    done = [
        {path.parent.name for path in (work / "results" / engine).glob("*/told.json")}
        for engine in engines
    ]
    names = sorted(set.intersection(*done))
    real = [name for name in names if not name.startswith("map")]
    maps = [name for name in names if name.startswith("map") and "-" not in name]
    changed = len(names) - len(real) - len(maps)
    print(f"{len(real)} real heads, {len(maps)} label maps, {changed} modified ones")
    results = {engine: {name: load(work, engine, name) for name in names} for engine in engines}
    tissues = {"fluid": (FLUID,), "grey": (GREY,), "white": (WHITE,)}
    print_template(results, real, maps)
    for people, groups in ((real, tissues), (maps, STRUCTURES)):
        print_between(results, people, groups)
    print_shape(results, names)
    print_changed(results, names, maps)


def print_template(results: dict, real: list[str], maps: list[str]) -> None:
    """Print the agreement of brains with the template."""
    t1w, brain, tissue = template_tissue()
    print("\nAgainst the template\n\n| | fluid | grey | white | r, real | r, maps |")
    print("|---|---|---|---|---|---|")
    for engine, of in results.items():
        overlaps = [
            [dice(of[name]["labels"] == t, tissue == t) for t in (FLUID, GREY, WHITE)]
            for name in real
        ]
        alike = [
            np.mean([np.corrcoef(of[name]["warped"][brain], t1w[brain])[0, 1] for name in group])
            for group in (real, maps)
        ]
        cells = [f"{value:.3f}" for value in (*np.mean(overlaps, axis=0), *alike)]
        print(f"| {engine} | " + " | ".join(cells) + " |")


def print_between(results: dict, people: list[str], groups: dict[str, tuple[int, ...]]) -> None:
    """Print the agreement between people, and how the last engine differs from the others."""
    scores = {
        engine: between_people({name: of[name]["labels"] for name in people}, groups)
        for engine, of in results.items()
    }
    engines = list(results)
    last, others = engines[-1], engines[:-1]
    heads = [f"{last} − {other}" for other in others]
    print(f"\nBetween {len(people)} people\n\n| Dice | " + " | ".join(engines + heads) + " |")
    print("|---" * (1 + len(engines) + len(others)) + "|")
    rows = {name: [index] for index, name in enumerate(groups)}
    if "thalamus" in groups:
        rows["subcortical, mean"] = [list(groups).index(name) for name in SUBCORTICAL]
    for name, columns in rows.items():
        own = {engine: scores[engine][:, columns].mean(axis=1) for engine in engines}
        cells = [f"{own[engine].mean():.3f}" for engine in engines]
        cells += [difference(own[last], own[other]) for other in others]
        print(f"| {name} | " + " | ".join(cells) + " |")


def print_shape(results: dict, names: list[str]) -> None:
    """Print Jacobian determinants, and the time and memory of a registration."""
    brain = template_tissue()[1][::2, ::2, ::2]
    print(
        "\n| | Jacobian, 0.1 to 99.9 % | folded voxels | CPU s | wall s | GB | MB of transforms |"
    )
    print("|---|---|---|---|---|---|---|")
    for engine, of in results.items():
        inside = [
            jacobian(of[name]["places"])[brain[: of[name]["places"].shape[0]]] for name in names
        ]
        low, high = np.mean([np.percentile(values, (0.1, 99.9)) for values in inside], axis=0)
        folds = sum(int((values <= 0).sum()) for values in inside)
        taken = [
            np.mean([of[name][key] for name in names]) for key in ("cpu", "wall", "memory", "size")
        ]
        cells = [f"{low:.2f} to {high:.2f}", str(folds), *(f"{value:.1f}" for value in taken)]
        print(f"| {engine} | " + " | ".join(cells) + " |")


def print_changed(results: dict, names: list[str], maps: list[str]) -> None:
    """Print the effects of atrophy and of a cavity."""
    print("\n| | ventricles | subcortical, mean | cavity: mm moved, mean | 99th percentile |")
    print("|---|---|---|---|---|")
    groups = {"ventricles": STRUCTURES["lateral ventricles"]}
    groups |= {name: STRUCTURES[name] for name in SUBCORTICAL}
    for engine, of in results.items():
        scores = []
        for name in names:
            if not name.endswith("atrophy"):
                continue
            others = [other for other in maps if other != name[:5]]
            scores.append(
                [
                    [
                        dice(
                            np.isin(of[name]["labels"], group), np.isin(of[other]["labels"], group)
                        )
                        for group in groups.values()
                    ]
                    for other in others
                ]
            )
        found = np.mean(scores, axis=(0, 1)) if scores else np.full(len(groups), np.nan)
        moved = [cavity_moves(of[name], of[name[:5]]) for name in names if name.endswith("cavity")]
        mean, far = np.mean(moved, axis=0) if moved else (np.nan, np.nan)
        cells = [f"{found[0]:.3f}", f"{found[1:].mean():.3f}", f"{mean:.2f}", f"{far:.2f}"]
        print(f"| {engine} | " + " | ".join(cells) + " |")


def cavity_moves(cut_out: dict, whole: dict) -> tuple[float, float]:
    """Return how far a cavity moves the brain beyond 10 mm from its edge: mean and P99, in mm."""
    grid = grid_of_box(BOX, 2.0)
    places = np.moveaxis(np.indices(grid.shape), 0, -1) * 2.0 + grid.affine[:3, 3]
    brain = template_tissue()[1][::2, ::2, ::2]
    away = np.linalg.norm(places - np.array(CAVITY_AT), axis=-1) > CAVITY + 10
    gap = np.linalg.norm(cut_out["places"] - whole["places"], axis=-1)[brain & away]
    return float(gap.mean()), float(np.percentile(gap, 99))


def main() -> None:
    """Run the missing registrations, and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("work", type=Path)
    parser.add_argument("--data", type=Path, help="folder of labelmaps/, ds002748/ and heads/")
    parser.add_argument("--engines", nargs="+", default=list(ENGINES), choices=ENGINES)
    parser.add_argument("--names", nargs="+", help="names of brains; default: all")
    parser.add_argument("--one", nargs=2, help=argparse.SUPPRESS)
    parser.add_argument("--report", action="store_true", help="only print the tables")
    arguments = parser.parse_args()
    if arguments.one:
        run_engine(arguments.work, *arguments.one)
        return
    if not arguments.report:
        prepare(arguments.work, arguments.data)
        names = arguments.names or sorted(
            path.name for path in (arguments.work / "brains").iterdir()
        )
        for name, engine in ((name, engine) for name in names for engine in arguments.engines):
            if not (arguments.work / "results" / engine / name / "told.json").exists():
                command = [sys.executable, __file__, arguments.work, "--one", engine, name]
                subprocess.run([str(word) for word in command], check=False)
    report(arguments.work, arguments.engines)


if __name__ == "__main__":
    main()
