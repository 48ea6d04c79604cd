"""The server's control variate is the mean of the sites', whoever took part and in whatever order."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from fl.server.aggregate import FRACTION_BITS
from fl.server.scaffold import Scaffold
from fl.training.corrections import CONTROL
from fl.training.exchange import Reply
from fl.training.local import LocalSettings, TrainingSummary
from fl.training.method import answer
from fl.types import Scan, Site

SCAN = Scan(path=Path("a.jpg"), label=0, pixels_sha256="a", phash=0, height=64, width=64)
NUM_PARAMETERS = 5
SUMMARY = TrainingSummary(num_examples=1, num_steps=7, mean_loss=0.5, seconds=0.1)
LOCAL = LocalSettings(optimizer="sgd", learning_rate=0.1, steps=7)
FLOAT32_STEP = 2.0**-23


@given(
    num_sites=st.integers(1, 8),
    rounds=st.lists(st.lists(st.integers(0, 7), min_size=1, max_size=8, unique=True), min_size=1, max_size=6),
    seed=st.integers(0, 2**32 - 1),
)
def test_control_is_the_mean_of_the_sites_controls(num_sites: int, rounds: list[list[int]], seed: int) -> None:
    random = np.random.default_rng(seed)
    sites = [Site(name=f"site-{number}", scans=(SCAN,)) for number in range(num_sites)]
    strategy = Scaffold(num_sites=num_sites)
    parameters = random.normal(size=NUM_PARAMETERS).astype(np.float32)
    state, controls = strategy.initial(parameters), np.zeros((num_sites, NUM_PARAMETERS), np.float32)
    largest = 0.0
    for number, taking_part in enumerate(rounds, 1):
        selected = [site for site in taking_part if site < num_sites] or [0]
        aggregate = strategy.begin(number, [sites[site] for site in selected], parameters, state)
        replies: list[tuple[int, Reply]] = []
        for site in selected:
            trained = parameters + random.normal(size=NUM_PARAMETERS).astype(np.float32)
            reply, kept = answer(
                aggregate.task, {CONTROL: controls[site]}, LOCAL,
                site=sites[site].name, trained=trained, summary=SUMMARY,
            )  # fmt: skip
            replies.append((site, reply))
            controls[site] = kept[CONTROL]
            largest = max(largest, float(np.abs(reply.extra["control-delta"]).max()), float(np.abs(controls).max()))
        again = strategy.begin(number, [sites[site] for site in selected], parameters, state)
        for site, reply in replies:
            aggregate.add(sites[site], reply.update, reply)  # type: ignore[arg-type]
        for site, reply in reversed(replies):
            again.add(sites[site], reply.update, reply)  # type: ignore[arg-type]
        learned, reordered = aggregate.result(), again.result()
        assert learned.state[CONTROL].tobytes() == reordered.state[CONTROL].tobytes()
        assert learned.parameters.tobytes() == reordered.parameters.tobytes()
        parameters, state = learned.parameters, learned.state

        # each round: one rounding to fixed point a reply, and to float32 of each sum and site's control
        tolerance = number * (2.0**-FRACTION_BITS + 4 * FLOAT32_STEP * largest)
        assert np.abs(state[CONTROL] - controls.mean(axis=0, dtype=np.float64)).max() <= tolerance
