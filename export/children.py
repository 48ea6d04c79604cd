"""Python modules of ours run in processes of their own, because a library may take its process down with it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path


def run_module(module: str, *arguments: str, timeout_seconds: float) -> subprocess.CompletedProcess[str]:
    """Run `python -m module arguments` with this interpreter and package; return its status and texts.

    A negative status is the signal that ended it. Raises subprocess.TimeoutExpired, with what it wrote so far.
    """
    root, inherited = str(Path(__file__).parents[1]), os.environ.get("PYTHONPATH")
    path = root if not inherited else os.pathsep.join([root, inherited])
    # -P: no folder of the caller's may stand in for a package. -S: only where this process was started so itself.
    flags = ["-P", "-S"] if sys.flags.no_site else ["-P"]
    return subprocess.run(
        [sys.executable, *flags, "-m", module, *arguments],
        capture_output=True,
        text=True,
        timeout=timeout_seconds,
        check=False,
        env={**os.environ, "PYTHONPATH": path},
        stdin=subprocess.DEVNULL,
    )
