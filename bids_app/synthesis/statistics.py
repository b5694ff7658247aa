"""Folds of a cross-validation, and the statistics of Table 1: means, deviations and tests."""

import math
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np
from scipy import stats

from bids_app.errors import UnusableDataError, UsageError
from bids_app.imaging.statistics import holm
from bids_app.synthesis.evaluation import METRICS, ROWS, ScoreRecord
from bids_app.synthesis.models import OVERLAPPING

FEWEST_SUBJECTS = 2  # with one fold, nobody would be left to train on


def split(
    subjects: Iterable[str], folds: int, random: np.random.Generator
) -> list[tuple[str, ...]]:
    """Split subjects at random into the validation sets of a cross-validation.

    Parameters
    ----------
    subjects : iterable of str
        Labels, in any order; duplicates (several visits) count once, so that all images of a
        subject are in the same set.
    folds : int
        Number of sets: 4 in Zotova et al. (2021), section 3.2.
    random : numpy.random.Generator
        Source of randomness for the assignment.

    Returns
    -------
    list of tuple of str
        Disjoint sets that together hold all subjects; their sizes differ by at most one, larger
        sets first. The training set of a fold consists of all other subjects.

    Raises
    ------
    UsageError
        If there are fewer than two folds.
    UnusableDataError
        If there are fewer subjects than folds.

    Examples
    --------
    35 controls: 26 to train on and 9 to validate with, as in section 3.2; once 27 and 8.

    >>> sets = split([f"{n:02}" for n in range(35)], 4, np.random.default_rng(0))
    >>> [len(labels) for labels in sets]
    [9, 9, 9, 8]
    """
    labels = sorted(set(subjects))
    if folds < FEWEST_SUBJECTS:
        raise UsageError(f"--folds {folds}: cross-validation needs at least {FEWEST_SUBJECTS}")
    if len(labels) < folds:
        raise UnusableDataError(
            f"{len(labels)} subject(s) with T1w and PET are fewer than --folds {folds}; "
            "choose fewer folds, or add subjects"
        )
    order = [labels[index] for index in random.permutation(len(labels))]
    size, larger = divmod(len(order), folds)
    ends = [(fold + 1) * size + min(fold + 1, larger) for fold in range(folds)]
    return [
        tuple(sorted(order[start:end])) for start, end in zip([0, *ends[:-1]], ends, strict=True)
    ]


FEWEST = 2  # participants, for a standard deviation or a test


@dataclass(frozen=True)
class PairedTest:
    """Comparison of two rows of the table in one metric; unknown values are nan.

    Parameters
    ----------
    metric, model_1, model_2 : str
        A field of ``Scores``, and two keys of ``ROWS``.
    n : int
        Number of participants with a value in both rows.
    median_difference : float
        Median of model_1 - model_2 over participants, in the unit of the metric.
    statistic : float
        Smaller of the sums of ranks of the positive and of the negative differences.
    p, p_holm : float
        Two-tailed p-value, before and after Holm's correction over all pairs of rows in this
        metric.
    """

    metric: str
    model_1: str
    model_2: str
    n: int
    median_difference: float
    statistic: float
    p: float
    p_holm: float


def rows_of(records: Iterable[ScoreRecord]) -> list[str]:
    """List the models and baselines with records, in the order of the table.

    Raises
    ------
    ValueError
        If one is not a row of the table.
    """
    present = {record.model for record in records}
    if not present <= set(ROWS):
        raise ValueError(f"no rows of the table: {sorted(present - set(ROWS))}")
    return [row for row in ROWS if row in present]


def participants_of(records: Iterable[ScoreRecord], model: str) -> int:
    """Count the participants that a model was scored on."""
    return len({record.participant for record in records if record.model == model})


def mean_and_sd(records: Iterable[ScoreRecord], model: str, metric: str) -> tuple[float, float]:
    """Compute the mean and the standard deviation (n - 1) of a metric over participants.

    Participants with several visits count once, with their mean; visits without a value are
    ignored. The result is nan if there are too few participants.
    """
    values = _participant_means(_visits(records, model, metric).items())
    mean = float(np.mean(values)) if values else math.nan
    enough = len(values) >= FEWEST and math.isfinite(mean)
    return mean, float(np.std(values, ddof=1)) if enough else math.nan


def compare_rows(records: Sequence[ScoreRecord]) -> list[PairedTest]:
    """Test all pairs of rows against each other, metric by metric.

    Second lines, which differ from their row only in the merging of triplets, are not tested,
    because each additional row makes Holm's correction stricter for all.

    The test is the two-tailed Wilcoxon signed-rank test: Zotova et al. (2021), section 3.2. Visits
    are paired; the differences of a participant's visits are averaged, because they are not
    independent. Holm's correction is ours: Holm (1979), Scandinavian Journal of Statistics
    6:65-70.

    Raises
    ------
    ValueError
        If a model is not a row of the table, or was scored twice on one visit.
    """
    first_lines = [row for row in rows_of(records) if row not in OVERLAPPING]
    pairs = list(combinations(first_lines, 2))
    comparisons = []
    for metric in METRICS:
        differences = [_differences(records, one, other, metric) for one, other in pairs]
        tests = [signed_rank(each) for each in differences]
        corrected = holm([p for _, p in tests])
        comparisons += [
            PairedTest(
                metric, *pair, len(each), float(np.median(each)) if each else math.nan, *test, p
            )
            for pair, each, test, p in zip(pairs, differences, tests, corrected, strict=True)
        ]
    return comparisons


def signed_rank(differences: Sequence[float]) -> tuple[float, float]:
    """Compute the statistic and the two-tailed p-value of Wilcoxon's signed-rank test.

    Differences of zero are left out (Wilcoxon, 1945, Biometrics Bulletin 1:80-83). The p-value is
    exact up to 50 differences without ties, as in scipy, and 1 if all are zero. Both are nan for
    fewer than two participants.

    Examples
    --------
    Two of the 32 possible combinations of five signs are as one-sided as these:

    >>> signed_rank([1.0, 2.0, 3.0, 4.0, 5.0])
    (0.0, 0.0625)
    """
    if len(differences) < FEWEST:
        return math.nan, math.nan
    moved = [difference for difference in differences if difference != 0]
    if not moved:
        return 0.0, 1.0
    outcome = stats.wilcoxon(moved, alternative="two-sided")
    return float(outcome.statistic), float(outcome.pvalue)


def _visits(
    records: Iterable[ScoreRecord], model: str, metric: str
) -> dict[tuple[str, str | None], float]:
    """Return the values of one row that are not nan."""
    values: dict[tuple[str, str | None], float] = {}
    for record in records:
        if record.model != model:
            continue
        visit = (record.participant, record.session)
        if visit in values:
            raise ValueError(f"{model} was scored twice on {visit}")
        values[visit] = getattr(record.scores, metric)
    return {visit: value for visit, value in values.items() if not math.isnan(value)}


def _participant_means(values: Iterable[tuple[tuple[str, str | None], float]]) -> list[float]:
    grouped: dict[str, list[float]] = defaultdict(list)
    for (participant, _), value in values:
        grouped[participant].append(value)
    return [float(np.mean(grouped[participant])) for participant in sorted(grouped)]


def _differences(records: Iterable[ScoreRecord], one: str, other: str, metric: str) -> list[float]:
    """Return one - other for each participant, averaged over the visits that both rows have."""
    first, second = _visits(records, one, metric), _visits(records, other, metric)
    return _participant_means(
        (visit, 0.0 if first[visit] == second[visit] else first[visit] - second[visit])
        for visit in first.keys() & second.keys()  # equal infinities differ by 0
    )
