"""What was done beyond the paper, in sentences for a methods paragraph."""

from typing import Final

OVERLAP: Final = (
    " Triplets of slices began at every slice, and what was predicted of a slice was averaged."
)
MATCHED: Final = (
    " In the brain, the intensities of the predicted image were mapped, quantile by quantile, to "
    "those of the mean PET of the controls that the generator was trained on."
)
UNCERTAINTY: Final = (
    " The standard deviation of the predictions of {folds} generators, each trained without one "
    "fold of the controls, was computed voxel by voxel."
)
NOVELTY: Final = (
    " The T1w image was compared with those that the generator was trained on: by the root mean "
    "square, over cubes of 8 mm in the brain, of the difference of mean and standard deviation "
    "within the cube from theirs, in units of their standard deviation."
)


def tell_beyond(*, overlap: bool, matched: bool, folds: int, novelty: bool) -> str:
    """Tell what was done beyond the paper, each sentence after a space; empty if nothing was.

    Parameters
    ----------
    overlap, matched : bool
        Overlapping triplets were averaged; intensities were matched to the training controls'.
    folds : int
        Generators of folds whose predictions were compared; 0 if none were.
    novelty : bool
        The T1w was compared with those of the training controls.

    Examples
    --------
    >>> tell_beyond(overlap=False, matched=False, folds=0, novelty=False)
    ''
    """
    sentences = (
        (OVERLAP, overlap),
        (MATCHED, matched),
        (UNCERTAINTY.format(folds=folds), folds > 0),
        (NOVELTY, novelty),
    )
    return "".join(sentence for sentence, done in sentences if done)
