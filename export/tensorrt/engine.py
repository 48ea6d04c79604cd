"""Engines: one file for one network, one precision and one GPU architecture, with a report of what it is.

    sm_90-fp16.engine   what TensorRT runs; so it is called in a bundle's engines/ as well
    report.json         of each engine: from which file, by which TensorRT, for which GPU, how far from ONNX Runtime
    sm_90.timings       what kernels took, so that the next build need not measure again; never part of a bundle

An engine is code for one TensorRT and one architecture, and TensorRT runs what a plan says: keep the folder where only
who serves can write, and never load a plan from elsewhere. The report's digests tell a mix-up, not a forgery.
"""

from __future__ import annotations

import hashlib
import json
import os
import secrets
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import TypeAdapter

from export.card import INPUT_NAME
from export.driver import Machine
from export.errors import EngineError
from export.parity import BOUNDS, Precision, differences, maps_of, require_parity
from export.precision import narrow
from export.predictor import open_session
from export.tensorrt import api
from export.tensorrt.plan import BuildSettings, compile_plan
from export.tensorrt.run import Runner

REPORT = "report.json"


@dataclass(frozen=True, kw_only=True, slots=True)
class EngineReport:
    """What an engine is. onnx_sha256: of the bundle's file it was made from (model.onnx, for int8 model.int8.onnx).

    architecture, gpu, driver, tensorrt: where and with what it was built; it runs nowhere else. batches: smallest,
    tuned-for and largest. parsed_layers: kind and type of what the parser made of the file; engine_layers: kinds after
    fusion. parity: each output's difference from ONNX Runtime's float32 on `parity_images` images (export/parity.py).
    """

    precision: Precision
    architecture: str
    gpu: str
    driver: str
    tensorrt: str
    onnx_sha256: str
    plan_sha256: str
    plan_bytes: int
    batches: tuple[int, int, int]
    build_seconds: float
    parsed_layers: Mapping[str, int]
    engine_layers: Mapping[str, int]
    inputs: Mapping[str, tuple[str, tuple[int, ...]]]
    outputs: Mapping[str, tuple[str, tuple[int, ...]]]
    parity: Mapping[str, float]
    parity_images: int
    notes: tuple[str, ...]

    @property
    def name(self) -> str:
        """As in "sm_90-fp16"; the engine's files are called so."""
        return f"{self.architecture}-{self.precision}"

    @property
    def compute_capability(self) -> str:
        """As in "9.0", for sm_90."""
        digits = self.architecture.removeprefix("sm_")
        return f"{digits[:-1]}.{digits[-1]}"


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Engine:
    """An engine and its report."""

    report: EngineReport
    data: bytes = field(repr=False)

    def check(self) -> None:
        """Raise EngineError unless the engine is the one that its report names."""
        if hashlib.sha256(self.data).hexdigest() != self.report.plan_sha256:
            raise EngineError(
                f"engine {self.report.name} is not the one that its report names (its SHA-256 is another, its size "
                f"{len(self.data)} bytes of {self.report.plan_bytes}); build it again"
            )


def build_engine(
    onnx_bytes: bytes,
    precision: Precision,
    images_NCHW: NDArray[np.float32],
    folder: Path,
    *,
    machine: Machine,
    settings: BuildSettings | None = None,
) -> EngineReport:
    """Build an engine for this machine's first GPU, hold it to ONNX Runtime, and write it and its report to `folder`.

    onnx_bytes: the bundle's model.onnx, for int8 its model.int8.onnx. images_NCHW: float32, preprocessed, a few real
    ones. An engine of the same name is replaced. Takes minutes. Raises EngineError where there is no GPU or TensorRT,
    where TensorRT refuses the file or the file is not of that precision; ParityError past the precision's bounds.
    Nothing is written then.
    """
    require_gpu(machine)
    settings, gpu = settings or BuildSettings(), machine.gpus[0]
    trt, timings = api.load("tensorrt"), folder / f"{gpu.architecture}.timings"
    plan, timed = compile_plan(
        trt,
        source_of(onnx_bytes, precision),
        settings,
        tf32=precision == "tf32",
        stored_timings=timings.read_bytes() if timings.exists() else b"",
    )
    require_precision(plan.layers, precision)
    runner = Runner(trt, plan.data)
    parity = _parity(onnx_bytes, runner, precision, images_NCHW[: settings.max_batch])
    report = EngineReport(
        precision=precision,
        architecture=gpu.architecture,
        gpu=gpu.name,
        driver=machine.driver or "unknown",
        tensorrt=plan.version,
        onnx_sha256=hashlib.sha256(onnx_bytes).hexdigest(),
        plan_sha256=hashlib.sha256(plan.data).hexdigest(),
        plan_bytes=len(plan.data),
        batches=(settings.min_batch, settings.opt_batch, settings.max_batch),
        build_seconds=round(plan.seconds, 3),
        parsed_layers=plan.layers,
        engine_layers=runner.layers(),
        inputs=plan.inputs,
        outputs=plan.outputs,
        parity=parity,
        parity_images=len(images_NCHW[: settings.max_batch]),
        notes=plan.notes,
    )
    write_engine(folder, report, plan.data)
    _replace(timings, timed)
    return report


def source_of(onnx_bytes: bytes, precision: Precision) -> bytes:
    """Return the file that TensorRT is given: the bundle's own, or with a narrow trunk for fp16 and bf16."""
    return narrow(onnx_bytes, precision) if precision in ("fp16", "bf16") else onnx_bytes


