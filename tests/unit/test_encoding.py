"""Encoded replies at the server: what is wrong with one is said of its site, and nothing of it is counted."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from fl.errors import UpdateRefused
from fl.server.aggregate import decode_reply
from fl.training.encoding import EncodedDelta, Encoding, encode
from fl.training.exchange import Reply, RoundTask
from fl.training.local import TrainingSummary

SIZE = 1500
REFERENCE = np.linspace(-1, 1, SIZE, dtype=np.float32)
SUMMARY = TrainingSummary(num_examples=1, num_steps=1, mean_loss=0.5, seconds=1.0)


def decoded(update: Any, encoding: Encoding, **extra: Any) -> Any:
    task = RoundTask(round=1, parameters=REFERENCE, encoding=encoding)
    return decode_reply(Reply(site="Charité", round=1, update=update, summary=SUMMARY, extra=extra), task)


def int8(values: Any = None, scales: Any = None) -> EncodedDelta:
    return EncodedDelta(
        values=np.ones(SIZE, np.int8) if values is None else values,
        scales=np.full(2, 0.5, np.float32) if scales is None else scales,
    )


@pytest.mark.parametrize("encoding", ["bfloat16", "int8"])
def test_usable_reply_comes_back_as_parameters(encoding: Encoding) -> None:
    update, _ = encode(REFERENCE + np.float32(0.25), REFERENCE, encoding, None)

    np.testing.assert_allclose(decoded(update, encoding), REFERENCE + 0.25, atol=2e-3)
    np.testing.assert_array_equal(decoded(int8(), "int8"), REFERENCE + np.float32(0.5))


@pytest.mark.parametrize(
    ("update", "encoding", "reason"),
    [
        (REFERENCE, "int8", r"its update is float32\[1500\], this round asks for int8"),
        (int8(), "float32", r"its update is a difference in int8\[1500\], this round asks for float32"),
        (int8(), "bfloat16", r"its update is int8\[1500\], expected uint16\[1500\]"),
        (int8(values=np.ones(7, np.int8)), "int8", r"its update is int8\[7\], expected int8\[1500\]"),
        (int8(values=np.ones((SIZE, 1), np.int8)), "int8", r"its update is int8\[1500, 1\]"),
        (int8(scales=np.ones(1, np.float32)), "int8", r"has scales float32\[1\], expected float32\[2\]"),
        (int8(scales=np.ones(2)), "int8", r"has scales float64\[2\]"),
        (EncodedDelta(values=np.ones(SIZE, np.uint16), scales=np.ones(2, np.float32)), "bfloat16", r"float32\[0"),
        (int8(scales=np.array([0.5, np.nan], np.float32)), "int8", "NaN or infinity"),
        (int8(scales=np.array([np.inf, 0.5], np.float32)), "int8", "NaN or infinity"),
        (int8(scales=np.full(2, -5000, np.float32)), "int8", "magnitude 5e"),
        (int8(values=np.full(SIZE, 100, np.int8), scales=np.full(2, 100, np.float32)), "int8", "magnitude 1e"),
        (EncodedDelta(values=np.full(SIZE, 0x7FC0, np.uint16)), "bfloat16", "NaN or infinity"),
        ([1.0], "float32", "its update is a list, this round asks for float32"),
        (None, "int8", "its update is a NoneType"),
    ],
)  # fmt: skip
@pytest.mark.filterwarnings("error")
def test_unusable_reply_is_refused_by_the_sites_name(update: Any, encoding: Encoding, reason: str) -> None:
    with pytest.raises(UpdateRefused, match=reason) as caught:
        decoded(update, encoding)

    assert caught.value.site == "Charité"


def test_further_arrays_are_held_to_the_same() -> None:
    update, _ = encode(REFERENCE, REFERENCE, "int8", None)

    with pytest.raises(UpdateRefused, match=r"its control-delta is float32\[3\], expected float32\[1500\]"):
        decoded(update, "int8", **{"control-delta": np.zeros(3, np.float32)})
    with pytest.raises(UpdateRefused, match="its control-delta contains NaN"):
        decoded(update, "int8", **{"control-delta": np.full(SIZE, np.nan, np.float32)})
