"""Three of fifteen sites lie: what the mean makes of it, and what Flower's robust strategies do."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from fl.random import stream
from fl.server.choice import Surroundings, make_strategy
from fl.server.flower_options import FlowerSettings
from fl.server.rounds import RoundSettings, Score, initial_state, run_rounds
from fl.training.exchange import Assignment, Reply, RoundTask
from fl.training.local import LocalSettings, TrainingSummary
from fl.types import Scan, Site

Floats = NDArray[np.float32]
SIZE, ROUNDS, SEED = 200, 8, 7
SCAN = Scan(path=Path("a.jpg"), label=0, pixels_sha256="a", phash=0, height=64, width=64)
SITES = [Site(name=f"site-{number:02d}", scans=(SCAN,)) for number in range(15)]
LIARS = {site.name for site in SITES[2::5]}
GOAL = stream(SEED, "goal").normal(size=SIZE)

ATTACKS: dict[str, Callable[[Floats, NDArray[np.float64], str, int], NDArray[np.float64]]] = {
    "none": lambda start, honest, site, round: start + honest,
    "sign flip": lambda start, honest, site, round: start - 5 * honest,
    "noise": lambda start, honest, site, round: start + stream(SEED, "noise", site, round).normal(size=SIZE) * 30,
    "large norm": lambda start, honest, site, round: start + 100 * honest,
}
ROBUST: dict[str, dict[str, Any]] = {
    "FedMedian": {},
    "FedTrimmedAvg": {"beta": 0.2},
    "Krum": {"num_malicious_nodes": 3},
    "MultiKrum": {"num_malicious_nodes": 3, "num_nodes_to_select": 8},
    "Bulyan": {"num_malicious_nodes": 3},
}


def error_after(name: str, options: dict[str, Any], attack: str) -> float:
    """The distance from the goal after all rounds, as a share of the distance that the start had."""

    def train(task: RoundTask, asked: Sequence[Assignment]) -> Iterator[Reply]:
        for site in (assignment.site.name for assignment in asked):
            own = GOAL + stream(SEED, "own", site).normal(size=SIZE) * 0.2
            honest = 0.5 * (own - task.parameters)
            kind = attack if site in LIARS else "none"
            sent = ATTACKS[kind](task.parameters, honest, site, task.round).astype(np.float32)
            summary = TrainingSummary(num_examples=1, num_steps=1, mean_loss=1.0, seconds=0.0)
            yield Reply(site=site, round=task.round, update=sent, summary=summary)

    def evaluate(parameters: Floats) -> Score:
        return Score(accuracy=0.5, loss=1.0)

    job = Surroundings(
        aggregation="uniform", encoding="float32", local=LocalSettings(), num_sites=len(SITES), layout=(), seed=SEED
    )
    strategy = make_strategy(FlowerSettings.model_validate({"name": name, "options": options}), job)
    *_, last = run_rounds(
        initial_state(np.zeros(SIZE, np.float32), strategy, evaluate),
        sites=SITES,
        settings=RoundSettings(participation=1.0, early_stop=None, rounds=ROUNDS),
        strategy=strategy,
        seed=SEED,
        train=train,
        evaluate=evaluate,
    )
    return float(np.linalg.norm(last.parameters - GOAL) / np.linalg.norm(GOAL))


def test_without_liars_every_strategy_arrives() -> None:
    assert error_after("FedAvg", {}, "none") < 0.07
    for name, options in ROBUST.items():
        assert error_after(name, options, "none") < 0.25, name


@pytest.mark.parametrize("attack", ["sign flip", "noise", "large norm"])
def test_a_fifth_of_liars_leads_the_mean_astray_and_robust_strategies_home(attack: str) -> None:
    assert error_after("FedAvg", {}, attack) > 1, "the attack is too weak to show anything"
    for name, options in ROBUST.items():
        assert error_after(name, options, attack) < 0.25, name
