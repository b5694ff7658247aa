"""Reading and writing of NIfTI images, only here, and memory-mapped volumes of a cohort.

Files that cannot be images of a head are refused with a sentence that names the file. Volumes are
mapped into memory page by page, so that a cohort of any size can be used. Arrays are stored with
the last axis outermost, so that the voxels of a transverse slice are contiguous.
"""

import gzip
import hashlib
import json
import os
import re
import zlib
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from io import BufferedReader, BytesIO
from pathlib import Path

import nibabel as nib
import numpy as np
from numpy.lib.format import open_memmap
from numpy.typing import NDArray

from bids_app.errors import ReadWriteError, UnusableDataError
from bids_app.files import GZIP, copy_file, read_json, size_of, write_bytes, write_json
from bids_app.header import LARGEST_HEADER, Header, read_header
from bids_app.imaging.volume import Affine, Grid, Mask, resample_labels, zooms_of
from bids_app.resources import GIB, find_limits

ROUNDING = 1e-3  # mm, tolerance for affines of the same grid; our choice
NEARLY_WHOLE = 1e-3  # tolerance for labels, which scaling may round; our choice
DEFLATE = 1032  # maximum ratio of compression (zlib's documentation)
PLAUSIBLE = 200  # maximum ratio of compression in large images; our choice
LARGE = 1 << 30  # bytes above which the ratio has to be plausible; our choice
LARGEST_TAIL = 1 << 26  # bytes after the voxels of a compressed image; our choice
PIECE = 1 << 24  # bytes read at once
LARGEST, SMALLEST = float(np.finfo(np.float32).max), 1e-30  # intensities; below, digits are lost
FEW = 1e-3  # share of voxels that count as broken if only they are out of range; our choice
AGAIN = "copy it again from its source"
SYNTHETIC_PET = "SYNTHETIC FDG PET, mri2pet"  # in the header of every synthetic image


@dataclass(frozen=True)
class Image:
    """Image in memory.

    Parameters
    ----------
    data : ndarray, (I, J, K) or (I, J, K, T)
        float32 intensities, scaled according to the header; a mask or labels to be saved may be
        boolean or integer.
    affine : ndarray, (4, 4)
        Voxel indices → world coordinates in mm, RAS+.
    notes : tuple of str
        Sentences for readers of the results on how a doubtful file was interpreted.
    """

    data: np.ndarray
    affine: Affine
    notes: tuple[str, ...] = ()

    @property
    def zooms(self) -> tuple[float, float, float]:
        """Voxel size in mm along each axis."""
        return zooms_of(self.affine)

    @property
    def grid(self) -> Grid:
        """Grid of the voxels."""
        i, j, k = self.data.shape[:3]
        return Grid((i, j, k), self.affine)


@contextmanager
def _reading(path: Path) -> Iterator[gzip.GzipFile | BufferedReader]:
    """Open an image, compressed or not, and translate errors into sentences."""
    try:
        with path.open("rb") as file:
            compressed = file.read(len(GZIP)) == GZIP
            file.seek(0)
            yield gzip.GzipFile(fileobj=file) if compressed else file
    except PermissionError as error:
        raise ReadWriteError(f"{path}: no permission to read it; run chmod +r on it") from error
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise UnusableDataError(f"{path}: truncated or damaged ({error}); {AGAIN}") from error
    except OSError as error:
        raise ReadWriteError(f"{path}: cannot be read ({error.strerror})") from error
    except MemoryError as error:
        raise UnusableDataError(
            f"{path}: memory ran out while it was read; lower --nprocs, or give the run more memory"
        ) from error


@cache
def _memory() -> int:
    """Return the memory that this process may use, in bytes."""
    return int(find_limits(os.environ).mem_gb * GIB)


def _refuse_size(path: Path, header: Header, size: int, *, compressed: bool) -> None:
    """Refuse a file too small for what its header claims, or too large for the memory."""
    claimed = header.offset + header.bytes
    limit = size * DEFLATE if compressed else size
    if claimed > limit:
        raise UnusableDataError(
            f"{path}: truncated or damaged (its header claims {_count(claimed)}, the file has "
            f"{_count(size)}); {AGAIN}"
        )
    if compressed and claimed > max(LARGE, size * PLAUSIBLE):
        raise UnusableDataError(
            f"{path}: its header claims {_count(claimed)} in a file of {_count(size)}, but no "
            f"image of a head can be compressed that much; {AGAIN}"
        )
    needed = header.bytes + header.bytes // header.stored.itemsize * np.dtype(np.float32).itemsize
    if needed > _memory():
        raise UnusableDataError(
            f"{path}: reading it requires {_count(needed)} of memory, but only "
            f"{_count(_memory())} are available; use a machine with more memory, or convert it "
            "again if it should be smaller"
        )


