"""FedNova: sites with unequal steps end at the optimum that was asked for, and equal steps are FedAvg."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from fl.errors import UpdateRefused
from fl.server.fednova import FedNova
from fl.server.means import Aggregation, MeanStrategy
from fl.server.strategy import Aggregate, Strategy
from fl.training.exchange import Reply
from fl.training.local import LocalSettings, TrainingSummary
from fl.types import Scan, Site

Floats = NDArray[np.float32]

SCAN = Scan(path=Path("a.jpg"), label=0, pixels_sha256="a", phash=0, height=64, width=64)
OPTIMA_SP = np.array([[2.0, 0.0], [-1.0, 3.0], [0.0, -3.0]])


def make_sites(*num_examples: int, groups: tuple[str, ...] = ("x", "x", "y")) -> list[Site]:
    return [
        Site(name=f"site-{number}", group=groups[number % 3], scans=(SCAN,) * size)
        for number, size in enumerate(num_examples)
    ]


def add(aggregate: Aggregate, site: Site, parameters: Floats, num_steps: int) -> None:
    summary = TrainingSummary(num_examples=site.num_examples, num_steps=num_steps, mean_loss=0.5, seconds=0.1)
    reply = Reply(site=site.name, round=aggregate.task.round, update=parameters, summary=summary)
    aggregate.add(site, parameters, reply)


def end_of(strategy: Strategy, sites: list[Site], local: LocalSettings, num_rounds: int = 300) -> Floats:
    """Where it ends on the sites' objectives |w - b_s|^2 / 2, by local sgd with momentum from rest."""
    parameters, state = np.zeros(2, np.float32), strategy.initial(np.zeros(2, np.float32))
    for round in range(1, num_rounds + 1):
        aggregate = strategy.begin(round, sites, parameters, state)
        for site, optimum in zip(sites, OPTIMA_SP, strict=True):
            here, velocity = parameters.astype(np.float64), np.zeros(2)
            for _ in range(local.num_steps(site.num_examples)):
                velocity = local.momentum * velocity + (here - optimum)
                here = here - local.learning_rate * velocity
            add(aggregate, site, here.astype(np.float32), local.num_steps(site.num_examples))
        learned = aggregate.result()
        parameters, state = learned.parameters, learned.state
    return parameters


@pytest.mark.parametrize("momentum", [0.0, 0.8])
@pytest.mark.parametrize(
    ("aggregation", "shares"),
    [("uniform", (20, 20, 20)), ("by_examples", (4, 8, 40)), ("class_balanced", (1, 2, 3))],
)
def test_unequal_steps_end_at_the_optimum_that_was_asked_for(
    aggregation: Aggregation, shares: tuple[float, ...], momentum: float
) -> None:
    """Sites of 4, 8 and 40 examples make 1, 2 and 10 steps. Figures without momentum: FedAvg 0.9 to 1.9 away."""
    local = LocalSettings(optimizer="sgd", momentum=momentum, learning_rate=3e-3, epochs=1, batch_size=4)
    sites = make_sites(4, 8, 40)
    wanted_P = np.array(shares) / sum(shares) @ OPTIMA_SP

    fedavg = np.linalg.norm(end_of(MeanStrategy(aggregation=aggregation), sites, local, 800) - wanted_P)
    fednova = np.linalg.norm(end_of(FedNova(aggregation=aggregation, local=local), sites, local, 800) - wanted_P)

    assert fednova < 0.05 and fedavg > 5 * fednova


values = st.lists(st.floats(-4096, 4096, width=32), min_size=3, max_size=3)


