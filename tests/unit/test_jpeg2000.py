"""A JPEG 2000 codestream's headers, read before anything is decoded."""

from __future__ import annotations

import struct
from contextlib import suppress

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from openjpeg.utils import encode_array

from service.dicom.jpeg2000 import MAX_BLOCKS, Codestream, read_codestream

STREAM = bytes(encode_array(np.zeros((60, 48), np.uint16), bits_stored=12))
COD, COC = 0x52, 0x53


def segment(kind: int, content: bytes) -> bytes:
    return bytes([0xFF, kind]) + struct.pack(">H", len(content) + 2) + content


def style(precinct: int | None, block: int, levels: int = 5) -> bytes:
    """Return coding style flags and parameters; precinct and block: exponents of their sides."""
    precincts = b"" if precinct is None else bytes([precinct * 17] * (levels + 1))
    return bytes([precinct is not None]), bytes([levels, block - 2, block - 2, 0, 1]) + precincts


def codestream(main: bytes, tile: bytes = b"", side: int = 512, tile_side: int = 512) -> bytes:
    sizes = struct.pack(">HIIIIIIIIH", 0, side, side, 0, 0, tile_side, tile_side, 0, 0, 1) + bytes([7, 1, 1])
    packets = b"\xff\x52 not a marker here"
    part = tile + b"\xff\x93" + packets
    start = segment(0x90, struct.pack(">HIBB", 0, 12 + len(part), 0, 1))
    return b"\xff\x4f" + segment(0x51, sizes) + main + start + part + b"\xff\xd9"


def cod(precinct: int | None, block: int) -> bytes:
    flags, parameters = style(precinct, block)
    return segment(COD, flags + bytes([0, 0, 1, 0]) + parameters)


def coc(precinct: int | None, block: int) -> bytes:
    return segment(COC, b"\0" + b"".join(style(precinct, block)))


def test_an_encoders_codestream_is_measured() -> None:
    found = read_codestream(STREAM)
    assert found[:4] == (48, 60, 1, 12) and 1 <= found.num_blocks < 100


def test_usual_blocks_are_far_below_the_limit_and_hostile_ones_above() -> None:
    assert read_codestream(codestream(cod(None, 6))) == Codestream(512, 512, 1, 8, 101)
    for main, tile in (
        (cod(1, 6), b""),
        (cod(None, 6) + coc(1, 6), b""),
        (cod(None, 6), cod(1, 6)),
        (cod(None, 6), coc(1, 6)),
    ):
        assert read_codestream(codestream(main, tile)).num_blocks > MAX_BLOCKS
    assert read_codestream(codestream(cod(None, 2), side=4096, tile_side=4096)).num_blocks > MAX_BLOCKS
    assert read_codestream(codestream(cod(None, 6), tile_side=2)).num_blocks > MAX_BLOCKS


def test_a_wrapper_is_passed_and_what_it_hides_is_not_believed() -> None:
    wrapper = struct.pack(">I4sI", 12, b"jP  ", 0x0D0A870A)
    decoy = struct.pack(">I4s", 8 + len(STREAM), b"free") + STREAM
    hostile = codestream(cod(1, 6))
    wrapped = wrapper + decoy + struct.pack(">I4s", 8 + len(hostile), b"jp2c") + hostile
    assert read_codestream(wrapped).num_blocks > MAX_BLOCKS


@given(st.lists(st.tuples(st.integers(0, len(STREAM) - 1), st.integers(0, 255)), max_size=8), st.integers(0, 400))
def test_damage_is_told_or_read(changes: list[tuple[int, int]], length: int) -> None:
    damaged = bytearray(STREAM)
    for at, value in changes:
        damaged[at] = value
    with suppress(ValueError, IndexError, struct.error):
        read_codestream(bytes(damaged[: length or None]))
