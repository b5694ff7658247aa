"""Corrections of p-values for how many tests there are, for Table 1 and for detection curves."""

import math
from collections.abc import Sequence


def holm(p_values: Sequence[float]) -> list[float]:
    """Correct p-values for how many they are, step by step from the smallest.

    Holm (1979), Scandinavian Journal of Statistics 6:65-70.

    Parameters
    ----------
    p_values : sequence of float
        NaN where no test could be made: it stays NaN, and is not counted.

    Returns
    -------
    list of float
        In the same order, each at least its uncorrected value, and 1 at most.

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
