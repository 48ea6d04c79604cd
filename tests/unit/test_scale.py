"""A thousand sites, a tenth of them in a round: the server holds a few models, whatever the strategy of means."""

from __future__ import annotations

import tracemalloc
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fl.server.choice import MeanSettings, StrategySettings, Surroundings, make_strategy
from fl.server.fednova import FedNovaSettings
from fl.server.flower_options import FlowerSettings
from fl.server.muon import MuonSettings
from fl.server.rounds import RoundSettings, Score, initial_state, run_rounds
from fl.server.scaffold import ScaffoldSettings
from fl.training.corrections import CONTROL_DELTA
from fl.training.exchange import Assignment, Reply, RoundTask
from fl.training.local import LocalSettings, TrainingSummary
from fl.types import Scan, Site

SCAN = Scan(path=Path("a.jpg"), label=0, pixels_sha256="a", phash=0, height=64, width=64)
SITES = tuple(Site(name=f"site-{number:04d}", scans=(SCAN,) * (1 + number % 5)) for number in range(1000))
SIDE = 512
NUM_PARAMETERS = SIDE * SIDE
MODEL_BYTES = 4 * NUM_PARAMETERS
MOST_MODELS = 24
"""Of float32: global, best, two sums of 64 bits, moments, what a step makes on its way; a quarter of the replies."""

LOCAL = LocalSettings(optimizer="sgd", learning_rate=1.0, steps=1)


def answers(task: RoundTask, assignments: Sequence[Assignment]) -> Iterator[Reply]:
    """Every site's reply, made when it is asked for and dropped by the caller."""
    for number, assignment in enumerate(assignments):
        update = task.parameters + np.float32(1e-3 * (number % 7 - 3))
        extra = {CONTROL_DELTA: np.full(NUM_PARAMETERS, 1e-4, np.float32)} if task.broadcast else {}
        examples = assignment.site.num_examples
        summary = TrainingSummary(num_examples=examples, num_steps=1, mean_loss=0.5, seconds=0.0)
        yield Reply(site=assignment.site.name, round=task.round, update=update, extra=extra, summary=summary)


@pytest.mark.parametrize(
    "settings",
    [
        MeanSettings(),
        FlowerSettings.model_validate({"name": "FedAdam"}),
        ScaffoldSettings(),
        FedNovaSettings(),
        MuonSettings(),
    ],
    ids=lambda settings: getattr(settings, "name", settings.kind),
)
def test_memory_is_that_of_a_few_models_for_a_hundred_replies(settings: StrategySettings) -> None:
    job = Surroundings(
        aggregation="uniform",
        encoding="float32",
        num_sites=len(SITES),
        local=LOCAL,
        layout=(("tail.weight", (SIDE, SIDE // 16, 4, 4)),),
        seed=7,
    )
    strategy, rounds = make_strategy(settings, job), RoundSettings(rounds=1, participation=0.1, early_stop=None)
    start = np.zeros(NUM_PARAMETERS, np.float32)

    def score(_: Any) -> Score:
        return Score(accuracy=0.5, loss=1.0)

    state = initial_state(start, strategy, score)
    tracemalloc.start()
    try:
        (after,) = run_rounds(
            state, sites=SITES, settings=rounds, strategy=strategy, seed=7, train=answers, evaluate=score
        )
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()

    assert len(after.history[0].sites) == 100
    assert peak < MOST_MODELS * MODEL_BYTES
