"""Do the options beyond the paper help? Measured on people that a generator was not trained on.

Reads the OUT of a run of the train level. Overlapping triplets and histogram matching: each fold's
generator synthesizes the PET of the controls that it left out, with and without the option.
Novelty: the T1w of these controls, unchanged and changed on purpose, are compared with the fold's
training controls. Uncertainty: the error model was fitted to all controls, so it is evaluated on
people with a PET whom no generator of OUT was trained on: patients of OUT, and those of
``--unseen``.

    python benchmarks/beyond_paper.py OUT --models semi3d-gan-mse --unseen OTHER_OUT
"""

import argparse
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from bids_app import nifti
from bids_app.derivatives.find import Preprocessed, find_preprocessed
from bids_app.imaging.intensity import match_quantiles, smooth
from bids_app.imaging.volume import Mask, Volume, zooms_of
from bids_app.nifti import Owner
from bids_app.settings import Settings
from bids_app.synthesis.card import FOLDS, Card, check_reference, check_uncertainty, read_card
from bids_app.synthesis.evaluation import score, smooth_in_brain
from bids_app.synthesis.inference import load_generator, predict
from bids_app.synthesis.networks import ResnetGenerator
from bids_app.synthesis.pairs import Volumes
from bids_app.synthesis.reference import Reference, novelty, read_reference
from bids_app.synthesis.tiling import SliceTriplets, Tiling, overlap
from bids_app.synthesis.uncertainty import measure_errors, read_error_model, sample_errors

BLUR, SHIFT = 8.0, 10.0  # mm
MEASURES = ("ssim_brain", "psnr_brain", "mae_brain")
Change = Callable[[Volume, Mask, tuple[float, float, float]], Volume]
CHANGES: dict[str, Change] = {
    "as it is": lambda t1w, _brain, _zooms: t1w,
    "contrast inverted": lambda t1w, brain, _zooms: np.where(brain, 1 - t1w, 0),
    f"blurred, {BLUR:g} mm": lambda t1w, brain, zooms: smooth(t1w, BLUR, zooms) * brain,
    f"shifted, {SHIFT:g} mm": lambda t1w, _brain, zooms: np.roll(t1w, round(SHIFT / zooms[0]), 0),
}


@dataclass(frozen=True)
class Visit:
    """T1w, real PET and brain mask of a person, (I, J, K) on one grid."""

    t1w: Volume
    pet: Volume
    brain: Mask
    zooms: tuple[float, float, float]


@dataclass(frozen=True)
class Trained:
    """Generator with its card and its reference."""

    network: ResnetGenerator
    card: Card
    reference: Reference

    def synthesize(self, visit: Visit, tiling: Tiling) -> Volume:
        """Predict a PET and postprocess it as the app does."""
        raw = predict(visit.t1w, self.network, tiling)
        return smooth_in_brain(raw, visit.brain, fwhm=Settings.smoothing_fwhm, zooms=visit.zooms)


def load_trained(folder: Path, device: str) -> Trained:
    """Load a generator with its reference."""
    network, card = load_generator(folder, device)
    return Trained(network, card, read_reference(check_reference(folder, card)))


def find_people(out: Path, card: Card) -> list[Preprocessed]:
    """List all visits of a derivative dataset that have a PET on the grid of a generator."""
    resolution = zooms_of(np.array(card.affine))[0]
    return [visit for visit in find_preprocessed(out, card.template, resolution) if visit.pets]


def open_visit(person: Preprocessed) -> Visit:
    """Read the images of a visit."""
    t1w, pet = nifti.load(person.t1w), nifti.load(person.pets[0])
    return Visit(t1w.data, pet.data, nifti.load(person.brain_mask).data > 0, t1w.zooms)


def fold_folders(folder: Path) -> list[Path]:
    """List the folders of the generators of the folds."""
    return sorted((folder / FOLDS).glob("fold-*"), key=lambda path: int(path.name[5:]))


def left_out(folder: Path, people: Sequence[Preprocessed]) -> Iterator[tuple[Path, Visit]]:
    """Yield each control that a fold left out, with the folder of that fold's generator."""
    everyone = set(read_card(folder).participants)
    for fold in fold_folders(folder):
        others = everyone - set(read_card(fold).participants)
        for person in people:
            if person.subject in others:
                yield fold, open_visit(person)


def try_options(trained: Trained, visit: Visit) -> dict[str, list[float]]:
    """Score the PET of one visit with each option; the scores are in the order of ``MEASURES``."""
    tiling = trained.card.spec.tiling
    made = {"off": trained.synthesize(visit, tiling)}
    if isinstance(tiling, SliceTriplets):
        made["--overlap"] = trained.synthesize(visit, overlap(tiling))
    for name, pet in list(made.items()):
        both = "--match-histogram" if name == "off" else f"{name} --match-histogram"
        made[both] = match_quantiles(pet, visit.brain, trained.reference.pet_quantiles)
    scores = {name: score(pet, visit.pet, visit.brain) for name, pet in made.items()}
    return {name: [getattr(score, key) for key in MEASURES] for name, score in scores.items()}


