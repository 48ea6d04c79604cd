from __future__ import annotations

import asyncio
import gc
import threading
import weakref
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

from export.errors import ExportError
from service.endpoint.app import create_app
from service.endpoint.body import choose_encoding
from service.endpoint.models import Registry
from service.endpoint.settings import ServeSettings, load_settings
from service.yaml_source import SpecError


def settings_for(*bundles: Path, **sections: Any) -> ServeSettings:
    return ServeSettings.model_validate({"bundles": [{"path": path} for path in bundles], **sections})


def ask(settings: ServeSettings, check: Callable[[Any, httpx.AsyncClient], Coroutine[Any, Any, None]]) -> None:
    """Run a check against an app in this process; its models are the check's to load."""

    async def run() -> None:
        app = create_app(settings)
        transport = httpx.ASGITransport(app=app)
        async with httpx.AsyncClient(transport=transport, base_url="http://endpoint") as client:
            await check(app.state.serving, client)
        app.state.serving.close()

    asyncio.run(asyncio.wait_for(run(), 30))


def tensor_body(images: np.ndarray) -> dict[str, Any]:
    entry = {"name": "images", "shape": list(images.shape), "datatype": "FP32", "data": images.ravel().tolist()}
    return {"inputs": [entry], "outputs": [{"name": "logits"}]}


def test_it_is_alive_at_once_and_ready_only_with_verified_and_tested_models(
    tiny_bundle: Path, slice_png: bytes
) -> None:
    async def check(serving: Any, client: httpx.AsyncClient) -> None:
        assert (await client.get("/v2/health/live")).status_code == 200
        for path in ("/v2/health/ready", "/v2/models/tiny/ready"):
            assert (await client.get(path)).status_code == 503
        early = await client.post("/v1/predict", content=slice_png)
        assert early.status_code == 503 and "retry-after" in early.headers
        serving.models.load_all()
        for path in ("/v2/health/ready", "/v2/models/tiny/ready"):
            assert (await client.get(path)).status_code == 200
        assert (await client.post("/v1/predict", content=slice_png)).status_code == 200

    ask(settings_for(tiny_bundle), check)


def test_a_fault_that_nobody_foresaw_is_told_like_the_others(tiny_bundle: Path) -> None:
    registry = Registry(settings_for(tiny_bundle, Path("not a\0path")))
    with pytest.raises(ExportError, match=r"cannot be loaded .*embedded null byte"):
        registry.load_all()
    assert registry.reload().keys() == {"not a\0path"}
    good, bad = registry.slots
    assert (good.state, bad.state) == ("READY", "UNAVAILABLE") and "null byte" in bad.reason


def test_a_reload_looks_at_every_byte_of_the_bundle_that_it_serves_already(make_bundle: Any, tmp_path: Path) -> None:
    bundle = make_bundle(tmp_path / "bundle")
    registry = Registry(settings_for(bundle))
    registry.load_all()
    assert registry.reload() == {}
    model = bundle / "model.onnx"
    model.write_bytes(model.read_bytes()[:-1] + b"\0")
    (reason,) = registry.reload().values()
    assert "model.onnx: has SHA-256" in reason
    assert registry.slots[0].state == "READY" and registry.slots[0].reason == reason


def test_a_request_whose_time_is_up_is_told_so_and_the_next_one_is_answered(tiny_bundle: Path) -> None:
    async def check(serving: Any, client: httpx.AsyncClient) -> None:
        serving.models.load_all()
        release, body = threading.Event(), tensor_body(np.zeros((1, 3, 48, 48), np.float32))
        loop = asyncio.get_running_loop()
        await serving.compute.wait_turn(loop.time() + 5)
        held = serving.compute.start(release.wait)
        late = await client.post("/v2/models/tiny/infer", json=body)
        assert late.status_code == 504 and "time" in late.json()["error"]
        release.set()
        await held
        assert (await client.post("/v2/models/tiny/infer", json=body)).status_code == 200

    ask(settings_for(tiny_bundle, limits={"request_seconds": 0.5, "max_concurrent": 1}), check)


