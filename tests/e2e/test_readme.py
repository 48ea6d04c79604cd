"""The README's commands run as written, in a copy of the checkout, with the demo made tiny through make's own ARGS."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
TINY = " ".join(
    f"--set {setting}"
    for setting in (
        "data.phantom.num_train=64",
        "data.phantom.num_test=16",
        "data.phantom.num_synthetic=32",
        "data.partition.sites_per_class=1",
        "preprocess.size=32",
        "model.network.width=0.125",
        "fl.rounds=1",
        "fl.warmup.epochs=1",
        "data.cache_dir=cache",
    )
)


def _command_blocks() -> list[list[str]]:
    return [
        block.strip().splitlines() for block in re.findall(r"```bash\n(.*?)```", (ROOT / "README.md").read_text(), re.S)
    ]


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of what git would give a newcomer, sharing this checkout's environment."""
    if not (ROOT / ".venv" / ".installed").exists():
        pytest.skip("make setup has not made .venv here; run the tests with `make test`")
    copy = tmp_path_factory.mktemp("checkout")
    listed = subprocess.run(
        ["git", "ls-files", "-co", "--exclude-standard"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout.splitlines()
    for name in listed:
        if (ROOT / name).is_file():
            (copy / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, copy / name)
            os.utime(copy / name, (1, 1))  # older than the environment, which the copy must not install itself into
    (copy / ".venv").symlink_to(ROOT / ".venv")
    return copy


def test_the_readme_has_the_commands_that_it_promises() -> None:
    commands = [line for block in _command_blocks() for line in block]
    assert {"make run", "make test"} <= set(commands)
    assert sum(line.startswith("gliofed ") for line in commands) >= 6


@pytest.mark.timeout(600)
def test_every_command_of_the_readme_runs(checkout: Path) -> None:
    # `make test` would run this test within itself: that it is the suite is checked by asking make what it would do
    script = "\n".join(
        line if line != "make test" else "make -n test | grep pytest" for block in _command_blocks() for line in block
    )
    data = checkout / "cache" / "phantoms"
    environment = {**os.environ, "ARGS": TINY}
    prologue = f'set -euo pipefail\nDATA="$(echo {data}/phantoms-*/images)"\n'
    first, rest = script.split("\n", 1)
    assert first == "make run"
    done = subprocess.run(
        ["bash", "-c", first], cwd=checkout, env=environment, capture_output=True, text=True, check=False, timeout=400
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "results on phantom data" in done.stdout
    done = subprocess.run(
        ["bash", "-c", prologue + rest],
        cwd=checkout,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=400,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert (checkout / "heat.png").stat().st_size > 0


def test_the_speeds_are_those_that_the_benchmark_wrote() -> None:
    figures = json.loads((ROOT / "benchmarks" / "results" / "kernels.json").read_text())
    written = {case["case"]: case for case in figures["cases"]}
    rows = re.findall(
        r"^\| .*? \| `(\w+)` \| ([\d.]+) µs \| ([\d.,]+) µs \| ([\d.]+)× ", (ROOT / "README.md").read_text(), re.M
    )
    assert len(rows) >= 6
    for name, ours, peer, ratio in rows:
        case = written[name]
        assert case["correct"]
        assert float(ours) == pytest.approx(case["ours_seconds"] * 1e6, rel=0.01)
        assert float(peer.replace(",", "")) == pytest.approx(case["peer_seconds"] * 1e6, rel=0.01)
        assert float(ratio) == pytest.approx(case["ratio"], rel=0.01)


def test_the_example_in_the_kernels_document_prints_what_it_says(tmp_path: Path) -> None:
    text = (ROOT / "docs" / "kernels.md").read_text()
    (example,) = re.findall(r"```python\n(.*?)```", text, re.S)
    (promised,) = re.findall(r"^prints `(.*)`\.$", text, re.M)
    done = subprocess.run(
        [sys.executable, "-c", example], cwd=tmp_path, capture_output=True, text=True, check=False, timeout=100
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == promised


def test_the_example_in_the_phantoms_document_runs(tmp_path: Path) -> None:
    (example,) = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "phantoms.md").read_text(), re.S)
    (tmp_path / "example.py").write_text(example)
    done = subprocess.run(
        [sys.executable, "example.py"], cwd=tmp_path, capture_output=True, text=True, check=False, timeout=200
    )
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert lines[-2] == "48 of 48"
    assert len(list(Path(tmp_path, lines[-1], "Training").rglob("*.jpg"))) == 40
