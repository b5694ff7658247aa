"""Report of the group level, ``group.html``, from files on disk only."""

from collections.abc import Iterable, Mapping, Sequence
from math import isnan
from pathlib import Path
from typing import Final, Unpack

from bids_app.derivatives.detections import Anomaly, Listed, find_anomalies, is_outdated
from bids_app.derivatives.paths import resolution_label
from bids_app.detection.card import OF_CLUSTERS, Control, DetectorCard
from bids_app.detection.clusters import Cluster
from bids_app.detection.detectors import LEADING, needing_synthetic, rank_of
from bids_app.detection.distribution import compare_kinds
from bids_app.detection.evaluation import FALSE_RATES, CurvePoint, FreePoint, McNemarTest, point_at
from bids_app.errors import NAMED_AT_MOST, count_noun, name_some
from bids_app.report.anomalies import (
    NO_CONTROLS,
    UNITS,
    Detected,
    DetectorKey,
    cells_of,
    describe_absence,
    find_detected,
    format_score,
    in_rank,
    is_rare,
    key_of,
    lesions_known,
    name_of,
    title_of,
)
from bids_app.report.cards import describe_grid
from bids_app.report.charts import (
    Calibration,
    calibration_lines,
    calibrations_of,
    draw_calibration,
    draw_detection,
    draw_responses,
    tally_of,
)
from bids_app.report.maps import draw_cluster_maps
from bids_app.report.methods import group_methods
from bids_app.report.page import (
    UNKNOWN,
    RunSummary,
    describe_demonstration,
    describe_settings,
    detector_of_run,
    enumerate_words,
    name_visit,
    read_record,
    write_report,
)
from bids_app.report.table1 import SIGNIFICANT, show_p

SHOWN: Final = (1, 5, 10)  # clusters per patient at which detectors are compared (our choice)
MAKER_KEYS: Final = ("intended_use", "trained_on")  # copied from a generator's card to a detector's


def matches_of(detected: Detected) -> list[dict[str, object]]:
    """Lay out McNemar's tests in a table per unit, with pairs in the order of the detectors.

    A cell gives, for one number of clusters, the counts found only by the first and only by the
    second detector, p after Holm's correction, and whether p is significant.
    """
    tests = {unit: [t for t in detected.comparisons if t.unit == unit] for unit in UNITS}
    tables = [_matches(of_unit, unit) for unit, of_unit in tests.items()]
    return [table for table in tables if table["pairs"]]


def _matches(tests: Sequence[McNemarTest], unit: str) -> dict[str, object]:
    by_pair = {
        (_first_detector(test), _second_detector(test), test.clusters): test for test in tests
    }
    clusters = [n for n in SHOWN if any(test.clusters == n for test in tests)]
    pairs = [
        (one, other)
        for one in in_rank(map(_first_detector, tests))
        for other in in_rank(map(_second_detector, tests))
        if any((one, other, n) in by_pair for n in clusters)
    ]
    return {
        "unit": unit,
        "n": " or ".join(map(str, sorted({test.n for test in tests}))),
        "clusters": clusters,
        "pairs": [
            (
                title_of(*one),
                title_of(*other),
                [_cell(by_pair.get((one, other, n))) for n in clusters],
            )
            for one, other in pairs
        ],
    }


def _first_detector(test: McNemarTest) -> DetectorKey:
    return test.training_set_1, test.detector_1


def _second_detector(test: McNemarTest) -> DetectorKey:
    return test.training_set_2, test.detector_2


def _cell(test: McNemarTest | None) -> tuple[str, str, str, bool]:
    if test is None:
        return "n/a", "n/a", "n/a", False
    significant = test.p_holm is not None and test.p_holm < SIGNIFICANT
    return str(test.only_1), str(test.only_2), show_p(test.p_holm), significant


FIRST: Final = 3  # ranks per patient in the table of clusters


