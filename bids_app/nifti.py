"""Open and save NIfTI images, the one place that does, and volumes of a cohort mapped from disk.

What cannot be an image of a head is refused here, with a sentence that names the file. Volumes are
mapped into memory page by page, so that a cohort of any size can be used; arrays lie with the last
axis outermost, so that the voxels of a transverse slice lie together.
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
from bids_app.files import copy_file, read_json, size_of, write_bytes, write_json
from bids_app.header import LARGEST_HEADER, Header, read_header
from bids_app.imaging.volume import Affine, Grid, Mask, lay_labels, zooms_of
from bids_app.resources import GIB, find_limits

ROUNDING = 1e-3  # mm, by which affines of one grid may differ (our choice)
NEARLY_WHOLE = 1e-3  # by which a label may differ from a whole number: scaling rounds (our choice)
GZIP = b"\x1f\x8b"  # how compressed files begin (RFC 1952)
DEFLATE = 1032  # bytes that one of a compressed file can stand for, at most (zlib's documentation)
PLAUSIBLE = 200  # bytes that one stands for in large images, at most; our choice
LARGE = 1 << 30  # bytes of an image that is refused if it is not plausible; our choice
LARGEST_TAIL = 1 << 26  # bytes after the voxels of a compressed image; our choice
PIECE = 1 << 24  # bytes that are read at once
LARGEST, SMALLEST = float(np.finfo(np.float32).max), 1e-30  # intensities; below, digits are lost
FEW = 1e-3  # of the voxels: they are broken, where they alone are out of bounds; our choice
AGAIN = "copy it again from its source"
SYNTHETIC_PET = "SYNTHETIC FDG PET, mri2pet"  # in the header of every synthetic image


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
    notes : tuple of str
        Sentences for a reader of the results: how a doubtful file was understood.
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
        """The lattice of its voxels."""
        i, j, k = self.data.shape[:3]
        return Grid((i, j, k), self.affine)


@contextmanager
def _reading(path: Path) -> Iterator[gzip.GzipFile | BufferedReader]:
    """Open an image, compressed or not, and say in a sentence why it cannot be read."""
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
    """Give the bytes of memory that this process may use."""
    return int(find_limits(os.environ).mem_gb * GIB)


def _refuse_size(path: Path, header: Header, size: int, *, compressed: bool) -> None:
    """Refuse a file that cannot hold what its header says, or that no memory could."""
    claimed = header.offset + header.bytes
    limit = size * DEFLATE if compressed else size
    if claimed > limit:
        raise UnusableDataError(
            f"{path}: truncated or damaged (its header says {_count(claimed)}, the file holds "
            f"{_count(size)}); {AGAIN}"
        )
    if compressed and claimed > max(LARGE, size * PLAUSIBLE):
        raise UnusableDataError(
            f"{path}: its header says {_count(claimed)} in a file of {_count(size)}, and no image "
            f"of a head can be compressed so much; {AGAIN}"
        )
    needed = header.bytes + header.bytes // header.stored.itemsize * np.dtype(np.float32).itemsize
    if needed > _memory():
        raise UnusableDataError(
            f"{path}: to read it takes {_count(needed)} of memory, and there are "
            f"{_count(_memory())}; use a machine with more, or convert it again if it is not so "
            "large"
        )


def _count(size: int) -> str:
    """Write a number of bytes as a reader says it.

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
    """Read a header, and see whether the file can be an image of a head.

    Parameters
    ----------
    path : Path
        NIfTI-1 or NIfTI-2, compressed or not.
    orientation : str
        Axis code that the user vouches for where the header has none; empty: nobody does.

    Raises
    ------
    MissingInputError
        If there is no such file.
    ReadWriteError
        If it may not be read.
    UnusableDataError
        If it is no file, no NIfTI image, not what :func:`bids_app.header.read_header` accepts, or
        too small or too large for what its header says.
    """
    size = size_of(path)
    with _reading(path) as file:
        header = read_header(path, file.read(LARGEST_HEADER), orientation)
        _refuse_size(path, header, size, compressed=isinstance(file, gzip.GzipFile))
    return header


def check_header(path: Path) -> tuple[int, ...]:
    """See from the header alone whether this can be an image of a head.

    Returns
    -------
    tuple of int
        The shape, without axes of length one beyond the third.

    Raises
    ------
    MissingInputError, ReadWriteError, UnusableDataError
        As :func:`inspect`.
    """
    return inspect(path).shape


def read_grid(path: Path) -> Grid:
    """Read the grid of a volume from its header alone.

    Raises
    ------
    MissingInputError, ReadWriteError, UnusableDataError
        As :func:`check_header`.
    """
    header = inspect(path)
    i, j, k = header.shape[:3]
    return Grid((i, j, k), header.affine)


