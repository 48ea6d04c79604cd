"""Weights of each aggregation, refusal of unusable replies by name, and the bounds of the exact mean."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from fl.errors import UpdateRefused
from fl.server.aggregate import FRACTION_BITS, MAX_MAGNITUDE, ExactMean, decode_reply
from fl.server.means import Aggregation, RoundMean
from fl.training.exchange import Reply, RoundTask
from fl.training.local import TrainingSummary
from fl.types import Scan, Site

SCAN = Scan(path=Path("a.jpg"), label=0, pixels_sha256="a", phash=0, height=64, width=64)


def site(name: str, num_examples: int, group: str = "all") -> Site:
    return Site(name=name, group=group, scans=(SCAN,) * num_examples)


def reply(name: str, *values: float, round: int = 1, num_examples: int = 1) -> Reply:
    summary = TrainingSummary(num_examples=num_examples, num_steps=1, mean_loss=0.5, seconds=1.0)
    return Reply(site=name, round=round, update=np.array(values, np.float32), summary=summary)


def task(num_parameters: int, round: int = 1) -> RoundTask:
    return RoundTask(round=round, parameters=np.zeros(num_parameters, np.float32))


def mean_of(sites: list[Site], aggregation: Aggregation, replies: dict[str, float]) -> float:
    mean, named = RoundMean(sites, aggregation, 1), {site.name: site for site in sites}
    for name, value in replies.items():
        mean.add(named[name], np.array([value], np.float32))
    return float(mean.result()[0])


SITES = [site("g1", 10, "glioma"), site("g2", 30, "glioma"), site("p1", 60, "pituitary")]


@pytest.mark.parametrize(
    ("aggregation", "expected"),
    [
        ("uniform", (1 + 2 + 6) / 3),
        ("by_examples", (10 * 1 + 30 * 2 + 60 * 6) / 100),
        ("class_balanced", ((10 * 1 + 30 * 2) / 40 + 6) / 2),
    ],
)
def test_weights_of_the_three_aggregations(aggregation: Aggregation, expected: float) -> None:
    assert mean_of(SITES, aggregation, {"g1": 1, "g2": 2, "p1": 6}) == pytest.approx(expected, rel=1e-7)


def test_class_keeps_its_say_when_some_of_its_sites_are_missing() -> None:
    assert mean_of(SITES, "class_balanced", {"g1": 1, "p1": 6}) == pytest.approx((1 + 6) / 2, rel=1e-7)
    assert mean_of(SITES, "class_balanced", {"g1": 1, "g2": 2}) == pytest.approx((10 + 60) / 40, rel=1e-7)
    assert mean_of(SITES, "by_examples", {"g1": 1, "p1": 6}) == pytest.approx((10 + 360) / 70, rel=1e-7)


def test_shared_examples_count_as_the_sites_own_do() -> None:
    helped = Site(name="g1", group="glioma", scans=(SCAN,) * 10, shared_scans=(SCAN,) * 20)

    assert mean_of([helped, SITES[1]], "by_examples", {"g1": 1, "g2": 2}) == pytest.approx(1.5, rel=1e-7)


@pytest.mark.parametrize("weight", [1.0, 0.3, 1 / 57, 1e-5])
def test_mean_of_equal_parameters_is_those_parameters(weight: float) -> None:
    parameters = np.random.default_rng(1).normal(scale=0.05, size=1000).astype(np.float32)
    mean = ExactMean(1000)
    mean.add(parameters, weight)
    mean.add(parameters, weight)

    np.testing.assert_allclose(mean.result(), parameters, rtol=1e-7, atol=2.0**-37 / weight)


def test_array_is_not_changed_and_not_kept() -> None:
    parameters = np.array([1.0, 2.0], np.float32)
    parameters.setflags(write=False)
    mean = ExactMean(2)
    mean.add(parameters, 0.5)

    assert mean.result().tolist() == [1.0, 2.0]
    assert not np.shares_memory(mean.result(), parameters)


def test_arrays_longer_than_a_chunk_are_summed_to_their_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fl.server.aggregate._CHUNK", 7)
    parameters = np.arange(20, dtype=np.float32)
    mean = ExactMean(20)
    mean.add(parameters, 1.0)
    mean.add(parameters + 2, 1.0)

    np.testing.assert_array_equal(mean.result(), parameters + 1)


@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_as_many_sites_as_the_docstring_says_can_all_sit_at_the_limit(sign: float) -> None:
    parameters = np.array([sign * MAX_MAGNITUDE], np.float32)
    mean = ExactMean(1)
    for _ in range(32_767):
        mean.add(parameters, 1.0)

    assert mean.result().tolist() == [sign * MAX_MAGNITUDE]


def test_smallest_value_survives_between_the_largest_in_any_order() -> None:
    tiny = 2.0**-FRACTION_BITS
    values = [MAX_MAGNITUDE] * 300 + [tiny] + [-MAX_MAGNITUDE] * 300

    for order in (values, values[::-1], sorted(values, key=abs)):
        mean = ExactMean(1)
        for value in order:
            mean.add(np.array([value], np.float32), 1.0)
        assert mean.result().tolist() == [np.float32(tiny / 601)]


def test_mean_of_nothing_and_weights_out_of_range_are_errors() -> None:
    with pytest.raises(ValueError, match="mean of no parameters"):
        ExactMean(3).result()
    for weight in (0.0, -0.5, 1.5, float("nan")):
        with pytest.raises(ValueError, match="expected 0 < weight <= 1"):
            ExactMean(1).add(np.zeros(1, np.float32), weight)


def test_usable_reply_passes_up_to_the_limit() -> None:
    values = (MAX_MAGNITUDE, -MAX_MAGNITUDE, 0.0)

    assert decode_reply(reply("s", *values), task(3)).tolist() == list(values)


@pytest.mark.parametrize(
    ("values", "reason"),
    [
        ((1.0, float("nan"), 0.0), "NaN or infinity"),
        ((float("inf"), 0.0, 0.0), "NaN or infinity"),
        ((0.0, 0.0, float("-inf")), "NaN or infinity"),
        ((0.0, 4097.0, 0.0), "magnitude 4.1e"),
        ((0.0, 0.0, -1e30), "magnitude 1e"),
        ((0.0, 0.0), r"its update is float32\[2\], expected float32\[3\]"),
    ],
)
def test_unusable_parameters_are_refused_by_the_sites_name(values: tuple[float, ...], reason: str) -> None:
    with pytest.raises(UpdateRefused, match=reason) as caught:
        decode_reply(reply("Charité", *values), task(3))

    assert caught.value.site == "Charité" and "'Charité'" in str(caught.value)


def test_stale_wrong_type_or_empty_replies_are_refused() -> None:
    with pytest.raises(UpdateRefused, match="it answers round 3, this is round 4"):
        decode_reply(reply("s", 1.0, round=3), task(1, round=4))
    with pytest.raises(UpdateRefused, match="trained on 0 examples"):
        decode_reply(reply("s", 1.0, num_examples=0), task(1))
    double: NDArray[np.float64] = np.zeros(1)
    summary = reply("s", 1.0).summary
    with pytest.raises(UpdateRefused, match=r"float64\[1\]"):
        decode_reply(Reply(site="s", round=1, update=double, summary=summary), task(1))  # type: ignore[arg-type]
