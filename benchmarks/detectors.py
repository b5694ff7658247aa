"""Which detector finds lesions? Measured on people simulated in template space.

    python benchmarks/detectors.py --seeds 101 102 103 104 105 106 107 108
    python benchmarks/detectors.py --seeds 111 112 113 --false

For each seed, 12 controls and 24 patients, with one or two lesions that have 20 to 50 % less
uptake, are painted on warps of the template's head at 3 mm, like those of ``mri2pet-simulate`` but
without registration. All controls train the norms, and one encoder and the one-class SVMs. Patients
are scored with their lesions and, with the same noise, without them: clusters that hit the lesion
sites in the latter do so by chance. A lesion is found if one of the first clusters shares a voxel
with it; also counted are lesions found by clusters whose sums few clusters of the maps without
lesions exceed, because maps of some detectors have more clusters than others. This takes a minute
or two of CPU time per seed. ``benchmarks/detection.py --real-only`` does the same with the app's
own commands, with registration, folds and held-out controls, in about 15.

``--false`` measures instead whether held-out controls predict the number of false clusters: 30 new
healthy people are scored as patients are, by the mean over four folds. Their clusters are counted
above the scores that give the stated number of clusters per held-out control, each of whom is
scored by one fold.
"""

import argparse
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from scipy import stats
from synthetic_controls import svm_maps

from bids_app.detection.card import EncoderSpec
from bids_app.detection.clusters import find_clusters, overlaps, separate_lesions
from bids_app.detection.evaluation import FALSE_RATES, common_brain
from bids_app.detection.normative import MEASURES, fit_norm, score_against
from bids_app.imaging.intensity import TIMES_MEAN, scale_to_unit
from bids_app.imaging.volume import Mask, Volume, grid_of_box
from bids_app.settings import Settings
from bids_app.simulation.anatomy import is_in_skull
from bids_app.simulation.cohort import AGES, template_anatomy
from bids_app.simulation.geometry import draw_displacement, thin_cortex, warp_head, widen_ventricles
from bids_app.simulation.images import (
    acquire,
    activity,
    blur,
    draw_scanner,
    draw_uptake,
    usual_pattern,
)
from bids_app.simulation.lesions import draw_lesions, factor_of, mask_of
from bids_app.simulation.person import draw_atrophy

RESOLUTION = 3.0  # mm
GRID = grid_of_box(Settings.bounding_box, RESOLUTION)
ZOOMS = (RESOLUTION,) * 3
VOLUME = RESOLUTION**3
CONTROLS, PATIENTS = 12, 24
DEPTHS = (0.2, 0.5)  # relative decrease of uptake in lesions
STRENGTH = 0.4  # of the warp; low, because people have been registered to the template
FWHM = 8.0  # mm, smoothing of the images that norms compare
SHOWN = (1, 3, 10)  # numbers of clusters kept
FALSE_SHOWN = (1, 2, 5)  # clusters per person without lesions, above the least sum kept
NORMS = ("zscore", "asymmetry", "combined")
DRAWS = 2000  # bootstrap samples of patients, for intervals of differences
NEVER = 10_000  # rank of a lesion that is not found
HEALTHY, FOLDS = 30, 4  # for --false


@dataclass(frozen=True)
class Painted:
    """Person in template space: PET without and with lesions, brain mask, numbered lesions."""

    well: Volume
    ill: Volume
    brain: Mask
    lesions: np.ndarray
    age: float
    fwhm: float  # of the scanner, mm


def paint(seed: int, number: int, *, lesions: bool, fwhm: Sequence[float] = ()) -> list[Painted]:
    """Paint people; ``fwhm`` is that of each person's scanner, in mm, drawn at random if empty."""
    rng, people = np.random.default_rng(seed), []
    anatomy, pattern = template_anatomy(2), usual_pattern()
    for place in range(number):
        age = rng.uniform(*AGES)
        atrophy = draw_atrophy(age, rng)
        warp = draw_displacement(anatomy.grid, rng, strength=STRENGTH)
        warp = widen_ventricles(anatomy, warp, atrophy)
        head = warp_head(thin_cortex(anatomy, atrophy), warp, GRID)
        brain = is_in_skull(head.labels)
        well, scanner = activity(head, draw_uptake(pattern, rng)), draw_scanner(rng)
        scanner = replace(scanner, fwhm=fwhm[place]) if fwhm else scanner
        drawn = draw_lesions(head, rng, DEPTHS) if lesions else ()
        noise = int(rng.integers(1 << 31))
        ill, mask = well.copy(), np.zeros(brain.shape, bool)
        for lesion in drawn:
            ill *= factor_of(lesion, head.labels, head.affine)
            mask |= mask_of(lesion, head.labels, head.affine)
        seen = []
        for volume in (well, ill):
            clean, chance = blur(volume, scanner, ZOOMS), np.random.default_rng(noise)
            pet = acquire(clean, scanner, np.array([1200.0]), ZOOMS, chance)[..., 0]
            seen.append(scale_to_unit(pet, brain, times_mean=TIMES_MEAN))
        told = separate_lesions(mask, GRID.affine), age, scanner.fwhm
        people.append(Painted(*seen, brain, *told))
    return people


