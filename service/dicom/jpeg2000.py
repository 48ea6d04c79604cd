"""What a JPEG 2000 codestream says of itself (ITU-T T.800 Annex A), read before a decoder allocates for it.

A decoder makes a record of some hundred bytes for every code block, and a codestream of 150 bytes can ask for millions.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import NamedTuple

MAX_BLOCKS = 1 << 18
"""Code blocks of one frame; 4096x4096 pixels in colour, in blocks of 32x32, have a fifth of that."""

_SOC_SIZ = b"\xff\x4f\xff\x51"
_COD, _COC, _SOT, _SOD, _EOC = 0xFF52, 0xFF53, 0xFF90, 0xFF93, 0xFFD9
_WRAPPER = b"\0\0\0\x0cjP  "


class Codestream(NamedTuple):
    """width, height: in pixels. bits: of the deepest component. num_blocks: most code blocks that it asks for."""

    width: int
    height: int
    components: int
    bits: int
    num_blocks: int


def read_codestream(data: bytes) -> Codestream:
    """Return what a codestream's headers say; a JP2 wrapper is passed.

    Raises ValueError, IndexError or struct.error where they are damaged.
    """
    data = _unwrapped(data)
    if not data.startswith(_SOC_SIZ):
        raise ValueError("no start of codestream")
    right, bottom, left, top, tile_width, tile_height = struct.unpack_from(">IIIIII", data, 8)
    (components,) = struct.unpack_from(">H", data, 40)
    bits = max((data[42 + 3 * component] & 0x7F) + 1 for component in range(components))
    width, height = right - left, bottom - top
    num_tiles = -(-right // tile_width) * -(-bottom // tile_height) if tile_width and tile_height else 0
    if num_tiles < 1:
        raise ValueError("no tiles")
    most = max((_blocks(style, width * height, num_tiles) for style in _styles(data, components)), default=0)
    return Codestream(width, height, components, bits, most * components)


def _unwrapped(data: bytes) -> bytes:
    """Return the codestream inside of a JP2 file's boxes (Annex I); DICOM wants none, but some senders wrap."""
    if not data.startswith(_WRAPPER):
        return data
    at = 0
    while True:
        length, kind = struct.unpack_from(">I4s", data, at)
        if kind == b"jp2c":
            return data[at + 8 :]
        if length < 8:
            raise ValueError("a box without an end before the codestream")
        at += length


def _styles(data: bytes, components: int) -> Iterator[bytes]:
    """Yield the SPcod or SPcoc parameters of all coding styles, with their precincts, of main and tile-part headers."""
    at, tile_part, end = 2, 0, len(data)
    while at + 4 <= end:
        marker, length = struct.unpack_from(">HH", data, at)
        if marker == _EOC:
            return
        if marker == _SOD and tile_part > at:
            at = tile_part
            continue
        if marker < 0xFF00 or marker == _SOD or length < 2:
            raise ValueError("no marker where one must be")
        content = data[at + 4 : at + 2 + length]
        if marker == _SOT:
            (size,) = struct.unpack_from(">I", content, 2)
            tile_part = at + size if size else end
        elif marker == _COD:
            yield content[:1] + content[5:]
        elif marker == _COC:
            yield content[1 if components < 257 else 2 :]
        at += 2 + length


def _blocks(style: bytes, num_pixels: int, num_tiles: int) -> int:
    """Return about how many code blocks a component has under a style: has precincts, levels, block sides, ..."""
    has_precincts, levels, block_width, block_height = style[0] & 1, style[1], style[2], style[3]
    if levels > 32:
        raise ValueError("too many decomposition levels")
    total = 0
    for resolution in range(levels + 1):
        precinct = style[6 + resolution] if has_precincts else 0xFF
        split = 1 if resolution else 0  # beyond the lowest resolution a precinct is shared by bands of half its side
        wide = min((block_width & 15) + 2, max((precinct & 15) - split, 0))
        high = min((block_height & 15) + 2, max((precinct >> 4) - split, 0))
        area = num_pixels >> 2 * (levels - resolution)
        total += (area >> (wide + high)) + num_tiles * (3 if resolution else 1)
    return total