@given(
    items=st.lists(st.tuples(values, st.integers(1, 30)), min_size=1, max_size=8),
    before=values,
    aggregation=st.sampled_from(["uniform", "by_examples", "class_balanced"]),
    random=st.randoms(use_true_random=False),
)
def test_equal_steps_are_fedavg_and_order_does_not_change_a_bit(
    items: list[tuple[list[float], int]], before: list[float], aggregation: Aggregation, random: object
) -> None:
    local = LocalSettings(optimizer="sgd", momentum=0.5, steps=4)
    sites = make_sites(*(size for _, size in items))
    replies = [(site, np.array(parameters, np.float32)) for site, (parameters, _) in zip(sites, items, strict=True)]
    shuffled = list(replies)
    random.shuffle(shuffled)  # type: ignore[attr-defined]
    start, results = np.array(before, np.float32), []
    for strategy, order in (
        (FedNova(aggregation=aggregation, local=local), replies),
        (FedNova(aggregation=aggregation, local=local), shuffled),
        (MeanStrategy(aggregation=aggregation), replies),
    ):
        aggregate = strategy.begin(1, sites, start, {})
        for site, parameters in order:
            add(aggregate, site, parameters, 4)
        results.append(aggregate.result().parameters)

    assert results[0].tobytes() == results[1].tobytes()
    largest = max(1.0, *(abs(value) for parameters, _ in items for value in parameters), *map(abs, before))
    np.testing.assert_allclose(results[0], results[2], rtol=0, atol=4 * 2.0**-23 * largest)


@given(
    items=st.lists(st.tuples(values, st.integers(1, 30)), min_size=1, max_size=8),
    before=values,
    momentum=st.sampled_from([0.0, 0.9]),
    aggregation=st.sampled_from(["uniform", "by_examples", "class_balanced"]),
)
def test_result_is_the_papers_equation(
    items: list[tuple[list[float], int]], before: list[float], momentum: float, aggregation: Aggregation
) -> None:
    """x + (sum p a) (sum p D / a), with the groups' own shares where classes are balanced."""
    local = LocalSettings(optimizer="sgd", momentum=momentum, epochs=2, batch_size=3)
    sites = make_sites(*(size for _, size in items))
    aggregate = FedNova(aggregation=aggregation, local=local).begin(1, sites, np.array(before, np.float32), {})
    for site, (parameters, _) in zip(sites, items, strict=True):
        add(aggregate, site, np.array(parameters, np.float32), local.num_steps(site.num_examples))

    sizes_S = np.array([site.num_examples for site in sites], np.float64)
    shares_S = np.ones_like(sizes_S) if aggregation == "uniform" else sizes_S
    if aggregation == "class_balanced":
        of_group = np.array([site.group for site in sites])
        shares_S /= [sizes_S[of_group == group].sum() for group in of_group]
    shares_S /= shares_S.sum()
    steps_S = np.array([local.effective_steps(local.num_steps(site.num_examples)) for site in sites])
    ways_SP = np.array([parameters for parameters, _ in items]) - before
    expected_P = before + (shares_S @ steps_S) * ((shares_S / steps_S) @ ways_SP)

    spread = steps_S.max() / steps_S.min()
    np.testing.assert_allclose(aggregate.result().parameters, expected_P, rtol=1e-6, atol=1e-2 * 2.0**-7 * spread)


def test_number_of_steps_that_cannot_be_is_refused() -> None:
    """It would multiply everybody's step."""
    local = LocalSettings(optimizer="sgd", epochs=2, batch_size=4)
    (site,) = make_sites(9)
    aggregate = FedNova(aggregation="uniform", local=local).begin(1, [site], np.zeros(2, np.float32), {})

    with pytest.raises(UpdateRefused, match="it reports 600 local steps, its 9 examples make 6") as caught:
        add(aggregate, site, np.zeros(2, np.float32), 600)
    assert caught.value.site == "site-0"
    with pytest.raises(ValueError, match="mean of no parameters"):
        aggregate.result()


def test_it_needs_each_sites_steps() -> None:
    sites = make_sites(9)
    strategy = FedNova(aggregation="uniform", local=LocalSettings(optimizer="sgd"))

    with pytest.raises(ValueError, match="turn secure aggregation off"):
        strategy.begin(1, sites, np.zeros(2, np.float32), strategy.initial(np.zeros(2, np.float32))).add_mean(
            np.zeros(2, np.float32)
        )
