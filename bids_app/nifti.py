"""Open and save NIfTI images; the one place that does.

What cannot be an image of a head is refused here, with a sentence that names the file.
"""

import gzip
import zlib
from dataclasses import dataclass
from pathlib import Path
from uuid import uuid4

import nibabel as nib
import numpy as np
from nibabel.filebasedimages import ImageFileError
from nibabel.spatialimages import HeaderDataError

from bids_app.errors import MissingInputError, ReadWriteError, UnusableDataError
from bids_app.imaging.volume import Affine, Grid, zooms_of

SMALLEST_ZOOM, LARGEST_ZOOM = 0.1, 20.0  # mm; our choice: no scanner of human heads is beyond
SMALLEST_FIELD_OF_VIEW, LARGEST_FIELD_OF_VIEW = 50.0, 1000.0  # mm; our choice
ROUNDING = 1e-3  # mm, by which affines of one grid may differ (our choice)
NEARLY_WHOLE = 1e-3  # by which a label may differ from a whole number: scaling rounds (our choice)
LARGEST_SHEAR = 0.05  # cosine between two axes of the grid; our choice
UNREADABLE = (ImageFileError, HeaderDataError, EOFError, gzip.BadGzipFile, zlib.error, ValueError)


@dataclass(frozen=True)
class Image:
    """An image in memory.

    Parameters
    ----------
    data : ndarray, (I, J, K) or (I, J, K, T)
        float32, scaled as the header says; a mask or labels that are to be saved may be boolean
        or integer.
    affine : ndarray, (4, 4)
        Voxel indices → world coordinates in mm, RAS+.
    """

    data: np.ndarray
    affine: Affine

    @property
    def zooms(self) -> tuple[float, float, float]:
        """Voxel size in mm along each axis."""
        return zooms_of(self.affine)

    @property
    def grid(self) -> Grid:
        """The lattice of its voxels."""
        i, j, k = self.data.shape[:3]
        return Grid((i, j, k), self.affine)


def _sentence(error: Exception) -> str:
    return " ".join(str(error).split())  # nibabel breaks some of its messages into lines


def _open(path: Path) -> nib.Nifti1Image:
    if not path.exists():
        raise MissingInputError(f"{path}: no such file; check the dataset, or fetch its content")
    try:
        path.open("rb").close()  # nibabel hides why it cannot read
        image = nib.load(path)
    except PermissionError as error:
        raise ReadWriteError(f"{path}: no permission to read it; run chmod +r on it") from error
    except UNREADABLE as error:
        raise UnusableDataError(
            f"{path}: not a readable NIfTI image ({_sentence(error)}); copy or convert it again"
        ) from error
    if not isinstance(image, nib.Nifti1Image):
        raise UnusableDataError(f"{path}: not a NIfTI image; convert it to NIfTI-1 or NIfTI-2")
    return image


def _refuse_absurd_affine(path: Path, affine: Affine, shape: tuple[int, ...]) -> None:
    advice = "correct sform or qform, or convert the image again"
    if not np.isfinite(affine).all() or abs(np.linalg.det(affine[:3, :3])) < 1e-9:  # noqa: PLR2004
        raise UnusableDataError(f"{path}: its affine has no inverse; {advice}")
    zooms = np.array(zooms_of(affine))
    if zooms.min() < SMALLEST_ZOOM or zooms.max() > LARGEST_ZOOM:
        size = " × ".join(f"{zoom:.3g}" for zoom in zooms)
        raise UnusableDataError(f"{path}: its affine says voxels of {size} mm; {advice}")
    extent = zooms * shape[:3]
    if extent.min() < SMALLEST_FIELD_OF_VIEW or extent.max() > LARGEST_FIELD_OF_VIEW:
        size = " × ".join(f"{side:.0f}" for side in extent)
        raise UnusableDataError(
            f"{path}: its field of view is {size} mm, not that of a head; {advice}"
        )
    axes = affine[:3, :3] / zooms
    if np.abs(axes.T @ axes - np.eye(3)).max() > LARGEST_SHEAR:
        raise UnusableDataError(f"{path}: its affine is sheared; {advice}")


def check_header(path: Path) -> tuple[int, ...]:
    """See from the header alone whether this can be an image of a head.

    Returns
    -------
    tuple of int
        The shape, without axes of length one at its end.

    Raises
    ------
    MissingInputError
        If there is no such file.
    ReadWriteError
        If it may not be read.
    UnusableDataError
        If it is no NIfTI image, has fewer than three axes, or its affine is singular, sheared,
        or of a size that no head has.
    """
    image = _open(path)
    shape: tuple[int, ...] = tuple(image.shape)
    while len(shape) > 3 and shape[-1] == 1:  # noqa: PLR2004
        shape = shape[:-1]
    if len(shape) < 3 or min(shape) < 2:  # noqa: PLR2004
        raise UnusableDataError(f"{path}: its shape is {shape}, not a volume; convert it again")
    _refuse_absurd_affine(path, image.affine, shape)
    return shape


def check_grid(path: Path, grid: Grid) -> None:
    """See from the header alone whether an image of template space lies on the run's grid.

    Raises
    ------
    MissingInputError, ReadWriteError
        As :func:`check_header`.
    UnusableDataError
        As :func:`check_header`, and if shape or affine differ.
    """
    shape, affine = check_header(path), np.asarray(_open(path).affine, dtype=np.float64)
    if shape != grid.shape or not np.allclose(affine, grid.affine, atol=ROUNDING):
        raise UnusableDataError(
            f"{path}: lies on another grid than --bounding-box and --resolution say; run the "
            "participant level again with the same"
        )


