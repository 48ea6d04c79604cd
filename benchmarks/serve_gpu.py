"""On a GPU: engines of ours against ONNX Runtime's CUDA provider and torch.compile, images in and answers out.

Every way begins with images in host memory and ends with scores there, as an endpoint's does.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from benchmarks.case import Case, Peer, Run
from benchmarks.serve_models import Served, make_network
from export.card import INPUT_NAME
from export.driver import CUDA, Machine
from export.parity import BOUNDS
from export.predictor import open_session
from export.tensorrt.engine import build_engine, open_engine, read_engines
from fl.model.vgg import NetworkSettings

BATCHES = (1, 32)


def gpu_cases(served: Served, machine: Machine, folder: Path) -> Iterator[Case]:
    """Yield each precision's engine at each batch size; nothing where the machine has no GPU and TensorRT."""
    if not machine.gpus or machine.tensorrt is None:
        return
    assert served.int8_model is not None
    shape = (max(BATCHES), 3, served.size, served.size)
    images_NCHW: NDArray[np.float32] = np.random.default_rng(7).standard_normal(shape, np.float32)
    files = {"fp16": served.model, "int8": served.int8_model}
    for precision, onnx_bytes in files.items():
        build_engine(onnx_bytes, precision, images_NCHW[:8], folder, machine=machine)  # type: ignore[arg-type]
    for name, engine in read_engines(folder).items():
        runner = open_engine(engine, files[engine.report.precision], machine=machine)
        for batch in BATCHES:
            images = images_NCHW[:batch]
            yield Case(
                name=f"gpu_{engine.report.precision}_batch_{batch}",
                items=batch,
                ours=partial(_logits_of_engine, runner, images),
                peers=tuple(_peers(served, machine, images, BOUNDS[engine.report.precision].values, name)),
            )


def _peers(
    served: Served, machine: Machine, images_NCHW: NDArray[np.float32], bound: float, name: str
) -> Iterator[Peer]:
    differs = partial(_differs, bound=bound, name=name)
    if CUDA in machine.providers:
        session = open_session(served.model, providers=(CUDA,))
        yield Peer(
            name="ONNX Runtime CUDA",
            run=lambda: session.run(["logits"], {INPUT_NAME: images_NCHW})[0],
            differs=differs,
        )
    yield Peer(
        name="torch.compile, bfloat16", run=_compiled(images_NCHW), differs=partial(_differs, bound=1, name=name)
    )


def _compiled(images_NCHW: NDArray[np.float32]) -> Run:
    network = torch.compile(make_network(NetworkSettings()).cuda().to(memory_format=torch.channels_last))

    def run() -> Any:
        images = torch.from_numpy(images_NCHW).cuda().to(memory_format=torch.channels_last)
        with torch.inference_mode(), torch.autocast("cuda", torch.bfloat16):
            return network(images).float().cpu().numpy()

    return run


def _logits_of_engine(runner: Any, images_NCHW: NDArray[np.float32]) -> Any:
    return runner.run(images_NCHW)["logits"]


def _differs(ours: Any, theirs: Any, *, bound: float, name: str) -> str | None:
    share = float(np.abs(ours - theirs).max() / max(float(np.abs(theirs).max()), 1e-30))
    return None if share <= bound else f"{name} is {share:.3g} of the largest score away, allowed are {bound:g}"