def describe_card(card: DetectorCard) -> dict[str, object]:
    """Describe a card for the page's template; fields that the card lacks are empty."""
    n_synthetic = sum(control.synthetic for control in card.controls)
    return {
        "named": ", ".join(map(name_of, card.detectors)),
        "real": len(card.controls) - n_synthetic,
        "synthetic": n_synthetic,
        "generators": _generators(card),
        "makers": card.makers,
        "folds": card.folds,
        "grid": describe_grid(card.template, card.shape, card.affine),
        "dataset": card.dataset,
        "intended_use": card.intended_use,
        "seed": str(card.seed) if card.seed >= 0 else "",
        "parameters": flatten(card.parameters),
        "controls": [
            (name_visit(one.participant, one.session), _generator_of(one), one.fold)
            for one in card.controls
        ],
    }


def _generator_of(control: Control) -> str:
    """Return the name of the generator of a control's synthetic PET; empty for real PET."""
    if not control.synthetic:
        return ""
    return control.generator if control.generator else UNKNOWN


def _generators(card: DetectorCard) -> list[str]:
    """List the distinct generators of the synthetic PET."""
    return list(dict.fromkeys(filter(None, map(_generator_of, card.controls))))


def describe_training(name: str, card: DetectorCard) -> str:
    """Describe the controls on which the detectors of a training set were trained."""
    total, n_synthetic = len(card.controls), sum(control.synthetic for control in card.controls)
    if not total:
        return f"{name}: its card names no controls."
    if not n_synthetic:
        return f"{name}: {count_noun(total, 'control')}, all with real PET."
    parts = [f"{total - n_synthetic} with real PET"] if n_synthetic < total else []
    parts.append(f"{n_synthetic} with SYNTHETIC PET (generator: {', '.join(_generators(card))})")
    return f"{name}: {count_noun(total, 'control')}, {enumerate_words(parts)}."


def describe_scoring(detected: Detected) -> list[str]:
    """Describe which patients were scored by which detectors, and the controls for comparison."""
    kinds = dict.fromkeys(name_of(detector) for _, detector in detected.detectors)
    suffix = f" by {enumerate_words(list(kinds))}" if kinds else ""
    sentences = [f"{count_noun(len(detected.participants), 'patient')}, scored{suffix}."]
    controls = {name for scores in detected.control_scores.values() for name in scores}
    if controls:
        sentences.append(
            f"{count_noun(len(controls), 'control')}, for comparison: each scored on real PET, by "
            "detectors that had not been trained on that control."
        )
    return sentences


def summaries_of(detected: Detected, calibrations: Sequence[Calibration]) -> list[tuple[str, ...]]:
    """Summarize each detector in a line.

    The cells are its name, its number of clusters, the patients beyond all controls, and the
    lesions found by the first and by the first clusters up to the end of the curve.
    """
    return [_summary(detected, calibration) for calibration in calibrations]


def describe_interval(point: CurvePoint) -> str:
    """Format a sensitivity with its confidence interval.

    Examples
    --------
    >>> numbers = {"clusters": 1, "n": 17, "found": 9, "sensitivity": 9 / 17, "low": 0.31}
    >>> false = {"false_clusters_per_patient": 1.0, "false_clusters_per_control": None}
    >>> describe_interval(CurvePoint("real", "ocsvm", "lesion", high=0.74, **numbers, **false))
    '9 of 17 (53 %; 31 to 74 %)'
    """
    has_interval = not isnan(point.low) and not isnan(point.high)
    interval = f"; {100 * point.low:.0f} to {100 * point.high:.0f} %" if has_interval else ""
    return f"{point.found} of {point.n} ({100 * point.sensitivity:.0f} %{interval})"


def _summary(detected: Detected, calibration: Calibration) -> tuple[str, ...]:
    detector = calibration.detector
    lesion_points = [p for p in detected.curve if key_of(p) == detector and p.unit == "lesion"]
    points = sorted(lesion_points, key=lambda point: point.clusters)
    beyond = tally_of(calibration)
    if calibration.beyond:
        beyond += f": {'; '.join(calibration.beyond)}"
    return (
        title_of(*detector),
        str(
            sum(len(listed.clusters) for listed in detected.clusters if key_of(listed) == detector)
        ),
        beyond if calibration.controls else "n/a",
        *(map(describe_interval, (points[0], points[-1])) if points else ("n/a", "n/a")),
    )


