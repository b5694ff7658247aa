"""Images of a participant, read from disk once and turned so that they can be sliced."""

from pathlib import Path

import numpy as np

from bids_app.errors import MissingInputError, UnusableDataError
from bids_app.imaging.volume import Mask
from bids_app.nifti import Image, load
from bids_app.report.results import Derivative
from bids_app.report.slices import turn_to_ras


class Shelf:
    """Images, RAS+, by path.

    Parameters
    ----------
    output_dir : Path
        The derivative dataset; files are named from there.
    """

    def __init__(self, output_dir: Path) -> None:
        self._output_dir = output_dir
        self._images: dict[Path, Image] = {}

    def take(self, path: Path, grid: Image | None = None) -> Image:
        """Read an image.

        Parameters
        ----------
        path : Path
            A NIfTI image.
        grid : Image, optional
            The image it ought to lie on.

        Raises
        ------
        MissingInputError, ReadWriteError, UnusableDataError
            As :func:`bids_app.nifti.load`; UnusableDataError also if it lies on another grid.
        """
        if path not in self._images:
            if not path.exists():
                raise MissingInputError(f"{self._tell(path)} is missing.")
            self._images[path] = turn_to_ras(load(path))
        image = self._images[path]
        if image.data.ndim != 3:  # noqa: PLR2004
            raise UnusableDataError(f"{self._tell(path)} is not one volume.")
        if grid is not None and not _share_grid(image, grid):
            raise UnusableDataError(f"{self._tell(path)} lies on another grid than it should.")
        return image

    def take_derivative(self, derivative: Derivative | None, grid: Image | None = None) -> Image:
        """Read a derivative, as :meth:`take`; None is one that was never written."""
        if derivative is None:
            raise MissingInputError("No image in the space of the template was written.")
        return self.take(derivative.path, grid)

    def _tell(self, path: Path) -> str:
        inside = path.is_relative_to(self._output_dir)
        return path.relative_to(self._output_dir).as_posix() if inside else str(path)


def mask_of(brain: Image) -> Mask:
    """Tell inside from outside."""
    inside: Mask = brain.data > 0.5  # noqa: PLR2004
    return inside


def _share_grid(one: Image, other: Image) -> bool:
    same = one.data.shape == other.data.shape
    return same and np.allclose(one.affine, other.affine, atol=1e-2)
