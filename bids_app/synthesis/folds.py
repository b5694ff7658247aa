"""Who validates what: the folds of a cross-validation over subjects."""

from collections.abc import Iterable

import numpy as np

from bids_app.errors import UnusableDataError, UsageError

FEWEST = 2  # with one fold, no one would be left to train on


def split(
    subjects: Iterable[str], folds: int, random: np.random.Generator
) -> list[tuple[str, ...]]:
    """Deal subjects out to the validation sets of a cross-validation.

    Parameters
    ----------
    subjects : iterable of str
        Labels, in any order; one that comes twice (two visits) counts once, so that all images of
        a subject are on one side.
    folds : int
        How many sets: 4 in Zotova et al. (2021), section 3.2.
    random : numpy.random.Generator
        Decides who comes where.

    Returns
    -------
    list of tuple of str
        Disjoint, together all subjects; sizes differ by one at most, the larger ones first. Those
        who are not in a fold's set are its training set.

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
    >>> [len(one) for one in sets]
    [9, 9, 9, 8]
    """
    everyone = sorted(set(subjects))
    if folds < FEWEST:
        raise UsageError(f"--folds {folds}: cross-validation needs at least {FEWEST}")
    if len(everyone) < folds:
        raise UnusableDataError(
            f"{len(everyone)} subject(s) with T1w and PET are fewer than --folds {folds}; "
            "choose fewer folds, or add subjects"
        )
    order = [everyone[index] for index in random.permutation(len(everyone))]
    size, larger = divmod(len(order), folds)
    ends = [(fold + 1) * size + min(fold + 1, larger) for fold in range(folds)]
    return [
        tuple(sorted(order[start:end])) for start, end in zip([0, *ends[:-1]], ends, strict=True)
    ]
