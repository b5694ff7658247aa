"""What the files of the group level themselves give reason to doubt, in sentences."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Final

from bids_app.report.anomalies import Anomaly
from bids_app.report.cards import enumerate_words
from bids_app.report.detected import Detected
from bids_app.report.detector_cards import Card
from bids_app.report.detectors import title_of
from bids_app.report.results import IMAGE

FEW: Final = 20  # held-out controls; with fewer, what to expect of them is coarse (our choice)


def doubts_of(output_dir: Path, detected: Detected) -> list[str]:
    """List what is missing, who took part twice, and what too few controls cannot tell.

    Parameters
    ----------
    output_dir : Path
        The derivative dataset.
    detected : Detected
        Its tables and cards.
    """
    return [
        *detected.faults,
        *_trained_on_patients(detected),
        *_synthetic_controls(output_dir, detected),
        *_calibration(detected),
        *_flat_maps(detected),
        *_left_over(detected),
    ]


def current(output_dir: Path, anomalies: Sequence[Anomaly], detected: Detected) -> list[Anomaly]:
    """Leave out maps that an earlier run has left."""
    own = {one.path for one in detected.maps}
    return [one for one in anomalies if one.path_in(output_dir) in own]


def _left_over(detected: Detected) -> list[str]:
    """Name what lies in the dataset and is not of this run, in one sentence."""
    scored = {one.participant for one in detected.maps}
    people, others = set[str](), dict[str, set[str]]()
    for one in detected.stale_maps:
        if one.path.startswith(tuple(f"{folder}/" for folder in detected.stale_folders)):
            continue
        if one.participant in scored:
            title = title_of(one.training_set, one.detector)
            others.setdefault(title, set()).add(one.participant)
        else:
            people.add(one.participant)
    parts = [f"all maps of {_list(people)}"] if people else []
    parts += [f"maps of {title} of {_list(own)}" for title, own in sorted(others.items())]
    if detected.stale_folders:
        parts.append(f"all of {enumerate_words(detected.stale_folders)}")
    if not parts:
        return []
    return [f"Left over from an earlier run, and no part of this report: {'; '.join(parts)}."]


def _own_cards(detected: Detected) -> Mapping[str, Card]:
    """Keep cards whose controls are people of this dataset: sub-01 of another is somebody else."""
    return {
        name: card
        for name, card in detected.cards.items()
        if not detected.dataset or card.dataset == detected.dataset
    }


def _trained_on_patients(detected: Detected) -> list[str]:
    """Find patients that a detector was trained on, so that it takes them for healthy."""
    patients = set(detected.participants)
    both = {
        name: patients & {one.participant for one in card.members}
        for name, card in _own_cards(detected).items()
    }
    return [
        f"The detectors of {name} were trained on people who are scored as patients: "
        f"{_list(people)}. Their maps show too little."
        for name, people in both.items()
        if people
    ]


def _synthetic_controls(output_dir: Path, detected: Detected) -> list[str]:
    """Find controls that were scored although only synthetic PET of them is there."""
    sentences = []
    for name, card in _own_cards(detected).items():
        scored = {
            visit
            for which, scores in detected.control_scores.items()
            if which.training_set == name
            for visit in scores
        }
        lacking = {one for one in _made_up(card, scored) if not _has_pet(output_dir, one)}
        if lacking:
            sentences.append(
                f"Controls of {name} were scored, but no real PET of them is in this dataset: "
                f"{_list(lacking)}. Synthetic PET must not stand for healthy people."
            )
    return sentences


def _made_up(card: Card, scored: Iterable[str]) -> set[str]:
    visits = set(scored)
    return {one.participant for one in card.members if one.synthetic and one.visit in visits}


def _has_pet(output_dir: Path, participant: str) -> bool:
    """Tell whether someone has a real PET; of those whose folder is gone it is taken on trust."""
    folder = output_dir / f"sub-{participant}"
    return not folder.exists() or any(folder.glob(f"**/pet/*_desc-preproc_pet{IMAGE}"))


def _calibration(detected: Detected) -> list[str]:
    sentences = []
    for name in detected.cards:
        counts = {
            len(scores)
            for which, scores in detected.control_scores.items()
            if which.training_set == name and scores
        }
        if not counts:
            sentences.append(
                f"No control was held out for {name}: nothing tells how many such clusters healthy "
                "people have."
            )
        elif min(counts) < FEW:
            few = min(counts)
            sentences.append(
                f"Only {few} control{'s' * (few != 1)} held out for {name}: what is "
                f"expected in a healthy control is coarse, in steps of {1 / few:.2g}."
            )
    return sentences


def _flat_maps(detected: Detected) -> list[str]:
    """Find detectors by which a control has no cluster: then patients seem to have too many."""
    sentences = []
    for which, scores in detected.control_scores.items():
        without = sum(not own for own in scores.values())
        if without:
            sentences.append(
                f"{without} of {len(scores)} held-out controls have no cluster by "
                f"{title_of(which.training_set, which.detector)}. Where that is because many of "
                "their voxels score alike, as with very few controls to train on, too little is "
                "expected of a healthy control."
            )
    return sentences


def _list(people: Iterable[str]) -> str:
    return enumerate_words([f"sub-{label}" for label in sorted(people)])
