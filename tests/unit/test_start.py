"""The start of a run: made once, read back to the byte, refused with other data."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from fl.errors import CheckpointError
from service.spec import JobSpec
from service.start import initial_model_state, make_start, read_start, write_start

SPEC = JobSpec.model_validate(
    {
        "name": "start",
        "scenario": "holdout",
        "data": {"root": "/data", "partition": {"kind": "one_class"}},
        "shared": {"source": "holdout"},
        "model": {"network": {"width": 0.125}, "weights": {"source": "random"}},
        "fl": {"warmup": {"layers": "all"}},
    }
)


def test_start_reads_back_to_the_byte_and_only_for_its_data(tmp_path: Path) -> None:
    initial = initial_model_state(SPEC)
    warmed = {name: array + np.float32(0.5) for name, array in initial.items()}
    start = make_start(SPEC, initial, warmed, {"epochs": 3, "seconds": 1.0, "loss": 0.5})
    assert read_start(tmp_path / "start", SPEC, data_digest="a") is None
    write_start(tmp_path / "start", start, data_digest="a")
    found = read_start(tmp_path / "start", SPEC, data_digest="a")
    assert found is not None
    assert found.digest() == start.digest()
    assert found.warmup == start.warmup
    np.testing.assert_array_equal(found.scenario_parameters, start.scenario_parameters)
    np.testing.assert_array_equal(found.baseline_parameters, start.baseline_parameters)
    with pytest.raises(CheckpointError, match="other scans"):
        read_start(tmp_path / "start", SPEC, data_digest="b")


def test_baseline_has_the_warmed_convolutions_but_a_fresh_head_where_nothing_was_pretrained() -> None:
    initial = initial_model_state(SPEC)
    warmed = {name: array + np.float32(0.5) for name, array in initial.items()}
    start = make_start(SPEC, initial, warmed, None)
    head = initial["head.weight"].size + initial["head.bias"].size
    np.testing.assert_array_equal(start.baseline_parameters[:-head], start.scenario_parameters[:-head])
    assert not np.array_equal(start.baseline_parameters[-head:], start.scenario_parameters[-head:])
