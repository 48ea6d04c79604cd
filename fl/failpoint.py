"""Named places at which a test lets the process die, as by kill -9, to see that a resumed run loses nothing.

`GLIOFED_FAILPOINT=round.reply:3` ends the process when it passes the place `round.reply` for the third time. Without
the variable a place costs a look into the environment.
"""

from __future__ import annotations

import os
import signal
from collections import Counter

VARIABLE = "GLIOFED_FAILPOINT"

_passed: Counter[str] = Counter()


def failpoint(name: str) -> None:
    """Die here by SIGKILL where the environment names this place and how often it was to be passed."""
    wanted = os.environ.get(VARIABLE)
    if wanted is None:
        return
    _passed[name] += 1
    place, _, times = wanted.partition(":")
    if place == name and _passed[name] == int(times or 1):
        os.kill(os.getpid(), signal.SIGKILL)
