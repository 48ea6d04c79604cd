"""Hospitals for real: a coordinator and three sites as processes of their own, over TLS on loopback."""

from __future__ import annotations

import hashlib
import json
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np
import psutil
import pytest
from safetensors.numpy import load_file

from fl.audit_chain import verify
from fl.hospital import SWITCHES
from fl.hospital.folders import read_coordinator_folder
from fl.hospital.provision import provision
from fl.hospital.superlink import SuperLink

if TYPE_CHECKING:
    from tests.e2e.conftest import Command, Finished, Launch, Workplace

SITES = ("a", "b", "c")
EXIT_STOPPED = 75
JOB: dict[str, Any] = {
    "name": "across",
    "scenario": "iid",
    "data": {"source": "folder", "partition": None},
    "preprocess": {"size": 64},
    "model": {"network": {"width": 0.125, "frozen_through": None}, "weights": {"source": "random"}},
    "fl": {
        "rounds": 2,
        "participation": 1.0,
        "early_stop": None,
        "local": {"epochs": 2, "learning_rate": 1e-3},
        "augment": {"views": 1},
    },
    "ray": {"workers": 1, "threads": 1},
}


@dataclass(frozen=True, kw_only=True)
class Across:
    """A job that went through a killed site and a stopped coordinator, and the same job undisturbed on Ray."""

    run: Finished
    on_ray: Finished
    federation: Path
    scans: Path
    stopped: Command
    killed_sites_orphans: list[psutil.Process]
    second_life: Command
    remote_addresses: set[str]
    exit_codes: list[int]
    sites_orphans: list[psutil.Process]


@pytest.fixture(scope="module")
def across(workplace: Workplace, launch: Launch, draw: Callable[..., Any]) -> Across:
    scans = workplace.folder / "across-scans"
    for seed, name in enumerate(SITES):
        draw_folder(scans / "sites" / name, draw, seed, num_scans=6)
    draw_folder(scans / "Testing", draw, 99, num_scans=2)
    job, folder = workplace.job("across", JOB, root=str(scans)), workplace.folder / "across"
    ray = launch("train", job, "--run-dir", workplace.folder / "across-ray")

    federation = workplace.folder / "federation"
    provision(federation, SITES, f"127.0.0.1:{free_port()}")

    def start(site: str) -> Command:
        return launch("site", "--keys", federation / site, "--data", scans / "sites" / site)

    def coordinate() -> Command:
        return launch("coordinator", job, "--keys", federation / "coordinator", "--run-dir", folder, "--resume")

    sites, first = {name: start(name) for name in SITES}, coordinate()
    sites["c"].wait_for_output("train, round 1")
    family = sites["c"].descendants()
    sites["c"].process.kill()
    _, orphans = psutil.wait_procs(family, timeout=15)
    sites["c"] = start("c")
    first.wait_for_output("round   1:")
    addresses = remote_addresses([first, *sites.values()])
    first.process.send_signal(signal.SIGTERM)
    assert first.wait() == EXIT_STOPPED, first.output + first.errors
    run = coordinate().finish(folder)
    families = [process for site in sites.values() for process in site.descendants()]
    for site in sites.values():
        site.process.send_signal(signal.SIGTERM)
    return Across(
        run=run,
        on_ray=ray.finish(workplace.folder / "across-ray"),
        federation=federation,
        scans=scans,
        stopped=first,
        killed_sites_orphans=orphans,
        second_life=sites["c"],
        remote_addresses=addresses,
        exit_codes=[site.wait(30) for site in sites.values()],
        sites_orphans=psutil.wait_procs(families, timeout=10)[1],
    )


def test_the_weights_are_those_of_the_ray_run_to_the_byte(across: Across) -> None:
    assert len(across.run.weights) > 4
    assert across.run.weights == across.on_ray.weights
    mine, rays = across.run.result["arms"]["iid"], across.on_ray.result["arms"]["iid"]
    assert mine["test"] == rays["test"]
    assert mine["validation"]["confusion"] == rays["validation"]["confusion"]
    assert [site["class_counts"] for site in across.run.result["sites"]] == [
        site["class_counts"] for site in across.on_ray.result["sites"]
    ]


def test_a_site_killed_in_training_comes_back_and_is_left_out_of_no_round(across: Across) -> None:
    assert across.killed_sites_orphans == []
    assert "train, round 1" in across.second_life.output
    for round in across.run.result["arms"]["iid"]["history"]:
        assert (round["sites"], round["left_out"]) == (list(SITES), [])


def test_a_stopped_coordinator_goes_on_where_it_was_and_its_sites_come_back(across: Across) -> None:
    assert "continue with --resume" in across.stopped.errors
    assert "Traceback" not in across.stopped.errors + across.stopped.output
    assert "round   1:" in across.run.output and "round   0:" not in across.run.output
    assert across.run.event_names.count("resumed") == 1


def test_sites_end_in_order_and_leave_nothing_behind(across: Across) -> None:
    assert across.exit_codes == [0, 0, 0]
    assert across.sites_orphans == []


def test_nobody_is_called_but_the_coordinator(across: Across) -> None:
    assert across.remote_addresses == {"127.0.0.1"}


