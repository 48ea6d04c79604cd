"""Weights rounded one after another give nearly what they gave, on inputs like those that were measured."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from export.rounding import Moments, round_weights

LEVELS = 127


def make_rows(num: int, width: int, seed: int) -> np.ndarray:
    """What a Relu lets through: of positive mean, and much alike in neighbouring inputs."""
    generator = np.random.default_rng(seed)
    mixing = np.exp(-np.abs(np.subtract.outer(np.arange(width), np.arange(width))) / 4)
    rows: np.ndarray = np.maximum(generator.normal(size=(num, width)) @ mixing, 0).astype(np.float32)
    return rows


def scales_of(weight_OK: np.ndarray) -> np.ndarray:
    scale_O: np.ndarray = np.abs(weight_OK).max(axis=1) / LEVELS
    return scale_O


@settings(deadline=None, max_examples=20)
@given(seed=st.integers(0, 999), width=st.integers(2, 40), cuts=st.lists(st.integers(1, 49), max_size=3))
def test_moments_are_those_of_all_rows_times_their_gains(seed: int, width: int, cuts: list[int]) -> None:
    rows, gain = make_rows(50, width, seed), np.exp2(np.arange(width) % 4).astype(np.float32)
    moments = Moments()
    for part in np.split(rows, sorted(cuts)):
        if len(part):
            moments.add(part)

    np.testing.assert_allclose(moments.mean(gain), (rows * gain).mean(axis=0), rtol=1e-4)
    covariance, expected = moments.covariance(gain), np.cov((rows * gain).T.astype(float), bias=True)
    damping = np.diagonal(covariance) - np.diagonal(expected)
    np.testing.assert_allclose(damping, 0.01 * np.diagonal(expected).mean(), rtol=0.1)
    np.testing.assert_allclose(
        covariance - np.diag(damping), expected, atol=1e-4 * np.abs(expected).max(), err_msg="off the diagonal"
    )


@settings(deadline=None, max_examples=10)
@given(seed=st.integers(0, 999))
def test_rows_that_were_not_measured_lose_less_than_with_the_nearest_steps(seed: int) -> None:
    width, moments = 200, Moments()
    weight_OK = np.random.default_rng(seed).normal(size=(16, width)).astype(np.float32)
    moments.add(make_rows(2000, width, seed + 1))
    scale_O, others = scales_of(weight_OK), make_rows(500, width, seed + 2)

    steps_OK = round_weights(weight_OK, scale_O, moments.covariance(np.ones(width, np.float32)), LEVELS)

    def spread(steps: np.ndarray) -> float:
        return float((others @ (weight_OK - steps * scale_O[:, None]).T).std(axis=0).mean())

    assert steps_OK.dtype == np.int8 and np.abs(steps_OK.astype(int)).max() <= LEVELS
    assert spread(steps_OK) < 0.6 * spread(np.rint(weight_OK / scale_O[:, None]))


def test_inputs_that_have_nothing_to_do_with_one_another_get_the_nearest_steps() -> None:
    weight_OK = np.random.default_rng(4).normal(size=(8, 150)).astype(np.float32)
    scale_O = scales_of(weight_OK)

    steps_OK = round_weights(weight_OK, scale_O, np.diag(np.linspace(1, 2, 150)).astype(np.float32), LEVELS)

    np.testing.assert_array_equal(steps_OK, np.rint(weight_OK / scale_O[:, None]))


def test_dark_inputs_leave_the_nearest_steps() -> None:
    moments = Moments()
    moments.add(np.zeros((5, 9), np.float32))
    weight_OK = np.linspace(-1, 1, 27, dtype=np.float32).reshape(3, 9)
    scale_O = scales_of(weight_OK)

    steps_OK = round_weights(weight_OK, scale_O, moments.covariance(np.ones(9, np.float32)), LEVELS)

    np.testing.assert_array_equal(steps_OK, np.rint(weight_OK / scale_O[:, None]))
