"""Measure how much synthetic controls help a detector, and how much they could help at most.

    python benchmarks/synthetic_controls.py WORK --seeds 301 302 303
    python benchmarks/synthetic_controls.py WORK --seeds 301 302 303 --mirrored 0.5
    python benchmarks/synthetic_controls.py WORK --seeds 301 302 303 --report

The experiment of Zotova et al. (2021) at its size: 35 controls with T1w and PET, 40 controls of
whom detectors know only the T1w, and 34 patients with one or two lesions, twice as many as there;
and the same with 12 controls instead of 35. People are painted in template space at 1.5 mm, like
those of ``mri2pet-simulate``, and resampled to a 3 mm grid, without registration and folds.
Generators are trained only on the pairs: the tissue model, and semi-3D and 3D-patch Simple-GANs
with MSE of width 16. The simulator also knows the PET of the 40, so 75 real controls are what a
perfect generator would achieve.

Each patient is scored with lesions and without them (same noise); clusters found in the latter are
false. ``--mirrored`` is the share of the variance of uptake among people that is the same on both
sides. Results are kept in WORK; to resume, give the same command again. Some 30 CPU minutes per
seed.
"""

import argparse
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from matplotlib import pyplot as plt
from scipy import stats
from torch import nn

from bids_app.detection.autoencoder import latents_at, reconstruction_errors, train_encoder
from bids_app.detection.card import EncoderSpec
from bids_app.detection.clusters import find_clusters, overlaps, separate_lesions
from bids_app.detection.evaluation import common_brain
from bids_app.detection.normative import MEASURES, fit_norm, score_against, smooth_within
from bids_app.detection.oneclass import VoxelwiseOneClassSVM
from bids_app.detection.voxelwise import pets_of, sign_scores
from bids_app.imaging.intensity import TIMES_MEAN, scale_to_unit
from bids_app.imaging.similarity import measure
from bids_app.imaging.volume import Mask, Volume, count_cubes, cube_sides, grid_of_box
from bids_app.nifti import Owner
from bids_app.settings import SCORE_FWHM, Settings
from bids_app.simulation import images
from bids_app.simulation.anatomy import is_in_skull
from bids_app.simulation.cohort import AGES, template_anatomy
from bids_app.simulation.geometry import draw_displacement, thin_cortex, warp_head, widen_ventricles
from bids_app.simulation.lesions import draw_lesions, factor_of, mask_of
from bids_app.simulation.person import draw_atrophy
from bids_app.synthesis.evaluation import smooth_in_brain
from bids_app.synthesis.inference import predict
from bids_app.synthesis.job import choose_precision, make_fabric, mean_ssim
from bids_app.synthesis.models import CUBE, MODELS, TissueSpec
from bids_app.synthesis.pairs import Volumes, usable_pairs
from bids_app.synthesis.tiling import SliceTriplets, overlap
from bids_app.synthesis.tissue import TissueModel, fit_tissue_model
from bids_app.synthesis.training import Fit, Training, resume_training

PAINTED, RESOLUTION = 1.5, 3.0  # mm
FINE, GRID = (grid_of_box(Settings.bounding_box, size) for size in (PAINTED, RESOLUTION))
EVERY = (slice(None, None, 2),) * 3  # voxels of the fine grid that are on the coarse grid
FINE_ZOOMS, ZOOMS = (PAINTED,) * 3, (RESOLUTION,) * 3
AFFINE = tuple(map(tuple, GRID.affine.tolist()))
PAIRED, FEW, T1W_ONLY = 35, 12, 40
PATIENTS = 34  # twice the paper's, for narrower intervals
STRENGTH = 0.4  # of the warp; low, because people have been registered to the template
RESIDUAL_BIAS = 0.25  # share of the bias field that remains after N4
FWHM = 8.0  # mm, smoothing of the images that norms compare
WIDTH, LEFT_OUT = 16, 7  # of networks; number of validation pairs
GENERATORS = {"tissue": "tissue", "semi-3D": "semi3d-gan-mse", "3D-patch": "patch3d-gan-mse"}
MATCH_FWHM, MOST_STRETCH = 8.0, 3.0  # mm, smoothing of the moments; bound; our choice
SHOWN = (1, 3, 10)
PLACES = 4000  # reconstructed patches
DRAWS = 2000  # bootstrap samples of patients, for intervals of differences
NEVER = 10_000  # rank of a lesion that is not found


