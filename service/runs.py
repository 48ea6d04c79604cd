"""A run's folder: what it holds, who may write it, and how it starts or resumes.

runs/<id>/
  spec.yaml       the resolved job, complete
  events.jsonl    what happened, one JSON object a line
  start/          the model before round 1
  checkpoints/<arm>/round-0007/
  result.json     figures         report.html  the same for people
  samples/        test images with their class-activation maps
  bundle/         the exported model
"""

from __future__ import annotations

import fcntl
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from fl.durable import write_file
from fl.errors import CheckpointError, GliofedError, Stopped
from service.spec import JobSpec, load_spec


@dataclass(frozen=True, kw_only=True, slots=True)
class Run:
    """An open run folder; this process is the only one that writes it."""

    folder: Path
    spec: JobSpec
    created: str

    @property
    def run_id(self) -> str:
        """The folder's name."""
        return self.folder.name

    def checkpoints(self, arm: str) -> Path:
        """Return the folder of one arm's checkpoints."""
        return self.folder / "checkpoints" / arm

    def record(self, event: str, **fields: Any) -> None:
        """Append one event with the time, and see it to the disk's cache before going on."""
        line = json.dumps({"time": _now(), "event": event, **fields}, default=str)
        with (self.folder / "events.jsonl").open("a", encoding="utf-8") as file:
            file.write(line + "\n")


def default_run_folder(spec: JobSpec) -> Path:
    """Return runs/<name>-<UTC time>."""
    return Path("runs") / f"{spec.name}-{datetime.now(UTC):%Y%m%d-%H%M%S}"


def link_latest(folder: Path) -> None:
    """Let `latest` beside the run's folder lead to it, for people; nothing reads it."""
    link = folder.with_name("latest")
    if link.is_symlink() or not link.exists():
        link.unlink(missing_ok=True)
        link.symlink_to(folder.name)


@contextmanager
def open_run(folder: Path, spec: JobSpec, *, resume: bool) -> Iterator[Run]:
    """Open a new run folder, or with `resume` one that may have been begun; held until the context ends.

    Resuming a folder that was never begun begins it, so that a scheduler can always say --resume. Raises
    CheckpointError where the folder holds a run and `resume` is off, or holds another job; GliofedError where
    another process has it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / ".lock").open("a") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise GliofedError(
                f"{folder}: another process is running this job; wait for it or choose another --run-dir"
            ) from error
        spec_file = folder / "spec.yaml"
        begun = spec_file.exists()
        if begun and not resume:
            raise CheckpointError(
                f"{folder}: holds a run already; continue it with --resume or choose another --run-dir"
            )
        if begun:
            _require_same_job(spec_file, spec)
        else:
            write_file(spec_file, spec.to_yaml().encode())
        run = Run(folder=folder, spec=spec, created=_now())
        _remove_leftovers(folder)
        run.record("resumed" if begun else "started", pid=os.getpid())
        try:
            yield run
        except GliofedError as error:
            run.record("stopped" if isinstance(error, Stopped) else "failed", reason=str(error))
            raise


def _remove_leftovers(folder: Path) -> None:
    """Remove what a crash left of files and folders that were being written under temporary names."""
    for path in folder.glob(".*.*"):
        if path.suffix[1:].isdigit() or path.suffix == ".partial":
            shutil.rmtree(path) if path.is_dir() else path.unlink()


def _require_same_job(spec_file: Path, spec: JobSpec) -> None:
    before = load_spec(spec_file)
    if before.learning_digest() == spec.learning_digest():
        return
    old, new = before.model_dump(mode="json"), spec.model_dump(mode="json")
    changed = [key for key in new if key != "ray" and old[key] != new[key]]
    raise CheckpointError(
        f"{spec_file}: this run was begun with other settings ({', '.join(changed)}); "
        f"resume with `gliofed train {spec_file} --run-dir {spec_file.parent} --resume`, or choose another --run-dir"
    )


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds")
