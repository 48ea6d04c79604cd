"""Does TensorRT take our files? Asked of TensorRT-RTX, which parses and compiles without a GPU, in a subprocess.

It shares TensorRT's parser and types, so that it finds an operator or a type that neither takes. It says nothing of
what an engine answers or how fast: for that a GPU is needed (export.tensorrt.engine).
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path

from pydantic import TypeAdapter

from export.children import run_module
from export.errors import EngineError
from export.tensorrt import api
from export.tensorrt.plan import BuildSettings, compile_plan

CHECK_SECONDS = 300.0
"""Longest time a check may take. Measured for full-width VGG19 with a wide head at 224 pixels: see docs/tensorrt.md."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Checked:
    """What TensorRT-RTX made of a file. layers, inputs, outputs, seconds: as in export.tensorrt.plan.Plan."""

    version: str
    layers: dict[str, int]
    inputs: dict[str, tuple[str, tuple[int, ...]]]
    outputs: dict[str, tuple[str, tuple[int, ...]]]
    plan_bytes: int
    seconds: float
    notes: tuple[str, ...]


def check_parses(
    onnx_bytes: bytes, settings: BuildSettings | None = None, *, timeout_seconds: float = CHECK_SECONDS
) -> Checked:
    """Parse and compile the file with TensorRT-RTX, in a subprocess, and return what was made; nothing is kept.

    Raises EngineError where TensorRT-RTX is not installed, refuses the file, crashes or takes too long.
    """
    with tempfile.TemporaryDirectory(prefix="gliofed-check-") as folder:
        file = Path(folder) / "model.onnx"
        file.write_bytes(onnx_bytes)
        asked = (settings or BuildSettings()).model_dump_json()
        try:
            done = run_module("export.tensorrt.check", str(file), asked, timeout_seconds=timeout_seconds)
        except subprocess.TimeoutExpired as error:
            raise EngineError(f"TensorRT-RTX took more than {timeout_seconds:g} s; give it more, or a GPU") from error
    if done.returncode != 0:
        said = done.stderr.strip()[-2000:] or f"the process ended with status {done.returncode} and no word"
        raise EngineError(f"TensorRT-RTX does not take this file: {said}")
    return TypeAdapter(Checked).validate_json(done.stdout.splitlines()[-1])


def _main(file: str, settings: str) -> int:
    try:
        trt = api.load("tensorrt_rtx")
        plan, _ = compile_plan(trt, Path(file).read_bytes(), BuildSettings.model_validate_json(settings))
    except EngineError as error:
        print(error, file=sys.stderr)
        return 1
    checked = Checked(
        version=plan.version,
        layers=dict(plan.layers),
        inputs=dict(plan.inputs),
        outputs=dict(plan.outputs),
        plan_bytes=len(plan.data),
        seconds=plan.seconds,
        notes=plan.notes,
    )
    print(json.dumps(asdict(checked)))
    return 0


if __name__ == "__main__":
    sys.exit(_main(*sys.argv[1:]))
