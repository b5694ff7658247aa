"""Reading of NIfTI headers, and checks that they are plausible for an image of a head.

Headers are checked before any data of the size that they claim is read, so that no false claim is
trusted.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from math import isfinite
from pathlib import Path

import nibabel as nib
import numpy as np
from nibabel.spatialimages import HeaderDataError

from bids_app.errors import MissingInputError, UnusableDataError
from bids_app.imaging.volume import Affine, zooms_of

SMALLEST_ZOOM, LARGEST_ZOOM = 0.1, 20.0  # mm; our choice, beyond any scanner of human heads
SMALLEST_FIELD_OF_VIEW, LARGEST_FIELD_OF_VIEW = 50.0, 1000.0  # mm; our choice
# Cosine between two axes of the grid, from which a note is added, and an image is refused; our
# choice: ITK reads the nearest grid without shear, which differs by 1 and 4 mm over 10 cm
NOTED_SHEAR, LARGEST_SHEAR = 0.01, 0.05
SMALLEST_DETERMINANT = 1e-9  # mm³ per voxel; our choice
LARGEST_SHIFT = 5.0  # mm between sform and qform from which a note is added; our choice
LARGEST_EXTENSIONS = 1 << 26  # bytes between header and voxels; our choice
FORMATS = {348: nib.Nifti1Header, 540: nib.Nifti2Header}  # by the size in the first field
MAGIC = {348: (b"n+1", b"ni1"), 540: (b"n+2", b"ni2")}
POINTERS = (b"version https://git-lfs", b"/annex/objects/")  # first bytes of placeholder files
LARGEST_HEADER = max(FORMATS)
MOST_AXES = 7
XFORM_CODES = range(1, 6)  # of nifti1.h and nifti2.h; 0 is unknown, others are undefined
CORRECT = "correct sform or qform, or convert the image again"


@dataclass(frozen=True)
class Header:
    """Header fields needed to read an image.

    Parameters
    ----------
    shape : tuple of int
        (I, J, K) or (I, J, K, T), without axes of length one beyond the third.
    stored : numpy.dtype
        Data type of the voxels in the file, with their byte order.
    offset : int
        Number of bytes before the first voxel.
    slope, inter : float
        Scaling of stored to true intensities.
    affine : ndarray, (4, 4)
        Voxel indices → world coordinates in mm, RAS+.
    description : str
        Text of ``descrip``.
    assumed : bool
        True if the header does not define the directions of the axes, so that the user has to.
    notes : tuple of str
        Sentences for readers of the results on how a doubtful header was interpreted.
    """

    shape: tuple[int, ...]
    stored: np.dtype
    offset: int
    slope: float
    inter: float
    affine: Affine
    description: str
    assumed: bool = False
    notes: tuple[str, ...] = ()

    @property
    def bytes(self) -> int:
        """Size of all voxels in the file, uncompressed, in bytes."""
        count = self.stored.itemsize
        for length in self.shape:  # Python integers do not overflow
            count *= length
        return count


def read_header(path: Path, content: bytes, orientation: str = "") -> Header:
    """Parse and check the header of an image.

    Parameters
    ----------
    path : Path
        Path of the image, for messages.
    content : bytes
        First 540 bytes of the image, or all if there are fewer.
    orientation : str
        Axis code, such as ``RAS``, that the user asserts for images whose header has none. If
        empty, such images are refused.

    Raises
    ------
    MissingInputError
        If the file is a pointer to an image that is stored elsewhere.
    UnusableDataError
        If it is not a NIfTI image, does not hold a volume of real numbers, does not distinguish
        left from right, or its affine is singular, sheared or of an implausible size for a head.
    """
    header = _parse(path, content)
    shape = _shape(path, header)
    stored = _stored(path, header)
    offset = _offset(path, header)
    slope, inter = _scaling(path, header)
    affine, notes = _affine(path, header, shape, orientation)
    _refuse_absurd_affine(path, affine, shape)
    if (shear := _shear(affine)) > NOTED_SHEAR:
        notes += (
            f"{path.name}: its affine is sheared by {100 * shear:.0f} %, which registration "
            "ignores; positions may be off by some mm. If that matters, resample the image to "
            "perpendicular axes.",
        )
    description = bytes(header["descrip"].item()).decode("utf-8", "replace").rstrip("\0")
    assumed = not _coded(header)
    return Header(shape, stored, offset, slope, inter, affine, description, assumed, notes)


def assumed_affine(shape: tuple[int, ...], zooms: tuple[float, ...], orientation: str) -> Affine:
    """Create the affine of an image from its voxel size and axis code alone.

    The centre of the image lies at the origin, as in nibabel for headers with neither sform nor
    qform (nifti1.h, "method 1").

    Examples
    --------
    >>> assumed_affine((3, 5, 7), (1.0, 2.0, 3.0), "LAS")
    array([[-1.,  0.,  0.,  1.],
           [ 0.,  2.,  0., -4.],
           [ 0.,  0.,  3., -9.],
           [ 0.,  0.,  0.,  1.]])
    """
    affine = np.zeros((4, 4))
    axes, signs = nib.orientations.axcodes2ornt(orientation).T
    affine[axes.astype(int), range(3)] = signs * zooms
    affine[:3, 3] = -affine[:3, :3] @ (np.array(shape[:3]) - 1) / 2
    affine[3, 3] = 1
    return affine + 0.0  # turns -0 into 0


def _parse(path: Path, content: bytes) -> nib.Nifti1Header:
    for endianness, first in (("<", content[:4]), (">", content[:4][::-1])):
        size = int.from_bytes(first, "little")
        if size in FORMATS and len(content) >= size:
            header = FORMATS[size](content[:size], endianness=endianness, check=False)
            if header["magic"].item() in MAGIC[size]:
                return header
    if any(content.startswith(mark) for mark in POINTERS):
        raise MissingInputError(
            f"{path}: is a pointer of Git LFS or git-annex, not an image; fetch its content"
        )
    raise UnusableDataError(
        f"{path}: not a NIfTI image, or its header is damaged; copy it again, or convert it to "
        "NIfTI-1 or NIfTI-2"
    )


def _shape(path: Path, header: nib.Nifti1Header) -> tuple[int, ...]:
    axes, *lengths = (int(length) for length in header["dim"])
    if not 1 <= axes <= MOST_AXES or min(lengths[:axes]) < 1:
        raise UnusableDataError(
            f"{path}: its header claims {axes} axes of lengths {lengths}, which is impossible; "
            "copy or convert it again"
        )
    full = tuple(lengths[:axes])
    shape = full[:3] + tuple(length for length in full[3:] if length > 1)
    if not 3 <= len(shape) <= 4 or min(shape[:3]) < 2:
        raise UnusableDataError(f"{path}: its shape is {full}, not a volume; convert it again")
    return shape


def _stored(path: Path, header: nib.Nifti1Header) -> np.dtype:
    code = int(header["datatype"])
    if code not in nib.nifti1.data_type_codes.code:
        raise UnusableDataError(
            f"{path}: its header gives data type {code}, which NIfTI does not define; convert it "
            "again"
        )
    stored = header.get_data_dtype()
    if stored.kind not in "iuf":
        name = nib.nifti1.data_type_codes.label[code]
        kind = "complex numbers" if stored.kind == "c" else "colours" if stored.names else "data"
        advice = "save its magnitude" if stored.kind == "c" else "save one number per voxel"
        raise UnusableDataError(
            f"{path}: contains {kind} of type {name or code}, not one intensity per voxel; {advice}"
        )
    bits = int(header["bitpix"])
    if bits not in (0, 8 * stored.itemsize):  # 0: not given, so that only the type counts
        raise UnusableDataError(
            f"{path}: its header gives {bits} bits per voxel (bitpix) for {stored.name}, which "
            f"has {8 * stored.itemsize}; copy or convert it again"
        )
    return stored


def _offset(path: Path, header: nib.Nifti1Header) -> int:
    offset, least = float(header["vox_offset"]), header.sizeof_hdr + 4
    if not least <= offset <= LARGEST_EXTENSIONS or offset != int(offset):
        raise UnusableDataError(
            f"{path}: its header says that voxels begin at byte {offset:g} (vox_offset), which "
            "is impossible; copy or convert it again"
        )
    return int(offset)


def _scaling(path: Path, header: nib.Nifti1Header) -> tuple[float, float]:
    slope, inter = float(header["scl_slope"]), float(header["scl_inter"])
    if slope == 0 or not isfinite(slope):  # nifti1.h: not scaled
        return 1.0, 0.0
    if not isfinite(inter):
        raise UnusableDataError(
            f"{path}: its header adds {inter} to all intensities (scl_inter); correct it, or "
            "convert the image again"
        )
    return slope, inter


def _usable(affine: Affine) -> bool:
    with np.errstate(all="ignore"):
        return bool(
            np.isfinite(affine).all()
            and abs(np.linalg.det(affine[:3, :3])) >= SMALLEST_DETERMINANT
            and np.abs(affine).max() < 1 / SMALLEST_DETERMINANT
        )


def _coded(header: nib.Nifti1Header) -> list[str]:
    """List which of sform and qform define the directions of the axes."""
    return [name for name in ("sform", "qform") if int(header[f"{name}_code"]) in XFORM_CODES]


def _sform(header: nib.Nifti1Header) -> Affine:
    with np.errstate(invalid="ignore"):  # for signalling NaNs
        rows = [np.asarray(header[f"srow_{axis}"], dtype=np.float64) for axis in "xyz"]
    return np.vstack([*rows, [0, 0, 0, 1]])


def _qform(header: nib.Nifti1Header) -> Affine:
    """Return the qform, filled with NaN if the quaternion is invalid."""
    sane = header.copy()
    sane["pixdim"][1:4] = _zooms(header)
    if sane["pixdim"][0] not in (-1, 1):  # nifti1.h: qfac 0 is 1
        sane["pixdim"][0] = 1
    try:
        with np.errstate(all="ignore"):
            return np.asarray(sane.get_qform(), dtype=np.float64)
    except (HeaderDataError, ValueError):
        return np.full((4, 4), np.nan)


def _zooms(header: nib.Nifti1Header) -> tuple[float, ...]:
    """Return the voxel size from pixdim, without the meaningless signs, and with 1 for 0."""
    with np.errstate(all="ignore"):
        return tuple(abs(float(zoom)) or 1.0 for zoom in header["pixdim"][1:4])


def _affine(
    path: Path, header: nib.Nifti1Header, shape: tuple[int, ...], orientation: str
) -> tuple[Affine, tuple[str, ...]]:
    """Choose between sform and qform as nibabel, SPM and fMRIPrep do: the sform if it is set.

    Unlike them, use the qform if only that is usable, and neither if none is set.
    """
    forms = {"sform": _sform(header), "qform": _qform(header)}
    coded = _coded(header)
    usable = [name for name in coded if _usable(forms[name])]
    if not coded:
        return _confirmed_orientation(path, header, shape, orientation)
    if not usable:
        raise UnusableDataError(f"{path}: its affine has no inverse ({coded[0]}); {CORRECT}")
    notes = []
    if usable[0] != coded[0]:
        notes.append(f"{path.name}: its sform has no inverse; its qform was used.")
    if len(usable) > 1:
        notes += _disagreement(path, shape, forms["sform"], forms["qform"])
    return forms[usable[0]], tuple(notes)


def _confirmed_orientation(
    path: Path, header: nib.Nifti1Header, shape: tuple[int, ...], orientation: str
) -> tuple[Affine, tuple[str, ...]]:
    if not orientation:
        raise UnusableDataError(
            f"{path}: its header does not define left and right (the codes of sform and qform are "
            "both 0); find out the order of its voxels, then give --assume-orientation with an "
            "axis code such as LAS or RAS, or correct the header"
        )
    note = (
        f"{path.name}: its header does not define left and right; {orientation} was assumed, as "
        "--assume-orientation says. If that is wrong, left and right are swapped."
    )
    return assumed_affine(shape, _zooms(header), orientation), (note,)


def _disagreement(
    path: Path, shape: tuple[int, ...], sform: Affine, qform: Affine
) -> Iterator[str]:
    """Yield a note if sform and qform place an image differently."""
    used = "the sform was used, as in nibabel and SPM"
    codes = ["".join(nib.aff2axcodes(affine)) for affine in (sform, qform)]
    corners = np.array([[*corner, 1] for corner in np.ndindex(2, 2, 2)], dtype=np.float64)
    corners[:, :3] *= np.array(shape[:3]) - 1
    apart = np.linalg.norm(corners @ (sform - qform).T, axis=1).max()
    if (qform @ np.linalg.inv(sform))[0, 0] < 0:
        yield (
            f"{path.name}: sform ({codes[0]}) and qform ({codes[1]}) of its header disagree about "
            f"left and right; {used}. If it is wrong, left and right are swapped: check the image."
        )
    elif apart > LARGEST_SHIFT:
        yield (
            f"{path.name}: sform ({codes[0]}) and qform ({codes[1]}) of its header differ by up to "
            f"{apart:.0f} mm; {used}."
        )


def _refuse_absurd_affine(path: Path, affine: Affine, shape: tuple[int, ...]) -> None:
    if not _usable(affine):
        raise UnusableDataError(f"{path}: its affine has no inverse; {CORRECT}")
    zooms = np.array(zooms_of(affine))
    if zooms.min() < SMALLEST_ZOOM or zooms.max() > LARGEST_ZOOM:
        size = " × ".join(f"{zoom:.3g}" for zoom in zooms)
        raise UnusableDataError(f"{path}: its affine gives voxels of {size} mm; {CORRECT}")
    extent = zooms * np.array(shape[:3], dtype=np.float64)
    if extent.min() < SMALLEST_FIELD_OF_VIEW or extent.max() > LARGEST_FIELD_OF_VIEW:
        size = " × ".join(f"{side:.0f}" for side in extent)
        raise UnusableDataError(
            f"{path}: its field of view is {size} mm, not that of a head; {CORRECT}"
        )
    if _shear(affine) > LARGEST_SHEAR:
        raise UnusableDataError(f"{path}: its affine is sheared; {CORRECT}")


def _shear(affine: Affine) -> float:
    """Return the largest cosine between two axes of a grid."""
    axes = affine[:3, :3] / np.array(zooms_of(affine))
    return float(np.abs(axes.T @ axes - np.eye(3)).max())
