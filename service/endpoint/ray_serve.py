"""The endpoint under Ray Serve: `serve run service.endpoint.ray_serve:build config=serve.yaml replicas=4`.

Each replica is the same app with models, queue and audit log of its own (`audit.<replica>.jsonl`); Ray's proxy takes
the connections and spreads the requests. What belongs to connections (host, port, TLS, time of headers) is therefore
the proxy's: `serve start --http-host`. The proxy asks nobody who they are, so API keys are needed. Nothing else of the
endpoint imports Ray. Needs `pip install gliofed[ray-serve]`.

Ray 2.60 gives each replica a gRPC port for other deployments, on all addresses, that unpickles whatever it is sent:
whoever reaches it runs code there. It is held to loopback here unless the cluster has Ray's mutual TLS
(RAY_USE_TLS=1); nothing of ours calls it.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ray import serve
from ray.serve._private import replica

from service.endpoint.app import create_app
from service.endpoint.settings import ServeSettings, load_settings
from service.yaml_source import SpecError

if TYPE_CHECKING:
    from fastapi import FastAPI

CONFIG_VARIABLE = "GLIOFED_SERVE_CONFIG"
"""Environment variable that names the settings for `service.endpoint.ray_serve:app`, which takes no arguments."""

_PROBES = 8


@serve.deployment
@serve.ingress()
class Endpoint:
    """One replica."""

    def __init__(self, settings: dict[str, Any]) -> None:
        _close_internal_port()
        self._settings = _of_this_replica(ServeSettings.model_validate(settings))
        self._fault: str | None = None
        self._app: FastAPI | None = None

    def __serve_build_asgi_app__(self) -> FastAPI:
        """Return the app; Ray Serve runs its lifespan, which loads the models."""
        self._app = create_app(self._settings, on_fault=self._fail)
        return self._app

    async def check_health(self) -> None:
        """Return once the models are loaded, so that Ray sends no request before; raise where they cannot be."""
        assert self._app is not None, "the app is built before the first check"
        while not self._app.state.serving.models.models:
            if self._fault is not None:
                raise RuntimeError(self._fault)
            await asyncio.sleep(0.05)

    def _fail(self, fault: str) -> None:
        self._fault = fault


def build(arguments: Mapping[str, str]) -> serve.Application:
    """Return the application. arguments: `config` (settings file), `bundle` (a folder), `replicas` (default 1).

    Raises SpecError for settings that are wrong, or have no meaning behind Ray's proxy.
    """
    if unknown := arguments.keys() - {"config", "bundle", "replicas"}:
        raise SpecError([f"{min(unknown)}: unknown argument; known: config, bundle, replicas"])
    replicas = arguments.get("replicas", "1")
    if not replicas.isdecimal() or not int(replicas):
        raise SpecError([f"replicas: is {replicas!r}; expected a whole number from 1"])
    config = Path(arguments["config"]) if "config" in arguments else None
    settings = load_settings(config, (), [Path(arguments["bundle"])] if "bundle" in arguments else [])
    _require_fit(settings)
    limits = settings.limits
    deployment: Any = Endpoint
    application: serve.Application = deployment.options(
        num_replicas=int(replicas),
        ray_actor_options={
            "num_cpus": settings.threads * settings.max_concurrent,
            "num_gpus": 0 if settings.provider == "cpu" else 1,
        },
        max_ongoing_requests=limits.max_queue + _PROBES,
        max_queued_requests=limits.max_queue,
        graceful_shutdown_timeout_s=limits.drain_seconds,
    ).bind(settings.model_dump(mode="json"))
    return application


def __getattr__(name: str) -> Any:
    if name == "app":
        return build({"config": os.environ.get(CONFIG_VARIABLE, "serve.yaml")})
    raise AttributeError(name)


def _close_internal_port() -> None:
    """Bind Ray's port for other deployments to loopback; it is opened after the constructor of a deployment's class.

    It uses a private name: where another Ray has none such, the replica does not start.
    """
    if os.environ.get("RAY_USE_TLS", "0").lower() in ("1", "true"):
        return
    names: Any = replica
    open_port = names.add_port_to_grpc_server

    def on_loopback(server: Any, address: str) -> Any:
        return open_port(server, address.replace("[::]", "127.0.0.1"))

    names.add_port_to_grpc_server = on_loopback


def _require_fit(settings: ServeSettings) -> None:
    faults = []
    if settings.access.api_keys is None:
        faults.append(
            "access.api_keys: is not set; Ray's proxy lets everybody in that reaches it. Make a key with "
            "`gliofed api-keys new NAME --file FILE`, on a path that every node has"
        )
    if settings.tls is not None:
        faults.append("tls: Ray's proxy takes the connections, and without TLS; put a TLS proxy before it")
    if settings.grpc_port is not None:
        faults.append("grpc_port: several replicas cannot share a port; use `gliofed serve` for gRPC")
    if faults:
        raise SpecError(faults)


def _of_this_replica(settings: ServeSettings) -> ServeSettings:
    """Return the settings with an audit log of this replica's own: a chain has one writer."""
    path = settings.audit.path
    if path is None:
        return settings
    name = serve.get_replica_context().replica_id.unique_id
    own = path.with_name(f"{path.stem}.{name}{path.suffix}")
    return settings.model_copy(update={"audit": settings.audit.model_copy(update={"path": own})})
