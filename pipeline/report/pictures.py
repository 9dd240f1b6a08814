"""Rows of pixels as PNG files: of the numbers alone, no picture is ever read."""

from __future__ import annotations

import base64
import struct
import zlib
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_COLOR_TYPES = {1: 0, 3: 2}  # grey; red, green, blue


def drawable(shape: Sequence[int] | None, width: int) -> bool:
    """Whether rows of so many values are pictures of this ``source.image_shape``, to be drawn."""
    if shape is None or int(np.prod(shape)) != width:
        return False
    return len(shape) == 2 or shape[2] in _COLOR_TYPES


def pixels(values_NF: NDArray[np.generic]) -> NDArray[np.uint8]:
    """Values as brightness, the same for all pictures: the lowest is black, the highest white."""
    values = np.asarray(values_NF, np.float64)
    low, high = float(np.nanmin(values)), float(np.nanmax(values))
    scaled = (np.nan_to_num(values, nan=low) - low) / ((high - low) or 1.0)
    return (scaled * 255).round().astype(np.uint8)


def png(pixels_HWC: NDArray[np.uint8]) -> bytes:
    """A PNG file of a picture, shape (height, width) or (height, width, 1 or 3)."""
    height, width = pixels_HWC.shape[:2]
    channels = 1 if pixels_HWC.ndim == 2 else pixels_HWC.shape[2]
    rows = pixels_HWC.reshape(height, width * channels)
    filtered = np.concatenate([np.zeros((height, 1), np.uint8), rows], axis=1)  # filter 0 each
    header = struct.pack(">IIBBBBB", width, height, 8, _COLOR_TYPES[channels], 0, 0, 0)
    content = b"IHDR" + header, b"IDAT" + zlib.compress(filtered.tobytes(), 9), b"IEND"
    chunks = (struct.pack(">I", len(c) - 4) + c + struct.pack(">I", zlib.crc32(c)) for c in content)
    return _SIGNATURE + b"".join(chunks)


def data_uri(pixels_HWC: NDArray[np.uint8]) -> str:
    """A picture as the address that holds it."""
    return "data:image/png;base64," + base64.b64encode(png(pixels_HWC)).decode()


def sheet(pixels_NF: NDArray[np.uint8], shape: Sequence[int], columns: int) -> NDArray[np.uint8]:
    """Many pictures as one, in rows of ``columns``; what is left over stays black."""
    height, width = shape[:2]
    channels = shape[2] if len(shape) == 3 else 1
    rows = -(-len(pixels_NF) // columns)
    tiles = np.zeros((rows * columns, height, width, channels), np.uint8)
    tiles[: len(pixels_NF)] = pixels_NF.reshape(-1, height, width, channels)
    grid = tiles.reshape(rows, columns, height, width, channels).transpose(0, 2, 1, 3, 4)
    return grid.reshape(rows * height, columns * width, channels)