def require_precision(parsed_layers: Mapping[str, int], precision: Precision) -> None:
    """Raise EngineError unless the parsed convolutions are of this precision."""
    quantised = any(kind.startswith("QUANTIZE") for kind in parsed_layers)
    kind = {"fp16": "HALF", "bf16": "BF16"}.get(precision, "FLOAT")
    others = [name for name in parsed_layers if name.startswith("CONVOLUTION") and name != f"CONVOLUTION {kind}"]
    allowed = {"CONVOLUTION FLOAT"} if precision in ("fp16", "bf16") else set()  # an average head is a convolution too
    if quantised != (precision == "int8") or set(others) - allowed or f"CONVOLUTION {kind}" not in parsed_layers:
        raise EngineError(
            f"an {precision} engine was asked for; the file's layers are {dict(parsed_layers)}. Pass model.int8.onnx "
            f"for int8 and model.onnx for all others"
        )


def require_gpu(machine: Machine) -> None:
    """Raise EngineError, saying what is missing, unless engines can be built and run on this machine."""
    if not machine.gpus or machine.tensorrt is None:
        missing = [f"{what}: {why}" for what, why in machine.absent.items() if what in ("driver", "tensorrt")]
        raise EngineError(
            f"engines are built on the GPU that they are for. Here {'; '.join(missing) or 'no GPU is visible'}. Run "
            f"this on the GPU host, with gliofed[tensorrt] installed; without, export.tensorrt.check looks at the file"
        )


def precisions_for(machine: Machine) -> tuple[Precision, ...]:
    """Return the precisions of model.onnx that are worth an engine on this machine's first GPU; int8 is another file.

    bf16 needs compute capability 8.0. Raises EngineError as `require_gpu` does.
    """
    require_gpu(machine)
    has_bf16 = int(machine.gpus[0].architecture.removeprefix("sm_")) >= 80
    return ("fp32", "fp16", "bf16") if has_bf16 else ("fp32", "fp16")


def write_engine(folder: Path, report: EngineReport, plan: bytes) -> None:
    """Write the engine and add its report, each in one rename, the report last: without its report it is refused."""
    folder.mkdir(parents=True, exist_ok=True)
    reports = dict(parse_reports((folder / REPORT).read_bytes())) if (folder / REPORT).exists() else {}
    _replace(folder / f"{report.name}.engine", plan)
    told = report_json([*(reports | {report.name: report}).values()])
    _replace(folder / REPORT, (json.dumps(told, indent=2, sort_keys=True) + "\n").encode())


def report_json(reports: Sequence[EngineReport]) -> dict[str, Any]:
    """Return what report.json holds, in a folder of engines and in a bundle's engines/ alike."""
    return {"format_version": 1, "engines": {report.name: asdict(report) for report in reports}}


def parse_reports(data: bytes) -> dict[str, EngineReport]:
    """Return the reports of a report.json by the engine's name. Raises EngineError."""
    try:
        told = json.loads(data)
        reports = TypeAdapter(dict[str, EngineReport]).validate_python(told["engines"])
        if told["format_version"] != 1 or any(name != report.name for name, report in reports.items()):
            raise EngineError(f"{REPORT} has format {told['format_version']!r} and engines {sorted(reports)}; not ours")
    except (ValueError, KeyError, TypeError) as error:  # pydantic's errors are ValueErrors
        raise EngineError(
            f"{REPORT} is no report that this version reads ({error}); build the engines again"
        ) from error
    return reports


def read_engines(folder: Path) -> dict[str, Engine]:
    """Return every engine of the folder by name, each found to be the one that its report names. Raises EngineError."""
    try:
        return gather_engines(lambda name: (folder / name).read_bytes())
    except OSError as error:
        raise EngineError(f"{folder}: expected {REPORT} and the engines that it names ({error})") from error


def gather_engines(read: Callable[[str], bytes]) -> dict[str, Engine]:
    """Return the same from any place. read: a file's bytes by name, such as a bundle's `read` below engines/."""
    engines = {
        name: Engine(report=report, data=read(f"{name}.engine")) for name, report in parse_reports(read(REPORT)).items()
    }
    for engine in engines.values():
        engine.check()
    return engines


def require_belongs(report: EngineReport, onnx_bytes: bytes, machine: Machine) -> None:
    """Raise EngineError unless the engine is this file's, for this TensorRT and this machine's first GPU.

    onnx_bytes: the bundle's file of that precision (see `build_engine`).
    """
    require_gpu(machine)
    pairs = {
        "the model of SHA-256": (report.onnx_sha256, hashlib.sha256(onnx_bytes).hexdigest()),
        "TensorRT": (report.tensorrt, machine.tensorrt),
        "GPU architecture": (report.architecture, machine.gpus[0].architecture),
    }
    for what, (built, here) in pairs.items():
        if built != here:
            raise EngineError(
                f"engine {report.name} was built for {what} {built}; here it is {here}. Build it on this machine"
            )


def open_engine(engine: Engine, onnx_bytes: bytes, *, machine: Machine) -> Runner:
    """Return the engine, ready to run, once it was found whole and at home here. Raises EngineError."""
    engine.check()
    require_belongs(engine.report, onnx_bytes, machine)
    return Runner(api.load("tensorrt"), engine.data)


def _parity(
    onnx_bytes: bytes, runner: Runner, precision: Precision, images_NCHW: NDArray[np.float32]
) -> dict[str, float]:
    session = open_session(onnx_bytes)
    names = [output.name for output in session.get_outputs()]
    truth = dict(zip(names, session.run(names, {INPUT_NAME: images_NCHW}), strict=True))
    found = differences(truth, runner.run(images_NCHW))
    require_parity(found, maps_of(truth), BOUNDS[precision], who=f"the {precision} engine")
    return found


def _replace(path: Path, data: bytes) -> None:
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(6)}.partial")
    try:
        with temporary.open("xb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
