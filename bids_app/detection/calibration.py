"""What a cluster's score means: how often healthy people have such a cluster too."""

from collections.abc import Sequence


def expected_in_control(
    sum_score: float, control_sum_scores: Sequence[Sequence[float]]
) -> float | None:
    """Give how many clusters of at least this score a healthy control is expected to have.

    The mean over controls that took no part in training. The paper does not do this. It is a
    number of clusters, not a probability: it can exceed 1.

    Parameters
    ----------
    sum_score : float
        Sum of the scores of a patient's cluster.
    control_sum_scores : sequence of sequences of float
        For each held-out control, those of all of its clusters, of the same detector and training
        set; an empty one for a control that has none.

    Returns
    -------
    float or None
        From 0; None without controls.

    Examples
    --------
    Of three controls one has two such clusters, one has one, one has none:

    >>> expected_in_control(10.0, [[30.0, 10.0, 2.0], [12.0], []])
    1.0
    """
    if not control_sum_scores:
        return None
    at_least = sum(one >= sum_score for scores in control_sum_scores for one in scores)
    return at_least / len(control_sum_scores)
