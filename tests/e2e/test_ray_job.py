"""A running Ray cluster: jobs submitted to its head, and drivers that join it.

What a head and its jobs need to know of Ray 2.60:

* `ray job submit` gives the job RAY_ADDRESS, so `gliofed train` joins that cluster; nothing is to be set.
* With RAY_AUTH_MODE=token the head, `ray job submit` and every driver that joins need the same token, in
  RAY_AUTH_TOKEN or the file named by RAY_AUTH_TOKEN_PATH. A submitted job inherits the head's. A joining driver leaves
  RAY_AUTH_MODE as the user has it; only for a local Ray `gliofed` chooses it.
* `ray job stop` sends SIGTERM, and SIGKILL after RAY_JOB_STOP_WAIT_TIME_S (3 by default; set it for the head). Ray
  records no exit code of a stopped job, so here the entrypoint prints it.
"""

from __future__ import annotations

import json
import secrets
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil
import pytest

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from tests.e2e.conftest import Finished, Launch, Workplace

BIN = Path(sys.executable).parent
START_SECONDS = 120
JOB_SECONDS = 120
STOP_SECONDS = 20


@dataclass(frozen=True, kw_only=True)
class Head:
    """A Ray head of this test's own: two CPUs, a node that claims to be hospital A's, and a dashboard for jobs."""

    address: str
    dashboard: str
    environment: Mapping[str, str]

    def job(self, *arguments: str) -> str:
        """Run `ray job ...` and return what it printed."""
        command = [str(BIN / "ray"), "job", arguments[0], "--address", self.dashboard, *arguments[1:]]
        done = subprocess.run(
            command, env=dict(self.environment), capture_output=True, text=True, timeout=JOB_SECONDS, check=False
        )
        return done.stdout + done.stderr

    def status(self, job: str) -> str:
        return str(self._ask(f"/api/jobs/{job}", "GET")["status"])

    def stop(self, job: str) -> None:
        """Ask what `ray job stop` asks, without the seconds that the command takes to start."""
        self._ask(f"/api/jobs/{job}/stop", "POST")

    def _ask(self, path: str, method: str) -> dict[str, Any]:
        authorization = {"Authorization": f"Bearer {self.environment['RAY_AUTH_TOKEN']}"}
        request = urllib.request.Request(f"{self.dashboard}{path}", method=method, headers=authorization)
        with urllib.request.urlopen(request, timeout=60) as answer:
            content: dict[str, Any] = json.load(answer)
            return content


@pytest.fixture(scope="module")
def head(workplace: Workplace) -> Iterator[Head]:
    port, dashboard, client, agent = free_ports(4)
    folder = tempfile.mkdtemp(prefix="gh", dir="/tmp")
    environment = {
        **workplace.environment,
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": secrets.token_hex(32),
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_JOB_STOP_WAIT_TIME_S": "30",
        "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
    }
    options = {
        "port": port,
        "dashboard-port": dashboard,
        "dashboard-agent-listen-port": agent,
        "ray-client-server-port": client,
        "dashboard-host": "127.0.0.1",
        "node-ip-address": "127.0.0.1",
        "include-dashboard": "true",
        "num-cpus": 2,
        "object-store-memory": 200 * 2**20,
        "resources": '{"hospital-a": 1}',
        "temp-dir": folder,
    }
    log = workplace.folder / "head.log"
    with log.open("wb") as out:
        process = subprocess.Popen(
            [str(BIN / "ray"), "start", "--head", "--block", *(f"--{name}={value}" for name, value in options.items())],
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=out,
            start_new_session=True,
        )
    ready = Head(address=f"127.0.0.1:{port}", dashboard=f"http://127.0.0.1:{dashboard}", environment=environment)
    try:
        wait_for_dashboard(ready, process, log)
        yield ready
    finally:
        stop_with_children(process)
        shutil.rmtree(folder, ignore_errors=True)


def test_a_submitted_job_stops_with_a_checkpoint_and_resumes_to_the_reference(
    head: Head, workplace: Workplace, reference: Finished
) -> None:
    folder = workplace.folder / "submitted"
    train = [BIN / "gliofed", "train", workplace.job("tiny"), "--run-dir", folder, "--resume"]
    # `ray job stop` signals this shell too: it must live to tell the exit code
    script = workplace.folder / "entrypoint.sh"
    script.write_text(f"trap : TERM\n{shlex.join(map(str, train))}\necho exit code $?\n")

    said = head.job("submit", "--submission-id", "first", "--no-wait", "--", "sh", str(script))
    wait_until(
        lambda: list(folder.glob("checkpoints/*/round-0001")), lambda: said + head.job("logs", "first"), JOB_SECONDS
    )
    head.stop("first")
    wait_until(lambda: head.status("first") == "STOPPED", lambda: head.job("logs", "first"), STOP_SECONDS)
    logs = head.job("logs", "first")
    assert "stopped by a signal" in logs
    assert "exit code 75" in logs
    assert not (folder / "result.json").exists()

    said = head.job("submit", "--submission-id", "second", "--", *map(str, train))
    assert head.status("second") == "SUCCEEDED", said
    assert "round   3: validation accuracy" in said
    assert type(reference)(folder=folder, output=said).weights == reference.weights