def cluster_table(detected: Detected, detector: DetectorKey) -> dict[str, object]:
    """List the first clusters of each patient by one detector."""
    visits = [listed for listed in detected.clusters if key_of(listed) == detector]
    visits.sort(key=lambda listed: (listed.participant, listed.session if listed.session else ""))
    first = [
        (listed, cluster)
        for listed in visits
        for cluster in sorted(listed.clusters, key=lambda cluster: cluster.rank)
        if cluster.rank <= FIRST
    ]
    with_clusters = {
        (listed.participant, listed.session if listed.session else "") for listed in visits
    }
    without_clusters = [
        visit for visit in detected.patients_of(detector) if visit not in with_clusters
    ]
    return {
        "title": title_of(*detector),
        "lines": [_line(listed, cluster) for listed, cluster in first],
        "none": [f"sub-{participant}" for participant, _ in without_clusters],
        "lesions": lesions_known([cluster for _, cluster in first]),
    }


def _lead(key: DetectorKey) -> tuple[int, int]:
    """Return a sort key: training sets in their order, then the detector that finds most."""
    training_set, detector = key
    number = LEADING.index(detector) if detector in LEADING else len(LEADING)
    return rank_of(training_set, "")[0], number


def _line(listed: Listed, cluster: Cluster) -> dict[str, object]:
    return {
        "visit": name_visit(listed.participant, listed.session),
        "page": _page(listed.participant),
        "cells": cells_of(cluster),
        "cluster": cluster,
        "rare": is_rare(cluster),
    }


FEW: Final = 20  # held-out controls; with fewer, expected counts are coarse (our choice)


def doubts_of(output_dir: Path, detected: Detected) -> list[str]:
    """List caveats: missing files, people used in two roles, and limits of few controls.

    Parameters
    ----------
    output_dir : Path
        Path of the derivative dataset.
    detected : Detected
        Tables and cards of the dataset.
    """
    return [
        *detected.faults,
        *_trained_on_patients(detected),
        *_synthetic_controls(output_dir, detected),
        *_calibration(detected),
        *_flat_maps(detected),
        *_describe_stale(detected),
        *_describe_outdated(output_dir, detected),
    ]


def _describe_stale(detected: Detected) -> list[str]:
    """Name the files left over from earlier runs, in at most one sentence."""
    scored = {subject.participant for subject in detected.maps}
    participants, others = set[str](), dict[str, set[str]]()
    for subject in detected.stale_maps:
        if subject.path.startswith(tuple(f"{folder}/" for folder in detected.stale_folders)):
            continue
        if subject.participant in scored:
            title = title_of(subject.training_set, subject.detector)
            others.setdefault(title, set()).add(subject.participant)
        else:
            participants.add(subject.participant)
    parts = [f"all maps of {_list(participants)}"] if participants else []
    parts += [f"maps of {title} of {_list(labels)}" for title, labels in sorted(others.items())]
    if detected.stale_folders:
        parts.append(f"all of {enumerate_words(detected.stale_folders)}")
    if not parts:
        return []
    return [f"Left over from an earlier run, and not part of this report: {'; '.join(parts)}."]


def _describe_outdated(output_dir: Path, detected: Detected) -> list[str]:
    """Name those whose images have been replaced since this run, in at most one sentence."""
    paths = {output_dir / subject.path for subject in detected.maps}
    labels = {
        anomaly.subject
        for anomaly in find_anomalies(output_dir, "*")
        if anomaly.paths["statmap"] in paths and is_outdated(output_dir, anomaly)
    }
    if not labels:
        return []
    return [
        f"The images of {_list(labels)} have been replaced since, so what is said of them here is "
        "out of date; run the group level again."
    ]


def _cards_of_dataset(detected: Detected) -> Mapping[str, DetectorCard]:
    """Select cards with controls of this dataset, since sub-01 of another is a different person."""
    return {
        name: card
        for name, card in detected.cards.items()
        if not detected.dataset or card.dataset == detected.dataset
    }


def _trained_on_patients(detected: Detected) -> list[str]:
    """Find patients on whom a detector was trained, so that it treats them as healthy."""
    patients = set(detected.participants)
    overlaps = {
        name: patients & {_label(control) for control in card.controls}
        for name, card in _cards_of_dataset(detected).items()
    }
    return [
        f"The detectors of {name} were trained on people who are scored as patients: "
        f"{_list(labels)}. Their maps may miss abnormalities."
        for name, labels in overlaps.items()
        if labels
    ]


