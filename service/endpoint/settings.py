"""Settings of the endpoint, from `--config serve.yaml`, `--bundle` and `--set a.b=value`."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from export.providers import ProviderChoice
from service.dicom.settings import DicomSettings
from service.endpoint.access import AccessSettings
from service.endpoint.audit import AuditSettings
from service.endpoint.tls import TlsSettings
from service.layers import overlay, validate
from service.yaml_source import Source, read_overrides, read_yaml

_NAME = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$"


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class BundleSource(_Section):
    """One bundle to serve. A reload reads the folder again, so a link to the current version may stand here."""

    path: Path = Field(description="The bundle's folder.")
    name: str | None = Field(None, pattern=_NAME, description="Name to serve it by; null: the bundle's own.")
    version: str | None = Field(None, pattern=_NAME, description="Version to serve it by; null: the bundle's own.")
    precision: Literal["float32", "int8"] = Field(
        "float32", description="Which of its models answers: model.onnx or model.int8.onnx."
    )


class LimitSettings(_Section):
    """What requests may cost. Bodies in memory are bounded by max_queue * max_body_bytes."""

    max_body_bytes: int = Field(32 << 20, ge=1024, le=1 << 30, description="Largest body, also once decompressed.")
    max_images: int = Field(16, ge=1, le=256, description="Most images in one inference request.")
    max_queue: int = Field(
        16, ge=1, le=4096, description="Most requests with a body at once, computed ones included; 503 beyond."
    )
    max_concurrent: int | None = Field(
        None, ge=1, le=256, description="Most calls of a model at once; null: as many as `threads` fits into the cores."
    )
    max_connections: int = Field(512, ge=1, le=65536, description="Most open connections; 503 and closed beyond.")
    header_seconds: float = Field(10, gt=0, le=600, description="Time for a request's headers to arrive.")
    body_seconds: float = Field(20, gt=0, le=3600, description="Time for a body to arrive, and for a response to go.")
    request_seconds: float = Field(30, gt=0, le=3600, description="Time for an answer, once the body has arrived.")
    drain_seconds: float = Field(20, ge=0, le=3600, description="Time for requests under way when told to stop.")


class BatchSettings(_Section):
    """Requests joined into one call of the model, for GPUs; a CPU gains nothing by it."""

    max_batch: int = Field(1, ge=1, le=256, description="Most images in a joint call; 1: each request by itself.")
    max_delay_ms: float = Field(0, ge=0, le=1000, description="Longest wait for company.")


class ServeSettings(_Section):
    """The endpoint, complete."""

    bundles: tuple[BundleSource, ...] = Field(min_length=1, description="What to serve; the first is the default.")
    trust: tuple[Path, ...] = Field(
        (), description="Public keys, or folders of them, whose bundles are served; none: this machine's *.pub."
    )
    host: str = Field("127.0.0.1", min_length=1, description="Address to listen on; 0.0.0.0: all of this machine's.")
    port: int = Field(8000, ge=0, le=65535, description="Port to listen on; 0: any free one.")
    provider: ProviderChoice = Field(
        "cpu",
        description="Where the network runs; never another than this. auto: the best that starts, once, as logged.",
    )
    engine_cache: Path | None = Field(
        None, description="Folder, only the server's, where provider tensorrt keeps engines; null: built at each start."
    )
    threads: int = Field(1, ge=1, le=256, description="CPU threads of one call of a model.")
    repository_control: bool = Field(False, description="Whether clients may load and unload models by name.")
    limits: LimitSettings = Field(default_factory=LimitSettings, description="What requests may cost.")
    batching: BatchSettings = Field(default_factory=BatchSettings, description="Requests joined into one call.")
    grpc_port: int | None = Field(None, ge=0, le=65535, description="Port for gRPC; 0: any free one; null: none.")
    access: AccessSettings = Field(default_factory=AccessSettings, description="Who may use the endpoint.")
    tls: TlsSettings | None = Field(None, description="The endpoint's certificate; null: HTTP without TLS.")
    dicom: DicomSettings | None = Field(None, description="DICOM in and out: C-STORE and STOW-RS; null: neither.")
    audit: AuditSettings = Field(default_factory=AuditSettings, description="Where answers are written down.")

    @property
    def needs_certificate(self) -> bool:
        """Whether clients must show a certificate."""
        return self.tls is not None and self.tls.client_ca is not None

    @property
    def max_concurrent(self) -> int:
        """Calls of a model at once."""
        return self.limits.max_concurrent or max(1, len(os.sched_getaffinity(0)) // self.threads)


def load_settings(
    config: Path | None = None,
    overrides: Sequence[str] = (),
    bundles: Sequence[Path] = (),
    trust: Sequence[Path] = (),
) -> ServeSettings:
    """Return the settings of a file, under bundles and trusted keys given by path, under `a.b=value` overrides.

    Raises SpecError with a line for each fault.
    """
    sources = [] if config is None else [read_yaml(config)]
    if bundles:
        given = [{"path": str(path)} for path in bundles]
        sources.append(Source(values={"bundles": given}, places={("bundles",): "--bundle"}))
    if trust:
        keys = [str(path) for path in trust]
        sources.append(Source(values={"trust": keys}, places={("trust",): "--trust"}))
    values, places = overlay([*sources, read_overrides(overrides)])
    return validate(ServeSettings, values, places, config or Path("gliofed serve"))