def lies_on(path: Path, grid: Grid) -> bool:
    """Tell from the header alone whether a volume lies on a grid.

    Raises
    ------
    MissingInputError, ReadWriteError, UnusableDataError
        As :func:`check_header`.
    """
    header = inspect(path)
    return header.shape == grid.shape and np.allclose(header.affine, grid.affine, atol=ROUNDING)


def check_grid(path: Path, grid: Grid) -> None:
    """See from the header alone whether an image of template space lies on the run's grid.

    Raises
    ------
    MissingInputError, ReadWriteError
        As :func:`check_header`.
    UnusableDataError
        As :func:`check_header`, and if shape or affine differ.
    """
    if not lies_on(path, grid):
        raise UnusableDataError(
            f"{path}: lies on another grid than --bounding-box and --resolution say; run the "
            "participant level again with the same"
        )


def read_description(path: Path) -> str:
    """Read the header's ``descrip``.

    Raises
    ------
    MissingInputError, ReadWriteError, UnusableDataError
        As :func:`inspect`.
    """
    return inspect(path).description


def lay_atlas(atlas: Image, grid: Grid) -> NDArray[np.integer]:
    """Lay a label image on a grid of its space, (I, J, K)."""
    return lay_labels(np.rint(atlas.data).astype(np.int16), atlas.affine, grid)


