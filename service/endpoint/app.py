"""The endpoint put together: one ASGI app, with all it needs inside. It mounts under any ASGI server."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from importlib.metadata import version

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

from export.errors import ExportError
from fl.errors import GliofedError, HospitalError
from service.endpoint.body import Gone
from service.endpoint.dicom_door import dicom_door
from service.endpoint.documents import ERRORS, document
from service.endpoint.errors import EndpointError
from service.endpoint.guard import Guard
from service.endpoint.limits import Limits
from service.endpoint.metrics import CONTENT_TYPE, Record
from service.endpoint.oip_routes import add_oip_routes
from service.endpoint.pages import mount_viewer
from service.endpoint.predict import add_predict_routes
from service.endpoint.replies import error_reply, refusal
from service.endpoint.serving import Serving
from service.endpoint.settings import ServeSettings
from service.yaml_source import SpecError

DESCRIPTION = "Classifies single brain MRI slices. Research software; not a medical device."

_log = logging.getLogger("gliofed.endpoint")


def create_app(settings: ServeSettings, *, on_fault: Callable[[str], None] | None = None) -> FastAPI:
    """Return the app; its models are loaded once it starts, off the event loop, and until then it is not ready.

    on_fault: told why, where the first loading fails; without it the app stays up, alive but never ready.
    The shared state is `app.state.serving`. Middleware runs in the order Record, Guard, Limits, routes.
    """
    serving = Serving(settings)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        async with AsyncExitStack() as doors:
            opening = asyncio.create_task(_open(app, serving, doors, on_fault))
            async with _grpc(serving, on_fault):
                yield
            await opening
        serving.close()

    app = FastAPI(
        title="gliofed",
        version=version("gliofed"),
        description=DESCRIPTION,
        lifespan=lifespan,
        redirect_slashes=False,
        responses=ERRORS,
        docs_url=None,  # these pages fetch their scripts from elsewhere; a hospital's browser may not
        redoc_url=None,
        openapi_url="/openapi.json",
    )
    app.state.serving = serving
    add_oip_routes(app, serving)
    add_predict_routes(app, serving)
    _add_metrics(app, serving)
    mount_viewer(app)
    _add_error_bodies(app)
    # the last one added is the outermost
    app.add_middleware(Limits, settings=settings.limits, places=serving.places)
    app.add_middleware(Guard, access=serving.access, audit=serving.audit)
    app.add_middleware(Record, metrics=serving.metrics)
    app.openapi = lambda: document(app)  # type: ignore[method-assign]
    return app


@asynccontextmanager
async def _grpc(serving: Serving, on_fault: Callable[[str], None] | None) -> AsyncIterator[None]:
    """Open the gRPC door where the settings have one."""
    async with AsyncExitStack() as stack:
        if serving.settings.grpc_port is not None:
            try:
                from service.endpoint.grpc_door import grpc_door

                port = await stack.enter_async_context(grpc_door(serving))
                _log.info("listening for gRPC", extra={"facts": {"port": port}})
            except (ModuleNotFoundError, SpecError, HospitalError) as error:
                told = f"{error}; pip install gliofed[grpc]" if isinstance(error, ModuleNotFoundError) else str(error)
                if on_fault is None:
                    raise
                on_fault(told)
        yield


async def _open(app: FastAPI, serving: Serving, doors: AsyncExitStack, on_fault: Callable[[str], None] | None) -> None:
    """Load the models, then open the doors that need them."""
    try:
        await asyncio.to_thread(serving.models.load_all)
        if serving.settings.dicom is not None:
            await doors.enter_async_context(dicom_door(app, serving, serving.settings.dicom))
    except Exception as error:  # an endpoint that never gets ready has to say why, whatever it is
        is_ours = isinstance(error, ExportError | GliofedError)
        told = str(error) if is_ours else f"cannot start ({type(error).__name__}: {error})"
        _log.error("not ready", extra={"facts": {"reason": told}})
        if on_fault is not None:
            on_fault(told)
    else:
        _log.info("ready", extra={"facts": {"models": len(serving.models.models)}})


def _add_metrics(app: FastAPI, serving: Serving) -> None:
    @app.get("/metrics", tags=["Operation"], response_class=Response)
    async def metrics() -> Response:
        """Figures for Prometheus."""
        return Response(serving.metrics.render(), media_type=CONTENT_TYPE)


def _add_error_bodies(app: FastAPI) -> None:
    """Make every error's body `{"error": ...}`."""

    async def refused(_: Request, error: Exception) -> Response:
        assert isinstance(error, EndpointError)
        return refusal(error)

    async def gone(_: Request, __: Exception) -> Response:
        return Response(status_code=499)  # nobody reads it; the figures show it

    async def misfit(_: Request, error: Exception) -> Response:
        assert isinstance(error, RequestValidationError)
        return error_reply(400, "; ".join(_told(fault) for fault in error.errors()[:5]))

    async def http(_: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        told = {404: "no such route; GET /openapi.json lists them", 405: "this route has other methods"}
        return error_reply(error.status_code, told.get(error.status_code, error.detail), error.headers)

    app.add_exception_handler(EndpointError, refused)
    app.add_exception_handler(Gone, gone)
    app.add_exception_handler(ClientDisconnect, gone)
    app.add_exception_handler(RequestValidationError, misfit)
    app.add_exception_handler(HTTPException, http)


def _told(fault: dict[str, object]) -> str:
    where = fault["loc"]
    assert isinstance(where, tuple)
    return f"{'.'.join(map(str, where[1:]))}: {fault['msg']}"
