"""The mean of sites' parameters is the weighted mean, to the bit the same in every order."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from fl.server.aggregate import FRACTION_BITS, ExactMean
from fl.server.means import Aggregation, RoundMean
from fl.types import Scan, Site

SCAN = Scan(path=Path("a.jpg"), label=0, pixels_sha256="a", phash=0, height=64, width=64)
NUM_PARAMETERS = 4
FLOAT32_STEP = 2.0**-23

values = st.lists(st.floats(-4096, 4096, width=32), min_size=NUM_PARAMETERS, max_size=NUM_PARAMETERS)
weights = st.floats(1e-4, 1)
weighted = st.lists(st.tuples(values, weights), min_size=1, max_size=12)
site_replies = st.lists(
    st.tuples(values, st.integers(1, 40), st.sampled_from(["glioma", "meningioma", "notumor"])),
    min_size=1,
    max_size=9,
)
aggregations = st.sampled_from(["uniform", "by_examples", "class_balanced"])


def exact_mean(items: list[tuple[list[float], float]]) -> np.ndarray:
    mean = ExactMean(NUM_PARAMETERS)
    for parameters, weight in items:
        mean.add(np.array(parameters, np.float32), weight)
    return mean.result()


@given(items=weighted, random=st.randoms(use_true_random=False))
def test_order_does_not_change_a_bit(items: list[tuple[list[float], float]], random: object) -> None:
    shuffled = list(items)
    random.shuffle(shuffled)  # type: ignore[attr-defined]

    assert exact_mean(items).tobytes() == exact_mean(shuffled).tobytes()


@given(items=weighted)
def test_result_is_the_weighted_mean(items: list[tuple[list[float], float]]) -> None:
    parameters_KP = np.array([parameters for parameters, _ in items])
    weights_K = np.array([weight for _, weight in items])

    expected_P = np.average(parameters_KP, axis=0, weights=weights_K)

    # one rounding of each value, one of each weight, one of the result to float32
    largest = np.abs(parameters_KP).max()
    quantum = 2.0 ** -(FRACTION_BITS + 1) * len(items) / weights_K.sum()
    tolerance_P = quantum * (1 + 2 * largest) + FLOAT32_STEP * np.abs(expected_P)
    assert (np.abs(exact_mean(items) - expected_P) <= tolerance_P).all()


@given(items=site_replies, aggregation=aggregations, random=st.randoms(use_true_random=False))
def test_round_mean_depends_on_neither_order_nor_other_sites(
    items: list[tuple[list[float], int, str]], aggregation: Aggregation, random: object
) -> None:
    sites = [
        Site(name=f"site-{number}", group=group, scans=(SCAN,) * num_examples)
        for number, (_, num_examples, group) in enumerate(items)
    ]
    replies = [(site, np.array(parameters, np.float32)) for site, (parameters, _, _) in zip(sites, items, strict=True)]
    shuffled = list(replies)
    random.shuffle(shuffled)  # type: ignore[attr-defined]

    results = []
    for order in (replies, shuffled):
        mean = RoundMean(sites, aggregation, NUM_PARAMETERS)
        for site, parameters in order:
            mean.add(site, parameters)
        results.append(mean.result())

    assert results[0].tobytes() == results[1].tobytes()
    stacked_KP = np.array([parameters for _, parameters in replies], np.float64)
    # a group's mean is rounded to float32 before the groups are averaged, so errors go with the largest value
    tolerance = 2 * FLOAT32_STEP * max(1.0, np.abs(stacked_KP).max())
    assert np.abs(results[0] - _slow_mean(sites, stacked_KP, aggregation)).max() <= tolerance


def _slow_mean(sites: list[Site], stacked_KP: np.ndarray, aggregation: Aggregation) -> np.ndarray:
    examples_K = np.array([site.num_examples for site in sites], np.float64)
    if aggregation == "uniform":
        return stacked_KP.mean(axis=0)
    if aggregation == "by_examples":
        return np.average(stacked_KP, axis=0, weights=examples_K)
    groups = [np.array([site.group == group for site in sites]) for group in {site.group for site in sites}]
    return np.mean([np.average(stacked_KP[of], axis=0, weights=examples_K[of]) for of in groups], axis=0)
