"""A tiny job and the means to run it for real: `gliofed` in processes of its own, with a local Ray each.

The scans are drawn: a bright head on black, each class with its bright blob at a place of its own. Everything that
several tests look at (an undisturbed run, one with a killed worker, one with faults) is made once a session.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import psutil
import pytest
import yaml

CLASSES = ("glioma", "meningioma", "notumor", "pituitary")
BLOBS = {"glioma": (-14, 0), "meningioma": (0, 14), "pituitary": (16, 0)}
PATIENCE_SECONDS = 240.0

JOB: dict[str, Any] = {
    "name": "tiny",
    "scenario": "holdout",
    "data": {"source": "folder", "partition": {"kind": "one_class", "sites_per_class": 1}},
    "shared": {"source": "holdout", "holdout_fraction": 0.2},
    "preprocess": {"size": 64},
    "model": {"network": {"width": 0.125}, "weights": {"source": "random"}},
    "fl": {
        "rounds": 3,
        "participation": 1.0,
        "early_stop": None,
        "warmup": {"epochs": 2, "layers": "all", "learning_rate": 1e-3},
        "local": {"epochs": 8, "learning_rate": 1e-3},
        "augment": {"views": 2},
    },
    "ray": {"workers": 2, "threads": 1},
}


@dataclass(frozen=True, kw_only=True)
class Workplace:
    """Where the session's runs, data and caches are, and the environment that drivers get."""

    folder: Path
    data: Path
    environment: Mapping[str, str]

    def job(self, name: str, settings: Mapping[str, Any] = JOB, **data: Any) -> Path:
        """Write a job file over the session's data, or what `data` says instead, and return it."""
        path = self.folder / f"{name}.yaml"
        content = {**settings, "data": {"root": str(self.data), **settings["data"], **data}}
        path.write_text(yaml.safe_dump(content, sort_keys=False))
        return path


@dataclass(frozen=True, kw_only=True)
class Finished:
    """A run that ended by itself."""

    folder: Path
    output: str
    listening: frozenset[str] = frozenset()
    store: Mapping[str, int] = field(default_factory=dict)

    @property
    def result(self) -> dict[str, Any]:
        content: dict[str, Any] = json.loads((self.folder / "result.json").read_text())
        return content

    @property
    def events(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in (self.folder / "events.jsonl").read_text().splitlines()]

    @property
    def event_names(self) -> list[str]:
        return [event["event"] for event in self.events]

    @property
    def weights(self) -> dict[str, bytes]:
        """Bytes of everything that a resumed or repeated run must have in common with this one."""
        files = [self.folder / "bundle" / "model.onnx", *sorted(self.folder.glob("checkpoints/*/*/*.safetensors"))]
        return {str(path.relative_to(self.folder)): path.read_bytes() for path in files}


@dataclass
class Command:
    """One running `gliofed`. Its output goes to files, so that nobody has to read for it to go on."""

    process: subprocess.Popen[bytes]
    log: Path
    family: dict[int, psutil.Process] = field(default_factory=dict)

    @property
    def output(self) -> str:
        return self.log.with_suffix(".out").read_text()

    @property
    def errors(self) -> str:
        return self.log.with_suffix(".err").read_text()

    def wait(self, timeout: float = PATIENCE_SECONDS) -> int:
        """Return the exit code."""
        return self.process.wait(timeout)

    def finish(self, folder: Path, **seen: Any) -> Finished:
        """Return the run of this folder once the command has ended well."""
        assert self.wait() == 0, self.output + self.errors
        return Finished(folder=folder, output=self.output, **seen)

    def wait_until(self, condition: Callable[[], Any], what: str, timeout: float = PATIENCE_SECONDS) -> Any:
        """Return what the condition gives as soon as it is true; fail where the command ends before."""
        deadline = time.monotonic() + timeout
        while not (found := condition()):
            ended = self.process.poll()
            if ended is not None or time.monotonic() > deadline:
                pytest.fail(f"no {what}; exit code {ended}\n{self.output}\n{self.errors}")
            time.sleep(0.02)
        return found

    def wait_for_output(self, text: str) -> None:
        """Return once the text was printed."""
        self.wait_until(lambda: text in self.output, f"{text!r} in the output")

    def wait_for_worker(self, method: str) -> psutil.Process:
        """Return a worker that is running the method: Ray names its processes after what they do."""
        found: psutil.Process = self.wait_until(lambda: self._worker(method), f"worker in {method}")
        return found

    def descendants(self) -> list[psutil.Process]:
        """Return every process that this one has started and that is alive, and remember it for `kill`."""
        try:
            members = psutil.Process(self.process.pid).children(recursive=True)
        except psutil.NoSuchProcess:
            members = []
        self.family |= {member.pid: member for member in members}
        return members

    def kill(self) -> list[psutil.Process]:
        """End the driver with SIGKILL; return those of its processes that were still there 30 seconds later."""
        self.descendants()
        if self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait(30)
        _, alive = psutil.wait_procs(self.family.values(), timeout=30)
        for process in alive:
            process.kill()
        return alive

    def _worker(self, method: str) -> psutil.Process | None:
        for process in self.descendants():
            try:
                if process.cmdline()[:1] == [f"ray::SiteTrainer.{method}"]:
                    return process
            except (psutil.NoSuchProcess, psutil.ZombieProcess):
                continue
        return None


Launch = Callable[..., Command]


