"""Local training of any forward: which examples when, what the loss says, and schedules."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from pydantic import ValidationError
from torch import Tensor

from fl.errors import GliofedError
from fl.model.speed import SpeedSettings, resolve_execution
from fl.model.vgg import NetworkSettings, SplitVgg19, initialise_from_nothing
from fl.training.corrections import proximal
from fl.training.local import LocalSettings, Schedule, TrainingSummary, predict, train

NETWORK = NetworkSettings(width=0.125, frozen_through="block5_conv3", dropout=0.5)
EXECUTION = resolve_execution(SpeedSettings(precision="float32", compile="off"))
FEATURES_NChw = torch.rand(11, 64, 2, 2, generator=torch.Generator().manual_seed(1))
LABELS = [i % 4 for i in range(11)]


def make_model() -> SplitVgg19:
    torch.set_num_threads(1)
    model = SplitVgg19(NETWORK)
    initialise_from_nothing(model, torch.Generator().manual_seed(1))
    return model


def run(
    schedule: Schedule,
    *,
    seed: int = 7,
    address: tuple[int | str, ...] = ("round", 1, "a"),
    model: SplitVgg19 | None = None,
) -> tuple[TrainingSummary, list[tuple[int, list[int]]], list[Tensor]]:
    """Train; return the summary, what was loaded (epoch, positions), and the trained values."""
    network, loaded = model or make_model(), []

    def load(chosen: NDArray[np.int64], epoch: int) -> Tensor:
        loaded.append((epoch, chosen.tolist()))
        return FEATURES_NChw[chosen]

    parameters = [parameter for _, parameter in network.trained_parameters()]
    summary = train(
        network, network.classify, load, LABELS, schedule,
        parameters=parameters, execution=EXECUTION, seed=seed, address=address,
    )  # fmt: skip
    return summary, loaded, [parameter.detach().clone() for parameter in parameters]


def test_each_epoch_sees_every_example_once_in_another_order() -> None:
    summary, loaded, _ = run(Schedule(epochs=3, batch_size=4, learning_rate=1e-3, first_epoch=10))

    assert (summary.num_examples, summary.num_steps) == (11, 9)
    assert [epoch for epoch, _ in loaded] == [10] * 3 + [11] * 3 + [12] * 3
    orders = [[i for at, chosen in loaded if at == epoch for i in chosen] for epoch in (10, 11, 12)]
    assert all(sorted(order) == list(range(11)) for order in orders)
    assert len({tuple(order) for order in orders}) == 3
    assert [len(chosen) for _, chosen in loaded[:3]] == [4, 4, 3]


def test_order_and_dropout_follow_seed_and_address_and_not_the_global_generator() -> None:
    schedule = Schedule(epochs=2, batch_size=4, learning_rate=1e-3)
    _, loaded, values = run(schedule)

    torch.manual_seed(99)
    _, loaded_again, values_again = run(schedule)
    assert loaded_again == loaded
    assert all(torch.equal(one, other) for one, other in zip(values, values_again, strict=True))

    for changed in ({"seed": 8}, {"address": ("round", 2, "a")}, {"address": ("round", 1, "b")}):
        assert run(schedule, **changed)[1] != loaded  # type: ignore[arg-type]


def test_mean_loss_is_the_cross_entropy_of_the_last_epochs_examples() -> None:
    """With a learning rate that moves nothing and no dropout, it can be worked out beside."""
    model = SplitVgg19(NETWORK.model_copy(update={"dropout": 0.0}))
    initialise_from_nothing(model, torch.Generator().manual_seed(1))
    with torch.no_grad():
        expected = torch.nn.functional.cross_entropy(model.classify(FEATURES_NChw), torch.tensor(LABELS))

    summary, _, _ = run(Schedule(epochs=2, batch_size=4, learning_rate=1e-12), model=model)

    assert summary.mean_loss == pytest.approx(float(expected), rel=1e-5)


@pytest.mark.parametrize(("shape", "least", "most"), [("one_cycle", 0.0, 1e-6), ("constant", 1e-4, 1.0)])
def test_one_cycle_ends_with_tiny_steps_and_constant_does_not(shape: str, least: float, most: float) -> None:
    model, seen = make_model(), []
    parameters = [parameter for _, parameter in model.trained_parameters()]

    def load(chosen: NDArray[np.int64], _: int) -> Tensor:
        seen.append([parameter.detach().clone() for parameter in parameters])
        return FEATURES_NChw[chosen]

    train(
        model, model.classify, load, LABELS,
        Schedule(epochs=6, batch_size=11, learning_rate=1e-3, shape=shape),  # type: ignore[arg-type]
        parameters=parameters, execution=EXECUTION, seed=7, address=("warm-up",),
    )  # fmt: skip

    steps = [float((now.detach() - then).abs().max()) for now, then in zip(parameters, seen[-1], strict=True)]
    assert least <= max(steps) <= most


def test_one_cycle_of_a_single_step_works() -> None:
    summary, _, _ = run(Schedule(epochs=1, batch_size=16, learning_rate=1e-3, shape="one_cycle"))

    assert summary.num_steps == 1


def test_weight_decay_shrinks_weights_and_zero_does_not() -> None:
    plain, decayed = (
        run(Schedule(epochs=3, batch_size=4, learning_rate=1e-3, weight_decay=decay))[2] for decay in (0.0, 10.0)
    )

    assert sum(float(v.norm()) for v in decayed) < 0.95 * sum(float(v.norm()) for v in plain)


@pytest.mark.parametrize("batch_size", [1, 4, 11, 64])
def test_predict_gives_logits_in_order_without_dropout(batch_size: int) -> None:
    model = make_model()
    with torch.no_grad():
        expected = model.eval().classify(FEATURES_NChw).numpy()
    model.train()

    found = predict(
        model, model.classify, lambda chosen, _: FEATURES_NChw[chosen], 11, batch_size=batch_size, execution=EXECUTION
    )

    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)


def test_walk_goes_through_shuffled_epochs_over_the_rounds() -> None:
    """11 examples, 4 a step at most: each epoch is three steps of 4, 4 and 3, wherever a round happens to end."""
    settings = LocalSettings(steps=2, batch_size=4)
    rounds = [run(settings.schedule(round, "a"), address=("round", round, "a"))[:2] for round in range(1, 7)]

    walked = [step for _, loaded in rounds for step in loaded]
    assert [summary.num_steps for summary, _ in rounds] == [2] * 6
    assert [epoch for epoch, _ in walked] == [0] * 3 + [1] * 3 + [2] * 3 + [3] * 3
    assert [len(chosen) for _, chosen in walked[:6]] == [4, 4, 3, 4, 4, 3]
    orders = [[i for at, chosen in walked if at == epoch for i in chosen] for epoch in range(4)]
    assert all(sorted(order) == list(range(11)) for order in orders) and len({tuple(order) for order in orders}) == 4


def test_step_of_a_walk_depends_on_its_number_and_the_site_alone() -> None:
    whole = run(LocalSettings(steps=6, batch_size=4).schedule(1, "a"))[1]

    assert run(LocalSettings(steps=2, batch_size=4).schedule(3, "a"), address=("any",))[1] == whole[4:6]
    assert run(LocalSettings(steps=6, batch_size=4).schedule(1, "b"))[1] != whole


@pytest.mark.parametrize("batch_size", [11, 12, 64])
def test_site_smaller_than_a_batch_gives_all_it_has_in_every_step(batch_size: int) -> None:
    _, loaded, _ = run(LocalSettings(steps=3, batch_size=batch_size).schedule(1, "a"))

    assert [(epoch, sorted(chosen)) for epoch, chosen in loaded] == [(epoch, list(range(11))) for epoch in range(3)]


def gradient_of(model: SplitVgg19, positions: list[int]) -> list[Tensor]:
    parameters = [parameter for _, parameter in model.trained_parameters()]
    loss = torch.nn.functional.cross_entropy(model.classify(FEATURES_NChw[positions]), torch.tensor(LABELS)[positions])
    return list(torch.autograd.grad(loss, parameters))


def without_dropout() -> SplitVgg19:
    model = SplitVgg19(NETWORK.model_copy(update={"dropout": 0.0}))
    initialise_from_nothing(model, torch.Generator().manual_seed(1))
    return model


def test_step_of_sgd_is_parameters_less_rate_times_gradient_to_the_bit() -> None:
    torch.set_num_threads(1)
    settings = LocalSettings(optimizer="sgd", learning_rate=1.0, steps=1, batch_size=4)
    start = without_dropout()

    _, loaded, values = run(settings.schedule(1, "a"), model=without_dropout())

    gradients = gradient_of(start, loaded[0][1])
    before = [parameter.detach() for _, parameter in start.trained_parameters()]
    assert all(torch.equal(value, b - g) for value, b, g in zip(values, before, gradients, strict=True))


def test_momentum_counts_a_gradient_for_the_later_steps_too() -> None:
    """A loss that does not bend has the same gradient in each step: its sum is what effective_steps says."""
    line = torch.nn.Linear(1, 4, bias=False)
    start = line.weight.detach().clone()
    settings = LocalSettings(optimizer="sgd", momentum=0.7, learning_rate=1e-6, steps=9, batch_size=11)

    train(
        line, line, lambda chosen, _: torch.ones(len(chosen), 1), [2] * 11, settings.schedule(1, "a"),
        parameters=[line.weight], execution=EXECUTION, seed=7, address=("a",),
    )  # fmt: skip

    gradient = torch.softmax(start[:, 0], 0) - torch.tensor([0.0, 0.0, 1.0, 0.0])
    found = ((start - line.weight.detach())[:, 0] / 1e-6 / gradient).mean()
    assert float(found) == pytest.approx(settings.effective_steps(9), rel=0.05)
    assert settings.effective_steps(9) == pytest.approx(sum((1 - 0.7**j) / 0.3 for j in range(1, 10)))
    assert LocalSettings(optimizer="sgd").effective_steps(9) == 9


def test_what_does_not_fit_is_refused() -> None:
    with pytest.raises(ValidationError, match=r"momentum is 0\.9, but optimizer is `adam`"):
        LocalSettings(momentum=0.9)
    with pytest.raises(ValueError, match="steps of `adam` are no sums of gradients"):
        LocalSettings().effective_steps(3)


@pytest.mark.parametrize(("settings", "expected"), [({"epochs": 3, "batch_size": 4}, 9), ({"steps": 5}, 5)])
def test_number_of_steps_is_known_beforehand(settings: dict[str, int], expected: int) -> None:
    local = LocalSettings.model_validate(settings)

    assert local.num_steps(11) == expected == run(local.schedule(2, "a"))[0].num_steps


def test_mean_loss_of_steps_is_over_all_of_their_examples() -> None:
    settings = LocalSettings(optimizer="sgd", learning_rate=1e-12, steps=2, batch_size=4)
    model = without_dropout()

    summary, loaded, _ = run(settings.schedule(1, "a"), model=model)

    seen = [i for _, chosen in loaded for i in chosen]
    with torch.no_grad():
        expected = torch.nn.functional.cross_entropy(model.classify(FEATURES_NChw[seen]), torch.tensor(LABELS)[seen])
    assert summary.mean_loss == pytest.approx(float(expected), rel=1e-5)


def test_proximal_term_pulls_towards_the_start_and_not_beyond() -> None:
    """On equal gradients, w_{t+1} = w_t - rate (g + mu (w_t - w_0)): the way is a geometric sum."""
    settings, mu = LocalSettings(optimizer="sgd", learning_rate=1e-4, steps=50, batch_size=11), 1000.0
    ways = []
    for corrections in (lambda weights: [], lambda weights: [proximal(weights, mu)]):
        line = torch.nn.Linear(1, 4, bias=False)
        torch.nn.init.zeros_(line.weight)
        train(
            line, line, lambda chosen, _: torch.ones(len(chosen), 1), [2] * 11, settings.schedule(1, "a"),
            parameters=[line.weight], execution=EXECUTION, seed=7, address=("a",),
            corrections=corrections([line.weight]),
        )  # fmt: skip
        ways.append(line.weight.detach().norm())
    shrink = 1 - 1e-4 * mu

    assert float(ways[1] / ways[0]) == pytest.approx((1 - shrink**50) / (1 - shrink) / 50, rel=0.01)


@pytest.mark.parametrize("mu", [-1.0, float("nan"), float("inf")])
def test_proximal_weight_that_cannot_be_is_refused(mu: float) -> None:
    with pytest.raises(GliofedError, match="proximal-mu is"):
        proximal([], mu)
