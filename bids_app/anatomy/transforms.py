"""Files of transforms, made the same whenever they hold the same."""

import struct
from pathlib import Path

MAGIC, VERSION, TIMES, ATTRIBUTES = b"OHDR", 2, 0x20, 0x10  # of object headers, and their flags
HALF_WORD = 0xFFFFFFFF


def strip_times(path: Path) -> None:
    """Set the times in an HDF5 file to 0, which ITK's writer has no switch for.

    Each object header of version 2 may hold four times, and ends with a checksum (HDF5 File
    Format Specification 3.0, IV.A.1.b). A header whose checksum does not fit is none.

    Parameters
    ----------
    path : Path
        Is written anew.
    """
    content = bytearray(path.read_bytes())
    at = content.find(MAGIC)
    while at >= 0:
        _strip_header(content, at)
        at = content.find(MAGIC, at + 1)
    path.write_bytes(content)


def _strip_header(content: bytearray, at: int) -> None:
    version, flags = content[at + 4 : at + 6].ljust(2, b"\0")
    if version != VERSION or not flags & TIMES:
        return
    width = 1 << (flags & 3)
    place = at + 6 + 16 + (4 if flags & ATTRIBUTES else 0)
    end = place + width + int.from_bytes(content[place : place + width], "little")
    stored = content[end : end + 4]
    if bytes(stored) != struct.pack("<I", checksum(bytes(content[at:end]))):
        return
    content[at + 6 : at + 22] = bytes(16)
    content[end : end + 4] = struct.pack("<I", checksum(bytes(content[at:end])))


def _rotate(value: int, bits: int) -> int:
    return (value << bits | value >> (32 - bits)) & HALF_WORD


def checksum(data: bytes) -> int:
    """Give the checksum of HDF5's metadata: lookup3 of Bob Jenkins (2006), ``hashlittle``.

    Examples
    --------
    From the test driver of lookup3.c:

    >>> hex(checksum(b"Four score and seven years ago"))
    '0x17770551'
    """
    a = b = c = (0xDEADBEEF + len(data)) & HALF_WORD
    if not data:
        return c
    whole = (len(data) - 1) // 12 * 12
    for start in range(0, whole, 12):
        x, y, z = struct.unpack_from("<III", data, start)
        a, b, c = _mix((a + x) & HALF_WORD, (b + y) & HALF_WORD, (c + z) & HALF_WORD)
    x, y, z = struct.unpack("<III", data[whole:].ljust(12, b"\0"))
    return _finish((a + x) & HALF_WORD, (b + y) & HALF_WORD, (c + z) & HALF_WORD)


def _mix(a: int, b: int, c: int) -> tuple[int, int, int]:
    for bits in (4, 6, 8, 16, 19, 4):
        a = (a - c & HALF_WORD) ^ _rotate(c, bits)
        c = c + b & HALF_WORD
        a, b, c = b, c, a
    return a, b, c


def _finish(a: int, b: int, c: int) -> int:
    for bits in (14, 11, 25, 16, 4, 14, 24):
        c = (c ^ b) - _rotate(b, bits) & HALF_WORD
        a, b, c = b, c, a
    return b
