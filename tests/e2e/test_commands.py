"""Every command but `train`, as a user calls it: what it prints, and what it says when it cannot.

Most call the entry point in this process, exit codes and all; the installed script and `python -m service` run in
processes of their own.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import cv2
import pytest
import yaml

from service.__main__ import main

if TYPE_CHECKING:
    from tests.e2e.conftest import Finished, Launch, Workplace

ROOT = Path(__file__).parents[2]
SCENARIOS = ("demo", "holdout", "iid", "noniid", "synthetic")


@dataclass(frozen=True, kw_only=True)
class Answer:
    code: int
    out: str
    err: str


Call = Callable[..., Answer]


@pytest.fixture
def call(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Iterator[Call]:
    """Run `gliofed ARGUMENTS` in this process, whose environment is put back afterwards."""
    environment = dict(os.environ)

    def run(*arguments: str | Path) -> Answer:
        monkeypatch.setattr(sys, "argv", ["gliofed", *map(str, arguments)])
        capsys.readouterr()
        with pytest.raises(SystemExit) as ended:
            main()
        said = capsys.readouterr()
        return Answer(code=int(ended.value.code or 0), out=said.out, err=said.err)

    yield run
    os.environ.clear()
    os.environ.update(environment)


@pytest.fixture
def bundle(reference: Finished) -> Path:
    return reference.folder / "bundle"


def test_eval_repeats_the_run_s_own_figures(
    call: Call, bundle: Path, workplace: Workplace, reference: Finished
) -> None:
    answer = call("eval", "--bundle", bundle, "--data", workplace.data, "--deduplicate-against", workplace.data)
    assert answer.code == 0, answer.err
    report = json.loads(answer.out)
    test = reference.result["arms"]["holdout"]["test"]
    for view in ("as_published", "deduplicated"):
        assert report[view]["confusion"] == test[view]["confusion"], view
        assert report[view]["macro_f1"] == pytest.approx(test[view]["macro_f1"])
    assert report["as_published"]["num_examples"] > report["deduplicated"]["num_examples"]
    assert report["data_kind"] == "mri"


def test_eval_says_nothing_of_duplicates_where_nobody_asked(call: Call, bundle: Path, spoilt_data: Path) -> None:
    report = json.loads(call("eval", "--bundle", bundle, "--data", spoilt_data).out)
    assert "deduplicated" not in report
    assert [Path(entry["path"]).name for entry in report["quarantined"]] == ["empty.jpg"]


def test_predict_answers_a_line_an_image(call: Call, bundle: Path, workplace: Workplace) -> None:
    images = sorted((workplace.data / "Testing" / "glioma").iterdir())[:3]
    answer = call("predict", "--bundle", bundle, *images)
    assert answer.code == 0, answer.err
    lines = [json.loads(line) for line in answer.out.splitlines()]
    assert [line["image"] for line in lines] == [str(image) for image in images]
    for line in lines:
        assert sum(line["probabilities"].values()) == pytest.approx(1, abs=1e-5)
        assert line["label"] == max(line["probabilities"], key=line["probabilities"].get)
        assert line["head_found"]


def test_predict_draws_a_heatmap_of_the_image_s_size(
    call: Call, bundle: Path, workplace: Workplace, tmp_path: Path
) -> None:
    image = workplace.data / "Testing" / "pituitary" / "001.png"
    assert call("predict", "--bundle", bundle, image, "--heatmap", tmp_path / "heat.png").code == 0
    drawn = cv2.imread(str(tmp_path / "heat.png"))
    assert drawn is not None
    assert drawn.shape == (96, 96, 3)
    assert (drawn[..., 0] != drawn[..., 2]).any(), "no colour: no map was laid over the image"

    answer = call("predict", "--bundle", bundle, image, image, "--heatmap", tmp_path / "two.png")
    assert answer.code == 2
    assert "--heatmap: goes with one image, 2 were given" in answer.err


def test_an_unreadable_image_is_named(call: Call, bundle: Path, spoilt_data: Path, tmp_path: Path) -> None:
    for image, complaint in (
        (spoilt_data / "Training" / "glioma" / "text.jpg", "text.jpg"),
        (spoilt_data / "Training" / "glioma" / "truncated.jpg", "truncated.jpg"),
        (tmp_path / "absent.png", "No such file"),
    ):
        answer = call("predict", "--bundle", bundle, image)
        assert answer.code == 1
        assert complaint in answer.err
        assert answer.out == ""


def test_a_damaged_bundle_is_refused_with_the_file_s_name(
    call: Call, bundle: Path, workplace: Workplace, tmp_path: Path
) -> None:
    damaged = tmp_path / "bundle"
    shutil.copytree(bundle, damaged)
    model = bytearray((damaged / "model.onnx").read_bytes())
    model[len(model) // 2] ^= 1
    (damaged / "model.onnx").write_bytes(model)
    image = workplace.data / "Testing" / "glioma" / "001.png"
    for arguments in (("predict", "--bundle", damaged, image), ("eval", "--bundle", damaged, "--data", workplace.data)):
        answer = call(*arguments)
        assert answer.code == 1
        assert "model.onnx" in answer.err


def test_audit_finds_copies_and_what_is_no_image(call: Call, spoilt_data: Path) -> None:
    answer = call("data", "audit", spoilt_data, "--json")
    assert answer.code == 0, answer.err
    report = json.loads(answer.out)
    assert len(report["quarantined"]) == 4
    overlap = next(item for item in report["overlaps"] if "Testing" in item["of"] and "Training" in item["found_in"])
    assert overlap["num_exact"] == 4
    told = call("data", "audit", spoilt_data).out
    assert "truncated.jpg" in told


def test_a_bad_spec_names_line_column_and_the_nearest_setting(call: Call, tmp_path: Path, workplace: Workplace) -> None:
    job = tmp_path / "job.yaml"
    job.write_text("name: bad\nscenario: iid\ndata:\n  root: nowhere\nfl:\n  min_clinets: 3\n  rounds: -1\n")
    for command in (("config", "validate", job), ("train", job, "--run-dir", tmp_path / "run")):
        answer = call(*command)
        assert answer.code == 2
        assert f"{job}:6:3: fl.min_clinets: unknown setting; did you mean fl.min_clients?" in answer.err
        assert f"{job}:7:3: fl.rounds:" in answer.err
    assert not (tmp_path / "run").exists()

    answer = call("config", "validate", workplace.job("tiny"), "--set", "fl.participation=2")
    assert answer.code == 2
    assert answer.err.startswith("--set fl.participation=2: fl.participation:")


def test_a_missing_signing_key_ends_a_job_before_it_begins(call: Call, tmp_path: Path, workplace: Workplace) -> None:
    key = f"export.signing_key={tmp_path / 'absent.pem'}"
    answer = call("train", workplace.job("tiny"), "--run-dir", tmp_path / "run", "--set", key)
    assert answer.code == 1
    assert "absent.pem: cannot be read (No such file or directory)" in answer.err
    assert not list((tmp_path / "run").glob("start*"))


@pytest.mark.parametrize("name", SCENARIOS)
def test_the_configs_we_ship_are_valid(call: Call, name: str) -> None:
    answer = call("config", "validate", ROOT / "configs" / f"{name}.yaml")
    assert answer.code == 0, answer.err


def test_explain_tells_where_each_value_comes_from(call: Call, workplace: Workplace) -> None:
    told = call("config", "explain", workplace.job("tiny"), "--set", "seed=11").out
    assert "seed = 11\n    from --set seed=11: " in told
    assert "fl.aggregation = class_balanced\n    from scenario holdout: " in told
    assert "fl.min_clients = 1\n    from default: " in told
    assert f"fl.rounds = 3\n    from {workplace.folder / 'tiny.yaml'}:" in told


def test_the_schema_knows_every_setting_of_a_resolved_spec(call: Call, reference: Finished) -> None:
    schema = json.loads(call("config", "schema").out)
    spec = yaml.safe_load((reference.folder / "spec.yaml").read_text())
    assert set(schema["properties"]) == set(spec)


def test_the_installed_script_and_the_module_are_the_same_command(launch: Launch) -> None:
    script = subprocess.run(
        [str(Path(sys.executable).with_name("gliofed")), "--help"],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    module = launch("doctor")
    assert script.returncode == 0
    for command in ("train", "eval", "predict", "data", "doctor", "config"):
        assert command in script.stdout
    assert module.wait(120) == 0, module.errors
    for line in ("compiled kernels", "CUDA GPU", "NVIDIA DALI", "TensorRT", "model hub"):
        assert line in module.output
