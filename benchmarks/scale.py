"""Compare ways to scale a PET: how much each varies with noise, scanner, anatomy and uptake.

    python benchmarks/scale.py [--people 24]

Simulates people on the template's anatomy at 2 mm, each seen by scanners of 4, 6 and 8 mm, each
scan with noise drawn twice. An estimator gives a number that should be proportional to the true
scale (Bq/mL where uptake is 1). Printed are the standard deviation, in %, of its ratio to the true
scale over noise, over scanners, over people, and in all; and how the number changes if the lowest
2 cm of the brain are not covered, or if a lesion lost 40 % of the uptake of a ball of 2 cm radius.
"""

import argparse
from collections import defaultdict
from collections.abc import Iterator
from itertools import product

import numpy as np

from bids_app.imaging.intensity import scale_to_unit, smooth
from bids_app.imaging.tissues import tissue_shares
from bids_app.imaging.volume import Mask, Volume
from bids_app.simulation import images
from bids_app.simulation.anatomy import is_brain
from bids_app.simulation.cohort import template_anatomy
from bids_app.simulation.geometry import warp_head
from bids_app.simulation.person import draw_atrophy, draw_person

ZOOMS = (2.0, 2.0, 2.0)
SCANNERS = (4.0, 6.0, 8.0)
ROUNDS = 5
LESION, RADIUS, NOT_COVERED = (-50.0, -20.0, -15.0), 20.0, 20.0  # mm


def estimators(pet: Volume, brain: Mask, grey: Volume, expected: Volume) -> dict[str, float]:
    """Return each estimator's value for a PET that is NaN outside its coverage."""
    seen = brain & np.isfinite(pet)
    filled = smooth(np.where(seen, pet, 0), 8.0, ZOOMS) / np.maximum(
        smooth(seen.astype(np.float32), 8.0, ZOOMS), 1e-3
    )
    inside = seen & (expected > 0.3 * expected[brain].mean())
    ratio = pet[inside] / expected[inside]
    robust = float(np.median(ratio))
    for _ in range(ROUNDS):
        near = np.abs(ratio / robust - 1) < 0.25
        robust = float(np.median(ratio[near]))
    return {
        "99.9th percentile": float(np.percentile(pet[seen], 99.9)),
        "99th percentile after 8 mm": float(np.percentile(filled[seen], 99)),
        "brain mean": float(pet[seen].mean()),
        "grey-matter mean": float((pet[seen] * grey[seen]).sum() / grey[seen].sum()),
        "median of the brain": float(np.median(pet[seen])),
        "median ratio to the expected": float(np.median(ratio)),
        "the same without outliers": robust,
    }


def scans_of(number: int) -> Iterator[tuple[str, int, int, dict[str, float]]]:
    """Scan a person; yield case, scanner, repetition, and the value of each estimator."""
    rng = np.random.default_rng([5, number])
    source, pattern = template_anatomy(2), images.usual_pattern()
    atrophy = draw_atrophy(rng.uniform(20, 76), rng)
    person = draw_person(source, pattern, rng, depths=None, strength=1.0, atrophy=atrophy)
    head = warp_head(person.source, person.displacement, source.grid)
    brain = is_brain(head.labels)
    usual = images.Scanner(images.USUAL_PSF, 1.0, 0.0)
    expected = images.blur(images.activity(head, person.expected), usual, ZOOMS)
    t1w = images.paint_t1w(head.labels, person.contrast, rng, ZOOMS)
    grey = tissue_shares(scale_to_unit(t1w, brain))[0]
    lost = np.linalg.norm(head.mni - LESION, axis=-1) < RADIUS
    cut = head.mni[..., 2] < head.mni[brain][:, 2].min() + NOT_COVERED
    uptake = images.activity(head, person.uptake)
    volumes = {"whole": uptake, "lesion": np.where(lost, 0.6, 1).astype(np.float32) * uptake}
    for (place, fwhm), again, case in product(enumerate(SCANNERS), range(2), volumes):
        scanner = images.Scanner(fwhm, 1.0, float(rng.uniform(*images.NOISE)))
        clean = images.blur(volumes[case], scanner, ZOOMS)
        pet = images.acquire(clean, scanner, np.array([1200.0]), ZOOMS, rng)[..., 0]
        yield case, place, again, estimators(pet, brain, grey, expected)
        if case == "whole":
            seen = np.where(cut, np.nan, pet)
            yield "cut", place, again, estimators(seen, brain, grey, expected)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--people", type=int, default=24)
    people = parser.parse_args().people
    shape = (people, len(SCANNERS), 2)
    found: defaultdict[tuple[str, str], np.ndarray] = defaultdict(lambda: np.zeros(shape))
    for number in range(people):
        for case, place, again, numbers in scans_of(number):
            for name, value in numbers.items():
                found[case, name][number, place, again] = np.log(value)
    print(f"{people} people; SD in %: noise, scanner, people, total | lesion: bias; cut: bias, SD")
    for name in [name for case, name in found if case == "whole"]:
        logs = found["whole", name]
        lesion, cut = (found[case, name] - logs for case in ("lesion", "cut"))
        spreads = (
            np.sqrt(logs.var(axis=2, ddof=1).mean()),
            logs.mean(axis=2).std(axis=1, ddof=1).mean(),
            logs.mean(axis=(1, 2)).std(ddof=1),
            logs.std(),
        )
        numbers = (*spreads, lesion.mean(), cut.mean(), cut.std())
        print(f"{name:30s}", *(f"{100 * number:6.2f}" for number in numbers), flush=True)


if __name__ == "__main__":
    main()
