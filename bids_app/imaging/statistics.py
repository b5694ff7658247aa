"""Correction of p-values for multiple tests, for Table 1 and for detection curves."""

import math
from collections.abc import Sequence


def holm(p_values: Sequence[float]) -> list[float]:
    """Correct p-values for multiple tests by Holm's step-down method.

    See Holm (1979), Scandinavian Journal of Statistics 6:65-70.

    Parameters
    ----------
    p_values : sequence of float
        Uncorrected p-values. NaN, for tests that were not possible, stays NaN and is not counted.

    Returns
    -------
    list of float
        Corrected p-values in the same order, each at least its uncorrected value and at most 1.

    Examples
    --------
    >>> holm([0.01, 0.04, 0.03, 0.005])
    [0.03, 0.06, 0.06, 0.02]
    """
    order = sorted((p, place) for place, p in enumerate(p_values) if not math.isnan(p))
    corrected = [math.nan] * len(p_values)
    floor = 0.0
    for rank, (p, place) in enumerate(order):
        floor = max(floor, min(1.0, (len(order) - rank) * p))
        corrected[place] = floor
    return corrected
