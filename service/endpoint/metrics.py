"""Figures for Prometheus, and one log line a request. No label takes its values from a request."""

from __future__ import annotations

import logging
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.registry import Collector
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from export.answer import Answer
from service.endpoint.batching import Lane
from service.endpoint.errors import ModelFault
from service.endpoint.limits import Places, send_error
from service.endpoint.models import Registry, ServedModel

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"

_SECONDS = (0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0)

_log = logging.getLogger("gliofed.requests")


class Metrics:
    """The counters of one endpoint, in a registry of its own."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.requests = Counter(
            "gliofed_requests", "Requests answered.", ("route", "method", "status"), registry=self.registry
        )
        self.seconds = Histogram(
            "gliofed_request_seconds",
            "Time from a request's first byte to its answer's last.",
            ("route",),
            buckets=_SECONDS,
            registry=self.registry,
        )
        self.answers = Counter(
            "gliofed_answers", "Images answered, by class.", ("model", "version", "label"), registry=self.registry
        )
        self.abstentions = Counter(
            "gliofed_abstentions", "Images on which a model abstained.", ("model", "version"), registry=self.registry
        )
        self.outliers = Counter(
            "gliofed_out_of_distribution",
            "Images unlike those that a model was made for.",
            ("model", "version"),
            registry=self.registry,
        )
        self.reloads = Counter(
            "gliofed_reloads", "Attempts to load or unload a model.", ("outcome",), registry=self.registry
        )

    def tell(self, model: ServedModel, answer: Answer) -> None:
        """Count one image's answer."""
        which = (model.name, model.version)
        self.answers.labels(*which, answer.label).inc()
        if answer.abstains:
            self.abstentions.labels(*which).inc()
        if answer.out_of_distribution:
            self.outliers.labels(*which).inc()

    def watch(self, models: Registry, places: Places, lane: Lane) -> None:
        """Read these whenever the figures are asked for."""
        self.registry.register(_Present(models))
        for name, meaning, read in (
            ("gliofed_requests_in_flight", "Requests with a body that are not answered yet.", lambda: places.taken),
            ("gliofed_requests_in_flight_peak", "The most of them since the start.", lambda: places.peak),
            ("gliofed_queue_depth", "Requests that wait for a model.", lambda: lane.num_waiting),
            ("gliofed_calls_running", "Calls of a model under way.", lambda: lane.num_running),
            ("gliofed_ready", "1 where every model is ready.", lambda: models.is_ready),
        ):
            Gauge(name, meaning, registry=self.registry).set_function(read)

    def watch_dicom(self, undelivered: Callable[[], int], given_up: Callable[[], int]) -> None:
        """Read what the DICOM side has not done yet, and what it gave up, whenever the figures are asked for."""
        for name, meaning, read in (
            ("gliofed_dicom_undelivered", "DICOM images that wait for an answer or its delivery.", undelivered),
            ("gliofed_dicom_failed", "DICOM images in the spool's failed/; somebody should look.", given_up),
        ):
            Gauge(name, meaning, registry=self.registry).set_function(read)

    def watch_refusals(self, refused: Mapping[Any, int]) -> None:
        """Read who was not let in whenever the figures are asked for."""
        self.registry.register(_Refusals(refused))

    def render(self) -> bytes:
        """Return all figures as Prometheus' text."""
        return generate_latest(self.registry)


class _Present(Collector):
    """The models that are served now."""

    def __init__(self, models: Registry) -> None:
        self._models = models

    def collect(self) -> Iterator[GaugeMetricFamily]:
        """Yield the family of models."""
        labels = ("model", "version", "digest", "precision")
        family = GaugeMetricFamily("gliofed_model_info", "1 for each model that is served.", labels=labels)
        for model in self._models.models:
            family.add_metric([model.name, model.version, model.digest, model.precision], 1)
        yield family


class _Refusals(Collector):
    """Requests that came in by no right, by reason."""

    def __init__(self, refused: Mapping[Any, int]) -> None:
        self._refused = refused

    def collect(self) -> Iterator[CounterMetricFamily]:
        """Yield the family of reasons."""
        family = CounterMetricFamily("gliofed_refused", "Requests that were not let in.", labels=("reason",))
        for reason, count in tuple(self._refused.items()):
            family.add_metric([reason], count)
        yield family


class Record:
    """ASGI middleware, outermost: counts, times and logs every request, and answers where a route has failed.

    The log holds route, status and time; no path, query, address or message, which could name a patient.
    """

    def __init__(self, app: ASGIApp, metrics: Metrics) -> None:
        self._app = app
        self._metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on and note what became of it."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        began, status = time.perf_counter(), 0

        async def noting(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            await self._app(scope, receive, noting)
        except Exception as error:
            _log.error("fault", extra={"facts": {"route": _route(scope), **describe_fault(error)}})
            if status:
                raise ConnectionAbortedError("the response could not be completed") from None
            await send_error(noting, ModelFault("a fault of the endpoint; its log tells more"))
        finally:
            self._note(scope, status, time.perf_counter() - began)

    def _note(self, scope: Scope, status: int, seconds: float) -> None:
        route = _route(scope)
        method = scope["method"] if scope["method"] in _METHODS else "other"
        self._metrics.requests.labels(route, method, str(status)).inc()
        self._metrics.seconds.labels(route).observe(seconds)
        if _log.isEnabledFor(logging.INFO):
            facts = {"route": route, "method": method, "status": status, "ms": round(seconds * 1e3, 2)}
            _log.info("request", extra={"facts": facts})


_METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})


def _route(scope: Scope) -> str:
    path = getattr(scope.get("route"), "path", None)
    return path if isinstance(path, str) else "unmatched"


def describe_fault(error: BaseException) -> dict[str, object]:
    """Return an exception's kind and where it came from, without its message, which could quote a file."""
    frames = traceback.extract_tb(error.__traceback__ or sys.exc_info()[2])
    places = [f"{frame.filename.rpartition('site-packages/')[2]}:{frame.lineno}" for frame in frames[-6:]]
    return {"kind": type(error).__qualname__, "at": places}
