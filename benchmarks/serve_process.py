"""`gliofed serve` in a process of its own, and what it uses."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import psutil

START_SECONDS = 120.0


@dataclass(frozen=True, kw_only=True, slots=True)
class Endpoint:
    """A running endpoint."""

    host: str
    port: int
    process: psutil.Process

    def cpu_seconds(self) -> float:
        """Return its CPU time since it began, user and system."""
        times = self.process.cpu_times()
        return float(times.user + times.system)

    def resident_bytes(self) -> int:
        """Return the memory that is its own."""
        return int(self.process.memory_full_info().uss)


@contextmanager
def serving(bundle: Path, folder: Path, settings: Sequence[str], *, precision: str = "float32") -> Iterator[Endpoint]:
    """Serve a bundle on a free loopback port until the context ends. Raises RuntimeError with the log where it fails.

    settings: a.b=value, beside the bundle and port. precision: of the bundle's models the one to serve.
    """
    log = folder / f"serve-{time.monotonic_ns()}.log"
    served = f"bundles=[{{path: {bundle}, precision: {precision}}}]"
    overrides = [part for setting in (served, "port=0", *settings) for part in ("--set", setting)]
    command = [sys.executable, "-m", "service", "serve", *overrides]
    with log.open("wb") as output:
        process = subprocess.Popen(
            command, stdout=output, stderr=subprocess.STDOUT, env={**os.environ, "OMP_NUM_THREADS": "1"}
        )
    try:
        host, port = _wait_until_ready(process, log)
        yield Endpoint(host=host, port=port, process=psutil.Process(process.pid))
    finally:
        process.terminate()
        try:
            process.wait(30)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _wait_until_ready(process: subprocess.Popen[bytes], log: Path) -> tuple[str, int]:
    deadline, address = time.monotonic() + START_SECONDS, ""
    while time.monotonic() < deadline and process.poll() is None:
        for line in log.read_text(encoding="utf-8").splitlines():
            told = json.loads(line) if line.startswith("{") else {}
            address = told.get("address", address)
            if told.get("event") == "ready" and address:
                host, _, port = address.removeprefix("http://").rpartition(":")
                return host, int(port)
        time.sleep(0.05)
    raise RuntimeError(f"the endpoint did not become ready; its log:\n{log.read_text(encoding='utf-8')[-4000:]}")