def try_changes(trained: Trained, visit: Visit) -> list[list[float]]:
    """Return the novelty of a T1w after each change, and the highest of the training controls."""
    highest = float(trained.reference.novelties.max())
    return [
        [
            novelty(change(visit.t1w, visit.brain, visit.zooms), visit.zooms, trained.reference)[0],
            highest,
        ]
        for change in CHANGES.values()
    ]


def trust_uncertainty(
    folder: Path, people: Sequence[Preprocessed], device: str
) -> dict[str, list[float]]:
    """Measure how well the generator's error model describes each person it was not fitted to."""
    final = load_trained(folder, device)
    model = read_error_model(check_uncertainty(folder, final.card))
    found: dict[str, list[float]] = {}
    for person in people:
        if person.subject not in final.card.participants:
            visit = open_visit(person)
            owner = Owner(person.subject, None, final.card.affine)
            volumes = Volumes(owner, visit.t1w, visit.pet, visit.brain)
            errors = sample_errors(volumes, final.synthesize(visit, final.card.spec.tiling))
            for name, value in measure_errors([errors], model).items():
                found.setdefault(name, []).append(value)
    return found


def tell(values: Sequence[float], digits: int) -> str:
    """Format mean ± SD; the SD is omitted if there is only one value."""
    if not values:
        return "n/a"
    spread = f" ± {np.std(values, ddof=1):.{digits}f}" if len(values) > 1 else ""
    return f"{np.mean(values):.{digits}f}{spread}"


def print_options(model: str, scores: Sequence[dict[str, list[float]]]) -> None:
    """Print a line per option."""
    plain = np.array([of_visit["off"] for of_visit in scores])
    for option in scores[0]:
        values = np.array([of_visit[option] for of_visit in scores])
        cells = [tell(list(values[:, n]), digits) for n, digits in enumerate((3, 2, 4))]
        better = ((values - plain) * (1, 1, -1) > 0).sum(axis=0)
        counts = "" if option == "off" else ", ".join(f"{count}" for count in better)
        print(f"| {model} | {option} | {len(scores)} | {' | '.join(cells)} | {counts} |")


def print_changes(model: str, novelties: Sequence[list[list[float]]]) -> None:
    """Print a line per change."""
    values = np.array(novelties)  # people, changes, (novelty, highest of training)
    for number, change in enumerate(CHANGES):
        found, highest = values[:, number].T
        limits = f"{highest.min():.2f} to {highest.max():.2f}"
        beyond = int((found > highest).sum())
        cells = f"{tell(list(found), 2)} | {limits} | {beyond} of {len(found)}"
        print(f"| {model} | {change} | {cells} |")


def measure(folder: Path, people: Sequence[Preprocessed], device: str) -> tuple[list, list]:
    """Try all options and all changes on the controls that each fold left out."""
    scores, novelties = [], []
    loaded: dict[Path, Trained] = {}
    for fold, visit in left_out(folder, people):
        if fold not in loaded:
            loaded = {fold: load_trained(fold, device)}
        scores.append(try_options(loaded[fold], visit))
        novelties.append(try_changes(loaded[fold], visit))
    return scores, novelties


def parse() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("out", type=Path, help="OUT of a run of the train level")
    parser.add_argument("--models", nargs="+", help="default: all in OUT/generators")
    parser.add_argument(
        "--unseen",
        type=Path,
        nargs="*",
        default=[],
        help="other derivative datasets, of people whom no generator has seen",
    )
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=1)
    return parser.parse_args()


def main() -> None:
    """Print three tables."""
    arguments = parse()
    torch.set_num_threads(arguments.threads)
    root = arguments.out / "generators"
    names = arguments.models or sorted(path.parent.name for path in root.glob("*/card.json"))
    results = {}
    for name in names:
        people = find_people(arguments.out, read_card(root / name))
        others = [
            person
            for out in arguments.unseen
            for person in find_people(out, read_card(root / name))
        ]
        scores, novelties = measure(root / name, people, arguments.device)
        if not scores:
            raise SystemExit(f"{root / name}: no fold left out a control that has a PET")
        told = trust_uncertainty(root / name, [*people, *others], arguments.device)
        results[name] = scores, novelties, told
    print("| model | option | n | SSIM, brain | PSNR, brain (dB) | MAE, brain | better in |")
    print("|---|---|---|---|---|---|---|")
    for name, (scores, _, _) in results.items():
        print_options(name, scores)
    print("\n| model | held-out T1w | novelty | highest of training controls | above all |")
    print("|---|---|---|---|---|")
    for name, (_, novelties, _) in results.items():
        print_changes(name, novelties)
    print("\n| model | --uncertainty | unseen people | |")
    print("|---|---|---|---|")
    for name, (_, _, told) in results.items():
        for measure_name, values in told.items():
            print(f"| {name} | {measure_name} | {len(values)} | {tell(values, 3)} |")


if __name__ == "__main__":
    main()