def read_grid(path: Path) -> Grid:
    """Read the grid of a volume from its header.

    Raises
    ------
    MissingInputError, ReadWriteError, UnusableDataError
        As :func:`check_header`.
    """
    i, j, k = check_header(path)[:3]
    return Grid((i, j, k), np.asarray(_open(path).affine, dtype=np.float64))


def read_description(path: Path) -> str:
    """Read the header's ``descrip``.

    Raises
    ------
    MissingInputError, ReadWriteError, UnusableDataError
        If the file cannot be opened, or is no NIfTI image.
    """
    return bytes(_open(path).header["descrip"].item()).decode("utf-8", "replace").rstrip("\0")


def load(path: Path | str) -> Image:
    """Read an image, scaled as its header says.

    Parameters
    ----------
    path : path-like
        NIfTI-1 or NIfTI-2, ``.nii`` or ``.nii.gz``.

    Returns
    -------
    Image
        float32; axes of length one at its end are dropped.

    Raises
    ------
    MissingInputError, ReadWriteError, UnusableDataError
        As :func:`check_header`; UnusableDataError also if the file ends too early.
    """
    path = Path(path)
    shape = check_header(path)
    image = _open(path)
    try:
        data = np.asarray(image.dataobj, dtype=np.float32).reshape(shape)
    except (OSError, *UNREADABLE) as error:
        raise UnusableDataError(
            f"{path}: truncated or damaged ({_sentence(error)}); copy it again from its source"
        ) from error
    return Image(data, np.asarray(image.affine, dtype=np.float64))


def _check_whole(path: Path) -> None:
    """Read a compressed file to its end, where its checksum is: nibabel stops before it."""
    try:
        with gzip.open(path) as file:
            while file.read(1 << 24):
                pass
    except (OSError, *UNREADABLE) as error:
        raise UnusableDataError(
            f"{path}: truncated or damaged ({_sentence(error)}); copy it again from its source"
        ) from error


def _load_whole(path: Path) -> Image:
    image = load(path)
    if path.suffix == ".gz":
        _check_whole(path)
    return image


def load_scan(path: Path | str) -> Image:
    """Read an acquired image, and refuse one that holds no picture.

    Raises
    ------
    MissingInputError, ReadWriteError, UnusableDataError
        As :func:`load`; UnusableDataError also if a value is not finite, all are equal, or the
        checksum of a compressed file is wrong.
    """
    image = _load_whole(Path(path))
    odd = int(image.data.size - np.isfinite(image.data).sum())
    if odd:
        raise UnusableDataError(
            f"{path}: {odd} voxels are NaN or infinite; replace them (by 0 outside the head)"
        )
    if image.data.min() == image.data.max():
        raise UnusableDataError(f"{path}: all voxels are equal; export the image again")
    return image


def check_labels(path: Path) -> None:
    """See whether an image can be a mask, or one of labels.

    Raises
    ------
    MissingInputError, ReadWriteError, UnusableDataError
        As :func:`load`; UnusableDataError also if the checksum of a compressed file is wrong, there
        is more than one volume, or values are not whole numbers.
    """
    image = _load_whole(path)
    if image.data.ndim != 3:  # noqa: PLR2004
        raise UnusableDataError(
            f"{path}: has {image.data.ndim} axes, and labels have three; give a single volume"
        )
    known = image.data[np.isfinite(image.data)]
    if np.abs(known - np.rint(known)).max(initial=0) > NEARLY_WHOLE:
        raise UnusableDataError(
            f"{path}: not all of its values are whole numbers, so they are no labels; set a "
            "threshold, 0.5 for instance, and save 0 and 1"
        )


def to_nibabel(image: Image) -> nib.Nifti1Image:
    """Give an image as nibabel has it, sform and qform alike; booleans become bytes."""
    data = image.data.astype(np.uint8) if image.data.dtype == bool else image.data
    picture = nib.Nifti1Image(data, image.affine)
    picture.header.set_xyzt_units("mm")
    picture.header.set_sform(image.affine, code=1)
    picture.header.set_qform(image.affine, code=1)
    return picture


def save(image: Image, path: Path | str, *, description: str = "") -> None:
    """Write an image so that it is either whole or absent, and equal data give equal bytes.

    Parameters
    ----------
    image : Image
        Boolean and integer data keep their kind; all else becomes float32.
    path : path-like
        Ends in ``.nii.gz`` or ``.nii``; replaced if it exists.
    description : str
        The header's ``descrip``, at most 79 characters.

    Raises
    ------
    ReadWriteError
        If it cannot be written: no space, no permission.
    """
    path = Path(path)
    picture = to_nibabel(image)
    picture.header["descrip"] = description
    content = picture.to_bytes()
    if path.suffix == ".gz":
        content = gzip.compress(content, compresslevel=3, mtime=0)
    partial = path.with_name(f".{uuid4().hex}.{path.name}")
    try:
        partial.write_bytes(content)
        partial.replace(path)
    except OSError as error:
        partial.unlink(missing_ok=True)
        raise ReadWriteError(f"{path}: cannot be written ({error.strerror})") from error
