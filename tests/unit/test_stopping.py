"""Early stopping: what counts as a rise, for how long a plateau may last, and resuming in the midst of one."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fl.server.stopping import EarlyStopSettings, should_stop


def stops_after(accuracies: list[float], **fields: float) -> int | None:
    """The first round after which the history says stop, as a run that asks after every round finds it."""
    settings = EarlyStopSettings.model_validate(fields)
    return next((end for end in range(len(accuracies) + 1) if should_stop(accuracies[:end], settings)), None)


def test_plateau_stops_after_patience_rounds_without_a_rise() -> None:
    assert stops_after([0.5] * 20, window=1, min_delta=0.001, patience=3) == 4
    assert stops_after([0.5] * 20, window=3, min_delta=0.002, patience=3) == 6
    assert stops_after([0.5] * 20, window=5, min_delta=0.001, patience=5) == 10


def test_steady_rise_never_stops() -> None:
    assert stops_after([0.3 + 0.01 * i for i in range(50)], window=5, min_delta=0.001, patience=5) is None


def test_rise_within_min_delta_does_not_count() -> None:
    slow = [0.5 + 0.0005 * i for i in range(30)]

    assert stops_after(slow, window=1, min_delta=0.01, patience=4) == 5
    assert stops_after(slow, window=1, min_delta=0.0004, patience=4) is None


def test_small_rises_that_add_up_beyond_min_delta_count() -> None:
    assert stops_after([0.5 + 0.003 * i for i in range(30)], window=1, min_delta=0.005, patience=3) is None


def test_rise_starts_the_wait_anew() -> None:
    assert stops_after([0.5, 0.5, 0.5, 0.6, 0.6, 0.6, 0.6], window=1, min_delta=0.0, patience=3) == 7


def test_window_smooths_a_single_lucky_round() -> None:
    lucky = [0.5, 0.5, 0.9, *[0.5] * 10]

    assert stops_after(lucky, window=1, min_delta=0.001, patience=3) == 6
    assert stops_after(lucky, window=3, min_delta=0.001, patience=3) == 6
    assert stops_after(lucky, window=5, min_delta=0.001, patience=3) == 8


def test_no_stop_before_the_window_is_full() -> None:
    assert not should_stop([], EarlyStopSettings())
    assert stops_after([0.9, 0.8, 0.7, 0.6], window=5, min_delta=0.0, patience=1) is None


@given(
    accuracies=st.lists(st.floats(0, 1), max_size=25),
    window=st.integers(1, 5),
    min_delta=st.sampled_from([0.0, 0.001, 0.1]),
    patience=st.integers(1, 5),
)
def test_decision_is_that_of_a_run_which_kept_counting(
    accuracies: list[float], window: int, min_delta: float, patience: int
) -> None:
    """A resumed run sees the whole history at once; the uninterrupted one has counted round by round."""
    settings = EarlyStopSettings(window=window, min_delta=min_delta, patience=patience)
    best, waited = float("-inf"), 0
    for end in range(1, len(accuracies) + 1):
        if end >= window:
            average = sum(accuracies[end - window : end]) / window
            if abs(average - best - min_delta) < 1e-12:
                return  # a tie to the last digit, where the order of summing may decide
            rises = average > best + min_delta
            best, waited = (average, 0) if rises else (best, waited + 1)
        assert should_stop(accuracies[:end], settings) == (waited >= patience)


def test_settings_refuse_what_makes_no_sense() -> None:
    for fields in ({"window": 0}, {"patience": 0}, {"min_delta": -0.1}):
        with pytest.raises(ValueError, match="greater than or equal"):
            EarlyStopSettings.model_validate(fields)
