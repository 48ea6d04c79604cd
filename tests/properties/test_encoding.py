"""Encoded updates: close to what was meant, and nothing lost over rounds."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from numpy.typing import NDArray

from fl.training.encoding import BLOCK, EncodedDelta, Encoding, decode, encode, fault_in

Floats = NDArray[np.float32]

FLOAT32_STEP = 2.0**-23
sizes = st.one_of(st.integers(1, 40), st.sampled_from([BLOCK - 1, BLOCK, BLOCK + 1, 3 * BLOCK + 7]))
shorter = st.sampled_from(["bfloat16", "int8"])
seeds = st.integers(0, 2**32 - 1)
scales = st.sampled_from([0.0, 1e-42, 1e-9, 1e-3, 1.0, 300.0])


def draw(random: np.random.Generator, size: int, scale: float) -> Floats:
    """Values of many magnitudes, zeros among them."""
    with np.errstate(under="ignore"):
        return (random.normal(size=size) * scale * 10.0 ** random.integers(-4, 1, size)).astype(np.float32)


@given(parameters=arrays(np.float32, sizes), residual=st.booleans())
def test_float32_is_the_parameters_themselves(parameters: Floats, residual: bool) -> None:
    update, left_out = encode(parameters, np.zeros_like(parameters), "float32", parameters if residual else None)

    assert isinstance(update, np.ndarray) and update.tobytes() == parameters.tobytes() and left_out is None
    assert decode(update, np.zeros_like(parameters)) is update


@given(size=sizes, seed=seeds, scale=scales, encoding=shorter)
def test_error_is_half_a_step_of_the_encoding_at_most(size: int, seed: int, scale: float, encoding: Encoding) -> None:
    random = np.random.default_rng(seed)
    reference, delta = draw(random, size, 1.0), draw(random, size, scale)
    parameters = reference + delta
    meant = parameters.astype(np.float64) - reference

    update, left_out = encode(parameters, reference, encoding, None)
    assert isinstance(update, EncodedDelta) and left_out is not None
    decoded = decode(update, reference).astype(np.float64)

    if encoding == "bfloat16":
        step = 2.0**-7 * np.abs(meant)  # 8 significant bits
    else:
        blocks = np.pad(np.abs(meant), (0, -size % BLOCK)).reshape(-1, BLOCK)
        step = np.repeat(blocks.max(axis=1) / 127, BLOCK)[:size]
    # besides, the difference and its sum with the reference are rounded to float32; the least normal number
    rounding = FLOAT32_STEP * (np.abs(meant) + np.abs(parameters) + np.abs(reference)) + 2e-36
    assert (np.abs(decoded - parameters) <= 0.5001 * step + rounding).all()
    np.testing.assert_allclose(left_out, parameters - decoded, rtol=1e-6, atol=1e-45)


@given(size=sizes, seed=seeds, scale=st.sampled_from([1e-6, 1e-3, 0.1]), encoding=shorter, rounds=st.integers(1, 12))
def test_what_is_left_out_of_one_round_comes_in_the_next(
    size: int, seed: int, scale: float, encoding: Encoding, rounds: int
) -> None:
    """After any number of rounds, what was decoded in all lacks the last round's residual and no more."""
    random = np.random.default_rng(seed)
    reference, residual = draw(random, size, 1.0), None
    meant, sent = np.zeros(size), np.zeros(size)
    for _ in range(rounds):
        parameters = reference + draw(random, size, scale)
        update, residual = encode(parameters, reference, encoding, residual)
        decoded = decode(update, reference)
        meant += parameters.astype(np.float64) - reference
        sent += decoded.astype(np.float64) - reference
        reference = decoded

    assert residual is not None
    # the largest of 3,079 normal draws lies below 5 standard deviations
    half_a_step = 5 * scale * (2.0**-8 if encoding == "bfloat16" else 1 / 254)
    assert (np.abs(meant - sent - residual) <= rounds * FLOAT32_STEP * 4 * half_a_step).all()
    assert np.abs(residual).max() <= 1.1 * half_a_step + FLOAT32_STEP * np.abs(reference).max(), "it grows with rounds"


@given(size=sizes, seed=seeds, encoding=shorter, value=st.sampled_from([np.nan, np.inf, -np.inf]), at=st.floats(0, 1))
def test_value_that_is_no_number_is_not_hidden(
    size: int, seed: int, encoding: Encoding, value: float, at: float
) -> None:
    random = np.random.default_rng(seed)
    reference = draw(random, size, 1.0)
    parameters = reference + draw(random, size, 1e-3)
    position = int(at * (size - 1))
    parameters[position] = value

    update, _ = encode(parameters, reference, encoding, np.zeros_like(parameters))

    assert not np.isfinite(decode(update, reference)[position])


@given(size=sizes, seed=seeds, encoding=st.sampled_from(["float32", "bfloat16", "int8"]))
def test_what_encode_makes_has_the_form_that_the_server_asks_for(size: int, seed: int, encoding: Encoding) -> None:
    random = np.random.default_rng(seed)
    reference = draw(random, size, 1.0)
    update, _ = encode(reference + np.float32(0.5), reference, encoding, None)

    assert fault_in(update, encoding, size) is None
    assert update.nbytes == {"float32": 4 * size, "bfloat16": 2 * size, "int8": size + 4 * -(-size // BLOCK)}[encoding]
    for other in ("float32", "bfloat16", "int8"):
        if other != encoding:
            assert fault_in(update, other, size) is not None
    assert fault_in(update, encoding, size + 1) is not None
    assert reference.tobytes() == draw(np.random.default_rng(seed), size, 1.0).tobytes(), "it was changed"


@pytest.mark.parametrize("encoding", ["bfloat16", "int8"])
def test_arrays_longer_than_a_chunk_are_encoded_to_their_end(encoding: Encoding) -> None:
    random = np.random.default_rng(1)
    reference = draw(random, 3 * 64 * BLOCK + 17, 0.1)
    delta = random.uniform(0.5, 1, len(reference)).astype(np.float32)
    reference.setflags(write=False)

    update, left_out = encode(reference + delta, reference, encoding, np.zeros_like(reference))

    assert left_out is not None and np.abs(left_out).max() < 0.005
    np.testing.assert_allclose(decode(update, reference), reference + delta, atol=0.005)


def test_bfloat16_rounds_to_nearest_and_ties_to_even() -> None:
    parameters = np.array([1.0, 1 + 2**-8, 1 + 3 * 2**-8, 1 + 2**-8 + 2**-20, -(1 + 2**-8)], np.float32)

    update, _ = encode(parameters, np.zeros(5, np.float32), "bfloat16", None)

    assert decode(update, np.zeros(5, np.float32)).tolist() == [1.0, 1.0, 1 + 2**-6, 1 + 2**-7, -1.0]