def _synthetic_controls(output_dir: Path, detected: Detected) -> list[str]:
    """Find controls that were scored although only synthetic PET of them exists."""
    sentences = []
    for name, card in _cards_of_dataset(detected).items():
        scored = {
            visit
            for (training_set, _), scores in detected.control_scores.items()
            if training_set == name
            for visit in scores
        }
        synthetic = {
            _label(control)
            for control in card.controls
            if control.synthetic and name_visit(control.participant, control.session) in scored
        }
        lacking = {label for label in synthetic if not _has_pet(output_dir, label)}
        if lacking:
            sentences.append(
                f"Controls of {name} were scored, but no real PET of them is in this dataset: "
                f"{_list(lacking)}. Synthetic PET must not be used as a substitute for healthy "
                "people."
            )
    return sentences


def _label(control: Control) -> str:
    return control.participant.removeprefix("sub-")


def _has_pet(output_dir: Path, participant: str) -> bool:
    """Return whether a participant has a real PET; this is assumed if the folder is gone."""
    folder = output_dir / f"sub-{participant}"
    return not folder.exists() or any(folder.glob("**/pet/*_desc-preproc_pet.nii.gz"))


def _calibration(detected: Detected) -> list[str]:
    names_by_count: dict[int, list[str]] = {}
    for name in detected.cards:
        counts = {
            len(scores)
            for (training_set, _), scores in detected.control_scores.items()
            if training_set == name and scores
        }
        names_by_count.setdefault(min(counts, default=0), []).append(name)
    sentences = []
    for n_controls, names in names_by_count.items():
        sets = f"Training set{'s' * (len(names) > 1)} {enumerate_words(names)}"
        if not n_controls:
            sentences.append(
                f"{sets}: {NO_CONTROLS}, so the number of such clusters in healthy people is "
                "unknown."
            )
        elif n_controls < FEW:
            sentences.append(
                f"{sets}: only {count_noun(n_controls, 'control')} "
                f"{'was' if n_controls == 1 else 'were'} held out, so the expected numbers "
                f"of clusters below are multiples of {1 / n_controls:.3g}."
            )
    return sentences


def _flat_maps(detected: Detected) -> list[str]:
    """Find detectors with no cluster in some controls, which may make expected counts too low."""
    sentences = []
    for detector, scores in detected.control_scores.items():
        without = sum(not sums for sums in scores.values())
        if without:
            sentences.append(
                f"{without} of {len(scores)} held-out controls have no cluster by "
                f"{title_of(*detector)}. If this is because many of their voxels have equal "
                "scores, as with very few training controls, the expected counts for a healthy "
                "control are too low."
            )
    return sentences


def _list(labels: Iterable[str]) -> str:
    names = [f"sub-{label}" for label in sorted(labels)]
    return name_some(names) if len(names) > NAMED_AT_MOST else enumerate_words(names)


NAME: Final = "group"  # of the report and of its record
MOST_PICTURED: Final = 40  # patients; the others are only shown in their own reports (our choice)


def write_group_report(
    output_dir: Path, *, template: str, resolution: float, **summary: Unpack[RunSummary]
) -> Path:
    """Write ``group.html``.

    Fields missing from ``summary`` are taken from the record of the last run,
    ``logs/group_report.json``, to which given fields are written. The report covers the maps of
    that run, as recorded by :func:`bids_app.derivatives.detections.write_run`.

    Parameters
    ----------
    output_dir : Path
        Path of the derivative dataset.
    template : str
        Name of the template, as a ``space-`` label.
    resolution : float
        Resolution of the images in template space, in mm.
    **summary
        Summary of the run; see :class:`bids_app.report.page.RunSummary`.

    Returns
    -------
    Path
        Path of the report; see :func:`bids_app.report.page.write_report`.
    """

    def gather(record: RunSummary) -> dict[str, object]:
        detected = find_detected(output_dir, detector_of_run(record), record["settings"])
        space = f"{template}_res-{resolution_label(resolution)}"
        patients = detected.participants
        return {
            "space": f"{template}, voxels of {resolution:g} mm",
            "doubts": doubts_of(output_dir, detected),
            "maps": [
                (_page(label), panel)
                for label in patients[:MOST_PICTURED]
                for panel in draw_cluster_maps(
                    output_dir, _maps(output_dir, label, detected, space)
                )
            ],
            "unpictured": [
                (_page(label), name_visit(label, None)) for label in patients[MOST_PICTURED:]
            ],
            "methods": _methods(detected, record),
            "no_controls": NO_CONTROLS,
            "absence": describe_absence(record["settings"]),
            "selective": isinstance(record["settings"].get("expected_false"), int | float),
            **_detectors(detected),
            **_results(detected),
        }

    return write_report(output_dir, NAME, summary, "group.html", gather)


