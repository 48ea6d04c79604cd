"""Strategies in a job file: what may stand there, and where a fault is."""

from __future__ import annotations

from pathlib import Path

import pytest

from fl.server.choice import describe_strategy
from fl.server.flower_options import FlowerSettings
from service.spec import JobSpec, load_spec
from service.yaml_source import SpecError

JOB = """\
name: trial
scenario: iid
data:
  root: scans
fl:
  strategy:
"""


def load(folder: Path, lines: str) -> JobSpec:
    path = folder / "job.yaml"
    path.write_text(JOB + "".join(f"    {line}\n" for line in lines.splitlines()))
    return load_spec(path)


def test_a_strategy_of_flowers_is_read_from_the_job_file_and_back(tmp_path: Path) -> None:
    spec = load(
        tmp_path,
        "kind: flower\nname: FedAdam\noptions: {eta: 0.01, tau: 1e-3}\n"
        "dp:\n  name: DifferentialPrivacyServerSideFixedClipping\n  options: {noise_multiplier: 1, clipping_norm: 2}",
    )

    strategy = spec.fl.strategy
    assert isinstance(strategy, FlowerSettings) and strategy.options == {"eta": 0.01, "tau": 0.001}
    assert strategy.dp is not None and strategy.dp.options == {"noise_multiplier": 1.0, "clipping_norm": 2.0}
    (tmp_path / "again.yaml").write_text(spec.to_yaml())
    assert load_spec(tmp_path / "again.yaml") == spec
    described = describe_strategy(strategy, "uniform")
    assert described == "Flower's FedAdam in DifferentialPrivacyServerSideFixedClipping, uniform"


@pytest.mark.parametrize(
    ("lines", "place", "fault"),
    [
        ("kind: flower\nname: FedAdamW", "8:5: fl.strategy.name", "Input should be 'FedAvg', 'FedAvgM'"),
        ("kind: flower\nname: FedAdam\noptions: {etta: 1}", "9:5: fl.strategy.options", "known: eta, beta_1"),
        (
            "kind: flower\nname: FedAvg\noptions: {fraction_train: 1}",
            "9:5: fl.strategy.options",
            "set fl.participation or fl.min_clients",
        ),
        ("kind: flower\nname: QFedAvg", "6:3: fl.strategy.options", "QFedAvg needs options client_learning_rate"),
        ("kind: flower\nname: FedTrimmedAvg\noptions: {beta: 0.7}", "6:3: fl.strategy", "`beta` must be in the range"),
        ("kind: flower\nname: FedAvg\nrate: 1", "9:5: fl.strategy.rate", "unknown setting"),
        ("name: FedAvg", "6:3: fl.strategy", "kind"),
        ("kind: flour", "6:3: fl.strategy", "'flower'"),
    ],
)
def test_a_fault_is_told_with_its_place(tmp_path: Path, lines: str, place: str, fault: str) -> None:
    with pytest.raises(SpecError) as caught:
        load(tmp_path, lines)

    (line,) = caught.value.faults
    assert line.startswith(f"{tmp_path}/job.yaml:{place}: ")
    assert fault in line
