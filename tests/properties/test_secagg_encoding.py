"""Quantised sums: exact in the ring, never wrapped, and as near to the floats as stated."""

from __future__ import annotations

from typing import Literal

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from fl.privacy.secagg.encoding import CHUNK_BYTES, ArraySpec, Quantiser, RingEncoding, RingVector, SecureSum

LENGTH = 3
FLOAT32_STEP = 2.0**-24

bits = st.sampled_from([32, 64])
clips = st.sampled_from([2.0**-10, 0.3, 1.0, 4096.0])


def quantised(encoding: RingEncoding, values: dict[str, NDArray[np.float64]], weight: float) -> RingVector:
    vector = encoding.empty()
    for _ in Quantiser(encoding, values, weight).fill(vector):
        pass
    return vector


def summed(encoding: RingEncoding, vectors: list[RingVector]) -> SecureSum:
    total = np.zeros(encoding.length, encoding.dtype)
    for vector in vectors:
        total += vector
    return SecureSum(encoding=encoding, total=total, sites=tuple(f"site-{n}" for n in range(len(vectors))))


def whole(encoding: RingEncoding) -> RingVector:
    return np.arange(1, LENGTH + 1, dtype=encoding.dtype)


def encoding_of(bits: Literal[32, 64], clip: float, sites: int, max_weight: int = 40) -> RingEncoding:
    arrays = (
        ArraySpec(name="update", length=LENGTH, clip=clip),
        ArraySpec(name="gram", length=LENGTH, whole=True),
    )
    return RingEncoding(bits=bits, num_sites=sites, arrays=arrays, max_weight=max_weight)


@st.composite
def rounds(draw: st.DrawFn) -> tuple[RingEncoding, list[NDArray[np.float64]], list[int]]:
    clip = draw(clips)
    rows = draw(st.lists(st.lists(st.floats(-clip, clip), min_size=LENGTH, max_size=LENGTH), min_size=1, max_size=9))
    weights = draw(st.lists(st.integers(1, 40), min_size=len(rows), max_size=len(rows)))
    sites = draw(st.integers(len(rows), 1000))
    return encoding_of(draw(bits), clip, sites), [np.array(row) for row in rows], weights


@given(case=rounds())
def test_sum_and_mean_are_within_the_stated_bounds(
    case: tuple[RingEncoding, list[NDArray[np.float64]], list[int]],
) -> None:
    encoding, rows, weights = case
    clip = encoding.arrays[0].clip
    total = summed(
        encoding,
        [
            quantised(encoding, {"update": row, "gram": whole(encoding)}, weight)
            for row, weight in zip(rows, weights, strict=True)
        ],
    )

    assert total.weight == sum(weights) and total.ones == len(rows) and total.clipped == 0
    mean = np.average(rows, axis=0, weights=weights)
    bound = len(rows) / 2 * clip / (sum(weights) * encoding.weight_quanta) + 2.0**-50 * clip
    assert (np.abs(total.mean("update") - mean) <= bound + FLOAT32_STEP * (np.abs(mean) + bound)).all()
    assert (total.whole("gram") == whole(encoding) * encoding.dtype.type(len(rows))).all()


@given(bits=bits, sites=st.integers(1, 200), sign=st.sampled_from([-1.0, 1.0]), clip=clips)
def test_all_sites_at_the_limit_do_not_wrap_around(bits: Literal[32, 64], sites: int, sign: float, clip: float) -> None:
    encoding = encoding_of(bits, clip, sites)
    row = np.full(LENGTH, sign * clip)
    total = summed(encoding, [quantised(encoding, {"update": row, "gram": whole(encoding)}, 40)] * sites)

    np.testing.assert_allclose(total.mean("update"), row, rtol=1e-6)
    assert (total.whole("gram") == whole(encoding) * encoding.dtype.type(sites)).all()
    assert total.weight == 40 * sites


@given(bits=bits, sites=st.integers(2, 200), weight=st.integers(1, 40), value=st.floats(-1, 1))
def test_mean_of_equal_values_is_that_value(bits: Literal[32, 64], sites: int, weight: int, value: float) -> None:
    encoding = encoding_of(bits, 1.0, sites)
    row = np.full(LENGTH, value)
    total = summed(encoding, [quantised(encoding, {"update": row, "gram": whole(encoding)}, weight)] * sites)

    np.testing.assert_allclose(total.mean("update"), row, rtol=2**-23, atol=0.51 / encoding.weight_quanta)