def write_group_methods(output_dir: Path) -> str:
    """Return the methods paragraph of the last run, as plain text."""
    record = read_record(output_dir, NAME)
    detected = find_detected(output_dir, detector_of_run(record), record["settings"])
    return _methods(detected, record)


def _methods(detected: Detected, record: RunSummary) -> str:
    settings = describe_settings(record["settings"])
    parameters = [flatten(card.parameters) for card in detected.cards.values()]
    by_name = {key.rpartition(".")[2]: v for flat in parameters for key, v in flat.items()}
    own = {name: value for name, value in record["settings"].items() if name in OF_CLUSTERS}
    return group_methods(detected, record["versions"], {**settings, **by_name, **flatten(own)})


def _maps(output_dir: Path, label: str, detected: Detected, space: str) -> list[Anomaly]:
    """Find the maps of a patient, except those left over from an earlier run or images."""
    paths = {output_dir / subject.path for subject in detected.maps}
    anomalies = find_anomalies(output_dir, label, spaces=(space,))
    return [
        anomaly
        for anomaly in anomalies
        if anomaly.paths["statmap"] in paths and not is_outdated(output_dir, anomaly)
    ]


def _page(label: str) -> str:
    return f"sub-{label}.html"


def flatten(values: Mapping[str, object], before: str = "") -> dict[str, str]:
    """Flatten nested parameters, joining names by a dot.

    Examples
    --------
    >>> flatten({"nu": 0.03, "network": {"width": 3, "ages": [[51.666666], [20]]}})
    {'nu': '0.03', 'network.width': '3', 'network.ages': '51.6667, 20'}
    """
    flat = dict[str, str]()
    for key, value in values.items():
        if isinstance(value, dict):
            flat |= flatten(value, f"{before}{key}.")
        elif value is not None:
            flat[f"{before}{key}"] = _write(value)
    return flat


def _write(value: object) -> str:
    if isinstance(value, list):
        return ", ".join(map(_write, value))
    return f"{value:g}" if isinstance(value, float) else str(value)


def _detectors(detected: Detected) -> dict[str, object]:
    """Describe the training of the detectors."""
    cards = detected.cards
    makers = [maker for card in cards.values() for maker in card.makers]
    doubtful = {
        maker.get("name", UNKNOWN): reason
        for maker in makers
        if (reason := describe_demonstration(*(maker.get(key, "") for key in MAKER_KEYS)))
    }
    comparing = needing_synthetic(dict.fromkeys(detector for _, detector in detected.detectors))
    return {
        "cards": {name: describe_card(card) for name, card in cards.items()},
        "demonstration": describe_demonstration(
            *(text for card in cards.values() for text in (card.intended_use, card.dataset))
        ),
        "makers": enumerate_words(sorted(doubtful)) if doubtful else "",
        "made_by": " or ".join(sorted(set(doubtful.values()))),
        "comparing": list(map(name_of, comparing)),
        "synthetic": _describe_synthetic(detected, comparing),
        "distribution": describe_distribution(detected),
        "training": [describe_training(name, card) for name, card in cards.items()],
        "scoring": describe_scoring(detected),
    }


