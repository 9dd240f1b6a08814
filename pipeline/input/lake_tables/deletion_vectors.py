"""Deletion vectors: the rows of a data file that a lake table has deleted.

Delta Lake and Iceberg 3 store the same bytes: a magic number, then a 64-bit Roaring bitmap of row
numbers in the portable form (https://github.com/RoaringBitmap/RoaringFormatSpec).
"""

from __future__ import annotations

import base64
import struct
import zlib

import numpy as np
from numpy.typing import NDArray

_MAGIC = 1681511377
_WITH_RUNS, _WITHOUT_RUNS = 12347, 12346
_NO_OFFSETS = 4  # fewer containers than this have no offsets, where there are runs
_MOST_IN_ARRAY = 4096

# Z85, the alphabet of Delta's log, to that of Python.
_Z85 = "0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ.-:+=^!/*?&<>()[]{}@%$#"
_B85 = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz!#$%&()*+-;<=>?@^_`{|}~"
_TO_B85 = str.maketrans(_Z85, _B85)


def z85_decoded(text: str) -> bytes:
    """Bytes of a text in Z85."""
    return base64.b85decode(text.translate(_TO_B85))


def framed(content: bytes) -> bytes:
    """The bitmap in a frame of its length before and its checksum behind it.

    Raises:
        ValueError: The frame is damaged.
    """
    if len(content) < 8:
        raise ValueError("it is cut short")
    (length,) = struct.unpack(">i", content[:4])
    bitmap, rest = content[4 : 4 + length], content[4 + length :]
    if len(bitmap) != length or len(rest) < 4:
        raise ValueError("it is cut short")
    if struct.unpack(">I", rest[:4])[0] != zlib.crc32(bitmap):
        raise ValueError("its checksum is wrong")
    return bitmap


def deleted_rows(bitmap: bytes) -> NDArray[np.int64]:
    """Numbers of the deleted rows, ascending.

    Raises:
        ValueError: The bytes are no deletion vector.
    """
    try:
        magic, count = struct.unpack_from("<iq", bitmap)
        if magic != _MAGIC:
            raise ValueError("it is not a Roaring bitmap of 64 bits")
        place, found = 12, []
        for _ in range(count):
            (key,) = struct.unpack_from("<i", bitmap, place)
            rows, place = _bitmap_of_32(bitmap, place + 4)
            found.append(rows + (key << 32))
    except (struct.error, IndexError):
        raise ValueError("it is cut short") from None
    return np.concatenate(found) if found else np.zeros(0, np.int64)


def _bitmap_of_32(content: bytes, place: int) -> tuple[NDArray[np.int64], int]:
    """Row numbers of one bitmap of 32 bits, and the place behind it."""
    (cookie,) = struct.unpack_from("<I", content, place)
    place += 4
    runs_C = np.zeros(0, bool)
    if cookie & 0xFFFF == _WITH_RUNS:
        size = (cookie >> 16) + 1
        flags = np.frombuffer(content, np.uint8, (size + 7) // 8, place)
        runs_C = np.unpackbits(flags, bitorder="little")[:size].astype(bool)
        place += len(flags)
    elif cookie == _WITHOUT_RUNS:
        (size,) = struct.unpack_from("<I", content, place)
        place += 4
        runs_C = np.zeros(size, bool)
    else:
        raise ValueError("it is not a Roaring bitmap")
    heads = np.frombuffer(content, "<u2", 2 * size, place).reshape(size, 2).astype(np.int64)
    place += 4 * size
    if cookie == _WITHOUT_RUNS or size >= _NO_OFFSETS:
        place += 4 * size
    found = []
    for (key, last), run in zip(heads.tolist(), runs_C.tolist(), strict=True):
        if run:
            (runs,) = struct.unpack_from("<H", content, place)
            pairs = np.frombuffer(content, "<u2", 2 * runs, place + 2).reshape(runs, 2)
            first, more = pairs.astype(np.int64).T
            ends = np.cumsum(more + 1)
            low = np.arange(ends[-1] if runs else 0) + np.repeat(
                first - (ends - more - 1), more + 1
            )
            place += 2 + 4 * runs
        elif last + 1 <= _MOST_IN_ARRAY:
            low = np.frombuffer(content, "<u2", last + 1, place).astype(np.int64)
            place += 2 * (last + 1)
        else:
            bits = np.frombuffer(content, np.uint8, 8192, place)
            low = np.flatnonzero(np.unpackbits(bits, bitorder="little"))
            place += 8192
        found.append(low + (key << 16))
    return (np.concatenate(found) if found else np.zeros(0, np.int64)), place