def test_joint_calls_give_each_request_its_own_answer(tiny_bundle: Path, slice_png: bytes, slice_jpeg: bytes) -> None:
    images = np.random.default_rng(1).standard_normal((7, 3, 48, 48)).astype(np.float32)

    async def outputs(client: httpx.AsyncClient) -> list[Any]:
        parts = [images[start : start + 1 + start % 2] for start in range(6)]
        tensors = [client.post("/v2/models/tiny/infer", json=tensor_body(part)) for part in parts]
        files = [client.post("/v1/predict", content=data) for data in (slice_png, slice_jpeg, slice_png)]
        answers = await asyncio.gather(*tensors, *files)
        assert {answer.status_code for answer in answers} == {200}
        told = [answer.json() for answer in answers]
        return [np.array(one["outputs"][0]["data"]) for one in told[:6]] + [
            np.array(list(one["probabilities"].values())) for one in told[6:]
        ]

    results: list[list[Any]] = []
    for batching in ({}, {"max_batch": 4, "max_delay_ms": 20}):

        async def check(serving: Any, client: httpx.AsyncClient) -> None:
            serving.models.load_all()
            results.append(await outputs(client))

        ask(settings_for(tiny_bundle, batching=batching), check)
    for alone, joint in zip(*results, strict=True):
        assert np.allclose(alone, joint, atol=1e-5)


def test_a_request_under_way_ends_on_the_model_it_began_with_which_is_then_freed(
    make_bundle: Any, tmp_path: Path
) -> None:
    first, second = make_bundle(tmp_path / "first"), make_bundle(tmp_path / "second", model_version="2", seed=9)
    current = tmp_path / "current"
    current.symlink_to(first)
    models = Registry(settings_for(current))
    models.load_all()
    held = models.get("tiny")
    images = np.ones((1, 3, 48, 48), np.float32)
    before = held.infer(images, ["logits"])["logits"]
    current.unlink()
    current.symlink_to(second)
    assert models.reload() == {}
    assert models.get("tiny").version == "2"
    assert np.array_equal(held.infer(images, ["logits"])["logits"], before)
    freed = weakref.ref(held)
    del held
    gc.collect()
    assert freed() is None


def test_the_same_bundle_is_not_exchanged_and_a_name_cannot_be_served_twice(
    make_bundle: Any, tiny_bundle: Path, tmp_path: Path
) -> None:
    models = Registry(settings_for(tiny_bundle))
    models.load_all()
    served = models.get()
    assert models.reload("tiny") == {} and models.get() is served
    twice = Registry(settings_for(tiny_bundle, make_bundle(tmp_path / "again")))
    with pytest.raises(ExportError, match="served already"):
        twice.load_all()


def test_every_answer_that_the_schema_does_not_tell_of_is_a_fault_of_the_schema(tiny_bundle: Path) -> None:
    schema = create_app(settings_for(tiny_bundle)).openapi()
    for path in ("/v1/predict", "/v2/models/{name}/infer", "/v2/models/{name}/versions/{version}/infer"):
        operation = schema["paths"][path]["post"]
        assert {"200", "400", "404", "408", "413", "415", "503", "504"} <= operation["responses"].keys()
        assert "422" not in operation["responses"] and operation["requestBody"]["content"]
    assert set(schema["components"]["schemas"]) == {"ErrorBody"}


@pytest.mark.parametrize(
    ("accepted", "chosen"),
    [
        (b"", None),
        (b"gzip", "gzip"),
        (b"deflate", "deflate"),
        (b"GZIP;q=0.5, deflate", "deflate"),
        (b"br, gzip;q=0", None),
        (b"gzip;q=odd", None),
        (b"identity;q=1, *;q=0", None),
    ],
)
def test_responses_are_compressed_as_asked(accepted: bytes, chosen: str | None) -> None:
    assert choose_encoding(accepted) == chosen


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("bundles: []", r"serve\.yaml:1:1: bundles: .*at least 1"),
        ("bundles: [{path: b}]\nlimit: 3", r"serve\.yaml:2:1: limit: unknown setting; did you mean limits"),
        ("bundles: [{path: b, name: ../x}]", r"bundles: String should match pattern .*\.\./x"),
        ("bundles: [{path: b}]\nlimits: {max_queue: 0}", r"serve\.yaml:2:10: limits\.max_queue"),
        ("port: 1", "bundles: required"),
    ],
)
def test_settings_are_refused_with_their_place(tmp_path: Path, text: str, fault: str) -> None:
    config = tmp_path / "serve.yaml"
    config.write_text(text)
    with pytest.raises(SpecError, match=fault):
        load_settings(config)


def test_settings_come_from_the_file_then_bundles_then_overrides(tmp_path: Path) -> None:
    config = tmp_path / "serve.yaml"
    config.write_text("bundles: [{path: a}]\nport: 1\nthreads: 2")
    settings = load_settings(config, ["port=2"], [Path("b"), Path("c")])
    assert [source.path for source in settings.bundles] == [Path("b"), Path("c")]
    assert (settings.port, settings.threads) == (2, 2)
