"""A hospital's install has no training packages: what needs them says so, the rest works.

The packages are hidden from a process of its own, as if they were not installed.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterable
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest

from service.extras import TRAINING

ROOT = Path(__file__).parents[2]
HIDE = """
import sys
from importlib.machinery import PathFinder

class Hidden(PathFinder):
    @classmethod
    def find_spec(cls, name, path=None, target=None):
        return None if name.partition(".")[0] in {hidden!r} else super().find_spec(name, path, target)

sys.meta_path[:] = [Hidden if finder is PathFinder else finder for finder in sys.meta_path]
sys.argv[0] = "gliofed"
from service.__main__ import main
main()
"""


def slim(*arguments: str, hidden: Iterable[str] = TRAINING) -> subprocess.CompletedProcess[str]:
    flags = ["-P"] * sys.flags.safe_path + ["-S"] * sys.flags.no_site
    command = [sys.executable, *flags, "-c", HIDE.format(hidden=sorted(hidden)), *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=100, check=False)


@pytest.mark.parametrize(
    "command",
    [
        ("train", "configs/demo.yaml"),
        ("export", "runs/latest"),
        ("coordinator", "configs/demo.yaml", "--keys", "k"),
        ("data", "audit", "d"),
        ("config", "schema"),
        ("config", "validate", "configs/demo.yaml"),
    ],
    ids=" ".join,
)
def test_a_command_that_needs_them_says_so_in_one_sentence(command: tuple[str, ...]) -> None:
    done = slim(*command)
    assert done.returncode == 1
    assert re.fullmatch(r"this command needs \w+, which .*: pip install 'gliofed\[train\]'\n", done.stderr)
    assert done.stdout == ""


def test_a_hospital_can_try_a_bundle_on_scans_of_its_own(tiny_bundle: Path, slice_png: bytes, tmp_path: Path) -> None:
    (tmp_path / "glioma").mkdir()
    (tmp_path / "glioma/1.png").write_bytes(slice_png)
    asked = ("eval", "--bundle", str(tiny_bundle), "--data", str(tmp_path))
    done = slim(*asked)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["as_published"]["num_examples"] == 1
    near = slim(*asked, "--deduplicate-against", str(tmp_path))
    assert near.returncode == 1 and near.stderr.startswith("this command needs scipy"), near.stderr


def test_the_doctor_works_without_them_and_says_what_is_left() -> None:
    done = slim("doctor")
    assert done.returncode == 0, done.stderr
    assert "training packages" in done.stdout and "compiled kernels" in done.stdout
    assert "hub" not in done.stdout, "a hospital's machine asks no network"


def test_any_other_missing_module_is_a_fault_of_ours_and_not_hidden() -> None:
    done = slim("predict", "x.png", "--bundle", "b", hidden=["onnxruntime"])
    assert done.returncode == 1
    assert "Traceback" in done.stderr and "onnxruntime" in done.stderr


def test_the_modules_are_those_of_the_extra() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    asked = {re.split(r"[\[<>=!~]", line)[0].lower() for line in project["optional-dependencies"]["train"]}
    modules = {module: {name.lower() for name in names} for module, names in packages_distributions().items()}
    assert {min(modules[module] & asked) for module in TRAINING} == asked
