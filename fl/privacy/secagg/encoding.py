"""Floats as elements of the ring Z_2^bits, so that sums are exact, masks are uniform and nothing wraps around.

Every array has a largest magnitude, its `clip`. A value x becomes round(x * weight / clip) in quanta of the weight, at
most `limit` in magnitude, where num_sites * limit < 2^(bits - 1): no sum of as many sites can leave the signed range.
Three elements follow the arrays: the weight, how many values were clipped, and a one. The sum of the ones must be the
number of sites that were summed; were a mask left over, it would be a random number.

A mean is sum(x_i w_i) / sum(w_i). With m sites and weights exact in quanta (integers are), it differs from the mean of
the clipped floats by at most  m/2 * clip / sum(w_i quanta)  + 2^-50 clip  and the rounding to float32. Arrays that hold
whole numbers already, such as exact sums, are added as they are, modulo 2^bits.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

RingVector = NDArray[np.unsignedinteger[Any]]
"""[L] uint32 or uint64: elements of the ring, added and subtracted with wrap-around."""

CHUNK_BYTES = 1 << 17
"""Vectors are worked on in pieces of this size, which stay in a core's cache from quantising to the last mask."""

_TAIL = 3


@dataclass(frozen=True, kw_only=True, slots=True)
class ArraySpec:
    """One array of the payload.

    length: elements. clip: largest magnitude, > 0; larger values are clipped, counted and reported. whole: elements of
    the ring already, such as exact sums, which are added as they are, without weight or clip.
    """

    name: str
    length: int
    clip: float = 1.0
    whole: bool = False

    def __post_init__(self) -> None:
        if self.length < 0 or not 0 < self.clip < float("inf"):
            raise ValueError(f"array {self.name!r}: length {self.length}, clip {self.clip}; expected >= 0 and > 0")


