"""Whoever holds which examples, in which batches and order the sums come: the head is the same to the byte."""

from __future__ import annotations

from functools import reduce

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from fl.errors import StatisticsError
from fl.server.analytic import candidates
from fl.training.statistics import FEATURE_BITS, SiteStatistics, site_statistics

NUM_FEATURES, NUM_CLASSES, LARGEST = 5, 3, 4.0
RIDGES = (1.0, 0.01)

features = st.lists(st.floats(0, LARGEST, width=32), min_size=NUM_FEATURES, max_size=NUM_FEATURES)
examples = st.lists(st.tuples(features, st.integers(0, NUM_CLASSES - 1)), min_size=1, max_size=25)


def sums(chosen: list[tuple[list[float], int]], batch: int = 7) -> SiteStatistics:
    features_NJ = np.array([row for row, _ in chosen], np.float32).reshape(-1, NUM_FEATURES)
    labels_N = np.array([label for _, label in chosen], np.int64)
    batches = ((features_NJ[at : at + batch], labels_N[at : at + batch]) for at in range(0, len(chosen), batch))
    return site_statistics(batches, num_features=NUM_FEATURES, num_classes=NUM_CLASSES, largest_feature=LARGEST)


def heads(statistics: SiteStatistics) -> bytes:
    """Return all heads' bytes, or why there is none (one class, or features that do not differ)."""
    try:
        return b"".join(head.weight_KJ.tobytes() + head.bias_K.tobytes() for head in candidates(statistics, RIDGES))
    except StatisticsError as error:
        return str(error).encode()


def dense(statistics: SiteStatistics) -> NDArray[np.int64]:
    upper = np.zeros((NUM_FEATURES, NUM_FEATURES), np.int64)
    upper[np.triu_indices(NUM_FEATURES)] = statistics.gram
    return upper + np.triu(upper, 1).T


@given(chosen=examples, data=st.data())
def test_any_partition_order_and_batch_gives_the_bytes_of_one_site_that_holds_all(
    chosen: list[tuple[list[float], int]], data: st.DataObject
) -> None:
    whole = sums(chosen)
    owners = data.draw(st.lists(st.integers(0, 3), min_size=len(chosen), max_size=len(chosen)))
    order = data.draw(st.permutations(range(4)))
    shuffled = data.draw(st.permutations(list(zip(chosen, owners, strict=True))))

    sites = [sums([example for example, owner in shuffled if owner == site], batch=3) for site in order]
    together = reduce(lambda first, second: first + second, sites)

    assert together.as_vector().tobytes() == whole.as_vector().tobytes()
    assert heads(together) == heads(whole)


@given(chosen=examples)
def test_sums_are_those_of_features_read_in_whole_steps(chosen: list[tuple[list[float], int]]) -> None:
    statistics = sums(chosen)
    whole_NJ = [[round(value * 2**FEATURE_BITS / LARGEST) for value in row] for row, _ in chosen]

    gram = [[sum(row[i] * row[j] for row in whole_NJ) for j in range(NUM_FEATURES)] for i in range(NUM_FEATURES)]
    by_class = [
        [
            sum(row[j] for row, (_, label) in zip(whole_NJ, chosen, strict=True) if label == k)
            for k in range(NUM_CLASSES)
        ]
        for j in range(NUM_FEATURES)
    ]

    assert dense(statistics).tolist() == gram, "Python's whole numbers have no bound and no rounding"
    assert statistics.class_sums_JK.tolist() == by_class
    assert statistics.counts_K.tolist() == [sum(label == k for _, label in chosen) for k in range(NUM_CLASSES)]


@given(parts=st.lists(examples, min_size=2, max_size=5), seed=st.integers(0, 2**32))
def test_sums_survive_masks_of_secure_aggregation(parts: list[list[tuple[list[float], int]]], seed: int) -> None:
    random = np.random.default_rng(seed)
    sites = [sums(part) for part in parts]
    length = len(sites[0].as_vector())
    masks = random.integers(0, 2**64, (len(sites) - 1, length), dtype=np.uint64)
    masks = np.concatenate([masks, -masks.sum(axis=0, keepdims=True)])  # together zero, modulo 2^64

    masked = reduce(np.add, [site.as_vector() + mask for site, mask in zip(sites, masks, strict=True)])
    found = SiteStatistics.from_vector(masked, num_features=NUM_FEATURES, num_classes=NUM_CLASSES, unit=sites[0].unit)

    expected = reduce(lambda first, second: first + second, sites)
    assert found.as_vector().tobytes() == expected.as_vector().tobytes()
