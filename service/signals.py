"""SIGTERM and SIGINT as a request to stop at the next safe point."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType


@contextmanager
def stop_requests() -> Iterator[Callable[[], bool]]:
    """Yield a function that tells whether a signal asked to stop; the former handlers return at the end.

    Enter it after `ray.init`, which installs handlers of its own. A second signal ends the process at once.
    """
    requested = False

    def request(number: int, _: FrameType | None) -> None:
        nonlocal requested
        if requested:
            signal.signal(number, signal.SIG_DFL)
            signal.raise_signal(number)
        requested = True

    before = {number: signal.signal(number, request) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield lambda: requested
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
