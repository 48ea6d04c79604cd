"""Muon at the server: orthogonal steps for matrices, Adam for the rest, the same for any partition."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch

from fl.server.muon import Muon, MuonSettings, orthogonalise, schedule
from fl.server.strategy import Learned
from fl.training.exchange import Reply
from fl.training.local import TrainingSummary
from fl.types import Scan, Site

LAYOUT = (("tail.conv.weight", (4, 3, 3, 3)), ("tail.conv.bias", (4,)), ("head.weight", (4, 4)))
NUM_MATRIX, NUM_PARAMETERS = 108, 128
SCAN = Scan(path=Path("a.jpg"), label=0, pixels_sha256="a", phash=0, height=64, width=64)
SITES = [Site(name=f"site-{number}", scans=(SCAN,)) for number in range(3)]
MUON = Muon(settings=MuonSettings(warmup_rounds=0), layout=LAYOUT, aggregation="uniform")
START = np.random.default_rng(1).normal(size=NUM_PARAMETERS).astype(np.float32)


def gradients(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).normal(scale=1e-3, size=(3, NUM_PARAMETERS)).astype(np.float32)


def one_round(
    round: int, learned: Learned, gradient_SP: np.ndarray, *, order: int = 1, secure: bool = False
) -> Learned:
    aggregate = MUON.begin(round, SITES, learned.parameters, learned.state)
    if secure:
        aggregate.add_mean(learned.parameters - gradient_SP.mean(axis=0))
    else:
        for site, gradient in list(zip(SITES, gradient_SP, strict=True))[::order]:
            parameters = learned.parameters - gradient
            summary = TrainingSummary(num_examples=1, num_steps=1, mean_loss=1.0, seconds=0.0)
            aggregate.add(site, parameters, Reply(site=site.name, round=round, update=parameters, summary=summary))
    return aggregate.result()


def begin() -> Learned:
    return Learned(parameters=START, state=MUON.initial(START))


@pytest.mark.parametrize("shape", [(8, 20), (20, 8), (6, 6)])
def test_all_singular_values_come_near_one_and_directions_stay(shape: tuple[int, int]) -> None:
    matrix = torch.from_numpy(np.random.default_rng(2).normal(size=shape).astype(np.float32))

    moved = orthogonalise(matrix)

    singular = torch.linalg.svdvals(moved)
    assert singular.min() > 0.5 and singular.max() < 1.3
    left, _, right = torch.linalg.svd(matrix, full_matrices=False)
    nearest = left @ right
    assert float((moved * nearest).sum() / nearest.square().sum()) > 0.7
    assert torch.equal(orthogonalise(torch.zeros(shape)), torch.zeros(shape))


def test_a_step_is_as_long_as_the_rate_whatever_the_gradients_size() -> None:
    small, large = (one_round(1, begin(), factor * gradients(3)) for factor in (1.0, 100.0))

    for learned in (small, large):
        moved = torch.from_numpy((learned.parameters - START)[:NUM_MATRIX].reshape(4, -1))
        assert torch.linalg.svdvals(moved).max() == pytest.approx(0.002, rel=0.3)
        rest = np.abs(learned.parameters - START)[NUM_MATRIX:]
        assert rest.max() == pytest.approx(3e-5, rel=0.05), "Adam's first step is its rate"


def test_replies_in_another_order_give_the_same_bytes_and_their_mean_nearly_so() -> None:
    plain, turned = one_round(1, begin(), gradients(4)), one_round(1, begin(), gradients(4), order=-1)
    secure = one_round(1, begin(), gradients(4), secure=True)

    assert plain.parameters.tobytes() == turned.parameters.tobytes()
    np.testing.assert_allclose(plain.parameters, secure.parameters, atol=2e-5)


def test_state_is_all_that_a_later_round_needs() -> None:
    first = one_round(1, begin(), gradients(5))
    again = Learned(parameters=first.parameters.copy(), state={name: a.copy() for name, a in first.state.items()})

    assert (
        one_round(2, first, gradients(6)).parameters.tobytes() == one_round(2, again, gradients(6)).parameters.tobytes()
    )
    forgotten = Learned(parameters=first.parameters, state=MUON.initial(START))
    assert (
        one_round(2, forgotten, gradients(6)).parameters.tobytes()
        != one_round(2, first, gradients(6)).parameters.tobytes()
    )


def test_rates_rise_then_fall_and_never_end() -> None:
    settings = MuonSettings(warmup_rounds=3, decay_rounds=10)

    shares = [schedule(settings, round) for round in range(1, 13)]

    assert shares[:3] == pytest.approx([1 / 3, 2 / 3, 1.0])
    assert all(later < earlier for earlier, later in pairwise(shares[2:10]))
    assert shares[9] == pytest.approx(1 / 8) and shares[10:] == shares[9:10] * 2


def test_directions_that_gradients_hardly_show_are_walked_as_well() -> None:
    """A quadratic whose rows differ 1,000 times in curvature: averaged gradients leave flat ones where they were."""
    curvature = np.logspace(0, -3, 4).astype(np.float32)[:, None]
    distance_RC = 0.003 * np.random.default_rng(7).normal(size=(4, 27)).astype(np.float32)
    optimum = START[:NUM_MATRIX].reshape(4, 27) + distance_RC

    def gradients_at(parameters: np.ndarray) -> np.ndarray:
        gradient = np.zeros(NUM_PARAMETERS, np.float32)
        gradient[:NUM_MATRIX] = (curvature * (parameters[:NUM_MATRIX].reshape(4, 27) - optimum)).ravel()
        return np.tile(gradient, (3, 1))

    learned, averaged = begin(), START
    for round in range(1, 21):
        learned = one_round(round, learned, gradients_at(learned.parameters))
        averaged = averaged - gradients_at(averaged)[0]

    ours, plain = (
        np.linalg.norm(parameters[:NUM_MATRIX].reshape(4, 27) - optimum, axis=1)
        for parameters in (learned.parameters, averaged)
    )
    assert ours[3] < 0.7 * plain[3], "the flattest row"
    assert ours.sum() < 0.8 * plain.sum()
