"""python -m benchmarks.child MODULE:FUNCTION ARGUMENTS REPORT: the other end of `benchmarks.family.run_program`."""

from __future__ import annotations

import importlib
import json
import os
import sys
from pathlib import Path

from benchmarks.family import NUM_CORES
from fl.runtime.cluster import RaySettings, prepare_environment


def main() -> None:
    """Call the function with the JSON file's arguments; write what it returns, as JSON."""
    function, arguments, report = sys.argv[1:]
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:NUM_CORES])
    prepare_environment(RaySettings())  # whoever starts Ray here: on loopback, with a token, without statistics
    module, _, name = function.partition(":")
    call = getattr(importlib.import_module(module), name)
    made = call(**json.loads(Path(arguments).read_text(encoding="utf-8")))
    Path(report).write_text(json.dumps(made), encoding="utf-8")


if __name__ == "__main__":
    main()
