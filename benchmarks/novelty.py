"""Does --novelty detect faults of a T1w? Measured with the default generator.

    python benchmarks/novelty.py WORK --labelmaps DIR --generator bids_app/data/generators/default

``WORK`` and ``DIR`` are those of a run of default_generator.py. New T1w are painted on maps 13 and
14, on which the generator was not trained, and changed on purpose. A T1w is flagged as unusual if
its novelty is above that of every training T1w, each compared with those of other heads, which
happens to 1 of 25 by chance.
"""

import argparse
from collections.abc import Callable
from pathlib import Path

import numpy as np
from default_generator import HELD_OUT, ZOOMS, Painting, anatomy_of, paint, register

from bids_app import nifti
from bids_app.imaging.intensity import scale_to_unit, smooth
from bids_app.imaging.tissues import find_tissue_means
from bids_app.imaging.volume import Mask, Volume
from bids_app.synthesis.card import check_reference, read_card
from bids_app.synthesis.reference import TRAITS, novelty, read_reference

COPIES = 2  # per map
SEED = 77
SHOTS = 12  # parts of k-space between which the head moves
Change = Callable[[Volume, Mask, np.random.Generator], Volume]


def blurred(fwhm: float) -> Change:
    """Return a change that blurs by a Gaussian of ``fwhm`` mm."""
    return lambda t1w, _brain, _rng: smooth(t1w, fwhm, ZOOMS)


def noisy(size: float) -> Change:
    """Return a change that adds Rician noise, with the SD as a share of white matter."""

    def change(t1w: Volume, _brain: Mask, rng: np.random.Generator) -> Volume:
        size_here = size * find_tissue_means(t1w)[2]
        real, other = size_here * rng.standard_normal((2, *t1w.shape), dtype=np.float32)
        return np.hypot(t1w + real, other)

    return change


def moved(size: float) -> Change:
    """Return a change that moves the head by ``size`` mm (SD) in y and z between k-space parts."""

    def change(t1w: Volume, _brain: Mask, rng: np.random.Generator) -> Volume:
        frequencies = np.fft.fftfreq(t1w.shape[1]), np.fft.fftfreq(t1w.shape[2])
        order = np.argsort(frequencies[0])
        shifts = np.zeros((2, t1w.shape[1]))
        for lines in np.array_split(order, SHOTS):
            shifts[:, lines] = size * rng.standard_normal((2, 1))
        phase = shifts[0] * frequencies[0]
        phase = phase[:, np.newaxis] + np.outer(shifts[1], frequencies[1])
        seen = np.fft.fftn(t1w, axes=(1, 2)) * np.exp(-2j * np.pi * phase)
        return np.abs(np.fft.ifftn(seen, axes=(1, 2))).astype(np.float32)

    return change


def enhanced(t1w: Volume, _brain: Mask, rng: np.random.Generator) -> Volume:
    """Make thin parts of the fluid, a tenth of it, 1.5 times as bright as white matter."""
    fluid, grey, white = find_tissue_means(t1w)
    field = smooth(rng.standard_normal(t1w.shape, dtype=np.float32), 3.0, ZOOMS)
    wet = (t1w > 0) & (t1w < (fluid + grey) / 2)
    vessels = wet & (field > np.quantile(field[wet], 0.9))
    return np.where(vessels, 1.5 * white, t1w)


def contrasted(fluid: float, grey: float, white: float) -> Change:
    """Return a change that gives the tissues other intensities."""

    def change(t1w: Volume, _brain: Mask, _rng: np.random.Generator) -> Volume:
        means = find_tissue_means(t1w)
        new = np.interp(t1w, [0, *means, 1.2], [fluid, fluid, grey, white, white])
        return new.astype(np.float32)

    return change


CHANGES: dict[str, Change] = {
    "as it is": lambda t1w, _brain, _rng: t1w,
    "blurred, 4 mm": blurred(4.0),
    "blurred, 8 mm": blurred(8.0),
    "noise, 5 % of white matter": noisy(0.05),
    "noise, 10 %": noisy(0.1),
    "noise, 20 %": noisy(0.2),
    "motion, 1 mm": moved(1.0),
    "motion, 3 mm": moved(3.0),
    "contrast agent": enhanced,
    "T2w": contrasted(1.0, 0.6, 0.4),
    "FLAIR": contrasted(0.15, 0.9, 0.65),
    "shifted, 10 mm": lambda t1w, _brain, _rng: np.roll(t1w, 10, axis=0),
}
ATROPHY = {"atrophy, 1.5 of the most in training": 1.5, "atrophy, 2.5": 2.5}


def main() -> None:
    """Print how many T1w are flagged as unusual, one line per change."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("work", type=Path)
    parser.add_argument("--labelmaps", type=Path, required=True)
    parser.add_argument("--generator", type=Path, required=True)
    given = parser.parse_args()
    reference = read_reference(check_reference(given.generator, read_card(given.generator)))
    highest = float(reference.novelties.max())
    pattern = nifti.load(given.work / "pattern.nii.gz").data
    found: dict[str, list[tuple[float, str]]] = {}

    def look(name: str, painting: Painting, change: Change, rng: np.random.Generator) -> None:
        odd = np.where(painting.brain, change(painting.t1w, painting.brain, rng), 0)
        t1w = scale_to_unit(odd.astype(np.float32), painting.brain)
        value, traits = novelty(t1w, ZOOMS, reference)
        trait = max(traits, key=lambda one: abs(traits[one]))
        found.setdefault(name, []).append((value, TRAITS[trait][traits[trait] > 0]))

    for name in HELD_OUT:
        label_map = given.labelmaps / f"training_seg_{name}.nii.gz"
        brain = anatomy_of(register(label_map, given.work))
        for number in range(COPIES):
            rng = np.random.default_rng([SEED, int(name), number])
            painting = paint(brain, pattern, rng)
            for change_name, change in CHANGES.items():
                look(change_name, painting, change, rng)
            for change_name, atrophy in ATROPHY.items():
                look(change_name, paint(brain, pattern, rng, atrophy), CHANGES["as it is"], rng)
    print(f"training controls: {reference.novelties.min():.2f} to {highest:.2f}\n")
    print("| T1w | flagged | novelty | most frequent reason |\n|---|---|---|---|")
    for name, told in found.items():
        values = [value for value, _ in told]
        words = [word for _, word in told]
        most = max(set(words), key=words.count)
        odd = sum(value > highest for value in values)
        spread = f"{np.mean(values):.1f} ({min(values):.1f} to {max(values):.1f})"
        print(f"| {name} | {odd} of {len(told)} | {spread} | {most} |", flush=True)


if __name__ == "__main__":
    main()
