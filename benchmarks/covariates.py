"""Do covariates help? People of all ages, from two scanners with different blur.

    python benchmarks/covariates.py --seeds 401 402 403
    python benchmarks/covariates.py --seeds 404 405 406 --apart

People are simulated as in ``benchmarks/detectors.py``: 35 controls, 23 from a scanner with a point
spread of 4.5 mm and 12 from one with 7.5 mm, and 24 patients per seed, half from each scanner, with
one or two lesions that have 20 to 50 % less uptake. Compared are norms of all controls with nothing
removed and with age, scanner, or both removed, and norms of the controls from the patient's own
scanner. The chance level is what the first 10 clusters find in the same patients without their
lesions. With ``--apart``, all patients but only 5 controls are from the scanner with 7.5 mm, so
that scanner and disease are confounded.
"""

import argparse

import numpy as np
from detectors import FWHM, GRID, NORMS, Painted, first_ranks, paint, tell

from bids_app.detection.covariates import describe_covariates, encode
from bids_app.detection.evaluation import common_brain
from bids_app.detection.normative import MEASURES, Norm, fit_adjusted_norm, fit_norm, score_against
from bids_app.imaging.volume import Mask

SHARP, BLUNT = 4.5, 7.5  # mm
MIXED = (23, 12), (12, 12)  # controls, and patients, of the sharp scanner and of the blunt one
APART = (30, 5), (0, 24)
CHOICES = {"none": (), "age": ("age",), "scanner": ("scanner",), "both": ("age", "scanner")}
HOW = {"fwhm": FWHM, "affine": GRID.affine}


def cells(people: list[Painted], names: tuple[str, ...]) -> dict[str, list[float | str]]:
    """Return covariates as the columns of a table."""
    known = {"age": [p.age for p in people], "scanner": [f"{p.fwhm} mm" for p in people]}
    return {name: known[name] for name in names}


def norms_of(people: list[Painted], brain: Mask, name: str, rows: np.ndarray | None) -> list[Norm]:
    """Fit the norms of a detector."""
    norms = []
    for measure in MEASURES[name]:
        volumes = [measure(person.well, brain, **HOW) for person in people]
        if rows is None:
            norms.append(fit_norm(volumes, brain))
        else:
            norms.append(fit_adjusted_norm(lambda own=volumes: own, brain, rows))
    return norms


def run_seed(
    seed: int,
    counts: tuple[tuple[int, int], tuple[int, int]],
    ranks: dict[str, dict[tuple[int, int, bool], list[int]]],
) -> None:
    """Map the patients of a seed in all ways; ``counts`` has the form of ``MIXED``."""
    controls = paint(1000 * seed, sum(counts[0]), lesions=False, fwhm=scanners(counts[0]))
    patients = paint(1000 * seed + 1, sum(counts[1]), lesions=True, fwhm=scanners(counts[1]))
    brain = common_brain([control.brain for control in controls])
    for name in NORMS:
        ways = {}
        for choice, names in CHOICES.items():
            table = cells(controls, names)
            told = describe_covariates(table) if names else {}
            rows = [
                encode({key: column[n] for key, column in table.items()}, told)
                for n in range(len(controls))
            ]
            ways[choice] = norms_of(controls, brain, name, np.array(rows) if names else None), told
        own = {
            fwhm: norms_of([c for c in controls if c.fwhm == fwhm], brain, name, None)
            for fwhm in (SHARP, BLUNT)
        }
        for place, patient in enumerate(patients):
            for ill in (True, False):
                pet = patient.ill if ill else patient.well
                volumes = [measure(pet, brain, **HOW) for measure in MEASURES[name]]
                key = (seed, place, ill)
                for choice, (norms, told) in ways.items():
                    row = {k: v[0] for k, v in cells([patient], CHOICES[choice]).items()}
                    score = score_against(norms, volumes, name, "hypo", encode(row, told))
                    found = first_ranks(patient, score, brain)
                    ranks.setdefault(f"{name}, {choice}", {})[key] = found
                score = score_against(own[patient.fwhm], volumes, name, "hypo")
                found = first_ranks(patient, score, brain)
                ranks.setdefault(f"{name}, own scanner's controls", {})[key] = found


def scanners(counts: tuple[int, int]) -> list[float]:
    """Return the point spread of the scanner of each person."""
    return [SHARP] * counts[0] + [BLUNT] * counts[1]


def main() -> None:
    """Run all seeds and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, nargs="+", default=[401, 402, 403])
    parser.add_argument("--apart", action="store_true", help="patients of one scanner alone")
    given = parser.parse_args()
    ranks: dict[str, dict[tuple[int, int, bool], list[int]]] = {}
    for seed in given.seeds:
        run_seed(seed, APART if given.apart else MIXED, ranks)
        print(f"seed {seed}", flush=True)
    for name in NORMS:  # differences are relative to norms with nothing removed
        own = {
            key.split(", ", 1)[1]: row for key, row in ranks.items() if key.startswith(f"{name},")
        }
        print(f"\n{name}")
        tell(own, "none")


if __name__ == "__main__":
    main()