def test_a_site_is_trained_on_the_node_that_holds_its_data(
    head: Head, workplace: Workplace, launch: Launch, hospitals: Path
) -> None:
    folder = workplace.folder / "hospitals"
    job = workplace.job("hospitals", hospital_job(), root=str(hospitals), nodes={"a": "hospital-a"})
    command = launch(
        "train", job, "--run-dir", folder, "--set", f"ray.address={head.address}", environment=head.environment
    )
    result = command.finish(folder).result
    assert "3 workers" in command.output, "one pinned beside two that are pinned nowhere"
    assert {site["name"]: site["rounds_trained"] for site in result["sites"]} == {"a": 2, "b": 2}


def test_a_site_whose_node_is_not_there_is_a_clear_error(
    head: Head, workplace: Workplace, launch: Launch, hospitals: Path
) -> None:
    job = workplace.job("elsewhere", hospital_job(), root=str(hospitals), nodes={"b": "hospital-z"})
    joining = {**head.environment, "RAY_ADDRESS": head.address}
    command = launch("train", job, "--run-dir", workplace.folder / "elsewhere", environment=joining)
    assert command.wait() == 1, command.output
    assert "site 'b' is pinned to resource 'hospital-z', which no node of the cluster offers" in command.errors
    assert "hospital-a" in command.errors
    assert "Traceback" not in command.errors


def test_a_cluster_that_does_not_answer_is_a_clear_error(workplace: Workplace, launch: Launch) -> None:
    address = f"127.0.0.1:{free_ports(1)[0]}"
    command = launch(
        "train",
        workplace.job("tiny"),
        "--run-dir",
        workplace.folder / "nowhere",
        environment={"RAY_ADDRESS": address},
    )
    assert command.wait(90) == 1
    assert f"no Ray cluster answers at {address}" in command.errors


@pytest.fixture(scope="module")
def hospitals(workplace: Workplace) -> Path:
    """Two hospitals with every class each, and a test set."""
    root = workplace.folder / "two-hospitals"
    shutil.copytree(workplace.data / "Testing", root / "Testing")
    for folder in sorted((workplace.data / "Training").iterdir()):
        for number, scan in enumerate(sorted(folder.iterdir())):
            target = root / "sites" / "ab"[number % 2] / folder.name
            target.mkdir(parents=True, exist_ok=True)
            shutil.copy(scan, target)
    return root


def hospital_job() -> dict[str, object]:
    return {
        "name": "hospitals",
        "scenario": "iid",
        "data": {"source": "folder", "partition": None},
        "preprocess": {"size": 64},
        "model": {"network": {"width": 0.125, "frozen_through": None}, "weights": {"source": "random"}},
        "fl": {
            "rounds": 2,
            "participation": 1.0,
            "early_stop": None,
            "local": {"epochs": 1, "learning_rate": 1e-3},
            "augment": {"views": 1},
        },
        "ray": {"workers": 2, "threads": 1},
    }


def wait_for_dashboard(head: Head, process: subprocess.Popen[bytes], log: Path) -> None:
    def lists_jobs() -> bool:
        assert process.poll() is None, log.read_text()
        try:
            head.status("none-yet")
        except urllib.request.HTTPError as error:
            return error.code == 404
        except OSError:
            return False
        return True

    wait_until(lists_jobs, log.read_text, START_SECONDS)


def wait_until(condition: Callable[[], object], tell: Callable[[], str], timeout: float) -> None:
    deadline = time.monotonic() + timeout
    while not condition():
        assert time.monotonic() < deadline, tell()
        time.sleep(0.05)


def stop_with_children(process: subprocess.Popen[bytes]) -> None:
    """End a process and all that it started: asked first, killed after."""
    family = psutil.Process(process.pid).children(recursive=True) if process.poll() is None else []
    if process.poll() is None:
        process.send_signal(signal.SIGTERM)
    _, alive = psutil.wait_procs(family, timeout=20)
    for member in alive:
        member.kill()
    process.wait(20)


def free_ports(count: int) -> list[int]:
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [listener.getsockname()[1] for listener in sockets]
    for listener in sockets:
        listener.close()
    return ports
