"""Brain extraction from a T1w with deepbet, or from the zeros of a skull-stripped image.

deepbet (Fisch et al. 2024, Computers in Biology and Medicine 179:108845) requires torch, so that
nothing here may run in a process that also runs ITK.
"""

import numpy as np
import torch
from deepbet.bet import BrainExtraction
from scipy import ndimage

from bids_app.imaging.volume import Mask, box_of_data
from bids_app.nifti import Image, to_nibabel

SMALLEST_BRAIN, LARGEST_BRAIN = 0.5, 2.3  # litres; our choice, from infants to the largest brains
NO_MEMORY = "allocate memory"  # part of torch's error message
LEAST_BACKGROUND = 0.3  # share of exact zeros in a stripped image, at least; our choice
# Share of a stripped image that deepbet takes for brain, at least: 0.97 to 0.98 in five stripped
# brains, 0.56 or less in heads (docs/results/robustness.md); our choice
LEAST_BRAIN = 0.75


def litres(mask: Mask, image: Image) -> float:
    """Return the volume of a mask on the grid of an image, in litres."""
    return float(mask.sum() * abs(np.linalg.det(image.affine[:3, :3])) * 1e-6)


def foreground(image: Image) -> Mask:
    """Find the largest connected component of non-zero voxels, with its holes filled."""
    labels, count = ndimage.label(image.data != 0)
    if count == 0:
        return np.zeros(image.data.shape, bool)
    largest = np.argmax(np.bincount(labels.ravel())[1:]) + 1
    return ndimage.binary_fill_holes(labels == largest)


def is_stripped(image: Image) -> bool:
    """Check whether an image looks as if it were skull-stripped already.

    A stripped image has exact zeros around an object of the size of a brain. An adult's head, even
    defaced, is larger, and air is seldom exactly zero. The bounds are our choice.
    """
    zeros = float((image.data == 0).mean())
    size = litres(foreground(image), image)
    return zeros >= LEAST_BACKGROUND and SMALLEST_BRAIN <= size <= LARGEST_BRAIN


def find_brain(image: Image, threads: int) -> tuple[Mask, bool]:
    """Find the brain of a T1w, which may be skull-stripped already.

    The whole head of an infant may be as small as a brain, with air set to 0: deepbet then finds a
    brain that is clearly smaller than all that is not 0.

    Parameters
    ----------
    image, threads : Image, int
        See :func:`extract`.

    Returns
    -------
    ndarray of bool, (I, J, K)
        Brain mask.
    bool
        Whether the T1w is skull-stripped.

    Raises
    ------
    ValueError, RuntimeError
        See :func:`extract`.
    """
    if not is_stripped(image):
        return extract(image, threads), False
    whole = foreground(image)
    try:
        brain = extract(image, threads)
    except ValueError:  # it was trained on heads
        return whole, True
    stripped = bool((brain & whole).sum() >= LEAST_BRAIN * whole.sum())
    return (whole if stripped else brain), stripped


def _without_empty_planes(image: Image) -> tuple[tuple[slice, ...], Image]:
    """Crop constant planes at the ends of a volume; return the bounding box and the cropped image.

    deepbet resizes the whole field of view to a fixed size: in a head with 12 cm of padding, it
    found a brain of 17 litres.
    """
    box = box_of_data(image.data)
    affine = image.affine.copy()
    affine[:3, 3] += affine[:3, :3] @ [side.start or 0 for side in box]
    return box, Image(image.data[box], affine)


def extract(image: Image, threads: int) -> Mask:
    """Extract the brain from a T1w of a whole head with deepbet.

    Parameters
    ----------
    image : Image, (I, J, K)
        T1w in any unit, orientation and resolution.
    threads : int
        Number of threads that torch may use.

    Returns
    -------
    ndarray of bool, (I, J, K)
        Brain mask: one connected component without holes.

    Raises
    ------
    ValueError
        If no brain is found, or its size is implausible.
    RuntimeError
        If memory runs out; raised by torch.
    """
    torch.set_num_threads(threads)
    extraction = BrainExtraction(no_gpu=True)
    box, inner = _without_empty_planes(image)
    try:
        _, brain_image, _ = extraction.run(to_nibabel(inner))
    except (AssertionError, ValueError, RuntimeError) as error:
        if NO_MEMORY in str(error):
            raise
        raise ValueError(f"deepbet found no brain ({error})") from error
    mask = np.zeros(image.data.shape, bool)
    mask[box] = np.asarray(brain_image.dataobj) > 0
    size = litres(mask, image)
    if not SMALLEST_BRAIN <= size <= LARGEST_BRAIN:
        raise ValueError(f"deepbet found a brain of {size:.2f} litres")
    return mask