def load(path: Path | str, *, orientation: str = "") -> Image:
    """Read an image, scaled as its header says.

    Intensities that float32 cannot hold, too large or too small, are divided by the largest of
    them, and a note says so.

    Parameters
    ----------
    path : path-like
        NIfTI-1 or NIfTI-2, compressed or not.
    orientation : str
        As :func:`inspect`.

    Returns
    -------
    Image
        float32; axes of length one beyond the third are dropped.

    Raises
    ------
    MissingInputError, ReadWriteError, UnusableDataError
        As :func:`inspect`; UnusableDataError also if the file ends too early, the checksum of
        a compressed one is wrong, or memory runs out.
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
    """Read exactly what the header says."""
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
    """Read a compressed file to its end, where its checksum is."""
    beyond = 0
    while piece := file.read(PIECE):
        beyond += len(piece)
        if beyond > LARGEST_TAIL:
            raise UnusableDataError(
                f"{path}: holds more than the {_count(LARGEST_TAIL)} that may follow its voxels; "
                "its header and its content are not of one image; convert it again"
            )


def _scale(stored: np.ndarray, header: Header) -> tuple[np.ndarray, str]:
    """Scale stored to true intensities; say how far they reach and what became of them, if any."""
    data = np.empty(stored.shape, np.float32, order="F")
    peak, usual, broken = 0.0, 0.0, 0
    for k in range(stored.shape[-1]):  # slice by slice, or frame by frame: float64 takes memory
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
    sentence = f"{peak:.2g}, and 32-bit floats do not hold them"
    if 0 < broken <= FEW * stored.size and usual < np.sqrt(LARGEST):
        return data, f"{sentence}; voxels beyond were clipped: {broken}"
    for k in range(stored.shape[-1]):
        data[..., k] = _true(stored[..., k], header) / peak
    return data, f"{sentence}; they were divided by {peak:.6g}"


def _true(stored: np.ndarray, header: Header) -> np.ndarray:
    with np.errstate(all="ignore"):
        return stored.astype(np.float64) * header.slope + header.inter


def load_scan(path: Path | str, *, orientation: str = "", gaps: bool = False) -> Image:
    """Read an acquired image, and refuse one that holds no picture.

    Parameters
    ----------
    path : path-like
        As :func:`load`.
    orientation : str
        As :func:`inspect`.
    gaps : bool
        Whether some voxels may hold no number, as those that SPM's reslicing found nothing for.

    Raises
    ------
    MissingInputError, ReadWriteError, UnusableDataError
        As :func:`load`; UnusableDataError also if a value is not finite, or all are equal.
    """
    image = load(path, orientation=orientation)
    finite = np.isfinite(image.data)
    odd = int(finite.size - finite.sum())
    if odd and (not gaps or odd == finite.size):
        advice = "replace them (by 0 outside the head)" if odd < finite.size else "export it again"
        raise UnusableDataError(f"{path}: {odd} voxels are NaN or infinite; {advice}")
    known = image.data[finite] if odd else image.data
    if known.min() == known.max():
        raise UnusableDataError(f"{path}: all voxels are equal; export the image again")
    return image


def check_labels(path: Path, *, orientation: str = "") -> None:
    """See whether an image can be a mask, or one of labels.

    Raises
    ------
    MissingInputError, ReadWriteError, UnusableDataError
        As :func:`load`; UnusableDataError also if there is more than one volume, or values are not
        whole numbers.
    """
    image = load(path, orientation=orientation)
    if image.data.ndim != 3:
        raise UnusableDataError(
            f"{path}: has {image.data.ndim} axes, and labels have three; give a single volume"
        )
    known = image.data[np.isfinite(image.data)]
    if np.abs(known - np.rint(known)).max(initial=0) > NEARLY_WHOLE:
        raise UnusableDataError(
            f"{path}: not all of its values are whole numbers, so they are no labels; set a "
            "threshold, 0.5 for instance, and save 0 and 1"
        )


def from_nibabel(image: nib.spatialimages.SpatialImage) -> Image:
    """Take an image of nibabel, scaled as its header says; float32."""
    data = np.asarray(image.dataobj, np.float32)
    return Image(data, np.asarray(image.affine, np.float64))


def to_nibabel(image: Image) -> nib.Nifti1Image:
    """Give an image as nibabel has it, sform and qform alike; booleans become bytes."""
    data = image.data.astype(np.uint8) if image.data.dtype == bool else image.data
    image_file = nib.Nifti1Image(data, image.affine)
    image_file.header.set_xyzt_units("mm")
    image_file.header.set_sform(image.affine, code=1)
    image_file.header.set_qform(image.affine, code=1)
    return image_file


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
    UnusableDataError
        If a voxel is NaN or infinite; nothing is written.
    ReadWriteError
        If it cannot be written: no space, no permission.
    """
    path = Path(path)
    odd = int(image.data.size - np.isfinite(image.data).sum())
    if odd:
        raise UnusableDataError(
            f"{path}: was not written, as {odd} of its voxels would be NaN or infinite; look at "
            "what it is made from"
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
    """Copy a result to its place, whole or not at all; equal images give equal bytes.

    The name of an image says what its header has to: the space (``space-`` a template: code 4 of
    sform and qform, as of an image ``tpl-``; ``space-T1w``: 2, none: 1, that of the scanner), and
    that a mask or labels are integers.

    Parameters
    ----------
    source : Path
        A file; if it is a NIfTI image, of three axes.
    target : Path
        Where it belongs.

    Raises
    ------
    UnusableDataError
        If it is named as an image, and is none.
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
    """Write an image as a small compressed NIfTI-1 file, a byte a voxel; equal data, equal bytes.

    Parameters
    ----------
    image : Image
        From 0 to 255 steps; finite.
    step : float
        To whose multiples values are rounded; the header's ``scl_slope``.
    """
    stored = np.rint(image.data / step).clip(0, 255).astype(np.uint8)
    image_file = to_nibabel(Image(stored, image.affine))
    image_file.header.set_slope_inter(step, 0)
    return gzip.compress(image_file.to_bytes(), compresslevel=9, mtime=0)


KINDS = {"mask": np.uint8, "dseg": np.int16}  # suffix → what its voxels are stored as
ABOUT = "about.json"
CHANNELS = "channels"  # PET and T1w as one array, (2, I, J, K); there if it is asked for
HOLE = "hole"  # what is brain, but was not covered by the PET; no such array: nothing


@dataclass(frozen=True)
class Owner:
    """Whose volumes they are.

    Parameters
    ----------
    participant, session : str, str or None
        Labels.
    affine : tuple
        Voxel indices → mm, RAS+, row by row.
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
        Is made; arrays in it are replaced.
    owner : Owner
        Whose they are.
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
        path.unlink()  # of an earlier run; what is mapped elsewhere stays
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
    """Read whose volumes lie in a folder.

    Raises
    ------
    ReadWriteError
        If it cannot be read.
    """
    about = read_json(folder / ABOUT)
    affine = tuple(tuple(float(x) for x in row) for row in about["affine"])
    session = about["session"]
    return Owner(str(about["participant"]), None if session is None else str(session), affine)


def read_digest(folder: Path) -> str:
    """Read the SHA-256 that :func:`store_arrays` gave.

    Raises
    ------
    ReadWriteError
        If it cannot be read.
    """
    return str(read_json(folder / ABOUT)["sha256"])


def open_arrays(folder: Path, names: Iterable[str]) -> list[np.ndarray]:
    """Map volumes of one visit; what is written to them stays in memory.

    Raises
    ------
    ReadWriteError
        If they cannot be read.
    """
    try:  # a private mapping: torch warns of arrays that may not be written to
        return [open_memmap(folder / f"{name}.npy", mode="c") for name in names]
    except (OSError, ValueError) as error:
        raise ReadWriteError(f"{folder}: cannot be read ({error}); delete it") from error


def open_hole(folder: Path) -> Mask | None:
    """Map what is brain in a visit, but was not covered by its PET; None if that is nothing.

    Raises
    ------
    ReadWriteError
        If it cannot be read.
    """
    return open_arrays(folder, [HOLE])[0] if (folder / f"{HOLE}.npy").exists() else None
