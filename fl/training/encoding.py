"""How a site's update is written for sending: in full, or as a shorter difference to the global parameters.

What a shorter encoding loses is kept by the site and added to its next update (error feedback: Seide et al. 2014,
"1-Bit Stochastic Gradient Descent"; Karimireddy et al. 2019, "Error Feedback Fixes SignSGD"), so that losses do not
add up over rounds. All arithmetic is float32 in numpy, addition and multiplication apart: a site knows to the bit what
the server will decode.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray

from fl.model.flat import FlatParameters

Encoding = Literal["float32", "bfloat16", "int8"]
"""float32: the parameters, 4 bytes each. bfloat16, int8: the difference, 2 bytes each and 1 + 4/1024."""

RESIDUAL = "residual"
"""Name of what encodings have lost so far in what a site remembers."""

BLOCK = 1024
"""Values of int8 that share one scale."""

LARGEST_INT8 = 127

_CHUNK = 64 * BLOCK
"""Values worked on at once, so that every step of the arithmetic finds them in the cache."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class EncodedDelta:
    """The difference of a site's parameters [P] to the global ones.

    values: the bits of bfloat16 as uint16 [P], or int8 [P] that count scales. scales: float32 [ceil(P / BLOCK)], one
    for each block of int8; empty for bfloat16.
    """

    values: NDArray[np.uint16] | NDArray[np.int8]
    scales: FlatParameters = field(default_factory=lambda: np.empty(0, np.float32))

    @property
    def nbytes(self) -> int:
        """Bytes to send."""
        return self.values.nbytes + self.scales.nbytes


Update = FlatParameters | EncodedDelta
"""A site's parameters [P] in float32, or their difference to the task's."""


def encode(
    parameters: FlatParameters, reference: FlatParameters, encoding: Encoding, residual: FlatParameters | None
) -> tuple[Update, FlatParameters | None]:
    """Return the update that stands for parameters [P], and what it leaves out, [P], to be passed next time.

    reference: the global parameters that the site began with. residual: what this function returned for the site's
    last update that was counted, None at first. What comes back is parameters + residual less what `decode` returns;
    None for float32, which leaves nothing out and adds nothing.
    A value that is NaN or infinite stays so, in all of its block where the encoding is int8.
    """
    if encoding == "float32":
        return parameters, None
    delta = _empty_delta(len(parameters), encoding)
    left_out = np.empty_like(parameters)
    difference = np.empty(_CHUNK, np.float32)
    with np.errstate(invalid="ignore", over="ignore"):  # infinite - infinite is NaN, which is what is to be sent
        for piece in _pieces(len(parameters)):
            wanted = np.subtract(parameters[piece], reference[piece], out=difference[: piece.stop - piece.start])
            if residual is not None:
                wanted += residual[piece]
            _encode_piece(wanted, delta, piece)
            decoded = _decode_piece(delta, piece, out=wanted)
            decoded += reference[piece]
            np.subtract(parameters[piece], decoded, out=left_out[piece])
            if residual is not None:
                left_out[piece] += residual[piece]
    return delta, left_out


def decode(update: Update, parameters: FlatParameters) -> FlatParameters:
    """Return the site's parameters [P], given the global ones that it began with; see `fault_in` for its form."""
    if not isinstance(update, EncodedDelta):
        return update
    decoded = np.empty_like(parameters)
    with np.errstate(invalid="ignore", over="ignore"):
        for piece in _pieces(len(parameters)):
            _decode_piece(update, piece, out=decoded[piece])
            decoded[piece] += parameters[piece]
    return decoded


def fault_in(update: Any, encoding: Encoding, num_parameters: int) -> str | None:
    """Return what is wrong with the form of an update of `num_parameters` in this encoding, None where it is right."""
    expected = _empty_delta(0, encoding).values.dtype if encoding != "float32" else np.dtype(np.float32)
    if isinstance(update, EncodedDelta) == (encoding == "float32") or not isinstance(update, EncodedDelta | np.ndarray):
        return f"update is {_form(update)}, this round asks for {encoding}"
    values = update.values if isinstance(update, EncodedDelta) else update
    if values.dtype != expected or values.shape != (num_parameters,):
        return f"update is {_form(values)}, expected {expected}[{num_parameters}]"
    if not isinstance(update, EncodedDelta):
        return None
    num_scales = _num_blocks(num_parameters) if encoding == "int8" else 0
    if update.scales.dtype != np.float32 or update.scales.shape != (num_scales,):
        return f"update has scales {_form(update.scales)}, expected float32[{num_scales}]"
    return None


def _form(update: Any) -> str:
    if isinstance(update, EncodedDelta):
        return f"a difference in {_form(update.values)}"
    if not isinstance(update, np.ndarray):
        return f"a {type(update).__name__}"
    return f"{update.dtype}{list(update.shape)}"


def _pieces(num_parameters: int) -> Iterator[slice]:
    for start in range(0, num_parameters, _CHUNK):
        yield slice(start, min(start + _CHUNK, num_parameters))


def _num_blocks(num_parameters: int) -> int:
    return -(-num_parameters // BLOCK)


def _empty_delta(num_parameters: int, encoding: Encoding) -> EncodedDelta:
    if encoding == "bfloat16":
        return EncodedDelta(values=np.empty(num_parameters, np.uint16))
    scales = np.empty(_num_blocks(num_parameters), np.float32)
    return EncodedDelta(values=np.empty(num_parameters, np.int8), scales=scales)


def _encode_piece(wanted: FlatParameters, delta: EncodedDelta, piece: slice) -> None:
    if delta.values.dtype == np.uint16:
        rounded = torch.from_numpy(wanted).to(torch.bfloat16)  # to nearest, ties to even; NaN stays NaN
        delta.values[piece] = rounded.view(torch.uint16).numpy()
        return
    blocks_BV = _blocks(wanted)
    largest_B = np.maximum(blocks_BV.max(axis=1), -blocks_BV.min(axis=1))  # both propagate NaN
    scales_B = largest_B / np.float32(LARGEST_INT8)
    scales_B[scales_B < np.finfo(np.float32).tiny] = 0  # its inverse would be infinite
    is_broken_B = ~np.isfinite(scales_B)
    scales_B[is_broken_B] = np.nan
    inverse_B = np.divide(1, scales_B, out=np.zeros_like(scales_B), where=scales_B > 0)
    counts_BV = np.rint(blocks_BV * inverse_B[:, None])
    counts_BV[is_broken_B] = 0
    delta.values[piece] = counts_BV.reshape(-1)[: len(wanted)]
    delta.scales[_blocks_of(piece)] = scales_B


def _decode_piece(delta: EncodedDelta, piece: slice, out: FlatParameters) -> FlatParameters:
    """Write the difference of a piece into `out` and return it."""
    values = delta.values[piece]
    if values.dtype == np.uint16:
        out[:] = (values.astype(np.uint32) << 16).view(np.float32)
        return out
    out[:] = values
    whole = len(out) // BLOCK * BLOCK
    scales_B = delta.scales[_blocks_of(piece)]
    out[:whole].reshape(-1, BLOCK)[:] *= scales_B[: whole // BLOCK, None]
    out[whole:] *= scales_B[-1]
    return out


def _blocks(values: FlatParameters) -> FlatParameters:
    """Return values as [B, BLOCK], the last block filled up with zeros."""
    missing = -len(values) % BLOCK
    return (np.pad(values, (0, missing)) if missing else values).reshape(-1, BLOCK)


def _blocks_of(piece: slice) -> slice:
    return slice(piece.start // BLOCK, _num_blocks(piece.stop))
