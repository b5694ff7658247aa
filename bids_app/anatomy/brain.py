"""Which voxels of a T1w are brain: deepbet, or the image's own zeros where it has been stripped.

deepbet (Fisch et al. 2024, Computers in Biology and Medicine 179:108845) needs torch, so nothing
here may run in a process that also runs ITK.
"""

import numpy as np
import torch
from deepbet.bet import BrainExtraction
from scipy import ndimage

from bids_app.imaging.volume import Mask, box_of_data
from bids_app.nifti import Image, to_nibabel

SMALLEST_BRAIN, LARGEST_BRAIN = 0.5, 2.3  # litres; our choice: an infant's, and none is larger
NO_MEMORY = "allocate memory"  # in what torch says then
LEAST_BACKGROUND = 0.3  # of all voxels; our choice: a stripped image is mostly exact zeros


def litres(mask: Mask, image: Image) -> float:
    """Give the volume of a mask on the grid of an image, in litres."""
    return float(mask.sum() * abs(np.linalg.det(image.affine[:3, :3])) * 1e-6)


def foreground(image: Image) -> Mask:
    """Find the largest connected part of what is not exactly zero, its holes filled."""
    labels, count = ndimage.label(image.data != 0)
    if count == 0:
        return np.zeros(image.data.shape, bool)
    largest = np.argmax(np.bincount(labels.ravel())[1:]) + 1
    return ndimage.binary_fill_holes(labels == largest)


def is_stripped(image: Image) -> bool:
    """Tell whether all that is not brain has been set to zero already.

    A stripped image has exact zeros around something as large as a brain; a whole head, even
    defaced, is larger, and air is seldom exactly zero. Our choice of bounds.
    """
    zeros = float((image.data == 0).mean())
    size = litres(foreground(image), image)
    return zeros >= LEAST_BACKGROUND and SMALLEST_BRAIN <= size <= LARGEST_BRAIN


def _without_empty_planes(image: Image) -> tuple[tuple[slice, ...], Image]:
    """Cut off planes of one value at the ends of a volume; give where the rest lies in it.

    deepbet sees the whole field of view at one size: in a head with 12 cm of nothing around it, it
    found a brain of 17 litres.
    """
    box = box_of_data(image.data)
    affine = image.affine.copy()
    affine[:3, 3] += affine[:3, :3] @ [side.start or 0 for side in box]
    return box, Image(image.data[box], affine)


def extract(image: Image, threads: int) -> Mask:
    """Find the brain in a T1w of a whole head with deepbet.

    Parameters
    ----------
    image : Image, (I, J, K)
        T1w, any unit, orientation and resolution.
    threads : int
        Threads that torch may use.

    Returns
    -------
    ndarray of bool, (I, J, K)
        One connected part without holes.

    Raises
    ------
    ValueError
        If no brain is found, or one of a size that no brain has.
    RuntimeError
        torch's, if memory runs out.
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
