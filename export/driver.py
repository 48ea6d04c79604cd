"""What this machine has to run networks on: driver, GPUs, TensorRT, ONNX Runtime's providers.

Asked in a subprocess with a time limit, because these libraries can end a process, or hang it, where the driver is
absent or broken. Absence is an answer here, never an error.
"""

from __future__ import annotations

import json
import signal
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from export.children import run_module

PROBE_SECONDS = 60.0
"""Longest time for what one subprocess looks at; loading CUDA's libraries from a cold disk takes many seconds."""

CPU, CUDA, TENSORRT = "CPUExecutionProvider", "CUDAExecutionProvider", "TensorrtExecutionProvider"
STEPS = ("driver", "tensorrt_rtx", "tensorrt", CUDA, TENSORRT)
"""What is looked at, in this order; a step that ends the process is told as absent, and the next one is taken up."""

_NEED_GPU = frozenset({CUDA, TENSORRT})


@dataclass(frozen=True, kw_only=True, slots=True)
class Gpu:
    """One GPU. architecture: as in "sm_90", what engines are built for."""

    name: str
    architecture: str
    memory_bytes: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Machine:
    """What was found. None and empty mean absent, and `absent` then says why, by step (see STEPS).

    driver: its version. cuda: the newest CUDA that it runs, as "13.0". gpus: visible ones, the first is the one used.
    tensorrt, tensorrt_rtx: versions. providers: ONNX Runtime's that were seen to start, best first, the CPU's last.
    """

    driver: str | None
    cuda: str | None
    gpus: tuple[Gpu, ...]
    tensorrt: str | None
    tensorrt_rtx: str | None
    providers: tuple[str, ...]
    absent: Mapping[str, str] = field(hash=False)


def probe(*, timeout_seconds: float = PROBE_SECONDS) -> Machine:
    """Look at everything once, in a subprocess; half a second to a few. Never raises for what is absent or broken."""
    found, left = dict[str, dict[str, Any]](), list(STEPS)
    while left:
        lines, end = _run(left, timeout_seconds)
        found |= lines
        left = [step for step in left if step not in lines]
        if left and end is not None:
            found[left.pop(0)] = {"why": end}
        if not found.get("driver", {}).get("gpus"):
            found |= {step: {"why": "there is no GPU to run on"} for step in left if step in _NEED_GPU}
            left = [step for step in left if step not in _NEED_GPU]
    return _machine(found)


def _run(steps: list[str], timeout_seconds: float) -> tuple[dict[str, dict[str, Any]], str | None]:
    """Return what the steps found before the process ended, and what ended it if it was not their end."""
    asked = steps[:1] if steps[0] == "driver" else steps  # whether there is a GPU decides what else is asked
    try:
        done = run_module("export.probe", *asked, timeout_seconds=timeout_seconds)
        output, end = done.stdout, _how_it_ended(done.returncode, done.stderr)
    except subprocess.TimeoutExpired as error:
        written = error.stdout or b""
        output = written if isinstance(written, str) else written.decode(errors="replace")
        end = f"looking at it took more than {timeout_seconds:g} s"
    except OSError as error:
        output, end = "", f"no subprocess could be started ({error})"
    answers = [json.loads(line) for line in output.splitlines() if line.startswith('{"step"')]
    lines = {answer.pop("step"): answer for answer in answers}
    return lines, end if set(asked) - set(lines) else None


def _how_it_ended(status: int, stderr: str) -> str:
    if status < 0:
        return (
            f"loading it ends the process with {signal.Signals(-status).name}, which happens without a working driver"
        )
    return f"looking at it ended with status {status}: {stderr.strip()[-500:]}"


def _machine(found: Mapping[str, Mapping[str, Any]]) -> Machine:
    driver = found["driver"]
    gpus = tuple(Gpu(**gpu) for gpu in driver.get("gpus", ()))
    return Machine(
        driver=driver.get("driver"),
        cuda=driver.get("cuda"),
        gpus=gpus,
        tensorrt=found["tensorrt"].get("version"),
        tensorrt_rtx=found["tensorrt_rtx"].get("version"),
        providers=(*(name for name in (TENSORRT, CUDA) if "version" in found[name]), CPU),
        absent={step: answer["why"] for step, answer in found.items() if "why" in answer},
    )
