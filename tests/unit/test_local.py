"""Local training of any forward: which examples when, what the loss says, and schedules."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from fl.model.speed import SpeedSettings, resolve_execution
from fl.model.vgg import NetworkSettings, SplitVgg19, initialise_from_nothing
from fl.training.local import Schedule, TrainingSummary, predict, train

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
