"""Suite `serve`: what the endpoint adds to the network, int8 against float32, and what happens under overload."""

from __future__ import annotations

import base64
import http.client
import json
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from benchmarks.case import Case, Peer, Suite, Target, Trial
from benchmarks.family import run_program
from benchmarks.inputs import Slices, collect_slices
from benchmarks.measure import Budget
from benchmarks.row import Row, run_case
from benchmarks.serve_gpu import gpu_cases
from benchmarks.serve_load import request_bytes
from benchmarks.serve_models import Served, make_full, make_small
from benchmarks.serve_process import Endpoint, serving
from export.card import INPUT_NAME
from export.driver import probe
from export.predictor import open_session
from kernels.decode import decode_gray
from kernels.ops import preprocess

SAME_SCORES = 0.9
"""Least cosine between an output in float32 and in int8. Weights that were never trained bear rounding worse."""

MAX_GROWTH = 0.05
"""Largest growth of the endpoint's memory from the end of the overload's first quarter to its end."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Sizes:
    """How much is measured. requests: in one sample of the overhead; max_queue: places of the overloaded endpoint."""

    rounds: int
    requests: int
    overload_seconds: float
    max_queue: int = 8


FULL = Sizes(rounds=12, requests=200, overload_seconds=60)
QUICK = Sizes(rounds=3, requests=60, overload_seconds=8)


def suite(folder: Path, sizes: Sizes) -> Suite:
    """Cases whose files all lie in `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    slices = collect_slices(folder, 8)
    return Suite(inputs=f"VGG19 with random weights, 224 px; {slices.source}", cases=_cases(folder, slices, sizes))


def _cases(folder: Path, slices: Slices, sizes: Sizes) -> Iterator[Trial]:
    small = cache(partial(make_small, folder, slices))
    full = cache(partial(make_full, folder, slices))
    yield Trial(name="endpoint_overhead", run=lambda budget: _overhead(small(), folder, sizes))
    yield Trial(name="int8_vs_fp32", run=lambda budget: [run_case(_int8(full(), slices), budget)])
    yield Trial(name="jpeg_to_answer", run=lambda budget: [_jpeg_to_answer(full(), slices, folder, budget)])
    yield Trial(name="gpu", run=lambda budget: _gpu(full(), folder, budget))
    yield Trial(name="overload", run=lambda budget: _overload(full(), slices, folder, sizes))


def _overhead(served: Served, folder: Path, sizes: Sizes) -> list[Row]:
    """CPU time of the endpoint for one image as a binary tensor, beyond the bare call of ONNX Runtime."""
    image_NCHW = np.random.default_rng(7).standard_normal((1, 3, served.size, served.size)).astype(np.float32)
    session = open_session(served.model)
    beyond, bare = [], []
    with serving(served.bundle, folder, served.settings) as endpoint:
        line = _Line(endpoint)
        request = partial(line.ask, f"/v2/models/{served.name}/infer", *_tensor_request(image_NCHW))
        complaint = _same_logits(request(), session, image_NCHW)
        for _ in range(sizes.rounds):
            before = endpoint.cpu_seconds()
            for _ in range(sizes.requests):
                request()
            spent = (endpoint.cpu_seconds() - before) / sizes.requests
            before = time.process_time()
            for _ in range(sizes.requests):
                session.run(["logits"], {INPUT_NAME: image_NCHW})
            bare.append((time.process_time() - before) / sizes.requests)
            beyond.append(spent - bare[-1])
    ratios = np.array(bare) / np.maximum(beyond, 1e-9)
    return [
        Row(
            case="endpoint_overhead",
            ours_seconds=float(np.median(beyond)),
            peer="the bare call",
            peer_seconds=float(np.median(bare)),
            ratio=float(np.median(ratios)),
            ratio_quartiles=_quartiles(ratios),
            limit_fraction=None,
            samples=len(beyond),
            target=Target(figure="ours_seconds", at_most=1.5e-3),
            complaint=complaint,
            remarks=("ours is CPU time of the endpoint's process beyond the bare call, one request after another",),
        )
    ]


def _int8(served: Served, slices: Slices) -> Case:
    """Return ONNX Runtime's int8 against its float32, one image, one thread."""
    images_NCHW, _ = preprocess(slices.grays(), served.preprocess)
    image_NCHW = images_NCHW[:1]
    assert served.int8_model is not None
    sessions = [open_session(model) for model in (served.int8_model, served.model)]

    def run(session: ort.InferenceSession) -> Any:
        return session.run(None, {INPUT_NAME: image_NCHW})

    return Case(
        name="int8_vs_fp32",
        items=1,
        ours=partial(run, sessions[0]),
        peers=(Peer(name="float32", run=partial(run, sessions[1]), differs=_same_direction),),
        target=Target(figure="ratio", at_least=3.5),
    )


def _jpeg_to_answer(served: Served, slices: Slices, folder: Path, budget: Budget) -> Row:
    """A JPEG file's way through the endpoint to class, cautions and maps, against the bare network in float32."""
    data = slices.paths[0].read_bytes()
    images_NCHW, _ = preprocess([decode_gray(data, source=str(slices.paths[0]))], served.preprocess)
    session = open_session(served.model)

    def bare() -> Any:
        return session.run(["logits", "class_maps"], {INPUT_NAME: images_NCHW})

    with serving(served.bundle, folder, served.settings, precision="int8") as endpoint:
        line = _Line(endpoint)

        def ours() -> dict[str, Any]:
            answer: dict[str, Any] = json.loads(line.ask("/v1/predict", data, {"Content-Type": "image/jpeg"}))
            return answer

        case = Case(
            name="jpeg_to_answer",
            items=1,
            ours=ours,
            peers=(Peer(name="bare float32 network", run=bare, differs=_has_maps),),
            target=Target(figure="slowdown", at_most=0.4),
        )
        return run_case(case, budget)


def _gpu(served: Served, folder: Path, budget: Budget) -> list[Row]:
    """No row where there is no GPU."""
    return [run_case(case, budget) for case in gpu_cases(served, probe(), folder / "engines")]


def _overload(served: Served, slices: Slices, folder: Path, sizes: Sizes) -> list[Row]:
    """Four times as many clients as there are places, each asking again 50 ms after it was refused."""
    request = request_bytes("/v1/predict", slices.paths[0].read_bytes(), "image/jpeg")
    settings = (*served.settings, f"limits.max_queue={sizes.max_queue}")
    clients = 4 * sizes.max_queue
    with serving(served.bundle, folder, settings, precision="int8") as endpoint, _Memory(endpoint) as memory:
        began, cpu = time.perf_counter(), endpoint.cpu_seconds()
        report = run_program(
            "benchmarks.serve_load:press",
            folder / "load",
            timeout_seconds=sizes.overload_seconds + 120,
            host=endpoint.host,
            port=endpoint.port,
            request=base64.b64encode(request).decode(),
            clients=clients,
            seconds=sizes.overload_seconds,
            pause_seconds=0.05,
        )
        seconds = time.perf_counter() - began
        cores = (endpoint.cpu_seconds() - cpu) / seconds
    told = report.values
    accepted = np.array(told["accepted_seconds"])
    if not len(accepted):
        raise RuntimeError(f"overload: no request was accepted; {told}")
    p50, p99 = np.quantile(accepted, (0.5, 0.99))
    return [
        Row(
            case="overload",
            ours_seconds=float(p99),
            peer="its own median",
            peer_seconds=float(p50),
            ratio=float(p50 / p99),
            ratio_quartiles=(float(p50 / p99), float(p50 / p99)),
            limit_fraction=None,
            samples=len(accepted),
            target=Target(figure="slowdown", at_most=3),
            complaint=overload_complaint(told["statuses"], told["faults"], memory.growth()),
            remarks=(
                f"{clients} clients for {sizes.overload_seconds:g} s at {sizes.max_queue} places; answers by status "
                f"{told['statuses']}; ours is the 99th percentile of accepted requests; the endpoint kept {cores:.2f} "
                f"cores busy, its memory grew by {memory.growth():.1%} from the first quarter to the end",
            ),
        )
    ]


def overload_complaint(statuses: dict[str, int], faults: dict[str, int], growth: float) -> str | None:
    """Return what was wrong: any answer but 200 and 503, a broken connection, memory that grew."""
    others = {status: count for status, count in statuses.items() if status not in ("200", "503")}
    if others or faults:
        return f"answers {others}, faults {faults}; only 200 and 503 are expected"
    return f"memory grew by {growth:.1%}, allowed are {MAX_GROWTH:.0%}" if growth > MAX_GROWTH else None


class _Line:
    """One kept connection to an endpoint."""

    def __init__(self, endpoint: Endpoint) -> None:
        self._connection = http.client.HTTPConnection(endpoint.host, endpoint.port, timeout=120)

    def ask(self, path: str, body: bytes, headers: dict[str, str]) -> bytes:
        """Return the answer's body. Raises RuntimeError for any status but 200."""
        self._connection.request("POST", path, body, headers)
        answer = self._connection.getresponse()
        content = answer.read()
        if answer.status != 200:
            raise RuntimeError(f"{path} answered {answer.status}: {content[:500]!r}")
        return content


class _Memory:
    """Watches an endpoint's memory, twice a second."""

    def __init__(self, endpoint: Endpoint) -> None:
        self._endpoint = endpoint
        self._samples: list[int] = []
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> _Memory:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def growth(self) -> float:
        """Return by which share the largest of the last quarter exceeds that of the first."""
        quarter = max(1, len(self._samples) // 4)
        first, last = max(self._samples[:quarter]), max(self._samples[-quarter:])
        return last / first - 1

    def _watch(self) -> None:
        while not self._stop.wait(0.5):
            self._samples.append(self._endpoint.resident_bytes())


def _tensor_request(image_NCHW: NDArray[np.float32]) -> tuple[bytes, dict[str, str]]:
    """Return body and headers of an Open Inference request with a binary tensor, for the logits in binary."""
    head = json.dumps(
        {
            "inputs": [
                {
                    "name": INPUT_NAME,
                    "shape": list(image_NCHW.shape),
                    "datatype": "FP32",
                    "parameters": {"binary_data_size": image_NCHW.nbytes},
                }
            ],
            "outputs": [{"name": "logits", "parameters": {"binary_data": True}}],
        }
    ).encode()
    headers = {"Content-Type": "application/octet-stream", "Inference-Header-Content-Length": str(len(head))}
    return head + image_NCHW.tobytes(), headers


def _same_logits(body: bytes, session: ort.InferenceSession, image_NCHW: NDArray[np.float32]) -> str | None:
    (expected_NC,) = session.run(["logits"], {INPUT_NAME: image_NCHW})
    found_NC = np.frombuffer(body[-expected_NC.nbytes :], np.float32).reshape(expected_NC.shape)
    return None if np.array_equal(found_NC, expected_NC) else f"logits {found_NC} against {expected_NC}"


def _same_direction(ours: Any, theirs: Any) -> str | None:
    for found, expected in zip(ours, theirs, strict=True):
        cosine = float(np.vdot(found, expected) / max(np.linalg.norm(found) * np.linalg.norm(expected), 1e-30))
        if cosine < SAME_SCORES:
            return f"an output of int8 has cosine {cosine:.3f} with float32's, expected {SAME_SCORES:g} or more"
    return None


def _has_maps(ours: Any, theirs: Any) -> str | None:
    """Compare an answer's class maps, in int8, with the network's in float32."""
    return _same_direction([np.array(list(ours["heatmap"]["maps"].values()))], [theirs[1][0]])


def _quartiles(values: NDArray[np.float64]) -> tuple[float, float]:
    low, high = np.quantile(values, (0.25, 0.75))
    return float(low), float(high)