@dataclass(frozen=True, kw_only=True, slots=True)
class RingEncoding:
    """How the payload of one round is written into a ring vector.

    bits: 32 for updates, 64 for sums of values of very different magnitude. num_sites: most sites that are summed.
    max_weight: largest weight of a site; 1 for the uniform mean, the most examples of a site for the mean by examples.
    Raises ValueError where the ring has no room: fewer than 8 bits would be left for the values.
    """

    bits: Literal[32, 64]
    num_sites: int
    arrays: tuple[ArraySpec, ...]
    max_weight: int = 1

    def __post_init__(self) -> None:
        if self.bits not in (32, 64) or self.num_sites < 1 or self.max_weight < 1 or not self.arrays:
            raise ValueError(
                f"ring of {self.bits} bits, {self.num_sites} sites, max_weight {self.max_weight}, {len(self.arrays)} "
                "arrays; expected 32 or 64 bits and at least one of each"
            )
        if len({array.name for array in self.arrays}) < len(self.arrays):
            raise ValueError(f"arrays {[array.name for array in self.arrays]}: two have one name")
        if self.limit < 256 * self.max_weight:
            raise ValueError(
                f"{self.num_sites} sites with weights up to {self.max_weight} leave fewer than 8 bits of a ring of "
                f"{self.bits} bits for the values; use 64 bits or smaller weights"
            )

    @property
    def limit(self) -> int:
        """Largest magnitude of an element: the largest power of two that `num_sites` times is no overflow."""
        return _power_of_two_within(((1 << (self.bits - 1)) - 1) // self.num_sites)

    @property
    def weight_quanta(self) -> int:
        """Ring units of a weight of one: a power of two, so that integer weights are exact."""
        return _power_of_two_within(self.limit // self.max_weight)

    @property
    def dtype(self) -> np.dtype[np.unsignedinteger[Any]]:
        """uint32 or uint64."""
        return np.dtype(np.uint32 if self.bits == 32 else np.uint64)

    @property
    def length(self) -> int:
        """Elements of a ring vector: all arrays, then weight, clipped values and one."""
        return sum(array.length for array in self.arrays) + _TAIL

    def empty(self) -> RingVector:
        """Return a new ring vector, not initialised."""
        return np.empty(self.length, self.dtype)

    def check(self, vector: RingVector) -> None:
        """Raise ValueError unless it is a ring vector of this encoding."""
        if vector.shape != (self.length,) or vector.dtype != self.dtype:
            raise ValueError(f"vector is {vector.dtype}{list(vector.shape)}, expected {self.dtype}[{self.length}]")

    def chunks(self, vector: RingVector) -> Iterator[RingVector]:
        """Yield views of the vector, one after another, each at most CHUNK_BYTES long."""
        step = CHUNK_BYTES // self.dtype.itemsize
        for start in range(0, self.length, step):
            yield vector[start : start + step]

    def _array(self, name: str) -> tuple[ArraySpec, int]:
        start = 0
        for array in self.arrays:
            if array.name == name:
                return array, start
            start += array.length
        raise KeyError(f"no array {name!r}; the payload has {[array.name for array in self.arrays]}")


class Quantiser:
    """Writes one site's values into a ring vector, chunk by chunk, and counts what it clips.

    values: for every array of the encoding one of its length, float32 or float64, or of the ring where it is whole.
    weight: in (0, max_weight].
    Raises ValueError, before or while it writes, for a missing array, a wrong shape or type, NaN and infinity.
    """

    def __init__(self, encoding: RingEncoding, values: Mapping[str, NDArray[Any]], weight: float) -> None:
        self._encoding = encoding
        self._values = values
        self.clipped = {array.name: 0 for array in encoding.arrays}
        if not 0 < weight <= encoding.max_weight:
            raise ValueError(f"weight is {weight}, expected 0 < weight <= {encoding.max_weight}")
        self._weight = round(weight * encoding.weight_quanta)
        if not self._weight:
            raise ValueError(f"weight {weight} is less than half of its quantum, 1/{encoding.weight_quanta}")
        _check_values(encoding, values)

    def fill(self, vector: RingVector) -> Iterator[RingVector]:
        """Write the ring vector and yield it in chunks, each as soon as it is written; its last holds the tail."""
        signed = vector.view(f"i{self._encoding.dtype.itemsize}")
        step = CHUNK_BYTES // self._encoding.dtype.itemsize
        scratch = np.empty(step, np.float64)
        place = 0
        for array in self._encoding.arrays:
            scale = self._weight / array.clip
            for start in range(0, array.length, step):
                given = self._values[array.name][start : min(start + step, array.length)]
                if array.whole:
                    vector[place : place + len(given)] = given
                    yield vector[place : place + len(given)]
                    place += len(given)
                    continue
                scaled = scratch[: len(given)]
                scaled[:] = given
                self._clip(array, given, scaled)
                scaled *= scale
                np.rint(scaled, out=scaled)
                signed[place : place + len(scaled)] = scaled
                yield vector[place : place + len(scaled)]
                place += len(scaled)
        vector[-_TAIL:] = self._weight, min(sum(self.clipped.values()), self._encoding.limit), 1
        yield vector[-_TAIL:]

    def _clip(self, array: ArraySpec, given: NDArray[np.floating[Any]], scaled: NDArray[np.float64]) -> None:
        smallest, largest = float(given.min()), float(given.max())  # both are NaN where one value is
        if -array.clip <= smallest and largest <= array.clip:  # false for NaN too
            return
        if not (np.isfinite(smallest) and np.isfinite(largest)):
            raise ValueError(f"array {array.name!r} holds NaN or infinity; look at the data and the learning rate")
        self.clipped[array.name] += int(np.count_nonzero(np.abs(scaled) > array.clip))
        np.clip(scaled, -array.clip, array.clip, out=scaled)


@dataclass(frozen=True, kw_only=True, slots=True)
class SecureSum:
    """The sum over the sites that stayed to the end; all that the server learns of their values.

    total: ring vector. sites: those that are in it.
    """

    encoding: RingEncoding
    total: RingVector
    sites: tuple[str, ...]

    @property
    def weight(self) -> float:
        """Sum of the weights."""
        return int(self.total[-_TAIL]) / self.encoding.weight_quanta

    @property
    def clipped(self) -> int:
        """How many values the sites clipped, all arrays and sites together."""
        return int(self.total[-_TAIL + 1])

    @property
    def ones(self) -> int:
        """Sum of the sites' ones: their number, unless a mask was left over."""
        return int(self.total[-_TAIL + 2])

    def mean(self, name: str) -> NDArray[np.float32]:
        """Return sum(x_i w_i) / sum(w_i) of an array of floats, [length] float32."""
        array, start = self.encoding._array(name)
        if array.whole:
            raise ValueError(f"array {name!r} holds whole numbers; ask for whole({name!r})")
        signed = self.total[start : start + array.length].view(f"i{self.encoding.dtype.itemsize}")
        quantum = array.clip / int(self.total[-_TAIL])
        decoded = np.empty(array.length, np.float32)
        step = CHUNK_BYTES // self.encoding.dtype.itemsize
        for place in range(0, array.length, step):
            decoded[place : place + step] = signed[place : place + step] * quantum
        return decoded

    def whole(self, name: str) -> RingVector:
        """Return the sum of an array of whole numbers, [length], a view."""
        array, start = self.encoding._array(name)
        if not array.whole:
            raise ValueError(f"array {name!r} holds floats; ask for mean({name!r})")
        return self.total[start : start + array.length]


def _power_of_two_within(number: int) -> int:
    return 1 << number.bit_length() >> 1


def _check_values(encoding: RingEncoding, values: Mapping[str, NDArray[Any]]) -> None:
    names = [array.name for array in encoding.arrays]
    if set(values) != set(names):
        raise ValueError(f"values are {sorted(values)}, the round's payload is {sorted(names)}")
    for array in encoding.arrays:
        given = values[array.name]
        kinds = (encoding.dtype,) if array.whole else (np.dtype(np.float32), np.dtype(np.float64))
        if given.shape != (array.length,) or given.dtype not in kinds:
            raise ValueError(
                f"array {array.name!r} is {given.dtype}{list(given.shape)}, expected "
                f"{encoding.dtype if array.whole else 'float32 or 64'} [{array.length}]"
            )