@dataclass(frozen=True)
class Person:
    """T1w, PET without and with lesions, brain mask and numbered lesions in template space."""

    t1w: Volume
    well: Volume
    ill: Volume
    brain: Mask
    lesions: np.ndarray


def paint(rng: np.random.Generator, depths: tuple[float, float] | None) -> Person:
    """Simulate a person, with lesions if ``depths`` is given."""
    anatomy = template_anatomy(2)
    atrophy = draw_atrophy(rng.uniform(*AGES), rng)
    warp = draw_displacement(anatomy.grid, rng, strength=STRENGTH)
    warp = widen_ventricles(anatomy, warp, atrophy)
    head = warp_head(thin_cortex(anatomy, atrophy), warp, FINE)
    brain = is_in_skull(head.labels)
    contrast = images.random_contrast(rng)
    contrast = replace(contrast, bias=RESIDUAL_BIAS * contrast.bias)
    t1w = images.paint_t1w(head.labels, contrast, rng, FINE_ZOOMS)
    uptake = images.draw_uptake(images.usual_pattern(), rng)
    well, scanner = images.activity(head, uptake), images.draw_scanner(rng)
    ill, mask = well.copy(), np.zeros(brain.shape, bool)
    for lesion in draw_lesions(head, rng, depths) if depths else ():
        ill *= factor_of(lesion, head.labels, head.affine)
        mask |= mask_of(lesion, head.labels, head.affine)
    noise = int(rng.integers(1 << 31))
    inside = brain[EVERY]
    pets = []
    for volume in (well, ill):
        clean, chance = images.blur(volume, scanner, FINE_ZOOMS), np.random.default_rng(noise)
        pet = images.acquire(clean, scanner, np.array([1200.0]), FINE_ZOOMS, chance)[..., 0]
        pets.append(scale_to_unit(pet[EVERY], inside, times_mean=TIMES_MEAN))
    lesions = separate_lesions(np.ascontiguousarray(mask[EVERY]), GRID.affine)
    return Person(scale_to_unit(t1w[EVERY], inside), *pets, np.ascontiguousarray(inside), lesions)


def people_of(folder: Path, seed: int, kind: int, number: int, **how: object) -> list[Person]:
    """Return people of a cohort, simulated unless they exist."""
    made = []
    for place in range(number):
        path = folder / f"person_{kind}_{place:02}.npz"
        if not path.exists():
            person = paint(np.random.default_rng([seed, kind, place]), **how)
            np.savez(path, **vars(person))
        with np.load(path) as kept:
            made.append(Person(**{name: kept[name] for name in kept}))
    return made


def volumes_of(people: Sequence[Person]) -> list[Volumes]:
    """Convert people to the input of training."""
    return [
        Volumes(Owner(f"{place}", None, AFFINE), one.t1w, one.well, one.brain)
        for place, one in enumerate(people)
    ]


