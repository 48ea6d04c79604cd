"""The Open Inference Protocol's routes: health, metadata, inference, repository."""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import partial
from typing import Any

import numpy as np
from fastapi import FastAPI, Request, Response
from numpy.typing import NDArray
from starlette.routing import Match, Route
from starlette.types import Scope

from service.endpoint.body import choose_encoding, compress, read_body
from service.endpoint.documents import INFER_BODY, REPOSITORY_BODY
from service.endpoint.errors import BadRequest, Busy, Conflict
from service.endpoint.models import ServedModel, check_images
from service.endpoint.noting import note_tensors
from service.endpoint.oip import InferRequest, decode_request, encode_response
from service.endpoint.replies import json_reply
from service.endpoint.serving import Answered, Serving, ticket_of

TAG = "Open Inference Protocol v2"
EXTENSIONS = ("binary_tensor_data", "classification", "model_configuration", "model_repository", "statistics")
MAX_HEADER_BYTES = 16 << 20
"""Largest JSON of an inference request: numbers spelt out take many times their size in memory."""

_CHEAP_HEADER_BYTES = 64 << 10


def add_oip_routes(app: FastAPI, serving: Serving) -> None:
    """Add the routes under /v2."""
    models = serving.models
    get, post = partial(app.get, tags=[TAG]), partial(app.post, tags=[TAG])

    @get("/v2")
    async def server_metadata() -> Response:
        """Name, version and extensions of this server."""
        return json_reply({"name": "gliofed", "version": app.version, "extensions": list(EXTENSIONS)})

    @get("/v2/health/live")
    async def live() -> Response:
        """Answer as long as the server runs."""
        return json_reply({"live": True})

    @get("/v2/health/ready")
    async def ready() -> Response:
        """200 once every model is verified, started and tested; else 503."""
        if not models.is_ready:
            raise Busy("not every model is ready; POST /v2/repository/index tells which")
        return json_reply({"ready": True})

    @get("/v2/models/{name}/ready")
    @get("/v2/models/{name}/versions/{version}/ready")
    async def model_ready(name: str, version: str | None = None) -> Response:
        """200 where the model is ready; else 404 or 503."""
        model = models.get(name, version)
        return json_reply({"name": model.name, "ready": True})

    @get("/v2/models/{name}")
    @get("/v2/models/{name}/versions/{version}")
    async def model_metadata(name: str, version: str | None = None) -> Response:
        """Inputs and outputs of a model, and its versions."""
        return json_reply(_metadata(models.get(name, version), models.versions(name)))

    @get("/v2/models/{name}/config")
    @get("/v2/models/{name}/versions/{version}/config")
    async def model_config(name: str, version: str | None = None) -> Response:
        """The model's configuration, as Triton's clients expect it."""
        return json_reply(_config(models.get(name, version), serving.settings.limits.max_images))

    @get("/v2/models/{name}/stats")
    @get("/v2/models/{name}/versions/{version}/stats")
    async def model_statistics(name: str, version: str | None = None) -> Response:
        """How many images the model has answered since it was loaded; /metrics tells more."""
        model = models.get(name, version)
        count = serving.num_images.get(model, 0)
        told = {"name": model.name, "version": model.version, "inference_count": count}
        return json_reply({"model_stats": [told]})

    @post("/v2/models/{name}/infer", openapi_extra=INFER_BODY)
    @post("/v2/models/{name}/versions/{version}/infer", openapi_extra=INFER_BODY)
    async def infer(request: Request, name: str, version: str | None = None) -> Response:
        """Compute the model's outputs for prepared images."""
        return await _infer(serving, models.get(name, version), request)

    async def infer_fast(request: Request) -> Response:
        return await infer(request, **request.path_params)

    # FastAPI's own routes, kept for the schema, cost as much as the rest of a request; these are found first
    paths = ("/v2/models/{name}/infer", "/v2/models/{name}/versions/{version}/infer")
    app.router.routes[:0] = [NotedRoute(path, infer_fast, methods=["POST"]) for path in paths]

    @post("/v2/repository/index")
    async def repository_index(request: Request) -> Response:
        """List every model that is known, with its state."""
        wanted = await _json_object(serving, request)
        ready_only = wanted.get("ready", False)
        slots = [slot for slot in models.slots if slot.state == "READY" or not ready_only]
        keys = ("name", "version", "state", "reason")
        return json_reply([{key: getattr(slot, key) for key in keys} for slot in slots])

    @post("/v2/repository/models/{name}/load", openapi_extra=REPOSITORY_BODY)
    async def load(request: Request, name: str) -> Response:
        """Load a model's bundles again and exchange it, where the settings allow that."""
        await _check_control(serving, request, ())
        if faults := await serving.change(lambda: models.reload(name)):
            told = "; ".join(f"{which}: {why}" for which, why in faults.items())
            raise Conflict(f"not loaded, what was served before still is: {told}")
        return json_reply({})

    @post("/v2/repository/models/{name}/unload", openapi_extra=REPOSITORY_BODY)
    async def unload(request: Request, name: str) -> Response:
        """Take a model out of service, where the settings allow that."""
        await _check_control(serving, request, ("unload_dependents",))
        await serving.change(lambda: models.unload(name))
        return json_reply({})


