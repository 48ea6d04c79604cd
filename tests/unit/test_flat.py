"""Trained parameters as one flat array: a round trip, read-only input, and refusals."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from fl.model.flat import gather, num_parameters, scatter
from fl.model.vgg import NetworkSettings, SplitVgg19


@pytest.fixture
def model() -> SplitVgg19:
    return SplitVgg19(NetworkSettings(width=0.125))


def test_gather_lays_parameters_one_after_another_in_c_order(model: SplitVgg19) -> None:
    flat = gather(model.trained_parameters())

    expected = np.concatenate([p.detach().contiguous().numpy().ravel() for _, p in model.trained_parameters()])
    assert flat.dtype == np.float32 and flat.flags.c_contiguous
    np.testing.assert_array_equal(flat, expected)


def test_order_is_c_order_under_channels_last_too(model: SplitVgg19) -> None:
    before = gather(model.trained_parameters())

    model.to(memory_format=torch.channels_last)

    np.testing.assert_array_equal(gather(model.trained_parameters()), before)


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_scatter_of_a_read_only_array_round_trips(model: SplitVgg19, memory_format: torch.memory_format) -> None:
    model.to(memory_format=memory_format)
    flat = np.random.default_rng(1).normal(size=num_parameters(model.trained_parameters())).astype(np.float32)
    flat.setflags(write=False)
    prefix = [parameter.clone() for parameter in model.prefix.parameters()]

    scatter(flat, model.trained_parameters())

    np.testing.assert_array_equal(gather(model.trained_parameters()), flat)
    assert all(torch.equal(now, then) for now, then in zip(model.prefix.parameters(), prefix, strict=True))


def test_model_does_not_share_memory_with_the_array(model: SplitVgg19) -> None:
    flat = gather(model.trained_parameters())
    scatter(flat, model.trained_parameters())
    kept = flat.copy()

    with torch.no_grad():
        for _, parameter in model.trained_parameters():
            parameter.add_(1)

    np.testing.assert_array_equal(flat, kept)


@pytest.mark.parametrize("fault", ["short", "long", "double", "matrix"])
def test_array_that_does_not_fit_is_refused_and_changes_nothing(model: SplitVgg19, fault: str) -> None:
    flat = gather(model.trained_parameters())
    wrong = {
        "short": flat[:-1],
        "long": np.append(flat, np.float32(0)),
        "double": flat.astype(np.float64),
        "matrix": flat[None],
    }[fault]

    with pytest.raises(ValueError, match=rf"the model needs float32\[{len(flat)}\]"):
        scatter(wrong + 1, model.trained_parameters())

    np.testing.assert_array_equal(gather(model.trained_parameters()), flat)
