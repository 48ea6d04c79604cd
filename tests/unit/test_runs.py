"""A run's folder: begun once, resumed by the same job only, written by one process at a time."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from fl.errors import CheckpointError, GliofedError, Stopped
from service.runs import default_run_folder, open_run
from service.spec import JobSpec, load_spec


def spec(**changes: object) -> JobSpec:
    fields = {"name": "trial", "scenario": "iid", "data": {"source": "phantom"}, **changes}
    return JobSpec.model_validate(fields)


def events(folder: Path) -> list[str]:
    return [json.loads(line)["event"] for line in (folder / "events.jsonl").read_text().splitlines()]


def test_new_run_has_its_resolved_spec_and_its_first_event(tmp_path: Path) -> None:
    folder = tmp_path / "runs" / "one"

    with open_run(folder, spec(), resume=False) as run:
        run.record("round", round=1, accuracy=0.5, path=Path("a"))
        assert run.run_id == "one"
        assert run.checkpoints("iid") == folder / "checkpoints" / "iid"

    assert load_spec(folder / "spec.yaml") == spec()
    assert events(folder) == ["started", "round"]
    last = json.loads((folder / "events.jsonl").read_text().splitlines()[-1])
    assert last["accuracy"] == 0.5 and last["path"] == "a" and last["time"].endswith("+00:00")


def test_begun_run_is_not_begun_again_without_resume(tmp_path: Path) -> None:
    with open_run(tmp_path / "r", spec(), resume=False):
        pass

    with (
        pytest.raises(CheckpointError, match="continue it with --resume"),
        open_run(tmp_path / "r", spec(), resume=False),
    ):
        pass
    assert events(tmp_path / "r") == ["started"]


def test_resume_begins_what_was_never_begun_and_continues_what_was(tmp_path: Path) -> None:
    for _ in range(2):
        with open_run(tmp_path / "r", spec(), resume=True):
            pass

    assert events(tmp_path / "r") == ["started", "resumed"]


def test_folder_of_a_crash_before_the_spec_was_written_can_be_used(tmp_path: Path) -> None:
    folder = tmp_path / "r"
    folder.mkdir()
    (folder / ".lock").touch()
    (folder / ".spec.yaml.4711").write_text("name: tri")

    with open_run(folder, spec(), resume=True):
        pass

    assert load_spec(folder / "spec.yaml") == spec()


def test_resume_of_another_job_is_refused_and_says_what_changed(tmp_path: Path) -> None:
    with open_run(tmp_path / "r", spec(), resume=False):
        pass

    with (
        pytest.raises(CheckpointError, match=r"other settings \(seed\).*gliofed train .*spec\.yaml --run-dir"),
        open_run(tmp_path / "r", spec(seed=8), resume=True),
    ):
        pass
    assert load_spec(tmp_path / "r" / "spec.yaml").seed == 7


@pytest.mark.parametrize(
    "changes",
    [
        {"name": "other"},
        {"ray": {"workers": 3}},
        {"fl": {"min_clients": 2, "site_timeout_seconds": 9}},
        {"data": {"source": "phantom", "cache_dir": "elsewhere"}},
    ],
    ids=["name", "cluster", "quorum", "cache"],
)
def test_resume_may_change_what_does_not_decide_the_weights(tmp_path: Path, changes: dict[str, object]) -> None:
    with open_run(tmp_path / "r", spec(), resume=False):
        pass
    with open_run(tmp_path / "r", spec(**changes), resume=True) as run:
        assert run.spec == spec(**changes)


def test_saved_spec_resumes_its_own_run(tmp_path: Path) -> None:
    with open_run(tmp_path / "r", spec(), resume=False):
        pass

    with open_run(tmp_path / "r", load_spec(tmp_path / "r" / "spec.yaml"), resume=True):
        pass


def test_second_process_is_kept_out_until_the_first_has_left(tmp_path: Path) -> None:
    program = (
        "import sys; from pathlib import Path; from service.runs import open_run; from service.spec import load_spec\n"
        "folder = Path(sys.argv[1])\n"
        "with open_run(folder, load_spec(folder / 'spec.yaml'), resume=True): print('entered')\n"
    )
    command = [sys.executable, "-c", program, str(tmp_path / "r")]

    with open_run(tmp_path / "r", spec(), resume=False):
        kept_out = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
        assert kept_out.returncode != 0 and "another process is running this job" in kept_out.stderr
        with pytest.raises(GliofedError, match="another process"), open_run(tmp_path / "r", spec(), resume=True):
            pass

    entered = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert entered.stdout.strip() == "entered", entered.stderr


def test_end_by_signal_or_fault_is_recorded_and_raised(tmp_path: Path) -> None:
    for error in (Stopped("signal"), GliofedError("fault")):
        with pytest.raises(type(error)), open_run(tmp_path / "r", spec(), resume=True):
            raise error

    assert events(tmp_path / "r") == ["started", "stopped", "resumed", "failed"]


def test_default_folder_is_named_after_job_and_time() -> None:
    folder = default_run_folder(spec())

    assert folder.parent == Path("runs") and folder.name.startswith("trial-2")