def learn(row: str, pairs: Sequence[Volumes], seed: int, epochs: int) -> nn.Module:
    """Train a generator; for networks, keep the epoch that is best on a few held-out pairs."""
    if row == "tissue":
        sides = cube_sides(CUBE, ZOOMS)
        spec = TissueSpec(sides, count_cubes(GRID.shape, sides))
        return fit_tissue_model(spec, pairs, times_mean=TIMES_MEAN)
    spec = replace(
        MODELS[row],
        width=WIDTH,
        epochs=epochs,
        constant_epochs=epochs // 2,
        validation_interval=max(1, epochs // 5),
        patience=epochs,
    )
    fabric = make_fabric("cpu", choose_precision("cpu"))
    training = Training(spec, fabric, torch.Generator().manual_seed(seed))
    fit = Fit(training)

    def validate(network: nn.Module) -> float:
        return mean_ssim(network, pairs[:LEFT_OUT], spec, Settings.smoothing_fwhm)

    for _ in resume_training(
        fit, usable_pairs(pairs[LEFT_OUT:], spec), validate=validate, last_epoch=epochs
    ):
        pass
    generator = training.generators[0]
    if fit.kept:
        generator.load_state_dict(fit.kept)
    return generator.eval()


def synthesize(row: str, generator: nn.Module, people: Sequence[Person]) -> list[Volume]:
    """Synthesize PET as ``participant`` does."""
    if isinstance(generator, TissueModel):
        tiling = generator.spec.tiling
    else:
        tiling = MODELS[row].tiling
        tiling = overlap(tiling) if isinstance(tiling, SliceTriplets) else tiling
    how = {"fwhm": Settings.smoothing_fwhm, "zooms": ZOOMS}
    return [smooth_in_brain(predict(p.t1w, generator, tiling), p.brain, **how) for p in people]


def match(made: Sequence[Volume], real: Sequence[Volume], brain: Mask) -> list[Volume]:
    """Match mean and SD of synthetic PET to those of real PET, voxel by voxel."""

    def moments(volumes: Sequence[Volume]) -> tuple[Volume, Volume]:
        mean, squares = np.mean(volumes, axis=0), np.mean(np.square(volumes), axis=0)
        mean, squares = (
            smooth_within(x.astype(np.float32), brain, fwhm=MATCH_FWHM, zooms=ZOOMS)
            for x in (mean, squares - np.square(mean))
        )
        return mean, np.sqrt(np.maximum(squares, 1e-8))

    (own, own_sd), (wanted, wanted_sd) = moments(made), moments(real)
    stretch = np.clip(wanted_sd / own_sd, 1 / MOST_STRETCH, MOST_STRETCH)
    matched = (np.clip(wanted + (volume - own) * stretch, 0, 1) for volume in made)
    return [np.where(brain, volume, 0).astype(np.float32) for volume in matched]


def norm_maps(
    name: str, train: Sequence[Sequence[Volume]], others: Sequence[Sequence[Volume]], brain: Mask
) -> dict[str, list[Volume]]:
    """Score others against norms of controls; each is a PET, with its synthetic PET if needed."""
    how = {"fwhm": FWHM, "affine": GRID.affine}
    norms = [
        fit_norm((how_much(*own, brain, **how) for own in train), brain)
        for how_much in MEASURES[name]
    ]
    seen = [[how_much(*own, brain, **how) for how_much in MEASURES[name]] for own in others]
    return {
        f"{name}, {direction}": [score_against(norms, own, name, direction) for own in seen]
        for direction in ("hypo", "both")
    }


def svm_maps(
    train: Sequence[Volume],
    others: Sequence[Volume],
    brain: Mask,
    *,
    seed: int,
    spec: EncoderSpec,
    checked: Sequence[Volume] = (),
) -> tuple[dict[str, list[Volume]], list[tuple[float, float, float]]]:
    """Score by one one-class SVM per voxel, as in the paper and as in the app.

    For each of ``checked``, also return the reconstruction error, the mean score, and the share of
    the brain above 0. Volumes may have channels, with the PET first.
    """
    train, scored = (
        [np.where(brain, one, 0).astype(np.float32) for one in some]
        for some in (train, [*others, *checked])
    )
    encoder, _ = train_encoder(train, brain, spec, seed=seed)
    plain = np.zeros((len(scored), *brain.shape), np.float32)
    signed = np.zeros_like(plain)
    for k in range(brain.shape[2]):
        own = brain[..., k]
        if not own.any():
            continue
        here = np.stack([one[..., k] for one in train])
        there = np.stack([one[..., k] for one in scored])
        latents = latents_at(encoder, here, own)
        mean = latents.mean(axis=1, keepdims=True)
        fitted = VoxelwiseOneClassSVM(nu=Settings.nu, threads=1).fit(latents - mean)
        found = -fitted.decision_function(latents_at(encoder, there, own) - mean).T
        plain[:, own, k] = found
        less = pets_of(here).mean(axis=0)[own] - pets_of(there)[:, own]
        signed[:, own, k] = sign_scores(found.astype(np.float32), less)
    number = len(others)
    soft, signed = (
        [smooth_within(one, brain, fwhm=SCORE_FWHM, zooms=ZOOMS) for one in some[:number]]
        for some in (plain, signed)
    )
    maps = {"ocsvm, paper": list(plain[:number]), "ocsvm, hypo": signed, "ocsvm, both": soft}
    places = np.argwhere(brain)
    places = places[np.random.default_rng(0).choice(len(places), PLACES)]
    told = []
    for volume, scores in zip(scored[number:], plain[number:], strict=True):
        error = float(reconstruction_errors(encoder, volume, places).mean())
        own = scores[brain]
        told.append((error, float(own.mean()), float((own > 0).mean())))
    return maps, told


def clusters_of(person: Person, score: Volume, brain: Mask) -> dict[str, list]:
    """Find clusters; return their sums by rank, and the rank of the first to hit each lesion."""
    inside = brain & person.brain & ~np.isnan(score)
    found, labels = find_clusters(
        np.where(inside, score, 0).astype(np.float32),
        inside,
        GRID.affine,
        extent=Settings.cluster_extent,
        minimum_volume=Settings.min_cluster_size,
    )
    shared = overlaps(labels, person.lesions, RESOLUTION**3) > 0
    first = [int(column.argmax()) + 1 if column.any() else NEVER for column in shared.T]
    return {"sums": [cluster.sum_score for cluster in found], "ranks": first}


Sets = dict[str, list[Volume]]


@dataclass(frozen=True)
class Cohort:
    """People of a seed, synthetic PET, and the brain mask that all controls share."""

    paired: list[Person]
    t1w_only: list[Person]
    patients: list[Person]
    made: Sets
    brain: Mask


def own_synthetic(
    folder: Path, paired: Sequence[Person], patients: Sequence[Person], seed: int
) -> Sets:
    """Return synthetic PET of patients, and of controls by models not trained on them."""
    pairs, path = volumes_of(paired), folder / "own.npz"
    if not path.exists():
        halves = [slice(0, None, 2), slice(1, None, 2)]
        own = np.zeros((PAIRED, *GRID.shape), np.float32)
        for half, other in zip(halves, halves[::-1], strict=True):
            own[half] = synthesize("tissue", learn("tissue", pairs[other], seed, 0), paired[half])
        whole = learn("tissue", pairs, seed, 0)
        np.savez(path, controls=own, patients=np.stack(synthesize("tissue", whole, patients)))
    with np.load(path) as kept:
        return {"controls": list(kept["controls"]), "patients": list(kept["patients"])}


def cohort_of(folder: Path, seed: int, given: argparse.Namespace) -> Cohort:
    """Simulate a cohort, and train generators on it."""
    folder.mkdir(parents=True, exist_ok=True)
    depths = (given.lesion_depth[0] / 100, given.lesion_depth[1] / 100)
    paired = people_of(folder, seed, 0, PAIRED, depths=None)
    t1w_only = people_of(folder, seed, 1, T1W_ONLY, depths=None)
    patients = people_of(folder, seed, 2, PATIENTS, depths=depths)
    pairs, made = volumes_of(paired), Sets()
    epochs = {"semi-3D": given.epochs, "3D-patch": given.patch_epochs}
    for name, row in GENERATORS.items():
        path = folder / f"made_{row}.npy"
        if not path.exists():
            generator = learn(row, pairs, seed, epochs.get(name, 0))
            np.save(path, np.stack(synthesize(row, generator, t1w_only)))
        made[name] = list(np.load(path))
        scores = [
            measure(pet, one.well, one.brain) for pet, one in zip(made[name], t1w_only, strict=True)
        ]
        ssim, psnr = (np.mean([getattr(s, f"{x}_brain") for s in scores]) for x in ("ssim", "psnr"))
        print(f"seed {seed}, {name}: SSIM {ssim:.3f}, PSNR {psnr:.1f} dB in the brain", flush=True)
    path = folder / "made_few.npy"  # by a tissue model of few pairs
    if not path.exists():
        few = learn("tissue", pairs[:FEW], seed, 0)
        np.save(path, np.stack(synthesize("tissue", few, t1w_only)))
    made["few"] = list(np.load(path))
    made |= own_synthetic(folder, paired, patients, seed)
    brain = common_brain([one.brain for one in paired])
    return Cohort(paired, t1w_only, patients, made, brain)


def sets_of(cohort: Cohort) -> Sets:
    """Return the training sets."""
    real = [one.well for one in cohort.paired]
    others = [one.well for one in cohort.t1w_only]
    sets = {"35 real": real, "75 real": [*real, *others]}
    for name in GENERATORS:
        made = cohort.made[name]
        sets[f"35 real + 40 synthetic, {name}"] = [*real, *made]
        if name != "3D-patch":
            matched = match(made, real, cohort.brain)
            sets[f"35 real + 40 synthetic, {name}, matched"] = [*real, *matched]
    sets["40 synthetic, tissue"] = cohort.made["tissue"]
    sets[f"{FEW} real"] = real[:FEW]
    sets[f"{FEW} real + 40 synthetic, tissue"] = [*real[:FEW], *cohort.made["few"]]
    sets[f"{FEW} real + 40 real"] = [*real[:FEW], *others]
    return sets


def run_seed(folder: Path, seed: int, given: argparse.Namespace) -> None:
    """Run all steps of one seed."""
    cohort = cohort_of(folder, seed, given)
    pets = [one.ill for one in cohort.patients] + [one.well for one in cohort.patients]
    for name, train in sets_of(cohort).items():
        path = folder / f"found_{name.replace(' ', '_').replace(',', '')}.json"
        if path.exists():
            continue
        maps: dict[str, list[Volume]] = {}
        for norm in ("zscore", "combined"):
            maps |= norm_maps(norm, [[pet] for pet in train], [[pet] for pet in pets], cohort.brain)
        told: dict[str, object] = {"set": name}
        checked: list[Volume] = []
        if name == "35 real":
            own = list(map(list, zip(train, cohort.made["controls"], strict=True)))
            there = list(map(list, zip(pets, cohort.made["patients"] * 2, strict=True)))
            maps |= norm_maps("pseudonormal", own, there, cohort.brain)
            checked = [one.well for one in cohort.t1w_only]
            checked += [pet for row in GENERATORS for pet in cohort.made[row]]
        svm, seen = svm_maps(
            train, pets, cohort.brain, seed=seed, spec=EncoderSpec(), checked=checked
        )
        maps |= svm
        people = [*cohort.patients, *cohort.patients]
        told["found"] = {
            detector: [
                clusters_of(person, score, cohort.brain)
                for person, score in zip(people, scores, strict=True)
            ]
            for detector, scores in maps.items()
        }
        kinds = ["real", *GENERATORS]
        told["checked"] = {
            kind: seen[place * T1W_ONLY : (place + 1) * T1W_ONLY]
            for place, kind in enumerate(kinds)
            if seen
        }
        path.write_text(json.dumps(told))
        print(f"seed {seed}: {name}", flush=True)


Found = dict[str, dict[str, dict[int, list[dict[str, list]]]]]  # set → detector → seed → people


def read_all(work: Path, seeds: Sequence[int]) -> tuple[Found, dict[str, list]]:
    """Read the clusters found, and the measures of the checked PET."""
    found, checked = Found(), dict[str, list]()
    for seed in seeds:
        for path in sorted((work / f"seed-{seed}").glob("found_*.json")):
            told = json.loads(path.read_text())
            for detector, people in told["found"].items():
                found.setdefault(told["set"], {}).setdefault(detector, {})[seed] = people
            for kind, rows in told["checked"].items():
                checked.setdefault(kind, []).append(rows)
    return found, checked


def hits(people: Sequence[dict[str, list]], kept: int) -> Iterator[tuple[int, int]]:
    """Yield for each patient how many lesions are found, and how many there are."""
    for person in people[:PATIENTS]:
        yield sum(rank <= kept for rank in person["ranks"]), len(person["ranks"])


def least_of(people: Sequence[dict[str, list]], rate: float) -> float:
    """Return the sum of scores at which people without lesions have ``rate`` clusters each."""
    sums = sorted((s for person in people[PATIENTS:] for s in person["sums"]), reverse=True)
    place = int(rate * PATIENTS)
    return sums[place] if place < len(sums) else 0.0


def hits_above(people: Sequence[dict[str, list]], rate: float) -> Iterator[tuple[int, int]]:
    """Yield found and known lesions of each patient at a rate of false clusters."""
    least = least_of(people, rate)
    for person in people[:PATIENTS]:
        own = [r for r in person["ranks"] if r < NEVER and person["sums"][r - 1] > least]
        yield len(own), len(person["ranks"])


Count = Callable[[Sequence[dict[str, list]]], Iterator[tuple[int, int]]]


def table_of(by_seed: dict[int, list[dict[str, list]]], count: Count) -> np.ndarray:
    """Return the numbers of found and known lesions of all patients, (patients, 2)."""
    return np.array([pair for seed in sorted(by_seed) for pair in count(by_seed[seed])])


def tell_difference(one: np.ndarray, other: np.ndarray) -> str:
    """Format a difference of sensitivities with its 95 % interval over patients."""
    rng = np.random.default_rng(0)
    draws = rng.integers(len(one), size=(DRAWS, len(one)))
    found = (one[draws, 0] - other[draws, 0]).sum(axis=1) / one[draws, 1].sum(axis=1)
    low, high = np.percentile(found, [2.5, 97.5])
    mean = (one[:, 0] - other[:, 0]).sum() / one[:, 1].sum()
    return f"{mean:+.3f} ({low:+.3f} to {high:+.3f})"


def report(work: Path, seeds: Sequence[int]) -> None:
    """Print tables and plot curves over all seeds."""
    found, checked = read_all(work, seeds)
    counts: dict[str, Count] = {f"{k} clusters": lambda people, k=k: hits(people, k) for k in SHOWN}
    counts["1 false cluster"] = lambda people: hits_above(people, 1.0)
    for detector in found["35 real"]:
        tell_detector(found, detector, counts)
    tell_checked(checked)
    draw(found, work / "synthetic_controls.png")


def tell_detector(found: Found, detector: str, counts: dict[str, Count]) -> None:
    """Print sensitivities by training set; differences are from the same real controls alone."""
    usual = found["35 real"][detector]
    known = int(table_of(usual, counts["10 clusters"])[:, 1].sum())
    print(f"\n### {detector}: {known} lesions in {len(usual) * PATIENTS} patients\n")
    compared = ("10 clusters", "1 false cluster")
    gains = [f"{name}, minus real alone" for name in compared]
    print("|", " | ".join(["trained on", *counts, "chance, 10", *gains]), "|")
    print("|---" * (len(counts) + 4) + "|")
    for name, every in found.items():
        if detector not in every:
            continue
        own, cells = every[detector], []
        first = f"{FEW} real" if name.startswith(f"{FEW} real") else "35 real"
        for count in counts.values():
            hit, known = table_of(own, count).sum(axis=0)
            low, high = stats.binomtest(int(hit), int(known)).proportion_ci(method="wilson")
            cells.append(f"{hit / known:.2f} ({low:.2f} to {high:.2f})")
        well = [person for people in own.values() for person in people[PATIENTS:]]
        luck = np.mean([rank <= SHOWN[-1] for person in well for rank in person["ranks"]])
        tables = [[table_of(x, counts[c]) for x in (own, found[first][detector])] for c in compared]
        cells += [f"{luck:.2f}", *(tell_difference(*pair) for pair in tables)]
        print("|", " | ".join([name, *cells]), "|")


def tell_checked(checked: dict[str, list]) -> None:
    """Print how detectors of 35 real controls score the real and synthetic PET of the 40."""
    heads = ("error", "mean score", "share above 0", "AUC of the error", "AUC of the score")
    print("\n|", " | ".join(["PET of the 40", *heads]), "|")
    print("|---" * (len(heads) + 1) + "|")
    real = np.array(checked["real"])  # (seeds, people, 3)
    for kind, cohorts in checked.items():
        rows = np.array(cohorts)
        error, score, above = rows.mean(axis=(0, 1))
        areas = [
            np.mean([area_of(x[:, k], y[:, k]) for x, y in zip(rows, real, strict=True)])
            for k in (0, 1)
        ]
        cells = [f"{error:.2e}", f"{score:.2e}", f"{above:.2f}", *(f"{x:.2f}" for x in areas)]
        print("|", " | ".join([kind, *cells]), "|")


def area_of(own: np.ndarray, other: np.ndarray) -> float:
    """Return the area under the ROC curve that separates the first values from the second."""
    return float(stats.mannwhitneyu(own, other).statistic / (len(own) * len(other)))


def draw(found: Found, path: Path) -> None:
    """Plot sensitivity over lesions like Figure 4 of the paper, with a panel per detector."""
    detectors = ["ocsvm, paper", "ocsvm, hypo", "zscore, hypo", "combined, hypo"]
    figure, panels = plt.subplots(1, len(detectors), figsize=(14, 4.5), sharey=True)
    for panel, detector in zip(panels, detectors, strict=True):
        for name, own in found.items():
            if "matched" in name or detector not in own:
                continue
            tables = [table_of(own[detector], lambda p, k=k: hits(p, k)) for k in range(1, 11)]
            shares = [t[:, 0].sum() / t[:, 1].sum() for t in tables]
            panel.plot(range(1, 11), shares, marker=".", label=name)
        panel.set(title=detector, xlabel="clusters kept per patient", ylim=(0, 1))
    panels[0].set_ylabel("lesions found")
    panels[-1].legend(loc="lower right", fontsize=8)
    figure.tight_layout()
    figure.savefig(path, dpi=90)


def main() -> None:
    """Run all seeds and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("work", type=Path)
    parser.add_argument("--seeds", type=int, nargs="+", default=[301, 302, 303])
    parser.add_argument("--mirrored", type=float, default=images.VARIATION[0][1])
    parser.add_argument("--lesion-depth", type=float, nargs=2, default=[10, 40], help="in %%")
    parser.add_argument("--epochs", type=int, default=20, help="epochs of semi-3D")
    parser.add_argument("--patch-epochs", type=int, default=3, help="epochs of 3D-patch")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--report", action="store_true", help="print tables only")
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    (wide, _), (fine, _) = images.VARIATION
    images.VARIATION = ((wide, given.mirrored), (fine, 1 - given.mirrored))
    for seed in [] if given.report else given.seeds:
        run_seed(given.work / f"seed-{seed}", seed, given)
    report(given.work, given.seeds)


if __name__ == "__main__":
    main()
