"""SIGTERM and SIGINT as a request to stop: at the next safe point, or at once where none comes in time.

A job is safe to end at any moment, since checkpoints appear whole or not at all; a safe point merely ends it tidily.
Schedulers kill a few seconds after they ask (Ray's `job stop` after three), and some signal the whole process group,
a local Ray's servers included, after which Ray's own calls wait for a minute. So a job that has not ended itself
within `GRACE_SECONDS` is ended here, with the same exit code.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

EXIT_STOPPED = 75
GRACE_SECONDS = 1.5
STOPPED_MESSAGE = "stopped by a signal; everything up to the last checkpoint is on disk, continue with --resume"


@contextmanager
def stop_requests() -> Iterator[Callable[[], bool]]:
    """Yield a function that tells whether a signal asked to stop; the former handlers return at the end.

    `ray.init` installs handlers of its own; `fl.runtime.cluster.ray_cluster` puts these back.
    """
    requested = threading.Event()

    def request(_: int, __: FrameType | None) -> None:
        if not requested.is_set():
            requested.set()
            watchdog = threading.Timer(GRACE_SECONDS, leave_at_once)
            watchdog.daemon = True
            watchdog.start()

    before = {number: signal.signal(number, request) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield requested.is_set
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def leave_at_once() -> None:
    """Say why, end all processes that this one started, and exit with `EXIT_STOPPED` without asking anyone."""
    import psutil  # training's; a slim installation has the command line without it

    print(STOPPED_MESSAGE, file=sys.stderr, flush=True)
    sys.stdout.flush()
    for child in psutil.Process().children(recursive=True):
        try:
            child.kill()
        except psutil.NoSuchProcess:
            continue
    os._exit(EXIT_STOPPED)