def _count(size: int) -> str:
    """Format a number of bytes for messages.

    Examples
    --------
    >>> _count(2_500_000_000), _count(1200)
    ('2.5 GB', '1.2 kB')
    """
    for unit, factor in (("TB", 1e12), ("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if size >= factor:
            return f"{size / factor:.3g} {unit}"
    return f"{size} bytes"


def inspect(path: Path, *, orientation: str = "") -> Header:
    """Read a header, and check that the file can be an image of a head.

    Parameters
    ----------
    path : Path
        Path of a NIfTI-1 or NIfTI-2 image, compressed or not.
    orientation : str
        Axis code that the user asserts for images whose header has none; empty if not asserted.

    Raises
    ------
    MissingInputError
        If the file does not exist.
    ReadWriteError
        If it cannot be read.
    UnusableDataError
        If it is not a file or not a NIfTI image, if :func:`bids_app.header.read_header` refuses it,
        or if its size does not fit its header.
    """
    size = size_of(path)
    with _reading(path) as file:
        header = read_header(path, file.read(LARGEST_HEADER), orientation)
        _refuse_size(path, header, size, compressed=isinstance(file, gzip.GzipFile))
    return header


def read_grid(path: Path) -> Grid:
    """Read the grid of a volume from its header alone.

    Raises
    ------
    MissingInputError, ReadWriteError, UnusableDataError
        See :func:`inspect`.
    """
    header = inspect(path)
    i, j, k = header.shape[:3]
    return Grid((i, j, k), header.affine)


def lies_on(path: Path, grid: Grid) -> bool:
    """Check from the header alone whether a volume lies on a grid.

    Raises
    ------
    MissingInputError, ReadWriteError, UnusableDataError
        See :func:`inspect`.
    """
    header = inspect(path)
    return header.shape == grid.shape and np.allclose(header.affine, grid.affine, atol=ROUNDING)


def check_grid(path: Path, grid: Grid) -> None:
    """Check from the header alone that an image in template space lies on the run's grid.

    Raises
    ------
    MissingInputError, ReadWriteError
        See :func:`inspect`.
    UnusableDataError
        If shape or affine differ, and for the reasons in :func:`inspect`.
    """
    if not lies_on(path, grid):
        raise UnusableDataError(
            f"{path}: its grid is not that of --bounding-box and --resolution; run the participant "
            "level again with the same values"
        )


def resample_atlas(atlas: Image, grid: Grid) -> NDArray[np.integer]:
    """Resample a label image to a grid of the same space; the result has shape (I, J, K)."""
    return resample_labels(np.rint(atlas.data).astype(np.int16), atlas.affine, grid)


def load(path: Path | str, *, orientation: str = "") -> Image:
    """Read an image, scaled according to its header.

    Intensities too large or too small for float32 are divided by the largest of them, and a note
    reports it. If only a few voxels are too large, these are clipped instead.

    Parameters
    ----------
    path : path-like
        Path of a NIfTI-1 or NIfTI-2 image, compressed or not.
    orientation : str
        Axis code; see :func:`inspect`.

    Returns
    -------
    Image
        Image in float32, without axes of length one beyond the third.

    Raises
    ------
    MissingInputError, ReadWriteError, UnusableDataError
        See :func:`inspect`. UnusableDataError also if the file ends too early, the checksum of a
        compressed file is wrong, or memory runs out.
    """
    path = Path(path)
    header = inspect(path, orientation=orientation)
    with _reading(path) as file:
        stored = _read_voxels(file, header)
        if isinstance(file, gzip.GzipFile):
            _finish(path, file)
        data, change = _scale(stored, header)
    notes = header.notes
    if change:
        notes += (f"{path.name}: its intensities reach {change}.",)
    return Image(data, header.affine, notes)


def _read_voxels(file: gzip.GzipFile | BufferedReader, header: Header) -> np.ndarray:
    """Read exactly as many voxels as the header claims."""
    remaining = header.offset
    while remaining:
        skipped = len(file.read(min(remaining, PIECE)))
        if not skipped:
            raise EOFError("it ends before its first voxel")
        remaining -= skipped
    values = np.empty(header.bytes, np.uint8)
    view, filled = values.data, 0
    while filled < len(view):
        n_read = file.readinto(view[filled : filled + PIECE])
        if not n_read:
            raise EOFError(f"it ends after {_count(filled)} of {_count(len(view))}")
        filled += n_read
    return values.view(header.stored).reshape(header.shape, order="F")


def _finish(path: Path, file: gzip.GzipFile) -> None:
    """Read a compressed file to its end, so that its checksum is verified."""
    beyond = 0
    while piece := file.read(PIECE):
        beyond += len(piece)
        if beyond > LARGEST_TAIL:
            raise UnusableDataError(
                f"{path}: more than {_count(LARGEST_TAIL)} follow its voxels, so its header does "
                "not belong to its content; convert it again"
            )


def _scale(stored: np.ndarray, header: Header) -> tuple[np.ndarray, str]:
    """Scale stored to true intensities, and describe any change needed to fit them into float32."""
    data = np.empty(stored.shape, np.float32, order="F")
    peak, usual, broken = 0.0, 0.0, 0
    for k in range(stored.shape[-1]):  # one slice or frame at a time, as float64 takes memory
        true = _true(stored[..., k], header)
        size = np.abs(true, where=np.isfinite(true), out=np.zeros_like(true))
        beyond = size > LARGEST
        with np.errstate(over="ignore", under="ignore"):
            data[..., k] = true
        data[..., k][beyond] = np.copysign(LARGEST, true[beyond])
        peak, broken = max(peak, float(size.max(initial=0))), broken + int(beyond.sum())
        usual = max(usual, float(size.max(initial=0, where=~beyond)))
    if peak == 0 or SMALLEST <= peak <= LARGEST:
        return data, ""
    sentence = f"{peak:.2g}, which 32-bit floats cannot represent"
    if 0 < broken <= FEW * stored.size and usual < np.sqrt(LARGEST):
        return data, f"{sentence}; voxels that were clipped: {broken}"
    for k in range(stored.shape[-1]):
        data[..., k] = _true(stored[..., k], header) / peak
    return data, f"{sentence}; all were divided by {peak:.6g}"


def _true(stored: np.ndarray, header: Header) -> np.ndarray:
    with np.errstate(all="ignore"):
        return stored.astype(np.float64) * header.slope + header.inter


def load_scan(path: Path | str, *, orientation: str = "", gaps: bool = False) -> Image:
    """Read an acquired image, and refuse it if its values are not finite or all equal.

    Parameters
    ----------
    path : path-like
        Path of a NIfTI image; see :func:`load`.
    orientation : str
        Axis code; see :func:`inspect`.
    gaps : bool
        If True, some voxels may be NaN or infinite, such as those outside the field of view after
        SPM's reslicing.

    Raises
    ------
    MissingInputError, ReadWriteError, UnusableDataError
        See :func:`load`. UnusableDataError also if a value is not finite, or all are equal.
    """
    image = load(path, orientation=orientation)
    finite = np.isfinite(image.data)
    odd = int(finite.size - finite.sum())
    if odd and (not gaps or odd == finite.size):
        advice = "replace them (by 0 outside the head)" if odd < finite.size else "export it again"
        raise UnusableDataError(f"{path}: {odd} voxels are NaN or infinite; {advice}")
    low = image.data.min(where=finite, initial=np.inf)  # a copy of the finite voxels takes memory
    if low == image.data.max(where=finite, initial=-np.inf):
        raise UnusableDataError(f"{path}: all voxels are equal; export the image again")
    return image


def check_labels(path: Path, *, orientation: str = "") -> Image:
    """Read an image, and check that it can be a mask or a label image.

    Raises
    ------
    MissingInputError, ReadWriteError, UnusableDataError
        See :func:`load`. UnusableDataError also if there is more than one volume, or values are not
        whole numbers, or negative.
    """
    image = load(path, orientation=orientation)
    if image.data.ndim != 3:
        raise UnusableDataError(
            f"{path}: has {image.data.ndim} axes, but a label image has three; give a single volume"
        )
    known = image.data[np.isfinite(image.data)]
    if np.abs(known - np.rint(known)).max(initial=0) > NEARLY_WHOLE:
        raise UnusableDataError(
            f"{path}: some values are not integers, so this is not a label image; apply a "
            "threshold, such as 0.5, and save 0 and 1"
        )
    if known.min(initial=0) < -NEARLY_WHOLE:
        raise UnusableDataError(
            f"{path}: some values are negative, so this is not a label image; save 0 outside labels"
        )
    return image


def from_nibabel(image: nib.spatialimages.SpatialImage) -> Image:
    """Convert a nibabel image to float32, scaled according to its header.

    Axes of length one beyond the third are dropped.

    Raises
    ------
    UnusableDataError
        If it is a NIfTI image whose header does not define left and right.
    """
    if isinstance(image, nib.Nifti1Pair) and not any(
        image.header[code] for code in ("sform_code", "qform_code")
    ):
        raise UnusableDataError(
            "the given image: its header does not define left and right (the codes of sform and "
            "qform are both 0); find out the order of its voxels, and set them"
        )
    data = np.ascontiguousarray(image.dataobj, np.float32)  # nibabel turns axes without a copy
    more = [size for size in data.shape[3:] if size != 1]
    return Image(data.reshape(*data.shape[:3], *more), np.asarray(image.affine, np.float64))


def to_nibabel(image: Image) -> nib.Nifti1Image:
    """Convert an image to nibabel's class, with equal sform and qform; booleans become bytes."""
    data = image.data.astype(np.uint8) if image.data.dtype == bool else image.data
    image_file = nib.Nifti1Image(data, image.affine)
    image_file.header.set_xyzt_units("mm")
    image_file.header.set_sform(image.affine, code=1)
    image_file.header.set_qform(image.affine, code=1)
    return image_file


def save(image: Image, path: Path | str, *, description: str = "") -> None:
    """Write an image so that it is either complete or absent, and equal data give equal bytes.

    Parameters
    ----------
    image : Image
        Image to write. Boolean data are written as bytes, other data with their own type.
    path : path-like
        Path ending in ``.nii.gz`` or ``.nii``; replaced if it exists.
    description : str
        Text for the header's ``descrip``, at most 79 characters.

    Raises
    ------
    UnusableDataError
        If a voxel is NaN or infinite; nothing is written then.
    ReadWriteError
        If it cannot be written: no space, no permission.
    """
    path = Path(path)
    odd = int(image.data.size - np.isfinite(image.data).sum())
    if odd:
        raise UnusableDataError(
            f"{path}: was not written, because {odd} of its voxels would be NaN or infinite; look "
            "at the images that it was computed from"
        )
    image_file = to_nibabel(image)
    image_file.header["descrip"] = description
    _write(image_file, path)


def _write(image: nib.Nifti1Image, path: Path) -> None:
    content = image.to_bytes()
    if path.suffix == ".gz":
        content = gzip.compress(content, compresslevel=3, mtime=0)
    write_bytes(path, content)


def place(source: Path, target: Path) -> None:
    """Copy a result to its final path atomically; equal images give equal bytes.

    The header is set according to the file name of the image: sform and qform code 4 for names with
    ``space-`` and a template or with ``tpl-``, 2 for ``space-T1w``, and 1 (scanner) without
    ``space-``; integers for masks and labels.

    Parameters
    ----------
    source : Path
        Path of the file to copy. A NIfTI image has three axes.
    target : Path
        Final path.

    Raises
    ------
    UnusableDataError
        If it is named like an image but is not one.
    ReadWriteError
        If it cannot be read or written.
    """
    if not target.name.endswith((".nii", ".nii.gz")):
        copy_file(source, target)
        return
    try:
        image = nib.Nifti1Image.from_filename(source)
        data = np.asanyarray(image.dataobj)
    except (nib.filebasedimages.ImageFileError, OSError, EOFError, zlib.error) as error:
        raise UnusableDataError(f"{source}: cannot be read as an image ({error})") from error
    kind = next((kind for end, kind in KINDS.items() if f"_{end}." in target.name), None)
    if kind is not None:
        data = np.rint(data).astype(kind)
    space = re.search(r"_space-([A-Za-z0-9]+)_", target.name)
    code = 1 if space is None else 2 if space[1] == "T1w" else 4
    code = 4 if target.name.startswith("tpl-") else code
    placed = nib.Nifti1Image(data, image.affine, image.header)
    placed.header.set_data_dtype(data.dtype)
    placed.header.set_sform(image.affine, code=code)
    placed.header.set_qform(image.affine, code=code)
    _write(placed, target)


def to_small_bytes(image: Image, step: float) -> bytes:
    """Encode an image as a compressed NIfTI-1 file with one byte per voxel.

    Equal data give equal bytes.

    Parameters
    ----------
    image : Image
        Image with finite values from 0 to 255 steps.
    step : float
        Step to whose multiples values are rounded; the header's ``scl_slope``.
    """
    stored = np.rint(image.data / step).clip(0, 255).astype(np.uint8)
    image_file = to_nibabel(Image(stored, image.affine))
    image_file.header.set_slope_inter(step, 0)
    return gzip.compress(image_file.to_bytes(), compresslevel=9, mtime=0)


KINDS = {"mask": np.uint8, "dseg": np.int16}  # suffix → data type of the voxels
ABOUT = "about.json"
CHANNELS = "channels"  # PET and T1w as one array, (2, I, J, K); stored on request
HOLE = "hole"  # brain not covered by the PET; not stored if there is none


@dataclass(frozen=True)
class Owner:
    """Visit that stored volumes belong to.

    Parameters
    ----------
    participant, session : str, str or None
        Labels of participant and session.
    affine : tuple
        Voxel indices → world coordinates in mm, RAS+, row by row.
    """

    participant: str
    session: str | None
    affine: tuple[tuple[float, ...], ...]

    @property
    def zooms(self) -> tuple[float, float, float]:
        """Voxel size in mm along each axis."""
        return zooms_of(np.array(self.affine))


def store_arrays(folder: Path, owner: Owner, arrays: Mapping[str, np.ndarray]) -> str:
    """Write the volumes of one visit, (I, J, K) each, so that they can be mapped.

    Parameters
    ----------
    folder : Path
        Folder for the arrays; it is created, and arrays in it are replaced.
    owner : Owner
        Visit that the volumes belong to.
    arrays : mapping
        Name → volume.

    Returns
    -------
    str
        SHA-256 of names, affine and content.

    Raises
    ------
    ReadWriteError
        If they cannot be written.
    """
    digest = hashlib.sha256(json.dumps([owner.affine, list(arrays)]).encode())
    for path in {*folder.glob("*.npy")} - {folder / f"{name}.npy" for name in arrays}:
        path.unlink()  # left by an earlier run; existing mappings stay valid
    for name, array in arrays.items():
        digest.update(np.ascontiguousarray(array).tobytes())
        _save(np.asfortranarray(array), folder / f"{name}.npy")
    about = {"participant": owner.participant, "session": owner.session, "affine": owner.affine}
    write_json(folder / ABOUT, {**about, "sha256": digest.hexdigest()})
    return digest.hexdigest()


def _save(array: np.ndarray, path: Path) -> None:
    content = BytesIO()
    np.save(content, array)
    write_bytes(path, content.getvalue())


def read_owner(folder: Path) -> Owner:
    """Read which visit the volumes in a folder belong to.

    Raises
    ------
    ReadWriteError
        If the record cannot be read.
    """
    about = read_json(folder / ABOUT)
    affine = tuple(tuple(float(x) for x in row) for row in about["affine"])
    session = about["session"]
    return Owner(str(about["participant"]), None if session is None else str(session), affine)


def read_digest(folder: Path) -> str:
    """Read the SHA-256 that :func:`store_arrays` returned.

    Raises
    ------
    ReadWriteError
        If the record cannot be read.
    """
    return str(read_json(folder / ABOUT)["sha256"])


def open_arrays(folder: Path, names: Iterable[str]) -> list[np.ndarray]:
    """Map volumes of one visit into memory; changes to them are not written to the disk.

    Raises
    ------
    ReadWriteError
        If they cannot be read.
    """
    try:  # a private mapping, because torch warns of read-only arrays
        return [open_memmap(folder / f"{name}.npy", mode="c") for name in names]
    except (OSError, ValueError) as error:
        raise ReadWriteError(f"{folder}: cannot be read ({error}); delete it") from error


def open_hole(folder: Path) -> Mask | None:
    """Map the part of the brain that the PET of a visit does not cover; None if there is none.

    Raises
    ------
    ReadWriteError
        If it cannot be read.
    """
    return open_arrays(folder, [HOLE])[0] if (folder / f"{HOLE}.npy").exists() else None