VERDICTS: Final = {
    "alike": "Detectors that were trained on real PET score synthetic PET and real PET of held-out "
    "controls similarly",
    "too typical": "Synthetic PET is more typical than real PET of healthy people. Detectors "
    "trained on it treat normal variation as abnormal; compare clusters with those of held-out "
    "controls",
    "too unusual": "Synthetic PET is more unusual than real PET of healthy people. Detectors "
    "trained on it treat as normal what no healthy person shows; train the generator longer or on "
    "more controls, or use --training-set real",
}


def describe_distribution(detected: Detected) -> dict[str, object]:
    """Compare the distributions of synthetic and real PET.

    The sentence is empty if no detector was trained on synthetic PET.
    """
    if not any(control.synthetic for card in detected.cards.values() for control in card.controls):
        return {"sentence": "", "lines": []}
    comparisons = compare_kinds(detected.checked)
    if not comparisons:
        return {
            "lines": [],
            "sentence": "Whether synthetic PET has the same distribution as real PET was not "
            "examined: this needs one-class SVMs trained on real PET, and controls held out from "
            "them. Include real in --training-set, and ocsvm in --detectors.",
        }
    whole = comparisons[0]
    counts = f"{whole.synthetic} synthetic against {whole.real} held-out real PET"
    return {
        "sentence": f"{VERDICTS[whole.verdict]}. Over the whole brain, a synthetic PET scores "
        f"higher than a held-out real one in {100 * whole.score_area:.0f} % of all pairs "
        f"({counts}); 50 % would mean no difference.",
        "lines": [
            [
                comparison.region,
                *map(format_score, (comparison.error_real, comparison.error_synthetic)),
                *map(format_score, (comparison.score_real, comparison.score_synthetic)),
                f"{100 * comparison.score_area:.0f} %",
                comparison.verdict,
            ]
            for comparison in comparisons
        ],
    }


def _results(detected: Detected) -> dict[str, object]:
    """Build the tables and charts."""
    calibrations = calibrations_of(detected)
    return {
        "evaluated": bool(detected.curve),
        "most": max((point.clusters for point in detected.curve), default=0),
        "summaries": summaries_of(detected, calibrations),
        "tables": [cluster_table(detected, key) for key in sorted(detected.detectors, key=_lead)],
        "curve": draw_detection(detected),
        "free": draw_responses(detected),
        "false_rates": [f"{rate:g}" for rate in FALSE_RATES],
        "operating": operating_lines(detected),
        "matches": matches_of(detected),
        "calibration": draw_calibration(calibrations, detected.training_sets),
        "calibration_lines": calibration_lines(calibrations),
    }


def operating_lines(detected: Detected) -> dict[str, list[list[str]]]:
    """Format sensitivities at given rates of false clusters per held-out control, by unit."""
    lines: dict[str, list[list[str]]] = {}
    for unit in dict.fromkeys(point.unit for point in detected.responses):
        unit_points = [point for point in detected.responses if point.unit == unit]
        for detector in in_rank(map(key_of, unit_points)):
            points = [point for point in unit_points if key_of(point) == detector]
            cells = [_operating_cell(point_at(points, rate)) for rate in FALSE_RATES]
            lines.setdefault(unit, []).append([title_of(*detector), *cells])
    return lines


def _operating_cell(point: FreePoint | None) -> str:
    """Format a sensitivity with its confidence interval.

    Examples
    --------
    >>> _operating_cell(FreePoint("real", "zscore", "lesion", 9.0, 0.5, 0.625, 0.41, 0.8))
    '0.62 (0.41 to 0.80)'
    >>> _operating_cell(None)
    'none found'
    """
    if point is None:
        return "none found"
    if isnan(point.low) or isnan(point.high):
        return f"{point.sensitivity:.2f}"
    return f"{point.sensitivity:.2f} ({point.low:.2f} to {point.high:.2f})"


def _describe_synthetic(detected: Detected, comparing: Iterable[str]) -> str:
    """Describe which detectors make use of synthetic PET; return an empty string if none does."""
    sets = [name for name, card in detected.cards.items() if _generators(card)]
    parts = []
    if sets:
        parts.append(f"detectors of {enumerate_words(sets)} were trained on synthetic PET")
    parts += [
        f"the detector “{name_of(name)}” compares real with synthetic PET" for name in comparing
    ]
    return "; ".join(parts)
