"""What a result was measured on; nothing that names a host, a user or a path."""

from __future__ import annotations

import os
import platform
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

from kernels import dispatch
from service.machine import hardware

_LAST_LEVEL_CACHE = Path("/sys/devices/system/cpu/cpu0/cache/index3/size")
_SOFTWARE = {
    "gliofed": "gliofed",
    "numpy": "numpy",
    "opencv": "opencv-python",
    "torch": "torch",
    "ray": "ray",
    "flwr": "flwr",
}


def describe_machine(inputs: str) -> dict[str, Any]:
    """Hardware, versions and circumstances, as plain JSON values. inputs: what the suite worked on.

    load_average is the system's over the last minute, before the suite began: well below 1 on a quiet machine.
    """
    found = hardware()
    return {
        "cpu": found["cpu"],
        "cores": found["cores"],
        "l3_cache": _LAST_LEVEL_CACHE.read_text().strip() if _LAST_LEVEL_CACHE.exists() else None,
        "isas": list(dispatch.isas()),
        "isa": dispatch.isa(),
        "memory_gib": round(found["memory_bytes"] / 2**30, 1),
        "gpu": ", ".join(found["gpus"]) or None,
        "os": f"{platform.freedesktop_os_release()['PRETTY_NAME']}, {_kernel()}",
        "software": {"python": platform.python_version(), **{name: version(pip) for name, pip in _SOFTWARE.items()}},
        "load_average": round(os.getloadavg()[0], 2),
        "inputs": inputs,
        "date": datetime.now(UTC).date().isoformat(),
    }


def _kernel() -> str:
    # What follows the number is the name of a build, often that of a host's owner.
    return f"{platform.system()} {platform.release().partition('-')[0]}"
