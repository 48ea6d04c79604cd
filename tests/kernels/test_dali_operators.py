"""What the plugin says of itself and of inputs that are not its own, and what is said where it is not there."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from importlib import import_module
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from kernels import dali, ops

USABLE, REASON = dali.available()
needs_dali = pytest.mark.skipif(not USABLE, reason=f"DALI cannot be used: {REASON}")
FINISH = {"size": 64, "channel": [0, 1, 2], "scale": 1.0, "mean": [0.0] * 3, "stddev": [1.0] * 3}


def run(operator: str, array: NDArray[Any], layout: str, **arguments: Any) -> Any:
    module = import_module("nvidia.dali")
    pipeline = module.Pipeline(batch_size=2, num_threads=1, device_id=None)
    with pipeline:
        data = module.fn.external_source(lambda: [array, array], layout=layout)
        results = getattr(module.fn.gliofed, operator)(data, **arguments)
        pipeline.set_outputs(*(results if isinstance(results, list) else [results]))
    return pipeline.run()


@needs_dali
@pytest.mark.parametrize(
    ("operator", "array", "layout", "message"),
    [
        ("crop", np.zeros((9, 9, 4), np.uint8), "HWC", r"sample #0 is \[9, 9, 4\], expected uint8 \[H, W\]"),
        ("crop", np.zeros((9, 9, 3), np.float32), "HWC", "elements of type float, expected uint8"),
        ("crop", np.zeros((0, 9, 3), np.uint8), "HWC", r"sample #0 is \[0, 9, 3\]"),
        ("gray", np.zeros((9, 9, 2), np.uint8), "HWC", r"sample #0 is \[9, 9, 2\]"),
        ("gray", np.zeros((3, 9, 9), np.uint8), "CHW", "layout"),
    ],
)
def test_an_input_that_is_no_image_is_refused(operator: str, array: NDArray[Any], layout: str, message: str) -> None:
    with pytest.raises((RuntimeError, ValueError), match=message):
        run(operator, array, layout)


@needs_dali
@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"size": 0}, "size is 0, expected 1 to 2048"),
        ({"channel": [0, 1, 3]}, "channel must be three numbers of 0 to 2"),
        ({"mean": [0.0]}, "mean has 1 numbers, expected 3"),
        ({"stddev": [1.0, 0.0, 1.0]}, "stddev must be three positive numbers"),
    ],
)
def test_finish_judges_its_arguments(changed: dict[str, Any], message: str) -> None:
    with pytest.raises(RuntimeError, match=message):
        run("finish", np.zeros((256, 256), np.uint8), "HW", **(FINISH | changed))


@needs_dali
def test_finish_takes_crops_only() -> None:
    with pytest.raises(RuntimeError, match=r"sample #0 is \[255, 256\], expected uint8 \[256, 256\]"):
        run("finish", np.zeros((255, 256), np.uint8), "HW", **FINISH)


@needs_dali
def test_outputs_say_what_they_are() -> None:
    crops, boxes = run("crop", np.full((40, 50, 1), 200, np.uint8), "HWC")
    assert crops.layout() == "HW" and crops.shape() == [(256, 256)] * 2
    assert np.asarray(crops[0]).dtype == np.uint8 and np.asarray(boxes[0]).dtype == np.int32
    assert np.asarray(boxes[1]).tolist() == list(ops.crop(np.full((40, 50), 200, np.uint8)).box or [])
    (images,) = run("finish", np.zeros((256, 256), np.uint8), "HW", **FINISH)
    assert images.layout() == "CHW" and images.shape() == [(3, 64, 64)] * 2


@pytest.fixture
def asked_anew() -> Iterator[None]:
    dali._missing.cache_clear()
    yield
    dali._missing.cache_clear()


@pytest.mark.usefixtures("asked_anew")
def test_without_the_package_the_reason_says_how_to_mend_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "nvidia", None)
    usable, reason = dali.available()
    assert not usable and "nvidia-dali-cuda130 is not installed" in reason and "make setup" in reason
    with pytest.raises(dali.DaliUnavailable, match="is not installed"):
        dali.crops([], batch_size=1, num_threads=1)


@needs_dali
@pytest.mark.usefixtures("asked_anew")
def test_a_plugin_of_another_dali_is_not_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    module = import_module("nvidia.dali")
    built_for = module.__version__
    monkeypatch.setattr(module, "__version__", "0.0.1")
    usable, reason = dali.available()
    assert not usable and "libgliofed_dali-0.0.1.so is not in" in reason
    assert f"libgliofed_dali-{built_for}.so" in reason
