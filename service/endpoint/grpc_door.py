"""The Open Inference Protocol over gRPC: the same models, limits, keys and audit log behind another door.

The messages are those of `tritonclient`, which ships the service's protobuf: clients speak exactly these, and nobody
else keeps them up to date on PyPI. Needs `pip install gliofed[grpc]`.

A unary call is, on the wire, a stream of one message. It is taken as a stream here, so that the caller is looked at
before any message is read, and one whose message does not come is not waited for longer than for a body over HTTP.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from importlib.metadata import version
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

import grpc
from google.protobuf.message import DecodeError
from tritonclient.grpc import service_pb2 as pb

from service.endpoint.access import Credentials
from service.endpoint.batching import Ticket
from service.endpoint.errors import BadRequest, Busy, EndpointError, ModelFault, TooSlow
from service.endpoint.grpc_messages import as_body, as_response
from service.endpoint.guard import CLIENT_GONE, RequestNote, keys_in
from service.endpoint.keys import Role
from service.endpoint.metrics import describe_fault
from service.endpoint.models import check_images
from service.endpoint.noting import note_tensors
from service.endpoint.oip import decode_request, encode_response
from service.endpoint.tls import TlsSettings, check_files, subject_of
from service.yaml_source import SpecError

if TYPE_CHECKING:
    from service.endpoint.serving import Serving

Context: TypeAlias = Any
"""grpc.aio.ServicerContext, which has no types."""

SERVICE = "inference.GRPCInferenceService"
CODES: Mapping[int, grpc.StatusCode] = {
    400: grpc.StatusCode.INVALID_ARGUMENT,
    401: grpc.StatusCode.UNAUTHENTICATED,
    403: grpc.StatusCode.PERMISSION_DENIED,
    404: grpc.StatusCode.NOT_FOUND,
    408: grpc.StatusCode.DEADLINE_EXCEEDED,
    409: grpc.StatusCode.FAILED_PRECONDITION,
    413: grpc.StatusCode.RESOURCE_EXHAUSTED,
    429: grpc.StatusCode.RESOURCE_EXHAUSTED,
    503: grpc.StatusCode.UNAVAILABLE,
    504: grpc.StatusCode.DEADLINE_EXCEEDED,
}

_IDENTITY_ONLY = 1
_SPARE_CALLS = 8
"""For probes, beside the calls that compute."""

_log = logging.getLogger("gliofed.grpc")


class Method(NamedTuple):
    """One method: its request's message, the role it needs (None: open), and whether it computes an answer."""

    request: Any
    role: Role | None
    answer: Callable[[Any, Ticket, dict[str, Any]], Awaitable[Any]]
    computes: bool = False


@asynccontextmanager
async def grpc_door(serving: Serving) -> AsyncIterator[int]:
    """Serve gRPC at `grpc_port` of the settings; yield the port.

    Raises SpecError where the port cannot be had, HospitalError for certificates that cannot be used.
    """
    settings = serving.settings
    server = grpc.aio.server(
        handlers=[_handlers(serving)],
        options=[
            ("grpc.max_receive_message_length", settings.limits.max_body_bytes),
            ("grpc.max_concurrent_streams", settings.limits.max_queue + _SPARE_CALLS),
            ("grpc.max_metadata_size", 32 << 10),
            ("grpc.max_connection_idle_ms", 300_000),
            # a compressed message is inflated before its length can be looked at
            ("grpc.compression_enabled_algorithms_bitset", _IDENTITY_ONLY),
            ("grpc.so_reuseport", 0),
        ],
        maximum_concurrent_rpcs=settings.limits.max_queue + _SPARE_CALLS,
    )
    host = f"[{settings.host}]" if ":" in settings.host else settings.host
    try:
        if settings.tls is None:
            port = server.add_insecure_port(f"{host}:{settings.grpc_port}")
        else:
            port = server.add_secure_port(f"{host}:{settings.grpc_port}", _credentials(settings.tls))
    except RuntimeError as error:
        told = f"grpc_port: cannot listen on {host} port {settings.grpc_port}; choose another"
        raise SpecError([told]) from error
    await server.start()
    try:
        yield port
    finally:
        await server.stop(grace=settings.limits.drain_seconds)