@given(values=st.lists(st.floats(-100, 100, width=32), min_size=LENGTH, max_size=LENGTH), clip=clips)
def test_clipped_values_count_and_stay_at_the_limit(values: list[float], clip: float) -> None:
    encoding = encoding_of(32, clip, 4)
    row = np.array(values)
    quantiser = Quantiser(encoding, {"update": row, "gram": whole(encoding)}, 40)
    vector = encoding.empty()
    list(quantiser.fill(vector))
    total = summed(encoding, [vector])

    clipped = int((np.abs(row) > clip).sum())
    assert quantiser.clipped == {"update": clipped, "gram": 0} and total.clipped == clipped
    np.testing.assert_allclose(total.mean("update"), np.clip(row, -clip, clip), rtol=1e-6, atol=clip * 1e-6)


def test_long_arrays_are_written_to_their_end_in_chunks_that_fit_the_cache() -> None:
    lengths = (CHUNK_BYTES // 4 - 5, 2 * CHUNK_BYTES // 4 + 7, 0, 11)
    arrays = tuple(ArraySpec(name=str(n), length=length, clip=1.0) for n, length in enumerate(lengths))
    encoding = RingEncoding(bits=32, num_sites=2, arrays=arrays)
    values = {str(n): np.random.default_rng(n).uniform(-1, 1, length) for n, length in enumerate(lengths)}
    vector = encoding.empty()
    chunks = list(Quantiser(encoding, values, 1).fill(vector))

    assert max(chunk.nbytes for chunk in chunks) <= CHUNK_BYTES
    np.testing.assert_array_equal(np.concatenate(chunks), vector)
    total = summed(encoding, [vector])
    for name, given_values in values.items():
        np.testing.assert_allclose(total.mean(name), given_values, atol=1e-7)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("place", [0, LENGTH - 1])
def test_values_that_are_no_numbers_are_refused_and_never_clipped(bad: float, place: int) -> None:
    row = np.zeros(LENGTH, np.float32)
    row[place] = bad
    encoding = encoding_of(32, 1.0, 4)

    with pytest.raises(ValueError, match="'update' holds NaN or infinity"):
        quantised(encoding, {"update": row, "gram": whole(encoding)}, 1)


def test_wrong_arrays_and_weights_are_refused() -> None:
    encoding = encoding_of(32, 1.0, 4)
    good, sums = np.zeros(LENGTH, np.float32), whole(encoding)
    for values, reason in (
        ({"update": good}, "the round's payload is"),
        ({"update": good, "gram": sums, "more": good}, "the round's payload is"),
        ({"update": good, "gram": sums[1:]}, r"'gram' is uint32\[2\], expected uint32 \[3\]"),
        ({"update": good, "gram": good}, r"'gram' is float32\[3\], expected uint32 \[3\]"),
        ({"update": good.astype(np.int64), "gram": sums}, "'update' is int64"),
    ):
        with pytest.raises(ValueError, match=reason):
            Quantiser(encoding, values, 1)
    for weight in (0.0, -1.0, 41.0, float("nan"), 1e-30):
        with pytest.raises(ValueError, match="weight"):
            Quantiser(encoding, {"update": good, "gram": sums}, weight)


def test_encodings_without_room_or_sense_are_refused() -> None:
    one = ArraySpec(name="a", length=1, clip=1.0)
    with pytest.raises(ValueError, match="fewer than 8 bits"):
        RingEncoding(bits=32, num_sites=1000, arrays=(one,), max_weight=20_000)
    with pytest.raises(ValueError, match="two have one name"):
        RingEncoding(bits=32, num_sites=2, arrays=(one, one))
    with pytest.raises(ValueError, match="at least one of each"):
        RingEncoding(bits=32, num_sites=2, arrays=())
    for clip in (0.0, -1.0, float("inf"), float("nan")):
        with pytest.raises(ValueError, match="clip"):
            ArraySpec(name="a", length=1, clip=clip)


def test_means_and_whole_numbers_are_not_taken_for_each_other() -> None:
    encoding = encoding_of(64, 1.0, 2)
    total = summed(encoding, [quantised(encoding, {"update": np.ones(LENGTH), "gram": whole(encoding)}, 1)])

    with pytest.raises(ValueError, match="holds whole numbers"):
        total.mean("gram")
    with pytest.raises(ValueError, match="holds floats"):
        total.whole("update")
    with pytest.raises(KeyError, match="no array 'other'"):
        total.whole("other")


def test_whole_numbers_up_to_the_rings_edge_add_exactly() -> None:
    encoding = encoding_of(64, 1.0, 3)
    large = np.array([2**62 - 1, 2**53 + 1, 1], np.uint64)
    vectors = [quantised(encoding, {"update": np.zeros(LENGTH), "gram": large}, 1)] * 2

    assert summed(encoding, vectors).whole("gram").tolist() == [2**63 - 2, 2**54 + 2, 2]
