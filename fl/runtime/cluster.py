"""Starting a local Ray, or joining a cluster.

A local Ray listens on loopback only, asks for a token, reports no usage statistics and opens no dashboard. Ray reads
these choices from the environment when it is first imported, so `prepare_environment` comes before that.
"""

from __future__ import annotations

import math
import os
import signal
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from pydantic import BaseModel, ConfigDict, Field

from fl.errors import GliofedError, Stopped

OBJECT_STORE_BYTES = 768 * 2**20
"""Of a local Ray: one broadcast and the replies in flight of an 11.8 M parameter tail (47 MB each) many times over."""

CONNECT_TIMEOUT_SECONDS = 10.0
"""For an address to accept a connection; Ray itself would try for minutes."""


class RaySettings(BaseModel):
    """Where the sites' workers run."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    address: str | None = Field(
        None,
        description="Ray cluster to join, host:port or `auto`; null joins RAY_ADDRESS or starts a local Ray.",
    )
    workers: int | None = Field(
        None, ge=1, description="Workers; null: one a GPU, else one a core, at most one a site of a round."
    )
    threads: int | None = Field(
        None, ge=1, description="CPU threads a worker; null divides the cores among the workers."
    )


@dataclass(frozen=True, kw_only=True, slots=True)
class WorkerPlan:
    """How many workers, and what each asks of Ray."""

    num_workers: int
    num_threads: int
    num_gpus: float


def plan_workers(settings: RaySettings, resources: dict[str, float], sites_per_round: int) -> WorkerPlan:
    """Size the pool from what the cluster has: GPUs first, else cores."""
    num_gpus, num_cpus = int(resources.get("GPU", 0)), max(1, int(resources.get("CPU", 1)))
    num_workers = settings.workers or min(num_gpus or max(1, num_cpus // (settings.threads or 1)), sites_per_round)
    num_threads = settings.threads or max(1, num_cpus // num_workers)
    return WorkerPlan(
        num_workers=num_workers,
        num_threads=num_threads,
        # one share of one card: Ray never adds up what is left on two
        num_gpus=1.0 / math.ceil(num_workers / num_gpus) if num_gpus else 0.0,
    )


def plan_alone(settings: RaySettings) -> WorkerPlan:
    """Return a pool of one worker with `threads`, else all cores of the largest node, and a GPU where there is one."""
    import ray

    num_gpus = 1.0 if ray.cluster_resources().get("GPU", 0) >= 1 else 0.0  # type: ignore[no-untyped-call]
    return WorkerPlan(
        num_workers=1, num_threads=settings.threads or max(1, int(largest_node_cpus())), num_gpus=num_gpus
    )


def largest_node_cpus() -> float:
    """Return the most CPUs that one node of the joined or started Ray offers."""
    import ray

    nodes = ray.nodes()  # type: ignore[no-untyped-call]
    return max((float(node["Resources"].get("CPU", 0.0)) for node in nodes if node["Alive"]), default=1.0)


@contextmanager
def ray_cluster(settings: RaySettings) -> Iterator[dict[str, float]]:
    """Join or start Ray; yield its total resources; leave it when done. Call `prepare_environment` first.

    Raises GliofedError where nothing answers at the address within `CONNECT_TIMEOUT_SECONDS` or Ray cannot start,
    Stopped where a signal came meanwhile (Ray's own handler then ends the process with SystemExit).
    """
    import ray

    address = _address(settings)
    if address is not None:
        _require_listener(address)
    options: dict[str, Any] = {"logging_level": "warning", "log_to_driver": False}
    if address is None:
        options |= {
            "include_dashboard": False,
            "object_store_memory": OBJECT_STORE_BYTES,
            "num_cpus": num_cores(),
        }
        options |= {"num_gpus": torch.cuda.device_count(), "address": "local"}
    else:
        options |= {"address": address}
    try:
        with _signal_handlers_kept():
            ray.init(**options)
    except (ConnectionError, RuntimeError, ValueError) as error:
        where = f"the Ray cluster at {address}" if address else "a local Ray"
        raise GliofedError(
            f"{where} could not be reached or started: {error}; check ray.address and RAY_ADDRESS"
        ) from error
    except SystemExit as signalled:
        raise Stopped("stopped by a signal while Ray was starting; continue with --resume") from signalled
    try:
        yield dict(ray.cluster_resources())  # type: ignore[no-untyped-call]
    finally:
        with _signal_handlers_kept():
            ray.shutdown()


def num_cores() -> int:
    """Return the CPU cores that this process may use."""
    return len(os.sched_getaffinity(0))


def prepare_environment(settings: RaySettings) -> None:
    """Set what Ray reads from the environment; must run before anything imports Ray. The user's own values stay."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    if _address(settings) is None:
        os.environ.setdefault("RAY_AUTH_MODE", "token")
        # Ray turns 127.0.0.1 into the machine's outward address unless it believes that no cluster is possible here
        os.environ.setdefault("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")


def _address(settings: RaySettings) -> str | None:
    address = settings.address or os.environ.get("RAY_ADDRESS")
    return None if address in (None, "", "local") else address


@contextmanager
def _signal_handlers_kept() -> Iterator[None]:
    """Put back the handlers that Ray replaces when it starts and drops when it stops."""
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _require_listener(address: str) -> None:
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if not port.isdigit():
        return  # `auto`: Ray knows where its head is, or says that there is none
    try:
        socket.create_connection((host, int(port)), timeout=CONNECT_TIMEOUT_SECONDS).close()
    except OSError as error:
        raise GliofedError(
            f"no Ray cluster answers at {address} ({error}); check ray.address and RAY_ADDRESS, start a head with "
            "`ray start --head`, or unset both for a local Ray"
        ) from error