@pytest.fixture(scope="session")
def workplace(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Workplace]:
    folder = tmp_path_factory.mktemp("e2e")
    draw_data(folder / "data")
    # Ray's sockets lie under its folder, and a socket's path may have 107 characters
    ray_folder = tempfile.mkdtemp(prefix="gf", dir="/tmp")
    unset = ("RAY_ADDRESS", "RAY_AUTH_MODE", "GLIOFED_CACHE")
    environment = {name: value for name, value in os.environ.items() if name not in unset}
    environment |= {
        "GLIOFED_CACHE": str(folder / "cache"),
        "RAY_TMPDIR": ray_folder,
        "CUDA_VISIBLE_DEVICES": "",
        "PYTHONUNBUFFERED": "1",
    }
    yield Workplace(folder=folder, data=folder / "data", environment=environment)
    shutil.rmtree(ray_folder, ignore_errors=True)


@pytest.fixture(scope="session")
def launch(workplace: Workplace) -> Iterator[Launch]:
    """Start `gliofed ARGUMENTS`; whatever of it still runs when the session ends is ended then."""
    started: list[Command] = []

    def start(*arguments: str | Path, environment: Mapping[str, str] = {}) -> Command:
        log = workplace.folder / f"log-{len(started):03d}"
        with log.with_suffix(".out").open("wb") as out, log.with_suffix(".err").open("wb") as err:
            process = subprocess.Popen(
                [sys.executable, "-m", "service", *map(str, arguments)],
                cwd=workplace.folder,
                env={**workplace.environment, **environment},
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=err,
                start_new_session=True,
            )
        started.append(Command(process=process, log=log))
        return started[-1]

    yield start
    for command in started:
        if command.process.poll() is None:
            command.kill()


@pytest.fixture(scope="session")
def reference(workplace: Workplace, launch: Launch) -> Finished:
    """An undisturbed run of the tiny job, with what its processes listened on while it ran."""
    folder = workplace.folder / "reference"
    command = launch("train", workplace.job("tiny"), "--run-dir", folder)
    command.wait_for_worker("train")
    listening = {
        connection.laddr.ip
        for process in [psutil.Process(command.process.pid), *command.descendants()]
        for connection in _connections(process)
        if connection.status == psutil.CONN_LISTEN
    }
    run = command.finish(folder, listening=frozenset(listening))
    return replace(run, store=_store_files(workplace))


@pytest.fixture(scope="session")
def repeated(workplace: Workplace, launch: Launch, reference: Finished) -> Finished:
    """The reference's resolved spec run again over its store, one of its workers killed in the middle of a round."""
    folder = workplace.folder / "repeated"
    command = launch("train", reference.folder / "spec.yaml", "--run-dir", folder)
    command.wait_for_worker("train").kill()
    return replace(command.finish(folder), store=_store_files(workplace))


@pytest.fixture(scope="session")
def spoilt_data(workplace: Workplace) -> Path:
    """The session's data and, among it, files that no model should ever see."""
    folder = workplace.folder / "spoilt"
    shutil.copytree(workplace.data, folder)
    image = cv2.imread(str(folder / "Training" / "glioma" / "000.png"))
    assert image is not None
    jpeg = cv2.imencode(".jpg", image)[1].tobytes()
    (folder / "Training" / "glioma" / "truncated.jpg").write_bytes(jpeg[: len(jpeg) // 2])
    (folder / "Training" / "glioma" / "text.jpg").write_text("not an image at all\n")
    (folder / "Training" / "notumor" / "tiny.png").write_bytes(cv2.imencode(".png", image[:10, :10])[1].tobytes())
    (folder / "Testing" / "pituitary" / "empty.jpg").write_bytes(b"")
    return folder


@pytest.fixture(scope="session")
def draw() -> Callable[[str, np.random.Generator], np.ndarray[Any, np.dtype[np.uint8]]]:
    """Return the function that draws a scan of a class."""
    return draw_scan


def draw_data(root: Path, *, num_training: int = 24, num_testing: int = 8) -> None:
    """Draw scans in the Kaggle layout. The first test scan of each class is a copy of a training scan."""
    generator = np.random.default_rng(5)
    for name in CLASSES:
        for part, count in (("Training", num_training), ("Testing", num_testing)):
            folder = root / part / name
            folder.mkdir(parents=True)
            for number in range(count):
                cv2.imwrite(str(folder / f"{number:03d}.png"), draw_scan(name, generator))
        shutil.copy(root / "Training" / name / "003.png", root / "Testing" / name / "000.png")


def draw_scan(name: str, generator: np.random.Generator, side: int = 96) -> np.ndarray[Any, np.dtype[np.uint8]]:
    rows, columns = np.mgrid[:side, :side].astype(np.float32)
    centre = side / 2 + generator.uniform(-3, 3, 2)
    radii = generator.uniform((34, 28), (40, 34))
    head = ((rows - centre[0]) / radii[0]) ** 2 + ((columns - centre[1]) / radii[1]) ** 2 < 1
    image = np.where(head, 90 + generator.normal(0, 8, (side, side)), 0)
    if name in BLOBS:
        row, column = centre + BLOBS[name] + generator.uniform(-2, 2, 2)
        image[(rows - row) ** 2 + (columns - column) ** 2 < generator.uniform(6, 8) ** 2] = 230
    return np.clip(image, 0, 255).astype(np.uint8)


def _store_files(workplace: Workplace) -> dict[str, int]:
    """Return the feature store's files and their sizes."""
    files = [path for path in (workplace.folder / "cache" / "store").rglob("*") if path.is_file()]
    return {str(path): path.stat().st_size for path in files}


def _connections(process: psutil.Process) -> list[Any]:
    try:
        return list(process.net_connections("inet"))
    except psutil.NoSuchProcess:
        return []
