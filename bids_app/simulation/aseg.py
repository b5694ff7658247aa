"""The numbers of a label map, and what tissue each one is.

Brain structures have FreeSurfer's "aseg" numbers. Numbers from 500 on are tissues of the head
around the brain, as whole-head label maps name them; what each is was read off from where it lies
and what it touches in 14 such maps (our measurement).
"""

import numpy as np
from numpy.typing import NDArray

WHITE = (2, 41, 25, 57, 77, 85, 251, 252, 253, 254, 255)
CORTEX = (3, 42)
FLUID = (4, 5, 14, 15, 24, 30, 43, 44, 62, 72)  # ventricles, vessels in the brain, and around it
PLEXUS = (31, 63, 136, 137, 163, 164)
CEREBELLAR_WHITE = (7, 46)
CEREBELLAR_CORTEX = (8, 47)
THALAMUS = (10, 49)
CAUDATE = (11, 50)
PUTAMEN = (12, 51)
PALLIDUM = (13, 52)
BRAINSTEM = (16,)
HIPPOCAMPUS = (17, 53)
AMYGDALA = (18, 54)
ACCUMBENS = (26, 58)
VENTRAL_DC = (28, 60)

VESSEL = (502, 514)
EYE = (506, 508)
MUSCLE = (507, 530)
MUCOSA = (509,)
SKIN = (511,)
CORD = (512,)
BONE = (515,)
MARROW = (516,)

NAMES = {
    "white": WHITE, "cortex": CORTEX, "fluid": FLUID, "plexus": PLEXUS,
    "cerebellar_white": CEREBELLAR_WHITE, "cerebellar_cortex": CEREBELLAR_CORTEX,
    "thalamus": THALAMUS, "caudate": CAUDATE, "putamen": PUTAMEN, "pallidum": PALLIDUM,
    "brainstem": BRAINSTEM, "hippocampus": HIPPOCAMPUS, "amygdala": AMYGDALA,
    "accumbens": ACCUMBENS, "ventral_dc": VENTRAL_DC, "vessel": VESSEL, "eye": EYE,
    "muscle": MUSCLE, "mucosa": MUCOSA, "skin": SKIN, "cord": CORD, "bone": BONE, "marrow": MARROW,
}  # fmt: skip

SIZE = 1024  # of a table by label
HEAD = 500  # labels from here on are tissues of the head
SURROUNDINGS = 24  # fluid between brain and skull


def table_of(values: dict[str, float]) -> NDArray[np.float32]:
    """Spell values by tissue as a table by label.

    Parameters
    ----------
    values : dict
        From names of tissues, as in ``NAMES``; those left out are 0.

    Returns
    -------
    ndarray, (1024,)
        float32; index it with a label map.

    Examples
    --------
    >>> table_of({"cortex": 1.0, "white": 0.25})[[0, 2, 3, 42]]
    array([0.  , 0.25, 1.  , 1.  ], dtype=float32)
    """
    table = np.zeros(SIZE, np.float32)
    for name, value in values.items():
        table[list(NAMES[name])] = value
    return table


def belongs(labels: NDArray[np.int16], *groups: tuple[int, ...]) -> NDArray[np.bool_]:
    """Mark the voxels whose label is in one of the groups."""
    table = np.zeros(SIZE, bool)
    for group in groups:
        table[list(group)] = True
    return table[labels]


def is_in_skull(labels: NDArray[np.int16]) -> NDArray[np.bool_]:
    """Mark all inside the skull: brain tissue, ventricles, the fluid around the brain."""
    return (labels > 0) & (labels < HEAD)


def is_brain(labels: NDArray[np.int16]) -> NDArray[np.bool_]:
    """Mark brain tissue and ventricles, without the fluid around the brain."""
    return is_in_skull(labels) & (labels != SURROUNDINGS)
