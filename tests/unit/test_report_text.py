"""Numbers as people read them, and chart geometry that stays inside its frame."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.report_charts import accuracy_chart, loss_chart, nice_step
from service.report_data import Arm, Round
from service.report_text import count, data_size, duration, fault_kind, percent, points, rounds

NAN = float("nan")
TEST = {"num_examples": 0, "accuracy": 0, "accuracy_interval": [0, 1], "per_class": [], "confusion": []}
TEST |= {f"macro_{rate}": 0 for rate in ("precision", "recall", "specificity", "f1")}


def _plain(text: str) -> str:
    return text.replace("\u202f", " ")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (percent(0.9512), "95.1 %"),
        (percent(1.0), "100.0 %"),
        (percent(0.99999), "99.9 %"),  # not quite all is not all
        (percent(0.00001), "0.1 %"),
        (percent(NAN), "–"),
        (points(0.0312), "+3.1 points"),
        (points(-0.0312), "−3.1 points"),
        (points(-0.0001), "0.0 points"),
        (count(1311), "1,311"),
        (duration(0.42), "420 ms"),
        (duration(12.34), "12.3 s"),
        (duration(59.97), "1 min 00 s"),
        (duration(3840), "1 h 04 min"),
        (data_size(0), "0 B"),
        (data_size(999), "999 B"),
        (data_size(999_900), "1.00 MB"),
        (data_size(47_204_368), "47.2 MB"),
        (data_size(1_510_539_776), "1.51 GB"),
        (rounds([9, 3, 4, 5]), "rounds 3–5, 9"),
        (rounds([7]), "round 7"),
        (rounds([]), ""),
    ],
)
def test_numbers_read_well(text: str, expected: str) -> None:
    assert _plain(text) == expected


@pytest.mark.parametrize(
    ("reason", "kind"),
    [
        ("late: no answer within 60 s", "late"),
        ("timed out", "late"),
        ("update refused: NaN at 3", "refused"),
        ("stale: belongs to round 2", "refused"),
        ("worker died", "left out"),
        ("finance department unplugged it", "left out"),
        ("", "left out"),
    ],
)
def test_the_kind_of_a_fault_is_read_from_its_reason(reason: str, kind: str) -> None:
    assert fault_kind(reason) == kind


@given(st.floats(1e-9, 1e9))
def test_a_nice_step_is_round_and_not_much_more_than_asked(least: float) -> None:
    step = nice_step(least)
    assert least * (1 - 1e-9) <= step <= least * 2.5001
    assert round(step / 10 ** math.floor(math.log10(step) + 1e-9), 6) in {1, 2, 5, 10}


values = st.one_of(st.floats(0, 1), st.just(NAN))
losses = st.one_of(st.floats(0, 1e6), st.just(NAN), st.just(math.inf))


@given(st.lists(st.tuples(values, losses), min_size=1, max_size=60), st.booleans())
def test_whatever_the_history_every_point_lies_inside_the_frame(history: list[tuple[float, float]], warm: bool) -> None:
    arm = Arm.model_validate(
        {"role": "scenario", "rounds_run": len(history), "best_round": 1, "stopped_early": True}
        | {"test": {"as_published": TEST, "deduplicated": TEST}}
        | {"warmup": {"epochs": 1, "validation_accuracy": history[0][0]} if warm else None}
        | {"history": [Round(round=r, validation_accuracy=a, validation_loss=v) for r, (a, v) in enumerate(history, 1)]}
    )
    for chart in (accuracy_chart({"a": arm}, num_classes=4), loss_chart({"a": arm})):
        (line,) = chart.lines
        path = [float(number) for number in line.path.replace("M", "").replace("L", "").split()]
        marks = [point for point in (line.best, line.stop, line.start) if point]
        for x, y in [*zip(path[::2], path[1::2], strict=True), *line.dots, *marks]:
            assert chart.frame.left - 0.1 <= x <= chart.frame.right + 0.1
            assert chart.frame.top - 0.1 <= y <= chart.frame.bottom + 0.1
        ticks = [y for y, _ in chart.y_ticks]
        assert 2 <= len(ticks) <= 12 and len({label for _, label in chart.y_ticks}) == len(ticks)