def maps_of(seed: int) -> tuple[list[Painted], Mask, dict[str, list[Volume]]]:
    """Paint a cohort and map its patients, first with and then without their lesions."""
    controls = paint(1000 * seed, CONTROLS, lesions=False)
    patients = paint(1000 * seed + 1, PATIENTS, lesions=True)
    brain = common_brain([control.brain for control in controls])
    pets = [control.well for control in controls]
    others = [one.ill for one in patients] + [one.well for one in patients]
    how = {"fwhm": FWHM, "affine": GRID.affine}
    maps: dict[str, list[Volume]] = {}
    for name in NORMS:
        measures = MEASURES[name]
        norms = [fit_norm((measure(p, brain, **how) for p in pets), brain) for measure in measures]
        maps[name] = [
            score_against(norms, [measure(p, brain, **how) for measure in measures], name, "hypo")
            for p in others
        ]
    scores, _ = svm_maps(pets, others, brain, seed=seed, spec=EncoderSpec())
    maps["ocsvm --paper"], maps["ocsvm"] = scores["ocsvm, paper"], scores["ocsvm, hypo"]
    return patients, brain, maps


def clusters_of(person: Painted, score: Volume, brain: Mask) -> tuple[list[int], list[float]]:
    """Return the rank of the first cluster that hits each lesion, and each cluster's sum."""
    inside = brain & person.brain & ~np.isnan(score)
    clusters, labels = find_clusters(
        np.where(inside, score, 0).astype(np.float32),
        inside,
        GRID.affine,
        extent=Settings.cluster_extent,
        minimum_volume=Settings.min_cluster_size,
    )
    shared = overlaps(labels, person.lesions, VOLUME) > 0
    ranks = [int(column.argmax()) + 1 if column.any() else NEVER for column in shared.T]
    return ranks, [cluster.sum_score for cluster in clusters]


def count_false(seed: int) -> dict[tuple[str, float], float]:
    """Count the clusters of new healthy people above the scores that controls rarely exceed."""
    controls = paint(1000 * seed, CONTROLS, lesions=False)
    healthy = paint(1000 * seed + 7, HEALTHY, lesions=False)
    brain = common_brain([control.brain for control in controls])
    how = {"fwhm": FWHM, "affine": GRID.affine}
    order = np.random.default_rng(seed).permutation(CONTROLS)
    counts: dict[tuple[str, float], float] = {}
    people = [*controls, *healthy]
    for name in ("zscore", "combined", "ocsvm"):
        measures = MEASURES.get(name, ())
        measured = [[measure(one.well, brain, **how) for measure in measures] for one in people]
        totals, sums = [np.zeros(brain.shape, np.float32) for _ in healthy], list[float]()
        for fold in range(FOLDS):
            held_out = order[fold::FOLDS].tolist()
            trained = [place for place in range(CONTROLS) if place not in held_out]
            scored = [*held_out, *range(CONTROLS, len(people))]
            if name == "ocsvm":
                wells = [[people[place].well for place in some] for some in (trained, scored)]
                known = svm_maps(*wells, brain, seed=seed + fold, spec=EncoderSpec())[0]
                maps = known["ocsvm, hypo"]
            else:
                own = zip(*(measured[place] for place in trained), strict=True)
                norms = [fit_norm(volumes, brain) for volumes in own]
                maps = [score_against(norms, measured[place], name, "hypo") for place in scored]
            for place, score in zip(held_out, maps, strict=False):
                sums += clusters_of(controls[place], score, brain)[1]
            for place, score in enumerate(maps[len(held_out) :]):
                totals[place] += score / FOLDS
        sums.sort(reverse=True)
        found = [
            score
            for person, total in zip(healthy, totals, strict=True)
            for score in clusters_of(person, total, brain)[1]
        ]
        for rate in FALSE_RATES:
            least = sums[int(rate * CONTROLS)]  # rate × CONTROLS sums are above
            counts[name, rate] = sum(score > least for score in found) / HEALTHY
    return counts