def test_the_audit_logs_are_whole_and_hold_all_that_was_sent_which_is_no_data(across: Across, launch: Launch) -> None:
    (num_parameters,) = load_file(newest(across.run.folder))["parameters"].shape
    for name in SITES:
        path = across.federation / name / "state" / "audit.jsonl"
        assert verify(path).fault is None
        text = path.read_text()
        assert ".png" not in text and str(across.scans) not in text
        entries = [json.loads(line) for line in text.splitlines()]
        sent = [entry for entry in entries if entry["event"] == "sending"]
        assert {entry["kind"] for entry in sent} == {"query.setup", "query.prepare", "train", "evaluate"}
        for entry in sent:
            shapes = {array["name"]: (array["shape"], array["dtype"]) for array in entry["arrays"]}
            assert shapes == ({"arrays/parameters": ([num_parameters], "float32")} if entry["kind"] == "train" else {})
        # and what it says was received is what the coordinator had
        asked = [entry for entry in entries if entry["event"] == "received" and entry["kind"] == "train"]
        digests = {entry["round"]: entry["arrays"][0]["sha256"] for entry in asked}
        first = load_file(across.run.folder / "checkpoints" / "iid" / "round-0001" / "global.safetensors")
        assert digests["2"] == hashlib.sha256(first["parameters"].tobytes()).hexdigest()
    assert launch("site", "--keys", across.federation / "a", "--verify-audit").wait() == 0


def test_a_changed_audit_log_is_found_and_not_written_on(across: Across, launch: Launch) -> None:
    path = across.federation / "b" / "state" / "audit.jsonl"
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join([*lines[:3], lines[3].replace('"event"', '"Event"'), *lines[4:]]))
    checked = launch("site", "--keys", across.federation / "b", "--verify-audit")
    started = launch("site", "--keys", across.federation / "b", "--data", across.scans / "sites" / "b")
    assert checked.wait() == 1 and "line 5" in checked.output
    assert started.wait() == 1 and "changed after it was written" in started.errors


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A federation whose SuperLink is up and does not know site `c`."""
    out = tmp_path_factory.mktemp("guarded")
    provision(out, SITES, f"127.0.0.1:{free_port()}")
    (out / "coordinator" / "sites" / "c.pub").unlink()
    with SuperLink(read_coordinator_folder(out / "coordinator"), log=out / "log", run_config={}):
        yield out


def test_an_unregistered_key_a_strange_authority_and_an_expired_certificate_are_refused(
    guarded: Path, workplace: Workplace, launch: Launch, draw: Callable[..., Any], tmp_path: Path
) -> None:
    draw_folder(tmp_path / "scans", draw, 1, num_scans=1)
    scans = ("--data", tmp_path / "scans")
    unregistered = launch("site", "--keys", guarded / "c", *scans)
    address = str(read_coordinator_folder(guarded / "coordinator").address)
    provision(tmp_path / "other", ["a"], address)
    strange = launch("site", "--keys", tmp_path / "other" / "a", *scans)
    then = datetime.now(UTC) - timedelta(days=2)
    provision(tmp_path / "expired", ["a"], address, days=1, now=then)
    expired = tmp_path / "expired" / "coordinator"
    late = launch("coordinator", workplace.job("late", JOB), "--keys", expired, "--run-dir", tmp_path / "run")
    for command, message in (
        (unregistered, "does not know the key of site 'c'"),
        (strange, "was not made by this federation's CA"),
        (late, "certificate expired on"),
    ):
        assert command.wait(60) == 1, command.output + command.errors
        assert message in command.errors
        assert "Traceback" not in command.errors + command.output


def test_nothing_is_told_to_flowers_makers(guarded: Path, workplace: Workplace, tmp_path: Path) -> None:
    code = (
        "import atexit, runpy, sys; telemetry = lambda: sys.modules['flwr.supercore.telemetry'];"
        "atexit.register(lambda: print('telemetry', telemetry().FLWR_TELEMETRY_ENABLED));"
        "runpy.run_module('service', run_name='__main__')"
    )
    ended = subprocess.run(
        [sys.executable, "-c", code, "site", "--keys", guarded / "a", "--data", tmp_path / "nowhere"],
        env={**workplace.environment, "FLWR_TELEMETRY_ENABLED": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert ended.returncode == 1 and "nowhere" in ended.stderr
    assert ended.stdout.endswith("telemetry 0\n")
    assert {SWITCHES[name] for name in ("FLWR_TELEMETRY_ENABLED", "FLWR_TRACING_ENABLED")} == {"0"}


def draw_folder(folder: Path, draw: Callable[..., Any], seed: int, *, num_scans: int) -> None:
    generator = np.random.default_rng(seed)
    for name in ("glioma", "meningioma", "notumor", "pituitary"):
        (folder / name).mkdir(parents=True)
        for number in range(num_scans):
            cv2.imwrite(str(folder / name / f"{number:03d}.png"), draw(name, generator))


def newest(folder: Path) -> Path:
    return max(folder.glob("checkpoints/iid/*/global.safetensors"))


def remote_addresses(commands: list[Command]) -> set[str]:
    """Watch for a second whom the commands and all their processes are connected with."""
    found: set[str] = set()
    deadline = time.monotonic() + 1.0
    while time.monotonic() < deadline:
        for command in commands:
            for process in [psutil.Process(command.process.pid), *command.descendants()]:
                found |= {connection.raddr.ip for connection in process.net_connections("inet") if connection.raddr}
        time.sleep(0.1)
    return found


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
