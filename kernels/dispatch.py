"""Which instruction set the compiled core uses: the best of this CPU, unless a test or a measurement says otherwise."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal, cast

from kernels import _C

Isa = Literal["scalar", "avx2", "avx512"]

_ONE_AT_A_TIME = threading.RLock()


def isas() -> tuple[Isa, ...]:
    """Names of the instruction sets that this CPU carries out, slowest first."""
    return cast("tuple[Isa, ...]", tuple(_C.isas()))


def isa() -> Isa:
    """Name of the one in use."""
    return cast("Isa", _C.isa())


@contextmanager
def using_isa(name: Isa) -> Iterator[None]:
    """Use another one in this block, in all threads of the process, for calls of kernels.ops that begin in it.

    Blocks of several threads wait for each other. Not for DALI's operators, which take the best of this CPU. Raises
    ValueError where this CPU lacks it.
    """
    with _ONE_AT_A_TIME:
        before = _C.isa()
        _C.use_isa(name)
        try:
            yield
        finally:
            _C.use_isa(before)
