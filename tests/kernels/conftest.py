"""What the kernels' tests share: every instruction set of this CPU, in turn."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from kernels.dispatch import Isa, isas, using_isa


@pytest.fixture(params=isas(), scope="module")
def every_isa(request: pytest.FixtureRequest) -> Iterator[Isa]:
    """Runs a module's tests once with each."""
    with using_isa(request.param):
        yield request.param