def _credentials(tls: TlsSettings) -> grpc.ServerCredentials:
    check_files(tls)
    pair = (tls.key.read_bytes(), tls.certificate.read_bytes())
    if tls.client_ca is None:
        return grpc.ssl_server_credentials([pair])
    return grpc.ssl_server_credentials([pair], tls.client_ca.read_bytes(), require_client_auth=True)


def _handlers(serving: Serving) -> grpc.GenericRpcHandler[Any, Any]:
    answers = _Answers(serving)
    methods = {
        "ServerLive": Method(pb.ServerLiveRequest, None, answers.server_live),
        "ServerReady": Method(pb.ServerReadyRequest, None, answers.server_ready),
        "ModelReady": Method(pb.ModelReadyRequest, "predict", answers.model_ready),
        "ServerMetadata": Method(pb.ServerMetadataRequest, "predict", answers.server_metadata),
        "ModelMetadata": Method(pb.ModelMetadataRequest, "predict", answers.model_metadata),
        "RepositoryIndex": Method(pb.RepositoryIndexRequest, "admin", answers.repository_index),
        "ModelInfer": Method(pb.ModelInferRequest, "predict", answers.model_infer, computes=True),
    }
    handlers = {
        name: grpc.stream_unary_rpc_method_handler(_Door(serving, method).call, response_serializer=_serialized)
        for name, method in methods.items()
    }
    return grpc.method_handlers_generic_handler(SERVICE, handlers)


class _Door:
    """What stands before one method: who calls, is there room, does the message come, is the answer written down."""

    def __init__(self, serving: Serving, method: Method) -> None:
        self._serving, self._method = serving, method

    async def call(self, messages: AsyncIterator[bytes], context: Context) -> Any:
        """Answer one call; every refusal has a status code and a complete message."""
        try:
            return await self._admitted(messages, context)
        except EndpointError as error:
            trailing = tuple((name, value) for name, value in error.headers.items() if name == "retry-after")
            await context.abort(CODES.get(error.status, grpc.StatusCode.INTERNAL), str(error), trailing)
        except Exception as error:
            _log.error("fault", extra={"facts": {"route": SERVICE, **describe_fault(error)}})
            await context.abort(grpc.StatusCode.INTERNAL, "a fault of the endpoint; its log tells more")

    async def _admitted(self, messages: AsyncIterator[bytes], context: Context) -> Any:
        serving, method = self._serving, self._method
        client = None if method.role is None else serving.access.admit(_credentials_of(context), method.role)
        if not method.computes:
            return await self._computed(messages, context, {})
        if serving.audit is None:
            return await self._in_place(messages, context, {})
        serving.audit.require_writable()
        note = RequestNote(serving.audit, client, "infer")
        try:
            answer = await self._in_place(messages, context, {"state": {"audit": note.facts}})
        except BaseException as error:
            note.write_soon(_status_of(error))
            raise
        await note.write(200)
        return answer

    async def _in_place(self, messages: AsyncIterator[bytes], context: Context, scope: dict[str, Any]) -> Any:
        """Answer in one of the `max_queue` places that all doors share."""
        places, limits = self._serving.places, self._serving.settings.limits
        if places.taken >= limits.max_queue:
            raise Busy(f"{limits.max_queue} requests are under way, the limit of max_queue; try again later")
        places.take()
        try:
            return await self._computed(messages, context, scope)
        finally:
            places.taken -= 1

    async def _computed(self, messages: AsyncIterator[bytes], context: Context, scope: dict[str, Any]) -> Any:
        limits = self._serving.settings.limits
        message = await _only_message(messages, limits.body_seconds)
        try:
            request = self._method.request.FromString(message)
        except DecodeError as error:
            raise BadRequest(f"the message is no {self._method.request.DESCRIPTOR.full_name}") from error
        left = context.time_remaining()
        seconds = limits.request_seconds if left is None else min(left, limits.request_seconds)

        async def is_gone() -> bool:
            return bool(context.cancelled())

        ticket = Ticket(deadline=asyncio.get_running_loop().time() + seconds, is_gone=is_gone)
        return await self._method.answer(request, ticket, scope)