Rows = dict[tuple[int, int, bool], tuple[list[int], list[float]]]  # seed, person, with lesions


def are_found(own: Rows, *, kept: int = NEVER - 1, false: float = NEVER) -> dict[tuple, list[bool]]:
    """Tell for each person which lesion sites are hit by the clusters that are kept.

    They are the first ``kept`` of each map, with sums that only ``false`` clusters per person
    exceed in the maps of the same people without lesions.
    """
    well = [row for (*_, ill), row in own.items() if not ill]
    sums = sorted((score for _, row in well for score in row), reverse=True)
    place = int(false * len(well))
    least = sums[place] if place < len(sums) else 0.0
    return {
        key: [rank <= kept and row[rank - 1] > least for rank in ranks]
        for key, (ranks, row) in own.items()
    }


def differ(one: dict[tuple, list[bool]], other: dict[tuple, list[bool]]) -> str:
    """Format the difference between two sensitivities, with its interval over patients."""
    people = [key for key in one if key[2]]
    rng = np.random.default_rng(0)
    draws = [people] + [
        [people[int(place)] for place in rng.choice(len(people), len(people))] for _ in range(DRAWS)
    ]
    differences = [
        np.mean([hit for key in keys for hit in one[key]])
        - np.mean([hit for key in keys for hit in other[key]])
        for keys in draws
    ]
    low, high = np.percentile(differences[1:], [2.5, 97.5])
    pairs = [pair for key in people for pair in zip(one[key], other[key], strict=True)]
    alone = pairs.count((True, False)), pairs.count((False, True))
    return (
        f"{differences[0]:.3f} ({low:.3f} to {high:.3f}); {alone[0]} lesions against {alone[1]}, "
        f"McNemar's p {stats.binomtest(alone[0], max(sum(alone), 1)).pvalue:.3f}"
    )


def tell(rows: dict[str, Rows], reference: str = "zscore") -> None:
    """Print sensitivities with Wilson intervals, chance, and differences from the reference."""
    ways: dict[str, dict[str, float]] = {f"{kept} clusters": {"kept": kept} for kept in SHOWN}
    ways |= {f"{false:g} false": {"false": false} for false in FALSE_SHOWN}
    print("| detector | " + " | ".join(ways) + " | chance, 10 clusters | clusters of a map |")
    print("|---|" + "---|" * (len(ways) + 2))
    for name, own in rows.items():
        cells = []
        for way in ways.values():
            hits = [hit for key, row in are_found(own, **way).items() if key[2] for hit in row]
            low, high = stats.binomtest(sum(hits), len(hits)).proportion_ci(method="wilson")
            cells.append(f"{np.mean(hits):.2f} ({low:.2f} to {high:.2f})")
        ten = are_found(own, kept=SHOWN[-1])
        chance = np.mean([hit for key, row in ten.items() if not key[2] for hit in row])
        number = np.mean([len(sums) for _, sums in own.values()])
        print(f"| {name} | {' | '.join(cells)} | {chance:.2f} | {number:.1f} |")
    for name, own in rows.items():
        for title, way in ways.items() if name != reference else ():
            told = differ(are_found(own, **way), are_found(rows[reference], **way))
            print(f"{name} - {reference}, {title}: {told}")


def main() -> None:
    """Run all seeds and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, nargs="+", default=[101, 102, 103, 104])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--false", action="store_true", help="count clusters of healthy people")
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    if given.false:
        every = [count_false(seed) for seed in given.seeds]
        for name, rate in every[0]:
            own = [counts[name, rate] for counts in every]
            cohorts = ", ".join(f"{one:.2f}" for one in own)
            print(f"{name}: {rate:g} expected, {np.mean(own):.2f} found ({cohorts})")
        return
    rows: dict[str, Rows] = {}
    for seed in given.seeds:
        patients, brain, maps = maps_of(seed)
        for name, scores in maps.items():
            for place, patient in enumerate(patients):
                for ill, score in ((True, scores[place]), (False, scores[place + PATIENTS])):
                    found = clusters_of(patient, score, brain)
                    rows.setdefault(name, {})[seed, place, ill] = found
        print(f"seed {seed}", flush=True)
    tell(rows)


if __name__ == "__main__":
    main()