class NotedRoute(Route):
    """A route of Starlette's that is noted in the scope as FastAPI's are."""

    def matches(self, scope: Scope) -> tuple[Match, Scope]:
        """Say whether the request is for this route."""
        match, found = super().matches(scope)
        return match, {**found, "route": self}


async def _infer(serving: Serving, model: ServedModel, request: Request) -> Response:
    headers = dict(request.scope["headers"])
    length = _header_length(headers)
    limit = serving.settings.limits.max_body_bytes
    body = await read_body(request.receive, headers, max_bytes=limit, aligned_at=length or 0)
    ticket = ticket_of(request)

    def decode() -> InferRequest:
        if (len(body) if length is None else length) > MAX_HEADER_BYTES:
            raise BadRequest(f"the request's JSON has more than {MAX_HEADER_BYTES} bytes; send tensors as binary data")
        return decode_request(body, length, model.inputs, [output.name for output in model.outputs])

    is_cheap = length is not None and length <= _CHEAP_HEADER_BYTES
    wanted = decode() if is_cheap else await serving.codec.run(decode, ticket)
    (images_NCHW,) = wanted.inputs.values()
    check_images(images_NCHW, serving.settings.limits.max_images)
    tensors = await serving.infer(model, images_NCHW, tuple(output.name for output in wanted.outputs), ticket)
    await note_tensors(request.scope, model, images_NCHW, tensors)
    serving.tell(Answered(scope=request.scope, model=model, num_images=len(images_NCHW)))
    encoding = choose_encoding(headers.get(b"accept-encoding", b""))
    return _reply(model, wanted, tensors, encoding)


def _header_length(headers: Mapping[bytes, bytes]) -> int | None:
    given = headers.get(b"inference-header-content-length")
    if given is None:
        return None
    if not given.isdigit() or len(given) > 12:
        raise BadRequest("Inference-Header-Content-Length must be a whole number of bytes")
    return int(given)


def _reply(
    model: ServedModel, wanted: InferRequest, tensors: Mapping[str, NDArray[Any]], encoding: str | None
) -> Response:
    if not all(np.isfinite(tensor).all() for tensor in tensors.values()):
        raise BadRequest("the model has no finite answer to these values; send images prepared as the bundle says")
    parts, header_length = encode_response(model.name, model.version, wanted, tensors, model.labels)
    headers, media_type = {}, "application/json"
    if header_length is not None:
        headers, media_type = {"inference-header-content-length": str(header_length)}, "application/octet-stream"
    if encoding is not None:
        headers["content-encoding"] = encoding
        return Response(compress(parts, encoding), media_type=media_type, headers=headers)
    return Response(b"".join(parts), media_type=media_type, headers=headers)


async def _json_object(serving: Serving, request: Request) -> Mapping[str, Any]:
    """Return the request's JSON object; an empty body is an empty one."""
    limit = serving.settings.limits.max_body_bytes
    body = await read_body(request.receive, dict(request.scope["headers"]), max_bytes=limit)
    if not body:
        return {}
    if len(body) > _CHEAP_HEADER_BYTES:
        raise BadRequest(f"the request's JSON has {len(body)} bytes; expected at most {_CHEAP_HEADER_BYTES}")
    try:
        value = json.loads(bytes(body))
    except (ValueError, RecursionError) as error:
        raise BadRequest(f"the body is not JSON: {error}") from error
    if not isinstance(value, dict):
        raise BadRequest("the body must be a JSON object")
    return value


async def _check_control(serving: Serving, request: Request, known: tuple[str, ...]) -> None:
    wanted = await _json_object(serving, request)
    if not serving.settings.repository_control:
        raise Conflict("clients may not load or unload models here; set repository_control: true, or send SIGHUP")
    parameters = wanted.get("parameters", {})
    if not isinstance(parameters, dict) or (unknown := parameters.keys() - set(known)):
        named = "" if not isinstance(parameters, dict) else f" ({', '.join(sorted(unknown))[:80]})"
        raise BadRequest(f"unknown parameters{named}; models are loaded from the folders in the settings only")


def _metadata(model: ServedModel, versions: list[str]) -> dict[str, Any]:
    return {
        "name": model.name,
        "versions": versions,
        "platform": "onnxruntime_onnx",
        "inputs": [spec.to_json() for spec in model.inputs],
        "outputs": [spec.to_json() for spec in model.outputs],
    }


def _config(model: ServedModel, max_images: int) -> dict[str, Any]:
    def tensor(spec: Any) -> dict[str, Any]:
        return {"name": spec.name, "data_type": f"TYPE_{spec.datatype}", "dims": list(spec.shape[1:])}

    return {
        "name": model.name,
        "platform": "onnxruntime_onnx",
        "backend": "onnxruntime",
        "max_batch_size": max_images,
        "input": [tensor(spec) for spec in model.inputs],
        "output": [tensor(spec) for spec in model.outputs],
    }
