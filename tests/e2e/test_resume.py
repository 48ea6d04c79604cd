"""A run that is killed again and again ends as if nothing had happened."""

from __future__ import annotations

import json
import os
import signal
import time
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tests.e2e.conftest import Command, Finished, Launch, Workplace

EXIT_STOPPED = 75
STOP_SECONDS = 10.0


def test_a_run_stopped_and_killed_at_any_moment_resumes_to_the_same_bytes(
    workplace: Workplace, launch: Launch, reference: Finished
) -> None:
    folder = workplace.folder / "killed"
    job = workplace.job("tiny")
    # a cache of its own: the features must be computed, and be caught half-done
    cache = {"GLIOFED_CACHE": str(workplace.folder / "killed-cache")}

    def resume() -> Command:
        return launch("train", job, "--run-dir", folder, "--resume", environment=cache)

    command = resume()
    command.wait_until(lambda: events_of(folder), "event")
    os.kill(command.process.pid, signal.SIGTERM)  # before Ray is up
    assert command.wait() == EXIT_STOPPED, command.errors
    assert "finished" not in events_of(folder)

    command = resume()
    command.wait_for_worker("warm_up")
    assert command.kill() == [], "processes outlived a killed driver"
    assert not (folder / "start").exists()

    command = resume()
    command.wait_for_worker("prepare")
    command.kill()
    assert (folder / "start").is_dir()
    assert newest_checkpoint(folder) == ""

    command = resume()
    command.wait_for_worker("train")
    stop_with_another_driver_at_the_door(command, resume())
    assert newest_checkpoint(folder) == "round-0000"

    command = resume()
    command.wait_until(lambda: newest_checkpoint(folder) >= "round-0001", "checkpoint of round 1")
    command.kill()
    damage(folder / "checkpoints" / "holdout" / newest_checkpoint(folder))

    command = resume()
    command.wait_for_output("== exporting")
    command.process.send_signal(signal.SIGTERM)
    # nothing is left to wait for: it may well be done before it would have to leave
    assert command.wait() in (0, EXIT_STOPPED), command.errors
    assert "Traceback" not in command.errors

    command = resume()
    assert command.finish(folder).weights == reference.weights
    assert "warming up" not in command.output
    assert not list(folder.glob(".*.*")), "leftovers of the crashes"


def stop_with_another_driver_at_the_door(command: Command, other: Command) -> None:
    """Ask the command to stop, and see that it does so in seconds; meanwhile see another one refused the folder."""
    command.process.send_signal(signal.SIGSTOP)
    assert other.wait() == 1
    assert "another process is running this job" in other.errors
    command.process.send_signal(signal.SIGCONT)
    asked = time.monotonic()
    command.process.send_signal(signal.SIGTERM)
    assert command.wait() == EXIT_STOPPED, command.errors
    assert time.monotonic() - asked < STOP_SECONDS
    assert "continue with --resume" in command.errors
    assert "Traceback" not in command.errors


def test_a_used_folder_and_another_spec_are_refused_and_nothing_is_lost(
    workplace: Workplace, launch: Launch, reference: Finished
) -> None:
    before = reference.weights
    job = workplace.job("tiny")
    attempts: dict[str, tuple[str, ...]] = {
        "holds a run already; continue it with --resume": (),
        "begun with other settings (seed)": ("--set", "seed=8", "--resume"),
    }
    for message, options in attempts.items():  # one after the other: together, one may find the folder locked
        command = launch("train", job, *options, "--run-dir", reference.folder)
        assert command.wait() == 1
        assert message in command.errors
        assert "Traceback" not in command.errors
    assert reference.weights == before


def newest_checkpoint(folder: Path) -> str:
    return max((path.name for path in folder.glob("checkpoints/*/round-*")), default="")


def damage(checkpoint: Path) -> None:
    """Cut a file of it short, as a disk may after a power cut; the checkpoint before it is there for that."""
    path = checkpoint / "global.safetensors"
    path.write_bytes(path.read_bytes()[:1000])


def events_of(folder: Path) -> list[str]:
    events = folder / "events.jsonl"
    return [json.loads(line)["event"] for line in events.read_text().splitlines()] if events.exists() else []
