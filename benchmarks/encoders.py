"""With which encoder do the one-class SVMs find most lesions? A comparison on simulated people.

    python benchmarks/encoders.py WORK --seeds 301 302

35 controls and 34 patients per seed are painted and scored as in
``benchmarks/synthetic_controls.py``, which leaves the people in WORK. Each variant differs from the
encoder of the app in one respect; all are trained on the PET of the same controls with the same
initial seed. Printed are the sensitivity over lesions with Wilson intervals, and the difference
from the app's encoder with its 95 % interval over patients. Two CPU minutes per variant and seed.
"""

import argparse
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from scipy import stats
from synthetic_controls import (
    PAIRED,
    PATIENTS,
    Person,
    clusters_of,
    hits,
    people_of,
    svm_maps,
    table_of,
    tell_difference,
)
from torch import nn

from bids_app.detection import autoencoder
from bids_app.detection.card import EncoderSpec
from bids_app.detection.evaluation import common_brain
from bids_app.imaging.volume import Volume

SHOWN = (1, 3, 10)


def pet_alone(pet: Volume, _: Person) -> Volume:
    """Return the PET."""
    return pet


def with_t1w(pet: Volume, person: Person) -> Volume:
    """Stack PET and T1w as channels."""
    return np.stack([pet, person.t1w])


def three_slices(pet: Volume, _: Person) -> Volume:
    """Stack each slice and its neighbours as channels: patches of 15 × 15 × 3 voxels."""
    return np.stack([pet, np.roll(pet, 1, axis=-1), np.roll(pet, -1, axis=-1)])


USUAL = EncoderSpec()


@dataclass(frozen=True)
class Variant:
    """Encoder variant: spec, input, feature maps of its layers, and activation."""

    spec: EncoderSpec = USUAL
    see: Callable[[Volume, Person], Volume] = pet_alone
    filters: tuple[int, ...] = autoencoder.FILTERS
    activation: type[nn.Module] = nn.ELU


VARIANTS = {
    "the app's": Variant(),
    "16, 32, 64 feature maps": Variant(filters=(16, 32, 64)),
    "GELU": Variant(activation=nn.GELU),
    "weight of the cosine .005": Variant(replace(USUAL, alpha=0.005)),
    "T1w + PET": Variant(replace(USUAL, channels=2), with_t1w),
    "patches of 15 × 15 × 3": Variant(replace(USUAL, channels=3), three_slices),
    "all of the 2025 paper": Variant(
        replace(USUAL, channels=2, alpha=0.005), with_t1w, (16, 32, 64), nn.GELU
    ),
}
LAYERS_OF = autoencoder.layers_of


def set_up(variant: Variant) -> None:
    """Make the app build the networks of a variant."""
    autoencoder.FILTERS = variant.filters

    def layers_of(spec: EncoderSpec) -> dict[str, nn.Sequential]:
        return {
            name: nn.Sequential(
                *(variant.activation() if isinstance(x, nn.ELU) else x for x in layers)
            )
            for name, layers in LAYERS_OF(spec).items()
        }

    autoencoder.layers_of = layers_of


def run_seed(folder: Path, seed: int, depths: tuple[float, float]) -> None:
    """Score the patients of a seed with all variants, unless results exist."""
    controls = people_of(folder, seed, 0, PAIRED, depths=None)
    patients = people_of(folder, seed, 2, PATIENTS, depths=depths)
    brain = common_brain([one.brain for one in controls])
    for number, (name, variant) in enumerate(VARIANTS.items()):
        path = folder / f"encoder_{number}.json"
        if path.exists():
            continue
        set_up(variant)
        train = [variant.see(one.well, one) for one in controls]
        pets = [
            variant.see(pet, one)
            for kind in ("ill", "well")
            for one in patients
            for pet in (getattr(one, kind),)
        ]
        maps, _ = svm_maps(train, pets, brain, seed=seed, spec=variant.spec)
        found = {
            detector: [
                clusters_of(person, score, brain)
                for person, score in zip([*patients, *patients], scores, strict=True)
            ]
            for detector, scores in maps.items()
        }
        path.write_text(json.dumps({"name": name, "found": found}))
        print(f"seed {seed}: {name}", flush=True)


def report(work: Path, seeds: Sequence[int]) -> None:
    """Print a table for each detector."""
    known: dict[str, dict[str, dict[int, list]]] = {}
    for seed in seeds:
        for path in sorted((work / f"seed-{seed}").glob("encoder_*.json")):
            told = json.loads(path.read_text())
            for detector, people in told["found"].items():
                known.setdefault(detector, {}).setdefault(told["name"], {})[seed] = people
    for detector, variants in known.items():
        heads = ["encoder", *(f"{k} clusters" for k in SHOWN), "10 clusters, minus the app's"]
        print(f"\n{detector}\n\n| {' | '.join(heads)} |")
        print("|---" * len(heads) + "|")
        for name, own in variants.items():
            cells = []
            for kept in SHOWN:
                hit, number = table_of(own, lambda people, k=kept: hits(people, k)).sum(axis=0)
                low, high = stats.binomtest(int(hit), int(number)).proportion_ci(method="wilson")
                cells.append(f"{hit / number:.2f} ({low:.2f} to {high:.2f})")
            both = [
                table_of(one, lambda people: hits(people, SHOWN[-1]))
                for one in (own, variants["the app's"])
            ]
            print("|", " | ".join([name, *cells, tell_difference(*both)]), "|")


def main() -> None:
    """Run all seeds and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("work", type=Path)
    parser.add_argument("--seeds", type=int, nargs="+", default=[301, 302])
    parser.add_argument("--lesion-depth", type=float, nargs=2, default=[10, 40], help="in %%")
    parser.add_argument("--threads", type=int, default=1)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    least, most = given.lesion_depth
    for seed in given.seeds:
        run_seed(given.work / f"seed-{seed}", seed, (least / 100, most / 100))
    report(given.work, given.seeds)


if __name__ == "__main__":
    main()