class _Answers:
    """The methods themselves."""

    def __init__(self, serving: Serving) -> None:
        self._serving, self._models = serving, serving.models

    async def server_live(self, request: Any, ticket: Ticket, scope: dict[str, Any]) -> Any:
        return pb.ServerLiveResponse(live=True)

    async def server_ready(self, request: Any, ticket: Ticket, scope: dict[str, Any]) -> Any:
        return pb.ServerReadyResponse(ready=self._models.is_ready)

    async def model_ready(self, request: Any, ticket: Ticket, scope: dict[str, Any]) -> Any:
        try:
            self._models.get(request.name, request.version or None)
        except Busy:
            return pb.ModelReadyResponse(ready=False)
        return pb.ModelReadyResponse(ready=True)

    async def server_metadata(self, request: Any, ticket: Ticket, scope: dict[str, Any]) -> Any:
        return pb.ServerMetadataResponse(name="gliofed", version=version("gliofed"), extensions=["classification"])

    async def model_metadata(self, request: Any, ticket: Ticket, scope: dict[str, Any]) -> Any:
        model = self._models.get(request.name, request.version or None)
        return pb.ModelMetadataResponse(
            name=model.name,
            versions=self._models.versions(model.name),
            platform="onnxruntime_onnx",
            inputs=[spec.to_json() for spec in model.inputs],
            outputs=[spec.to_json() for spec in model.outputs],
        )

    async def repository_index(self, request: Any, ticket: Ticket, scope: dict[str, Any]) -> Any:
        slots = [slot for slot in self._models.slots if slot.state == "READY" or not request.ready]
        return pb.RepositoryIndexResponse(
            models=[
                {"name": slot.name, "version": slot.version, "state": slot.state, "reason": slot.reason}
                for slot in slots
            ]
        )

    async def model_infer(self, request: Any, ticket: Ticket, scope: dict[str, Any]) -> Any:
        serving, model = self._serving, self._models.get(request.model_name, request.model_version or None)
        wanted = decode_request(*as_body(request), model.inputs, [output.name for output in model.outputs])
        (images_NCHW,) = wanted.inputs.values()
        check_images(images_NCHW, serving.settings.limits.max_images)
        tensors = await serving.infer(model, images_NCHW, tuple(output.name for output in wanted.outputs), ticket)
        await note_tensors(scope, model, images_NCHW, tensors)
        return as_response(*encode_response(model.name, model.version, wanted, tensors, model.labels))


async def _only_message(messages: AsyncIterator[bytes], seconds: float) -> bytes:
    """Return the message of a unary call; nothing counts as an empty one."""
    found: bytes | None = None
    try:
        async with asyncio.timeout(seconds):
            async for message in messages:
                if found is not None:
                    raise BadRequest("the call has several messages; expected one")
                found = message
    except TimeoutError:
        raise TooSlow(f"the message took more than {seconds:g} s; send it faster") from None
    return found or b""


def _credentials_of(context: Context) -> Credentials:
    headers: dict[str, list[str]] = {}
    for name, value in context.invocation_metadata() or ():
        if isinstance(value, str):
            headers.setdefault(name, []).append(value)
    peer = context.peer().split(":", 1)[-1].rpartition(":")[0]
    certificate = context.auth_context().get("x509_pem_cert", [None])[0]
    subject = None if certificate is None else subject_of(certificate)
    return Credentials(address=peer or "unknown", keys=keys_in(headers), certificate=subject)


def _status_of(error: BaseException) -> int:
    if isinstance(error, EndpointError):
        return error.status
    return ModelFault.status if isinstance(error, Exception) else CLIENT_GONE


def _serialized(response: Any) -> bytes:
    data: bytes = response.SerializeToString()
    return data
