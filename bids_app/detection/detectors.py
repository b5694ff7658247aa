"""Table of the detectors: their names, the meaning of their scores, and how they are plotted.

Nothing that computes is imported here, because the command line reads this table, too.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

TRAINING_SETS = ("real", "hybrid", "synthetic")  # in the order in which they are shown
CHANNELS = ("pet", "t1w+pet")  # choices of --channels: images that patches are extracted from
DIRECTIONS = {  # choice of --direction → meaning of a score
    "hypo": "lower uptake gives higher scores",
    "hyper": "higher uptake gives higher scores",
    "both": "lower and higher uptake score alike",
}


@dataclass(frozen=True)
class Detector:
    """Properties of an anomaly detector, apart from its computation.

    The defaults describe a detector that this version of the app does not know.

    Parameters
    ----------
    label : str
        Human-readable name.
    meaning : str
        Meaning of a score, in reports.
    score, statmap, clusters : str
        Meaning of a score, in the data dictionary of tables and in the sidecar of a map; meaning of
        its label ``desc-``, in ``descriptions.tsv``.
    unit : str
        Unit of a score.
    dash : str
        Dash pattern of its lines in charts, in SVG syntax; the colour of a line is that of the
        training set.
    method : {"svm", "norm"}
        Method of fitting and scoring: see :func:`bids_app.workflows.detection.init_detector_wf`.
        The measures that a ``norm`` compares are in :mod:`bids_app.detection.normative`.
    synthetic : bool
        Whether the detector compares a PET with the synthetic one of the same visit.
    mirrored : bool
        Whether the detector compares left with right, which requires a symmetric template.
    training_sets : tuple of str
        Training sets that it can be fitted to.
    """

    label: str
    meaning: str = "higher is more abnormal"
    score: str = ""
    statmap: str = ""
    clusters: str = ""
    unit: str = ""
    dash: str = "1 3"
    method: Literal["svm", "norm"] = "norm"
    synthetic: bool = False
    mirrored: bool = False
    training_sets: tuple[str, ...] = TRAINING_SETS


DETECTORS = {  # in the order in which they are shown
    "ocsvm": Detector(
        label="OC-SVM",
        meaning="distance beyond the boundary that a one-class SVM draws around its training "
        "controls at that voxel. Scores above 0 lie outside, as they do in much of the brain of a "
        "held-out control",
        score="One one-class SVM per voxel, on latents of patches. Zotova et al. (2021), section "
        "2.2; score 0 is its boundary around the controls that it was trained on",
        statmap="minus the decision function of a one-class SVM on the latents of patches; above 0 "
        "lies outside the boundary of the controls it was trained on, as does much of the brain of "
        "a held-out control",
        clusters="Anomaly map of one-class SVMs, one per voxel, and its clusters",
        unit="distance to the boundary",
        dash="",
        method="svm",
    ),
    "zscore": Detector(
        label="z score",
        meaning="how far uptake is from that of controls, as Crawford and Howell's t",
        score="Crawford-Howell t of uptake against controls, of smoothed PET",
        statmap="Crawford-Howell t of uptake against controls, after smoothing",
        clusters="Anomaly map against controls, voxel by voxel (Crawford-Howell t), and its "
        "clusters",
        unit="t",
        dash="7 3",
        method="norm",
    ),
    "pseudonormal": Detector(
        label="pseudo-normal",
        meaning="how far uptake is from the synthetic PET predicted from the participant's own "
        "T1w, compared with the same difference in controls, as Crawford and Howell's t",
        score="Crawford-Howell t of the difference between synthetic and real PET",
        statmap="t of the difference between synthetic and real PET, against that in controls",
        clusters="Anomaly map of synthetic minus real PET, and its clusters",
        unit="t",
        dash="2 3",
        method="norm",
        synthetic=True,
        training_sets=("real",),
    ),
    "asymmetry": Detector(
        label="asymmetry",
        meaning="how far uptake is from that at the same place on the other side, compared with "
        "the same difference in controls, as Crawford and Howell's t. It cannot tell which side "
        "has changed, cannot detect bilateral or midline lesions, and needs a symmetric template",
        score="Crawford-Howell t of left-right asymmetry, (this side - other side) / mean of "
        "both, of smoothed PET; blind to bilateral and midline lesions",
        statmap="Crawford-Howell t of left-right asymmetry against controls, after smoothing; "
        "blind to bilateral and midline lesions",
        clusters="Anomaly map of left-right asymmetry against controls, and its clusters; blind to "
        "bilateral and midline lesions",
        unit="t",
        dash="6 2 1 2",
        method="norm",
        mirrored=True,
    ),
    "combined": Detector(
        label="z + asymmetry",
        meaning="mean of the z score and of the left-right asymmetry of uptake, both as Crawford "
        "and Howell's t. It is less sensitive to bilateral and midline lesions, needs a symmetric "
        "template, and also gives high scores to healthy tissue if the same place on the other "
        "side is abnormal in the other direction",
        score="Mean of two Crawford-Howell t, of uptake and of left-right asymmetry; less "
        "sensitive to bilateral and midline lesions than to others",
        statmap="mean of the Crawford-Howell t of uptake and of that of left-right asymmetry, "
        "both against controls, after smoothing; less sensitive to bilateral and midline lesions "
        "than to others",
        clusters="Mean of the anomaly maps of uptake and of left-right asymmetry against controls, "
        "and its clusters; less sensitive to bilateral and midline lesions than to others",
        unit="t",
        dash="8 2 2 2 2 2",
        method="norm",
        mirrored=True,
    ),
}
# The detector of the paper, that in common use, and the one that finds most lesions in simulated
# patients (docs/results/detection.md)
DEFAULT_DETECTORS = ("ocsvm", "zscore", "combined")


# Order in which detectors lead a report: those that find most in simulated patients first, except
# that one blind to bilateral lesions does not precede a better one (docs/results/detection.md)
LEADING = ("combined", "zscore", "asymmetry", "pseudonormal", "ocsvm")


def detector_of(name: str) -> Detector:
    """Look up a detector; the label of an unknown one is its name."""
    return DETECTORS.get(name, Detector(name))


def meaning_of(name: str, direction: str) -> str:
    """Return the meaning of a detector's score, and what scores higher, as far as is known.

    Examples
    --------
    >>> meaning_of("of another version", "hypo")
    'higher is more abnormal. Lower uptake gives higher scores'
    """
    meaning = detector_of(name).meaning
    return (
        f"{meaning}. {DIRECTIONS[direction].capitalize()}" if direction in DIRECTIONS else meaning
    )


def needing_synthetic(names: Iterable[str]) -> list[str]:
    """List the detectors that compare real with synthetic PET, in the order given.

    Examples
    --------
    >>> needing_synthetic(["zscore", "pseudonormal", "of another version"])
    ['pseudonormal']
    """
    return [name for name in names if detector_of(name).synthetic]


def rank_of(training_set: str, detector: str) -> tuple[int, str, int, str]:
    """Return a sort key: training sets in their order, then detectors in theirs."""
    kinds = list(DETECTORS)
    return (
        TRAINING_SETS.index(training_set) if training_set in TRAINING_SETS else len(TRAINING_SETS),
        training_set,
        kinds.index(detector) if detector in kinds else len(kinds),
        detector,
    )
