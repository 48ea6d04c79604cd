"""The preprocessing definition that travels with a model."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kernels.spec import Normalization, PreprocessSpec, SpecError

UNIT_VALUES = PreprocessSpec().to_json()["normalization"]

numbers = st.floats(1e-6, 1e6)
normalizations = st.builds(
    Normalization,
    channel_order=st.sampled_from(["rgb", "bgr"]),
    scale=numbers,
    mean=st.tuples(*[st.floats(-1e6, 1e6)] * 3),
    std=st.tuples(numbers, numbers, numbers),
)
specs = st.builds(PreprocessSpec, size=st.integers(1, 2048), normalization=normalizations)


@given(specs)
def test_a_spec_survives_json_text(spec: PreprocessSpec) -> None:
    again = PreprocessSpec.from_json(json.loads(json.dumps(spec.to_json())))
    assert again == spec
    assert again.digest() == spec.digest()


@given(specs, specs)
def test_digests_are_equal_exactly_when_specs_are(one: PreprocessSpec, other: PreprocessSpec) -> None:
    assert (one.digest() == other.digest()) == (one == other)


def test_the_digest_of_the_studys_definition_stays_what_bundles_already_hold() -> None:
    assert PreprocessSpec().digest() == "a620ef786c08aa23e18dbad0c22c9c2a662408742fb5c90038e8fb7a6f0806bf"


def test_whole_numbers_count_the_same_as_floats() -> None:
    whole = Normalization(channel_order="bgr", scale=1, mean=(0, 0, 0), std=(1, 1, 1))
    exact = Normalization(channel_order="bgr", scale=1.0, mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))
    assert PreprocessSpec(normalization=whole).digest() == PreprocessSpec(normalization=exact).digest()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"semantics": "bone-v2"}, "carries out 'bone-v1' only"),
        ({"size": 0}, "expected an int of 1 to 2048"),
        ({"size": 200.0}, "expected an int of 1 to 2048"),
        ({"sharpen": True}, r"unknown keys \['sharpen'\]"),
        ({"normalization": {"scale": 1}}, r"missing keys \['channel_order', 'mean', 'std'\]"),
        ({"normalization": None}, "expected an object"),
        ({"normalization": {**UNIT_VALUES, "std": [1, 0, 1]}}, "std is"),
        ({"normalization": {**UNIT_VALUES, "std": [1, 1]}}, "three numbers"),
        ({"normalization": {**UNIT_VALUES, "mean": [0, float("nan"), 0]}}, "mean is"),
        ({"normalization": {**UNIT_VALUES, "scale": "1"}}, "scale is '1'"),
        ({"normalization": {**UNIT_VALUES, "channel_order": "gbr"}}, "'rgb' or 'bgr'"),
    ],
)
def test_definitions_that_this_version_cannot_carry_out_are_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(SpecError, match=message):
        PreprocessSpec.from_json({**PreprocessSpec().to_json(), **change})


def test_a_missing_key_is_refused() -> None:
    values = PreprocessSpec().to_json()
    del values["size"]
    with pytest.raises(SpecError, match=r"missing keys \['size'\]"):
        PreprocessSpec.from_json(values)
